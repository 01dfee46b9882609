"""However a run is interrupted, resuming gives the run that was not, bit for bit.

The product of {how it stops} x {task} x {processes} x {where the training set shrinks} has 168 cells. By default enough
of them are run that every two values of any two factors come together, and all that have ever failed; with the
environment variable GROK_TESTS=full all of them.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from itertools import combinations, product
from pathlib import Path
from typing import NamedTuple

import pytest
from interrupted import Ended, fit, record_at_the_end
from runs_compared import assert_same_run

from grok_callbacks import NeuronNormTracker
from grok_lightning.data import StepLoader

pytestmark = [
    # The copies that are resumed here lie in another place than the run that they are copies of.
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    # Forking after threads were started is what is done here on purpose; the children run no threads of their own.
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning"),
]

STOPS = ("epoch end", "validation end", "mid-epoch", "max_steps", "exception", "SIGTERM", "SIGKILL")
TASKS = ("parity", "modular addition")
STRATEGIES = ("one process", "population", "ddp")
SHRINKS = ("no shrink", "before the shrink", "at the shrink", "after the shrink")


class Cell(NamedTuple):
    """How a run stops, of which task, on how many processes, and whether before, at or after a shrink."""

    stop: str
    task: str
    strategy: str
    shrink: str


CELLS = [Cell(*values) for values in product(STOPS, TASKS, STRATEGIES, SHRINKS)]

EVER_FAILED = [
    # The optimizer's state of a process's members was a view with gaps, which a fused AdamW takes for one without.
    Cell("epoch end", "modular addition", "population", "before the shrink"),
    Cell("exception", "modular addition", "population", "no shrink"),
    # The weights that a forked process hands back, bare, were refused as no checkpoint.
    Cell("mid-epoch", "parity", "ddp", "before the shrink"),
]
"""Cells that have ever failed, with a word on why."""


def covering_set(cells: Sequence[Cell]) -> list[Cell]:
    """Return some of the cells, in which every two values of two factors that occur together at all do so too."""
    left = {pair for cell in cells for pair in pairs(cell)}
    chosen = []
    while left:
        chosen.append(max(cells, key=lambda cell: len(left & pairs(cell))))
        left -= pairs(chosen[-1])
    return chosen


def pairs(cell: Cell) -> set[tuple[tuple[str, str], ...]]:
    return set(combinations(zip(Cell._fields, cell, strict=True), 2))


def cells_to_run() -> list[Cell]:
    return CELLS if os.environ.get("GROK_TESTS") == "full" else [*dict.fromkeys([*covering_set(CELLS), *EVER_FAILED])]


CONFIGS = {
    "parity": """
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
  - {seed: 2, train_size: 27, weight_decay: 0.1}
""",
    "modular addition": """
model:
  class_path: Transformer
  init_args:
    d_model: 8
    n_heads: 2
    d_mlp: 12
    scheduler: {class_path: torch.optim.lr_scheduler.CosineAnnealingLR, init_args: {T_max: 30}}
data:
  class_path: TableData
  init_args:
    task: {class_path: ModularArithmetic, init_args: {p: 7}}
    n_held_out: null
    split: symmetric
    batch_size: 10
population:
  - {seed: 0, train_size: 40, weight_decay: 1.0}
  - {seed: 1, train_size: 30, weight_decay: 0.3}
  - {seed: 2, train_size: 33, weight_decay: 0.0}
""",
}
CALLBACKS = """
trainer:
  accelerator: cpu
  enable_progress_bar: false
  callbacks:
    - class_path: NeuronNormTracker
      init_args: {layer: LAYER, schedule: {class_path: EveryNSteps, init_args: {n: 3}}}
    - class_path: Onset
      init_args: {generalised_from: 0.6, memorised_above: 0.7, dwell: 4}
    - class_path: Convergence
    - class_path: WeightTrajectory
      init_args: {schedule: {class_path: EveryNSteps, init_args: {n: 5}}}
"""
CHECKPOINT = """
    - class_path: ModelCheckpoint
      init_args: {filename: "NAME {step}", auto_insert_metric_name: false, save_top_k: -1, OPTIONS}
"""
LAYERS = {"parity": "network.hidden.0", "modular addition": "network.layers.0.mlp_in"}
PROCESSES = {
    "one process": ["--trainer.devices=1"],
    "population": ["--trainer.devices=2", "--trainer.strategy=population_fork"],
    "ddp": ["--trainer.devices=2", "--trainer.strategy=ddp_fork"],
}
SAVES = {
    "epoch end": "every_n_epochs: 1, save_on_train_epoch_end: true",
    # By its mode, which is of no use without a monitor, Lightning tells its state from that of the one before.
    "validation end": "every_n_epochs: 1, save_on_train_epoch_end: false, mode: max",
    "mid-epoch": "every_n_train_steps: 5",
}
STEPS = 20  # five epochs of four
STATUS = {"max_steps": {0}, "exception": {1}, "SIGTERM": {143, -15}, "SIGKILL": {-9}}  # of -15 a shell says 143


def step_of_shrink(cell: Cell) -> int | None:
    if cell.shrink == "no shrink":
        return None
    return 12 if cell.stop in ("epoch end", "validation end") else 10


def step_of_stop(cell: Cell) -> int:
    """Return the step of the checkpoint that is resumed from, or at which the run is interrupted."""
    shrink, apart = (12, 4) if cell.stop in ("epoch end", "validation end") else (10, 5)
    return shrink + {"before the shrink": -apart, "after the shrink": apart}.get(cell.shrink, 0)


def config_of(cell: Cell) -> str:
    config = CONFIGS[cell.task] + CALLBACKS.replace("LAYER", LAYERS[cell.task])
    # A run that is interrupted saves at other steps than that of the interruption.
    saves = SAVES if cell.stop in SAVES else {"last": "every_n_train_steps: 3"}
    config += "".join(CHECKPOINT.replace("NAME", name).replace("OPTIONS", options) for name, options in saves.items())
    step = step_of_shrink(cell)
    if step is None:
        return config
    fresh = "true" if cell.task == "parity" else "false"
    return f"""{config}
    - class_path: DatasetShrink
      init_args: {{step: {step}, size: 13, fresh_optimizer: {fresh}}}
"""


def train(folder: Path, cell: Cell, *arguments: str, steps: int = STEPS) -> Ended:
    """Train in a folder, with arguments of the command line besides."""
    folder.mkdir(exist_ok=True)
    (folder / "tiny.yaml").write_text(config_of(cell))
    arguments = ("--config=tiny.yaml", *PROCESSES[cell.strategy], f"--trainer.max_steps={steps}", *arguments)
    interrupted = any("Interrupts" in argument for argument in arguments)
    return fit(folder, *arguments, before=None if interrupted else record_at_the_end)


def run_of(folder: Path) -> Path:
    """Return the only run in a folder: what is resumed goes on where it lies."""
    (directory,) = (folder / "runs" / "tiny").iterdir()
    return directory


Whole = Callable[[Cell], Path]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Return a function that returns the directory of the run of a cell that nothing interrupts."""
    made: dict[tuple[str, ...], Path] = {}

    def make(cell: Cell) -> Path:
        cell = cell if cell.stop in SAVES else cell._replace(stop="mid-epoch")
        key = (cell.strategy, config_of(cell))
        if key not in made:
            folder = tmp_path_factory.mktemp("whole")
            ended = train(folder, cell)
            assert ended.status == 0, ended.output
            made[key] = run_of(folder)
        return made[key]

    return make


def interrupt(cell: Cell, whole: Whole, folder: Path) -> str:
    """Leave in ``folder`` a run that was interrupted; return what to resume from."""
    step = step_of_stop(cell)
    if cell.stop in SAVES:
        shutil.copytree(whole(cell).parents[2], folder)
        return f"{run_of(folder)}/checkpoints/{cell.stop} {step}.ckpt"
    ended = train(folder, cell, steps=step) if cell.stop == "max_steps" else interrupt_at(step, cell, folder)
    assert ended.status in STATUS[cell.stop], ended.output
    return str(run_of(folder))


def interrupt_at(step: int, cell: Cell, folder: Path) -> Ended:
    how = [f"--trainer.callbacks.how={cell.stop}", f"--trainer.callbacks.step={step}"]
    return train(folder, cell, "--trainer.callbacks+=interrupted.Interrupts", *how)


def resume(cell: Cell, whole: Whole, folder: Path, checkpoint: str) -> None:
    """Resume to the end and compare."""
    ended = train(folder, cell, f"--ckpt_path={checkpoint}")
    assert ended.status == 0, ended.output
    assert_same_run(run_of(folder), whole(cell))


@pytest.mark.parametrize("cell", cells_to_run(), ids="-".join)
def test_resuming_gives_the_uninterrupted_run(cell: Cell, whole: Whole, tmp_path: Path) -> None:
    resume(cell, whole, tmp_path / "run", interrupt(cell, whole, tmp_path / "run"))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_sigterm_after_the_last_step_loses_nothing(whole: Whole, tmp_path: Path, strategy: str) -> None:
    """There are still a validation to come, and the record that says that the run has finished."""
    cell = Cell("SIGTERM", "parity", strategy, "no shrink")
    ended = interrupt_at(STEPS, cell, tmp_path / "run")
    assert ended.status in {0, *STATUS["SIGTERM"]}, ended.output
    resume(cell, whole, tmp_path / "run", str(run_of(tmp_path / "run")))


def forget_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NeuronNormTracker, "load_state_dict", lambda self, state_dict: None)


def take_the_next_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(self: StepLoader):
        for _ in range(len(self)):
            yield self.batch(self._step() + 1)

    monkeypatch.setattr(StepLoader, "__iter__", late)


@pytest.mark.parametrize("violation", [forget_norms, take_the_next_batch])
@pytest.mark.parametrize("stop", ["mid-epoch", "SIGKILL"])
def test_what_is_not_resumed_is_noticed(
    whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, violation: Callable[..., None], stop: str
) -> None:
    """The comparison can fail."""
    cell = Cell(stop, "parity", "one process", "no shrink")
    checkpoint = interrupt(cell, whole, tmp_path / "run")
    violation(monkeypatch)
    with pytest.raises(AssertionError, match=r"callbacks/NeuronNormTracker|state_dict/"):
        resume(cell, whole, tmp_path / "run", checkpoint)


def test_the_covering_set_has_every_two_values_together_and_is_small() -> None:
    chosen = covering_set(CELLS)
    assert set(chosen) <= set(CELLS)
    factors = {"stop": STOPS, "task": TASKS, "strategy": STRATEGIES, "shrink": SHRINKS}
    for (one, values), (other, others) in combinations(factors.items(), 2):
        found = {(getattr(cell, one), getattr(cell, other)) for cell in chosen}
        assert found == set(product(values, others)), (one, other)
    assert len(CELLS) == 168
    assert len(chosen) <= len(CELLS) / 5
    assert covering_set(CELLS) == chosen


def test_cells_that_ever_failed_are_always_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GROK_TESTS", raising=False)
    assert {*covering_set(CELLS), *EVER_FAILED} == set(cells_to_run())
    monkeypatch.setenv("GROK_TESTS", "full")
    assert set(cells_to_run()) == set(CELLS)
