"""The contract of our data modules."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Literal

from lightning.pytorch import LightningDataModule
from torch import Tensor

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
