"""Callbacks for watching networks learn, for any Lightning project: torch and lightning are all they need."""

from .curves import LearningCurves
from .intervention import Intervention
from .monitor import Monitor, callbacks_of
from .neuron_norms import NeuronNormTracker
from .onset import Onset, StopAfterOnset
from .schedule import EveryNSteps, EveryValidation, LogSpaced, Schedule

__all__ = [
    "EveryNSteps",
    "EveryValidation",
    "Intervention",
    "LearningCurves",
    "LogSpaced",
    "Monitor",
    "NeuronNormTracker",
    "Onset",
    "Schedule",
    "StopAfterOnset",
    "callbacks_of",
]
