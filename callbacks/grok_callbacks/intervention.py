"""The base of callbacks that do change training."""

from abc import ABC
from collections.abc import Mapping, Sequence

from lightning.pytorch import Callback
from torch import Tensor

__all__ = ["Intervention"]


class Intervention(Callback, ABC):
    """A callback that changes training, and says so by its base class; a :class:`Monitor` changes nothing.

    What it did must be in its ``state_dict``, so that a resumed run is the run that was interrupted. It may leave a
    group in the run's record, as monitors do.

    Attributes:
        name: Name of the record's group.
        labels: Names along a dimension of the record, where it has any.

    """

    name: str = "intervention"
    labels: Mapping[str, Sequence[str | int]] = {}

    @property
    def coordinates(self) -> frozenset[str]:
        """Names of the member coordinates that it consumes; none by default."""
        return frozenset()

    def record(self) -> dict[str, tuple[tuple[str, ...], Tensor]]:
        """Return what the run should leave: arrays with the names of their dimensions; nothing by default."""
        return {}

    def attributes(self) -> dict[str, str | int | float]:
        """Return what the record should say about what was done; nothing by default."""
        return {}
