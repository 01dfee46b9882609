"""Whether curves have come to rest, in a time of their own; whether weights sit in AdamW's box."""

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["box_share", "come_to", "settled"]

MEASUREMENTS = 3
"""How many measurements it takes to call a curve settled."""
ROUNDING = 1e-9
"""Share of a time that may have been lost in adding it up."""


def come_to(time: Tensor, goal: Tensor | float) -> Tensor:
    """Return where a time has come to a goal, if only for a billionth part that rounding may have taken: bool.

    Time is a sum over steps, and measurements are often made at even distances: which of them lies at the very edge of
    a window must not be up to the last digit.
    """
    return time >= goal - ROUNDING * time.abs()


def settled(time: Tensor, values: Tensor, moved: float, window: float = 1 / 3, relative: bool = False) -> Tensor:
    """Return which curves have moved by less than ``moved`` over the last part of their time so far.

    The part is that of measurements with ``time >= (1 - window) * time[-1]``, for each curve by its own time (one at
    the very edge counts, see :func:`come_to`). A curve
    moves by its largest less its smallest value there, whichever comes first. Being still is no proof of having
    arrived: a curve on a long plateau is settled too.

    Args:
        time: ``(T, E)``, ascending, from 0; such as the weight decay gone through, Σ lr·λ.
        values: ``(T, E)``.
        moved: Above 0, in the unit of the values; with ``relative``, a share of the mean of their absolute values in
            the window.
        window: Share of the time so far, in (0, 1].
        relative: See ``moved``.

    Returns:
        ``(E,)``, bool. False where fewer than three measurements lie in the window; where no time has passed, or it is
        not known (NaN); where a value in the window is NaN or infinite.

    Raises:
        ValueError: If the shapes do not fit, or ``moved`` or ``window`` is out of range.

    Example:
        >>> time = torch.arange(7.0).unsqueeze(1)
        >>> settled(time, torch.tensor([[0.1, 0.6, 0.9, 0.95, 0.98, 0.99, 0.99]]).T, moved=0.02)
        tensor([True])

    """
    if time.ndim != 2 or time.shape != values.shape:
        raise ValueError(f"expected time and values of the same shape (T, E), got {_shapes(time, values)}")
    if not moved > 0:
        raise ValueError(f"moved: expected more than 0, got {moved}")
    if not 0 < window <= 1:
        raise ValueError(f"window: expected a share in (0, 1], got {window}")
    if not len(time):
        return torch.zeros(time.shape[1:], dtype=torch.bool)
    time, values = time.double(), values.double()
    within = come_to(time, (1 - window) * time[-1])
    count = within.sum(dim=0)
    largest = torch.where(within, values, -torch.inf).amax(dim=0)
    smallest = torch.where(within, values, torch.inf).amin(dim=0)
    # A zero, not a product with False, which would be NaN for a value outside that is.
    size = torch.where(within, values.abs(), 0.0).sum(dim=0) / count if relative else 1.0
    return (largest - smallest < moved * size) & (count >= MEASUREMENTS) & (time[-1] > 0)


def box_share(weights: Iterable[Tensor], decays: Iterable[Tensor]) -> Tensor:
    """Return the share of the squared norm that lies in weights above half of AdamW's box, |w| > 1/(2λ).

    A step of AdamW moves a weight by lr·(u − λw), with |u| at most about 1 (it is 1 for a gradient that stays the
    same): no weight is driven beyond 1/λ, however large the gradients. A network with a large share sits in that box,
    and its norm says more of the box than of what is learnt.

    Args:
        weights: Tensors ``(E, numbers)``, at least one.
        decays: λ of each tensor for each member, ``(E,)``, at least 0; 0: no box for these weights.

    Returns:
        ``(E,)``, float64, in [0, 1]. NaN for a member without any box, whose weights are all 0, or with a weight that
        is NaN or infinite.

    """
    total, beyond, boxed = [], [], []
    for values, decay in zip(weights, decays, strict=True):
        numbers, limit = values.double(), decay.double().to(values.device).unsqueeze(1)
        squares = numbers.square()
        total.append(squares.sum(dim=1))
        beyond.append(torch.where(2 * limit * numbers.abs() > 1, squares, 0.0).sum(dim=1))
        boxed.append(limit.squeeze(1) > 0)
    share = torch.stack(beyond).sum(dim=0) / torch.stack(total).sum(dim=0)
    return torch.where(torch.stack(boxed).any(dim=0), share, torch.nan)


def _shapes(*tensors: Tensor) -> str:
    return " and ".join(str(tuple(tensor.shape)) for tensor in tensors)
