import pytest
import torch

from grok_lightning.batch import Batch
from grok_lightning.data import EpochLoader, RowLoader


def table(sizes):
    """Inputs (E, N, 2) and targets (E, N) that say whose row they are, and which; -1 marks padding."""
    inputs = torch.full((len(sizes), max(sizes), 2), -1.0, dtype=torch.float64)
    for e, size in enumerate(sizes):
        inputs[e, :size, 0] = e
        inputs[e, :size, 1] = torch.arange(size, dtype=torch.float64)
    return inputs, inputs[..., 0] * 1000 + inputs[..., 1]


def loader(sizes, batch_size, seeds=None, shard=(0, 1), step=None):
    inputs, targets = table(sizes)
    seeds = list(range(len(sizes))) if seeds is None else seeds
    return EpochLoader(inputs, targets, sizes, seeds, batch_size, step or (lambda: 0), shard)


def kept_batch(batch):
    """A batch that the next epoch does not overwrite."""
    return Batch(*(t.clone() if isinstance(t, torch.Tensor) else t for t in batch))


def same(first, second):
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a == b
        for a, b in zip(first, second, strict=True)
    )


def rows_of(batch, e):
    """The rows of member e that count, in order; their targets must be theirs."""
    counts = slice(None) if batch.weights is None else batch.weights[e] > 0
    inputs, targets = batch.inputs[e][counts], batch.targets[e][counts]
    assert torch.equal(targets, inputs[:, 0] * 1000 + inputs[:, 1])
    assert (inputs[:, 0] == e).all()
    return inputs[:, 1].int().tolist()


@pytest.mark.parametrize(("size", "batch_size"), [(10, 3), (9, 3), (10, 1), (10, 10), (10, 32), (1, 4)])
def test_an_epoch_is_a_permutation_and_its_last_batch_is_short(size, batch_size):
    load = loader([size, size], batch_size)
    steps = -(-size // batch_size)
    assert len(load) == steps
    orders = []
    for epoch in range(3):
        batches = [kept_batch(load.batch(epoch * steps + i)) for i in range(steps)]
        lengths = [batch.targets.shape[1] for batch in batches]
        assert lengths == [min(batch_size, size - i * batch_size) for i in range(steps)]
        for e in range(2):
            order = [row for batch in batches for row in rows_of(batch, e)]
            assert sorted(order) == list(range(size))
            orders.append(tuple(order))
    if size == 10:
        # Every epoch and every member has an order of its own.
        assert len(set(orders)) == 6


@pytest.mark.parametrize("sizes", [[10, 10], [10, 4, 7]])
@pytest.mark.parametrize("batch_size", [3, 4, None])
def test_a_batch_depends_on_nothing_but_the_step(sizes, batch_size):
    straight = loader(sizes, batch_size)
    expected = [kept_batch(straight.batch(step)) for step in range(40)]
    jumping = loader(sizes, batch_size)
    # Back and forth within an epoch and between epochs, and the same one twice.
    for step in [39, 0, 5, 4, 4, 17, 3, 38, 1, 20, 19, 0]:
        assert same(jumping.batch(step), expected[step])
    assert same(loader(sizes, batch_size).batch(33), expected[33])


@pytest.mark.parametrize("batch_size", [1, 3, 4, 100, None])
def test_members_of_other_sizes_see_what_they_would_see_alone(batch_size):
    sizes, seeds = [10, 1, 4, 7], [5, 0, 5, 3]
    together = loader(sizes, batch_size, seeds)
    alone = []
    for e, (size, seed) in enumerate(zip(sizes, seeds, strict=True)):
        inputs, targets = (t[e : e + 1, :size] for t in table(sizes))
        alone.append(EpochLoader(inputs, targets, [size], [seed], batch_size, lambda: 0))
    for step in range(25):
        batch = together.batch(step)
        for e, solo in enumerate(alone):
            own = solo.batch(step)
            assert own.weights is None
            assert rows_of(batch, e) == own.inputs[0, :, 1].int().tolist()


@pytest.mark.parametrize("batch_size", [1, 3, 4, 100, None])
def test_padding_has_weight_0_and_the_weights_of_a_member_sum_to_1(batch_size):
    sizes = [10, 1, 4, 7]
    load = loader(sizes, batch_size)
    for step in range(25):
        batch = load.batch(step)
        torch.testing.assert_close(batch.weights.sum(dim=1), torch.ones(4, dtype=torch.float64))
        # Padding repeats rows of the member: never those of another, nor what fills the table.
        assert torch.equal(batch.inputs[..., 0], torch.arange(4.0).double().unsqueeze(1).expand(batch.targets.shape))
        for e in range(4):
            count = len(rows_of(batch, e))
            assert batch.weights[e].tolist() == [1 / count] * count + [0.0] * (batch.targets.shape[1] - count)


def test_the_full_batch_is_the_table_in_its_own_order():
    load = loader([6, 6], None)
    assert len(load) == 1
    for step in (0, 1, 9):
        assert rows_of(load.batch(step), 0) == list(range(6))
    ragged = loader([6, 4], None)
    assert rows_of(ragged.batch(7), 1) == list(range(4))


def test_iteration_follows_the_clock_for_the_length_of_the_longest_member():
    clock = [11]
    load = loader([10, 4], 3, step=lambda: clock[0])
    seen = []
    for batch in load:
        seen.append(kept_batch(batch))
        clock[0] += 1
    assert len(seen) == len(load) == 4
    for i, batch in enumerate(seen):
        assert same(batch, loader([10, 4], 3).batch(11 + i))


def test_the_tables_that_were_given_are_not_shuffled():
    inputs, targets = table([10, 7])
    before = inputs.clone(), targets.clone()
    EpochLoader(inputs, targets, [10, 7], [0, 1], 3, lambda: 0).batch(50)
    assert torch.equal(inputs, before[0])
    assert torch.equal(targets, before[1])


def test_the_order_follows_the_members_seed():
    assert rows_of(loader([20], 20, seeds=[3]).batch(0), 0) != rows_of(loader([20], 20, seeds=[4]).batch(0), 0)


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("sizes", [[10, 10], [10, 4, 7]])
@pytest.mark.parametrize("batch_size", [1, 4, 8, None])
def test_the_shards_together_are_the_batch_once(sizes, batch_size, world):
    whole = loader(sizes, batch_size)
    shards = [loader(sizes, batch_size, shard=(rank, world)) for rank in range(world)]
    for step in range(12):
        batch, parts = whole.batch(step), [shard.batch(step) for shard in shards]
        for e in range(len(sizes)):
            assert sorted(row for part in parts for row in rows_of(part, e)) == sorted(rows_of(batch, e))
        # Padding included: processes must agree on what there is.
        assert sum(part.targets.shape[1] for part in parts) == batch.targets.shape[1]


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("sizes", [[10, 10], [10, 4, 7]])
@pytest.mark.parametrize("batch_size", [1, 4, None])
def test_gradients_averaged_over_processes_are_those_of_the_whole_batch(sizes, batch_size, world):
    w = torch.linspace(-1, 1, len(sizes) * 2, dtype=torch.float64).view(len(sizes), 1, 2).requires_grad_()

    def gradient(batch):
        losses = ((batch.inputs * w).sum(dim=-1) - batch.targets / 100).square()
        loss = losses.mean(dim=1).sum() if batch.weights is None else (losses * batch.weights).sum()
        return torch.autograd.grad(loss, w)[0]

    for step in range(6):
        parts = [loader(sizes, batch_size, shard=(rank, world)).batch(step) for rank in range(world)]
        average = sum(gradient(part) for part in parts) / world
        torch.testing.assert_close(average, gradient(loader(sizes, batch_size).batch(step)), rtol=1e-12, atol=1e-12)


def test_weights_of_whole_number_inputs_are_fractions():
    inputs = torch.arange(14).view(2, 7, 1)
    batch = EpochLoader(inputs, inputs[..., 0], [7, 3], [0, 1], None, lambda: 0).batch(0)
    assert batch.inputs.dtype == torch.int64
    assert batch.weights.is_floating_point()
    assert batch.weights[1].tolist() == pytest.approx([1 / 3] * 3 + [0.0] * 4)


@pytest.mark.parametrize(("n_rows", "batch_size"), [(10, 3), (9, 3), (10, 100), (10, 1), (1, 1)])
@pytest.mark.parametrize("noisy", [True, False])
def test_a_row_loader_covers_the_rows_once_in_order(n_rows, batch_size, noisy):
    inputs, targets = table([n_rows, n_rows])
    rows = Batch(inputs, targets, torch.ones_like(targets) if noisy else None, -targets if noisy else None)
    load = RowLoader(rows, batch_size)
    for _ in range(2):  # as often as it is asked
        batches = list(load)
        assert len(batches) == len(load) == -(-n_rows // batch_size)
        assert all(batch.targets.shape[1] <= batch_size for batch in batches)
        for name in Batch._fields:
            parts = [getattr(batch, name) for batch in batches]
            if getattr(rows, name) is None:
                assert parts == [None] * len(batches)
            else:
                assert torch.equal(torch.cat(parts, dim=1), getattr(rows, name))


def test_an_empty_shard_still_takes_part():
    inputs, targets = table([2, 2])
    [batch] = RowLoader(Batch(inputs[:, :0], targets[:, :0]))
    assert batch.targets.shape == (2, 0)


def test_a_batch_that_is_kept_does_not_change_when_another_epoch_is_asked_for() -> None:
    inputs, targets = torch.arange(12.0).reshape(1, 12, 1), torch.ones(1, 12)
    loader = EpochLoader(inputs, targets, sizes=[12], seeds=[0], batch_size=4, step=lambda: 0)
    kept = loader.batch(0)
    before = kept.inputs.clone()
    loader.batch(9)
    assert torch.equal(kept.inputs, before)


def fewer(sizes, batch_size, kept, since, seeds=None, shard=(0, 1)):
    load = loader(sizes, batch_size, seeds, shard)
    load.keep_rows([None if rows is None else torch.tensor(rows) for rows in kept], since)
    return load


def test_from_its_step_on_a_member_sees_the_rows_that_stay_in_epochs_of_their_own():
    kept = [[1, 2, 5, 8, 9], None, [0]]
    load = fewer([10, 10, 10], 3, kept, [5, -1, 7])
    whole = loader([10, 10, 10], 3)
    assert len(load) == len(whole) == 4
    for step in range(30):
        batch, before = load.batch(step), whole.batch(step)
        assert rows_of(batch, 1) == rows_of(before, 1)
        for e, since in [(0, 5), (2, 7)]:
            if step < since:
                assert rows_of(batch, e) == rows_of(before, e)
    epochs = [[row for j in range(2) for row in rows_of(load.batch(5 + 2 * i + j), 0)] for i in range(8)]
    assert all(sorted(epoch) == kept[0] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert [len(rows_of(load.batch(step), 0)) for step in (5, 6, 7)] == [3, 2, 3]
    assert all(rows_of(load.batch(step), 2) == [0] for step in range(7, 12))


@pytest.mark.parametrize("batch_size", [3, 4, None])
@pytest.mark.parametrize("since", [[5, 5, 5], [0, 5, 12], [3, -1, 12]])
def test_with_fewer_rows_a_batch_depends_on_nothing_but_the_step(batch_size, since):
    kept = [None if step < 0 else [0, 2, 3, 6] for step in since]
    straight, jumping = (fewer([10, 7, 9], batch_size, kept, since) for _ in range(2))
    expected = [kept_batch(straight.batch(step)) for step in range(30)]
    for step in [29, 0, 5, 4, 4, 12, 11, 13, 1, 20, 3, 2, 5]:
        assert same(jumping.batch(step), expected[step])
    # Told only when it is due, as it is in training.
    late = loader([10, 7, 9], batch_size)
    for step in range(30):
        begun = [rows if 0 <= turn <= step else None for rows, turn in zip(kept, since, strict=True)]
        if step in since:
            late.keep_rows([None if rows is None else torch.tensor(rows) for rows in begun], since)
        assert same(late.batch(step), expected[step])


@pytest.mark.parametrize("batch_size", [1, 3, None])
def test_members_with_fewer_rows_see_what_they_would_see_alone(batch_size):
    sizes, seeds, since = [10, 6, 8], [5, 0, 5], [4, 9, 4]
    kept = [[0, 3, 4, 7], [1, 2, 3, 5], [7, 1]]
    together = fewer(sizes, batch_size, kept, since, seeds)
    for step in range(25):
        batch = together.batch(step)
        for e in range(3):
            inputs, targets = (t[e : e + 1, : sizes[e]] for t in table(sizes))
            alone = EpochLoader(inputs, targets, [sizes[e]], [seeds[e]], batch_size, lambda: 0)
            alone.keep_rows([torch.tensor(kept[e])], [since[e]])
            own = alone.batch(step)
            assert rows_of(batch, e) == own.inputs[0, :, 1].int().tolist()


@pytest.mark.parametrize("sizes", [[10, 10], [10, 4]])
@pytest.mark.parametrize("batch_size", [3, None])
def test_the_rows_of_a_member_that_count_are_counted(sizes, batch_size):
    for load in (loader(sizes, batch_size), fewer(sizes, batch_size, [[1, 2, 3], None], [5, -1])):
        for step in range(20):
            batch = load.batch(step)
            if batch.counts is None:
                assert batch.weights is None
            else:
                assert type(batch.counts) is tuple
                assert list(batch.counts) == [len(rows_of(batch, e)) for e in range(2)]


@pytest.mark.parametrize("batch_size", [4, None])
def test_processes_share_out_fewer_rows_too(batch_size):
    kept, since = [[1, 2, 3, 4, 5], None], [5, -1]
    whole = fewer([10, 9], batch_size, kept, since)
    shards = [fewer([10, 9], batch_size, kept, since, shard=(rank, 2)) for rank in range(2)]
    for step in range(15):
        batch, parts = whole.batch(step), [shard.batch(step) for shard in shards]
        for e in range(2):
            counts = [len(rows_of(part, e)) for part in parts]
            assert sorted(row for part in parts for row in rows_of(part, e)) == sorted(rows_of(batch, e))
            # The mean over processes of a weighted sum is that of the whole batch.
            total = sum((part.targets[e] * part.weights[e]).sum() for part in parts) / 2
            torch.testing.assert_close(total, batch.targets[e][: sum(counts)].mean(), rtol=1e-12, atol=0)
            assert all(
                part.counts is None or part.counts[e] == count for part, count in zip(parts, counts, strict=True)
            )


def test_rows_that_become_others_leave_the_number_of_batches_as_it_is():
    now = {"n": 10}

    def rows():
        inputs, targets = table([now["n"]])
        return Batch(inputs, targets)

    load = RowLoader(rows, batch_size=4, most=10)
    for n, lengths in [(10, [4, 4, 2]), (5, [4, 1, 0]), (0, [0, 0, 0])]:
        now["n"] = n
        assert len(load) == 3
        assert [batch.targets.shape[1] for batch in load] == lengths


@pytest.mark.parametrize("length", [1, 4, 9])
def test_what_lightning_takes_for_an_epoch_may_be_that_of_longer_members_elsewhere(length):
    inputs, targets = table([10, 4])
    alone = EpochLoader(inputs, targets, [10, 4], [0, 1], 3, lambda: 0)
    among_others = EpochLoader(inputs, targets, [10, 4], [0, 1], 3, lambda: 0, length=length)
    assert (len(alone), len(among_others)) == (4, length)
    assert len(list(among_others)) == length
    for step in range(20):  # rows are the member's own all the same
        assert same(kept_batch(alone.batch(step)), kept_batch(among_others.batch(step)))
