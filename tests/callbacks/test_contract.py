"""What every monitor promises: it changes nothing, measures when it is due, and survives a checkpoint.

The checks are functions; they are applied to every monitor that is exported, and to careless ones that have to fail.
"""

import importlib
import inspect
import pickle
import pkgutil
import random
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

import grok_callbacks
from grok_callbacks import (
    AtEnd,
    Convergence,
    EveryNSteps,
    FourierLogitSplitter,
    LearningCurves,
    LogSpaced,
    Monitor,
    NeuronNormTracker,
    Onset,
    ParameterNorm,
    ParityCircuits,
    Replay,
    ShrinkAccuracy,
    Snapshots,
    SparseSubnetworkExtractor,
    SubnetworkComparison,
    WeightTrajectory,
)
from grok_lightning.data import TableData
from grok_lightning.modules import MLP, Transformer
from grok_lightning.tasks import ModularArithmetic, SparseParity

THEIR_CURVES = {"train_accuracy": "train_acc", "held_out_accuracy": "val_acc"}

# For every exported monitor: how to make one for somebody else's module, and one for ours.
EXAMPLES = {
    Convergence: {
        "foreign": lambda: Convergence(EveryNSteps(2)),
        "ours": Convergence,
    },
    NeuronNormTracker: {
        "foreign": lambda: NeuronNormTracker("encoder.fc1", "product", "encoder.fc2", schedule=LogSpaced(8)),
        "ours": lambda: NeuronNormTracker("network.hidden.0", schedule=EveryNSteps(3)),
    },
    LearningCurves: {
        "foreign": lambda: LearningCurves(**THEIR_CURVES, held_out_loss="val_loss"),
        "ours": LearningCurves,
    },
    Onset: {
        "foreign": lambda: Onset(**THEIR_CURVES, generalised_from=0.5, dwell=6),
        "ours": lambda: Onset(memorised_above=0.5, generalised_from=0.5, dwell=4),
    },
    ShrinkAccuracy: {
        "foreign": lambda: ShrinkAccuracy(EveryNSteps(2), network="encoder"),
        "ours": ShrinkAccuracy,
    },
    SparseSubnetworkExtractor: {
        "foreign": lambda: SparseSubnetworkExtractor(
            "encoder.fc1", "encoder.fc2", schedule=EveryNSteps(2), network="encoder"
        ),
        "ours": lambda: SparseSubnetworkExtractor("network.hidden.0", "network.output", "accuracy", LogSpaced(6)),
    },
    WeightTrajectory: {
        "foreign": lambda: WeightTrajectory(EveryNSteps(4)),
        "ours": lambda: WeightTrajectory(LogSpaced(6)),
    },
    SubnetworkComparison: {
        "foreign": lambda: SubnetworkComparison("encoder.fc1", "encoder.fc2", network="encoder", controls=3),
        "ours": lambda: SubnetworkComparison("network.hidden.0", "network.output", choose="median", sensitive_rows=5),
    },
    ParameterNorm: {
        "foreign": lambda: ParameterNorm(EveryNSteps(2)),
        "ours": lambda: ParameterNorm(LogSpaced(6)),
    },
    ParityCircuits: {
        "foreign": lambda: ParityCircuits(
            "encoder.net.fc1", "encoder.net.fc2", secret=[2, 0, 3], schedule=EveryNSteps(2), network="encoder.net"
        ),
        "ours": lambda: ParityCircuits("network.hidden.0", "network.output", rule="accuracy", schedule=LogSpaced(6)),
    },
    FourierLogitSplitter: {
        "foreign": lambda: FourierLogitSplitter(
            5, layout="a b", network="encoder", layer="encoder.fc1", next_layer="encoder.fc2", schedule=EveryNSteps(3)
        ),
        "ours": lambda: FourierLogitSplitter(
            5,
            "divide",
            embedding="network.embed",
            layer="network.layers.0.mlp_in",
            next_layer="network.layers.0.mlp_out",
            schedule=LogSpaced(6),
        ),
    },
}

KEPT = EveryNSteps(5)

# Monitors that look back need weights to look back at.
COMPANIONS = {SubnetworkComparison: lambda: [WeightTrajectory(KEPT)]}

# Who measures what cannot be had for weights that were kept, and why not.
NOT_FROM_WEIGHTS = {
    (LearningCurves, "foreign"): "a foreign module's metrics exist only at its own validations",
    (Onset, "foreign"): "likewise",
    (Convergence, "foreign"): "kept weights took no steps: the time of their decay is unknown, as its own test says",
    (Convergence, "ours"): "likewise",
}


def with_companions(monitor):
    return [*COMPANIONS.get(type(monitor), list)(), monitor]


def exported():
    """Every monitor that the package offers, found by looking."""
    found = [getattr(grok_callbacks, name) for name in grok_callbacks.__all__]
    found = [value for value in found if inspect.isclass(value) and issubclass(value, Monitor)]
    return [value for value in found if not inspect.isabstract(value)]


def defined():
    """Every monitor that stands in a file of the package."""
    found = set()
    for info in pkgutil.walk_packages(grok_callbacks.__path__, "grok_callbacks."):
        for value in vars(importlib.import_module(info.name)).values():
            if inspect.isclass(value) and issubclass(value, Monitor) and not inspect.isabstract(value):
                found.add(value)
    return found


def test_every_monitor_is_exported_and_has_an_example():
    assert set(exported()) == defined()
    missing = [monitor.__name__ for monitor in exported() if monitor not in EXAMPLES]
    assert not missing, f"EXAMPLES has none for {missing}"
    assert set(EXAMPLES) == set(exported())
    assert set(COMPANIONS) | {monitor for monitor, _ in NOT_FROM_WEIGHTS} <= set(exported())


# A setting makes a fresh module and the arguments of fit: the same ones each time.


@dataclass(frozen=True)
class Setting:
    name: str
    make_trainer: Any
    make: Any  # () -> (module, keyword arguments of fit)
    make_resumable: Any  # the same, where what is drawn in training depends on the step alone
    steps_per_epoch: int
    measures_itself_at_0: bool

    def fit(self, *callbacks, resumable=False, ckpt_path=None, **options):
        torch.manual_seed(0)
        module, data = self.make_resumable() if resumable else self.make()
        trainer = self.make_trainer(**({"max_epochs": 6, "callbacks": list(callbacks)} | options))
        trainer.fit(module, **data, ckpt_path=ckpt_path)
        return trainer, module


def foreign_setting(make_trainer, foreign):
    """A loader that shuffles with a generator of its own, and dropout that draws from the global one."""

    def make(reseed=False, shuffle=True):
        loaders = {"train_dataloaders": foreign.train_loader(shuffle=shuffle), "val_dataloaders": foreign.val_loader()}
        return foreign.module(reseed=reseed), loaders

    return Setting("foreign", make_trainer, make, partial(make, reseed=True, shuffle=False), 3, False)


def our_setting(make_trainer):
    """Two members, four batches an epoch."""

    def make():
        members = {"seed": [0, 1]}
        data = TableData(SparseParity(8, 2), train_size=40, n_held_out=30, batch_size=10, members=members)
        return MLP(8, 1, hidden=[8], optimizer=partial(SGD, lr=0.1), members=members), {"datamodule": data}

    return Setting("ours", make_trainer, make, make, 4, True)


def foreign_modular_setting(make_trainer, foreign):
    """Addition modulo 5 in somebody else's project, in batches as long as an epoch of the other one."""
    pairs = torch.cartesian_prod(torch.arange(5), torch.arange(5))[torch.arange(15) * 7 % 25]

    def make(reseed=False, shuffle=True):
        module = foreign.module(reseed=reseed)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            layers = {"embed": nn.Embedding(5, 3), "flat": nn.Flatten(), "fc1": nn.Linear(6, 8), "act": nn.ReLU()}
            layers |= {"drop": nn.Dropout(0.5), "fc2": nn.Linear(8, 5)}
            module.encoder = nn.Sequential(OrderedDict(layers))
        rows = TensorDataset(pairs, pairs.sum(dim=1) % 5)
        generator = torch.Generator().manual_seed(3)
        loader = DataLoader(rows, batch_size=5, shuffle=shuffle, generator=generator)
        return module, {"train_dataloaders": loader, "val_dataloaders": DataLoader(rows, batch_size=5)}

    return Setting("foreign", make_trainer, make, partial(make, reseed=True, shuffle=False), 3, False)


def foreign_parity_setting(make_trainer, foreign):
    """The parity of three bits of five in somebody else's project: one logit, beside which there is a 0."""
    bits = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 5)[torch.arange(24) * 7 % 32]

    def make(reseed=False, shuffle=True):
        module = foreign.module(reseed=reseed)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            layers = {"fc1": nn.Linear(5, 8), "act": nn.ReLU(), "drop": nn.Dropout(0.5), "fc2": nn.Linear(8, 1)}
            net = nn.Sequential(OrderedDict(layers))
            module.encoder = nn.Sequential(OrderedDict(net=net, pad=nn.ConstantPad1d((1, 0), 0.0)))
        rows = TensorDataset(bits, (bits[:, [2, 0, 3]].prod(dim=1) > 0).long())
        generator = torch.Generator().manual_seed(3)
        loader = DataLoader(rows, batch_size=8, shuffle=shuffle, generator=generator)
        return module, {"train_dataloaders": loader, "val_dataloaders": DataLoader(rows, batch_size=8)}

    return Setting("foreign", make_trainer, make, partial(make, reseed=True, shuffle=False), 3, False)


def our_modular_setting(make_trainer):
    """Division modulo 5 by two members, four batches an epoch."""

    def make():
        members = {"seed": [0, 1]}
        data = TableData(ModularArithmetic("divide", 5), train_size=12, batch_size=3, members=members)
        sizes = {"d_model": 8, "n_heads": 2, "d_mlp": 6, "optimizer": partial(SGD, lr=0.5), "scheduler": None}
        return Transformer(4, 7, 5, **sizes, members=members), {"datamodule": data}

    return Setting("ours", make_trainer, make, make, 4, True)


# Monitors that look at modular arithmetic alone.
MODULAR = (FourierLogitSplitter,)


# Those that look at the parity of bits alone.
PARITY = (ParityCircuits,)


def setting_of(name, make_trainer, foreign, monitor=None):
    if name == "foreign":
        make = foreign_modular_setting if monitor in MODULAR else foreign_setting
        make = foreign_parity_setting if monitor in PARITY else make
        return make(make_trainer, foreign)
    return (our_modular_setting if monitor in MODULAR else our_setting)(make_trainer)


@pytest.fixture(params=["foreign", "ours"])
def setting(request, make_trainer, foreign):
    monitor = request.node.callspec.params.get("monitor")
    return setting_of(request.param, make_trainer, foreign, monitor)


# The checks. Each raises AssertionError with what is wrong.


def check_changes_nothing(setting, make_callback):
    """Weights, random state and modes after training are those of the training without the callback."""
    outcomes = []
    for callbacks in ([], with_companions(make_callback())):
        trainer, module = setting.fit(*callbacks)
        random = torch.get_rng_state()
        outcomes.append((trainer, module.state_dict(), random, [m.training for m in module.modules()]))
    (trainer, weights, random, modes), (watched, watched_weights, watched_random, watched_modes) = outcomes
    assert trainer.global_step == watched.global_step == 6 * setting.steps_per_epoch
    assert list(weights) == list(watched_weights)
    for name, weight in weights.items():
        assert torch.equal(weight, watched_weights[name]), f"changed {name}"
    assert torch.equal(random, watched_random), "drew from the global random generator"
    assert modes == watched_modes, "left modules in another mode"


class Validations(Callback):
    """At which steps Lightning validated."""

    def __init__(self):
        self.steps = []

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.steps.append(trainer.global_step)


def expected_steps(setting, monitor, validations, last_step):
    if monitor.schedule.at_validation:
        return [0] * setting.measures_itself_at_0 + validations.steps
    if monitor.schedule == AtEnd():  # what was kept, and the last step in any case
        return sorted({*filter(KEPT.due, range(last_step)), last_step})
    return [step for step in range(last_step + 1) if monitor.schedule.due(step)]


def check_measures_when_due(setting, make_callback):
    """Measured steps are those of the schedule; every array has one entry for each."""
    for options in ({"num_sanity_val_steps": 1}, {"check_val_every_n_epoch": 2}):
        monitor, validations = make_callback(), Validations()
        trainer, _ = setting.fit(*with_companions(monitor), validations, **options)
        expected = expected_steps(setting, monitor, validations, trainer.global_step)
        assert len(expected) >= 3, "the example measures too rarely to see anything"
        assert monitor.steps.tolist() == expected, f"measured at {monitor.steps.tolist()}, due at {expected}"
        for name, values in monitor.history.items():
            assert len(values) == len(expected), f"{name} has {len(values)} entries for {len(expected)} steps"


def equal_arrays(a, b):
    """Compare ``{name: Tensor}``, NaN equal to itself."""
    assert list(a) == list(b), f"arrays {list(a)} and {list(b)}"
    for name, values in a.items():
        torch.testing.assert_close(values, b[name], rtol=0, atol=0, equal_nan=True, msg=f"{name} differs")


def check_resumes(setting, make_callback, tmp_path):
    """Six epochs leave what four and two more leave; the state is one that a careful loader takes."""
    path = tmp_path / f"{setting.name}.ckpt"
    whole, before, after = make_callback(), make_callback(), make_callback()
    _, module = setting.fit(*with_companions(whole), resumable=True)
    trainer, _ = setting.fit(*with_companions(before), resumable=True, max_epochs=4)
    trainer.save_checkpoint(path)
    _, resumed = setting.fit(*with_companions(after), resumable=True, ckpt_path=path)
    equal_arrays(dict(module.named_parameters()), dict(resumed.named_parameters()))  # or nothing could be compared
    saved = torch.load(path, weights_only=True)["callbacks"]
    assert whole.state_key in saved, "has no state"
    assert len(before.steps) < len(whole.steps), "the example measures nothing after the checkpoint"
    assert after.steps.tolist() == whole.steps.tolist(), f"steps {after.steps.tolist()}, not {whole.steps.tolist()}"
    equal_records(after, whole)


def equal_records(a, b):
    """The same history, and the same record with the same dimensions."""
    assert a.steps.tolist() == b.steps.tolist(), f"steps {a.steps.tolist()}, not {b.steps.tolist()}"
    equal_arrays(a.history, b.history)
    record, expected = a.record(), b.record()
    assert {n: dims for n, (dims, _) in record.items()} == {n: dims for n, (dims, _) in expected.items()}
    equal_arrays({n: values for n, (_, values) in record.items()}, {n: values for n, (_, values) in expected.items()})


class TurnsWeights(Callback):
    """Makes another training of one: other weights from the start."""

    def on_fit_start(self, trainer, pl_module):
        for parameter in pl_module.parameters():
            parameter.data.copy_(-2 * parameter.data.flip(-1))


def check_starts_again(setting, make_callback):
    """An object that is given to a second run has what that run alone leaves, and no state of the first."""
    twice, once = make_callback(), make_callback()
    setting.fit(TurnsWeights(), *with_companions(twice))
    first = {name: values.clone() for name, (_, values) in twice.record().items()}
    setting.fit(*with_companions(once))
    setting.fit(*with_companions(twice))
    assert any(not torch.equal(values, once.record()[name][1]) for name, values in first.items()), "runs do not differ"
    equal_records(twice, once)


def check_looks_back(setting, make_callback, tmp_path):
    """Looking back at kept weights gives what was measured in training, and leaves the model as it is."""
    monitor, kept = make_callback(), WeightTrajectory(EveryNSteps(1), tmp_path / "kept", name="kept")
    trainer, module = setting.fit(kept, monitor)
    if setting.name == "ours":  # somebody opens the run later
        torch.manual_seed(1)
        module, data = setting.make()
        module.configure_model()
        trainer = Replay(module, data["datamodule"])
    snapshots = {step: kept.snapshots()[step] for step in monitor.steps.tolist()}
    looked, random = make_callback(), torch.get_rng_state()
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    modes = [part.training for part in module.modules()]
    looked.look_back(trainer, module, Snapshots(tmp_path / "nowhere", snapshots))
    assert len(looked.steps) >= 3
    equal_records(looked, monitor)
    equal_arrays(module.state_dict(), weights)
    assert torch.equal(torch.get_rng_state(), random), "drew from the global random generator"
    assert [part.training for part in module.modules()] == modes, "left modules in another mode"


# Monitors that keep the promise.


@pytest.mark.parametrize("monitor", exported())
def test_it_changes_nothing(setting, monitor):
    check_changes_nothing(setting, EXAMPLES[monitor][setting.name])


@pytest.mark.parametrize("monitor", exported())
def test_it_measures_exactly_when_it_is_due(setting, monitor):
    check_measures_when_due(setting, EXAMPLES[monitor][setting.name])


@pytest.mark.parametrize("monitor", exported())
def test_four_epochs_and_two_more_are_six(setting, monitor, tmp_path):
    check_resumes(setting, EXAMPLES[monitor][setting.name], tmp_path)


@pytest.mark.parametrize("monitor", exported())
def test_a_checkpoint_in_the_middle_of_an_epoch_is_as_good(make_trainer, monitor, tmp_path):
    """Where batches are a function of the step: before the validation that belongs to the step, and between two."""
    setting = setting_of("ours", make_trainer, None, monitor)
    for step in (6, 8):
        path = tmp_path / f"{step}.ckpt"
        whole, after = EXAMPLES[monitor]["ours"](), EXAMPLES[monitor]["ours"]()
        setting.fit(*with_companions(whole), SavesAt(step, path))
        setting.fit(*with_companions(after), ckpt_path=path)
        assert after.steps.tolist() == whole.steps.tolist()
        equal_arrays(after.history, whole.history)


@pytest.mark.parametrize("monitor", exported())
def test_an_object_that_is_given_to_a_second_run_starts_again(setting, monitor):
    check_starts_again(setting, EXAMPLES[monitor][setting.name])


@pytest.mark.parametrize("monitor", exported())
def test_looking_back_gives_what_was_measured_in_training(setting, monitor, tmp_path):
    if (monitor, setting.name) in NOT_FROM_WEIGHTS:
        pytest.skip(NOT_FROM_WEIGHTS[monitor, setting.name])
    check_looks_back(setting, EXAMPLES[monitor][setting.name], tmp_path)


@pytest.mark.parametrize("monitor", [LearningCurves, Onset])
def test_what_cannot_be_looked_back_at_is_refused_rather_than_invented(setting, monitor, tmp_path):
    """The Trainer that has trained stands at the last step, and so do the metrics that it has."""
    kept, trained = WeightTrajectory(EveryNSteps(1), tmp_path / "kept"), EXAMPLES[monitor][setting.name]()
    trainer, module = setting.fit(kept, trained)
    looked = EXAMPLES[monitor][setting.name]()
    snapshots = {step: kept.snapshots()[step] for step in trained.steps.tolist()}
    try:
        looked.look_back(trainer, module, Snapshots(tmp_path / "nowhere", snapshots))
    except ValueError:
        return
    equal_records(looked, trained)


class SavesAt(Callback):
    def __init__(self, step, path):
        self.step = step
        self.path = path

    def on_train_batch_end(self, trainer, pl_module, *args):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("monitor", exported())
def test_its_arrays_have_the_dimensions_that_it_names(setting, monitor):
    monitor = EXAMPLES[monitor][setting.name]()
    setting.fit(*with_companions(monitor))
    members = 2 if setting.name == "ours" else 1
    assert monitor.history
    for name, values in monitor.history.items():
        assert values.shape[:2] == (len(monitor.steps), members)
        assert values.ndim == 2 + len(monitor.dims[name])
    for name, (dims, values) in monitor.record().items():
        assert len(dims) == values.ndim, name
        for dim, size in zip(dims, values.shape, strict=True):
            if dim in monitor.labels:
                assert len(monitor.labels[dim]) == size
            assert size == members or dim != "member"


@pytest.mark.parametrize("monitor", exported())
def test_its_attributes_are_strings_and_numbers(monitor):
    attributes = EXAMPLES[monitor]["foreign"]().attributes()
    assert all(isinstance(value, str | int | float) for value in attributes.values())


# Careless ones, which the checks have to catch.


class Careless(Monitor):
    """Measures one number without looking at anything; the base of those that do something wrong."""

    dims = {"one": ()}  # noqa: RUF012 - a constant

    def __init__(self):
        super().__init__(EveryNSteps(2), "careless")

    def measure(self, trainer, pl_module):
        members = getattr(pl_module, "n_members", 1)
        return {"one": torch.full((members,), float(trainer.global_step))}


class DrawsEachBatch(Callback):
    def on_train_batch_end(self, *args):
        torch.rand(1)


class IteratesTheLoader(Callback):
    """Even with the global generator put back."""

    def on_train_batch_end(self, trainer, *args):
        with torch.random.fork_rng():
            next(iter(trainer.train_dataloader))


class IteratesTheLoaderWhileMeasuring(Careless):
    def measure(self, trainer, pl_module):
        next(iter(trainer.train_dataloader))
        return super().measure(trainer, pl_module)


class LeavesEvalMode(Careless):
    """Behind the back of the base."""

    def on_train_batch_end(self, trainer, pl_module, *args):
        super().on_train_batch_end(trainer, pl_module, *args)
        pl_module.eval()


class LeavesEvalModeAtTheEnd(Careless):
    """Too late to change a weight."""

    def on_train_end(self, trainer, pl_module):
        pl_module.eval()


class MovesWeights(Careless):
    def measure(self, trainer, pl_module):
        for parameter in pl_module.parameters():
            parameter.mul_(1.001)
        return super().measure(trainer, pl_module)


class AddsToGradients(Careless):
    """An intervention in a monitor's clothes."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        for parameter in pl_module.parameters():
            if parameter.grad is not None:
                parameter.grad.add_(0.01)


class DrawsWhileMeasuring(Careless):
    def measure(self, trainer, pl_module):
        torch.rand(3)
        return super().measure(trainer, pl_module)


class DrawsFromOtherGenerators(Careless):
    """As datasets do that augment their rows."""

    def measure(self, trainer, pl_module):
        random.random()
        np.random.rand()
        return super().measure(trainer, pl_module)


class EvaluatesWhileMeasuring(Careless):
    def measure(self, trainer, pl_module):
        pl_module.eval()
        return super().measure(trainer, pl_module)


class ForgetsItsState(Careless):
    def load_state_dict(self, state_dict):
        """Forget."""


class MixesUpItsState(Careless):
    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict | {"values": {n: v.flip(0) for n, v in state_dict["values"].items()}})


class KeepsAnObject(Careless):
    """A state that is no plain tensor."""

    def state_dict(self):
        return super().state_dict() | {"schedule": self.schedule}


class CountsCalls(Careless):
    """A value that depends on the process rather than on the weights."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def measure(self, trainer, pl_module):
        self.calls += 1
        return {name: value + self.calls for name, value in super().measure(trainer, pl_module).items()}


class MeasuresLate(Careless):
    def on_train_batch_end(self, trainer, pl_module, *args):
        if trainer.global_step % 3 == 0:
            self._measure(trainer, pl_module)


class MissesTheInitialWeights(Careless):
    def on_train_start(self, *args):
        """Miss."""


class MeasuresAtValidationsToo(Careless):
    def __init__(self):
        super().__init__()
        self.schedule = EveryNSteps(5)

    def on_validation_end(self, trainer, pl_module):
        self._measure(trainer, pl_module)


def fails(match=None):
    return pytest.raises(AssertionError, match=match)


@pytest.mark.parametrize(
    ("careless", "match"),
    [
        (DrawsEachBatch, "changed encoder"),
        (IteratesTheLoader, "changed encoder"),
        (IteratesTheLoaderWhileMeasuring, "changed encoder"),
        (LeavesEvalMode, "changed encoder"),
        (LeavesEvalModeAtTheEnd, "left modules in another mode"),
        (MovesWeights, "changed encoder"),
        (AddsToGradients, "changed encoder"),
    ],
)
def test_what_changes_a_foreign_training_is_caught(make_trainer, foreign, careless, match):
    with fails(match):
        check_changes_nothing(foreign_setting(make_trainer, foreign), careless)


@pytest.mark.parametrize(
    ("careless", "match"),
    [
        (DrawsEachBatch, "drew from the global random generator"),
        (LeavesEvalMode, "left modules in another mode"),
        (MovesWeights, "changed network"),
        (AddsToGradients, "changed network"),
    ],
)
def test_what_changes_our_training_is_caught(make_trainer, careless, match):
    with fails(match):
        check_changes_nothing(our_setting(make_trainer), careless)


def test_our_loader_may_be_iterated_by_anybody(make_trainer):
    check_changes_nothing(our_setting(make_trainer), IteratesTheLoader)


def test_the_generators_of_python_and_numpy_are_put_back(setting):
    before = random.getstate(), np.random.get_state()[1].tolist()
    setting.fit(DrawsFromOtherGenerators())
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


@pytest.mark.parametrize("guarded", [Careless, DrawsWhileMeasuring, EvaluatesWhileMeasuring])
def test_what_the_base_guards_against_changes_nothing(setting, guarded):
    check_changes_nothing(setting, guarded)


@pytest.mark.parametrize("careless", [MeasuresLate, MissesTheInitialWeights, MeasuresAtValidationsToo])
def test_a_monitor_that_measures_at_other_steps_is_caught(setting, careless):
    check_measures_when_due(setting, Careless)
    with fails("due at"):
        check_measures_when_due(setting, careless)


@pytest.mark.parametrize(
    ("careless", "match"), [(ForgetsItsState, "steps"), (MixesUpItsState, "differs"), (CountsCalls, "differs")]
)
def test_a_monitor_that_forgets_is_caught(setting, careless, match, tmp_path):
    check_resumes(setting, Careless, tmp_path)
    with fails(match):
        check_resumes(setting, careless, tmp_path)


class KeepsFromTheFirstRun(Careless):
    """A memory that a second run does not clear."""

    def __init__(self):
        super().__init__()
        self.weights = {}

    def measure(self, trainer, pl_module):
        step, weights = trainer.global_step, next(iter(pl_module.parameters()))
        value = self.weights.setdefault(step, weights.square().sum().clone())
        return {"one": super().measure(trainer, pl_module)["one"] * value}


class KeepsWhatItFound(Careless):
    """Something that it derives from its history."""

    found = None

    def measure(self, trainer, pl_module):
        weights = next(iter(pl_module.parameters()))
        return {"one": super().measure(trainer, pl_module)["one"] + weights.square().sum()}

    def record(self):
        if self.found is None or len(self.found["one"][1]) != len(self.steps):
            self.found = super().record()
        return self.found


@pytest.mark.parametrize("careless", [KeepsFromTheFirstRun, KeepsWhatItFound])
def test_a_monitor_that_remembers_an_earlier_run_is_caught(setting, careless):
    with fails("differs"):
        check_starts_again(setting, careless)


def test_runs_that_do_not_differ_would_show_nothing(setting):
    with fails("runs do not differ"):
        check_starts_again(setting, Careless)


class AsksTheTrainer(Careless):
    """For a step at which it does not stand, or for what the logged metrics were."""

    def measure(self, trainer, pl_module):
        members = getattr(pl_module, "n_members", 1)
        return {"one": torch.full((members,), float(trainer.fit_loop.epoch_loop.total_batch_idx))}


class LeavesOtherWeights(Careless):
    def look_back(self, trainer, pl_module, snapshots):
        super().look_back(trainer, pl_module, snapshots)
        pl_module.load_state_dict(snapshots[self._steps[1]])


class LooksAtTheLastWeightsOnly(Careless):
    def measure(self, trainer, pl_module):
        return {"one": super().measure(trainer, pl_module)["one"] * 0 + next(iter(pl_module.parameters())).sum()}

    def look_back(self, trainer, pl_module, snapshots):
        for step in snapshots:
            self._take(trainer, pl_module, step)


@pytest.mark.parametrize("careless", [AsksTheTrainer, LeavesOtherWeights, LooksAtTheLastWeightsOnly])
def test_a_monitor_that_does_not_look_back_at_the_weights_is_caught(setting, careless, tmp_path):
    with fails("differs"):
        check_looks_back(setting, careless, tmp_path)


def test_a_state_that_a_careful_loader_refuses_is_caught(setting, tmp_path):
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        check_resumes(setting, KeepsAnObject, tmp_path)
