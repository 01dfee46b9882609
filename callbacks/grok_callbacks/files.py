"""Files that are at every instant the old one or the new one, whole, whatever happens to the process or the disk."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

__all__ = ["WriteError", "remove_leftovers", "replacing", "unfinished", "write_tensors"]

_PREFIX = ".grok-unfinished."
_UNFINISHED = re.compile(re.escape(_PREFIX) + "[0-9a-f]{32}")


class WriteError(OSError):
    """A file that could not be written; what was there before is still there.

    Attributes:
        errno: Why, as a number of :mod:`errno`; ``None`` if the system did not say.
        filename: The file that was to be written.

    """


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path to write a file to, which then takes the place of ``path``; or, on an error of any kind, does not.

    It is in the directory of ``path``, which is made if need be, so that the replacement is atomic on every filesystem,
    and both are on the disk before this returns. Its permissions are those of any new file. What a killed process
    leaves is hidden, matches no pattern such as ``*.ckpt``, and is removed by :func:`remove_leftovers`.

    Yields:
        A path at which there is nothing yet.

    Raises:
        WriteError: In place of any other ``OSError``; it names ``path``, which the caller knows.

    """
    fresh = unfinished(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield fresh
        with fresh.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(fresh, path)
        _sync_names(path.parent)
    except BaseException as error:
        with suppress(OSError):  # the first error is the one to tell
            fresh.unlink(missing_ok=True)
        named = isinstance(error, WriteError) and error.filename != str(fresh)
        if isinstance(error, OSError) and not named:
            reason = error.strerror or str(error) or type(error).__name__
            raise WriteError(error.errno, reason, str(path)) from error
        raise


def unfinished(path: Path) -> Path:
    """Return a path beside ``path`` at which there is nothing, for what is not to be found by its name yet."""
    return path.with_name(f"{_PREFIX}{uuid4().hex}")


def write_tensors(content: dict[str, Any], path: Path) -> None:
    """Write what ``torch.save`` writes, so that ``path`` is at every instant either the old file or the whole new one.

    Raises:
        WriteError: If it cannot be written.

    """
    with replacing(path) as fresh, fresh.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            # torch's writer replaces what the system said by the position that it had reached.
            raise _system_error_behind(error) or error from None


def remove_leftovers(directory: Path) -> None:
    """Remove what processes that were killed while they wrote have left in a directory, which need not exist.

    To be called where nobody else writes there.
    """
    if directory.is_dir():
        for path in directory.iterdir():
            if _UNFINISHED.fullmatch(path.name) and path.is_file():
                path.unlink(missing_ok=True)


def _system_error_behind(error: BaseException) -> OSError | None:
    """Return the system's error while handling which this one was raised."""
    behind = error.__context__
    while behind is not None and not isinstance(behind, OSError):
        behind = behind.__context__
    return behind


def _sync_names(directory: Path) -> None:
    """Have the names of a directory on the disk, too, where the system can do that."""
    with suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
