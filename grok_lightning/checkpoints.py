"""Checkpoint files: which there are, whether they are whole. Reading one runs no code of it."""

import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info

__all__ = [
    "CHECKPOINTS",
    "LAST",
    "PREVIOUS",
    "checkpoint_fault",
    "newest_checkpoint",
    "read_checkpoint",
    "step_of_checkpoint",
    "usable_checkpoint",
    "whole_checkpoints",
]

CHECKPOINTS = "checkpoints"
"""Name of their directory in a run."""

LAST = "last.ckpt"
"""Name of the checkpoint that a run keeps fresh."""

PREVIOUS = "previous.ckpt"
"""Name of the one before it."""


def whole_checkpoints(directory: Path) -> Iterator[Path]:
    """Yield the checkpoints in ``directory`` that can be read to the end, the newest first.

    ``previous.ckpt`` is older than ``last.ckpt``, whatever the times of copied files say.
    """
    times = {path: path.stat().st_mtime_ns for path in directory.glob("*.ckpt")}
    last, previous = directory / LAST, directory / PREVIOUS
    if last in times and previous in times:
        times[previous] = min(times[previous], times[last] - 1)
    for path in sorted(times, key=lambda path: times[path], reverse=True):
        fault = checkpoint_fault(path)
        if fault is None:
            yield path
        else:
            rank_zero_info(f"passing over {path}: {fault}")


def newest_checkpoint(path: Path) -> Path:
    """Return the newest whole checkpoint of a run, or of the runs of an experiment.

    Raises:
        FileNotFoundError: If there is none.

    """
    directories = [path / CHECKPOINTS, *path.glob(f"version_*/{CHECKPOINTS}"), *path.glob(f"*/version_*/{CHECKPOINTS}")]
    newest = [next(whole_checkpoints(directory), None) for directory in directories]
    found = [checkpoint for checkpoint in newest if checkpoint is not None]
    if not found:
        raise FileNotFoundError(f"ckpt_path: no whole checkpoint in {path}")
    return max(found, key=lambda checkpoint: checkpoint.stat().st_mtime_ns)


def usable_checkpoint(path: Path) -> Path:
    """Return the checkpoint file that was named; in place of a damaged ``last.ckpt`` the newest whole one beside it.

    Raises:
        ValueError: If the file cannot be used, and nothing in its place; the message says why, and names the newest
            whole checkpoint beside it.

    """
    fault = checkpoint_fault(path)
    if fault is None:
        return path
    whole = next(whole_checkpoints(path.parent), None) if path.suffix == ".ckpt" else None
    if whole is None:
        raise ValueError(f"{path}: {fault}")
    beside = f"{whole}, of step {step_of_checkpoint(whole)}"
    if path.name != LAST:
        raise ValueError(f"{path}: {fault}; the newest whole checkpoint there is {beside}")
    rank_zero_info(f"{path}: {fault}; going on with {beside}")
    return whole


def checkpoint_fault(path: Path) -> str | None:
    """Return in a few words what is wrong with a checkpoint file, ``None`` if it can be read. Runs no code of it."""
    try:
        _read(path, "cpu", weights_only=True)
    except (FileNotFoundError, ValueError) as error:
        return str(error)
    return None


def read_checkpoint(
    path: Path, map_location: Any = "cpu", weights_only: bool = True, bare: bool = False
) -> dict[str, Any]:
    """Return the content of a checkpoint file.

    Args:
        path: The file.
        map_location: Where its tensors go to, as in :func:`torch.load`.
        weights_only: Whether to take tensors and plain values alone. False runs whatever code the file names.
        bare: Whether a model's weights alone, without what a checkpoint has around them, will do as well.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read to the end, or is something else; the message names it.

    """
    try:
        return _read(path, map_location, weights_only, bare)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"{path}: {error}") from error


def step_of_checkpoint(path: Path) -> int:
    """Return the number of optimizer steps after which a checkpoint was saved."""
    return int(read_checkpoint(path)["global_step"])


def _read(path: Path, map_location: Any, weights_only: bool, bare: bool = False) -> dict[str, Any]:
    """Read a checkpoint; errors do not name it."""
    if not path.is_file():
        raise FileNotFoundError("there is no such file")
    if path.stat().st_size == 0:
        raise ValueError("the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, weights_only=weights_only, map_location=map_location)
    except pickle.UnpicklingError:
        # torch's own words advise to load it all the same, which would run its code.
        reason = "the file cannot be read: it holds more than tensors and plain values, or is not a checkpoint"
        raise ValueError(reason) from None
    except Exception as error:  # torch raises several kinds for a damaged file
        words = " ".join(str(error).split())[:120]
        raise ValueError(f"the file cannot be read as a checkpoint ({type(error).__name__}: {words})") from error
    if not isinstance(content, dict) or not ("state_dict" in content or (bare and _are_weights(content))):
        raise ValueError("the file is not a Lightning checkpoint")
    return content


def _are_weights(content: dict[Any, Any]) -> bool:
    return all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items())
