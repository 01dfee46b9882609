"""The base of everything that watches a training run and provably changes nothing."""

import random
import re
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn
from typing_extensions import override

from .members import gather_members, n_members_here, n_members_in_all
from .protocols import HasMembers
from .replay import Replay
from .schedule import Schedule
from .snapshots import Snapshots, plain_name, weights_of

__all__ = ["Monitor", "callbacks_of", "find_submodule", "find_weight", "named_array", "validation_due"]

_OWED = "grok_callbacks.validation_owed"

named_array = tuple[tuple[str, ...], Tensor]
"""Names of the dimensions of an array, and the array."""


class Monitor(Callback, ABC):
    """Measures a model on a schedule, keeps the history, and leaves training as it was.

    A subclass names its arrays in :attr:`dims` and returns them from :meth:`measure`; all else is done here, once:
    gradients are off, random generators (torch's, Python's, NumPy's) and train/eval modes are put back, a step is
    measured once even if Lightning passes it several times, the history is part of every checkpoint, so that a resumed
    run has all of it.

    Every process measures the members whose parameters it has. Where these are spread over processes
    (:class:`SpreadsMembers`), the values are gathered, in the order of the members: the history, what is logged and the
    record are those of the whole population in every process. Under data parallelism all have the same members, and
    nothing needs gathering.

    Steps count optimizer steps applied to the weights that are measured; 0 is the initial weights.

    Args:
        schedule: When to measure.
        name: Name of the record's group and prefix of logged scalars; ``[a-z][a-z0-9_]*``.

    Attributes:
        dims: Own dimensions of every array, after member (``{"norm": ("neuron",)}``).
        labels: Names along a dimension, where it has any (``{"split": ("train", "held_out")}``); an instance may set
            its own, before or at its first measurement.
        seconds: Wall-clock seconds spent measuring, in this process.
        owed: Step of the checkpoint that is resumed from, if the validation that belongs to it is still to come.
        gathered: Whether :meth:`measure` returns the values of the whole population in every process as it is.

    Raises:
        ValueError: If the name has another form.

    """

    dims: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    labels: Mapping[str, Sequence[str | int]] = {}
    gathered: ClassVar[bool] = False

    def __init__(self, schedule: Schedule, name: str) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise ValueError(f"name: expected lower-case letters, digits and _, starting with a letter, got '{name}'")
        self.schedule = schedule
        self.name = name
        self._state_key = f"{type(self).__qualname__}[{name}]"
        self.seconds = 0.0
        self._steps: list[int] = []
        self._values: dict[str, list[Tensor]] = {}
        self.owed: int | None = None

    @abstractmethod
    def measure(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Tensor]:
        """Return the arrays of the model as it is now, ``(E, *dims)`` each; ``{}`` where there is nothing to measure.

        For a module without members E is 1. Runs on every process, for the members that it has.
        """

    def scalars(self, values: dict[str, Tensor]) -> dict[str, float]:
        """Return what to write to the loggers for one measurement; nothing by default."""
        del values
        return {}

    def draw(self, logger: Logger, step: int, values: dict[str, Tensor]) -> None:
        """Write to a logger what is more than scalars; nothing by default."""
        del logger, step, values

    def attributes(self) -> dict[str, str | int | float]:
        """Return what the record should say about how this was measured."""
        return {}

    @property
    def steps(self) -> Tensor:
        """Measured steps, ``(T,)``, int64, ascending."""
        return torch.tensor(self._steps, dtype=torch.int64)

    @property
    def history(self) -> dict[str, Tensor]:
        """Everything measured so far: ``{name: (T, E, *dims)}``, on the CPU."""
        return {name: torch.stack(values) for name, values in self._values.items()}

    def record(self) -> dict[str, named_array]:
        """Return what the run should leave: arrays with the names of their dimensions; ``{}`` if nothing was measured.

        Without the coordinate ``step`` nothing in the group is a function of the step.
        """
        if not self._steps:
            return {}
        arrays: dict[str, named_array] = {"step": (("step",), self.steps)}
        for name, values in self.history.items():
            arrays[name] = (("step", "member", *self.dims[name]), values)
        return arrays

    @property
    @override
    def state_key(self) -> str:
        # Lightning asks for it before every hook: made once.
        return self._state_key

    @override
    def state_dict(self) -> dict[str, Any]:
        # Stacked: a checkpoint of many small tensors takes hundreds of times as long to write.
        return {"steps": self.steps, "values": self.history}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._steps = state_dict["steps"].tolist()
        self._values = {name: list(values.unbind(0)) for name, values in state_dict["values"].items()}

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self.schedule.at_validation:
            # Saved between a step and the validation that belongs to it: Lightning does not make up for it on resume.
            measured = trainer.global_step in self._steps[-1:]
            checkpoint[f"{_OWED}.{self.state_key}"] = validation_due(trainer) and not measured

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if checkpoint.get(f"{_OWED}.{self.state_key}", False):
            self.owed = checkpoint["global_step"]

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.global_step == 0:
            # A second run with the same object, in a notebook say, must not go on with the history of the first. What a
            # checkpoint holds is restored after this.
            self.forget()
            self.owed = None

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step = trainer.global_step
        if self.schedule.at_validation:
            if step in (0, self.owed):
                self._measure(trainer, pl_module)
        elif self.schedule.due(step):
            self._measure(trainer, pl_module)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.schedule.due(trainer.global_step):
            self._measure(trainer, pl_module)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.schedule.at_validation and not trainer.sanity_checking and trainer.state.fn == "fit":
            self._measure(trainer, pl_module)

    def look_back(self, trainer: Trainer, pl_module: LightningModule, snapshots: Snapshots) -> None:
        """Measure at earlier steps, on weights that were kept; what was measured before is forgotten.

        The values are those that there would be, had it been measured at these steps. The model's own weights are put
        back, and loggers get nothing. Must be called on every process.

        Args:
            trainer: A Trainer that knows the model and its data: the one that has trained it, or a :class:`Replay`,
                which then stands at each of the steps in turn.
            pl_module: The model.
            snapshots: The weights of each step.

        Raises:
            ValueError: If weights do not fit the model; or if the monitor follows validations, which are over, and the
                Trainer is not a :class:`Replay`, which can repeat them.

        """
        if self.schedule.at_validation and not isinstance(trainer, Replay):
            raise ValueError(f"{type(self).__name__} follows validations: look back at them with a Replay")
        self.forget()
        self._look_at(trainer, pl_module, snapshots)

    def forget(self) -> None:
        """Forget what was measured."""
        self._steps, self._values = [], {}

    @final
    def _look_at(self, trainer: Trainer, pl_module: LightningModule, snapshots: Snapshots) -> None:
        for step in snapshots:
            if isinstance(trainer, Replay):
                trainer.step = step
            with weights_of(pl_module, snapshots[step]):
                self._take(trainer, pl_module, step)

    def on_measured(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do what else is to be done at a step of training that was just measured; nothing by default."""

    @final
    @contextmanager
    def undisturbed(self, pl_module: LightningModule) -> Iterator[None]:
        """Within, there are no gradients; afterwards random generators and modes are as before; the time is counted."""
        began = time.perf_counter()
        modes = [(module, module.training) for module in pl_module.modules()]
        devices = [pl_module.device] if pl_module.device.type == "cuda" else []
        # Datasets that augment their rows draw from these. Where nobody has loaded NumPy, nobody draws from it.
        drawn, numpy = random.getstate(), sys.modules.get("numpy")
        drawn_by_numpy = numpy.random.get_state() if numpy else None
        # On a GPU torch has no deterministic cumulative sum; what is measured trains nothing.
        strict, warn_only = (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        )
        try:
            torch.use_deterministic_algorithms(False)
            with torch.no_grad(), torch.random.fork_rng(devices=devices):
                yield
        finally:
            torch.use_deterministic_algorithms(strict, warn_only=warn_only)
            random.setstate(drawn)
            if numpy:
                numpy.random.set_state(drawn_by_numpy)
            for module, mode in modes:
                module.training = mode
            self.seconds += time.perf_counter() - began

    @final
    def _measure(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step = trainer.global_step
        if self._steps and step <= self._steps[-1]:
            return
        values = self._take(trainer, pl_module, step)
        if values:
            began = time.perf_counter()
            self._log(trainer, step, values)
            self.on_measured(trainer, pl_module)
            self.seconds += time.perf_counter() - began

    def _take(self, trainer: Trainer, pl_module: LightningModule, step: int) -> dict[str, Tensor]:
        """Measure, and add to the history."""
        with self.undisturbed(pl_module):
            values = self.measure(trainer, pl_module)
            # bfloat16 is unknown outside torch.
            values = {
                name: (value.float() if value.dtype == torch.bfloat16 else value).detach().to("cpu", copy=True)
                for name, value in values.items()
            }
            if not self.gathered:
                self._check_shapes(values, n_members_here(pl_module))
                values = gather_members(pl_module, values)
        if values:
            self._check_shapes(values, n_members_in_all(pl_module))
            self._check_history(values)
            self._steps.append(step)
            for name, value in values.items():
                self._values.setdefault(name, []).append(value)
        return values

    def _check_shapes(self, values: dict[str, Tensor], members: int) -> None:
        for name, value in values.items():
            if name not in self.dims:
                raise ValueError(f"{type(self).__name__}: measured '{name}', but dims name {sorted(self.dims)}")
            if value.ndim != 1 + len(self.dims[name]) or value.shape[0] != members:
                raise ValueError(
                    f"{type(self).__name__}: expected '{name}' of shape (member, {', '.join(self.dims[name])}) with "
                    f"{members} members, got {tuple(value.shape)}"
                )

    def _check_history(self, values: dict[str, Tensor]) -> None:
        shapes = {name: tuple(value.shape) for name, value in values.items()}
        before = {name: tuple(kept[-1].shape) for name, kept in self._values.items()}
        if before and shapes != before:
            raise ValueError(f"{type(self).__name__}: measured arrays {shapes}, but {before} at the step before")

    def _log(self, trainer: Trainer, step: int, values: dict[str, Tensor]) -> None:
        """Write scalars to every logger at this very step; ``pl_module.log`` would lose or mislabel them."""
        scalars = {f"{self.name}/{key}": value for key, value in self.scalars(values).items()}
        for logger in trainer.loggers:
            if scalars:
                logger.log_metrics(scalars, step=step)
            self.draw(logger, step, values)


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """Return the Trainer's callbacks, in the order in which they are called."""
    return list(trainer.callbacks)  # type: ignore[attr-defined]  # set outside Trainer's own code


def validation_due(trainer: Trainer) -> bool:
    """Return whether Lightning validates after the batch that was just trained on, by the Trainer's own flags.

    A ``val_check_interval`` in wall-clock time cannot be foretold: False.
    """
    every = trainer.check_val_every_n_epoch
    interval = trainer.val_check_batch
    if not trainer.enable_validation or (every is not None and (trainer.current_epoch + 1) % every):
        return False
    long_enough = trainer.current_epoch >= (trainer.min_epochs or 0) and trainer.global_step >= (trainer.min_steps or 0)
    if trainer.should_stop and long_enough:
        return True
    if not interval:
        return False
    if interval == float("inf"):
        return bool(trainer.is_last_batch)
    batches = trainer.fit_loop.total_batch_idx if every is None else trainer.fit_loop.batch_idx
    return bool((batches + 1) % interval == 0)


def find_submodule(pl_module: LightningModule, path: str, argument: str = "layer") -> nn.Module:
    """Return the submodule with this dotted name, whether or not it was wrapped or compiled.

    Args:
        pl_module: The model.
        path: The name.
        argument: Name of the argument that gave it, for the message.

    Raises:
        ValueError: If there is none; the message lists those that exist.

    """
    names: dict[str, nn.Module] = {plain_name(name): module for name, module in pl_module.named_modules() if name}
    if path not in names:
        # A network's layers are meant, not metrics and the like.
        layers = [name for name, module in names.items() if any(True for _ in module.parameters())]
        raise ValueError(f"{argument}: the model has no '{path}'; it has {', '.join(layers) or 'no layers'}")
    return names[path]


def find_weight(pl_module: LightningModule, path: str, argument: str = "layer") -> Tensor:
    """Return the weight ``(E, out, in)`` of the layer with this dotted name; E = 1 in a module without members.

    Raises:
        ValueError: If there is no such layer, or it has no weight of that form.

    """
    weight = getattr(find_submodule(pl_module, path, argument), "weight", None)
    if not isinstance(weight, Tensor):
        raise ValueError(f"{argument}: '{path}' has no weight")
    members = pl_module.n_members if isinstance(pl_module, HasMembers) else None
    if members in (None, 1) and weight.ndim == 2:
        return weight.unsqueeze(0)  # a plain network in a module with members is a population of one
    rank = 2 if members is None else 3
    if weight.ndim != rank or members is None:
        raise ValueError(
            f"{argument}: expected '{path}' to have a weight of {rank} dimensions, got {tuple(weight.shape)}"
        )
    return weight
