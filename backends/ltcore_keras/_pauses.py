"""Ears on the moments when Python runs again after updates.

These are: after an optimizer's ``apply`` in a loop of the user's own that is not compiled, after
each batch of ``fit`` (before the callbacks of Keras, which may look too), and after
``train_on_batch``. An optimizer inside another, or inside ``fit``, is not done yet. On JAX the
model can be given its weights at these moments, and ``fit`` goes on with what it has then.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras

from ltcore_keras._engine import ENGINE
from ltcore_keras._engine_any import Ears
from ltcore_keras._patch import Patch

_depth = threading.local()


@contextmanager
def at_work(tell: Callable[[], None]) -> Iterator[None]:
    """Have ``tell()`` called at the end of what is inside, unless more is around it."""
    before = getattr(_depth, "now", 0)
    _depth.now = before + 1
    try:
        yield
    finally:
        _depth.now = before
    if not before and ENGINE.at_rest():
        tell()


def ears_on_pauses(tell: Callable[[], None]) -> list[Ears]:
    """Return ears on ``fit``, and on optimizers that are made of others."""

    def inside(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with at_work(tell):
            return original(*args, **kwargs)

    def after(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        tell()
        return original(*args, **kwargs)

    return [
        Patch(keras.Model, "fit", inside),
        Patch(keras.Model, "train_on_batch", inside),
        Patch(keras.callbacks.CallbackList, "on_train_batch_end", after),
        Patch(keras.optimizers.LossScaleOptimizer, "apply", inside),
    ]
