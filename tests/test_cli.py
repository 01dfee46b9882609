"""The command line: what is wrong is told in one line and changes nothing; what is right does what was typed."""

import io
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.accelerators import MPSAccelerator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from xarray import DataTree

from grok_lightning import checkpoints, report
from grok_lightning.cli import main
from grok_lightning.records import build_record, read_record, write_record

CONFIG = """
model:
  class_path: MLP
  init_args:
    hidden: [8]
    optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.3}}
data:
  class_path: TableData
  init_args:
    task: {class_path: SparseParity, init_args: {n: 6, k: 2}}
    train_size: 32
    batch_size: 8
population: {seed: [0, 1]}
trainer:
  max_epochs: 2
  enable_progress_bar: false
"""
RUN = Path("runs/tiny/version_0")
LAST = RUN / "checkpoints" / "last.ckpt"

OWN = '''
import torch
from grok_lightning import GrokModule, Task
from grok_lightning.losses import hinge
from grok_lightning.modules.mlp import paper_sgd
from grok_lightning.networks import Network
from lightning.pytorch import Callback


class OnesModuloThree(Task):
    """The number of ones among four bits, modulo 3."""

    n_inputs, n_outputs, size = 4, 3, 16

    def table(self):
        return torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 4)

    def label(self, inputs):
        return inputs.sum(dim=1).long() % 3


class Wordless(OnesModuloThree):
    """Raises without a message."""

    def label(self, inputs):
        raise NotImplementedError


class FailsAtStepFive(Callback):
    """A bug of somebody's."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 5:
            raise ValueError("five is enough")


class Bag(Network):
    """Embeds tokens and adds them up."""

    def __init__(self, n_tokens, n_outputs, n_members):
        super().__init__()
        self.n_members = n_members
        self.embedding = torch.nn.Parameter(torch.zeros(n_members, n_tokens, n_outputs))

    def forward(self, inputs):
        return torch.stack([table[rows] for table, rows in zip(self.embedding, inputs)]).sum(dim=2)

    def like(self, n_members):
        return Bag(*self.embedding.shape[1:], n_members)


class Tokens(GrokModule):
    """A model that wants to know how many tokens there are."""

    def __init__(self, n_tokens: int, n_outputs: int, members: dict[str, list[int | float]] | None = None):
        super().__init__("cross_entropy", paper_sgd, None, members)
        self.n_tokens, self.n_outputs = n_tokens, n_outputs
        self.save_hyperparameters()
        self.keep_hyperparameters()

    def build_network(self, generators):
        return Bag(self.n_tokens, self.n_outputs, len(generators))


def doubled_hinge(logits, targets):
    return 2 * hinge(logits, targets)


def twice_minus(x, y, p):
    return 2 * x - y


def ratio(x, y, p):
    return x / (y + 1)
'''

MODULAR = """
model: own_things.Tokens
data:
  class_path: TableData
  init_args:
    task: {class_path: ModularArithmetic, init_args: {operation: add, p: 7}}
    train_size: 20
    batch_size: null
    n_held_out: null
population: {seed: [0, 1]}
trainer:
  max_epochs: 2
  enable_progress_bar: false
"""
MODULAR_RUN = Path("runs/modular/version_0")


@pytest.fixture(scope="session")
def own_module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the module ``own_things``, somebody's own task, loss and callback."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_things.py").write_text(OWN)
    return folder


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_module: Path) -> Path:
    """Work in an empty folder with a tiny config; do not draw."""
    monkeypatch.setattr(report, "write_report", lambda record, directory: directory / "report.html")
    monkeypatch.setattr(sys, "argv", ["grok"])
    monkeypatch.syspath_prepend(own_module)
    monkeypatch.delenv("JSONARGPARSE_DEBUG", raising=False)
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "tiny.yaml").write_text(CONFIG)
    (folder / "modular.yaml").write_text(MODULAR)
    monkeypatch.chdir(folder)
    return folder


def fit(*arguments: str) -> None:
    main(["fit", "--config", "tiny.yaml", *arguments])


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return everything below a folder: files with their times of change, directories by their names."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) if path.is_file() else (0, b"")
        for path in folder.rglob("*")
    }


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return the one line in which the command line refuses these arguments, having changed nothing."""
    before = contents(Path.cwd())
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert error.startswith("error: ")
    assert error.endswith("\n")
    assert len(error.splitlines()) == 1, f"more than one line: {error}"
    assert error.rstrip("\n").isprintable(), f"control characters: {error!r}"
    assert len(error) < 500, f"not a line but a page: {error}"
    assert contents(Path.cwd()) == before
    return error.removeprefix("error: ").strip()


def exit_code(*arguments: str) -> int | str:
    """Return what the process would end with."""
    try:
        main(list(arguments))
    except SystemExit as stopped:
        return stopped.code or 0
    return 0


def write(old: str, new: str) -> None:
    """Write the tiny config with a part of it replaced."""
    assert old in CONFIG
    Path("tiny.yaml").write_text(CONFIG.replace(old, new))


def weights(run: Path = RUN) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def assert_same_weights(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def last_step(run: Path = RUN) -> int:
    return int(read_record(run / "records.nc").attrs["last_step"])


# Bad input


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("--data.task.k=7", r"k must lie in 1 to n, got k = 7, n = 6"),
        ("--data.task.k=0", r"k must lie in 1 to n, got k = 0"),
        ("--data.task.n=0", r"n must be at least 1, got n = 0"),
        ("--data.train_size=65", r"train_size: expected at most .* 64 .* got 65"),
        ("--data.train_size=0", r"train_size: expected at least 1 .* got 0"),
        ("--data.batch_size=0", r"batch_size: expected at least 1 .* got 0"),
        ("--data.label_noise=2", r"label_noise: expected .*\[0, 1\], got 2"),
        ("--model.hidden=[-8]", r"hidden: .* at least 1, got -8"),
        ("--model.hidden=[0]", r"hidden: .* at least 1, got 0"),
        ("--model.optimizer.lr=-1", r"Invalid learning rate: -1"),
        ("--model.loss=hing", r"loss: expected one of hinge, .* got 'hing'"),
        ("--model.activation=rel", r"activation: expected one of relu, .* got 'rel'"),
        ("--threads=0", r"threads: expected at least 1, got 0"),
        ("--trainer.max_epochs=-5", r"max_epochs.*-5"),
        ("--trainer.accelerator=abacus", r"accelerator.*'abacus'"),
    ],
)
def test_a_number_or_name_out_of_range_says_what_was_expected_and_what_came(
    capsys: pytest.CaptureFixture[str], argument: str, says: str
) -> None:
    assert re.search(says, complaint(capsys, "fit", "--config", "tiny.yaml", argument))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--data.task.p=1"], r"p must be at least 2, got p = 1"),
        (["--data.task.p=seven"], r"p: .*seven"),
        (["--data.task.operation=ad"], r"operation: expected one of add, .* got 'ad'; did you mean add\?"),
        (["--data.task.operation=own_things.twice_minu"], r"operation: .*own_things.twice_minu"),
        (
            ["--data.task.operation=own_things.ratio"],
            r"expected ratio to return torch.int64 \(49,\), got torch.float32",
        ),
        (["--data.train_size=50"], r"train_size: expected at most the 49 rows that there are, got 50"),
        (["--data.train_size=null"], r"train_size: expected at most the 49 rows that there are, got 1000"),
        (
            ["--data.train_fraction=0.5"],
            r"train_size and train_fraction: expected one of them, got train_size = 20 and",
        ),
        (["--data.train_size=null", "--data.train_fraction=0"], r"train_fraction: .* \(0, 1\], got 0"),
        (["--data.train_size=null", "--data.train_fraction=1.5"], r"train_fraction: .* \(0, 1\], got 1.5"),
        (["--data.train_size=null", "--data.train_fraction=-0.1"], r"train_fraction: .* \(0, 1\], got -0.1"),
        (["--population={train_fraction: [0.5]}"], r"train_size and train_fraction: expected one of them"),
        (["--data.train_size=null", "--population={train_fraction: [0.5, 2]}"], r"train_fraction: .* got 2"),
        (["--data.split=symetric"], r"split: .*symmetric.*symetric"),
        (["--data.random_labels=true", "--data.label_noise=0.1"], r"label_noise: random labels .* got 0.1"),
        (
            ["--data.task=SparseParity", "--data.n_held_out=5", "--data.split=symmetric"],
            r"split: symmetric needs a task",
        ),
        (["--data.task=SparseParity"], r"n_held_out: expected a number, as SparseParity does not list"),
        (["--model=MLP", "--model.loss=cross_entropy"], r"expected rows of numbers, got tokens \(torch.int64\)"),
        (["--model.n_tokens=9"], r"model.n_tokens is set by the data"),
    ],
)
def test_a_modular_task_that_cannot_be_is_refused(
    capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert re.search(says, complaint(capsys, "fit", "--config", "modular.yaml", *arguments))


def test_hardware_that_is_not_there_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MPSAccelerator, "is_available", staticmethod(lambda: False))
    assert "MPS" in complaint(capsys, "fit", "--config", "tiny.yaml", "--trainer.accelerator=mps")


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("--trainer.accumulate_grad_batches=2", r"accumulate_grad_batches: .*batch_size"),
        ("--trainer.overfit_batches=2", r"overfit_batches: .*train_size"),
        ("--trainer.gradient_clip_val=1", r"gradient_clip_val: .*members"),
        ("--model.optimizer=torch.optim.LBFGS", r"LBFGS: .*members"),
        ("--model.scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau", r"ReduceLROnPlateau: .*members"),
    ],
)
def test_what_would_train_a_population_wrongly_is_refused_by_name(
    capsys: pytest.CaptureFixture[str], argument: str, says: str
) -> None:
    assert re.search(says, complaint(capsys, "fit", "--config", "tiny.yaml", argument))


@pytest.mark.parametrize(
    "argument",
    [
        "--trainer.gradient_clip_val=1",
        "--model.scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau",
        "--model.optimizer=torch.optim.LBFGS",
    ],
)
def test_what_would_couple_members_is_allowed_to_one_that_is_alone(argument: str) -> None:
    write("seed: [0, 1]", "seed: [0]")
    fit(argument)
    assert last_step() == 8


@pytest.mark.parametrize(
    ("old", "new", "meant"),
    [
        ("MLP", "MPL", "MLP"),
        ("TableData", "TableDate", "TableData"),
        ("SparseParity", "SparseParty", "SparseParity"),
        ("trainer:", "trainer:\n  callbacks: [{class_path: NeuronNormTraker}]", "NeuronNormTracker"),
        ("trainer:", "trainer:\n  callbacks: [{class_path: EarlyStoping}]", "EarlyStopping"),
    ],
)
def test_an_unknown_class_in_a_config_gets_the_nearest_name(
    capsys: pytest.CaptureFixture[str], old: str, new: str, meant: str
) -> None:
    write(old, new)
    said = complaint(capsys, "fit", "--config", "tiny.yaml")
    assert f"did you mean {meant}?" in said
    assert "there is no class" in said


@pytest.mark.parametrize(
    ("argument", "meant"),
    [
        ("--model=MPL", "MLP"),
        ("--data=TablData", "TableData"),
        ("--data.task=SparsParity", "SparseParity"),
        ("--trainer.callbacks+=Onst", "Onset"),
    ],
)
def test_an_unknown_class_that_was_typed_gets_the_nearest_name(
    capsys: pytest.CaptureFixture[str], argument: str, meant: str
) -> None:
    assert f"did you mean {meant}?" in complaint(capsys, "fit", "--config", "tiny.yaml", argument)


@pytest.mark.parametrize(
    ("old", "new", "meant"),
    [
        pytest.param("population:", "populaton:", "population", id="top level"),
        pytest.param("population: {seed: [0, 1]}", "experimnt: x", "experiment", id="top level, a plain value"),
        pytest.param("max_epochs:", "max_epoch:", "max_epochs", id="trainer"),
        pytest.param("hidden:", "hiden:", "hidden", id="model"),
        pytest.param("train_size:", "train_siz:", "train_size", id="data"),
        pytest.param("subset", "subst", "subset", id="task"),
        pytest.param("lr: 0.3", "momentm: 0.3, lr: 0.3", "momentum", id="optimizer"),
        pytest.param("dwell", "dwel", "dwell", id="callback"),
    ],
)
def test_an_unknown_key_of_a_config_gets_the_nearest_name_at_every_level(
    capsys: pytest.CaptureFixture[str], old: str, new: str, meant: str
) -> None:
    text = CONFIG.replace("k: 2}", "k: 2, subset: first}")
    text += "  callbacks: [{class_path: Onset, init_args: {dwell: 3}}]\n"
    assert old in text
    Path("tiny.yaml").write_text(text.replace(old, new))
    assert re.search(rf"did you mean ([\w.]+\.)?{meant}\?", complaint(capsys, "fit", "--config", "tiny.yaml"), re.I)


@pytest.mark.parametrize(
    ("argument", "meant"),
    [
        ("--experimnt=x", "experiment"),
        ("--trainer.max_epoch=3", "max_epochs"),
        ("--trainr.max_epochs=3", "trainer.max_epochs"),
        ("--model.hiden=[4]", "hidden"),
        ("--data.init_args.train_siz=4", "train_size"),
        ("--data.task.kk=4", "k"),
    ],
)
def test_an_unknown_option_gets_the_nearest_name(capsys: pytest.CaptureFixture[str], argument: str, meant: str) -> None:
    said = complaint(capsys, "fit", "--config", "tiny.yaml", argument)
    assert re.search(rf"did you mean ([\w.]+\.)?{meant}\?", said, re.I)


@pytest.mark.parametrize(
    ("population", "says"),
    [
        ("{seed: [0], banana: [1, 2]}", r"nothing here uses .*'banana'.* seed"),
        ("[{seed: 0}, {seed: 0}]", r"\{'seed': 0\} .* more than once"),
        ("{seed: [1, 1]}", r"\{'seed': 1\} .* more than once"),
        ("{seed: []}", r"population: .*'seed' has no values"),
        ("{seed: [-1]}", r"'seed' must be integers of at least 0, got -1"),
        ("{seed: [0], subset_seed: [1, 2]}", r"'subset_seed' needs subset: drawn"),
        ("[{seed: 0}, {seed: 1, train_size: 8}]", r"same coordinates"),
        ("{train_size: [32, 65]}", r"at most .* 64 .* got 65"),
        ("{seed: [a]}", r"population: .*\['?a'?\]"),
    ],
)
def test_an_impossible_population_is_refused(capsys: pytest.CaptureFixture[str], population: str, says: str) -> None:
    write("{seed: [0, 1]}", population)
    assert re.search(says, complaint(capsys, "fit", "--config", "tiny.yaml"))


def test_a_misspelt_config_gets_the_nearest_shipped_one(capsys: pytest.CaptureFixture[str]) -> None:
    said = complaint(capsys, "fit", "--config", "configs/party.yaml")
    assert "configs/party.yaml" in said
    assert "did you mean parity.yaml?" in said


def test_a_config_that_is_like_no_other_gets_the_list_of_those_shipped(capsys: pytest.CaptureFixture[str]) -> None:
    said = complaint(capsys, "fit", "--config=zzz.yaml")
    assert "did you mean" not in said
    assert "parity.yaml" in said


@pytest.mark.parametrize(
    "text", ["model: [unclosed\n  : {", "just words", "- a\n- list", "model: {a: b}: c\n"], ids=repr
)
def test_a_config_that_is_not_one_is_refused(capsys: pytest.CaptureFixture[str], text: str) -> None:
    Path("tiny.yaml").write_text(text)
    assert complaint(capsys, "fit", "--config", "tiny.yaml")


def test_a_binary_file_for_a_config_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Path("tiny.yaml").write_bytes(bytes(range(256)))
    assert complaint(capsys, "fit", "--config", "tiny.yaml")


@pytest.mark.parametrize(
    ("argument", "name", "value"),
    [
        ("--trainer.max_epochs=many", "max_epochs", "many"),
        ("--data.batch_size=few", "batch_size", "few"),
        ("--model.hidden=wide", "hidden", "wide"),
        ("--model.optimizer.lr=fast", "lr", "fast"),
        ("--seed_everything=abc", "seed_everything", "abc"),
    ],
)
def test_a_value_of_the_wrong_type_is_named_with_its_option(
    capsys: pytest.CaptureFixture[str], argument: str, name: str, value: str
) -> None:
    said = complaint(capsys, "fit", "--config", "tiny.yaml", argument)
    assert name in said
    assert value in said
    assert "xpected" in said
    assert "NestedArg" not in said, "an inner word of a library"


def test_a_class_of_the_wrong_kind_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "GrokModule" in complaint(capsys, "fit", "--config", "tiny.yaml", "--model=torch.nn.Linear")


def test_a_layer_that_matches_nothing_is_refused_with_those_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    write("trainer:", "trainer:\n  callbacks: [{class_path: NeuronNormTracker, init_args: {layer: network.hiden.0}}]")
    said = complaint(capsys, "fit", "--config", "tiny.yaml")
    assert "'network.hiden.0'" in said
    assert "network.hidden.0" in said.replace("'network.hiden.0'", "")


def test_a_loss_that_does_not_fit_the_labels_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    write("{class_path: SparseParity, init_args: {n: 6, k: 2}}", "own_things.OnesModuloThree")
    said = complaint(capsys, "fit", "--config", "tiny.yaml", "--data.train_size=8", "--model.loss=hinge")
    assert "hinge: expected labels" in said


def test_an_error_without_a_message_is_still_told(capsys: pytest.CaptureFixture[str]) -> None:
    write("{class_path: SparseParity, init_args: {n: 6, k: 2}}", "own_things.Wordless")
    assert complaint(capsys, "fit", "--config", "tiny.yaml", "--data.train_size=8")


@pytest.mark.parametrize("argument", ["fti", "reprot", "tset", "theroy"])
def test_a_misspelt_subcommand_gets_the_nearest_one(capsys: pytest.CaptureFixture[str], argument: str) -> None:
    meant = {"fti": "fit", "reprot": "report", "tset": "test", "theroy": "theory"}[argument]
    assert f"did you mean {meant}?" in complaint(capsys, argument, "--config", "tiny.yaml")


def test_no_subcommand_at_all_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    said = complaint(capsys)
    assert all(name in said for name in ("fit", "validate", "test", "predict", "report", "theory"))


def test_nothing_to_train_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    said = complaint(capsys, "fit")
    assert "model" in said
    assert "data" in said


def test_a_directory_that_cannot_be_written_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").touch()
    said = complaint(capsys, "fit", "--config", "tiny.yaml", "--trainer.default_root_dir=file/x")
    assert "file/x" in said
    assert "cannot write" in said


@pytest.mark.parametrize(
    "argument", ["--data.train_size=0", "--trainer.gradient_clip_val=1", "--trainer.accelerator=abacus"]
)
@pytest.mark.parametrize("root", ["a/b/c", "existing", "absolute"])
def test_a_failed_start_leaves_no_directory_and_takes_none_away(
    capsys: pytest.CaptureFixture[str], folder: Path, argument: str, root: str
) -> None:
    (folder / "existing").mkdir()
    root = str(folder / "new") if root == "absolute" else root
    assert complaint(capsys, "fit", "--config", "tiny.yaml", argument, f"--trainer.default_root_dir={root}")


def test_a_failed_start_leaves_other_runs_alone(capsys: pytest.CaptureFixture[str]) -> None:
    fit()
    assert complaint(capsys, "fit", "--config", "tiny.yaml", "--trainer.gradient_clip_val=1")
    assert [path.name for path in RUN.parent.iterdir()] == ["version_0"]


# Bad checkpoints


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return io.open, (str(self.path), "w")


def damage(checkpoint: Path, how: str, folder: Path) -> None:
    """Write a checkpoint that is none."""
    match how:
        case "empty":
            checkpoint.write_bytes(b"")
        case "truncated":
            fit("--experiment=donor")
            whole = Path("runs/donor/version_0/checkpoints/last.ckpt").read_bytes()
            checkpoint.write_bytes(whole[: len(whole) // 2])
            shutil.rmtree("runs")
        case "text":
            checkpoint.write_text("hello\n")
        case "other":
            torch.save({"weights": torch.zeros(3)}, checkpoint)
        case "malicious":
            torch.save({"state_dict": {}, "x": Malicious(folder / "executed")}, checkpoint)
        case "malicious pickle":
            checkpoint.write_bytes(pickle.dumps(Malicious(folder / "executed"), protocol=2))
        case "malicious new pickle":
            checkpoint.write_bytes(pickle.dumps(Malicious(folder / "executed"), protocol=4))


@pytest.mark.parametrize("subcommand", ["fit", "validate"])
@pytest.mark.parametrize(
    "how",
    ["missing", "empty", "truncated", "text", "other", "malicious", "malicious pickle", "malicious new pickle"],
)
def test_a_bad_checkpoint_is_told_and_runs_no_code(
    capsys: pytest.CaptureFixture[str], folder: Path, how: str, subcommand: str
) -> None:
    damage(folder / "bad.ckpt", how, folder)
    said = complaint(capsys, subcommand, "--config", "tiny.yaml", "--ckpt_path", "bad.ckpt")
    assert said.startswith("ckpt_path: bad.ckpt: ")
    assert "can still be loaded" not in said, "advice to run foreign code"
    assert not (folder / "executed").exists()


def test_the_malicious_checkpoint_would_create_the_file(folder: Path) -> None:
    """The test above can fail."""
    damage(folder / "bad.ckpt", "malicious", folder)
    torch.load(folder / "bad.ckpt", weights_only=False)["x"].close()
    assert (folder / "executed").exists()


@pytest.mark.parametrize("where", ["elsewhere", "in its run"])
@pytest.mark.parametrize("subcommand", ["fit", "validate"])
def test_a_checkpoint_of_another_network_is_told(
    capsys: pytest.CaptureFixture[str], where: str, subcommand: str
) -> None:
    fit()
    checkpoint = str(LAST)
    if where == "elsewhere":
        checkpoint = shutil.copy(LAST, "copy.ckpt")
    said = complaint(capsys, subcommand, "--config", "tiny.yaml", "--ckpt_path", checkpoint, "--model.hidden=[9]")
    assert "ckpt_path" in said
    assert "network" in said


def test_last_without_a_run_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    said = complaint(capsys, "fit", "--config", "tiny.yaml", "--ckpt_path", "last")
    assert "runs/tiny" in said


# Errors that are not the user's


def test_an_error_in_training_is_a_traceback_and_keeps_what_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    write("trainer:", "trainer:\n  callbacks: [{class_path: own_things.FailsAtStepFive}]")
    with pytest.raises(ValueError, match="five is enough"):
        fit()
    record = read_record(RUN / "records.nc")
    assert record.attrs["status"] == "interrupted"
    assert int(record.attrs["last_step"]) == 5
    assert record["curves"]["step"].values.tolist() == [0, 4]
    assert "error: " not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("--trainer.max_epoch=3", "max_epoch"),
        ("--data.batch_size=0", "batch_size: expected at least 1"),
        ("--trainer.gradient_clip_val=1", "gradient_clip_val: one norm"),
    ],
)
@pytest.mark.parametrize("switch", ["1", "true"])
def test_a_switch_gives_a_traceback_instead(
    monkeypatch: pytest.MonkeyPatch, argument: str, says: str, switch: str
) -> None:
    monkeypatch.setenv("JSONARGPARSE_DEBUG", switch)
    # Of a SystemExit, whatever its cause, Python shows nothing.
    with pytest.raises(Exception, match=says):
        fit(argument)
    assert not Path("runs").exists()


def test_without_the_switch_a_process_prints_no_traceback(folder: Path) -> None:
    command = [sys.executable, "-m", "grok_lightning", "fit", "--config", "tiny.yaml", "--data.batch_size=0"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: batch_size: expected at least 1")


# Good behaviour


def test_the_shipped_config_is_used_from_anywhere_saying_so(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--data.task.n=6", "--data.train_size=8", "--model.hidden=[4]", "--trainer.max_epochs=1"]
    main(["fit", "--config", "configs/parity.yaml", *small, "--trainer.enable_progress_bar=false"])
    assert "using the one shipped" in capsys.readouterr().err
    assert last_step(Path("runs/parity/version_0")) == 1


def test_a_config_that_is_here_goes_before_the_shipped_one(capsys: pytest.CaptureFixture[str]) -> None:
    Path("parity.yaml").write_text(CONFIG)
    main(["fit", "--config=parity.yaml"])
    assert "shipped" not in capsys.readouterr().err
    assert last_step(Path("runs/parity/version_0")) == 8


def test_a_run_leaves_its_config_checkpoint_record_and_events() -> None:
    fit()
    names = {path.name.split(".")[0] for path in RUN.iterdir()}
    assert {"config", "checkpoints", "records", "events"} <= names
    assert LAST.is_file()
    assert read_record(RUN / "records.nc").attrs["status"] == "finished"
    assert [path.name for path in Path().iterdir() if path.suffix != ".yaml"] == ["runs"]


def test_every_fit_gets_a_directory_of_its_own() -> None:
    fit()
    first = contents(RUN)
    fit()
    assert sorted(path.name for path in RUN.parent.iterdir()) == ["version_0", "version_1"]
    assert contents(RUN) == first


def test_the_experiment_can_be_named() -> None:
    fit("--experiment=other")
    assert last_step(Path("runs/other/version_0")) == 8
    assert read_record(Path("runs/other/version_0/records.nc")).attrs["experiment"] == "other"


def test_the_config_that_a_run_leaves_reproduces_it(folder: Path) -> None:
    fit("--data.label_noise=0.1", "--model.optimizer.momentum=0.9")
    shutil.copy(RUN / "config.yaml", "kept.yaml")
    main(["fit", "--config", "kept.yaml"])
    again = Path("runs/kept/version_0")
    assert_same_weights(weights(again), weights())
    fit()
    other = weights(RUN.parent / "version_1")
    assert not all(torch.equal(other[name], value) for name, value in weights().items()), "the arguments mattered"


def test_what_is_typed_goes_before_the_config() -> None:
    fit("--model.hidden=[5]", "--trainer.max_epochs=1", "--data.batch_size=16", "--model.optimizer.lr=0.25")
    assert last_step() == 2
    assert weights()["network.hidden.0.weight"].shape == (2, 5, 6)
    config = yaml.safe_load((RUN / "config.yaml").read_text())
    assert config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 0.25


@pytest.mark.parametrize("argument", ["--model.n_inputs=3", "--model.n_tokens=3", "--model.members={seed: [7, 8]}"])
def test_what_is_set_elsewhere_is_not_taken_and_dropped(capsys: pytest.CaptureFixture[str], argument: str) -> None:
    """The width of a row is the data's, members are the population's: typing another one must not pass unnoticed."""
    assert complaint(capsys, "fit", "--config", "tiny.yaml", argument)


def test_a_loss_can_be_given_by_import_path() -> None:
    fit("--model.loss=own_things.doubled_hinge")
    fit()
    with_it, without = (read_record(RUN.parent / name / "records.nc")["curves"] for name in ("version_0", "version_1"))
    torch.testing.assert_close(
        torch.tensor(with_it["loss"].values[0]), 2 * torch.tensor(without["loss"].values[0]), check_dtype=False
    )


def test_a_task_of_ones_own_can_be_given_by_import_path() -> None:
    write("{class_path: SparseParity, init_args: {n: 6, k: 2}}", "own_things.OnesModuloThree")
    fit("--data.train_size=8", "--model.loss=cross_entropy")
    assert weights()["network.output.weight"].shape == (2, 3, 8)


def test_a_model_is_told_how_many_tokens_there_are() -> None:
    main(["fit", "--config", "modular.yaml"])
    assert weights(MODULAR_RUN)["network.embedding"].shape == (2, 9, 7)
    curves = read_record(MODULAR_RUN / "records.nc")["curves"]
    assert curves["split"].values.tolist() == ["train", "held_out", "held_out_unpaired"]
    assert curves["unpaired_share"].shape == (3, 2)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--data.train_size=null", "--data.train_fraction=1"],
        ["--data.split=symmetric", "--data.random_labels=true"],
        ["--data.task.operation=own_things.twice_minus", "--data.label_noise=0.1"],
        ["--data.train_size=null", "--population={train_fraction: [0.25, 0.5]}"],
    ],
    ids=" ".join,
)
def test_a_modular_task_trains_in_every_way(arguments: list[str]) -> None:
    main(["fit", "--config", "modular.yaml", *arguments])
    assert last_step(MODULAR_RUN) == 2
    accuracy = read_record(MODULAR_RUN / "records.nc")["curves"]["accuracy"].values
    assert not torch.tensor(accuracy[..., 0]).isnan().any()


def test_a_modular_run_goes_on_with_all_its_curves() -> None:
    main(["fit", "--config", "modular.yaml"])
    main(["fit", "--ckpt_path", str(MODULAR_RUN / "checkpoints" / "last.ckpt"), "--trainer.max_epochs=4"])
    curves = read_record(MODULAR_RUN / "records.nc")["curves"]
    assert curves["step"].values.tolist() == [0, 1, 2, 3, 4]
    assert curves["split"].values.tolist() == ["train", "held_out", "held_out_unpaired"]


@pytest.mark.parametrize(
    ("population", "expected"),
    [
        ("{seed: [3, 5], train_size: [8, 16]}", {"seed": [3, 3, 5, 5], "train_size": [8, 16, 8, 16]}),
        ("[{seed: 3, train_size: 8}, {seed: 5, train_size: 16}]", {"seed": [3, 5], "train_size": [8, 16]}),
        ("{seed: 4}", {"seed": [4]}),
        ("null", {"seed": [0]}),
    ],
)
def test_a_population_is_a_product_or_a_list(population: str, expected: dict[str, list[int]]) -> None:
    write("{seed: [0, 1]}", population)
    fit()
    curves = read_record(RUN / "records.nc")["curves"]
    assert {name: curves[name].values.tolist() for name in expected} == expected
    assert len(weights()["network.hidden.0.weight"]) == len(expected["seed"])


def test_fast_dev_run_leaves_nothing_behind(folder: Path) -> None:
    before = contents(folder)
    fit("--trainer.fast_dev_run=2")
    assert contents(folder) == before


def test_several_loggers_work() -> None:
    Path("tiny.yaml").write_text(
        CONFIG
        + """
  logger:
    - {class_path: CSVLogger, init_args: {save_dir: logs, name: csv}}
    - {class_path: TensorBoardLogger, init_args: {save_dir: logs, name: board}}
"""
    )
    fit()
    (table,) = Path("logs/csv").rglob("metrics.csv")
    assert "val/accuracy" in table.read_text()
    assert events_of(Path("logs/board/version_0")) == [0, 4, 8]


def test_a_run_without_logger_works() -> None:
    fit("--trainer.logger=false")
    assert last_step() == 8
    assert not list(RUN.rglob("events*"))


def test_early_stopping_and_checkpoints_by_held_out_accuracy_work() -> None:
    Path("tiny.yaml").write_text(
        CONFIG
        + """
  callbacks:
    - {class_path: EarlyStopping, init_args: {monitor: val/accuracy, mode: max, patience: 2, min_delta: 1.0}}
    - class_path: ModelCheckpoint
      init_args: {monitor: val/accuracy, mode: max, filename: best, auto_insert_metric_name: false}
"""
    )
    fit("--trainer.max_epochs=20")
    assert last_step() == 12, "three validations without a gain of 1"
    (best,) = Path().rglob("best.ckpt")
    saved = int(torch.load(best, weights_only=True)["global_step"])
    curves = read_record(RUN / "records.nc")["curves"]
    means = curves["accuracy"].sel(split="held_out").mean("member")
    assert float(means.sel(step=saved)) == float(means.sel(step=[4, 8, 12]).max())


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["fit", "--help"], ["report", "--help"], ["theory", "--help"], ["theory", "lemma_d2", "-h"]],
    ids=" ".join,
)
def test_help_is_help(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert exit_code(*arguments) == 0
    output = capsys.readouterr()
    assert "usage" in output.out
    assert not output.err


def test_the_general_help_names_every_subcommand(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(name in text for name in ("fit", "validate", "test", "predict", "report", "theory"))


def test_a_printed_config_is_one_that_trains(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        fit("--print_config")
    assert stopped.value.code in (0, None)
    printed = capsys.readouterr().out
    assert not Path("runs").exists()
    fit()
    Path("printed.yaml").write_text(printed)
    main(["fit", "--config", "printed.yaml"])
    assert_same_weights(weights(Path("runs/printed/version_0")), weights())


def test_classes_can_be_named_without_their_modules() -> None:
    Path("tiny.yaml").unlink()
    arguments = "{layer: network.hidden.0, schedule: {class_path: EveryNSteps, init_args: {n: 4}}}"
    main(
        [
            "fit",
            "--model=MLP",
            "--model.hidden=[8]",
            "--model.optimizer=Adam",
            "--data=TableData",
            "--data.task=SparseParity",
            "--data.task.n=6",
            "--data.train_size=32",
            "--trainer.max_epochs=1",
            "--trainer.enable_progress_bar=false",
            f"--trainer.callbacks=[{{class_path: NeuronNormTracker, init_args: {arguments}}}]",
        ]
    )
    assert "neuron_norms" in read_record(Path("runs/mlp/version_0/records.nc")).children


def test_automatic_choice_never_takes_a_device_without_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(MPSAccelerator, "is_available", staticmethod(lambda: True))
    fit("--trainer.accelerator=auto")
    assert read_record(RUN / "records.nc").attrs["accelerator"] != "MPSAccelerator"


def test_a_device_that_cannot_work_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "float64" in complaint(capsys, "fit", "--config", "tiny.yaml", "--trainer.accelerator=mps")


def test_sigterm_finishes_the_step_saves_and_says_so_in_the_exit_code() -> None:
    command = [sys.executable, "-m", "grok_lightning", "fit", "--config", "tiny.yaml", "--trainer.max_epochs=100000"]
    run = subprocess.Popen([*command, "--trainer.enable_progress_bar=true"], stderr=subprocess.PIPE, text=True)
    try:
        assert any(line.startswith("step") for line in run.stderr)  # ends at the first such line
        run.terminate()
        _, said = run.communicate(timeout=120)
    finally:
        run.kill()
    assert run.returncode == 128 + 15
    assert "to go on:" in said
    assert read_record(RUN / "records.nc").attrs["status"] == "interrupted"
    assert torch.load(LAST, weights_only=True)["global_step"] == read_record(RUN / "records.nc").attrs["last_step"]


def test_a_run_in_forked_processes_is_kept() -> None:
    """Training begins in children there; the parent must not take the run for one that never did."""
    arguments = ["--trainer.strategy=ddp_fork", "--trainer.devices=2", "--trainer.accelerator=cpu"]
    command = [sys.executable, "-W", "ignore", "-m", "grok_lightning", "fit", "--config", "tiny.yaml", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert last_step() == 8
    assert (RUN / "report.html").is_file()


# Going on


def test_typed_arguments_win_over_the_checkpoint() -> None:
    fit()
    fit("--ckpt_path", str(LAST), "--model.optimizer.lr=0.01", "--trainer.max_epochs=3")
    checkpoint = torch.load(LAST, weights_only=True)
    assert checkpoint["global_step"] == 12
    assert checkpoint["hyper_parameters"]["optimizer"]["init_args"]["lr"] == 0.01
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] == 0.01


def test_other_rows_than_the_checkpoints_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    fit("--population={seed: [0, 1], data_seed: 5}")
    arguments = ["--ckpt_path", str(LAST), "--population={seed: [0, 1], data_seed: 6}", "--trainer.max_epochs=3"]
    assert "data_seed [5, 5], not [6, 6]" in complaint(capsys, "fit", "--config", "tiny.yaml", *arguments)


def test_scheduler_arguments_that_are_typed_win_over_the_checkpoint() -> None:
    scheduler = "--model.scheduler=torch.optim.lr_scheduler.StepLR"
    fit(scheduler, "--model.scheduler.step_size=2")
    fit("--ckpt_path", str(LAST), scheduler, "--model.scheduler.step_size=5", "--trainer.max_epochs=3")
    assert torch.load(LAST, weights_only=True)["lr_schedulers"][0]["step_size"] == 5


@pytest.mark.parametrize("there", [True, False])
def test_another_scheduler_than_the_checkpoints_is_refused(capsys: pytest.CaptureFixture[str], there: bool) -> None:
    scheduler = ["--model.scheduler=torch.optim.lr_scheduler.ConstantLR"]
    fit(*(scheduler if there else []))
    arguments = ["--ckpt_path", str(LAST), "--trainer.max_epochs=3", *([] if there else scheduler)]
    assert "was trained with scheduler" in complaint(capsys, "fit", "--config", "tiny.yaml", *arguments)


def test_the_config_of_a_continued_run_repeats_it_from_the_start() -> None:
    fit()
    fit("--ckpt_path", str(LAST), "--trainer.max_epochs=3")
    continued = weights()
    main(["fit", "--config", str(RUN / "config.yaml")])
    assert_same_weights(weights(RUN.parent / "version_1"), continued)


@pytest.mark.parametrize("way", [["fit", "--trainer.fast_dev_run=2"], ["validate", "--ckpt_path", str(LAST)]])
def test_a_config_that_stops_after_an_onset_works_everywhere(way: list[str]) -> None:
    stop = "--trainer.callbacks+=StopAfterOnset"
    fit(stop)
    main([*way, "--config", "tiny.yaml", stop])


def test_other_members_than_the_checkpoints_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    fit()
    arguments = ["--ckpt_path", str(LAST), "--population={seed: [0, 7]}", "--trainer.max_epochs=3"]
    said = complaint(capsys, "fit", "--config", "tiny.yaml", *arguments)
    assert "seed [0, 1], not [0, 7]" in said


def test_a_width_that_is_typed_is_not_silently_that_of_the_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    fit()
    arguments = ["--ckpt_path", str(LAST), "--model.hidden=[9]", "--trainer.max_epochs=3"]
    said = complaint(capsys, "fit", "--config", "tiny.yaml", *arguments)
    assert "9" in said


@pytest.mark.parametrize(
    ("named", "checkpoint"),
    [
        pytest.param(["--config", "tiny.yaml"], "last", id="last"),
        pytest.param(["--config", "tiny.yaml"], str(RUN), id="the run, with a config"),
        pytest.param(["--config", "tiny.yaml"], str(RUN.parent), id="the experiment, with a config"),
        pytest.param(["--config", "tiny.yaml"], str(LAST), id="the file, with a config"),
        pytest.param([], str(RUN), id="the run alone"),
        pytest.param([], str(LAST), id="the file alone"),
    ],
)
def test_a_run_is_continued_in_its_own_directory(named: list[str], checkpoint: str) -> None:
    fit("--trainer.max_epochs=4")
    whole = weights()
    shutil.rmtree("runs")
    fit()
    main(["fit", *named, "--ckpt_path", checkpoint, "--trainer.max_epochs=4"])
    assert [path.name for path in RUN.parent.iterdir()] == ["version_0"]
    assert last_step() == 16
    assert read_record(RUN / "records.nc")["curves"]["step"].values.tolist() == [0, 4, 8, 12, 16]
    assert_same_weights(weights(), whole)


def test_the_whole_experiment_is_named_and_its_newest_run_is_continued_without_a_config() -> None:
    fit()
    fit()
    main(["fit", "--ckpt_path", str(RUN.parent), "--trainer.max_epochs=4"])
    assert last_step(RUN) == 8
    assert last_step(RUN.parent / "version_1") == 16


def test_a_truncated_newest_checkpoint_is_passed_over_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    fit()
    broken = LAST.with_name("newer.ckpt")
    broken.write_bytes(LAST.read_bytes()[:999])
    os.utime(broken, ns=(LAST.stat().st_mtime_ns + 10**9,) * 2)
    notes: list[str] = []
    monkeypatch.setattr(checkpoints, "rank_zero_info", notes.append)
    fit("--ckpt_path", "last", "--trainer.max_epochs=3")
    assert last_step() == 12
    assert any("newer.ckpt" in note for note in notes)


def test_a_checkpoint_from_elsewhere_starts_a_new_run() -> None:
    fit()
    shutil.copy(LAST, "copy.ckpt")
    before = contents(RUN)
    fit("--ckpt_path=copy.ckpt", "--trainer.max_epochs=3")
    assert contents(RUN) == before
    assert last_step(RUN.parent / "version_1") == 12


def events_of(directory: Path, tag: str = "val/accuracy") -> list[int]:
    """Return the steps at which TensorBoard shows a scalar."""
    events = EventAccumulator(str(directory), size_guidance={"scalars": 0})
    events.Reload()
    return [event.step for event in events.Scalars(tag)]


def test_events_have_the_steps_of_the_record_after_a_resume_too() -> None:
    callback = "{class_path: ModelCheckpoint, init_args: {filename: '{step}', auto_insert_metric_name: false,"
    Path("tiny.yaml").write_text(CONFIG + f"  callbacks: [{callback} every_n_train_steps: 1, save_top_k: -1}}}}]\n")
    fit("--trainer.max_epochs=4")
    assert events_of(RUN) == [0, 4, 8, 12, 16]
    # From the middle: what was logged beyond it is written anew.
    fit("--ckpt_path", str(RUN / "checkpoints" / "6.ckpt"), "--trainer.max_epochs=5")
    steps = events_of(RUN)
    assert steps == [0, 4, 8, 12, 16, 20]
    assert steps == read_record(RUN / "records.nc")["curves"]["step"].values.tolist()


@pytest.mark.parametrize("config", [True, False], ids=["config named", "config of the run"])
@pytest.mark.parametrize(("subcommand", "metric"), [("validate", "val/accuracy"), ("test", "test/accuracy")])
def test_a_checkpoint_can_be_evaluated_and_nothing_is_written(
    capsys: pytest.CaptureFixture[str], folder: Path, subcommand: str, metric: str, config: bool
) -> None:
    fit()
    before = contents(folder)
    capsys.readouterr()
    main([subcommand, *(["--config", "tiny.yaml"] if config else []), "--ckpt_path", str(LAST)])
    printed = capsys.readouterr().out
    assert contents(folder) == before
    shown = re.search(rf"{metric}\D+(\d\.\d+)", printed)
    assert shown, printed
    final = read_record(RUN / "records.nc")["curves"]["accuracy"].sel(split="held_out")[-1].mean()
    assert float(shown[1]) == pytest.approx(float(final), abs=1e-6)


def test_a_checkpoint_can_predict_and_nothing_is_written(folder: Path) -> None:
    fit()
    before = contents(folder)
    main(["predict", "--config", "tiny.yaml", "--ckpt_path", str(LAST)])
    assert contents(folder) == before


def test_testing_without_held_out_rows_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    said = complaint(capsys, "test", "--config", "tiny.yaml", "--data.n_held_out=0")
    assert "held-out" in said


def test_no_epoch_at_all_is_no_run(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    before = contents(folder)
    if exit_code("fit", "--config", "tiny.yaml", "--trainer.max_epochs=0") != 0:
        assert capsys.readouterr().err.startswith("error: ")
    assert contents(folder) == before


# The report


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return the list of the directories that a report was written for."""
    directories: list[Path] = []

    def write_report(record: object, directory: Path) -> Path:
        directories.append(Path(directory).resolve())
        return Path(directory) / "report.html"

    monkeypatch.setattr(report, "write_report", write_report)
    return directories


def test_report_takes_the_newest_run_or_the_one_that_is_named(
    capsys: pytest.CaptureFixture[str], drawn: list[Path]
) -> None:
    fit("--experiment=b")
    fit("--experiment=a")
    older, newer = Path("runs/b/version_0").resolve(), Path("runs/a/version_0").resolve()
    os.utime(older / "records.nc", (1, 1)), os.utime(older / "config.yaml", (1, 1))
    assert drawn == [older, newer], "fit ends with the report"
    capsys.readouterr()
    main(["report"])
    assert capsys.readouterr().out.strip().endswith("version_0/report.html")
    main(["report", "runs/b/version_0"])
    main(["report", "runs/b"])
    assert drawn[2:] == [newer, older, older]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "no run in runs"),
        (["nonsense"], "no run in nonsense"),
        (["tiny.yaml"], "no run in tiny.yaml"),
        (["--experiment=x"], "--experiment"),
    ],
    ids=str,
)
def test_report_without_a_run_is_told(capsys: pytest.CaptureFixture[str], arguments: list[str], says: str) -> None:
    assert says in complaint(capsys, "report", *arguments)


def made_run(directory: str, **attributes: object) -> Path:
    """Write a record as a run leaves it, without the run."""
    Path(directory).mkdir(parents=True)
    write_record(
        build_record([], None, {"status": "finished", "last_step": 4, **attributes}), Path(directory, "records.nc")
    )
    return Path(directory)


def test_report_of_several_runs_is_a_page_beside_their_experiments(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    fit("--experiment=a")
    fit("--experiment=b", "--data.batch_size=16")
    before = contents(folder)
    capsys.readouterr()
    main(["report", "runs/a", "runs/b/version_0"])
    page = folder / "runs" / "compared" / "a+b" / "report.html"
    assert capsys.readouterr().out.strip() == str(page)
    text = page.read_text(encoding="utf-8")
    assert "<h1>a + b</h1>" in text
    assert "<h2>a</h2>" in text
    assert "optimizer step" not in text  # Which is in the picture: epochs of 4 and of 2 steps have no common clock.
    assert "Configuration of b" in text
    assert [path.name for path in (page.parent / "figures").iterdir()] == ["curves.png"]
    assert {name: content for name, content in contents(folder).items() if "compared" not in name} == before
    # A page of several runs is none itself.
    main(["report"])
    assert capsys.readouterr().out.strip() == "runs/b/version_0/report.html"


@pytest.mark.parametrize(
    ("runs_given", "labels", "name"),
    [
        (["runs/a/version_0", "runs/b/version_3"], ["a", "b"], "a+b"),
        (["runs/a/version_0", "runs/a/version_1"], ["a/version_0", "a/version_1"], "a-version_0+a-version_1"),
        (["runs/b/version_3", "runs/a/version_0", "runs/a/version_1"], ["b", "a/version_0", "a/version_1"], None),
    ],
    ids=["experiments", "versions", "three"],
)
def test_runs_are_labelled_by_what_tells_them_apart(
    monkeypatch: pytest.MonkeyPatch, folder: Path, runs_given: list[str], labels: list[str], name: str | None
) -> None:
    for i, directory in enumerate(runs_given):
        made_run(directory, last_step=i)
    drawn: list[tuple[list[tuple[str, int]], str, Path]] = []

    def write_comparison(records: dict[str, DataTree], joined: DataTree, directory: Path) -> Path:
        steps = [(label, record.attrs["last_step"]) for label, record in records.items()]
        drawn.append((steps, joined.attrs["experiment"], directory))
        return directory

    monkeypatch.setattr(report, "write_comparison", write_comparison)
    main(["report", *runs_given])
    monkeypatch.chdir(runs_given[0])
    main(["report", ".", *(str(folder / run) for run in runs_given[1:])])
    [(steps, experiment, directory), again] = drawn
    assert steps == [(label, i) for i, label in enumerate(labels)]
    assert experiment == " + ".join(labels)
    assert directory == folder / "runs" / "compared" / (name or "b+a-version_0+a-version_1")
    assert again == (steps, experiment, directory)


def test_runs_of_one_name_in_different_folders_are_labelled_by_their_paths(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    made_run("here/a/version_0"), made_run("there/a/version_0")
    main(["report", "here", "there"])
    label = str(folder).replace("/", "-")
    page = Path(f"here/compared/{label}-here-a-version_0+{label}-there-a-version_0/report.html")
    assert page.is_file()
    assert str(page) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["runs/a", "runs/a/version_0"], "report: runs/a/version_0 is given twice"),
        (["runs/a", "runs/b", "link"], "link is given twice"),
        (["runs/a", "nonsense"], "no run in nonsense"),
        (["runs/compared", "runs/a"], "no run in runs/compared"),
        (["runs/a", "runs/c"], "no record"),
    ],
    ids=str,
)
def test_runs_that_cannot_be_compared_are_told(
    capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    made_run("runs/a/version_0"), made_run("runs/b/version_0")
    Path("link").symlink_to("runs/b/version_0")
    Path("runs/compared/version_0+version_1").mkdir(parents=True)
    Path("runs/compared/version_0+version_1/report.html").write_text("")
    Path("runs/c/version_0").mkdir(parents=True)
    Path("runs/c/version_0/config.yaml").write_text(CONFIG)
    assert says in complaint(capsys, "report", *arguments)


def test_report_says_how_it_is_used(capsys: pytest.CaptureFixture[str]) -> None:
    main(["report", "--help"])
    said = capsys.readouterr().out
    assert "report [RUN ...]" in said
    assert "several runs" in said


@pytest.mark.parametrize("content", [b"", b"no netCDF"], ids=["empty", "not a record"])
def test_report_of_a_damaged_record_is_told(capsys: pytest.CaptureFixture[str], content: bytes) -> None:
    RUN.mkdir(parents=True)
    (RUN / "records.nc").write_bytes(content)
    assert "records.nc" in complaint(capsys, "report")


def test_report_of_a_run_that_has_measured_nothing_yet_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    RUN.mkdir(parents=True)
    (RUN / "config.yaml").write_text(CONFIG)
    assert "no record" in complaint(capsys, "report")


# Ctrl-C


class Lines(threading.Thread):
    """Reads a stream to its end; ``seen`` is set when a line with ``text`` has come."""

    def __init__(self, stream: io.TextIOBase, text: str) -> None:
        super().__init__(daemon=True)
        self.stream = stream
        self.text = text
        self.lines: list[str] = []
        self.seen = threading.Event()
        self.start()

    def run(self) -> None:
        for line in self.stream:
            self.lines.append(line)
            if self.text in line:
                self.seen.set()


def test_one_interrupt_ends_a_run_from_where_it_goes_on_exactly(folder: Path) -> None:
    steps = 3000
    arguments = [
        "--trainer.max_epochs=-1",
        f"--trainer.max_steps={steps}",
        "--trainer.check_val_every_n_epoch=100",
        "--data.label_noise=0.2",
    ]
    fit(*arguments, "--experiment=whole")
    command = [sys.executable, "-m", "grok_lightning", "fit", "--config", "tiny.yaml", *arguments]
    command += ["--trainer.enable_progress_bar=true"]
    with subprocess.Popen(
        command, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True
    ) as process:
        try:
            output = Lines(process.stderr, f"/{steps}  ")
            assert output.seen.wait(120), "".join(output.lines)
            process.send_signal(signal.SIGINT)
            process.wait(120)
            output.join(60)
        finally:
            process.kill()
    said = "".join(output.lines)
    assert "Traceback" not in said, said
    resume = re.search(r"to go on: (.+)$", said, re.MULTILINE)
    assert resume, said
    record = read_record(RUN / "records.nc")
    stopped = int(record.attrs["last_step"])
    assert record.attrs["status"] == "interrupted"
    assert 0 < stopped < steps
    assert int(torch.load(LAST, weights_only=True)["global_step"]) == stopped
    # What it said is done to the letter.
    words = resume[1].split()
    assert words[:3] == ["python", "-m", "grok_lightning"]
    main(words[3:])
    assert_same_weights(weights(), weights(Path("runs/whole/version_0")))
    assert read_record(RUN / "records.nc").attrs["status"] == "finished"


def margins_of(run: Path = RUN) -> dict[str, float]:
    return json.loads(read_record(run / "records.nc").attrs["margins"])


def test_margins_are_in_the_record_and_cannot_be_changed_afterwards(capsys: pytest.CaptureFixture[str]) -> None:
    fit("--margins", "{width: 3}")
    assert margins_of()["width"] == 3
    assert margins_of()["slope"] == 0.1, "the others are written out too"
    last = str(RUN / "checkpoints" / "last.ckpt")
    found = complaint(capsys, "fit", "--ckpt_path", last, "--trainer.max_epochs=9", "--margins", "{width: 8}")
    assert "margins: are written down before a run begins" in found
    main(["fit", "--ckpt_path", last, "--trainer.max_epochs=9"])
    assert margins_of()["width"] == 3


def test_margins_cannot_be_added_when_results_are_there(capsys: pytest.CaptureFixture[str]) -> None:
    fit()
    last = str(RUN / "checkpoints" / "last.ckpt")
    assert "margins" not in read_record(RUN / "records.nc").attrs
    found = complaint(capsys, "fit", "--ckpt_path", last, "--trainer.max_epochs=9", "--margins", "{width: 8}")
    assert "those of this one are None" in found


@pytest.mark.parametrize(
    ("margins", "says"),
    [
        ("{widht: 3}", "'widht' is none of .*did you mean width"),
        ("{width: 0.5}", "margins: expected 'width', a ratio of sizes, above 1, got 0.5"),
    ],
)
def test_margins_that_make_no_sense_are_refused(capsys: pytest.CaptureFixture[str], margins: str, says: str) -> None:
    assert re.search(says, complaint(capsys, "fit", "--config", "tiny.yaml", "--margins", margins))


def test_numbers_too_small_to_matter_do_not_slow_training_down() -> None:
    """With denormal numbers a CPU computes several times slower; trained networks have gradients full of them."""
    tiny = torch.tensor(1e-39)
    assert float(tiny * 1) != 0
    fit()
    assert float(tiny * 1) == 0
