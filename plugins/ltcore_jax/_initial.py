"""Fresh values from a layer's own initializers, as far as Flax remembers them."""

import inspect
import math
import warnings
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ltcore.arrays import Array
from ltcore.errors import CapabilityError
from ltcore_jax._layouts import to_canonical
from ltcore_jax._names import Inventory, Layer

_BUFFERS = {"mean": jnp.zeros, "var": jnp.ones}


class InitializerWarning(UserWarning):
    """Layers do not say how they were initialized; Flax's defaults stand in."""


def redrawn(found: Inventory, seed: int, names: Iterable[str] | None) -> dict[str, Array]:
    """Return fresh values of ``names``, all if None.

    Each parameter has a key of its own, so some are drawn the same as with all the others.

    Raises:
        CapabilityError: a parameter is no layer's of Flax; names it.
    """
    wanted = list(found.slots if names is None else names)
    homes = {
        name: (layer, path[-1])
        for layer in reversed(found.layers)
        for path, name in layer.names.items()
        if len(path) == 1
    }
    key = jax.random.key(int(np.random.SeedSequence([seed, 0x1A5]).generate_state(1)[0]))
    positions = {name: position for position, name in enumerate(found.slots)}
    guessed: dict[str, None] = {}
    result = {}
    for name in wanted:
        initializer = _initializer(name, homes, guessed)
        slot = found.slots[name]
        value = slot.variable.get_value()
        shape = _drawn_shape(homes[name][0], value.shape)
        drawn = initializer(jax.random.fold_in(key, positions[name]), shape, value.dtype)
        result[name] = to_canonical(drawn.reshape(value.shape), slot.layout)
    if guessed:
        warnings.warn(
            f"Flax does not keep initializers, so layers {list(guessed)} are drawn by the defaults "
            "of their classes; if they had others, say so: layer.kernel_init = ...",
            InitializerWarning,
            stacklevel=4,
        )
    return result


def _drawn_shape(layer: Layer, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape in which Flax draws an array: initializers take fans from the last axes."""
    if not isinstance(layer.module, nnx.LinearGeneral):
        return shape
    outputs = math.prod(layer.module.out_features)
    size = math.prod(shape)
    return (size,) if len(shape) == len(layer.module.out_features) else (size // outputs, outputs)


def _initializer(name: str, homes: dict[str, tuple[Layer, Any]], guessed: dict[str, None]) -> Any:
    """Return what draws a parameter: the layer's own initializer, else its class's default."""
    layer, attribute = homes.get(name, (None, ""))
    if layer is None or layer.kind == "raw":
        raise CapabilityError(
            f"parameter {name!r} is no known layer's, so nobody knows how it is initialized; give "
            "rewind_to= a policy of your own"
        )
    if layer.kind == "batchnorm" and attribute in _BUFFERS:
        make = _BUFFERS[attribute]
        return lambda _key, shape, dtype: make(shape, dtype)
    if layer.kind == "prelu":
        return lambda _key, shape, dtype: jnp.full(shape, 0.01, dtype)
    word = f"{attribute}_init"
    own = vars(layer.module).get(word)
    if callable(own):
        return own
    if attribute in ("kernel", "embedding"):  # others start at zero or one, as good as everywhere
        guessed[layer.site] = None
    return inspect.signature(type(layer.module).__init__).parameters[word].default
