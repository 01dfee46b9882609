"""The parameters of a model, one row of numbers a member."""

from collections.abc import Mapping

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from .members import n_members_here
from .snapshots import plain_name

__all__ = ["member_parameters", "tensor_norms"]


def member_parameters(pl_module: LightningModule, who: str) -> dict[str, Tensor]:
    """Return every parameter as ``(E, numbers)``, by its plain name; one under several names, once.

    Args:
        pl_module: The model.
        who: Who asks, for the message.

    Raises:
        ValueError: If there is none, or one does not lead with the member axis.

    """
    # A plain network in a module with members is a population of one.
    members = n_members_here(pl_module)
    parameters = {plain_name(name): value.detach() for name, value in pl_module.named_parameters()}
    if not parameters:
        raise ValueError(f"{who}: the model has no parameters")
    for name, value in parameters.items():
        if members > 1 and value.shape[:1] != (members,):
            raise ValueError(f"{who}: expected '{name}' to lead with {members} members, got {tuple(value.shape)}")
    return {name: value.reshape(members, -1) for name, value in parameters.items()}


def tensor_norms(parameters: Mapping[str, Tensor]) -> Tensor:
    """Return the L2 norm of each tensor ``(E, numbers)`` as ``(E, tensor)``, float64; NaN where a number is."""
    norms = [torch.linalg.vector_norm(value, dim=1, dtype=torch.float64) for value in parameters.values()]
    return torch.stack(norms, dim=1)
