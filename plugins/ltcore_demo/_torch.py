"""The PyTorch side: a model and a training loop as any user has them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ltcore_demo._data import Digits, batches
from ltcore_demo._recipe import Advance, Curve, Recipe


class Dense(nn.Linear):
    """A linear layer with the papers' initializer; the reinit control draws from it too."""

    def reset_parameters(self) -> None:
        """Draw Glorot-normal weights; biases are zero."""
        nn.init.xavier_normal_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


def build(recipe: Recipe, seed: int) -> nn.Sequential:
    """Return an untrained network; torch's own generator stays where it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for width, following in zip((64, *recipe.hidden), (*recipe.hidden, 10), strict=True):
            layers += [Dense(width, following), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def outputs(model: nn.Module, inputs: NDArray[np.float32]) -> NDArray[Any]:
    """Return the logits for ``inputs``."""
    with torch.no_grad():
        logits: NDArray[Any] = model(torch.from_numpy(inputs)).numpy()
    return logits


def train(
    model: nn.Module, digits: Digits, recipe: Recipe, seed: int, start_step: int, advance: Advance
) -> Curve:
    """Train from ``start_step`` to the end and return what was measured on the way."""
    inputs, labels = torch.from_numpy(digits.train.inputs), torch.from_numpy(digits.train.labels)
    # Fused: on networks this small, Adam's many little operations cost more than the network.
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate, fused=True)
    loss = nn.CrossEntropyLoss()
    judged = digits.judged
    points = []
    order = batches(seed, start_step, recipe.steps, recipe.batch)
    for step, rows in enumerate(order, start_step + 1):
        optimizer.zero_grad()
        loss(model(inputs[rows]), labels[rows]).backward()
        optimizer.step()
        if step % recipe.every == 0:
            points.append(digits.point(step, outputs(model, judged)))
            advance(recipe.every)
    return Curve(tuple(points))


@contextmanager
def one_thread() -> Iterator[None]:
    """Work on one core: sharing out work this small takes longer than doing it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
