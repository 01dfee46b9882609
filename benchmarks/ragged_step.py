"""What training sets of different sizes cost in one population: members in groups, against padding all to the longest.

The sizes and networks of configs/ungrokking_quick.yaml (p = 31, width 32) and configs/ungrokking.yaml (p = 113, width
128), forward and backward. Times, in interleaved rounds, the whole population padded to its longest member, the groups
that ``GrokModule`` trains it in, and every size as a population of its own, which pads nothing. Prints medians and the
ratios that the README quotes.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from grok_lightning.batch import Batch
from grok_lightning.losses import get_loss
from grok_lightning.modules.ragged import Ragged
from grok_lightning.networks import TransformerNetwork

SETTINGS = {
    "p = 31, width 32": (31, 32, 1, [60, 90, 120, 150, 190, 300] * 5),
    "p = 113, width 128": (113, 128, 4, [390, 488, 610, 763, 955, 1194, 1494] * 3),
}


def network_of(p: int, width: int, heads: int, members: int) -> TransformerNetwork:
    """Return the networks of a population."""
    generators = [torch.Generator().manual_seed(e) for e in range(members)]
    return TransformerNetwork(p + 2, 4, p, generators, d_model=width, n_heads=heads)


def batch_of(p: int, sizes: list[int]) -> Batch:
    """Return random rows of addition, padded to the longest member."""
    a, b = torch.randint(p, (2, len(sizes), max(sizes)))
    tokens = torch.stack([a, torch.full_like(a, p), b, torch.full_like(b, p + 1)], dim=-1)
    count = torch.tensor(sizes).unsqueeze(1)
    weights = (torch.arange(max(sizes)) < count).double() / count
    return Batch(tokens, (a + b) % p, weights, counts=tuple(sizes))


def steps_of(p: int, width: int, heads: int, sizes: list[int]) -> dict[str, Callable[[], None]]:
    """Return one step of each way, forward and backward."""
    loss = get_loss("cross_entropy")

    def step_of(sizes: list[int], grouped: bool) -> Callable[[], None]:
        network, batch = network_of(p, width, heads, len(sizes)), batch_of(p, sizes)
        ragged = Ragged(network)
        assert batch.weights is not None
        weights: Tensor = batch.weights

        def step() -> None:
            network.zero_grad()
            if grouped:
                ragged.loss(loss, batch).backward()  # type: ignore[no-untyped-call]  # torch has no types here
            else:
                (loss(network(batch.inputs), batch.targets) * weights).sum().backward()

        return step

    apart = [step_of([size] * sizes.count(size), grouped=False) for size in sorted(set(sizes))]

    def every_size_apart() -> None:
        for step in apart:
            step()

    return {"padded": step_of(sizes, False), "in groups": step_of(sizes, True), "each size apart": every_size_apart}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    for name, setting in SETTINGS.items():
        steps = steps_of(*setting)
        seconds: dict[str, list[float]] = {way: [] for way in steps}
        for step in steps.values():
            step()
        for _ in range(given.rounds):
            for way, step in steps.items():
                began = time.perf_counter()
                for _ in range(given.steps):
                    step()
                seconds[way].append((time.perf_counter() - began) / given.steps)
        medians = {way: statistics.median(values) * 1000 for way, values in seconds.items()}
        print(f"{name}, {len(setting[3])} members, {given.threads} threads")
        for way, median in medians.items():
            print(f"  {way:16s} {median:7.1f} ms   {medians['padded'] / median:.2f} times as fast as padded")


if __name__ == "__main__":
    main()
