"""Checkpoints that survive what may happen while they are written: a plugin for any Trainer."""

import shutil
from pathlib import Path
from typing import Any, final

from lightning.pytorch.plugins.io import CheckpointIO
from typing_extensions import override

from grok_callbacks.files import write_tensors
from grok_lightning.checkpoints import read_checkpoint

__all__ = ["AtomicCheckpointIO"]


@final
class AtomicCheckpointIO(CheckpointIO):
    """Writes checkpoints so that a file is at every instant the old one or the whole new one; reads no code from them.

    For ``Trainer(plugins=[AtomicCheckpointIO()])``; the command line adds it. Lightning's own writes to ``$TMPDIR``
    first, which is only atomic where that lies on the same filesystem as the checkpoints, and leaves it to the system
    when they reach the disk. This one writes beside the final place, waits for the disk and then replaces
    (:func:`grok_callbacks.files.replacing`). Files are the same as Lightning's; either reads those of the other.

    Files on this machine's filesystems only: elsewhere there is nothing to be replaced atomically.
    """

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint.

        Raises:
            TypeError: If there are ``storage_options``, which nothing here understands.
            ValueError: If ``path`` is an address of something else than a local file.
            WriteError: If it cannot be written; the file that was there before is still there.

        """
        if storage_options is not None:
            raise TypeError("AtomicCheckpointIO: takes no storage_options")
        write_tensors(checkpoint, _local(path))

    @override
    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint: tensors and plain values alone, unless ``weights_only=False`` is asked for.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is truncated, empty or something else; or ``path`` is no local file.

        """
        # Lightning hands the weights of a forked or spawned process to the one that started it by this way, bare.
        return read_checkpoint(_local(path), map_location, weights_only is not False, bare=True)

    @override
    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint, or a directory that another plugin has written as one; none need be there."""
        local = _local(path)
        if local.is_dir():
            shutil.rmtree(local)
        else:
            local.unlink(missing_ok=True)


def _local(path: str | Path) -> Path:
    if "://" in str(path):
        raise ValueError(
            f"AtomicCheckpointIO: expected a local file, got {path}; for other storage give the Trainer Lightning's "
            "TorchCheckpointIO as a plugin"
        )
    return Path(path)
