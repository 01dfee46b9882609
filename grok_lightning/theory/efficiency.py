"""Why decay prefers efficient circuits: Theorems D.1 and D.4, Lemmas D.2 and D.3 of Varma et al. 2023."""

from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter
from numpy.typing import ArrayLike, NDArray

from grok_lightning.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    LABEL,
    TICK,
    VERMILLION,
    add_caption,
    add_key,
    new_figure,
    tidy,
)
from grok_lightning.figures.words import listing, number
from grok_lightning.theory.claims import Line
from grok_lightning.theory.effective_loss import (
    EffectiveLoss,
    balanced_shares,
    interior_stationary_point,
    minimise,
    optimum,
)

__all__ = [
    "draw_optimal_weights",
    "lemma_d2",
    "lemma_d3",
    "lemma_d3_reach",
    "theorem_d1",
    "theorem_d4",
]

Array: TypeAlias = NDArray[np.float64]

DRAWS = 1000
LOSSES = 20  # Drawn for each range of κ of Theorem D.4; nearly all are minimised from several starts.

DECAY, LABELS = 0.005, 113  # α and the number of labels in Table 1 of the paper.
SMALLEST = 1e-300  # Below it a number has fewer digits.
SHARE = 1e-3  # Of the weight: far above what a search leaves open.

# A chain of powers, logarithms and sums in float64, relative to the sum: tens of units in the last place. A search
# cannot see a loss fall by less either.
ROUNDING = 1e-14
# e^x is wrong by x units of its last digits; here x is at most some hundred.
EXPONENTIAL = 100 * ROUNDING


# Theorem D.1


def _margins(logits: Array) -> Array:
    """By how much the first label's logit is above each other's: `(..., labels)` to `(..., labels - 1)`."""
    margins: Array = logits[..., :1] - logits[..., 1:]
    return margins


def _cross_entropy(margins: Array, scale: NDArray[Any]) -> NDArray[Any]:
    """Mean over rows of log(1 + Σ e^(-scale * margin)).

    Args:
        margins: `(draws, rows, labels - 1)`; times the scale above -700, beyond which the exponential overflows.
        scale: What the logits are multiplied by, `(draws,)`; may be complex.

    Returns:
        `(draws,)`.

    """
    loss: NDArray[Any] = np.log1p(np.exp(-scale[:, None, None] * margins).sum(-1)).mean(-1)
    return loss


def _slope_in_scale(margins: Array, scale: Array) -> Array:
    """Derivative of `_cross_entropy` with respect to the scale: `(draws,)`."""
    odds = np.exp(-scale[:, None, None] * margins)
    slope: Array = -((odds * margins).sum(-1) / (1 + odds.sum(-1))).mean(-1)
    return slope


def _strict(excess: Array) -> Array:
    """The excess of an inequality that equality violates too, by the smallest number that there is."""
    return np.where(excess == 0, np.finfo(np.float64).tiny, excess)


def theorem_d1(seed: int = 0) -> list[Line]:
    """Scaling up a classifier that is always right lowers its loss.

    Statement: L(c h) < L(h) for every c > 1, where L is the mean cross-entropy of the logits h on the training data. It
    falls all along: dL(c h)/dc is below 0 for every c > 0.

    Hypotheses: on every training row the right label's logit is above each other's; c > 1. Strictly above is more than
    is needed: ties may stand, as long as some label on some row is below the right one.

    Source: Varma, Shah, Kenton, Kramár, Kumar 2023 (arXiv 2309.02390), Theorem D.1. That ties may stand is ours.

    Args:
        seed: Of the random draws.

    Returns:
        The lines of its table.

    """
    generator = np.random.default_rng(seed)
    draws, rows, labels = 200, 20, 7
    size = 10 ** generator.uniform(-1, 1, (draws, 1, 1))
    # The right label comes first.
    right = np.sort(size * generator.standard_normal((draws, rows, labels)), -1)[..., ::-1].copy()
    wrong, tied = right.copy(), right.copy()
    wrong[:, 0, [0, 1]] = right[:, 0, [1, 0]]
    tied[..., 1] = right[..., 0]
    flat = np.zeros_like(right)
    c = 1 + 10 ** generator.uniform(-3, 0.5, draws)
    one = np.ones(draws)

    def excess(logits: Array, c: Array = c) -> Array:
        before, after = (_cross_entropy(_margins(logits), scale) for scale in (one, c))
        return _strict((after - before) / before)

    margins = _margins(right)
    slope = _slope_in_scale(margins, c)
    # A step into the imaginary has no difference of near numbers in it, so it may be tiny.
    step = 1e-30
    stepped = _cross_entropy(margins, c + 1j * step)
    return [
        Line.always("L(c h) < L(h)", excess(right)),
        Line.always("dL(c h)/dc < 0", _strict(slope)),
        Line.same("dL(c h)/dc, over L(c h)", slope / stepped.real, stepped.imag / step / stepped.real, EXPONENTIAL),
        Line.always("L(c h) < L(h) where another label ties on every row", excess(tied)),
        Line.needed("every row is right (one is wrong)", excess(wrong)),
        Line.needed("some label is below the right one (all logits are equal)", excess(flat)),
        Line.needed("c > 1 (1/c instead)", excess(right, 1 / c)),
    ]


# Lemma D.2


def lemma_d2(seed: int = 0) -> list[Line]:
    """Powers below 1 are subadditive.

    Statement: (a + b)^r <= a^r + b^r.

    Hypotheses: a, b >= 0; 0 < r <= 1. That r is positive only gives 0^r a meaning: with a, b > 0 a negative r does as
    well.

    Source: Varma, Shah, Kenton, Kramár, Kumar 2023 (arXiv 2309.02390), Lemma D.2. That r may be negative is ours.

    Args:
        seed: Of the random draws.

    Returns:
        The lines of its table.

    """
    generator = np.random.default_rng(seed)
    a, b = 10 ** generator.uniform(-3, 3, (2, DRAWS))
    r = 1 - generator.random(DRAWS)  # (0, 1]
    above = 1 + 3 * generator.random(DRAWS)
    zero = np.zeros(DRAWS)

    def violation(a: Array, b: Array, r: Array) -> Array:
        # Relative: both sides grow with a and b. A negative number has the power that an odd root would give it.
        left, *right = (np.sign(x) * np.abs(x) ** r for x in (a + b, a, b))
        excess: Array = (left - right[0] - right[1]) / (np.abs(left) + np.abs(right[0]) + np.abs(right[1]))
        return excess

    return [
        Line.always("(a + b)^r <= a^r + b^r", violation(a, b, r), ROUNDING),
        Line.same("(a + b)^r / (a^r + b^r) where a = 0", zero + 1, (zero + b) ** r / (zero**r + b**r), ROUNDING),
        Line.always("(a + b)^r <= a^r + b^r with r < 0", violation(a, b, -above), ROUNDING),
        Line.needed("r <= 1", violation(a, b, above), ROUNDING),
        Line.needed("a >= 0", violation(-a, b, r), ROUNDING),
    ]


# Lemma D.3


def lemma_d3_reach(x: ArrayLike, r: ArrayLike, c: ArrayLike) -> Array:
    """How far Lemma D.3 reaches: a δ with x^r - (x - ε)^r > ε (r x^(r-1) - c) for all 0 < ε < δ.

    For r >= 1 and for r < 0 a power is convex, so that the left side is at least ε r (x - ε)^(r-1); δ is where that is
    ε (r x^(r-1) - c), or x. For 0 <= r <= 1 it is concave, the left side at least ε r x^(r-1), and δ is x. There may be
    larger δ, but none above x.

    Args:
        x: Above 0, any shape that broadcasts with the others.
        r: Any real number.
        c: Above 0.

    Returns:
        δ, in (0, x], of the shape of all three together; 0 only where it is below the smallest number.

    Raises:
        ValueError: If an x or c is not above 0, or anything is not finite.

    """
    x, r, c = np.broadcast_arrays(*(np.asarray(value, dtype=np.float64) for value in (x, r, c)))
    for name, value in {"x": x, "c": c}.items():
        if not (value > 0).all():
            raise ValueError(f"expected {name} above 0, got {float(value[~(value > 0)][0])}")
    if not all(np.isfinite(value).all() for value in (x, r, c)):
        raise ValueError("expected finite x, r and c")
    bent = (r > 1) | (r < 0)
    exponent = np.where(bent, r, 2.0)
    # δ = x - (x^(r-1) - c/r)^(1/(r-1)), without the difference of near numbers that it is for small c.
    share = c / (exponent * x ** (exponent - 1))
    inside = bent & (share < 1)
    reach = -x * np.expm1(np.log1p(-np.where(inside, share, 0.5)) / (exponent - 1))
    found: Array = np.where(inside, reach, x)
    return found


def _fall_of_power(x: Array, epsilon: Array, r: Array) -> Array:
    """x^r - (x - ε)^r, to rounding also where ε is tiny."""
    fall: Array = -(x**r) * np.expm1(r * np.log1p(-epsilon / x))
    return fall


def lemma_d3(seed: int = 0) -> list[Line]:
    """How fast a power falls just below a point: false as printed.

    Statement: there is a δ > 0 such that x^r - (x - ε)^r > ε (r x^(r-1) - c) for all 0 < ε < δ. Printed is δ instead of
    the ε before the bracket. That is false wherever c < r x^(r-1): as ε goes to 0 the left side does too, and the right
    side stays where it is. With x = 1, r = 2, c = 1 it fails for every δ, at ε = δ/4.

    Hypotheses: x > 0, c > 0. The paper's r >= 1 is not needed: the derivative of x^r is r x^(r-1) for every r. It only
    matters for how large δ may be; `lemma_d3_reach` gives one for every r.

    Source: Varma, Shah, Kenton, Kramár, Kumar 2023 (arXiv 2309.02390), Lemma D.3. The counter-example, the mended form
    and δ are ours.

    Args:
        seed: Of the random draws.

    Returns:
        The lines of its table.

    """
    generator = np.random.default_rng(seed)
    x = 10 ** generator.uniform(-3, 3, DRAWS)
    r = 1 + 4 * generator.random(DRAWS)
    below = 4 * generator.random(DRAWS) - 3  # [-3, 1)
    share = 10 ** generator.uniform(-5, 1, DRAWS)  # c over |r| x^(r-1), on either side of which δ is another
    fraction = 10 ** generator.uniform(-6, -1e-3, DRAWS)

    def slope(r: Array) -> Array:
        return np.asarray(r * x ** (r - 1))

    def excess(epsilon: Array, r: Array, c: Array, before: Array | None = None) -> Array:
        before = epsilon if before is None else before
        right = before * (slope(r) - c)
        return _strict((right - _fall_of_power(x, epsilon, r)) / (before * (np.abs(slope(r)) + c)))

    c, c_below = share * slope(r), share * np.abs(slope(below))
    reach = lemma_d3_reach(x, r, c)
    # Where the right side is positive, a power falls by less than its tangent at x does: half of what is left.
    small = np.minimum(share, 0.9)
    printed = fraction * x
    near = printed * (1 - small) / 2
    shrunk = 10.0 ** -np.arange(1, 10)
    return [
        Line.always("x^r - (x - ε)^r > ε (r x^(r-1) - c) for ε < δ", excess(fraction * reach, r, c)),
        Line.always("the same with r < 1", excess(fraction * lemma_d3_reach(x, below, c_below), below, c_below)),
        Line.always(
            "printed, x = 1, r = 2, c = 1, δ = 0.1 ... 1e-9, ε = δ/4: left side <= right side",
            _fall_of_power(np.ones(9), shrunk / 4, np.full(9, 2.0)) - shrunk * (2 - 1),
        ),
        Line.always(
            "printed, c < r x^(r-1), any δ, a small ε: left side <= right side",
            -excess(near, r, small * slope(r), printed),
        ),
        Line.needed("c > 0 (c = 0)", excess(fraction * x, r, np.zeros(DRAWS))),
        Line.needed("ε < δ (any ε < x)", excess(x * generator.random(DRAWS), r, c)),
    ]


# Theorem D.4


def _drawn(generator: np.random.Generator, side: int) -> EffectiveLoss:
    """A loss of two to five circuits with κ where a search is exact below the order q (side -1), q (0) or above (1).

    Side -2 is κ between that range, up to 0.9 q, and q.
    """
    order = float(generator.choice([1, 2, 3]))
    low, high = {-2: (0.9 * order, order), -1: (0.3, 0.9 * order), 0: (order, order), 1: (order, 4)}[side]
    kappa = order if side == 0 else generator.uniform(low, high)
    steps = [10 ** generator.uniform(-0.3, 0.3), *(1 + generator.uniform(0.05, 0.8, generator.integers(1, 5)))]
    norms = generator.permutation(np.cumprod(steps))
    decay, labels = 10 ** generator.uniform(-4, 0), int(generator.integers(3, 201))
    return EffectiveLoss(tuple(norms.tolist()), float(kappa), float(decay), labels, order)


def _unseen(loss: EffectiveLoss, weights: Array) -> Array:
    """How far each weight may be from where the loss is least, κ < q, for the loss to differ by no more than rounding.

    The loss is convex, and the training loss adds to the curvature of the penalty alone: `(n,)` to `(n,)`.
    """
    power = loss.order / loss.kappa
    curvature = loss.weight_decay / loss.kappa * (power - 1) * np.asarray(loss.norms) ** loss.order
    return np.asarray(np.sqrt(2 * ROUNDING * loss.total(weights) / (curvature * weights ** (power - 2))))


def _least(loss: EffectiveLoss) -> int:
    """Which circuit has the least norm."""
    return int(np.argmin(loss.norms))


def _others(loss: EffectiveLoss, weights: Array) -> float:
    """The share of the weight that is not on the circuit of the least norm."""
    return float(1 - weights[_least(loss)] / weights.sum()) if weights.any() else 0.0


def _off_law(loss: EffectiveLoss, weights: Array) -> float:
    """How far the shares of the weight are from those of the law for κ < q."""
    return float(np.abs(weights / weights.sum() - balanced_shares(loss)).max())


def _relative_excess(loss: EffectiveLoss, candidate: Array, other: Array) -> float:
    """By how much the loss at a candidate for the minimum is above that elsewhere."""
    here, there = float(loss.total(candidate)), float(loss.total(other))
    return (here - there) / here


def theorem_d4(seed: int = 0) -> list[Line]:
    """Below κ = q circuits share the weight, from there on one takes all.

    Statement: let w minimise L_train(Σ w_i C_i) + (α/q) Σ (P_i w_i^(1/κ))^q over w >= 0. For κ >= q, w_i = 0 for every
    circuit whose norm P_i is not the least. For 0 < κ < q, w_i is proportional to P_i^(-qκ/(q-κ)): every circuit is
    used. Weight decay is q = 2. The reason: L_train sees Σ w_i alone, so that the penalty decides on the split. For
    κ < q it is convex in w, and least where the slopes of all circuits, P_i^q w_i^(q/κ-1), are the same; for κ >= q it
    is concave, and least in a corner. Between 0.9 q and q a search may end above the minimum, if by little; there the
    law is checked by slopes, in the line "gain over price".

    Hypotheses: all circuits have the same logits on the training data (for which they are scaled to equal average
    logits; equal averages alone are not enough); α > 0; a minimum exists; it is the global one. Where decay is strong
    and κ >= q the minimum is w = 0, as the law allows; for κ > q w = 0 is always a local minimum, and each circuit
    alone may be one. With κ = q and several circuits of the least norm, any split between these is a minimum. That
    L_train is differentiable or a cross-entropy is not needed: the law holds for the cheapest split of every total. Nor
    is w >= 0, if |w_i| is in the norm and L_train falls with Σ w_i: weights below 0 gain nothing.

    Source: Varma, Shah, Kenton, Kramár, Kumar 2023 (arXiv 2309.02390), Theorem D.4 and equation 6. The remarks on
    hypotheses, the closed form of the total and the saddle are ours; so are all numbers but the circuits of their Table
    1, P = (1, 2), κ = 1.2, α = 0.005 and 113 labels. The factor α/q is that of equations 2 and 6; their Appendix C,
    and so `Ingredients` by default, has α, which at Table 1 gives (7.25, 0.91) for w and not (7.83, 0.98).

    Args:
        seed: Of the random draws.

    Returns:
        The lines of its table.

    """
    generator = np.random.default_rng(seed)
    near, shared, tied, alone = ([_drawn(generator, side) for _ in range(LOSSES)] for side in (-2, -1, 0, 1))
    return [
        *_lines_of_search(shared, tied + alone, seed),
        *_lines_of_ratios(seed),
        *_lines_at_the_border(generator, seed),
        *_lines_of_slopes(near + shared, alone),
        _line_of_splits(near + shared + tied + alone, generator),
        *_lines_without(generator, shared, alone, seed),
    ]


def _tightest(what: str, predicted: Array, computed: Array, allowed: Array) -> Line:
    """The line of pairs that each have their own allowed distance: that which uses up most of its own."""
    used = np.abs(predicted - computed) / allowed
    worst = int(np.argmax(used))  # NaN counts as the largest
    pair = float(predicted[worst]), float(computed[worst])
    return Line.equal(what, *pair, float(allowed[worst]))


def _lines_of_search(below: list[EffectiveLoss], above: list[EffectiveLoss], seed: int) -> list[Line]:
    """The closed form against a search that knows nothing of it."""
    pairs = [(loss, minimise(loss, seed), optimum(loss)) for loss in below + above]
    ratios = [float(loss.total(weights) / loss.total(law)) for loss, weights, law in pairs]
    shared, alone = pairs[: len(below)], pairs[len(below) :]
    weights = np.concatenate([weights / law for _, weights, law in shared])
    unseen = np.concatenate([_unseen(loss, law) / law for loss, _, law in shared])
    # Of the others the loss shows too little.
    seen = unseen < 0.1
    others = [_others(loss, weights) for loss, weights, _ in alone]
    return [
        Line.same(
            "κ <= 0.9 q or κ >= q: loss where a search ends, over that of the law",
            np.ones(len(pairs)),
            ratios,
            ROUNDING,
        ),
        _tightest(
            "κ <= 0.9 q: weights where a search ends, over those of the law",
            np.ones(seen.sum()),
            weights[seen],
            unseen[seen],
        ),
        Line.same(
            "κ >= q: share of the weight not on the least norm where a search ends",
            np.zeros(len(others)),
            others,
            ROUNDING,
        ),
    ]


def _lines_of_ratios(seed: int) -> list[Line]:
    """Ratios of weights of a few circuits, as a search finds them."""
    lines = []
    for norms, kappa, order in (
        ((1.0, 2.0), 1.2, 2.0),
        ((1.0, 1.5, 3.0), 1.0, 2.0),
        ((1.0, 1.5, 3.0), 1.5, 2.0),
        ((1.0, 1.5, 3.0), 2.0, 4.0),
    ):
        loss = EffectiveLoss(norms, kappa, DECAY, LABELS, order)
        found, known = minimise(loss, seed), optimum(loss)
        relative = _unseen(loss, known) / known
        predicted = np.array(norms[1:]) ** (order * kappa / (order - kappa))
        what = f"κ = {kappa:g}, q = {order:g}, P = {', '.join(f'{norm:g}' for norm in norms)}: w_1 over each other w"
        lines.append(_tightest(what, predicted, found[0] / found[1:], predicted * (relative[0] + relative[1:])))
    return lines


def _lines_at_the_border(generator: np.random.Generator, seed: int) -> list[Line]:
    """Strong decay, and circuits of equal norms at κ = q."""
    strong = [EffectiveLoss((1.0, 1.5), kappa, decay, LABELS) for kappa, decay in ((2.0, 2.0), (2.5, 4.0))]
    sums = [minimise(loss, seed).sum() for loss in strong]
    same = EffectiveLoss((1.3,) * 4, 2, 0.02, 50)
    total = optimum(same).sum()
    splits = np.concatenate([total * generator.dirichlet(np.ones(4), DRAWS), minimise(same, seed)[None]])
    costs = same.total(splits) / same.total(optimum(same))
    return [
        Line.same("strong decay, κ = 2, α = 2 and κ = 2.5, α = 4, q = 2: Σ w", np.zeros(2), sums, 0),
        Line.same("κ = q, equal norms: loss of any split, over that of one", np.ones(len(costs)), costs, ROUNDING),
    ]


def _lines_of_slopes(shared: list[EffectiveLoss], alone: list[EffectiveLoss]) -> list[Line]:
    """Where every circuit is used and the loss is level: for κ < q the law, for κ > q points that are no minimum."""
    slopes, falls = [], []
    inside = [(loss, point) for loss in alone if (point := interior_stationary_point(loss)) is not None]
    for loss, point in [(loss, optimum(loss)) for loss in shared] + inside:
        used = point > SMALLEST
        price = loss.weight_decay / loss.kappa * np.asarray(loss.norms)[used] ** loss.order
        gain = -loss.training_gradient(point)[used]
        slopes += (gain / (price * point[used] ** (loss.order / loss.kappa - 1))).tolist()
    for loss, point in inside:
        if loss.kappa < 1.2 * loss.order:  # Weights may be so unlike that rounding hides the fall.
            continue
        first, second = np.argsort(point)[-2:]
        for sign in (-1, 1):
            moved = point.copy()
            moved[[first, second]] += sign * point[first] / 2 * np.array([1, -1])
            # The total stays, and the training loss with it.
            falls.append(float(loss.penalty(moved) / loss.penalty(point)) - 1)
    what = "gain over price of each weight: all κ < q, the law; κ > q, the saddle"
    return [
        Line.same(what, np.ones(len(slopes)), slopes, EXPONENTIAL),
        Line.always(
            "κ > 1.2 q: the loss falls from the saddle as two circuits exchange weight", _strict(np.array(falls))
        ),
    ]


def _line_of_splits(losses: list[EffectiveLoss], generator: np.random.Generator) -> Line:
    """Of a given total, the law's split costs least, whatever the training loss."""
    costs = []
    for loss in losses:
        split = balanced_shares(loss) if loss.kappa < loss.order else np.eye(loss.n_circuits)[_least(loss)]
        splits = generator.dirichlet(np.ones(loss.n_circuits), 50)
        costs.append((loss.penalty(split) - loss.penalty(splits)) / loss.penalty(split))
    return Line.always("of one total, no split costs less than the law's", np.concatenate(costs), ROUNDING)


def _lines_without(
    generator: np.random.Generator, shared: list[EffectiveLoss], alone: list[EffectiveLoss], seed: int
) -> list[Line]:
    """Each hypothesis dropped; losses with κ below the order, and above it."""
    swapped = []
    for loss in shared:
        one = replace(loss, norms=(min(loss.norms),))
        corner = optimum(one) * np.eye(loss.n_circuits)[_least(loss)]
        swapped.append(_relative_excess(loss, corner, optimum(loss)))
    points = [(loss, interior_stationary_point(loss)) for loss in alone]
    inside = [_relative_excess(loss, point, optimum(loss)) for loss, point in points if point is not None]
    return [
        *_lines_without_equal_logits(generator, seed),
        Line.needed("κ < q (above q the power law costs more than one circuit alone)", inside, ROUNDING),
        Line.needed("κ >= q (below q the least norm alone costs more than the power law)", swapped, ROUNDING),
        Line.needed("a global minimum (a local one breaks the law)", _local_minimum_elsewhere(generator), SHARE),
        Line.needed(
            "α > 0 (without decay every split of a total has the same loss)", _off_law_for_no_more(0, generator), SHARE
        ),
        Line.needed(
            "a minimum exists (without decay twice the best of many w is better)", _falls_beyond(0, generator), ROUNDING
        ),
    ]


def _lines_without_equal_logits(generator: np.random.Generator, seed: int) -> list[Line]:
    excess: dict[str, list[float]] = {}
    for _ in range(3):
        # Each circuit knows one of two rows well and the other hardly; on average its logits are 1.
        little = float(generator.uniform(0, 0.1))
        norms = (1.0, float(generator.uniform(1.05, 1.2)))
        for hypothesis, logits in (
            (
                "the same logits (the same on average only), κ on either side",
                ((2 - little, little), (little, 2 - little)),
            ),
            ("equal average logits (one has twice the other's), κ on either side", ((1.0, 2.0),)),
        ):
            off = [
                violation(loss, minimise(loss, seed))
                for kappa, violation in ((1.0, _off_law), (3.0, _others))
                for loss in [EffectiveLoss(norms, kappa, DECAY, LABELS, logits=logits)]
            ]
            excess.setdefault(hypothesis, []).append(min(off))
    return [Line.needed(hypothesis, values, SHARE) for hypothesis, values in excess.items()]


def _local_minimum_elsewhere(generator: np.random.Generator) -> float:
    """Share of the weight not on the least norm in a local minimum, for κ > q; 0 if it is none."""
    loss = EffectiveLoss((1.0, 1.5), 3, DECAY, LABELS)
    point = np.array([0, optimum(replace(loss, norms=(1.5,)))[0]])
    around = np.abs(point + 1e-3 * generator.standard_normal((DRAWS, 2)))
    return _others(loss, point) if (loss.total(around) >= loss.total(point)).all() else 0.0


def _off_law_for_no_more(decay: float, generator: np.random.Generator) -> list[float]:
    """How far splits of one total are from the law; 0 for those that cost more than the law's."""
    loss = EffectiveLoss((1.0, 2.0), 1.2, decay, LABELS)
    splits, law = 8 * generator.dirichlet(np.ones(2), 50), 8 * balanced_shares(loss)
    dearer = loss.total(splits) > loss.total(law) * (1 + ROUNDING)
    return [0.0 if more else _off_law(loss, split) for split, more in zip(splits, dearer, strict=True)]


def _falls_beyond(decay: float, generator: np.random.Generator) -> float:
    """By how much the loss falls, in proportion, as the best of many weights are doubled."""
    loss = EffectiveLoss((1.0, 2.0), 1.2, decay, LABELS)
    weights = 15 * generator.random((DRAWS, 2))
    best = weights[np.argmin(loss.total(weights))]
    return _relative_excess(loss, best, 2 * best)


# The figure

NORMS = tuple(np.geomspace(1, 4, 7).tolist())
GREY = "#5d5d5d"
KAPPAS = {0.5: BLUE, 1.0: GREEN, 1.5: VERMILLION}


def draw_optimal_weights() -> Figure:
    """Draws how strongly each circuit is used in the optimum, over its norm and over κ.

    Returns:
        The figure, with its caption.

    """
    figure = new_figure(1, row_height=3.5)
    left, right = figure.subplots(1, 2)
    slopes, distance = _draw_power_laws(left)
    least = _draw_shares(right)
    found = listing([f"{_signed(slope)} at κ = {number(kappa)}" for kappa, slope in slopes.items()])
    key = [
        Line2D(
            [], [], color=colour, linewidth=1.6, label=f"κ = {number(kappa)}: slope {_signed(-2 * kappa / (2 - kappa))}"
        )
        for kappa, colour in KAPPAS.items()
    ]
    key += [
        Line2D([], [], color=GREY, linewidth=1.6, label="law"),
        Line2D([], [], color=GREY, linestyle="none", marker="o", markersize=4.5, label="search"),
    ]
    add_key(figure, key, 5)
    add_caption(
        figure,
        f"Circuits that give the same logits on the training data, under weight decay α = {number(DECAY)} with "
        f"{LABELS} labels (Varma et al. 2023, Theorem D.4, q = 2). Left: weight w_i of each of "
        f"{len(NORMS)} circuits in the optimum over its norm P_i. Lines: the law, w_i in proportion to "
        "P_i^(−2κ/(2−κ)); dots: where a search ends that knows nothing of the law. Slopes of the dots: "
        f"{found}; no dot is off its line by more than {_in_powers(distance)} of its height. Right: the "
        "share of each of four circuits in the total weight as κ grows; marks: a search. Below κ = 2 all are used; "
        f"from there on the one of the least norm alone (least share in any search: {number(least)}).",
    )
    return figure


def _signed(value: float) -> str:
    return number(value).replace("-", "−")


def _in_powers(value: float) -> str:
    """A number above 0 as `2 · 10⁻⁸`."""
    digit, exponent = f"{value:.0e}".split("e")
    return f"{digit} · 10{str(int(exponent)).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def _draw_power_laws(axes: Axes) -> tuple[dict[float, float], float]:
    """Weights over norms; the slope of the dots for each κ, and how far the farthest is from its line."""
    grid = np.geomspace(1, 4, 50)
    slopes, distance = {}, 0.0
    for kappa, colour in KAPPAS.items():
        loss = EffectiveLoss(NORMS, kappa, DECAY, LABELS)
        known, found = optimum(loss), minimise(loss)
        law = known[0] * grid ** (-2 * kappa / (2 - kappa))
        axes.plot(grid, law, color=colour, linewidth=1.6, label=f"law κ = {number(kappa)}")
        axes.plot(
            NORMS,
            found,
            color=colour,
            linestyle="none",
            marker="o",
            markersize=4.5,
            label=f"search κ = {number(kappa)}",
        )
        slopes[kappa] = float(np.polyfit(np.log(NORMS), np.log(found), 1)[0])
        distance = max(distance, float(np.abs(found / known - 1).max()))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator([1, 1.5, 2, 3, 4]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(labelsize=TICK)
    axes.set_xlabel("norm P_i of the circuit at weight 1 (log scale)", fontsize=LABEL)
    axes.set_ylabel("weight w_i in the optimum (log scale)", fontsize=LABEL)
    tidy(axes, "A power law below κ = 2")
    return slopes, distance


def _draw_shares(axes: Axes) -> float:
    """Shares over κ; the least share that the least norm has from κ = 2 on."""
    # Greys: colours stand for κ at the left.
    norms, greys, markers = (1.0, 1.25, 1.6, 2.0), (BLACK, "#4a4a4a", "#747474", "#9a9a9a"), "osD^"
    dashes = ("-", "--", "-.", ":")
    # At κ = 2 itself the law is the corner; a little below, it is nearly there.
    grid = np.concatenate([np.linspace(0.3, 1.999, 120), np.linspace(2, 4, 21)])
    sought = np.concatenate([np.arange(0.4, 1.9, 0.2), [1.9, 2.0, 2.4, 2.8, 3.2, 3.6, 4.0]])

    def shares(weights: Array) -> Array:
        return np.asarray(weights / weights.sum())

    losses = {kappa: EffectiveLoss(norms, kappa, DECAY, LABELS) for kappa in (*grid.tolist(), *sought.tolist())}
    law = np.array([shares(optimum(losses[kappa])) for kappa in grid.tolist()])
    found = np.array([shares(minimise(losses[kappa])) for kappa in sought.tolist()])
    key = []
    for i, (norm, grey, dash, marker) in enumerate(zip(norms, greys, dashes, markers, strict=True)):
        line: dict[str, Any] = {"color": grey, "linestyle": dash, "linewidth": 1.6, "label": f"P = {number(norm)}"}
        axes.plot(grid, law[:, i], **line)
        axes.plot(
            sought,
            found[:, i],
            color=grey,
            linestyle="none",
            marker=marker,
            markersize=4.5,
            label=f"_search P = {number(norm)}",
        )
        key.append(Line2D([], [], marker=marker, markersize=4.5, **line))
    axes.axvline(2, color=GREY, linewidth=0.9, linestyle=(0, (1, 2)), zorder=1)
    axes.legend(handles=key, loc="center right", frameon=False, fontsize=TICK, handlelength=2.6)
    axes.xaxis.set_major_locator(FixedLocator([0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    axes.tick_params(labelsize=TICK)
    axes.set_xlabel("κ: logits grow as the norm to this power", fontsize=LABEL)
    axes.set_ylabel("share of the total weight", fontsize=LABEL)
    tidy(axes, "From κ = 2 on the least norm takes all")
    return float(found[sought >= 2, 0].min())
