"""What a sweep over training-set sizes says: critical sizes, regimes and onset times, from records alone."""

from grok_lightning.sweeps.critical_size import (
    Arm,
    Curve,
    Final,
    Interval,
    Margins,
    Verdict,
    arms_of,
    common_time,
    compared_arms,
    final_values,
    fit_curve,
    too_short,
    verdicts,
)
from grok_lightning.sweeps.reading import Sweep, read_sweep
from grok_lightning.sweeps.regimes import REGIMES, RegimeRule, definitions, judged_on, regimes_of
from grok_lightning.sweeps.survival import Survival, in_words, kaplan_meier

__all__ = [
    "Sweep",
    "read_sweep",
    "Margins",
    "common_time",
    "too_short",
    "Final",
    "final_values",
    "Curve",
    "fit_curve",
    "Interval",
    "Arm",
    "arms_of",
    "compared_arms",
    "Verdict",
    "verdicts",
    "REGIMES",
    "RegimeRule",
    "regimes_of",
    "judged_on",
    "definitions",
    "Survival",
    "kaplan_meier",
    "in_words",
]
