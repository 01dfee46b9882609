"""Finite training sets: rows drawn once, trained on many times."""

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, final

import torch
from torch import Tensor
from typing_extensions import override

from grok_callbacks.dataset_shrink import SHRINK_COORDINATES
from grok_lightning.batch import Batch, take
from grok_lightning.data.data import GrokData, SplitName
from grok_lightning.data.loader import EpochLoader, RowLoader
from grok_lightning.population import Coordinate, column, n_members, seeds
from grok_lightning.tasks import Split, Task, split_rows
from grok_lightning.tasks.split import SplitRule, row_keys

__all__ = ["TableData"]

TRAIN_SIZE = 1000
"""Number of training rows where neither a number nor a share is given."""


@final
class TableData(GrokData):
    """Training and held-out rows of a task, one set for every member.

    Validation has two loaders: the rows that are trained on and the held-out rows (the first alone where there are no
    held-out rows); ``test`` and ``predict`` look at the held-out rows. Of tasks whose rows have two operands to swap,
    the held-out rows ``unpaired``, whose swap is not trained on, have metrics of their own: to know that a ∘ b = b ∘ a
    does not help there.

    Members may go on with some of their training rows from some step on (:meth:`keep_rows`, which ``DatasetShrink``
    calls). What is measured at a step are then the rows of the training step before it: at the step at which a member
    shrinks itself, they are still all of them. Removed rows are held-out rows from then on.

    Coordinates: ``seed``; ``data_seed`` (rows, held-out rows, batch order, noise; ``seed`` where not given);
    ``train_size`` or ``train_fraction``; ``label_noise``; those of the task.

    Args:
        task: What to learn; by class path, ``SparseParity``, ``ModularArithmetic`` or one's own; ``null`` is (40, 3)
            parity.
        train_size: Number of training rows of a member; 1,000 where ``train_fraction`` is not given either.
        n_held_out: Number of held-out rows of a member; fewer where the task has no more. ``null`` takes all rows of
            its table that are not trained on.
        batch_size: Rows of a batch; ``null`` takes the whole training set, one step an epoch.
        label_noise: Share of wrong training labels, in [0, 1].
        nested: Whether the rows of a smaller ``train_size`` are a prefix of those of a larger one.
        train_fraction: In place of ``train_size``, share of the task's rows, in (0, 1]; rounded down, at least one row.
        split: ``random``, or ``symmetric``: rows (a, b) and (b, a) are both trained on or both not; there may then be
            one training row fewer.
        random_labels: Whether training labels are drawn at random, whatever the rows, so that nothing but these can be
            learnt (Zhang et al. 2017, arXiv 1611.03530). Held-out labels are the task's: accuracy there is that of
            chance.
        members: Table of coordinates; set from ``population`` by the command line.

    Attributes:
        sizes: Number of training rows of each member at the start.

    Raises:
        ValueError: If a number is out of range, options exclude one another, or the task has not what one needs.

    """

    own_coordinates: ClassVar[frozenset[str]] = frozenset(
        {"seed", "data_seed", "train_size", "train_fraction", "label_noise"}
    )

    def __init__(
        self,
        task: Task | None = None,
        train_size: int | None = None,
        n_held_out: int | None = 2000,
        batch_size: int | None = 32,
        label_noise: float = 0.0,
        nested: bool = True,
        train_fraction: float | None = None,
        split: SplitRule = "random",
        random_labels: bool = False,
        members: Mapping[str, Sequence[Coordinate]] | None = None,
    ) -> None:
        super().__init__(task, members)
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1 (null takes all rows), got {batch_size}")
        both = {"train_size": train_size, "train_fraction": train_fraction}
        given = {name: self.members.get(name, value) for name, value in both.items()}
        if None not in given.values():
            raise ValueError(
                "train_size and train_fraction: expected one of them, got "
                f"{' and '.join(f'{name} = {value}' for name, value in given.items())}"
            )
        self.train_size = train_size
        self.train_fraction = train_fraction
        self.n_held_out = n_held_out
        self.batch_size = batch_size
        self.label_noise = label_noise
        self.nested = nested
        self.split: SplitRule = split
        self.random_labels = random_labels
        # Split here, not in setup: rows are small and a number out of range is to be known before anything is written.
        self._splits = [self._split(e) for e in range(n_members(self.members))]
        self.sizes = [len(split.targets) for split in self._splits]
        self._noisy = any(not torch.equal(split.targets, split.true_targets) for split in self._splits)
        self._prepared = False
        self._kept: list[Tensor | None] = [None] * len(self.sizes)
        self._since = [-1] * len(self.sizes)
        self._after: list[Split | None] = [None] * len(self.sizes)
        self._loader: EpochLoader | None = None

    def _split(self, e: int) -> Split:
        return split_rows(
            self.task_of(e),
            seed=seeds(self.members, "data_seed")[e],
            train_size=self._train_size(e),
            n_held_out=self.n_held_out,
            label_noise=float(column(self.members, "label_noise", self.label_noise)[e]),
            nested=self.nested,
            split=self.split,
            random_labels=self.random_labels,
        )

    def _train_size(self, e: int) -> int:
        share = self.members["train_fraction"][e] if "train_fraction" in self.members else self.train_fraction
        if share is not None:
            return _as_share(self.task_of(e), share)
        default = TRAIN_SIZE if self.train_size is None else self.train_size
        return _as_count(column(self.members, "train_size", default)[e])

    @property
    @override
    def coordinates(self) -> frozenset[str]:
        # Whoever looks back at a training has no DatasetShrink, which consumed them.
        return super().coordinates | (SHRINK_COORDINATES if self._prepared else frozenset())

    @property
    @override
    def splits(self) -> tuple[SplitName, ...]:
        held_out = self._prepared or any(len(split.held_out_targets) for split in self._splits)
        return ("train", "held_out") if held_out else ("train",)

    @property
    @override
    def steps_per_epoch(self) -> int:
        return 1 if self.batch_size is None else -(-max(self.sizes) // self.batch_size)

    @property
    @override
    def rows_per_step(self) -> int:
        return max(self.sizes) if self.batch_size is None else min(self.batch_size, max(self.sizes))

    @override
    def train_dataloader(self) -> EpochLoader:
        trainer = self.trainer_to_follow()
        own = self.own_members
        if self.rows_version:
            train = _stack_train([self._splits[e] for e in own], self._noisy, trainer.strategy.root_device)
        else:
            train = self._table("train")
        self._loader = EpochLoader(
            train.inputs,
            train.targets,
            sizes=[self.sizes[e] for e in own],
            seeds=[seeds(self.members, "data_seed")[e] for e in own],
            batch_size=self.batch_size,
            step=lambda: trainer.global_step,
            shard=self.shard,
            length=self.steps_per_epoch,
        )
        self._keep_rows_in_loader()
        return self._loader

    # ---- fewer rows ----------------------------------------------------------------------------------------------

    def prepare_to_shrink(self) -> None:
        """Have held-out rows, if only later, and tell apart those ``removed`` and ``never_seen``, from now on."""
        self.forget_shrink()
        self._prepared = True

    def keep_rows(self, kept: Sequence[Tensor | None], since: Sequence[int]) -> None:
        """Let members go on with some of their training rows.

        Args:
            kept: Of each member which of its training rows it goes on with, ``(n,)``, int64, distinct, at least one;
                all of them if ``None``.
            since: Of each member the number of optimizer steps after which it does, -1 if it is measured so at step 0
                too; not looked at where it keeps all.

        Raises:
            ValueError: If the numbers of members differ, or rows are not there.

        """
        if len(kept) != len(self.sizes) or len(since) != len(self.sizes):
            raise ValueError(f"keep_rows: expected one entry for each of {len(self.sizes)} members, got {len(kept)}")
        for rows, size in zip(kept, self.sizes, strict=True):
            if rows is not None and (not len(rows) or int(rows.min()) < 0 or int(rows.max()) >= size):
                raise ValueError(f"keep_rows: expected rows from 0 to {size - 1}, at least one, got {rows.tolist()}")
        known = zip(kept, self._kept, self._after, strict=True)
        self._after = [
            after if rows is before else None if rows is None else _shrink(self.task_of(e), self._splits[e], rows)
            for e, (rows, before, after) in enumerate(known)
        ]
        self._kept, self._since = list(kept), list(since)
        self._tables = {}
        self._keep_rows_in_loader()

    def _keep_rows_in_loader(self) -> None:
        if self._loader is not None:
            own = self.own_members
            self._loader.keep_rows([self._kept[e] for e in own], [self._since[e] for e in own])

    def forget_shrink(self) -> None:
        """Be as before :meth:`prepare_to_shrink`."""
        self._prepared = False
        self._loader = None  # of a training that is over
        self.keep_rows([None] * len(self.sizes), self._since)

    def parts(self, split: SplitName) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return the rows of a split as they are now, and which of them are of which part.

        Returns:
            Inputs ``(E, N, ...)``, labels without noise ``(E, N)``, and masks ``(E, N)``, bool, by name: of ``train``
            the rows ``kept``, of ``held_out`` those ``removed`` and ``never_seen``. A row without a part is padding.

        """
        table = self._table(split)
        targets = table.targets if table.true_targets is None else table.true_targets
        real = torch.ones_like(targets, dtype=torch.bool) if table.weights is None else table.weights > 0
        if split == "train":
            return table.inputs, targets, {"kept": real}
        masks = table.subsets or {}
        removed = masks.get("removed", torch.zeros_like(real))
        return table.inputs, targets, {"removed": removed, "never_seen": real & ~removed}

    @property
    @override
    def rows_version(self) -> int:
        """Number of members that measurements find shrunk now."""
        return sum(self._shrunk(e) for e in range(len(self.sizes)))

    def _shrunk(self, e: int) -> bool:
        step = 0 if self.trainer is None else self.trainer.global_step
        return self._kept[e] is not None and self._since[e] < step

    def _split_now(self, e: int) -> Split:
        after = self._after[e]
        if after is not None and self._shrunk(e):
            return after
        split = self._splits[e]
        if not self._prepared:
            return split
        never_seen = torch.ones(len(split.held_out_targets), dtype=torch.bool)
        return split._replace(
            held_out_subsets={**split.held_out_subsets, "removed": ~never_seen, "never_seen": never_seen}
        )

    @override
    def most_rows(self, split: SplitName) -> int:
        splits = [self._split_now(e) for e in range(len(self.sizes))]
        return max(len(s.targets if split == "train" else s.held_out_targets) for s in splits)

    @override
    def make_tables(self, device: torch.device) -> dict[SplitName, Batch]:
        splits = [self._split_now(e) for e in self.own_members]
        held_out = [(s.held_out_inputs, s.held_out_targets, s.held_out_targets) for s in splits]
        subsets = _stack_masks([split.held_out_subsets for split in splits], device)
        return {
            "train": _stack_train(splits, self._noisy, device),
            "held_out": _stack(held_out, device)._replace(true_targets=None, subsets=subsets),
        }

    @override
    def _row_loader(self, split: SplitName) -> RowLoader:
        if not self._prepared:
            return super()._row_loader(split)
        rank, world = self.shard
        mine = slice(rank, None, world)
        held_out = [0 if split == "train" else len(self._splits[e].held_out_targets) for e in self.own_members]
        most = max(self.sizes[e] + n for e, n in zip(self.own_members, held_out, strict=True))
        return RowLoader(lambda: take(self._table(split), mine), most=len(range(most)[mine]))


def _shrink(task: Task, split: Split, kept: Tensor) -> Split:
    """Return the split with some of its training rows; the others are held out, after the rows that were before.

    Their labels there are those without noise. ``held_out_subsets`` go by the rows that are left to train on, and have
    ``removed`` and ``never_seen`` besides.
    """
    stays = torch.zeros(len(split.targets), dtype=torch.bool)
    stays[kept] = True
    n_before, n_removed = len(split.held_out_targets), int((~stays).sum())
    inputs = torch.cat([split.held_out_inputs, split.inputs[~stays]])
    removed = torch.cat([torch.zeros(n_before, dtype=torch.bool), torch.ones(n_removed, dtype=torch.bool)])
    subsets = {"removed": removed, "never_seen": ~removed}
    if "unpaired" in split.held_out_subsets:
        subsets = {"unpaired": _unpaired(task, split.inputs[kept], inputs), **subsets}
    return Split(
        split.inputs[kept],
        split.targets[kept],
        split.true_targets[kept],
        inputs,
        torch.cat([split.held_out_targets, split.true_targets[~stays]]),
        subsets,
    )


def _unpaired(task: Task, trained: Tensor, inputs: Tensor) -> Tensor:
    """Return, for rows of a table ``(M, n_inputs)``, whether their swap is not trained on, ``(M,)``, bool."""
    table, mirror = task.table(), task.mirror()
    assert table is not None
    assert mirror is not None
    numbers = {key: i for i, key in enumerate(row_keys(table))}
    swaps = mirror[[numbers[key] for key in row_keys(inputs)]]
    return ~torch.isin(swaps, torch.tensor([numbers[key] for key in row_keys(trained)]))


def _as_count(value: Coordinate) -> int:
    if value != int(value):
        raise ValueError(f"train_size: expected a whole number of rows, got {value}")
    return int(value)


def _as_share(task: Task, share: Coordinate) -> int:
    """Return how many of a task's rows are this share of them."""
    if not 0 < share <= 1:
        raise ValueError(f"train_fraction: expected a share in (0, 1], got {share}")
    table = task.table()
    size = task.size if table is None else len(table)
    if size is None:
        raise ValueError(f"train_fraction: {type(task).__name__} does not say how many rows it has; give train_size")
    # What is a whole number but for rounding is that number: 0.29 * 100 is 28.999999999999996.
    return max(1, math.floor(share * size + 1e-9))


def _stack_masks(masks: Sequence[Mapping[str, Tensor]], device: torch.device) -> dict[str, Tensor] | None:
    """Stack the members' masks of the same name ``(N,)``, padding the shorter ones with False."""
    longest = max((len(mask) for own in masks for mask in own.values()), default=0)
    stacked = {
        name: torch.stack([torch.cat([own[name], own[name].new_zeros(longest - len(own[name]))]) for own in masks])
        for name in masks[0]
    }
    return {name: mask.to(device) for name, mask in stacked.items()} or None


def _stack_train(splits: Sequence[Split], noisy: bool, device: torch.device) -> Batch:
    """Stack the members' training rows; labels without noise are told where any of them was ever noisy."""
    train = _stack([(split.inputs, split.targets, split.true_targets) for split in splits], device)
    return train if noisy else train._replace(true_targets=None)


def _stack(rows: Sequence[tuple[Tensor, Tensor, Tensor]], device: torch.device) -> Batch:
    """Stack the members' ``(inputs, targets, true_targets)``, padding the shorter ones with rows of weight 0."""
    sizes = [len(targets) for _, targets, _ in rows]
    longest = max(sizes)
    inputs, targets, true_targets = (
        torch.stack([_pad(member[i], longest) for member in rows]).to(device) for i in range(3)
    )
    weights = None
    if len(set(sizes)) > 1:
        count = torch.tensor(sizes).unsqueeze(1)
        weights = ((torch.arange(longest) < count).to(torch.get_default_dtype()) / count.clamp(min=1)).to(device)
    return Batch(inputs, targets, weights, true_targets)


def _pad(tensor: Tensor, length: int) -> Tensor:
    """Lengthen the first axis with zeros, labels with ones: a padded label must still be a label."""
    fill = tensor.new_ones if tensor.ndim == 1 else tensor.new_zeros
    return torch.cat([tensor, fill((length - len(tensor), *tensor.shape[1:]))])
