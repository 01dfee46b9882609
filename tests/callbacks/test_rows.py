from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.plugins.precision import DoublePrecision, Precision
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from grok_callbacks.protocols import HasRows
from grok_callbacks.rows import members_with_rows, rows_of
from grok_lightning.data import TableData
from grok_lightning.tasks import SparseParity


class WithMembers(LightningModule):
    n_members = 2


def trainer_with(**attributes):
    """As much of a Trainer as is looked at."""
    bare = {"datamodule": None, "train_dataloader": None, "val_dataloaders": None, "precision_plugin": Precision()}
    return SimpleNamespace(**(bare | attributes))


def pairs(n=6):
    return TensorDataset(torch.arange(2.0 * n).reshape(n, 2), torch.arange(n))


class Counted(Dataset):
    """Counts how often it is indexed, and refuses to be iterated."""

    def __init__(self, n=6):
        self.rows = pairs(n)
        self.asked = []

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        self.asked.append(i)
        return self.rows[i]

    def __iter__(self):
        raise AssertionError("iterated")


class Looks(Callback):
    """Takes rows of both splits before training and at every step."""

    def __init__(self):
        self.rows = []

    def look(self, trainer, pl_module):
        self.rows.append([rows_of(trainer, pl_module, split) for split in ("train", "held_out")])

    def on_train_start(self, trainer, pl_module):
        self.look(trainer, pl_module)

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.look(trainer, pl_module)


def test_our_tables_hand_out_their_rows_by_protocol():
    data = TableData(SparseParity(8, 2), train_size=12, n_held_out=10, members={"seed": [0, 1]})
    assert isinstance(data, HasRows)
    for split, n in [("train", 12), ("held_out", 10)]:
        inputs, targets = rows_of(trainer_with(datamodule=data), WithMembers(), split)
        assert inputs.shape == (2, n, 8)
        assert targets.shape == (2, n)
        expected = data.rows(split)
        assert torch.equal(inputs, expected[0])
        assert torch.equal(targets, expected[1])


def members_with(trainer, split, function=None):
    return members_with_rows(trainer, WithMembers(), split, function).tolist()


def test_which_members_have_rows_of_a_split():
    def trainer(*shares):
        return trainer_with(
            datamodule=TableData(SparseParity(4, 2), members={"seed": [0, 1], "train_fraction": shares})
        )

    for shares, expected in [((0.5, 0.75), [True, True]), ((1.0, 0.5), [False, True]), ((1.0, 1.0), [False, False])]:
        assert members_with(trainer(*shares), "held_out") == expected
        assert members_with(trainer(*shares), "train") == [True, True]
    assert members_with(trainer(1.0, 0.5), "held_out", "their_rows.rows") == [True, True]
    assert members_with(trainer_with(val_dataloaders=DataLoader(pairs(2))), "held_out") == [True, True]


def test_rows_that_were_removed_are_held_out():
    data = TableData(SparseParity(4, 2), train_fraction=1.0, members={"seed": [0, 1]})
    data.prepare_to_shrink()
    assert members_with(trainer_with(datamodule=data), "held_out") == [False, False]
    data.keep_rows([None, torch.arange(3)], [-1, -1])
    assert members_with(trainer_with(datamodule=data), "held_out") == [False, True]


def test_a_limit_is_a_number_of_rows_of_every_member():
    data = TableData(SparseParity(8, 2), train_size=12, members={"seed": [0, 1]})
    inputs, targets = rows_of(trainer_with(datamodule=data), WithMembers(), "train", limit=5)
    assert torch.equal(inputs, data.rows("train")[0][:, :5])
    assert torch.equal(targets, data.rows("train")[1][:, :5])


def test_anybodys_data_module_with_the_method_serves():
    class Theirs(LightningDataModule):
        def rows(self, split):
            return torch.full((3, 2), 1.0 if split == "train" else 2.0), torch.zeros(3)

    inputs, _ = rows_of(trainer_with(datamodule=Theirs()), LightningModule(), "held_out")
    assert torch.equal(inputs, torch.full((3, 2), 2.0))


def test_a_foreign_loaders_dataset_is_indexed_in_order_and_never_iterated():
    train, held_out = Counted(6), Counted(4)
    trainer = trainer_with(
        train_dataloader=DataLoader(train, shuffle=True, batch_size=4), val_dataloaders=DataLoader(held_out)
    )
    inputs, targets = rows_of(trainer, LightningModule(), "train")
    assert torch.equal(inputs, pairs(6).tensors[0])
    assert torch.equal(targets, pairs(6).tensors[1])
    assert rows_of(trainer, LightningModule(), "held_out")[1].tolist() == [0, 1, 2, 3]
    assert train.asked == list(range(6))


@pytest.mark.parametrize(("limit", "count"), [(1, 1), (4, 4), (6, 6), (100, 6)])
def test_no_more_rows_are_fetched_than_the_limit(limit, count):
    dataset = Counted(6)
    inputs, targets = rows_of(
        trainer_with(train_dataloader=DataLoader(dataset)), LightningModule(), "train", None, limit
    )
    assert dataset.asked == list(range(count))
    assert inputs.shape == (count, 2)
    assert targets.tolist() == list(range(count))


def test_of_several_validation_loaders_the_first_is_taken():
    loaders = [DataLoader(pairs(2)), DataLoader(pairs(5))]
    assert len(rows_of(trainer_with(val_dataloaders=loaders), LightningModule(), "held_out")[1]) == 2


def test_rows_need_not_be_tensors():
    dataset = [([1.0, 2.0], 0), ([3.0, 4.0], 1)]
    inputs, targets = rows_of(trainer_with(train_dataloader=DataLoader(dataset)), LightningModule(), "train")
    assert torch.equal(inputs, torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert targets.tolist() == [0, 1]


def trained(foreign, make_trainer, callbacks):
    torch.manual_seed(0)
    module, loader = foreign.module(), foreign.train_loader()
    make_trainer(max_epochs=2, callbacks=callbacks).fit(module, loader, foreign.val_loader())
    weights = torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
    return weights, loader.generator.get_state(), torch.get_rng_state()


def test_looking_at_rows_leaves_generators_and_training_as_they_were(foreign, make_trainer):
    looks = Looks()
    without, watched = trained(foreign, make_trainer, []), trained(foreign, make_trainer, [looks])
    assert all(torch.equal(a, b) for a, b in zip(without, watched, strict=True))
    assert len(looks.rows) == 1 + 6
    expected = [foreign.train_loader().dataset.tensors, foreign.val_loader().dataset.tensors]
    for looked in looks.rows:
        for rows, tensors in zip(looked, expected, strict=True):
            assert torch.equal(rows[0], tensors[0])
            assert torch.equal(rows[1], tensors[1])


def test_iterating_the_loader_instead_would_have_changed_the_training(foreign, make_trainer):
    class Iterates(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            with torch.random.fork_rng():
                list(trainer.train_dataloader)

    without, watched = trained(foreign, make_trainer, []), trained(foreign, make_trainer, [Iterates()])
    assert not torch.equal(without[0], watched[0])
    assert not torch.equal(without[1], watched[1])


@pytest.fixture
def their_functions(tmp_path, monkeypatch):
    (tmp_path / "their_rows.py").write_text(
        "import torch\n"
        "def rows(trainer, pl_module, split):\n"
        "    return torch.full((5, 2), 7.0 if split == 'train' else 8.0), torch.arange(5)\n"
        "def member_rows(trainer, pl_module, split):\n"
        "    return torch.zeros(2, 5, 3), torch.arange(10).reshape(2, 5)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("their_functions")
def test_a_function_by_import_path_comes_before_all_else():
    data = TableData(SparseParity(8, 2), train_size=12)
    trainer = trainer_with(datamodule=data, train_dataloader=DataLoader(pairs()))
    inputs, targets = rows_of(trainer, LightningModule(), "held_out", "their_rows.rows")
    assert torch.equal(inputs, torch.full((5, 2), 8.0))
    assert targets.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.usefixtures("their_functions")
def test_the_limit_holds_for_functions_too():
    inputs, targets = rows_of(trainer_with(), LightningModule(), "train", "their_rows.rows", limit=2)
    assert inputs.shape == (2, 2)
    assert targets.tolist() == [0, 1]
    inputs, targets = rows_of(trainer_with(), WithMembers(), "train", "their_rows.member_rows", limit=2)
    assert inputs.shape == (2, 2, 3)
    assert targets.tolist() == [[0, 1], [5, 6]]


@pytest.mark.usefixtures("their_functions")
@pytest.mark.parametrize("path", ["no_such_module.rows", "their_rows.no_such_function", "rows", "", "their_rows."])
def test_a_path_that_leads_nowhere_is_named(path):
    with pytest.raises(ValueError, match=f"rows: cannot import '{path}'"):
        rows_of(trainer_with(), LightningModule(), "train", path)


class Stream(IterableDataset):
    def __iter__(self):
        yield from pairs()


class StreamWithLength(Stream):
    def __len__(self):
        return 6


class Dictionaries(Dataset):
    """As of several other libraries."""

    def __len__(self):
        return 3

    def __getitem__(self, i):
        return {"inputs": torch.zeros(2), "target": i}


@pytest.mark.parametrize(
    "loader",
    [None, [], {"a": DataLoader(pairs())}, pairs(), iter([])],
    ids=["none", "empty", "dict", "dataset", "iter"],
)
def test_without_a_data_loader_the_message_says_how_to_give_rows(loader):
    for split in ("train", "held_out"):
        trainer = trainer_with(train_dataloader=loader, val_dataloaders=loader)
        with pytest.raises(ValueError, match=f"no DataLoader to take {split} rows from.*import path"):
            rows_of(trainer, LightningModule(), split)


@pytest.mark.parametrize("dataset", [Stream(), StreamWithLength()], ids=["stream", "stream with a length"])
def test_a_stream_cannot_be_indexed_and_the_message_says_how_to_give_rows(dataset):
    loader = DataLoader(dataset, batch_size=2)
    with pytest.raises(ValueError, match=f"rows: {type(dataset).__name__} cannot be indexed.*import path"):
        rows_of(trainer_with(train_dataloader=loader), LightningModule(), "train")


@pytest.mark.parametrize(
    "dataset",
    [
        TensorDataset(torch.zeros(3, 2)),
        TensorDataset(*[torch.zeros(3)] * 3),
        TensorDataset(torch.empty(0, 2)),
        Dictionaries(),
        list(torch.zeros(3, 2)),
    ],
    ids=["inputs alone", "triples", "empty", "dictionaries", "bare rows of two"],
)
def test_rows_that_are_no_pairs_are_refused(dataset):
    loader = DataLoader(dataset, batch_size=2)
    with pytest.raises(ValueError, match=r"rows: expected a dataset of \(input, target\) pairs"):
        rows_of(trainer_with(train_dataloader=loader), LightningModule(), "train")


def test_rows_are_in_the_precision_of_the_loops():
    trainer = trainer_with(train_dataloader=DataLoader(pairs()), precision_plugin=DoublePrecision())
    inputs, targets = rows_of(trainer, LightningModule(), "train")
    assert inputs.dtype == torch.float64
    assert targets.dtype == torch.int64
