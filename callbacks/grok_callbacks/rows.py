"""The one place from which monitors take rows of data."""

import importlib
from collections.abc import Callable
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from .protocols import HasMembers, HasRows

__all__ = ["Split", "rows_of"]

Split = Literal["train", "held_out"]


def rows_of(
    trainer: Trainer, pl_module: LightningModule, split: Split, function: str | None = None, limit: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return rows to measure on, always the same ones, without touching a loader's order.

    They come from ``function`` where one is named; from a data module that hands out rows (:class:`HasRows`); otherwise
    from the ``dataset`` of the Trainer's training or first validation ``DataLoader``, which is *indexed*. It is never
    iterated: that would draw from the loader's random generator and change the training that is being watched.

    Args:
        trainer: The Trainer.
        pl_module: The module.
        split: ``train`` or ``held_out``.
        function: Import path of ``(trainer, pl_module, split) -> (inputs, targets)``.
        limit: Largest number of rows of a member; all of them if ``None``.

    Returns:
        Inputs ``(E, N, ...)`` and labels ``(E, N)`` where rows belong to members, ``(N, ...)`` and ``(N,)`` where all
        share them, on the module's device.

    Raises:
        ValueError: If the rows cannot be had; the message says how to give them.

    """
    datamodule = getattr(trainer, "datamodule", None)
    if function is not None:
        inputs, targets = _import(function)(trainer, pl_module, split)
    elif isinstance(datamodule, HasRows):
        inputs, targets = datamodule.rows(split)
    else:
        inputs, targets = _index(_dataset(trainer, split), limit)
    lead = isinstance(pl_module, HasMembers) and targets.ndim == 2
    if limit is not None:
        inputs, targets = (inputs[:, :limit], targets[:, :limit]) if lead else (inputs[:limit], targets[:limit])
    if targets.ndim == 2 and targets.shape[1] == 1 and not isinstance(pl_module, HasMembers):
        targets = targets.squeeze(1)  # as binary losses want them
    # In the precision that the loops hand batches over in.
    inputs = trainer.precision_plugin.convert_input(inputs)
    return inputs.to(pl_module.device), targets.to(pl_module.device)


@runtime_checkable
class _Indexed(Protocol):
    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def _import(path: str) -> Callable[[Trainer, LightningModule, Split], tuple[Tensor, Tensor]]:
    module, _, name = path.rpartition(".")
    try:
        function: Callable[[Trainer, LightningModule, Split], tuple[Tensor, Tensor]] = getattr(
            importlib.import_module(module), name
        )
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"rows: cannot import '{path}': {error}") from error
    return function


def _dataset(trainer: Trainer, split: Split) -> object:
    loader = trainer.train_dataloader if split == "train" else trainer.val_dataloaders
    if isinstance(loader, list | tuple) and loader:
        loader = loader[0]
    if not isinstance(loader, DataLoader):
        raise ValueError(
            f"rows: no DataLoader to take {split} rows from, got {type(loader).__name__}; "
            "name a function (trainer, pl_module, split) -> (inputs, targets) by its import path"
        )
    return loader.dataset


def _index(dataset: object, limit: int | None) -> tuple[Tensor, Tensor]:
    if not isinstance(dataset, _Indexed) or isinstance(dataset, IterableDataset):
        raise ValueError(
            f"rows: {type(dataset).__name__} cannot be indexed; name a function (trainer, pl_module, split) -> "
            "(inputs, targets) by its import path"
        )
    count = len(dataset) if limit is None else min(limit, len(dataset))
    pairs = [dataset[i] for i in range(count)]
    if not pairs or not isinstance(pairs[0], tuple | list) or len(pairs[0]) != 2:
        raise ValueError(f"rows: expected a dataset of (input, target) pairs, got {type(dataset).__name__}")
    inputs, targets = zip(*pairs, strict=True)
    return torch.stack([torch.as_tensor(x) for x in inputs]), torch.stack([torch.as_tensor(y) for y in targets])
