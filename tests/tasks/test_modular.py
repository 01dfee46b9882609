import itertools
import math
import random
import re
from functools import partial

import pytest
import torch

from grok_lightning.cli import main
from grok_lightning.data import TableData
from grok_lightning.tasks import OPERATIONS, FreshRows, ModularArithmetic, Task, split_rows

SYMMETRIC = {"add", "multiply", "square_sum", "square_sum_xy"}


def quotients(x, y, p):
    """Every z with z y = x mod p, by trying all."""
    return [z for z in range(p) if (z * y - x) % p == 0]


def by_hand(operation, x, y, p):
    """The result over Python's integers; None where there is no row."""
    if operation == "divide" or (operation == "odd_divide" and y % 2 == 1):
        # A divisor without an inverse has no quotient for some x, or several.
        found = quotients(x, y, p)
        unique = all(len(quotients(other, y, p)) == 1 for other in (range(p) if p < 20 else [0, 1, x]))
        return found[0] if unique else None
    formulas = {
        "add": x + y,
        "subtract": x - y,
        "odd_divide": x - y,
        "multiply": x * y,
        "square_sum": x**2 + y**2,
        "square_sum_xy": x**2 + x * y + y**2,
        "square_sum_xy_x": x**2 + x * y + y**2 + x,
        "cube_xy": x**3 + x * y,
        "cube_xy2_y": x**3 + x * y**2 + y,
    }
    return formulas[operation] % p


def residues(task):
    """The rows of a task as pairs, after a look at the two tokens that are always the same."""
    table = task.table()
    assert table.dtype == torch.int64
    assert table.shape == (task.size, 4)
    assert set(table[:, 1].tolist()) == {task.p}
    assert set(table[:, 3].tolist()) == {task.p + 1}
    return [(x, y) for x, _, y, _ in table.tolist()]


@pytest.mark.parametrize("p", [2, 3, 4, 5, 6, 15])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_table_is_that_of_integers_in_order(operation, p):
    task = ModularArithmetic(operation, p)
    expected = {(x, y): by_hand(operation, x, y, p) for x, y in itertools.product(range(p), repeat=2)}
    expected = {pair: z for pair, z in expected.items() if z is not None}
    assert residues(task) == list(expected)
    labels = task.label(task.table())
    assert labels.dtype == torch.int64
    assert labels.tolist() == list(expected.values())


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_large_table_agrees_wherever_one_looks(operation):
    p = 97
    task = ModularArithmetic(operation, p)
    pairs, labels = residues(task), task.label(task.table()).tolist()
    for i in random.Random(0).sample(range(task.size), 60):
        assert labels[i] == by_hand(operation, *pairs[i], p)
    assert pairs == sorted(pairs)
    assert min(labels) >= 0
    assert max(labels) < p


@pytest.mark.parametrize(("p", "units"), [(2, 1), (97, 96), (113, 112), (15, 8), (4, 2), (6, 2)])
def test_the_number_of_rows_follows_from_the_divisors_that_have_an_inverse(p, units):
    assert ModularArithmetic("divide", p).size == p * units
    odd = sum(1 for y in range(p) if y % 2 == 0 or math.gcd(y, p) == 1)
    assert ModularArithmetic("odd_divide", p).size == p * odd
    assert ModularArithmetic("add", p).size == p * p


def test_sizes_and_widths_are_those_of_the_papers():
    task = ModularArithmetic()
    assert (task.operation, task.p, task.size) == ("add", 113, 12_769)
    assert (task.n_inputs, task.n_tokens, task.n_outputs) == (4, 115, 113)
    assert ModularArithmetic("divide").size == 12_656
    assert ModularArithmetic("odd_divide", 97).size == 9_409


def test_rows_are_read_wherever_they_stand():
    task = ModularArithmetic("subtract", 7)
    rows = torch.tensor([[2, 7, 5, 8], [6, 7, 6, 8], [0, 7, 1, 8]])
    assert task.label(rows).tolist() == [4, 0, 6]
    assert task.label(rows[:0]).tolist() == []


@pytest.mark.parametrize("p", [2, 3, 4, 15])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_mirror_is_where_the_swapped_row_stands(operation, p):
    task = ModularArithmetic(operation, p)
    pairs = residues(task)
    expected = [pairs.index((y, x)) if (y, x) in pairs else -1 for x, y in pairs]
    assert task.mirror().tolist() == expected
    labels = task.label(task.table())
    if operation in SYMMETRIC:
        assert torch.equal(labels[task.mirror()], labels)


def test_a_quotient_whose_swap_divides_by_zero_has_none():
    task = ModularArithmetic("divide", 5)
    pairs = residues(task)
    assert task.mirror()[pairs.index((0, 3))] == -1
    assert task.mirror()[pairs.index((2, 2))] == pairs.index((2, 2))


def test_other_tasks_have_no_mirror_and_no_tokens():
    class Numbers(Task):
        n_inputs, n_outputs = 1, 1

        def label(self, inputs):
            return inputs[:, 0]

    assert Numbers().mirror() is None
    assert Numbers().n_tokens == 0


@pytest.mark.parametrize("p", [1, 0, -3])
def test_a_modulus_below_two_is_refused(p):
    with pytest.raises(ValueError, match=rf"^ModularArithmetic: p must be at least 2, got p = {p}$"):
        ModularArithmetic("add", p)


def test_two_is_the_smallest_modulus():
    task = ModularArithmetic("add", 2)
    assert task.label(task.table()).tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize(
    ("given", "meant"), [("ad", "add"), ("divde", "divide"), ("multply", "multiply"), ("cube_x", "cube_xy")]
)
def test_an_unknown_operation_gets_the_nearest_name(given, meant):
    with pytest.raises(ValueError, match=rf"operation: expected one of add, .* got '{given}'; did you mean {meant}\?$"):
        ModularArithmetic(given)


def test_an_operation_like_no_other_gets_the_list():
    with pytest.raises(ValueError, match=r"cube_xy2_y or a function, got 'zzz'$"):
        ModularArithmetic("zzz")


def test_an_operation_of_ones_own_is_taken_mod_p():
    task = ModularArithmetic(lambda x, y, p: 2 * x - 3 * y + p, 6)
    assert task.label(task.table()).tolist() == [(2 * x - 3 * y) % 6 for x, y in itertools.product(range(6), repeat=2)]
    assert task.size == 36


def test_an_operation_of_ones_own_may_have_no_name():
    task = ModularArithmetic(partial(lambda k, x, y, p: x + k * y, 2), 5)
    assert task.label(task.table())[7] == (1 + 2 * 2) % 5


@pytest.mark.parametrize(
    ("result", "got"),
    [
        (lambda x: x.double(), "torch.float64 (9,)"),
        (lambda x: x.int(), "torch.int32 (9,)"),
        (lambda x: x.unsqueeze(1), "torch.int64 (9, 1)"),
        (lambda x: x[:4], "torch.int64 (4,)"),
        (lambda x: x.sum(), "torch.int64 ()"),
        (lambda x: x.tolist(), "list"),
        (lambda x: None, "NoneType"),
    ],
)
def test_an_operation_of_ones_own_that_returns_something_else_is_refused(result, got):
    def mine(x, y, p):
        return result(x + y)

    with pytest.raises(ValueError, match=re.escape(f"expected mine to return torch.int64 (9,), got {got}")):
        ModularArithmetic(mine, 3)


def test_what_the_docstring_lists_is_what_there_is():
    listed = re.findall(r"^    ``(\w+)``  +(.+?)  +p", ModularArithmetic.__doc__, flags=re.MULTILINE)
    assert listed == [(name, rule.formula) for name, rule in OPERATIONS.items()]


def test_a_function_that_is_no_operation_is_refused_by_name():
    def takes_two(x, y):
        return x + y

    with pytest.raises(ValueError, match=r"operation: takes_two fails as \(x, y, p\) -> z: .* positional arguments"):
        ModularArithmetic(takes_two, 5)
    with pytest.raises(ValueError, match="operation: gcd fails as"):
        ModularArithmetic(math.gcd, 5)
    with pytest.raises(ValueError, match="or a function, got '3'"):
        ModularArithmetic(3, p=5)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_name_stays_a_name_on_the_command_line(operation, monkeypatch, capsys):
    """A function of the same name in the task's module would be taken for an operation of one's own."""
    monkeypatch.setattr("sys.argv", ["grok"])
    task = ["--data.task", "ModularArithmetic", "--data.task.operation", operation, "--data.train_size", "3"]
    with pytest.raises(SystemExit):
        main(["fit", "--model", "Transformer", "--data", "TableData", *task, "--print_config"])
    printed = capsys.readouterr()
    assert f"operation: {operation}\n" in printed.out
    assert "Unable to serialize" not in printed.err


# One-hot rows.


@pytest.mark.parametrize("p", [2, 3, 6])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_one_hot_rows_are_the_same_pairs(operation, p):
    tokens, numbers = ModularArithmetic(operation, p), ModularArithmetic(operation, p, encoding="one-hot")
    assert (numbers.n_inputs, numbers.n_tokens, numbers.n_outputs) == (2 * p, 0, p)
    assert numbers.size == tokens.size
    table = numbers.table()
    assert table.dtype == torch.float32
    expected = [[float(i == x) for i in range(p)] + [float(i == y) for i in range(p)] for x, y in residues(tokens)]
    assert table.tolist() == expected
    assert torch.equal(numbers.label(table), tokens.label(tokens.table()))
    assert torch.equal(numbers.label(table.double()), numbers.label(table))
    assert torch.equal(numbers.mirror(), tokens.mirror())
    assert numbers.label(table[:0]).tolist() == []


@pytest.mark.parametrize("split", ["random", "symmetric"])
def test_a_seed_trains_on_the_same_pairs_in_either_encoding(split):
    tokens, numbers = (ModularArithmetic("subtract", 7, encoding) for encoding in ("tokens", "one-hot"))
    left, right = (split_rows(task, seed=3, train_size=20, n_held_out=None, split=split) for task in (tokens, numbers))

    def pairs(rows):
        return rows.unflatten(1, (2, 7)).argmax(dim=-1).tolist()

    assert pairs(right.inputs) == left.inputs[:, [0, 2]].tolist()
    assert pairs(right.held_out_inputs) == left.held_out_inputs[:, [0, 2]].tolist()
    assert torch.equal(right.targets, left.targets)
    assert torch.equal(right.held_out_targets, left.held_out_targets)
    assert torch.equal(right.held_out_subsets["unpaired"], left.held_out_subsets["unpaired"])


def test_one_hot_rows_can_be_drawn_without_end():
    rows = FreshRows(ModularArithmetic("add", 5, encoding="one-hot"), seed=0, n_held_out=5)
    inputs, targets = rows.block(0, 50)
    pairs = inputs.unflatten(1, (2, 5)).argmax(dim=-1)
    assert torch.equal(targets, pairs.sum(dim=1) % 5)
    held_out = {tuple(row) for row in rows.held_out_inputs.tolist()}
    assert not held_out & {tuple(row) for row in inputs.tolist()}


def test_data_say_that_one_hot_rows_are_no_tokens():
    data = TableData(ModularArithmetic("add", 5, encoding="one-hot"), train_size=10, n_held_out=None)
    assert (data.n_inputs, data.n_tokens, data.n_outputs) == (10, 0, 5)


def test_an_unknown_encoding_is_refused():
    with pytest.raises(ValueError, match=r"^encoding: expected 'tokens' or 'one-hot', got 'onehot'$"):
        ModularArithmetic("add", 5, encoding="onehot")


def test_one_hot_rows_train_an_mlp_from_the_command_line_and_no_transformer(tmp_path, monkeypatch, capsys):
    task = ["--data.task", "ModularArithmetic", "--data.task.p", "5", "--data.task.encoding", "one-hot"]
    data = ["--data", "TableData", *task, "--data.train_size", "12", "--data.n_held_out", "null"]
    options = ["--trainer.max_steps", "2", "--trainer.default_root_dir", str(tmp_path)]
    mlp = ["--model.hidden", "[6]", "--model.activation", "square", "--model.bias", "false", "--model.loss", "squared"]
    monkeypatch.setattr("sys.argv", ["grok"])
    main(["fit", "--model", "MLP", *mlp, *data, *options])
    with pytest.raises(SystemExit):
        main(["fit", "--model", "Transformer", *data, *options])
    assert "Transformer: reads rows of tokens, and those of the task are numbers; use MLP" in capsys.readouterr().err
