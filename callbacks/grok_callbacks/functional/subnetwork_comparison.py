"""Subnetworks, given as sets of neurons, beside each other and beside the whole network."""

from collections.abc import Callable

import torch
from torch import Tensor

from .sparse_subnetwork import rank_neurons

__all__ = ["average_sensitivity", "mean_norms", "median_index", "overlap_with_largest", "random_sets"]


def random_sets(sizes: Tensor, n_neurons: int, n_sets: int, generator: torch.Generator) -> Tensor:
    """Draw sets of given sizes, uniformly from all neurons: controls for a set that was found.

    Args:
        sizes: ``(E,)``; NaN counts as 0.
        n_neurons: Number of neurons.
        n_sets: Number of sets for each size.
        generator: A CPU generator.

    Returns:
        ``(E, n_sets, n_neurons)``, bool, on the CPU.

    """
    ranks = torch.rand(len(sizes), n_sets, n_neurons, generator=generator, dtype=torch.float64).argsort(-1).argsort(-1)
    return ranks < sizes.cpu().nan_to_num(nan=0).reshape(-1, 1, 1)


def mean_norms(norms: Tensor, sets: Tensor) -> Tensor:
    """Return the mean norm of the neurons of each set.

    Args:
        norms: ``(..., neuron)``.
        sets: ``(..., set, neuron)``, bool.

    Returns:
        ``(..., set)``; NaN for an empty set.

    """
    within = torch.where(sets, norms.unsqueeze(-2), 0)
    return within.sum(dim=-1) / sets.sum(dim=-1)


def overlap_with_largest(norms: Tensor, chosen: Tensor, top: int) -> Tensor:
    """Return how many of the ``top`` neurons with the largest norms are in a set.

    Args:
        norms: ``(..., neuron)``; of equal ones the first comes first, NaN comes last.
        chosen: ``(..., neuron)``, bool.
        top: At least 0; all neurons if there are fewer.

    Returns:
        ``(...)``, int64.

    """
    largest = rank_neurons(norms)[..., :top]
    return chosen.gather(-1, largest).sum(dim=-1)


def median_index(sizes: Tensor) -> Tensor:
    """Return which of several sizes is their median: of an even number the lower, of equal ones the last.

    Args:
        sizes: ``(T, E)``; NaN is passed over.

    Returns:
        ``(E,)``, int64; the last one where all are NaN.

    """
    chosen = []
    for column in sizes.unbind(dim=1):
        known = column[~column.isnan()]
        here = column == known.sort().values[(len(known) - 1) // 2] if len(known) else column.isnan()
        chosen.append(int(here.nonzero()[-1]))
    return torch.tensor(chosen)


def average_sensitivity(predict: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """Return how many of a row's bits, if flipped, change what is predicted, averaged over rows.

    k for the parity of k bits, on any rows; 0 for a constant. (O'Donnell 2014, "Analysis of Boolean Functions", section
    2.3, calls it total influence. The code of Merrill, Tsilivis, Shukla 2023, arXiv 2303.11873, computes it, and its
    paper does not report it.)

    Args:
        predict: From inputs ``(..., B, n)`` to predictions ``(..., set, B)``.
        inputs: Bits −1 and +1, ``(..., B, n)``.

    Returns:
        ``(..., set)``, float64, from 0 to n. A NaN prediction counts as changed by every flip.

    """
    n_bits = inputs.shape[-1]
    flips = 1 - 2 * torch.eye(n_bits, dtype=inputs.dtype, device=inputs.device)
    flipped = (inputs.unsqueeze(-2) * flips).flatten(-3, -2)  # (..., B * n, n)
    before = predict(inputs).repeat_interleave(n_bits, dim=-1)
    return (predict(flipped) != before).double().mean(dim=-1) * n_bits
