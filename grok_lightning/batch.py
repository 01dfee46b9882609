"""What a training step receives: the one agreement between data modules and modules."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

__all__ = ["Batch", "take"]


class Batch(NamedTuple):
    """Rows of E members.

    A plain ``(inputs, targets)`` pair of any ``DataLoader``, shared by all members, is accepted in its place.

    Attributes:
        inputs: ``(E, B, ...)``, or ``(B, ...)`` shared by all members.
        targets: ``(E, B)``, or ``(B,)`` shared by all members; the labels as given, noise included.
        weights: ``(E, B)``, summing to 1 over the rows of one member's whole batch (0 = padding), or ``None`` for the
            plain mean over B.
        true_targets: ``(E, B)`` labels without noise, or ``None`` where there is no noise.
        subsets: Masks ``(E, B)``, bool, by name: rows whose metrics are kept apart too; the same names in every batch
            of a loader. ``None`` where there are none.
        counts: Number of real rows of each member, known without asking the device; they come first, padding after
            them. ``None`` where all B rows of every member are real, or nobody has counted.

    """

    inputs: Tensor
    targets: Tensor
    weights: Tensor | None = None
    true_targets: Tensor | None = None
    subsets: Mapping[str, Tensor] | None = None
    counts: tuple[int, ...] | None = None


def take(batch: Batch, rows: slice) -> Batch:
    """Return some rows of every member; views, not copies. They are not counted anew."""
    weights = None if batch.weights is None else batch.weights[:, rows]
    true_targets = None if batch.true_targets is None else batch.true_targets[:, rows]
    subsets = None if batch.subsets is None else {name: mask[:, rows] for name, mask in batch.subsets.items()}
    return Batch(batch.inputs[:, rows], batch.targets[:, rows], weights, true_targets, subsets)
