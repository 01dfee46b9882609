"""What is said of memory before training begins is what training then takes, and saying it changes nothing."""

import copy
import gc
import math
import re
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import xarray as xr
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from grok_callbacks import (
    AtEnd,
    EveryNSteps,
    EveryValidation,
    LearningCurves,
    LogSpaced,
    Monitor,
    NeuronNormTracker,
    Onset,
    ParameterNorm,
    Schedule,
)
from grok_lightning import (
    MLP,
    LastCheckpoint,
    MemoryEstimate,
    ModularArithmetic,
    OnlineData,
    Recorder,
    SparseParity,
    TableData,
    Transformer,
    memory,
    report,
)
from grok_lightning.cli import main
from grok_lightning.memory import Cadence, History, StepMemory, copies_of_histories, host_memory
from grok_lightning.modules import GrokModule
from grok_lightning.modules.mlp import paper_sgd
from grok_lightning.optim import ELEMENTWISE


def members(n):
    return {"seed": list(range(n))}


def mlp(n=3, hidden=(8,), **options):
    return MLP(n_inputs=6, hidden=hidden, members=members(n), **options)


def parity(n=3, **options):
    return TableData(SparseParity(6, 2), **({"train_size": 40, "n_held_out": 20, "members": members(n)} | options))


def transformer(n=3, n_layers=1, **options):
    sizes = {"d_model": 8, "n_heads": 2, "d_mlp": 12}
    return Transformer(n_tokens=13, n_outputs=11, n_layers=n_layers, members=members(n), **(sizes | options))


def addition(n=3, train_size=100, **options):
    return TableData(
        ModularArithmetic(p=11), train_size=train_size, n_held_out=None, batch_size=None, members=members(n), **options
    )


def bytes_in(state):
    """Bytes of all tensors in what a checkpoint would hold."""
    if isinstance(state, torch.Tensor):
        return state.numel() * state.element_size()
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else []
    return sum(bytes_in(part) for part in parts)


def told(warned):
    """The only warning of ours among those that were caught."""
    (text,) = {str(warning.message) for warning in warned if str(warning.message).startswith("memory: ")}
    return text


@pytest.fixture
def lines(monkeypatch):
    """What is said, line by line."""
    said = []
    monkeypatch.setattr(memory, "rank_zero_info", said.append)
    return said


@pytest.fixture
def host(monkeypatch):
    """A machine with as many bytes of memory as one says."""
    there = {"bytes": 10**12}
    monkeypatch.setattr(memory, "host_memory", lambda: there["bytes"])
    return there


class ActivationsKept(Callback):
    """Counts what autograd keeps of the training steps of a run, and what it keeps it of."""

    def on_train_start(self, trainer, pl_module):
        step = pl_module.training_step
        self.sizes = []

        def counted(batch, batch_idx):
            kept = []
            with saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
                loss = step(batch, batch_idx)
            known = [*pl_module.parameters(), *pl_module.buffers(), batch.inputs, batch.targets, batch.weights]
            apart = {tensor.untyped_storage().data_ptr() for tensor in known if tensor is not None}
            sizes = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in kept}
            self.sizes.append(sum(size for place, size in sizes.items() if place not in apart))
            return loss

        pl_module.training_step = counted


# ---- a step ----------------------------------------------------------------------------------------------------------

OPTIMIZERS = [
    *((kind, {}) for kind in ELEMENTWISE),
    (torch.optim.SGD, {"momentum": 0.9}),
    (torch.optim.SGD, {"fused": True}),
    (torch.optim.Adam, {"amsgrad": True}),
    (torch.optim.AdamW, {"fused": True}),
    (torch.optim.RMSprop, {"momentum": 0.9, "centered": True}),
    (torch.optim.Adafactor, {}),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("kind", "options"), OPTIMIZERS, ids=str)
def test_what_an_optimizer_keeps_is_what_is_in_its_state_after_a_step(kind, options, dtype):
    parameters = [nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in [(3, 8, 6), (3, 8), (3, 8), (1,), ()]]
    parameters.append(nn.Parameter(torch.randn(4), requires_grad=False))
    optimizer = kind([{"params": parameters[:2], "lr": 0.01}, {"params": parameters[2:]}], **({"lr": 0.1} | options))
    before = copy.deepcopy((parameters, optimizer.state_dict()))
    expected = memory.optimizer_bytes(optimizer)
    assert str((parameters, optimizer.state_dict())) == str(before)
    assert all(parameter.grad is None for parameter in parameters)
    for parameter in parameters[:-1]:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    assert expected == bytes_in(optimizer.state_dict()["state"])
    assert memory.optimizer_bytes(optimizer) == expected, "what is there already is counted as it is"


def test_what_an_optimizer_keeps_is_unknown_where_it_cannot_be_tried():
    class Particular(torch.optim.SGD):
        def __init__(self, parameters, model):
            super().__init__(parameters, lr=0.1)

    parameters = [nn.Parameter(torch.ones(2))]
    assert memory.optimizer_bytes(torch.optim.LBFGS(parameters)) is None
    assert memory.optimizer_bytes(Particular(parameters, model=None)) is None


def fitted(make_trainer, module, data, steps=1, callbacks=(), **options):
    estimate = MemoryEstimate()
    trainer = make_trainer(max_steps=steps, max_epochs=-1, callbacks=[*callbacks, estimate], **options)
    trainer.fit(module, datamodule=data)
    return estimate, trainer


@pytest.mark.parametrize("precision", ["32-true", "64-true"])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("kind", [mlp, transformer])
def test_parameters_gradients_and_the_optimizer_are_those_of_a_step(make_trainer, lines, kind, n, precision):
    module = kind(n, optimizer=torch.optim.Adam)
    gradients = []

    class Gradients(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            gradients.append(bytes_in([parameter.grad for parameter in pl_module.parameters()]))

    data = parity(n) if kind is mlp else addition(n)
    estimate, trainer = fitted(make_trainer, module, data, callbacks=[Gradients()], precision=precision)
    size = bytes_in(list(module.parameters()))
    assert next(module.parameters()).element_size() == (8 if precision == "64-true" else 4)
    assert estimate.step.parameters == size
    assert estimate.step.gradients == gradients[0] == size
    assert estimate.step.optimizer == bytes_in(trainer.optimizers[0].state_dict()["state"])
    assert estimate.step.there == 0


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed"])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize(
    ("make", "data", "slack"),
    [
        (mlp, parity, 0),
        (lambda n: mlp(n, hidden=(30, 5), bias=False, activation="gelu"), lambda n: parity(n, batch_size=20), 0),
        (lambda n: mlp(n, loss="squared"), lambda n: parity(n, batch_size=8), 0),
        (transformer, addition, 0),
        (lambda n: transformer(n, layer_norm=True, activation="gelu"), addition, 0),
        # Several layers copy what has another memory layout, which few rows have not.
        (lambda n: transformer(n, n_layers=3), addition, 0.05),
    ],
    ids=["mlp", "deep mlp", "minibatch", "transformer", "normed transformer", "deep transformer"],
)
@pytest.mark.parametrize("trial", [1, memory.TRIAL], ids=["by proportion", "on all rows"])
def test_activations_are_what_autograd_keeps_of_a_step(
    make_trainer, lines, monkeypatch, make, data, slack, n, precision, trial
):
    monkeypatch.setattr(memory, "TRIAL", trial)
    kept = ActivationsKept()
    # Counted from a training that the estimate has begun before.
    estimate, _ = fitted(make_trainer, make(n), data(n), callbacks=[kept], precision=precision)
    assert kept.sizes[0] > 0
    assert estimate.step.activations == pytest.approx(kept.sizes[0], rel=slack if trial == 1 else 0)


def test_activations_of_members_in_groups_are_fewer_than_the_estimate(make_trainer, lines):
    sizes = {"seed": [0, 1, 2], "train_size": [1000, 20, 30]}
    module = MLP(n_inputs=40, hidden=[1000], members=sizes)
    data = TableData(SparseParity(40, 3), batch_size=None, members=sizes)
    kept = ActivationsKept()
    estimate, _ = fitted(make_trainer, module, data, callbacks=[kept])
    assert kept.sizes[0] < 0.6 * estimate.step.activations, "they are computed in groups"
    assert estimate.step.activations == pytest.approx(3 * 1000 * 1001 * 4, rel=0.01), "padded to the longest"


@pytest.mark.parametrize("n_rows", [1, 15, 16, 17, 31, 32, 33, 1000, 10_007])
@pytest.mark.parametrize(("constant", "each"), [(0, 36), (1000, 7), (10**6, 10**5), (5, 0), (0, 0)])
def test_a_proportion_is_exact_where_every_row_takes_the_same(monkeypatch, n_rows, constant, each):
    tried = {}

    def saved(rows):
        tried[rows] = constant + each * rows
        return tried[rows]

    monkeypatch.setattr(memory, "TRIAL", 4000)
    assert memory.saved_in_proportion(saved, n_rows) == constant + each * n_rows
    assert max(tried) <= n_rows
    assert all(rows <= 32 or size <= 4000 + constant for rows, size in tried.items()), "what is tried is small"


def test_a_network_that_does_not_run_on_few_rows_is_unknown_and_trains(make_trainer, lines):
    class Picky(nn.Linear):
        def forward(self, inputs):
            if len(inputs) < 40:
                raise RuntimeError("too few")
            return super().forward(inputs)

    class OwnModule(GrokModule):
        def build_network(self, generators):
            return Picky(6, 1)

    module = OwnModule("hinge", paper_sgd, None, members(1))
    estimate, trainer = fitted(make_trainer, module, parity(1, batch_size=None), limit_val_batches=0)
    assert estimate.step.activations is None
    assert "activations unknown" in lines[0]
    assert trainer.global_step == 1


def test_rows_are_the_tables_and_the_batches(make_trainer, lines):
    row = 6 * 4 + 4  # six numbers and a label, float32
    estimate, _ = fitted(make_trainer, mlp(), parity(batch_size=None))
    assert estimate.step.rows == 3 * (40 + 20) * row
    estimate, _ = fitted(make_trainer, mlp(), parity(batch_size=8))
    assert estimate.step.rows == 3 * (40 + 20 + 40) * row, "and those trained on in the order of an epoch"
    data = OnlineData(SparseParity(6, 2), batch_size=2, n_held_out=20, members=members(3))
    estimate, _ = fitted(make_trainer, mlp(), data)
    assert estimate.step.rows == 3 * (2048 + 20) * row, "rows are drawn in blocks"


def test_of_somebody_elses_module_what_is_known_is_told(make_trainer, foreign, lines, host):
    module, estimate = foreign.module(), MemoryEstimate()
    trainer = make_trainer(max_epochs=1, callbacks=[estimate])
    trainer.fit(module, foreign.train_loader(), foreign.val_loader())
    size = (4 * 6 + 6 + 6 * 2 + 2) * 4
    assert estimate.step == StepMemory(size, size, 0, None, None)
    assert lines == ["memory: parameters 176 bytes, activations unknown; 1.0 TB free"]


def test_somebody_elses_rows_are_unknown(make_trainer, lines):
    rows = torch.utils.data.TensorDataset(torch.randn(8, 6), torch.ones(8))
    estimate = MemoryEstimate()
    loader = DataLoader(rows, batch_size=4)
    make_trainer(max_epochs=1, callbacks=[estimate]).fit(mlp(), loader, loader)
    assert estimate.step.activations is None
    assert estimate.step.rows is None


def test_buckets_of_ddp_are_counted(tmp_path):
    module = nn.Linear(3, 2)
    assert memory.gradient_bytes(module) == 8 * 4
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        assert memory.gradient_bytes(DistributedDataParallel(module)) == 2 * 8 * 4
        assert memory.gradient_bytes(DistributedDataParallel(module, gradient_as_bucket_view=True)) == 8 * 4
    finally:
        torch.distributed.destroy_process_group()
    module.weight.requires_grad_(False)
    assert memory.gradient_bytes(module) == 2 * 4


# ---- nothing is disturbed --------------------------------------------------------------------------------------------


class NoisyModule(GrokModule):
    """Draws in its forward pass, and has buffers that its forward pass moves."""

    def build_network(self, generators):
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 1))


class NoisySGD(torch.optim.SGD):
    """Draws in its step."""

    def step(self, closure=None):
        loss = super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.add_(1e-3 * torch.randn_like(parameter))
        return loss


KINDS = {
    "mlp": (mlp, lambda: parity(batch_size=8)),
    "mlp of one": (lambda: mlp(1), lambda: parity(1, batch_size=8)),
    "transformer": (transformer, addition),
    "draws": (lambda: NoisyModule("hinge", NoisySGD, None, members(1)), lambda: parity(1, batch_size=8)),
    "online": (mlp, lambda: OnlineData(SparseParity(6, 2), batch_size=8, n_held_out=20, members=members(3))),
}


def state_after(make_trainer, kind, *callbacks, steps=7, ckpt_path=None, **options):
    make_module, make_data = KINDS[kind]
    torch.manual_seed(5)
    module = make_module()
    trainer = make_trainer(max_steps=steps, max_epochs=-1, callbacks=list(callbacks), limit_val_batches=0, **options)
    trainer.fit(module, datamodule=make_data(), ckpt_path=ckpt_path)
    states = [module.state_dict(), trainer.optimizers[0].state_dict()["state"], {"generator": torch.get_rng_state()}]
    return module, {f"{i}.{name}": value for i, state in enumerate(states) for name, value in flat(state)}, trainer


def flat(state):
    for name, value in state.items():
        if isinstance(value, dict):
            yield from ((f"{name}.{inner}", part) for inner, part in flat(value))
        elif isinstance(value, torch.Tensor):
            yield str(name), value


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_bitwise_the_same_with_the_estimate(make_trainer, lines, kind):
    estimate = MemoryEstimate()
    _, without, _ = state_after(make_trainer, kind)
    _, with_estimate, _ = state_after(make_trainer, kind, estimate)
    assert estimate.step.activations > 0, "the network was tried"
    assert same(with_estimate, without)


def test_an_estimate_that_draws_would_be_noticed(make_trainer, lines, monkeypatch):
    _, without, _ = state_after(make_trainer, "draws")
    monkeypatch.setattr(memory, "isolate_rng", lambda include_cuda: nullcontext())
    _, careless, _ = state_after(make_trainer, "draws", MemoryEstimate())
    assert not same(careless, without)


@pytest.mark.parametrize("kind", ["mlp", "draws", "transformer"])
def test_an_estimate_leaves_the_model_as_it_was(make_trainer, lines, kind):
    class Look(Callback):
        def __init__(self, evaluates):
            self.evaluates = evaluates

        def on_train_start(self, trainer, pl_module):
            if self.evaluates:
                next(iter(pl_module.network.children())).eval()  # somebody's own choice
            self.modes = [module.training for module in pl_module.modules()]
            self.gradients = [parameter.grad for parameter in pl_module.parameters()]
            self.state = {name: value.clone() for name, value in pl_module.state_dict().items()}

    before, estimate, after = Look(evaluates=True), MemoryEstimate(), Look(evaluates=False)
    state_after(make_trainer, kind, before, estimate, after)
    assert estimate.step.activations > 0, "the network was tried"
    assert before.modes == after.modes
    assert not all(before.modes)
    assert all(gradient is None for gradient in after.gradients)
    assert same(before.state, after.state)


@pytest.mark.parametrize("kind", ["mlp", "online"])
def test_a_run_that_resumes_with_the_estimate_is_the_same(make_trainer, lines, tmp_path, kind):
    _, whole, _ = state_after(make_trainer, kind)
    _, _, trainer = state_after(make_trainer, kind, MemoryEstimate(), steps=4)
    trainer.save_checkpoint(tmp_path / "four.ckpt")
    _, resumed, _ = state_after(make_trainer, kind, MemoryEstimate(), ckpt_path=tmp_path / "four.ckpt")
    assert same(resumed, whole)


def test_when_resuming_the_optimizer_is_there_already(make_trainer, lines, tmp_path):
    first = MemoryEstimate()
    _, _, trainer = state_after(make_trainer, "transformer", first, steps=4)
    trainer.save_checkpoint(tmp_path / "four.ckpt")
    estimate = MemoryEstimate()
    state_after(make_trainer, "transformer", estimate, ckpt_path=tmp_path / "four.ckpt")
    assert estimate.step.there == estimate.step.optimizer == first.step.optimizer > 0
    assert first.step.to_come - estimate.step.to_come == first.step.optimizer


def graphs_compiled(make_trainer, callbacks):
    """Return how many graphs are compiled in a training of a compiled network."""
    from torch._dynamo.utils import counters  # loading it takes a second; there is no public count

    torch.compiler.reset()
    module = mlp()
    module.configure_model()
    module.network.compile(backend="eager")
    before = counters["stats"]["unique_graphs"]
    options = {"max_steps": 6, "max_epochs": -1, "limit_val_batches": 0}
    make_trainer(callbacks=callbacks, **options).fit(module, datamodule=parity(train_size=64))
    torch.compiler.reset()
    return counters["stats"]["unique_graphs"] - before


def test_nothing_more_is_compiled(make_trainer):
    estimate = MemoryEstimate()
    assert graphs_compiled(make_trainer, [estimate]) == graphs_compiled(make_trainer, []) == 1
    eager, _ = fitted(make_trainer, mlp(), parity(train_size=64), 6, [])
    assert estimate.step.activations == eager.step.activations


# ---- histories -------------------------------------------------------------------------------------------------------


class Odd(Schedule):
    """Somebody's own."""

    def due(self, step):
        return step % 2 == 1 or step == 0


class Mean(Monitor):
    """Mean of all parameters of any module."""

    dims: ClassVar = {"mean": ("copy",), "flag": ()}

    def measure(self, trainer, pl_module):
        mean = torch.stack([parameter.double().mean() for parameter in pl_module.parameters()]).mean()
        return {"mean": mean.expand(1, 5), "flag": (mean > 0)[None]}


CADENCES = [
    {"max_epochs": 4},
    {"max_epochs": 5, "check_val_every_n_epoch": 2},
    {"max_steps": 13, "max_epochs": -1},
    {"max_steps": 13, "max_epochs": -1, "check_val_every_n_epoch": 2},
    {"max_epochs": 4, "val_check_interval": 2},
    {"max_epochs": 4, "val_check_interval": 0.5},
    {"max_steps": 13, "max_epochs": -1, "val_check_interval": 2, "check_val_every_n_epoch": 2},
    {"max_steps": 13, "max_epochs": -1, "val_check_interval": 3, "check_val_every_n_epoch": None},
    {"max_epochs": 3, "limit_train_batches": 2},
    {"max_epochs": 3, "limit_val_batches": 0},
]


def check_histories(estimate, monitors):
    """The foretold bytes are those in the checkpoint at the end; nothing measured, nothing known."""
    known = {history.name: history for history in estimate.histories}
    assert known.keys() == {monitor.name for monitor in monitors if len(monitor.steps)}
    for monitor in monitors:
        if len(monitor.steps):
            history = known[monitor.name]
            assert history.measured + history.to_come == len(monitor.steps), monitor.name
            assert (history.measured + history.to_come) * history.size == bytes_in(monitor.state_dict()["values"])
            assert history.arrays == len(monitor.history)
            assert history.schedule == monitor.schedule


@pytest.mark.parametrize("options", CADENCES, ids=str)
@pytest.mark.parametrize("n", [1, 3])
def test_histories_are_at_the_end_as_they_were_foretold(make_trainer, lines, options, n):
    monitors = [
        LearningCurves(),
        Onset(),
        NeuronNormTracker(layer="network.hidden.0", schedule=EveryNSteps(3)),
        NeuronNormTracker(layer="network.hidden.0", schedule=LogSpaced(7), name="others"),
        ParameterNorm(schedule=Odd()),
        ParameterNorm(schedule=AtEnd(), name="at_the_end"),
    ]
    estimate = MemoryEstimate()
    trainer = make_trainer(callbacks=[*monitors, estimate], **options)
    trainer.fit(mlp(n), datamodule=parity(n, batch_size=8))
    check_histories(estimate, monitors)
    assert estimate.histories


@pytest.mark.parametrize("options", CADENCES, ids=str)
@pytest.mark.parametrize("accumulated", [1, 2])
def test_histories_in_somebody_elses_project_are_foretold_too(make_trainer, foreign, lines, options, accumulated):
    class MeanAtValidations(Mean):
        """Measures at step 0, too, of which a monitor that follows validations is asked."""

    monitors = [Mean(EveryNSteps(2), "every_two"), MeanAtValidations(EveryValidation(), "at_validations")]
    estimate = MemoryEstimate()
    trainer = make_trainer(callbacks=[*monitors, estimate], accumulate_grad_batches=accumulated, **options)
    trainer.fit(foreign.module(), foreign.train_loader(n=40), foreign.val_loader())
    check_histories(estimate, monitors)
    assert [history.size for history in estimate.histories] == [5 * 8 + 1] * 2


@pytest.mark.parametrize("until", [1, 4, 5, 9])
def test_a_run_that_resumes_counts_what_is_there_and_what_is_to_come(make_trainer, lines, tmp_path, until):
    def run(steps, ckpt_path=None):
        monitors = [
            LearningCurves(),
            NeuronNormTracker(layer="network.hidden.0", schedule=EveryNSteps(3)),
            ParameterNorm(schedule=LogSpaced(9)),
        ]
        estimate = MemoryEstimate()
        trainer = make_trainer(max_steps=steps, max_epochs=-1, callbacks=[*monitors, estimate])
        trainer.fit(mlp(), datamodule=parity(batch_size=8), ckpt_path=ckpt_path)
        return monitors, estimate, trainer

    _, _, trainer = run(until)
    trainer.save_checkpoint(tmp_path / "some.ckpt")
    monitors, estimate, _ = run(20, tmp_path / "some.ckpt")
    check_histories(estimate, monitors)
    assert estimate.histories[1].measured == 1 + until // 3


def test_without_a_last_step_a_measurement_is_told(make_trainer, foreign, lines, host):
    class Stops(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            trainer.should_stop = True

    callbacks = [Mean(EveryNSteps(1), "mean"), Stops(), MemoryEstimate()]
    host["bytes"] = 2000  # no warning either
    make_trainer(max_epochs=-1, callbacks=callbacks).fit(foreign.module(), foreign.train_loader(), foreign.val_loader())
    assert f"histories {memory.in_words(2 * 550 + 41)} for every measurement, to an unknown step" in lines[0]


def test_validations_by_the_clock_are_not_foretold(make_trainer, lines):
    estimate = MemoryEstimate()
    options = {"max_steps": 4, "max_epochs": -1, "val_check_interval": "00:01:00:00", "check_val_every_n_epoch": None}
    make_trainer(callbacks=[LearningCurves(), estimate], **options).fit(mlp(), datamodule=parity())
    assert not estimate.histories
    assert "without curves (number of measurements unknown)" in lines[0]


def test_a_schedule_that_would_take_too_long_to_ask_is_not_foretold(make_trainer, lines, monkeypatch):
    monkeypatch.setattr(memory, "STEPS_ASKED", 10)
    estimate, _ = fitted(make_trainer, mlp(), parity(), 10, [ParameterNorm(schedule=Odd())])
    assert estimate.histories[0].to_come == 5
    callbacks = [ParameterNorm(schedule=Odd(), name="asked"), ParameterNorm(schedule=EveryNSteps(2), name="counts")]
    estimate, _ = fitted(make_trainer, mlp(), parity(), 11, callbacks)
    assert [history.name for history in estimate.histories] == ["counts"]
    assert "without asked (number of measurements unknown)" in lines[1]


def validated(batches, per_epoch, every, interval):
    """Batches after which Lightning validates, counted from 1: one batch after another."""
    found = []
    for batch in range(1, batches + 1):
        within = (batch - 1) % per_epoch + 1
        if every is None:
            due = batch % interval == 0
        elif ((batch - 1) // per_epoch + 1) % every:
            due = False
        else:
            due = within == per_epoch if interval == math.inf else within % interval == 0
        found += [batch] if due else []
    return found


SHAPES = [
    (1, 1, 1),
    (1, 3, 1),
    (4, 1, 4),
    (4, 1, 2),
    (5, 2, 2),
    (7, 3, 7),
    (5, 2, math.inf),
    (5, None, 3),
    (4, None, 11),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("first", "last"), [(0, 0), (0, 1), (0, 100), (37, 100), (40, 41), (9, 10), (100, 100)])
def test_validations_between_two_batches_are_counted(shape, first, last):
    due = validated(last, *shape)
    assert Cadence(*shape).between(first, last) == len([batch for batch in due if batch > first])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("number", [1, 2, 3, 7, 50, 10**6])
@pytest.mark.parametrize(("first", "last"), [(0, 100), (37, 100)])
def test_a_sparser_cadence_validates_at_most_as_often(shape, number, first, last):
    cadence = Cadence(*shape)
    rarer = cadence.at_most(number, first, last)
    if rarer is None:  # every epoch that is validated at all is validated more often than that
        assert shape[0] // shape[2] > number
        return
    count = len([batch for batch in validated(last, *rarer) if batch > first])
    assert 0 < count <= number
    if cadence.between(first, last) <= number:
        assert rarer == cadence
    else:
        assert rarer.flag() != cadence.flag()


def test_there_is_no_cadence_with_no_validation_or_by_the_clock():
    assert Cadence(5, 1, 5).at_most(0, 0, 100) is None
    assert Cadence(5, 1, None).at_most(3, 0, 100) is None
    assert Cadence(5, 1, None).between(0, 100) is None
    assert Cadence(None, 1, math.inf).between(0, 100) is None
    assert Cadence(None, 1, 4).between(0, 100) == 25, "batches of an epoch without an end"


@pytest.mark.parametrize(
    ("steps", "per_epoch", "accumulated"), [(0, 5, 2), (7, 5, 1), (7, 5, 2), (9, 6, 3), (7, None, 3)]
)
def test_batches_of_so_many_steps(steps, per_epoch, accumulated):
    batch = taken = 0
    while taken < steps:
        batch += 1
        within = (batch - 1) % per_epoch + 1 if per_epoch else batch
        taken += within % accumulated == 0 or within == per_epoch
    assert memory.batches_of(steps, per_epoch, accumulated) == batch


def test_copies_are_those_of_checkpoints_and_the_record(tmp_path):
    checkpoint, record = LastCheckpoint(tmp_path), Recorder(tmp_path)
    assert copies_of_histories([]) == 1
    assert copies_of_histories([record]) == 3
    assert copies_of_histories([checkpoint]) == copies_of_histories([ModelCheckpoint(tmp_path)]) == 3
    assert copies_of_histories([checkpoint, record, LearningCurves()]) == 4


def trees():
    return [thing for thing in gc.get_objects() if type(thing) is xr.DataTree]


@pytest.fixture
def no_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()
    gc.collect()


@pytest.mark.usefixtures("no_collector")
def test_a_record_that_is_written_is_not_kept(make_trainer, lines, tmp_path):
    recorder = Recorder(tmp_path)
    of_others = len(trees())
    _, trainer = fitted(make_trainer, mlp(), parity(), 3, [LearningCurves(), ParameterNorm(), recorder])
    assert (tmp_path / "records.nc").is_file()
    assert len(trees()) == of_others
    recorder.record(trainer, trainer.lightning_module)
    assert len(trees()) > of_others, "Python alone would keep it"


# ---- what there is ---------------------------------------------------------------------------------------------------


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def machine(tmp_path):
    """A Linux machine with 8,000 MiB available, and what it tells of the process's groups."""
    system = write(tmp_path / "meminfo", "MemTotal: 16384000 kB\nMemFree: 5 kB\nMemAvailable:    8192000 kB\n")
    return {"system": system, "groups": tmp_path / "cgroup", "own": tmp_path / "own"}


AVAILABLE = 8192000 * 1024


def test_free_is_what_the_system_has_available(machine):
    assert host_memory(**machine) == AVAILABLE


@pytest.mark.parametrize(
    ("files", "own", "expected"),
    [
        pytest.param({"memory.max": "max\n"}, "0::/\n", AVAILABLE, id="no limit"),
        pytest.param({"memory.max": "5000\n"}, "0::/\n", 5000, id="limit"),
        pytest.param({"memory.max": "5000", "memory.current": "1200"}, "0::/\n", 3800, id="in use"),
        pytest.param(
            {"memory.max": "5000", "memory.current": "1200", "memory.stat": "anon 3\ninactive_file 200\nfile 9\n"},
            "0::/\n",
            4000,
            id="files that can be read again",
        ),
        pytest.param({"memory.max": "5000", "memory.current": "6000"}, "0::/\n", 0, id="over the limit"),
        pytest.param({"a/b/memory.max": "70", "memory.max": "90"}, "0::/a/b\n", 70, id="own group"),
        pytest.param({"a/b/memory.max": "70", "a/memory.max": "60"}, "0::/a/b\n", 60, id="the group above"),
        pytest.param({"a/b/memory.max": "70", "a/memory.max": "80"}, "0::/a\n", 80, id="not the group below"),
        pytest.param({"memory.max": "90"}, "0::/somewhere/else\n", 90, id="a container's own root"),
        pytest.param({"memory.max": "90"}, "0::/../../else\n", 90, id="a path out of the container"),
        pytest.param({"memory.max": "90"}, None, 90, id="nothing told of the process"),
        pytest.param(
            {"memory/x/memory.limit_in_bytes": "500", "memory/x/memory.usage_in_bytes": "100"},
            "5:cpu,memory:/x\n3:cpuset:/y\n1:name=systemd:/z:z\n",
            400,
            id="first version",
        ),
        pytest.param(
            {
                "memory/memory.limit_in_bytes": "500",
                "memory/memory.usage_in_bytes": "100",
                "memory/memory.stat": "inactive_file 1\ntotal_inactive_file 30\n",
            },
            "4:memory:/docker/x\n",
            430,
            id="first version in a container",
        ),
        pytest.param(
            {"memory/memory.limit_in_bytes": str(2**63 - 4096)}, "4:memory:/\n", AVAILABLE, id="first version, no limit"
        ),
    ],
)
def test_free_is_less_where_a_control_group_has_a_limit(machine, files, own, expected):
    machine["groups"].mkdir()
    for name, text in files.items():
        write(machine["groups"] / name, text)
    if own is not None:
        machine["own"].write_text(own)
    assert host_memory(**machine) == expected


def test_free_is_asked_of_the_system_where_there_is_no_linux(machine, monkeypatch):
    machine["system"] = Path("nowhere")
    monkeypatch.setattr(memory.os, "sysconf", {"SC_AVPHYS_PAGES": 10, "SC_PAGE_SIZE": 4096}.__getitem__)
    assert host_memory(**machine) == 40960


@pytest.mark.parametrize("error", [ValueError, OSError, AttributeError])
def test_free_is_unknown_where_nobody_tells(machine, monkeypatch, error):
    def refuses(name):
        raise error(name)

    machine["system"] = Path("nowhere")
    monkeypatch.setattr(memory.os, "sysconf", refuses)
    assert host_memory(**machine) is None


def test_on_this_machine_there_is_some_memory():
    free = host_memory()
    assert free is None or 10**6 < free < 10**15


def test_free_on_a_device_is_also_what_torch_has_reserved(monkeypatch):
    numbers = {"mem_get_info": (100, 1000), "memory_reserved": 70, "memory_allocated": 30}
    for name, value in numbers.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert memory.device_memory(torch.device("cuda")) == 140


# ---- what is said ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (9949, "9.9 kB"),
        (9950, "10 kB"),
        (999_499, "999 kB"),
        (999_500, "1.0 MB"),
        (3_440_000, "3.4 MB"),
        (6.1e9, "6.1 GB"),
        (1.5e12, "1.5 TB"),
        (2e15, "2000 TB"),
    ],
)
def test_sizes_are_told_in_a_few_digits(size, words):
    assert memory.in_words(size) == words


def test_where_all_is_tiny_the_line_is_short(make_trainer, lines, host):
    estimate, _ = fitted(make_trainer, mlp(), parity(), 5, [ParameterNorm(schedule=EveryNSteps(1))])
    step, (history,) = estimate.step, estimate.histories
    assert lines == [
        f"memory: parameters {memory.in_words(step.parameters)}, activations {memory.in_words(step.activations)}; "
        f"histories {memory.in_words(6 * (550 * history.arrays + history.size))} by step 5 (of 1.0 TB free)"
    ]


def test_where_it_is_not_the_line_has_all_parts(make_trainer, lines, host):
    host["bytes"] = 10**6
    module = mlp(optimizer=torch.optim.Adam)
    callbacks = [ParameterNorm(schedule=EveryNSteps(1)), ParameterNorm(schedule=AtEnd(), name="later")]
    estimate, _ = fitted(make_trainer, module, parity(), 300, callbacks, limit_val_batches=0)
    parts = {name: memory.in_words(size) for name, size in estimate.step._asdict().items() if name != "there"}
    assert list(parts) == ["parameters", "gradients", "optimizer", "activations", "rows"]
    parts_told, histories, without = lines[0].removeprefix("memory: ").split("; ")
    assert parts_told == ", ".join(f"{name} {size}" for name, size in parts.items())
    assert histories.startswith("histories ")
    assert histories.endswith(" by step 300 (of 1.0 MB free)")
    assert without == "without later (nothing measured yet)"


def test_the_device_has_a_memory_of_its_own():
    step = StepMemory(10**9, 10**9, 2 * 10**9, None, 10**6)
    words = memory._step_in_words(step, torch.device("cuda", 1), 70 * 10**9)
    assert words == (
        "parameters 1.0 GB, gradients 1.0 GB, optimizer 2.0 GB, activations unknown, rows 1.0 MB "
        "(of 70 GB free on cuda:1)"
    )


def test_processes_of_a_machine_share_its_memory(make_trainer, host, tmp_path, monkeypatch):
    estimate = MemoryEstimate()
    trainer = make_trainer(max_steps=1, max_epochs=-1, callbacks=[estimate], strategy="ddp_fork", devices=2)
    said = tmp_path / "said"
    # In processes of their own: what they say is told by a file.
    monkeypatch.setattr(memory, "rank_zero_info", said.write_text)
    trainer.fit(mlp(), datamodule=parity())
    assert said.read_text().startswith("memory in each of 2 processes: parameters ")
    assert said.read_text().endswith("; 500 GB free")


# ---- warnings --------------------------------------------------------------------------------------------------------


def run_of(make_trainer, schedule, **options):
    """A training with one long history, and what the estimate knows of it."""
    norms = NeuronNormTracker(layer="network.hidden.0", schedule=schedule)
    flags = {"max_steps": 400, "max_epochs": -1, "limit_val_batches": 0} | options
    estimate = MemoryEstimate()
    callbacks = [norms, ParameterNorm(schedule=EveryNSteps(100)), estimate]
    trainer = make_trainer(callbacks=callbacks, **flags)
    trainer.fit(mlp(hidden=(100,)), datamodule=parity(batch_size=None))
    return estimate


def enough_for(estimate, measurements):
    """Bytes of a machine in which so many measurements of the long history and all others just fit."""
    long, short = estimate.histories
    there = sum(history.measured * (550 * history.arrays + history.size) for history in estimate.histories)
    need = measurements * (550 * long.arrays + long.size) + short.at_end(1)
    return estimate.step.to_come + math.ceil((need - there) / memory.SHARE_OF_HISTORIES)


@pytest.mark.parametrize("schedule", [EveryNSteps(2), LogSpaced(40)], ids=repr)
def test_a_history_that_outgrows_memory_is_named_with_a_schedule_that_does_not(make_trainer, lines, host, schedule):
    whole = run_of(make_trainer, schedule)
    total = whole.histories[0].measured + whole.histories[0].to_come
    host["bytes"] = enough_for(whole, total)
    run_of(make_trainer, schedule)  # which just fits: no warning
    host["bytes"] = enough_for(whole, total) - 10
    with pytest.warns(UserWarning, match="neuron_norms"):
        run_of(make_trainer, schedule)
    host["bytes"] = enough_for(whole, 20)
    with pytest.warns(UserWarning, match="memory: histories would outgrow 50%") as warned:
        run_of(make_trainer, schedule)
    text = told(warned)
    assert f"neuron_norms {memory.in_words(whole.histories[0].at_end(1))} (" in text
    assert "parameter_norm" not in text, "the short one may stay"
    free = memory.in_words(host["bytes"] - whole.step.to_come)
    assert f"of the {free} that are free" in text
    assert "by step 400" in text
    named = re.search(r"\((\w+)\((n|per_decade)=(\d+)\) in place of (.*\)) would fit\)", text)
    assert named[1] == type(schedule).__name__
    assert named[4] == repr(schedule)
    sparser = type(schedule)(int(named[3]))
    run_of(make_trainer, sparser)  # which does: no warning
    assert lines[-1].startswith("memory: ")


@pytest.mark.parametrize(
    "flags",
    [
        {"check_val_every_n_epoch": 1},
        {"check_val_every_n_epoch": 3},
        {"check_val_every_n_epoch": None, "val_check_interval": 2},
    ],
    ids=str,
)
def test_a_history_at_validations_is_named_with_the_trainers_flag(make_trainer, foreign, lines, host, flags):
    class Wide(Mean):
        def measure(self, trainer, pl_module):
            return {"mean": torch.zeros(1, 10_000), "flag": torch.zeros(1)}

    def run(**flags):
        estimate = MemoryEstimate()
        callbacks = [Wide(EveryValidation(), "wide"), Mean(EveryNSteps(50), "mean"), estimate]
        trainer = make_trainer(max_epochs=30, callbacks=callbacks, **flags)
        trainer.fit(foreign.module(), foreign.train_loader(), foreign.val_loader())
        return estimate

    whole = run(**flags)
    host["bytes"] = enough_for(whole, 4)
    with pytest.warns(UserWarning, match=r"wide .* \(--trainer\.\w+=\d+ in place of \w+=\d+ would fit\)") as warned:
        run(**flags)
    name, value = re.search(r"--trainer\.(\w+)=(\d+)", told(warned)).groups()
    rarer = run(**(flags | {name: int(value)}))  # which fits: no warning
    assert rarer.histories[0].to_come > 0


def test_where_nothing_fits_the_warning_says_so(make_trainer, lines, host, monkeypatch):
    monkeypatch.setattr(memory, "SHARE_OF_STEP", 1)
    whole = run_of(make_trainer, Odd())
    host["bytes"] = enough_for(whole, 20)
    with pytest.warns(UserWarning, match=r"neuron_norms .* \(no Odd is known to fit\)"):
        run_of(make_trainer, Odd())
    host["bytes"] = whole.step.to_come + 1
    with pytest.warns(UserWarning, match=r"neuron_norms .* \(no EveryNSteps is known to fit\)"):
        run_of(make_trainer, EveryNSteps(2))


def test_a_step_that_outgrows_memory_is_told_with_what_would_not(make_trainer, lines, host):
    estimate, _ = fitted(make_trainer, mlp(), parity())
    host["bytes"] = math.ceil(estimate.step.to_come / memory.SHARE_OF_STEP)
    fitted(make_trainer, mlp(), parity())  # which just fits: no warning
    host["bytes"] -= 2
    with pytest.warns(UserWarning, match="memory: a training step would take") as warned:
        fitted(make_trainer, mlp(), parity())
    text = told(warned)
    assert f"{memory.in_words(estimate.step.activations)} of it activations" in text
    assert f"{memory.in_words(host['bytes'])} are free: train fewer members (population)" in text
    assert "--trainer.strategy population" in text
    assert "data.batch_size" in text
    host["bytes"] = 10
    with pytest.warns(UserWarning, match="are free: take smaller batches") as warned:
        fitted(make_trainer, mlp(1), parity(1))
    assert "population" not in told(warned)


def test_where_the_memory_is_not_known_there_is_no_warning(make_trainer, lines, host):
    host["bytes"] = None
    run_of(make_trainer, EveryNSteps(1))
    assert "free" not in lines[0]
    assert "gradients" in lines[0]


@pytest.mark.parametrize("sizes", [[10, 20, 30], [1, 1000, 1000], [7], [5, 5, 5, 5], [1000, 1, 3]], ids=str)
@pytest.mark.parametrize("room", [0, 1, 7, 20, 59.5, 60, 100, 1500, 10**6])
def test_long_histories_share_what_the_short_ones_leave(sizes, room):
    histories = [
        History(f"h{i}", EveryNSteps(1), measured=1, to_come=size - 1, arrays=0, size=1) for i, size in enumerate(sizes)
    ]
    long = memory.longest_histories(histories, room, copies=1)
    room += len(sizes)  # of which these are there already
    assert bool(long) == (sum(sizes) > room)
    if long:
        names = {history.name for history, _ in long}
        (each,) = {each for _, each in long}
        assert each * len(long) + sum(h.at_end(1) for h in histories if h.name not in names) == pytest.approx(room)
        assert all(history.at_end(1) > each for history, _ in long)
        assert all(h.at_end(1) <= each for h in histories if h.name not in names)
        ends = [history.at_end(1) for history, _ in long]
        assert ends == sorted(ends, reverse=True)


# ---- silence ---------------------------------------------------------------------------------------------------------


def test_nothing_is_said_where_nothing_is_trained(make_trainer, lines, host):
    host["bytes"] = 1
    estimate = MemoryEstimate()
    make_trainer(callbacks=[estimate], fast_dev_run=True).fit(mlp(), datamodule=parity())
    for call in ("validate", "test", "predict"):
        trainer = make_trainer(callbacks=[estimate])
        options = {} if call == "predict" else {"verbose": False}
        getattr(trainer, call)(mlp(), datamodule=parity(), **options)
    assert lines == []
    assert estimate.step is None


CONFIG = """
model:
  class_path: MLP
  init_args: {hidden: [8]}
data:
  class_path: TableData
  init_args: {task: {class_path: SparseParity, init_args: {n: 6, k: 2}}, train_size: 32, batch_size: 8}
population: {seed: [0, 1]}
trainer: {max_epochs: 2, enable_progress_bar: false}
"""


def test_the_command_line_says_one_line_of_it(lines, host, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["grok"])
    monkeypatch.setattr(report, "write_report", lambda record, directory: directory / "report.html")
    Path("tiny.yaml").write_text(CONFIG)
    main(["fit", "--config", "tiny.yaml"])
    assert len(lines) == 1
    assert re.fullmatch(r"memory: parameters \S+ kB|memory: parameters .* by step 8 \(of 1.0 TB free\)", lines[0])
    for arguments in (["--trainer.fast_dev_run=true"], ["--ckpt_path=runs/tiny/version_0/checkpoints/last.ckpt"]):
        subcommand = "fit" if "fast" in arguments[0] else "validate"
        main([subcommand, "--config", "tiny.yaml", *arguments])
    assert len(lines) == 1
