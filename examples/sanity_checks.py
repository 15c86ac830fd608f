"""Sanity checks of pruning at initialization, on MNIST (Frankle et al. 2021, 2009.08576).

Prunes a small network by several criteria, trains it, and does the same with the mask shuffled
within each layer, with fresh initial weights, and with inverted scores. A criterion that finds
particular weights suffers from all three; one that finds layer densities only from the last alone.

    python examples/sanity_checks.py --data FOLDER   # with the four *-ubyte.gz files of MNIST
"""

import argparse
import gzip
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import ltcore as lt

AT_START = ("random", "magnitude", "snip", "grasp", "synflow")
VARIANTS = ("as found", "shuffled", "fresh weights", "inverted")
BATCH = 64


def read_idx(path: Path) -> np.ndarray:
    """Return the array in a gzipped IDX file of bytes."""
    raw = gzip.decompress(path.read_bytes())
    axes = raw[3]
    shape = np.frombuffer(raw, ">i4", axes, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * axes).reshape(shape)


def load(folder: Path) -> tuple[torch.Tensor, ...]:
    """Return train inputs and labels, test inputs and labels; inputs are standardised."""

    def part(prefix: str) -> tuple[torch.Tensor, torch.Tensor]:
        images = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz").astype(np.float32) / 255
        labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz").astype(np.int64)
        return torch.from_numpy((images[:, None] - 0.1307) / 0.3081), torch.from_numpy(labels)

    return (*part("train"), *part("t10k"))


def network(seed: int) -> nn.Module:
    """Return a small convolutional network."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(16 * 49, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def batches(x: torch.Tensor, y: torch.Tensor, seed: int, count: int) -> Iterator[Any]:
    """Yield ``count`` batches in an order that the seed decides."""
    order = np.random.Generator(np.random.Philox(seed))
    while count:
        shuffled = torch.from_numpy(order.permutation(len(x)))
        for start in range(0, len(x) - BATCH + 1, BATCH):
            if not count:
                return
            rows = shuffled[start : start + BATCH]
            yield x[rows], y[rows]
            count -= 1


def train(model: nn.Module, data: tuple[torch.Tensor, ...], seed: int, steps: int) -> None:
    """Train with Adam for ``steps`` updates."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for inputs, targets in batches(data[0], data[1], seed, steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()


def accuracy(model: nn.Module, data: tuple[torch.Tensor, ...]) -> float:
    """Return the share of test images that are told right, in percent."""
    with torch.no_grad():
        right = model(data[2]).argmax(1) == data[3]
    return 100 * right.float().mean().item()


def wrapped(criterion: str, variant: str) -> Any:
    """Return what to give as ``criterion=``."""
    wrapper = {"shuffled": "shuffled", "inverted": "inverted"}.get(variant)
    return {"name": wrapper, "criterion": criterion} if wrapper else criterion


def masks_at_start(
    criterion: str, variant: str, data: tuple[torch.Tensor, ...], seed: int, sparsity: float
) -> lt.Masks:
    """Return masks found on the untrained network, from 20 batches."""
    shown = list(batches(data[0], data[1], seed + 1000, 20))
    model = network(seed)
    with lt.prune(
        model, sparsity, criterion=wrapped(criterion, variant), batches=shown,
        loss=nn.functional.cross_entropy, example=data[0][:1], seed=seed,
    ) as pruned:  # fmt: skip
        return pruned.masks


def masks_after_training(
    variant: str, data: tuple[torch.Tensor, ...], seed: int, sparsity: float, steps: int
) -> lt.Masks:
    """Return masks of a trained network: magnitude, one shot."""
    search = lt.find_ticket(
        network(seed), partial(train, data=data, seed=seed, steps=steps), sparsity=sparsity,
        criterion=wrapped("magnitude", variant), example=data[0][:1], seed=seed,
    )  # fmt: skip
    return search.ticket.masks


def tried(
    find: Callable[[str, int], lt.Masks],
    variant: str,
    seed: int,
    data: tuple[torch.Tensor, ...],
    steps: int,
) -> float:
    """Return the test accuracy of the initial network trained under the masks that were found."""
    model = network(seed + 500 if variant == "fresh weights" else seed)
    with lt.hold(model, find(variant, seed)):
        train(model, data, seed, steps)
    return accuracy(model, data)


def main() -> None:
    """Print one line for each criterion."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of MNIST's four files")
    parser.add_argument("--sparsity", type=float, default=0.95)
    parser.add_argument("--steps", type=int, default=1000, help="updates of each training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--criteria", nargs="*", default=[*AT_START, "magnitude after training"])
    options = parser.parse_args()
    data, steps, sparsity = load(options.data), options.steps, options.sparsity

    print(f"test accuracy in %, {sparsity:.0%} pruned, mean ± standard deviation of seeds")
    print("| criterion | " + " | ".join(VARIANTS) + " |")
    print("|---" * (len(VARIANTS) + 1) + "|")
    for criterion in options.criteria:

        def find(variant: str, seed: int, criterion: str = criterion) -> lt.Masks:
            if criterion == "magnitude after training":
                return masks_after_training(variant, data, seed, sparsity, steps)
            return masks_at_start(criterion, variant, data, seed, sparsity)

        cells = []
        for variant in VARIANTS:
            runs = [tried(find, variant, seed, data, steps) for seed in range(options.seeds)]
            spread = statistics.stdev(runs) if len(runs) > 1 else 0.0
            cells.append(f"{statistics.mean(runs):.2f} ± {spread:.2f}")
        print(f"| {criterion} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
