"""LightningDataModules over tasks, and the in-memory loader that they share."""

from grok_lightning.data.data import GrokData
from grok_lightning.data.loader import RowLoader, StepLoader
from grok_lightning.data.table import TableData

__all__ = ["GrokData", "RowLoader", "StepLoader", "TableData"]
