"""Algorithmic problems, pure torch: what the inputs are, which label each has, and how rows are split."""

from grok_lightning.tasks.fresh import FreshRows
from grok_lightning.tasks.modular import OPERATIONS, ModularArithmetic
from grok_lightning.tasks.parity import SparseParity
from grok_lightning.tasks.split import Split, corrupt, split_rows
from grok_lightning.tasks.task import Task

__all__ = [
    "OPERATIONS",
    "FreshRows",
    "ModularArithmetic",
    "SparseParity",
    "Split",
    "Task",
    "corrupt",
    "split_rows",
]
