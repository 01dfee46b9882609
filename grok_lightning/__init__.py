"""Study grokking with PyTorch Lightning: populations of networks that memorise first and generalise much later."""

from importlib.metadata import version

from grok_lightning.data import OnlineData, TableData
from grok_lightning.lottery import LotteryTicket
from grok_lightning.memory import MemoryEstimate
from grok_lightning.modules import MLP, GrokModule, Transformer
from grok_lightning.runs import LastCheckpoint, Recorder, Run
from grok_lightning.runs import open_run as open
from grok_lightning.storage import AtomicCheckpointIO
from grok_lightning.strategies import PopulationStrategy
from grok_lightning.tasks import ModularArithmetic, SparseParity, Task

__all__ = [
    "MLP",
    "AtomicCheckpointIO",
    "GrokModule",
    "LastCheckpoint",
    "LotteryTicket",
    "MemoryEstimate",
    "ModularArithmetic",
    "OnlineData",
    "PopulationStrategy",
    "Recorder",
    "Run",
    "SparseParity",
    "TableData",
    "Task",
    "Transformer",
    "open",
]

__version__ = version("grok-lightning")
