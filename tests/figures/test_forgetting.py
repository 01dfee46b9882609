import numpy as np
import pytest
import synthetic

from grok_lightning.figures import draw_forgetting, found_forgetting
from grok_lightning.figures.forgetting import sizes_by_end
from grok_lightning.figures.size_sweep import SizeSweep
from grok_lightning.records import join_records


def line(axes, label):
    [found] = [line for line in axes.get_lines() if line.get_label() == label]
    return found


def panels(record):
    """Panels by their titles, and the axes of the colour bar."""
    figure = draw_forgetting(record)
    figure.draw_without_rendering()
    *axes, bar = figure.axes
    return {entry.get_title(loc="left"): entry for entry in axes}, bar


def test_one_panel_an_arm_and_one_line_a_member_over_decay_time():
    record = synthetic.size_sweep_record()
    found, bar = panels(record)
    assert list(found) == ["λ = 0.3", "λ = 1"]
    curves = record["curves"].to_dataset()
    times = record["convergence/decay_time"].values
    for member, decay in enumerate(curves.weight_decay.values):
        drawn = line(found[f"λ = {decay:g}"], f"member {member}")
        np.testing.assert_allclose(drawn.get_xdata(), times[:, member])
        np.testing.assert_allclose(drawn.get_ydata(), curves.accuracy.sel(split="held_out").values[:, member])
    assert bar.get_ylabel() == "rows trained on, D (log scale)"
    assert [tick for tick in bar.get_yticks() if 59 < tick < 301] == list(synthetic.SIZES)
    limits = {axes.get_xlim() for axes in found.values()}
    assert len(limits) == 1
    assert [line(axes, "T*").get_xdata()[0] for axes in found.values()] == pytest.approx([15, 15])


def test_members_of_one_size_have_one_colour_and_sizes_different_ones():
    record = synthetic.size_sweep_record(decays=(1.0,))
    found, _ = panels(record)
    sizes = record["curves"].coords["train_size"].values
    colours = {}
    for member, size in enumerate(sizes):
        colours.setdefault(size, set()).add(tuple(line(found["λ = 1"], f"member {member}").get_color()))
    assert all(len(same) == 1 for same in colours.values())
    assert len(set.union(*colours.values())) == 5


def test_dots_are_where_members_are_read_and_hollow_where_not_converged():
    record = synthetic.size_sweep_record(unconverged=(3,))
    found, _ = panels(record)
    axes = found["λ = 1"]  # Members 3 to 5 are the smallest size there.
    hollow, filled = line(axes, "not converged 3"), line(axes, "converged 4")
    assert hollow.get_markerfacecolor() == "white"
    assert tuple(filled.get_markerfacecolor()) == tuple(filled.get_color())
    assert filled.get_xdata()[0] == pytest.approx(15, abs=0.5)
    assert line(axes, "member 4").get_xdata()[-1] == pytest.approx(50)


def test_time_counts_from_the_step_at_which_each_members_set_shrank():
    record = synthetic.size_sweep_record(decays=(1.0,), start="shrunk")
    found, _ = panels(record)
    for member in range(3):
        drawn = line(found["λ = 1"], f"member {member}")
        assert drawn.get_xdata()[0] == pytest.approx(0, abs=1e-9)
        assert drawn.get_ydata()[0] == pytest.approx(1)


def test_without_weight_decay_time_is_steps():
    found, _ = panels(synthetic.size_sweep_record(decays=(0, 1)))
    assert "optimizer step since the small set began" in found["λ = 0"].get_xlabel()
    assert "decay time" in found["λ = 1"].get_xlabel()
    assert line(found["λ = 0"], "member 0").get_xdata()[-1] == 15_000
    assert not [entry for entry in found["λ = 0"].get_lines() if entry.get_label() == "T*"]


def test_sizes_are_sorted_by_where_accuracy_ended():
    record = synthetic.size_sweep_record(decays=(1.0,), sizes=(60, 90, 130, 180, 300, 420), unconverged=(6, 7, 8))
    [arm] = SizeSweep.of(record).arms
    assert sizes_by_end(SizeSweep.of(record), arm) == {
        "lost": [60.0, 90.0],
        "between": [180.0],
        "kept": [300.0, 420.0],
        "not converged": [130.0],
    }
    assert found_forgetting(record) == (
        "At λ = 1 held-out accuracy is kept at D = 300 and 420; partly kept at D = 180; lost at D = 60 and 90; not "
        "converged at D = 130. Kept: above 0.95 of the way from chance to 1, in the mean over converged members of "
        "that size; lost: below 0.2."
    )


def test_a_sweep_from_scratch_forgets_nothing():
    record = synthetic.size_sweep_record(decays=(1.0,), start="scratch")
    found = found_forgetting(record)
    assert "held-out accuracy is high at D = 300; middling at D = 130 and 180; low at D = 60 and 90." in found
    assert "kept" not in found.lower()
    panels(record)


def test_each_arm_of_a_joined_record_has_a_panel():
    runs = {f"run{i}": synthetic.size_sweep_record(decays=(decay,), seeds=2) for i, decay in enumerate((0.3, 1.0, 3.0))}
    found, _ = panels(join_records(runs))
    assert list(found) == ["λ = 0.3", "λ = 1", "λ = 3"]
    assert all(sum(str(e.get_label()).startswith("member") for e in axes.get_lines()) == 10 for axes in found.values())


def test_there_is_nothing_to_draw_without_a_sweep():
    assert found_forgetting(synthetic.parity_record()) == ""
    with pytest.raises(ValueError, match="at least three"):
        draw_forgetting(synthetic.parity_record())
