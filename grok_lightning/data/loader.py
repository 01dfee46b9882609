"""Loaders without collation, workers or copies: the tables live on the device, whole.

They are objects with ``__iter__`` and ``__len__``: Lightning takes a list for a collection of loaders, and asks a
loader without a length for one batch too early.
"""

from abc import ABC, abstractmethod
from bisect import bisect_right
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

    Lightning asks for the number of batches once, before training. Where the rows become others as training goes on,
    that number is of as many rows as there may ever be; the batches that are not needed come last and are empty.

    Args:
        rows: Rows of all members, ``(E, N, ...)`` each, or a function that returns them as they are now; ``weights``
            marks padding with 0.
        batch_size: Largest number of rows of one member in a batch.
        most: Largest N that there may ever be; that of ``rows`` if ``None``, which then must not be a function.

    """

    def __init__(self, rows: Batch | Callable[[], Batch], batch_size: int = 4096, most: int | None = None) -> None:
        if most is None:
            assert isinstance(rows, Batch)
            most = rows.targets.shape[1]
        self._rows = rows
        self._most = most
        self.batch_size = batch_size

    def __len__(self) -> int:
        """Return the number of batches."""
        # Never 0: a process whose share is empty takes part in the validation all the same.
        return max(1, -(-self._most // self.batch_size))

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches of consecutive rows."""
        rows = self._rows if isinstance(self._rows, Batch) else self._rows()
        for i in range(len(self)):
            start = i * self.batch_size
            yield take(rows, slice(start, start + self.batch_size))


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

    def _shard(
        self, inputs: Tensor, targets: Tensor, weights: Tensor | None, counts: Sequence[int] | None = None
    ) -> Batch:
        if self._world == 1:
            return Batch(inputs, targets, weights, counts=None if counts is None else tuple(counts))
        if weights is None:
            device = targets.device
            weights = torch.full(targets.shape, 1 / targets.shape[1], dtype=torch.float64, device=device)
        mine = slice(self._rank, None, self._world)
        if counts is not None:
            counts = tuple(len(range(count)[mine]) for count in counts)
        return Batch(inputs[:, mine], targets[:, mine], weights[:, mine] * self._world, counts=counts)


@final
class EpochLoader(StepLoader):
    """Batches of a finite training set, in epochs.

    Member e with n_e rows sees, at step s, batch ``s mod m_e`` of epoch ``s // m_e``, where ``m_e = ceil(n_e / B)``; an
    epoch is a permutation of its rows, drawn from the member's stream for that epoch, and its last batch is short. A
    member therefore sees exactly what it would see alone, whatever the sizes of the others; short batches are padded
    with rows of weight 0.

    From some step on a member may see fewer rows (:meth:`keep_rows`): its epochs then count from that step, and their
    orders come from streams of their own. What Lightning calls an epoch stays as long as it was.

    Args:
        inputs: ``(E, N, ...)``, padded to the longest member.
        targets: ``(E, N)``.
        sizes: n_e, number of rows of each member.
        seeds: Seed of each member's batch order.
        batch_size: B, or ``None`` for the whole training set in one batch (its order is then not drawn).
        step: Returns the number of optimizer steps taken so far.
        shard: ``(rank, world)``, the share of this process.
        length: Number of batches in what Lightning calls an epoch; if ``None``, those of the member with most rows.

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
        length: int | None = None,
    ) -> None:
        super().__init__(step, shard)
        self._table = (inputs, targets)
        self._all_sizes = list(sizes)
        self._seeds = list(seeds)
        self._batch_size = batch_size
        self._length = max(self._batches(n) for n in sizes) if length is None else length
        self.keep_rows([None] * len(self._seeds), [-1] * len(self._seeds))

    @override
    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return self._length

    def keep_rows(self, kept: Sequence[Tensor | None], since: Sequence[int]) -> None:
        """Let members see some of their rows only.

        Args:
            kept: Of each member the rows ``(n,)``, int64, that it sees, at least one; all of them if ``None``.
            since: Of each member the first step at which it sees them alone; not looked at where it sees all.

        """
        self._kept = [None if rows is None else rows.to(self._table[0].device) for rows in kept]
        self._since = list(since)
        self._turns = sorted({turn for rows, turn in zip(kept, since, strict=True) if rows is not None})
        self._enter(0)

    @override
    def batch(self, step: int) -> Batch:
        if self._turns and (period := bisect_right(self._turns, step)) != self._period:
            self._enter(period)
        inputs, targets = self._epoch_of(step)
        if self._in_step:
            return self._shard(*self._slice(inputs, targets, step))
        return self._shard(*self._ragged(inputs, targets, step))

    def _batches(self, size: int) -> int:
        """Return in how many batches a member with so many rows sees each once."""
        return 1 if self._batch_size is None else -(-size // self._batch_size)

    def _enter(self, period: int) -> None:
        """Be ready for the steps between two changes of rows, by their number; 0 is before the first."""
        begun = self._turns[:period]
        kept = [rows if turn in begun else None for rows, turn in zip(self._kept, self._since, strict=True)]
        sizes = [n if rows is None else len(rows) for n, rows in zip(self._all_sizes, kept, strict=True)]
        self._period = period
        self._sizes = sizes
        self._first = [0 if rows is None else turn for rows, turn in zip(kept, self._since, strict=True)]
        self._fewer = [rows is not None for rows in kept]
        self._steps = [self._batches(n) for n in sizes]
        self._epochs = [-1] * len(sizes)
        self._rows = self._table
        if begun:
            inputs, targets = (rows[:, : max(sizes)].clone() for rows in self._table)
            for e, rows in enumerate(kept):
                if rows is not None:
                    inputs[e, : len(rows)] = self._table[0][e, rows]
                    targets[e, : len(rows)] = self._table[1][e, rows]
            self._rows = (inputs, targets)
        self._shuffled = self._rows
        together = self._batch_size is None or len(set(self._first)) == 1
        self._in_step = together and len(set(sizes)) == 1

    def _epoch_of(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the tables in the order of the epochs that the members are in at ``step``."""
        if self._batch_size is None:
            return self._rows
        epochs = [(step - first) // steps for first, steps in zip(self._first, self._steps, strict=True)]
        if epochs != self._epochs:
            # Fresh tables, not the last epoch's overwritten: somebody may still hold a batch of it.
            self._shuffled = (self._shuffled[0].clone(), self._shuffled[1].clone())
            for e, (epoch, size) in enumerate(zip(epochs, self._sizes, strict=True)):
                if epoch != self._epochs[e]:
                    order = torch.randperm(size, generator=self._order_of(e, epoch))
                    order = order.to(self._rows[0].device)
                    torch.index_select(self._rows[0][e], 0, order, out=self._shuffled[0][e, :size])
                    torch.index_select(self._rows[1][e], 0, order, out=self._shuffled[1][e, :size])
            self._epochs = epochs
        return self._shuffled

    def _order_of(self, e: int, epoch: int) -> torch.Generator:
        if self._fewer[e]:
            return stream(self._seeds[e], f"batch order, of fewer rows, of epoch {epoch}")
        return stream(self._seeds[e], f"batch order of epoch {epoch}")

    def _slice(self, inputs: Tensor, targets: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor | None]:
        size = self._batch_size or self._sizes[0]
        start = (step - self._first[0]) % self._steps[0] * size
        stop = min(start + size, self._sizes[0])
        return inputs[:, start:stop], targets[:, start:stop], None

    def _ragged(self, inputs: Tensor, targets: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor, list[int]]:
        at = [(step - first) % steps for first, steps in zip(self._first, self._steps, strict=True)]
        starts = [i * (self._batch_size or 0) for i in at]
        counts = [min(self._batch_size or n, n - start) for start, n in zip(starts, self._sizes, strict=True)]
        device = inputs.device
        position = torch.arange(max(counts), device=device)
        count = torch.tensor(counts, device=device).unsqueeze(1)
        rows = torch.tensor(starts, device=device).unsqueeze(1) + torch.minimum(position, count - 1)
        members = torch.arange(len(counts), device=device).unsqueeze(1)
        # In float64: a third in float32 would be the error of a float64 run.
        weights = (position < count).to(torch.float64) / count
        return inputs[members, rows], targets[members, rows], weights, counts


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
