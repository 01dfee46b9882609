"""Multi-layer perceptrons with a member axis."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

from grok_lightning.networks.layers import MemberLinear, lead_with_members
from grok_lightning.networks.network import Network

__all__ = ["ACTIVATIONS", "MLPNetwork"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": nnf.relu,
    "square": torch.square,
    "gelu": nnf.gelu,
    "tanh": torch.tanh,
    "identity": lambda x: x,
}


class MLPNetwork(Network):
    """E multi-layer perceptrons ``f(x) = U a(... a(W x + b))``.

    With one hidden ReLU layer, a hidden bias and no output bias it is the network of Merrill, Tsilivis, Shukla 2023
    (arXiv 2303.11873, section 2).

    Args:
        n_inputs: Width of a row.
        n_outputs: Number of logits C.
        hidden: Widths of the hidden layers; empty for a linear map.
        activation: One of ``relu``, ``square``, ``gelu``, ``tanh``, ``identity``.
        bias: Whether hidden layers have a bias.
        output_bias: Whether the output has one.
        generators: One CPU generator a member, for torch's default initialisation; their number is E.

    Attributes:
        hidden: The hidden layers, named ``hidden.0``, ``hidden.1``, ...
        output: The last layer.

    Raises:
        ValueError: If a width is below 1, there is no member, or the activation is unknown.

    """

    def __init__(
        self,
        n_inputs: int,
        n_outputs: int,
        hidden: Sequence[int],
        generators: Sequence[torch.Generator],
        activation: str = "relu",
        bias: bool = True,
        output_bias: bool = False,
    ) -> None:
        super().__init__()
        for name, width in [("n_inputs", n_inputs), ("n_outputs", n_outputs), *(("hidden", width) for width in hidden)]:
            if width < 1:
                raise ValueError(f"{name}: expected a width of at least 1, got {width}")
        if not generators:
            raise ValueError("generators: expected one a member, got none")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation: expected one of {', '.join(ACTIVATIONS)}, got '{activation}'")
        self.n_members = len(generators)
        self.n_inputs = n_inputs
        self.n_outputs = n_outputs
        self.activation = activation
        self.bias = bias
        self.output_bias = output_bias
        widths = [n_inputs, *hidden]
        self.hidden = nn.ModuleList(MemberLinear(self.n_members, into, out, bias) for into, out in pairwise(widths))
        self.output = MemberLinear(self.n_members, widths[-1], n_outputs, output_bias)
        for layer in self._layers():
            layer.draw(generators)

    def _layers(self) -> list[MemberLinear]:
        return [layer for layer in self.modules() if isinstance(layer, MemberLinear)]

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits ``(E, B, C)``.

        Args:
            inputs: ``(B, n_inputs)`` shared by all members, or ``(E, B, n_inputs)``.

        Raises:
            ValueError: For any other shape.

        """
        activate = ACTIVATIONS[self.activation]
        x = lead_with_members(inputs, self.n_members, row_rank=1)
        if x.shape[-1] != self.n_inputs:
            raise ValueError(f"expected rows of width {self.n_inputs}, got inputs of shape {tuple(inputs.shape)}")
        for layer in self.hidden:
            x = activate(layer(x))
        logits: Tensor = self.output(x)
        return logits

    def check_inputs(self, inputs: Tensor) -> None:
        """Refuse tokens."""
        if not inputs.is_floating_point():
            raise ValueError(
                f"expected rows of numbers, got tokens ({inputs.dtype}): use a network that embeds them, such as "
                "Transformer, or rows without them (ModularArithmetic: encoding: one-hot)"
            )

    @property
    def rows_at_once(self) -> int:
        """Number of rows with about a mebibyte of activations in the widest layer: measured best on the CPU."""
        widest = max(layer.out_features for layer in self._layers())
        return max(16, 2**18 // (self.n_members * widest))

    def like(self, n_members: int) -> Self:
        """Return a network of the same shape for ``n_members`` members, with weights of no meaning."""
        return type(self)(
            n_inputs=self.n_inputs,
            n_outputs=self.n_outputs,
            hidden=[layer.out_features for layer in self._layers()[:-1]],
            generators=[torch.Generator() for _ in range(n_members)],
            activation=self.activation,
            bias=self.bias,
            output_bias=self.output_bias,
        )
