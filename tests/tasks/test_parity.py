import itertools
import math

import numpy as np
import pytest
import torch

from grok_lightning.tasks import SparseParity


def draws(task, n_rows, seed=0):
    return task.draw(n_rows, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_the_table_counts_in_binary(n):
    table = SparseParity(n, 1).table()
    assert table.dtype == torch.float32
    assert table.tolist() == [list(row) for row in itertools.product([-1.0, 1.0], repeat=n)]


def test_tables_end_at_16_bits():
    assert SparseParity(16, 3).table().shape == (2**16, 16)
    assert SparseParity(17, 3).table() is None
    assert SparseParity(40, 3).size == 2**40


@pytest.mark.parametrize(("n", "k"), [(1, 1), (2, 1), (2, 2), (5, 3), (6, 6)])
@pytest.mark.parametrize("subset", ["first", "drawn"])
def test_a_label_is_the_product_of_the_secret_bits(n, k, subset):
    task = SparseParity(n, k, subset, subset_seed=4)
    table = task.table()
    labels = task.label(table)
    assert labels.dtype == torch.float32
    assert labels.shape == (2**n,)
    secret = list(range(k)) if subset == "first" else task.secret.tolist()
    np.testing.assert_array_equal(labels.numpy(), np.prod(table.numpy()[:, secret], axis=1))
    # Every parity is balanced over all inputs.
    assert labels.sum() == 0


def test_labels_of_many_bits_and_of_no_rows():
    task = SparseParity(40, 3)
    inputs = draws(task, 500)
    np.testing.assert_array_equal(task.label(inputs).numpy(), np.prod(inputs.numpy()[:, :3], axis=1))
    assert task.label(inputs[:0]).shape == (0,)


def test_all_bits_but_the_secret_ones_are_ignored():
    task = SparseParity(9, 4, "drawn", subset_seed=1)
    inputs = draws(task, 50)
    for i in range(9):
        flipped = inputs.clone()
        flipped[:, i] *= -1
        factor = -1 if i in task.secret.tolist() else 1
        assert torch.equal(task.label(flipped), factor * task.label(inputs))


def test_the_first_subset_is_that_of_the_papers_code():
    assert SparseParity().secret.tolist() == [0, 1, 2]
    assert SparseParity().n_inputs == 40
    assert SparseParity().n_outputs == 1


def test_positions_of_ones_own_are_secret():
    task = SparseParity(20, 3, [11, 4, 9])
    assert task.secret.tolist() == [4, 9, 11]
    rows = task.draw(50, torch.Generator().manual_seed(0))
    assert torch.equal(task.label(rows), rows[:, 4] * rows[:, 9] * rows[:, 11])
    assert SparseParity(20, 1, (7,)).secret.tolist() == [7]
    with pytest.raises(ValueError, match="'subset_seed' needs subset: drawn"):
        task.for_member({"subset_seed": 1})


def test_drawn_subsets_are_k_positions_in_order_that_follow_the_seed():
    secrets = [SparseParity(40, 3, "drawn", seed).secret.tolist() for seed in range(50)]
    assert all(secret == sorted(set(secret)) and len(secret) == 3 for secret in secrets)
    assert len({tuple(secret) for secret in secrets}) > 40
    # Every position is drawn by some seed: the last is not left out.
    assert set(itertools.chain(*[SparseParity(5, 2, "drawn", seed).secret.tolist() for seed in range(50)])) == set(
        range(5)
    )
    assert SparseParity(40, 3, "drawn", 7).secret.tolist() == secrets[7]


def test_a_member_has_its_own_secret():
    task = SparseParity(40, 3, "drawn", subset_seed=0)
    assert task.for_member({}) is task
    other = task.for_member({"subset_seed": 9})
    assert isinstance(other, SparseParity)
    assert (other.n, other.k) == (40, 3)
    assert other.secret.tolist() == SparseParity(40, 3, "drawn", 9).secret.tolist() != task.secret.tolist()
    assert task.secret.tolist() == SparseParity(40, 3, "drawn", 0).secret.tolist()


def test_a_seed_of_a_subset_that_is_not_drawn_is_refused():
    with pytest.raises(ValueError, match="'subset_seed' needs subset: drawn"):
        SparseParity(40, 3).for_member({"subset_seed": 1})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n must be at least 1, got n = 0"),
        ({"n": 3, "k": 4}, "k must lie in 1 to n, got k = 4, n = 3"),
        ({"n": 3, "k": 0}, "k must lie in 1 to n, got k = 0"),
        ({"subset": "last"}, "'first', 'drawn' or a list of positions, got 'last'"),
        ({"subset": [1, 2]}, "k = 3 different positions, got \\[1, 2\\]"),
        ({"subset": [1, 2, 2, 4]}, "k = 3 different positions"),
        ({"subset": [1, 2, 2]}, "k = 3 different positions"),
        ({"subset": [1, 2, 40]}, "must lie in 0 to 39, got \\[1, 2, 40\\]"),
        ({"subset": [-1, 2, 4]}, "must lie in 0 to 39"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SparseParity(**options)


def test_drawn_bits_are_fair_and_independent():
    n_rows = 20_000
    bits = draws(SparseParity(17, 3), n_rows).double()
    assert set(bits.unique().tolist()) == {-1.0, 1.0}
    products = bits.mT @ bits / n_rows - torch.eye(17)
    # Five standard errors of a mean of fair signs.
    assert bits.mean(dim=0).abs().max() < 5 / math.sqrt(n_rows)
    assert products.abs().max() < 5 / math.sqrt(n_rows)


@pytest.mark.parametrize("n", [3, 17, 40])
def test_the_first_rows_drawn_do_not_depend_on_how_many(n):
    task = SparseParity(n, 3)
    many = draws(task, 3000)
    for n_rows in (0, 1, 15, 16, 17, 1024):
        assert torch.equal(draws(task, n_rows), many[:n_rows])
