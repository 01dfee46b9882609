import numpy as np
import synthetic

from grok_lightning.figures import draw_progress, found_progress


def line(axes, label):
    [found] = [line for line in axes.get_lines() if line.get_label() == label]
    return found


def replaced(record, **groups):
    kept = {name: node.to_dataset() for name, node in record.children.items()}
    kept = {name: group for name, group in (kept | groups).items() if group is not None}
    return synthetic.record(kept, **record.attrs)


def test_losses_are_drawn_each_through_its_own_measurements():
    record = synthetic.modular_record()
    group, curves = record["fourier"].to_dataset(), record["curves"].to_dataset()
    losses, ginis = draw_progress(record).axes
    for name in ("restricted_loss", "excluded_loss"):
        np.testing.assert_allclose(line(losses, name).get_ydata(), group[name].mean("member"))
        np.testing.assert_array_equal(line(losses, name).get_xdata(), group.step)
    for split in ("train", "held_out"):
        np.testing.assert_allclose(line(losses, split).get_ydata(), curves.loss.sel(split=split).mean("member"))
        np.testing.assert_array_equal(line(losses, split).get_xdata(), curves.step)
    for name in ("embedding_gini", "neuron_logit_gini"):
        np.testing.assert_allclose(line(ginis, name).get_ydata(), group[name].mean("member"))
    assert losses.get_yscale() == "log"
    assert ginis.get_ylim() == (-0.02, 1.02)
    assert losses.get_xlim() == ginis.get_xlim()


def test_found_tells_losses_and_ginis_at_memorisation_and_at_the_end():
    record = synthetic.modular_record(members=1)
    group, onset = record["fourier"].to_dataset(), record["onset"].to_dataset()
    near = abs(group.step.values - float(onset.step.sel(event="memorised")[0])).argmin()
    found = found_progress(record)
    losses = {
        "restricted_loss": "Restricted loss over all rows",
        "excluded_loss": "Excluded loss on the rows trained on",
    }
    for name, words in losses.items():
        then, end = (float(group[name][row, 0]) for row in (near, -1))
        assert f"{words}: {then:.3g} at memorisation and {end:.3g} at the end." in found
    gini = [float(group.embedding_gini[row, 0]) for row in (near, -1)]
    assert (
        f"The Gini coefficient of the embedding: {gini[0]:.2f} at memorisation and {gini[1]:.2f} at the end." in found
    )


def test_without_spectra_there_is_one_panel_and_without_curves_two_losses():
    record = synthetic.modular_record(members=2)
    group = record["fourier"].to_dataset().drop_vars(["embedding_gini", "neuron_logit_gini"])
    [losses] = draw_progress(replaced(record, fourier=group, curves=None)).axes
    labels = {str(entry.get_label()) for entry in losses.get_lines()}
    assert {"restricted_loss", "excluded_loss"} <= labels
    assert not {"train", "held_out"} & labels
    assert "Gini" not in found_progress(replaced(record, fourier=group))
