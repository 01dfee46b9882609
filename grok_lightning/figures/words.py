"""Numbers as words in captions and on the page."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

__all__ = [
    "capital",
    "count",
    "decimals",
    "listing",
    "number",
    "plain",
    "spread",
]


def number(value: Any) -> str:
    """A number in few digits (`0.012`, `27.5`, `9600`, never `9.6e+03`); any other value as its text."""
    if isinstance(value, np.generic):
        value = value.item()
    if not isinstance(value, float):
        return str(value)
    if not math.isfinite(value):
        return str(value)
    if value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return f"{value:.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.3g}"


def decimals(value: float) -> str:
    """A fraction with two decimals, and three where two would round it to 0 or 1."""
    return f"{value:.2f}" if f"{value:.2f}" not in ("0.00", "1.00") or value in (0, 1) else f"{value:.3f}"


def spread(values: Any, form: Callable[[Any], str] = number) -> str:
    """Median and range in words: `27 (median; range 20 to 38)`; equal values are given once."""
    values = np.asarray(values, dtype=np.float64)
    low, high = form(float(values.min())), form(float(values.max()))
    if low == high:
        return low if values.size == 1 else f"{low} for all {values.size}"
    return f"{form(float(np.median(values)))} (median; range {low} to {high})"


def count(n: int, noun: str) -> str:
    """A number with its noun: `1 member`, `3 members`."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def capital(text: str) -> str:
    """A text as the beginning of a sentence."""
    return text[:1].upper() + text[1:]


def listing(words: Sequence[str]) -> str:
    """Several words or clauses as one: `a, b and c`."""
    return " and ".join(part for part in (", ".join(words[:-1]), *words[-1:]) if part)


def plain(text: str) -> str:
    """Text that Matplotlib is not to read as mathematics."""
    return text.replace("$", r"\$")
