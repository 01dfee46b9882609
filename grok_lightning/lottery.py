"""Lottery tickets: does a subnetwork, trained alone from its own initial weights, still generalise late?"""

from typing import Any, Literal, final

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from typing_extensions import override

from grok_callbacks import Intervention, Snapshots
from grok_callbacks.functional import random_sets
from grok_callbacks.members import own_members
from grok_callbacks.monitor import find_weight
from grok_callbacks.snapshots import state_of
from grok_lightning.modules import GrokModule
from grok_lightning.networks import Network
from grok_lightning.population import Members, match_members, stream
from grok_lightning.runs import WEIGHTS, open_run

__all__ = ["LotteryTicket"]

Keep = Literal["generalizing", "complementary", "control"]


@final
class LotteryTicket(Intervention):
    """Starts from the initial weights of a finished run, with only some of its neurons.

    After Frankle and Carbin 2019 (arXiv 1803.03635); the code of Merrill, Tsilivis, Shukla 2023 (arXiv 2303.11873) has
    such an experiment, which its paper does not report. Each member takes the initial weights of the member of that run
    with the same seed (and the same coordinates, where both runs have them), and keeps the neurons that
    the run's ``SubnetworkComparison`` found to generalise in its end (``generalizing``), all others
    (``complementary``), or as many drawn at random (``control``). The weights into and out of the other neurons, and
    their biases, are set to 0, where they stay: an activation that maps 0 to 0 passes them neither a signal nor a
    gradient. The network trains as if it were as narrow, at the cost of the wide one.

    The weights that are set to 0 are all that it changes: a resumed run goes on from its checkpoint.

    Args:
        layer: Dotted name of the layer of the neurons.
        next_layer: Dotted name of the layer that reads them.
        run: Directory of the run, or of an experiment for its newest run. It has kept the weights of step 0
            (``WeightTrajectory``) and has a ``SubnetworkComparison``.
        keep: Which neurons.
        seed: Of the random sets.

    Attributes:
        source: Directory of the run that was found; in the checkpoint too, as ``run`` may mean another one later.

    Raises:
        ValueError: If ``keep`` is unknown.

    """

    def __init__(
        self, layer: str, next_layer: str, run: str = "runs/parity", keep: Keep = "generalizing", seed: int = 0
    ) -> None:
        if keep not in ("generalizing", "complementary", "control"):
            raise ValueError(f"keep: expected 'generalizing', 'complementary' or 'control', got '{keep}'")
        self.layer = layer
        self.next_layer = next_layer
        self.run = run
        self.keep: Keep = keep
        self.seed = seed
        self.source = ""

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"source": self.source}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.source = state_dict["source"]

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.ckpt_path is not None:
            return
        if not isinstance(pl_module, GrokModule):
            raise ValueError(f"LotteryTicket: expected a module with members, got {type(pl_module).__name__}")
        if pl_module.warm_start is not None:
            raise ValueError("LotteryTicket: has initial weights of its own; leave warm_start out")
        weight = find_weight(pl_module, self.layer)
        reader = find_weight(pl_module, self.next_layer, "next_layer")
        if not isinstance(pl_module.network, Network):
            raise ValueError(f"LotteryTicket: {type(pl_module.network).__name__} has no member axis")
        if reader.shape[2] != weight.shape[1]:
            raise ValueError(f"next_layer: '{self.next_layer}' reads {reader.shape[2]} inputs, not {weight.shape[1]}")
        generalizing, initial = self._of_run(pl_module.members)
        if empty := [e for e, neurons in enumerate(generalizing) if not neurons.any()]:
            raise ValueError(f"LotteryTicket: in {self.run} no neuron was found to generalise for members {empty}")
        if generalizing.shape[1] != weight.shape[1]:
            raise ValueError(
                f"LotteryTicket: {self.run} has {generalizing.shape[1]} neurons, '{self.layer}' has {weight.shape[1]}"
            )
        self._start(pl_module, initial, self._kept(generalizing))

    def _of_run(self, members: Members) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the generalizing neurons ``(E, neuron)`` and the initial weights of the run's members like these."""
        try:
            run = open_run(self.run)
            groups = [
                group
                for group in run.record.children.values()
                if group.attrs["kind"] == "SubnetworkComparison" and group.attrs["layer"] == self.layer
            ]
        except FileNotFoundError as error:
            raise ValueError(f"LotteryTicket: {error}; train it first, with the config of that name") from error
        except OSError as error:
            raise ValueError(f"LotteryTicket: {error}") from error
        self.source = str(run.directory)
        rank_zero_info(f"lottery tickets from {self.source}")
        if not groups:
            raise ValueError(
                f"LotteryTicket: {run.directory} has no SubnetworkComparison of layer '{self.layer}'; "
                "it is made when a run ends"
            )
        group = groups[0].to_dataset()
        if 0 not in (kept := Snapshots(run.directory / WEIGHTS)):
            raise ValueError(f"LotteryTicket: {run.directory} has no weights of step 0; a WeightTrajectory keeps them")
        theirs = {str(name): values.values.tolist() for name, values in group.coords.items() if "member" in values.dims}
        try:
            partners = torch.tensor(match_members(members, theirs, alike=True))
        except ValueError as error:
            raise ValueError(f"LotteryTicket: {run.directory} {error}") from error
        initial = {name: value[partners] for name, value in kept[0].items()}
        return torch.as_tensor(group["generalizing"].values.astype(bool))[partners], initial

    def _kept(self, generalizing: Tensor) -> Tensor:
        if self.keep == "control":
            generator = stream(self.seed, "neurons of a control ticket")
            return random_sets(generalizing.sum(dim=-1), generalizing.shape[1], 1, generator).squeeze(1)
        return generalizing if self.keep == "generalizing" else ~generalizing

    @torch.no_grad()
    def _start(self, pl_module: GrokModule, initial: dict[str, Tensor], kept: Tensor) -> None:
        live = state_of(pl_module)
        for name, value in live.items():
            mine = own_members(pl_module, initial[name]) if name in initial else None
            if mine is None or mine.shape != value.shape:
                raise ValueError(f"LotteryTicket: the network of {self.run} is another one: '{name}' does not fit")
            value.copy_(mine)
        kept = own_members(pl_module, kept).to(pl_module.device)
        live[f"{self.layer}.weight"].mul_(kept.unsqueeze(-1))
        live[f"{self.next_layer}.weight"].mul_(kept.unsqueeze(-2))
        if f"{self.layer}.bias" in live:
            live[f"{self.layer}.bias"].mul_(kept)
