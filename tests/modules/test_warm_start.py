"""Initial weights from another run: which member's, when they are read, and what is refused."""

import hashlib
from pathlib import Path

import pytest
import torch
import yaml

import grok_lightning
from grok_lightning import MLP, GrokModule, SparseParity, TableData
from grok_lightning.cli import main
from grok_lightning.modules.warm_start import read_warm_start

CONFIG = """
model:
  class_path: MLP
  init_args:
    hidden: [8]
    optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.3}}
data:
  class_path: TableData
  init_args:
    task: {class_path: SparseParity, init_args: {n: 6, k: 2}}
    train_size: 32
    batch_size: 8
population: {seed: [3, 4]}
trainer:
  max_steps: 6
  enable_progress_bar: false
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a folder with the config of a source run of two members, seeds 3 and 4, which has been trained."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["grok_lightning"])
    Path("source.yaml").write_text(CONFIG)
    main(["fit", "--config", "source.yaml"])
    return tmp_path


def fit(*words):
    main(["fit", "--config", "source.yaml", "--experiment", "warm", "--trainer.max_steps", "1", *words])


def weights(path):
    state = torch.load(path, weights_only=True)["state_dict"]
    return {name: value for name, value in state.items() if name.startswith("network.")}


def last(run):
    return Path("runs") / run / "checkpoints" / "last.ckpt"


def initial(make_trainer, source, members, **options):
    """Return the module before its first step."""
    module = MLP(6, hidden=[8], members=members, warm_start=str(source), **options)
    data = TableData(SparseParity(6, 2), train_size=32, batch_size=8, members=members)
    make_trainer(max_steps=0).fit(module, datamodule=data)
    return module


@pytest.mark.parametrize("place", ["runs/source/version_0/checkpoints/last.ckpt", "runs/source/version_0", "runs"])
def test_members_are_matched_by_seed_whatever_else_they_have(folder, make_trainer, place):
    members = {"seed": [4, 4, 3], "weight_decay": [0.1, 0.2, 0.1]}
    module = initial(make_trainer, place, members)
    there = weights(last("source/version_0"))
    for name, value in module.state_dict().items():
        if name.startswith("network."):
            assert torch.equal(value, there[name][[1, 1, 0]])


def test_one_member_goes_to_all(folder, make_trainer):
    main(["fit", "--config", "source.yaml", "--experiment", "one", "--population", "{seed: [9]}"])
    module = initial(make_trainer, "runs/one", {"seed": [0, 1, 2]})
    there = weights(last("one/version_0"))
    assert all(
        torch.equal(value, there[name].expand_as(value))
        for name, value in module.state_dict().items()
        if name.startswith("network.")
    )


def test_it_is_not_a_hyper_parameter_but_its_hash_is_in_the_record_also_after_resuming(folder, monkeypatch):
    fit("--model.warm_start", "runs/source")
    digest = hashlib.sha256(last("source/version_0").read_bytes()).hexdigest()
    checkpoint = torch.load(last("warm/version_0"), weights_only=True)
    assert "warm_start" not in checkpoint["hyper_parameters"]
    for _ in range(2):
        attributes = grok_lightning.open("runs/warm/version_0").record.attrs
        assert attributes["warm_start_sha256"] == digest
        assert attributes["warm_start_path"] == "runs/source/version_0/checkpoints/last.ckpt"
        # The second time round the source is gone: resuming does not read it.
        last("source/version_0").unlink(missing_ok=True)
        main(["fit", "--ckpt_path", "runs/warm/version_0", "--trainer.max_steps", "4"])
    assert yaml.safe_load(Path("runs/warm/version_0/config.yaml").read_text())["model"]["init_args"]["warm_start"]


def test_resuming_goes_on_from_the_checkpoint_bit_for_bit(folder):
    fit("--model.warm_start", "runs/source", "--trainer.max_steps", "8")
    fit("--model.warm_start", "runs/source", "--trainer.max_steps", "3")
    main(["fit", "--ckpt_path", "runs/warm/version_1", "--trainer.max_steps", "8"])
    whole, resumed = (weights(last(f"warm/version_{i}")) for i in (0, 1))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_second_fit_of_the_same_object_goes_on_with_its_own_weights(folder, make_trainer):
    members = {"seed": [3, 4]}
    module = initial(make_trainer, "runs/source", members)
    with torch.no_grad():
        module.network.output.weight.zero_()
    data = TableData(SparseParity(6, 2), train_size=32, batch_size=8, members=members)
    make_trainer(max_steps=0).fit(module, datamodule=data)
    assert not module.network.output.weight.any()


def test_the_optimizer_begins_anew(folder, make_trainer):
    module = initial(make_trainer, "runs/source", {"seed": [3]}, optimizer=torch.optim.AdamW)
    assert not module.trainer.optimizers[0].state


def test_validating_reads_nothing(folder, make_trainer):
    module = MLP(6, hidden=[8], members={"seed": [3]}, warm_start="nowhere")
    data = TableData(SparseParity(6, 2), train_size=32, members={"seed": [3]})
    make_trainer().validate(module, datamodule=data, verbose=False)


class Plain(GrokModule):
    def __init__(self, members=None, warm_start=None):
        super().__init__("hinge", torch.optim.SGD, None, members, warm_start)

    def build_network(self, generators):
        return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))


def test_a_plain_network_starts_from_one_of_its_kind(folder, make_trainer):
    data = TableData(SparseParity(6, 2), train_size=32, batch_size=8, members={"seed": [0]})
    first = Plain(members={"seed": [0]})
    trainer = make_trainer(max_steps=3)
    trainer.fit(first, datamodule=data)
    trainer.save_checkpoint("plain.ckpt")
    data = TableData(SparseParity(6, 2), train_size=32, batch_size=8, members={"seed": [1]})
    second = Plain(members={"seed": [1]}, warm_start="plain.ckpt")
    make_trainer(max_steps=0).fit(second, datamodule=data)
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.warm_start", "runs/nowhere"], "runs/nowhere: there is no such file; train that run first"),
        (["--model.warm_start", "empty"], "there is no whole checkpoint in empty; train that run first"),
        (["--model.warm_start", "source.yaml"], "source.yaml: the file cannot be read"),
        (
            ["--model.warm_start", "runs/source", "--population", "{seed: [3, 7, 5]}"],
            "last.ckpt has no members with seed [5, 7]; it has [3, 4]",
        ),
        (
            ["--model.warm_start", "runs/source", "--model.hidden", "[9]"],
            "is of another network: 'network.hidden.0.bias' is of shape (2, 8) there, and of shape (2, 9) here",
        ),
        (
            ["--model.warm_start", "runs/source", "--model.output_bias", "true"],
            "is of another network: 'network.output.bias' is missing there, and of shape (2, 1) here",
        ),
        (
            ["--model.warm_start", "runs/source", "--model.hidden", "[8, 8]"],
            "is of another network: 'network.hidden.1.bias' is missing there",
        ),
    ],
    ids=lambda value: " ".join(value[2:] or value) if isinstance(value, list) else "",
)
def test_what_does_not_fit_is_told_in_a_line(folder, capsys, words, message):
    Path("empty").mkdir()
    with pytest.raises(SystemExit) as caught:
        fit(*words)
    assert caught.value.code == 2
    assert f"warm_start: {message}" in (error := capsys.readouterr().err) or message in error
    assert not Path("runs/warm").exists()


class Malicious:
    def __reduce__(self):
        return Path.mkdir, (Path("executed"),)


def test_no_code_of_a_checkpoint_is_run(folder):
    torch.save({"state_dict": {}, "x": Malicious()}, "evil.ckpt")
    with pytest.raises(ValueError, match="cannot be read"):
        read_warm_start("evil.ckpt", {"seed": [0]})
    assert not Path("executed").exists()
