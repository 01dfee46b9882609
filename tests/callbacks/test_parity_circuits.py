import math
import warnings
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from grok_callbacks import EveryNSteps, LogSpaced, ParityCircuits, SparseSubnetworkExtractor
from grok_callbacks.functional import four_neurons, nearer_half, one_a_pattern, one_star, six_neurons, two_stars
from grok_callbacks.functional.parity_circuits import CONSTRUCTIONS, KINDS
from grok_lightning.data import TableData
from grok_lightning.modules import MLP
from grok_lightning.tasks import ModularArithmetic, SparseParity

OF_THREE = {
    "proposition_1": one_a_pattern(3),
    "nearer_half": nearer_half(3),
    "proposition_2": six_neurons(),
    "proposition_3": four_neurons(),
    "one_star": one_star(),
    "two_stars": two_stars(),
}
PATTERNS = ("---", "--+", "-+-", "-++", "+--", "+-+", "++-", "+++")


class Theirs(LightningModule):
    """A circuit in the midst of small neurons, as somebody else's plain layers that do not learn."""

    def __init__(self, circuit, n=7, secret=(0, 1, 2), noise=20, bias=True, after=None, outputs=1, activation=None):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        built = len(circuit.bias)
        weight = 1e-3 * torch.randn(built + noise, n, generator=generator, dtype=torch.float64)
        offset, output = torch.zeros(2, built + noise, dtype=torch.float64)
        output += 1e-6
        place = torch.randperm(built + noise, generator=generator)[:built]
        scale = 0.5 + torch.rand(built, generator=generator).double()
        weight[place] = 0
        weight[place.unsqueeze(1), torch.tensor(secret)] = circuit.weight * scale[:, None]
        offset[place], output[place] = circuit.bias * scale, circuit.output / scale
        self.first = nn.Linear(n, built + noise, bias=bias)
        self.second = nn.Linear(built + noise, outputs, bias=False)
        with torch.no_grad():
            self.first.weight.copy_(weight)
            if bias:
                self.first.bias.copy_(offset)
            self.second.weight.copy_(output.expand(outputs, -1))
        self.act = nn.ReLU() if activation is None else activation
        self.after = nn.Identity() if after is None else after

    def forward(self, x):
        return self.after(self.second(self.act(self.first(x))))

    def training_step(self, batch, batch_idx):
        return 0 * self(batch[0]).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def all_rows(n=7, secret=(0, 1, 2)):
    x = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * n).reshape(-1, n)
    return TensorDataset(x, x[:, list(secret)].prod(dim=1))


@pytest.fixture
def measured(make_trainer):
    def run(module, rows=None, **options):
        monitor = ParityCircuits("first", "second", **({"secret": (0, 1, 2), "schedule": EveryNSteps(1)} | options))
        trainer = make_trainer(max_steps=1, callbacks=[monitor])
        trainer.fit(module, DataLoader(all_rows() if rows is None else rows, batch_size=64))
        assert monitor.steps.tolist() == [0, 1]
        return SimpleNamespace(monitor=monitor, **{name: values[-1] for name, values in monitor.history.items()})

    return run


def of_this(told):
    """Texts of the callback's own warnings: Lightning has others."""
    return [text for text in (str(warning.message) for warning in told) if text.startswith("ParityCircuits")]


@pytest.mark.parametrize("name", [name for name in CONSTRUCTIONS if name != "proposition_3"])
@pytest.mark.parametrize("secret", [(0, 1, 2), (6, 0, 3)])
def test_a_construction_is_found_among_small_neurons(measured, name, secret):
    circuit = OF_THREE[name]
    found = measured(Theirs(circuit, secret=secret), all_rows(secret=secret), secret=secret)
    assert found.size.tolist() == [len(circuit.bias)]
    at = CONSTRUCTIONS.index(name)
    for array in (found.found, found.covered, found.likeness):
        assert array.shape == (1, 6)
        assert float(array[0, at]) == pytest.approx(1, abs=1e-6)
        assert int(found.likeness[0].argmax()) == at
    assert float(found.off_support) == 0
    expected = {"proposition_1": 7**-0.5, "proposition_2": 0.286}.get(name, 1)
    assert float(found.efficiency) == pytest.approx(expected, abs=1e-3)
    assert found.neurons.shape == (1, 3, 8)
    assert found.neurons[0].sum() == len(circuit.bias)
    if name == "proposition_1":
        assert found.neurons[0, 0].tolist() == [1] * 8
        assert found.fires[0, :1].tolist() == [1]
        assert found.bias[0].tolist() == [pytest.approx(-2), *[pytest.approx(math.nan, nan_ok=True)] * 2]
    if name == "two_stars":
        assert found.neurons[0, 1].tolist() == [1, 0, 0, 0, 0, 0, 0, 1]
        # On three patterns more; and where the sum is 0 to rounding, or not.
        assert found.bias[0, :2].tolist() == pytest.approx([-1, 1])


def test_a_constant_neuron_has_no_norm_and_is_not_seen_without_all(measured):
    """Biases do not count in the ranking: the search has to go through all, and its neuron has no pattern."""
    found = measured(Theirs(four_neurons(), noise=0))
    assert found.size.tolist() == [4]
    assert found.neurons[0].sum() == 3
    assert float(found.likeness[0, CONSTRUCTIONS.index("proposition_3")]) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("secret", [(0, 1), (5, 2), (1,), (3, 0, 6, 2)])
def test_of_other_numbers_of_bits_proposition_1_is_known(measured, secret):
    k = len(secret)
    found = measured(Theirs(one_a_pattern(k), secret=secret), all_rows(secret=secret), secret=secret)
    assert float(found.likeness[0, 0]) == pytest.approx(1, abs=1e-6)
    assert found.likeness[0, 2:].isnan().all()
    assert 0 < found.efficiency < 1 + 1e-6
    assert found.neurons.shape == (1, 3, 2**k)
    assert found.neurons[0, 0].tolist() == [1] * 2**k


def test_weights_on_other_bits_are_measured(measured):
    module = Theirs(one_a_pattern(3), noise=0)
    with torch.no_grad():
        module.first.weight[:, 4] = 0.1 * module.first.weight[:, 0]
    assert float(measured(module).off_support) == pytest.approx(0.1 / math.sqrt(3))


def test_a_layer_without_bias_has_biases_of_0(measured):
    module = Theirs(one_a_pattern(2)._replace(bias=torch.zeros(4).double()), bias=False, secret=(0, 1))
    found = measured(module, all_rows(secret=(0, 1)), secret=(0, 1))
    assert found.bias[0, 0] == 0
    assert found.size.isfinite().all()


def test_the_other_secret_shows_another_circuit(measured):
    """Planted: the comparison depends on the positions it is told."""
    with pytest.warns(UserWarning, match="no surviving neuron of any member responds") as told:
        found = measured(Theirs(one_a_pattern(3)), secret=(0, 1, 6))
    assert len(of_this(told)) == 1, "once, and not at both measurements"
    assert found.neurons.sum() == 0, "a weight of 0 on one of the bits: no pattern"
    assert (found.covered == 0).all(), "of two bits alone none reaches its bias"
    assert found.off_support > 0.7


WRONG = (
    r"ParityCircuits: no surviving neuron of any member responds to the secret bits \[4, 5, 6\]: are they those of "
    r"this network\? give them as secret=\[\.\.\.\]"
)


@pytest.mark.parametrize("weight", [0.0, 1e-3], ids=["none", "hardly any"])
def test_bits_that_nothing_reads_are_hardly_those_of_the_network(measured, weight):
    """Trained on other bits a network has hardly any weight on these, seldom none; stars fire on them all the same."""
    module = Theirs(two_stars(), noise=0)
    with torch.no_grad():
        module.first.weight[:, 4:] = weight
    with pytest.warns(UserWarning, match=WRONG) as told:
        found = measured(module, secret=[4, 5, 6])
    assert len(of_this(told)) == 1
    assert found.off_support > 100
    assert abs(found.efficiency) < 1e-3


def test_of_initial_weights_no_bits_are_wrong(make_trainer):
    """Nor where some members read them. Warnings are errors here."""
    torch.manual_seed(0)
    module = Theirs(one_a_pattern(3), n=40)
    module.first = nn.Linear(40, 28).double()
    module.second = nn.Linear(28, 1, bias=False).double()
    monitor = ParityCircuits("first", "second", secret=[3, 4, 5], schedule=EveryNSteps(1))
    rows = torch.randn(64, 40, generator=torch.Generator().manual_seed(1)).double().sign()
    make_trainer(max_steps=1, callbacks=[monitor]).fit(
        module, DataLoader(TensorDataset(rows, rows[:, 3:6].prod(dim=1)), batch_size=64)
    )
    assert (monitor.history["off_support"] > 2).all(), "chance is 3.5"


@pytest.mark.parametrize(("readers", "expected"), [(1, 0), (0, 1)])
def test_it_warns_only_if_no_member_reads_the_bits(make_trainer, recwarn, readers, expected):
    members = {"seed": [0, 1]}
    data = TableData(SparseParity(8, 3), train_size=250, n_held_out=5, members=members)
    module = MLP(8, hidden=[8], optimizer=lambda p: torch.optim.SGD(p, lr=0.0), members=members)
    module.configure_model()
    with torch.no_grad():
        for e in range(2):
            theirs = Theirs(one_a_pattern(3), n=8, secret=(0, 1, 2) if e < readers else (5, 6, 7), noise=0)
            module.network.hidden[0].weight[e] = theirs.first.weight
            module.network.hidden[0].bias[e] = theirs.first.bias
            module.network.output.weight[e] = theirs.second.weight
    monitor = ParityCircuits("network.hidden.0", "network.output", schedule=EveryNSteps(1))
    trainer = make_trainer(max_steps=2, callbacks=[monitor])
    warnings.simplefilter("default")
    trainer.fit(module, datamodule=data)
    told = of_this(recwarn)
    assert len(told) == expected
    assert all("the secret bits of the data module: are they" in text for text in told)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_network_that_has_diverged_is_nan_throughout(measured, bad):
    module = Theirs(one_a_pattern(3))
    with torch.no_grad():
        module.first.weight.fill_(bad)
    found = measured(module)
    assert all(values.isnan().all() for values in (found.size, found.neurons, found.fires, found.likeness))
    assert all(math.isnan(value) for value in found.monitor.scalars(found.__dict__).values())


def test_a_network_that_says_nothing_has_no_neurons(measured):
    module = Theirs(one_a_pattern(3))
    with torch.no_grad():
        module.second.weight.zero_()
    found = measured(module)
    assert found.size.tolist() == [0]
    assert found.neurons.sum() == 0
    assert found.covered.tolist() == [[0] * 6]
    assert found.likeness.isnan().all()


def test_what_loggers_get(make_trainer, recording_logger):
    monitor = ParityCircuits("first", "second", secret=[0, 1, 2], schedule=EveryNSteps(1))
    trainer = make_trainer(max_steps=1, callbacks=[monitor], logger=recording_logger)
    trainer.fit(Theirs(two_stars()), DataLoader(all_rows(), batch_size=64))
    assert recording_logger.values("parity_circuits/patterns") == [2, 2]
    assert recording_logger.values("parity_circuits/off_support") == [0, 0]
    assert recording_logger.values("parity_circuits/two_stars") == pytest.approx([1, 1], abs=1e-6)
    assert len(recording_logger.points[0][1]) == 9


def test_arrays_have_names_along_their_dimensions(measured):
    monitor = measured(Theirs(one_star())).monitor
    assert monitor.labels == {"kind": KINDS, "construction": CONSTRUCTIONS, "pattern": PATTERNS}
    assert {name: dims for name, (dims, _) in monitor.record().items()} == {
        "step": ("step",),
        "size": ("step", "member"),
        "neurons": ("step", "member", "kind", "pattern"),
        "fires": ("step", "member", "kind"),
        "bias": ("step", "member", "kind"),
        "off_support": ("step", "member"),
        "efficiency": ("step", "member"),
        "found": ("step", "member", "construction"),
        "covered": ("step", "member", "construction"),
        "likeness": ("step", "member", "construction"),
    }
    assert all(values.dtype == torch.float64 for values in monitor.history.values())
    assert monitor.attributes() == {
        "layer": "first",
        "next_layer": "second",
        "secret": "0, 1, 2",
        "rule": "predictions",
        "network": "",
        "rows": "",
        "limit": 0,
    }


# Ours.


def test_each_member_has_its_own_secret(make_trainer):
    """Members with three secrets, and the one circuit laid where the secret is; sizes are the extractor's."""
    members = {"seed": [0, 1, 2], "subset_seed": [5, 6, 7]}
    data = TableData(SparseParity(8, 3, subset="drawn"), train_size=250, n_held_out=5, members=members)
    module = MLP(8, hidden=[30], optimizer=lambda p: torch.optim.SGD(p, lr=0.0), members=members)
    module.configure_model()
    secrets = [data.task_of(e).secret.tolist() for e in range(3)]
    assert len({tuple(secret) for secret in secrets}) == 3
    circuits = [one_a_pattern(3), one_star(), two_stars()]
    with torch.no_grad():
        for e, (circuit, secret) in enumerate(zip(circuits, secrets, strict=True)):
            theirs = Theirs(circuit, n=8, secret=secret, noise=30 - len(circuit.bias))
            module.network.hidden[0].weight[e] = theirs.first.weight
            module.network.hidden[0].bias[e] = theirs.first.bias
            module.network.output.weight[e] = theirs.second.weight
    layers = ("network.hidden.0", "network.output")
    monitor = ParityCircuits(*layers, schedule=EveryNSteps(2))
    sizes = SparseSubnetworkExtractor(*layers, schedule=EveryNSteps(2))
    make_trainer(max_steps=2, callbacks=[monitor, sizes]).fit(module, datamodule=data)
    assert torch.equal(monitor.history["size"], sizes.history["size"][:, :, 0])
    assert monitor.history["size"][-1].tolist() == [8, 6, 4]
    nearest = monitor.history["likeness"][-1].max(dim=1)
    assert [CONSTRUCTIONS[i] for i in nearest.indices] == ["proposition_1", "one_star", "two_stars"]
    assert nearest.values.tolist() == pytest.approx([1, 1, 1], abs=1e-6)
    assert monitor.attributes()["secret"] == ""


def test_by_default_it_follows_predictions_log_spaced():
    monitor = ParityCircuits("a", "b")
    assert (monitor.rule, monitor.schedule, monitor.name) == ("predictions", LogSpaced(20), "parity_circuits")


# What cannot be measured.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"secret": []}, "secret: expected 1 to 10 positions, as there are 2.k patterns, got 0"),
        ({"secret": range(11)}, "secret: expected 1 to 10 positions, as there are 2.k patterns, got 11"),
        ({"secret": [1, 2, 1]}, r"secret: expected different positions from 0 on, got \[1, 2, 1\]"),
        ({"secret": [0, -1]}, r"secret: expected different positions from 0 on, got \[0, -1\]"),
        ({"rule": "both"}, "rule: expected one of predictions, accuracy, got 'both'"),
        ({"limit": 0}, "limit: expected at least 1 row, got 0"),
        ({"name": "Parity"}, "name: expected"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ParityCircuits("a", "b", **options)


class Normalised(nn.Module):
    def forward(self, x):
        return x / (1 + x.abs())


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        ({}, {"secret": None}, "secret: the data module does not know which bits are secret; give their positions"),
        ({}, {"secret": (1, 7)}, r"secret: expected positions below 7, got \[1, 7\]: first"),
        ({"outputs": 2}, {}, "network: expected one logit, got 2"),
        (
            {"activation": nn.Tanh()},
            {},
            r"layer: expected neurons relu\(w · x \+ b\) of the row x, .* and they are not",
        ),
        ({"activation": nn.Sequential(nn.ReLU(), nn.LayerNorm(28))}, {}, "layer: expected neurons relu"),
        ({"after": Normalised()}, {}, "next_layer: expected a logit that is a weighted sum over the neurons"),
    ],
    ids=["no secret", "beyond the row", "two logits", "tanh", "normalised", "no sum"],
)
def test_what_it_does_not_fit_is_refused_before_the_first_step(measured, module, options, message):
    with pytest.raises(ValueError, match=message):
        measured(Theirs(one_a_pattern(3), **module), **options)


def test_a_task_without_secret_is_refused(make_trainer):
    data = TableData(ModularArithmetic(p=5), train_size=10)
    module = MLP(4, 5, hidden=[8])
    with pytest.raises(ValueError, match="secret: the data module does not know"):
        make_trainer(max_steps=1, callbacks=[ParityCircuits("network.hidden.0", "network.output")]).fit(
            module, datamodule=data
        )


def test_layers_that_do_not_exist_are_refused_when_fitting_starts(make_trainer):
    trainer = make_trainer(max_steps=1, callbacks=[ParityCircuits("third", "second", secret=[0])])
    with pytest.raises(ValueError, match="layer: the model has no 'third'; it has first, second"):
        trainer.fit(Theirs(one_a_pattern(3)), DataLoader(all_rows(), batch_size=64))
