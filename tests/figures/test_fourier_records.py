"""What every figure of a splitter of Fourier logits must bear."""

import re

import numpy as np
import pytest
import synthetic
import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg

from grok_lightning.figures import FIGURES, available
from grok_lightning.records import join_records

SPECS = {spec.name: spec for spec in FIGURES if spec.kinds == ("FourierLogitSplitter",)}
OPTIONAL = [
    "embedding_power",
    "embedding_gini",
    "neuron_frequency",
    "neuron_explained",
    "neuron_logit_gini",
    "neuron_logit_power",
]


def modular(*, per_decade=5, neurons=24, **options):
    """Measured less often, and with fewer neurons, so that it is drawn quickly."""
    return synthetic.modular_record(per_decade=per_decade, neurons=neurons, **options)


def replaced(record, **groups):
    kept = {name: node.to_dataset() for name, node in record.children.items()}
    kept = {name: group for name, group in (kept | groups).items() if group is not None}
    return synthetic.record(kept, **record.attrs)


def joined():
    """Three runs: two with other moduli, shares, steps and names of groups, and one of another task."""
    big, small = (
        modular(members=2),
        modular(members=2, p=31, share=0.6, last=8000, per_decade=4, neurons=16),
    )
    group = small["fourier"].to_dataset().drop_vars(["embedding_power", "embedding_gini"])
    small = replaced(small, fourier=group)
    return join_records({"big": big, "small": small, "parity": synthetic.parity_record(members=1)})


def awkward():
    full = modular(members=3)
    group = full["fourier"].to_dataset()
    nothing = group.map(lambda values: xr.full_like(values, np.nan, dtype=float)).assign_attrs(group.attrs)
    diverged = group.astype(float).where((group.member != 1) | (group.step < 1000)).assign_attrs(group.attrs)
    lost = diverged.assign(key=(diverged.key == 1))
    return {
        "all NaN": replaced(full, fourier=nothing, curves=None, parameter_norm=None),
        "one step": replaced(full, fourier=group.isel(step=[0])),
        "no steps": replaced(full, fourier=group.isel(step=[])),
        "one member": modular(members=1),
        "no frequencies": replaced(full, fourier=group.isel(frequency=[])),
        "one frequency": replaced(full, fourier=group.isel(frequency=[0])),
        "small p": modular(members=2, p=31, share=0.6, last=8000),
        "full table": modular(members=2, share=1.0),
        "nothing else": synthetic.record({"fourier": group}),
        "one diverged": replaced(full, fourier=lost),
        "without the optional": replaced(full, fourier=group.drop_vars(OPTIONAL)),
        "two groups": replaced(full, second=group),
        "sweep": modular(members=6, coordinates={"weight_decay": [1.0, 1.0, 1.0, 0.5, 0.5, 0.5]}),
        "many settings": modular(members=16, coordinates={"weight_decay": np.repeat(np.arange(1, 9), 2).astype(float)}),
        "joined": joined(),
        "no key": replaced(full, fourier=group.assign(key=group.key & False)),
    }


AWKWARD = awkward()


@pytest.mark.parametrize("name", list(AWKWARD))
def test_awkward_records_are_drawn_and_told(name):
    record = AWKWARD[name]
    drawn = [spec for spec in available(record) if spec.name in SPECS]
    expected = set(SPECS) - ({"key_frequencies", "neuron_frequencies"} if name == "without the optional" else set())
    assert {spec.name for spec in drawn} == expected
    for spec in drawn:
        figure = spec.draw(record)
        assert_nothing_overlaps(figure)
        found = spec.found(record)
        assert found
        assert not re.search(r"\b(nan|inf)\b", found), found
        assert not re.search(r"  |\.\.|-0\.00\b", found), found
        if name == "all NaN":
            assert "not measured" in found
            assert any("not measured" in text.get_text() for axes in figure.axes for text in axes.texts)


def assert_nothing_overlaps(figure):
    canvas = FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    renderer = canvas.get_renderer()
    [legend] = figure.legends
    box = legend.get_window_extent(renderer)
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width
    assert box.y1 <= figure.bbox.height
    for axes in figure.axes:
        if axes.axison:
            panel = axes.get_tightbbox(renderer)
            assert not box.overlaps(panel)
            assert panel.x0 >= -1
            assert panel.x1 <= figure.bbox.width + 1
    assert figure._supxlabel.get_window_extent(renderer).x1 <= figure.bbox.width


@pytest.mark.parametrize("name", list(SPECS))
def test_the_order_of_dimensions_does_not_matter(name):
    record = modular(members=3)
    group = record["fourier"].to_dataset()
    turned = replaced(record, fourier=group.transpose(*reversed(list(group.sizes))))
    assert SPECS[name].found(turned) == SPECS[name].found(record)


@pytest.mark.parametrize("name", list(SPECS))
def test_what_is_found_in_a_joined_record_is_what_was_found_in_each_run(name):
    # Without onsets, of which those of the modular runs would be told in one and in the other.
    found = SPECS[name].found(replaced(AWKWARD["joined"], onset=None))
    told = SPECS[name].found(replaced(modular(members=2), onset=None))
    assert found.startswith(f"big: {told}")
    assert f"{told} small: " in found


@pytest.mark.parametrize("name", list(SPECS))
def test_a_record_without_fourier_logits_is_refused_and_not_offered(name):
    record = replaced(modular(members=2), fourier=None)
    with pytest.raises(ValueError, match="FourierLogitSplitter"):
        SPECS[name].draw(record)
    assert [spec.name for spec in available(record)] == ["curves"]


def test_a_figure_is_offered_only_where_a_group_has_all_of_its_arrays():
    record = modular(members=1)
    group = record["fourier"].to_dataset()
    for missing, figure in (("embedding_power", "key_frequencies"), ("neuron_explained", "neuron_frequencies")):
        without = group.drop_vars(missing)
        names = [spec.name for spec in available(replaced(record, fourier=without))]
        assert figure not in names
        assert "circuits" in names
        # One of two groups is enough, and that one alone is drawn.
        both = replaced(record, fourier=without, second=group)
        assert figure in [spec.name for spec in available(both)]
        assert SPECS[figure].found(both) == SPECS[figure].found(record)


def test_a_record_from_a_file_says_the_same(tmp_path):
    record = modular(members=2)
    record.to_netcdf(tmp_path / "records.nc", engine="h5netcdf")
    with xr.open_datatree(tmp_path / "records.nc", engine="h5netcdf") as stored:
        for spec in SPECS.values():
            assert spec.found(stored) == spec.found(record)
