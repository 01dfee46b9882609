"""Figures of the three ingredients of grokking: Figure 2 of Varma et al. 2023, and a map of what runs come to."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import NDArray
from scipy.optimize import brentq

from grok_lightning.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    LABEL,
    ORANGE,
    PURPLE,
    TICK,
    VERMILLION,
    Dashes,
    add_caption,
    add_key,
    draw_time_axis,
    log_ticks,
    new_figure,
    tick_text,
    tidy,
)
from grok_lightning.figures.words import count, number
from grok_lightning.theory.ingredients import (
    PANELS,
    SHARE,
    STEPS,
    Ingredients,
    PhaseMap,
    at_rest,
    log_steps,
    losses,
    outcome,
    phase_map,
    simulate,
)

__all__ = ["draw_phase_map", "draw_three_ingredients"]

DECAYS = (0.0025, 0.005, 0.02, 0.1)
NORM_RATIOS = np.geomspace(0.2, 2, 31)
SEED_RATIOS = np.geomspace(1e-4, 3, 31)
# Where there is no delay to be told by colour.
FLAT = {"forgets": (ORANGE, "..."), "never generalises": ("#dddddd", "///"), "learns nothing": ("white", "xxx")}
HATCHES = "#777777"


def draw_three_ingredients() -> Figure:
    """Draws train and test loss, and both weights, with all three ingredients and without one of two.

    After Varma, Shah, Kenton, Kramár, Kumar 2023, arXiv 2309.02390, Figure 2 (a) to (c), with Table 1. Ours: what is
    changed for (b) and (c); the weights; the axis of time.

    Returns:
        The figure, with its caption.
    """
    figure = new_figure(2, row_height=2.2)
    panels: dict[str, Ingredients] = {}
    for name, (own, _) in PANELS.items():
        panels.setdefault(name.partition(":")[0], own)
    grid = figure.subplots(2, len(panels), sharex=True, sharey="row")
    steps = log_steps(STEPS)
    found, peaks = [], []
    for column, (name, own) in enumerate(panels.items()):
        run = simulate(own, steps)
        found.append(outcome(run, own.labels))
        peaks.append(float(run.test_loss.max()))
        upper, lower = grid[:, column]
        upper.axhline(float(own.guessing), color="#444444", linewidth=0.9, linestyle=(0, (1, 2)), zorder=1)
        upper.plot(steps, run.train_loss, color=BLUE, linewidth=1.8)
        upper.plot(steps, run.test_loss, color=VERMILLION, linewidth=1.8, linestyle="--")
        lower.plot(steps, run.generaliser, color=GREEN, linewidth=1.8)
        lower.plot(steps, run.memoriser, color=PURPLE, linewidth=1.8, linestyle="--")
        tidy(upper, name)
        tidy(lower, "")
        draw_time_axis(lower, 1, STEPS, "step", zero=True)
        lower.set_xlabel("step (log scale)" if column == 1 else "", fontsize=LABEL)
        upper.tick_params(labelbottom=False, labelsize=TICK)
    grid[0, 0].set_ylabel("loss (nats)", fontsize=LABEL)
    grid[1, 0].set_ylabel("weight of the circuit", fontsize=LABEL)
    looks: tuple[tuple[str, str, Dashes], ...] = (
        ("train loss", BLUE, "-"),
        ("test loss", VERMILLION, "--"),
        ("loss of guessing, ln q", "#444444", ":"),
        ("weight w_g of the generaliser", GREEN, "-"),
        ("weight w_m of the memoriser", PURPLE, "--"),
    )
    add_key(figure, [Line2D([], [], color=c, linestyle=d, linewidth=1.8, label=name) for name, c, d in looks], 3)
    groks, never, at_once = found
    add_caption(
        figure,
        "Two circuits under plain gradient descent with weight decay, at Table 1 of Varma et al. 2023 (weight decay "
        "without the factor 1/2; the axis is linear from 0 to 1). Top: losses. Bottom: weights. A loss has fallen when "
        "it is below half of the loss of guessing. The values changed for (b) and (c) are ours. "
        f"(a) Train loss falls at {_at(groks.learned)}, test loss at {_at(groks.generalised)}, "
        f"{number(float(groks.delay))} times later, from {number(peaks[0])} nats. "
        f"(b) Norms swapped (P_g = 2, P_m = 1): train loss falls at {_at(never.learned)}, test loss "
        f"{_ever(never.generalised)} within {count(STEPS, 'step')}. "
        f"(c) Both second sub-weights start at 1: train loss falls at {_at(at_once.learned)}, test loss at "
        f"{_at(at_once.generalised)}; it is never above {number(peaks[2])} nats (guessing: "
        f"{number(float(Ingredients().guessing))}).",
    )
    return figure


def draw_phase_map() -> Figure:
    """Draws the delay of generalising over efficiency, slowness and weight decay.

    Ours, on the minimal example of Varma, Shah, Kenton, Kramár, Kumar 2023, arXiv 2309.02390, Section 3.

    Returns:
        The figure, with its caption.
    """
    found = phase_map(NORM_RATIOS, SEED_RATIOS, DECAYS)
    figure = new_figure(2, row_height=3.0)
    grid = figure.subplots(2, 2, sharex=True, sharey=True)
    norm = LogNorm(1, float(np.nanmax(found.outcome.delay)))
    for place, axes in enumerate(grid.ravel()):
        mesh = _draw_panel(axes, found, place, norm)
    for axes in grid[1]:
        axes.set_xlabel("norms, P_g / P_m (log scale)", fontsize=LABEL)
    for axes in grid[:, 0]:
        axes.set_ylabel("starts, generaliser's / memoriser's\n(log scale)", fontsize=LABEL)
    bar = figure.colorbar(mesh, ax=grid, fraction=0.04, pad=0.02)
    bar.set_label("delay: step of generalising / step of learning", fontsize=LABEL)
    bar.ax.yaxis.set_major_locator(FixedLocator(log_ticks(1, norm.vmax or 1)))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick_text(value)))
    bar.ax.tick_params(labelsize=TICK)
    add_key(
        figure,
        [
            *(
                Patch(label=name, facecolor=colour, hatch=hatch, edgecolor=HATCHES, linewidth=0.4)
                for name, (colour, hatch) in FLAT.items()
            ),
            Line2D([], [], color=VERMILLION, marker="s", markerfacecolor="none", linestyle="none", label="Table 1"),
            Line2D([], [], color=BLACK, linewidth=1.4, label="border of groks and at once"),
            Line2D([], [], color=BLACK, linewidth=1.2, linestyle="--", label="predicted bounds"),
        ],
        3,
    )
    add_caption(figure, _map_caption(found))
    return figure


def _draw_panel(axes: Axes, found: PhaseMap, place: int, norm: LogNorm) -> Any:
    """Draws the map of one weight decay."""
    x, y = _edges(found.norm_ratio), _edges(found.seed_ratio)
    phase, delay = found.outcome.phase[place], found.outcome.delay[place]
    decay = float(found.weight_decay[place])
    mesh = axes.pcolormesh(x, y, np.ma.masked_invalid(delay), cmap=colormaps["viridis_r"], norm=norm, rasterized=True)
    for name, (colour, hatch) in FLAT.items():
        cells = np.ma.masked_where(phase != name, np.zeros(phase.shape))
        if cells.count():
            axes.pcolor(
                x, y, cells, cmap=ListedColormap([colour]), hatch=hatch, edgecolor=HATCHES, linewidth=0, zorder=2
            )
    inner = np.where(phase == "groks", 1.0, np.where(phase == "at once", 0.0, np.nan))
    if np.nanmin(inner) < np.nanmax(inner):
        axes.contour(found.norm_ratio, found.seed_ratio, inner, levels=[0.5], colors=BLACK, linewidths=1.4, zorder=4)
    axes.set_xscale("log")
    axes.set_yscale("log")
    own = Ingredients(weight_decay=decay)
    bound = _efficiency_bound(own)
    if not math.isnan(bound):
        axes.axvline(bound, color=BLACK, linewidth=1.2, linestyle="--", zorder=3)
    if (phase == "groks").any():
        slow = _slowness_bound(float(np.asarray(own.labels)))
        axes.plot([x[0], x[-1] if math.isnan(bound) else bound], [slow] * 2, color=BLACK, linewidth=1.2, linestyle="--")
    for name in ("groks", "at once"):
        _name_phase(axes, found, phase == name, name)
    table = Ingredients()
    if decay == table.weight_decay:
        norms = np.divide(table.generaliser_norm, table.memoriser_norm)
        starts = np.divide(table.generaliser_second, table.memoriser_second)
        axes.plot(norms, starts, marker="s", markersize=9, markerfacecolor="none", color=VERMILLION, zorder=5)
    axes.set_xlim(x[0], x[-1])
    axes.set_ylim(y[0], y[-1])
    axes.xaxis.set_major_locator(FixedLocator([0.2, 0.5, 1, 2]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick_text(value)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick_text(value, powers=True)))
    axes.yaxis.set_minor_locator(NullLocator())
    tidy(axes, f"weight decay {number(decay)}")
    axes.grid(visible=False)
    axes.tick_params(labelsize=TICK)
    return mesh


def _name_phase(axes: Axes, found: PhaseMap, cells: NDArray[np.bool_], name: str) -> None:
    """Writes a phase's name in the middle of where it is among the more efficient generalisers, if it is there."""
    column = len(found.norm_ratio) // 4
    rows = np.flatnonzero(cells[:, column])
    if rows.size:
        middle = math.sqrt(found.seed_ratio[rows[0]] * found.seed_ratio[rows[-1]])
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "boxstyle": "round,pad=0.2"}
        axes.text(found.norm_ratio[column], middle, name, fontsize=TICK, ha="center", va="center", bbox=box, zorder=6)


def _map_caption(found: PhaseMap) -> str:
    """Says how to read the map, and what is found."""
    groks = found.outcome.phase == "groks"
    delays = [found.outcome.delay[place][groks[place]] for place in range(len(found.weight_decay))]
    told = [
        f"{number(float(decay))}: up to {number(float(np.max(delay)))}"
        if delay.size
        else f"{number(float(decay))}: none"
        for decay, delay in zip(found.weight_decay, delays, strict=True)
    ]
    return (
        "What two circuits come to, over how efficient the generaliser is (left of 1, it is the more efficient one), "
        "how small its second sub-weight starts, and weight decay; all else is as in Table 1 of Varma et al. 2023. "
        "Colour: how many times later test loss falls to half of that of guessing than train loss does. A run groks if "
        "test loss was above that of guessing when train loss fell, and generalises at once if not; it forgets if test "
        "loss fell and rose again. Every run has as many steps in units of decay, and so more of them where decay is "
        "weak. Dashed: the start below which a run groks, for decay towards 0; the efficiency at which test loss at "
        f"rest is half of that of guessing. Longest delay of those that grok, by weight decay: {'; '.join(told)}."
    )


def _at(step: NDArray[np.float64]) -> str:
    """A step as words."""
    return f"step {number(float(step))}"


def _ever(step: NDArray[np.float64]) -> str:
    """Whether something fell, and when, as words."""
    return "does not fall" if math.isnan(step) else f"falls at {_at(step)}"


def _edges(middles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where cells of a logarithmic axis begin and end, `(K + 1,)`."""
    between = np.sqrt(middles[:-1] * middles[1:])
    edges: NDArray[np.float64] = np.r_[middles[0] ** 2 / between[0], between, middles[-1] ** 2 / between[-1]]
    return edges


def _slowness_bound(labels: float) -> float:
    """Ratio of the starts at which test loss is that of guessing when train loss has fallen, for decay towards 0.

    Without decay w_g / w_m is the squared ratio of the starts, and train loss is ln(1 + (q − 1) e^(−w_g − w_m)).
    """
    fallen = math.log(labels - 1) - math.log(labels**SHARE - 1)

    def excess(generaliser: float) -> float:
        return float(losses(generaliser, fallen - generaliser, labels)[1]) - math.log(labels)

    generaliser = float(brentq(excess, 0.0, fallen / 2))
    return math.sqrt(generaliser / (fallen - generaliser))


def _efficiency_bound(own: Ingredients) -> float:
    """P_g / P_m at which test loss at rest has just fallen; NaN where it has at none of the map's, or at all."""

    def excess(log_ratio: float) -> float:
        own_norm = np.asarray(own.memoriser_norm) * math.exp(log_ratio)
        generaliser, memoriser = at_rest(replace(own, generaliser_norm=own_norm))
        return float(losses(generaliser, memoriser, own.labels)[1] - SHARE * own.guessing)

    low, high = math.log(NORM_RATIOS[0]), math.log(NORM_RATIOS[-1])
    return math.exp(brentq(excess, low, high)) if excess(low) < 0 < excess(high) else math.nan
