import itertools

import pytest
import torch

from grok_lightning.networks import MLPNetwork
from grok_lightning.population import stream
from grok_lightning.tasks import FreshRows, SparseParity, Task, fresh, split_rows


class Sum(Task):
    """a + b mod p: whole numbers, all listed."""

    def __init__(self, p):
        self.p = self.n_outputs = p
        self.n_inputs = 2

    def label(self, inputs):
        return inputs.sum(dim=1) % self.p

    def table(self):
        return torch.cartesian_prod(torch.arange(self.p), torch.arange(self.p))


class Dice(Task):
    """Draws one of six rows and does not say how few there are."""

    n_inputs = 1
    n_outputs = 6

    def label(self, inputs):
        return inputs[:, 0]

    def draw(self, n_rows, generator):
        return torch.randint(6, (n_rows, 1), generator=generator)


class Unlisted(SparseParity):
    """Few bits that are drawn, as many bits are."""

    def table(self):
        return None


def tuples(rows):
    return [tuple(row) for row in rows.tolist()]


@pytest.mark.parametrize("kind", [SparseParity, Unlisted])
@pytest.mark.parametrize(("n", "n_held_out"), [(1, 1), (3, 1), (3, 7), (4, 8), (8, 255), (10, 500)])
def test_held_out_rows_are_never_trained_on(kind, n, n_held_out):
    """So few rows that a draw which did not look would meet a held-out one."""
    task = kind(n, 1)
    for seed in range(3):
        rows = FreshRows(task, seed, n_held_out)
        held_out = tuples(rows.held_out_inputs)
        assert len(held_out) == len(set(held_out)) == n_held_out
        assert torch.equal(rows.held_out_targets, rows.held_out_inputs[:, 0])
        for index in range(3):
            inputs, targets = rows.block(index, 700)
            assert inputs.shape == (700, n)
            assert torch.equal(targets, inputs[:, 0])
            assert not set(tuples(inputs)) & set(held_out)
        if n <= 4:
            everything = set(itertools.product([-1.0, 1.0], repeat=n))
            assert set(tuples(inputs)) == everything - set(held_out)


@pytest.mark.parametrize("n", [17, 50])
def test_many_bits_are_drawn_with_their_labels(n):
    rows = FreshRows(SparseParity(n, 3), 0, 3000)
    inputs, targets = rows.block(4, 2000)
    assert torch.equal(targets, inputs[:, :3].prod(dim=1))
    assert not set(tuples(inputs)) & set(tuples(rows.held_out_inputs))


def test_a_draw_that_did_not_look_would_be_seen(monkeypatch):
    monkeypatch.setattr(FreshRows, "_without_held_out", lambda self, rows: rows)
    rows = FreshRows(Unlisted(3, 1), 0, 7)
    assert set(tuples(rows.block(0, 700)[0])) & set(tuples(rows.held_out_inputs))


@pytest.mark.parametrize("kind", [SparseParity, Unlisted])
def test_every_row_that_is_not_held_out_comes_equally_often(kind):
    rows = FreshRows(kind(5, 2), 0, 12)
    counts: dict = {}
    for index in range(20):
        for row in tuples(rows.block(index, 1000)[0]):
            counts[row] = counts.get(row, 0) + 1
    assert len(counts) == 20
    # 1,000 of each are expected. Chi-square with 19 degrees of freedom: above 50 with probability 1e-4.
    assert sum((count - 1000) ** 2 / 1000 for count in counts.values()) < 50


@pytest.mark.parametrize("kind", [SparseParity, Unlisted])
def test_a_block_depends_on_the_seed_its_index_and_its_size_alone(kind):
    first, again = (FreshRows(kind(6, 2), 3, 40) for _ in range(2))
    expected = [first.block(index, 100) for index in range(6)]
    for index in [5, 0, 3, 3, 1]:
        for mine, theirs in zip(again.block(index, 100), expected[index], strict=True):
            assert torch.equal(mine, theirs)
    other = FreshRows(kind(6, 2), 4, 40)
    assert not torch.equal(other.block(0, 100)[0], expected[0][0])
    assert not torch.equal(other.held_out_inputs, first.held_out_inputs)
    assert not torch.equal(expected[0][0], expected[1][0])


def correlation(first, second):
    n = min(first.numel(), second.numel())
    pair = torch.stack([first.flatten()[:n].double(), second.flatten()[:n].double()])
    return float(torch.corrcoef(pair)[0, 1].abs()) * n**0.5


def streams(seed):
    """What is drawn for one seed: two blocks, held-out rows, the rows of a finite training set, initial weights."""
    task = SparseParity(50, 3)
    rows = FreshRows(task, seed, 400)
    network = MLPNetwork(50, 1, [400], [stream(seed, "initial weights")])
    finite = split_rows(task, seed, 400, 400)
    return [
        rows.block(0, 400)[0],
        rows.block(1, 400)[0],
        rows.held_out_inputs,
        finite.inputs,
        network.hidden[0].weight.detach(),
    ]


def test_the_streams_of_one_seed_share_nothing():
    """20,000 values each; correlations are in their standard deviations."""
    for seed in range(3):
        for first, second in itertools.combinations(streams(seed), 2):
            assert correlation(first, second) < 5


def test_streams_that_did_share_would_be_seen(monkeypatch):
    monkeypatch.setattr(fresh, "stream", lambda seed, name: torch.Generator().manual_seed(seed))
    first, second, *_ = streams(0)
    assert correlation(first, second) > 100


@pytest.mark.parametrize(
    ("task", "n_held_out", "message"),
    [
        (SparseParity(4, 2), 0, "n_held_out: expected at least 1, as nothing else is validated on, got 0"),
        (SparseParity(4, 2), -2, "got -2"),
        (SparseParity(4, 2), 16, "fewer than the 16 rows that there are, so that some are left to train on, got 16"),
        (SparseParity(8, 2), 2000, "fewer than the 256 rows .* got 2000"),
        (SparseParity(17, 2), 2**17, "fewer than the 131072 rows"),
        (Sum(3), 9, "fewer than the 9 rows"),
        (Dice(), 6, "6 held-out rows leave none to train on: .* Dice"),
        (Dice(), 7, "Dice: .* found no new one after 6"),
    ],
)
def test_holding_out_everything_is_refused(task, n_held_out, message):
    with pytest.raises(ValueError, match=message):
        FreshRows(task, 0, n_held_out)


def test_one_row_that_is_left_is_trained_on_again_and_again():
    for task in (Dice(), Sum(2)):
        size = 6 if isinstance(task, Dice) else 4
        rows = FreshRows(task, 1, size - 1)
        inputs, targets = rows.block(2, 50)
        assert len(set(tuples(inputs))) == 1
        assert tuples(inputs)[0] not in tuples(rows.held_out_inputs)
        assert torch.equal(targets, task.label(inputs))
        assert targets.dtype == torch.int64
