"""What a parity costs: the least squared norm of a ReLU network that computes it at margin 1."""

import math
from collections.abc import Sequence
from functools import cache
from itertools import combinations, combinations_with_replacement, product
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from grok_callbacks.functional.parity_circuits import (
    ParityCircuit,
    four_neurons,
    nearer_half,
    one_a_pattern,
    one_star,
    sign_patterns,
    six_neurons,
    two_stars,
)
from grok_lightning.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    LABEL,
    TICK,
    VERMILLION,
    add_caption,
    new_figure,
    tidy,
)
from grok_lightning.figures.words import number
from grok_lightning.networks import MLPNetwork
from grok_lightning.theory.claims import Line
from grok_lightning.theory.parity import network_of, norm_at_margin_one

__all__ = [
    "Correlation",
    "draw_least_norm",
    "firing_sets",
    "largest_correlation",
    "least_norm",
    "least_norm_network",
]

Array: TypeAlias = NDArray[np.float64]

LARGEST_WEIGHTS = (1, 1, 2, 3)
"""Whole numbers up to these, as weights of 1, 2, 3, 4 bits, give every set of patterns that a neuron can fire on."""
N_FIRING_SETS = (4, 14, 104, 1882)
"""Number of linearly separable functions of 1, 2, 3, 4 bits (OEIS A000609): by it the list is known to be complete."""
LARGEST_K = len(LARGEST_WEIGHTS)
DRAWS = 50
ROUNDING = 1e-12
"""Relative, of projections, and of means over sixteen patterns."""


class Correlation(NamedTuple):
    """How well a ReLU neuron can go with the parity of k bits.

    Attributes:
        value: Largest ``|mean over all patterns of parity · relu(w · x + b)|`` with ``||(w, b)|| = 1``.
        neurons: The directions ``(w, b)`` that attain it, ``(neuron, k + spare + 1)``, with 1 as the largest entry, and
            up to the order and the signs of the bits: weights are at least 0, and fall over the k bits and over the
            spare ones, which come after them.

    """

    value: float
    neurons: Array


def least_norm_network(n: int, secret: Sequence[int], width: int | None = None) -> MLPNetwork:
    """Return the network of :func:`~grok_callbacks.functional.nearer_half` on k secret bits out of n; see there.

    Args:
        n: Number of bits.
        secret: The k positions, at least one.
        width: Number of neurons; 2^k if ``None``.

    Raises:
        ValueError: As :func:`~grok_lightning.theory.parity.network_of` does.

    """
    return network_of(nearer_half(len(secret)), n, secret, width)


def firing_sets(k: int, *, alike: bool = True) -> NDArray[np.bool_]:
    """Return the sets of patterns of k bits that ReLU neurons can fire on.

    Args:
        k: Number of bits, 1 to 4.
        alike: Whether sets that differ by the order and the signs of bits are all there; otherwise only those of
            neurons whose weights fall and are at least 0.

    Returns:
        ``(set, 2^k)``, patterns as :func:`~grok_callbacks.functional.sign_patterns` has them.

    Raises:
        ValueError: If k is none of these.

    """
    if not 1 <= k <= LARGEST_K:
        raise ValueError(f"k: expected 1 to {LARGEST_K} bits, got {k}")
    largest = LARGEST_WEIGHTS[k - 1]
    every = product(range(-largest, largest + 1), repeat=k)
    falling = combinations_with_replacement(range(largest, -1, -1), k)
    sums = np.array(list(every if alike else falling)) @ sign_patterns(k).numpy().T
    thresholds = np.arange(-k * largest - 1, k * largest + 1) + 0.5
    fires: NDArray[np.bool_] = np.unique((sums[:, None, :] > thresholds[:, None]).reshape(-1, 2**k), axis=0)
    return fires


@cache
def largest_correlation(k: int, spare: int = 0) -> Correlation:
    """Return how well the best neuron goes with the parity of k bits: exact but for rounding, by exhaustion.

    Neurons that fire on the same set of patterns form a cone, on which the mean is linear, ``c · (w, b)``. Its largest
    size for a given length is inside the cone or on a face, and there in the direction of the projection of c or −c
    onto the linear span of the face: what some patterns put to 0. So the best neuron is among the projections of all c
    and −c onto all such subspaces, whose means are taken one by one. As the order of bits changes nothing but which of
    them are the k ones, and their signs at most the sign of the mean, weights that fall and are at least 0 suffice,
    with every choice of the k ones.

    Args:
        k: Number of bits, at least 1.
        spare: Number of bits besides that the neuron sees and the parity does not; at most 4 − k.

    Raises:
        ValueError: If k or the number of all bits is none of these.

    """
    if k < 1 or spare < 0:
        raise ValueError(f"expected k of at least 1 and no less than 0 spare bits, got {k} and {spare}")
    n = k + spare
    fires, patterns = firing_sets(n, alike=False), sign_patterns(n).numpy()
    rows = np.c_[patterns, np.ones(2**n)]
    subspaces = [np.eye(n + 1)[None]]
    for size in range(1, n + 1):
        faces = rows[list(combinations(range(2**n), size))]  # (face, size, n + 1)
        subspaces.append(np.eye(n + 1) - np.linalg.pinv(faces) @ faces)
    projections, neurons, means = np.concatenate(subspaces), [], []
    for secret in combinations(range(n), k):
        parities = patterns[:, secret].prod(axis=1)
        found = ((fires * parities) @ rows / 2**n @ projections).reshape(-1, n + 1)
        found = found[np.linalg.norm(found, axis=1) > ROUNDING]
        found = np.concatenate([found, -found]) / np.tile(np.linalg.norm(found, axis=1), 2)[:, None]
        means.append(np.abs(np.maximum(found @ rows.T, 0) @ parities) / 2**n)
        rest = [place for place in range(n) if place not in secret]
        sizes = [-np.sort(-np.abs(found[:, places])) for places in (list(secret), rest)]
        neurons.append(np.c_[*sizes, found[:, -1]])
    every = np.concatenate(means)
    best = np.concatenate(neurons)[every >= every.max() * (1 - ROUNDING)]
    best /= np.abs(best).max(axis=1, keepdims=True)
    directions = np.unique(best.round(9) + 0.0, axis=0)
    directions.setflags(write=False)  # every later call returns the same
    return Correlation(float(every.max()), directions)


def least_norm(seed: int = 0) -> list[Line]:
    """The parity of k bits at margin 1 costs a squared norm of at least 2 / M, and neurons of equal weights attain it.

    Statement: let M be the largest |mean over all inputs of parity · relu(w · x + b)| of a neuron with ||(w, b)|| = 1.
    A network of one hidden ReLU layer whose output times the parity is at least 1 on all inputs has a squared norm of
    at least 2 / M: the mean of that product is at least 1, and neuron by neuron at most |output| ||(weight, bias)|| M,
    of which twice the sum over neurons is at most the squared norm. A weight v off the secret bits shifts the bias, by
    v on half of all inputs and by −v on the others; on average the two shifted neurons are no longer than the neuron
    itself, whose length is the root mean square of theirs. So it never helps. It does no harm only where both are as
    long, as the bias is 0, and both are best, with means of one sign: for even k they are not best, for k = 3 their
    means cancel, for k = 1 one of them never fires. For k = 1, 2, 3, 4 bits 2 / M is 2√2, 4√2, 16, 16. Where it is
    attained, every neuron has weights of one size on all secret bits, no others, and a bias of 0 for even k; for odd k
    one of that size and of either sign (for k = 1, positive). 2^k neurons attain it; for k = 3 six and four do
    (`one_star`, `two_stars`), and no fewer. So for k = 3 Proposition 3 (18) is close to what weight decay prefers,
    Proposition 1 is with the bias 2 − k (16) in place of 1 − k (42.3), and Proposition 2 (265.8) is not.

    Hypotheses: a margin of 1 on every input; inputs are −1 and +1; the squared norm counts hidden biases; k is at most
    4 for the values of M, found by going through all sets of patterns that a neuron can fire on. An output bias would
    change nothing, for the mean of the parity is 0.

    Source: ours, on the efficiency, in the sense of Varma, Shah, Kenton, Kramár, Kumar 2023 (arXiv 2309.02390), of the
    circuits of Merrill, Tsilivis, Shukla 2023 (arXiv 2303.11873). Morwani, Edelman, Oncescu, Zhao, Kakade 2023 (arXiv
    2311.07568) derive by margins which neurons networks with polynomial activations have.

    Args:
        seed: Of the random draws.

    Returns:
        The lines of its table.

    """
    generator = np.random.default_rng(seed)
    sizes = range(1, LARGEST_K + 1)
    found = [largest_correlation(k) for k in sizes]
    bounds = 2 / np.array([correlation.value for correlation in found])
    costs = [_cost(nearer_half(k)) for k in sizes]
    errors = [_distance_from_parity(nearer_half(k)) for k in range(1, 9)]
    shapes = [_sizes_of(correlation.neurons) for correlation in found]
    beside = [largest_correlation(k, spare=1) for k in sizes[:-1]]
    off = [float(np.abs(correlation.neurons[:, -2]).max()) for correlation in beside]
    stars = [one_star(), two_stars()]
    drawn = np.array([_drawn_cost(generator, k) for k in sizes for _ in range(DRAWS)]).reshape(LARGEST_K, DRAWS)
    wide = np.array(
        [norm_at_margin_one(least_norm_network(k, range(k)), 2 * sign_patterns(k), range(k)) for k in (2, 4)]
    )
    return [
        Line.same(
            "sets that a neuron can fire on: 4, 14, 104, 1882", N_FIRING_SETS, [len(firing_sets(k)) for k in sizes], 0
        ),
        Line.same("2 / M for k = 1 to 4: 2√2, 4√2, 16, 16", [8**0.5, 32**0.5, 16, 16], bounds, 16 * ROUNDING),
        Line.same(
            "of the best neurons, weights of one size; bias 0 or that",
            [(1, 1, k % 2, k % 2) for k in sizes],
            shapes,
            1e-8,
        ),
        Line.same(
            "2 / M for k of k + 1 bits, k = 1 to 3: the same",
            bounds[:-1],
            [2 / correlation.value for correlation in beside],
            16 * ROUNDING,
        ),
        Line.same("weights of the best neurons on the other bit", np.zeros(len(off)), off, 1e-8),
        Line.same("2^k such neurons: their squared norm is 2 / M", bounds, costs, 16 * ROUNDING),
        Line.equal("they compute the parity itself, k = 1 to 8", 0, max(errors), ROUNDING),
        Line.same(
            "so do six and four for k = 3 (one star, two stars): 16", [16, 16], [_cost(s) for s in stars], 16 * ROUNDING
        ),
        Line.same("they compute the parity itself", [0, 0], [_distance_from_parity(s) for s in stars], ROUNDING),
        Line.equal("fewest of the best neurons that compute it, k = 3", 4, _fewest(found[2].neurons), 0),
        Line.always("drawn networks of margin 1 have at least 2 / M", 1 - drawn / bounds[:, None], ROUNDING),
        Line.needed("a margin of 1 on every input (on all but one)", 1 - _cost_but_one() / bounds[2], ROUNDING),
        Line.needed("inputs −1 and +1 (twice as large)", 1 - wide / bounds[[1, 3]], ROUNDING),
        Line.needed(
            "a norm that counts the biases, k = 1 and 3", 1 - _costs_without_biases() / bounds[[0, 2]], ROUNDING
        ),
    ]


def _cost(circuit: ParityCircuit) -> float:
    """Return the least squared norm at margin 1 on all patterns of the circuit's own bits."""
    k = circuit.weight.shape[1]
    return norm_at_margin_one(network_of(circuit, k, range(k)), sign_patterns(k), range(k))


def _distance_from_parity(circuit: ParityCircuit) -> float:
    """Return the largest distance of an output from the parity."""
    patterns = sign_patterns(circuit.weight.shape[1])
    outputs = torch.relu(patterns @ circuit.weight.T + circuit.bias) @ circuit.output
    return float((outputs - patterns.prod(dim=1)).abs().max())


def _sizes_of(neurons: Array) -> tuple[float, float, float, float]:
    """Return the smallest and the largest size of a weight, and of a bias."""
    weights, biases = np.abs(neurons[:, :-1]), np.abs(neurons[:, -1])
    return float(weights.min()), float(weights.max()), float(biases.min()), float(biases.max())


def _fewest(neurons: Array) -> int:
    """Return the smallest number of neurons of least norm of which some weighted sum is the parity.

    At the least norm every margin is exactly 1, for their mean is; and a neuron's output weight has the sign of its own
    mean.

    Args:
        neurons: From :func:`largest_correlation`, with weights that are all 1: their order does not matter.

    """
    patterns = sign_patterns(neurons.shape[1] - 1).numpy()
    terms = [np.maximum(patterns @ (signs * neuron[:-1]) + neuron[-1], 0) for neuron in neurons for signs in patterns]
    margins = np.array(terms).T * patterns.prod(axis=1)[:, None]
    margins *= np.sign(margins.mean(axis=0))
    for size in range(1, len(patterns)):
        chosen = margins[:, list(combinations(range(margins.shape[1]), size))].transpose(1, 0, 2)
        # Where some are a sum of others there is a smaller number that does it, looked at before.
        weights = np.linalg.pinv(chosen).sum(axis=2)
        errors = np.abs((chosen @ weights[:, :, None]).squeeze(2) - 1).max(axis=1)
        if ((weights > 0).all(axis=1) & (errors < ROUNDING)).any():
            return size
    return len(patterns)


def _drawn_cost(generator: np.random.Generator, k: int) -> float:
    """Return the cost of a circuit for k of k + 1 bits with all its parameters changed at random, somewhat."""
    circuits = [one_a_pattern(k), nearer_half(k)]
    if k == 3:
        circuits += [six_neurons(), four_neurons(), one_star(), two_stars()]
    network = network_of(circuits[generator.integers(len(circuits))], k + 1, range(k))
    state = network.state_dict()
    noise = {name: torch.from_numpy(generator.standard_normal(value.shape)) for name, value in state.items()}
    spread, cost = float(generator.uniform(0, 0.5)), math.inf
    while math.isinf(cost):  # changed by too much, it computes something else
        changed = network.with_state({name: value + spread * noise[name] for name, value in state.items()})
        cost = norm_at_margin_one(changed, sign_patterns(k + 1), range(k))
        spread /= 2
    return cost


def _cost_but_one() -> float:
    """Return the cost, for three bits, of all neurons but the first where the first's pattern does not count."""
    weight, bias, output = one_a_pattern(3)
    circuit = ParityCircuit(weight[1:], bias[1:] + 1, output[1:])
    return norm_at_margin_one(network_of(circuit, 3, range(3)), sign_patterns(3)[1:], range(3))


def _costs_without_biases() -> Array:
    """Return what 2^k neurons with weights of one size and a bias as large cost, less the share of the bias."""
    # Of each neuron, 2 |output| times the norm of its weights alone.
    circuits = [nearer_half(k) for k in (1, 3)]
    costs = [2 * float((circuit.output.abs() * circuit.weight.norm(dim=1)).sum()) for circuit in circuits]
    return np.array(costs)


def draw_least_norm() -> Figure:
    """Draws what circuits for three bits cost beside the least, and how a neuron's bias decides it.

    Returns:
        The figure, with its caption.

    """
    figure = new_figure(1, row_height=3.4)
    left, right = figure.subplots(1, 2)
    found = _draw_costs(left)
    _draw_biases(right)
    add_caption(
        figure,
        "Left: circuits that compute the parity of three bits; squared norm of all parameters at margin 1, every "
        "neuron rescaled to the least, over the number of neurons; dashed, the least of all networks, "
        f"{number(round(2 / largest_correlation(3).value, 9))}. {found} Right: how well a neuron with weights of one "
        "size on all k secret bits goes with their parity, per norm of weights and bias, over its bias; 1 is the best "
        "of all neurons, and what a network of least norm is made of. Dots: the bias 1 − k of Proposition 1.",
    )
    return figure


def _draw_costs(axes: Axes) -> str:
    """Draws the cost of every circuit, and returns it in words."""
    pattern = one_a_pattern(3)
    circuits: list[tuple[str, ParityCircuit, str, tuple[int, int]]] = [
        ("Prop. 1", pattern, "o", (-9, 0)),
        ("Prop. 1, bias 2 − k", pattern._replace(bias=pattern.bias + 1), "o", (-9, 9)),
        ("Prop. 2", six_neurons(), "s", (9, 0)),
        ("Prop. 3", four_neurons(), "^", (9, 4)),
        ("one star", one_star(), "D", (0, -12)),
        ("two stars", two_stars(), "D", (9, -9)),
    ]
    least, costs = 2 / largest_correlation(3).value, []
    for name, circuit, marker, offset in circuits:
        size, cost = len(circuit.output), _cost(circuit)
        colour = GREEN if cost < least * (1 + ROUNDING) else VERMILLION
        axes.plot([size], [cost], marker=marker, color=colour, markersize=5, clip_on=False)
        axes.annotate(
            name,
            (size, cost),
            xytext=offset,
            textcoords="offset points",
            ha={1: "left", 0: "center", -1: "right"}[int(np.sign(offset[0]))],
            va="center",
            fontsize=TICK,
        )
        costs.append(f"{name}: {cost:.1f}")
    axes.axhline(least, color=BLACK, linewidth=1.0, linestyle="--", zorder=1)
    axes.set_yscale("log")
    axes.set_ylim(11, 320)
    axes.set_yticks([20, 50, 100, 200], ["20", "50", "100", "200"])
    axes.minorticks_off()
    axes.set_xlim(3.5, 8.5)
    axes.set_xticks([4, 5, 6, 7, 8])
    axes.tick_params(labelsize=TICK)
    axes.set_xlabel("neurons", fontsize=LABEL)
    axes.set_ylabel("squared norm at margin 1 (log scale)", fontsize=LABEL)
    tidy(axes, "Cost of circuits, k = 3")
    return "; ".join(costs) + "."


def _draw_biases(axes: Axes) -> None:
    """Draws the mean of parity times activation per norm, as a share of the best, over the bias."""
    biases = np.linspace(-3.5, 3.5, 701)
    for k, colour, dashes in [(2, BLUE, "-"), (3, VERMILLION, "--"), (4, GREEN, "-.")]:
        best = largest_correlation(k).value
        axes.plot(biases, _shares(k, biases) / best, color=colour, linestyle=dashes, linewidth=1.6, label=f"k = {k}")
        axes.plot([1 - k], _shares(k, np.array([1.0 - k])) / best, "o", color=colour, markersize=6, clip_on=False)
    axes.set_xlabel("bias, in units of a weight's size", fontsize=LABEL)
    axes.set_ylabel("|mean of parity · output| / norm,\nas a share of the best", fontsize=LABEL)
    axes.set_ylim(0, 1.05)
    axes.tick_params(labelsize=TICK)
    axes.legend(frameon=False, fontsize=TICK, loc="upper right")
    tidy(axes, "The best bias of a neuron")


def _shares(k: int, biases: Array) -> Array:
    """Return for every bias the mean of parity times activation of a neuron with weights 1, without sign, per norm."""
    patterns = sign_patterns(k).numpy()
    activations = np.maximum(patterns.sum(axis=1) + biases[:, None], 0)
    shares: Array = np.abs((activations * patterns.prod(axis=1)).mean(axis=1)) / np.sqrt(k + biases**2)
    return shares
