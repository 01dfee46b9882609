"""A torchmetrics mean with one entry a member."""

import torch
from torch import Tensor
from torchmetrics import Metric
from typing_extensions import override

__all__ = ["MemberMean"]


class MemberMean(Metric):
    """Mean over rows, for each member apart, summed in float64.

    The states have the length of the whole population on every process and add up over processes, whichever rows or
    members a process has seen.

    Args:
        n_members: E.

    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, n_members: int) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(n_members, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(n_members, dtype=torch.float64), dist_reduce_fx="sum")

    @override
    def update(self, values: Tensor, mask: Tensor | None = None) -> None:
        """Add rows.

        Args:
            values: ``(E, B)``.
            mask: ``(E, B)``, bool: the rows that count; all where ``None``.

        Raises:
            ValueError: If the number of members is another.

        """
        if values.ndim != 2 or values.shape[0] != self.total.shape[0]:
            raise ValueError(f"expected values (E, B) with E = {self.total.shape[0]}, got {tuple(values.shape)}")
        # Casting a module casts these too, past torchmetrics' own guard: in bfloat16 256 + 1 is 256.
        self.total, self.count = self.total.double(), self.count.double()
        values = values.double()
        if mask is None:
            self.total += values.sum(dim=1)
            self.count += values.shape[1]
        else:
            self.total += torch.where(mask, values, 0).sum(dim=1)
            self.count += mask.sum(dim=1)

    @override
    def compute(self) -> Tensor:
        """Return the means ``(E,)`` (a scalar for E = 1: torchmetrics squeezes); NaN where no row was seen."""
        return self.total / self.count
