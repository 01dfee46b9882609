"""What the README shows is run, word for word."""

import re
import shutil
import sys
from pathlib import Path

import pytest

from grok_lightning import report
from grok_lightning.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = dict(re.findall(r"<!-- test: (.*?) -->\n```python\n(.*?)```", README, flags=re.DOTALL))

TINY = """
model: {class_path: MLP, init_args: {hidden: [8]}}
data: {class_path: TableData, init_args: {task: {class_path: SparseParity, init_args: {n: 6, k: 2}}, train_size: 30}}
population: {seed: [0, 1, 2, 3]}
trainer: {max_epochs: 2, enable_progress_bar: false, callbacks: {class_path: WeightTrajectory}}
"""

# What Lightning says to everybody who writes a first script, and the examples leave as it is.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:You are trying to `self.log"),
]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["grok"])
    monkeypatch.setattr(report, "write_report", lambda record, directory: directory)


def test_every_block_of_python_is_tested() -> None:
    assert README.count("```python") == len(BLOCKS) == 11


def test_a_record_becomes_a_table(tmp_path: Path) -> None:
    (tmp_path / "parity.yaml").write_text(TINY)
    main(["fit", "--config", "parity.yaml"])
    names: dict = {}
    exec(BLOCKS["record"], names)  # noqa: S102
    assert list(names["frame"].columns) == ["step", "epoch", "member", "split", "loss", "accuracy", "seed"]
    assert len((tmp_path / "curves.csv").read_text().splitlines()) == 1 + 3 * 4 * 2


def test_the_callbacks_drop_into_a_project(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict = {}
    exec(BLOCKS["own project"], names)  # noqa: S102
    assert names["norms"].history["norm"].shape[1:] == (1, 64)
    assert not names["onset"].onsets()["generalised"].step.isnan().any()
    assert names["trainer"].global_step < 240, "StopAfterOnset stopped it"


def test_the_circuits_of_a_project_are_split(tmp_path: Path) -> None:
    names: dict = {}
    exec(BLOCKS["fourier"], names)  # noqa: S102
    circuits = names["circuits"]
    share = circuits.history["share"][:, 0]
    assert (share[0] < 0.2).all()
    assert (share[-1] > 0.3).all()
    assert float(circuits.history["train_share"][-1, 0]) == pytest.approx(130 / 169)
    assert circuits.history["neuron_frequency"].shape == (len(share), 1, 128)
    assert names["norm"].history["total"].isfinite().all()


def test_numbers_of_ones_own_are_put_into_theorems() -> None:
    names: dict = {}
    exec(BLOCKS["numbers"], names)  # noqa: S102
    assert names["optimum"](names["loss"]) == pytest.approx(names["minimise"](names["loss"]), rel=1e-6)
    assert 2000 < float(names["outcome"](names["run"], labels=113).generalised) < 3500
    assert names["network"].n_outputs == 29


def test_a_network_of_a_proof_is_trained_on() -> None:
    names: dict = {}
    exec(BLOCKS["theory"], names)  # noqa: S102
    found = names["circuits"].history
    assert found["size"].tolist() == [[8], [8]]
    assert float(found["efficiency"][0, 0]) == pytest.approx(7**-0.5, abs=1e-5)
    assert float(found["efficiency"][1, 0]) > 0.9


def test_the_rows_of_a_project_are_taken_away(tmp_path: Path) -> None:
    names: dict = {}
    exec(BLOCKS["shrink"], names)  # noqa: S102
    shrunk = float(names["shrink"].record()["step"][1])
    assert 0 < shrunk < 480
    accuracy = names["parts"].history["accuracy"][:, 0]
    after = names["parts"].steps > shrunk
    assert accuracy[~after, 1].isnan().all()
    assert after.sum() > 10, "it goes on validating"
    assert (accuracy[-1] > 0.6).all()
    assert float(names["time"].history["decay_time"][-1, 0]) > 0


def test_an_operation_of_ones_own_is_learnt(tmp_path: Path) -> None:
    names: dict = {}
    exec(BLOCKS["own operation"], names)  # noqa: S102
    inputs, labels = names["data"].rows("train")
    assert inputs.shape == (1, 31**2 // 2, 4)
    assert (labels == (inputs[..., 0] ** 2 - 2 * inputs[..., 2] ** 2) % 31).all()


def test_the_sparse_subnetwork_of_a_project_is_found(tmp_path: Path) -> None:
    names: dict = {}
    exec(BLOCKS["subnetwork"], names)  # noqa: S102
    assert names["sparse"].history["size"].shape == (11, 1, 2)
    assert names["sparse"].history["size"][-1, 0, 0] < 64
    assert (names["compared"].history["agreement"][-1, 0, 0, 0]) == 1
    assert len(list((tmp_path / "weights").iterdir())) == 11


def test_a_monitor_of_ones_own_measures() -> None:
    names: dict = {}
    exec(BLOCKS["own monitor"], names)  # noqa: S102
    exec(BLOCKS["own task"], names)  # noqa: S102
    exec(BLOCKS["own network and loss"].split("trainer =")[0], names)  # noqa: S102
    from lightning.pytorch import Trainer

    from grok_lightning import MLP, TableData

    monitor = names["WeightNorm"]()
    members = {"seed": [0, 1]}
    trainer = Trainer(max_steps=1, logger=False, callbacks=[monitor], enable_checkpointing=False)
    trainer.fit(MLP(members=members), datamodule=TableData(members=members))
    assert monitor.history["norm"].shape == (1, 2)


def test_a_task_a_network_and_a_loss_of_ones_own_train() -> None:
    names: dict = {}
    exec(BLOCKS["own task"], names)  # noqa: S102
    exec(BLOCKS["own network and loss"], names)  # noqa: S102
    assert float(names["trainer"].callback_metrics["val/accuracy"]) > 0.5


def test_they_go_by_import_path_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = re.search(r"`python -m grok_lightning (fit --model MLP.*?)`", README, flags=re.DOTALL)
    assert command is not None
    loss = BLOCKS["own network and loss"].split("class Yours")[0]
    (tmp_path / "mine.py").write_text(BLOCKS["own task"] + loss)
    monkeypatch.syspath_prepend(tmp_path)
    main(command[1].split())
    assert (tmp_path / "runs" / "mlp" / "version_0" / "records.nc").is_file()


def test_the_commands_of_the_readme_are_valid(tmp_path: Path) -> None:
    """Those that name the shipped config, shortened to two batches; test_clusters.py has those of several devices."""
    commands = re.findall(
        r"^python -m grok_lightning (fit --config configs/parity\.yaml .*?)(?:\s+#.*)?$",
        README.replace("\\\n", ""),
        flags=re.M,
    )
    assert commands
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    for command in commands:
        if "--trainer.strategy" in command:
            continue
        words = [a or b for a, b in re.findall(r"'([^']*)'|(\S+)", command)]
        main([*words, "--trainer.fast_dev_run=2"])


def test_the_tests_that_hold_the_guarantees_exist() -> None:
    table = README[README.index("| guarantee | held by |") :].partition("\n\n")[0]
    named = re.findall(r"`(tests/\S+\.py)::(\w+)`", table)
    assert len(named) >= len(table.splitlines()) - 2
    for file, test in named:
        assert re.search(rf"^def {test}\(", (ROOT / file).read_text(), flags=re.MULTILINE), f"{file}::{test}"
