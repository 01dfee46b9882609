"""The generalizing subnetwork and its rivals, looked back at from the end of training."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, final

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from typing_extensions import override

from .functional.sparse_subnetwork import in_top
from .functional.subnetwork_comparison import (
    average_sensitivity,
    mean_norms,
    median_index,
    overlap_with_largest,
    random_sets,
)
from .members import gather_members, own_members
from .monitor import Monitor, named_array
from .neurons import Neurons, tell_method, warn_of_misfits
from .protocols import HasRows
from .replay import Replay
from .rows import Split, members_with_rows, rows_of
from .schedule import AtEnd
from .snapshots import Snapshots, state_of_all, weights_of
from .sparse_subnetwork import RULES, Rule, check_rule
from .weight_trajectory import find_trajectory

__all__ = ["SubnetworkComparison"]

SETS = ("generalizing", "complementary", "control")
SPLITS: tuple[Split, ...] = ("train", "held_out")


class _Rows(NamedTuple):
    """Inputs and labels of a split as :func:`rows_of` has them, and which members have any, ``(E,)``, bool."""

    inputs: Tensor
    targets: Tensor
    there: Tensor


@final
class SubnetworkComparison(Monitor):
    """Compares the subnetwork that generalises in the end with all other neurons, at every step that was kept.

    After Merrill, Tsilivis, Shukla 2023 (arXiv 2303.11873, section 3.2, Figure 3). When training ends, three kinds of
    sets are fixed, and the weights that a :class:`WeightTrajectory` has kept, and those at the end, are measured with
    them: *generalizing*, the active subnetwork of the final weights (see :class:`SparseSubnetworkExtractor`);
    *complementary*, all other neurons; *control*, the mean over random sets of the size of the first, drawn from all
    neurons. Ours differs: agreement is measured on held-out rows and on training rows (the paper's code measured it on
    training rows, its text says test rows); several random sets instead of one; a prediction of exactly 0 agrees only
    with 0.

    Where training has gone on with fewer rows, the rows at every step are those at the end.

    Leaves, with dimensions ``(step, member, ...)``:

    - ``norm`` ``(set)``: mean norm of the incoming weights; NaN for an empty set.
    - ``agreement`` ``(split, set)``: share of rows on which the subnetwork predicts what the whole network of the same
      step predicts; NaN where a member has no such rows.
    - ``overlap``: how many of the ``top`` neurons with the largest norm at that step are generalizing.
    - ``sensitivity`` ``(network)``: how many bits of a row, if flipped, change the prediction, on average, of the whole
      network (``full``) and of each set; k for the parity of k bits. NaN where a member's inputs are not rows of −1
      and +1.

    And ``generalizing`` with dimensions ``(member, neuron)`` and ``size`` with dimension ``(member)``. All are NaN, and
    the set is empty, for a member that has diverged in the end.

    Args:
        layer: Dotted name of the layer whose neurons are ranked.
        next_layer: Dotted name of the module that reads the neurons' activations, along the last axis of its input.
        rule: How the active subnetwork is found, ``predictions`` or ``accuracy``.
        choose: ``last``: the active subnetwork of the final weights; ``median``: of the last ``among`` kept weights the
            one of median size, for after grokking the size goes up and down.
        among: At least 1.
        controls: Number of random sets, at least 1.
        top: Number of neurons whose overlap with the generalizing ones is counted, at least 1.
        sensitive_rows: Number of held-out rows of a member on which sensitivity is averaged, of training rows for a
            member without; 0 switches it off.
        network: Dotted name of the module that maps inputs to logits; the LightningModule itself if ``None``.
        rows: Import path of a function ``(trainer, pl_module, split) -> (inputs, targets)``.
        limit: Largest number of rows of a member and split; all of them if ``None``.
        seed: Of the random sets.
        name: Name of the record's group.

    Raises:
        ValueError: If an argument is out of range.

    """

    dims: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "norm": ("set",),
        "agreement": ("split", "set"),
        "overlap": (),
        "sensitivity": ("network",),
    }
    labels: Mapping[str, Sequence[str | int]] = {"set": SETS, "split": SPLITS, "network": ("full", *SETS)}

    def __init__(
        self,
        layer: str,
        next_layer: str,
        rule: Rule = "predictions",
        choose: Literal["last", "median"] = "last",
        among: int = 10,
        controls: int = 20,
        top: int = 10,
        sensitive_rows: int = 100,
        network: str | None = None,
        rows: str | None = None,
        limit: int | None = None,
        seed: int = 0,
        name: str = "subnetworks",
    ) -> None:
        super().__init__(AtEnd(), name)
        check_rule(rule)
        if choose not in ("last", "median"):
            raise ValueError(f"choose: expected 'last' or 'median', got '{choose}'")
        for argument, value, least in [
            ("among", among, 1),
            ("controls", controls, 1),
            ("top", top, 1),
            ("sensitive_rows", sensitive_rows, 0),
            ("limit", 1 if limit is None else limit, 1),
        ]:
            if value < least:
                raise ValueError(f"{argument}: expected at least {least}, got {value}")
        self.layer = layer
        self.next_layer = next_layer
        self.rule: Rule = rule
        self.choose = choose
        self.among = among
        self.controls = controls
        self.top = top
        self.sensitive_rows = sensitive_rows
        self.network = network
        self.rows = rows
        self.limit = limit
        self.seed = seed
        self._method = ""
        self._sets: Tensor | None = None  # (E, 2 + controls, neuron): generalizing, complementary, controls
        self._size = torch.empty(0)  # (E,), NaN for a member without a set
        self._read: dict[Split, _Rows | None] = {}

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._neurons(pl_module)
        find_trajectory(trainer, type(self).__name__)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # What would go wrong in the end is to go wrong now.
        with self.undisturbed(pl_module):
            pl_module.eval()
            neurons = self._neurons(pl_module)
            whole = torch.ones_like(neurons.norms(), dtype=torch.bool).unsqueeze(1)
            for split in SPLITS:
                if (rows := self._fetch(trainer, pl_module, split, limit=2)) is not None:
                    neurons.predictions(rows.inputs, rows.targets, whole)
                    if split == "train":
                        warn_of_misfits(neurons, rows.inputs, rows.targets)
        super().on_train_start(trainer, pl_module)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        now = state_of_all(pl_module)
        trajectory = find_trajectory(trainer, type(self).__name__)
        together = trainer.strategy if trainer.world_size > 1 else None
        self.look_back(trainer, pl_module, trajectory.snapshots({trainer.global_step: now}, together))

    @override
    def look_back(self, trainer: Trainer, pl_module: LightningModule, snapshots: Snapshots) -> None:
        if not snapshots:
            raise ValueError(f"{type(self).__name__}: there are no weights to look back at, not a single snapshot")
        self.forget()
        steps = list(snapshots)[-self.among if self.choose == "median" else -1 :]
        if isinstance(trainer, Replay):
            trainer.step = steps[-1]
        with self.undisturbed(pl_module):
            for split in SPLITS:
                self._rows(trainer, pl_module, split)
        found = [self._active(trainer, pl_module, snapshots, step) for step in steps]
        mine = {
            "size": torch.stack([size for size, _ in found], dim=1),
            "active": torch.stack([m for _, m in found], dim=1),
        }
        # Of all members: random sets are drawn for one after another.
        sizes, active = (value.transpose(0, 1) for value in gather_members(pl_module, mine).values())
        chosen = median_index(sizes)
        members = torch.arange(sizes.shape[1])
        self._size = sizes[chosen, members]
        generalizing = active[chosen, members].unsqueeze(1)
        controls = random_sets(self._size, active.shape[-1], self.controls, _generator(self.seed))
        self._sets = torch.cat([generalizing, ~generalizing, controls], dim=1)
        self._look_at(trainer, pl_module, snapshots)
        self._read = {}

    @override
    def forget(self) -> None:
        super().forget()
        self._sets, self._size, self._method, self._read = None, torch.empty(0), "", {}

    def _active(
        self, trainer: Trainer, pl_module: LightningModule, snapshots: Snapshots, step: int
    ) -> tuple[Tensor, Tensor]:
        """Return size ``(E,)`` and mask ``(E, neuron)`` of the active subnetwork at a step, on the CPU."""
        with weights_of(pl_module, snapshots[step]), self.undisturbed(pl_module):
            pl_module.eval()
            neurons = self._neurons(pl_module)
            rows = self._rows(trainer, pl_module, "train")
            if rows is None:
                raise ValueError(f"{type(self).__name__}: there are no rows trained on")
            sizes, order = neurons.sizes(rows.inputs, rows.targets)
            self._method = tell_method(neurons, self._method)
        size = sizes[RULES.index(self.rule)]
        return size.cpu(), in_top(order, size).cpu()

    @override
    def measure(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Tensor]:
        if self._sets is None:
            return {}
        pl_module.eval()
        neurons = self._neurons(pl_module)
        norms = neurons.norms()
        sets = own_members(pl_module, self._sets).to(norms.device)
        values = {
            "norm": self._grouped(mean_norms(norms.double(), sets)),
            "agreement": torch.stack(
                [self._agreement(trainer, pl_module, neurons, sets, split) for split in SPLITS], dim=1
            ),
            "overlap": overlap_with_largest(norms, sets[:, 0], self.top).double(),
            "sensitivity": self._sensitivity(trainer, pl_module, neurons, sets),
        }
        self._method = tell_method(neurons, self._method)
        size = own_members(pl_module, self._size)
        defined = size.isfinite().to(norms.device) & norms.isfinite().all(dim=-1)
        return {
            name: torch.where(defined.reshape(-1, *[1] * (value.ndim - 1)), value, torch.nan)
            for name, value in values.items()
        }

    def _grouped(self, values: Tensor) -> Tensor:
        """Return ``(E, set)`` of ``(E, 2 + controls)``: the controls' mean in place of each."""
        return torch.cat([values[:, :2], values[:, 2:].mean(dim=1, keepdim=True)], dim=1)

    def _agreement(
        self, trainer: Trainer, pl_module: LightningModule, neurons: Neurons, sets: Tensor, split: Split
    ) -> Tensor:
        rows = self._rows(trainer, pl_module, split)
        if rows is None:
            return torch.full((len(sets), len(SETS)), torch.nan, dtype=torch.float64, device=sets.device)
        whole = torch.ones_like(sets[:, :1])
        predicted = neurons.predictions(rows.inputs, rows.targets, torch.cat([whole, sets], dim=1))
        agrees = torch.where(predicted[:, :1].isnan(), torch.nan, (predicted[:, 1:] == predicted[:, :1]).double())
        return torch.where(rows.there.unsqueeze(1), self._grouped(agrees.mean(dim=-1)), torch.nan)

    def _sensitivity(self, trainer: Trainer, pl_module: LightningModule, neurons: Neurons, sets: Tensor) -> Tensor:
        found = torch.full((len(sets), 1 + len(SETS)), torch.nan, dtype=torch.float64, device=sets.device)
        if not self.sensitive_rows:
            return found
        # By member: it does not matter which other members a process has.
        without = torch.ones_like(sets[:, 0, 0])
        for split in ("held_out", "train"):
            rows = self._rows(trainer, pl_module, split)
            if rows is not None and bool((without & rows.there).any()):
                theirs = (without & rows.there).unsqueeze(1)
                found = torch.where(theirs, self._sensitivity_on(rows, neurons, sets), found)
                without &= ~rows.there
        return found

    def _sensitivity_on(self, rows: _Rows, neurons: Neurons, sets: Tensor) -> Tensor:
        """Return sensitivity on the first rows of a split, ``(E, network)``, NaN for a member whose are no bits."""
        undefined = torch.full((len(sets), 1 + len(SETS)), torch.nan, dtype=torch.float64, device=sets.device)
        few = (*[slice(None)] * (rows.targets.ndim - 1), slice(self.sensitive_rows))
        inputs = rows.inputs[few]
        if inputs.ndim != rows.targets.ndim + 1:
            return undefined
        are_bits = (inputs.abs() == 1).flatten(-2).all(dim=-1).expand(len(sets))
        if not bool(are_bits.any()):
            return undefined
        whole = torch.ones_like(sets[:, :1])
        everything = torch.cat([whole, sets], dim=1)

        def predict(flipped: Tensor) -> Tensor:
            return neurons.predictions(flipped, flipped[..., 0], everything)

        found = average_sensitivity(predict, inputs)
        found = torch.cat([found[:, :1], self._grouped(found[:, 1:])], dim=1)
        return torch.where(are_bits.unsqueeze(1), found, undefined)

    def _rows(self, trainer: Trainer, pl_module: LightningModule, split: Split) -> _Rows | None:
        """Return the rows of a split, read once; ``None`` where there are none."""
        if split not in self._read:
            try:
                self._read[split] = self._fetch(trainer, pl_module, split, self.limit)
            except ValueError as error:
                if split == "train":
                    raise
                # Known only since the first validation: no reason to lose what the rest shows.
                rank_zero_warn(f"{type(self).__name__}: no agreement on held-out rows: {error}")
                self._read[split] = None
        return self._read[split]

    def _fetch(self, trainer: Trainer, pl_module: LightningModule, split: Split, limit: int | None) -> _Rows | None:
        known = self.rows is not None or isinstance(getattr(trainer, "datamodule", None), HasRows)
        if split == "held_out" and not known and (trainer.val_dataloaders is None or trainer.val_dataloaders == []):
            return None
        inputs, targets = rows_of(trainer, pl_module, split, self.rows, limit)
        there = members_with_rows(trainer, pl_module, split, self.rows)
        return _Rows(inputs, targets, there) if targets.shape[-1] else None

    @override
    def record(self) -> dict[str, named_array]:
        arrays = super().record()
        if not arrays or self._sets is None:
            return arrays
        generalizing = self._sets[:, 0]
        return arrays | {
            "generalizing": (("member", "neuron"), generalizing),
            "size": (("member",), self._size),
        }

    @override
    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict() | {"method": self._method}
        return state if self._sets is None else state | {"sets": self._sets, "size": self._size}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._method = state_dict["method"]
        self._sets, self._size = state_dict.get("sets"), state_dict.get("size", torch.empty(0))

    @override
    def attributes(self) -> dict[str, str | int | float]:
        return {
            "layer": self.layer,
            "next_layer": self.next_layer,
            "rule": self.rule,
            "choose": self.choose,
            "among": self.among,
            "controls": self.controls,
            "top": self.top,
            "sensitive_rows": self.sensitive_rows,
            "seed": self.seed,
            "network": self.network or "",
            "rows": self.rows or "",
            "limit": self.limit or 0,
            "method": self._method,
        }

    def _neurons(self, pl_module: LightningModule) -> Neurons:
        return Neurons(pl_module, self.layer, self.next_layer, self.network)


def _generator(seed: int) -> torch.Generator:
    """Return a generator that shares nothing with others of the same seed, such as that of the weights."""
    digest = hashlib.sha256(f"control sets\0{seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))
