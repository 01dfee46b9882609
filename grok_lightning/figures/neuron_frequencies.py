"""The frequency that each MLP neuron computes with, over time."""

import textwrap
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from grok_lightning.figures.frequencies import KIND, key_at_the_end
from grok_lightning.figures.panels import GREY, Look, draw_looks, name_panel
from grok_lightning.figures.reading import (
    Measured,
    curves_along,
    groups_of_kind,
    last_rows,
    measured_where,
    member_name,
    reached_the_end,
    run_in_title,
    settings,
    spread_over_settings,
)
from grok_lightning.figures.style import (
    LABEL,
    SETTING_COLOURS,
    STRIP,
    add_caption,
    add_key,
    draw_map,
    draw_step_axis,
    heighten,
    mark_onsets,
    mark_onsets_above,
    new_figure,
    palette,
    say_in,
    say_of_settings,
    setting_handles,
    tidy,
)
from grok_lightning.figures.words import count, spread

__all__ = [
    "EXPLAINED",
    "HOW_TO_READ",
    "draw_neuron_frequencies",
    "found_neuron_frequencies",
    "fitted_counts",
    "neuron_order",
]

ARRAYS = ("neuron_frequency", "neuron_explained")

EXPLAINED = 0.85
"""Share of a neuron's variance that one frequency must explain for the neuron to be called that frequency's."""

OTHER, NONE, DEAD = "#555555", "#d4d4d4", "#ffffff"

TITLE_COLUMNS = 40

HOW_TO_READ = (
    "Left: every neuron of one member, a row each, in the order of its frequency at the end, in the colour of the "
    f"frequency that explains more than {100 * EXPLAINED:.0f} % of its variance over all inputs; pale where none does. "
    "Right: how many neurons have such a frequency, mean over members and single members."
)

LOOKS = {"fitted": Look("", GREY, "-")}


@dataclass(frozen=True)
class _Neurons:
    """The neurons of one group, read once."""

    measured: Measured
    frequency: NDArray[np.float64]  # (T, E, N); NaN: dead
    explained: NDArray[np.float64]  # (T, E, N)

    @property
    def last(self) -> NDArray[np.intp]:
        """Where each member was measured last: `(E,)`; −1 for never."""
        return last_rows(measured_where(self.explained))

    @property
    def width(self) -> int:
        """How many neurons there are: in a joined record, narrower layers are padded with NaN at their end."""
        known = np.flatnonzero(np.isfinite(self.explained).any(axis=(0, 1)))
        return int(known[-1]) + 1 if known.size else 0

    @property
    def fitted(self) -> NDArray[np.float64]:
        """Each neuron's frequency where it explains enough, else 0: `(T, E, N)`; NaN for a dead neuron."""
        enough = np.nan_to_num(self.explained) > EXPLAINED
        return np.where(np.isfinite(self.frequency), np.where(enough, self.frequency, 0.0), np.nan)


def draw_neuron_frequencies(record: xr.DataTree) -> Figure:
    """Draws the frequency of each neuron of one member over time, and how many neurons have one in all members.

    After Nanda, Chan, Lieberum, Smith, Steinhardt 2023, arXiv 2301.05217, who cluster the neurons of one trained
    network by frequency; here it is shown over time. The member is the first one that was measured.

    Args:
        record: A record with a group of kind `FourierLogitSplitter`: `neuron_frequency` (NaN: a dead neuron) and
            `neuron_explained`, in [0, 1], over `(step, member, neuron)`, each in any order. Onsets are marked where a
            group of kind `Onset` exists.

    Returns:
        The figure, with its caption.

    Raises:
        ValueError: If the record has no frequencies of neurons.
    """
    groups = groups_of_kind(record, KIND, ARRAYS)
    if not groups:
        raise ValueError(f"the record has no group of kind {KIND} with {' and '.join(ARRAYS)}: nothing to draw")
    figure = new_figure(len(groups), row_height=3.6)
    grid = figure.subplots(len(groups), 2, squeeze=False)
    for row, (name, group) in zip(grid, groups.items(), strict=True):
        suffix = (f" ({name})" if len(groups) > 1 else "") + run_in_title(group)
        _draw_group(figure, row, _read(record, group), suffix)
    add_caption(figure, f"{HOW_TO_READ} {found_neuron_frequencies(record)}")
    return figure


def neuron_order(frequency: NDArray[np.float64], explained: NDArray[np.float64]) -> NDArray[np.intp]:
    """The order in which neurons are drawn, from below.

    Args:
        frequency: Frequency of each neuron where enough of it is explained, `(N,)`; 0 where it is not, NaN: dead.
        explained: Share of its variance that its best frequency explains, `(N,)`.

    Returns:
        Positions, `(N,)`: neurons of the frequency with most neurons first, and so on, the best explained ones of each
        first; then those of no frequency; then dead ones.
    """
    labels, inverse, counts = np.unique(np.nan_to_num(frequency, nan=-1.0), return_inverse=True, return_counts=True)
    # Of frequencies with equally many neurons, the lower one comes first.
    size = np.where(labels > 0, -counts.astype(np.float64), np.where(labels == 0, 1.0, 2.0))
    return np.lexsort((-np.nan_to_num(explained), labels[inverse], size[inverse]))


def fitted_counts(frequency: NDArray[np.float64], explained: NDArray[np.float64]) -> NDArray[np.float64]:
    """How many neurons of each member have a frequency that explains enough of them.

    Args:
        frequency: `(T, E, N)`; NaN: a dead neuron.
        explained: `(T, E, N)`.

    Returns:
        `(T, E)`; NaN where no neuron of a member was measured.
    """
    enough = np.isfinite(frequency) & (np.nan_to_num(explained) > EXPLAINED)
    return np.where(measured_where(explained), enough.sum(axis=2), np.nan)


def _read(record: xr.DataTree, group: xr.Dataset) -> _Neurons:
    frequency, explained = (curves_along(group, name, "neuron") for name in ARRAYS)
    return _Neurons(Measured.of(record, group), frequency, explained)


def _draw_group(figure: Figure, grid: NDArray[Any], neurons: _Neurons, suffix: str) -> None:
    image, counts = grid
    measured = neurons.measured
    found = settings(measured.group)
    key = palette(found)
    shown = spread_over_settings(measured.group, neurons.last >= 0, 1)
    handles: list[Artist] = [] if len(found) == 1 else setting_handles(found, key)
    if shown:
        handles += _draw_member(image, neurons, shown[0])
    name = f"Neurons of {member_name(measured.group, shown[0])}" if shown else "Neurons"
    tidy(image, textwrap.fill(f"{name}{suffix}", TITLE_COLUMNS))
    image.grid(visible=False)
    image.set_ylabel("neuron, by frequency at the end", fontsize=LABEL)
    fitted = fitted_counts(neurons.frequency, neurons.explained)
    draw_looks(counts, measured, measured.time, {"fitted": fitted}, LOOKS)
    name_panel(counts, f"Neurons with a frequency{suffix}", "neurons")
    counts.set_ylim(bottom=0)
    if len(found) == 1:
        mark_onsets(counts, measured.clock, measured.onsets, found[0].members)
        lines, labels = counts.get_legend_handles_labels()
        handles += [line for line, label in zip(lines, labels, strict=True) if not label.startswith("fitted")]
    elif key.few and measured.onsets is not None:
        mark_onsets_above(counts, measured.clock, measured.onsets, found, key)
        heighten(figure, (STRIP + 4) * len(found))
    for axes in grid:
        draw_step_axis(axes, measured.clock, measured.steps)
        if not shown:
            say_in(axes, "not measured")
    key.add_colourbar(figure, [counts])
    add_key(figure, handles, 4)


def _draw_member(axes: Axes, neurons: _Neurons, member: int) -> list[Artist]:
    """Draws the neurons of one member; the entries of the key."""
    fitted, explained = neurons.fitted[:, member], neurons.explained[:, member]
    # In a record of several runs, other runs have other steps and may have more neurons.
    known = np.isfinite(explained)
    rows, width = np.flatnonzero(known.any(axis=1)), int(np.flatnonzero(known.any(axis=0))[-1]) + 1
    last = neurons.last[member]
    end = fitted[last, :width]
    order = neuron_order(end, explained[last, :width])
    labels, counts = np.unique(end[end > 0], return_counts=True)
    most = labels[np.lexsort((labels, -counts))][: len(SETTING_COLOURS)]
    colours = [NONE, *SETTING_COLOURS[: len(most)], OTHER, DEAD]
    own = fitted[np.ix_(rows, order)]
    place = np.where(own > 0, len(most) + 1.0, 0.0)
    for i, label in enumerate(most):
        place[own == label] = i + 1
    place[np.isnan(own)] = len(most) + 2
    time = neurons.measured.clock.time(neurons.measured.steps[rows])
    scale = Normalize(-0.5, len(colours) - 0.5)
    draw_map(axes, time, np.arange(len(order), dtype=np.float64), place, ListedColormap(colours), scale)
    numbers = dict(zip(labels, counts, strict=True))
    words = [f"frequency {int(label)} ({numbers[label]} at the end)" for label in most]
    patches = [Patch(facecolor=colours[i + 1], label=word) for i, word in enumerate(words)]
    patches.append(Patch(facecolor=NONE, label="no one frequency"))
    for i, word in ((len(most) + 1, "another frequency"), (len(most) + 2, "dead")):
        if (place == i).any():
            patches.append(Patch(facecolor=colours[i], edgecolor=GREY, linewidth=0.5, label=word))
    return [*patches]


# ---- what the run showed ---------------------------------------------------------------------------------------------


def found_neuron_frequencies(record: xr.DataTree) -> str:
    """How many neurons have a frequency at the end, how many frequencies there are, and whether they are key.

    Returns:
        Sentences with numbers computed from the record; medians and ranges are over the members of a setting, or over
        all members of a run beyond seven settings.
    """
    return say_of_settings(record, KIND, lambda part: _sentences(_read(record, part)), ARRAYS)


def _sentences(neurons: _Neurons) -> list[str]:
    last = neurons.last
    members = np.flatnonzero(reached_the_end(neurons.measured.group, measured_where(neurons.explained)))
    if not members.size:
        return ["the frequencies of neurons were not measured."]
    fitted = neurons.fitted[last[members], members][:, : neurons.width]
    kinds = np.array([len(np.unique(row[row > 0])) for row in fitted])
    has, dead = (fitted > 0).sum(axis=1), spread(np.isnan(fitted).sum(axis=1))
    which = f"more than {100 * EXPLAINED:.0f} % of their variance at one frequency at the end"
    who = f"of {count(neurons.width, 'neuron')}, "
    if not has.any():
        return [f"{who}none has {which.replace('their', 'its')}; {dead} are dead."]
    sentences = [f"{who}{spread(has)} have {which}, at {spread(kinds)} different ones; {dead} are dead."]
    keys = key_at_the_end(neurons.measured.group)
    shares = [
        float(np.isin(row[row > 0], keys[member]).mean())
        for row, member in zip(fitted, members, strict=True)
        if (row > 0).any() and len(keys[member])
    ]
    if shares:
        percent = spread(100 * np.array(shares), lambda value: f"{value:.3g} %")
        sentences.append(f"Share of these neurons whose frequency is key in the logits: {percent}.")
    return sentences
