"""Members with different numbers of rows, computed in groups: the same loss and gradients, without the padding."""

import itertools

import pytest
import torch
from torch import nn

from grok_lightning import MLP, ModularArithmetic, TableData, Transformer
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
