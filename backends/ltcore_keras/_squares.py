"""The squared inputs that each weight of a kernel meets, added up over examples and positions."""

from itertools import product
from math import prod
from typing import Any

import keras
import numpy as np
from keras import layers as kl

from ltcore.arrays import Array
from ltcore_keras._calls import channel_axis
from ltcore_keras._einsum import Equation
from ltcore_keras._layouts import to_numpy
from ltcore_keras._padding import is_transposed, padding_of
from ltcore_keras._slots import Slot


def squares_of(slot: Slot, inputs: Any) -> tuple[Array, int]:
    """Return the sums of squares in float64, and how many squares are in each.

    Args:
        slot: where the kernel lives.
        inputs: what enters a call of its layer.

    Returns:
        An array of a shape that broadcasts to the canonical one of the kernel, and a number.
    """
    layer = slot.layer
    if isinstance(layer, kl.EinsumDense):
        return _by_equation(layer, _squared(inputs))
    if not hasattr(layer, "kernel_size"):
        return _by_last_axis(_squared(inputs))
    channels = channel_axis(layer)
    if slot.variable is getattr(layer, "pointwise_kernel", None):
        between = keras.ops.depthwise_conv(
            inputs,
            layer.depthwise_kernel,
            strides=layer.strides,
            padding=layer.padding,
            data_format=layer.data_format,
            dilation_rate=layer.dilation_rate,
        )
        total, positions = _by_last_axis(np.moveaxis(_squared(between), channels, -1))
        return total.reshape(1, -1, *[1] * layer.rank), positions
    squares = np.moveaxis(_squared(inputs), channels, -1)
    if is_transposed(layer):  # an input meets all of the kernel, cropped or not
        total, positions = _by_last_axis(squares)
        return total.reshape(-1, *[1] * (squares.ndim - 1)), positions
    return _by_windows(slot, squares, padding_of(layer, inputs.shape) or [])


def _squared(tensor: Any) -> Array:
    array: Array = np.square(to_numpy(tensor), dtype=np.float64)
    return array


def _by_last_axis(squares: Array) -> tuple[Array, int]:
    total: Array = squares.reshape(-1, squares.shape[-1]).sum(0)
    return total, squares.size // len(total)


def _by_equation(layer: Any, squares: Array) -> tuple[Array, int]:
    axes = Equation.of(layer).passing(squares.ndim)
    total: Array = squares.sum(axes)
    return total.reshape(-1), prod(squares.shape[axis] for axis in axes)


def _by_windows(slot: Slot, squares: Array, padding: list[list[int]]) -> tuple[Array, int]:
    """Add up what each position of the kernel meets as it moves over the padded input."""
    layer, (made, each, *kernel) = slot.layer, slot.shape
    padded = np.pad(squares, [[0, 0], *padding, [0, 0]])
    steps = list(zip(kernel, layer.strides, layer.dilation_rate, strict=True))
    sizes = [
        (size - (width - 1) * dilation - 1) // stride + 1
        for size, (width, stride, dilation) in zip(padded.shape[1:-1], steps, strict=True)
    ]
    over = tuple(range(squares.ndim - 1))
    sums = []
    for offset in product(*map(range, kernel)):
        window = tuple(
            slice(at * dilation, at * dilation + (size - 1) * stride + 1, stride)
            for at, size, (_, stride, dilation) in zip(offset, sizes, steps, strict=True)
        )
        sums.append(padded[:, *window].sum(over))
    # (in, k) -> (groups, in / groups, *k) -> (out, in / groups, *k)
    grouped = np.stack(sums, -1).reshape(-1, each, *kernel)
    return grouped.repeat(made // len(grouped), axis=0), len(squares) * prod(sizes)
