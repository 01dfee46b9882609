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
    def update(self, values: Tensor, mask: Tensor | None = None, members: slice = slice(None)) -> None:
        """Add rows.

        Args:
            values: ``(e, B)``.
            mask: ``(e, B)``, bool: the rows that count; all where ``None``.
            members: Which e of the E members they are of.

        Raises:
            ValueError: If the number of members is another.

        """
        n_members = len(self.total[members])
        if values.ndim != 2 or values.shape[0] != n_members:
            raise ValueError(f"expected values (E, B) with E = {n_members}, got {tuple(values.shape)}")
        # Casting a module casts these too, past torchmetrics' own guard: in bfloat16 256 + 1 is 256.
        self.total, self.count = self.total.double(), self.count.double()
        values = values.double()
        mask = torch.ones_like(values, dtype=torch.bool) if mask is None else mask
        # Copies: a validation of its own leaves tensors of inference mode, which training may not write to.
        self.total, self.count = self.total.clone(), self.count.clone()
        self.total[members] += torch.where(mask, values, 0).sum(dim=1)
        self.count[members] += mask.sum(dim=1)

    @override
    def compute(self) -> Tensor:
        """Return the means ``(E,)`` (a scalar for E = 1: torchmetrics squeezes); NaN where no row was seen."""
        return self.total / self.count
