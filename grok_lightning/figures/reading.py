"""How figures read a record.

Groups are found by the kind of monitor that wrote them, never by name. Members that differ in nothing but their seeds
share a `Setting`; averages are taken within a setting only. Of a record that several runs were joined into, every run
is a setting of its own, or several: the member coordinate `run` tells them apart.
"""

import contextlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from grok_lightning.figures.words import count, number, spread

__all__ = [
    "EVENTS",
    "RUN",
    "SEED_COORDINATES",
    "Clock",
    "Onsets",
    "Setting",
    "average",
    "by_run",
    "coordinates_of",
    "groups_of_kind",
    "labels_along",
    "member_coordinates",
    "member_labels",
    "nearest_measured",
    "neurons_of",
    "parts_of_kind",
    "read_onsets",
    "run_in_title",
    "settings",
    "values_at",
]

SEED_COORDINATES = ("seed", "init_seed", "data_seed")
"""Member coordinates that make repetitions of one setting, not another setting."""

RUN = "run"
"""Member coordinate of a joined record: the label of the run that a member is of."""

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
    """What tells the members of a group apart: each coordinate over `member` as a list of E plain values, `run` first.

    In a joined record NaN, or an empty text, stands for a coordinate that the member's run does not have.
    """
    names = [str(name) for name, value in group.coords.items() if value.dims == ("member",) and name != "member"]
    names.sort(key=lambda name: name != RUN)
    return {name: group[name].values.tolist() for name in names}


def coordinates_of(group: xr.Dataset, member: int) -> dict[str, Any]:
    """The coordinates that the member at a position has, by name."""
    return {name: values[member] for name, values in member_coordinates(group).items() if _has(values[member])}


def labels_along(group: xr.Dataset, dim: str) -> list[str]:
    """Labels of a group along a dimension, such as the names of its splits; empty when it has no such dimension."""
    return [str(label) for label in group[dim].values] if dim in group.dims else []


def by_run(group: xr.Dataset) -> dict[str, xr.Dataset]:
    """Takes a group of a joined record apart again.

    Args:
        group: A group with the dimension `member`.

    Returns:
        The members of each run, by its label, without the coordinate `run` and without the steps at which only other
        runs were measured; the group itself, by an empty label, when it was not joined.
    """
    if RUN not in group.coords:
        return {"": group}
    labels, alone = group[RUN].values, group.drop_vars(RUN)
    parts = {str(run): alone.isel(member=np.flatnonzero(labels == run)) for run in dict.fromkeys(labels.tolist())}
    if "step" not in group.dims:
        return parts
    return {run: part.dropna("step", how="all") for run, part in parts.items()}


def parts_of_kind(record: xr.DataTree, kind: str) -> dict[str, xr.Dataset]:
    """Groups of a kind, run by run, by the words that open what is said of them.

    Args:
        record: The record of a run, or a joined one.
        kind: Class name of the monitor.

    Returns:
        By `parity: `, `neurons: ` or `neurons, parity: ` in a record with several groups or runs; by an empty text
        where there is just one.
    """
    groups = groups_of_kind(record, kind)
    return {
        f"{', '.join(words)}: " if (words := [name] * (len(groups) > 1) + [run] * bool(run)) else "": part
        for name, group in groups.items()
        for run, part in by_run(group).items()
    }


def run_in_title(group: xr.Dataset) -> str:
    """The run of a joined record that a group is of, for a panel's title: ` (parity)`; empty for none or several."""
    labels = [*by_run(group)]
    return f" ({labels[0]})" if len(labels) == 1 and labels[0] else ""


def neurons_of(group: xr.Dataset, name: str) -> str:
    """Of how many neurons an array speaks, as the beginning of a clause: `of 1000 neurons, `; empty without the array.

    In a joined record, layers that are narrower than others are padded with NaN, which does not count.
    """
    if name not in group:
        return ""
    present = np.isfinite(np.asarray(group[name].transpose(..., "neuron").values, dtype=np.float64))
    return f"of {count(int(present.any(axis=tuple(range(present.ndim - 1))).sum()), 'neuron')}, "


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
        label: What sets them apart, such as `weight_decay = 0.01`, or the name of their run, with what else sets them
            apart, in a joined record; empty when the group has one setting and was not joined.
        members: Their positions along `member`.
        values: Their values of the coordinates that differ between settings.
        names: The names of those coordinates.
    """

    label: str
    members: NDArray[np.intp]
    values: tuple[Any, ...]
    names: tuple[str, ...]

    @property
    def opening(self) -> str:
        """How a sentence about the members begins: `With weight_decay = 0.01, `, `In parity, `; empty without label."""
        if not self.label:
            return ""
        return f"{'In' if RUN in self.names else 'With'} {self.label}, "


def settings(group: xr.Dataset) -> tuple[Setting, ...]:
    """Sorts the members of a group into settings.

    Args:
        group: A group with the dimension `member`.

    Returns:
        The settings, in rising order of their values where these can be ordered, else in order of appearance; the runs
        of a joined record in the order of appearance.
    """
    coordinates = {
        name: values
        for name, values in member_coordinates(group).items()
        # That a group is of one run alone is worth saying: others of the record may be of several.
        if name not in SEED_COORDINATES and (name == RUN or len({repr(value) for value in values}) > 1)
    }
    names = tuple(coordinates)
    found: dict[str, tuple[tuple[Any, ...], list[int]]] = {}
    for position in range(group.sizes["member"]):
        values = tuple(column[position] for column in coordinates.values())
        # The text is the key, for NaN does not equal itself.
        found.setdefault(repr(values), (values, []))[1].append(position)
    cells = list(found.values())
    runs = list(dict.fromkeys(coordinates.get(RUN, [])))
    # Words beside numbers, or None, have no order: the order of appearance stays.
    with contextlib.suppress(TypeError):
        cells.sort(key=lambda cell: (runs.index(cell[0][0]), *cell[0][1:]) if runs else cell[0])
    return tuple(
        Setting(
            label=", ".join(_described(name, value) for name, value in zip(names, values, strict=True) if _has(value)),
            members=np.array(members, dtype=np.intp),
            values=values,
            names=names,
        )
        for values, members in cells
    )


def _described(name: str, value: Any) -> str:
    return str(value) if name == RUN else f"{name} = {number(value)}"


def _has(value: Any) -> bool:
    """Whether a coordinate says something of a member: a joined record fills the gaps with NaN or an empty text."""
    return value != "" and not (isinstance(value, float) and math.isnan(value))


@dataclass(frozen=True)
class Onsets:
    """Onsets of the members of another group, in that group's order.

    Attributes:
        step: For each event the steps `(E,)`; NaN where it had not happened by `last_step`.
        last_step: For each event the last step looked at, `(E,)`; NaN where unknown.
        resolution: For each event the steps between the onset and the measurement before it, `(E,)`.
        looked_for: For each event whether it was looked for, `(E,)`: without rows to memorise none is.
    """

    step: dict[str, NDArray[np.float64]]
    last_step: dict[str, NDArray[np.float64]]
    resolution: dict[str, NDArray[np.float64]]
    looked_for: dict[str, NDArray[np.bool_]]

    def happened(self, event: str, members: NDArray[np.intp]) -> NDArray[np.float64]:
        """Steps of an event for those of the members to whom it happened."""
        steps = self.step[event][members]
        return steps[np.isfinite(steps)]


def read_onsets(record: xr.DataTree, members: NDArray[Any]) -> Onsets | None:
    """Reads the onsets of a record for given members.

    Args:
        record: The record of a run. Where several monitors looked for onsets, the first one counts that looked at any
            of the members.
        members: Labels of the members wanted, `(E,)`.

    Returns:
        The onsets in the order of `members`, or None when no monitor looked for onsets of any of them. A member or
        event that the monitor did not look at counts as not happened (NaN).
    """
    groups = groups_of_kind(record, "Onset").values()
    group = next((group for group in groups if np.isin(members, member_labels(group)).any()), None)
    if group is None:
        return None
    fallback = float(record.attrs.get("last_step", math.nan))

    def table(name: str, missing: float) -> dict[str, NDArray[np.float64]]:
        if name not in group:
            return {event: np.full(len(members), missing) for event in EVENTS}
        full = group[name].astype(np.float64).broadcast_like(group["step"])
        full = full.reindex(event=list(EVENTS), member=members).transpose("event", "member").fillna(missing)
        return {event: np.asarray(full.sel(event=event).values) for event in EVENTS}

    known = table("last_step", math.nan)
    looked_for = {event: np.isfinite(last) | ("last_step" not in group) for event, last in known.items()}
    return Onsets(table("step", math.nan), table("last_step", fallback), table("resolution", math.nan), looked_for)


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


def nearest_measured(measured: NDArray[np.bool_], steps: NDArray[Any], at: NDArray[np.float64]) -> list[int | None]:
    """Where along `step` each member was measured nearest in time to a step of its own.

    Args:
        measured: Where each member has a value, `(T, E)`.
        steps: Measured steps, `(T,)`.
        at: The step wanted for each member, `(E,)`; the earlier of two equally near ones counts. NaN: none wanted.

    Returns:
        E positions along `step`; None where no step is wanted or the member was never measured.
    """
    places: list[int | None] = []
    for column, step in zip(measured.T, at, strict=True):
        own = np.flatnonzero(column)
        places.append(int(own[np.abs(steps[own] - step).argmin()]) if own.size and np.isfinite(step) else None)
    return places


def values_at(values: NDArray[np.float64], steps: NDArray[Any], at: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each member's value nearest in time to a step of its own.

    Args:
        values: `(T, E)`; NaN is passed over.
        steps: Measured steps, `(T,)`.
        at: The step wanted for each member, `(E,)`; NaN: none wanted.

    Returns:
        `(E,)`; NaN where no step is wanted or the member has no value.
    """
    places = nearest_measured(np.isfinite(values), steps, at)
    found = [np.nan if row is None else values[row, member] for member, row in enumerate(places)]
    return np.array(found, dtype=np.float64)
