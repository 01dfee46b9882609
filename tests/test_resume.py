"""A run that is stopped and resumed is, bit for bit, the run that was not."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from lightning.pytorch import LightningModule, Trainer
from runs_compared import assert_same_run, checkpoint_of

from grok_lightning import Recorder, cli, report
from grok_lightning.cli import main
from grok_lightning.data import online
from grok_lightning.records import read_record

# The copies that are resumed here lie in another place than the run that they are copies of.
pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")

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
  - {seed: 1, train_size: 20, weight_decay: 0.0}
trainer:
  enable_progress_bar: false
  callbacks:
    - class_path: NeuronNormTracker
      init_args: {layer: network.hidden.0, schedule: {class_path: EveryNSteps, init_args: {n: 3}}}
    - class_path: Onset
      init_args: {generalised_from: 0.6, memorised_above: 0.7, dwell: 4}
    - class_path: ModelCheckpoint
      init_args: {filename: "{step}", auto_insert_metric_name: false, save_top_k: -1, SAVE}
"""

TRANSFORMER = """
model:
  class_path: Transformer
  init_args: {d_model: 8, n_heads: 2, d_mlp: 12, layer_norm: true, n_layers: LAYERS}
data:
  class_path: TableData
  init_args:
    task: {class_path: ModularArithmetic, init_args: {p: 7}}
    n_held_out: null
    split: symmetric
    batch_size: ROWS
population:
  - {seed: 0, train_size: 40, weight_decay: 1.0}
  - {seed: 1, train_size: 30, weight_decay: 0.3}
trainer:
  enable_progress_bar: false
  callbacks:
    - class_path: NeuronNormTracker
      init_args: {layer: network.layers.0.mlp_in, schedule: {class_path: EveryNSteps, init_args: {n: 3}}}
    - class_path: Onset
      init_args: {generalised_from: 0.2, memorised_above: 0.3, dwell: 4}
    - class_path: ModelCheckpoint
      init_args: {filename: "{step}", auto_insert_metric_name: false, save_top_k: -1, SAVE}
"""

ONLINE = [
    "--data=OnlineData",
    "--data.task=SparseParity",
    *["--data.task.n=6", "--data.task.k=2", "--data.batch_size=8", "--data.n_held_out=20", "--data.validate_every=4"],
    "--population={seed: [0, 1]}",
]
LIMITS = {"epochs": ["--trainer.max_epochs=6"], "steps": ["--trainer.max_steps=24"]}
VALIDATIONS = {
    "every epoch": [],
    "every second epoch": ["--trainer.check_val_every_n_epoch=2"],
    "every three steps": ["--trainer.val_check_interval=3", "--trainer.check_val_every_n_epoch=null"],
}
RUN = "runs/tiny/version_0"
EVERY_STEP = "every_n_train_steps: 1"

Fit = Callable[..., Path]


@pytest.fixture
def fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fit:
    """Return a function that fits in a directory of its own and returns the run's directory."""

    # What a run has left is compared; how it is drawn is tested elsewhere.
    monkeypatch.setattr(report, "write_report", lambda record, directory: directory)
    # Runs here save at every step; the record that counts is the one written at the end.
    monkeypatch.setattr(Recorder, "on_save_checkpoint", lambda *_: None)

    def run(
        name: str, *arguments: str, save: str = EVERY_STEP, after: Path | None = None, config: str = CONFIG
    ) -> Path:
        """Fit in the folder ``name``, after a copy of the run ``after`` if one is given."""
        folder = tmp_path / name
        if after is not None:
            shutil.copytree(after.parents[2], folder)
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        (folder / "tiny.yaml").write_text(config.replace("SAVE", save))
        monkeypatch.setattr(sys, "argv", ["grok"])
        main(["fit", "--config", "tiny.yaml", *arguments])
        (directory,) = (folder / "runs" / "tiny").iterdir()
        return directory

    return run


@pytest.mark.parametrize(
    ("limit", "validation"),
    [
        ("epochs", "every epoch"),
        ("epochs", "every second epoch"),
        ("epochs", "every three steps"),
        ("steps", "every epoch"),
        ("steps", "every three steps"),
    ],
)
def test_resuming_at_any_step_gives_the_uninterrupted_run(fit: Fit, limit: str, validation: str) -> None:
    arguments = [*LIMITS[limit], *VALIDATIONS[validation]]
    whole = fit("whole", *arguments)
    for step in (1, 4, 6, 8, 23):  # within epochs, at their ends, at and beside validations
        resumed = fit(f"from_{step}", *arguments, f"--ckpt_path={RUN}/checkpoints/{step}.ckpt", after=whole)
        assert_same_run(resumed, whole)


@pytest.mark.parametrize("n_layers", [1, 2])
@pytest.mark.parametrize("batch_size", ["null", "16"])
def test_a_transformer_resumes_at_any_step(fit: Fit, batch_size: str, n_layers: int) -> None:
    """With Adam's averages and in the middle of the warm-up; a full batch is an epoch of one step."""
    config = TRANSFORMER.replace("ROWS", batch_size).replace("LAYERS", str(n_layers))
    whole = fit("whole", *LIMITS["steps"], config=config)
    for step in (1, 7, 9, 16):
        checkpoint = f"--ckpt_path={RUN}/checkpoints/{step}.ckpt"
        assert_same_run(fit(f"from_{step}", *LIMITS["steps"], checkpoint, after=whole, config=config), whole)


@pytest.mark.parametrize("batch_size", ["null", "16"])
def test_a_transformer_that_reached_max_steps_goes_on(fit: Fit, batch_size: str) -> None:
    config = TRANSFORMER.replace("ROWS", batch_size).replace("LAYERS", "1")
    whole = fit("whole", *LIMITS["steps"], config=config)
    short = fit("short", "--trainer.max_steps=7", config=config)
    assert int(read_record(short / "records.nc").attrs["last_step"]) == 7
    resumed = fit("short", *LIMITS["steps"], f"--ckpt_path={short}/checkpoints/last.ckpt", config=config)
    assert_same_run(resumed, whole)


@pytest.mark.parametrize("validation", ["every epoch", "every three steps"])
def test_a_run_on_fresh_rows_resumes_at_any_step(fit: Fit, monkeypatch: pytest.MonkeyPatch, validation: str) -> None:
    monkeypatch.setattr(online, "ROWS_OF_BLOCK", 5 * 8)  # so that blocks, epochs and checkpoints begin apart
    arguments = [*ONLINE, *LIMITS["steps"], *VALIDATIONS[validation]]
    whole = fit("whole", *arguments)
    for step in (1, 5, 8, 23):  # within and at the end of epochs and blocks, at and beside validations
        resumed = fit(f"from_{step}", *arguments, f"--ckpt_path={RUN}/checkpoints/{step}.ckpt", after=whole)
        assert_same_run(resumed, whole)


@pytest.mark.parametrize(
    "save",
    [
        pytest.param("every_n_epochs: 1, save_on_train_epoch_end: true", id="end of epoch"),
        pytest.param("every_n_epochs: 1, save_on_train_epoch_end: false", id="end of validation"),
    ],
)
@pytest.mark.parametrize("limit", LIMITS)
def test_resuming_at_the_end_of_an_epoch_or_validation_gives_the_uninterrupted_run(
    fit: Fit, limit: str, save: str
) -> None:
    whole = fit("whole", *LIMITS[limit], save=save)
    for step in (4, 8):
        checkpoint = f"--ckpt_path={RUN}/checkpoints/{step}.ckpt"
        resumed = fit(f"from_{step}", *LIMITS[limit], checkpoint, save=save, after=whole)
        assert_same_run(resumed, whole)


@pytest.mark.parametrize("validation", ["every epoch", "every three steps"])
@pytest.mark.parametrize("stop", [5, 8, 9])
def test_a_run_that_reached_max_steps_goes_on(fit: Fit, stop: int, validation: str) -> None:
    cadence = VALIDATIONS[validation]
    whole = fit("whole", *LIMITS["steps"], *cadence)
    short = fit("short", f"--trainer.max_steps={stop}", *cadence)
    assert int(read_record(short / "records.nc").attrs["last_step"]) == stop
    resumed = fit("short", *LIMITS["steps"], *cadence, f"--ckpt_path={short}/checkpoints/last.ckpt")
    assert resumed == short, "a run is continued where it lies"
    assert_same_run(resumed, whole)


def test_a_new_process_resumes_exactly(fit: Fit, tmp_path: Path) -> None:
    whole = fit("whole", *LIMITS["epochs"])
    command = [sys.executable, "-m", "grok_lightning", "fit", "--ckpt_path", f"{whole}/checkpoints/10.ckpt"]
    # No config is named: the run's own is taken.
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    reference = fit("reference", *LIMITS["epochs"])
    assert_same_run(whole, reference)


def test_a_run_that_would_have_stopped_at_the_validation_that_is_made_up_for_stops(fit: Fit) -> None:
    """Saved between step 8 and its validation, at which all have memorised and the run ends."""
    stop = ["--trainer.callbacks+=StopAfterOnset", "--trainer.callbacks.event=memorised"]
    whole = fit("whole", *LIMITS["epochs"], *stop)
    last = int(checkpoint_of(whole)["global_step"])
    assert last < 24
    resumed = fit("again", *LIMITS["epochs"], *stop, f"--ckpt_path={RUN}/checkpoints/{last}.ckpt", after=whole)
    assert_same_run(resumed, whole)


@pytest.mark.parametrize("named", ["checkpoint", "run"])
@pytest.mark.parametrize(
    "save",
    [
        pytest.param(EVERY_STEP, id="step"),
        pytest.param("every_n_epochs: 1, save_on_train_epoch_end: true", id="end of epoch"),
        pytest.param("every_n_epochs: 1, save_on_train_epoch_end: false", id="end of validation"),
    ],
)
@pytest.mark.parametrize("limit", LIMITS)
def test_a_run_that_was_killed_between_its_last_checkpoint_and_its_end_is_ended(
    fit: Fit, tmp_path: Path, limit: str, save: str, named: str
) -> None:
    """There is no step left to be taken; a validation may be, and the record and last.ckpt are."""
    whole = fit("whole", *LIMITS[limit], save=save)
    killed = tmp_path / "killed" / RUN
    shutil.copytree(whole.parents[2], killed.parents[2])
    (killed / "checkpoints" / "last.ckpt").unlink()
    (killed / "records.nc").unlink()
    checkpoint = {"checkpoint": f"{RUN}/checkpoints/24.ckpt", "run": RUN}[named]
    assert_same_run(fit("again", *LIMITS[limit], f"--ckpt_path={checkpoint}", save=save, after=killed), whole)


STOPS = {
    "StopAfterOnset": ["--trainer.callbacks+=StopAfterOnset", "--trainer.callbacks.event=memorised"],
    "StopWhenConverged": [
        "--trainer.callbacks+=Convergence",
        "--trainer.callbacks+=StopWhenConverged",
        *(f"--trainer.callbacks.{what}_moved=9" for what in ("loss", "accuracy", "norm")),
        "--trainer.callbacks.at_least=0.01",
        # All members have to have a decay.
        "--population={seed: [0, 1], train_size: 32, weight_decay: 0.01}",
    ],
}


@pytest.mark.parametrize("at_end_of_training_epoch", ["true", "false"])
@pytest.mark.parametrize("stop", STOPS)
def test_a_run_that_was_stopped_at_a_validation_stops_there_when_resumed(
    fit: Fit, stop: str, at_end_of_training_epoch: str
) -> None:
    """Saved after the validation at which the run ends, killed before it has ended."""
    save = f"every_n_epochs: 1, save_on_train_epoch_end: {at_end_of_training_epoch}"
    whole = fit("whole", *LIMITS["epochs"], *STOPS[stop], save=save)
    last = int(checkpoint_of(whole)["global_step"])
    assert 0 < last < 24
    checkpoint = f"--ckpt_path={RUN}/checkpoints/{last}.ckpt"
    resumed = fit("again", *LIMITS["epochs"], *STOPS[stop], checkpoint, save=save, after=whole)
    assert_same_run(resumed, whole)


def test_the_record_that_is_written_with_a_checkpoint_ends_there(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    written = []
    monkeypatch.undo()
    monkeypatch.setattr(report, "write_report", lambda record, directory: directory)
    write = Recorder._write

    def watched(self: Recorder, trainer: Trainer, pl_module: LightningModule) -> None:
        write(self, trainer, pl_module)
        written.append(int(read_record(self.directory(trainer) / "records.nc").attrs["last_step"]))

    monkeypatch.setattr(Recorder, "_write", watched)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["grok"])
    (tmp_path / "tiny.yaml").write_text(CONFIG.replace("SAVE", "every_n_train_steps: 2"))
    main(["fit", "--config", "tiny.yaml", "--trainer.max_steps=6"])
    assert written == [2, 4, 6, 6, 6, 6]  # at every checkpoint, at the end, with the last one, and of all monitors


def test_a_changed_run_is_noticed(fit: Fit) -> None:
    """The comparison can fail."""
    whole = fit("whole", *LIMITS["epochs"])
    other = fit("other", *LIMITS["epochs"], "--model.optimizer.lr=0.300001")
    with pytest.raises(AssertionError):
        assert_same_run(other, whole)


@pytest.mark.parametrize("limit", ["--trainer.max_steps=5", "--trainer.max_steps=8", "--trainer.max_epochs=1"])
def test_a_limit_that_was_passed_already_costs_nothing(fit: Fit, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    """Going on from an earlier checkpoint of a finished run, with a slip of the hand."""
    whole = fit("whole", *LIMITS["steps"])
    told: list[str] = []
    monkeypatch.setattr(cli, "rank_zero_info", told.append)
    again = fit("again", limit, f"--ckpt_path={RUN}/checkpoints/8.ckpt", after=whole)
    assert any(line.startswith("nothing to train: step 8") for line in told)
    assert_same_run(again, whole)
