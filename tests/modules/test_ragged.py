"""Members with different numbers of rows, computed in groups: the same loss and gradients, without the padding."""

import itertools

import pytest
import torch
from torch import nn

from grok_callbacks import Convergence, LearningCurves
from grok_lightning import MLP, ModularArithmetic, TableData, Transformer
from grok_lightning.batch import Batch
from grok_lightning.modules.ragged import Ragged, group_by_size
from grok_lightning.networks import Network


def cost(groups, counts, overhead):
    return sum(overhead + len(group) * max(counts[e] for e in group) for group in groups)


def all_divisions(members):
    """Every way to divide members into groups."""
    if not members:
        yield []
        return
    first, *rest = members
    for division in all_divisions(rest):
        yield [[first], *division]
        for i in range(len(division)):
            yield [*division[:i], [first, *division[i]], *division[i + 1 :]]


@pytest.mark.parametrize("overhead", [0, 1, 10, 1000])
@pytest.mark.parametrize("counts", [[5], [5, 5], [1, 9, 1, 9], [30, 60, 90, 31, 1], [7, 0, 7, 3, 100, 4]], ids=str)
def test_no_other_division_costs_less(counts, overhead):
    groups = group_by_size(counts, overhead)
    assert sorted(itertools.chain(*groups)) == list(range(len(counts)))
    best = min(cost(division, counts, overhead) for division in all_divisions(list(range(len(counts)))))
    assert cost(groups, counts, overhead) == best


def test_groups_come_by_rising_size_with_members_in_their_order():
    assert group_by_size([9, 2, 9, 2, 5], overhead=0) == [[1, 3], [4], [0, 2]]
    assert group_by_size([9, 2, 9, 2, 5], overhead=1e9) == [[0, 1, 2, 3, 4]]


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Counting(Ragged):
    """Remembers that it was asked for a loss."""

    used = 0

    def loss(self, loss, rows):
        Counting.used += 1
        return super().loss(loss, rows)


def train(make_trainer, monkeypatch, members, ragged, batch_size=None, model="transformer", steps=6):
    monkeypatch.setattr("grok_lightning.modules.module.Ragged", Counting)
    monkeypatch.setattr("grok_lightning.modules.ragged.OVERHEAD", 0 if ragged else 1e18)
    Counting.used = 0
    if model == "transformer":
        task = ModularArithmetic("add", 7)
        module = Transformer(4, 9, 7, d_model=8, n_heads=2, members=members)
        data = TableData(task, batch_size=batch_size, n_held_out=None, members=members)
    else:
        module = MLP(40, hidden=[16], members=members)
        data = TableData(batch_size=batch_size, n_held_out=20, members=members)
    make_trainer(max_steps=steps, precision="64-true").fit(module, datamodule=data)
    assert bool(Counting.used) is ragged
    return module


@pytest.mark.parametrize("batch_size", [None, 16])
@pytest.mark.parametrize("model", ["transformer", "mlp"])
@pytest.mark.parametrize("sizes", [[40, 12, 40, 5], [5, 12, 12, 40]], ids=["mixed", "in order"])
def test_training_in_groups_is_training_with_padding(make_trainer, monkeypatch, double, sizes, model, batch_size):
    members = {"seed": [0, 1, 2, 3], "train_size": sizes}
    grouped, padded = (train(make_trainer, monkeypatch, members, ragged, batch_size, model) for ragged in (True, False))
    for one, other in zip(grouped.parameters(), padded.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


def test_a_member_in_a_group_trains_as_alone(make_trainer, monkeypatch, double):
    population = train(make_trainer, monkeypatch, {"seed": [0, 1, 2], "train_size": [40, 5, 20]}, ragged=True)
    alone = train(make_trainer, monkeypatch, {"seed": [1], "train_size": [5]}, ragged=False)
    for many, one in zip(population.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(many[1:2], one, rtol=0, atol=1e-9)


def test_members_of_one_size_are_not_divided(make_trainer, monkeypatch):
    members = {"seed": [0, 1], "train_size": [20, 20]}
    monkeypatch.setattr("grok_lightning.modules.module.Ragged", Counting)
    monkeypatch.setattr("grok_lightning.modules.ragged.OVERHEAD", 0)
    Counting.used = 0
    module = Transformer(4, 9, 7, d_model=8, n_heads=2, members=members)
    data = TableData(ModularArithmetic("add", 7), batch_size=None, n_held_out=None, members=members)
    make_trainer(max_steps=2).fit(module, datamodule=data)
    assert not Counting.used


def fit_small(make_trainer, tmp_path, monkeypatch, callbacks=(), **options):
    """Three members that are trained in groups from the first step on."""
    monkeypatch.setattr("grok_lightning.modules.ragged.OVERHEAD", 0)
    members = {"seed": [0, 1, 2], "train_size": [40, 5, 20]}
    module = Transformer(4, 9, 7, d_model=8, n_heads=2, members=members)
    data = TableData(ModularArithmetic("add", 7), batch_size=None, n_held_out=None, members=members)
    resume = options.pop("ckpt_path", None)
    trainer = make_trainer(callbacks=list(callbacks), **options)
    trainer.fit(module, datamodule=data, ckpt_path=resume)
    return trainer, list(module.parameters())


def test_resuming_is_exact_from_the_first_step_on(make_trainer, tmp_path, monkeypatch):
    _, whole = fit_small(make_trainer, tmp_path, monkeypatch, max_steps=6)
    trainer, _ = fit_small(make_trainer, tmp_path, monkeypatch, max_steps=4)
    trainer.save_checkpoint(tmp_path / "4.ckpt")
    _, resumed = fit_small(make_trainer, tmp_path, monkeypatch, max_steps=6, ckpt_path=tmp_path / "4.ckpt")
    assert all(torch.equal(one, other) for one, other in zip(whole, resumed, strict=True))


def test_watching_changes_nothing(make_trainer, tmp_path, monkeypatch):
    _, alone = fit_small(make_trainer, tmp_path, monkeypatch, max_steps=6)
    _, watched = fit_small(make_trainer, tmp_path, monkeypatch, [LearningCurves(), Convergence()], max_steps=6)
    assert all(torch.equal(one, other) for one, other in zip(alone, watched, strict=True))


def test_a_hook_sees_one_group_after_another_and_what_it_changes_counts(make_trainer, monkeypatch):
    """So does whatever else was done to the network: it is itself that computes, in its own modes."""
    monkeypatch.setattr("grok_lightning.modules.ragged.OVERHEAD", 0)
    network = MLP(6, hidden=[4], members={"seed": [0, 1, 2]})
    network.configure_model()
    network.network.hidden[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    rows = Batch(
        torch.randn(3, 5, 6),
        torch.ones(3, 5),
        weights=torch.tensor([[0.2] * 5, [0.5, 0.5, 0, 0, 0], [0.2] * 5]),
        counts=(5, 2, 5),
    )
    ragged = Ragged(network.network)
    assert ragged.serves(rows)
    expected = (network.loss(network(rows.inputs), rows.targets) * rows.weights).sum()
    torch.testing.assert_close(ragged.loss(network.loss, rows), expected)
    assert network.network.n_members == 3


def test_weights_that_were_assigned_between_two_fits_are_the_ones_that_move(make_trainer, monkeypatch):
    monkeypatch.setattr("grok_lightning.modules.ragged.OVERHEAD", 0)
    members = {"seed": [0, 1], "train_size": [40, 5]}
    module = MLP(40, hidden=[4], members=members)
    data = TableData(batch_size=None, n_held_out=20, members=members)
    make_trainer(max_steps=2).fit(module, datamodule=data)
    module.load_state_dict({name: value.clone() for name, value in module.state_dict().items()}, assign=True)
    before = module.network.output.weight.clone()
    make_trainer(max_steps=2).fit(module, datamodule=data)
    assert not torch.equal(before, module.network.output.weight)


def test_plans_do_not_pile_up(monkeypatch):
    monkeypatch.setattr("grok_lightning.modules.ragged.PLANS", 3)
    module = MLP(6, hidden=[4], members={"seed": [0, 1]})
    module.configure_model()
    ragged = Ragged(module.network)
    for count in range(1, 9):
        ragged.serves(Batch(torch.zeros(2, 9, 6), torch.zeros(2, 9), counts=(9, count)))
    assert len(ragged._plans) <= 3


def test_wrong_rows_are_refused_in_the_first_step(make_trainer, monkeypatch):
    monkeypatch.setattr("grok_lightning.modules.ragged.OVERHEAD", 0)
    members = {"seed": [0, 1], "train_size": [40, 5]}
    data = TableData(ModularArithmetic("add", 7), batch_size=None, n_held_out=None, members=members)
    module = Transformer(4, 9, 5, d_model=8, n_heads=2, members=members)
    with pytest.raises(ValueError, match="labels"):
        make_trainer(max_steps=2, limit_val_batches=0).fit(module, datamodule=data)


class WithBuffer(Network):
    """Its buffer would be lost in a network made for a group."""

    def __init__(self, n_members):
        super().__init__()
        self.n_members = n_members
        self.weight = nn.Parameter(torch.zeros(n_members, 2, 40))
        self.register_buffer("shift", torch.arange(2.0))

    def forward(self, inputs):
        return inputs @ self.weight.mT + self.shift

    def like(self, n_members):
        raise AssertionError("never asked for")


def test_a_network_with_buffers_is_padded(make_trainer, monkeypatch):
    members = {"seed": [0, 1], "train_size": [40, 4]}
    monkeypatch.setattr("grok_lightning.modules.ragged.OVERHEAD", 0)
    module = MLP(40, n_outputs=2, hidden=[4], loss="cross_entropy", members=members)
    module.network = WithBuffer(2)
    data = TableData(batch_size=None, n_held_out=20, members=members)
    data.task.n_outputs = 2
    monkeypatch.setattr(type(data.task), "label", lambda self, inputs: (inputs[:, 0] > 0).long())
    data = TableData(data.task, batch_size=None, n_held_out=20, members=members)
    make_trainer(max_steps=2).fit(module, datamodule=data)
    assert module.network.weight.abs().sum() > 0
