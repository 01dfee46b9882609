from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from torch.optim import SGD

from grok_callbacks import LearningCurves
from grok_lightning.batch import Batch
from grok_lightning.data import OnlineData, TableData
from grok_lightning.losses import correct, cross_entropy
from grok_lightning.modules import MLP, GrokModule
from grok_lightning.networks import Network
from grok_lightning.tasks import ModularArithmetic, SparseParity

PLAIN_SGD = partial(SGD, lr=0.1)
PREFIXES = {"train": "train", "held_out": "val"}


class Bag(Network):
    """Embeds tokens and adds them up: logits ``(E, B, C)``."""

    def __init__(self, n_tokens, n_outputs, generators):
        super().__init__()
        self.n_members = len(generators)
        self.n_tokens = n_tokens
        drawn = [torch.randn(n_tokens, n_outputs, generator=generator) for generator in generators]
        self.embedding = nn.Parameter(torch.stack(drawn))
        self.checked = []

    def forward(self, inputs):
        inputs = inputs.expand(self.n_members, *inputs.shape[-2:])
        return torch.stack([table[rows] for table, rows in zip(self.embedding, inputs, strict=True)]).sum(dim=2)

    def check_inputs(self, inputs):
        self.checked.append(tuple(inputs.shape))
        if int(inputs.max()) >= self.n_tokens:
            raise ValueError(f"expected tokens in [0, {self.n_tokens}), got {int(inputs.max())}")

    def like(self, n_members):
        return type(self)(self.n_tokens, self.embedding.shape[2], [torch.Generator() for _ in range(n_members)])


class Tokens(GrokModule):
    """Trains bags of tokens."""

    def __init__(self, p=7, members=None, optimizer=PLAIN_SGD, n_tokens=None):
        super().__init__(loss="cross_entropy", optimizer=optimizer, scheduler=None, members=members)
        self.p = p
        self.n_tokens = p + 2 if n_tokens is None else n_tokens

    def build_network(self, generators):
        return Bag(self.n_tokens, self.p, generators)


def data(p=7, operation="add", **options):
    return TableData(ModularArithmetic(operation, p), **({"n_held_out": None, "batch_size": None} | options))


def by_hand(module, table):
    """The metrics of every member, row by row, from the tables themselves."""
    found = {}
    for split, prefix in PREFIXES.items():
        batch = table.make_tables(torch.device("cpu"))[split]
        with torch.no_grad():
            logits = module(batch.inputs)
            losses, right = cross_entropy(logits, batch.targets), correct(logits, batch.targets)
        weights = torch.ones(batch.targets.shape) if batch.weights is None else batch.weights
        parts = {"": [True] * batch.targets.shape[1]}
        if batch.subsets is not None:
            parts |= batch.subsets
        for name, mask in parts.items():
            for e in range(len(batch.targets)):
                real = [i for i, weight in enumerate(weights[e].tolist()) if weight > 0]
                rows = [i for i in real if bool(mask[e][i] if name else mask[i])]
                for metric, values in [("loss", losses), ("accuracy", right)]:
                    mean = sum(float(values[e, i]) for i in rows) / len(rows) if rows else torch.nan
                    found.setdefault(f"{prefix}{'_' * bool(name)}{name}/{metric}", []).append(mean)
                if name:
                    share = len(rows) / len(real) if real else torch.nan
                    found.setdefault(f"{prefix}/{name}_share", []).append(share)
    return found


def check(values, expected):
    assert set(values) == set(expected)
    for name, value in values.items():
        wanted = torch.tensor(expected[name], dtype=torch.float64)
        torch.testing.assert_close(value.double(), wanted, rtol=1e-6, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize(
    "members",
    [
        {"seed": [3], "train_size": [20]},
        {"seed": [0, 1], "train_size": [20, 20]},
        {"seed": [0, 1, 2], "train_size": [20, 33, 48]},
        {"seed": [0, 1], "train_size": [49, 20]},
    ],
    ids=["one member", "two", "of different sizes", "one with the full table"],
)
@pytest.mark.parametrize("split", ["random", "symmetric"])
def test_rows_that_are_told_apart_have_metrics_of_their_own(make_trainer, members, split):
    module, table = Tokens(members=members), data(members=members, split=split)
    make_trainer(max_steps=3).fit(module, datamodule=table)
    expected = by_hand(module, table)
    assert {"val_unpaired/loss", "val_unpaired/accuracy", "val/unpaired_share"} < set(expected)
    check(module.member_metrics(), expected)
    if split == "symmetric":
        known = module.member_metrics()["val/unpaired_share"]
        assert (known[~known.isnan()] == 1).all()


def test_a_share_is_exact_however_many_batches_it_takes(make_trainer, monkeypatch):
    members = {"seed": [0, 1], "train_size": [20, 33]}
    table = data(members=members)
    whole = table.val_dataloader

    def in_pieces():
        loaders = whole()
        for loader in loaders:
            loader.batch_size = 4
        return loaders

    monkeypatch.setattr(table, "val_dataloader", in_pieces)
    module = Tokens(members=members)
    make_trainer(max_steps=1).fit(module, datamodule=table)
    check(module.member_metrics(), by_hand(module, table))


def test_metrics_of_parts_start_anew_at_every_validation_and_are_logged(make_trainer, recording_logger):
    members = {"seed": [0, 1]}
    module, table = Tokens(members=members), data(members=members, train_size=20)
    seen = {}

    class Asks(Callback):
        def on_validation_end(self, trainer, pl_module):
            seen[trainer.global_step] = {name: sum(v) / len(v) for name, v in by_hand(pl_module, table).items()}

    make_trainer(max_steps=3, callbacks=[Asks()], logger=recording_logger).fit(module, datamodule=table)
    assert list(seen) == [1, 2, 3]
    for name in ("val/accuracy", "val_unpaired/accuracy", "val_unpaired/loss", "val/unpaired_share"):
        expected = [seen[step][name] for step in (1, 2, 3)]
        assert recording_logger.steps(name) == [1, 2, 3]
        assert recording_logger.values(name) == pytest.approx(expected, rel=1e-6)
    assert len(set(recording_logger.values("val_unpaired/loss"))) == 3
    assert len(set(recording_logger.values("val/unpaired_share"))) == 1


@pytest.mark.parametrize("monitors", [[], [LearningCurves()]])
def test_metrics_of_parts_are_no_part_of_a_checkpoint(make_trainer, monitors):
    module = Tokens()
    module.configure_model()
    before = set(module.state_dict())
    make_trainer(max_steps=2, callbacks=monitors).fit(module, datamodule=data(train_size=20))
    assert set(module.state_dict()) == before == {"network.embedding"}


def test_metrics_can_be_asked_for_between_validations(make_trainer):
    """Made or reset while Lightning validates, they must still count outside of that."""
    found = []

    class Asks(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            found.append(float(pl_module.member_metrics()["val_unpaired/loss"]))

    table = data(train_size=20)
    make_trainer(max_steps=4, check_val_every_n_epoch=2, callbacks=[Asks()]).fit(Tokens(), datamodule=table)
    assert len(set(found)) == 4


def test_testing_tells_the_same_rows_apart(make_trainer):
    module, table = Tokens(), data(train_size=20)
    trainer = make_trainer(max_steps=2)
    trainer.fit(module, datamodule=table)
    expected = by_hand(module, table)
    (tested,) = trainer.test(module, datamodule=table, verbose=False)
    assert tested == pytest.approx(
        {name.replace("val", "test"): value[0] for name, value in expected.items() if "val" in name}, rel=1e-6
    )
    first, second = trainer.validate(module, datamodule=table, verbose=False)
    assert (first | second) == pytest.approx({name: value[0] for name, value in expected.items()}, rel=1e-6)


def test_without_parts_there_are_no_such_metrics(make_trainer):
    module = MLP(n_inputs=6, hidden=[5])
    table = TableData(SparseParity(6, 2), train_size=20, n_held_out=10, batch_size=None)
    make_trainer(max_steps=1).fit(module, datamodule=table)
    assert list(module.member_metrics()) == ["train/loss", "train/accuracy", "val/loss", "val/accuracy"]


@pytest.mark.parametrize("split", ["random", "symmetric"])
@pytest.mark.parametrize("n_held_out", [None, 5])
def test_a_full_table_trains_without_held_out_rows(make_trainer, split, n_held_out):
    table = data(train_fraction=1.0, n_held_out=n_held_out, split=split)
    assert table.splits == ("train",)
    module, curves = Tokens(), LearningCurves()
    make_trainer(max_steps=1, callbacks=[curves]).fit(module, datamodule=table)
    assert list(module.member_metrics()) == ["train/loss", "train/accuracy"]
    assert curves.steps.tolist() == [0, 1]
    assert curves.labels["split"] == ("train", "held_out")
    for curve in curves.history.values():
        assert curve[..., 1].isnan().all()
        assert not curve[..., 0].isnan().any()


def test_random_labels_are_trained_on_like_any_others(make_trainer):
    table = data(train_size=30, random_labels=True)
    module = Tokens(optimizer=partial(SGD, lr=1.0))
    make_trainer(max_steps=3).fit(module, datamodule=table)
    metrics = module.member_metrics()
    assert "train/true_accuracy" not in metrics
    check(metrics, by_hand(module, table))


# Rows that a network was not built for


def test_a_network_looks_at_its_rows_once(make_trainer):
    module = Tokens()
    trainer = make_trainer(max_steps=3)
    trainer.fit(module, datamodule=data(train_size=20))
    assert module.network.checked == [(1, 20, 4)]
    # Other rows, another look.
    trainer.validate(module, datamodule=data(train_size=21), verbose=False)
    assert module.network.checked == [(1, 20, 4), (1, 21, 4)]


def test_tokens_that_the_network_does_not_have_are_refused(make_trainer):
    with pytest.raises(ValueError, match=r"expected tokens in \[0, 8\), got 8"):
        make_trainer(max_steps=1).fit(Tokens(n_tokens=8), datamodule=data(train_size=20))


def test_a_batch_without_rows_is_not_looked_at():
    module = Tokens()
    module.configure_model()
    inputs = torch.zeros(1, 0, 4, dtype=torch.int64)
    module.training_step(Batch(inputs, torch.zeros(1, 0, dtype=torch.int64)), 0)
    assert module.network.checked == []


@pytest.mark.parametrize("make", [data, lambda **options: OnlineData(ModularArithmetic("add", 7), n_held_out=9)])
def test_a_network_of_numbers_refuses_tokens(make_trainer, make):
    module = MLP(n_inputs=4, n_outputs=7, hidden=[5], loss="cross_entropy")
    with pytest.raises(ValueError, match=r"expected rows of numbers, got tokens \(torch.int64\): use a network that"):
        make_trainer(max_steps=1).fit(module, datamodule=make(train_size=20))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_network_of_numbers_takes_numbers(dtype):
    module = MLP(n_inputs=4, hidden=[5])
    module.configure_model()
    module.network.check_inputs(torch.zeros(3, 4, dtype=dtype))


def test_a_plain_network_is_not_asked(make_trainer):
    class Plain(Tokens):
        def build_network(self, generators):
            return nn.Sequential(nn.EmbeddingBag(9, 7))

    make_trainer(max_steps=1).fit(Plain(), datamodule=data(train_size=20))
