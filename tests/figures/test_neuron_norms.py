import re

import numpy as np
import pytest
import synthetic
import xarray as xr
from matplotlib.collections import LineCollection

from grok_lightning.figures import draw_neuron_norms, found_neuron_norms
from grok_lightning.figures.neuron_norms import MOST_LINES, dominant_neurons
from grok_lightning.records import join_records


def line(axes, label):
    [found] = [line for line in axes.get_lines() if line.get_label() == label]
    return found


def replaced(record, **groups):
    kept = {name: node.to_dataset() for name, node in record.children.items()}
    kept = {name: group for name, group in (kept | groups).items() if group is not None}
    return synthetic.record(kept, **record.attrs)


def test_dominant_neurons_are_those_planted():
    record = synthetic.parity_record()
    norm = record["neurons/norm"].values  # (T, 5, 200); 3 dominates while memorising, 7 in the end
    left, _ = draw_neuron_norms(record).axes
    np.testing.assert_allclose(line(left, "memorising").get_ydata(), norm[:, :, 3].mean(axis=1))
    np.testing.assert_allclose(line(left, "generalising").get_ydata(), norm[:, :, 7].mean(axis=1))
    np.testing.assert_allclose(line(left, "memorising").get_xdata(), np.arange(0, 301, 5))


def test_dominant_neurons_of_a_small_table():
    norm = np.array([[[1.0, 5.0, 2.0], [3.0, 2.0, 1.0]], [[9.0, 0.0, np.nan], [np.nan, np.nan, np.nan]]])
    steps = np.array([0, 10])
    assert dominant_neurons(norm, steps, np.array([4.0, 5.0])) == [1, 0]  # Half-way: the earlier one.
    assert dominant_neurons(norm, steps, np.array([6.0, 10.0])) == [0, None]
    assert dominant_neurons(norm, steps, np.array([np.nan, 0.0])) == [None, 0]
    assert dominant_neurons(norm[:0], steps[:0], np.array([0.0, 0.0])) == [None, None]


def test_found_tells_what_the_two_neurons_did():
    record = synthetic.parity_record()
    norm = record["neurons/norm"].values
    found = found_neuron_norms(record)
    rows = np.round(synthetic.MEMORISED / 5).astype(int)
    then, end = norm[rows, np.arange(5)], norm[-1]
    assert f"The norm of the memorising neuron fell from {np.median(then[:, 3]):.2f} (median;" in found
    assert f"at memorisation to {np.median(end[:, 3]):.2f} (median;" in found
    assert f"The norm of the generalising neuron rose from {np.median(then[:, 7]):.2f} (median;" in found
    assert "They are different neurons in each of 5 members." in found
    assert "96 % for all 5" in found  # All but the eight that grow, of 200.


def test_one_neuron_that_plays_both_roles_is_told_so():
    record = synthetic.parity_record()
    neurons = record["neurons"].to_dataset()
    neurons["norm"].loc[{"member": 2, "neuron": 11}] = 50.0
    assert "They are the same neuron in 1 of 5 members." in found_neuron_norms(replaced(record, neurons=neurons))
    neurons["norm"].loc[{"neuron": 11}] = 50.0
    assert "They are one and the same neuron in each of 5 members." in found_neuron_norms(
        replaced(record, neurons=neurons)
    )


def test_all_neurons_of_the_first_member_are_drawn():
    record = synthetic.parity_record()
    _, right = draw_neuron_norms(record).axes
    [lines] = [entry for entry in right.collections if isinstance(entry, LineCollection)]
    segments = np.stack(lines.get_segments())
    np.testing.assert_allclose(segments[:, :, 1], record["neurons/norm"].sel(member=0).values.T)
    assert right.get_title(loc="left") == "All 200 neurons of member 0 (seed 0)"
    assert right.get_ylim()[1] > segments[:, :, 1].max()
    assert line(right, "memorised").get_xdata()[0] == 27
    assert line(right, "generalised").get_xdata()[0] == 125


def test_of_too_many_neurons_a_fair_part_is_drawn_and_the_title_says_so():
    neurons = 2 * MOST_LINES + 100
    _, right = draw_neuron_norms(synthetic.parity_record(members=2, neurons=neurons)).axes
    [lines] = [entry for entry in right.collections if isinstance(entry, LineCollection)]
    assert len(lines.get_segments()) == MOST_LINES
    assert f"{MOST_LINES} of {neurons} neurons" in right.get_title(loc="left").replace("\n", " ")


def test_members_of_different_settings_are_never_averaged():
    record = synthetic.sweep_record(settings=2, repeats=3)
    left, right = draw_neuron_norms(record).axes
    norm = record["neurons/norm"].values[:, :, 7]
    for label, members in (("weight_decay = 0.1", [0, 1, 2]), ("weight_decay = 0.05", [3, 4, 5])):
        np.testing.assert_allclose(line(left, f"generalising {label}").get_ydata(), norm[:, members].mean(axis=1))
    assert "weight_decay 0.1" in right.get_title(loc="left").replace("\n", " ")


def test_runs_with_other_steps_and_other_widths_lie_over_one_another():
    narrow = synthetic.parity_record(members=2, neurons=50)
    neurons = narrow["neurons"].to_dataset().isel(step=slice(0, None, 3))
    narrow = replaced(narrow, neurons=neurons.assign_coords(step=neurons.step + 1))
    wide = synthetic.parity_record(members=3)
    joined = join_records({"narrow": narrow, "wide": wide})
    left, right = draw_neuron_norms(joined).axes
    for label, record in (("narrow", narrow), ("wide", wide)):
        group = record["neurons"].to_dataset()
        for role, neuron in (("memorising", 3), ("generalising", 7)):
            drawn = line(left, f"{role} {label}")
            np.testing.assert_allclose(drawn.get_xdata(), group.step / 32)
            np.testing.assert_allclose(drawn.get_ydata(), group.norm.sel(neuron=neuron).mean("member"))
        assert f"{label}: {found_neuron_norms(record)}" in found_neuron_norms(joined)
    [lines] = [entry for entry in right.collections if isinstance(entry, LineCollection)]
    segments = np.stack(lines.get_segments())
    np.testing.assert_allclose(segments[:, :, 0], np.tile(neurons.step / 32 + 1 / 32, (50, 1)))
    np.testing.assert_allclose(segments[:, :, 1], neurons.norm.sel(member=0).values.T)
    assert right.get_title(loc="left").replace("\n", " ") == "All 50 neurons of member 0 (run narrow, seed 0)"


def test_each_tracked_layer_gets_a_row():
    record = synthetic.parity_record()
    neurons = record["neurons"].to_dataset()
    outgoing = neurons.assign_attrs(layer="network.fc2", weights="outgoing")
    two = replaced(record, second=outgoing)
    figure = draw_neuron_norms(two)
    figure.draw_without_rendering()
    assert len(figure.axes) == 4
    assert "network.fc2" in figure.axes[2].get_title(loc="left")
    assert figure.axes[0].get_ylabel().startswith("norm of incoming weights")
    assert figure.axes[2].get_ylabel().startswith("norm of outgoing weights")
    assert found_neuron_norms(two).startswith("neurons: ")


def test_members_that_did_not_memorise_have_no_memorising_neuron():
    record = synthetic.parity_record()
    onset = record["onset"].to_dataset()
    onset["step"].loc[{"event": "memorised", "member": [0, 4]}] = np.nan
    partly = replaced(record, onset=onset)
    norm = record["neurons/norm"].values
    np.testing.assert_allclose(
        line(draw_neuron_norms(partly).axes[0], "memorising").get_ydata(), norm[:, [1, 2, 3], 3].mean(axis=1)
    )
    assert "2 of 5 members did not memorise and have no memorising neuron." in found_neuron_norms(partly)
    onset["step"].loc[{"event": "memorised"}] = np.nan
    none = replaced(record, onset=onset)
    assert "No memorising neuron is shown, for none of the 5 members memorised." in found_neuron_norms(none)
    labels = [entry.get_label() for entry in draw_neuron_norms(none).axes[0].get_lines()]
    assert "memorising" not in labels
    assert "generalising" in labels


def test_the_generalising_neuron_of_members_that_did_not_generalise_is_told_to_be_just_the_largest():
    record = synthetic.parity_record()
    assert "did not generalise" not in found_neuron_norms(record)
    onset = record["onset"].to_dataset()
    onset["step"].loc[{"event": "generalised", "member": [0, 4]}] = np.nan
    assert "2 of 5 members did not generalise; for them" in found_neuron_norms(replaced(record, onset=onset))
    onset["step"].loc[{"event": "generalised"}] = np.nan
    assert "None of the 5 members generalised; for them" in found_neuron_norms(replaced(record, onset=onset))


def awkward():
    full = synthetic.parity_record()
    neurons = full["neurons"].to_dataset()
    return {
        "all NaN": replaced(full, neurons=neurons.assign(norm=xr.full_like(neurons.norm, np.nan))),
        "one step": replaced(full, neurons=neurons.isel(step=[0])),
        "no steps": replaced(full, neurons=neurons.isel(step=[])),
        "one member": synthetic.parity_record(members=1),
        "one neuron": replaced(full, neurons=neurons.isel(neuron=[0])),
        "no onsets": replaced(full, onset=None),
        "first member NaN": replaced(full, neurons=neurons.where(neurons.member > 0)),
        "all zero": replaced(full, neurons=neurons.assign(norm=neurons.norm * 0)),
    }


@pytest.mark.parametrize("name", list(awkward()))
def test_awkward_records_are_drawn_and_told(name):
    record = awkward()[name]
    figure = draw_neuron_norms(record)
    figure.draw_without_rendering()
    found = found_neuron_norms(record)
    assert not re.search(r"\bnan\b", found)
    expected = {
        "all NaN": "No norm was measured.",
        "no steps": "No norm was measured.",
        "one member": "They are different neurons.",
        "no onsets": "No memorising neuron is shown, for onsets were not looked for.",
    }
    assert expected.get(name, "") in found
    if name == "first member NaN":
        assert "member 1" in figure.axes[1].get_title(loc="left")


def test_a_record_without_norms_is_refused():
    with pytest.raises(ValueError, match="NeuronNormTracker"):
        draw_neuron_norms(replaced(synthetic.parity_record(), neurons=None))
