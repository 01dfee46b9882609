"""The least norm of a network that computes a parity: by random search, by hand, and with the claim's numbers wrong."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from grok_callbacks.functional.parity_circuits import (
    ParityCircuit,
    efficiency,
    four_neurons,
    nearer_half,
    one_a_pattern,
    one_star,
    sign_patterns,
    two_stars,
)
from grok_lightning.theory import parity_norm as module
from grok_lightning.theory.parity import (
    effective_sparsity,
    network_of,
    norm_at_margin_one,
    squared_norm,
)
from grok_lightning.theory.parity_norm import (
    Correlation,
    _cost_but_one,
    _costs_without_biases,
    draw_least_norm,
    firing_sets,
    largest_correlation,
    least_norm,
    least_norm_network,
)

LEAST = {1: 2 * math.sqrt(2), 2: 4 * math.sqrt(2), 3: 16.0, 4: 16.0}


def correlation_by_definition(neuron):
    """|mean of parity times activation| per norm, in plain Python."""
    *weights, bias = neuron
    terms = [
        math.prod(row) * max(0.0, sum(w * x for w, x in zip(weights, row, strict=True)) + bias)
        for row in product([-1, 1], repeat=len(weights))
    ]
    return abs(math.fsum(terms)) / len(terms) / math.hypot(*neuron)


# The best neurons.


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_the_largest_correlation_is_attained_by_the_neurons_that_come_with_it(k):
    found = largest_correlation(k)
    assert found.value == pytest.approx(2 / LEAST[k], rel=1e-14)
    for neuron in found.neurons.tolist():
        assert correlation_by_definition(neuron) == pytest.approx(found.value, rel=1e-8)
    expected = [[1.0] * k + [b] for b in ([1.0] if k == 1 else [-1.0, 1.0] if k == 3 else [0.0])]
    assert found.neurons.tolist() == expected


@pytest.mark.parametrize(("k", "spare"), [(1, 0), (2, 0), (3, 0), (4, 0), (1, 1), (1, 2), (2, 1), (3, 1), (3, 2)])
def test_no_drawn_neuron_does_better(k, spare):
    generator, n = np.random.default_rng(k), k + spare
    rows = np.c_[sign_patterns(n).numpy(), np.ones(2**n)]
    neurons = generator.standard_normal((20_000, n + 1))
    near = generator.choice([-1.0, 0.0, 1.0], (20_000, n + 1)) + 0.05 * generator.standard_normal((20_000, n + 1))
    for drawn in (neurons, near):
        means = np.abs(np.maximum(drawn @ rows.T, 0) @ rows[:, :k].prod(axis=1)) / 2**n
        largest = (means / np.linalg.norm(drawn, axis=1)).max()
        assert largest <= 2 / LEAST[k]
    assert largest > 0.95 * 2 / LEAST[k]


@pytest.mark.parametrize(("k", "spare"), [(1, 1), (1, 2), (2, 1), (3, 1)])
def test_bits_besides_do_not_help(k, spare):
    alone, beside = largest_correlation(k), largest_correlation(k, spare)
    assert beside.value == pytest.approx(alone.value, rel=1e-14)
    weights, others, bias = np.split(beside.neurons, [k, k + spare], axis=1)
    assert not others.any()
    assert np.c_[weights, bias].tolist() == alone.neurons.tolist()


def test_a_weight_off_the_bits_is_no_loss_to_either_half_but_the_halves_cancel():
    """For k = 3 and no bias, both shifted neurons are best, and as long as the neuron itself: their means differ."""
    both = [correlation_by_definition([1, 1, 1, b]) * 2 for b in (-1, 1)]  # of length 2
    assert both == [pytest.approx(2 / 8)] * 2
    rows = sign_patterns(4)
    mean = (rows[:, :3].prod(dim=1) * torch.relu(rows.sum(dim=1))).mean()
    assert mean == 0


def test_a_neuron_whose_mean_is_negative_counts_by_its_size(monkeypatch):
    """Of relu(-x) alone the mean of x times it is -1/2; the cone of -x has no larger one."""
    monkeypatch.setattr(module, "firing_sets", lambda k, alike: np.array([[True, False]]))
    found = largest_correlation.__wrapped__(1)
    assert found.value == pytest.approx(1 / math.sqrt(2))
    assert found.neurons.tolist() == [[1, 1]]


def test_what_is_kept_for_later_calls_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        largest_correlation(2).neurons[0, 0] = 7.0


@pytest.mark.parametrize("k", [1, 2, 3])
def test_firing_sets_are_those_that_a_plane_cuts_off(k):
    """Of all sets of patterns, each tried by linear programming."""
    rows = np.c_[sign_patterns(k).numpy(), np.ones(2**k)]
    found = {tuple(fires) for fires in firing_sets(k).tolist()}
    cut_off = set()
    for fires in product([False, True], repeat=2**k):
        sides = np.where(fires, -1.0, 1.0)[:, None] * rows
        if linprog(np.zeros(k + 1), sides, -np.ones(2**k), bounds=(None, None)).status == 0:
            cut_off.add(fires)
    assert found == cut_off


def test_firing_sets_of_falling_weights_give_all_others_by_order_and_signs():
    patterns = sign_patterns(3).long()
    places = {tuple(row): i for i, row in enumerate(patterns.tolist())}
    alike = set()
    for fires in firing_sets(3, alike=False).tolist():
        for order in ([0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]):
            for signs in patterns:
                moved = (patterns * signs)[:, order]
                alike.add(tuple(fires[places[tuple(row)]] for row in moved.tolist()))
    assert alike == {tuple(fires) for fires in firing_sets(3).tolist()}


@pytest.mark.parametrize(("k", "spare"), [(0, 1), (-1, 3), (2, -1)])
def test_no_bits_have_no_parity(k, spare):
    with pytest.raises(
        ValueError, match=f"expected k of at least 1 and no less than 0 spare bits, got {k} and {spare}"
    ):
        largest_correlation(k, spare)


@pytest.mark.parametrize("k", [0, 5])
def test_only_up_to_four_bits_are_gone_through(k):
    with pytest.raises(ValueError, match=f"k: expected 1 to 4 bits, got {k}"):
        firing_sets(k)


def test_spare_bits_count_as_bits():
    with pytest.raises(ValueError, match="k: expected 1 to 4 bits, got 5"):
        largest_correlation(5)
    with pytest.raises(ValueError, match="k: expected 1 to 4 bits, got 5"):
        largest_correlation(3, 2)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_linear_programming_finds_no_cheaper_network(k):
    """The least cost of a network of many given neurons, the best ones among them, is that of the bound."""
    generator = np.random.default_rng(0)
    signs = sign_patterns(k).numpy()
    best = np.concatenate([np.c_[signs, np.full(2**k, bias)] for bias in (-1.0, 0.0, 1.0, 2.0 - k)])
    neurons = np.concatenate([best, generator.standard_normal((500, k + 1))])
    neurons /= np.linalg.norm(neurons, axis=1, keepdims=True)
    margins = signs.prod(axis=1)[:, None] * np.maximum(signs @ neurons[:, :-1].T + neurons[:, -1], 0)
    found = linprog(np.ones(2 * len(neurons)), np.c_[-margins, margins], -np.ones(2**k))
    assert 2 * found.fun == pytest.approx(LEAST[k], rel=1e-7)


# Circuits.


@pytest.mark.parametrize("k", range(1, 9))
def test_neurons_of_equal_weights_compute_the_parity(k):
    inputs = sign_patterns(k + 1)
    secret = list(range(k, 0, -1))
    outputs = least_norm_network(k + 1, secret, 2**k + 3).logits(inputs)[:, 0]
    assert torch.allclose(outputs, inputs[:, 1:].prod(dim=1), atol=1e-13)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_they_cost_the_least(k):
    assert norm_at_margin_one(least_norm_network(k, range(k)), sign_patterns(k), range(k)) == pytest.approx(LEAST[k])


def test_four_neurons_do_for_three_bits():
    network = network_of(two_stars(), 3, range(3))
    patterns = sign_patterns(3)
    assert torch.equal(network.logits(patterns)[:, 0], patterns.prod(dim=1))
    assert norm_at_margin_one(network, patterns, range(3)) == pytest.approx(16, rel=1e-14)
    assert squared_norm(network) == 2 * (4 + 2.25) + 2 * (4 + 0.25)
    assert effective_sparsity(network, patterns, range(3)) == (4, 4)


def test_stars_are_made_of_neurons_of_least_norm():
    for circuit in (one_star(), two_stars()):
        neurons = torch.cat([circuit.weight, circuit.bias[:, None]], dim=1).tolist()
        assert [correlation_by_definition(neuron) for neuron in neurons] == pytest.approx([1 / 8] * len(neurons))


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_the_callbacks_measure_efficiency_by_the_same_bound(k):
    """Of networks of the same margin everywhere: the bound over their norm."""
    for circuit in (nearer_half(k), one_a_pattern(k), *([one_star(), two_stars(), four_neurons()] if k == 3 else [])):
        chosen = torch.ones_like(circuit.bias, dtype=torch.bool)
        found = float(efficiency(*circuit, torch.arange(k), chosen))
        cost = norm_at_margin_one(network_of(circuit, k, range(k)), sign_patterns(k), range(k))
        assert found == pytest.approx(2 / largest_correlation(k).value / cost, rel=1e-12)


def failing():
    return [line.what for line in least_norm(0) if not line.holds]


def test_the_claim_fails_where_the_best_neuron_is_overlooked(monkeypatch):
    def shy(k, spare=0):
        found = largest_correlation(k, spare)
        return Correlation(0.9 * found.value, found.neurons)

    monkeypatch.setattr(module, "largest_correlation", shy)
    wrong = failing()
    assert "2 / M for k = 1 to 4: 2√2, 4√2, 16, 16" in wrong
    assert "drawn networks of margin 1 have at least 2 / M" in wrong


@pytest.mark.parametrize("name", ["weight", "bias", "output"])
def test_the_claim_fails_with_wrong_neurons(monkeypatch, name):
    kept = nearer_half

    def tampered(k):
        circuit = kept(k)
        values = getattr(circuit, name).clone()
        values.view(-1)[0] += 0.1
        return circuit._replace(**{name: values})

    monkeypatch.setattr(module, "nearer_half", tampered)
    wrong = failing()
    assert "2^k such neurons: their squared norm is 2 / M" in wrong
    assert "they compute the parity itself, k = 1 to 8" in wrong


def test_the_claim_fails_where_sets_are_missed(monkeypatch):
    monkeypatch.setattr(module, "LARGEST_WEIGHTS", (1, 1, 2, 2))
    monkeypatch.setattr(module, "largest_correlation", largest_correlation.__wrapped__)  # what is wrong is not kept
    assert "sets that a neuron can fire on: 4, 14, 104, 1882" in failing()


@pytest.mark.parametrize("what", ["value", "neurons"])
def test_the_claim_fails_where_a_bit_besides_helps(monkeypatch, what):
    def helped(k, spare=0):
        found = largest_correlation(k, spare)
        return found._replace(**{what: getattr(found, what) + 1e-6}) if spare else found

    monkeypatch.setattr(module, "largest_correlation", helped)
    line = "2 / M for k of k + 1 bits, k = 1 to 3: the same" if what == "value" else BESIDE
    assert failing() == [line]


BESIDE = "weights of the best neurons on the other bit"


def test_without_a_margin_on_one_input_seven_neurons_do():
    """By hand: each has the margin 2 on its own pattern alone, and a length of 2."""
    assert _cost_but_one() == pytest.approx(2 * 7 * 2 / 2)
    weight, bias, output = one_a_pattern(3)
    seven = network_of(ParityCircuit(weight[1:], bias[1:] + 1, output[1:]), 3, range(3))
    assert norm_at_margin_one(seven, sign_patterns(3), range(3)) == math.inf


def test_without_biases_the_norm_is_less_by_their_share():
    """For odd k a bias has the size of each of k weights."""
    assert _costs_without_biases().tolist() == pytest.approx([LEAST[k] * math.sqrt(k / (k + 1)) for k in (1, 3)])


def test_only_inputs_twice_as_large_show_that_they_are_needed(monkeypatch):
    def not_twice_as_large(network, inputs, secret):
        return norm_at_margin_one(network, inputs.sign(), secret)

    monkeypatch.setattr(module, "norm_at_margin_one", not_twice_as_large)
    assert failing() == ["without: inputs −1 and +1 (twice as large)"]


def test_the_figure_has_the_costs_in_its_caption():
    figure = draw_least_norm()
    caption = " ".join(figure.get_supxlabel().split())
    assert "the least of all networks, 16. Prop. 1: 42.3; Prop. 1, bias 2 − k: 16.0; Prop. 2: 265.8" in caption
    assert "Prop. 3: 18.0; one star: 16.0; two stars: 16.0." in caption
    left, right = figure.axes
    assert sorted(text.get_text() for text in left.texts) == [
        "Prop. 1",
        "Prop. 1, bias 2 − k",
        "Prop. 2",
        "Prop. 3",
        "one star",
        "two stars",
    ]
    for line in right.lines:
        assert max(line.get_ydata()) <= 1 + 1e-12
    figure.canvas.draw()
