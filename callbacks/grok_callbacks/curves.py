"""Learning curves of every member, from validation."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, final

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from .monitor import Monitor
from .protocols import HasMemberMetrics
from .schedule import EveryValidation

__all__ = ["LearningCurves", "read_metric"]

SPLITS = ("train", "held_out")


@final
class LearningCurves(Monitor):
    """Keeps loss and accuracy of the rows trained on and of the held-out rows, whenever Lightning validates.

    Leaves ``loss`` and ``accuracy`` with dimensions ``(step, member, split)``, NaN where the module logs no such metric
    (no held-out rows, say), and ``true_accuracy``, against labels without noise, where the module has one. Loggers get
    nothing from here: the metrics are the module's, and it logs them itself.

    Where a module that knows its metrics for every member (:class:`HasMemberMetrics`) has some of a part of the
    held-out rows, ``val_unpaired/accuracy`` beside ``val/accuracy`` say, ``split`` goes on with that part,
    ``held_out_unpaired``; likewise, where a ``DatasetShrink`` may remove rows from training, ``held_out_removed`` and
    ``held_out_never_seen``. A part that comes later, in a run that is resumed with a ``DatasetShrink`` say, is NaN
    before; one that is gone is NaN from then on. ``unpaired_share``, ``(step, member)``, is the share of the held-out
    rows that are unpaired, which is to say that their swap (b, a) is not trained on, where the module knows it.

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
        "unpaired_share": (),
    }
    labels: Mapping[str, Sequence[str | int]] = {"split": SPLITS}
    gathered: ClassVar[bool] = True

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
        self._subsets: list[str] = []

    @override
    def measure(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Tensor]:
        subsets = [*self._subsets, *(name for name in self._subsets_of(pl_module) if name not in self._subsets)]
        curves = {
            "loss": self._curve(trainer, pl_module, self.loss, subsets),
            "accuracy": self._curve(trainer, pl_module, self.accuracy, subsets),
        }
        if all(bool(curve.isnan().all()) for curve in curves.values()):
            return {}
        self._extend(subsets)
        true = read_metric(trainer, pl_module, "train/true_accuracy")
        if true is not None:
            # Held-out labels have no noise: their accuracy is against the truth in any case.
            curves["true_accuracy"] = torch.cat([true.cpu().double().unsqueeze(1), curves["accuracy"][:, 1:]], dim=1)
        prefix, slash, _ = self.accuracy[1].partition("/")
        for name in [f"{subset}_share" for subset in subsets if f"{subset}_share" in self.dims]:
            share = read_metric(trainer, pl_module, f"{prefix}{slash}{name}")
            if share is not None:
                curves[name] = share
                if self._steps and name not in self._values:
                    self._values[name] = [torch.full_like(share, torch.nan, device="cpu")] * len(self._steps)
            elif name in self._values:
                curves[name] = torch.full_like(self._values[name][-1], torch.nan)
        return curves

    @override
    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"subsets": self._subsets}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        # A history without the key is older than the parts, and has none.
        self._set_subsets(state_dict.get("subsets") or [])

    @override
    def forget(self) -> None:
        super().forget()
        self._set_subsets([])

    def _set_subsets(self, subsets: list[str]) -> None:
        """Note which parts of the held-out rows there are."""
        self._subsets = subsets
        self.labels = {"split": (*SPLITS, *(f"held_out_{name}" for name in subsets))}

    def _extend(self, subsets: list[str]) -> None:
        """Go on with these parts of the held-out rows; what was measured before knows nothing of those that are new."""
        new = len(subsets) - len(self._subsets)
        for name in [name for name in self._values if new and self.dims[name] == ("split",)]:
            self._values[name] = [
                torch.cat([value, value.new_full((len(value), new), torch.nan)], dim=1) for value in self._values[name]
            ]
        self._set_subsets(subsets)

    def _subsets_of(self, pl_module: LightningModule) -> list[str]:
        """Return the names X of ``val_X/accuracy`` beside ``val/accuracy``, or whatever that is called."""
        prefix, slash, name = self.accuracy[1].partition("/")
        if not slash or not isinstance(pl_module, HasMemberMetrics):
            return []
        pattern = re.compile(rf"{re.escape(prefix)}_(\w+)/{re.escape(name)}")
        return [found[1] for metric in pl_module.member_metrics() if (found := pattern.fullmatch(metric))]

    def _curve(
        self, trainer: Trainer, pl_module: LightningModule, pair: tuple[str, str], subsets: Sequence[str]
    ) -> Tensor:
        """Return the metric ``(E, split)``, of the rows trained on, of the held-out ones and of parts of these."""
        prefix, slash, name = pair[1].partition("/")
        names = [*pair, *(f"{prefix}_{subset}{slash}{name}" for subset in subsets)]
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
