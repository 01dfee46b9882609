"""Members of a population: what tells them apart, and the random streams that each of them owns.

A *member* is one training run. A *population* is E members trained in lockstep by one program. *Coordinates* are named
vectors over members (``seed``, ``weight_decay``, ``train_size``, ...); a table of coordinates is a dict of lists of one
length, which is what YAML, hyper-parameters and checkpoints can hold.
"""

import hashlib
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import torch

__all__ = [
    "Coordinate",
    "Members",
    "Populated",
    "SpreadsMembers",
    "as_members",
    "check_consumed",
    "column",
    "match_members",
    "members_table",
    "n_members",
    "own_members",
    "seeds",
    "stream",
]

Coordinate: TypeAlias = int | float
Members: TypeAlias = dict[str, list[Coordinate]]
"""A table of coordinates: equal-length lists, one entry a member. Contains ``seed``."""


@runtime_checkable
class Populated(Protocol):
    """A data module that holds rows for every member: all that a module needs to know of it.

    Attributes:
        members: Table of coordinates.

    """

    members: Members

    @property
    def coordinates(self) -> frozenset[str]:
        """Names of the coordinates that it consumes."""

    @property
    def splits(self) -> Sequence[Literal["train", "held_out"]]:
        """Which rows its validation loaders have, in their order: those trained on, or held-out ones."""

    def val_dataloader(self) -> Sequence[Any]:
        """Return one loader for each of ``splits``."""


@runtime_checkable
class SpreadsMembers(Protocol):
    """A Lightning strategy under which every process has some of the members, and all of their rows."""

    def own_members(self, n_members: int) -> range:
        """Return which of so many members this process has."""

    def gather_members(self, values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return values ``(e, ...)`` of this process's members as those ``(E, ...)`` of all; in every process."""


def members_table(
    population: Mapping[str, Coordinate | Sequence[Coordinate]] | Sequence[Mapping[str, Coordinate]] | None,
) -> Members:
    """Write a population out as a table of its members.

    Args:
        population: A dict of axes, whose product is taken (the last axis runs fastest; a bare number is an axis of one
            value), or an explicit list with one dict of coordinates a member, or ``None`` for one member with seed 0.
            Where ``seed`` is not given, it is 0 for every member.

    Returns:
        Dict of lists of length E; ``seed`` always among them.

    Raises:
        ValueError: If there is no member, an axis is empty, two members have different coordinates or are equal, or a
            value is not a finite number (seeds: not a non-negative integer).

    Example:
        >>> members_table({"seed": [0, 1], "weight_decay": [0.1, 1.0]})
        {'seed': [0, 0, 1, 1], 'weight_decay': [0.1, 1.0, 0.1, 1.0]}

    """
    rows: list[dict[str, Coordinate]]
    if population is None:
        rows = [{"seed": 0}]
    elif isinstance(population, Mapping):
        axes = {name: list(values) if isinstance(values, Sequence) else [values] for name, values in population.items()}
        for name, values in axes.items():
            if not values:
                raise ValueError(f"population: axis '{name}' has no values")
        rows = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    else:
        rows = [dict(member) for member in population]
    if not rows:
        raise ValueError("population: expected at least one member, got none")
    for row in rows:
        if set(row) != set(rows[0]):
            raise ValueError(
                f"population: members must name the same coordinates, got {sorted(rows[0])}, {sorted(row)}"
            )
    table: Members = {name: [row[name] for row in rows] for name in rows[0]}
    if "seed" not in table:
        table = {"seed": [0] * len(rows), **table}
    return as_members(table)


def as_members(table: Mapping[str, Sequence[Coordinate]] | None) -> Members:
    """Check a table of coordinates; ``None`` is one member with seed 0.

    Raises:
        ValueError: If the columns differ in length, are empty, hold something that is not a finite number (or, for
            names that end in ``seed``, not a non-negative integer), or list one member twice.

    """
    members: Members = {"seed": [0]} if table is None else {name: list(values) for name, values in table.items()}
    lengths = {name: len(values) for name, values in members.items()}
    if "seed" not in members:
        raise ValueError(f"members: expected a column 'seed', got {sorted(members)}")
    if len(set(lengths.values())) != 1:
        raise ValueError(f"members: expected columns of one length, got {lengths}")
    if lengths["seed"] == 0:
        raise ValueError("members: expected at least one member, got none")
    for name, values in members.items():
        for value in values:
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"members: '{name}' must be finite numbers, got {value!r}")
            if name.endswith("seed") and (not isinstance(value, int) or value < 0):
                raise ValueError(f"members: '{name}' must be integers of at least 0, got {value!r}")
    rows = list(zip(*members.values(), strict=True))
    if len(set(rows)) != len(rows):
        twice = next(row for row in rows if rows.count(row) > 1)
        raise ValueError(f"members: {dict(zip(members, twice, strict=True))} is listed more than once")
    return members


def n_members(members: Members) -> int:
    """Return E, the number of members."""
    return len(members["seed"])


def own_members(strategy: object, n_members: int) -> range:
    """Return which members a process has: some under a strategy that :class:`SpreadsMembers`, all under any other.

    Args:
        strategy: The Trainer's; ``None`` where there is no Trainer.
        n_members: E.

    """
    return strategy.own_members(n_members) if isinstance(strategy, SpreadsMembers) else range(n_members)


def column(members: Members, name: str, default: Coordinate) -> list[Coordinate]:
    """Return the coordinate ``name`` of every member, ``default`` where the population does not have it."""
    return members.get(name, [default] * n_members(members))


def seeds(members: Members, name: str) -> list[int]:
    """Return the seed called ``name`` of every member, which is ``seed`` where it is not given apart."""
    return [int(value) for value in members.get(name, members["seed"])]


def match_members(members: Members, others: Members, alike: bool = False) -> list[int]:
    """Return for each member which of the others has its initial weights: the one with the same seed.

    Seeds are those of the initial weights, ``init_seed`` where it is given apart. Where several of the others have the
    seed, it is the one whose other coordinates, as far as both tables have them, are the member's too.

    Args:
        members: Table of coordinates.
        others: Table of coordinates of another population.
        alike: Whether these other coordinates have to be the member's in any case.

    Returns:
        An index into ``others`` for every member.

    Raises:
        ValueError: If others are missing or several would do; the message begins with "has" and says which.

    """
    own_seed, their_seed = ("init_seed" if "init_seed" in table else "seed" for table in (members, others))
    shared = [name for name in members if name in others and not name.endswith("seed")]
    if missing := sorted(set(members[own_seed]) - set(others[their_seed])):
        raise ValueError(f"has no members with {their_seed} {missing}; it has {sorted(set(others[their_seed]))}")
    partners = []
    for e, seed in enumerate(members[own_seed]):
        wanted = {their_seed: seed}
        fitting = [i for i, theirs in enumerate(others[their_seed]) if theirs == seed]
        if alike or len(fitting) > 1:
            wanted |= {name: members[name][e] for name in shared}
            fitting = [i for i in fitting if all(others[name][i] == value for name, value in wanted.items())]
        if len(fitting) != 1:
            there = {name: others[name] for name in wanted}
            raise ValueError(f"has {len(fitting) or 'no'} members with {wanted}, not one; it has {there}")
        partners.append(fitting[0])
    return partners


def check_consumed(members: Members, consumed: Iterable[str]) -> None:
    """Refuse coordinates that nobody consumes: a sweep over them would be E copies of one run.

    Raises:
        ValueError: Naming the coordinate and those that are understood.

    """
    known = sorted({"seed", *consumed})
    for name in members:
        if name not in known:
            raise ValueError(
                f"population: nothing here uses the coordinate '{name}'; understood are {', '.join(known)}"
            )


def stream(seed: int, name: str) -> torch.Generator:
    """Return the random stream ``name`` of ``seed``: a CPU generator that shares no values with the other streams.

    Generators that are given one bare seed produce correlated values, however different their use; the seed handed to
    torch is therefore a hash of both. (torch's CPU generator keeps 32 bits of it: two given streams coincide with
    probability 2^-32.)
    """
    digest = hashlib.sha256(f"{name}\0{seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))
