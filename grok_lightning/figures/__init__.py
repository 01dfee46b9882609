"""Figures of a run: each one a pure function of its record, listed with the kinds of record group that it needs.

A new figure is a function in a file of its own and an entry in `FIGURES`; the report draws every figure that the record
has the groups for. No training, no Lightning, no display.
"""

from collections.abc import Callable
from dataclasses import dataclass

import xarray as xr
from matplotlib.figure import Figure

from grok_lightning.figures import (
    circuits,
    critical_size,
    curves,
    effective_sparsity,
    forgetting,
    frequencies,
    key_frequencies,
    neuron_frequencies,
    neuron_norms,
    progress,
    subnetworks,
)
from grok_lightning.figures.circuits import draw_circuits, found_circuits
from grok_lightning.figures.critical_size import draw_critical_size, found_critical_size
from grok_lightning.figures.curves import draw_curves, found_curves
from grok_lightning.figures.effective_sparsity import draw_effective_sparsity, found_effective_sparsity
from grok_lightning.figures.forgetting import draw_forgetting, found_forgetting
from grok_lightning.figures.frequencies import draw_frequencies, found_frequencies
from grok_lightning.figures.key_frequencies import draw_key_frequencies, found_key_frequencies
from grok_lightning.figures.neuron_frequencies import draw_neuron_frequencies, found_neuron_frequencies
from grok_lightning.figures.neuron_norms import draw_neuron_norms, found_neuron_norms
from grok_lightning.figures.progress import draw_progress, found_progress
from grok_lightning.figures.reading import groups_of_kind
from grok_lightning.figures.size_sweep import has_size_sweep
from grok_lightning.figures.subnetworks import draw_subnetworks, found_subnetworks

__all__ = [
    "FIGURES",
    "FigureSpec",
    "available",
    "draw_circuits",
    "draw_critical_size",
    "draw_curves",
    "draw_effective_sparsity",
    "draw_forgetting",
    "draw_frequencies",
    "draw_key_frequencies",
    "draw_neuron_frequencies",
    "draw_neuron_norms",
    "draw_progress",
    "draw_subnetworks",
    "found_circuits",
    "found_critical_size",
    "found_curves",
    "found_effective_sparsity",
    "found_forgetting",
    "found_frequencies",
    "found_key_frequencies",
    "found_neuron_frequencies",
    "found_neuron_norms",
    "found_progress",
    "found_subnetworks",
    "groups_of_kind",
]


@dataclass(frozen=True)
class FigureSpec:
    """A figure, and what it needs.

    Attributes:
        name: Its name, which is also the stem of its file.
        title: Its title, in words.
        kinds: The kinds of record group (class names of monitors) without which it cannot be drawn.
        draw: From a record to the figure, caption included.
        how_to_read: What is drawn; the first half of the caption.
        found: From a record to sentences saying what this run showed; the second half of the caption.
        arrays: Names of arrays that a group of the first of these kinds must have: a monitor may leave some out.
        applies: Whether the figure says anything of a record that has all that; None: of any.
    """

    name: str
    title: str
    kinds: tuple[str, ...]
    draw: Callable[[xr.DataTree], Figure]
    how_to_read: str
    found: Callable[[xr.DataTree], str]
    arrays: tuple[str, ...] = ()
    applies: Callable[[xr.DataTree], bool] | None = None


FIGURES: tuple[FigureSpec, ...] = (
    FigureSpec(
        name="curves",
        title="Accuracy and loss",
        kinds=("LearningCurves",),
        draw=draw_curves,
        how_to_read=curves.HOW_TO_READ,
        found=found_curves,
    ),
    FigureSpec(
        name="critical_size",
        title="Critical size of the training set",
        kinds=("Convergence", "LearningCurves"),
        draw=draw_critical_size,
        how_to_read=critical_size.HOW_TO_READ,
        found=found_critical_size,
        applies=has_size_sweep,
    ),
    FigureSpec(
        name="forgetting",
        title="Held-out accuracy by size of the training set",
        kinds=("Convergence", "LearningCurves"),
        draw=draw_forgetting,
        how_to_read=forgetting.HOW_TO_READ,
        found=found_forgetting,
        applies=has_size_sweep,
    ),
    FigureSpec(
        name="effective_sparsity",
        title="Effective sparsity",
        kinds=("SparseSubnetworkExtractor",),
        draw=draw_effective_sparsity,
        how_to_read=effective_sparsity.HOW_TO_READ,
        found=found_effective_sparsity,
    ),
    FigureSpec(
        name="subnetworks",
        title="Subnetworks",
        kinds=("SubnetworkComparison",),
        draw=draw_subnetworks,
        how_to_read=subnetworks.HOW_TO_READ,
        found=found_subnetworks,
    ),
    FigureSpec(
        name="neuron_norms",
        title="Norms of the neurons",
        kinds=("NeuronNormTracker",),
        draw=draw_neuron_norms,
        how_to_read=neuron_norms.HOW_TO_READ,
        found=found_neuron_norms,
    ),
    FigureSpec(
        name="circuits",
        title="The two circuits",
        kinds=("FourierLogitSplitter",),
        draw=draw_circuits,
        how_to_read=circuits.HOW_TO_READ,
        found=found_circuits,
    ),
    FigureSpec(
        name="progress",
        title="Progress measures",
        kinds=("FourierLogitSplitter",),
        draw=draw_progress,
        how_to_read=progress.HOW_TO_READ,
        found=found_progress,
    ),
    FigureSpec(
        name="frequencies",
        title="Power of each frequency",
        kinds=("FourierLogitSplitter",),
        draw=draw_frequencies,
        how_to_read=frequencies.HOW_TO_READ,
        found=found_frequencies,
        arrays=("power", "key"),
    ),
    FigureSpec(
        name="key_frequencies",
        title="Key frequencies and the initial embedding",
        kinds=("FourierLogitSplitter",),
        draw=draw_key_frequencies,
        how_to_read=key_frequencies.HOW_TO_READ,
        found=found_key_frequencies,
        arrays=key_frequencies.ARRAYS,
    ),
    FigureSpec(
        name="neuron_frequencies",
        title="Frequencies of the neurons",
        kinds=("FourierLogitSplitter",),
        draw=draw_neuron_frequencies,
        how_to_read=neuron_frequencies.HOW_TO_READ,
        found=found_neuron_frequencies,
        arrays=neuron_frequencies.ARRAYS,
    ),
)
"""All figures, in the order of a report."""


def available(record: xr.DataTree) -> tuple[FigureSpec, ...]:
    """The figures of a record: those whose groups it has and that apply to it, in the order of `FIGURES`."""
    return tuple(spec for spec in FIGURES if _can_be_drawn(spec, record))


def _can_be_drawn(spec: FigureSpec, record: xr.DataTree) -> bool:
    first, *others = spec.kinds
    if not groups_of_kind(record, first, spec.arrays) or not all(groups_of_kind(record, kind) for kind in others):
        return False
    return spec.applies is None or spec.applies(record)
