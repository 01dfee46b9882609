"""What memory a training will need, told before it begins."""

import math
import os
import warnings
from collections.abc import Callable, Iterable, Sequence, Set
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeAlias, final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from typing_extensions import override

from grok_callbacks import Monitor, Schedule, callbacks_of
from grok_callbacks.neurons import uncompiled
from grok_lightning.batch import Batch, take
from grok_lightning.data import GrokData
from grok_lightning.data.loader import StepLoader
from grok_lightning.modules import GrokModule
from grok_lightning.networks import Network
from grok_lightning.runs import Recorder
from grok_lightning.terminal import total_steps

__all__ = ["Cadence", "History", "MemoryEstimate", "StepMemory", "host_memory"]

SHARE_OF_STEP = 0.8
"""Share of the free memory from which a step is said to be too large: what kernels and the backward pass need for a
moment, at times as much as the largest activation, is not in the estimate."""

SHARE_OF_HISTORIES = 0.5
"""Share of the free memory that histories may come to: figures are drawn of them at the end, and a long training shares
its machine with others."""

OF_A_TENSOR = 550
"""Bytes that a small tensor takes beside its numbers: measured with torch 2.13 on Linux."""

FEW_ROWS = 16
"""Rows of a member that a network is tried on first."""

TRIAL = 2**26
"""Bytes of activations that it is tried on then: the more rows, the less the rest of the estimate is a guess."""

STEPS_ASKED = 10**5
"""Steps that a schedule which cannot count them is asked about, one by one: some hundredths of a second."""

Storage: TypeAlias = tuple[torch.device, int]
"""Where the numbers of tensors lie: views share it."""

TINY = 0.01
"""Share of the free memory below which the line leaves out what nobody asks for."""


class StepMemory(NamedTuple):
    """Bytes that a training step takes in one process, on its device.

    Attributes:
        parameters: With buffers.
        gradients: With the buckets of ``ddp``.
        optimizer: What it keeps from step to step; ``None`` if not known.
        activations: What the forward pass and the loss keep for the backward pass, the largest batch assumed; ``None``
            if not known.
        rows: Tables of rows, and a batch; ``None`` if not known.
        there: How much of ``optimizer`` is there already.

    """

    parameters: int
    gradients: int
    optimizer: int | None
    activations: int | None
    rows: int | None
    there: int = 0

    @property
    def to_come(self) -> int:
        """Bytes that are not taken before the first step, as far as known; parameters and rows are there."""
        optimizer = 0 if self.optimizer is None else max(0, self.optimizer - self.there)
        return self.gradients + optimizer + (self.activations or 0)


class History(NamedTuple):
    """What a monitor's history takes in one process, in the machine's own memory.

    Attributes:
        name: The monitor's.
        schedule: When it measures.
        measured: Number of measurements so far, at least 1.
        to_come: Number of further ones until the last step.
        arrays: Number of arrays of one measurement.
        size: Bytes of them.

    """

    name: str
    schedule: Schedule
    measured: int
    to_come: int
    arrays: int
    size: int

    def bytes_of(self, measurements: int, copies: int) -> int:
        """Return the bytes of so many measurements; each is kept in tensors of its own, the copies are stacked."""
        return measurements * (OF_A_TENSOR * self.arrays + copies * self.size)

    def at_end(self, copies: int) -> int:
        """Return the bytes at the last step."""
        return self.bytes_of(self.measured + self.to_come, copies)


class Cadence(NamedTuple):
    """When Lightning validates, by the Trainer's flags; in batches.

    Attributes:
        per_epoch: Batches of an epoch, ``None`` if not known.
        every_n_epoch: ``check_val_every_n_epoch``; ``None`` if epochs do not matter.
        interval: Batches between validations; infinite for one at the end of an epoch, ``None`` by the clock.

    """

    per_epoch: int | None
    every_n_epoch: int | None
    interval: float | None

    def between(self, first: int, last: int) -> int | None:
        """Return how many validations there are after ``first`` batches of training, up to ``last`` of them.

        Returns:
            ``None`` where they go by the clock, or an epoch of unknown length ends with one.

        """
        counts = [self._until(batches) for batches in (first, last)]
        return None if counts[0] is None or counts[1] is None else counts[1] - counts[0]

    def _until(self, batches: int) -> int | None:
        if not self.interval or (math.isinf(self.interval) and not self.per_epoch):
            return None
        if self.every_n_epoch is None or not self.per_epoch:
            return int(batches // self.interval)
        whole, rest = divmod(batches, self.per_epoch)
        within = 1 if math.isinf(self.interval) else int(self.per_epoch // self.interval)
        begun = int(rest // self.interval) if (whole + 1) % self.every_n_epoch == 0 else 0
        return whole // self.every_n_epoch * within + begun

    def at_most(self, number: int, first: int, last: int) -> "Cadence | None":
        """Return a cadence with at most ``number`` validations between ``first`` and ``last``, but with some.

        It differs in the one flag that makes validations rarer: ``every_n_epoch`` or, where epochs do not matter,
        ``interval``.

        Returns:
            ``None`` if there is none.

        """
        count = self.between(first, last)
        if number < 1 or count is None:
            return None
        times, rarer = math.ceil(count / number), self
        while count is not None and count > number:
            if self.every_n_epoch is None:
                rarer = self._replace(interval=(self.interval or 1) * times)
            else:
                rarer = self._replace(every_n_epoch=self.every_n_epoch * times)
            count = rarer.between(first, last)
            times += 1
        return rarer if count else None

    def flag(self) -> str:
        """Return the flag that :meth:`at_most` changes, as it is here."""
        if self.every_n_epoch is not None:
            return f"check_val_every_n_epoch={self.every_n_epoch}"
        return f"val_check_interval={int(self.interval or 0)}"


class Course(NamedTuple):
    """What is to come of a training.

    Attributes:
        step: Number of optimizer steps taken.
        last: Number of those taken when it ends, ``None`` if not known.
        batches: The same of batches, as far as ``last`` is known.
        cadence: When Lightning validates; ``None`` if never.

    """

    step: int
    last: int | None
    batches: tuple[int, int]
    cadence: Cadence | None


@final
class MemoryEstimate(Callback):
    """Says in a line, when a fit begins, what memory it will need, and warns where that is more than there is.

    Of the first process, which under the strategy ``population`` has the most members: parameters, gradients, what the
    optimizer keeps (it takes a step on zeros of the same shapes), activations (the network is tried on a few of the
    rows of a batch, and the rest goes by proportion: exact for networks whose activations are so many bytes a row), the
    tables of rows, and the histories of monitors at the last step, copies in checkpoints and the record included.
    Training is as it would be without.

    Estimates of what a step keeps, not of what its kernels need for a moment. Members that are computed in groups,
    because they differ in their number of rows, need less than the padded batch that is assumed. Activations and rows
    are those of our own modules and data; of others they are not known. Histories grow in the machine's memory, be the
    device what it may.

    It warns where a step, or the histories, would come to more than a share of the free memory
    (:data:`SHARE_OF_STEP`, :data:`SHARE_OF_HISTORIES`), and names what would not: fewer members in a process, sparser
    schedules. What is free is not known on every system; where it is not, it does not warn.

    Put it after the monitors: what a measurement takes is known once there is one. Of a monitor that has measured
    nothing at step 0 nothing is known, and the line says so.

    Attributes:
        step: The parts of a step; ``None`` before a fit.
        histories: Those of the monitors of which they are known.

    """

    def __init__(self) -> None:
        self.step: StepMemory | None = None
        self.histories: list[History] = []

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]  # set outside Trainer's own code
            return
        device = pl_module.device
        self.step = step_memory(trainer, pl_module)
        course = _course(trainer)
        self.histories, left_out = _histories(trainer, course)
        copies = copies_of_histories(callbacks_of(trainer))
        host = host_memory()
        if host is not None:
            host //= trainer.num_devices  # every process of a machine has its own
        free = device_memory(device) if device.type == "cuda" else host
        each = "memory" if trainer.world_size == 1 else f"memory in each of {trainer.world_size} processes"
        parts = [
            _step_in_words(self.step, device, free),
            _histories_in_words(self.histories, copies, course.last, host),
        ]
        parts += [f"without {', '.join(names)} ({reason})" for reason, names in left_out.items()]
        rank_zero_info(f"{each}: {'; '.join(filter(None, parts))}")
        if free is not None and self.step.to_come > SHARE_OF_STEP * free:
            rank_zero_warn(_too_large(self.step, device, free, pl_module))
        if host is not None and course.last is not None:
            room = host if device.type == "cuda" else max(0, host - self.step.to_come)
            if too_long := longest_histories(self.histories, SHARE_OF_HISTORIES * room, copies):
                rank_zero_warn(_outgrown(too_long, copies, room, course))


# ---- a step ----------------------------------------------------------------------------------------------------------


def step_memory(trainer: Trainer, pl_module: LightningModule) -> StepMemory:
    """Return what a training step takes in this process; called when training has begun, and changes nothing."""
    there = sum(_storage_bytes(_tensors_of(optimizer)) for optimizer in trainer.optimizers)
    activations = rows = None
    # Neither an optimizer nor a network may draw numbers that training would have drawn, or warn twice.
    with isolate_rng(include_cuda=pl_module.device.type == "cuda"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kept = [optimizer_bytes(optimizer) for optimizer in trainer.optimizers]
        datamodule, loader = getattr(trainer, "datamodule", None), trainer.train_dataloader
        if isinstance(datamodule, GrokData) and isinstance(loader, StepLoader):
            # The first batch is the largest; a batch is a function of its step, so that this one disturbs no other.
            batch = loader.batch(0)
            tables = [batch, *(part for held in datamodule.val_dataloader() for part in held)]
            rows = _storage_bytes(tensor for part in tables if isinstance(part, Batch) for tensor in _tensors_in(part))
            if isinstance(pl_module, GrokModule):
                activations = activation_bytes(trainer, pl_module, batch)
    return StepMemory(
        parameters=_storage_bytes([*pl_module.parameters(), *pl_module.buffers()]),
        gradients=gradient_bytes(pl_module if trainer.model is None else trainer.model),
        optimizer=sum(known) if len(known := [size for size in kept if size is not None]) == len(kept) else None,
        activations=activations,
        rows=rows,
        there=there,
    )


def gradient_bytes(model: nn.Module) -> int:
    """Return the bytes of all gradients, and of the buckets of ``ddp`` where it has wrapped the model."""
    size = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    bucketed = isinstance(model, DistributedDataParallel) and not model.gradient_as_bucket_view
    return 2 * size if bucketed else size


def optimizer_bytes(optimizer: Optimizer) -> int | None:
    """Return the bytes that an optimizer keeps from step to step; what its kernels need for a moment apart.

    What it does not keep yet is found by stepping another of its class on zeros, one parameter after another.

    Returns:
        ``None`` if that cannot be done: the class needs arguments that its groups do not tell, or a closure.

    """
    total = 0
    found: dict[tuple[int, torch.Size, torch.dtype, torch.device], int] = {}
    for number, group in enumerate(optimizer.param_groups):
        options = {name: value for name, value in group.items() if name != "params"}
        for parameter in group["params"]:
            if state := optimizer.state.get(parameter):
                total += _storage_bytes(value for value in state.values() if isinstance(value, Tensor))
                continue
            if not parameter.requires_grad:
                continue
            key = (number, parameter.shape, parameter.dtype, parameter.device)
            if key not in found:
                try:
                    found[key] = _state_bytes(type(optimizer), options, parameter)
                except Exception:  # of somebody's optimizer: an estimate stops no training
                    return None
            total += found[key]
    return total


def _state_bytes(kind: Callable[..., Optimizer], options: dict[str, Any], parameter: Tensor) -> int:
    """Return what an optimizer of this class keeps of a parameter of this shape, after a step."""
    twin = torch.zeros_like(parameter, requires_grad=True)
    twin.grad = torch.zeros_like(twin)
    optimizer = kind([{**options, "params": [twin]}])
    optimizer.step()
    return _storage_bytes(_tensors_of(optimizer))


def activation_bytes(trainer: Trainer, pl_module: GrokModule, batch: Batch) -> int | None:
    """Return the bytes that the forward pass and the loss keep for the backward pass of a batch.

    The network runs on some of the batch's rows: on all, if these are few; else the bytes of the others go by
    proportion; a compiled one as it is written. Buffers are put back. What is kept are bytes of distinct storages;
    parameters, buffers and the rows themselves are not counted.

    Returns:
        ``None`` if the network does not run on a few rows.

    """
    batch = trainer.precision_plugin.convert_input(batch)
    before = [(buffer, buffer.clone()) for buffer in pl_module.buffers()]
    apart = _storages([*pl_module.parameters(), *pl_module.buffers()])

    def saved(n_rows: int) -> int:
        rows = take(batch, slice(0, n_rows))
        # Other numbers of rows would have a compiled network compiled again, for any number of them, and run slower.
        with uncompiled(), trainer.precision_plugin.train_step_context(), torch.enable_grad():
            return saved_bytes(lambda: _loss(pl_module, rows), apart | _storages(_tensors_in(rows)))

    try:
        return saved_in_proportion(saved, batch.targets.shape[1])
    except Exception:  # of somebody's network: an estimate stops no training
        return None
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)


def _loss(pl_module: GrokModule, rows: Batch) -> Tensor:
    """Return the loss of a step as :meth:`GrokModule.training_step` has it, without its checks, which are done once."""
    bare = not isinstance(pl_module.network, Network)
    values: Tensor = pl_module.loss(pl_module(rows.inputs.squeeze(0) if bare else rows.inputs), rows.targets)
    return values.mean(dim=1).sum() if rows.weights is None else (values * rows.weights).sum()


def saved_in_proportion(saved: Callable[[int], int], n_rows: int) -> int:
    """Return ``saved(n_rows)``, found from a few rows if there are many: a straight line goes through two numbers."""
    few = min(FEW_ROWS, n_rows)
    size = saved(few)
    if few == n_rows or not size:
        return size
    more = min(n_rows, max(2 * few, few * TRIAL // size))
    if more == n_rows:
        return saved(n_rows)
    half = more // 2
    less, much = saved(half), saved(more)
    return much + math.ceil((much - less) * (n_rows - more) / (more - half))


def saved_bytes(run: Callable[[], object], apart: Set[Storage] = frozenset()) -> int:
    """Return the bytes of the distinct storages that autograd keeps of a computation, those ``apart`` not counted."""
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)  # alive, so that no other storage gets its address
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        result = run()
    total = _storage_bytes(kept, apart)
    del result
    return total


def _tensors_in(batch: Batch) -> list[Tensor]:
    found = [batch.inputs, batch.targets, batch.weights, batch.true_targets, *(batch.subsets or {}).values()]
    return [tensor for tensor in found if tensor is not None]


def _tensors_of(optimizer: Optimizer) -> list[Tensor]:
    return [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]


def _storages(tensors: Iterable[Tensor]) -> set[Storage]:
    return {(tensor.device, tensor.untyped_storage().data_ptr()) for tensor in tensors}


def _storage_bytes(tensors: Iterable[Tensor], apart: Set[Storage] = frozenset()) -> int:
    """Return the bytes of the distinct storages of tensors; views have that of what they are views of."""
    storages = [(tensor.device, tensor.untyped_storage()) for tensor in tensors]
    sizes = {(device, storage.data_ptr()): storage.nbytes() for device, storage in storages}
    return sum(size for place, size in sizes.items() if place not in apart)


# ---- histories -------------------------------------------------------------------------------------------------------


def copies_of_histories(callbacks: Iterable[Callback]) -> int:
    """Return how many times the numbers of all histories are in memory at the most, while a checkpoint is written.

    Once as they are; once stacked, for the checkpoint; and twice in the record that is written with it, as its arrays
    and as what goes into the file. Without a record, Lightning's own way of writing a checkpoint takes another.
    """
    chosen = list(callbacks)
    checkpoint = any(isinstance(callback, Checkpoint) for callback in chosen)
    record = any(isinstance(callback, Recorder) for callback in chosen)
    return 1 + int(checkpoint) + (2 if record else int(checkpoint))


def batches_of(steps: int, per_epoch: int | None, accumulated: int) -> int:
    """Return after how many batches so many optimizer steps are taken; an epoch ends with one, however few are left."""
    if not per_epoch:
        return steps * accumulated
    whole, rest = divmod(steps, math.ceil(per_epoch / accumulated))
    return whole * per_epoch + min(rest * accumulated, per_epoch)


def _course(trainer: Trainer) -> Course:
    last = total_steps(trainer)
    per_epoch = int(trainer.num_training_batches) if math.isfinite(trainer.num_training_batches) else None
    first, end = (
        batches_of(steps, per_epoch, trainer.accumulate_grad_batches) for steps in (trainer.global_step, last or 0)
    )
    cadence = Cadence(per_epoch, trainer.check_val_every_n_epoch, trainer.val_check_batch)
    return Course(trainer.global_step, last, (first, end), cadence if trainer.enable_validation else None)


def _histories(trainer: Trainer, course: Course) -> tuple[list[History], dict[str, list[str]]]:
    """Return what is known of the monitors' histories, and the names of monitors of which it is not, by the reason."""
    found: list[History] = []
    left_out: dict[str, list[str]] = {}
    for monitor in callbacks_of(trainer):
        if not isinstance(monitor, Monitor):
            continue
        measured = len(monitor.steps)
        to_come = _to_come(monitor.schedule, course)
        if not measured:
            left_out.setdefault("nothing measured yet", []).append(monitor.name)
        elif to_come is None:
            left_out.setdefault("number of measurements unknown", []).append(monitor.name)
        else:
            arrays = monitor.history.values()
            size = sum(values.nbytes for values in arrays) // measured
            found.append(History(monitor.name, monitor.schedule, measured, to_come, len(arrays), size))
    return found, left_out


def _to_come(schedule: Schedule, course: Course) -> int | None:
    """Return how many measurements there will be from the next step to the last; 0 where that is not known."""
    if course.last is None:
        return 0
    if schedule.at_validation:
        return course.cadence.between(*course.batches) if course.cadence else 0
    if type(schedule).count is Schedule.count and course.last - course.step > STEPS_ASKED:
        return None
    return schedule.count(course.step + 1, course.last)


def longest_histories(histories: Sequence[History], room: float, copies: int) -> list[tuple[History, float]]:
    """Return the histories that have to be shorter for all to fit into the room, longest first, and what each may take.

    Those that are short stay as they are; the others share the rest equally.

    Args:
        histories: Of all monitors.
        room: Bytes that may be taken beside those that the histories take already.
        copies: How many times each is in memory.

    """
    room = max(0.0, room) + sum(history.bytes_of(history.measured, 1) for history in histories)
    ordered = sorted(histories, key=lambda history: history.at_end(copies))
    for i, history in enumerate(ordered):
        each = room / (len(ordered) - i)
        if history.at_end(copies) > each:
            return [(long, each) for long in reversed(ordered[i:])]
        room -= history.at_end(copies)
    return []


# ---- what there is ---------------------------------------------------------------------------------------------------


def device_memory(device: torch.device) -> int:
    """Return the bytes that are free on a CUDA device: to other programs, or in what torch has reserved there."""
    free, _ = torch.cuda.mem_get_info(device)
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


def host_memory(
    system: Path = Path("/proc/meminfo"), groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> int | None:
    """Return the bytes of this machine's memory that a process can still have.

    That is the least of what the system has available, and of what is left below the limits of the process's control
    groups (both versions; a batch system or a container sets them), where there are any.

    Args:
        system: What Linux tells of the memory.
        groups: Where control groups are.
        own: What Linux tells of the groups that this process is in.

    Returns:
        ``None`` where nothing is known.

    """
    found = [_available(system), *_left_in_groups(groups, own)]
    known = [size for size in found if size is not None]
    return max(0, min(known)) if known else None


def _available(system: Path) -> int | None:
    with suppress(OSError):
        for line in system.read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                return int(value.split()[0]) * 1024
    with suppress(AttributeError, OSError, ValueError):  # not every system has these, nor every one the names
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _left_in_groups(groups: Path, own: Path) -> list[int | None]:
    """Return what is left in the groups of this process and in those above them; of the topmost always."""
    second, first = PurePosixPath("/"), PurePosixPath("/")
    with suppress(OSError):
        for line in own.read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            if number == "0":
                second = PurePosixPath(path)
            elif "memory" in controllers.split(","):
                first = PurePosixPath(path)
    return [
        *(_left(folder, "memory.max", "memory.current", "inactive_file") for folder in _with_parents(groups, second)),
        *(
            _left(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            for folder in _with_parents(groups / "memory", first)
        ),
    ]


def _with_parents(root: Path, path: PurePosixPath) -> list[Path]:
    """Return the folders of a group and of those above it; the root alone where the path leads out of it."""
    parts = path.parts[1:]
    return [root] if ".." in parts else [root.joinpath(*parts[:i]) for i in range(len(parts), -1, -1)]


def _left(folder: Path, limit: str, used: str, reclaimable: str) -> int | None:
    """Return the bytes below a group's limit that are not used, or by files alone that can be read again."""
    bytes_in: dict[str, int] = {}
    for name in (limit, used):
        with suppress(OSError, ValueError):  # "max" is no number
            bytes_in[name] = int((folder / name).read_text())
    if limit not in bytes_in:
        return None
    with suppress(OSError, ValueError):
        for line in (folder / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == reclaimable:
                bytes_in[name] = int(value)
    return bytes_in[limit] - max(0, bytes_in.get(used, 0) - bytes_in.get(reclaimable, 0))


# ---- what is said ----------------------------------------------------------------------------------------------------


def in_words(size: float) -> str:
    """Return a number of bytes with two digits or three, in powers of 1,000."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if size < 999.5 or unit == "TB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "bytes" or size >= 9.95 else f"{size:.1f} {unit}"


def _step_in_words(step: StepMemory, device: torch.device, free: int | None) -> str:
    parts = step._asdict()
    del parts["there"]
    if free is not None and step.parameters + step.to_come + (step.rows or 0) < TINY * free:
        del parts["gradients"], parts["rows"]
    told = [
        f"{name} {'unknown' if size is None else in_words(size)}"
        for name, size in parts.items()
        if size or (size is None and name != "rows")
    ]
    where = f" (of {in_words(free)} free on {device})" if free is not None and device.type == "cuda" else ""
    return ", ".join(told) + where


def _histories_in_words(histories: Sequence[History], copies: int, last: int | None, host: int | None) -> str:
    if not histories:
        return "" if host is None else f"{in_words(host)} free"
    where = "" if host is None else f" (of {in_words(host)} free)"
    if last is None:
        size = sum(history.bytes_of(1, copies) for history in histories)
        return f"histories {in_words(size)} for every measurement, to an unknown step{where}"
    return f"histories {in_words(sum(history.at_end(copies) for history in histories))} by step {last:,}{where}"


def _too_large(step: StepMemory, device: torch.device, free: int, pl_module: LightningModule) -> str:
    """Say that a step would take too much, what of it takes most, and what would take less."""
    parts = [(size or 0, name) for name, size in step._asdict().items() if name not in ("parameters", "rows", "there")]
    size, name = max(parts)
    ways = "take smaller batches (data.batch_size)"
    if isinstance(pl_module, GrokModule) and pl_module.n_members > 1:
        ways = f"train fewer members (population), spread them (--trainer.strategy population), or {ways}"
    where = f"free on {device}" if device.type == "cuda" else "free"
    return (
        f"memory: a training step would take {in_words(step.to_come)} more, {in_words(size)} of it {name}, and "
        f"{in_words(free)} are {where}: {ways}"
    )


def _outgrown(too_long: Sequence[tuple[History, float]], copies: int, room: int, course: Course) -> str:
    """Say which histories would outgrow the memory, and what in place of their schedules would not."""
    told = [
        f"{history.name} {in_words(history.at_end(copies))} ({_instead(history, each, copies, course)})"
        for history, each in too_long
    ]
    return (
        f"memory: histories would outgrow {SHARE_OF_HISTORIES:.0%} of the {in_words(room)} that are free for them, by "
        f"step {course.last:,} and with their copies in checkpoints and the record: {', '.join(told)}"
    )


def _instead(history: History, each: float, copies: int, course: Course) -> str:
    """Return what to write in place of a schedule, or of the Trainer's flag that it follows."""
    assert course.last is not None
    allowed = int(each // history.bytes_of(1, copies)) - history.measured
    schedule, cadence = history.schedule, course.cadence
    if schedule.at_validation:
        rarer = None if cadence is None else cadence.at_most(allowed, *course.batches)
        if cadence is None or rarer is None:
            return "no flag of the Trainer would make it fit"
        return f"--trainer.{rarer.flag()} in place of {cadence.flag()} would fit"
    sparser = schedule.at_most(allowed, course.step + 1, course.last)
    return (
        f"no {type(schedule).__name__} is known to fit"
        if sparser is None
        else f"{sparser} in place of {schedule} would fit"
    )
