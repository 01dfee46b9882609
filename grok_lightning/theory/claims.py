"""What a claim is: a statement with hypotheses, lines that compare it with what comes out, and figures."""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

__all__ = ["Claim", "Line"]

_WITHOUT = "without: "


@dataclass(frozen=True)
class Line:
    """One line of a claim's table: what is predicted beside what was computed.

    Attributes:
        what: What was compared, in words.
        predicted: A number, or words.
        computed: A number, or words.
        error: How far the two are apart, at least 0; NaN where something could not be computed.
        allowed: The largest error with which the line holds.

    """

    what: str
    predicted: float | str
    computed: float | str
    error: float
    allowed: float = 0.0

    @property
    def is_without(self) -> bool:
        """Whether it is about a hypothesis that is dropped."""
        return self.what.startswith(_WITHOUT)

    @property
    def holds(self) -> bool:
        """Whether the error is allowed; NaN never is."""
        return self.error <= self.allowed

    @classmethod
    def equal(cls, what: str, predicted: float, computed: float, allowed: float) -> Self:
        """Return the line of two numbers that are to be the same to within ``allowed``."""
        return cls.same(what, predicted, computed, allowed)

    @classmethod
    def same(cls, what: str, predicted: ArrayLike, computed: ArrayLike, allowed: float) -> Self:
        """Return the line of many pairs of numbers that are to be the same to within ``allowed``.

        Shown is the pair furthest apart, of several the one with the largest number; one with a NaN is furthest of all.

        Args:
            what: What was compared.
            predicted: Numbers, at least one.
            computed: As many, of the same shape.
            allowed: Largest distance.

        Raises:
            ValueError: If the shapes differ, or there is nothing to compare.

        """
        left, right = np.asarray(predicted, dtype=np.float64), np.asarray(computed, dtype=np.float64)
        if left.shape != right.shape or not left.size:
            raise ValueError(f"{what}: expected as many numbers, at least one, got {left.shape} and {right.shape}")
        with np.errstate(invalid="ignore"):
            distance = np.abs(left - right).ravel()
        furthest = np.flatnonzero((distance == distance.max()) | np.isnan(distance))
        worst = furthest[np.nanargmax(np.abs(left.ravel()[furthest])) if not np.isnan(distance).any() else 0]
        return cls(what, float(left.ravel()[worst]), float(right.ravel()[worst]), float(distance[worst]), allowed)

    @classmethod
    def always(cls, what: str, excess: ArrayLike, allowed: float = 0.0) -> Self:
        """Return the line of an inequality that is to hold in every draw.

        Args:
            what: The inequality.
            excess: By how much it is violated in each draw; where it holds, 0 or less. NaN counts as a violation.
            allowed: Violation that rounding may cause.

        Raises:
            ValueError: If there is no draw.

        """
        values = np.atleast_1d(np.asarray(excess, dtype=np.float64))
        if not values.size:
            raise ValueError(f"{what}: expected at least one draw")
        n_right = int((values <= allowed).sum())
        worst = math.nan if np.isnan(values).any() else max(0.0, float(values.max()))
        return cls(what, "always", f"in {n_right} of {values.size}", worst, allowed)

    @classmethod
    def needed(cls, hypothesis: str, excess: ArrayLike, allowed: float = 0.0) -> Self:
        """Return the line of a hypothesis that is dropped: without it the statement is to be false somewhere.

        Args:
            hypothesis: What is dropped, in words; the line says "without: " before it.
            excess: By how much the statement is violated in each draw without the hypothesis; where it holds, 0 or
                less.
            allowed: Violation that rounding may cause, as in the line of the statement.

        Raises:
            ValueError: If there is no draw, or one could not be computed.

        """
        values = np.atleast_1d(np.asarray(excess, dtype=np.float64))
        if not values.size or np.isnan(values).any():
            raise ValueError(f"{hypothesis}: expected draws that are numbers")
        n_wrong = int((values > allowed).sum())
        held = f"in {values.size - n_wrong} of {values.size}"
        return cls(f"{_WITHOUT}{hypothesis}", "not always", held, 0.0 if n_wrong else math.inf)


@dataclass(frozen=True)
class Claim:
    """A claim of a paper, or one of ours, that can be checked.

    Attributes:
        check: From a seed of its random draws to the lines of its table. Its name is the claim's; its docstring has the
            statement, its hypotheses and the source.
        figures: What draws each of its figures, by the stem of its file.

    """

    check: Callable[[int], list[Line]]
    figures: Mapping[str, Callable[[], Figure]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of its function."""
        return self.check.__name__

    @property
    def title(self) -> str:
        """The first line of its docstring."""
        return self.statement.partition("\n")[0]

    @property
    def statement(self) -> str:
        """Its docstring, without what is for callers only."""
        return (inspect.getdoc(self.check) or "").partition("\nArgs:")[0].strip()
