"""Norm of the parameters over time."""

from collections.abc import Mapping
from typing import Any, ClassVar, final

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from .monitor import Monitor
from .parameters import member_parameters, tensor_norms
from .schedule import LogSpaced, Schedule

__all__ = ["ParameterNorm"]


@final
class ParameterNorm(Monitor):
    """Tracks the L2 norm of the parameters: ‖θ‖ of Varma et al. 2023 (arXiv 2309.02390), and of every tensor.

    All parameters count, those that are not trained too; a tensor that the model has under several names, once.

    Leaves ``total`` with dimensions ``(step, member)``, the norm of all parameters together, and ``norm`` with
    dimensions ``(step, member, tensor)``; computed in float64, NaN where a parameter is. Loggers get the mean of
    ``total`` over members.

    Args:
        schedule: When to measure.
        name: Name of the record's group and prefix of logged scalars.

    """

    dims: ClassVar[Mapping[str, tuple[str, ...]]] = {"total": (), "norm": ("tensor",)}

    def __init__(
        self,
        schedule: Schedule = LogSpaced(40),  # noqa: B008 - a frozen value
        name: str = "parameter_norm",
    ) -> None:
        super().__init__(schedule, name)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        member_parameters(pl_module, "ParameterNorm")

    @override
    def measure(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Tensor]:
        parameters = member_parameters(pl_module, "ParameterNorm")
        self.labels = {"tensor": tuple(parameters)}
        norm = tensor_norms(parameters)
        return {"total": torch.linalg.vector_norm(norm, dim=1), "norm": norm}

    @override
    def scalars(self, values: dict[str, Tensor]) -> dict[str, float]:
        return {"total": float(values["total"].mean())}

    @override
    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"tensors": list(self.labels.get("tensor", ()))}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.labels = {"tensor": tuple(state_dict["tensors"])}
