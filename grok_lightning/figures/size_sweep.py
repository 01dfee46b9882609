"""A sweep over training-set sizes, read once for the figures and the page that tell of it."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator
from numpy.typing import NDArray

from grok_lightning.figures.style import SETTING_COLOURS, TICK, tick_text
from grok_lightning.figures.words import count, decimals, listing, number
from grok_lightning.sweeps import (
    Arm,
    Final,
    Interval,
    Margins,
    Sweep,
    Verdict,
    arms_of,
    common_time,
    final_values,
    read_sweep,
    too_short,
    verdicts,
)

__all__ = [
    "BOXED",
    "GREY",
    "LEAST_SIZES",
    "PLAIN",
    "UNDECAYED",
    "SizeSweep",
    "arm_colours",
    "arm_marker",
    "arm_name",
    "has_size_sweep",
    "mixed_sentence",
    "interval_words",
    "number_axis",
    "reading_sentences",
    "summary_sentence",
    "verdict_sentences",
]

LEAST_SIZES = 3
"""Training-set sizes without which there is no sweep over them."""

PLAIN, BOXED, UNDECAYED = "o", "^", "s"
"""Markers of arms: of most, of those in the box, of the one without weight decay."""

GREY = "#666666"


@dataclass(frozen=True)
class SizeSweep:
    """A sweep, and what follows from it.

    Attributes:
        sweep: Its members.
        margins: What counts as converged and as a verdict.
        written: Whether the margins were written in the configuration before the run.
        time: The decay time at which members with weight decay are read; NaN without any.
        short: Which members went through too little decay to set that time, and are read at their own end, `(E,)`.
        final: What was measured of each member then.
        arms: Members with one weight decay and one eps, by ascending weight decay, then eps.
        verdicts: On predictions 2 and 3.
    """

    sweep: Sweep
    margins: Margins
    written: bool
    time: float
    short: NDArray[np.bool_]
    final: Final
    arms: tuple[Arm, ...]
    verdicts: tuple[Verdict, Verdict]

    @classmethod
    def of(cls, record: xr.DataTree) -> "SizeSweep | None":
        """The sweep of a record, of one run or joined; None where `has_size_sweep` is not so.

        Raises:
            ValueError: If the margins written in the record are none.
        """
        sweep = read_sweep(record)
        if sweep is None or not _has_sizes(sweep):
            return None
        margins, written = Margins.from_record(record)
        return cls(
            sweep,
            margins,
            written,
            common_time(sweep, margins),
            too_short(sweep, margins),
            final_values(sweep, None, margins),
            arms_of(sweep, margins),
            verdicts(sweep, margins, written),
        )

    @property
    def chance(self) -> float:
        """Accuracy of guessing; 0 where the record does not tell."""
        return 0.0 if math.isnan(self.sweep.chance) else self.sweep.chance

    @property
    def decayed(self) -> NDArray[np.bool_]:
        """Which members have weight decay, `(E,)`: only they can converge."""
        return np.asarray(self.sweep.weight_decay > 0)

    @property
    def from_scratch(self) -> bool:
        """Whether most members began without knowing held-out rows, and have nothing to forget."""
        known = self.sweep.start_accuracy[np.isfinite(self.sweep.start_accuracy)]
        return bool(known.size) and float(np.median(known)) < (1 + self.chance) / 2

    @property
    def sizes(self) -> NDArray[np.float64]:
        """The different sizes of all arms, ascending."""
        return np.unique(self.sweep.size)

    def counts(self, arm: Arm) -> NDArray[np.bool_]:
        """Which members' values count: `(E,)`. Those that converged; without weight decay, all of the arm."""
        mine = np.isin(np.arange(len(self.sweep.size)), arm.members)
        return mine & (self.final.converged if arm.weight_decay > 0 else np.isfinite(self.final.accuracy))

    def name(self, arm: Arm) -> str:
        """An arm of this sweep in words."""
        return arm_name(arm, self.arms)


def has_size_sweep(record: xr.DataTree) -> bool:
    """Whether a record has members with at least `LEAST_SIZES` different training-set sizes, read to convergence."""
    sweep = read_sweep(record)
    return sweep is not None and _has_sizes(sweep)


def _has_sizes(sweep: Sweep) -> bool:
    return len(np.unique(sweep.size)) >= LEAST_SIZES


def mixed_sentence(record: xr.DataTree) -> str:
    """Why runs with enough sizes together are no one sweep; empty where they are one, or have no sizes."""
    sweep = read_sweep(record, mixed=True)
    if sweep is None or not _has_sizes(sweep) or read_sweep(record) is not None:
        return ""
    different = [name.strip() for name in str(record.attrs["different"]).split(",")]
    return f"Their members are not judged as one sweep: the runs differ in {listing(different)}."


# ---- words -----------------------------------------------------------------------------------------------------------


def arm_name(arm: Arm, arms: tuple[Arm, ...]) -> str:
    """An arm in words, `λ = 0.3, eps 1e-06`: eps only where arms differ in it."""
    differ = len({"none" if math.isnan(other.eps) else repr(other.eps) for other in arms}) > 1
    eps = f", eps {'none' if math.isnan(arm.eps) else number(arm.eps)}" if differ else ""
    return f"λ = {number(arm.weight_decay)}{eps}"


def interval_words(interval: Interval | None) -> str:
    """A mean with its interval: `135 (120 to 150)`; `–` where there is none."""
    if interval is None:
        return "–"
    if interval.n == 1:
        return f"{number(interval.mean)} (one seed)"
    return f"{number(interval.mean)} ({number(interval.low)} to {number(interval.high)})"


def verdict_sentences(found: SizeSweep) -> list[str]:
    """Both verdicts with their numbers, and by what they were reached."""
    sentences = [f"{verdict.name}: {verdict.outcome}. {verdict.claim} {verdict.because}" for verdict in found.verdicts]
    return [*sentences, *reading_sentences(found)]


def reading_sentences(found: SizeSweep) -> list[str]:
    """By what verdicts were reached: whether the margins were written down, the time, who is left out, what is odd."""
    sentences = [_written_sentence(found), *_time_sentences(found)]
    boxed = [arm for arm in found.arms if arm.in_box]
    if boxed:
        shares = listing([f"{decimals(arm.box_share)} at {found.name(arm)}" for arm in boxed])
        sentences.append(
            "In the box: of the squared norm, weights above half of the largest that AdamW allows, 1/λ, have a share "
            f"of {shares}."
        )
    return sentences


def _written_sentence(found: SizeSweep) -> str:
    if found.written:
        return "The margins were written in the configuration before the run."
    return "The margins were not written in the configuration before the run: they are the defaults."


def _time_sentences(found: SizeSweep) -> list[str]:
    """When members were read, which had converged, and whether they still knew the rows trained on."""
    sentences = []
    decayed = found.decayed
    read = decayed & ~found.short
    n, unsettled = int(read.sum()), int((read & ~found.final.converged).sum())
    if n and math.isnan(found.time):
        sentences.append(f"Decay time was not measured: none of {count(n, 'member')} can be held to have converged.")
    elif n:
        settled = (
            f"all {n} members had converged"
            if unsettled == 0
            else f"{unsettled} of {n} members had not converged and {'is' if unsettled == 1 else 'are'} left out"
        )
        sentences.append(f"Members were read at decay time {number(found.time)}, where {settled}.")
    if found.short.any():
        sentences.append(_short_sentence(found))
    undecayed = int((~decayed).sum())
    if undecayed:
        sentences.append(
            f"{count(undecayed, 'member')} without weight decay {'was' if undecayed == 1 else 'were'} read at the last "
            "measurement."
        )
    at_end, lowest = (
        values[np.isfinite(values)] for values in (found.final.train_accuracy, found.final.lowest_train_accuracy)
    )
    if at_end.size and lowest.size:
        since = f"; its lowest since the small set began was {decimals(float(lowest.min()))}"
        sentences.append(
            f"Accuracy on the rows trained on was then at least {decimals(float(at_end.min()))}"
            f"{'' if found.from_scratch else since}."
        )
    return sentences


def _short_sentence(found: SizeSweep) -> str:
    """Who did not go far enough to say anything: whole arms, and members of others."""
    arms = {found.name(arm): (int(found.short[arm.members].sum()), arm.n_members) for arm in found.arms}
    who = [f"{n} of {count(of, 'member')} at {name}" for name, (n, of) in arms.items() if n]
    one = found.short.sum() == 1
    return (
        f"{listing(who)} went through less than {number(found.margins.at_least)} decay units: "
        f"{'it was' if one else 'they were'} read at {'its' if one else 'their'} own end, "
        f"{'has' if one else 'have'} not converged and {'is' if one else 'are'} left out."
    )


def summary_sentence(record: xr.DataTree) -> str:
    """What a sweep came to, in one sentence without reasons; empty where the record has none."""
    found = SizeSweep.of(record)
    if found is None:
        return ""
    second, third = found.verdicts
    critical = [
        f"{interval_words(arm.critical_size)} at {found.name(arm)}"
        for arm in found.arms
        if arm.critical_size is not None
    ]
    sizes = f"; D_crit is {listing(critical)}" if critical else ""
    return (
        f"Over {len(found.sizes)} sizes D of the training set, a sharp transition in D (P2) is {second.outcome}, its "
        f"independence of weight decay (P3) {third.outcome}{sizes}."
    )


# ---- looks -----------------------------------------------------------------------------------------------------------


def arm_colours(arms: tuple[Arm, ...]) -> list[str]:
    """A colour for each arm: named ones while there are few, else an ordered scale; grey without weight decay."""
    decayed = [arm for arm in arms if arm.weight_decay > 0]
    colours = list(SETTING_COLOURS[: len(decayed)])
    if len(decayed) > len(SETTING_COLOURS):
        colours = [to_hex(colormaps["viridis"](place)) for place in np.linspace(0, 0.9, len(decayed))]
    rest = iter(colours)
    return [next(rest) if arm.weight_decay > 0 else GREY for arm in arms]


def arm_marker(arm: Arm) -> str:
    """The marker of an arm's points."""
    if arm.weight_decay <= 0:
        return UNDECAYED
    return BOXED if arm.in_box else PLAIN


def number_axis(axes: Axes, which: str, values: Any, *, spread: float) -> None:
    """Makes an axis logarithmic, with as many of these numbers as ticks as have room.

    Args:
        axes: The axes.
        which: `x` or `y`.
        values: Numbers above 0 that the axis is to show, of any shape.
        spread: How far the axis reaches beyond them, as a factor.
    """
    wanted = np.unique(np.asarray(values, dtype=np.float64))
    low, high = wanted[0] / spread, wanted[-1] * spread
    axis = axes.xaxis if which == "x" else axes.yaxis
    getattr(axes, f"set_{which}scale")("log")
    getattr(axes, f"set_{which}lim")(low, high)
    kept: list[float] = []
    for value in wanted:
        if not kept or math.log(value / kept[-1]) > 0.11 * math.log(high / low):
            kept.append(float(value))
    axis.set_major_locator(FixedLocator(kept))
    axis.set_major_formatter(FuncFormatter(lambda value, _: tick_text(value)))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
    axes.tick_params(labelsize=TICK)
