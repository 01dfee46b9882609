"""Measuring a run that is over: the values are those that were, or would have been, measured during training."""

import inspect
import logging
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import xarray as xr
from lightning.pytorch import Callback

import grok_callbacks
from grok_callbacks import (
    AtEnd,
    Convergence,
    EveryNSteps,
    FourierLogitSplitter,
    LearningCurves,
    Monitor,
    NeuronNormTracker,
    Onset,
    ParameterNorm,
    ParityCircuits,
    ShrinkAccuracy,
    SparseSubnetworkExtractor,
    SubnetworkComparison,
    WeightTrajectory,
)
from grok_callbacks.rows import rows_of
from grok_lightning import MLP, GrokModule, LastCheckpoint, Recorder, SparseParity, TableData, report
from grok_lightning.cli import main
from grok_lightning.networks import MLPNetwork
from grok_lightning.records import read_record
from grok_lightning.runs import Run, open_run

CONFIG = """
model: {class_path: MLP, init_args: {hidden: [8], optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.3}}}}
data:
  class_path: TableData
  init_args:
    task: {class_path: SparseParity, init_args: {n: 6, k: 2}}
    train_size: 32
    batch_size: 8
population: [{seed: 3, label_noise: 0.0}, {seed: 4, label_noise: 0.25}]
trainer:
  max_epochs: 5
  enable_progress_bar: false
  callbacks:
    - {class_path: WeightTrajectory, init_args: {schedule: {class_path: EveryNSteps, init_args: {n: 4}}}}
    - class_path: NeuronNormTracker
      init_args: {layer: network.hidden.0, weights: product, next_layer: network.output, schedule: EVERY}
    - {class_path: SubnetworkComparison, init_args: {layer: network.hidden.0, next_layer: network.output}}
    - class_path: SparseSubnetworkExtractor
      init_args: {layer: network.hidden.0, next_layer: network.output, schedule: EVERY}
    - class_path: ParityCircuits
      init_args: {layer: network.hidden.0, next_layer: network.output, schedule: EVERY}
    - {class_path: Onset, init_args: {memorised_above: 0.6, generalised_from: 0.4, dwell: 4}}
    - {class_path: ParameterNorm, init_args: {schedule: EVERY}}
    - class_path: Convergence
    - class_path: ShrinkAccuracy
""".replace("EVERY", "{class_path: EveryNSteps, init_args: {n: 2}}")
MODULAR = """
model:
  class_path: Transformer
  init_args: {d_model: 8, n_heads: 2, d_mlp: 6, optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.5}}}
data:
  class_path: TableData
  init_args:
    task: {class_path: ModularArithmetic, init_args: {operation: multiply, p: 5}}
    train_size: 12
    batch_size: 3
population: [{seed: 3}, {seed: 4}]
trainer:
  max_epochs: 5
  enable_progress_bar: false
  callbacks:
    - {class_path: WeightTrajectory, init_args: {schedule: {class_path: EveryNSteps, init_args: {n: 4}}}}
    - class_path: FourierLogitSplitter
      init_args:
        modulus: 5
        operation: multiply
        embedding: network.embed
        layer: network.layers.0.mlp_in
        next_layer: network.layers.0.mlp_out
        schedule: {class_path: EveryNSteps, init_args: {n: 2}}
"""
KEPT = [0, 4, 8, 12, 16, 20]
LAYERS = ("network.hidden.0", "network.output")

MONITORS = {
    Convergence: Convergence,
    FourierLogitSplitter: lambda: FourierLogitSplitter(
        5,
        "multiply",
        embedding="network.embed",
        layer="network.layers.0.mlp_in",
        next_layer="network.layers.0.mlp_out",
    ),
    LearningCurves: LearningCurves,
    NeuronNormTracker: lambda: NeuronNormTracker(LAYERS[0], "product", LAYERS[1]),
    Onset: lambda: Onset(memorised_above=0.6, generalised_from=0.4, dwell=4),
    ParameterNorm: ParameterNorm,
    ParityCircuits: lambda: ParityCircuits(*LAYERS),
    ShrinkAccuracy: ShrinkAccuracy,
    SparseSubnetworkExtractor: lambda: SparseSubnetworkExtractor(*LAYERS),
    SubnetworkComparison: lambda: SubnetworkComparison(*LAYERS),
    WeightTrajectory: WeightTrajectory,
}

# What weights that were kept cannot tell: NaN. Of time, it is the steps that were taken.
NOT_FROM_WEIGHTS: dict[type[Monitor], list[str]] = {Convergence: ["decay_time"]}


def exported() -> list[type[Monitor]]:
    found = [getattr(grok_callbacks, name) for name in grok_callbacks.__all__]
    found = [value for value in found if inspect.isclass(value) and issubclass(value, Monitor)]
    return [value for value in found if not inspect.isabstract(value)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a run of the command line with every monitor, which no test changes."""
    return train(tmp_path_factory.mktemp("trained"), CONFIG)


@pytest.fixture(scope="module")
def trained_on_residues(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a run on modular arithmetic, which no test changes."""
    return train(tmp_path_factory.mktemp("residues"), MODULAR)


@pytest.fixture
def trained_for(request: pytest.FixtureRequest) -> Callable[[type[Monitor]], Path]:
    """Return a function from a monitor to the directory of a run that it can measure."""
    modular = {FourierLogitSplitter}
    return lambda kind: request.getfixturevalue("trained_on_residues" if kind in modular else "trained")


def train(folder: Path, config: str) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write_report", lambda record, directory: directory / "report.html")
        patch.setattr(sys, "argv", ["grok"])
        patch.chdir(folder)
        Path("tiny.yaml").write_text(config)
        main(["fit", "--config", "tiny.yaml"])
    return folder / "runs" / "tiny" / "version_0"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Run:
    """A copy of the run, to do things to."""
    return Run(Path(shutil.copytree(trained, tmp_path / "run")))


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) if path.is_file() else (0, b"")
        for path in folder.rglob("*")
    }


def norms() -> NeuronNormTracker:
    return MONITORS[NeuronNormTracker]()


# The values


def test_every_monitor_has_an_example() -> None:
    assert set(MONITORS) == set(exported())


@pytest.mark.parametrize("kind", exported())
def test_the_values_are_exactly_those_of_training(
    trained_for: Callable[[type[Monitor]], Path], kind: type[Monitor]
) -> None:
    run = Run(trained_for(kind))
    monitor = MONITORS[kind]()
    found, recorded = run.measure(monitor), run.record[monitor.name].to_dataset()
    assert found.attrs["kind"] == kind.__name__
    if "step" in recorded.dims:
        assert found["step"].values.tolist() == KEPT
        assert set(KEPT) <= set(recorded["step"].values.tolist())
        recorded = recorded.sel(step=KEPT)
    unknown = NOT_FROM_WEIGHTS.get(kind, [])
    assert all(found[name].isnull().all() and recorded[name].notnull().all() for name in unknown)
    xr.testing.assert_identical(found.drop_vars(unknown), recorded.drop_vars(unknown))


def test_the_examples_have_something_to_tell(trained: Path) -> None:
    record = read_record(trained / "records.nc")
    assert record["onset"]["step"].sel(event="memorised").notnull().any()
    assert record["onset"]["step"].sel(event="generalised").notnull().any()
    assert "true_accuracy" in record["curves"]
    assert len(record["neuron_norms"]["step"]) == 11, "measured at other steps too"
    assert not (record["subnetworks"]["agreement"] == 1).all()
    assert len({int(size) for size in record["sparse_subnetwork"]["size"].values.flatten()}) > 1


def test_the_box_is_that_of_the_configured_optimizer_and_of_each_member(tmp_path: Path) -> None:
    config = CONFIG[: CONFIG.index("    - class_path: Neuron")] + "    - class_path: Convergence\n"
    config = config.replace(
        "torch.optim.SGD, init_args: {lr: 0.3}", "torch.optim.AdamW, init_args: {lr: 0.02, eps: 1.e-4}"
    )
    config = config.replace("label_noise: 0.0", "weight_decay: 0.0").replace("label_noise: 0.25", "weight_decay: 3.0")
    run = Run(train(tmp_path, config))
    found, recorded = run.measure(Convergence()), run.record["convergence"].to_dataset().sel(step=KEPT)
    assert found["box_share"].isnull().all(dim="step").values.tolist() == [True, False]
    assert found["eps"].values.tolist() == [1e-4, 1e-4]
    assert recorded["decay_time"].isel(member=1).values == pytest.approx([0.02 * 3 * step for step in KEPT])
    xr.testing.assert_identical(found.drop_vars("decay_time"), recorded.drop_vars("decay_time"))


def test_rows_that_are_new_at_every_step_are_found_again(tmp_path: Path) -> None:
    """Held-out rows are; there are no rows trained on to look back at."""
    config = CONFIG[: CONFIG.index("    - class_path: Neuron")].replace("TableData", "OnlineData")
    config = config.replace("train_size: 32", "n_held_out: 16").replace(
        "max_epochs: 5", "max_epochs: -1\n  max_steps: 20"
    )
    config = config.replace("[{seed: 3, label_noise: 0.0}, {seed: 4, label_noise: 0.25}]", "{seed: [3, 4]}")
    config = config.replace(
        "enable_progress_bar", "val_check_interval: 4\n  check_val_every_n_epoch: null\n  enable_progress_bar"
    )
    run = Run(train(tmp_path, config))
    found = run.measure(LearningCurves())
    assert found["accuracy"].sel(split="held_out").notnull().all()
    xr.testing.assert_identical(found, run.record["curves"].to_dataset().sel(step=KEPT))


class Sees(Monitor):
    """Somebody's own: what the Trainer says of the step, the data and the mode; a random number is drawn on the way."""

    dims = {"step_of_trainer": (), "rows": (), "right": (), "grad": ()}  # noqa: RUF012 - a constant

    def __init__(self) -> None:
        super().__init__(AtEnd(), "sees")

    def measure(self, trainer: object, pl_module: GrokModule) -> dict[str, torch.Tensor]:
        torch.rand(3)
        inputs, targets = rows_of(trainer, pl_module, "held_out")
        right = (pl_module(inputs).squeeze(-1) * targets > 0).double().mean(dim=1)
        told = {"step_of_trainer": trainer.global_step, "rows": targets.shape[1], "grad": torch.is_grad_enabled()}
        return {name: torch.full((2,), int(value)) for name, value in told.items()} | {"right": right}


def test_a_monitor_of_ones_own_sees_each_step_and_the_data(trained: Path) -> None:
    run, state = Run(trained), torch.get_rng_state()
    found = run.measure(Sees())
    assert found["step"].values.tolist() == KEPT
    assert (found["step_of_trainer"] == found["step"]).all()
    assert (found["rows"] == 32).all()
    assert (found["grad"] == 0).all()
    accuracy = run.record["curves"]["accuracy"].sel(split="held_out")
    for step in KEPT:
        assert found["right"].sel(step=step).values == pytest.approx(accuracy.sel(step=step).values)
    assert found["seed"].values.tolist() == [3, 4]
    assert torch.equal(torch.get_rng_state(), state)


def test_without_kept_weights_the_newest_checkpoint_is_measured(run: Run) -> None:
    shutil.rmtree(run.directory / "weights")
    found = run.measure(norms())
    xr.testing.assert_identical(found, run.record["neuron_norms"].to_dataset().sel(step=[20]))


def test_what_a_monitor_had_measured_before_is_forgotten(trained: Path) -> None:
    monitor = norms()
    first, second = Run(trained).measure(monitor), Run(trained).measure(monitor)
    xr.testing.assert_identical(first, second)


# What stays as it is


@pytest.mark.parametrize("kind", exported())
def test_measuring_changes_no_file(
    trained_for: Callable[[type[Monitor]], Path], kind: type[Monitor], tmp_path: Path
) -> None:
    run = Run(Path(shutil.copytree(trained_for(kind), tmp_path / "run")))
    before = contents(tmp_path)
    run.measure(MONITORS[kind]())
    assert contents(tmp_path) == before


def test_what_is_to_be_kept_goes_into_the_record_beside_the_rest(run: Run) -> None:
    before, files = read_record(run.directory / "records.nc"), contents(run.directory)
    found = run.measure(Sees(), keep=True)
    after = read_record(run.directory / "records.nc")
    assert list(after.children) == [*before.children, "sees"]
    xr.testing.assert_identical(after["sees"].to_dataset(), found)
    xr.testing.assert_identical(run.record["sees"].to_dataset(), found)
    assert after.attrs == before.attrs
    for name, group in before.children.items():
        xr.testing.assert_identical(after[name].to_dataset(), group.to_dataset())
    changed = {name for name, content in contents(run.directory).items() if files.get(name) != content}
    assert changed == {"records.nc"}
    assert "right" in run.to_dataframe("sees")


def test_what_was_measured_in_training_is_not_replaced(run: Run) -> None:
    before = contents(run.directory)
    with pytest.raises(ValueError, match="has a group 'neuron_norms' already; give the monitor another name"):
        run.measure(norms(), keep=True)
    assert contents(run.directory) == before


def test_a_class_is_no_monitor(trained: Path) -> None:
    with pytest.raises(TypeError, match=r"expected a monitor, such as NeuronNormTracker\(\.\.\.\)"):
        Run(trained).measure(LearningCurves)


def test_what_came_into_the_record_since_it_was_opened_stays(run: Run) -> None:
    opened_before = Run(run.directory)
    assert "sees" not in opened_before.record
    run.measure(Sees(), keep=True)
    opened_before.measure(NeuronNormTracker(LAYERS[0], name="norms"), keep=True)
    assert {"sees", "curves"} <= set(read_record(run.directory / "records.nc").children)
    assert "sees" in opened_before.record


def test_nobody_is_told_of_a_trainer(trained: Path) -> None:
    class Hears(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    heard: list[str] = []
    loggers = [logging.getLogger(f"lightning.{package}.utilities.rank_zero") for package in ("pytorch", "fabric")]
    parent, handler = logging.getLogger("lightning.pytorch"), Hears()
    level = parent.level
    parent.setLevel(logging.INFO)
    for logger in loggers:
        logger.addHandler(handler)
    try:
        Run(trained).measure(norms())
        assert not heard
        assert parent.level == logging.INFO
    finally:
        parent.setLevel(level)
        for logger in loggers:
            logger.removeHandler(handler)


# What is missing


def test_a_run_without_a_configuration_says_so(run: Run) -> None:
    (run.directory / "config.yaml").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.yaml: without a configuration"):
        run.measure(norms())


@pytest.mark.parametrize("content", [None, b"", b"cut"], ids=["none", "empty", "damaged"])
def test_a_run_without_a_whole_checkpoint_says_so(run: Run, content: bytes | None) -> None:
    last = run.directory / "checkpoints" / "last.ckpt"
    last.unlink()
    if content is not None:
        last.write_bytes(content)
    with pytest.raises(FileNotFoundError, match="has no whole checkpoint"):
        run.measure(norms())
    with pytest.raises(FileNotFoundError, match=r"no whole checkpoint; .*\[0, 4, 8, 12, 16, 20\]"):
        run.network()


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("grok_lightning.TableData", "gone_things.Data", "gone_things"),
        ("grok_lightning.SparseParity", "gone_things.Task", "gone_things"),
        ("grok_lightning.TableData", "torch.nn.Linear", "Linear"),
        ("train_size: 32", "train_size: 65", "train_size"),
        ("train_size: 32", "train_siz: 32", "train_siz"),
        ("data:", "dta:", "data"),
        ("data:", "{[", "config.yaml"),
    ],
    ids=str,
)
def test_data_that_cannot_be_made_are_told_in_a_line(run: Run, old: str, new: str, says: str) -> None:
    config = run.directory / "config.yaml"
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new))
    with pytest.raises(ValueError, match=r"config\.yaml") as error:
        run.measure(norms())
    assert says in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_an_empty_configuration_is_told(run: Run) -> None:
    (run.directory / "config.yaml").write_text("")
    with pytest.raises(ValueError, match=r"config\.yaml"):
        run.measure(norms())


def test_a_monitor_of_a_layer_that_is_not_there_names_those_that_are(trained: Path) -> None:
    with pytest.raises(ValueError, match=r"layer: .*'network\.hiden'.*network\.hidden\.0"):
        Run(trained).measure(NeuronNormTracker("network.hiden"))


def test_a_monitor_that_finds_nothing_says_so(trained: Path) -> None:
    class Nothing(Sees):
        def measure(self, trainer: object, pl_module: GrokModule) -> dict[str, torch.Tensor]:
            return {}

    with pytest.raises(ValueError, match="Nothing had nothing to measure in"):
        Run(trained).measure(Nothing())


def test_kept_weights_of_another_network_are_told(run: Run) -> None:
    path = run.directory / "weights" / "step_0000000008.pt"
    content = torch.load(path, weights_only=True)
    del content["weights"]["network.output.weight"]
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"'network\.output\.weight' of \(2, 1, 8\), found nothing"):
        run.measure(norms())


# Code in files


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("wrapped", [True, False])
def test_no_code_in_kept_weights_is_run(run: Run, tmp_path: Path, wrapped: bool) -> None:
    path, executed = run.directory / "weights" / "step_0000000000.pt", tmp_path / "executed"
    bad = Malicious(executed)
    torch.save({"step": 0, "weights": {"network.output.weight": bad}} if wrapped else bad, path)
    for look in (lambda: run.measure(norms()), lambda: run.network(step=0)):
        with pytest.raises(ValueError, match=r"step_0000000000\.pt cannot be read as weights"):
            look()
    assert not executed.exists()
    torch.load(path, weights_only=False)
    assert executed.exists(), "it has code to run"


def test_no_code_in_a_checkpoint_is_run(run: Run, tmp_path: Path) -> None:
    path, executed = run.directory / "checkpoints" / "last.ckpt", tmp_path / "executed"
    content = torch.load(path, weights_only=True)
    torch.save(content | {"more": Malicious(executed)}, path)
    for look in (lambda: run.measure(norms()), lambda: run.network(step=20), run.network):
        with pytest.raises(FileNotFoundError, match="no whole checkpoint"):
            look()
    assert not executed.exists()
    torch.load(path, weights_only=False)
    assert executed.exists(), "it has code to run"


@pytest.mark.parametrize(
    ("entry", "value"), [("_class_path", "gone_things.Model"), ("_instantiator", "gone_things.instantiate")]
)
def test_a_checkpoint_imports_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: str, value: str
) -> None:
    (tmp_path / "gone_things.py").write_text(f"import os; os.mkdir({str(tmp_path / 'executed')!r})")
    monkeypatch.syspath_prepend(tmp_path)
    path = run.directory / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    content["hyper_parameters"][entry] = value
    torch.save(content, path)
    with pytest.raises(ValueError, match="gone_things"):
        run.network()
    assert not (tmp_path / "executed").exists()
    assert "gone_things" not in sys.modules


# Runs of a script


class Own(GrokModule):
    """Somebody's own module, with a loss that no name stands for."""

    def __init__(self, members: dict | None = None) -> None:
        super().__init__(
            loss=lambda logits, targets: (logits.squeeze(-1) - targets).square(),
            optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
            scheduler=None,
            members=members,
        )
        self.save_hyperparameters()

    def build_network(self, generators: list[torch.Generator]) -> MLPNetwork:
        return MLPNetwork(6, 1, [5], generators, activation="tanh")


class Notes(Callback):
    """The weights after every step."""

    def __init__(self) -> None:
        self.weights: dict[int, dict[str, torch.Tensor]] = {}

    def on_train_start(self, trainer: object, pl_module: GrokModule) -> None:
        self.on_train_batch_end(trainer, pl_module, None, None, 0)

    def on_train_batch_end(
        self, trainer: object, pl_module: GrokModule, outputs: object, batch: object, i: int
    ) -> None:
        weights = pl_module.network.state_dict()
        self.weights[trainer.global_step] = {name: value.clone() for name, value in weights.items()}


@pytest.fixture
def scripted(make_trainer: Callable, tmp_path: Path) -> Callable:
    """Return a function that trains a module in a script and returns the run and the weights of every step."""

    def fit(kind: Callable) -> tuple[Run, dict[int, dict[str, torch.Tensor]]]:
        notes, members = Notes(), {"seed": [1, 2]}
        callbacks = [notes, WeightTrajectory(EveryNSteps(3)), LearningCurves(), Recorder(), LastCheckpoint()]
        trainer = make_trainer(max_epochs=2, callbacks=callbacks, enable_checkpointing=True)
        data = TableData(SparseParity(6, 2), train_size=32, batch_size=8, members=members)
        trainer.fit(kind(members=members), datamodule=data)
        return open_run(tmp_path), notes.weights

    return fit


DATA = "data: {class_path: TableData, init_args: {task: {class_path: SparseParity, init_args: {n: 6, k: 2}}, %s}}"


@pytest.mark.parametrize("kind", [Own, lambda members: MLP(6, hidden=[5], members=members)], ids=["own", "ours"])
def test_a_network_of_any_kept_step_has_the_weights_of_that_step(scripted: Callable, kind: Callable) -> None:
    run, weights = scripted(kind)
    for step in (0, 3, 6, 8, None):
        for member in (0, 1):
            network = run.network(step, member, module_class=Own if kind is Own else MLP)
            for name, value in network.state_dict().items():
                assert torch.equal(value[0], weights[8 if step is None else step][name][member]), (step, member, name)
    with pytest.raises(FileNotFoundError, match=r"no weights of step 4; .*\[0, 3, 6, 8\]"):
        run.network(4, module_class=Own)


def test_a_script_is_measured_with_a_module_class_and_a_configuration_of_the_data(scripted: Callable) -> None:
    run, _ = scripted(Own)
    with pytest.raises(FileNotFoundError, match="without a configuration"):
        run.measure(LearningCurves(), module_class=Own)
    (run.directory / "config.yaml").write_text(DATA % "train_size: 32, batch_size: 8")
    with pytest.raises(ValueError, match="module_class"):
        run.measure(LearningCurves())
    found = run.measure(LearningCurves(), module_class=Own)
    assert found["step"].values.tolist() == [0, 3, 6, 8]
    xr.testing.assert_identical(found.sel(step=[0, 8]), run.record["curves"].to_dataset().sel(step=[0, 8]))


# Other precisions


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed", "bf16-true"])
def test_values_and_weights_are_in_the_precision_of_the_run(tmp_path: Path, precision: str) -> None:
    run = Run(train(tmp_path, CONFIG.replace("max_epochs: 5", f"max_epochs: 2\n  precision: {precision}")))
    dtype = torch.load(run.directory / "weights" / "step_0000000004.pt", weights_only=True)["weights"][
        "network.hidden.0.weight"
    ].dtype
    assert dtype == {"64-true": torch.float64, "bf16-mixed": torch.float32, "bf16-true": torch.bfloat16}[precision]
    assert next(run.network(step=4).parameters()).dtype == dtype
    for monitor in (NeuronNormTracker(LAYERS[0], "product", LAYERS[1]), SparseSubnetworkExtractor(*LAYERS)):
        found, recorded = run.measure(monitor), run.record[monitor.name].to_dataset()
        steps = [step for step in KEPT if step <= 8]
        xr.testing.assert_equal(found.drop_attrs().sel(step=steps), recorded.drop_attrs().sel(step=steps))


def test_rows_that_were_removed_are_so_again_when_looking_back(tmp_path: Path) -> None:
    """What is measured of a run that shrank is what was measured in it, before and after."""
    config = CONFIG[: CONFIG.index("    - class_path: Neuron")].replace(
        "[{seed: 3, label_noise: 0.0}, {seed: 4, label_noise: 0.25}]", "{seed: [3, 4], shrink_step: [6, 9]}"
    )
    config += "    - {class_path: DatasetShrink, init_args: {size: 10}}\n    - class_path: ShrinkAccuracy\n"
    run = Run(train(tmp_path, config))
    for monitor, group in [(LearningCurves(), "curves"), (ShrinkAccuracy(), "shrink_accuracy")]:
        there = run.record[group].to_dataset()
        assert there["accuracy"].isnull().any(), "before the shrink no rows were removed"
        xr.testing.assert_identical(run.measure(monitor), there.sel(step=KEPT))
