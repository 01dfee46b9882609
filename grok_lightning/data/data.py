"""The contract of our data modules, and what they have in common."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor
from typing_extensions import override

from grok_lightning.batch import Batch, take
from grok_lightning.data.loader import RowLoader, StepLoader
from grok_lightning.population import Coordinate, SpreadsMembers, as_members, n_members, own_members
from grok_lightning.tasks import SparseParity, Task

__all__ = ["GrokData", "SplitName"]

SplitName: TypeAlias = Literal["train", "held_out"]


class GrokData(LightningDataModule, ABC):
    """Rows of an algorithmic task for every member of a population.

    Under a strategy that spreads members over processes (:class:`SpreadsMembers`) loaders, tables and rows are those of
    this process's members, whole; under data parallelism every process has its share of all members' rows.

    Validation has one loader for each of :attr:`splits`; ``test`` and ``predict`` look at the held-out rows.

    Attributes:
        members: Table of coordinates.
        task: What to learn.
        own_coordinates: Names of the member coordinates that the data consume, those of the task apart.

    Args:
        task: What to learn; ``None`` is ``SparseParity()``.
        members: Table of coordinates, equal-length lists; ``None`` is one member with seed 0.

    """

    own_coordinates: ClassVar[frozenset[str]]

    def __init__(self, task: Task | None, members: Mapping[str, Sequence[Coordinate]] | None) -> None:
        super().__init__()
        self.members = as_members(members)
        self.task = SparseParity() if task is None else task
        self._tables: dict[tuple[torch.device, int, range], dict[SplitName, Batch]] = {}

    @override
    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Return our own batches as they are: they live on the device, and looking for tensors costs time."""
        if isinstance(batch, Batch) and batch.inputs.device == device:
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    @property
    def n_inputs(self) -> int:
        """Width of a row."""
        return self.task.n_inputs

    @property
    def n_tokens(self) -> int:
        """Number of distinct tokens of a row; 0 where rows are numbers, not tokens."""
        return self.task.n_tokens

    @property
    def n_outputs(self) -> int:
        """Number of logits that the labels need."""
        return self.task.n_outputs

    @property
    def coordinates(self) -> frozenset[str]:
        """Names of the member coordinates that the data consume."""
        return self.own_coordinates | self.task.coordinates

    @property
    @abstractmethod
    def splits(self) -> tuple[SplitName, ...]:
        """Which rows the validation loaders have, in their order: those trained on, or held-out ones."""

    @property
    @abstractmethod
    def steps_per_epoch(self) -> int:
        """Number of optimizer steps in which the member with most rows sees each of its rows once; 0 if none ever does.

        Where it is 0, records and figures count in steps.
        """

    @property
    @abstractmethod
    def rows_per_step(self) -> int:
        """Largest number of rows that a member sees in one step."""

    @property
    def rows_version(self) -> int:
        """A number that is another when the rows of the splits are others than before."""
        return 0

    @abstractmethod
    def make_tables(self, device: torch.device) -> dict[SplitName, Batch]:
        """Return the rows of both splits as they are now, ``(E, N, ...)`` each, on a device: of :attr:`own_members`.

        Asked for once for every :attr:`rows_version`.
        """

    @property
    def own_members(self) -> range:
        """Which members this process has."""
        return own_members(None if self.trainer is None else self.trainer.strategy, n_members(self.members))

    @property
    def shard(self) -> tuple[int, int]:
        """``(rank, world)``: which share of its members' rows this process has."""
        if self.trainer is None or isinstance(self.trainer.strategy, SpreadsMembers):
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    @abstractmethod
    def most_rows(self, split: SplitName) -> int:
        """Return the largest number of rows of a split that any member of the whole population has now."""

    def rows(self, split: SplitName) -> tuple[Tensor, Tensor]:
        """Return inputs ``(E, N, ...)`` and labels without noise ``(E, N)``, for monitors; never a batch order.

        Labels that are random by intention are as they are trained on.

        Where members differ in their number of rows, N is the largest, of any process, and the rows of the others begin
        anew. A member that has none has padding.
        """
        table = self._table(split)
        targets = table.targets if table.true_targets is None else table.true_targets
        longest = self.most_rows(split)
        if table.weights is None and targets.shape[1] == longest:
            return table.inputs, targets
        if not targets.shape[1]:  # of this process no member has any
            rest = table.inputs.shape[2:]
            return table.inputs.new_zeros(len(targets), longest, *rest), targets.new_ones(len(targets), longest)
        real = torch.ones_like(targets, dtype=torch.bool) if table.weights is None else table.weights > 0
        sizes = real.sum(dim=1, keepdim=True).clamp(min=1)
        rows = torch.arange(longest, device=targets.device) % sizes
        members = torch.arange(len(targets), device=targets.device).unsqueeze(1)
        return table.inputs[members, rows], targets[members, rows]

    @abstractmethod
    @override
    def train_dataloader(self) -> StepLoader:
        """Return the loader of training batches."""

    @override
    def val_dataloader(self) -> list[RowLoader]:
        return [self._row_loader(split) for split in self.splits]

    @override
    def test_dataloader(self) -> list[RowLoader]:
        return self._held_out()

    @override
    def predict_dataloader(self) -> list[RowLoader]:
        return self._held_out()

    def task_of(self, member: int) -> Task:
        """Return the task as a member has it, by its own coordinates."""
        own = {name: values[member] for name, values in self.members.items() if name in self.task.coordinates}
        return self.task.for_member(own)

    def trainer_to_follow(self) -> Trainer:
        """Return the Trainer whose step the training batches follow.

        Raises:
            ValueError: If there is none yet, or one of its flags would change what a step or its rows are.

        """
        trainer = self.trainer
        if trainer is None:
            raise ValueError("train_dataloader: batches follow the Trainer's step; attach one first")
        if trainer.accumulate_grad_batches != 1:
            raise ValueError(
                "accumulate_grad_batches: one batch is one optimizer step here; set data.batch_size instead"
            )
        if trainer.overfit_batches:  # type: ignore[attr-defined]  # set outside Trainer's own code
            raise ValueError("overfit_batches: set data.train_size of TableData instead")
        return trainer

    def _held_out(self) -> list[RowLoader]:
        if "held_out" not in self.splits:
            raise ValueError("there are no held-out rows: the training rows are the whole table")
        return [self._row_loader("held_out")]

    def _row_loader(self, split: SplitName) -> RowLoader:
        rank, world = self.shard
        return RowLoader(take(self._table(split), slice(rank, None, world)))

    def _table(self, split: SplitName) -> Batch:
        device = torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device
        key = (device, self.rows_version, self.own_members)
        if key not in self._tables:
            self._tables = {key: self.make_tables(device)}
        return self._tables[key][split]
