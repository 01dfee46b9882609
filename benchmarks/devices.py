"""Speed of a population on one, two or more devices, and on a GPU for growing populations.

Times ``Trainer.fit`` without measuring, in interleaved rounds: parity and modular addition, on one process and under
the strategies ``population`` and ``ddp``, on as many devices as asked for. Prints member-steps per second, medians, and
ratios to one process; on GPUs also the share of what large matrix products reach there.
"""

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import Strategy
from torch.utils.flop_counter import FlopCounterMode

from grok_lightning import MLP, ModularArithmetic, TableData, Transformer
from grok_lightning.cli import Unprofiled
from grok_lightning.data import GrokData
from grok_lightning.modules import GrokModule
from grok_lightning.strategies import PopulationStrategy

WARM_UP = 20
"""Steps before the clock runs."""


class Clock(Callback):
    """Writes the seconds that the steps after the first few took to a file: forked processes keep nothing else."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._began = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock, once."""
        if trainer.global_step == WARM_UP:
            self._began = self._now()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop it."""
        seconds = self._now() - self._began
        if trainer.is_global_zero:
            self.path.write_text(str(seconds))

    @staticmethod
    def _now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()


def make(task: str, members: int) -> tuple[GrokModule, GrokData]:
    """Return the main experiment of a task for so many seeds."""
    table: dict[str, list[int | float]] = {"seed": list(range(members))}
    if task == "parity":
        return MLP(members=table), TableData(members=table)
    data = TableData(ModularArithmetic(), train_fraction=0.3, batch_size=None, members=table)
    return Transformer(data.n_inputs, data.n_tokens, data.n_outputs, members=table), data


def fit(task: str, members: int, strategy: str, devices: int, steps: int, accelerator: str) -> float:
    """Train and return member-steps per second."""
    module, data = make(task, members)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "seconds"
        method: Literal["fork", "spawn"] = "fork" if accelerator == "cpu" else "spawn"
        strategies: dict[str, Strategy | str] = {
            "population": PopulationStrategy(start_method=method),
            "ddp": f"ddp_{method}",
        }
        trainer = Trainer(
            accelerator=accelerator,
            devices=devices,
            strategy=strategies.get(strategy, strategy),
            max_steps=WARM_UP + steps,
            max_epochs=-1,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            profiler=Unprofiled(),
            callbacks=[Clock(path)],
        )
        trainer.fit(module, datamodule=data)
        return members * steps / float(path.read_text())


def matrix_peak() -> float:
    """Return the operations per second that large float32 matrix products reach on the GPU, with torch's settings."""
    a = torch.randn(8192, 8192, device="cuda")
    for _ in range(3):
        a @ a
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(10):
        a @ a
    torch.cuda.synchronize()
    return 10 * 2 * 8192**3 / (time.perf_counter() - began)


def operations_of_member_step(task: str) -> int:
    """Return the floating-point operations of one step of one member, counted."""
    module, data = make(task, 1)
    inputs, targets = data.rows("train")
    if task == "parity":
        inputs, targets = inputs[:, :32], targets[:, :32]
    module.configure_model()
    with FlopCounterMode(display=False) as counter:
        module.loss(module(inputs), targets).mean(dim=1).sum().backward()
    return int(counter.get_total_flops())


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=["parity", "modular"], nargs="+", default=["parity", "modular"])
    parser.add_argument("--members", type=int, nargs="+", default=[4])
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=None, help="by default 1,000 for parity, 30 for modular")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--accelerator", choices=["cpu", "cuda"], default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    peak = matrix_peak() if arguments.accelerator == "cuda" else None
    for task in arguments.task:
        steps = arguments.steps or {"parity": 1000, "modular": 30}[task]
        for members in arguments.members:
            ways = [("auto" if n == 1 else name, n) for n in arguments.devices for name in ("population", "ddp")]
            ways = list(dict.fromkeys(way for way in ways if way[0] != "population" or way[1] <= members))
            speeds: dict[tuple[str, int], list[float]] = {way: [] for way in ways}
            for _ in range(arguments.rounds):
                for way in ways:
                    speeds[way].append(fit(task, members, *way, steps, arguments.accelerator))
            first = statistics.median(speeds[ways[0]])
            for (name, devices), found in speeds.items():
                median = statistics.median(found)
                share = f", {median * operations_of_member_step(task) / peak / devices:.1%} of the peak" if peak else ""
                print(
                    f"{task}, {members} members, {name} on {devices}: {median:,.0f} member-steps/s, "
                    f"{median / first:.2f} of the first{share}"
                )


if __name__ == "__main__":
    main()
