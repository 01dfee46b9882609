"""The page of a run, or of several beside each other: what happened, in words, numbers and figures.

One HTML file that needs nothing beside it: pictures are inside, there are no scripts, nothing is fetched. It is written
from the record alone, so that it can be made again at any time.
"""

import base64
import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from numpy.typing import NDArray

from grok_lightning.figures import FigureSpec, available
from grok_lightning.figures.curves import (
    accuracy_at_memorisation,
    delay_sentence,
    last_accuracy,
    onset_sentences,
)
from grok_lightning.figures.parity_circuits import HOW_TO_READ as HOW_TO_READ_CIRCUITS
from grok_lightning.figures.parity_circuits import circuits_table, found_parity_circuits
from grok_lightning.figures.reading import (
    RUN,
    Clock,
    Onsets,
    groups_of_kind,
    member_coordinates,
    member_labels,
    read_onsets,
)
from grok_lightning.figures.size_sweep import (
    SizeSweep,
    interval_words,
    mixed_sentence,
    reading_sentences,
    summary_sentence,
)
from grok_lightning.figures.style import remove_caption
from grok_lightning.figures.words import decimals, listing, number
from grok_lightning.sweeps import REGIMES, Arm, definitions, judged_on, regimes_of

__all__ = ["verdict", "write_comparison", "write_report"]

DPI = 150
MANY_MEMBERS = 30  # Beyond it the table of members is folded away.
# Told elsewhere on the page, or too long for a table.
NOT_LISTED = ("config", "experiment", "kind")

OUTCOMES = (
    "memorised",
    "held-out accuracy then",
    "generalised",
    "forgotten",
    "training accuracy at the end",
    "held-out accuracy at the end",
)
"""Columns of the table of members, after their coordinates."""

CIRCUITS_TITLE = "Which circuit computes the parity"
SWEEP_TITLE = "Two predictions about the size of the training set"

STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --paper: #ffffff; --quiet: #5d5d5d; --line: #d9d9d9;
  --tint: #f4f4f2; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e6; --paper: #161718; --quiet: #a5a5a3; --line: #3a3b3d; --tint: #202224; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1.5rem 1rem 4rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .6rem; }
p { max-width: 46rem; margin: .5rem 0; }
.quiet { color: var(--quiet); font-size: .92rem; }
.verdict { font-size: 1.1rem; border-left: .25rem solid #0072B2; padding-left: .9rem; margin: 1.2rem 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .35rem .9rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; }
td.keep, th.keep { white-space: nowrap; }
[aria-label="circuits"] :is(td, th) { padding-right: .6rem; font-size: .86rem; white-space: normal; }
dl { max-width: 46rem; font-size: .92rem; margin: .8rem 0; }
dt { font-weight: 600; }
dd { margin: 0 0 .35rem 1rem; }
h3 { font-size: 1.05rem; margin: 1.6rem 0 .5rem; }
figure { margin: 1rem 0; }
img { display: block; width: 100%; max-width: 100%; height: auto; background: #ffffff; border-radius: .4rem; }
pre { background: var(--tint); padding: .9rem; overflow-x: auto; font-size: .85rem; line-height: 1.4; }
summary { cursor: pointer; padding: .3rem 0; font-weight: 600; }
details { margin: 1.2rem 0; }
""".strip()


def write_report(record: xr.DataTree, directory: str | os.PathLike[str]) -> Path:
    """Writes the figures of a run and the page that shows them.

    Every figure that the record has the groups for goes to `figures/<name>.png`, with its caption, and into
    `report.html`, where the caption is text. Each file is written beside its place and then moved there, so that a
    reader finds either the old one or the new one, whole.

    Args:
        record: The record of a run, in memory or opened from its file. Groups may be missing and values NaN.
        directory: The run's directory; made when it does not exist.

    Returns:
        The path of the page.

    Raises:
        OSError: If the directory cannot be written to.
    """
    title = str(record.attrs.get("experiment", "")) or "run"
    before = _summary(record) + _sweep_section(record) + _members_table({title: record})
    return _write_page(record, Path(directory), title, before, _circuits_section(record) + _more(record))


def write_comparison(
    records: Mapping[str, xr.DataTree], joined: xr.DataTree, directory: str | os.PathLike[str]
) -> Path:
    """Writes the figures of several runs, laid over one another, and the page that shows them.

    Files and their names are those of `write_report`.

    Args:
        records: The records of the runs, by their labels: verdicts, members and configurations come from here.
        joined: The same runs as members of one record, `grok_lightning.records.join_records(records)`: the figures, and
            what is said of a sweep over training-set sizes, come from here.
        directory: Where to; made when it does not exist.

    Returns:
        The path of the page.

    Raises:
        OSError: If the directory cannot be written to.
    """
    verdicts = "\n".join(f"<h2>{escape(label)}</h2>\n{_summary(record)}" for label, record in records.items())
    more = "\n".join(_more(record, f" of {label}") for label, record in records.items())
    before = f"{verdicts}\n{_sweep_section(joined)}{_members_table(records)}"
    return _write_page(joined, Path(directory), " + ".join(records), before, _circuits_section(joined) + more)


def _write_page(record: xr.DataTree, directory: Path, title: str, before: str, after: str) -> Path:
    """Writes the figures of a record, and the page that has them between the sections before and after."""
    (directory / "figures").mkdir(parents=True, exist_ok=True)
    figures = []
    for spec in available(record):
        figure = spec.draw(record)
        _write(directory / "figures" / f"{spec.name}.png", _png(figure))
        remove_caption(figure)  # On the page the caption is text, which phones and screen readers can read.
        figures.append(_figure(record, spec, _png(figure)))
    path = directory / "report.html"
    _write(path, _page(title, [before, *figures, after]).encode())
    return path


def verdict(record: xr.DataTree) -> str:
    """What a run came to, in a few sentences.

    Args:
        record: The record of a run.

    Returns:
        How many members memorised and generalised and when (medians and ranges over members), how many times as long
        generalising took as memorising, how exactly the onsets are known, what a sweep over training-set sizes came
        to, and how the run ended if not by finishing.
    """
    onsets = [*onset_sentences(record), delay_sentence(record), _resolution_sentence(record)]
    sentences = [*onsets, summary_sentence(record)]
    status = str(record.attrs.get("status", "finished"))
    if status != "finished":
        last = record.attrs.get("last_step")
        ended = "had not ended" if status == "running" else f"was {status}"
        sentences.append(f"The run {ended}" + (f" at {Clock.of(record).at(last)}." if last is not None else "."))
    return " ".join(sentence for sentence in sentences if sentence)


def _resolution_sentence(record: xr.DataTree) -> str:
    groups = [*groups_of_kind(record, "Onset").values()]
    if not groups:
        return ""
    onsets = read_onsets(record, member_labels(groups[0]))
    assert onsets is not None
    # What held at step 0 has no measurement before it.
    known = np.concatenate(
        [np.where(onsets.step[event] > 0, onsets.resolution[event], np.nan) for event in ("memorised", "generalised")]
    )
    known = known[np.isfinite(known)]
    if not known.size:
        return ""
    low, high = number(float(known.min())), number(float(known.max()))
    steps = f"{low} {'step' if low == '1' else 'steps'}" if low == high else f"{low} to {high} steps"
    return f"Each onset is known to within {steps}, the distance to the measurement before it."


def _write(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def _page(title: str, sections: Sequence[str]) -> str:
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{STYLE}\n</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{escape(title)}</h1>\n" + "\n".join(section for section in sections if section) + "\n</main>\n"
        "</body>\n</html>\n"
    )


def _summary(record: xr.DataTree) -> str:
    """How long a run trained, and what it came to."""
    return f'<p class="quiet">{escape(_subtitle(record))}</p>\n<p class="verdict">{escape(verdict(record))}</p>\n'


def _subtitle(record: xr.DataTree) -> str:
    parts = []
    members = record.attrs.get("n_members")
    if members is not None:
        parts.append(f"{members} {'member' if members == 1 else 'members'}")
    last = record.attrs.get("last_step")
    if last is not None:
        parts.append(f"trained to {Clock.of(record).at(last)}")
    if "status" in record.attrs:
        parts.append(str(record.attrs["status"]))
    return ", ".join(parts)


def _members_table(records: Mapping[str, xr.DataTree]) -> str:
    """One row a member: its run, if there are several, its coordinates, its onsets, its accuracies.

    Empty when no group says who the members are.
    """
    runs = {label: columns for label, record in records.items() if (columns := _member_columns(record))}
    if not runs:
        return ""
    coordinates = dict.fromkeys(name for columns in runs.values() for name in columns if name not in OUTCOMES)
    outcomes = [name for name in OUTCOMES if any(name in columns for columns in runs.values())]
    sizes = {label: len(columns["member"]) for label, columns in runs.items()}
    table = {RUN: [label for label, n in sizes.items() for _ in range(n)]} if len(records) > 1 else {}
    for name in (*coordinates, *outcomes):
        table[name] = [cell for label, columns in runs.items() for cell in columns.get(name, ["–"] * sizes[label])]
    notes = {label: note for label, record in records.items() if (note := _thresholds(record))}
    same = len(set(notes.values())) == 1
    text = "".join(
        f'\n<p class="quiet">{escape(note if same else f"{label}: {note}")}</p>'
        for label, note in [*notes.items()][: 1 if same else None]
    )
    content = f"{_table(table, 'members')}{text}"
    n = sum(sizes.values())
    return f"<h2>Members</h2>\n{_details(f'All {n} members', content) if n > MANY_MEMBERS else content}"


def _circuits_section(record: xr.DataTree) -> str:
    """Which circuit each member computes a parity with; empty where nobody looked."""
    table = circuits_table(record)
    if not table:
        return ""
    n = len(table["member"])
    content = _table(table, "circuits")
    return (
        f"<h2>{CIRCUITS_TITLE}</h2>\n<p>{escape(found_parity_circuits(record))}</p>\n"
        f"{_details(f'All {n} members', content) if n > MANY_MEMBERS else content}\n"
        f'<p class="quiet">{escape(HOW_TO_READ_CIRCUITS)}</p>\n'
    )


def _member_columns(record: xr.DataTree) -> dict[str, list[str]]:
    """The columns of the members of one run; empty when no group says who they are."""
    curves = next(iter(groups_of_kind(record, "LearningCurves").values()), None)
    onset = next(iter(groups_of_kind(record, "Onset").values()), None)
    group = curves if curves is not None else onset
    if group is None:
        return {}
    labels = member_labels(group)
    columns: dict[str, list[str]] = {"member": [number(label) for label in labels]}
    columns |= {name: [number(value) for value in values] for name, values in member_coordinates(group).items()}
    onsets = read_onsets(record, labels)
    clock = Clock.of(record)
    if onsets is not None:
        columns["memorised"] = _onset_cells(clock, onsets, "memorised")
        columns["generalised"] = _onset_cells(clock, onsets, "generalised")
        if np.isfinite(onsets.step["forgotten"]).any():
            columns["forgotten"] = _onset_cells(clock, onsets, "forgotten")
    if curves is not None:
        columns["training accuracy at the end"] = _accuracy_cells(last_accuracy(curves, "train")[0])
        columns["held-out accuracy at the end"] = _accuracy_cells(last_accuracy(curves, "held_out")[0])
        if onsets is not None:
            columns["held-out accuracy then"] = _accuracy_cells(accuracy_at_memorisation(record, curves))
    return columns


def _onset_cells(clock: Clock, onsets: Onsets, event: str) -> list[str]:
    cells = []
    rows = zip(onsets.step[event], onsets.last_step[event], onsets.looked_for[event], strict=True)
    for step, last, looked_for in rows:
        if step == 0:
            cells.append("from the start")
        elif np.isfinite(step):
            cells.append(clock.at(step))
        elif not looked_for:
            cells.append("–")
        else:
            cells.append(f"not by step {number(float(last))}" if np.isfinite(last) else "not in this run")
    return cells


def _accuracy_cells(values: NDArray[np.float64]) -> list[str]:
    return [decimals(float(value)) if np.isfinite(value) else "–" for value in values]


def _thresholds(record: xr.DataTree) -> str:
    onset = next(iter(groups_of_kind(record, "Onset").values()), None)
    attributes = {} if onset is None else onset.attrs
    settings = ", ".join(f"{name} = {number(value)}" for name, value in attributes.items() if name != "kind")
    return f"Onsets were looked for with {settings}." if settings else ""


def _table(columns: Mapping[str, Sequence[str]], name: str) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    rows = "\n".join(
        "<tr>" + "".join(f'<td class="keep">{escape(cell)}</td>' for cell in row) + "</tr>"
        for row in zip(*columns.values(), strict=True)
    )
    # Reachable by keyboard, for on a narrow screen it scrolls.
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(name)}">\n<table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>\n</div>"
    )


# ---- a sweep over training-set sizes ---------------------------------------------------------------------------------


def _sweep_section(record: xr.DataTree) -> str:
    """Both verdicts, what they rest on, and what became of the members; empty where there is no such sweep.

    Of runs that cannot be judged as one, it says why.
    """
    found = SizeSweep.of(record)
    if found is None:
        mixed = mixed_sentence(record)
        return f"<h2>{SWEEP_TITLE}</h2>\n<p>{escape(mixed)}</p>\n" if mixed else ""
    verdicts = "\n".join(
        f'<p class="verdict"><strong>{escape(entry.name)}: {escape(entry.outcome)}.</strong> {escape(entry.claim)} '
        f"{escape(entry.because)}</p>"
        for entry in found.verdicts
    )
    strength = "eps · λ: at a full-batch fixed point of AdamW, the strength of the L2 penalty that it amounts to."
    notes = " ".join(
        [
            *reading_sentences(found),
            "Cells: mean accuracy on all held-out rows over the members that had converged, with their number; without "
            "weight decay, over all members at the last measurement.",
            "D_crit: the size at which accuracy passes one half between chance and 1, fitted to each seed; mean and "
            f"{found.margins.confidence:.0%} interval over seeds.",
            *([strength] if _eps_known(found) else []),
        ]
    )
    return (
        f"<h2>{SWEEP_TITLE}</h2>\n"
        '<p class="quiet">Predictions 2 and 3 of Varma, Shah, Kenton, Kramár, Kumar 2023, arXiv 2309.02390. D: rows '
        f"trained on; λ: weight decay.</p>\n{verdicts}\n{_table(_ends_table(found), 'final accuracy by size')}\n"
        f'<p class="quiet">{escape(notes)}</p>\n{_regimes_section(found)}'
    )


def _ends_table(found: SizeSweep) -> dict[str, list[str]]:
    """Final accuracy by size and arm; beneath, the critical size of each arm and what its members were like."""
    rows = [f"D = {number(size)}" for size in found.sizes]
    rows += ["D_crit", "D at 90 % over D at 10 %", *(["eps · λ"] if _eps_known(found) else []), "weights in the box"]
    table = {"held-out accuracy": [*rows, "lowest train accuracy, then", "the same, since the set began"]}
    for arm in found.arms:
        shares = "–" if np.isnan(arm.box_share) else decimals(arm.box_share) + (" (in the box)" if arm.in_box else "")
        lowest = [
            _lowest(values[arm.members]) for values in (found.final.train_accuracy, found.final.lowest_train_accuracy)
        ]
        ends = [_end_cell(found, arm, float(size)) for size in found.sizes]
        sizes = [interval_words(arm.critical_size), interval_words(arm.width)]
        strength = ["–" if np.isnan(arm.eps) else number(arm.eps * arm.weight_decay)] if _eps_known(found) else []
        table[found.name(arm)] = [*ends, *sizes, *strength, shares, *lowest]
    return table


def _eps_known(found: SizeSweep) -> bool:
    """Whether the eps of any arm is known."""
    return any(np.isfinite(arm.eps) for arm in found.arms)


def _end_cell(found: SizeSweep, arm: Arm, size: float) -> str:
    """Mean accuracy of an arm at a size, and over how many of how many members."""
    mine = arm.members[found.sweep.size[arm.members] == size]
    counted = mine[found.counts(arm)[mine]]
    if not mine.size:
        return "–"
    mean = decimals(float(found.final.accuracy[counted].mean())) if counted.size else "–"
    return f"{mean} ({counted.size} of {mine.size})"


def _lowest(values: NDArray[np.float64]) -> str:
    values = values[np.isfinite(values)]
    return decimals(float(values.min())) if values.size else "–"


def _regimes_section(found: SizeSweep) -> str:
    """How many members of each size and arm are in which regime, and what the regimes are."""
    regimes = np.array(regimes_of(found.sweep, found.final))
    table = {"regimes": [f"D = {number(size)}" for size in found.sizes]}
    for arm in found.arms:
        table[found.name(arm)] = []
        for size in found.sizes:
            mine = Counter(regimes[arm.members[found.sweep.size[arm.members] == size]].tolist())
            cell = ", ".join(f"{mine[regime]} {regime}" for regime in REGIMES if mine[regime])
            table[found.name(arm)].append(cell or "–")
    words = definitions()
    present = [regime for regime in REGIMES if regime in regimes]
    lines = "\n".join(f"<dt>{escape(regime)}</dt><dd>{escape(words[regime])}</dd>" for regime in present)
    splits = {"held_out_unpaired": "held-out rows whose swap is held out too", "held_out": "all held-out rows"}
    judged = listing([splits[split] for split in splits if split in judged_on(found.sweep)])
    return (
        f"<h3>What became of the members</h3>\n{_table(table, 'regimes by size')}\n<dl>\n{lines}\n</dl>\n"
        f'<p class="quiet">Accuracy is here that on {escape(judged)}, corrected for chance: 0 is guessing, 1 knows all.'
        "</p>\n"
    )


def _figure(record: xr.DataTree, spec: FigureSpec, picture: bytes) -> str:
    found = escape(spec.found(record))
    data = base64.b64encode(picture).decode("ascii")
    return (
        f"<h2>{escape(spec.title)}</h2>\n<figure>\n"
        f'<img alt="{escape(spec.title)}: {found}" src="data:image/png;base64,{data}">\n<figcaption>\n'
        f'<p>{found}</p>\n<p class="quiet">{escape(spec.how_to_read)}</p>\n</figcaption>\n</figure>'
    )


def _more(record: xr.DataTree, of_run: str = "") -> str:
    """What few readers want to see: the configuration; versions, commit, devices and what else was noted."""
    parts = []
    config = str(record.attrs.get("config", ""))
    if config:
        parts.append(_details(f"Configuration{of_run}", f"<pre>{escape(config)}</pre>"))
    facts: dict[str, Any] = {str(name): value for name, value in record.attrs.items() if name not in NOT_LISTED}
    if facts:
        rows = "\n".join(
            f'<tr><th scope="row" class="keep">{escape(name)}</th><td>{escape(number(value))}</td></tr>'
            for name, value in facts.items()
        )
        parts.append(_details(f"Versions and other facts{of_run}", f"<table>\n{rows}\n</table>"))
    return "\n".join(parts)


def _details(summary: str, content: str) -> str:
    return f"<details>\n<summary>{escape(summary)}</summary>\n{content}\n</details>"
