import re
from html import escape

import numpy as np
import pytest
import synthetic
import xarray as xr

from grok_lightning import report
from grok_lightning.figures.parity_circuits import HOW_TO_READ, circuits_table, found_parity_circuits
from grok_lightning.records import join_records
from grok_lightning.report import write_comparison, write_report

KINDS = ["same", "opposite", "neither"]
CONSTRUCTIONS = ["proposition_1", "nearer_half", "proposition_2", "proposition_3", "one_star", "two_stars"]


def patterns(k):
    return ["".join("+" if i >> (k - 1 - bit) & 1 else "-" for bit in range(k)) for i in range(2**k)]


def circuits(members, k=3, steps=(0, 4800, 9600)):
    """The first member has a star, the second all of Proposition 1, and others draw; all have many more before."""
    rng = np.random.default_rng(0)
    neurons = rng.integers(0, 3, (len(steps), members, 3, 2**k)).astype(float)
    neurons[:-1] += 20
    neurons[-1, :, 2] = 0
    neurons[-1, 0] = 0
    neurons[-1, 0, 0, [0, 3, -1]] = [1, 2, 3]
    neurons[-1, 0, 1, 1] = 4
    if members > 1:
        neurons[-1, 1] = 0
        neurons[-1, 1, 0] = 1
    likeness = 0.5 + 0.3 * rng.random((len(steps), members, 6))
    likeness[-1, 0, 4] = 0.97
    likeness[-1, 1:2, 0] = 1
    if k != 3:
        likeness[:, :, 2:] = np.nan
    bias = np.tile([-1.07, 0.95, np.nan], (len(steps), members, 1))
    if members > 1:
        bias[-1, 1, 1] = np.nan
    both = ("step", "member")
    return xr.Dataset(
        {
            "size": (both, neurons.sum(axis=(2, 3)) + 1.0),  # and one without a pattern
            "neurons": ((*both, "kind", "pattern"), neurons),
            "fires": ((*both, "kind"), bias + 3),
            "bias": ((*both, "kind"), bias),
            "off_support": (both, np.broadcast_to(0.01 * (4 + np.arange(members)), (len(steps), members))),
            "efficiency": (both, np.full((len(steps), members), 0.999 if k < 5 else np.nan)),
            **dict.fromkeys(("found", "covered", "likeness"), ((*both, "construction"), likeness)),
        },
        coords={
            "step": list(steps),
            "member": np.arange(members),
            "seed": ("member", np.arange(members) + 10),
            "kind": KINDS,
            "pattern": patterns(k),
            "construction": CONSTRUCTIONS,
        },
        attrs={"kind": "ParityCircuits", "layer": "network.hidden.0"},
    )


def record(*, more=(), **options):
    full = synthetic.parity_record(members=options.get("members", 3))
    groups = {name: node.to_dataset() for name, node in full.children.items()}
    group = circuits(**({"members": 3} | options))
    return synthetic.record(groups | {"parity_circuits": group} | dict(more), **full.attrs)


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """The words of a page do not depend on what is drawn."""
    monkeypatch.setattr(report, "available", lambda record: ())


def rows(table):
    return [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]


def test_the_table_has_the_last_measurement_of_each_member():
    first, second, third = rows(circuits_table(record()))
    assert first == {
        "member": "0",
        "seed": "10",
        "neurons": "11",
        "patterns": "4 of 8",
        "efficiency": "0.999",
        "nearest": "one star (0.97)",
        "same sign": "6 (1002 0003)",
        "opposite sign": "4 (0400 0000)",
        "neither": "1",
        "bias": "−1.07, +0.95",
        "off support": "0.04",
    }
    assert second["nearest"] == "Proposition 1 (1.00)"
    assert second["same sign"] == "8 (1111 1111)"
    assert (second["opposite sign"], second["bias"]) == ("0", "−1.07, –")
    assert third["neither"] == "1"
    assert re.fullmatch(r"none \([A-Za-z0-9 ]+ 0\.\d\d\)", third["nearest"]), third["nearest"]


def test_neither_has_a_column_only_where_there_is_any():
    group = circuits(3)
    group["size"] -= 1
    group["size"][-1, 2] = group["neurons"][-1, 2].sum()
    assert "neither" not in circuits_table(record(more={"parity_circuits": group}))
    group["size"][-1, 1] += 1
    assert circuits_table(record(more={"parity_circuits": group}))["neither"] == ["0", "1", "0"]


@pytest.mark.parametrize(
    ("likeness", "cell", "told"),
    [
        (0.91, "none (two stars 0.91)", "none for 1 member"),
        (0.934, "none (two stars 0.93)", "none for 1 member"),
        (0.936, "two stars (0.94)", "two stars for 1 member"),  # as it is shown
        (0.9999, "two stars (1.000)", "two stars for 1 member"),
    ],
)
def test_what_chance_comes_to_is_near_no_construction(likeness, cell, told):
    group = circuits(1)
    group["likeness"][-1] = 0.85
    group["likeness"][-1, 0, -1] = likeness
    shown = record(members=1, more={"parity_circuits": group})
    assert circuits_table(shown)["nearest"] == [cell]
    assert f"The nearest construction is {told}." in found_parity_circuits(shown)


def test_more_than_nine_neurons_of_a_pattern_are_set_apart():
    group = circuits(1)
    group["neurons"][-1, 0, 1, 1] = 12
    assert circuits_table(record(members=1, more={"parity_circuits": group}))["opposite sign"] == [
        "12 (0 12 0 0 0 0 0 0)"
    ]


def test_how_to_read_is_short():
    assert HOW_TO_READ.startswith("Likeness: how well")
    assert len(HOW_TO_READ.split()) < 140


def test_sentences_are_computed_from_the_last_measurement():
    text = found_parity_circuits(record(members=2))
    assert text.startswith(
        "At epoch 300 (step 9600), 10 (median; range 9 to 11) neurons survive, with 6 (median; range 4 to 8) of the 8 "
        "sign patterns. Their efficiency is 0.999 for all 2. The nearest construction is Proposition 1 for 1 member "
        "and one star for 1 member. Median likeness to each: Proposition 1 0."
    )
    assert re.search(r", two stars 0\.\d\d\.$", text)


def test_of_other_numbers_of_bits_there_are_two_constructions():
    table = circuits_table(record(k=4))
    assert not any("star" in cell for cell in table["nearest"])
    assert len(rows(table)[0]["same sign"].split("(")[1].replace(" ", "").strip(")")) == 16
    text = found_parity_circuits(record(k=4))
    assert "of the 16 sign patterns" in text
    assert re.search(r"Median likeness to each: Proposition 1 0\.\d\d, nearer half 0\.\d\d\.$", text)
    assert "(" not in rows(circuits_table(record(k=5)))[0]["same sign"], "too many patterns to list"


def test_a_member_that_has_diverged_has_dashes():
    group = circuits(3)
    diverged = group.map(lambda values: values.where(group.member != 1) if "member" in values.dims else values)
    both = circuits_table(record(more={"parity_circuits": diverged.assign_attrs(group.attrs)}))
    assert set(list(rows(both)[1].values())[2:]) == {"–", "–, –"}
    assert rows(both)[0] == rows(circuits_table(record()))[0]
    nothing = group.map(lambda values: values * np.nan).assign_attrs(group.attrs)
    assert "No member has neurons that could be looked at." in found_parity_circuits(
        record(more={"parity_circuits": nothing})
    )
    assert set(circuits_table(record(more={"parity_circuits": nothing}))["neurons"]) == {"–"}


def test_dimensions_may_come_in_any_order():
    group = circuits(3)
    turned = group.transpose("construction", "pattern", "kind", "member", "step")
    assert circuits_table(record(more={"parity_circuits": turned})) == circuits_table(record())


def test_a_record_without_such_a_group_has_no_section(tmp_path):
    plain = synthetic.parity_record()
    assert circuits_table(plain) == {}
    assert found_parity_circuits(plain) == ""
    assert report.CIRCUITS_TITLE not in write_report(plain, tmp_path).read_text(encoding="utf-8")
    assert circuits_table(record(more={"parity_circuits": circuits(3).isel(step=[])})) == {}


def test_the_page_of_a_run_has_the_table_and_what_it_shows(tmp_path):
    shown = record()
    text = write_report(shown, tmp_path).read_text(encoding="utf-8")
    assert text.count(f"<h2>{report.CIRCUITS_TITLE}</h2>") == 1
    for part in (found_parity_circuits(shown), HOW_TO_READ):
        assert escape(part) in text
    cells = re.findall(r"<td[^>]*>(.*?)</td>", text)
    for row in rows(circuits_table(shown)):
        assert set(row.values()) <= set(cells)
    assert not re.search(r"\bnan\b", text)


def test_two_groups_of_a_run_are_told_apart():
    table = circuits_table(record(more={"again": circuits(3, k=4)}))
    assert table["group"] == ["parity_circuits"] * 3 + ["again"] * 3
    assert "one star" in table["nearest"][0]
    text = found_parity_circuits(record(more={"again": circuits(3, k=4)}))
    assert text.startswith("parity_circuits: At epoch 300")
    assert "again: At epoch 300" in text


def test_runs_of_different_tasks_are_beside_each_other(tmp_path):
    """Of four bits as of three: patterns of both are in the joined record, whatever their order there."""
    three, four = record(), record(k=4, members=2, steps=(0, 6400))
    records = {"three": three, "four": four, "none": synthetic.parity_record(members=1)}
    joined = join_records(records)
    found = rows(circuits_table(joined))
    assert [row["run"] for row in found] == ["three"] * 3 + ["four"] * 2
    alone = rows(circuits_table(three)) + rows(circuits_table(four))
    for row, own in zip(found, alone, strict=True):
        assert {name: row[name] for name in own if name not in ("member", "seed")} == {
            name: cell for name, cell in own.items() if name not in ("member", "seed")
        }
    text = write_comparison(records, joined, tmp_path).read_text(encoding="utf-8")
    assert text.count(f"<h2>{report.CIRCUITS_TITLE}</h2>") == 1
    assert "three: At epoch 300 (step 9600)" in text
    assert "four: At epoch 200 (step 6400)" in text
    assert not re.search(r"\bnan\b", text)


def test_many_members_are_folded_away(tmp_path):
    many = synthetic.record({"parity_circuits": circuits(31)})
    text = write_report(many, tmp_path).read_text(encoding="utf-8")
    assert text.count("<summary>All 31 members</summary>") == 1
