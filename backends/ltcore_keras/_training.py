"""What a training run needs besides holding: gradients, and weights drawn anew."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from ltcore.errors import InvalidValueError
from ltcore_keras._engine import ENGINE
from ltcore_keras._initial import drawn
from ltcore_keras._slots import Slot


def mean_gradients(
    model: Any,
    variables: Mapping[str, Any],
    batches: Iterable[tuple[Any, Any]],
    loss: Callable[[Any, Any], Any],
) -> dict[str, Any]:
    """Return the gradient of every variable in inference mode, averaged over ``batches``.

    Raises:
        InvalidValueError: there are no batches.
    """
    sums: list[Any] = []
    count = 0
    for inputs, targets in batches:
        value = functools.partial(_loss, model, inputs, targets, loss)
        found = ENGINE.gradients(list(variables.values()), value)
        sums = [a + b for a, b in zip(sums, found, strict=True)] if count else found
        count += 1
    if not count:
        raise InvalidValueError("batches is empty; expected pairs (inputs, targets)")
    return {name: total / count for name, total in zip(variables, sums, strict=True)}


def _loss(model: Any, inputs: Any, targets: Any, loss: Callable[[Any, Any], Any]) -> Any:
    return loss(model(inputs, training=False), targets)


def redrawn(slots: Mapping[str, Slot], seed: int, names: Iterable[str]) -> dict[str, Any]:
    """Return ``{name: native tensor}`` from every layer's own initializer; constants stay.

    An initializer draws the same numbers at each call, so each array gets its own seed. The
    global random state is neither read nor advanced.

    Raises:
        CapabilityError: it is not known how an array is initialized; names it.
    """
    result = {}
    wanted = set(names)
    for position, (name, slot) in enumerate(slots.items()):
        if name not in wanted:
            continue
        if slot.constant:
            result[name] = slot.variable
            continue
        own = int(np.random.SeedSequence((seed, position)).generate_state(1)[0] >> 1)
        result[name] = drawn(name, slot, own)
    return result
