"""How far members have come in the time of their weight decay, and stopping when they have come to rest."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, final

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from .curves import read_metric
from .functional.convergence import box_share, come_to, settled
from .intervention import Intervention
from .members import n_members_here, n_members_in_all, own_members
from .monitor import Monitor, callbacks_of, named_array
from .parameters import member_parameters, tensor_norms
from .protocols import HasMemberDecay
from .replay import Replay
from .schedule import EveryValidation, Schedule

__all__ = ["Convergence", "StopWhenConverged"]


@final
class Convergence(Monitor):
    """Tracks what tells whether members have converged: the decay gone through, the norm, and AdamW's box.

    Efficient circuits win at convergence (Varma et al. 2023, arXiv 2309.02390), and weight decay sets the pace: a
    network forgets its past over 1/(lr·λ) steps. So time is counted in units of decay, Σ lr·λ over the steps taken, in
    which runs with different decays can be compared.

    Leaves, in float64:

    - ``decay_time`` ``(step, member)``: Σ lr·λ, with the learning rate and the decay with which each step was taken,
      whatever the schedule. With several parameter groups, those of the first group of the first optimizer. NaN where
      it is not known: in a run that goes on from a checkpoint without this callback, and when looking back at weights
      that were kept (:meth:`Monitor.look_back`), which took no steps.
    - ``norm`` ``(step, member)``: L2 norm of all parameters, as :class:`ParameterNorm` has it; NaN where one is.
    - ``box_share`` ``(step, member)``: share of the squared norm in weights of |w| > 1/(2λ), with the decay of each
      parameter's own group. AdamW drives no weight beyond 1/λ; a member with a large share is held by that box. NaN
      where there is none: without decay, or with an optimizer whose groups do not say ``decoupled_weight_decay``, as
      those of AdamW do.
    - ``weight_decay`` and ``eps`` ``(member)``: of the member, where the module knows it (:class:`HasMemberDecay`),
      otherwise of the first group; NaN for an optimizer that has no ``eps``.

    With a :class:`Replay` the optimizer is the one that the module's ``configure_optimizers`` makes. Loggers get means
    over the members that have a value.

    Args:
        schedule: When to measure; time is counted at every step.
        name: Name of the record's group and prefix of logged scalars.

    """

    dims: ClassVar[Mapping[str, tuple[str, ...]]] = {"decay_time": (), "norm": (), "box_share": ()}

    def __init__(
        self,
        schedule: Schedule = EveryValidation(),  # noqa: B008 - a frozen value
        name: str = "convergence",
    ) -> None:
        super().__init__(schedule, name)
        # Plain numbers: for a few members adding these up takes a tenth of the time that tensors take.
        self._time: list[float] | None = None
        self._counted = -1
        self._own_decays: list[float] | None = None
        self._constants: dict[str, Tensor] = {}

    def time_known(self, step: int) -> bool:
        """Return whether it is known, at a step of training, how much decay every member has gone through."""
        if self._time is None:
            return step == 0
        return not any(math.isnan(time) for time in self._time)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        member_parameters(pl_module, "Convergence")
        _own_decays(pl_module)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        own = _own_decays(pl_module)
        self._own_decays = None if own is None else own.tolist()
        if self._time is None:
            past = 0.0 if trainer.global_step == 0 else torch.nan
            self._time = [past] * n_members_in_all(pl_module)
        super().on_train_start(trainer, pl_module)

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        # Here: when the batch has ended, a scheduler has moved the learning rate on, and callbacks before this one may
        # have saved a checkpoint. A closure may come here more than once a step.
        step, optimizers = trainer.global_step, trainer.optimizers
        if step == self._counted or (len(optimizers) > 1 and optimizer is not optimizers[0]):
            return
        assert self._time is not None
        self._counted = step
        group = optimizer.param_groups[0]
        rate = float(group.get("lr", torch.nan))
        if self._own_decays is None:
            units = rate * float(group.get("weight_decay", 0.0))
            self._time = [time + units for time in self._time]
        else:
            self._time = [time + rate * decay for time, decay in zip(self._time, self._own_decays, strict=True)]

    @override
    def measure(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Tensor]:
        parameters = member_parameters(pl_module, "Convergence")
        optimizers = _optimizers(trainer, pl_module)
        unknown = torch.full((n_members_in_all(pl_module),), torch.nan, dtype=torch.float64)
        eps = next((group["eps"] for group in _groups(optimizers) if "eps" in group), torch.nan)
        self._constants = {
            "weight_decay": _decays(pl_module, optimizers),
            "eps": torch.full_like(unknown, float(eps)),
        }
        time = unknown if self._time is None else torch.tensor(self._time, dtype=torch.float64)
        return {
            "decay_time": own_members(pl_module, time),
            "norm": torch.linalg.vector_norm(tensor_norms(parameters), dim=1),
            "box_share": box_share(parameters.values(), _boxes(pl_module, optimizers)),
        }

    @override
    def scalars(self, values: dict[str, Tensor]) -> dict[str, float]:
        return {name: float(value.nanmean()) for name, value in values.items() if not bool(value.isnan().all())}

    @override
    def record(self) -> dict[str, named_array]:
        arrays = super().record()
        return arrays | {name: (("member",), value) for name, value in self._constants.items() if arrays}

    @override
    def forget(self) -> None:
        super().forget()
        self._time, self._counted, self._constants = None, -1, {}

    @override
    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "time": self._time,
            "counted": self._counted,
            "constants": dict(self._constants),
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._time = state_dict["time"]
        self._counted = state_dict["counted"]
        self._constants = dict(state_dict["constants"])


@final
class StopWhenConverged(Intervention):
    """Stops training at the first validation at which every member has come to rest, by a :class:`Convergence`.

    Over the last part of its decay time a member's training loss, accuracy and norm have all moved by less than they
    may, see :func:`grok_callbacks.functional.settled`; and some decay was gone through at all. A plateau that is longer
    than that looks the same. A loss that is 0 throughout has not moved; one that comes and goes from 0 has.

    Where the metrics are missing at a validation, that validation does not count, and the first time it is said.

    What would never stop is refused at the start: members without weight decay, and a run that goes on from a
    checkpoint without the Convergence, which then does not know the decay time.

    Args:
        loss_moved: How far the natural logarithm of the training loss may move, above 0: the loss of cross-entropy
            falls by orders of magnitude.
        accuracy_moved: How far the training accuracy may move, above 0.
        norm_moved: How far the norm of the parameters may move, as a share of itself, above 0.
        window: Share of the decay time so far, in (0, 1].
        at_least: Decay time Σ lr·λ that every member has to go through first, at least 0.
        metric_loss: Name of the training loss, as the module logs it.
        metric_accuracy: Name of the training accuracy.
        convergence: Name of the Convergence callback, which has to follow validations.

    Raises:
        ValueError: If a number is out of range.

    """

    def __init__(
        self,
        loss_moved: float = 0.2,
        accuracy_moved: float = 0.02,
        norm_moved: float = 0.02,
        window: float = 1 / 3,
        at_least: float = 1.0,
        metric_loss: str = "train/loss",
        metric_accuracy: str = "train/accuracy",
        convergence: str = "convergence",
    ) -> None:
        moved = {"loss_moved": loss_moved, "accuracy_moved": accuracy_moved, "norm_moved": norm_moved}
        _check_rule(moved, window)
        if not at_least >= 0:
            raise ValueError(f"at_least: expected at least 0, got {at_least}")
        self.loss_moved = loss_moved
        self.accuracy_moved = accuracy_moved
        self.norm_moved = norm_moved
        self.window = window
        self.at_least = at_least
        self.metric_loss = metric_loss
        self.metric_accuracy = metric_accuracy
        self.convergence = convergence
        self._step = -1
        self._values: dict[str, list[Tensor]] = {}
        self._told = False

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self._convergence(trainer)
        if trainer.global_step == 0:  # a second run with the same object does not go on with the first one's values
            self._step, self._values, self._told = -1, {}, False

    @override
    def state_dict(self) -> dict[str, Any]:
        values = {name: torch.stack(values) for name, values in self._values.items()}
        return {"step": self._step, "values": values}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._step = state_dict["step"]
        self._values = {name: list(values.unbind(0)) for name, values in state_dict["values"].items()}

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        decays = _decays(pl_module, _optimizers(trainer, pl_module))
        if not bool((decays > 0).all()):
            which = [index for index, decay in enumerate(decays.tolist()) if not decay > 0]
            who = "the optimizer has no weight decay" if len(which) == len(decays) else f"members {which} have none"
            raise ValueError(
                f"StopWhenConverged counts time by weight decay, and {who}: training would never stop; use max_steps, "
                "or leave such members out"
            )
        convergence = self._convergence(trainer)
        if not convergence.time_known(trainer.global_step):
            raise ValueError(
                f"StopWhenConverged counts time by weight decay, and '{self.convergence}' does not know how much went "
                f"by before step {trainer.global_step}, from a checkpoint without it: training would never stop; use "
                "max_steps"
            )
        if convergence.owed == trainer.global_step:  # a validation to be made up for, at which it might have stopped
            convergence.on_train_start(trainer, pl_module)
            self._look(trainer, pl_module, convergence)
        elif self._step == trainer.global_step:  # one at which it stopped, unless it was interrupted before
            self._stop_if(self._settled(), trainer)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            convergence = self._convergence(trainer)
            # Ours may come before it in the Trainer's list: it measures a step once, whoever asks first.
            convergence.on_validation_end(trainer, pl_module)
            self._look(trainer, pl_module, convergence)

    def _look(self, trainer: Trainer, pl_module: LightningModule, convergence: Convergence) -> None:
        """Take the values of this validation, and stop if that is enough."""
        self._stop_if(self._take(trainer, pl_module, convergence) and self._settled(), trainer)

    def _stop_if(self, due: bool, trainer: Trainer) -> None:
        # Together or not at all: a foreign module may log other values on every process.
        if trainer.strategy.reduce_boolean_decision(due, all=False):
            trainer.should_stop = True
            if self._values:  # it may have been another process that had them
                rank_zero_info(self._why(trainer.global_step))

    def _take(self, trainer: Trainer, pl_module: LightningModule, convergence: Convergence) -> bool:
        """Add the values of this step to the history; return whether they are there."""
        names = {"loss": self.metric_loss, "accuracy": self.metric_accuracy}
        metrics = {key: read_metric(trainer, pl_module, name) for key, name in names.items()}
        missing = [names[key] for key, value in metrics.items() if value is None]
        if missing:
            if not self._told:
                rank_zero_warn(
                    f"StopWhenConverged: no {' and no '.join(missing)} at the validation of step "
                    f"{trainer.global_step}; training cannot stop at a validation without"
                )
            self._told = True
            return False
        if trainer.global_step > self._step:
            members = n_members_in_all(pl_module)
            values = {key: value.cpu().double().expand(members) for key, value in metrics.items() if value is not None}
            measured = convergence.history
            values |= {"time": measured["decay_time"][-1], "norm": measured["norm"][-1]}
            for key, value in values.items():
                self._values.setdefault(key, []).append(value.clone())
            self._step = trainer.global_step
        return True

    def _settled(self) -> bool:
        values = {key: torch.stack(kept) for key, kept in self._values.items()}
        time, loss = values["time"], values["loss"]
        # Of a loss of 0 the logarithm would be minus infinity, which is never at rest.
        log_loss = torch.where(loss == 0, torch.finfo(loss.dtype).tiny, loss).log()
        rested = (
            settled(time, log_loss, self.loss_moved, self.window)
            & settled(time, values["accuracy"], self.accuracy_moved, self.window)
            & settled(time, values["norm"], self.norm_moved, self.window, relative=True)
        )
        return bool((rested & come_to(time[-1], self.at_least)).all())

    def _why(self, step: int) -> str:
        times = sorted({f"{time:.3g}" for time in self._values["time"][-1].tolist()}, key=float)
        return (
            f"StopWhenConverged: converged after {' to '.join(dict.fromkeys([times[0], times[-1]]))} decay units, at "
            f"step {step}: over the last {self.window:.0%} of them log {self.metric_loss} moved by less than "
            f"{self.loss_moved:g}, {self.metric_accuracy} by less than {self.accuracy_moved:g}, the norm by less than "
            f"{self.norm_moved:.1%} in every member"
        )

    def _convergence(self, trainer: Trainer) -> Convergence:
        for callback in callbacks_of(trainer):
            if isinstance(callback, Convergence) and callback.name == self.convergence:
                if not callback.schedule.at_validation:
                    raise ValueError(
                        f"StopWhenConverged: the Convergence callback '{self.convergence}' has to follow validations, "
                        f"got the schedule {callback.schedule}"
                    )
                return callback
        raise ValueError(f"StopWhenConverged: the Trainer has no Convergence callback named '{self.convergence}'")


def _check_rule(moved: Mapping[str, float], window: float) -> None:
    for argument, value in moved.items():
        if not value > 0:
            raise ValueError(f"{argument}: expected more than 0, got {value}")
    if not 0 < window <= 1:
        raise ValueError(f"window: expected a share in (0, 1], got {window}")


def _optimizers(trainer: Trainer, pl_module: LightningModule) -> list[Optimizer]:
    """Return the optimizers of the training; when looking back, such as the module would train with."""
    if isinstance(trainer, Replay):
        return list(_optimizers_in(pl_module.configure_optimizers()))
    return list(trainer.optimizers)


def _optimizers_in(configured: object) -> Iterator[Optimizer]:
    """Yield the optimizers in what ``configure_optimizers`` returned, in any of the forms that Lightning takes."""
    if isinstance(configured, Optimizer):
        yield configured
    elif isinstance(configured, Mapping):
        yield from _optimizers_in(configured.get("optimizer"))
    elif isinstance(configured, Sequence):
        for part in configured:
            yield from _optimizers_in(part)


def _groups(optimizers: Sequence[Optimizer]) -> Iterator[dict[str, Any]]:
    for optimizer in optimizers:
        yield from optimizer.param_groups


def _own_decays(pl_module: LightningModule) -> Tensor | None:
    """Return λ of each member of the whole population, ``(E,)``, where the module has such numbers.

    Raises:
        ValueError: If there are not as many as members.

    """
    decays = pl_module.weight_decays if isinstance(pl_module, HasMemberDecay) else None
    if decays is None:
        return None
    members = n_members_in_all(pl_module)
    if len(decays) != members:
        raise ValueError(f"weight_decays: expected those of {members} members, got {len(decays)}")
    return torch.tensor(decays, dtype=torch.float64)


def _decays(pl_module: LightningModule, optimizers: Sequence[Optimizer]) -> Tensor:
    """Return λ of each member of the whole population, ``(E,)``; NaN without an optimizer."""
    own = _own_decays(pl_module)
    if own is not None:
        return own
    decay = next((group.get("weight_decay", 0.0) for group in _groups(optimizers)), torch.nan)
    return torch.full((n_members_in_all(pl_module),), float(decay), dtype=torch.float64)


def _boxes(pl_module: LightningModule, optimizers: Sequence[Optimizer]) -> list[Tensor]:
    """Return for every parameter the λ ``(e,)`` of the box that holds it, 0 if none does; e members of this process."""
    none = torch.zeros(n_members_here(pl_module), dtype=torch.float64)
    own = _own_decays(pl_module)
    own = None if own is None else own_members(pl_module, own)
    boxes: dict[int, Tensor] = {}
    for group in _groups(optimizers):
        if group.get("decoupled_weight_decay", False):  # AdamW's say so too
            decay = none + float(group.get("weight_decay", 0.0)) if own is None else own
            boxes |= {id(parameter): decay for parameter in group["params"]}
    return [boxes.get(id(parameter), none) for parameter in pl_module.parameters()]
