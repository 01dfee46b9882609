"""What a run says in the terminal: one bar that counts steps, and a table at the end."""

import math
import sys
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from typing_extensions import override

from grok_callbacks import Monitor, Onset, callbacks_of
from grok_lightning.modules import GrokModule

__all__ = ["StepBar", "Summary"]

REFRESH_SECONDS = 0.2
LINES_OF_A_LOG = 20


class StepBar(ProgressBar):
    """One bar for the whole run, in optimizer steps, with the metrics that the module puts into the bar.

    Where the output is not a terminal, about twenty plain lines are printed instead.
    """

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._bar: Progress | None = None
        self._refreshed_at = 0.0
        self._next_line = 0
        self._last_line = -1

    @override
    def disable(self) -> None:
        self._enabled = False

    @override
    def enable(self) -> None:
        self._enabled = True

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        total = total_steps(trainer)
        if not self._enabled or not trainer.is_global_zero:
            return
        console = Console(stderr=True)
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("step"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[metrics]}"),
                console=console,
                refresh_per_second=1 / REFRESH_SECONDS,
            )
            self._bar.add_task("step", total=total, completed=trainer.global_step, metrics="")
        self._next_line = trainer.global_step

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._bar is not None:
            # Not when training starts: what other callbacks then have to say would be written into the bar.
            self._bar.start()

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        if now - self._refreshed_at >= REFRESH_SECONDS:
            self._refreshed_at = now
            self._show(trainer, pl_module)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._last_line != trainer.global_step:
            self._next_line = 0
            self._show(trainer, pl_module)
        self._close()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def _show(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = self.get_metrics(trainer, pl_module)
        text = "  ".join(f"{name} {value:.3f}" for name, value in metrics.items() if isinstance(value, float))
        step, total = trainer.global_step, total_steps(trainer)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, metrics=text)
        elif self._enabled and trainer.is_global_zero and step >= self._next_line:
            print(f"step {step}/{total or '?'}  {text}", file=sys.stderr, flush=True)  # noqa: T201
            self._last_line = step
            self._next_line = step + max(1, (total or 20 * step) // LINES_OF_A_LOG)

    @override
    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def total_steps(trainer: Trainer) -> int | None:
    """Return the number of steps at which training will end, ``None`` if no limit is known."""
    limits = [trainer.max_steps] if trainer.max_steps >= 0 else []
    if trainer.max_epochs is not None and trainer.max_epochs >= 0 and math.isfinite(trainer.num_training_batches):
        # Lightning takes a step at the end of an epoch, however few gradients have been accumulated.
        limits.append(trainer.max_epochs * math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches))
    return min(limits, default=None)


class Summary(Callback):
    """Prints, when training ends, what became of every member, what was measured, what that cost, and where it lies."""

    def __init__(self) -> None:
        self._began = 0.0
        self._first_step = 0
        self._validating = 0.0
        self._validation_began = 0.0

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began = time.perf_counter()
        self._first_step = trainer.global_step

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validation_began = time.perf_counter()

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._validating += time.perf_counter() - self._validation_began

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        seconds = time.perf_counter() - self._began
        console = Console()
        members = _member_table(trainer, pl_module)
        if members is not None:
            console.print(members)
        steps = trainer.global_step - self._first_step
        console.print(_cost_table(trainer, f"{steps} steps, {seconds:.1f} s", seconds, self._validating))


def _member_table(trainer: Trainer, pl_module: LightningModule) -> Table | None:
    onset = next((callback for callback in callbacks_of(trainer) if isinstance(callback, Onset)), None)
    if onset is None or not onset.onsets():
        return None
    members = pl_module.members if isinstance(pl_module, GrokModule) else {}
    table = Table(title="members: onsets in steps, accuracies at the end", title_justify="left")
    for name in ["member", *members, *onset.EVENTS, "train", "held out"]:
        table.add_column(name, justify="right")
    accuracy = onset.history["accuracy"][-1]
    for e in range(len(accuracy)):
        steps = [float(onset.onsets()[event].step[e]) for event in onset.EVENTS]
        table.add_row(
            str(e),
            *(f"{values[e]:g}" for values in members.values()),
            *(_or_dash(step, ".0f") for step in steps),
            *(_or_dash(float(value), ".3f") for value in accuracy[e]),
        )
    return table


def _or_dash(value: float, form: str) -> str:
    return "–" if math.isnan(value) else format(value, form)


def _cost_table(trainer: Trainer, title: str, seconds: float, validating: float) -> Table:
    table = Table(title=title, title_justify="left")
    for name in ("measured by", "measurements", "share of the time"):
        table.add_column(name, justify="left" if name == "measured by" else "right")
    table.add_row("validation, with what follows it", "", f"{validating / seconds:.1%}")
    for monitor in callbacks_of(trainer):
        if isinstance(monitor, Monitor):
            table.add_row(monitor.name, str(len(monitor.steps)), f"{monitor.seconds / seconds:.1%}")
    return table
