"""Accuracy on the rows that training goes on with, on those removed from it and on those never seen."""

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, final

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from typing_extensions import override

from .functional.sparse_subnetwork import is_right, predictions
from .members import n_members_here
from .monitor import Monitor, find_submodule
from .protocols import HasRows
from .rows import Split, parts_of
from .schedule import EveryValidation, Schedule

__all__ = ["ShrinkAccuracy"]

PARTS = ("kept", "removed", "never_seen")
AT_ONCE = 4096
"""Rows of a member in a forward pass."""


@final
class ShrinkAccuracy(Monitor):
    """Measures accuracy on the rows trained on, on rows that a :class:`DatasetShrink` removed, and on held-out rows.

    For modules whose own metrics do not tell these apart. A prediction is the sign of a single logit, 0 being none, or
    the largest of several; logits are ``(B, C)``, or ``(E, B, C)`` in a module with members. Labels are those without
    noise, where the data know them. Rows are looked up in the dataset; no loader is iterated.

    Leaves ``accuracy`` with dimensions ``(step, member, part)``, in [0, 1]; ``kept`` are all training rows before a
    shrink, and ``removed`` is NaN until then; NaN where a member has no such rows. A row that the network makes NaN of
    is wrong. Loggers get means over the members that have such rows.

    Args:
        schedule: When to measure.
        network: Dotted name of the module that maps inputs to logits; the LightningModule itself if ``None``.
        rows: Import path of a function ``(trainer, pl_module, split) -> (inputs, targets)``; by default rows come from
            the data module, or from the datasets of the training loader and the first validation loader. What such a
            function returns for ``train`` is ``kept``, and ``removed`` is not known.
        name: Name of the record's group and prefix of logged scalars.

    """

    dims: ClassVar[Mapping[str, tuple[str, ...]]] = {"accuracy": ("part",)}
    labels: Mapping[str, Sequence[str | int]] = {"part": PARTS}

    def __init__(
        self,
        schedule: Schedule = EveryValidation(),  # noqa: B008 - a frozen value
        network: str | None = None,
        rows: str | None = None,
        name: str = "shrink_accuracy",
    ) -> None:
        super().__init__(schedule, name)
        self.network = network
        self.rows = rows

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._network(pl_module)

    @override
    def measure(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Tensor]:
        pl_module.eval()
        members = n_members_here(pl_module)
        found = {part: torch.full((members,), torch.nan, dtype=torch.float64) for part in PARTS}
        splits: tuple[Split, ...] = ("train", "held_out") if self._has_held_out(trainer) else ("train",)
        for split in splits:
            inputs, targets, masks = parts_of(trainer, pl_module, split, self.rows)
            if not targets.shape[-1]:
                continue
            right = self._right(trainer, pl_module, inputs, targets)
            for part, mask in masks.items():
                within = mask.reshape(-1, mask.shape[-1]).expand_as(right)
                found[part] = ((right & within).sum(dim=1).double() / within.sum(dim=1)).cpu()
        return {"accuracy": torch.stack([found[part] for part in PARTS], dim=1)}

    @override
    def scalars(self, values: dict[str, Tensor]) -> dict[str, float]:
        means = values["accuracy"].nanmean(dim=0).tolist()
        return {part: mean for part, mean in zip(PARTS, means, strict=True) if not math.isnan(mean)}

    @override
    def attributes(self) -> dict[str, str | int | float]:
        return {"network": self.network or "", "rows": self.rows or ""}

    def _has_held_out(self, trainer: Trainer) -> bool:
        if self.rows is not None or isinstance(getattr(trainer, "datamodule", None), HasRows):
            return True
        return trainer.val_dataloaders is not None and trainer.val_dataloaders != []

    def _network(self, pl_module: LightningModule) -> nn.Module:
        return pl_module if self.network is None else find_submodule(pl_module, self.network, "network")

    def _right(self, trainer: Trainer, pl_module: LightningModule, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return which rows are predicted rightly, ``(E, N)``."""
        members = n_members_here(pl_module)
        if members == 1 and targets.ndim == 2:
            # A plain network in a module with members does not know of them; any other takes such rows too.
            inputs, targets = inputs.squeeze(0), targets.squeeze(0)
        network, axis = self._network(pl_module), targets.ndim - 1
        found = []
        for some, labels in zip(torch.split(inputs, AT_ONCE, axis), torch.split(targets, AT_ONCE, axis), strict=True):
            with trainer.precision_plugin.forward_context():
                logits = _with_members(network(some), members, labels.shape[-1])
            found.append(is_right(predictions(logits), labels.expand(logits.shape[:2]), logits.shape[-1]))
        return torch.cat(found, dim=1)


def _with_members(output: object, members: int, n_rows: int) -> Tensor:
    """Return a network's output as logits ``(E, B, C)``.

    Raises:
        ValueError: If it is of another form.

    """
    if isinstance(output, Tensor):
        if output.shape[:2] == (members, n_rows) and output.ndim == 3:
            return output
        if members == 1 and output.shape[:1] == (n_rows,) and output.ndim <= 2:
            return output.reshape(1, n_rows, -1)
    form = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    axes = "(B, C)" if members == 1 else f"({members}, B, C)"
    raise ValueError(f"network: expected logits {axes} of B = {n_rows} rows, got {form}")
