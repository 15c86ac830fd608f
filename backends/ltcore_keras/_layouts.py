"""Keras axes to canonical axes and back, for weights and masks alike."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import keras
import numpy as np

from ltcore.arrays import Array
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


def _swapped_gates(array: Array) -> Array:
    # a GRU's blocks along axis 0: z, r, h <-> r, z, n
    return array.reshape(3, -1, *array.shape[1:])[[1, 0, 2]].reshape(array.shape)


def permuted(axes: Sequence[int], rows: int) -> Layout:
    """Return the layout of a kernel whose ``axes``, so many first ones its rows, make a matrix."""

    def to_native(array: Array, shape: Shape) -> Array:
        return array.reshape([shape[axis] for axis in axes]).transpose(np.argsort(axes))

    def to_canonical(array: Array) -> Array:
        moved = array.transpose(axes)
        return moved.reshape(math.prod(moved.shape[:rows]), -1)

    return Layout(to_canonical, to_native)


PLAIN = Layout(lambda array: array, lambda array, _shape: array)
FLAT = Layout(lambda array: array.reshape(-1), lambda array, shape: array.reshape(shape))
DENSE = Layout(lambda array: array.T, lambda array, _shape: array.T)  # (in, out) <-> (out, in)
KERNEL = Layout(_kernel_to_canonical, _kernel_to_native)
DEPTHWISE = Layout(_depthwise_to_canonical, _depthwise_to_native)
CHANNELS_LAST = Layout(_channels_to_front, _channels_to_back)
GRU_GATES = Layout(
    lambda array: _swapped_gates(array.T), lambda array, _shape: _swapped_gates(array).T
)


def canonical_shape(layout: Layout, shape: Shape) -> Shape:
    """Return the canonical shape of an array of native ``shape``."""
    return tuple(layout.to_canonical(np.broadcast_to(np.False_, shape)).shape)


def to_numpy(tensor: Any) -> Array:
    """Return a tensor's or variable's values; bfloat16, which numpy lacks, comes as float32."""
    # An engine might narrow an array.
    array = np.array(tensor) if isinstance(tensor, np.ndarray) else as_numpy(tensor)
    if keras.backend.standardize_dtype(tensor.dtype) == "bfloat16":
        return array.astype(np.float32)
    return array


def moved_channels(array: Array, *, first: bool) -> Array:
    """Return data ``(N, ..., C)`` as ``(N, C, ...)``, or the other way round."""
    return np.ascontiguousarray(np.moveaxis(array, *((-1, 1) if first else (1, -1))))
