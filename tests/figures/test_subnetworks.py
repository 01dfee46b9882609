import re

import numpy as np
import pytest
import synthetic
import xarray as xr

from grok_lightning.figures import draw_subnetworks, found_subnetworks
from grok_lightning.figures.subnetworks import norm_ratio
from grok_lightning.records import join_records

SETS = ["generalizing", "complementary", "control"]
PANELS = [
    "Mean norm of incoming weights",
    "Agreement on held-out rows",
    "Agreement on rows trained on",
    "Generalizing among the 10 largest",
    "Average sensitivity",
    "Norm, ratio of the two",
]
NEAREST = [5, 4, 8, 4, 7]  # Measurements, at epochs 0, 5, 10, ..., nearest to epochs 27, 20, 38, 21, 35.


def panels(figure):
    return {axes.get_title(loc="left"): axes for axes in figure.axes}


def line(axes, label):
    [found] = [line for line in axes.get_lines() if line.get_label() == label]
    return found


def replaced(record, **groups):
    kept = {name: node.to_dataset() for name, node in record.children.items()}
    kept = {name: group for name, group in (kept | groups).items() if group is not None}
    return synthetic.record(kept, **record.attrs)


def told(values, form="{:.2f}"):
    """Median and range, of values that are not all the same."""
    low, middle, high = (form.format(value) for value in (values.min(), np.median(values), values.max()))
    return f"{middle} (median; range {low} to {high})"


def test_every_panel_has_the_means_over_members_of_what_was_measured():
    record = synthetic.parity_record()
    group = record["subnetworks"].to_dataset()
    drawn = panels(draw_subnetworks(record))
    assert list(drawn) == PANELS
    expected = {PANELS[3]: {"generalizing": group.overlap.values}}
    expected[PANELS[0]] = {label: group.norm.sel(set=label).values for label in SETS}
    for title, split in ((PANELS[1], "held_out"), (PANELS[2], "train")):
        expected[title] = {label: group.agreement.sel(split=split, set=label).values for label in SETS}
    expected[PANELS[4]] = {label: group.sensitivity.sel(network=label).values for label in ["full", *SETS]}
    ratio = group.norm.sel(set="generalizing").values / group.norm.sel(set="complementary").values
    expected[PANELS[5]] = {"generalizing": ratio}
    for title, curves in expected.items():
        labels = [entry.get_label() for entry in drawn[title].get_lines()]
        assert set(labels) & {"full", *SETS} == set(curves), title
        for label, values in curves.items():
            np.testing.assert_allclose(line(drawn[title], label).get_ydata(), values.mean(axis=1))
            np.testing.assert_allclose(line(drawn[title], label).get_xdata(), np.arange(0, 301, 5))
        assert line(drawn[title], "memorised (5 of 5)").get_xdata()[0] == 27
    assert drawn[PANELS[5]].get_yscale() == "log"


def test_sets_differ_in_colour_and_in_dashes():
    axes = panels(draw_subnetworks(synthetic.parity_record()))[PANELS[4]]
    lines = [line(axes, label) for label in ("full", *SETS)]
    assert len({entry.get_color() for entry in lines}) == 4
    assert len({entry.get_linestyle() for entry in lines}) == 4


def test_found_tells_what_the_sets_did_as_computed_from_the_record():
    record = synthetic.parity_record()
    group = record["subnetworks"].to_dataset()
    found = found_subnetworks(record)
    assert f"Of 200 neurons, {told(group['size'].values, '{:g}')} are in the generalizing set." in found
    ratio = group.norm.sel(set="generalizing").values / group.norm.sel(set="complementary").values
    then, end = ratio[NEAREST, np.arange(5)], ratio[-1]
    assert f": {told(then, '{:.3g}')} at memorisation and {told(end, '{:.3g}')} at the end." in found
    for split, name in (("held_out", "held-out rows"), ("train", "rows trained on")):
        last = group.agreement.sel(split=split).values[-1]
        assert f"Agreement on {name} at the end: generalizing set " in found
        assert f"complementary set {told(last[:, 1])}, control {told(last[:, 2])}." in found
    overlap = group.overlap.values
    assert (overlap[NEAREST, np.arange(5)] == 0).all()
    assert f"among the 10 with the largest norms: 0 for all 5 at memorisation and {told(overlap[-1], '{:g}')}" in found
    assert "set 3 for all 5, complementary set 9 for all 5, control 12 for all 5, whole network 3 for all 5." in found


def test_a_ratio_of_norms_is_undefined_where_there_is_nothing_to_compare_with():
    ratio = norm_ratio(np.array([1.0, 1.0, np.nan, 3.0]), np.array([0.0, np.nan, 2.0, 2.0]))
    np.testing.assert_array_equal(ratio, [np.nan, np.nan, np.nan, 1.5])


def test_a_split_that_was_not_measured_is_told_in_the_panel_and_in_words():
    record = synthetic.parity_record()
    group = record["subnetworks"].to_dataset()
    for missing in (group.assign(agreement=group.agreement.where(group.split == "train")), group.sel(split=["train"])):
        without = replaced(record, subnetworks=missing)
        drawn = panels(draw_subnetworks(without))
        assert [text.get_text() for text in drawn[PANELS[1]].texts] == ["not measured"]
        assert not drawn[PANELS[2]].texts
        found = found_subnetworks(without)
        assert "Agreement on held-out rows was not measured." in found
        assert "Agreement on rows trained on at the end: generalizing set" in found


@pytest.mark.parametrize("absent", [True, False], ids=["absent", "all NaN"])
def test_without_sensitivity_there_are_two_rows(absent):
    record = synthetic.parity_record()
    group = record["subnetworks"].to_dataset()
    nothing = group.assign(sensitivity=xr.full_like(group.sensitivity, np.nan))
    without = replaced(record, subnetworks=group.drop_vars(["sensitivity", "network"]) if absent else nothing)
    figure = draw_subnetworks(without)
    assert list(panels(figure)) == PANELS[:4]
    assert "whole network" not in [text.get_text() for text in figure.legends[0].get_texts()]
    assert "sensitivity" not in found_subnetworks(without)


def test_the_order_of_dimensions_and_the_types_do_not_matter():
    record = synthetic.parity_record()
    group = record["subnetworks"].to_dataset()
    turned = group.transpose("neuron", "network", "set", "split", "member", "step")
    turned = turned.assign(generalizing=turned.generalizing.astype(float), overlap=turned.overlap.astype(float))
    other = replaced(record, subnetworks=turned)
    assert found_subnetworks(record) == found_subnetworks(other)
    lines = [line(panels(draw_subnetworks(entry))[PANELS[1]], "control").get_ydata() for entry in (record, other)]
    np.testing.assert_array_equal(*lines)


def test_settings_are_told_apart_by_colour_and_sets_by_dashes():
    record = synthetic.sweep_record(settings=2, repeats=3)
    drawn = panels(draw_subnetworks(record))
    norm = record["subnetworks/norm"].values
    dashes, colours = set(), set()
    for label, members in (("weight_decay = 0.1", [0, 1, 2]), ("weight_decay = 0.05", [3, 4, 5])):
        for i, name in enumerate(SETS):
            entry = line(drawn[PANELS[0]], f"{name} {label}")
            np.testing.assert_allclose(entry.get_ydata(), norm[:, members, i].mean(axis=1))
            dashes.add((name, entry.get_linestyle()))
            colours.add((label, entry.get_color()))
        assert f"With {label}, of 200 neurons" in found_subnetworks(record)
    assert len(dashes) == 3
    assert len(colours) == 2


def test_runs_with_other_steps_and_other_widths_lie_over_one_another():
    wide, narrow = synthetic.parity_record(members=3), synthetic.parity_record(members=2, neurons=50)
    group = narrow["subnetworks"].to_dataset()
    narrow = replaced(narrow, subnetworks=group.isel(step=slice(0, None, 3)).assign_coords(step=lambda d: d.step + 1))
    joined = join_records({"wide": wide, "narrow": narrow})
    drawn = panels(draw_subnetworks(joined))
    for label, record in (("wide", wide), ("narrow", narrow)):
        expected = record["subnetworks"].to_dataset()
        control = line(drawn[PANELS[0]], f"control {label}")
        np.testing.assert_allclose(control.get_xdata(), expected.step / 32)
        np.testing.assert_allclose(control.get_ydata(), expected.norm.sel(set="control").mean("member"))
        overlap = line(drawn[PANELS[3]], f"generalizing {label}")
        np.testing.assert_allclose(overlap.get_ydata(), expected.overlap.mean("member"))
        assert f"{label}: {found_subnetworks(record)}" in found_subnetworks(joined)


def test_a_run_alone_in_its_group_is_named():
    sparse = replaced(synthetic.parity_record(members=2), subnetworks=None)
    joined = join_records({"first": sparse, "second": synthetic.parity_record(members=2)})
    figure = draw_subnetworks(joined)
    assert all(axes.get_title(loc="left").endswith(" (second)") for axes in figure.axes)
    assert found_subnetworks(joined).startswith("second: Of 200 neurons")


def awkward():
    full = synthetic.parity_record()
    group = full["subnetworks"].to_dataset()
    floats = {name: array for name, array in group.items() if "step" in array.dims}
    nothing = {name: xr.full_like(array, np.nan, dtype=float) for name, array in floats.items()}
    return {
        "all NaN": replaced(full, subnetworks=group.assign(nothing)),
        "one step": replaced(full, subnetworks=group.isel(step=[0])),
        "no steps": replaced(full, subnetworks=group.isel(step=[])),
        "one member": synthetic.parity_record(members=1),
        "no onsets": replaced(full, onset=None),
        "size 0": replaced(
            full,
            subnetworks=group.assign(
                size=group["size"] * 0,
                generalizing=group.generalizing & False,
                norm=group.norm.where(group.set == "complementary"),
            ),
        ),
        "only norms": replaced(full, subnetworks=group[["norm"]].assign_attrs(kind="SubnetworkComparison")),
        "median": replaced(full, subnetworks=group.assign_attrs(choose="median")),
        "two groups": replaced(full, second=group),
        "many settings": synthetic.sweep_record(8, 2),
    }


@pytest.mark.parametrize("name", list(awkward()))
def test_awkward_records_are_drawn_and_told(name):
    record = awkward()[name]
    figure = draw_subnetworks(record)
    figure.draw_without_rendering()
    found = found_subnetworks(record)
    assert not re.search(r"\bnan\b", found)
    expected = {
        "all NaN": "No subnetworks were compared.",
        "no steps": "No subnetworks were compared.",
        "one member": "Of 200 neurons, 7 are in the generalizing set. Its mean norm",
        "no onsets": "among the 10 with the largest norms: 7 (median; range 7 to 9) at the end.",
        "size 0": "Of 200 neurons, 0 for all 5 are in the generalizing set.",
        "only norms": "The size of the generalizing set is unknown.",
        "median": "are in the generalizing set, that of a measurement of median size.",
        "two groups": "second: Of 200 neurons",
        "many settings": "Over all 8 settings, of 200 neurons",
    }
    assert expected.get(name, "") in found
    if name == "no onsets":
        assert "memorisation" not in found


def test_a_record_without_a_comparison_is_refused():
    with pytest.raises(ValueError, match="SubnetworkComparison"):
        draw_subnetworks(replaced(synthetic.parity_record(), subnetworks=None))
