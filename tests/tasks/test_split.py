import itertools

import pytest
import torch

from grok_lightning.tasks import SparseParity, Task, corrupt, split_rows


class Sum(Task):
    """a + b mod p: what a user writes."""

    def __init__(self, p):
        self.p = self.n_outputs = p
        self.n_inputs = 2
        self.size = p * p

    def label(self, inputs):
        return inputs.sum(dim=1) % self.p

    def table(self):
        return torch.cartesian_prod(torch.arange(self.p), torch.arange(self.p))


class Uncounted(Sum):
    """The same, whose author did not say how many inputs there are."""

    def __init__(self, p):
        super().__init__(p)
        self.size = None


class Dice(Task):
    """Draws one of few rows and does not say how few."""

    n_inputs = 1
    n_outputs = 6

    def label(self, inputs):
        return inputs[:, 0]

    def draw(self, n_rows, generator):
        return torch.randint(6, (n_rows, 1), generator=generator)


class Columns(Task):
    """Draws one column after the other, so that its first rows do depend on how many it draws at once."""

    n_inputs = 2
    n_outputs = 1000

    def label(self, inputs):
        return inputs[:, 0]

    def draw(self, n_rows, generator):
        return torch.stack([torch.randint(1000, (n_rows,), generator=generator) for _ in range(2)], dim=1)


class Nothing(Task):
    """Has neither a table nor a way to draw."""

    n_inputs = n_outputs = 1

    def label(self, inputs):
        return inputs[:, 0]


def as_set(rows):
    distinct = {tuple(row) for row in rows.tolist()}
    assert len(distinct) == len(rows), "rows repeat"
    return distinct


def sizes_of(n):
    """Training sizes of n bits: one row, half, all but one, all; of many bits some hundreds."""
    return [1, 2 ** (n - 1), 2**n - 1, 2**n] if n <= 12 else [1, 300, 3000]


@pytest.mark.parametrize("n", [*range(3, 13), 17, 40])
@pytest.mark.parametrize("nested", [True, False])
def test_held_out_rows_are_never_trained_on(n, nested):
    task = SparseParity(n, 3)
    for seed, train_size in itertools.product(range(2), sizes_of(n)):
        split = split_rows(task, seed, train_size, n_held_out=500, nested=nested)
        train, held_out = as_set(split.inputs), as_set(split.held_out_inputs)
        assert len(train) == train_size
        assert len(held_out) == min(500, 2**n - train_size)
        assert not train & held_out
        assert torch.equal(split.targets, task.label(split.inputs))
        assert torch.equal(split.true_targets, split.targets)
        assert torch.equal(split.held_out_targets, task.label(split.held_out_inputs))


def test_a_table_that_is_asked_for_whole_is_given_whole():
    task = SparseParity(6, 2)
    split = split_rows(task, 0, train_size=24, n_held_out=10_000)
    assert as_set(split.inputs) | as_set(split.held_out_inputs) == as_set(task.table())
    # In a random order: the table's own would train on one half of the cube.
    assert not torch.equal(split.inputs, task.table()[:24])


def test_rows_beyond_the_listed_ones_can_run_out_too():
    # Not listed, so drawn; all but one row are taken for training, and the last is found.
    task = SparseParity(3, 2)
    task.table = lambda: None
    split = split_rows(task, 0, train_size=7, n_held_out=5)
    assert len(as_set(split.inputs) | as_set(split.held_out_inputs)) == 8
    assert len(split.held_out_inputs) == 1


def test_a_full_table_leaves_no_held_out_rows():
    split = split_rows(SparseParity(4, 2), 0, train_size=16, n_held_out=10)
    assert split.held_out_inputs.shape == (0, 4)
    assert split.held_out_targets.shape == (0,)


@pytest.mark.parametrize("n", [12, 17, 40])
def test_no_held_out_rows_may_be_wanted(n):
    split = split_rows(SparseParity(n, 2), 0, train_size=16, n_held_out=0)
    assert split.held_out_inputs.shape == (0, n)


@pytest.mark.parametrize("n", [12, 17, 40])
def test_the_rows_of_a_smaller_set_are_a_prefix(n):
    task = SparseParity(n, 3)
    large = split_rows(task, 5, 2500, 10).inputs
    for size in (1, 1023, 1024, 1025):
        assert torch.equal(split_rows(task, 5, size, 10).inputs, large[:size])


def test_rows_are_nested_however_the_task_draws():
    large = split_rows(Columns(), 5, 2500, 10).inputs
    for size in (1, 1024, 1025):
        assert torch.equal(split_rows(Columns(), 5, size, 10).inputs, large[:size])


@pytest.mark.parametrize("n", [12, 40])
def test_rows_that_are_not_nested_are_drawn_anew_for_every_size(n):
    task = SparseParity(n, 3)
    small, large = (split_rows(task, 5, size, 10, nested=False).inputs for size in (200, 201))
    assert len(as_set(small) & as_set(large)) < 50
    assert torch.equal(small, split_rows(task, 5, 200, 10, nested=False).inputs)


@pytest.mark.parametrize("n", [12, 40])
def test_seeds_have_rows_of_their_own(n):
    first, second = (split_rows(SparseParity(n, 3), seed, 200, 200) for seed in (0, 1))
    assert len(as_set(first.inputs) & as_set(second.inputs)) < 50
    assert len(as_set(first.held_out_inputs) & as_set(second.held_out_inputs)) < 50


@pytest.mark.parametrize(
    ("train_size", "n_held_out", "message"),
    [
        (0, 5, "train_size: expected at least 1 row to train on, got 0"),
        (-3, 5, "got -3"),
        (17, 5, "at most the 16 rows that there are, got 17"),
        (5, -1, "n_held_out: expected at least 0, got -1"),
    ],
)
def test_sizes_out_of_range_are_refused(train_size, n_held_out, message):
    with pytest.raises(ValueError, match=message):
        split_rows(SparseParity(4, 2), 0, train_size, n_held_out)


def test_a_table_is_never_asked_for_more_rows_than_it_has_said_or_not():
    # Fewer rows than the loader believes in would be misread, not missed.
    with pytest.raises(ValueError, match="at most the 25 rows that there are, got 26"):
        split_rows(Uncounted(5), 0, 26, 1)


def test_a_users_own_task_is_split_like_ours():
    task = Sum(7)
    split = split_rows(task, 3, train_size=30, n_held_out=100)
    assert as_set(split.inputs) | as_set(split.held_out_inputs) == set(itertools.product(range(7), repeat=2))
    assert split.inputs.dtype == split.targets.dtype == torch.int64
    for inputs, targets in [(split.inputs, split.targets), (split.held_out_inputs, split.held_out_targets)]:
        assert targets.tolist() == [(a + b) % 7 for a, b in inputs.tolist()]


def test_a_task_with_a_table_can_be_drawn_from():
    drawn = Sum(3).draw(500, torch.Generator().manual_seed(0))
    assert {tuple(row) for row in drawn.tolist()} == set(itertools.product(range(3), repeat=2))


def test_a_task_that_has_no_more_rows_ends_in_an_error():
    task = Dice()
    assert len(split_rows(task, 0, 4, 2).held_out_inputs) == 2
    with pytest.raises(ValueError, match=r"Dice: .* found no new one after 6"):
        split_rows(task, 0, 7, 0)


def test_a_task_without_rows_is_named():
    with pytest.raises(NotImplementedError, match=r"Nothing has neither table\(\) nor draw\(\)"):
        split_rows(Nothing(), 0, 1, 0)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 1.0])
def test_noise_flips_its_share_of_the_training_labels_and_no_others(share):
    clean = split_rows(SparseParity(12, 3), 0, 200, 100)
    noisy = split_rows(SparseParity(12, 3), 0, 200, 100, label_noise=share)
    wrong = noisy.targets != noisy.true_targets
    assert wrong.sum() == 200 * share
    assert torch.equal(noisy.targets[wrong], -noisy.true_targets[wrong])
    # Rows and held-out labels are those of the run without noise.
    for name in ("inputs", "true_targets", "held_out_inputs", "held_out_targets"):
        assert torch.equal(getattr(noisy, name), getattr(clean, name))


def test_noise_of_classes_is_uniform_over_the_wrong_ones():
    p = 5
    targets = torch.arange(p).repeat(2000)
    noisy = corrupt(targets, p, 0.5, torch.Generator().manual_seed(0))
    assert noisy.dtype == torch.int64
    assert (noisy != targets).sum() == 5000
    for c in range(p):
        counts = torch.bincount(noisy[(targets == c) & (noisy != c)], minlength=p)
        assert counts[c] == 0
        # About 250 each; five standard deviations of a binomial with that mean.
        assert all(
            abs(int(count) - int(counts.sum()) / (p - 1)) < 5 * 250**0.5 for d, count in enumerate(counts) if d != c
        )


def test_noise_of_two_classes_is_the_other_one():
    targets = torch.tensor([0, 1, 1, 0])
    assert corrupt(targets, 2, 1.0, torch.Generator()).tolist() == [1, 0, 0, 1]


def test_noise_spreads_over_the_rows_and_copies_the_labels():
    targets = torch.ones(1000)
    noisy = corrupt(targets, 1, 0.3, torch.Generator().manual_seed(0))
    assert 100 < (noisy[:500] < 0).sum() < 200
    assert torch.equal(targets, torch.ones(1000))
    seeds = [corrupt(targets, 1, 0.3, torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    assert torch.equal(seeds[0], noisy)
    assert not torch.equal(seeds[1], noisy)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(ValueError, match="label_noise: expected a share in"):
        corrupt(torch.ones(4), 1, share, torch.Generator())
