import re

import numpy as np
import pytest
import synthetic

from grok_lightning.figures import draw_circuits, found_circuits
from grok_lightning.figures.circuits import rise_while_falling, smooth


def line(axes, label):
    [found] = [line for line in axes.get_lines() if line.get_label() == label]
    return found


def replaced(record, **groups):
    kept = {name: node.to_dataset() for name, node in record.children.items()}
    kept = {name: group for name, group in (kept | groups).items() if group is not None}
    return synthetic.record(kept, **record.attrs)


def panels(figure):
    return {axes.get_title(loc="left"): axes for axes in figure.axes}


def test_every_curve_stands_beside_what_a_lookup_table_would_give():
    record = synthetic.modular_record()
    group = record["fourier"].to_dataset()
    drawn = panels(draw_circuits(record))
    share, logit = group.train_share.values, group.correct.sel(rows="train").values
    logits = {
        "trigonometric": group.trigonometric.sel(over="all").values,
        "trigonometric_held_out": group.trigonometric.sel(over="held_out").values,
        "memorising": group.memorising.sel(rows="train").values,
        "table_trigonometric": share * logit,
        "table_memorising": (1 - share) * logit,
    }
    shares = {
        "trigonometric": group.share.sel(over="all").values,
        "trigonometric_held_out": group.share.sel(over="held_out").values,
        "table_trigonometric": np.sqrt(share),
    }
    wrong = {"memorising_wrong": group.memorising_wrong.sel(rows="held_out").values}
    norm = {"norm": record["parameter_norm/total"].values}
    for title, curves in (
        ("Correct logits", logits),
        ("Trigonometric share", shares),
        ("Clean-up on held-out rows", wrong),
        ("Norm of all parameters", norm),
    ):
        for name, values in curves.items():
            np.testing.assert_allclose(line(drawn[title], name).get_ydata(), values.mean(axis=1))
    for name in ("trigonometric", "memorising"):
        table, own = line(drawn["Correct logits"], f"table_{name}"), line(drawn["Correct logits"], name)
        assert table.get_color() == own.get_color()
        assert table.get_linestyle() == "--"
        assert table.get_linewidth() < own.get_linewidth()
    assert any(list(entry.get_ydata()) == [0.95, 0.95] for entry in drawn["Trigonometric share"].get_lines())


def test_a_lookup_table_lies_on_its_null_model_and_is_told_to():
    record = synthetic.modular_record()
    group = record["fourier"].to_dataset()
    share, table = group.train_share, group.correct.sel(rows="train")
    pure = group.assign(
        trigonometric=group.trigonometric.copy(), memorising=group.memorising.copy(), share=group.share.copy()
    )
    pure.trigonometric.loc[{"over": "all"}] = share * table
    pure.trigonometric.loc[{"over": "held_out"}] = 0.0
    pure.memorising.loc[{"rows": "train"}] = (1 - share) * table
    pure.share.loc[{"over": "all"}] = np.sqrt(share)
    found = found_circuits(replaced(record, fourier=pure))
    for what in ("trigonometric logit is", "on the rows trained on is"):
        value = re.search(rf"{what} ([\d.]+) .*?would give ([\d.]*\d)", found)
        assert value[1] == value[2]
    assert "norm is 0.55 for all 5, where it would give 0.55, and above 0.95 in 0 of 5 members." in found


def test_found_tells_what_was_measured_beside_the_table():
    record = synthetic.modular_record(members=1)
    group = record["fourier"].to_dataset()
    end = group.isel(step=-1, member=0)
    table = float(0.3 * end.correct.sel(rows="train"))
    trigonometric = [float(end.trigonometric.sel(over=over)) for over in ("all", "held_out")]
    found = found_circuits(record)
    table = f"where a lookup table of the same rows would give {table:.3g}"
    assert f"is {trigonometric[0]:.3g} from all rows, {table}" in found
    assert f"and {trigonometric[1]:.3g} from held-out rows, where it would give 0." in found
    assert "share of the logits' norm is 1.000, where it would give 0.55." in found
    assert f"wrong label is {float(end.memorising_wrong.sel(rows='held_out')):.3g}, in the mean over" in found
    norm = record["parameter_norm/total"].values
    assert f"The parameter norm is {norm[-1, 0]:.3g}, after {norm.max():.3g} at its highest." in found


def test_where_a_lookup_table_passes_the_filter_the_share_is_told_to_say_nothing():
    assert "for a lookup table's is too" in found_circuits(synthetic.modular_record(share=0.95))
    assert "for a lookup table's is too" not in found_circuits(synthetic.modular_record(share=0.85))


# ---- the interval in which both rise while the norm falls ------------------------------------------------------------

STEPS = np.array([0, *np.unique(np.round(10 ** np.arange(0, 4.01, 0.05)))])


def planted(rise, turn, fall):
    """Logits that rise after `rise`, of which the second falls from `turn` on; a norm that rises before `fall`."""
    x = np.log10(1 + STEPS)
    up = np.maximum(x - np.log10(1 + rise), 0.0)
    down = np.maximum(x - np.log10(1 + turn), 0.0)
    return up[:, None], (up - 2 * down)[:, None], -np.abs(x - np.log10(1 + fall))[:, None]


@pytest.mark.parametrize(
    ("rise", "turn", "fall", "start", "end"),
    [(100, 3000, 300, 300, 3000), (300, 3000, 100, 300, 3000), (10, 1000, 100, 100, 1000), (10, 100, 1000, None, None)],
)
def test_the_interval_begins_and_ends_where_it_was_planted(rise, turn, fall, start, end):
    logits = planted(rise, turn, fall)
    [interval] = rise_while_falling(*logits[:2], STEPS, logits[2], STEPS)
    if start is None:
        assert np.isnan(interval).all()
    else:  # Smoothing moves an edge by a tenth of a decade, and measurements lie half a tenth apart.
        np.testing.assert_allclose(np.log10(interval), np.log10([start, end]), atol=0.16)


def test_noise_on_a_plateau_is_no_interval():
    rng = np.random.default_rng(0)
    trigonometric, memorising, _ = planted(100, 3000, 300)
    noise = 0.002 * rng.standard_normal((3, len(STEPS), 1))
    flat = 10.0 - 3 * (STEPS[:, None] < 5)
    [interval] = rise_while_falling(trigonometric + noise[0], memorising + noise[1], STEPS, flat + noise[2], STEPS)
    assert np.isnan(interval).all()
    logits = planted(100, 3000, 300)
    rows = [values + 0.01 * part for values, part in zip(logits, noise / 0.002, strict=True)]
    [interval] = rise_while_falling(*rows[:2], STEPS, rows[2], STEPS)
    np.testing.assert_allclose(np.log10(interval), np.log10([300, 3000]), atol=0.15)


def test_members_are_taken_one_by_one_and_gaps_are_passed_over():
    first, second = planted(100, 3000, 300), planted(10, 100, 1000)
    trigonometric, memorising, norm = (np.concatenate(pair, axis=1) for pair in zip(first, second, strict=True))
    both = rise_while_falling(trigonometric, memorising, STEPS, norm, STEPS)
    assert np.isfinite(both[0]).all()
    assert np.isnan(both[1]).all()
    gaps = trigonometric.copy()
    gaps[::3] = np.nan
    [some, _] = rise_while_falling(gaps, memorising, STEPS, norm[::2], STEPS[::2])
    np.testing.assert_allclose(np.log10(some), np.log10(both[0]), atol=0.2)
    nothing = np.full_like(norm, np.nan)
    assert np.isnan(rise_while_falling(trigonometric, memorising, STEPS, nothing, STEPS)).all()
    assert np.isnan(rise_while_falling(trigonometric[:1], memorising[:1], STEPS[:1], norm, STEPS)).all()
    assert np.isnan(rise_while_falling(trigonometric[:0], memorising[:0], STEPS[:0], norm[:0], STEPS[:0])).all()


def test_nothing_is_said_of_steps_at_which_the_norm_was_not_measured():
    trigonometric, memorising, norm = planted(100, 3000, 300)
    early = STEPS <= 800
    [interval] = rise_while_falling(trigonometric, memorising, STEPS, norm[early], STEPS[early])
    assert interval[1] <= 800


def test_smoothing_keeps_rises_and_means():
    rng = np.random.default_rng(1)
    steps = np.unique(rng.integers(0, 10000, 400))
    rising = np.cumsum(rng.random(len(steps)))
    assert (np.diff(smooth(rising, steps)) > 0).all()
    np.testing.assert_allclose(smooth(np.full(len(steps), 3.0), steps), 3.0)
    np.testing.assert_array_equal(smooth(np.array([1.0, 5.0, 2.0]), np.array([0, 10, 1000])), [1.0, 5.0, 2.0])
    # By hand: two measurements 0.05 decades apart have weights 0.1 and 0.05.
    pair = np.array([99.0, 100 * 10**0.05 - 1])
    np.testing.assert_allclose(smooth(np.array([0.0, 3.0]), pair), [1.0, 2.0], rtol=1e-9)


def test_the_interval_is_marked_and_told():
    record = synthetic.modular_record()
    drawn = panels(draw_circuits(record))
    hatched = [[patch for patch in axes.patches if patch.get_hatch()] for axes in drawn.values()]
    assert [len(patches) for patches in hatched] == [1, 1, 0, 0]
    group, norm = record["fourier"].to_dataset(), record["parameter_norm"].to_dataset()
    logits = [group.trigonometric.sel(over="all").values, group.memorising.sel(rows="train").values]
    _, end = rise_while_falling(*logits, group.step.values, norm.total.values, norm.step.values).T
    told = f"to step {np.median(end):.0f} (median; range {end.min():.0f} to {end.max():.0f})."
    assert told in found_circuits(record)
    assert "In 5 of 5 members both logits rise while the norm falls, from step" in found_circuits(record)
    mean = [values.mean(axis=1)[:, None] for values in (*logits, norm.total.values)]
    [interval] = rise_while_falling(*mean[:2], group.step.values, mean[2], norm.step.values)
    box = hatched[0][0]
    assert [box.get_x(), box.get_x() + box.get_width()] == pytest.approx(list(interval))
    rising = norm.assign(total=norm.total * 0 + norm.step)
    never = replaced(record, parameter_norm=rising)
    assert "In no stretch of time do both logits rise while the norm falls." in found_circuits(never)
    assert not [patch for patch in draw_circuits(never).axes[0].patches if patch.get_hatch()]


def test_settings_have_bars_and_sentences_of_their_own():
    record = synthetic.modular_record(members=4, coordinates={"weight_decay": [1.0, 1.0, 0.5, 0.5]})
    norm = record["parameter_norm"].to_dataset()
    rising = norm.total.where(norm.weight_decay == 1, norm.step)
    mixed = replaced(record, parameter_norm=norm.assign(total=rising))
    axes = draw_circuits(mixed).axes[0]
    bars = [entry for entry in axes.get_lines() if entry.get_linewidth() == 3]
    colour = line(axes, "trigonometric weight_decay = 1").get_color()
    assert [entry.get_color() for entry in bars] == [colour]
    first, second = found_circuits(mixed).split("With weight_decay = 1, ")
    assert first.startswith("With weight_decay = 0.5, at the end the trigonometric logit is")
    assert "In no stretch" in first
    assert "In 2 of 2 members both logits rise" in second


def test_the_norm_is_that_of_the_same_members():
    record = synthetic.modular_record(members=3)
    norm = record["parameter_norm"].to_dataset()
    turned = replaced(record, parameter_norm=norm.isel(member=[2, 0, 1]))
    assert found_circuits(turned) == found_circuits(record)
    without = replaced(record, parameter_norm=None)
    assert "The parameter norm was not measured." in found_circuits(without)
    assert [text.get_text() for text in draw_circuits(without).axes[1].texts] == ["not measured"]
