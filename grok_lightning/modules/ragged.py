"""Steps of a population whose members have different numbers of rows, without computing the padding."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call

from grok_lightning.batch import Batch
from grok_lightning.losses import Loss
from grok_lightning.networks import Network

__all__ = ["Ragged", "group_by_size"]

OVERHEAD = 2**23
"""What a group costs beside its rows, in rows times weights of a member: measured on a CPU."""

PLANS = 256
"""Divisions into groups that are kept at the most."""


def group_by_size(counts: Sequence[int], overhead: float) -> list[list[int]]:
    """Divide members into groups that are computed together, so that little is padded and groups are few.

    A group of n members whose longest has N rows costs ``overhead + n N``; the division with the smallest sum is found.

    Args:
        counts: Number of rows of each member.
        overhead: Cost of a group, in rows, at least 0.

    Returns:
        Indices of the members of each group: groups by rising size, members in their order within a group.

    """
    members = sorted(range(len(counts)), key=lambda e: counts[e])
    # best[i]: smallest cost of the i members with fewest rows, and where its last group begins.
    best: list[tuple[float, int]] = [(0.0, 0)]
    for stop in range(1, len(members) + 1):
        longest = counts[members[stop - 1]]
        best.append(min((best[start][0] + overhead + (stop - start) * longest, start) for start in range(stop)))
    groups: list[list[int]] = []
    stop = len(members)
    while stop:
        start = best[stop][1]
        groups.append(sorted(members[start:stop]))
        stop = start
    return groups[::-1]


class _Plan(NamedTuple):
    groups: list[list[int]]
    order: Tensor | None
    indices: list[Tensor]


class Ragged:
    """Computes the loss of members with different numbers of rows group by group.

    Every group runs through the network as if it were all there is: with its own members' parameters in the place of
    all, and their number as ``n_members``. Forward hooks see one group after another.

    Args:
        network: The network of all members. It has no buffers, and its ``forward`` goes by ``n_members`` and its
            parameters.

    Attributes:
        network: The same.

    """

    def __init__(self, network: Network) -> None:
        self.network = network
        self._weights = sum(value[0].numel() for value in network.parameters())
        self._has_buffers = any(True for _ in network.buffers())
        self._plans: dict[tuple[tuple[int, ...], torch.device], _Plan] = {}

    def serves(self, rows: Batch) -> bool:
        """Return whether members differ so much in their numbers of rows that they are worth more than one group."""
        # What a group costs is known of CPUs alone; others are served with one.
        if rows.counts is None or self._has_buffers or rows.targets.device.type != "cpu":
            return False
        return len(self._plan(rows).groups) > 1

    def loss(self, loss: Loss, rows: Batch) -> Tensor:
        """Return the sum over members of each member's weighted mean.

        Args:
            loss: ``(logits (E, B, C), targets (E, B)) -> (E, B)``.
            rows: With ``weights``, and ``counts``; every member's rows come before its padding.

        """
        assert rows.counts is not None
        assert rows.weights is not None
        plan = self._plan(rows)
        lengths = [len(group) for group in plan.groups]
        # Divided at once: the gradient is put together once, not padded with zeros for every group.
        pieces = {
            name: torch.split(value if plan.order is None else value.index_select(0, plan.order), lengths)
            for name, value in self.network.named_parameters()
        }
        total: Tensor | None = None
        for g, (group, index) in enumerate(zip(plan.groups, plan.indices, strict=True)):
            longest = max(rows.counts[e] for e in group)
            inputs, targets, weights = (value[index, :longest] for value in (rows.inputs, rows.targets, rows.weights))
            with _standing_for(self.network, len(group)):
                logits = functional_call(self.network, {name: piece[g] for name, piece in pieces.items()}, (inputs,))
            value = (loss(logits, targets) * weights).sum()
            total = value if total is None else total + value
        assert total is not None
        return total

    def _plan(self, rows: Batch) -> _Plan:
        assert rows.counts is not None
        device = rows.targets.device
        key = (rows.counts, device)
        if key not in self._plans:
            if len(self._plans) >= PLANS:  # members whose epochs end at steps of their own have many
                self._plans.clear()
            groups = group_by_size(rows.counts, OVERHEAD / self._weights)
            order = [e for group in groups for e in group]
            in_order = order == list(range(len(order)))
            self._plans[key] = _Plan(
                groups,
                None if in_order else torch.tensor(order, device=device),
                [torch.tensor(group, device=device) for group in groups],
            )
        return self._plans[key]


@contextmanager
def _standing_for(network: Network, n_members: int) -> Iterator[None]:
    """Within, the network has that many members."""
    whole = network.n_members
    network.n_members = n_members
    try:
        yield
    finally:
        network.n_members = whole
