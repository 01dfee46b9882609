"""Members of a model, and of the whole population where members are spread over processes."""

from collections.abc import Mapping

from lightning.pytorch import LightningModule
from torch import Tensor

from .protocols import HasMembers, SpreadsMembers

__all__ = ["gather_members", "n_members_here", "n_members_in_all", "own_members"]


def n_members_here(pl_module: LightningModule) -> int:
    """Return how many members' parameters the model has in this process; 1 for a model without members."""
    return pl_module.n_members if isinstance(pl_module, HasMembers) else 1


def n_members_in_all(pl_module: LightningModule) -> int:
    """Return how many members the population has; those of the model alone where nothing is spread over processes."""
    return pl_module.n_members_in_all if isinstance(pl_module, SpreadsMembers) else n_members_here(pl_module)


def gather_members(pl_module: LightningModule, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return values of this process's members, ``(e, ...)`` each, as those of the whole population, ``(E, ...)``.

    They are the same in every process, and have to be asked for in every process.
    """
    return pl_module.gather_members(values) if isinstance(pl_module, SpreadsMembers) else dict(values)


def own_members(pl_module: LightningModule, values: Tensor) -> Tensor:
    """Return of values of the whole population, ``(E, ...)``, those of this process's members, ``(e, ...)``.

    A single number is nobody's, and stays.
    """
    return values[pl_module.own_members] if isinstance(pl_module, SpreadsMembers) and values.ndim else values
