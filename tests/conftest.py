"""What tests share: one thread, a quiet Trainer, a logger that remembers, and somebody else's project in small."""

import sys
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

# What several test files import lies beside this one.
sys.path.insert(0, str(Path(__file__).resolve().parent))


def pytest_configure(config):
    # Said or not said according to the machine that runs the tests; a warning is an error here.
    for message in ["The '.*_dataloader' does not have many workers", "GPU available but not used"]:
        config.addinivalue_line("filterwarnings", f"ignore:{message}")


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Networks as small as those of the tests are slower on two threads, and much slower on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def denormal_numbers():
    """The command line has the whole process take them for 0; no test is to notice that of another."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture
def make_trainer(tmp_path):
    """A Trainer on the CPU that writes nothing unless told to."""

    def make(**options):
        quiet = {
            "accelerator": "cpu",
            "devices": 1,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            "default_root_dir": tmp_path,
        }
        return Trainer(**(quiet | options))

    return make


class RecordingLogger(Logger):
    """Keeps what it is given: ``points`` is a list of ``(step, {name: value})``."""

    def __init__(self):
        super().__init__()
        self.points = []

    @property
    def name(self):
        return "recording"

    @property
    def version(self):
        return 0

    def log_metrics(self, metrics, step=None):
        self.points.append((step, dict(metrics)))

    def log_hyperparams(self, *args, **kwargs):
        """Not needed."""

    def steps(self, name):
        return [step for step, metrics in self.points if name in metrics]

    def values(self, name):
        return [metrics[name] for _, metrics in self.points if name in metrics]


@pytest.fixture
def recording_logger():
    return RecordingLogger()


@pytest.fixture
def another_recording_logger():
    return RecordingLogger()


class ForeignModule(LightningModule):
    """Plain layers, automatic optimization, dropout, scalars by ``self.log``; it has never heard of us.

    Args:
        script: Instead of measuring, log these at every validation: ``{name: function of the step}``.
        reseed: Whether dropout depends on the step alone, so that a resumed run can be the same.

    """

    def __init__(self, script=None, reseed=False):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            layers = {"fc1": nn.Linear(4, 6), "act": nn.ReLU(), "drop": nn.Dropout(0.5), "fc2": nn.Linear(6, 2)}
            self.encoder = nn.Sequential(OrderedDict(layers))
        self.script = script
        self.reseed = reseed
        self.validated = []

    def on_train_batch_start(self, batch, batch_idx):
        if self.reseed:
            torch.manual_seed(1000 + self.trainer.global_step)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.cross_entropy(self.encoder(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self.encoder(x)
        if self.script is None:
            metrics = {
                "val_acc": (logits.argmax(dim=1) == y).float().mean(),
                "val_loss": nn.functional.cross_entropy(logits, y),
            }
        else:
            metrics = {name: float(value(self.trainer.global_step)) for name, value in self.script.items()}
        if not self.trainer.sanity_checking:
            self.validated.append((self.trainer.global_step, {name: float(value) for name, value in metrics.items()}))
        self.log_dict(metrics)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


def _rows(n, seed):
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, (x[:, 0] * x[:, 1] > 0).long())


def _train_loader(workers=0, shuffle=True, n=24):
    """Three batches an epoch, in an order drawn from the loader's own generator."""
    return DataLoader(
        _rows(n, seed=1),
        batch_size=8,
        shuffle=shuffle,
        generator=torch.Generator().manual_seed(3),
        num_workers=workers,
        persistent_workers=workers > 0,
    )


def _val_loader(workers=0):
    """One batch."""
    return DataLoader(_rows(8, seed=2), batch_size=8, num_workers=workers, persistent_workers=workers > 0)


@pytest.fixture
def foreign():
    """Somebody else's project: ``module(...)``, ``train_loader(...)``, ``val_loader(...)``."""
    return SimpleNamespace(module=ForeignModule, train_loader=_train_loader, val_loader=_val_loader)
