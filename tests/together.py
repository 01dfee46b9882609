"""Processes that run one script together, as torchrun starts them: each of them goes on after ``fit``."""

import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from interrupted import Ended, run


@dataclass(frozen=True)
class Together:
    """How it ended.

    Attributes:
        ended: How the process ended that started the others.
        statuses: Exit code of each, in order; of one that a signal has ended, the signal's number below 0.
        answers: What the script returned in each; ``None`` where it did not come to it.

    """

    ended: Ended
    statuses: list[int]
    answers: list[object]


def run_together(folder: Path, processes: int, script: Callable[[int], object]) -> Together:
    """Run ``script(rank)`` in forks of this process that can train together; hanging for two minutes is a failure.

    Like torchrun, end the others by SIGTERM when one fails. What the script returns must be what JSON can say.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        "TORCHELASTIC_RUN_ID": "tests",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "GROUP_RANK": "0",
    }

    def work() -> None:
        os.environ.update(environment)
        ranks = {_start(rank, script, folder): rank for rank in range(processes)}
        statuses = [0] * processes
        waiting = dict(ranks)
        while waiting:
            pid, status = os.wait()
            code = os.waitstatus_to_exitcode(status)
            statuses[waiting.pop(pid)] = code
            if code:
                for other in waiting:
                    os.kill(other, signal.SIGTERM)
        (folder / "statuses.json").write_text(json.dumps(statuses))

    ended = run(work, folder / "output.txt")
    answers = [folder / f"answer_{rank}.json" for rank in range(processes)]
    return Together(
        ended,
        json.loads((folder / "statuses.json").read_text()),
        [json.loads(file.read_text()) if file.is_file() else None for file in answers],
    )


def _start(rank: int, script: Callable[[int], object], folder: Path) -> int:
    """Return the number of a new process, which runs the script."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.environ.update({"RANK": str(rank), "LOCAL_RANK": str(rank)})
        (folder / f"answer_{rank}.json").write_text(json.dumps(script(rank)))
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
