import dataclasses
from decimal import ROUND_HALF_UP, Decimal, localcontext

import pytest

from grok_callbacks import AtEnd, EveryNSteps, EveryValidation, LogSpaced, Schedule

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


class Primes(Schedule):
    """Somebody's own."""

    def __repr__(self):
        return "Primes()"

    def due(self, step):
        return step > 1 and all(step % i for i in range(2, step))


SCHEDULES = [
    *(EveryNSteps(n) for n in (1, 2, 7, 500)),
    *(LogSpaced(per_decade) for per_decade in (1, 2, 3, 7, 20, 333, 2000)),
    EveryValidation(),
    AtEnd(),
    Primes(),
]
SPANS = [
    (0, 0),
    (0, 1),
    (1, 1),
    (0, 1000),
    (1, 1000),
    (2, 999),
    (7, 7),
    (8, 13),
    (500, 1000),
    (501, 999),
    (5, 4),
    (0, -1),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize(("first", "last"), SPANS)
def test_the_count_is_that_of_the_steps_that_are_due(schedule, first, last):
    assert schedule.count(first, last) == len([step for step in range(first, last + 1) if schedule.due(step)])


def test_a_count_asks_nobody_about_a_million_million_steps():
    assert EveryNSteps(3).count(0, 10**12) == 333333333334
    assert LogSpaced(1).count(0, 10**12) == 14
    assert LogSpaced(20).count(10**6 + 1, 10**12) == 120


@pytest.mark.parametrize("schedule", [EveryNSteps(1), EveryNSteps(30), LogSpaced(20), LogSpaced(400)], ids=repr)
@pytest.mark.parametrize("number", [1, 2, 3, 9, 10, 33, 250, 10**6])
@pytest.mark.parametrize(("first", "last"), [(1, 10_000), (0, 999), (4001, 10_000)])
def test_a_sparser_schedule_has_at_most_as_many_steps(schedule, number, first, last):
    sparser = schedule.at_most(number, first, last)
    if sparser is None:  # 0 and 1 are always due, and the powers of ten
        assert isinstance(schedule, LogSpaced)
        assert LogSpaced(1).count(first, last) > number
        return
    assert sparser.count(first, last) <= number
    if schedule.count(first, last) <= number:
        assert sparser == schedule, "what is sparse enough stays"
    elif isinstance(schedule, EveryNSteps):
        assert sparser.n % schedule.n == 0, "its steps are steps of the one that it stands for"
        denser = EveryNSteps(sparser.n // 2)
        assert number < 4 or denser.count(first, last) > number, "not much sparser than need be"
    else:
        assert sparser.per_decade < schedule.per_decade
        assert LogSpaced(sparser.per_decade + 2).count(first, last) > number, "not much sparser than need be"


def test_a_multiple_is_a_round_one():
    assert EveryNSteps(10).at_most(81, 1, 100_000) == EveryNSteps(1300)
    assert EveryNSteps(1).at_most(1000, 1, 1_000_000) == EveryNSteps(1000)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_no_schedule_has_less_than_one_step(schedule):
    assert schedule.at_most(0, 1, 1000) is None
    assert schedule.at_most(-3, 1, 1000) is None


def test_nothing_sparser_is_known_of_a_schedule_that_does_not_say():
    assert Primes().at_most(5, 1, 1000) is None
    assert EveryValidation().at_most(5, 1, 1000) is None
