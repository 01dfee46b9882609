"""The generalising and the memorising circuit over time: their logits, beside those of a pure lookup table."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from grok_lightning.figures.panels import GREY, Look, draw_looks, finish_panels, name_panel
from grok_lightning.figures.reading import (
    Measured,
    at_the_end,
    average,
    curve_of,
    groups_of_kind,
    partner_of_kind,
    run_in_title,
    settings,
)
from grok_lightning.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    PURPLE,
    TICK,
    VERMILLION,
    Dashes,
    add_caption,
    new_figure,
    palette,
    say_of_settings,
)
from grok_lightning.figures.words import count, decimals, number, spread

__all__ = [
    "HOW_TO_READ",
    "draw_circuits",
    "found_circuits",
    "rise_while_falling",
    "smooth",
]

KIND = "FourierLogitSplitter"

FILTER = 0.95
"""Share of the logit norm above which the paper says that a network has the generalising circuit alone."""

SMOOTHED = 0.1
"""Decades of time to either side over which a curve is averaged before it is said to rise or to fall."""

CHANGED = 0.05
"""Share of its range over the run by which a curve must rise, or fall, over a stretch that counts."""

HOW_TO_READ = (
    "Logits of the right label, split into a trigonometric (generalising) and a residual (memorising) part. Thin "
    "lines: what a pure lookup table of the same training rows, with the same mean logit on them, would give; only "
    "what differs from it is evidence of a circuit. From held-out rows alone it would give 0. Hatched, or bars in the "
    "settings' colours: both logits rise while the parameter norm falls (mean curves, averaged over about a factor of "
    f"{10**SMOOTHED:.2g} in time to either side)."
)

LOOKS = {
    "trigonometric": Look("trigonometric, from all rows", VERMILLION, "-"),
    "trigonometric_held_out": Look("trigonometric, from held-out rows", GREEN, "-."),
    "memorising": Look("memorising, rows trained on", BLUE, "--"),
    "memorising_wrong": Look("memorising, largest wrong, held out", PURPLE, ":"),
    "table_trigonometric": Look("", VERMILLION, ":", thin=True),
    "table_memorising": Look("", BLUE, ":", thin=True),
    "norm": Look("", BLACK, "-"),
}


@dataclass(frozen=True)
class _Circuits:
    """The circuits of one group, and the parameter norm of the same members, read once."""

    measured: Measured
    norm: NDArray[np.float64]  # (T', E)
    norm_steps: NDArray[np.int64]  # (T',)

    @property
    def table(self) -> dict[str, NDArray[np.float64]]:
        """What a pure lookup table of the rows trained on, with the same logit on them, would give, `(T, E)` each."""
        return {name: self.measured.values(f"table_{name}") for name in ("trigonometric", "memorising", "share")}

    @property
    def trigonometric(self) -> NDArray[np.float64]:
        """Correct logit of the trigonometric part, from all rows, `(T, E)`."""
        return self.measured.values("trigonometric", over="all")

    @property
    def memorising(self) -> NDArray[np.float64]:
        """Mean correct logit of the residual on the rows trained on, `(T, E)`."""
        return self.measured.values("memorising", rows="train")


def draw_circuits(record: xr.DataTree) -> Figure:
    """Draws the logits of both circuits, the parameter norm, the trigonometric share and clean-up, for each group.

    After Varma, Shah, Kenton, Kramár, Kumar 2023, arXiv 2309.02390, Figures 1 and 9. Ours differs: logits are centred
    over labels; each proxy stands beside what a pure lookup table of the same rows would give, for the proxies are
    partly arithmetic; the trigonometric logit is also drawn from held-out rows alone, which are free of the table; the
    interval in which both logits rise while the norm falls is found (`rise_while_falling`); every member is drawn.

    Args:
        record: A record with a group of kind `FourierLogitSplitter`: `table_trigonometric`, `table_memorising` and
            `table_share` over `(step, member)`, `memorising` and `memorising_wrong` over `(step, member, rows)`,
            `trigonometric` and `share` over `(step, member, over)`, each in any order. NaN is passed over. The norm is
            that of a group of kind `ParameterNorm`; onsets are marked where a group of kind `Onset` exists.

    Returns:
        The figure, with its caption.

    Raises:
        ValueError: If the record has no Fourier logits.
    """
    groups = groups_of_kind(record, KIND)
    if not groups:
        raise ValueError(f"the record has no group of kind {KIND}: nothing to draw")
    figure = new_figure(2 * len(groups), row_height=3.0)
    grid = figure.subplots(2 * len(groups), 2, squeeze=False)
    for row, (name, group) in enumerate(groups.items()):
        suffix = (f" ({name})" if len(groups) > 1 else "") + run_in_title(group)
        _draw_group(figure, grid[2 * row : 2 * row + 2], _read(record, group), suffix)
    add_caption(figure, f"{HOW_TO_READ} {found_circuits(record)}")
    return figure


def _read(record: xr.DataTree, group: xr.Dataset) -> _Circuits:
    measured = Measured.of(record, group)
    norms = partner_of_kind(record, "ParameterNorm", group)
    if norms is None or "total" not in norms:
        return _Circuits(measured, np.full((0, group.sizes["member"]), np.nan), np.empty(0, dtype=np.int64))
    total = curve_of(norms, "total")
    known = np.isfinite(total).any(axis=1)
    return _Circuits(measured, total[known], np.asarray(norms["step"].values)[known])


def _draw_group(figure: Figure, grid: NDArray[Any], circuits: _Circuits, suffix: str) -> None:
    logits, norm, share, clean_up = grid.ravel()
    measured, table = circuits.measured, circuits.table
    time = measured.time
    held_out = measured.values("trigonometric", over="held_out")
    curves = {"trigonometric": circuits.trigonometric, "trigonometric_held_out": held_out}
    shown = {"memorising": circuits.memorising, "table_memorising": table["memorising"]}
    tables = {"table_trigonometric": table["trigonometric"]} | shown
    draw_looks(logits, measured, time, curves | tables, LOOKS)
    name_panel(logits, f"Correct logits{suffix}", "centred logit")
    draw_looks(norm, measured, measured.clock.time(circuits.norm_steps), {"norm": circuits.norm}, LOOKS)
    name_panel(norm, f"Norm of all parameters{suffix}", "norm (L2)")
    shares = {
        "trigonometric": measured.values("share", over="all"),
        "trigonometric_held_out": measured.values("share", over="held_out"),
        "table_trigonometric": table["share"],
    }
    draw_looks(share, measured, time, shares, LOOKS)
    share.axhline(FILTER, color=GREY, linestyle=(0, (1, 2)), linewidth=1.0, zorder=1)
    share.annotate(
        number(FILTER), (0.01, FILTER), xycoords=("axes fraction", "data"), fontsize=TICK, color=GREY, va="bottom"
    )
    name_panel(share, f"Trigonometric share{suffix}", "share of the logits' norm")
    share.set_ylim(-0.02, 1.04)
    wrong = measured.values("memorising_wrong", rows="held_out")
    draw_looks(clean_up, measured, time, curves | {"memorising_wrong": wrong}, LOOKS)
    name_panel(clean_up, f"Clean-up on held-out rows{suffix}", "centred logit")
    more: list[Artist] = []
    if palette(settings(measured.group)).few:
        more.append(Line2D([], [], color=GREY, linewidth=1.0, linestyle=_thin(measured), label="lookup table"))
    if sum(_mark_intervals(axes, circuits) for axes in (logits, norm)):
        label = "both logits rise, norm falls"
        hatched = Patch(facecolor="none", edgecolor=GREY, hatch="////", linewidth=0, label=label)
        bar = Line2D([], [], color=GREY, linewidth=4, alpha=0.6, label=label)
        more.append(hatched if len(settings(measured.group)) == 1 else bar)
    finish_panels(figure, grid, measured, np.union1d(measured.steps, circuits.norm_steps), LOOKS, more)


def _thin(measured: Measured) -> Dashes:
    return LOOKS["table_memorising"].dashes_among(len(settings(measured.group)))


def _mark_intervals(axes: Axes, circuits: _Circuits) -> int:
    """Marks where both logits rise while the norm falls, by the mean curves of each setting; the number of marks."""
    measured = circuits.measured
    found = settings(measured.group)
    key = palette(found)
    marks = 0
    for row, (setting, colour) in enumerate(zip(found, key.colours, strict=True)):
        members = setting.members
        norm = average(circuits.norm[:, members])[0]
        logits = [average(values[:, members])[0][:, None] for values in (circuits.trigonometric, circuits.memorising)]
        [interval] = rise_while_falling(logits[0], logits[1], measured.steps, norm[:, None], circuits.norm_steps)
        if not key.few or not np.isfinite(interval).all():
            continue
        marks += 1
        start, end = measured.clock.time(interval)
        if len(found) == 1:
            axes.axvspan(start, end, facecolor="none", edgecolor=GREY, hatch="////", alpha=0.35, linewidth=0, zorder=0)
        else:
            height = 0.015 + 0.02 * row
            place = axes.get_xaxis_transform()
            axes.plot([start, end], [height, height], transform=place, color=colour, linewidth=3, alpha=0.7, zorder=5)
    return marks


# ---- the interval in which both circuits grow while the norm falls ---------------------------------------------------


def smooth(values: NDArray[np.float64], steps: NDArray[Any]) -> NDArray[np.float64]:
    """A curve averaged over its measurements within a tenth of a decade to either side, in log10(1 + step).

    Measurements count the less the farther away they are (triangular weights); what rises, or falls, without a break
    still does so afterwards.

    Args:
        values: `(T,)`, finite.
        steps: Measured steps, `(T,)`, rising.

    Returns:
        `(T,)`.
    """
    moment = np.log10(1.0 + steps)
    first = np.searchsorted(moment, moment - SMOOTHED, side="right")
    last = np.searchsorted(moment, moment + SMOOTHED)
    result = np.empty(len(values))
    for i, near in enumerate(map(slice, first, last)):
        result[i] = np.average(values[near], weights=SMOOTHED - np.abs(moment[near] - moment[i]))
    return result


def rise_while_falling(
    trigonometric: NDArray[np.float64],
    memorising: NDArray[np.float64],
    steps: NDArray[Any],
    norm: NDArray[np.float64],
    norm_steps: NDArray[Any],
) -> NDArray[np.float64]:
    """The interval, if there is one, in which both circuits' correct logits rise while the parameter norm falls.

    Varma et al. 2023, arXiv 2309.02390, show that there is one, in Figure 9. Here it is the longest stretch, on a log
    axis, of consecutive measurements between which all three change in that way, after smoothing (`smooth`), and over
    which each changes by at least a twentieth of its range over the run, so that noise on a plateau does not count. The
    norm is interpolated between its own measurements, linearly in log10(1 + step). The ends of the interval are known
    to about the tenth of a decade that curves are averaged over.

    Args:
        trigonometric: Correct logit of the trigonometric part, `(T, E)`; NaN is passed over.
        memorising: Correct logit of the residual, `(T, E)`; NaN is passed over.
        steps: Steps at which the logits were measured, `(T,)`, rising.
        norm: Parameter norm, `(T', E)`; NaN is passed over.
        norm_steps: Steps at which the norm was measured, `(T',)`, rising.

    Returns:
        First and last step of each member's interval, `(E, 2)`; NaN where there is none.
    """
    intervals = np.full((trigonometric.shape[1], 2), np.nan)
    for member in range(len(intervals)):
        own = np.flatnonzero(np.isfinite(norm[:, member]))
        if not own.size:
            continue
        between = (steps >= norm_steps[own[0]]) & (steps <= norm_steps[own[-1]])
        rows = np.flatnonzero(between & np.isfinite(trigonometric[:, member]) & np.isfinite(memorising[:, member]))
        at, known = np.log10(1.0 + steps[rows]), np.log10(1.0 + norm_steps[own])
        rising = [trigonometric[rows, member], memorising[rows, member], -np.interp(at, known, norm[own, member])]
        stretch = _longest_common_rise([smooth(values, steps[rows]) for values in rising], at)
        if stretch is not None:
            intervals[member] = steps[rows][list(stretch)]
    return intervals


def _longest_common_rise(curves: list[NDArray[np.float64]], at: NDArray[np.float64]) -> tuple[int, int] | None:
    """First and last position of the longest stretch, along `at`, over which all curves rise, each by enough."""
    up = np.all([np.diff(values) > 0 for values in curves], axis=0)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], up.astype(int), [0]])))
    stretches = [
        (int(first), int(last))
        for first, last in edges.reshape(-1, 2)
        if all(values[last] - values[first] >= CHANGED * np.ptp(values) for values in curves)
    ]
    return max(stretches, key=lambda stretch: at[stretch[1]] - at[stretch[0]], default=None)


# ---- what the run showed ---------------------------------------------------------------------------------------------


def found_circuits(record: xr.DataTree) -> str:
    """What became of the two circuits, beside what a pure lookup table of the same rows would give.

    Returns:
        Sentences with numbers computed from the record; medians and ranges are over the members of a setting, or over
        all members of a run beyond seven settings.
    """
    return say_of_settings(record, KIND, lambda part: _sentences(_read(record, part)))


def _sentences(circuits: _Circuits) -> list[str]:
    measured, table = circuits.measured, circuits.table
    trigonometric = _told(circuits.trigonometric)
    if not trigonometric:
        return ["the circuits were not measured."]
    text = f"at the end the trigonometric logit is {trigonometric} from all rows"
    if by_table := _median(table["trigonometric"], number):
        text += f", where a lookup table of the same rows would give {by_table}"
    if held_out := _told(measured.values("trigonometric", over="held_out")):
        text += f", and {held_out} from held-out rows, where it would give 0"
    sentences = [f"{text}."]
    if memorising := _told(circuits.memorising):
        by_table = _median(table["memorising"], number)
        would = f", where it would give {by_table}" if by_table else ""
        sentences.append(f"the memorising logit on the rows trained on is {memorising}{would}.")
    sentences += _share_sentences(circuits)
    if wrong := _told(measured.values("memorising_wrong", rows="held_out")):
        sentences.append(f"the largest memorising logit of a wrong label is {wrong}, in the mean over held-out rows.")
    return sentences + _norm_sentences(circuits)


def _told(values: NDArray[np.float64], form: Callable[[Any], str] = number) -> str:
    """Median and range at the end, in words; empty where there is nothing to tell."""
    end = at_the_end(values)
    end = end[np.isfinite(end)]
    return spread(end, form) if end.size else ""


def _median(values: NDArray[np.float64], form: Callable[[Any], str]) -> str:
    """Median at the end, in words; empty where there is none."""
    end = at_the_end(values)
    end = end[np.isfinite(end)]
    return form(float(np.median(end))) if end.size else ""


def _share_sentences(circuits: _Circuits) -> list[str]:
    share = at_the_end(circuits.measured.values("share", over="all"))
    share = share[np.isfinite(share)]
    if not share.size:
        return []
    text = f"the trigonometric share of the logits' norm is {spread(share, decimals)}"
    by_table = _median(circuits.table["share"], decimals)
    if by_table:
        text += f", where it would give {by_table}"
    if share.size > 1:
        text += f", and above {FILTER} in {(share > FILTER).sum()} of {share.size} members"
    sentences = [f"{text}."]
    if by_table and float(by_table) > FILTER:
        sentences.append(f"Above {FILTER} it tells nothing here, for a lookup table's is too.")
    held_out = _told(circuits.measured.values("share", over="held_out"), decimals)
    return sentences + ([f"Over held-out rows alone it is {held_out}."] if held_out else [])


def _norm_sentences(circuits: _Circuits) -> list[str]:
    norm, clock = circuits.norm, circuits.measured.clock
    known = np.isfinite(norm).any(axis=0)
    if not known.any():
        return ["The parameter norm was not measured."]
    highest = np.nanmax(norm[:, known], axis=0)
    sentences = [f"the parameter norm is {_told(norm)}, after {spread(highest)} at its highest."]
    intervals = rise_while_falling(
        circuits.trigonometric, circuits.memorising, circuits.measured.steps, norm, circuits.norm_steps
    )
    there = np.isfinite(intervals).all(axis=1)
    members = int(known.sum())
    what = "both logits rise while the norm falls"
    if not there.any():
        return [*sentences, f"In no stretch of time do {what}." if members > 1 else f"At no time do {what}."]
    start, end = (clock.spread(intervals[there, i]) for i in (0, 1))
    who = f"in {there.sum()} of {count(members, 'member')} " if members > 1 else ""
    return [*sentences, f"{who}{what}, from {start} to {end}."]
