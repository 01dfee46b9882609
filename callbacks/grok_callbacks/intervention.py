"""The base of callbacks that do change training."""

from abc import ABC

from lightning.pytorch import Callback

__all__ = ["Intervention"]


class Intervention(Callback, ABC):
    """A callback that changes training, and says so by its base class; a :class:`Monitor` changes nothing.

    What it did must be in its ``state_dict``, so that a resumed run is the run that was interrupted.
    """
