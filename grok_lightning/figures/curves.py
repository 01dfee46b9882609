"""Accuracy and loss over time, with the onsets: the picture of grokking itself."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter
from numpy.typing import NDArray

from grok_lightning.figures.reading import (
    Clock,
    Onsets,
    Setting,
    curve_of,
    groups_of_kind,
    last_rows,
    member_labels,
    partner_of_kind,
    parts_of_kind,
    read_onsets,
    run_in_title,
    settings,
    values_at,
)
from grok_lightning.figures.style import (
    BLUE,
    GREEN,
    LABEL,
    PURPLE,
    STRIP,
    VERMILLION,
    Dashes,
    Palette,
    add_caption,
    add_key,
    draw_mean,
    draw_step_axis,
    heighten,
    log_ticks,
    mark_onsets,
    mark_onsets_above,
    new_figure,
    onset_handles,
    openings,
    palette,
    setting_handles,
    tick_text,
    tidy,
)
from grok_lightning.figures.words import capital, count, decimals, number, spread
from grok_lightning.sweeps import Survival, in_words

__all__ = [
    "HOW_TO_READ",
    "accuracy_at_memorisation",
    "delay_sentence",
    "draw_curves",
    "found_curves",
    "last_accuracy",
    "onset_sentences",
    "scale_loss",
    "shrink_steps",
    "swapped_share",
]

HOW_TO_READ = (
    "Accuracy (left) and loss (right) on the rows trained on and on held-out rows. Strong lines: mean over members "
    "that differ only in their seeds; bands: one standard deviation to either side; faint lines: single members. "
    "Onsets are marked at the median over members (by Kaplan-Meier where some never got there) and from the earliest "
    "to the latest. Grokking is a long stretch between the two onsets."
)

TRAIN, HELD_OUT, UNPAIRED = "train", "held_out", "held_out_unpaired"
REMOVED, NEVER_SEEN = "held_out_removed", "held_out_never_seen"
SPLIT_NAMES = {TRAIN: "rows trained on", HELD_OUT: "held-out rows"}
UNPAIRED_NAME, SWAPPED_NAME = "held-out, swap held out too", "share with swap trained on"
SPLIT_COLOURS = {TRAIN: BLUE, HELD_OUT: VERMILLION}
PART_NAMES = {REMOVED: "rows removed", NEVER_SEEN: "rows never seen"}
PART_COLOURS = {REMOVED: GREEN, NEVER_SEEN: PURPLE}
SHRUNK = "smaller training set"
SHRINK = "#555555"
SPLIT_DASHES: dict[str, Dashes] = {TRAIN: "--", HELD_OUT: "-"}


def draw_curves(record: xr.DataTree) -> Figure:
    """Draws accuracy and loss over time, one row of panels a group of learning curves.

    After Merrill, Tsilivis, Shukla 2023, arXiv 2303.11873, Figure 2 (left and middle): mean and population standard
    deviation over members, epochs on a log axis. Ours differs: all the held-out rows that the run measured instead of
    100 test points; every member drawn behind the mean; onsets marked; step 0 visible. The loss has a log axis where
    it spans more than a factor of five, linear near 0 where a hinge loss reaches 0 exactly; there the band ends at the
    smallest loss of a member. Members that differ in more than their seeds are averaged within each setting; beyond
    seven settings the means alone are drawn, on an ordered colour scale.

    Where rows are pairs (a, b), this is Figures 1(a) and 1(d) of Varma, Shah, Kenton, Kramár, Kumar 2023, arXiv
    2309.02390, with two lines more: the share of held-out rows whose swap (b, a) was trained on, which is what a
    network gets right that has only noticed that the operation is commutative, and accuracy on the other held-out rows.
    Where the training set was made smaller on the way, the step is marked, and it is Figure 1(b): with accuracy on the
    rows removed and on rows never seen, where there is one setting.

    Args:
        record: A record with a group of kind `LearningCurves`; `loss` and `accuracy` over `(step, member, split)` in
            any order and, if there are such rows, `unpaired_share` over `(step, member)`, the share of the split
            `held_out_unpaired` in the held-out rows. NaN is passed over. Onsets are marked where a group of
            kind `Onset` exists, the smaller set where one of kind `DatasetShrink` does (`step` over `member`, NaN: not
            shrunk).

    Returns:
        The figure, with its caption.

    Raises:
        ValueError: If the record has no learning curves.
    """
    groups = groups_of_kind(record, "LearningCurves")
    if not groups:
        raise ValueError("the record has no group of kind LearningCurves: nothing to draw")
    figure = new_figure(len(groups))
    rows = figure.subplots(len(groups), 2, squeeze=False)
    for axes, (name, group) in zip(rows, groups.items(), strict=True):
        _draw_group(figure, axes, record, group, (f" ({name})" if len(groups) > 1 else "") + run_in_title(group))
    add_caption(figure, f"{HOW_TO_READ} {found_curves(record)}")
    return figure


def _draw_group(figure: Figure, axes: NDArray[Any], record: xr.DataTree, group: xr.Dataset, suffix: str) -> None:
    clock = Clock.of(record)
    found = settings(group)
    key = palette(found)
    onsets = read_onsets(record, member_labels(group))
    strip = onsets if onsets is not None and onsets.any_later else None
    for panel, name in zip(axes, ("accuracy", "loss"), strict=True):
        if name == "loss":
            scale_loss(panel, np.concatenate([_values(group, name, TRAIN), _values(group, name, HELD_OUT)]))
        for setting, colour in zip(found, key.colours, strict=True):
            for split in (TRAIN, HELD_OUT):
                line = SPLIT_COLOURS[split] if len(found) == 1 else colour
                dashes: Dashes = "-" if len(found) == 1 else SPLIT_DASHES[split]
                _draw_line(panel, clock, group, name, split, setting, line, dashes, behind=key.few)
            if name == "accuracy" and "true_accuracy" in group:
                line = SPLIT_COLOURS[TRAIN] if len(found) == 1 else colour
                _draw_line(panel, clock, group, "true_accuracy", TRAIN, setting, line, ":", behind=False)
            if name == "accuracy":
                _draw_swaps(panel, clock, group, setting, SPLIT_COLOURS[HELD_OUT] if len(found) == 1 else colour)
            if name == "accuracy" and len(found) == 1:
                for split, line in PART_COLOURS.items():
                    _draw_line(panel, clock, group, name, split, setting, line, "-", behind=False, thin=True)
        _mark_shrink(panel, clock, shrink_steps(record, group))
        tidy(panel, f"{name.capitalize()}{suffix}")
        if len(found) == 1:
            mark_onsets(panel, clock, onsets, found[0].members)
        elif key.few:
            mark_onsets_above(panel, clock, strip, found, key)
        draw_step_axis(panel, clock, group["step"].values)
    _scale_accuracy(axes[0], group)
    key.add_colourbar(figure, list(axes))
    if len(found) == 1:
        add_key(figure, _one_setting_key(axes[0], found[0]), 3 if len(found[0].members) > 1 else 4)
    else:
        add_key(figure, _settings_key(axes[0], found, key, strip, group), 3)
        heighten(figure, (STRIP + 4) * len(found) if key.few and strip is not None else 0)


def _values(group: xr.Dataset, name: str, split: str) -> NDArray[np.float64]:
    """One curve of every member: `(T, E)`; all NaN when the split was not measured."""
    return curve_of(group, name, split=split)


def _draw_line(
    axes: Axes,
    clock: Clock,
    group: xr.Dataset,
    name: str,
    split: str,
    setting: Setting,
    colour: str,
    dashes: Dashes,
    *,
    behind: bool,
    thin: bool = False,
) -> None:
    """Mean of a setting and, `behind` it, its band and members."""
    values = _values(group, name, split)[:, setting.members]
    time, label = clock.time(group["step"].values), f"{name} {split} {setting.label}".strip()
    draw_mean(axes, time, values, label=label, colour=colour, dashes=dashes, behind=behind, thin=thin)


def _draw_swaps(axes: Axes, clock: Clock, group: xr.Dataset, setting: Setting, colour: str) -> None:
    """Accuracy on held-out rows whose swap was held out too, and the share of the others."""
    # Two kinds of dotted line in one colour could not be told apart.
    dashes: Dashes = "-." if "true_accuracy" in group else ":"
    _draw_line(axes, clock, group, "accuracy", UNPAIRED, setting, colour, dashes, behind=False, thin=True)
    share = 1 - curve_of(group, "unpaired_share")[:, setting.members]
    known = np.isfinite(share).any(axis=1)
    if not known.any():
        return
    look: dict[str, Any] = {"color": colour, "linestyle": "--", "linewidth": 1.0, "zorder": 3}
    label = f"accuracy baseline {setting.label}".strip()
    middle = np.nanmedian(share[known], axis=1)
    if (middle == middle[0]).all():
        axes.axhline(float(middle[0]), label=label, **look)
    else:  # rows were taken away
        axes.plot(clock.time(group["step"].values[known]), middle, label=label, **look)


def shrink_steps(record: xr.DataTree, group: xr.Dataset) -> NDArray[np.float64]:
    """The step from which each member of a group trained on fewer rows: `(E,)`; NaN where it did not."""
    shrink = partner_of_kind(record, "DatasetShrink", group)
    if shrink is None or "step" not in shrink:
        return np.full(group.sizes["member"], np.nan)
    return np.asarray(shrink["step"].values, dtype=np.float64)


def _mark_shrink(axes: Axes, clock: Clock, steps: NDArray[np.float64]) -> None:
    """One thin line at the median over all members, and beneath it a span from the earliest to the latest."""
    times = clock.time(steps[np.isfinite(steps)])
    if not times.size:
        return
    if times.max() > times.min():
        axes.axvspan(float(times.min()), float(times.max()), color=SHRINK, alpha=0.12, linewidth=0, zorder=0)
    label = SHRUNK if len(steps) == 1 else f"{SHRUNK} ({times.size} of {len(steps)})"
    axes.axvline(float(np.median(times)), color=SHRINK, linewidth=1.0, label=label, zorder=1)


def swapped_share(group: xr.Dataset) -> NDArray[np.float64]:
    """Share of each member's held-out rows (a, b) whose swap (b, a) is a row that it was trained on.

    This is the accuracy on held-out rows that knowing no more than a ∘ b = b ∘ a gives. It is counted, not estimated.

    Args:
        group: A group of learning curves; `unpaired_share` over `(step, member)`; the last is taken.

    Returns:
        `(E,)`, in [0, 1]; NaN for a member of which it is not known, or that has no held-out rows.
    """
    share = curve_of(group, "unpaired_share")
    last = last_rows(np.isfinite(share))
    return np.array([np.nan if row < 0 else 1 - share[row, member] for member, row in enumerate(last)])


def _scale_accuracy(axes: Axes, group: xr.Dataset) -> None:
    splits = (TRAIN, HELD_OUT, UNPAIRED, *PART_NAMES)
    drawn = [*(_values(group, "accuracy", split) for split in splits), swapped_share(group)]
    lowest = min((float(np.nanmin(values)) for values in drawn if np.isfinite(values).any()), default=0.0)
    axes.set_ylim(0.38 if lowest >= 0.4 else -0.02, 1.02)
    axes.set_ylabel("accuracy (fraction of rows)", fontsize=LABEL)


def scale_loss(axes: Axes, losses: NDArray[np.float64]) -> None:
    """Log scale where the loss spans more than a factor of five; linear near 0 where it reaches 0.

    Args:
        axes: The axes.
        losses: What they show, of any shape; NaN is passed over.
    """
    values = losses[np.isfinite(losses)]
    positive = values[values > 0]
    label = "mean loss"
    if positive.size and (values <= 0).any():
        # More than four decades below the largest loss, a hinge loss is noise on its way to 0.
        exponent = math.floor(math.log10(max(positive.min(), 1e-4 * positive.max())))
        floor = 10.0**exponent
        axes.set_yscale("symlog", linthresh=floor, linscale=0.6)
        axes.yaxis.set_major_locator(FixedLocator([0.0, *log_ticks(floor, float(positive.max()))]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick_text(value, powers=True)))
        if values.min() >= 0:
            axes.set_ylim(-0.3 * floor, 1.5 * float(positive.max()))
        label += f" (log scale,\nlinear below {tick_text(floor, powers=True)})"
    elif positive.size and positive.max() / positive.min() > 5:
        axes.set_yscale("log")
        label += " (log scale)"
    axes.set_ylabel(label, fontsize=LABEL)


def _one_setting_key(axes: Axes, setting: Setting) -> list[Artist]:
    lines, labels = axes.get_legend_handles_labels()
    drawn = dict(zip(labels, lines, strict=True))
    handles: list[Artist] = []
    for split, name in SPLIT_NAMES.items():
        if f"accuracy {split}" in drawn:
            handles.append(Line2D([], [], color=SPLIT_COLOURS[split], linewidth=1.8, label=name))
    handles += _swap_handles(drawn, SPLIT_COLOURS[HELD_OUT])
    for split, name in PART_NAMES.items():
        if f"accuracy {split}" in drawn:
            handles.append(Line2D([], [], color=PART_COLOURS[split], linewidth=1.0, label=name))
    if "true_accuracy train" in drawn:
        handles.append(Line2D([], [], color=BLUE, linewidth=1.8, linestyle=":", label="the same, true labels"))
    if handles and len(setting.members) > 1:
        handles.append(Patch(color="#777777", alpha=0.3, linewidth=0, label="± 1 standard deviation"))
    if len(handles) == 3:
        handles.append(Line2D([], [], linestyle="none", label=" "))  # So that the onsets share a column.
    handles += [line for label, line in drawn.items() if "accuracy" not in label]
    return handles


def _swap_handles(drawn: Mapping[str, Artist], colour: str) -> list[Artist]:
    """Legend entries of what `_draw_swaps` drew."""
    handles: list[Artist] = []
    for start, name in ((f"accuracy {UNPAIRED}", UNPAIRED_NAME), ("accuracy baseline", SWAPPED_NAME)):
        line = next((line for label, line in drawn.items() if label.startswith(start)), None)
        if isinstance(line, Line2D):
            handles.append(Line2D([], [], color=colour, linewidth=1.0, linestyle=line.get_linestyle(), label=name))
    return handles


def _settings_key(
    axes: Axes, found: Sequence[Setting], key: Palette, onsets: Onsets | None, group: xr.Dataset
) -> list[Artist]:
    handles = setting_handles(found, key)
    for split, name in SPLIT_NAMES.items():
        handles.append(Line2D([], [], color="#444444", linewidth=1.8, linestyle=SPLIT_DASHES[split], label=name))
    if "true_accuracy" in group:
        handles.append(
            Line2D([], [], color="#444444", linewidth=1.8, linestyle=":", label="rows trained on, true labels")
        )
    lines, labels = axes.get_legend_handles_labels()
    handles += _swap_handles(dict(zip(labels, lines, strict=True)), "#444444")
    handles += [line for line, label in zip(lines, labels, strict=True) if label.startswith(SHRUNK)]
    return handles + onset_handles() if key.few and onsets is not None else handles


# ---- what the run showed ---------------------------------------------------------------------------------------------


def found_curves(record: xr.DataTree) -> str:
    """What the learning curves of a record show: onsets, and accuracies at memorisation and at the end.

    Returns:
        Sentences with numbers computed from the record; medians and ranges are over members.
    """
    sentences = onset_sentences(record)
    for head, part in parts_of_kind(record, "LearningCurves").items():
        sentences.append(head + " ".join(_accuracy_sentences(record, part)))
    for group in groups_of_kind(record, "LearningCurves").values():
        if not palette(found := settings(group)).few:
            sentences.append(f"With {len(found)} settings, only their means are drawn.")
    return " ".join(sentences)


def onset_sentences(record: xr.DataTree) -> list[str]:
    """How many members memorised, generalised and forgot, and when, in one sentence an event and setting.

    Beyond seven settings all members are counted together. Where an event did not happen to all of them, its median and
    quartiles are those of Kaplan and Meier. What held at step 0 is no onset. Of networks that began with the weights
    of another run it is not told whether they generalised: that was there before, and forgetting may be faster than an
    onset's dwell.
    """
    kinds = [*groups_of_kind(record, "Onset").values()]
    if not kinds:
        return ["Onsets were not looked for."]
    clock, group = Clock.of(record), kinds[0]
    onsets = read_onsets(record, member_labels(group))
    assert onsets is not None
    warm = "warm_start_path" in record.attrs
    events = ("memorised",) if warm else ("memorised", "generalised", "forgotten")
    sentences = ["Members began with the weights of another run."] if warm else []
    for opening, members in openings(group):
        sentences += _sentences_of(clock, onsets, members, opening, events)
    return sentences


def _sentences_of(clock: Clock, onsets: Onsets, members: NDArray[np.intp], head: str, told: Sequence[str]) -> list[str]:
    events = [event for event in told[:2] if onsets.looked_for[event][members].any()]
    clauses = [_event_words(clock, onsets, members, event) for event in events]
    if len(events) == 2 and not any(onsets.step[event][members].any() for event in events):
        who = f"all {len(members)} members" if len(members) > 1 else "the member"
        clauses = [f"{who} had memorised and generalised from the start"]
    if not clauses:
        clauses.append("onsets were not looked for")
    forgot = onsets.happened("forgotten", members)
    if forgot.size and "forgotten" in told:
        who = f"{forgot.size} of {len(members)}" if len(members) > 1 else "the member"
        survival = onsets.survival("forgotten", members)
        when = _survival_words(clock, survival) if survival.n_never else f", at {clock.spread(forgot)}"
        clauses.append(f"{who} forgot again{when}")
    # One sentence a setting, so that its name is said once.
    return [f"{head}{'; '.join(clauses)}."] if head else [f"{capital(clause)}." for clause in clauses]


def _event_words(clock: Clock, onsets: Onsets, members: NDArray[np.intp], event: str) -> str:
    verb = event.removesuffix("d")
    happened = onsets.happened(event, members)
    late = members[np.isnan(onsets.step[event][members])]
    looked = onsets.last_step[event][late]
    looked = looked[np.isfinite(looked)]
    by = f"by {clock.at(float(looked.min()))}" if looked.size else "in this run"
    later = happened[happened > 0]
    at_once = happened.size - later.size
    if len(members) == 1:
        if late.size:
            return f"the member did not {verb} {by}"
        return f"the member had {event} from the start" if at_once else f"the member {event} at {clock.spread(later)}"
    if happened.size == 0:
        return f"none of the {len(members)} members {event} {by}"
    who = f"all {len(members)}" if late.size == 0 else f"{happened.size} of {len(members)}"
    if not later.size:
        return f"{who} members had {event} from the start" + (f", and {late.size} did not {by}" if late.size else "")
    start = f", {at_once} of them from the start" if at_once else ""
    if late.size:
        return f"{who} members {event} {by}{start}{_survival_words(clock, onsets.survival(event, members))}"
    return f"{who} members {event}{start}, {'the others ' if at_once else ''}at {clock.spread(later)}"


def _survival_words(clock: Clock, survival: Survival) -> str:
    """The end of a clause: quartiles, and how many never got there."""
    return f"; {clock.unit} by Kaplan-Meier: {in_words(survival, lambda step: number(float(clock.time(step))))}"


def delay_sentence(record: xr.DataTree) -> str:
    """How many times as many steps generalising took as memorising; empty if no member did both, or settings differ."""
    groups = [*groups_of_kind(record, "Onset").values()]
    if not groups or len(settings(groups[0])) > 1:
        return ""  # a median over different settings would say nothing of any of them
    onsets = read_onsets(record, member_labels(groups[0]))
    assert onsets is not None
    both = (np.nan_to_num(onsets.step["generalised"]) > 0) & (np.nan_to_num(onsets.step["memorised"]) > 0)
    if not both.any():
        return ""
    ratio = onsets.step["generalised"][both] / onsets.step["memorised"][both]
    low, middle, high = (f"{value:.1f}" for value in (ratio.min(), np.median(ratio), ratio.max()))
    over = "" if low == high else f" (median of {count(ratio.size, 'member')}; range {low} to {high})"
    return f"Generalising took {middle} times as many steps as memorising{over}."


def accuracy_at_memorisation(record: xr.DataTree, group: xr.Dataset) -> NDArray[np.float64]:
    """Held-out accuracy of each member, measured nearest to its memorisation.

    Args:
        record: The record of a run.
        group: Its group of learning curves.

    Returns:
        `(E,)`; NaN for a member that did not memorise, or had so from the start, or that has no held-out rows.
    """
    held_out = _values(group, "accuracy", HELD_OUT)
    onsets = read_onsets(record, member_labels(group))
    if onsets is None:
        return np.full(held_out.shape[1], np.nan)
    memorised = onsets.step["memorised"]
    return values_at(held_out, group["step"].values, np.where(memorised > 0, memorised, np.nan))


def last_accuracy(group: xr.Dataset, split: str) -> tuple[NDArray[np.float64], int | None]:
    """Accuracy of each member at the last step at which the split was measured.

    Args:
        group: A group of learning curves, of one run.
        split: `train` or `held_out`.

    Returns:
        `(E,)`, NaN for members without a value at that step; and the step, None when the split was never measured.
    """
    values = _values(group, "accuracy", split)
    measured = np.flatnonzero(np.isfinite(values).any(axis=1))
    if not measured.size:
        return np.full(values.shape[1], np.nan), None
    return values[measured[-1]], int(group["step"].values[measured[-1]])


def _accuracy_sentences(record: xr.DataTree, group: xr.Dataset) -> list[str]:
    clock = Clock.of(record)
    sentences = []
    then = accuracy_at_memorisation(record, group)
    then = then[np.isfinite(then)]
    if then.size:
        sentences.append(f"Held-out accuracy at memorisation was {spread(then, decimals)}.")
    for split, name in ((TRAIN, "Training"), (HELD_OUT, "Held-out")):
        end, step = last_accuracy(group, split)
        if step is None:
            sentences.append(f"{name} accuracy was not measured.")
        else:
            sentences.append(f"{name} accuracy at {clock.at(step)} was {spread(end[np.isfinite(end)], decimals)}.")
    return sentences + _shrink_sentences(record, clock, group) + _swap_sentences(clock, group)


def _shrink_sentences(record: xr.DataTree, clock: Clock, group: xr.Dataset) -> list[str]:
    """When training went on with fewer rows, and what became of the others."""
    steps = shrink_steps(record, group)
    shrunk = np.flatnonzero(np.isfinite(steps))
    sentences = []
    if shrunk.size:
        shrink = partner_of_kind(record, "DatasetShrink", group)
        assert shrink is not None
        before, after = (
            _range(shrink[name].values[shrunk]) if name in shrink else "" for name in ("rows_before", "size")
        )
        rows = f" from {before} to {after} rows" if before and after else ""
        who = f" of {shrunk.size} of {len(steps)} members" if shrunk.size < len(steps) else ""
        sentences.append(f"The training set{who} shrank{rows} at {clock.spread(steps[shrunk])}.")
    for split, name in PART_NAMES.items():
        end, step = last_accuracy(group, split)
        if step is not None:
            known = spread(end[np.isfinite(end)], decimals)
            sentences.append(f"On the {name}, accuracy at {clock.at(step)} was {known}.")
    return sentences


def _range(values: NDArray[np.float64]) -> str:
    """Smallest and largest of some numbers of rows, in words."""
    low, high = number(float(np.min(values))), number(float(np.max(values)))
    return low if low == high else f"{low}–{high}"


def _swap_sentences(clock: Clock, group: xr.Dataset) -> list[str]:
    """What knowing of swapped rows would give, and the accuracy without that."""
    sentences = []
    share = swapped_share(group)
    share = share[np.isfinite(share)]
    if share.size:
        sentences.append(
            f"Of the held-out rows (a, b), a share of {spread(share, '{:.3f}'.format)} has its swap (b, a) among the "
            "rows trained on: the accuracy, where labels are those of a commutative operation, of a network that "
            "gives swapped rows the same label and knows no more."
        )
    end, step = last_accuracy(group, UNPAIRED)
    if step is not None:
        known = spread(end[np.isfinite(end)], decimals)
        sentences.append(f"On the held-out rows whose swap was held out too, accuracy at {clock.at(step)} was {known}.")
    return sentences
