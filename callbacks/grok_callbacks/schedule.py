"""When to measure, as a value."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

__all__ = ["AtEnd", "EveryNSteps", "EveryValidation", "LogSpaced", "Schedule"]


class Schedule(ABC):
    """Decides at which optimizer steps a monitor measures. Step 0 is the initial weights."""

    @abstractmethod
    def due(self, step: int) -> bool:
        """Return whether the weights after ``step`` optimizer steps are to be measured."""

    @property
    def at_validation(self) -> bool:
        """Whether the monitor follows Lightning's validation instead of the step."""
        return False

    def count(self, first: int, last: int) -> int:
        """Return how many steps from ``first`` to ``last`` are due, both among them; 0 if there are none.

        Asks :meth:`due` of every one of them: a schedule that knows better overrides it.

        Args:
            first: At least 0.
            last: Any.

        """
        return sum(self.due(step) for step in range(first, last + 1))

    def at_most(self, number: int, first: int, last: int) -> "Schedule | None":
        """Return this schedule, or one of its class that is sparser, of which at most ``number`` of the steps are due.

        Nothing by default: it takes the class to know what is sparser.

        Args:
            number: Any; no schedule has fewer than 1.
            first: First of the steps, at least 0.
            last: Last of the steps.

        """
        del number, first, last
        return None


@dataclass(frozen=True)
class EveryNSteps(Schedule):
    """Steps 0, n, 2n, ...

    Args:
        n: At least 1.

    Raises:
        ValueError: If n is below 1.

    """

    n: int = 100

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"EveryNSteps: n must be at least 1, got {self.n}")

    def due(self, step: int) -> bool:
        """Return whether n divides ``step``."""
        return step % self.n == 0

    def count(self, first: int, last: int) -> int:
        """Return how many steps from ``first`` to ``last`` n divides."""
        return max(0, last // self.n - (first - 1) // self.n)

    def at_most(self, number: int, first: int, last: int) -> "EveryNSteps | None":
        """Return the schedule of a multiple of n, a round one, of which at most ``number`` of the steps are due."""
        if number < 1:
            return None
        times = _round_up(max(1, math.ceil(self.count(first, last) / number)))
        while EveryNSteps(times * self.n).count(first, last) > number:
            times += 1
        return EveryNSteps(times * self.n)


@dataclass(frozen=True)
class LogSpaced(Schedule):
    """Step 0, and about ``per_decade`` steps in every factor of ten, evenly spaced on a log axis.

    The steps are ``round(10^(i / per_decade))``, i = 0, 1, ...; where those lie closer than one step, every step.

    Args:
        per_decade: At least 1.

    Raises:
        ValueError: If ``per_decade`` is below 1.

    """

    per_decade: int = 20

    def __post_init__(self) -> None:
        if self.per_decade < 1:
            raise ValueError(f"LogSpaced: per_decade must be at least 1, got {self.per_decade}")

    def due(self, step: int) -> bool:
        """Return whether ``step`` is 0 or one of the rounded powers."""
        if step < 2:
            return True
        # Rounding moves a power by at most half, so only the two exponents around log10(step) can give this step.
        exponent = math.log10(step) * self.per_decade
        return any(round(10 ** (i / self.per_decade)) == step for i in (math.floor(exponent), math.ceil(exponent)))

    def count(self, first: int, last: int) -> int:
        """Return how many steps from ``first`` to ``last`` are 0 or one of the rounded powers."""
        if last < 1:
            return int(first <= 0 <= last)
        # One more exponent at either end: a power may be rounded across it.
        exponents = range(
            math.floor(math.log10(max(1, first)) * self.per_decade) - 1,
            math.ceil(math.log10(last) * self.per_decade) + 2,
        )
        steps = {0, *(round(10 ** (i / self.per_decade)) for i in exponents if i >= 0)}
        return sum(first <= step <= last for step in steps)

    def at_most(self, number: int, first: int, last: int) -> "LogSpaced | None":
        """Return the schedule with fewer steps in a factor of ten of which at most ``number`` of the steps are due."""
        if number < 1:
            return None
        per_decade = min(self.per_decade, 1 + self.per_decade * number // max(1, self.count(first, last)))
        while per_decade > 0 and LogSpaced(per_decade).count(first, last) > number:
            per_decade -= 1
        return LogSpaced(per_decade) if per_decade else None


@dataclass(frozen=True)
class EveryValidation(Schedule):
    """Whenever Lightning validates, and at step 0 where the module can measure itself without a validation."""

    def due(self, step: int) -> bool:
        """Return False: no step is due by itself."""
        del step
        return False

    def count(self, first: int, last: int) -> int:
        """Return 0: no step is due by itself."""
        del first, last
        return 0

    @property
    def at_validation(self) -> bool:
        """Whether the monitor follows Lightning's validation: yes."""
        return True


@dataclass(frozen=True)
class AtEnd(Schedule):
    """Never while training goes on: the monitor looks back when it has ended."""

    def due(self, step: int) -> bool:
        """Return False: no step is due by itself."""
        del step
        return False

    def count(self, first: int, last: int) -> int:
        """Return 0: no step is due by itself."""
        del first, last
        return 0


def _round_up(number: int) -> int:
    """Return the smallest number of two significant digits that is not below ``number``."""
    unit: int = 10 ** max(0, len(str(number)) - 2)
    return -(-number // unit) * unit
