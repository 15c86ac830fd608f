"""The padding that a convolution really applies: ``same`` depends on sizes and strides."""

from collections.abc import Sequence
from typing import Any

from keras import layers as kl

_TRANSPOSED = (kl.Conv1DTranspose, kl.Conv2DTranspose, kl.Conv3DTranspose)


def is_transposed(layer: Any) -> bool:
    """Whether a layer is a transposed convolution."""
    return isinstance(layer, _TRANSPOSED)


def padding_of(layer: Any, shape: Sequence[int]) -> list[list[int]] | None:
    """Return ``[[before, after], ...]`` for each axis of space; None for no convolution.

    Of a transposed convolution it is what is cut off the full result; below zero where zeros are
    added to it.

    Args:
        layer: any layer.
        shape: of its input.
    """
    if not hasattr(layer, "kernel_size") or not hasattr(layer, "padding"):
        return None
    rank = len(layer.kernel_size)
    space = shape[1:-1] if layer.data_format == "channels_last" else shape[2:]
    strides, dilations = layer.strides, layer.dilation_rate
    kernels = [
        (size - 1) * dilation + 1
        for size, dilation in zip(layer.kernel_size, dilations, strict=True)
    ]
    if is_transposed(layer):
        extra = layer.output_padding or (None,) * rank
        return [
            _cropped(layer.padding, *axis) for axis in zip(kernels, strides, extra, strict=True)
        ]
    return [_padded(layer.padding, *axis) for axis in zip(space, kernels, strides, strict=True)]


def _padded(word: str, size: int, kernel: int, stride: int) -> list[int]:
    if word == "valid":
        return [0, 0]
    if word == "causal":
        return [kernel - 1, 0]
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return [total // 2, total - total // 2]


def _cropped(word: str, kernel: int, stride: int, extra: int | None) -> list[int]:
    """Return what is cut off ``(size - 1) * stride + kernel`` places."""
    if word == "valid":
        total = -(max(stride - kernel, 0) if extra is None else extra)
    else:
        total = kernel - stride if extra is None else kernel - kernel % 2 - extra
    before = max(total, 0) // 2
    return [before, total - before]
