"""Callbacks for watching networks learn, for any Lightning project: torch and lightning are all they need."""

from .convergence import Convergence, StopWhenConverged
from .curves import LearningCurves
from .dataset_shrink import DatasetShrink, shrink_again
from .fourier_logits import FourierLogitSplitter
from .intervention import Intervention
from .monitor import Monitor, callbacks_of
from .neuron_norms import NeuronNormTracker
from .onset import Onset, StopAfterOnset
from .parameter_norm import ParameterNorm
from .parity_circuits import ParityCircuits
from .replay import Replay
from .schedule import AtEnd, EveryNSteps, EveryValidation, LogSpaced, Schedule
from .shrink_accuracy import ShrinkAccuracy
from .snapshots import Snapshots
from .sparse_subnetwork import SparseSubnetworkExtractor
from .subnetwork_comparison import SubnetworkComparison
from .weight_trajectory import WeightTrajectory

__all__ = [
    "AtEnd",
    "Convergence",
    "DatasetShrink",
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
    "ParityCircuits",
    "Replay",
    "Schedule",
    "ShrinkAccuracy",
    "Snapshots",
    "SparseSubnetworkExtractor",
    "StopAfterOnset",
    "StopWhenConverged",
    "SubnetworkComparison",
    "WeightTrajectory",
    "callbacks_of",
    "shrink_again",
]
