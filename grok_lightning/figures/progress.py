"""Progress measures: losses with the key frequencies alone and without them, and how sparse the spectra are."""

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from grok_lightning.figures.curves import scale_loss
from grok_lightning.figures.panels import Look, draw_looks, finish_panels, name_panel
from grok_lightning.figures.reading import (
    Measured,
    at_the_end,
    curve_of,
    groups_of_kind,
    partner_of_kind,
    run_in_title,
    values_at,
)
from grok_lightning.figures.style import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    add_caption,
    new_figure,
    say_of_settings,
)
from grok_lightning.figures.words import decimals, listing, number, spread

__all__ = ["HOW_TO_READ", "draw_progress", "found_progress"]

KIND = "FourierLogitSplitter"

HOW_TO_READ = (
    "Restricted loss: of logits that keep the key frequencies alone, over all rows; excluded loss: of logits without "
    "them, on the rows trained on. Where restricted loss is low and excluded loss high, the trigonometric circuit does "
    "the work; restricted loss falling before held-out loss shows it forming before the network groks. Gini "
    "coefficient of a spectrum over frequencies: 0 where all are alike, towards 1 where a few hold everything."
)

LOSSES = {
    "train": Look("loss on rows trained on", BLUE, "--"),
    "held_out": Look("loss on held-out rows", VERMILLION, "-"),
    "restricted_loss": Look("restricted loss, all rows", GREEN, "-."),
    "excluded_loss": Look("excluded loss, rows trained on", PURPLE, ":"),
}
GINIS = {
    "embedding_gini": Look("Gini, embedding", SKY, "-"),
    "neuron_logit_gini": Look("Gini, from neurons to logits", ORANGE, "--"),
}
GINI_WORDS = {"embedding_gini": "of the embedding", "neuron_logit_gini": "of the map from neurons to logits"}
Curves = dict[str, NDArray[np.float64]]


def draw_progress(record: xr.DataTree) -> Figure:
    """Draws restricted and excluded loss beside the losses, and the Gini coefficients, one row of panels a group.

    After Nanda, Chan, Lieberum, Smith, Steinhardt 2023, arXiv 2301.05217, whose figures of progress measures they are.
    Ours differs: every member is drawn behind the mean; key frequencies are those of each measurement.

    Args:
        record: A record with a group of kind `FourierLogitSplitter`: `restricted_loss`, `excluded_loss` and, unless the
            monitor was not told where to look, `embedding_gini` and `neuron_logit_gini` over `(step, member)`. NaN is
            passed over. Losses on rows trained on and held out are those of a group of kind `LearningCurves`; onsets
            are marked where a group of kind `Onset` exists.

    Returns:
        The figure, with its caption.

    Raises:
        ValueError: If the record has no Fourier logits.
    """
    groups = groups_of_kind(record, KIND)
    if not groups:
        raise ValueError(f"the record has no group of kind {KIND}: nothing to draw")
    columns = 2 if any(_ginis(group) for group in groups.values()) else 1
    figure = new_figure(len(groups))
    grid = figure.subplots(len(groups), columns, squeeze=False)
    for row, (name, group) in enumerate(groups.items()):
        suffix = (f" ({name})" if len(groups) > 1 else "") + run_in_title(group)
        _draw_group(figure, grid[row : row + 1], record, group, suffix)
    add_caption(figure, f"{HOW_TO_READ} {found_progress(record)}")
    return figure


def _ginis(group: xr.Dataset) -> Curves:
    """The Gini coefficients of which anything was measured: `(T, E)` each."""
    found = {name: curve_of(group, name) for name in GINIS}
    return {name: values for name, values in found.items() if np.isfinite(values).any()}


def _draw_group(figure: Figure, grid: NDArray[Any], record: xr.DataTree, group: xr.Dataset, suffix: str) -> None:
    measured = Measured.of(record, group)
    steps = measured.steps
    losses = {name: measured.values(name) for name in ("restricted_loss", "excluded_loss")}
    axes = grid[0, 0]
    learning = partner_of_kind(record, "LearningCurves", group)
    curves = (
        {} if learning is None else {split: curve_of(learning, "loss", split=split) for split in ("train", "held_out")}
    )
    scale_loss(axes, np.concatenate([values.ravel() for values in (*losses.values(), *curves.values())]))
    if learning is not None:
        known = np.isfinite(np.stack([*curves.values()])).any(axis=(0, 2))
        own = learning["step"].values
        draw_looks(axes, measured, measured.clock.time(own), curves, LOSSES)
        steps = np.union1d(steps, own[known])
    draw_looks(axes, measured, measured.time, losses, LOSSES)
    name_panel(axes, f"Losses{suffix}", axes.get_ylabel())
    if grid.shape[1] == 2:
        _draw_ginis(grid[0, 1], measured, suffix)
    finish_panels(figure, grid, measured, steps, LOSSES | GINIS)


def _draw_ginis(axes: Axes, measured: Measured, suffix: str) -> None:
    draw_looks(axes, measured, measured.time, _ginis(measured.group), GINIS)
    name_panel(axes, f"Sparsity of spectra{suffix}", "Gini coefficient")
    axes.set_ylim(-0.02, 1.02)


# ---- what the run showed ---------------------------------------------------------------------------------------------


def found_progress(record: xr.DataTree) -> str:
    """What became of the progress measures: losses with and without the key frequencies, and Gini coefficients.

    Returns:
        Sentences with numbers computed from the record; medians and ranges are over the members of a setting, or over
        all members of a run beyond seven settings.
    """
    return say_of_settings(record, KIND, lambda part: _sentences(Measured.of(record, part)))


def _sentences(measured: Measured) -> list[str]:
    losses = {
        "restricted loss over all rows": _then_and_at_the_end(measured, measured.values("restricted_loss"), number),
        "excluded loss on the rows trained on": _then_and_at_the_end(
            measured, measured.values("excluded_loss"), number
        ),
    }
    ginis = {
        f"the Gini coefficient {GINI_WORDS[name]}": _then_and_at_the_end(measured, values, decimals)
        for name, values in _ginis(measured.group).items()
    }
    sentences = [f"{what}: {told}." for what, told in (losses | ginis).items() if told]
    return sentences or ["progress was not measured."]


def _then_and_at_the_end(measured: Measured, values: NDArray[np.float64], form: Callable[[Any], str]) -> str:
    """Values at memorisation, where members memorised, and at the end; empty where there are none."""
    moments = {"at the end": at_the_end(values)}
    if measured.onsets is not None:
        moments = {"at memorisation": values_at(values, measured.steps, measured.onsets.step["memorised"])} | moments
    told = {moment: known for moment, some in moments.items() if (known := some[np.isfinite(some)]).size}
    return listing([f"{spread(known, form)} {moment}" for moment, known in told.items()])
