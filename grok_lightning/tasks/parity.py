"""Sparse parity: the product of k hidden bits out of n."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, Self, TypeAlias

import torch
from torch import Tensor

from grok_lightning.population import stream
from grok_lightning.tasks.task import Task

__all__ = ["SparseParity", "Subset"]

Subset: TypeAlias = Literal["first", "drawn"] | Sequence[int]

LISTABLE_BITS = 16
"""Up to this many bits all 2^n inputs are listed; beyond, rows are drawn and checked for repeats."""


class SparseParity(Task):
    """(n, k) parity: inputs x in {−1, +1}^n, label ``prod(x[i] for i in S)`` for a secret set S of k positions.

    The task of Merrill, Tsilivis, Shukla 2023 (arXiv 2303.11873, section 2) and Barak et al. 2022 (arXiv 2207.08799).
    The paper speaks of a hidden set, its code takes the first k bits; so does ``first`` here. As the initial weights
    treat all positions alike, the choice changes nothing but the names of the positions.

    Coordinates: ``subset_seed``, with ``subset="drawn"``: members with different secrets.

    Args:
        n: Number of bits, at least 1.
        k: Size of the secret set, 1 to n.
        subset: ``first``: the first k positions; ``drawn``: at random from ``subset_seed``; or the k positions.
        subset_seed: Seed of the secret set; one for all members unless a coordinate says otherwise.

    Attributes:
        secret: The positions in S, ascending.

    Raises:
        ValueError: If n, k or ``subset`` is out of range, or there are not k different positions.

    """

    coordinates: ClassVar[frozenset[str]] = frozenset({"subset_seed"})

    def __init__(self, n: int = 40, k: int = 3, subset: Subset = "first", subset_seed: int = 0) -> None:
        if n < 1:
            raise ValueError(f"SparseParity: n must be at least 1, got n = {n}")
        if not 1 <= k <= n:
            raise ValueError(f"SparseParity: k must lie in 1 to n, got k = {k}, n = {n}")
        if isinstance(subset, str) and subset not in ("first", "drawn"):
            raise ValueError(f"SparseParity: subset must be 'first', 'drawn' or a list of positions, got '{subset}'")
        if not isinstance(subset, str) and (len(set(subset)) != k or len(subset) != k):
            raise ValueError(f"SparseParity: subset must have k = {k} different positions, got {list(subset)}")
        if not isinstance(subset, str) and not all(0 <= position < n for position in subset):
            raise ValueError(f"SparseParity: positions of subset must lie in 0 to {n - 1}, got {list(subset)}")
        self.n = n
        self.k = k
        self.subset: Subset = subset
        self.subset_seed = subset_seed
        self.n_inputs = n
        self.n_outputs = 1
        self.size = 2**n
        if not isinstance(subset, str):
            self.secret = torch.tensor(sorted(subset))
        elif subset == "first":
            self.secret = torch.arange(k)
        else:
            self.secret = torch.randperm(n, generator=stream(subset_seed, "secret subset"))[:k].sort().values

    def label(self, inputs: Tensor) -> Tensor:
        """Return the parities ``(N,)``, −1.0 or +1.0, of inputs ``(N, n)``."""
        return inputs[:, self.secret].prod(dim=1)

    def table(self) -> Tensor | None:
        """Return all inputs ``(2^n, n)``, counting in binary with −1 for a zero bit; ``None`` above 16 bits."""
        if self.n > LISTABLE_BITS:
            return None
        bits = torch.arange(self.n - 1, -1, -1)
        return ((torch.arange(2**self.n).unsqueeze(1) >> bits) & 1).to(torch.float32) * 2 - 1

    def draw(self, n_rows: int, generator: torch.Generator) -> Tensor:
        """Draw inputs ``(n_rows, n)``, every bit fair and independent."""
        return torch.randint(2, (n_rows, self.n), generator=generator).to(torch.float32) * 2 - 1

    def for_member(self, coordinates: Mapping[str, int | float]) -> Self:
        """Return the task with the member's own ``subset_seed``.

        Raises:
            ValueError: If a ``subset_seed`` is given where the subset is not drawn.

        """
        if "subset_seed" not in coordinates:
            return self
        if self.subset != "drawn":
            raise ValueError("SparseParity: the coordinate 'subset_seed' needs subset: drawn")
        return type(self)(self.n, self.k, self.subset, int(coordinates["subset_seed"]))
