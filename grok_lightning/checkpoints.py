"""Checkpoint files: which there are, whether they are whole. Reading one runs no code of it."""

import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_info

__all__ = ["CHECKPOINTS", "checkpoint_fault", "newest_checkpoint", "whole_checkpoints"]

CHECKPOINTS = "checkpoints"
"""Name of their directory in a run."""


def whole_checkpoints(directory: Path) -> Iterator[Path]:
    """Yield the checkpoints in ``directory`` that can be read to the end, the newest first."""
    paths = sorted(directory.glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in paths:
        if checkpoint_fault(path) is None:
            yield path
        else:
            rank_zero_info(f"passing over {path}: {checkpoint_fault(path)}")


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


def checkpoint_fault(path: Path) -> str | None:
    """Return in a few words what is wrong with a checkpoint file, ``None`` if it can be read. Runs no code of it."""
    if not path.is_file():
        return "there is no such file"
    if path.stat().st_size == 0:
        return "the file is empty"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError:
        # torch's own words advise to load it all the same, which would run its code.
        return "the file cannot be read: it holds more than tensors and plain values, or is not a checkpoint"
    except Exception as error:  # torch raises several kinds for a damaged file
        return f"the file cannot be read as a checkpoint ({type(error).__name__}: {' '.join(str(error).split())[:120]})"
    if not isinstance(content, dict) or "state_dict" not in content:
        return "the file is not a Lightning checkpoint"
    return None
