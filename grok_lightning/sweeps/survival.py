"""When something happened to members of which some had not got there by their last step.

Such a member is *censored*: all that is known is that it had not happened by then. The median of those to whom it
happened would be too early.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import CensoredData, ecdf

__all__ = ["Survival", "in_words", "kaplan_meier"]

ROUNDING = 1e-12
"""What a product of fractions may lie above a quarter that it equals."""


@dataclass(frozen=True)
class Survival:
    """Quartiles of a time, in steps; NaN where so few got there that it is beyond the last event.

    Attributes:
        quartile_25: By when it had happened to a quarter of the members.
        median: To half of them.
        quartile_75: To three quarters.
        n: Number of members looked at.
        n_never: To how many of them it had not happened by their last step.
    """

    quartile_25: float
    median: float
    quartile_75: float
    n: int
    n_never: int


def kaplan_meier(steps: ArrayLike, last_steps: ArrayLike) -> Survival:
    """Estimates quartiles of the time to an event by the product-limit estimator of Kaplan and Meier 1958.

    A quartile is the first event by which the share of members without it has fallen to 3/4, 1/2 or 1/4, or below: with
    no censored member and an even number, the median is the earlier of the two middle ones. Steps are taken as exact,
    though an event is only known to have happened since the measurement before it.

    Args:
        steps: Step of the event, `(E,)`; NaN: it did not happen.
        last_steps: Last step looked at, `(E,)`, at which a member without the event is censored; where it happened,
            it does not matter. A member without either does not count.

    Returns:
        The quartiles, and how many members were looked at; all NaN without any.

    Raises:
        ValueError: If the lengths differ.
    """
    events, last = np.asarray(steps, dtype=np.float64), np.asarray(last_steps, dtype=np.float64)
    if events.ndim != 1 or events.shape != last.shape:
        raise ValueError(f"expected as many last steps as steps, got shapes {last.shape} and {events.shape}")
    happened = np.isfinite(events)
    censored = ~happened & np.isfinite(last)
    n, n_never = int((happened | censored).sum()), int(censored.sum())
    if n == n_never:
        return Survival(math.nan, math.nan, math.nan, n, n_never)
    survival = ecdf(CensoredData(uncensored=events[happened], right=last[censored])).sf

    def by(share: float) -> float:
        reached = np.flatnonzero(survival.probabilities <= 1 - share + ROUNDING)
        return float(survival.quantiles[reached[0]]) if reached.size else math.nan

    return Survival(by(0.25), by(0.5), by(0.75), n, n_never)


def in_words(survival: Survival, form: Callable[[float], str]) -> str:
    """Quartiles in words: `median 690 (quartiles 600 to 1,200; 2 of 10 never did)`.

    Args:
        survival: The quartiles.
        form: How a step is written.

    Returns:
        The words; `not reached` for a quartile beyond the last event.
    """

    def said(value: float) -> str:
        return "not reached" if math.isnan(value) else form(value)

    if survival.n == 0:
        return "median not reached (no members)"
    rest = f"{survival.n_never} of {survival.n} never did" if survival.n_never else f"all {survival.n} did"
    if math.isnan(survival.quartile_25):
        return f"median not reached ({rest})"
    return (
        f"median {said(survival.median)} "
        f"(quartiles {said(survival.quartile_25)} to {said(survival.quartile_75)}; {rest})"
    )
