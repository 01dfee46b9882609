"""Weights over time, on disk."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, final
from uuid import uuid4

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from typing_extensions import override

from .files import remove_leftovers
from .monitor import Monitor, callbacks_of
from .protocols import HasMembers
from .schedule import EveryNSteps, Schedule
from .snapshots import Snapshots, remove_snapshots, state_of_all, write_snapshot

__all__ = ["WeightTrajectory", "find_trajectory"]


@final
class WeightTrajectory(Monitor):
    """Keeps the weights of chosen steps, one file a step, for looking back at training with what was learnt at its end.

    A file holds all that a checkpoint holds of the model (parameters and persistent buffers; no optimizer), as plain
    tensors: a thousand parity neurons of five members are 0.8 MB. Resuming removes the files of later steps; so does
    training anew in the same directory.

    Leaves ``norm`` with dimensions ``(step, member)``: L2 norm of all parameters. Loggers get its mean over members.

    Args:
        schedule: When; keep it sparse.
        directory: Where to; ``weights`` in the directory that the Trainer's first logger has for this run, or in the
            Trainer's ``default_root_dir``, if ``None``.
        name: Name of the record's group and prefix of logged scalars.

    """

    dims: ClassVar[Mapping[str, tuple[str, ...]]] = {"norm": ()}

    def __init__(
        self,
        schedule: Schedule = EveryNSteps(1000),  # noqa: B008 - a frozen value
        directory: str | Path | None = None,
        name: str = "weights",
    ) -> None:
        super().__init__(schedule, name)
        self.directory = None if directory is None else Path(directory)
        self._into = Path()
        self._run = ""
        self._dry = True

    def snapshots(
        self, others: Mapping[int, Mapping[str, Tensor]] | None = None, strategy: Strategy | None = None
    ) -> Snapshots:
        """Return the weights that this training has kept; with ``others`` of further steps, in memory.

        With a ``strategy`` every process has to ask, and the first reads for all (:class:`Snapshots`).
        """
        steps = set() if self._dry else set(self._steps)
        return Snapshots(self._into, others, steps, self._run, strategy)

    @override
    def forget(self) -> None:
        super().forget()
        self._run = uuid4().hex

    @override
    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"run": self._run}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._run = state_dict["run"]

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # The first process's: other ones may know another version.
        self._into = Path(trainer.strategy.broadcast(str(self.directory or _directory_of_run(trainer) / "weights")))
        self._run = trainer.strategy.broadcast(self._run)
        self._dry = bool(trainer.fast_dev_run)  # type: ignore[attr-defined]  # set outside Trainer's own code
        if trainer.is_global_zero and not self._dry:
            remove_leftovers(self._into)
            remove_snapshots(self._into, after=trainer.global_step or -1)
        # The files are on the first process's disk, which others need not see.
        if trainer.is_global_zero and (lost := set(self._steps) - set(self.snapshots())):
            rank_zero_warn(
                f"{self._into} has no weights of {len(lost)} earlier steps, up to step {max(lost)}: this run does not "
                "go on in its own directory, and looking back will pass over them"
            )
        super().on_train_start(trainer, pl_module)

    @override
    def measure(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Tensor]:
        members = isinstance(pl_module, HasMembers) and pl_module.n_members > 1
        squares = [
            (parameter.double().square().flatten(1).sum(dim=1) if members else parameter.double().square().sum()[None])
            for parameter in pl_module.parameters()
        ]
        return {"norm": torch.stack(squares).sum(dim=0).sqrt()}

    @override
    def on_measured(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._dry:
            return
        weights = state_of_all(pl_module)
        if trainer.is_global_zero:
            write_snapshot(self._into, trainer.global_step, weights, self._run)

    @override
    def scalars(self, values: dict[str, Tensor]) -> dict[str, float]:
        return {"norm": float(values["norm"].mean())}


def find_trajectory(trainer: Trainer, who: str) -> WeightTrajectory:
    """Return the Trainer's first :class:`WeightTrajectory`.

    Raises:
        ValueError: If it has none; ``who`` needs it.

    """
    found = next((callback for callback in callbacks_of(trainer) if isinstance(callback, WeightTrajectory)), None)
    if found is None:
        raise ValueError(f"{who} looks back at the weights of earlier steps: add a WeightTrajectory to the callbacks")
    return found


def _directory_of_run(trainer: Trainer) -> Path:
    """Return where Lightning's own checkpoints of this run would have their folder."""
    if not trainer.loggers or trainer.loggers[0].save_dir is None:
        return Path(trainer.default_root_dir)
    logger = trainer.loggers[0]
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return Path(str(logger.save_dir)) / str(logger.name) / version
