import subprocess
import sys

import pytest
import torch
from lightning.pytorch import LightningModule

from grok_callbacks import LearningCurves
from grok_callbacks.curves import read_metric
from grok_lightning.records import build_group

THEIRS = {"held_out_loss": "val_loss", "held_out_accuracy": "val_acc", "train_loss": "train_loss"}
# A fork is what a worker is; newer Pythons say so where threads exist.
WORKERS = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=WORKERS)])
def test_curves_of_a_foreign_module_are_what_it_logged(foreign, make_trainer, workers):
    curves, module = LearningCurves(**THEIRS), foreign.module()
    trainer = make_trainer(max_epochs=3, callbacks=[curves], num_sanity_val_steps=1)
    trainer.fit(module, foreign.train_loader(workers), foreign.val_loader(workers))
    assert curves.steps.tolist() == [step for step, _ in module.validated] == [3, 6, 9]
    for array, name in [("loss", "val_loss"), ("accuracy", "val_acc")]:
        values = curves.history[array]
        assert values.shape == (3, 1, 2)
        assert values.dtype == torch.float64
        assert values[:, 0, 1].tolist() == [metrics[name] for _, metrics in module.validated]
        assert values[:, 0, 0].isnan().all()  # it logs nothing of the rows trained on
    assert "true_accuracy" not in curves.history


def test_rows_trained_on_come_first(foreign, make_trainer):
    script = {"a": lambda s: s / 8, "b": lambda s: -s, "c": lambda s: s + 1, "d": lambda s: 0.5}
    curves = LearningCurves("a", "b", "c", "d", name="mine")
    module = foreign.module(script)
    make_trainer(max_epochs=2, callbacks=[curves]).fit(module, foreign.train_loader(), foreign.val_loader())
    assert curves.history["loss"][:, 0].tolist() == [[0.375, 4], [0.75, 7]]
    assert curves.history["accuracy"][:, 0].tolist() == [[-3, 0.5], [-6, 0.5]]
    assert curves.labels["split"] == ("train", "held_out")
    assert {name: dims for name, (dims, _) in curves.record().items()} == {
        "step": ("step",),
        "loss": ("step", "member", "split"),
        "accuracy": ("step", "member", "split"),
    }


def test_where_no_metric_has_such_a_name_nothing_is_recorded(foreign, make_trainer):
    curves = LearningCurves()
    trainer = make_trainer(max_epochs=2, callbacks=[curves])
    trainer.fit(foreign.module(), foreign.train_loader(), foreign.val_loader())
    assert curves.record() == {}


def test_a_metric_that_is_nan_is_kept_beside_those_that_are_not(foreign, make_trainer):
    script = {"val_loss": lambda s: float("nan") if s == 3 else 1.0, "val_acc": lambda s: 0.5}
    curves = LearningCurves(**THEIRS)
    trainer = make_trainer(max_epochs=2, callbacks=[curves])
    trainer.fit(foreign.module(script), foreign.train_loader(), foreign.val_loader())
    assert curves.steps.tolist() == [3, 6]
    assert curves.history["loss"][:, 0, 1].isnan().tolist() == [True, False]


def test_loggers_get_nothing_from_it(foreign, make_trainer, recording_logger):
    curves = LearningCurves(**THEIRS)
    trainer = make_trainer(max_epochs=1, callbacks=[curves], logger=recording_logger)
    trainer.fit(foreign.module(), foreign.train_loader(), foreign.val_loader())
    assert {key for _, metrics in recording_logger.points for key in metrics} == {"epoch", "val_acc", "val_loss"}


@pytest.fixture
def of_two_members(foreign):
    """A module that knows its metrics for every member; it logs their means too, which are not what is wanted."""

    class OfTwo(foreign.module):
        n_members = 2
        own = ("train/loss", "train/accuracy", "val/loss", "val/accuracy")

        def member_metrics(self):
            step = self.trainer.global_step
            return {name: torch.tensor([step + i, step + i + 0.5]) for i, name in enumerate(self.own)}

    return OfTwo


def test_a_module_that_knows_its_members_is_asked_for_each(foreign, of_two_members, make_trainer):
    curves = LearningCurves()
    module = of_two_members({"val/loss": lambda s: 99.0})
    make_trainer(max_epochs=2, callbacks=[curves]).fit(module, foreign.train_loader(), foreign.val_loader())
    assert curves.steps.tolist() == [0, 3, 6]  # it can measure itself before the first step
    assert curves.history["loss"].tolist() == [[[s, s + 2], [s + 0.5, s + 2.5]] for s in (0, 3, 6)]
    assert curves.history["accuracy"].tolist() == [[[s + 1, s + 3], [s + 1.5, s + 3.5]] for s in (0, 3, 6)]


def test_a_metric_that_it_does_not_have_is_nan_for_every_member(foreign, of_two_members, make_trainer):
    class TrainOnly(of_two_members):
        own = ("train/loss", "train/accuracy")

    curves = LearningCurves()
    make_trainer(max_epochs=1, callbacks=[curves]).fit(TrainOnly(), foreign.train_loader(), foreign.val_loader())
    assert curves.history["loss"].shape == (2, 2, 2)
    assert curves.history["loss"][..., 1].isnan().all()
    assert not curves.history["loss"][..., 0].isnan().any()


def test_accuracy_against_true_labels_is_kept_where_labels_are_noisy(foreign, of_two_members, make_trainer):
    class Noisy(of_two_members):
        own = ("train/loss", "train/accuracy", "val/loss", "val/accuracy", "train/true_accuracy")

    curves = LearningCurves()
    make_trainer(max_epochs=1, callbacks=[curves]).fit(Noisy(), foreign.train_loader(), foreign.val_loader())
    true, accuracy = curves.history["true_accuracy"], curves.history["accuracy"]
    assert true[:, :, 0].tolist() == [[s + 4, s + 4.5] for s in (0, 3)]
    assert torch.equal(true[:, :, 1], accuracy[:, :, 1])  # held-out labels are true
    assert not torch.equal(true[:, :, 0], accuracy[:, :, 0])


PARTS = ("train/loss", "train/accuracy", "val/loss", "val/accuracy", "val_unpaired/loss", "val_unpaired/accuracy")


@pytest.fixture
def of_parts(of_two_members):
    """A module that knows some metrics of a part of its held-out rows too."""

    class OfParts(of_two_members):
        own = (*PARTS, "val/unpaired_share")

    return OfParts


def fit(make_trainer, foreign, module, curves, **options):
    trainer = make_trainer(**({"max_epochs": 2, "callbacks": [curves]} | options))
    trainer.fit(module, foreign.train_loader(), foreign.val_loader())
    return trainer


def test_parts_of_the_held_out_rows_go_on_along_the_split(foreign, of_parts, make_trainer):
    curves = LearningCurves()
    fit(make_trainer, foreign, of_parts(), curves)
    assert curves.labels["split"] == ("train", "held_out", "held_out_unpaired")
    assert curves.history["loss"].tolist() == [[[s, s + 2, s + 4], [s + 0.5, s + 2.5, s + 4.5]] for s in (0, 3, 6)]
    assert torch.equal(curves.history["accuracy"], curves.history["loss"] + 1)
    assert curves.history["unpaired_share"].tolist() == [[s + 6, s + 6.5] for s in (0, 3, 6)]
    assert {name: dims for name, (dims, _) in curves.record().items()} == {
        "step": ("step",),
        "loss": ("step", "member", "split"),
        "accuracy": ("step", "member", "split"),
        "unpaired_share": ("step", "member"),
    }


def test_the_labels_of_parts_are_in_the_record(foreign, of_parts, make_trainer):
    curves = LearningCurves()
    fit(make_trainer, foreign, of_parts(), curves)
    group = build_group(curves, None)
    assert group["split"].values.tolist() == ["train", "held_out", "held_out_unpaired"]
    assert group["loss"].sel(split="held_out_unpaired", member=1).values.tolist() == [4.5, 7.5, 10.5]
    assert group["unpaired_share"].dims == ("step", "member")


def test_any_part_is_kept_and_its_share_where_it_is_known(foreign, of_two_members, make_trainer):
    class Others(of_two_members):
        own = ("train/loss", "train/accuracy", "val/loss", "val/accuracy", "val_kept/accuracy", "val_removed/accuracy")

    curves = LearningCurves()
    fit(make_trainer, foreign, Others(), curves)
    assert curves.labels["split"] == ("train", "held_out", "held_out_kept", "held_out_removed")
    assert curves.history["accuracy"][0, 0].tolist() == [1, 3, 4, 5]
    assert curves.history["loss"][..., 2:].isnan().all()
    assert "unpaired_share" not in curves.history


def test_parts_of_metrics_of_other_names_are_found_by_these(foreign, of_two_members, make_trainer):
    class Others(of_two_members):
        own = ("fit/acc", "fit/nll", "dev/nll", "dev/acc", "dev_unpaired/acc", "dev_unpaired/nll", "dev/unpaired_share")

    curves = LearningCurves("fit/nll", "fit/acc", "dev/nll", "dev/acc")
    fit(make_trainer, foreign, Others(), curves)
    assert curves.labels["split"] == ("train", "held_out", "held_out_unpaired")
    assert curves.history["accuracy"][0, 0].tolist() == [0, 3, 4]
    assert curves.history["loss"][0, 0].tolist() == [1, 2, 5]
    assert curves.history["unpaired_share"][0].tolist() == [6, 6.5]


def test_accuracy_against_true_labels_has_the_parts_too(foreign, of_two_members, make_trainer):
    class Noisy(of_two_members):
        own = (*PARTS, "train/true_accuracy")

    curves = LearningCurves()
    fit(make_trainer, foreign, Noisy(), curves)
    true, accuracy = curves.history["true_accuracy"], curves.history["accuracy"]
    assert true[:, :, 0].tolist() == [[s + 6, s + 6.5] for s in (0, 3, 6)]
    assert torch.equal(true[:, :, 1:], accuracy[:, :, 1:])


def test_a_stranger_that_logs_a_like_name_has_no_parts(foreign, make_trainer):
    script = {"val/accuracy": lambda s: 0.5, "val_ema/accuracy": lambda s: 0.75}
    curves = LearningCurves()
    fit(make_trainer, foreign, foreign.module(script), curves)
    assert curves.labels["split"] == ("train", "held_out")
    assert curves.history["accuracy"].shape == (2, 1, 2)


def test_a_part_that_comes_later_is_not_known_before(foreign, of_parts, make_trainer):
    class Grows(of_parts):
        def member_metrics(self):
            found = super().member_metrics()
            return found | ({"val_new/accuracy": torch.zeros(2)} if self.trainer.global_step > 3 else {})

    curves, without = LearningCurves(), LearningCurves()
    fit(make_trainer, foreign, Grows(), curves)
    fit(make_trainer, foreign, of_parts(), without)
    assert curves.labels["split"] == ("train", "held_out", "held_out_unpaired", "held_out_new")
    for name in ("loss", "accuracy"):
        values = curves.history[name]
        assert torch.equal(values[..., :3], without.history[name])
        assert values[:2, :, 3].isnan().all()
    assert curves.history["accuracy"][2, :, 3].tolist() == [0, 0]


def resume(make_trainer, foreign, before, after, tmp_path, curves):
    """Two epochs of a module, then one of another, from the checkpoint of the first."""
    fit(make_trainer, foreign, before, LearningCurves()).save_checkpoint(tmp_path / "it.ckpt")
    trainer = make_trainer(max_epochs=3, callbacks=[curves])
    trainer.fit(after, foreign.train_loader(), foreign.val_loader(), ckpt_path=tmp_path / "it.ckpt", weights_only=True)
    return trainer


def test_parts_that_a_resumed_run_adds_are_not_known_before(foreign, of_two_members, make_trainer, tmp_path):
    class Before(of_two_members):
        own = ("train/loss", "train/accuracy", "val/loss", "val/accuracy", "train/true_accuracy")

    class After(of_two_members):
        own = (*Before.own, "val_unpaired/accuracy", "val/unpaired_share", "val_removed/loss", "val_removed/accuracy")

    curves = LearningCurves()
    trainer = resume(make_trainer, foreign, Before(), After(), tmp_path, curves)
    assert curves.steps.tolist() == [0, 3, 6, 9]
    assert curves.labels["split"] == ("train", "held_out", "held_out_unpaired", "held_out_removed")
    for i, name in enumerate(["loss", "accuracy"]):
        values = curves.history[name]
        assert values[:, 0, :2].tolist() == [[s + i, s + 2 + i] for s in (0, 3, 6, 9)]
        assert values[:3, :, 2:].isnan().all()
        assert values[3, 0, 3].item() == 9 + 7 + i
    assert curves.history["accuracy"][3, 1, 2].item() == 9.5 + 5
    assert curves.history["true_accuracy"].shape == (4, 2, 4)
    assert curves.history["true_accuracy"][:, 0, 0].tolist() == [4, 7, 10, 13]
    assert curves.history["unpaired_share"][:3].isnan().all()
    assert curves.history["unpaired_share"][3].tolist() == [15, 15.5]
    group = build_group(curves, None)
    assert group["accuracy"].sel(split="held_out_removed", member=0).values.tolist()[3] == 17
    # And what it leaves goes on as it is.
    trainer.save_checkpoint(tmp_path / "later.ckpt")
    again = LearningCurves()
    fit(make_trainer, foreign, After(), again)
    again.load_state_dict(torch.load(tmp_path / "later.ckpt", weights_only=True)["callbacks"][curves.state_key])
    assert again.labels == curves.labels
    assert again.history["loss"].shape == (4, 2, 4)


def test_parts_that_a_resumed_run_has_no_more_are_not_known_after(
    foreign, of_parts, of_two_members, make_trainer, tmp_path
):
    curves = LearningCurves()
    resume(make_trainer, foreign, of_parts(), of_two_members(), tmp_path, curves)
    assert curves.labels["split"] == ("train", "held_out", "held_out_unpaired")
    for values in (
        curves.history["loss"][..., 2],
        curves.history["accuracy"][..., 2],
        curves.history["unpaired_share"],
    ):
        assert values.isnan().all(dim=1).tolist() == [False, False, False, True]


def test_a_resumed_run_has_the_same_parts(foreign, of_parts, make_trainer, tmp_path):
    whole, first, second = LearningCurves(), LearningCurves(), LearningCurves()
    fit(make_trainer, foreign, of_parts(), whole, max_epochs=3)
    stopped = fit(make_trainer, foreign, of_parts(), first)
    stopped.save_checkpoint(tmp_path / "it.ckpt")
    trainer = make_trainer(max_epochs=3, callbacks=[second])
    loaders = foreign.train_loader(), foreign.val_loader()
    trainer.fit(of_parts(), *loaders, ckpt_path=tmp_path / "it.ckpt", weights_only=True)
    assert second.labels == whole.labels
    assert second.steps.tolist() == whole.steps.tolist() == [0, 3, 6, 9]
    for name, values in whole.history.items():
        assert torch.equal(second.history[name], values)


def test_labels_are_known_before_a_resumed_run_measures(foreign, of_parts, make_trainer):
    before, after = LearningCurves(), LearningCurves()
    fit(make_trainer, foreign, of_parts(), before)
    after.load_state_dict(before.state_dict())
    assert after.labels["split"] == ("train", "held_out", "held_out_unpaired")
    assert after.record().keys() == before.record().keys()


def test_a_history_from_before_there_were_parts_goes_on_without_them(foreign, of_two_members, make_trainer):
    before, after = LearningCurves(), LearningCurves()
    fit(make_trainer, foreign, of_two_members(), before)
    state = before.state_dict()
    del state["subsets"]
    after.load_state_dict(state)
    assert after.labels["split"] == ("train", "held_out")
    assert after._subsets == []


def test_a_second_run_with_the_same_object_looks_anew(foreign, of_parts, of_two_members, make_trainer):
    curves = LearningCurves()
    fit(make_trainer, foreign, of_parts(), curves)
    fit(make_trainer, foreign, of_two_members(), curves)
    assert curves.labels["split"] == ("train", "held_out")
    assert curves.history["loss"].shape == (3, 2, 2)
    assert LearningCurves.labels["split"] == ("train", "held_out")


def test_reading_a_metric_that_nobody_logged_is_none(make_trainer):
    assert read_metric(make_trainer(), LightningModule(), "val_acc") is None


def test_a_foreign_project_with_these_callbacks_never_loads_our_package():
    code = (
        "import sys, grok_callbacks, grok_callbacks.curves, grok_callbacks.rows\n"
        "from grok_callbacks import LearningCurves, Onset, StopAfterOnset\n"
        "callbacks = [LearningCurves(), Onset(), StopAfterOnset()]\n"
        "assert 'lightning' in sys.modules\n"
        "assert not [name for name in sys.modules if name.split('.')[0] == 'grok_lightning']\n"
        "print('alone')\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "alone\n", done.stderr
