"""Which circuit each member computes a parity with: the words of a table, and what it shows."""

from collections import Counter

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from grok_lightning.figures.reading import (
    RUN,
    Clock,
    by_run,
    groups_of_kind,
    member_coordinates,
    member_labels,
    parts_of_kind,
)
from grok_lightning.figures.words import capital, count, decimals, listing, number, spread

__all__ = ["HOW_TO_READ", "circuits_table", "found_parity_circuits"]

KIND = "ParityCircuits"

CONSTRUCTIONS = {
    "proposition_1": "Proposition 1",
    "nearer_half": "nearer half",
    "proposition_2": "Proposition 2",
    "proposition_3": "Proposition 3",
    "one_star": "one star",
    "two_stars": "two stars",
}
"""Names of the constructions, by their labels."""

SAME, OPPOSITE, NEITHER = "same", "opposite", "neither"

LISTED_PATTERNS = 16
"""Sign patterns beyond which their neurons are counted, and not listed one pattern after another."""

NEAR = 0.94
"""Likeness from which a construction is near, to two decimals, as it is shown. Chance is below it: of 200 sets of seven
neurons drawn at random from an initial network for three bits the best comes to 0.89, of 24 neurons to 0.91."""

NONE = "none"
"""What members are near to that are near no construction."""

HOW_TO_READ = (
    "Likeness: how well what the neurons contribute on the 8 patterns of the secret bits (16 of four) matches a "
    f"construction's, by cosines both ways, 0 to 1; near from {NEAR} on: neurons drawn at random reach 0.89. A neuron "
    "helps if it adds to the right sign on average. Same, opposite sign: neurons that help, by their output's sign "
    "against the product of their weights (neither: the rest); in brackets how many for −−−, −−+, ... A star is a "
    "neuron right on the three patterns one flip away and wrong on its own. Bias: means of both kinds, over the mean "
    "secret weight. Off support: norm of other weights over secret ones. Efficiency: least squared norm for the same "
    "mean margin, over theirs; Propositions 1, 2, 3 (Merrill et al. 2023, arXiv 2303.11873): 0.38, 0.29, 0.89."
)


def circuits_table(record: xr.DataTree) -> dict[str, list[str]]:
    """What each member's surviving neurons are, at the last measurement of its run.

    Args:
        record: The record of a run, or a joined one, with groups of kind `ParityCircuits`: `size` and `off_support`
            over `(step, member)`, `neurons` over `(step, member, kind, pattern)`, `bias` over `(step, member, kind)`
            and `likeness` over `(step, member, construction)`, each in any order. NaN is told as a dash.

    Returns:
        Columns of equal length by their headings, one row a member; empty where the record has no such group. There is
        no column of neurons that are of neither kind where no member has any.
    """
    groups = groups_of_kind(record, KIND)
    rows = []
    for name, group in groups.items():
        for run, part in by_run(group).items():
            if part.sizes["step"]:
                opening = {RUN: run} if run else {}
                opening |= {"group": name} if len(groups) > 1 else {}
                rows += [opening | row for row in _rows(part.isel(step=-1))]
    headings = list(dict.fromkeys(heading for row in rows for heading in row))
    table = {heading: [row.get(heading, "–") for row in rows] for heading in headings}
    return {name: cells for name, cells in table.items() if name != NEITHER or set(cells) - {"0", "–"}}


def _rows(last: xr.Dataset) -> list[dict[str, str]]:
    """The rows of the members of one group of one run, at one step."""
    labels, coordinates = member_labels(last), member_coordinates(last)
    neurons, off_support = _neurons(last), _of(last, "off_support")
    size, efficiency = _of(last, "size"), _of(last, "efficiency")
    bias = {kind: _of(last, "bias", kind=kind) for kind in (SAME, OPPOSITE)}
    alike = _likeness(last)
    rows = []
    for e, label in enumerate(labels):
        row = {"member": number(label)} | {name: number(values[e]) for name, values in coordinates.items()}
        here = {kind: counts[e] for kind, counts in neurons.items()}
        helping = sum(float(counts.sum()) for counts in (here[SAME], here[OPPOSITE]))
        counts = np.stack([*here.values()]).sum(axis=0)
        known = bool(np.isfinite(size[e]))
        row |= {
            "neurons": _cell(size[e]),
            "patterns": f"{np.count_nonzero(counts)} of {counts.size}" if known else "–",
            "efficiency": _fraction(efficiency[e]),
        }
        if alike:
            row["nearest"] = _nearest_cell(alike, e)
        row |= {
            "same sign": _counted(here[SAME]) if known else "–",
            "opposite sign": _counted(here[OPPOSITE]) if known else "–",
            NEITHER: _cell(size[e] - helping),
            "bias": f"{_signed(bias[SAME][e])}, {_signed(bias[OPPOSITE][e])}",
            "off support": _fraction(off_support[e]),
        }
        rows.append(row)
    return rows


def _neurons(last: xr.Dataset) -> dict[str, NDArray[np.float64]]:
    """How many neurons have each sign pattern, `(E, 2^k)`, by kind: patterns in their order, without padding.

    In a joined record patterns of fewer or more bits are NaN, and may stand in another order.
    """
    values = last["neurons"].transpose("member", "kind", "pattern")
    labels = [str(label) for label in values["pattern"].values]
    there = np.asarray(np.isfinite(np.asarray(values.values, dtype=np.float64)).any(axis=(0, 1)))
    order = sorted(range(len(labels)), key=lambda i: labels[i].replace("-", " "))  # minus before plus, as in counting
    order = [i for i in order if there[i]] or order
    return {
        kind: np.asarray(values.sel(kind=kind).values, dtype=np.float64)[:, order] for kind in (SAME, OPPOSITE, NEITHER)
    }


def _of(last: xr.Dataset, name: str, **labels: str) -> NDArray[np.float64]:
    return np.asarray(last[name].sel(labels).values, dtype=np.float64)


def _likeness(last: xr.Dataset) -> dict[str, NDArray[np.float64]]:
    """Likeness of every member, `(E,)`, to each construction to which any has one, by its name."""
    found = {name: _of(last, "likeness", construction=label) for label, name in CONSTRUCTIONS.items()}
    return {name: values for name, values in found.items() if np.isfinite(values).any()}


def _nearest(alike: dict[str, NDArray[np.float64]], member: int) -> str:
    """The name of the construction that a member is most like; empty for one that has diverged."""
    known = {name: float(values[member]) for name, values in alike.items() if np.isfinite(values[member])}
    return max(known, key=lambda name: known[name]) if known else ""


def _near(likeness: float) -> bool:
    return round(float(likeness), 2) >= NEAR


def _nearest_cell(alike: dict[str, NDArray[np.float64]], member: int) -> str:
    """What a member is near to, and its likeness: `one star (0.97)`, or `none (two stars 0.91)`."""
    name = _nearest(alike, member)
    if not name:
        return "–"
    value = alike[name][member]
    return f"{name} ({_fraction(value)})" if _near(value) else f"{NONE} ({name} {_fraction(value)})"


def _counted(counts: NDArray[np.float64]) -> str:
    """Their number, and how many there are of each pattern, in narrow fours: `2 (0110 0000)`, or `12 (0 12 0 0)`."""
    total = number(float(counts.sum()))
    if counts.size > LISTED_PATTERNS or not counts.any():
        return total
    each = [number(float(n)) for n in counts]
    if max(map(len, each)) == 1:
        each = ["".join(each[i : i + 4]) for i in range(0, len(each), 4)]
    return f"{total} ({' '.join(each)})"


def _cell(value: float) -> str:
    return number(float(value)) if np.isfinite(value) else "–"


def _fraction(value: float) -> str:
    return decimals(float(value)) if np.isfinite(value) else "–"


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−") if np.isfinite(value) else "–"


# ---- what the run showed ---------------------------------------------------------------------------------------------


def found_parity_circuits(record: xr.DataTree) -> str:
    """What the circuits of a run's members are: how many neurons and patterns, how efficient, and what they are like.

    Returns:
        Sentences with numbers computed from the record, run by run; medians and ranges are over all members of a run.
    """
    clock = Clock.of(record)
    texts = []
    for head, part in parts_of_kind(record, KIND).items():
        if part.sizes["step"]:
            texts.append(head + " ".join(map(capital, _sentences(part.isel(step=-1), clock))))
    return " ".join(texts)


def _sentences(last: xr.Dataset, clock: Clock) -> list[str]:
    size = _of(last, "size")
    known = np.isfinite(size)
    if not known.any():
        return ["no member has neurons that could be looked at."]
    neurons = {kind: counts[known] for kind, counts in _neurons(last).items()}
    patterns = np.count_nonzero(np.stack([*neurons.values()]).sum(axis=0), axis=1)
    sentences = [
        f"at {clock.at(float(last['step']))}, {spread(size[known])} neurons survive, with {spread(patterns)} of the "
        f"{neurons[SAME].shape[1]} sign patterns."
    ]
    efficiency = _of(last, "efficiency")[known]
    if np.isfinite(efficiency).any():
        sentences.append(f"their efficiency is {spread(efficiency[np.isfinite(efficiency)], decimals)}.")
    alike = _likeness(last)
    if alike:
        best = {e: name for e in range(known.size) if (name := _nearest(alike, e))}
        nearest = Counter(name if _near(alike[name][e]) else NONE for e, name in best.items())
        told = [f"{name} for {count(nearest[name], 'member')}" for name in (*alike, NONE) if nearest[name]]
        medians = [f"{name} {decimals(float(np.nanmedian(values)))}" for name, values in alike.items()]
        sentences.append(f"the nearest construction is {listing(told)}.")
        sentences.append(f"median likeness to each: {', '.join(medians)}.")
    return sentences
