"""The step at which something starts to hold, and holds."""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Onsets", "falling_onset", "rising_onset"]


class Onsets(NamedTuple):
    """When an event set in, for every curve. All float64, ``(...)``; NaN = not so far (censored at the last step).

    Attributes:
        step: First measured step of it.
        confirmed_at: Measured step at which it had held for the dwell.
        resolution: Steps between ``step`` and the measurement before it: the event lies somewhere in between. 0 if it
            held at the first measurement.

    """

    step: Tensor
    confirmed_at: Tensor
    resolution: Tensor


def rising_onset(
    steps: Tensor, values: Tensor, threshold: float, dwell: float, slack: float = 0.0, strict: bool = False
) -> Onsets:
    """Return when curves first rise to a threshold and stay there for ``dwell`` steps.

    An onset starts at a measurement of at least ``threshold``, and is confirmed by the first measurement at least
    ``dwell`` steps later if none in between, nor that one, is below ``threshold − slack``. Once confirmed it is not
    revised, whatever comes later: otherwise it would depend on how long one looks.

    Args:
        steps: ``(T,)``, ascending.
        values: ``(T, ...)``; NaN counts as below.
        threshold: Value to be reached.
        dwell: Steps for which it has to hold, at least 0; with 0 the first crossing is the onset.
        slack: How far below the threshold values may dip meanwhile, at least 0.
        strict: Whether the threshold itself is not enough.

    Raises:
        ValueError: If the shapes do not fit, or ``dwell`` or ``slack`` is negative.

    """
    started = values > threshold if strict else values >= threshold
    return _onset(steps, started, holds=values >= threshold - slack, dwell=dwell, slack=slack)


def falling_onset(
    steps: Tensor, values: Tensor, threshold: float, dwell: float, slack: float = 0.0, after: Tensor | None = None
) -> Onsets:
    """Return when curves first fall below a threshold, by more than ``slack``, and stay below it for ``dwell`` steps.

    Args:
        steps: ``(T,)``, ascending.
        values: ``(T, ...)``; NaN counts as not below.
        threshold: Value to fall below.
        dwell: Steps for which values have to stay below the threshold, at least 0.
        slack: How far below the threshold it has to fall to start, at least 0.
        after: ``(...)``: only measurements after this step count; NaN: never. All count if ``None``.

    Raises:
        ValueError: If the shapes do not fit, or ``dwell`` or ``slack`` is negative.

    """
    started = values < threshold - slack
    if after is not None:
        when = steps.reshape(-1, *[1] * (values.ndim - 1))
        started = started & (when > after)
    return _onset(steps, started, holds=values < threshold, dwell=dwell, slack=slack)


def _onset(steps: Tensor, started: Tensor, holds: Tensor, dwell: float, slack: float) -> Onsets:
    if dwell < 0 or slack < 0:
        raise ValueError(f"expected dwell and slack of at least 0, got {dwell} and {slack}")
    if steps.ndim != 1 or started.shape[:1] != steps.shape:
        raise ValueError(f"expected steps (T,) and values (T, ...), got {tuple(steps.shape)}, {tuple(started.shape)}")
    nan = torch.full(started.shape[1:], torch.nan, dtype=torch.float64)
    found, confirmed, resolution = nan.clone(), nan.clone(), nan.clone()
    candidate = nan.clone()
    gap = nan.clone()
    before: float | None = None
    for now, start, hold in zip(steps.tolist(), started, holds, strict=True):
        open_ = found.isnan()
        candidate = torch.where(hold, candidate, torch.nan)
        fresh = start & candidate.isnan()
        candidate = torch.where(fresh, float(now), candidate)
        gap = torch.where(fresh, 0.0 if before is None else now - before, gap)
        done = open_ & (now - candidate >= dwell)
        found = torch.where(done, candidate, found)
        confirmed = torch.where(done, float(now), confirmed)
        resolution = torch.where(done, gap, resolution)
        before = now
    return Onsets(found, confirmed, resolution)
