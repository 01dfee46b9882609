"""The splitter in somebody else's projects, against sums over triples of residues with plain numbers."""

import logging
import math
from collections import OrderedDict
from functools import partial
from itertools import product

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from torch import nn
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from grok_callbacks import EveryNSteps, FourierLogitSplitter
from grok_callbacks.functional import grid_sums, neuron_frequencies, spectrum
from grok_lightning import ModularArithmetic, TableData, Transformer

LAYOUTS = ["a b", "a b =", "a op b =", "one-hot"]
OPERATIONS = {
    "add": lambda x, y, p: (x + y) % p,
    "subtract": lambda x, y, p: (x - y) % p,
    "multiply": lambda x, y, p: x * y % p,
    "divide": lambda x, y, p: next(z for z in range(p) if z * y % p == x),
}


# Somebody else's projects.


def encode(a, b, p, layout):
    if layout == "one-hot":
        return nn.functional.one_hot(torch.tensor([a, b]), p).flatten().float()
    return torch.tensor({"a b": [a, b], "a b =": [a, b, p], "a op b =": [a, p, b, p + 1]}[layout])


class Foreign(LightningModule):
    """Tokens are embedded and laid side by side; two layers; dropout in training."""

    def __init__(self, p, layout="a op b =", outputs=None, width=9):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            length = len(encode(0, 0, p, layout))
            front = (nn.Identity(), length) if layout == "one-hot" else (nn.Embedding(p + 2, 3), 3 * length)
            layers = OrderedDict(embed=front[0], flat=nn.Flatten(), fc1=nn.Linear(front[1], width), act=nn.ReLU())
            layers |= OrderedDict(drop=nn.Dropout(0.2), fc2=nn.Linear(width, outputs or p))
            self.encoder = nn.Sequential(layers)

    def forward(self, x):
        return self.encoder(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        return nn.functional.cross_entropy(logits[:, -1] if logits.ndim == 3 else logits, y)

    def configure_optimizers(self):
        return SGD(self.parameters(), lr=0.5)


def pairs_of(p, operation="add"):
    return list(product(range(p), range(operation == "divide", p)))


def chosen(p, operation="add", share=0.5, seed=0):
    """Some pairs, and their right labels: ``{(a, b): label}``."""
    pairs = pairs_of(p, operation)
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))
    return {pairs[i]: OPERATIONS[operation](*pairs[i], p) for i in order[: round(share * len(pairs))].tolist()}


def loader_of(trained, p, layout="a op b ="):
    rows = torch.stack([encode(a, b, p, layout) for a, b in trained])
    data = TensorDataset(rows, torch.tensor(list(trained.values())))
    return DataLoader(data, batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(3))


class Kept(Callback):
    """All logits of the module at every step, in eval mode, as plain numbers, ``{(a, b): [...]}``."""

    def __init__(self, p, layout="a op b ="):
        self.p, self.layout, self.at = p, layout, {}

    def on_train_start(self, trainer, pl_module):
        self.on_train_batch_end(trainer, pl_module)

    def on_train_batch_end(self, trainer, pl_module, *args):
        pairs = list(product(range(self.p), repeat=2))
        pl_module.eval()
        with torch.no_grad():
            logits = pl_module(torch.stack([encode(a, b, self.p, self.layout) for a, b in pairs]))
        pl_module.train()
        self.at[trainer.global_step] = {pair: z.tolist() for pair, z in zip(pairs, logits.double(), strict=True)}


@pytest.fixture
def fit(make_trainer):
    def run(module, loader, *callbacks, **options):
        trainer = make_trainer(**({"max_epochs": 2, "callbacks": list(callbacks)} | options))
        torch.manual_seed(0)
        trainer.fit(module, loader)
        return trainer

    return run


# What the record should say, from residues and plain numbers.


def mean(values):
    values = list(values)
    return math.fsum(values) / len(values) if values else math.nan


def cross_entropy(logits, label):
    largest = max(logits.values())
    return largest + math.log(math.fsum(math.exp(z - largest) for z in logits.values())) - logits[label]


def expected_of(logits, trained, p, operation="add"):
    """Every array of logits ``{(a, b): p numbers}`` for training rows ``{(a, b): label}``."""
    apply, elements = OPERATIONS[operation], range(p) if operation in ("add", "subtract") else range(1, p)
    n, rows = len(elements), list(product(elements, repeat=2))
    right = {(a, b): apply(a, b, p) for a, b in rows}
    o = {}
    for row in rows:
        z = {c: logits[row][c] for c in elements}
        o[row] = {c: z[c] - mean(z.values()) for c in elements}
    if n == p:
        position = {x: x for x in elements}
    else:
        root = next(g for g in range(1, p) if len({pow(g, i, p) for i in range(n)}) == n)
        position = {pow(root, i, p): i for i in range(n)}

    def s_of(row, c):
        return (position[right[row]] - position[c]) % n

    def trigonometric(some):
        m = [mean(o[row][c] for row in some for c in elements if s_of(row, c) == s) for s in range(n)]
        return [(m[s] + m[-s % n]) / 2 - mean(m) for s in range(n)]

    seen = [row for row in rows if row in trained]
    unseen = [row for row in rows if row not in trained]
    t_all, t_unseen = trigonometric(rows), trigonometric(unseen) if unseen else [math.nan] * n
    label = right | {row: trained[row] for row in seen}
    usable = [row for row in rows if label[row] in elements]
    parts = (usable, [row for row in seen if row in usable], unseen)
    rest = {row: {c: o[row][c] - t_all[s_of(row, c)] for c in elements} for row in rows}
    wrong = {row: max(z for c, z in rest[row].items() if c != label[row]) for row in rows}

    def squares(some):
        return math.fsum(z * z for row in some for z in o[row].values())

    share = [
        math.fsum(t[s_of(row, c)] ** 2 for row in some for c in elements) / squares(some) if some else math.nan
        for t, some in ((t_all, rows), (t_unseen, unseen))
    ]
    power = []
    for k in range(1, n // 2 + 1):
        v = {(row, c): math.cos(2 * math.pi * k * s_of(row, c) / n) for row in rows for c in elements}
        dot = math.fsum(v[row, c] * o[row][c] for row in rows for c in elements)
        power.append(dot**2 / math.fsum(x * x for x in v.values()) / squares(rows))
    key = [x > 0.005 and x > 10 * sorted(power)[(len(power) - 1) // 2] for x in power]

    # The two directions of each key frequency, over rows.
    kept = {row: dict.fromkeys(elements, 0.0) for row in rows}
    for k in [k for k in range(1, n // 2 + 1) if key[k - 1]]:
        for f in (math.cos, math.sin):
            d = {row: f(2 * math.pi * k * position[right[row]] / n) for row in rows}
            norm = math.fsum(x * x for x in d.values())
            for c in elements if norm > 1e-9 else ():
                slope = math.fsum(d[row] * o[row][c] for row in rows) / norm
                for row in rows:
                    kept[row][c] += slope * d[row]
    shift = {c: mean(o[row][c] - kept[row][c] for row in rows) for c in elements}
    restricted = [cross_entropy({c: kept[row][c] + shift[c] for c in elements}, right[row]) for row in rows]
    excluded = [cross_entropy({c: o[row][c] - kept[row][c] for c in elements}, label[row]) for row in parts[1]]
    return {
        "train_share": len(seen) / len(rows),
        "correct": [mean(o[row][label[row]] for row in part) for part in parts],
        "trigonometric": [t_all[0], t_unseen[0]],
        "memorising": [mean(rest[row][label[row]] for row in part) for part in parts],
        "memorising_wrong": [mean(wrong[row] for row in part) for part in parts],
        "share": [math.sqrt(x) for x in share],
        "share_squared": share,
        "power": power,
        "key": key,
        "restricted_loss": mean(restricted),
        "excluded_loss": mean(excluded),
    }


def compare(values, expected, tolerance=1e-4):
    """Arrays of one member against plain numbers; logits are of order 1 and float32."""
    for name, wanted in expected.items():
        found = values[name].double()
        wanted = torch.tensor(wanted, dtype=torch.float64)
        torch.testing.assert_close(
            found, wanted, rtol=tolerance, atol=tolerance, equal_nan=True, msg=f"{name}: {found} is not {wanted}"
        )


def compare_steps(monitor, kept, trained, p, operation="add"):
    assert len(monitor.steps) > 2
    for i, step in enumerate(monitor.steps.tolist()):
        values = {name: array[i, 0] for name, array in monitor.history.items()}
        compare(values, expected_of(kept.at[step], trained, p, operation))


def splitter(p, **options):
    return FourierLogitSplitter(p, **({"schedule": EveryNSteps(2)} | options))


# The values.


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("p", [2, 5, 6])
def test_it_drops_into_a_foreign_module_with_rows_of_every_layout(fit, layout, p):
    trained, kept, monitor = chosen(p), Kept(p, layout), splitter(p, layout=layout)
    fit(Foreign(p, layout), loader_of(trained, p, layout), kept, monitor, max_epochs=5 if p < 5 else 3)
    compare_steps(monitor, kept, trained, p)


@pytest.mark.parametrize(("operation", "p"), [("subtract", 5), ("subtract", 4), ("multiply", 7), ("divide", 5)])
def test_other_operations_are_measured_by_their_own_characters(fit, operation, p):
    trained, kept, monitor = chosen(p, operation), Kept(p), splitter(p, operation=operation)
    fit(Foreign(p), loader_of(trained, p), kept, monitor, max_epochs=4)
    compare_steps(monitor, kept, trained, p, operation)


@pytest.mark.parametrize("operation", ["add", "multiply"])
def test_labels_given_count_as_right_on_training_rows(fit, operation, caplog):
    """For a product, a label of 0 has no place among the non-zero residues."""
    p = 5
    labels = torch.randint(p, (25,), generator=torch.Generator().manual_seed(1)).tolist()
    trained = {pair: labels[i] for i, pair in enumerate(chosen(p, operation, 0.8))}
    assert 0 in trained.values()
    kept, monitor = Kept(p), splitter(p, operation=operation, name="split")
    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        fit(Foreign(p), loader_of(trained, p), kept, monitor)
    compare_steps(monitor, kept, trained, p, operation)
    told = [message for message in caplog.messages if message.startswith("split:")]
    assert len(told) == 1
    assert f"% of the labels of training rows are those of {operation} modulo 5" in told[0]


def test_right_labels_are_not_talked_about(fit, caplog):
    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        fit(Foreign(5), loader_of(chosen(5), 5), splitter(5))
    assert not [message for message in caplog.messages if message.startswith("fourier")]


def test_without_held_out_rows_what_is_about_them_is_nan(fit):
    p, trained = 4, chosen(4, share=1.0)
    kept, monitor = Kept(p), splitter(p)
    fit(Foreign(p), loader_of(trained, p), kept, monitor)
    compare_steps(monitor, kept, trained, p)
    for name in ("correct", "trigonometric", "memorising", "memorising_wrong", "share", "share_squared"):
        assert monitor.history[name][..., -1].isnan().all()
        assert monitor.history[name][..., :-1].isfinite().all()


def test_repeated_rows_count_once(fit):
    p, trained = 5, chosen(5)
    loader = loader_of(trained, p)
    rows, labels = loader.dataset.tensors
    twice = DataLoader(TensorDataset(rows.repeat(2, 1), labels.repeat(2)), batch_size=8)
    kept, monitor = Kept(p), splitter(p)
    fit(Foreign(p), twice, kept, monitor)
    compare_steps(monitor, kept, trained, p)


def test_tokens_may_be_others(fit):
    class Other(Foreign):
        def forward(self, x):
            return super().forward(torch.where(x == 11, 5, torch.where(x == 12, 6, x)))

    p, trained = 5, chosen(5)
    rows, labels = loader_of(trained, p).dataset.tensors
    rows = torch.where(rows == 5, 11, torch.where(rows == 6, 12, rows))
    kept, monitor = Kept(p), splitter(p, operator_token=11, equals_token=12)
    fit(Other(p), DataLoader(TensorDataset(rows, labels), batch_size=8), kept, monitor)
    compare_steps(monitor, kept, trained, p)


class EveryPosition(Foreign):
    """Logits ``(B, T, C)``: a layer for every position, on what was read before."""

    def __init__(self, p):
        super().__init__(p, "a b =")
        self.encoder = None
        torch.manual_seed(0)
        self.embed, self.fc1, self.fc2 = nn.Embedding(p + 1, 4), nn.Linear(4, 8), nn.Linear(8, p + 1)

    def forward(self, x):
        return self.fc2(torch.relu(self.fc1(self.embed(x).cumsum(dim=1))))


def test_logits_of_every_position_are_read_at_the_last_and_more_than_residues_are_cut(fit):
    p, trained = 5, chosen(5)
    monitor, neurons = splitter(p, layout="a b ="), splitter(p, layout="a b =", layer="fc1", next_layer="fc2", name="n")

    class Last(Kept):
        def on_train_batch_end(self, trainer, pl_module, *args):
            pl_module.forward, forward = lambda x: forward(x)[:, -1], pl_module.forward
            super().on_train_batch_end(trainer, pl_module)
            del pl_module.forward

    kept = Last(p, "a b =")
    fit(EveryPosition(p), loader_of(trained, p, "a b ="), kept, monitor, neurons)
    compare_steps(monitor, kept, trained, p)
    compare_steps(neurons, kept, trained, p)
    assert neurons.history["neuron_logit_power"].isfinite().all()
    assert neurons.history["neuron_frequency"].shape == (len(neurons.steps), 1, 8)


@pytest.mark.parametrize("network", [None, "encoder"])
@pytest.mark.parametrize("called_before", [False, True])
def test_a_compiled_network_has_the_same_values(fit, network, called_before):
    p, trained = 5, chosen(5)
    options = {"network": network, "embedding": "encoder.embed", "layer": "encoder.fc1", "next_layer": "encoder.fc2"}
    plain, compiled = splitter(p, **options), splitter(p, **options)
    fit(Foreign(p), loader_of(trained, p), plain)
    module = Foreign(p)
    module.encoder = torch.compile(module.encoder, backend="eager")
    if called_before:
        module(loader_of(trained, p).dataset.tensors[0]).sum().backward()
        module.zero_grad()
    fit(module, loader_of(trained, p), compiled)
    for name, values in plain.history.items():
        torch.testing.assert_close(compiled.history[name], values, rtol=1e-4, atol=1e-5, equal_nan=True)
    torch.compiler.reset()


@pytest.mark.parametrize("layout", ["a op b =", "one-hot"])
@pytest.mark.parametrize(("precision", "tolerance"), [("64-true", 1e-9), ("bf16-true", 0.03)])
def test_other_precisions(fit, layout, precision, tolerance):
    p, trained, kept = 5, chosen(5), None
    first = "encoder.fc1" if layout == "one-hot" else "encoder.embed"
    monitor = splitter(p, layout=layout, embedding=first, layer="encoder.fc1", next_layer="encoder.fc2")

    class Same(Kept):
        def on_train_batch_end(self, trainer, pl_module, *args):
            forward = pl_module.forward
            pl_module.forward = lambda x: forward(trainer.precision_plugin.convert_input(x))
            super().on_train_batch_end(trainer, pl_module)
            del pl_module.forward

    kept = Same(p, layout)
    fit(Foreign(p, layout), loader_of(trained, p, layout), kept, monitor, precision=precision)
    for i, step in enumerate(monitor.steps.tolist()):
        expected = expected_of(kept.at[step], trained, p)
        expected.pop("key")  # a threshold
        compare({n: v[i, 0] for n, v in monitor.history.items()}, expected, tolerance)
    assert all(values.dtype in (torch.float64, torch.bool) for values in monitor.history.values())


def test_a_network_that_has_diverged_has_no_values(fit):
    class Diverges(Foreign):
        def on_train_batch_start(self, batch, batch_idx):
            with torch.no_grad():
                self.encoder.fc2.weight[0] = torch.nan

    monitor = splitter(5, layer="encoder.fc1", next_layer="encoder.fc2")
    fit(Diverges(5), loader_of(chosen(5), 5), monitor)
    last = {name: values[-1] for name, values in monitor.history.items()}
    assert not last["key"].any()
    for name in ("correct", "trigonometric", "memorising", "memorising_wrong", "share", "power", "restricted_loss"):
        assert last[name].isnan().all(), name


# Members.


def our_training(make_trainer, monitor, members, p=7, operation="add", **data):
    options = {"train_size": 30, "batch_size": 10, "members": members} | data
    rows = TableData(ModularArithmetic(operation, p), **options)
    module = Transformer(
        4, p + 2, p, d_model=8, n_heads=2, d_mlp=12, optimizer=partial(SGD, lr=0.5), scheduler=None, members=members
    )
    make_trainer(max_epochs=3, callbacks=[monitor]).fit(module, datamodule=rows)
    return module, rows


NEURONS = {"layer": "network.layers.0.mlp_in", "next_layer": "network.layers.0.mlp_out", "embedding": "network.embed"}


@pytest.mark.parametrize("network", [None, "network"])
@pytest.mark.parametrize("operation", ["add", "divide"])
@pytest.mark.parametrize("neurons", [False, True])
def test_members_have_values_and_training_rows_of_their_own(make_trainer, network, operation, neurons):
    p, members = 7, {"seed": [0, 1, 2], "train_size": [30, 20, 12]}
    options = {"network": network, "schedule": EveryNSteps(3)} | (NEURONS if neurons else {})
    monitor = splitter(p, operation=operation, **options)
    module, data = our_training(make_trainer, monitor, members, p, operation, train_size=None)
    pairs = list(product(range(p), repeat=2))
    with torch.no_grad():
        logits = module.eval()(torch.stack([encode(a, b, p, "a op b =") for a, b in pairs])).double()
    inputs, targets = data.rows("train")
    assert monitor.history["share"].shape == (len(monitor.steps), 3, 2)
    assert int(monitor.steps[-1]) == 9
    values = {name: array[-1] for name, array in monitor.history.items()}
    for e in range(3):
        trained = {(int(x[0]), int(x[2])): int(y) for x, y in zip(inputs[e], targets[e], strict=True)}
        expected = expected_of(
            {pair: z.tolist() for pair, z in zip(pairs, logits[e], strict=True)}, trained, p, operation
        )
        compare({name: value[e] for name, value in values.items()}, expected)
        assert len(trained) == members["train_size"][e]


def test_a_plain_network_in_a_module_with_members_is_a_population_of_one(fit):
    class OneMember(Foreign):
        n_members = 1

    class Leads(OneMember):
        def forward(self, x):
            return super().forward(x).unsqueeze(0)

        def training_step(self, batch, batch_idx):
            x, y = batch
            return nn.functional.cross_entropy(self(x)[0], y)

    p, trained, found = 5, chosen(5), []
    for kind, network in [(Foreign, None), (OneMember, None), (Leads, None), (Leads, "encoder")]:
        monitor = splitter(p, network=network)
        fit(kind(p), loader_of(trained, p), monitor)
        found.append(monitor.history)
    for history in found[1:]:
        for name, values in history.items():
            assert torch.equal(values.nan_to_num(), found[0][name].nan_to_num()), name


# Weights and neurons.


@pytest.mark.parametrize("name", ["encoder.embed", "encoder.embed.weight"])
def test_the_spectrum_of_an_embedding(fit, name):
    p, monitor = 5, splitter(5, embedding=name, operation="multiply")
    module = Foreign(p)
    fit(module, loader_of(chosen(p, "multiply"), p), monitor, max_epochs=4)
    final = splitter(p, embedding=name, operation="multiply")
    weight = final._embedding(module)
    assert torch.equal(weight[0], module.encoder.embed.weight[:p].detach().double())
    matrix = module.encoder.embed.weight.detach().double()[[1, 2, 4, 3]]  # powers of 2 modulo 5
    found = spectrum(weight[0, final.group.left])
    torch.testing.assert_close(found.power, spectrum(matrix).power)
    assert monitor.history["embedding_power"].shape == (len(monitor.steps), 1, 2)
    totals = monitor.history["embedding_power"].sum(dim=-1).squeeze(1)
    torch.testing.assert_close(totals, torch.ones(len(monitor.steps), dtype=torch.float64))
    assert ((monitor.history["embedding_gini"] >= 0) & (monitor.history["embedding_gini"] < 1)).all()


def test_the_embedding_of_one_hot_rows_is_the_first_layer():
    module = Foreign(5, "one-hot")
    found = splitter(5, layout="one-hot", embedding="encoder.fc1")._embedding(module)
    assert torch.equal(found[0], module.encoder.fc1.weight.detach()[:, :5].T.double())


def wave_network(p, k, dead=0):
    """Logits are Σ cos(ω_k(a + b − c)) by hand: neurons are products of waves of a and b, on one-hot rows."""

    class Waves(Foreign):
        def __init__(self):
            super().__init__(p, "one-hot")
            x = torch.arange(p) * (2 * math.pi * k / p)
            self.cos, self.sin = x.cos(), x.sin()
            self.mix, self.out = nn.Identity(), nn.Linear(4 + dead, p, bias=False)
            with torch.no_grad():
                self.out.weight.zero_()
                c, s = 5 * self.cos, 5 * self.sin
                self.out.weight[:, :4] = torch.stack([c, -c, s, s], dim=1)
            self.pre = nn.Linear(1, 4 + dead)

        def forward(self, x):
            ca, sa, cb, sb = (x[:, half] @ w for half in (slice(p), slice(p, 2 * p)) for w in (self.cos, self.sin))
            neurons = torch.stack([ca * cb, sa * sb, sa * cb, ca * sb, *[torch.zeros_like(ca)] * dead], dim=1)
            return self.out(neurons)

    return Waves()


def test_a_network_of_one_frequency_is_seen_through(fit):
    p, k = 15, 4
    monitor = splitter(p, layout="one-hot", layer="pre", next_layer="out")
    trained = chosen(p, share=0.3)
    fit(wave_network(p, k, dead=2), loader_of(trained, p, "one-hot"), monitor, max_epochs=1)
    first = {name: values[0, 0] for name, values in monitor.history.items()}
    assert first["neuron_frequency"][:4].tolist() == [k] * 4
    assert first["neuron_explained"][:4].tolist() == pytest.approx([1] * 4)
    assert first["neuron_frequency"][4:].isnan().all()
    assert first["neuron_explained"][4:].isnan().all()
    assert first["neuron_logit_power"].tolist() == pytest.approx([float(i == k) for i in range(1, 8)], abs=1e-9)
    assert float(first["neuron_logit_gini"]) == pytest.approx(1 - 2 / 14)
    assert first["key"].nonzero().flatten().tolist() == [k - 1]
    assert first["share"].tolist() == pytest.approx([1, 1])
    assert first["trigonometric"].tolist() == pytest.approx([5, 5], rel=1e-5)
    assert first["memorising"].tolist() == pytest.approx([0, 0, 0], abs=1e-5)
    assert float(first["train_share"]) == pytest.approx(68 / 225)
    assert float(first["restricted_loss"]) < 1.1
    assert float(first["excluded_loss"]) == pytest.approx(math.log(p), rel=1e-5)


def test_neurons_are_measured_on_the_whole_grid(fit):
    p, module = 6, Foreign(6, "a b")
    monitor = splitter(p, layout="a b", layer="encoder.fc1", next_layer="encoder.fc2", schedule=EveryNSteps(1))
    fit(module, loader_of(chosen(p), p, "a b"), monitor, max_epochs=1)
    module.eval()
    rows = torch.stack([encode(a, b, p, "a b") for a, b in product(range(p), repeat=2)])
    with torch.no_grad():
        hidden = module.encoder[:4](rows).double().view(p, p, -1)
    expected = neuron_frequencies(grid_sums(hidden))
    found = {name: values[-1, 0] for name, values in monitor.history.items()}
    torch.testing.assert_close(found["neuron_frequency"], expected.frequency, equal_nan=True)
    torch.testing.assert_close(found["neuron_explained"], expected.explained, rtol=1e-4, atol=1e-5, equal_nan=True)
    expected = spectrum(module.encoder.fc2.weight.detach().double())
    torch.testing.assert_close(found["neuron_logit_power"], expected.power, rtol=1e-4, atol=1e-6)


def test_where_logits_are_not_linear_in_the_neurons_their_map_has_no_spectrum(fit):
    class After(Foreign):
        def forward(self, x):
            return torch.relu(self.encoder(x))

    monitor = splitter(5, layer="encoder.fc1", next_layer="encoder.fc2")
    fit(After(5), loader_of(chosen(5), 5), monitor)
    assert monitor.history["neuron_logit_power"].isnan().all()
    assert monitor.history["neuron_logit_gini"].isnan().all()
    assert monitor.history["neuron_explained"].isfinite().any()


# How it is recorded.


def test_the_record_has_the_named_dimensions_and_labels(fit):
    p = 6
    monitor = splitter(p, embedding="encoder.embed", layer="encoder.fc1", next_layer="encoder.fc2")
    fit(Foreign(p), loader_of(chosen(p), p), monitor)
    record, sizes = monitor.record(), {"rows": 3, "over": 2, "frequency": 3, "neuron": 9}
    assert set(record) == {"step", *FourierLogitSplitter.dims}
    for name, dims in FourierLogitSplitter.dims.items():
        assert record[name][0] == ("step", "member", *dims)
        assert tuple(record[name][1].shape) == (len(monitor.steps), 1, *[sizes[dim] for dim in dims])
    assert monitor.labels == {"rows": ("all", "train", "held_out"), "over": ("all", "held_out"), "frequency": (1, 2, 3)}
    assert splitter(7, operation="multiply").labels["frequency"] == (1, 2, 3)
    assert splitter(5).labels["frequency"] == (1, 2)
    assert monitor.history["key"].dtype == torch.bool


def test_attributes_say_how_it_was_measured():
    assert splitter(5, layer="a", next_layer="b", embedding="e", network="n", rows="r").attributes() == {
        "modulus": 5,
        "operation": "add",
        "layout": "a op b =",
        "operator_token": 5,
        "equals_token": 6,
        "network": "n",
        "embedding": "e",
        "layer": "a",
        "next_layer": "b",
        "rows": "r",
    }
    assert splitter(5, layout="a b =").attributes()["equals_token"] == 5
    assert splitter(5, layout="a b").attributes()["equals_token"] == ""
    assert splitter(5, layout="one-hot").attributes()["operator_token"] == ""


def test_scalars_reach_the_logger_as_means_over_members(fit, recording_logger):
    monitor = splitter(5, name="split")
    fit(Foreign(5), loader_of(chosen(5), 5), monitor, logger=recording_logger)
    history = {name: values.double() for name, values in monitor.history.items()}
    for name, values in {
        "share": history["share"][:, 0, 0],
        "trigonometric": history["trigonometric"][:, 0, 0],
        "memorising": history["memorising"][:, 0, 1],
        "key_frequencies": history["key"].sum(dim=-1)[:, 0],
        "restricted_loss": history["restricted_loss"][:, 0],
        "excluded_loss": history["excluded_loss"][:, 0],
    }.items():
        assert recording_logger.values(f"split/{name}") == pytest.approx(values.tolist()), name
        assert recording_logger.steps(f"split/{name}") == monitor.steps.tolist()
    two = {name: torch.cat([values[-1], values[-1] + 2]) for name, values in history.items()}
    assert monitor.scalars(two)["restricted_loss"] == pytest.approx(float(history["restricted_loss"][-1, 0]) + 1)


ROWS_FILE = """
import torch
asked = []
def rows(trainer, pl_module, split):
    asked.append(split)
    return torch.tensor([[0, 5, 1, 6], [4, 5, 4, 6]]), torch.tensor([1, 3])
"""


def test_rows_may_come_from_a_function_and_are_read_once(fit, tmp_path, monkeypatch):
    (tmp_path / "splitter_rows.py").write_text(ROWS_FILE)
    monkeypatch.syspath_prepend(tmp_path)
    kept, monitor = Kept(5), splitter(5, rows="splitter_rows.rows")
    fit(Foreign(5), loader_of(chosen(5), 5), kept, monitor)
    compare_steps(monitor, kept, {(0, 1): 1, (4, 4): 3}, 5)
    import splitter_rows

    assert splitter_rows.asked == ["train"]
    fit(Foreign(5), loader_of(chosen(5), 5), monitor)
    assert splitter_rows.asked == ["train"] * 2, "anew in another run"


def test_rows_of_a_data_module_are_read_before_training(make_trainer):
    p, members = 7, {"seed": [0, 1]}
    with pytest.raises(ValueError, match=r"expected training rows 'a b =': \[a, b, 7\] with a and b from 0 to 6, got"):
        our_training(make_trainer, splitter(p, layout="a b ="), members)


# Misfits.


class Started(Callback):
    """Whether training started."""

    def __init__(self):
        self.started = False

    def on_train_batch_start(self, *args):
        self.started = True


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"modulus": 1}, r"modulus: expected at least 2, got 1"),
        ({"modulus": 15, "operation": "multiply"}, r"multiply: the non-zero residues of p = 15 are no field's; p must"),
        ({"modulus": 2, "operation": "divide"}, r"modulus: divide modulo 2 has a single pair; there is nothing to "),
        ({"operation": "ad"}, r"operation: there is no 'ad' here; did you mean add\?"),
        ({"operation": "square_sum"}, r"operation: there is no 'square_sum' here; expected one of add, "),
        ({"layout": "a op b"}, r"layout: expected one of 'a b', .*, got 'a op b'; did you mean 'a op b ='\?"),
        ({"layout": "a b", "operator_token": 7}, r"operator_token: rows of layout 'a b' have none, got 7"),
        ({"layout": "one-hot", "equals_token": 7}, r"equals_token: rows of layout 'one-hot' have none, got 7"),
        ({"operator_token": 3}, r"operator_token: tokens 0 to 4 are the residues, got 3"),
        ({"layer": "encoder.fc1"}, r"layer, next_layer: give both or neither, got 'encoder.fc1' and None"),
        ({"name": "My splitter"}, r"name: expected lower-case"),
    ],
)  # fmt: skip
def test_arguments_that_make_no_sense_are_refused(options, says):
    with pytest.raises(ValueError, match=says):
        FourierLogitSplitter(**({"modulus": 5} | options))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"modulus": 9}, r"fails on rows 'a op b =': \[a, 9, b, 10\] with a and b from 0 to 8, torch.int64 \(9, 4\)"),
        ({"layout": "a b"}, r"fails on rows 'a b': \[a, b\] with a and b from 0 to 4, torch.int64 \(5, 2\): Run"),
        ({"layout": "one-hot"}, r"fails on rows 'one-hot', a and then b as 5 numbers each, torch.float32 \(5, 10\)"),
        ({"modulus": 4}, r"training rows 'a op b =': \[a, 4, b, 5\] with a and b from 0 to 3, got \[\d, 5, \d, 6\]"),
        ({"equals_token": 5}, r"rows 'a op b =': \[a, 5, b, 5\] with a and b from 0 to 4, got \[\d, 5, \d, 6\]"),
        ({"network": "encoder.fc2"}, r"the model fails on rows"),
        ({"network": "decoder"}, r"network: the model has no 'decoder'; it has encoder"),
        ({"layer": "encoder.fc9", "next_layer": "encoder.fc2"}, r"layer: the model has no 'encoder.fc9'"),
        ({"embedding": "embed"}, r"embedding: the model has no 'embed'; it has encoder.embed.weight"),
        ({"embedding": "encoder.fc2"}, r"expected 'encoder.fc2' to be \(V, d\) with V at least 5 .* \(4, 9\)"),
        ({"outputs": 4}, r"modulus: expected logits \(1, 5, 5\) or wider, one for each residue, got \(1, 5, 4\)"),
        ({"labels": 9}, r"modulus: expected labels from 0 to 4, got 9"),
        ({"labels": 0.5}, r"labels: expected residues from 0 to 4, got torch.float"),
        ({"width": 3}, r"layout: expected training rows 'a op b =': \[a, 5, b, 6\] with .* got \(12, 3\)"),
        ({"rows": "nowhere.rows"}, r"rows: cannot import 'nowhere.rows'"),
    ],
)  # fmt: skip
def test_a_splitter_that_does_not_fit_the_module_or_its_rows_says_so_before_the_first_batch(fit, options, says):
    p, started = 5, Started()
    rows, labels = loader_of(chosen(p), p).dataset.tensors
    rows, labels = (
        rows[:, : options.get("width", 4)],
        labels[:] if "labels" not in options else labels * 0 + options["labels"],
    )
    own = {name: value for name, value in options.items() if name not in ("width", "outputs", "labels")}
    outputs = 4 if options.get("embedding") == "encoder.fc2" else options.get("outputs")
    monitor = FourierLogitSplitter(**({"modulus": p, "schedule": EveryNSteps(1)} | own))
    with pytest.raises(ValueError, match=says) as error:
        fit(Foreign(p, outputs=outputs), DataLoader(TensorDataset(rows, labels), batch_size=6), monitor, started)
    assert not started.started
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("share", [0.5, 2.0])
def test_rows_that_are_not_one_hot_are_refused(fit, share):
    rows, labels = loader_of(chosen(5), 5, "one-hot").dataset.tensors
    loader = DataLoader(TensorDataset(rows * share, labels), batch_size=6)
    with pytest.raises(
        ValueError, match=r"training rows 'one-hot', a and then b as 5 numbers each, got \[.*\] and so on"
    ):
        fit(Foreign(5, "one-hot"), loader, splitter(5, layout="one-hot"))


def test_a_first_layer_of_another_width_is_no_embedding_of_one_hot_rows():
    with pytest.raises(ValueError, match=r"expected 'encoder.fc2' to be \(d, 10\) for each of 1 members, got \(5, 9\)"):
        splitter(5, layout="one-hot", embedding="encoder.fc2")._embedding(Foreign(5, "one-hot"))


def test_what_is_no_logits_is_refused(fit):
    class Tuple(Foreign):
        def forward(self, x):
            return (self.encoder(x),)

    class Flat(Foreign):
        def forward(self, x):
            return self.encoder(x).sum(dim=1)

    for kind, says in [(Tuple, "expected its output to be logits, got tuple"), (Flat, r"expected logits \(B, C\) or")]:
        with pytest.raises(ValueError, match=says):
            fit(kind(5), loader_of(chosen(5), 5), splitter(5))


def test_modes_and_random_numbers_are_as_before_the_trial(fit):
    """What is tried before training starts disturbs nothing."""
    states = []

    class Looks(Callback):
        def on_train_start(self, trainer, pl_module):
            states.append((torch.get_rng_state(), [module.training for module in pl_module.modules()]))

    class Noisy(Foreign):
        def forward(self, x):
            return super().forward(x) + 0 * torch.rand(1)

    for callbacks in ([Looks()], [splitter(5), Looks()]):
        fit(Noisy(5), loader_of(chosen(5), 5), *callbacks, max_epochs=1)
    assert torch.equal(states[0][0], states[1][0])
    assert states[0][1] == states[1][1]
