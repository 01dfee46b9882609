import pytest
import torch
from lightning.pytorch import LightningModule

from grok_callbacks.members import gather_members, n_members_here, n_members_in_all, own_members


class Bare(LightningModule):
    """Knows nothing of members."""


class Populated(LightningModule):
    """Three members, all of them here."""

    n_members = 3


class Spread(LightningModule):
    """Five members, of which this process has those with an odd number; of the others it knows what they measure."""

    n_members = 2
    n_members_in_all = 5
    own_members = slice(1, 5, 2)

    def gather_members(self, values):
        whole = {}
        for name, value in values.items():
            assert value.shape[0] == self.n_members
            whole[name] = value.new_zeros(5, *value.shape[1:])
            whole[name][self.own_members] = value
        return whole


@pytest.mark.parametrize(("module", "here", "in_all"), [(Bare, 1, 1), (Populated, 3, 3), (Spread, 2, 5)])
def test_members_are_counted_here_and_in_all(module, here, in_all):
    assert n_members_here(module()) == here
    assert n_members_in_all(module()) == in_all


@pytest.mark.parametrize("module", [Bare, Populated])
def test_where_nothing_is_spread_values_are_those_of_all(module):
    values = {"a": torch.arange(3.0), "b": torch.zeros(3, 0)}
    gathered = gather_members(module(), values)
    assert gathered is not values
    assert gathered.keys() == values.keys()
    assert all(gathered[name] is value for name, value in values.items())
    assert own_members(module(), values["a"]) is values["a"]


def test_values_of_all_are_what_the_module_gathers():
    gathered = gather_members(Spread(), {"a": torch.tensor([[1, 2], [3, 4]])})
    assert gathered["a"].tolist() == [[0, 0], [1, 2], [0, 0], [3, 4], [0, 0]]


def test_what_was_gathered_is_taken_apart_again():
    mine = torch.rand(2, 3)
    assert torch.equal(own_members(Spread(), gather_members(Spread(), {"a": mine})["a"]), mine)
    assert own_members(Spread(), torch.arange(5)).tolist() == [1, 3]


@pytest.mark.parametrize("missing", ["n_members_in_all", "own_members", "gather_members"])
def test_a_module_that_spreads_by_halves_does_not_spread(missing):
    half = type("Half", (LightningModule,), {k: v for k, v in vars(Spread).items() if k != missing and k[0] != "_"})()
    assert n_members_in_all(half) == n_members_here(half) == 2
    assert own_members(half, torch.arange(2)).tolist() == [0, 1]
