"""What a run says in the terminal."""

import math
import re

import pytest
from lightning.pytorch import Callback

from grok_callbacks import EveryNSteps, LearningCurves, NeuronNormTracker, Onset
from grok_lightning import MLP, OnlineData, SparseParity, TableData, terminal
from grok_lightning.terminal import StepBar, Summary, total_steps


class Total(Callback):
    """Notes the number of steps that is expected at the start, and stops after ``last`` steps."""

    def __init__(self, last=math.inf):
        self.last = last
        self.expected = "not asked"

    def on_train_start(self, trainer, pl_module):
        self.expected = total_steps(trainer)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.should_stop = trainer.global_step >= self.last


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param({"max_steps": 7}, 7, id="steps"),
        pytest.param({"max_epochs": 2}, 6, id="epochs"),
        pytest.param({"max_epochs": 2, "max_steps": 5}, 5, id="steps come first"),
        pytest.param({"max_epochs": 2, "max_steps": 50}, 6, id="epochs come first"),
        pytest.param({"max_epochs": 2, "limit_train_batches": 2}, 4, id="short epochs"),
        pytest.param({"max_epochs": -1}, None, id="no limit"),
        pytest.param({"max_epochs": 1, "accumulate_grad_batches": 2}, 2, id="two batches a step, the last alone"),
        pytest.param({"max_epochs": 2, "accumulate_grad_batches": 2}, 4, id="likewise in every epoch"),
    ],
)
def test_the_expected_number_of_steps_is_the_one_taken(make_trainer, foreign, options, expected):
    total = Total(last=10)
    trainer = make_trainer(callbacks=[total], **options)
    trainer.fit(foreign.module(), foreign.train_loader(), foreign.val_loader())
    assert total.expected == expected
    assert trainer.global_step == (10 if expected is None else expected)


def lines_of(capsys):
    return re.findall(r"^step (\d+)/(\d+|\?)(.*)$", capsys.readouterr().err, re.MULTILINE)


@pytest.fixture
def bar(monkeypatch):
    """A bar without a terminal that looks at every step, as for a network that takes long for one."""
    monkeypatch.setattr(terminal, "REFRESH_SECONDS", 0.0)
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    return StepBar()


@pytest.fixture
def bar_in_a_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    return StepBar()


@pytest.mark.parametrize("steps", [1, 7, 40, 299])
def test_without_a_terminal_a_bar_is_a_few_lines_to_the_last_step(make_trainer, foreign, capsys, bar, steps):
    trainer = make_trainer(max_steps=steps, max_epochs=-1, callbacks=[bar], enable_progress_bar=True)
    trainer.fit(foreign.module(), foreign.train_loader(), foreign.val_loader())
    lines = lines_of(capsys)
    shown = [int(step) for step, _, _ in lines]
    assert min(steps, 15) <= len(lines) <= 25
    assert shown[-1] == steps
    assert shown == sorted(set(shown)), "no step twice"
    assert {total for _, total, _ in lines} == {str(steps)}


def test_without_a_known_end_a_bar_is_a_few_lines_too(make_trainer, foreign, capsys, bar):
    trainer = make_trainer(max_epochs=-1, callbacks=[bar, Total(last=300)], enable_progress_bar=True)
    trainer.fit(foreign.module(), foreign.train_loader(), foreign.val_loader())
    lines = lines_of(capsys)
    assert 3 <= len(lines) <= 25
    assert lines[-1][:2] == ("300", "?")


def test_a_bar_shows_what_the_module_puts_into_it(make_trainer, capsys, bar):
    trainer = make_trainer(max_epochs=3, callbacks=[bar], enable_progress_bar=True)
    trainer.fit(MLP(n_inputs=6, hidden=[4]), datamodule=TableData(SparseParity(6, 2), train_size=32))
    last = lines_of(capsys)[-1][2]
    for name in ("train/accuracy", "val/accuracy"):
        shown = re.search(rf"{name} (\d\.\d+)", last)
        assert shown, last
        assert float(shown[1]) == pytest.approx(float(trainer.callback_metrics[name]), abs=5e-4)


def test_a_bar_that_is_switched_off_says_nothing(make_trainer, foreign, capsys, bar):
    trainer = make_trainer(max_epochs=1, callbacks=[bar], enable_progress_bar=True)
    bar.disable()
    trainer.fit(foreign.module(), foreign.train_loader(), foreign.val_loader())
    assert not lines_of(capsys)


def test_in_a_terminal_there_is_one_bar_and_it_is_closed(make_trainer, foreign, capsys, bar_in_a_terminal):
    trainer = make_trainer(max_epochs=2, callbacks=[bar_in_a_terminal], enable_progress_bar=True)
    trainer.fit(foreign.module(), foreign.train_loader(), foreign.val_loader())
    shown = capsys.readouterr().err
    assert "6/6" in shown
    assert "step 1/6" not in shown, "no plain lines beside it"
    assert shown.rstrip().endswith("\x1b[?25h"), "the cursor is shown again"


def test_what_others_say_when_training_starts_comes_before_the_bar(make_trainer, foreign, capsys, bar_in_a_terminal):
    class Says(Callback):
        def on_train_start(self, trainer, pl_module):
            print("about to begin", file=terminal.sys.stderr)

    trainer = make_trainer(max_epochs=2, callbacks=[bar_in_a_terminal, Says()], enable_progress_bar=True)
    trainer.fit(foreign.module(), foreign.train_loader(), foreign.val_loader())
    before, _, after = capsys.readouterr().err.partition("about to begin\n")
    assert "/6" not in before
    assert "\x1b[?25l" not in before, "the cursor is still shown"
    assert "6/6" in after


def test_a_bar_is_closed_by_an_error(make_trainer, foreign, capsys, bar_in_a_terminal):
    class Fails(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 2:
                raise ValueError("two is enough")

    trainer = make_trainer(max_epochs=2, callbacks=[bar_in_a_terminal, Fails()], enable_progress_bar=True)
    with pytest.raises(ValueError, match="two is enough"):
        trainer.fit(foreign.module(), foreign.train_loader(), foreign.val_loader())
    assert "\x1b[?25h" in capsys.readouterr().err


def summary_of(make_trainer, capsys, monkeypatch, onset, kind=TableData):
    monkeypatch.setenv("COLUMNS", "200")
    members = {"seed": [5, 7]} if kind is OnlineData else {"seed": [5, 7], "train_size": [32, 20]}
    callbacks = [
        LearningCurves(),
        onset,
        NeuronNormTracker(layer="network.hidden.0", schedule=EveryNSteps(3)),
        Summary(),
    ]
    trainer = make_trainer(max_epochs=2, callbacks=callbacks)
    data = kind(SparseParity(6, 2), batch_size=8, n_held_out=30, members=members)
    trainer.fit(MLP(n_inputs=6, hidden=[8], members=members), datamodule=data)
    lines = [re.split(r"\s*[│┃]\s*", line.strip("│┃ ")) for line in capsys.readouterr().out.splitlines()]
    return {line[0]: [cell.strip() for cell in line] for line in lines if len(line) > 1}, lines


def test_the_summary_shows_onsets_and_a_dash_for_what_did_not_happen(make_trainer, capsys, monkeypatch):
    onset = Onset(memorised_above=0.0, generalised_from=1.0, slack=0.0, dwell=10**6)
    rows, _ = summary_of(make_trainer, capsys, monkeypatch, onset)
    header = rows["member"]
    accuracy = onset.history["accuracy"][-1]
    for e, (seed, size) in enumerate([("5", "32"), ("7", "20")]):
        row = dict(zip(header, rows[str(e)], strict=True))
        assert (row["seed"], row["train_size"]) == (seed, size)
        assert row["memorised"] == f"{float(onset.onsets()['memorised'].step[e]):.0f}" == "0"
        assert row["generalised"] == row["forgotten"] == "–"
        assert row["train"] == f"{float(accuracy[e, 0]):.3f}"
        assert row["held out"] == f"{float(accuracy[e, 1]):.3f}"


def test_the_summary_shows_a_dash_for_an_accuracy_that_there_is_not(make_trainer, capsys, monkeypatch):
    onset = Onset(memorised_above=0.0)
    rows, _ = summary_of(make_trainer, capsys, monkeypatch, onset, kind=OnlineData)
    for e in range(2):
        row = dict(zip(rows["member"], rows[str(e)], strict=True))
        assert row["memorised"] == row["train"] == "–"
        assert row["held out"] == f"{float(onset.history['accuracy'][-1, e, 1]):.3f}"


def test_the_summary_shows_what_was_measured_how_often_and_at_what_share(make_trainer, capsys, monkeypatch):
    rows, lines = summary_of(make_trainer, capsys, monkeypatch, Onset())
    assert any("8 steps" in cell for line in lines for cell in line)
    assert rows["curves"][1] == "3"
    assert rows["neuron_norms"][1] == "3"
    for name in ("curves", "onset", "neuron_norms"):
        assert re.fullmatch(r"\d+\.\d%", rows[name][2])


def test_the_summary_of_somebody_elses_module_is_printed_too(make_trainer, foreign, capsys):
    trainer = make_trainer(max_epochs=1, callbacks=[Summary()])
    trainer.fit(foreign.module(), foreign.train_loader(), foreign.val_loader())
    assert "3 steps" in capsys.readouterr().out
