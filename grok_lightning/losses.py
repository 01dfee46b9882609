"""Losses of single rows, with the member axis kept.

Every loss maps logits ``(E, B, C)`` and targets ``(E, B)`` to ``(E, B)``, one value a row, and refuses any other shape:
logits ``(1, B, 1)`` against targets ``(1, B)`` would otherwise broadcast to ``(1, B, B)`` without a word.

Labels are of one of two kinds: *signs*, floating point, −1 or +1, predicted by the sign of a single logit; and
*classes*, int64, predicted by the largest of C >= 2 logits.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as nnf

from grok_lightning.imports import import_function

__all__ = ["LOSSES", "Loss", "check_labels", "correct", "cross_entropy", "get_loss", "hinge", "squared"]

# Any stands for Tensor: the command line takes a callable that returns a class for a recipe of an instance of it.
Loss: TypeAlias = Callable[[Tensor, Tensor], Any]


def hinge(logits: Tensor, targets: Tensor) -> Tensor:
    """Return ``max(0, 1 − y f)`` for signs, in [0, ∞).

    The training loss of Merrill, Tsilivis, Shukla 2023 (arXiv 2303.11873, section 2).

    Args:
        logits: ``(E, B, 1)``.
        targets: ``(E, B)``, −1 or +1.

    Returns:
        ``(E, B)``.

    Raises:
        ValueError: If the shapes or the kind of label do not fit.

    """
    _check(logits, targets, "hinge")
    if not targets.is_floating_point():
        raise ValueError(f"hinge: expected labels −1.0 and +1.0, got targets of type {targets.dtype}")
    if logits.shape[-1] != 1:
        raise ValueError(f"hinge: expected one output, got logits of shape {tuple(logits.shape)}")
    return nnf.relu(1 - targets * logits.squeeze(-1))


def squared(logits: Tensor, targets: Tensor) -> Tensor:
    """Return ``(f − y)²`` for signs, and the sum over classes of ``(f_c − [c = y])²`` for classes; in [0, ∞).

    Args:
        logits: ``(E, B, 1)`` for signs, ``(E, B, C)`` for classes.
        targets: ``(E, B)``, −1.0 or +1.0, or int64 in [0, C).

    Returns:
        ``(E, B)``.

    Raises:
        ValueError: If the shapes or the kind of label do not fit.

    """
    _check(logits, targets, "squared")
    if targets.is_floating_point():
        if logits.shape[-1] != 1:
            raise ValueError(f"squared: signs need one output, got logits of shape {tuple(logits.shape)}")
        return (logits.squeeze(-1) - targets).square()
    one_hot = nnf.one_hot(targets, logits.shape[-1]).to(logits.dtype)
    return (logits - one_hot).square().sum(dim=-1)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return ``−log softmax(f)_y`` in nats, in [0, ∞), computed in float64 whatever the logits are.

    float32 stops learning once the right logit leads by about 17: loss and gradient are then exactly 0 where float64
    still has 1e-8. For signs the two classes have logits 0 and f, so the loss is ``log(1 + exp(−y f))``.

    Args:
        logits: ``(E, B, C)`` for classes, ``(E, B, 1)`` for signs.
        targets: ``(E, B)``, int64 in [0, C), or −1.0 or +1.0.

    Returns:
        ``(E, B)``, float64.

    Raises:
        ValueError: If the shapes or the kind of label do not fit.

    """
    _check(logits, targets, "cross_entropy")
    return _cross_entropy(logits.double(), targets)


def cross_entropy_float32(logits: Tensor, targets: Tensor) -> Tensor:
    """Return :func:`cross_entropy` in the precision of the logits: for studying what that precision does."""
    _check(logits, targets, "cross_entropy_float32")
    return _cross_entropy(logits, targets)


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    if targets.is_floating_point():
        if logits.shape[-1] != 1:
            raise ValueError(f"cross_entropy: signs need one output, got logits of shape {tuple(logits.shape)}")
        # Not softplus, which is linear from 20 on.
        return -nnf.logsigmoid(targets * logits.squeeze(-1))
    if logits.shape[-1] < 2:
        raise ValueError(f"cross_entropy: classes need at least two outputs, got logits of shape {tuple(logits.shape)}")
    return -nnf.log_softmax(logits, dim=-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)


LOSSES: dict[str, Loss] = {
    "hinge": hinge,
    "squared": squared,
    "cross_entropy": cross_entropy,
    "cross_entropy_float32": cross_entropy_float32,
}


def get_loss(loss: str | Loss) -> Loss:
    """Return the loss called ``loss``; a function ``(logits (E, B, C), targets (E, B)) -> (E, B)`` is taken as it is.

    Raises:
        ValueError: If there is none of that name.

    """
    if callable(loss):
        return loss
    if "." in loss:
        return import_function(loss, "loss")
    if loss not in LOSSES:
        raise ValueError(f"loss: expected one of {', '.join(LOSSES)} or a function, got '{loss}'")
    return LOSSES[loss]


def correct(logits: Tensor, targets: Tensor) -> Tensor:
    """Return which rows are predicted rightly.

    For signs the prediction is the sign of the logit; a logit of exactly 0 (or NaN) is wrong. For classes it is the
    first largest logit; a row with a NaN logit is wrong.

    Args:
        logits: ``(E, B, C)``; C = 1 for signs.
        targets: ``(E, B)``.

    Returns:
        ``(E, B)``, bool.

    Raises:
        ValueError: If the shapes do not fit.

    """
    _check(logits, targets, "correct")
    if targets.is_floating_point():
        if logits.shape[-1] != 1:
            raise ValueError(f"correct: signs need one output, got logits of shape {tuple(logits.shape)}")
        return logits.squeeze(-1) * targets > 0
    # argmax takes NaN for the largest value, which would now and then be "right".
    return (logits.argmax(dim=-1) == targets) & ~logits.isnan().any(dim=-1)


def check_labels(targets: Tensor, n_outputs: int) -> None:
    """Refuse labels that no loss here can mean anything by; looks at the values, so call it once, not every step.

    Raises:
        ValueError: If floating-point labels are not −1 or +1, or classes lie outside [0, ``n_outputs``).

    """
    if targets.numel() == 0:
        return
    if targets.is_floating_point():
        if not bool((targets.abs() == 1).all()):
            seen = torch.unique(targets)[:4].tolist()
            raise ValueError(f"labels: floating-point labels must be −1 or +1, got {seen}; classes must be int64")
    elif int(targets.min()) < 0 or int(targets.max()) >= n_outputs:
        raise ValueError(
            f"labels: classes must lie in [0, {n_outputs}), got {int(targets.min())} to {int(targets.max())}"
        )


def _check(logits: Tensor, targets: Tensor, name: str) -> None:
    if logits.ndim != 3 or logits.shape[:2] != targets.shape:
        raise ValueError(
            f"{name}: expected logits (E, B, C) and targets (E, B), got {tuple(logits.shape)}, {tuple(targets.shape)}"
        )
