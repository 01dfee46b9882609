"""How figures read a record.

Groups are found by the kind of monitor that wrote them, never by name. Members that differ in nothing but their seeds
share a `Setting`; averages are taken within a setting only.
"""

import contextlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from grok_lightning.figures.words import number, spread

__all__ = [
    "EVENTS",
    "SEED_COORDINATES",
    "Clock",
    "Onsets",
    "Setting",
    "average",
    "groups_of_kind",
    "member_coordinates",
    "member_labels",
    "read_onsets",
    "settings",
]

SEED_COORDINATES = ("seed", "init_seed", "data_seed")
"""Member coordinates that make repetitions of one setting, not another setting."""

EVENTS = ("memorised", "generalised", "forgotten")


def groups_of_kind(record: xr.DataTree, kind: str) -> dict[str, xr.Dataset]:
    """Groups of a record that a monitor of this kind wrote.

    Args:
        record: The record of a run.
        kind: Class name of the monitor, the attribute `kind` of its group.

    Returns:
        The groups by name, in the order of the record; empty when there are none. A group without a `member`
        coordinate gets the members' positions.
    """
    groups = {}
    for node in record.subtree:
        if node.attrs.get("kind") == kind:
            group = node.to_dataset()
            if "member" in group.dims and "member" not in group.coords:
                group = group.assign_coords(member=np.arange(group.sizes["member"]))
            groups[node.path.strip("/")] = group
    return groups


def member_labels(group: xr.Dataset) -> NDArray[Any]:
    """Labels of the members of a group: `(E,)`."""
    return np.asarray(group["member"].values)


def member_coordinates(group: xr.Dataset) -> dict[str, list[Any]]:
    """What tells the members of a group apart: each coordinate over `member` as a list of E plain values."""
    names = [str(name) for name, value in group.coords.items() if value.dims == ("member",) and name != "member"]
    return {name: group[name].values.tolist() for name in names}


@dataclass(frozen=True)
class Clock:
    """Steps, and their translation into the papers' epochs.

    Attributes:
        steps_per_epoch: Optimizer steps in one epoch; 0 when unknown, and then everything is told in steps.
    """

    steps_per_epoch: int

    @classmethod
    def of(cls, record: xr.DataTree) -> "Clock":
        """The clock of a record, from its attribute `steps_per_epoch`."""
        return cls(int(record.attrs.get("steps_per_epoch", 0)))

    @property
    def unit(self) -> str:
        """The unit of the time axes: `epoch` or `step`."""
        return "epoch" if self.steps_per_epoch > 0 else "step"

    def time(self, steps: Any) -> NDArray[np.float64]:
        """Steps in the unit of the time axes; NaN stays NaN."""
        return np.asarray(steps, dtype=np.float64) / max(self.steps_per_epoch, 1)

    def at(self, step: float) -> str:
        """A moment in words: `epoch 27 (step 864)`, or `step 864` when epochs are unknown."""
        if self.steps_per_epoch > 0:
            return f"epoch {number(float(self.time(step)))} (step {number(step)})"
        return f"step {number(step)}"

    def spread(self, steps: Iterable[float]) -> str:
        """Several moments in words: `epoch 27 (median; range 20 to 38)`."""
        values = [float(step) for step in steps]
        if len(values) == 1:
            return self.at(values[0])
        return f"{self.unit} {spread(self.time(values))}"


@dataclass(frozen=True)
class Setting:
    """Members that differ in nothing but their seeds.

    Attributes:
        label: What sets them apart, such as `weight_decay = 0.01`; empty when the group has one setting.
        members: Their positions along `member`.
        values: Their values of the coordinates that differ between settings.
        names: The names of those coordinates.
    """

    label: str
    members: NDArray[np.intp]
    values: tuple[Any, ...]
    names: tuple[str, ...]


def settings(group: xr.Dataset) -> tuple[Setting, ...]:
    """Sorts the members of a group into settings.

    Args:
        group: A group with the dimension `member`.

    Returns:
        The settings, in rising order of their values where these can be ordered, else in order of appearance.
    """
    coordinates = {
        name: values
        for name, values in member_coordinates(group).items()
        if name not in SEED_COORDINATES and len({repr(value) for value in values}) > 1
    }
    names = tuple(coordinates)
    found: dict[str, tuple[tuple[Any, ...], list[int]]] = {}
    for position in range(group.sizes["member"]):
        values = tuple(column[position] for column in coordinates.values())
        # The text is the key, for NaN does not equal itself.
        found.setdefault(repr(values), (values, []))[1].append(position)
    cells = list(found.values())
    # Words beside numbers, or None, have no order: the order of appearance stays.
    with contextlib.suppress(TypeError):
        cells.sort(key=lambda cell: cell[0])
    return tuple(
        Setting(
            label=", ".join(f"{name} = {number(value)}" for name, value in zip(names, values, strict=True)),
            members=np.array(members, dtype=np.intp),
            values=values,
            names=names,
        )
        for values, members in cells
    )


@dataclass(frozen=True)
class Onsets:
    """Onsets of the members of another group, in that group's order.

    Attributes:
        step: For each event the steps `(E,)`; NaN where it had not happened by `last_step`.
        last_step: For each event the last step looked at, `(E,)`; NaN where unknown.
        resolution: For each event the steps between the onset and the measurement before it, `(E,)`.
    """

    step: dict[str, NDArray[np.float64]]
    last_step: dict[str, NDArray[np.float64]]
    resolution: dict[str, NDArray[np.float64]]

    def happened(self, event: str, members: NDArray[np.intp]) -> NDArray[np.float64]:
        """Steps of an event for those of the members to whom it happened."""
        steps = self.step[event][members]
        return steps[np.isfinite(steps)]


def read_onsets(record: xr.DataTree, members: NDArray[Any]) -> Onsets | None:
    """Reads the onsets of a record for given members.

    Args:
        record: The record of a run. Where several monitors looked for onsets, the first one counts.
        members: Labels of the members wanted, `(E,)`.

    Returns:
        The onsets in the order of `members`, or None when no monitor looked for onsets. A member or event that the
        monitor did not look at counts as not happened (NaN).
    """
    groups = groups_of_kind(record, "Onset")
    if not groups:
        return None
    group = next(iter(groups.values()))
    fallback = float(record.attrs.get("last_step", math.nan))

    def table(name: str, missing: float) -> dict[str, NDArray[np.float64]]:
        if name not in group:
            return {event: np.full(len(members), missing) for event in EVENTS}
        full = group[name].astype(np.float64).broadcast_like(group["step"])
        full = full.reindex(event=list(EVENTS), member=members).transpose("event", "member").fillna(missing)
        return {event: np.asarray(full.sel(event=event).values) for event in EVENTS}

    return Onsets(table("step", math.nan), table("last_step", fallback), table("resolution", math.nan))


def average(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and population standard deviation over members, values that are not finite left out.

    The population form (divisor: number of members) is that of Merrill, Tsilivis, Shukla 2023, arXiv 2303.11873, whose
    figures' bands come from it.

    Args:
        values: `(T, E)`.

    Returns:
        Mean and standard deviation, each `(T,)`; NaN at steps without a finite value.
    """
    present = np.isfinite(values)
    n = present.sum(axis=1)
    safe = np.maximum(n, 1)
    mean = np.where(present, values, 0.0).sum(axis=1) / safe
    variance = np.where(present, (np.where(present, values, 0.0) - mean[:, None]) ** 2, 0.0).sum(axis=1) / safe
    empty = n == 0
    return np.where(empty, np.nan, mean), np.where(empty, np.nan, np.sqrt(variance))
