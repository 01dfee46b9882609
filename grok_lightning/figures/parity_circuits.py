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

HOW_TO_READ = (
    "Of each member, at its run's last measurement: the neurons of the active subnetwork, by the signs of their "
    "weights on the secret bits. Same and opposite sign: number of neurons that help and whose output has the sign of "
    "the product of their weights, or the other one; in brackets how many have each of the sign patterns, in the "
    "order −−−, −−+, −+−, ... Neither: neurons that do not help, or have no pattern. Bias: means over the neurons of "
    "same and of opposite sign, in units of the mean size of a neuron's weights on the secret bits. For three bits of "
    "equal weights a negative bias goes with the same sign: from −1 down such a neuron fires on its own pattern "
    "alone, as those of Proposition 1 do. A positive one goes with the opposite sign: that is a star, which is right "
    "on the patterns one flip away and wrong on its own. Off support: norm of the weights on the other bits over that "
    "on the secret bits. Efficiency: the least squared norm with which their mean margin can be had, over theirs; 1 at "
    "most (python -m grok_lightning theory least_norm), 0.89 for Proposition 3 and 0.38 for 1. Last columns, and in "
    "brackets after the nearest: likeness to the constructions of Merrill, Tsilivis, Shukla 2023, arXiv 2303.11873, "
    "and to three of ours: one neuron a pattern that fires on the nearer half of all patterns, and one and two stars; "
    "at 1 neurons are the same functions of the secret bits, up to scale and to exchanging bits or their "
    "signs. For three bits, seven neurons drawn at random from an initial network of 1,000 come to a likeness of "
    "0.53-0.72 on average, and of 0.89 at most."
)


def circuits_table(record: xr.DataTree) -> dict[str, list[str]]:
    """What each member's surviving neurons are, at the last measurement of its run.

    Args:
        record: The record of a run, or a joined one, with groups of kind `ParityCircuits`: `size` and `off_support`
            over `(step, member)`, `neurons` over `(step, member, kind, pattern)`, `bias` over `(step, member, kind)`
            and `likeness` over `(step, member, construction)`, each in any order. NaN is told as a dash.

    Returns:
        Columns of equal length by their headings, one row a member; empty where the record has no such group.
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
    # Runs may differ in what there is to compare with.
    last = [heading for name in CONSTRUCTIONS.values() if (heading := _heading(name)) in headings]
    headings = [heading for heading in headings if heading not in last] + last
    return {heading: [row.get(heading, "–") for row in rows] for heading in headings}


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
        known, nearest = bool(np.isfinite(size[e])), _nearest(alike, e)
        row |= {
            "neurons": _cell(size[e]),
            "patterns": f"{np.count_nonzero(counts)} of {counts.size}" if known else "–",
            "efficiency": _fraction(efficiency[e]),
        }
        if len(alike) > 1:
            row["nearest"] = f"{nearest} ({_fraction(alike[nearest][e])})" if nearest else "–"
        row |= {
            "same sign": _counted(here[SAME]) if known else "–",
            "opposite sign": _counted(here[OPPOSITE]) if known else "–",
            "neither": _cell(size[e] - helping),
            "bias": f"{_signed(bias[SAME][e])}, {_signed(bias[OPPOSITE][e])}",
            "off support": _fraction(off_support[e]),
        }
        rows.append(row | {_heading(name): _fraction(values[e]) for name, values in alike.items()})
    return rows


def _heading(name: str) -> str:
    """A construction's name as the head of a narrow column."""
    return name.replace("Proposition", "Prop.")


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


def _counted(counts: NDArray[np.float64]) -> str:
    """Their number, and how many there are of each pattern: `2 (0 1 1 0)`."""
    total = number(float(counts.sum()))
    return (
        total
        if counts.size > LISTED_PATTERNS or not counts.any()
        else f"{total} ({' '.join(number(float(n)) for n in counts)})"
    )


def _cell(value: float) -> str:
    return number(float(value)) if np.isfinite(value) else "–"


def _fraction(value: float) -> str:
    return decimals(float(value)) if np.isfinite(value) else "–"


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−") if np.isfinite(value) else "–"


# ---- what the run showed ---------------------------------------------------------------------------------------------


def found_parity_circuits(record: xr.DataTree) -> str:
    """What the circuits of a run's members are: how many neurons and patterns, of which kinds, and what they are like.

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
    same, opposite = (spread(neurons[kind].sum(axis=1)) for kind in (SAME, OPPOSITE))
    off_support, efficiency = (_of(last, name)[known] for name in ("off_support", "efficiency"))
    sentences = [
        f"at {clock.at(float(last['step']))}, {spread(size[known])} neurons survive; {same} help and have an output of "
        f"the same sign as the product of their weights, {opposite} help and have one of the opposite sign; of "
        f"{neurons[SAME].shape[1]} sign patterns {spread(patterns)} have a neuron.",
    ]
    if np.isfinite(off_support).any():
        sentences.append(
            "the norm of the weights on other bits, over that on the secret bits: "
            f"{spread(off_support[np.isfinite(off_support)], decimals)}."
        )
    if np.isfinite(efficiency).any():
        sentences.append(
            "the least squared norm with which their mean margin can be had, over theirs: "
            f"{spread(efficiency[np.isfinite(efficiency)], decimals)}."
        )
    alike = _likeness(last)
    if len(alike) > 1:
        nearest = Counter(_nearest(alike, int(e)) for e in np.flatnonzero(known))
        told = [f"{name} for {count(nearest[name], 'member')}" for name in alike if nearest[name]]
        best = np.fmax.reduce([*alike.values()])
        sentences.append(
            f"the nearest construction is {listing(told)}, with a likeness of "
            f"{spread(best[np.isfinite(best)], decimals)}."
        )
    if alike:
        told = [f"{name} {spread(values[np.isfinite(values)], decimals)}" for name, values in alike.items()]
        sentences.append(f"likeness to each: {', '.join(told)}.")
    return sentences
