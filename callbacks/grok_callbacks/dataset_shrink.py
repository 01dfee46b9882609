"""Training that goes on with fewer rows."""

import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, SequentialSampler
from typing_extensions import override

from .curves import read_metric
from .intervention import Intervention
from .members import n_members_in_all, own_members
from .monitor import callbacks_of, validation_due
from .onset import Event, Onset, find_onset
from .parameters import member_parameters
from .protocols import CanShrink, HasCoordinates, HasMemberMetrics
from .rows import KeptRows

__all__ = ["SHRINK_COORDINATES", "DatasetShrink", "shrink_again"]

SHRINK_COORDINATES = frozenset({"shrink_size", "shrink_fraction", "shrink_step"})
"""Coordinates of members that say how they shrink."""

NEVER = -1
"""In place of a step that has not come."""
RELOAD = "reload_dataloaders_every_n_epochs"
"""The Trainer's flag, which is set outside Trainer's own code."""
LOADERS = (
    "give them as a plain DataLoader over a dataset with a length, in its own order or shuffled, from "
    "train_dataloader() of the module or its data module"
)


@final
class DatasetShrink(Intervention):
    """From some point on, training goes on with fewer of the training rows: the set-up of ungrokking.

    After Varma et al. 2023 (arXiv 2309.02390, section 5), who train a network that has grokked on a smaller dataset, so
    that it may forget how to generalise. The rows that stay are drawn at random; those of a smaller number are among
    those of a larger one. What is held out afterwards, and the paper's test accuracy is measured on, are the rows that
    were never seen *and* those that were removed.

    A population's members may shrink at different steps and to different sizes. With our own data (a data module that
    :class:`CanShrink`) a member shrinks at once, the next step being the first with fewer rows; the length of
    Lightning's epoch, and so the cadence of validation, stays what it was; the member's own epochs begin anew. What is
    measured at the step of the shrink is still measured with the old rows. The parts ``removed`` and ``never_seen`` of
    the held-out rows have metrics of their own, ``val_removed/accuracy`` and ``val_never_seen/accuracy``. ``validate``,
    ``test`` and ``predict`` with this callback look at the rows as they were measured at the step of the checkpoint, or
    without one at that where the same Trainer's training ended; a checkpoint of weights alone is refused.

    With anybody else's ``DataLoader``, which is made anew once, training shrinks at the *end of the epoch* in which
    that falls due, and epochs are shorter from then on: Lightning asks for the number of batches when a loader is
    loaded, and would never validate again if the loader itself got shorter. It must be a plain one, over a dataset with
    a length, in order or shuffled, from ``train_dataloader()`` of the module or its data module; what cannot be changed
    is refused before the first step. Which rows were removed is then known to ``ShrinkAccuracy``. Resuming there does
    not make up for a validation: if the checkpoint was saved after the last step before a validation, and by that one
    ``event`` or ``metric`` would have let it fall due, it falls due by a later one, or never.

    Leaves ``step``, ``size`` and ``rows_before`` with dimension ``(member)``: number of optimizer steps after which the
    member has trained on fewer rows, NaN = not; how many these are, NaN = not shrunk; how many there were before.

    Coordinates: ``shrink_size`` or ``shrink_fraction``, in place of ``size`` and ``fraction``; ``shrink_step``, in
    place of ``step``, ``event`` and ``metric``.

    Args:
        size: Number of rows that stay, at least 1.
        fraction: In place of ``size``, share of the member's own training rows, in (0, 1]; rounded down, at least one.
        step: Shrink after so many optimizer steps; 0 is before the first.
        event: In place of ``step``: ``memorised``, ``generalised`` or ``forgotten``, as an :class:`Onset` beside it
            finds.
        steps: How many steps to go on after a member's onset is confirmed, at least 0.
        metric: In place of ``step``: name of a validation metric, as the module logs it. A member shrinks at the first
            validation (step 0 counts where the module can measure itself) at which it is on the far side of
            ``threshold``.
        threshold: The side that counts begins at this very number.
        rising: Whether the far side is above.
        onset: Name of the Onset callback.
        fresh_optimizer: Whether the optimizer forgets what it knows of a member that shrinks. Where all shrink at once,
            its state is emptied. Where only some do, their averages become 0, but the count of steps, by which Adam
            corrects its averages for having begun at 0, belongs to all members and goes on: their first steps are then
            smaller than those of a fresh Adam.
        seed: Of the rows that stay, with the member's ``data_seed`` (``seed`` where not given; its number where it has
            neither).
        name: Name of the record's group.

    Raises:
        ValueError: If an argument is out of range, or two exclude one another.

    """

    def __init__(
        self,
        size: int | None = None,
        fraction: float | None = None,
        step: int | None = None,
        event: Event | None = None,
        steps: int = 0,
        metric: str | None = None,
        threshold: float | None = None,
        rising: bool = True,
        onset: str = "onset",
        fresh_optimizer: bool = False,
        seed: int = 0,
        name: str = "dataset_shrink",
    ) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise ValueError(f"name: expected lower-case letters, digits and _, starting with a letter, got '{name}'")
        if size is not None:
            _check_size(size)
        if fraction is not None:
            _check_fraction(fraction)
        if step is not None:
            _check_step(step)
        if event not in (None, *Onset.EVENTS):
            raise ValueError(f"event: expected one of {', '.join(Onset.EVENTS)}, got '{event}'")
        if steps < 0 or (steps and event is None):
            raise ValueError(f"steps: expected at least 0, and an event that they are counted from, got {steps}")
        if (metric is None) != (threshold is None):
            raise ValueError(f"metric, threshold: give both or neither, got {metric!r} and {threshold!r}")
        self.size = size
        self.fraction = fraction
        self.step = step
        self.event: Event | None = event
        self.steps = steps
        self.metric = metric
        self.threshold = threshold
        self.rising = rising
        self.onset = onset
        self.fresh_optimizer = fresh_optimizer
        self.seed = seed
        self.name = name
        self._state_key = f"{type(self).__qualname__}[{name}]"
        self._members: Mapping[str, Sequence[int | float]] = {}
        self._foreign: _ForeignLoader | None = None
        self._resumes_after_epoch = False
        self._owed: int | None = None
        self._looked = NEVER
        self._read = False
        self._kept: list[Tensor | None] = []
        self._since: list[int] = []
        self._due: list[int] = []
        self._before: list[int] = []
        self._next = math.inf

    # ---- what it leaves ------------------------------------------------------------------------------------------

    @property
    @override
    def coordinates(self) -> frozenset[str]:
        return SHRINK_COORDINATES

    @override
    def record(self) -> dict[str, tuple[tuple[str, ...], Tensor]]:
        if not self._before:
            return {}
        sizes = [math.nan if rows is None else len(rows) for rows in self._kept]
        columns = {
            "step": [math.nan if rows is None else step for rows, step in zip(self._kept, self._since, strict=True)],
            "size": sizes,
            "rows_before": self._before,
        }
        return {name: (("member",), torch.tensor(values, dtype=torch.float64)) for name, values in columns.items()}

    @override
    def attributes(self) -> dict[str, str | int | float]:
        given: dict[str, str | int | float | None] = {
            "size": self.size,
            "fraction": self.fraction,
            "step": self.step,
            "event": self.event,
            "steps": self.steps,
            "metric": self.metric,
            "threshold": self.threshold,
            "rising": int(self.rising),
            "fresh_optimizer": int(self.fresh_optimizer),
            "seed": self.seed,
        }
        return {name: "" if value is None else value for name, value in given.items()}

    @property
    @override
    def state_key(self) -> str:
        return self._state_key

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"kept": self._kept, "since": self._since, "due": self._due, "rows_before": self._before}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._kept, self._since = list(state_dict["kept"]), list(state_dict["since"])
        self._before = list(state_dict["rows_before"])
        if self.event is not None or self.metric is not None:
            self._due = list(state_dict["due"])

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        # Saved between a step and the validation that belongs to it, or before the end of an epoch whose last batch is
        # over: Lightning makes up for neither on resume, but for the latter if it is saved in a validation.
        checkpoint[self._state_key] = {
            "owed": validation_due(trainer) and self._looked != trainer.global_step,
            "epoch_over": trainer.is_last_batch and not trainer.validating,
        }

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != "fit":
            # Here, not later: the loaders are asked for next, and a whole table has held-out rows only by this.
            self._read = True
            state = checkpoint["callbacks"].get(self._state_key, {"kept": [], "since": []})
            _show(trainer, state["kept"], state["since"], checkpoint["global_step"])
            return
        found = checkpoint.get(self._state_key, {})
        self._owed = checkpoint["global_step"] if found.get("owed", False) else None
        self._resumes_after_epoch = found.get("epoch_over", False)

    # ---- before training -----------------------------------------------------------------------------------------

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            self._read = False
            _show(trainer, self._kept, self._since, trainer.global_step)
            return
        if [callback for callback in callbacks_of(trainer) if isinstance(callback, DatasetShrink)] != [self]:
            raise ValueError("DatasetShrink: expected one of them; members that shrink otherwise have coordinates")
        self._members = pl_module.members if isinstance(pl_module, HasCoordinates) else {}
        data = _shrinkable(trainer)
        n_members = n_members_in_all(pl_module)
        if data is not None:
            n_members = len(data.sizes)
        self._check_given(n_members)
        if self.event is not None:
            self._onset(trainer)
        if trainer.global_step == 0:
            # A second run with the same object must not go on with the first. What a checkpoint holds comes after this.
            self._kept, self._since, self._before = [None] * n_members, [NEVER] * n_members, []
            self._due = self._steps_given(n_members) or [NEVER] * n_members
            self._owed, self._looked, self._resumes_after_epoch = None, NEVER, False
        if data is not None:
            self._before = list(data.sizes)
            for e, rows in enumerate(self._before):
                self._size_of(e, rows)
            data.prepare_to_shrink()
        else:
            if n_members > 1:
                raise ValueError(
                    f"DatasetShrink: all {n_members} members share the rows of the loader; members that shrink need "
                    "rows of their own (TableData), or one run each"
                )
            self._foreign = _ForeignLoader(_source(trainer, pl_module), lambda loader: self._hand_out(trainer, loader))

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._by_validation and not trainer.enable_validation:
            raise ValueError("DatasetShrink: event and metric are looked at in validations, which are switched off")
        if self.fresh_optimizer and len(self._kept) > 1:
            member_parameters(pl_module, "fresh_optimizer")
        data = _shrinkable(trainer)
        if data is not None:
            data.keep_rows(self._kept, self._since)

    def _check_given(self, n_members: int) -> None:
        """Check that there is one thing that says how many rows stay, and one that says when."""
        amounts: dict[str, object] = {"size": self.size, "fraction": self.fraction}
        times: dict[str, object] = {"step": self.step, "event": self.event, "metric": self.metric}
        for name in sorted(self.coordinates):
            (times if name == "shrink_step" else amounts)[name] = self._members.get(name)
        for what, values in [("how many rows stay", amounts), ("when", times)]:
            given = [name for name, value in values.items() if value is not None]
            if len(given) != 1:
                raise ValueError(
                    f"DatasetShrink: expected one of {', '.join(values)}, to say {what}, got "
                    f"{' and '.join(given) or 'none'}"
                )
        self._steps_given(n_members)

    def _steps_given(self, n_members: int) -> list[int] | None:
        """Return at which step each member is to shrink, ``None`` where that is yet to be seen."""
        if "shrink_step" in self._members:
            return [_whole("shrink_step", _check_step(step)) for step in self._members["shrink_step"]]
        return None if self.step is None else [self.step] * n_members

    def _size_of(self, e: int, n_rows: int) -> int:
        """Return how many of a member's rows stay."""
        fraction = self._members["shrink_fraction"][e] if "shrink_fraction" in self._members else self.fraction
        if fraction is not None:
            # What is a whole number but for rounding is that number: 0.29 * 100 is 28.999999999999996.
            return max(1, math.floor(_check_fraction(fraction) * n_rows + 1e-9))
        size = self._members["shrink_size"][e] if "shrink_size" in self._members else self.size
        assert size is not None
        if _check_size(size) > n_rows:
            raise ValueError(f"size: expected at most the {n_rows} rows that member {e} trains on, got {size}")
        return _whole("shrink_size", size)

    def _choose(self, e: int) -> Tensor:
        """Return which of a member's rows stay ``(n,)``, in rising order."""
        n_rows = self._before[e]
        seeds = self._members.get("data_seed", self._members.get("seed"))
        member = e if seeds is None else int(seeds[e])
        order = torch.randperm(n_rows, generator=_generator(self.seed, member))
        return order[: self._size_of(e, n_rows)].sort().values

    @property
    def _by_validation(self) -> bool:
        return self.event is not None or self.metric is not None

    # ---- looking at a training that is over ----------------------------------------------------------------------

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check_read(trainer)

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check_read(trainer)

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check_read(trainer)

    def _check_read(self, trainer: Trainer) -> None:
        """Refuse a checkpoint that does not say which rows were trained on."""
        looks = trainer.state.fn != "fit" and trainer.ckpt_path is not None
        if looks and not self._read and _shrinkable(trainer) is not None:
            raise ValueError(
                f"DatasetShrink: {trainer.ckpt_path} holds weights alone, and not which rows were trained on; give a "
                "whole checkpoint"
            )

    # ---- when ----------------------------------------------------------------------------------------------------

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._foreign is not None and not self._foreign.asked:
            raise ValueError(f"DatasetShrink: the loader was passed straight to fit, which cannot change it; {LOADERS}")
        step = trainer.global_step
        if self.event is not None:
            # At step 0, or to make up for a validation that is owed; it measures a step once, whoever asks first.
            self._onset(trainer).on_train_start(trainer, pl_module)
            self._look(trainer, pl_module)
        elif self.metric is not None and step in (0, self._owed):
            self._look(trainer, pl_module)
        if self._foreign is None:
            self._shrink(trainer, pl_module)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._foreign is None and trainer.global_step >= self._next:
            self._shrink(trainer, pl_module)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        if self.event is not None:
            # Ours may come before the Onset in the Trainer's list.
            self._onset(trainer).on_validation_end(trainer, pl_module)
        if self._by_validation:
            self._look(trainer, pl_module, expected=True)
        if self._foreign is None:
            self._shrink(trainer, pl_module)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._foreign is not None and self._shrink(trainer, pl_module):
            self._foreign.reload_once(trainer)

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._foreign is not None:
            self._foreign.reloaded(trainer)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._put_back(trainer)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._put_back(trainer)

    def _put_back(self, trainer: Trainer) -> None:
        data = _shrinkable(trainer)
        if data is not None:
            data.forget_shrink()
        if self._foreign is not None:
            self._foreign.put_back(trainer)
            self._foreign = None

    def _look(self, trainer: Trainer, pl_module: LightningModule, expected: bool = False) -> None:
        """Note which members fall due by the validation of this step."""
        self._looked = trainer.global_step
        if self.event is not None:
            onsets = self._onset(trainer).onsets()
            confirmed = onsets[self.event].confirmed_at.tolist() if onsets else [math.nan] * len(self._due)
            steps = [NEVER if math.isnan(step) else int(step) + self.steps for step in confirmed]
        else:
            assert self.metric is not None
            assert self.threshold is not None
            values = read_metric(trainer, pl_module, self.metric)
            if values is None:
                self._check_metric(trainer, pl_module, expected)
                return
            crossed = values >= self.threshold if self.rising else values <= self.threshold
            steps = [trainer.global_step if there else NEVER for there in crossed.expand(len(self._due)).tolist()]
        if self._foreign is not None:
            # Together or not at all: a foreign module may log other values on every process.
            together = trainer.strategy.reduce_boolean_decision(steps[0] != NEVER, all=False)
            steps = [trainer.global_step + self.steps if together and steps[0] == NEVER else steps[0]]
        self._due = [step if due == NEVER else due for due, step in zip(self._due, steps, strict=True)]

    def _check_metric(self, trainer: Trainer, pl_module: LightningModule, expected: bool) -> None:
        """Refuse a metric that was to be there and is not."""
        names = set(trainer.callback_metrics) if expected else set()
        if isinstance(pl_module, HasMemberMetrics):
            names |= set(pl_module.member_metrics())
        if names or expected:
            raise ValueError(f"metric: no '{self.metric}' was logged; there are {', '.join(sorted(names)) or 'none'}")

    def _find_next(self) -> None:
        """Note the step at which the next member falls due, as far as is known."""
        waiting = [due for due, rows in zip(self._due, self._kept, strict=True) if rows is None and due != NEVER]
        self._next = min(waiting, default=math.inf)

    def _onset(self, trainer: Trainer) -> Onset:
        return find_onset(trainer, self.onset, "DatasetShrink")

    # ---- what is done --------------------------------------------------------------------------------------------

    def _shrink(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        """Shrink the members that have fallen due; return whether there were any."""
        step = trainer.global_step
        self._find_next()
        if step < self._next:
            return False
        ready = zip(self._due, self._kept, strict=True)
        members = [e for e, (due, rows) in enumerate(ready) if rows is None and NEVER < due <= step]
        for e in members:
            self._kept[e], self._since[e] = self._choose(e), step
        self._find_next()
        if self.fresh_optimizer:
            self._empty_optimizers(trainer, pl_module, members)
        data = _shrinkable(trainer)
        if data is not None:
            data.keep_rows(self._kept, self._since)
        sizes = {e: f"{self._size_of(e, self._before[e])} of {self._before[e]} rows" for e in members}
        told = "; ".join(f"member {e}: {size}" for e, size in list(sizes.items())[:4])
        more = f"; and {len(members) - 4} members more" if len(members) > 4 else ""
        rank_zero_info(f"{self.name}: fewer rows from step {step} on: {told}{more}")
        return True

    def _empty_optimizers(self, trainer: Trainer, pl_module: LightningModule, members: Sequence[int]) -> None:
        """Let the optimizers forget what they know of members."""
        shrinks = torch.zeros(len(self._kept), dtype=torch.bool)
        shrinks[list(members)] = True
        own = own_members(pl_module, shrinks)
        for optimizer in trainer.optimizers:
            if len(members) == len(self._kept):
                optimizer.state.clear()
                continue
            for parameter, state in optimizer.state.items():
                for value in state.values():
                    if isinstance(value, Tensor) and value.shape == parameter.shape:
                        value[own.to(value.device)] = 0

    def _hand_out(self, trainer: Trainer, loader: object) -> object:
        """Return what Lightning is to train on in place of a module's loader, as it was made."""
        whole = _checked(loader)
        dataset: Any = whole.dataset
        self._before = [len(dataset)]
        size = self._size_of(0, self._before[0])
        if self._resumes_after_epoch:
            # It fell due in the epoch at whose last batch the checkpoint was saved.
            self._resumes_after_epoch = False
            self._shrink(trainer, trainer.lightning_module)
        kept = self._kept[0]
        smaller = _smaller(whole, self._choose(0) if kept is None else kept, self._since[0])
        if not len(smaller):
            raise ValueError(f"size: {size} rows are no whole batch of {whole.batch_size}, and drop_last is set")
        every, interval = trainer.check_val_every_n_epoch, trainer.val_check_interval
        if isinstance(interval, int) and every is not None and interval > len(smaller) and trainer.enable_validation:
            raise ValueError(
                f"val_check_interval: {interval} batches are more than the {len(smaller)} of an epoch of {size} rows; "
                "set check_val_every_n_epoch to null, to count batches whatever the epoch"
            )
        return loader if kept is None else smaller


class _ForeignLoader:
    """The method ``train_dataloader`` of a module or data module, and what stands in its place during a fit.

    Args:
        source: The module or data module.
        hand_out: Returns what is handed out in place of the loader that the method makes.

    Attributes:
        asked: Whether Lightning has asked for a loader.

    """

    def __init__(self, source: LightningModule | LightningDataModule, hand_out: Callable[[object], object]) -> None:
        self._source = source
        self._own = vars(source).get("train_dataloader")
        self._every: int | None = None
        self.asked = False
        make = source.train_dataloader

        def train_dataloader() -> object:
            self.asked = True
            return hand_out(make())

        setattr(source, "train_dataloader", train_dataloader)  # noqa: B010 - a method by a function

    def reload_once(self, trainer: Trainer) -> None:
        """Have Lightning ask again, at the start of the next epoch."""
        self._every = getattr(trainer, RELOAD)
        setattr(trainer, RELOAD, 1)

    def reloaded(self, trainer: Trainer) -> None:
        """Put the Trainer's flag back."""
        if self._every is not None:
            setattr(trainer, RELOAD, self._every)
            self._every = None

    def put_back(self, trainer: Trainer) -> None:
        """Put back the method, and the Trainer's flag."""
        self.reloaded(trainer)
        del vars(self._source)["train_dataloader"]
        if self._own is not None:
            vars(self._source)["train_dataloader"] = self._own


def shrink_again(datamodule: CanShrink, callbacks: Mapping[str, Any]) -> None:
    """Let the data be, at every step, what a training's :class:`DatasetShrink` made of them.

    Args:
        datamodule: The data, as they were at the start.
        callbacks: The states of the training's callbacks, from its last checkpoint; nothing is done where none of them
            is a DatasetShrink's.

    """
    for key, state in callbacks.items():
        if key.startswith(f"{DatasetShrink.__qualname__}["):
            datamodule.prepare_to_shrink()
            datamodule.keep_rows(state["kept"], state["since"])


def _show(trainer: Trainer, kept: Sequence[Tensor | None], since: Sequence[int], step: int) -> None:
    """Let the data, if they can shrink, be as they were measured at a step; outside of training the clock stands."""
    data = _shrinkable(trainer)
    if data is None:
        return
    then = [rows if begun < step else None for rows, begun in zip(kept, since, strict=True)]
    if all(rows is None for rows in then):
        data.forget_shrink()
        return
    data.prepare_to_shrink()
    data.keep_rows(then, [NEVER] * len(then))


def _shrinkable(trainer: Trainer) -> CanShrink | None:
    data = getattr(trainer, "datamodule", None)
    return data if isinstance(data, CanShrink) else None


def _source(trainer: Trainer, pl_module: LightningModule) -> LightningModule | LightningDataModule:
    """Return whose ``train_dataloader`` Lightning calls."""
    datamodule: LightningDataModule | None = getattr(trainer, "datamodule", None)
    for source in (datamodule, pl_module):
        if source is not None and is_overridden("train_dataloader", source):
            return source
    raise ValueError(f"DatasetShrink: the loader was passed straight to fit, which cannot change it; {LOADERS}")


def _checked(loader: object) -> DataLoader[Any]:
    """Return a loader that can be made anew over fewer rows.

    Raises:
        ValueError: If it is another; the message says what to do.

    """
    fault = None
    if type(loader) is not DataLoader:
        fault = f"training rows come from a {type(loader).__name__}"
    elif isinstance(loader.dataset, IterableDataset) or not callable(getattr(loader.dataset, "__len__", None)):
        fault = f"{type(loader.dataset).__name__} has no length"
    elif loader.batch_sampler is not None and (
        loader.batch_size is None or type(loader.batch_sampler) is not BatchSampler
    ):
        fault = f"the loader has a batch_sampler of its own, {type(loader.batch_sampler).__name__}"
    elif type(loader.sampler) not in (SequentialSampler, RandomSampler):
        fault = f"the loader has a sampler of its own, {type(loader.sampler).__name__}"
    elif isinstance(loader.sampler, RandomSampler):
        dataset: Any = loader.dataset
        if loader.sampler.replacement or loader.sampler.num_samples != len(dataset):
            fault = "the loader's sampler does not draw each row once an epoch"
    if fault is not None:
        raise ValueError(f"DatasetShrink: {fault}; {LOADERS}")
    assert isinstance(loader, DataLoader)
    return loader


def _smaller(loader: DataLoader[Any], kept: Tensor, since: int) -> DataLoader[Any]:
    """Return a loader over some rows of a loader's dataset that is like it in all else."""
    rows = KeptRows(loader.dataset, kept, since)
    sampler = loader.sampler
    return DataLoader(
        rows,
        batch_size=loader.batch_size,
        sampler=RandomSampler(rows, generator=sampler.generator) if isinstance(sampler, RandomSampler) else None,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        drop_last=loader.drop_last,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
        in_order=loader.in_order,
    )


def _check_size(size: float) -> float:
    if size < 1:
        raise ValueError(f"size: expected at least 1 row to go on with, got {size}")
    return size


def _check_fraction(fraction: float) -> float:
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction: expected a share in (0, 1], got {fraction}")
    return fraction


def _check_step(step: float) -> float:
    if step < 0:
        raise ValueError(f"step: expected at least 0, got {step}")
    return step


def _whole(name: str, value: float) -> int:
    if value != int(value):
        raise ValueError(f"{name}: expected a whole number, got {value}")
    return int(value)


def _generator(seed: int, member: int) -> torch.Generator:
    """Return a generator that shares nothing with others of the same seeds, such as that of the weights."""
    digest = hashlib.sha256(f"rows that stay\0{seed}\0{member}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))
