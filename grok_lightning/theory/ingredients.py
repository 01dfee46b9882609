"""Three ingredients of grokking: two lookup tables under gradient descent, after Section 3 of Varma et al. 2023."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from grok_lightning.theory.claims import Line
from grok_lightning.theory.effective_loss import EffectiveLoss, optimum

__all__ = [
    "PHASES",
    "Ingredients",
    "Outcome",
    "PhaseMap",
    "Trajectory",
    "at_rest",
    "frozen_without_decay",
    "log_steps",
    "losses",
    "onset",
    "outcome",
    "phase_map",
    "simulate",
    "three_ingredients",
    "time_to_grok",
    "too_slow_to_win",
    "two_circuits_at_rest",
]

Array: TypeAlias = NDArray[np.float64]
Optimizer: TypeAlias = Literal["gradient_descent", "adamw"]

PHASES = ("groks", "at once", "forgets", "never generalises", "learns nothing")
"""What a run can come to; `outcome` says when which."""

SHARE = 0.5  # Of the loss of guessing: a loss below it has fallen.
SUB_WEIGHTS = ("generaliser_first", "generaliser_second", "memoriser_first", "memoriser_second")
BETAS, EPS = (0.9, 0.999), 1e-8  # Of AdamW; what the library that is used most has by default.

DRAWS = 50
STEPS = 20_000  # Of Table 1.
REST = 1e-9  # Descent nears its end by a factor a step; less than 1e-12 is left in the slowest of 8,000 draws.


def _check(name: str, values: Array, expected: str, right: Callable[[Array], NDArray[np.bool_]]) -> None:
    wrong = values[~(np.isfinite(values) & right(values))]
    if wrong.size:
        raise ValueError(f"{name}: expected numbers {expected}, got {wrong.ravel()[0]:g}")


@dataclass(frozen=True, eq=False)
class Ingredients:
    """What a run of the minimal example is made of; the defaults are the paper's Table 1.

    Two circuits are lookup tables. The generaliser has the right label for every row; the memoriser has it for the rows
    trained on, and a wrong one for the held-out rows. Each is weighted, and each weight is the product of two
    sub-weights, on which the descent acts. Every field is a number or an array; arrays are broadcast against one
    another.

    Ours: ``half``. The paper's Equation (2) halves the weight decay and its Appendix C does not, so that both can be
    had. That the three blocks of Table 1 are one setting is how two readings of the paper agree, not its words.

    Attributes:
        generaliser_norm: Norm P_g of the generaliser's parameters at weight 1, above 0.
        memoriser_norm: Norm P_m of the memoriser's, above 0.
        kappa: κ, above 0: a circuit of norm P has the norm P w^(1/κ) at weight w, as in a network without biases whose
            output grows with the power κ of its parameters.
        weight_decay: α, at least 0.
        learning_rate: λ, above 0.
        labels: Number q of labels, whole, at least 3.
        generaliser_first: The generaliser's first sub-weight at the start, at least 0.
        generaliser_second: Its second; the product of the two is its weight.
        memoriser_first: The memoriser's first.
        memoriser_second: The memoriser's second.
        half: Whether weight decay adds α/2 times the squared norms to the loss, as in `EffectiveLoss`, and not α times.

    Raises:
        ValueError: If a field is out of range, or the arrays cannot be broadcast.

    """

    generaliser_norm: ArrayLike = 1.0
    memoriser_norm: ArrayLike = 2.0
    kappa: ArrayLike = 1.2
    weight_decay: ArrayLike = 0.005
    learning_rate: ArrayLike = 0.01
    labels: ArrayLike = 113
    generaliser_first: ArrayLike = 0.0
    generaliser_second: ArrayLike = 0.005
    memoriser_first: ArrayLike = 0.0
    memoriser_second: ArrayLike = 1.0
    half: ArrayLike = False

    def __post_init__(self) -> None:
        for name in ("generaliser_norm", "memoriser_norm", "kappa", "learning_rate"):
            _check(name, self._numbers(name), "above 0", lambda values: values > 0)
        for part in ("weight_decay", *SUB_WEIGHTS):
            _check(part, self._numbers(part), "at least 0", lambda values: values >= 0)
        labels = self._numbers("labels")
        _check("labels", labels, "whole and at least 3", lambda values: (values >= 3) & (values == np.floor(values)))
        if np.asarray(self.half).dtype != np.bool_:
            raise ValueError(f"half: expected true or false, got {self.half!r}")
        shapes = {entry.name: np.shape(getattr(self, entry.name)) for entry in fields(self)}
        try:
            np.broadcast_shapes(*shapes.values())
        except ValueError:
            told = ", ".join(f"{name} {shape}" for name, shape in shapes.items() if shape)
            raise ValueError(f"expected shapes that can be broadcast against one another, got {told}") from None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of all fields together, ``()`` for one run."""
        return np.broadcast_shapes(*(np.shape(getattr(self, entry.name)) for entry in fields(self)))

    @property
    def guessing(self) -> Array:
        """Loss ln q of guessing, of the shape of ``labels``."""
        guessing: Array = np.log(self._numbers("labels"))
        return guessing

    @property
    def force(self) -> Array:
        """Factors f of the decay's pull f w^(2/κ − 1) on the weights, ``(2, ...)``: generaliser, then memoriser."""
        norms = np.stack(np.broadcast_arrays(self._numbers("generaliser_norm"), self._numbers("memoriser_norm")))
        each = self._numbers("weight_decay") * np.where(self.half, 0.5, 1.0) * (2 / self._numbers("kappa"))
        return _leading(norms, each.ndim) ** 2 * each

    def _numbers(self, name: str) -> Array:
        return np.asarray(getattr(self, name), dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A run, or many: weights and losses at the steps that were kept.

    NaN and infinities are where the learning rate was so large that the descent diverged.

    Attributes:
        steps: Number of updates made before, ``(T,)``, rising.
        generaliser: Its weight w_g, ``(T, ...)``.
        memoriser: Its weight w_m, ``(T, ...)``.
        train_loss: Cross-entropy of a row trained on, in nats, ``(T, ...)``.
        test_loss: Of a held-out row, ``(T, ...)``.

    """

    steps: NDArray[np.int64]
    generaliser: Array
    memoriser: Array
    train_loss: Array
    test_loss: Array


def losses(generaliser: ArrayLike, memoriser: ArrayLike, labels: ArrayLike) -> tuple[Array, Array]:
    """Return the losses of a row trained on and of a held-out row, in nats.

    Logits are w_g + w_m for the right label of a row trained on and 0 for the others; w_g for the right one of a
    held-out row, w_m for the wrong one that is remembered, and 0 for the others. Varma et al. 2023 (arXiv 2309.02390),
    Equations (3) to (5).

    Args:
        generaliser: Its weight w_g, ``(...)``.
        memoriser: Its weight w_m, ``(...)``.
        labels: Number q of labels, at least 3, ``(...)``.

    Returns:
        Both, ``(...)``, at least 0; right to rounding however large the weights are.

    """
    right, wrong = np.asarray(generaliser, dtype=np.float64), np.asarray(memoriser, dtype=np.float64)
    others = np.asarray(labels, dtype=np.float64) - 1
    train: Array = np.logaddexp(0, np.log(others) - (right + wrong))
    test: Array = np.logaddexp(0, np.logaddexp(wrong, np.log(others - 1)) - right)
    return train, test


def simulate(
    ingredients: Ingredients, steps: Sequence[int] | NDArray[np.int64], optimizer: Optimizer = "gradient_descent"
) -> Trajectory:
    """Train the two circuits: all four sub-weights at once, every step on all rows.

    The loss that is descended is L_train + α (P_g² w_g^(2/κ) + P_m² w_m^(2/κ)), the second term halved where ``half``
    says so; below weight 0, and at it, decay pulls at nothing. No size of a data set enters: all rows of one kind have
    the same loss. A circuit whose sub-weights are both 0 never moves.

    Args:
        ingredients: Of one run, or of many.
        steps: Steps to keep, rising, from 0 on; the last of them is where it ends.
        optimizer: ``"gradient_descent"`` is the paper's. ``"adamw"``, the control, is ours: Adam's moments (0.9,
            0.999, and 1e-8 added to the root) see the gradient of L_train alone; the decay is descended beside it.

    Returns:
        What was kept, in float64.

    Raises:
        ValueError: If the steps do not rise from 0 on, or the optimizer is neither of the two.

    """
    kept = np.asarray(steps)
    if kept.ndim != 1 or not kept.size or kept.dtype.kind not in "iu" or kept[0] < 0 or (np.diff(kept) < 1).any():
        raise ValueError(f"steps: expected whole numbers that rise, from 0 on, got {steps!r}")
    if optimizer not in ("gradient_descent", "adamw"):
        raise ValueError(f"optimizer: expected 'gradient_descent' or 'adamw', got {optimizer!r}")
    weights = np.empty((len(kept), 2, int(np.prod(ingredients.shape))))
    # A diverging run is told by its infinities; a warning would not say which it is.
    with np.errstate(over="ignore", invalid="ignore"):
        _descend(ingredients, kept, optimizer == "adamw", weights)
        generaliser, memoriser = (weights[:, i].reshape(-1, *ingredients.shape) for i in range(2))
        train, test = losses(generaliser, memoriser, ingredients.labels)
    return Trajectory(kept.astype(np.int64), generaliser, memoriser, train, test)


def _descend(ingredients: Ingredients, kept: NDArray[np.integer], adamw: bool, weights: Array) -> None:
    """Fill the weights at the steps kept, ``(T, 2, N)``; in place all along, since calls cost more than numbers do."""
    shape = ingredients.shape

    def flat(values: ArrayLike) -> Array:
        return np.broadcast_to(np.asarray(values, dtype=np.float64), shape).reshape(-1).copy()

    pairs = [flat(getattr(ingredients, name)) for name in SUB_WEIGHTS]
    subs = np.stack([[pairs[0], pairs[2]], [pairs[1], pairs[3]]])  # (first or second, circuit, N)
    others = subs[::-1]  # What each is multiplied with; a view.
    rate, offset = flat(ingredients.learning_rate), np.log(flat(ingredients.labels) - 1)
    force = np.stack([flat(part) for part in ingredients.force]) * rate
    power = np.stack([flat(2 / np.asarray(ingredients.kappa, dtype=np.float64) - 1)] * 2)
    flattening = bool((power <= 0).any())  # Then 0 to this power is not 0.
    weight, pull, total = np.empty_like(force), np.empty_like(force), np.empty_like(rate)
    change, mean, square = np.empty_like(subs), np.zeros_like(subs), np.zeros_like(subs)
    row = 0
    for step in range(int(kept[-1]) + 1):
        np.multiply(subs[0], subs[1], out=weight)
        if step == kept[row]:
            weights[row] = weight
            row += 1
        if row == len(kept):
            return
        np.add(weight[0], weight[1], out=total)
        np.subtract(offset, total, out=total)
        expit(total, out=total)  # How much the cross-entropy pulls at either weight.
        np.maximum(weight, 0, out=weight)
        if flattening:
            off = weight == 0
            weight[off] = 1
            np.power(weight, power, out=pull)
            pull[off] = 0
        else:
            np.power(weight, power, out=pull)
        np.multiply(pull, force, out=pull)
        if adamw:
            np.multiply(total, others, out=change)
            mean += (1 - BETAS[0]) * (change - mean)
            square += (1 - BETAS[1]) * (change**2 - square)
            root = np.sqrt(square / (1 - BETAS[1] ** (step + 1))) + EPS
            np.multiply(pull, others, out=change)
            subs += rate * (mean / (1 - BETAS[0] ** (step + 1))) / root - change
        else:
            np.multiply(total, rate, out=total)
            np.subtract(total, pull, out=pull)
            np.multiply(pull, others, out=change)
            subs += change


def onset(steps: NDArray[np.int64], holds: NDArray[np.bool_]) -> Array:
    """Return the first of the steps from which on something holds to the last of them.

    Args:
        steps: Steps, ``(T,)``, rising.
        holds: Whether it holds at each, ``(T, ...)``.

    Returns:
        ``(...)``; NaN where it does not hold at the last step. Known to the distance of the steps.

    Raises:
        ValueError: If there are not as many steps as rows.

    """
    if len(steps) != len(holds) or not len(steps):
        raise ValueError(f"expected as many steps as rows, at least one, got {len(steps)} and {len(holds)}")
    backwards = np.logical_and.accumulate(holds[::-1], axis=0)
    first = len(steps) - backwards.sum(axis=0)
    return np.where(holds[-1], steps[np.minimum(first, len(steps) - 1)], np.nan)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What runs came to.

    Attributes:
        learned: Step from which on train loss has fallen, ``(...)``; NaN where it has not by the end.
        generalised: Step from which on test loss has fallen, ``(...)``; NaN where it has not by the end.
        delay: ``generalised / learned``, at least 1, ``(...)``; NaN where either did not happen, or train loss had
            fallen at step 0 already.
        phase: One of `PHASES`, ``(...)``.

    """

    learned: Array
    generalised: Array
    delay: Array
    phase: NDArray[np.str_]


def outcome(trajectory: Trajectory, labels: ArrayLike) -> Outcome:
    """Tell what runs came to.

    The definitions are ours. A loss has *fallen* when it is below half of the loss ln q of guessing, and stays there to
    the last step. A run *groks* whose test loss falls, and was above that of guessing when train loss fell; if it was
    not, the run generalises *at once*. It *forgets* if test loss was below half once, but is not at the end;
    *never generalises* if it never was, and train loss fell; and otherwise *learns nothing*. All this is by the last
    step: a run that never generalises may do so later. One that diverged to NaN counts as having learned nothing.

    Args:
        trajectory: The runs, ``(T, ...)``; onsets are known to the distance of the steps kept.
        labels: Number q of labels, ``(...)``.

    Returns:
        Their onsets and phases.

    """
    guessing = np.log(np.asarray(labels, dtype=np.float64))
    low = trajectory.test_loss < SHARE * guessing
    learned = onset(trajectory.steps, trajectory.train_loss < SHARE * guessing)
    generalised = onset(trajectory.steps, low)
    # Test loss is never below train loss, so that what has generalised has learned.
    row = np.searchsorted(trajectory.steps, np.where(np.isnan(learned), trajectory.steps[-1], learned))
    then = np.take_along_axis(trajectory.test_loss, np.atleast_1d(row)[None].reshape(1, *learned.shape), axis=0)[0]
    fell = ~np.isnan(generalised)
    cases = [fell & (then > guessing), fell, low.any(axis=0), ~np.isnan(learned)]
    phase = np.select(cases, PHASES[:-1], PHASES[-1])
    delay = generalised / np.where(learned > 0, learned, np.nan)
    return Outcome(learned, generalised, delay, phase)


def at_rest(ingredients: Ingredients, memoriser_only: bool = False) -> Array:
    """Return the weights at which the gradient is zero.

    Where w_g / w_m = (P_m / P_g)^(2κ / (2 − κ)) and the cross-entropy pulls as decay does: for 0 < κ < 2 the minimum,
    and the only one with both weights above 0 (Varma et al. 2023, arXiv 2309.02390, Theorem D.4).

    Args:
        ingredients: Of one run, or of many.
        memoriser_only: Whether the generaliser is held at 0, as it nearly is on the plateau of memorising.

    Returns:
        ``(2, ...)``: w_g, then w_m.

    Raises:
        ValueError: If a κ is not below 2, or a weight decay is 0.

    """
    _check("kappa", ingredients._numbers("kappa"), "below 2", lambda values: values < 2)
    _check("weight_decay", ingredients._numbers("weight_decay"), "above 0", lambda values: values > 0)
    norms = ("memoriser_norm",) if memoriser_only else ("generaliser_norm", "memoriser_norm")
    parts = [ingredients._numbers(name) for name in (*norms, "kappa", "weight_decay", "labels")]
    # The paper's equation 6 halves the decay.
    runs = np.broadcast_arrays(*parts, np.where(ingredients.half, 1.0, 2.0), np.empty(ingredients.shape))
    weights = np.zeros((2, *ingredients.shape))
    for place in np.ndindex(ingredients.shape):
        *own, kappa, decay, labels, doubled, _ = (float(part[place]) for part in runs)
        weights[(slice(-len(own), None), *place)] = optimum(
            EffectiveLoss(tuple(own), kappa, doubled * decay, int(labels))
        )
    return weights


@dataclass(frozen=True, eq=False)
class PhaseMap:
    """What runs come to, over efficiency, slowness and weight decay.

    Attributes:
        norm_ratio: P_g / P_m, ``(N,)``.
        seed_ratio: Second sub-weight of the generaliser over the memoriser's, at the start, ``(S,)``.
        weight_decay: α, ``(A,)``.
        outcome: What each run came to, ``(A, S, N)``.

    """

    norm_ratio: Array
    seed_ratio: Array
    weight_decay: Array
    outcome: Outcome


def phase_map(
    norm_ratio: ArrayLike,
    seed_ratio: ArrayLike,
    weight_decay: ArrayLike,
    table: Ingredients | None = None,
    decay_time: float = 0.75,
    learning_time: float = 25.0,
) -> PhaseMap:
    """Train over a grid of the three: how efficient, how slow, how much decay.

    The memoriser stays as it is; the generaliser's norm and second sub-weight are given as multiples of its own. Decay
    sets the pace of all that comes after memorising, so each run lasts as long in units of decay, λ α steps, and as
    long besides in units of learning, λ steps. The pace goes with P_m² as well, and with the 1/2 where there is one: a
    table far from Table 1 asks for times of its own.

    Args:
        norm_ratio: P_g / P_m, ``(N,)``.
        seed_ratio: Second sub-weight of the generaliser over the memoriser's, ``(S,)``.
        weight_decay: α, ``(A,)``, above 0.
        table: All else, of one run; Table 1 if ``None``.
        decay_time: λ α steps of every run; 0.75 is three times what Table 1 needs to generalise.
        learning_time: λ steps of every run, on top; 25 is twenty times what Table 1 needs to memorise.

    Returns:
        The map. Onsets are known to about 3 %.

    Raises:
        ValueError: If a weight decay or a time is not above 0, an axis is not one, or ``table`` is of many.

    """
    table = Ingredients() if table is None else table
    if table.shape:
        raise ValueError(f"table: expected the ingredients of one run, got those of {table.shape}")
    norms, seeds, decays = (np.asarray(axis, dtype=np.float64) for axis in (norm_ratio, seed_ratio, weight_decay))
    for name, axis in (("norm_ratio", norms), ("seed_ratio", seeds), ("weight_decay", decays)):
        if axis.ndim != 1 or not axis.size:
            raise ValueError(f"{name}: expected numbers along one axis, at least one, got shape {axis.shape}")
    _check("weight_decay", decays, "above 0", lambda values: values > 0)
    for name, time in (("decay_time", decay_time), ("learning_time", learning_time)):
        _check(name, np.asarray(time, dtype=np.float64), "above 0", lambda values: values > 0)
    own = replace(
        table,
        generaliser_norm=np.asarray(table.memoriser_norm) * norms,
        generaliser_second=np.asarray(table.memoriser_second) * seeds[:, None],
    )
    found = []
    for decay in decays.tolist():
        steps = log_steps(round((decay_time / decay + learning_time) / float(np.asarray(table.learning_rate))))
        found.append(outcome(simulate(replace(own, weight_decay=decay), steps), own.labels))
    parts = {entry.name: np.stack([getattr(part, entry.name) for part in found]) for entry in fields(Outcome)}
    return PhaseMap(norms, seeds, decays, Outcome(**parts))


def log_steps(last: int, each: int = 80) -> NDArray[np.int64]:
    """Return 0 and whole steps up to the last, about so many for each factor of ten, ``(T,)``."""
    count = max(2, round(each * np.log10(max(last, 1))) + 1)
    return np.unique(np.r_[0, np.geomspace(1, max(last, 1), count).round().astype(np.int64)])


PANELS = {
    "(a) all three: Table 1": (Ingredients(), "groks"),
    "(b) no efficiency: P_g = 2, P_m = 1": (
        Ingredients(generaliser_norm=2.0, memoriser_norm=1.0),
        "never generalises",
    ),
    "(b) no efficiency: P_g = 4, P_m = 2": (Ingredients(generaliser_norm=4.0), "never generalises"),
    "(c) no slowness: both second sub-weights start at 1": (Ingredients(generaliser_second=1.0), "at once"),
    "(c) no slowness: both second sub-weights start at 0.005": (Ingredients(memoriser_second=0.005), "at once"),
}


def three_ingredients(seed: int = 0) -> list[Line]:
    """Two circuits, efficiency and slowness together make grokking.

    Statement: Train loss falls to below half of the loss of guessing; test loss is then above that of guessing; later
    it falls to below half as well, for good.

    Hypotheses: both circuits start off zero; the generaliser is the more efficient one (the random draws have P_m >=
    1.25 P_g) and the slower one (its second sub-weight starts at a tenth of the memoriser's at most; first ones at 0);
    there is weight decay, weak enough for the memoriser to learn; κ < 2 (draws from 0.8 on; above 2 see
    `too_slow_to_win`); plain gradient descent with small steps. The draws, and half of the loss as the mark, are ours.

    Source: Varma, Shah, Kenton, Kramár, Kumar 2023 (arXiv 2309.02390), Section 3, Figure 2, Appendix C. Table 1 is the
    paper's; how it is changed for panels (b) and (c) is ours.

    Args:
        seed: Of the random draws.

    Returns:
        The lines of its table.

    """
    panels = replace(_together(*(own for own, _ in PANELS.values())), half=np.array([[True], [False]]))
    found = outcome(simulate(panels, log_steps(STEPS)), panels.labels).phase
    lines = [
        Line(name, wanted, " or ".join(sorted(set(phases.tolist()))), float((phases != wanted).sum()))
        for (name, (_, wanted)), phases in zip(PANELS.items(), found.T, strict=True)
    ]
    drawn = _draw(np.random.default_rng(seed), DRAWS, kappa=(0.8, 2.0))
    without = {
        "a generaliser": replace(drawn, generaliser_second=0.0),
        "a memoriser": replace(drawn, memoriser_second=0.0),
        "efficiency: norms swapped": _swapped(drawn),
        "slowness: both start alike": replace(drawn, generaliser_second=drawn.memoriser_second),
        "weight decay": replace(drawn, weight_decay=0.0),
        "weak weight decay: 30 times as much": replace(drawn, weight_decay=30 * np.asarray(drawn.weight_decay)),
        "κ < 2: 2.5 instead": replace(drawn, kappa=2.5),
        "small steps: 100 times as large": replace(drawn, learning_rate=100 * np.asarray(drawn.learning_rate)),
    }
    steps = log_steps(10_000)

    def fails(own: Ingredients, optimizer: Optimizer = "gradient_descent") -> Array:
        wrong: Array = (outcome(simulate(own, steps, optimizer), own.labels).phase != "groks").astype(np.float64)
        return wrong

    kept, *dropped = fails(_together(drawn, *without.values()))
    return [
        *lines,
        Line.always("random draws: a run groks", kept),
        *(Line.needed(what, part) for what, part in zip(without, dropped, strict=True)),
        Line.needed("plain gradient descent: AdamW instead", fails(drawn, "adamw")),
    ]


def two_circuits_at_rest(seed: int = 0) -> list[Line]:
    """In the end the two circuits share the work by their norms, wherever they started.

    Statement: Descent ends where w_g / w_m = (P_m / P_g)^(2κ / (2 − κ)), and where the pull of the cross-entropy,
    (q − 1) / (e^(w_g + w_m) + q − 1), is that of the decay on either circuit.

    Hypotheses: 0 < κ < 2 (draws from 0.8 to 1.6, where it ends soon enough); both circuits start off zero; weight
    decay; plain gradient descent with small steps. Which circuit is the more efficient, and which starts ahead,
    does not matter: both are drawn.

    Source: Varma, Shah, Kenton, Kramár, Kumar 2023 (arXiv 2309.02390), Theorem D.4 for two circuits under weight decay,
    applied to the minimal example of Section 3. That descent gets there is ours, checked and not proved.

    Args:
        seed: Of the random draws.

    Returns:
        The lines of its table.

    """
    # The end does not depend on the learning rate, which is ten times that of Table 1 to be there sooner.
    own = Ingredients(learning_rate=0.1, half=np.array([True, False]))
    run = simulate(own, [20_000])
    generaliser, memoriser = at_rest(own)
    train, test = losses(generaliser, memoriser, own.labels)
    pairs = {
        "w_g": (generaliser, run.generaliser[-1]),
        "w_m": (memoriser, run.memoriser[-1]),
        "train loss": (train, run.train_loss[-1]),
        "test loss": (test, run.test_loss[-1]),
    }
    lines = [
        Line.equal(f"Table 1 {said}: {what} at rest", wanted[i], found[i], REST)
        for i, said in enumerate(("with 1/2", "without 1/2"))
        for what, (wanted, found) in pairs.items()
    ]
    drawn = _draw(np.random.default_rng(seed), 40, kappa=(0.8, 1.6), norms=(1 / 1.8, 1.8), seeds=(-1.5, 0.5))
    drawn = replace(drawn, learning_rate=0.2)
    without = {
        "weight decay": replace(drawn, weight_decay=0.0),
        "κ < 2: 2.5 instead": replace(drawn, kappa=2.5),
        "both start off zero: the generaliser at 0": replace(drawn, generaliser_second=0.0),
        "small steps: 100 times as large": replace(drawn, learning_rate=20.0),
    }
    every = _together(drawn, *without.values())
    share, pull = _distance_from_rest(simulate(every, [20_000]), every)
    adamw = simulate(drawn, [20_000], "adamw")
    return [
        *lines,
        Line.always("random draws: w_g / w_m = (P_m / P_g)^(2κ / (2 − κ)), log of both sides", share[0], REST),
        Line.always("random draws: either decay pulls as the cross-entropy does, relative", pull[0], REST),
        *(Line.needed(what, part, REST) for what, part in zip(without, share[1:], strict=True)),
        Line.needed("plain gradient descent: AdamW instead", _distance_from_rest(adamw, drawn)[0], REST),
    ]


def time_to_grok(seed: int = 0) -> list[Line]:
    """Decay sets the pace of grokking, and slowness counts by its logarithm.

    Statement: While the memoriser rests on its plateau, where the cross-entropy pulls at every weight with pull*, a
    small generaliser's sub-weights grow by the factor 1 + λ pull* each step. So one that starts ten times smaller
    overtakes ln 10 / ln(1 + λ pull*) steps later, to within 2 %. At Table 1, λ pull* times the steps until it overtakes
    differs by less than 5 % over eight-fold weight decay, with or without the factor 1/2, for pull* is proportional to
    decay but for a logarithm.

    Hypotheses: 0 < κ < 2 (draws from 0.8 to 1.4: the nearer to 2, the less the decay of a small weight is negligible);
    P_g < P_m; the generaliser starts at a thousandth of the memoriser at most; weight decay; plain gradient descent.
    The 5 % are of Table 1 only.

    Source: ours, on the minimal example of Varma, Shah, Kenton, Kramár, Kumar 2023 (arXiv 2309.02390), Section 3. The
    paper gives no time; the steps of Table 1 to the overtaking were computed apart from this.

    Args:
        seed: Of the random draws.

    Returns:
        The lines of its table.

    """
    decays = 0.005 * np.array([0.25, 0.5, 1, 2])
    table = Ingredients(weight_decay=decays, half=np.array([[True], [False]]))
    overtaken = _overtaking(simulate(table, np.arange(34_001)))
    paced = overtaken * 0.01 * _plateau_pull(table)
    hurried = _overtaking(simulate(table, np.arange(1_001), "adamw")) * 0.01 * _plateau_pull(table)
    generator = np.random.default_rng(seed)
    drawn = _draw(generator, 20, kappa=(0.8, 1.4), seeds=(-7, -3))
    tenth = np.array([[1.0], [0.1]])
    starts = replace(drawn, generaliser_second=tenth * np.asarray(drawn.generaliser_second))
    without = {
        "κ < 2: 2.5 instead": replace(starts, kappa=2.5),
        "P_g < P_m: norms swapped": _swapped(starts),
        "a small start: as the memoriser, and a tenth": replace(
            starts, generaliser_second=tenth * np.asarray(drawn.memoriser_second)
        ),
        "weight decay": replace(starts, weight_decay=0.0),
    }
    every = _together(starts, *without.values())
    wanted = np.log(10) / np.log1p(np.asarray(drawn.learning_rate) * _plateau_pull(drawn))

    def strays(overtaken: Array) -> Array:
        first, second = np.moveaxis(overtaken, -2, 0)
        apart: Array = np.nan_to_num(np.abs((second - first) / wanted - 1), nan=np.inf)  # Never is infinitely late.
        return apart

    near = 0.02  # Of more than 100 steps: they are whole, and the decay of a small weight counts a little.
    late = strays(_overtaking(simulate(every, np.arange(12_001))))
    adamw = strays(_overtaking(simulate(starts, np.arange(12_001), "adamw")))
    return [
        Line.equal("Table 1 with 1/2: first step with w_g > w_m", 9303, overtaken[0, 2], 0),
        Line.equal("Table 1 without 1/2: first step with w_g > w_m", 5010, overtaken[1, 2], 0),
        Line.always("Table 1, eight-fold decay: λ pull* steps, relative to the least", paced / paced.min() - 1, 0.05),
        Line.needed("plain gradient descent: AdamW instead, at Table 1", hurried / hurried.min() - 1, 0.05),
        Line.always("random draws: a start ten times smaller costs ln 10 / ln(1 + λ pull*) steps", late[0], near),
        *(Line.needed(what, part, near) for what, part in zip(without, late[1:], strict=True)),
        Line.needed("plain gradient descent: AdamW instead", adamw, near),
    ]


def frozen_without_decay(seed: int = 0) -> list[Line]:
    """Without decay the lead of the memoriser never changes; under AdamW it hardly begins.

    Statement: w_g / w_m = (w_g2(0) / w_m2(0))² at every step but 0. For the cross-entropy pulls alike at both weights,
    and so in each step w_1 + w_2 of either circuit grows by one and the same factor, and w_1 − w_2 shrinks by one and
    the same. Decay pulls at nothing where weights are 0, so that at Table 1 the ratio after the first step is this one,
    1 : 40,000. AdamW's first step is λ however large the gradient: 1 : 200, but for its ε.

    Hypotheses: no weight decay; first sub-weights at 0 (or in the ratio of the second ones); plain gradient descent.
    Norms, κ, labels and the learning rate do not matter.

    Source: ours, on the minimal example of Varma, Shah, Kenton, Kramár, Kumar 2023 (arXiv 2309.02390), Section 3.

    Args:
        seed: Of the random draws.

    Returns:
        The lines of its table.

    """
    table = Ingredients()
    one = simulate(table, [1])
    normalised = simulate(table, [1], "adamw")
    pull = (1 - 1 / float(np.asarray(table.labels))) * np.array([0.005, 1.0])
    scaled = pull / (pull + EPS)
    still = replace(table, generaliser_second=0.0)
    moved = [simulate(still, [1000], "gradient_descent"), simulate(still, [1000], "adamw")]
    generator = np.random.default_rng(seed)
    decayed = _draw(generator, 100, seeds=(-3, 1))
    drawn = replace(decayed, weight_decay=0.0)
    uneven = replace(drawn, generaliser_first=generator.uniform(0.1, 1, 100))
    last = 2_000
    rounding = 4 * last * float(np.finfo(np.float64).eps)

    def strays(own: Ingredients, optimizer: Optimizer = "gradient_descent") -> Array:
        run = simulate(own, log_steps(last)[1:], optimizer)
        squared = (np.asarray(own.generaliser_second) / np.asarray(own.memoriser_second)) ** 2
        apart: Array = np.abs(run.generaliser / run.memoriser / squared - 1).max(axis=0)
        return apart

    first = float(one.memoriser[0] / one.generaliser[0])
    ratio = float(normalised.memoriser[0] / normalised.generaliser[0])
    return [
        Line.equal("Table 1: w_m / w_g after one step", 40_000, first, 40_000 * rounding),
        Line.equal("Table 1 under AdamW: w_m / w_g after one step", 200 * scaled[1] / scaled[0], ratio, 200 * 1e-13),
        Line.always("a circuit that starts at (0, 0) stays", [abs(float(run.generaliser[0])) for run in moved]),
        Line.always("random draws: w_g / w_m stays the squared ratio of the starts, relative", strays(drawn), rounding),
        Line.needed("no weight decay", strays(decayed), rounding),
        Line.needed("first sub-weights at 0", strays(uneven), rounding),
        Line.needed("plain gradient descent: AdamW instead", strays(drawn, "adamw"), rounding),
    ]


def too_slow_to_win(seed: int = 0) -> list[Line]:
    """Above κ = 2, descent can stay with the memoriser though the optimum is the generaliser alone.

    Statement: Let both of the generaliser's sub-weights start at the same multiple of the memoriser's, one below
    (P_g / P_m)^(κ / (κ − 2)). Then, until w_g falls to 0, w_g / w_m never exceeds its start. So w_g < w_m, and test
    loss stays above ln 2: the wrong label of a held-out row stays the likelier one. The reason: above κ = 2 decay pulls
    the more at a weight the smaller it is, and below the bound more at the generaliser's. So in each step the
    generaliser's w_1 + w_2 grows by a smaller factor than the memoriser's, and its w_1 − w_2 shrinks less; w is a
    quarter of the difference of their squares.

    Hypotheses: κ > 2; P_g < P_m; the start below the bound; the same multiple; plain gradient descent with small steps
    (λ times either pull on a weight below 1). Not needed: weight decay (`frozen_without_decay`); P_g < P_m for the
    ratio; that the memoriser's two sub-weights start alike. The flow never leaves w_g = 0; steps overshoot there, and
    can throw w_g anywhere.

    Source: ours, on the minimal example of Varma, Shah, Kenton, Kramár, Kumar 2023 (arXiv 2309.02390), Section 3, whose
    Theorem D.4 says what the optimum is for κ >= 2, and nothing of what descent reaches.

    Args:
        seed: Of the random draws.

    Returns:
        The lines of its table.

    """
    generator = np.random.default_rng(seed)
    drawn = _draw(generator, DRAWS, kappa=(2.05, 6), norms=(1.01, 3))
    apart = 10 ** generator.uniform(-0.5, 0.5, DRAWS)
    drawn = replace(drawn, memoriser_first=apart * np.asarray(drawn.memoriser_second))
    kappa = np.asarray(drawn.kappa)
    bound = (np.asarray(drawn.generaliser_norm) / np.asarray(drawn.memoriser_norm)) ** (kappa / (kappa - 2))
    multiple = bound * 10 ** generator.uniform(-1, 0, DRAWS)
    below = _behind(drawn, multiple)
    first, second = np.asarray(below.generaliser_first), np.asarray(below.generaliser_second)
    without = {
        "κ > 2: 1.5 instead": replace(below, kappa=1.5),
        "P_g < P_m: norms swapped, below the bound that is then above 1": _behind(_swapped(drawn), multiple / bound**2),
        "a start below the bound": _behind(drawn, bound ** generator.uniform(0, 0.9, DRAWS)),
        "the same multiple: a hundredth of one, 100 times the other": replace(
            below, generaliser_first=first / 100, generaliser_second=second * 100
        ),
        "small steps: 2,000 times as large": replace(below, learning_rate=100.0),
    }
    steps = np.arange(4_001)

    def likelier(run: Trajectory) -> Array:
        """By how much test loss is below ln 2 at its least, while w_g is above 0; inf where it diverged."""
        positive = np.logical_and.accumulate(run.generaliser > 0)
        excess = np.log(2) - np.where(positive, run.test_loss, np.inf)
        most: Array = np.where(np.isnan(excess), np.inf, excess).max(axis=0)
        return most

    runs = simulate(_together(below, *without.values()), steps)
    kept, *dropped = likelier(runs)
    positive = np.logical_and.accumulate(runs.generaliser[:, 0] > 0)
    ratio = np.where(positive, runs.generaliser[:, 0], 0) / np.where(positive, runs.memoriser[:, 0], 1)
    rounding = 4 * len(steps) * float(np.finfo(np.float64).eps)
    return [
        Line.always("random draws: w_g / w_m over its start, at most 1", (ratio / ratio[0]).max(axis=0) - 1, rounding),
        Line.always("random draws: test loss above ln 2", kept),
        *(Line.needed(what, part) for what, part in zip(without, dropped, strict=True)),
        Line.needed("plain gradient descent: AdamW instead", likelier(simulate(below, steps, "adamw"))),
    ]


def _behind(own: Ingredients, multiple: Array) -> Ingredients:
    """Start both of the generaliser's sub-weights at so many times the memoriser's."""
    first, second = np.asarray(own.memoriser_first), np.asarray(own.memoriser_second)
    return replace(own, generaliser_first=multiple * first, generaliser_second=multiple * second)


def _swapped(own: Ingredients) -> Ingredients:
    """Give each circuit the other's norm."""
    return replace(own, generaliser_norm=own.memoriser_norm, memoriser_norm=own.generaliser_norm)


def _draw(
    generator: np.random.Generator,
    draws: int,
    kappa: tuple[float, float] = (0.8, 1.8),
    norms: tuple[float, float] = (1.25, 3.0),
    seeds: tuple[float, float] = (-3.0, -1.0),
) -> Ingredients:
    """Draw the ingredients of so many runs, of rate 0.05, with decay that keeps no memoriser from learning.

    Where train loss falls to half of guessing by the memoriser alone, decay pulls at it with 0.03 to 0.16; the
    cross-entropy, with 0.7 to 0.9.

    Args:
        generator: Of the random numbers.
        draws: How many.
        kappa: Range of κ.
        norms: Range of P_m / P_g.
        seeds: Range of log10 of the generaliser's second sub-weight over the memoriser's.

    """
    labels = generator.integers(10, 151, draws)
    own = 10 ** generator.uniform(-0.5, 0.5, draws)
    ahead = 10 ** generator.uniform(-0.5, 0.3, draws)
    unit = Ingredients(
        generaliser_norm=own,
        memoriser_norm=own * generator.uniform(*norms, draws),
        kappa=generator.uniform(*kappa, draws),
        weight_decay=1.0,
        learning_rate=0.05,
        labels=labels,
        generaliser_second=ahead * 10 ** generator.uniform(*seeds, draws),
        memoriser_second=ahead,
        half=generator.random(draws) < 0.5,
    )
    fallen = np.log(np.sqrt(labels) + 1)  # The weight at which train loss is half of guessing.
    strength = 10 ** generator.uniform(-1.5, -0.8, draws)
    return replace(unit, weight_decay=strength / (unit.force[1] * fallen ** (2 / np.asarray(unit.kappa) - 1)))


def _together(*runs: Ingredients) -> Ingredients:
    """Lay the ingredients of runs along a new leading axis."""
    shape = np.broadcast_shapes(*(own.shape for own in runs))
    parts = {
        entry.name: np.stack([np.broadcast_to(np.asarray(getattr(own, entry.name)), shape) for own in runs])
        for entry in fields(Ingredients)
    }
    return Ingredients(**parts)


def _distance_from_rest(run: Trajectory, own: Ingredients) -> tuple[Array, Array]:
    """Return how far the last weights are from those at rest: their ratio, and the pulls; inf where they diverged."""
    weights = np.maximum(np.stack([run.generaliser[-1], run.memoriser[-1]]), np.finfo(np.float64).tiny)
    kappa = np.asarray(own.kappa, dtype=np.float64)
    wanted = 2 * kappa / (2 - kappa) * np.log(np.asarray(own.memoriser_norm) / np.asarray(own.generaliser_norm))
    pull = expit(np.log(np.asarray(own.labels) - 1) - weights.sum(axis=0))
    decay = own.force * weights ** (2 / kappa - 1)
    share = np.abs(np.log(weights[0]) - np.log(weights[1]) - wanted)
    return tuple(np.nan_to_num(part, nan=np.inf) for part in (share, np.abs(decay / pull - 1).max(axis=0)))


def _plateau_pull(own: Ingredients) -> Array:
    """Return the pull of the cross-entropy on either weight while the memoriser rests and the generaliser is 0."""
    pull: Array = expit(np.log(np.asarray(own.labels) - 1) - at_rest(own, memoriser_only=True)[1])
    return pull


def _overtaking(run: Trajectory) -> Array:
    """Return the step from which on w_g > w_m, ``(...)``; NaN where it is not so at the end."""
    return onset(run.steps, run.generaliser > run.memoriser)


def _leading(values: Array, trailing: int) -> Array:
    """Give an array with one leading axis so many axes behind it, at least."""
    missing = max(0, trailing - (values.ndim - 1))
    return values.reshape(values.shape[0], *(1,) * missing, *values.shape[1:])
