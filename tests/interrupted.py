"""Runs in processes of their own, which end in every way in which a process can."""

import os
import re
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import h5netcdf  # noqa: F401 - what is imported here is not imported in every fork again
import pytest
import torch.utils.tensorboard  # noqa: F401 - likewise
from lightning.pytorch import Callback

from grok_lightning import Recorder, report
from grok_lightning.cli import main

TIMEOUT = 120.0
"""Seconds after which a run is taken to hang."""

SIGNALS = {"SIGTERM": signal.SIGTERM, "SIGKILL": signal.SIGKILL}


class Interrupts(Callback):
    """Ends training after a step, before that step's checkpoint is written.

    Args:
        how: An exception in every process; or a signal to all processes of the run at once.
        step: Number of optimizer steps.

    """

    def __init__(self, how: Literal["exception", "SIGTERM", "SIGKILL"], step: int) -> None:
        self.how = how
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_step != self.step:
            return
        if self.how == "exception":
            raise RuntimeError("interrupted")
        if trainer.is_global_zero:
            os.killpg(os.getpgrp(), SIGNALS[self.how])


def record_at_the_end() -> None:
    """Do without the record that every checkpoint brings, which takes most of the time: only the last is looked at."""
    Recorder.on_save_checkpoint = lambda *_: None


def kill_while_writing(name: str, number: int, moment: Literal["half", "whole", "replaced"]) -> None:
    """Have this process killed while it writes a file.

    Args:
        name: Pattern of the file's name, a regular expression.
        number: Which of the writings, from 1 on.
        moment: With half of the bytes in the temporary file; with all of them, before it replaces the old file; when it
            has.

    """
    replace, seen = os.replace, 0

    def replace_or_die(source, target, **options) -> None:
        nonlocal seen
        seen += bool(re.fullmatch(name, Path(target).name))
        dies = seen == number and re.fullmatch(name, Path(target).name)
        if dies and moment == "half":
            os.truncate(source, os.path.getsize(source) // 2)
        if not dies or moment == "replaced":
            replace(source, target, **options)
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = replace_or_die


@dataclass(frozen=True)
class Ended:
    """How a run ended.

    Attributes:
        status: Exit code of the process that was started; of one that a signal has ended, the signal's number below 0.
        seconds: How long it took, until the last of its processes was gone.
        output: What it said.

    """

    status: int
    seconds: float
    output: str


def fit(
    folder: Path, *arguments: str, before: Callable[[], None] | None = None, kill_after: float | None = None
) -> Ended:
    """Run ``python -m grok_lightning fit ARGUMENTS`` in ``folder``, in a fork of this process; draw no figures.

    Args:
        folder: Where to; made if it is not there.
        arguments: Of the command line.
        before: What to do in the new process first.
        kill_after: Seconds after which all processes of the run are killed, if it has not ended by then.

    """
    folder.mkdir(parents=True, exist_ok=True)

    def work() -> None:
        os.chdir(folder)
        sys.argv = ["grok"]
        report.write_report = lambda record, directory: directory
        if before is not None:
            before()
        main(["fit", *arguments])

    return run(work, folder / "output.txt", kill_after)


def run(work: Callable[[], None], output: Path, kill_after: float | None = None) -> Ended:
    """Work in a fork of this process that leads a group of its own, and wait for all of the group to end."""
    # All processes that come of it hold the writing end: reading finds its end when the last of them is gone, which
    # asking for the group would not tell where nobody buries orphans.
    alive, held = os.pipe()
    began = time.monotonic()
    leader = os.fork()
    if leader == 0:
        _work(work, output)
    os.setpgid(leader, leader)  # here too, as the new process may not have come to it
    os.close(held)
    try:
        gone = _wait(alive, TIMEOUT if kill_after is None else kill_after)
        hangs = not gone and kill_after is None
        if not gone:
            os.killpg(leader, signal.SIGKILL)
            _wait(alive, TIMEOUT)
        _, status = os.waitpid(leader, 0)
    finally:
        os.close(alive)
    ended = Ended(os.waitstatus_to_exitcode(status), time.monotonic() - began, output.read_text(errors="replace"))
    if hangs:
        pytest.fail(f"hangs for {TIMEOUT:.0f} seconds:\n{ended.output}")
    return ended


def _wait(descriptor: int, seconds: float) -> bool:
    readable, _, _ = select.select([descriptor], [], [], seconds)
    return bool(readable)


def _work(work: Callable[[], None], output: Path) -> None:
    """Work and end this process, whatever happens."""
    status = 1
    try:
        os.setpgid(0, 0)
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
        for stream in (1, 2):
            os.dup2(descriptor, stream)
        sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1, closefd=False) for stream in (1, 2))
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        work()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)
