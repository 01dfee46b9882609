"""Held-out accuracy over decay time, coloured by training-set size: what a network keeps, and what it forgets."""

import math

import numpy as np
import xarray as xr
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator
from numpy.typing import NDArray

from grok_lightning.figures.size_sweep import GREY, SizeSweep
from grok_lightning.figures.style import (
    LABEL,
    TICK,
    add_caption,
    add_key,
    draw_time_axis,
    new_figure,
    tick_text,
    tidy,
)
from grok_lightning.figures.words import capital, listing, number
from grok_lightning.sweeps import Arm

__all__ = ["HOW_TO_READ", "draw_forgetting", "found_forgetting", "sizes_by_end"]

HOW_TO_READ = (
    "Accuracy on all held-out rows, removed ones and never seen ones, over decay time since the small training set "
    "began: the sum over steps of learning rate times weight decay λ. One line a member, coloured by the number D of "
    "rows that it trains on. Dots: where members were read, at one decay time in all (dashed); hollow ones had not "
    "converged."
)

SCALE = "plasma"
PALEST = 0.88  # Beyond it the scale is too pale for lines on white.


def draw_forgetting(record: xr.DataTree) -> Figure:
    """Draws held-out accuracy over decay time, one panel an arm and one line a member.

    After Varma, Shah, Kenton, Kramár, Kumar 2023, arXiv 2309.02390, Figure 7, and Figure 1(b) for each line. Ours
    differs: time is decay time, in which arms can be compared, where the paper has epochs; it counts from the step at
    which the small set began, which may be another in each member; what had not converged is marked. Members without
    weight decay have no decay time, and are drawn over steps.

    Args:
        record: A record, of one run or joined, with what `grok_lightning.sweeps.read_sweep` needs, and at least three
            training-set sizes.

    Returns:
        The figure, with its caption.

    Raises:
        ValueError: If the record has no such sweep, or its margins are none.
    """
    found = SizeSweep.of(record)
    if found is None:
        raise ValueError("the record has no sweep over at least three training-set sizes: nothing to draw")
    columns = min(2, len(found.arms))
    rows = math.ceil(len(found.arms) / columns)
    figure = new_figure(rows, row_height=3.3 if len(found.arms) > 1 else 3.8)
    panels = list(figure.subplots(rows, columns, squeeze=False, sharey=True).ravel())
    colours = ListedColormap(colormaps[SCALE](np.linspace(0, PALEST, 256)))
    scale = ScalarMappable(LogNorm(found.sizes[0], found.sizes[-1]), colours)
    for axes in panels[len(found.arms) :]:
        axes.remove()
    panels = panels[: len(found.arms)]
    for axes, arm in zip(panels, found.arms, strict=True):
        _draw_arm(axes, found, arm, scale)
    for axes in panels[::columns]:
        axes.set_ylabel("held-out accuracy", fontsize=LABEL)
    _add_sizes(figure, panels, found, scale)
    add_key(figure, _key(found), 4)
    add_caption(figure, f"{HOW_TO_READ} {found_forgetting(record)}")
    return figure


def _draw_arm(axes: Axes, found: SizeSweep, arm: Arm, scale: ScalarMappable) -> None:
    sweep = found.sweep
    decayed = arm.weight_decay > 0
    tidy(axes, f"{found.name(arm)}{' (in the box)' if arm.in_box else ''}")
    # The largest sets on top: they are those whose lines stay apart.
    for member in sorted(arm.members, key=lambda member: sweep.size[member]):
        time = _moments(found, int(member))
        known = np.isfinite(time) & np.isfinite(sweep.accuracy[:, member]) & (time >= 0)
        if not known.any():
            continue
        colour = scale.to_rgba(sweep.size[member])
        axes.plot(
            time[known],
            sweep.accuracy[known, member],
            color=colour,
            linewidth=0.9,
            alpha=0.85,
            label=f"member {number(sweep.member[member])}",
            zorder=3,
        )
        end = found.final.time[member] if decayed else time[known][-1]
        converged = bool(found.final.converged[member])
        axes.plot(
            [end],
            [found.final.accuracy[member]],
            linestyle="none",
            marker="o",
            markersize=4,
            color=colour,
            markerfacecolor=colour if converged else "white",
            label=f"{'converged' if converged else 'not converged'} {number(sweep.member[member])}",
            zorder=5,
        )
    if decayed and math.isfinite(found.time):
        axes.axvline(found.time, color=GREY, linewidth=1.0, linestyle="--", label="T*", zorder=2)
    if not math.isnan(sweep.chance):
        axes.axhline(found.chance, color=GREY, linewidth=0.9, linestyle=(0, (1, 2)), label="chance", zorder=1)
    axes.set_ylim(-0.03, 1.03)
    _scale_time(axes, found, arm)


def _moments(found: SizeSweep, member: int) -> NDArray[np.float64]:
    """Decay time since the small set began or, without weight decay, steps since then: `(T,)`."""
    if found.sweep.weight_decay[member] > 0:
        return found.sweep.time[:, member]
    return np.asarray(found.sweep.step - found.sweep.began[member])


def _scale_time(axes: Axes, found: SizeSweep, arm: Arm) -> None:
    """The same axis for all arms with weight decay; without it, one of steps."""
    decayed = arm.weight_decay > 0
    members = np.flatnonzero(found.decayed) if decayed else arm.members
    moments = np.stack([_moments(found, int(member)) for member in members], axis=1)
    moments = np.where(np.isfinite(found.sweep.accuracy[:, members]), moments, np.nan)
    positive = [column[column > 0] for column in moments.T]
    firsts = [float(column.min()) for column in positive if column.size]
    lasts = [float(column.max()) for column in positive if column.size]
    # Members that shrank between two measurements are measured at once after it: their firsts say nothing.
    first, last = (float(np.median(firsts)), max(lasts)) if firsts else (1.0, 1.0)
    unit = "decay time T" if decayed else "optimizer step since the small set began"
    draw_time_axis(axes, first, last, unit, zero=True)


def _add_sizes(figure: Figure, panels: list[Axes], found: SizeSweep, scale: ScalarMappable) -> None:
    """The colour bar, with the sizes of the sweep as its ticks."""
    bar = figure.colorbar(scale, ax=panels, fraction=0.04, pad=0.02)
    bar.set_label("rows trained on, D (log scale)", fontsize=LABEL)
    span = math.log(found.sizes[-1] / found.sizes[0])
    shown: list[float] = []
    for size in found.sizes:
        if not shown or math.log(size / shown[-1]) > 0.06 * span:
            shown.append(float(size))
    bar.ax.yaxis.set_major_locator(FixedLocator(shown))
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick_text(value)))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    bar.ax.tick_params(labelsize=TICK)


def _key(found: SizeSweep) -> list[Artist]:
    handles: list[Artist] = [
        Line2D([], [], color=GREY, marker="o", markersize=4, markerfacecolor=face, linestyle="none", label=label)
        for label, face in (("converged", GREY), ("not converged", "white"))
    ]
    if math.isfinite(found.time):
        handles.append(
            Line2D([], [], color=GREY, linewidth=1.0, linestyle="--", label=f"read at T = {number(found.time)}")
        )
    if not math.isnan(found.sweep.chance):
        handles.append(Line2D([], [], color=GREY, linewidth=0.9, linestyle=(0, (1, 2)), label="chance"))
    return handles


# ---- what the run showed ---------------------------------------------------------------------------------------------


def sizes_by_end(found: SizeSweep, arm: Arm) -> dict[str, list[float]]:
    """Sorts the sizes of an arm by where accuracy ended, in the mean over the members that count.

    Ends are shares of the way from chance to 1; the thresholds are those of P2, `low_end` and `high_end`.

    Returns:
        Sizes by `lost`, `between`, `kept` and `not converged`, that is, without a member that counts.
    """
    share = (found.final.accuracy - found.chance) / (1 - found.chance)
    counts = found.counts(arm)
    sorted_sizes: dict[str, list[float]] = {"lost": [], "between": [], "kept": [], "not converged": []}
    for size in arm.sizes:
        mine = share[counts & (found.sweep.size == size)]
        if not mine.size:
            sorted_sizes["not converged"].append(float(size))
        elif mine.mean() < found.margins.low_end:
            sorted_sizes["lost"].append(float(size))
        else:
            sorted_sizes["kept" if mine.mean() > found.margins.high_end else "between"].append(float(size))
    return sorted_sizes


def found_forgetting(record: xr.DataTree) -> str:
    """At which sizes each arm kept, lost and partly kept its accuracy; empty where there is no sweep."""
    found = SizeSweep.of(record)
    if found is None:
        return ""
    return " ".join([*(_arm_sentence(found, arm) for arm in found.arms), _kept_sentence(found)])


def _arm_sentence(found: SizeSweep, arm: Arm) -> str:
    ends, words = sizes_by_end(found, arm), _words(found)
    clauses = [
        f"{words[end]} at D = {listing([number(size) for size in ends[end]])}"
        for end in ("kept", "between", "lost")
        if ends[end]
    ]
    if ends["not converged"]:
        clauses.append(f"not converged at D = {listing([number(size) for size in ends['not converged']])}")
    when = "" if arm.weight_decay > 0 else ", read at the last measurement,"
    return capital(f"at {found.name(arm)}{when} held-out accuracy is {'; '.join(clauses)}.")


def _words(found: SizeSweep) -> dict[str, str]:
    """What the ends are called: what was never there is not kept."""
    if found.from_scratch:
        return {"kept": "high", "between": "middling", "lost": "low"}
    return {"kept": "kept", "between": "partly kept", "lost": "lost"}


def _kept_sentence(found: SizeSweep) -> str:
    words = _words(found)
    kept, lost = number(found.margins.high_end), number(found.margins.low_end)
    return (
        f"{capital(words['kept'])}: above {kept} of the way from chance to 1, in the mean over converged members of "
        f"that size; {words['lost']}: below {lost}."
    )
