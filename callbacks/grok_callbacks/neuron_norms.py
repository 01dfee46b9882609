"""Norms of the neurons of a layer over time."""

from collections.abc import Mapping
from typing import ClassVar, final

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from torch import Tensor
from typing_extensions import override

from .functional.neuron_norms import Weights, neuron_norms
from .monitor import Monitor, find_weight
from .schedule import LogSpaced, Schedule

__all__ = ["NeuronNormTracker"]


@final
class NeuronNormTracker(Monitor):
    """Tracks the norm of every neuron of a linear layer: Merrill, Tsilivis, Shukla 2023 (arXiv 2303.11873), Figure 5.

    Leaves ``norm`` with dimensions ``(step, member, neuron)``. Loggers get, under ``<name>/``, means over members:

    - ``mean``: mean norm of a neuron.
    - ``max``: largest norm.
    - ``effective``: effective number of neurons, (Σ norm²)² / Σ norm⁴, from 1 (one neuron) to their number; NaN if all
      norms are 0.

    TensorBoard loggers get a histogram of all norms as well.

    Args:
        layer: Dotted name of the layer, as in ``named_modules()``; it has a ``weight`` of ``(out, in)``, or
            ``(E, out, in)`` in a module with members.
        weights: ``incoming``: the rows of the layer's weight; ``outgoing``: the columns of the weight of
            ``next_layer``; ``product`` of both norms.
        next_layer: Dotted name of the layer that reads the neurons; for ``outgoing`` and ``product``.
        schedule: When to measure.
        histograms: Whether TensorBoard gets histograms.
        name: Name of the record's group and prefix of logged scalars.

    Raises:
        ValueError: If ``weights`` is unknown, or ``next_layer`` is missing or not needed.

    """

    dims: ClassVar[Mapping[str, tuple[str, ...]]] = {"norm": ("neuron",)}

    def __init__(
        self,
        layer: str,
        weights: Weights = "incoming",
        next_layer: str | None = None,
        schedule: Schedule = LogSpaced(40),  # noqa: B008 - a frozen value
        histograms: bool = True,
        name: str = "neuron_norms",
    ) -> None:
        super().__init__(schedule, name)
        if weights not in ("incoming", "outgoing", "product"):
            raise ValueError(f"weights: expected 'incoming', 'outgoing' or 'product', got '{weights}'")
        if (next_layer is None) != (weights == "incoming"):
            raise ValueError(
                f"next_layer: needed for 'outgoing' and 'product' and for nothing else, got {next_layer!r}"
            )
        self.layer = layer
        self.weights: Weights = weights
        self.next_layer = next_layer
        self.histograms = histograms

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        neuron_norms(*self._weights(pl_module), self.weights)

    @override
    def measure(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Tensor]:
        return {"norm": neuron_norms(*self._weights(pl_module), self.weights)}

    @override
    def scalars(self, values: dict[str, Tensor]) -> dict[str, float]:
        norm = values["norm"].double()
        squares = norm.square()
        effective = squares.sum(dim=-1).square() / squares.square().sum(dim=-1)
        return {
            "mean": float(norm.mean()),
            "max": float(norm.amax(dim=-1).mean()),
            "effective": float(effective.mean()),
        }

    @override
    def draw(self, logger: Logger, step: int, values: dict[str, Tensor]) -> None:
        # By name: a logger of the older package pytorch_lightning is another class of the same name.
        finite = values["norm"][values["norm"].isfinite()]
        # TensorBoard cannot draw nothing, which is what is left of a network that diverged.
        if self.histograms and type(logger).__name__ == "TensorBoardLogger" and len(finite):
            logger.experiment.add_histogram(f"{self.name}/norm", finite, step)  # type: ignore[attr-defined]

    @override
    def attributes(self) -> dict[str, str | int | float]:
        return {"layer": self.layer, "weights": self.weights, "next_layer": self.next_layer or ""}

    def _weights(self, pl_module: LightningModule) -> tuple[Tensor, Tensor | None]:
        outgoing = None if self.next_layer is None else find_weight(pl_module, self.next_layer, "next_layer")
        return find_weight(pl_module, self.layer), outgoing
