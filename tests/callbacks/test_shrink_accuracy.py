"""Accuracy on rows kept, removed and never seen. With a shrink it is tested beside that (test_dataset_shrink.py)."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from grok_callbacks import DatasetShrink, EveryNSteps, ShrinkAccuracy, shrink_accuracy
from grok_lightning.data import OnlineData, TableData
from grok_lightning.modules import MLP
from grok_lightning.tasks import SparseParity


def rows_with_labels(trainer, pl_module, split):
    """The rows of a function by its import path: 6 of ``train``, of which the first three are class 1."""
    n = 6 if split == "train" else 4
    return torch.eye(n, 4), (torch.arange(n) < 3).long()


class Constant(nn.Module):
    """Says class 1 of every row, in one of the forms that logits may have."""

    def __init__(self, form):
        super().__init__()
        self.form = form
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, inputs):
        logits = self.weight.expand(len(inputs))
        return {
            "(B, 2)": torch.stack([-logits, logits], dim=1),
            "(B, 1)": logits.unsqueeze(1),
            "(B,)": logits,
            "(1, B, 2)": torch.stack([-logits, logits], dim=1).unsqueeze(0),
            "NaN": torch.stack([-logits, logits], dim=1) * torch.nan,
            "zero": logits * 0,
            "none": None,
            "transposed": torch.stack([-logits, logits]),
            "too many": logits.expand(1, 1, 1, -1),
        }[self.form]


@pytest.fixture
def measured(make_trainer, foreign):
    """A function that measures a foreign module with such a network, and returns ``(part,)``."""

    def run(form, rows=f"{__name__}.rows_with_labels", val_loader=True):
        module = foreign.module()
        module.other = Constant(form)
        watch = ShrinkAccuracy(EveryNSteps(1), network="other", rows=rows)
        loaders = [foreign.train_loader()] + [foreign.val_loader()] * val_loader
        make_trainer(max_steps=1, callbacks=[watch]).fit(module, *loaders)
        return watch.history["accuracy"][0, 0].tolist()

    return run


@pytest.mark.parametrize("form", ["(B, 2)", "(B, 1)", "(B,)", "(1, B, 2)"])
def test_a_prediction_is_the_sign_of_one_logit_or_the_largest_of_several(measured, form):
    kept, removed, never_seen = measured(form)
    assert (kept, never_seen) == (0.5, 0.75)
    assert math.isnan(removed)


@pytest.mark.parametrize("form", ["NaN", "zero"])
def test_what_is_no_prediction_is_wrong(measured, form):
    assert measured(form)[0] == 0.0


@pytest.mark.parametrize(
    ("form", "found"), [("none", "NoneType"), ("transposed", r"\(2, 6\)"), ("too many", r"\(1, 1, 1, 6\)")]
)
def test_what_is_no_row_of_logits_is_refused(measured, form, found):
    with pytest.raises(ValueError, match=rf"network: expected logits \(B, C\) of B = 6 rows, got {found}"):
        measured(form)


def test_a_network_that_is_not_there_is_refused_before_training(make_trainer, foreign):
    trainer = make_trainer(max_steps=1, callbacks=[ShrinkAccuracy(network="decoder")])
    with pytest.raises(ValueError, match="network: the model has no 'decoder'; it has encoder"):
        trainer.fit(foreign.module(), foreign.train_loader(), foreign.val_loader())
    assert trainer.global_step == 0


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
def test_without_a_validation_loader_nothing_was_never_seen(make_trainer, foreign):
    watch = ShrinkAccuracy(EveryNSteps(1), network="encoder")
    make_trainer(max_steps=2, callbacks=[watch]).fit(foreign.module(), foreign.train_loader())
    assert watch.history["accuracy"].isnan().tolist() == [[[False, True, True]]] * 3


@pytest.mark.parametrize("at_once", [1, 7, 4096])
def test_the_number_of_rows_at_once_changes_nothing(make_trainer, at_once, monkeypatch):
    monkeypatch.setattr(shrink_accuracy, "AT_ONCE", at_once)
    members = {"seed": [0, 1], "train_size": [30, 17]}
    data = TableData(SparseParity(7, 2), n_held_out=50, batch_size=8, members=members)
    module = MLP(7, 1, hidden=[8], optimizer=partial(SGD, lr=0.3), members=members)
    watch = ShrinkAccuracy()
    make_trainer(max_epochs=3, callbacks=[watch], precision="64-true").fit(module, datamodule=data)
    for e, n in enumerate(members["train_size"]):
        for i, split in [(0, "train"), (2, "held_out")]:
            rows, labels = (part[e][: n if split == "train" else None] for part in data.rows(split))
            with torch.no_grad():
                logits = module.network(rows.double())[e, :, 0]
            right = (logits * labels > 0).double().mean()
            assert watch.history["accuracy"][-1, e, i].item() == pytest.approx(right.item(), abs=1e-12)


def test_of_fresh_rows_it_measures_the_first(make_trainer):
    members = {"seed": [0]}
    data = OnlineData(SparseParity(7, 2), batch_size=8, n_held_out=20, validate_every=4, members=members)
    module = MLP(7, 1, hidden=[8], optimizer=partial(SGD, lr=0.3), members=members)
    watch = ShrinkAccuracy()
    make_trainer(max_steps=4, callbacks=[watch]).fit(module, datamodule=data)
    assert watch.history["accuracy"].isnan().tolist() == [[[False, True, False]]] * 2


def test_a_single_logit_of_a_column_of_labels_is_no_trap(make_trainer, foreign):
    """Labels (N, 1), as binary losses want them."""

    class Binary(foreign.module):
        def training_step(self, batch, batch_idx):
            return self.encoder(batch[0]).sum() * 0

        def validation_step(self, batch, batch_idx):
            """Nothing to log."""

    rows = TensorDataset(torch.eye(6, 4), (torch.arange(6) < 2).float().unsqueeze(1))
    module = Binary()
    module.other = Constant("(B, 1)")
    watch = ShrinkAccuracy(EveryNSteps(1), network="other")
    loaders = DataLoader(rows, batch_size=3), DataLoader(rows, batch_size=3)
    make_trainer(max_steps=1, callbacks=[watch]).fit(module, *loaders)
    assert watch.history["accuracy"][0, 0, 0].item() == pytest.approx(1 / 3)


def test_loggers_get_the_parts_that_there_are(make_trainer, foreign, recording_logger):
    class Own(foreign.module):
        def train_dataloader(self):
            return foreign.train_loader(shuffle=False)

        def val_dataloader(self):
            return foreign.val_loader()

    watch = ShrinkAccuracy(network="encoder")
    callbacks = [watch, DatasetShrink(size=10, step=1)]
    make_trainer(max_epochs=3, callbacks=callbacks, logger=recording_logger).fit(Own())
    assert recording_logger.steps("shrink_accuracy/kept") == [0, 3, 5, 7]
    assert recording_logger.steps("shrink_accuracy/removed") == [5, 7]
    values = watch.history["accuracy"][:, 0, 0].tolist()
    assert recording_logger.values("shrink_accuracy/kept") == values
