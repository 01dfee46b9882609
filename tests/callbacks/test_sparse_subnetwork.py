import math
import warnings
from itertools import product

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from grok_callbacks import EveryNSteps, EveryValidation, LogSpaced, SparseSubnetworkExtractor
from grok_lightning.data import TableData
from grok_lightning.modules import MLP
from grok_lightning.tasks import SparseParity


class Weights(Callback):
    """Notes all weights after every step, in float64."""

    def __init__(self):
        self.at = {}

    def on_train_start(self, trainer, pl_module):
        self.on_train_batch_end(trainer, pl_module)

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.at[trainer.global_step] = {n: p.detach().double() for n, p in pl_module.state_dict().items()}


# The definition, in float64, one network a size.


def predict(row):
    if len(row) == 1:
        return (row[0] > 0) - (row[0] < 0)
    return row.index(max(row))


def sizes_by_definition(w, b, u, c, inputs, targets):
    """Sizes by predictions and by accuracy, and the ranking, of ``u ReLU(w x + b) + c``."""
    norms = [math.sqrt(math.fsum(x * x for x in neuron)) for neuron in w.tolist()]
    order = sorted(range(len(norms)), key=lambda j: -norms[j])
    hidden = torch.relu(inputs.double() @ w.T + b)
    at = []
    for size in range(len(order) + 1):
        kept = torch.zeros(len(order), dtype=torch.float64)
        kept[order[:size]] = 1
        at.append([predict(row) for row in ((hidden * kept) @ u.T + c).tolist()])
    labels = targets.tolist() if len(u) > 1 else [1 if y > 0 else -1 for y in targets.tolist()]
    right = [sum(p == y for p, y in zip(predicted, labels, strict=True)) for predicted in at]
    return at.index(at[-1]), right.index(right[-1]), order


# In somebody else's project.


@pytest.fixture
def with_forward(foreign):
    class WithForward(foreign.module):
        def forward(self, x):
            return self.encoder(x)

    return WithForward


@pytest.fixture
def fit(foreign, make_trainer, with_forward):
    def run(*callbacks, module=None, train=None, **options):
        trainer = make_trainer(**({"max_epochs": 4, "callbacks": list(callbacks)} | options))
        torch.manual_seed(0)
        module = with_forward() if module is None else module
        trainer.fit(module, foreign.train_loader() if train is None else train, foreign.val_loader())
        return trainer

    return run


def extractor(**options):
    return SparseSubnetworkExtractor("encoder.fc1", "encoder.fc2", **({"schedule": EveryNSteps(3)} | options))


def expected_of(weights, foreign, limit=None):
    inputs, targets = foreign.train_loader().dataset.tensors
    names = ("encoder.fc1.weight", "encoder.fc1.bias", "encoder.fc2.weight", "encoder.fc2.bias")
    return sizes_by_definition(*(weights[name] for name in names), inputs[:limit], targets[:limit])


def check_against_definition(monitor, weights, foreign, limit=None):
    found = []
    for i, step in enumerate(monitor.steps.tolist()):
        by_predictions, by_accuracy, order = expected_of(weights.at[step], foreign, limit)
        assert monitor.history["size"][i].tolist() == [[by_predictions, by_accuracy]]
        size = by_predictions if monitor.rule == "predictions" else by_accuracy
        assert monitor.history["active"][i].tolist() == [[j in order[:size] for j in range(6)]]
        found.append((by_predictions, by_accuracy))
    return found


@pytest.mark.parametrize("rule", ["predictions", "accuracy"])
@pytest.mark.parametrize("network", [None, "encoder"])
def test_sizes_of_a_foreign_module_are_those_of_its_weights_at_each_step(fit, foreign, rule, network):
    """With dropout in the training, and none in what is measured."""
    monitor, weights = extractor(rule=rule, network=network, schedule=EveryNSteps(2)), Weights()
    fit(weights, monitor, max_epochs=10)
    assert monitor.steps.tolist() == list(range(0, 31, 2))
    found = check_against_definition(monitor, weights, foreign)
    assert len({by_predictions for by_predictions, _ in found}) > 1
    assert any(by_predictions != by_accuracy for by_predictions, by_accuracy in found)


def test_a_module_that_has_no_forward_pass_needs_the_name_of_its_network(fit, foreign):
    monitor, weights = extractor(network="encoder"), Weights()
    fit(weights, monitor, module=foreign.module())
    check_against_definition(monitor, weights, foreign)


def test_history_has_the_named_dimensions(fit):
    monitor = extractor()
    fit(monitor)
    assert {name: tuple(values.shape) for name, values in monitor.history.items()} == {
        "size": (5, 1, 2),
        "active": (5, 1, 6),
    }
    assert monitor.history["size"].dtype == torch.float64
    assert monitor.history["active"].dtype == torch.bool
    assert {name: dims for name, (dims, _) in monitor.record().items()} == {
        "step": ("step",),
        "size": ("step", "member", "rule"),
        "active": ("step", "member", "neuron"),
    }
    assert monitor.labels == {"rule": ("predictions", "accuracy")}


def test_attributes_say_how_it_was_measured(fit):
    monitor = extractor(rule="accuracy")
    fit(monitor)
    assert monitor.attributes() == {
        "layer": "encoder.fc1",
        "next_layer": "encoder.fc2",
        "rule": "accuracy",
        "network": "",
        "rows": "",
        "limit": 0,
        "method": "sums over neurons",
    }


def test_by_default_it_follows_predictions_log_spaced():
    monitor = SparseSubnetworkExtractor("a", "b")
    assert (monitor.rule, monitor.schedule, monitor.name) == ("predictions", LogSpaced(20), "sparse_subnetwork")


@pytest.mark.parametrize("limit", [1, 5, 24, 1000])
def test_a_limit_takes_the_first_rows(fit, foreign, limit):
    monitor, weights = extractor(limit=limit), Weights()
    fit(weights, monitor)
    check_against_definition(monitor, weights, foreign, limit)


def test_a_smaller_limit_gives_other_sizes(fit):
    """Or the test above compares nothing."""
    whole, few = extractor(), extractor(limit=1, name="few")
    fit(whole, few)
    assert not torch.equal(whole.history["size"], few.history["size"])


def test_rows_may_come_from_a_function(fit, foreign, tmp_path, monkeypatch):
    (tmp_path / "subnetwork_rows.py").write_text(
        "import torch\n"
        "asked = []\n"
        "def rows(trainer, pl_module, split):\n"
        "    asked.append(split)\n"
        "    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(8))\n"
        "    return x, (x[:, 0] > 0).long()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monitor, weights = extractor(rows="subnetwork_rows.rows"), Weights()
    fit(weights, monitor)
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(8))
    names = ("encoder.fc1.weight", "encoder.fc1.bias", "encoder.fc2.weight", "encoder.fc2.bias")
    for i, step in enumerate(monitor.steps.tolist()):
        parts = [weights.at[step][name] for name in names]
        assert monitor.history["size"][i, 0].tolist() == [*sizes_by_definition(*parts, x, (x[:, 0] > 0).long())[:2]]
    import subnetwork_rows

    assert subnetwork_rows.asked == ["train"], "read once"


def test_scalars_reach_the_logger_at_the_measured_steps(fit, recording_logger):
    monitor = extractor(name="sparsity")
    fit(monitor, logger=recording_logger)
    for rule, values in [
        ("predictions", monitor.history["size"][:, 0, 0]),
        ("accuracy", monitor.history["size"][:, 0, 1]),
    ]:
        assert recording_logger.steps(f"sparsity/{rule}") == [0, 3, 6, 9, 12]
        assert recording_logger.values(f"sparsity/{rule}") == values.tolist()


def test_scalars_are_means_over_members():
    sizes = torch.tensor([[3.0, 1.0], [8.0, 2.0]])
    assert SparseSubnetworkExtractor("a", "b").scalars({"size": sizes}) == {"predictions": 5.5, "accuracy": 1.5}


def test_it_may_follow_validation(fit, foreign):
    monitor, weights = extractor(schedule=EveryValidation()), Weights()
    fit(weights, monitor)
    assert monitor.steps.tolist() == [0, 3, 6, 9, 12]
    check_against_definition(monitor, weights, foreign)
    assert monitor.attributes()["method"] == "sums over neurons"


# Where logits are no sums.


@pytest.fixture
def deep(foreign):
    class Deep(foreign.module):
        def __init__(self):
            super().__init__()
            with torch.random.fork_rng():
                torch.manual_seed(1)
                self.head = nn.Linear(2, 2)

        def forward(self, x):
            return self.head(torch.tanh(self.encoder(x)))

    return Deep


def test_a_layer_that_does_not_reach_the_logits_linearly_is_warned_about_once(fit, deep):
    monitor = extractor()
    with pytest.warns(UserWarning, match="not sums over the neurons between encoder.fc1 and encoder.fc2") as caught:
        fit(monitor, module=deep())
    assert len([warning for warning in caught if "not sums" in str(warning.message)]) == 1
    assert monitor.attributes()["method"] == "masked forward passes"
    assert len(monitor.steps) == 5


def test_a_linear_one_is_not_warned_about(fit):
    fit(extractor())  # a warning is an error


def test_sizes_are_right_there_too(fit, deep, foreign):
    module = deep()
    weights, monitor = Weights(), extractor(schedule=EveryNSteps(4))
    with pytest.warns(UserWarning, match="not sums"):
        fit(weights, monitor, module=module)
    inputs, targets = foreign.train_loader().dataset.tensors
    for i, step in enumerate([0, 4, 8, 12]):
        at = weights.at[step]
        w, u = at["encoder.fc1.weight"], at["encoder.fc2.weight"]
        order = sorted(range(6), key=lambda j, w=w: -float(w[j].norm()))
        hidden = torch.relu(inputs.double() @ w.T + at["encoder.fc1.bias"])
        predicted = []
        for size in range(7):
            kept = torch.tensor([float(j in order[:size]) for j in range(6)], dtype=torch.float64)
            z = torch.tanh((hidden * kept) @ u.T + at["encoder.fc2.bias"])
            predicted.append([predict(row) for row in (z @ at["head.weight"].T + at["head.bias"]).tolist()])
        right = [sum(p == y for p, y in zip(found, targets.tolist(), strict=True)) for found in predicted]
        expected = [predicted.index(predicted[-1]), right.index(right[-1])]
        assert monitor.history["size"][i, 0].tolist() == expected


# Networks whose subnetworks are known.


class Constructed(LightningModule):
    """A two-layer network with given weights and small random neurons beside them; training leaves it as it is."""

    def __init__(self, w, b, u, noise=20, noise_out=(-1e-3, 1e-3), seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        small = torch.rand(noise, w.shape[1], generator=generator) * 0.02 - 0.01
        shift = torch.rand(noise, generator=generator) * 0.01 + 0.05  # always active
        low, high = noise_out
        out = torch.rand(noise, generator=generator) * (high - low) + low
        # Anywhere: what is found must not be found because it comes first.
        places = torch.randperm(len(w) + noise, generator=generator)
        self.fc1, self.fc2 = nn.Linear(w.shape[1], len(places)), nn.Linear(len(places), 1, bias=False)
        with torch.no_grad():
            self.fc1.weight.copy_(torch.cat([w, small])[places])
            self.fc1.bias.copy_(torch.cat([b, shift])[places])
            self.fc2.weight.copy_(torch.cat([u, out])[places].unsqueeze(0))
        self.built = [int((places == j).nonzero()) for j in range(len(w))]

    def forward(self, x):
        return self.fc2(torch.relu(self.fc1(x)))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return (1 - y * self(x).squeeze(1)).relu().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def proposition_1(k, n):
    """One neuron for every sign pattern of the first k bits, which fires on that pattern alone."""
    patterns = torch.tensor(list(product([-1.0, 1.0], repeat=k)))
    return nn.functional.pad(patterns, (0, n - k)), torch.full((2**k,), 1.0 - k), patterns.prod(dim=1)


def proposition_3(n):
    """Four neurons for three bits; the first is constant: no incoming weights, and so no norm."""
    w = torch.tensor([[0.0], [1.0], [1.0], [-1.0]]) * torch.tensor([[1.0, 1.0, 1.0]])
    return nn.functional.pad(w, (0, n - 3)), torch.tensor([1.0, -1.0, 1.0, -1.0]), torch.tensor([1.0, 2.0, -1.0, -1.0])


def all_rows(n, k, sign=1):
    x = torch.tensor(list(product([-1.0, 1.0], repeat=n)))
    return TensorDataset(x, sign * x[:, :k].prod(dim=1))


@pytest.fixture
def measured(make_trainer):
    def measure(module, rows, **options):
        monitor = SparseSubnetworkExtractor("fc1", "fc2", schedule=EveryNSteps(1), **options)
        loader = DataLoader(rows, batch_size=len(rows), shuffle=True)
        make_trainer(max_steps=1, callbacks=[monitor]).fit(module, loader)
        assert torch.equal(monitor.history["size"][0], monitor.history["size"][1])
        return monitor.history["size"][0, 0].tolist(), monitor.history["active"][0, 0].nonzero().flatten().tolist()

    return measure


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("rule", ["predictions", "accuracy"])
def test_a_neuron_for_every_sign_pattern_is_found_among_small_ones(measured, k, rule):
    """Without any one of them its pattern's logit is 0, or noise of the neurons that come after all of them."""
    for seed in range(3):
        module = Constructed(*proposition_1(k, n=6), seed=seed)
        sizes, active = measured(module, all_rows(6, k), rule=rule)
        assert sizes == [2**k, 2**k]
        assert active == sorted(module.built)


@pytest.mark.parametrize("noise", [0, 20])
def test_a_constant_neuron_has_no_norm_and_comes_last(measured, noise):
    """Biases do not count: four neurons compute the parity, all of the layer is needed to reach the fourth."""
    module = Constructed(*proposition_3(n=6), noise=noise, noise_out=(-1e-3, 0.0))
    sizes, active = measured(module, all_rows(6, 3))
    assert sizes == [4 + noise] * 2
    assert active == list(range(4 + noise))


def test_a_small_neuron_may_serve_for_the_constant_one(measured):
    """Where it takes nothing more than a nudge off 0, the first small positive one does it."""
    module = Constructed(*proposition_3(n=6), noise_out=(1e-4, 1e-3))
    sizes, active = measured(module, all_rows(6, 3))
    assert sizes == [4, 4]
    constant, *others = module.built
    assert set(others) < set(active)
    assert constant not in active


def test_the_rules_part_where_labels_are_wrong(measured):
    """Never right: as often right as no neurons at all."""
    for rule, count in [("predictions", 8), ("accuracy", 0)]:
        sizes, active = measured(Constructed(*proposition_1(3, n=6)), all_rows(6, 3, sign=-1), rule=rule)
        assert sizes == [8, 0]
        assert len(active) == count


def test_labels_may_be_bits(measured):
    rows = all_rows(6, 3)
    bits = TensorDataset(rows.tensors[0], (rows.tensors[1] > 0).float())
    assert measured(Constructed(*proposition_1(3, n=6)), bits)[0] == [8, 8]


# Ours.


def test_our_populations_have_a_subnetwork_a_member(make_trainer, recording_logger):
    members = {"seed": [0, 1]}
    data = TableData(SparseParity(8, 2), train_size=30, n_held_out=20, batch_size=10, members=members)
    module = MLP(8, 1, hidden=[12], members=members)
    monitor = SparseSubnetworkExtractor("network.hidden.0", "network.output", schedule=EveryNSteps(20))
    weights = Weights()
    trainer = make_trainer(max_epochs=40, callbacks=[weights, monitor], logger=recording_logger)
    trainer.fit(module, datamodule=data)
    assert monitor.history["size"].shape == (7, 2, 2)
    assert monitor.history["active"].shape == (7, 2, 12)
    inputs, targets = data.rows("train")
    for i, step in enumerate(monitor.steps.tolist()):
        at = weights.at[step]
        for e in range(2):
            w, b, u = (at[f"network.{name}"][e] for name in ("hidden.0.weight", "hidden.0.bias", "output.weight"))
            *sizes, order = sizes_by_definition(w, b, u, 0.0, inputs[e], targets[e])
            assert monitor.history["size"][i, e].tolist() == sizes
            assert set(monitor.history["active"][i, e].nonzero().flatten().tolist()) == set(order[: sizes[0]])
    sizes = monitor.history["size"]
    assert not torch.equal(sizes[:, 0], sizes[:, 1])
    assert recording_logger.values("sparse_subnetwork/predictions") == sizes[:, :, 0].mean(dim=1).tolist()
    assert recording_logger.values("sparse_subnetwork/accuracy") == sizes[:, :, 1].mean(dim=1).tolist()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_network_that_diverged_has_no_size_and_training_goes_on(fit, with_forward, recording_logger, bad):
    module = with_forward()
    with torch.no_grad():
        module.encoder.fc1.weight.fill_(bad)
    monitor = extractor()
    fit(monitor, module=module, logger=recording_logger)
    assert monitor.steps.tolist() == [0, 3, 6, 9, 12]
    assert monitor.history["size"][1:].isnan().all()
    assert not monitor.history["active"][1:].any()
    assert math.isnan(recording_logger.values("sparse_subnetwork/predictions")[-1])


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "bf16-mixed"])
def test_a_foreign_module_is_measured_in_whatever_precision_it_trains(fit, precision):
    monitor = extractor()
    fit(monitor, precision=precision)
    assert monitor.steps.tolist() == [0, 3, 6, 9, 12]
    assert monitor.history["size"].isfinite().all()


# What cannot be measured.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "both"}, "rule: expected one of predictions, accuracy, got 'both'"),
        ({"limit": 0}, "limit: expected at least 1 row, got 0"),
        ({"limit": -3}, "limit: expected at least 1 row, got -3"),
        ({"name": "Sparse"}, "name: expected"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SparseSubnetworkExtractor("fc1", "fc2", **options)


class Trains(Callback):
    def __init__(self):
        self.steps = 0

    def on_train_batch_start(self, *args):
        self.steps += 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fc1", "encoder.fc2"), "layer: the model has no 'fc1'; it has encoder, encoder.fc1, encoder.fc2"),
        (("encoder.fc1", "fc2"), "next_layer: the model has no 'fc2'"),
        (("encoder.act", "encoder.fc2"), r"layer: 'encoder\.act' has no weight"),
        (("encoder.fc1", "encoder.fc1"), "next_layer: expected it to read 6 neurons"),
        (("encoder.fc1", "spare"), "next_layer: the model's forward pass does not call it"),
    ],
)
def test_layers_that_do_not_serve_are_refused_before_the_first_step(fit, with_forward, arguments, message):
    module, trains = with_forward(), Trains()
    module.spare = nn.Linear(6, 2)
    with pytest.raises(ValueError, match=message):
        fit(trains, SparseSubnetworkExtractor(*arguments), module=module)
    assert trains.steps == 0


def test_a_network_that_does_not_exist_is_refused_before_the_first_step(fit):
    with pytest.raises(ValueError, match="network: the model has no 'decoder'"):
        fit(extractor(network="decoder"))


class Three(LightningModule):
    """Three layers of one width, for naming the wrong ones; ``squash`` makes probabilities of the one output."""

    def __init__(self, squash=False):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 1)
        self.squash = squash

    def forward(self, x):
        logits = self.c(torch.relu(self.b(torch.relu(self.a(x)))))
        return torch.sigmoid(logits) if self.squash else logits

    def training_step(self, batch, batch_idx):
        x, y = batch
        return (self(x).squeeze(-1) - y.reshape(-1).float()).square().mean()

    def validation_step(self, batch, batch_idx):
        """Not needed."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_layers_that_are_not_neighbours_are_warned_of(fit):
    with pytest.warns(UserWarning, match="other neurons are removed than are ranked"):
        fit(SparseSubnetworkExtractor("a", "c"), module=Three(), limit_val_batches=0)
    fit(SparseSubnetworkExtractor("b", "c"), module=Three(), limit_val_batches=0)  # warnings are errors


def test_probabilities_are_warned_of(fit):
    with warnings.catch_warnings(record=True) as told:  # the other one: a sigmoid is no sum
        warnings.simplefilter("always")
        fit(SparseSubnetworkExtractor("b", "c"), module=Three(squash=True), limit_val_batches=0)
    assert any("if these are probabilities, all predictions are the same" in str(one.message) for one in told)


def test_targets_may_be_columns_as_binary_losses_want_them(fit):
    x = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).float()
    histories = []
    for targets in (y, y.unsqueeze(1)):
        monitor = SparseSubnetworkExtractor("b", "c", schedule=EveryNSteps(4))
        fit(monitor, module=Three(), train=DataLoader(TensorDataset(x, targets), batch_size=8), limit_val_batches=0)
        histories.append(monitor.history["size"])
    assert torch.equal(*histories)


def test_a_forward_that_returns_no_tensor_is_refused(fit):
    class Wrapped(Three):
        def forward(self, x):
            return {"logits": super().forward(x)}

        def training_step(self, batch, batch_idx):
            return self.c.weight.sum()

    with pytest.raises(ValueError, match="network: expected its output to be logits, got dict"):
        fit(SparseSubnetworkExtractor("b", "c"), module=Wrapped(), limit_val_batches=0)


def test_members_of_several_sizes_are_each_measured_on_their_own_rows(make_trainer):
    """A smaller member's rows come again; its sizes by predictions are those that it has alone."""
    together = {"seed": [0, 1], "train_size": [40, 24]}
    sizes = []
    for members in (together, {"seed": [1], "train_size": [24]}):
        data = TableData(SparseParity(6, 2), n_held_out=10, batch_size=None, members=members)
        module = MLP(6, hidden=[12], optimizer=lambda p: torch.optim.SGD(p, lr=0.5), members=members).double()
        monitor = SparseSubnetworkExtractor("network.hidden.0", "network.output", schedule=EveryNSteps(5))
        make_trainer(max_steps=20, callbacks=[monitor], precision="64-true").fit(module, datamodule=data)
        sizes.append(monitor.history["size"][:, -1])
    assert torch.equal(sizes[0][:, 0], sizes[1][:, 0])
