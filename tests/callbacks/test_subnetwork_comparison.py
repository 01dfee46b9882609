"""Against plain numpy over the files that a trajectory left."""

import math

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from grok_callbacks import AtEnd, EveryNSteps, Snapshots, SubnetworkComparison, WeightTrajectory
from grok_callbacks.snapshots import write_snapshot
from grok_lightning.data import TableData
from grok_lightning.modules import MLP
from grok_lightning.tasks import SparseParity

NAN = math.nan
MEMBERS = {"seed": [0, 1]}


# The definitions, for one member of one step at a time.


class Plain:
    """A two-layer ReLU network in numpy, float64; ``b`` and ``c`` are biases."""

    def __init__(self, w, b, u, c=0.0):
        self.w, self.b, self.u, self.c = (np.asarray(a, dtype=np.float64) for a in (w, b, u, c))
        self.norms = np.sqrt((self.w**2).sum(axis=1))

    def predict(self, inputs, kept):
        """What it predicts with these neurons alone."""
        hidden = np.maximum(np.asarray(inputs, dtype=np.float64) @ self.w.T + self.b, 0) * np.asarray(kept, dtype=float)
        logits = hidden @ self.u.T + self.c
        return np.sign(logits[:, 0]) if logits.shape[1] == 1 else logits.argmax(axis=1)

    def everything(self):
        return np.ones(len(self.w), dtype=bool)

    def active(self, inputs, targets, rule="predictions"):
        """The active subnetwork: a mask."""
        order = sorted(range(len(self.norms)), key=lambda j: -self.norms[j])
        full = self.predict(inputs, self.everything())
        labels = np.asarray(targets)
        labels = np.where(labels > 0, 1, -1) if len(self.u) == 1 else labels
        for size in range(len(order) + 1):
            kept = np.isin(np.arange(len(order)), order[:size])
            predicted = self.predict(inputs, kept)
            if rule == "predictions" and (predicted == full).all():
                return kept
            if rule == "accuracy" and (predicted == labels).sum() == (full == labels).sum():
                return kept
        raise AssertionError

    def agreement(self, inputs, kept):
        return float((self.predict(inputs, kept) == self.predict(inputs, self.everything())).mean())

    def sensitivity(self, inputs, kept):
        changed = []
        for row in np.asarray(inputs):
            before = self.predict(row[None], kept)[0]
            for i in range(len(row)):
                flipped = row.copy()
                flipped[i] *= -1
                changed.append(self.predict(flipped[None], kept)[0] != before)
        return float(np.mean(changed)) * inputs.shape[1]

    def mean_norm(self, kept):
        return float(self.norms[kept].mean()) if kept.any() else NAN

    def overlap(self, kept, top):
        return int(kept[sorted(range(len(kept)), key=lambda j: -self.norms[j])[:top]].sum())


def ours(weights, e):
    return Plain(*(weights[f"network.{name}"][e] for name in ("hidden.0.weight", "hidden.0.bias", "output.weight")))


def theirs(weights, e):
    return Plain(*(weights[f"encoder.{name}"] for name in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")))


def read(directory):
    """``{step: weights}`` of the files in a directory."""
    files = [torch.load(path, weights_only=True) for path in sorted(directory.glob("step_*.pt"))]
    return {file["step"]: file["weights"] for file in files}


def masks(monitor):
    """Generalizing, complementary and control sets of every member."""
    return monitor.state_dict()["sets"].numpy()


def check_arrays(monitor, networks, rows, sensitive=None):
    """Compare with ``networks[step][member]``, ``rows[split][member]`` of inputs; ``None`` where there are none."""
    assert monitor.steps.tolist() == sorted(networks)
    history = {name: values.numpy() for name, values in monitor.history.items()}
    sets = masks(monitor)
    for t, step in enumerate(sorted(networks)):
        for e, network in enumerate(networks[step]):
            generalizing, complementary, *controls = sets[e]

            def grouped(measure, parts=(generalizing, complementary), controls=controls):
                return [*(measure(kept) for kept in parts), float(np.mean([measure(kept) for kept in controls]))]

            assert history["norm"][t, e].tolist() == pytest.approx(grouped(network.mean_norm), rel=1e-5, nan_ok=True)
            assert history["overlap"][t, e] == network.overlap(generalizing, monitor.top)
            for s, split in enumerate(("train", "held_out")):
                if rows[split] is None or rows[split][e] is None:
                    assert np.isnan(history["agreement"][t, e, s]).all()
                else:
                    expected = grouped(lambda kept, x=rows[split][e], n=network: n.agreement(x, kept))
                    assert history["agreement"][t, e, s].tolist() == pytest.approx(expected, rel=1e-12)
            if sensitive is None or sensitive[e] is None:
                assert np.isnan(history["sensitivity"][t, e]).all()
            else:
                x = sensitive[e]
                expected = [network.sensitivity(x, network.everything())]
                expected += grouped(lambda kept, x=x, n=network: n.sensitivity(x, kept))
                assert history["sensitivity"][t, e].tolist() == pytest.approx(expected, rel=1e-12)


def check_sets(monitor, generalizing):
    """The first two sets are these masks and their complements; the others have their size."""
    for sets, expected in zip(masks(monitor), generalizing, strict=True):
        assert sets[0].tolist() == expected.tolist()
        assert sets[1].tolist() == (~expected).tolist()
        assert sets.shape[0] == 2 + monitor.controls
        assert (sets[2:].sum(axis=1) == expected.sum()).all()


# Ours.


def comparison(**options):
    few = {"controls": 3, "top": 4, "sensitive_rows": 7}
    return SubnetworkComparison("network.hidden.0", "network.output", **(few | options))


@pytest.fixture
def fit_ours(make_trainer, tmp_path):
    """Two members, 60 steps; weights kept every 20."""

    def run(
        *monitors, held_out=20, width=12, ckpt_path=None, directory=None, every=20, members=MEMBERS, n=8, **options
    ):
        size = None if "train_fraction" in members else 30
        data = TableData(SparseParity(n, 2), train_size=size, n_held_out=held_out, batch_size=10, members=members)
        module = MLP(n, 1, hidden=[width], members=members)
        trajectory = WeightTrajectory(EveryNSteps(every), directory or tmp_path / "w")
        callbacks = [trajectory, *monitors]
        trainer = make_trainer(**({"max_steps": 60, "max_epochs": -1, "callbacks": callbacks} | options))
        trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
        return trainer, module, data

    return run


def networks_of(kept):
    return {step: [ours(weights, e) for e in (0, 1)] for step, weights in kept.items()}


@pytest.mark.parametrize("rule", ["predictions", "accuracy"])
def test_every_array_is_that_of_a_plain_computation_over_the_files(fit_ours, tmp_path, rule):
    monitor = comparison(rule=rule)
    _, _, data = fit_ours(monitor)
    networks = networks_of(read(tmp_path / "w"))
    assert sorted(networks) == [0, 20, 40, 60]
    inputs, targets = data.rows("train")
    held_out = data.rows("held_out")[0]
    check_sets(monitor, [networks[60][e].active(inputs[e], targets[e], rule) for e in (0, 1)])
    check_arrays(monitor, networks, {"train": inputs, "held_out": held_out}, sensitive=held_out[:, :7])
    assert not torch.equal(*monitor.history["agreement"].unbind(dim=2))


def test_the_two_rules_differ(fit_ours):
    """Or the test above compares one of them twice."""
    monitors = [comparison(rule=rule, name=rule) for rule in ("predictions", "accuracy")]
    fit_ours(*monitors, max_steps=20)
    assert not np.array_equal(*(masks(monitor)[:, 0] for monitor in monitors))


def test_shapes_and_names(fit_ours):
    monitor = comparison()
    fit_ours(monitor)
    assert {name: tuple(values.shape) for name, values in monitor.history.items()} == {
        "norm": (4, 2, 3),
        "agreement": (4, 2, 2, 3),
        "overlap": (4, 2),
        "sensitivity": (4, 2, 4),
    }
    record = monitor.record()
    assert {name: dims for name, (dims, _) in record.items()} == {
        "step": ("step",),
        "norm": ("step", "member", "set"),
        "agreement": ("step", "member", "split", "set"),
        "overlap": ("step", "member"),
        "sensitivity": ("step", "member", "network"),
        "generalizing": ("member", "neuron"),
        "size": ("member",),
    }
    assert torch.equal(record["size"][1], record["generalizing"][1].sum(dim=1))
    assert monitor.labels == {
        "set": ("generalizing", "complementary", "control"),
        "split": ("train", "held_out"),
        "network": ("full", "generalizing", "complementary", "control"),
    }
    assert monitor.schedule == AtEnd()
    assert monitor.attributes() == {
        "layer": "network.hidden.0",
        "next_layer": "network.output",
        "rule": "predictions",
        "choose": "last",
        "among": 10,
        "controls": 3,
        "top": 4,
        "sensitive_rows": 7,
        "seed": 0,
        "network": "",
        "rows": "",
        "limit": 0,
        "method": "sums over neurons",
    }


def test_the_seed_decides_the_controls_and_nothing_else(fit_ours):
    monitors = [comparison(name="a"), comparison(name="b"), comparison(seed=1, name="c")]
    fit_ours(*monitors)
    a, b, c = (masks(monitor) for monitor in monitors)
    assert np.array_equal(a, b)
    assert np.array_equal(a[:, :2], c[:, :2])
    assert not np.array_equal(a[:, 2:], c[:, 2:])
    assert not np.array_equal(a[0, 2:], a[1, 2:]) or a[0, 0].sum() != a[1, 0].sum()


@pytest.mark.parametrize("among", [1, 2, 3, 100])
def test_of_the_last_kept_weights_the_median_may_be_chosen(fit_ours, tmp_path, among):
    monitor = comparison(choose="median", among=among)
    _, _, data = fit_ours(monitor, every=9, max_steps=50)
    kept = read(tmp_path / "w")
    trainer_end = 50
    assert trainer_end not in kept  # the final weights count, though no file has them
    assert monitor.steps.tolist() == [*kept, trainer_end]
    final = trained_to(50)
    networks = networks_of(kept | {trainer_end: final})
    inputs, targets = data.rows("train")
    chosen = []
    for e in (0, 1):
        candidates = [networks[step][e].active(inputs[e], targets[e]) for step in sorted(networks)[-among:]]
        sizes = [int(mask.sum()) for mask in candidates]
        middle = sorted(sizes)[(len(sizes) - 1) // 2]
        chosen.append(candidates[max(i for i, size in enumerate(sizes) if size == middle)])
    check_sets(monitor, chosen)
    check_arrays(
        monitor, networks, {"train": inputs, "held_out": data.rows("held_out")[0]}, data.rows("held_out")[0][:, :7]
    )


def trained_to(steps):
    """The weights of ``fit_ours`` after so many steps, by a Trainer with nothing else in it."""
    data = TableData(SparseParity(8, 2), train_size=30, n_held_out=20, batch_size=10, members=MEMBERS)
    module = MLP(8, 1, hidden=[12], members=MEMBERS)
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    trainer = Trainer(accelerator="cpu", devices=1, max_steps=steps, num_sanity_val_steps=0, **quiet)
    trainer.fit(module, datamodule=data)
    return module.state_dict()


def test_the_median_is_another_subnetwork_than_the_last(fit_ours):
    last, median = comparison(name="last"), comparison(choose="median", among=100, name="median")
    fit_ours(last, median, every=3)
    assert not np.array_equal(masks(last)[:, 0], masks(median)[:, 0])


class StopsAt(Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, *args):
        trainer.should_stop |= trainer.global_step == self.step


@pytest.mark.parametrize("options", [{"max_steps": 47}, {"max_epochs": 16, "max_steps": -1}])
def test_the_final_weights_are_included_where_training_stops_off_schedule(fit_ours, tmp_path, options):
    monitor = comparison()
    trainer, module, data = fit_ours(monitor, **options)
    last = trainer.global_step
    assert last % 20
    kept = read(tmp_path / "w")
    assert sorted(kept) == [0, 20, 40]
    networks = networks_of(kept | {last: module.state_dict()})
    inputs, targets = data.rows("train")
    check_sets(monitor, [networks[last][e].active(inputs[e], targets[e]) for e in (0, 1)])
    held_out = data.rows("held_out")[0]
    check_arrays(monitor, networks, {"train": inputs, "held_out": held_out}, held_out[:, :7])


def test_the_final_weights_are_included_where_training_is_stopped(fit_ours):
    monitor = comparison()
    fit_ours(monitor, StopsAt(33))
    assert monitor.steps.tolist()[:2] == [0, 20]
    assert monitor.steps.tolist()[-1] == 33


def test_nothing_is_measured_while_training_goes_on(fit_ours):
    class Looks(Callback):
        def __init__(self):
            self.seen = []

        def on_train_batch_end(self, trainer, pl_module, *args):
            self.seen += monitor.steps.tolist() + list(monitor.record())

    monitor, looks = comparison(), Looks()
    fit_ours(monitor, looks)
    assert looks.seen == []
    assert len(monitor.steps) == 4


def test_the_model_keeps_its_weights_and_its_mode(fit_ours):
    _, module, _ = fit_ours(comparison())
    expected = trained_to(60)
    assert list(module.state_dict()) == list(expected)
    for name, value in module.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert all(part.training for part in module.modules())


def test_interrupted_and_resumed_is_uninterrupted(fit_ours, tmp_path):
    whole, before, after = comparison(), comparison(), comparison()
    fit_ours(whole, directory=tmp_path / "whole")
    trainer, _, _ = fit_ours(before, directory=tmp_path / "part", max_steps=27)
    assert before.steps.tolist() == [0, 20, 27]
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    fit_ours(after, directory=tmp_path / "part", ckpt_path=tmp_path / "it.ckpt")
    assert after.steps.tolist() == whole.steps.tolist() == [0, 20, 40, 60]
    for name, (dims, values) in whole.record().items():
        assert after.record()[name][0] == dims
        torch.testing.assert_close(after.record()[name][1], values, rtol=0, atol=0, equal_nan=True)
    assert np.array_equal(masks(after), masks(whole))


def test_state_survives_a_file(fit_ours, tmp_path):
    monitor, restored = comparison(), comparison()
    fit_ours(monitor)
    torch.save(monitor.state_dict(), tmp_path / "state.pt")
    restored.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for name, (dims, values) in monitor.record().items():
        assert restored.record()[name][0] == dims
        torch.testing.assert_close(restored.record()[name][1], values, rtol=0, atol=0, equal_nan=True)
    torch.save(comparison().state_dict(), tmp_path / "empty.pt")
    restored.load_state_dict(torch.load(tmp_path / "empty.pt", weights_only=True))
    assert restored.record() == {}
    assert "sets" not in restored.state_dict()


def test_it_comes_before_or_after_the_trajectory(fit_ours, make_trainer, tmp_path):
    first, second = comparison(name="first"), comparison(name="second")
    data = TableData(SparseParity(8, 2), train_size=30, n_held_out=20, batch_size=10, members=MEMBERS)
    callbacks = [first, WeightTrajectory(EveryNSteps(20), tmp_path / "w"), second]
    make_trainer(max_steps=60, callbacks=callbacks).fit(MLP(8, 1, hidden=[12], members=MEMBERS), datamodule=data)
    assert first.steps.tolist() == second.steps.tolist() == [0, 20, 40, 60]
    for name, values in first.history.items():
        torch.testing.assert_close(second.history[name], values, rtol=0, atol=0, equal_nan=True)


def test_without_held_out_rows_agreement_there_is_nan(fit_ours, tmp_path):
    monitor = comparison()
    _, _, data = fit_ours(monitor, held_out=0, max_steps=20)
    assert monitor.history["agreement"][:, :, 1].isnan().all()
    # Sensitivity is then that on training rows.
    inputs = data.rows("train")[0]
    check_arrays(monitor, networks_of(read(tmp_path / "w")), {"train": inputs, "held_out": None}, inputs[:, :7])


@pytest.mark.parametrize("shares", [[1.0, 0.5], [0.5, 1.0]])
def test_a_member_without_held_out_rows_beside_one_with_them(fit_ours, tmp_path, shares):
    """Its agreement there is nobody's; its sensitivity is that on its training rows, as it would be alone."""
    monitor = comparison()
    _, _, data = fit_ours(monitor, members=MEMBERS | {"train_fraction": shares}, n=5)
    inputs, held_out = data.rows("train")[0], list(data.rows("held_out")[0])
    whole = shares.index(1.0)
    held_out[whole] = None
    sensitive = [(inputs[e] if e == whole else held_out[e])[:7] for e in (0, 1)]
    check_arrays(monitor, networks_of(read(tmp_path / "w")), {"train": inputs, "held_out": held_out}, sensitive)


def test_sensitivity_of_a_member_needs_its_own_bits_alone(fit_ours, tmp_path, monkeypatch):
    (tmp_path / "member_bits.py").write_text(
        "import torch\n"
        "def rows(trainer, pl_module, split):\n"
        "    seed = {'train': 5, 'held_out': 6}[split]\n"
        "    x = torch.randint(2, (2, 9, 8), generator=torch.Generator().manual_seed(seed)) * 2.0 - 1\n"
        "    if split == 'held_out':\n"
        "        x[0, 3, 2] = 0\n"
        "    return x, x[..., 0] * x[..., 1]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monitor = comparison(rows="member_bits.rows")
    fit_ours(monitor)
    x, held_out = (
        torch.randint(2, (2, 9, 8), generator=torch.Generator().manual_seed(seed)) * 2.0 - 1 for seed in (5, 6)
    )
    held_out[0, 3, 2] = 0
    sensitive = [None, held_out[1, :7]]
    check_arrays(monitor, networks_of(read(tmp_path / "w")), {"train": x, "held_out": held_out}, sensitive)


def test_sensitivity_may_be_switched_off(fit_ours, tmp_path):
    monitor = comparison(sensitive_rows=0)
    _, _, data = fit_ours(monitor)
    rows = {split: data.rows(split)[0] for split in ("train", "held_out")}
    check_arrays(monitor, networks_of(read(tmp_path / "w")), rows, sensitive=None)


@pytest.mark.parametrize("limit", [1, 7])
def test_a_limit_takes_the_first_rows_of_every_split(fit_ours, tmp_path, limit):
    monitor = comparison(limit=limit)
    _, _, data = fit_ours(monitor)
    networks = networks_of(read(tmp_path / "w"))
    inputs, targets = (rows[:, :limit] for rows in data.rows("train"))
    held_out = data.rows("held_out")[0][:, :limit]
    check_sets(monitor, [networks[60][e].active(inputs[e], targets[e]) for e in (0, 1)])
    check_arrays(monitor, networks, {"train": inputs, "held_out": held_out}, held_out[:, :7])


def test_a_member_that_diverged_has_no_subnetwork_and_the_other_one_has(fit_ours, tmp_path):
    class Diverges(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            if trainer.global_step == 60:
                pl_module.network.hidden[0].weight.data[0] = NAN

    monitor, alone = comparison(), comparison(name="alone")
    fit_ours(alone, directory=tmp_path / "alone")
    fit_ours(monitor, Diverges(), every=10)
    assert not masks(monitor)[0, 0].any()
    assert np.array_equal(masks(monitor)[1, :2], masks(alone)[1, :2])
    assert monitor.history["norm"][:, 0, 0].isnan().all()  # an empty set


def test_a_fast_dev_run_looks_at_its_own_weights_alone(fit_ours):
    """Not at those that an earlier run, of another network even, left in the same directory."""
    fit_ours(comparison(), width=12)
    monitor = comparison()
    fit_ours(monitor, width=5, fast_dev_run=2)
    assert monitor.steps.tolist() == [2]


def test_a_second_run_with_the_same_object_starts_again(fit_ours, tmp_path):
    class Looks(Callback):
        def on_train_start(self, trainer, pl_module):
            self.state = monitor.state_dict()

    monitor, fresh, looks = comparison(), comparison(), Looks()
    fit_ours(monitor)
    fit_ours(monitor, looks, width=7, directory=tmp_path / "second")
    assert "sets" not in looks.state  # of the first run
    fit_ours(fresh, width=7, directory=tmp_path / "third")
    for name, (_, values) in fresh.record().items():
        torch.testing.assert_close(monitor.record()[name][1], values, rtol=0, atol=0, equal_nan=True)


def test_looking_back_at_nothing_is_refused(fit_ours, tmp_path):
    trainer, module, _ = fit_ours(comparison())
    empty = WeightTrajectory(directory=tmp_path / "nowhere").snapshots()
    with pytest.raises(ValueError, match=r"no weights|snapshot"):
        comparison().look_back(trainer, module, empty)


def test_weights_of_another_network_are_refused_and_the_model_is_as_it_was(fit_ours, tmp_path):
    trainer, module, _ = fit_ours(comparison())
    before = {name: value.clone() for name, value in module.state_dict().items()}
    write_snapshot(tmp_path / "w", 80, {"network.hidden.0.weight": torch.zeros(2, 5, 8)})
    with pytest.raises(ValueError, match=r"weights of another step: expected 'network\.hidden\.0\.weight'"):
        comparison().look_back(trainer, module, Snapshots(tmp_path / "w"))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


# In somebody else's project.


@pytest.fixture
def fit_theirs(foreign, make_trainer, tmp_path):
    def run(*monitors, module=None, val=None, train=None, **options):
        torch.manual_seed(0)
        callbacks = [WeightTrajectory(EveryNSteps(3), tmp_path / "w"), *monitors]
        trainer = make_trainer(**({"max_epochs": 4, "callbacks": callbacks} | options))
        module = foreign.module() if module is None else module
        trainer.fit(module, foreign.train_loader() if train is None else train, val)
        return module

    return run


def their_comparison(**options):
    arguments = {"controls": 3, "top": 2, "network": "encoder"}
    return SubnetworkComparison("encoder.fc1", "encoder.fc2", **(arguments | options))


def test_a_foreign_module_is_one_member(fit_theirs, foreign, tmp_path):
    """Inputs are numbers, not bits: sensitivity has no meaning there."""
    monitor = their_comparison()
    fit_theirs(monitor, val=foreign.val_loader())
    networks = {step: [theirs(weights, 0)] for step, weights in read(tmp_path / "w").items()}
    (inputs, targets), (held_out, _) = foreign.train_loader().dataset.tensors, foreign.val_loader().dataset.tensors
    check_sets(monitor, [networks[12][0].active(inputs, targets)])
    check_arrays(monitor, networks, {"train": [inputs], "held_out": [held_out]}, sensitive=None)


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
def test_a_foreign_project_without_a_validation_loader_has_no_held_out_rows(fit_theirs, foreign, tmp_path):
    monitor = their_comparison()
    fit_theirs(monitor)
    networks = {step: [theirs(weights, 0)] for step, weights in read(tmp_path / "w").items()}
    inputs, _ = foreign.train_loader().dataset.tensors
    check_arrays(monitor, networks, {"train": [inputs], "held_out": None}, sensitive=None)


def bits(n, seed):
    x = torch.randint(2, (n, 4), generator=torch.Generator().manual_seed(seed)) * 2.0 - 1
    return x, (x[:, 0] * x[:, 1] > 0).long()


@pytest.mark.parametrize("zero", [False, True])
def test_sensitivity_needs_every_bit_to_be_one(fit_theirs, tmp_path, zero):
    monitor = their_comparison(sensitive_rows=5)
    train, val = bits(24, 0), bits(9, 1)
    if zero:
        val[0][2, 1] = 0
    loaders = [DataLoader(TensorDataset(*rows), batch_size=8) for rows in (train, val)]
    fit_theirs(monitor, train=loaders[0], val=loaders[1])
    networks = {step: [theirs(weights, 0)] for step, weights in read(tmp_path / "w").items()}
    sensitive = None if zero else [val[0][:5]]
    check_arrays(monitor, networks, {"train": [train[0]], "held_out": [val[0]]}, sensitive)


def test_rows_may_come_from_a_function(fit_theirs, foreign, tmp_path, monkeypatch):
    (tmp_path / "comparison_rows.py").write_text(
        "import torch\n"
        "def rows(trainer, pl_module, split):\n"
        "    seed = {'train': 5, 'held_out': 6}[split]\n"
        "    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(seed))\n"
        "    return x, (x[:, 0] > 0).long()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monitor = their_comparison(rows="comparison_rows.rows")
    fit_theirs(monitor, val=foreign.val_loader())
    networks = {step: [theirs(weights, 0)] for step, weights in read(tmp_path / "w").items()}
    x = [torch.randn(9, 4, generator=torch.Generator().manual_seed(seed)) for seed in (5, 6)]
    check_sets(monitor, [networks[12][0].active(x[0], x[0][:, 0] > 0)])
    check_arrays(monitor, networks, {"train": [x[0]], "held_out": [x[1]]}, sensitive=None)


def test_loggers_get_nothing(fit_theirs, foreign, recording_logger):
    fit_theirs(their_comparison(), val=foreign.val_loader(), logger=recording_logger)
    assert not [name for _, metrics in recording_logger.points for name in metrics if name.startswith("subnetworks")]


class Deep(LightningModule):
    """Logits are no sums over neurons."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, x):
        return self.fc3(torch.tanh(self.fc2(torch.relu(self.fc1(x)))))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


class PlainDeep(Plain):
    def __init__(self, weights):
        super().__init__(weights["fc1.weight"], weights["fc1.bias"], weights["fc2.weight"], weights["fc2.bias"])
        self.v, self.d = (weights[f"fc3.{name}"].numpy().astype(np.float64) for name in ("weight", "bias"))

    def predict(self, inputs, kept):
        hidden = np.maximum(np.asarray(inputs, dtype=np.float64) @ self.w.T + self.b, 0) * np.asarray(kept, dtype=float)
        return (np.tanh(hidden @ self.u.T + self.c) @ self.v.T + self.d).argmax(axis=1)


def test_where_logits_are_no_sums_it_is_right_too_and_warns_once(fit_theirs, foreign, tmp_path):
    torch.manual_seed(3)
    monitor = SubnetworkComparison("fc1", "fc2", controls=3)
    with pytest.warns(UserWarning, match="not sums over the neurons between fc1 and fc2") as caught:
        fit_theirs(monitor, module=Deep())
    assert len([warning for warning in caught if "not sums" in str(warning.message)]) == 1
    networks = {step: [PlainDeep(weights)] for step, weights in read(tmp_path / "w").items()}
    inputs, targets = foreign.train_loader().dataset.tensors
    check_sets(monitor, [networks[12][0].active(inputs, targets)])
    check_arrays(monitor, networks, {"train": [inputs], "held_out": None}, sensitive=None)
    assert monitor.attributes()["method"] == "masked forward passes"


# What cannot be compared.


class Trains(Callback):
    def __init__(self):
        self.steps = 0

    def on_train_batch_start(self, *args):
        self.steps += 1


def test_without_a_trajectory_it_fails_before_training(foreign, make_trainer):
    trains = Trains()
    with pytest.raises(ValueError, match=r"SubnetworkComparison looks back .*add a WeightTrajectory"):
        make_trainer(max_epochs=1, callbacks=[trains, their_comparison()]).fit(
            foreign.module(), foreign.train_loader(), foreign.val_loader()
        )
    assert trains.steps == 0


@pytest.mark.parametrize(
    ("monitor", "message"),
    [
        (lambda: SubnetworkComparison("fc1", "encoder.fc2"), "layer: the model has no 'fc1'"),
        (lambda: SubnetworkComparison("encoder.fc1", "fc2"), "next_layer: the model has no 'fc2'"),
        (lambda: their_comparison(network="net"), "network: the model has no 'net'"),
    ],
)
def test_names_that_lead_nowhere_fail_before_training(fit_theirs, foreign, monitor, message):
    trains = Trains()
    with pytest.raises(ValueError, match=message):
        fit_theirs(trains, monitor(), val=foreign.val_loader())
    assert trains.steps == 0


class Stream(IterableDataset):
    def __iter__(self):
        yield from zip(*bits(16, 0), strict=True)


@pytest.mark.parametrize("what", ["width", "rows", "no forward", "held-out rows"])
def test_what_would_fail_after_training_fails_before_it(fit_theirs, foreign, what):
    """A wrong name costs a second, so should wrong rows: not all the hours of a training."""
    trains, module, train, val = Trains(), foreign.module(), None, foreign.val_loader()
    monitor = their_comparison()
    if what == "width":
        monitor = SubnetworkComparison("encoder.fc1", "encoder.fc1", network="encoder")
    elif what == "no forward":
        monitor = their_comparison(network=None)
    elif what == "rows":
        train = DataLoader(Stream(), batch_size=8)
    else:
        val = DataLoader(Stream(), batch_size=8)
    with pytest.raises((ValueError, NotImplementedError), match=r"rows: Stream cannot be indexed|next_layer|forward"):
        fit_theirs(trains, monitor, module=module, train=train, val=val)
    assert trains.steps == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "both"}, "rule: expected one of predictions, accuracy, got 'both'"),
        ({"choose": "first"}, "choose: expected 'last' or 'median', got 'first'"),
        ({"among": 0}, "among: expected at least 1, got 0"),
        ({"controls": 0}, "controls: expected at least 1, got 0"),
        ({"top": 0}, "top: expected at least 1, got 0"),
        ({"sensitive_rows": -1}, "sensitive_rows: expected at least 0, got -1"),
        ({"limit": 0}, "limit: expected at least 1, got 0"),
        ({"name": "Sub"}, "name: expected"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        comparison(**options)


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed"])
def test_it_measures_in_the_precision_of_the_training(fit_ours, precision):
    monitor = comparison()
    fit_ours(monitor, precision=precision, max_steps=20)
    assert monitor.history["agreement"].isfinite().all()


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed", "bf16-true"])
def test_it_measures_a_foreign_module_in_the_precision_of_its_training(fit_theirs, foreign, precision):
    monitor = their_comparison()
    fit_theirs(monitor, val=foreign.val_loader(), precision=precision)
    assert monitor.history["agreement"].isfinite().all()
