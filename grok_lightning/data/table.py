"""Finite training sets: rows drawn once, trained on many times."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, final

import torch
from torch import Tensor
from typing_extensions import override

from grok_lightning.batch import Batch
from grok_lightning.data.data import GrokData, SplitName
from grok_lightning.data.loader import EpochLoader
from grok_lightning.population import Coordinate, column, n_members, seeds
from grok_lightning.tasks import Split, Task, split_rows

__all__ = ["TableData"]


@final
class TableData(GrokData):
    """Training and held-out rows of a task, one set for every member.

    Validation has two loaders: the rows that are trained on and the held-out rows (the first alone where there are no
    held-out rows); ``test`` and ``predict`` look at the held-out rows.

    Coordinates: ``seed``; ``data_seed`` (rows, held-out rows, batch order, noise; ``seed`` where not given);
    ``train_size``; ``label_noise``; those of the task.

    Args:
        task: What to learn; by class path, ``SparseParity`` or one's own; ``null`` is (40, 3) parity.
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
        super().__init__(task, members)
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1 (null takes all rows), got {batch_size}")
        self.train_size = train_size
        self.n_held_out = n_held_out
        self.batch_size = batch_size
        self.label_noise = label_noise
        self.nested = nested
        self.sizes = [_as_count(n) for n in column(self.members, "train_size", train_size)]
        # Split here, not in setup: rows are small and a number out of range is to be known before anything is written.
        self._splits = [self._split(e) for e in range(n_members(self.members))]

    def _split(self, e: int) -> Split:
        return split_rows(
            self.task_of(e),
            seed=seeds(self.members, "data_seed")[e],
            train_size=self.sizes[e],
            n_held_out=self.n_held_out,
            label_noise=float(column(self.members, "label_noise", self.label_noise)[e]),
            nested=self.nested,
        )

    @property
    @override
    def splits(self) -> tuple[SplitName, ...]:
        held_out = any(len(split.held_out_targets) for split in self._splits)
        return ("train", "held_out") if held_out else ("train",)

    @property
    @override
    def steps_per_epoch(self) -> int:
        return 1 if self.batch_size is None else -(-max(self.sizes) // self.batch_size)

    @property
    @override
    def rows_per_step(self) -> int:
        return max(self.sizes) if self.batch_size is None else min(self.batch_size, max(self.sizes))

    @override
    def train_dataloader(self) -> EpochLoader:
        trainer = self.trainer_to_follow()
        train = self._table("train")
        return EpochLoader(
            train.inputs,
            train.targets,
            sizes=self.sizes,
            seeds=seeds(self.members, "data_seed"),
            batch_size=self.batch_size,
            step=lambda: trainer.global_step,
            shard=(trainer.global_rank, trainer.world_size),
        )

    @override
    def make_tables(self, device: torch.device) -> dict[SplitName, Batch]:
        train = [(s.inputs, s.targets, s.true_targets) for s in self._splits]
        held_out = [(s.held_out_inputs, s.held_out_targets, s.held_out_targets) for s in self._splits]
        return {"train": _stack(train, device), "held_out": _stack(held_out, device)}


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
