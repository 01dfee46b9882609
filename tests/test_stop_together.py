"""Processes that train together stop together, whichever of them is asked to."""

import signal
import time
from pathlib import Path

import pytest
from lightning.pytorch import Callback
from runs_compared import checkpoint_of
from small_runs import assert_close, plain, train
from together import Together, run_together
from torch import Tensor

from grok_callbacks import EveryNSteps, ParameterNorm
from grok_lightning import runs
from grok_lightning.records import read_record

pytestmark = [
    # Forking after threads were started is what these tests do on purpose; the children run no threads of their own.
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning"),
]

ASKED = 40
STEPS = 2_000_000
"""So many that none is left out by chance: a run that is not asked to stop, or does not, is one that hangs."""


class Asks(Callback):
    """Sends a signal to some of the processes, each to itself, in a step."""

    def __init__(self, number: signal.Signals, ranks: tuple[int, ...]) -> None:
        self.number = number
        self.ranks = ranks

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_step == ASKED and trainer.global_rank in self.ranks:
            signal.raise_signal(self.number)


class AsksFirst(ParameterNorm):
    """Sends it before the first step instead, while it measures the initial weights."""

    def __init__(self, number: signal.Signals, ranks: tuple[int, ...]) -> None:
        super().__init__(EveryNSteps(1_000_000))
        self.number = number
        self.ranks = ranks

    def measure(self, trainer, pl_module) -> dict[str, Tensor]:
        if trainer.global_step == 0 and trainer.global_rank in self.ranks:
            signal.raise_signal(self.number)
        return super().measure(trainer, pl_module)


class Notes(Callback):
    """Leaves the step at which each process ended."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_exception(self, trainer, pl_module, exception) -> None:
        (self.folder / f"ended_{trainer.global_rank}").write_text(str(trainer.global_step))


def interrupt(folder: Path, asks: Callback, strategy: str = "population") -> Together:
    """Train two processes, as torchrun starts them, until they end."""
    also = [asks, Notes(folder)]
    quick = {"steps": STEPS, "val_check_interval": 1_000_000, "limit_val_batches": 0}
    return run_together(folder, 2, lambda rank: train(folder, plain(), 2, strategy, also=also, **quick).global_step)


def assert_stopped(done: Together, status: int) -> None:
    # When one has ended with an error, torchrun sends SIGTERM to the others, which are about to.
    assert status in done.statuses, done.ended.output
    assert set(done.statuses) <= {status, -signal.SIGTERM}, done.ended.output


def stopped_at(folder: Path) -> int:
    """Return the step at which all processes stopped, which is that of the checkpoint."""
    steps = {int(path.read_text()) for path in folder.glob("ended_*")}
    assert len(steps) == 1
    assert len(list(folder.glob("ended_*"))) == 2
    assert steps == {checkpoint_of(folder)["global_step"]}
    return steps.pop()


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "AGREE_EVERY", 0.05)


either = pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 1)], ids=["SIGTERM", "Ctrl-C"]
)
whoever = pytest.mark.parametrize("ranks", [(0,), (1,), (0, 1)], ids=["the first", "the second", "all"])


@either
@whoever
def test_all_stop_after_one_step_and_leave_a_whole_checkpoint(tmp_path, number, status, ranks):
    done = interrupt(tmp_path, Asks(number, ranks))
    assert_stopped(done, status)
    step = stopped_at(tmp_path)
    assert step > ASKED
    assert read_record(tmp_path / "records.nc").attrs["status"] == "interrupted"
    assert {len(value) for value in checkpoint_of(tmp_path)["state_dict"].values()} == {3}


@either
@whoever
def test_whoever_is_asked_while_measuring_before_the_first_step_all_stop_after_it(tmp_path, number, status, ranks):
    done = interrupt(tmp_path, AsksFirst(number, ranks))
    assert_stopped(done, status)
    assert stopped_at(tmp_path) == 1
    record = read_record(tmp_path / "records.nc")
    assert record.attrs["status"] == "interrupted"
    assert record["parameter_norm"]["step"].values.tolist() == [0]


@pytest.mark.parametrize("strategy", ["population", "ddp"])
def test_what_was_stopped_goes_on_as_if_it_had_not_been(tmp_path, strategy):
    stopped = tmp_path / "stopped"
    stopped.mkdir()
    done = interrupt(stopped, Asks(signal.SIGTERM, (1,)), strategy)
    assert_stopped(done, 143)
    steps = stopped_at(stopped) + 10
    last = stopped / "checkpoints" / "last.ckpt"
    train(stopped, plain(), steps=steps, resume=last, limit_val_batches=0)
    train(tmp_path / "whole", plain(), steps=steps, limit_val_batches=0)
    found, expected = checkpoint_of(stopped), checkpoint_of(tmp_path / "whole")
    assert_close(found["state_dict"], expected["state_dict"], "weights", atol=1e-8)


def test_none_is_gone_before_the_first_has_written_the_record(tmp_path, monkeypatch):
    """Torchrun would take the others down with it: the second signal to the first process ends it at once."""
    write = runs.write_record

    def slow(record, path):
        time.sleep(1.0)
        write(record, path)

    monkeypatch.setattr(runs, "write_record", slow)
    done = interrupt(tmp_path, Asks(signal.SIGTERM, (0,)))
    assert_stopped(done, 143)
    record = read_record(tmp_path / "records.nc")
    assert record.attrs["status"] == "interrupted"
    assert int(record.attrs["last_step"]) == stopped_at(tmp_path)
