"""The Keras side: the same network written by somebody else, trained with ``fit``."""

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Before TensorFlow is imported, which reads them once. A user's own choice stands.
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # else it prints a notice, and sums vary
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")  # sharing out work this small takes longer

import keras

from ltcore_demo._data import Digits, batches
from ltcore_demo._recipe import Advance, Curve, Point, Recipe


def build(recipe: Recipe) -> Any:
    """Return an untrained network with names of its own."""
    names = ("first", "second", "third", "fourth")
    return keras.Sequential(
        [
            keras.Input((64,), name="pixels"),
            *(
                keras.layers.Dense(width, activation="relu", name=f"{name}_hidden")
                for name, width in zip(names, recipe.hidden, strict=False)
            ),
            keras.layers.Dense(10, name="digit"),
        ]
    )


def outputs(model: Any, inputs: NDArray[np.float32]) -> NDArray[Any]:
    """Return the logits for ``inputs``."""
    logits: NDArray[Any] = keras.ops.convert_to_numpy(model(inputs, training=False))
    return logits


class Evaluation(keras.callbacks.Callback):  # type: ignore[misc]  # keras has no types
    """Measures the model every few updates while ``fit`` runs."""

    def __init__(self, digits: Digits, recipe: Recipe, start_step: int, advance: Advance) -> None:
        super().__init__()
        self.points: list[Point] = []
        self._digits = digits
        self._judged = digits.judged
        self._every = recipe.every
        self._start_step = start_step
        self._advance = advance

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Evaluate after every so many updates, counted from initialization."""
        step = self._start_step + batch + 1
        if step % self._every:
            return
        self.points.append(self._digits.point(step, outputs(self.model, self._judged)))
        self._advance(self._every)


def train(
    model: Any, digits: Digits, recipe: Recipe, seed: int, start_step: int, advance: Advance
) -> Curve:
    """Train from ``start_step`` to the end with ``fit``, on the images in PyTorch's order."""
    # Epsilon as in PyTorch; Keras has another default.
    optimizer = keras.optimizers.Adam(recipe.learning_rate, epsilon=1e-8)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    rows = np.concatenate(list(batches(seed, start_step, recipe.steps, recipe.batch)))
    evaluation = Evaluation(digits, recipe, start_step, advance)
    model.fit(
        digits.train.inputs[rows],
        digits.train.labels[rows],
        batch_size=recipe.batch,
        shuffle=False,
        verbose=0,
        callbacks=[evaluation],
    )
    return Curve(tuple(evaluation.points))
