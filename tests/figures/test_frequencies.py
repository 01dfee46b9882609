import numpy as np
import synthetic
from matplotlib.collections import QuadMesh

from grok_lightning.figures import draw_frequencies, found_frequencies
from grok_lightning.figures.frequencies import key_at_the_end, key_counts
from grok_lightning.records import join_records

KEYS = [list(keys) for keys in synthetic.KEYS]


def replaced(record, **groups):
    kept = {name: node.to_dataset() for name, node in record.children.items()}
    kept = {name: group for name, group in (kept | groups).items() if group is not None}
    return synthetic.record(kept, **record.attrs)


def mesh(axes):
    [found] = [entry for entry in axes.collections if isinstance(entry, QuadMesh)]
    return found


def markers(axes):
    return [list(entry.get_ydata()) for entry in axes.get_lines() if entry.get_label() == "key"]


def test_each_member_has_an_image_of_its_power_with_a_floor():
    record = synthetic.modular_record()
    power = record["fourier/power"].values
    axes = draw_frequencies(record).axes
    assert [entry.get_title(loc="left") for entry in axes[:5]] == [f"Member {i} (seed {i})" for i in range(5)]
    for member in range(5):
        image = mesh(axes[member])
        np.testing.assert_allclose(image.get_array(), np.maximum(power[:, member], 1e-4).T)
        assert (image.norm.vmin, image.norm.vmax) == (1e-4, 1.0)
        assert markers(axes[member]) == [KEYS[member]]
    assert (power < 1e-4).any()
    steps, first = record["fourier/step"].values, mesh(axes[0]).get_coordinates()
    edges = first[0, :, 0]
    assert edges[0] == 0
    assert edges[-1] == steps[-1]
    assert (edges[:-1] <= steps).all()
    assert (steps <= edges[1:]).all()
    np.testing.assert_allclose(edges[2:-1], np.sqrt(steps[1:-1] * steps[2:]))
    np.testing.assert_allclose(first[:, 0, 1], np.arange(0.5, 57))


def test_the_number_of_key_frequencies_is_counted_over_time():
    record = synthetic.modular_record()
    group = record["fourier"].to_dataset()
    counts = key_counts(group)
    np.testing.assert_array_equal(counts[-1], [len(keys) for keys in KEYS])
    np.testing.assert_array_equal(counts, group.key.sum("frequency"))
    [drawn] = [entry for entry in draw_frequencies(record).axes[5].get_lines() if entry.get_label() == "key"]
    np.testing.assert_allclose(drawn.get_ydata(), counts.mean(axis=1))
    lost = group.assign(power=group.power.where((group.member != 1) | (group.step < 1000)))
    assert np.isnan(key_counts(lost)[-1]).tolist() == [False, True, False, False, False]
    assert [list(keys) for keys in key_at_the_end(lost)] == [KEYS[0], [], *KEYS[2:]]
    assert "in member 1" not in found_frequencies(replaced(record, fourier=lost))


def test_found_names_the_key_frequencies_and_the_null_model():
    record = synthetic.modular_record()
    found = found_frequencies(record)
    assert found.startswith(
        "Of 56 frequencies, 3 (median; range 3 to 5) are key at the end: 3, 7, 11 and 14 in member 0"
    )
    assert "; 4, 10 and 13 in member 3 (seed 3);" in found
    assert f"every frequency would hold a share of about {0.3 * 2 / 112:.3g}." in found
    one = found_frequencies(synthetic.modular_record(members=1))
    assert "Of 56 frequencies, 4 are key at the end: 3, 7, 11 and 14. Together they hold" in one
    end = record["fourier"].to_dataset().isel(step=-1)
    held = (end.power * end.key).sum("frequency").values
    assert (held > 0.95).all()


def test_of_many_members_those_drawn_are_spread_over_the_settings():
    decay = np.repeat([1.0, 0.5, 0.25], [5, 4, 3])
    record = synthetic.modular_record(members=12, coordinates={"weight_decay": decay}, per_decade=4)
    titles = [axes.get_title(loc="left").replace("\n", " ") for axes in draw_frequencies(record).axes[:5]]
    assert [title.split(" ")[1] for title in titles] == ["9", "10", "5", "6", "0"]
    many = synthetic.modular_record(members=9, coordinates={"weight_decay": np.arange(1.0, 10.0)}, per_decade=4)
    titles = [axes.get_title(loc="left") for axes in draw_frequencies(many).axes[:5]]
    assert [title.split(" ")[1] for title in titles] == ["0", "2", "4", "6", "8"]
    group = record["fourier"].to_dataset()
    first = replaced(record, fourier=group.assign(power=group.power.where(group.member > 0)))
    assert draw_frequencies(first).axes[4].get_title(loc="left").startswith("Member 1 ")


def test_runs_of_other_moduli_keep_their_own_frequencies_and_steps():
    big = synthetic.modular_record(members=1)
    small = synthetic.modular_record(members=1, p=31, share=0.6, last=8000, per_decade=10)
    axes = draw_frequencies(join_records({"big": big, "small": small})).axes
    for entry, record in zip(axes, (big, small), strict=False):
        expected = np.maximum(record["fourier/power"].values[:, 0], 1e-4).T
        np.testing.assert_allclose(mesh(entry).get_array(), expected)
        assert markers(entry) == [KEYS[0]]
    assert axes[0].get_ylim()[1] > 50
    assert axes[1].get_ylim()[1] < 17
