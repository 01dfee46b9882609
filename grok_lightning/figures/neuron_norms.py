"""Norms of single neurons over time: which of them dominate while memorising, and which in the end."""

import textwrap
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from grok_lightning.figures.reading import (
    EVENTS,
    Clock,
    Onsets,
    groups_of_kind,
    member_labels,
    member_name,
    nearest_measured,
    parts_of_kind,
    read_onsets,
    settings,
    values_at,
)
from grok_lightning.figures.style import (
    BLUE,
    LABEL,
    VERMILLION,
    Dashes,
    add_caption,
    add_key,
    draw_mean,
    draw_step_axis,
    mark_onsets,
    new_figure,
    palette,
    setting_handles,
    tidy,
)
from grok_lightning.figures.words import count, decimals, spread

__all__ = ["HOW_TO_READ", "MOST_LINES", "dominant_neurons", "draw_neuron_norms", "found_neuron_norms"]

TITLE_COLUMNS = 42

MOST_LINES = 2000
"""Neurons drawn at most in the right panel; of more, every so-manyth is drawn."""

HOW_TO_READ = (
    "Left: norms of two neurons of each member, the largest at memorisation (memorising neuron) and the largest at the "
    "last measured step (generalising neuron). Strong lines: mean over members that differ only in their seeds; faint "
    "lines: single members. Right: the neurons of one member, its two dominant ones in colour. Vertical marks: onsets."
)

ROLES = ("memorising", "generalising")
ROLE_COLOURS = {"memorising": BLUE, "generalising": VERMILLION}
ROLE_DASHES: dict[str, Dashes] = {"memorising": "--", "generalising": "-"}
WEIGHTS_NAMES = {
    "incoming": "norm of incoming weights",
    "outgoing": "norm of outgoing weights",
    "product": "incoming × outgoing norm",
}


@dataclass(frozen=True)
class _Tracked:
    """One tracker's group, read once."""

    group: xr.Dataset
    clock: Clock
    onsets: Onsets | None
    norm: NDArray[np.float64]  # (T, E, N)
    chosen: dict[str, list[int | None]]

    def trajectory(self, role: str) -> NDArray[np.float64]:
        """Norm of each member's neuron of this role: `(T, E)`; NaN for a member that has none."""
        result = np.full(self.norm.shape[:2], np.nan)
        for member, neuron in enumerate(self.chosen[role]):
            if neuron is not None:
                result[:, member] = self.norm[:, member, neuron]
        return result


def draw_neuron_norms(record: xr.DataTree) -> Figure:
    """Draws the norms of the dominant neurons and of all neurons, one row of panels a tracked layer.

    After Merrill, Tsilivis, Shukla 2023, arXiv 2303.11873, Figure 5. Ours differs: the left panel shows all members and
    their mean instead of one seed; the memorising neuron is the one at the measured step nearest to the onset; step 0
    is visible.

    Args:
        record: A record with a group of kind `NeuronNormTracker`; `norm` over `(step, member, neuron)` in any order.
            NaN is passed over. Without a group of kind `Onset`, or for a member that did not memorise, there is no
            memorising neuron, and the caption says so.

    Returns:
        The figure, with its caption.

    Raises:
        ValueError: If the record has no neuron norms.
    """
    groups = groups_of_kind(record, "NeuronNormTracker")
    if not groups:
        raise ValueError("the record has no group of kind NeuronNormTracker: nothing to draw")
    figure = new_figure(len(groups), row_height=3.6)
    rows = figure.subplots(len(groups), 2, squeeze=False)
    for axes, (name, group) in zip(rows, groups.items(), strict=True):
        tracked = _read(record, group)
        layer = str(group.attrs.get("layer", name))
        _draw_dominant(axes[0], tracked, f"Dominant neurons of {layer}")
        _draw_all(axes[1], tracked)
        unit = WEIGHTS_NAMES.get(str(group.attrs.get("weights", "")), "norm of weights")
        axes[0].set_ylabel(f"{unit} (L2)", fontsize=LABEL)
        axes[1].set_ylabel(f"{unit} (L2)", fontsize=LABEL)
        _add_key(figure, axes[0 if len(settings(group)) == 1 else 1], tracked)
    add_caption(figure, f"{HOW_TO_READ} {found_neuron_norms(record)}")
    return figure


def dominant_neurons(norm: NDArray[np.float64], steps: NDArray[Any], at: NDArray[np.float64]) -> list[int | None]:
    """The neuron with the largest norm, for each member at a step of its own.

    Args:
        norm: `(T, E, N)`; NaN is passed over.
        steps: Measured steps, `(T,)`.
        at: The step wanted for each member, `(E,)`; the nearest measured step counts, the earlier one of two equally
            near. NaN: none wanted.

    Returns:
        E neuron indices; None where no step is wanted or every norm is NaN there.
    """
    chosen: list[int | None] = []
    for member, step in enumerate(at):
        row = norm[np.abs(steps - step).argmin(), member] if np.isfinite(step) and len(steps) else np.array([np.nan])
        chosen.append(int(np.nanargmax(row)) if np.isfinite(row).any() else None)
    return chosen


def _read(record: xr.DataTree, group: xr.Dataset) -> _Tracked:
    norm = np.asarray(group["norm"].transpose("step", "member", "neuron").values, dtype=np.float64)
    steps = group["step"].values
    onsets = read_onsets(record, member_labels(group))
    memorised = np.full(norm.shape[1], np.nan) if onsets is None else onsets.step["memorised"]
    measured = np.asarray(np.isfinite(norm).any(axis=2))
    moments = [np.nan if row is None else steps[row] for row in nearest_measured(measured, steps, memorised)]
    chosen = {
        "memorising": dominant_neurons(norm, steps, np.array(moments, dtype=np.float64)),
        "generalising": dominant_neurons(norm, steps, _last_steps(norm, steps)),
    }
    return _Tracked(group, Clock.of(record), onsets, norm, chosen)


def _last_steps(norm: NDArray[np.float64], steps: NDArray[Any]) -> NDArray[np.float64]:
    """Each member's last step with a norm: `(E,)`; NaN where there is none."""
    present = np.asarray(np.isfinite(norm).any(axis=2))
    return np.array([steps[column][-1] if column.any() else np.nan for column in present.T], dtype=np.float64)


def _draw_dominant(axes: Axes, tracked: _Tracked, title: str) -> None:
    time = tracked.clock.time(tracked.group["step"].values)
    found = settings(tracked.group)
    key = palette(found)
    for role in ROLES:
        trajectory = tracked.trajectory(role)
        for setting, colour in zip(found, key.colours, strict=True):
            line = ROLE_COLOURS[role] if len(found) == 1 else colour
            dashes: Dashes = "-" if len(found) == 1 else ROLE_DASHES[role]
            label = f"{role} {setting.label}".strip()
            values = trajectory[:, setting.members]
            draw_mean(axes, time, values, label=label, colour=line, dashes=dashes, behind=key.few, band=False)
    if len(found) == 1:
        mark_onsets(axes, tracked.clock, tracked.onsets, found[0].members)
    figure = axes.get_figure()
    if isinstance(figure, Figure):
        key.add_colourbar(figure, [axes])
    _finish(axes, tracked, title)


def _draw_all(axes: Axes, tracked: _Tracked) -> None:
    """All neurons of the first member that has any norm."""
    present = np.isfinite(tracked.norm).any(axis=(0, 2))
    member = int(present.argmax()) if present.size else 0
    # In a record of several runs, other runs have other steps and may have more neurons.
    rows, columns = (np.flatnonzero(np.isfinite(tracked.norm[:, member]).any(axis=axis)) for axis in (1, 0))
    norm = tracked.norm[:, member][rows]
    time = tracked.clock.time(tracked.group["step"].values[rows])
    drawn = columns[_subsample(len(columns))]
    lines = np.stack([np.broadcast_to(time[:, None], norm[:, drawn].shape), norm[:, drawn]], axis=-1)
    axes.add_collection(
        LineCollection(
            list(lines.transpose(1, 0, 2)),
            colors="#8a8a8a",
            linewidths=0.5,
            alpha=0.4 if len(drawn) > 100 else 0.8,
            rasterized=True,
        )
    )
    if len(time) == 1:  # A single measurement has no lines to be seen by.
        axes.plot(np.repeat(time, len(drawn)), norm[0, drawn], ".", color="#8a8a8a", markersize=3)
    marker = "o" if len(time) == 1 else None
    for role in ROLES:
        neuron = tracked.chosen[role][member]
        if neuron is not None:
            axes.plot(time, norm[:, neuron], color=ROLE_COLOURS[role], linewidth=1.6, marker=marker, zorder=4)
    mark_onsets(axes, tracked.clock, tracked.onsets, np.array([member]))
    highest = float(norm[np.isfinite(norm)].max(initial=0.0))
    _finish(axes, tracked, _member_title(tracked.group, member, len(drawn), len(columns)))
    # A collection does not move the limits of its axes.
    axes.set_ylim(0, 1.05 * highest if highest > 0 else 1.0)


def _finish(axes: Axes, tracked: _Tracked, title: str) -> None:
    draw_step_axis(axes, tracked.clock, tracked.group["step"].values)
    tidy(axes, title)
    axes.set_ylim(bottom=0)


def _subsample(n: int) -> NDArray[np.intp]:
    """Evenly spaced neurons: fair, for the index says nothing about the norm, and the same in every drawing."""
    return np.unique(np.linspace(0, n - 1, min(n, MOST_LINES)).astype(np.intp)) if n else np.arange(0)


def _member_title(group: xr.Dataset, member: int, drawn: int, n: int) -> str:
    which = f"All {count(n, 'neuron')}" if drawn == n else f"{drawn} of {n} neurons, evenly spaced,"
    which = {0: "No norms", 1: "The one neuron"}.get(n, which)
    # A colour bar takes its room from the panel.
    columns = TITLE_COLUMNS if palette(settings(group)).few else TITLE_COLUMNS - 10
    return textwrap.fill(f"{which} of {member_name(group, member)}", columns)


def _add_key(figure: Figure, axes: Axes, tracked: _Tracked) -> None:
    found = settings(tracked.group)
    key = palette(found)
    one = len(found) == 1
    handles: list[Artist] = [] if one else setting_handles(found, key)
    for role in ROLES:
        if any(neuron is not None for neuron in tracked.chosen[role]):
            line = Line2D([], [], color=ROLE_COLOURS[role], linewidth=1.8, label=f"{role} neuron")
            if not one:
                line.set(color="#444444", linestyle=ROLE_DASHES[role])
            handles.append(line)
    lines, labels = axes.get_legend_handles_labels()
    handles += [line for line, label in zip(lines, labels, strict=True) if label.startswith(EVENTS)]
    add_key(figure, handles, 4 if one else 3)


# ---- what the run showed ---------------------------------------------------------------------------------------------


def found_neuron_norms(record: xr.DataTree) -> str:
    """What the neuron norms of a record show: how the dominant neurons grew or shrank, and how many neurons remain.

    Returns:
        Sentences with numbers computed from the record; medians and ranges are over all members of a run.
    """
    parts = parts_of_kind(record, "NeuronNormTracker")
    return " ".join(head + " ".join(_sentences(_read(record, part))) for head, part in parts.items())


def _sentences(tracked: _Tracked) -> list[str]:
    if not np.isfinite(tracked.norm).any():
        return ["No norm was measured."]
    sentences = [_memorising_sentence(tracked)]
    memorised = np.full(tracked.norm.shape[1], np.nan) if tracked.onsets is None else tracked.onsets.step["memorised"]
    start, at_start = (memorised, "at memorisation") if np.isfinite(memorised).any() else (_first(tracked), "at first")
    for role in ROLES:
        pairs = _from_to(tracked, role, start)
        if len(pairs):
            before, after = pairs.T
            verb = _verb(float(np.median(before)), float(np.median(after)))
            start_words, end_words = spread(before, decimals), spread(after, decimals)
            sentences.append(
                f"The norm of the {role} neuron {verb} {start_words} {at_start} to {end_words} at the last step."
            )
    sentences += [_not_generalised_sentence(tracked), _same_sentence(tracked), _small_sentence(tracked)]
    return [sentence for sentence in sentences if sentence]


def _first(tracked: _Tracked) -> NDArray[np.float64]:
    steps = tracked.group["step"].values
    present = np.asarray(np.isfinite(tracked.norm).any(axis=2))
    return np.array([steps[column][0] if column.any() else np.nan for column in present.T], dtype=np.float64)


def _from_to(tracked: _Tracked, role: str, start: NDArray[np.float64]) -> NDArray[np.float64]:
    """Norms of the neurons of a role at the start given and at the last step: `(members that have both, 2)`."""
    steps = tracked.group["step"].values
    values, moments = tracked.trajectory(role), (start, _last_steps(tracked.norm, steps))
    pairs = np.stack([values_at(values, steps, moment) for moment in moments], axis=1)
    return np.asarray(pairs[np.isfinite(pairs).all(axis=1)])


def _verb(before: float, after: float) -> str:
    if decimals(before) == decimals(after):
        return "stayed, from"
    return "rose from" if after > before else "fell from"


def _memorising_sentence(tracked: _Tracked) -> str:
    """Why there is no memorising neuron, where there is none; empty when every member has one."""
    if tracked.onsets is None:
        return "No memorising neuron is shown, for onsets were not looked for."
    if not tracked.onsets.looked_for["memorised"].any():
        return "No memorising neuron is shown, for there were no rows to memorise."
    members = len(tracked.chosen["memorising"])
    without = members - int(np.isfinite(tracked.onsets.step["memorised"]).sum())
    if without == members:
        who = "the member did not memorise" if members == 1 else f"none of the {members} members memorised"
        return f"No memorising neuron is shown, for {who}."
    if without:
        has = "has" if without == 1 else "have"
        return f"{without} of {members} members did not memorise and {has} no memorising neuron."
    return ""


def _not_generalised_sentence(tracked: _Tracked) -> str:
    """That the name of the generalising neuron claims too much for members that did not generalise."""
    if tracked.onsets is None:
        return ""
    members = tracked.norm.shape[1]
    without = members - int(np.isfinite(tracked.onsets.step["generalised"]).sum())
    if not without:
        return ""
    who, them = f"{without} of {members} members did not generalise", "them"
    if members == 1:
        who, them = "The member did not generalise", "it"
    elif without == members:
        who = f"None of the {members} members generalised"
    return f"{who}; for {them} the generalising neuron is merely the one with the largest norm."


def _same_sentence(tracked: _Tracked) -> str:
    pairs = [
        pair
        for pair in zip(tracked.chosen["memorising"], tracked.chosen["generalising"], strict=True)
        if None not in pair
    ]
    if not pairs:
        return ""
    same = sum(first == second for first, second in pairs)
    if len(pairs) == 1:
        return f"They are {'one and the same neuron' if same else 'different neurons'}."
    if same in (0, len(pairs)):
        return f"They are {'one and the same neuron' if same else 'different neurons'} in each of {len(pairs)} members."
    return f"They are the same neuron in {same} of {len(pairs)} members."


def _small_sentence(tracked: _Tracked) -> str:
    """The share of neurons that hardly count any more, by a tenth of the largest norm."""
    last = _last_steps(tracked.norm, tracked.group["step"].values)
    steps = tracked.group["step"].values
    shares = []
    for member, step in enumerate(last):
        if np.isfinite(step):
            row = tracked.norm[steps == step, member].ravel()
            row = row[np.isfinite(row)]
            shares.append(100 * float((row < 0.1 * row.max()).mean()))
    share = spread(shares, lambda value: f"{value:.3g} %")
    return f"Share of neurons below a tenth of their member's largest norm at the last step: {share}."
