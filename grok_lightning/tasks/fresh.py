"""Rows without end: a fresh one at every draw, some held out."""

import torch
from torch import Tensor

from grok_lightning.population import stream
from grok_lightning.tasks.split import draw_distinct, row_keys
from grok_lightning.tasks.task import Task

__all__ = ["FreshRows"]


class FreshRows:
    """One member's rows, drawn independently and uniformly from all that are not held out.

    Held-out rows are distinct and chosen first. Where the task lists its inputs, training rows are drawn from the rest
    of the list; elsewhere a row that is held out is drawn again. Training rows may repeat one another.

    Args:
        task: The task, as the member has it.
        seed: The member's data seed.
        n_held_out: M, at least 1.

    Attributes:
        held_out_inputs: ``(M, n_inputs)``, never among the training rows.
        held_out_targets: ``(M,)``.

    Raises:
        ValueError: If M is out of range, or holding out M rows leaves none to train on.

    """

    def __init__(self, task: Task, seed: int, n_held_out: int) -> None:
        table = task.table()
        size = task.size if table is None else len(table)
        if n_held_out < 1:
            raise ValueError(f"n_held_out: expected at least 1, as nothing else is validated on, got {n_held_out}")
        if size is not None and n_held_out >= size:
            raise ValueError(
                f"n_held_out: expected fewer than the {size} rows that there are, so that some are left to train on, "
                f"got {n_held_out}"
            )
        self._task = task
        self._seed = seed
        generator = stream(seed, "held-out rows")
        self._rest: Tensor | None = None
        if table is None:
            self.held_out_inputs = draw_distinct(task, n_held_out, generator, without=None)
        else:
            order = torch.randperm(len(table), generator=generator)
            self.held_out_inputs, self._rest = table[order[:n_held_out]], table[order[n_held_out:]]
        self.held_out_targets = task.label(self.held_out_inputs)
        self._held_out = frozenset(row_keys(self.held_out_inputs))
        # A task that does not know its size may have nothing left: found out here, not in the first step.
        self.block(0, 1)

    def block(self, index: int, n_rows: int) -> tuple[Tensor, Tensor]:
        """Return inputs ``(n_rows, n_inputs)`` and targets ``(n_rows,)``, a function of the seed and the arguments.

        Raises:
            ValueError: If a million draws find nothing but held-out rows.

        """
        generator = stream(self._seed, f"rows of block {index}")
        if self._rest is None:
            inputs = self._draw(n_rows, generator)
        else:
            inputs = self._rest[torch.randint(len(self._rest), (n_rows,), generator=generator)]
        return inputs, self._task.label(inputs)

    def _draw(self, n_rows: int, generator: torch.Generator) -> Tensor:
        rows = self._without_held_out(self._task.draw(n_rows, generator))
        fruitless = 0
        while len(rows) < n_rows:
            more = self._without_held_out(self._task.draw(1024, generator))
            fruitless = 0 if len(more) else fruitless + 1
            if fruitless == 1000:
                raise ValueError(
                    f"n_held_out: {len(self._held_out)} held-out rows leave none to train on: a million rows of "
                    f"{type(self._task).__name__} were drawn and all are held out"
                )
            rows = torch.cat([rows, more[: n_rows - len(rows)]])
        return rows

    def _without_held_out(self, rows: Tensor) -> Tensor:
        fresh = [key not in self._held_out for key in row_keys(rows)]
        return rows if all(fresh) else rows[torch.tensor(fresh)]
