"""The loss of circuits that share a network, and where it is least: Varma et al. 2023, equation 6, Theorem D.4."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
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


@dataclass(frozen=True)
class EffectiveLoss:
    """The loss of circuits that share a network, by how strongly each is used.

    Circuit i adds w_i times its logits, for which its parameters have the norm P_i w_i^(1/κ): L(w) = L_train(w) +
    (α/q) Σ (P_i w_i^(1/κ))^q, with the cross-entropy of the right label as L_train. Source: Varma, Shah, Kenton,
    Kramár, Kumar 2023 (arXiv 2309.02390), equation 6, of which order 2 is weight decay.

    Attributes:
        norms: P, each circuit's norm at w_i = 1, at least one, each above 0.
        kappa: κ, above 0: by which power of its norm a circuit's logits grow; the number of layers of weights, in a
            ReLU network without biases.
        weight_decay: α, at least 0.
        n_labels: Number of labels, at least 2.
        order: q, above 0, the power to which norms are penalised.
        logits: What each circuit adds to the right label's logit at w_i = 1, the others' being 0: rows of training
            data, each with one number a circuit. Empty: 1 for each, on all rows, as the theorem assumes.

    Raises:
        ValueError: If something is out of its range, or rows of logits have another length than norms.

    """

    norms: tuple[float, ...]
    kappa: float
    weight_decay: float
    n_labels: int
    order: float = 2.0
    logits: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
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

    def training(self, weights: Array) -> Array:
        """Mean cross-entropy over the training data: weights `(..., n)`, each at least 0, to `(...)`."""
        loss: Array = np.logaddexp(0, math.log(self.n_labels - 1) - weights @ self._rows().T).mean(-1)
        return loss

    def training_gradient(self, weights: Array) -> Array:
        """Its gradient: `(..., n)` to `(..., n)`."""
        rows, others = self._rows(), math.log(self.n_labels - 1)
        wrong = np.exp(others - np.logaddexp(weights @ rows.T, others))
        gradient: Array = -wrong @ rows / len(rows)
        return gradient

    def penalty(self, weights: Array) -> Array:
        """The term of the norms, (α/q) Σ P_i^q w_i^(q/κ): `(..., n)` to `(...)`."""
        each = np.asarray(self.norms) ** self.order * weights ** (self.order / self.kappa)
        return np.asarray(self.weight_decay / self.order * each.sum(-1))

    def total(self, weights: Array) -> Array:
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
    is a local minimum for κ > q; the best is kept. It is good to rounding, 1e-14 of the loss, up to κ = 0.85 q and from
    q on. In between the loss is all but level as circuits exchange weight, and it may end a hundredth of it above.

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

    def value_and_gradient(point: Array) -> tuple[float, Array]:
        weights = point ** (1 / power)
        inner = point ** (1 / power - 1) / power
        gradient = loss.training_gradient(weights) * inner + steepness * point ** (exponent - 1)
        return float(loss.total(weights)), gradient

    mixtures = np.concatenate([np.eye(loss.n_circuits), generator.dirichlet(np.ones(loss.n_circuits), n_starts)])
    # Each starts at its best total of many. From far above, a descent would step over the minimum onto w = 0.
    totals = LARGEST_TOTAL * generator.random((200, 1, 1))
    tried = totals * mixtures
    best = np.argmin(loss.total(tried), 0)
    found = [np.zeros(loss.n_circuits)]
    for start in tried[best, np.arange(len(mixtures))]:
        result = descend(
            value_and_gradient,
            start**power,
            jac=True,
            method="L-BFGS-B",
            bounds=[(0, None)] * loss.n_circuits,
            options={"ftol": 0.0, "gtol": 1e-14, "maxcor": 20, "maxiter": 2000},
        )
        found.append(result.x ** (1 / power))
    return min(found, key=lambda weights: float(loss.total(weights)))
