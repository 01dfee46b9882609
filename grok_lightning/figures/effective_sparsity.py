"""Effective sparsity over time: how many neurons a network needs to do on its training rows what it does."""

import math
from collections.abc import Sequence
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

from grok_lightning.figures.reading import (
    EVENTS,
    Clock,
    Onsets,
    Setting,
    groups_of_kind,
    labels_along,
    member_labels,
    neurons_of,
    parts_of_kind,
    read_onsets,
    run_in_title,
    settings,
    values_at,
)
from grok_lightning.figures.style import (
    GREEN,
    LABEL,
    STRIP,
    add_caption,
    add_key,
    draw_mean,
    draw_step_axis,
    heighten,
    mark_onsets,
    mark_onsets_above,
    new_figure,
    onset_handles,
    openings,
    palette,
    say_in,
    scale_log,
    setting_handles,
    tidy,
)
from grok_lightning.figures.words import capital, listing, spread

__all__ = ["HOW_TO_READ", "draw_effective_sparsity", "fall_steps", "found_effective_sparsity", "last_sizes"]

HOW_TO_READ = (
    "Effective sparsity: the smallest number of neurons, taken in the order of the norms of their incoming weights, "
    "that give on the training rows the predictions, or just the accuracy, of the whole network. Few neurons: a "
    "sparse network. Before memorisation a few neurons may have the accuracy of the whole network by luck. Strong "
    "lines: mean over members that differ only in their seeds; bands: one standard deviation to either side, cut at "
    "the smallest member; faint lines: single members. Vertical marks, or dots above the panels: onsets; what is said "
    "of one is of the measurement nearest to it."
)

RULE_TITLES = {"predictions": "Neurons for the same predictions", "accuracy": "Neurons for the same accuracy"}
RULE_WORDS = {"predictions": "the predictions", "accuracy": "the accuracy"}

LAST_SHARE = 0.1
"""Share of the measured time, at its end, over which each member's last size is taken: it fluctuates."""

FALLEN = 0.5
"""A size has fallen when its end is below this share of its size at memorisation."""


@dataclass(frozen=True)
class _Sizes:
    """The sizes of one group by one rule, read once."""

    group: xr.Dataset
    clock: Clock
    onsets: Onsets | None
    steps: NDArray[np.int64]  # (T,)
    size: NDArray[np.float64]  # (T, E)


def draw_effective_sparsity(record: xr.DataTree) -> Figure:
    """Draws effective sparsity over time, one panel a rule and group.

    After Merrill, Tsilivis, Shukla 2023, arXiv 2303.11873, Figure 2 (right): mean and population standard deviation
    over members, epochs on a log axis. Ours differs: the number of neurons is on a log axis, where both the whole
    network and the few neurons at the end can be read; every member is drawn behind the mean; onsets are marked; the
    rule of the paper's text (predictions) and that of its released code (accuracy) are drawn side by side.

    Args:
        record: A record with a group of kind `SparseSubnetworkExtractor`; `size` over `(step, member, rule)` in any
            order. NaN is passed over. Onsets are marked where a group of kind `Onset` exists.

    Returns:
        The figure, with its caption.

    Raises:
        ValueError: If the record has no effective sparsity.
    """
    groups = groups_of_kind(record, "SparseSubnetworkExtractor")
    if not groups:
        raise ValueError("the record has no group of kind SparseSubnetworkExtractor: nothing to draw")
    rules = {name: labels_along(group, "rule") for name, group in groups.items()}
    columns = max(1, min(2, max(map(len, rules.values()))))
    rows = {name: max(1, math.ceil(len(labels) / columns)) for name, labels in rules.items()}
    figure = new_figure(sum(rows.values()))
    grid = figure.subplots(sum(rows.values()), columns, squeeze=False)
    first = 0
    for name, group in groups.items():
        suffix = (f" ({name})" if len(groups) > 1 else "") + run_in_title(group)
        _draw_group(figure, grid[first : first + rows[name]], record, group, suffix)
        first += rows[name]
    add_caption(figure, f"{HOW_TO_READ} {found_effective_sparsity(record)}")
    return figure


def _draw_group(figure: Figure, grid: NDArray[Any], record: xr.DataTree, group: xr.Dataset, suffix: str) -> None:
    found = settings(group)
    key = palette(found)
    onsets = read_onsets(record, member_labels(group))
    rules = labels_along(group, "rule")
    panels = [*grid.ravel()][: len(rules)]
    for axes in [*grid.ravel()][len(rules) :]:
        axes.set_axis_off()
    for axes, rule in zip(panels, rules, strict=True):
        _draw_rule(axes, _read(record, group, rule), RULE_TITLES.get(rule, rule) + suffix)
    key.add_colourbar(figure, panels)
    strip = len(found) > 1 and key.few and onsets is not None
    if strip:
        heighten(figure, (STRIP + 4) * len(found) * len(grid))
    if len(found) == 1:
        add_key(figure, _one_setting_key(panels, found[0]), 4)
    else:
        few = setting_handles(found, key) + (onset_handles() if strip else [])
        each = Line2D([], [], color="#444444", linewidth=1.2, label="mean over the members of a setting")
        add_key(figure, few or [each], 3)


def _read(record: xr.DataTree, group: xr.Dataset, rule: str) -> _Sizes:
    size = group["size"].sel(rule=rule).transpose("step", "member")
    onsets = read_onsets(record, member_labels(group))
    return _Sizes(group, Clock.of(record), onsets, group["step"].values, np.asarray(size.values, dtype=np.float64))


def _draw_rule(axes: Axes, sizes: _Sizes, title: str) -> None:
    found = settings(sizes.group)
    key = palette(found)
    # Both rules on one scale, so that they can be compared.
    scale_log(axes, np.asarray(sizes.group["size"].values, dtype=np.float64))
    for setting, colour in zip(found, key.colours, strict=True):
        line = GREEN if len(found) == 1 else colour
        label = f"size {setting.label}".strip()
        values = sizes.size[:, setting.members]
        draw_mean(axes, sizes.clock.time(sizes.steps), values, label=label, colour=line, behind=key.few)
    tidy(axes, title)
    axes.set_ylabel("neurons (log scale)", fontsize=LABEL)
    if len(found) == 1:
        mark_onsets(axes, sizes.clock, sizes.onsets, found[0].members)
    elif key.few:
        mark_onsets_above(axes, sizes.clock, sizes.onsets, found, key)
    draw_step_axis(axes, sizes.clock, sizes.steps)
    if not np.isfinite(sizes.size).any():
        say_in(axes, "not measured")


def _one_setting_key(panels: Sequence[Axes], setting: Setting) -> list[Artist]:
    handles: list[Artist] = [Line2D([], [], color=GREEN, linewidth=1.8, label="the member")]
    if len(setting.members) > 1:
        handles = [
            Line2D([], [], color=GREEN, linewidth=1.8, label=f"mean of {len(setting.members)} members"),
            Patch(color=GREEN, alpha=0.3, linewidth=0, label="± 1 standard deviation"),
        ]
    for axes in panels[:1]:
        lines, labels = axes.get_legend_handles_labels()
        handles += [line for line, label in zip(lines, labels, strict=True) if label.startswith(EVENTS)]
    return handles


# ---- what the run showed ---------------------------------------------------------------------------------------------


def found_effective_sparsity(record: xr.DataTree) -> str:
    """What the effective sparsity of a record shows: its size at the onsets and at the end, and when it fell.

    Returns:
        Sentences with numbers computed from the record; medians and ranges are over the members of a setting, or over
        all members of a run beyond seven settings.
    """
    parts = parts_of_kind(record, "SparseSubnetworkExtractor")
    return " ".join(head + " ".join(_sentences(record, part)) for head, part in parts.items())


def last_sizes(size: NDArray[np.float64], steps: NDArray[np.int64]) -> NDArray[np.float64]:
    """Each member's median size over the last tenth of the measured time.

    The size fluctuates after grokking: at the same sixteenth epoch from the end it may be 6 or 19.

    Args:
        size: `(T, E)`; NaN is passed over.
        steps: Measured steps of one run, `(T,)`, rising.

    Returns:
        `(E,)`; NaN for a member without a size in that time.
    """
    late = size[steps >= _late_from(steps)]
    known = np.isfinite(late).any(axis=0)
    result = np.full(size.shape[1], np.nan)
    result[known] = np.nanmedian(late[:, known], axis=0)
    return result


def _late_from(steps: NDArray[np.int64]) -> float:
    """The first moment of the last tenth of the measured time; infinite when nothing was measured."""
    return float(steps[-1] - LAST_SHARE * (steps[-1] - steps[0])) if steps.size else math.inf


def fall_steps(
    size: NDArray[np.float64],
    steps: NDArray[np.int64],
    memorised: NDArray[np.float64],
) -> NDArray[np.float64]:
    """When each member's size fell: the first measurement beyond the middle of the fall, on a log scale.

    The fall is that from the size at memorisation to the size at the end (`last_sizes`). A size before memorisation
    does not count: by the rule of accuracy it may be small there by luck.

    Args:
        size: `(T, E)`; NaN is passed over.
        steps: Measured steps of one run, `(T,)`, rising.
        memorised: Steps of memorisation, `(E,)`; NaN for none.

    Returns:
        Steps, `(E,)`; NaN for a member that did not memorise, or whose size at the end is more than half of that at
        memorisation.
    """
    start, end = values_at(size, steps, memorised), last_sizes(size, steps)
    result = np.full(size.shape[1], np.nan)
    for member in np.flatnonzero(end < FALLEN * start):
        # A size of 0, of a network that always says the same, has no logarithm.
        middle = math.sqrt(start[member] * max(end[member], 1.0))
        beyond = (steps >= memorised[member]) & (size[:, member] <= middle)
        if beyond.any():
            result[member] = steps[beyond.argmax()]
    return result


def _sentences(record: xr.DataTree, part: xr.Dataset) -> list[str]:
    sentences = [
        capital(f"{opening}{_words(_read(record, part.isel(member=members), rule), RULE_WORDS.get(rule, rule))}.")
        for opening, members in openings(part)
        for rule in labels_along(part, "rule")
    ]
    if np.isfinite(part["size"].values).any():
        since = Clock.of(record).at(_late_from(part["step"].values))
        sentences.append(
            f"At the end is each member's median from {since} on, the last tenth, for after grokking the size "
            "fluctuates from one measurement to the next."
        )
    return sentences


def _words(sizes: _Sizes, what: str) -> str:
    """What is said of the sizes of a setting by one rule."""
    members = sizes.size.shape[1]
    nowhere = np.full(members, np.nan)
    onset = {event: nowhere if sizes.onsets is None else sizes.onsets.step[event] for event in EVENTS}
    moments = {
        "at memorisation": values_at(sizes.size, sizes.steps, onset["memorised"]),
        "at generalisation": values_at(sizes.size, sizes.steps, onset["generalised"]),
        "at the end": last_sizes(sizes.size, sizes.steps),
    }
    if not np.isfinite(moments["at memorisation"]).any():
        moments = {"at first": values_at(sizes.size, sizes.steps, np.zeros(members))} | moments
    told = {moment: known for moment, values in moments.items() if (known := values[np.isfinite(values)]).size}
    if not told:
        return f"how many neurons give {what} of the whole network was not measured"
    width = neurons_of(sizes.group, "active") or "in neurons, "
    sizes_told = listing([f"{spread(known)} {moment}" for moment, known in told.items()])
    text = f"{width}{sizes_told} give {what} of the whole network"
    undefined = members - told.get("at the end", nowhere[:0]).size
    if undefined:
        text += f" ({undefined} of {members} undefined at the end)" if members > 1 else " (undefined at the end)"
    return text + _fall_words(sizes, onset["memorised"], onset["generalised"])


def _fall_words(sizes: _Sizes, memorised: NDArray[np.float64], generalised: NDArray[np.float64]) -> str:
    """When the size fell, against generalisation; empty where no member memorised."""
    members = int(np.isfinite(memorised).sum())
    fell = fall_steps(sizes.size, sizes.steps, memorised)
    happened = np.isfinite(fell)
    if not members:
        return ""
    if not happened.any():
        return "; it did not fall by half after memorisation"
    who = "" if happened.sum() == members else f" in {happened.sum()} of {members} members"
    text = f"; the middle of that fall{who}, on a log scale, came at {sizes.clock.spread(fell[happened])}"
    both = happened & (np.nan_to_num(generalised) > 0)
    if both.any():
        ratio = spread(fell[both] / generalised[both], lambda value: f"{value:.2f}")
        text += f", at {ratio} times the step of generalisation"
    return text
