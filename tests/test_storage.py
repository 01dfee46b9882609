"""Nothing is lost when writing fails or the process dies: checkpoints, the one before the last, records, events."""

import os
import re
import resource
import shutil
import signal
import sys
import threading
from pathlib import Path

import interrupted
import numpy as np
import pytest
import torch
from interrupted import Ended, fit
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import AsyncCheckpointIO, TorchCheckpointIO
from runs_compared import assert_same_run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from grok_callbacks import LearningCurves
from grok_callbacks.files import WriteError, unfinished
from grok_lightning import MLP, AtomicCheckpointIO, LastCheckpoint, Recorder, SparseParity, TableData, runs
from grok_lightning.checkpoints import checkpoint_fault, newest_checkpoint, step_of_checkpoint
from grok_lightning.cli import _quiet_about_disks, main
from grok_lightning.events import ContinuedEvents
from grok_lightning.records import read_record

pytestmark = [
    # The copies that are resumed here lie in another place than the run that they are copies of.
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    # Forking after threads were started is what is done here on purpose; the children run no threads of their own.
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning"),
]

CONFIG = """
model:
  class_path: MLP
  init_args:
    hidden: [HIDDEN]
    optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.3, momentum: 0.9}}
data:
  class_path: TableData
  init_args:
    task: {class_path: SparseParity, init_args: {n: 6, k: 2}}
    train_size: 32
    batch_size: 8
population: {seed: [0, 1]}
trainer:
  max_epochs: 3
  enable_progress_bar: false
  callbacks:
    - class_path: NeuronNormTracker
      init_args: {layer: network.hidden.0, schedule: {class_path: EveryNSteps, init_args: {n: 3}}}
"""
RUN = Path("runs/tiny/version_0")
EVERY_SECOND = "{schedule: {class_path: EveryNSteps, init_args: {n: 2}}}"
WEIGHTS = f"--trainer.callbacks+={{class_path: WeightTrajectory, init_args: {EVERY_SECOND}}}"
ALWAYS = "--trainer.callbacks+={class_path: grok_lightning.LastCheckpoint, init_args: {every_seconds: 1.0e-9}}"


def every(n: int) -> str:
    arguments = f"{{filename: '{{step}}', auto_insert_metric_name: false, every_n_train_steps: {n}, save_top_k: -1}}"
    return f"--trainer.callbacks+={{class_path: ModelCheckpoint, init_args: {arguments}}}"


@pytest.fixture
def folder(tmp_path):
    return write_config(tmp_path / "work")


def write_config(folder: Path, hidden: int = 8) -> Path:
    folder.mkdir()
    (folder / "tiny.yaml").write_text(CONFIG.replace("HIDDEN", str(hidden)))
    return folder


def at_step(step: int, act):
    """Return what has a run do something as a step begins: what was due after the one before has been done."""

    def before():
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == step:
                act(trainer)

        Recorder.on_train_batch_start = on_train_batch_start

    return before


@pytest.fixture
def train(make_trainer, tmp_path):
    """Return a function that trains two small members for eight steps in a plain script."""

    def fit(*callbacks, ckpt_path=None, **options):
        members = {"seed": [0, 1]}
        trainer = make_trainer(max_epochs=2, callbacks=list(callbacks), enable_checkpointing=True, **options)
        data = TableData(SparseParity(6, 2), train_size=32, batch_size=8, members=members)
        trainer.fit(MLP(n_inputs=6, hidden=[8], members=members), datamodule=data, ckpt_path=ckpt_path)
        return trainer

    return fit


def every_second_step(directory):
    return ModelCheckpoint(directory, "{step}", auto_insert_metric_name=False, every_n_train_steps=2, save_top_k=-1)


# The plugin


CONTENT = {"state_dict": {"w": torch.arange(1000.0)}, "global_step": 3}


def test_what_is_saved_is_read_by_lightnings_own_plugin_and_the_other_way_round(tmp_path):
    for writes, reads in [(AtomicCheckpointIO(), TorchCheckpointIO()), (TorchCheckpointIO(), AtomicCheckpointIO())]:
        path = tmp_path / "there" / f"{type(writes).__name__}.ckpt"
        writes.save_checkpoint(CONTENT, path)
        found = reads.load_checkpoint(str(path))
        assert torch.equal(found["state_dict"]["w"], CONTENT["state_dict"]["w"])
        assert found["global_step"] == 3


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "x.ckpt"
    AtomicCheckpointIO().save_checkpoint(CONTENT, path)
    before = path.read_bytes()

    def half(content, file):
        file.write(before[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(WriteError, match=r"No space left on device: .*x\.ckpt"):
        AtomicCheckpointIO().save_checkpoint(CONTENT, path)
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["x.ckpt"]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda content: b"", "the file is empty"),
        (lambda content: content[:-1], "cannot be read as a checkpoint"),
        (lambda content: content[: len(content) // 2], "cannot be read as a checkpoint"),
        (lambda content: b"hello", "cannot be read"),
    ],
    ids=["empty", "a byte missing", "half", "text"],
)
@pytest.mark.parametrize("weights_only", [None, True, False])
def test_a_damaged_file_is_named(tmp_path, damage, says, weights_only):
    path = tmp_path / "x.ckpt"
    AtomicCheckpointIO().save_checkpoint(CONTENT, path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"x\.ckpt: .*{says}") as raised:
        AtomicCheckpointIO().load_checkpoint(path, weights_only=weights_only)
    assert len(str(raised.value).splitlines()) == 1


def test_a_file_that_is_no_checkpoint_or_not_there_is_named(tmp_path):
    for content in ({"weights": [1]}, torch.zeros(2), {"w": torch.zeros(2), "b": 1}):
        torch.save(content, tmp_path / "x.ckpt")
        with pytest.raises(ValueError, match=r"x\.ckpt: the file is not a Lightning checkpoint"):
            AtomicCheckpointIO().load_checkpoint(tmp_path / "x.ckpt")
    with pytest.raises(FileNotFoundError, match=r"y\.ckpt: there is no such file"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "y.ckpt")


def test_bare_weights_are_read(tmp_path):
    """So Lightning hands them back from a forked process."""
    AtomicCheckpointIO().save_checkpoint({"w": torch.arange(3.0)}, tmp_path / "x.ckpt")
    assert torch.equal(AtomicCheckpointIO().load_checkpoint(tmp_path / "x.ckpt")["w"], torch.arange(3.0))


def test_tensors_come_to_the_cpu_unless_told_otherwise(tmp_path):
    AtomicCheckpointIO().save_checkpoint({"state_dict": {"w": torch.zeros(2)}}, tmp_path / "x.ckpt")
    load = AtomicCheckpointIO().load_checkpoint
    assert load(tmp_path / "x.ckpt")["state_dict"]["w"].device.type == "cpu"
    assert load(tmp_path / "x.ckpt", map_location="meta")["state_dict"]["w"].device.type == "meta"


@pytest.mark.parametrize("address", ["s3://bucket/x.ckpt", "memory://x.ckpt"])
@pytest.mark.parametrize("what", ["save", "load", "remove"])
def test_an_address_elsewhere_is_refused(tmp_path, monkeypatch, address, what):
    monkeypatch.chdir(tmp_path)
    plugin = AtomicCheckpointIO()
    with pytest.raises(ValueError, match=f"expected a local file, got {address}.*TorchCheckpointIO"):
        {
            "save": lambda: plugin.save_checkpoint(CONTENT, address),
            "load": lambda: plugin.load_checkpoint(address),
            "remove": lambda: plugin.remove_checkpoint(address),
        }[what]()
    assert list(tmp_path.iterdir()) == []


def test_options_of_a_storage_are_refused(tmp_path):
    with pytest.raises(TypeError, match="storage_options"):
        AtomicCheckpointIO().save_checkpoint(CONTENT, tmp_path / "x.ckpt", storage_options={"a": 1})


def test_removing_takes_a_file_or_a_directory_or_nothing(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "directory" / "below").mkdir(parents=True)
    for name in ("file", "directory", "nothing"):
        AtomicCheckpointIO().remove_checkpoint(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_any_trainer_writes_and_resumes_with_it(train, tmp_path):
    whole = train(every_second_step(tmp_path / "c"), plugins=[AtomicCheckpointIO()])
    again = train(
        every_second_step(tmp_path / "d"), plugins=[AtomicCheckpointIO()], ckpt_path=tmp_path / "c" / "4.ckpt"
    )
    assert again.global_step == 8
    for mine, theirs in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["2.ckpt", "4.ckpt", "6.ckpt", "8.ckpt"]
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == ["6.ckpt", "8.ckpt"]


@pytest.mark.parametrize(
    ("plugin", "kept"),
    [
        (None, "AtomicCheckpointIO"),
        ("lightning.pytorch.plugins.io.TorchCheckpointIO", "TorchCheckpointIO"),
        ("lightning.pytorch.plugins.io.AsyncCheckpointIO", "AsyncCheckpointIO"),
        ("lightning.pytorch.plugins.precision.DoublePrecision", "AtomicCheckpointIO"),
    ],
)
def test_the_command_line_adds_it_where_there_is_no_other(folder, plugin, kept):
    def say(trainer):
        sys.stdout.write(f"written by {type(trainer.strategy.checkpoint_io).__name__}\n")

    given = [] if plugin is None else [f"--trainer.plugins={plugin}"]
    ended = fit(folder, "--config", "tiny.yaml", ALWAYS, *given, before=at_step(2, say))
    assert ended.status == 0, ended.output
    assert f"written by {kept}" in ended.output
    assert step_of_checkpoint(folder / RUN / "checkpoints" / "last.ckpt") == 12


# The last checkpoint and the one before it


class Plain(TorchCheckpointIO):
    """As careless as can be; once it is told to, it dies in the middle of a file."""

    broken = False

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        if self.broken:
            Path(path).write_bytes(b"half")
            raise RuntimeError("enough")
        torch.save(checkpoint, path)


PLUGINS = {
    "ours": AtomicCheckpointIO,
    "lightning's": TorchCheckpointIO,
    "asynchronous": AsyncCheckpointIO,
    "somebody's": Plain,
}


@pytest.mark.parametrize("plugin", PLUGINS)
def test_the_one_before_the_last_is_kept_whatever_plugin_writes_them(train, tmp_path, plugin):
    plugins = [PLUGINS[plugin]()]
    trainer = train(LastCheckpoint(every_seconds=1e-9), max_steps=6, plugins=plugins)
    directory = tmp_path / "checkpoints"
    assert sorted(path.name for path in directory.iterdir()) == ["last.ckpt", "previous.ckpt"]
    assert step_of_checkpoint(directory / "last.ckpt") == 6
    assert step_of_checkpoint(directory / "previous.ckpt") in (5, 6), "the end is saved, too"
    assert trainer.strategy.checkpoint_io is plugins[0], "it is put back"


def test_a_plugin_that_fails_in_the_middle_leaves_both(train, tmp_path):
    plugin = Plain()

    class Breaks(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            plugin.broken = trainer.global_step == 5

    with pytest.raises(RuntimeError, match="enough"):
        train(LastCheckpoint(every_seconds=1e-9), Breaks(), plugins=[plugin])
    directory = tmp_path / "checkpoints"
    assert {path.name: step_of_checkpoint(path) for path in directory.iterdir()} == {"last.ckpt": 5, "previous.ckpt": 4}


@pytest.mark.parametrize("content", [b"", b"half"])
def test_a_damaged_last_checkpoint_does_not_take_the_place_of_the_whole_one_before_it(train, tmp_path, content):
    train(LastCheckpoint(every_seconds=1e-9), max_steps=4)
    directory = tmp_path / "checkpoints"
    before = (directory / "previous.ckpt").read_bytes()
    (directory / "last.ckpt").write_bytes(content)

    class Looks(Callback):
        seen = ()

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 1:
                self.seen = (step_of_checkpoint(directory / "last.ckpt"), (directory / "previous.ckpt").read_bytes())

    looks = Looks()
    train(LastCheckpoint(every_seconds=1e-9), looks)
    assert looks.seen == (1, before)
    assert step_of_checkpoint(directory / "previous.ckpt") in (7, 8), "afterwards it moves on"


@pytest.mark.parametrize("links", [True, False])
def test_at_every_instant_there_is_a_whole_checkpoint(train, tmp_path, monkeypatch, links):
    """Looked at before and after everything that is done to names of files."""
    directory = tmp_path / "checkpoints"
    seen = []

    def look(doing):
        def looking(*arguments):
            seen.append({path.name for path in directory.glob("*.ckpt") if checkpoint_fault(path) is None})
            done = doing(*arguments)
            seen.append({path.name for path in directory.glob("*.ckpt") if checkpoint_fault(path) is None})
            return done

        return looking

    def no_links(*_):
        raise OSError(1, "Operation not permitted")

    train(LastCheckpoint(every_seconds=1e-9), max_steps=2)
    for name in ("replace", "link", "unlink"):
        monkeypatch.setattr(os, name, look(no_links if name == "link" and not links else getattr(os, name)))
    train(LastCheckpoint(every_seconds=1e-9))
    assert len(seen) > 40
    always = {"last.ckpt", "previous.ckpt"} if links else {"previous.ckpt"}
    assert all(always <= names for names in seen)
    assert sorted(path.name for path in directory.iterdir()) == ["last.ckpt", "previous.ckpt"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = write_config(tmp_path_factory.mktemp("whole") / "work")
    assert fit(folder, "--config", "tiny.yaml", ALWAYS).status == 0
    return folder / RUN


@pytest.mark.parametrize(
    ("call", "nth"),
    [
        pytest.param("replace", 1, id="record written"),
        pytest.param("fsync", 3, id="checkpoint not on the disk"),
        pytest.param("link", 1, id="checkpoint written"),
        pytest.param("replace", 3, id="linked"),
        pytest.param("replace", 4, id="the one before it kept"),
        pytest.param("fsync", 6, id="replaced"),
    ],
)
def test_a_run_that_is_killed_while_a_checkpoint_is_written_goes_on(folder, uninterrupted, call, nth):
    def kill(trainer):
        calls = []
        done = getattr(os, call)

        def killing(*arguments):
            calls.append(call)
            if len(calls) == nth:
                os.kill(os.getpid(), signal.SIGKILL)
            return done(*arguments)

        setattr(os, call, killing)

    ended = fit(folder, "--config", "tiny.yaml", ALWAYS, before=at_step(7, kill))
    assert ended.status == -signal.SIGKILL, ended.output
    directory = folder / RUN / "checkpoints"
    assert checkpoint_fault(directory / "last.ckpt") is None
    assert step_of_checkpoint(newest_checkpoint(folder / RUN)) in (7, 8, 9)
    again = fit(folder, "--ckpt_path", f"{RUN}/checkpoints/last.ckpt")
    assert again.status == 0, again.output
    assert [path.name for path in folder.rglob(".grok-unfinished.*")] == []
    assert_same_run(folder / RUN, uninterrupted)


def test_what_killed_processes_left_is_removed_when_a_run_goes_on(folder):
    assert fit(folder, "--config", "tiny.yaml", WEIGHTS, "--trainer.max_epochs=1").status == 0
    places = [folder / RUN / name for name in ("records.nc", "checkpoints/last.ckpt", "weights/step_0000000001.pt")]
    for path in places:
        unfinished(path).write_bytes(b"half")
    kept = folder / "runs" / "other"
    kept.mkdir()
    unfinished(kept / "x").write_bytes(b"of somebody else")
    assert fit(folder, "--ckpt_path", str(RUN), "--trainer.max_epochs=2").status == 0
    assert [path.parent for path in folder.rglob(".grok-unfinished.*")] == [kept]


# A damaged last.ckpt


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A run that was killed in its tenth step, with checkpoints of steps 9 and 8."""
    folder = write_config(tmp_path_factory.mktemp("killed") / "work")
    ended = fit(folder, "--config", "tiny.yaml", ALWAYS, before=at_step(9, lambda trainer: os._exit(9)))
    assert ended.status == 9, ended.output
    return folder


DAMAGE = {
    "truncated": lambda path: os.truncate(path, 999),
    "empty": lambda path: os.truncate(path, 0),
    "missing": os.unlink,
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("named", [["--config", "tiny.yaml", ALWAYS], []], ids=["config named", "config of the run"])
def test_in_place_of_a_damaged_last_checkpoint_the_one_before_it_is_used(
    killed, uninterrupted, tmp_path, damage, named
):
    folder = shutil.copytree(killed, tmp_path / "copy")
    last = folder / RUN / "checkpoints" / "last.ckpt"
    assert step_of_checkpoint(last) == 9
    DAMAGE[damage](last)
    ended = fit(folder, *named, "--ckpt_path", f"{RUN}/checkpoints/last.ckpt")
    assert ended.status == 0, ended.output
    assert_same_run(folder / RUN, uninterrupted)


@pytest.mark.parametrize("subcommand", ["fit", "validate"])
def test_any_other_damaged_checkpoint_is_refused_and_the_newest_whole_one_beside_it_named(killed, tmp_path, subcommand):
    folder = shutil.copytree(killed, tmp_path / "copy")
    directory = folder / RUN / "checkpoints"
    shutil.copy(directory / "last.ckpt", directory / "7.ckpt")
    os.truncate(directory / "7.ckpt", 999)
    for name, fault in [("7.ckpt", "cannot be read"), ("5.ckpt", "no such file")]:
        ended = run_main(folder, subcommand, "--ckpt_path", f"{RUN}/checkpoints/{name}")
        assert ended.status == 2, ended.output
        said = ended.output.splitlines()[-1]
        assert said.startswith(f"error: ckpt_path: {RUN}/checkpoints/{name}: ")
        assert fault in said
        assert said.endswith(f"the newest whole checkpoint there is {RUN}/checkpoints/last.ckpt, of step 9")
        assert "Traceback" not in ended.output


def run_main(folder: Path, subcommand: str, *arguments: str) -> Ended:
    """Run another subcommand than ``fit``."""

    def rename():
        interrupted.main = lambda words: main([subcommand, *words[1:]])

    return fit(folder, *arguments, before=rename)


def test_where_no_checkpoint_is_whole_that_is_told(killed, tmp_path):
    folder = shutil.copytree(killed, tmp_path / "copy")
    for path in (folder / RUN / "checkpoints").iterdir():
        os.truncate(path, 10)
    for given in (f"{RUN}/checkpoints/last.ckpt", str(RUN)):
        ended = fit(folder, "--config", "tiny.yaml", "--ckpt_path", given)
        assert ended.status == 2, ended.output
        assert ended.output.splitlines()[-1].startswith("error: ckpt_path: ")


def test_the_newest_network_is_that_of_the_newest_checkpoint_not_of_the_highest_step(killed, tmp_path):
    """A run that was taken up again at an earlier step than its last one."""
    folder = shutil.copytree(killed, tmp_path / "copy")
    directory = folder / RUN / "checkpoints"
    shutil.copy(directory / "last.ckpt", directory / "12.ckpt")
    content = torch.load(directory / "12.ckpt", weights_only=True)
    torch.save(content | {"global_step": 12}, directory / "12.ckpt")
    os.utime(directory / "12.ckpt", ns=(0, 0))
    run = runs.open_run(folder / RUN)
    expected = torch.load(directory / "last.ckpt", weights_only=True)["state_dict"]["network.hidden.0.weight"][1:]
    content["state_dict"]["network.hidden.0.weight"] += 1
    torch.save(content | {"global_step": 12}, directory / "12.ckpt")
    os.utime(directory / "12.ckpt", ns=(0, 0))
    assert torch.equal(run.network(member=1).state_dict()["hidden.0.weight"], expected)
    assert torch.equal(run.network(step=12, member=1).state_dict()["hidden.0.weight"], expected + 1)


# Full disks


def fill_disk(limit):
    """Return what keeps every file of this process from growing beyond so many bytes: what a full disk comes to."""

    def fill(trainer):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    return fill


@pytest.mark.parametrize(
    ("what", "hidden", "arguments"),
    [
        pytest.param(r"records\.nc", 8, [ALWAYS], id="record"),
        pytest.param(r"weights/step_0000000008\.pt", 8, [WEIGHTS, ALWAYS], id="snapshot"),
        pytest.param(r"checkpoints/last\.ckpt", 4000, [ALWAYS], id="last checkpoint"),
        pytest.param(r"checkpoints/8\.ckpt", 4000, [every(2)], id="checkpoint"),
    ],
)
def test_a_full_disk_is_told_in_a_line_and_the_run_goes_on_when_there_is_room(tmp_path, what, hidden, arguments):
    folder, whole = (write_config(tmp_path / name, hidden) for name in ("work", "whole"))
    full = fill_disk(1500 if hidden == 8 else 300_000)
    ended = fit(folder, "--config", "tiny.yaml", *arguments, before=at_step(7, full))
    assert ended.status == 2, ended.output
    assert "Traceback" not in ended.output
    said = ended.output.splitlines()[-1]
    last = 6 if "8" in what and hidden == 4000 else 7
    name = "last.ckpt" if ALWAYS in arguments else "6.ckpt"
    expected = (
        rf"error: cannot write \S+{what}: File too large; the last good checkpoint is of step {last}; mend that, then: "
        rf"python -m grok_lightning fit --ckpt_path (\S+{name})"
    )
    found = re.fullmatch(expected, said)
    assert found, said
    assert read_record(folder / RUN / "records.nc").attrs["last_step"] in (7, 8)
    assert list(folder.rglob(".grok-unfinished.*")) == []
    assert fit(folder, "--ckpt_path", found[1]).status == 0
    assert fit(whole, "--config", "tiny.yaml", *arguments).status == 0
    assert_same_run(folder / RUN, whole / RUN)


def test_a_disk_that_is_full_for_events_is_told_too(folder):
    ended = fit(
        folder, "--config", "tiny.yaml", ALWAYS, "--trainer.max_epochs=200", before=at_step(70, fill_disk(4096))
    )
    assert ended.status == 2, ended.output
    assert "Traceback" not in ended.output
    assert "File too large; the last good checkpoint is of step" in ended.output.splitlines()[-1]


@pytest.mark.parametrize(
    ("error", "told"), [(OSError(28, "No space left on device"), []), (ValueError("a bug"), ["a bug"])], ids=str
)
def test_a_thread_that_could_not_write_prints_no_traceback_and_any_other_error_does(monkeypatch, error, told):
    """TensorBoard's writes in the background, and hands its error to whoever logs next."""
    printed = []
    monkeypatch.setattr(threading, "excepthook", lambda args: printed.append(str(args.exc_value)))
    before = threading.excepthook

    def fails():
        raise error

    with _quiet_about_disks():
        thread = threading.Thread(target=fails)
        thread.start()
        thread.join()
    assert printed == told
    assert threading.excepthook is before


def test_a_disk_that_is_full_from_the_start_is_told(folder):
    ended = fit(folder, "--config", "tiny.yaml", ALWAYS, before=at_step(0, fill_disk(1500)))
    assert ended.status == 2, ended.output
    assert ended.output.splitlines()[-1].endswith("File too large; there is no checkpoint yet")


def test_an_error_before_the_disk_was_full_is_the_one_that_is_shown(folder):
    """The record is written at an exception, too, and cannot be."""

    def fails(trainer):
        fill_disk(12_000)(trainer)
        raise ValueError("seven is enough")

    ended = fit(folder, "--config", "tiny.yaml", before=at_step(7, fails))
    assert ended.status == 1
    assert "ValueError: seven is enough" in ended.output.splitlines()[-1]


def test_a_record_that_cannot_be_written_at_an_exception_is_told_beside_it(train, monkeypatch):
    notes = []

    def full(record, path):
        raise WriteError(28, "No space left on device", str(path))

    class Fails(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            raise ValueError("enough")

    monkeypatch.setattr(runs, "write_record", full)
    monkeypatch.setattr(runs, "rank_zero_info", notes.append)
    with pytest.raises(ValueError, match="enough"):
        train(LearningCurves(), Recorder(), Fails())
    assert len(notes) == 1
    assert re.fullmatch(r"the record stays as it was: .*No space left on device.*records\.nc'", notes[0])


def test_a_directory_that_may_not_be_written_to_any_more_is_told(folder):
    if os.geteuid() == 0:

        def close(trainer):
            # Permissions do not bind the superuser: the refusal is played.
            def refuses(self, *arguments, **options):
                raise PermissionError(13, "Permission denied", str(self))

            Path.open = refuses
            Path.write_bytes = refuses

    else:

        def close(trainer):
            (folder / RUN / "checkpoints").chmod(0o555)
            (folder / RUN).chmod(0o555)

    ended = fit(folder, "--config", "tiny.yaml", ALWAYS, before=at_step(7, close))
    (folder / RUN).chmod(0o755)
    assert ended.status == 2, ended.output
    assert "Traceback" not in ended.output
    assert "Permission denied; the last good checkpoint is of step 7" in ended.output.splitlines()[-1]


# Events


def events_of(directory: Path) -> dict[str, list[tuple[int, float]]]:
    """Return what TensorBoard shows of every scalar."""
    events = EventAccumulator(str(directory), size_guidance={"scalars": 0})
    events.Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def assert_events_are_the_record(directory: Path) -> None:
    events, curves = events_of(directory), read_record(directory / "records.nc")["curves"]
    for prefix, split in [("train", "train"), ("val", "held_out")]:
        for name in ("loss", "accuracy"):
            means = curves[name].sel(split=split).mean("member").values.astype(np.float32)
            expected = [*zip(curves["step"].values.tolist(), means.tolist(), strict=True)]
            assert events[f"{prefix}/{name}"] == expected, name
    norms = read_record(directory / "records.nc")["neuron_norms"]
    for name in [name for name in events if name.startswith("neuron_norms/")]:
        assert [step for step, _ in events[name]] == norms["step"].values.tolist(), name


FLUSHED = (True, False)


@pytest.mark.parametrize("flushed", FLUSHED)
@pytest.mark.parametrize(
    ("saved", "killed_at"),
    [
        pytest.param(3, 8, id="between validations"),
        pytest.param(4, 10, id="at a validation, killed after it"),
        pytest.param(1, 8, id="just saved and validated"),
    ],
)
def test_events_and_record_agree_after_a_kill(folder, saved, killed_at, flushed):
    def kill(trainer):
        for logger in trainer.loggers if flushed else []:
            logger.save()
        os.kill(os.getpid(), signal.SIGKILL)

    ended = fit(folder, "--config", "tiny.yaml", every(saved), before=at_step(killed_at, kill))
    assert ended.status == -signal.SIGKILL, ended.output
    if flushed:
        assert [step for step, _ in events_of(folder / RUN)["val/loss"]] == [0, 4, 8]
    again = fit(folder, "--ckpt_path", str(RUN))
    assert again.status == 0, again.output
    assert read_record(folder / RUN / "records.nc")["curves"]["step"].values.tolist() == [0, 4, 8, 12]
    assert_events_are_the_record(folder / RUN)


def test_events_and_record_agree_after_a_kill_between_a_checkpoint_and_its_validation(folder):
    def before():
        def on_validation_start(self, trainer, pl_module):
            if trainer.global_step == 8:
                os.kill(os.getpid(), signal.SIGKILL)

        Recorder.on_validation_start = on_validation_start

    ended = fit(folder, "--config", "tiny.yaml", every(4), before=before)
    assert ended.status == -signal.SIGKILL, ended.output
    assert fit(folder, "--ckpt_path", str(RUN)).status == 0
    assert_events_are_the_record(folder / RUN)


def test_events_and_record_agree_after_two_kills_and_half_an_event(folder):
    for step in (6, 10):
        given = ["--config", "tiny.yaml", every(4)] if step == 6 else ["--ckpt_path", str(RUN)]

        def kill(trainer):
            trainer.logger.save()
            os.kill(os.getpid(), signal.SIGKILL)

        assert fit(folder, *given, before=at_step(step, kill)).status == -signal.SIGKILL
        newest = max((folder / RUN).glob("events*"))
        newest.write_bytes(newest.read_bytes()[:-7])
    assert fit(folder, "--ckpt_path", str(RUN)).status == 0
    assert_events_are_the_record(folder / RUN)


def test_only_what_is_there_already_is_left_out(tmp_path):
    first = ContinuedEvents(tmp_path, 3)
    first.log_metrics({"a": 1.0}, 3)
    first.log_metrics({"a": 2.0, "b": 3.0}, 4)
    first.finalize("success")
    os.rename(next(tmp_path.glob("events*")), tmp_path / "events.out.tfevents.0000000001.x")
    again = ContinuedEvents(tmp_path, 4)
    again.log_metrics({"a": 20.0, "c": 30.0}, 4)
    again.log_metrics({"a": 5.0}, 5)
    again.finalize("success")
    assert events_of(tmp_path) == {"a": [(3, 1.0), (4, 2.0), (5, 5.0)], "b": [(4, 3.0)], "c": [(4, 30.0)]}


def test_loggers_are_told_to_write_with_every_checkpoint(train, tmp_path, recording_logger, monkeypatch):
    written = []
    monkeypatch.setattr(recording_logger, "save", lambda: written.append(len(written)))
    train(LearningCurves(), Recorder(), every_second_step(tmp_path / "c"), logger=recording_logger)
    assert len(written) >= 4
