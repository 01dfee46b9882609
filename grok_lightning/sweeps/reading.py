"""How a sweep over training-set sizes is read from the record of one or several runs.

Groups are found by the kind of callback that wrote them, never by name. Nothing here draws or trains.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

DIFFERENT = "different"
"""Attribute of a joined record whose runs are of different tasks or networks: which things differ."""

__all__ = ["Sweep", "last_measured", "read_sweep"]

READ_APART = ("member", "seed", "weight_decay", "eps")
"""Member coordinates that a sweep has a field for."""


@dataclass(frozen=True, eq=False)
class Sweep:
    """E members that were trained on sets of several sizes, with several weight decays, measured at T steps.

    Everything is float64, but for what is said to be otherwise; NaN where it is not known. A member of a joined record
    is NaN at the steps of other runs: its series are its finite entries.

    Attributes:
        step: Steps at which learning curves were measured, `(T,)`.
        time: Decay units (sum over steps of learning rate times weight decay) since the small training set began to
            count, `(T, E)`; negative before that; 0 throughout without weight decay; NaN where it did not begin.
        train_accuracy: Accuracy on the rows then trained on, in [0, 1], `(T, E)`; NaN at the step of a shrink, at which
            it is measured on the rows before.
        accuracy: On all held-out rows, removed ones and never seen ones: the test accuracy of Varma, Shah, Kenton,
            Kramár, Kumar 2023 (arXiv 2309.02390), `(T, E)`.
        unpaired: On held-out rows (a, b) whose swap (b, a) is not trained on either, `(T, E)`.
        removed: On rows that were trained on before the set was shrunk, `(T, E)`.
        never_seen: On rows that were never trained on, `(T, E)`.
        norm: L2 norm of all parameters, `(T, E)`.
        box_share: Share of the squared norm in weights above half of the largest weight that AdamW allows, `(T, E)`.
        size: Rows trained on at the end, `(E,)`.
        weight_decay: `(E,)`.
        eps: The optimizer's term for numerical stability, `(E,)`.
        seed: The coordinate `seed`, int64, `(E,)`; 0 where there is none, so that nothing counts as a repetition that
            is not known to be one.
        began: Step at which the small set began, `(E,)`: 0, or the step of the shrink; NaN where that did not come.
        start_accuracy: Held-out accuracy at the first measurement at or after `began`, `(E,)`: a network that was
            warm-started or shrunk begins near 1. Where the set was shrunk and no rows were held out at the last
            measurement up to then, accuracy on the rows trained on there, which were the whole table.
        chance: Accuracy of guessing; NaN where the record does not tell (then taken for 0).
        other: Further member coordinates by name, such as `run` (text), each `(E,)`.
        member: Labels of the members in the record, `(E,)`.
    """

    step: NDArray[np.float64]
    time: NDArray[np.float64]
    train_accuracy: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    unpaired: NDArray[np.float64]
    removed: NDArray[np.float64]
    never_seen: NDArray[np.float64]
    norm: NDArray[np.float64]
    box_share: NDArray[np.float64]
    size: NDArray[np.float64]
    weight_decay: NDArray[np.float64]
    eps: NDArray[np.float64]
    seed: NDArray[np.int64]
    began: NDArray[np.float64]
    start_accuracy: NDArray[np.float64]
    chance: float
    other: dict[str, NDArray[Any]]
    member: NDArray[Any]


def read_sweep(record: xr.DataTree, *, mixed: bool = False) -> Sweep | None:
    """Reads a sweep from the record of a run, or from a joined one.

    Args:
        record: A record with groups of the kinds `LearningCurves` (`accuracy` over `(step, member, split)`, in any
            order) and `Convergence` (`decay_time`, `norm`, `box_share` over `(step, member)`; `weight_decay`, `eps`
            over `member`) and, where the sets were shrunk, `DatasetShrink` (`step`, `size` over `member`; NaN: not
            shrunk). Where several groups of learning curves exist, the first one counts whose
            members a `Convergence` group has too. What was measured at steps at which no learning curves were is
            passed over.
        mixed: Whether to read a joined record even if its runs are of different tasks or networks, as its attribute
            `different` says: their members make no common curve.

    Returns:
        The members of known size that both groups have; None when there are none. The size is the number of rows kept
        or, where a shrink did not come, the coordinate `shrink_size`; of members that nothing was to shrink, the
        coordinate `train_size`. A fraction does not tell it.
    """
    if DIFFERENT in record.attrs and not mixed:
        return None
    for curves in _groups_of_kind(record, "LearningCurves"):
        convergence = _partner_of_kind(record, "Convergence", curves)
        if convergence is None:
            continue
        shrink = _partner_of_kind(record, "DatasetShrink", curves)
        size = _column(curves, "train_size") if shrink is None else _sizes(curves, shrink)
        known = np.isfinite(size) & np.isin(_labels(curves), _labels(convergence))
        if known.any():
            members = np.flatnonzero(known)
            chance = float(record.attrs.get("chance", np.nan))
            return _sweep(curves, convergence, shrink, members, size[members], chance)
    return None


def last_measured(values: NDArray[np.float64]) -> NDArray[np.intp]:
    """Where along its first dimension each column has its last finite value: `(E,)` from `(T, E)`; −1 for nowhere."""
    present = np.isfinite(values)
    if not len(present):
        return np.full(present.shape[1], -1)
    return np.where(present.any(axis=0), len(present) - 1 - present[::-1].argmax(axis=0), -1)


def _sweep(
    curves: xr.Dataset,
    convergence: xr.Dataset,
    shrink: xr.Dataset | None,
    members: NDArray[np.intp],
    size: NDArray[np.float64],
    chance: float,
) -> Sweep:
    """The sweep of the members at these positions of the learning curves."""
    labels = _labels(curves)[members]
    curves, convergence = curves.isel(member=members), convergence.reindex(member=labels)
    began, shrunk = np.zeros(len(labels)), np.zeros(len(labels), dtype=bool)
    if shrink is not None:
        shrunk = np.isin(labels, _labels(shrink))
        began = np.where(shrunk, _column(shrink.reindex(member=labels), "step"), began)
    at_curves = convergence.reindex(step=curves["step"].values)
    train, accuracy = _curve(curves, "train"), _curve(curves, "held_out")
    step = np.asarray(curves["step"].values, dtype=np.float64)
    return Sweep(
        step=step,
        time=_series(at_curves, "decay_time") - _time_at(convergence, began),
        train_accuracy=np.where(shrunk & (step[:, None] == began), np.nan, train),
        accuracy=accuracy,
        unpaired=_curve(curves, "held_out_unpaired"),
        removed=_curve(curves, "held_out_removed"),
        never_seen=_curve(curves, "held_out_never_seen"),
        norm=_series(at_curves, "norm"),
        box_share=_series(at_curves, "box_share"),
        size=size,
        weight_decay=_column(convergence, "weight_decay"),
        eps=_column(convergence, "eps"),
        seed=np.nan_to_num(_column(curves, "seed")).astype(np.int64),
        began=began,
        start_accuracy=_start(step, train, accuracy, began, shrunk),
        chance=chance,
        other={
            str(name): np.asarray(values.values)
            for name, values in curves.coords.items()
            if values.dims == ("member",) and name not in READ_APART
        },
        member=labels,
    )


def _groups_of_kind(record: xr.DataTree, kind: str) -> Iterator[xr.Dataset]:
    """The groups with members that a callback of this kind wrote, in the order of the record."""
    for node in record.subtree:
        if node.attrs.get("kind") == kind and "member" in node.dims:
            group = node.to_dataset()
            yield group if "member" in group.coords else group.assign_coords(member=np.arange(group.sizes["member"]))


def _partner_of_kind(record: xr.DataTree, kind: str, group: xr.Dataset) -> xr.Dataset | None:
    """The first group of another kind that has any of the members of a group; None when there is none."""
    others = _groups_of_kind(record, kind)
    return next((other for other in others if np.isin(_labels(group), _labels(other)).any()), None)


def _labels(group: xr.Dataset) -> NDArray[Any]:
    return np.asarray(group["member"].values)


def _sizes(curves: xr.Dataset, shrink: xr.Dataset) -> NDArray[np.float64]:
    """Rows that each member trained on at the end, or was to train on: `(E,)`; NaN where nothing tells."""
    kept = _column(shrink.reindex(member=_labels(curves)), "size")
    shrunk = np.where(np.isfinite(kept), kept, _column(curves, "shrink_size"))
    return np.where(np.isin(_labels(curves), _labels(shrink)), shrunk, _column(curves, "train_size"))


def _column(group: xr.Dataset, name: str) -> NDArray[np.float64]:
    """A variable or coordinate over the members: `(E,)`; NaN where the group has none of that name."""
    if name not in group.variables or group[name].dims != ("member",):
        return np.full(group.sizes["member"], np.nan)
    return np.asarray(group[name].values, dtype=np.float64)


def _series(group: xr.Dataset, name: str) -> NDArray[np.float64]:
    """A variable over time: `(T, E)`; NaN where the group has none of that name."""
    if name not in group:
        return np.full((group.sizes["step"], group.sizes["member"]), np.nan)
    return np.asarray(group[name].transpose("step", "member").values, dtype=np.float64)


def _curve(curves: xr.Dataset, split: str) -> NDArray[np.float64]:
    """Accuracy on one split over time: `(T, E)`; NaN where it was not measured."""
    if "accuracy" not in curves or split not in curves["split"].values:
        return np.full((curves.sizes["step"], curves.sizes["member"]), np.nan)
    return _series(curves.sel(split=split), "accuracy")


def _time_at(convergence: xr.Dataset, steps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each member's decay time at a step of its own: `(E,)`, linear between measurements; 0 at step 0, NaN at NaN."""
    measured, times = np.asarray(convergence["step"].values, dtype=np.float64), _series(convergence, "decay_time")
    found = np.where(np.isnan(steps), np.nan, 0.0)
    for member, (step, time) in enumerate(zip(steps, times.T, strict=True)):
        own = np.isfinite(time)
        if step > 0 and own.any():
            found[member] = np.interp(step, np.append(0.0, measured[own]), np.append(0.0, time[own]))
    return found


def _start(
    step: NDArray[np.float64],
    train: NDArray[np.float64],
    accuracy: NDArray[np.float64],
    began: NDArray[np.float64],
    shrunk: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """What each member knew when its small set began: `(E,)`; see `Sweep.start_accuracy`."""
    last = last_measured(np.where(step[:, None] <= began, train, np.nan))
    if not len(step):
        return np.full(len(began), np.nan)
    whole = shrunk & (last >= 0) & np.isnan(accuracy[last, np.arange(len(began))])
    return np.where(whole, train[last, np.arange(len(began))], _first_from(step, accuracy, began))


def _first_from(
    step: NDArray[np.float64], values: NDArray[np.float64], began: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Each member's first finite value at or after a step of its own: `(E,)`; NaN where there is none."""
    candidates = np.isfinite(values) & (step[:, None] >= began)
    first = np.full(len(began), np.nan)
    some = candidates.any(axis=0)
    if some.any():  # Of no steps at all there is no first one to look for.
        first[some] = values[candidates.argmax(axis=0)[some], np.flatnonzero(some)]
    return first
