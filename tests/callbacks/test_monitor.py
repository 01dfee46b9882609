import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from grok_callbacks import EveryNSteps, EveryValidation, LogSpaced, Monitor
from grok_callbacks.monitor import find_submodule, validation_due


class Probe(Monitor):
    """Measures a row of weights; counts how often it was asked, and notes the circumstances."""

    dims = {"weight": ("input",)}  # noqa: RUF012 - a constant

    def __init__(self, schedule=EveryNSteps(1), name="probe"):  # noqa: B008 - a frozen value
        super().__init__(schedule, name)
        self.asked = []
        self.grad = []

    def measure(self, trainer, pl_module):
        self.asked.append((trainer.global_step, trainer.sanity_checking))
        self.grad.append(torch.is_grad_enabled())
        return {"weight": pl_module.encoder.fc1.weight[:1]}

    def scalars(self, values):
        return {"first": float(values["weight"][0, 0])}


class Weights(Callback):
    """The same row of weights, noted after every step by other means."""

    def __init__(self):
        self.rows = {}

    def on_train_start(self, trainer, pl_module):
        self.on_train_batch_end(trainer, pl_module)

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.rows[trainer.global_step] = pl_module.encoder.fc1.weight[0].tolist()


@pytest.fixture
def fit(foreign, make_trainer):
    """Train somebody else's module for two epochs of three steps, watched."""

    def run(*callbacks, module=None, train=None, ckpt_path=None, **options):
        trainer = make_trainer(**({"max_epochs": 2, "callbacks": list(callbacks)} | options))
        module = foreign.module() if module is None else module
        train = foreign.train_loader() if train is None else train
        trainer.fit(module, train, foreign.val_loader(), ckpt_path=ckpt_path)
        return trainer

    return run


def test_history_is_stacked_by_step_and_led_by_the_member(fit):
    probe, weights = Probe(), Weights()
    fit(weights, probe)
    assert probe.steps.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert probe.steps.dtype == torch.int64
    assert probe.history["weight"].shape == (7, 1, 4)
    # Kept values do not follow the weights that training changes in place.
    assert probe.history["weight"][:, 0].tolist() == [weights.rows[step] for step in range(7)]


@pytest.mark.parametrize(("schedule", "steps"), [(EveryNSteps(4), [0, 4]), (LogSpaced(2), [0, 1, 3])])
def test_it_measures_at_the_steps_of_its_schedule(fit, schedule, steps):
    probe = Probe(schedule)
    fit(probe)
    assert probe.steps.tolist() == steps
    assert [step for step, _ in probe.asked] == steps


def test_nothing_is_measured_before_the_first_step():
    probe = Probe()
    assert probe.steps.shape == (0,)
    assert probe.history == {}
    assert probe.record() == {}


def test_gradients_are_off_while_measuring(fit):
    probe = Probe()
    fit(probe)
    assert probe.grad == [False] * 7
    assert not probe.history["weight"].requires_grad


def test_a_step_that_lightning_passes_several_times_is_measured_once(fit):
    class Insists(Probe):
        def on_train_batch_end(self, *args):
            super().on_train_batch_end(*args)
            super().on_train_batch_end(*args)

    probe = Insists()
    fit(probe)
    assert probe.steps.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert len(probe.asked) == 7


def test_accumulated_batches_count_as_one_step(fit):
    probe, weights = Probe(), Weights()
    fit(weights, probe, accumulate_grad_batches=3, max_epochs=4)
    assert probe.steps.tolist() == [0, 1, 2, 3, 4]
    assert len(probe.asked) == 5
    # Each row is that of the weights after so many steps: a change at every step, none in between.
    assert probe.history["weight"][:, 0].tolist() == [weights.rows[step] for step in range(5)]
    assert len({tuple(row) for row in weights.rows.values()}) == 5


def test_a_record_names_the_dimensions_of_every_array(fit):
    probe = Probe(EveryNSteps(3))
    fit(probe)
    record = probe.record()
    assert {name: dims for name, (dims, _) in record.items()} == {
        "step": ("step",),
        "weight": ("step", "member", "input"),
    }
    assert torch.equal(record["step"][1], probe.steps)
    assert torch.equal(record["weight"][1], probe.history["weight"])


def test_the_whole_history_is_in_the_checkpoint_as_plain_tensors(fit, tmp_path):
    probe = Probe(EveryNSteps(2))
    trainer = fit(probe)
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    checkpoint = torch.load(tmp_path / "it.ckpt", weights_only=True)
    state = checkpoint["callbacks"][probe.state_key]
    assert torch.equal(state["steps"], torch.tensor([0, 2, 4, 6]))
    assert isinstance(state["values"]["weight"], torch.Tensor)
    assert torch.equal(state["values"]["weight"], probe.history["weight"])


def test_state_survives_a_file(fit, tmp_path):
    probe, restored = Probe(EveryNSteps(2)), Probe(EveryNSteps(2))
    fit(probe)
    torch.save(probe.state_dict(), tmp_path / "state.pt")
    restored.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(restored.steps, probe.steps)
    assert torch.equal(restored.history["weight"], probe.history["weight"])


def test_an_empty_state_survives_too(tmp_path):
    torch.save(Probe().state_dict(), tmp_path / "state.pt")
    restored = Probe()
    restored.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert restored.record() == {}


def test_a_resumed_run_has_the_whole_history_and_no_step_twice(fit, tmp_path):
    probe = Probe(EveryNSteps(2))
    fit(probe).save_checkpoint(tmp_path / "it.ckpt")
    resumed = Probe(EveryNSteps(2))
    fit(resumed, ckpt_path=tmp_path / "it.ckpt", max_epochs=4)
    assert resumed.steps.tolist() == [0, 2, 4, 6, 8, 10, 12]
    assert torch.equal(resumed.history["weight"][:4], probe.history["weight"])
    assert [step for step, _ in resumed.asked] == [8, 10, 12]


class Disturbs(Probe):
    """Sets all modules to one mode, draws, and may fail."""

    def __init__(self, mode, fails=False):
        super().__init__(EveryNSteps(1))
        self.mode = mode
        self.fails = fails

    def measure(self, trainer, pl_module):
        pl_module.train(self.mode)
        torch.rand(3)
        if self.fails:
            raise RuntimeError("measuring failed")
        return super().measure(trainer, pl_module)


class Notes(Callback):
    """Notes modes and random state when training starts, or fails to."""

    def __init__(self):
        self.modes = []
        self.random = []

    def on_train_start(self, trainer, pl_module):
        self.modes.append([module.training for module in pl_module.modules()])
        self.random.append(torch.get_rng_state())

    def on_exception(self, trainer, pl_module, exception):
        self.on_train_start(trainer, pl_module)


class Before(Notes):
    """First puts one module in eval mode, so that modes differ."""

    def on_train_start(self, trainer, pl_module):
        pl_module.encoder.drop.eval()
        super().on_train_start(trainer, pl_module)

    def on_exception(self, *args):
        """Not again."""


@pytest.mark.parametrize("mode", [True, False])
def test_modes_and_random_state_are_put_back_module_by_module(fit, mode):
    before, after = Before(), Notes()
    fit(before, Disturbs(mode), after, max_steps=1, max_epochs=-1)
    assert sorted(set(before.modes[0])) == [False, True]
    assert after.modes == before.modes
    assert torch.equal(after.random[0], before.random[0])


@pytest.mark.parametrize("mode", [True, False])
def test_modes_and_random_state_are_put_back_when_measuring_fails(fit, mode):
    before, after, probe = Before(), Notes(), Disturbs(mode, fails=True)
    with pytest.raises(RuntimeError, match="measuring failed"):
        fit(before, probe, after)
    assert after.modes == before.modes
    assert torch.equal(after.random[0], before.random[0])
    assert probe.record() == {}


def test_scalars_reach_the_logger_at_exactly_the_measured_steps(fit, recording_logger):
    probe = Probe(LogSpaced(3))
    # However rarely Lightning itself writes.
    fit(probe, logger=recording_logger, log_every_n_steps=3, max_epochs=4)
    assert recording_logger.steps("probe/first") == probe.steps.tolist() == [0, 1, 2, 5, 10]
    assert recording_logger.values("probe/first") == probe.history["weight"][:, 0, 0].tolist()


def test_every_logger_gets_the_scalars(fit, recording_logger, another_recording_logger):
    probe = Probe(EveryNSteps(2))
    fit(probe, logger=[recording_logger, another_recording_logger])
    for logger in (recording_logger, another_recording_logger):
        assert logger.steps("probe/first") == [0, 2, 4, 6]


def test_a_monitor_without_scalars_logs_nothing(fit, recording_logger):
    class Silent(Probe):
        def scalars(self, values):
            return {}

    fit(Silent(), logger=recording_logger)
    assert not [metrics for _, metrics in recording_logger.points if any(key.startswith("probe") for key in metrics)]


def test_without_a_logger_it_measures_all_the_same(fit):
    probe = Probe(EveryNSteps(2))
    fit(probe, logger=False)
    assert probe.steps.tolist() == [0, 2, 4, 6]


def test_a_fast_dev_run_measures_and_writes_nothing(fit, tmp_path):
    probe = Probe()
    fit(probe, fast_dev_run=2, logger=TensorBoardLogger(tmp_path))
    assert probe.steps.tolist() == [0, 1, 2]
    assert list(tmp_path.iterdir()) == []


def test_the_sanity_check_is_not_measured(fit):
    probe = Probe(EveryValidation())
    fit(probe, num_sanity_val_steps=1)
    assert probe.asked == [(0, False), (3, False), (6, False)]
    assert probe.steps.tolist() == [0, 3, 6]


def test_a_validation_outside_of_fit_is_not_measured(make_trainer, foreign):
    probe = Probe(EveryValidation())
    make_trainer(callbacks=[probe]).validate(foreign.module(), foreign.val_loader(), verbose=False)
    assert probe.asked == []


def test_where_there_is_nothing_to_measure_no_step_is_recorded(fit, recording_logger):
    class FromTheThird(Probe):
        def measure(self, trainer, pl_module):
            return super().measure(trainer, pl_module) if trainer.global_step >= 3 else {}

    probe = FromTheThird()
    fit(probe, logger=recording_logger)
    assert probe.steps.tolist() == recording_logger.steps("probe/first") == [3, 4, 5, 6]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weight": torch.zeros(4)}, r"expected 'weight' of shape \(member, input\) with 1 members, got \(4,\)"),
        ({"weight": torch.zeros(2, 4)}, r"with 1 members, got \(2, 4\)"),
        ({"weight": torch.zeros(1, 4, 1)}, r"with 1 members, got \(1, 4, 1\)"),
        ({"weight": torch.zeros(1, 4), "bias": torch.zeros(1)}, r"measured 'bias', but dims name \['weight'\]"),
    ],
)
def test_arrays_of_another_name_or_shape_are_refused(fit, values, message):
    class Wrong(Probe):
        def measure(self, trainer, pl_module):
            return values

    with pytest.raises(ValueError, match=message):
        fit(Wrong())


@pytest.mark.parametrize(
    ("first", "later"),
    [
        ({"weight": (1, 4)}, {"weight": (1, 4), "bias": (1,)}),
        ({"weight": (1, 4), "bias": (1,)}, {"weight": (1, 4)}),
        ({"weight": (1, 4)}, {"weight": (1, 5)}),
    ],
)
def test_arrays_that_do_not_line_up_with_those_of_earlier_steps_are_refused(fit, first, later):
    class Varies(Probe):
        dims = {"weight": ("input",), "bias": ()}  # noqa: RUF012 - a constant

        def measure(self, trainer, pl_module):
            shapes = first if trainer.global_step < 2 else later
            return {name: torch.zeros(shape) for name, shape in shapes.items()}

        def scalars(self, values):
            return {}

    with pytest.raises(ValueError, match="Varies"):
        fit(Varies())


def test_a_monitor_that_is_given_to_a_second_run_starts_again(fit, foreign):
    probe = Probe(EveryNSteps(2))
    fit(probe)
    another = foreign.module(reseed=True)
    another.encoder.fc1.weight.data.fill_(0.5)
    fit(probe, module=another, max_epochs=1)
    assert probe.steps.tolist() == [0, 2]
    assert probe.history["weight"][0, 0].tolist() == [0.5] * 4


def test_a_run_that_goes_on_in_the_same_trainer_goes_on_in_the_history(fit, foreign):
    probe, module = Probe(EveryNSteps(2)), foreign.module()
    trainer = fit(probe, module=module)
    trainer.fit_loop.max_epochs = 3
    trainer.fit(module, foreign.train_loader(), foreign.val_loader())
    assert probe.steps.tolist() == [0, 2, 4, 6, 8]


def test_a_module_with_members_needs_one_entry_for_each(fit, foreign):
    class WithMembers(foreign.module):
        n_members = 3

    class OfThree(Probe):
        def measure(self, trainer, pl_module):
            return {"weight": pl_module.encoder.fc1.weight[:3]}

    probe = OfThree()
    fit(probe, module=WithMembers())
    assert probe.history["weight"].shape == (7, 3, 4)
    with pytest.raises(ValueError, match=r"with 3 members, got \(1, 4\)"):
        fit(Probe(), module=WithMembers())


@pytest.mark.parametrize("name", ["", "A", "aB", "1a", "_a", "a-b", "a b", "a/b", "a.b", "a\n", "é"])
def test_names_that_no_file_or_logger_would_like_are_refused(name):
    with pytest.raises(ValueError, match="name: expected lower-case letters"):
        Probe(name=name)


@pytest.mark.parametrize("name", ["a", "neuron_norms", "fc1_", "x2"])
def test_plain_names_are_accepted(name):
    assert Probe(name=name).name == name


def test_two_monitors_of_one_class_live_side_by_side(fit, recording_logger, tmp_path):
    one, two = Probe(EveryNSteps(2), name="one"), Probe(EveryNSteps(3), name="two")
    fit(one, two, logger=recording_logger).save_checkpoint(tmp_path / "it.ckpt")
    assert recording_logger.steps("one/first") == one.steps.tolist() == [0, 2, 4, 6]
    assert recording_logger.steps("two/first") == two.steps.tolist() == [0, 3, 6]
    # In another order: each finds its own history.
    resumed = {"two": Probe(EveryNSteps(3), name="two"), "one": Probe(EveryNSteps(2), name="one")}
    fit(*resumed.values(), max_epochs=3, ckpt_path=tmp_path / "it.ckpt")
    assert resumed["one"].steps.tolist() == [0, 2, 4, 6, 8]
    assert resumed["two"].steps.tolist() == [0, 3, 6, 9]


def test_two_monitors_of_one_name_are_refused(make_trainer):
    with pytest.raises(RuntimeError, match="state_key"):
        make_trainer(callbacks=[Probe(), Probe()])


def test_the_seconds_spent_are_counted(fit):
    probe = Probe()
    assert probe.seconds == 0
    fit(probe)
    assert probe.seconds > 0


class DueAndDone(Callback):
    """Notes for every batch whether a validation was announced and whether it came."""

    def __init__(self):
        self.announced = []
        self.done = []

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.announced.append(validation_due(trainer))
        self.done.append(False)

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.done[-1] = True


class StopsAt(Callback):
    def __init__(self, batches):
        self.left = batches

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.left -= 1
        if not self.left:
            trainer.should_stop = True


class Stream(IterableDataset):
    """Rows of which nobody knows the number."""

    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        yield from (self.rows[i] for i in range(len(self.rows)))


AGREEMENT = {
    "every epoch": ({}, "some"),
    "every second epoch": ({"check_val_every_n_epoch": 2}, "some"),
    "every third batch, across epochs": ({"val_check_interval": 3, "check_val_every_n_epoch": None}, "some"),
    "every second batch of an epoch": ({"val_check_interval": 2}, "some"),
    "half an epoch": ({"val_check_interval": 0.5}, "some"),
    "half an epoch, every second": ({"val_check_interval": 0.5, "check_val_every_n_epoch": 2}, "some"),
    "every batch": ({"val_check_interval": 1}, "all"),
    "never": ({"limit_val_batches": 0}, "none"),
    "part of the training batches": ({"limit_train_batches": 2}, "some"),
    "accumulating": ({"accumulate_grad_batches": 2, "val_check_interval": 3}, "some"),
    "with a sanity check": ({"num_sanity_val_steps": 1}, "some"),
}


@pytest.fixture
def notes_of(fit, foreign):
    """Four epochs of five batches; what was announced and what came."""

    def run(*callbacks, stream=False, **options):
        notes = DueAndDone()
        train = foreign.train_loader(n=40)
        if stream:
            train = DataLoader(Stream(train.dataset), batch_size=8)
        fit(*callbacks, notes, train=train, **({"max_epochs": 4} | options))
        return notes

    return run


@pytest.mark.parametrize("case", AGREEMENT)
def test_validation_is_announced_exactly_when_lightning_validates(notes_of, case):
    options, how_many = AGREEMENT[case]
    notes = notes_of(**options)
    assert notes.announced == notes.done
    assert {"all": all(notes.done), "none": not any(notes.done)}.get(how_many, len(set(notes.done)) == 2)


@pytest.mark.parametrize("every", [1, 2])
def test_validation_of_a_stream_is_announced_exactly_when_lightning_validates(notes_of, every):
    notes = notes_of(stream=True, check_val_every_n_epoch=every)
    assert notes.announced == notes.done
    assert sum(notes.done) == 4 // every


def test_a_validation_because_training_is_stopped_is_announced(notes_of):
    notes = notes_of(StopsAt(8))
    assert len(notes.done) == 8
    assert notes.done[-1]
    assert notes.announced == notes.done


class SavesAt(Callback):
    """Writes a checkpoint after this step, before the validation that follows it."""

    def __init__(self, step, path):
        self.step = step
        self.path = path

    def on_train_batch_end(self, trainer, pl_module, *args):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize(("every", "steps"), [(1, [0, 3, 6]), (2, [0, 6])])
def test_a_measurement_due_at_the_validation_after_a_checkpoint_is_made_up_for(fit, foreign, tmp_path, every, steps):
    path = tmp_path / "it.ckpt"
    probe, resumed = Probe(EveryValidation()), Probe(EveryValidation())
    options = {"train": foreign.train_loader(shuffle=False), "check_val_every_n_epoch": every}
    fit(probe, SavesAt(3, path), module=foreign.module(reseed=True), **options)
    saved = torch.load(path, weights_only=True)
    assert saved["callbacks"][probe.state_key]["steps"].tolist() == [0]  # the validation was yet to come
    fit(resumed, ckpt_path=path, module=foreign.module(reseed=True), **options)
    assert resumed.steps.tolist() == probe.steps.tolist() == steps
    assert torch.equal(resumed.history["weight"], probe.history["weight"])


class Nested(LightningModule):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        self.head = nn.Linear(2, 1)


def test_submodules_are_found_by_their_dotted_name():
    module = Nested()
    assert find_submodule(module, "encoder.0") is module.encoder[0]
    assert find_submodule(module, "head") is module.head


def test_the_names_that_wrappers_add_need_not_be_known():
    module = Nested()
    plain = module.encoder[0]
    module.encoder = torch.compile(module.encoder, backend="eager")
    assert "encoder._orig_mod.0" in dict(module.named_modules())
    assert find_submodule(module, "encoder.0") is plain


@pytest.mark.parametrize("path", ["encoder.1x", "fc", "", "encoder._orig_mod.0"])
def test_a_name_that_matches_nothing_is_answered_with_the_layers_that_exist(path):
    with pytest.raises(ValueError, match=f"the model has no '{path}'; it has encoder, encoder.0, head$"):
        find_submodule(Nested(), path)


def test_a_model_without_layers_says_so():
    with pytest.raises(ValueError, match="it has no layers"):
        find_submodule(LightningModule(), "fc")
