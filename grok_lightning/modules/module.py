"""The LightningModule that trains a population."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy, Strategy
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from typing_extensions import override

from grok_callbacks import Intervention, callbacks_of
from grok_callbacks.members import own_members as of_own_members
from grok_callbacks.snapshots import state_of
from grok_lightning.batch import Batch
from grok_lightning.losses import Loss, check_labels, correct, get_loss
from grok_lightning.modules.member_mean import MemberMean
from grok_lightning.modules.ragged import Ragged
from grok_lightning.modules.warm_start import read_warm_start
from grok_lightning.networks import Network
from grok_lightning.optim import MemberDecay, check_elementwise, override_optimizer, override_scheduler
from grok_lightning.population import (
    Coordinate,
    Populated,
    SpreadsMembers,
    as_members,
    check_consumed,
    n_members,
    own_members,
    seeds,
    stream,
)

__all__ = ["GrokModule"]

PREFIXES = {"train": "train", "held_out": "val"}
"""What the metrics of a split are called, before the slash."""
IN_BAR = ("train/accuracy", "val/accuracy")
TAKES_APART = (
    "takes a network apart, which these are too small for; use population (members over devices), ddp (rows over "
    "devices) or auto"
)


class GrokModule(LightningModule, ABC):
    """Trains the E members of a population in lockstep, by automatic optimization.

    The loss of a step is the *sum* over members of each member's own mean over rows, so that every member moves as it
    would alone. Validation measures the rows that are trained on and the held-out rows, for every member, as far as the
    data module has both; population means are logged as ``train/loss``, ``train/accuracy``, ``val/loss``,
    ``val/accuracy`` (``val`` = held out) at the number of optimizer steps taken, and ``train/true_accuracy`` beside
    them where labels are noisy. Rows that the data tell apart (:attr:`Batch.subsets`) have metrics of their own, such
    as ``val_unpaired/loss`` and ``val_unpaired/accuracy``, NaN for a member without such rows, beside
    ``val/unpaired_share``, their share of all held-out rows.

    Coordinates: ``seed``; ``init_seed`` (initial weights; ``seed`` where not given); ``weight_decay`` (in place of the
    optimizer's).

    Args:
        loss: Name of a loss, or a function ``(logits (E, B, C), targets (E, B)) -> (E, B)``.
        optimizer: Makes the optimizer from parameters.
        scheduler: Makes a learning-rate scheduler from the optimizer; it is stepped every optimizer step.
        members: Table of coordinates, equal-length lists; ``None`` is one member with seed 0.
        warm_start: Checkpoint, or directory of a run, to take the initial weights from, when a fit begins that does not
            resume: of its one member for all, or, for each, of its member with the same seed.

    Attributes:
        network: The network, ``None`` until Lightning (or a first call) configures the model; of this process's members
            alone where the strategy spreads them over processes.
        warm_started: Where the initial weights came from: ``path`` and ``sha256`` of the checkpoint; ``{}`` where they
            were drawn.

    """

    coordinates: ClassVar[frozenset[str]] = frozenset({"seed", "init_seed", "weight_decay"})

    network: nn.Module | None

    def __init__(
        self,
        loss: str | Loss,
        optimizer: OptimizerCallable,
        scheduler: LRSchedulerCallable | None,
        members: Mapping[str, Sequence[Coordinate]] | None,
        warm_start: str | None = None,
    ) -> None:
        super().__init__()
        self.members = as_members(members)
        self.warm_start = warm_start
        self.warm_started: dict[str, str] = {}
        self.loss = get_loss(loss)
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.network = None
        self.metrics = nn.ModuleDict(
            {
                f"{split}/{name}": MemberMean(self.n_members_in_all)
                for split in PREFIXES.values()
                for name in ("loss", "accuracy", "true_accuracy")
            }
        )
        self._member_metrics: tuple[int, dict[str, Tensor]] | None = None
        self._rows_checked = False
        self._ragged: Ragged | None = None
        self._own = range(self.n_members_in_all)
        self._decay = self._member_decay()

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning notes the name of the hook it is in some forty times a step, and nn.Module would each time search
        # for parameters, modules and buffers. A plain attribute that stays one can be set plainly: a tenth of a step.
        if (value is None or type(value) is str) and name in self.__dict__:
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    @abstractmethod
    def build_network(self, generators: Sequence[torch.Generator]) -> nn.Module:
        """Return the network, drawn from one CPU generator a member.

        A plain ``nn.Module`` that maps ``(B, ...)`` to ``(B, C)`` serves a population of one.
        """

    @property
    def n_members_in_all(self) -> int:
        """E, the number of members."""
        return n_members(self.members)

    @property
    def n_members(self) -> int:
        """Number of members that this process has: E, or fewer where the strategy spreads them over processes."""
        return len(self._own)

    @property
    def own_members(self) -> slice:
        """Which of the E members this process has."""
        if self.n_members == self.n_members_in_all:
            return slice(None)  # of a plain network too, whose weights do not lead with members
        return slice(self._own.start, self._own.stop, self._own.step)

    def gather_members(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return values of this process's members, ``(e, ...)``, as those of all, ``(E, ...)``; in every process."""
        strategy = self.trainer.strategy if self.n_members < self.n_members_in_all else None
        return strategy.gather_members(values) if isinstance(strategy, SpreadsMembers) else dict(values)

    def keep_hyperparameters(self) -> None:
        """Save the arguments of the final class's ``__init__``, without functions: a checkpoint holds plain types.

        Call it last in ``__init__``. Under the command line a class path stands in a function's place and is kept.
        ``warm_start`` is no argument of a network that has its weights, and is left out.
        """
        for name in [name for name, value in self.hparams.items() if callable(value) or name == "warm_start"]:
            del self.hparams[name]

    @override
    def configure_model(self) -> None:
        """Build the network of this process's members, once."""
        if self.network is not None:
            self.network = self._own_part(self.network)
            return
        all_seeds = seeds(self.members, "init_seed")
        generators = [stream(all_seeds[e], "initial weights") for e in self._own]
        # A plain network draws from torch's global generator; it starts from its member's seed all the same.
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(generators[0].initial_seed())
            network = self.build_network(generators)
        if not isinstance(network, Network) and self.n_members_in_all > 1:
            raise ValueError(
                f"{type(network).__name__} has no member axis: it can be a population of one, not of "
                f"{self.n_members_in_all}"
            )
        self.network = network

    def _own_part(self, network: nn.Module) -> nn.Module:
        """Return the network as it is, or, of all members, a smaller one with this process's."""
        if not isinstance(network, Network) or network.n_members == self.n_members:
            return network
        if network.n_members != self.n_members_in_all:
            raise RuntimeError(
                f"the network has {network.n_members} of {self.n_members_in_all} members, from another Trainer; "
                f"this one is to have {self.n_members}: load a checkpoint into a new module"
            )
        return network.with_state({name: value[self.own_members] for name, value in network.state_dict().items()})

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits ``(E, B, C)`` for inputs ``(E, B, ...)`` or ``(B, ...)``; for a plain network the latter."""
        self.configure_model()
        assert self.network is not None
        logits: Tensor = self.network(inputs)
        return logits if isinstance(self.network, Network) else logits.unsqueeze(0)

    @override
    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights; where there is no network yet, into one that is made for them, in their precision.

        Lightning hands what was trained in processes that it has forked to the module that they were forked from.
        """
        weights = [value for name, value in state_dict.items() if name.startswith("network.")]
        if self.network is None and weights:
            self.configure_model()
            self.to(next((value.dtype for value in weights if value.is_floating_point()), None))
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def take_all_members(self) -> None:
        """Have the networks of all members, on the CPU, where they were spread over processes; ask in every process."""
        if not isinstance(self.network, Network) or self.n_members == self.n_members_in_all:
            return
        self.network = self.network.with_state(self.gather_members(self.network.state_dict()))
        self._own = range(self.n_members_in_all)

    def member(self, index: int) -> Network:
        """Return the network of member ``index``, a copy with a population of one.

        Raises:
            IndexError: If there is no such member, or another process has it.
            TypeError: If the network is a plain module, which has no members to choose from.

        """
        self.configure_model()
        if not isinstance(self.network, Network):
            raise TypeError(f"{type(self.network).__name__} has no member axis; use module.network itself")
        if self.n_members == self.n_members_in_all:
            return self.network.member(index)
        wanted = range(self.n_members_in_all)[index]
        if wanted not in self._own:
            raise IndexError(f"member {wanted} is in another process; this one has {list(self._own)}")
        return self.network.member(self._own.index(wanted))

    @override
    def setup(self, stage: str) -> None:
        """Refuse what would train wrongly without a word."""
        # Another run with the same object, in a notebook say, has other weights and other rows.
        self._member_metrics = None
        self._rows_checked = False
        self._ragged = None
        if takes_apart(type(self.trainer.strategy)):
            raise ValueError(f"strategy: {type(self.trainer.strategy).__name__} {TAKES_APART}")
        self._own = own_members(self.trainer.strategy, self.n_members_in_all)
        self._decay = self._member_decay()
        datamodule = self._populated_data()
        consumed = set(self.coordinates)
        if datamodule is not None:
            if datamodule.members != self.members:
                raise ValueError(
                    f"members of the model and of the data differ: {self.members} and {datamodule.members}"
                )
            consumed |= datamodule.coordinates
        for callback in callbacks_of(self.trainer):
            consumed |= callback.coordinates if isinstance(callback, Intervention) else set()
        check_consumed(self.members, consumed)
        clips = self.trainer.gradient_clip_val and self.trainer.gradient_clip_algorithm != "value"
        if stage == "fit" and self.n_members_in_all > 1 and clips:
            raise ValueError(
                "gradient_clip_val: one norm over all members would couple them; use "
                "gradient_clip_algorithm: value, or a population of one"
            )
        if stage == "fit" and self._decay is not None and getattr(self.trainer.precision_plugin, "scaler", None):
            raise ValueError(
                "weight_decay as a coordinate: gradients that are scaled for float16 would hide it; "
                "use bf16-mixed or 32-true"
            )

    @override
    @torch.no_grad()
    def on_fit_start(self) -> None:
        """Take the initial weights from where ``warm_start`` says, once, and not when resuming."""
        if self.warm_start is None or self.warm_started or self.trainer.ckpt_path is not None:
            return
        initial = read_warm_start(self.warm_start, self.members)
        live = {name: value for name, value in state_of(self).items() if name.startswith("network.")}
        theirs = {
            name: of_own_members(self, value) for name, value in initial.weights.items() if name.startswith("network.")
        }
        for name in sorted({*live, *theirs}):
            shapes = [None if name not in state else tuple(state[name].shape) for state in (live, theirs)]
            if shapes[0] != shapes[1]:
                ours, there = ("missing" if shape is None else f"of shape {shape}" for shape in shapes)
                raise ValueError(
                    f"warm_start: {initial.path} is of another network: '{name}' is {there} there, and {ours} here"
                )
        for name, value in live.items():
            value.copy_(theirs[name])
        self.warm_started = {"path": initial.path, "sha256": initial.sha256}
        rank_zero_info(f"initial weights from {initial.path}")

    @property
    def weight_decays(self) -> list[float] | None:
        """Weight decay of every member where it is a coordinate; ``None`` where it is the optimizer's."""
        decays = self.members.get("weight_decay")
        return None if decays is None else [float(value) for value in decays]

    def _member_decay(self) -> MemberDecay | None:
        """Return what decays this process's members, where weight decay is a coordinate."""
        decays = self.weight_decays
        return None if decays is None else MemberDecay([decays[e] for e in self._own])

    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.optimizer(self.parameters())
        if self.n_members_in_all > 1:
            check_elementwise(optimizer)
        if self._decay is not None:
            default = inspect.signature(type(self)).parameters.get("optimizer")
            self._decay.take_over(optimizer, typed=default is None or self.optimizer is not default.default)
        if self.scheduler is None:
            return optimizer
        scheduler = self.scheduler(optimizer)
        if isinstance(scheduler, ReduceLROnPlateau):
            if self.n_members_in_all > 1:
                raise ValueError(
                    "ReduceLROnPlateau: one learning rate for all members, chosen by their mean, would couple them; "
                    "use a population of one"
                )
            monitor = getattr(scheduler, "monitor", "val/loss")
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": monitor}}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Let what was typed for the optimizer win over what the checkpoint was trained with; refuse other members.

        Raises:
            ValueError: If the checkpoint is of other members, another optimizer or another scheduler.

        """
        self.warm_started = checkpoint.get("warm_started", {})
        there = checkpoint.get("hyper_parameters", {})
        for name, values in (there.get("members") or {}).items():
            if name != "weight_decay" and values != self.members.get(name):
                raise ValueError(
                    f"ckpt_path: the checkpoint is of members with {name} {values}, not {self.members.get(name)}"
                )
        for name, (old, new) in self._typed_anew(there, "optimizer").items():
            if name != "weight_decay" or self._decay is None:
                override_optimizer(checkpoint, name, old, new)
        override_scheduler(checkpoint, {name: new for name, (_, new) in self._typed_anew(there, "scheduler").items()})

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.warm_started:
            checkpoint["warm_started"] = self.warm_started

    def _typed_anew(self, there: Mapping[str, Any], what: str) -> dict[str, tuple[Any, Any]]:
        """Return the arguments of the optimizer or scheduler that differ from a checkpoint's: old and new value."""
        before, now = there.get(what), self.hparams.get(what)
        if what not in there or what not in self.hparams or before == now:
            return {}
        kinds = [value["class_path"] if isinstance(value, dict) else value for value in (before, now)]
        if not isinstance(before, dict) or not isinstance(now, dict) or kinds[0] != kinds[1]:
            raise ValueError(f"ckpt_path: the checkpoint was trained with {what} {kinds[0]}, not {kinds[1]}")
        old, new = before.get("init_args", {}), now.get("init_args", {})
        return {name: (old[name], new[name]) for name in new if name in old and new[name] != old[name]}

    @override
    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as asked, then decay: torch's own decay comes after clipping too. Lightning calls this every step."""
        super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
        if self._decay is not None:
            self._decay.apply(optimizer)

    @override
    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Forget the gradients; what ``optimizer.zero_grad()`` does, without its accounting of the time it takes."""
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    @override
    def training_step(self, batch: Batch | tuple[Tensor, Tensor] | list[Tensor], batch_idx: int) -> Tensor:
        """Return the sum over members of each member's mean loss over its rows."""
        del batch_idx
        if isinstance(batch, Batch) and isinstance(self.network, Network):
            if self._ragged is None or self._ragged.network is not self.network:
                self._ragged = Ragged(self.network)
            if self._ragged.serves(batch):
                self._check_rows(batch)
                return self._ragged.loss(self.loss, batch)
        logits, rows = self._logits_of(batch)
        values: Tensor = self.loss(logits, rows.targets)
        if rows.weights is None:
            return values.mean(dim=1).sum()
        return (values * rows.weights).sum()

    @override
    def validation_step(
        self, batch: Batch | tuple[Tensor, Tensor] | list[Tensor], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Add rows to the metrics of their split."""
        del batch_idx
        self._measure(batch, self._split_of(dataloader_idx))

    @override
    def on_validation_epoch_end(self) -> None:
        values = self._compute()
        if self.trainer.sanity_checking:
            return
        if self.trainer.state.fn == "fit":
            self._publish(values)
        else:
            self.log_dict({name: value.mean() for name, value in values.items()}, sync_dist=True)

    @override
    def test_step(self, batch: Batch | tuple[Tensor, Tensor] | list[Tensor], batch_idx: int) -> None:
        """Add held-out rows to the metrics."""
        del batch_idx
        self._measure(batch, "val")

    @override
    def on_test_epoch_end(self) -> None:
        values = self._compute()
        means = {f"test{name.removeprefix('val')}": value.mean() for name, value in values.items()}
        self.log_dict(means, sync_dist=True)

    @override
    def predict_step(self, batch: Batch | tuple[Tensor, Tensor] | list[Tensor], batch_idx: int) -> Tensor:
        """Return logits ``(E, B, C)``."""
        del batch_idx
        return self._logits_of(batch)[0]

    def member_metrics(self) -> dict[str, Tensor]:
        """Return ``{"train/loss": (E,), "val/accuracy": (E,), ...}`` of the weights as they are now.

        Those of the validation at this step where there was one; otherwise the data module's validation loaders are
        run through, which changes nothing else. ``{}`` without a data module, and where validation is switched off.
        Must be called on every process.
        """
        if not self.trainer.enable_validation:
            return {}
        step = self.trainer.global_step
        if self._member_metrics is None or self._member_metrics[0] != step:
            values = self._evaluate()
            if not values:
                return {}
            self._publish(values, callback_metrics=False)
        assert self._member_metrics is not None
        return self._member_metrics[1]

    @torch.no_grad()
    def _evaluate(self) -> dict[str, Tensor]:
        datamodule = self._populated_data()
        if datamodule is None:
            return {}
        training = self.training
        self.eval()
        limit, precision = self.trainer.limit_val_batches, self.trainer.precision_plugin
        for split, loader in zip(datamodule.splits, datamodule.val_dataloader(), strict=True):
            n_batches = limit if isinstance(limit, int) else int(len(loader) * limit)
            for batch in islice(loader, n_batches):
                with precision.val_step_context():
                    batch = self.trainer.strategy.batch_to_device(precision.convert_input(batch))
                    self._measure(batch, PREFIXES[split])
        self.train(training)
        return self._compute()

    def _populated_data(self) -> Populated | None:
        datamodule = getattr(self.trainer, "datamodule", None)
        return datamodule if isinstance(datamodule, Populated) else None

    def _publish(self, values: dict[str, Tensor], callback_metrics: bool = True) -> None:
        """Remember the values of this step, hand means to the loggers and, at a validation, to other callbacks.

        The loggers are written to directly: ``self.log`` would label them with the step before.
        """
        step = self.trainer.global_step
        self._member_metrics = (step, values)
        means = {name: value.mean() for name, value in values.items()}
        if callback_metrics:
            for name, value in means.items():
                self.log(name, value, logger=False, prog_bar=name in IN_BAR, sync_dist=True)
        for logger in self.trainer.loggers:
            logger.log_metrics({name: float(value) for name, value in means.items()}, step=step)

    def _split_of(self, dataloader_idx: int) -> str:
        """Return what to call the metrics of a validation loader.

        Of a stranger's loaders the first has the rows trained on; an only one has held-out rows.
        """
        datamodule = self._populated_data()
        if datamodule is not None:
            return PREFIXES[datamodule.splits[dataloader_idx]]
        loaders = self.trainer.val_dataloaders
        alone = not isinstance(loaders, list | tuple) or len(loaders) == 1
        return "train" if dataloader_idx == 0 and not alone else "val"

    def _measure(self, batch: Batch | tuple[Tensor, Tensor] | list[Tensor], split: str) -> None:
        logits, rows = self._logits_of(batch)
        mask = None if rows.weights is None else rows.weights > 0
        losses, right = self.loss(logits, rows.targets), correct(logits, rows.targets)
        own = self.own_members
        self._metric(f"{split}/loss").update(losses, mask, own)
        self._metric(f"{split}/accuracy").update(right, mask, own)
        if rows.true_targets is not None:
            self._metric(f"{split}/true_accuracy").update(correct(logits, rows.true_targets), mask, own)
        for name, subset in (rows.subsets or {}).items():
            within = subset if mask is None else subset & mask
            self._metric(f"{split}_{name}/loss").update(losses, within, own)
            self._metric(f"{split}_{name}/accuracy").update(right, within, own)
            self._metric(f"{split}/{name}_share").update(subset, mask, own)

    def _metric(self, name: str) -> MemberMean:
        """Return the metric of this name; of a subset, made when its first batch comes, as it does on every process."""
        if name not in self.metrics:
            self.metrics[name] = MemberMean(self.n_members_in_all).to(self.device)
        metric = self.metrics[name]
        assert isinstance(metric, MemberMean)
        return metric

    def _compute(self) -> dict[str, Tensor]:
        """Return the values of the metrics that saw rows, and make them ready for the next time."""
        values = {}
        for name, metric in self.metrics.items():
            assert isinstance(metric, MemberMean)
            if metric.update_called:
                # torchmetrics takes the one value of a population of one out of its vector.
                values[name] = metric.compute().reshape(self.n_members_in_all)
                metric.reset()
        return values

    def _forward(self, inputs: Tensor, row_dim: int) -> Tensor:
        """Return the logits, where no gradient is kept in pieces of rows as large as suit the network."""
        at_once = self.network.rows_at_once if isinstance(self.network, Network) else None
        if (
            at_once is None
            or torch.is_grad_enabled()
            or inputs.device.type != "cpu"
            or inputs.shape[row_dim] <= at_once
        ):
            logits: Tensor = self(inputs)
            return logits
        return torch.cat([self(piece) for piece in torch.split(inputs, at_once, dim=row_dim)], dim=1)

    def _logits_of(self, batch: Batch | tuple[Tensor, Tensor] | list[Tensor]) -> tuple[Tensor, Batch]:
        """Return the logits ``(E, B, C)`` and the rows with targets ``(E, B)``."""
        rows = batch if isinstance(batch, Batch) else Batch(*batch)
        if not self._rows_checked:
            self._check_inputs(rows.inputs)
        # Our own batches lead with E, which a plain network of one member does not know.
        bare = isinstance(batch, Batch) and not isinstance(self.network, Network)
        logits = self._forward(rows.inputs.squeeze(0) if bare else rows.inputs, rows.targets.ndim - 1)
        if rows.targets.ndim == 1:
            rows = rows._replace(targets=rows.targets.expand(logits.shape[0], -1))
        if not self._rows_checked:
            check_labels(rows.targets, logits.shape[-1])
            self._rows_checked = rows.targets.numel() > 0
        return logits, rows

    def _check_rows(self, rows: Batch) -> None:
        """Refuse rows that the network was not built for; once."""
        if not self._rows_checked:
            self._check_inputs(rows.inputs)
            with torch.no_grad():
                n_outputs = self(rows.inputs[:, :1]).shape[-1]
            check_labels(rows.targets, n_outputs)
            self._rows_checked = True

    def _check_inputs(self, inputs: Tensor) -> None:
        self.configure_model()
        if isinstance(self.network, Network) and inputs.numel():
            self.network.check_inputs(inputs)


def takes_apart(strategy: type[Strategy]) -> bool:
    """Return whether a kind of strategy gives processes less than whole networks, which monitors look at."""
    whole = issubclass(strategy, SingleDeviceStrategy | DDPStrategy)
    return not whole or issubclass(strategy, DeepSpeedStrategy)
