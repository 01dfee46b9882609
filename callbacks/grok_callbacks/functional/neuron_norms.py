"""Norms of the neurons of a linear layer."""

from typing import Literal

import torch
from torch import Tensor

__all__ = ["Weights", "neuron_norms"]

Weights = Literal["incoming", "outgoing", "product"]


def neuron_norms(incoming: Tensor | None, outgoing: Tensor | None, weights: Weights = "incoming") -> Tensor:
    """Return the L2 norm of every neuron's weights; biases do not count.

    ``incoming`` is the norm by which Merrill, Tsilivis, Shukla 2023 (arXiv 2303.11873, section 2.1) rank neurons.
    ``product``, the incoming times the outgoing norm, does not change when a ReLU neuron is rescaled.

    Args:
        incoming: Weight of the layer, ``(..., neuron, in)``; not needed for ``outgoing``.
        outgoing: Weight of the layer that reads it, ``(..., out, neuron)``; not needed for ``incoming``.
        weights: Which weights.

    Returns:
        ``(..., neuron)``, at least 0; NaN where a weight is NaN.

    Raises:
        ValueError: If a weight that is needed is missing, has fewer than two dimensions, or the two disagree about the
            number of neurons.

    Example:
        >>> neuron_norms(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), None)
        tensor([5., 0.])

    """
    if weights == "incoming":
        rows: Tensor = torch.linalg.vector_norm(_matrix(incoming, "incoming"), dim=-1)
        return rows
    if weights == "outgoing":
        columns: Tensor = torch.linalg.vector_norm(_matrix(outgoing, "outgoing"), dim=-2)
        return columns
    if weights != "product":
        raise ValueError(f"weights: expected 'incoming', 'outgoing' or 'product', got '{weights}'")
    norms_in, norms_out = neuron_norms(incoming, None), neuron_norms(None, outgoing, "outgoing")
    if norms_in.shape != norms_out.shape:
        raise ValueError(
            f"expected incoming (..., neuron, in) and outgoing (..., out, neuron), got {_shape(incoming)} and "
            f"{_shape(outgoing)}"
        )
    return norms_in * norms_out


def _matrix(weight: Tensor | None, name: str) -> Tensor:
    if weight is None or weight.ndim < 2:
        raise ValueError(f"{name}: expected a weight of at least two dimensions, got {_shape(weight)}")
    return weight


def _shape(weight: Tensor | None) -> tuple[int, ...] | None:
    return None if weight is None else tuple(weight.shape)
