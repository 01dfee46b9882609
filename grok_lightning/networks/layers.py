"""Layers with a member axis, computed by batched matrix products."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

__all__ = ["MemberEmbedding", "MemberLayerNorm", "MemberLinear", "draw_default", "lead_with_members"]


def lead_with_members(inputs: Tensor, n_members: int, row_rank: int) -> Tensor:
    """Give inputs the leading member axis.

    Args:
        inputs: ``(B, ...)`` shared by all members, or ``(E, B, ...)``.
        n_members: E.
        row_rank: Number of dimensions of one row.

    Returns:
        ``(E, B, ...)``; shared rows are expanded, not copied.

    Raises:
        ValueError: For any other rank, or another E.

    """
    if inputs.ndim == row_rank + 1:
        return inputs.expand(n_members, *inputs.shape)
    if inputs.ndim == row_rank + 2 and inputs.shape[0] == n_members:
        return inputs
    row = ", ".join(["..."] * row_rank)
    raise ValueError(
        f"expected inputs (B, {row}) shared by all members or (E, B, {row}) with E = {n_members}, "
        f"got {tuple(inputs.shape)}"
    )


def draw_default(shape: Sequence[int], fan_in: int, generator: torch.Generator) -> Tensor:
    """Draw torch's default initialisation of ``nn.Linear``: uniform in ±1/√fan_in, for weights and biases alike.

    Drawn in float32 on the CPU whatever the default dtype and device are, so that a seed means the same weights in a
    float64 run and on a GPU.

    Args:
        shape: Shape of one member's tensor.
        fan_in: Number of inputs of the layer, at least 1.
        generator: The member's own CPU generator.

    """
    bound = 1 / math.sqrt(fan_in)
    values = torch.empty(tuple(shape), dtype=torch.float32, device="cpu")
    return values.uniform_(-bound, bound, generator=generator)


class MemberLinear(nn.Module):
    """E affine maps side by side: ``y[e] = x[e] @ weight[e].T + bias[e]``.

    Args:
        n_members: E.
        in_features: Width of the input.
        out_features: Width of the output.
        bias: Whether there is a bias.

    Attributes:
        weight: ``(E, out, in)``; ``weight[e]`` is what ``nn.Linear`` would hold.
        bias: ``(E, out)`` or ``None``.

    """

    bias: nn.Parameter | None

    def __init__(self, n_members: int, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.n_members = n_members
        self.in_features = in_features
        self.out_features = out_features
        self.weight = nn.Parameter(torch.zeros(n_members, out_features, in_features))
        if bias:
            self.bias = nn.Parameter(torch.zeros(n_members, out_features))
        else:
            self.register_parameter("bias", None)

    @torch.no_grad()
    def draw(self, generators: Sequence[torch.Generator]) -> None:
        """Draw torch's default initialisation, member by member, each from its own generator: weight, then bias."""
        for e, generator in enumerate(generators):
            self.weight[e].copy_(draw_default(self.weight.shape[1:], self.in_features, generator))
            if self.bias is not None:
                self.bias[e].copy_(draw_default(self.bias.shape[1:], self.in_features, generator))

    def forward(self, inputs: Tensor) -> Tensor:
        """Map ``(E, B, in)`` to ``(E, B, out)``."""
        # A weight of one row or column is left to the other form: here its gradient would have strides that DDP minds.
        many_rows = inputs.shape[1] > max(self.in_features, self.out_features)
        if many_rows and min(self.in_features, self.out_features) > 1:
            if self.bias is None:
                return torch.bmm(inputs, self.weight.mT)
            return torch.baddbmm(self.bias.unsqueeze(1), inputs, self.weight.mT)
        # For few rows W xᵀ, transposed, rather than x Wᵀ: the gradient of the weight then has the weight's own memory
        # layout, and autograd takes it as it is. The other way round it is copied, which costs a third of a small
        # network's step, and nothing beside many rows.
        columns = inputs.mT
        if self.bias is None:
            return torch.bmm(self.weight, columns).mT
        return torch.baddbmm(self.bias.unsqueeze(-1), self.weight, columns).mT

    def extra_repr(self) -> str:
        """Return the sizes, for ``print(network)``."""
        return (
            f"n_members={self.n_members}, in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}"
        )


class MemberEmbedding(nn.Module):
    """E tables of vectors, one for each token.

    Args:
        n_members: E.
        n_tokens: Number of tokens.
        d_model: Width of a vector.

    Attributes:
        weight: ``(E, n_tokens, d_model)``; ``weight[e]`` is what ``nn.Embedding`` would hold.

    """

    def __init__(self, n_members: int, n_tokens: int, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(n_members, n_tokens, d_model))

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens ``(E, ...)`` to ``(E, ..., d_model)``."""
        members = torch.arange(len(self.weight), device=tokens.device)
        return self.weight[members.view(-1, *[1] * (tokens.ndim - 1)), tokens]

    def extra_repr(self) -> str:
        """Return the sizes, for ``print(network)``."""
        return "n_members={}, n_tokens={}, d_model={}".format(*self.weight.shape)


class MemberLayerNorm(nn.Module):
    """E layer normalisations side by side, over the last axis, as ``nn.LayerNorm`` has them.

    Args:
        n_members: E.
        width: Number of features.
        eps: Added to the variance.

    Attributes:
        weight: ``(E, width)``, initially 1.
        bias: ``(E, width)``, initially 0.

    """

    def __init__(self, n_members: int, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(n_members, width))
        self.bias = nn.Parameter(torch.zeros(n_members, width))

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalise ``(E, ..., width)``."""
        shape = (len(self.weight), *[1] * (inputs.ndim - 2), -1)
        normed = nnf.layer_norm(inputs, inputs.shape[-1:], eps=self.eps)
        return torch.addcmul(self.bias.view(shape), normed, self.weight.view(shape))
