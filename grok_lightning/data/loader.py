"""Loaders without collation, workers or copies: the tables live on the device, whole.

They are objects with ``__iter__`` and ``__len__``: Lightning takes a list for a collection of loaders, and asks a
loader without a length for one batch too early.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, final

import torch
from torch import Tensor
from typing_extensions import override

from grok_lightning.batch import Batch, take
from grok_lightning.population import stream

__all__ = ["EpochLoader", "FreshLoader", "RowLoader", "StepLoader"]


class RowLoader:
    """All rows once, in order, in as few batches as the size allows: for validation.

    Args:
        rows: Rows of all members, ``(E, N, ...)`` each; ``weights`` marks padding with 0.
        batch_size: Largest number of rows of one member in a batch.

    """

    def __init__(self, rows: Batch, batch_size: int = 4096) -> None:
        self.rows = rows
        self.batch_size = batch_size

    def __len__(self) -> int:
        """Return the number of batches."""
        # Never 0: a process whose share is empty takes part in the validation all the same.
        return max(1, -(-self.rows.targets.shape[1] // self.batch_size))

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches of consecutive rows."""
        for i in range(len(self)):
            start = i * self.batch_size
            yield take(self.rows, slice(start, start + self.batch_size))


class StepLoader(ABC):
    """Training batches as a function of the optimizer step.

    Because a batch depends on nothing but the step, a run resumes exactly at any step.

    Args:
        step: Returns the number of optimizer steps taken so far.
        shard: ``(rank, world)``: this process takes every ``world``-th row from ``rank`` on; the weights are such that
            gradients *averaged* over processes are those of the whole batch.

    """

    def __init__(self, step: Callable[[], int], shard: tuple[int, int] = (0, 1)) -> None:
        self._step = step
        self._rank, self._world = shard

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of batches in what Lightning calls an epoch."""

    @abstractmethod
    def batch(self, step: int) -> Batch:
        """Return the batch of step ``step``: inputs ``(E, B, ...)``, targets ``(E, B)``, weights where needed."""

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of the coming steps, one Lightning epoch of them."""
        for _ in range(len(self)):
            yield self.batch(self._step())

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the batches follow from the step. Its being there tells Lightning that it can resume."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take nothing."""
        del state_dict

    def _shard(self, inputs: Tensor, targets: Tensor, weights: Tensor | None) -> Batch:
        if self._world == 1:
            return Batch(inputs, targets, weights)
        if weights is None:
            device = targets.device
            weights = torch.full(targets.shape, 1 / targets.shape[1], dtype=torch.float64, device=device)
        mine = slice(self._rank, None, self._world)
        return Batch(inputs[:, mine], targets[:, mine], weights[:, mine] * self._world)


@final
class EpochLoader(StepLoader):
    """Batches of a finite training set, in epochs.

    Member e with n_e rows sees, at step s, batch ``s mod m_e`` of epoch ``s // m_e``, where ``m_e = ceil(n_e / B)``; an
    epoch is a permutation of its rows, drawn from the member's stream for that epoch, and its last batch is short. A
    member therefore sees exactly what it would see alone, whatever the sizes of the others; short batches are padded
    with rows of weight 0.

    Args:
        inputs: ``(E, N, ...)``, padded to the longest member.
        targets: ``(E, N)``.
        sizes: n_e, number of rows of each member.
        seeds: Seed of each member's batch order.
        batch_size: B, or ``None`` for the whole training set in one batch (its order is then not drawn).
        step: Returns the number of optimizer steps taken so far.
        shard: ``(rank, world)``, the share of this process.

    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        sizes: Sequence[int],
        seeds: Sequence[int],
        batch_size: int | None,
        step: Callable[[], int],
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        super().__init__(step, shard)
        self._inputs = inputs
        self._targets = targets
        self._sizes = list(sizes)
        self._seeds = list(seeds)
        self._batch_size = batch_size
        self._steps = [1 if batch_size is None else -(-n // batch_size) for n in self._sizes]
        self._epochs = [-1] * len(self._sizes)
        self._shuffled = (inputs, targets)
        self._same_size = len(set(self._sizes)) == 1

    @override
    def __len__(self) -> int:
        """Return the number of batches in an epoch of the member with most rows."""
        return max(self._steps)

    @override
    def batch(self, step: int) -> Batch:
        inputs, targets = self._epoch_of(step)
        if self._same_size:
            return self._shard(*self._slice(inputs, targets, step))
        return self._shard(*self._ragged(inputs, targets, step))

    def _epoch_of(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the tables in the order of the epochs that the members are in at ``step``."""
        if self._batch_size is None:
            return self._inputs, self._targets
        epochs = [step // steps for steps in self._steps]
        if epochs != self._epochs:
            # Fresh tables, not the last epoch's overwritten: somebody may still hold a batch of it.
            self._shuffled = (self._shuffled[0].clone(), self._shuffled[1].clone())
            for e, (epoch, size) in enumerate(zip(epochs, self._sizes, strict=True)):
                if epoch != self._epochs[e]:
                    order = torch.randperm(size, generator=stream(self._seeds[e], f"batch order of epoch {epoch}"))
                    order = order.to(self._inputs.device)
                    torch.index_select(self._inputs[e], 0, order, out=self._shuffled[0][e, :size])
                    torch.index_select(self._targets[e], 0, order, out=self._shuffled[1][e, :size])
            self._epochs = epochs
        return self._shuffled

    def _slice(self, inputs: Tensor, targets: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor | None]:
        size = self._batch_size or self._sizes[0]
        start = step % self._steps[0] * size
        stop = min(start + size, self._sizes[0])
        return inputs[:, start:stop], targets[:, start:stop], None

    def _ragged(self, inputs: Tensor, targets: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor]:
        starts = [step % steps * (self._batch_size or 0) for steps in self._steps]
        counts = [min(self._batch_size or n, n - start) for start, n in zip(starts, self._sizes, strict=True)]
        device = inputs.device
        position = torch.arange(max(counts), device=device)
        count = torch.tensor(counts, device=device).unsqueeze(1)
        rows = torch.tensor(starts, device=device).unsqueeze(1) + torch.minimum(position, count - 1)
        members = torch.arange(len(counts), device=device).unsqueeze(1)
        # In float64: a third in float32 would be the error of a float64 run.
        weights = (position < count).to(torch.float64) / count
        return inputs[members, rows], targets[members, rows], weights


@final
class FreshLoader(StepLoader):
    """Batches that are drawn and never seen again, some steps' rows at once.

    Args:
        block: Returns the rows of block b, steps ``b * steps_of_block`` and the next: inputs ``(steps, E, B, ...)``
            and targets ``(steps, E, B)``.
        steps_of_block: Number of steps in a block.
        length: Number of batches in what Lightning calls an epoch.
        step: Returns the number of optimizer steps taken so far.
        shard: ``(rank, world)``, the share of this process.

    """

    def __init__(
        self,
        block: Callable[[int], tuple[Tensor, Tensor]],
        steps_of_block: int,
        length: int,
        step: Callable[[], int],
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        super().__init__(step, shard)
        self._block = block
        self._steps_of_block = steps_of_block
        self._length = length
        self._current: tuple[int, tuple[Tensor, Tensor]] | None = None

    @override
    def __len__(self) -> int:
        return self._length

    @override
    def batch(self, step: int) -> Batch:
        index, i = divmod(step, self._steps_of_block)
        if self._current is None or self._current[0] != index:
            self._current = (index, self._block(index))
        inputs, targets = self._current[1]
        return self._shard(inputs[i], targets[i], None)
