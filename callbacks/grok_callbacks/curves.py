"""Learning curves of every member, from validation."""

from collections.abc import Mapping
from typing import ClassVar, final

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from .monitor import Monitor
from .protocols import HasMemberMetrics
from .schedule import EveryValidation

__all__ = ["LearningCurves", "read_metric"]


@final
class LearningCurves(Monitor):
    """Keeps loss and accuracy of the rows trained on and of the held-out rows, whenever Lightning validates.

    Leaves ``loss`` and ``accuracy`` with dimensions ``(step, member, split)``, NaN where the module logs no such metric
    (no held-out rows, say), and ``true_accuracy``, against labels without noise, where the module has one. Loggers get
    nothing from here: the metrics are the module's, and it logs them itself.

    Args:
        train_loss: Name of the metric on rows trained on, as the module logs it.
        train_accuracy: Likewise.
        held_out_loss: Name of the metric on held-out rows.
        held_out_accuracy: Likewise.
        name: Name of the record's group.

    """

    dims: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "loss": ("split",),
        "accuracy": ("split",),
        "true_accuracy": ("split",),
    }
    labels: ClassVar[Mapping[str, tuple[str, ...]]] = {"split": ("train", "held_out")}

    def __init__(
        self,
        train_loss: str = "train/loss",
        train_accuracy: str = "train/accuracy",
        held_out_loss: str = "val/loss",
        held_out_accuracy: str = "val/accuracy",
        name: str = "curves",
    ) -> None:
        super().__init__(EveryValidation(), name)
        self.loss = (train_loss, held_out_loss)
        self.accuracy = (train_accuracy, held_out_accuracy)

    @override
    def measure(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Tensor]:
        curves = {"loss": self._pair(trainer, pl_module, self.loss)}
        curves["accuracy"] = self._pair(trainer, pl_module, self.accuracy)
        if all(bool(curve.isnan().all()) for curve in curves.values()):
            return {}
        if read_metric(trainer, pl_module, "train/true_accuracy") is not None:
            true = self._pair(trainer, pl_module, ("train/true_accuracy", "val/true_accuracy"))
            # Held-out labels have no noise: their accuracy is against the truth in any case.
            true[:, 1] = curves["accuracy"][:, 1]
            curves["true_accuracy"] = true
        return curves

    def _pair(self, trainer: Trainer, pl_module: LightningModule, names: tuple[str, str]) -> Tensor:
        values = [read_metric(trainer, pl_module, name) for name in names]
        length = max([len(value) for value in values if value is not None], default=1)
        return torch.stack(
            [torch.full((length,), torch.nan, dtype=torch.float64) if v is None else v.cpu().double() for v in values],
            dim=1,
        )


def read_metric(trainer: Trainer, pl_module: LightningModule, name: str) -> Tensor | None:
    """Return a validation metric of the weights as they are now, ``(E,)``; ``None`` if there is none of that name.

    Per member where the module knows it so (:class:`HasMemberMetrics`), otherwise the scalar that it logged.
    """
    if isinstance(pl_module, HasMemberMetrics):
        metrics = pl_module.member_metrics()
        if metrics:
            return metrics.get(name)
    value = trainer.callback_metrics.get(name)
    return None if value is None else value.detach().reshape(1)
