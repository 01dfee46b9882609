import itertools

import pytest
import torch

from grok_lightning.population import stream
from grok_lightning.tasks import ModularArithmetic, SparseParity, Task, corrupt, split_rows
from grok_lightning.tasks.split import draw_labels


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


# Rows whose swap is told apart.


def pairs_of(rows):
    return {(a, b) for a, _, b, _ in as_set(rows)}


def unpaired_by_hand(split):
    """Held-out rows whose swap is not a training row, whether or not the table has it."""
    trained = pairs_of(split.inputs)
    return [(b, a) not in trained for a, _, b, _ in split.held_out_inputs.tolist()]


@pytest.mark.parametrize(("operation", "p"), [("add", 2), ("add", 11), ("subtract", 6), ("divide", 7), ("divide", 15)])
@pytest.mark.parametrize("rule", ["random", "symmetric"])
@pytest.mark.parametrize("n_held_out", [0, 3, None])
def test_held_out_rows_whose_swap_is_not_trained_on_are_unpaired(operation, p, rule, n_held_out):
    task = ModularArithmetic(operation, p)
    for seed, train_size in itertools.product(range(3), {2, task.size // 3 + 2, task.size - 1, task.size}):
        split = split_rows(task, seed, train_size, n_held_out, split=rule)
        mask = split.held_out_subsets["unpaired"]
        assert mask.dtype == torch.bool
        assert mask.tolist() == unpaired_by_hand(split)


def test_a_held_out_row_that_is_its_own_swap_is_unpaired():
    split = split_rows(ModularArithmetic("add", 11), 0, 60, None)
    own = split.held_out_inputs[:, 0] == split.held_out_inputs[:, 2]
    assert own.any()
    assert split.held_out_subsets["unpaired"][own].all()
    assert 0 < split.held_out_subsets["unpaired"].sum() < len(own)


def test_without_a_mirror_no_rows_are_told_apart():
    for n in (6, 40):
        assert split_rows(SparseParity(n, 2), 0, 30, 10).held_out_subsets == {}


@pytest.mark.parametrize(("operation", "p"), [("add", 2), ("add", 3), ("add", 12), ("divide", 7), ("divide", 15)])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_symmetric_split_never_parts_a_row_from_its_swap(operation, p, seed):
    task = ModularArithmetic(operation, p)
    table = pairs_of(task.table())
    whole = split_rows(task, seed, task.size, None, split="symmetric")
    assert pairs_of(whole.inputs) == table
    assert len(whole.held_out_inputs) == 0
    for train_size in range(2, task.size):
        split = split_rows(task, seed, train_size, None, split="symmetric")
        trained, held_out = pairs_of(split.inputs), pairs_of(split.held_out_inputs)
        assert len(split.inputs) in (train_size, train_size - 1)
        assert len(split.targets) == len(split.inputs)
        assert trained | held_out == table
        assert not trained & held_out
        assert all((b, a) in trained for a, b in trained if (b, a) in table)
        # Nested; and no row that would have fitted by itself, or with its swap, is left out.
        assert torch.equal(split.inputs, whole.inputs[: len(split.inputs)])
        if len(split.inputs) < train_size:
            a, _, b, _ = whole.inputs[len(split.inputs)].tolist()
            assert a != b
        assert torch.equal(split.targets, task.label(split.inputs))


def test_a_symmetric_split_is_drawn_pair_by_pair():
    task = ModularArithmetic("add", 13)
    splits = [split_rows(task, seed, 60, 0, split="symmetric") for seed in range(2)]
    assert pairs_of(splits[0].inputs) != pairs_of(splits[1].inputs)
    # A random split of this size has more than sixty chances to part a pair.
    random = split_rows(task, 0, 60, 0)
    assert any((b, a) not in pairs_of(random.inputs) for a, b in pairs_of(random.inputs))
    apart = split_rows(task, 0, 60, 0, split="symmetric", nested=False)
    assert not torch.equal(apart.inputs, splits[0].inputs)


def test_a_row_that_did_not_fit_is_held_out():
    split = split_rows(ModularArithmetic("add", 3), 0, 4, 2000, split="symmetric")
    assert len(split.inputs) + len(split.held_out_inputs) == 9


def test_half_a_pair_is_no_training_set():
    task = ModularArithmetic("add", 11)
    with pytest.raises(ValueError, match=r"train_size: with split: symmetric expected at least 2, .* got 1"):
        split_rows(task, 0, 1, 0, split="symmetric")
    # For some seeds a row that is its own swap comes first, and is enough.
    alone = [seed for seed in range(40) if _fits_alone(task, seed)]
    assert 0 < len(alone) < 20


def _fits_alone(task, seed):
    try:
        row = split_rows(task, seed, 1, 0, split="symmetric").inputs
    except ValueError:
        return False
    assert row[0, 0] == row[0, 2]
    return True


def test_a_symmetric_split_needs_to_know_what_a_swap_is():
    for n in (6, 40):
        with pytest.raises(ValueError, match=r"split: symmetric needs a task .* and SparseParity does not"):
            split_rows(SparseParity(n, 2), 0, 10, 5, split="symmetric")


def test_a_mirror_that_is_none_is_refused():
    task = ModularArithmetic("add", 5)
    task.mirror = lambda: torch.arange(25).roll(1)
    with pytest.raises(ValueError, match="the swap of a row's swap is the row itself"):
        split_rows(task, 0, 10, 5, split="symmetric")


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="split: expected 'random' or 'symmetric', got 'sorted'"):
        split_rows(ModularArithmetic("add", 5), 0, 10, 5, split="sorted")


# All other rows


@pytest.mark.parametrize("rule", ["random", "symmetric"])
def test_all_rows_that_are_not_trained_on_can_be_held_out(rule):
    task = ModularArithmetic("add", 11)
    split = split_rows(task, 0, 40, None, split=rule)
    assert pairs_of(split.inputs) | pairs_of(split.held_out_inputs) == pairs_of(task.table())
    # Fewer are the first of these.
    assert torch.equal(split_rows(task, 0, 40, 7, split=rule).held_out_inputs, split.held_out_inputs[:7])


def test_all_other_rows_of_a_task_without_a_list_are_refused():
    with pytest.raises(ValueError, match="n_held_out: expected a number, as SparseParity does not list its rows"):
        split_rows(SparseParity(40, 2), 0, 10, None)


# Random labels


@pytest.mark.parametrize("n", [12, 40])
def test_random_labels_leave_the_rows_and_the_held_out_labels_alone(n):
    task = SparseParity(n, 3)
    clean, split = (split_rows(task, 0, 1000, 100, random_labels=random) for random in (False, True))
    for name in ("inputs", "held_out_inputs", "held_out_targets"):
        assert torch.equal(getattr(split, name), getattr(clean, name))
    assert torch.equal(split.targets, split.true_targets)
    assert split.targets.dtype == clean.targets.dtype
    assert set(split.targets.tolist()) == {-1.0, 1.0}
    # Half are right, within five standard deviations.
    assert abs(int((split.targets == clean.targets).sum()) - 500) < 5 * 250**0.5


def test_random_labels_are_uniform_over_all_classes_whatever_the_row():
    p = 5
    like = torch.zeros(20_000, dtype=torch.int64)
    drawn = draw_labels(like, p, torch.Generator().manual_seed(0))
    assert drawn.dtype == torch.int64
    counts = torch.bincount(drawn, minlength=p)
    assert len(counts) == p
    assert (counts - 4000).abs().max() < 5 * 3200**0.5


@pytest.mark.parametrize("rule", ["random", "symmetric"])
def test_random_labels_of_fewer_rows_are_the_first_of_those_of_more(rule):
    task = ModularArithmetic("add", 31)
    large = split_rows(task, 5, 900, 0, random_labels=True, split=rule)
    for size in (2, 15, 16, 17, 500):
        small = split_rows(task, 5, size, 0, random_labels=True, split=rule)
        assert torch.equal(small.targets, large.targets[: len(small.targets)])
    other = split_rows(task, 6, 900, 0, random_labels=True, split=rule)
    assert not torch.equal(other.targets[:200], large.targets[:200])


def test_random_labels_that_are_not_nested_are_drawn_anew_for_every_size():
    task = ModularArithmetic("add", 31)
    small, large = (split_rows(task, 5, size, 0, nested=False, random_labels=True) for size in (200, 201))
    assert not torch.equal(small.targets, large.targets[:200])


@pytest.mark.parametrize("share", [0.1, 1.0, float("nan")])
def test_random_labels_are_not_made_noisy(share):
    with pytest.raises(ValueError, match=f"label_noise: random labels have no right ones to change, got {share}"):
        split_rows(ModularArithmetic("add", 5), 0, 10, 5, label_noise=share, random_labels=True)


# Configs state what these rows gave: they must stay.


@pytest.mark.parametrize(("train_size", "n_held_out"), [(1, 5), (300, 200), (1000, 100)])
@pytest.mark.parametrize("nested", [True, False])
def test_the_rows_of_a_listed_task_are_drawn_from_these_streams(train_size, n_held_out, nested):
    task = SparseParity(11, 3)
    split = split_rows(task, 3, train_size, n_held_out, label_noise=0.1, nested=nested)
    suffix = "" if nested else f" of {train_size}"
    order = torch.randperm(2**11, generator=stream(3, "training rows" + suffix)).tolist()
    table = task.table().tolist()
    assert split.inputs.tolist() == [table[i] for i in order[:train_size]]
    rest = sorted(order[train_size:])
    chosen = torch.randperm(len(rest), generator=stream(3, "held-out rows")).tolist()[:n_held_out]
    assert split.held_out_inputs.tolist() == [table[rest[i]] for i in chosen]
    wrong = torch.randperm(train_size, generator=stream(3, "label noise" + suffix))[: round(0.1 * train_size)]
    assert (split.targets != split.true_targets).nonzero().flatten().tolist() == sorted(wrong.tolist())


def test_the_rows_of_a_task_that_draws_come_from_these_streams():
    task = SparseParity(40, 3)
    split = split_rows(task, 3, 1100, 50)
    generator = stream(3, "training rows")
    drawn = torch.cat([task.draw(1024, generator), task.draw(1024, generator)])
    assert torch.equal(split.inputs, drawn[:1100])
    assert torch.equal(split.held_out_inputs, task.draw(1024, stream(3, "held-out rows"))[:50])
