"""Speed of the modular-addition training step, and what a Fourier measurement costs.

The setting of configs/modular_addition.yaml: p = 113, 3,830 rows, full batch, one layer. Times, in interleaved rounds,
``Trainer.fit``, a bare loop, the same loop with everything computed at every position (the textbook's way), and the
matrix products alone that a step cannot do without; then one full Fourier measurement. Prints medians and the ratios
that the README quotes. ``--device cuda`` does the same on a GPU, in float32 and with TF32.
"""

import argparse
import logging
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from grok_callbacks import EveryNSteps, FourierLogitSplitter
from grok_lightning import ModularArithmetic, TableData, Transformer
from grok_lightning.cli import Unprofiled
from grok_lightning.networks import TransformerNetwork

P = 113


def members(n: int) -> dict[str, list[int | float]]:
    """Return a population of n seeds."""
    return {"seed": list(range(n))}


def data_of(n: int) -> TableData:
    """Return the rows of configs/modular_addition.yaml for n members."""
    return TableData(ModularArithmetic(p=P), train_fraction=0.3, n_held_out=None, batch_size=None, members=members(n))


def module_of(n: int) -> Transformer:
    """Return n networks of the default size, which is the paper's."""
    return Transformer(n_inputs=4, n_tokens=P + 2, n_outputs=P, members=members(n))


class Clock(Callback):
    """Times a fit from its first step to its last."""

    def __init__(self, finish: Callable[[], None]) -> None:
        self.finish = finish

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start."""
        self.finish()
        self.began = time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop."""
        self.finish()
        self.seconds = time.perf_counter() - self.began


class Bench:
    """The timings, in seconds a step, on one device."""

    def __init__(self, device: str, steps: int) -> None:
        self.device = torch.device(device)
        self.steps = steps

    def finish(self) -> None:
        """Wait until the device has done what it was told to."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def timed(self, step: Callable[[], object], steps: int) -> float:
        """Return the seconds that a step takes, after one to warm up."""
        step()
        self.finish()
        began = time.perf_counter()
        for _ in range(steps):
            step()
        self.finish()
        return (time.perf_counter() - began) / steps

    def bare(self, n: int, textbook: bool = False) -> float:
        """Time a loop without Lightning; in the textbook's way all positions are computed."""
        module = module_of(n).to(self.device)
        module.configure_model()
        network = module.network
        assert isinstance(network, TransformerNetwork)
        network.to(self.device)
        inputs, targets = (rows.to(self.device) for rows in data_of(n).rows("train"))
        optimizer = module.optimizer(network.parameters())

        def step() -> None:
            logits = network(inputs, cache=True)[0] if textbook else network(inputs)
            loss = module.loss(logits, targets).mean(dim=1).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        return self.timed(step, max(2, self.steps // 8) if textbook else self.steps)

    def fit(self, n: int) -> float:
        """Time ``Trainer.fit`` as the command line sets it up, with nothing measured, logged or saved."""
        clock = Clock(self.finish)
        self.trainer(clock, steps=self.steps).fit(module_of(n), datamodule=data_of(n))
        return clock.seconds / self.steps

    def products(self, n: int) -> float:
        """Time the matrix products of a step, forward and backward, and nothing else.

        Those of the residues' table (two positions of p tokens, two of one) with keys and values, and of all rows with
        the attention's output, the neurons' two maps and the logits. Every map is three products: the map itself, and
        the gradients of its input and of its weight.
        """
        rows, table = 3830, 2 * P + 2
        shapes = [(table, 128, 128)] * 2 + [(rows, 128, 128), (rows, 128, 512), (rows, 512, 128), (rows, 128, P)]
        draw = [
            tuple(torch.randn(n, *shape, device=self.device) for shape in ((rows, into), (out, into), (rows, out)))
            for rows, into, out in shapes
        ]

        def step() -> None:
            for inputs, weight, gradient in draw:
                torch.bmm(inputs, weight.mT)
                torch.bmm(gradient, weight)
                torch.bmm(gradient.mT, inputs)

        return self.timed(step, self.steps)

    def measurement(self) -> float:
        """Time a full Fourier measurement of one network, its forward pass over all rows included."""
        monitor = FourierLogitSplitter(
            P,
            embedding="network.embed",
            layer="network.layers.0.mlp_in",
            next_layer="network.layers.0.mlp_out",
            schedule=EveryNSteps(1),
        )
        trainer = self.trainer(monitor, steps=5)
        trainer.fit(module_of(1), datamodule=data_of(1))
        return monitor.seconds / len(monitor.steps)

    def trainer(self, callback: Callback, steps: int) -> Trainer:
        """Return a Trainer that does nothing else."""
        return Trainer(
            accelerator="gpu" if self.device.type == "cuda" else "cpu",
            devices=1,
            max_steps=steps,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            profiler=Unprofiled(),
            callbacks=[callback],
        )


def report(bench: Bench, rounds: int) -> None:
    """Time everything, and print a table."""
    timings: dict[str, Callable[[], float]] = {
        "Trainer.fit": lambda: bench.fit(1),
        "bare loop": lambda: bench.bare(1),
        "textbook forward, bare loop": lambda: bench.bare(1, textbook=True),
        "its matrix products": lambda: bench.products(1),
        "bare loop, E = 4": lambda: bench.bare(4),
        "bare loop, E = 16": lambda: bench.bare(16),
        "Fourier measurement": bench.measurement,
    }
    seconds: dict[str, list[float]] = {name: [] for name in timings}
    for _ in range(rounds):
        for name, timing in timings.items():
            seconds[name].append(timing())
    median = {name: statistics.median(values) for name, values in seconds.items()}
    for name, value in median.items():
        print(f"  {name:<28} {value * 1e3:8.2f} ms")
    for n, name in [(1, "bare loop"), (4, "bare loop, E = 4"), (16, "bare loop, E = 16")]:
        print(f"  member-steps per second, E = {n:<3} {n / median[name]:6.1f}")
    print(f"  textbook over ours            {median['textbook forward, bare loop'] / median['bare loop']:6.2f}")
    print(f"  ours over its matrix products {median['bare loop'] / median['its matrix products']:6.2f}")
    print(f"  bare loop over Trainer.fit    {median['bare loop'] / median['Trainer.fit']:6.3f}")


def main() -> None:
    """Run everything and print a table for each setting."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved repeats of every timing")
    parser.add_argument("--steps", type=int, default=40, help="steps of a timing")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="CPU threads, one table each")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    bench = Bench(arguments.device, arguments.steps)
    if arguments.device == "cuda":
        for tf32 in (False, True):
            torch.set_float32_matmul_precision("high" if tf32 else "highest")
            print(f"\n{torch.cuda.get_device_name()}, {'TF32' if tf32 else 'float32'} (median of {arguments.rounds})")
            report(bench, arguments.rounds)
        return
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        print(f"\n{threads} thread{'s' * (threads > 1)} (median of {arguments.rounds})")
        report(bench, arguments.rounds)


if __name__ == "__main__":
    main()
