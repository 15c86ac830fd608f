"""The digits of scikit-learn in three fixed parts, and the order in which training sees them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltcore_demo._recipe import Point, accuracy, cross_entropy

TRAIN, VALIDATION, TEST = 900, 297, 600


@dataclass(frozen=True, slots=True)
class Part:
    """Images as rows of 64 floats, and the digits that they show."""

    inputs: NDArray[np.float32]
    labels: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Digits:
    """1797 handwritten digits of 8 x 8 pixels."""

    train: Part
    validation: Part
    test: Part

    @property
    def judged(self) -> NDArray[np.float32]:
        """Validation and test images in one, which is one pass instead of two."""
        return np.concatenate([self.validation.inputs, self.test.inputs])

    def point(self, step: int, logits: NDArray[Any]) -> Point:
        """Return the evaluation for outputs on the `judged` images, of either framework."""
        validation, test = np.split(logits, [len(self.validation.labels)])
        labels = self.validation.labels
        loss = cross_entropy(validation, labels)
        return Point(step, loss, accuracy(validation, labels), accuracy(test, self.test.labels))


def load_digits() -> Digits:
    """Return the digits, split alike whatever the seed, standardized by the training images."""
    from sklearn import datasets

    images, labels = datasets.load_digits(return_X_y=True)
    order = _generator(0, 0).permutation(len(images))
    known = images[order[:TRAIN]]
    scaled = ((images - known.mean()) / known.std()).astype(np.float32)
    parts = np.split(order, [TRAIN, TRAIN + VALIDATION])
    return Digits(*(Part(scaled[part], labels[part].astype(np.int64)) for part in parts))


def batches(
    seed: int, start_step: int, stop_step: int, batch: int, count: int = TRAIN
) -> Iterator[NDArray[np.int64]]:
    """Yield the images of each update: an own permutation every epoch, by seed and epoch.

    A training that goes on at ``start_step`` sees what an unbroken one would see from there, in
    any framework.
    """
    an_epoch = count // batch
    permutation: NDArray[Any] = np.empty(0, np.int64)
    for step in range(start_step, stop_step):
        epoch, place = divmod(step, an_epoch)
        if place == 0 or not permutation.size:
            permutation = _generator(seed, epoch + 1).permutation(count)
        yield permutation[place * batch : (place + 1) * batch]


def _generator(seed: int, stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, stream]))
