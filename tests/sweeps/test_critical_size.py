import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import xarray as xr
from scipy.optimize import differential_evolution
from scipy.stats import ttest_1samp

from grok_lightning.sweeps import (
    Curve,
    Margins,
    arms_of,
    common_time,
    compared_arms,
    final_values,
    fit_curve,
    too_short,
    verdicts,
)

SIZES = np.array([60.0, 90, 110, 130, 150, 180, 220, 300])
CHANCE = 1 / 31
STEPS = np.arange(0, 10_001, 500.0)


def logistic(size, critical, s, chance=CHANCE):
    return chance + (1 - chance) / (1 + np.exp(-(np.log(size) - np.log(critical)) / s))


def table(sizes=SIZES, decays=(0.3, 1.0), seeds=4, eps=(1e-8,)):
    """Size, weight decay, eps and seed of members over the product of these."""
    cells = [(size, decay, e, seed) for decay in decays for e in eps for seed in range(seeds) for size in sizes]
    return (np.array(column) for column in zip(*cells, strict=True))


def planted(make_sweep, *, critical=135.0, s=0.2, effects=None, slope=0.0, noise=0.0, change=None, **options):
    """A sweep that has converged on curves with a known critical size: seeds' effects and slope are those of its log.

    `noise` is that of one seed's subsets, nested: correlated between sizes by the root of their ratio. `change`: from
    the final accuracies and the table to other ones.
    """
    chance = options.pop("chance", CHANCE)
    extra = {name: options.pop(name) for name in ("box_share", "start_accuracy", "norm") if name in options}
    size, decay, eps, seed = table(**options)
    effects = np.zeros(seed.max() + 1) if effects is None else np.asarray(effects)
    middle = np.log(critical) + effects[seed] + slope * np.log(np.where(decay > 0, decay, 1))
    final = logistic(size, np.exp(middle), s, chance)
    rng = np.random.default_rng(3)
    if noise:
        for one in np.unique(seed):
            for arm in {*zip(decay, eps, strict=True)}:
                own = np.flatnonzero((seed == one) & (decay == arm[0]) & (eps == arm[1]))
                grown = np.diff(size[own], prepend=0)
                final[own] += noise * np.cumsum(rng.standard_normal(len(own)) * np.sqrt(grown)) / np.sqrt(size[own])
    if change is not None:
        final = change(final, size=size, decay=decay, eps=eps, seed=seed)
    # Each member gets to its end within two decay units, and takes the steps that ten of them need.
    step = np.linspace(0, 1e4 / decay[decay > 0].min(), 200)
    way = np.exp(-4 * 1e-3 * decay * step[:, None])
    accuracy = final + (1 - final) * np.where(decay > 0, way, np.exp(-step[:, None] / 1000))
    return make_sweep(
        size=size,
        accuracy=accuracy,
        step=step,
        weight_decay=decay,
        eps=eps,
        seed=seed,
        chance=chance,
        **{name: np.broadcast_to(value, accuracy.shape) for name, value in extra.items() if name != "start_accuracy"},
        **{name: value for name, value in extra.items() if name == "start_accuracy"},
    )


def of_members(sweep, members):
    """The arrays of a sweep, with some of its members only."""
    return {name: v[..., members] for name, v in vars(sweep).items() if isinstance(v, np.ndarray) and name != "step"}


# ---- margins ---------------------------------------------------------------------------------------------------------


def test_the_margins_are_those_that_the_configs_name():
    assert asdict(Margins()) == {
        "accuracy_moved": 0.02,
        "norm_moved": 0.02,
        "window": 1 / 3,
        "at_least": 3.0,
        "box_share": 0.5,
        "width": 4.0,
        "low_end": 0.2,
        "high_end": 0.95,
        "slope": 0.1,
        "confidence": 0.95,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"accuracy_moved": 0}, "'accuracy_moved' above 0"),
        ({"norm_moved": -0.1}, "'norm_moved' above 0"),
        ({"slope": 0}, "'slope' above 0"),
        ({"window": 1}, "'window' between 0 and 1"),
        ({"window": 0}, "'window' between 0 and 1"),
        ({"at_least": -1}, "'at_least' of at least 0"),
        ({"box_share": 1.2}, "'box_share' between 0 and 1"),
        ({"confidence": 95}, "'confidence' between 0 and 1"),
        ({"width": 1.0}, "'width', a ratio of sizes, above 1"),
        ({"low_end": 0.95}, "low_end < high_end"),
        ({"low_end": -0.1}, "low_end < high_end"),
        ({"high_end": 1.1}, "low_end < high_end"),
        ({"width": math.nan}, "finite number for 'width'"),
        ({"width": math.inf}, "finite number for 'width'"),
        ({"slope": "0.1"}, "finite number for 'slope'"),
        ({"slope": True}, "finite number for 'slope'"),
        ({"slope": None}, "finite number for 'slope'"),
    ],
)
def test_margins_out_of_range_are_refused_in_one_line(change, message):
    with pytest.raises(ValueError, match=message) as error:
        replace(Margins(), **change)
    assert "\n" not in str(error.value)


def test_margins_are_read_from_a_record():
    assert Margins.from_record(xr.DataTree()) == (Margins(), False)
    written = xr.DataTree(xr.Dataset(attrs={"margins": json.dumps(asdict(Margins(width=3, confidence=0.9)))}))
    assert Margins.from_record(written) == (Margins(width=3, confidence=0.9), True)
    some = xr.DataTree(xr.Dataset(attrs={"margins": '{"slope": 0.2}'}))
    assert Margins.from_record(some) == (Margins(slope=0.2), True)
    assert Margins.from_record(xr.DataTree(xr.Dataset(attrs={"margins": "{}"}))) == (Margins(), True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slope: 0.1", "JSON object"),
        ("[0.1]", "JSON object"),
        (0.1, "JSON object"),
        ('{"slop": 0.1}', "unknown slop; expected some of accuracy_moved"),
        ('{"slope": -0.1}', "above 0"),
        ('{"slope": "steep"}', "finite number"),
    ],
)
def test_margins_that_cannot_be_read_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        Margins.from_record(xr.DataTree(xr.Dataset(attrs={"margins": text})))


# ---- values at the end -----------------------------------------------------------------------------------------------


def final_by_loop(sweep, until, margins):
    """Each member's row and whether it has converged, written out."""
    rows, converged = [], []
    for e in range(len(sweep.size)):
        decayed = sweep.weight_decay[e] > 0
        measured = [
            t for t in range(len(sweep.step)) if np.isfinite(sweep.time[t, e]) and sweep.step[t] >= sweep.began[e]
        ]
        usable = [t for t in measured if not decayed or sweep.time[t, e] <= until * (1 + 1e-9)]
        rows.append(usable[-1] if usable else -1)
        window = [t for t in usable if sweep.time[t, e] >= (1 - margins.window) * until]
        accuracy, norm = [sweep.accuracy[t, e] for t in window], [sweep.norm[t, e] for t in window]
        still = (
            decayed
            and until >= margins.at_least * (1 - 1e-9)
            and len(window) >= 3
            and np.isfinite(accuracy).all()
            and np.isfinite(norm).all()
            and max(accuracy) - min(accuracy) < margins.accuracy_moved
            and (max(norm) - min(norm)) / (sum(norm) / len(norm)) < margins.norm_moved
            and max(sweep.time[t, e] for t in measured) >= until * (1 - 1e-9)
        )
        converged.append(bool(still))
    return rows, converged


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("until", [None, 3.0, 50.0])
def test_values_are_those_of_a_plain_loop(make_sweep, seed, until):
    rng = np.random.default_rng(seed)
    members, shape = 30, (len(STEPS), 30)
    decay = rng.choice([0.0, 0.5, 1.0, 2.0], members)
    settles = rng.choice([0.01, 0.03], members)
    holes = rng.random(shape) < 0.15
    began = rng.choice([0, 2500.0, 2700.0], members)
    time = np.where(holes, np.nan, 1e-3 * decay * (STEPS[:, None] - began))
    sweep = make_sweep(
        size=rng.integers(50, 300, members),
        step=STEPS,
        time=time,
        began=began,
        weight_decay=decay,
        accuracy=np.where(rng.random(shape) < 0.005, np.nan, 0.5 + settles * rng.random(shape)),
        norm=np.where(rng.random(shape) < 0.005, np.nan, 20 * (1 + settles * rng.random(shape))),
        unpaired=rng.random(shape),
        train_accuracy=rng.random(shape),
        box_share=rng.random(shape),
    )
    found = final_values(sweep, until)
    reached = [t[np.isfinite(t)][-1] for t, d in zip(time.T, decay, strict=True) if d > 0]
    assert common_time(sweep) == min(reached)
    rows, converged = final_by_loop(sweep, min(reached) if until is None else until, Margins())
    np.testing.assert_array_equal(found.converged, converged)
    if until == 50.0:
        assert not any(converged)  # Nobody got there.
    elif until is None:
        assert 0 < sum(converged) < members
    for name in ("accuracy", "unpaired", "train_accuracy", "norm", "box_share", "time", "step"):
        series = sweep.step[:, None] * np.ones(members) if name == "step" else getattr(sweep, name)
        expected = [series[row, e] if row >= 0 else np.nan for e, row in enumerate(rows)]
        np.testing.assert_array_equal(getattr(found, name), expected, err_msg=name)
    lowest = [
        min((sweep.train_accuracy[t, e] for t in range(row + 1) if STEPS[t] >= began[e]), default=np.nan)
        for e, row in enumerate(rows)
    ]
    np.testing.assert_array_equal(found.lowest_train_accuracy, lowest)


def test_decays_are_compared_at_equal_decay_time_not_at_equal_steps(make_sweep):
    """Accuracy falls as far in a decay unit with every weight decay; equal steps would show it as an effect."""
    decay = np.array([0.3, 1.0, 3.0])
    time = 1e-3 * decay * STEPS[:, None]
    sweep = make_sweep(size=[100] * 3, weight_decay=decay, step=STEPS, accuracy=np.exp(-time / 2))
    final = final_values(sweep)
    np.testing.assert_allclose(final.time, 3, rtol=1e-9)
    np.testing.assert_allclose(final.accuracy, np.exp(-1.5), rtol=1e-9)
    assert np.ptp(sweep.accuracy[-1]) > 0.2


def test_sums_that_differ_by_rounding_are_one_time(make_sweep):
    time = np.linspace(0, 10, len(STEPS))[:, None] * np.array([1 - 1e-13, 1, 1 + 1e-13])
    final = final_values(make_sweep(size=[60, 90, 120], step=STEPS, time=time, accuracy=time / 100))
    np.testing.assert_allclose(final.time, 10, rtol=1e-12)


def test_members_without_weight_decay_are_read_at_their_end_and_never_converge(make_sweep):
    accuracy = np.linspace(1, 0.9, len(STEPS))[:, None] * np.ones(2)
    sweep = make_sweep(size=[60, 60], weight_decay=[0.0, 2.0], step=STEPS, accuracy=accuracy)
    final = final_values(sweep, time=4.0)
    np.testing.assert_allclose(final.accuracy, [0.9, accuracy[STEPS == 2000, 0].item()])
    np.testing.assert_allclose(final.time, [0, 4])
    assert not final_values(make_sweep(size=[60], weight_decay=0.0, accuracy=0.5)).converged.any()


def test_nobody_has_weight_decay(make_sweep):
    sweep = make_sweep(size=[60, 90, 120], weight_decay=0.0, accuracy=0.5)
    assert math.isnan(common_time(sweep))
    final = final_values(sweep)
    np.testing.assert_array_equal(final.accuracy, 0.5)
    assert not final.converged.any()
    [arm] = arms_of(sweep)
    assert (arm.n_members, arm.n_converged, arm.critical_size, arm.width) == (3, 0, None, None)
    assert [verdict.outcome for verdict in verdicts(sweep)] == ["undecided"] * 2
    assert verdicts(sweep)[0].because == "No member has weight decay."


@pytest.mark.parametrize(
    "change",
    [
        {"accuracy": np.where(STEPS < 8000, 0.5, 0.521)[:, None]},
        {"norm": np.where(STEPS < 8000, 20, 20.41)[:, None]},
        {"accuracy": np.where(STEPS < 9999, 0.5, np.nan)[:, None]},
        {"norm": np.where(STEPS < 9999, 20, np.nan)[:, None]},
        {"time": np.where((STEPS > 6000) & (STEPS < 9000), np.nan, STEPS / 1000)[:, None], "step": STEPS[::2]},
        {"began": np.nan},
        {"weight_decay": np.nan, "time": STEPS[:, None] / 1000},
        {"time": STEPS[:, None] / 1001},
    ],
    ids=[
        "accuracy",
        "norm",
        "no accuracy",
        "diverged",
        "few measurements",
        "never began",
        "unknown decay",
        "not there yet",
    ],
)
def test_what_is_not_converged(make_sweep, change):
    plain = {"size": [60], "accuracy": 0.5, "step": STEPS}
    assert final_values(make_sweep(**plain)).converged.all()
    if "step" in change:
        change = {name: value[::2] if name == "time" else value for name, value in change.items()}
    assert not final_values(make_sweep(**(plain | change)), time=10.0).converged.any()


def test_a_measurement_at_the_edge_of_the_window_is_in_it_whatever_rounding_made_of_its_time(make_sweep):
    time = np.array([0.0, 0.1, 0.2 - 1e-13, 0.25, 0.3])[:, None]
    accuracy = np.array([0.5, 0.5, 0.5, 0.9, 0.9])[:, None]
    sweep = make_sweep(size=[100], step=[0, 100, 200, 250, 300], time=time, accuracy=accuracy)
    assert not final_values(sweep, margins=Margins(at_least=0.1)).converged[0]
    at_rest = replace(sweep, accuracy=np.full_like(accuracy, 0.5))
    assert final_values(at_rest, margins=Margins(at_least=0.1)).converged[0]


def test_what_moved_before_the_window_does_not_matter(make_sweep):
    sweep = make_sweep(size=[60], step=STEPS, accuracy=np.where(STEPS < 6500, 0.9, 0.5)[:, None])
    assert not final_values(sweep, margins=Margins(window=0.5)).converged.any()
    assert final_values(sweep).converged.all()


def beside_a_short_arm(make_sweep):
    """A sweep with an arm of so little weight decay that nothing has happened in it, and the sweep without it."""
    sweep = planted(make_sweep, decays=(1.0,), seeds=3, sizes=np.geomspace(40, 400, 9))
    parts = {name: np.concatenate([value, value], axis=-1) for name, value in of_members(sweep, slice(None)).items()}
    weak = np.arange(len(parts["size"])) >= len(sweep.size)
    parts["weight_decay"] = np.where(weak, 0.001, 1.0)
    parts["time"] = np.where(weak, 0.001, 1.0) * parts["time"]
    parts["accuracy"] = np.where(weak, 1.0, parts["accuracy"])
    return replace(sweep, **parts), sweep, weak


def test_an_arm_that_went_through_too_little_decay_does_not_say_when_the_others_are_read(make_sweep):
    joined, alone, weak = beside_a_short_arm(make_sweep)
    np.testing.assert_array_equal(too_short(joined), weak)
    assert common_time(joined) == common_time(alone) == 10
    short, strong = arms_of(joined)
    [expected] = arms_of(alone)
    assert (strong.n_converged, strong.critical_size) == (expected.n_members, expected.critical_size)
    assert (short.n_converged, short.critical_size) == (0, None)
    final = final_values(joined)
    np.testing.assert_allclose(final.time[weak], 0.01)
    np.testing.assert_array_equal(final.accuracy[weak], 1.0)
    assert verdicts(joined)[0].outcome == "undecided"
    # The violation: without a minimum all are read when nothing has happened yet, and held to have converged.
    none = Margins(at_least=0)
    assert common_time(joined, none) == pytest.approx(0.01)
    assert verdicts(joined, none)[0].outcome == "refuted"


@pytest.mark.parametrize(("last", "short"), [(2.9, True), (3 - 1e-12, False), (3.0, False), (math.nan, False)])
def test_where_too_little_decay_begins(make_sweep, last, short):
    time = np.stack([np.linspace(0, last, len(STEPS)), np.linspace(0, 10, len(STEPS))], axis=1)
    sweep = make_sweep(size=[100, 100], step=STEPS, time=time, accuracy=0.5)
    np.testing.assert_array_equal(too_short(sweep), [short, False])
    final = final_values(sweep)
    np.testing.assert_array_equal(final.converged, [math.isfinite(last) and not short, True])
    assert common_time(sweep) == (10 if short or math.isnan(last) else last)
    np.testing.assert_array_equal(final.time[0], last)


def test_nothing_has_converged_where_all_went_through_too_little_decay(make_sweep):
    sweep = make_sweep(size=[60, 90, 120], weight_decay=[0.1, 0.2, 0.0], accuracy=0.5)
    assert math.isnan(common_time(sweep))
    np.testing.assert_array_equal(too_short(sweep), [True, True, False])
    final = final_values(sweep)
    np.testing.assert_allclose(final.time, [1, 2, 0])
    assert not final.converged.any()
    at_rest = make_sweep(size=[60], accuracy=0.5, step=np.arange(0, 10_001, 100))
    assert not final_values(at_rest, time=2.9).converged.any()
    assert final_values(at_rest, time=3.0).converged.all()


# ---- the curve of one seed -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chance", [0.0, CHANCE, 0.5])
@pytest.mark.parametrize("s", [0.05, 0.2, 0.6])
@pytest.mark.parametrize("critical", [75.0, 135.0, 250.0])
def test_a_planted_curve_is_found(critical, s, chance):
    curve = fit_curve(SIZES, logistic(SIZES, critical, s, chance), chance)
    assert curve is not None
    np.testing.assert_allclose([curve.critical_size, curve.width_parameter], [critical, s], rtol=1e-4)
    np.testing.assert_allclose(curve.at(SIZES), logistic(SIZES, critical, s, chance), atol=1e-6)
    ends = [curve.at(d) for d in (critical, 1e-9, 1e9)]
    np.testing.assert_allclose(ends, [(1 + chance) / 2, chance, 1], atol=1e-3)


@pytest.mark.parametrize("seed", range(12))
def test_noisy_points_are_fitted_as_well_as_by_a_global_search(seed):
    rng = np.random.default_rng(seed)
    sizes = np.repeat(SIZES, 2)
    accuracy = logistic(sizes, rng.uniform(90, 200), rng.uniform(0.05, 0.5)) + 0.05 * rng.standard_normal(16)
    curve = fit_curve(sizes, accuracy, CHANCE)
    assert curve is not None

    def cost(p):
        return float(((logistic(sizes, np.exp(p[0]), np.exp(p[1])) - accuracy) ** 2).sum())

    bounds = [(np.log(60), np.log(300)), (np.log(0.01), np.log(3))]
    best = differential_evolution(cost, bounds, rng=seed, tol=1e-10)
    ours = cost((math.log(curve.critical_size), math.log(curve.width_parameter)))
    assert ours <= best.fun * (1 + 1e-6) + 1e-9


def test_only_ratios_of_sizes_matter():
    accuracy = logistic(SIZES, 140, 0.3) + 0.02 * np.cos(SIZES)
    plain, larger = fit_curve(SIZES, accuracy, CHANCE), fit_curve(7 * SIZES, accuracy, CHANCE)
    assert larger.critical_size == pytest.approx(7 * plain.critical_size, rel=1e-6)
    assert larger.width == pytest.approx(plain.width, rel=1e-6)
    assert larger.resolution == pytest.approx(plain.resolution, rel=1e-9)


def test_neither_the_order_of_points_nor_unknown_ones_matter():
    accuracy = logistic(SIZES, 140, 0.3) + 0.02 * np.cos(SIZES)
    order = np.random.default_rng(0).permutation(len(SIZES))
    gaps = np.concatenate([SIZES[order], [np.nan, 500]]), np.concatenate([accuracy[order], [0.9, np.nan]])
    plain, other = fit_curve(SIZES, accuracy, CHANCE), fit_curve(*gaps, CHANCE)
    assert other.critical_size == pytest.approx(plain.critical_size, rel=1e-6)
    assert other.width == pytest.approx(plain.width, rel=1e-6)


def test_unknown_chance_is_none():
    accuracy = logistic(SIZES, 140, 0.3, 0)
    assert fit_curve(SIZES, accuracy, math.nan) == fit_curve(SIZES, accuracy, 0.0)


@pytest.mark.parametrize(
    ("sizes", "crossing"), [([50, 100, 200, 400], 200**0.5 * 10), ([100, 110, 120, 400], 48000**0.5)]
)
def test_a_step_has_its_middle_between_the_sizes_and_is_no_wider_than_they_tell(sizes, crossing):
    below = 2 if sizes[2] == 200 else 3
    curve = fit_curve(sizes, [0.0] * below + [1.0] * (4 - below), 0.0)
    assert curve.critical_size == pytest.approx(crossing, rel=0.02)
    assert curve.width < 1.2
    assert curve.resolution == pytest.approx(sizes[below] / sizes[below - 1])


def test_the_width_is_the_ratio_of_the_sizes_at_90_and_10_percent():
    curve = Curve(120.0, 0.37, chance=0.3)
    fine = np.geomspace(1, 1e5, 2_000_001)
    share = (curve.at(fine) - 0.3) / 0.7
    at_10, at_90 = (fine[np.searchsorted(share, level)] for level in (0.1, 0.9))
    assert curve.width == pytest.approx(at_90 / at_10, rel=1e-4)


@pytest.mark.parametrize(
    ("sizes", "accuracies"),
    [
        ([60, 300], [0.05, 0.95]),
        ([60, 60, 300, 300], [0.05, 0.1, 0.95, 0.9]),
        (SIZES, np.full(8, 0.9)),
        (SIZES, np.full(8, 0.1)),
        (SIZES, logistic(SIZES, 135, 0.2)[::-1]),
        (SIZES, logistic(SIZES, 1000, 0.2)),
        ([60, 90, 300], [0.05, np.nan, 0.95]),
        (SIZES, [0.3] * 7 + [0.53]),
        ([], []),
    ],
    ids=["two sizes", "two sizes twice", "above", "below", "falling", "beyond", "two known", "crossing beyond", "none"],
)
def test_points_without_a_curve(sizes, accuracies):
    assert fit_curve(sizes, accuracies, CHANCE) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([60, 90], [0.5], 0.0), "as many accuracies as sizes"),
        (([[60]], [[0.5]], 0.0), "as many accuracies as sizes"),
        (([0, 90, 100], [0.1, 0.5, 0.9], 0.0), "sizes above 0"),
        (([60, 90, 100], [0.1, 0.5, 0.9], 1.0), "chance"),
        (([60, 90, 100], [0.1, 0.5, 0.9], -0.1), "chance"),
    ],
)
def test_points_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        fit_curve(*arguments)


# ---- arms ------------------------------------------------------------------------------------------------------------


def test_arms_are_sorted_by_decay_and_eps(make_sweep):
    eps = (1e-6, 1e-8, np.nan)
    sweep = planted(make_sweep, decays=(1.0, 0.0, 0.3), eps=eps, seeds=2)
    sweep = replace(sweep, weight_decay=np.where(sweep.size == 90, np.nan, sweep.weight_decay))
    arms = arms_of(sweep)
    keys = [(arm.weight_decay, arm.eps) for arm in arms]
    np.testing.assert_array_equal(keys, [(d, e) for d in (0.0, 0.3, 1.0) for e in (1e-8, 1e-6, np.nan)])
    for arm in arms:
        own = (sweep.weight_decay == arm.weight_decay) & (
            (sweep.eps == arm.eps) | (np.isnan(sweep.eps) & np.isnan(arm.eps))
        )
        np.testing.assert_array_equal(arm.members, np.flatnonzero(own))
        np.testing.assert_array_equal(arm.sizes, SIZES[SIZES != 90])
        assert arm.n_members == 14
        assert arm.n_converged == (14 if arm.weight_decay > 0 else 0)
        assert list(arm.curves) == [0, 1]


def test_an_arm_has_one_number_a_seed_and_its_t_interval(make_sweep):
    effects = np.array([0.2, -0.1, 0.05, 0.0])
    [arm] = arms_of(planted(make_sweep, effects=effects, decays=(1.0,), s=0.25))
    logs = np.log(135) + effects
    reference = ttest_1samp(logs, 0).confidence_interval(0.95)
    found = arm.critical_size
    np.testing.assert_allclose([found.mean, found.low, found.high], np.exp([logs.mean(), *reference]), rtol=1e-4)
    assert found.n == 4
    assert arm.width.mean == pytest.approx(9 ** (2 * 0.25), rel=1e-4)
    assert (arm.width.n, arm.n_members) == (4, 32)
    per_seed = [arm.curves[seed].critical_size for seed in range(4)]
    np.testing.assert_allclose(per_seed, np.exp(logs), rtol=1e-4)
    narrower = arms_of(planted(make_sweep, effects=effects, decays=(1.0,)), Margins(confidence=0.5))[0].critical_size
    assert found.low < narrower.low < narrower.high < found.high


def test_more_sizes_of_the_same_seeds_do_not_narrow_the_interval(make_sweep):
    effects = np.array([0.2, -0.1, 0.05, 0.0])
    few, many = (
        arms_of(planted(make_sweep, effects=effects, decays=(1.0,), sizes=sizes))[0].critical_size
        for sizes in (SIZES, np.geomspace(60, 300, 60))
    )
    assert many.high / many.low == pytest.approx(few.high / few.low, rel=1e-3)
    assert many.n == few.n == 4


def test_one_seed_has_no_interval(make_sweep):
    [arm] = arms_of(planted(make_sweep, decays=(1.0,), seeds=1))
    assert arm.critical_size.mean == pytest.approx(135, rel=1e-4)
    assert arm.critical_size.n == 1
    assert np.isnan([arm.critical_size.low, arm.critical_size.high, arm.width.low, arm.width.high]).all()


def test_several_members_of_one_seed_and_size_share_its_curve(make_sweep):
    sweep = planted(make_sweep, decays=(1.0,), seeds=2, effects=[0.1, -0.1])
    [arm] = arms_of(replace(sweep, seed=np.zeros_like(sweep.seed)))
    assert arm.critical_size.n == 1
    assert arm.critical_size.mean == pytest.approx(135, rel=0.02)


def test_ends_are_means_over_seeds_of_members_that_converged(make_sweep):
    sweep = planted(make_sweep, decays=(1.0,), seeds=3, effects=[0.3, 0.0, -0.3])
    [arm] = arms_of(sweep)
    ends = [np.mean([logistic(size, 135 * np.exp(effect), 0.2) for effect in (0.3, 0, -0.3)]) for size in (60, 300)]
    np.testing.assert_allclose([arm.low_end, arm.high_end], ends, rtol=1e-6)
    moved = sweep.accuracy.copy()
    moved[-1, (sweep.size == 60) & (sweep.seed == 0)] = 0.5
    moved[-1, sweep.size == 300] = 0.5
    [arm] = arms_of(replace(sweep, accuracy=moved))
    assert arm.low_end == pytest.approx(np.mean([logistic(60, 135 * np.exp(effect), 0.2) for effect in (0, -0.3)]))
    assert math.isnan(arm.high_end)
    assert (arm.n_members, arm.n_converged) == (24, 20)


def test_an_arm_is_in_the_box_by_the_median_of_its_members(make_sweep):
    share = np.tile([0.4, 0.6, 0.9], 8)
    options = {"decays": (1.0,), "seeds": 3}
    [arm] = arms_of(planted(make_sweep, box_share=share, **options))
    assert (arm.box_share, arm.in_box) == (0.6, True)
    assert not arms_of(planted(make_sweep, box_share=share, **options), Margins(box_share=0.6))[0].in_box
    [unknown] = arms_of(planted(make_sweep, box_share=np.nan, **options))
    assert math.isnan(unknown.box_share)
    assert not unknown.in_box


# ---- simulated sweeps ------------------------------------------------------------------------------------------------


def test_the_interval_covers_the_critical_size_as_often_as_it_says(make_sweep):
    """400 sweeps of four seeds, whose subsets are nested: the points of a seed are not independent."""
    rng = np.random.default_rng(11)
    sizes, seeds, covered, naive = np.geomspace(60, 300, 7), 4, [], []
    step = np.arange(0, 10_001, 1000.0)
    grown = np.diff(sizes, prepend=0)
    for _ in range(400):
        critical = 135 * np.exp(0.2 * rng.standard_normal(seeds))
        noise = 0.04 * np.cumsum(rng.standard_normal((seeds, 7)) * np.sqrt(grown), axis=1) / np.sqrt(sizes)
        final = logistic(sizes, critical[:, None], 0.2) + noise
        sweep = make_sweep(
            size=np.tile(sizes, seeds),
            seed=np.repeat(range(seeds), 7),
            accuracy=final.ravel(),
            step=step,
            chance=CHANCE,
        )
        [arm] = arms_of(sweep)
        covered.append(arm.critical_size.low < 135 < arm.critical_size.high)
        # What an interval would cover that took every point of every seed for an independent one.
        spread = np.std([math.log(curve.critical_size) for curve in arm.curves.values()], ddof=1) / math.sqrt(28)
        naive.append(abs(math.log(arm.critical_size.mean / 135)) < 2.05 * spread)
    assert np.mean(covered) == pytest.approx(0.95, abs=0.025)
    assert np.mean(naive) < 0.75


@pytest.mark.parametrize(("slope", "outcome"), [(0.0, "supported"), (0.5, "refuted"), (-0.5, "refuted")])
def test_a_planted_slope_gives_its_verdict(make_sweep, slope, outcome):
    found = []
    for trial in range(10):
        effects = 0.2 * np.random.default_rng(trial).standard_normal(5)
        sweep = planted(make_sweep, slope=slope, effects=effects, noise=0.02, seeds=5, sizes=np.geomspace(30, 500, 9))
        found.append(verdicts(sweep)[1].outcome)
    assert found == [outcome] * 10


def test_a_slope_that_seeds_do_not_agree_on_is_undecided(make_sweep):
    def crooked(final, *, size, decay, seed, **_):
        return logistic(size, 135 * decay ** np.array([0.3, -0.3, 0.1])[seed], 0.2)

    verdict = verdicts(planted(make_sweep, seeds=3, change=crooked, sizes=np.geomspace(30, 500, 9)))[1]
    assert verdict.outcome == "undecided"
    assert "which does not tell it from ±0.1" in verdict.because


# ---- verdicts --------------------------------------------------------------------------------------------------------


def test_both_supported(make_sweep):
    sweep = planted(make_sweep, effects=[0.1, -0.1, 0.05, 0.0], seeds=4, sizes=np.geomspace(40, 400, 9))
    sharp, independent = verdicts(sweep, written=True)
    assert (sharp.name, sharp.outcome, independent.name, independent.outcome) == ("P2", "supported", "P3", "supported")
    assert sharp.margins_written
    assert independent.margins_written
    assert not any(verdict.margins_written for verdict in verdicts(sweep))
    assert sharp.because.startswith(
        "λ = 0.3: D at 90 % over D at 10 % is 2.41 (2.41 to 2.41 over 4 seeds), ends at 0.002"
    )
    assert "; λ = 1: " in sharp.because
    assert sharp.claim != independent.claim
    assert independent.because == (
        "By seed, d log D_crit / d log λ is 0.000 (0.000 to 0.000 over 4 seeds), arms: λ = 0.3, λ = 1."
    )


@pytest.mark.parametrize(
    ("options", "outcome", "words"),
    [
        ({"s": 0.5, "sizes": np.geomspace(20, 2000, 9)}, "refuted", "is 9 (9 to 9 over 3 seeds), not below 4"),
        (
            {"sizes": np.geomspace(120, 600, 9)},
            "refuted",
            "accuracy at D = 120 is 0.357 (0.357 to 0.357 over 3 seeds) of the way",
        ),
        (
            {"sizes": np.geomspace(20, 200, 9)},
            "refuted",
            "accuracy at D = 200 is 0.881 (0.881 to 0.881 over 3 seeds), not above 0.95",
        ),
        ({"sizes": [20, 400]}, "undecided", "its 6 converged of 6 members allow no curve"),
        ({"sizes": [20, 60, 400], "s": 0.1}, "undecided", "nearest sizes that converged are a factor 6.67 apart"),
        ({"seeds": 1}, "undecided", "(one seed, no interval), which does not tell it from 4"),
    ],
    ids=["wide", "low end", "high end", "two sizes", "coarse", "one seed"],
)
def test_a_transition_that_is_not_seen_to_be_sharp(make_sweep, options, outcome, words):
    options = {"sizes": np.geomspace(40, 400, 9), "seeds": 3, "decays": (1.0,)} | options
    verdict = verdicts(planted(make_sweep, **options))[0]
    assert verdict.outcome == outcome
    assert words in verdict.because
    assert verdict.because.startswith("λ = 1: ")
    assert verdict.because.endswith(".")


def test_ends_are_told_apart_from_chance(make_sweep):
    """With chance one half accuracy never falls below 0.2, nor need it."""
    options = {"decays": (1.0,), "sizes": np.geomspace(40, 400, 9), "chance": 0.5}
    sweep = planted(make_sweep, **options)
    assert arms_of(sweep)[0].low_end == pytest.approx(0.501, abs=1e-3)
    assert verdicts(sweep)[0].outcome == "supported"


def test_seeds_that_disagree_on_an_end_leave_it_undecided(make_sweep):
    def two_kinds(final, *, size, seed, **_):
        return np.where((size == size.min()) & (seed == 0), 0.9, final)

    sizes = np.geomspace(40, 400, 15)
    verdict = verdicts(planted(make_sweep, decays=(1.0,), seeds=3, sizes=sizes, change=two_kinds))[0]
    assert verdict.outcome == "undecided"


def test_an_end_where_nobody_converged_is_undecided(make_sweep):
    sweep = planted(make_sweep, decays=(1.0,), seeds=3, sizes=np.geomspace(40, 400, 9))
    for size, word in ((40, "smallest"), (400, "largest")):
        moved = sweep.accuracy.copy()
        moved[-1, np.isclose(sweep.size, size)] = 0.5
        verdict = verdicts(replace(sweep, accuracy=moved))[0]
        assert verdict.outcome == "undecided"
        assert f"but no member converged at the {word} size" in verdict.because


def test_one_arm_decides_against_all(make_sweep):
    def wide_at_one(final, *, size, decay, **_):
        return np.where(decay == 1, logistic(size, 135, 0.6), final)

    sizes = np.geomspace(5, 5000, 12)
    verdict = verdicts(planted(make_sweep, seeds=3, sizes=sizes, change=wide_at_one))[0]
    assert verdict.outcome == "refuted"
    assert verdict.because.startswith("λ = 1: ")
    assert "λ = 0.3" not in verdict.because


def test_an_undecided_arm_leaves_all_undecided(make_sweep):
    sweep = planted(make_sweep, seeds=3, sizes=np.geomspace(40, 400, 9))
    moved = sweep.accuracy.copy()
    moved[-1, sweep.weight_decay == 0.3] = 0.5
    sharp, independent = verdicts(replace(sweep, accuracy=moved))
    assert sharp.outcome == "undecided"
    assert sharp.because == "λ = 0.3: its 0 converged of 27 members allow no curve."
    assert independent.outcome == "undecided"
    assert independent.because.startswith("No seed has a critical size in two arms, arms: λ = 0.3, λ = 1.")


def test_arms_in_the_box_and_of_another_eps_are_left_out_of_p3(make_sweep):
    def shifted(final, *, size, decay, eps, **_):
        # What would refute it, were it not left out.
        return np.where((decay == 3) | (eps > 1e-7), logistic(size, 250, 0.2), final)

    options = {"decays": (0.3, 1.0, 3.0), "seeds": 3, "sizes": np.geomspace(30, 900, 12)}
    base = planted(make_sweep, eps=(1e-8, 1e-6), change=shifted, **options)
    boxed = np.where(base.weight_decay == 3, 0.9, 0.01)
    wanted = (base.eps < 1e-7) | (base.weight_decay == 1)
    parts = of_members(base, wanted)
    share = np.broadcast_to(boxed[wanted], parts["accuracy"].shape)
    sweep = replace(base, **(parts | {"box_share": share}))
    verdict = verdicts(sweep)[1]
    assert verdict.outcome == "supported"
    assert verdict.because.endswith(
        "arms: λ = 0.3 (eps 1e-08), λ = 1 (eps 1e-08); left out: λ = 1 (eps 1e-06), of another eps, "
        "λ = 3 (eps 1e-08), in the box."
    )
    assert verdicts(replace(sweep, box_share=0 * share))[1].outcome == "refuted"
    assert [(arm.weight_decay, arm.eps) for arm in compared_arms(arms_of(sweep))] == [(0.3, 1e-8), (1.0, 1e-8)]


def test_the_arms_compared_have_weight_decay_and_one_eps_also_where_it_is_unknown(make_sweep):
    sweep = planted(make_sweep, decays=(0.0, 0.3, 1.0), seeds=2, eps=(np.nan, 1e-6))
    assert [(arm.weight_decay, arm.eps) for arm in compared_arms(arms_of(sweep))] == [(0.3, 1e-6), (1.0, 1e-6)]
    unknown = replace(sweep, eps=np.full_like(sweep.eps, np.nan))
    assert [arm.weight_decay for arm in compared_arms(arms_of(unknown))] == [0.3, 1.0]
    assert compared_arms([]) == ()


def test_members_without_weight_decay_take_no_part(make_sweep):
    options = {"seeds": 3, "sizes": np.geomspace(40, 400, 9)}
    assert verdicts(planted(make_sweep, decays=(0.0, 0.3, 1.0), **options)) == verdicts(planted(make_sweep, **options))


def test_slopes_need_the_same_seed_in_two_arms(make_sweep):
    sweep = planted(make_sweep, seeds=4, effects=[0.3, 0.3, -0.3, -0.3], sizes=np.geomspace(30, 600, 9))
    # Seeds 0 and 1 have one arm, 2 and 3 the other: their difference is no effect of weight decay.
    kept = (sweep.seed < 2) == (sweep.weight_decay < 1)
    parts = of_members(sweep, kept)
    verdict = verdicts(replace(sweep, **parts))[1]
    assert verdict.outcome == "undecided"
    assert "No seed has a critical size in two arms" in verdict.because


def test_one_seed_with_a_slope_is_undecided(make_sweep):
    verdict = verdicts(planted(make_sweep, seeds=1, sizes=np.geomspace(40, 400, 9)))[1]
    assert verdict.outcome == "undecided"
    assert "0.000 (one seed, no interval)" in verdict.because


@pytest.mark.parametrize("accuracy", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("slope", [0.0, 0.5])
def test_a_member_that_has_not_converged_changes_no_verdict(make_sweep, accuracy, slope):
    sweep = planted(make_sweep, seeds=4, effects=[0.1, -0.1, 0, 0.05], slope=slope, sizes=np.geomspace(30, 500, 9))
    moving = np.flatnonzero((sweep.size > 100) & (sweep.size < 200))[:2]
    planted_series = sweep.accuracy.copy()
    planted_series[:, moving] = np.linspace(0.5, accuracy, len(sweep.step))[:, None]
    wrong = replace(sweep, accuracy=planted_series)
    without = np.delete(np.arange(len(sweep.size)), moving)
    parts = of_members(sweep, without)
    assert verdicts(wrong) == verdicts(replace(sweep, **parts))
    assert [v.outcome for v in verdicts(wrong)] == [v.outcome for v in verdicts(sweep)]
    # The violation: had it settled there, the numbers would be others.
    settled = planted_series.copy()
    settled[:, moving] = accuracy
    assert verdicts(replace(sweep, accuracy=settled)) != verdicts(wrong)


def test_networks_from_scratch_decide_nothing_about_forgetting(make_sweep):
    sweep = planted(make_sweep, sizes=np.geomspace(40, 400, 9), start_accuracy=CHANCE)
    assert arms_of(sweep)[0].critical_size is not None
    for verdict in verdicts(sweep):
        assert verdict.outcome == "undecided"
        assert verdict.because.startswith("Members started from scratch, at accuracy 0.0323")


def test_a_start_that_was_measured_late_in_some_members_does_not_stop_the_verdict(make_sweep):
    """Small sets forget fast: what they had lost by their first measurement is no sign of a start from scratch."""
    sizes = np.geomspace(40, 400, 9)
    start = np.where(np.tile(sizes, 8) < 100, 0.4, 0.99)
    sweep = planted(make_sweep, sizes=sizes, start_accuracy=start)
    assert verdicts(sweep) == verdicts(planted(make_sweep, sizes=sizes))


def test_the_time_of_reading_can_be_given(make_sweep):
    """At first the critical size differs between decays, later not."""
    sweep = planted(make_sweep, seeds=3, sizes=np.geomspace(40, 400, 9))
    early = np.where(sweep.time < 5.0, 0.99, sweep.accuracy)
    assert verdicts(replace(sweep, accuracy=early))[0].outcome == "supported"
    assert verdicts(replace(sweep, accuracy=early), time=4.0)[0].outcome == "refuted"
    assert arms_of(replace(sweep, accuracy=early), time=4.0)[0].critical_size is None
