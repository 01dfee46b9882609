"""LightningDataModules over tasks, and the in-memory loaders that they share."""

from grok_lightning.data.data import GrokData
from grok_lightning.data.loader import EpochLoader, FreshLoader, RowLoader, StepLoader
from grok_lightning.data.online import OnlineData
from grok_lightning.data.table import TableData

__all__ = ["EpochLoader", "FreshLoader", "GrokData", "OnlineData", "RowLoader", "StepLoader", "TableData"]
