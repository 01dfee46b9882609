"""What a run leaves: labelled arrays, one group a monitor, in one netCDF file."""

import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import xarray as xr

from grok_callbacks import Monitor
from grok_lightning.population import Members

__all__ = ["build_record", "read_record", "write_record"]

Attributes = Mapping[str, str | int | float]


def build_record(monitors: Iterable[Monitor], members: Members | None, attributes: Attributes) -> xr.DataTree:
    """Gather what monitors have measured.

    Every group carries the member coordinates, since groups of a tree do not inherit them from its root.

    Args:
        monitors: Each becomes a group of its name with the attribute ``kind``, its class; none if it measured nothing.
        members: Table of coordinates; members are only numbered if ``None``.
        attributes: Of the root.

    Returns:
        A tree of labelled arrays with dimensions ``step``, ``member`` and the monitor's own.

    """
    groups = {"/": xr.Dataset(attrs=dict(attributes))}
    for monitor in monitors:
        group = _group(monitor, members)
        if group is not None:
            groups[f"/{monitor.name}"] = group
    return xr.DataTree.from_dict(groups)


def _group(monitor: Monitor, members: Members | None) -> xr.Dataset | None:
    arrays = {name: (dims, values.numpy()) for name, (dims, values) in monitor.record().items()}
    if not arrays:
        return None
    attributes = {"kind": type(monitor).__name__, **monitor.attributes()}
    group = xr.Dataset(arrays, attrs=attributes)
    for dim, labels in monitor.labels.items():
        if dim in group.dims:
            group = group.assign_coords({dim: list(labels)})
    if "member" in group.dims:
        group = group.assign_coords(member=np.arange(group.sizes["member"]))
        for name, values in (members or {}).items():
            group = group.assign_coords({name: ("member", np.asarray(values))})
    return group


def write_record(record: xr.DataTree, path: Path) -> None:
    """Write a record so that ``path`` is at every instant either the old file or the whole new one."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(descriptor)
    try:
        record.to_netcdf(name, engine="h5netcdf")
        with Path(name).open("rb") as file:
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


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
