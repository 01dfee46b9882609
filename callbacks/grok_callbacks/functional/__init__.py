"""The mathematics of the callbacks: pure functions of tensors, torch only."""

from .neuron_norms import neuron_norms
from .onset import Onsets, falling_onset, rising_onset

__all__ = ["Onsets", "falling_onset", "neuron_norms", "rising_onset"]
