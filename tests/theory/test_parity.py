"""The networks of the parity proofs: what they compute, what they cost, and that callbacks take them as they are."""

import math
from itertools import product

import pytest
import torch
from matplotlib.figure import Figure

from grok_callbacks import (
    EveryNSteps,
    NeuronNormTracker,
    SparseSubnetworkExtractor,
    SubnetworkComparison,
    WeightTrajectory,
)
from grok_callbacks.functional.parity_circuits import (
    ParityCircuit,
    nearer_half,
    one_a_pattern,
    sign_patterns,
    six_neurons,
)
from grok_lightning.data import TableData
from grok_lightning.figures.style import remove_caption
from grok_lightning.modules import MLP
from grok_lightning.networks import MLPNetwork
from grok_lightning.tasks import SparseParity
from grok_lightning.theory import parity
from grok_lightning.theory.parity import (
    balanced,
    draw_propositions,
    effective_sparsity,
    network_of,
    norm_at_margin_one,
    proposition_1,
    proposition_1_network,
    proposition_2,
    proposition_2_network,
    proposition_3,
    proposition_3_network,
    squared_norm,
    wrong_signs,
)

CLAIMS = (proposition_1, proposition_2, proposition_3)
BUILDERS = [(proposition_1_network, 8), (proposition_2_network, 6), (proposition_3_network, 4)]
IDS = ["proposition_1", "proposition_2", "proposition_3"]


def output_by_definition(network, row):
    """One row through the weights, in plain Python."""
    state = network.state_dict()
    total = 0.0
    for weights, bias, output in zip(
        state["hidden.0.weight"][0].tolist(),
        state["hidden.0.bias"][0].tolist(),
        state["output.weight"][0, 0].tolist(),
        strict=True,
    ):
        total += output * max(0.0, sum(w * x for w, x in zip(weights, row, strict=True)) + bias)
    return total


def with_circuit(network, change):
    """The network with its weights changed in place by ``change(weight, bias, output)`` of its one member."""
    state = {name: value.clone() for name, value in network.state_dict().items()}
    change(state["hidden.0.weight"][0], state["hidden.0.bias"][0], state["output.weight"][0, 0])
    return network.with_state(state)


# Building.


@pytest.mark.parametrize(("n", "secret"), [(1, [0]), (3, [2, 0, 1]), (5, [4, 1]), (4, [3, 0, 2])], ids=str)
def test_one_neuron_a_pattern_computes_the_parity(n, secret):
    network = proposition_1_network(n, secret)
    for row in product([-1.0, 1.0], repeat=n):
        assert output_by_definition(network, row) == math.prod(row[i] for i in secret)
        assert network.logits(torch.tensor([row], dtype=torch.float64)).item() == output_by_definition(network, row)


@pytest.mark.parametrize(("n", "secret"), [(3, [0, 1, 2]), (5, [4, 0, 2]), (6, [1, 5, 3])], ids=str)
def test_six_and_four_neurons_compute_the_parity_of_three(n, secret):
    six, four = proposition_2_network(n, secret), proposition_3_network(n, secret)
    for row in product([-1.0, 1.0], repeat=n):
        value = math.prod(row[i] for i in secret)
        assert output_by_definition(four, row) == value
        # The second secret bit decides which of the even patterns has a large neuron subtracted from it.
        assert output_by_definition(six, row) == (-1 if value < 0 else 10 if row[secret[1]] > 0 else 7)


@pytest.mark.parametrize(("build", "n_neurons"), BUILDERS, ids=IDS)
@pytest.mark.parametrize("width", [None, 1000])
def test_a_network_is_one_that_the_module_trains(build, n_neurons, width):
    network = build(7, [5, 0, 3], width)
    assert isinstance(network, MLPNetwork)
    state = network.state_dict()
    width = n_neurons if width is None else width
    shapes = {"hidden.0.weight": (1, width, 7), "hidden.0.bias": (1, width), "output.weight": (1, 1, width)}
    assert {name: tuple(value.shape) for name, value in state.items()} == shapes
    assert {value.dtype for value in state.values()} == {torch.float64}
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert not state["hidden.0.weight"][0, :, [1, 2, 4, 6]].any()
    assert not any(value[..., n_neurons:, :].any() for name, value in state.items() if name == "hidden.0.weight")
    assert not state["hidden.0.bias"][:, n_neurons:].any()
    assert not state["output.weight"][..., n_neurons:].any()
    assert network.activation == "relu"


def test_weights_follow_the_order_of_the_positions():
    weight = proposition_2_network(5, [4, 0, 2]).state_dict()["hidden.0.weight"][0]
    assert torch.equal(weight[:, [4, 0, 2]], six_neurons().weight)


def test_positions_may_be_a_tensor():
    task = SparseParity(20, 3, subset="drawn")
    inputs = task.draw(500, torch.Generator().manual_seed(0)).double()
    network = proposition_1_network(20, task.secret)
    assert torch.equal(network.logits(inputs)[:, 0], task.label(inputs))


def test_building_draws_no_random_numbers():
    before = torch.get_rng_state()
    first, second = (proposition_1_network(4, [0, 1]).state_dict() for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("n", "secret", "width", "message"),
    [
        (5, [0, 1], None, r"secret: expected 3 positions, for a circuit of 3 bits, got 2"),
        (5, [0, 1, 2, 3], None, r"secret: expected 3 positions, for a circuit of 3 bits, got 4"),
        (5, [0, 1, 1], None, r"secret: expected different positions, 0 to 4, got \[0, 1, 1\]"),
        (5, [0, 1, 5], None, r"secret: expected different positions, 0 to 4, got \[0, 1, 5\]"),
        (5, [0, 1, -1], None, r"secret: expected different positions, 0 to 4, got \[0, 1, -1\]"),
        (2, [0, 1, 2], None, r"secret: expected different positions, 0 to 1"),
        (5, [0, 1, 2], 5, r"width: expected at least the 6 neurons of the circuit, got 5"),
    ],
)
def test_what_cannot_be_built_is_refused(n, secret, width, message):
    with pytest.raises(ValueError, match=message):
        proposition_2_network(n, secret, width)


def test_a_parity_of_no_bits_is_refused():
    with pytest.raises(ValueError, match="expected at least 1 bit"):
        proposition_1_network(4, [])


def test_a_position_is_a_whole_number():
    with pytest.raises(TypeError):
        proposition_1_network(4, [0.5])


# Measuring.


def test_all_patterns_are_all():
    assert sign_patterns(3).tolist() == [list(row) for row in product([-1, 1], repeat=3)]


def test_an_output_of_0_has_the_wrong_sign():
    network = network_of(ParityCircuit(*(value * 0 for value in one_a_pattern(2))), 2, [0, 1])
    assert wrong_signs(network, sign_patterns(2), [0, 1]).tolist() == [1, 1, 1, 1]
    assert wrong_signs(proposition_1_network(2, [0, 1]), sign_patterns(2), [0, 1]).tolist() == [0, 0, 0, 0]
    assert wrong_signs(proposition_1_network(2, [0]), sign_patterns(2), [1]).tolist() == [0, 1, 1, 0]


def test_the_squared_norm_is_of_all_parameters():
    for k in range(1, 9):
        by_hand = sum(k + (k - 1) ** 2 + 1 for _ in product([-1, 1], repeat=k))
        assert squared_norm(proposition_1_network(k + 1, range(k), 300)) == by_hand
    assert squared_norm(proposition_2_network(4, range(3))) == 796
    assert squared_norm(proposition_3_network(4, range(3))) == 20


@pytest.mark.parametrize(("build", "n_neurons"), BUILDERS, ids=IDS)
def test_a_balanced_network_is_the_same_function_with_the_least_norm(build, n_neurons):
    network = build(4, [0, 1, 2], 20)
    other = balanced(network)
    inputs = torch.randn(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.allclose(other.logits(inputs), network.logits(inputs), rtol=1e-12, atol=1e-12)
    state = other.state_dict()
    into = state["hidden.0.weight"][0].square().sum(dim=1) + state["hidden.0.bias"][0].square()
    assert torch.allclose(into, state["output.weight"][0, 0].square(), rtol=1e-12)
    for up in (0.9, 1.1):  # any rescaling of any neuron makes it larger
        for j in range(n_neurons):

            def rescale(weight, bias, output, j=j, up=up):
                weight[j] *= up
                bias[j] *= up
                output[j] /= up

            assert squared_norm(with_circuit(other, rescale)) > squared_norm(other)
    assert squared_norm(balanced(other)) == pytest.approx(squared_norm(other), rel=1e-14)


def test_balancing_leaves_the_network_as_it_was_and_sets_idle_neurons_to_0():
    network = with_circuit(proposition_1_network(3, [0, 1], 6), lambda weight, bias, output: weight[4].fill_(7.0))
    other = balanced(network)
    assert network.state_dict()["hidden.0.weight"][0, 4].tolist() == [7, 7, 7]
    assert other.state_dict()["hidden.0.weight"][0, 4].tolist() == [0, 0, 0]
    assert all(value.isfinite().all() for value in other.state_dict().values())


def test_balancing_is_member_by_member():
    networks = [proposition_2_network(3, range(3), 8), proposition_1_network(3, range(3), 8)]
    states = [network.state_dict() for network in networks]
    both = networks[0].with_state({name: torch.cat([state[name] for state in states]) for name in states[0]})
    for e, network in enumerate(networks):
        alone = balanced(network).state_dict()
        assert all(torch.equal(balanced(both).state_dict()[name][e], value[0]) for name, value in alone.items())


@pytest.mark.parametrize("options", [{"activation": "square"}, {"hidden": [2, 2]}, {"hidden": []}, {"bias": False}])
def test_only_one_relu_layer_with_a_bias_is_balanced(options):
    network = MLPNetwork(
        **({"n_inputs": 2, "n_outputs": 1, "hidden": [3], "generators": [torch.Generator()]} | options)
    )
    with pytest.raises(ValueError, match="expected a network with one hidden ReLU layer with a bias"):
        balanced(network)


def test_the_norm_at_margin_one_does_not_depend_on_the_scale_of_the_parameters():
    network = proposition_3_network(3, range(3))

    def scale(weight, bias, output):
        weight *= 3
        bias *= 3
        output *= 5

    assert norm_at_margin_one(network, sign_patterns(3), range(3)) == pytest.approx(18, rel=1e-14)
    other = with_circuit(network, scale)
    assert other.logits(sign_patterns(3)).abs().min().item() == 15
    assert norm_at_margin_one(other, sign_patterns(3), range(3)) == pytest.approx(18, rel=1e-14)


def test_the_norm_at_margin_one_is_for_the_smallest_margin():
    network = proposition_2_network(3, range(3))  # margins 1, 7 and 10
    even = sign_patterns(3)[sign_patterns(3).prod(dim=1) > 0]
    whole, part = (norm_at_margin_one(network, rows, range(3)) for rows in (sign_patterns(3), even))
    assert part == pytest.approx(whole / 7, rel=1e-14)


def test_a_network_that_errs_has_no_norm_at_margin_one():
    assert norm_at_margin_one(proposition_1_network(3, [0, 1]), sign_patterns(3), [1, 2]) == math.inf


@pytest.mark.parametrize("k", [2, 4])
def test_a_margin_counts_the_sign_of_the_product_alone(k):
    """Without biases, outputs at inputs of -2 and +2 are twice those at -1 and +1, whatever k is."""
    network, inputs = network_of(nearer_half(k), k, range(k)), sign_patterns(k)
    small, large = (norm_at_margin_one(network, rows, range(k)) for rows in (inputs, 2 * inputs))
    assert large == pytest.approx(small / 2, rel=1e-14)


def test_the_norm_at_margin_one_of_inputs_of_any_size_is_by_definition():
    inputs = 1 + torch.rand(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inputs *= sign_patterns(2).repeat(13, 1)[:50]
    network = proposition_1_network(2, [0, 1])
    rows = [[float(x) for x in row] for row in inputs]
    margin = min(math.copysign(1, row[0] * row[1]) * output_by_definition(network, row) for row in rows)
    assert norm_at_margin_one(network, inputs, [0, 1]) == pytest.approx(squared_norm(balanced(network)) / margin)


@pytest.mark.parametrize("k", range(1, 7))
@pytest.mark.parametrize("size", [1, 2])
def test_effective_sparsity_is_the_number_of_patterns(k, size):
    inputs = size * sign_patterns(k)
    network = network_of(one_a_pattern(k)._replace(bias=size * one_a_pattern(k).bias), k, range(k), 100)
    assert effective_sparsity(network, inputs, range(k)) == (2**k, 2**k)


def test_effective_sparsity_ranks_by_weights():
    """A constant neuron comes after all that have weights; here after one that adds nothing."""

    def grow(weight, bias, output):
        weight[4] = 1.0

    network = with_circuit(proposition_3_network(3, range(3), 5), grow)
    assert effective_sparsity(network, sign_patterns(3), range(3)) == (5, 5)


# The claims.


@pytest.mark.parametrize("claim", CLAIMS, ids=IDS)
def test_a_claim_is_a_function_of_the_seed_and_holds(claim):
    lines, others = claim(3), claim(4)
    assert [line for line in lines + others if not line.holds] == []
    assert claim(3) == lines
    assert others != lines


def failing(claim):
    return [line.what for line in claim(0) if not line.holds]


def tampered(circuit, **changes):
    return circuit._replace(**{name: change(getattr(circuit, name)) for name, change in changes.items()})


def test_proposition_1_fails_with_a_wrong_bias_or_output(monkeypatch):
    kept = parity.one_a_pattern
    monkeypatch.setattr(parity, "one_a_pattern", lambda k: tampered(kept(k), bias=lambda b: b + 1))
    assert failing(proposition_1)  # the signs are right, the values are not
    assert not any("wrong signs" in what for what in failing(proposition_1))
    monkeypatch.setattr(parity, "one_a_pattern", lambda k: tampered(kept(k), bias=lambda b: b + 2.5))
    assert any("wrong signs" in what for what in failing(proposition_1))
    monkeypatch.setattr(parity, "one_a_pattern", lambda k: tampered(kept(k), output=lambda u: -u))
    assert any("wrong signs" in what for what in failing(proposition_1))


@pytest.mark.parametrize("name", ["weight", "bias", "output"])
@pytest.mark.parametrize(("maker", "claim"), [("six_neurons", proposition_2), ("four_neurons", proposition_3)])
def test_any_wrong_number_fails_propositions_2_and_3(monkeypatch, maker, claim, name):
    kept = getattr(parity, maker)()
    for place in range(getattr(kept, name).numel()):

        def shift(values, place=place):
            values = values.clone()
            values.view(-1)[place] += 0.25
            return values

        monkeypatch.setattr(parity, maker, lambda shift=shift: tampered(kept, **{name: shift}))
        assert failing(claim), place


@pytest.mark.parametrize("claim", CLAIMS, ids=IDS)
def test_a_hypothesis_that_is_kept_shows_nothing(monkeypatch, claim):
    """The claim's own networks, with inputs of -1 and +1, the bits they were built for, of these three, and biases."""
    monkeypatch.setattr(parity, "wrong_signs", signs_with_hypotheses_kept)
    monkeypatch.setattr(MLPNetwork, "with_state", lambda network, state: network)
    monkeypatch.setattr(parity, "_on_sums_of", lambda k: wrong_signs(proposition_3_network(3, range(3)), *three_bits()))
    needed = [line.what for line in claim(0) if line.what.startswith("without: ")]
    assert len(needed) == {proposition_1: 3, proposition_2: 4, proposition_3: 5}[claim]
    assert set(needed) <= set(failing(claim))


def three_bits():
    return sign_patterns(3), range(3)


def signs_with_hypotheses_kept(network, inputs, secret):
    """On inputs of -1 and +1, for the parity of the bits that the network has weights on."""
    seen = network.state_dict()["hidden.0.weight"][0].any(dim=0).nonzero().flatten().tolist()
    return wrong_signs(network, inputs.sign(), seen)


@pytest.mark.parametrize("k", range(1, 9))
def test_without_biases_signs_are_those_of_a_sum_over_distances(k):
    """Neurons d flips away from the input add relu(k - 2d), with the sign of the parity for even d."""
    network = with_circuit(proposition_1_network(k, range(k)), lambda weight, bias, output: bias.zero_())
    margin = sum((-1) ** d * math.comb(k, d) * max(k - 2 * d, 0) for d in range(k + 1))
    assert (network.logits(sign_patterns(k))[:, 0] * sign_patterns(k).prod(dim=1)).tolist() == [margin] * 2**k
    assert (margin > 0) == (k in (1, 2, 6))


@pytest.mark.parametrize("maker", ["one_a_pattern", "six_neurons", "four_neurons"])
def test_a_neuron_too_many_can_be_left_out(maker):
    """One neuron of half the output twice: without either, the other is still there."""
    circuit = one_a_pattern(3) if maker == "one_a_pattern" else getattr(parity, maker)()
    output = circuit.output.clone()
    output[0] /= 2
    doubled = [torch.cat([values, values[:1]]) for values in (circuit.weight, circuit.bias, output)]
    line = parity._left_out([(network_of(ParityCircuit(*doubled), 3, range(3)), 3)])
    assert (line.what, line.computed, line.holds) == (
        f"neurons that can be left out, of {len(output) + 1}",
        2,
        False,
    )


@pytest.mark.parametrize(("build", "n_neurons"), BUILDERS, ids=IDS)
def test_no_neuron_can_be_left_out(build, n_neurons):
    for j in range(n_neurons):
        network = with_circuit(build(3, range(3)), lambda weight, bias, output, j=j: output[j].zero_())
        assert wrong_signs(network, sign_patterns(3), range(3)).any()


@pytest.mark.parametrize(("a", "right"), [(1.4, False), (1.5, True), (2.0, True), (10.0, True), (50.0, True)])
def test_the_large_weights_of_proposition_2_need_not_be_10(a, right):
    def resize(weight, bias, output):
        weight[0, 2], weight[3, 2] = a, -a
        bias[[0, 3]] = 1 - a

    network = with_circuit(proposition_2_network(3, range(3)), resize)
    outputs = network.logits(sign_patterns(3)).flatten()
    same = torch.allclose(outputs, proposition_2_network(3, range(3)).logits(sign_patterns(3)).flatten(), atol=1e-12)
    assert same == right


@pytest.mark.parametrize("k", [1, 2, 3, 6])
@pytest.mark.parametrize(("up", "right"), [(-1.0, False), (-0.99, True), (1.0, True), (1.01, False)])
def test_signs_of_proposition_1_are_right_with_biases_up_to_2_less_k(k, up, right):
    """Or, for one bit, with larger ones yet: both neurons fire, and the right one more."""
    network = with_circuit(proposition_1_network(k, range(k)), lambda weight, bias, output: bias.add_(up))
    outputs = network.logits(sign_patterns(k)).flatten() * sign_patterns(k).prod(dim=1)
    exact = bool((outputs > 0).all()) and bool(torch.allclose(outputs, outputs[:1], atol=1e-12))
    firing = torch.relu(network.hidden[0](sign_patterns(k).unsqueeze(0)))[0] > 0
    assert (exact and int(firing.sum()) == 2**k) == right


# The figure.


def test_the_figure_shows_every_neuron_on_every_pattern():
    figure = draw_propositions()
    assert isinstance(figure, Figure)
    assert [len(axes.get_yticklabels()) for axes in figure.axes] == [9, 7, 5]
    sums = [[text.get_text() for text in axes.texts][-8:] for axes in figure.axes]
    assert [sum(int(text.replace("−", "-")) for text in row) for row in sums] == [0, 30, 0]
    caption = " ".join(figure.get_supxlabel().split())
    assert "64 and 42.3 (8 neurons); 796 and 265.8 (6 neurons); 20 and 18.0 (4 neurons)" in caption
    remove_caption(figure)
    figure.canvas.draw()


# The callbacks of trained networks.


def monitors(tmp_path, every=1):
    layers = ("network.hidden.0", "network.output")
    return {
        "weights": WeightTrajectory(EveryNSteps(every), directory=tmp_path / "weights"),
        "norms": NeuronNormTracker("network.hidden.0", schedule=EveryNSteps(every)),
        "sizes": SparseSubnetworkExtractor(*layers, schedule=EveryNSteps(every)),
        "sets": SubnetworkComparison(*layers),
    }


def stand_still(parameters):
    return torch.optim.SGD(parameters, lr=0.0)


@pytest.mark.parametrize(("build", "n_neurons"), BUILDERS, ids=IDS)
@pytest.mark.parametrize("width", [None, 1000])
def test_callbacks_take_a_constructed_network(make_trainer, tmp_path, build, n_neurons, width):
    task = SparseParity(40, 3, subset="drawn")
    network = build(40, task.secret, width)
    module = MLP(hidden=[n_neurons if width is None else width], optimizer=stand_still)
    module.network = network.float()
    used = monitors(tmp_path)
    trainer = make_trainer(max_steps=1, callbacks=list(used.values()))
    trainer.fit(module, TableData(task, n_held_out=500))
    assert used["sizes"].history["size"].tolist() == [[[n_neurons] * 2]] * 2
    assert used["sizes"].history["active"][0, 0].nonzero().flatten().tolist() == list(range(n_neurons))
    norms = used["norms"].history["norm"][0, 0].double()
    assert torch.allclose(norms, network.state_dict()["hidden.0.weight"][0].double().norm(dim=1))
    generalizing, complementary, control = range(3)
    agreement = used["sets"].history["agreement"][-1, 0]  # (split, set)
    assert agreement[:, generalizing].tolist() == [1, 1]
    assert agreement[:, complementary].tolist() == [0, 0]  # no neurons, or none but zeros, give 0
    if width is not None:
        assert (agreement[:, control] < 0.5).all()
    assert used["sets"].history["sensitivity"][-1, 0, :2].tolist() == [3, 3]  # of the parity of three bits
    assert torch.equal(module.network.state_dict()["output.weight"], network.state_dict()["output.weight"])


def test_three_constructions_are_a_population(make_trainer, tmp_path):
    task = SparseParity(12, 3, subset="drawn")
    states = [build(12, task.secret, 8).state_dict() for build, _ in BUILDERS]
    members = {"seed": [0, 1, 2]}
    module = MLP(12, hidden=[8], members=members, optimizer=stand_still)
    module.load_state_dict(
        {f"network.{name}": torch.cat([state[name] for state in states]) for name in states[0]}, strict=False
    )
    used = monitors(tmp_path)
    data = TableData(task, train_size=500, n_held_out=200, members=members)
    make_trainer(max_steps=1, precision="64-true", callbacks=list(used.values())).fit(module, data)
    assert used["sizes"].history["size"][0].tolist() == [[8, 8], [6, 6], [4, 4]]
    assert used["sets"].history["agreement"][-1, :, :, 0].tolist() == [[1, 1]] * 3
    squares = used["norms"].history["norm"][0].square().sum(dim=1)
    assert squares.tolist() == pytest.approx([8 * 3, 2 * 102 + 4 * 3, 3 * 3])


def test_training_may_start_from_a_checkpoint_of_a_construction(make_trainer, tmp_path):
    task = SparseParity(12, 3, subset="drawn")
    first = MLP(12, hidden=[8], optimizer=stand_still)
    first.network = proposition_1_network(12, task.secret).float()
    data = TableData(task, train_size=500, n_held_out=200)
    trainer = make_trainer(max_steps=1)
    trainer.fit(first, data)
    trainer.save_checkpoint(tmp_path / "constructed.ckpt")
    second = MLP(12, hidden=[8], warm_start=str(tmp_path / "constructed.ckpt"))
    sizes = SparseSubnetworkExtractor("network.hidden.0", "network.output", schedule=EveryNSteps(100))
    make_trainer(max_steps=200, callbacks=[sizes]).fit(second, TableData(task, train_size=500, n_held_out=200))
    assert sizes.history["size"].tolist() == [[[8, 8]]] * 3
