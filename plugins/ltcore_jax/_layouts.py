"""Flax axes to canonical axes and back, for weights and masks alike."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from ltcore.arrays import Array
from ltcore.errors import InvalidValueError

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
    # (*k, in / groups, out) -> (out, in / groups, *k)
    return np.moveaxis(array, (-1, -2), (0, 1))


def _kernel_to_native(array: Array, _shape: Shape) -> Array:
    # (out, in / groups, *k) -> (*k, in / groups, out)
    return np.moveaxis(array, (0, 1), (-1, -2))


def _upward_to_canonical(array: Array) -> Array:
    # (*k, in, out) -> (in, out, *k), every axis of the kernel turned round
    return np.flip(np.moveaxis(array, (-2, -1), (0, 1)), _kernel_axes(array))


def _upward_to_native(array: Array, _shape: Shape) -> Array:
    # (in, out, *k) -> (*k, in, out), every axis of the kernel turned round
    return np.moveaxis(np.flip(array, _kernel_axes(array)), (0, 1), (-2, -1))


def _kernel_axes(array: Array) -> Shape:
    return tuple(range(2, array.ndim))


def dense(rank_in: int) -> Layout:
    """Return the layout of ``(*in, *out)`` kernels whose first ``rank_in`` axes are inputs."""

    def to_canonical(array: Array) -> Array:
        return array.reshape(math.prod(array.shape[:rank_in]), -1).T

    return Layout(to_canonical, lambda array, shape: array.T.reshape(shape))


PLAIN = Layout(lambda array: array, lambda array, _shape: array)
FLAT = Layout(lambda array: array.reshape(-1), lambda array, shape: array.reshape(shape))
DENSE = dense(1)
KERNEL = Layout(_kernel_to_canonical, _kernel_to_native)
# A transposed convolution's kernel: torch's is that of the convolution it transposes. Flax means
# the same with transpose_kernel=True, and one that runs the other way without.
TRANSPOSED = KERNEL
UPWARD = Layout(_upward_to_canonical, _upward_to_native)


def canonical_shape(layout: Layout, shape: Shape) -> Shape:
    """Return the canonical shape of an array of native ``shape``."""
    return tuple(layout.to_canonical(np.broadcast_to(np.False_, shape)).shape)


def as_numpy(value: Any) -> Array:
    """Return an array's values, not owned; bfloat16, which numpy lacks, comes as float32."""
    array = np.asarray(value)
    return array.astype(np.float32) if array.dtype == jnp.bfloat16 else array


def to_canonical(value: Any, layout: Layout) -> Array:
    """Return an owned, C-contiguous array in canonical axes."""
    return np.array(layout.to_canonical(as_numpy(value)), order="C", copy=True)


def check_shape(array: Array, layout: Layout, shape: Shape, name: str) -> None:
    """Raise `InvalidValueError` unless a canonical array is one of native ``shape``."""
    wanted = canonical_shape(layout, shape)
    if array.shape != wanted:
        raise InvalidValueError(f"{name!r} has shape {wanted} in the model, got {array.shape}")


def to_native(array: Array, layout: Layout, like: Any, name: str) -> jax.Array:
    """Return a canonical array as the framework has it: axes, dtype and device of ``like``.

    Raises:
        InvalidValueError: its shape is another one.
    """
    check_shape(array, layout, like.shape, name)
    native = layout.to_native(array, like.shape)
    # JAX would go on using the memory of an array that happens to be aligned.
    return jax.device_put(jnp.array(native, like.dtype, copy=True), like.sharding)


def channels_first(array: Array) -> Array:
    """Return data ``(N, ..., C)`` as ``(N, C, ...)``."""
    return np.ascontiguousarray(np.moveaxis(array, -1, 1))


def channels_last(array: Array) -> Array:
    """Return data ``(N, C, ...)`` as ``(N, ..., C)``."""
    return np.ascontiguousarray(np.moveaxis(array, 1, -1))
