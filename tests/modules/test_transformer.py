import inspect
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import LambdaLR, StepLR

from grok_callbacks import EveryNSteps, NeuronNormTracker, SparseSubnetworkExtractor
from grok_callbacks.functional.sparse_subnetwork import linear_search, predictions, rank_neurons
from grok_lightning import open as open_run
from grok_lightning import report
from grok_lightning.cli import main
from grok_lightning.data import TableData
from grok_lightning.modules import Transformer
from grok_lightning.modules.transformer import paper_adamw
from grok_lightning.networks import TransformerNetwork
from grok_lightning.optim import LinearWarmup
from grok_lightning.population import stream
from grok_lightning.tasks import ModularArithmetic, SparseParity

SMALL = {"n_tokens": 7, "n_outputs": 5, "d_model": 8, "n_heads": 2, "d_mlp": 12}


def small(seeds=(0, 1, 2), **options):
    members = options.pop("members", {"seed": list(seeds)})
    return Transformer(**(SMALL | options), members=members)


def data(seeds=(0, 1, 2), **options):
    members = options.pop("members", {"seed": list(seeds)})
    options = {"train_size": 16, "n_held_out": None, "batch_size": None} | options
    return TableData(ModularArithmetic("add", 5), **options, members=members)


# What it is by default


def test_by_default_it_is_that_of_the_papers():
    module = Transformer()
    module.configure_model()
    network = module.network
    assert isinstance(network, TransformerNetwork)
    assert sum(p.numel() for p in module.parameters()) == 226_944
    sizes = (network.n_tokens, network.n_positions, network.n_outputs, network.d_model, network.n_heads, network.d_head)
    assert (*sizes, network.d_mlp, len(network.layers)) == (115, 4, 113, 128, 4, 32, 512, 1)
    assert (network.activation, network.layer_norm) == ("relu", False)
    assert (network.mlp_bias, network.attention_bias, network.output_bias) == (True, False, False)
    configured = module.configure_optimizers()
    (group,) = configured["optimizer"].param_groups
    assert isinstance(configured["optimizer"], AdamW)
    assert (group["initial_lr"], group["weight_decay"], group["betas"], group["eps"]) == (1e-3, 1.0, (0.9, 0.98), 1e-8)
    assert {id(p) for p in group["params"]} == {id(p) for p in module.parameters()}, "decay on all tensors"
    scheduler = configured["lr_scheduler"]["scheduler"]
    assert isinstance(scheduler, LinearWarmup)
    assert scheduler.steps == 10
    assert configured["lr_scheduler"]["interval"] == "step"


def test_its_arguments_reach_the_network():
    options = {
        "n_inputs": 3,
        "n_tokens": 9,
        "n_outputs": 6,
        "d_model": 10,
        "n_heads": 3,
        "d_head": 4,
        "d_mlp": 7,
        "n_layers": 2,
        "activation": "gelu",
        "mlp_bias": False,
        "attention_bias": True,
        "output_bias": True,
        "layer_norm": True,
    }
    # None is what it would be anyway, and none is forgotten.
    arguments = inspect.signature(TransformerNetwork).parameters
    assert set(options) | {"generators", "n_positions"} == set(arguments) | {"n_inputs"}
    assert all(arguments[name].default != value for name, value in options.items() if name in arguments)
    module = Transformer(**options)
    module.configure_model()
    options["n_positions"] = options.pop("n_inputs")
    expected = TransformerNetwork(**options, generators=[stream(0, "initial weights")])
    found = module.network
    assert {name: getattr(found, name) for name in options if name != "n_layers"} == {
        name: value for name, value in options.items() if name != "n_layers"
    }
    for p, q in zip(found.parameters(), expected.parameters(), strict=True):
        assert torch.equal(p, q)


def test_members_start_from_their_own_seeds():
    module = small((4, 0, 9))
    module.configure_model()
    for e, seed in enumerate((4, 0, 9)):
        alone = small((seed,))
        alone.configure_model()
        for p, q in zip(module.network.parameters(), alone.network.parameters(), strict=True):
            assert torch.equal(p[e], q[0])
        tokens = data().task.table()
        torch.testing.assert_close(module.member(e)(tokens)[0], module(tokens)[e])


# What a step does


def by_hand(seed, inputs, targets, n_steps, decay, **network):
    """One member trained by torch alone, on all its rows at every step."""
    sizes = {"n_tokens": 7, "n_positions": 4, "n_outputs": 5, "d_model": 8, "n_heads": 2, "d_mlp": 12}
    alone = TransformerNetwork(**(sizes | network), generators=[stream(seed, "initial weights")]).double()
    optimizer = AdamW(alone.parameters(), lr=1e-3, weight_decay=decay, betas=(0.9, 0.98))
    scheduler = LambdaLR(optimizer, lambda step: min(step / 10, 1))
    for _ in range(n_steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(alone.logits(inputs), targets).backward()
        optimizer.step()
        scheduler.step()
    return alone


@pytest.mark.parametrize("n_steps", [1, 2, 15])
# No attention biases: those of keys change no logit, and Adam makes steps even of the rounding of their gradient.
@pytest.mark.parametrize("network", [{}, {"n_layers": 2, "layer_norm": True, "output_bias": True}], ids=["", "deep"])
def test_a_trainer_takes_the_steps_of_a_plain_loop(make_trainer, network, n_steps):
    module, table = small(**network), data()
    make_trainer(max_steps=n_steps, precision="64-true").fit(module, table)
    inputs, targets = table.rows("train")
    begun = small(**network)
    begun.configure_model()
    for e in range(3):
        alone = by_hand(e, inputs[e], targets[e], n_steps, decay=1.0, **network)
        for p, q in zip(module.network.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(p[e], q[0], rtol=1e-12, atol=1e-12)
    moved = not torch.equal(module.network.output.weight, begun.network.output.weight.double())
    assert moved is (n_steps > 1), "the first step of the warm-up has learning rate 0"


def test_weight_decay_may_be_each_members_own(make_trainer):
    members = {"seed": [0, 0, 2], "weight_decay": [0.0, 5.0, 1.0]}
    module, table = small(members=members), data(members=members)
    make_trainer(max_steps=15, precision="64-true").fit(module, table)
    inputs, targets = table.rows("train")
    for e, (seed, decay) in enumerate(zip(*members.values(), strict=True)):
        alone = by_hand(seed, inputs[e], targets[e], 15, decay)
        for p, q in zip(module.network.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(p[e], q[0], rtol=1e-12, atol=1e-12)
    weight = module.network.embed.weight.detach()
    assert float((weight[0] - weight[1]).abs().max()) > 1e-3


@pytest.mark.parametrize("sizes", [[16, 16, 16], [16, 9, 12]])
def test_a_members_run_is_the_run_that_it_would_be_alone(make_trainer, sizes):
    members = {"seed": [0, 1, 3], "train_size": sizes}
    together = small(members=members)
    make_trainer(max_steps=20, precision="64-true").fit(together, data(members=members, train_size=None, batch_size=8))
    for e in range(3):
        own = {name: [values[e]] for name, values in members.items()}
        alone = small(members=own)
        make_trainer(max_steps=20, precision="64-true").fit(alone, data(members=own, train_size=None, batch_size=8))
        for p, q in zip(together.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(p[e], q[0], rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("scheduler", [None, partial(StepLR, step_size=2, gamma=0.5)])
def test_any_schedule_or_none(make_trainer, scheduler):
    trainer = make_trainer(max_steps=4)
    trainer.fit(small(scheduler=scheduler), data())
    assert trainer.optimizers[0].param_groups[0]["lr"] == 1e-3 * (1 if scheduler is None else 0.25)


def test_it_learns_the_table(make_trainer):
    """Whatever the parts do when they are compared, the whole memorises."""
    module = small((0, 1), optimizer=partial(AdamW, lr=0.02, weight_decay=0.0))
    trainer = make_trainer(max_steps=150, limit_val_batches=1.0, check_val_every_n_epoch=150)
    trainer.fit(module, data((0, 1), batch_size=None))
    assert float(trainer.callback_metrics["train/accuracy"]) == 1.0


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
@pytest.mark.parametrize("n_layers", [1, 2])
def test_it_trains_in_bfloat16(make_trainer, n_layers, precision):
    module = small(n_layers=n_layers, layer_norm=True)
    trainer = make_trainer(max_steps=3, precision=precision)
    trainer.fit(module, data())
    assert module.network.embed.weight.dtype == (torch.bfloat16 if precision == "bf16-true" else torch.float32)
    assert float(trainer.callback_metrics["train/loss"]) == pytest.approx(1.6, abs=1.0)


# What it keeps


def test_hyper_parameters_are_plain_types_and_come_back(make_trainer, tmp_path):
    module = small(n_layers=2, d_head=3, layer_norm=True, output_bias=True, optimizer=partial(SGD, lr=0.1))
    trainer = make_trainer(max_steps=2)
    trainer.fit(module, data())
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    saved = torch.load(tmp_path / "it.ckpt", weights_only=True)["hyper_parameters"]
    assert not {"optimizer", "scheduler"} & set(saved)
    assert {name: saved[name] for name in ("n_layers", "d_head", "d_mlp", "members")} == {
        "n_layers": 2,
        "d_head": 3,
        "d_mlp": 12,
        "members": {"seed": [0, 1, 2]},
    }
    loaded = Transformer.load_from_checkpoint(tmp_path / "it.ckpt", weights_only=True)
    assert loaded.hparams == module.hparams
    for (name, p), (other, q) in zip(module.named_parameters(), loaded.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(p, q)


# Monitors of neurons

MLP_NEURONS = {"layer": "network.layers.0.mlp_in", "next_layer": "network.layers.0.mlp_out"}


def trained(make_trainer, monitors, steps=40, **options):
    module, table = small(optimizer=partial(AdamW, lr=0.02), **options), data()
    trainer = make_trainer(max_steps=steps, precision="64-true", callbacks=monitors, check_val_every_n_epoch=steps)
    trainer.fit(module, table)
    return module, table


@pytest.mark.parametrize("n_layers", [1, 2])
def test_norms_of_neurons_are_tracked(make_trainer, n_layers):
    tracker = NeuronNormTracker(layer=MLP_NEURONS["layer"], schedule=EveryNSteps(20))
    module, _ = trained(make_trainer, [tracker], n_layers=n_layers)
    assert tracker.steps.tolist() == [0, 20, 40]
    norm = tracker.history["norm"]
    assert norm.shape == (3, 3, 12)
    expected = module.network.layers[0].mlp_in.weight.detach().square().sum(dim=2).sqrt()
    torch.testing.assert_close(norm[-1].double(), expected, rtol=1e-6, atol=1e-6)


def sizes_by_search(module, inputs, targets, layer):
    """Effective sparsities by trying one size after another, in the textbook's activations."""
    network = module.network
    mlp = network.layers[layer]
    order = rank_neurons(mlp.mlp_in.weight.detach().norm(dim=2))
    cache = network(inputs, cache=True)[1]
    neurons, after = cache[f"layers.{layer}.mlp_post"][:, :, -1], cache[f"layers.{layer}.resid"][:, :, -1]

    def predict_top(size):
        removed = neurons.clone()
        for e, ranked in enumerate(order):
            removed[e][:, ranked[:size]] = 0
        less = after - torch.einsum("ebn,edn->ebd", removed, mlp.mlp_out.weight)
        return predictions(torch.einsum("ebd,ecd->ebc", less, network.output.weight))

    return order, linear_search(predict_top, 12, targets, n_outputs=5)


@torch.no_grad()
@pytest.mark.parametrize("layer", [0, 1])
def test_sparse_subnetworks_of_the_last_layer_are_found_from_one_pass(make_trainer, layer):
    """In the only layer, and in the last one: what neurons write there goes straight to the logits."""
    names = {name: value.replace("layers.0", f"layers.{layer}") for name, value in MLP_NEURONS.items()}
    extractor = SparseSubnetworkExtractor(**names, schedule=EveryNSteps(20))
    with torch.enable_grad():
        module, table = trained(make_trainer, [extractor], n_layers=layer + 1)
    assert extractor.attributes()["method"] == "sums over neurons"
    order, expected = sizes_by_search(module, *table.rows("train"), layer)
    found = extractor.history["size"][-1]
    torch.testing.assert_close(found, torch.stack(expected, dim=-1))
    assert len(set(found.flatten().tolist())) > 1
    assert bool((found[:, 0] > 0).all()), "not a network that says the same whatever it reads"
    for e, ranked in enumerate(order.tolist()):
        kept = [j in ranked[: int(found[e, 0])] for j in range(12)]
        assert extractor.history["active"][-1, e].tolist() == kept


def test_sparse_subnetworks_of_an_earlier_layer_take_passes_of_their_own(make_trainer):
    extractor = SparseSubnetworkExtractor(**MLP_NEURONS, schedule=EveryNSteps(20))
    with pytest.warns(UserWarning, match="the logits are not sums over the neurons between") as told:
        module, table = trained(make_trainer, [extractor], n_layers=2)
    assert len([warning for warning in told if "sums over the neurons" in str(warning.message)]) == 1
    assert extractor.attributes()["method"] == "masked forward passes"
    inputs, targets = table.rows("train")
    network = module.network
    first = network.layers[0]
    order = rank_neurons(first.mlp_in.weight.detach().norm(dim=2))

    def predict_top(size):
        """Neurons without whom a network does are gone from what they write, at every position."""
        less = network.member(0).like(3).double()
        less.load_state_dict(network.state_dict())
        with torch.no_grad():
            for e, ranked in enumerate(order):
                less.layers[0].mlp_out.weight[e][:, ranked[size:]] = 0
            return predictions(less(inputs))

    expected = linear_search(predict_top, 12, targets, n_outputs=5)
    torch.testing.assert_close(extractor.history["size"][-1], torch.stack(expected, dim=-1))


# On the command line

CONFIG = """
model:
  class_path: Transformer
  init_args: {d_model: 8, n_heads: 2, d_mlp: 12}
data:
  class_path: TableData
  init_args:
    task: {class_path: ModularArithmetic, init_args: {p: 5}}
    train_size: 16
    batch_size: null
population: {seed: [0, 1]}
trainer: {max_steps: 12, enable_progress_bar: false}
"""
RUN = Path("runs/tiny/version_0")
LAST = RUN / "checkpoints" / "last.ckpt"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Work in an empty folder with a tiny config; do not draw."""
    monkeypatch.setattr(report, "write_report", lambda record, directory: directory / "report.html")
    monkeypatch.setattr(sys, "argv", ["grok"])
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(CONFIG)
    return tmp_path


def fit(*arguments):
    main(["fit", "--config", "tiny.yaml", *arguments])


def complaint(capsys, *arguments):
    """The one line in which the command line refuses these arguments, having left nothing."""
    before = sorted(Path.cwd().rglob("*"))
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        fit(*arguments)
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1, error
    assert sorted(Path.cwd().rglob("*")) == before
    return error.removeprefix("error: ").strip()


def test_the_data_set_the_sizes_and_the_checkpoint_keeps_everything(folder):
    fit("--data.task.p=7", "--data.train_size=30", "--model.layer_norm=true", "--model.scheduler.steps=3")
    checkpoint = torch.load(LAST, weights_only=True)
    saved = checkpoint["hyper_parameters"]
    assert {name: saved[name] for name in ("n_inputs", "n_tokens", "n_outputs", "d_model", "layer_norm")} == {
        "n_inputs": 4,
        "n_tokens": 9,
        "n_outputs": 7,
        "d_model": 8,
        "layer_norm": True,
    }
    loaded = Transformer.load_from_checkpoint(LAST, weights_only=True, map_location="cpu")
    assert loaded.optimizer is paper_adamw
    configured = loaded.configure_optimizers()
    assert isinstance(configured["optimizer"], AdamW)
    assert configured["optimizer"].param_groups[0]["initial_lr"] == 1e-3
    assert configured["lr_scheduler"]["scheduler"].steps == 3
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, checkpoint["state_dict"][name])
    network = open_run(RUN).network(member=1)
    assert isinstance(network, TransformerNetwork)
    tokens = ModularArithmetic("add", 7).table()
    torch.testing.assert_close(network(tokens)[0], loaded(tokens)[1])


def test_the_configuration_that_a_run_leaves_repeats_it(folder):
    fit()
    main(["fit", "--config", str(RUN / "config.yaml")])
    first, second = (torch.load(run / "checkpoints" / "last.ckpt") for run in (RUN, RUN.parent / "version_1"))
    for name, value in first["state_dict"].items():
        assert torch.equal(value, second["state_dict"][name])
    assert first["lr_schedulers"] == second["lr_schedulers"]


def test_a_task_whose_rows_are_numbers_is_refused(folder, capsys):
    said = complaint(capsys, "--data.task=SparseParity")
    assert said == "Transformer: reads rows of tokens, and those of the task are numbers; use MLP"


def test_so_it_is_in_a_script():
    task = SparseParity(6, 2)
    with pytest.raises(ValueError, match="reads rows of tokens, and those of the task are numbers; use MLP"):
        Transformer(n_inputs=task.n_inputs, n_tokens=task.n_tokens, n_outputs=task.n_outputs)


def test_a_task_whose_rows_are_tokens_is_refused_by_a_network_of_numbers(folder, capsys):
    assert "tokens" in complaint(capsys, "--model=MLP", "--model.loss=cross_entropy")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model.d_model=7"], "d_model: 7 cannot be divided among 2 heads; change one, or give d_head"),
        (["--model.d_model=0"], "d_model: expected at least 1, got 0"),
        (["--model.n_heads=0"], "n_heads: expected at least 1, got 0"),
        (["--model.d_head=0"], "d_head: expected at least 1, got 0"),
        (["--model.d_mlp=-1"], "d_mlp: expected at least 1, got -1"),
        (["--model.n_layers=0"], "n_layers: expected at least 1, got 0"),
        (["--model.activation=rel"], "activation: expected one of relu, square, gelu, tanh, identity, got 'rel'"),
        (["--model.scheduler.steps=0"], "LinearWarmup: steps must be at least 1, got 0"),
        (["--model.n_tokens=9"], "model.n_tokens is set by the data"),
    ],
)
def test_a_number_or_name_out_of_range_is_refused_in_one_line(folder, capsys, arguments, says):
    assert complaint(capsys, *arguments) == says


def test_a_modulus_that_the_checkpoint_was_not_trained_for_is_refused(folder, capsys):
    fit()
    said = complaint(capsys, "--data.task.p=7", "--ckpt_path=copy.ckpt", "--trainer.max_steps=14")
    assert "copy.ckpt" in said
    (folder / "copy.ckpt").write_bytes(LAST.read_bytes())
    said = complaint(capsys, "--data.task.p=7", "--ckpt_path=copy.ckpt", "--trainer.max_steps=14")
    assert "network" in said
