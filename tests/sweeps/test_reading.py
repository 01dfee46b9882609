import numpy as np
import pytest
import xarray as xr

from grok_lightning.records import join_records
from grok_lightning.sweeps import final_values, read_sweep
from grok_lightning.sweeps.reading import last_measured

STEPS = np.array([0, 100, 200, 300])
SPLITS = ["train", "held_out", "held_out_unpaired", "held_out_removed", "held_out_never_seen"]


def member_coordinates(n, **values):
    given = {"seed": np.arange(n), **values}
    return {"member": np.arange(n)} | {
        name: ("member", np.asarray(value)) for name, value in given.items() if value is not None
    }


def learning_curves(n=3, steps=STEPS, splits=SPLITS, dims=("step", "member", "split"), **coordinates):
    rng = np.random.default_rng(7)
    accuracy = rng.random((len(steps), n, len(splits)))
    group = xr.Dataset(
        {"accuracy": (("step", "member", "split"), accuracy)},
        coords=member_coordinates(n, **coordinates) | {"step": steps, "split": splits},
        attrs={"kind": "LearningCurves"},
    )
    return group.transpose(*dims)


def convergence(n=3, steps=STEPS, weight_decay=None, **coordinates):
    decay = np.linspace(0.5, 1.5, n) if weight_decay is None else np.asarray(weight_decay)
    both = ("step", "member")
    rng = np.random.default_rng(8)
    arrays = {
        "decay_time": (both, 1e-2 * decay * steps[:, None]),
        "norm": (both, 20 + rng.random((len(steps), n))),
        "box_share": (both, rng.random((len(steps), n))),
        "weight_decay": (("member",), decay),
        "eps": (("member",), np.full(n, 1e-8)),
    }
    return xr.Dataset(arrays, attrs={"kind": "Convergence"}).assign_coords(
        member_coordinates(n, **coordinates) | {"step": steps}
    )


def shrink(step, size, **coordinates):
    n = len(step)
    arrays = {"step": np.asarray(step, float), "size": np.asarray(size, float), "rows_before": np.full(n, 900.0)}
    return xr.Dataset(
        {name: (("member",), values) for name, values in arrays.items()},
        coords=member_coordinates(n, **coordinates),
        attrs={"kind": "DatasetShrink"},
    )


def record(*groups, **attrs):
    tree = xr.DataTree.from_dict({f"/group_{i}": group for i, group in enumerate(groups)})
    tree.attrs = attrs
    return tree


def test_a_run_on_small_sets_from_its_start():
    curves, decayed = learning_curves(train_size=[40, 50, 60]), convergence(train_size=[40, 50, 60])
    sweep = read_sweep(record(curves, decayed, chance=0.25))
    np.testing.assert_array_equal(sweep.step, STEPS)
    np.testing.assert_allclose(sweep.time, 1e-2 * np.array([0.5, 1, 1.5]) * STEPS[:, None])
    for name, split in zip(("train_accuracy", "accuracy", "unpaired", "removed", "never_seen"), SPLITS, strict=True):
        np.testing.assert_array_equal(getattr(sweep, name), curves["accuracy"].sel(split=split).values)
    np.testing.assert_array_equal(sweep.norm, decayed["norm"].values)
    np.testing.assert_array_equal(sweep.box_share, decayed["box_share"].values)
    np.testing.assert_array_equal(sweep.size, [40, 50, 60])
    np.testing.assert_array_equal(sweep.weight_decay, [0.5, 1, 1.5])
    np.testing.assert_array_equal(sweep.eps, [1e-8] * 3)
    np.testing.assert_array_equal(sweep.seed, [0, 1, 2])
    assert sweep.seed.dtype == np.int64
    np.testing.assert_array_equal(sweep.began, [0, 0, 0])
    np.testing.assert_array_equal(sweep.start_accuracy, curves["accuracy"].sel(split="held_out", step=0).values)
    assert sweep.chance == 0.25
    assert set(sweep.other) == {"train_size"}
    np.testing.assert_array_equal(sweep.member, [0, 1, 2])
    arrays = [value for value in vars(sweep).values() if isinstance(value, np.ndarray)]
    assert {value.dtype for value in arrays} == {np.dtype(np.float64), np.dtype(np.int64)}


@pytest.mark.parametrize("dims", [("split", "member", "step"), ("member", "split", "step")])
def test_the_order_of_dimensions_does_not_matter(dims):
    sizes = {"train_size": [40, 50, 60]}
    plain = read_sweep(record(learning_curves(**sizes), convergence(**sizes)))
    turned = read_sweep(record(learning_curves(dims=dims, **sizes), convergence(**sizes).transpose("member", "step")))
    for name, value in vars(plain).items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(getattr(turned, name), value, err_msg=name)


def test_splits_that_were_not_measured_are_unknown():
    sizes = {"train_size": [40, 50, 60]}
    sweep = read_sweep(record(learning_curves(splits=["train", "held_out"], **sizes), convergence(**sizes)))
    assert np.isnan([sweep.unpaired, sweep.removed, sweep.never_seen]).all()
    assert np.isnan(sweep.chance)


def test_time_counts_from_the_shrink_on_also_between_measurements():
    groups = [learning_curves(), convergence(), shrink([100, 250, 0], [40, 50, 60])]
    sweep = read_sweep(record(*groups))
    np.testing.assert_array_equal(sweep.began, [100, 250, 0])
    np.testing.assert_array_equal(sweep.size, [40, 50, 60])
    rate = 1e-2 * np.array([0.5, 1, 1.5])
    np.testing.assert_allclose(sweep.time, rate * (STEPS[:, None] - np.array([100, 250, 0])), atol=1e-12)
    held_out = groups[0]["accuracy"].sel(split="held_out")
    expected = [held_out.sel(step=step, member=member).item() for member, step in enumerate([100, 300, 0])]
    np.testing.assert_array_equal(sweep.start_accuracy, expected)


def test_a_shrink_before_the_first_measurement_of_time_counts_from_step_0():
    decayed = convergence().isel(step=slice(1, None))
    sweep = read_sweep(record(learning_curves(), decayed, shrink([50, 50, 50], [40, 50, 60])))
    np.testing.assert_allclose(sweep.time[1:], 1e-2 * np.array([0.5, 1, 1.5]) * (STEPS[1:, None] - 50), atol=1e-12)
    assert np.isnan(sweep.time[0]).all()


@pytest.mark.parametrize(("began", "last"), [(100, 100), (150, 100), (0, 0)])
def test_the_start_of_a_full_table_is_the_accuracy_on_it(began, last):
    """What is measured next has forgotten some already."""
    curves = learning_curves()
    curves["accuracy"].loc[{"split": "held_out", "step": slice(0, began)}] = np.nan
    sweep = read_sweep(record(curves, convergence(), shrink([began] * 3, [40, 50, 60])))
    np.testing.assert_array_equal(sweep.start_accuracy, curves["accuracy"].sel(split="train", step=last).values)


def test_a_small_set_whose_held_out_rows_were_not_measured_at_first_does_not_start_with_its_train_accuracy():
    sizes = {"train_size": [40, 50, 60]}
    curves = learning_curves(**sizes)
    curves["accuracy"].loc[{"split": "held_out", "step": 0}] = np.nan
    sweep = read_sweep(record(curves, convergence(**sizes)))
    np.testing.assert_array_equal(sweep.start_accuracy, curves["accuracy"].sel(split="held_out", step=100).values)


def test_train_accuracy_at_the_step_of_a_shrink_is_of_the_old_rows_and_does_not_count():
    curves = learning_curves()
    sweep = read_sweep(record(curves, convergence(), shrink([100, 0, np.nan], [40, 50, 60])))
    train = curves["accuracy"].sel(split="train").values
    expected = train.copy()
    expected[STEPS == 100, 0] = expected[STEPS == 0, 1] = np.nan
    np.testing.assert_array_equal(sweep.train_accuracy, expected)
    final = final_values(sweep)
    assert final.lowest_train_accuracy[0] == train[2:, 0].min()
    assert final.lowest_train_accuracy[1] == train[1:, 1].min()
    sizes = {"train_size": [40, 50, 60]}
    plain = read_sweep(record(learning_curves(**sizes), convergence(**sizes)))
    np.testing.assert_array_equal(plain.train_accuracy, train)


def test_a_shrink_that_did_not_come_leaves_nothing_to_count():
    given = {"shrink_size": [40, 50, 60], "train_size": [800, 800, 800]}
    groups = [learning_curves(**given), convergence(**given), shrink([100, np.nan, 100], [40, np.nan, 60], **given)]
    sweep = read_sweep(record(*groups))
    np.testing.assert_array_equal(sweep.size, [40, 50, 60])
    np.testing.assert_array_equal(sweep.began, [100, np.nan, 100])
    assert np.isnan(sweep.time[:, 1]).all()
    assert np.isfinite(sweep.time[:, [0, 2]]).all()
    assert np.isnan(sweep.start_accuracy[1])


def test_members_of_unknown_size_are_left_out():
    groups = [learning_curves(), convergence(), shrink([100, np.nan, 100], [40, np.nan, 60])]
    sweep = read_sweep(record(*groups))
    np.testing.assert_array_equal(sweep.member, [0, 2])
    np.testing.assert_array_equal(sweep.weight_decay, [0.5, 1.5])
    np.testing.assert_array_equal(sweep.accuracy, groups[0]["accuracy"].sel(split="held_out").values[:, [0, 2]])


def test_other_steps_of_the_convergence_are_passed_over():
    steps = np.array([0, 50, 100, 300])
    sizes = {"train_size": [40, 50, 60]}
    decayed = convergence(steps=steps, **sizes)
    sweep = read_sweep(record(learning_curves(**sizes), decayed))
    np.testing.assert_array_equal(sweep.step, STEPS)
    np.testing.assert_array_equal(sweep.norm[[0, 1, 3]], decayed["norm"].sel(step=[0, 100, 300]).values)
    assert np.isnan(sweep.norm[2]).all()
    assert np.isnan(sweep.time[2]).all()


@pytest.mark.parametrize(
    "groups",
    [
        [],
        [learning_curves(train_size=[40, 50, 60])],
        [convergence(train_size=[40, 50, 60])],
        [learning_curves(), convergence()],
        [learning_curves(train_fraction=[0.1, 0.2, 0.3]), convergence(train_fraction=[0.1, 0.2, 0.3])],
        [
            learning_curves(train_size=[40, 50, 60]),
            convergence(train_size=[40, 50, 60]).assign_coords(member=[10, 11, 12]),
        ],
    ],
    ids=["nothing", "no convergence", "no curves", "no size", "a fraction", "other members"],
)
def test_what_is_no_sweep(groups):
    assert read_sweep(record(*groups)) is None


def test_groups_are_found_by_kind_and_the_first_that_fits_counts():
    sizes = {"train_size": [40, 50, 60]}
    stranger = learning_curves(**sizes).assign_coords(member=[10, 11, 12])
    other = convergence(**sizes).assign_attrs(kind="ParameterNorm")
    sweep = read_sweep(record(other, stranger, learning_curves(**sizes), convergence(**sizes)))
    np.testing.assert_array_equal(sweep.member, [0, 1, 2])


def test_members_without_labels_and_seeds_without_a_coordinate():
    sizes = {"train_size": [40, 50, 60], "seed": None}
    groups = [group.drop_vars("member") for group in (learning_curves(**sizes), convergence(**sizes))]
    sweep = read_sweep(record(*groups))
    np.testing.assert_array_equal(sweep.member, [0, 1, 2])
    np.testing.assert_array_equal(sweep.seed, [0, 0, 0])


def test_weight_decay_as_a_coordinate_of_the_population():
    given = {"train_size": [40, 50, 60], "weight_decay": [0.5, 1, 1.5]}
    decayed = convergence(train_size=[40, 50, 60]).set_coords("weight_decay")
    sweep = read_sweep(record(learning_curves(**given), decayed))
    np.testing.assert_array_equal(sweep.weight_decay, [0.5, 1, 1.5])
    assert set(sweep.other) == {"train_size"}


def test_runs_beside_each_other():
    first = record(learning_curves(train_size=[40, 50, 60]), convergence(train_size=[40, 50, 60]), chance=0.1)
    late = np.array([0, 150, 300])
    second = record(
        learning_curves(2, late), convergence(2, late), shrink([150, 150], [70, 80]), chance=0.1, margins="{}"
    )
    sweep = read_sweep(join_records({"one": first, "two": second}))
    np.testing.assert_array_equal(sweep.step, [0, 100, 150, 200, 300])
    np.testing.assert_array_equal(sweep.size, [40, 50, 60, 70, 80])
    np.testing.assert_array_equal(sweep.began, [0, 0, 0, 150, 150])
    np.testing.assert_array_equal(sweep.other["run"], ["one"] * 3 + ["two"] * 2)
    np.testing.assert_array_equal(sweep.seed, [0, 1, 2, 0, 1])
    np.testing.assert_array_equal(np.isfinite(sweep.accuracy[:, 0]), [True, True, False, True, True])
    np.testing.assert_array_equal(np.isfinite(sweep.accuracy[:, 3]), [True, False, True, False, True])
    for member, (run, place) in enumerate([(first, 0), (first, 1), (first, 2), (second, 0), (second, 1)]):
        alone = run["group_0/accuracy"].sel(split="held_out").isel(member=place).values
        own = sweep.accuracy[:, member]
        np.testing.assert_array_equal(own[np.isfinite(own)], alone)
    np.testing.assert_allclose(sweep.time[[0, 2, 4], 3], 1e-2 * 0.5 * (late - 150))
    assert sweep.chance == 0.1


def test_runs_of_different_tasks_are_no_one_sweep():
    groups = [learning_curves(train_size=[40, 50, 60]), convergence(train_size=[40, 50, 60])]
    runs = {name: record(*groups, chance=chance) for name, chance in (("31", 1 / 31), ("113", 1 / 113))}
    joined = join_records(runs)
    assert read_sweep(joined) is None
    assert len(read_sweep(joined, mixed=True).size) == 6
    assert len(read_sweep(join_records({"31": runs["31"], "31 again": runs["31"]})).size) == 6


@pytest.mark.parametrize("with_coordinate", [[True, False], [False, True]])
def test_the_weight_decay_of_the_optimizer_and_that_of_the_population_are_joined(with_coordinate):
    def of(decay, *, coordinate):
        given = {"train_size": [40, 50, 60]} | ({"weight_decay": [decay] * 3} if coordinate else {})
        decayed = convergence(train_size=[40, 50, 60], weight_decay=[decay] * 3)
        return record(learning_curves(**given), decayed.set_coords("weight_decay") if coordinate else decayed)

    runs = {str(decay): of(decay, coordinate=flag) for decay, flag in zip((0.3, 1.0), with_coordinate, strict=True)}
    np.testing.assert_array_equal(read_sweep(join_records(runs)).weight_decay, [0.3] * 3 + [1.0] * 3)


def test_a_full_table_beside_a_sweep_is_left_out():
    full, small = learning_curves(2), learning_curves(2, train_size=[40, 50])
    joined = join_records({"full": record(full, convergence(2)), "small": record(small, convergence(2))})
    sweep = read_sweep(joined)
    np.testing.assert_array_equal(sweep.other["run"], ["small", "small"])
    np.testing.assert_array_equal(sweep.size, [40, 50])


@pytest.mark.parametrize("shape", [(5, 4), (1, 3), (0, 2)])
def test_the_last_measurement_is_found_as_by_a_loop(shape):
    rng = np.random.default_rng(1)
    values = np.where(rng.random(shape) < 0.6, np.nan, 1.0)
    expected = [max((i for i in range(shape[0]) if np.isfinite(values[i, e])), default=-1) for e in range(shape[1])]
    np.testing.assert_array_equal(last_measured(values), expected)
