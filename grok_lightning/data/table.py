"""Finite training sets: rows drawn once, trained on many times."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, final

import torch
from torch import Tensor
from typing_extensions import override

from grok_lightning.batch import Batch, take
from grok_lightning.data.data import GrokData
from grok_lightning.data.loader import RowLoader, StepLoader
from grok_lightning.population import Coordinate, column, n_members, seeds
from grok_lightning.tasks import SparseParity, Split, Task, split_rows

__all__ = ["TableData"]


@final
class TableData(GrokData):
    """Training and held-out rows of a task, one set for every member.

    Validation has two loaders: the rows that are trained on and the held-out rows (the first alone where there are no
    held-out rows); ``test`` and ``predict`` look at the held-out rows.

    Coordinates: ``seed``; ``data_seed`` (rows, held-out rows, batch order, noise; ``seed`` where not given);
    ``train_size``; ``label_noise``; those of the task.

    Args:
        task: What to learn; by class path, ``SparseParity`` or one's own.
        train_size: Number of training rows of a member.
        n_held_out: Number of held-out rows of a member; fewer where the task has no more.
        batch_size: Rows of a batch; ``null`` takes the whole training set, one step an epoch.
        label_noise: Share of wrong training labels, in [0, 1].
        nested: Whether the rows of a smaller ``train_size`` are a prefix of those of a larger one.
        members: Table of coordinates; set from ``population`` by the command line.

    Raises:
        ValueError: If a number is out of range.

    """

    own_coordinates: ClassVar[frozenset[str]] = frozenset({"seed", "data_seed", "train_size", "label_noise"})

    def __init__(
        self,
        task: Task | None = None,
        train_size: int = 1000,
        n_held_out: int = 2000,
        batch_size: int | None = 32,
        label_noise: float = 0.0,
        nested: bool = True,
        members: Mapping[str, Sequence[Coordinate]] | None = None,
    ) -> None:
        super().__init__(members)
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1 (null takes all rows), got {batch_size}")
        self.task = SparseParity() if task is None else task
        self.train_size = train_size
        self.n_held_out = n_held_out
        self.batch_size = batch_size
        self.label_noise = label_noise
        self.nested = nested
        self.sizes = [_as_count(n) for n in column(self.members, "train_size", train_size)]
        # Split here, not in setup: rows are small and a number out of range is to be known before anything is written.
        self._splits = [self._split(e) for e in range(n_members(self.members))]
        self._tables: dict[torch.device, tuple[Batch, Batch]] = {}

    def _split(self, e: int) -> Split:
        own = {name: values[e] for name, values in self.members.items() if name in self.task.coordinates}
        return split_rows(
            self.task.for_member(own),
            seed=seeds(self.members, "data_seed")[e],
            train_size=self.sizes[e],
            n_held_out=self.n_held_out,
            label_noise=float(column(self.members, "label_noise", self.label_noise)[e]),
            nested=self.nested,
        )

    @property
    @override
    def n_inputs(self) -> int:
        return self.task.n_inputs

    @property
    @override
    def n_outputs(self) -> int:
        return self.task.n_outputs

    @property
    @override
    def coordinates(self) -> frozenset[str]:
        return self.own_coordinates | self.task.coordinates

    @property
    @override
    def steps_per_epoch(self) -> int:
        return 1 if self.batch_size is None else -(-max(self.sizes) // self.batch_size)

    @property
    @override
    def rows_per_step(self) -> int:
        return max(self.sizes) if self.batch_size is None else min(self.batch_size, max(self.sizes))

    @override
    def rows(self, split: Literal["train", "held_out"]) -> tuple[Tensor, Tensor]:
        """Return inputs ``(E, N, ...)`` and labels without noise ``(E, N)``.

        Raises:
            ValueError: If members differ in their number of rows: a rectangle would need invented ones.

        """
        table = self._on_device()[split == "held_out"]
        if table.weights is not None:
            raise ValueError(f"rows: members differ in their number of {split} rows")
        return table.inputs, table.targets if table.true_targets is None else table.true_targets

    @override
    def train_dataloader(self) -> StepLoader:
        trainer = self.trainer
        if trainer is None:
            raise ValueError("train_dataloader: batches follow the Trainer's step; attach one first")
        if trainer.accumulate_grad_batches != 1:
            raise ValueError(
                "accumulate_grad_batches: one batch is one optimizer step here; set data.batch_size instead"
            )
        if trainer.overfit_batches:  # type: ignore[attr-defined]  # set outside Trainer's own code
            raise ValueError("overfit_batches: set data.train_size instead")
        train, _ = self._on_device()
        return StepLoader(
            train.inputs,
            train.targets,
            sizes=self.sizes,
            seeds=seeds(self.members, "data_seed"),
            batch_size=self.batch_size,
            step=lambda: trainer.global_step,
            shard=(trainer.global_rank, trainer.world_size),
        )

    @override
    def val_dataloader(self) -> list[RowLoader]:
        return [self._row_loader(table) for table in self._on_device() if table.targets.shape[1]]

    @override
    def test_dataloader(self) -> list[RowLoader]:
        return self._held_out()

    @override
    def predict_dataloader(self) -> list[RowLoader]:
        return self._held_out()

    def _held_out(self) -> list[RowLoader]:
        _, held_out = self._on_device()
        if not held_out.targets.shape[1]:
            raise ValueError("there are no held-out rows: the training rows are the whole table")
        return [self._row_loader(held_out)]

    def _row_loader(self, table: Batch) -> RowLoader:
        rank, world = (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        return RowLoader(take(table, slice(rank, None, world)))

    def _on_device(self) -> tuple[Batch, Batch]:
        device = torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device
        if device not in self._tables:
            train = _stack([(s.inputs, s.targets, s.true_targets) for s in self._splits], device)
            held_out = _stack(
                [(s.held_out_inputs, s.held_out_targets, s.held_out_targets) for s in self._splits], device
            )
            self._tables = {device: (train, held_out)}
        return self._tables[device]


def _as_count(value: Coordinate) -> int:
    if value != int(value):
        raise ValueError(f"train_size: expected a whole number of rows, got {value}")
    return int(value)


def _stack(rows: Sequence[tuple[Tensor, Tensor, Tensor]], device: torch.device) -> Batch:
    """Stack the members' ``(inputs, targets, true_targets)``, padding the shorter ones with rows of weight 0."""
    sizes = [len(targets) for _, targets, _ in rows]
    longest = max(sizes)
    inputs, targets, true_targets = (
        torch.stack([_pad(member[i], longest) for member in rows]).to(device) for i in range(3)
    )
    weights = None
    if len(set(sizes)) > 1:
        count = torch.tensor(sizes).unsqueeze(1)
        weights = ((torch.arange(longest) < count).to(torch.get_default_dtype()) / count.clamp(min=1)).to(device)
    return Batch(inputs, targets, weights, None if torch.equal(targets, true_targets) else true_targets)


def _pad(tensor: Tensor, length: int) -> Tensor:
    """Lengthen the first axis with zeros, labels with ones: a padded label must still be a label."""
    fill = tensor.new_ones if tensor.ndim == 1 else tensor.new_zeros
    return torch.cat([tensor, fill((length - len(tensor), *tensor.shape[1:]))])
