"""What became of a member: the regimes of grokking and of forgetting, each defined here and nowhere else.

All is decided on accuracy corrected for chance, a' = (a − chance) / (1 − chance), on held-out rows whose swap (b, a)
was held out too (`held_out_unpaired`), or on all held-out rows for a member that has no such split (`judged_on` says
which). A network that has only noticed that a ∘ b = b ∘ a gets swaps of training rows right, which alone lifts accuracy
on all held-out rows to 0.12 to 0.47 at usual sizes; on unpaired rows it is at chance.

Counted from the step at which the (small) training set began to that at which the sweep is read. *Memorised*: train
accuracy is at least `memorised` at some measurement, even if it dips again. *Final*: at the last measurement.

Not converged, also on the rows that it is judged on, or never measured: `not converged`, whatever else it looks like.

Started from scratch (a' on all held-out rows below `start` when the set began):

- `confusion`: not memorised, and final a' below `high`.
- `comprehension`: final a' at least `high`, first reached at most `delay` steps after memorising (or without it).
- `grokking`: the same, first reached later.
- `memorisation`: memorised, final a' below `low`.
- `partial comprehension`: memorised, final a' at least `low` and below `high`; `low` was first reached less than
  `delay` steps after memorising.
- `semi-grokking`: the same; `low` was first reached at least `delay` steps after memorising.
- `transient semi-grokking`: final a' at least `high`; after memorising, a' stayed at least `low` and below `high`, and
  moved less than `plateau`, over at least three measurements and a share of at least `plateau_share` of the run.

Started generalised (warm-started or shrunk):

- `ungrokked`: final a' below `low`.
- `partly ungrokked`: final a' at least `low` and below `high`.
- `kept`: final a' at least `high`.

Sources: the first four are the phases of Liu, Kitouni, Nolte, Michaud, Tegmark, Williams 2022 (arXiv 2205.10343), with
their thresholds of 90 % and their gap of 1,000 steps, but for memorising, 99 % here. Semi-grokking and ungrokking are
named by Varma, Shah, Kenton, Kramár, Kumar 2023 (arXiv 2309.02390), who define them by their curves; the thresholds
are ours, and so is `partial comprehension`, for which neither has a name.
"""

import math
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from grok_lightning.sweeps.critical_size import Final
from grok_lightning.sweeps.reading import Sweep

__all__ = ["DEFAULT_RULE", "REGIMES", "RegimeRule", "definitions", "judged_on", "regimes_of"]

REGIMES = (
    "confusion",
    "comprehension",
    "grokking",
    "memorisation",
    "partial comprehension",
    "semi-grokking",
    "transient semi-grokking",
    "ungrokked",
    "partly ungrokked",
    "kept",
    "not converged",
)
"""All regimes."""

LEAST_MEASURED = 3
"""Measurements without which nothing is called a plateau."""


@dataclass(frozen=True)
class RegimeRule:
    """Thresholds of the definitions.

    Attributes:
        memorised: Train accuracy.
        low: a' below which nothing is held to be generalised.
        high: a' from which on a member has generalised.
        delay: Steps between memorising and generalising beyond which it is grokking.
        plateau: a' moves less than this on a plateau.
        plateau_share: Share of the run that a plateau lasts at least.
        start: a' from which on a member started generalised.
    """

    memorised: float = 0.99
    low: float = 0.10
    high: float = 0.90
    delay: int = 1000
    plateau: float = 0.05
    plateau_share: float = 0.10
    start: float = 0.90

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"regimes: expected a finite number for '{field.name}', got {value!r}")
        if not 0 < self.low < self.high <= 1:
            raise ValueError(f"regimes: expected 0 < low < high <= 1, got low {self.low}, high {self.high}")
        for name in ("memorised", "plateau", "plateau_share", "start"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"regimes: expected '{name}' above 0 and at most 1, got {getattr(self, name)}")
        if self.delay < 0:
            raise ValueError(f"regimes: expected 'delay' of at least 0 steps, got {self.delay}")


DEFAULT_RULE = RegimeRule()


def regimes_of(sweep: Sweep, final: Final, rule: RegimeRule = DEFAULT_RULE) -> tuple[str, ...]:
    """Says what became of each member, by the definitions at the top of this file.

    Args:
        sweep: The sweep.
        final: At which step each member is read, whether it had converged by then, and whether its accuracy on
            unpaired rows, where it is judged on those, was still too: `final_values` tells. Nothing later counts.
        rule: Thresholds.

    Returns:
        One of `REGIMES` for each member.

    Raises:
        ValueError: If `final` is of another number of members.
    """
    if final.converged.shape != sweep.size.shape:
        raise ValueError(f"expected values at the end of {len(sweep.size)} members, got {len(final.converged)}")
    start = _corrected(sweep.start_accuracy, sweep.chance)
    found = []
    for member, split in enumerate(judged_on(sweep)):
        unpaired = split == "held_out_unpaired"
        accuracy = _corrected((sweep.unpaired if unpaired else sweep.accuracy)[:, member], sweep.chance)
        counted = np.isfinite(accuracy) & (sweep.step >= sweep.began[member]) & (sweep.step <= final.step[member])
        train = sweep.train_accuracy[:, member]
        settled = final.converged[member] and (final.unpaired_still[member] or not unpaired)
        if not settled or not counted.any():
            found.append("not converged")
        elif start[member] >= rule.start:
            found.append(_after_forgetting(float(accuracy[counted][-1]), rule))
        else:
            found.append(_from_scratch(sweep.step[counted], train[counted], accuracy[counted], rule))
    return tuple(found)


def judged_on(sweep: Sweep) -> tuple[str, ...]:
    """The split on which each member is judged: `held_out_unpaired`, or `held_out` where there is none."""
    unpaired = np.asarray(np.isfinite(sweep.unpaired).any(axis=0))
    return tuple("held_out_unpaired" if some else "held_out" for some in unpaired)


def definitions(rule: RegimeRule = DEFAULT_RULE) -> dict[str, str]:
    """Each regime's definition in one line, with the thresholds of a rule."""
    low, high, delay = f"{rule.low:g}", f"{rule.high:g}", f"{rule.delay:g} steps"
    memorised = f"train accuracy reached {rule.memorised:g}"
    middling = f"accuracy ended between {low} and {high}"
    plateau = f"stayed within {rule.plateau:g} between {low} and {high} over {rule.plateau_share:.0%} of the run"
    return {
        "confusion": f"train accuracy never reached {rule.memorised:g}, and accuracy ended below {high}",
        "comprehension": f"accuracy ended at {high} or more, first reached within {delay} of memorising",
        "grokking": f"accuracy ended at {high} or more, first reached over {delay} after memorising",
        "memorisation": f"{memorised}, and accuracy ended below {low}",
        "partial comprehension": f"{memorised}, {middling}, and was {low} less than {delay} after memorising",
        "semi-grokking": f"{memorised}, {middling}, and first was {low} at least {delay} after memorising",
        "transient semi-grokking": f"accuracy {plateau} after memorising, and ended at {high} or more",
        "ungrokked": f"began generalised, and accuracy ended below {low}",
        "partly ungrokked": f"began generalised, and {middling}",
        "kept": f"began generalised, and accuracy ended at {high} or more",
        "not converged": "accuracy or parameter norm still moved when the sweep was read, or was not measured for long",
    }


def _corrected(accuracy: NDArray[np.float64], chance: float) -> NDArray[np.float64]:
    """Accuracy as a share of the way from chance to 1."""
    floor = 0.0 if math.isnan(chance) else chance
    return np.asarray((accuracy - floor) / (1 - floor))


def _after_forgetting(final: float, rule: RegimeRule) -> str:
    if final < rule.low:
        return "ungrokked"
    return "kept" if final >= rule.high else "partly ungrokked"


def _from_scratch(
    step: NDArray[np.float64], train: NDArray[np.float64], accuracy: NDArray[np.float64], rule: RegimeRule
) -> str:
    """The regime of one member that started from scratch, from its series `(T,)`, all of a' finite."""
    final = float(accuracy[-1])
    memorised = _first(step, train >= rule.memorised)
    if final >= rule.high:
        after = step >= memorised
        if _has_plateau(step[after], accuracy[after], rule, rule.plateau_share * (step[-1] - step[0])):
            return "transient semi-grokking"
        late = _first(step, accuracy >= rule.high) - memorised > rule.delay
        return "grokking" if late else "comprehension"
    if math.isinf(memorised):
        return "confusion"
    if final < rule.low:
        return "memorisation"
    late = _first(step, accuracy >= rule.low) - memorised >= rule.delay
    return "semi-grokking" if late else "partial comprehension"


def _first(step: NDArray[np.float64], reached: NDArray[np.bool_]) -> float:
    """The first step at which something is reached; infinity for never."""
    return float(step[reached.argmax()]) if reached.any() else math.inf


def _has_plateau(step: NDArray[np.float64], accuracy: NDArray[np.float64], rule: RegimeRule, lasting: float) -> bool:
    """Whether middling accuracy moved less than the rule's plateau over so many steps."""
    middling = (accuracy >= rule.low) & (accuracy < rule.high)
    for first in np.flatnonzero(middling):
        rest = accuracy[first:]
        moved = np.maximum.accumulate(rest) - np.minimum.accumulate(rest)
        on_it = np.logical_and.accumulate(middling[first:] & (moved < rule.plateau))
        last = first + int(on_it.sum()) - 1
        if last - first + 1 >= LEAST_MEASURED and step[last] - step[first] >= lasting:
            return True
    return False
