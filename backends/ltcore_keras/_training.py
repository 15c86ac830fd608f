"""What a training run needs besides holding: gradients, and weights drawn anew."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras
import numpy as np

from ltcore.errors import CapabilityError, InvalidValueError
from ltcore_keras._engine import ENGINE
from ltcore_keras._names import Slot, kind_of


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


def redrawn(slots: Mapping[str, Slot], seed: int) -> dict[str, Any]:
    """Return ``{name: native tensor}`` from every layer's own initializer.

    An initializer draws the same numbers at each call, so each array gets its own seed. The
    global random state is neither read nor advanced.

    Raises:
        CapabilityError: it is not known how an array is initialized; names it.
    """
    result = {}
    for position, (name, slot) in enumerate(slots.items()):
        initializer = _initializer(name, slot)
        config = initializer.get_config()
        if "seed" in config:
            own = int(np.random.SeedSequence((seed, position)).generate_state(1)[0] >> 1)
            initializer = type(initializer).from_config({**config, "seed": own})
        result[name] = initializer(tuple(slot.variable.shape), dtype=slot.variable.dtype)
    return result


def _initializer(name: str, slot: Slot) -> Any:
    """Return the initializer of an array, from the layer's attribute of that name."""
    own = slot.variable.name
    # recurrent_kernel has a recurrent_initializer; DepthwiseConv2D calls that of its kernel so.
    words = (own, own.removesuffix("_kernel"), "depthwise") if _is_kept_word(slot) else ()
    found = (getattr(slot.layer, f"{one}_initializer", None) for one in words)
    initializer = next((one for one in found if one is not None), None)
    if isinstance(initializer, keras.initializers.Initializer) and (
        _of_keras(initializer) or "seed" in initializer.get_config()
    ):
        return initializer
    raise CapabilityError(
        f"{name!r} (layer {slot.layer.name!r} of class {type(slot.layer).__name__}) does not say "
        "how it is initialized; give its values yourself with a rewind policy of your own"
    )


def _is_kept_word(slot: Slot) -> bool:
    """Whether the layer's attribute is all there is to know: a known kind, or one of Keras.

    An LSTM's bias is not what ``bias_initializer`` says: its forget gate starts at one.
    """
    if kind_of(slot.layer) != "raw":
        return True
    if isinstance(slot.layer, keras.layers.LSTMCell) and slot.variable.name == "bias":
        return not slot.layer.unit_forget_bias
    return _of_keras(slot.layer)


def _of_keras(thing: Any) -> bool:
    return type(thing).__module__.partition(".")[0] == "keras"
