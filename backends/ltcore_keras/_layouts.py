"""Keras axes to canonical axes and back, for weights and masks alike."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import keras
import numpy as np

from ltcore.arrays import Array, own
from ltcore.errors import InvalidValueError
from ltcore_keras._engine import as_numpy

Shape: TypeAlias = tuple[int, ...]


class Layout(NamedTuple):
    """How one array of a layer is laid out.

    Attributes:
        to_canonical: native array -> canonical view.
        to_native: canonical array and native shape -> native view.
    """

    to_canonical: Callable[[Array], Array]
    to_native: Callable[[Array, Shape], Array]


def _kernel_to_canonical(array: Array) -> Array:
    # (*k, in / groups, out) -> (out, in / groups, *k); a transposed conv has (*k, out, in)
    return np.moveaxis(array, (-1, -2), (0, 1))


def _kernel_to_native(array: Array, _shape: Shape) -> Array:
    # (out, in / groups, *k) -> (*k, in / groups, out)
    return np.moveaxis(array, (0, 1), (-1, -2))


def _depthwise_to_canonical(array: Array) -> Array:
    # (*k, channels, multiplier) -> (channels * multiplier, 1, *k)
    moved = np.moveaxis(array, (-2, -1), (0, 1))
    return moved.reshape(moved.shape[0] * moved.shape[1], 1, *moved.shape[2:])


def _depthwise_to_native(array: Array, shape: Shape) -> Array:
    # (channels * multiplier, 1, *k) -> (*k, channels, multiplier)
    return np.moveaxis(array.reshape(*shape[-2:], *shape[:-2]), (0, 1), (-2, -1))


def _channels_to_front(array: Array) -> Array:
    # (*space, channels) -> (channels, *space)
    return np.moveaxis(array, -1, 0)


def _channels_to_back(array: Array, _shape: Shape) -> Array:
    # (channels, *space) -> (*space, channels)
    return np.moveaxis(array, 0, -1)


PLAIN = Layout(lambda array: array, lambda array, _shape: array)
DENSE = Layout(lambda array: array.T, lambda array, _shape: array.T)  # (in, out) <-> (out, in)
KERNEL = Layout(_kernel_to_canonical, _kernel_to_native)
DEPTHWISE = Layout(_depthwise_to_canonical, _depthwise_to_native)
CHANNELS_LAST = Layout(_channels_to_front, _channels_to_back)


def canonical_shape(layout: Layout, shape: Shape) -> Shape:
    """Return the canonical shape of an array of native ``shape``."""
    return tuple(layout.to_canonical(np.broadcast_to(np.False_, shape)).shape)


def to_numpy(tensor: Any) -> Array:
    """Return a tensor's or variable's values; bfloat16, which numpy lacks, comes as float32."""
    array = as_numpy(tensor)
    if keras.backend.standardize_dtype(tensor.dtype) == "bfloat16":
        return array.astype(np.float32)
    return array


def to_canonical(tensor: Any, layout: Layout) -> Array:
    """Return an owned, C-contiguous copy in canonical axes."""
    return own(layout.to_canonical(to_numpy(tensor)))


def to_native(array: Array, layout: Layout, shape: Shape, name: str) -> Array:
    """Return ``array`` in the axes of a variable of native ``shape``.

    Raises:
        InvalidValueError: it has another canonical shape; names the parameter and both shapes.
    """
    expected = canonical_shape(layout, shape)
    if array.shape != expected:
        raise InvalidValueError(
            f"{name!r} has canonical shape {expected}; an array of shape {array.shape} was given"
        )
    return np.ascontiguousarray(layout.to_native(array, shape)).reshape(shape)


def moved_channels(array: Array, *, first: bool) -> Array:
    """Return data ``(N, ..., C)`` as ``(N, C, ...)``, or the other way round."""
    return np.ascontiguousarray(np.moveaxis(array, *((-1, 1) if first else (1, -1))))
