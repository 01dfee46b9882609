import math

import pytest
import torch

from grok_callbacks import LearningCurves, Onset, StopAfterOnset

THEIRS = {"train_accuracy": "train_acc", "held_out_accuracy": "val_acc"}
# A fork is what a worker is; newer Pythons say so where threads exist.
WORKERS = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def grokking(memorised=6, generalised=15, forgotten=math.inf):
    """Scripted accuracies that jump at these steps."""
    return {
        "train_acc": lambda step: 1.0 if step >= memorised else 0.5,
        "val_acc": lambda step: 1.0 if generalised <= step < forgotten else 0.5,
    }


@pytest.fixture
def fit(foreign, make_trainer):
    """Ten epochs of three steps; validation after each."""

    def run(*callbacks, script=None, workers=0, ckpt_path=None, **options):
        trainer = make_trainer(**({"max_epochs": 10, "callbacks": list(callbacks)} | options))
        module = foreign.module(grokking() if script is None else script)
        trainer.fit(module, foreign.train_loader(workers), foreign.val_loader(workers), ckpt_path=ckpt_path)
        return trainer

    return run


def found(onset):
    """``{event: (step, confirmed_at, resolution)}`` of one member; ``None`` for NaN."""

    def plain(field):
        return None if field[0].isnan() else float(field[0])

    return {event: tuple(map(plain, onsets)) for event, onsets in onset.onsets().items()}


NEVER = (None, None, None)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=WORKERS)])
def test_onsets_are_found_in_what_a_foreign_module_logs(fit, workers):
    onset = Onset(**THEIRS, dwell=6)
    fit(onset, workers=workers, num_sanity_val_steps=1)
    assert onset.steps.tolist() == list(range(3, 31, 3))
    assert found(onset) == {"memorised": (6, 6, 3), "generalised": (15, 21, 3), "forgotten": NEVER}


def test_forgetting_counts_after_generalising_is_confirmed(fit):
    onset = Onset(**THEIRS, dwell=3)
    fit(onset, script=grokking(3, 9, 18))
    assert found(onset) == {"memorised": (3, 3, 0), "generalised": (9, 12, 3), "forgotten": (18, 21, 3)}


def test_what_has_not_happened_is_nan_up_to_the_last_step(fit):
    onset = Onset(**THEIRS)
    fit(onset, script=grokking(6, 99))
    record = onset.record()
    assert set(record) == {"step", "confirmed_at", "resolution", "last_step"}
    for name, (dims, values) in record.items():
        assert dims == ("event", "member"), name
        assert values.shape == (3, 1)
    assert record["last_step"][1].tolist() == [[30], [30], [30]]
    assert record["step"][1].isnan().tolist() == [[False], [True], [True]]
    assert onset.labels["event"] == ("memorised", "generalised", "forgotten")


def test_a_dwell_of_the_usual_length_is_not_over_in_a_short_run(fit):
    onset = Onset(**THEIRS)
    fit(onset)
    assert found(onset)["generalised"] == NEVER
    assert onset.attributes() == {"memorised_above": 0.98, "generalised_from": 0.98, "dwell": 300, "slack": 0.02}


def test_before_the_first_validation_nothing_is_known():
    assert Onset().onsets() == {}
    assert Onset().record() == {}


def test_a_module_that_logs_no_such_metrics_has_no_onsets(fit):
    onset = Onset()
    fit(onset)
    assert onset.onsets() == {}


def test_one_of_the_two_metrics_is_enough_for_its_own_events(fit):
    onset = Onset(**THEIRS, dwell=0)
    fit(onset, script={"val_acc": grokking()["val_acc"]})
    assert found(onset) == {"memorised": NEVER, "generalised": (15, 15, 3), "forgotten": NEVER}
    onset = Onset(**THEIRS, dwell=0)
    fit(onset, script={"train_acc": grokking()["train_acc"]})
    assert found(onset) == {"memorised": (6, 6, 3), "generalised": NEVER, "forgotten": NEVER}


def test_a_dip_within_the_slack_does_not_undo_generalising(fit):
    def dips(to):
        return {"val_acc": lambda step: to if step == 18 else grokking()["val_acc"](step)}

    tolerant, strict = Onset(**THEIRS, dwell=6, slack=0.25), Onset(**THEIRS, dwell=6, slack=0.0, name="strict")
    fit(tolerant, strict, script=dips(to=0.75))
    assert found(tolerant)["generalised"] == (15, 21, 3)
    assert found(strict)["generalised"] == (21, 27, 3)


def test_memorised_means_more_than_the_threshold_and_generalised_at_least(fit):
    both = {name: lambda step: 0.75 if step < 15 else 0.8125 for name in ("train_acc", "val_acc")}
    onset = Onset(**THEIRS, memorised_above=0.75, generalised_from=0.75, dwell=0)
    fit(onset, script=both)
    assert found(onset)["memorised"] == (15, 15, 3)
    assert found(onset)["generalised"] == (3, 3, 0)


@pytest.mark.parametrize("threshold", [0.98, 0.95, 0.9, 0.7])
def test_an_accuracy_of_exactly_the_threshold_is_the_threshold_though_it_was_logged_in_float32(fit, threshold):
    both = {name: lambda step: threshold for name in ("train_acc", "val_acc")}
    onset = Onset(**THEIRS, memorised_above=threshold, generalised_from=threshold, dwell=0)
    fit(onset, script=both, max_epochs=1)
    assert found(onset)["memorised"] == NEVER
    assert found(onset)["generalised"] == (3, 3, 0)


def test_a_member_at_a_time(foreign, make_trainer):
    class OfTwo(foreign.module):
        n_members = 2

        def member_metrics(self):
            step = self.trainer.global_step
            ones = torch.ones(2, dtype=torch.float64)
            return {"train_acc": ones * (step > 3), "val_acc": ones * torch.tensor([step >= 9, step >= 6])}

    onset = Onset(**THEIRS, dwell=3)
    trainer = make_trainer(max_epochs=3, callbacks=[onset])
    trainer.fit(OfTwo(), foreign.train_loader(), foreign.val_loader())
    onsets = onset.onsets()
    assert onsets["memorised"].step.tolist() == [6, 6]
    assert onsets["generalised"].confirmed_at.nan_to_num(-1).tolist() == [-1, 9]
    assert onset.record()["step"][1].shape == (3, 2)


def test_onsets_follow_a_history_that_is_loaded(fit):
    early, late = Onset(**THEIRS, dwell=3), Onset(**THEIRS, dwell=3)
    fit(early, script=grokking(3, 6), max_epochs=4)
    fit(late, script=grokking(9, 12), max_epochs=4)
    assert found(early)["memorised"] == (3, 3, 0)
    early.load_state_dict(late.state_dict())  # of the same length
    assert found(early) == found(late)
    assert found(early)["memorised"] == (9, 9, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memorised_above": 1.5}, r"memorised_above: .* in \[0, 1\], got 1.5"),
        ({"generalised_from": -0.1}, r"generalised_from: .* in \[0, 1\], got -0.1"),
        ({"memorised_above": math.nan}, "memorised_above: .* got nan"),
        ({"dwell": -1}, "dwell and slack: expected at least 0, got -1 and 0.02"),
        ({"slack": -0.5}, "got 300 and -0.5"),
        ({"name": "Onset"}, "name: expected"),
    ],
)
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Onset(**options)


@pytest.mark.parametrize("onset_first", [True, False])
@pytest.mark.parametrize(
    ("event", "steps", "stops_at"),
    [("memorised", 0, 6), ("memorised", 1, 9), ("generalised", 0, 21), ("generalised", 3, 24), ("generalised", 4, 27)],
)
def test_training_stops_at_the_first_validation_from_so_many_steps_after_the_onset(
    fit, onset_first, event, steps, stops_at
):
    callbacks = [Onset(**THEIRS, dwell=6), StopAfterOnset(event, steps)]
    trainer = fit(*(callbacks if onset_first else callbacks[::-1]))
    assert trainer.global_step == stops_at
    assert callbacks[0].steps.tolist() == list(range(3, stops_at + 1, 3))


def test_it_can_wait_for_forgetting(fit):
    trainer = fit(StopAfterOnset("forgotten"), Onset(**THEIRS, dwell=3), script=grokking(3, 9, 18))
    assert trainer.global_step == 21


def test_training_goes_on_to_its_end_if_the_event_does_not_come(fit):
    trainer = fit(Onset(**THEIRS, dwell=6), StopAfterOnset("forgotten"))
    assert trainer.global_step == 30


def test_the_sanity_check_stops_nothing(fit):
    trainer = fit(
        StopAfterOnset("memorised"), Onset(**THEIRS), script={"train_acc": lambda step: 1.0}, num_sanity_val_steps=1
    )
    assert trainer.global_step == 3


def test_the_sanity_check_of_a_resumed_run_stops_nothing(fit, tmp_path):
    fit(Onset(**THEIRS), max_steps=13).save_checkpoint(tmp_path / "it.ckpt")
    callbacks = [Onset(**THEIRS), StopAfterOnset("memorised")]
    trainer = fit(*callbacks, ckpt_path=tmp_path / "it.ckpt", num_sanity_val_steps=1)
    assert trainer.global_step == 16  # the first validation of its own: a loader of theirs begins anew


def test_resumed_at_a_validation_from_which_on_it_stops_it_trains_no_further(fit, tmp_path):
    fit(Onset(**THEIRS), max_epochs=4).save_checkpoint(tmp_path / "it.ckpt")
    for steps, end in [(0, 12), (9, 15)]:
        callbacks = [Onset(**THEIRS), StopAfterOnset("memorised", steps=steps)]
        assert fit(*callbacks, ckpt_path=tmp_path / "it.ckpt").global_step == end


def test_it_waits_for_the_last_member(foreign, make_trainer):
    class OfTwo(foreign.module):
        n_members = 2

        def member_metrics(self):
            step = self.trainer.global_step
            return {"train_acc": torch.tensor([float(step >= 3), float(step >= 12)])}

    trainer = make_trainer(max_epochs=10, callbacks=[StopAfterOnset("memorised", steps=3), Onset(**THEIRS)])
    trainer.fit(OfTwo(), foreign.train_loader(), foreign.val_loader())
    assert trainer.global_step == 15


def test_it_listens_to_the_onset_of_its_name(fit):
    slow, fast = Onset(**THEIRS, dwell=12, name="slow"), Onset(**THEIRS, dwell=0, name="fast")
    assert fit(slow, fast, StopAfterOnset(onset="slow")).global_step == 27
    slow, fast = Onset(**THEIRS, dwell=12, name="slow"), Onset(**THEIRS, dwell=0, name="fast")
    assert fit(slow, fast, StopAfterOnset(onset="fast")).global_step == 15


@pytest.mark.parametrize(
    "others",
    [[], [LearningCurves(name="onset")], [Onset(name="another")]],
    ids=["none", "another class", "another name"],
)
def test_without_its_onset_it_refuses_before_training(fit, others):
    with pytest.raises(ValueError, match="the Trainer has no Onset callback named 'onset'"):
        fit(*others, StopAfterOnset())


@pytest.mark.parametrize(
    ("options", "message"),
    [({"steps": -1}, "steps: expected at least 0, got -1"), ({"event": "grokked"}, "memorised, .* got 'grokked'")],
)
def test_what_cannot_be_waited_for_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        StopAfterOnset(**options)


def test_resuming_finds_the_same_onsets(fit, tmp_path):
    whole, first, second = (Onset(**THEIRS, dwell=6) for _ in range(3))
    fit(whole)
    fit(first, max_epochs=6).save_checkpoint(tmp_path / "it.ckpt")
    assert found(first)["generalised"] == NEVER
    fit(second, ckpt_path=tmp_path / "it.ckpt")
    assert second.steps.tolist() == whole.steps.tolist()
    assert found(second) == found(whole)
    assert found(second)["generalised"] == (15, 21, 3)
