"""Speed of the sparse-parity training step, and what measuring costs.

Times, in interleaved rounds, a bare PyTorch loop over one ordinary network, a bare loop over a population, and
``Trainer.fit`` on the same population with nothing measured, for one and two threads; then the shipped config with and
without its measuring. Prints medians and the ratios that the README quotes.
"""

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn

from grok_callbacks import (
    EveryNSteps,
    LearningCurves,
    Monitor,
    NeuronNormTracker,
    Onset,
    SparseSubnetworkExtractor,
    SubnetworkComparison,
    WeightTrajectory,
)
from grok_lightning import MLP, LastCheckpoint, Recorder, TableData
from grok_lightning.cli import Unprofiled
from grok_lightning.data import EpochLoader

STEPS_PER_EPOCH = 32


def members(n: int) -> dict[str, list[int | float]]:
    """Return a population of n seeds."""
    return {"seed": list(range(n))}


def rows(n: int) -> tuple[Tensor, Tensor]:
    """Return the training rows of n members."""
    return TableData(members=members(n)).rows("train")


def loader_of(n: int) -> EpochLoader:
    """Return a training loader without a Trainer; :meth:`EpochLoader.batch` is called with the step."""
    inputs, targets = rows(n)
    return EpochLoader(inputs, targets, [1000] * n, list(range(n)), batch_size=32, step=lambda: 0)


def ordinary_loop(steps: int) -> float:
    """Time a loop over one ordinary ``nn.Sequential``; the fairest plain PyTorch there is for this work."""
    inputs, targets = (tensor[0] for tensor in rows(1))
    hidden = nn.Linear(40, 1000)
    network = nn.Sequential(hidden, nn.ReLU(), nn.Linear(1000, 1, bias=False))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, weight_decay=0.01)
    began = time.perf_counter()
    for step in range(steps):
        if step % STEPS_PER_EPOCH == 0:
            order = torch.randperm(1000)
        chosen = order[step % STEPS_PER_EPOCH * 32 :][:32]
        loss = torch.relu(1 - targets[chosen] * network(inputs[chosen]).squeeze(-1)).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return time.perf_counter() - began


def population_loop(n: int, steps: int) -> float:
    """Time a bare loop over a population: our network and batches, no Lightning."""
    module = MLP(members=members(n))
    module.configure_model()
    loader = loader_of(n)
    optimizer = module.optimizer(module.parameters())
    began = time.perf_counter()
    for step in range(steps):
        loss = module.training_step(loader.batch(step), step)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return time.perf_counter() - began


class Clock(Callback):
    """Times a fit from its first step until it has been looked back at; it comes last."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start."""
        self.began = time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop."""
        self.seconds = time.perf_counter() - self.began


def fit(n: int, steps: int) -> float:
    """Time ``Trainer.fit``, as the command line sets it up, with nothing measured, logged or saved."""
    clock = Clock()
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        profiler=Unprofiled(),
        callbacks=[clock],
    )
    trainer.fit(MLP(members=members(n)), datamodule=TableData(members=members(n)))
    return clock.seconds


def experiment(epochs: int, measured: bool) -> tuple[float, dict[str, float]]:
    """Time the experiment of configs/parity.yaml, with or without all that watches it; and each monitor in it."""
    layer, reader = "network.hidden.0", "network.output"
    with tempfile.TemporaryDirectory() as folder:
        clock = Clock()
        watching: list[Callback] = [
            NeuronNormTracker(layer),
            SparseSubnetworkExtractor(layer, reader, schedule=EveryNSteps(320)),
            WeightTrajectory(schedule=EveryNSteps(320)),
            SubnetworkComparison(layer, reader, limit=1000, sensitive_rows=25),
            LearningCurves(),
            Onset(),
            LastCheckpoint(),
            Recorder(),
        ]
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            default_root_dir=folder,
            limit_val_batches=1.0 if measured else 0,
            check_val_every_n_epoch=2,
            num_sanity_val_steps=0,
            logger=TensorBoardLogger(Path(folder), name="", version="") if measured else False,
            enable_checkpointing=measured,
            enable_progress_bar=False,
            enable_model_summary=False,
            profiler=Unprofiled(),
            callbacks=[*(watching if measured else []), clock],
        )
        trainer.fit(MLP(members=members(5)), datamodule=TableData(members=members(5)))
        monitors = {c.name: c.seconds / clock.seconds for c in watching if isinstance(c, Monitor)}
        return clock.seconds, monitors


def main() -> None:
    """Run everything and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved repeats of every timing")
    parser.add_argument("--steps", type=int, default=640, help="steps of a timing")
    parser.add_argument("--epochs", type=int, default=300, help="epochs of the experiment, with and without measuring")
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")

    def timing(call: Callable[[int], float]) -> Callable[[], float]:
        return lambda: call(arguments.steps)

    timings: dict[tuple[str, int], Callable[[], float]] = {("ordinary loop", 1): timing(ordinary_loop)}
    for n in (1, 5, 16):
        timings["population loop", n] = timing(lambda steps, n=n: population_loop(n, steps))  # type: ignore[misc]
        timings["Trainer.fit", n] = timing(lambda steps, n=n: fit(n, steps))  # type: ignore[misc]
    for threads in (1, 2):
        torch.set_num_threads(threads)
        seconds: dict[tuple[str, int], list[float]] = {key: [] for key in timings}
        for call in timings.values():
            call()  # warm-up
        for _ in range(arguments.rounds):
            for key, call in timings.items():
                seconds[key].append(call())
        median = {key: statistics.median(values) for key, values in seconds.items()}
        print(f"\n{threads} thread{'s' * (threads > 1)}: member-steps per second (median of {arguments.rounds})")
        for (what, n), value in median.items():
            print(f"  {what:<16} E = {n:<3} {n * arguments.steps / value:8.0f}")
        for n in (1, 5, 16):
            ratio = median["population loop", n] / median["Trainer.fit", n]
            print(f"  Trainer.fit over bare population loop, E = {n:<3} {ratio:.2f}")

        with_it, without = [], []
        for _ in range(3):
            with_it.append(experiment(arguments.epochs, measured=True))
            without.append(experiment(arguments.epochs, measured=False)[0])
        share = 1 - statistics.median(without) / statistics.median(seconds for seconds, _ in with_it)
        print(f"  measuring in configs/parity.yaml: {share:.0%} of the time, of which")
        for name in with_it[0][1]:
            print(f"    {name:<18} {statistics.median(shares[name] for _, shares in with_it):.1%} of the time")


if __name__ == "__main__":
    main()
