"""Circuits of few ReLU neurons that compute the parity of k bits, and how close trained neurons come to them."""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["ParityCircuit", "four_neurons", "one_a_pattern", "six_neurons"]


class ParityCircuit(NamedTuple):
    """One hidden ReLU layer ``f(x) = Σ_j output_j relu(weight_j · x + bias_j)`` on the k secret bits alone, float64.

    Attributes:
        weight: ``(neuron, k)``.
        bias: ``(neuron,)``.
        output: ``(neuron,)``.

    """

    weight: Tensor
    bias: Tensor
    output: Tensor


def one_a_pattern(k: int) -> ParityCircuit:
    """Return the 2^k neurons of Proposition 1: each fires on one sign pattern of the k bits, with output 1 there.

    Merrill, Tsilivis, Shukla 2023 (arXiv 2303.11873, Proposition 1) say that such a network exists; the weights are
    ours: ``weight_s = s``, ``bias_s = 1 - k``, ``output_s = prod(s)``. Patterns count in binary, −1 for a zero bit.

    Args:
        k: Number of secret bits, at least 1.

    Raises:
        ValueError: If k is below 1.

    """
    if k < 1:
        raise ValueError(f"k: expected at least 1 bit, got {k}")
    shifts = torch.arange(k - 1, -1, -1)
    signs = ((torch.arange(2**k).unsqueeze(1) >> shifts) & 1).double() * 2 - 1
    return ParityCircuit(signs, signs.new_full((2**k,), 1 - k), signs.prod(dim=1))


def six_neurons() -> ParityCircuit:
    """Return the six neurons of Proposition 2 of Merrill, Tsilivis, Shukla 2023 (arXiv 2303.11873), for 3 bits."""
    rows = torch.tensor(
        [
            [-1, -1, 10, -9, -1],
            [-1, -1, 1, -2, 10],
            [1, 1, 1, -2, 10],
            [1, -1, -10, -9, -1],
            [-1, 1, -1, -2, 10],
            [1, -1, -1, -2, 10],
        ],
        dtype=torch.float64,
    )
    return ParityCircuit(rows[:, :3], rows[:, 3], rows[:, 4])


def four_neurons() -> ParityCircuit:
    """Return the four neurons of Proposition 3 of Merrill, Tsilivis, Shukla 2023 (arXiv 2303.11873), for 3 bits.

    The first is constant. With X the sum of the bits, ``f = 1 + 2 relu(X − 1) − relu(X + 1) − relu(−X − 1)``.
    """
    sums = torch.tensor([[0, 1, 1], [1, -1, 2], [1, 1, -1], [-1, -1, -1]], dtype=torch.float64)
    return ParityCircuit(sums[:, :1].expand(-1, 3).clone(), sums[:, 1].clone(), sums[:, 2].clone())
