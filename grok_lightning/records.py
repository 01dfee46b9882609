"""What a run leaves: labelled arrays, one group a monitor, in one netCDF file."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import yaml

from grok_callbacks import Intervention, Monitor
from grok_callbacks.files import replacing
from grok_lightning.population import Members

__all__ = ["build_group", "build_record", "join_records", "read_record", "write_record"]

Attributes = Mapping[str, str | int | float]

RUN = "run"
"""Member coordinate of a joined record: the label of the run that a member is of."""

DIFFERENT = "different"
"""Attribute of a joined record: what its runs differ in that makes them networks or tasks of two kinds."""

NOT_OF_THE_NETWORK = ("optimizer", "scheduler", "warm_start", "loss", "members")
"""Arguments of a model that leave the network what it is."""


def build_record(
    callbacks: Iterable[Monitor | Intervention], members: Members | None, attributes: Attributes
) -> xr.DataTree:
    """Gather what monitors have measured, and what interventions have done.

    Every group carries the member coordinates, since groups of a tree do not inherit them from its root.

    Args:
        callbacks: Each becomes a group of its name with the attribute ``kind``, its class; none if it has nothing to
            leave.
        members: Table of coordinates; members are only numbered if ``None``.
        attributes: Of the root.

    Returns:
        A tree of labelled arrays with dimensions ``step``, ``member`` and the monitor's own.

    """
    groups = {"/": xr.Dataset(attrs=dict(attributes))}
    for callback in callbacks:
        group = build_group(callback, members)
        if group is not None:
            groups[f"/{callback.name}"] = group
    return xr.DataTree.from_dict(groups)


def build_group(callback: Monitor | Intervention, members: Members | None) -> xr.Dataset | None:
    """Gather what one callback leaves; ``None`` if that is nothing. The arguments are :func:`build_record`'s."""
    arrays = {name: (dims, values.numpy()) for name, (dims, values) in callback.record().items()}
    if not arrays:
        return None
    attributes = {"kind": type(callback).__name__, **callback.attributes()}
    group = xr.Dataset(arrays, attrs=attributes)
    for dim, labels in callback.labels.items():
        if dim in group.dims:
            group = group.assign_coords({dim: list(labels)})
    if "member" in group.dims:
        group = group.assign_coords(member=np.arange(group.sizes["member"]))
        for name, values in (members or {}).items():
            group = group.assign_coords({name: ("member", np.asarray(values))})
    return group


def join_records(records: Mapping[str, xr.DataTree]) -> xr.DataTree:
    """Lay runs side by side, as members of one record.

    Groups of the same kind and name become one. Its steps are those of all runs: a run is NaN at steps at which only
    others were measured, and in the neurons, splits and so on that only others have; bool arrays become float for that.
    Groups without members are left out.

    Args:
        records: Records by the labels of their runs.

    Returns:
        A record whose members are numbered through, with the coordinate ``run``, their run's label, first. A coordinate
        that a run does not have is NaN for its members, an empty text among texts. A group that a run does not have is
        without its members. Attributes of the root: ``experiment`` is the labels joined by `` + ``, ``n_members`` the
        sum, ``last_step`` the largest, ``steps_per_epoch`` 0 unless it is the same in all, as time must be told in
        steps then; ``different`` names what the runs differ in, if anything, of ``chance``, the ``task``, the class of
        the ``model`` and its arguments that say what the network is, as far as two of their configurations tell it (a
        run without ``chance`` differs from one with it); others, without ``config``, where they are the same in all.

    Raises:
        ValueError: If there are no records, or one is itself joined.

    """
    if not records:
        raise ValueError("records: expected at least one")
    parts: dict[tuple[str, str], list[xr.Dataset]] = {}
    first = 0
    for label, record in records.items():
        groups = {name: node.to_dataset() for name, node in record.children.items() if "member" in node.dims}
        members = sorted({member for group in groups.values() for member in _member_labels(group)})
        numbers = {member: first + i for i, member in enumerate(members)}
        first += max(len(members), int(record.attrs.get("n_members", 0)))
        for name, group in groups.items():
            if RUN in group.coords:
                raise ValueError(f"{label}: is joined of several runs already")
            part = group.assign_coords(member=[numbers[member] for member in _member_labels(group)])
            parts.setdefault((name, str(group.attrs.get("kind", ""))), []).append(
                part.assign_coords({RUN: ("member", [label] * group.sizes["member"])})
            )
    joined: dict[str, xr.Dataset] = {}
    for (name, kind), same in parts.items():
        # Two kinds of group by one name, in different runs, stay two.
        joined[f"/{name}_{kind}" if f"/{name}" in joined else f"/{name}"] = _side_by_side(same)
    root = xr.Dataset(attrs=_joined_attributes([*records.values()]) | {"experiment": " + ".join(records)})
    root.attrs["n_members"] = first
    different = _different([*records.values()])
    if different:
        root.attrs[DIFFERENT] = ", ".join(different)
    return xr.DataTree.from_dict({"/": root} | joined)


def _member_labels(group: xr.Dataset) -> list[Any]:
    labels = group["member"].values if "member" in group.coords else np.arange(group.sizes["member"])
    return list(labels.tolist())


def _side_by_side(parts: Sequence[xr.Dataset]) -> xr.Dataset:
    """Concatenate groups along their members, after they were given the same steps, labels and coordinates."""
    labels = {dim: _union(parts, dim) for dim in dict.fromkeys(dim for part in parts for dim in part.dims)}
    labelled = {dim for part in parts for dim in part.coords if dim in part.dims}
    del labels["member"]
    aligned = []
    for part in parts:
        numbered = {dim: np.arange(part.sizes[dim]) for dim in labels if dim in part.dims and dim not in part.coords}
        bools = {name: array.astype(np.float32) for name, array in part.data_vars.items() if array.dtype == bool}
        wide = part.assign(bools).assign_coords(numbered)
        wide = wide.reindex({dim: values for dim, values in labels.items() if dim in part.dims})
        aligned.append(wide.drop_vars([dim for dim in labels if dim in wide.coords and dim not in labelled]))
    filled = [_with_coordinates(part, aligned) for part in aligned]
    joined = xr.concat(
        filled, "member", data_vars="all", coords="different", compat="equals", join="exact", combine_attrs="drop"
    )
    return joined.assign_attrs(_same_attributes(parts))


def _union(parts: Sequence[xr.Dataset], dim: Hashable) -> list[Any]:
    """Return the labels along a dimension of all groups: numbers in rising order, texts in order of appearance."""
    labels = [part[dim].values if dim in part.coords else np.arange(part.sizes.get(dim, 0)) for part in parts]
    found = list(dict.fromkeys(label for values in labels for label in values.tolist()))
    return found if any(isinstance(label, str) for label in found) else sorted(found)


def _with_coordinates(part: xr.Dataset, parts: Sequence[xr.Dataset]) -> xr.Dataset:
    """Add the member coordinates that other groups have: what was measured of that name, or without values."""
    for other in parts:
        for name, values in other.coords.items():
            if values.dims != ("member",) or name in part.coords:
                continue
            if name in part.data_vars and part[name].dims == ("member",):
                part = part.set_coords(name)
            else:
                blank = np.nan if np.issubdtype(values.dtype, np.number) else ""
                part = part.assign_coords({name: ("member", [blank] * part.sizes["member"])})
    return part


def _same_attributes(nodes: Sequence[xr.Dataset | xr.DataTree]) -> dict[str, Any]:
    """Return the attributes that are the same everywhere."""
    first, *others = (node.attrs for node in nodes)
    return {str(name): value for name, value in first.items() if all(attrs.get(name) == value for attrs in others)}


def _joined_attributes(records: Sequence[xr.DataTree]) -> dict[str, Any]:
    attributes = {name: value for name, value in _same_attributes(records).items() if name != "config"}
    last = [int(record.attrs["last_step"]) for record in records if "last_step" in record.attrs]
    if last:
        attributes["last_step"] = max(last)
    return attributes | {"steps_per_epoch": int(attributes.get("steps_per_epoch", 0))}


def _different(records: Sequence[xr.DataTree]) -> list[str]:
    """Name the facts of which runs that tell them tell different things."""
    told = [_task_and_network(record) for record in records]
    values = {name: [facts[name] for facts in told if name in facts] for facts in told for name in facts}
    return [name for name, found in values.items() if any(value != found[0] for value in found)]


def _task_and_network(record: xr.DataTree) -> dict[str, Any]:
    """Return what makes members of two runs comparable, as far as a record tells."""
    facts = {"chance": record.attrs.get("chance")}
    try:
        config = yaml.safe_load(str(record.attrs.get("config", "")))
    except yaml.YAMLError:
        return facts
    data, model = (_section(config, name) for name in ("data", "model"))
    told = _section(data, "init_args")
    facts |= {"task": told["task"]} if "task" in told else {}
    facts |= {"model": model["class_path"]} if "class_path" in model else {}
    arguments = _section(model, "init_args").items()
    return facts | {str(name): value for name, value in arguments if name not in NOT_OF_THE_NETWORK}


def _section(config: Any, name: str) -> dict[Any, Any]:
    """Return a part of a configuration; empty where there is none."""
    part = config.get(name) if isinstance(config, dict) else None
    return part if isinstance(part, dict) else {}


def write_record(record: xr.DataTree, path: Path) -> None:
    """Write a record so that ``path`` is at every instant either the old file or the whole new one.

    Raises:
        WriteError: If it cannot be written.

    """
    # Made in memory first: of a file on a full disk, HDF5 ends the process by a segmentation fault.
    content = record.to_netcdf(engine="h5netcdf")
    with replacing(path) as fresh:
        fresh.write_bytes(content)


def read_record(path: Path) -> xr.DataTree:
    """Return a record, in memory; the file is closed again.

    Raises:
        FileNotFoundError: If there is none.
        OSError: If it is damaged.

    """
    if not path.is_file():
        raise FileNotFoundError(f"no record at {path}")
    try:
        with xr.open_datatree(path, engine="h5netcdf") as tree:
            return tree.load()
    except OSError as error:
        raise OSError(f"{path} cannot be read as a record: {error}") from error
