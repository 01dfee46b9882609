"""Experiments of seconds in float64, on any number of processes; and whether two runs are the same but for rounding."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import h5netcdf  # noqa: F401 - what is imported here is not imported in every fork again
import torch
import xarray as xr
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import Strategy
from runs_compared import assert_steps_once, checkpoint_of, snapshots_of
from torch import Tensor

from grok_callbacks import (
    Convergence,
    DatasetShrink,
    EveryNSteps,
    FourierLogitSplitter,
    LearningCurves,
    NeuronNormTracker,
    Onset,
    ParameterNorm,
    ParityCircuits,
    ShrinkAccuracy,
    SparseSubnetworkExtractor,
    SubnetworkComparison,
    WeightTrajectory,
)
from grok_lightning import (
    MLP,
    GrokModule,
    LastCheckpoint,
    ModularArithmetic,
    OnlineData,
    Recorder,
    SparseParity,
    TableData,
    Transformer,
)
from grok_lightning.data import GrokData
from grok_lightning.records import read_record

MIDDLE = 90
"""A step of which every run keeps a checkpoint: in the middle of an epoch, between two validations."""

Experiment = tuple[GrokModule, GrokData, list[Callback]]

PARITY_LAYERS = {"layer": "network.hidden.0", "next_layer": "network.output"}


def sgd(parameters: Any, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, **({"lr": 0.1} | options))


def adamw(parameters: Any, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, **({"lr": 0.01, "weight_decay": 0.1} | options))


def cosine(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)


def parity_data(members: dict[str, list], **options: Any) -> TableData:
    return TableData(SparseParity(8, 2), **({"n_held_out": 101, "batch_size": 25, "members": members} | options))


def parity_mlp(members: dict[str, list], **options: Any) -> MLP:
    return MLP(n_inputs=8, hidden=[16], members=members, **options)


def parity() -> Experiment:
    """Five members that differ in everything, all that can be measured, a shrink of some at two different times."""
    members = {
        "seed": [0, 1, 2, 3, 4],
        "train_size": [60, 80, 33, 80, 75],
        "weight_decay": [0.01, 0.0, 0.1, 0.01, 0.02],
        "label_noise": [0.1, 0.0, 0.2, 0.1, 0.05],
        "shrink_step": [50, 1000, 100, 50, 1000],
    }
    module = parity_mlp(members, optimizer=adamw_for_members, scheduler=cosine)
    callbacks = [
        LearningCurves(),
        Onset(memorised_above=0.7, generalised_from=0.6, dwell=20),
        NeuronNormTracker(layer="network.hidden.0", schedule=EveryNSteps(30)),
        ParameterNorm(EveryNSteps(30)),
        Convergence(),
        ShrinkAccuracy(),
        SparseSubnetworkExtractor(**PARITY_LAYERS, schedule=EveryNSteps(50)),
        ParityCircuits(**PARITY_LAYERS, schedule=EveryNSteps(50)),
        WeightTrajectory(EveryNSteps(40)),
        SubnetworkComparison(**PARITY_LAYERS, choose="median", among=3, controls=3),
        DatasetShrink(size=20, fresh_optimizer=True),
    ]
    return module, parity_data(members), callbacks


def adamw_for_members(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.0)


def modular() -> Experiment:
    """Three Transformers on training sets of three sizes."""
    members = {"seed": [0, 1, 2], "train_fraction": [0.4, 0.7, 0.5]}
    sizes = {
        "activation": "gelu",
        "n_inputs": 4,
        "n_tokens": 9,
        "n_outputs": 7,
        "d_model": 8,
        "n_heads": 2,
        "d_mlp": 12,
    }
    splitter = FourierLogitSplitter(
        modulus=7,
        layer="network.layers.0.mlp_in",
        next_layer="network.layers.0.mlp_out",
        schedule=EveryNSteps(40),
    )
    callbacks = [
        LearningCurves(),
        Onset(),
        ParameterNorm(EveryNSteps(40)),
        WeightTrajectory(EveryNSteps(100)),
        splitter,
    ]
    data = TableData(ModularArithmetic(p=7), batch_size=None, members=members)
    return Transformer(**sizes, optimizer=adamw, members=members), data, callbacks


def online() -> Experiment:
    """Rows that are fresh in every step."""
    members = {"seed": [0, 1, 2]}
    data = OnlineData(SparseParity(8, 2), n_held_out=101, batch_size=7, validate_every=20, members=members)
    callbacks = [LearningCurves(), Onset(), NeuronNormTracker(layer="network.hidden.0", schedule=EveryNSteps(30))]
    return parity_mlp(members, optimizer=sgd), data, callbacks


def plain(optimizer: Callable = sgd, seeds: Sequence[int] = (0, 1, 2), **options: Any) -> Experiment:
    """Small members with the curves alone."""
    members = {"seed": list(seeds)}
    module = parity_mlp(members, optimizer=optimizer, **options)
    return module, parity_data(members, train_size=80, label_noise=0.1), [LearningCurves(), Onset()]


OPTIMIZERS = {
    "SGD with momentum": partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=0.01),
    "NAdam": partial(torch.optim.NAdam, lr=0.01),
    "Rprop": partial(torch.optim.Rprop, lr=0.001),
    "ASGD": partial(torch.optim.ASGD, lr=0.05, t0=10),
    "Adagrad": partial(torch.optim.Adagrad, lr=0.05),
    "Adam, amsgrad": partial(torch.optim.Adam, lr=0.01, amsgrad=True),
}


def make_trainer(
    folder: Path,
    processes: int = 1,
    callbacks: Sequence[Callback] = (),
    strategy: str | Strategy = "population_fork",
    steps: int = 200,
    **options: Any,
) -> Trainer:
    """Return a Trainer on the CPU that says nothing, in float64; one process is under no strategy of a mere name."""
    quiet = {
        "accelerator": "cpu",
        "devices": processes,
        "strategy": "auto" if processes == 1 and isinstance(strategy, str) else strategy,
        "precision": "64-true",
        "max_steps": steps,
        "val_check_interval": 20,
        "check_val_every_n_epoch": None,
        "num_sanity_val_steps": 0,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
        "callbacks": list(callbacks),
    }
    return Trainer(**(quiet | options))


def middle(folder: Path) -> Path:
    """Return where a run's checkpoint of step 90 lies."""
    return folder / "checkpoints" / "middle.ckpt"


def train(
    folder: Path,
    experiment: Experiment,
    processes: int = 1,
    strategy: str = "population_fork",
    steps: int = 200,
    resume: Path | None = None,
    also: Sequence[Callback] = (),
    **options: Any,
) -> Trainer:
    """Fit, keeping a record, the last checkpoint and one of the middle."""
    module, data, callbacks = experiment
    callbacks = [*callbacks, *also, Once(middle(folder)), LastCheckpoint(every_seconds=1e9), RecorderOnce()]
    trainer = make_trainer(folder, processes, callbacks, strategy, steps, **options)
    trainer.fit(module, datamodule=data, ckpt_path=resume)
    return trainer


class RecorderOnce(Recorder):
    """Writes the record when training ends alone: writing takes most of the time of such short runs."""

    def on_save_checkpoint(self, trainer, pl_module, checkpoint) -> None:
        """Leave the record for later."""

    def on_fit_end(self, trainer, pl_module) -> None:
        """Leave the record as it is."""


class Once(Callback):
    """Saves a checkpoint of the middle."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_step == MIDDLE:
            trainer.save_checkpoint(self.path, weights_only=False)


# Comparing


def assert_close(found: object, expected: object, where: str, atol: float = 1e-9) -> None:
    """Compare nested states: numbers but for rounding, everything else exactly."""
    if isinstance(expected, Tensor):
        assert isinstance(found, Tensor), where
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype), where
        torch.testing.assert_close(
            found, expected, rtol=0, atol=atol, equal_nan=True, msg=lambda text: f"{where}: {text}"
        )
    elif isinstance(expected, dict):
        assert isinstance(found, dict), where
        assert found.keys() == expected.keys(), where
        for key in expected:
            assert_close(found[key], expected[key], f"{where}/{key}", atol)
    elif isinstance(expected, list | tuple):
        assert isinstance(found, list | tuple), where
        assert len(found) == len(expected), where
        for i, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_close(one, other, f"{where}/{i}", atol)
    elif isinstance(expected, float):
        assert_close(torch.tensor(found), torch.tensor(expected), where, atol)
    else:
        assert found == expected, where


PARTS = ("global_step", "state_dict", "optimizer_states", "lr_schedulers", "hyper_parameters")


def assert_close_checkpoints(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for part in PARTS:
        assert_close(found[part], expected[part], part)
    states = [
        {
            name: {key: value for key, value in state.items() if key != "run"}
            for name, state in each["callbacks"].items()
        }
        for each in (found, expected)
    ]
    assert_close(*states, "callbacks")


def assert_close_runs(found: Path, expected: Path) -> None:
    """Compare last checkpoints, records and kept weights."""
    assert_close_checkpoints(checkpoint_of(found), checkpoint_of(expected))
    record, reference = read_record(found / "records.nc"), read_record(expected / "records.nc")
    assert set(record.children) == set(reference.children)
    for name, group in reference.children.items():
        xr.testing.assert_allclose(record[name].to_dataset(), group.to_dataset(), rtol=0, atol=1e-9)
        assert record[name].attrs == group.attrs, name
    assert attributes_of(record) == attributes_of(reference)
    assert_steps_once(found)
    mine, theirs = snapshots_of(found), snapshots_of(expected)
    assert list(mine) == list(theirs)
    for step in theirs:
        assert_close(dict(mine[step]), dict(theirs[step]), f"weights of step {step}")


def attributes_of(record: xr.DataTree) -> dict[str, Any]:
    return {name: value for name, value in record.attrs.items() if name not in ("devices", "config")}
