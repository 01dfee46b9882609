"""Which rows are trained on, which are held out, and labels that are not the task's."""

from collections.abc import Mapping
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from grok_lightning.population import stream
from grok_lightning.tasks.task import Task

__all__ = ["Split", "SplitRule", "corrupt", "draw_distinct", "draw_labels", "row_keys", "split_rows"]

SplitRule: TypeAlias = Literal["random", "symmetric"]


class Split(NamedTuple):
    """Rows of one member.

    Attributes:
        inputs: ``(N, n_inputs)``, distinct rows to train on.
        targets: ``(N,)``, their labels, noise included.
        true_targets: ``(N,)``, their labels without noise; random labels are as true as any.
        held_out_inputs: ``(M, n_inputs)``, none of them among ``inputs``; M may be 0.
        held_out_targets: ``(M,)``, the task's labels.
        held_out_subsets: Masks ``(M,)``, bool, by name. ``unpaired``, where the task has a mirror: rows whose swap is
            not trained on. A row that is its own swap is one of them, and so is one whose swap the table does not have.

    """

    inputs: Tensor
    targets: Tensor
    true_targets: Tensor
    held_out_inputs: Tensor
    held_out_targets: Tensor
    held_out_subsets: Mapping[str, Tensor]


def split_rows(
    task: Task,
    seed: int,
    train_size: int,
    n_held_out: int | None,
    label_noise: float = 0.0,
    nested: bool = True,
    split: SplitRule = "random",
    random_labels: bool = False,
) -> Split:
    """Draw one member's training and held-out rows.

    Training rows are distinct. Where the task lists its inputs, they are a prefix of one random order of the table and
    held-out rows come from the rest, as many as there are; elsewhere rows are drawn, repeats and rows that are trained
    on left out.

    Args:
        task: The task, as the member has it.
        seed: The member's data seed.
        train_size: N, at least 1 and at most ``task.size``.
        n_held_out: Number of held-out rows wanted, at least 0; fewer where the table has no more; ``None`` for all rows
            of the table that are not trained on.
        label_noise: Share of the training labels that are wrong, in [0, 1]; see :func:`corrupt`.
        nested: Whether the rows of a smaller ``train_size`` are a prefix of those of a larger one; otherwise each size
            has rows of its own.
        split: ``random``: every row by itself; ``symmetric``: a row and its swap (:meth:`Task.mirror`) are both trained
            on or both not, so that there may be one training row fewer than ``train_size``.
        random_labels: Whether every training label is drawn uniformly from all there are, whatever the row, as in Zhang
            et al. 2017 (arXiv 1611.03530): nothing can then be learnt but the rows themselves. Held-out rows keep the
            task's labels.

    Raises:
        ValueError: If a size or ``label_noise`` is out of range, or the task has not what an option needs.

    """
    table = task.table()
    size = task.size if table is None else len(table)
    if train_size < 1:
        raise ValueError(f"train_size: expected at least 1 row to train on, got {train_size}")
    if size is not None and train_size > size:
        raise ValueError(f"train_size: expected at most the {size} rows that there are, got {train_size}")
    if n_held_out is None and table is None:
        raise ValueError(
            f"n_held_out: expected a number, as {type(task).__name__} does not list its rows, and all the others than "
            "those trained on can only be had from a list"
        )
    if n_held_out is not None and n_held_out < 0:
        raise ValueError(f"n_held_out: expected at least 0, got {n_held_out}")
    if random_labels and label_noise:
        raise ValueError(f"label_noise: random labels have no right ones to change, got {label_noise}")
    if split not in ("random", "symmetric"):
        raise ValueError(f"split: expected 'random' or 'symmetric', got '{split}'")
    mirror = task.mirror()
    if split == "symmetric" and (mirror is None or table is None):
        raise ValueError(
            f"split: symmetric needs a task that knows each row's swap, and {type(task).__name__} does not"
        )
    suffix = "" if nested else f" of {train_size}"
    subsets = {}
    if table is None:
        assert n_held_out is not None
        if size is not None:
            n_held_out = min(n_held_out, size - train_size)
        inputs = draw_distinct(task, train_size, stream(seed, f"training rows{suffix}"), without=None)
        held_out = draw_distinct(task, n_held_out, stream(seed, "held-out rows"), without=inputs)
    else:
        generator = stream(seed, f"training rows{suffix}")
        if split == "symmetric":
            assert mirror is not None
            order, train_size = _in_pairs(mirror, train_size, generator)
        else:
            order = torch.randperm(len(table), generator=generator)
        trained, rest = order[:train_size], order[train_size:].sort().values
        chosen = rest[torch.randperm(len(rest), generator=stream(seed, "held-out rows"))[:n_held_out]]
        inputs, held_out = table[trained], table[chosen]
        if mirror is not None:
            subsets["unpaired"] = ~torch.isin(mirror[chosen], trained)
    true_targets = task.label(inputs)
    if random_labels:
        targets = true_targets = draw_labels(true_targets, task.n_outputs, stream(seed, f"random labels{suffix}"))
    else:
        targets = corrupt(true_targets, task.n_outputs, label_noise, stream(seed, f"label noise{suffix}"))
    return Split(inputs, targets, true_targets, held_out, task.label(held_out), subsets)


def _in_pairs(mirror: Tensor, train_size: int, generator: torch.Generator) -> tuple[Tensor, int]:
    """Return an order of the rows in which swaps are neighbours, and how many rows of its start make whole pairs.

    The rows of a smaller ``train_size`` are a prefix of those of a larger one.

    Args:
        mirror: ``(size,)``, see :meth:`Task.mirror`.
        train_size: Largest number of rows to take.
        generator: Where the order of the pairs is drawn from.

    Returns:
        ``(size,)``, and a number: ``train_size``, or one fewer where the next pair does not fit.

    Raises:
        ValueError: If the swap of a swap is not the row itself, or only half a pair fits.

    """
    rows = torch.arange(len(mirror))
    swap = torch.where(mirror < 0, rows, mirror)
    if not torch.equal(swap[swap], rows):
        raise ValueError("split: symmetric needs a mirror() in which the swap of a row's swap is the row itself")
    firsts = rows[rows <= swap]
    firsts = firsts[torch.randperm(len(firsts), generator=generator)]
    pairs = torch.stack([firsts, swap[firsts]], dim=1)
    is_row = torch.stack([torch.ones_like(firsts, dtype=torch.bool), pairs[:, 0] != pairs[:, 1]], dim=1)
    ends = is_row.sum(dim=1).cumsum(dim=0)
    fitting = int((ends <= train_size).sum())
    if not fitting:
        raise ValueError(f"train_size: with split: symmetric expected at least 2, a row and its swap, got {train_size}")
    return pairs[is_row], int(ends[fitting - 1])


def draw_labels(like: Tensor, n_outputs: int, generator: torch.Generator) -> Tensor:
    """Draw labels uniformly and independently: signs, or classes in [0, ``n_outputs``).

    Args:
        like: ``(N,)``, labels of the kind that is wanted.
        n_outputs: Number of classes; not used for signs.
        generator: Where they are drawn from; the first ones do not depend on N.

    Returns:
        ``(N,)``.

    """
    if like.is_floating_point():
        return torch.randint(2, like.shape, generator=generator).to(like.dtype) * 2 - 1
    return torch.randint(n_outputs, like.shape, generator=generator)


def corrupt(targets: Tensor, n_outputs: int, share: float, generator: torch.Generator) -> Tensor:
    """Replace a share of the labels by wrong ones: signs are flipped, classes become one of the others, uniformly.

    Args:
        targets: ``(N,)``.
        n_outputs: Number of classes; not used for signs.
        share: In [0, 1]; ``round(share * N)`` rows are changed.
        generator: Chooses the rows and the wrong classes.

    Returns:
        ``(N,)``, a copy.

    Raises:
        ValueError: If ``share`` is out of range.

    """
    if not 0 <= share <= 1:
        raise ValueError(f"label_noise: expected a share in [0, 1], got {share}")
    rows = torch.randperm(len(targets), generator=generator)[: round(share * len(targets))]
    noisy = targets.clone()
    if targets.is_floating_point():
        noisy[rows] = -targets[rows]
    else:
        shift = torch.randint(1, max(n_outputs, 2), (len(rows),), generator=generator)
        noisy[rows] = (targets[rows] + shift) % n_outputs
    return noisy


def draw_distinct(task: Task, n_rows: int, generator: torch.Generator, without: Tensor | None) -> Tensor:
    """Draw until there are ``n_rows`` distinct rows, none of them in ``without``; the order of drawing is kept.

    Args:
        task: Draws the rows.
        n_rows: N.
        generator: Where they are drawn from.
        without: ``(M, n_inputs)``, or ``None``.

    Returns:
        ``(N, n_inputs)``.

    Raises:
        ValueError: If a million draws find no new row.

    """
    taken = set(row_keys(without)) if without is not None else set()
    rows: list[Tensor] = []
    fruitless = 0
    while len(rows) < n_rows:
        before = len(rows)
        # A fixed number at a time: what is drawn first must not depend on how many are wanted.
        drawn = task.draw(1024, generator)
        for row, key in zip(drawn, row_keys(drawn), strict=True):
            if key not in taken and len(rows) < n_rows:
                taken.add(key)
                rows.append(row)
        fruitless = fruitless + 1 if len(rows) == before else 0
        if fruitless == 1000:
            raise ValueError(f"{type(task).__name__}: drew a million rows and found no new one after {len(rows)}")
    return torch.stack(rows) if rows else task.draw(1024, generator)[:0]


def row_keys(rows: Tensor) -> list[bytes]:
    """Return the bytes of each of the rows ``(N, n)``, by which they are compared: 0.0 and −0.0 are not the same."""
    array = rows.contiguous().numpy()
    keys: list[bytes] = array.view(f"V{array.shape[1] * array.itemsize}").ravel().tolist()
    return keys
