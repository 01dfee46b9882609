"""Networks that compute the parity of secret bits, as the proofs build them: Merrill, Tsilivis, Shukla 2023."""

import math
from collections.abc import Callable, Sequence
from itertools import product
from operator import index
from typing import TypeAlias

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from grok_callbacks.functional.neuron_norms import neuron_norms
from grok_callbacks.functional.parity_circuits import (
    ParityCircuit,
    four_neurons,
    one_a_pattern,
    sign_patterns,
    six_neurons,
)
from grok_callbacks.functional.sparse_subnetwork import prefix_search, rank_neurons
from grok_lightning.figures.style import LABEL, TICK, add_caption, new_figure, tidy
from grok_lightning.figures.words import number
from grok_lightning.networks import MLPNetwork
from grok_lightning.theory.claims import Line

__all__ = [
    "balanced",
    "draw_propositions",
    "effective_sparsity",
    "network_of",
    "norm_at_margin_one",
    "proposition_1",
    "proposition_1_network",
    "proposition_2",
    "proposition_2_network",
    "proposition_3",
    "proposition_3_network",
    "squared_norm",
    "wrong_signs",
]

Array: TypeAlias = NDArray[np.float64]
Builder: TypeAlias = Callable[[int, Sequence[int]], MLPNetwork]

LARGEST_K = 8
LARGEST_N = 12
WIDE = 1000
"""Width of the paper's networks."""
DRAWS = 20
GAUSSIAN_ROWS = 1000
ROUNDING = 1e-14
"""Relative, of sums of a few hundred squares."""


def network_of(circuit: ParityCircuit, n: int, secret: Sequence[int], width: int | None = None) -> MLPNetwork:
    """Return the network of n bits that applies a circuit to the secret ones; float64.

    It is of the kind that the MLP module trains: a population of one, a hidden ReLU layer with a bias, no output bias.
    Weights off the secret positions are 0, and so is all of the neurons that only fill the width. These come last, for
    rankings by norm to have a neuron of the circuit first even where it has no weights either.

    Args:
        circuit: On k bits.
        n: Number of bits, at least 1.
        secret: The k positions, 0 to n − 1, in the order of the circuit's bits.
        width: Number of neurons; those of the circuit if ``None``.

    Raises:
        ValueError: If there are not k different positions among the n bits, or the width is too small.

    """
    n_neurons, k = circuit.weight.shape
    positions = [index(position) for position in secret]
    if len(positions) != k:
        raise ValueError(f"secret: expected {k} positions, for a circuit of {k} bits, got {len(positions)}")
    if len(set(positions)) != k or not all(0 <= position < n for position in positions):
        raise ValueError(f"secret: expected different positions, 0 to {n - 1}, got {positions}")
    width = n_neurons if width is None else width
    if width < n_neurons:
        raise ValueError(f"width: expected at least the {n_neurons} neurons of the circuit, got {width}")
    network = MLPNetwork(n_inputs=n, n_outputs=1, hidden=[width], generators=[torch.Generator()]).double()
    state = {name: torch.zeros_like(value) for name, value in network.state_dict().items()}
    state["hidden.0.weight"][0, :n_neurons, positions] = circuit.weight
    state["hidden.0.bias"][0, :n_neurons] = circuit.bias
    state["output.weight"][0, 0, :n_neurons] = circuit.output
    network.load_state_dict(state)
    return network


def proposition_1_network(n: int, secret: Sequence[int], width: int | None = None) -> MLPNetwork:
    """Return the network of Proposition 1: a neuron for each of the 2^k sign patterns of the k secret bits.

    Args:
        n: Number of bits.
        secret: The k positions, at least one.
        width: Number of neurons; 2^k if ``None``.

    Raises:
        ValueError: As :func:`network_of` does.

    """
    return network_of(one_a_pattern(len(secret)), n, secret, width)


def proposition_2_network(n: int, secret: Sequence[int], width: int | None = None) -> MLPNetwork:
    """Return the network of Proposition 2: six neurons, for three secret bits.

    Args:
        n: Number of bits, at least 3.
        secret: The three positions, in the order of the paper's bits, which are not alike.
        width: Number of neurons; 6 if ``None``.

    Raises:
        ValueError: As :func:`network_of` does.

    """
    return network_of(six_neurons(), n, secret, width)


def proposition_3_network(n: int, secret: Sequence[int], width: int | None = None) -> MLPNetwork:
    """Return the network of Proposition 3: four neurons, one of them constant, for three secret bits.

    Args:
        n: Number of bits, at least 3.
        secret: The three positions.
        width: Number of neurons; 4 if ``None``.

    Raises:
        ValueError: As :func:`network_of` does.

    """
    return network_of(four_neurons(), n, secret, width)


def _parities(inputs: Tensor, secret: Sequence[int]) -> Tensor:
    """Return the sign of the product of the secret inputs of every row, ``(B,)``."""
    return inputs[:, list(secret)].prod(dim=1).sign()


def wrong_signs(network: MLPNetwork, inputs: Tensor, secret: Sequence[int]) -> Array:
    """Return for every row whether the output has another sign than the product of the secret inputs: 1, else 0.

    An output of 0 has neither sign.

    Args:
        network: Of one member.
        inputs: ``(B, n)``, none of the secret ones 0.
        secret: Positions.

    Returns:
        ``(B,)``.

    """
    margins = _parities(inputs, secret) * network.logits(inputs).squeeze(1)
    wrong: Array = (~(margins > 0)).double().detach().numpy()
    return wrong


def squared_norm(network: MLPNetwork) -> float:
    """Return the sum of the squares of all parameters."""
    return math.fsum(float(value.square().sum()) for value in network.state_dict().values())


def balanced(network: MLPNetwork) -> MLPNetwork:
    """Return the same function with every hidden neuron rescaled to the least norm, a copy.

    A ReLU neuron whose incoming weights and bias are multiplied by c > 0, and its outgoing ones divided by it, does the
    same; its share of the squared norm is least, ``2 ||(weight, bias)|| ||output||``, where both norms are equal. A
    neuron that adds nothing is set to 0.

    Args:
        network: With one hidden ReLU layer with a bias.

    Raises:
        ValueError: If it is another network.

    """
    if network.activation != "relu" or len(network.hidden) != 1 or not network.bias:
        raise ValueError("expected a network with one hidden ReLU layer with a bias")
    state = {name: value.clone() for name, value in network.state_dict().items()}
    weight, bias, output = (state[name] for name in ("hidden.0.weight", "hidden.0.bias", "output.weight"))
    into = torch.cat([weight, bias.unsqueeze(-1)], dim=-1).norm(dim=-1)
    out = output.norm(dim=-2)
    there = (into > 0) & (out > 0)
    up = torch.where(there, (out / into).sqrt(), 0.0)
    state["hidden.0.weight"] = weight * up.unsqueeze(-1)
    state["hidden.0.bias"] = bias * up
    state["output.weight"] = output * torch.where(there, (into / out).sqrt(), 0.0).unsqueeze(-2)
    return network.with_state(state)


def norm_at_margin_one(network: MLPNetwork, inputs: Tensor, secret: Sequence[int]) -> float:
    """Return the least squared norm that rescaling gives a network whose outputs are at least 1 away from 0.

    Without an output bias the function is homogeneous of degree 2 in all parameters together: dividing them by the root
    of the smallest margin makes that margin 1. The less it is, the more efficient the circuit is in the sense of Varma,
    Shah, Kenton, Kramár, Kumar 2023 (arXiv 2309.02390): the larger are its logits at the same norm.

    Args:
        network: Of one member, with one hidden ReLU layer with a bias.
        inputs: The rows whose margins count, ``(B, n)``, none of the secret ones 0. A row's margin is its output times
            the sign of the product of its secret inputs.
        secret: Positions.

    Returns:
        The norm; infinity where an output has the wrong sign, or is 0.

    """
    with torch.no_grad():
        margin = float((_parities(inputs, secret) * network.logits(inputs).squeeze(1)).min())
    return squared_norm(balanced(network)) / margin if margin > 0 else math.inf


def effective_sparsity(network: MLPNetwork, inputs: Tensor, secret: Sequence[int]) -> tuple[float, float]:
    """Return how many neurons, ranked by the norm of their weights, do what all of them do: by both rules.

    Args:
        network: Of one member, with one hidden layer and one output.
        inputs: ``(B, n)``, none of the secret ones 0.
        secret: Positions.

    Returns:
        Smallest number that predicts the same, and smallest that is right as often; see
        :class:`~grok_callbacks.functional.sparse_subnetwork.Sizes`.

    """
    with torch.no_grad():
        (activations,) = _activations(network, inputs)
        rest = inputs.new_zeros(len(inputs), 1)
        order = rank_neurons(neuron_norms(network.state_dict()["hidden.0.weight"][0], None))
        targets = _parities(inputs, secret)
        sizes = prefix_search(activations, network.state_dict()["output.weight"][0], rest, order, targets)
    return float(sizes.by_predictions), float(sizes.by_accuracy)


def _activations(network: MLPNetwork, inputs: Tensor) -> Tensor:
    """Return what hidden neurons put out, ``(1, B, neuron)``."""
    activations: Tensor = torch.relu(network.hidden[0](inputs.unsqueeze(0))).detach()
    return activations


def proposition_1(seed: int = 0) -> list[Line]:
    """One neuron a sign pattern, 2^k in all, computes the parity of any k bits.

    Statement: there is a network of one hidden layer of 2^k ReLU neurons, with hidden biases and no output bias, whose
    output is positive where the parity of k secret bits out of n is +1 and negative where it is −1. For every sign
    pattern s of the secret bits it has a neuron with the weights s there and 0 elsewhere, a bias of 1 − k and the
    output weight prod(s). Where d secret bits differ from s the neuron is given (k − 2d) + (1 − k) = 1 − 2d: it puts
    out 1 on its own pattern and 0 on all others, and the network puts out the parity itself. Its squared norm is
    2^k (k + (k − 1)² + 1), and 2^(k + 1) √(k + (k − 1)²) once every neuron is rescaled for the least. No neuron can be
    left out, as its pattern would be given 0; so the smallest subnetwork with the same predictions has all 2^k.

    Hypotheses: inputs are −1 or +1; the network was built for the bits that are secret; neurons have their biases. The
    signs, not the values, are right with any bias above −k and up to 2 − k. Of k = 1 to 8, biases of 0 leave them right
    for 1, 2 and 6, and none of them for the others.

    Source: Merrill, Tsilivis, Shukla 2023 (arXiv 2303.11873), Proposition 1. The paper says that such weights exist;
    the weights, and what follows from them, are ours.

    Args:
        seed: Of the random draws.

    Returns:
        The lines of its table.

    """
    generator = np.random.default_rng(seed)
    sizes = range(1, LARGEST_K + 1)
    k = np.array(sizes)
    exhaustive = [(proposition_1_network(size, range(size)), size) for size in sizes]
    own = [
        np.abs(_activations(network, sign_patterns(size))[0].numpy() - np.eye(2**size)).max()
        for network, size in exhaustive
    ]
    norms, costs = _norms([network for network, _ in exhaustive], sizes)
    found = [_sparsities(proposition_1_network, size, tuple(range(size)), 2**size) for size in sizes]
    pattern = k + (k - 1.0) ** 2
    unbiased = [_unbiased(network, size) for network, size in exhaustive]
    right, wrong = (np.concatenate([unbiased[i - 1] for i in chosen]) for chosen in ((1, 2, 6), (3, 4, 5, 7, 8)))
    return [
        *_signs(generator, proposition_1_network, sizes),
        Line.same("a neuron's output is 1 on its own pattern, 0 on others", np.zeros(len(own)), own, 0.0),
        Line.same("squared norm 2^k (k + (k − 1)² + 1), k = 1 to 8", 2.0**k * (pattern + 1), norms, 0.0),
        _relative("least norm by rescaling 2^(k + 1) √(k + (k − 1)²)", 2.0 ** (k + 1) * np.sqrt(pattern), costs),
        Line.same("effective sparsity 2^k, alone and among 1,000", [[2**size] * 4 for size in sizes], found, 0.0),
        _left_out(exhaustive),
        *_without(generator, proposition_1_network, sizes),
        Line.equal("wrong signs without biases, k = 1, 2, 6", 0, right.sum(), 0.0),
        Line.needed("the hidden biases, k = 3, 4, 5, 7, 8", wrong),
    ]


def proposition_2(seed: int = 0) -> list[Line]:
    """Six neurons compute the parity of three bits.

    Statement: with the six neurons of the paper's table the output is −1 on the four patterns of odd parity, 10 on the
    two of even parity whose second bit is +1, and 7 on the other two. Four small neurons fire on one even pattern each
    and add 10. Two large ones, with the weight ±10 on the third bit, fire on two odd patterns each, with 1, and on one
    even pattern, with 3; both are subtracted. The squared norm is 4 · 107 + 2 · 184 = 796, and 80 √7 + 4 √183 once
    every neuron is rescaled for the least. No neuron can be left out: without a small one its pattern is given 0 or −3,
    without a large one its odd patterns 0. So the smallest subnetwork with the same predictions has all six: the one
    ranked last is a small one, and any subnetwork without it errs on its pattern.

    Hypotheses: inputs are −1 or +1; the network was built for the bits that are secret, and these are three; neurons
    have their biases. The large weights on the third bit may have any size a from 3/2 on, with a bias of 1 − a: the
    paper's 10 and −9 are dear.

    Source: Merrill, Tsilivis, Shukla 2023 (arXiv 2303.11873), Proposition 2. Values of the outputs, norms and sizes are
    ours.

    Args:
        seed: Of the random draws.

    Returns:
        The lines of its table.

    """
    generator = np.random.default_rng(seed)
    patterns, network = sign_patterns(3), proposition_2_network(3, range(3))
    first, second, third = (patterns[:, i] > 0 for i in range(3))
    fires = torch.stack(
        [
            third & ~(first & second),
            ~first & ~second & third,
            first & second & third,
            ~third & ~(~first & second),
            ~first & second & ~third,
            first & ~second & ~third,
        ],
        dim=1,
    )
    outputs = torch.where(patterns.prod(dim=1) < 0, -1.0, torch.where(second, 10.0, 7.0))
    firing = _activations(network, patterns)[0] > 0
    norms, costs = _norms([network], [3])
    return [
        *_signs(generator, proposition_2_network, [3], exact=False),
        Line.same("output −1; 7, 10 on the 8 patterns", outputs, network.logits(patterns)[:, 0].detach(), 0.0),
        Line.equal("neurons and patterns where firing is not as stated", 0, int((fires != firing).sum()), 0.0),
        Line.equal("squared norm 4 · 107 + 2 · 184", 796, norms[0], 0.0),
        _relative("least norm by rescaling, at margin 1: 80 √7 + 4 √183", [80 * 7**0.5 + 4 * 183**0.5], costs),
        Line.same("effective sparsity, alone and among 1,000", [6] * 4, _sparsities_of_three(proposition_2_network), 0),
        _left_out([(network, 3)]),
        *_without(generator, proposition_2_network, [3]),
        Line.needed("the hidden biases", _unbiased(network, 3)),
        Line.needed(
            "three secret bits (a fourth)", wrong_signs(proposition_2_network(4, range(3)), sign_patterns(4), range(4))
        ),
    ]


def proposition_3(seed: int = 0) -> list[Line]:
    """Four neurons, one of them constant, compute the parity of three bits.

    Statement: with X the sum of three bits, f = 1 + 2 relu(X − 1) − relu(X + 1) − relu(−X − 1) is the parity itself:
    −1, +1, −1, +1 at X = −3, −1, 1, 3. As a network the 1 is a neuron without weights and a bias of 1. The squared norm
    is 2 + 8 + 5 + 5 = 20, and 2 (1 + 4 + 2 + 2) = 18 once every neuron is rescaled for the least. No neuron can be left
    out: at X = −1 the constant one is alone, and without the second, third or fourth the sign is wrong at X = 3, 1 or
    −3. So the smallest subnetwork with the same predictions has all four: biases do not count in the ranking, the
    constant neuron comes last, and no subnetwork without it is right at X = −1.

    Hypotheses: inputs are −1 or +1; the network was built for the bits that are secret, and these are three (a sum of
    two or of five bits has another parity); neurons have their biases.

    Source: Merrill, Tsilivis, Shukla 2023 (arXiv 2303.11873), Proposition 3, which they owe to a reviewer and which,
    they say, training does not find. Norms and sizes are ours.

    Args:
        seed: Of the random draws.

    Returns:
        The lines of its table.

    """
    generator = np.random.default_rng(seed)
    patterns, network = sign_patterns(3), proposition_3_network(3, range(3))
    sums, outputs = patterns.sum(dim=1), network.logits(patterns)[:, 0].detach()
    by_sum = torch.stack([outputs[sums == x].mean() for x in (-3, -1, 1, 3)])
    norms, costs = _norms([network], [3])
    return [
        *_signs(generator, proposition_3_network, [3]),
        Line.same("output at X = −3, −1, 1, 3: −1, +1, −1, +1", [-1.0, 1.0, -1.0, 1.0], by_sum, 0.0),
        Line.equal("squared norm 2 + 8 + 5 + 5", 20, norms[0], 0.0),
        _relative("least norm by rescaling, at margin 1: 2 (1 + 4 + 2 + 2)", [18.0], costs),
        Line.same("effective sparsity, alone and among 1,000", [4] * 4, _sparsities_of_three(proposition_3_network), 0),
        _left_out([(network, 3)]),
        *_without(generator, proposition_3_network, [3]),
        Line.needed("the hidden biases", _unbiased(network, 3)),
        Line.needed("three secret bits (X a sum of two)", _on_sums_of(2)),
        Line.needed("three secret bits (X a sum of five)", _on_sums_of(5)),
    ]


def _draw_secret(generator: np.random.Generator, sizes: Sequence[int], spare: int = 0) -> tuple[int, list[int]]:
    """Draw n and the secret positions, in any order; at least ``spare`` others are left."""
    k = int(generator.choice(sizes))
    n = int(generator.integers(k + spare, LARGEST_N + 1))
    return n, [int(position) for position in generator.permutation(n)[:k]]


def _signs(generator: np.random.Generator, build: Builder, sizes: Sequence[int], *, exact: bool = True) -> list[Line]:
    """Compare signs, and values where these are to be the parity, on all inputs: of k bits, and of n ones."""
    settings = [(k, list(range(k))) for k in sizes]
    drawn = [_draw_secret(generator, sizes) for _ in range(DRAWS)]
    lines, distances = [], []
    span = f"k = {min(sizes)} to {max(sizes)}" if len(sizes) > 1 else f"k = {sizes[0]}"
    for what, group in [(f"wrong signs, {span}: of", settings), ("wrong signs, drawn n, S: of", drawn)]:
        wrong = []
        for n, secret in group:
            inputs, network = sign_patterns(n), build(n, secret)
            wrong.append(wrong_signs(network, inputs, secret))
            outputs = network.logits(inputs)[:, 0].detach()
            distances.append(float((outputs - _parities(inputs, secret)).abs().max()))
        every = np.concatenate(wrong)
        lines.append(Line.equal(f"{what} {every.size:,}", 0, every.sum(), 0.0))
    if exact:
        lines.append(Line.equal("largest |output − parity| there", 0, max(distances), 0.0))
    return lines


def _without(generator: np.random.Generator, build: Builder, sizes: Sequence[int]) -> list[Line]:
    """Drop the hypotheses that all three share, one at a time."""
    gaussian, elsewhere = [], []
    for _ in range(DRAWS):
        n, secret = _draw_secret(generator, sizes, spare=1)
        network = build(n, secret)
        rows = torch.from_numpy(generator.standard_normal((GAUSSIAN_ROWS // DRAWS, n)))
        gaussian.append(wrong_signs(network, rows, secret))
        other = secret
        while set(other) == set(secret):
            other = [int(position) for position in generator.permutation(n)[: len(secret)]]
        elsewhere.append(wrong_signs(network, sign_patterns(n), other))
    return [
        Line.needed("inputs −1 and +1 (Gaussian ones)", np.concatenate(gaussian)),
        Line.needed("the bits that it was built for (others secret)", np.concatenate(elsewhere)),
    ]


def _left_out(networks: Sequence[tuple[MLPNetwork, int]]) -> Line:
    """Return the line of how many neurons can be left out, one at a time, with all signs still right."""
    n_spare = n_neurons = 0
    for network, k in networks:
        patterns = sign_patterns(k)
        terms = _activations(network, patterns)[0] * network.state_dict()["output.weight"][0]  # (pattern, neuron)
        margins = patterns.prod(dim=1, keepdim=True) * (terms.sum(dim=1, keepdim=True) - terms)
        n_spare += int((margins > 0).all(dim=0).sum())
        n_neurons += margins.shape[1]
    return Line.equal(f"neurons that can be left out, of {n_neurons}", 0, n_spare, 0.0)


def _unbiased(network: MLPNetwork, k: int) -> Array:
    """Return which patterns are given a wrong sign once hidden biases are 0."""
    state = network.state_dict()
    without = network.with_state(state | {"hidden.0.bias": torch.zeros_like(state["hidden.0.bias"])})
    return wrong_signs(without, sign_patterns(k), range(k))


def _on_sums_of(k: int) -> Array:
    """Return on which patterns of k bits the formula of Proposition 3 in their sum has not the sign of their parity."""
    three = four_neurons()
    circuit = ParityCircuit(three.weight[:, :1].expand(-1, k), three.bias, three.output)
    return wrong_signs(network_of(circuit, k, range(k)), sign_patterns(k), range(k))


def _norms(networks: Sequence[MLPNetwork], sizes: Sequence[int]) -> tuple[list[float], list[float]]:
    """Return squared norms, as built and as small as rescaling makes them at margin 1."""
    pairs = zip(networks, sizes, strict=True)
    costs = [norm_at_margin_one(network, sign_patterns(k), range(k)) for network, k in pairs]
    return [squared_norm(network) for network in networks], costs


def _relative(what: str, predicted: Sequence[float] | Array, computed: Sequence[float]) -> Line:
    """Return the line of numbers that are to be the same but for rounding."""
    return Line.same(what, predicted, computed, ROUNDING * float(np.max(predicted)))


def _sparsities(
    build: Callable[[int, Sequence[int], int], MLPNetwork], n: int, secret: Sequence[int], n_neurons: int
) -> list[float]:
    """Return sizes by both rules, alone and among neurons that are 0."""
    inputs = sign_patterns(n)
    return [size for width in (n_neurons, WIDE) for size in effective_sparsity(build(n, secret, width), inputs, secret)]


def _sparsities_of_three(build: Callable[[int, Sequence[int], int], MLPNetwork]) -> list[float]:
    n_neurons = len(build(3, range(3), WIDE).state_dict()["output.weight"][0, 0].nonzero())
    return _sparsities(build, 3, range(3), n_neurons)


def draw_propositions() -> Figure:
    """Draws what every neuron of the three constructions adds to the output on the eight patterns of three bits.

    Returns:
        The figure, with its caption.

    """
    patterns = sign_patterns(3)
    # Parities apart, so that the two signs of the last row are two blocks.
    patterns = patterns[patterns.prod(dim=1).argsort(stable=True)]
    networks = [build(3, range(3)) for build in (proposition_1_network, proposition_2_network, proposition_3_network)]
    figure = new_figure(1, row_height=3.5)
    panels = figure.subplots(1, 3)
    found = []
    for place, (axes, network) in enumerate(zip(panels, networks, strict=True)):
        terms = (_activations(network, patterns)[0] * network.state_dict()["output.weight"][0]).T
        _draw_terms(axes, torch.cat([terms, terms.sum(dim=0, keepdim=True)]), patterns, named=place == 0)
        tidy(axes, f"Proposition {place + 1}: {len(terms)} neurons")
        axes.grid(visible=False)
        cost = norm_at_margin_one(network, patterns, range(3))
        found.append(f"{number(squared_norm(network))} and {cost:.1f} ({len(terms)} neurons)")
    add_caption(
        figure,
        "Output weight times activation of every neuron (rows) on the eight sign patterns of three bits (columns; the "
        "four of odd parity at the left), and their sum in the last row, whose sign is the parity. Blank: the neuron "
        "does not fire. Squared norm of all parameters, as built and with every neuron rescaled to the least norm at "
        f"margin 1: {'; '.join(found)}.",
    )
    return figure


def _draw_terms(axes: Axes, terms: Tensor, patterns: Tensor, *, named: bool) -> None:
    """Draws what neurons add as colours and numbers, and beneath, set off, their sum."""
    n_rows, n_columns = terms.shape
    # Roots, for 1 to be told from 0 beside 10.
    axes.imshow((terms.sign() * terms.abs().sqrt()).numpy(), cmap="PuOr_r", vmin=-4.5, vmax=4.5, aspect="auto")
    for row, column in product(range(n_rows), range(n_columns)):
        value = float(terms[row, column])
        if value:
            text = f"{value:+.0f}".replace("-", "−")
            axes.text(column, row, text, ha="center", va="center", fontsize=TICK - 1, color="#222222")
    axes.axhline(n_rows - 1.5, color="black", linewidth=1.2)
    axes.axvline(n_columns / 2 - 0.5, color="#5d5d5d", linewidth=0.8, linestyle=":")
    signs = ["\n".join("+" if bit > 0 else "−" for bit in pattern) for pattern in patterns.tolist()]
    axes.set_xticks(range(n_columns), signs)
    axes.set_yticks(range(n_rows), [*(str(row + 1) for row in range(n_rows - 1)), "sum"])
    axes.tick_params(labelsize=TICK - 1, length=0)
    axes.set_xlabel("sign pattern of the secret bits", fontsize=LABEL - 1)
    if named:
        axes.set_ylabel("neuron", fontsize=LABEL)
