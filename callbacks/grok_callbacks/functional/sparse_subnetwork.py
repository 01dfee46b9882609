"""The smallest part of a layer that predicts what the whole network predicts."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "Sizes",
    "first_sizes",
    "in_top",
    "is_right",
    "linear_search",
    "predictions",
    "prefix_counts",
    "prefix_search",
    "rank_neurons",
]

AT_ONCE = 2**18
"""Logits worked on at a time: about what stays in a processor's cache."""


class Sizes(NamedTuple):
    """Effective sparsity by either rule, ``(...)``, float64, 0 to the number of neurons; NaN where a logit is NaN.

    Attributes:
        by_predictions: Smallest k whose top k neurons predict what all neurons predict, on every row.
        by_accuracy: Smallest k whose top k neurons are right on as many rows.

    """

    by_predictions: Tensor
    by_accuracy: Tensor


def rank_neurons(norms: Tensor) -> Tensor:
    """Return the indices of neurons by falling norm; of equal ones the first comes first, NaN comes last.

    Args:
        norms: ``(..., neuron)``.

    Returns:
        ``(..., neuron)``, int64.

    """
    return norms.nan_to_num(nan=-torch.inf, posinf=torch.inf).argsort(dim=-1, descending=True, stable=True)


def in_top(order: Tensor, size: Tensor) -> Tensor:
    """Return which neurons are among the first ``size`` of a ranking.

    Args:
        order: ``(..., neuron)``, from :func:`rank_neurons`.
        size: ``(...)``; NaN: none.

    Returns:
        ``(..., neuron)``, bool, in the layer's own order.

    """
    position = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(-1, order, position)
    return rank < size.to(order.device).unsqueeze(-1)


def predictions(logits: Tensor) -> Tensor:
    """Return what logits predict: the sign (−1, 0, +1) of a single one, else the index of the first largest.

    Two networks agree where these are equal: a logit of exactly 0 is no class, and agrees with nothing but 0.

    Args:
        logits: ``(..., C)``.

    Returns:
        ``(...)``, float32 whatever the logits are; NaN, which agrees with nothing, where a logit is NaN.

    """
    return torch.where(logits.isnan().any(dim=-1), torch.nan, _predictions(logits))


def _predictions(logits: Tensor) -> Tensor:
    """Return :func:`predictions` of logits that are numbers; torch's ``sign`` of NaN is 0."""
    return logits.squeeze(-1).sign().float() if logits.shape[-1] == 1 else logits.argmax(dim=-1).float()


def is_right(predicted: Tensor, targets: Tensor, n_outputs: int) -> Tensor:
    """Return which predictions are right; NaN and, for a single output, 0 never are.

    Args:
        predicted: ``(...)``, from :func:`predictions`.
        targets: ``(...)``: classes; for a single output anything above 0 stands for +1, the rest for −1.
        n_outputs: C.

    Returns:
        ``(...)``, bool.

    """
    return predicted == _as_predictions(targets, n_outputs)


def _as_predictions(targets: Tensor, n_outputs: int) -> Tensor:
    return torch.where(targets > 0, 1, -1) if n_outputs == 1 else targets


def prefix_search(activations: Tensor, readout: Tensor, rest: Tensor, order: Tensor, targets: Tensor) -> Sizes:
    """Return the effective sparsity of networks whose logits are a weighted sum over neurons, trying all sizes at once.

    The top k neurons give the logits ``rest + Σ activation_j · readout_j`` over the first k neurons of the ranking: as
    rankings are nested, one cumulative sum over neurons gives every size. Merrill, Tsilivis, Shukla 2023 (arXiv
    2303.11873, section 2.1) define effective sparsity so; their code evaluates one network a size, compares accuracies
    only, bisects although neither curve is monotone, and leaves out sizes 0 and n.

    Args:
        activations: ``(..., row, neuron)``.
        readout: What one unit of a neuron's activation adds to the logits, ``(..., C, neuron)``.
        rest: Logits without any neuron, ``(..., row, C)``.
        order: Ranking, ``(..., neuron)``.
        targets: ``(..., row)``.

    Raises:
        ValueError: If the shapes do not fit.

    """
    return first_sizes(prefix_counts(activations, readout, rest, order, targets), activations.shape[-2])


def prefix_counts(activations: Tensor, readout: Tensor, rest: Tensor, order: Tensor, targets: Tensor) -> Tensor:
    """Return for every size on how many rows it agrees with all neurons, and on how many it is right.

    Counts of separate rows may be added up before :func:`first_sizes`; the arguments are those of
    :func:`prefix_search`.

    Returns:
        ``(2, ..., neuron + 1)``, int64; −1 where a logit is NaN.

    Raises:
        ValueError: If the shapes do not fit.

    """
    lead, (n_rows, n_neurons), n_outputs = activations.shape[:-2], activations.shape[-2:], readout.shape[-2]
    expected = {
        "readout": (readout, (*lead, n_outputs, n_neurons)),
        "rest": (rest, (*lead, n_rows, n_outputs)),
        "order": (order, (*lead, n_neurons)),
        "targets": (targets, (*lead, n_rows)),
    }
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name}: expected {shape}, got {tuple(tensor.shape)}")
    members = zip(
        activations.reshape(-1, n_rows, n_neurons),
        readout.reshape(-1, n_outputs, n_neurons),
        rest.reshape(-1, n_rows, n_outputs),
        order.reshape(-1, n_neurons),
        targets.reshape(-1, n_rows),
        strict=True,
    )
    counts = [_prefix_counts_of_one(*member) for member in members]
    return torch.stack(counts, dim=1).reshape(2, *lead, n_neurons + 1)


def _prefix_counts_of_one(activations: Tensor, readout: Tensor, rest: Tensor, order: Tensor, targets: Tensor) -> Tensor:
    (n_rows, n_neurons), n_outputs = activations.shape, len(readout)
    readout = readout.index_select(1, order).T.contiguous()
    by_neuron = activations.T  # often contiguous as it comes; choosing columns is slow
    counts = torch.zeros(2, n_neurons + 1, dtype=torch.float64, device=rest.device)
    at_once = max(1, AT_ONCE // ((n_neurons + 1) * n_outputs))
    for start in range(0, n_rows, at_once):
        rows = slice(start, start + at_once)
        ranked = by_neuron[:, rows].index_select(0, order).T
        logits = rest.new_empty(len(ranked), n_neurons + 1, n_outputs)
        logits[:, 0] = rest[rows]
        torch.mul(ranked.unsqueeze(-1), readout, out=logits[:, 1:])
        logits.cumsum_(dim=1)
        if bool(logits[:, -1].isnan().any()):  # once NaN, a sum stays NaN
            return torch.full_like(counts, -1, dtype=torch.int64)
        predicted = _predictions(logits)  # (row, size)
        wanted = torch.stack([predicted[:, -1], _as_predictions(targets[rows], n_outputs).float()])
        counts += _count_signs(predicted, wanted) if n_outputs == 1 else _count_classes(predicted, wanted)
    return counts.to(torch.int64)


def _count_classes(predicted: Tensor, wanted: Tensor) -> Tensor:
    """Return ``(2, size)``: in how many rows predictions ``(row, size)`` are those wanted, ``(2, row)``."""
    return torch.stack([(predicted == column.unsqueeze(1)).sum(dim=0) for column in wanted])


def _count_signs(predicted: Tensor, wanted: Tensor) -> Tensor:
    """Return what :func:`_count_classes` does, for predictions −1, 0 and +1, by matrix products: several times faster.

    For signs s and w, ``s w / 2 + |s w| / 2`` is 1 where both are the same and not 0; ``(1 − |s|) (1 − |w|)`` is 1
    where both are 0. Written as a term in s, one in ``|s|``, and one in neither.
    """
    size = wanted.abs()
    neither = (1 - size).sum(dim=1, keepdim=True)
    return wanted @ predicted / 2 + (1.5 * size - 1) @ predicted.abs() + neither


def first_sizes(counts: Tensor, n_rows: int) -> Sizes:
    """Return the first sizes that count what the last one counts.

    Args:
        counts: From :func:`prefix_counts`, ``(2, ..., neuron + 1)``.
        n_rows: Number of rows counted.

    """
    agreeing, right = counts
    # A network that does not agree with itself has a NaN logit.
    undefined = agreeing[..., -1] < n_rows
    found = ((agreeing == n_rows), (right == right[..., -1:]))
    return Sizes(*(torch.where(undefined, torch.nan, same.int().argmax(dim=-1).double()) for same in found))


def linear_search(predict_top: Callable[[int], Tensor], n_neurons: int, targets: Tensor, n_outputs: int) -> Sizes:
    """Return the effective sparsity of any network, by trying one size after another: exact, and slow.

    Args:
        predict_top: From a size to the predictions ``(..., row)`` of the top neurons alone.
        n_neurons: Largest size.
        targets: ``(..., row)``.
        n_outputs: C.

    """
    full = predict_top(n_neurons)
    n_right = is_right(full, targets, n_outputs).sum(dim=-1)
    undefined = full.isnan().any(dim=-1)
    by_predictions = torch.full(undefined.shape, torch.nan, dtype=torch.float64, device=full.device)
    by_accuracy = by_predictions.clone()
    for size in range(n_neurons + 1):
        predicted = predict_top(size)
        agrees = (predicted == full).all(dim=-1)
        as_right = is_right(predicted, targets, n_outputs).sum(dim=-1) == n_right
        by_predictions = torch.where(agrees & by_predictions.isnan() & ~undefined, size, by_predictions)
        by_accuracy = torch.where(as_right & by_accuracy.isnan() & ~undefined, size, by_accuracy)
        # Equal predictions are equally often right: nothing is left to find.
        if bool((undefined | ~by_predictions.isnan()).all()):
            break
    return Sizes(by_predictions, by_accuracy)
