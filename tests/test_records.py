"""The record: labelled arrays that survive being written, whole or not at all."""

from typing import ClassVar

import numpy as np
import pytest
import torch
import xarray as xr

from grok_callbacks import EveryNSteps, Monitor
from grok_lightning.records import build_record, read_record, write_record

STEPS = [0, 3, 6]
MEMBERS = {"seed": [5, 7], "weight_decay": [0.0, 0.5]}


class Widths(Monitor):
    """A monitor with a dimension of its own, with labels."""

    dims: ClassVar = {"width": ("layer",), "total": ()}
    labels: ClassVar = {"layer": ("first", "middle", "last")}

    def measure(self, trainer, pl_module):
        return {}

    def attributes(self):
        return {"threshold": 0.5, "unit": "neurons"}


class Silent(Widths):
    """A monitor that never measured."""


def monitor(kind=Widths, name="widths", members=2, steps=STEPS):
    result = kind(EveryNSteps(3), name)
    values = {
        "width": torch.arange(len(steps) * members * 3, dtype=torch.float32).reshape(len(steps), members, 3) / 7,
        "total": torch.full((len(steps), members), torch.nan, dtype=torch.float64),
    }
    if steps:
        values["total"][0] = 1e-300
    result.load_state_dict({"steps": torch.tensor(steps, dtype=torch.int64), "values": values if steps else {}})
    return result


def record():
    monitors = [monitor(), monitor(name="others"), monitor(Silent, "silent", steps=[])]
    return build_record(monitors, MEMBERS, {"experiment": "x", "last_step": 6, "share": 0.25, "config": "a: 1\nβ: 2\n"})


def test_a_record_has_one_group_a_monitor_that_measured():
    tree = record()
    assert set(tree.children) == {"widths", "others"}
    assert tree["widths"].attrs == {"kind": "Widths", "threshold": 0.5, "unit": "neurons"}
    assert tree.attrs["experiment"] == "x"


def test_arrays_keep_their_values_and_get_their_labels():
    group = record()["widths"]
    assert group["width"].dims == ("step", "member", "layer")
    assert group["step"].values.tolist() == STEPS
    assert group["layer"].values.tolist() == ["first", "middle", "last"]
    expected = monitor().history["width"]
    for s, step in enumerate(STEPS):
        for layer, label in enumerate(["first", "middle", "last"]):
            found = group["width"].sel(step=step, layer=label).values
            assert found.tolist() == expected[s, :, layer].tolist()


def test_every_group_says_who_the_members_are():
    for group in record().children.values():
        assert group["member"].values.tolist() == [0, 1]
        assert group["seed"].dims == ("member",)
        assert {name: group[name].values.tolist() for name in MEMBERS} == MEMBERS


def test_members_without_coordinates_are_numbered():
    group = build_record([monitor()], None, {})["widths"]
    assert group["member"].values.tolist() == [0, 1]
    assert "seed" not in group.coords


def test_a_record_without_groups_is_one():
    assert not build_record([], MEMBERS, {"status": "running"}).children


def test_a_record_is_read_as_it_was_written(tmp_path):
    write_record(record(), tmp_path / "records.nc")
    back = read_record(tmp_path / "records.nc")
    xr.testing.assert_identical(back, record())
    for name, array in back["widths"].data_vars.items():
        assert array.dtype == record()["widths"][name].dtype, name
    assert np.isnan(back["widths"]["total"].values[1:]).all()
    assert back["widths"]["total"].values[0].tolist() == [1e-300] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["records.nc"]


def test_a_record_that_was_read_is_in_memory_and_its_file_closed(tmp_path):
    path = tmp_path / "records.nc"
    write_record(record(), path)
    back = read_record(path)
    path.unlink()
    write_record(build_record([], None, {"experiment": "other"}), path)
    xr.testing.assert_identical(back, record())


def test_a_record_replaces_the_one_before(tmp_path):
    path = tmp_path / "records.nc"
    write_record(record(), path)
    write_record(build_record([monitor(steps=[0])], None, {"last_step": 0}), path)
    back = read_record(path)
    assert set(back.children) == {"widths"}
    assert back["widths"].sizes["step"] == 1


def test_others_may_read_a_record(tmp_path):
    write_record(record(), tmp_path / "records.nc")
    assert (tmp_path / "records.nc").stat().st_mode & 0o444 == 0o444


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_record_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch, error):
    path = tmp_path / "records.nc"
    write_record(record(), path)
    before = path.read_bytes()

    def half(self, filepath, **options):
        with open(filepath, "wb") as file:
            file.write(before[:100])
        raise error("no space left")

    monkeypatch.setattr(xr.DataTree, "to_netcdf", half)
    with pytest.raises(error, match="no space left"):
        write_record(record(), path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["records.nc"]


def test_a_missing_record_is_told_with_its_place(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no record at .*nowhere"):
        read_record(tmp_path / "nowhere" / "records.nc")
