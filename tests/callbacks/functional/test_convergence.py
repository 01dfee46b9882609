import math
import random

import pytest
import torch
from torch.optim import AdamW

from grok_callbacks.functional import box_share, come_to, settled

NAN, INF = math.nan, math.inf


def slow_settled(time, values, moved, window=1 / 3, relative=False):
    """The definition, of one curve, in plain Python."""
    if not time or not time[-1] > 0:
        return False
    part = [value for when, value in zip(time, values, strict=True) if when >= (1 - window - 1e-12) * time[-1]]
    if len(part) < 3 or any(not math.isfinite(value) for value in part):
        return False
    size = sum(abs(value) for value in part) / len(part) if relative else 1.0
    return max(part) - min(part) < moved * size


def one(time, values, moved, **options):
    """The function under test, on one curve."""
    columns = [torch.tensor(numbers, dtype=torch.float64).unsqueeze(1) for numbers in (time, values)]
    found = settled(*columns, moved, **options)
    assert found.shape == (1,)
    assert found.dtype == torch.bool
    return bool(found)


NINE = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        ([0, 9, 0, 9, 0, 1.0, 1.25, 1.0, 1.125], {}, True),  # from time 6 on
        ([0, 9, 0, 9, 0, 1.5, 1.0, 1.25, 1.125], {}, False),  # just as far as it may not
        ([0, 9, 0, 9, 0, 1.5, 1.0, 1.25, 1.125], {"window": 0.25}, True),
        ([0, 9, 0, 9, 0, 1.0, 1.25, 1.0, 1.125], {"window": 1.0}, False),
        ([0, 9, 0, 9, 0, 1.0, 1.25, 1.0, 1.125], {"window": 0.1}, False),  # two measurements
        ([0, 9, 0, 9, 0, -8.0, -8.0, -6.0, -8.0], {}, False),
        ([0, 9, 0, 9, 0, -8.0, -8.0, -6.0, -8.0], {"relative": True}, True),
        ([0, 9, 0, 9, 0, 0.5, 1.0, 0.5, 0.5], {"relative": True}, False),
        ([NAN, INF, 0, 9, 0, 1.0, 1.25, 1.0, 1.125], {}, True),  # what lies before does not matter
        ([NAN, -INF, 0, 9, NAN, 1.0, 1.25, 1.0, 1.125], {"relative": True}, True),
        ([0, 9, 0, 9, 0, 1.0, NAN, 1.0, 1.0], {}, False),
        ([0, 9, 0, 9, 0, 1.0, 1.0, 1.0, NAN], {"relative": True}, False),
        ([0, 9, 0, 9, 0, INF, INF, INF, INF], {}, False),
        ([0, 9, 0, 9, 0, INF, INF, INF, INF], {"relative": True}, False),
        ([0, 9, 0, 9, 0, 0, 0, 0, 0], {}, True),
        ([0, 9, 0, 9, 0, 0, 0, 0, 0], {"relative": True}, False),  # a share of nothing
    ],
)
def test_a_curve_is_settled_when_its_last_part_has_hardly_moved(values, options, expected):
    assert slow_settled(NINE, values, 0.5, **options) is expected
    assert one(NINE, values, 0.5, **options) is expected


@pytest.mark.parametrize(
    "time",
    [[0.0] * 9, [NAN] * 9, [0.0] * 8 + [NAN], [0, 0, 0, 0, 0, 0, 0, 0, 9.0], [0, 0, 0, 0, 0, 0, 0, 8.0, 9.0]],
    ids=["stands still", "unknown", "unknown in the end", "one measurement", "two measurements"],
)
def test_without_time_or_measurements_nothing_is_settled(time):
    assert one(time, [1.0] * 9, 0.5) is False
    assert one(time, [1.0] * 9, 0.5, relative=True) is False


@pytest.mark.parametrize("rate", [0.1, 0.3, 1e-3, 0.7 / 3])
def test_a_measurement_at_the_edge_of_the_window_counts_however_time_was_added_up(rate):
    """Three of nine measurements at even distances lie in the last quarter of eight: at 6, 7 and 8."""
    added = [0.0]
    for _ in range(8):
        added.append(sum([added[-1], *[rate / 100] * 100]))
    for time in (added, [rate * i for i in range(9)]):
        assert one(time, [9.0] * 6 + [1.0] * 3, 0.5, window=0.25)
        assert not one(time, [9.0] * 7 + [1.0] * 2, 0.5, window=0.25)
        assert not one(time[:-1], [9.0] * 5 + [1.0] * 3, 0.5, window=0.25)  # 5.25 is the edge


def test_time_has_come_to_its_goal_up_to_rounding():
    time = torch.tensor([sum([0.1] * 10), 1.0, 1 - 1e-8, NAN, 0.0], dtype=torch.float64)
    assert float(time[0]) < 1
    assert come_to(time, 1.0).tolist() == [True, True, False, False, False]
    assert come_to(time, 0.0).tolist() == [True, True, True, False, True]


def test_three_measurements_are_enough():
    assert one([0.0, 7.0, 8.0, 9.0], [5.0, 1.0, 1.0, 1.0], 0.5)
    assert not one([0.0, 8.0, 9.0], [1.0, 1.0, 1.0], 0.5)
    assert one([0.0, 8.0, 9.0], [1.0, 1.0, 1.0], 0.5, window=1.0)


@pytest.mark.parametrize("length", [0, 1])
def test_hardly_any_history_is_no_rest(length):
    found = settled(torch.ones(length, 3), torch.ones(length, 3), 0.5)
    assert found.tolist() == [False] * 3


def test_without_members_there_is_nothing_to_tell():
    assert settled(torch.ones(4, 0), torch.ones(4, 0), 0.5).shape == (0,)


@pytest.mark.parametrize("seed", range(20))
def test_random_curves_agree_with_the_definition_each_by_its_own_time(seed):
    draw = random.Random(seed)
    members, length = 40, draw.randrange(3, 16)
    time = torch.zeros(length, members, dtype=torch.float64)
    values = torch.zeros(length, members, dtype=torch.float64)
    for e in range(members):
        now, decay = 0.0, draw.choice([0.0, 0.3, 1.0, 3.0])
        for i in range(length):
            now += decay * draw.choice([0.0, 0.1, 0.5, 2.0])
            time[i, e] = now
            values[i, e] = NAN if draw.random() < 0.03 else draw.choice([-2, 1, 3]) + draw.randrange(5) / 16 * (e % 3)
    found = 0
    for moved, window, relative in [(0.2, 1 / 3, False), (4.0, 0.5, False), (0.3, 0.4, True), (5.5, 1.0, False)]:
        expected = [
            slow_settled(time[:, e].tolist(), values[:, e].tolist(), moved, window, relative) for e in range(members)
        ]
        assert settled(time, values, moved, window, relative).tolist() == expected
        found += sum(expected)
    assert 0 < found < 4 * members


def test_curves_of_float32_are_compared_in_float64():
    """In float32 the difference would be 0.02 exactly rounded, one way or the other."""
    time = torch.arange(1.0, 10.0).unsqueeze(1)
    values = torch.tensor([1.0, 1.02] * 4 + [1.0]).unsqueeze(1)
    expected = float(values[1].double() - values[0].double())
    assert bool(settled(time, values, expected * (1 + 1e-12)))
    assert not bool(settled(time, values, expected))


@pytest.mark.parametrize(
    ("time", "values", "options", "message"),
    [
        (torch.ones(4, 1), torch.ones(4, 1), {"moved": 0.0}, "moved: expected more than 0, got 0.0"),
        (torch.ones(4, 1), torch.ones(4, 1), {"moved": NAN}, "moved: .* got nan"),
        (torch.ones(4, 1), torch.ones(4, 1), {"moved": 1.0, "window": 0.0}, r"window: .* \(0, 1\], got 0.0"),
        (torch.ones(4, 1), torch.ones(4, 1), {"moved": 1.0, "window": 1.5}, "got 1.5"),
        (torch.ones(4), torch.ones(4), {"moved": 1.0}, r"\(T, E\), got \(4,\) and \(4,\)"),
        (torch.ones(4, 1), torch.ones(4, 2), {"moved": 1.0}, r"got \(4, 1\) and \(4, 2\)"),
        (torch.ones(3, 1), torch.ones(4, 1), {"moved": 1.0}, r"got \(3, 1\) and \(4, 1\)"),
    ],
)
def test_what_does_not_fit_is_refused(time, values, options, message):
    with pytest.raises(ValueError, match=message):
        settled(time, values, **options)


# The box


def slow_box_share(weights, decays):
    """Of one member: number by number."""
    beyond = total = 0.0
    for numbers, decay in zip(weights, decays, strict=True):
        for number in numbers:
            total += number**2
            beyond += number**2 if decay > 0 and abs(number) > 1 / (2 * decay) else 0.0
    return beyond / total if any(decay > 0 for decay in decays) else NAN


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_share_is_that_of_weights_above_half_of_the_box(dtype):
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(4, n, generator=generator, dtype=dtype) for n in (50, 1, 7)]
    decays = [torch.tensor([1.0, 0.3, 0.0, 0.0]), torch.tensor([1.0, 3.0, 0.0, 2.0]), torch.tensor([1.0, 0.0, 0.0, 0])]
    found = box_share(weights, decays)
    assert found.dtype == torch.float64
    expected = [slow_box_share([w[e].tolist() for w in weights], [float(d[e]) for d in decays]) for e in range(4)]
    assert found.tolist() == pytest.approx(expected, rel=1e-12, nan_ok=True)
    assert found.isnan().tolist() == [False, False, True, False]
    assert 0.5 < found[0] < 1


def test_the_share_does_not_change_when_weights_and_box_are_scaled_together():
    weights = torch.linspace(-1, 1, 31, dtype=torch.float64).unsqueeze(0)
    for scale in (0.125, 1.0, 64.0):
        assert float(box_share([weights * scale], [torch.tensor([0.75 / scale])])) == pytest.approx(
            float(box_share([weights], [torch.tensor([0.75])])), rel=1e-12
        )


def test_a_weight_at_half_of_the_box_is_not_above_it():
    weights, decay = torch.tensor([[0.5, 0.25, -0.5]]), torch.tensor([1.0])
    assert box_share([weights], [decay]).tolist() == [0.0]
    assert box_share([weights], [decay * 1.001]).tolist() == [pytest.approx(0.5 / 0.5625)]


def test_the_share_is_nan_where_it_says_nothing():
    weights = torch.tensor([[0.0, 0.0], [NAN, 1.0], [INF, 1.0], [1.0, 1.0]])
    assert box_share([weights], [torch.ones(4)]).isnan().tolist() == [True, True, True, False]


def test_as_many_decays_as_tensors_are_needed():
    with pytest.raises(ValueError, match="shorter"):
        box_share([torch.ones(1, 2), torch.ones(1, 2)], [torch.ones(1)])


@pytest.mark.parametrize("decay", [0.5, 2.0])
def test_adamw_drives_no_weight_out_of_its_box(decay):
    """However large the gradient that always points one way: the weight ends at the edge, and the share is 1."""
    weight = torch.nn.Parameter(torch.zeros(1, 3, dtype=torch.float64))
    optimizer = AdamW([weight], lr=0.02, weight_decay=decay)
    for _ in range(1500):
        weight.grad = torch.tensor([[-1e3, 1.0, 1e-3]], dtype=torch.float64)
        optimizer.step()
    edge = 1 / decay
    assert weight.tolist()[0] == pytest.approx([edge, -edge, -edge], rel=1e-4)
    assert box_share([weight.detach()], [torch.tensor([decay])]).tolist() == [1.0]
