import math

import numpy as np
import pytest

from grok_lightning.sweeps import Survival, in_words, kaplan_meier

# Remission in weeks under 6-mercaptopurine (Freireich and others 1963), the textbook example; negative: censored.
REMISSION = [6, 6, 6, -6, 7, -9, 10, -10, -11, 13, 16, -17, -19, -20, 22, 23, -25, -32, -32, -34, -35]


def split(signed):
    signed = np.array(signed, dtype=float)
    return np.where(signed > 0, signed, np.nan), np.abs(signed)


def by_loop(steps, last_steps, share):
    """The product-limit estimator, written out: the first event at which survival is 1 - share or less."""
    survival = 1.0
    for time in sorted({step for step in steps if not math.isnan(step)}):
        at_risk = sum(
            (step >= time) if not math.isnan(step) else (last >= time)
            for step, last in zip(steps, last_steps, strict=True)
            if not (math.isnan(step) and math.isnan(last))
        )
        survival *= 1 - sum(step == time for step in steps) / at_risk
        if survival <= 1 - share + 1e-9:
            return time
    return math.nan


def test_the_textbook_table():
    # S: 6 .857, 7 .807, 10 .753, 13 .690, 16 .627, 22 .538, 23 .448, and not lower.
    found = kaplan_meier(*split(REMISSION))
    assert (found.quartile_25, found.median, found.n, found.n_never) == (13, 23, 21, 12)
    assert math.isnan(found.quartile_75)


@pytest.mark.parametrize("seed", range(40))
def test_quartiles_are_those_of_the_product_limit_loop_with_ties(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 25))
    steps = 50.0 * rng.integers(1, 8, n)
    last = 50.0 * rng.integers(1, 8, n)
    steps = np.where(steps <= last, steps, np.nan)
    last = np.where(rng.random(n) < 0.1, np.nan, last)
    found = kaplan_meier(steps, last)
    expected = [by_loop(steps, last, share) for share in (0.25, 0.5, 0.75)]
    np.testing.assert_array_equal([found.quartile_25, found.median, found.quartile_75], expected)
    assert found.n == int((np.isfinite(steps) | np.isfinite(last)).sum())
    assert found.n_never == int((np.isnan(steps) & np.isfinite(last)).sum())


def test_without_censoring_an_odd_number_gives_the_plain_median():
    steps = np.array([300.0, 100, 500, 200, 400])
    found = kaplan_meier(steps, np.full(5, 1000.0))
    assert (found.median, found.n_never) == (np.median(steps), 0)


@pytest.mark.parametrize("n", [4, 24, 44, 72, 76])
def test_rounding_of_a_product_does_not_move_a_quartile(n):
    """The last member is censored; a quarter is left at an exact fraction, which the product may miss by rounding."""
    steps, last = split([*range(1, n), -n])
    found = kaplan_meier(steps, last)
    assert (found.quartile_25, found.median, found.quartile_75) == (n / 4, n / 2, 3 * n / 4)


def test_a_median_beyond_the_last_event_is_not_reached():
    found = kaplan_meier([100, np.nan, np.nan, np.nan], [900.0] * 4)
    assert (found.quartile_25, found.n_never) == (100, 3)
    assert math.isnan(found.median)
    assert in_words(found, "{:.0f}".format) == ("median not reached (quartiles 100 to not reached; 3 of 4 never did)")


def test_members_censored_before_the_first_event_do_not_count_as_late():
    steps, last = split([100, 200, 300, 400, -10, -10, -10, -10])
    assert kaplan_meier(steps, last).median == 200  # Of the 4 at risk, not of 8.


@pytest.mark.parametrize(
    ("steps", "last", "n"),
    [([], [], 0), ([np.nan], [np.nan], 0), ([np.nan, np.nan], [50, np.nan], 1), ([np.nan] * 3, [50, 60, 60], 3)],
)
def test_nothing_happened(steps, last, n):
    found = kaplan_meier(steps, last)
    assert np.isnan([found.quartile_25, found.median, found.quartile_75]).all()
    assert (found.n, found.n_never) == (n, n)
    assert in_words(found, str) == f"median not reached ({f'{n} of {n} never did' if n else 'no members'})"


def test_one_member_to_whom_it_happened():
    found = kaplan_meier([70], [np.nan])
    assert (found.quartile_25, found.median, found.quartile_75, found.n, found.n_never) == (70, 70, 70, 1, 0)


@pytest.mark.parametrize(("steps", "last"), [([1.0, 2], [3.0]), ([[1.0]], [[2.0]])])
def test_lengths_that_differ_are_refused(steps, last):
    with pytest.raises(ValueError, match="as many last steps as steps"):
        kaplan_meier(steps, last)


def test_words():
    assert in_words(Survival(600, 690, 1200, 10, 2), "{:,.0f}".format) == (
        "median 690 (quartiles 600 to 1,200; 2 of 10 never did)"
    )
    assert in_words(Survival(600, 690, 1200, 10, 0), "{:,.0f}".format) == (
        "median 690 (quartiles 600 to 1,200; all 10 did)"
    )
