"""How data enters and leaves a layer of a known kind."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from flax import nnx
from jax import lax

from ltcore.axes import (
    UNKNOWN,
    Atom,
    Axis,
    Labels,
    letter,
    named,
    reshaped,
    spatial,
    unknown,
)
from ltcore.tracing import Trace
from ltcore_jax._kinds import spread
from ltcore_jax._names import Layer


def anonymous(shape: Sequence[int]) -> Labels:
    """Return labels of an array whose axes are nobody's in particular."""
    return tuple((Atom("F", 1, size),) if size != 1 else () for size in shape)


@dataclass(frozen=True, slots=True)
class Use:
    """One use of a layer.

    Attributes:
        trace: the books.
        layer: the layer.
        x: what enters.
        labels: its axes.
        shape: of what enters.
        made: shape of what leaves.
    """

    trace: Trace
    layer: Layer
    x: Any
    labels: Labels
    shape: tuple[int, ...]
    made: tuple[int, ...]

    def enter(self, axis: Axis | None, size: int) -> None:
        """Book that features of ``size`` enter; one alone has no order."""
        self.trace.visit(self.layer.site, [self.x], None if size == 1 else axis)

    def neighbours(self, axis: Axis) -> Axis:
        """Return the axis of features of which neighbours belong together: their order stays."""
        self.trace.pin((axis,))
        return axis if self.trace.group_of(axis) is None else UNKNOWN


def visited(trace: Trace, layer: Layer, x: Any, y: Any) -> Labels:
    """Book that ``x`` entered a layer and ``y`` left it; return the labels of ``y``."""
    shape = tuple(x.aval.shape)
    use = Use(trace, layer, x, _labels(trace, x, shape), shape, tuple(y.aval.shape))
    return _RULES[layer.kind](use)


def _labels(trace: Trace, x: Any, shape: tuple[int, ...]) -> Labels:
    """Return the labels of what enters a layer; a constant (positions) is time or the like."""
    flow = trace.flow(x)
    if flow.preds or flow.params:
        return flow.labels if len(flow.labels) == len(shape) else unknown(len(shape))
    return tuple((Atom("T", 1, size),) if size != 1 else () for size in shape)


def _linear(use: Use) -> Labels:
    if isinstance(use.layer.module, nnx.LinearGeneral):
        return _general(use, use.layer.module)
    use.enter(use.labels[-1], use.shape[-1])
    return (*use.labels[:-1], use.trace.features(use.layer.site, use.made[-1]))


def _general(use: Use, module: Any) -> Labels:
    ins, outs = len(module.in_features), len(module.out_features)
    entering, leaving = use.shape[-ins:], use.made[len(use.made) - outs :]
    size = math.prod(leaving)
    (axis,) = reshaped(use.labels[-ins:], entering, (math.prod(entering),))
    use.enter(axis, math.prod(entering))
    features = use.trace.features(use.layer.site, size)
    return (*use.labels[:-ins], *reshaped((features,), (size,), leaving))


def _convolution(use: Use) -> Labels:
    module: Any = use.layer.module
    if len(use.shape) != len(module.kernel_size) + 2:  # one example, or several batch axes
        use.enter(UNKNOWN, 0)
        return unknown(len(use.made))
    labels = use.trace.as_image(use.labels, -1)
    axis = labels[-1]
    if use.layer.kind != "conv_transpose" and module.feature_group_count > 1:
        axis = use.neighbours(axis)
    use.enter(axis, use.shape[-1])
    rest = named((*spatial(len(use.made) - 2), "C"), use.made[1:])
    return (labels[0], *rest)


def _embedding(use: Use) -> Labels:
    use.enter(None, 0)
    tokens = tuple(
        tuple(Atom("T", 1, atom.size) for atom in axis) if letter(axis) == "F" else axis
        for axis in use.labels
    )
    return (*tokens, use.trace.features(use.layer.site, use.made[-1]))


def _per_channel(use: Use) -> Labels:
    module: Any = use.layer.module
    labels = use.trace.as_image(use.labels, -1) if len(use.shape) > 2 else use.labels
    axis = labels[-1]
    if isinstance(module, nnx.GroupNorm) and module.num_groups > 1:
        axis = use.neighbours(axis)
    use.enter(axis, use.shape[-1])
    return labels


def _last_axis(use: Use) -> Labels:
    use.enter(use.labels[-1], use.shape[-1])
    return use.labels


def _one_slope(use: Use) -> Labels:
    use.enter(None, 0)
    return use.labels


_RULES: dict[str, Callable[[Use], Labels]] = {
    "linear": _linear,
    "embedding": _embedding,
    **dict.fromkeys(("conv", "depthwise", "conv_transpose"), _convolution),
    **dict.fromkeys(("batchnorm", "groupnorm"), _per_channel),
    **dict.fromkeys(("layernorm", "rmsnorm"), _last_axis),
    "prelu": _one_slope,
}


def padding_of(layer: Any, shape: Sequence[int]) -> list[list[int]] | None:
    """Return ``[[before, after], ...]`` for each axis of space; None for no convolution.

    Of a transposed convolution it is what is cut off the full result; below zero where zeros are
    added to it.

    Args:
        layer: any layer.
        shape: of its input.
    """
    if not isinstance(layer, nnx.Conv | nnx.ConvTranspose):
        return None
    rank = len(layer.kernel_size)
    strides, dilations = spread(layer.strides, rank), spread(layer.kernel_dilation, rank)
    kernels = [(k - 1) * d + 1 for k, d in zip(layer.kernel_size, dilations, strict=True)]
    if layer.padding == "CAUSAL":
        return [[kernel - 1, 0] for kernel in kernels]
    if isinstance(layer, nnx.ConvTranspose):
        return [
            _cropped(layer.padding, axis, *sizes)
            for axis, sizes in enumerate(zip(kernels, strides, strict=True))
        ]
    if isinstance(layer.padding, str):
        found = lax.padtype_to_pads(shape[1:-1], kernels, strides, layer.padding)
        return [[int(before), int(after)] for before, after in found]
    return [_explicit(layer.padding, axis) for axis in range(rank)]


def _explicit(padding: Any, axis: int) -> list[int]:
    """Return the padding of one axis: Flax takes a number, or numbers or pairs for all axes."""
    one = padding if isinstance(padding, int) else padding[axis]
    return [one, one] if isinstance(one, int) else [int(one[0]), int(one[1])]


def _cropped(padding: Any, axis: int, kernel: int, stride: int) -> list[int]:
    """Return what is cut off ``(size - 1) * stride + kernel`` places."""
    if padding == "SAME":
        total = kernel + stride - 2
        before = kernel - 1 if stride > kernel - 1 else -(-total // 2)
        added = [before, total - before]
    elif padding == "VALID":
        added = [kernel - 1, kernel - 1 + max(stride - kernel, 0)]
    else:
        added = _explicit(padding, axis)
    return [kernel - 1 - size for size in added]
