"""The mathematics of the callbacks: pure functions of tensors, torch only."""

from .neuron_norms import neuron_norms
from .onset import Onsets, falling_onset, rising_onset
from .sparse_subnetwork import Sizes, in_top, is_right, linear_search, predictions, prefix_search, rank_neurons
from .subnetwork_comparison import average_sensitivity, mean_norms, overlap_with_largest, random_sets

__all__ = [
    "Onsets",
    "Sizes",
    "average_sensitivity",
    "falling_onset",
    "in_top",
    "is_right",
    "linear_search",
    "mean_norms",
    "neuron_norms",
    "overlap_with_largest",
    "predictions",
    "prefix_search",
    "random_sets",
    "rank_neurons",
    "rising_onset",
]
