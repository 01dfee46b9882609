"""The contract of our data modules."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from typing_extensions import override

from grok_lightning.batch import Batch
from grok_lightning.population import Coordinate, as_members

__all__ = ["GrokData"]


class GrokData(LightningDataModule, ABC):
    """Rows of an algorithmic task for every member of a population.

    Attributes:
        members: Table of coordinates.

    Args:
        members: Table of coordinates, equal-length lists; ``None`` is one member with seed 0.

    """

    def __init__(self, members: Mapping[str, Sequence[Coordinate]] | None = None) -> None:
        super().__init__()
        self.members = as_members(members)

    @override
    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Return our own batches as they are: they live on the device, and looking for tensors costs time."""
        if isinstance(batch, Batch) and batch.inputs.device == device:
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    @property
    @abstractmethod
    def n_inputs(self) -> int:
        """Width of a row."""

    @property
    @abstractmethod
    def n_outputs(self) -> int:
        """Number of logits that the labels need."""

    @property
    @abstractmethod
    def coordinates(self) -> frozenset[str]:
        """Names of the member coordinates that the data consume."""

    @property
    @abstractmethod
    def steps_per_epoch(self) -> int:
        """Number of optimizer steps in which the member with most rows sees each of its rows once."""

    @property
    @abstractmethod
    def rows_per_step(self) -> int:
        """Largest number of rows that a member sees in one step."""

    @abstractmethod
    def rows(self, split: Literal["train", "held_out"]) -> tuple[Tensor, Tensor]:
        """Return inputs ``(E, N, ...)`` and labels without noise ``(E, N)``, for monitors; never a batch order."""
