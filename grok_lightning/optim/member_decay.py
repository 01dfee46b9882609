"""Weight decay that differs between members, and which optimizers keep members apart."""

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor, optim
from torch.optim import Optimizer

__all__ = ["ELEMENTWISE", "MemberDecay", "check_elementwise"]

ELEMENTWISE: tuple[type[Optimizer], ...] = (
    optim.SGD,
    optim.Adam,
    optim.AdamW,
    optim.NAdam,
    optim.RAdam,
    optim.Adamax,
    optim.RMSprop,
    optim.Adagrad,
    optim.Adadelta,
    optim.ASGD,
    optim.Rprop,
)
"""Optimizers that move every entry of a tensor by its own gradient alone, so that stacked members do not meet."""


def check_elementwise(optimizer: Optimizer) -> None:
    """Refuse optimizers that would couple the members of a population.

    Raises:
        ValueError: Naming the optimizer.

    """
    if not isinstance(optimizer, ELEMENTWISE):
        names = ", ".join(kind.__name__ for kind in ELEMENTWISE)
        raise ValueError(
            f"optimizer {type(optimizer).__name__}: not known to move every weight by its own gradient alone, so it "
            f"may couple members; use a population of one, or one of {names}"
        )


def _default_decay(kind: type[Optimizer]) -> float:
    """Return the decay that an optimizer has if none is typed: 0.01 for AdamW."""
    return float(inspect.signature(kind).parameters["weight_decay"].default)


class MemberDecay:
    """Weight decay λ_e of each member, in place of the optimizer's one number.

    Coupled optimizers (SGD, Adam, ...) get ``λ_e p`` added to the gradient; decoupled ones (AdamW, and those whose
    group says ``decoupled_weight_decay``) have p scaled by ``1 − lr λ_e`` before the step, with the group's current
    learning rate: each as torch does it with its single λ.

    Args:
        decays: λ_e of each member, at least 0.

    Raises:
        ValueError: If one is negative.

    """

    def __init__(self, decays: Sequence[float]) -> None:
        if min(decays) < 0:
            raise ValueError(f"weight_decay: expected at least 0, got {min(decays)}")
        self.decays = list(decays)
        self._vectors: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def take_over(self, optimizer: Optimizer, typed: bool = True) -> None:
        """Set the optimizer's own decay to 0.

        Args:
            optimizer: The optimizer.
            typed: Whether its arguments are somebody's choice, not a default: a decay among them is then refused.

        Raises:
            ValueError: If the optimizer has no such argument, or one was typed beside the coordinate.

        """
        for group in optimizer.param_groups:
            if "weight_decay" not in group:
                raise ValueError(f"{type(optimizer).__name__} has no weight_decay to vary over members")
            if group.get("maximize", False):
                raise ValueError("maximize: a weight_decay coordinate would make weights grow; negate the loss instead")
            if typed and group["weight_decay"] not in (0, _default_decay(type(optimizer))):
                raise ValueError(
                    f"weight_decay is given twice: {group['weight_decay']} for the optimizer and as a coordinate of "
                    "the population; leave one out"
                )
            group["weight_decay"] = 0.0

    @torch.no_grad()
    def apply(self, optimizer: Optimizer) -> None:
        """Decay the weights, or their gradients, for the step that is about to be taken."""
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                decay = self._vector(parameter)
                if group.get("decoupled_weight_decay", False):
                    parameter.mul_(1 - group["lr"] * decay)
                else:
                    parameter.grad.addcmul_(parameter, decay)

    def _vector(self, parameter: Tensor) -> Tensor:
        """Return λ as ``(E, 1, ...)``, of the parameter's rank, dtype and device."""
        key = (parameter.device, parameter.dtype)
        if key not in self._vectors:
            self._vectors[key] = torch.tensor(self.decays, dtype=parameter.dtype, device=parameter.device)
        return self._vectors[key].view(-1, *[1] * (parameter.ndim - 1))
