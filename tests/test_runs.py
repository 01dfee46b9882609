"""Runs on disk: where they lie, what they leave, and opening them again."""

import multiprocessing
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

import grok_lightning
from grok_callbacks import (
    EveryNSteps,
    LearningCurves,
    NeuronNormTracker,
    Onset,
    SubnetworkComparison,
    WeightTrajectory,
)
from grok_lightning import MLP, LastCheckpoint, Recorder, SparseParity, TableData, runs
from grok_lightning.cli import main
from grok_lightning.records import read_record
from grok_lightning.runs import (
    Run,
    claim_directory,
    find_run,
    missing_parents,
    open_run,
    release_directory,
)

MEMBERS = {"seed": [3, 4], "weight_decay": [0.0, 0.1]}


def every_second_step(directory):
    return ModelCheckpoint(
        dirpath=directory / "checkpoints",
        filename="{step}",
        auto_insert_metric_name=False,
        every_n_train_steps=2,
        save_top_k=-1,
    )


@pytest.fixture
def train(make_trainer, tmp_path):
    """Return a function that trains two small members for eight steps in a plain script."""

    def fit(*callbacks, **options):
        saves = any(isinstance(callback, Checkpoint) for callback in callbacks)
        trainer = make_trainer(max_epochs=2, callbacks=list(callbacks), enable_checkpointing=saves, **options)
        data = TableData(SparseParity(6, 2), train_size=32, batch_size=8, members=MEMBERS)
        module = MLP(n_inputs=6, hidden=[8], members=MEMBERS, optimizer=sgd)
        trainer.fit(module, datamodule=data)
        return trainer

    return fit


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.3)


@pytest.fixture
def run(train, tmp_path):
    """A run of eight steps with a checkpoint at every second one."""
    tracker = NeuronNormTracker(layer="network.hidden.0", schedule=EveryNSteps(3))
    train(LearningCurves(), Onset(), tracker, Recorder(), every_second_step(tmp_path))
    return open_run(tmp_path)


# Finding


def make_run(directory, time, name="records.nc"):
    directory.mkdir(parents=True)
    (directory / name).touch()
    os.utime(directory / name, (time, time))
    return directory


def test_a_run_is_found_by_its_directory_its_experiment_or_all_runs(tmp_path):
    make_run(tmp_path / "a" / "version_0", 100)
    newest = make_run(tmp_path / "b" / "version_0", 300)
    other = make_run(tmp_path / "b" / "version_10", 200, "config.yaml")
    (tmp_path / "b" / "version_11").mkdir()
    assert find_run(other) == other
    assert find_run(tmp_path / "b") == newest
    assert find_run(tmp_path) == newest
    assert find_run(tmp_path / "a") == tmp_path / "a" / "version_0"


def test_a_run_that_is_still_written_to_is_the_newest(tmp_path):
    old = make_run(tmp_path / "a" / "version_0", 100, "config.yaml")
    make_run(tmp_path / "a" / "version_1", 200, "config.yaml")
    (old / "records.nc").touch()
    assert find_run(tmp_path / "a") == old


@pytest.mark.parametrize("name", ["nowhere", "file", "empty"])
def test_where_there_is_no_run_the_place_is_named(tmp_path, name):
    (tmp_path / "file").touch()
    (tmp_path / "empty" / "version_0").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=rf"no run in .*{name}.*records\.nc"):
        find_run(tmp_path / name)


def test_a_run_is_opened_by_text_or_path_and_shows_where_it_lies(tmp_path, monkeypatch):
    directory = make_run(tmp_path / "runs" / "a" / "version_0", 100)
    monkeypatch.chdir(tmp_path)
    assert grok_lightning.open is open_run
    assert open_run().directory.resolve() == directory
    assert open_run("runs/a").directory.resolve() == directory
    assert repr(open_run(directory)) == f"Run({str(directory)!r})"


# Claiming


def test_directories_are_numbered_on_from_the_highest(tmp_path):
    experiment = tmp_path / "runs" / "x"
    assert claim_directory(experiment) == experiment / "version_0"
    (experiment / "version_9").mkdir()
    (experiment / "version_x").mkdir()
    (experiment / "version_12.bak").mkdir()
    assert claim_directory(experiment) == experiment / "version_10"
    assert claim_directory(experiment).is_dir()


def test_threads_never_share_a_directory(tmp_path):
    start = threading.Barrier(8)

    def claim(_):
        start.wait(60)
        return [claim_directory(tmp_path / "x") for _ in range(10)]

    with ThreadPoolExecutor(8) as pool:
        claimed = [directory for some in pool.map(claim, range(8)) for directory in some]
    assert len(set(claimed)) == 80
    assert len(list((tmp_path / "x").iterdir())) == 80


def claim_many(experiment, start, answers):
    start.wait(60)
    answers.put([str(claim_directory(experiment)) for _ in range(20)])


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
def test_processes_never_share_a_directory(tmp_path):
    context = multiprocessing.get_context("fork")
    start, answers = context.Barrier(3), context.Queue()
    processes = [context.Process(target=claim_many, args=(tmp_path / "x", start, answers)) for _ in range(3)]
    for process in processes:
        process.start()
    claimed = [directory for _ in processes for directory in answers.get(timeout=60)]
    for process in processes:
        process.join(60)
    assert len(set(claimed)) == len(claimed) == 60


def test_where_nothing_can_be_written_nothing_is_claimed(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        claim_directory(tmp_path / "file" / "x")


def test_a_released_directory_takes_its_empty_parents_up_to_the_root_with_it(tmp_path):
    root = tmp_path / "a" / "runs"
    made = missing_parents(root / "x")
    directory = claim_directory(root / "x")
    (directory / "events").touch()
    release_directory(directory, made)
    assert not (tmp_path / "a").exists()
    assert tmp_path.is_dir()


def test_a_released_directory_leaves_what_is_not_empty(tmp_path):
    made = missing_parents(tmp_path / "x")
    kept, released = claim_directory(tmp_path / "x"), claim_directory(tmp_path / "x")
    release_directory(released, made)
    assert kept.is_dir()
    assert not released.exists()


def test_what_was_there_before_stays_though_it_is_empty(tmp_path):
    root = tmp_path / "runs"
    root.mkdir()
    made = missing_parents(root / "x")
    release_directory(claim_directory(root / "x"), made)
    assert list(root.iterdir()) == []


# Checkpoints


# Opening


def test_a_table_has_the_values_of_the_record_with_members_and_epochs_beside_them(run):
    frame = run.to_dataframe("curves")
    curves = run.record["curves"]
    assert len(frame) == curves["accuracy"].size == 3 * 2 * 2
    for row in frame.itertuples():
        here = curves.sel(step=row.step, member=row.member, split=row.split)
        assert row.accuracy == float(here["accuracy"])
        assert row.loss == float(here["loss"])
        assert (row.seed, row.weight_decay) == (MEMBERS["seed"][row.member], MEMBERS["weight_decay"][row.member])
        assert row.epoch == row.step / 4
    assert set(frame["split"]) == {"train", "held_out"}


def test_a_table_survives_being_written_as_text(run, tmp_path):
    frame = run.to_dataframe("neuron_norms")
    frame.to_csv(tmp_path / "norms.csv", index=False)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "norms.csv"), frame, check_dtype=False, rtol=1e-6)


def test_a_table_of_a_group_without_steps_has_no_epochs(run):
    frame = run.to_dataframe("onset")
    assert "epoch" not in frame
    assert len(frame) == 3 * 2
    assert set(frame["event"]) == {"memorised", "generalised", "forgotten"}


def test_a_table_of_no_group_names_those_that_there_are(run):
    with pytest.raises(KeyError, match=r"'curve'.*curves.*onset"):
        run.to_dataframe("curve")


def test_a_record_is_read_once(run, monkeypatch):
    first = run.record
    monkeypatch.setattr(runs, "read_record", lambda path: pytest.fail("read again"))
    assert run.record is first


def test_a_run_without_a_record_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="no record at"):
        _ = Run(tmp_path).record


@pytest.mark.parametrize("member", [0, 1])
@pytest.mark.parametrize("step", [2, 8, None])
def test_the_network_of_a_step_has_the_weights_of_the_checkpoint(run, step, member):
    network = run.network(step=step, member=member, module_class=MLP)
    path = run.directory / "checkpoints" / f"{step or 8}.ckpt"
    saved = torch.load(path, weights_only=True)["state_dict"]
    weights = {name: value[0] for name, value in network.state_dict().items()}
    assert {f"network.{name}" for name in weights} == {name for name in saved if name.startswith("network.")}
    for name, value in weights.items():
        assert torch.equal(value, saved[f"network.{name}"][member]), name


def test_a_network_of_a_script_needs_the_class_of_its_module(run):
    """Only the command line writes the class into the checkpoint."""
    with pytest.raises(ValueError, match="module_class"):
        run.network()


@pytest.fixture
def cli_run(tmp_path, monkeypatch):
    """A run of the command line: eight steps, a checkpoint at every second one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["grok"])
    monkeypatch.setattr(grok_lightning.cli.report, "write_report", lambda record, directory: directory)
    arguments = "{every_n_train_steps: 2, save_top_k: -1, filename: '{step}', auto_insert_metric_name: false}"
    main(
        [
            "fit",
            "--model=MLP",
            "--model.hidden=[8]",
            "--model.loss=squared",
            "--data=TableData",
            "--data.task=SparseParity",
            "--data.task.n=6",
            "--data.train_size=32",
            "--data.batch_size=8",
            "--population={seed: [3, 4]}",
            "--trainer.max_epochs=2",
            "--trainer.enable_progress_bar=false",
            f"--trainer.callbacks=[{{class_path: ModelCheckpoint, init_args: {arguments}}}]",
        ]
    )
    return open_run()


@pytest.mark.parametrize("member", [0, 1])
def test_the_network_of_a_run_of_the_command_line_computes_what_was_measured(cli_run, member):
    """An independent path: the accuracy in the record, from the weights that are handed out."""
    data = TableData(SparseParity(6, 3), train_size=32, members={"seed": [3, 4]})
    for step in (4, 8):
        network = cli_run.network(step=step, member=member)
        for split in ("train", "held_out"):
            inputs, targets = (rows[member] for rows in data.rows(split))
            with torch.no_grad():
                right = network.logits(inputs).squeeze(-1) * targets > 0
            expected = cli_run.record["curves"]["accuracy"].sel(step=step, member=member, split=split)
            assert float(right.double().mean()) == pytest.approx(float(expected), abs=1e-9)


def test_the_newest_network_is_that_of_the_last_step(cli_run):
    newest, last, first = (cli_run.network(step=step).state_dict() for step in (None, 8, 2))
    assert all(torch.equal(newest[name], value) for name, value in last.items())
    assert not all(torch.equal(newest[name], value) for name, value in first.items())


def test_a_network_of_a_step_without_checkpoint_names_those_that_there_are(cli_run):
    with pytest.raises(FileNotFoundError, match=r"step 3; .*\[2, 4, 6, 8\]"):
        cli_run.network(step=3)


def test_a_network_of_a_run_without_checkpoints_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="none"):
        Run(tmp_path).network()


@pytest.mark.parametrize("member", [2, -3])
def test_a_network_of_nobody_is_an_error(cli_run, member):
    with pytest.raises(IndexError):
        cli_run.network(member=member)


# Recording


def test_somebody_elses_script_gets_a_record_of_one_member(make_trainer, foreign, tmp_path):
    curves = LearningCurves(held_out_accuracy="val_acc", held_out_loss="val_loss")
    trainer = make_trainer(max_epochs=2, callbacks=[curves, Recorder(experiment="theirs")])
    module = foreign.module()
    trainer.fit(module, foreign.train_loader(), foreign.val_loader())
    record = read_record(tmp_path / "records.nc")
    assert (record.attrs["experiment"], record.attrs["status"]) == ("theirs", "finished")
    assert (int(record.attrs["n_members"]), int(record.attrs["last_step"])) == (1, 6)
    group = record["curves"].sel(member=0, split="held_out")
    assert group["step"].values.tolist() == [step for step, _ in module.validated] == [3, 6]
    for step, values in module.validated:
        assert float(group["accuracy"].sel(step=step)) == pytest.approx(values["val_acc"])
        assert float(group["loss"].sel(step=step)) == pytest.approx(values["val_loss"])
    assert np.isnan(record["curves"]["loss"].sel(split="train")).all()
    assert "epoch" not in open_run(tmp_path).to_dataframe("curves")


def test_a_recorder_writes_where_it_is_told(make_trainer, foreign, tmp_path):
    trainer = make_trainer(max_epochs=1, callbacks=[LearningCurves(), Recorder(tmp_path / "there" / "deep")])
    trainer.fit(foreign.module(), foreign.train_loader(), foreign.val_loader())
    assert (tmp_path / "there" / "deep" / "records.nc").is_file()
    assert not (tmp_path / "records.nc").exists()


def test_the_record_is_written_with_every_checkpoint_and_at_the_end(train, tmp_path, monkeypatch):
    written = []

    def note(record, path):
        written.append((int(record.attrs["last_step"]), record.attrs["status"], path))

    monkeypatch.setattr(runs, "write_record", note)
    train(LearningCurves(), Recorder(), every_second_step(tmp_path))
    steps = [step for step, _, _ in written]
    assert sorted(set(steps)) == [2, 4, 6, 8]
    assert steps == sorted(steps)
    statuses = [status for _, status, _ in written]
    assert statuses == ["running"] * (len(written) - 2) + ["finished"] * 2, "when training ends, and the fit"
    assert {path for _, _, path in written} == {tmp_path / "records.nc"}


def test_the_record_beside_a_checkpoint_holds_what_was_measured_up_to_it(train, tmp_path):
    class Reads(Callback):
        found = ()

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 7:
                record = read_record(tmp_path / "records.nc")
                self.found = (int(record.attrs["last_step"]), record["neuron_norms"]["step"].values.tolist())

    reads = Reads()
    tracker = NeuronNormTracker(layer="network.hidden.0", schedule=EveryNSteps(3))
    train(tracker, Recorder(), every_second_step(tmp_path), reads)
    assert reads.found == (6, [0, 3, 6])


@pytest.mark.parametrize("step", [0, 5])
def test_an_error_leaves_a_record_if_training_had_begun(train, tmp_path, step):
    class Fails(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == step:
                raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        train(LearningCurves(), Recorder(), Fails())
    record = read_record(tmp_path / "records.nc")
    assert (record.attrs["status"], int(record.attrs["last_step"])) == ("interrupted", step)


def test_an_error_before_training_leaves_none(train, tmp_path):
    with pytest.raises(ValueError, match="no 'nowhere'"):
        train(Recorder(), NeuronNormTracker(layer="nowhere"))
    assert not list(tmp_path.iterdir())


def test_a_dry_run_leaves_nothing(train, tmp_path):
    train(LearningCurves(), Recorder(), LastCheckpoint(), fast_dev_run=2)
    assert not list(tmp_path.iterdir())


def test_a_config_beside_the_record_goes_into_it(train, tmp_path):
    (tmp_path / "config.yaml").write_text("a: ä\n")
    train(LearningCurves(), Recorder())
    assert read_record(tmp_path / "records.nc").attrs["config"] == "a: ä\n"


# The last checkpoint


class Saved(Callback):
    """Notes the steps at which checkpoints are written."""

    def __init__(self):
        self.steps = []

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        self.steps.append(trainer.global_step)


class Clock(Callback):
    """Ten seconds a step."""

    def __init__(self):
        self.now = 1000.0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.now = 1000.0 + 10 * (trainer.global_step + 1)


@pytest.mark.parametrize(
    ("seconds", "steps"),
    [
        (25.0, [3, 6, 8]),
        (10.0, [1, 2, 3, 4, 5, 6, 7, 8, 8]),
        (40.0, [4, 8, 8]),
        (1e9, [8]),
    ],
)
def test_the_last_checkpoint_is_written_every_so_often_and_at_the_end(train, tmp_path, monkeypatch, seconds, steps):
    clock, saved = Clock(), Saved()
    monkeypatch.setattr(runs, "time", SimpleNamespace(monotonic=lambda: clock.now))
    last = LastCheckpoint(every_seconds=seconds)
    trainer = train(clock, saved, last)
    assert saved.steps == steps
    assert last.path(trainer) == tmp_path / "checkpoints" / "last.ckpt"
    kept = {path.name for path in last.path(trainer).parent.iterdir()}
    assert kept == ({"last.ckpt", "previous.ckpt"} if len(steps) > 1 else {"last.ckpt"})
    assert int(torch.load(last.path(trainer), weights_only=True)["global_step"]) == 8


def test_the_last_checkpoint_goes_where_it_is_told(train, tmp_path):
    train(LastCheckpoint(tmp_path / "there"))
    assert (tmp_path / "there" / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.parametrize("seconds", [0, -1.0])
def test_a_time_that_is_none_is_refused(seconds):
    with pytest.raises(ValueError, match=f"every_seconds: expected more than 0, got {seconds}"):
        LastCheckpoint(every_seconds=seconds)


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(train, tmp_path, monkeypatch):
    train(LastCheckpoint())
    path = tmp_path / "checkpoints" / "last.ckpt"
    before = path.read_bytes()

    def half(self, filepath, weights_only=False):
        Path(filepath).write_bytes(before[:10])
        raise OSError("no space left")

    monkeypatch.setattr("lightning.pytorch.Trainer.save_checkpoint", half)
    with pytest.raises(OSError, match="no space left"):
        train(LastCheckpoint())
    assert path.read_bytes() == before


class Interrupts(Callback):
    """Presses Ctrl-C in a step, several times if need be."""

    def __init__(self, step, times=1):
        self.step = step
        self.times = times

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if trainer.global_step == self.step:
            for _ in range(self.times):
                signal.raise_signal(signal.SIGINT)


@pytest.fixture
def handler():
    """A handler of Ctrl-C of somebody's, which must be there again in the end."""

    def mine(number, frame):
        raise KeyboardInterrupt("not handled by us")

    before = signal.signal(signal.SIGINT, mine)
    yield mine
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_lets_the_step_finish_saves_and_stops(train, tmp_path, handler):
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(LearningCurves(), Recorder(), LastCheckpoint(), Interrupts(step=4))
    assert int(torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]) == 5
    record = read_record(tmp_path / "records.nc")
    assert (record.attrs["status"], int(record.attrs["last_step"])) == ("interrupted", 5)
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_second_ctrl_c_stops_at_once(train, tmp_path, handler):
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(LastCheckpoint(), Recorder(), Interrupts(step=4, times=2))
    assert not (tmp_path / "checkpoints" / "last.ckpt").exists()
    assert int(read_record(tmp_path / "records.nc").attrs["last_step"]) == 4


@pytest.mark.parametrize("fails", [False, True])
def test_the_handler_of_ctrl_c_is_put_back(train, handler, fails):
    class Looks(Callback):
        seen = None

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.seen = signal.getsignal(signal.SIGINT)
            if fails:
                raise ValueError("enough")

    looks = Looks()
    if fails:
        with pytest.raises(ValueError, match="enough"):
            train(LastCheckpoint(), looks)
    else:
        train(LastCheckpoint(), looks)
    assert looks.seen is not handler, "it was another one meanwhile"
    assert signal.getsignal(signal.SIGINT) is handler


def test_after_ctrl_c_the_same_callback_trains_again(train, tmp_path, handler):
    last = LastCheckpoint()
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(last, Interrupts(step=4))
    train(last)
    assert int(torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]) == 8


def test_outside_the_main_thread_ctrl_c_is_left_alone(train, tmp_path, handler):
    with ThreadPoolExecutor(1) as pool:
        trainer = pool.submit(train, LastCheckpoint()).result(120)
    assert trainer.global_step == 8
    assert signal.getsignal(signal.SIGINT) is handler


# Signals before the first step


SIGNALS = {signal.SIGINT: 1, signal.SIGTERM: 143}
"""What the program ends with."""

either = pytest.mark.parametrize("number", SIGNALS, ids=["Ctrl-C", "SIGTERM"])


class Does(Callback):
    """Does something whenever a hook is called; keeps the Trainer of the fit, and what its callbacks were before."""

    def __init__(self, hook, do=lambda: None):
        self.do = do
        for name in hook.split():
            setattr(self, name, self._do)

    def setup(self, trainer, pl_module, stage):
        self.trainer, self.before = trainer, list(trainer.callbacks)

    def _do(self, *_, **__):
        self.do()


class Late(Does, Checkpoint):
    """Is called after all other callbacks."""


class Signals(NeuronNormTracker):
    """Sends itself a signal while it measures the initial weights, several times if need be."""

    def __init__(self, number, times=1):
        super().__init__(layer="network.hidden.0", schedule=EveryNSteps(3))
        self.number = number
        self.times = times

    def measure(self, trainer, pl_module):
        if trainer.global_step == 0:
            for _ in range(self.times):
                signal.raise_signal(self.number)
        return super().measure(trainer, pl_module)


@pytest.fixture
def handlers():
    """Handlers of somebody's of both signals, which must be there again in the end; those that are there now."""

    def mine(number, frame):
        """Do nothing, so that a signal that comes to it is lost."""

    before = {number: signal.signal(number, mine) for number in SIGNALS}
    yield lambda: {number: signal.getsignal(number) is mine for number in SIGNALS}
    for number, handler in before.items():
        signal.signal(number, handler)


ALL_BACK = dict.fromkeys(SIGNALS, True)


def assert_interrupted_at(folder, step):
    assert int(torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]) == step
    record = read_record(folder / "records.nc")
    assert (record.attrs["status"], int(record.attrs["last_step"])) == ("interrupted", step)


@either
def test_a_signal_while_the_initial_weights_are_measured_is_noticed_after_the_first_step(
    train, tmp_path, handlers, number
):
    with pytest.raises(SystemExit) as ended:
        train(Signals(number), Recorder(), LastCheckpoint())
    assert ended.value.code == SIGNALS[number]
    assert_interrupted_at(tmp_path, 1)
    assert read_record(tmp_path / "records.nc")["neuron_norms"]["step"].values.tolist() == [0]
    assert handlers() == ALL_BACK


def test_a_second_ctrl_c_while_the_initial_weights_are_measured_stops_at_once(train, tmp_path, handlers):
    with pytest.raises(SystemExit) as ended:
        train(Signals(signal.SIGINT, times=2), LastCheckpoint())
    assert ended.value.code == 1
    assert not (tmp_path / "checkpoints").exists()
    assert handlers() == ALL_BACK


@either
@pytest.mark.parametrize("hook", ["on_sanity_check_start", "on_validation_start", "on_sanity_check_end"])
def test_a_signal_in_the_sanity_check_is_noticed_after_the_first_step(train, tmp_path, handlers, number, hook):
    sends = Does(hook, lambda: signal.raise_signal(number))
    with pytest.raises(SystemExit) as ended:
        train(sends, Recorder(), LastCheckpoint(), num_sanity_val_steps=2)
    assert ended.value.code == SIGNALS[number]
    assert_interrupted_at(tmp_path, 1)
    assert handlers() == ALL_BACK


@pytest.mark.parametrize("mine", [True, False])
def test_what_has_come_to_lightning_before_counts_unless_it_is_left_to_lightning(
    train, tmp_path, handlers, monkeypatch, mine
):
    """Between its taking SIGTERM and the first hook are the data."""
    make = TableData.train_dataloader

    def make_and_send(data):
        signal.raise_signal(signal.SIGTERM)
        return make(data)

    monkeypatch.setattr(TableData, "train_dataloader", make_and_send)
    with pytest.raises(SystemExit) as ended:
        train(Recorder(), LastCheckpoint(sigterm=mine))
    assert ended.value.code == (143 if mine else None)
    assert (tmp_path / "checkpoints" / "last.ckpt").exists() == mine
    assert handlers() == ALL_BACK


def test_sigterm_that_is_left_to_lightning_is_its_own_and_ctrl_c_is_not(train, tmp_path, handlers):
    with pytest.raises(SystemExit) as ended:
        train(Signals(signal.SIGTERM), Recorder(), LastCheckpoint(sigterm=False))
    assert ended.value.code is None
    assert not (tmp_path / "checkpoints" / "last.ckpt").exists()
    with pytest.raises(SystemExit) as ended:
        train(Signals(signal.SIGINT), Recorder(), LastCheckpoint(sigterm=False))
    assert ended.value.code == 1
    assert_interrupted_at(tmp_path, 1)
    assert handlers() == ALL_BACK


def fails():
    raise ValueError("enough")


def interrupts():
    raise KeyboardInterrupt


ENDINGS = {
    "it is finished": (Does(""), None),
    "nothing was to be trained": (Does(""), None),
    "it is finished in a thread": (Does(""), None),
    "an error in a thread": (Does("on_train_batch_end", fails), ValueError),
    "an error while the callbacks are set up": (Does("on_fit_start", fails), ValueError),
    "an error in the sanity check": (Does("on_sanity_check_start", fails), ValueError),
    "an error before the first step": (Does("on_train_start", fails), ValueError),
    "an error in a step": (Does("on_train_batch_end", fails), ValueError),
    "an error when training ends": (Does("on_train_end", fails), ValueError),
    "an error when the fit ends": (Does("on_fit_end", fails), ValueError),
    "an error in the end": (Does("teardown", fails), ValueError),
    "an interruption before the first step": (Does("on_train_start", interrupts), SystemExit),
    "an interruption in a step": (Does("on_train_batch_end", interrupts), SystemExit),
    "Ctrl-C": (Does("on_train_batch_start", lambda: signal.raise_signal(signal.SIGINT)), SystemExit),
    "SIGTERM": (Does("on_train_batch_start", lambda: signal.raise_signal(signal.SIGTERM)), SystemExit),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_however_it_ends_handlers_and_callbacks_are_what_they_were(train, handlers, ending):
    does, raises = ENDINGS[ending]
    last, options = LastCheckpoint(), {"num_sanity_val_steps": 1}
    if ending == "nothing was to be trained":
        options["max_steps"] = 0
    with ThreadPoolExecutor(1) as pool, pytest.raises(raises) if raises else nullcontext():
        if ending.endswith("thread"):
            pool.submit(train, does, last, **options).result(120)
        else:
            train(does, last, **options)
    assert handlers() == ALL_BACK
    assert does.trainer.callbacks == does.before == [does, last]


@pytest.mark.parametrize("hook", ["on_train_start", "on_train_batch_start", "on_train_end"])
def test_both_signals_are_taken_while_it_trains_but_not_after(train, handlers, hook):
    seen = []
    train(LastCheckpoint(), Does(hook, look := lambda: seen.append(handlers())), Late(hook, look))
    assert seen
    assert all(each == dict.fromkeys(SIGNALS, False) for each in seen)
    seen.clear()
    train(LastCheckpoint(), Does("on_fit_end teardown", look))
    assert seen == [ALL_BACK, ALL_BACK]


def test_validating_alone_takes_no_signals_and_has_no_callback_more(make_trainer, handlers):
    seen = []
    looks = Does("on_validation_start", lambda: seen.append((handlers()[signal.SIGINT], looks.trainer.callbacks)))
    callbacks = [looks, LastCheckpoint()]
    data = TableData(SparseParity(6, 2), train_size=32, batch_size=8, members=MEMBERS)
    trainer = make_trainer(callbacks=callbacks, enable_checkpointing=True)
    trainer.validate(MLP(n_inputs=6, hidden=[8], members=MEMBERS, optimizer=sgd), datamodule=data, verbose=False)
    assert seen == [(True, callbacks)]
    assert handlers() == ALL_BACK


def test_a_handler_that_somebody_sets_in_the_end_stays(train, handlers):
    def theirs(number, frame):
        """Do nothing."""

    train(Does("on_fit_end", lambda: signal.signal(signal.SIGINT, theirs)), LastCheckpoint())
    assert signal.getsignal(signal.SIGINT) is theirs


def test_a_handler_that_somebody_takes_from_it_and_gives_back_is_put_back_still(train, handlers):
    class Takes(Callback):
        def on_train_start(self, trainer, pl_module):
            self.before = signal.signal(signal.SIGINT, signal.SIG_IGN)

        def teardown(self, trainer, pl_module, stage):
            signal.signal(signal.SIGINT, self.before)

    train(Takes(), LastCheckpoint())
    assert handlers() == ALL_BACK


def test_after_ctrl_c_another_one_is_ignored_until_all_is_tidied_up(train, tmp_path, handlers):
    """As Lightning has it; the press after that is no longer ours."""
    seen = []

    def press():
        seen.append(signal.getsignal(signal.SIGINT))
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(SystemExit):
        train(Interrupts(step=4), Recorder(), LastCheckpoint(), Late("on_exception", press))
    assert seen == [signal.SIG_IGN]
    assert_interrupted_at(tmp_path, 5)
    assert handlers() == ALL_BACK


def test_after_sigterm_another_one_does_not_end_it_before_all_is_tidied_up(train, tmp_path, handlers):
    sends = Does("on_train_batch_start", lambda: signal.raise_signal(signal.SIGTERM))
    seen = []

    def send():
        signal.raise_signal(signal.SIGTERM)
        seen.append(handlers())

    with pytest.raises(SystemExit) as ended:
        train(sends, Recorder(), LastCheckpoint(), Late("on_exception", send))
    assert ended.value.code == 143
    assert seen == [dict.fromkeys(SIGNALS, False)]
    assert handlers() == ALL_BACK


@pytest.fixture
def fit_again(make_trainer):
    """A function that makes a function that trains on to a step, always with one Trainer; it returns its callbacks."""

    def make(*callbacks):
        trainer = make_trainer(max_steps=3, callbacks=list(callbacks), enable_checkpointing=True)

        def fit(steps):
            trainer.fit_loop.epoch_loop.max_steps = steps
            data = TableData(SparseParity(6, 2), train_size=32, batch_size=8, members=MEMBERS)
            trainer.fit(MLP(n_inputs=6, hidden=[8], members=MEMBERS, optimizer=sgd), datamodule=data)
            return trainer.callbacks

        return fit

    return make


def test_one_callback_more_is_there_in_the_fit_each_time_and_in_no_checkpoint(fit_again, tmp_path):
    counts = []
    looks = Does("on_train_batch_start", lambda: counts.append(len(looks.trainer.callbacks)))
    callbacks = [looks, LearningCurves(), LastCheckpoint()]
    fit = fit_again(*callbacks)
    assert fit(3) == fit(6) == callbacks
    assert counts == [4] * 6
    states = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]
    assert set(states) == {"LearningCurves[curves]"}


def test_what_a_failure_in_the_end_has_left_is_gone_in_the_next_fit(fit_again, handlers):
    """Lightning comes neither to the callbacks after the one that fails nor to the handlers."""
    counts = []

    def fails_first():
        counts.append(len(looks.trainer.callbacks))
        if len(counts) < 3:
            fails()

    looks, last = Does("on_train_batch_start on_exception", fails_first), LastCheckpoint()
    fit = fit_again(looks, last)
    with pytest.raises(ValueError, match="enough"):
        fit(3)
    assert handlers() == dict.fromkeys(SIGNALS, False)
    assert fit(3) == [looks, last]
    assert set(counts) == {3}
    assert handlers() == ALL_BACK


@either
def test_a_handler_that_was_not_set_from_python_is_left_alone(train, tmp_path, monkeypatch, number):
    """Python says ``None`` of such, and cannot put it back."""
    get, put, other = signal.getsignal, signal.signal, {number}

    def getsignal(which):
        return None if which in other else get(which)

    def set_signal(which, handler):
        before = getsignal(which)
        before_really = put(which, handler)
        other.discard(which)
        return None if before is None else before_really

    seen = []
    looks = Does("on_train_batch_start", lambda: seen.append(getattr(getsignal(number), "__self__", None)))
    before = get(number)
    monkeypatch.setattr(signal, "getsignal", getsignal)
    monkeypatch.setattr(signal, "signal", set_signal)
    try:
        last = LastCheckpoint()
        train(looks, last)
    finally:
        put(number, before)
    assert seen
    assert last not in seen
    assert (tmp_path / "checkpoints" / "last.ckpt").is_file()


def test_a_monitor_after_the_recorder_is_in_the_record_too(train, tmp_path):
    layers = ("network.hidden.0", "network.output")
    train(Recorder(), WeightTrajectory(EveryNSteps(4)), SubnetworkComparison(*layers))
    assert {"weights", "subnetworks"} <= set(read_record(tmp_path / "records.nc").children)
