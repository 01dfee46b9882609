"""Members over devices: whatever the number of processes, a run is the one of one process."""

import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import scipy.stats
import torch
from interrupted import run
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy, Strategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher, _SubprocessScriptLauncher
from runs_compared import checkpoint_of
from small_runs import (
    OPTIMIZERS,
    PARITY_LAYERS,
    Experiment,
    adamw,
    assert_close,
    assert_close_checkpoints,
    assert_close_runs,
    make_trainer,
    middle,
    modular,
    online,
    parity,
    parity_data,
    parity_mlp,
    plain,
    sgd,
    train,
)
from together import run_together
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import grok_callbacks
import grok_lightning
from grok_callbacks import (
    Convergence,
    EveryNSteps,
    LearningCurves,
    Onset,
    ShrinkAccuracy,
    SparseSubnetworkExtractor,
    StopAfterOnset,
    StopWhenConverged,
    SubnetworkComparison,
    WeightTrajectory,
)
from grok_lightning import (
    MLP,
    GrokModule,
    LastCheckpoint,
    LotteryTicket,
    PopulationStrategy,
    SparseParity,
    TableData,
    strategies,
)
from grok_lightning.cli import main
from grok_lightning.modules import MemberMean
from grok_lightning.records import read_record
from grok_lightning.strategies import check_enough_members

pytestmark = [
    # Forking after threads were started is what these tests do on purpose; the children run no threads of their own.
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning"),
]


# One process, or several


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Callable[[], Experiment], int], Path]:
    """Return a function that returns the directory of an uninterrupted run of an experiment on so many processes."""
    made: dict[tuple[object, int], Path] = {}

    def make(experiment: Callable[[], Experiment], processes: int) -> Path:
        if (experiment, processes) not in made:
            folder = tmp_path_factory.mktemp("run")
            train(folder, experiment(), processes)
            made[experiment, processes] = folder
        return made[experiment, processes]

    return make


@pytest.mark.parametrize(
    ("experiment", "processes"),
    [(parity, 2), (parity, 3), (modular, 3), (online, 2)],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_run_is_that_of_one_process(runs, experiment, processes):
    one, several = runs(experiment, 1), runs(experiment, processes)
    assert_close_runs(several, one)
    assert_close_checkpoints(*(torch.load(middle(run), weights_only=True) for run in (several, one)))
    assert_whole(checkpoint_of(several), members=len(experiment()[0].members["seed"]))
    record = read_record(several / "records.nc")
    assert int(record.attrs["devices"]) == processes
    assert int(record.attrs["n_members"]) == len(experiment()[0].members["seed"])
    assert int(read_record(one / "records.nc").attrs["devices"]) == 1


def assert_whole(checkpoint: dict, members: int) -> None:
    """Look whether every tensor of weights and optimizer, but for its counts of steps, leads with all members."""
    assert {len(value) for value in checkpoint["state_dict"].values()} == {members}
    (optimizer,) = checkpoint["optimizer_states"]
    assert {len(v) for state in optimizer["state"].values() for v in state.values() if v.ndim} <= {members}


@pytest.mark.parametrize(
    ("before", "after", "strategy"),
    [
        (3, 1, "auto"),
        (3, 2, "population_fork"),
        (2, 4, "population_fork"),
        (1, 2, "population_fork"),
        (3, 2, "ddp_fork"),
    ],
)
def test_a_run_goes_on_on_another_number_of_devices(runs, tmp_path, before, after, strategy):
    # A copy of all of it: weights that were kept after the middle are to go.
    resumed = tmp_path / "resumed"
    shutil.copytree(runs(parity, before), resumed)
    train(resumed, parity(), after, strategy, resume=middle(runs(parity, before)))
    assert_close_runs(resumed, runs(parity, 1))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_every_optimizer_knows_is_taken_apart_and_put_together(tmp_path, optimizer):
    make = partial(plain, OPTIMIZERS[optimizer])
    train(tmp_path / "run", make(), steps=90, limit_val_batches=0)
    # Not with a run that went on: torch reads some of what NAdam and ASGD know in float32 in the precision of weights.
    for processes in (1, 2):
        resume = middle(tmp_path / "run")
        train(tmp_path / str(processes), make(), processes, steps=110, limit_val_batches=0, resume=resume)
    found, expected = (checkpoint_of(tmp_path / name) for name in "21")
    assert_close_checkpoints(found, expected)
    assert_whole(found, members=3)


def stops(seeds: Sequence[int] = (0, 1, 2)) -> Experiment:
    """Members stop when all have come to 0.7, which is not the first validation."""
    module, data, callbacks = plain(seeds=seeds)
    onset = Onset(memorised_above=0.7, generalised_from=0.9, dwell=20)
    return module, data, [callbacks[0], onset, StopAfterOnset("memorised", steps=10)]


def converges() -> Experiment:
    module, data, callbacks = plain(partial(adamw, weight_decay=2.0))
    rule = StopWhenConverged(loss_moved=0.5, accuracy_moved=0.2, norm_moved=0.5, at_least=0.5)
    return module, data, [*callbacks, Convergence(), rule]


@pytest.mark.parametrize("experiment", [stops, converges])
def test_all_processes_stop_when_one_would(runs, experiment):
    one, two = runs(experiment, 1), runs(experiment, 2)
    assert 20 < checkpoint_of(one)["global_step"] < 200
    assert_close_runs(two, one)


@pytest.mark.parametrize(("seeds", "of"), [((2, 0, 1), "each of the same seed"), ((5, 6, 7), "the only one")])
def test_members_start_where_members_of_another_run_ended(runs, tmp_path, seeds, of):
    source = runs(plain, 1) if "each" in of else tmp_path / "source"
    if not source.exists():
        train(source, plain(seeds=[9]), steps=20)
    for processes in (1, 2):
        train(tmp_path / str(processes), plain(seeds=seeds, warm_start=str(source)), processes, steps=10)
    assert_close_runs(tmp_path / "2", tmp_path / "1")
    assert checkpoint_of(tmp_path / "2")["warm_started"] == checkpoint_of(tmp_path / "1")["warm_started"]


def tickets() -> Experiment:
    module, data, callbacks = plain(seeds=[3, 4, 5])
    return module, data, [*callbacks, WeightTrajectory(EveryNSteps(100)), SubnetworkComparison(**PARITY_LAYERS)]


@pytest.mark.parametrize("keep", ["generalizing", "control"])
def test_lottery_tickets_are_drawn_for_all(runs, tmp_path, keep):
    source = runs(tickets, 1)
    for processes in (1, 2):
        also = [LotteryTicket(**PARITY_LAYERS, run=str(source), keep=keep)]
        train(tmp_path / str(processes), plain(seeds=[5, 3, 4]), processes, steps=10, also=also)
    assert_close_runs(tmp_path / "2", tmp_path / "1")
    kept = (checkpoint_of(tmp_path / "2")["state_dict"]["network.output.weight"] != 0).squeeze(1)
    assert kept.any(dim=1).all()
    assert not kept.all()


def test_files_are_written_by_one_process_alone(tmp_path, monkeypatch):
    log = tmp_path / "log"
    note_calls(monkeypatch, TorchCheckpointIO, "save_checkpoint", log)
    note_calls(monkeypatch, grok_lightning.runs, "write_record", log)
    note_calls(monkeypatch, grok_callbacks.weight_trajectory, "write_snapshot", log)
    module, data, _ = plain()
    train(tmp_path / "run", (module, data, [LearningCurves(), WeightTrajectory(EveryNSteps(60))]), 3, steps=100)
    # Of the middle and of the end; the third is how the first process hands the weights to that which has forked it.
    expected = ["save_checkpoint"] * 3 + ["write_record"] + ["write_snapshot"] * 2
    assert sorted(log.read_text().split()) == expected


def note_calls(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, log: Path) -> None:
    """Have calls of a function noted in a file, by whichever process."""
    original = getattr(owner, name)

    def noted(*args, **kwargs):
        with log.open("a") as file:
            file.write(f"{name}\n")
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, noted)


def looked_back_at() -> Experiment:
    """Members of whose kept weights the last are looked back at."""
    module, data, callbacks = plain(adamw)
    comparison = SubnetworkComparison(**PARITY_LAYERS, choose="median", among=3, controls=3)
    return module, data, [*callbacks, WeightTrajectory(EveryNSteps(20)), comparison]


@pytest.mark.parametrize("strategy", ["population", "ddp"])
def test_only_the_first_process_needs_to_see_the_files(tmp_path, strategy):
    """On machines without a common filesystem the others have a disk of their own, on which there is nothing."""

    def script(rank: int) -> list[object]:
        if rank:
            grok_callbacks.snapshots._files = lambda _: {}
        module, data, callbacks = looked_back_at()
        train(tmp_path / "two", (module, data, callbacks), 2, strategy, steps=110)
        first = callbacks[-1].steps.tolist()
        module, data, callbacks = looked_back_at()
        train(tmp_path / "two", (module, data, callbacks), 2, strategy, steps=110, resume=middle(tmp_path / "two"))
        return [first, callbacks[-1].steps.tolist()]

    done = run_together(tmp_path / "together", 2, script)
    assert done.answers == [[[0, 20, 40, 60, 80, 100, 110]] * 2] * 2, done.ended.output
    train(tmp_path / "one", looked_back_at(), steps=110)
    assert_close_runs(tmp_path / "two", tmp_path / "one")


def without_held_out_rows() -> Experiment:
    """Of every second member all rows are trained on: where there are two processes, one has no held-out rows."""
    members = {"seed": [0, 1, 2], "train_fraction": [0.5, 1.0, 0.7]}
    data = TableData(SparseParity(6, 2), n_held_out=None, batch_size=None, members=members)
    callbacks = [
        LearningCurves(),
        Onset(),
        ShrinkAccuracy(),
        SparseSubnetworkExtractor(**PARITY_LAYERS, schedule=EveryNSteps(20)),
        WeightTrajectory(EveryNSteps(20)),
        SubnetworkComparison(**PARITY_LAYERS, choose="median", among=3, controls=3),
    ]
    return MLP(n_inputs=6, hidden=[16], members=members, optimizer=adamw), data, callbacks


@pytest.mark.parametrize("processes", [2, 3])
def test_a_member_without_held_out_rows_measures_the_same_alone_in_its_process(tmp_path, processes):
    for count in (1, processes):
        train(tmp_path / str(count), without_held_out_rows(), count, steps=60)
    assert_close_runs(tmp_path / str(processes), tmp_path / "1")
    group = read_record(tmp_path / str(processes) / "records.nc")["subnetworks"]
    held_out = group["agreement"].sel(split="held_out", set="generalizing").isnull()
    assert held_out.all("step").values.tolist() == [False, True, False]
    assert not group["sensitivity"].sel(network="full").isnull().any()


def test_what_is_frozen_stays_so_on_several_processes(tmp_path):
    def script(rank: int) -> dict[str, object]:
        module, data, _ = plain(adamw)
        module.configure_model()
        before = module.network.hidden[0].weight.detach().double()
        module.network.hidden[0].weight.requires_grad_(False)
        module.network.output.eval()
        looks = Frozen()
        trainer = make_trainer(tmp_path, 2, [looks], "population", 20, limit_val_batches=0)
        trainer.fit(module, datamodule=data)
        torch.save(module.state_dict(), tmp_path / f"{rank}.pt")
        same = torch.equal(module.network.hidden[0].weight, before)
        return {"same": same, "members": looks.members, "during": looks.found, "after": frozen(module)}

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Found 1 module.* in eval mode")
        done = run_together(tmp_path / "together", 2, script)
        module, data, _ = plain(adamw)
        module.configure_model()
        module.network.hidden[0].weight.requires_grad_(False)
        module.network.output.eval()
        make_trainer(tmp_path, 1, steps=20, limit_val_batches=0).fit(module, datamodule=data)
    expected = [["network.hidden.0.weight"], ["network.output"]]
    for members, answer in zip((2, 1), done.answers, strict=True):
        assert answer == {"same": True, "members": members, "during": expected, "after": expected}, done.ended.output
    for rank in range(2):
        assert_close(torch.load(tmp_path / f"{rank}.pt"), dict(module.state_dict()), "weights")


def frozen(module: GrokModule) -> list[list[str]]:
    """Return the names of parameters that are not trained, and of layers in eval mode."""
    parameters = [name for name, value in module.named_parameters() if not value.requires_grad]
    return [parameters, [name for name, layer in module.named_modules() if not layer.training]]


class Frozen(Callback):
    """Looks while training goes on."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.found, self.members = frozen(pl_module), pl_module.network.n_members


# That the comparison can fail


def not_interleaved(monkeypatch: pytest.MonkeyPatch) -> None:
    def one_after_another(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    monkeypatch.setattr(strategies, "_in_order", one_after_another)


def off_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def own_members(self, n_members):
        return range((self.global_rank + 1) % self.world_size, n_members, self.world_size)

    monkeypatch.setattr(PopulationStrategy, "own_members", own_members)


def metrics_of_local_length(monkeypatch: pytest.MonkeyPatch) -> None:
    update = MemberMean.update

    def at_the_beginning(self, values, mask=None, members=None):
        update(self, values, mask, slice(0, len(values)))

    monkeypatch.setattr(MemberMean, "update", at_the_beginning)


def own_optimizer_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PopulationStrategy, "optimizer_state", Strategy.optimizer_state)


@pytest.mark.parametrize(
    "violation", [not_interleaved, off_by_one, metrics_of_local_length, own_optimizer_alone], ids=lambda v: v.__name__
)
def test_what_is_put_together_wrongly_is_noticed(tmp_path, monkeypatch, violation):
    make = partial(plain, adamw, seeds=(0, 1, 2, 3))
    train(tmp_path / "one", make(), steps=20)
    violation(monkeypatch)
    train(tmp_path / "two", make(), 2, steps=20)
    with pytest.raises(AssertionError):
        assert_close_runs(tmp_path / "two", tmp_path / "one")


# In single precision


EASY, HARD = 10, 150


def onsets(folder: Path, processes: int) -> Tensor:
    """Return the steps at which twelve members memorise, every second of them more rows, in float32."""
    members = {"seed": list(range(12)), "train_size": [EASY, HARD] * 6}
    module = parity_mlp(members, optimizer=partial(adamw, weight_decay=0.0))
    data = parity_data(members, batch_size=10)
    callbacks = [LearningCurves(), Onset()]
    train(folder, (module, data, callbacks), processes, precision="32-true", val_check_interval=5, steps=300)
    return torch.as_tensor(read_record(folder / "records.nc")["onset"]["step"].sel(event="memorised").values)


def assert_same_outcomes(found: Tensor, expected: Tensor) -> None:
    """Look whether onsets are of one distribution, and those of most members the same but for one validation."""
    for first in (0, 1):  # of the small ones, of the large ones
        assert scipy.stats.ks_2samp(found[first::2], expected[first::2]).pvalue > 0.01
    assert int(((found - expected).abs() <= 5).sum()) >= 9


@pytest.fixture(scope="module")
def onsets_of_one_process(tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    found = onsets(tmp_path_factory.mktemp("single"), 1)
    assert not found.isnan().any()
    assert found[::2].max() < found[1::2].min(), "more rows take longer"
    return found


def test_in_single_precision_outcomes_are_of_the_same_distribution(tmp_path, onsets_of_one_process):
    assert_same_outcomes(onsets(tmp_path, 2), onsets_of_one_process)


def test_two_processes_with_the_rows_of_the_same_members_are_noticed(tmp_path, monkeypatch, onsets_of_one_process):
    # Every process has the rows of members 0, 2, 4, ..., the small ones.
    monkeypatch.setattr("grok_lightning.data.data.own_members", lambda _, n_members: range(0, n_members, 2))
    found = onsets(tmp_path, 2)
    assert found[1::2].max() < onsets_of_one_process[1::2].min()
    with pytest.raises(AssertionError):
        assert_same_outcomes(found, onsets_of_one_process)


# The order of members


@pytest.mark.parametrize(("members", "processes"), [(1, 1), (5, 1), (5, 2), (5, 3), (5, 5), (7, 3), (64, 8)])
def test_members_are_put_back_in_their_order(members, processes):
    whole = {
        "a": torch.arange(members * 6.0).reshape(members, 2, 3),
        "b": torch.arange(members) % 2 == 0,
        "nothing": torch.zeros(members, 0),
    }
    # By the definition: member i is in process i modulo W.
    parts = [
        {name: torch.stack([value[i] for i in range(members) if i % processes == r]) for name, value in whole.items()}
        for r in range(processes)
    ]
    found = strategies._in_order(parts)
    assert found.keys() == whole.keys()
    for name, value in whole.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)


def test_processes_that_hand_over_different_values_are_told():
    with pytest.raises(RuntimeError, match=r"different values: \[\['a', 'b'\], \['a'\]\]"):
        strategies._in_order([{"b": torch.zeros(1), "a": torch.zeros(1)}, {"a": torch.zeros(1)}])


@pytest.mark.parametrize(("members", "processes"), [(1, 1), (5, 2), (5, 5), (7, 3), (64, 8)])
def test_every_member_is_in_one_process_and_all_have_nearly_as_many(monkeypatch, members, processes):
    strategy = PopulationStrategy()
    monkeypatch.setattr(PopulationStrategy, "world_size", processes)
    found = []
    for rank in range(processes):
        monkeypatch.setattr(PopulationStrategy, "global_rank", rank)
        found.append(list(strategy.own_members(members)))
    assert sorted(member for each in found for member in each) == list(range(members))
    assert {len(each) for each in found} <= {members // processes, -(-members // processes)}


# What is refused


def refusal(folder: Path, fit: Callable[[Trainer], object], processes: int = 2, **options: object) -> str:
    """Return the last line of the error that a fit on so many processes ends with."""
    trainer = make_trainer(folder, processes, steps=4, **options)
    with pytest.raises(Exception, match="ValueError") as error:  # the launcher wraps it in one of its own
        fit(trainer)
    return str(error.value).strip().splitlines()[-1]


def test_more_devices_than_members_are_refused(tmp_path):
    module, data, _ = plain()
    line = refusal(tmp_path, lambda trainer: trainer.fit(module, datamodule=data), processes=4)
    assert "strategy population: 4 devices for a population of 3: at least one member for each is needed" in line
    check_enough_members(3, 3)
    with pytest.raises(ValueError, match="2 devices for a population of 1"):
        check_enough_members(1, 2)


def test_a_module_without_members_is_refused(tmp_path, foreign):
    rows = foreign.train_loader(), foreign.val_loader()
    line = refusal(tmp_path, lambda trainer: trainer.fit(foreign.module(), *rows))
    assert "expected a module with members (a GrokModule), got ForeignModule; use ddp" in line


class Temperature(GrokModule):
    """Has a number that belongs to no member."""

    def __init__(self, place: str) -> None:
        super().__init__("hinge", sgd, None, {"seed": [0, 1, 2]})
        self.place = place
        if place == "module":
            self.temperature = nn.Parameter(torch.ones(3))

    def build_network(self, generators):
        network = MLP(n_inputs=8, hidden=[16]).build_network(generators)
        if self.place == "network":
            network.register_buffer("temperature", torch.ones(()))
        return network


@pytest.mark.parametrize(("place", "name"), [("module", "temperature"), ("network", "network.temperature")])
def test_what_belongs_to_no_member_is_refused(tmp_path, place, name):
    module, data = Temperature(place), plain()[1]
    line = refusal(tmp_path, lambda trainer: trainer.fit(module, datamodule=data))
    assert f"strategy population: '{name}' has no member axis, and would differ over processes" in line


def loader() -> DataLoader:
    rows = torch.randn(60, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(rows, (rows[:, 0] * rows[:, 1] > 0).long()), batch_size=20)


def fit_loader(trainer: Trainer) -> None:
    trainer.fit(MLP(8, 2, hidden=[16], loss="cross_entropy", members={"seed": [0, 1, 2]}), loader(), loader())


def test_a_loader_that_hands_out_shares_of_the_rows_is_refused(tmp_path):
    line = refusal(tmp_path, fit_loader)
    assert "a DistributedSampler hands out some; set the Trainer's use_distributed_sampler to False" in line


EVERY_EPOCH = {"val_check_interval": 1.0, "check_val_every_n_epoch": 1}


def test_a_foreign_loader_hands_all_rows_to_every_process(tmp_path):
    for processes in (1, 2):
        trainer = make_trainer(
            tmp_path / str(processes),
            processes,
            [LearningCurves(), LastCheckpoint()],
            steps=30,
            use_distributed_sampler=False,
            **EVERY_EPOCH,
        )
        fit_loader(trainer)
    assert_close_checkpoints(*(checkpoint_of(tmp_path / name) for name in "21"))


class Plain(GrokModule):
    """A plain network, with numbers of every rank."""

    def __init__(self) -> None:
        super().__init__("cross_entropy", sgd, None, None)

    def build_network(self, generators):
        return nn.Sequential(nn.Linear(8, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))


def test_one_device_takes_any_loader_and_a_plain_network(tmp_path):
    options = {"limit_val_batches": 0, **EVERY_EPOCH}
    make_trainer(tmp_path, 1, [LastCheckpoint()], steps=6, **options).fit(Plain(), loader(), loader())
    (tmp_path / "checkpoints" / "last.ckpt").rename(tmp_path / "first.ckpt")

    def go_on(_: int) -> dict[str, object]:
        trainer = make_trainer(tmp_path, 1, [LastCheckpoint()], steps=12, **options, strategy=PopulationStrategy())
        trainer.fit(Plain(), loader(), loader(), ckpt_path=tmp_path / "first.ckpt")
        return {"strategy": type(trainer.strategy).__name__, "step": checkpoint_of(tmp_path)["global_step"]}

    done = run_together(tmp_path, 1, go_on)
    assert done.answers == [{"strategy": "PopulationStrategy", "step": 12}], done.ended.output


@pytest.mark.parametrize("kind", [FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy])
def test_strategies_that_take_networks_apart_are_refused(kind):
    # Some cannot be made on a machine without what they are for.
    strategy = type(f"Another{kind.__name__}", (kind,), {"__init__": lambda self: None})
    module = plain()[0]
    module.trainer = SimpleNamespace(strategy=strategy(), callbacks=[])
    with pytest.raises(ValueError, match=f"strategy: Another{kind.__name__} .*population"):
        module.setup("fit")


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Calls the command line in an empty folder, in which there is a tiny config of two members."""
    monkeypatch.setattr(sys, "argv", ["grok"])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    return lambda *arguments: main(["fit", "--config", "tiny.yaml", *arguments])


CONFIG = """
model:
  class_path: MLP
  init_args: {hidden: [8]}
data:
  class_path: TableData
  init_args:
    task: {class_path: SparseParity, init_args: {n: 6, k: 2}}
    train_size: 32
    batch_size: 8
population: {seed: [0, 1]}
trainer: {max_epochs: 2, accelerator: cpu, precision: 64-true, enable_progress_bar: false}
"""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--trainer.strategy=population", "--trainer.devices=3"], "strategy population: 3 devices for a population"),
        (["--trainer.strategy=population_fork", "--trainer.devices=3"], "3 devices for a population of 2"),
        (["--trainer.strategy=population", "--trainer.num_nodes=3"], "3 devices for a population of 2"),
        (["--trainer.strategy=fsdp", "--trainer.devices=2"], "strategy"),
        (["--trainer.strategy=populaton"], "populaton"),
    ],
)
def test_the_command_line_refuses_in_a_line_before_any_process_is_started(
    command, capsys, monkeypatch, arguments, says
):
    for launcher in (_MultiProcessingLauncher, _SubprocessScriptLauncher):
        monkeypatch.setattr(launcher, "launch", lambda *_, **__: pytest.fail("started processes"))
    with pytest.raises(SystemExit) as stopped:
        command(*arguments)
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert says in error.splitlines()[-1]
    assert "Traceback" not in error
    assert not Path("runs").exists()


# Beyond training


def joined(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return what Lightning returns for every loader in one."""
    return {name: value for each in metrics for name, value in each.items()}


def metrics_of(folder: Path, experiment: Experiment, run: Path, processes: int = 1, name: str = "validate") -> dict:
    module, data, callbacks = experiment
    trainer = make_trainer(folder, processes, [*callbacks])
    checkpoint = run / "checkpoints" / "last.ckpt"
    return joined(getattr(trainer, name)(module, datamodule=data, ckpt_path=checkpoint, verbose=False))


@pytest.mark.parametrize("name", ["validate", "test"])
def test_metrics_of_a_checkpoint_are_those_of_all_members(runs, tmp_path, name):
    one, two = (metrics_of(tmp_path, parity(), runs(parity, 2), processes, name) for processes in (1, 2))
    assert len(one) > 3
    assert two == pytest.approx(one, rel=0, abs=1e-9, nan_ok=True)


def test_every_process_predicts_for_its_members(runs, tmp_path):
    checkpoint = runs(parity, 2) / "checkpoints" / "last.ckpt"

    def predict(rank: int) -> None:
        module, data, callbacks = parity()
        trainer = make_trainer(tmp_path, 2, callbacks, "population")
        found = trainer.predict(module, datamodule=data, ckpt_path=checkpoint)
        torch.save(torch.cat(found, dim=1), tmp_path / f"{rank}.pt")

    done = run_together(tmp_path / "together", 2, predict)
    assert done.statuses == [0, 0], done.ended.output
    module, data, callbacks = parity()
    alone = make_trainer(tmp_path, 1, callbacks).predict(module, datamodule=data, ckpt_path=checkpoint)
    expected = torch.cat(alone, dim=1)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        # Every process has as many rows as that of its members which has most.
        torch.testing.assert_close(found, expected[rank::2, : found.shape[1]], rtol=0, atol=1e-9)


def digest(module: GrokModule) -> list[float]:
    """Return a number for each member of a module."""
    return [sum(float(p.detach().double().abs().sum()) for p in module.member(e).parameters()) for e in range(3)]


def test_a_script_goes_on_with_all_members_in_every_process(runs, tmp_path):
    def script(rank: int) -> list[object]:
        module, data, callbacks = plain()
        trainer = make_trainer(tmp_path, 2, callbacks, "population")
        trainer.fit(module, datamodule=data)
        after_fit = [module.n_members, digest(module)]
        trainer.save_checkpoint(tmp_path / "saved.ckpt")
        metrics = trainer.validate(module, datamodule=data, verbose=False)
        return [*after_fit, digest(module), joined(metrics)]

    done = run_together(tmp_path / "together", 2, script)
    assert done.statuses == [0, 0], done.ended.output
    reference = plain()[0]
    expected = checkpoint_of(runs(plain, 1))
    reference.load_state_dict(expected["state_dict"])
    metrics = metrics_of(tmp_path, plain(), runs(plain, 1))
    for n_members, after_fit, after_validation, found in done.answers:
        assert n_members == 3
        assert after_fit == pytest.approx(digest(reference), abs=1e-9)
        assert after_validation == after_fit
        assert found == pytest.approx(metrics, rel=0, abs=1e-9)
    saved = torch.load(tmp_path / "saved.ckpt", weights_only=True)
    assert_close(saved["state_dict"], expected["state_dict"], "weights")
    assert_close(saved["optimizer_states"], expected["optimizer_states"], "optimizer")


@pytest.mark.parametrize("made_before", [False, True])
def test_a_script_that_forks_goes_on_with_all_members(runs, tmp_path, made_before):
    module, data, callbacks = plain()
    if made_before:
        module = module.double()
        module(torch.ones(1, 8))
        module = module.double()
    trainer = make_trainer(tmp_path, 2, callbacks)
    trainer.fit(module, datamodule=data)
    expected = checkpoint_of(runs(plain, 1))["state_dict"]
    assert module.n_members == 3
    assert_close(dict(module.state_dict()), dict(expected), "weights")
    torch.testing.assert_close(module.member(2).output.weight[0], expected["network.output.weight"][2])
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    assert_close(torch.load(tmp_path / "saved.ckpt", weights_only=True)["state_dict"], expected, "saved")
    found = joined(make_trainer(tmp_path, 2).validate(module, datamodule=data, verbose=False))
    assert found == pytest.approx(metrics_of(tmp_path, plain(), runs(plain, 1)), rel=0, abs=1e-9)


def test_members_in_another_process_are_said_to_be_there(tmp_path):
    class Looks(Callback):
        def on_train_start(self, trainer, pl_module):
            assert pl_module.n_members == (2 if trainer.global_rank == 0 else 1)
            mine = {0: [0, 2, -1, -3], 1: [1, -2]}[trainer.global_rank]
            for index in mine:
                pl_module.member(index)
            other = 1 - trainer.global_rank
            with pytest.raises(IndexError, match=f"member {other} is in another process; this one has"):
                pl_module.member(other)
            with pytest.raises(IndexError):
                pl_module.member(3)
            (tmp_path / f"looked_{trainer.global_rank}").touch()

    train(tmp_path, plain(), 2, steps=2, also=[Looks()])
    assert {path.name for path in tmp_path.glob("looked_*")} == {"looked_0", "looked_1"}


# When a process fails


class Fails(Callback):
    """Raises in the second process alone."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_step == 130 and trainer.global_rank == 1:
            raise RuntimeError("one process has had enough")


@pytest.mark.parametrize("started_by", ["fork", "torchrun"])
def test_one_process_that_fails_ends_all_and_the_checkpoint_before_it_resumes(runs, tmp_path, started_by):
    folder = tmp_path / "run"
    also: list[Callback] = [Fails()]
    if started_by == "fork":
        ended = run(lambda: train(folder, plain(), 2, also=also), tmp_path / "output.txt")
        assert ended.status == 1
    else:
        done = run_together(tmp_path, 2, lambda rank: train(folder, plain(), 2, "population", also=also).global_step)
        ended = done.ended
        assert done.answers == [None, None]
        assert all(done.statuses)
    assert "one process has had enough" in ended.output
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["middle.ckpt"]
    train(folder, plain(), 2, resume=middle(folder))
    expected = checkpoint_of(runs(plain, 1))
    assert_close(checkpoint_of(folder)["state_dict"], expected["state_dict"], "weights")
    assert_close(checkpoint_of(folder)["optimizer_states"], expected["optimizer_states"], "optimizer")


def test_a_checkpoint_of_processes_that_fail_is_refused(tmp_path):
    saves = ModelCheckpoint(tmp_path / "saved", save_on_exception=True)
    ended = run(lambda: train(tmp_path / "run", plain(), 2, also=[saves]), tmp_path / "output.txt")
    assert ended.status == 1
    assert "save_on_exception: processes that fail at different steps" in ended.output
    train(tmp_path / "alone", plain(), 1, also=[ModelCheckpoint(tmp_path / "alone", save_on_exception=True)])


@pytest.mark.slow
def test_the_command_line_starts_processes_of_its_own(command, tmp_path):
    """As ``population`` does: by running the command again."""
    arguments = ["--trainer.strategy=population", "--trainer.devices=2", "--experiment=two"]
    words = [sys.executable, "-W", "ignore", "-m", "grok_lightning", "fit", "--config", "tiny.yaml", *arguments]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    command("--experiment=one")
    one, two = (tmp_path / "runs" / name / "version_0" for name in ("one", "two"))
    assert [path.name for path in two.parent.iterdir()] == ["version_0"]
    assert_close(checkpoint_of(two)["state_dict"], checkpoint_of(one)["state_dict"], "weights")
    assert int(read_record(two / "records.nc").attrs["devices"]) == 2
    assert (two / "report.html").is_file()
