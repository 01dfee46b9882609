from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer

from grok_lightning.batch import Batch
from grok_lightning.data import TableData
from grok_lightning.tasks import ModularArithmetic, SparseParity, Task


def as_set(rows):
    return {tuple(row) for row in rows.tolist()}


def trainer(**options):
    quiet = ["logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"]
    return Trainer(accelerator="cpu", devices=1, **dict.fromkeys(quiet, False), **options)


def process(rank, world, step=0):
    """What the data ask of a Trainer in one process of several."""
    return SimpleNamespace(
        accumulate_grad_batches=1,
        overfit_batches=0.0,
        global_step=step,
        global_rank=rank,
        world_size=world,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )


def data(n=10, k=3, train_size=40, n_held_out=50, batch_size=8, **options):
    task = options.pop("task", None) or SparseParity(n, k)
    return TableData(task, train_size, n_held_out, batch_size, **options)


def whole(loader):
    """All batches of a loader in one."""
    *columns, subsets, _ = zip(*loader, strict=True)
    joined = None if subsets[0] is None else {name: torch.cat([s[name] for s in subsets], dim=1) for name in subsets[0]}
    return Batch(*(None if parts[0] is None else torch.cat(parts, dim=1) for parts in columns), joined)


def member_rows(table, e):
    """Train and held-out rows of member e, padding left out."""
    return [batch.inputs[e] if batch.weights is None else batch.inputs[e][batch.weights[e] > 0] for batch in table]


def validation(table):
    return [whole(loader) for loader in table.val_dataloader()]


def test_validation_looks_at_the_rows_trained_on_and_then_at_the_held_out_ones():
    table = data(members={"seed": [0, 1, 2]})
    assert table.splits == ("train", "held_out")
    train, held_out = validation(table)
    assert train.inputs.shape == (3, 40, 10)
    assert held_out.inputs.shape == (3, 50, 10)
    for batch in (train, held_out):
        assert batch.weights is batch.true_targets is None
        assert torch.equal(batch.targets, batch.inputs[..., :3].prod(dim=-1))
    for e in range(3):
        assert not as_set(train.inputs[e]) & as_set(held_out.inputs[e])
    assert as_set(train.inputs[0]) != as_set(train.inputs[1])


def test_the_defaults_are_those_of_the_paper():
    table = TableData()
    train, held_out = validation(table)
    assert train.inputs.shape == (1, 1000, 40)
    assert held_out.inputs.shape == (1, 2000, 40)
    assert (table.n_inputs, table.n_outputs, table.steps_per_epoch) == (40, 1, 32)


@pytest.mark.parametrize(("n_held_out", "expected"), [(5, 5), (24, 24), (100, 24)])
def test_held_out_rows_are_as_many_as_asked_for_or_as_there_are(n_held_out, expected):
    table = data(n=6, train_size=40, n_held_out=n_held_out)
    assert validation(table)[1].targets.shape == (1, expected)
    for loaders in (table.test_dataloader(), table.predict_dataloader()):
        assert torch.equal(whole(loaders[0]).inputs, validation(table)[1].inputs)


@pytest.mark.parametrize("options", [{"train_size": 64}, {"n_held_out": 0}])
def test_without_held_out_rows_there_is_one_validation_loader_and_no_test(options):
    table = data(n=6, **options)
    assert table.splits == ("train",)
    assert len(table.val_dataloader()) == 1
    for loaders in (table.test_dataloader, table.predict_dataloader):
        with pytest.raises(ValueError, match="no held-out rows"):
            loaders()


@pytest.mark.parametrize(("train_size", "batch_size", "steps"), [(40, 8, 5), (41, 8, 6), (40, None, 1), (4, 8, 1)])
def test_an_epoch_has_as_many_steps_as_the_longest_member_needs(train_size, batch_size, steps):
    table = data(train_size=train_size, batch_size=batch_size)
    assert table.steps_per_epoch == steps
    table.trainer = trainer()
    assert len(table.train_dataloader()) == steps
    several = data(batch_size=batch_size, members={"train_size": [2, train_size], "seed": [0, 0]})
    assert several.steps_per_epoch == steps


@pytest.mark.parametrize(("batch_size", "rows"), [(8, 8), (33, 33), (100, 40), (None, 40)])
def test_a_step_has_as_many_rows_as_a_batch_or_the_longest_member(batch_size, rows):
    table = data(batch_size=batch_size, members={"seed": [0, 0], "train_size": [7, 40]})
    assert table.rows_per_step == rows
    table.trainer = process(0, 1)
    assert table.train_dataloader().batch(0).targets.shape == (2, rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: expected at least 1"),
        ({"train_size": 0}, "train_size: expected at least 1"),
        ({"n": 4, "train_size": 17}, "at most the 16 rows"),
        ({"n_held_out": -1}, "n_held_out: expected at least 0"),
        ({"label_noise": 1.5}, "label_noise: expected a share"),
        ({"members": {"seed": [0], "train_size": [2.5]}}, "whole number of rows, got 2.5"),
        ({"members": {"seed": [0], "label_noise": [-1]}}, "label_noise: expected a share"),
        ({"members": {"seed": [0, 0]}}, "more than once"),
        ({"members": {"seed": [0], "subset_seed": [1]}}, "needs subset: drawn"),
    ],
)
def test_numbers_out_of_range_are_refused_before_anything_starts(options, message):
    with pytest.raises(ValueError, match=message):
        data(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate_grad_batches": 2}, "accumulate_grad_batches: .* set data.batch_size"),
        ({"overfit_batches": 0.5}, "overfit_batches: set data.train_size"),
        ({"overfit_batches": 3}, "overfit_batches: set data.train_size"),
    ],
)
def test_flags_that_would_be_misread_are_refused(options, message):
    table = data()
    table.trainer = trainer(**options)
    with pytest.raises(ValueError, match=message):
        table.train_dataloader()


def test_batches_need_a_trainers_clock():
    with pytest.raises(ValueError, match="attach one first"):
        data().train_dataloader()


def test_batches_are_rows_of_the_training_set_at_the_trainers_step():
    table = data(members={"seed": [0, 1]})
    table.trainer = process(0, 1, step=3)
    batch = next(iter(table.train_dataloader()))
    assert batch.targets.shape == (2, 8)
    assert torch.equal(batch.inputs, table.train_dataloader().batch(3).inputs)
    for e in range(2):
        assert as_set(batch.inputs[e]) < as_set(validation(table)[0].inputs[e])


def test_label_noise_keeps_the_true_labels_beside_the_wrong_ones():
    table = data(label_noise=0.25)
    train, held_out = validation(table)
    truth = train.inputs[..., :3].prod(dim=-1)
    assert torch.equal(train.true_targets, truth)
    assert (train.targets != truth).sum() == 10
    assert held_out.true_targets is None
    # The labels that are trained on are the wrong ones; those that monitors see are not.
    table.trainer = process(0, 1)
    wrong = {tuple(row) for row, bad in zip(train.inputs[0].tolist(), (train.targets != truth)[0], strict=True) if bad}
    batch = table.train_dataloader().batch(0)
    flipped = batch.targets[0] != batch.inputs[0, :, :3].prod(dim=-1)
    assert flipped.tolist() == [tuple(row) in wrong for row in batch.inputs[0].tolist()]
    assert torch.equal(table.rows("train")[1], truth)


def test_members_may_have_sizes_of_their_own():
    table = data(n=6, n_held_out=30, members={"seed": [0, 0, 1], "train_size": [40, 10, 7]})
    for e, (seed, size) in enumerate([(0, 40), (0, 10), (1, 7)]):
        alone = data(n=6, n_held_out=30, train_size=size, members={"seed": [seed]})
        for mine, own in zip(member_rows(validation(table), e), member_rows(validation(alone), 0), strict=True):
            assert torch.equal(mine, own)
    train, held_out = validation(table)
    for batch, counts in [(train, [40, 10, 7]), (held_out, [24, 30, 30])]:
        assert (batch.weights > 0).sum(dim=1).tolist() == counts
        torch.testing.assert_close(batch.weights.sum(dim=1), torch.ones(3))
        # What fills the rectangle must still be a label.
        assert set(batch.targets.unique().tolist()) == {-1.0, 1.0}
    # Nested: the smaller set is a prefix of the larger one of the same seed.
    assert torch.equal(train.inputs[1, :10], train.inputs[0, :10])


def test_the_rows_of_a_smaller_member_begin_anew():
    table = data(n=6, n_held_out=20, members={"seed": [0, 0], "train_size": [40, 12]})
    inputs, targets = table.rows("train")
    alone, labels = data(n=6, n_held_out=20, members={"seed": [0], "train_size": [12]}).rows("train")
    assert inputs.shape == (2, 40, 6)
    for row in range(40):
        assert torch.equal(inputs[1, row], alone[0, row % 12])
        assert targets[1, row] == labels[0, row % 12]
    assert len(inputs[0].unique(dim=0)) == 40
    assert table.rows("held_out")[0].shape == (2, 20, 6)


def modular(p=7, operation="add", **options):
    return TableData(ModularArithmetic(operation, p), **({"n_held_out": None, "batch_size": None} | options))


def train_sizes(table):
    """The numbers of rows that each member really has."""
    batch = validation(table)[0]
    counts = [batch.targets.shape[1]] * len(batch.targets)
    return counts if batch.weights is None else (batch.weights > 0).sum(dim=1).tolist()


@pytest.mark.parametrize(
    ("p", "fraction", "expected"),
    [
        (113, 0.3, 3830),
        (10, 0.29, 29),  # 0.29 * 100 is 28.999999999999996
        (7, 1.0, 49),
        (7, 0.999, 48),
        (7, 1e-9, 1),
        (7, 1 / 49, 1),
        (3, 1 / 3, 3),
    ],
)
def test_a_share_of_the_rows_is_rounded_down_to_one_row_at_least(p, fraction, expected):
    table = modular(p, train_fraction=fraction)
    assert table.sizes == [expected] == train_sizes(table)


def test_a_share_is_of_the_rows_that_the_task_has():
    assert modular(7, "divide", train_fraction=0.5).sizes == [21]
    # Too many to list, and known all the same.
    assert data(n=40, train_size=None, train_fraction=2**-35).sizes == [32]


def test_members_may_have_shares_of_their_own():
    table = modular(members={"seed": [0, 0, 1], "train_fraction": [0.5, 0.25, 1.0]})
    assert table.sizes == [24, 12, 49] == train_sizes(table)
    assert torch.equal(validation(table)[0].inputs[0, :12], validation(table)[0].inputs[1, :12])
    # A coordinate goes before the argument, as that of the size does.
    members = {"seed": [0, 1], "train_fraction": [0.5, 0.25]}
    assert modular(train_fraction=0.75, members=members).sizes == [24, 12]


@pytest.mark.parametrize(
    ("options", "got"),
    [
        *(({"train_fraction": share}, share) for share in [0, 0.0, -0.5, 1.5, 1.0000001, float("nan")]),
        *(({"members": {"seed": [0, 1], "train_fraction": [0.5, share]}}, share) for share in [0, -0.5, 1.5]),
        ({"members": {"seed": [0], "train_fraction": [2]}, "train_fraction": 0.5}, 2),
    ],
)
def test_a_share_out_of_range_is_refused(options, got):
    with pytest.raises(ValueError, match=rf"^train_fraction: expected a share in \(0, 1\], got {got}$"):
        modular(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"train_size": 5, "train_fraction": 0.5},
        {"train_size": 5, "members": {"seed": [0], "train_fraction": [0.5]}},
        {"train_fraction": 0.5, "members": {"seed": [0], "train_size": [5]}},
        {"members": {"seed": [0], "train_size": [5], "train_fraction": [0.5]}},
    ],
)
def test_a_number_and_a_share_exclude_one_another(options):
    with pytest.raises(ValueError, match="train_size and train_fraction: expected one of them, got train_size = "):
        modular(**options)


def test_a_share_of_nobody_knows_how_many_is_refused():
    class Endless(Task):
        n_inputs = n_outputs = 1

        def label(self, inputs):
            return inputs[:, 0].sign()

        def draw(self, n_rows, generator):
            return torch.randn((n_rows, 1), generator=generator)

    with pytest.raises(ValueError, match="train_fraction: Endless does not say how many rows it has; give train_size"):
        TableData(Endless(), train_fraction=0.5)
    assert TableData(Endless(), train_size=7, n_held_out=3).sizes == [7]


def test_more_rows_than_the_table_has_are_refused():
    with pytest.raises(ValueError, match="train_size: expected at most the 49 rows that there are, got 50"):
        modular(train_size=50)
    # A thousand, where nothing is said.
    with pytest.raises(ValueError, match="at most the 49 rows that there are, got 1000"):
        modular()


def test_all_rows_that_are_not_trained_on_can_be_held_out():
    table = modular(members={"seed": [0, 1], "train_size": [20, 40]})
    train, held_out = (
        [member_rows(batches, e) for e in range(2)] for batches in [validation(table)[:1], validation(table)[1:]]
    )
    for e, (trained, rest) in enumerate([(20, 29), (40, 9)]):
        assert len(as_set(train[e][0])) == trained
        assert len(as_set(held_out[e][0])) == rest
        assert not as_set(train[e][0]) & as_set(held_out[e][0])
    with pytest.raises(ValueError, match="n_held_out: expected a number, as SparseParity does not list"):
        data(n=40, n_held_out=None)


def test_the_numbers_of_a_symmetric_split_are_the_true_ones():
    table = modular(11, members={"seed": [0, 1, 2, 3, 4, 5], "train_size": [40] * 6}, split="symmetric")
    assert set(table.sizes) == {39, 40}
    assert table.sizes == train_sizes(table)
    for rows in (validation(table)[0].inputs[e, :size] for e, size in enumerate(table.sizes)):
        pairs = {(a, b) for a, _, b, _ in rows.tolist()}
        assert {(b, a) for a, b in pairs} == pairs
    assert validation(table)[1].subsets["unpaired"][0, : 121 - table.sizes[0]].all()
    assert table.rows_per_step == 40


def test_rows_whose_swap_is_not_trained_on_are_told_apart():
    table = modular(members={"seed": [0, 1, 2], "train_size": [20, 30, 49]})
    train, held_out = validation(table)
    assert train.subsets is None
    assert list(held_out.subsets) == ["unpaired"]
    mask = held_out.subsets["unpaired"]
    assert mask.dtype == torch.bool
    assert mask.shape == held_out.targets.shape == (3, 29)
    for e, size in enumerate(table.sizes):
        trained = {(a, b) for a, _, b, _ in train.inputs[e, :size].tolist()}
        expected = [(b, a) not in trained for a, _, b, _ in held_out.inputs[e, : 49 - size].tolist()]
        assert mask[e].tolist() == expected + [False] * (29 - len(expected))
    table.trainer = process(0, 1)
    assert table.train_dataloader().batch(0).subsets is None


def test_rows_without_a_swap_are_not_told_apart():
    assert validation(data())[1].subsets is None


def test_random_labels_are_all_that_anybody_knows():
    table, clean = (modular(members={"seed": [0, 1]}, train_size=30, random_labels=random) for random in (True, False))
    for random, true in zip(validation(table), validation(clean), strict=True):
        assert torch.equal(random.inputs, true.inputs)
        assert random.true_targets is None
    assert (validation(table)[0].targets == validation(clean)[0].targets).double().mean() < 0.5
    assert torch.equal(validation(table)[1].targets, validation(clean)[1].targets)
    # Monitors get what is trained on.
    assert torch.equal(table.rows("train")[1], validation(table)[0].targets)
    table.trainer = process(0, 1)
    assert torch.equal(table.train_dataloader().batch(0).targets, validation(table)[0].targets)


@pytest.mark.parametrize("options", [{"label_noise": 0.1}, {"members": {"seed": [0, 1], "label_noise": [0.0, 0.2]}}])
def test_random_labels_are_not_made_noisy(options):
    with pytest.raises(ValueError, match="label_noise: random labels have no right ones to change"):
        modular(train_size=30, random_labels=True, **options)


def test_tokens_are_the_tasks():
    assert (modular(train_size=5).n_tokens, modular(train_size=5).n_inputs, modular(train_size=5).n_outputs) == (
        9,
        4,
        7,
    )
    assert data().n_tokens == 0


def test_each_member_has_its_own_secret_and_share_of_noise():
    task = SparseParity(10, 3, "drawn")
    members = {"seed": [0, 0, 0], "subset_seed": [1, 2, 2], "label_noise": [0.0, 0.0, 0.5]}
    train, held_out = validation(data(task=task, members=members))
    for e, seed in enumerate([1, 2, 2]):
        secret = SparseParity(10, 3, "drawn", seed).secret
        assert torch.equal(train.true_targets[e], train.inputs[e][:, secret].prod(dim=1))
        assert torch.equal(held_out.targets[e], held_out.inputs[e][:, secret].prod(dim=1))
    assert (train.targets != train.true_targets).sum(dim=1).tolist() == [0, 0, 20]
    # The rows are the seed's, whatever the labels.
    assert torch.equal(train.inputs[0], train.inputs[2])


def test_a_data_seed_takes_the_place_of_the_seed():
    apart = data(members={"seed": [0, 1, 2], "data_seed": [7, 7, 8]}, label_noise=0.25)
    alone = data(members={"seed": [7]}, label_noise=0.25)
    apart.trainer = alone.trainer = process(0, 1)
    for mine, own in zip(
        [*validation(apart), apart.train_dataloader().batch(2)],
        [*validation(alone), alone.train_dataloader().batch(2)],
        strict=True,
    ):
        for e, is_equal in enumerate([True, True, False]):
            assert torch.equal(mine.inputs[e], own.inputs[0]) is is_equal
            assert torch.equal(mine.targets[e], own.targets[0]) is is_equal


def test_it_says_which_coordinates_it_consumes():
    assert data().coordinates == {
        "seed",
        "data_seed",
        "train_size",
        "train_fraction",
        "label_noise",
        "subset_seed",
    }


def test_independent_rows_are_handed_on():
    small, large = (member_rows(validation(data(train_size=size, nested=False)), 0)[0] for size in (30, 40))
    assert not torch.equal(small, large[:30])


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_out_the_validation_rows(world):
    members = {"seed": [0, 0], "train_size": [40, 7]}
    together = validation(data(members=members))
    parts = []
    for rank in range(world):
        table = data(members=members)
        table.trainer = process(rank, world)
        parts.append(validation(table))
    for e in range(2):
        for split in range(2):
            rows = [member_rows(part, e)[split] for part in parts]
            assert sum(len(part) for part in rows) == len(member_rows(together, e)[split])
            assert set.union(*map(as_set, rows)) == as_set(member_rows(together, e)[split])


def test_processes_share_out_the_rows_that_are_told_apart():
    together = validation(modular(train_size=20))[1]
    parts = []
    for rank in range(2):
        table = modular(train_size=20)
        table.trainer = process(rank, 2)
        parts.append(validation(table)[1])
    for rank, part in enumerate(parts):
        assert torch.equal(part.subsets["unpaired"], together.subsets["unpaired"][:, rank::2])
    assert sum(part.targets.shape[1] for part in parts) == 29


class Spreads:
    """A strategy that gives the process of this rank every second member."""

    root_device = torch.device("cpu")

    def __init__(self, rank):
        self.rank = rank

    def own_members(self, n_members):
        return range(self.rank, n_members, 2)

    def gather_members(self, values):
        raise AssertionError("nothing is gathered to make rows")


def spread(rank):
    """What the data ask of a Trainer in one of two processes that have some of the members each."""
    trainer = process(rank, 2)
    trainer.strategy = Spreads(rank)
    return trainer


MANY = {"seed": [0, 1, 2], "train_size": [40, 20, 7], "label_noise": [0.1, 0.0, 0.2]}


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_has_all_rows_of_its_members_and_no_others(rank):
    together, table = data(members=MANY), data(members=MANY)
    table.trainer = spread(rank)
    own = list(range(rank, 3, 2))
    assert list(table.own_members) == own
    assert table.shard == (0, 1)
    found, expected = validation(table), validation(together)
    for mine, e in enumerate(own):
        assert len(member_rows(found, mine)) == 2
        for split in range(2):
            assert torch.equal(member_rows(found, mine)[split], member_rows(expected, e)[split])
    assert {len(batch.targets) for batch in found} == {len(own)}


WHOLE = {"seed": [0, 1, 2], "train_fraction": [0.5, 1.0, 0.75]}
"""The second process has a member alone that has no held-out rows."""


@pytest.mark.parametrize("members", [MANY, WHOLE], ids=["sizes", "no held-out rows"])
@pytest.mark.parametrize("rank", [0, 1])
def test_rows_for_monitors_are_as_many_in_every_process(rank, members):
    size = 40 if "train_size" in members else None
    together, table = (data(n=6, train_size=size, members=members) for _ in range(2))
    table.trainer = spread(rank)
    for split in ("train", "held_out"):
        assert table.most_rows(split) == together.rows(split)[1].shape[1]
        for found, expected in zip(table.rows(split), together.rows(split), strict=True):
            assert torch.equal(found, expected[rank::2])
            assert found.dtype == expected.dtype


@pytest.mark.parametrize("rank", [0, 1])
def test_batches_of_a_process_are_those_of_its_members(rank):
    together, table = data(members=MANY), data(members=MANY)
    together.trainer, table.trainer = process(0, 1), spread(rank)
    whole_loader, own_loader = together.train_dataloader(), table.train_dataloader()
    assert len(own_loader) == len(whole_loader) == 5
    for step in range(12):
        expected, found = whole_loader.batch(step), own_loader.batch(step)
        for mine, e in enumerate(range(rank, 3, 2)):
            assert torch.equal(trained_on(found, mine), trained_on(expected, e))


def trained_on(batch, e):
    """Inputs and label of the rows of member e that count, in order."""
    counts = slice(None) if batch.weights is None else batch.weights[e] > 0
    return torch.cat([batch.inputs[e][counts], batch.targets[e][counts].unsqueeze(1)], dim=1)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_shrinks_its_members_as_all_shrink(rank):
    together, table = data(members=MANY), data(members=MANY)
    for each, trainer_of_it in ((together, process(0, 1)), (table, spread(rank))):
        each.prepare_to_shrink()
        each.trainer = trainer_of_it
        each.loaders = each.train_dataloader()
        each.keep_rows([torch.tensor([3, 1]), torch.tensor([5, 0, 2]), None], [2, 4, -1])
    for step in range(8):
        expected, found = together.loaders.batch(step), table.loaders.batch(step)
        for mine, e in enumerate(range(rank, 3, 2)):
            assert torch.equal(trained_on(found, mine), trained_on(expected, e))
    for split in ("train", "held_out"):
        for found, expected in zip(table.rows(split), together.rows(split), strict=True):
            assert torch.equal(found, expected[rank::2])


def test_the_tables_on_the_device_are_made_once():
    table = data(members={"seed": [0, 1]})
    first = table.rows("train")[0]
    assert table.rows("train")[0].data_ptr() == first.data_ptr()
    assert next(iter(table.val_dataloader()[0])).inputs.data_ptr() == first.data_ptr()
    table.trainer = trainer()
    assert table.rows("train")[0].data_ptr() == first.data_ptr()
    # Training does not disturb what monitors and validation look at.
    before = first.clone()
    loader = table.train_dataloader()
    for step in range(20):
        loader.batch(step)
    assert torch.equal(table.rows("train")[0], before)


# ---- fewer rows


@pytest.fixture
def shrunk():
    """Two members, of which the first goes on with rows 1, 3, 4 after step 5; and the clock."""
    table, clock = modular(5, train_size=10, n_held_out=None, members={"seed": [0, 1]}), process(0, 1)
    table.trainer = clock
    table.prepare_to_shrink()
    table.keep_rows([torch.tensor([1, 3, 4]), None], [5, -1])
    return table, clock


def rows_in(batch, e, mask=None):
    chosen = torch.ones_like(batch.targets[e], dtype=torch.bool) if batch.weights is None else batch.weights[e] > 0
    return [tuple(row) for row in batch.inputs[e][chosen if mask is None else chosen & mask[e]].tolist()]


def test_rows_are_measured_as_they_were_trained_on_in_the_step_before(shrunk):
    table, clock = shrunk
    before = modular(5, train_size=10, n_held_out=None, members={"seed": [0, 1]})
    whole, rest = validation(before)
    for step in (0, 5, 6, 99, 5):  # also back again
        clock.global_step = step
        train, held_out = validation(table)
        fewer = step > 5
        assert table.rows_version == fewer
        removed = [row for i, row in enumerate(rows_in(whole, 0)) if i not in (1, 3, 4)] if fewer else []
        assert rows_in(train, 0) == [row for row in rows_in(whole, 0) if row not in removed]
        assert rows_in(held_out, 0) == rows_in(rest, 0) + removed
        assert rows_in(held_out, 0, held_out.subsets["removed"]) == removed
        assert rows_in(held_out, 0, held_out.subsets["never_seen"]) == rows_in(rest, 0)
        assert rows_in(train, 1) == rows_in(whole, 1)
        assert rows_in(held_out, 1) == rows_in(rest, 1)
        assert table.rows("train")[0].shape[1] == train.inputs.shape[1]
        trained = {(a, b) for a, _, b, _ in rows_in(train, 0)}
        unpaired = [row for row in rows_in(held_out, 0) if (row[2], row[0]) not in trained]
        assert rows_in(held_out, 0, held_out.subsets["unpaired"]) == unpaired
        inputs, labels, masks = table.parts("held_out")
        assert [int(masks[name][0].sum()) for name in ("removed", "never_seen")] == [len(removed), 15]
        assert torch.equal((inputs[..., 0] + inputs[..., 2]) % 5 * masks["never_seen"], labels * masks["never_seen"])


def test_the_number_of_batches_is_that_of_all_rows_that_there_may_be(shrunk):
    table, clock = shrunk
    loaders = table.val_dataloader()
    for loader in loaders:
        loader.batch_size = 6
    assert [len(loader) for loader in loaders] == [2, 5]
    for step, lengths in [(5, [[6, 4], [6, 6, 3, 0, 0]]), (6, [[6, 4], [6, 6, 6, 4, 0]])]:
        clock.global_step = step
        assert [[batch.targets.shape[1] for batch in loader] for loader in loaders] == lengths


def test_a_whole_table_has_held_out_rows_later():
    table, clock = modular(5, train_fraction=1.0, n_held_out=None, train_size=None), process(0, 1)
    assert table.splits == ("train",)
    table.trainer = clock
    table.prepare_to_shrink()
    assert table.splits == ("train", "held_out")
    table.keep_rows([torch.tensor([0, 24])], [0])
    assert [batch.targets.shape[1] for batch in validation(table)] == [25, 0]
    clock.global_step = 1
    assert [batch.targets.shape[1] for batch in validation(table)] == [2, 23]
    table.forget_shrink()
    assert table.splits == ("train",)
    assert validation(table)[0].targets.shape[1] == 25


def test_rows_that_were_alone_before_the_first_step_are_measured_so_at_step_0(shrunk):
    table, clock = shrunk
    clock.global_step = 0
    assert table.rows("train")[1].shape[1] == 10
    table.keep_rows([torch.tensor([1, 3, 4]), torch.tensor([0, 2, 9])], [-1, 0])
    train, held_out = validation(table)
    assert [len(rows_in(train, e)) for e in range(2)] == [3, 10]
    assert [len(rows_in(held_out, e, held_out.subsets["removed"])) for e in range(2)] == [7, 0]


def test_removed_rows_have_their_labels_without_noise():
    table, clock = data(n=6, k=2, train_size=40, n_held_out=5, label_noise=0.5), process(0, 1)
    truth = dict(zip(map(tuple, table.rows("train")[0][0].tolist()), table.rows("train")[1][0].tolist(), strict=True))
    table.trainer, clock.global_step = clock, 9
    table.prepare_to_shrink()
    table.keep_rows([torch.arange(3)], [0])
    train, held_out = validation(table)
    for row, label in zip(held_out.inputs[0, 5:].tolist(), held_out.targets[0, 5:].tolist(), strict=True):
        assert truth[tuple(row)] == label
    assert train.true_targets is not None


def test_a_loader_that_is_made_after_the_shrink_is_the_one_that_was_told(shrunk):
    table, clock = shrunk
    early = table.train_dataloader()
    clock.global_step = 8
    late = table.train_dataloader()
    for step in range(20):
        first, second = early.batch(step), late.batch(step)
        assert torch.equal(first.inputs, second.inputs)
        assert first.counts == second.counts
    assert late.batch(7).counts == (3, 10)


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ([None], "one entry for each of 2 members, got 1"),
        ([torch.tensor([], dtype=torch.int64), None], r"rows from 0 to 9, at least one, got \[\]"),
        ([torch.tensor([10]), None], r"rows from 0 to 9, at least one, got \[10\]"),
        ([torch.tensor([-1, 3]), None], r"rows from 0 to 9, at least one, got \[-1, 3\]"),
    ],
)
def test_rows_that_are_not_there_cannot_stay(shrunk, kept, message):
    with pytest.raises(ValueError, match=message):
        shrunk[0].keep_rows(kept, [5] * len(kept))


def test_data_that_never_shrink_have_no_such_parts():
    table = modular(5, train_size=10, n_held_out=None)
    assert list(validation(table)[1].subsets) == ["unpaired"]
    inputs, _, masks = table.parts("held_out")
    assert not masks["removed"].any()
    assert masks["never_seen"].all()
    assert inputs.shape[1] == 15
