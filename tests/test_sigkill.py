"""A run that is killed at any instant leaves what it had, and goes on as if it had not been killed.

By default 20 instants are tried, with GROK_TESTS=full a hundred, and the middle of every kind of file.
"""

import os
import random
import signal
from functools import partial
from pathlib import Path

import pytest
import xarray as xr
from interrupted import Ended, fit, kill_while_writing, record_at_the_end
from runs_compared import assert_same_run

from grok_callbacks import Snapshots
from grok_lightning import runs
from grok_lightning.checkpoints import checkpoint_fault, whole_checkpoints
from grok_lightning.records import read_record

CONFIG = """
model:
  class_path: MLP
  init_args:
    hidden: [8]
    optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.3, momentum: 0.9}}
    scheduler: {class_path: torch.optim.lr_scheduler.CosineAnnealingLR, init_args: {T_max: 30}}
data:
  class_path: TableData
  init_args:
    task: {class_path: SparseParity, init_args: {n: 6, k: 2}}
    batch_size: 8
    label_noise: 0.1
population:
  - {seed: 0, train_size: 32, weight_decay: 0.01}
  - {seed: 1, train_size: 20, weight_decay: 0.1}
trainer:
  accelerator: cpu
  max_steps: 16
  enable_progress_bar: false
  callbacks:
    - class_path: NeuronNormTracker
      init_args: {layer: network.hidden.0, schedule: {class_path: EveryNSteps, init_args: {n: 3}}}
    - class_path: WeightTrajectory
      init_args: {schedule: {class_path: EveryNSteps, init_args: {n: 2}}}
    - class_path: LastCheckpoint
      init_args: {every_seconds: 0.001}
"""

INSTANTS = 100 if os.environ.get("GROK_TESTS") == "full" else 20
FILES = {"checkpoint": r"last\.ckpt", "record": r"records\.nc", "snapshot": r"step_\d+\.pt"}


def train(folder: Path, *arguments: str, **options) -> Ended:
    folder.mkdir(exist_ok=True)
    (folder / "tiny.yaml").write_text(CONFIG)
    return fit(folder, "--config=tiny.yaml", *arguments, **options)


def runs_in(folder: Path) -> list[Path]:
    """Return the directories of the runs in a folder, the newest last."""
    return sorted((folder / "runs" / "tiny").glob("version_*"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """Return the directory of the run that nobody kills, and how many seconds it took."""
    folder = tmp_path_factory.mktemp("whole")
    ended = train(folder)
    assert ended.status == 0, ended.output
    (directory,) = runs_in(folder)
    return directory, ended.seconds


def assert_nothing_is_torn(directory: Path) -> None:
    """Read all files that have the name of something whole."""
    if (directory / "records.nc").exists():
        read_record(directory / "records.nc")
    for path in directory.glob("checkpoints/[!.]*"):
        assert checkpoint_fault(path) is None, path
    snapshots = Snapshots(directory / "weights")
    assert all(len(snapshots[step]) for step in snapshots)


def go_on(folder: Path) -> Path:
    """Resume the run in a folder, or train anew where there is nothing to resume from; return where."""
    directory = next(iter(runs_in(folder)), None)
    if directory is None or not any(whole_checkpoints(directory / "checkpoints")):
        ended = train(folder, before=record_at_the_end)
    else:
        ended = train(folder, f"--ckpt_path={directory}", before=record_at_the_end)
        assert runs_in(folder) == [directory]
    assert ended.status == 0, ended.output
    return runs_in(folder)[-1]


def assert_goes_on(folder: Path, whole: Path) -> None:
    for directory in runs_in(folder):
        assert_nothing_is_torn(directory)
    directory = go_on(folder)
    assert_same_run(directory, whole)
    assert read_record(directory / "records.nc").attrs["status"] == "finished"
    names = [{path.name for path in run.rglob("*") if "tfevents" not in path.name} for run in (directory, whole)]
    assert names[0] == names[1], "temporary files are left"


@pytest.mark.parametrize("instant", range(INSTANTS))
def test_killed_at_any_instant_it_goes_on(tmp_path: Path, whole: tuple[Path, float], instant: int) -> None:
    directory, seconds = whole
    # Of the time that the whole run took; where this one is faster, it may have ended.
    share = random.Random(instant).uniform(0, 1.02)
    ended = train(tmp_path / "run", kill_after=share * seconds)
    assert ended.status in (0, -9), ended.output
    assert_goes_on(tmp_path / "run", directory)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(("moment", "number"), [("half", 4), ("whole", 4)])
def test_killed_while_a_file_is_written_it_goes_on(
    tmp_path: Path, whole: tuple[Path, float], file: str, moment: str, number: int
) -> None:
    ended = train(tmp_path / "run", before=partial(kill_while_writing, FILES[file], number, moment))
    assert ended.status == -9, ended.output
    assert_goes_on(tmp_path / "run", whole[0])


@pytest.mark.parametrize("moment", ["whole", "replaced"])
@pytest.mark.parametrize("number", [15, 16, 17])
def test_killed_about_its_last_step_it_is_ended(
    tmp_path: Path, whole: tuple[Path, float], number: int, moment: str
) -> None:
    """Between the last step and the record that says that the run has finished there is a validation still to come."""
    ended = train(tmp_path / "run", before=partial(kill_while_writing, FILES["checkpoint"], number, moment))
    assert ended.status in (0, -9), ended.output
    assert_goes_on(tmp_path / "run", whole[0])


def write_records_in_place() -> None:
    """Write records as one would without further thought, and die at the third, with half of the bytes on the disk."""
    write, seen = runs.write_record, 0

    def torn(record: xr.DataTree, path: Path) -> None:
        nonlocal seen
        seen += 1
        write(record, path)
        if seen == 3:
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    runs.write_record = torn


def test_a_torn_file_is_noticed(tmp_path: Path, whole: tuple[Path, float]) -> None:
    """The comparison can fail."""
    ended = train(tmp_path / "run", before=write_records_in_place)
    assert ended.status == -9, ended.output
    with pytest.raises(OSError, match="cannot be read as a record"):
        assert_goes_on(tmp_path / "run", whole[0])


def test_a_leftover_is_noticed(tmp_path: Path, whole: tuple[Path, float], monkeypatch: pytest.MonkeyPatch) -> None:
    ended = train(tmp_path / "run", before=partial(kill_while_writing, FILES["record"], 4, "half"))
    assert ended.status == -9, ended.output
    monkeypatch.setattr(runs, "remove_leftovers", lambda directory: None)
    with pytest.raises(AssertionError, match="temporary files are left"):
        assert_goes_on(tmp_path / "run", whole[0])
