"""A network that adds modulo p without training: the weights of Gromov 2023, arXiv 2301.02679."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter
from numpy.typing import NDArray
from scipy.stats import norm
from torch import Tensor

from grok_callbacks.functional import (
    centre,
    coset_means,
    frequencies_of,
    totals,
    trigonometric_logits,
    trigonometric_share,
)
from grok_lightning.figures.style import (
    BLUE,
    GREEN,
    LABEL,
    TICK,
    VERMILLION,
    add_caption,
    add_key,
    draw_mean,
    new_figure,
    tidy,
)
from grok_lightning.figures.words import decimals, listing
from grok_lightning.networks import MLPNetwork
from grok_lightning.theory.claims import Line

__all__ = [
    "addition_network",
    "analytic_addition",
    "draw_random_phases",
    "expected_accuracy",
    "expected_share",
    "logit_cube",
    "logit_gap",
    "network_of_waves",
    "random_addition_network",
    "random_phases",
    "shared_accuracy",
]

Array: TypeAlias = NDArray[np.float64]

ROUNDING = 1e-12
"""Relative error of a sum of up to 512 products of numbers below 4, the most that is checked: below 8 · 512 ε."""

STANDARD_ERRORS = 5.0
"""How far a mean over draws may lie from what is expected, in exact standard errors: further once in 100,000 tables."""

INCOHERENT_POWERS = (1 / 2, 1 / 8, 1 / 8, 1 / 8, 1 / 16, 1 / 32, 1 / 32)
"""What of a neuron does not cancel by itself, by the sum of phases on which it depends: (1, 1), (2, 2), (2, 0), (0, 2),
(1, −1) twice, (3, 1), (1, 3). The power of each, for n neurons, is n times an exponential number, nearly: its variance
is 1 − 1/n. They are uncorrelated, and so are those of other frequencies."""

DRAWS = 32
MODULI = (11, 23, 37)
WIDTHS = tuple(2**exponent for exponent in range(5, 12))
COLOURS = (BLUE, VERMILLION, GREEN)

HOW_TO_READ = (
    "Networks with one-hot inputs and square activation, whose weights are cosines with random phases (Gromov 2023): "
    "mean over 20 draws, one standard deviation to either side, and each draw. Dashed: what is expected, left √(n/(n + "
    "8)) with n neurons of every frequency, right as if what does not cancel were independent normal noise. Stars: "
    "nine neurons of every frequency with phases on a 3 × 3 grid, exact."
)


# ---- networks --------------------------------------------------------------------------------------------------------


def network_of_waves(
    p: int,
    frequencies: Sequence[int],
    phases: Tensor,
    output_phases: Tensor | None = None,
    activation: str = "square",
) -> MLPNetwork:
    """Return a network each of whose neurons adds, on the circle, at one frequency: Gromov 2023 (arXiv 2301.02679).

    Of one-hot a and b, the neuron of frequency k and phases φ1, φ2 sees cos(ω_k a + φ1) + cos(ω_k b + φ2), and adds its
    activation times cos(ω_k c + φ1 + φ2) to the logit of c; ω_k = 2πk/p. The square has a part 2 cos · cos, hence
    cos(ω_k(a + b) + φ1 + φ2), whose product with the weight has ½ cos(ω_k(a + b − c)): the same whatever the phases.
    All else depends on them, and cancels over neurons with other phases.

    Args:
        p: The modulus, at least 2.
        frequencies: One a neuron; k and p − k are one frequency.
        phases: φ1 and φ2 of every neuron, ``(N, 2)``, in radians.
        output_phases: ``(N,)``; φ1 + φ2 if ``None``, as in the paper.
        activation: Of the neurons; ``square`` in the paper.

    Returns:
        One member in float64, without biases, ``2p`` inputs, ``p`` outputs: ``hidden.0`` are the neurons.

    Raises:
        ValueError: If p is below 2, there is no neuron, a frequency is a multiple of p, or there is not one pair of
            phases a neuron.

    """
    if p < 2:
        raise ValueError(f"p: expected a modulus of at least 2, got {p}")
    constant = [k for k in frequencies if k % p == 0]
    if constant or not len(frequencies):
        got = "none" if not len(frequencies) else str(constant[0])
        raise ValueError(f"frequencies: expected one a neuron, none a multiple of p = {p}, got {got}")
    if phases.shape != (len(frequencies), 2):
        raise ValueError(f"phases: expected {(len(frequencies), 2)}, two a neuron, got {tuple(phases.shape)}")
    if output_phases is not None and output_phases.shape != (len(frequencies),):
        raise ValueError(f"output_phases: expected {(len(frequencies),)}, got {tuple(output_phases.shape)}")
    phases = phases.double()
    last = phases.sum(dim=1) if output_phases is None else output_phases.double()
    # Reduced as whole numbers first: the cosine of a small angle is exact to the last bit.
    angles = (torch.outer(torch.tensor(list(frequencies)), torch.arange(p)) % p).double() * (2 * math.pi / p)
    network = MLPNetwork(2 * p, p, [len(frequencies)], [torch.Generator()], activation=activation, bias=False).double()
    into = (angles.repeat(1, 2) + phases.repeat_interleave(p, dim=1)).cos()
    out = (angles + last.unsqueeze(1)).cos().T
    network.load_state_dict({"hidden.0.weight": into.unsqueeze(0), "output.weight": out.unsqueeze(0)})
    return network


def addition_network(
    p: int, frequencies: Sequence[int] | None = None, grid: int = 3, activation: str = "square"
) -> MLPNetwork:
    """Return a network that adds modulo p exactly: phases on a grid, so that all that should cancel does.

    Every frequency has grid² neurons, with φ1 and φ2 each 0, 2π/grid, 4π/grid, ... The grid is ours: Gromov 2023
    (arXiv 2301.02679) draws phases, and what should cancel does so only in infinitely wide networks. A sum of
    cos(x + u φ1 + v φ2) over the grid is 0 unless grid divides both u and v. What should cancel has (u, v) = ±(1, 1),
    ±(1, −1), ±(3, 1), ±(1, 3), ±(2, 2), ±(2, 0) or ±(0, 2): a grid of 2 leaves the last three, one of 3 or more none.
    Nine neurons are not the fewest: six with φ1 = 2πi/6 and φ2 = 4 φ1 do as well.

    The logits are grid²/2 · Σ_k cos(ω_k(a + b − c)): see :func:`analytic_addition`.

    Args:
        p: The modulus, at least 2.
        frequencies: Which; all, 1 ... p // 2, if ``None``.
        grid: Phases in each direction, at least 1; from 3 on the network adds.
        activation: Of the neurons; ``square`` in the paper.

    Returns:
        See :func:`network_of_waves`; the width is grid² times the number of frequencies.

    Raises:
        ValueError: If ``grid`` is below 1, or as there.

    """
    if grid < 1:
        raise ValueError(f"grid: expected at least 1 phase in each direction, got {grid}")
    used = _all_frequencies(p) if frequencies is None else list(frequencies)
    circle = torch.arange(grid, dtype=torch.float64) * (2 * math.pi / grid)
    phases = torch.cartesian_prod(circle, circle).repeat(len(used), 1)
    return network_of_waves(p, [k for k in used for _ in range(grid**2)], phases, activation=activation)


def random_addition_network(p: int, width: int, generator: torch.Generator) -> MLPNetwork:
    """Return a network that adds modulo p the better the wider it is: random phases, Gromov 2023 (arXiv 2301.02679).

    φ1 and φ2 of every neuron are independent and uniform on the circle. That neurons take turns through the frequencies
    1 ... p // 2 is ours; see :func:`random_phases` for how well it adds.

    Args:
        p: The modulus, at least 2.
        width: Number of neurons, at least 1.
        generator: Of the phases.

    Returns:
        See :func:`network_of_waves`.

    Raises:
        ValueError: If p or ``width`` is too small.

    """
    return network_of_waves(p, _in_turn(p, width), _uniform_phases(width, generator))


def _all_frequencies(p: int) -> list[int]:
    return list(frequencies_of(p))


def _in_turn(p: int, width: int) -> list[int]:
    if p < 2:
        raise ValueError(f"p: expected a modulus of at least 2, got {p}")
    if width < 1:
        raise ValueError(f"width: expected at least 1 neuron, got {width}")
    return [1 + i % (p // 2) for i in range(width)]


def _uniform_phases(width: int, generator: torch.Generator) -> Tensor:
    return torch.rand(width, 2, generator=generator, dtype=torch.float64) * (2 * math.pi)


# ---- what they put out -----------------------------------------------------------------------------------------------


@torch.no_grad()
def logit_cube(network: MLPNetwork) -> Tensor:
    """Return the logits of all pairs of residues, ``(E, p, p, p)``, axes (member, a, b, c).

    Args:
        network: With one-hot a and then one-hot b as inputs.

    Raises:
        ValueError: If it has another number of inputs than twice that of its outputs.

    """
    p = network.n_outputs
    if network.n_inputs != 2 * p:
        raise ValueError(f"network: expected 2p inputs and p outputs, got {network.n_inputs} and {p}")
    one_hot = torch.eye(p).to(next(network.parameters()))
    rows = torch.cat([one_hot.repeat_interleave(p, dim=0), one_hot.repeat(p, 1)], dim=1)
    cube: Tensor = network(rows).unflatten(1, (p, p))
    return cube


def shared_accuracy(cube: Tensor) -> Tensor:
    """Return the accuracy over all pairs, ``(...)``; labels that tie for the largest logit share the row.

    Labels tie where they are as near as rounding brings those that are equal, 1e-9 of the largest logit of all. An
    argmax would let rounding choose.

    Args:
        cube: ``(..., p, p, p)``, float64.

    Raises:
        ValueError: If it is none.

    """
    p = cube.shape[-1]
    if cube.shape[-3:] != (p, p, p):
        raise ValueError(f"cube: expected logits (..., p, p, p), got {tuple(cube.shape)}")
    largest = cube.amax(dim=-1, keepdim=True)
    tied = cube >= largest - 1e-9 * cube.abs().amax(dim=(-3, -2, -1), keepdim=True)
    labels = (torch.arange(p).unsqueeze(1) + torch.arange(p)) % p
    right = tied.gather(-1, labels.unsqueeze(-1).expand(*cube.shape[:-1], 1)).squeeze(-1)
    return (right.double() / tied.sum(dim=-1)).mean(dim=(-2, -1))


def logit_gap(p: int, frequencies: Sequence[int], grid: int = 3) -> float:
    """Return by how much the right label of :func:`addition_network` leads: the same in every row.

    It is grid² times the smallest Σ_k sin²(πks/p) over s = 1 ... p − 1: 0 if all frequencies share a factor with p.

    Args:
        p: The modulus, at least 2.
        frequencies: Which, at least one.
        grid: Phases in each direction, at least 3.

    Raises:
        ValueError: If p is below 2, there is no frequency, or the grid is too coarse.

    """
    if p < 2 or not len(frequencies) or grid < 3:
        raise ValueError(
            f"p, frequencies, grid: expected p of at least 2, a frequency and a grid of at least 3, got {p}, "
            f"{list(frequencies)} and {grid}"
        )
    turns = np.outer(np.arange(1, p), np.asarray(frequencies)) % p
    return float(grid**2 * (np.sin(np.pi * turns / p) ** 2).sum(axis=1).min())


def _closed_form(p: int, frequencies: Sequence[int], grid: int) -> Array:
    """Return grid²/2 · Σ_k cos(ω_k(a + b − c)), ``(p, p, p)``."""
    a, b, c = np.ogrid[:p, :p, :p]
    by_coset = np.cos(2 * np.pi * (np.outer(np.arange(p), np.asarray(frequencies)) % p) / p).sum(axis=1)
    cube: Array = grid**2 / 2 * by_coset[(a + b - c) % p]
    return cube


def expected_share(p: int, width: int) -> float:
    """Return the trigonometric share of :func:`random_addition_network` that is expected, from 0 to 1.

    One over the square root of the mean of 1/share² = 1 + 8 Σ_k n_k / Σ_k n_k², where n_k neurons have frequency k:
    √(n / (n + 8)) if all have n. Exact for odd p: see :func:`random_phases`.

    Args:
        p: The modulus, at least 2.
        width: Number of neurons, at least 1.

    Raises:
        ValueError: If p or ``width`` is too small.

    """
    return 1 / math.sqrt(1 + _incoherent_ratio(_in_turn(p, width)))


def _incoherent_ratio(frequencies: Sequence[int]) -> float:
    """Return 8 Σ_k n_k / Σ_k n_k²: the power expected of what does not cancel, over that of the trigonometric part."""
    counts = np.bincount(np.asarray(frequencies))
    return float(8 * counts.sum() / (counts**2).sum())


def expected_accuracy(p: int, width: int) -> float:
    """Return about what accuracy :func:`random_addition_network` has, from 0 to 1.

    As if what does not cancel were p independent normal numbers in every row, of variance 1 a neuron, while the right
    logit leads the mean of the others by width/2 · p/(p − 1): ours, and only good once every frequency has neurons.

    Args:
        p: The modulus, odd.
        width: Number of neurons, at least 1.

    Raises:
        ValueError: If p is even or below 3, or there is no neuron.

    """
    if p < 3 or p % 2 == 0 or width < 1:
        raise ValueError(f"p, width: expected an odd modulus of at least 3 and at least 1 neuron, got {p} and {width}")
    x, step = np.linspace(-8, 8, 2001, retstep=True)
    lead = math.sqrt(width) / 2 * p / (p - 1)
    return float((norm.pdf(x) * norm.cdf(x + lead) ** (p - 1)).sum() * step)


# ---- the exact network -----------------------------------------------------------------------------------------------


def analytic_addition(seed: int = 0) -> list[Line]:
    """Squares of cosines add modulo p exactly, without training.

    Statement: Let every frequency k of a set K have m² neurons, (cos(ω_k a + φ1) + cos(ω_k b + φ2))² times cos(ω_k c +
    φ1 + φ2), ω_k = 2πk/p, with φ1 and φ2 on a grid of m × m phases. The logit of label c for the pair (a, b) is m²/2 ·
    Σ_K cos(2πk(a + b − c)/p). So its trigonometric share is 1, it is right on all p² pairs, and the right label leads
    by m² · min_s Σ_K sin²(πks/p), s = 1 ... p − 1, in every row; for odd p and all frequencies that is m²p/4.

    Hypotheses: p >= 2, odd or even, prime or not. No number above 1 divides p and all frequencies; where g does, g
    labels tie in every row. m >= 3: with m = 2 the logits are m² · Σ_K 2 cos(ω_k a) cos(ω_k b) cos(ω_k c), which are
    largest at c = ±a ± b, so that, with all frequencies and ties shared, the accuracy for odd p is (1 + 2(p − 1) + (p −
    1)(p − 3)/4)/p², near 1/4 for large p; with m = 1 it is 1/p. The weight of label c has the sum of both
    phases. The activation is the square: ReLU or GELU, with all frequencies and m = 3, is still right on all pairs for
    p up to 40, but other harmonics leave it a share of about 0.98 or 0.995 (1 for p = 3); with one frequency it may be
    wrong. No output bias, and no hidden ones but one that all neurons share, which cancels. That K has few frequencies,
    or k instead of p − k, makes no difference to the square.

    Source: Gromov 2023 (arXiv 2301.02679), who has random phases; the grid, the gap and the exact conditions are ours.

    Args:
        seed: Of the random draws.

    Returns:
        The lines of its table.

    """
    generator = np.random.default_rng(seed)
    moduli = range(2, 41)
    full = [logit_cube(addition_network(p))[0] for p in moduli]
    errors = [_error(cube, _closed_form(p, _all_frequencies(p), 3)) for p, cube in zip(moduli, full, strict=True)]
    few = [_few_frequencies(generator, factor=1) for _ in range(40)]
    grids = generator.integers(3, 6, len(few)).tolist()
    cubes = [logit_cube(addition_network(p, k, m))[0] for (p, k), m in zip(few, grids, strict=True)]
    expected = [_closed_form(p, k, m) for (p, k), m in zip(few, grids, strict=True)]
    gaps = [_gap(cube) / logit_gap(p, k, m) for cube, (p, k), m in zip(cubes, few, grids, strict=True)]
    sharing = [(*_few_frequencies(generator, factor), factor) for factor in generator.integers(2, 6, 20).tolist()]
    ties = [_accuracy(logit_cube(addition_network(p, k))[0]) * factor for p, k, factor in sharing]
    odd = range(3, 40, 2)
    two = [_accuracy(logit_cube(addition_network(p, grid=2))[0]) for p in odd]
    biased = [
        _error(_with_hidden_bias(p, torch.full((1,), bias)), _closed_form(p, _all_frequencies(p), 3))
        for p, bias in ((5, 0.3), (12, -2.0), (23, 1.0))
    ]
    lines = [
        Line.always("logits are 9/2 Σ cos(ω_k(a + b − c)), p = 2 ... 40, all frequencies", errors, ROUNDING),
        Line.same(
            "accuracy on all p² pairs, all frequencies", np.ones(len(full)), [_accuracy(cube) for cube in full], 0
        ),
        Line.same("their trigonometric share", np.ones(len(full)), [_share(cube) for cube in full], ROUNDING),
        Line.always(
            "logits are m²/2 Σ cos(...), 1-5 random frequencies, m = 3 ... 5",
            [_error(cube, closed) for cube, closed in zip(cubes, expected, strict=True)],
            ROUNDING,
        ),
        Line.same(
            "accuracy on all p² pairs, 1-5 frequencies", np.ones(len(cubes)), [_accuracy(cube) for cube in cubes], 0
        ),
        # Differences of logits may be a thousand times smaller than these are.
        Line.same("their smallest lead of the right label, over m² min Σ sin²", np.ones(len(gaps)), gaps, 1e-9),
        Line.same("accuracy times g, where g divides p and all frequencies", np.ones(len(ties)), ties, ROUNDING),
        Line.same("accuracy of a 2 × 2 grid, odd p = 3 ... 39", [_two_by_two(p) for p in odd], two, ROUNDING),
        Line.equal("accuracy of a 2 × 2 grid, p = 37", _two_by_two(37), two[odd.index(37)], ROUNDING),
        Line.always("a hidden bias that all neurons share changes nothing", biased, ROUNDING),
    ]
    return lines + _needed_for_addition(generator, [(p, k) for p, k, _ in sharing])


def _needed_for_addition(generator: np.random.Generator, sharing: Sequence[tuple[int, list[int]]]) -> list[Line]:
    """Return the lines of hypotheses that are dropped: by how much the network is wrong, or not trigonometric."""
    moduli = (5, 12, 23)
    widths = [9 * (p // 2) for p in moduli]
    drawn = [torch.from_numpy(generator.uniform(0, 2 * np.pi, width)) for width in widths]
    other_phase = [_with_output_phases(p, phases) for p, phases in zip(moduli, drawn, strict=True)]
    with_bias = [_with_hidden_bias(p, phases) for p, phases in zip(moduli, drawn, strict=True)]
    added = [torch.from_numpy(generator.standard_normal(p)) for p in moduli]
    output_bias = [logit_cube(addition_network(p))[0] + bias for p, bias in zip(moduli, added, strict=True)]
    relu = [logit_cube(addition_network(p, activation="relu"))[0] for p in moduli]
    factor = [logit_cube(addition_network(p, k))[0] for p, k in sharing]
    one, two = ([logit_cube(addition_network(p, grid=m))[0] for p in moduli] for m in (1, 2))
    single = [logit_cube(addition_network(p, [k], activation="relu"))[0] for p, k in ((23, 3), (37, 1))]
    return [
        Line.needed("m >= 3, but m = 1 (accuracy)", [1 - _accuracy(cube) for cube in one]),
        Line.needed("m >= 3, but m = 2 (accuracy)", [1 - _accuracy(cube) for cube in two]),
        Line.needed("no common factor (accuracy)", [1 - _accuracy(cube) for cube in factor]),
        Line.needed("φ1 + φ2 in the weight of the label (accuracy)", [1 - _accuracy(cube) for cube in other_phase]),
        Line.needed("the square, but ReLU (share)", [1 - _share(cube) for cube in relu], ROUNDING),
        Line.needed("the square, but ReLU, one frequency (accuracy)", [1 - _accuracy(cube) for cube in single]),
        Line.needed("no hidden biases that differ (share)", [1 - _share(cube) for cube in with_bias], ROUNDING),
        Line.needed("no output bias (share)", [1 - _share(cube) for cube in output_bias], ROUNDING),
    ]


def _few_frequencies(generator: np.random.Generator, factor: int) -> tuple[int, list[int]]:
    """Return a modulus up to 40 and 1 to 5 frequencies; ``factor`` is the greatest number that divides them all."""
    while True:
        p = factor * int(generator.integers(2, 40 // factor + 1))
        count = int(generator.integers(1, 6))
        chosen = factor * generator.integers(1, p // factor, count)
        if math.gcd(p, *chosen.tolist()) == factor:
            return p, chosen.tolist()


def _with_output_phases(p: int, output_phases: Tensor) -> Tensor:
    """Return the cube of a 3 × 3 grid whose weights of labels have other phases."""
    circle = torch.arange(3, dtype=torch.float64) * (2 * math.pi / 3)
    frequencies = np.repeat(_all_frequencies(p), 9).tolist()
    phases = torch.cartesian_prod(circle, circle).repeat(p // 2, 1)
    return logit_cube(network_of_waves(p, frequencies, phases, output_phases))[0]


def _with_hidden_bias(p: int, bias: Tensor) -> Tensor:
    """Return the cube of a 3 × 3 grid whose neurons have a bias."""
    plain = addition_network(p)
    width = plain.output.in_features
    network = MLPNetwork(2 * p, p, [width], [torch.Generator()], activation="square").double()
    network.load_state_dict({**plain.state_dict(), "hidden.0.bias": bias.double().expand(1, width)})
    return logit_cube(network)[0]


def _torch(generator: np.random.Generator) -> torch.Generator:
    return torch.Generator().manual_seed(int(generator.integers(2**31)))


def _error(cube: Tensor, expected: Array) -> float:
    """Return the largest error of logits relative to the largest of them."""
    return float(np.abs(cube.numpy() - expected).max() / np.abs(expected).max())


def _gap(cube: Tensor) -> float:
    """Return the smallest lead of the right label over all rows."""
    p = cube.shape[-1]
    labels = (torch.arange(p).unsqueeze(1) + torch.arange(p)) % p
    right = cube.gather(-1, labels.unsqueeze(-1))
    others = cube.scatter(-1, labels.unsqueeze(-1), -torch.inf).amax(dim=-1, keepdim=True)
    return float((right - others).min())


def _accuracy(cube: Tensor) -> float:
    return float(shared_accuracy(cube))


def _share(cube: Tensor) -> float:
    return float(trigonometric_share(totals(centre(cube))))


def _two_by_two(p: int) -> float:
    """Return the accuracy of a 2 × 2 grid for odd p: a right label of ±a ± b, which are 1, 2 or 4 labels."""
    # a = b = 0; one of them 0: ±b; a = −b: 0 twice, so right; a = b: 0 twice, so wrong; elsewhere four that tie.
    return (1 + 2 * (p - 1) / 2 + (p - 1) + (p - 1) * (p - 3) / 4) / p**2


# ---- random phases ---------------------------------------------------------------------------------------------------


def random_phases(seed: int = 0) -> list[Line]:
    """A network with random phases adds the better the wider it is.

    Statement: Let n_k neurons have frequency k, with independent, uniform phases. The trigonometric part of the logits
    is Σ_k n_k/2 · cos(2πk(a + b − c)/p) in every draw, and the mean of 1/share² over draws is
    1 + 8 Σ_k n_k / Σ_k n_k²: with n neurons of every frequency the share is about √(n/(n + 8)). For the parts of
    different neurons that are trigonometric add up, to a power of n_k²/8, while the rest, of power 1 a neuron, does not
    interfere on average. If neurons take turns through all frequencies, 512 of them are right on all pairs, p = 11, 23
    and 37: the right label leads the mean of the others by √(width/8) = 8 times the deviation of a difference of what
    does not cancel, or more. It has to lead all p − 1 of them: a larger p may need more neurons.

    Hypotheses: p odd: for even p the neurons of frequency p/2 do not fit, as cos(πa + φ) is ± cos φ. Phases uniform on
    the whole circle, and φ1 independent of φ2, for the mean of 1/share². The weight of the label has φ1 + φ2, and the
    activation is the square. Of how frequencies are shared out the law of the share asks nothing; that 512 neurons are
    right does: of one frequency they are not, as neighbouring labels are too much alike. The law holds at any width.

    Source: Gromov 2023 (arXiv 2301.02679) for the network; that its share follows this law is ours, as is that neurons
    take turns through the frequencies.

    Args:
        seed: Of the random draws.

    Returns:
        The lines of its table. Means are over 32 draws and may be five standard errors from what is expected.

    """
    generator = _torch(np.random.default_rng(seed))
    widths = (32, 128, 512)
    drawn = {(p, width): _draws(p, width, DRAWS, generator) for p in MODULI for width in widths}
    main = [2 * draw.trigonometric / width for (_, width), draws in drawn.items() for draw in draws]
    said = "trigonometric logit of the right label over width/2, in every draw"
    lines = [Line.same(said, np.ones(len(main)), main, ROUNDING)]
    for (p, width), draws in drawn.items():
        share = expected_share(p, width)
        what = f"mean of 1/share², p = {p}, width {width} (a share of {share:.3f})"
        found = float(_inverse_squares(draws).mean())
        lines.append(Line.equal(what, share**-2, found, STANDARD_ERRORS * _standard_error(_in_turn(p, width))))
    lines.append(_law_of_drawn_frequencies(generator))
    means = {key: np.mean([draw.share for draw in draws]) for key, draws in drawn.items()}
    falls = [float(means[p, narrow] - means[p, wide]) for p in MODULI for narrow, wide in pairwise(widths)]
    lines.append(Line.always("mean share rises with the width, 32 to 128 to 512", falls))
    worst = [min(draw.accuracy for draw in drawn[p, widths[-1]]) for p in MODULI]
    lines.append(Line.same("accuracy at width 512, in every draw, p = 11, 23, 37", np.ones(len(worst)), worst, 0))
    return lines + _needed_for_law(generator)


def _law_of_drawn_frequencies(generator: torch.Generator) -> Line:
    """Return the line of networks whose neurons have frequencies as they come."""
    p, width = 23, 64
    ratios, errors = [], []
    for _ in range(DRAWS):
        frequencies = torch.randint(1, p // 2 + 1, (width,), generator=generator).tolist()
        network = network_of_waves(p, frequencies, _uniform_phases(width, generator))
        ratios.append((_measure(network).share ** -2 - 1) / _incoherent_ratio(frequencies))
        errors.append(_standard_error(frequencies) / _incoherent_ratio(frequencies))
    what = f"mean of (1/share² − 1)/(8 Σ n_k / Σ n_k²), frequencies drawn, p = {p}, width {width}"
    return Line.equal(what, 1, float(np.mean(ratios)), STANDARD_ERRORS * float(np.sqrt(np.mean(np.square(errors)))))


class _Draw(NamedTuple):
    """What is measured of one network.

    Attributes:
        share: Trigonometric share.
        trigonometric: Trigonometric logit of the right label.
        accuracy: Over all pairs.

    """

    share: float
    trigonometric: float
    accuracy: float


def _measure(network: MLPNetwork) -> _Draw:
    cube = logit_cube(network)[0]
    sums = totals(centre(cube))
    return _Draw(
        share=float(trigonometric_share(sums)),
        trigonometric=float(trigonometric_logits(coset_means(sums))[0]),
        accuracy=float(shared_accuracy(cube)),
    )


def _draws(p: int, width: int, count: int, generator: torch.Generator) -> list[_Draw]:
    return [_measure(random_addition_network(p, width, generator)) for _ in range(count)]


def _inverse_squares(draws: Sequence[_Draw]) -> Array:
    return np.array([draw.share for draw in draws]) ** -2


def _standard_error(frequencies: Sequence[int]) -> float:
    """Return the standard error of a mean of 1/share² over `DRAWS` draws of phases, which is known."""
    counts = np.bincount(np.asarray(frequencies))
    variance = math.fsum(power**2 for power in INCOHERENT_POWERS) * float((counts * (counts - 1)).sum())
    return 8 * math.sqrt(variance / DRAWS) / float((counts**2).sum())


def _needed_for_law(generator: torch.Generator) -> list[Line]:
    """Return the lines of hypotheses that are dropped: by how much the trigonometric part, or the mean, is another."""
    p, width = 11, 64
    odd, even = _in_turn(p, width), _in_turn(8, width)

    def phases() -> Tensor:
        return _uniform_phases(width, generator)

    def law(networks: Sequence[MLPNetwork]) -> float:
        """By how many standard errors beyond those allowed the mean of 1/share² is another."""
        found = float(_inverse_squares([_measure(network) for network in networks]).mean())
        return abs(found - expected_share(p, width) ** -2) / _standard_error(odd) - STANDARD_ERRORS

    def part(networks: Sequence[MLPNetwork]) -> list[float]:
        """How far the trigonometric logit of the right label is from half the width, relative to it."""
        return [abs(2 * _measure(network).trigonometric / width - 1) for network in networks]

    half = [network_of_waves(p, odd, phases() / 2) for _ in range(DRAWS)]
    same = [network_of_waves(p, odd, phases()[:, :1].expand(-1, 2)) for _ in range(DRAWS)]
    other = [network_of_waves(p, odd, phases(), phases()[:, 0]) for _ in range(DRAWS)]
    relu = [network_of_waves(p, odd, phases(), activation="relu") for _ in range(DRAWS)]
    eight = [network_of_waves(8, even, phases()) for _ in range(DRAWS)]
    single = [network_of_waves(37, [1] * 512, _uniform_phases(512, generator)) for _ in range(4)]
    return [
        Line.needed("phases on the whole circle (mean of 1/share²)", law(half)),
        Line.needed("φ1 independent of φ2 (mean of 1/share²)", law(same)),
        Line.needed("φ1 + φ2 in the weight of the label (trigonometric part)", part(other), ROUNDING),
        Line.needed("the square, but ReLU (trigonometric part)", part(relu), ROUNDING),
        Line.needed("p odd, but p = 8 (trigonometric part)", part(eight), ROUNDING),
        Line.needed("turns, but one frequency, p = 37 (accuracy)", [1 - _measure(one).accuracy for one in single]),
    ]


# ---- the figure ------------------------------------------------------------------------------------------------------


def draw_random_phases() -> Figure:
    """Draws the trigonometric share and the accuracy of networks with random phases over their width.

    Gromov 2023 (arXiv 2301.02679) has the network, not the figure.

    Returns:
        The figure, with its caption: 20 draws for each width, the law of `expected_share` and `expected_accuracy`, and
        the network with a grid of phases.

    """
    generator = torch.Generator().manual_seed(0)
    figure = new_figure(1)
    axes = figure.subplots(1, 2).tolist()
    found = {p: [_draws(p, width, 20, generator) for width in WIDTHS] for p in MODULI}
    widths = np.array(WIDTHS, dtype=np.float64)
    fine = np.unique(np.geomspace(WIDTHS[0], WIDTHS[-1], 60).round()).astype(int).tolist()
    for p, colour in zip(MODULI, COLOURS, strict=True):
        shares = np.array([[draw.share for draw in draws] for draws in found[p]])
        accuracies = np.array([[draw.accuracy for draw in draws] for draws in found[p]])
        draw_mean(axes[0], widths, shares, label=f"p = {p}", colour=colour)
        draw_mean(axes[1], widths, accuracies, label=f"p = {p}", colour=colour)
        for panel, law in zip(axes, (expected_share, expected_accuracy), strict=True):
            panel.plot(fine, [law(p, width) for width in fine], color="black", linewidth=1.0, linestyle="--", zorder=5)
        exact = _measure(addition_network(p))
        for panel, value in zip(axes, (exact.share, exact.accuracy), strict=True):
            panel.plot([9 * (p // 2)], [value], color=colour, marker="*", markersize=11, zorder=6, clip_on=False)
    _set_axes(axes[0], "Trigonometric share", "share of the norm of the logits")
    _set_axes(axes[1], "Accuracy", "accuracy over all p² pairs")
    handles = [
        Line2D([], [], color=colour, linewidth=1.8, label=f"p = {p}") for p, colour in zip(MODULI, COLOURS, strict=True)
    ]
    handles.append(Line2D([], [], color="black", linewidth=1.0, linestyle="--", label="expected"))
    handles.append(Line2D([], [], color="#444444", linestyle="none", marker="*", markersize=9, label="3 × 3 grid"))
    add_key(figure, handles, 5)
    add_caption(figure, f"{HOW_TO_READ} {_say_shares(found)}")
    return figure


def _set_axes(axes: Axes, title: str, label: str) -> None:
    tidy(axes, title)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(WIDTHS[::2]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.tick_params(labelsize=TICK)
    axes.set_xlabel("width: number of neurons (log scale)", fontsize=LABEL)
    axes.set_ylabel(label, fontsize=LABEL)
    axes.set_ylim(top=1.02)


def _say_shares(found: Mapping[int, Sequence[Sequence[_Draw]]]) -> str:
    """Return what the draws show, in words: ``found[p]`` has the draws of each of the widths."""
    moduli = listing([str(p) for p in found])

    def mean(p: int, width: int) -> float:
        return float(np.mean([draw.share for draw in found[p][WIDTHS.index(width)]]))

    parts = [f"{listing([decimals(mean(p, width)) for p in found])} at width {width}" for width in (128, 512, 2048)]
    apart = max(abs(mean(p, width) - expected_share(p, width)) for p in found for width in WIDTHS)
    wrong = [w for i, w in enumerate(WIDTHS) if min(draw.accuracy for p in found for draw in found[p][i]) < 1]
    right = [width for width in WIDTHS if width > max(wrong, default=0)]
    said = f"The mean share for p = {moduli} is {', '.join(parts)}, never further than {apart:.3f} from expected"
    return f"{said}; every draw of width {right[0]} or more is right on all pairs." if right else f"{said}."
