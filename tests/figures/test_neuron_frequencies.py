import numpy as np
import synthetic
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_hex

from grok_lightning.figures import draw_neuron_frequencies, found_neuron_frequencies
from grok_lightning.figures.neuron_frequencies import fitted_counts, neuron_order


def replaced(record, **groups):
    kept = {name: node.to_dataset() for name, node in record.children.items()}
    kept = {name: group for name, group in (kept | groups).items() if group is not None}
    return synthetic.record(kept, **record.attrs)


def test_neurons_are_ordered_by_the_size_of_their_frequency_and_by_how_well_it_fits():
    frequency = np.array([0.0, 5.0, np.nan, 7.0, 5.0, 0.0, 9.0, 7.0, 7.0])
    explained = np.array([0.1, 0.9, np.nan, 0.9, 0.95, 0.2, 0.9, 0.99, 0.95])
    assert neuron_order(frequency, explained).tolist() == [7, 8, 3, 4, 1, 6, 5, 0, 2]
    assert neuron_order(frequency[:0], explained[:0]).tolist() == []


def test_neurons_count_whose_frequency_explains_enough():
    frequency = np.array([[[1.0, 2.0, np.nan, 3.0]], [[1.0, 1.0, np.nan, np.nan]], [[np.nan] * 4]])
    explained = np.array([[[0.9, 0.85, 0.99, 0.86]], [[0.1, 0.2, np.nan, np.nan]], [[np.nan] * 4]])
    np.testing.assert_array_equal(fitted_counts(frequency, explained), [[2], [0], [np.nan]])


def test_each_neuron_has_the_colour_of_its_frequency():
    record = synthetic.modular_record(members=1, neurons=40)
    group = record["fourier"].to_dataset().isel(member=0)
    figure = draw_neuron_frequencies(record)
    [image] = [entry for entry in figure.axes[0].collections if isinstance(entry, QuadMesh)]
    frequency, explained = group.neuron_frequency.values, group.neuron_explained.values
    fitted = np.where(np.isnan(frequency), np.nan, np.where(np.nan_to_num(explained) > 0.85, frequency, 0))
    order = neuron_order(fitted[-1], explained[-1])
    colours = np.array([[to_hex(cell) for cell in row] for row in image.to_rgba(image.get_array())])
    assert colours.shape == (40, len(frequency))
    seen = {}
    for label, colour in zip(fitted.T[order].ravel(), colours.ravel(), strict=True):
        seen.setdefault("dead" if np.isnan(label) else label, set()).add(colour)
    assert all(len(found) == 1 for found in seen.values())
    assert len(set.union(*seen.values())) == len(seen) == 6  # Four frequencies, none, dead.
    key = [text.get_text() for text in figure.legends[0].get_texts()]
    for label in synthetic.KEYS[0]:
        assert f"frequency {label} ({(fitted[-1] == label).sum()} at the end)" in key
    assert "dead" in key


def test_beyond_seven_frequencies_the_others_share_a_colour():
    record = synthetic.modular_record(members=1, neurons=40)
    group = record["fourier"].to_dataset()
    many = group.assign(neuron_frequency=group.neuron_frequency * 0 + 1 + group.neuron % 10)
    key = [text.get_text() for text in draw_neuron_frequencies(replaced(record, fourier=many)).legends[0].get_texts()]
    assert len([word for word in key if word.startswith("frequency ")]) == 7
    assert "another frequency" in key


def test_found_counts_neurons_frequencies_and_dead_ones():
    record = synthetic.modular_record(neurons=40)
    found = found_neuron_frequencies(record)
    assert found.startswith(
        "Of 40 neurons, 38 for all 5 have more than 85 % of their variance at one frequency at the end, at 3 (median; "
        "range 3 to 5) different ones; 2 for all 5 are dead."
    )
    assert found.endswith("Share of these neurons whose frequency is key in the logits: 100 % for all 5.")
    early = replaced(record, fourier=record["fourier"].to_dataset().isel(step=[0]))
    assert "Of 40 neurons, none has more than 85 % of its variance at one frequency" in found_neuron_frequencies(early)


def test_the_right_panel_counts_in_all_members():
    record = synthetic.modular_record(neurons=40)
    group = record["fourier"].to_dataset()
    axes = draw_neuron_frequencies(record).axes[1]
    [drawn] = [entry for entry in axes.get_lines() if entry.get_label() == "fitted"]
    expected = (group.neuron_explained > 0.85).sum("neuron").mean("member")
    np.testing.assert_allclose(drawn.get_ydata(), expected)
