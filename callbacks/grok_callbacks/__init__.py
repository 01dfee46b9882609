"""Callbacks for watching networks learn, for any Lightning project: torch and lightning are all they need."""

from .curves import LearningCurves
from .fourier_logits import FourierLogitSplitter
from .intervention import Intervention
from .monitor import Monitor, callbacks_of
from .neuron_norms import NeuronNormTracker
from .onset import Onset, StopAfterOnset
from .parameter_norm import ParameterNorm
from .replay import Replay
from .schedule import AtEnd, EveryNSteps, EveryValidation, LogSpaced, Schedule
from .snapshots import Snapshots
from .sparse_subnetwork import SparseSubnetworkExtractor
from .subnetwork_comparison import SubnetworkComparison
from .weight_trajectory import WeightTrajectory

__all__ = [
    "AtEnd",
    "EveryNSteps",
    "EveryValidation",
    "FourierLogitSplitter",
    "Intervention",
    "LearningCurves",
    "LogSpaced",
    "Monitor",
    "NeuronNormTracker",
    "Onset",
    "ParameterNorm",
    "Replay",
    "Schedule",
    "Snapshots",
    "SparseSubnetworkExtractor",
    "StopAfterOnset",
    "SubnetworkComparison",
    "WeightTrajectory",
    "callbacks_of",
]
