"""Continuing a run with another optimizer argument."""

from typing import Any

__all__ = ["override_optimizer", "override_scheduler"]


def override_optimizer(checkpoint: dict[str, Any], name: str, old: Any, new: Any) -> None:
    """Give an optimizer's argument a new value in a checkpoint, in place.

    A learning rate that a scheduler has changed meanwhile keeps its ratio to the base rate.

    Args:
        checkpoint: Lightning's, with ``optimizer_states`` and ``lr_schedulers``.
        name: Of the argument, as in the parameter groups.
        old: The value that it was trained with.
        new: The value to go on with.

    """
    for state in checkpoint.get("optimizer_states", []):
        for group in state["param_groups"]:
            if name == "lr" and old:
                group["lr"] *= new / old
                if "initial_lr" in group:
                    group["initial_lr"] = new
            elif name in group:
                group[name] = new
    if name == "lr" and old:
        for state in checkpoint.get("lr_schedulers", []):
            _rescale(state, old, new)


def override_scheduler(checkpoint: dict[str, Any], arguments: dict[str, Any]) -> None:
    """Give a scheduler's arguments new values in a checkpoint, in place; those it does not keep are passed over."""
    for state in checkpoint.get("lr_schedulers", []):
        state.update({name: value for name, value in arguments.items() if name in state})


def _rescale(state: dict[str, Any], old: float, new: float) -> None:
    """Rescale the learning rates in a scheduler's state and in those of the schedulers that it is made of."""
    if "base_lrs" in state:
        state["base_lrs"] = [new for _ in state["base_lrs"]]
    if "_last_lr" in state:
        state["_last_lr"] = [rate * new / old for rate in state["_last_lr"]]
    for inner in state.get("_schedulers", []):
        _rescale(inner, old, new)
