"""Initial weights from a checkpoint of another run."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from grok_callbacks.snapshots import plain_name
from grok_lightning.checkpoints import checkpoint_fault, newest_checkpoint
from grok_lightning.population import Members, as_members, match_members, n_members

__all__ = ["WarmStart", "read_warm_start"]


class WarmStart(NamedTuple):
    """Weights to start from.

    Attributes:
        weights: By plain name, ``(E, ...)``; without the E where the network there is a plain module.
        path: The checkpoint.
        sha256: Of its file, in hexadecimal digits.

    """

    weights: Mapping[str, Tensor]
    path: str
    sha256: str


def read_warm_start(source: str, members: Members) -> WarmStart:
    """Return the weights of a checkpoint's members, one for each of ours. Runs no code of it.

    A checkpoint of one member serves all; of several, each of ours takes the one that :func:`match_members` finds.

    Args:
        source: A checkpoint; or the directory of a run, of an experiment or of all runs, for the newest checkpoint in
            it.
        members: Table of coordinates.

    Raises:
        ValueError: If there is no whole checkpoint, or it lacks members; the message says which.

    """
    path = Path(source)
    if path.is_dir():
        try:
            path = newest_checkpoint(path)
        except FileNotFoundError:
            raise ValueError(f"warm_start: there is no whole checkpoint in {source}; train that run first") from None
    elif (fault := checkpoint_fault(path)) is not None:
        hint = "; train that run first" if not path.exists() else ""
        raise ValueError(f"warm_start: {path}: {fault}{hint}")
    content = torch.load(path, weights_only=True, map_location="cpu")
    weights = {plain_name(name): value for name, value in content["state_dict"].items()}
    theirs = as_members(content.get("hyper_parameters", {}).get("members"))
    if n_members(theirs) == 1:
        partners = [0] * n_members(members)
    else:
        try:
            partners = match_members(members, theirs)
        except ValueError as error:
            raise ValueError(f"warm_start: {path} {error}") from error
    index = torch.tensor(partners)
    # A plain network, of one member, does not lead with it.
    matched = {
        name: value[index] if value.shape[:1] == (n_members(theirs),) else value for name, value in weights.items()
    }
    return WarmStart(matched, str(path), hashlib.sha256(path.read_bytes()).hexdigest())
