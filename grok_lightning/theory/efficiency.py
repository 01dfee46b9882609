"""Why decay prefers efficient circuits: Theorems D.1 and D.4, Lemmas D.2 and D.3 of Varma et al. 2023."""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from grok_lightning.theory.claims import Line

__all__ = ["lemma_d2"]

Array: TypeAlias = NDArray[np.float64]

DRAWS = 1000


def lemma_d2(seed: int = 0) -> list[Line]:
    """Powers below 1 are subadditive.

    Statement: (a + b)^r <= a^r + b^r.

    Hypotheses: a, b >= 0; 0 < r <= 1. That r is positive only gives 0^r a meaning: with a, b > 0 a negative r does as
    well.

    Source: Varma, Shah, Kenton, Kramár, Kumar 2023 (arXiv 2309.02390), Lemma D.2.

    Args:
        seed: Of the random draws.

    Returns:
        The lines of its table.

    """
    generator = np.random.default_rng(seed)
    a, b = 10 ** generator.uniform(-3, 3, (2, DRAWS))
    r = 1 - generator.random(DRAWS)  # (0, 1]
    above = 1 + 3 * generator.random(DRAWS)

    def violation(a: Array, b: Array, r: Array) -> Array:
        # Relative: both sides grow with a and b. A negative number has the power that an odd root would give it.
        left, *right = (np.sign(x) * np.abs(x) ** r for x in (a + b, a, b))
        excess: Array = (left - right[0] - right[1]) / (np.abs(left) + np.abs(right[0]) + np.abs(right[1]))
        return excess

    rounding = 1e-14
    return [
        Line.always("(a + b)^r <= a^r + b^r", violation(a, b, r), rounding),
        Line.needed("r <= 1", violation(a, b, above), rounding),
        Line.needed("a >= 0", violation(-a, b, r), rounding),
    ]
