"""Panels with several curves: colours tell curves apart in one setting, else settings, with dashes for the curves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from grok_lightning.figures.reading import EVENTS, Measured, settings
from grok_lightning.figures.style import (
    LABEL,
    STRIP,
    Dashes,
    add_key,
    draw_mean,
    draw_step_axis,
    heighten,
    mark_onsets,
    mark_onsets_above,
    onset_handles,
    palette,
    say_in,
    setting_handles,
    tidy,
)

__all__ = ["Look", "draw_looks", "finish_panels", "name_panel"]

GREY = "#444444"


@dataclass(frozen=True)
class Look:
    """How one of the curves of a figure looks, and what the key calls it.

    Attributes:
        words: What the key calls it; empty for what is named otherwise.
        colour: Its colour where there is one setting.
        dashes: Its dashes where there are several.
        thin: Whether it is what a curve is compared with, such as a null model: a thin line of the mean alone, dashed
            in one setting and dotted in several, in the colour of that curve.
    """

    words: str
    colour: str
    dashes: Dashes
    thin: bool = False

    def dashes_among(self, n_settings: int) -> Dashes:
        """Its dashes where there are so many settings."""
        if self.thin:
            return "--" if n_settings == 1 else ":"
        return "-" if n_settings == 1 else self.dashes


def draw_looks(
    axes: Axes,
    measured: Measured,
    time: NDArray[np.float64],
    curves: Mapping[str, NDArray[np.float64]],
    looks: Mapping[str, Look],
) -> None:
    """Draws curves of every setting: mean and, while there are few settings, members; bands where there is one.

    Args:
        axes: Where to; with its scale set already.
        measured: The group whose settings count.
        time: Moments in the unit of the time axis, `(T,)`.
        curves: `(T, E)` each, with the members of the group; where all is NaN, or where there are too many settings for
            thin lines, nothing is drawn. Labels of the lines: name, then setting.
        looks: A look for each of the curves.
    """
    found = settings(measured.group)
    key = palette(found)
    for name, values in curves.items():
        look = looks[name]
        for setting, colour in zip(found, key.colours, strict=True):
            if key.few or not look.thin:
                draw_mean(
                    axes,
                    time,
                    values[:, setting.members],
                    label=f"{name} {setting.label}".strip(),
                    colour=look.colour if len(found) == 1 else colour,
                    dashes=look.dashes_among(len(found)),
                    behind=key.few and not look.thin,
                    band=len(found) == 1,
                    thin=look.thin,
                )


def name_panel(axes: Axes, title: str, unit: str) -> None:
    """Gives a panel its title and the label of its y axis."""
    tidy(axes, title)
    axes.set_ylabel(unit, fontsize=LABEL)


def finish_panels(
    figure: Figure,
    grid: NDArray[Any],
    measured: Measured,
    steps: NDArray[Any],
    looks: Mapping[str, Look],
    more: Sequence[Artist] = (),
) -> None:
    """Marks the onsets, makes the time axes, says in a panel that is empty why it is, and draws the key.

    Args:
        figure: The figure.
        grid: Panels over time, `(rows, columns)`.
        measured: The group whose settings and onsets count.
        steps: All the steps at which anything in the panels was measured, `(T,)`: the panels share one time axis.
        looks: Looks of the curves of the figure; the key names those that are drawn.
        more: Entries of the key besides.
    """
    found = settings(measured.group)
    key = palette(found)
    panels = list(grid.ravel())
    names = [_names(axes) & set(looks) for axes in panels]
    for axes, drawn in zip(panels, names, strict=True):
        if not drawn:
            say_in(axes, "not measured")
        if len(found) == 1:
            mark_onsets(axes, measured.clock, measured.onsets, found[0].members)
        draw_step_axis(axes, measured.clock, steps)
    key.add_colourbar(figure, panels)
    handles: list[Artist] = [] if len(found) == 1 else setting_handles(found, key)
    handles += [_handle(look, len(found)) for name, look in looks.items() if look.words and name in set().union(*names)]
    if len(found) == 1 and len(found[0].members) > 1:
        handles.append(Patch(color="#777777", alpha=0.3, linewidth=0, label="± 1 standard deviation"))
    handles += more
    if len(found) == 1:
        lines, labels = panels[0].get_legend_handles_labels()
        handles += [line for line, label in zip(lines, labels, strict=True) if label.startswith(EVENTS)]
    elif key.few and measured.onsets is not None and measured.onsets.any_later:
        # Once: the panels beneath have the same time axis.
        for axes in grid[0]:
            mark_onsets_above(axes, measured.clock, measured.onsets, found, key)
        heighten(figure, (STRIP + 4) * len(found))
        handles += onset_handles()
    add_key(figure, handles, 3)


def _names(axes: Axes) -> set[str]:
    """First words of the labels of the lines of a panel: names of curves, among others."""
    return {str(line.get_label()).split(" ")[0] for line in axes.get_lines()}


def _handle(look: Look, n_settings: int) -> Line2D:
    return Line2D(
        [],
        [],
        color=look.colour if n_settings == 1 else GREY,
        linestyle=look.dashes_among(n_settings),
        linewidth=1.0 if look.thin else 1.8,
        label=look.words,
    )
