import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from grok_lightning.theory.effective_loss import (
    EffectiveLoss,
    balanced_shares,
    interior_stationary_point,
    minimise,
    optimum,
)
from grok_lightning.theory.ingredients import Ingredients, at_rest

TABLE_1 = EffectiveLoss((1.0, 2.0), 1.2, 0.005, 113)

# Both sides of κ = q and the border, orders other than 2, few and many labels, decay over decades.
LOSSES = {
    "Table 1": TABLE_1,
    "far below": EffectiveLoss((1.0, 1.5, 3.0), 0.3, 0.01, 10),
    "near the border": EffectiveLoss((1.0, 1.2), 1.9, 0.01, 113),
    "two labels": EffectiveLoss((2.0, 1.0, 1.4), 1.0, 0.3, 2),
    "order 4": EffectiveLoss((1.0, 1.5, 3.0), 2.0, 0.005, 113, order=4.0),
    "order 1/2": EffectiveLoss((0.3, 0.4), 0.3, 0.05, 20, order=0.5),
    "border": EffectiveLoss((1.5, 1.0, 1.2), 2.0, 0.05, 50),
    "above": EffectiveLoss((1.5, 1.0, 1.2), 2.5, 0.05, 50),
    "far above": EffectiveLoss((1.5, 1.0), 4.0, 1e-3, 200),
    "above order 1": EffectiveLoss((2.0, 1.1), 3.0, 0.1, 30, order=1.0),
    "strong decay": EffectiveLoss((1.0, 1.1), 2.5, 4.0, 113),
}
losses = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
below = pytest.mark.parametrize("loss", [x for x in LOSSES.values() if x.kappa < x.order])


def value(loss, weights):
    """The definition, term by term."""
    rows = loss.logits or ((1.0,) * len(loss.norms),)
    entropies = []
    for row in rows:
        right = math.exp(sum(w * o for w, o in zip(weights, row, strict=True)))
        entropies.append(-math.log(right / (right + loss.n_labels - 1)))
    costs = [(p * w ** (1 / loss.kappa)) ** loss.order for p, w in zip(loss.norms, weights, strict=True)]
    return sum(entropies) / len(entropies) + loss.weight_decay / loss.order * sum(costs)


def slopes(loss, weights, step=1e-6, circuits=None):
    """Central differences of the definition, for all circuits or some."""
    found = []
    for i in range(len(weights)) if circuits is None else circuits:
        high, low = np.array(weights), np.array(weights)
        high[i] += step
        low[i] -= step
        found.append((value(loss, high) - value(loss, low)) / (2 * step))
    return np.array(found)


@losses
def test_the_loss_is_its_definition(loss):
    weights = np.random.default_rng(0).uniform(0, 5, (2, 3, len(loss.norms)))
    total = loss.total(weights)
    assert total.shape == (2, 3)
    for index in np.ndindex(2, 3):
        assert total[index] == pytest.approx(value(loss, weights[index]), rel=1e-13)


def test_the_loss_with_logits_is_its_definition():
    loss = replace(TABLE_1, logits=((1.0, 0.2), (0.5, 1.7), (1.5, -0.3)))
    weights = np.array([2.0, 3.0])
    assert float(loss.total(weights)) == pytest.approx(value(loss, weights), rel=1e-13)
    assert loss.training_gradient(weights) == pytest.approx(slopes(replace(loss, weight_decay=0.0), weights), abs=1e-9)


def test_logits_of_one_change_nothing():
    weights = np.random.default_rng(1).uniform(0, 5, (4, 2))
    given = replace(TABLE_1, logits=((1.0, 1.0), (1.0, 1.0)))
    assert given.total(weights) == pytest.approx(TABLE_1.total(weights), rel=1e-14)
    assert given.training_gradient(weights) == pytest.approx(TABLE_1.training_gradient(weights), rel=1e-14)


@losses
def test_the_gradient_of_the_training_loss(loss):
    weights = np.random.default_rng(2).uniform(1, 5, len(loss.norms))
    expected = slopes(replace(loss, weight_decay=0.0), weights)
    assert loss.training_gradient(weights) == pytest.approx(expected, abs=1e-9)


def test_large_weights_do_not_overflow():
    assert float(TABLE_1.training(np.array([1e4, 1e4]))) == 0
    assert (TABLE_1.training_gradient(np.array([1e4, 1e4])) == 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norms": ()}, "at least one norm"),
        ({"norms": (1.0, 0.0)}, "each above 0"),
        ({"norms": (1.0, math.nan)}, "each above 0"),
        ({"norms": (1.0, math.inf)}, "each above 0"),
        ({"kappa": 0.0}, "kappa above 0"),
        ({"kappa": math.nan}, "kappa above 0"),
        ({"order": -1.0}, "order above 0"),
        ({"weight_decay": -0.1}, "weight_decay at least 0"),
        ({"weight_decay": math.inf}, "weight_decay at least 0"),
        ({"n_labels": 1}, "at least 2 labels, got 1"),
        ({"norms": 1.0}, "norms as a row of numbers, got 1.0"),
        ({"norms": ((1.0, 2.0),)}, "norms as a row of numbers"),
        ({"norms": ("one", "two")}, "norms as a row of numbers"),
        ({"kappa": [1.0, 1.2]}, r"kappa as one number, got \[1.0, 1.2\]"),
        ({"n_labels": (10, 113)}, "n_labels as one number"),
        ({"logits": 1.0}, "logits as rows of numbers, got 1.0"),
        ({"logits": (1.0, 2.0)}, "logits as rows of numbers, got 1.0"),
        ({"logits": ((1.0, 1.0), (1.0,))}, r"each of 2 circuits in every row, got \[1, 2\]"),
    ],
    ids=lambda x: str(x) if isinstance(x, dict) else "",
)
def test_what_no_loss_has_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(TABLE_1, **change)


@pytest.mark.parametrize("kind", [list, np.array])
def test_lists_and_arrays_do_as_tuples_do(kind):
    logits = ((1.0, 0.2), (0.5, 1.7))
    given = EffectiveLoss(kind((1.0, 2.0)), 1.2, 0.005, 113)
    rows = replace(given, logits=kind(logits))
    assert (given, rows) == (TABLE_1, replace(TABLE_1, logits=logits))
    assert hash(rows) == hash(replace(TABLE_1, logits=logits))
    assert optimum(given).tolist() == optimum(TABLE_1).tolist()
    assert minimise(rows).tolist() == minimise(replace(TABLE_1, logits=logits)).tolist()
    weights = (2.0, 3.0)
    for method in ("training", "training_gradient", "penalty", "total"):
        expected = getattr(rows, method)(np.array(weights))
        assert getattr(rows, method)(kind(weights)) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize("method", ["training", "training_gradient", "penalty", "total"])
@pytest.mark.parametrize("weights", [3.0, [1.0], [1.0, 2.0, 3.0]], ids=str)
def test_weights_of_another_length_are_refused(method, weights):
    with pytest.raises(ValueError, match=r"weights of shape \(..., 2\), got"):
        getattr(TABLE_1, method)(weights)


@losses
@pytest.mark.parametrize("seed", range(3))
def test_a_search_ends_at_the_optimum(loss, seed):
    known, found = optimum(loss), minimise(loss, seed)
    assert float(loss.total(found)) == pytest.approx(float(loss.total(known)), rel=1e-13)
    assert found == pytest.approx(known, abs=1e-5)


@pytest.mark.parametrize("ratio", [0.9, 1.0, 1.001, 1.05])
def test_a_search_is_exact_up_to_09_of_the_order_and_from_it_on(ratio):
    for norms, order in (((1.0, 1.05, 1.3), 1.0), ((1.2, 1.1, 0.9, 2.0), 3.0)):
        loss = EffectiveLoss(norms, ratio * order, 0.01, 113, order)
        assert float(loss.total(minimise(loss))) == pytest.approx(float(loss.total(optimum(loss))), rel=1e-14)


@pytest.mark.parametrize("ratio", [0.92, 0.97, 0.995, 0.9995, 0.9999])
def test_in_between_the_optimum_is_level_and_no_search_is_below_it(ratio):
    for norms, order in (((1.0, 1.05, 1.3), 1.0), ((1.2, 1.1, 0.9, 2.0), 3.0)):
        loss = EffectiveLoss(norms, ratio * order, 0.01, 113, order)
        known, found = optimum(loss), minimise(loss)
        least = float(loss.total(known))
        assert least * (1 - 1e-14) <= float(loss.total(found)) <= least * (1 + 1e-10)
        used = known > 1e-300
        price = 0.01 / loss.kappa * np.array(norms)[used] ** order * known[used] ** (order / loss.kappa - 1)
        assert -loss.training_gradient(known)[used] == pytest.approx(price, rel=1e-12)


@losses
def test_no_point_of_a_grid_is_below_the_optimum(loss):
    """All splits of all totals: brute force."""
    known = optimum(loss)
    least = float(loss.total(known))
    shares = np.random.default_rng(3).dirichlet([0.5] * len(loss.norms), 2000)
    if len(loss.norms) == 2:
        first = np.linspace(0, 1, 2001)
        shares = np.stack([first, 1 - first], -1)
    totals = np.concatenate([[0], np.geomspace(1e-4, 60, 500)])
    grid = loss.total(totals[:, None, None] * shares)
    assert grid.min() >= least * (1 - 1e-14)
    if len(loss.norms) == 2:
        place, split = np.unravel_index(int(grid.argmin()), grid.shape)
        assert totals[place] * shares[split] == pytest.approx(known, abs=0.05 * max(known.sum(), 1e-3))


@losses
def test_the_optimum_is_level_where_weights_are_not_zero(loss):
    known = optimum(loss)
    used = np.flatnonzero(known)
    if used.size:
        # A step that is short beside each weight, and long beside rounding.
        assert slopes(loss, known, 1e-4 * known[used].min(), used) == pytest.approx(0, abs=1e-7)


@below
def test_below_the_order_weights_follow_the_power_law(loss):
    known, norms = optimum(loss), np.array(loss.norms)
    exponent = -loss.order * loss.kappa / (loss.order - loss.kappa)
    assert known / known[0] == pytest.approx((norms / norms[0]) ** exponent, rel=1e-12)
    assert (known > 0).all()


@pytest.mark.parametrize("name", ["border", "above", "far above", "above order 1"])
def test_from_the_order_on_the_least_norm_takes_all(name):
    loss = LOSSES[name]
    used = np.flatnonzero(optimum(loss))
    assert used.tolist() == [int(np.argmin(loss.norms))]


@pytest.mark.parametrize(
    ("norms", "kappa", "order", "ratios"),
    [
        ((1.0, 2.0), 1.2, 2.0, (1, 1 / 8)),
        ((1.0, 1.5, 3.0), 1.0, 2.0, (1, 0.4444, 0.1111)),
        ((1.0, 1.5, 3.0), 1.5, 2.0, (1, 0.0878, 0.00137)),
        ((1.0, 1.5, 3.0), 2.0, 4.0, (1, 1.5**-4, 3.0**-4)),
    ],
    ids=["Table 1", "κ = 1", "κ = 1.5", "order 4"],
)
def test_known_ratios(norms, kappa, order, ratios):
    loss = EffectiveLoss(norms, kappa, 0.005, 113, order)
    for weights in (optimum(loss), minimise(loss)):
        assert weights / weights[0] == pytest.approx(ratios, abs=5e-5)


def test_known_totals():
    assert optimum(TABLE_1) == pytest.approx([7.83152, 0.97894], abs=5e-6)
    assert minimise(TABLE_1) == pytest.approx([7.83152, 0.97894], abs=5e-6)
    # Without the half that the equations of the paper have and its appendix has not.
    assert optimum(replace(TABLE_1, weight_decay=0.01)) == pytest.approx(at_rest(Ingredients()), rel=1e-12)
    assert at_rest(Ingredients()) == pytest.approx([7.25, 0.91], abs=5e-3)


@pytest.mark.parametrize(("kappa", "decay"), [(2.0, 2.0), (2.5, 4.0)])
def test_under_strong_decay_nothing_is_used(kappa, decay):
    loss = EffectiveLoss((1.0, 1.5), kappa, decay, 113)
    assert optimum(loss).tolist() == minimise(loss).tolist() == [0, 0]


def test_nothing_is_used_only_from_the_order_on():
    loss = EffectiveLoss((1.0, 1.5), 1.9, 2.0, 113)
    assert (optimum(loss) > 0).all()
    assert float(loss.total(optimum(loss))) < math.log(113)


@pytest.mark.parametrize("side", [-1, 1], ids=["from below", "from above"])
@pytest.mark.parametrize("decay", [0.005, 0.5])
def test_near_the_order_the_optimum_is_that_at_the_order(side, decay):
    at = EffectiveLoss((1.3, 1.0, 2.0), 2.0, decay, 113)
    for distance in (1e-6, 1e-9, 1e-12, 1e-15):
        near = optimum(replace(at, kappa=2.0 * (1 + side * distance)))
        assert near == pytest.approx(optimum(at), abs=1e-4 if distance == 1e-6 else 1e-7)


def test_at_the_order_the_total_is_known():
    loss = EffectiveLoss((1.5, 1.2), 2.0, 0.01, 113)
    price = 0.01 / 2 * 1.2**2
    assert optimum(loss) == pytest.approx([0, math.log(112 * (1 / price - 1))], rel=1e-14)


@pytest.mark.parametrize("kappa", [0.3, 1.2, 2.0, 2.5, 4.0])
@pytest.mark.parametrize("decay", [1e-9, 1e-3, 1.0])
def test_a_single_circuit(kappa, decay):
    loss = EffectiveLoss((1.3,), kappa, decay, 20)
    grid = np.concatenate([[0], np.geomspace(1e-6, 60, 4000)])
    start = int(np.argmin(loss.total(grid[:, None])))
    low, high = grid[max(start - 1, 0)], grid[min(start + 1, len(grid) - 1)]
    best = minimize_scalar(lambda w: value(loss, [w]), bounds=(low, high), method="bounded", options={"xatol": 1e-12})
    expected = min((best.fun, best.x), (value(loss, [0.0]), 0.0))
    assert float(loss.total(optimum(loss))) == pytest.approx(expected[0], rel=1e-12)
    assert optimum(loss)[0] == pytest.approx(expected[1], rel=2e-3, abs=1e-6)


def test_equal_norms_share_equally_below_the_order_and_not_above():
    equal = EffectiveLoss((1.4,) * 3, 1.0, 0.01, 50)
    shared = optimum(equal)
    assert shared == pytest.approx(shared[0], rel=1e-14)
    assert minimise(equal) == pytest.approx(shared, abs=1e-5)
    for kappa in (2.0, 2.5):
        assert np.flatnonzero(optimum(replace(equal, kappa=kappa))).tolist() == [0]
    assert np.count_nonzero(minimise(replace(equal, kappa=2.5))) == 1


def test_at_the_order_equal_norms_may_share_in_any_way():
    equal = EffectiveLoss((1.4,) * 3, 2.0, 0.01, 50)
    total = optimum(equal).sum()
    splits = equal.total(total * np.random.default_rng(4).dirichlet(np.ones(3), 100))
    assert splits == pytest.approx(float(equal.total(optimum(equal))), rel=1e-14)


@pytest.mark.parametrize("kappa", [0.3, 1.0, 1.5, 1.99])
def test_huge_decay_below_the_order_leaves_little_of_each(kappa):
    loss = EffectiveLoss((1.0, 2.0), kappa, 1e6, 113)
    known = optimum(loss)
    # At w = 0 the training loss falls by 112/113 per weight; the penalty's slope is (α/κ) C W^(2/κ - 1).
    cost = (np.array([1.0, 4.0]) * balanced_shares(loss) ** (2 / kappa)).sum()
    total = (112 / 113 / (1e6 / kappa * cost)) ** (1 / (2 / kappa - 1))
    assert known.sum() == pytest.approx(total, rel=0.1)
    assert float(loss.total(known)) <= math.log(113)
    assert math.isfinite(float(loss.total(minimise(loss))))


@pytest.mark.parametrize("kappa", [1.0, 2.0, 3.0])
def test_tiny_decay(kappa):
    loss = EffectiveLoss((1.0, 2.0), kappa, 1e-12, 113)
    known = optimum(loss)
    assert 25 < known.sum() < 40
    assert float(loss.total(minimise(loss))) == pytest.approx(float(loss.total(known)), rel=1e-6)


@losses
def test_norms_scaled_are_decay_scaled(loss):
    scaled = replace(loss, norms=tuple(3 * p for p in loss.norms), weight_decay=loss.weight_decay / 3**loss.order)
    assert optimum(scaled) == pytest.approx(optimum(loss), rel=1e-11)


@losses
def test_the_order_of_circuits_does_not_matter(loss):
    assert optimum(replace(loss, norms=loss.norms[::-1]))[::-1] == pytest.approx(optimum(loss), rel=1e-11)


def test_a_wrong_exponent_is_not_level(monkeypatch):
    """What the tests above would see if the power law had another exponent."""

    def wrong(loss):
        shares = np.array(loss.norms) ** (-loss.kappa / (loss.order - loss.kappa))
        return shares / shares.sum()

    monkeypatch.setattr("grok_lightning.theory.effective_loss.balanced_shares", wrong)
    claimed = optimum(TABLE_1)
    assert np.abs(slopes(TABLE_1, claimed)).max() > 1e-3
    assert float(TABLE_1.total(minimise(TABLE_1))) < float(TABLE_1.total(claimed)) * (1 - 1e-3)


def test_inside_there_is_a_saddle():
    loss = EffectiveLoss((1.0, 1.5), 3.0, 0.005, 113)
    point = interior_stationary_point(loss)
    assert point is not None
    assert (point > 0).all()
    assert point[1] / point[0] == pytest.approx(1.5**6, rel=1e-12)
    assert slopes(loss, point, 1e-5) == pytest.approx(0, abs=1e-8)
    height = value(loss, point)
    for direction in ([1, -1], [-1, 1]):
        assert value(loss, point + 0.1 * np.array(direction)) < height
    # Along the ray it is the larger of the two totals: a minimum there, and so no maximum of the loss.
    assert value(loss, 1.01 * point) > height < value(loss, 0.99 * point)
    assert float(loss.total(optimum(loss))) < height - 1e-3


def test_under_strong_decay_there_is_no_saddle():
    assert interior_stationary_point(EffectiveLoss((1.0, 1.5), 2.5, 4.0, 113)) is None


@pytest.mark.parametrize("kappa", [1.0, 2.0])
def test_a_saddle_is_asked_for_above_the_order(kappa):
    with pytest.raises(ValueError, match=f"kappa above order 2.0, got {kappa}"):
        interior_stationary_point(EffectiveLoss((1.0, 1.5), kappa, 0.1, 113))


def test_at_the_order_no_shares_are_balanced():
    with pytest.raises(ValueError, match="kappa other than order"):
        balanced_shares(EffectiveLoss((1.0, 1.5), 2.0, 0.1, 113))


@pytest.mark.parametrize("find", [optimum, minimise, interior_stationary_point])
def test_without_decay_there_is_no_minimum(find):
    with pytest.raises(ValueError, match="falls for ever"):
        find(EffectiveLoss((1.0, 1.5), 3.0, 0.0, 113))


@pytest.mark.parametrize("find", [optimum, interior_stationary_point])
def test_the_law_is_for_the_same_logits(find):
    with pytest.raises(ValueError, match="same logits"):
        find(EffectiveLoss((1.0, 1.5), 3.0, 0.1, 113, logits=((1.0, 2.0),)))


def test_a_search_handles_other_logits():
    """A circuit with twice the logits is one with a smaller norm: w_i stands for w_i / 2."""
    loss = replace(TABLE_1, logits=((1.0, 2.0),))
    plain = replace(TABLE_1, norms=(1.0, 2 * 2 ** (-1 / 1.2)))
    assert minimise(loss) * [1, 2] == pytest.approx(optimum(plain), abs=1e-5)


def test_a_search_leaves_out_what_hardly_counts():
    """Just below the order, descents in all weights at once stop before they have found the total of one."""
    loss = EffectiveLoss((1.0, 1.3, 2.0), 1.999, 0.01, 50)
    found = minimise(loss)
    assert found == pytest.approx(optimum(loss), abs=1e-5)
    assert found == pytest.approx([9.184, 0, 0], abs=1e-3)


def test_a_search_is_that_of_its_seed():
    equal = EffectiveLoss((1.0, 1.0), 2.0, 0.1, 113)
    assert minimise(equal, 3).tolist() == minimise(equal, 3).tolist()
    with pytest.raises(ValueError, match="n_starts at least 0, got -1"):
        minimise(equal, n_starts=-1)
