"""Whether two runs are the same, bit for bit: what their last checkpoints, records and kept weights hold."""

from pathlib import Path
from typing import Any

import torch
import xarray as xr

from grok_callbacks import Snapshots
from grok_lightning.records import read_record

RUN_MARK = "run"
"""Drawn anew for every run, by which snapshots are told from those of others: all that two equal runs differ in."""


def checkpoint_of(directory: Path) -> dict[str, Any]:
    return torch.load(directory / "checkpoints" / "last.ckpt", weights_only=True)


def assert_equal(found: object, expected: object, where: str) -> None:
    """Compare nested states exactly."""
    assert type(found) is type(expected), where
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype, where
        assert torch.equal(found.nan_to_num(-9.0), expected.nan_to_num(-9.0)), where
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            assert_equal(found[key], expected[key], f"{where}/{key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), where
        for i, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_equal(one, other, f"{where}/{i}")
    else:
        assert found == expected, where


def assert_same_run(resumed: Path, whole: Path) -> None:
    """Compare weights, optimizer, scheduler, the state of every monitor and intervention, record and kept weights."""
    mine, theirs = checkpoint_of(resumed), checkpoint_of(whole)
    for part in ("global_step", "state_dict", "optimizer_states", "lr_schedulers"):
        assert_equal(mine[part], theirs[part], part)
    states = [_states(checkpoint) for checkpoint in (mine, theirs)]
    assert len(states[1]) >= 3
    assert_equal(*states, "callbacks")
    record, reference = read_record(resumed / "records.nc"), read_record(whole / "records.nc")
    record.attrs.pop("config"), reference.attrs.pop("config")  # limits are typed anew on resuming
    xr.testing.assert_identical(record, reference)
    assert_steps_once(resumed)
    assert_same_snapshots(resumed, whole)


def assert_steps_once(directory: Path) -> None:
    """Look for steps that are doubled or out of order."""
    for name, group in read_record(directory / "records.nc").children.items():
        if "step" in group.dims:
            steps = group["step"].values.tolist()
            assert steps == sorted(set(steps)), name


def assert_same_snapshots(resumed: Path, whole: Path) -> None:
    mine, theirs = snapshots_of(resumed), snapshots_of(whole)
    assert list(mine) == list(theirs)
    for step in theirs:
        assert_equal(mine[step], theirs[step], f"weights of step {step}")


def snapshots_of(directory: Path) -> Snapshots:
    """Return all kept weights; one that is of another run than the checkpoint cannot be read."""
    marks = [state[RUN_MARK] for state in checkpoint_of(directory)["callbacks"].values() if RUN_MARK in state]
    return Snapshots(directory / "weights", run=marks[0] if marks else None)


def _states(checkpoint: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        callback: {name: value for name, value in state.items() if name != RUN_MARK}
        for callback, state in checkpoint["callbacks"].items()
        if not callback.startswith("ModelCheckpoint")  # which knows where it lies
    }
