"""Runs on disk: ``runs/<experiment>/version_N/``, what is written there, and opening it again."""

import copy
import dataclasses
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
import xarray as xr
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from grok_callbacks import Intervention, Monitor, Replay, Snapshots, callbacks_of, shrink_again
from grok_callbacks.files import WriteError, remove_leftovers, replacing, unfinished
from grok_callbacks.protocols import CanShrink
from grok_callbacks.snapshots import state_of
from grok_lightning.checkpoints import (
    CHECKPOINTS,
    LAST,
    PREVIOUS,
    checkpoint_fault,
    step_of_checkpoint,
    whole_checkpoints,
)
from grok_lightning.data import GrokData
from grok_lightning.errors import one_line
from grok_lightning.modules import GrokModule
from grok_lightning.networks import Network
from grok_lightning.records import build_group, build_record, read_record, write_record
from grok_lightning.sweeps import Margins

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["LastCheckpoint", "Recorder", "Run", "open_run"]

RECORD = "records.nc"
CONFIG = "config.yaml"
WEIGHTS = "weights"
MARGINS = "margins"


class Run:
    """A finished, stopped or still running run.

    Args:
        directory: ``runs/<experiment>/version_N``.

    Attributes:
        directory: The same.

    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __repr__(self) -> str:
        return f"Run({str(self.directory)!r})"

    @cached_property
    def record(self) -> xr.DataTree:
        """The labelled arrays that the run has left, read once.

        Raises:
            FileNotFoundError: If there are none yet.

        """
        return read_record(self.directory / RECORD)

    def to_dataframe(self, group: str) -> "pd.DataFrame":
        """Return a group of the record as a tidy table: one row a combination of its dimensions.

        Member coordinates (``seed``, ...) are columns, and so is ``epoch`` where the group has steps and the number of
        steps in an epoch is known. ``.to_csv(path)`` of the result writes it out.

        Raises:
            KeyError: If there is no such group.

        """
        if group not in self.record.children:
            raise KeyError(f"the record has no group '{group}'; it has {', '.join(self.record.children)}")
        frame = self.record[group].to_dataset().to_dataframe().reset_index()
        per_epoch = int(self.record.attrs.get("steps_per_epoch", 0))
        if per_epoch and "step" in self.record[group].dims:
            frame.insert(list(frame.columns).index("step") + 1, "epoch", frame["step"] / per_epoch)
        return frame

    def network(
        self, step: int | None = None, member: int = 0, module_class: type[GrokModule] | None = None
    ) -> Network:
        """Return the network of a member, with the weights of a checkpoint or of a :class:`WeightTrajectory`.

        Args:
            step: Number of optimizer steps; that of the newest checkpoint if ``None``.
            member: Index of the member.
            module_class: Class of the module; needed only if the run was not started from the command line.

        Raises:
            FileNotFoundError: If there are no weights of that step; the message names the steps that there are.
            IndexError: If there is no such member.
            ValueError: If the module's class is neither given nor imported.

        """
        found: dict[int, Path] = {}
        for path in whole_checkpoints(self.directory / CHECKPOINTS):
            found.setdefault(step_of_checkpoint(path), path)
        kept = Snapshots(self.directory / WEIGHTS)
        # Not the highest step: a run that was taken up again at an earlier one has a newer checkpoint.
        wanted = next(iter(found), None) if step is None else step
        if wanted is None or wanted not in {*found, *kept}:
            what = "no whole checkpoint" if step is None else f"no weights of step {step}"
            raise FileNotFoundError(
                f"{self.directory} has {what}; it has weights of steps {sorted({*found, *kept}) or 'none'}"
            )
        # The checkpoint says what the network is, whatever step it is of.
        module = _load_module(found[wanted] if wanted in found else self._last_checkpoint(), module_class)
        if wanted not in found:
            module.load_state_dict(dict(kept[wanted]))
        return module.member(member)

    def measure(
        self,
        monitor: Monitor,
        module_class: type[GrokModule] | None = None,
        datamodule: GrokData | None = None,
        keep: bool = False,
    ) -> xr.Dataset:
        """Let a monitor look back at this run: the values are those that it would have measured during training.

        It measures at every step of which a :class:`WeightTrajectory` kept the weights, whatever its schedule, and at
        that of the newest checkpoint. The data are made anew from the run's configuration, which imports what it names:
        measure only runs whose configuration you would run.

        Args:
            monitor: Any monitor; what it had measured is forgotten.
            module_class: Class of the module; needed only if the run was not started from the command line.
            datamodule: The data, as they were; made from the configuration if ``None``, so needed only if the run was
                not started from the command line.
            keep: Whether to write the result into the run's record too, where ``python -m grok_lightning report`` finds
                it. Going on with the run writes the record anew, without it.

        Returns:
            The monitor's group of the record: arrays with dimensions ``step``, ``member`` and its own.

        Raises:
            FileNotFoundError: If the run has no whole checkpoint or no configuration, or no record to keep it in.
            TypeError: If ``monitor`` is none.
            ValueError: If the monitor does not fit the model, has nothing to measure, or is to be kept under a name
                that the record has already; or if the data cannot be made.

        """
        if not isinstance(monitor, Monitor):
            raise TypeError(f"measure: expected a monitor, such as NeuronNormTracker(...), got {monitor!r}")
        if keep and monitor.name in read_record(self.directory / RECORD).children:
            raise ValueError(f"keep: the record has a group '{monitor.name}' already; give the monitor another name")
        last = self._last_checkpoint()
        module = _load_module(last, module_class)
        config = self._config() if datamodule is None or (self.directory / CONFIG).is_file() else {}
        data = self._datamodule(config, module) if datamodule is None else datamodule
        if isinstance(data, CanShrink):
            shrink_again(data, torch.load(last, weights_only=True, map_location="cpu").get("callbacks", {}))
        trainer = Replay(module, data, (config.get("trainer") or {}).get("precision"))
        snapshots = Snapshots(self.directory / WEIGHTS, {step_of_checkpoint(last): copy.deepcopy(state_of(module))})
        monitor.look_back(trainer, module, snapshots)
        group = build_group(monitor, module.members)
        if group is None:
            raise ValueError(f"{type(monitor).__name__} had nothing to measure in {self.directory}")
        if keep:
            record = read_record(self.directory / RECORD)  # it may have grown since it was first read
            record[monitor.name] = xr.DataTree(group)
            write_record(record, self.directory / RECORD)
            self.record = record
        return group

    def _last_checkpoint(self) -> Path:
        path = next(whole_checkpoints(self.directory / CHECKPOINTS), None)
        if path is None:
            raise FileNotFoundError(f"{self.directory} has no whole checkpoint")
        return path

    def _config(self) -> dict[str, Any]:
        path = self.directory / CONFIG
        if not path.is_file():
            raise FileNotFoundError(f"{path}: without a configuration it is not known what the data were")
        try:
            config = yaml.safe_load(path.read_text())
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is no configuration: {one_line(str(error))}") from error
        if not isinstance(config, dict):
            raise ValueError(f"{path} is no configuration")
        return config

    def _datamodule(self, config: dict[str, Any], module: GrokModule) -> GrokData:
        parser = ArgumentParser(exit_on_error=False)
        parser.add_subclass_arguments(GrokData, "data")
        try:
            data = config["data"]
            data.setdefault("init_args", {})["members"] = module.members
            made: GrokData = parser.instantiate_classes(parser.parse_object({"data": data})).data
        except Exception as error:  # of jsonargparse, and of whatever the configuration names
            path = self.directory / CONFIG
            raise ValueError(f"{path}: the data cannot be made from it: {one_line(str(error))}") from error
        return made


def _load_module(checkpoint: Path, module_class: type[GrokModule] | None) -> GrokModule:
    content = torch.load(checkpoint, weights_only=True, map_location="cpu")
    kind = module_class or _imported_module(content.get("hyper_parameters", {}).get("_class_path", ""))
    # Made in the precision that it was trained in: a float32 network would round float64 weights.
    floats = [value.dtype for value in content["state_dict"].values() if value.is_floating_point()]
    before = torch.get_default_dtype()
    torch.set_default_dtype(floats[0] if floats else before)
    try:
        return kind.load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True)
    finally:
        torch.set_default_dtype(before)


def _imported_module(class_path: str) -> type[GrokModule]:
    """Return the imported GrokModule with this path. It is looked up, not imported: a checkpoint runs no code."""
    kinds = [GrokModule]
    for kind in kinds:
        kinds += kind.__subclasses__()
        package, _, name = class_path.rpartition(".")
        if kind.__name__ == name and (kind.__module__ == package or kind.__module__.startswith(f"{package}.")):
            return kind
    raise ValueError(f"module_class: the checkpoint's class '{class_path}' is not imported; import it or name it here")


def open_run(path: str | Path = "runs") -> Run:
    """Open a run.

    Args:
        path: The run's directory; or that of an experiment, or of all runs, for the newest run in it.

    Raises:
        FileNotFoundError: If there is no run.

    """
    return Run(find_run(Path(path)))


def find_run(path: Path) -> Path:
    """Return the directory of the run at ``path``, or of the newest run (by its record, else its config) below it.

    Raises:
        FileNotFoundError: If there is none.

    """
    if _is_run(path):
        return path
    runs = [directory for directory in [*path.glob("version_*"), *path.glob("*/version_*")] if _is_run(directory)]
    if not runs:
        raise FileNotFoundError(f"no run in {path}: expected a directory with {RECORD} or {CONFIG}, or one above such")
    return max(runs, key=_written_at)


def _is_run(path: Path) -> bool:
    return (path / RECORD).is_file() or (path / CONFIG).is_file()


def _written_at(run: Path) -> float:
    return max((run / name).stat().st_mtime for name in (RECORD, CONFIG) if (run / name).is_file())


def claim_directory(experiment: Path) -> Path:
    """Make and return a new ``version_N`` in ``experiment``; two processes never get the same one.

    Raises:
        OSError: If it cannot be written to.

    """
    experiment.mkdir(parents=True, exist_ok=True)
    taken = [int(m[1]) for p in experiment.iterdir() if (m := re.fullmatch(r"version_(\d+)", p.name))]
    number = max(taken, default=-1) + 1
    while True:
        directory = experiment / f"version_{number}"
        try:
            directory.mkdir()
        except FileExistsError:
            number += 1
            continue
        return directory


def missing_parents(directory: Path) -> list[Path]:
    """Return the directories above ``directory`` that making it would make, the innermost first."""
    return [parent for parent in [directory, *directory.parents] if not parent.exists()]


def release_directory(directory: Path, made: Iterable[Path] = ()) -> None:
    """Remove a claimed directory in which nothing was trained, and those of ``made`` that it leaves empty.

    Args:
        directory: What :func:`claim_directory` returned.
        made: What :func:`missing_parents` returned of its parent before.

    """
    shutil.rmtree(directory, ignore_errors=True)
    for parent in made:
        if not parent.is_dir() or any(parent.iterdir()):
            return
        parent.rmdir()


def run_of_checkpoint(checkpoint: Path) -> Path | None:
    """Return the run directory that a checkpoint lies in, ``None`` if it lies elsewhere."""
    run = Path(os.path.normpath(checkpoint.parent / ".."))
    return run if checkpoint.absolute().parent.name == CHECKPOINTS and _is_run(run) else None


class Recorder(Callback):
    """Writes ``records.nc``: with every checkpoint, and when training ends, whichever way.

    The text of a ``config.yaml`` beside it goes into the record.

    Args:
        directory: Where to; the Trainer's ``default_root_dir`` if ``None``.
        experiment: Name for the record.
        margins: What a sweep over training-set sizes is to be judged by, where that was written down beforehand.

    Attributes:
        started: Whether training has begun.

    """

    def __init__(
        self, directory: str | Path | None = None, experiment: str = "", margins: Margins | None = None
    ) -> None:
        self._directory = directory
        self.experiment = experiment
        self.margins = margins
        self._status = "running"
        self.started = False

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started = True
        self._status = "running"
        if trainer.is_global_zero and not _is_dry(trainer):
            run = self.directory(trainer)
            for directory in (run, run / CHECKPOINTS, run / WEIGHTS):
                remove_leftovers(directory)

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[MARGINS] = None if self.margins is None else dataclasses.asdict(self.margins)
        if not _is_dry(trainer):
            for logger in trainer.loggers:
                # What comes before the checkpoint is not logged again by a run that goes on from it.
                logger.save()
        self._write(trainer, pl_module)

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse margins that were not there when the run began.

        Raises:
            ValueError: If they are others.

        """
        before, now = checkpoint.get(MARGINS), None if self.margins is None else dataclasses.asdict(self.margins)
        if before != now:
            raise ValueError(
                f"margins: are written down before a run begins; those of this one are {before}, not {now}"
            )

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._status = "finished"
        self._write(trainer, pl_module)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.started:
            # Once more, for monitors that come after it and look back when training ends.
            self._write(trainer, pl_module)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self.started:
            self._status = "interrupted"
            try:
                self._write(trainer, pl_module)
            except WriteError as error:
                # Raised, it would take the place of the exception that is on its way.
                rank_zero_info(f"the record stays as it was: {error}")

    def directory(self, trainer: Trainer) -> Path:
        """Return the run's directory."""
        return Path(self._directory or trainer.default_root_dir)

    def record(self, trainer: Trainer, pl_module: LightningModule) -> xr.DataTree:
        """Return the record as it stands."""
        datamodule = getattr(trainer, "datamodule", None)
        config = self.directory(trainer) / CONFIG
        per_epoch = datamodule.steps_per_epoch if isinstance(datamodule, GrokData) else 0
        members = pl_module.members if isinstance(pl_module, GrokModule) else None
        attributes: dict[str, str | int | float] = {
            "experiment": self.experiment,
            "status": self._status,
            "last_step": trainer.global_step,
            "steps_per_epoch": per_epoch,
            "n_members": len(members["seed"]) if members else 1,
            "devices": trainer.world_size,
            "accelerator": type(trainer.accelerator).__name__,
            "config": config.read_text() if config.is_file() else "",
            "grok_lightning": version("grok-lightning"),
            "commit": _commit(),
            "torch": version("torch"),
            "lightning": version("lightning"),
            "python": platform.python_version(),
        }
        if isinstance(datamodule, GrokData):
            attributes["chance"] = 1 / max(2, datamodule.n_outputs)
        if self.margins is not None:
            attributes[MARGINS] = json.dumps(dataclasses.asdict(self.margins))
        warm = pl_module.warm_started if isinstance(pl_module, GrokModule) else {}
        attributes |= {f"warm_start_{name}": value for name, value in warm.items()}
        callbacks = [callback for callback in callbacks_of(trainer) if isinstance(callback, Monitor | Intervention)]
        return build_record(callbacks, members, attributes)

    def _write(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Rank zero alone, and no collective: in an exception the other processes may be anywhere.
        if trainer.is_global_zero and not _is_dry(trainer):
            record = self.record(trainer, pl_module)
            write_record(record, self.directory(trainer) / RECORD)
            # Nodes of a tree refer to one another: it would keep its copy of all histories until Python looks for such.
            for node in [*record.children.values()]:
                node.orphan()


@cache
def _commit() -> str:
    """Return the commit of the source tree that the package is run from, nothing for an installed package."""
    git = shutil.which("git")
    if git is None or not (Path(__file__).parents[1] / ".git").exists():
        return ""
    command = [git, "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()  # noqa: S603


def _is_dry(trainer: Trainer) -> bool:
    """Return whether nothing is to be written."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]  # set outside Trainer's own code


AGREE_EVERY = 1.0
"""Seconds of training after which several processes agree again on whether to save and whether to stop."""


class LastCheckpoint(Checkpoint):
    """Keeps ``checkpoints/last.ckpt`` fresh: every so often, when training ends, and when Ctrl-C or SIGTERM asks it to.

    The one before it stays, as ``checkpoints/previous.ckpt``: at every instant at least one of them is whole, whatever
    plugin the Trainer writes checkpoints with. On the disk that is two checkpoints, and a third while it is written.

    The first Ctrl-C or SIGTERM lets the step in progress finish, saves and stops, so that resuming goes on exactly
    there; a second Ctrl-C stops at once. Several processes agree, about once a second, on whether any of them was asked
    to stop, and do so after the same step. The program ends with exit code 1 after Ctrl-C, with 143 after SIGTERM.

    Args:
        directory: The run's directory; the Trainer's ``default_root_dir`` if ``None``.
        every_seconds: Wall-clock time between savings, above 0.
        sigterm: Whether SIGTERM is noticed. ``False`` leaves it to Lightning, which in a SLURM job may use it to put
            the job into the queue again (``SLURMEnvironment(requeue_signal=SIGTERM)``).

    Raises:
        ValueError: If ``every_seconds`` is not positive.

    """

    def __init__(self, directory: str | Path | None = None, every_seconds: float = 20.0, sigterm: bool = True) -> None:
        if every_seconds <= 0:
            raise ValueError(f"every_seconds: expected more than 0, got {every_seconds}")
        self._directory = directory
        self.every_seconds = every_seconds
        self.sigterm = sigterm
        self._saved_at = 0.0
        self._interrupted = 0
        self._agreed_at = (0.0, 0)
        self._agree_from = 0
        self._stops = False
        self._handlers: dict[signal.Signals, Any] = {}
        self._listener = _Listener(self._listen)
        self._written: Path | None = None

    def path(self, trainer: Trainer) -> Path:
        """Return where the checkpoint is written."""
        return Path(self._directory or trainer.default_root_dir) / CHECKPOINTS / LAST

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self._restore_handlers()  # left by a fit in whose end another callback failed
        self._interrupted, self._stops = 0, False
        if threading.current_thread() is threading.main_thread():
            numbers = [signal.SIGINT, signal.SIGTERM] if self.sigterm else [signal.SIGINT]
            handlers = {number: signal.getsignal(number) for number in numbers}
            # One that was not set from Python could not be put back.
            self._handlers = {number: handler for number, handler in handlers.items() if handler is not None}
        self._remove_listener(trainer)
        # A new list, as Lightning is iterating over the old one.
        trainer.callbacks = [self._listener, *callbacks_of(trainer)]  # type: ignore[attr-defined]

    def _remove_listener(self, trainer: Trainer) -> None:
        kept = [callback for callback in callbacks_of(trainer) if callback is not self._listener]
        trainer.callbacks = kept  # type: ignore[attr-defined]  # set outside Trainer's own code

    def _listen(self, trainer: Trainer) -> None:
        # Lightning has just set its own. With several processes that of SIGTERM communicates, wherever they are.
        for number in self._handlers:
            signal.signal(number, self._on_interrupt)
        if self.sigterm and trainer.received_sigterm:
            self._interrupted = signal.SIGTERM

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved_at = time.monotonic()
        self._agreed_at, self._agree_from = (self._saved_at, trainer.global_step), 0

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        if number == self._interrupted == signal.SIGINT:
            raise KeyboardInterrupt
        if self._interrupted:
            return  # whoever started several processes sends such to those that are still busy stopping
        self._interrupted = number
        rank_zero_info("\nStopping after this step (Ctrl-C again: at once).")

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        due, interrupted = self._agree(trainer)
        if due or interrupted:
            self._save(trainer)
        if interrupted:
            self._stops = True
            # 143 is what a shell reports of a process that SIGTERM ended.
            raise KeyboardInterrupt if interrupted == signal.SIGINT else SystemExit(128 + interrupted)

    def _agree(self, trainer: Trainer) -> tuple[bool, int]:
        """Return whether to save now, and the number of the signal that asks to stop; the same in every process."""
        now = time.monotonic()
        due = now - self._saved_at >= self.every_seconds
        if trainer.world_size == 1:
            return due, self._interrupted
        step = trainer.global_step
        if step < self._agree_from:
            return False, 0
        before, first = self._agreed_at
        steps = int((step - first) * AGREE_EVERY / max(now - before, 1e-6))
        mine = [int(due), max(1, steps), self._interrupted] if trainer.is_global_zero else [0, 0, self._interrupted]
        # The clock of the first process counts, and a signal that any has received.
        agreed = trainer.strategy.reduce(torch.tensor(mine, device=trainer.strategy.root_device), reduce_op="max")
        save, steps, interrupted = agreed.tolist()
        self._agreed_at, self._agree_from = (now, step), step + steps
        return bool(save), interrupted

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._stops:
            # All have come here. Whoever started them ends the others when one is gone, and the first may still write
            # the record.
            trainer.strategy.barrier()
        # There will be no teardown. Lightning puts the handlers back, which are to stay until the others have come
        # here too: after Ctrl-C it ignores another one meanwhile, and a second SIGTERM would end this process.
        self._remove_listener(trainer)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._remove_listener(trainer)
        self._restore_handlers()

    def _restore_handlers(self) -> None:
        for number, handler in self._handlers.items():
            if signal.getsignal(number) == self._on_interrupt:  # Lightning puts back those that it found
                signal.signal(number, handler)
        self._handlers = {}

    def _save(self, trainer: Trainer) -> None:
        if _is_dry(trainer):
            return
        path = self.path(trainer)
        if trainer.is_global_zero:
            self._replace(trainer, path)
        else:
            trainer.save_checkpoint(path, weights_only=False)  # which rank zero alone writes
        self._saved_at = time.monotonic()

    def _replace(self, trainer: Trainer, path: Path) -> None:
        # What this object has written is whole; what it has found may be the reason why the one before it is needed.
        whole = self._written == path or checkpoint_fault(path) is None
        # Whatever plugin writes it, it does so beside the final file, so that the replacement is atomic.
        with replacing(path) as fresh, _written_at_once(trainer):
            trainer.save_checkpoint(fresh, weights_only=False)
            if whole:
                _keep(path, path.with_name(PREVIOUS))
        self._written = path


class _Listener(Callback):
    """Comes before all other callbacks, so that no signal is missed while those measure at step 0."""

    def __init__(self, listen: Callable[[Trainer], None]) -> None:
        self._listen = listen

    @override
    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen(trainer)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen(trainer)


def _keep(path: Path, name: Path) -> None:
    """Give a file a second name, in place of the file that had it; there is a whole file of either name throughout."""
    link = unfinished(path)
    try:
        os.link(path, link)
    except OSError:  # of a filesystem without links: for an instant there is only the second name
        os.replace(path, name)
        return
    os.replace(link, name)
    link.unlink(missing_ok=True)  # two names of one file are left as they are


@contextmanager
def _written_at_once(trainer: Trainer) -> Iterator[None]:
    """Have checkpoints written before ``save_checkpoint`` returns, which an asynchronous plugin does not."""
    plugin = trainer.strategy.checkpoint_io
    if isinstance(plugin, AsyncCheckpointIO) and plugin.checkpoint_io is not None:
        trainer.strategy.checkpoint_io = plugin.checkpoint_io
    try:
        yield
    finally:
        trainer.strategy.checkpoint_io = plugin
