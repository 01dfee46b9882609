"""The subnetwork that generalises in the end, beside the rest of the network, over the whole of training."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from grok_lightning.figures.reading import (
    EVENTS,
    Clock,
    Onsets,
    curve_of,
    groups_of_kind,
    member_labels,
    neurons_of,
    read_onsets,
    run_in_title,
    settings,
    values_at,
)
from grok_lightning.figures.style import (
    BLACK,
    GREEN,
    LABEL,
    PURPLE,
    STRIP,
    VERMILLION,
    Dashes,
    add_caption,
    add_key,
    draw_mean,
    draw_step_axis,
    heighten,
    mark_onsets,
    mark_onsets_above,
    new_figure,
    onset_handles,
    palette,
    say_in,
    say_of_settings,
    scale_log,
    setting_handles,
    tidy,
)
from grok_lightning.figures.words import decimals, listing, number, spread

__all__ = ["HOW_TO_READ", "draw_subnetworks", "found_subnetworks", "norm_ratio"]

HOW_TO_READ = (
    "Three sets of neurons, fixed at the end of training and followed back to its beginning: the generalizing set (the "
    "fewest neurons, taken in the order of their norms, that stand for the whole network on the training rows), the "
    "complementary set (all other neurons) and control (random sets of the size of the first). Norm: mean over the set "
    "of the norms of incoming weights. Agreement: share of rows on which the set alone predicts what the whole network "
    "of the same step predicts. Generalizing among the largest: how many of the neurons with the largest norms of a "
    "step are in the generalizing set. Average sensitivity: how many input bits change the prediction if flipped, one "
    "at a time; k for the parity of k bits. Strong lines: mean over members that differ only in their seeds; bands: "
    "one standard deviation to either side, where there is one setting; faint lines: single members. Vertical marks, "
    "or dots above the panels: onsets; what is said of one is of the measurement nearest to it."
)

FULL, GENERALIZING, COMPLEMENTARY, CONTROL = "full", "generalizing", "complementary", "control"
SET_NAMES = {
    GENERALIZING: "generalizing set",
    COMPLEMENTARY: "complementary set",
    CONTROL: "control",
    FULL: "whole network",
}
SET_COLOURS = {FULL: BLACK, GENERALIZING: VERMILLION, COMPLEMENTARY: PURPLE, CONTROL: GREEN}
SET_DASHES: dict[str, Dashes] = {FULL: ":", GENERALIZING: "-", COMPLEMENTARY: "--", CONTROL: "-."}
Words = Callable[[Any], str]
SPLIT_NAMES = {"held_out": "held-out rows", "train": "rows trained on"}


@dataclass(frozen=True)
class _Compared:
    """One comparison's group, read once."""

    group: xr.Dataset
    clock: Clock
    onsets: Onsets | None

    @property
    def steps(self) -> NDArray[np.int64]:
        """Measured steps, `(T,)`."""
        return np.asarray(self.group["step"].values)

    def values(self, name: str, **labels: str) -> NDArray[np.float64]:
        """An array at labels of its other dimensions: `(T, E)`; all NaN where the group does not have it."""
        return curve_of(self.group, name, **labels)

    def curves(self, name: str, dim: str, **labels: str) -> dict[str, NDArray[np.float64]]:
        """An array for each set along `dim` of which anything was measured: `(T, E)` each."""
        found = {label: self.values(name, **{dim: label}, **labels) for label in SET_NAMES}
        return {label: values for label, values in found.items() if np.isfinite(values).any()}


def draw_subnetworks(record: xr.DataTree) -> Figure:
    """Draws norm, agreement, overlap and sensitivity of the subnetworks, two or three rows of panels a group.

    After Merrill, Tsilivis, Shukla 2023, arXiv 2303.11873, Figure 3, which is the first row. Ours differs: agreement is
    drawn on held-out rows, of which the paper's text speaks, and on training rows, which its released code measured;
    control is the mean over several random sets; overlap, ratio of the norms, and average sensitivity, which the
    released code computes and the paper does not report, are added; every member is drawn behind the mean.

    Args:
        record: A record with a group of kind `SubnetworkComparison`: `norm` over `(step, member, set)`, `agreement`
            over `(step, member, split, set)`, `overlap` over `(step, member)` and, unless nothing of it was measured,
            `sensitivity` over `(step, member, network)`, each in any order. NaN is passed over. Onsets are marked
            where a group of kind `Onset` exists.

    Returns:
        The figure, with its caption.

    Raises:
        ValueError: If the record has no comparison of subnetworks.
    """
    groups = groups_of_kind(record, "SubnetworkComparison")
    if not groups:
        raise ValueError("the record has no group of kind SubnetworkComparison: nothing to draw")
    compared = {name: _read(record, group) for name, group in groups.items()}
    rows = {name: 3 if entry.curves("sensitivity", "network") else 2 for name, entry in compared.items()}
    figure = new_figure(sum(rows.values()), row_height=2.9)
    grid = figure.subplots(sum(rows.values()), 2, squeeze=False)
    first = 0
    for name, entry in compared.items():
        suffix = (f" ({name})" if len(groups) > 1 else "") + run_in_title(entry.group)
        _draw_group(figure, grid[first : first + rows[name]], entry, suffix)
        first += rows[name]
    add_caption(figure, f"{HOW_TO_READ} {found_subnetworks(record)}")
    return figure


def norm_ratio(generalizing: NDArray[np.float64], complementary: NDArray[np.float64]) -> NDArray[np.float64]:
    """How many times as large the mean norm of the generalizing set is: NaN where that of the other is 0 or NaN."""
    some = complementary > 0
    return np.where(some, generalizing / np.where(some, complementary, 1.0), np.nan)


def _read(record: xr.DataTree, group: xr.Dataset) -> _Compared:
    return _Compared(group, Clock.of(record), read_onsets(record, member_labels(group)))


def _ratio(compared: _Compared) -> NDArray[np.float64]:
    return norm_ratio(compared.values("norm", set=GENERALIZING), compared.values("norm", set=COMPLEMENTARY))


def _top(group: xr.Dataset) -> str:
    """How many of the largest neurons were counted; empty where the record does not say."""
    return f"{number(group.attrs['top'])} " if "top" in group.attrs else ""


def _draw_group(figure: Figure, grid: NDArray[Any], compared: _Compared, suffix: str) -> None:
    norm, held_out, train, overlap = grid[:2].ravel()
    _draw_sets(norm, compared, compared.curves("norm", "set"))
    _finish(norm, f"Mean norm of incoming weights{suffix}", "norm (L2)")
    norm.set_ylim(bottom=0)
    for axes, split in ((held_out, "held_out"), (train, "train")):
        curves = compared.curves("agreement", "set", split=split)
        _draw_sets(axes, compared, curves)
        _finish(axes, f"Agreement on {SPLIT_NAMES[split]}{suffix}", "fraction of rows")
        lowest = min((float(np.nanmin(values)) for values in curves.values()), default=0.0)
        axes.set_ylim(0.38 if lowest >= 0.4 else -0.02, 1.02)
        if not curves:
            say_in(axes, "not measured")
    _draw_sets(overlap, compared, {GENERALIZING: compared.values("overlap")})
    _finish(overlap, f"Generalizing among the {_top(compared.group)}largest{suffix}", "neurons")
    overlap.set_ylim(-0.02 * float(compared.group.attrs.get("top", 10)), None)
    if len(grid) == 3:
        sensitivity, ratio = grid[2]
        _draw_sets(sensitivity, compared, compared.curves("sensitivity", "network"))
        _finish(sensitivity, f"Average sensitivity{suffix}", "sensitivity (input bits)")
        sensitivity.set_ylim(bottom=0)
        _finish(ratio, f"Norm, ratio of the two{suffix}", "generalizing / complementary")
        values = _ratio(compared)
        if np.isfinite(values).any():
            scale_log(ratio, values)
            _draw_sets(ratio, compared, {GENERALIZING: values})
        else:
            say_in(ratio, "one of them is empty")
    _mark(figure, grid, compared)


def _draw_sets(axes: Axes, compared: _Compared, curves: dict[str, NDArray[np.float64]]) -> None:
    """One line a set and setting: colours tell sets apart in one setting, else settings, with dashes for the sets."""
    found = settings(compared.group)
    key = palette(found)
    time = compared.clock.time(compared.steps)
    for label, values in curves.items():
        for setting, colour in zip(found, key.colours, strict=True):
            draw_mean(
                axes,
                time,
                values[:, setting.members],
                label=f"{label} {setting.label}".strip(),
                colour=SET_COLOURS[label] if len(found) == 1 else colour,
                dashes=SET_DASHES[label],
                behind=key.few,
                band=len(found) == 1,
            )


def _finish(axes: Axes, title: str, unit: str) -> None:
    tidy(axes, title)
    axes.set_ylabel(unit, fontsize=LABEL)


def _mark(figure: Figure, grid: NDArray[Any], compared: _Compared) -> None:
    """Onsets, time axes and the key."""
    found = settings(compared.group)
    key = palette(found)
    for axes in grid.ravel():
        if len(found) == 1:
            mark_onsets(axes, compared.clock, compared.onsets, found[0].members)
        draw_step_axis(axes, compared.clock, compared.steps)
    key.add_colourbar(figure, list(grid.ravel()))
    handles: list[Artist] = [] if len(found) == 1 else setting_handles(found, key)
    drawn = {*compared.curves("norm", "set"), *compared.curves("sensitivity", "network")}
    for label in SET_NAMES:
        if label in drawn:
            colour = SET_COLOURS[label] if len(found) == 1 else "#444444"
            line = Line2D([], [], color=colour, linestyle=SET_DASHES[label], linewidth=1.8, label=SET_NAMES[label])
            handles.append(line)
    if len(found) == 1:
        lines, labels = grid[0, 0].get_legend_handles_labels()
        handles += [line for line, label in zip(lines, labels, strict=True) if label.startswith(EVENTS)]
    elif key.few and compared.onsets is not None:
        # Once: the panels beneath have the same time axis.
        for axes in grid[0]:
            mark_onsets_above(axes, compared.clock, compared.onsets, found, key)
        heighten(figure, (STRIP + 4) * len(found))
        handles += onset_handles()
    add_key(figure, handles, 3)


# ---- what the run showed ---------------------------------------------------------------------------------------------


def found_subnetworks(record: xr.DataTree) -> str:
    """What the comparison of subnetworks shows: their norms, agreement, overlap and sensitivity, then and at the end.

    Returns:
        Sentences with numbers computed from the record; medians and ranges are over the members of a setting, or over
        all members of a run beyond seven settings.
    """
    return say_of_settings(record, "SubnetworkComparison", lambda part: _sentences(_read(record, part)))


def _sentences(compared: _Compared) -> list[str]:
    if not compared.curves("norm", "set"):
        return ["no subnetworks were compared."]
    sentences = [_size_sentence(compared.group)]
    if caveat := _not_generalised_sentence(compared.onsets, compared.group.sizes["member"]):
        sentences.append(caveat)
    if ratio := _then_and_at_the_end(compared, _ratio(compared), number):
        sentences.append(f"its mean norm, as a multiple of that of the complementary set: {ratio}.")
    for split, name in SPLIT_NAMES.items():
        if curves := compared.curves("agreement", "set", split=split):
            sentences.append(f"agreement on {name} at the end: {_each_at_the_end(compared, curves, decimals)}.")
        else:
            sentences.append(f"agreement on {name} was not measured.")
    if overlap := _then_and_at_the_end(compared, compared.values("overlap"), number):
        sentences.append(f"neurons of the set among the {_top(compared.group)}with the largest norms: {overlap}.")
    if curves := compared.curves("sensitivity", "network"):
        sentences.append(f"average sensitivity at the end: {_each_at_the_end(compared, curves, number)}.")
    return sentences


def _size_sentence(group: xr.Dataset) -> str:
    """How many neurons generalise, and by which measurement they were chosen."""
    size = np.asarray(group["size"].values, dtype=np.float64) if "size" in group else np.empty(0)
    size = size[np.isfinite(size)]
    if not size.size:
        return "the size of the generalizing set is unknown."
    by = ", that of a measurement of median size" if group.attrs.get("choose") == "median" else ""
    return f"{neurons_of(group, 'generalizing')}{spread(size)} are in the generalizing set{by}."


def _not_generalised_sentence(onsets: Onsets | None, members: int) -> str:
    """That the name of the generalizing set claims too much for members that did not generalise."""
    if onsets is None:
        return ""
    without = members - int(np.isfinite(onsets.step["generalised"]).sum())
    if not without:
        return ""
    who, of = f"{without} of {members} members did not generalise", "their set is"
    if members == 1:
        who, of = "the member did not generalise", "its set is"
    return f"{who}: {of} what predicts as the whole network does, and no more."


def _then_and_at_the_end(compared: _Compared, values: NDArray[np.float64], form: Words) -> str:
    """Values at memorisation, where members memorised, and at the end: `1.1 at memorisation and 55 at the end`."""
    clauses = []
    if compared.onsets is not None:
        then = values_at(values, compared.steps, compared.onsets.step["memorised"])
        if np.isfinite(then).any():
            clauses.append(f"{spread(then[np.isfinite(then)], form)} at memorisation")
    end = _at_the_end(values)
    if end.size:
        clauses.append(f"{spread(end, form)} at the end")
    return listing(clauses)


def _each_at_the_end(compared: _Compared, curves: dict[str, NDArray[np.float64]], form: Words) -> str:
    ends = {label: _at_the_end(values) for label, values in curves.items()}
    return ", ".join(f"{SET_NAMES[label]} {spread(end, form)}" for label, end in ends.items() if end.size)


def _at_the_end(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values at the last step at which there are any, of the members that have one."""
    measured = np.flatnonzero(np.isfinite(values).any(axis=1))
    last = values[measured[-1]] if measured.size else values[:0].ravel()
    return last[np.isfinite(last)]
