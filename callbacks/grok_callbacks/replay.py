"""Looking back at a training that is over."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from typing_extensions import override

__all__ = ["Replay"]


@final
class Replay(Trainer):
    """A Trainer that trains nothing and stands at a step of one's choosing, for :meth:`Monitor.look_back`.

    It works on the CPU, writes nothing, and knows the model and its data: their ``setup`` has run, and metrics of the
    weights that the model has can be had. It has no training loader: a monitor that needs training rows finds them if
    the data module hands them out (``HasRows``), or by its argument ``rows``.

    Args:
        pl_module: The model.
        datamodule: Its data.
        precision: The Trainer's argument of that name, as it was in training.

    Attributes:
        step: Where it stands, in place of the number of optimizer steps taken.

    """

    step = 0

    def __init__(
        self, pl_module: LightningModule, datamodule: LightningDataModule, precision: str | int | None = None
    ) -> None:
        with _quietly():
            super().__init__(
                accelerator="cpu",
                devices=1,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                inference_mode=False,
                precision=precision,  # type: ignore[arg-type]  # one of many literals
            )
            # The public way to introduce them to one another.
            self.validate(pl_module, datamodule=datamodule, verbose=False)

    @property
    @override
    def global_step(self) -> int:
        """Return ``step``."""
        return self.step


@contextmanager
def _quietly() -> Iterator[None]:
    """Within, Lightning says nothing of devices and products: nobody asked for a Trainer."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated", category=FutureWarning)
            yield
    finally:
        log.setLevel(level)
