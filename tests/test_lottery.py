"""Lottery tickets: what is kept starts where the source run's member started, and trains as a network of its own."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
import yaml

from grok_callbacks import Intervention
from grok_callbacks.snapshots import write_snapshot
from grok_lightning import MLP, GrokModule, LotteryTicket, SparseParity, TableData, report
from grok_lightning.cli import main
from grok_lightning.records import read_record, write_record

LAYERS = {"layer": "network.hidden.0", "next_layer": "network.output"}
SOURCE = """
model:
  class_path: MLP
  init_args:
    hidden: [12]
    optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.3}}
data:
  class_path: TableData
  init_args:
    task: {class_path: SparseParity, init_args: {n: 6, k: 2}}
    train_size: 32
    batch_size: 8
population: {seed: [3, 4, 5]}
trainer:
  max_epochs: 10
  enable_progress_bar: false
"""
WATCH = """
  callbacks:
    - {class_path: WeightTrajectory, init_args: {schedule: {class_path: EveryNSteps, init_args: {n: 20}}}}
    - {class_path: SubnetworkComparison, init_args: {layer: network.hidden.0, next_layer: network.output}}
"""
TICKET = """
  callbacks:
    - class_path: LotteryTicket
      init_args: {layer: network.hidden.0, next_layer: network.output, run: RUN, keep: KEEP}
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a finished run of three members, seeds 3, 4, 5, that has all that tickets need."""
    folder = tmp_path_factory.mktemp("source")
    with pytest.MonkeyPatch.context() as patch:
        run_here(patch, folder)
        Path("source.yaml").write_text(SOURCE + WATCH)
        main(["fit", "--config", "source.yaml"])
    run = folder / "runs" / "source" / "version_0"
    # Sets that differ from member to member, and none is everything, whatever was found in so short a training.
    record = read_record(run / "records.nc")
    group = record["subnetworks"].to_dataset()
    sets = np.zeros((3, 12), dtype=bool)
    for member, neurons in enumerate([[0, 2, 3, 7, 11], [1, 2], [4, 5, 6, 8, 9, 10]]):
        sets[member, neurons] = True
    group["generalizing"] = (("member", "neuron"), sets)
    record["subnetworks"] = xr.DataTree(group)
    write_record(record, run / "records.nc")
    return run


def run_here(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setattr(report, "write_report", lambda record, directory: directory / "report.html")
    patch.setattr(sys, "argv", ["grok"])
    patch.chdir(folder)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    run_here(monkeypatch, folder)
    return folder


def sets_of(run: Path, keep: str) -> torch.Tensor:
    """Return what is kept, ``(member, neuron)`` in the order of the source run."""
    generalizing = torch.as_tensor(read_record(run / "records.nc")["subnetworks"]["generalizing"].values)
    return generalizing if keep == "generalizing" else ~generalizing


def snapshot(run: Path, step: int) -> dict[str, torch.Tensor]:
    return torch.load(run / "weights" / f"step_{step:010d}.pt", weights_only=True)["weights"]


def fit(
    make_trainer: Callable,
    ticket: LotteryTicket,
    seeds: list[int],
    optimizer: Callable | None = None,
    **options: object,
):
    """Return the module after training on the source's task from a script; ``max_steps=0`` is the start."""
    module = MLP(6, hidden=[12], optimizer=optimizer or sgd(), members={"seed": seeds})
    trainer = make_trainer(callbacks=[ticket], **({"max_epochs": 5, "limit_val_batches": 0} | options))
    trainer.fit(module, datamodule=data_of(seeds))
    return module


def data_of(seeds: list[int]) -> TableData:
    return TableData(SparseParity(6, 2), train_size=32, batch_size=8, members={"seed": seeds})


def sgd(**options: object) -> Callable:
    return lambda parameters: torch.optim.SGD(parameters, **({"lr": 0.3} | options))


def adamw(parameters: object) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.05, weight_decay=0.3)


def adam_with_penalty(parameters: object) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.05, weight_decay=0.1, amsgrad=True)


OPTIMIZERS = {
    "sgd": sgd(),
    "sgd, weight decay": sgd(weight_decay=0.1),
    "sgd, momentum, weight decay": sgd(momentum=0.9, nesterov=True, weight_decay=0.01),
    "adamw": adamw,
    "adam, penalty": adam_with_penalty,
}


def parts(module: GrokModule, kept: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return the weights of the kept neurons and of the others, of every member one after another."""
    ours, others = [], []
    for member, keep in enumerate(kept):
        hidden, output = module.network.hidden[0], module.network.output
        for part, mask in [(ours, keep), (others, ~keep)]:
            part += [hidden.weight[member][mask], hidden.bias[member][mask], output.weight[member][:, mask]]
    return [value.detach() for value in ours], [value.detach() for value in others]


# The start


@pytest.mark.parametrize("keep", ["generalizing", "complementary"])
@pytest.mark.parametrize("seeds", [[3, 4, 5], [5, 3], [4]], ids=str)
def test_kept_neurons_start_where_the_member_with_that_seed_started_and_others_at_0(
    make_trainer: Callable, source: Path, keep: str, seeds: list[int]
) -> None:
    ticket = LotteryTicket(**LAYERS, run=str(source), keep=keep)
    module = fit(make_trainer, ticket, seeds, max_steps=0)
    members = [[3, 4, 5].index(seed) for seed in seeds]
    kept, initial = sets_of(source, keep)[members], snapshot(source, 0)
    hidden, bias, output = (
        initial[f"network.{name}"][members] for name in ("hidden.0.weight", "hidden.0.bias", "output.weight")
    )
    expected = [v for e, k in enumerate(kept) for v in (hidden[e][k], bias[e][k], output[e][:, k])]
    ours, others = parts(module, kept)
    assert all(torch.equal(found, right) for found, right in zip(ours, expected, strict=True))
    assert sum(value.numel() for value in ours) == 8 * int(kept.sum()), "of six inputs, a bias and an output"
    assert all(not value.any() for value in others)


def test_the_initial_weights_are_the_runs_and_not_drawn_anew(make_trainer: Callable, source: Path) -> None:
    """They would be the same; other ones in the file show which."""
    initial = snapshot(source, 0)
    path = source / "weights" / "step_0000000000.pt"
    before = path.read_bytes()
    try:
        write_snapshot(source / "weights", 0, {name: value + 1 for name, value in initial.items()})
        module = fit(make_trainer, LotteryTicket(**LAYERS, run=str(source)), [3], max_steps=0)
    finally:
        path.write_bytes(before)
    kept = sets_of(source, "generalizing")[0]
    assert torch.equal(module.network.output.weight[0, 0, kept], initial["network.output.weight"][0, 0, kept] + 1)


def test_a_control_keeps_as_many_neurons_drawn_at_random(make_trainer: Callable, source: Path) -> None:
    def kept(seed: int) -> torch.Tensor:
        ticket = LotteryTicket(**LAYERS, run=str(source), keep="control", seed=seed)
        return fit(make_trainer, ticket, [3, 4, 5], max_steps=0).network.output.weight[:, 0] != 0

    sizes = sets_of(source, "generalizing").sum(dim=1)
    drawn = [kept(seed) for seed in range(8)]
    assert all(torch.equal(sets.sum(dim=1), sizes) for sets in drawn)
    assert torch.equal(drawn[0], kept(0)), "the same again"
    assert len({tuple(sets.flatten().tolist()) for sets in drawn}) == 8
    assert torch.stack(drawn)[:, 2].any(dim=0).all(), "every neuron of the member that keeps half has its turn"


# Training


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("keep", ["generalizing", "complementary"])
def test_the_others_are_still_exactly_0_after_training(
    make_trainer: Callable, source: Path, keep: str, optimizer: str
) -> None:
    kept = sets_of(source, keep)
    ticket = LotteryTicket(**LAYERS, run=str(source), keep=keep)
    start, _ = parts(fit(make_trainer, ticket, [3, 4, 5], OPTIMIZERS[optimizer], max_steps=0), kept)
    ours, others = parts(fit(make_trainer, ticket, [3, 4, 5], OPTIMIZERS[optimizer]), kept)
    assert all(not value.any() for value in others)
    assert all(not torch.equal(found, before) for found, before in zip(ours, start, strict=True)), "nothing was trained"


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_kept_part_is_a_narrow_network_trained_alone(make_trainer: Callable, source: Path, optimizer: str) -> None:
    """An independent path: plain layers of the kept neurons alone, a plain loop, the same rows; float64."""
    batches: list[tuple[torch.Tensor, torch.Tensor]] = []

    class Narrow(torch.nn.Module):
        def __init__(self, initial: dict[str, torch.Tensor], member: int, keep: torch.Tensor) -> None:
            super().__init__()
            self.hidden = torch.nn.Linear(6, int(keep.sum()), dtype=torch.float64)
            self.output = torch.nn.Linear(int(keep.sum()), 1, bias=False, dtype=torch.float64)
            with torch.no_grad():
                self.hidden.weight.copy_(initial["network.hidden.0.weight"][member][keep])
                self.hidden.bias.copy_(initial["network.hidden.0.bias"][member][keep])
                self.output.weight.copy_(initial["network.output.weight"][member][:, keep])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.output(torch.relu(self.hidden(x))).squeeze(-1)

    def note(module: MLP, batch: object, index: int) -> None:
        batches.append((batch.inputs.double(), batch.targets.double()))

    seeds = [5, 3]
    module = MLP(6, hidden=[12], optimizer=OPTIMIZERS[optimizer], members={"seed": seeds})
    module.on_train_batch_start = note.__get__(module)
    ticket = LotteryTicket(**LAYERS, run=str(source))
    trainer = make_trainer(callbacks=[ticket], max_epochs=10, limit_val_batches=0, precision="64-true")
    trainer.fit(module, datamodule=data_of(seeds))
    assert len(batches) == 40
    for member, index in enumerate([2, 0]):
        keep = sets_of(source, "generalizing")[index]
        narrow = Narrow(snapshot(source, 0), index, keep)
        stepper = OPTIMIZERS[optimizer](narrow.parameters())
        for inputs, targets in batches:
            stepper.zero_grad()
            torch.relu(1 - targets[member] * narrow(inputs[member])).mean().backward()
            stepper.step()
        found, _ = parts(module, torch.stack([keep] * 2))
        for value, right in zip(found[3 * member : 3 * member + 3], narrow.parameters(), strict=True):
            torch.testing.assert_close(value, right.detach(), rtol=0, atol=1e-10)


def test_it_is_told_apart_from_what_only_watches() -> None:
    assert issubclass(LotteryTicket, Intervention)


# The command line


def write_ticket(run: Path | str, keep: str = "generalizing") -> None:
    Path("ticket.yaml").write_text(SOURCE + TICKET.replace("RUN", str(run)).replace("KEEP", keep))


def last(experiment: str, version: int = 0) -> dict[str, torch.Tensor]:
    path = Path(f"runs/{experiment}/version_{version}/checkpoints/last.ckpt")
    return torch.load(path, weights_only=True)["state_dict"]


def test_a_config_names_it_by_its_class_and_the_experiment_for_the_run(folder: Path, source: Path) -> None:
    write_ticket(source.parent)
    main(["fit", "--config", "ticket.yaml"])
    config = yaml.safe_load(Path("runs/ticket/version_0/config.yaml").read_text())
    found = [c["class_path"] for c in config["trainer"]["callbacks"]]
    assert found == ["grok_lightning.LotteryTicket"]
    kept = sets_of(source, "generalizing")
    weight = last("ticket")["network.output.weight"][:, 0]
    assert (weight[~kept] == 0).all()
    assert (weight[kept] != 0).all()


def test_a_resumed_ticket_goes_on_from_its_checkpoint_alone(folder: Path, source: Path) -> None:
    """Four epochs are two and two more, though the source run is gone by then."""
    moved = folder / "source"
    moved.symlink_to(source)
    write_ticket(moved)
    main(["fit", "--config", "ticket.yaml", "--trainer.max_epochs=4", "--experiment=whole"])
    main(["fit", "--config", "ticket.yaml", "--trainer.max_epochs=2"])
    half = last("ticket")
    moved.unlink()
    main(["fit", "--config", "ticket.yaml", "--ckpt_path", "runs/ticket/version_0", "--trainer.max_epochs=4"])
    whole, resumed = last("whole"), last("ticket")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
    assert not all(torch.equal(half[name], value) for name, value in whole.items())


def copy_of(source: Path, folder: Path, change: Callable[[Path], None] = lambda run: None) -> Path:
    """Return a changed copy of the source run."""
    run = folder / "copy"
    (run / "weights").mkdir(parents=True)
    for name in ["records.nc", "config.yaml", "weights/step_0000000000.pt"]:
        (run / name).write_bytes((source / name).read_bytes())
    change(run)
    return run


def without_comparison(run: Path) -> None:
    record = read_record(run / "records.nc")
    del record["subnetworks"]
    write_record(record, run / "records.nc")


def of_another_layer(run: Path) -> None:
    record = read_record(run / "records.nc")
    record["subnetworks"].attrs["layer"] = "network.hidden.1"
    write_record(record, run / "records.nc")


def without_start(run: Path) -> None:
    (run / "weights" / "step_0000000000.pt").rename(run / "weights" / "step_0000000001.pt")


def with_other_start(run: Path) -> None:
    weights = snapshot(run, 0)
    weights["network.hidden.0.weight"] = weights["network.hidden.0.weight"][..., :5]
    write_snapshot(run / "weights", 0, weights)


def damaged(run: Path) -> None:
    (run / "records.nc").write_bytes(b"no netCDF")


ERRORS = {
    "no run": (None, [], r"no run in .*nowhere"),
    "a damaged record": (damaged, [], r"records\.nc cannot be read"),
    "no comparison": (without_comparison, [], r"copy has no SubnetworkComparison"),
    "a comparison of another layer": (of_another_layer, [], r"no SubnetworkComparison of layer 'network\.hidden\.0'"),
    "no initial weights": (without_start, [], r"copy has no weights of step 0; .*WeightTrajectory"),
    "other initial weights": (with_other_start, [], r"'network\.hidden\.0\.weight' does not fit"),
    "seeds that it has not": (
        copy_of,
        ["--population={seed: [8, 4, 7]}"],
        r"no members with seed \[7, 8\].*\[3, 4, 5\]",
    ),
    "a warm start": (copy_of, ["--model.warm_start=runs"], "initial weights of its own; leave warm_start out"),
    "another width": (copy_of, ["--model.hidden=[9]"], r"has 12 neurons, 'network\.hidden\.0' has 9"),
    "other inputs": (copy_of, ["--data.task.n=7"], r"'network\.hidden\.0\.weight' does not fit"),
    "another layer": (copy_of, ["--trainer.callbacks.layer=network.hiden.0"], r"layer: .*'network\.hiden\.0'"),
    "another reader": (copy_of, ["--trainer.callbacks.next_layer=network.hid"], r"next_layer: .*'network\.hid'"),
    "a layer that reads other things": (
        copy_of,
        ["--trainer.callbacks.next_layer=network.hidden.0"],
        r"next_layer: 'network\.hidden\.0' reads 6 inputs, not 12",
    ),
    "unknown sets": (copy_of, ["--trainer.callbacks.keep=best"], r"keep: .*generalizing.*best"),
}


@pytest.mark.parametrize("error", ERRORS)
def test_what_is_missing_is_told_in_a_line_and_leaves_nothing(
    capsys: pytest.CaptureFixture[str], folder: Path, source: Path, error: str
) -> None:
    change, arguments, says = ERRORS[error]
    run: Path | str = "nowhere"
    if change is not None:
        run = copy_of(source, folder) if change is copy_of else copy_of(source, folder, change)
    write_ticket(run)
    for argument in [a for a in arguments if a.startswith("--trainer.callbacks.")]:
        name, value = argument.removeprefix("--trainer.callbacks.").split("=")
        text = Path("ticket.yaml").read_text()
        changed = re.sub(rf"([{{ ]{name}): [\w./-]+", rf"\1: {value}", text)
        assert changed != text
        Path("ticket.yaml").write_text(changed)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config", "ticket.yaml", *(a for a in arguments if "callbacks" not in a)])
    said = capsys.readouterr().err
    assert stopped.value.code == 2
    assert said.startswith("error: ")
    assert len(said.splitlines()) == 1
    assert len(said) < 400
    assert re.search(says, said), said
    assert not (folder / "runs").exists()


# From a script


def test_an_unknown_set_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="keep: expected 'generalizing', 'complementary' or 'control', got 'best'"):
        LotteryTicket(**LAYERS, keep="best")


def test_somebody_elses_module_has_no_members_to_match(make_trainer: Callable, foreign: object, source: Path) -> None:
    ticket = LotteryTicket("encoder.fc1", "encoder.fc2", run=str(source))
    trainer = make_trainer(max_epochs=1, callbacks=[ticket])
    with pytest.raises(ValueError, match="expected a module with members, got ForeignModule"):
        trainer.fit(foreign.module(), foreign.train_loader(), foreign.val_loader())


class Plain(GrokModule):
    """A plain network, without a member axis."""

    def __init__(self, members: dict | None = None) -> None:
        super().__init__(loss="hinge", optimizer=sgd(), scheduler=None, members=members)

    def build_network(self, generators: object) -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(6, 12), torch.nn.ReLU(), torch.nn.Linear(12, 1))


def test_a_plain_network_is_refused(make_trainer: Callable, source: Path) -> None:
    trainer = make_trainer(max_epochs=1, callbacks=[LotteryTicket("network.0", "network.2", run=str(source))])
    with pytest.raises(ValueError, match="Sequential has no member axis"):
        trainer.fit(Plain(members={"seed": [3]}), datamodule=data_of([3]))


def test_initial_weights_are_matched_by_their_own_seed_where_it_is_given_apart(
    make_trainer: Callable, source: Path
) -> None:
    """Rows of seed 9, weights of seed 4."""
    members = {"seed": [9], "init_seed": [4]}
    module = MLP(6, hidden=[12], optimizer=sgd(), members=members)
    data = TableData(SparseParity(6, 2), train_size=32, batch_size=8, members=members)
    make_trainer(max_steps=0, callbacks=[LotteryTicket(**LAYERS, run=str(source))]).fit(module, datamodule=data)
    kept = sets_of(source, "generalizing")[1]
    initial = snapshot(source, 0)["network.output.weight"][1, 0]
    assert torch.equal(module.network.output.weight[0, 0], torch.where(kept, initial, 0))


def test_of_several_members_with_one_seed_each_finds_its_own(
    make_trainer: Callable, source: Path, folder: Path
) -> None:
    """They are told apart by the coordinates that both runs have; where that is not enough, it is refused."""
    Path("decays.yaml").write_text(
        (SOURCE + WATCH).replace("seed: [3, 4, 5]", "seed: [3], weight_decay: [0.0, 0.2]").replace("10", "3")
    )
    main(["fit", "--config", "decays.yaml"])
    run = folder / "runs" / "decays" / "version_0"
    record = read_record(run / "records.nc")
    group = record["subnetworks"].to_dataset()
    group["generalizing"][:] = np.arange(12) < np.array([[4], [7]])
    record["subnetworks"] = xr.DataTree(group)
    write_record(record, run / "records.nc")

    members = {"seed": [3, 3], "weight_decay": [0.2, 0.0]}
    module = MLP(6, hidden=[12], optimizer=sgd(), members=members)
    data = TableData(SparseParity(6, 2), train_size=32, batch_size=8, members=members)
    make_trainer(callbacks=[LotteryTicket(**LAYERS, run=str(run))], max_steps=0).fit(module, datamodule=data)
    kept = module.network.hidden[0].weight.abs().sum(dim=-1) > 0
    assert kept.sum(dim=-1).tolist() == [7, 4]

    with pytest.raises(ValueError, match=r"2 members with {'seed': 3}, not one"):
        fit(make_trainer, LotteryTicket(**LAYERS, run=str(run)), [3], max_steps=0)
