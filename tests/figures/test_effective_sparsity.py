import re

import numpy as np
import pytest
import synthetic
import xarray as xr

from grok_lightning.figures import draw_effective_sparsity, found_effective_sparsity
from grok_lightning.figures.effective_sparsity import fall_steps, last_sizes
from grok_lightning.records import join_records


def line(axes, label):
    [found] = [line for line in axes.get_lines() if line.get_label() == label]
    return found


def replaced(record, **groups):
    kept = {name: node.to_dataset() for name, node in record.children.items()}
    kept = {name: group for name, group in (kept | groups).items() if group is not None}
    return synthetic.record(kept, **record.attrs)


def with_size(record, change):
    """The record, with its sizes changed by a function of the array."""
    group = record["sparse_subnetwork"].to_dataset()
    return replaced(record, sparse_subnetwork=group.assign(size=change(group["size"])))


def test_each_rule_has_a_panel_with_the_mean_over_members_and_their_band():
    record = synthetic.parity_record()
    size = record["sparse_subnetwork/size"]
    panels = draw_effective_sparsity(record).axes
    assert [axes.get_title(loc="left") for axes in panels] == [
        "Neurons for the same predictions",
        "Neurons for the same accuracy",
    ]
    for axes, rule in zip(panels, ["predictions", "accuracy"], strict=True):
        members = np.stack([size.sel(rule=rule, member=member).values for member in range(5)])
        np.testing.assert_allclose(line(axes, "size").get_ydata(), members.mean(axis=0))
        np.testing.assert_allclose(line(axes, "size").get_xdata(), np.arange(0, 301, 5))
        drawn = [entry.get_ydata() for entry in axes.get_lines()]
        assert all(any(np.array_equal(values, member) for values in drawn) for member in members)
        vertices = np.concatenate([path.vertices for band in axes.collections for path in band.get_paths()])
        assert vertices[:, 1].max() == pytest.approx((members.mean(axis=0) + members.std(axis=0, ddof=0)).max())
        # A mean less a deviation that is below every member cannot be drawn on a log axis.
        assert vertices[:, 1].min() >= members.min()
        assert line(axes, "memorised (5 of 5)").get_xdata()[0] == 27
        assert line(axes, "generalised (5 of 5)").get_xdata()[0] == 125


def test_a_thousand_neurons_and_seven_can_both_be_read():
    figure = draw_effective_sparsity(synthetic.parity_record(neurons=1000))
    figure.draw_without_rendering()
    for axes in figure.axes:
        assert axes.get_yscale() == "log"
        low, high = axes.get_ylim()
        assert low < 6
        assert high > 990
        assert [tick.get_text() for tick in axes.get_yticklabels()] == ["10", "100", "1000"]
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()


def test_a_size_of_0_is_drawn():
    record = with_size(synthetic.parity_record(members=2), lambda size: size.where(size.step > 0, 0.0))
    figure = draw_effective_sparsity(record)
    figure.draw_without_rendering()
    for axes in figure.axes:
        assert axes.get_yscale() == "symlog"
        assert line(axes, "size").get_ydata()[0] == 0
        assert np.isfinite(axes.transData.transform((0, 0))).all()
        assert axes.transData.transform((0, 0))[1] >= axes.bbox.y0
        assert "0" in [tick.get_text() for tick in axes.get_yticklabels()]


def test_the_order_of_dimensions_and_the_type_of_the_mask_do_not_matter():
    record = synthetic.parity_record()
    group = record["sparse_subnetwork"].to_dataset()
    turned = group.transpose("rule", "neuron", "member", "step").assign(active=group["active"].astype(np.int8))
    first, second = record, replaced(record, sparse_subnetwork=turned)
    lines = [line(draw_effective_sparsity(entry).axes[1], "size").get_ydata() for entry in (first, second)]
    np.testing.assert_array_equal(*lines)
    assert found_effective_sparsity(first) == found_effective_sparsity(second)


@pytest.mark.parametrize("rules", [["accuracy"], ["accuracy", "predictions"], ["predictions", "accuracy", "loss"]])
def test_there_are_as_many_panels_as_rules(rules):
    record = synthetic.parity_record(members=2)
    group = record["sparse_subnetwork"].to_dataset()
    size = group["size"].isel(rule=[0] * len(rules)).assign_coords(rule=rules)
    group = group.drop_vars(["size", "rule"]).assign(size=size)
    figure = draw_effective_sparsity(replaced(record, sparse_subnetwork=group))
    figure.draw_without_rendering()
    assert len([axes for axes in figure.axes if axes.axison]) == len(rules)


def test_last_sizes_are_medians_over_the_last_tenth_of_the_time():
    steps = np.array([0, 10, 50, 89, 90, 95, 100])
    size = np.array([[9, 1], [9, 1], [9, 1], [9, 1], [6, np.nan], [19, np.nan], [7, np.nan]], dtype=float)
    np.testing.assert_array_equal(last_sizes(size, steps), [7, np.nan])
    np.testing.assert_array_equal(last_sizes(size[:1], steps[:1]), [9, 1])
    np.testing.assert_array_equal(last_sizes(size[:0], steps[:0]), [np.nan, np.nan])


def test_a_size_fell_where_it_first_is_beyond_the_middle_on_a_log_scale():
    steps = np.array([0, 10, 20, 30, 40, 50])
    lucky = [3, 1000, 1000, 101, 99, 10]  # Small by luck before memorisation; 100 is the middle of 1000 and 10.
    never = [1000, 1000, 1000, 900, 600, 510]
    to_nothing = [1000, 1000, 1000, 32, 31, 0]  # The middle of 1000 and 0 is that of 1000 and 1: 31.6.
    size = np.array([lucky, never, to_nothing, lucky], dtype=float).T
    found = fall_steps(size, steps, np.array([10.0, 10.0, 10.0, np.nan]))
    np.testing.assert_array_equal(found, [40, np.nan, 40, np.nan])


def test_found_tells_sizes_and_the_time_of_the_fall_as_computed_from_the_record():
    record = synthetic.parity_record()
    size = record["sparse_subnetwork/size"].sel(rule="predictions").values
    rows = np.arange(5)
    found = found_effective_sparsity(record)
    # Measured at epochs 0, 5, 10, ...: 27, 20, 38, 21, 35 and 125, 174, 118, 140, 123 lie nearest to these.
    then = size[[5, 4, 8, 4, 7], rows]
    later = size[[25, 35, 24, 28, 25], rows]
    end = np.median(size[54:], axis=0)  # From epoch 270 on.
    assert f"Of 200 neurons, {then[0]:.0f} for all 5 at memorisation, " in found
    assert f"{np.median(later):g} (median; range {later.min():g} to {later.max():g}) at generalisation" in found
    assert f"{np.median(end):g} (median; range {end.min():g} to {end.max():g}) at the end give the predictions" in found
    fell = [5 * next(t for t in range(61) if size[t, m] <= np.sqrt(then[m] * end[m])) for m in range(5)]
    ratio = np.array(fell) / synthetic.GENERALISED
    assert f"came at epoch {np.median(fell):g} (median; range {min(fell)} to {max(fell)})" in found
    assert f"at {np.median(ratio):.2f} (median; range {ratio.min():.2f} to {ratio.max():.2f}) times" in found
    assert "At the end is each member's median from epoch 270 (step 8640) on" in found


def test_members_without_a_size_at_the_end_are_counted():
    record = with_size(synthetic.parity_record(), lambda size: size.where((size.member != 2) | (size.step < 5000)))
    assert "(1 of 5 undefined at the end)" in found_effective_sparsity(record)


def test_a_size_that_did_not_fall_is_told():
    record = with_size(synthetic.parity_record(), lambda size: size * 0 + 150)
    assert "it did not fall by half after memorisation" in found_effective_sparsity(record)


def test_members_of_different_settings_are_never_averaged():
    record = synthetic.sweep_record(settings=2, repeats=3)
    figure = draw_effective_sparsity(record)
    size = record["sparse_subnetwork/size"].sel(rule="predictions").values
    for label, members in (("weight_decay = 0.1", [0, 1, 2]), ("weight_decay = 0.05", [3, 4, 5])):
        np.testing.assert_allclose(line(figure.axes[0], f"size {label}").get_ydata(), size[:, members].mean(axis=1))
        assert f"With {label}, of 200 neurons" in found_effective_sparsity(record)
    assert [text.get_text() for text in figure.legends[0].get_texts()][:2] == [
        "weight_decay = 0.05 (3)",
        "weight_decay = 0.1 (3)",
    ]


def test_many_settings_share_a_scale_of_colours():
    record = synthetic.sweep_record(settings=8, repeats=2)
    figure = draw_effective_sparsity(record)
    assert [axes.get_ylabel() for axes in figure.axes] == ["neurons (log scale)", "neurons (log scale)", "weight_decay"]
    assert found_effective_sparsity(record).startswith("Over all 8 settings, of 200 neurons")


def test_runs_with_other_steps_and_other_widths_lie_over_one_another():
    wide, narrow = synthetic.parity_record(members=3), synthetic.parity_record(members=2, neurons=50)
    group = narrow["sparse_subnetwork"].to_dataset()
    narrow = replaced(
        narrow, sparse_subnetwork=group.isel(step=slice(0, None, 3)).assign_coords(step=lambda d: d.step + 1)
    )
    joined = join_records({"wide": wide, "narrow": narrow})
    axes = draw_effective_sparsity(joined).axes[0]
    for label, record in (("wide", wide), ("narrow", narrow)):
        expected = record["sparse_subnetwork"].to_dataset()
        drawn = line(axes, f"size {label}")
        np.testing.assert_allclose(drawn.get_xdata(), expected.step / 32)
        np.testing.assert_allclose(drawn.get_ydata(), expected["size"].sel(rule="predictions").mean("member"))
    found = found_effective_sparsity(joined)
    for label, record in (("wide", wide), ("narrow", narrow)):
        assert f"{label}: {found_effective_sparsity(record)}" in found
    assert "Of 50 neurons" in found


def awkward():
    full = synthetic.parity_record()
    group = full["sparse_subnetwork"].to_dataset()
    return {
        "all NaN": replaced(full, sparse_subnetwork=group.assign(size=xr.full_like(group["size"], np.nan))),
        "one step": replaced(full, sparse_subnetwork=group.isel(step=[0])),
        "no steps": replaced(full, sparse_subnetwork=group.isel(step=[])),
        "one member": synthetic.parity_record(members=1),
        "no onsets": replaced(full, onset=None),
        "no mask": replaced(full, sparse_subnetwork=group.drop_vars("active")),
        "all zero": replaced(full, sparse_subnetwork=group.assign(size=group["size"] * 0)),
        "one rule NaN": replaced(
            full, sparse_subnetwork=group.assign(size=group["size"].where(group.rule == "accuracy"))
        ),
        "two groups": replaced(full, second=group),
    }


@pytest.mark.parametrize("name", list(awkward()))
def test_awkward_records_are_drawn_and_told(name):
    record = awkward()[name]
    figure = draw_effective_sparsity(record)
    figure.draw_without_rendering()
    found = found_effective_sparsity(record)
    assert not re.search(r"\bnan\b", found)
    expected = {
        "all NaN": "How many neurons give the predictions of the whole network was not measured.",
        "no steps": "How many neurons give the accuracy of the whole network was not measured.",
        "one rule NaN": "How many neurons give the predictions of the whole network was not measured.",
        "one member": "Of 200 neurons, 198 at memorisation, ",
        "no onsets": "Of 200 neurons, 198 for all 5 at first and 7 ",
        "no mask": "In neurons, 198 for all 5 at memorisation",
        "all zero": "0 for all 5 at the end",
        "two groups": "second: Of 200 neurons",
    }
    assert expected.get(name, "") in found
    if name in ("all NaN", "one rule NaN"):
        assert "not measured" in [text.get_text() for text in figure.axes[0].texts]


def test_a_record_without_effective_sparsity_is_refused():
    with pytest.raises(ValueError, match="SparseSubnetworkExtractor"):
        draw_effective_sparsity(replaced(synthetic.parity_record(), sparse_subnetwork=None))
