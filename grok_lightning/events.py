"""TensorBoard's events of a run that goes on."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import final

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator  # type: ignore[import-untyped]
from typing_extensions import override

__all__ = ["ContinuedEvents"]


@final
class ContinuedEvents(TensorBoardLogger):
    """Goes on with the events in a run's directory, so that every step is there once, as in the record.

    Readers leave out what was logged beyond the checkpoint's step before. At that step itself, a validation may have
    come after the checkpoint: it is made up for, and logged only where it is not there yet.

    Args:
        directory: The run's.
        step: Of the checkpoint.

    """

    def __init__(self, directory: Path, step: int) -> None:
        super().__init__(save_dir=directory, name="", version="", purge_step=step + 1, default_hp_metric=False)
        self._directory = directory
        self._step = step

    @override
    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        there = self._there if step == self._step else set()
        super().log_metrics({name: value for name, value in metrics.items() if name not in there}, step)

    @cached_property
    def _there(self) -> set[str]:
        """Names of the scalars that have a value at the checkpoint's step; reading all events takes a while."""
        events = EventAccumulator(str(self._directory), size_guidance={SCALARS: 0})
        events.Reload()
        return {name for name in events.Tags()[SCALARS] if self._step in {event.step for event in events.Scalars(name)}}
