"""How figures look. No pyplot and no global state: every function works on the object that it is given."""

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xarray as xr
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import QuadMesh
from matplotlib.colors import Colormap, ListedColormap, LogNorm, Normalize, to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter
from matplotlib.transforms import ScaledTranslation
from numpy.typing import NDArray

from grok_lightning.figures.reading import EVENTS, Clock, Onsets, Setting, average, parts_of_kind, settings
from grok_lightning.figures.words import capital, count, number, plain

__all__ = [
    "Dashes",
    "Palette",
    "add_caption",
    "add_key",
    "draw_map",
    "draw_mean",
    "draw_step_axis",
    "draw_time_axis",
    "heighten",
    "log_ticks",
    "mark_onsets",
    "mark_onsets_above",
    "new_figure",
    "onset_handles",
    "openings",
    "palette",
    "remove_caption",
    "say_in",
    "say_of_settings",
    "scale_log",
    "setting_handles",
    "tick_text",
    "tidy",
]

Dashes = Literal["-", "--", "-.", ":"]

# Okabe and Ito's colours, told apart with every common colour blindness; yellow is left out: too faint on white.
BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
)
SETTING_COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK)
EVENT_COLOURS = {"memorised": BLUE, "generalised": VERMILLION, "forgotten": BLACK}
EVENT_DASHES = {"memorised": "--", "generalised": "-.", "forgotten": ":"}

WIDTH = 7.2
TITLE, LABEL, TICK, CAPTION = 10.0, 10.0, 9.0, 8.5
CAPTION_COLUMNS = 106
STRIP = 8.0  # Height in points of a setting's line in the strip of onsets above a panel.


def new_figure(rows: int, row_height: float = 3.4) -> Figure:
    """An empty figure for so many rows of two panels, independent of pyplot and of a display."""
    figure = Figure(figsize=(WIDTH, row_height * rows), layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.06)  # type: ignore[union-attr, call-arg]
    return figure


def add_key(figure: Figure, handles: Sequence[Artist], columns: int) -> None:
    """Draws the one legend of a figure above its panels; of several, the one with most entries stays.

    Args:
        figure: The figure.
        handles: What the legend explains, with labels.
        columns: Columns at most; fewer where the labels are long.
    """
    if not handles:
        return
    if figure.legends and len(figure.legends[0].get_texts()) >= len(handles):
        return
    figure.legends.clear()
    # Characters that fit into the width of the figure, and what a handle takes of them.
    columns = min(columns, max(1, 112 // (max(len(str(handle.get_label())) for handle in handles) + 8)))
    heighten(figure, 1.5 * TICK * (math.ceil(len(handles) / columns) - 1))
    figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=columns,
        frameon=False,
        fontsize=TICK,
        handlelength=1.8,
        columnspacing=1.6,
    )


def heighten(figure: Figure, points: float) -> None:
    """Makes a figure taller, for what must not take its room from the panels."""
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + points / 72)


def add_caption(figure: Figure, text: str) -> None:
    """Writes a caption beneath a figure and makes room for it."""
    lines = textwrap.wrap(text, CAPTION_COLUMNS, break_on_hyphens=False)
    heighten(figure, len(lines) * CAPTION * 1.3)
    figure.supxlabel(plain("\n".join(lines)), x=0.012, ha="left", fontsize=CAPTION, linespacing=1.25, color="#222222")


def remove_caption(figure: Figure) -> None:
    """Takes the caption of a figure away, and its room, for pages that set the same words as text."""
    text = figure.get_supxlabel()
    if text:
        figure.supxlabel("")
        heighten(figure, -len(text.splitlines()) * CAPTION * 1.3)


@dataclass(frozen=True)
class Palette:
    """Colours of settings.

    Attributes:
        colours: One a setting.
        few: Whether the settings are few enough to be named one by one in a legend.
    """

    colours: tuple[str, ...]
    few: bool
    _scale: ScalarMappable | None = None
    _label: str = ""

    def add_colourbar(self, figure: Figure, axes: Sequence[Axes]) -> None:
        """Draws the key to many settings beside the axes; does nothing for few."""
        if self._scale is not None:
            bar = figure.colorbar(self._scale, ax=list(axes), fraction=0.04, pad=0.02)
            bar.set_label(plain(self._label), fontsize=LABEL)
            bar.ax.tick_params(labelsize=TICK)


def palette(found: Sequence[Setting]) -> Palette:
    """Colours for settings: a named colour each while there are few, an ordered scale beyond that.

    Args:
        found: The settings of a group, in their order.
    """
    if len(found) <= len(SETTING_COLOURS):
        return Palette(SETTING_COLOURS[: len(found)], few=True)
    # The last tenth of viridis is too pale for lines on white.
    scale = ListedColormap(colormaps["viridis"](np.linspace(0, 0.9, 256)))
    values, label, norm = _colour_scale(found)
    colours = tuple(to_hex(scale(norm(value))) for value in values)
    return Palette(colours, few=False, _scale=_mappable(norm, scale), _label=label)


def openings(group: xr.Dataset) -> list[tuple[str, NDArray[np.intp]]]:
    """How sentences on a group begin, and the members they are about: one setting each, all members beyond seven."""
    found = settings(group)
    if palette(found).few:
        return [(setting.opening, setting.members) for setting in found]
    return [(f"Over all {len(found)} settings, ", np.arange(group.sizes["member"]))]


def say_of_settings(
    record: xr.DataTree, kind: str, say: Callable[[xr.Dataset], Sequence[str]], arrays: Sequence[str] = ()
) -> str:
    """Says something of every setting of every group of a kind, in one text.

    Args:
        record: The record of a run, or a joined one.
        kind: Class name of the monitor.
        say: From the members of a setting, of one run, to sentences, at least one; all but the first stand alone.
        arrays: Arrays that a group must have.

    Returns:
        The sentences, opened by whose they are.
    """
    texts = []
    for head, part in parts_of_kind(record, kind, arrays).items():
        for opening, members in openings(part):
            first, *others = say(part.isel(member=members))
            texts.append(" ".join([head + capital(opening + first), *map(capital, others)]))
    return " ".join(texts)


def _mappable(norm: Normalize, scale: Colormap) -> ScalarMappable:
    mappable = ScalarMappable(norm=norm, cmap=scale)
    mappable.set_array([])
    return mappable


def _colour_scale(found: Sequence[Setting]) -> tuple[list[float], str, Normalize]:
    """Values, name and scale of the colours: the coordinate itself where it is one number, else the settings' order."""
    values = [setting.values[0] for setting in found]
    if len(found[0].names) == 1 and all(isinstance(value, int | float) and math.isfinite(value) for value in values):
        low, high = min(values), max(values)
        wide = low > 0 and high / low >= 20
        return values, found[0].names[0], LogNorm(low, high) if wide else Normalize(low, high)
    label = f"setting, ordered by\n{', '.join(found[0].names)}"
    return [float(i + 1) for i in range(len(found))], label, Normalize(1, len(found))


def setting_handles(found: Sequence[Setting], key: Palette) -> list[Artist]:
    """Legend entries of settings, with their numbers of members; none where a colour bar names them."""
    if not key.few:
        return []
    return [
        Line2D([], [], color=colour, linewidth=1.8, label=plain(f"{setting.label} ({len(setting.members)})"))
        for setting, colour in zip(found, key.colours, strict=True)
    ]


def onset_handles() -> list[Artist]:
    """Legend entries of the strip of onsets above a panel."""
    return [
        Line2D([], [], color="#444444", marker="o", markersize=4.5, markerfacecolor=face, label=event)
        for event, face in (("memorised", "white"), ("generalised", "#444444"))
    ]


def draw_mean(
    axes: Axes,
    time: NDArray[np.float64],
    values: NDArray[np.float64],
    *,
    label: str,
    colour: str,
    dashes: Dashes = "-",
    behind: bool = True,
    band: bool = True,
    thin: bool = False,
) -> None:
    """Draws the mean over members and, behind it, one standard deviation to either side and each member.

    Every line goes through its own finite values: in a record of several runs each run is NaN at the steps at which
    only others were measured.

    Args:
        axes: Where to; its scale decides whether the band must stay above the smallest value.
        time: Moments in the unit of the time axis, `(T,)`.
        values: `(T, E)`; nothing is drawn when none is finite.
        label: Of the line of the mean.
        colour: Of all of it.
        dashes: Of the lines.
        behind: Whether members, and their band, are drawn; without them the mean is drawn thinner.
        band: Whether the band is.
        thin: For what a line of the network is compared with: drawn thinner, and behind such lines.
    """
    mean, deviation = average(values)
    known = np.isfinite(mean)
    if not known.any():
        return
    width, marker = (1.0 if thin else 1.8 if behind else 1.2), _marker(known)
    axes.plot(
        time[known],
        mean[known],
        color=colour,
        linestyle=dashes,
        linewidth=width,
        marker=marker,
        markersize=2.5 if thin else None,
        label=label,
        zorder=3 if thin else 4,
    )
    if not behind or values.shape[1] == 1:
        return
    if band:
        low = mean - deviation
        if axes.get_yscale() != "linear":
            # A mean less a deviation may be negative, where no member is.
            low = np.maximum(low, values[np.isfinite(values)].min())
        top = (mean + deviation)[known]
        axes.fill_between(time[known], low[known], top, color=colour, alpha=0.22, linewidth=0, zorder=2)
    for column in values.T:
        own = np.isfinite(column)
        axes.plot(
            time[own],
            column[own],
            color=colour,
            linestyle=dashes,
            linewidth=0.5,
            marker=_marker(own),
            markersize=2.5,
            alpha=0.4,
            zorder=3,
        )


def _marker(known: NDArray[np.bool_]) -> str | None:
    """A single measurement has no line to be seen by."""
    return "o" if known.sum() == 1 else None


def draw_map(
    axes: Axes,
    time: NDArray[np.float64],
    rows: NDArray[np.float64],
    values: NDArray[np.float64],
    colours: Colormap,
    norm: Normalize,
) -> QuadMesh:
    """Draws values over time and over something else as colours.

    A cell reaches half-way to its neighbours: in the logarithm of time, and to the first measurement linearly, as the
    axis of `draw_step_axis` is.

    Args:
        axes: Where to.
        time: Moments in the unit of the time axis, `(T,)`, rising, T at least 1.
        rows: Where each row has its middle on the y axis, `(K,)`, evenly spaced.
        values: `(T, K)`; cells that are NaN are grey.
        colours: The colours.
        norm: What maps values to them.

    Returns:
        What a colour bar needs.
    """
    half = 0.5 if len(rows) < 2 else float(rows[1] - rows[0]) / 2
    edges = np.append(rows - half, rows[-1:] + half)
    cmap = colours.with_extremes(bad="#e4e4e4")
    return axes.pcolormesh(
        _time_edges(time), edges, np.ma.masked_invalid(values.T), cmap=cmap, norm=norm, rasterized=True
    )


def _time_edges(time: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where the cells of a map begin and end, `(T + 1,)`; the first and the last are cut at their moments."""
    if len(time) == 1:
        return np.array([0.0, 1.0]) if time[0] <= 0 else time[0] * np.array([0.5, 2.0])
    before, after = time[:-1], time[1:]
    between = np.where(before > 0, np.sqrt(np.maximum(before, 0) * after), after / 2)
    return np.concatenate([time[:1], between, time[-1:]])


def say_in(axes: Axes, text: str) -> None:
    """Writes into a panel why there is nothing in it."""
    axes.text(
        0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", fontsize=LABEL, color="#5d5d5d", zorder=5
    )
    axes.set_yticks([])


def scale_log(axes: Axes, values: NDArray[np.float64]) -> None:
    """Makes the y axis logarithmic, with plain numbers; linear from 0 to 1 where there are zeros, as among counts.

    Args:
        axes: The axes.
        values: What they show, of any shape, none below 0; NaN is passed over.
    """
    finite = values[np.isfinite(values)]
    positive = finite[finite > 0]
    if not positive.size:
        return
    low, high = float(positive.min()), float(positive.max())
    zeros = bool((finite == 0).any())
    if zeros:
        low = min(low, 1.0)
        axes.set_yscale("symlog", linthresh=low, linscale=0.4)
        axes.set_ylim(-0.15 * low, 1.3 * high)
    else:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.3, 1.3 * high)
    ticks = log_ticks(low / 1.3, 1.3 * high)
    axes.yaxis.set_major_locator(FixedLocator([0.0, *ticks] if zeros else ticks))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick_text(value)))
    minor = [m * 10.0**e for e in range(math.floor(math.log10(low)) - 1, 16) for m in range(2, 10)]
    axes.yaxis.set_minor_locator(FixedLocator([value for value in minor if low / 1.3 <= value <= 1.3 * high]))
    axes.yaxis.set_minor_formatter(NullFormatter())


def draw_step_axis(axes: Axes, clock: Clock, steps: NDArray[Any]) -> None:
    """Makes the x axis a logarithmic time axis on which step 0 can be seen.

    The papers' log axes lose the initial weights; here, where step 0 was measured, the axis is linear from 0 to the
    first measurement after it and logarithmic beyond, and its label says so.

    Args:
        axes: Axes whose x data are `clock.time(steps)`.
        clock: The clock of the record.
        steps: Measured steps, `(T,)`, rising.
    """
    times = np.unique(clock.time(steps))
    positive = times[times > 0]
    first = float(positive[0]) if positive.size else 1.0
    last = float(positive[-1]) if positive.size else 1.0
    unit = f"epoch of {count(clock.steps_per_epoch, 'step')}" if clock.steps_per_epoch > 0 else "optimizer step"
    # A fraction of an epoch such as 0.0312 says less than the step that it is.
    end = number(first) if first.is_integer() else f"step {number(first * max(clock.steps_per_epoch, 1))}"
    draw_time_axis(axes, first, last, unit, zero=bool(times.size and times[0] <= 0), end=end)


def draw_time_axis(axes: Axes, first: float, last: float, unit: str, *, zero: bool, end: str = "") -> None:
    """Makes the x axis logarithmic and, where 0 is to be seen, linear from there to the first moment after it.

    Args:
        axes: The axes.
        first: The first moment above 0.
        last: The last moment.
        unit: What time is told in, for the label.
        zero: Whether 0 is to be seen.
        end: Where the linear part ends, in words; `first` as a number where it is not given.
    """
    ticks = log_ticks(first, last)
    if zero:
        axes.set_xscale("symlog", linthresh=first, linscale=0.4)
        axes.set_xlim(0, last * 1.02)
        axes.set_xlabel(f"{unit}\n(log scale; linear from 0 to {end or number(first)})", fontsize=LABEL)
        ticks = [0.0, *ticks]
    else:
        axes.set_xscale("log")
        axes.set_xlim(first / (2 if first == last else 1.02), last * (2 if first == last else 1.02))
        axes.set_xlabel(f"{unit} (log scale)", fontsize=LABEL)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick_text(value)))
    minor = [m * 10.0**e for e in range(math.floor(math.log10(first)), 16) for m in range(2, 10)]
    axes.xaxis.set_minor_locator(FixedLocator([value for value in minor if first <= value <= last]))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(labelsize=TICK)


def log_ticks(first: float, last: float) -> list[float]:
    """Powers of ten from `first` to `last`; with 2 and 5 between them where fewer than two powers fit."""
    exponents = range(math.floor(math.log10(first)), math.ceil(math.log10(last)) + 1)
    for mantissas in ((1,), (1, 2, 5)):
        ticks = [m * 10.0**e for e in exponents for m in mantissas if first <= m * 10.0**e <= last * 1.001]
        if len(ticks) >= 2:
            return ticks[:: math.ceil(len(ticks) / 7)]
    return sorted({first, last})


def tick_text(value: float, *, powers: bool = False) -> str:
    """A tick's number: plain, but as a power of ten where that is shorter or where all ticks are to be `powers`."""
    if 0 < value < 0.001 or value >= 1e5 or (powers and value > 0):
        exponent = math.floor(math.log10(value) + 1e-9)
        mantissa = number(round(value / 10.0**exponent, 3))
        return f"$10^{{{exponent}}}$" if mantissa == "1" else f"${mantissa}\\times 10^{{{exponent}}}$"
    return number(value)


def tidy(axes: Axes, title: str) -> None:
    """Panel title at the left, no box, a quiet grid."""
    axes.set_title(plain(title), loc="left", fontsize=TITLE)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def mark_onsets(axes: Axes, clock: Clock, onsets: Onsets | None, members: NDArray[np.intp]) -> None:
    """Marks each event by a line at its median and, beneath, a span from the earliest to the latest member.

    The lines carry legend labels with the counts; an event that happened to no member, or to all from the start, is not
    drawn. Where the median is not reached, for it happened to too few, the line is at the first of them.
    """
    if onsets is None:
        return
    for event in EVENTS:
        times = clock.time(onsets.happened(event, members))
        if not times.any():
            continue
        colour = EVENT_COLOURS[event]
        if times.max() > times.min():
            axes.axvspan(float(times.min()), float(times.max()), color=colour, alpha=0.10, linewidth=0, zorder=0)
        label, place = event, float(clock.time(onsets.median(event, members)))
        if math.isnan(place):
            label, place = f"{event}, the first", float(times.min())
        label += "" if len(members) == 1 else f" ({times.size} of {len(members)})"
        axes.axvline(place, color=colour, linestyle=EVENT_DASHES[event], linewidth=1.2, label=label, zorder=1)


def mark_onsets_above(axes: Axes, clock: Clock, onsets: Onsets | None, found: Sequence[Setting], key: Palette) -> None:
    """Marks the onsets of several settings in a strip above the axes, one line a setting.

    Hollow: memorised; filled: generalised, each at the median with a bar over the range of members, and a bar alone
    where the median is not reached. Spans behind the curves, as for one setting, would cover one another.
    """
    if onsets is None:
        return
    figure = axes.get_figure(root=True)
    assert figure is not None
    for row, (setting, colour) in enumerate(zip(found, key.colours, strict=True)):
        up = ScaledTranslation(0, (STRIP * (len(found) - row) - 2) / 72, figure.dpi_scale_trans)
        place = axes.get_xaxis_transform() + up
        for event, face in (("memorised", "white"), ("generalised", colour)):
            members = setting.members
            times = clock.time(onsets.happened(event, members))
            if not times.any():
                continue
            ends, median = [float(times.min()), float(times.max())], float(clock.time(onsets.median(event, members)))
            ticks = "|" if math.isnan(median) else None
            axes.plot(ends, [1, 1], transform=place, clip_on=False, color=colour, linewidth=1.2, marker=ticks, zorder=5)
            if math.isnan(median):
                continue
            axes.plot(
                [median],
                [1],
                transform=place,
                clip_on=False,
                color=colour,
                marker="o",
                markersize=4.5,
                markerfacecolor=face,
                zorder=6,
            )
    axes.set_title(axes.get_title(loc="left"), loc="left", fontsize=TITLE, pad=STRIP * len(found) + 8)
