"""When members memorise, generalise and forget."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, final

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from .curves import read_metric
from .functional.onset import Onsets, falling_onset, rising_onset
from .intervention import Intervention
from .monitor import Monitor, callbacks_of, named_array
from .schedule import EveryValidation

__all__ = ["Event", "Onset", "StopAfterOnset", "find_onset"]

Event = Literal["memorised", "generalised", "forgotten"]


@final
class Onset(Monitor):
    """Finds, from the validation curves, the steps at which members memorise, generalise and forget.

    *memorised*: first accuracy above ``memorised_above`` on the rows trained on; no dwell, as it dips again before the
    network generalises. *generalised*: held-out accuracy reaches ``generalised_from`` and for ``dwell`` steps does not
    dip below it by more than ``slack``. *forgotten*: after that, held-out accuracy falls below ``generalised_from`` by
    more than ``slack``, and for ``dwell`` steps does not come back to it. An onset is confirmed when its dwell is over
    and then stays; it is known to the resolution of the validations.

    Leaves ``step``, ``confirmed_at``, ``resolution`` and ``last_step`` with dimensions ``(event, member)``; NaN = not
    by ``last_step``, the last step at which the accuracy was measured (itself NaN where it never was).

    The threshold for memorisation is that of Merrill, Tsilivis, Shukla 2023 (arXiv 2303.11873, Figure 5).

    Args:
        train_accuracy: Name of the metric on rows trained on, as the module logs it.
        held_out_accuracy: Name of the metric on held-out rows.
        memorised_above: In [0, 1].
        generalised_from: In [0, 1].
        dwell: In optimizer steps, at least 0.
        slack: At least 0.
        name: Name of the record's group.

    Raises:
        ValueError: If a number is out of range.

    """

    EVENTS: ClassVar[tuple[Event, ...]] = ("memorised", "generalised", "forgotten")

    dims: ClassVar[dict[str, tuple[str, ...]]] = {"accuracy": ("split",)}
    labels: Mapping[str, Sequence[str | int]] = {"event": EVENTS}
    gathered: ClassVar[bool] = True

    def __init__(
        self,
        train_accuracy: str = "train/accuracy",
        held_out_accuracy: str = "val/accuracy",
        memorised_above: float = 0.98,
        generalised_from: float = 0.98,
        dwell: int = 300,
        slack: float = 0.02,
        name: str = "onset",
    ) -> None:
        super().__init__(EveryValidation(), name)
        for argument, share in [("memorised_above", memorised_above), ("generalised_from", generalised_from)]:
            if not 0 <= share <= 1:
                raise ValueError(f"{argument}: expected an accuracy in [0, 1], got {share}")
        if dwell < 0 or slack < 0:
            raise ValueError(f"dwell and slack: expected at least 0, got {dwell} and {slack}")
        self.train_accuracy = train_accuracy
        self.held_out_accuracy = held_out_accuracy
        self.memorised_above = memorised_above
        self.generalised_from = generalised_from
        self.dwell = dwell
        self.slack = slack
        self._found: tuple[int, dict[Event, Onsets]] | None = None

    @override
    def measure(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Tensor]:
        train = read_metric(trainer, pl_module, self.train_accuracy)
        held_out = read_metric(trainer, pl_module, self.held_out_accuracy)
        known = train if train is not None else held_out
        if known is None:
            return {}
        missing = torch.full_like(known, torch.nan)
        pair = [missing if train is None else train, missing if held_out is None else held_out]
        return {"accuracy": torch.stack(pair, dim=1)}

    def onsets(self) -> dict[Event, Onsets]:
        """Return, for every event, when it set in, for every member ``(E,)``; ``{}`` before the first measurement."""
        steps = self.steps
        if not len(steps):
            return {}
        if self._found is None or self._found[0] != len(steps):
            # In the metric's own precision: a float32 0.98 is above a float64 one.
            train, held_out = self.history["accuracy"].unbind(dim=2)
            generalised = rising_onset(steps, held_out, self.generalised_from, self.dwell, self.slack)
            found: dict[Event, Onsets] = {
                "memorised": rising_onset(steps, train, self.memorised_above, dwell=0, strict=True),
                "generalised": generalised,
                "forgotten": falling_onset(
                    steps, held_out, self.generalised_from, self.dwell, self.slack, after=generalised.confirmed_at
                ),
            }
            self._found = (len(steps), found)
        return self._found[1]

    @override
    def record(self) -> dict[str, named_array]:
        onsets = self.onsets()
        if not onsets:
            return {}
        dims = ("event", "member")
        # An accuracy that was never measured, such as that of rows never seen twice, has no last step.
        looked = torch.where(self.history["accuracy"].isnan(), -1.0, self.steps.double().reshape(-1, 1, 1)).amax(dim=0)
        train, held_out = torch.where(looked < 0, torch.nan, looked).unbind(dim=1)
        return {
            "step": (dims, torch.stack([onsets[event].step for event in self.EVENTS])),
            "confirmed_at": (dims, torch.stack([onsets[event].confirmed_at for event in self.EVENTS])),
            "resolution": (dims, torch.stack([onsets[event].resolution for event in self.EVENTS])),
            "last_step": (dims, torch.stack([train if event == "memorised" else held_out for event in self.EVENTS])),
        }

    @override
    def forget(self) -> None:
        super().forget()
        self._found = None

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._found = None

    @override
    def attributes(self) -> dict[str, str | int | float]:
        return {
            "memorised_above": self.memorised_above,
            "generalised_from": self.generalised_from,
            "dwell": self.dwell,
            "slack": self.slack,
        }


@final
class StopAfterOnset(Intervention):
    """Stops training some steps after every member has come to an event, as an :class:`Onset` beside it finds.

    Args:
        event: ``memorised``, ``generalised`` or ``forgotten``.
        steps: How many steps to go on after the last member's onset is confirmed, at least 0. Training stops at the
            first validation from there on.
        onset: Name of the Onset callback.

    Raises:
        ValueError: If ``steps`` is negative, or the event is unknown.

    """

    def __init__(self, event: Event = "generalised", steps: int = 0, onset: str = "onset") -> None:
        if steps < 0:
            raise ValueError(f"steps: expected at least 0, got {steps}")
        if event not in Onset.EVENTS:
            raise ValueError(f"event: expected one of {', '.join(Onset.EVENTS)}, got '{event}'")
        self.event: Event = event
        self.steps = steps
        self.onset = onset

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._onset(trainer)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        onset, step = self._onset(trainer), trainer.global_step
        if onset.owed == step:
            onset.on_train_start(trainer, pl_module)
        if step and onset.steps[-1:].tolist() == [step]:
            # A validation at which the run stopped, or would have, had it not been interrupted before.
            self._stop_if_due(trainer)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            # Ours may come before the Onset in the Trainer's list: it measures a step once, whoever asks first.
            self._onset(trainer).on_validation_end(trainer, pl_module)
            self._stop_if_due(trainer)

    def _stop_if_due(self, trainer: Trainer) -> None:
        onsets = self._onset(trainer).onsets()
        due = False
        if onsets:
            confirmed = onsets[self.event].confirmed_at
            due = not bool(confirmed.isnan().any()) and trainer.global_step >= float(confirmed.max()) + self.steps
        # Together or not at all: a foreign module may log other values on every process.
        if trainer.strategy.reduce_boolean_decision(due, all=False):
            trainer.should_stop = True

    def _onset(self, trainer: Trainer) -> Onset:
        return find_onset(trainer, self.onset, "StopAfterOnset")


def find_onset(trainer: Trainer, name: str, who: str) -> Onset:
    """Return the Trainer's Onset callback of that name.

    Raises:
        ValueError: If there is none; the message begins with ``who`` asks.

    """
    for callback in callbacks_of(trainer):
        if isinstance(callback, Onset) and callback.name == name:
            return callback
    raise ValueError(f"{who}: the Trainer has no Onset callback named '{name}'")
