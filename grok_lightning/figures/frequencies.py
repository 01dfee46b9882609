"""Power of each frequency in the logits over time, and the key frequencies that are left at the end."""

import math
import textwrap
from typing import Any

import numpy as np
import xarray as xr
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from grok_lightning.figures.panels import Look, draw_looks, name_panel
from grok_lightning.figures.reading import (
    Measured,
    curves_along,
    groups_of_kind,
    last_rows,
    measured_where,
    member_name,
    reached_the_end,
    settings,
    spread_over_settings,
)
from grok_lightning.figures.style import (
    BLACK,
    LABEL,
    TICK,
    VERMILLION,
    add_caption,
    add_key,
    draw_map,
    draw_step_axis,
    mark_onsets,
    new_figure,
    palette,
    say_in,
    say_of_settings,
    setting_handles,
    tidy,
)
from grok_lightning.figures.words import capital, decimals, listing, number, spread

__all__ = [
    "HOW_TO_READ",
    "MOST_MEMBERS",
    "draw_frequencies",
    "found_frequencies",
    "frequency_labels",
    "key_at_the_end",
    "key_counts",
]

KIND = "FourierLogitSplitter"

MOST_MEMBERS = 5
"""Members drawn at most, one a panel."""

FLOOR = 1e-4
"""Share of the power below which all is one colour."""

TITLE_COLUMNS = 42

HOW_TO_READ = (
    "Share of each frequency in the power of the centred logits, one member a panel (log colour scale; k and n - k are "
    "one frequency in a group of n elements). Triangles: key frequencies at the end, that is shares above 0.005 and "
    "above ten times the median over frequencies. Last panel: their number over time, mean over members and "
    "single members."
)

LOOKS = {"key": Look("number of key frequencies", VERMILLION, "-")}


def draw_frequencies(record: xr.DataTree) -> Figure:
    """Draws the power of each frequency over time as an image for each of a few members, and counts key frequencies.

    The shares are those of Nanda, Chan, Lieberum, Smith, Steinhardt 2023, arXiv 2301.05217, squared and with logits
    centred over labels. Where there are more members than panels, those drawn are spread over the settings.

    Args:
        record: A record with a group of kind `FourierLogitSplitter`: `power` and `key` over `(step, member,
            frequency)`, each in any order; `key` of bools, or, joined, of numbers. NaN is passed over. Onsets of each
            member are marked where a group of kind `Onset` exists.

    Returns:
        The figure, with its caption.

    Raises:
        ValueError: If the record has no power of frequencies.
    """
    groups = groups_of_kind(record, KIND, ("power", "key"))
    if not groups:
        raise ValueError(f"the record has no group of kind {KIND} with power and key: nothing to draw")
    shown = {name: _shown(group) for name, group in groups.items()}
    rows = {name: math.ceil((len(members) + 1) / 2) for name, members in shown.items()}
    figure = new_figure(sum(rows.values()), row_height=2.7)
    grid = figure.subplots(sum(rows.values()), 2, squeeze=False)
    first = 0
    for name, group in groups.items():
        suffix = f" ({name})" if len(groups) > 1 else ""
        _draw_group(figure, grid[first : first + rows[name]], Measured.of(record, group), shown[name], suffix)
        first += rows[name]
    add_caption(figure, f"{HOW_TO_READ} {found_frequencies(record)}")
    return figure


def frequency_labels(group: xr.Dataset) -> NDArray[np.int64]:
    """The frequencies of a group: `(K,)`; 1, 2, ... where it does not say."""
    if "frequency" in group.coords:
        return np.asarray(group["frequency"].values)
    return np.arange(1, group.sizes.get("frequency", 0) + 1)


def key_at_the_end(group: xr.Dataset) -> list[NDArray[np.int64]]:
    """The key frequencies of each member at the end of its run.

    Args:
        group: A group with `power` and `key` over `(step, member, frequency)`; where power is NaN, nothing is key.

    Returns:
        E arrays in rising order; empty for a member that was not measured any more at the end.
    """
    power, key = (curves_along(group, name, "frequency") for name in ("power", "key"))
    labels = frequency_labels(group)
    measured = measured_where(power)
    last, there = last_rows(measured), reached_the_end(group, measured)
    pairs = enumerate(zip(last, there, strict=True))
    return [labels[key[row, member] == 1] if ended else labels[:0] for member, (row, ended) in pairs]


def key_counts(group: xr.Dataset) -> NDArray[np.float64]:
    """How many key frequencies each member has: `(T, E)`; NaN where it was not measured."""
    power, key = (curves_along(group, name, "frequency") for name in ("power", "key"))
    return np.where(measured_where(power), (key == 1).sum(axis=2), np.nan)


def _shown(group: xr.Dataset) -> list[int]:
    measured = last_rows(measured_where(curves_along(group, "power", "frequency"))) >= 0
    return spread_over_settings(group, measured, MOST_MEMBERS)


def _draw_group(figure: Figure, grid: NDArray[Any], measured: Measured, shown: list[int], suffix: str) -> None:
    panels = list(grid.ravel())
    keys = key_at_the_end(measured.group)
    images = []
    for axes, member in zip(panels, shown, strict=False):
        images.append(_draw_member(axes, measured, member, keys[member], suffix))
    for axes in panels[len(shown) + 1 :]:
        axes.set_axis_off()
    found = settings(measured.group)
    key, last = palette(found), panels[len(shown)]
    draw_looks(last, measured, measured.time, {"key": key_counts(measured.group)}, LOOKS)
    if not images:
        say_in(last, "not measured")
    name_panel(last, f"Number of key frequencies{suffix}", "key frequencies")
    last.set_ylim(bottom=-0.2)
    draw_step_axis(last, measured.clock, measured.steps)
    last.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    for axes in panels[: max(len(shown) - 1, 0)]:
        axes.set_xlabel("")  # The panel beneath has it.
    key.add_colourbar(figure, [last])
    if images:
        bar = figure.colorbar(images[0], ax=panels, fraction=0.03, pad=0.02, extend="min")
        bar.set_label("share of power (log scale)", fontsize=LABEL)
        bar.ax.tick_params(labelsize=TICK)
    handles: list[Artist] = [] if len(found) == 1 else setting_handles(found, key)
    marker = Line2D([], [], color=BLACK, linestyle="none", marker="<", markersize=4, label="key frequency at the end")
    handles.append(marker)
    if len(found) == 1:
        handles.append(Line2D([], [], color=VERMILLION, linewidth=1.8, label="number of key frequencies"))
    add_key(figure, handles, 3)


def _draw_member(axes: Axes, measured: Measured, member: int, key: NDArray[np.int64], suffix: str) -> QuadMesh:
    power = curves_along(measured.group, "power", "frequency")[:, member]
    # In a record of several runs, other runs have other steps and other frequencies.
    rows, columns = (np.flatnonzero(np.isfinite(power).any(axis=axis)) for axis in (1, 0))
    labels = frequency_labels(measured.group)[columns]
    values = np.maximum(power[np.ix_(rows, columns)], FLOOR)
    steps = measured.steps[rows]
    image = draw_map(
        axes,
        measured.clock.time(steps),
        labels.astype(np.float64),
        values,
        colormaps["viridis"],
        LogNorm(FLOOR, 1.0),
    )
    mark_onsets(axes, measured.clock, measured.onsets, np.array([member]))
    for line in axes.get_lines():
        line.set(color="white", linewidth=1.0)
    tidy(axes, textwrap.fill(f"{capital(member_name(measured.group, member))}{suffix}", TITLE_COLUMNS))
    axes.grid(visible=False)
    draw_step_axis(axes, measured.clock, steps)
    axes.set_ylabel("frequency", fontsize=LABEL)
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    place = axes.get_yaxis_transform()
    if len(key):  # Matplotlib cannot lay out a line without points.
        at = np.full(len(key), 1.02)
        axes.plot(at, key, "<", transform=place, color=BLACK, markersize=4, clip_on=False, label="key")
    return image


# ---- what the run showed ---------------------------------------------------------------------------------------------


def found_frequencies(record: xr.DataTree) -> str:
    """How many key frequencies the members have at the end, and which; their power, beside that of a lookup table.

    Returns:
        Sentences with numbers computed from the record; medians and ranges are over the members of a setting, or over
        all members of a run beyond seven settings.
    """
    return say_of_settings(record, KIND, _sentences, ("power", "key"))


def _sentences(group: xr.Dataset) -> list[str]:
    power, counts = curves_along(group, "power", "frequency"), key_counts(group)
    measured = np.isfinite(counts)
    last, members = last_rows(measured), np.flatnonzero(reached_the_end(group, measured))
    if not members.size:
        return ["the power of frequencies was not measured."]
    ends = power[last[members], members]
    keys = [key_at_the_end(group)[member] for member in members]
    n = int(np.isfinite(ends).any(axis=0).sum())
    numbers = np.array([len(key) for key in keys])
    names = [f" in {member_name(group, int(member))}" if len(keys) > 1 else "" for member in members]
    which = [
        f"{listing([str(label) for label in key])}{name}" for key, name in zip(keys, names, strict=True) if len(key)
    ]
    told = f": {'; '.join(which)}" if 0 < len(which) <= MOST_MEMBERS else ""
    sentences = [f"of {n} frequencies, {spread(numbers)} are key at the end{told}."]
    labels = frequency_labels(group)
    held = [float(end[np.isin(labels, key)].sum()) for end, key in zip(ends, keys, strict=True) if len(key)]
    if held:
        sentences.append(f"Together they hold a share of {spread(held, decimals)} of the logits' power.")
    tables = curves_along(group, "table_power", "frequency")[last[members], members]
    if np.isfinite(tables).any():
        each = number(float(np.nanmedian(tables)))
        sentences.append(f"In a lookup table of the same rows every frequency would hold a share of about {each}.")
    return sentences
