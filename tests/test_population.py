import ast
from pathlib import Path

import pytest
import torch

import grok_lightning
from grok_lightning.population import (
    as_members,
    check_consumed,
    column,
    members_table,
    n_members,
    own_members,
    seeds,
    stream,
)


def stream_names():
    """Every name that the package gives to a stream; what varies within a name is written as 7."""
    names = set()
    for path in Path(grok_lightning.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "stream":
                name = node.args[1]
                parts = name.values if isinstance(name, ast.JoinedStr) else [name]
                names.add("".join(part.value if isinstance(part, ast.Constant) else "7" for part in parts))
    return sorted(names)


def bare(seed, name):
    """What must not be done: the name is forgotten."""
    del name
    return torch.Generator().manual_seed(seed)


def shared_values(make, names):
    drawn = [torch.rand(1000, dtype=torch.float64, generator=make(3, name)) for name in names]
    return torch.cat(drawn).numel() - torch.cat(drawn).unique().numel()


def largest_correlation(make, names, n=20_000):
    bits = torch.stack([torch.randint(2, (n,), generator=make(3, name)) for name in names]).double()
    correlation = torch.corrcoef(bits) - torch.eye(len(names), dtype=torch.float64)
    return float(correlation.abs().max())


def test_no_population_is_one_member_with_seed_0():
    assert members_table(None) == as_members(None) == {"seed": [0]}
    # No axis at all: the empty product has one element.
    assert members_table({}) == {"seed": [0]}


def test_axes_are_multiplied_and_the_last_runs_fastest():
    table = members_table({"seed": [4, 2], "weight_decay": [0.1, 1.0, 0.5], "train_size": [8, 9]})
    expected = [(s, w, n) for s in [4, 2] for w in [0.1, 1.0, 0.5] for n in [8, 9]]
    assert list(zip(table["seed"], table["weight_decay"], table["train_size"], strict=True)) == expected
    assert n_members(table) == 12


def test_a_bare_number_is_an_axis_of_one_value():
    assert members_table({"seed": [0, 1], "train_size": 50}) == {"seed": [0, 1], "train_size": [50, 50]}


def test_a_list_names_members_one_by_one_in_any_order_of_coordinates():
    table = members_table([{"seed": 0, "train_size": 5}, {"train_size": 7, "seed": 1}])
    assert table == {"seed": [0, 1], "train_size": [5, 7]}


def test_the_seed_is_0_where_it_is_not_given():
    assert members_table({"train_size": [5, 6]}) == {"seed": [0, 0], "train_size": [5, 6]}
    assert members_table([{"init_seed": 3}, {"init_seed": 4}]) == {"seed": [0, 0], "init_seed": [3, 4]}


@pytest.mark.parametrize(
    ("population", "message"),
    [
        ([], "at least one member"),
        ({"seed": []}, "'seed' has no values"),
        ({"seed": [0], "weight_decay": []}, "'weight_decay' has no values"),
        ([{"seed": 0}, {"seed": 1, "train_size": 3}], "same coordinates"),
        ([{"seed": 0}, {"init_seed": 1}], "same coordinates"),
        ({"seed": [0, 1, 0]}, r"\{'seed': 0\} is listed more than once"),
        ({"weight_decay": [0.5, 0.5]}, "listed more than once"),
        ({"seed": [0.5]}, "'seed' must be integers"),
        ({"seed": [1.0]}, "'seed' must be integers"),
        ({"seed": [-1]}, "'seed' must be integers of at least 0, got -1"),
        ({"data_seed": [-2]}, "'data_seed' must be integers"),
        ({"seed": [True]}, "finite numbers, got True"),
        ({"seed": "12"}, "finite numbers, got '1'"),
        ({"weight_decay": [float("nan")]}, "'weight_decay' must be finite"),
        ({"weight_decay": [float("inf")]}, "'weight_decay' must be finite"),
        ({"weight_decay": [None]}, "'weight_decay' must be finite"),
    ],
)
def test_populations_without_meaning_are_refused(population, message):
    with pytest.raises(ValueError, match=message):
        members_table(population)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({}, "column 'seed'"),
        ({"train_size": [3]}, "column 'seed', got \\['train_size'\\]"),
        ({"seed": []}, "at least one member"),
        ({"seed": [0, 1], "train_size": [3]}, "one length"),
        ({"seed": [0, 0]}, "more than once"),
        ({"seed": [0], "weight_decay": ["x"]}, "finite"),
    ],
)
def test_tables_without_meaning_are_refused(table, message):
    with pytest.raises(ValueError, match=message):
        as_members(table)


def test_a_checked_table_is_a_copy():
    table = {"seed": [0, 1]}
    as_members(table)["seed"].append(7)
    assert table == {"seed": [0, 1]}


def test_a_coordinate_that_is_not_given_has_the_default_for_every_member():
    members = {"seed": [3, 4], "train_size": [8, 9]}
    assert column(members, "train_size", 100) == [8, 9]
    assert column(members, "label_noise", 0.25) == [0.25, 0.25]


def test_a_named_seed_falls_back_to_seed():
    members = {"seed": [3, 4], "data_seed": [7, 7]}
    assert seeds(members, "data_seed") == [7, 7]
    assert seeds(members, "init_seed") == [3, 4]


def test_a_coordinate_that_nobody_consumes_is_refused_by_name():
    check_consumed({"seed": [0], "train_size": [5]}, {"train_size", "label_noise"})
    # Everything has a seed, said or not.
    check_consumed({"seed": [0]}, ())
    with pytest.raises(ValueError, match="'weight_decya'; understood are seed, train_size, weight_decay"):
        check_consumed({"seed": [0], "weight_decya": [1.0]}, {"weight_decay", "train_size"})


def test_the_names_of_streams_are_found():
    # The tests below would pass for want of names.
    assert {"initial weights", "held-out rows", "secret subset", "batch order of epoch 7"} <= set(stream_names())
    assert any(name.startswith("training rows") for name in stream_names())
    assert any(name.startswith("label noise") for name in stream_names())


def test_streams_of_one_seed_share_no_values():
    assert shared_values(stream, stream_names()) == 0
    assert shared_values(bare, stream_names()) > 0


def test_bits_of_streams_of_one_seed_are_uncorrelated():
    # Five standard errors of a correlation of 20,000 fair bits.
    assert largest_correlation(stream, stream_names()) < 5 / 20_000**0.5
    assert largest_correlation(bare, stream_names()) > 0.99


def test_bits_of_training_rows_tell_nothing_of_weights():
    names = ["training rows", "initial weights"]
    for seed in range(5):
        bits, weights = (torch.rand(20_000, generator=stream(seed, name)) - 0.5 for name in names)
        assert abs(float(torch.corrcoef(torch.stack([bits.sign(), weights]))[0, 1])) < 5 / 20_000**0.5


def test_seeds_and_names_are_kept_apart():
    # Run together without a separator, (1, "epoch 1") and (11, "epoch ") would be one stream.
    pairs = [(seed, f"epoch {epoch}") for seed in [0, 1, 11, 111] for epoch in ["", *range(30), 111]]
    assert len({stream(seed, name).initial_seed() for seed, name in pairs}) == len(pairs)


def test_a_stream_is_the_same_every_time_and_leaves_the_global_one_alone():
    before = torch.get_rng_state()
    first, second = (torch.rand(50, generator=stream(5, "initial weights")) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(before, torch.get_rng_state())


def test_a_stream_does_not_change_between_versions():
    # Published seeds must go on meaning the same runs. `printf 'initial weights\0000' | sha256sum` begins 711cfa00.
    assert stream(0, "initial weights").initial_seed() == 0x00FA1C71


class Spreads:
    """A strategy that gives a process the second and the fourth member."""

    def own_members(self, n_members):
        return range(1, n_members, 2)

    def gather_members(self, values):
        return dict(values)


class OwnsAlone:
    """What only names members does not spread them."""

    def own_members(self, n_members):
        return range(1, n_members, 2)


def test_a_process_has_the_members_that_a_strategy_gives_it_or_all():
    assert list(own_members(Spreads(), 5)) == [1, 3]
    for strategy in (None, object(), OwnsAlone()):
        assert own_members(strategy, 5) == range(5)
