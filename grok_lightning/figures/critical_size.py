"""Final accuracy over training-set size, and the critical size over weight decay."""

import math
from collections.abc import Mapping

import numpy as np
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from grok_lightning.figures.curves import SWAPPED_NAME, swapped_share
from grok_lightning.figures.reading import groups_of_kind, member_labels
from grok_lightning.figures.size_sweep import (
    GREY,
    SizeSweep,
    arm_colours,
    arm_marker,
    number_axis,
    verdict_sentences,
)
from grok_lightning.figures.style import LABEL, add_caption, add_key, new_figure, say_in, tidy
from grok_lightning.figures.words import number
from grok_lightning.sweeps import Arm, Curve, compared_arms

__all__ = ["HOW_TO_READ", "draw_critical_size", "found_critical_size"]

HOW_TO_READ = (
    "Left: final held-out accuracy over the number D of rows trained on. One point a member, read at one decay time "
    "(sum over steps of learning rate times weight decay λ) in all; hollow ones had not converged; arms stand a little "
    "beside one another. Lines: the fitted curve of an arm, with the mean of log D_crit, where it passes one half "
    "between chance and 1, and of its width over seeds; bars: D_crit, with its interval over seeds. Right: D_crit over "
    "weight decay, of each seed (thin) and of all (bars); within the grey band it would change by less than the margin."
)

ASIDE, ASIDE_AT_MOST = 0.02, 0.1  # Of the axis, between arms and over all: side by side, not on top of one another.


def draw_critical_size(record: xr.DataTree) -> Figure:
    """Draws final held-out accuracy over training-set size, and the critical size over weight decay.

    After Varma, Shah, Kenton, Kramár, Kumar 2023, arXiv 2309.02390, Figures 4 and 10(b). Ours differs: every member is
    drawn; those that had not converged are told from those that had; critical sizes are fitted, seed by seed, with
    intervals over seeds (`grok_lightning.sweeps.critical_size`); arms in which weights sit in AdamW's box, and members
    without weight decay, are marked and stand apart.

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
    figure = new_figure(1, row_height=3.9)
    left, right = figure.subplots(1, 2, width_ratios=(1.35, 1))
    baseline = _draw_baselines(left, record, found)
    _draw_accuracies(left, found)
    _draw_sizes(right, found)
    add_key(figure, _key(found, baseline), 2)
    add_caption(figure, f"{HOW_TO_READ} {found_critical_size(record)}")
    return figure


def _draw_accuracies(axes: Axes, found: SizeSweep) -> None:
    """Points, curve and critical size of every arm."""
    sizes, final = found.sizes, found.final
    span = math.log(sizes[-1] / sizes[0])
    grid = np.geomspace(sizes[0], sizes[-1], 200)
    number_axis(axes, "x", sizes, spread=math.exp(0.06 * span))
    middle = (1 + found.chance) / 2
    for place, (arm, colour) in enumerate(zip(found.arms, arm_colours(found.arms), strict=True)):
        aside = place - (len(found.arms) - 1) / 2
        shift = math.exp(min(ASIDE, ASIDE_AT_MOST / len(found.arms)) * span * aside)
        for converged in (True, False):
            shown = arm.members[final.converged[arm.members] == converged]
            axes.plot(
                found.sweep.size[shown] * shift,
                final.accuracy[shown],
                linestyle="none",
                marker=arm_marker(arm),
                markersize=4.5,
                color=colour,
                markerfacecolor=colour if converged else "white",
                alpha=0.85,
                label=f"{'converged' if converged else 'not converged'} {found.name(arm)}",
                zorder=4,
            )
        if arm.critical_size is None or arm.width is None:
            continue
        curve = Curve(arm.critical_size.mean, math.log(arm.width.mean) / (2 * math.log(9)), found.chance)
        axes.plot(grid, curve.at(grid), color=colour, linewidth=1.6, label=f"fit {found.name(arm)}", zorder=3)
        height = middle + 0.035 * aside
        ends = [arm.critical_size.low, arm.critical_size.high]
        axes.plot([arm.critical_size.mean] * 2, [-0.03, height], color=colour, linewidth=0.9, linestyle=":", zorder=2)
        axes.plot(ends, [height] * 2, color=colour, linewidth=1.4, solid_capstyle="butt", zorder=5)
        axes.plot(
            [arm.critical_size.mean],
            [height],
            color=colour,
            marker="|",
            markersize=11,
            markeredgewidth=2.0,
            label=f"D_crit {found.name(arm)}",
            zorder=6,
        )
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("rows trained on, D (log scale)", fontsize=LABEL)
    axes.set_ylabel("final held-out accuracy", fontsize=LABEL)
    tidy(axes, "Accuracy over training-set size")


def _draw_baselines(axes: Axes, record: xr.DataTree, found: SizeSweep) -> bool:
    """Chance, and what commutativity alone gives; whether there was anything to draw of the latter."""
    if not math.isnan(found.sweep.chance):
        axes.axhline(found.chance, color=GREY, linewidth=0.9, linestyle=(0, (1, 2)), label="chance", zorder=1)
    share = _swapped_shares(record, found)
    known = np.isfinite(share)
    if not known.any():
        return False
    sizes = np.unique(found.sweep.size[known])
    medians = [float(np.median(share[known & (found.sweep.size == size)])) for size in sizes]
    axes.plot(sizes, medians, color=GREY, linewidth=0.9, linestyle="--", label=SWAPPED_NAME, zorder=1)
    return True


def _swapped_shares(record: xr.DataTree, found: SizeSweep) -> NDArray[np.float64]:
    """Share of each member's held-out rows whose swap is trained on in the end: `(E,)`; NaN where it is not known."""
    shares: Mapping[object, float] = {
        label: share
        for group in groups_of_kind(record, "LearningCurves").values()
        for label, share in zip(member_labels(group).tolist(), swapped_share(group), strict=True)
    }
    return np.array([shares.get(label, math.nan) for label in found.sweep.member.tolist()])


def _draw_sizes(axes: Axes, found: SizeSweep) -> None:
    """Critical sizes over weight decay: of each seed, and the interval over seeds."""
    tidy(axes, "Critical size over weight decay")
    axes.set_xlabel("weight decay λ (log scale)", fontsize=LABEL)
    axes.set_ylabel("critical size D_crit (log scale)", fontsize=LABEL)
    fitted = [
        (arm, colour)
        for arm, colour in zip(found.arms, arm_colours(found.arms), strict=True)
        if arm.critical_size is not None and arm.weight_decay > 0
    ]
    if not fitted:
        axes.set_xticks([])
        say_in(axes, "no arm has a critical size")
        return
    decays = np.array([arm.weight_decay for arm in found.arms if arm.weight_decay > 0])
    number_axis(axes, "x", decays, spread=1.6)
    at = _places(
        [arm for arm, _ in fitted], math.log(decays.max() / decays.min()) if decays.max() > decays.min() else 1
    )
    _draw_band(axes, found)
    by_seed: dict[tuple[int, float], list[tuple[float, float]]] = {}
    for (arm, colour), x in zip(fitted, at, strict=True):
        for seed, curve in arm.curves.items():
            if curve is None:
                continue
            axes.plot(
                [x], [curve.critical_size], marker=arm_marker(arm), color=colour, markersize=3, alpha=0.6, zorder=3
            )
            if not arm.in_box:
                by_seed.setdefault((seed, arm.eps), []).append((x, curve.critical_size))
        interval = arm.critical_size
        assert interval is not None
        axes.plot([x] * 2, [interval.low, interval.high], color=colour, linewidth=1.4, solid_capstyle="butt", zorder=4)
        axes.plot(
            [x],
            [interval.mean],
            color=colour,
            marker="_",
            markersize=12,
            markeredgewidth=2.0,
            label=f"D_crit {found.name(arm)}",
            zorder=5,
        )
    for (seed, _), points in by_seed.items():
        places, sizes = zip(*points, strict=True)
        axes.plot(places, sizes, color=GREY, linewidth=0.6, alpha=0.7, label=f"seed {seed}", zorder=2)
    _scale_sizes(axes, found, [arm for arm, _ in fitted])


def _places(arms: list[Arm], span: float) -> list[float]:
    """Where each arm stands on the axis of weight decay: those with the same one, beside one another."""
    places = []
    for arm in arms:
        same = [other for other in arms if other.weight_decay == arm.weight_decay]
        places.append(arm.weight_decay * math.exp(0.05 * span * (same.index(arm) - (len(same) - 1) / 2)))
    return places


def _draw_band(axes: Axes, found: SizeSweep) -> None:
    """Where D_crit would lie if it changed with weight decay by less than the margin of P3."""
    counted = _counted(found)
    if len({arm.weight_decay for arm in counted}) < 2:
        return
    means = [arm.critical_size.mean for arm in counted if arm.critical_size is not None]
    centre = float(np.mean(np.log([arm.weight_decay for arm in counted])))
    grid = np.geomspace(*axes.get_xlim(), 50)
    reach = found.margins.slope * np.abs(np.log(grid) - centre)
    middle = float(np.mean(np.log(means)))
    axes.fill_between(
        grid, np.exp(middle - reach), np.exp(middle + reach), color=GREY, alpha=0.18, linewidth=0, zorder=0
    )


def _counted(found: SizeSweep) -> list[Arm]:
    """Arms with a critical size, of those by which P3 is judged."""
    return [arm for arm in compared_arms(found.arms) if arm.critical_size is not None]


def _scale_sizes(axes: Axes, found: SizeSweep, fitted: list[Arm]) -> None:
    """Room for all seeds and intervals, within the sizes of the sweep, and no more."""
    values = [curve.critical_size for arm in fitted for curve in arm.curves.values() if curve is not None]
    for arm in fitted:
        assert arm.critical_size is not None
        values += [end for end in (arm.critical_size.low, arm.critical_size.high) if math.isfinite(end)]
    low = max(min(values), found.sizes[0] / 1.5)
    high = min(max(values), found.sizes[-1] * 1.5)
    # An axis over a few per cent would make noise look like a trend.
    reach = max(1.1, 1.5 / math.sqrt(high / low))
    rounded = [mantissa * 10.0**exponent for exponent in range(7) for mantissa in (1, 1.5, 2, 3, 4, 5, 7)]
    number_axis(axes, "y", [low, high], spread=reach)
    bottom, top = axes.get_ylim()
    ticks = [value for value in rounded if bottom <= value <= top]
    axes.set_yticks(ticks if len(ticks) >= 2 else [low, high])


def _key(found: SizeSweep, baseline: bool) -> list[Artist]:
    handles: list[Artist] = []
    for arm, colour in zip(found.arms, arm_colours(found.arms), strict=True):
        box = ", in the box" if arm.in_box else ""
        settled = f"{arm.n_converged} of {arm.n_members} converged" if arm.weight_decay > 0 else "at the end"
        handles.append(
            Line2D(
                [],
                [],
                color=colour,
                linestyle="-" if arm.critical_size is not None else "none",
                marker=arm_marker(arm),
                markerfacecolor=colour if arm.n_converged else "white",
                markersize=4.5,
                label=f"{found.name(arm)}{box} ({settled})",
            )
        )
    hollow = {"color": GREY, "markerfacecolor": "white", "linestyle": "none", "markersize": 4.5}
    handles.append(Line2D([], [], marker="o", label="not converged", **hollow))  # type: ignore[arg-type]
    if not math.isnan(found.sweep.chance):
        handles.append(Line2D([], [], color=GREY, linewidth=0.9, linestyle=(0, (1, 2)), label="chance"))
    if baseline:
        handles.append(Line2D([], [], color=GREY, linewidth=0.9, linestyle="--", label=SWAPPED_NAME))
    if len({arm.weight_decay for arm in _counted(found)}) > 1:
        slope = number(found.margins.slope)
        handles.append(Patch(color=GREY, alpha=0.25, linewidth=0, label=f"|d log D_crit / d log λ| < {slope}"))
    return handles


def found_critical_size(record: xr.DataTree) -> str:
    """Both verdicts of a sweep with their numbers, and by what they were reached; empty where there is no sweep."""
    found = SizeSweep.of(record)
    return "" if found is None else " ".join(verdict_sentences(found))
