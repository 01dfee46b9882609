"""The transformer as a LightningModule."""

from collections.abc import Mapping, Sequence
from typing import final

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch.optim.optimizer import ParamsT
from typing_extensions import override

from grok_lightning.losses import Loss
from grok_lightning.modules.module import GrokModule
from grok_lightning.networks import TransformerNetwork
from grok_lightning.optim import LinearWarmup
from grok_lightning.population import Coordinate

__all__ = ["Transformer", "paper_adamw"]


def paper_adamw(parameters: ParamsT) -> torch.optim.AdamW:
    """Return the optimizer of Varma et al. 2023: AdamW, learning rate 0.001, weight decay 1, betas 0.9 and 0.98."""
    # A function, not a partial: a configuration holds its import path.
    return torch.optim.AdamW(parameters, lr=1e-3, weight_decay=1.0, betas=(0.9, 0.98), fused=True)


@final
class Transformer(GrokModule):
    """Decoder-only transformers; the defaults are those of Varma et al. 2023 (arXiv 2309.02390).

    That is one layer, width 128, 4 heads of 32, 512 neurons, and AdamW with learning rate 0.001, weight decay 1 and
    betas 0.9 and 0.98, decay on all tensors. What that paper does not say follows Nanda et al. 2023 (arXiv 2301.05217)
    and their code: ReLU, no LayerNorm, biases of the neurons alone, the initial weights, 10 steps of linear warm-up,
    cross-entropy in float64. Ours has no logits for the operator and "=".

    Args:
        n_inputs: Number of tokens of a row; set from the data by the command line.
        n_tokens: Number of distinct tokens; set from the data by the command line.
        n_outputs: Number of logits; set from the data by the command line.
        d_model: Width of the residual stream.
        n_heads: Number of attention heads.
        d_head: Width of a head; ``d_model / n_heads`` if ``null``.
        d_mlp: Number of neurons of a layer; ``4 * d_model`` if ``null``.
        n_layers: Depth.
        activation: ``relu``, ``square``, ``gelu``, ``tanh`` or ``identity``.
        mlp_bias: Whether neurons and what they write have biases.
        attention_bias: Whether query, key, value and attention output have.
        output_bias: Whether the logits have.
        layer_norm: Whether there is LayerNorm before attention, neurons and output.
        loss: ``cross_entropy``, ``cross_entropy_float32``, ``squared``, or a function
            ``(logits (E, B, C), targets (E, B)) -> (E, B)`` by import path.
        optimizer: Makes the optimizer from parameters.
        scheduler: Makes a learning-rate scheduler, stepped every optimizer step.
        members: Table of coordinates; set from ``population`` by the command line.
        warm_start: Checkpoint, or directory of a run, to take the initial weights from; those of one member go to all,
            of several to the members with the same seeds. Read when a fit begins, not when it resumes.

    Raises:
        ValueError: If the task's rows are no tokens, or a size, the activation or the loss is not valid.

    """

    def __init__(
        self,
        n_inputs: int = 4,
        n_tokens: int = 115,
        n_outputs: int = 113,
        d_model: int = 128,
        n_heads: int = 4,
        d_head: int | None = None,
        d_mlp: int | None = None,
        n_layers: int = 1,
        activation: str = "relu",
        mlp_bias: bool = True,
        attention_bias: bool = False,
        output_bias: bool = False,
        layer_norm: bool = False,
        loss: str | Loss = "cross_entropy",
        optimizer: OptimizerCallable = paper_adamw,
        scheduler: LRSchedulerCallable | None = LinearWarmup,
        members: Mapping[str, Sequence[Coordinate]] | None = None,
        warm_start: str | None = None,
    ) -> None:
        super().__init__(loss=loss, optimizer=optimizer, scheduler=scheduler, members=members, warm_start=warm_start)
        if n_tokens == 0:
            raise ValueError("Transformer: reads rows of tokens, and those of the task are numbers; use MLP")
        self.n_inputs = n_inputs
        self.n_tokens = n_tokens
        self.n_outputs = n_outputs
        self.d_model = d_model
        self.n_heads = n_heads
        self.d_head = d_head
        self.d_mlp = d_mlp
        self.n_layers = n_layers
        self.activation = activation
        self.mlp_bias = mlp_bias
        self.attention_bias = attention_bias
        self.output_bias = output_bias
        self.layer_norm = layer_norm
        self.save_hyperparameters()
        self.keep_hyperparameters()

    @override
    def build_network(self, generators: Sequence[torch.Generator]) -> TransformerNetwork:
        return TransformerNetwork(
            n_tokens=self.n_tokens,
            n_positions=self.n_inputs,
            n_outputs=self.n_outputs,
            generators=generators,
            d_model=self.d_model,
            n_heads=self.n_heads,
            d_head=self.d_head,
            d_mlp=self.d_mlp,
            n_layers=self.n_layers,
            activation=self.activation,
            mlp_bias=self.mlp_bias,
            attention_bias=self.attention_bias,
            output_bias=self.output_bias,
            layer_norm=self.layer_norm,
        )
