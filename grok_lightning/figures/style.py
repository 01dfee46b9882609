"""What all figures share: how they read a record, and how they look.

Groups of a record are found by the kind of monitor that wrote them, never by name. Members that differ in nothing but
their seeds share a `Setting`; averages are taken within a setting only. No pyplot and no global state: every function
works on the object that it is given.
"""

import contextlib
import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, LogNorm, Normalize, to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter
from matplotlib.transforms import ScaledTranslation
from numpy.typing import NDArray

__all__ = [
    "EVENTS",
    "SEED_COORDINATES",
    "Clock",
    "Onsets",
    "Palette",
    "Setting",
    "add_caption",
    "add_key",
    "average",
    "count",
    "decimals",
    "draw_step_axis",
    "groups_of_kind",
    "heighten",
    "log_ticks",
    "mark_onsets",
    "mark_onsets_above",
    "member_coordinates",
    "member_labels",
    "new_figure",
    "number",
    "palette",
    "plain",
    "read_onsets",
    "remove_caption",
    "settings",
    "spread",
    "tick_text",
    "tidy",
]

SEED_COORDINATES = ("seed", "init_seed", "data_seed")
"""Member coordinates that make repetitions of one setting, not another setting."""

EVENTS = ("memorised", "generalised", "forgotten")

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
CAPTION_COLUMNS = 108
STRIP = 8.0  # Height in points of a setting's line in the strip of onsets above a panel.


# ---- reading a record ------------------------------------------------------------------------------------------------


def groups_of_kind(record: xr.DataTree, kind: str) -> dict[str, xr.Dataset]:
    """Groups of a record that a monitor of this kind wrote.

    Args:
        record: The record of a run.
        kind: Class name of the monitor, the attribute `kind` of its group.

    Returns:
        The groups by name, in the order of the record; empty when there are none. A group without a `member`
        coordinate gets the members' positions.
    """
    groups = {}
    for node in record.subtree:
        if node.attrs.get("kind") == kind:
            group = node.to_dataset()
            if "member" in group.dims and "member" not in group.coords:
                group = group.assign_coords(member=np.arange(group.sizes["member"]))
            groups[node.path.strip("/")] = group
    return groups


def member_labels(group: xr.Dataset) -> NDArray[Any]:
    """Labels of the members of a group: `(E,)`."""
    return np.asarray(group["member"].values)


def member_coordinates(group: xr.Dataset) -> dict[str, list[Any]]:
    """What tells the members of a group apart: each coordinate over `member` as a list of E plain values."""
    names = [str(name) for name, value in group.coords.items() if value.dims == ("member",) and name != "member"]
    return {name: group[name].values.tolist() for name in names}


@dataclass(frozen=True)
class Clock:
    """Steps, and their translation into the papers' epochs.

    Attributes:
        steps_per_epoch: Optimizer steps in one epoch; 0 when unknown, and then everything is told in steps.
    """

    steps_per_epoch: int

    @classmethod
    def of(cls, record: xr.DataTree) -> "Clock":
        """The clock of a record, from its attribute `steps_per_epoch`."""
        return cls(int(record.attrs.get("steps_per_epoch", 0)))

    @property
    def unit(self) -> str:
        """The unit of the time axes: `epoch` or `step`."""
        return "epoch" if self.steps_per_epoch > 0 else "step"

    def time(self, steps: Any) -> NDArray[np.float64]:
        """Steps in the unit of the time axes; NaN stays NaN."""
        return np.asarray(steps, dtype=np.float64) / max(self.steps_per_epoch, 1)

    def at(self, step: float) -> str:
        """A moment in words: `epoch 27 (step 864)`, or `step 864` when epochs are unknown."""
        if self.steps_per_epoch > 0:
            return f"epoch {number(float(self.time(step)))} (step {number(step)})"
        return f"step {number(step)}"

    def spread(self, steps: Iterable[float]) -> str:
        """Several moments in words: `epoch 27 (median; range 20 to 38)`."""
        values = [float(step) for step in steps]
        if len(values) == 1:
            return self.at(values[0])
        return f"{self.unit} {spread(self.time(values))}"


@dataclass(frozen=True)
class Setting:
    """Members that differ in nothing but their seeds.

    Attributes:
        label: What sets them apart, such as `weight_decay = 0.01`; empty when the group has one setting.
        members: Their positions along `member`.
        values: Their values of the coordinates that differ between settings.
        names: The names of those coordinates.
    """

    label: str
    members: NDArray[np.intp]
    values: tuple[Any, ...]
    names: tuple[str, ...]


def settings(group: xr.Dataset) -> tuple[Setting, ...]:
    """Sorts the members of a group into settings.

    Args:
        group: A group with the dimension `member`.

    Returns:
        The settings, in rising order of their values where these can be ordered, else in order of appearance.
    """
    coordinates = {
        name: values
        for name, values in member_coordinates(group).items()
        if name not in SEED_COORDINATES and len({repr(value) for value in values}) > 1
    }
    names = tuple(coordinates)
    found: dict[str, tuple[tuple[Any, ...], list[int]]] = {}
    for position in range(group.sizes["member"]):
        values = tuple(column[position] for column in coordinates.values())
        # The text is the key, for NaN does not equal itself.
        found.setdefault(repr(values), (values, []))[1].append(position)
    cells = list(found.values())
    # Words beside numbers, or None, have no order: the order of appearance stays.
    with contextlib.suppress(TypeError):
        cells.sort(key=lambda cell: cell[0])
    return tuple(
        Setting(
            label=", ".join(f"{name} = {number(value)}" for name, value in zip(names, values, strict=True)),
            members=np.array(members, dtype=np.intp),
            values=values,
            names=names,
        )
        for values, members in cells
    )


@dataclass(frozen=True)
class Onsets:
    """Onsets of the members of another group, in that group's order.

    Attributes:
        step: For each event the steps `(E,)`; NaN where it had not happened by `last_step`.
        last_step: For each event the last step looked at, `(E,)`; NaN where unknown.
        resolution: For each event the steps between the onset and the measurement before it, `(E,)`.
    """

    step: dict[str, NDArray[np.float64]]
    last_step: dict[str, NDArray[np.float64]]
    resolution: dict[str, NDArray[np.float64]]

    def happened(self, event: str, members: NDArray[np.intp]) -> NDArray[np.float64]:
        """Steps of an event for those of the members to whom it happened."""
        steps = self.step[event][members]
        return steps[np.isfinite(steps)]


def read_onsets(record: xr.DataTree, members: NDArray[Any]) -> Onsets | None:
    """Reads the onsets of a record for given members.

    Args:
        record: The record of a run. Where several monitors looked for onsets, the first one counts.
        members: Labels of the members wanted, `(E,)`.

    Returns:
        The onsets in the order of `members`, or None when no monitor looked for onsets. A member or event that the
        monitor did not look at counts as not happened (NaN).
    """
    groups = groups_of_kind(record, "Onset")
    if not groups:
        return None
    group = next(iter(groups.values()))
    fallback = float(record.attrs.get("last_step", math.nan))

    def table(name: str, missing: float) -> dict[str, NDArray[np.float64]]:
        if name not in group:
            return {event: np.full(len(members), missing) for event in EVENTS}
        full = group[name].astype(np.float64).broadcast_like(group["step"])
        full = full.reindex(event=list(EVENTS), member=members).transpose("event", "member").fillna(missing)
        return {event: np.asarray(full.sel(event=event).values) for event in EVENTS}

    return Onsets(table("step", math.nan), table("last_step", fallback), table("resolution", math.nan))


# ---- numbers and words -----------------------------------------------------------------------------------------------


def number(value: Any) -> str:
    """A number in few digits (`0.012`, `27.5`, `9600`, never `9.6e+03`); any other value as its text."""
    if isinstance(value, np.generic):
        value = value.item()
    if not isinstance(value, float):
        return str(value)
    if not math.isfinite(value):
        return str(value)
    if value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return f"{value:.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.3g}"


def decimals(value: float) -> str:
    """A fraction with two decimals, and three where two would round it to 0 or 1."""
    return f"{value:.2f}" if f"{value:.2f}" not in ("0.00", "1.00") or value in (0, 1) else f"{value:.3f}"


def spread(values: Any, form: Callable[[Any], str] = number) -> str:
    """Median and range in words: `27 (median; range 20 to 38)`; equal values are given once."""
    values = np.asarray(values, dtype=np.float64)
    low, high = form(float(values.min())), form(float(values.max()))
    if low == high:
        return low if values.size == 1 else f"{low} for all {values.size}"
    return f"{form(float(np.median(values)))} (median; range {low} to {high})"


def count(n: int, noun: str) -> str:
    """A number with its noun: `1 member`, `3 members`."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def plain(text: str) -> str:
    """Text that Matplotlib is not to read as mathematics."""
    return text.replace("$", r"\$")


def average(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and population standard deviation over members, values that are not finite left out.

    The population form (divisor: number of members) is that of Merrill, Tsilivis, Shukla 2023, arXiv 2303.11873, whose
    figures' bands come from it.

    Args:
        values: `(T, E)`.

    Returns:
        Mean and standard deviation, each `(T,)`; NaN at steps without a finite value.
    """
    present = np.isfinite(values)
    n = present.sum(axis=1)
    safe = np.maximum(n, 1)
    mean = np.where(present, values, 0.0).sum(axis=1) / safe
    variance = np.where(present, (np.where(present, values, 0.0) - mean[:, None]) ** 2, 0.0).sum(axis=1) / safe
    empty = n == 0
    return np.where(empty, np.nan, mean), np.where(empty, np.nan, np.sqrt(variance))


# ---- drawing ---------------------------------------------------------------------------------------------------------


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
    lines = textwrap.wrap(text, CAPTION_COLUMNS)
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
    label = f"setting, ordered by {', '.join(found[0].names)}"
    return [float(i + 1) for i in range(len(found))], label, Normalize(1, len(found))


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
    ticks = log_ticks(first, last)
    if times.size and times[0] <= 0:
        axes.set_xscale("symlog", linthresh=first, linscale=0.4)
        axes.set_xlim(0, last * 1.02)
        # A fraction of an epoch such as 0.0312 says less than the step that it is.
        end = number(first) if first.is_integer() else f"step {number(first * max(clock.steps_per_epoch, 1))}"
        axes.set_xlabel(f"{unit}\n(log scale; linear from 0 to {end})", fontsize=LABEL)
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

    The lines carry legend labels with the counts; an event that happened to no member is not drawn.
    """
    if onsets is None:
        return
    for event in EVENTS:
        times = clock.time(onsets.happened(event, members))
        if times.size == 0:
            continue
        colour = EVENT_COLOURS[event]
        if times.max() > times.min():
            axes.axvspan(float(times.min()), float(times.max()), color=colour, alpha=0.10, linewidth=0, zorder=0)
        label = event if len(members) == 1 else f"{event} ({times.size} of {len(members)})"
        axes.axvline(
            float(np.median(times)), color=colour, linestyle=EVENT_DASHES[event], linewidth=1.2, label=label, zorder=1
        )


def mark_onsets_above(axes: Axes, clock: Clock, onsets: Onsets | None, found: Sequence[Setting], key: Palette) -> None:
    """Marks the onsets of several settings in a strip above the axes, one line a setting.

    Hollow: memorised; filled: generalised, each at the median with a bar over the range of members. Spans behind the
    curves, as for one setting, would cover one another.
    """
    if onsets is None:
        return
    figure = axes.get_figure(root=True)
    assert figure is not None
    for row, (setting, colour) in enumerate(zip(found, key.colours, strict=True)):
        up = ScaledTranslation(0, (STRIP * (len(found) - row) - 2) / 72, figure.dpi_scale_trans)
        place = axes.get_xaxis_transform() + up
        for event, face in (("memorised", "white"), ("generalised", colour)):
            times = clock.time(onsets.happened(event, setting.members))
            if times.size == 0:
                continue
            ends, median = [float(times.min()), float(times.max())], float(np.median(times))
            axes.plot(ends, [1, 1], transform=place, clip_on=False, color=colour, linewidth=1.2, zorder=5)
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
