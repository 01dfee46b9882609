"""Weights at earlier steps: kept in files, read back, put into a model for a while."""

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import final

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import Strategy
from torch import Tensor
from typing_extensions import override

from .files import write_tensors
from .members import gather_members, own_members

__all__ = ["Snapshots", "remove_snapshots", "state_of", "state_of_all", "weights_of", "write_snapshot"]

_FILE = re.compile(r"step_(\d{10,})\.pt")


@final
class Snapshots(Mapping[int, Mapping[str, Tensor]]):
    """Weights by step, in ascending order; each is read from its file when asked for.

    Args:
        directory: Where the files lie; there may be none.
        others: Further weights, in memory; they stand in place of a file of the same step.
        steps: Steps whose files count; all if ``None``.
        run: Mark of the run whose files they have to be; any if ``None``.
        strategy: Of processes that train together, and may see other disks: the first alone then looks for files and
            reads them, and all get what it has found. Each has to make these snapshots, and to ask them for the same
            steps in the same order. By default every process that asks reads for itself.

    """

    def __init__(
        self,
        directory: Path,
        others: Mapping[int, Mapping[str, Tensor]] | None = None,
        steps: Collection[int] | None = None,
        run: str | None = None,
        strategy: Strategy | None = None,
    ) -> None:
        self._run = run
        self._strategy = strategy
        files = _files(directory) if strategy is None or strategy.is_global_zero else {}
        self._files = {step: path for step, path in files.items() if steps is None or step in steps}
        self._others = dict(others or {})
        found = sorted({*self._files, *self._others})
        self._steps: list[int] = found if strategy is None else strategy.broadcast(found)

    @override
    def __getitem__(self, step: int) -> Mapping[str, Tensor]:
        """Return ``{name: tensor}``, on the CPU.

        Raises:
            KeyError: If there are no weights of that step.
            ValueError: If the file is not a snapshot. Reading it runs no code of it.

        """
        if step in self._others:
            return self._others[step]
        if step not in self._steps:
            raise KeyError(step)
        return self._read(step) if self._strategy is None else self._read_in_first(step, self._strategy)

    def _read_in_first(self, step: int, strategy: Strategy) -> Mapping[str, Tensor]:
        """Return what the first process has read; its error is that of all, for none may wait for another."""
        found: Mapping[str, Tensor] | ValueError | None = None
        if strategy.is_global_zero:
            try:
                found = self._read(step)
            except ValueError as error:
                found = error
        found = strategy.broadcast(found)
        if isinstance(found, ValueError):
            raise found
        assert found is not None
        return found

    def _read(self, step: int) -> Mapping[str, Tensor]:
        path = self._files[step]
        try:
            content = torch.load(path, weights_only=True, map_location="cpu")
            weights: dict[str, Tensor] = content["weights"]
            run: str = content.get("run", "")
        except Exception as error:  # torch raises several kinds for a damaged file
            raise ValueError(f"{path} cannot be read as weights of a step: {type(error).__name__}") from error
        if self._run not in (None, run):
            raise ValueError(f"{path} is of another run, which writes into the same directory")
        return weights

    @override
    def __iter__(self) -> Iterator[int]:
        return iter(self._steps)

    @override
    def __len__(self) -> int:
        return len(self._steps)


def write_snapshot(directory: Path, step: int, weights: Mapping[str, Tensor], run: str = "") -> Path:
    """Write weights so that their file is at every instant either not there or whole; ``run`` marks whose they are.

    Raises:
        WriteError: If they cannot be written.

    """
    path = directory / f"step_{step:010d}.pt"
    write_tensors({"step": step, "run": run, "weights": dict(weights)}, path)
    return path


def remove_snapshots(directory: Path, after: int) -> None:
    """Remove the snapshots of steps beyond ``after``."""
    for step, path in _files(directory).items():
        if step > after:
            path.unlink()


def _files(directory: Path) -> dict[int, Path]:
    paths = directory.iterdir() if directory.is_dir() else iter(())
    return {int(match[1]): path for path in paths if (match := _FILE.fullmatch(path.name))}


def state_of(pl_module: LightningModule) -> dict[str, Tensor]:
    """Return what a checkpoint would hold of a model, as the live tensors, named as if nothing were compiled."""
    return {plain_name(name): value for name, value in pl_module.state_dict().items() if isinstance(value, Tensor)}


def state_of_all(pl_module: LightningModule) -> dict[str, Tensor]:
    """Return what a checkpoint of the whole population would hold of a model, as copies on the CPU; in every process.

    Has to be asked for in every process, where members are spread over several.
    """
    return gather_members(
        pl_module, {name: value.detach().cpu().clone() for name, value in state_of(pl_module).items()}
    )


def plain_name(name: str) -> str:
    """Return a dotted name without what wrapping and compiling add to it."""
    return ".".join(part for part in name.split(".") if part not in ("_orig_mod", "_forward_module"))


@contextmanager
def weights_of(pl_module: LightningModule, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Give a model other weights, and put its own back afterwards, bit for bit.

    Where members are spread over processes the weights are those of the whole population, and each takes its own.

    Raises:
        ValueError: If a tensor is missing or has another shape: the rest of the model would be of another step.

    """
    live = state_of(pl_module)
    theirs = {name: own_members(pl_module, value) for name, value in weights.items()}
    for name, value in live.items():
        if name not in theirs or theirs[name].shape != value.shape:
            found = tuple(theirs[name].shape) if name in theirs else "nothing"
            raise ValueError(f"weights of another step: expected '{name}' of {tuple(value.shape)}, found {found}")
    own = {name: value.clone() for name, value in live.items()}
    try:
        _copy(theirs, live)
        yield
    finally:
        _copy(own, live)


@torch.no_grad()
def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    for name, value in target.items():
        value.copy_(source[name])
