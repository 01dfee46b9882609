import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer

from grok_lightning import open as open_run
from grok_lightning.cli import main
from grok_lightning.data import FreshLoader, OnlineData
from grok_lightning.tasks import FreshRows, SparseParity, Task


class Unlisted(SparseParity):
    """Few bits that are drawn, as many bits are."""

    def table(self):
        return None


class Sum(Task):
    """a + b mod 5: whole numbers."""

    n_inputs, n_outputs = 2, 5

    def label(self, inputs):
        return inputs.sum(dim=1) % 5

    def table(self):
        return torch.cartesian_prod(torch.arange(5), torch.arange(5))


def process(rank=0, world=1, step=0):
    """What the data ask of a Trainer in one process of several."""
    return SimpleNamespace(
        accumulate_grad_batches=1,
        overfit_batches=0.0,
        global_step=step,
        global_rank=rank,
        world_size=world,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )


def online(task=None, batch_size=8, n_held_out=50, **options):
    return OnlineData(task or SparseParity(10, 3), batch_size, n_held_out, **options)


def loader(data, rank=0, world=1, step=0):
    data.trainer = process(rank, world, step)
    return data.train_dataloader()


def as_set(rows):
    return {tuple(row) for row in rows.reshape(-1, rows.shape[-1]).tolist()}


def same(first, second):
    return all(
        (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))
        for a, b in zip(first, second, strict=True)
    )


STEPS = [0, 1, 255, 256, 257, 511, 512, 3000]  # batches of 8: a block is of 256 steps


@pytest.mark.parametrize("task", [SparseParity(10, 3), Unlisted(10, 3), SparseParity(50, 3)])
def test_a_batch_depends_on_nothing_but_the_step(task):
    straight = loader(online(task, members={"seed": [0, 1]}))
    expected = {step: straight.batch(step) for step in range(520)}
    jumping = loader(online(task, members={"seed": [0, 1]}))
    for step in [519, 0, 300, 256, 255, 255, 511, 512, 1]:
        assert same(jumping.batch(step), expected[step])
    assert len({tuple(batch.inputs.flatten().tolist()) for batch in expected.values()}) == 520, "every one is another"


@pytest.mark.parametrize("batch_size", [1, 8, 32, 1000, 3000])
def test_the_rows_of_a_step_are_its_share_of_the_members_stream(batch_size):
    task = SparseParity(50, 3)
    batches = loader(online(task, batch_size, members={"seed": [4, 9]}))
    steps_of_block = max(1, 2048 // batch_size)
    for e, seed in enumerate([4, 9]):
        rows = FreshRows(task, seed, 50)
        for step in (0, 1, steps_of_block, 3 * steps_of_block - 1):
            index, i = divmod(step, steps_of_block)
            inputs, targets = rows.block(index, steps_of_block * batch_size)
            mine = slice(i * batch_size, (i + 1) * batch_size)
            batch = batches.batch(step)
            assert batch.weights is batch.true_targets is None
            assert torch.equal(batch.inputs[e], inputs[mine])
            assert torch.equal(batch.targets[e], targets[mine])


def test_members_see_what_they_would_see_alone():
    members = {"seed": [5, 0, 3], "data_seed": [7, 8, 7], "subset_seed": [1, 2, 3]}
    task = SparseParity(10, 3, "drawn")
    together = online(task, members=members)
    batches, held_out = loader(together), together.rows("held_out")
    for e in range(3):
        alone = online(task, members={name: [values[e]] for name, values in members.items()})
        for mine, own in zip(held_out, alone.rows("held_out"), strict=True):
            assert torch.equal(mine[e], own[0])
        own_batches = loader(alone)
        for step in STEPS:
            batch, own_batch = batches.batch(step), own_batches.batch(step)
            assert torch.equal(batch.inputs[e], own_batch.inputs[0])
            assert torch.equal(batch.targets[e], own_batch.targets[0])
            secret = SparseParity(10, 3, "drawn", members["subset_seed"][e]).secret
            assert torch.equal(batch.targets[e], batch.inputs[e][:, secret].prod(dim=1))
    # The rows are the data seed's, whatever the labels and the other seeds.
    assert torch.equal(batches.batch(9).inputs[0], batches.batch(9).inputs[2])
    assert not torch.equal(batches.batch(9).inputs[0], batches.batch(9).inputs[1])


@pytest.mark.parametrize("task", [SparseParity(6, 3), Unlisted(6, 3), Sum()])
def test_held_out_rows_are_never_trained_on(task):
    data = online(task, n_held_out=20, members={"seed": [0, 1]})
    batches = loader(data)
    for e in range(2):
        held_out = as_set(data.rows("held_out")[0][e])
        assert len(held_out) == 20
        trained_on = set().union(*(as_set(batches.batch(step).inputs[e]) for step in range(600)))
        assert not held_out & trained_on
        assert len(trained_on) == (25 if isinstance(task, Sum) else 64) - 20


def test_a_batch_that_is_kept_does_not_change():
    batches = loader(online())
    kept = batches.batch(3)
    before = [kept.inputs.clone(), kept.targets.clone()]
    batches.batch(700)
    assert torch.equal(kept.inputs, before[0])
    assert torch.equal(kept.targets, before[1])


@pytest.mark.parametrize("batch_size", [1, 8, 32, 300, 700, 1000, 1025, 3000])
def test_monitors_get_the_first_rows_that_are_trained_on(batch_size):
    data = online(SparseParity(50, 3), batch_size, members={"seed": [0, 1]})
    inputs, targets = data.rows("train")
    assert inputs.shape == (2, 1000, 50)
    batches = [loader(data).batch(step) for step in range(-(-1000 // batch_size))]
    assert torch.equal(inputs, torch.cat([batch.inputs for batch in batches], dim=1)[:, :1000])
    assert torch.equal(targets, torch.cat([batch.targets for batch in batches], dim=1)[:, :1000])


def test_validation_looks_at_the_held_out_rows_alone():
    data = online(members={"seed": [0, 1]})
    assert data.splits == ("held_out",)
    for loaders in (data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        [batches] = loaders
        [batch] = batches
        assert torch.equal(batch.inputs, data.rows("held_out")[0])
        assert torch.equal(batch.targets, batch.inputs[..., :3].prod(dim=-1))
        assert batch.inputs.shape == (2, 50, 10)


def test_it_says_what_it_is():
    data = OnlineData()
    assert (data.n_inputs, data.n_outputs) == (40, 1)
    assert (data.steps_per_epoch, data.rows_per_step) == (0, 32)
    assert data.coordinates == {"seed", "data_seed", "subset_seed"}
    assert online(Sum(), n_held_out=5).coordinates == {"seed", "data_seed"}


def test_what_lightning_takes_for_an_epoch_is_the_way_to_the_next_validation():
    data = online(validate_every=7)
    batches = loader(data, step=41)
    assert isinstance(batches, FreshLoader)
    assert len(batches) == 7
    seen = []
    for batch in batches:
        seen.append(batch)
        data.trainer.global_step += 1
    assert len(seen) == 7
    for i, batch in enumerate(seen):
        assert same(batch, loader(online()).batch(41 + i))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ({"validate_every": 0}, "validate_every: expected at least 1, got 0"),
        ({"n_held_out": 0}, "n_held_out: expected at least 1"),
        ({"n_held_out": 1024}, "n_held_out: expected fewer than the 1024 rows"),
        ({"members": {"seed": [0], "subset_seed": [1]}}, "needs subset: drawn"),
    ],
)
def test_numbers_out_of_range_are_refused_before_anything_starts(options, message):
    with pytest.raises(ValueError, match=message):
        online(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate_grad_batches": 2}, "accumulate_grad_batches: .* set data.batch_size"),
        ({"overfit_batches": 3}, "overfit_batches: set data.train_size of TableData"),
    ],
)
def test_flags_that_would_be_misread_are_refused(options, message):
    data = online()
    quiet = ["logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"]
    data.trainer = Trainer(accelerator="cpu", devices=1, **dict.fromkeys(quiet, False), **options)
    with pytest.raises(ValueError, match=message):
        data.train_dataloader()


def test_batches_need_a_trainers_clock():
    with pytest.raises(ValueError, match="attach one first"):
        online().train_dataloader()


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_the_shards_together_are_the_batch_and_their_mean_gradient_is_its(batch_size, world):
    members = {"seed": [0, 1]}
    w = torch.linspace(-1, 1, 20, dtype=torch.float64).view(2, 1, 10).requires_grad_()

    def gradient(batch):
        losses = ((batch.inputs * w).sum(dim=-1) - batch.targets).square()
        loss = losses.mean(dim=1).sum() if batch.weights is None else (losses * batch.weights).sum()
        return torch.autograd.grad(loss, w)[0]

    whole = loader(online(batch_size=batch_size, members=members))
    shards = [loader(online(batch_size=batch_size, members=members), rank, world) for rank in range(world)]
    for step in STEPS:
        batch, parts = whole.batch(step), [shard.batch(step) for shard in shards]
        assert sum(part.targets.shape[1] for part in parts) == batch_size
        for e in range(2):
            rows = [row for part in parts for row in part.inputs[e].tolist()]
            assert sorted(rows) == sorted(batch.inputs[e].tolist())
        average = sum(gradient(part) for part in parts) / world
        torch.testing.assert_close(average, gradient(batch), rtol=1e-12, atol=1e-12)


class Spreads:
    """A strategy that gives the process every second member, from the second on."""

    root_device = torch.device("cpu")

    def own_members(self, n_members):
        return range(1, n_members, 2)

    def gather_members(self, values):
        raise AssertionError("nothing is gathered to make rows")


def test_a_process_draws_the_rows_of_its_members():
    members = {"seed": [0, 1, 2, 3]}
    together, mine = online(members=members), online(members=members)
    whole_loader = loader(together)
    mine.trainer = process(1, 2)
    mine.trainer.strategy = Spreads()
    own_loader = mine.train_dataloader()
    assert len(own_loader) == len(whole_loader)
    for step in (0, 1, 7):
        found, expected = own_loader.batch(step), whole_loader.batch(step)
        assert torch.equal(found.inputs, expected.inputs[1::2])
        assert torch.equal(found.targets, expected.targets[1::2])
        assert found.weights is None
    for split in ("train", "held_out"):
        assert mine.most_rows(split) == together.rows(split)[1].shape[1]
        for found, expected in zip(mine.rows(split), together.rows(split), strict=True):
            assert torch.equal(found, expected[1::2])


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_out_the_held_out_rows(world):
    parts = []
    for rank in range(world):
        data = online(n_held_out=50)
        data.trainer = process(rank, world)
        parts += [batch.inputs[0] for batch in data.val_dataloader()[0]]
    assert sum(map(len, parts)) == 50
    assert set.union(*map(as_set, parts)) == as_set(online(n_held_out=50).rows("held_out")[0])


CONFIG = """
model: {class_path: MLP, init_args: {hidden: [8], optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.3}}}}
data:
  class_path: OnlineData
  init_args:
    task: {class_path: SparseParity, init_args: {n: 6, k: 2}}
    n_held_out: 20
    validate_every: 5
population: {seed: [0, 1]}
trainer:
  max_steps: 12
  enable_progress_bar: false
  callbacks: [{class_path: NeuronNormTracker, init_args: {layer: network.hidden.0}}]
"""


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Calls the command line with a tiny config, in an empty folder."""
    monkeypatch.setattr(sys, "argv", ["grok"])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    return lambda name, *arguments: main([name, "--config", "tiny.yaml", *arguments])


def test_a_run_from_the_command_line_goes_all_the_way_to_its_page(command, capsys):
    command("fit")
    run = open_run("runs")
    assert run.record.attrs["steps_per_epoch"] == 0
    curves = run.record["curves"].to_dataset()
    assert curves["step"].values.tolist() == [0, 5, 10]
    assert curves["accuracy"].sel(split="train").isnull().all()
    assert curves["accuracy"].sel(split="held_out").notnull().all()
    assert run.record["onset"]["step"].sel(event="memorised").isnull().all()
    frame = run.to_dataframe("curves")
    assert "epoch" not in frame.columns
    page = (run.directory / "report.html").read_text()
    assert "step 10" in page
    assert "epoch 10" not in page
    capsys.readouterr()
    command("validate", "--ckpt_path", str(run.directory / "checkpoints" / "last.ckpt"))
    printed = capsys.readouterr().out
    assert "val/accuracy" in printed
    assert "train/accuracy" not in printed


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("--data.n_held_out=64", "n_held_out: expected fewer than the 64 rows"),
        ("--data.validate_every=0", "validate_every: expected at least 1, got 0"),
        ("--data.train_size=10", "train_size"),
        ("--population={seed: [0, 1], train_size: [5]}", "nothing here uses the coordinate 'train_size'"),
        ("--trainer.overfit_batches=2", "overfit_batches: set data.train_size of TableData instead"),
    ],
)
def test_what_is_refused_is_refused_in_a_line_and_leaves_nothing(command, capsys, argument, says):
    with pytest.raises(SystemExit) as stopped:
        command("fit", argument)
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert says in error.splitlines()[-1]
    assert not Path("runs").exists()
