"""The multi-layer perceptron as a LightningModule."""

from collections.abc import Mapping, Sequence
from typing import final

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch.optim.optimizer import ParamsT
from typing_extensions import override

from grok_lightning.losses import Loss
from grok_lightning.modules.module import GrokModule
from grok_lightning.networks import MLPNetwork
from grok_lightning.population import Coordinate

__all__ = ["MLP", "paper_sgd"]


def paper_sgd(parameters: ParamsT) -> torch.optim.SGD:
    """Return the optimizer of Merrill, Tsilivis, Shukla 2023: plain SGD, learning rate 0.1, weight decay 0.01."""
    # A function, not a partial: a configuration holds its import path.
    return torch.optim.SGD(parameters, lr=0.1, weight_decay=0.01, fused=True)


@final
class MLP(GrokModule):
    """Multi-layer perceptrons; the defaults are those of Merrill, Tsilivis, Shukla 2023 (arXiv 2303.11873).

    That is one hidden ReLU layer of 1,000 neurons with a bias, no output bias, hinge loss, and plain SGD with learning
    rate 0.1 and weight decay 0.01. The decay has the form of the paper's code, ``gradient += λ θ`` (a penalty of
    ``λ/2 ||θ||²`` on all parameters), not that of its text, ``loss + λ ||θ||``.

    Args:
        n_inputs: Width of a row; set from the data by the command line.
        n_outputs: Number of logits; set from the data by the command line.
        hidden: Widths of the hidden layers.
        activation: ``relu``, ``square``, ``gelu``, ``tanh`` or ``identity``.
        bias: Whether hidden layers have a bias.
        output_bias: Whether the output has one.
        loss: ``hinge``, ``squared``, ``cross_entropy``, ``cross_entropy_float32``, or a function
            ``(logits (E, B, C), targets (E, B)) -> (E, B)`` by import path.
        optimizer: Makes the optimizer from parameters.
        scheduler: Makes a learning-rate scheduler, stepped every optimizer step.
        members: Table of coordinates; set from ``population`` by the command line.
        warm_start: Checkpoint, or directory of a run, to take the initial weights from; those of one member go to all,
            of several to the members with the same seeds. Read when a fit begins, not when it resumes.

    Raises:
        ValueError: If a width, the activation or the loss is not valid.

    """

    def __init__(
        self,
        n_inputs: int = 40,
        n_outputs: int = 1,
        hidden: Sequence[int] = (1000,),
        activation: str = "relu",
        bias: bool = True,
        output_bias: bool = False,
        loss: str | Loss = "hinge",
        optimizer: OptimizerCallable = paper_sgd,
        scheduler: LRSchedulerCallable | None = None,
        members: Mapping[str, Sequence[Coordinate]] | None = None,
        warm_start: str | None = None,
    ) -> None:
        super().__init__(loss=loss, optimizer=optimizer, scheduler=scheduler, members=members, warm_start=warm_start)
        self.n_inputs = n_inputs
        self.n_outputs = n_outputs
        self.hidden = list(hidden)
        self.activation = activation
        self.bias = bias
        self.output_bias = output_bias
        self.save_hyperparameters()
        self.keep_hyperparameters()

    @override
    def build_network(self, generators: Sequence[torch.Generator]) -> MLPNetwork:
        return MLPNetwork(
            n_inputs=self.n_inputs,
            n_outputs=self.n_outputs,
            hidden=self.hidden,
            generators=generators,
            activation=self.activation,
            bias=self.bias,
            output_bias=self.output_bias,
        )
