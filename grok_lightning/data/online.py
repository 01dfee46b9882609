"""Training without a training set: fresh rows at every step."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, final

import torch
from torch import Tensor
from typing_extensions import override

from grok_lightning.batch import Batch
from grok_lightning.data.data import GrokData, SplitName
from grok_lightning.data.loader import FreshLoader
from grok_lightning.population import Coordinate, seeds
from grok_lightning.tasks import FreshRows, Task

__all__ = ["OnlineData"]

ROWS_OF_BLOCK = 2048
"""Rows drawn at once for a member: a draw costs far less in a block than in steps of its own."""
N_TRAIN_ROWS = 1000
"""Rows that monitors get for the split ``train``."""


@final
class OnlineData(GrokData):
    """Fresh rows of a task at every optimizer step, another stream of them for every member.

    As in Barak et al. 2022 (arXiv 2207.08799), where every update takes a new batch. Rows are drawn independently and
    uniformly from all that are not held out, so that a row may come again by chance. The rows of a step are a function
    of the member's ``data_seed``, the step and ``batch_size`` alone: a run resumes exactly at any step. There are no
    epochs of the data; records and figures count in steps.

    Validation has one loader, the held-out rows, at which ``test`` and ``predict`` look too: there is no set of rows
    trained on whose accuracy could be told, and nothing is memorised. Monitors that ask for rows trained on get the
    first 1,000, those of the first steps.

    Coordinates: ``seed``; ``data_seed`` (rows, held-out rows; ``seed`` where not given); those of the task.

    Args:
        task: What to learn; by class path, ``SparseParity`` or one's own; ``null`` is (40, 3) parity.
        batch_size: Rows of a step.
        n_held_out: Number of held-out rows of a member, at least 1.
        validate_every: Number of steps that Lightning is told are an epoch, and after which it validates. The
            Trainer's ``max_epochs`` and ``check_val_every_n_epoch`` count these.
        members: Table of coordinates; set from ``population`` by the command line.

    Raises:
        ValueError: If a number is out of range, or the held-out rows leave none to train on.

    """

    own_coordinates: ClassVar[frozenset[str]] = frozenset({"seed", "data_seed"})

    def __init__(
        self,
        task: Task | None = None,
        batch_size: int = 32,
        n_held_out: int = 2000,
        validate_every: int = 100,
        members: Mapping[str, Sequence[Coordinate]] | None = None,
    ) -> None:
        super().__init__(task, members)
        for name, number in [("batch_size", batch_size), ("validate_every", validate_every)]:
            if number < 1:
                raise ValueError(f"{name}: expected at least 1, got {number}")
        self.batch_size = batch_size
        self.n_held_out = n_held_out
        self.validate_every = validate_every
        self._steps_of_block = max(1, ROWS_OF_BLOCK // batch_size)
        # Here, not in setup: a number out of range is to be known before anything is written.
        self._sources = [
            FreshRows(self.task_of(e), seed=seed, n_held_out=n_held_out)
            for e, seed in enumerate(seeds(self.members, "data_seed"))
        ]

    @property
    @override
    def splits(self) -> tuple[SplitName, ...]:
        return ("held_out",)

    @property
    @override
    def steps_per_epoch(self) -> int:
        return 0

    @property
    @override
    def rows_per_step(self) -> int:
        return self.batch_size

    @override
    def train_dataloader(self) -> FreshLoader:
        trainer = self.trainer_to_follow()
        device = trainer.strategy.root_device
        return FreshLoader(
            lambda index: self._block(index, device),
            steps_of_block=self._steps_of_block,
            length=self.validate_every,
            step=lambda: trainer.global_step,
            shard=self.shard,
        )

    @override
    def most_rows(self, split: SplitName) -> int:
        return min(N_TRAIN_ROWS, self._steps_of_block * self.batch_size) if split == "train" else self.n_held_out

    @override
    def make_tables(self, device: torch.device) -> dict[SplitName, Batch]:
        # A copy of the first rows alone: the whole block need not be kept.
        first, labels = (
            rows.transpose(0, 1).flatten(1, 2)[:, :N_TRAIN_ROWS].clone() for rows in self._block(0, device)
        )
        own = [self._sources[e] for e in self.own_members]
        held_out = [(source.held_out_inputs, source.held_out_targets) for source in own]
        inputs, targets = (torch.stack(rows).to(device) for rows in zip(*held_out, strict=True))
        return {"train": Batch(first, labels), "held_out": Batch(inputs, targets)}

    def _block(self, index: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the rows of a block of steps: inputs ``(steps, E, B, ...)`` and targets ``(steps, E, B)``."""
        own = [self._sources[e] for e in self.own_members]
        shape = (self._steps_of_block, self.batch_size)
        blocks = [source.block(index, shape[0] * shape[1]) for source in own]
        inputs = torch.stack([inputs.reshape(*shape, *inputs.shape[1:]) for inputs, _ in blocks], dim=1)
        targets = torch.stack([targets.reshape(shape) for _, targets in blocks], dim=1)
        return inputs.to(device), targets.to(device)
