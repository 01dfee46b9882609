import math
from itertools import permutations, product

import pytest
import torch

from grok_callbacks.functional.parity_circuits import (
    CONSTRUCTIONS,
    KINDS,
    ParityCircuit,
    bias_ratios,
    circuit_of,
    constructions,
    contributions,
    count_neurons,
    efficiency,
    four_neurons,
    likeness,
    nearer_half,
    neuron_kinds,
    off_support,
    one_a_pattern,
    one_star,
    patterns_fired_on,
    patterns_of,
    sign_patterns,
    six_neurons,
    two_stars,
)

OF_THREE = {
    "proposition_1": one_a_pattern(3),
    "nearer_half": nearer_half(3),
    "proposition_2": six_neurons(),
    "proposition_3": four_neurons(),
    "one_star": one_star(),
    "two_stars": two_stars(),
}


def everyone(circuit):
    return torch.ones_like(circuit.bias, dtype=torch.bool)


def alike(circuit, name, chosen=None):
    k = circuit.weight.shape[-1]
    return likeness(circuit, everyone(circuit) if chosen is None else chosen, constructions(k)[name])


def outputs(circuit):
    """By definition, one pattern and neuron at a time."""
    rows = product([-1, 1], repeat=circuit.weight.shape[-1])
    neurons = list(zip(circuit.weight.tolist(), circuit.bias.tolist(), circuit.output.tolist(), strict=True))
    return [
        [u * max(0.0, math.fsum([*(wi * xi for wi, xi in zip(w, x, strict=True)), b])) for w, b, u in neurons]
        for x in rows
    ]


def drawn(n, k, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(n, k, generator=generator, dtype=torch.float64)
    bias, output = torch.randn(2, n, generator=generator, dtype=torch.float64)
    return ParityCircuit(weight, bias, output)


# ---- constructions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONSTRUCTIONS)
def test_every_construction_computes_the_parity(name):
    parity = [math.prod(x) for x in product([-1, 1], repeat=3)]
    assert all(math.fsum(row) * y > 0 for row, y in zip(outputs(OF_THREE[name]), parity, strict=True))


@pytest.mark.parametrize("name", ["proposition_1", "nearer_half", "proposition_3", "one_star", "two_stars"])
def test_all_but_proposition_2_are_the_parity_itself(name):
    parity = [math.prod(x) for x in product([-1, 1], repeat=3)]
    assert [math.fsum(row) for row in outputs(OF_THREE[name])] == parity


@pytest.mark.parametrize(
    ("name", "expected"), [("proposition_3", 9), ("one_star", 8), ("two_stars", 8), ("nearer_half", 8)]
)
def test_half_the_squared_norm_of_a_balanced_network_is_as_said(name, expected):
    """A neuron scaled by c costs (c² ‖(w, b)‖² + u² / c²) / 2: of many c the least comes near the product."""
    nearer = one_a_pattern(3)._replace(bias=-torch.ones(8).double(), output=one_a_pattern(3).output / 2)
    for circuit, least in ((OF_THREE[name], expected), (nearer, 8)):
        incoming = circuit.weight.square().sum(dim=1) + circuit.bias.square()
        scales = torch.logspace(-2, 2, 4001, dtype=torch.float64)[:, None]
        costs = (scales.square() * incoming + circuit.output.square() / scales.square()) / 2
        assert float(costs.amin(dim=0).sum()) == pytest.approx(least, rel=1e-5)


@pytest.mark.parametrize("name", CONSTRUCTIONS)
def test_without_any_of_its_neurons_a_construction_fails(name):
    circuit = OF_THREE[name]
    parity = [math.prod(x) for x in product([-1, 1], repeat=3)]
    for j in range(len(circuit.bias)):
        fewer = ParityCircuit(*(torch.cat([part[:j], part[j + 1 :]]) for part in circuit))
        assert not all(math.fsum(row) * y > 0 for row, y in zip(outputs(fewer), parity, strict=True))


def test_patterns_count_in_binary():
    assert [tuple(row) for row in sign_patterns(3).tolist()] == list(product([-1, 1], repeat=3))
    assert torch.equal(one_a_pattern(4).weight, sign_patterns(4))
    with pytest.raises(ValueError, match="k: expected at least 1 bit, got 0"):
        sign_patterns(0)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 10])
def test_three_bits_have_six_constructions_and_other_numbers_two(k):
    found = constructions(k)
    assert tuple(found) == (CONSTRUCTIONS if k == 3 else CONSTRUCTIONS[:2])
    assert found["proposition_1"].shape == found["nearer_half"].shape == (1, 2**k, 2**k)


@pytest.mark.parametrize("k", range(1, 8))
def test_the_nearer_half_is_the_parity_itself_and_fires_on_the_nearer_half(k):
    circuit = nearer_half(k)
    rows = list(product([-1, 1], repeat=k))
    assert [math.fsum(row) for row in outputs(circuit)] == pytest.approx([math.prod(x) for x in rows])
    fires = contributions(circuit) != 0
    for s, row in zip(rows, fires.tolist(), strict=True):
        assert row == [sum(a != b for a, b in zip(s, x, strict=True)) < k / 2 for x in rows]


@pytest.mark.parametrize("k", [0, -1])
def test_the_nearer_half_of_no_bits_is_refused(k):
    with pytest.raises(ValueError, match="k: expected at least 1 bit"):
        nearer_half(k)


@pytest.mark.parametrize("name", CONSTRUCTIONS[2:])
def test_every_image_computes_the_parity_and_they_are_all_there(name):
    """Images by definition: exchange the bits of the row, flip some, and the output with an odd number of them."""
    circuit, images = OF_THREE[name], constructions(3)[name]
    rows = list(product([-1, 1], repeat=3))
    parity = torch.tensor([math.prod(x) for x in rows])
    assert (images.sum(dim=1) * parity > 0).all()
    expected = set()
    for order, flips in product(permutations(range(3)), rows):
        moved = ParityCircuit(
            circuit.weight[:, list(order)] * torch.tensor(flips), circuit.bias, circuit.output * math.prod(flips)
        )
        expected.add(tuple(sorted(zip(*outputs(moved), strict=True))))
    assert {tuple(sorted(map(tuple, image))) for image in images.tolist()} == expected


# ---- neurons ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_contributions_and_what_follows_from_them_are_those_of_the_definition(k):
    circuit = drawn(40, k, seed=k)
    expected = torch.tensor(outputs(circuit), dtype=torch.float64).T
    torch.testing.assert_close(contributions(circuit), expected, rtol=1e-12, atol=1e-12)
    assert patterns_fired_on(circuit).tolist() == (expected != 0).sum(dim=1).tolist()
    rows = list(product([-1, 1], repeat=k))
    signs = [tuple(1 if x > 0 else -1 for x in w) for w in circuit.weight.tolist()]
    assert patterns_of(circuit).tolist() == [rows.index(s) for s in signs]
    kinds = []
    for values, s, u in zip(expected.tolist(), signs, circuit.output.tolist(), strict=True):
        helps = math.fsum(v * math.prod(x) for v, x in zip(values, rows, strict=True)) > 1e-9
        kinds.append("neither" if not helps else "same" if math.prod(s) * u > 0 else "opposite")
    assert [KINDS[i] for i in neuron_kinds(circuit)] == kinds
    if k == 3:
        assert set(kinds) == set(KINDS), "the draws show every kind"


@pytest.mark.parametrize(("bias", "fires"), [(-2.9, 1), (-1.0, 1), (-0.9, 4), (-0.1, 4), (0.1, 4), (1.0, 4), (1.1, 7)])
def test_of_three_equal_weights_the_sign_of_the_bias_says_which_output_helps(bias, fires):
    """Merrill et al.'s trained neurons (ours): b < 0 with the sign of the product, b > 0 with the other one."""
    patterns = sign_patterns(3)
    for s in patterns:
        for sign, helpful in ((s.prod(), bias < 0), (-s.prod(), bias > 0)):
            circuit = ParityCircuit(0.5 * s[None], torch.tensor([0.5 * bias]).double(), 2 * sign[None])
            kind = ("same" if bias < 0 else "opposite") if helpful else "neither"
            assert KINDS[int(neuron_kinds(circuit))] == kind
            assert patterns_fired_on(circuit).tolist() == [fires]
            assert float(bias_ratios(circuit)) == pytest.approx(bias)


def test_proposition_3_is_made_of_both_kinds_and_a_neuron_without_a_pattern():
    circuit = four_neurons()
    assert patterns_of(circuit).tolist() == [-1, 7, 7, 0]
    assert [KINDS[i] for i in neuron_kinds(circuit)] == ["neither", "same", "opposite", "same"]
    assert [KINDS[i] for i in neuron_kinds(one_star())] == ["opposite"] + ["same"] * 5
    assert set(neuron_kinds(one_a_pattern(4)).tolist()) == {0}


def test_counts_are_by_kind_and_pattern_of_the_chosen_alone():
    circuit = two_stars()
    counts = count_neurons(circuit, everyone(circuit))
    assert counts.shape == (3, 8)
    assert counts[0].tolist() == counts[1].tolist() == [1, 0, 0, 0, 0, 0, 0, 1]
    assert counts[2].tolist() == [0] * 8
    assert count_neurons(circuit, torch.tensor([False, True, True, False])).sum(dim=1).tolist() == [1, 1, 0]
    assert count_neurons(one_a_pattern(3), torch.ones(8, dtype=torch.bool))[0].tolist() == [1] * 8
    assert count_neurons(four_neurons(), torch.ones(4, dtype=torch.bool)).sum() == 3, "the constant one has no pattern"


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_a_neuron_with_a_weight_that_is_0_or_nan_has_no_pattern(value):
    circuit = drawn(3, 3)
    circuit.weight[1, 2] = value
    assert patterns_of(circuit)[1] == -1
    assert patterns_of(circuit)[0] >= 0
    assert KINDS[int(neuron_kinds(circuit)[1])] == "neither"
    assert count_neurons(circuit, everyone(circuit)).sum() == 2


def test_dead_neurons_fire_on_nothing_and_help_nothing():
    dead = ParityCircuit(sign_patterns(3), torch.full((8,), -3.0).double(), torch.ones(8).double())
    assert not patterns_fired_on(dead).any()
    assert set(neuron_kinds(dead).tolist()) == {KINDS.index("neither")}


def test_the_secret_may_lie_anywhere_and_in_any_order():
    """In 9 bits, another place for each of two members."""
    circuit = drawn(6, 3)
    secrets = torch.tensor([[7, 0, 4], [8, 6, 5]])
    weight = torch.randn(2, 6, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for e in range(2):
        weight[e][:, secrets[e]] = circuit.weight
    found = circuit_of(weight.float(), circuit.bias.expand(2, -1), circuit.output.expand(2, -1), secrets)
    assert found.weight.dtype == torch.float64
    for e in range(2):
        torch.testing.assert_close(found.weight[e], circuit.weight, rtol=1e-6, atol=1e-6)


def test_weights_off_the_support_are_measured_against_those_on_it():
    weight = torch.tensor([[3.0, 1.0, 4.0, 2.0], [9.0, 9.0, 9.0, 9.0], [0.0, 2.0, 0.0, 0.0]])
    chosen, secret = torch.tensor([True, False, True]), torch.tensor([2, 0])
    assert float(off_support(weight, secret, chosen)) == pytest.approx(math.sqrt((1 + 4 + 4) / (9 + 16)))
    assert float(off_support(weight[:, [2, 0]], torch.tensor([1, 0]), chosen)) == 0
    assert off_support(weight, secret, torch.zeros(3, dtype=torch.bool)).isnan()
    assert off_support(torch.tensor([[0.0, 1.0]]), torch.tensor([0]), torch.tensor([True])).isinf()


# ---- efficiency ------------------------------------------------------------------------------------------------------


def of_all(circuit, secret=None):
    k = circuit.weight.shape[-1]
    return efficiency(*circuit, torch.arange(k) if secret is None else secret, everyone(circuit))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("proposition_1", 16 / (16 * math.sqrt(7))),
        ("proposition_2", 4.75 * 16 / (80 * math.sqrt(7) + 4 * math.sqrt(183))),
        ("proposition_3", 16 / 18),
        ("nearer_half", 1),
        ("one_star", 1),
        ("two_stars", 1),
    ],
)
def test_the_efficiency_of_every_construction(name, expected):
    assert float(of_all(OF_THREE[name])) == pytest.approx(expected, rel=1e-12)


def test_efficiency_by_definition_knows_no_scales_and_has_a_sign():
    circuit, secret = drawn(5, 9), torch.tensor([7, 2, 4])
    chosen = torch.tensor([True, True, False, True, True])
    scales = torch.tensor([0.1, 3, 5, 1, 7]).double()
    moved = ParityCircuit(circuit.weight * scales[:, None], circuit.bias * scales, circuit.output / scales)
    margin = price = 0.0
    for w, b, u, counts in zip(*(part.tolist() for part in circuit), chosen.tolist(), strict=True):
        if counts:
            for x in product([-1, 1], repeat=3):
                active = max(0.0, sum(w[i] * xi for i, xi in zip(secret.tolist(), x, strict=True)) + b)
                margin += math.prod(x) * u * active / 8
            price += abs(u) * math.hypot(*w, b)
    for each in (circuit, moved):
        assert float(efficiency(*each, secret, chosen)) == pytest.approx(8 * margin / price, rel=1e-12)
    wrong = circuit._replace(output=-circuit.output)
    assert float(efficiency(*wrong, secret, chosen)) == pytest.approx(-8 * margin / price, rel=1e-12)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_no_drawn_neurons_are_more_than_efficient(k):
    neurons = drawn(20_000, k + 1, seed=k)
    single = ParityCircuit(neurons.weight[:, None], neurons.bias[:, None], neurons.output[:, None])
    found = efficiency(*single, torch.arange(k).expand(20_000, k), everyone(single))
    assert float(found.abs().max()) < 1
    assert float(found.max()) > 0.5, "of single neurons some are good by chance"


def test_weights_on_other_bits_cost():
    circuit = two_stars()
    wide = circuit._replace(weight=torch.cat([circuit.weight, torch.full((4, 1), 2.0).double()], dim=1))
    assert float(of_all(wide, torch.arange(3))) == pytest.approx(math.sqrt(4 / 8))


def test_efficiency_is_unknown_beyond_four_bits_and_of_nothing():
    assert of_all(nearer_half(4)).isfinite()
    assert of_all(nearer_half(5)).isnan()
    circuit = two_stars()
    assert efficiency(*circuit, torch.arange(3), torch.zeros(4, dtype=torch.bool)).isnan()
    broken = circuit._replace(bias=torch.tensor([1, math.nan, 1, -1]))
    assert of_all(broken).isnan()
    assert efficiency(*broken, torch.arange(3), torch.tensor([True, False, True, True])).isfinite()


# ---- likeness --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONSTRUCTIONS)
def test_a_construction_is_like_itself_and_less_like_any_other(name):
    for other in CONSTRUCTIONS:
        found = alike(OF_THREE[name], other)
        if other == name:
            torch.testing.assert_close(torch.stack(list(found)), torch.ones(3).double(), rtol=0, atol=1e-12)
        else:
            assert found.both < 0.93


@pytest.mark.parametrize("k", [1, 2, 4, 6])
def test_proposition_1_is_itself_for_any_number_of_bits(k):
    torch.testing.assert_close(
        torch.stack(list(alike(one_a_pattern(k), "proposition_1"))), torch.ones(3).double(), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("name", CONSTRUCTIONS)
def test_likeness_does_not_see_order_scales_splits_and_names_of_bits(name):
    circuit = OF_THREE[name]
    generator = torch.Generator().manual_seed(2)
    n = len(circuit.bias)
    order = torch.randperm(n, generator=generator)
    scale = torch.rand(n, generator=generator).double() + 0.1
    flips, moved = torch.tensor([-1, 1, 1]), [2, 0, 1]
    changed = ParityCircuit(
        (circuit.weight * scale[:, None])[order][:, moved] * flips,
        (circuit.bias * scale)[order],
        (circuit.output / scale)[order] * flips.prod(),
    )
    # One neuron as two halves, one dead one and one that adds nothing.
    more = ParityCircuit(
        torch.cat([changed.weight, changed.weight[:1], torch.tensor([[1, 1, 1], [1, 1, 1]]).double()]),
        torch.cat([changed.bias, changed.bias[:1], torch.tensor([-9, 1]).double()]),
        torch.cat([changed.output[:1] / 2, changed.output[1:], changed.output[:1] / 2, torch.tensor([7, 0]).double()]),
    )
    for other in CONSTRUCTIONS:
        found = torch.stack([torch.stack(list(alike(c, other))) for c in (circuit, changed, more)])
        torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-12)
        torch.testing.assert_close(found[2], found[0], rtol=0, atol=1e-12)


def test_by_definition_on_a_small_case():
    """Proposition 1 for two bits: four neurons on one pattern each; 'and' on ++, and one that fires on three."""
    circuit = ParityCircuit(
        torch.tensor([[1.0, 1.0], [-1.0, -1.0]]).double(),
        torch.tensor([-1.0, 1.0]).double(),
        torch.tensor([3.0, -2.0]).double(),
    )
    # Contributions, in the order --, -+, +-, ++: (0, 0, 0, 3) and (-6, -2, -2, 0).
    norms, nearest = (3, math.sqrt(44)), (1.0, 2 / math.sqrt(44))
    found = (norms[0] * nearest[0] + norms[1] * nearest[1]) / sum(norms)
    covered = (1.0 + 2 * 2 / math.sqrt(44) + 0) / 4
    expected = (found, covered, 2 * found * covered / (found + covered))
    assert [float(x) for x in alike(circuit, "proposition_1")] == pytest.approx(expected)


@pytest.mark.parametrize("name", CONSTRUCTIONS)
def test_outputs_of_the_wrong_sign_are_seen(name):
    circuit = OF_THREE[name]
    wrong = circuit._replace(output=circuit.output * torch.tensor([-1.0] + [1.0] * (len(circuit.output) - 1)))
    assert alike(wrong, name).both < 0.95
    assert alike(one_a_pattern(3)._replace(output=-one_a_pattern(3).output), "proposition_1").both == 0


def test_a_bias_that_makes_no_difference_but_of_scale_is_none():
    for bias in (-2.9, -1.0):
        assert (
            float(alike(one_a_pattern(3)._replace(bias=torch.full((8,), bias).double()), "proposition_1").both)
            > 1 - 1e-9
        )
    near = one_a_pattern(3)._replace(bias=torch.full((8,), -0.9).double())
    assert 0.95 < alike(near, "proposition_1").both < 1, "near a bound it is nearly the same, though it fires on four"


def test_what_is_missing_and_what_is_too_much_both_count():
    circuit, k = one_a_pattern(3), 3
    few = torch.arange(2**k) < 4
    found = alike(circuit, "proposition_1", few)
    assert (float(found.found), float(found.covered)) == (1, 0.5)
    more = ParityCircuit(
        *(torch.cat(parts) for parts in zip(circuit, circuit._replace(output=-circuit.output), strict=True))
    )
    found = alike(more, "proposition_1")
    assert (float(found.found), float(found.covered)) == (0.5, 1)
    assert float(found.both) == pytest.approx(2 / 3)


def test_nothing_chosen_or_nothing_that_fires_is_like_nothing():
    circuit = one_a_pattern(3)
    dead = circuit._replace(bias=circuit.bias - 5)
    for found in (alike(circuit, "proposition_1", torch.zeros(8, dtype=torch.bool)), alike(dead, "one_star")):
        assert found.covered == 0
        assert found.found.isnan()
        assert found.both.isnan()
    empty = ParityCircuit(circuit.weight[:0], circuit.bias[:0], circuit.output[:0])
    assert alike(empty, "two_stars").both.isnan()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_chosen_neuron_that_is_no_number_makes_all_nan_and_others_do_not_count(bad):
    circuit = one_a_pattern(3)
    circuit = circuit._replace(weight=circuit.weight.clone())
    circuit.weight[3, 1] = bad
    assert all(values.isnan() for values in alike(circuit, "one_star"))
    chosen = torch.arange(8) != 3
    assert alike(circuit, "proposition_1", chosen).found == 1


def test_leading_dimensions_are_those_of_each_alone():
    circuits = [drawn(5, 3, seed) for seed in range(4)]
    batched = ParityCircuit(*(torch.stack(parts).unflatten(0, (2, 2)) for parts in zip(*circuits, strict=True)))
    chosen = torch.rand(2, 2, 5, generator=torch.Generator().manual_seed(0)) < 0.7
    for name in CONSTRUCTIONS:
        together = torch.stack(list(alike(batched, name, chosen)), dim=-1).flatten(0, 1)
        alone = torch.stack(
            [torch.stack(list(alike(c, name, m))) for c, m in zip(circuits, chosen.flatten(0, 1), strict=True)]
        )
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-12, equal_nan=True)
    counts = count_neurons(batched, chosen)
    assert counts.shape == (2, 2, 3, 8)
    assert torch.equal(counts[1, 0], count_neurons(circuits[2], chosen[1, 0]))


def test_a_construction_for_other_bits_is_refused():
    with pytest.raises(ValueError, match=r"construction: expected contributions \(image, neuron, 4\), got \(1, 8, 8\)"):
        likeness(one_a_pattern(2), torch.ones(4, dtype=torch.bool), constructions(3)["proposition_1"])
