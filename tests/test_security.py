"""What runs no code: a malicious file in every place where one is read, of which nothing is executed.

Each file makes a directory when it is read carelessly, which is tested, too.
"""

import os
import pickle
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import yaml

from grok_callbacks import NeuronNormTracker, Snapshots
from grok_lightning import MLP, AtomicCheckpointIO, LotteryTicket, SparseParity, TableData, report
from grok_lightning.checkpoints import (
    checkpoint_fault,
    newest_checkpoint,
    read_checkpoint,
    step_of_checkpoint,
    usable_checkpoint,
)
from grok_lightning.cli import main
from grok_lightning.modules.warm_start import read_warm_start
from grok_lightning.records import read_record
from grok_lightning.runs import open_run

CONFIG = """
model:
  class_path: MLP
  init_args: {hidden: [8]}
data:
  class_path: TableData
  init_args:
    task: {class_path: SparseParity, init_args: {n: 6, k: 2}}
    train_size: 32
    batch_size: 8
population: {seed: [0, 1]}
trainer:
  max_epochs: 1
  enable_progress_bar: false
  callbacks:
    - {class_path: WeightTrajectory, init_args: {schedule: {class_path: EveryNSteps, init_args: {n: 2}}}}
    - {class_path: SubnetworkComparison, init_args: {layer: network.hidden.0, next_layer: network.output}}
"""
RUN = Path("runs/tiny/version_0")
LAST = RUN / "checkpoints" / "last.ckpt"
WEIGHTS = RUN / "weights" / "step_0000000002.pt"
LAYERS = ("network.hidden.0", "network.output")
MEMBERS = {"seed": [0, 1]}


class Malicious:
    """Makes a directory when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.path),)


def poison_archive(path: Path, executed: Path) -> None:
    """Write what torch writes, as whole as the file that was there, with one thing more in it."""
    content = torch.load(path, weights_only=True) if path.suffix in (".ckpt", ".pt") else {"state_dict": {}}
    torch.save(content | {"x": Malicious(executed)}, path)


def poison_hyper_parameters(path: Path, executed: Path) -> None:
    """Write it where a checkpoint has plain values."""
    content = torch.load(path, weights_only=True) if path.suffix in (".ckpt", ".pt") else {"state_dict": {}}
    content["hyper_parameters"] = {"hidden": Malicious(executed)}
    torch.save(content, path)


def poison_old_archive(path: Path, executed: Path) -> None:
    """Write what torch wrote before 1.6."""
    torch.save({"state_dict": {}, "x": Malicious(executed)}, path, _use_new_zipfile_serialization=False)


def poison_pickle(path: Path, executed: Path) -> None:
    path.write_bytes(pickle.dumps(Malicious(executed), protocol=2))


def poison_new_pickle(path: Path, executed: Path) -> None:
    path.write_bytes(pickle.dumps(Malicious(executed), protocol=5))


POISONS = (poison_archive, poison_hyper_parameters, poison_old_archive, poison_pickle, poison_new_pickle)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a finished run of four steps."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write_report", lambda record, directory: directory / "report.html")
        patch.setattr(sys, "argv", ["grok"])
        patch.chdir(folder)
        (folder / "tiny.yaml").write_text(CONFIG)
        main(["fit", "--config", "tiny.yaml"])
        # More than one, so that there is something to pass over to.
        shutil.copy(LAST, LAST.with_name("4.ckpt"))
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a copy of it."""
    monkeypatch.setattr(sys, "argv", ["grok"])
    monkeypatch.delenv("JSONARGPARSE_DEBUG", raising=False)
    folder = shutil.copytree(finished, tmp_path / "work")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def executed(tmp_path: Path) -> Path:
    """Return the directory that malicious files make."""
    return tmp_path / "executed"


def poison_checkpoints(how: Callable[[Path, Path], None], executed: Path) -> None:
    paths = [*(RUN / "checkpoints").glob("*.ckpt")]
    assert len(paths) >= 2
    for path in paths:
        how(path, executed)


def poison_weights(how: Callable[[Path, Path], None], executed: Path) -> None:
    paths = [*(RUN / "weights").glob("*.pt")]
    assert len(paths) == 3
    for path in paths:
        how(path, executed)


def refused_by(*arguments: str) -> Callable[[], None]:
    """Return what has the command line refuse these arguments."""

    def call() -> None:
        with pytest.raises(SystemExit) as stopped:
            main([*arguments])
        assert stopped.value.code == 2

    return call


def raises(kind: type[Exception], call: Callable[[], object]) -> Callable[[], None]:
    def calling() -> None:
        with pytest.raises(kind):
            call()

    return calling


def module() -> MLP:
    return MLP(n_inputs=6, hidden=[8], members=MEMBERS)


def data() -> TableData:
    return TableData(SparseParity(6, 2), train_size=32, batch_size=8, members=MEMBERS)


def snapshots() -> Snapshots:
    return Snapshots(RUN / "weights")


# Those files are dangerous


@pytest.mark.parametrize("how", POISONS)
def test_a_careless_reader_would_run_the_code_of_a_checkpoint_or_of_weights(folder, executed, how):
    for path in (LAST, WEIGHTS):
        how(path, executed)
        assert not executed.exists()
        if how is poison_new_pickle:
            pickle.loads(path.read_bytes())
        else:
            with suppress(RuntimeError):  # afterwards torch may notice that it is no archive
                torch.load(path, weights_only=False)
        assert executed.is_dir()
        executed.rmdir()


def test_a_careless_reader_would_run_the_code_of_a_record(folder, executed):
    poison_pickle(RUN / "records.nc", executed)
    pickle.loads((RUN / "records.nc").read_bytes())
    assert executed.is_dir()


def test_a_careless_reader_would_run_the_code_of_a_configuration(folder, executed):
    poison_config(RUN / "config.yaml", executed, "top")
    yaml.unsafe_load((RUN / "config.yaml").read_text())
    assert executed.is_dir()


# Checkpoints


ANEW = ("--config", "tiny.yaml", "--trainer.max_epochs=2")
CHECKPOINT_READERS: dict[str, Callable[[], object]] = {
    "fit, a file": refused_by("fit", *ANEW, "--ckpt_path", str(LAST)),
    "fit, a file, weights_only false": refused_by("fit", *ANEW, "--ckpt_path", str(LAST), "--weights_only=false"),
    "fit, a file, the run's config": refused_by("fit", "--ckpt_path", str(LAST)),
    "fit, another file": refused_by("fit", *ANEW, "--ckpt_path", str(LAST.with_name("4.ckpt"))),
    "fit, last": refused_by("fit", *ANEW, "--ckpt_path", "last"),
    "fit, the run": refused_by("fit", "--ckpt_path", str(RUN)),
    "fit, the experiment": refused_by("fit", *ANEW, "--ckpt_path", str(RUN.parent)),
    "validate": refused_by("validate", *ANEW, "--ckpt_path", str(LAST)),
    "test": refused_by("test", *ANEW, "--ckpt_path", str(LAST)),
    "predict": refused_by("predict", *ANEW, "--ckpt_path", str(LAST)),
    "warm_start, a file": refused_by("fit", *ANEW, f"--model.init_args.warm_start={LAST}"),
    "warm_start, the run": refused_by("fit", *ANEW, f"--model.init_args.warm_start={RUN}"),
    "read_warm_start": raises(ValueError, lambda: read_warm_start(str(LAST), MEMBERS)),
    "Run.network": raises(FileNotFoundError, lambda: open_run(RUN).network()),
    "Run.network, a step": raises(FileNotFoundError, lambda: open_run(RUN).network(step=2)),
    "Run.measure": raises(FileNotFoundError, lambda: open_run(RUN).measure(NeuronNormTracker(LAYERS[0]))),
    "checkpoint_fault": lambda: checkpoint_fault(LAST) or pytest.fail("it is none"),
    "newest_checkpoint": raises(FileNotFoundError, lambda: newest_checkpoint(RUN)),
    "usable_checkpoint": raises(ValueError, lambda: usable_checkpoint(LAST)),
    "read_checkpoint": raises(ValueError, lambda: read_checkpoint(LAST)),
    "step_of_checkpoint": raises(ValueError, lambda: step_of_checkpoint(LAST)),
    "AtomicCheckpointIO": raises(ValueError, lambda: AtomicCheckpointIO().load_checkpoint(LAST)),
    "AtomicCheckpointIO, None": raises(ValueError, lambda: AtomicCheckpointIO().load_checkpoint(LAST, None, None)),
    "load_from_checkpoint": raises(Exception, lambda: MLP.load_from_checkpoint(LAST)),
    "report": lambda: main(["report", str(RUN)]),
}


@pytest.mark.parametrize("reader", CHECKPOINT_READERS)
@pytest.mark.parametrize("how", [poison_archive, poison_pickle])
def test_reading_a_checkpoint_runs_no_code_of_it(folder, executed, monkeypatch, capsys, reader, how):
    monkeypatch.setattr(report, "write_report", lambda record, directory: directory / "report.html")
    poison_checkpoints(how, executed)
    CHECKPOINT_READERS[reader]()
    assert not executed.exists()
    assert "can still be loaded" not in capsys.readouterr().err, "advice to run foreign code"


@pytest.mark.parametrize("how", POISONS)
def test_no_kind_of_pickle_in_a_checkpoint_is_run(folder, executed, how):
    poison_checkpoints(how, executed)
    assert checkpoint_fault(LAST) is not None
    with pytest.raises(ValueError, match=r"last\.ckpt: the file"):
        AtomicCheckpointIO().load_checkpoint(LAST)
    assert not executed.exists()


@pytest.mark.parametrize("plugins", [[AtomicCheckpointIO()], None], ids=["ours", "Lightning's"])
@pytest.mark.parametrize("how", [poison_archive, poison_hyper_parameters, poison_pickle])
@pytest.mark.parametrize("call", ["fit", "validate"])
def test_a_script_that_goes_on_from_a_checkpoint_runs_no_code_of_it(folder, executed, make_trainer, plugins, how, call):
    poison_checkpoints(how, executed)
    trainer = make_trainer(max_epochs=2, plugins=plugins)
    with pytest.raises((ValueError, pickle.UnpicklingError)):
        getattr(trainer, call)(module(), datamodule=data(), ckpt_path=LAST)
    assert not executed.exists()


def test_only_an_explicit_word_lets_the_plugin_run_code(folder, executed, monkeypatch):
    # By which torch is told to run it wherever nobody says otherwise.
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    poison_archive(LAST, executed)
    with pytest.raises(ValueError, match="more than tensors"):
        AtomicCheckpointIO().load_checkpoint(LAST)
    assert not executed.exists()
    monkeypatch.delenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
    assert AtomicCheckpointIO().load_checkpoint(LAST, weights_only=False)["x"] is None
    assert executed.is_dir()


@pytest.mark.parametrize("address", ["http://localhost:9/last.ckpt", "https://example.org/last.ckpt"])
def test_nothing_is_fetched(folder, address):
    """Lightning would, and would run the code of what it gets."""
    for given in (f"--ckpt_path={address}", f"--model.init_args.warm_start={address}"):
        refused_by("fit", *ANEW, given)()
    with pytest.raises(ValueError, match="expected a local file"):
        AtomicCheckpointIO().load_checkpoint(address)


# Weights of earlier steps


def train_ticket(make_trainer: Callable) -> None:
    trainer = make_trainer(max_epochs=1, callbacks=[LotteryTicket(*LAYERS, run=str(RUN))])
    trainer.fit(module(), datamodule=data())


WEIGHT_READERS: dict[str, Callable[[], object]] = {
    "Snapshots": raises(ValueError, lambda: snapshots()[2]),
    "Run.network": raises(ValueError, lambda: open_run(RUN).network(step=2)),
    "Run.measure": raises(ValueError, lambda: open_run(RUN).measure(NeuronNormTracker(LAYERS[0]))),
    # It looks back when training ends.
    "fit, going on": raises(ValueError, lambda: main(["fit", "--ckpt_path", str(RUN), "--trainer.max_epochs=2"])),
}


@pytest.mark.parametrize("reader", WEIGHT_READERS)
@pytest.mark.parametrize("how", [poison_archive, poison_pickle])
def test_reading_weights_runs_no_code_of_them(folder, executed, reader, how):
    poison_weights(how, executed)
    WEIGHT_READERS[reader]()
    assert not executed.exists()


@pytest.mark.parametrize("how", POISONS)
def test_no_kind_of_pickle_in_weights_is_run(folder, executed, how):
    poison_weights(how, executed)
    with pytest.raises(ValueError, match=r"step_0000000002\.pt cannot be read"):
        snapshots()[2]
    assert not executed.exists()


@pytest.mark.parametrize("what", ["weights", "record", "checkpoints", "configuration"])
def test_a_lottery_ticket_runs_no_code_of_its_source(folder, executed, make_trainer, what):
    fill_sets()
    train_ticket(make_trainer)  # from a whole run it trains
    if what == "weights":
        poison_weights(poison_archive, executed)
    elif what == "record":
        poison_pickle(RUN / "records.nc", executed)
    elif what == "checkpoints":
        poison_checkpoints(poison_archive, executed)
    else:
        poison_config(RUN / "config.yaml", executed, "top")
    if what in ("weights", "record"):
        with pytest.raises(ValueError, match="cannot be read"):
            train_ticket(make_trainer)
    else:
        train_ticket(make_trainer)  # which reads neither
    assert not executed.exists()


def fill_sets() -> None:
    """Have some neuron generalise, whatever was found in so short a training."""
    record = read_record(RUN / "records.nc")
    group = record["subnetworks"].to_dataset()
    group["generalizing"][:, :3] = True
    record["subnetworks"] = type(record)(group)
    record.to_netcdf(RUN / "records.nc", engine="h5netcdf")


# Records


RECORD_READERS: dict[str, Callable[[], object]] = {
    "read_record": raises(OSError, lambda: read_record(RUN / "records.nc")),
    "Run.record": raises(OSError, lambda: open_run(RUN).record),
    "Run.to_dataframe": raises(OSError, lambda: open_run(RUN).to_dataframe("curves")),
    "Run.measure": raises(OSError, lambda: open_run(RUN).measure(NeuronNormTracker(LAYERS[0]), keep=True)),
    "report": refused_by("report", str(RUN)),
    "report, of all runs": refused_by("report", "runs"),
    "report, of several": refused_by("report", str(RUN), "other"),
    # It is written anew from what the checkpoint holds.
    "fit, going on": lambda: main(["fit", "--ckpt_path", str(RUN), "--trainer.max_epochs=2"]),
}


@pytest.mark.parametrize("reader", RECORD_READERS)
@pytest.mark.parametrize("how", [poison_pickle, poison_new_pickle, poison_old_archive])
def test_reading_a_record_runs_no_code_of_it(folder, executed, monkeypatch, reader, how):
    monkeypatch.setattr(report, "write_report", lambda record, directory: directory / "report.html")
    shutil.copytree(RUN, "other")
    how(RUN / "records.nc", executed)
    RECORD_READERS[reader]()
    assert not executed.exists()


def test_a_page_is_drawn_of_a_run_whose_other_files_are_all_malicious(folder, executed, capsys):
    """It is made of the record alone."""
    poison_checkpoints(poison_archive, executed)
    poison_weights(poison_archive, executed)
    poison_config(RUN / "config.yaml", executed, "top")
    main(["report", str(RUN)])
    assert (RUN / "report.html").is_file()
    assert not executed.exists()


def test_a_configuration_within_a_record_is_text(folder, executed, capsys):
    """Pages of several runs look into it."""
    shutil.copytree(RUN, "other")
    for run in (RUN, Path("other")):
        record = read_record(run / "records.nc")
        record.attrs["config"] = f"!!python/object/apply:os.mkdir ['{executed}']\n"
        record.to_netcdf(run / "records.nc", engine="h5netcdf")
    main(["report", str(RUN), "other"])
    assert not executed.exists()


# Configurations: class paths are code, tags of YAML are not


def poison_config(path: Path, executed: Path, where: str) -> None:
    tag = f"!!python/object/apply:os.mkdir ['{executed}']"
    text = path.read_text()
    if where == "top":
        path.write_text(f"x: {tag}\n{text}")
    else:
        assert "train_size: 32" in text
        path.write_text(text.replace("train_size: 32", f"train_size: {tag}"))


CONFIG_READERS: dict[str, Callable[[], object]] = {
    "fit": refused_by("fit", "--config", str(RUN / "config.yaml")),
    "fit, going on": refused_by("fit", "--ckpt_path", str(RUN)),
    "fit, going on from a file": refused_by("fit", "--ckpt_path", str(LAST)),
    "validate": refused_by("validate", "--ckpt_path", str(LAST)),
    "test": refused_by("test", "--ckpt_path", str(LAST)),
    "predict": refused_by("predict", "--ckpt_path", str(LAST)),
    "Run.measure": raises(ValueError, lambda: open_run(RUN).measure(NeuronNormTracker(LAYERS[0]))),
    "report": lambda: main(["report", str(RUN)]),
}


@pytest.mark.parametrize("where", ["top", "within"])
@pytest.mark.parametrize("reader", CONFIG_READERS)
def test_tags_in_a_configuration_run_no_code(folder, executed, monkeypatch, reader, where):
    monkeypatch.setattr(report, "write_report", lambda record, directory: directory / "report.html")
    poison_config(RUN / "config.yaml", executed, where)
    CONFIG_READERS[reader]()
    assert not executed.exists()


def test_what_a_configuration_names_is_imported(folder, executed, monkeypatch):
    """So it is code, and SECURITY.md says so; this test is here to notice when that is no longer true."""
    (folder / "named_only_here.py").write_text(f"import os\nos.mkdir({str(executed)!r})\n")
    monkeypatch.syspath_prepend(folder)
    text = (RUN / "config.yaml").read_text()
    assert "SparseParity" in text
    config = yaml.safe_load(text)
    config["data"]["init_args"]["task"]["class_path"] = "named_only_here.Task"
    (RUN / "config.yaml").write_text(yaml.safe_dump(config))
    refused_by("fit", "--ckpt_path", str(RUN))()
    assert executed.is_dir()
    security = Path(__file__).parents[1] / "SECURITY.md"
    assert "configuration is code" in security.read_text()
