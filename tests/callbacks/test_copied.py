"""The callbacks work when their folder is copied into another project under another name."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "callbacks" / "grok_callbacks"
FILES = sorted(SOURCE.rglob("*.py"))

SHRINKING = """
trainer = Trainer(
    accelerator="cpu", devices=1, max_epochs=4, logger=False, enable_checkpointing=False, enable_progress_bar=False,
    enable_model_summary=False, callbacks=[DatasetShrink(size=3, step=3), ShrinkAccuracy(network="net")],
)
class TheirsWithRows(Theirs):
    def train_dataloader(self):
        return DataLoader(rows, batch_size=4, shuffle=True)
trainer.fit(TheirsWithRows(), val_dataloaders=DataLoader(rows, batch_size=8))
print("shrunk", trainer.global_step, trainer.callbacks[1].steps.tolist())
"""

SCRIPT = """
import sys
sys.modules["grok_callbacks"] = sys.modules["grok_lightning"] = None  # whoever asks for these gets an ImportError
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from watching import (
    DatasetShrink, EveryNSteps, NeuronNormTracker, Onset, ShrinkAccuracy, SparseSubnetworkExtractor, StopAfterOnset,
    SubnetworkComparison, WeightTrajectory,
)

class Theirs(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])
    def validation_step(self, batch, batch_idx):
        self.log("train_acc", 1.0)
        self.log("val_acc", float(self.trainer.global_step >= 4))
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

norms = NeuronNormTracker(layer="net.0", weights="product", next_layer="net.2")
onset = Onset("train_acc", "val_acc", dwell=2)
sparse = SparseSubnetworkExtractor("net.0", "net.2", network="net")
kept, compared = WeightTrajectory(EveryNSteps(4)), SubnetworkComparison("net.0", "net.2", network="net")
trainer = Trainer(
    accelerator="cpu", devices=1, max_epochs=9, logger=False, enable_checkpointing=False, enable_progress_bar=False,
    enable_model_summary=False, callbacks=[norms, sparse, kept, compared, onset, StopAfterOnset()],
)
rows = TensorDataset(torch.randn(8, 3), torch.arange(8) % 2)
trainer.fit(Theirs(), DataLoader(rows, batch_size=4, shuffle=True), DataLoader(rows, batch_size=8))
assert type(norms).__module__ == "watching.neuron_norms"
print("subnetworks", tuple(sparse.history["size"].shape), list(kept.snapshots()), compared.steps.tolist())
print("steps", norms.steps.tolist(), tuple(norms.history["norm"].shape))
print("generalised", float(onset.onsets()["generalised"].step), "stopped", trainer.global_step)
"""


@pytest.fixture
def copied(tmp_path):
    shutil.copytree(SOURCE, tmp_path / "watching", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "watching"


def run_beside(package, script=SCRIPT):
    """Run the script with the copy, and nothing else of ours, on the path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        cwd=package.parent,
        env=environment | {"PYTHONPATH": str(package.parent)},
    )


def test_a_copy_under_another_name_watches_a_foreign_module(copied):
    done = run_beside(copied)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-3:] == [
        "subnetworks (7, 1, 2) [0, 4] [0, 4, 6]",
        "steps [0, 1, 2, 3, 4, 5, 6] (7, 1, 4)",
        "generalised 4.0 stopped 6",
    ]


def test_a_copy_shrinks_a_foreign_loader(copied):
    done = run_beside(copied, SCRIPT + SHRINKING)
    assert done.returncode == 0, done.stderr
    # Two batches an epoch, then one.
    assert done.stdout.splitlines()[-1] == "shrunk 6 [0, 2, 4, 5, 6]"


def test_a_copy_with_an_absolute_import_of_the_original_would_fail(copied):
    file = copied / "curves.py"
    file.write_text(file.read_text().replace("from .monitor import", "from grok_callbacks.monitor import"))
    done = run_beside(copied)
    assert done.returncode != 0
    assert "ModuleNotFoundError" in done.stderr
    assert "grok_callbacks" in done.stderr


def names_itself(source):
    """Whether a file imports ``grok_callbacks`` by its name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "grok_callbacks" for alias in node.names):
            return True
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module.split(".")[0] == "grok_callbacks":
            return True
    return False


@pytest.mark.parametrize("file", FILES, ids=[str(file.relative_to(SOURCE)) for file in FILES])
def test_files_import_each_other_relatively(file):
    assert not names_itself(file.read_text())


@pytest.mark.parametrize(
    "source",
    [
        "import grok_callbacks",
        "import torch, grok_callbacks.rows as r",
        "def f():\n    from grok_callbacks.rows import x",
    ],
)
def test_an_import_by_name_would_be_seen(source):
    assert names_itself(source)
    assert not names_itself("from .rows import x\nfrom . import grok_callbacks\nimport grok_callbacks_of_others")
