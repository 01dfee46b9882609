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


@dataclass(frozen=True)
class EveryValidation(Schedule):
    """Whenever Lightning validates, and at step 0 where the module can measure itself without a validation."""

    def due(self, step: int) -> bool:
        """Return False: no step is due by itself."""
        del step
        return False

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
