"""The layers of the numpy reference framework: slow, and obviously right.

A layer is its sizes, its initializer, its formula, and what it does to the meaning of axes. Data
and parameters are in canonical layout: channels before space, kernels as ``(out, in, *kernel)``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from ltcore.arrays import Array
from ltcore.axes import Axis, Labels, named, reshaped, spatial


class Layer:
    """A layer without parameters that keeps the meaning of axes; others say what differs.

    Attributes:
        trained: names of its parameters.
        buffers: names of what it keeps besides, and does not train.
    """

    trained: ClassVar[tuple[str, ...]] = ()
    buffers: ClassVar[tuple[str, ...]] = ()
    feature_axis: ClassVar[int] = -1

    @property
    def kind(self) -> str:
        """A key of `ltcore.layouts.KINDS`; empty for a layer that bears no parameters."""
        return ""

    @property
    def attrs(self) -> dict[str, Any]:
        """What must agree for two layers to compute the same."""
        return {}

    def initial(self, rng: np.random.Generator) -> dict[str, Array]:
        """Return fresh values for every parameter and buffer."""
        return {}

    def __call__(self, x: Array, training: bool = False) -> Array:
        """Return the layer's output."""
        raise NotImplementedError

    def input_axes(self, rank: int) -> tuple[str, ...]:
        """Return what the axes of a model's input are called if this layer is its first."""
        return ("N", "C", *spatial(rank - 2)) if rank > 2 else ("N", "F")

    def output_labels(self, labels: Labels, x: Array, y: Array, made: Axis) -> Labels:
        """Return what the axes of output ``y`` mean.

        Args:
            labels: of the input.
            x: the input.
            y: the output.
            made: the axis of features that this layer makes, if it makes any.
        """
        return labels


@dataclass(eq=False)
class Linear(Layer):
    """``y = x W^T + b`` along the last axis."""

    inputs: int
    outputs: int
    weight: Array = field(init=False, repr=False)
    bias: Array = field(init=False, repr=False)

    trained = ("weight", "bias")
    kind = "linear"

    def initial(self, rng: np.random.Generator) -> dict[str, Array]:
        """Uniform in ``+-1/sqrt(fan in)``, biases too."""
        return _uniform(rng, (self.outputs, self.inputs), self.outputs, self.inputs)

    def __call__(self, x: Array, training: bool = False) -> Array:
        """Return ``x W^T + b``."""
        y: Array = x @ self.weight.T + self.bias
        return y

    def input_axes(self, rank: int) -> tuple[str, ...]:
        """Features are last."""
        return ("N", *("T",) * (rank - 2), "F")

    def output_labels(self, labels: Labels, x: Array, y: Array, made: Axis) -> Labels:
        """The last axis holds new features."""
        return (*labels[:-1], made)


@dataclass(eq=False)
class Conv(Layer):
    """Cross-correlation in 1 to 3 dimensions; depthwise where every channel is its own group."""

    inputs: int
    outputs: int
    kernel: tuple[int, ...]
    stride: int = 1
    padding: int = 0
    groups: int = 1
    weight: Array = field(init=False, repr=False)
    bias: Array = field(init=False, repr=False)

    trained = ("weight", "bias")
    feature_axis = 1

    @property
    def kind(self) -> str:
        """Depthwise, or plain."""
        return "depthwise" if 1 < self.groups == self.inputs else "conv"

    @property
    def attrs(self) -> dict[str, Any]:
        """Stride, dilation and groups."""
        shared = {"stride": [self.stride] * len(self.kernel), "dilation": [1] * len(self.kernel)}
        return shared if self.kind == "depthwise" else {**shared, "groups": self.groups}

    def initial(self, rng: np.random.Generator) -> dict[str, Array]:
        """Uniform in ``+-1/sqrt(fan in)``, biases too."""
        shape = (self.outputs, self.inputs // self.groups, *self.kernel)
        return _uniform(rng, shape, self.outputs, math.prod(shape[1:]))

    def __call__(self, x: Array, training: bool = False) -> Array:
        """Add up, for each position of the kernel, what it sees times its weight."""
        x = np.pad(x, [(0, 0), (0, 0), *[(self.padding, self.padding)] * len(self.kernel)])
        sizes = [(n - k) // self.stride + 1 for n, k in zip(x.shape[2:], self.kernel, strict=True)]
        # (out, in / g, *kernel) -> (g, out / g, in / g, *kernel); (N, in, *) -> (N, g, in / g, *)
        weight = self.weight.reshape(self.groups, -1, *self.weight.shape[1:])
        x = x.reshape(len(x), self.groups, -1, *x.shape[2:])
        y: Any = 0.0
        for offset in np.ndindex(*self.kernel):
            seen = x[_window(offset, sizes, self.stride)]
            y = y + np.einsum("ngi...,goi->ngo...", seen, weight[..., *offset])
        whole: Array = y.reshape(len(x), self.outputs, *sizes)
        return whole + _per_channel(self.bias, whole.ndim)

    def output_labels(self, labels: Labels, x: Array, y: Array, made: Axis) -> Labels:
        """Channels, then space."""
        return named(("N", "C", *spatial(y.ndim - 2)), y.shape)


@dataclass(eq=False)
class ConvTranspose(Layer):
    """The transpose of `Conv`, in 1 to 3 dimensions; ``padding`` crops the output."""

    inputs: int
    outputs: int
    kernel: tuple[int, ...]
    stride: int = 1
    padding: int = 0
    weight: Array = field(init=False, repr=False)
    bias: Array = field(init=False, repr=False)

    trained = ("weight", "bias")
    kind = "conv_transpose"
    feature_axis = 1

    @property
    def attrs(self) -> dict[str, Any]:
        """Stride and dilation."""
        return {"stride": [self.stride] * len(self.kernel), "dilation": [1] * len(self.kernel)}

    def initial(self, rng: np.random.Generator) -> dict[str, Array]:
        """Uniform in ``+-1/sqrt(fan in)``, biases too."""
        shape = (self.inputs, self.outputs, *self.kernel)
        return _uniform(rng, shape, self.outputs, math.prod(shape[1:]))

    def __call__(self, x: Array, training: bool = False) -> Array:
        """Spread every input over the kernel, and add up where copies overlap."""
        sizes = x.shape[2:]
        full = [(n - 1) * self.stride + k for n, k in zip(sizes, self.kernel, strict=True)]
        y = np.zeros((len(x), self.outputs, *full), np.result_type(x, self.weight))
        for offset in np.ndindex(*self.kernel):
            share = np.einsum("ni...,io->no...", x, self.weight[..., *offset])
            y[_window(offset, sizes, self.stride)] += share
        kept: Any = (..., *(slice(self.padding, n - self.padding) for n in full))
        cropped: Array = y[kept]
        return cropped + _per_channel(self.bias, y.ndim)

    def output_labels(self, labels: Labels, x: Array, y: Array, made: Axis) -> Labels:
        """Channels, then space."""
        return named(("N", "C", *spatial(y.ndim - 2)), y.shape)


@dataclass(eq=False)
class BatchNorm(Layer):
    """Normalization over the batch (and space), along axis 1, with torch's conventions.

    In training it uses the batch's statistics and moves the running ones by ``momentum`` towards
    them (the variance with ``n - 1``); else it uses the running ones.
    """

    features: int
    eps: float = 1e-5
    momentum: float = 0.1
    weight: Array = field(init=False, repr=False)
    bias: Array = field(init=False, repr=False)
    running_mean: Array = field(init=False, repr=False)
    running_var: Array = field(init=False, repr=False)

    trained = ("weight", "bias")
    buffers = ("running_mean", "running_var")
    kind = "batchnorm"
    feature_axis = 1

    @property
    def attrs(self) -> dict[str, Any]:
        """Epsilon, and momentum as torch counts it."""
        return {"eps": self.eps, "momentum": self.momentum}

    def initial(self, rng: np.random.Generator) -> dict[str, Array]:
        """Ones and zeros."""
        ones, zeros = np.ones(self.features, np.float32), np.zeros(self.features, np.float32)
        return {
            "weight": ones,
            "bias": zeros,
            "running_mean": zeros.copy(),
            "running_var": ones.copy(),
        }

    def __call__(self, x: Array, training: bool = False) -> Array:
        """Return ``(x - mean) / sqrt(var + eps) * weight + bias``."""
        mean, var = self.running_mean, self.running_var
        if training:
            axes = tuple(axis for axis in range(x.ndim) if axis != 1)
            mean, var = x.mean(axes), x.var(axes)
            n = x.size // self.features
            self.running_mean += self.momentum * (mean - self.running_mean)
            self.running_var += self.momentum * (var * n / (n - 1) - self.running_var)
        scale = self.weight / np.sqrt(var + self.eps)
        y: Array = (x - _per_channel(mean, x.ndim)) * _per_channel(scale, x.ndim)
        return y + _per_channel(self.bias, x.ndim)


@dataclass(eq=False)
class LayerNorm(Layer):
    """Normalization along the last axis."""

    features: int
    eps: float = 1e-5
    weight: Array = field(init=False, repr=False)
    bias: Array = field(init=False, repr=False)

    trained = ("weight", "bias")
    kind = "layernorm"

    @property
    def attrs(self) -> dict[str, Any]:
        """Epsilon."""
        return {"eps": self.eps}

    def initial(self, rng: np.random.Generator) -> dict[str, Array]:
        """Ones and zeros."""
        return {
            "weight": np.ones(self.features, np.float32),
            "bias": np.zeros(self.features, np.float32),
        }

    def __call__(self, x: Array, training: bool = False) -> Array:
        """Return ``(x - mean) / sqrt(var + eps) * weight + bias``."""
        mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        y: Array = (x - mean) / np.sqrt(var + self.eps) * self.weight + self.bias
        return y

    def input_axes(self, rank: int) -> tuple[str, ...]:
        """Features are last."""
        return ("N", *("T",) * (rank - 2), "F")


@dataclass(eq=False)
class Embedding(Layer):
    """Rows of a table, chosen by token numbers."""

    vocabulary: int
    features: int
    weight: Array = field(init=False, repr=False)

    trained = ("weight",)
    kind = "embedding"

    def initial(self, rng: np.random.Generator) -> dict[str, Array]:
        """Standard normal."""
        shape = (self.vocabulary, self.features)
        return {"weight": rng.standard_normal(shape).astype(np.float32)}

    def __call__(self, x: Array, training: bool = False) -> Array:
        """Return the rows numbered ``x``."""
        y: Array = self.weight[x]
        return y

    def input_axes(self, rank: int) -> tuple[str, ...]:
        """Token numbers along time."""
        return ("N", *("T",) * (rank - 1))

    def output_labels(self, labels: Labels, x: Array, y: Array, made: Axis) -> Labels:
        """Features come last."""
        return (*labels, made)


@dataclass(eq=False)
class Relu(Layer):
    """``max(x, 0)``."""

    def __call__(self, x: Array, training: bool = False) -> Array:
        """Return ``max(x, 0)``."""
        y: Array = np.maximum(x, 0)
        return y


@dataclass(eq=False)
class Flatten(Layer):
    """All axes but the batch in one, channels first."""

    def __call__(self, x: Array, training: bool = False) -> Array:
        """Return ``x`` as a matrix."""
        return x.reshape(len(x), -1)

    def output_labels(self, labels: Labels, x: Array, y: Array, made: Axis) -> Labels:
        """The new axis remembers which axes it is made of, in which order."""
        return reshaped(labels, x.shape, y.shape)


@dataclass(eq=False)
class Image(Layer):
    """Features as an image, channels first."""

    shape: tuple[int, ...]

    def __call__(self, x: Array, training: bool = False) -> Array:
        """Return ``x`` as ``(N, channels, *space)``."""
        return x.reshape(len(x), *self.shape)

    def output_labels(self, labels: Labels, x: Array, y: Array, made: Axis) -> Labels:
        """The new axes remember which part of the features they are."""
        return reshaped(labels, x.shape, y.shape)


@dataclass(eq=False)
class GlobalPool(Layer):
    """The mean over space."""

    def __call__(self, x: Array, training: bool = False) -> Array:
        """Return one number a channel."""
        y: Array = x.mean(tuple(range(2, x.ndim)))
        return y

    def output_labels(self, labels: Labels, x: Array, y: Array, made: Axis) -> Labels:
        """Channels stay."""
        return labels[:2]


def _uniform(
    rng: np.random.Generator, shape: tuple[int, ...], outputs: int, fan_in: int
) -> dict[str, Array]:
    bound = fan_in**-0.5
    return {
        "weight": rng.uniform(-bound, bound, shape).astype(np.float32),
        "bias": rng.uniform(-bound, bound, outputs).astype(np.float32),
    }


def _window(offset: tuple[int, ...], sizes: Sequence[int], stride: int) -> Any:
    """Return the index of what the kernel element at ``offset`` meets, for the last axes."""
    spans = zip(offset, sizes, strict=True)
    return (..., *(slice(first, first + (n - 1) * stride + 1, stride) for first, n in spans))


def _per_channel(values: Array, rank: int) -> Array:
    """Return ``(C,)`` as ``(C, 1, ...)``, to go with data of ``rank`` axes."""
    return values.reshape(-1, *(1,) * (rank - 2))
