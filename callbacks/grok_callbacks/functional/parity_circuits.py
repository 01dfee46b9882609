"""Circuits of few ReLU neurons that compute the parity of k bits, and how close trained neurons come to them."""

from collections.abc import Sequence
from itertools import permutations
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = [
    "CONSTRUCTIONS",
    "KINDS",
    "Likeness",
    "ParityCircuit",
    "bias_ratios",
    "circuit_of",
    "constructions",
    "contributions",
    "count_neurons",
    "efficiency",
    "four_neurons",
    "likeness",
    "nearer_half",
    "neuron_kinds",
    "off_support",
    "one_a_pattern",
    "one_star",
    "patterns_fired_on",
    "patterns_of",
    "sign_patterns",
    "six_neurons",
    "two_stars",
]

CONSTRUCTIONS = ("proposition_1", "nearer_half", "proposition_2", "proposition_3", "one_star", "two_stars")
"""Names of the circuits that :func:`constructions` returns."""

KINDS = ("same", "opposite", "neither")
"""Kinds of neuron, in the order of the numbers of :func:`neuron_kinds`."""

MOST_PROVED = 4
"""Number of bits up to which the least norm is known."""


class ParityCircuit(NamedTuple):
    """One hidden ReLU layer ``f(x) = Σ_j output_j relu(weight_j · x + bias_j)`` on the k secret bits alone, float64.

    Attributes:
        weight: ``(..., neuron, k)``.
        bias: ``(..., neuron)``.
        output: ``(..., neuron)``.

    """

    weight: Tensor
    bias: Tensor
    output: Tensor


class Likeness(NamedTuple):
    """How alike the neurons of a network and of a construction are, each from 0 to 1, ``(...)``.

    Attributes:
        found: How much of the network is in the construction.
        covered: How much of the construction is in the network.
        both: Harmonic mean of the two: high only where both are.

    """

    found: Tensor
    covered: Tensor
    both: Tensor


# ---- constructions ---------------------------------------------------------------------------------------------------


def sign_patterns(k: int) -> Tensor:
    """Return all ``(2^k, k)`` patterns of k signs, float64, counting in binary with −1 for a zero bit.

    Raises:
        ValueError: If k is below 1.

    """
    if k < 1:
        raise ValueError(f"k: expected at least 1 bit, got {k}")
    shifts = torch.arange(k - 1, -1, -1)
    return ((torch.arange(2**k).unsqueeze(1) >> shifts) & 1).double() * 2 - 1


def one_a_pattern(k: int) -> ParityCircuit:
    """Return the 2^k neurons of Proposition 1: each fires on one sign pattern of the k bits, with output 1 there.

    Merrill, Tsilivis, Shukla 2023 (arXiv 2303.11873, Proposition 1) say that such a network exists; the weights are
    ours: ``weight_s = s``, ``bias_s = 1 - k``, ``output_s = prod(s)``. Patterns are those of :func:`sign_patterns`.

    Args:
        k: Number of secret bits, at least 1.

    Raises:
        ValueError: If k is below 1.

    """
    signs = sign_patterns(k)
    return ParityCircuit(signs, signs.new_full((2**k,), 1 - k), signs.prod(dim=1))


def nearer_half(k: int) -> ParityCircuit:
    """Return 2^k neurons, one a pattern s, each of which fires on the patterns that are nearer to s than to −s (ours).

    The weights are s, the bias is 0 for even k and 1 for odd k, and outputs make the sum the parity itself. For k up to
    4 no network computes it at a smaller squared norm: :func:`grok_lightning.theory.parity_norm.least_norm`. For k = 1
    and 2 it does, neuron by neuron, what Proposition 1 does, but for scale; biases are other ones.

    Args:
        k: Number of secret bits, at least 1.

    Raises:
        ValueError: If k is below 1.

    """
    signs = sign_patterns(k)
    parities, bias = signs.prod(dim=1), signs.new_full((2**k,), k % 2)
    on_ones = torch.relu(signs.sum(dim=1) + bias)  # what each neuron puts out where all bits are +1
    return ParityCircuit(signs, bias, parities / (parities * on_ones).sum())


def six_neurons() -> ParityCircuit:
    """Return the six neurons of Proposition 2 of Merrill, Tsilivis, Shukla 2023 (arXiv 2303.11873), for 3 bits."""
    return _circuit(
        [
            [-1, -1, 10, -9, -1],
            [-1, -1, 1, -2, 10],
            [1, 1, 1, -2, 10],
            [1, -1, -10, -9, -1],
            [-1, 1, -1, -2, 10],
            [1, -1, -1, -2, 10],
        ]
    )


def four_neurons() -> ParityCircuit:
    """Return the four neurons of Proposition 3 of Merrill, Tsilivis, Shukla 2023 (arXiv 2303.11873), for 3 bits.

    The first is constant. With X the sum of the bits, ``f = 1 + 2 relu(X − 1) − relu(X + 1) − relu(−X − 1)``.
    """
    sums = torch.tensor([[0, 1, 1], [1, -1, 2], [1, 1, -1], [-1, -1, -1]], dtype=torch.float64)
    return ParityCircuit(sums[:, :1].expand(-1, 3).clone(), sums[:, 1].clone(), sums[:, 2].clone())


def one_star() -> ParityCircuit:
    """Return six neurons for 3 bits that are no proposition's (ours): what training finds most often.

    A *star* is a neuron with weights s and bias 1, whose output has the sign opposite to prod(s). It fires on s and on
    the three patterns one flip away, and is right on these: one neuron in place of three of Proposition 1. On s it is
    wrong, which the neuron that fires on s alone makes good. The other four patterns have a neuron each. The size of
    biases is that of weights, as in trained networks.

    Half the squared norm of all its weights and biases, once every neuron is scaled so that what goes in and what comes
    out have the same norm, is Σ |output| ‖(weight, bias)‖ = 8, the least that there is
    (:func:`grok_lightning.theory.parity_norm.least_norm`). So it is for :func:`two_stars`, :func:`nearer_half`, and
    Proposition 1 with biases −1: weight decay does not tell them apart. For Proposition 3 it is 9.
    """
    rows = [[1, 1, 1, 1, -0.5], [1, 1, 1, -1, 1.5], *([*s, -1, 0.5] for s in ([1, -1, -1], [-1, 1, -1], [-1, -1, 1]))]
    return _circuit([*rows, [-1, -1, -1, -1, -0.5]])


def two_stars() -> ParityCircuit:
    """Return four neurons for 3 bits (ours): two stars, see :func:`one_star`, around patterns opposite to each other.

    With X the sum of the bits, ``2 f = 3 relu(X − 1) − relu(X + 1) + relu(1 − X) − 3 relu(−X − 1)``: Proposition 3 has
    ``2 − relu(X + 1) + ...`` where this has ``relu(1 − X) − relu(X + 1) ...``, and so needs no constant neuron.
    """
    return _circuit([[1, 1, 1, 1, -0.5], [1, 1, 1, -1, 1.5], [-1, -1, -1, 1, 0.5], [-1, -1, -1, -1, -1.5]])


def _circuit(rows: Sequence[Sequence[float]]) -> ParityCircuit:
    """Return the circuit of neurons given as rows of three weights, bias and output."""
    numbers = torch.tensor(rows, dtype=torch.float64)
    return ParityCircuit(numbers[:, :3], numbers[:, 3], numbers[:, 4])


def constructions(k: int) -> dict[str, Tensor]:
    """Return what the neurons of the circuits for k bits contribute, by the circuits' names in :data:`CONSTRUCTIONS`.

    Flipping signs of bits, with the output's sign where their number is odd, and exchanging bits turn a circuit for the
    parity into another one, an image of the first. Proposition 1 and the nearer half are their own images; of the
    others, which there are for 3 bits alone, all 48 are returned, some of them more than once.

    Returns:
        ``(image, neuron, 2^k)`` each, float64; see :func:`contributions`.

    Raises:
        ValueError: If k is below 1.

    """
    circuits = (one_a_pattern(k), nearer_half(k))
    found = {name: contributions(circuit)[None] for name, circuit in zip(CONSTRUCTIONS[:2], circuits, strict=True)}
    if k == 3:
        circuits_of_three = (six_neurons(), four_neurons(), one_star(), two_stars())
        found |= {name: _images(circuit) for name, circuit in zip(CONSTRUCTIONS[2:], circuits_of_three, strict=True)}
    return found


def _images(circuit: ParityCircuit) -> Tensor:
    flips = sign_patterns(circuit.weight.shape[-1])
    orders = [list(order) for order in permutations(range(flips.shape[1]))]
    weight = torch.stack([circuit.weight[:, order] for order in orders], dim=0) * flips[:, None, None]
    output = (circuit.output * flips.prod(dim=1, keepdim=True))[:, None].expand(weight.shape[:-1])
    return contributions(ParityCircuit(weight, circuit.bias.expand(weight.shape[:-1]), output)).flatten(0, 1)


# ---- neurons ---------------------------------------------------------------------------------------------------------


def circuit_of(weight: Tensor, bias: Tensor, output: Tensor, secret: Tensor) -> ParityCircuit:
    """Return what neurons compute of the secret bits, where all other bits are 0.

    Args:
        weight: Incoming weights, ``(..., neuron, n)``.
        bias: ``(..., neuron)``.
        output: What one unit of each neuron's activation adds to the one logit, ``(..., neuron)``.
        secret: Positions of the k secret bits, ``(..., k)``, int64: each member's own.

    """
    index = secret.unsqueeze(-2).expand(*weight.shape[:-1], -1)
    return ParityCircuit(weight.double().gather(-1, index), bias.double(), output.double())


def patterns_of(circuit: ParityCircuit) -> Tensor:
    """Return the sign pattern of each neuron's weights, ``(..., neuron)``, int64: a row of :func:`sign_patterns`.

    −1 for a neuron that has none, as a weight is 0 or NaN.
    """
    weight = circuit.weight
    places = 2 ** torch.arange(weight.shape[-1] - 1, -1, -1, device=weight.device)
    number = ((weight > 0) * places).sum(dim=-1)
    return torch.where((weight.abs() > 0).all(dim=-1), number, -1)


def contributions(circuit: ParityCircuit) -> Tensor:
    """Return what each neuron adds to the logit on each pattern of the secret bits, ``(..., neuron, 2^k)``."""
    patterns = sign_patterns(circuit.weight.shape[-1]).to(circuit.weight.device)
    active = torch.relu(circuit.weight @ patterns.mT + circuit.bias.unsqueeze(-1))
    return active * circuit.output.unsqueeze(-1)


def patterns_fired_on(circuit: ParityCircuit) -> Tensor:
    """Return on how many of the 2^k patterns each neuron fires, ``(..., neuron)``, int64; on none where it is NaN."""
    patterns = sign_patterns(circuit.weight.shape[-1]).to(circuit.weight.device)
    return (circuit.weight @ patterns.mT + circuit.bias.unsqueeze(-1) > 0).sum(dim=-1)


def neuron_kinds(circuit: ParityCircuit) -> Tensor:
    """Return the kind of each neuron, ``(..., neuron)``, int64: its place in :data:`KINDS`.

    A neuron helps if its contribution, summed over all patterns, has the sign of the parity more than the other one.
    One that helps has an output of the ``same`` sign as the product of its weights, or of the ``opposite`` sign;
    ``neither`` is one that does not help, or has no sign pattern.

    Of 3 weights of equal size a and a bias b, ``same`` is helpful where −3a < b < 0 and ``opposite`` where 0 < b < 3a:
    the former fires on its own pattern alone if b <= −a, as all neurons of Proposition 1 do; the latter fires on the
    patterns one flip away as well, where its output has the sign of their parity, and is wrong on its own pattern,
    which another neuron has to make good. Propositions 2 and 3 have both.
    """
    parity = sign_patterns(circuit.weight.shape[-1]).prod(dim=1).to(circuit.weight.device)
    added = contributions(circuit)
    # One that fires on all patterns is linear there, and helps by nothing but rounding.
    helps = added @ parity > torch.finfo(added.dtype).eps * len(parity) * added.abs().sum(dim=-1)
    own = circuit.weight.sign().prod(dim=-1) * circuit.output.sign()
    kind = torch.where(own > 0, KINDS.index("same"), KINDS.index("opposite"))
    return torch.where(helps & (patterns_of(circuit) >= 0), kind, KINDS.index("neither"))


def count_neurons(circuit: ParityCircuit, chosen: Tensor) -> Tensor:
    """Return how many of the chosen neurons have each sign pattern, by kind.

    Args:
        circuit: The neurons.
        chosen: Those that count, ``(..., neuron)``, bool.

    Returns:
        ``(..., kind, 2^k)``, float64; neurons without a sign pattern are not among them.

    """
    n_patterns = 2 ** circuit.weight.shape[-1]
    pattern = patterns_of(circuit)
    place = neuron_kinds(circuit) * n_patterns + pattern.clamp(min=0)
    counts = circuit.bias.new_zeros(*chosen.shape[:-1], len(KINDS) * n_patterns)
    counts.scatter_add_(-1, place, (chosen & (pattern >= 0)).to(counts.dtype))
    return counts.reshape(*chosen.shape[:-1], len(KINDS), n_patterns)


def bias_ratios(circuit: ParityCircuit) -> Tensor:
    """Return each neuron's bias over the mean size of its weights on the secret bits, ``(..., neuron)``.

    NaN or infinite where all of these are 0.
    """
    return circuit.bias / circuit.weight.abs().mean(dim=-1)


def off_support(weight: Tensor, secret: Tensor, chosen: Tensor) -> Tensor:
    """Return the norm of the chosen neurons' weights on all other bits over that on the secret bits, ``(...)``.

    Norms are those of the whole matrices: 0 for a circuit that reads the secret bits alone; NaN or infinite where these
    weights are 0, or nothing is chosen.

    Args:
        weight: ``(..., neuron, n)``.
        secret: ``(..., k)``, int64.
        chosen: ``(..., neuron)``, bool.

    """
    squares = torch.where(chosen.unsqueeze(-1), weight.double().square(), 0).sum(dim=-2)
    on = squares.gather(-1, secret)
    rest = squares.scatter(-1, secret, 0)  # no difference of sums: what is 0 has to come out as 0
    return (rest.sum(dim=-1) / on.sum(dim=-1)).sqrt()


def efficiency(weight: Tensor, bias: Tensor, output: Tensor, secret: Tensor, chosen: Tensor) -> Tensor:
    """Return how near neurons come to the least norm with which their mean margin can be had (ours), ``(...)``.

    A network of one hidden ReLU layer whose output times the parity is m on average over all inputs has a squared norm
    of at least 2m / M, biases included, where M, what one neuron can do per norm, is attained by :func:`nearer_half`:
    :func:`grok_lightning.theory.parity_norm.least_norm`. The efficiency is 2m / M over the least squared norm to which
    the neurons can be rescaled, ``2 Σ |output| ‖(weight, bias)‖``: 1 for a network of least norm, 0.89 for Proposition
    3, 0.38 for Proposition 1 (k = 3), about 0 for neurons drawn at random, negative for the wrong sign.

    Means are over the 2^k patterns of the secret bits with all others 0; weights on the others count in the norm.

    Args:
        weight: ``(..., neuron, n)``.
        bias: ``(..., neuron)``.
        output: ``(..., neuron)``.
        secret: ``(..., k)``, int64.
        chosen: ``(..., neuron)``, bool.

    Returns:
        −1 to 1, but for rounding; NaN if k is above 4, for which M is not known, or where the chosen neurons have no
        norm, or one that is no number.

    """
    circuit = circuit_of(weight, bias, output, secret)
    k = secret.shape[-1]
    if k > MOST_PROVED:
        return circuit.bias.new_full(chosen.shape[:-1], torch.nan)
    margin, price = _margins_and_prices(circuit, weight)
    best, best_price = _margins_and_prices(nearer_half(k))
    total = [torch.where(chosen, values, 0).sum(dim=-1) for values in (margin, price)]
    return total[0] / total[1] * float(best_price[0] / best[0])


def _margins_and_prices(circuit: ParityCircuit, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return each neuron's mean of parity times contribution, and ``|output| ‖(weight, bias)‖``, ``(..., neuron)``."""
    parity = sign_patterns(circuit.weight.shape[-1]).prod(dim=1).to(circuit.weight.device)
    every = (circuit.weight if weight is None else weight.double()).square().sum(dim=-1) + circuit.bias.square()
    return contributions(circuit) @ parity / len(parity), circuit.output.abs() * every.sqrt()


# ---- likeness --------------------------------------------------------------------------------------------------------


def likeness(circuit: ParityCircuit, chosen: Tensor, construction: Tensor) -> Likeness:
    """Return how alike chosen neurons and those of a construction are (ours).

    Two neurons are compared by what they contribute, as functions on the 2^k patterns of the secret bits: by the
    cosine of :func:`contributions`. It knows no scales, which may be moved from a ReLU neuron's input to its output,
    knows the sign of the output, and takes two biases for one where they make no difference but that of scale, as those
    between −3 and −1 for weights ±1 on 3 bits. Sets of patterns fired on would do so as well, but jump where a bias
    passes such a bound, and those of trained neurons lie close to one. Weights on other bits are not looked at: see
    :func:`off_support`.

    ``found`` is the mean over the network's neurons of the cosine with the nearest neuron of the construction, weighted
    by the norm of their contributions: as a function, a neuron is the same whether it is split into two or not, and
    what hardly adds anything hardly counts. ``covered`` is the mean the other way round over the construction's
    neurons, which are all different: each counts once. No cosine counts as less than 0.

    Training knows no image of a construction from any other: the one with the largest ``both`` counts.

    Args:
        circuit: The network's neurons, on the secret bits.
        chosen: Those that count, ``(..., neuron)``, bool.
        construction: Contributions of the neurons of its images, ``(image, neuron, 2^k)``, from :func:`constructions`.

    Returns:
        ``(...)`` each, float64. Where no chosen neuron fires, ``covered`` is 0 and the others are NaN; where one is NaN
        or infinite, all are NaN.

    Raises:
        ValueError: If the construction is for another number of bits.

    """
    # And one neuron that adds nothing, so that there always is one.
    mine = pad(torch.where(chosen.unsqueeze(-1), contributions(circuit), 0), (0, 0, 0, 1))
    if construction.ndim != 3 or construction.shape[-1] != mine.shape[-1]:
        raise ValueError(
            f"construction: expected contributions (image, neuron, {mine.shape[-1]}), got {tuple(construction.shape)}"
        )
    norms = torch.linalg.vector_norm(mine, dim=-1)
    theirs = _directions(construction.to(mine.device))
    cosines = (_directions(mine) @ theirs.flatten(0, 1).mT).clamp(min=0, max=1)
    cosines = cosines.reshape(*mine.shape[:-1], *theirs.shape[:2])  # (..., neuron, image, its neuron)
    found = (norms.unsqueeze(-1) * cosines.amax(dim=-1)).sum(dim=-2) / norms.sum(dim=-1, keepdim=True)
    covered = cosines.amax(dim=-3).mean(dim=-1)
    total = found + covered
    both = torch.where(total == 0, 0, 2 * found * covered / total)
    best = both.argmax(dim=-1, keepdim=True)  # NaN, if there is any
    return Likeness(*(values.gather(-1, best).squeeze(-1) for values in (found, covered, both)))


def _directions(vectors: Tensor) -> Tensor:
    """Return vectors of length 1, and of length 0 where they were 0."""
    norms = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return torch.where(norms == 0, 0, vectors / norms)
