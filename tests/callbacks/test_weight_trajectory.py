import math
import os
import pickle
import re
import stat
import warnings
from contextlib import nullcontext

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from grok_callbacks import (
    EveryNSteps,
    EveryValidation,
    LogSpaced,
    Schedule,
    Snapshots,
    SubnetworkComparison,
    WeightTrajectory,
)
from grok_callbacks.files import WriteError
from grok_callbacks.snapshots import plain_name, remove_snapshots, state_of, weights_of, write_snapshot
from grok_callbacks.weight_trajectory import find_trajectory
from grok_lightning.data import TableData
from grok_lightning.modules import MLP
from grok_lightning.tasks import SparseParity


class Weights(Callback):
    """Keeps a copy of the whole state after every step."""

    def __init__(self):
        self.at = {}

    def on_train_start(self, trainer, pl_module):
        self.on_train_batch_end(trainer, pl_module)

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.at[trainer.global_step] = {name: value.clone() for name, value in pl_module.state_dict().items()}


@pytest.fixture
def fit(foreign, make_trainer):
    """Two epochs of three steps, the same at every call."""

    def run(*callbacks, module=None, ckpt_path=None, **options):
        trainer = make_trainer(**({"max_epochs": 2, "callbacks": list(callbacks)} | options))
        module = foreign.module(reseed=True) if module is None else module
        loader = foreign.train_loader(shuffle=False)
        trainer.fit(module, loader, foreign.val_loader(), ckpt_path=ckpt_path)
        return trainer

    return run


def file_of(directory, step):
    return directory / f"step_{step:010d}.pt"


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def names_of(*steps):
    return [f"step_{step:010d}.pt" for step in steps]


def content(path):
    return torch.load(path, weights_only=True)


def assert_same(a, b):
    """The same tensors, bit for bit, NaN and −0 included."""
    assert list(a) == list(b)
    for name, value in a.items():
        assert value.dtype == b[name].dtype
        assert value.shape == b[name].shape
        assert bits(value) == bits(b[name]), name


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).tolist()


# Files.


@pytest.mark.parametrize(("schedule", "steps"), [(EveryNSteps(2), [0, 2, 4, 6]), (LogSpaced(2), [0, 1, 3])])
def test_a_file_a_step_holds_the_weights_bit_for_bit(fit, tmp_path, schedule, steps):
    weights, trajectory = Weights(), WeightTrajectory(schedule, tmp_path / "w")
    fit(weights, trajectory)
    assert trajectory.steps.tolist() == steps
    assert names(tmp_path / "w") == names_of(*steps)
    for step in steps:
        kept = content(file_of(tmp_path / "w", step))
        assert sorted(kept) == ["run", "step", "weights"]
        assert kept["step"] == step
        assert_same(kept["weights"], weights.at[step])
    assert not torch.equal(weights.at[0]["encoder.fc1.weight"], weights.at[steps[-1]]["encoder.fc1.weight"])


def test_files_hold_nothing_but_the_weights(fit, tmp_path):
    """Not the storage that a view is part of, say."""
    module = LightningModule()
    fit(WeightTrajectory(EveryNSteps(3), tmp_path))
    numbers = 4 * 6 + 6 + 6 * 2 + 2
    assert file_of(tmp_path, 0).stat().st_size < 4 * numbers + 4000
    large = torch.zeros(1_000_000)
    module.register_buffer("view", large[:3])
    write_snapshot(tmp_path, 9, {name: value.detach().cpu().clone() for name, value in state_of(module).items()})
    assert file_of(tmp_path, 9).stat().st_size < 5000


def test_buffers_are_kept_too(fit, foreign, tmp_path):
    module = foreign.module(reseed=True)
    module.encoder.drop = nn.BatchNorm1d(6)
    weights = Weights()
    fit(weights, WeightTrajectory(EveryNSteps(3), tmp_path), module=module)
    assert "encoder.drop.running_mean" in content(file_of(tmp_path, 3))["weights"]
    for step in (0, 3, 6):
        assert_same(content(file_of(tmp_path, step))["weights"], weights.at[step])


def test_snapshots_read_the_files(fit, tmp_path):
    weights, trajectory = Weights(), WeightTrajectory(EveryNSteps(2), tmp_path / "w")
    fit(weights, trajectory)
    snapshots = trajectory.snapshots()
    assert list(snapshots) == [0, 2, 4, 6]
    assert len(snapshots) == 4
    assert (2 in snapshots, 3 in snapshots) == (True, False)
    for step in snapshots:
        assert_same(snapshots[step], weights.at[step])
    with pytest.raises(KeyError):
        snapshots[3]


def test_weights_in_memory_stand_beside_those_in_files_and_in_place_of_them(tmp_path):
    write_snapshot(tmp_path, 10, {"a": torch.tensor(1.0)})
    write_snapshot(tmp_path, 9, {"a": torch.tensor(2.0)})
    write_snapshot(tmp_path, 12345678901234, {"a": torch.tensor(3.0)})
    snapshots = Snapshots(tmp_path, {11: {"a": torch.tensor(4.0)}, 9: {"a": torch.tensor(5.0)}})
    assert [(step, float(snapshots[step]["a"])) for step in snapshots] == [
        (9, 5),
        (10, 1),
        (11, 4),
        (12345678901234, 3),
    ]
    assert len(Snapshots(tmp_path / "nowhere")) == 0


class First:
    """What snapshots ask of the strategy in the first of several processes; ``sent`` is what it has told the others."""

    is_global_zero = True

    def __init__(self):
        self.sent = []

    def broadcast(self, found):
        self.sent.append(found)
        return found


class Other(First):
    """The same of another process, which comes later."""

    is_global_zero = False

    def __init__(self, first):
        self.first = first

    def broadcast(self, found):
        return self.first.sent.pop(0)


def test_of_several_processes_the_first_reads_for_all(tmp_path, monkeypatch):
    for step in (3, 4, 5, 6):
        write_snapshot(tmp_path / "w", step, {"a": torch.tensor(float(step))})
    file_of(tmp_path / "w", 4).write_bytes(b"no zip")
    last = {9: {"a": torch.tensor(9.0)}}
    first = Snapshots(tmp_path / "w", last, steps={3, 4, 5, 7}, strategy=First())
    found = {step: float(first[step]["a"]) for step in (3, 5, 9)}
    monkeypatch.setattr("grok_callbacks.snapshots._files", lambda _: pytest.fail("looked for files"))
    other = Snapshots(tmp_path / "w", last, steps={3, 4, 5, 7}, strategy=Other(first._strategy))
    assert list(first) == list(other) == [3, 4, 5, 9]
    assert {step: float(other[step]["a"]) for step in (3, 5, 9)} == found == {3: 3.0, 5: 5.0, 9: 9.0}
    for snapshots in (first, other):
        with pytest.raises(ValueError, match=r"step_0000000004\.pt cannot be read as weights of a step"):
            snapshots[4]
        with pytest.raises(KeyError):
            snapshots[7]
    assert first._strategy.sent == []


@pytest.mark.parametrize("damage", [b"", b"no zip", None], ids=["empty", "text", "cut off"])
def test_a_damaged_file_is_named(tmp_path, damage):
    path = write_snapshot(tmp_path, 3, {"a": torch.zeros(100)})
    path.write_bytes(path.read_bytes()[:-50] if damage is None else damage)
    with pytest.raises(ValueError, match=r"step_0000000003\.pt cannot be read as weights of a step"):
        Snapshots(tmp_path)[3]


def test_a_file_of_something_else_is_named(tmp_path):
    torch.save({"state_dict": {}}, file_of(tmp_path, 3))
    with pytest.raises(ValueError, match="cannot be read as weights of a step: KeyError"):
        Snapshots(tmp_path)[3]


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_a_malicious_file_is_not_run(tmp_path, kind):
    bomb = {"step": 3, "weights": {"a": Malicious(tmp_path / "ran")}}
    if kind == "pickle":
        file_of(tmp_path, 3).write_bytes(pickle.dumps(bomb))
    else:
        torch.save(bomb, file_of(tmp_path, 3))
    with pytest.raises(ValueError, match="cannot be read as weights of a step: UnpicklingError"):
        Snapshots(tmp_path)[3]
    assert not (tmp_path / "ran").exists()
    torch.load(file_of(tmp_path, 3), weights_only=False) if kind == "torch" else pickle.loads(pickle.dumps(bomb))
    assert (tmp_path / "ran").exists()  # the bomb would have gone off


# Writing.


@pytest.mark.parametrize("function", ["replace", "fsync"])
def test_a_write_that_fails_leaves_no_file(fit, tmp_path, monkeypatch, function):
    def fails(*args):
        raise OSError(28, "No space left on device")

    fit(WeightTrajectory(EveryNSteps(3), tmp_path / "w"), max_epochs=1)
    before = {path.name: path.read_bytes() for path in (tmp_path / "w").iterdir()}
    monkeypatch.setattr(os, function, fails)
    for step in (3, 4):  # one that is there and one that is not
        with pytest.raises(WriteError, match=rf"No space left on device: .*step_000000000{step}\.pt"):
            write_snapshot(tmp_path / "w", step, {"a": torch.zeros(3)})
    assert {path.name: path.read_bytes() for path in (tmp_path / "w").iterdir()} == before
    with pytest.raises(WriteError, match="No space left on device"):
        fit(WeightTrajectory(EveryNSteps(3), tmp_path / "new"))
    assert names(tmp_path / "new") == []


def test_a_write_that_fails_half_way_leaves_no_file(tmp_path, monkeypatch):
    def half(content, file):
        file.write(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(KeyboardInterrupt):
        write_snapshot(tmp_path, 3, {"a": torch.zeros(3)})
    assert names(tmp_path) == []


def test_until_it_is_whole_a_file_has_another_name(tmp_path, monkeypatch):
    seen = []

    def noted(source, target):
        seen.append((names(tmp_path), len(Snapshots(tmp_path))))
        os.rename(source, target)

    monkeypatch.setattr(os, "replace", noted)
    write_snapshot(tmp_path, 3, {"a": torch.zeros(3)})
    ((there, count),) = seen
    assert count == 0
    assert len(there) == 1
    assert not re.fullmatch(r"step_\d+\.pt", there[0])
    assert names(tmp_path) == names_of(3)


def test_others_may_read_the_files(tmp_path):
    path = write_snapshot(tmp_path, 3, {"a": torch.zeros(3)})
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


# Resuming, and training anew.


def test_a_resumed_run_ends_with_the_files_of_an_uninterrupted_one(fit, tmp_path):
    whole, before, after = (WeightTrajectory(EveryNSteps(2), tmp_path / name) for name in ("whole", "part", "part"))
    fit(whole, max_epochs=4)
    fit(before).save_checkpoint(tmp_path / "it.ckpt")
    for step in (8, 9, 100):  # an earlier run went further
        write_snapshot(tmp_path / "part", step, {"a": torch.zeros(1)})
    fit(after, max_epochs=4, ckpt_path=tmp_path / "it.ckpt")
    assert names(tmp_path / "part") == names(tmp_path / "whole") == names_of(0, 2, 4, 6, 8, 10, 12)
    for step in whole.snapshots():
        assert_same(after.snapshots()[step], whole.snapshots()[step])
    assert after.steps.tolist() == whole.steps.tolist()
    assert torch.equal(after.history["norm"], whole.history["norm"])


def test_resuming_removes_later_files_at_once(fit, tmp_path):
    fit(WeightTrajectory(EveryNSteps(1), tmp_path / "w")).save_checkpoint(tmp_path / "it.ckpt")
    for step in (7, 12):
        write_snapshot(tmp_path / "w", step, {"a": torch.zeros(1)})

    class AtStart(Callback):
        def on_train_start(self, trainer, pl_module):
            self.there = names(tmp_path / "w")

    looks = AtStart()
    fit(WeightTrajectory(EveryNSteps(1), tmp_path / "w"), looks, max_epochs=3, ckpt_path=tmp_path / "it.ckpt")
    assert looks.there == names_of(*range(7))
    assert names(tmp_path / "w") == names_of(*range(10))


class OnlyAt(Schedule):
    def __init__(self, *steps):
        self.steps = steps

    def due(self, step):
        return step in self.steps


@pytest.mark.parametrize("schedule", [EveryNSteps(4), OnlyAt(3)], ids=["initial weights too", "no initial weights"])
def test_training_anew_removes_what_an_earlier_run_left(fit, tmp_path, schedule):
    fit(WeightTrajectory(EveryNSteps(1), tmp_path))
    weights, anew = Weights(), WeightTrajectory(schedule, tmp_path)
    fit(weights, anew)
    assert list(anew.snapshots()) == anew.steps.tolist()
    for step in anew.snapshots():
        assert_same(anew.snapshots()[step], weights.at[step])


def test_unrelated_files_are_left_alone(fit, tmp_path):
    others = [
        "notes.txt",
        "step_9.pt",
        "step_2000.pt",
        "step_9.pt.bak",
        "xstep_9.pt",
        "step_.pt",
        "step_9.ckpt",
        ".step_0000000009.pt.abc",
    ]
    for name in others:
        (tmp_path / name).write_text("mine")
    (tmp_path / "folder").mkdir()
    trajectory = WeightTrajectory(EveryNSteps(3), tmp_path)
    fit(trajectory)
    remove_snapshots(tmp_path, after=3)
    assert sorted([*others, "folder", *names_of(0, 3)]) == names(tmp_path)
    assert all((tmp_path / name).read_text() == "mine" for name in others)
    assert list(trajectory.snapshots()) == [0, 3]


def test_removing_from_a_directory_that_is_not_there_does_nothing(tmp_path):
    remove_snapshots(tmp_path / "nowhere", after=0)
    assert not (tmp_path / "nowhere").exists()


def test_a_fast_dev_run_writes_and_removes_nothing(fit, tmp_path):
    trajectory = WeightTrajectory(EveryNSteps(1), tmp_path / "new")
    fit(trajectory, fast_dev_run=2)
    assert trajectory.steps.tolist() == [0, 1, 2]
    assert not (tmp_path / "new").exists()
    fit(WeightTrajectory(EveryNSteps(1), tmp_path / "old"))
    before = {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()}
    fit(WeightTrajectory(EveryNSteps(1), tmp_path / "old"), fast_dev_run=2)
    assert {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()} == before


def test_a_fast_dev_run_does_not_take_another_runs_weights_for_its_own(fit, tmp_path):
    fit(WeightTrajectory(EveryNSteps(1), tmp_path))
    trajectory = WeightTrajectory(EveryNSteps(1), tmp_path)
    fit(trajectory, fast_dev_run=2)
    assert list(trajectory.snapshots()) == []


def test_before_any_training_there_are_no_snapshots(tmp_path, monkeypatch):
    write_snapshot(tmp_path, 3, {"a": torch.zeros(1)})
    monkeypatch.chdir(tmp_path)
    assert list(WeightTrajectory().snapshots()) == []


# Where files go.


def test_by_default_they_go_below_the_loggers_directory(fit, tmp_path):
    logger = CSVLogger(tmp_path / "logs", name="mine", version=3)
    trajectory = WeightTrajectory(EveryNSteps(3))
    fit(trajectory, logger=logger)
    assert names(tmp_path / "logs" / "mine" / "version_3" / "weights") == names_of(0, 3, 6)
    assert list(trajectory.snapshots()) == [0, 3, 6]


def test_without_a_logger_they_go_below_the_root_directory(fit, tmp_path):
    fit(WeightTrajectory(EveryNSteps(3)), default_root_dir=tmp_path / "root")
    assert names(tmp_path / "root" / "weights") == names_of(0, 3, 6)


def test_a_directory_may_be_named(fit, tmp_path):
    fit(WeightTrajectory(EveryNSteps(3), str(tmp_path / "a" / "b")), logger=CSVLogger(tmp_path / "logs"))
    assert names(tmp_path / "a" / "b") == names_of(0, 3, 6)
    assert not list((tmp_path / "logs").rglob("*.pt"))


def test_one_object_may_serve_two_runs_in_two_directories(fit, tmp_path):
    trajectory = WeightTrajectory(EveryNSteps(3))
    fit(trajectory, default_root_dir=tmp_path / "one")
    fit(trajectory, default_root_dir=tmp_path / "two", max_epochs=1)
    assert names(tmp_path / "one" / "weights") == names_of(0, 3, 6)
    assert list(trajectory.snapshots()) == trajectory.steps.tolist() == [0, 3]


# What the record gets.


def norm_by_definition(tensors):
    return math.sqrt(math.fsum(x * x for tensor in tensors for x in tensor.double().flatten().tolist()))


def test_the_norm_is_that_of_all_parameters(fit, foreign, tmp_path, recording_logger):
    module = foreign.module(reseed=True)
    module.register_buffer("not_a_parameter", torch.full((3,), 100.0))
    trajectory = WeightTrajectory(EveryNSteps(3), tmp_path)
    fit(trajectory, module=module, logger=recording_logger)
    assert trajectory.history["norm"].shape == (3, 1)
    norms = [
        norm_by_definition([value for name, value in trajectory.snapshots()[step].items() if name != "not_a_parameter"])
        for step in (0, 3, 6)
    ]
    assert trajectory.history["norm"][:, 0].tolist() == pytest.approx(norms, rel=1e-12)
    assert recording_logger.steps("weights/norm") == [0, 3, 6]
    assert recording_logger.values("weights/norm") == pytest.approx(norms, rel=1e-6)


@pytest.mark.parametrize("seeds", [[0], [0, 1]])
def test_members_have_a_norm_each(make_trainer, tmp_path, seeds, recording_logger):
    members = {"seed": seeds}
    data = TableData(SparseParity(8, 2), train_size=20, n_held_out=10, batch_size=10, members=members)
    trajectory = WeightTrajectory(EveryNSteps(2), tmp_path)
    module = MLP(8, 1, hidden=[8], members=members)
    make_trainer(max_epochs=2, callbacks=[trajectory], logger=recording_logger).fit(module, datamodule=data)
    assert trajectory.history["norm"].shape == (3, len(seeds))
    for i, step in enumerate(trajectory.snapshots()):
        kept = trajectory.snapshots()[step].values()
        norms = [norm_by_definition([value[e] for value in kept]) for e in range(len(seeds))]
        assert trajectory.history["norm"][i].tolist() == pytest.approx(norms, rel=1e-12)
    assert recording_logger.values("weights/norm") == pytest.approx(trajectory.history["norm"].mean(dim=1).tolist())
    assert {name: dims for name, (dims, _) in trajectory.record().items()} == {
        "step": ("step",),
        "norm": ("step", "member"),
    }


def test_it_may_follow_validation(fit, tmp_path):
    weights, trajectory = Weights(), WeightTrajectory(EveryValidation(), tmp_path)
    fit(weights, trajectory, num_sanity_val_steps=1)
    assert names(tmp_path) == names_of(0, 3, 6)
    assert_same(trajectory.snapshots()[3], weights.at[3])


# Weights put into a model for a while.


def test_names_are_those_of_the_plain_model(foreign, fit, tmp_path):
    plain, module = foreign.module(reseed=True), foreign.module(reseed=True)
    module.encoder = torch.compile(module.encoder, backend="eager")
    assert any("_orig_mod" in name for name in module.state_dict())
    assert list(state_of(module)) == list(plain.state_dict())
    trajectory = WeightTrajectory(EveryNSteps(6), tmp_path)
    fit(trajectory, module=plain)
    with weights_of(module, trajectory.snapshots()[6]):
        assert torch.equal(module.encoder.fc1.weight, plain.encoder.fc1.weight)
    assert not torch.equal(module.encoder.fc1.weight, plain.encoder.fc1.weight)


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("encoder.fc1.weight", "encoder.fc1.weight"),
        ("encoder._orig_mod.fc1.weight", "encoder.fc1.weight"),
        ("_forward_module.encoder._orig_mod.fc1", "encoder.fc1"),
        ("_orig_mods.x_orig_mod", "_orig_mods.x_orig_mod"),
        ("weight", "weight"),
    ],
)
def test_what_wrapping_adds_to_a_name_is_taken_away(name, plain):
    assert plain_name(name) == plain


class Awkward(LightningModule):
    """NaN, −0, integers, a shared tensor, an odd layout, a persistent buffer."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)
        self.tied = nn.Linear(3, 2, bias=False)
        self.tied.weight = self.fc.weight
        self.turned = nn.Parameter(torch.randn(4, 3).T)
        self.register_buffer("count", torch.tensor(7))
        self.register_buffer("odd", torch.tensor([-0.0, torch.nan, torch.inf, 1e-45]))
        self.register_buffer("passing", torch.ones(2), persistent=False)


def others_for(module):
    return {name: torch.full_like(value, 5) for name, value in state_of(module).items()}


@pytest.mark.parametrize("fails", [None, RuntimeError, KeyboardInterrupt])
def test_a_model_gets_its_own_weights_back_bit_for_bit(fails):
    module = Awkward()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    parameters = [id(parameter) for parameter in module.parameters()]
    with pytest.raises(fails) if fails else nullcontext(), weights_of(module, others_for(module)):
        assert all(bool((value == 5).all()) for value in module.state_dict().values())
        assert (module.passing == 1).all()
        if fails:
            raise fails
    assert_same(module.state_dict(), before)
    assert [id(parameter) for parameter in module.parameters()] == parameters
    assert module.tied.weight is module.fc.weight
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_gradients_may_be_on(foreign):
    module = foreign.module()
    with torch.enable_grad(), weights_of(module, others_for(module)):
        assert module.encoder(torch.ones(1, 4)).requires_grad
    assert module.encoder.fc1.weight.is_leaf


def test_whoever_changes_weights_within_changes_nothing(foreign):
    module = foreign.module()
    before, others = {n: v.clone() for n, v in state_of(module).items()}, others_for(module)
    with weights_of(module, others):
        module.encoder.fc1.weight.data.zero_()
    assert_same(state_of(module), before)
    assert all(bool((value == 5).all()) for value in others.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("encoder.fc2.bias"), r"expected 'encoder\.fc2\.bias' of \(2,\), found nothing"),
        (lambda w: w.update({"encoder.fc1.weight": torch.zeros(7, 4)}), r"of \(6, 4\), found \(7, 4\)"),
        (lambda w: w.update({"encoder.fc1.weight": torch.zeros(1)}), r"of \(6, 4\), found \(1,\)"),
        (lambda w: w.update({"encoder.fc1.bias": torch.tensor(0.0)}), r"of \(6,\), found \(\)"),
        (lambda w: w.clear(), "found nothing"),
    ],
)
def test_weights_that_do_not_fit_are_refused_before_anything_changes(foreign, change, message):
    module = foreign.module()
    before, others = {n: v.clone() for n, v in state_of(module).items()}, others_for(module)
    change(others)
    with pytest.raises(ValueError, match=f"weights of another step: .*{message}"), weights_of(module, others):
        pytest.fail("got in")
    assert_same(state_of(module), before)


def test_names_that_the_model_does_not_have_are_passed_over(foreign):
    module = foreign.module()
    with weights_of(module, others_for(module) | {"more": torch.zeros(3)}):
        assert float(module.encoder.fc1.bias[0].detach()) == 5


class WithExtraState(nn.Linear):
    """As torch lets a module keep what is no tensor."""

    def get_extra_state(self):
        return {"version": 3}

    def set_extra_state(self, state):
        pass


def test_a_module_may_keep_what_is_no_tensor(foreign, fit, tmp_path):
    module = foreign.module(reseed=True)
    module.encoder.fc1 = WithExtraState(4, 6)
    trajectory = WeightTrajectory(EveryNSteps(3), tmp_path)
    fit(trajectory, module=module)
    with weights_of(module, trajectory.snapshots()[0]):
        assert torch.equal(module.encoder.fc1.weight, trajectory.snapshots()[0]["encoder.fc1.weight"])


# Who looks for it.


def test_the_first_trajectory_is_found(make_trainer):
    first, second = WeightTrajectory(), WeightTrajectory(name="second")
    assert find_trajectory(make_trainer(callbacks=[Weights(), first, second]), "It") is first
    with pytest.raises(ValueError, match=r"It looks back at .*add a WeightTrajectory to the callbacks"):
        find_trajectory(make_trainer(callbacks=[Weights()]), "It")


# Two processes.


class Saves(Callback):
    """Writes what every process has measured; later than the others."""

    def __init__(self, folder, monitor):
        self.folder = folder
        self.monitor = monitor

    def on_train_end(self, trainer, pl_module):
        torch.save(self.monitor.state_dict(), self.folder / f"process_{trainer.global_rank}.pt")


def train_ours(folder, make_trainer, processes):
    members = {"seed": [0, 1]}
    data = TableData(SparseParity(8, 2), train_size=80, n_held_out=20, batch_size=32, members=members)
    comparison = SubnetworkComparison("network.hidden.0", "network.output", controls=2)
    make_trainer(
        devices=processes,
        strategy="ddp_fork" if processes > 1 else "auto",
        max_steps=12,
        default_root_dir=folder,
        callbacks=[WeightTrajectory(EveryNSteps(5)), comparison, Saves(folder, comparison)],
    ).fit(MLP(8, 1, hidden=[8], members=members), datamodule=data)
    return Snapshots(folder / "weights")


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
def test_two_processes_leave_the_files_of_one_and_look_back_at_them(make_trainer, tmp_path):
    for folder in ("one", "two"):
        write_snapshot(tmp_path / folder / "weights", 7, {"a": torch.zeros(1)})  # of an earlier run
    alone, together = (train_ours(tmp_path / name, make_trainer, n) for name, n in [("one", 1), ("two", 2)])
    assert list(alone) == list(together) == [0, 5, 10]
    for step in alone:
        for name, value in alone[step].items():
            torch.testing.assert_close(together[step][name], value, rtol=0, atol=1e-6)
    assert names(tmp_path / "two" / "weights") == names_of(0, 5, 10)
    # And both processes look back at all of them, and at the last weights.
    expected = content(tmp_path / "one" / "process_0.pt")
    assert expected["steps"].tolist() == [0, 5, 10, 12]
    for process in (0, 1):
        found = content(tmp_path / "two" / f"process_{process}.pt")
        assert torch.equal(found["steps"], expected["steps"])
        assert torch.equal(found["sets"], expected["sets"])
        for name, values in expected["values"].items():
            torch.testing.assert_close(found["values"][name], values, rtol=0, atol=1e-6, equal_nan=True)


def test_weights_of_another_run_in_the_same_directory_are_not_taken_for_ones_own(fit, tmp_path):
    trajectory = WeightTrajectory(EveryNSteps(3), tmp_path)
    fit(trajectory)
    write_snapshot(tmp_path, 3, trajectory.snapshots()[3], run="another")
    assert trajectory.snapshots()[0]
    with pytest.raises(ValueError, match="is of another run, which writes into the same directory"):
        trajectory.snapshots()[3]


def test_a_run_that_goes_on_under_another_name_loses_no_file(fit, tmp_path):
    trainer = fit(WeightTrajectory(EveryNSteps(2), tmp_path / "w"), max_epochs=1)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`")
        fit(WeightTrajectory(EveryNSteps(2), tmp_path / "w", name="others"), ckpt_path=tmp_path / "one.ckpt")
    assert {"step_0000000000.pt", "step_0000000002.pt"} <= set(names(tmp_path / "w"))


def test_every_loggers_run_has_a_folder_of_its_own(fit, tmp_path):
    for version in ("a", 3):
        trajectory = WeightTrajectory(EveryNSteps(6))
        fit(trajectory, logger=CSVLogger(tmp_path, name="mine", version=version))
        folder = tmp_path / "mine" / (version if isinstance(version, str) else f"version_{version}") / "weights"
        assert names(folder) == names_of(0, 6)


def test_a_run_that_goes_on_elsewhere_says_what_it_has_lost(fit, tmp_path):
    trainer = fit(WeightTrajectory(EveryNSteps(1), tmp_path / "w"), max_epochs=1)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    with pytest.warns(UserWarning, match="has no weights of 4 earlier steps, up to step 3"):
        fit(WeightTrajectory(EveryNSteps(1), tmp_path / "elsewhere"), ckpt_path=tmp_path / "one.ckpt")


def test_processes_that_see_another_disk_have_lost_nothing(fit, tmp_path, monkeypatch):
    trainer = fit(WeightTrajectory(EveryNSteps(1), tmp_path / "w"), max_epochs=1)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    monkeypatch.setattr(Trainer, "is_global_zero", False)
    fit(WeightTrajectory(EveryNSteps(1), tmp_path / "elsewhere"), ckpt_path=tmp_path / "one.ckpt")
