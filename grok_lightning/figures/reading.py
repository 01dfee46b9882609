"""How figures read a record.

Groups are found by the kind of monitor that wrote them, never by name. Members that differ in nothing but their seeds
share a `Setting`; averages are taken within a setting only. Of a record that several runs were joined into, every run
is a setting of its own, or several: the member coordinate `run` tells them apart.
"""

import contextlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from grok_lightning.figures.words import count, number, spread
from grok_lightning.sweeps import Survival, kaplan_meier

__all__ = [
    "EVENTS",
    "RUN",
    "SEED_COORDINATES",
    "Clock",
    "Measured",
    "Onsets",
    "Setting",
    "at_the_end",
    "average",
    "by_run",
    "coordinates_of",
    "curve_of",
    "curves_along",
    "groups_of_kind",
    "labels_along",
    "last_rows",
    "member_coordinates",
    "member_labels",
    "measured_where",
    "member_name",
    "nearest_measured",
    "neurons_of",
    "parts_of_kind",
    "partner_of_kind",
    "reached_the_end",
    "read_onsets",
    "run_in_title",
    "settings",
    "spread_over_settings",
    "values_at",
]

SEED_COORDINATES = ("seed", "init_seed", "data_seed")
"""Member coordinates that make repetitions of one setting, not another setting."""

RUN = "run"
"""Member coordinate of a joined record: the label of the run that a member is of."""

EVENTS = ("memorised", "generalised", "forgotten")


def groups_of_kind(record: xr.DataTree, kind: str, arrays: Sequence[str] = ()) -> dict[str, xr.Dataset]:
    """Groups of a record that a monitor of this kind wrote.

    Args:
        record: The record of a run.
        kind: Class name of the monitor, the attribute `kind` of its group.
        arrays: Names of arrays that the groups must have: a monitor may leave some of them out.

    Returns:
        The groups by name, in the order of the record; empty when there are none. A group without a `member`
        coordinate gets the members' positions.
    """
    groups = {}
    for node in record.subtree:
        if node.attrs.get("kind") == kind and all(name in node.data_vars for name in arrays):
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


def member_name(group: xr.Dataset, member: int) -> str:
    """The member at a position, in words: `member 0 (seed 0)`."""
    coordinates = ", ".join(f"{name} {number(value)}" for name, value in coordinates_of(group, member).items())
    return f"member {number(member_labels(group)[member])}{f' ({coordinates})' if coordinates else ''}"


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


def parts_of_kind(record: xr.DataTree, kind: str, arrays: Sequence[str] = ()) -> dict[str, xr.Dataset]:
    """Groups of a kind, run by run, by the words that open what is said of them.

    Args:
        record: The record of a run, or a joined one.
        kind: Class name of the monitor.
        arrays: Names of arrays that the groups must have.

    Returns:
        By `parity: `, `neurons: ` or `neurons, parity: ` in a record with several groups or runs; by an empty text
        where there is just one.
    """
    groups = groups_of_kind(record, kind, arrays)
    return {
        f"{', '.join(words)}: " if (words := [name] * (len(groups) > 1) + [run] * bool(run)) else "": part
        for name, group in groups.items()
        for run, part in by_run(group).items()
    }


def partner_of_kind(record: xr.DataTree, kind: str, group: xr.Dataset) -> xr.Dataset | None:
    """What another monitor measured of the members of a group.

    Args:
        record: The record that the group is of.
        kind: Class name of the other monitor. Where it wrote several groups, the first one counts that has any of the
            members.
        group: The group.

    Returns:
        The other group with the members of `group`, in their order, NaN for members that it does not have, at steps of
        its own; None when it has none of them.
    """
    members = member_labels(group)
    for other in groups_of_kind(record, kind).values():
        if "member" in other.dims and np.isin(members, member_labels(other)).any():
            return other.reindex(member=members)
    return None


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
        steps_per_epoch: Optimizer steps in one epoch; 0 when unknown, or when a step is an epoch, and then everything
            is told in steps.
    """

    steps_per_epoch: int

    @classmethod
    def of(cls, record: xr.DataTree) -> "Clock":
        """The clock of a record, from its attribute `steps_per_epoch`."""
        steps = int(record.attrs.get("steps_per_epoch", 0))
        return cls(steps if steps > 1 else 0)

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

    @property
    def any_later(self) -> bool:
        """Whether any member memorised or generalised later than at step 0, where a warm-started network knows all."""
        return any(bool((np.nan_to_num(self.step[event]) > 0).any()) for event in ("memorised", "generalised"))

    def survival(self, event: str, members: NDArray[np.intp]) -> Survival:
        """When an event happened, with members to whom it did not counted as looked at until their last step.

        Args:
            event: The event.
            members: Positions of the members; of those looked at, for *forgotten* only those that had generalised.
        """
        able = members[self.looked_for[event][members]]
        if event == "forgotten":
            able = able[np.isfinite(self.step["generalised"][able])]
        return kaplan_meier(self.step[event][able], self.last_step[event][able])

    def median(self, event: str, members: NDArray[np.intp]) -> float:
        """Median step of an event; that of `survival` where it did not happen to all, NaN where it is not reached."""
        survival = self.survival(event, members)
        happened = self.happened(event, members)
        return float(np.median(happened)) if happened.size and not survival.n_never else survival.median


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


@dataclass(frozen=True)
class Measured:
    """One group of a record, with what is needed to draw it over time.

    Attributes:
        group: The group.
        clock: The clock of the record.
        onsets: The onsets of the members; None when they were not looked for.
    """

    group: xr.Dataset
    clock: Clock
    onsets: Onsets | None

    @classmethod
    def of(cls, record: xr.DataTree, group: xr.Dataset) -> "Measured":
        """A group, or a part of one, and what its record says of its members."""
        return cls(group, Clock.of(record), read_onsets(record, member_labels(group)))

    @property
    def steps(self) -> NDArray[np.int64]:
        """Measured steps, `(T,)`."""
        return np.asarray(self.group["step"].values)

    @property
    def time(self) -> NDArray[np.float64]:
        """Measured steps in the unit of the time axes, `(T,)`."""
        return self.clock.time(self.steps)

    def values(self, name: str, **labels: str) -> NDArray[np.float64]:
        """An array at labels of its other dimensions: `(T, E)`; all NaN where the group does not have it."""
        return curve_of(self.group, name, **labels)


def curve_of(group: xr.Dataset, name: str, **labels: str) -> NDArray[np.float64]:
    """An array over time, of every member, at labels of its other dimensions.

    Args:
        group: A group with the dimensions `step` and `member`.
        name: Name of the array, over `step`, `member` and the dimensions of `labels` in any order.
        **labels: The label wanted along each other dimension.

    Returns:
        `(T, E)`; all NaN where the group has no such array or label.
    """
    shape = (group.sizes["step"], group.sizes["member"])
    if name not in group or any(label not in labels_along(group, dim) for dim, label in labels.items()):
        return np.full(shape, np.nan)
    return np.asarray(group[name].sel(labels).transpose("step", "member").values, dtype=np.float64)


def curves_along(group: xr.Dataset, name: str, dim: str) -> NDArray[np.float64]:
    """An array over time, of every member, along one other dimension.

    Args:
        group: A group with the dimensions `step` and `member`.
        name: Name of the array, over `step`, `member` and `dim` in any order; of numbers or bools.
        dim: The other dimension, of length K.

    Returns:
        `(T, E, K)`; all NaN where the group has no such array.
    """
    if name not in group:
        return np.full((group.sizes["step"], group.sizes["member"], group.sizes.get(dim, 0)), np.nan)
    return np.asarray(group[name].transpose("step", "member", dim).values, dtype=np.float64)


def measured_where(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Where each member has any value along another dimension: `(T, E)`, from `(T, E, K)`."""
    return np.asarray(np.isfinite(values).any(axis=2))


def last_rows(measured: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Where along `step` each member was measured last: `(E,)` from where it was measured, `(T, E)`; −1 for never."""
    if not len(measured):
        return np.full(measured.shape[1], -1)
    last = len(measured) - 1 - measured[::-1].argmax(axis=0)
    return np.where(measured.any(axis=0), last, -1)


def reached_the_end(group: xr.Dataset, measured: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which members were measured at the last step at which any member of their run was: one that diverged was not.

    Args:
        group: The group, of one run or joined.
        measured: Where each member was measured, `(T, E)`.

    Returns:
        `(E,)`.
    """
    last = last_rows(measured)
    runs = group[RUN].values if RUN in group.coords else np.zeros(len(last))
    return np.array([row >= 0 and row == last[runs == run].max() for row, run in zip(last, runs, strict=True)], bool)


def at_the_end(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each member's value at the last step at which any member of one run has one.

    Args:
        values: `(T, E)`, of one run.

    Returns:
        `(E,)`; NaN for a member without a value at that step.
    """
    measured = np.flatnonzero(np.isfinite(values).any(axis=1))
    return values[measured[-1]] if measured.size else np.full(values.shape[1], np.nan)


def spread_over_settings(group: xr.Dataset, measured: NDArray[np.bool_], most: int) -> list[int]:
    """Members to show one by one, where there is no room for all: fair to the settings, not chosen by what they did.

    Args:
        group: The group.
        measured: Which members have anything to show, `(E,)`.
        most: How many to show at most.

    Returns:
        Their positions, in the order of the settings: the first member of each setting, then the second ones, and so on
        until `most` are chosen; of more settings than that, settings evenly spaced in their order.
    """
    rows = [[int(member) for member in setting.members if measured[member]] for setting in settings(group)]
    rows = [row for row in rows if row]
    if len(rows) > most:
        return [rows[i][0] for i in np.linspace(0, len(rows) - 1, most).round().astype(int)]
    turns = sorted((turn, place) for place, row in enumerate(rows) for turn in range(len(row)))
    return [rows[place][turn] for turn, place in sorted(turns[:most], key=lambda pair: (pair[1], pair[0]))]


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
