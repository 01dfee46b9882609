"""Logits over all pairs of a cyclic group, split into what a sum of cosines gives and the rest.

A *cube of logits* is ``(..., n, n, n)`` with axes (a, b, c) in group coordinates: the rule is c = a + b mod n, and c
is the label. :func:`group_of` brings other operations to it. A *row* is a pair (a, b). ω_k = 2πk/n; frequencies k and
n − k are one frequency, so k = 1 ... n//2, and the constant is none.

Logits have to be centred over labels (:func:`centre`), or a constant that a row adds to all its labels, which no
softmax sees, counts as a part that is not trigonometric. Varma et al. 2023 (arXiv 2309.02390, appendix B) do not
centre.

Everything is computed in the type of float that is given.
"""

import difflib
import math
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional as nnf

__all__ = [
    "GridSums",
    "GroupIndex",
    "LookupTable",
    "NeuronFrequencies",
    "Operation",
    "Residual",
    "Spectrum",
    "Totals",
    "centre",
    "coset_means",
    "excluded_loss",
    "frequencies_of",
    "frequency_power",
    "gini",
    "grid_sums",
    "group_of",
    "kept_logits",
    "key_frequencies",
    "lookup_table",
    "mean_over",
    "neuron_frequencies",
    "residual",
    "restricted_logits",
    "restricted_loss",
    "spectrum",
    "totals",
    "trigonometric_logits",
    "trigonometric_share",
]

Operation = Literal["add", "subtract", "multiply", "divide"]
OPERATIONS: tuple[str, ...] = get_args(Operation)


# ---- groups ----------------------------------------------------------------------------------------------------------


class GroupIndex(NamedTuple):
    """Which element of 0 ... p − 1 stands at each position 0 ... n − 1 of a group, ``(n,)`` each, int64.

    At positions i and j, ``left[i] ∘ right[j] = result[(i + j) mod n]``.
    """

    left: Tensor
    right: Tensor
    result: Tensor


def group_of(operation: str, p: int) -> GroupIndex:
    """Return the coordinates in which an operation modulo p is addition modulo n.

    ======== === ============ ============= ===============================
    add      n=p left i       right j       p any
    subtract n=p left i       right −j      p any
    multiply p−1 left g^i     right g^j     p prime, g its smallest
                                            primitive root; 0 has no place
    divide   p−1 left g^i     right g^(−j)  likewise
    ======== === ============ ============= ===============================

    Args:
        operation: ``add``, ``subtract``, ``multiply`` or ``divide``.
        p: Modulus.

    Raises:
        ValueError: If p is below 2, or not prime where it has to be, or there is no such operation.

    """
    if operation not in OPERATIONS:
        near = difflib.get_close_matches(operation, OPERATIONS, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; expected one of {', '.join(OPERATIONS)}"
        raise ValueError(f"operation: there is no '{operation}' here{hint}")
    if p < 2:
        raise ValueError(f"modulus: expected at least 2, got {p}")
    if operation in ("add", "subtract"):
        elements = torch.arange(p)
        return GroupIndex(elements, elements if operation == "add" else -elements % p, elements)
    if any(p % divisor == 0 for divisor in range(2, math.isqrt(p) + 1)):
        raise ValueError(f"{operation}: the non-zero residues of p = {p} are no field's; p must be prime")
    powers = torch.tensor(_powers_of_primitive_root(p))
    inverse = powers[-torch.arange(p - 1) % (p - 1)]
    return GroupIndex(powers, powers if operation == "multiply" else inverse, powers)


def _powers_of_primitive_root(p: int) -> list[int]:
    """Return g^0, g^1, ... g^(p − 2) modulo a prime p, for the smallest g for which they differ."""
    for root in range(1, p):
        powers = [1]
        while (following := powers[-1] * root % p) != 1:
            powers.append(following)
        if len(powers) == p - 1:
            return powers
    raise AssertionError("the non-zero residues modulo a prime are a cyclic group")


def frequencies_of(n: int) -> range:
    """Return the frequencies of a group of n elements: 1 ... n//2."""
    return range(1, n // 2 + 1)


def _waves(n: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return cos(ω_k s) and sin(ω_k s), ``(n//2, n)`` each."""
    # Reduced as whole numbers first: the cosine of a small angle is exact to the last bit.
    turns = torch.outer(torch.arange(1, n // 2 + 1), torch.arange(n)) % n
    angle = turns.double() * (2 * math.pi / n)
    return angle.cos().to(like), angle.sin().to(like)


def _squared_norms(n: int, like: Tensor) -> Tensor:
    """Return Σ_s cos²(ω_k s) for every k, ``(n//2,)``: n/2, but n for k = n/2, which is alternating signs."""
    norms = torch.full((n // 2,), n / 2)
    if n % 2 == 0:
        norms[-1] = n
    return norms.to(like)


def _positions(n: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return 0 ... n − 1 as a column and as a row."""
    positions = torch.arange(n, device=like.device)
    return positions.unsqueeze(1), positions.unsqueeze(0)


# ---- the cube --------------------------------------------------------------------------------------------------------


class Totals(NamedTuple):
    """Sums over rows, from which all measures of the trigonometric part follow; those of separate rows add up.

    Attributes:
        sums: Sum of the logits of all rows with a + b ≡ t, ``(..., n, n)``, axes (t, c).
        squares: Sum of the squares of all logits of all rows, ``(...)``.
        n_rows: Number of rows, ``(...)``.

    """

    sums: Tensor
    squares: Tensor
    n_rows: Tensor


def centre(logits: Tensor) -> Tensor:
    """Return logits less their mean over labels, the last axis: what softmax does not see is gone."""
    return logits - logits.mean(dim=-1, keepdim=True)


def totals(logits: Tensor, rows: Tensor | None = None) -> Totals:
    """Return the sums over rows of a cube of logits.

    Args:
        logits: ``(..., n, n, n)``, centred over labels.
        rows: Which rows count, ``(..., n, n)``, bool; all if ``None``.

    Returns:
        In the type of the logits. NaN or infinite logits, in whichever row, leave nothing else.

    Raises:
        ValueError: If the logits are no cube.

    """
    n = _check_cube(logits)
    squares = torch.linalg.vector_norm(logits, dim=-1).square()
    if rows is None:
        count = torch.full(logits.shape[:-3], n * n, dtype=logits.dtype, device=logits.device)
        return Totals(_by_sum(logits), squares.sum(dim=(-2, -1)), count)
    weights = rows.to(logits.dtype)
    return Totals(
        _by_sum(logits, rows=rows),
        (squares * weights).sum(dim=(-2, -1)),
        weights.sum(dim=(-2, -1)).expand(logits.shape[:-3]),
    )


def _check_cube(logits: Tensor) -> int:
    if logits.ndim < 3 or len(set(logits.shape[-3:])) != 1:
        raise ValueError(f"logits: expected a cube (..., n, n, n), got {tuple(logits.shape)}")
    return logits.shape[-1]


def _by_sum(values: Tensor, sign: int = 1, first: int = 0, rows: Tensor | None = None) -> Tensor:
    """Return the sums of ``values (..., A, n, d)`` over the rows with b + sign·a ≡ t, ``(..., n, d)``.

    a = ``first``, ``first`` + 1, ... Those in ``rows (..., A, n)`` count; all if ``None``.
    """
    *lead, count, n, d = values.shape
    t, a = _positions(n, values)
    a = a[:, :count]
    index = a * n + (t - sign * (first + a)) % n
    tables = torch.arange(math.prod(lead), device=values.device) * (count * n)
    index = (tables[:, None, None] + index).flatten(0, 1)
    # Sums of rows of a table, in one pass without copies: an embedding_bag.
    weights = None if rows is None else rows.expand(values.shape[:-1]).flatten()[index].to(values.dtype)
    sums = nnf.embedding_bag(index, values.reshape(-1, d), mode="sum", per_sample_weights=weights)
    return sums.view(*lead, n, d)


def _of_rows(table: Tensor) -> Tensor:
    """Return the cube with the entry (a + b, c) of a table ``(..., n, n)`` in row (a, b): a view."""
    n = table.shape[-1]
    twice = torch.cat([table, table[..., : n - 1, :]], dim=-2)
    return twice.unfold(-2, n, 1).transpose(-1, -2)


def _circulant(values: Tensor) -> Tensor:
    """Return the table ``(..., n, n)``, axes (t, c), with entries ``values[t − c]``."""
    t, c = _positions(values.shape[-1], values)
    return values[..., (t - c) % values.shape[-1]]


def mean_over(values: Tensor, rows: Tensor) -> Tensor:
    """Return the mean over some rows, ``(...)``; NaN where there is none.

    Args:
        values: ``(..., n, n)``.
        rows: ``(..., n, n)``, bool.

    """
    return torch.where(rows, values, 0).sum(dim=(-2, -1)) / rows.sum(dim=(-2, -1))


# ---- the trigonometric part ------------------------------------------------------------------------------------------


def coset_means(sums: Totals) -> Tensor:
    """Return the mean m(s) of the logits of all triples with a + b − c ≡ s, ``(..., n)``; NaN where there are no rows.

    Every row has one label for each s, so the means over any set of rows are over equally many logits, and those over
    held-out rows are free of what a lookup table of the training rows adds.

    Args:
        sums: Of centred logits over all rows, or over those of a mask.

    """
    t, s = _positions(sums.sums.shape[-1], sums.sums)
    return sums.sums[..., t, (t - s) % sums.sums.shape[-1]].sum(dim=-2) / sums.n_rows.unsqueeze(-1)


def trigonometric_logits(means: Tensor) -> Tensor:
    """Return the trigonometric logit of every coset, o_T(s) = (m(s) + m(−s))/2 − mean(m), ``(..., n)``.

    It is the projection of the logits, over the rows that the means are of, on the span of cos(ω_k(a + b − c)), k = 1
    ... n//2: Varma et al. 2023 (arXiv 2309.02390, appendix B), who project all n³ logits, not centred, on each. At the
    right label, s = 0: one number for all rows.

    Args:
        means: From :func:`coset_means`, of centred logits.

    """
    return (means + means.flip(-1).roll(1, -1)) / 2 - means.mean(dim=-1, keepdim=True)


def trigonometric_share(sums: Totals, squared: bool = False) -> Tensor:
    """Return ‖o_T‖ / ‖o‖ over the rows that the sums are of, ``(...)``, from 0 to 1; NaN without rows, or if o is 0.

    Varma et al. 2023 (arXiv 2309.02390) ask for more than 0.95; they do not centre. cos(ω_k(a + b − c)) stay orthogonal
    on any set of rows, so the share over held-out rows is that of a projection, too. A lookup table of a share α of all
    rows has √α: see :func:`lookup_table`.

    Args:
        sums: Of centred logits over all rows, or over those of a mask.
        squared: Whether to return the share of the squared norm.

    """
    trigonometric = trigonometric_logits(coset_means(sums)).square().sum(dim=-1) * sums.n_rows
    share = (trigonometric / sums.squares).clamp(max=1)  # rounding may lead beyond
    return share if squared else share.sqrt()


def frequency_power(sums: Totals) -> Tensor:
    """Return each frequency's share of the squared norm of the logits, ``(..., n//2)``; NaN without rows, or if o is 0.

    The part of frequency k is the projection on cos(ω_k(a + b − c)), whose squared norm over all rows is n³/2, and n³
    for k = n/2. The shares add up to the squared :func:`trigonometric_share`.

    Args:
        sums: Of centred logits over all rows, or over those of a mask.

    """
    means = coset_means(sums)
    n = means.shape[-1]
    waves, _ = _waves(n, means)
    return (means @ waves.T).square() / _squared_norms(n, means) * (sums.n_rows / sums.squares).unsqueeze(-1)


def key_frequencies(power: Tensor, least: float = 0.005, times_median: float = 10.0) -> Tensor:
    """Return which frequencies stand out, ``(..., n//2)``, bool; none where a share is NaN.

    Those with more than ``least`` of the power *and* more than ``times_median`` times the median over frequencies (the
    smaller of the two in the middle): of a lookup table, whose frequencies all have the same power, none. A single
    frequency (n = 2, 3) is its own median, so never key. Chughtai et al. 2023 (arXiv 2302.03025) ask for the first
    condition alone; Nanda et al. 2023 (arXiv 2301.05217) look at the neurons.

    Args:
        power: From :func:`frequency_power`.
        least: Smallest share.
        times_median: Smallest multiple of the median.

    """
    if not power.shape[-1]:
        return torch.zeros_like(power, dtype=torch.bool)
    median = power.median(dim=-1, keepdim=True).values
    return (power > least) & (power > times_median * median)


# ---- the rest --------------------------------------------------------------------------------------------------------


class Residual(NamedTuple):
    """What the trigonometric part leaves of the logits, o_M = o − o_T, of every row, ``(..., n, n)`` each.

    Attributes:
        right: At the row's label; NaN where that has no place.
        wrong: The largest at any other label.

    """

    right: Tensor
    wrong: Tensor


def residual(logits: Tensor, trigonometric: Tensor, labels: Tensor) -> Residual:
    """Return the residual logits of every row, at its label and the largest of the others.

    Args:
        logits: ``(..., n, n, n)``, centred over labels.
        trigonometric: From :func:`trigonometric_logits`, ``(..., n)``.
        labels: ``(..., n, n)``, int64, 0 ... n − 1; −1 for one that has no place in the group.

    Raises:
        ValueError: If the logits are no cube.

    """
    _check_cube(logits)
    rest = logits - _of_rows(_circulant(trigonometric.to(logits)))
    at = labels.clamp(min=0).unsqueeze(-1)
    has_place = labels >= 0
    right = rest.gather(-1, at).squeeze(-1)
    removed = torch.where(has_place, -torch.inf, right).unsqueeze(-1)
    # NaN is the largest of all, also at the label: a network that has diverged has no residual.
    removed = torch.where(right.isnan().unsqueeze(-1), right.unsqueeze(-1), removed)
    wrong = rest.scatter_(-1, at, removed).amax(dim=-1)
    return Residual(torch.where(has_place, right, torch.nan), wrong)


# ---- restricted and excluded loss ------------------------------------------------------------------------------------


def kept_logits(sums: Totals, key: Tensor) -> Tensor:
    """Return the part of the logits along cos(ω_k(a + b)) and sin(ω_k(a + b)) for the key frequencies k.

    Each label's logits, as a function on all rows, are projected on these directions: Nanda et al. 2023 (arXiv
    2301.05217) and their code. The part depends on t = a + b alone.

    Args:
        sums: Of the logits over *all* rows.
        key: ``(..., n//2)``, bool.

    Returns:
        ``(..., n, n)``, axes (t, c).

    """
    n = sums.sums.shape[-1]
    cosines, sines = _waves(n, sums.sums)
    weights = key.to(sums.sums.dtype) / (_squared_norms(n, sums.sums) * n)
    parts = [wave.T @ (weights.unsqueeze(-1) * (wave @ sums.sums)) for wave in (cosines, sines)]
    return parts[0] + parts[1]


def restricted_logits(sums: Totals, key: Tensor) -> Tensor:
    """Return :func:`kept_logits` and each label's mean over all rows, ``(..., n, n)``, axes (t, c).

    The mean is what Nanda et al. 2023 (arXiv 2301.05217) call the bias correction.

    Args:
        sums: Of the logits over *all* rows.
        key: ``(..., n//2)``, bool.

    """
    means = sums.sums.sum(dim=-2, keepdim=True) / sums.n_rows[..., None, None]
    return kept_logits(sums, key) + means


def restricted_loss(sums: Totals, key: Tensor) -> Tensor:
    """Return the mean cross-entropy of :func:`restricted_logits` over all rows, in nats, ``(...)``.

    Labels are those of the rule. Low when the key frequencies are all that it takes. Softmax does not see whether
    logits were centred.

    Args:
        sums: Of the logits over *all* rows.
        key: ``(..., n//2)``, bool.

    """
    right = nnf.log_softmax(restricted_logits(sums, key), dim=-1).diagonal(dim1=-2, dim2=-1)
    return -right.mean(dim=-1)


def excluded_loss(logits: Tensor, labels: Tensor, rows: Tensor, kept: Tensor) -> Tensor:
    """Return the mean cross-entropy, over some rows, of the logits without what the key frequencies give.

    Nanda et al. 2023 (arXiv 2301.05217): over the training rows, without bias correction. High when the network uses
    the key frequencies. Softmax does not see whether logits were centred.

    Args:
        logits: ``(..., n, n, n)``.
        labels: ``(..., n, n)``, int64, 0 ... n − 1 in the rows that count.
        rows: Which rows count, ``(..., n, n)``, bool.
        kept: From :func:`kept_logits`, ``(..., n, n)``; its type of float is that of the loss.

    Returns:
        ``(...)``, nats; NaN where there are no rows.

    Raises:
        ValueError: If the logits are no cube.

    """
    n = _check_cube(logits)
    rows = rows.expand(logits.shape[:-1])
    place = rows.reshape(-1).nonzero().squeeze(-1)
    row = place % (n * n)
    without = logits.reshape(-1, n)[place].to(kept.dtype)
    without -= kept.reshape(-1, n)[place // (n * n) * n + (row // n + row % n) % n]
    losses = torch.zeros(rows.numel(), dtype=kept.dtype, device=logits.device)
    losses[place] = nnf.cross_entropy(without, labels.expand(rows.shape).reshape(-1)[place], reduction="none")
    return mean_over(losses.view_as(rows), rows)


# ---- weights and neurons ---------------------------------------------------------------------------------------------


def gini(values: Tensor) -> Tensor:
    """Return the Gini coefficient along the last axis, ``(...)``; NaN if all values are 0.

    G = Σ_i (2i − n − 1) x_i / (n Σ x), x ascending and at least 0: 0 if all are the same, 1 − 1/n if all but one are 0.
    """
    n = values.shape[-1]
    rank = torch.arange(1, n + 1, device=values.device, dtype=values.dtype)
    return (values.sort(dim=-1).values * (2 * rank - n - 1)).sum(dim=-1) / (n * values.sum(dim=-1))


class Spectrum(NamedTuple):
    """Fourier components of a matrix along its first axis, without the constant one.

    Attributes:
        power: Each frequency's share of the squared norm that is not constant, ``(..., n//2)``; NaN if that is 0.
        norms: Norm of every cosine component and of every sine component, ``(..., n − 1)``: all cosines first; k = n/2
            has no sine.

    """

    power: Tensor
    norms: Tensor


def spectrum(matrix: Tensor) -> Spectrum:
    """Return the Fourier components of an embedding, or of what neurons add to the logits.

    Nanda et al. 2023 (arXiv 2301.05217) take the Gini coefficient of ``norms`` as a measure of sparsity.

    Args:
        matrix: ``(..., n, d)``, rows in group coordinates.

    """
    n = matrix.shape[-2]
    waves = torch.cat(_waves(n, matrix))[: n - 1]
    scale = _squared_norms(n, matrix)
    scale = torch.cat([scale, scale])[: n - 1].sqrt()
    norms: Tensor = torch.linalg.vector_norm(waves @ matrix, dim=-1) / scale
    power = norms[..., : n // 2].square()
    power[..., : n - 1 - n // 2] += norms[..., n // 2 :].square()
    return Spectrum(power / power.sum(dim=-1, keepdim=True), norms)


class GridSums(NamedTuple):
    """Sums of neurons' activations over the rows (a, b), ``(..., n, neuron)`` each; those of separate a add up.

    Attributes:
        by_first: Over the rows with the same a.
        by_second: With the same b.
        by_sum: With the same a + b.
        by_difference: With the same b − a.
        squares: Sum of squares over all rows, ``(..., neuron)``.

    """

    by_first: Tensor
    by_second: Tensor
    by_sum: Tensor
    by_difference: Tensor
    squares: Tensor


class NeuronFrequencies(NamedTuple):
    """What frequency a neuron has, ``(..., neuron)`` each; NaN for one that is the same on all rows, dead ones too.

    Attributes:
        frequency: The one that explains most of its variance over the rows, 1 ... n//2; a float.
        explained: The share that it explains, from 0 to 1.

    """

    frequency: Tensor
    explained: Tensor


def grid_sums(activations: Tensor, first: int = 0, origin: Tensor | None = None) -> GridSums:
    """Return the sums of the activations of some a and all b.

    Args:
        activations: ``(..., A, n, neuron)`` for a = ``first``, ``first`` + 1, ...
        first: The first a.
        origin: What to subtract from every neuron, ``(..., neuron)``; the same in all sums that are to be added up. It
            changes no frequency, and an activation of the neuron itself keeps variances exact; ``None`` takes that of
            the first row.

    Raises:
        ValueError: If there are more a than b.

    """
    *lead, count, n, neurons = activations.shape
    if first + count > n:
        raise ValueError(f"activations: expected at most {n - first} of a = {first} ... {n - 1}, got {count}")
    origin = activations[..., 0, 0, :] if origin is None else origin
    moved = activations - origin[..., None, None, :]
    by_first = activations.new_zeros(*lead, n, neurons)
    by_first[..., first : first + count, :] = moved.sum(dim=-2)
    by_sum, by_difference = (_by_sum(moved, sign, first) for sign in (1, -1))
    return GridSums(by_first, moved.sum(dim=-3), by_sum, by_difference, moved.square_().sum(dim=(-3, -2)))


def neuron_frequencies(sums: GridSums) -> NeuronFrequencies:
    """Return every neuron's frequency.

    For each k, the share of a neuron's variance over all rows that is explained by cos and sin of ω_k a and of ω_k b
    and their four products: Nanda et al. 2023 (arXiv 2301.05217). The products span the cosines and sines
    of ω_k(a + b) and ω_k(a − b), so sums over rows with the same a, b, a + b or a − b tell all. For k = n/2 there are
    three different terms: alternating signs in a, in b and in both.

    Args:
        sums: From :func:`grid_sums`, over all rows.

    """
    n = sums.by_first.shape[-2]
    cosines, sines = _waves(n, sums.by_first)
    parts = [sums.by_first, sums.by_second, sums.by_sum, sums.by_difference]
    power = torch.stack([(cosines @ part).square() + (sines @ part).square() for part in parts])
    if n % 2 == 0:
        power[-1, ..., -1, :] = 0  # the sum and the difference alternate alike
    explained = power.sum(dim=0) / (_squared_norms(n, power) * n).unsqueeze(-1)
    variance = sums.squares - sums.by_first.sum(dim=-2).square() / n**2
    best = explained.max(dim=-2)
    alive = (variance > 0) & variance.isfinite()
    return NeuronFrequencies(
        torch.where(alive, (best.indices + 1).to(variance), torch.nan),
        torch.where(alive, (best.values / variance).clamp(max=1), torch.nan),  # rounding may lead beyond
    )


# ---- what a lookup table gives ---------------------------------------------------------------------------------------


class LookupTable(NamedTuple):
    """What the measures are for a network that is a lookup table of its training rows and nothing else, ``(...)`` each.

    For a share α of all rows and a logit L, where all labels are the operation's:

    Attributes:
        share: Trigonometric share over all rows, √α.
        trigonometric: Trigonometric logit of the operation's label, αL.
        memorising_train: Mean residual at the row's label, on training rows, (1 − α)L.
        memorising_held_out: On held-out rows, −αL.
        power: Share of every frequency, ``(..., n//2)``: 2α/(n − 1), and half of that for k = n/2.

    """

    share: Tensor
    trigonometric: Tensor
    memorising_train: Tensor
    memorising_held_out: Tensor
    power: Tensor


def lookup_table(rows: Tensor, labels: Tensor, correct: Tensor) -> LookupTable:
    """Return the null model of the measures of Varma et al. 2023 (arXiv 2309.02390, appendix B).

    A lookup table has, on the rows that it covers, the logit L at the row's label and −L/(n − 1) at all others, and 0
    everywhere else. It knows nothing of trigonometry; what follows is arithmetic: where a + b − c is the same in many
    rows, the projection finds it. Where labels are random there is next to nothing to find. Over held-out rows alone
    all its measures are 0 or undefined.

    Args:
        rows: Which rows it covers, ``(..., n, n)``, bool; those whose label has no place are left out.
        labels: ``(..., n, n)``, int64, 0 ... n − 1; −1 for one that has no place.
        correct: L, ``(...)``: for the null model of a network, its mean centred logit of the right label on the rows.

    Returns:
        In float64; NaN where no row is covered.

    """
    n = rows.shape[-1]
    a, b = _positions(n, rows)
    covered = (rows & (labels >= 0)).flatten(-2).double()
    counts = covered.new_zeros(*covered.shape[:-1], n).scatter_add(-1, ((a + b - labels) % n).flatten(-2), covered)
    total = counts.sum(dim=-1, keepdim=True)
    # Of a table with L = 1.
    means = (counts - (total - counts) / max(n - 1, 1)) / n**2
    logits = trigonometric_logits(means)
    squares = total * n / max(n - 1, 1)
    waves, _ = _waves(n, means)
    correct = correct.double()
    return LookupTable(
        share=(logits.square().sum(dim=-1, keepdim=True) * n**2 / squares).squeeze(-1).sqrt(),
        trigonometric=logits[..., 0] * correct,
        memorising_train=(1 - (counts * logits).sum(dim=-1) / total.squeeze(-1)) * correct,
        memorising_held_out=-logits[..., 0] * correct,
        power=(means @ waves.T).square() / _squared_norms(n, means) * n**2 / squares,
    )
