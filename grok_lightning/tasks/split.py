"""Which rows are trained on, which are held out, and label noise."""

from typing import NamedTuple

import torch
from torch import Tensor

from grok_lightning.population import stream
from grok_lightning.tasks.task import Task

__all__ = ["Split", "corrupt", "draw_distinct", "row_keys", "split_rows"]


class Split(NamedTuple):
    """Rows of one member.

    Attributes:
        inputs: ``(N, n_inputs)``, distinct rows to train on.
        targets: ``(N,)``, their labels, noise included.
        true_targets: ``(N,)``, their labels without noise.
        held_out_inputs: ``(M, n_inputs)``, none of them among ``inputs``; M may be 0.
        held_out_targets: ``(M,)``, without noise.

    """

    inputs: Tensor
    targets: Tensor
    true_targets: Tensor
    held_out_inputs: Tensor
    held_out_targets: Tensor


def split_rows(
    task: Task, seed: int, train_size: int, n_held_out: int, label_noise: float = 0.0, nested: bool = True
) -> Split:
    """Draw one member's training and held-out rows.

    Training rows are distinct. Where the task lists its inputs, they are a prefix of one random order of the table and
    held-out rows come from the rest, as many as there are; elsewhere rows are drawn, repeats and rows that are trained
    on left out.

    Args:
        task: The task, as the member has it.
        seed: The member's data seed.
        train_size: N, at least 1 and at most ``task.size``.
        n_held_out: Number of held-out rows wanted, at least 0; fewer where the table has no more.
        label_noise: Share of the training labels that are wrong, in [0, 1]; see :func:`corrupt`.
        nested: Whether the rows of a smaller ``train_size`` are a prefix of those of a larger one; otherwise each size
            has rows of its own.

    Raises:
        ValueError: If a size is out of range.

    """
    table = task.table()
    size = task.size if table is None else len(table)
    if train_size < 1:
        raise ValueError(f"train_size: expected at least 1 row to train on, got {train_size}")
    if size is not None and train_size > size:
        raise ValueError(f"train_size: expected at most the {size} rows that there are, got {train_size}")
    if n_held_out < 0:
        raise ValueError(f"n_held_out: expected at least 0, got {n_held_out}")
    if size is not None:
        n_held_out = min(n_held_out, size - train_size)
    suffix = "" if nested else f" of {train_size}"
    if table is None:
        inputs = draw_distinct(task, train_size, stream(seed, f"training rows{suffix}"), without=None)
        held_out = draw_distinct(task, n_held_out, stream(seed, "held-out rows"), without=inputs)
    else:
        order = torch.randperm(len(table), generator=stream(seed, f"training rows{suffix}"))
        inputs, rest = table[order[:train_size]], table[order[train_size:].sort().values]
        chosen = torch.randperm(len(rest), generator=stream(seed, "held-out rows"))[:n_held_out]
        held_out = rest[chosen]
    true_targets = task.label(inputs)
    targets = corrupt(true_targets, task.n_outputs, label_noise, stream(seed, f"label noise{suffix}"))
    return Split(inputs, targets, true_targets, held_out, task.label(held_out))


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
