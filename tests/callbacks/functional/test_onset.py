import math
import random

import pytest
import torch

from grok_callbacks.functional import falling_onset, rising_onset

NAN = math.nan
NEVER = (NAN, NAN, NAN)


def first_that_holds(steps, values, starts, holds, dwell):
    """The definition, by search: of one curve, in plain Python."""
    for i, start in enumerate(steps):
        ends = [j for j in range(i, len(steps)) if steps[j] - start >= dwell]
        if starts(i) and ends and all(holds(values[k]) for k in range(i + 1, ends[0] + 1)):
            return float(start), float(steps[ends[0]]), float(start - steps[i - 1]) if i else 0.0
    return NEVER


def slow_rising(steps, values, threshold, dwell, slack=0.0, strict=False):
    def starts(i):
        return values[i] > threshold or (values[i] == threshold and not strict)

    return first_that_holds(steps, values, starts, lambda v: v >= threshold - slack, dwell)


def slow_falling(steps, values, threshold, dwell, slack=0.0, after=-math.inf):
    def starts(i):
        return values[i] < threshold - slack and steps[i] > after

    return first_that_holds(steps, values, starts, lambda v: v < threshold, dwell)


def one(onset, steps, values, *args, **kwargs):
    """The function under test, on one curve: three plain numbers."""
    found = onset(torch.tensor(steps), torch.tensor(values, dtype=torch.float64), *args, **kwargs)
    assert all(field.shape == () and field.dtype == torch.float64 for field in found)
    return tuple(float(field) for field in found)


def same(a, b):
    return all(x == y or (math.isnan(x) and math.isnan(y)) for x, y in zip(a, b, strict=True))


TENS = [0, 10, 20, 30, 40, 50]


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        ([0, 0, 1, 1, 1, 1], {"dwell": 20}, (20, 40, 10)),
        ([0, 0, 1, 1, 1, 1], {"dwell": 15}, (20, 40, 10)),
        ([0, 0, 1, 1, 1, 1], {"dwell": 0}, (20, 20, 10)),
        ([0, 0, 1, 1, 1, 1], {"dwell": 30}, (20, 50, 10)),
        ([0, 0, 1, 1, 1, 1], {"dwell": 31}, NEVER),
        ([0, 0, 1, 1, 1, 1], {"dwell": 10**6}, NEVER),
        ([1, 1, 1, 1, 1, 1], {"dwell": 20}, (0, 20, 0)),
        ([0, 0, 0, 0, 0, 1], {"dwell": 0}, (50, 50, 10)),
        ([0, 0, 0, 0, 0, 1], {"dwell": 1}, NEVER),
        ([0, 0, 0, 0, 0, 0], {"dwell": 0}, NEVER),
    ],
)
def test_an_onset_is_the_first_step_that_holds_for_the_dwell(values, options, expected):
    assert same(one(rising_onset, TENS, values, 0.5, **options), expected)


def test_a_dip_inside_the_dwell_starts_it_again():
    assert one(rising_onset, TENS, [0, 1, 0, 1, 1, 1], 0.5, dwell=20) == (30, 50, 10)


def test_a_dip_at_the_very_end_of_the_dwell_counts_as_inside():
    assert same(one(rising_onset, TENS, [0, 1, 1, 0, 1, 1], 0.5, dwell=20), NEVER)


def test_dips_after_confirmation_do_not_revise():
    for length in (4, 5, 6):  # however long one looks
        found = one(rising_onset, TENS[:length], [0, 1, 1, 1, 0, 0][:length], 0.5, dwell=20)
        assert found == (10, 30, 10)
    assert one(rising_onset, [0, 10, 20, 30, 40, 99], [1, 0, 0, 1, 1, 1], 0.5, dwell=0) == (0, 0, 0)


def test_a_dip_within_the_slack_does_not_break_the_dwell_but_cannot_start_it():
    values = [0, 0.75, 0.5, 0.4375, 0.5, 0.75]
    assert same(one(rising_onset, TENS, values, 0.75, dwell=30, slack=0.25), NEVER)
    values[3] = 0.5  # exactly at the threshold less the slack
    assert one(rising_onset, TENS, values, 0.75, dwell=30, slack=0.25) == (10, 40, 10)
    assert one(rising_onset, TENS, [0, 0.7, 0.7, 0.75, 0.7, 0.7], 0.75, dwell=20, slack=0.25) == (30, 50, 10)


def test_strictly_above_needs_more_than_the_threshold_to_start():
    values = [0, 0.5, 0.5625, 0.5, 0.5, 0.5]
    assert one(rising_onset, TENS, values, 0.5, dwell=0) == (10, 10, 10)
    assert one(rising_onset, TENS, values, 0.5, dwell=0, strict=True) == (20, 20, 10)


def test_nan_is_not_above():
    assert one(rising_onset, TENS, [1, NAN, 1, 1, 1, 1], 0.5, dwell=20) == (20, 40, 10)
    assert one(rising_onset, TENS, [1, NAN, 1, 1, 1, 1], 0.5, dwell=20, slack=0.5) == (20, 40, 10)
    assert same(one(rising_onset, TENS, [NAN] * 6, 0.5, dwell=0), NEVER)


def test_nan_is_not_below_either():
    assert one(falling_onset, TENS, [0, NAN, 0, 0, 0, 0], 0.5, dwell=20) == (20, 40, 10)
    assert same(one(falling_onset, TENS, [NAN] * 6, 0.5, dwell=0), NEVER)


def test_falling_starts_beyond_the_slack_and_stays_below_the_threshold():
    values = [1, 0.625, 0.25, 0.625, 0.6875, 0.25]
    assert one(falling_onset, TENS, values, 0.75, dwell=20, slack=0.25) == (20, 40, 10)
    values[4] = 0.75  # came back to the threshold
    assert same(one(falling_onset, TENS, values, 0.75, dwell=20, slack=0.25), NEVER)
    assert same(one(falling_onset, TENS, [1, 0.5, 0.5, 0.5, 0.5, 0.5], 0.75, dwell=0, slack=0.25), NEVER)


def test_falling_counts_only_after_the_given_step():
    values = [0, 0, 1, 0, 0, 0]
    assert one(falling_onset, TENS, values, 0.5, dwell=10) == (0, 10, 0)
    assert one(falling_onset, TENS, values, 0.5, dwell=10, after=torch.tensor(20.0)) == (30, 40, 10)
    assert one(falling_onset, TENS, values, 0.5, dwell=10, after=torch.tensor(30.0)) == (40, 50, 10)
    assert same(one(falling_onset, TENS, values, 0.5, dwell=10, after=torch.tensor(NAN)), NEVER)


def test_every_curve_has_its_own_step_after_which_falling_counts():
    values = torch.zeros(6, 3, dtype=torch.float64)
    found = falling_onset(torch.tensor(TENS), values, 0.5, dwell=0, after=torch.tensor([NAN, 10.0, 35.0]))
    torch.testing.assert_close(found.step, torch.tensor([NAN, 20.0, 40.0], dtype=torch.float64), equal_nan=True)


def test_the_resolution_is_the_gap_before_the_onset_however_uneven_the_steps():
    assert one(rising_onset, [0, 1, 7, 500, 501], [0, 0, 0, 1, 1], 0.5, dwell=1) == (500, 501, 493)


@pytest.mark.parametrize("onset", [rising_onset, falling_onset])
@pytest.mark.parametrize("shape", [(0,), (0, 3), (0, 2, 1)])
def test_without_a_measurement_nothing_has_happened(onset, shape):
    found = onset(torch.empty(0, dtype=torch.int64), torch.empty(shape), 0.5, dwell=0)
    assert all(field.shape == shape[1:] and bool(field.isnan().all()) for field in found)


@pytest.mark.parametrize("onset", [rising_onset, falling_onset])
def test_without_curves_there_are_no_onsets(onset):
    found = onset(torch.tensor(TENS), torch.empty(6, 0), 0.5, dwell=0)
    assert all(field.shape == (0,) for field in found)


def test_one_step_is_enough_without_dwell_and_not_with():
    assert one(rising_onset, [7], [1.0], 0.5, dwell=0) == (7, 7, 0)
    assert same(one(rising_onset, [7], [1.0], 0.5, dwell=1), NEVER)


def draw_case(draw):
    # Sixteenths: sums and comparisons are exact, and equality with the threshold is common.
    length = draw.randrange(0, 13)
    steps, step = [], draw.choice([0, 3])
    for _ in range(length):
        steps.append(step)
        step += draw.choice([1, 1, 2, 5, 40])
    palette = [NAN] + [k / 16 for k in range(9, 15)] * 2
    return steps, [draw.choice(palette) for _ in steps], draw.choice([0, 1, 2, 4, 8, 1000]), draw.choice([0, 1, 2]) / 16


@pytest.mark.parametrize("seed", range(20))
def test_random_curves_agree_with_a_search_by_the_definition(seed):
    draw = random.Random(seed)
    happened = 0
    for _ in range(60):
        steps, values, dwell, slack = draw_case(draw)
        strict, after = draw.random() < 0.5, draw.choice([-1.0, 0.0, 4.0, 30.0])
        case = (steps, values, 0.75, dwell, slack)
        rising = one(rising_onset, *case, strict=strict)
        falling = one(falling_onset, *case, after=torch.tensor(after))
        assert same(rising, slow_rising(*case, strict=strict)), (*case, strict)
        assert same(falling, slow_falling(*case, after=after)), (*case, after)
        happened += not math.isnan(rising[0])
        happened += not math.isnan(falling[0])
    assert 20 < happened < 100  # the curves are neither all trivial nor all censored


@pytest.mark.parametrize("seed", range(5))
def test_many_curves_at_once_are_each_found_alone(seed):
    draw = random.Random(100 + seed)
    steps = sorted(draw.sample(range(50), 9))
    values = torch.tensor([[[draw.randrange(9, 15) / 16 for _ in range(3)] for _ in range(2)] for _ in steps])
    rising = rising_onset(torch.tensor(steps), values, 0.75, dwell=8, slack=1 / 16)
    falling = falling_onset(torch.tensor(steps), values, 0.75, dwell=8, slack=1 / 16, after=rising.confirmed_at)
    for i in range(2):
        for j in range(3):
            curve = values[:, i, j].tolist()
            found = slow_rising(steps, curve, 0.75, 8, 1 / 16)
            after = math.inf if math.isnan(found[1]) else found[1]
            assert same([float(field[i, j]) for field in rising], found)
            fell = slow_falling(steps, curve, 0.75, 8, 1 / 16, after)
            assert same([float(field[i, j]) for field in falling], fell)


@pytest.mark.parametrize("onset", [rising_onset, falling_onset])
@pytest.mark.parametrize(
    ("steps", "values", "options", "message"),
    [
        (torch.arange(3), torch.zeros(3), {"dwell": -1}, "got -1 and 0"),
        (torch.arange(3), torch.zeros(3), {"dwell": 0, "slack": -0.5}, "got 0 and -0.5"),
        (torch.arange(3), torch.zeros(2), {"dwell": 0}, r"got \(3,\), \(2,\)"),
        (torch.zeros(3, 1), torch.zeros(3), {"dwell": 0}, r"got \(3, 1\), \(3,\)"),
        (torch.arange(3), torch.tensor(1.0), {"dwell": 0}, r"got \(3,\), \(\)"),
    ],
)
def test_what_does_not_fit_is_refused(onset, steps, values, options, message):
    with pytest.raises(ValueError, match=message):
        onset(steps, values, 0.5, **options)
