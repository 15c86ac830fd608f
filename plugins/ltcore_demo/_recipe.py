"""How a network is trained, and what is noted on the way. No framework."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Advance: TypeAlias = Callable[[int], None]
"""Hears how many optimizer updates were made since the last call."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A LeNet-300-100 and its training, in small.

    Attributes:
        hidden: widths of the hidden layers.
        steps: optimizer updates of a whole training.
        batch: images an update.
        learning_rate: of Adam.
        rewind_step: where tickets go back to; 2.5 % of training.
        every: updates between two evaluations.
    """

    hidden: tuple[int, ...] = (300, 100)
    steps: int = 400
    batch: int = 60
    learning_rate: float = 3e-3
    rewind_step: int = 10
    every: int = 10


@dataclass(frozen=True, slots=True)
class Point:
    """One evaluation.

    Attributes:
        step: optimizer updates since initialization.
        loss: on the validation images.
        validation: accuracy there.
        test: accuracy on the test images.
    """

    step: int
    loss: float
    validation: float
    test: float


@dataclass(frozen=True, slots=True)
class Curve:
    """The evaluations of one training, in order."""

    points: tuple[Point, ...]

    @property
    def early_stop(self) -> Point:
        """The first minimum of validation loss, found after the fact; nothing is stopped.

        Frankle and Carbin 2019, section 2: the step stands for how fast a network learns, and
        test accuracy is reported there.
        """
        return min(self.points, key=lambda point: point.loss)


def cross_entropy(logits: NDArray[Any], labels: NDArray[Any]) -> float:
    """Return the mean cross entropy of ``logits``, in float64."""
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)  # exp must not overflow
    right = shifted[np.arange(len(labels)), labels]
    return float(np.mean(np.log(np.exp(shifted).sum(axis=1)) - right))


def accuracy(logits: NDArray[Any], labels: NDArray[Any]) -> float:
    """Return the share of rows whose largest logit is the label."""
    return float(np.mean(logits.argmax(axis=1) == labels))
