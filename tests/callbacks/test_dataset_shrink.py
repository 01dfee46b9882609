"""Training that goes on with fewer rows, on our own data and on somebody else's."""

import copy
import math
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.utilities import CombinedLoader
from torch.optim import AdamW
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, TensorDataset, WeightedRandomSampler

from grok_callbacks import (
    DatasetShrink,
    EveryNSteps,
    FourierLogitSplitter,
    LearningCurves,
    NeuronNormTracker,
    Onset,
    Replay,
    ShrinkAccuracy,
    SparseSubnetworkExtractor,
    SubnetworkComparison,
    WeightTrajectory,
    shrink_again,
)
from grok_lightning.data import OnlineData, TableData
from grok_lightning.modules import MLP, Transformer
from grok_lightning.records import build_group
from grok_lightning.tasks import ModularArithmetic, SparseParity

LARGE = {"sizes": [48, 48, 48], "batch_size": 8}


class Gathers(Callback):
    """Keeps the rows of every training batch: ``{step: [rows of a member as a list of tuples, ...]}``."""

    def __init__(self):
        self.rows = {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        counts = batch.counts or [batch.targets.shape[1]] * len(batch.targets)
        self.rows[trainer.global_step] = [
            [tuple(row) for row in inputs[:count].tolist()] for inputs, count in zip(batch.inputs, counts, strict=True)
        ]


class SavesAt(Callback):
    """Saves a checkpoint after some steps, before the validation that may belong to them."""

    def __init__(self, folder, *steps):
        self.folder = folder
        self.steps = steps

    def on_train_batch_end(self, trainer, pl_module, *args):
        if trainer.global_step in self.steps:
            trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


class SavesAfterValidation(SavesAt):
    def on_train_batch_end(self, *args):
        """Later."""

    def on_validation_end(self, trainer, pl_module):
        super().on_train_batch_end(trainer, pl_module)


def parity(members, size=48, batch_size=8, **options):
    """(7, 2) parity: six batches an epoch, 128 rows in all."""
    options = {"task": SparseParity(7, 2), "train_size": size, "batch_size": batch_size, "n_held_out": 30} | options
    data = TableData(members=members, **options)
    module = MLP(7, 1, hidden=[8], optimizer=partial(AdamW, lr=0.05), members=members)
    return module, data


def modular(members, p=5, **options):
    """The full table of addition, in one batch."""
    options = {"task": ModularArithmetic("add", p), "train_fraction": 1.0, "batch_size": None, "n_held_out": None}
    data = TableData(members=members, **(options | {}))
    sizes = {"d_model": 8, "n_heads": 2, "d_mlp": 6, "optimizer": partial(AdamW, lr=0.01), "scheduler": None}
    return Transformer(data.n_inputs, data.n_tokens, data.n_outputs, **sizes, members=members), data


@pytest.fixture
def fit(make_trainer):
    def run(made, *callbacks, steps=24, ckpt_path=None, **options):
        module, data = made
        trainer = make_trainer(max_steps=steps, callbacks=list(callbacks), precision="64-true", **options)
        trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
        return trainer

    return run


def weights(made):
    return {name: value.clone() for name, value in made[0].state_dict().items() if name.startswith("network")}


def equal(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def joined(parts):
    return [row for part in parts for row in part]


def kept_of(shrink):
    return shrink.state_dict()["kept"]


# ---- our own data ----------------------------------------------------------------------------------------------------


def test_a_member_trains_on_its_kept_rows_alone_from_the_next_step_on(fit):
    made, shrink, gathers = parity({"seed": [0, 1]}), DatasetShrink(size=20, step=9), Gathers()
    fit(made, shrink, gathers, steps=30)
    _, data = made
    for e in range(2):
        own = [tuple(row) for row in data.rows("train")[0][e].tolist()]
        kept = [own[i] for i in kept_of(shrink)[e].tolist()]
        assert len(set(kept)) == 20
        # Before: an epoch of 6 batches has every row once.
        before = joined(gathers.rows[step][e] for step in range(6))
        assert sorted(before) == sorted(own)
        # After: epochs of 3 batches, 8 + 8 + 4 rows, counted from the shrink.
        for epoch in range(7):
            batches = [gathers.rows[9 + 3 * epoch + i][e] for i in range(3)]
            assert [len(batch) for batch in batches] == [8, 8, 4]
            assert sorted(joined(batches)) == sorted(kept)
    assert gathers.rows[9] != gathers.rows[12]  # in another order
    assert set(kept_of(shrink)[0].tolist()) != set(kept_of(shrink)[1].tolist())


def test_smaller_numbers_of_rows_are_part_of_larger_ones_and_seeds_draw_others(fit):
    members = {"seed": [0, 0, 0, 0, 1], "shrink_size": [1, 17, 30, 48, 30]}
    shrink = DatasetShrink(step=0)
    fit(parity(members), shrink, steps=1)
    one, few, many, every, others = (set(rows.tolist()) for rows in kept_of(shrink))
    assert one < few < many < every == set(range(48))
    assert [len(rows) for rows in (one, few, many, others)] == [1, 17, 30, 30]
    assert others != many
    again = DatasetShrink(step=0, seed=1)
    fit(parity(members), again, steps=1)
    assert set(kept_of(again)[2].tolist()) not in (many, others)


def test_data_seed_decides_which_rows_stay_where_it_is_given(fit):
    shrink = DatasetShrink(size=20, step=0)
    fit(parity({"seed": [0, 1, 2], "data_seed": [5, 5, 6]}), shrink, steps=1)
    first, same, other = kept_of(shrink)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("batch_size", [8, None])
def test_members_that_shrink_at_steps_of_their_own_are_what_they_are_alone(fit, batch_size):
    table = {
        "seed": [0, 1, 2, 3],
        "shrink_step": [5, 12, 12, 90],
        "shrink_size": [20, 5, 20, 9],
        "train_size": [48, 40, 48, 33],
    }
    together = parity(table, size=None, batch_size=batch_size)
    shrink = DatasetShrink()
    fit(together, shrink, steps=30)
    for e in range(4):
        own = parity({name: values[e : e + 1] for name, values in table.items()}, size=None, batch_size=batch_size)
        alone = DatasetShrink()
        fit(own, alone, steps=30)
        for name, value in weights(own).items():
            torch.testing.assert_close(weights(together)[name][e], value[0], rtol=0, atol=1e-9)
        if e < 3:
            assert torch.equal(kept_of(shrink)[e], kept_of(alone)[0])
    assert kept_of(shrink)[3] is None
    # The comparison can fail: had it not shrunk, it would be another.
    whole = parity({"seed": [0], "train_size": [48]}, size=None, batch_size=batch_size)
    fit(whole, steps=30)
    assert not torch.allclose(weights(together)["network.output.weight"][0], weights(whole)["network.output.weight"][0])


def test_members_of_a_full_batch_of_the_whole_table_are_what_they_are_alone(fit):
    table = {"seed": [0, 1, 2], "shrink_step": [3, 7, 7], "shrink_fraction": [0.5, 0.2, 1.0]}
    together = modular(table)
    fit(together, DatasetShrink(), steps=15)
    for e in range(3):
        own = modular({name: values[e : e + 1] for name, values in table.items()})
        fit(own, DatasetShrink(), steps=15)
        for name, value in weights(own).items():
            torch.testing.assert_close(weights(together)[name][e], value[0], rtol=0, atol=1e-9)


def test_the_record_says_when_and_to_what(fit):
    members = {"seed": [0, 1, 2], "shrink_step": [4, 0, 90], "train_size": [48, 40, 20]}
    shrink = DatasetShrink(fraction=0.29, name="smaller")
    assert shrink.record() == {}
    fit(parity(members, size=None), shrink, steps=10)
    group = build_group(shrink, members)
    assert group.attrs["kind"] == "DatasetShrink"
    assert group.attrs["fraction"] == 0.29
    assert group["step"].dims == ("member",)
    assert group["step"].values.tolist()[:2] == [4, 0]
    assert group["size"].values.tolist()[:2] == [13, 11]
    assert math.isnan(group["step"][2])
    assert math.isnan(group["size"][2])
    assert group["rows_before"].values.tolist() == [48, 40, 20]
    assert group["seed"].values.tolist() == [0, 1, 2]
    assert shrink.state_key == "DatasetShrink[smaller]"


def test_a_share_that_is_a_whole_number_but_for_rounding_is_that_number(fit):
    shrink = DatasetShrink(fraction=0.29, step=0)
    fit(parity({"seed": [0]}, size=100), shrink, steps=1)
    assert len(kept_of(shrink)[0]) == 29


# ---- when


THEIRS = {"memorised_above": 0.6, "generalised_from": 0.6, "dwell": 0}


class Scripted(MLP):
    """Knows its accuracy beforehand: member e has 0 before step ``at[e]``, then 1."""

    at = (6, 13)

    def member_metrics(self):
        step = self.trainer.global_step
        share = torch.tensor([float(step >= at) for at in self.at])
        return {"train/accuracy": share, "val/accuracy": share, "falling": 1 - share}


def scripted():
    members = {"seed": [0, 1]}
    module = Scripted(7, 1, hidden=[8], optimizer=partial(AdamW, lr=0.02), members=members)
    return module, TableData(SparseParity(7, 2), 48, 30, 8, members=members)


@pytest.mark.parametrize("shrink_first", [True, False])
@pytest.mark.parametrize(("steps", "expected"), [(0, [6, 15]), (1, [7, 16]), (4, [10, 19])])
def test_members_shrink_some_steps_after_their_own_onset_is_confirmed(fit, shrink_first, steps, expected):
    """Validated every three steps; what is between two validations is counted all the same."""
    shrink = DatasetShrink(size=20, event="generalised", steps=steps)
    callbacks = [shrink, Onset(**THEIRS)]
    fit(scripted(), *(callbacks if shrink_first else callbacks[::-1]), val_check_interval=3)
    assert shrink.record()["step"][1].tolist() == expected


def test_the_onset_that_is_named_counts(fit):
    shrink = DatasetShrink(size=20, event="memorised", onset="slow")
    fit(scripted(), Onset(**THEIRS), Onset(**(THEIRS | {"dwell": 6}), name="slow"), shrink, val_check_interval=3)
    assert shrink.record()["step"][1].tolist() == [6, 15]  # memorised has no dwell
    shrink = DatasetShrink(size=20, event="generalised", onset="slow")
    fit(scripted(), Onset(**THEIRS), Onset(**(THEIRS | {"dwell": 6}), name="slow"), shrink, val_check_interval=3)
    assert shrink.record()["step"][1].tolist() == [12, 21]


@pytest.mark.parametrize("options", [{"metric": "val/accuracy"}, {"metric": "falling", "rising": False}])
@pytest.mark.parametrize("threshold", [1.0, 0.5, 0.0])
def test_members_shrink_at_the_first_validation_beyond_a_threshold(fit, options, threshold):
    threshold = threshold if options.get("rising", True) else 1 - threshold
    shrink = DatasetShrink(size=20, threshold=threshold, **options)
    fit(scripted(), shrink, val_check_interval=3)
    always = threshold == (0.0 if options.get("rising", True) else 1.0)  # so it is at step 0 already
    assert shrink.record()["step"][1].tolist() == ([0, 0] if always else [6, 15])


def test_nan_is_on_neither_side(fit):
    class Unknown(Scripted):
        def member_metrics(self):
            return {name: value * torch.nan for name, value in super().member_metrics().items()}

    for rising in (True, False):
        made = scripted()
        made[0].__class__ = Unknown
        shrink = DatasetShrink(size=20, metric="val/accuracy", threshold=0.5, rising=rising)
        fit(made, shrink)
        assert shrink.record()["step"][1].isnan().all()


def test_validation_goes_on_at_its_cadence(fit):
    for options, expected in [({}, [6, 12, 18, 24]), ({"val_check_interval": 2}, list(range(2, 25, 2)))]:
        curves = LearningCurves()
        fit(parity({"seed": [0]}), curves, DatasetShrink(size=9, step=7), **options)
        assert curves.steps.tolist() == [0, *expected]


# ---- what is measured


class Weights(Callback):
    """The weights at every validation, and at the start."""

    def __init__(self):
        self.kept = {}

    def on_train_start(self, trainer, pl_module):
        self.kept[trainer.global_step] = copy.deepcopy(pl_module.network)

    on_validation_end = on_train_start


def share_of(network, e, rows, labels):
    if not len(rows):
        return math.nan
    with torch.no_grad():
        logits = network(rows)[e]
    right = logits.argmax(dim=1) == labels if logits.shape[1] > 1 else logits[:, 0] * labels > 0
    return right.double().mean().item()


@pytest.mark.parametrize("watch", [LearningCurves, ShrinkAccuracy])
@pytest.mark.parametrize("make", [parity, modular])
def test_rows_kept_removed_and_never_seen_are_measured_apart(fit, make, watch):
    members = {"seed": [0, 1], "shrink_step": [6, 12]}
    made, monitor, seen = make(members), watch(), Weights()
    _, data = made
    shrink = DatasetShrink(fraction=0.4)
    fit(made, shrink, monitor, seen, check_val_every_n_epoch=1 if data.batch_size else 6)
    rows, labels = data.rows("train")
    others, other_labels = data.rows("held_out")
    accuracy = monitor.history["accuracy"]
    names = monitor.labels["part" if watch is ShrinkAccuracy else "split"]
    if watch is LearningCurves:
        wanted = ("train", "held_out", "held_out_unpaired", "held_out_removed", "held_out_never_seen")
        assert set(names) == set(wanted) - ({"held_out_unpaired"} if make is parity else set())
    assert monitor.steps.tolist() == [0, 6, 12, 18, 24]
    for i, step in enumerate(monitor.steps.tolist()):
        for e in range(2):
            network = seen.kept[step]
            kept = kept_of(shrink)[e] if step > members["shrink_step"][e] else torch.arange(rows.shape[1])
            removed = [i for i in range(rows.shape[1]) if i not in set(kept.tolist())]
            found = dict(zip(names, accuracy[i, e].tolist(), strict=True))
            of_removed = share_of(
                network, e, rows[e][removed].double() if make is parity else rows[e][removed], labels[e][removed]
            )
            of_kept = share_of(network, e, rows[e][kept].double() if make is parity else rows[e][kept], labels[e][kept])
            of_others = share_of(network, e, others[e].double() if make is parity else others[e], other_labels[e])
            expected = {"kept": of_kept, "removed": of_removed, "never_seen": of_others}
            for part, value in expected.items():
                name = part if watch is ShrinkAccuracy else {"kept": "train"}.get(part, f"held_out_{part}")
                assert found[name] == pytest.approx(value, abs=1e-12, nan_ok=True), (step, e, part)
            if watch is LearningCurves:
                both = [(of_removed, len(removed)), (of_others, len(others[e]))]
                counted = [(value, n) for value, n in both if n]
                mean = sum(v * n for v, n in counted) / sum(n for _, n in counted) if counted else math.nan
                assert found["held_out"] == pytest.approx(mean, abs=1e-12, nan_ok=True)
    assert not accuracy[-1].isnan().all()


def test_what_is_unpaired_goes_by_the_rows_that_are_trained_on_now(fit):
    made, curves = modular({"seed": [0, 1]}), LearningCurves()
    shrink = DatasetShrink(size=7, step=6)
    fit(made, shrink, curves, steps=12, check_val_every_n_epoch=6)
    rows = made[1].rows("train")[0]
    share = curves.history["unpaired_share"]
    assert share[:2].isnan().all()
    for e in range(2):
        kept = kept_of(shrink)[e].tolist()
        trained = {(int(rows[e, i, 0]), int(rows[e, i, 2])) for i in kept}
        held_out = {(a, b) for a in range(5) for b in range(5)} - trained
        unpaired = [pair for pair in held_out if pair[::-1] not in trained]
        assert share[2, e].item() == pytest.approx(len(unpaired) / len(held_out))
        assert 0 < len(unpaired) < len(held_out)


def test_labels_without_noise_are_measured_after_all_noisy_rows_have_gone(fit):
    curves = LearningCurves()
    fit(parity({"seed": [0]}, size=48, label_noise=1 / 48), curves, DatasetShrink(size=3, step=6), steps=12)
    assert not curves.history["true_accuracy"][:, :, 0].isnan().any()


@pytest.mark.parametrize("shrink_first", [True, False])
def test_monitors_that_read_rows_once_read_them_anew(fit, shrink_first, monkeypatch):
    def watched():
        monitor = SparseSubnetworkExtractor("network.hidden.0", "network.output", schedule=EveryNSteps(1))
        reads = []
        original = monitor.measure
        monitor.measure = lambda *args: (original(*args), reads.append(monitor._rows.read(*args)[1].shape[1]))[0]
        callbacks = [DatasetShrink(size=20, step=5), monitor]
        fit(parity({"seed": [0, 1]}), *(callbacks if shrink_first else callbacks[::-1]), steps=10)
        return reads

    assert watched() == [48] * 6 + [20] * 5
    monkeypatch.setattr("grok_callbacks.rows.rows_version", lambda trainer: 0)
    assert watched() == [48] * 11


def looking(make):
    if make is modular:
        fourier = partial(FourierLogitSplitter, 5, network="network", schedule=EveryNSteps(3))
        return [fourier, partial(ShrinkAccuracy, EveryNSteps(3)), LearningCurves]
    layers = ("network.hidden.0", "network.output")
    sparse = partial(SparseSubnetworkExtractor, *layers, schedule=EveryNSteps(3))
    return [sparse, partial(SubnetworkComparison, *layers), partial(ShrinkAccuracy, EveryNSteps(3)), LearningCurves]


# On the few rows that are tried, the outputs of so small a network may all lie there.
@pytest.mark.filterwarnings("ignore:every output lies between 0 and 1")
@pytest.mark.parametrize("make", [parity, modular])
def test_looking_back_finds_the_rows_as_they_were_at_each_step(fit, make, tmp_path):
    members = {"seed": [0, 1], "shrink_step": [6, 13]}
    kept = WeightTrajectory(EveryNSteps(3), tmp_path / "kept")
    made, monitors = make(members), [watch() for watch in looking(make)]
    trainer = fit(
        made, kept, *monitors, DatasetShrink(fraction=0.4), check_val_every_n_epoch=1 if make is parity else 6
    )
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    checkpoint = torch.load(tmp_path / "it.ckpt", weights_only=True)
    module, data = make(members)
    module.configure_model()
    module.double()
    shrink_again(data, checkpoint["callbacks"])
    replay = Replay(module, data, "64-true")
    snapshots = kept.snapshots()
    for monitor, watch in zip(monitors, looking(make), strict=True):
        looked = watch()
        looked.look_back(replay, module, snapshots)
        steps = [step for step in monitor.steps.tolist() if step in snapshots]
        assert len(steps) >= 5
        assert looked.steps.tolist() == list(snapshots)
        at, there = ([s.index(step) for step in steps] for s in (looked.steps.tolist(), monitor.steps.tolist()))
        for name, values in monitor.history.items():
            torch.testing.assert_close(looked.history[name][at], values[there], rtol=0, atol=0, equal_nan=True)


def test_data_without_a_shrink_in_the_checkpoint_stay_as_they_are():
    data = parity({"seed": [0]})[1]
    shrink_again(data, {"Onset[onset]": {}})
    assert next(iter(data.val_dataloader()[1])).subsets is None


# ---- resuming


@pytest.mark.parametrize(
    "shrink",
    [
        {"step": 9},
        {"step": 12, "fresh_optimizer": True},
        {"event": "memorised", "steps": 2},
        {"metric": "val/accuracy", "threshold": 0.5, "fresh_optimizer": True},
    ],
    ids=["step", "at a validation", "event", "metric"],
)
@pytest.mark.parametrize("batch_size", [8, None])
def test_resuming_before_at_and_after_the_shrink_is_exact(fit, shrink, batch_size, tmp_path):
    def make():
        members = {"seed": [0, 1], "train_size": [48, 40]}
        return parity(members, size=None, batch_size=batch_size)

    def callbacks():
        options = {"size": 15} | shrink
        monitors = [
            LearningCurves(),
            ShrinkAccuracy(),
            Onset(memorised_above=0.6, dwell=0),
            NeuronNormTracker("network.hidden.0"),
        ]
        return [DatasetShrink(**options), *monitors]

    options = {} if batch_size else {"check_val_every_n_epoch": 6}
    whole, watching = make(), callbacks()
    fit(
        whole,
        *watching,
        SavesAt(tmp_path, *range(1, 24)),
        SavesAfterValidation(tmp_path / "late", 6, 12, 18),
        **options,
    )
    fell = [int(step) for step in watching[0].record()["step"][1].tolist()]
    assert all(0 < step < 23 for step in fell)
    for path in [
        *(tmp_path / f"{s}.ckpt" for s in sorted({*fell, *(f + i for f in fell for i in (-1, 1)), 12, 23})),
        *(tmp_path / "late").glob("*"),
    ]:
        resumed, again = make(), callbacks()
        fit(resumed, *again, ckpt_path=path, **options)
        equal(weights(resumed), weights(whole))
        for mine, theirs in zip(again, watching, strict=True):
            for name, (_, values) in theirs.record().items():
                torch.testing.assert_close(
                    mine.record()[name][1], values, rtol=0, atol=0, equal_nan=True, msg=f"{path} {name}"
                )


def test_a_run_resumed_without_its_state_is_another(fit, tmp_path):
    """The comparison can fail."""
    whole, resumed = parity({"seed": [0]}), parity({"seed": [0]})
    fit(whole, DatasetShrink(size=20, step=9), SavesAt(tmp_path, 12))
    shrink = DatasetShrink(size=20, step=9)
    shrink.load_state_dict = lambda state: None
    fit(resumed, shrink, ckpt_path=tmp_path / "12.ckpt")
    assert any(not torch.equal(value, weights(whole)[name]) for name, value in weights(resumed).items())


def test_a_run_without_a_shrink_can_be_resumed_with_one(fit, tmp_path):
    fit(parity({"seed": [0]}), SavesAt(tmp_path, 12))
    shrink = DatasetShrink(size=20, step=3)
    fit(parity({"seed": [0]}), shrink, ckpt_path=tmp_path / "12.ckpt")
    assert shrink.record()["step"][1].tolist() == [12]


@pytest.mark.parametrize("make", [parity, modular])
def test_curves_of_a_run_that_is_resumed_with_a_shrink_go_on_with_its_parts(fit, make, tmp_path):
    options = {"check_val_every_n_epoch": 1 if make is parity else 6}
    members, before, whole, after = {"seed": [0, 1]}, LearningCurves(), LearningCurves(), LearningCurves()
    fit(make(members), before, SavesAfterValidation(tmp_path, 12), steps=12, **options)
    fit(make(members), whole, DatasetShrink(fraction=0.4, step=12), **options)
    fit(make(members), after, DatasetShrink(fraction=0.4, step=3), ckpt_path=tmp_path / "12.ckpt", **options)
    assert set(after.labels["split"]) == set(whole.labels["split"])
    assert {"held_out_removed", "held_out_never_seen"} < set(after.labels["split"])
    assert after.steps.tolist() == whole.steps.tolist() == [0, 6, 12, 18, 24]
    for i, split in enumerate(after.labels["split"]):
        expected = whole.labels["split"].index(split)
        for name in ("loss", "accuracy"):
            found, values = after.history[name][:, :, i], whole.history[name][:, :, expected].clone()
            if split not in before.labels["split"]:
                values[:3] = torch.nan
            torch.testing.assert_close(found, values, rtol=0, atol=0, equal_nan=True)
    assert after.history["accuracy"][3:, :, after.labels["split"].index("held_out_removed")].isfinite().all()


def test_an_object_and_data_that_are_given_to_a_second_run_start_again(fit):
    shrink, gathers, again = DatasetShrink(size=20, step=9), Gathers(), Gathers()
    members = {"seed": [0]}
    made = parity(members)
    fit(made, shrink, gathers)
    fit((parity(members)[0], made[1]), shrink, again)
    assert gathers.rows == again.rows
    without = Gathers()
    fit((parity(members)[0], made[1]), without)
    assert sorted(joined(without.rows[step][0] for step in range(18, 24))) == sorted(
        tuple(row) for row in made[1].rows("train")[0][0].tolist()
    )
    assert made[1].splits == ("train", "held_out")
    assert next(iter(made[1].val_dataloader()[1])).subsets is None


class Fails(Callback):
    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == 12:
            raise RuntimeError("stopped")


def test_after_an_exception_the_data_are_as_before(fit):
    made = modular({"seed": [0]})
    with pytest.raises(RuntimeError, match="stopped"):
        fit(made, DatasetShrink(size=10, step=5), Fails())
    assert made[1].splits == ("train",)
    assert made[1].rows("train")[1].shape == (1, 25)


# ---- looking at a training that is over


SPLITS = {
    "train": "train",
    "val": "held_out",
    "val_removed": "held_out_removed",
    "val_never_seen": "held_out_never_seen",
}


def check_means(found, curves, step, held_out="val"):
    """Check that the metrics that Lightning returned are means of those that were measured at a step of training."""
    at, names, checked = curves.steps.tolist().index(step), curves.labels["split"], []
    for name, split in SPLITS.items():
        for metric in ("loss", "accuracy"):
            key = f"{name.replace('val', held_out)}/{metric}"
            if key in found:
                mean = curves.history[metric][at, :, names.index(split)].mean().item()
                assert found[key] == pytest.approx(mean, rel=1e-12, nan_ok=True), (step, key)
                checked.append(key)
    assert checked


@pytest.mark.parametrize("make", [parity, modular])
def test_a_checkpoint_is_looked_at_with_the_rows_of_its_step(fit, make, make_trainer, tmp_path):
    members, curves, shrink = {"seed": [0, 1], "shrink_step": [6, 12]}, LearningCurves(), DatasetShrink(fraction=0.4)
    every = 1 if make is parity else 6
    fit(make(members), shrink, curves, SavesAfterValidation(tmp_path, 6, 12, 18), check_val_every_n_epoch=every)
    for step in (6, 12, 18):
        module, data = make(members)
        before, fell = data.splits, step > 6
        trainer = make_trainer(precision="64-true", callbacks=[DatasetShrink(fraction=0.4), LearningCurves()])
        given = {"datamodule": data, "ckpt_path": tmp_path / f"{step}.ckpt"}
        found = trainer.validate(module, **given, verbose=False)[0]
        check_means(found, curves, step)
        assert ("val_removed/accuracy" in found) is fell
        assert ("val/accuracy" in found) is (fell or make is parity)
        assert data.splits == before
        assert data.rows("train")[1].shape[1] == data.sizes[0]
        if make is modular and not fell:
            with pytest.raises(ValueError, match="there are no held-out rows"):
                trainer.test(module, **given, verbose=False)
            continue
        found = trainer.test(module, **given, verbose=False)[0]
        check_means(found, curves, step, held_out="test")
        assert ("test_removed/accuracy" in found) is fell
        predicted = sum(logits.shape[1] for logits in trainer.predict(module, **given))
        removed = data.sizes[0] - len(kept_of(shrink)[0])
        assert predicted == (30 if make is parity else 0) + (removed if fell else 0)


def looked(trainer, made, **options):
    """The metrics that Lightning returns of a validation."""
    return trainer.validate(made[0], datamodule=made[1], verbose=False, **options)[0]


def test_the_trainer_that_has_trained_looks_at_the_rows_that_are_left(fit, make_trainer):
    made, curves, shrink = parity({"seed": [0, 1]}), LearningCurves(), DatasetShrink(size=9, step=9)
    trainer = fit(made, shrink, curves)
    found = looked(trainer, made)
    check_means(found, curves, 24)
    assert "val_removed/accuracy" in found
    # Another Trainer does not know how far the weights have come.
    assert "val_removed/accuracy" not in looked(make_trainer(precision="64-true", callbacks=[shrink]), made)


def test_a_checkpoint_without_a_shrink_is_looked_at_with_all_rows(fit, tmp_path):
    fit(parity({"seed": [0]}), SavesAt(tmp_path, 12))
    made = parity({"seed": [0]})
    trainer = fit(made, DatasetShrink(size=9, step=9))
    assert "val_removed/accuracy" in looked(trainer, made)
    assert "val_removed/accuracy" not in looked(trainer, made, ckpt_path=tmp_path / "12.ckpt")


def test_a_checkpoint_of_weights_alone_does_not_say_what_was_trained_on(fit, make_trainer, tmp_path):
    made, shrink = parity({"seed": [0]}), DatasetShrink(size=9, step=9)
    fit(made, shrink).save_checkpoint(tmp_path / "it.ckpt", weights_only=True)
    trainer = make_trainer(precision="64-true", callbacks=[shrink])
    for look in (trainer.validate, trainer.test, trainer.predict):
        with pytest.raises(
            ValueError, match=r"it\.ckpt holds weights alone, and not which rows were trained on; give a"
        ):
            look(made[0], datamodule=made[1], ckpt_path=tmp_path / "it.ckpt")
    assert "val/accuracy" in looked(trainer, made)


def test_who_has_validation_rows_of_their_own_can_look_at_weights_alone(theirs, fit_theirs, tmp_path):
    trainer = fit_theirs(theirs(), DatasetShrink(size=9, step=3))
    trainer.save_checkpoint(tmp_path / "it.ckpt", weights_only=True)
    assert "val_acc" in trainer.validate(theirs(), ckpt_path=tmp_path / "it.ckpt", verbose=False)[0]


def test_after_an_exception_in_a_look_the_data_are_as_before(fit):
    class FailsThen(Callback):
        def on_validation_batch_start(self, trainer, *args):
            if trainer.state.fn == "validate":
                assert made[1].splits == ("train", "held_out")
                raise RuntimeError("stopped")

    made = modular({"seed": [0]})
    trainer = fit(made, DatasetShrink(size=10, step=5), FailsThen(), steps=8)
    with pytest.raises(RuntimeError, match="stopped"):
        looked(trainer, made)
    assert made[1].splits == ("train",)


def test_a_look_leaves_nothing_behind(fit, tmp_path):
    """Whom it was given, the callback and the data, serve a training afterwards as they would have."""
    made, shrink, gathers, again = parity({"seed": [0]}), DatasetShrink(size=9, step=9), Gathers(), Gathers()
    trainer = fit(made, shrink, gathers)
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    looker = fit(parity({"seed": [0]}), shrink, Gathers(), steps=1)
    looked(looker, made, ckpt_path=tmp_path / "it.ckpt")
    fit((parity({"seed": [0]})[0], made[1]), shrink, again)
    assert gathers.rows == again.rows


# ---- the optimizer


class LooksAtOptimizer(Callback):
    """What the optimizer knew before each step."""

    def __init__(self):
        self.states = {}

    def on_train_batch_start(self, trainer, pl_module, *args):
        (optimizer,) = trainer.optimizers
        self.states[trainer.global_step] = (
            copy.deepcopy([optimizer.state[p] for p in pl_module.parameters()]) if optimizer.state else []
        )


def test_the_optimizer_forgets_if_told_to(fit):
    for fresh in (True, False):
        look = LooksAtOptimizer()
        fit(parity({"seed": [0, 1]}), DatasetShrink(size=20, step=9, fresh_optimizer=fresh), look)
        assert bool(look.states[9]) is not fresh
        assert look.states[10]
        assert float(look.states[10][0]["step"]) == (1 if fresh else 10)


def test_of_members_that_shrink_by_themselves_the_averages_are_forgotten(fit):
    look = LooksAtOptimizer()
    members = {"seed": [0, 1], "shrink_step": [9, 90]}
    fit(parity(members), DatasetShrink(size=20, fresh_optimizer=True), look)
    for state in look.states[9]:
        assert float(state["step"]) == 9
        for name in ("exp_avg", "exp_avg_sq"):
            assert (state[name][0] == 0).all()
            assert (state[name][1] != 0).any()


# ---- what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0, "step": 1}, "size: expected at least 1 row to go on with, got 0"),
        ({"fraction": 0.0, "step": 1}, r"fraction: expected a share in \(0, 1\], got 0.0"),
        ({"fraction": 1.01, "step": 1}, r"fraction: expected a share in \(0, 1\], got 1.01"),
        ({"fraction": math.nan, "step": 1}, r"fraction: expected a share in \(0, 1\], got nan"),
        ({"size": 5, "step": -1}, "step: expected at least 0, got -1"),
        ({"size": 5, "event": "grokked"}, "event: expected one of memorised, generalised, forgotten, got 'grokked'"),
        ({"size": 5, "event": "memorised", "steps": -1}, "steps: expected at least 0, .* got -1"),
        ({"size": 5, "step": 3, "steps": 2}, "steps: .* an event that they are counted from, got 2"),
        ({"size": 5, "metric": "x"}, "metric, threshold: give both or neither, got 'x' and None"),
        ({"size": 5, "threshold": 0.5}, "metric, threshold: give both or neither, got None and 0.5"),
        ({"size": 5, "step": 1, "name": "It"}, "name: expected lower-case"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DatasetShrink(**options)


@pytest.mark.parametrize(
    ("options", "members", "message"),
    [
        ({"step": 3}, {}, "expected one of size, fraction, shrink_fraction, shrink_size, .* got none"),
        ({"size": 3, "fraction": 0.5, "step": 3}, {}, "to say how many rows stay, got size and fraction"),
        ({"size": 3, "step": 3}, {"shrink_size": [4]}, "how many rows stay, got size and shrink_size"),
        ({"size": 3}, {}, "expected one of step, event, metric, shrink_step, to say when, got none"),
        ({"size": 3, "step": 3, "event": "memorised"}, {}, "to say when, got step and event"),
        ({"size": 3, "step": 3}, {"shrink_step": [4]}, "to say when, got step and shrink_step"),
        ({"size": 49, "step": 3}, {}, "size: expected at most the 48 rows that member 0 trains on, got 49"),
        ({"step": 3}, {"shrink_size": [49]}, "size: expected at most the 48 rows that member 0 trains on, got 49"),
        ({"step": 3}, {"shrink_size": [4.5]}, "shrink_size: expected a whole number, got 4.5"),
        ({"step": 3}, {"shrink_fraction": [2]}, r"fraction: expected a share in \(0, 1\], got 2"),
        ({"size": 3}, {"shrink_step": [1.5]}, "shrink_step: expected a whole number, got 1.5"),
        ({"size": 3}, {"shrink_step": [-1]}, "step: expected at least 0, got -1"),
        ({"size": 3, "event": "memorised"}, {}, "the Trainer has no Onset callback named 'onset'"),
    ],
)
def test_what_cannot_be_done_is_refused_before_the_first_step(fit, options, members, message):
    steps = Gathers()
    with pytest.raises(ValueError, match=message):
        fit(parity({"seed": [0]} | members), DatasetShrink(**options), steps)
    assert steps.rows == {}


def test_a_metric_that_nobody_logs_is_refused(fit):
    steps = Gathers()
    with pytest.raises(ValueError, match=r"metric: no 'val_acc' was logged; there are .*val/accuracy"):
        fit(parity({"seed": [0]}), DatasetShrink(size=5, metric="val_acc", threshold=0.5), steps)
    assert steps.rows == {}


def test_without_validations_nothing_can_be_waited_for(fit):
    with pytest.raises(ValueError, match="looked at in validations, which are switched off"):
        fit(parity({"seed": [0]}), Onset(), DatasetShrink(size=5, event="memorised"), limit_val_batches=0)


def test_two_of_them_are_refused(fit):
    with pytest.raises(ValueError, match="expected one of them"):
        fit(parity({"seed": [0]}), DatasetShrink(size=9, step=3), DatasetShrink(size=5, step=6, name="again"))


def test_rows_that_are_new_at_every_step_cannot_become_fewer(fit):
    members = {"seed": [0]}
    data = OnlineData(SparseParity(7, 2), batch_size=8, n_held_out=20, members=members)
    steps = Gathers()
    with pytest.raises(ValueError, match="training rows come from a FreshLoader; give them as a plain DataLoader"):
        fit((parity(members)[0], data), DatasetShrink(size=9, step=3), steps)
    assert steps.rows == {}


def test_members_that_share_a_foreign_loader_cannot_shrink(fit, make_trainer, foreign):
    class Theirs(LightningDataModule):
        def train_dataloader(self):
            return foreign.train_loader()

        def val_dataloader(self):
            return foreign.val_loader()

    members = {"seed": [0, 1]}
    module = MLP(4, 2, hidden=[8], loss="cross_entropy", members=members)
    with pytest.raises(ValueError, match="all 2 members share the rows of the loader"):
        make_trainer(max_epochs=1, callbacks=[DatasetShrink(size=9, step=3)]).fit(module, datamodule=Theirs())


# ---- somebody else's loader ------------------------------------------------------------------------------------------


class Theirs:
    """What makes a module with a loader of its own of somebody else's module: 24 rows, three batches an epoch."""

    def __init__(self, *args, loader, val_loader, **options):
        super().__init__(*args, **options)
        self.make_loader, self.make_val_loader, self.seen = loader, val_loader, {}

    def train_dataloader(self):
        return self.make_loader()

    def val_dataloader(self):
        return self.make_val_loader()

    def training_step(self, batch, batch_idx):
        self.seen[self.trainer.global_step] = [tuple(row) for row in batch[0].tolist()]
        return super().training_step(batch, batch_idx)


@pytest.fixture
def theirs(foreign):
    """A function that makes a foreign module; ``loader`` in place of its own."""

    def make(loader=None, shuffle=False, script=None):
        loader = loader or partial(foreign.train_loader, shuffle=shuffle)
        kind = type("TheirModule", (Theirs, foreign.module), {})
        return kind(loader=loader, val_loader=foreign.val_loader, reseed=True, script=script)

    return make


@pytest.fixture
def fit_theirs(make_trainer):
    def run(module, *callbacks, ckpt_path=None, **options):
        trainer = make_trainer(**({"max_epochs": 6, "callbacks": list(callbacks)} | options))
        trainer.fit(module, ckpt_path=ckpt_path)
        return trainer

    return run


def all_rows(foreign):
    return [tuple(row) for row in foreign.train_loader().dataset.tensors[0].tolist()]


class ShortensTheLoader(Callback):
    """What one would do first: the same loader, with fewer rows."""

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.global_step == 6:
            loader = trainer.train_dataloader
            object.__setattr__(loader, "batch_sampler", [[0, 1, 2, 3, 4, 5, 6, 7], [8, 9]])


def test_shortening_a_loader_in_place_silently_ends_validation(theirs, fit_theirs):
    """The fact for whose sake the loader is made anew."""
    module = theirs()
    fit_theirs(module, ShortensTheLoader())
    assert max(module.seen) > 9, "training goes on"
    assert [step for step, _ in module.validated] == [3, 6]


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_foreign_module_trains_on_kept_rows_from_the_next_epoch_on_and_keeps_validating(
    theirs, fit_theirs, foreign, shuffle
):
    module, shrink = theirs(shuffle=shuffle), DatasetShrink(size=10, step=5)
    trainer = fit_theirs(module, shrink)
    assert [step for step, _ in module.validated] == [3, 6, 8, 10, 12, 14]
    rows = all_rows(foreign)
    kept = [rows[i] for i in kept_of(shrink)[0].tolist()]
    for first in (0, 3):
        assert sorted(joined(module.seen[first + i] for i in range(3))) == sorted(rows)
    epochs = [joined(module.seen[first + i] for i in range(2)) for first in (6, 8, 10, 12)]
    assert all(sorted(epoch) == sorted(kept) for epoch in epochs)
    assert (len({tuple(epoch) for epoch in epochs}) > 1) is shuffle
    assert epochs[0] != kept or not shuffle
    record = {name: values.tolist() for name, (_, values) in shrink.record().items()}
    assert record == {"step": [6.0], "size": [10.0], "rows_before": [24.0]}
    assert trainer.reload_dataloaders_every_n_epochs == 0
    assert "train_dataloader" not in vars(module)


def test_a_data_module_is_as_good(theirs, make_trainer, foreign):
    class TheirData(LightningDataModule):
        def train_dataloader(self):
            return foreign.train_loader(shuffle=False)

        def val_dataloader(self):
            return foreign.val_loader()

    data, shrink = TheirData(), DatasetShrink(fraction=0.5, step=0)
    kind = type("Watched", (Theirs, foreign.module), {})
    module = kind(loader=None, val_loader=None)
    make_trainer(max_epochs=4, callbacks=[shrink]).fit(module, datamodule=data)
    assert [step for step, _ in module.validated] == [3, 5, 7, 9]
    assert len(kept_of(shrink)[0]) == 12
    assert len(data.train_dataloader().dataset) == 24


@pytest.mark.parametrize("options", [{"event": "generalised"}, {"metric": "val_acc", "threshold": 0.9}])
@pytest.mark.parametrize("steps", [0, 4])
def test_it_waits_for_an_event_or_a_metric_of_theirs(theirs, fit_theirs, options, steps):
    script = {"val_acc": lambda step: float(step >= 5), "train_acc": lambda step: 1.0}
    if "event" in options:
        options |= {"steps": steps}
    elif steps:
        pytest.skip("a metric counts no steps")
    onset = Onset("train_acc", "val_acc", dwell=0)
    shrink = DatasetShrink(size=10, **options)
    fit_theirs(theirs(script=script), onset, shrink)
    # Confirmed at 6; after four more steps, 10, the epoch ends at 12.
    assert shrink.record()["step"][1].tolist() == [6 if not steps else 12]


def test_a_metric_that_they_do_not_log_is_told_at_the_first_validation(theirs, fit_theirs):
    with pytest.raises(ValueError, match=r"metric: no 'acc' was logged; there are .*val_acc"):
        fit_theirs(theirs(), DatasetShrink(size=10, metric="acc", threshold=0.5))


@pytest.mark.parametrize("where", [SavesAt, SavesAfterValidation, "epoch"])
@pytest.mark.parametrize("options", [{"step": 5}, {"metric": "val_acc", "threshold": 0.5}], ids=["step", "metric"])
def test_a_foreign_run_resumes_exactly_before_at_and_after_the_shrink(theirs, fit_theirs, tmp_path, where, options):
    """At the ends of epochs, as an ordinary loader knows not where it was; in every way in which one may save there."""
    if options.get("metric") and where is SavesAt:
        pytest.skip("saved before the validation at which it falls due: a foreign module's metrics are lost with it")
    script = {"val_acc": lambda step: float(step >= 5)}

    class AtEpochEnd(SavesAt):
        def on_train_batch_end(self, *args):
            """Later."""

        def on_train_epoch_end(self, trainer, pl_module):
            super().on_train_batch_end(trainer, pl_module)

    saves = (AtEpochEnd if where == "epoch" else where)(tmp_path, 3, 6, 8, 10)
    whole, shrink = theirs(script=script), DatasetShrink(size=10, fresh_optimizer=True, **options)
    watch = ShrinkAccuracy(EveryNSteps(1), network="encoder")
    fit_theirs(whole, shrink, watch, saves)
    assert shrink.record()["step"][1].tolist() == [6.0]
    for step in (3, 6, 8, 10):
        resumed, again = theirs(script=script), DatasetShrink(size=10, fresh_optimizer=True, **options)
        looks = ShrinkAccuracy(EveryNSteps(1), network="encoder")
        trainer = fit_theirs(resumed, again, looks, ckpt_path=tmp_path / f"{step}.ckpt")
        assert trainer.global_step == 14
        equal(dict(resumed.named_parameters()), dict(whole.named_parameters()))
        assert {s: rows for s, rows in whole.seen.items() if s >= step} == resumed.seen
        assert again.record()["step"][1].tolist() == [6.0]
        assert torch.equal(kept_of(again)[0], kept_of(shrink)[0])
        assert looks.steps.tolist() == watch.steps.tolist()
        torch.testing.assert_close(looks.history["accuracy"], watch.history["accuracy"], rtol=0, atol=0, equal_nan=True)


def test_the_loader_is_like_theirs_in_all_else(theirs, fit_theirs, foreign):
    def collate(rows):
        return tuple(torch.stack(part) for part in zip(*rows, strict=True))

    made = []

    def loader():
        made.append(
            DataLoader(
                foreign.train_loader().dataset,
                batch_size=4,
                shuffle=True,
                drop_last=True,
                collate_fn=collate,
                generator=torch.Generator().manual_seed(7),
                timeout=0,
            )
        )
        return made[-1]

    trainer = fit_theirs(theirs(loader), DatasetShrink(size=10, step=1))
    theirs_now = trainer.train_dataloader
    assert theirs_now is not made[-1]
    assert isinstance(theirs_now.sampler, RandomSampler)
    assert theirs_now.sampler.generator is made[-1].generator
    names = ["batch_size", "drop_last", "num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn"]
    names += ["generator", "prefetch_factor", "persistent_workers", "multiprocessing_context", "in_order"]
    for name in names:
        assert getattr(theirs_now, name) == getattr(made[-1], name), name
    assert len(theirs_now) == 2


class Endless(IterableDataset):
    def __iter__(self):
        return iter([])


class NoLength:
    def __getitem__(self, index):
        return torch.zeros(4), 0


class Another(DataLoader):
    """Of which nobody knows what it does."""


ROWS = TensorDataset(torch.zeros(24, 4), torch.zeros(24, dtype=torch.int64))
BATCHES = [[0, 1], [2, 3]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Another(ROWS), "training rows come from a Another"),
        (lambda: [DataLoader(ROWS)], "training rows come from a list"),
        (lambda: {"a": DataLoader(ROWS)}, "training rows come from a dict"),
        (lambda: CombinedLoader([DataLoader(ROWS)]), "training rows come from a CombinedLoader"),
        (lambda: DataLoader(Endless()), "Endless has no length"),
        (lambda: DataLoader(NoLength(), sampler=range(3)), "NoLength has no length"),
        (lambda: DataLoader(ROWS, batch_sampler=BATCHES), "a batch_sampler of its own, list"),
        (lambda: DataLoader(ROWS, sampler=range(5)), "a sampler of its own, range"),
        (lambda: DataLoader(ROWS, sampler=WeightedRandomSampler([1.0] * 24, 24)), "its own, WeightedRandomSampler"),
        (
            lambda: DataLoader(ROWS, sampler=RandomSampler(ROWS, replacement=True)),
            "sampler does not draw each row once an epoch",
        ),
        (
            lambda: DataLoader(ROWS, sampler=RandomSampler(ROWS, num_samples=7)),
            "sampler does not draw each row once an epoch",
        ),
    ],
)
def test_loaders_that_cannot_be_changed_are_refused_before_the_first_step(theirs, fit_theirs, make, message):
    module = theirs(make)
    with pytest.raises(ValueError, match=f"{message}; give them as a plain DataLoader over a dataset with a length"):
        fit_theirs(module, DatasetShrink(size=5, step=100))
    assert module.seen == {}
    assert "train_dataloader" not in vars(module)


def test_a_loader_without_batches_is_one_of_single_rows(theirs, fit_theirs):
    module = theirs(lambda: DataLoader(TensorDataset(torch.zeros(6, 8, 4), torch.zeros(6, 8).long()), batch_size=None))
    fit_theirs(module, DatasetShrink(size=2, step=1), max_epochs=3)
    assert len(module.seen) == 6 + 2 + 2


@pytest.mark.parametrize("with_own", [False, True])
def test_a_loader_that_is_passed_straight_to_fit_is_refused(theirs, make_trainer, foreign, with_own):
    module = theirs() if with_own else foreign.module()
    trainer = make_trainer(max_epochs=2, callbacks=[DatasetShrink(size=5, step=1)])
    with pytest.raises(ValueError, match="the loader was passed straight to fit, which cannot change it; give them"):
        trainer.fit(module, foreign.train_loader(), foreign.val_loader())
    assert trainer.global_step == 0


@pytest.mark.parametrize(
    ("options", "flags", "message"),
    [
        ({"size": 25}, {}, "size: expected at most the 24 rows that member 0 trains on, got 25"),
        ({"size": 8}, {"val_check_interval": 2}, "val_check_interval: 2 batches are more than the 1 of an epoch of 8"),
    ],
)
def test_what_would_fail_at_the_shrink_fails_at_the_start(theirs, fit_theirs, options, flags, message):
    module = theirs()
    with pytest.raises(ValueError, match=message):
        fit_theirs(module, DatasetShrink(step=100, **options), **flags)
    assert module.seen == {}


def test_fewer_rows_than_a_whole_batch_are_refused_at_the_start(theirs, fit_theirs):
    module = theirs(lambda: DataLoader(ROWS, batch_size=8, drop_last=True))
    with pytest.raises(ValueError, match="size: 7 rows are no whole batch of 8, and drop_last is set"):
        fit_theirs(module, DatasetShrink(step=100, size=7))
    assert module.seen == {}


def test_counting_batches_whatever_the_epoch_goes_on(theirs, fit_theirs):
    module = theirs()
    flags = {"val_check_interval": 4, "check_val_every_n_epoch": None, "max_epochs": -1, "max_steps": 20}
    fit_theirs(module, DatasetShrink(size=8, step=5), **flags)
    assert [step for step, _ in module.validated] == [4, 8, 12, 16, 20]


class FailsAt(Callback):
    def __init__(self, hook, step):
        self.step = step
        setattr(self, hook, self.fail)

    def fail(self, trainer, *args):
        if trainer.global_step == self.step:
            raise RuntimeError("stopped")


@pytest.mark.parametrize(
    ("hook", "step"), [("on_train_batch_end", 2), ("on_train_epoch_end", 6), ("on_train_batch_end", 7)]
)
@pytest.mark.parametrize("own", [False, True])
def test_after_an_exception_everything_is_put_back(theirs, make_trainer, foreign, hook, step, own):
    module = theirs()
    if own:  # a function that somebody has put there
        module.train_dataloader = mine = lambda: foreign.train_loader(shuffle=False)
    trainer = make_trainer(max_epochs=6, callbacks=[DatasetShrink(size=10, step=5), FailsAt(hook, step)])
    with pytest.raises(RuntimeError, match="stopped"):
        trainer.fit(module)
    assert trainer.reload_dataloaders_every_n_epochs == 0
    assert vars(module).get("train_dataloader") is (mine if own else None)
    assert len(module.train_dataloader().dataset) == 24


def test_a_trainer_that_reloads_every_other_epoch_goes_on_doing_so(theirs, fit_theirs, foreign):
    made = []

    def loader():
        made.append(0)
        return foreign.train_loader(shuffle=False)

    trainer = fit_theirs(theirs(loader), DatasetShrink(size=10, step=5), reload_dataloaders_every_n_epochs=4)
    assert trainer.reload_dataloaders_every_n_epochs == 4
    assert len(made) >= 2
    assert len(trainer.train_dataloader.dataset) == 10


def test_a_second_run_of_a_foreign_module_starts_again(theirs, fit_theirs):
    shrink = DatasetShrink(size=10, step=5)
    first, second = theirs(), theirs()
    fit_theirs(first, shrink)
    fit_theirs(second, shrink)
    assert first.seen == second.seen
    equal(dict(first.named_parameters()), dict(second.named_parameters()))


def test_its_parts_are_measured_on_a_foreign_module(theirs, fit_theirs, foreign):
    module, shrink = theirs(), DatasetShrink(size=10, step=5)
    watch, seen = ShrinkAccuracy(network="encoder"), {}

    class Remembers(Callback):
        def on_validation_end(self, trainer, pl_module):
            seen[trainer.global_step] = copy.deepcopy(pl_module.encoder).eval()

    fit_theirs(module, watch, shrink, Remembers())
    assert watch.steps.tolist() == [0, 3, 6, 8, 10, 12, 14]
    rows, labels = foreign.train_loader().dataset.tensors
    kept = kept_of(shrink)[0]
    removed = torch.tensor([i for i in range(24) if i not in kept.tolist()])
    never = foreign.val_loader().dataset.tensors
    for i, step in enumerate(watch.steps.tolist()[1:], start=1):
        right = (seen[step](rows).argmax(dim=1) == labels).double()
        found = watch.history["accuracy"][i, 0].tolist()
        expected = right if step <= 6 else right[kept]
        assert found[0] == pytest.approx(expected.mean().item())
        assert found[1] == pytest.approx(math.nan if step <= 6 else right[removed].mean().item(), nan_ok=True)
        assert found[2] == pytest.approx((seen[step](never[0]).argmax(dim=1) == never[1]).double().mean().item())
