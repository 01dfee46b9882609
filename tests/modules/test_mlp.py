from functools import partial

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.connectors.data_connector import warning_cache
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, TensorDataset

from grok_callbacks import LearningCurves, NeuronNormTracker, Onset
from grok_lightning.batch import Batch
from grok_lightning.data import OnlineData, TableData
from grok_lightning.losses import hinge, squared
from grok_lightning.modules import MLP, GrokModule
from grok_lightning.tasks import SparseParity

PLAIN_SGD = partial(SGD, lr=0.1)
QUIET = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}


class Plain(GrokModule):
    """Somebody's own network, which knows no members."""

    def __init__(self, members=None, loss="hinge", optimizer=PLAIN_SGD):
        super().__init__(loss=loss, optimizer=optimizer, scheduler=None, members=members)

    def build_network(self, generators):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))


def small(seeds=(0, 1, 2), **options):
    members = options.pop("members", {"seed": list(seeds)})
    return MLP(**({"n_inputs": 6, "hidden": (5,), "optimizer": PLAIN_SGD, "members": members} | options))


def data(seeds=(0, 1, 2), **options):
    members = options.pop("members", {"seed": list(seeds)})
    options = {"train_size": 20, "n_held_out": 16, "batch_size": 8} | options
    return TableData(SparseParity(6, 2), members=members, **options)


def fit(module, *args, **options):
    trainer = Trainer(**QUIET, **options)
    trainer.fit(module, *args)
    return trainer


def started(module):
    """The module in float64 with its optimizer, as Lightning would have it."""
    module.configure_model()
    module.double()
    return module, module.configure_optimizers()


def step_of(module, optimizer, batch):
    optimizer.zero_grad()
    loss = module.training_step(batch, 0)
    loss.backward()
    module.on_before_optimizer_step(optimizer)
    optimizer.step()
    return loss.detach()


def as_torch(module, e):
    """Member e of torch's own layers, in float64."""
    hidden, output = module.network.hidden[0], module.network.output
    first = nn.Linear(6, hidden.out_features)
    last = nn.Linear(hidden.out_features, output.out_features, bias=False)
    alone = nn.Sequential(first, nn.ReLU(), last).double()
    with torch.no_grad():
        for p, q in zip(alone.parameters(), module.network.parameters(), strict=True):
            p.copy_(q[e])
    return alone


def signs(*shape, seed=0):
    return torch.randint(2, shape, generator=torch.Generator().manual_seed(seed)).double() * 2 - 1


def textbook_hinge(f, y):
    return torch.clamp(1 - y * f[:, 0], min=0)


def textbook_cross_entropy(f, y):
    return nn.functional.cross_entropy(f, y, reduction="none")


def check_steps(module, batch_of, row_loss, make_optimizer, n_steps=20):
    """The population moves as torch's own optimizer moves each member alone."""
    module, optimizer = started(module)
    alone = [as_torch(module, e) for e in range(module.n_members)]
    optimizers = [make_optimizer(net.parameters()) for net in alone]
    for s in range(n_steps):
        batch = batch_of(s)
        total = step_of(module, optimizer, batch)
        losses = []
        for e, (net, own) in enumerate(zip(alone, optimizers, strict=True)):
            x = batch[0] if batch[0].ndim == 2 else batch[0][e]
            y = batch[1] if batch[1].ndim == 1 else batch[1][e]
            weights = torch.full(y.shape, 1 / len(y)) if len(batch) == 2 or batch[2] is None else batch[2][e]
            own.zero_grad()
            loss = (row_loss(net(x), y) * weights.double()).sum()
            loss.backward()
            own.step()
            losses.append(loss.detach())
            for p, q in zip(net.parameters(), module.network.parameters(), strict=True):
                torch.testing.assert_close(q[e], p, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(total.double(), sum(losses), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "make_optimizer",
    [PLAIN_SGD, partial(SGD, lr=0.1, momentum=0.9, weight_decay=0.01), partial(Adam, lr=0.01)],
)
def test_a_population_moves_as_torch_moves_each_member_alone(make_optimizer):
    def batch_of(s):
        inputs = signs(3, 8, 6, seed=s)
        return Batch(inputs, inputs[..., 0] * inputs[..., 1])

    check_steps(small(optimizer=make_optimizer), batch_of, textbook_hinge, make_optimizer)


@pytest.mark.parametrize("seeds", [(4,), (0, 1, 2)])
@pytest.mark.parametrize("shared_inputs", [True, False])
@pytest.mark.parametrize("shared_targets", [True, False])
def test_rows_and_labels_may_be_shared_or_each_members_own(seeds, shared_inputs, shared_targets):
    def batch_of(s):
        inputs = signs(8, 6, seed=s) if shared_inputs else signs(len(seeds), 8, 6, seed=s)
        return inputs, signs(8, seed=100 + s) if shared_targets else signs(len(seeds), 8, seed=100 + s)

    check_steps(small(seeds), batch_of, textbook_hinge, PLAIN_SGD, n_steps=5)


def test_weights_of_rows_are_each_members_own():
    weights = torch.tensor([[0.25] * 4, [0.5, 0.5, 0, 0], [0.1, 0.2, 0.3, 0.4]], dtype=torch.float64)

    def batch_of(s):
        inputs = signs(3, 4, 6, seed=s)
        return Batch(inputs, inputs[..., 0] * inputs[..., 1], weights)

    check_steps(small(), batch_of, textbook_hinge, PLAIN_SGD, n_steps=5)


def test_classes_are_trained_on_too():
    def batch_of(s):
        inputs = signs(3, 8, 6, seed=s)
        return Batch(inputs, (inputs[..., 0] > 0).long() + 2 * (inputs[..., 1] > 0).long())

    module = small(n_outputs=4, loss="cross_entropy")
    check_steps(module, batch_of, textbook_cross_entropy, PLAIN_SGD, n_steps=5)


def test_the_loss_is_the_sum_over_members_of_their_means():
    module, _ = started(small())
    inputs, targets = signs(3, 8, 6), signs(3, 8, seed=1)
    expected = sum(textbook_hinge(as_torch(module, e)(inputs[e]), targets[e]).mean() for e in range(3))
    torch.testing.assert_close(module.training_step(Batch(inputs, targets), 0), expected, rtol=1e-13, atol=0)


def test_members_start_from_their_own_seeds_and_an_initial_seed_may_be_given_apart():
    module = small(members={"seed": [3, 3, 5], "init_seed": [0, 1, 5]})
    module.configure_model()
    for e, seed in enumerate([0, 1, 5]):
        alone = small(members={"seed": [seed]})
        alone.configure_model()
        for p, q in zip(module.network.parameters(), alone.network.parameters(), strict=True):
            assert torch.equal(p[e], q[0])


def test_the_network_is_built_once():
    module = small()
    module.configure_model()
    network = module.network
    module.configure_model()
    assert module.network is network


def test_a_member_is_a_population_of_one():
    module = small()
    x = signs(4, 6).float()
    torch.testing.assert_close(module.member(2)(x)[0], module(x)[2])
    with pytest.raises(TypeError, match=r"Sequential has no member axis"):
        Plain().member(0)


@pytest.mark.parametrize("shape", [(8, 1), (1, 8, 1), (7,)])
def test_labels_of_another_shape_are_refused_rather_than_broadcast(shape):
    module, _ = started(small((0,)))
    with pytest.raises(ValueError, match=r"targets \(E, B\), got"):
        module.training_step((signs(8, 6), signs(*shape)), 0)


def test_labels_that_the_loss_cannot_mean_are_refused_at_the_first_batch():
    module, _ = started(small((0,)))
    with pytest.raises(ValueError, match=r"must be −1 or \+1"):
        module.training_step((signs(8, 6), torch.zeros(8)), 0)


@pytest.mark.parametrize("own_batch", [True, False])
def test_a_plain_network_serves_a_population_of_one(own_batch):
    module, optimizer = started(Plain())
    alone = Plain().build_network([]).double()
    theirs = SGD(alone.parameters(), lr=0.1)
    for s in range(5):
        x, y = signs(8, 6, seed=s), signs(8, seed=50 + s)
        step_of(module, optimizer, Batch(x.unsqueeze(0), y.unsqueeze(0)) if own_batch else (x, y))
        theirs.zero_grad()
        textbook_hinge(alone(x), y).mean().backward()
        theirs.step()
    for p, q in zip(module.network.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)
    assert module(signs(4, 6)).shape == (1, 4, 1)


def test_a_plain_network_is_refused_for_two_members():
    with pytest.raises(ValueError, match=r"Sequential has no member axis: .* not of 2"):
        Plain({"seed": [0, 1]}).configure_model()


def test_hyper_parameters_are_plain_types_though_functions_were_given():
    module = small(loss=squared, optimizer=lambda p: SGD(p, lr=0.3), scheduler=partial(StepLR, step_size=3))
    assert {"n_inputs", "hidden", "members", "activation"} <= set(module.hparams)
    assert not {name for name, value in module.hparams.items() if callable(value)}
    assert small(loss="squared").hparams["loss"] == "squared"


def test_a_checkpoint_of_a_script_can_be_loaded_without_running_code(tmp_path):
    module = small(loss=squared, optimizer=partial(Adam, lr=0.01))
    trainer = fit(module, data(), max_steps=3)
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    checkpoint = torch.load(tmp_path / "it.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"]["members"] == {"seed": [0, 1, 2]}
    loaded = MLP.load_from_checkpoint(tmp_path / "it.ckpt", weights_only=True, loss=squared)
    assert loaded.loss is squared
    for p, q in zip(module.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(p, q)


def test_our_module_and_our_data_train_without_a_warning():
    # Lightning says some things once a process only; warnings are errors here.
    warning_cache.clear()
    fit(small(), data(), max_epochs=1)


def test_members_of_model_and_data_must_be_the_same():
    with pytest.raises(ValueError, match="members of the model and of the data differ"):
        fit(small((0, 1)), data((0, 2)), fast_dev_run=1)


def test_a_coordinate_that_nobody_consumes_is_refused():
    members = {"seed": [0, 1], "dropout": [0.1, 0.2]}
    with pytest.raises(ValueError, match="nothing here uses the coordinate 'dropout'"):
        fit(small(members=members), data(members=members), fast_dev_run=1)
    # Without our data, a coordinate of the data is nobody's.
    rows = DataLoader(TensorDataset(signs(8, 6).float(), signs(8).float()), batch_size=8)
    with pytest.raises(ValueError, match="nothing here uses the coordinate 'train_size'"):
        fit(small(members={"seed": [0, 1], "train_size": [5, 6]}), rows, rows, fast_dev_run=1)


def test_clipping_by_a_norm_over_members_is_refused():
    with pytest.raises(ValueError, match="gradient_clip_val: one norm over all members"):
        fit(small(), data(), fast_dev_run=1, gradient_clip_val=1.0)
    fit(small(), data(), fast_dev_run=1, gradient_clip_val=1.0, gradient_clip_algorithm="value")


def test_clipping_by_norm_bounds_the_step_of_one_member():
    module = small((0,))
    module.configure_model()
    before = nn.utils.parameters_to_vector(module.parameters()).detach().clone()
    fit(module, data((0,)), max_steps=1, gradient_clip_val=1e-3)
    moved = nn.utils.parameters_to_vector(module.parameters()).detach() - before
    # Learning rate 0.1 times the norm allowed; the gradient itself is far longer.
    assert float(moved.norm()) == pytest.approx(1e-4, rel=1e-2)


def test_a_learning_rate_chosen_by_the_mean_of_members_is_refused():
    module = small(scheduler=ReduceLROnPlateau)
    module.configure_model()
    with pytest.raises(ValueError, match="ReduceLROnPlateau: one learning rate for all members"):
        module.configure_optimizers()


def test_a_learning_rate_may_follow_the_loss_of_one_member():
    # The loss cannot fall below itself by 1000: the rate is cut after every validation but the first.
    plateau = partial(ReduceLROnPlateau, factor=0.5, patience=0, threshold=1000.0, threshold_mode="abs")
    trainer = fit(small((0,), scheduler=plateau), data((0,)), max_epochs=3)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**2)


def test_schedulers_are_stepped_every_step():
    trainer = fit(small(scheduler=partial(StepLR, step_size=1, gamma=0.5)), data(), max_steps=4)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**4)


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_a_plain_data_loader_trains_every_member(seeds):
    x, y = signs(24, 6), signs(24, seed=1)
    rows = TensorDataset(x.float(), y.float())
    module = small(seeds)
    trainer = fit(module, DataLoader(rows, batch_size=8), DataLoader(rows, batch_size=10), max_epochs=2)
    reference, optimizer = started(small(seeds))
    for _ in range(2):
        for i in range(0, 24, 8):
            step_of(reference, optimizer, (x[i : i + 8], y[i : i + 8]))
    for p, q in zip(module.network.parameters(), reference.network.parameters(), strict=True):
        torch.testing.assert_close(p.double(), q, rtol=1e-4, atol=1e-5)
    # A stranger's only loader is held out: nobody said that it was trained on.
    assert set(trainer.callback_metrics) == {"val/loss", "val/accuracy"}
    with torch.no_grad():
        losses = torch.stack([textbook_hinge(as_torch(module, e)(x), y).mean() for e in range(len(seeds))])
    assert float(trainer.callback_metrics["val/loss"]) == pytest.approx(float(losses.mean()), rel=1e-5)


@pytest.mark.parametrize("sizes", [[20, 20, 20], [20, 9, 13]])
def test_a_members_run_is_the_run_that_it_would_be_alone(sizes):
    # Whole runs, batch order and all; where sizes differ, 1/n in single precision would show.
    members = {"seed": [0, 1, 3], "train_size": sizes}
    together = small(members=members)
    fit(together, data(members=members), max_steps=20, precision="64-true")
    for e in range(3):
        own = {name: [values[e]] for name, values in members.items()}
        alone = small(members=own)
        fit(alone, data(members=own), max_steps=20, precision="64-true")
        for p, q in zip(together.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(p[e], q[0], rtol=1e-11, atol=1e-12)


def test_double_precision_trains_from_the_same_weights():
    module = small()
    fit(module, data(), max_steps=5, precision="64-true")
    assert all(p.dtype == torch.float64 for p in module.parameters())
    # The same run by hand: same first weights, same rows, float64 throughout.
    reference, optimizer = started(small())
    rows = data()
    rows.trainer = Trainer(**QUIET)
    for s in range(5):
        batch = rows.train_dataloader().batch(s)
        step_of(reference, optimizer, Batch(batch.inputs.double(), batch.targets.double()))
    for p, q in zip(module.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("label_noise", [0.0, 0.25])
def test_learning_curves_are_means_over_all_rows_of_all_members(label_noise):
    members = {"seed": [0, 1, 2], "train_size": [20, 20, 12]}
    module, rows = small(members=members), data(members=members, label_noise=label_noise)
    trainer = fit(module, rows, max_epochs=2)
    expected = {}
    for split, loader in zip(("train", "val"), rows.val_dataloader(), strict=True):
        [batch] = loader  # so few rows come in one batch
        for name, labels in [("", batch.targets), ("true_", batch.true_targets)]:
            if labels is None:
                continue
            losses, accuracies = [], []
            for e in range(3):
                counts = slice(None) if batch.weights is None else batch.weights[e] > 0
                f, y = as_torch(module, e)(batch.inputs[e][counts].double()), labels[e][counts].double()
                losses.append(textbook_hinge(f, y).mean().detach())
                accuracies.append((torch.sign(f[:, 0]) == y).double().mean())
            expected[f"{split}/{name}accuracy"] = float(torch.stack(accuracies).mean())
            if not name:
                expected[f"{split}/loss"] = float(torch.stack(losses).mean())
    assert ("train/true_accuracy" in expected) is (label_noise > 0)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert metrics == pytest.approx(expected, rel=1e-5)


def test_metrics_are_named_for_the_splits_that_the_data_name(monkeypatch):
    """In another order they are the same: a module that counted loaders instead would swap them."""
    usual, curves = fit(small(), data(), max_epochs=2).callback_metrics, LearningCurves()
    monkeypatch.setattr(TableData, "splits", ("held_out", "train"))
    module = small()
    # The curve at step 0 is not from Lightning's validation but from the module's own.
    turned = fit(module, data(), max_epochs=2, callbacks=[curves]).callback_metrics
    assert set(turned) == set(usual) == {"train/loss", "train/accuracy", "val/loss", "val/accuracy"}
    for name, value in usual.items():
        assert float(turned[name]) == pytest.approx(float(value), rel=1e-5)
    assert float(usual["train/loss"]) != pytest.approx(float(usual["val/loss"]), rel=1e-3)
    reference, _ = started(small())
    for i, split in enumerate(["train", "held_out"]):
        inputs, targets = data().rows(split)
        losses = torch.clamp(1 - targets * reference(inputs.double()).squeeze(-1), min=0).mean(dim=1)
        torch.testing.assert_close(curves.history["loss"][0, :, i], losses.detach(), rtol=1e-5, atol=1e-6)


def test_without_rows_trained_on_there_are_held_out_metrics_alone():
    members = {"seed": [0, 1, 2]}
    rows = OnlineData(SparseParity(6, 2), batch_size=8, n_held_out=16, validate_every=4, members=members)
    module, curves, onset = small(), LearningCurves(), Onset(memorised_above=0.0, generalised_from=0.0, dwell=0)
    trainer = fit(module, rows, max_steps=12, callbacks=[curves, onset])
    assert set(trainer.callback_metrics) == {"val/loss", "val/accuracy"}
    assert curves.steps.tolist() == [0, 4, 8, 12]
    for name in ("loss", "accuracy"):
        train, held_out = curves.history[name].unbind(dim=2)
        assert train.isnan().all()
        assert held_out.isfinite().all()
    inputs, targets = rows.rows("held_out")
    for e in range(3):
        logits = as_torch(module, e)(inputs[e].double())
        right = (torch.sign(logits[:, 0]) == targets[e]).double().mean()
        assert float(curves.history["accuracy"][-1, e, 1]) == pytest.approx(float(right))
    found = onset.onsets()
    assert found["memorised"].step.isnan().all()
    assert found["generalised"].step.tolist() == [0, 0, 0]


def test_a_loss_of_ones_own_is_taken():
    def doubled(logits, targets):
        return 2 * hinge(logits, targets)

    plain, own = (started(small(loss=loss))[0] for loss in ("hinge", doubled))
    batch = Batch(signs(3, 8, 6), signs(3, 8, seed=1))
    torch.testing.assert_close(own.training_step(batch, 0), 2 * plain.training_step(batch, 0))


@pytest.mark.parametrize("flag", [{"accumulate_grad_batches": 2}, {"overfit_batches": 2}])
def test_flags_that_would_change_what_a_step_is_are_refused(flag):
    with pytest.raises((ValueError, MisconfigurationException), match=next(iter(flag))):
        fit(small(), data(), max_steps=2, **flag)


@pytest.mark.parametrize("shared", [False, True])
def test_evaluating_in_pieces_gives_the_logits_of_all_rows_at_once(shared: bool) -> None:
    module = MLP(n_inputs=5, hidden=[2**14], members={"seed": [0, 1, 2]})
    module.configure_model()
    assert module.network.rows_at_once == 16
    inputs = torch.randn(*([] if shared else [3]), 50, 5)
    targets = torch.ones(50) if shared else torch.ones(3, 50)
    calls = []
    module.network.register_forward_hook(lambda network, given, logits: calls.append(logits.shape[1]))
    with torch.no_grad():
        pieces = module.predict_step((inputs, targets), 0)
    assert calls == [16, 16, 16, 2]
    torch.testing.assert_close(pieces, module(inputs).detach())


def test_a_module_that_trains_again_does_not_remember_the_metrics_of_its_last_run() -> None:
    module = MLP(n_inputs=5, hidden=[4])
    seen = []
    for seed in (0, 1):
        data = TableData(
            task=SparseParity(5, 2), train_size=16, batch_size=8, members={"seed": [0]}, n_held_out=seed + 3
        )
        curves = LearningCurves()
        trainer = Trainer(max_steps=1, callbacks=[curves], **QUIET)
        trainer.fit(module, datamodule=data)
        seen.append(curves.history["loss"][0])
    assert not torch.equal(seen[0], seen[1]), "the second run starts from trained weights"


class Ordinary(Plain):
    """A plain network that draws as torch does, from the global generator."""

    def build_network(self, generators):
        return nn.Linear(6, 1)


def test_a_plain_network_starts_from_its_members_seed_and_leaves_the_global_generator_alone() -> None:
    def start(seed: int) -> torch.Tensor:
        module = Ordinary(members={"seed": [seed]})
        module.configure_model()
        return module.network.weight

    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(start(1), start(1))
    assert not torch.equal(start(1), start(2))
    assert torch.equal(torch.rand(3), expected)


def test_a_plain_network_is_watched_like_any_other() -> None:
    norms = NeuronNormTracker(layer="network.0")
    fit(Plain(), data(seeds=[0]), max_steps=2, callbacks=[norms])
    assert norms.history["norm"].shape == (3, 1, 5)
