"""How data enters and leaves a layer that is one site."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from keras import layers as kl

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
from ltcore.layouts import RECURRENT
from ltcore.tracing import Trace
from ltcore_keras._calls import as_images, channel_axis
from ltcore_keras._einsum import Equation
from ltcore_keras._kinds import norm_axes, slope_axis

_DEPTHWISE = (kl.DepthwiseConv1D, kl.DepthwiseConv2D)


@dataclass(frozen=True, slots=True)
class Use:
    """One use of a layer.

    Attributes:
        trace: the books.
        layer: the layer.
        entered: tensors that enter, the main one first.
        labels: the axes of the main one.
        shape: of what leaves.
    """

    trace: Trace
    layer: Any
    entered: Sequence[Any]
    labels: Labels
    shape: tuple[int, ...]


def visited(use: Use, site: str, kind: str) -> Labels:
    """Book the visit of a site of a known kind; return the labels of what leaves."""
    return _RULES[kind](use, site)


def tied(use: Use) -> Labels:
    """Return the labels behind a layer whose weights are all another's."""
    if isinstance(use.layer, kl.Embedding):
        return (*as_tokens(use.labels), (Atom("F", 1, use.shape[-1]),))
    if isinstance(use.layer, kl.Dense) and use.trace.group_of(use.labels[-1]) is None:
        use.trace.pin(use.labels[-1:])
        return (*use.labels[:-1], (Atom("F", 1, use.shape[-1]),))
    return unknown(len(use.shape))


def enter(trace: Trace, site: str, entered: Sequence[Any], axis: Axis, size: int) -> None:
    """Book that features of ``size`` enter a site; one alone has no order."""
    trace.visit(site, entered, None if size == 1 else axis)


def as_neighbours(trace: Trace, axis: Axis) -> Axis:
    """Return the axis of features of which neighbours belong together: their order stays."""
    trace.pin((axis,))
    return axis if trace.group_of(axis) is None else UNKNOWN


def cut(axis: Axis, sizes: Sequence[int]) -> Labels:
    """Return the axes of one that is dealt out over several."""
    return reshaped((axis,), (math.prod(sizes),), sizes)


def as_tokens(labels: Labels) -> Labels:
    """Return the axes of numbers that are looked up: a batch, and times."""
    return tuple(
        tuple(Atom("T", 1, atom.size) for atom in axis) if letter(axis) == "F" else axis
        for axis in labels
    )


def _linear(use: Use, site: str) -> Labels:
    if isinstance(use.layer, kl.EinsumDense):
        return _einsum(use, site)
    enter(use.trace, site, use.entered[:1], use.labels[-1], use.entered[0].shape[-1])
    return (*use.labels[:-1], use.trace.features(site, use.shape[-1]))


def _einsum(use: Use, site: str) -> Labels:
    equation = Equation.of(use.layer)
    use.trace.visit(site, use.entered[:1], equation.entered(use.labels))
    sizes = equation.made_sizes(use.shape, len(use.labels))
    features = use.trace.features(site, math.prod(sizes))
    return equation.left(use.labels, cut(features, sizes))


def _conv(use: Use, site: str) -> Labels:
    channels = channel_axis(use.layer)
    labels = use.trace.as_image(use.labels, channels)
    axis = labels[channels]
    if getattr(use.layer, "groups", 1) > 1 or isinstance(use.layer, _DEPTHWISE):
        axis = as_neighbours(use.trace, axis)
    enter(use.trace, site, use.entered[:1], axis, use.entered[0].shape[channels])
    return as_images(labels[0], use.shape, channels)


def _batchnorm(use: Use, site: str) -> Labels:
    axis = int(use.layer.axis) % len(use.labels)
    labels = use.trace.as_image(use.labels, axis) if len(use.labels) > 2 else use.labels
    enter(use.trace, site, use.entered[:1], labels[axis], use.shape[axis])
    return labels


def _groupnorm(use: Use, site: str) -> Labels:
    axis = int(use.layer.axis) % len(use.labels)
    labels = use.trace.as_image(use.labels, axis)
    entering = labels[axis]
    if use.layer.groups > 1:
        entering = as_neighbours(use.trace, entering)
    enter(use.trace, site, use.entered[:1], entering, use.shape[axis])
    return labels


def _lastnorm(use: Use, site: str) -> Labels:
    width = len(norm_axes(use.layer) or ())
    if width == 1:
        enter(use.trace, site, use.entered[:1], use.labels[-1], use.shape[-1])
        return use.labels
    labels = use.trace.as_image(use.labels, -1)
    is_image = tuple(map(letter, labels[-width:])) == (*spatial(width - 1), "C")
    use.trace.visit(site, use.entered[:1], None if is_image else UNKNOWN)
    return labels


def _prelu(use: Use, site: str) -> Labels:
    axis = slope_axis(use.layer)
    if axis is None:
        use.trace.visit(site, use.entered[:1], None)
        return use.labels
    labels = use.trace.as_image(use.labels, axis) if len(use.labels) > 2 else use.labels
    enter(use.trace, site, use.entered[:1], labels[axis], use.shape[axis])
    return labels


def _embedding(use: Use, site: str) -> Labels:
    use.trace.visit(site, use.entered[:1], None)
    return (*as_tokens(use.labels), use.trace.features(site, use.shape[-1]))


def _cell(use: Use, site: str) -> Labels:
    enter(use.trace, site, use.entered, use.labels[-1], use.entered[0].shape[-1])
    return (use.labels[0], *named("F" * (len(use.shape) - 1), use.shape[1:]))


_RULES: dict[str, Callable[[Use, str], Labels]] = {
    "linear": _linear,
    **dict.fromkeys(("conv", "depthwise", "conv_transpose"), _conv),
    "batchnorm": _batchnorm,
    "groupnorm": _groupnorm,
    **dict.fromkeys(("layernorm", "rmsnorm"), _lastnorm),
    "prelu": _prelu,
    "embedding": _embedding,
    **dict.fromkeys(RECURRENT, _cell),
}
