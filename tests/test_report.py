import ast
import base64
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import synthetic
import xarray as xr

from grok_lightning import report
from grok_lightning.figures import available
from grok_lightning.records import join_records
from grok_lightning.report import verdict, write_comparison, write_report

TITLES = ["Accuracy and loss", "Effective sparsity", "Subnetworks", "Norms of the neurons"]
FILES = {"curves.png", "effective_sparsity.png", "subnetworks.png", "neuron_norms.png"}
VOID = {"meta", "img", "br", "link"}


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    """Draw in few dots, which takes less time."""
    monkeypatch.setattr(report, "DPI", 30)


@pytest.fixture
def undrawn(monkeypatch):
    """Draw nothing: the words of a page do not depend on it."""
    monkeypatch.setattr(report, "available", lambda record: ())


class Page(HTMLParser):
    """What a browser would find: tags that close, links, pictures, cells and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.images, self.rows, self.tags, self.text = [], [], [], [], [], ""
        self.feed(text)
        assert self.open == [], f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        self.links += [attrs[name] for name in ("src", "href") if name in attrs]
        if tag == "img":
            self.images.append(attrs)
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data
        if self.open and self.open[-1] == "td":
            self.rows[-1][-1] += data


def written(record, directory):
    path = write_report(record, directory)
    text = path.read_text(encoding="utf-8")
    return Page(text), text


def replaced(record, **groups):
    kept = {name: node.to_dataset() for name, node in record.children.items()}
    kept = {name: group for name, group in (kept | groups).items() if group is not None}
    return synthetic.record(kept, **record.attrs)


def test_the_page_has_each_figure_once_and_fetches_nothing(tmp_path):
    page, text = written(synthetic.parity_record(), tmp_path)
    assert [image["alt"].split(":")[0] for image in page.images] == TITLES
    assert page.links
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    pictures = [base64.b64decode(link.removeprefix("data:image/png;base64,"), validate=True) for link in page.links]
    assert all(picture.startswith(b"\x89PNG\r\n") for picture in pictures)
    assert len(set(pictures)) == 4
    assert "script" not in page.tags
    assert not re.search(r"https?://|url\(|@import", text)
    assert {path.name for path in (tmp_path / "figures").iterdir()} == FILES
    assert {path.name for path in tmp_path.iterdir()} == {"figures", "report.html"}


def test_the_table_has_the_numbers_of_the_record(tmp_path, undrawn):
    record = synthetic.parity_record()
    onset = record["onset"].to_dataset()
    onset["step"].loc[{"event": "generalised", "member": 1}] = np.nan
    curves = record["curves"].to_dataset()
    curves["accuracy"].loc[{"split": "held_out", "member": 2, "step": 38 * 32}] = 0.4321
    curves["accuracy"].loc[{"split": "held_out", "member": 1, "step": 9600}] = 0.51
    page, _ = written(replaced(record, onset=onset, curves=curves), tmp_path)
    members = [row for row in page.rows if len(row) == 7]
    assert len(members) == 5
    assert members[0][:3] == ["0", "0", "epoch 27 (step 864)"]
    assert members[0][4] == "epoch 125 (step 4000)"
    assert members[1][4] == "not by step 9600"
    assert members[1][6] == "0.51"
    assert members[2][2:4] == ["epoch 38 (step 1216)", "0.43"]
    assert members[4][5:] == ["1.00", "1.00"]


def test_the_verdict_is_computed_from_the_record():
    record = synthetic.parity_record()
    text = verdict(record)
    assert "All 5 members memorised, at epoch 27 (median; range 20 to 38)." in text
    assert "All 5 members generalised, at epoch 125 (median; range 118 to 174)." in text
    assert "Generalising took 4.6 times" in text
    assert "known to within 32 steps" in text
    assert "stopped" not in text
    for status in ("stopped", "interrupted"):
        record.attrs |= {"status": status, "last_step": 9600}
        assert verdict(record).endswith(f"The run was {status} at epoch 300 (step 9600).")
    record.attrs["status"] = "running"
    assert verdict(record).endswith("The run had not ended at epoch 300 (step 9600).")


def test_a_nasty_name_is_text_and_not_markup(tmp_path):
    record = synthetic.parity_record()
    nasty = '<script>alert("1")</script>&$x$'
    curves = record["curves"].to_dataset().assign_coords(note=("member", [nasty, "b", "c", "d", "e"]))
    record = replaced(record, curves=curves)
    record.attrs |= {"experiment": nasty, "config": f"name: {nasty}\n</pre>", "version_x": nasty}
    page, text = written(record, tmp_path)
    assert "script" not in page.tags
    assert "<script" not in text
    assert page.text.count(nasty) >= 4


def test_config_and_versions_are_on_the_page(tmp_path, undrawn):
    page, _ = written(synthetic.parity_record(), tmp_path)
    assert "class_path: MLP" in page.text
    assert ["2.13.0"] in page.rows


def awkward():
    full = synthetic.parity_record()
    groups = {name: node.to_dataset() for name, node in full.children.items()}
    nothing = {
        name: group.map(lambda values: xr.full_like(values, np.nan, dtype=float)).assign_attrs(group.attrs)
        for name, group in groups.items()
    }
    timed = [name for name in groups if name != "onset"]
    return {
        "NaN everywhere": replaced(full, **nothing),
        "one step": replaced(full, **{name: groups[name].isel(step=[0]) for name in timed}),
        "one member": synthetic.parity_record(members=1),
        "no onsets": replaced(full, onset=None),
        "onsets only": synthetic.record({"onset": groups["onset"]}),
        "nothing": synthetic.record({}),
        "no attributes": xr.DataTree(),
        "sweep": synthetic.sweep_record(12, 2),
    }


@pytest.mark.parametrize("name", list(awkward()))
def test_awkward_records_get_a_page(name, tmp_path):
    page, _ = written(awkward()[name], tmp_path)
    assert not re.search(r"\bnan\b", page.text)
    assert len(page.images) == {"onsets only": 0, "nothing": 0, "no attributes": 0}.get(name, 4)
    if name == "no onsets":
        assert "Onsets were not looked for." in page.text
    if name == "one member":
        assert "The member generalised at epoch 125 (step 4000)." in page.text
        assert "1 member," in page.text


def test_a_record_from_a_file_gives_the_same_page(tmp_path):
    record = synthetic.parity_record()
    record.to_netcdf(tmp_path / "records.nc", engine="h5netcdf")
    with xr.open_datatree(tmp_path / "records.nc", engine="h5netcdf") as stored:
        assert verdict(stored) == verdict(record)
        again = write_report(stored, tmp_path / "stored").read_text(encoding="utf-8")
    assert again == write_report(record, tmp_path / "memory").read_text(encoding="utf-8")


def test_a_page_that_cannot_be_finished_leaves_the_old_one(tmp_path, monkeypatch):
    path = write_report(synthetic.parity_record(), tmp_path)
    before = path.read_bytes()

    def full(_):
        raise OSError("no space left on device")

    monkeypatch.setattr("grok_lightning.report.os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_report(synthetic.parity_record(members=1), tmp_path)
    assert path.read_bytes() == before
    assert {entry.name for entry in tmp_path.iterdir()} == {"figures", "report.html"}
    assert {entry.name for entry in (tmp_path / "figures").iterdir()} == FILES


# ---- a sweep over training-set sizes ---------------------------------------------------------------------------------


def regions(text):
    """The tables of a page by their names: rows of cells."""
    found = {}
    for part in text.split('role="region" aria-label="')[1:]:
        name, rest = part.split('"', 1)
        cells = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in re.findall(r"<tr>(.*?)</tr>", rest)]
        found[name] = cells
    return found


def test_a_sweep_over_sizes_has_verdicts_and_tables(tmp_path, undrawn):
    record = synthetic.size_sweep_record(unconverged=(0,))
    page, text = written(record, tmp_path)
    assert "P2: supported." in page.text
    assert "P3: supported." in page.text
    assert "where 1 of 30 members had not converged and is left out" in page.text
    ends = {row[0]: row[1:] for row in regions(text)["final accuracy by size"]}
    assert ends["held-out accuracy"] == ["λ = 0.3", "λ = 1"]
    assert ends["D = 60"][0].endswith("(2 of 3)")
    assert ends["D = 60"][1].endswith("(3 of 3)")
    accuracy = record["curves/accuracy"].sel(split="held_out").isel(step=-1).values
    coordinates = record["curves"].coords
    mine = (coordinates["train_size"].values == 180) & (coordinates["weight_decay"].values == 0.3)
    assert ends["D = 180"][0] == f"{accuracy[mine].mean():.2f} (3 of 3)"
    assert ends["weights in the box"] == ["0.02", "0.02"]
    assert ends["lowest train accuracy, then"] == ["0.996", "0.996"]
    low, high = re.fullmatch(r"13\d \((\d+) to (\d+)\)", ends["D_crit"][1]).groups()
    assert float(low) < synthetic.CRITICAL_SIZE < float(high)
    regimes = {row[0]: row[1:] for row in regions(text)["regimes by size"]}
    assert regimes["D = 60"][0] == "2 ungrokked, 1 not converged"
    assert regimes["D = 300"] == ["3 kept", "3 kept"]
    assert page.tags.count("dt") == 4
    assert verdict(record).endswith(f"D_crit is {ends['D_crit'][0]} at λ = 0.3 and {ends['D_crit'][1]} at λ = 1.")
    assert verdict(record) in page.text


def test_what_stands_apart_in_a_sweep_is_named(tmp_path, undrawn):
    record = synthetic.size_sweep_record(decays=(0, 1, 3), boxed=(3,), margins=False)
    page, text = written(record, tmp_path)
    assert "margins were not written in the configuration before the run" in page.text
    assert "15 members without weight decay were read at the last measurement" in page.text
    ends = {row[0]: row[1:] for row in regions(text)["final accuracy by size"]}
    assert ends["held-out accuracy"] == ["λ = 0", "λ = 1", "λ = 3"]
    assert ends["weights in the box"] == ["–", "0.02", "0.80 (in the box)"]
    assert ends["D = 300"][0] == "0.96 (3 of 3)"
    assert ends["D_crit"][0] == "–"


def test_members_of_a_large_sweep_are_folded_away(tmp_path, undrawn):
    _, few = written(synthetic.size_sweep_record(), tmp_path)
    _, many = written(synthetic.size_sweep_record(seeds=4), tmp_path)
    assert "<summary>All" not in few
    assert "<summary>All 40 members</summary>" in many


def test_runs_of_a_sweep_are_judged_together(tmp_path, undrawn):
    records = {
        name: synthetic.size_sweep_record(decays=(decay,), last_time=time)
        for name, decay, time in (("weak", 0.3, 15.0), ("strong", 1.0, 20.0))
    }
    page = compared(records, tmp_path)
    assert page.text.count("Two predictions about the size") == 1
    assert "P3: supported." in page.text
    assert "read at decay time 15, where all 30 members" in page.text
    for record in records.values():
        assert "its independence of weight decay (P3) undecided" in verdict(record)


def test_runs_of_different_tasks_are_not_judged_together(tmp_path, undrawn):
    records = {name: synthetic.size_sweep_record(seeds=1) for name in ("one", "two")}
    records["two"].attrs["chance"] = 1 / 113
    page = compared(records, tmp_path)
    assert page.text.count("Their members are not judged as one sweep: the runs differ in chance.") == 1
    assert "P3: undecided." not in page.text
    assert "D = 60" not in page.text


def test_the_effective_strength_of_the_decay_is_told_where_eps_is_known(tmp_path, undrawn):
    record = synthetic.size_sweep_record(decays=(0, 0.3, 1.0), eps=(1e-6,), seeds=1)
    page, text = written(record, tmp_path)
    ends = {row[0]: row[1:] for row in regions(text)["final accuracy by size"]}
    assert ends["eps · λ"] == ["0", "3e-07", "1e-06"]
    assert "eps · λ: at a full-batch fixed point of AdamW" in page.text
    convergence = record["convergence"].to_dataset()
    half = convergence.eps.where(convergence.weight_decay != 1)
    page, text = written(replaced(record, convergence=convergence.assign(eps=half)), tmp_path)
    assert {row[0]: row[1:] for row in regions(text)["final accuracy by size"]}["eps · λ"] == ["0", "3e-07", "–"]
    unknown = replaced(record, convergence=convergence.assign(eps=convergence.eps * np.nan))
    assert "eps · λ" not in written(unknown, tmp_path)[0].text


def test_regimes_are_read_when_the_sweep_is(tmp_path, undrawn):
    """The stronger decay falls from all it knew once its time of reading has gone by."""
    record = synthetic.size_sweep_record(decays=(0.3, 1.0))
    curves = record["curves"].to_dataset()
    late = (curves.weight_decay == 1) & (record["convergence"].to_dataset().decay_time > 15.5)
    _, text = written(replaced(record, curves=curves.assign(accuracy=curves.accuracy.where(~late, 0.01))), tmp_path)
    regimes = {row[0]: row[1:] for row in regions(text)["regimes by size"]}
    assert regimes["D = 300"] == ["3 kept", "3 kept"]


def test_a_warm_start_is_told_as_such_in_the_table_of_members(tmp_path, undrawn):
    page, _ = written(synthetic.size_sweep_record(seeds=1), tmp_path)
    row = next(row for row in page.rows if len(row) == 10)
    assert row[4:8] == ["from the start", "–", "from the start", "step 333"]
    assert "known to within" not in page.text


def awkward_sweeps():
    full = synthetic.size_sweep_record(seeds=2)
    curves, convergence = (full[name].to_dataset() for name in ("curves", "convergence"))
    return {
        "one seed": synthetic.size_sweep_record(seeds=1),
        "one decay": synthetic.size_sweep_record(decays=(1.0,), seeds=2),
        "no decay": synthetic.size_sweep_record(decays=(0,), seeds=2),
        "nobody converged": synthetic.size_sweep_record(unconverged=range(20), seeds=2),
        "all in the box": synthetic.size_sweep_record(boxed=(0.3, 1.0), seeds=2),
        "several eps": synthetic.size_sweep_record(eps=(1e-8, 1e-6), seeds=2),
        "all kept": synthetic.size_sweep_record(sizes=(600, 700, 800), seeds=2),
        "from scratch": synthetic.size_sweep_record(start="scratch", seeds=2),
        "nothing of chance": synthetic.size_sweep_record(chance=False, seeds=2),
        "no baseline": replaced(full, curves=curves.drop_vars("unpaired_share")),
        "one diverged": replaced(full, curves=curves.where((curves.member != 7) | (curves.step < 900))),
        "no norms": replaced(full, convergence=convergence.assign(norm=convergence.norm * np.nan)),
        "no accuracy": replaced(full, curves=curves.assign(accuracy=curves.accuracy * np.nan)),
        "no onsets": replaced(full, onset=None),
        "one step": replaced(full, curves=curves.isel(step=[0]), convergence=convergence.isel(step=[0])),
        "no steps": replaced(full, curves=curves.isel(step=[]), convergence=convergence.isel(step=[])),
        "other steps": replaced(full, convergence=convergence.isel(step=slice(0, None, 3))),
        "eight decays": synthetic.size_sweep_record(decays=tuple(0.1 * 2.0**i for i in range(8)), seeds=2),
    }


@pytest.mark.parametrize("name", list(awkward_sweeps()))
def test_awkward_sweeps_get_a_page(name, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "available", lambda record: [spec for spec in available(record) if spec.applies])
    page, _ = written(awkward_sweeps()[name], tmp_path)
    assert not re.search(r"\bnan\b|\binf\b", page.text)
    assert len(page.images) == 2
    assert "Two predictions about the size" in page.text


@pytest.mark.parametrize("sizes", [(130,), (130, 300)])
def test_fewer_than_three_sizes_are_no_sweep(sizes, tmp_path, undrawn):
    record = synthetic.size_sweep_record(sizes=sizes)
    page, _ = written(record, tmp_path)
    assert "Two predictions" not in page.text
    assert "transition" not in verdict(record)


# ---- several runs ----------------------------------------------------------------------------------------------------


def runs():
    """Three runs: the second generalises later and has a coordinate and epochs of its own; the third has no onsets."""
    second = synthetic.parity_record(members=2, neurons=50)
    groups = {
        name: node.to_dataset().assign_coords(weight_decay=("member", [0.5, 0.25]))
        for name, node in second.children.items()
    }
    groups["onset"]["step"] = groups["onset"]["step"] * 1.5
    second = synthetic.record(
        groups, **(second.attrs | {"steps_per_epoch": 16, "config": "lr: 0.3", "status": "interrupted"})
    )
    third = replaced(synthetic.parity_record(members=1), onset=None)
    third.attrs["config"] = "<b>"
    return {"parity": synthetic.parity_record(members=3), "slow/version_1": second, "third": third}


def compared(records, directory):
    path = write_comparison(records, join_records(records), directory)
    return Page(path.read_text(encoding="utf-8"))


def test_several_runs_have_one_page_with_a_verdict_each_and_figures_over_one_another(tmp_path):
    records = runs()
    page = compared(records, tmp_path / "compared" / "a+b")
    assert page.tags.count("h1") == 1
    assert "parity + slow/version_1 + third" in page.text
    for record in records.values():
        assert verdict(record) in page.text
    assert [image["alt"].split(":")[0] for image in page.images] == TITLES
    assert "In slow/version_1, weight_decay = 0.25, " in page.images[0]["alt"]
    assert {path.name for path in (tmp_path / "compared" / "a+b" / "figures").iterdir()} == FILES
    assert not re.search(r"\bnan\b", page.text)


def test_the_members_of_several_runs_are_in_one_table_with_the_numbers_of_each(tmp_path, undrawn):
    page = compared(runs(), tmp_path)
    rows = [row for row in page.rows if len(row) == 9]
    assert [row[:4] for row in rows] == [
        ["parity", "0", "0", "–"],
        ["parity", "1", "1", "–"],
        ["parity", "2", "2", "–"],
        ["slow/version_1", "0", "0", "0.5"],
        ["slow/version_1", "1", "1", "0.25"],
        ["third", "0", "0", "–"],
    ]
    assert rows[0][4] == "epoch 27 (step 864)"
    assert rows[3][4] == "epoch 81 (step 1296)"  # Of 16 steps, and half as late again.
    assert rows[3][6] == "epoch 375 (step 6000)"
    assert [row[4:7] for row in rows[5:]] == [["–", "–", "–"]]
    assert all(row[7:] == ["1.00", "1.00"] for row in rows)
    assert page.text.count("Onsets were looked for with") == 1


def test_thresholds_that_differ_are_told_run_by_run(tmp_path, undrawn):
    records = runs()
    records["parity"]["onset"].attrs["memorised_above"] = 0.9
    page = compared(records, tmp_path)
    assert "parity: Onsets were looked for with memorised_above = 0.9." in page.text
    assert "slow/version_1: Onsets were looked for with memorised_above = 0.98." in page.text


def test_each_run_keeps_its_configuration_and_versions(tmp_path, undrawn):
    page = compared(runs(), tmp_path)
    assert page.tags.count("details") == 6
    for text in ("Configuration of parity", "class_path: MLP", "Configuration of slow/version_1", "lr: 0.3", "<b>"):
        assert text in page.text
    assert "b" not in page.tags


def test_runs_that_measured_nothing_get_a_page(tmp_path):
    page = compared({"a": synthetic.record({}), "b": xr.DataTree()}, tmp_path)
    assert page.images == []
    assert page.text.count("Onsets were not looked for.") == 2


def test_reading_and_drawing_need_neither_torch_nor_lightning_nor_pyplot():
    folder = Path(report.__file__).parent
    files = [folder / "report.py", *(folder / "figures").glob("*.py")]
    assert len(files) >= 4
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                root = name.split(".")[0]
                assert root in {"matplotlib", "numpy", "xarray"} | sys.stdlib_module_names or name.startswith(
                    ("grok_lightning.figures", "grok_lightning.sweeps")
                ), f"{file.name} imports {name}"
                assert "pyplot" not in name
