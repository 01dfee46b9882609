"""Whether the key frequencies are those that were the largest in the embedding before training."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from grok_lightning.figures.frequencies import KIND, frequency_labels, key_at_the_end
from grok_lightning.figures.reading import (
    curves_along,
    groups_of_kind,
    last_rows,
    measured_where,
    member_labels,
    reached_the_end,
    run_in_title,
    settings,
)
from grok_lightning.figures.style import (
    LABEL,
    TICK,
    TITLE,
    VERMILLION,
    add_caption,
    add_key,
    log_ticks,
    new_figure,
    palette,
    say_in,
    say_of_settings,
    setting_handles,
    tick_text,
    tidy,
)
from grok_lightning.figures.words import count, number, spread

__all__ = [
    "HOW_TO_READ",
    "draw_key_frequencies",
    "found_key_frequencies",
    "rank_correlation",
    "ranks",
]

ARRAYS = ("power", "key", "embedding_power")

NAMED = 12
"""Members beyond which the correlations of single members are not written above the right panel."""

HOW_TO_READ = (
    "Left: each frequency of each member by its share of the embedding's power at step 0 and of the logits' power at "
    "the end; filled: key frequencies. Right: place of each member's key frequencies among all frequencies ordered by "
    "the embedding's power at step 0, the largest first; above: rank correlation between the two powers. Dashed: the "
    "mean place of frequencies drawn by lot."
)


@dataclass(frozen=True)
class _Frequencies:
    """Power before and after training of one group, read once; a row a member that has both."""

    members: NDArray[np.intp]  # (M,)
    before: NDArray[np.float64]  # (M, K), NaN where a joined run has fewer frequencies
    after: NDArray[np.float64]  # (M, K)
    key: NDArray[np.bool_]  # (M, K)

    @property
    def places(self) -> list[NDArray[np.float64]]:
        """Places of each member's key frequencies by power before training: 1 for the largest."""
        return [ranks(-before[known])[key[known]] for known, before, key in self._rows()]

    @property
    def correlations(self) -> NDArray[np.float64]:
        """Rank correlation of each member: `(M,)`; NaN where there are fewer than three frequencies."""
        pairs = zip(self._rows(), self.after, strict=True)
        return np.array([rank_correlation(before[known], after[known]) for (known, before, _), after in pairs])

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Number of frequencies of each member: `(M,)`."""
        return np.array([int(known.sum()) for known, _, _ in self._rows()], dtype=np.int64)

    def _rows(self) -> list[tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.bool_]]]:
        known = np.isfinite(self.before) & np.isfinite(self.after)
        return list(zip(known, self.before, self.key, strict=True))


def draw_key_frequencies(record: xr.DataTree) -> Figure:
    """Draws the frequencies' power in the logits at the end against that in the embedding before training.

    Nanda, Chan, Lieberum, Smith, Steinhardt 2023, arXiv 2301.05217, and Varma et al. 2023, arXiv 2309.02390, say that
    the key frequencies are typically the largest at initialisation; here it is measured, for every member.

    Args:
        record: A record with a group of kind `FourierLogitSplitter`: `power`, `key` and `embedding_power` over `(step,
            member, frequency)`, each in any order. A member counts that has the embedding's power at step 0 and the
            logits' at the end of the run.

    Returns:
        The figure, with its caption.

    Raises:
        ValueError: If the record has no power of the embedding.
    """
    groups = groups_of_kind(record, KIND, ARRAYS)
    if not groups:
        raise ValueError(f"the record has no group of kind {KIND} with {', '.join(ARRAYS)}: nothing to draw")
    figure = new_figure(len(groups))
    grid = figure.subplots(len(groups), 2, squeeze=False)
    for row, (name, group) in zip(grid, groups.items(), strict=True):
        suffix = (f" ({name})" if len(groups) > 1 else "") + run_in_title(group)
        _draw_group(figure, row, group, suffix)
    add_caption(figure, f"{HOW_TO_READ} {found_key_frequencies(record)}")
    return figure


def ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks of values, from 1 for the smallest on; equal values share the mean of their ranks.

    Args:
        values: `(K,)`, finite.

    Returns:
        `(K,)`.
    """
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse])


def rank_correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Spearman's rank correlation: Pearson's correlation of the ranks.

    Args:
        first: `(K,)`, finite.
        second: `(K,)`, finite.

    Returns:
        In [-1, 1]; NaN for fewer than three values, or where all values of one are equal.
    """
    x, y = ranks(first), ranks(second)
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    x, y = x - x.mean(), y - y.mean()
    return float((x @ y) / np.sqrt((x @ x) * (y @ y)))


def _read(group: xr.Dataset) -> _Frequencies:
    power, embedding = (curves_along(group, name, "frequency") for name in ("power", "embedding_power"))
    at_first = np.flatnonzero(group["step"].values == 0)
    measured = measured_where(power)
    last = last_rows(measured)
    if not at_first.size:
        embedding = np.full((1, *embedding.shape[1:]), np.nan)
        at_first = np.array([0])
    before = embedding[at_first[0]]
    members = np.flatnonzero(reached_the_end(group, measured) & np.isfinite(before).any(axis=1))
    labels, keys = frequency_labels(group), key_at_the_end(group)
    key = np.array([np.isin(labels, keys[member]) for member in members]).reshape(len(members), len(labels))
    return _Frequencies(members, before[members], power[last[members], members], key)


def _draw_group(figure: Figure, grid: NDArray[Any], group: xr.Dataset, suffix: str) -> None:
    powers, places = grid
    frequencies = _read(group)
    found = settings(group)
    key = palette(found)
    colours = {int(m): colour for setting, colour in zip(found, key.colours, strict=True) for m in setting.members}
    if len(found) == 1:
        colours = dict.fromkeys(colours, VERMILLION)
    for row, member in enumerate(frequencies.members):
        before, after, chosen = frequencies.before[row], frequencies.after[row], frequencies.key[row]
        positive = (before > 0) & (after > 0)
        for these, face in ((positive & ~chosen, "none"), (positive & chosen, colours[int(member)])):
            edge = "#8a8a8a" if face == "none" and len(found) == 1 else colours[int(member)]
            powers.scatter(
                before[these], after[these], s=14, facecolors=face, edgecolors=edge, linewidths=0.6, zorder=3
            )
    _scale(powers)
    tidy(powers, f"Power of each frequency{suffix}")
    powers.tick_params(labelsize=TICK)
    _draw_places(places, group, frequencies, colours, suffix)
    if not frequencies.members.size:
        for axes in grid:
            say_in(axes, "embedding not measured at step 0")
    key.add_colourbar(figure, list(grid))
    handles: list[Artist] = [] if len(found) == 1 else setting_handles(found, key)
    dot = {"linestyle": "none", "marker": "o", "markersize": 4.5}
    one = VERMILLION if len(found) == 1 else "#444444"
    handles.append(Line2D([], [], color=one, label="key frequency", **dot))  # type: ignore[arg-type]
    other = "#8a8a8a" if len(found) == 1 else "#444444"
    handles.append(Line2D([], [], color=other, markerfacecolor="none", label="other frequency", **dot))  # type: ignore[arg-type]
    handles.append(Line2D([], [], color="#444444", linestyle="--", linewidth=1.0, label="mean place by lot"))
    add_key(figure, handles, 3)


def _scale(axes: Axes) -> None:
    """Log scales, with plain numbers; a linear one for what spans less than a decade, as before training it may."""
    points = np.concatenate([np.ma.getdata(entry.get_offsets()) for entry in axes.collections] or [np.ones((0, 2))])
    words = ("share of the embedding's power\nat step 0", "share of the logits' power\nat the end")
    for axis, values, word in zip((axes.xaxis, axes.yaxis), points.T, words, strict=True):
        log = bool(values.size) and values.max() / values.min() > 10
        axis.set_label_text(f"{word} (log scale)" if log else word, fontsize=LABEL)
        if log:
            (axes.set_xscale if axis is axes.xaxis else axes.set_yscale)("log")
            low, high = axis.get_view_interval()
            axis.set_major_locator(FixedLocator(log_ticks(float(low), float(high))))
            axis.set_major_formatter(FuncFormatter(lambda value, _: tick_text(value)))
            axis.set_minor_formatter(NullFormatter())
        else:
            axis.set_major_locator(MaxNLocator(5))


def _draw_places(
    axes: Axes, group: xr.Dataset, frequencies: _Frequencies, colours: dict[int, str], suffix: str
) -> None:
    names = member_labels(group)[frequencies.members]
    few = len(names) <= NAMED
    for column, (member, own) in enumerate(zip(frequencies.members, frequencies.places, strict=True)):
        axes.plot(np.full(len(own), column), own, "o", color=colours[int(member)], markersize=4.5, zorder=3)
        lot = (frequencies.sizes[column] + 1) / 2
        axes.plot([column - 0.4, column + 0.4], [lot, lot], "--", color="#444444", linewidth=1.0, zorder=2)
        correlation = frequencies.correlations[column]
        if few and np.isfinite(correlation):
            axes.annotate(
                _rounded(correlation),
                (column, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(0, 1),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=TICK,
            )
    tidy(axes, f"Key frequencies at step 0{suffix}")
    axes.set_title(axes.get_title(loc="left"), loc="left", fontsize=TITLE, pad=16 if few and len(names) else None)
    axes.set_xlabel("member", fontsize=LABEL)
    axes.set_ylabel("place (1: the most power)", fontsize=LABEL)
    if len(names):
        axes.set_ylim(float(frequencies.sizes.max()) + 1, 0)
        axes.yaxis.set_major_locator(FixedLocator([1, *range(10, int(frequencies.sizes.max()) + 1, 10)]))
        axes.set_xlim(-0.6, len(names) - 0.4)
    if few:
        axes.set_xticks(range(len(names)), [number(name) for name in names])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(labelsize=TICK)


# ---- what the run showed ---------------------------------------------------------------------------------------------


def found_key_frequencies(record: xr.DataTree) -> str:
    """Whether the key frequencies were the embedding's largest, against frequencies drawn by lot.

    Returns:
        Sentences with numbers computed from the record, over the members of a setting, or over all members of a run
        beyond seven settings.
    """
    return say_of_settings(record, KIND, lambda part: _sentences(_read(part)), ARRAYS)


def _sentences(frequencies: _Frequencies) -> list[str]:
    if not frequencies.members.size:
        return ["the embedding was not measured at step 0."]
    sentences = [_correlation_sentence(frequencies)]
    places = frequencies.places
    n_keys = np.array([len(own) for own in places])
    if not n_keys.any():
        return [*sentences, "There are no key frequencies at the end."]
    every = np.concatenate(places)
    lot = number(float(np.median((frequencies.sizes + 1) / 2)))
    sentences.append(f"The places of key frequencies by the embedding's power are {spread(every)}; by lot {lot}.")
    among = sum(int((own <= len(own)).sum()) for own in places)
    expected = float((n_keys**2 / frequencies.sizes).sum())
    total, have = int(n_keys.sum()), "is" if among == 1 else "are"
    sentences.append(
        f"Of {count(total, 'key frequency') if total == 1 else f'{total} key frequencies'}, {among} {have} among "
        f"as many of their member's largest at step 0; by lot {expected:.1f} would be."
    )
    return sentences


def _correlation_sentence(frequencies: _Frequencies) -> str:
    what = "the rank correlation between the embedding's power at step 0 and the logits' power at the end"
    known = frequencies.correlations[np.isfinite(frequencies.correlations)]
    if not known.size:
        return f"{what} is not defined for so few frequencies."
    # The standard deviation of Spearman's coefficient over independent rankings of K things is 1 / sqrt(K - 1).
    lot = f"{1 / np.sqrt(np.median(frequencies.sizes) - 1):.2f}"
    if known.size == 1:
        return f"{what} is {_rounded(known[0])} (0 ± {lot} where they are unrelated)."
    low, mean, high = map(_rounded, (known.min(), known.mean(), known.max()))
    over = f"in the mean over {known.size} members, range {low} to {high}"
    return f"{what} is {mean} ({over}; single members 0 ± {lot} where they are unrelated)."


def _rounded(correlation: float) -> str:
    return f"{round(float(correlation), 2) + 0.0:.2f}"  # Never -0.00.
