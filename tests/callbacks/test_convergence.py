import logging
import math

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from torch import nn
from torch.optim import SGD, Adam, AdamW
from torch.optim.lr_scheduler import LambdaLR

from grok_callbacks import (
    Convergence,
    EveryNSteps,
    LearningCurves,
    Replay,
    Snapshots,
    StopWhenConverged,
    WeightTrajectory,
)
from grok_callbacks.protocols import HasMemberDecay
from grok_lightning.data import TableData
from grok_lightning.modules import MLP
from grok_lightning.optim import LinearWarmup
from grok_lightning.tasks import SparseParity

RATES = [0.1, 7.0]
THEIRS = {"metric_loss": "train_loss", "metric_accuracy": "train_acc"}


class Rates(Callback):
    """The learning rate and decay with which each step was taken, by the optimizer's own account."""

    def __init__(self):
        self.taken = []

    def on_train_start(self, trainer, pl_module):
        optimizer = trainer.optimizers[0]
        optimizer.register_step_pre_hook(lambda optimizer, *_: self.taken.append(dict(optimizer.param_groups[0])))

    def times(self, decay=None):
        """Σ lr·λ after each number of steps."""
        sums = [0.0]
        for group in self.taken:
            sums.append(sums[-1] + group["lr"] * (group["weight_decay"] if decay is None else decay))
        return sums


class Weights(Callback):
    def __init__(self):
        self.at = {}

    def on_train_start(self, trainer, pl_module):
        self.on_train_batch_end(trainer, pl_module)

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.at[trainer.global_step] = {n: p.detach().double().clone() for n, p in pl_module.named_parameters()}


@pytest.fixture
def theirs(foreign):
    """Return a function that makes somebody else's module, with an optimizer and a scheduler of choice."""

    def make(optimizer=lambda module: AdamW(module.parameters(), lr=0.1, weight_decay=0.5), scheduler=None, **options):
        class Module(foreign.module):
            def configure_optimizers(self):
                made = optimizer(self)
                if scheduler is None:
                    return made
                return {"optimizer": made, "lr_scheduler": {"scheduler": scheduler(made), "interval": "step"}}

        return Module(**options)

    return make


@pytest.fixture
def fit(foreign, make_trainer):
    """Three epochs of three steps; validation after each."""

    def run(module, *callbacks, ckpt_path=None, shuffle=True, **options):
        trainer = make_trainer(**({"max_epochs": 3, "callbacks": list(callbacks)} | options))
        torch.manual_seed(0)
        trainer.fit(module, foreign.train_loader(shuffle=shuffle), foreign.val_loader(), ckpt_path=ckpt_path)
        return trainer

    return run


def column(monitor, name, member=0):
    return monitor.history[name][:, member].tolist()


def ours(decays=None, optimizer=lambda parameters: AdamW(parameters, lr=0.05), seeds=(3, 4), scheduler=None):
    """Two members on parity, two batches an epoch."""
    members = {"seed": list(seeds)} | ({} if decays is None else {"weight_decay": list(decays)})
    data = TableData(SparseParity(6, 2), train_size=20, batch_size=10, members=members)
    return MLP(6, 1, hidden=[5], optimizer=optimizer, scheduler=scheduler, members=members), data


# Time


def wave(optimizer):
    return LambdaLR(optimizer, lambda step: 1 + math.sin(step))


@pytest.mark.parametrize("scheduler", [None, wave, LinearWarmup], ids=["constant", "wave", "warm-up"])
def test_time_is_the_sum_over_steps_of_rate_times_decay_as_the_steps_were_taken(fit, theirs, scheduler):
    monitor, rates = Convergence(EveryNSteps(1)), Rates()
    fit(theirs(scheduler=scheduler), monitor, rates)
    assert len(rates.taken) == 9
    assert monitor.history["decay_time"].dtype == torch.float64
    assert column(monitor, "decay_time") == pytest.approx(rates.times(), rel=1e-14)
    if scheduler is None:
        assert column(monitor, "decay_time")[-1] == pytest.approx(9 * 0.1 * 0.5)
    if scheduler is LinearWarmup:
        assert column(monitor, "decay_time")[:3] == [0.0, 0.0, pytest.approx(0.1 * 0.1 * 0.5)]


def test_a_decay_that_changes_counts_as_it_was(fit, theirs):
    class Anneals(Callback):
        def on_train_batch_end(self, trainer, *args):
            trainer.optimizers[0].param_groups[0]["weight_decay"] *= 0.5

    monitor, rates = Convergence(EveryNSteps(1)), Rates()
    fit(theirs(), monitor, rates, Anneals())
    assert column(monitor, "decay_time") == pytest.approx(rates.times())
    assert column(monitor, "decay_time")[-1] == pytest.approx(0.1 * 0.5 * (2 - 0.5**8))


def test_steps_of_several_batches_count_once(fit, theirs):
    monitor, rates = Convergence(EveryNSteps(1)), Rates()
    fit(theirs(), monitor, rates, accumulate_grad_batches=3)
    assert monitor.steps.tolist() == [0, 1, 2, 3]
    assert column(monitor, "decay_time") == pytest.approx(rates.times())


def test_a_closure_that_is_evaluated_many_times_is_one_step(fit, theirs):
    class ManyLooks(SGD):
        def step(self, closure=None):
            for _ in range(3):
                super().step(closure)

    monitor = Convergence(EveryNSteps(1))
    fit(theirs(lambda module: ManyLooks(module.parameters(), lr=0.1, weight_decay=0.5)), monitor, max_epochs=1)
    assert column(monitor, "decay_time") == pytest.approx([0, 0.05, 0.1, 0.15])


def two_groups(module):
    weights = [p for p in module.parameters() if p.ndim == 2]
    biases = [p for p in module.parameters() if p.ndim == 1]
    groups = [{"params": weights}, {"params": biases, "lr": 7.0, "weight_decay": 0.0, "eps": 1.0}]
    return AdamW(groups, lr=0.1, weight_decay=0.5)


def test_of_several_groups_the_first_counts(fit, theirs):
    monitor = Convergence(EveryNSteps(3))
    fit(theirs(two_groups), monitor)
    assert column(monitor, "decay_time") == pytest.approx([0, 0.15, 0.3, 0.45])
    assert monitor.record()["weight_decay"][1].tolist() == [0.5]
    assert monitor.record()["eps"][1].tolist() == [1e-8]


class TwoOptimizers(LightningModule):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.layers = nn.ModuleList([nn.Linear(4, 2), nn.Linear(4, 2)])

    def training_step(self, batch, batch_idx):
        for layer, optimizer in zip(self.layers, self.optimizers(), strict=True):
            optimizer.zero_grad()
            self.manual_backward(layer(batch[0]).square().mean())
            optimizer.step()

    def validation_step(self, batch, batch_idx):
        """Nothing."""

    def configure_optimizers(self):
        return [
            AdamW(layer.parameters(), lr=rate, weight_decay=0.5) for layer, rate in zip(self.layers, RATES, strict=True)
        ]


def test_of_several_optimizers_the_first_counts(fit):
    monitor = Convergence()
    fit(TwoOptimizers(), monitor, max_epochs=2)
    assert column(monitor, "decay_time") == pytest.approx([0, 0.15, 0.3])


@pytest.mark.parametrize(
    ("optimizer", "time", "decay", "eps"),
    [
        (lambda module: AdamW(module.parameters(), lr=0.1, weight_decay=0.0), 0.0, 0.0, 1e-8),
        (lambda module: AdamW(module.parameters(), lr=torch.tensor(0.25), weight_decay=2.0, eps=1e-4), 4.5, 2.0, 1e-4),
        (lambda module: SGD(module.parameters(), lr=0.1, weight_decay=0.5), 0.45, 0.5, math.nan),
        (lambda module: SGD(module.parameters(), lr=0.1), 0.0, 0.0, math.nan),
    ],
    ids=["no decay", "rate is a tensor", "SGD", "SGD without decay"],
)
def test_what_the_optimizer_says_of_itself_is_recorded(fit, theirs, optimizer, time, decay, eps):
    monitor = Convergence(EveryNSteps(3))
    fit(theirs(optimizer), monitor)
    assert column(monitor, "decay_time")[-1] == pytest.approx(time)
    record = monitor.record()
    assert record["weight_decay"][1].tolist() == [decay]
    assert record["eps"][1].tolist() == [pytest.approx(eps, nan_ok=True)]
    assert {name: dims for name, (dims, _) in record.items()} == {
        "step": ("step",),
        "decay_time": ("step", "member"),
        "norm": ("step", "member"),
        "box_share": ("step", "member"),
        "weight_decay": ("member",),
        "eps": ("member",),
    }


def test_nothing_measured_is_nothing_recorded():
    assert Convergence().record() == {}


# Norm and box


def box_share_of(weights, decay_of):
    """By the definition; ``weights`` of one member by name."""
    squares = {name: value.square() for name, value in weights.items()}
    beyond = sum(
        float(square[weights[name].abs() > 1 / (2 * decay_of(name))].sum())
        for name, square in squares.items()
        if decay_of(name)
    )
    return beyond / sum(float(square.sum()) for square in squares.values())


def test_norm_and_share_are_those_of_the_weights_at_each_step(fit, theirs):
    monitor, weights = Convergence(EveryNSteps(2)), Weights()
    fit(theirs(lambda module: AdamW(module.parameters(), lr=0.1, weight_decay=1.5)), weights, monitor)
    assert monitor.steps.tolist() == [0, 2, 4, 6, 8]
    for i, step in enumerate(monitor.steps.tolist()):
        flat = torch.cat([value.flatten() for value in weights.at[step].values()])
        assert column(monitor, "norm")[i] == pytest.approx(float(flat.square().sum().sqrt()), rel=1e-12)
        share = box_share_of(weights.at[step], lambda name: 1.5)
        assert column(monitor, "box_share")[i] == pytest.approx(share, rel=1e-9)
        assert 0 < share < 1


def test_every_parameter_has_the_box_of_its_own_group(fit, theirs):
    module = theirs(lambda module: two_groups(module))
    module.frozen = nn.Parameter(torch.full((5,), 100.0), requires_grad=False)
    monitor, weights = Convergence(EveryNSteps(3)), Weights()
    with torch.no_grad():
        module.encoder.fc1.weight[0, 0] = 1.5
        module.encoder.fc1.bias[0] = 3.0
    fit(module, weights, monitor)
    for i, step in enumerate(monitor.steps.tolist()):
        share = box_share_of(weights.at[step], lambda name: 0.5 if name.endswith("weight") else 0.0)
        assert column(monitor, "box_share")[i] == pytest.approx(share, rel=1e-9)
    assert 0 < column(monitor, "box_share")[0] < 0.001


@pytest.mark.parametrize(
    ("optimizer", "boxed"),
    [
        (lambda module: Adam(module.parameters(), lr=0.1, weight_decay=0.5), False),
        (lambda module: Adam(module.parameters(), lr=0.1, weight_decay=0.5, decoupled_weight_decay=True), True),
        (lambda module: AdamW(module.parameters(), lr=0.1, weight_decay=0.5), True),
        (lambda module: AdamW(module.parameters(), lr=0.1, weight_decay=0.0), False),
        (lambda module: SGD(module.parameters(), lr=0.1, weight_decay=0.5), False),
    ],
    ids=["Adam", "decoupled Adam", "AdamW", "AdamW without decay", "SGD"],
)
def test_only_decoupled_decay_of_an_adam_makes_a_box(fit, theirs, optimizer, boxed, recording_logger):
    monitor = Convergence()
    fit(theirs(optimizer), monitor, logger=recording_logger)
    assert bool(monitor.history["box_share"].isnan().any()) is not boxed
    assert bool(recording_logger.values("convergence/box_share")) is boxed
    assert recording_logger.steps("convergence/norm") == [0, 3, 6, 9]
    assert recording_logger.values("convergence/decay_time") == column(monitor, "decay_time")


def test_loggers_get_means_over_members_that_have_a_value():
    values = {"decay_time": torch.tensor([1.0, 3.0]), "box_share": torch.tensor([math.nan, 0.5])}
    assert Convergence().scalars(values) == {"decay_time": 2.0, "box_share": 0.5}
    assert Convergence().scalars({"decay_time": torch.tensor([math.nan])}) == {}


def test_nan_propagates(fit, theirs):
    module = theirs()
    with torch.no_grad():
        module.encoder.fc2.bias[0] = torch.nan
    monitor = Convergence()
    fit(module, monitor)
    assert monitor.history["norm"].isnan().all()
    assert monitor.history["box_share"].isnan().all()
    assert column(monitor, "decay_time") == pytest.approx([0, 0.15, 0.3, 0.45])


# Members


def test_members_without_decays_of_their_own_share_the_optimizers(make_trainer):
    module, data = ours()
    monitor, weights = Convergence(), Weights()
    make_trainer(max_epochs=3, callbacks=[weights, monitor]).fit(module, datamodule=data)
    assert monitor.steps.tolist() == [0, 2, 4, 6]
    assert monitor.history["decay_time"].shape == (4, 2)
    for e in range(2):
        assert column(monitor, "decay_time", e) == pytest.approx([0, 0.001, 0.002, 0.003])
        norms = [sum(float(w[e].square().sum()) for w in weights.at[s].values()) ** 0.5 for s in (0, 2, 4, 6)]
        assert column(monitor, "norm", e) == pytest.approx(norms, rel=1e-12)
    assert monitor.record()["weight_decay"][1].tolist() == [0.01, 0.01]


@pytest.mark.parametrize("scheduler", [None, wave], ids=["constant", "wave"])
def test_every_member_has_time_and_box_of_its_own_decay(make_trainer, scheduler):
    decays = [0.0, 1.0, 3.0]
    module, data = ours(decays, seeds=(3, 3, 4), scheduler=scheduler)
    assert isinstance(module, HasMemberDecay)
    monitor, weights, rates = Convergence(EveryNSteps(1)), Weights(), Rates()
    make_trainer(max_epochs=3, callbacks=[weights, monitor, rates]).fit(module, datamodule=data)
    for e, decay in enumerate(decays):
        assert column(monitor, "decay_time", e) == pytest.approx(rates.times(decay), rel=1e-14)
        shares = [
            box_share_of({n: w[e] for n, w in weights.at[s].items()}, lambda name, decay=decay: decay)
            for s in monitor.steps.tolist()
        ]
        expected = shares if decay else [math.nan] * len(shares)
        assert column(monitor, "box_share", e) == pytest.approx(expected, rel=1e-9, nan_ok=True)
    assert monitor.record()["weight_decay"][1].tolist() == decays
    assert monitor.record()["eps"][1].tolist() == [1e-8] * 3
    assert column(monitor, "box_share", 2)[-1] > column(monitor, "box_share", 1)[-1]


@pytest.mark.parametrize("decays", [[1.0], [1.0, 2.0, 3.0]], ids=["too few", "too many"])
def test_decays_of_another_number_of_members_are_refused_before_training(fit, decays):
    with pytest.raises(ValueError, match=f"weight_decays: expected those of 2 members, got {len(decays)}"):
        fit(OfTwo(decays, loss=None), Convergence())


def test_what_does_not_lead_with_the_members_is_refused_before_training(make_trainer):
    module, data = ours()
    module.shared = nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match=r"Convergence: expected 'shared' to lead with 2 members, got \(3,\)"):
        make_trainer(max_epochs=1, callbacks=[Convergence()]).fit(module, datamodule=data)


# Going on, and looking back


class SavesAt(Callback):
    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("first", [True, False], ids=["saved by a callback before it", "saved by one after it"])
@pytest.mark.parametrize("step", [4, 5, 6])
@pytest.mark.parametrize("decays", [None, (0.3, 1.0)], ids=["shared decay", "own decays"])
def test_time_goes_on_exactly_where_it_was(make_trainer, tmp_path, first, step, decays):
    """Under a warm-up, from a checkpoint at the end of an epoch or within one."""

    def run(*callbacks, **options):
        module, data = ours(decays, scheduler=LinearWarmup)
        make_trainer(max_epochs=6, callbacks=list(callbacks)).fit(module, datamodule=data, **options)

    whole, after = Convergence(EveryNSteps(1)), Convergence(EveryNSteps(1))
    saves = SavesAt(step, tmp_path / "it.ckpt")
    run(*((saves, whole) if first else (whole, saves)))
    run(after, ckpt_path=tmp_path / "it.ckpt")
    assert whole.steps.tolist() == after.steps.tolist() == list(range(13))
    for name, values in whole.history.items():
        torch.testing.assert_close(after.history[name], values, rtol=0, atol=0, equal_nan=True)


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_a_step_that_was_counted_and_not_taken_is_counted_once(fit, theirs, tmp_path):
    """Saved when the step was about to be taken and something went wrong."""

    class Breaks(Callback):
        def on_before_optimizer_step(self, trainer, *args):
            if trainer.global_step == 4:
                trainer.save_checkpoint(tmp_path / "it.ckpt")
                raise KeyboardInterrupt

    with pytest.raises(SystemExit):
        fit(theirs(), Convergence(), Breaks())
    monitor, rates = Convergence(EveryNSteps(1)), Rates()
    trainer = fit(theirs(), monitor, rates, ckpt_path=tmp_path / "it.ckpt")
    assert trainer.global_step == 4 + len(rates.taken)
    assert column(monitor, "decay_time")[-1] == pytest.approx(trainer.global_step * 0.05)


def test_what_went_before_is_unknown_where_nobody_counted(fit, theirs, tmp_path):
    fit(theirs()).save_checkpoint(tmp_path / "it.ckpt")
    monitor = Convergence()
    fit(theirs(), monitor, ckpt_path=tmp_path / "it.ckpt", max_epochs=5)
    assert monitor.steps.tolist() == [12, 15]
    assert monitor.history["decay_time"].isnan().all()
    assert monitor.history["norm"].isfinite().all()


def test_a_trainer_that_goes_on_goes_on_counting(foreign, make_trainer, theirs):
    monitor, module = Convergence(), theirs()
    trainer = make_trainer(max_epochs=2, callbacks=[monitor])
    trainer.fit(module, foreign.train_loader(), foreign.val_loader())
    trainer.fit_loop.max_epochs = 4
    trainer.fit(module, foreign.train_loader(), foreign.val_loader())
    assert monitor.steps.tolist() == [0, 3, 6, 9, 12]
    assert column(monitor, "decay_time") == pytest.approx([0, 0.15, 0.3, 0.45, 0.6])


def test_a_state_is_not_changed_by_further_steps(fit, theirs):
    monitor = Convergence()
    states = []

    class Keeps(Callback):
        def on_train_batch_end(self, *args):
            states.append(monitor.state_dict()["time"])

    fit(theirs(), monitor, Keeps())
    assert [time for (time,) in states] == pytest.approx([0.05 * (i + 1) for i in range(9)])


@pytest.mark.parametrize("decays", [None, (0.0, 3.0)], ids=["shared decay", "own decays"])
def test_looking_back_finds_norm_and_box_and_no_time(make_trainer, tmp_path, decays):
    monitor, kept = Convergence(), WeightTrajectory(EveryNSteps(1), tmp_path / "kept")

    def make():
        return ours(decays, lambda parameters: AdamW(parameters, lr=0.05, weight_decay=2.0 if decays is None else 0.01))

    module, data = make()
    make_trainer(max_epochs=3, callbacks=[monitor, kept]).fit(module, datamodule=data)
    module, data = make()
    module.configure_model()
    looked, snapshots = Convergence(), {step: kept.snapshots()[step] for step in monitor.steps.tolist()}
    looked.look_back(Replay(module, data), module, Snapshots(tmp_path / "nowhere", snapshots))
    record, expected = looked.record(), monitor.record()
    assert list(record) == list(expected)
    for name, (dims, values) in expected.items():
        assert record[name][0] == dims
        found = record[name][1]
        if name == "decay_time":
            assert found.isnan().all()
            assert found.shape == values.shape
        else:
            torch.testing.assert_close(found, values, rtol=0, atol=0, equal_nan=True)
    assert expected["box_share"][1].isfinite().any()


@pytest.mark.parametrize(
    ("wrap", "known"),
    [
        (lambda made: [made], True),
        (lambda made: ([made], [wave(made)]), True),
        (lambda made: {"optimizer": made}, True),
        (lambda made: [{"optimizer": made, "lr_scheduler": wave(made)}], True),
        (lambda made: None, False),
    ],
    ids=["list", "two lists", "dict", "list of dicts", "none"],
)
def test_looking_back_finds_the_optimizer_in_any_form(foreign, theirs, wrap, known):
    class Data(LightningDataModule):
        def val_dataloader(self):
            return foreign.val_loader()

    module, looked = theirs(), Convergence()
    made = AdamW(module.parameters(), lr=0.1, weight_decay=0.5)
    module.configure_optimizers = lambda: wrap(made)
    looked.look_back(Replay(module, Data()), module, {0: module.state_dict()})
    assert looked.record()["weight_decay"][1].tolist() == [pytest.approx(0.5 if known else math.nan, nan_ok=True)]
    assert looked.history["box_share"].isfinite().all() == known


def test_the_record_says_no_rule_which_nothing_here_goes_by():
    """A sweep's own margins do, grok_lightning.sweeps.Margins."""
    assert Convergence().attributes() == {}
    with pytest.raises(TypeError, match="accuracy_moved"):
        Convergence(accuracy_moved=0.1)


# Stopping


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accuracy_moved": 0.0}, "accuracy_moved: expected more than 0, got 0.0"),
        ({"norm_moved": -1.0}, "norm_moved: expected more than 0, got -1.0"),
        ({"norm_moved": math.nan}, "norm_moved: .* got nan"),
        ({"window": 0.0}, r"window: expected a share in \(0, 1\], got 0.0"),
        ({"window": 1.1}, "got 1.1"),
        ({"loss_moved": 0.0}, "loss_moved: expected more than 0, got 0.0"),
        ({"at_least": -1.0}, "at_least: expected at least 0, got -1.0"),
        ({"at_least": math.nan}, "at_least: .* got nan"),
    ],
)
def test_what_cannot_be_waited_for_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        StopWhenConverged(**options)


def still(step):
    del step
    return 1.0


def held(theirs, loss=still, accuracy=still, **options):
    """A module that logs scripted metrics."""
    return theirs(script={"train_loss": loss, "train_acc": accuracy}, **options)


class HoldsNorm(Callback):
    """Gives the weights, after every step, the norm that a script has for the step."""

    def __init__(self, norm=still):
        self.norm = norm

    def on_train_batch_end(self, trainer, pl_module, *args):
        with torch.no_grad():
            total = torch.cat([p.flatten() for p in pl_module.parameters()]).norm()
            for parameter in pl_module.parameters():
                parameter.mul_(self.norm(trainer.global_step) / total)


@pytest.fixture
def scripted(fit, theirs):
    """Fit with scripted loss, accuracy and norm: at most 40 epochs of three steps of 0.1 decay units. Return the last
    step."""

    def run(loss=still, accuracy=still, norm=still, stop_first=False, callbacks=(), **options):
        stop = StopWhenConverged(**(THEIRS | options))
        watch = [Convergence(), stop]
        module = held(theirs, loss, accuracy, optimizer=lambda m: AdamW(m.parameters(), lr=0.1, weight_decay=1.0))
        callbacks = [HoldsNorm(norm), *callbacks, *(watch[::-1] if stop_first else watch)]
        return fit(module, *callbacks, max_epochs=40).global_step

    return run


def first_settled(loss=still, accuracy=still, norm=still, at_least=1.0, window=1 / 3, loss_moved=0.2):
    """By the definition: in plain Python, over the validations at steps 3, 6, ..."""
    for last in range(3, 121, 3):
        steps = [step for step in range(3, last + 1, 3) if step >= (1 - window - 1e-12) * last]

        def moved(values):
            return max(values) - min(values)

        norms = [norm(s) for s in steps]
        if (
            len(steps) >= 3
            and 0.1 * last >= at_least - 1e-9
            and moved([math.log(loss(s)) for s in steps]) < loss_moved
            and moved([accuracy(s) for s in steps]) < 0.02
            and moved(norms) < 0.02 * sum(norms) / len(norms)
        ):
            return last
    return 120


def late(start, before, after):
    """A value that changes at a step."""
    return lambda step: after if step >= start else before


def falling(step):
    return math.exp(-step / 10)


@pytest.mark.parametrize("stop_first", [True, False], ids=["before the monitor", "after it"])
@pytest.mark.parametrize(
    ("script", "at"),
    [
        ({}, 18),
        ({"loss": late(13, 1.0, 0.01)}, 21),
        ({"accuracy": late(13, 0.5, 1.0)}, 21),
        ({"norm": late(13, 1.0, 1.1)}, 21),
        ({"loss": late(10, 1.0, 0.01), "accuracy": late(16, 0.5, 1.0), "norm": late(19, 2.0, 1.0)}, 30),
        ({"loss": late(13, 1.0, 0.9)}, 18),  # within what it may
        ({"accuracy": late(13, 0.99, 1.0)}, 18),
        ({"norm": late(13, 10.0, 10.1)}, 18),
    ],
    ids=["all still", "loss", "accuracy", "norm", "all three", "loss a little", "accuracy a little", "norm a little"],
)
def test_it_stops_at_the_first_validation_at_which_all_have_rested(scripted, script, at, stop_first):
    assert first_settled(**script) == at
    assert scripted(**script, stop_first=stop_first) == at


@pytest.mark.parametrize("script", [{"loss": falling}, {"norm": lambda step: 1 + step % 2}], ids=["loss", "norm"])
def test_it_does_not_stop_while_one_of_them_moves(scripted, script):
    assert first_settled(**script) == 120
    assert scripted(**script) == 120


@pytest.mark.parametrize("at_least", [0.0, 2.05, 5.05])
def test_so_much_decay_is_waited_for(scripted, at_least):
    assert scripted(at_least=at_least) == first_settled(at_least=at_least)


@pytest.mark.parametrize(("options", "at"), [({}, 30), ({"window": 0.8}, 93), ({"loss_moved": 0.6}, 21)], ids=str)
def test_the_window_and_the_margins_can_be_chosen(scripted, options, at):
    script = {"loss": late(19, 1.0, 0.6), "at_least": 2.05}
    assert first_settled(**script, **options) == at
    assert scripted(**script, **options) == at


def test_a_loss_of_zero_that_stays_is_at_rest_and_one_that_comes_and_goes_is_not(scripted):
    assert scripted(loss=lambda step: 0.0) == first_settled()
    assert scripted(loss=lambda step: float(step % 2) * 1e-9) == 120


@pytest.mark.parametrize("value", [math.nan, -1.0, math.inf])
def test_a_loss_without_a_logarithm_never_rests(scripted, value):
    assert scripted(loss=lambda step: value) == 120


def test_the_sanity_check_and_later_validations_stop_nothing(fit, theirs, foreign):
    stop = StopWhenConverged(**THEIRS, at_least=0.0)
    module = held(theirs)
    trainer = fit(module, HoldsNorm(), Convergence(), stop, num_sanity_val_steps=1, max_epochs=2)
    trainer.validate(module, foreign.val_loader(), verbose=False)
    assert len(stop.state_dict()["values"]["loss"]) == 2


def test_a_validation_outside_of_training_is_none_of_its_business(theirs, foreign, make_trainer):
    stop = StopWhenConverged(**THEIRS)
    make_trainer(callbacks=[Convergence(), stop]).validate(held(theirs), foreign.val_loader(), verbose=False)
    assert stop.state_dict() == {"step": -1, "values": {}}


def test_several_validations_of_one_step_count_once(fit, theirs):
    stop = StopWhenConverged(**THEIRS, at_least=9.0)
    fit(held(theirs), Convergence(), stop, accumulate_grad_batches=3, val_check_interval=1)
    assert stop.state_dict()["values"]["time"].flatten().tolist() == pytest.approx([0, 0.05, 0.1, 0.15])


def test_it_says_when_and_why_it_stopped(scripted):
    class Hears(logging.Handler):
        def emit(self, record):
            heard.append(record.getMessage())

    heard = []
    logger, handler = logging.getLogger("lightning.pytorch.utilities.rank_zero"), Hears()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        assert scripted() == 18
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    said = [message for message in heard if "converged" in message]
    assert said == [
        "StopWhenConverged: converged after 1.8 decay units, at step 18: over the last 33% of them log train_loss "
        "moved by less than 0.2, train_acc by less than 0.02, the norm by less than 2.0% in every member"
    ]


# Stopping: what has to be there


@pytest.mark.parametrize(
    "others",
    [[], [LearningCurves(name="convergence")], [Convergence(name="another")]],
    ids=["none", "another class", "another name"],
)
def test_without_its_convergence_it_refuses_before_training(fit, theirs, others):
    with pytest.raises(ValueError, match="the Trainer has no Convergence callback named 'convergence'"):
        fit(held(theirs), *others, StopWhenConverged(**THEIRS))


def test_a_convergence_at_other_steps_is_refused_before_training(fit, theirs):
    with pytest.raises(ValueError, match=r"'convergence' has to follow validations, got .* EveryNSteps\(n=3\)"):
        fit(held(theirs), Convergence(EveryNSteps(3)), StopWhenConverged(**THEIRS))


def test_it_listens_to_the_convergence_of_its_name(fit, theirs):
    watch = [Convergence(EveryNSteps(3)), Convergence(name="rest")]
    stop = StopWhenConverged(**THEIRS, at_least=0.5, convergence="rest")
    assert fit(held(theirs), HoldsNorm(), *watch, stop, max_epochs=9).global_step == 18


@pytest.mark.parametrize(
    ("optimizer", "first"),
    [
        (lambda module: AdamW(module.parameters(), lr=0.1, weight_decay=0.0), True),
        (lambda module: SGD(module.parameters(), lr=0.1), False),
    ],
    ids=["AdamW", "SGD, and before the monitor in the list"],
)
def test_without_decay_it_refuses_before_training(fit, theirs, optimizer, first):
    watch = [Convergence(), StopWhenConverged(**THEIRS)]
    with pytest.raises(ValueError, match="the optimizer has no weight decay: training would never stop"):
        fit(held(theirs, optimizer=optimizer), *(watch if first else watch[::-1]))


def test_members_without_decay_are_named(make_trainer):
    module, data = ours([1.0, 0.0, 0.0], seeds=(3, 4, 5))
    with pytest.raises(ValueError, match=r"members \[1, 2\] have none: training would never stop"):
        make_trainer(max_epochs=1, callbacks=[Convergence(), StopWhenConverged()]).fit(module, datamodule=data)


@pytest.mark.parametrize("stop_first", [True, False])
@pytest.mark.parametrize("watched", [False, True], ids=["nobody counted", "counted after the gap"])
def test_a_time_that_is_not_known_would_never_come(fit, theirs, tmp_path, stop_first, watched):
    path = tmp_path / "it.ckpt"
    fit(held(theirs)).save_checkpoint(path)
    if watched:
        fit(held(theirs), Convergence(), max_epochs=4, ckpt_path=path).save_checkpoint(path)
    rates, watch = Rates(), [Convergence(), StopWhenConverged(**THEIRS)]
    with pytest.raises(
        ValueError, match=r"'convergence' does not know .* before step \d+, from a .*never stop; use max"
    ):
        fit(held(theirs), rates, *(watch[::-1] if stop_first else watch), max_epochs=40, ckpt_path=path)
    assert rates.taken == []


def test_it_may_be_added_where_time_was_counted(fit, theirs, tmp_path):
    fit(held(theirs), HoldsNorm(), Convergence()).save_checkpoint(tmp_path / "it.ckpt")
    watch = [StopWhenConverged(**THEIRS, at_least=0.5), Convergence()]
    assert fit(held(theirs), HoldsNorm(), *watch, max_epochs=40, ckpt_path=tmp_path / "it.ckpt").global_step < 40


def test_a_metric_that_is_missing_is_told_once(fit, theirs):
    watch = [Convergence(), StopWhenConverged(metric_loss="train_lost", metric_accuracy="train_acc", at_least=0)]
    with pytest.warns(UserWarning, match="no train_lost at the validation of step 3") as caught:
        trainer = fit(held(theirs), HoldsNorm(), *watch, max_epochs=5)
    assert len([one for one in caught if "StopWhenConverged" in str(one.message)]) == 1
    assert trainer.global_step == 15


# Stopping: members, going on


class OfTwo(LightningModule):
    """Two members with decays of their own, whose metrics are scripted."""

    n_members = 2

    def __init__(self, decays, loss):
        super().__init__()
        self.weight_decays = decays
        self.weight = nn.Parameter(torch.ones(2, 3))
        self.loss = loss

    def training_step(self, batch, batch_idx):
        return 0 * self.weight.sum()

    def validation_step(self, batch, batch_idx):
        """Nothing."""

    def member_metrics(self):
        return {"train_loss": torch.tensor(self.loss(self.trainer.global_step)), "train_acc": torch.ones(2)}

    def configure_optimizers(self):
        return SGD(self.parameters(), lr=0.1)


def test_it_waits_for_the_last_member(fit):
    def run(decays, loss):
        stop = StopWhenConverged(**THEIRS)
        return fit(OfTwo(decays, loss), Convergence(), stop, max_epochs=40).global_step

    assert run([1.0, 1.0], lambda step: [1.0, 1.0]) == 18
    assert run([1.0, 0.5], lambda step: [1.0, 1.0]) == 21  # at least one decay unit for each: 20 steps
    expected = first_settled(loss=late(13, 1.0, 0.01))
    assert run([1.0, 1.0], lambda step: [1.0, 0.01 if step >= 13 else 1.0]) == expected
    assert run([1.0, 1.0], lambda step: [math.nan, 1.0]) == 120


@pytest.mark.parametrize("epochs", [2, 5, 7])
def test_a_run_that_goes_on_stops_where_it_would_have(fit, theirs, tmp_path, epochs):
    """Nothing is known of what went before but what the checkpoint says."""

    def run(**options):
        module = held(theirs, loss=late(16, 1.0, 0.01), reseed=True)
        watch = [Convergence(), StopWhenConverged(**THEIRS, at_least=0.3)]
        return fit(module, HoldsNorm(late(13, 2.0, 1.0)), *watch, shuffle=False, **options), watch[1]

    whole, stop = run(max_epochs=40)
    assert whole.global_step == 24
    first, _ = run(max_epochs=epochs)
    first.save_checkpoint(tmp_path / "it.ckpt")
    torch.load(tmp_path / "it.ckpt", weights_only=True)
    again, resumed = run(max_epochs=40, ckpt_path=tmp_path / "it.ckpt")
    assert again.global_step == whole.global_step
    for name, values in stop.state_dict()["values"].items():
        torch.testing.assert_close(resumed.state_dict()["values"][name][: len(values)], values, rtol=0, atol=0)


def test_a_run_that_forgot_would_stop_elsewhere(fit, theirs, tmp_path):
    """The plant: the guard above sees it."""

    class Forgets(Callback):
        def on_train_start(self, trainer, *args):
            stop.load_state_dict({"step": -1, "values": {}})

    first = fit(held(theirs), HoldsNorm(), Convergence(), StopWhenConverged(**THEIRS, at_least=9), max_epochs=5)
    first.save_checkpoint(tmp_path / "it.ckpt")
    stops = []
    for plant in ([], [Forgets()]):
        stop = StopWhenConverged(**THEIRS, at_least=0.55)
        trainer = fit(
            held(theirs), HoldsNorm(), *plant, Convergence(), stop, max_epochs=40, ckpt_path=tmp_path / "it.ckpt"
        )
        stops.append(trainer.global_step)
    assert stops == [18, 24]


@pytest.mark.parametrize("stop_first", [True, False])
def test_a_validation_that_is_made_up_for_may_stop_too(make_trainer, tmp_path, stop_first):
    """Saved after the step and before the validation at which the whole run stopped."""

    def run(*others, **options):
        module, data = ours([1.0, 2.0], lambda parameters: AdamW(parameters, lr=0.2))
        watch = [Convergence(), StopWhenConverged(loss_moved=9.0, accuracy_moved=2.0, norm_moved=9.0)]
        trainer = make_trainer(max_epochs=12, callbacks=[*others, *(watch[::-1] if stop_first else watch)])
        trainer.fit(module, datamodule=data, **options)
        return trainer.global_step, watch[1].state_dict()["values"]

    path = tmp_path / "it.ckpt"
    last, values = run()
    assert last == 12  # the first even step at which three validations lie in the window
    run(SavesAt(last, path))
    again, resumed = run(ckpt_path=path)
    assert again == last
    for name, expected in values.items():
        torch.testing.assert_close(resumed[name][: len(expected)], expected, rtol=0, atol=0)


def test_an_object_that_is_given_to_a_second_run_starts_again(fit, theirs):
    watch = [Convergence(), StopWhenConverged(**THEIRS, at_least=0.5)]
    stops = [fit(held(theirs), HoldsNorm(), *watch, max_epochs=9).global_step for _ in range(2)]
    assert stops == [18, 18]
    assert len(watch[1].state_dict()["values"]["time"]) == 6
