import numpy as np
import pytest
import torch

from grok_lightning.modules import MemberMean


def batches(dtype=torch.float64, n_batches=4):
    """Values (3, B) and masks of batches of different lengths."""
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(3, 5 + i, generator=generator, dtype=torch.float64).to(dtype) for i in range(n_batches)]
    return [(v, torch.rand(v.shape, generator=generator) < 0.6) for v in values]


def measured(rows, masked=True):
    metric = MemberMean(3)
    for values, mask in rows:
        metric.update(values, mask if masked else None)
    return metric


def test_it_is_numpys_mean_over_all_rows():
    rows = batches()
    expected = np.concatenate([values.numpy() for values, _ in rows], axis=1).mean(axis=1)
    # Not the mean of the batches' means: they have different lengths.
    np.testing.assert_allclose(measured(rows, masked=False).compute().numpy(), expected, rtol=1e-13)


def test_a_mask_leaves_rows_out_and_members_may_have_different_numbers_of_them():
    rows = batches()
    values, masks = (torch.cat(parts, dim=1).numpy() for parts in zip(*rows, strict=True))
    assert len(set(masks.sum(axis=1))) > 1
    expected = [v[m].mean() for v, m in zip(values, masks, strict=True)]
    np.testing.assert_allclose(measured(rows).compute().numpy(), expected, rtol=1e-13)


def test_whatever_is_masked_out_does_not_count_not_even_nan():
    metric = MemberMean(2)
    metric.update(
        torch.tensor([[1.0, float("nan")], [float("inf"), 3.0]]), torch.tensor([[True, False], [False, True]])
    )
    assert metric.compute().tolist() == [1.0, 3.0]


def test_a_nan_that_counts_is_shown_in_its_member_alone():
    metric = MemberMean(2)
    metric.update(torch.tensor([[1.0, float("nan")], [2.0, 3.0]]))
    assert metric.compute()[0].isnan()
    assert metric.compute()[1] == 2.5


def test_single_precision_values_are_summed_in_double():
    # 2^24 is where single precision stops counting by ones.
    metric = MemberMean(1)
    metric.update(torch.tensor([[2.0**24]]))
    for _ in range(8):
        metric.update(torch.ones(1, 1))
    assert metric.compute().dtype == torch.float64
    assert metric.compute().item() == (2**24 + 8) / 9


def test_rows_that_are_right_or_wrong_are_averaged():
    metric = MemberMean(2)
    metric.update(torch.tensor([[True, False, False, True], [True, True, True, False]]))
    assert metric.compute().tolist() == [0.5, 0.75]


@pytest.mark.parametrize("cast", [torch.nn.Module.half, torch.nn.Module.float, lambda m: m.to(torch.bfloat16)])
def test_casting_the_module_leaves_the_sums_double(cast):
    # The last is how Lightning makes a module half precision: 256 + 1 is 256 there.
    metric = cast(torch.nn.ModuleDict({"metric": MemberMean(1)}))["metric"]
    metric.update(torch.ones(1, 256))
    metric.update(torch.zeros(1, 1))
    assert metric.compute().dtype == torch.float64
    assert metric.compute().item() == 256 / 257


def test_reset_forgets():
    metric = measured(batches())
    metric.reset()
    metric.update(torch.tensor([[1.0], [2.0], [3.0]]))
    assert metric.compute().tolist() == [1.0, 2.0, 3.0]


def test_a_member_without_rows_has_no_mean():
    metric = MemberMean(2)
    metric.update(torch.ones(2, 3), torch.tensor([[True] * 3, [False] * 3]))
    assert metric.compute()[0] == 1
    assert metric.compute()[1].isnan()


@pytest.mark.parametrize("by", ["rows", "members"])
def test_states_of_two_processes_add_up_to_the_whole(by):
    rows = batches()
    if by == "rows":
        shards = [rows[:1], rows[1:]]
    else:
        # Each process sees its own members only.
        own = torch.tensor([[True], [False], [True]])
        shards = [[(values, mask & own) for values, mask in rows], [(values, mask & ~own) for values, mask in rows]]
    first, second = (measured(shard) for shard in shards)
    joined = MemberMean(3)
    joined.update(torch.zeros(3, 0))
    for name in ("total", "count"):
        setattr(joined, name, getattr(first, name) + getattr(second, name))
    torch.testing.assert_close(joined.compute(), measured(rows).compute(), rtol=1e-13, atol=0)
    assert {first._reductions[name].__name__ for name in ("total", "count")} == {"dim_zero_sum"}


@pytest.mark.parametrize("shape", [(2, 5), (3,), (3, 5, 1), (5, 3)])
def test_values_of_other_members_are_refused(shape):
    with pytest.raises(ValueError, match=r"\(E, B\) with E = 3, got"):
        MemberMean(3).update(torch.zeros(shape))


@pytest.mark.parametrize("members", [slice(0, 3, 2), slice(1, 3, 2), slice(None), slice(2, None)])
def test_rows_of_some_members_count_for_these_alone(members):
    rows = batches()
    metric = MemberMean(3)
    for values, mask in rows:
        metric.update(values[members], mask[members], members)
        metric.update(values[members], None, members)
    expected = torch.full((3,), torch.nan, dtype=torch.float64)
    both = measured([*rows, *((values, torch.ones_like(mask)) for values, mask in rows)]).compute()
    expected[members] = both[members]
    torch.testing.assert_close(metric.compute(), expected, rtol=1e-13, atol=0, equal_nan=True)


def test_processes_that_see_some_members_each_add_up_to_the_whole():
    rows = batches()
    total, count = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for members in (slice(0, 3, 2), slice(1, 3, 2)):
        metric = MemberMean(3)
        for values, mask in rows:
            metric.update(values[members], mask[members], members)
        total, count = total + metric.total, count + metric.count
    torch.testing.assert_close(total / count, measured(rows).compute(), rtol=1e-13, atol=0)


def test_values_of_another_number_of_members_than_said_are_refused():
    with pytest.raises(ValueError, match=r"with E = 2, got \(3, 5\)"):
        MemberMean(3).update(torch.zeros(3, 5), members=slice(0, 3, 2))


def test_it_goes_on_after_inference_mode():
    """In which a validation of its own, outside of training, leaves its tensors."""
    metric = MemberMean(2)
    with torch.inference_mode():
        metric.update(torch.ones(2, 3))
        metric.reset()
    metric.update(torch.ones(2, 3))
    assert metric.compute().tolist() == [1.0, 1.0]
