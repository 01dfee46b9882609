"""The analytic networks, against formulas with plain numbers, and through the callback of trained ones."""

import math
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.optim import SGD

from grok_callbacks import EveryNSteps, FourierLogitSplitter
from grok_callbacks.functional import centre, frequency_power, totals, trigonometric_share
from grok_lightning import MLP, ModularArithmetic, TableData
from grok_lightning.theory import addition
from grok_lightning.theory.addition import (
    addition_network,
    analytic_addition,
    draw_random_phases,
    expected_accuracy,
    expected_share,
    logit_cube,
    logit_gap,
    network_of_waves,
    random_addition_network,
    random_phases,
    shared_accuracy,
)

AWKWARD = [2, 3, 4, 6, 9, 12]


def by_hand(p, neurons, activation=np.square):
    """The logits of neurons ``[(k, φ1, φ2, φ3), ...]``, one number at a time."""
    cube = np.zeros((p, p, p))
    for a, b, c in product(range(p), repeat=3):
        for k, first, second, third in neurons:
            seen = math.cos(2 * math.pi * k * a / p + first) + math.cos(2 * math.pi * k * b / p + second)
            cube[a, b, c] += activation(seen) * math.cos(2 * math.pi * k * c / p + third)
    return cube


def cosines(p, frequencies, scale):
    """The logits scale · Σ_k cos(2πk(a + b − c)/p), one number at a time."""
    cube = np.zeros((p, p, p))
    for a, b, c in product(range(p), repeat=3):
        cube[a, b, c] = scale * math.fsum(math.cos(2 * math.pi * k * (a + b - c) / p) for k in frequencies)
    return cube


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def share_of(cube):
    return trigonometric_share(totals(centre(cube))).item()


def plain_accuracy(cube):
    """With argmax, and no thought of ties."""
    p = len(cube)
    right = [int(cube[a, b].argmax()) == (a + b) % p for a, b in product(range(p), repeat=2)]
    return sum(right) / p**2


# Networks.


@pytest.mark.parametrize("p", [2, 3, 5, 6])
def test_a_network_of_waves_is_the_formula_of_the_paper(p):
    phases = torch.rand(7, 2, generator=generator(p), dtype=torch.float64) * 7
    frequencies = [1, p // 2, p - 1, p + 1, 1, -1, 1]
    network = network_of_waves(p, frequencies, phases)
    expected = by_hand(p, [(k, x, y, x + y) for k, (x, y) in zip(frequencies, phases.tolist(), strict=True)])
    assert (network.n_members, network.n_inputs, network.n_outputs) == (1, 2 * p, p)
    assert (network.activation, network.bias, network.output_bias) == ("square", False, False)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float64}
    assert logit_cube(network).shape == (1, p, p, p)
    np.testing.assert_allclose(logit_cube(network)[0], expected, atol=1e-13)


def test_the_phase_of_the_label_and_the_activation_may_be_others():
    phases = torch.rand(4, 3, generator=generator(), dtype=torch.float64) * 7
    network = network_of_waves(5, [1, 1, 2, 2], phases[:, :2], phases[:, 2], activation="relu")
    expected = by_hand(
        5, [(k, *row) for k, row in zip([1, 1, 2, 2], phases.tolist(), strict=True)], lambda x: max(x, 0)
    )
    np.testing.assert_allclose(logit_cube(network)[0], expected, atol=1e-13)


@pytest.mark.parametrize("grid", [1, 2, 3, 4])
def test_a_grid_has_every_pair_of_phases_at_every_frequency(grid):
    circle = [2 * math.pi * i / grid for i in range(grid)]
    neurons = [(k, x, y, x + y) for k in (1, 3) for x, y in product(circle, repeat=2)]
    cube = logit_cube(addition_network(7, [1, 3], grid))[0]
    np.testing.assert_allclose(cube, by_hand(7, neurons), atol=1e-12)


@pytest.mark.parametrize("p", [*AWKWARD, 5, 11, 15])
def test_a_grid_network_is_a_sum_of_cosines(p):
    network = addition_network(p)
    assert network.output.in_features == 9 * (p // 2)
    cube = logit_cube(network)[0]
    np.testing.assert_allclose(cube, cosines(p, range(1, p // 2 + 1), 4.5), atol=1e-12)
    assert plain_accuracy(cube) == 1
    assert share_of(cube) == pytest.approx(1, abs=1e-13)
    # Of all frequencies the sum is p/2 less 1/2 where a + b = c and −1/2 elsewhere, but for even p.
    if p % 2:
        one_hot = cube - cube[0, 0, 1]
        assert one_hot[0, 0, 0].item() == pytest.approx(9 * p / 4, rel=1e-13)
        assert logit_gap(p, range(1, p // 2 + 1)) == pytest.approx(9 * p / 4, rel=1e-13)


@pytest.mark.parametrize("p", [7, 12])
def test_frequencies_that_add_up_to_p_are_one(p):
    cubes = [logit_cube(addition_network(p, k)) for k in ([1, 2], [p - 1, 2], [p + 1, p - 2], [-1, 2])]
    for cube in cubes[1:]:
        torch.testing.assert_close(cube, cubes[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("p", "frequencies", "grid"), [(11, [3], 3), (40, [8, 5], 3), (37, [5, 9, 17], 4), (12, [4, 9], 5), (2, [1], 3)]
)
def test_the_lead_of_the_right_label_is_the_closed_form(p, frequencies, grid):
    cube = logit_cube(addition_network(p, frequencies, grid))[0]
    leads = []
    for a, b in product(range(p), repeat=2):
        row = cube[a, b].tolist()
        right = row.pop((a + b) % p)
        leads.append(right - max(row))
    assert min(leads) == pytest.approx(logit_gap(p, frequencies, grid), rel=1e-10)
    assert max(leads) == pytest.approx(min(leads), rel=1e-10)
    assert plain_accuracy(cube) == 1


@pytest.mark.parametrize(
    ("p", "frequencies", "factor"), [(15, [3, 6], 3), (12, [4, 8], 4), (12, [4, 6], 2), (6, [3], 3)]
)
def test_labels_tie_where_the_frequencies_share_a_factor_with_p(p, frequencies, factor):
    cube = logit_cube(addition_network(p, frequencies))[0]
    assert shared_accuracy(cube).item() == pytest.approx(1 / factor, abs=1e-14)
    assert logit_gap(p, frequencies) == pytest.approx(0, abs=1e-14)


@pytest.mark.parametrize("p", [3, 5, 9, 11])
def test_a_grid_of_two_has_four_right_labels(p):
    frequencies = range(1, p // 2 + 1)
    expected = np.zeros((p, p, p))
    for a, b, c in product(range(p), repeat=3):
        angles = [[2 * math.pi * k * x / p for x in (a, b, c)] for k in frequencies]
        expected[a, b, c] = 8 * math.fsum(math.prod(map(math.cos, angle)) for angle in angles)
    cube = logit_cube(addition_network(p, grid=2))[0]
    np.testing.assert_allclose(cube, expected, atol=1e-11)
    # Counted row by row: labels that have the largest number of ways to be ±a ± b.
    accuracy = 0.0
    for a, b in product(range(p), repeat=2):
        ways = [(x * a + y * b) % p for x, y in product((1, -1), repeat=2)]
        most = [c for c in set(ways) if ways.count(c) == max(map(ways.count, ways))]
        accuracy += ((a + b) % p in most) / len(most) / p**2
    assert shared_accuracy(cube).item() == pytest.approx(accuracy, abs=1e-13)


@pytest.mark.parametrize("p", [3, 9, 37])
def test_a_grid_of_one_phase_is_no_better_than_chance(p):
    assert shared_accuracy(logit_cube(addition_network(p, grid=1))).item() == pytest.approx(1 / p)


@pytest.mark.parametrize("p", [2, 5, 12])
def test_six_neurons_a_frequency_are_enough(p):
    first = torch.arange(6, dtype=torch.float64) * (2 * math.pi / 6)
    phases = torch.stack([first, 4 * first], dim=1).repeat(p // 2, 1)
    frequencies = [k for k in range(1, p // 2 + 1) for _ in range(6)]
    cube = logit_cube(network_of_waves(p, frequencies, phases))[0]
    np.testing.assert_allclose(cube, cosines(p, range(1, p // 2 + 1), 3), atol=1e-12)


@pytest.mark.parametrize(("activation", "share"), [("relu", 0.98), ("gelu", 0.995)])
def test_other_activations_add_but_not_by_cosines_alone(activation, share):
    for p in (5, 12, 23, 37):
        cube = logit_cube(addition_network(p, activation=activation))[0]
        assert plain_accuracy(cube) == 1
        assert share_of(cube) == pytest.approx(share, abs=0.01)
        assert share_of(cube) < 0.999
    assert plain_accuracy(logit_cube(addition_network(37, [1], activation=activation))[0]) < 0.8


def test_with_one_frequency_relu_is_wrong_and_the_square_right():
    relu, square = (logit_cube(addition_network(23, [3], activation=name))[0] for name in ("relu", "square"))
    assert plain_accuracy(relu) == pytest.approx(15 / 23)
    assert plain_accuracy(square) == 1


def test_how_frequencies_are_shared_out_matters_for_accuracy_and_not_for_the_law():
    p, width, streams = 37, 512, generator(2)
    shares, accuracies = [], []
    for _ in range(8):
        phases = torch.rand(width, 2, generator=streams, dtype=torch.float64) * (2 * math.pi)
        cube = logit_cube(network_of_waves(p, [1] * width, phases))[0]
        shares.append(share_of(cube))
        accuracies.append(plain_accuracy(cube))
    assert max(accuracies) < 0.95
    assert np.mean(np.array(shares) ** -2) == pytest.approx(1 + 8 / width, abs=0.01)


def test_random_networks_are_drawn_from_their_generator():
    weights = [random_addition_network(7, 20, generator(seed)).output.weight for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_neurons_take_turns_and_their_phases_add_up():
    p, width = 11, 23
    network = random_addition_network(p, width, generator())
    left, right = network.hidden[0].weight[0].unflatten(1, (2, p)).unbind(dim=1)
    spectra = [torch.fft.rfft(weight) for weight in (left, right, network.output.weight[0].T)]
    for spectrum in spectra:
        assert spectrum.abs().argmax(dim=1).tolist() == [1 + i % 5 for i in range(width)]
    k = torch.arange(width) % 5 + 1
    first, second, third = (spectrum[torch.arange(width), k].angle() for spectrum in spectra)
    turns = (first + second - third).detach() / (2 * math.pi)
    torch.testing.assert_close(turns, turns.round(), rtol=0, atol=1e-12)
    assert first.std() > 1


@pytest.mark.parametrize("p", [3, 5, 9, 15])
@pytest.mark.parametrize("width", [1, 2, 30])
def test_the_trigonometric_part_of_a_random_network_is_half_its_neurons(p, width):
    cube = logit_cube(random_addition_network(p, width, generator(width)))[0]
    counts = [sum(1 for i in range(width) if i % (p // 2) + 1 == k) for k in range(1, p // 2 + 1)]
    power = frequency_power(totals(centre(cube)))
    norm = centre(cube).square().sum()
    # The squared norm of n_k/2 cos(ω_k s) over all p³ triples.
    np.testing.assert_allclose(power * norm, [n**2 / 8 * p**3 for n in counts], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("p", "width"), [(3, 6), (9, 12), (15, 40)])
def test_the_law_of_the_share_holds_over_many_draws(p, width):
    """With frequencies as they come: an independent sum of powers, not the code's counts."""
    streams = generator(p)
    found = [share_of(logit_cube(random_addition_network(p, width, streams))[0]) ** -2 for _ in range(400)]
    error = np.std(found) / 20
    assert np.mean(found) == pytest.approx(expected_share(p, width) ** -2, abs=5 * error)


def test_the_standard_error_of_the_law_is_that_of_draws():
    streams = generator(1)
    found = [share_of(logit_cube(random_addition_network(11, 32, streams))[0]) ** -2 for _ in range(600)]
    assert math.fsum(addition.INCOHERENT_POWERS) == 1
    expected = addition._standard_error([1 + i % 5 for i in range(32)]) * math.sqrt(addition.DRAWS)
    assert np.std(found) == pytest.approx(expected, rel=0.15)
    # One neuron a frequency has nothing to interfere with: the share is 1/3 in every draw.
    assert addition._standard_error([1, 2, 3]) == 0


def test_the_expected_share_is_the_root_of_n_over_n_and_eight():
    assert expected_share(11, 50) == pytest.approx(math.sqrt(10 / 18))
    assert expected_share(37, 18 * 7) == pytest.approx(math.sqrt(7 / 15))
    assert expected_share(3, 1) == pytest.approx(1 / 3)
    # Two frequencies, with 2 neurons and with 1.
    assert expected_share(5, 3) == pytest.approx(1 / math.sqrt(1 + 8 * 3 / 5))
    assert expected_share(11, 10**6) == pytest.approx(1, abs=1e-4)


def test_the_expected_accuracy_is_that_of_normal_noise():
    noise = torch.randn(200_000, 5, generator=generator(), dtype=torch.float64)
    noise[:, 0] += math.sqrt(8) / 2 * 5 / 4
    assert expected_accuracy(5, 8) == pytest.approx((noise.argmax(dim=1) == 0).double().mean().item(), abs=0.005)
    assert expected_accuracy(37, 10**4) == pytest.approx(1, abs=1e-12)


# What is measured.


def test_the_cube_has_the_logits_of_one_hot_rows():
    network = random_addition_network(3, 4, generator())
    row = torch.tensor([[0, 1, 0, 0, 0, 1]], dtype=torch.float64)
    torch.testing.assert_close(logit_cube(network)[0, 1, 2], network.logits(row)[0])
    table = network.logits(ModularArithmetic("add", 3, encoding="one-hot").table().double())
    torch.testing.assert_close(logit_cube(network)[0].flatten(0, 1), table)


def test_labels_that_tie_share_a_row():
    cube = torch.zeros(2, 2, 2, dtype=torch.float64)
    assert shared_accuracy(cube).item() == 0.5
    cube[0, 0, 0] = 1.0  # right
    cube[1, 1, 1] = 1.0  # wrong
    cube[0, 1, 1] = 1e-12  # a tie up to rounding
    assert shared_accuracy(cube).item() == pytest.approx((1 + 0 + 0.5 + 0.5) / 4)
    both = torch.stack([cube, torch.zeros_like(cube)])
    assert shared_accuracy(both).tolist() == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: addition_network(1), "p: expected a modulus of at least 2, got 1"),
        (lambda: addition_network(5, []), "frequencies: expected one a neuron, none a multiple of p = 5, got none"),
        (lambda: addition_network(5, [1, 10]), "frequencies: .* got 10"),
        (lambda: addition_network(5, grid=0), "grid: expected at least 1 phase in each direction, got 0"),
        (lambda: network_of_waves(5, [1], torch.zeros(2, 2)), r"phases: expected \(1, 2\), two a neuron, got \(2, 2\)"),
        (lambda: network_of_waves(5, [1], torch.zeros(1, 2), torch.zeros(2)), r"output_phases: .*\(1,\), got \(2,\)"),
        (lambda: random_addition_network(5, 0, generator()), "width: expected at least 1 neuron, got 0"),
        (lambda: random_addition_network(1, 5, generator()), "p: expected a modulus of at least 2, got 1"),
        (lambda: expected_share(5, 0), "width: expected at least 1 neuron, got 0"),
        (lambda: expected_accuracy(8, 5), "p, width: expected an odd modulus .* got 8 and 5"),
        (lambda: logit_gap(7, []), "frequencies, grid: .* got 7, \\[\\] and 3"),
        (lambda: logit_gap(7, [1], 2), "frequencies, grid: .* and 2"),
        (lambda: shared_accuracy(torch.zeros(2, 2, 3)), r"cube: expected logits \(..., p, p, p\), got \(2, 2, 3\)"),
    ],
)  # fmt: skip
def test_what_makes_no_network_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_network_with_other_inputs_has_no_cube():
    network = MLP(n_inputs=7, n_outputs=5, hidden=[3]).build_network([generator()])
    with pytest.raises(ValueError, match="expected 2p inputs and p outputs, got 7 and 5"):
        logit_cube(network)


# Claims.


def wrong(lines):
    return {line.what for line in lines if not line.holds}


def test_a_wrong_weight_is_noticed(monkeypatch):
    real = addition.network_of_waves

    def spoiled(*args, **options):
        network = real(*args, **options)
        with torch.no_grad():
            network.output.weight[0, 0, 0] += 0.001
        return network

    monkeypatch.setattr(addition, "network_of_waves", spoiled)
    noticed = wrong(analytic_addition())
    assert "logits are 9/2 Σ cos(ω_k(a + b − c)), p = 2 ... 40, all frequencies" in noticed
    assert "logits are m²/2 Σ cos(...), 1-5 random frequencies, m = 3 ... 5" in noticed
    assert "their trigonometric share" in noticed
    assert "their smallest lead of the right label, over m² min Σ sin²" in noticed
    noticed = wrong(random_phases())
    assert "trigonometric logit of the right label over width/2, in every draw" in noticed


def test_a_wrong_law_is_noticed(monkeypatch):
    monkeypatch.setattr(addition, "expected_share", lambda p, width: math.sqrt(1 / (1 + 6 * (p // 2) / width)))
    assert len([what for what in wrong(random_phases()) if what.startswith("mean of 1/share²")]) >= 8


@pytest.mark.parametrize("seed", range(3))
def test_no_hypothesis_of_the_grid_is_missed_where_it_is_kept(monkeypatch, seed):
    real = addition.addition_network

    def kept(p, frequencies=None, grid=3, activation="square"):
        return real(p)

    monkeypatch.setattr(addition, "addition_network", kept)
    monkeypatch.setattr(addition, "_with_output_phases", lambda p, phases: logit_cube(real(p))[0])
    monkeypatch.setattr(addition, "_with_hidden_bias", lambda p, bias: logit_cube(real(p))[0])
    draws = np.random.default_rng(seed)
    no_bias = SimpleNamespace(uniform=draws.uniform, standard_normal=np.zeros)
    lines = addition._needed_for_addition(no_bias, [(12, [2]), (15, [3, 6])])
    assert len(lines) == 8
    assert [line.what for line in lines if line.holds] == []


@pytest.mark.parametrize("seed", range(3))
def test_no_hypothesis_of_the_law_is_missed_where_it_is_kept(monkeypatch, seed):
    real, stream = addition.network_of_waves, generator(100 + seed)

    def kept(p, frequencies, phases, output_phases=None, activation="square"):
        p, width = (37, 512) if p == 37 else (11, 64)
        uniform = torch.rand(width, 2, generator=stream, dtype=torch.float64) * (2 * math.pi)
        return real(p, [1 + i % (p // 2) for i in range(width)], uniform)

    monkeypatch.setattr(addition, "network_of_waves", kept)
    lines = addition._needed_for_law(generator(seed))
    assert len(lines) == 6
    assert [line.what for line in lines if line.holds] == []


# Through the callback.


def measured(make_trainer, network, p):
    """What the splitter finds of a network, in float64, as if it had been trained."""
    data = TableData(ModularArithmetic("add", p, encoding="one-hot"), train_fraction=0.5, n_held_out=None, batch_size=8)
    module = MLP(
        n_inputs=2 * p,
        n_outputs=p,
        hidden=[network.output.in_features],
        activation="square",
        bias=False,
        loss="squared",
        optimizer=lambda parameters: SGD(parameters, lr=0.0),
    )
    splitter = FourierLogitSplitter(
        p,
        layout="one-hot",
        embedding="network.hidden.0",
        layer="network.hidden.0",
        next_layer="network.output",
        schedule=EveryNSteps(1),
    )
    trainer = make_trainer(max_steps=1, callbacks=[splitter], precision="64-true", limit_val_batches=0)
    module.network = network
    trainer.fit(module, data)
    return splitter.history


@pytest.mark.parametrize("p", [11, 12])
def test_the_splitter_sees_a_network_that_adds_by_cosines_alone(make_trainer, p):
    found = measured(make_trainer, addition_network(p), p)
    assert found["share"].shape == (2, 1, 2)  # before and after a step that changes nothing
    close = {"rel": 1e-12, "abs": 1e-12}
    assert found["share"].flatten().tolist() == pytest.approx([1] * 4, **close)
    assert found["memorising"].flatten().tolist() == pytest.approx([0] * 6, abs=1e-11)
    assert found["trigonometric"].flatten().tolist() == pytest.approx([9 / 2 * (p // 2)] * 4, **close)
    assert found["neuron_frequency"][0, 0].tolist() == [k for k in range(1, p // 2 + 1) for _ in range(9)]
    if p == 11:
        assert found["power"][0, 0].tolist() == pytest.approx([1 / 5] * 5, **close)
        assert found["embedding_power"][0, 0].tolist() == pytest.approx([1 / 5] * 5, **close)
        assert found["neuron_logit_power"][0, 0].tolist() == pytest.approx([1 / 5] * 5, **close)
        # Of the variance of (cos x + cos y)², that of cos 2x / 2 and cos 2y / 2 belongs to twice the frequency.
        assert found["neuron_explained"][0, 0].tolist() == pytest.approx([0.8] * 45, **close)


def test_the_splitter_sees_the_key_frequencies_of_a_network_that_has_few(make_trainer):
    p, frequencies = 23, [2, 5, 9]
    found = measured(make_trainer, addition_network(p, frequencies), p)
    assert (found["key"][0, 0].nonzero().flatten() + 1).tolist() == frequencies
    assert found["share"][0, 0].tolist() == pytest.approx([1, 1], abs=1e-12)
    assert found["excluded_loss"].flatten().tolist() == pytest.approx([math.log(p)] * 2, rel=1e-10)
    logits = torch.tensor(cosines(p, frequencies, 4.5)[0, 0])
    loss = (logits.logsumexp(dim=0) - logits[0]).item()
    assert found["restricted_loss"].flatten().tolist() == pytest.approx([loss] * 2, rel=1e-9)


def test_the_splitter_sees_random_phases(make_trainer):
    network = random_addition_network(11, 64, generator())
    found = measured(make_trainer, network, 11)
    assert found["share"][0, 0, 0].item() == pytest.approx(share_of(logit_cube(network)[0]), abs=1e-12)
    assert found["share"][0, 0, 0].item() == pytest.approx(expected_share(11, 64), abs=0.15)
    assert found["trigonometric"][0, 0, 0].item() == pytest.approx(32, abs=1e-11)
    assert found["neuron_frequency"][0, 0].tolist() == [1 + i % 5 for i in range(64)]


# The figure.


def test_the_figure_shows_draws_laws_and_grids(monkeypatch):
    monkeypatch.setattr(addition, "WIDTHS", (32, 128, 512, 2048))
    figure = draw_random_phases()
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Trigonometric share", "Accuracy"]
    assert [text.get_text() for text in figure.legends[0].get_texts()][:3] == ["p = 11", "p = 23", "p = 37"]
    for axes, law in zip(figure.axes, (expected_share, expected_accuracy), strict=True):
        means = [line for line in axes.lines if str(line.get_label()).startswith("p = ")]
        stars = [line for line in axes.lines if line.get_marker() == "*"]
        dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
        assert [line.get_label() for line in means] == ["p = 11", "p = 23", "p = 37"]
        for p, line, curve in zip((11, 23, 37), means, dashed, strict=True):
            assert line.get_xdata().tolist() == [32, 128, 512, 2048]
            np.testing.assert_allclose(line.get_ydata(), [law(p, w) for w in (32, 128, 512, 2048)], atol=0.05)
            np.testing.assert_allclose(curve.get_ydata()[[0, -1]], [law(p, 32), law(p, 2048)])
        assert [star.get_xdata()[0] for star in stars] == [45, 99, 162]
        assert [star.get_ydata()[0] for star in stars] == pytest.approx([1, 1, 1])
    caption = figure.get_supxlabel().replace("\n", " ")
    assert "The mean share for p = 11, 23 and 37 is 0.8" in caption
    assert "at width 2048, never further than 0.0" in caption
    assert caption.endswith("is right on all pairs.")
