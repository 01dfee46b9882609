import re

import numpy as np
import pytest
import synthetic
import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg

from grok_lightning.figures import FIGURES, available, draw_curves, found_curves, groups_of_kind
from grok_lightning.figures.curves import (
    accuracy_at_memorisation,
    delay_sentence,
    last_accuracy,
    onset_sentences,
    swapped_share,
)
from grok_lightning.figures.reading import Clock, average, by_run, read_onsets, settings, values_at
from grok_lightning.figures.style import log_ticks, remove_caption, tick_text
from grok_lightning.figures.words import capital, decimals, listing, number, spread
from grok_lightning.records import join_records


def line(axes, label):
    [found] = [line for line in axes.get_lines() if line.get_label() == label]
    return found


def replaced(record, **groups):
    """The record with some groups replaced; None removes one."""
    kept = {name: node.to_dataset() for name, node in record.children.items()}
    kept = {name: group for name, group in (kept | groups).items() if group is not None}
    return synthetic.record(kept, **record.attrs)


def is_drawn(figure):
    figure.draw_without_rendering()
    return figure


def test_lines_are_the_means_over_members_and_the_band_is_one_population_standard_deviation():
    record = synthetic.parity_record()
    curves = record["curves"].to_dataset()
    accuracy, loss = draw_curves(record).axes
    for axes, name in ((accuracy, "accuracy"), (loss, "loss")):
        for split in ("train", "held_out"):
            drawn = line(axes, f"{name} {split}")
            expected = np.stack([curves[name].sel(split=split, member=member).values for member in range(5)])
            np.testing.assert_allclose(drawn.get_ydata(), expected.mean(axis=0), rtol=1e-12)
            np.testing.assert_allclose(drawn.get_xdata(), np.arange(301))
    [train_band, held_band] = accuracy.collections
    held = curves["accuracy"].sel(split="held_out").values
    top = held_band.get_paths()[0].vertices[:, 1].max()
    assert top == pytest.approx((held.mean(axis=1) + held.std(axis=1, ddof=0)).max())
    assert train_band.get_facecolor().tolist() != held_band.get_facecolor().tolist()


def test_each_member_is_drawn_behind_the_mean():
    record = synthetic.parity_record()
    accuracy, _ = draw_curves(record).axes
    drawn = [entry.get_ydata() for entry in accuracy.get_lines()]
    for split in ("train", "held_out"):
        for member in range(5):
            values = record["curves/accuracy"].sel(split=split, member=member).values
            assert any(len(ys) == len(values) and np.array_equal(ys, values) for ys in drawn)


def test_the_order_of_dimensions_does_not_matter():
    record = synthetic.parity_record()
    turned = replaced(record, curves=record["curves"].to_dataset().transpose("member", "split", "step"))
    first, second = (line(draw_curves(entry).axes[0], "accuracy held_out").get_ydata() for entry in (record, turned))
    np.testing.assert_array_equal(first, second)


def test_onsets_are_marked_at_the_median_with_their_range():
    accuracy, loss = draw_curves(synthetic.parity_record()).axes
    for axes in (accuracy, loss):
        assert line(axes, "memorised (5 of 5)").get_xdata()[0] == 27
        assert line(axes, "generalised (5 of 5)").get_xdata()[0] == 125
        spans = sorted((patch.get_x(), patch.get_x() + patch.get_width()) for patch in axes.patches)
        assert spans == [(20, 38), (118, 174)]


def test_step_0_has_a_place_on_the_time_axis():
    accuracy, _ = draw_curves(synthetic.parity_record()).axes
    to_pixels = accuracy.transData.transform
    zero, one, ten, hundred = (to_pixels((x, 0.5))[0] for x in (0, 1, 10, 100))
    assert np.isfinite(zero)
    assert zero == pytest.approx(accuracy.bbox.x0)
    assert zero < one < ten < hundred
    assert ten - one == pytest.approx(hundred - ten)  # Logarithmic from 1 on.
    assert "linear from 0 to 1" in accuracy.get_xlabel()
    assert "epoch of 32 steps" in accuracy.get_xlabel()


def test_a_first_measurement_within_the_first_epoch_is_told_as_a_step():
    record = synthetic.parity_record()
    curves = record["curves"].to_dataset()
    accuracy, _ = draw_curves(replaced(record, curves=curves.assign_coords(step=np.arange(301)))).axes
    assert "linear from 0 to step 1)" in accuracy.get_xlabel()


@pytest.mark.parametrize("steps_per_epoch", [0, 1], ids=["unknown", "a step is an epoch"])
def test_where_epochs_say_nothing_time_is_told_in_steps(steps_per_epoch):
    record = synthetic.parity_record()
    record.attrs["steps_per_epoch"] = steps_per_epoch
    figure = is_drawn(draw_curves(record))
    assert "optimizer step" in figure.axes[0].get_xlabel()
    assert line(figure.axes[0], "accuracy train").get_xdata()[-1] == 9600
    assert "at step 864 (median; range 640 to 1216)" in found_curves(record)
    assert "epoch" not in found_curves(record)


def test_a_loss_of_exactly_0_is_drawn():
    record = synthetic.parity_record()
    assert (record["curves/loss"].values == 0).any()
    _, loss = is_drawn(draw_curves(record)).axes
    assert loss.get_yscale() == "symlog"
    low, high = loss.get_ylim()
    assert low < 0 < high
    assert abs(low) < 1e-3
    assert np.isfinite(loss.transData.transform((200, 0))).all()
    # The mean less a standard deviation is negative here; no member's loss is.
    values = record["curves/loss"].sel(split="train").values
    assert (values.mean(axis=1) - values.std(axis=1)).min() < 0
    assert min(path.vertices[:, 1].min() for band in loss.collections for path in band.get_paths()) == 0


def test_a_loss_that_hardly_changes_has_a_linear_axis_and_one_without_zeros_a_logarithmic_one():
    record = synthetic.parity_record()
    curves = record["curves"].to_dataset()
    flat = replaced(record, curves=curves.assign(loss=curves.loss * 0 + 0.7))
    assert is_drawn(draw_curves(flat)).axes[1].get_yscale() == "linear"
    positive = replaced(record, curves=curves.assign(loss=curves.loss + 1e-11))
    assert is_drawn(draw_curves(positive)).axes[1].get_yscale() == "log"


def test_members_of_different_settings_are_never_averaged():
    record = synthetic.sweep_record(settings=2, repeats=3)
    accuracy, _ = is_drawn(draw_curves(record)).axes
    held = record["curves/accuracy"].sel(split="held_out").values  # (T, 6); the first three have decay 0.1
    for label, members in (("weight_decay = 0.1", [0, 1, 2]), ("weight_decay = 0.05", [3, 4, 5])):
        drawn = line(accuracy, f"accuracy held_out {label}")
        np.testing.assert_allclose(drawn.get_ydata(), held[:, members].mean(axis=1))
    found = found_curves(record)
    assert "With weight_decay = 0.1, all 3 members memorised" in found
    assert "With weight_decay = 0.05, all 3 members memorised" in found


def test_many_settings_get_a_scale_of_colours_instead_of_names():
    record = synthetic.sweep_record(settings=12, repeats=2)
    figure = is_drawn(draw_curves(record))
    assert len(figure.axes) == 3
    assert figure.axes[2].get_ylabel() == "weight_decay"
    colours = {entry.get_color() for entry in figure.axes[0].get_lines()}
    assert len(colours) == 12
    assert "With 12 settings, only their means are drawn." in found_curves(record)


def test_settings_know_seeds_from_other_coordinates():
    group = synthetic.sweep_record(settings=3, repeats=2)["curves"].to_dataset()
    found = settings(group)
    assert [setting.label for setting in found] == ["weight_decay = 0.025", "weight_decay = 0.05", "weight_decay = 0.1"]
    assert [setting.members.tolist() for setting in found] == [[4, 5], [2, 3], [0, 1]]
    one = group.assign_coords(init_seed=("member", np.arange(6))).drop_vars("weight_decay")
    assert [setting.label for setting in settings(one)] == [""]
    words = group.assign_coords(weight_decay=("member", np.array([None, "a", 1, "a", None, 1], dtype=object)))
    assert [setting.members.tolist() for setting in settings(words)] == [[0, 4], [1, 3], [2, 5]]


def joined_with_other_steps():
    """Two runs, the second measured at other steps and for longer, and their record of both."""
    first, second = synthetic.parity_record(), synthetic.parity_record(members=2, epochs=400)
    curves = second["curves"].to_dataset().isel(step=slice(0, None, 7))
    second = replaced(second, curves=curves.assign_coords(step=curves.step + 5 * (curves.step > 0)))
    runs = {"first": first, "second": second}
    return runs, join_records(runs)


def test_each_run_of_a_joined_record_is_drawn_through_its_own_measurements():
    runs, joined = joined_with_other_steps()
    figure = is_drawn(draw_curves(joined))
    for label, record in runs.items():
        curves = record["curves"].to_dataset()
        for axes, name in zip(figure.axes, ("accuracy", "loss"), strict=True):
            drawn = line(axes, f"{name} train {label}")
            np.testing.assert_allclose(drawn.get_xdata(), curves.step / 32)
            np.testing.assert_allclose(drawn.get_ydata(), curves[name].sel(split="train").mean("member"))
            members = [entry.get_ydata() for entry in axes.get_lines()]
            for member in range(curves.sizes["member"]):
                values = curves[name].sel(split="held_out", member=member).values
                assert any(np.array_equal(values, entry) for entry in members)
    assert [text.get_text() for text in figure.legends[0].get_texts()][:2] == ["first (5)", "second (2)"]


def test_what_is_found_in_a_joined_record_is_what_was_found_in_each_run():
    runs, joined = joined_with_other_steps()
    found = found_curves(joined)
    assert "In first, all 5 members memorised, at epoch 27 (median; range 20 to 38); all 5" in found
    assert "In second, all 2 members memorised, at epoch 23.5 (median; range 20 to 27); all 2" in found
    for label, record in runs.items():
        alone = found_curves(record)
        assert f"{label}: {alone[alone.index('Held-out') :]}" in found


def test_runs_are_settings_named_by_their_run_and_by_what_else_differs():
    sweep = synthetic.sweep_record(settings=2, repeats=2)
    three = join_records({"z": synthetic.parity_record(members=2), "a": sweep, "m": synthetic.parity_record(members=1)})
    found = settings(three["curves"].to_dataset())
    assert [setting.label for setting in found] == ["z", "a, weight_decay = 0.05", "a, weight_decay = 0.1", "m"]
    assert [setting.members.tolist() for setting in found] == [[0, 1], [4, 5], [2, 3], [6]]
    assert [setting.opening for setting in found][:2] == ["In z, ", "In a, weight_decay = 0.05, "]
    [alone] = settings(join_records({"z": sweep})["curves"].to_dataset().isel(member=[0]))
    assert alone.label == "z"


def test_a_joined_group_is_taken_apart_into_what_the_runs_had():
    runs, joined = joined_with_other_steps()
    parts = by_run(joined["curves"].to_dataset())
    assert list(parts) == ["first", "second"]
    for label, part in parts.items():
        original = runs[label]["curves"].to_dataset()
        assert set(part.coords) == set(original.coords)
        np.testing.assert_array_equal(part.step, original.step)
        for name in ("loss", "accuracy"):
            np.testing.assert_array_equal(part[name].transpose(*original[name].dims), original[name])
    alone = runs["first"]["curves"].to_dataset()
    assert list(by_run(alone)) == [""]


def test_onsets_that_were_not_looked_for_are_not_told_as_not_happened():
    without = replaced(synthetic.parity_record(members=2), onset=None)
    joined = join_records({"with": synthetic.parity_record(members=3), "without": without})
    assert read_onsets(joined, np.array([3, 4])) is None
    found = found_curves(joined)
    assert "In with, all 3 members memorised" in found
    assert "In without" not in found
    is_drawn(draw_curves(joined))


def test_values_at_are_those_of_the_nearest_measurement_of_each_member():
    values = np.array([[1.0, np.nan], [np.nan, 2.0], [3.0, np.nan], [np.nan, 4.0]])
    steps = np.array([0, 10, 20, 30])
    np.testing.assert_array_equal(values_at(values, steps, np.array([10.0, 20.0])), [1, 2])  # Half-way: the earlier.
    np.testing.assert_array_equal(values_at(values, steps, np.array([11.0, 99.0])), [3, 4])
    np.testing.assert_array_equal(values_at(values, steps, np.array([np.nan, -5.0])), [np.nan, 2])
    np.testing.assert_array_equal(values_at(values[:0], steps[:0], np.array([0.0, 0.0])), [np.nan, np.nan])


def test_accuracy_against_uncorrupted_labels_is_drawn_where_it_was_measured():
    record = synthetic.parity_record()
    curves = record["curves"].to_dataset()
    noisy = replaced(record, curves=curves.assign(true_accuracy=curves.accuracy * 0.9))
    accuracy, _ = is_drawn(draw_curves(noisy)).axes
    expected = 0.9 * curves.accuracy.sel(split="train").values.mean(axis=1)
    np.testing.assert_allclose(line(accuracy, "true_accuracy train").get_ydata(), expected)


# ---- rows whose swap was trained on ----------------------------------------------------------------------------------


def test_the_baseline_of_commutativity_is_the_median_share_of_held_out_rows_whose_swap_was_trained_on():
    record = synthetic.modular_record()
    curves = record["curves"].to_dataset()
    accuracy, loss = is_drawn(draw_curves(record)).axes
    share = 1 - curves.unpaired_share.values[0]
    assert np.ptp(share) > 0.005
    baseline = line(accuracy, "accuracy baseline")
    assert set(baseline.get_ydata()) == {np.median(share)}
    assert baseline.get_linestyle() == "--"
    unpaired = line(accuracy, "accuracy held_out_unpaired")
    np.testing.assert_allclose(unpaired.get_ydata(), curves.accuracy.sel(split="held_out_unpaired").mean("member"))
    assert unpaired.get_linestyle() == ":"
    assert unpaired.get_linewidth() < line(accuracy, "accuracy held_out").get_linewidth()
    assert not [entry for entry in loss.get_lines() if "unpaired" in str(entry.get_label())]
    key = [text.get_text() for text in draw_curves(record).legends[0].get_texts()]
    assert {"held-out, swap held out too", "share with swap trained on"} <= set(key)
    found = found_curves(record)
    assert "a share of 0.300 (median; range 0.296 to 0.303) has its swap (b, a) among the rows trained on" in found
    assert "where labels are those of a commutative operation" in found
    assert "whose swap was held out too, accuracy at step 12000 was" in found


def test_each_setting_has_a_baseline_of_its_own():
    share = [0.3, 0.3, 0.6, 0.6]
    record = synthetic.modular_record(members=4, coordinates={"train_fraction": share})
    curves = record["curves"].to_dataset()
    known = xr.zeros_like(curves.unpaired_share) + 1 - xr.DataArray(share, dims="member")
    accuracy, _ = is_drawn(draw_curves(replaced(record, curves=curves.assign(unpaired_share=known)))).axes
    for value in (0.3, 0.6):
        drawn = line(accuracy, f"accuracy baseline train_fraction = {value}")
        np.testing.assert_allclose(drawn.get_ydata(), value)


def test_nothing_is_said_of_swapped_rows_where_there_are_none():
    full = synthetic.modular_record(share=1.0, members=2)
    joined = join_records(
        {"modular": synthetic.modular_record(members=2), "parity": synthetic.parity_record(members=2)}
    )
    for record in (full, synthetic.parity_record()):
        labels = [str(entry.get_label()) for entry in is_drawn(draw_curves(record)).axes[0].get_lines()]
        assert not [label for label in labels if "baseline" in label or "unpaired" in label]
        assert "swap" not in found_curves(record)
        assert not re.search(r"\bnan\b", found_curves(record))
    assert np.isnan(swapped_share(full["curves"].to_dataset())).all()
    labels = [str(entry.get_label()) for entry in is_drawn(draw_curves(joined)).axes[0].get_lines()]
    assert "accuracy baseline modular" in labels
    assert "accuracy baseline parity" not in labels
    assert "swap" not in found_curves(joined).split("parity: ")[1]


def test_two_kinds_of_thin_line_are_told_apart():
    record = synthetic.modular_record(members=4, coordinates={"weight_decay": [1.0, 1.0, 2.0, 2.0]})
    curves = record["curves"].to_dataset()
    noisy = replaced(record, curves=curves.assign(true_accuracy=curves.accuracy * 0.9))
    accuracy, _ = is_drawn(draw_curves(noisy)).axes
    names = ("accuracy held_out_unpaired", "true_accuracy train", "accuracy held_out", "accuracy baseline")
    assert len({line(accuracy, f"{name} weight_decay = 1").get_linestyle() for name in names}) == 4


def test_an_accuracy_axis_has_room_for_the_baseline():
    record = synthetic.modular_record(members=2)
    curves = record["curves"].to_dataset().sel(step=[12000])
    low, _ = is_drawn(draw_curves(replaced(record, curves=curves))).axes[0].get_ylim()
    assert low < 0.29


# ---- words -----------------------------------------------------------------------------------------------------------


def test_found_tells_onsets_and_accuracies_as_counted_by_hand():
    record = synthetic.parity_record()
    found = found_curves(record)
    assert "All 5 members memorised, at epoch 27 (median; range 20 to 38)." in found
    assert "All 5 members generalised, at epoch 125 (median; range 118 to 174)." in found
    assert "Held-out accuracy at epoch 300 (step 9600) was" in found
    # 125/27, 174/20, 118/38, 140/21, 123/35 = 4.63, 8.70, 3.11, 6.67, 3.51
    assert delay_sentence(record) == (
        "Generalising took 4.6 times as many steps as memorising (median of 5 members; range 3.1 to 8.7)."
    )


def test_found_counts_members_that_did_not_generalise():
    record = synthetic.parity_record()
    onset = record["onset"].to_dataset()
    onset["step"].loc[{"event": "generalised", "member": [1, 3]}] = np.nan
    censored = replaced(record, onset=onset)
    # Epochs 118, 123, 125 and two that are still without: a half of five is the third.
    assert (
        "3 of 5 members generalised by epoch 300 (step 9600); epoch by Kaplan-Meier: median 125 (quartiles 123 to not "
        "reached; 2 of 5 never did)." in found_curves(censored)
    )
    assert line(draw_curves(censored).axes[0], "generalised (3 of 5)").get_xdata()[0] == 125
    onset["step"].loc[{"event": "generalised", "member": 0}] = np.nan
    few = replaced(record, onset=onset)
    assert "by Kaplan-Meier: median not reached (quartiles 123 to not reached; 3 of 5 never did)" in found_curves(few)
    assert line(draw_curves(few).axes[0], "generalised, the first (2 of 5)").get_xdata()[0] == 118
    onset["step"].loc[{"event": "generalised"}] = np.nan
    never = replaced(record, onset=onset)
    assert "None of the 5 members generalised by epoch 300 (step 9600)." in onset_sentences(never)
    assert delay_sentence(never) == ""
    assert not [entry for entry in draw_curves(never).axes[0].get_lines() if "generalised" in str(entry.get_label())]


def test_found_speaks_of_a_single_member_in_the_singular():
    record = synthetic.parity_record(members=1)
    assert onset_sentences(record) == [
        "The member memorised at epoch 27 (step 864).",
        "The member generalised at epoch 125 (step 4000).",
    ]
    assert delay_sentence(record) == "Generalising took 4.6 times as many steps as memorising."
    onset = record["onset"].to_dataset()
    onset["step"].loc[{"event": "generalised"}] = np.nan
    assert "The member did not generalise by epoch 300 (step 9600)." in onset_sentences(replaced(record, onset=onset))
    onset["step"].loc[{"event": "forgotten"}] = 9000.0
    assert "The member forgot again, at epoch 281 (step 9000)." in onset_sentences(replaced(record, onset=onset))


def test_a_member_that_knew_all_at_step_0_has_no_delay_factor():
    record = synthetic.parity_record(members=2)
    onset = record["onset"].to_dataset()
    onset["step"].loc[{"event": "memorised", "member": 0}] = 0.0
    assert delay_sentence(replaced(record, onset=onset)) == "Generalising took 8.7 times as many steps as memorising."
    is_drawn(draw_curves(replaced(record, onset=onset)))


def warm(members=3, later=(), never=()):
    """Members that know all at step 0, but for some that get there later or never."""
    record = synthetic.parity_record(members=members)
    onset = record["onset"].to_dataset()
    onset["resolution"] = onset["resolution"] * 0
    for event in ("memorised", "generalised"):
        known = np.zeros(members)
        known[list(later)] = 640.0
        known[list(never)] = np.nan
        onset["step"].loc[{"event": event}] = known
    return replaced(record, onset=onset)


def test_what_a_warm_started_network_knew_is_not_told_as_an_onset():
    assert onset_sentences(warm()) == ["All 3 members had memorised and generalised from the start."]
    assert onset_sentences(warm(1)) == ["The member had memorised and generalised from the start."]
    assert onset_sentences(warm(3, later=[1]))[1] == (
        "All 3 members generalised, 2 of them from the start, the others at epoch 20 (step 640)."
    )
    assert onset_sentences(warm(3, never=[0]))[1] == (
        "2 of 3 members had generalised from the start, and 1 did not by epoch 300 (step 9600)."
    )
    assert (
        "2 of 3 members generalised by epoch 300 (step 9600), 1 of them from the start; epoch by Kaplan-Meier: "
        in (onset_sentences(warm(3, later=[1], never=[0]))[1])
    )
    for record in (warm(), warm(1), warm(3, later=[1]), warm(3, never=[0])):
        assert delay_sentence(record) in ("", "Generalising took 1.0 times as many steps as memorising.")
        assert "at memorisation was 0.5" not in found_curves(warm())
        is_drawn(draw_curves(record))
    assert "at memorisation" not in found_curves(warm())
    assert not [entry for entry in draw_curves(warm()).axes[0].get_lines() if "(3 of 3)" in str(entry.get_label())]


def test_forgetting_is_that_of_members_that_had_generalised():
    record = warm(5, never=[4])
    onset = record["onset"].to_dataset()
    onset["step"].loc[{"event": "forgotten"}] = [3200.0, 6400.0, 9600.0, np.nan, np.nan]
    told = onset_sentences(replaced(record, onset=onset))[-1]
    assert told == ("3 of 5 forgot again; epoch by Kaplan-Meier: median 200 (quartiles 100 to 300; 1 of 4 never did).")
    onset["step"].loc[{"event": "forgotten", "member": 3}] = 3200.0
    told = onset_sentences(replaced(record, onset=onset))[-1]
    assert told == "4 of 5 forgot again, at epoch 150 (median; range 100 to 300)."


def test_a_strip_without_onsets_takes_no_room():
    cold = synthetic.sweep_record(settings=2, repeats=2)
    onset = cold["onset"].to_dataset()
    knowing = replaced(cold, onset=onset.assign(step=onset.step.where(onset.event == "forgotten", 0.0)))
    tall, low = (is_drawn(draw_curves(record)) for record in (cold, knowing))
    assert low.get_figheight() < tall.get_figheight()
    assert "memorised" not in [text.get_text() for text in low.legends[0].get_texts()]


# ---- a training set that shrinks -------------------------------------------------------------------------------------


def shrunk(**options):
    return synthetic.size_sweep_record(sizes=(130,), decays=(1.0,), start="shrunk", **options)


def test_the_step_at_which_the_training_set_shrank_is_marked():
    accuracy, loss = is_drawn(draw_curves(shrunk())).axes
    for axes in (accuracy, loss):
        assert line(axes, "smaller training set (3 of 3)").get_xdata()[0] == 1200
        spans = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in axes.patches]
        assert (1000, 1400) in spans
    found = found_curves(shrunk())
    assert "The training set shrank from 961 to 130 rows at step 1200 (median; range 1000 to 1400)." in found
    key = [text.get_text() for text in draw_curves(shrunk()).legends[0].get_texts()]
    assert "smaller training set (3 of 3)" in key
    sweep = synthetic.size_sweep_record(start="shrunk")
    assert line(is_drawn(draw_curves(sweep)).axes[0], "smaller training set (30 of 30)").get_xdata()[0] == 1200
    assert "shrank from 961 to 60–300 rows" in found_curves(sweep)


def test_a_set_that_never_shrank_is_not_marked():
    record = shrunk()
    group = record["dataset_shrink"].to_dataset()
    some = replaced(record, dataset_shrink=group.assign(step=group.step.where(group.member > 0)))
    assert line(draw_curves(some).axes[0], "smaller training set (2 of 3)").get_xdata()[0] == 1300
    assert "The training set of 2 of 3 members shrank" in found_curves(some)
    for without in (None, group.assign(step=group.step * np.nan), group.drop_vars("step")):
        never = replaced(record, dataset_shrink=without)
        assert not [e for e in is_drawn(draw_curves(never)).axes[0].get_lines() if "smaller" in str(e.get_label())]
        assert "shrank" not in found_curves(never)
    bare = replaced(record, dataset_shrink=group[["step"]].assign_attrs(group.attrs))
    assert "The training set shrank at step 1200" in found_curves(bare)


def test_accuracy_on_rows_removed_and_never_seen_is_drawn_in_one_setting_and_told():
    record = shrunk()
    curves = record["curves"].to_dataset()
    curves["accuracy"].loc[{"split": "held_out_never_seen"}] = 0.25 + 0 * curves.accuracy.sel(split="held_out").values
    both = replaced(record, curves=curves)
    accuracy, loss = is_drawn(draw_curves(both)).axes
    removed, never_seen = (line(accuracy, f"accuracy held_out_{part}") for part in ("removed", "never_seen"))
    np.testing.assert_allclose(never_seen.get_ydata(), 0.25)
    assert removed.get_xdata()[0] >= 1000
    assert removed.get_linewidth() < line(accuracy, "accuracy held_out").get_linewidth()
    assert not [entry for entry in loss.get_lines() if "removed" in str(entry.get_label())]
    assert {"rows removed", "rows never seen"} <= {t.get_text() for t in draw_curves(both).legends[0].get_texts()}
    assert "On the rows removed, accuracy at step 16400 was" in found_curves(both)
    assert "On the rows never seen, accuracy at step 16400 was 0.25 for all 3." in found_curves(both)
    labels = [str(entry.get_label()) for entry in draw_curves(shrunk()).axes[0].get_lines()]
    assert "accuracy held_out_never_seen" not in labels
    assert "rows never seen" not in found_curves(shrunk())
    sweep = synthetic.size_sweep_record(sizes=(60, 300), start="shrunk")
    labels = [str(entry.get_label()) for entry in draw_curves(sweep).axes[0].get_lines()]
    assert not [label for label in labels if "removed" in label]


def test_accuracy_at_memorisation_is_that_of_the_nearest_measurement():
    record = synthetic.parity_record()
    curves = record["curves"].to_dataset().isel(step=slice(0, None, 10))  # epochs 0, 10, 20, ...
    held = curves.accuracy.sel(split="held_out").values
    nearest = [3, 2, 4, 2, 3]  # epochs 27, 20, 38, 21 and 35, of which the last lies half-way: the earlier one
    expected = [held[row, member] for member, row in enumerate(nearest)]
    np.testing.assert_array_equal(accuracy_at_memorisation(record, curves), expected)


def test_onsets_are_matched_by_member_not_by_position():
    record = synthetic.parity_record()
    onset = record["onset"].to_dataset().isel(member=[4, 2, 0])
    partial = replaced(record, onset=onset)
    curves = record["curves"].to_dataset()
    expected = accuracy_at_memorisation(record, curves)
    expected[[1, 3]] = np.nan
    np.testing.assert_array_equal(accuracy_at_memorisation(partial, curves), expected)


def test_last_accuracy_is_that_of_the_last_step_measured():
    curves = synthetic.parity_record()["curves"].to_dataset()
    curves["accuracy"].loc[{"split": "held_out", "step": curves.step[-3:]}] = np.nan
    values, step = last_accuracy(curves, "held_out")
    assert step == 297 * 32
    np.testing.assert_array_equal(values, curves.accuracy.sel(split="held_out", step=297 * 32).values)


def test_average_leaves_out_nan_and_warns_of_nothing():
    values = np.array([[1.0, 3.0, np.nan], [np.nan, np.nan, np.nan], [2.0, np.inf, 4.0]])
    mean, deviation = average(values)
    np.testing.assert_array_equal(mean, [2.0, np.nan, 3.0])
    np.testing.assert_array_equal(deviation, [1.0, np.nan, 1.0])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.01, "0.01"),
        (27.0, "27"),
        (27.5, "27.5"),
        (9600.0, "9600"),
        (12345.6, "12346"),
        (np.int64(3), "3"),
        ("a", "a"),
    ],
)
def test_numbers_in_words(value, text):
    assert number(value) == text


def test_decimals_never_round_a_miss_to_perfection():
    assert [decimals(value) for value in (1.0, 0.998, 0.5, 0.0, 0.001)] == ["1.00", "0.998", "0.50", "0.00", "0.001"]


def test_clauses_are_listed():
    assert [listing(words) for words in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == ["", "a", "a and b", "a, b and c"]
    assert [capital(text) for text in ("", "a b", "A")] == ["", "A b", "A"]


def test_spread_and_clock():
    assert spread([3.0]) == "3"
    assert spread([1.0, 2.0, 10.0]) == "2 (median; range 1 to 10)"
    assert Clock(32).at(864) == "epoch 27 (step 864)"
    assert Clock(32).at(16) == "epoch 0.5 (step 16)"
    assert Clock(0).at(864) == "step 864"


def test_ticks():
    assert log_ticks(1, 300) == [1, 10, 100]
    assert log_ticks(200, 900) == [200, 500]
    assert log_ticks(7, 7) == [7]
    assert [tick_text(value) for value in (0, 1, 0.5, 1000, 1e5, 1e-4)] == [
        "0",
        "1",
        "0.5",
        "1000",
        "$10^{5}$",
        "$10^{-4}$",
    ]


# ---- awkward records -------------------------------------------------------------------------------------------------


def awkward():
    full = synthetic.parity_record()
    curves = full["curves"].to_dataset()
    nothing = xr.full_like(curves.accuracy, np.nan)
    no_held_out = curves.where(curves.split == "train")
    return {
        "all NaN": replaced(full, curves=curves.assign(accuracy=nothing, loss=nothing)),
        "no held-out rows": replaced(full, curves=no_held_out.assign_attrs(curves.attrs)),
        "one step": replaced(full, curves=curves.isel(step=[0])),
        "one late step": replaced(full, curves=curves.isel(step=[7])),
        "no steps": replaced(full, curves=curves.isel(step=[])),
        "one member": synthetic.parity_record(members=1),
        "no onsets": replaced(full, onset=None),
        "train only": replaced(full, curves=curves.sel(split=["train"])),
        "step 0 not measured": replaced(full, curves=curves.isel(step=slice(1, None))),
        "one diverged": replaced(full, curves=curves.where((curves.member != 2) | (curves.step < 3200), np.nan)),
    }


@pytest.mark.parametrize("name", list(awkward()))
def test_awkward_records_are_drawn_and_told(name):
    record = awkward()[name]
    is_drawn(draw_curves(record))
    found = found_curves(record)
    assert not re.search(r"\bnan\b", found)
    expected = {
        "all NaN": "Held-out accuracy was not measured.",
        "no held-out rows": "Held-out accuracy was not measured.",
        "one step": "Training accuracy at epoch 0 (step 0) was",
        "one late step": "Training accuracy at epoch 7 (step 224) was",
        "no steps": "Training accuracy was not measured.",
        "no onsets": "Onsets were not looked for.",
        "train only": "Held-out accuracy was not measured.",
    }
    assert expected.get(name, "") in found


def test_a_record_without_learning_curves_is_refused_and_not_offered():
    record = replaced(synthetic.parity_record(), curves=None)
    with pytest.raises(ValueError, match="LearningCurves"):
        draw_curves(record)
    assert [spec.name for spec in available(record)] == ["effective_sparsity", "subnetworks", "neuron_norms"]
    assert available(synthetic.record({})) == ()


def test_groups_are_found_by_kind_and_not_by_name():
    record = synthetic.parity_record()
    renamed = synthetic.record({"odd_name": record["curves"].to_dataset(), "curves": record["onset"].to_dataset()})
    assert list(groups_of_kind(renamed, "LearningCurves")) == ["odd_name"]
    assert list(groups_of_kind(renamed, "Onset")) == ["curves"]
    assert [spec.name for spec in available(renamed)] == ["curves"]
    assert len(draw_curves(renamed).axes) == 2


def test_several_groups_of_curves_get_a_row_each():
    record = synthetic.parity_record()
    curves = record["curves"].to_dataset()
    figure = is_drawn(draw_curves(synthetic.record({"first": curves, "second": curves})))
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["Accuracy (first)", "Loss (first)", "Accuracy (second)", "Loss (second)"]


def test_captions_say_how_to_read_and_what_was_found():
    drawn = set()
    for record in (synthetic.parity_record(), synthetic.modular_record(members=2), synthetic.size_sweep_record()):
        for spec in available(record):
            caption = spec.draw(record).get_supxlabel().replace("\n", " ")
            assert caption == f"{spec.how_to_read} {spec.found(record)}"
            drawn.add(spec)
    assert drawn == set(FIGURES)


def test_taking_the_caption_away_takes_its_room_away():
    figure = draw_curves(synthetic.parity_record())
    tall, panel = figure.get_figheight(), is_drawn(figure).axes[0].bbox.height
    remove_caption(figure)
    remove_caption(figure)
    assert figure.get_supxlabel() == ""
    assert figure.get_figheight() < tall - 0.5
    assert is_drawn(figure).axes[0].bbox.height == pytest.approx(panel, rel=0.1)


def test_nothing_overlaps_in_the_figures():
    joined = joined_with_other_steps()[1]
    sizes = synthetic.size_sweep_record(decays=(0, 0.3, 1, 3), eps=(1e-8, 1e-6), boxed=(3,), seeds=1)
    records = synthetic.parity_record(), synthetic.sweep_record(), synthetic.sweep_record(12, 2), joined
    for record in (*records, shrunk(), sizes):
        for spec in available(record):
            figure = spec.draw(record)
            canvas = FigureCanvasAgg(figure)
            canvas.draw()
            renderer = canvas.get_renderer()
            width, height = figure.bbox.width, figure.bbox.height
            [legend] = figure.legends
            box = legend.get_window_extent(renderer)
            assert box.x0 >= 0
            assert box.x1 <= width
            assert box.y1 <= height
            for axes in figure.axes:
                panel = axes.get_tightbbox(renderer)
                assert not box.overlaps(panel)
                assert panel.x0 >= -1
                assert panel.x1 <= width + 1
            assert figure._supxlabel.get_window_extent(renderer).x1 <= width


def test_of_networks_that_were_warm_started_it_is_not_told_whether_they_generalised():
    record = synthetic.size_sweep_record()
    assert any("generalised" in sentence for sentence in onset_sentences(record))
    record.attrs["warm_start_path"] = "runs/before/version_0/checkpoints/last.ckpt"
    sentences = onset_sentences(record)
    assert sentences[0] == "Members began with the weights of another run."
    assert not any("generalised" in sentence or "forgot" in sentence for sentence in sentences)


def test_the_share_of_trained_swaps_is_drawn_over_time_where_rows_are_taken_away():
    record = synthetic.modular_record()
    name, group = next(iter(groups_of_kind(record, "LearningCurves").items()))

    def baselines(record):
        panel = draw_curves(record).axes[0]
        return [line for line in panel.lines if "accuracy baseline" in str(line.get_label())]

    assert all(len(set(line.get_ydata())) == 1 for line in baselines(record))
    share = group["unpaired_share"].transpose("step", "member").copy()
    half = len(share) // 2
    share[half:] = 0.9
    record[name] = xr.DataTree(group.assign(unpaired_share=share))
    (line,) = baselines(record)
    values = np.asarray(line.get_ydata())
    assert values[-1] == pytest.approx(0.1)
    assert values[0] == pytest.approx(1 - float(share[0].median()))
