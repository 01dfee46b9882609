"""Learning rates that begin small."""

from typing import final

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

__all__ = ["LinearWarmup"]


@final
class LinearWarmup(LRScheduler):
    """Multiplies the learning rate of step s (0 is the first) by ``min(s / steps, 1)``.

    As in the code of Power et al. 2022 (arXiv 2201.02177) and of Nanda et al. 2023 (arXiv 2301.05217), with 10 steps:
    the very first step moves nothing, but fills the optimizer's averages.

    Args:
        optimizer: The optimizer.
        steps: At least 1.
        last_epoch: Number of steps taken, −1 for a fresh start.

    Raises:
        ValueError: If ``steps`` is below 1.

    """

    def __init__(self, optimizer: Optimizer, steps: int = 10, last_epoch: int = -1) -> None:
        if steps < 1:
            raise ValueError(f"LinearWarmup: steps must be at least 1, got {steps}")
        self.steps = steps
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:  # type: ignore[override]  # torch's own schedulers return floats
        """Return the learning rate of each group for the step that comes next."""
        factor = min(self.last_epoch / self.steps, 1.0)
        return [float(rate) * factor for rate in self.base_lrs]
