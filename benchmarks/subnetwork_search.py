"""Speed of the search for the smallest subnetwork, at width 1000 and 1000 rows, one network.

Times, in interleaved rounds, in sizes per second: the naive search, which masks the neurons of an ordinary network and
evaluates it on all rows, one size after another, in the way of the code of Merrill, Tsilivis, Shukla 2023 (rows and
labels from a ``DataLoader`` in batches of 32, a mask for every row, the number of right ones taken out of every batch);
the leanest naive search (all rows at once, one mask); and ours, which tries all sizes in one pass, its ranking, forward
pass and checks included. Prints medians and ratios; that both find the same size is checked.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from grok_callbacks.functional import predictions
from grok_callbacks.neurons import Neurons
from grok_lightning import MLP, TableData

WIDTH = 1000
ROWS = 1000


def trained(steps: int) -> tuple[MLP, Tensor, Tensor]:
    """Return a network in the middle of its memorising, in which neither rule is met early, and its training rows."""
    data, module = TableData(train_size=ROWS), MLP(hidden=[WIDTH])
    module.configure_model()
    inputs, targets = data.rows("train")
    optimizer = module.optimizer(module.parameters())
    for step in range(steps):
        batch = slice(step * 32 % ROWS, step * 32 % ROWS + 32)
        optimizer.zero_grad()
        module.training_step((inputs[0, batch], targets[0, batch]), step).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return module, inputs, targets


class Masked(nn.Module):
    """The same network as ordinary layers, with a mask over its neurons."""

    def __init__(self, module: MLP) -> None:
        super().__init__()
        state = module.member(0).state_dict()
        self.hidden, self.output = nn.Linear(40, WIDTH), nn.Linear(WIDTH, 1, bias=False)
        for name in ("hidden.weight", "hidden.bias", "output.weight"):
            self.get_parameter(name).data.copy_(state[name.replace("hidden", "hidden.0")][0])
        self.order = torch.linalg.vector_norm(self.hidden.weight, dim=1).argsort(descending=True, stable=True)

    def forward(self, inputs: Tensor, size: int, masks: int = 1) -> Tensor:
        """Return the predictions of the ``size`` neurons with the largest norms, by so many equal masks."""
        mask = torch.zeros(masks, WIDTH)
        mask[:, self.order[:size]] = 1
        return predictions(self.output(torch.relu(self.hidden(inputs)) * mask))


@torch.no_grad()
def naive(network: Masked, loader: DataLoader[tuple[Tensor, ...]], sizes: int) -> float:
    """Time so many sizes of the naive search as it is usually written, return sizes per second."""
    began = time.perf_counter()
    for size in range(WIDTH - sizes, WIDTH):
        right = 0
        for inputs, targets in loader:
            right += int((network(inputs, size, masks=len(inputs)) == targets).sum())
    return sizes / (time.perf_counter() - began)


@torch.no_grad()
def lean(network: Masked, inputs: Tensor, sizes: int) -> float:
    """Time so many sizes of the leanest naive search, return sizes per second."""
    began = time.perf_counter()
    full = network(inputs, WIDTH)
    for size in range(WIDTH - sizes, WIDTH):
        torch.equal(network(inputs, size), full)
    return sizes / (time.perf_counter() - began)


@torch.no_grad()
def ours(module: MLP, inputs: Tensor, targets: Tensor, searches: int) -> float:
    """Time so many of our searches of all sizes from 0 to all neurons, return sizes per second."""
    began = time.perf_counter()
    for _ in range(searches):
        Neurons(module, "network.hidden.0", "network.output").sizes(inputs, targets)
    return searches * (WIDTH + 1) / (time.perf_counter() - began)


@torch.no_grad()
def check(module: MLP, network: Masked, inputs: Tensor, targets: Tensor) -> int:
    """Return the size that ours finds, after seeing that the naive search finds the same."""
    found = int(Neurons(module, "network.hidden.0", "network.output").sizes(inputs, targets)[0].by_predictions)
    full = network(inputs[0], WIDTH)
    first = next(size for size in range(WIDTH + 1) if torch.equal(network(inputs[0], size), full))
    if first != found:
        raise RuntimeError(f"the naive search finds {first}, ours {found}")
    return found


def main() -> None:
    """Run everything and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="interleaved repeats of every timing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    module, inputs, targets = trained(steps=640)
    network = Masked(module)
    print(f"effective sparsity {check(module, network, inputs, targets)} of {WIDTH} neurons, by either search")
    loader = DataLoader(TensorDataset(inputs[0], targets[0]), batch_size=32)
    timings: dict[str, Callable[[], float]] = {
        "naive, batches of 32 rows": lambda: naive(network, loader, 20),
        "naive, all rows at once": lambda: lean(network, inputs[0], 60),
        "all sizes in one pass": lambda: ours(module, inputs, targets, 20),
    }
    speeds: dict[str, list[float]] = {name: [] for name in timings}
    for call in timings.values():
        call()  # warm-up
    for _ in range(arguments.rounds):
        for name, call in timings.items():
            speeds[name].append(call())
    median = {name: statistics.median(values) for name, values in speeds.items()}
    print(f"sizes per second, one thread (median of {arguments.rounds})")
    for name, value in median.items():
        print(f"  {name:<30} {value:10.0f}   one pass is {median['all sizes in one pass'] / value:7.0f} times as fast")


if __name__ == "__main__":
    main()
