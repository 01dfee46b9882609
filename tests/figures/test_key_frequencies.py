import re

import numpy as np
import pytest
import synthetic

from grok_lightning.figures import draw_key_frequencies, found_key_frequencies
from grok_lightning.figures.key_frequencies import rank_correlation, ranks


def replaced(record, **groups):
    kept = {name: node.to_dataset() for name, node in record.children.items()}
    kept = {name: group for name, group in (kept | groups).items() if group is not None}
    return synthetic.record(kept, **record.attrs)


def rank_by_definition(values):
    """One more than how many are smaller, and half of how many others are equal."""
    return [1 + sum(v < x for v in values) + (sum(v == x for v in values) - 1) / 2 for x in values]


@pytest.mark.parametrize("values", [[3.0], [1, 2, 3], [2, 2, 2], [5, 1, 5, 2, 5, 1], [-1.0, 0.0, -0.0, 1e-300]])
def test_ranks_are_counted_and_equal_values_share_theirs(values):
    np.testing.assert_array_equal(ranks(np.array(values, dtype=float)), rank_by_definition(values))


def test_rank_correlation_is_that_of_spearman():
    rng = np.random.default_rng(0)
    x, y = rng.random(50), rng.random(50)
    # Without ties: 1 - 6 sum d^2 / (n (n^2 - 1)).
    d = np.array(rank_by_definition(x)) - rank_by_definition(y)
    assert rank_correlation(x, y) == pytest.approx(1 - 6 * (d**2).sum() / (50 * (50**2 - 1)), abs=1e-12)
    tied = np.round(x, 1)
    expected = np.corrcoef(rank_by_definition(tied), rank_by_definition(y))[0, 1]
    assert rank_correlation(tied, y) == pytest.approx(expected, abs=1e-12)
    assert rank_correlation(x, np.exp(5 * x)) == pytest.approx(1)
    assert rank_correlation(x, -(x**3)) == pytest.approx(-1)
    for few in (x[:0], x[:1], x[:2]):
        assert np.isnan(rank_correlation(few, few))
    assert np.isnan(rank_correlation(x, np.ones(50)))


def test_each_key_frequency_has_its_place_by_the_embedding_at_step_0():
    record = synthetic.modular_record()
    group = record["fourier"].to_dataset()
    first, end = group.embedding_power.sel(step=0).values, group.power.isel(step=-1).values
    _, places = draw_key_frequencies(record).axes
    points = [entry for entry in places.get_lines() if entry.get_marker() == "o"]
    for member, entry in enumerate(points):
        order = list(np.argsort(-first[member]) + 1)
        assert sorted(entry.get_ydata()) == sorted(order.index(key) + 1 for key in synthetic.KEYS[member])
        assert set(entry.get_xdata()) == {member}
    assert [entry.get_text() for entry in places.texts] == [
        f"{rank_correlation(*pair):.2f}" for pair in zip(first, end, strict=True)
    ]
    lots = [entry.get_ydata()[0] for entry in places.get_lines() if entry.get_linestyle() == "--"]
    assert lots == [28.5] * 5


def test_every_frequency_is_a_point_and_key_ones_are_filled():
    record = synthetic.modular_record()
    powers, _ = draw_key_frequencies(record).axes
    filled = [entry for entry in powers.collections if len(entry.get_facecolors())]
    hollow = [entry for entry in powers.collections if not len(entry.get_facecolors())]
    assert [len(entry.get_offsets()) for entry in filled] == [len(keys) for keys in synthetic.KEYS]
    assert sum(len(entry.get_offsets()) for entry in hollow) == 5 * 56 - 18
    assert (powers.get_xscale(), powers.get_yscale()) == ("log", "log")
    assert "(log scale)" in powers.get_xlabel()
    group = record["fourier"].to_dataset()
    alike = replaced(record, fourier=group.assign(embedding_power=(group.embedding_power + 1) / 57))
    powers, _ = draw_key_frequencies(alike).axes
    assert (powers.get_xscale(), powers.get_yscale()) == ("linear", "log")
    assert "(log scale)" not in powers.get_xlabel()


def test_found_tells_the_correlation_and_what_lots_would_give():
    record = synthetic.modular_record()
    group = record["fourier"].to_dataset()
    first, end = group.embedding_power.sel(step=0).values, group.power.isel(step=-1).values
    each = np.array([rank_correlation(*pair) for pair in zip(first, end, strict=True)])
    found = found_key_frequencies(record)
    assert f"is {each.mean():.2f} (in the mean over 5 members, range {each.min():.2f} to {each.max():.2f};" in found
    assert f"0 ± {1 / np.sqrt(55):.2f} where they are unrelated" in found
    # All but the second member's key frequencies were planted as the largest.
    among = sum(len(keys) for i, keys in enumerate(synthetic.KEYS) if i != 1)
    assert f"Of 18 key frequencies, {among} are among as many of their member's largest at step 0;" in found
    lot = sum(len(keys) ** 2 for keys in synthetic.KEYS) / 56
    assert f"by lot {lot:.1f} would be." in found
    one = found_key_frequencies(synthetic.modular_record(members=1))
    assert re.search(r"is 0\.\d\d \(0 ± 0\.13 where they are unrelated\)\.", one)


def test_without_a_measurement_at_step_0_there_is_nothing_to_compare():
    record = synthetic.modular_record(members=2)
    late = replaced(record, fourier=record["fourier"].to_dataset().isel(step=slice(1, None)))
    assert found_key_frequencies(late) == "The embedding was not measured at step 0."
    for axes in draw_key_frequencies(late).axes:
        assert [text.get_text() for text in axes.texts] == ["embedding not measured at step 0"]


def test_of_many_members_the_correlations_are_not_written():
    record = synthetic.modular_record(members=14, per_decade=4)
    _, places = draw_key_frequencies(record).axes
    assert not places.texts
    assert len([entry for entry in places.get_lines() if entry.get_marker() == "o"]) == 14
