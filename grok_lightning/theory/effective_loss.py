"""The loss of circuits that share a network, and where it is least: Varma et al. 2023, equation 6, Theorem D.4."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.optimize import minimize as descend

__all__ = [
    "EffectiveLoss",
    "balanced_shares",
    "interior_stationary_point",
    "minimise",
    "optimum",
]

Array: TypeAlias = NDArray[np.float64]

LARGEST_TOTAL = 40.0  # Of the weights that a search starts from; e^-40 is below the last digit of every other loss.
NEWCOMER = 0.05  # Of the weight that a search has found goes to a circuit that it lets in.


def _numbers(expected: str, values: object, n_axes: int) -> Array:
    """An array of numbers with so many axes, or a ValueError that says what was expected."""
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        array = None
    if array is None or array.ndim != n_axes:
        raise ValueError(f"expected {expected}, got {values!r}")
    return array


@dataclass(frozen=True)
class EffectiveLoss:
    """The loss of circuits that share a network, by how strongly each is used.

    Circuit i adds w_i times its logits, for which its parameters have the norm P_i w_i^(1/κ): L(w) = L_train(w) +
    (α/q) Σ (P_i w_i^(1/κ))^q, with the cross-entropy of the right label as L_train. Source: Varma, Shah, Kenton,
    Kramár, Kumar 2023 (arXiv 2309.02390), equation 6, of which order 2 is weight decay.

    Lists and arrays are taken for norms, logits and weights alike; norms and logits are kept as tuples.

    Attributes:
        norms: P, each circuit's norm at w_i = 1, at least one, each above 0.
        kappa: κ, above 0: by which power of its norm a circuit's logits grow; the number of layers of weights, in a
            ReLU network without biases.
        weight_decay: α, at least 0, with the factor 1/q of the paper's equation 6: α/2 for weight decay, as in its
            equation 2. Its Appendix C has no half; nor has `Ingredients`, unless told to.
        n_labels: Number of labels, at least 2.
        order: q, above 0, the power to which norms are penalised.
        logits: What each circuit adds to the right label's logit at w_i = 1, the others' being 0: rows of training
            data, each with one number a circuit. Empty: 1 for each, on all rows, as the theorem assumes.

    Raises:
        ValueError: If something is out of its range or of the wrong shape, or rows of logits have another length than
            norms; in the methods, if weights have.

    """

    norms: Sequence[float]
    kappa: float
    weight_decay: float
    n_labels: int
    order: float = 2.0
    logits: Sequence[Sequence[float]] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "norms", tuple(_numbers("norms as a row of numbers", self.norms, 1).tolist()))
        if not isinstance(self.logits, Sequence | np.ndarray):
            raise ValueError(f"expected logits as rows of numbers, got {self.logits!r}")
        rows = [_numbers("logits as rows of numbers", row, 1).tolist() for row in self.logits]
        object.__setattr__(self, "logits", tuple(map(tuple, rows)))
        for name in ("kappa", "weight_decay", "n_labels", "order"):
            _numbers(f"{name} as one number", getattr(self, name), 0)
        if not self.norms or not all(0 < norm < math.inf for norm in self.norms):
            raise ValueError(f"expected at least one norm, each above 0 and finite, got {self.norms}")
        for name in ("kappa", "order"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"expected {name} above 0 and finite, got {getattr(self, name)}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"expected weight_decay at least 0 and finite, got {self.weight_decay}")
        if self.n_labels < 2:
            raise ValueError(f"expected at least 2 labels, got {self.n_labels}")
        if any(len(row) != len(self.norms) for row in self.logits):
            lengths = sorted({len(row) for row in self.logits})
            raise ValueError(f"expected a logit for each of {len(self.norms)} circuits in every row, got {lengths}")

    @property
    def n_circuits(self) -> int:
        """How many circuits there are."""
        return len(self.norms)

    def _rows(self) -> Array:
        return np.asarray(self.logits) if self.logits else np.ones((1, self.n_circuits))

    def _weights(self, weights: ArrayLike) -> Array:
        array = np.asarray(weights, dtype=np.float64)
        if array.shape[-1:] != (self.n_circuits,):
            raise ValueError(f"expected weights of shape (..., {self.n_circuits}), got {array.shape}")
        return array

    def training(self, weights: ArrayLike) -> Array:
        """Mean cross-entropy over the training data: weights `(..., n)`, each at least 0, to `(...)`."""
        logits = self._weights(weights) @ self._rows().T
        loss: Array = np.logaddexp(0, math.log(self.n_labels - 1) - logits).mean(-1)
        return loss

    def training_gradient(self, weights: ArrayLike) -> Array:
        """Its gradient: `(..., n)` to `(..., n)`."""
        rows, others = self._rows(), math.log(self.n_labels - 1)
        wrong = np.exp(others - np.logaddexp(self._weights(weights) @ rows.T, others))
        gradient: Array = -wrong @ rows / len(rows)
        return gradient

    def penalty(self, weights: ArrayLike) -> Array:
        """The term of the norms, (α/q) Σ P_i^q w_i^(q/κ): `(..., n)` to `(...)`."""
        each = np.asarray(self.norms) ** self.order * self._weights(weights) ** (self.order / self.kappa)
        return np.asarray(self.weight_decay / self.order * each.sum(-1))

    def total(self, weights: ArrayLike) -> Array:
        """What is minimised, training loss and penalty: `(..., n)` to `(...)`."""
        return np.asarray(self.training(weights) + self.penalty(weights))


def balanced_shares(loss: EffectiveLoss) -> Array:
    """Shares of the weight at which every circuit's penalty rises alike, proportional to P_i^(-qκ/(q-κ)).

    For κ < q these are the cheapest shares of any total, for κ > q not even a local minimum.

    Args:
        loss: The loss, with κ other than the order.

    Returns:
        Shares, `(n,)`, of sum 1.

    Raises:
        ValueError: If κ is the order: then no shares are, unless all norms are the same.

    """
    if loss.kappa == loss.order:
        raise ValueError(f"expected kappa other than order, got {loss.kappa} for both")
    # In logarithms: as κ comes near the order, the exponent grows without bound.
    each = -loss.order * loss.kappa / (loss.order - loss.kappa) * np.log(loss.norms)
    shares: Array = np.exp(each - np.logaddexp.reduce(each))
    return shares


def optimum(loss: EffectiveLoss) -> Array:
    """Where the effective loss is least, in closed form up to a root in one dimension.

    Below the order, κ < q, every circuit is used: w_i is proportional to P_i^(-qκ/(q-κ)). From κ = q on a circuit of
    the least norm is used alone, the first of several; or none, w = 0, where decay is too strong. The total W of the
    weights is the minimum of a loss with one circuit.

    Args:
        loss: The loss, with the same logits for each circuit and weight decay above 0.

    Returns:
        Weights, `(n,)`, at least 0.

    Raises:
        ValueError: If the circuits' logits are given, or weight decay is 0: then there is no minimum.

    """
    _check_for_law(loss)
    below = loss.kappa < loss.order
    shares = balanced_shares(loss) if below else np.eye(loss.n_circuits)[int(np.argmin(loss.norms))]
    level = [total * shares for total in _stationary_totals(loss, shares)]
    return min([np.zeros(loss.n_circuits), *level], key=lambda weights: float(loss.total(weights)))


def interior_stationary_point(loss: EffectiveLoss) -> Array | None:
    """Where the loss is level though every circuit is used, for κ > q: no minimum, but a saddle.

    There the larger norm has the larger weight: w_i is proportional to P_i^(qκ/(κ-q)). Along the exchange of weight
    between two circuits the loss falls both ways.

    Args:
        loss: The loss, with κ above the order, the same logits for each circuit and weight decay above 0.

    Returns:
        Weights, `(n,)`, of the one with the larger total if there are two; `None` if decay is too strong for any.

    Raises:
        ValueError: As `optimum`, and if κ is not above the order.

    """
    _check_for_law(loss)
    if not loss.kappa > loss.order:
        raise ValueError(f"expected kappa above order {loss.order}, got {loss.kappa}")
    shares = balanced_shares(loss)
    totals = _stationary_totals(loss, shares)
    return totals[-1] * shares if totals else None


def _check_for_law(loss: EffectiveLoss) -> None:
    if loss.logits:
        raise ValueError("expected circuits with the same logits on the training data, got logits")
    if loss.weight_decay == 0:
        raise ValueError("expected weight_decay above 0, got 0: the loss falls for ever")


def _stationary_totals(loss: EffectiveLoss, shares: Array) -> list[float]:
    """Totals W > 0, rising, at which the loss of weights W times the shares is level in W: none, one or two."""
    others = math.log(loss.n_labels - 1)
    power = loss.order / loss.kappa - 1
    # The penalty is e^price * κ/q * W^(q/κ).
    cost = (np.asarray(loss.norms) ** loss.order * shares ** (power + 1)).sum()
    price = math.log(loss.weight_decay / loss.kappa) + math.log(cost)

    def gain(log_total: float) -> float:
        """Log of how fast the training loss falls, over how fast the penalty rises."""
        return others - float(np.logaddexp(math.exp(log_total), others)) - price - power * log_total

    # Above W = 1 the gain is below others - price - W + max(0, -power) log W, and log W is below W/2.
    high = math.log(2 * max(1.0, others - price))
    if power == 0:
        total = others - price + math.log1p(-math.exp(price)) if price < 0 else 0.0
        return [total] if total > 0 else []
    if power > 0:  # The gain falls all along, from infinity.
        low = min(0.0, (others - float(np.logaddexp(1, others)) - price) / power)
        return [math.exp(_root(gain, low, high))]

    def rise(log_total: float) -> float:
        """How fast the gain rises with log W; it falls all along."""
        total = math.exp(log_total)
        return -power - total * math.exp(total - float(np.logaddexp(total, others)))

    # At W = -power the gain still rises, for a share of W below 1; at W = 2 labels it does not.
    top = _root(rise, math.log(-power), math.log(2 * loss.n_labels))
    if gain(top) <= 0:
        return []
    # Below W = 1 the gain is below -price - power log W.
    low = min(top, price / -power) - 1
    return [math.exp(_root(gain, low, top)), math.exp(_root(gain, top, high))]


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function changes its sign between two ends; an end, where rounding has made it the root."""
    if function(low) * function(high) >= 0:
        return low if abs(function(low)) < abs(function(high)) else high
    return float(brentq(function, low, high, xtol=1e-15, rtol=1e-15, maxiter=1000))


def minimise(loss: EffectiveLoss, seed: int = 0, n_starts: int = 6) -> Array:
    """Where the effective loss is least, by search: nothing of the theorem is used.

    Descents (L-BFGS-B, within w >= 0) from every circuit alone, from random mixtures of them, and w = 0 itself, which
    is a local minimum for κ > q. Then again with the circuits let in one by one, the best alone first, for just below
    κ = q a descent cannot leave out those that hardly count. The best is kept. It is good to rounding, 1e-14 of the
    loss, up to κ = 0.9 q and from q on. In between it may end a little above; the most that was seen
    is 5e-11 of the loss.

    Args:
        loss: The loss, with weight decay above 0.
        seed: Of the random starts.
        n_starts: How many mixtures are started from, at least 0.

    Returns:
        Weights, `(n,)`, at least 0.

    Raises:
        ValueError: If weight decay is 0, so that there is no minimum, or the number of mixtures is below 0.

    """
    if n_starts < 0:
        raise ValueError(f"expected n_starts at least 0, got {n_starts}")
    if loss.weight_decay == 0:
        raise ValueError("expected weight_decay above 0, got 0: the loss falls for ever")
    generator = np.random.default_rng(seed)
    # For κ > q the penalty is infinitely steep at 0; in terms of w^(q/κ) it is not, and the training loss neither.
    power = min(1.0, loss.order / loss.kappa)
    steepness = loss.weight_decay / loss.kappa / power * np.asarray(loss.norms) ** loss.order
    exponent = loss.order / (loss.kappa * power)

    def value(weights: Array) -> float:
        return float(loss.total(weights))

    def settle(start: Array, used: list[int]) -> Array:
        """Descend from weights in those of some circuits, with the others at 0."""

        def value_and_gradient(part: Array) -> tuple[float, Array]:
            point = np.zeros(loss.n_circuits)
            point[used] = part
            weights = point ** (1 / power)
            inner = point ** (1 / power - 1) / power
            gradient = loss.training_gradient(weights) * inner + steepness * point ** (exponent - 1)
            return value(weights), gradient[used]

        result = descend(
            value_and_gradient,
            start[used] ** power,
            jac=True,
            method="L-BFGS-B",
            bounds=[(0, None)] * len(used),
            options={"ftol": 0.0, "gtol": 1e-14, "maxcor": 20, "maxiter": 2000},
        )
        weights = np.zeros(loss.n_circuits)
        weights[used] = result.x ** (1 / power)
        return weights

    circuits = list(range(loss.n_circuits))
    mixtures = np.concatenate([np.eye(loss.n_circuits), generator.dirichlet(np.ones(loss.n_circuits), n_starts)])
    # Each starts at its best total of many. From far above, a descent would step over the minimum onto w = 0.
    totals = LARGEST_TOTAL * generator.random((200, 1, 1))
    tried = totals * mixtures
    starts = tried[np.argmin(loss.total(tried), 0), np.arange(len(mixtures))]
    found = [np.zeros(loss.n_circuits), *(settle(start, circuits) for start in starts)]
    alone = [settle(starts[i], [i]) for i in circuits]
    order = sorted(circuits, key=lambda i: value(alone[i]))
    found.append(alone[order[0]])
    for n_used in range(2, loss.n_circuits + 1):
        entering = NEWCOMER * found[-1].sum() * np.eye(loss.n_circuits)[order[n_used - 1]]
        found.append(settle((1 - NEWCOMER) * found[-1] + entering, order[:n_used]))
    return min(found, key=value)
