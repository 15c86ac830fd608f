"""One architecture in both frameworks, and what goes into it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Input:
    """One input of a model: its canonical shape (channels first) without the batch axis.

    ``tokens`` is the size of the vocabulary; 0 for float features.
    """

    shape: tuple[int, ...]
    tokens: int = 0

    def draw(self, batch: int, rng: np.random.Generator) -> np.ndarray:
        """Return a random batch: standard normal floats, or token numbers."""
        shape = (batch, *self.shape)
        if self.tokens:
            return rng.integers(0, self.tokens, shape)
        return rng.standard_normal(shape, dtype=np.float32)


@dataclass(frozen=True)
class Case:
    """The same architecture written for PyTorch and for Keras.

    Attributes:
        torch: returns a new `torch.nn.Module`.
        keras: returns a new, built `keras.Model`.
        inputs: what the model takes, in order.
        kernels: weights of dense and conv kernels as the literature counts them, if it does.
        parameters: trained parameters as the literature counts them, if it does.
        only_torch: trained parameters that only PyTorch has.
        notes: what is particular about the pair.
    """

    torch: Callable[[], Any]
    keras: Callable[[], Any]
    inputs: tuple[Input, ...]
    kernels: int | None = None
    parameters: int | None = None
    only_torch: int = 0
    notes: str = ""

    def batch(self, size: int, seed: int = 0) -> list[np.ndarray]:
        """Return random inputs in canonical axes."""
        rng = np.random.default_rng(seed)
        return [one.draw(size, rng) for one in self.inputs]


def for_torch(batch: list[np.ndarray]) -> Any:
    """Return a canonical batch as the PyTorch builds take it, in numpy."""
    return batch[0] if len(batch) == 1 else batch


def for_keras(batch: list[np.ndarray]) -> Any:
    """Return a canonical batch as the Keras builds take it, in numpy."""
    return for_torch([channels_last(array) for array in batch])


def channels_last(array: np.ndarray) -> np.ndarray:
    """Return images with their channels last; other arrays as they are."""
    return np.ascontiguousarray(np.moveaxis(array, 1, -1)) if array.ndim >= 4 else array


def channels_first(array: np.ndarray) -> np.ndarray:
    """Undo `channels_last`."""
    return np.ascontiguousarray(np.moveaxis(array, -1, 1)) if array.ndim >= 4 else array
