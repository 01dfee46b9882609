"""The record: labelled arrays that survive being written, whole or not at all."""

import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
import xarray as xr

from grok_callbacks import EveryNSteps, Intervention, Monitor
from grok_callbacks.files import WriteError
from grok_lightning.records import build_record, join_records, read_record, write_record

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


@pytest.mark.parametrize(("error", "seen"), [(OSError, WriteError), (KeyboardInterrupt, KeyboardInterrupt)])
def test_a_record_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch, error, seen):
    path = tmp_path / "records.nc"
    write_record(record(), path)
    before = path.read_bytes()

    def half(self, content):
        with self.open("wb") as file:
            file.write(before[:100])
        raise error("no space left")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(seen, match="no space left"):
        write_record(record(), path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["records.nc"]


def test_a_record_on_a_full_disk_is_an_error_and_not_the_end_of_the_process(tmp_path):
    """HDF5 ends it, when it closes a file that it could not write; so this is tried in a process of its own."""
    code = (
        "import resource, signal, sys, numpy, xarray\n"
        "from pathlib import Path\n"
        "from grok_lightning.records import write_record\n"
        "record = xarray.DataTree(xarray.Dataset({'x': ('n', numpy.zeros(10_000))}))\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))\n"
        "try:\n    write_record(record, Path(sys.argv[1]))\n"
        "except OSError as error:\n    print(error.strerror)\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "records.nc")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "File too large\n")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_record_is_told_with_its_place(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no record at .*nowhere"):
        read_record(tmp_path / "nowhere" / "records.nc")


# Several runs as one record


def run(steps=(0, 10, 20), members=2, neurons=3, labels=("train", "held_out"), attributes=None, **coordinates):
    """Return a record with a group over steps and one that also has arrays without steps; all values differ."""
    n_values = len(steps) * members * len(labels)
    accuracy = np.arange(n_values, dtype=np.float32).reshape(len(steps), members, len(labels))
    active = np.arange(len(steps) * members * neurons).reshape(len(steps), members, neurons) % 2 == 0
    coordinates = {"member": np.arange(members)} | {name: ("member", values) for name, values in coordinates.items()}
    timed = coordinates | {"step": np.asarray(steps, dtype=np.int64)}
    groups = {
        "/": xr.Dataset(attrs={"experiment": "x", "config": "a: 1", "torch": "2.13"} | (attributes or {})),
        "/curves": xr.Dataset(
            {"accuracy": (("step", "member", "split"), accuracy)},
            coords=timed | {"split": list(labels)},
            attrs={"kind": "LearningCurves", "unit": "rows"},
        ),
        "/sets": xr.Dataset(
            {
                "active": (("step", "member", "neuron"), active),
                "overlap": (("step", "member"), np.arange(len(steps) * members).reshape(len(steps), members)),
                "generalizing": (("member", "neuron"), active[0]),
                "size": (("member",), active[0].sum(axis=-1)),
            },
            coords=timed,
            attrs={"kind": "SubnetworkComparison", "layer": f"of {neurons}"},
        ),
    }
    return xr.DataTree.from_dict(groups)


RUNS = {
    "a": ((0, 10, 20), 2, 3, ("train", "held_out")),
    "b": ((0, 7, 20, 30), 3, 5, ("train",)),
    "c": ((5,), 1, 4, ("held_out", "train", "all")),
}


def test_runs_lie_side_by_side_and_each_keeps_its_values():
    records = {label: run(*shape) for label, shape in RUNS.items()}
    joined = join_records(records)
    curves, sets = joined["curves"].to_dataset(), joined["sets"].to_dataset()
    assert curves["step"].values.tolist() == sets["step"].values.tolist() == [0, 5, 7, 10, 20, 30]
    assert curves["step"].dtype == np.int64
    assert curves["split"].values.tolist() == ["train", "held_out", "all"]
    assert sets.sizes["neuron"] == 5
    assert "neuron" not in sets.coords
    for group in (curves, sets):
        assert group["member"].values.tolist() == list(range(6))
        assert group["run"].values.tolist() == ["a", "a", "b", "b", "b", "c"]
    first = 0
    for label, (steps, members, neurons, splits) in RUNS.items():
        own = slice(first, first + members)
        first += members
        original = records[label]
        found = curves["accuracy"].isel(member=own)
        known = found.sel(step=list(steps), split=list(splits)).transpose("step", "member", "split")
        np.testing.assert_array_equal(known, original["curves/accuracy"])
        assert int(found.notnull().sum()) == original["curves/accuracy"].size
        for name in ("active", "overlap", "generalizing", "size"):
            array = original["sets"][name]
            part = sets[name].isel(member=own).transpose(*array.dims)
            assert int(part.notnull().sum()) == array.size, name
            part = part.sel(step=list(steps)) if "step" in array.dims else part
            part = part.isel(neuron=slice(neurons)) if "neuron" in array.dims else part
            np.testing.assert_array_equal(part, array, err_msg=name)
    assert sets["size"].dims == ("member",)
    assert sets["active"].dtype == np.float32


def test_attributes_stay_where_they_are_the_same():
    one = run(attributes={"steps_per_epoch": 32, "n_members": 2, "last_step": 20, "status": "finished"})
    two = run((0, 5), 3, 4, attributes={"steps_per_epoch": 32, "n_members": 3, "last_step": 5, "status": "stopped"})
    joined = join_records({"one": one, "two": two})
    assert joined.attrs == {
        "experiment": "one + two",
        "torch": "2.13",
        "steps_per_epoch": 32,
        "n_members": 5,
        "last_step": 20,
    }
    assert joined["curves"].attrs == {"kind": "LearningCurves", "unit": "rows"}
    assert joined["sets"].attrs == {"kind": "SubnetworkComparison"}
    two.attrs["steps_per_epoch"] = 16
    assert join_records({"one": one, "two": two}).attrs["steps_per_epoch"] == 0
    del two.attrs["steps_per_epoch"]
    assert join_records({"one": one, "two": two}).attrs["steps_per_epoch"] == 0


def test_coordinates_that_only_some_runs_have_are_empty_for_the_others():
    joined = join_records({"a": run(seed=[0, 1]), "b": run(seed=[0, 1], weight_decay=[0.5, 0.1], note=["x", "y"])})
    curves = joined["curves"].to_dataset()
    assert curves["seed"].values.tolist() == [0, 1, 0, 1]
    np.testing.assert_array_equal(curves["weight_decay"], [np.nan, np.nan, 0.5, 0.1])
    assert curves["note"].values.tolist() == ["", "", "x", "y"]


@pytest.mark.parametrize("first", [True, False])
def test_what_one_run_measured_and_another_was_given_keeps_its_values(first):
    runs = {"given": run(), "measured": run()}
    values = {"given": [7, 8], "measured": runs["measured"]["sets"]["size"].values.tolist()}
    for name in ("curves", "sets"):
        runs["given"][name] = runs["given"][name].to_dataset().assign_coords(size=("member", values["given"]))
    names = ["given", "measured"] if first else ["measured", "given"]
    joined = join_records({name: runs[name] for name in names})
    assert joined["sets"]["size"].values.tolist() == values[names[0]] + values[names[1]]
    # Where nothing was measured, as before.
    assert np.isnan(joined["curves"]["size"].values).tolist() == [name == "measured" for name in names for _ in "12"]


CONFIG = """\
model:
  class_path: {model}
  init_args: {{d_model: {width}, warm_start: {warm}, optimizer: {{init_args: {{lr: {rate}}}}}, loss: {loss}}}
data:
  init_args:
    task: {{class_path: ModularArithmetic, init_args: {{operation: add, p: {p}}}}}
    train_size: {size}
"""
SAME = {"model": "T", "width": 32, "warm": "null", "rate": 0.1, "loss": "a", "p": 31, "size": "null"}


def configured(config=None, **attributes):
    text = {} if config is None else {"config": CONFIG.format(**(SAME | config))}
    return run(attributes=attributes | text)


@pytest.mark.parametrize(
    ("runs", "different"),
    [
        ([configured({}), configured({"warm": "x", "rate": 0.2, "loss": "b", "size": 9})], None),
        ([configured({}), configured({"p": 113})], "task"),
        ([configured({}), configured({"width": 64})], "d_model"),
        ([configured({"p": 31}), configured({"p": 31}), configured({"p": 113, "model": "M"})], "task, model"),
        ([configured({}, chance=0.5), configured({}, chance=0.25)], "chance"),
        ([configured({}, chance=0.5), configured({})], "chance"),
        ([configured({}, chance=0.5), configured({}, chance=0.5)], None),
        # What does not say what it is may be the same.
        ([configured({}), run()], None),
        ([configured({}), run(attributes={"config": ""})], None),
        ([configured({}), run(attributes={"config": "no: [yaml"})], None),
        ([configured({}), run(attributes={"config": "model: x\ndata: {init_args: 3}"})], None),
        ([configured({}), run(), configured({"p": 113})], "task"),
    ],
)
def test_what_runs_of_different_kinds_differ_in_is_named(runs, different):
    joined = join_records({str(i): one for i, one in enumerate(runs)})
    assert joined.attrs.get("different") == different


def test_a_group_that_a_run_lacks_is_without_its_members():
    partial = run(members=2)
    del partial["sets"]
    joined = join_records({"a": run(members=2), "b": partial, "c": run(members=1)})
    assert joined["curves"]["member"].values.tolist() == [0, 1, 2, 3, 4]
    assert joined["sets"]["member"].values.tolist() == [0, 1, 4]
    assert joined["sets"]["run"].values.tolist() == ["a", "a", "c"]
    np.testing.assert_array_equal(joined["sets"]["overlap"].sel(member=4), run(members=1)["sets/overlap"][:, 0])


def test_a_member_has_one_number_in_all_groups_of_its_run():
    second = run(members=3)
    second["sets"] = second["sets"].to_dataset().isel(member=[2, 0])
    joined = join_records({"a": run(members=2), "b": second})
    assert joined["curves"]["member"].values.tolist() == [0, 1, 2, 3, 4]
    assert joined["sets"]["member"].values.tolist() == [0, 1, 4, 2]
    np.testing.assert_array_equal(joined["sets"]["overlap"].sel(member=4), run(members=3)["sets/overlap"][:, 2])


def test_groups_of_one_name_and_different_kinds_stay_apart():
    other = run(members=1)
    other["curves"].attrs["kind"] = "Onset"
    joined = join_records({"a": run(members=2), "b": other})
    assert joined["curves"].sizes["member"] == 2
    assert joined["curves_Onset"]["member"].values.tolist() == [2]
    assert joined["curves_Onset"].attrs["kind"] == "Onset"


def test_a_joined_record_can_be_written_and_read(tmp_path):
    joined = join_records({label: run(*shape) for label, shape in RUNS.items()})
    write_record(joined, tmp_path / "records.nc")
    xr.testing.assert_equal(read_record(tmp_path / "records.nc"), joined)


def test_runs_that_were_measured_alike_are_joined_without_a_gap():
    joined = join_records({"a": run(), "b": run()})
    for group in joined.children.values():
        assert all(array.notnull().all() for array in group.data_vars.values())
    assert joined["sets"]["overlap"].dtype == np.int64


def test_what_cannot_be_joined_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        join_records({})
    joined = join_records({"a": run(), "b": run()})
    with pytest.raises(ValueError, match="both: is joined of several runs already"):
        join_records({"both": joined, "c": run()})
    assert not join_records({"a": build_record([], None, {}), "b": build_record([], None, {})}).children


class Turned(Intervention):
    """Did something at step 3 to the first of two members."""

    name = "turned"

    def record(self):
        return {"step": (("member",), torch.tensor([3.0, torch.nan]))}

    def attributes(self):
        return {"by": 90}


class Leaving(Intervention):
    """Has nothing to leave."""


def test_what_interventions_did_is_kept_beside_what_monitors_measured():
    record = build_record([monitor(), Turned(), Leaving()], MEMBERS, {})
    assert set(record.children) == {"widths", "turned"}
    assert record["turned"].attrs == {"kind": "Turned", "by": 90}
    assert record["turned"]["step"].values[0] == 3
    assert record["turned"]["seed"].values.tolist() == MEMBERS["seed"]
    assert Leaving().coordinates == frozenset()
