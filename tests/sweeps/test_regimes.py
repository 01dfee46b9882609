import math
from dataclasses import replace

import numpy as np
import pytest

from grok_lightning.sweeps import (
    REGIMES,
    RegimeRule,
    common_time,
    definitions,
    final_values,
    judged_on,
    regimes_of,
)

STEPS = np.arange(0, 20_001, 500.0)
CHANCE = 1 / 31


def ramp(*points):
    """Piecewise linear series over `STEPS` through (step, value)."""
    at, values = zip(*points, strict=True)
    return np.interp(STEPS, at, values)


def corrected(series, chance=CHANCE):
    """Accuracy whose chance-corrected value is the series."""
    return chance + (1 - chance) * series


LEARNT = ramp((0, 0.03), (500, 1))
NEVER_LEARNT = ramp((0, 0.03), (500, 0.9))

FROM_SCRATCH = {
    "confusion": (NEVER_LEARNT, ramp((0, 0.0))),
    "comprehension": (LEARNT, ramp((0, 0), (1500, 0.95))),
    "grokking": (LEARNT, ramp((0, 0), (8000, 0.02), (10_000, 1))),
    "memorisation": (LEARNT, ramp((0, 0), (20_000, 0.09))),
    "partial comprehension": (LEARNT, ramp((0, 0), (1000, 0.6))),
    "semi-grokking": (LEARNT, ramp((0, 0), (8000, 0), (10_000, 0.55))),
    "transient semi-grokking": (LEARNT, ramp((0, 0), (4000, 0), (5000, 0.5), (9000, 0.52), (10_000, 1))),
}
GENERALISED = {
    "ungrokked": ramp((0, 1), (3000, 0.05)),
    "partly ungrokked": ramp((0, 1), (3000, 0.6)),
    "kept": ramp((0, 1), (3000, 0.93)),
}


def ended(sweep, *, converged=True):
    """Values at the end of the sweep, as though all or none of its members had come to rest there."""
    final = final_values(sweep)
    rest = np.full(len(sweep.size), converged)
    return replace(final, converged=rest, unpaired_still=rest)


def of_one(make_sweep, train, judged, *, start, rule=None, split="unpaired", chance=CHANCE, converged=True, **options):
    """The regime of one member from a' on the split that counts."""
    judged = corrected(judged, chance)[:, None]
    series = {"accuracy": judged if split == "accuracy" else 0.3, "unpaired": judged if split == "unpaired" else np.nan}
    sweep = make_sweep(
        size=[100], step=STEPS, train_accuracy=train[:, None], start_accuracy=start, chance=chance, **series, **options
    )
    [found] = regimes_of(sweep, ended(sweep, converged=converged), *([] if rule is None else [rule]))
    assert found in REGIMES
    return found


@pytest.mark.parametrize("split", ["unpaired", "accuracy"])
@pytest.mark.parametrize("chance", [CHANCE, 0.5, math.nan])
@pytest.mark.parametrize("regime", FROM_SCRATCH)
def test_members_that_started_from_scratch(make_sweep, regime, chance, split):
    train, judged = FROM_SCRATCH[regime]
    floor = 0.0 if math.isnan(chance) else chance
    sweep = make_sweep(
        size=[100],
        step=STEPS,
        train_accuracy=train[:, None],
        accuracy=corrected(judged, floor)[:, None],
        unpaired=corrected(judged, floor)[:, None] if split == "unpaired" else np.nan,
        start_accuracy=floor,
        chance=chance,
    )
    assert regimes_of(sweep, ended(sweep)) == (regime,)


@pytest.mark.parametrize("regime", GENERALISED)
def test_members_that_started_generalised(make_sweep, regime):
    assert of_one(make_sweep, np.ones_like(STEPS), GENERALISED[regime], start=1.0) == regime


def test_every_regime_has_an_example_and_a_definition():
    assert {*FROM_SCRATCH, *GENERALISED, "not converged"} == set(REGIMES)
    assert list(definitions()) == list(REGIMES)
    assert all("\n" not in words and words for words in definitions().values())


def test_definitions_say_the_thresholds_of_the_rule():
    words = definitions(RegimeRule(low=0.15, high=0.85, delay=700, memorised=0.97))
    assert words["semi-grokking"] == (
        "train accuracy reached 0.97, accuracy ended between 0.15 and 0.85, and first was 0.15 at least 700 steps "
        "after memorising"
    )


@pytest.mark.parametrize("regime", [*FROM_SCRATCH, *GENERALISED])
def test_a_member_that_has_not_converged_is_nothing_else(make_sweep, regime):
    if regime in GENERALISED:
        train, judged, start = np.ones_like(STEPS), GENERALISED[regime], 1.0
    else:
        (train, judged), start = FROM_SCRATCH[regime], CHANCE
    assert of_one(make_sweep, train, judged, start=start, converged=False) == "not converged"


def test_a_member_without_held_out_rows_was_not_measured(make_sweep):
    nothing = np.full_like(STEPS, np.nan)
    assert of_one(make_sweep, LEARNT, nothing, start=np.nan, split="accuracy") == "not converged"


@pytest.mark.parametrize("share", [0.117, 0.159, 0.28, 0.47])
@pytest.mark.parametrize("late", [500, 8000])
def test_commutativity_alone_is_memorisation(make_sweep, share, late):
    """Swaps of training rows are right, reached at once or late, and nothing else is."""
    held_out = ramp((0, 0), (late, 0), (late + 500, share))[:, None]
    options = {"size": [100], "step": STEPS, "train_accuracy": LEARNT[:, None], "start_accuracy": CHANCE}
    chance = np.full((len(STEPS), 1), CHANCE)
    sweep = make_sweep(accuracy=np.maximum(held_out, chance), unpaired=chance, chance=CHANCE, **options)
    assert judged_on(sweep) == ("held_out_unpaired",)
    assert regimes_of(sweep, ended(sweep)) == ("memorisation",)
    # The violation: where nobody measured unpaired rows, it cannot be told apart, and `judged_on` says so.
    blind = make_sweep(accuracy=np.maximum(held_out, chance), chance=CHANCE, **options)
    assert judged_on(blind) == ("held_out",)
    expected = ("memorisation",) if share == 0.117 else ("semi-grokking" if late == 8000 else "partial comprehension",)
    assert regimes_of(blind, ended(blind)) == expected


def test_the_split_is_chosen_member_by_member(make_sweep):
    unpaired = np.stack([ramp((0, 1), (3000, 0.05)), np.full_like(STEPS, np.nan)], axis=1)
    accuracy = np.stack([ramp((0, 1), (3000, 0.4)), ramp((0, 1), (3000, 0.95))], axis=1)
    sweep = make_sweep(size=[60, 300], step=STEPS, accuracy=accuracy, unpaired=unpaired)
    assert judged_on(sweep) == ("held_out_unpaired", "held_out")
    assert regimes_of(sweep, ended(sweep)) == ("ungrokked", "kept")


@pytest.mark.parametrize(
    ("final", "regime"),
    [(0.0999, "ungrokked"), (0.1001, "partly ungrokked"), (0.8999, "partly ungrokked"), (0.9001, "kept")],
)
def test_bounds_of_what_was_kept(make_sweep, final, regime):
    assert of_one(make_sweep, np.ones_like(STEPS), ramp((0, 1), (3000, final)), start=1.0) == regime


@pytest.mark.parametrize(("start", "regime"), [(0.899, "grokking"), (0.901, "kept")])
def test_the_start_decides_which_regimes_there_are(make_sweep, start, regime):
    train, judged = FROM_SCRATCH["grokking"]
    assert of_one(make_sweep, train, judged, start=float(corrected(start))) == regime


@pytest.mark.parametrize(
    ("reached", "final", "regime"),
    [
        (1500, 1.0, "comprehension"),
        (2000, 1.0, "grokking"),
        (1000, 0.5, "partial comprehension"),
        (1500, 0.5, "semi-grokking"),
    ],
)
def test_the_delay_counts_from_memorising(make_sweep, reached, final, regime):
    """Memorised at 500: `reached` is the measurement at which a' gets to its end, from nothing before it."""
    judged = np.where(reached <= STEPS, final, 0.0)
    assert of_one(make_sweep, LEARNT, judged, start=CHANCE) == regime
    early = RegimeRule(delay=100_000)
    unhurried = {"grokking": "comprehension", "semi-grokking": "partial comprehension"}
    assert of_one(make_sweep, LEARNT, judged, start=CHANCE, rule=early) == unhurried.get(regime, regime)


def test_memorising_counts_even_if_training_accuracy_dips_again(make_sweep):
    dips = LEARNT.copy()
    dips[-1] = 0.97
    assert of_one(make_sweep, dips, FROM_SCRATCH["memorisation"][1], start=CHANCE) == "memorisation"


def test_generalising_without_ever_memorising_is_comprehension(make_sweep):
    assert of_one(make_sweep, NEVER_LEARNT, FROM_SCRATCH["grokking"][1], start=CHANCE) == "comprehension"


@pytest.mark.parametrize(
    ("judged", "regime"),
    [
        # 1,500 steps of 20,000: too short; 2,000: just long enough.
        (np.where(STEPS < 5000, 0, np.where(STEPS <= 6500, 0.5, 1.0)), "grokking"),
        (np.where(STEPS < 5000, 0, np.where(STEPS <= 7000, 0.5, 1.0)), "transient semi-grokking"),
        # Long, but it moves: 0.06 within 2,000 steps; then not.
        (ramp((0, 0), (5000, 0.2), (15_000, 0.5), (15_500, 1)), "grokking"),
        (ramp((0, 0), (5000, 0.2), (15_000, 0.4), (15_500, 1)), "transient semi-grokking"),
        # Flat, but not middling.
        (ramp((0, 0), (9000, 0.09), (9500, 1)), "grokking"),
        (np.where(STEPS < 5000, 0, np.where(STEPS <= 12_000, 0.91, 1.0)), "grokking"),
        # To and fro across a bound: not middling throughout.
        (
            np.where(STEPS < 5000, 0, np.where(STEPS <= 12_000, np.where(STEPS % 1000 == 0, 0.88, 0.91), 1.0)),
            "grokking",
        ),
        # Interrupted by a measurement outside.
        (
            np.where(STEPS < 5000, 0, np.where(STEPS <= 8000, np.where(STEPS == 6500, 0.05, 0.5), 1.0)),
            "grokking",
        ),
    ],
)
def test_what_is_a_plateau(make_sweep, judged, regime):
    assert of_one(make_sweep, LEARNT, judged, start=CHANCE) == regime


def test_two_measurements_are_no_plateau(make_sweep):
    steps = np.array([0, 500, 10_000, 19_000, 20_000.0])
    accuracy = np.array([0, 0, 0.5, 0.5, 1])[:, None]
    options = {"size": [9], "start_accuracy": 0, "train_accuracy": np.array([0, 1, 1, 1, 1])[:, None]}
    sweep = make_sweep(step=steps, accuracy=accuracy, **options)
    assert regimes_of(sweep, ended(sweep)) == ("grokking",)


def test_a_plateau_before_memorising_is_none(make_sweep):
    late = ramp((0, 0.03), (9000, 0.9), (10_000, 1))
    judged = ramp((0, 0), (1000, 0.5), (9500, 0.5), (12_500, 1))
    assert of_one(make_sweep, late, judged, start=CHANCE) == "grokking"


def test_nothing_before_the_small_set_began_counts(make_sweep):
    """It groks the large set, and forgets when that is shrunk at step 8,000."""
    judged = ramp((0, 0), (3000, 1), (8000, 1), (12_000, 0.05))
    assert of_one(make_sweep, LEARNT, judged, start=1.0, began=8000) == "ungrokked"
    # Judged from scratch on its small set alone: it was never at chance after that began.
    assert of_one(make_sweep, LEARNT, judged, start=CHANCE, began=12_000) == "memorisation"
    assert of_one(make_sweep, LEARNT, judged, start=np.nan, began=np.nan) == "not converged"


def test_steps_of_other_runs_are_passed_over(make_sweep):
    train, judged = (series.copy() for series in FROM_SCRATCH["transient semi-grokking"])
    train[3::2], judged[3::2] = np.nan, np.nan
    assert of_one(make_sweep, train, judged, start=CHANCE) == "transient semi-grokking"


def test_what_comes_after_the_time_of_reading_does_not_count(make_sweep):
    """Two weight decays and equal steps: the stronger one is read at a third of them, and collapses later."""
    decay = np.array([0.5, 1.5])
    time = 1e-3 * decay * STEPS[:, None]
    accuracy = np.where((decay > 1) & (time > 10.5), 0.02, 1.0)
    sweep = make_sweep(size=[100, 100], step=STEPS, weight_decay=decay, accuracy=accuracy, unpaired=accuracy)
    final = final_values(sweep)
    assert common_time(sweep) == 10
    np.testing.assert_array_equal(final.step, [20_000, 6500])
    assert final.converged.all()
    assert regimes_of(sweep, final) == ("kept", "kept")
    # The violation: read at the end of the steps, it has been lost.
    assert regimes_of(sweep, replace(final, step=np.full(2, STEPS[-1]))) == ("kept", "ungrokked")


def test_the_accuracy_that_is_judged_must_have_come_to_rest(make_sweep):
    """All held-out rows are at rest, and the few unpaired ones among them are not."""
    moving = ramp((0, 1), (14_000, 0.5), (20_000, 0.4))
    still = ramp((0, 1), (10_000, 0.5))
    unpaired = np.stack([moving, still, np.full_like(STEPS, np.nan)], axis=1)
    sweep = make_sweep(size=[100] * 3, step=STEPS, accuracy=ramp((0, 1), (10_000, 0.5))[:, None], unpaired=unpaired)
    final = final_values(sweep)
    np.testing.assert_array_equal(final.converged, [True] * 3)
    np.testing.assert_array_equal(final.unpaired_still, [False, True, False])
    assert regimes_of(sweep, final) == ("not converged", "partly ungrokked", "partly ungrokked")


def test_the_end_must_be_told_of_each_member(make_sweep):
    one = make_sweep(size=[60], accuracy=1.0)
    with pytest.raises(ValueError, match="values at the end of 2 members, got 1"):
        regimes_of(make_sweep(size=[60, 90], accuracy=1.0), final_values(one))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"low": 0.9}, "low < high"),
        ({"low": 0.0}, "low < high"),
        ({"high": 1.1}, "low < high"),
        ({"memorised": 0}, "memorised"),
        ({"start": 1.5}, "start"),
        ({"plateau": -0.1}, "plateau"),
        ({"plateau_share": 0}, "plateau_share"),
        ({"delay": -1}, "delay"),
        ({"low": math.nan}, "low"),
        ({"high": "0.9"}, "high"),
        ({"memorised": True}, "memorised"),
    ],
)
def test_thresholds_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(RegimeRule(), **change)
