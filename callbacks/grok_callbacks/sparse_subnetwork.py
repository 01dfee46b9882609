"""The sparse subnetwork that predicts what the whole network predicts, over time."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, final

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from .functional.sparse_subnetwork import in_top
from .monitor import Monitor
from .neurons import Neurons, tell_method, warn_of_misfits
from .rows import TrainingRows
from .schedule import LogSpaced, Schedule

__all__ = ["Rule", "SparseSubnetworkExtractor", "check_rule"]

Rule = Literal["predictions", "accuracy"]
RULES: tuple[Rule, ...] = ("predictions", "accuracy")


@final
class SparseSubnetworkExtractor(Monitor):
    """Finds the active subnetwork of Merrill, Tsilivis, Shukla 2023 (arXiv 2303.11873, section 2.1; Figure 2, right).

    Neurons of a layer are ranked by the norm of their incoming weights (biases do not count). Effective sparsity is the
    smallest k whose top k neurons predict, on every training row, what the whole network predicts (rule
    ``predictions``, the paper's text); or are right on as many training rows (rule ``accuracy``, the paper's code;
    against labels without noise, where the data know them). Small is sparse. All sizes are tried, 0 and all neurons
    included, for neither agreement nor accuracy rises steadily with size; :class:`Neurons` says how.

    A prediction is the sign of a single logit, 0 being none, or the largest of several: outputs have to be logits.

    Leaves ``size`` with dimensions ``(step, member, rule)``, NaN where the network has diverged, and ``active``, the
    mask of the neurons that ``rule`` finds, with dimensions ``(step, member, neuron)``. Loggers get the sizes' means
    over members.

    Args:
        layer: Dotted name of the layer whose neurons are ranked; it has a ``weight`` of ``(out, in)``, or
            ``(E, out, in)`` in a module with members.
        next_layer: Dotted name of the module that reads the neurons' activations, along the last axis of its input.
        rule: Which rule ``active`` follows; sizes by both are kept.
        schedule: When to measure.
        network: Dotted name of the module that maps inputs to logits; the LightningModule itself if ``None``.
        rows: Import path of a function ``(trainer, pl_module, split) -> (inputs, targets)``; by default rows come from
            the data module, or from the dataset of the training loader.
        limit: Largest number of rows of a member; all of them if ``None``. They are read once, and anew when training
            goes on with other rows.
        name: Name of the record's group and prefix of logged scalars.

    Raises:
        ValueError: If ``rule`` is unknown or ``limit`` below 1.

    """

    dims: ClassVar[Mapping[str, tuple[str, ...]]] = {"size": ("rule",), "active": ("neuron",)}
    labels: Mapping[str, Sequence[str | int]] = {"rule": RULES}

    def __init__(
        self,
        layer: str,
        next_layer: str,
        rule: Rule = "predictions",
        schedule: Schedule = LogSpaced(20),  # noqa: B008 - a frozen value
        network: str | None = None,
        rows: str | None = None,
        limit: int | None = None,
        name: str = "sparse_subnetwork",
    ) -> None:
        super().__init__(schedule, name)
        check_rule(rule)
        self.layer = layer
        self.next_layer = next_layer
        self.rule: Rule = rule
        self.network = network
        self.rows = rows
        self.limit = limit
        self._method = ""
        self._rows = TrainingRows(rows, limit)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._neurons(pl_module)
        self._rows.forget()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._rows.forget()

    @override
    def measure(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Tensor]:
        pl_module.eval()
        neurons = self._neurons(pl_module)
        inputs, targets, first = self._rows.read(trainer, pl_module)
        if first:
            warn_of_misfits(neurons, inputs, targets)
        sizes, order = neurons.sizes(inputs, targets)
        self._method = tell_method(neurons, self._method)
        return {"size": torch.stack(sizes, dim=-1), "active": in_top(order, sizes[RULES.index(self.rule)])}

    @override
    def forget(self) -> None:
        super().forget()
        self._method = ""
        self._rows.forget()

    @override
    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"method": self._method}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._method = state_dict["method"]

    @override
    def scalars(self, values: dict[str, Tensor]) -> dict[str, float]:
        return dict(zip(RULES, values["size"].mean(dim=0).tolist(), strict=True))

    @override
    def attributes(self) -> dict[str, str | int | float]:
        return {
            "layer": self.layer,
            "next_layer": self.next_layer,
            "rule": self.rule,
            "network": self.network or "",
            "rows": self.rows or "",
            "limit": self.limit or 0,
            "method": self._method,
        }

    def _neurons(self, pl_module: LightningModule) -> Neurons:
        return Neurons(pl_module, self.layer, self.next_layer, self.network)


def check_rule(rule: Rule) -> None:
    """Refuse what is no rule.

    Raises:
        ValueError: If it is none.

    """
    if rule not in RULES:
        raise ValueError(f"rule: expected one of {', '.join(RULES)}, got '{rule}'")
