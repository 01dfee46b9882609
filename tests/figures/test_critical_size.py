import re

import numpy as np
import pytest
import synthetic

from grok_lightning.figures import FIGURES, available, draw_critical_size, found_critical_size
from grok_lightning.figures.curves import swapped_share
from grok_lightning.figures.size_sweep import (
    SizeSweep,
    has_size_sweep,
    interval_words,
    mixed_sentence,
    summary_sentence,
)
from grok_lightning.records import join_records
from grok_lightning.sweeps import Interval


def line(axes, label):
    [found] = [line for line in axes.get_lines() if line.get_label() == label]
    return found


def panels(record):
    figure = draw_critical_size(record)
    figure.draw_without_rendering()
    return figure.axes


def test_one_point_a_member_at_its_size_and_final_accuracy_hollow_where_not_converged():
    record = synthetic.size_sweep_record(decays=(1.0,), unconverged=(4,))
    left, _ = panels(record)
    final = record["curves/accuracy"].sel(split="held_out").isel(step=-1).values
    sizes = record["curves"].coords["train_size"].values
    filled, hollow = line(left, "converged λ = 1"), line(left, "not converged λ = 1")
    np.testing.assert_allclose(filled.get_xdata(), np.delete(sizes, 4))
    np.testing.assert_allclose(filled.get_ydata(), np.delete(final, 4))
    np.testing.assert_allclose([*hollow.get_xdata(), *hollow.get_ydata()], [sizes[4], final[4]])
    assert filled.get_markerfacecolor() == filled.get_color()
    assert hollow.get_markerfacecolor() == "white"
    assert "1 of 15 members had not converged and is left out" in found_critical_size(record)


def test_members_are_read_at_one_decay_time_and_not_at_the_end():
    record = synthetic.size_sweep_record(decays=(0.3, 1.0))
    left, _ = panels(record)
    curves = record["curves"].to_dataset()
    at = int(np.flatnonzero(curves.step <= 15_000)[-1])  # Decay time 15 of λ = 1 at a learning rate of 0.001.
    strong = np.flatnonzero(curves.weight_decay == 1)
    drawn = line(left, "converged λ = 1").get_ydata()
    np.testing.assert_allclose(drawn, curves.accuracy.sel(split="held_out").values[at, strong])
    assert "read at decay time 15, where all 30 members had converged" in found_critical_size(record)


def test_the_critical_size_is_where_it_was_planted_and_the_curve_passes_one_half_there():
    left, right = panels(synthetic.size_sweep_record())
    effects = np.array(synthetic.SEED_EFFECTS[:3])
    expected = synthetic.CRITICAL_SIZE * np.exp(effects.mean())
    for decay in ("0.3", "1"):
        mark = line(left, f"D_crit λ = {decay}")
        assert mark.get_xdata()[0] == pytest.approx(expected, rel=1e-3)
        curve = line(left, f"fit λ = {decay}")
        middle = np.interp(np.log(expected), np.log(curve.get_xdata()), curve.get_ydata())
        assert middle == pytest.approx((1 + 1 / synthetic.MODULUS) / 2, abs=1e-3)
        mean = line(right, f"D_crit λ = {decay}")
        np.testing.assert_allclose([mean.get_xdata()[0], mean.get_ydata()[0]], [float(decay), expected], rtol=1e-3)
    for seed, effect in enumerate(effects):
        joined = line(right, f"seed {seed}")
        np.testing.assert_allclose(joined.get_xdata(), [0.3, 1])
        np.testing.assert_allclose(joined.get_ydata(), synthetic.CRITICAL_SIZE * np.exp(effect), rtol=1e-3)


def test_the_band_is_as_steep_as_the_margin():
    _, right = panels(synthetic.size_sweep_record())
    [band] = right.collections
    x, y = band.get_paths()[0].vertices.T
    left, end = x == x.min(), x == x.max()
    rise = np.log(y[end].max() / y[left].min()) / np.log(x.max() / x.min())
    assert rise == pytest.approx(0.1)
    [alone] = [panels(synthetic.size_sweep_record(decays=(1.0,)))[1]]
    assert not alone.collections


def test_the_band_is_of_the_arms_that_the_verdict_is_of():
    """An arm of another eps, with another critical size, is none of them."""

    def middle(record):
        _, right = panels(record)
        [band] = right.collections
        x, y = band.get_paths()[0].vertices.T
        return np.exp(np.log(y[np.argsort(x)[:2]]).mean())

    record = synthetic.size_sweep_record(seeds=2)
    stray = synthetic.size_sweep_record(
        decays=(1.0,), eps=(1e-6,), seeds=2, sizes=tuple(2 * d for d in synthetic.SIZES)
    )
    curves, other = (one["curves/accuracy"].values for one in (record, stray))
    end = curves[:, -1, record["curves"].coords["weight_decay"].values == 1]
    other[:] = np.where(np.arange(other.shape[1])[:, None] < 3, other, end[:, None])
    joined = join_records({"one": record, "stray": stray})
    _, right = panels(joined)
    strays = line(right, "D_crit λ = 1, eps 1e-06").get_ydata()[0]
    assert strays == pytest.approx(2 * line(right, "D_crit λ = 1, eps 1e-08").get_ydata()[0], rel=1e-3)
    assert "left out: λ = 1 (eps 1e-06), of another eps" in found_critical_size(joined)
    assert middle(joined) == pytest.approx(middle(record), rel=1e-9)
    alone = join_records({"one": synthetic.size_sweep_record(decays=(0.3,)), "stray": stray})
    assert not panels(alone)[1].collections
    key = [text.get_text() for text in draw_critical_size(alone).legends[0].get_texts()]
    assert not any("d log D_crit" in entry for entry in key)


def test_an_arm_that_went_through_too_little_decay_is_named_and_sets_no_time():
    runs = {
        "long": synthetic.size_sweep_record(decays=(1.0,)),
        "short": synthetic.size_sweep_record(decays=(0.3,), last_time=2.0),
    }
    joined = join_records(runs)
    found = found_critical_size(joined)
    assert "Members were read at decay time 15, where all 15 members had converged." in found
    assert (
        "15 of 15 members at λ = 0.3 went through less than 3 decay units: they were read at their own end, have not "
        "converged and are left out." in found
    )
    assert SizeSweep.of(joined).final.converged.sum() == 15
    panels(joined)
    alone = found_critical_size(runs["short"])
    assert "went through less than 3 decay units" in alone
    assert "Members were read" not in alone
    assert "was not measured" not in alone


def test_runs_of_different_tasks_have_no_joined_sweep():
    runs = {name: synthetic.size_sweep_record(decays=(1.0,)) for name in ("one", "two")}
    assert mixed_sentence(join_records(runs)) == ""
    assert has_size_sweep(join_records(runs))
    runs["two"].attrs["chance"] = 1 / 113
    mixed = join_records(runs)
    assert mixed_sentence(mixed) == "Their members are not judged as one sweep: the runs differ in chance."
    assert SizeSweep.of(mixed) is None
    assert not {"critical_size", "forgetting"} & {spec.name for spec in available(mixed)}
    mixed.attrs["different"] = "chance, task, d_model"
    assert mixed_sentence(mixed).endswith("differ in chance, task and d_model.")
    few = {name: synthetic.parity_record() for name in ("one", "two")}
    few["two"].attrs["chance"] = 0.1
    assert mixed_sentence(join_records(few)) == ""


def test_arms_in_the_box_and_without_weight_decay_look_otherwise_and_are_named():
    record = synthetic.size_sweep_record(decays=(0, 1, 3), boxed=(3,))
    left, right = panels(record)
    markers = {
        decay: line(left, f"{kind} λ = {decay}").get_marker()
        for decay, kind in ((0, "not converged"), (1, "converged"), (3, "converged"))
    }
    assert len(set(markers.values())) == 3
    key = [text.get_text() for text in draw_critical_size(record).legends[0].get_texts()]
    assert key[:3] == ["λ = 0 (at the end)", "λ = 1 (15 of 15 converged)", "λ = 3, in the box (15 of 15 converged)"]
    assert len(line(right, "seed 0").get_xdata()) == 1
    found = found_critical_size(record)
    assert "In the box: of the squared norm, weights above half of the largest that AdamW allows" in found
    assert "have a share of 0.80 at λ = 3." in found
    assert "15 members without weight decay were read at the last measurement." in found


def test_arms_with_one_weight_decay_stand_beside_one_another():
    left, right = panels(synthetic.size_sweep_record(eps=(1e-8, 1e-6)))
    places = [line(right, f"D_crit λ = 1, eps {eps}").get_xdata()[0] for eps in ("1e-08", "1e-06")]
    assert 0.9 < places[0] < 1 < places[1] < 1.1
    first, second = (line(left, f"converged λ = 1, eps {eps}").get_xdata() for eps in ("1e-08", "1e-06"))
    assert (first < second).all()


def test_chance_and_commutativity_are_drawn_where_they_are_known():
    record = synthetic.size_sweep_record()
    left, _ = panels(record)
    assert line(left, "chance").get_ydata()[0] == pytest.approx(1 / synthetic.MODULUS)
    baseline = line(left, "share with swap trained on")
    np.testing.assert_allclose(baseline.get_xdata(), synthetic.SIZES)
    expected = np.unique(swapped_share(record["curves"].to_dataset()))
    np.testing.assert_allclose(baseline.get_ydata(), expected)
    curves = record["curves"].to_dataset().drop_vars("unpaired_share")
    groups = {name: node.to_dataset() for name, node in record.children.items()} | {"curves": curves}
    without = synthetic.record(groups, **{name: value for name, value in record.attrs.items() if name != "chance"})
    labels = [str(entry.get_label()) for entry in panels(without)[0].get_lines()]
    assert "chance" not in labels
    assert "share with swap trained on" not in labels


def test_verdicts_are_told_with_whether_their_margins_were_written_before():
    found = found_critical_size(synthetic.size_sweep_record())
    assert found.startswith("P2: supported. Final held-out accuracy changes sharply")
    assert "P3: supported." in found
    assert "The margins were written in the configuration before the run." in found
    assert "were not written" in found_critical_size(synthetic.size_sweep_record(margins=False))
    steep = found_critical_size(synthetic.size_sweep_record(decays=(0.5, 1.0, 2.0), slope=0.4))
    assert "P3: refuted." in steep
    assert "its lowest since the small set began was 0.996" in found


def test_the_summary_has_the_verdicts_and_critical_sizes_and_no_reasons():
    text = summary_sentence(synthetic.size_sweep_record(decays=(1.0,)))
    assert re.fullmatch(
        r"Over 5 sizes D of the training set, a sharp transition in D \(P2\) is supported, its independence of weight "
        r"decay \(P3\) undecided; D_crit is 13\d \(\d+ to \d+\) at λ = 1\.",
        text,
    )
    assert summary_sentence(synthetic.parity_record()) == ""
    assert interval_words(None) == "–"
    assert interval_words(Interval(135.2, np.nan, np.nan, 1)) == "135 (one seed)"


def test_a_joined_sweep_is_one_sweep():
    runs = {
        "weak": synthetic.size_sweep_record(decays=(0.3,)),
        "strong": synthetic.size_sweep_record(decays=(1.0,), last_time=20.0),
        "later": synthetic.size_sweep_record(decays=(1.0,), first_seed=3, seeds=2),
    }
    left, right = panels(join_records(runs))
    assert len(line(left, "converged λ = 1").get_xdata()) == 25
    assert len(line(right, "seed 0").get_xdata()) == 2
    assert len(line(right, "seed 4").get_xdata()) == 1


def test_a_figure_of_sizes_is_offered_only_where_there_are_three():
    names = [spec.name for spec in FIGURES if spec.applies is not None]
    assert names == ["critical_size", "forgetting"]
    assert set(names) <= {spec.name for spec in available(synthetic.size_sweep_record())}
    two = synthetic.size_sweep_record(sizes=(60, 300))
    assert not has_size_sweep(two)
    assert SizeSweep.of(two) is None
    assert not set(names) & {spec.name for spec in available(two)}
    assert found_critical_size(two) == ""
    with pytest.raises(ValueError, match="at least three"):
        draw_critical_size(two)


def test_a_hundred_members_in_many_arms_are_drawn():
    record = synthetic.size_sweep_record(decays=tuple(0.1 * 2.0**i for i in range(10)), seeds=2)
    assert record.attrs["n_members"] == 100
    left, _ = panels(record)
    colours = {entry.get_color() for entry in left.get_lines() if str(entry.get_label()).startswith("fit")}
    assert len(colours) == 10
