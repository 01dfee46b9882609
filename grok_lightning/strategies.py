"""Members over devices: every process trains some members of the population, and none waits for another's gradients."""

from collections.abc import Mapping, Sequence
from typing import Any, final

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from torch import Tensor
from torch import distributed as dist
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler
from typing_extensions import override

from grok_callbacks.members import own_members
from grok_lightning.modules import GrokModule

__all__ = ["PopulationStrategy", "check_enough_members"]

OF_MEMBERS = "network."
"""What the names of parameters begin with that lead with the member axis."""


@final
class PopulationStrategy(DDPStrategy):
    """Spreads the members of a population over processes, one for each device.

    Process r of W has the members r, r + W, r + 2W, ...: members of one kind, which usually follow one another, are
    shared out evenly. Each process makes the networks of its members alone, and trains them on all of their rows; there
    is no gradient to communicate. (At every batch Lightning itself has all processes wait for the first, to hear
    whether it was told to stop.) Metrics, records and checkpoints are of the whole population, in the order of its
    members, and do not depend on the number of devices: what was trained on four may go on on one. Members are what
    they are alone, but for rounding: sums run in another order in populations of another size.

    Registered as ``population``, and as ``population_fork``, which forks the processes (for notebooks, on CPUs).

    With several processes a checkpoint can be saved only while all of them do so: on SIGTERM or Ctrl-C
    :class:`LastCheckpoint` sees to that, whereas an exception in one process leaves the checkpoint before it.
    ``Trainer.predict`` returns in each process the logits of its own members.

    Args:
        start_method: ``popen`` or ``fork``, as :class:`DDPStrategy` has it.
        kwargs: Others of its arguments.

    Raises:
        ValueError: In ``fit``, ``validate`` and so on: if there are more devices than members; if the module is no
            :class:`GrokModule`, or has parameters without a member axis beside its network; if a foreign loader would
            hand out only some of the rows; or if a :class:`ModelCheckpoint` is to save on an exception.

    """

    def own_members(self, n_members: int) -> range:
        """Return which of so many members this process has.

        Raises:
            ValueError: If there are more processes than members.

        """
        check_enough_members(n_members, self.world_size)
        return range(self.global_rank, n_members, self.world_size)

    def gather_members(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return values ``(e, ...)`` of this process's members as those ``(E, ...)`` of all, on the CPU.

        Every process has to ask, for values of the same names, and gets them.

        Raises:
            RuntimeError: If processes ask for different ones, or one of them is on its way out.

        """
        gathered = self._exchange(values, everywhere=True)
        assert gathered is not None
        return gathered

    @override
    def configure_ddp(self) -> None:
        """Leave the module as it is: there are no gradients to reduce."""

    @override
    def setup(self, trainer: Trainer) -> None:
        self._check_module()
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.save_on_exception and self.world_size > 1:
                raise ValueError(
                    "strategy population: save_on_exception: processes that fail at different steps have no checkpoint "
                    "in common; leave it out, LastCheckpoint saves on SIGTERM and Ctrl-C"
                )
        if trainer.state.fn == "fit":
            super().setup(trainer)
            return
        # Else DDP's own would give all processes the weights of the first.
        assert self.accelerator is not None
        assert self.model is not None
        self.accelerator.setup(trainer)
        self.precision_plugin.convert_module(self.model)
        self.model_to_device()
        self.setup_precision_plugin()

    @override
    def process_dataloader(self, dataloader: object) -> object:
        """Refuse loaders that hand out a share of the rows."""
        sampler = dataloader.sampler if isinstance(dataloader, DataLoader) else None
        if isinstance(sampler, DistributedSampler) and sampler.num_replicas > 1:
            raise ValueError(
                "strategy population: every process needs all rows of its members, and a DistributedSampler hands out "
                "some; set the Trainer's use_distributed_sampler to False"
            )
        return super().process_dataloader(dataloader)

    @override
    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the state of the whole population in the first process; in others their own."""
        own = super().lightning_module_state_dict()
        if self._module.n_members == self._module.n_members_in_all:
            return own  # of one process, or when all have the whole population, as after training
        members = {name: value for name, value in own.items() if name.startswith(OF_MEMBERS)}
        return own | (self._exchange(members) or {})

    @override
    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the state of the whole population in the first process; in others their own."""
        own: dict[str, Any] = super().optimizer_state(optimizer)
        shapes = [parameter.shape for group in optimizer.param_groups for parameter in group["params"]]
        members = {
            f"{i}.{name}": value
            for i, state in own["state"].items()
            for name, value in state.items()
            if isinstance(value, Tensor) and value.shape == shapes[i]
        }
        gathered = self._exchange(members) or members
        state = {
            i: {name: gathered.get(f"{i}.{name}", value) for name, value in values.items()}
            for i, values in own["state"].items()
        }
        return own | {"state": state}

    @override
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Load this process's members of a checkpoint of all."""
        state = {
            name: own_members(self._module, value) if name.startswith(OF_MEMBERS) else value
            for name, value in checkpoint["state_dict"].items()
        }
        super().load_model_state_dict({**checkpoint, "state_dict": state}, strict)

    @override
    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load what optimizers know of this process's members."""
        states = []
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            state = {
                i: {name: self._own_part(value, parameters[i]) for name, value in values.items()}
                for i, values in saved["state"].items()
            }
            states.append(saved | {"state": state})
        super().load_optimizer_state_dict({**checkpoint, "optimizer_states": states})

    @override
    def teardown(self) -> None:
        """Give the module, in every process, the networks of the whole population, and let go of the device."""
        module = self.lightning_module
        if isinstance(module, GrokModule) and module.network is not None and not module.trainer.interrupted:
            module.take_all_members()
        super().teardown()

    @property
    def _module(self) -> GrokModule:
        assert isinstance(self.lightning_module, GrokModule)
        return self.lightning_module

    def _check_module(self) -> None:
        module = self.lightning_module
        if not isinstance(module, GrokModule):
            raise ValueError(
                f"strategy population: expected a module with members (a GrokModule), got {type(module).__name__}; "
                "use ddp"
            )
        for name, value in module.state_dict().items():
            has_members = isinstance(value, Tensor) and value.shape[:1] == (module.n_members,)
            has_members = has_members and name.startswith(OF_MEMBERS)
            if self.world_size > 1 and not has_members:
                raise ValueError(f"strategy population: '{name}' has no member axis, and would differ over processes")

    def _own_part(self, value: Any, parameter: Tensor) -> Any:
        """Return of what an optimizer knows of a parameter of all members what it knows of this process's."""
        whole = (self._module.n_members_in_all, *parameter.shape[1:])
        if isinstance(value, Tensor) and value.shape == whole:
            # Fused optimizers take a view with gaps for a tensor without.
            return own_members(self._module, value).contiguous()
        return value

    def _exchange(self, values: Mapping[str, Tensor], everywhere: bool = False) -> dict[str, Tensor] | None:
        """Return values of all members, in their order, in the first process or everywhere; ``None`` in others."""
        mine = {name: value.detach().cpu() for name, value in values.items()}
        if self.world_size == 1:
            return mine
        trainer = self._module.trainer
        if trainer.interrupted:
            raise RuntimeError("strategy population: members cannot be gathered, as a process has failed")
        parts: list[Any] | None = [None] * self.world_size if everywhere or self.is_global_zero else None
        # As objects: processes may have different numbers of members, and of any type of number.
        if everywhere:
            dist.all_gather_object(parts, mine)
        else:
            dist.gather_object(mine, parts)
        return None if parts is None else _in_order(parts)


def _in_order(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Lay the values ``(e, ...)`` of processes together, so that member i is that of process i modulo their number."""
    if any(part.keys() != parts[0].keys() for part in parts):
        raise RuntimeError(f"strategy population: processes hand over different values: {[sorted(p) for p in parts]}")
    whole = {}
    for name, first in parts[0].items():
        length = sum(len(part[name]) for part in parts)
        whole[name] = first.new_empty((length, *first.shape[1:]))
        for rank, part in enumerate(parts):
            whole[name][rank :: len(parts)] = part[name]
    return whole


def check_enough_members(n_members: int, n_devices: int) -> None:
    """Refuse devices that would have nothing to do.

    Raises:
        ValueError: If there are more devices than members.

    """
    if n_devices > n_members:
        raise ValueError(
            f"strategy population: {n_devices} devices for a population of {n_members}: at least one member for each "
            "is needed; take fewer devices, or ddp to share out the rows"
        )


for _name, _method in [("population", "popen"), ("population_fork", "fork")]:
    if _name not in StrategyRegistry:
        StrategyRegistry.register(
            _name,
            PopulationStrategy,
            description=f"Members of a population over devices, processes started by '{_method}'",
            start_method=_method,
        )
