"""Against explicit definitions in float64: sums over all triples, projections on every cosine, tables made by hand."""

import math
from itertools import product

import pytest
import torch
from torch.nn import functional as nnf

from grok_callbacks.functional import (
    GridSums,
    Totals,
    centre,
    coset_means,
    excluded_loss,
    frequencies_of,
    frequency_power,
    gini,
    grid_sums,
    group_of,
    kept_logits,
    key_frequencies,
    lookup_table,
    mean_over,
    neuron_frequencies,
    residual,
    restricted_logits,
    restricted_loss,
    spectrum,
    totals,
    trigonometric_logits,
    trigonometric_share,
)

SIZES = [2, 3, 4, 5, 8, 15]
PI2 = 2 * math.pi


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def some_rows(n, seed=0, share=0.4, lead=()):
    """A mask of rows, neither empty nor full."""
    mask = torch.rand(*lead, n * n, generator=torch.Generator().manual_seed(seed)) < share
    mask[..., 0], mask[..., -1] = True, False
    return mask.view(*lead, n, n)


def cube_of(function, n):
    """``function(a, b, c)`` of all triples."""
    values = [function(a, b, c) for a, b, c in product(range(n), repeat=3)]
    return torch.tensor(values, dtype=torch.float64).view(n, n, n)


def wave(n, k):
    """cos(ω_k(a + b − c)) as a cube."""
    return cube_of(lambda a, b, c: math.cos(PI2 * k * (a + b - c) / n), n)


def planted(n, amplitudes):
    return sum(amplitude * wave(n, k) for k, amplitude in amplitudes.items())


def labels_of(n):
    return torch.tensor([[(a + b) % n for b in range(n)] for a in range(n)])


def table_of(n, rows, logit=2.0, labels=None):
    """A lookup table of some rows, centred over labels, by hand."""
    labels = labels_of(n) if labels is None else labels
    return cube_of(
        lambda a, b, c: 0.0 if not rows[a, b] else logit if c == labels[a, b] else -logit / (n - 1),
        n,
    )


def project(cube, rows):
    """The projection of the rows in the mask on every cosine, in turn: ``{k: cube}``."""
    n = len(cube)
    at = rows.unsqueeze(-1).expand_as(cube)
    parts = {}
    for k in range(1, n // 2 + 1):
        v = torch.where(at, wave(n, k), 0)
        parts[k] = (cube * v).sum() / (v * v).sum() * v
    return parts


# Groups.


@pytest.mark.parametrize("p", [2, 3, 4, 5, 15, 97])
@pytest.mark.parametrize(
    ("operation", "apply"), [("add", lambda x, y, p: (x + y) % p), ("subtract", lambda x, y, p: (x - y) % p)]
)
def test_addition_and_subtraction_are_addition_in_group_coordinates(operation, apply, p):
    check_group(operation, apply, p, set(range(p)))


@pytest.mark.parametrize("p", [2, 3, 5, 7, 97])
@pytest.mark.parametrize(
    ("operation", "apply"),
    [
        ("multiply", lambda x, y, p: x * y % p),
        ("divide", lambda x, y, p: next(z for z in range(p) if z * y % p == x)),
    ],
)
def test_multiplication_and_division_are_addition_of_discrete_logarithms(operation, apply, p):
    check_group(operation, apply, p, set(range(1, p)))


def check_group(operation, apply, p, elements):
    left, right, result = (x.tolist() for x in group_of(operation, p))
    n = len(left)
    assert set(left) == set(right) == set(result) == elements
    assert n == len(elements)
    for i in range(n):
        for j in range(0, n, 1 + n // 20):
            assert apply(left[i], right[j], p) == result[(i + j) % n]


def test_positions_of_a_product_are_powers_of_the_smallest_primitive_root():
    assert group_of("multiply", 7).left.tolist() == [1, 3, 2, 6, 4, 5]  # 2 has order 3
    assert group_of("divide", 7).right.tolist() == [1, 5, 4, 6, 2, 3]
    assert group_of("multiply", 2).left.tolist() == [1]
    assert all(x.dtype == torch.int64 for x in group_of("divide", 7))


@pytest.mark.parametrize("operation", ["multiply", "divide"])
@pytest.mark.parametrize("p", [4, 15, 49, 91])
def test_a_product_needs_a_field(operation, p):
    with pytest.raises(
        ValueError, match=f"{operation}: the non-zero residues of p = {p} are no field's; p must be prime"
    ):
        group_of(operation, p)


def test_what_is_no_group_is_refused():
    with pytest.raises(ValueError, match="there is no 'multipy' here; did you mean multiply"):
        group_of("multipy", 7)
    with pytest.raises(ValueError, match="there is no 'square_sum' here; expected one of add, subtract, multiply, div"):
        group_of("square_sum", 7)
    for p in (1, 0, -3):
        with pytest.raises(ValueError, match=f"modulus: expected at least 2, got {p}"):
            group_of("multiply", p)


@pytest.mark.parametrize("operation", ["subtract", "multiply", "divide"])
def test_relabelling_agrees_with_sums_over_cosets_of_the_original_residues(operation):
    """Cosets are found without any group position, by brute force on residues."""
    p = 7
    elements = range(p) if operation == "subtract" else range(1, p)
    n = len(elements)
    logits = centre(draw(p, p, p)[1:, 1:, 1:] if n < p else draw(p, p, p))
    of = {element: i for i, element in enumerate(elements)}
    group = group_of(operation, p)
    index = [torch.tensor([of[x] for x in elements.tolist()]) for elements in group]
    cube = logits[index[0]][:, index[1]][:, :, index[2]]
    root = next(g for g in range(2, p) if len({pow(g, i, p) for i in range(p - 1)}) == p - 1)

    def distance(x, y, z):
        if operation == "subtract":
            return (x - y - z) % p
        ratio = x * y * pow(z, -1, p) % p if operation == "multiply" else x * pow(y * z, -1, p) % p
        return next(i for i in range(p - 1) if pow(root, i, p) == ratio)

    sums = [[] for _ in range(n)]
    for x, y, z in product(elements, repeat=3):
        sums[distance(x, y, z)].append(float(logits[of[x], of[y], of[z]]))
    expected = torch.tensor([math.fsum(values) / len(values) for values in sums], dtype=torch.float64)
    torch.testing.assert_close(coset_means(totals(cube)), expected, rtol=1e-12, atol=1e-14)


# The trigonometric part.


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("masked", [False, True])
def test_coset_means_are_means_over_triples(n, masked):
    cube, rows = centre(draw(n, n, n)), some_rows(n) if masked else torch.ones(n, n, dtype=torch.bool)
    found = coset_means(totals(cube, rows if masked else None))
    for s in range(n):
        triples = [(a, b, c) for a, b, c in product(range(n), repeat=3) if (a + b - c) % n == s and rows[a, b]]
        expected = math.fsum(float(cube[t]) for t in triples) / len(triples)
        assert float(found[s]) == pytest.approx(expected, rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_the_trigonometric_part_is_the_projection_on_every_cosine(n, masked, offset):
    rows = some_rows(n, seed=1) if masked else torch.ones(n, n, dtype=torch.bool)
    cube = centre(draw(n, n, n) + offset + 5 * draw(n, n, 1, seed=1) + planted(n, {1: 2.0}))
    at = rows.unsqueeze(-1)
    parts = project(cube, rows)
    projection, norm = sum(parts.values()), torch.where(at, cube, 0).norm()
    sums = totals(cube, rows if masked else None)
    logits = trigonometric_logits(coset_means(sums))
    s = cube_of(lambda a, b, c: (a + b - c) % n, n).long()
    torch.testing.assert_close(torch.where(at, logits[s], 0), projection, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(trigonometric_share(sums), projection.norm() / norm, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(
        trigonometric_share(sums, squared=True), (projection.norm() / norm).square(), rtol=1e-9, atol=1e-11
    )
    power = torch.stack([part.norm().square() / norm.square() for part in parts.values()])
    torch.testing.assert_close(frequency_power(sums), power, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(power.sum(), trigonometric_share(sums, squared=True), rtol=1e-9, atol=1e-11)


def test_the_same_for_a_modulus_like_that_of_the_papers():
    n = 97
    cube = centre(draw(n, n, n))
    a, b, c = torch.meshgrid(*[torch.arange(n, dtype=torch.float64)] * 3, indexing="ij")
    power = torch.stack([(cube * (PI2 * k * (a + b - c) / n).cos()).sum() ** 2 / (n**3 / 2) for k in range(1, 49)])
    sums = totals(cube)
    torch.testing.assert_close(frequency_power(sums), power / cube.square().sum(), rtol=1e-8, atol=1e-16)
    dft = torch.fft.fftn(cube)  # another way to the same coefficients
    k = torch.arange(1, 49)
    coefficients = dft[k, k, -k].real
    torch.testing.assert_close(power, coefficients.square() / (n**3 / 2), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    ("n", "amplitudes"),
    [(2, {1: 3.0}), (3, {1: 2.0}), (4, {1: 1.0, 2: 2.0}), (15, {2: 4.0, 5: 0.5, 7: 1.0}), (8, {4: 1.0, 3: 2.0})],
)
def test_planted_cosines_are_found(n, amplitudes):
    sums = totals(planted(n, amplitudes))
    means = coset_means(sums)
    assert float(trigonometric_logits(means)[0]) == pytest.approx(sum(amplitudes.values()))
    assert float(trigonometric_share(sums)) == pytest.approx(1)
    weights = {k: amplitude**2 * (1 if 2 * k == n else 0.5) for k, amplitude in amplitudes.items()}
    expected = [weights.get(k, 0) / sum(weights.values()) for k in frequencies_of(n)]
    assert frequency_power(sums).tolist() == pytest.approx(expected, abs=1e-12)


def test_the_frequencies_of_a_group_are_counted_once():
    assert [list(frequencies_of(n)) for n in (2, 3, 4, 5, 15)] == [[1], [1], [1, 2], [1, 2], [1, 2, 3, 4, 5, 6, 7]]
    for k in (1, 2, 3):
        torch.testing.assert_close(wave(7, k), wave(7, 7 - k))


def test_held_out_rows_are_free_of_a_lookup_table_of_the_training_rows():
    n, held_out = 15, ~some_rows(15, seed=2, share=0.6)
    cube = planted(n, {2: 2.0, 3: 1.0}) + table_of(n, ~held_out, 20.0)
    everywhere, unseen = (trigonometric_logits(coset_means(totals(cube, rows)))[0] for rows in (None, held_out))
    assert float(unseen) == pytest.approx(3.0, abs=1e-12)
    assert float(everywhere) > 10
    assert float(trigonometric_share(totals(cube, held_out))) == pytest.approx(1.0)
    assert float(trigonometric_share(totals(cube))) < 0.9


@pytest.mark.parametrize("n", [3, 4, 15])
def test_constants_of_rows_are_gone_after_centring(n):
    cube, constants = draw(n, n, n), 100 * draw(n, n, 1, seed=1)
    before, after = (totals(centre(logits)) for logits in (cube, cube + constants))
    for x, y in zip(before, after, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-10)
    assert float(trigonometric_share(totals(cube + constants))) < float(trigonometric_share(after)), "they do matter"


@pytest.mark.parametrize("n", [3, 4, 15])
def test_renaming_elements_by_an_automorphism_permutes_frequencies(n):
    """Where a stood there is u a, for a unit u: frequency k of the old is u k of the new."""
    u = 2 if n % 2 else 3
    cube = centre(draw(n, n, n))
    index = u * torch.arange(n) % n
    renamed = frequency_power(totals(cube[index][:, index][:, :, index]))
    power = frequency_power(totals(cube))
    for k in frequencies_of(n):
        other = u * k % n
        assert float(power[k - 1]) == pytest.approx(float(renamed[min(other, n - other) - 1]))


def test_sums_of_separate_rows_add_up():
    cube, rows = centre(draw(6, 6, 6)), some_rows(6)
    for whole, *parts in zip(totals(cube), totals(cube, rows), totals(cube, ~rows), strict=True):
        torch.testing.assert_close(sum(parts), whole)


@pytest.mark.parametrize("lead", [(), (1,), (3,), (2, 3)])
def test_leading_dimensions_are_members(lead):
    n, count = 5, math.prod(lead)
    cubes, rows = centre(draw(*lead, n, n, n)), some_rows(n, lead=lead)
    labels = torch.randint(-1, n, (*lead, n, n), generator=torch.Generator().manual_seed(0))
    key = draw(*lead, 2, seed=3) > 0

    def everything(cube, rows, labels, key):
        sums, unseen = totals(cube), totals(cube, rows)
        means = coset_means(unseen)
        logits = trigonometric_logits(means)
        kept = kept_logits(sums, key)
        return [
            *sums, *unseen, means, logits, trigonometric_share(unseen), frequency_power(sums), kept,
            *residual(cube, logits, labels), restricted_logits(sums, key), restricted_loss(sums, key),
            excluded_loss(cube, labels, rows & (labels >= 0), kept), *grid_sums(cube),
            *neuron_frequencies(grid_sums(cube)),
            *spectrum(cube[..., 0]), gini(means.abs()), mean_over(cube[..., 0], rows),
        ]  # fmt: skip

    found = everything(cubes, rows, labels, key)
    flat = zip(cubes.view(-1, n, n, n), rows.view(-1, n, n), labels.view(-1, n, n), key.view(-1, 2), strict=True)
    single = [everything(*member) for member in flat]
    for i, values in enumerate(found):
        assert values.shape[: len(lead)] == lead
        expected = torch.stack([one[i] for one in single])
        torch.testing.assert_close(values.reshape(count, *values.shape[len(lead) :]), expected, equal_nan=True)


def test_one_mask_serves_all_members():
    cubes, rows = centre(draw(3, 4, 4, 4)), some_rows(4)
    for x, y in zip(totals(cubes, rows), totals(cubes, rows.expand(3, 4, 4)), strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_type_of_float_is_kept(dtype):
    cube = centre(draw(6, 6, 6)).to(dtype)
    sums = totals(cube, some_rows(6))
    means = coset_means(sums)
    found = [*sums, means, trigonometric_logits(means), trigonometric_share(sums), frequency_power(sums)]
    found += [*grid_sums(cube), *neuron_frequencies(grid_sums(cube)), *spectrum(cube[0]), gini(cube[0].abs())]
    assert {x.dtype for x in found} == {dtype}


def test_what_is_not_determined_is_nan():
    n = 5
    none, cube = torch.zeros(n, n, dtype=torch.bool), centre(draw(n, n, n))
    empty = totals(cube, none)
    for values in (coset_means(empty), trigonometric_share(empty), frequency_power(empty), mean_over(cube[0], none)):
        assert values.isnan().all()
    assert trigonometric_share(totals(torch.zeros(n, n, n))).isnan()
    assert excluded_loss(cube, labels_of(n), none, cube[0]).isnan()
    cube[0, 0, 0] = torch.nan
    sums = totals(cube)
    assert trigonometric_share(sums).isnan()
    assert not key_frequencies(frequency_power(sums)).any()


@pytest.mark.parametrize("shape", [(3, 3), (3, 3, 4), (4, 3, 3), (3, 4, 3)])
def test_what_is_no_cube_is_refused(shape):
    logits, table = torch.zeros(shape), torch.zeros(3, 3)
    mask = torch.ones(3, 3, dtype=torch.bool)
    for ask in (
        lambda: totals(logits),
        lambda: residual(logits, torch.zeros(3), table.long()),
        lambda: excluded_loss(logits, table.long(), mask, table),
    ):
        with pytest.raises(ValueError, match=r"expected a cube \(..., n, n, n\), got"):
            ask()


# Key frequencies.


def test_planted_frequencies_are_key_and_those_of_noise_are_not():
    n = 31
    noise = centre(draw(n, n, n))
    assert not key_frequencies(frequency_power(totals(noise))).any()
    power = frequency_power(totals(noise + planted(n, {3: 1.0, 8: 2.0, 15: 1.5})))
    assert (key_frequencies(power).nonzero() + 1).flatten().tolist() == [3, 8, 15]


@pytest.mark.parametrize("n", [15, 16, 31])
@pytest.mark.parametrize("share", [0.3, 0.95, 1.0])
def test_no_frequency_of_a_lookup_table_is_key_though_all_are_above_the_bare_threshold(n, share):
    rows = some_rows(n, share=share) if share < 1 else torch.ones(n, n, dtype=torch.bool)
    power = frequency_power(totals(table_of(n, rows)))
    assert (power > 0.005).all()
    assert not key_frequencies(power).any()
    assert key_frequencies(power, times_median=0.1).all()


def test_thresholds_are_arguments():
    power = torch.tensor([0.004, 0.006, 0.3, 0.0001, 0.0002, 0.0001, 0.002], dtype=torch.float64)
    assert key_frequencies(power).tolist() == [False, False, True, False, False, False, False]
    assert key_frequencies(power, times_median=2).tolist() == [False, True, True, False, False, False, False]
    assert key_frequencies(power, least=0.0).tolist() == [False, False, True, False, False, False, False]
    assert key_frequencies(power, least=0.0, times_median=1).sum() == 3
    assert key_frequencies(power, least=0.5).sum() == 0


def test_of_two_frequencies_one_may_stand_out_and_a_single_one_never_does():
    assert key_frequencies(torch.tensor([0.9, 0.001])).tolist() == [True, False]
    assert key_frequencies(torch.tensor([1.0])).tolist() == [False]
    assert key_frequencies(torch.zeros(2, 0)).shape == (2, 0)


# The rest.


@pytest.mark.parametrize("n", SIZES)
def test_the_residual_is_what_is_left(n):
    cube, labels = centre(draw(n, n, n)), labels_of(n)
    labels[0, 0] = (labels[0, 0] + 1) % n
    labels[1, 0] = -1
    rest = cube - sum(project(cube, torch.ones(n, n, dtype=torch.bool)).values())
    found = residual(cube, trigonometric_logits(coset_means(totals(cube))), labels)
    for a, b in product(range(n), repeat=2):
        label = int(labels[a, b])
        others = [float(rest[a, b, c]) for c in range(n) if c != label]
        assert float(found.wrong[a, b]) == pytest.approx(max(others))
        if label >= 0:
            assert float(found.right[a, b]) == pytest.approx(float(rest[a, b, label]))
        else:
            assert found.right[a, b].isnan()


def test_residuals_leave_their_arguments_alone_and_show_what_diverged():
    cube, labels = centre(draw(3, 3, 3)), labels_of(3)
    before = cube.clone()
    residual(cube, cube[0, 0], labels)
    assert torch.equal(cube, before)
    for c in range(3):
        bad = cube.clone()
        bad[0, 1, c] = torch.nan
        assert residual(bad, cube[0, 0], labels).wrong[0, 1].isnan()


# Restricted and excluded.


def basis(n, key):
    """Orthonormal functions on all rows, ``(function, n²)``, for the key frequencies."""
    rows = torch.tensor([a + b for a, b in product(range(n), repeat=2)], dtype=torch.float64)
    found = []
    for k in frequencies_of(n):
        if key[k - 1]:
            for f in (torch.cos, torch.sin):
                v = f(PI2 * k * rows / n)
                if v.norm() > 1e-6:
                    found.append(v / v.norm())
    return torch.stack(found) if found else torch.zeros(0, n * n, dtype=torch.float64)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("which", ["first", "last", "all", "none"])
def test_restricted_and_excluded_logits_are_projections_on_two_directions_a_frequency(n, which):
    k = torch.arange(1, n // 2 + 1)
    key = {"first": k == 1, "last": k == n // 2, "all": k > 0, "none": k < 0}[which]
    raw, rows, labels = 3 * draw(n, n, n) + 10 * draw(n, n, 1, seed=1), some_rows(n, seed=3), labels_of(n)
    wrong = labels.clone()
    wrong[0, 0] = (wrong[0, 0] + 1) % n
    flat, directions = raw.view(n * n, n), basis(n, key)
    kept = directions.T @ (directions @ flat)
    restricted = kept + (flat - kept).mean(dim=0)
    mask = rows.flatten()
    restricted_expected = nnf.cross_entropy(restricted, labels.flatten())
    excluded_expected = nnf.cross_entropy((flat - kept)[mask], wrong.flatten()[mask])
    for logits in (raw, centre(raw)):  # softmax does not see the difference
        sums = totals(logits)
        torch.testing.assert_close(restricted_loss(sums, key), restricted_expected)
        torch.testing.assert_close(excluded_loss(logits, wrong, rows, kept_logits(sums, key)), excluded_expected)
    sums = totals(raw)
    t = labels.flatten()
    torch.testing.assert_close(kept_logits(sums, key)[t], kept, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(restricted_logits(sums, key)[t], restricted, rtol=1e-9, atol=1e-11)


def test_the_products_of_the_papers_code_span_the_same_directions():
    """coscos − sinsin and sincos + cossin of one-dimensional waves, normalised, as in two-dimensional Fourier bases."""
    n, k = 7, 2
    x = torch.arange(n, dtype=torch.float64)
    c, s = (f(PI2 * k * x / n) * math.sqrt(2 / n) for f in (torch.cos, torch.sin))
    cosine = (torch.outer(c, c) - torch.outer(s, s)) / math.sqrt(2)
    sine = (torch.outer(s, c) + torch.outer(c, s)) / math.sqrt(2)
    expected = torch.stack([cosine.flatten(), sine.flatten()])
    torch.testing.assert_close(basis(n, [False, True, False]), expected)


def test_a_trigonometric_network_needs_its_frequencies_and_nothing_else():
    n, train = 15, some_rows(15)
    cube = planted(n, {1: 4.0, 4: 4.0, 6: 4.0}) + table_of(n, train, 1.0)
    sums = totals(cube)
    key = key_frequencies(frequency_power(sums))
    assert key.nonzero().flatten().tolist() == [0, 3, 5]
    assert float(restricted_loss(sums, key)) < 0.01
    assert float(excluded_loss(cube, labels_of(n), train, kept_logits(sums, key))) > 1
    nothing = torch.zeros_like(key)
    assert float(restricted_loss(sums, nothing)) == pytest.approx(math.log(n), abs=0.01)
    assert float(excluded_loss(cube, labels_of(n), train, kept_logits(sums, nothing))) < 0.01


def test_the_loss_is_of_the_type_of_float_of_what_is_kept():
    """A gap of 40 between logits is nothing in float32, and a loss in float64."""
    n = 3
    cube = 40 * nnf.one_hot(labels_of(n), n).float()
    rows = torch.ones(n, n, dtype=torch.bool)
    kept = torch.zeros(n, n, dtype=torch.float64)
    kept[:, 0] = 0
    expected = math.log1p(2 * math.exp(-30))
    found = excluded_loss(cube * 0.75, labels_of(n), rows, kept)
    assert found.dtype == torch.float64
    assert float(found) == pytest.approx(expected, rel=1e-2)
    assert float(excluded_loss(cube * 0.75, labels_of(n), rows, kept.float())) == 0


# Spectra.


@pytest.mark.parametrize(
    ("values", "expected"),
    [([1, 1, 1], 0), ([0, 0, 1], 2 / 3), ([1, 0], 0.5), ([5], 0), ([1, 2, 3, 4], 0.25), ([4, 1, 3, 2], 0.25)],
)
def test_gini_of_known_distributions(values, expected):
    values = torch.tensor(values, dtype=torch.float64)
    assert float(gini(values)) == pytest.approx(expected)
    assert float(gini(7 * values)) == pytest.approx(expected)


def test_gini_is_half_the_relative_mean_difference():
    x = draw(9).abs()
    assert float(gini(x)) == pytest.approx(float((x[:, None] - x).abs().mean() / (2 * x.mean())))
    assert gini(torch.zeros(4)).isnan()


@pytest.mark.parametrize("n", SIZES)
def test_a_spectrum_is_that_of_an_orthonormal_basis(n):
    matrix = draw(n, 4) + 100
    x = torch.arange(n, dtype=torch.float64)
    cosines = torch.stack([(PI2 * k * x / n).cos() for k in frequencies_of(n)])
    sines = [(PI2 * k * x / n).sin() for k in frequencies_of(n) if 2 * k != n]
    rows = torch.cat([torch.ones(1, n, dtype=torch.float64), cosines, *[s.unsqueeze(0) for s in sines]])
    rows /= rows.norm(dim=1, keepdim=True)
    torch.testing.assert_close(rows @ rows.T, torch.eye(n, dtype=torch.float64), msg="the reference is a basis")
    components = (rows @ matrix).norm(dim=1)[1:]
    found = spectrum(matrix)
    torch.testing.assert_close(found.norms, components, rtol=1e-8, atol=1e-11)
    squares = components.square()
    power = [squares[k - 1] + (squares[n // 2 + k - 1] if 2 * k != n else 0) for k in frequencies_of(n)]
    torch.testing.assert_close(found.power, torch.stack(power) / squares.sum(), rtol=1e-8, atol=1e-11)
    assert float(found.power.sum()) == pytest.approx(1)
    variance = (matrix - matrix.mean(dim=0)).square().sum()
    assert float(found.norms.square().sum()) == pytest.approx(float(variance))


def test_a_spectrum_without_variance_has_no_shares():
    assert spectrum(torch.zeros(5, 3)).power.isnan().all()


# Neurons.


def explained_by_definition(neuron, k):
    """The share of the variance of a neuron ``(n, n)`` along the non-constant products of waves of frequency k."""
    n = len(neuron)
    x = torch.arange(n, dtype=torch.float64)
    waves = [torch.ones(n, dtype=torch.float64), (PI2 * k * x / n).cos(), (PI2 * k * x / n).sin()]
    waves = [w / w.norm() for w in waves if w.norm() > 1e-6]
    total = sum(((torch.outer(u, v) * neuron).sum() ** 2) for u, v in product(waves, repeat=2))
    constant = (torch.outer(waves[0], waves[0]) * neuron).sum() ** 2
    return float((total - constant) / (neuron - neuron.mean()).square().sum())


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("offset", [0.0, 50.0])
def test_the_frequency_of_a_neuron_explains_most_of_its_variance(n, offset):
    activations = draw(n, n, 6).abs() + offset
    found = neuron_frequencies(grid_sums(activations))
    for i in range(6):
        shares = [explained_by_definition(activations[..., i], k) for k in frequencies_of(n)]
        assert float(found.explained[i]) == pytest.approx(max(shares))
        assert int(found.frequency[i]) == 1 + shares.index(max(shares))


def test_neurons_of_one_frequency_are_explained_altogether():
    n = 15
    a, b = torch.meshgrid(*[torch.arange(n, dtype=torch.float64)] * 2, indexing="ij")
    functions = {
        2: (PI2 * 2 * a / n).cos(),
        3: 5 + (PI2 * 3 * (a + b) / n).sin(),
        7: (PI2 * 7 * a / n).sin() * (PI2 * 7 * b / n).cos() + (PI2 * 7 * b / n + 1).cos(),
        5: (PI2 * 5 * (a - b) / n + 0.3).cos() - 2 * (PI2 * 10 * a / n).cos(),
    }
    found = neuron_frequencies(grid_sums(torch.stack(list(functions.values()), dim=-1)))
    assert found.frequency.tolist() == list(functions)
    assert found.explained.tolist() == pytest.approx([1, 1, 1, 1])


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_neuron_that_is_the_same_on_all_rows_has_no_frequency(value, dtype):
    activations = torch.full((7, 7, 2), value, dtype=dtype)
    activations[..., 1] = draw(7, 7).to(dtype)
    found = neuron_frequencies(grid_sums(activations))
    assert found.frequency.isnan().tolist() == found.explained.isnan().tolist() == [True, False]
    activations[0, 3, 1] = torch.nan
    assert neuron_frequencies(grid_sums(activations)).frequency.isnan().all()


@pytest.mark.parametrize("lead", [(), (2,)])
@pytest.mark.parametrize("at_once", [1, 2, 3, 7])
def test_a_grid_may_be_summed_in_pieces(lead, at_once):
    n = 7
    activations = draw(*lead, n, n, 3).relu()
    origin = activations[..., 0, 0, :]
    pieces = [
        grid_sums(activations[..., first : first + at_once, :, :], first, origin) for first in range(0, n, at_once)
    ]
    for whole, *parts in zip(grid_sums(activations), *pieces, strict=True):
        torch.testing.assert_close(sum(parts), whole, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match=r"expected at most 1 of a = 6 ... 6, got 2"):
        grid_sums(activations[..., :2, :, :], first=6)


def test_sums_over_a_grid_are_sums_over_lines():
    n, x = 4, draw(4, 4, 2)
    found = grid_sums(x, origin=torch.zeros(2))
    assert isinstance(found, GridSums)
    for t in range(n):
        lines = {
            "by_first": [x[t, b] for b in range(n)],
            "by_second": [x[a, t] for a in range(n)],
            "by_sum": [x[a, (t - a) % n] for a in range(n)],
            "by_difference": [x[a, (t + a) % n] for a in range(n)],
        }
        for name, line in lines.items():
            torch.testing.assert_close(getattr(found, name)[t], sum(line))
    torch.testing.assert_close(found.squares, x.square().sum(dim=(0, 1)))


# The null model.


@pytest.mark.parametrize("n", [2, 3, 4, 15, 16])
@pytest.mark.parametrize("share", [0.3, 0.8, 1.0])
def test_lookup_tables_have_what_the_null_model_says(n, share):
    rows = some_rows(n, seed=4, share=share) if share < 1 else torch.ones(n, n, dtype=torch.bool)
    logit = 7.0
    cube = table_of(n, rows, logit)
    torch.testing.assert_close(centre(cube), cube)
    alpha = float(rows.double().mean())
    expected = lookup_table(rows, labels_of(n), torch.tensor(logit))
    sums = totals(cube)
    logits = trigonometric_logits(coset_means(sums))
    rest = residual(cube, logits, labels_of(n))
    found = {
        "share": trigonometric_share(sums),
        "trigonometric": logits[0],
        "memorising_train": mean_over(rest.right, rows),
        "power": frequency_power(sums),
    }
    if share < 1:
        found["memorising_held_out"] = mean_over(rest.right, ~rows)
    for name, value in found.items():
        torch.testing.assert_close(value, getattr(expected, name), rtol=1e-9, atol=1e-12, msg=name)
    assert float(expected.share) == pytest.approx(alpha**0.5)
    assert float(expected.trigonometric) == pytest.approx(alpha * logit)
    assert float(expected.memorising_train) == pytest.approx((1 - alpha) * logit, abs=1e-12)
    if n % 2:
        assert expected.power.tolist() == pytest.approx([alpha * 2 / (n - 1)] * (n // 2))


@pytest.mark.parametrize("n", [3, 4, 15])
def test_lookup_tables_of_other_labels_have_what_the_null_model_says(n):
    """Random labels, one of which has no place: there is next to nothing trigonometric in them."""
    rows = some_rows(n, seed=4, share=0.7)
    labels = torch.randint(n, (n, n), generator=torch.Generator().manual_seed(1))
    labels[0, 0] = -1
    covered = rows & (labels >= 0)
    cube = torch.zeros(n, n, n, dtype=torch.float64)
    cube[covered] = -5.0 / (n - 1)
    cube[covered] = cube[covered].scatter(-1, labels[covered].unsqueeze(-1), 5.0)
    expected = lookup_table(rows, labels, torch.tensor(5.0))
    sums = totals(cube)
    logits = trigonometric_logits(coset_means(sums))
    torch.testing.assert_close(trigonometric_share(sums), expected.share)
    torch.testing.assert_close(logits[0], expected.trigonometric)
    torch.testing.assert_close(mean_over(residual(cube, logits, labels).right, covered), expected.memorising_train)
    torch.testing.assert_close(frequency_power(sums), expected.power)
    if n == 15:
        assert expected.share < 0.3 < lookup_table(rows, labels_of(n), torch.tensor(5.0)).share


def test_lookup_tables_know_nothing_of_held_out_rows():
    n, rows = 15, some_rows(15)
    unseen = totals(table_of(n, rows), ~rows)
    assert float(trigonometric_logits(coset_means(unseen))[0]) == 0
    assert trigonometric_share(unseen).isnan()


def test_the_null_model_has_members():
    rows = torch.zeros(3, 6, 6, dtype=torch.bool)
    rows[0, :, :2], rows[1, :, :3] = True, True
    found = lookup_table(rows, labels_of(6).expand(3, 6, 6), torch.tensor([3.0, 4.0, 5.0]))
    assert found.power.shape == (3, 3)
    assert found.trigonometric[:2].tolist() == pytest.approx([1.0, 2.0])
    assert found.memorising_held_out[:2].tolist() == pytest.approx([-1.0, -2.0])
    assert found.share[2].isnan(), "a table of no rows"
    assert isinstance(totals(torch.zeros(2, 2, 2)), Totals)
