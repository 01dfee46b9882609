"""Steps of a population whose members have different numbers of rows, without computing the padding."""

from collections.abc import Sequence
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

    Every group runs through a network of as many members, with their parameters in the place of its own: gradients
    reach the parameters of ``network``, in whose own modules no forward hook is called.

    Args:
        network: The network of all members. It has no buffers.

    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self._parameters = dict(network.named_parameters())
        self._weights = sum(value[0].numel() for value in self._parameters.values())
        self._networks: dict[int, Network] = {}
        self._plans: dict[tuple[int, ...], _Plan] = {}

    def serves(self, network: object, counts: Sequence[int]) -> bool:
        """Return whether this is for that network, and members of these sizes are worth more than one group."""
        return network is self._network and len(self._plan(tuple(counts)).groups) > 1

    def loss(self, loss: Loss, rows: Batch) -> Tensor:
        """Return the sum over members of each member's weighted mean.

        Args:
            loss: ``(logits (E, B, C), targets (E, B)) -> (E, B)``.
            rows: With ``weights``, and ``counts``; every member's rows come before its padding.

        """
        assert rows.counts is not None
        assert rows.weights is not None
        plan = self._plan(rows.counts)
        lengths = [len(group) for group in plan.groups]
        # Divided at once: the gradient is put together once, not padded with zeros for every group.
        pieces = {
            name: torch.split(value if plan.order is None else value.index_select(0, plan.order), lengths)
            for name, value in self._parameters.items()
        }
        total: Tensor | None = None
        for g, (group, index) in enumerate(zip(plan.groups, plan.indices, strict=True)):
            longest = max(rows.counts[e] for e in group)
            inputs, targets, weights = (value[index, :longest] for value in (rows.inputs, rows.targets, rows.weights))
            own = {name: piece[g] for name, piece in pieces.items()}
            logits = functional_call(self._of(len(group)), own, (inputs,))
            value = (loss(logits, targets) * weights).sum()
            total = value if total is None else total + value
        assert total is not None
        return total

    def _plan(self, counts: tuple[int, ...]) -> _Plan:
        if counts not in self._plans:
            groups = group_by_size(counts, OVERHEAD / self._weights)
            device = next(iter(self._parameters.values())).device
            order = [e for group in groups for e in group]
            in_order = order == list(range(len(order)))
            self._plans[counts] = _Plan(
                groups,
                None if in_order else torch.tensor(order, device=device),
                [torch.tensor(group, device=device) for group in groups],
            )
        return self._plans[counts]

    def _of(self, n_members: int) -> Network:
        """Return a network of that many members, in the mode of the whole one."""
        if n_members not in self._networks:
            self._networks[n_members] = self._network.like(n_members).to(next(iter(self._parameters.values())))
        return self._networks[n_members].train(self._network.training)
