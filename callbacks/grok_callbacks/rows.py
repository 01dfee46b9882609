"""The one place from which monitors take rows of data."""

import importlib
from collections.abc import Callable
from typing import Any, Literal, Protocol, final, runtime_checkable

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from .members import n_members_here
from .protocols import HasMembers, HasParts, HasRows, HasRowsVersion

__all__ = ["KeptRows", "Split", "TrainingRows", "members_with_rows", "parts_of", "rows_of", "rows_version"]

Split = Literal["train", "held_out"]


class KeptRows(Subset[Any]):
    """Rows of a dataset that training goes on with; the others were trained on before.

    Args:
        dataset: All rows.
        kept: Indices of those that stay, ``(n,)``.
        since: Number of optimizer steps after which they are alone.

    """

    def __init__(self, dataset: Dataset[Any], kept: Tensor, since: int) -> None:
        super().__init__(dataset, kept.tolist())
        self.since = since


@final
class TrainingRows:
    """The rows trained on, read once, and anew only when training goes on with others.

    A dataset may be slow, or give a row another look every time.

    Args:
        function: Import path of ``(trainer, pl_module, split) -> (inputs, targets)``; see :func:`rows_of`.
        limit: Largest number of rows of a member; all of them if ``None``.

    Raises:
        ValueError: If ``limit`` is below 1.

    """

    def __init__(self, function: str | None, limit: int | None) -> None:
        if limit is not None and limit < 1:
            raise ValueError(f"limit: expected at least 1 row, got {limit}")
        self._function = function
        self._limit = limit
        self._rows: tuple[Tensor, Tensor] | None = None
        self._version = 0

    def read(self, trainer: Trainer, pl_module: LightningModule) -> tuple[Tensor, Tensor, bool]:
        """Return inputs and labels as :func:`rows_of` does, and whether none had been read before."""
        version, first = rows_version(trainer), self._rows is None
        if self._rows is None or version != self._version:
            self._version = version
            self._rows = rows_of(trainer, pl_module, "train", self._function, self._limit)
        return *self._rows, first

    def forget(self) -> None:
        """Read them anew the next time."""
        self._rows = None


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
    return _ready(trainer, pl_module, inputs, targets, limit)


def members_with_rows(
    trainer: Trainer, pl_module: LightningModule, split: Split, function: str | None = None
) -> Tensor:
    """Return which members have rows of a split at all, ``(E,)``, bool; those of the others are mere padding.

    Only a data module that knows padding (:class:`HasParts`) has members without rows; elsewhere all have the same.

    Args:
        trainer: The Trainer.
        pl_module: The module.
        split: ``train`` or ``held_out``.
        function: Import path of ``(trainer, pl_module, split) -> (inputs, targets)``.

    """
    datamodule = getattr(trainer, "datamodule", None)
    if function is not None or not isinstance(datamodule, HasParts):
        return torch.ones(n_members_here(pl_module), dtype=torch.bool, device=pl_module.device)
    masks = datamodule.parts(split)[2].values()
    return torch.stack([mask.any(dim=-1) for mask in masks]).any(dim=0).to(pl_module.device)


def rows_version(trainer: Trainer) -> int:
    """Return a number that is another when :func:`rows_of` gives other rows of ``train`` or ``held_out`` than before.

    Rows become others when training goes on with fewer of them (``DatasetShrink``). What is measured at a step are the
    rows of the training step before it: at the step of the change itself they are still the old ones.
    """
    datamodule = getattr(trainer, "datamodule", None)
    if isinstance(datamodule, HasRowsVersion):
        return datamodule.rows_version
    return int(_kept_rows(trainer) is not None)


def parts_of(
    trainer: Trainer, pl_module: LightningModule, split: Split, function: str | None = None
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return the rows of :func:`rows_of`, and beside those ``kept`` those that were ``removed`` from training.

    Args:
        trainer: The Trainer.
        pl_module: The module.
        split: ``train`` or ``held_out``.
        function: Import path of ``(trainer, pl_module, split) -> (inputs, targets)``; it knows of no removed rows.

    Returns:
        Inputs and labels as :func:`rows_of` does, and masks by the name of the part, bool, of the shape of the labels.
        ``held_out`` always has ``never_seen``, ``train`` has ``kept``; ``removed`` is with whichever split has them. A
        row of no part is padding.

    Raises:
        ValueError: If the rows cannot be had.

    """
    datamodule = getattr(trainer, "datamodule", None)
    if function is None and isinstance(datamodule, HasParts):
        inputs, targets, masks = datamodule.parts(split)
        inputs, targets = _ready(trainer, pl_module, inputs, targets, None)
        return inputs, targets, {name: mask.reshape(targets.shape).to(targets.device) for name, mask in masks.items()}
    kept = _kept_rows(trainer) if function is None and split == "train" else None
    if kept is None:
        inputs, targets = rows_of(trainer, pl_module, split, function)
        return inputs, targets, {PART_OF[split]: torch.ones_like(targets, dtype=torch.bool)}
    inputs, targets = _ready(trainer, pl_module, *_index(kept.dataset, None), None)
    stays = torch.zeros(len(targets), dtype=torch.bool, device=targets.device)
    stays[list(kept.indices)] = True
    return inputs, targets, {"kept": stays, "removed": ~stays}


PART_OF = {"train": "kept", "held_out": "never_seen"}


def _ready(
    trainer: Trainer, pl_module: LightningModule, inputs: Tensor, targets: Tensor, limit: int | None
) -> tuple[Tensor, Tensor]:
    """Return rows as the model takes them, at most ``limit`` of a member."""
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
    if isinstance(loader.dataset, KeptRows) and _kept_rows(trainer) is None:
        return loader.dataset.dataset
    return loader.dataset


def _kept_rows(trainer: Trainer) -> KeptRows | None:
    """Return the rows that were trained on in the last step, where these are only some of those before."""
    dataset = getattr(trainer.train_dataloader, "dataset", None)
    return dataset if isinstance(dataset, KeptRows) and dataset.since < trainer.global_step else None


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
