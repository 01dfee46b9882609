import dataclasses
from decimal import ROUND_HALF_UP, Decimal, localcontext

import pytest

from grok_callbacks import AtEnd, EveryNSteps, EveryValidation, LogSpaced

LAST = 100_000


def rounded_powers(per_decade):
    """0 and the rounded powers of ten up to LAST, in 50 digits."""
    steps = {0}
    with localcontext() as context:
        context.prec = 50
        for i in range(5 * per_decade + 1):
            power = Decimal(10) ** (Decimal(i) / per_decade)
            steps.add(int(power.quantize(Decimal(1), rounding=ROUND_HALF_UP)))
    return steps


@pytest.mark.parametrize("per_decade", [1, 2, 3, 7, 20, 40, 333])
def test_log_spaced_is_due_at_the_rounded_powers_and_nowhere_else(per_decade):
    schedule = LogSpaced(per_decade)
    assert {step for step in range(LAST + 1) if schedule.due(step)} == rounded_powers(per_decade)


def test_log_spaced_takes_every_step_where_powers_lie_closer():
    schedule = LogSpaced(40)
    assert all(schedule.due(step) for step in range(17))  # 10^(1/40) is 1.06: up to 16, less than a step
    assert sum(schedule.due(step) for step in range(100, 1000)) == 40


def test_one_a_decade_is_the_powers_of_ten():
    assert [step for step in range(1001) if LogSpaced(1).due(step)] == [0, 1, 10, 100, 1000]


@pytest.mark.parametrize("n", [1, 2, 7])
def test_every_n_steps_counts_from_the_initial_weights(n):
    assert [step for step in range(50) if EveryNSteps(n).due(step)] == list(range(0, 50, n))


def test_every_validation_leaves_the_steps_to_lightning():
    assert EveryValidation().at_validation
    assert not any(EveryValidation().due(step) for step in range(100))
    assert not LogSpaced().at_validation
    assert not EveryNSteps().at_validation


@pytest.mark.parametrize("n", [0, -1])
def test_numbers_below_one_are_refused(n):
    with pytest.raises(ValueError, match=f"n must be at least 1, got {n}"):
        EveryNSteps(n)
    with pytest.raises(ValueError, match=f"per_decade must be at least 1, got {n}"):
        LogSpaced(n)


def test_a_schedule_is_a_value():
    assert LogSpaced(20) == LogSpaced(20) != LogSpaced(21)
    assert EveryNSteps(20) != LogSpaced(20)
    assert len({EveryNSteps(5), EveryNSteps(5), EveryValidation(), EveryValidation()}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        EveryNSteps(5).n = 6


def test_at_the_end_no_step_and_no_validation_is_due():
    assert not any(AtEnd().due(step) for step in range(1000))
    assert not AtEnd().at_validation
    assert AtEnd() == AtEnd() != EveryValidation()
