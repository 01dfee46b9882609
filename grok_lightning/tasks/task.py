"""The contract of a task."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor

__all__ = ["Task"]


class Task(ABC):
    """A rule that gives every input one label.

    A task of one's own says how wide a row is, how many outputs a network needs, what its inputs are and how they are
    labelled; splits, noise, batches and seeds are the data module's. Give :meth:`table` where all inputs can be listed,
    otherwise :meth:`draw`.

    Attributes:
        n_inputs: Width of a row.
        n_outputs: Number of logits: 1 for labels −1 and +1, the number of classes otherwise.
        n_tokens: Number of distinct tokens of a row; 0 where rows are numbers, not tokens.
        size: Number of distinct inputs, ``None`` for infinitely many.
        coordinates: Names of the member coordinates that :meth:`for_member` understands.

    """

    coordinates: ClassVar[frozenset[str]] = frozenset()

    n_inputs: int
    n_outputs: int
    n_tokens: int = 0
    size: int | None = None

    @abstractmethod
    def label(self, inputs: Tensor) -> Tensor:
        """Return the labels ``(N,)`` of inputs ``(N, n_inputs)``: −1.0 and +1.0, or int64 classes."""

    def table(self) -> Tensor | None:
        """Return all inputs ``(size, n_inputs)`` in a fixed order, ``None`` where there are too many to list."""
        return None

    def mirror(self) -> Tensor | None:
        """Return the row number, in the table, of each row with its operands swapped, ``(size,)``, int64.

        −1 where the table has no such row; a row that is its own swap has its own number. ``None`` where a task has no
        such notion.
        """
        return None

    def draw(self, n_rows: int, generator: torch.Generator) -> Tensor:
        """Draw inputs ``(n_rows, n_inputs)`` independently and uniformly; the first rows do not depend on ``n_rows``.

        Raises:
            NotImplementedError: If the task has neither this nor a table.

        """
        inputs = self.table()
        if inputs is None:
            raise NotImplementedError(f"{type(self).__name__} has neither table() nor draw()")
        return inputs[torch.randint(len(inputs), (n_rows,), generator=generator)]

    def for_member(self, coordinates: Mapping[str, int | float]) -> Self:
        """Return the task of a member with these coordinates (those of :attr:`coordinates` only)."""
        del coordinates
        return self
