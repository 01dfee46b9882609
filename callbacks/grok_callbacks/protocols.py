"""What a module may offer beyond plain Lightning. Nothing here is required."""

from typing import Literal, Protocol, runtime_checkable

from torch import Tensor

__all__ = ["HasMemberMetrics", "HasMembers", "HasRows"]


@runtime_checkable
class HasMembers(Protocol):
    """A module whose parameters and logits lead with a member axis; any other module is one member without it."""

    @property
    def n_members(self) -> int:
        """E, the number of members."""


@runtime_checkable
class HasMemberMetrics(Protocol):
    """A module that knows its validation metrics for every member."""

    def member_metrics(self) -> dict[str, Tensor]:
        """Return ``{name: (E,)}`` of the weights as they are now; ``{}`` if they cannot be had without a validation."""


@runtime_checkable
class HasRows(Protocol):
    """A data module that hands out rows without disturbing its loaders."""

    def rows(self, split: Literal["train", "held_out"]) -> tuple[Tensor, Tensor]:
        """Return inputs ``(E, N, ...)`` and labels ``(E, N)``."""
