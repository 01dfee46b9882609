"""At which training-set size a network generalises, and what that says of two predictions.

Predictions 2 and 3 of Varma, Shah, Kenton, Kramár, Kumar 2023 (arXiv 2309.02390), there of networks that generalised
and then trained on with a smaller set until they converged: final held-out accuracy changes from chance to 1 within a
narrow range of sizes (P2), and where that is does not depend on the strength of weight decay (P3). The paper shows
both by curves alone; the numbers below, their margins and what counts as converged are ours:

- Speed is proportional to weight decay. All members are therefore read at one *decay time* T* (sum over steps of
  learning rate times weight decay), not at one step, and only members that have converged by then count. One that went
  through less than a few decay units has not, and does not set T*: it is read at its own end.
- The critical size D_crit of one seed is where a logistic curve in log D passes one half between chance and 1.
- Training sets of one seed are nested, so that its points are not independent of each other: each seed gives one
  number, and intervals are Student's t over seeds.
- No weight can exceed 1/λ under AdamW. An arm in which most of the squared norm is in weights above half of that is *in
  the box*: there it is not the pull of the decay that limits the weights, and P3 does not speak of it.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import least_squares
from scipy.special import expit
from scipy.stats import t as student

from grok_lightning.sweeps.reading import Sweep, last_measured

__all__ = [
    "DEFAULT_MARGINS",
    "Arm",
    "Curve",
    "Final",
    "Interval",
    "Margins",
    "Outcome",
    "Verdict",
    "arms_of",
    "common_time",
    "compared_arms",
    "final_values",
    "fit_curve",
    "too_short",
    "verdicts",
]

Outcome = Literal["supported", "refuted", "undecided"]

LEAST_MEASURED = 3
"""Measurements in the last part of the time without which nothing is said to have converged."""

SAME_TIME = 1e-9
"""Relative difference up to which two decay times, sums of many numbers, are the same."""

NARROWEST, WIDEST = 0.01, 3.0
"""Bounds of a fitted curve's width in log D: 90 % at 1.04 times the size of 10 %, and at 530,000 times."""

BEYOND = 1.0
"""How far beyond the sizes measured, in log D, a fit may look for its middle; one that ends there is none."""


@dataclass(frozen=True)
class Margins:
    """What counts as converged and as a verdict: to be written down before a sweep is run.

    Attributes:
        accuracy_moved: A converged member's held-out accuracy, largest minus smallest in the window, moved less.
        norm_moved: Likewise its parameter norm, as a share of its mean in the window.
        window: The window: this last share of the decay time at which members are read.
        at_least: Decay time below which nothing has converged.
        box_share: An arm is in the box if the median over members of the share of the squared norm in weights above
            half of the box is larger.
        width: P2: the size at 90 % is less than this many times the size at 10 %.
        low_end: P2: accuracy at the smallest size is below this share of the way from chance to 1.
        high_end: P2: accuracy at the largest size is above this.
        slope: P3: d log D_crit / d log λ lies between minus this and this.
        confidence: Of the intervals.
    """

    accuracy_moved: float = 0.02
    norm_moved: float = 0.02
    window: float = 1 / 3
    at_least: float = 3.0
    box_share: float = 0.5
    width: float = 4.0
    low_end: float = 0.2
    high_end: float = 0.95
    slope: float = 0.1
    confidence: float = 0.95

    def __post_init__(self) -> None:
        for name in _NAMES:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"margins: expected a finite number for '{name}', got {value!r}")
        for name in ("accuracy_moved", "norm_moved", "slope"):
            if getattr(self, name) <= 0:
                raise ValueError(f"margins: expected '{name}' above 0, got {getattr(self, name)}")
        for name in ("window", "box_share", "confidence"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"margins: expected '{name}' between 0 and 1, got {getattr(self, name)}")
        if self.at_least < 0:
            raise ValueError(f"margins: expected 'at_least' of at least 0 decay units, got {self.at_least}")
        if self.width <= 1:
            raise ValueError(f"margins: expected 'width', a ratio of sizes, above 1, got {self.width}")
        if not 0 <= self.low_end < self.high_end <= 1:
            raise ValueError(
                f"margins: expected 0 <= low_end < high_end <= 1, got low_end {self.low_end}, high_end {self.high_end}"
            )

    @classmethod
    def from_record(cls, record: xr.DataTree) -> tuple["Margins", bool]:
        """The margins that were written down with a run.

        Args:
            record: A record; its attribute `margins` is the text of a JSON object with some or all of the names. A
                joined record of runs with different margins has none.

        Returns:
            The margins, and whether they were written there; otherwise they are the defaults.

        Raises:
            ValueError: If the attribute is no such text, has a name that margins do not have, or a value out of range.
        """
        text = record.attrs.get("margins")
        if text is None:
            return cls(), False
        try:
            values = json.loads(text)
        except (TypeError, ValueError) as error:
            raise ValueError(f"margins: expected the text of a JSON object, got {text!r}") from error
        if not isinstance(values, dict):
            raise ValueError(f"margins: expected a JSON object, got {text!r}")
        unknown = sorted(set(values) - set(_NAMES))
        if unknown:
            raise ValueError(f"margins: unknown {', '.join(unknown)}; expected some of {', '.join(_NAMES)}")
        return cls(**values), True


_NAMES = tuple(field.name for field in fields(Margins))

DEFAULT_MARGINS = Margins()


# ---- what is read of each member -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Final:
    """What was measured of each member at the end, all `(E,)`; NaN where it was not.

    Attributes:
        accuracy: On all held-out rows.
        unpaired: On held-out rows whose swap is held out too.
        train_accuracy: On the rows then trained on.
        lowest_train_accuracy: The lowest since the small training set began.
        norm: L2 norm of all parameters.
        box_share: Share of the squared norm in weights above half of the box.
        time: Decay time of the measurement.
        step: Step of the measurement.
        converged: Whether the member had converged by then, bool.
        unpaired_still: Whether accuracy on unpaired rows, too, moved less than the margin in the window, bool.
    """

    accuracy: NDArray[np.float64]
    unpaired: NDArray[np.float64]
    train_accuracy: NDArray[np.float64]
    lowest_train_accuracy: NDArray[np.float64]
    norm: NDArray[np.float64]
    box_share: NDArray[np.float64]
    time: NDArray[np.float64]
    step: NDArray[np.float64]
    converged: NDArray[np.bool_]
    unpaired_still: NDArray[np.bool_]


def common_time(sweep: Sweep, margins: Margins = DEFAULT_MARGINS) -> float:
    """The decay time T* that all members with weight decay got to: the smallest of their last ones; NaN without any.

    Those that are `too_short` do not set it.
    """
    last = _last_times(sweep)[_decayed(sweep) & ~too_short(sweep, margins)]
    last = last[np.isfinite(last)]
    return float(last.min()) if last.size else math.nan


def too_short(sweep: Sweep, margins: Margins = DEFAULT_MARGINS) -> NDArray[np.bool_]:
    """Which members with weight decay went through less than `margins.at_least` decay units in all: bool `(E,)`.

    One whose decay time is not known is none of them.
    """
    return _decayed(sweep) & (_last_times(sweep) < margins.at_least * (1 - SAME_TIME))


def final_values(sweep: Sweep, time: float | None = None, margins: Margins = DEFAULT_MARGINS) -> Final:
    """Reads all members at one decay time, and says which of them had converged.

    A member has converged if over the last part of the time (`margins.window`), measured at least three times, its
    held-out accuracy and its norm moved less than the margins, and that time is at least `margins.at_least`.

    Args:
        sweep: The sweep.
        time: The decay time T*; `common_time` of the sweep where it is not given. A member that did not get there, or
            is `too_short`, is read at its last measurement and has not converged.
        margins: What counts as converged.

    Returns:
        The values at each member's last measurement up to T*. Members without weight decay have no such time: they are
        read at their last measurement and have never converged.
    """
    until = common_time(sweep, margins) if time is None else float(time)
    decayed, last = _decayed(sweep), _last_times(sweep)
    counted = sweep.step[:, None] >= sweep.began
    at_end = ~decayed | too_short(sweep, margins)
    readable = np.isfinite(sweep.time) & counted & (at_end | (sweep.time <= until * (1 + SAME_TIME)))
    rows = last_measured(np.where(readable, 0.0, np.nan))
    up_to = counted & (np.arange(len(sweep.step))[:, None] <= rows)

    in_window = readable & (sweep.time >= (1 - margins.window) * until * (1 - SAME_TIME))
    accuracy, norm = _moved(sweep.accuracy, in_window), _moved(sweep.norm, in_window)
    unpaired = _moved(sweep.unpaired, in_window)
    scale = np.abs(_over(np.mean, sweep.norm, in_window))
    # Written so that NaN, of a member that diverged, is no convergence.
    still = (accuracy < margins.accuracy_moved) & (norm < margins.norm_moved * scale)
    long_enough = until > 0 and until >= margins.at_least * (1 - SAME_TIME)
    arrived = decayed & long_enough & (last >= until * (1 - SAME_TIME))
    return Final(
        accuracy=_at(sweep.accuracy, rows),
        unpaired=_at(sweep.unpaired, rows),
        train_accuracy=_at(sweep.train_accuracy, rows),
        lowest_train_accuracy=_over(np.min, sweep.train_accuracy, up_to & np.isfinite(sweep.train_accuracy)),
        norm=_at(sweep.norm, rows),
        box_share=_at(sweep.box_share, rows),
        time=_at(sweep.time, rows),
        step=_at(np.broadcast_to(sweep.step[:, None], sweep.time.shape), rows),
        converged=arrived & still & (in_window.sum(axis=0) >= LEAST_MEASURED),
        unpaired_still=unpaired < margins.accuracy_moved,
    )


def _decayed(sweep: Sweep) -> NDArray[np.bool_]:
    """Which members have weight decay: `(E,)`."""
    return np.asarray(sweep.weight_decay > 0)


def _last_times(sweep: Sweep) -> NDArray[np.float64]:
    """Decay time of each member's last measurement: `(E,)`."""
    return _at(sweep.time, last_measured(sweep.time))


def _at(values: NDArray[np.float64], rows: NDArray[np.intp]) -> NDArray[np.float64]:
    """Each member's value in a row of its own: `(E,)` from `(T, E)`; NaN where the row is −1."""
    if not len(values):
        return np.full(len(rows), np.nan)
    return np.where(rows < 0, np.nan, values[rows, np.arange(len(rows))])


def _over(
    function: Callable[[NDArray[np.float64]], Any], values: NDArray[np.float64], chosen: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """A function of the chosen values of each member: `(E,)` from `(T, E)`; NaN where none is chosen, or one is NaN."""
    columns = zip(values.T, chosen.T, strict=True)
    return np.array([function(column[some]) if some.any() else np.nan for column, some in columns], dtype=np.float64)


def _moved(values: NDArray[np.float64], chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
    return _over(np.max, values, chosen) - _over(np.min, values, chosen)


# ---- the curve of one seed -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """Accuracy as a logistic function of log D, D the training-set size.

    Attributes:
        critical_size: D_crit, where it passes one half between chance and 1.
        width_parameter: s, the scale of the logistic function in log D.
        chance: Accuracy far below the critical size.
        resolution: Of the sizes that it was fitted to, the first above the critical size over the last one below it:
            a transition narrower than that was not seen as such. NaN where unknown.
    """

    critical_size: float
    width_parameter: float
    chance: float = 0.0
    resolution: float = math.nan

    @property
    def width(self) -> float:
        """The size at 90 % of the way from chance to 1, over the size at 10 %."""
        return math.exp(2 * math.log(9) * self.width_parameter)

    def at(self, sizes: ArrayLike) -> NDArray[np.float64]:
        """Accuracy at sizes, of their shape."""
        z = (np.log(np.asarray(sizes, dtype=np.float64)) - math.log(self.critical_size)) / self.width_parameter
        return np.asarray(self.chance + (1 - self.chance) * expit(z), dtype=np.float64)


def fit_curve(sizes: ArrayLike, accuracies: ArrayLike, chance: float) -> Curve | None:
    """Fits `chance + (1 - chance) expit((log D - log D_crit) / s)` by least squares.

    The search starts at the crossing of one half, and at the best point of a grid. Points on the flat parts alone do
    not tell the width: it then comes out as the smallest that is looked for, and `resolution` says what the sizes can.

    Args:
        sizes: D of each point, above 0, `(N,)`. Points with a size or accuracy of NaN do not count.
        accuracies: Held-out accuracy of each point, `(N,)`.
        chance: Accuracy of guessing, in [0, 1); NaN is taken for 0.

    Returns:
        The curve; None with fewer than three different sizes, or when the accuracies do not rise past one half
        between chance and 1 within the sizes.

    Raises:
        ValueError: If the lengths differ, a size is not above 0, or `chance` is out of range.
    """
    size, accuracy = np.asarray(sizes, dtype=np.float64), np.asarray(accuracies, dtype=np.float64)
    if size.ndim != 1 or size.shape != accuracy.shape:
        raise ValueError(f"expected as many accuracies as sizes, got shapes {accuracy.shape} and {size.shape}")
    if (size <= 0).any():
        raise ValueError(f"expected sizes above 0, got {size.min()}")
    floor = _floor(chance)
    present = np.isfinite(size) & np.isfinite(accuracy)
    x, y = np.log(size[present]), accuracy[present]
    distinct, which = np.unique(x, return_inverse=True)
    if len(distinct) < 3:
        return None
    above = np.bincount(which, y) / np.bincount(which) >= (1 + floor) / 2
    if above[0] or not above[-1]:
        return None
    crossed = np.flatnonzero(above[1:] != above[:-1])
    middle, width = _least_squares(x, y, floor, float((distinct[crossed] + distinct[crossed + 1]).mean() / 2))
    if not distinct[0] <= middle <= distinct[-1]:
        return None
    right = int(np.clip(np.searchsorted(distinct, middle, side="right"), 1, len(distinct) - 1))
    return Curve(math.exp(middle), width, floor, math.exp(distinct[right] - distinct[right - 1]))


def _floor(chance: float) -> float:
    """Chance as a number."""
    if math.isnan(chance):
        return 0.0
    if not 0 <= chance < 1:
        raise ValueError(f"expected chance in [0, 1), got {chance}")
    return float(chance)


def _least_squares(
    x: NDArray[np.float64], y: NDArray[np.float64], floor: float, crossing: float
) -> tuple[float, float]:
    """Middle and scale of the curve nearest to the points."""
    low, high = float(x.min()) - BEYOND, float(x.max()) + BEYOND

    def residuals(p: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(floor + (1 - floor) * expit((x - p[0]) / math.exp(p[1])) - y)

    def jacobian(p: NDArray[np.float64]) -> NDArray[np.float64]:
        z = (x - p[0]) / math.exp(p[1])
        steepness = -(1 - floor) * expit(z) * expit(-z)
        return np.stack([steepness / math.exp(p[1]), steepness * z], axis=1)

    # The scale is searched on a log axis, where bounds keep it above 0.
    bounds = (np.array([low, math.log(NARROWEST)]), np.array([high, math.log(WIDEST)]))
    middles, scales = np.linspace(low, high, 60), np.geomspace(NARROWEST, WIDEST, 30)
    fitted = floor + (1 - floor) * expit((x - middles[:, None, None]) / scales[:, None])
    i, j = np.unravel_index(((fitted - y) ** 2).sum(axis=2).argmin(), (len(middles), len(scales)))
    starts = [(crossing, math.log(0.3)), (float(middles[i]), float(np.log(scales[j])))]
    # Of a step alone every narrow curve within the gap is a fit, and the one at its middle is the fairest.
    found = [np.array([crossing, math.log(NARROWEST)])]
    for start in starts:
        inside = np.clip(start, bounds[0] + 1e-9, bounds[1] - 1e-9)
        found.append(least_squares(residuals, inside, jacobian, bounds=bounds).x)
    costs = [float((residuals(p) ** 2).sum()) for p in found]
    best = next(p for p, cost in zip(found, costs, strict=True) if cost <= min(costs) * (1 + 1e-6) + 1e-9)
    return float(best[0]), math.exp(float(best[1]))


# ---- arms ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Interval:
    """A mean over seeds, and its t interval.

    Attributes:
        mean: The mean; of logarithms, given back as a number, for sizes and their ratios.
        low: Lower end; NaN for one seed.
        high: Upper end; NaN for one seed.
        n: Number of seeds.
    """

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, eq=False)
class Arm:
    """Members with one weight decay and one eps.

    Attributes:
        weight_decay: λ.
        eps: The optimizer's eps; NaN if it has none.
        members: Their positions in the sweep, `(n_members,)`.
        sizes: Their different training-set sizes, ascending.
        in_box: Whether `box_share` is above the margin.
        box_share: Median over members, of the share of the squared norm in weights above half of the box; NaN where
            there is no box.
        curves: The fit of each seed; None where its converged members allow none.
        critical_size: D_crit over seeds; None when no seed has one.
        width: D at 90 % over D at 10 %, over seeds; None when no seed has one.
        low_end: Mean accuracy of converged members at the smallest of `sizes`; NaN when none converged there.
        high_end: Likewise at the largest.
        n_members: Number of members.
        n_converged: How many of them had converged.
    """

    weight_decay: float
    eps: float
    members: NDArray[np.intp]
    sizes: NDArray[np.float64]
    in_box: bool
    box_share: float
    curves: dict[int, Curve | None]
    critical_size: Interval | None
    width: Interval | None
    low_end: float
    high_end: float
    n_members: int
    n_converged: int


def arms_of(sweep: Sweep, margins: Margins = DEFAULT_MARGINS, time: float | None = None) -> tuple[Arm, ...]:
    """Sorts the members of a sweep into arms, and fits a curve to each seed of each arm.

    Args:
        sweep: The sweep. Members of unknown weight decay are in no arm.
        margins: What counts as converged and as in the box, and the confidence of intervals.
        time: The decay time at which members are read, as for `final_values`.

    Returns:
        The arms by ascending weight decay, then eps (NaN last). Only converged members enter fits and ends; without
        weight decay there are none.
    """
    final = final_values(sweep, time, margins)
    keys = sorted(
        {(float(decay), _key(eps)) for decay, eps in zip(sweep.weight_decay, sweep.eps, strict=True) if decay >= 0}
    )
    eps_keys = np.array([_key(eps) for eps in sweep.eps])
    return tuple(
        _arm(sweep, final, margins, np.flatnonzero((sweep.weight_decay == decay) & (eps_keys == key)))
        for decay, key in keys
    )


def _key(eps: float) -> float:
    """Eps such that NaN equals itself, and comes last."""
    return math.inf if math.isnan(eps) else float(eps)


def _arm(sweep: Sweep, final: Final, margins: Margins, members: NDArray[np.intp]) -> Arm:
    shares = final.box_share[members]
    shares = shares[np.isfinite(shares)]
    share = float(np.median(shares)) if shares.size else math.nan
    settled = members[final.converged[members]]
    curves = {
        int(seed): fit_curve(sweep.size[own], final.accuracy[own], sweep.chance)
        for seed in np.unique(sweep.seed[members])
        for own in [settled[sweep.seed[settled] == seed]]
    }
    fitted = [curve for curve in curves.values() if curve is not None]
    ends = [_end_of_seeds(sweep, final, members, largest=largest) for largest in (False, True)]
    return Arm(
        weight_decay=float(sweep.weight_decay[members[0]]),
        eps=float(sweep.eps[members[0]]),
        members=members,
        sizes=np.unique(sweep.size[members]),
        in_box=share > margins.box_share,
        box_share=share,
        curves=curves,
        critical_size=_log_interval([curve.critical_size for curve in fitted], margins.confidence),
        width=_log_interval([curve.width for curve in fitted], margins.confidence),
        low_end=float(np.mean(ends[0])) if ends[0].size else math.nan,
        high_end=float(np.mean(ends[1])) if ends[1].size else math.nan,
        n_members=len(members),
        n_converged=len(settled),
    )


def _end_of_seeds(sweep: Sweep, final: Final, members: NDArray[np.intp], *, largest: bool) -> NDArray[np.float64]:
    """Mean accuracy of each seed's converged members at the smallest or largest size of an arm, one entry a seed."""
    size = sweep.size[members].max() if largest else sweep.size[members].min()
    at_end = members[(sweep.size[members] == size) & final.converged[members]]
    by_seed = [final.accuracy[at_end[sweep.seed[at_end] == seed]].mean() for seed in np.unique(sweep.seed[at_end])]
    return np.array(by_seed, dtype=np.float64)


def _interval(values: Iterable[float], confidence: float) -> Interval | None:
    """Mean and t interval of one number a seed; None without any."""
    numbers = np.array([*values], dtype=np.float64)
    n = len(numbers)
    if n == 0:
        return None
    mean = float(numbers.mean())
    if n == 1:
        return Interval(mean, math.nan, math.nan, 1)
    half = float(student.ppf((1 + confidence) / 2, n - 1)) * float(numbers.std(ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def _log_interval(values: Iterable[float], confidence: float) -> Interval | None:
    """The same, of logarithms, given back as numbers."""
    found = _interval((math.log(value) for value in values), confidence)
    if found is None:
        return None
    return Interval(math.exp(found.mean), math.exp(found.low), math.exp(found.high), found.n)


# ---- verdicts --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """What a sweep says of a prediction.

    Attributes:
        name: `P2` or `P3`, as the paper counts them.
        claim: The prediction.
        outcome: `supported`, `refuted` or `undecided`.
        because: One sentence with the numbers.
        margins_written: Whether the margins were written down before the sweep was run.
    """

    name: Literal["P2", "P3"]
    claim: str
    outcome: Outcome
    because: str
    margins_written: bool


CLAIMS: dict[Literal["P2", "P3"], str] = {
    "P2": "Final held-out accuracy changes sharply with the size of the training set.",
    "P3": "The size at which it changes does not depend on weight decay.",
}


def verdicts(
    sweep: Sweep, margins: Margins = DEFAULT_MARGINS, written: bool = False, time: float | None = None
) -> tuple[Verdict, Verdict]:
    """Judges predictions 2 and 3 by a sweep.

    Both are of networks that had generalised before their training set was made small: nothing is decided by a sweep in
    which most members started from scratch.

    P2, of each arm with weight decay: supported if the upper end of the interval of D at 90 % over D at 10 % is below
    `margins.width`, the sizes next to each seed's critical size are closer together than that, and mean accuracy at the
    smallest size is below `margins.low_end`, as a share of the way from chance to 1, and at the largest size above
    `margins.high_end`; refuted if the lower end of that interval is above `margins.width`, or the interval of an end
    lies on its wrong side; else undecided. All arms together: supported if all are, refuted if any is.

    P3: the least-squares slope of log D_crit on log λ of each seed that has a critical size in at least two arms, over
    arms with weight decay that are not in the box and have one eps (`compared_arms`). Supported if the
    interval over seeds lies within `margins.slope` of 0, refuted if it lies wholly outside, else undecided, also with
    fewer than two seeds.

    Args:
        sweep: The sweep.
        margins: The margins.
        written: Whether they were written down before the sweep was run; passed through.
        time: The decay time at which members are read, as for `final_values`.

    Returns:
        The verdicts on P2 and P3.
    """
    final = final_values(sweep, time, margins)
    arms = [arm for arm in arms_of(sweep, margins, time) if arm.weight_decay > 0]
    start = sweep.start_accuracy[np.isfinite(sweep.start_accuracy)]
    if start.size and np.median(start) < (1 + _floor(sweep.chance)) / 2:
        scratch = (
            f"Members started from scratch, at accuracy {_few(np.median(start))}; this is of networks that forget."
        )
        judged: dict[str, tuple[Outcome, str]] = dict.fromkeys(CLAIMS, ("undecided", scratch))
    else:
        judged = {"P2": _sharp(sweep, final, arms, margins), "P3": _independent(arms, margins)}
    second, third = (Verdict(name, claim, *judged[name], written) for name, claim in CLAIMS.items())
    return second, third


def _sharp(sweep: Sweep, final: Final, arms: list[Arm], margins: Margins) -> tuple[Outcome, str]:
    """P2 over all arms."""
    if not arms:
        return "undecided", "No member has weight decay."
    judged = [(arm, *_sharp_arm(sweep, final, arm, margins)) for arm in arms]
    outcomes = {outcome for _, outcome, _ in judged}
    verdict: Outcome = "undecided"
    if outcomes == {"supported"}:
        verdict = "supported"
    elif "refuted" in outcomes:
        verdict = "refuted"
    reasons = [f"{_name(arm, arms)}: {reason}" for arm, outcome, reason in judged if outcome == verdict]
    return verdict, _sentence("; ".join(reasons))


def _sharp_arm(sweep: Sweep, final: Final, arm: Arm, margins: Margins) -> tuple[Outcome, str]:
    """P2 of one arm, and why."""
    floor = _floor(sweep.chance)
    lowest, highest = (_end_of_seeds(sweep, final, arm.members, largest=largest) for largest in (False, True))
    low = _interval((lowest - floor) / (1 - floor), margins.confidence)
    high = _interval(highest, margins.confidence)
    if low is not None and low.low > margins.low_end:
        return "refuted", (
            f"accuracy at D = {_few(arm.sizes[0])} is {_words(low)} of the way from chance to 1, not below "
            f"{_few(margins.low_end)}"
        )
    if high is not None and high.high < margins.high_end:
        return "refuted", (
            f"accuracy at D = {_few(arm.sizes[-1])} is {_words(high)}, not above {_few(margins.high_end)}"
        )
    if arm.width is None:
        return "undecided", f"its {arm.n_converged} converged of {arm.n_members} members allow no curve"
    width = f"D at 90 % over D at 10 % is {_words(arm.width)}"
    if arm.width.low > margins.width:
        return "refuted", f"{width}, not below {_few(margins.width)}"
    apart = max(curve.resolution for curve in arm.curves.values() if curve is not None)
    if not arm.width.high < margins.width:
        return "undecided", f"{width}, which does not tell it from {_few(margins.width)}"
    if not apart < margins.width:
        return "undecided", f"{width}, but the nearest sizes that converged are a factor {_few(apart)} apart"
    if low is None or high is None:
        return "undecided", f"{width}, but no member converged at the {'smallest' if low is None else 'largest'} size"
    ends = f"ends at {low.mean:.3f} of the way from chance to 1 and at accuracy {high.mean:.3f}"
    if not (low.mean < margins.low_end and high.mean > margins.high_end):
        return "undecided", f"{width}, but {ends}"
    return "supported", f"{width}, {ends}"


def compared_arms(arms: Iterable[Arm]) -> tuple[Arm, ...]:
    """The arms by which P3 is judged: with weight decay, not in the box, and of the eps that most of these have.

    Of several eps that are equally common, it is the smallest, as AdamW's default is small.
    """
    outside = [arm for arm in arms if arm.weight_decay > 0 and not arm.in_box]
    counted = Counter(_key(arm.eps) for arm in outside)
    eps = min(counted, key=lambda key: (-counted[key], key), default=math.inf)
    return tuple(arm for arm in outside if _key(arm.eps) == eps)


def _independent(arms: list[Arm], margins: Margins) -> tuple[Outcome, str]:
    """P3, and why."""
    used = compared_arms(arms)
    of_arms = _of_arms(arms, used)
    slopes = [_slope(used, seed) for seed in {seed for arm in used for seed in arm.curves}]
    found = _interval([slope for slope in slopes if slope is not None], margins.confidence)
    if found is None:
        return "undecided", _sentence(f"No seed has a critical size in two arms, {of_arms}")
    said = f"by seed, d log D_crit / d log λ is {_words(found, _to_thousandths)}, {of_arms}"
    if found.n < 2:
        return "undecided", _sentence(said)
    if found.low > -margins.slope and found.high < margins.slope:
        return "supported", _sentence(said)
    if found.low > margins.slope or found.high < -margins.slope:
        return "refuted", _sentence(said)
    return "undecided", _sentence(f"{said}, which does not tell it from ±{_few(margins.slope)}")


def _slope(arms: Iterable[Arm], seed: int) -> float | None:
    """Least-squares slope of log D_crit on log λ of one seed; None with fewer than two arms."""
    points = [
        (math.log(arm.weight_decay), math.log(curve.critical_size))
        for arm in arms
        if (curve := arm.curves.get(seed)) is not None
    ]
    if len(points) < 2:
        return None
    x, y = np.array(points).T
    return float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())


# ---- words -----------------------------------------------------------------------------------------------------------


def _name(arm: Arm, arms: list[Arm]) -> str:
    """An arm in words; eps only where arms differ in it."""
    eps = f" (eps {_few(arm.eps)})" if len({_key(other.eps) for other in arms}) > 1 else ""
    return f"λ = {_few(arm.weight_decay)}{eps}"


def _of_arms(arms: list[Arm], used: tuple[Arm, ...]) -> str:
    """Which arms took part, and which did not."""
    took = ", ".join(_name(arm, arms) for arm in used) or "none"
    left = ", ".join(
        f"{_name(arm, arms)}, {'in the box' if arm.in_box else 'of another eps'}" for arm in arms if arm not in used
    )
    return f"arms: {took}" + (f"; left out: {left}" if left else "")


def _words(interval: Interval, form: Callable[[float], str] | None = None) -> str:
    form = form or _few
    if interval.n == 1:
        return f"{form(interval.mean)} (one seed, no interval)"
    return f"{form(interval.mean)} ({form(interval.low)} to {form(interval.high)} over {interval.n} seeds)"


def _few(value: float) -> str:
    """A number in three digits."""
    return f"{value:.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.3g}"


def _to_thousandths(value: float) -> str:
    """A slope; never -0.000."""
    return f"{round(value, 3) + 0.0:.3f}"


def _sentence(text: str) -> str:
    # A capital λ would be another symbol.
    return f"{text}." if text.startswith("λ") else f"{text[:1].upper()}{text[1:]}."
