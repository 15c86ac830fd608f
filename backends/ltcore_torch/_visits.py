"""What the trace notes when data goes through a layer of a known kind."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from ltcore.axes import UNKNOWN, Atom, Axis, Labels, letter, named, spatial, unknown
from ltcore.tracing import Trace
from ltcore_torch._layouts import tensors_in
from ltcore_torch._names import Layer, Place


def is_observed(layer: Layer) -> bool:
    """Whether calls of the layer are noted as a whole; the inside of others is looked at."""
    return all(place.part.kind != "raw" for place in layer.places)


def fits(layer: Layer, entered: Sequence[torch.Tensor]) -> bool:
    """Whether a call does what the layer's class does, as far as its input tells.

    A subclass with a ``forward`` of its own may move axes around what its base computes.
    """
    module = layer.module
    if type(module).forward.__module__.startswith("torch.nn.modules."):
        return True
    expected = _FEATURES.get(layer.places[0].part.kind)
    if expected is None or len(layer.places) > 1 or not entered:
        return False
    axis, size = expected(module)
    return entered[0].dim() > 1 and entered[0].shape[axis] == size


_FEATURES: dict[str, Callable[[Any], tuple[int, int]]] = {
    "linear": lambda module: (-1, module.in_features),
    "conv": lambda module: (1, module.in_channels),
    "depthwise": lambda module: (1, module.in_channels),
    "conv_transpose": lambda module: (1, module.in_channels),
    "batchnorm": lambda module: (1, module.num_features),
    "layernorm": lambda module: (-1, module.normalized_shape[-1]),
    "rmsnorm": lambda module: (-1, module.normalized_shape[-1]),
}


def visit(trace: Trace, layer: Layer, args: Any, kwargs: Any, result: Any) -> None:
    """Note that data went through ``layer``."""
    kind = layer.places[0].part.kind
    if isinstance(layer.module, nn.MultiheadAttention):
        _attention(trace, layer, args, kwargs, result)
    elif isinstance(layer.module, nn.RNNBase):
        _recurrent(trace, layer, args, kwargs, result)
    elif isinstance(layer.module, nn.RNNCellBase):
        _cell(trace, layer.places[0], args, kwargs, result)
    else:
        x, y = tensors_in((args, kwargs))[0], tensors_in(result)[0]
        place = layer.places[0]
        labels = _SINGLE[kind](trace, place, layer.module, x, y)
        trace.put(y, _leaves(place), labels)


def _labels(trace: Trace, tensor: torch.Tensor) -> Labels:
    """Return the labels of what enters a layer; a constant (positions) is time or the like."""
    flow = trace.flow(tensor)
    if flow.preds or flow.params:
        return flow.labels if len(flow.labels) == tensor.dim() else unknown(tensor.dim())
    return tuple((Atom("T", 1, size),) if size != 1 else () for size in tensor.shape)


def _enter(trace: Trace, place: Place, entered: Sequence[Any], axis: Axis | None) -> None:
    """Note that data enters the sites that a part's arrays belong to."""
    if place.own:
        trace.visit(place.own, entered, axis)
    for owner in place.owners:
        # Two layers share an array: neither may order its features in a way of its own.
        trace.visit(owner, entered, _fixed(trace, axis or ()))
        trace.pin((Atom(f"F:{name}", 1, 0),) for name in (owner, place.own) if name)


def _leaves(place: Place) -> set[str]:
    return {name for name in (place.own, *place.owners) if name}


def _made(trace: Trace, place: Place, size: int) -> Axis:
    """Return the axis of the features that a part makes."""
    if place.owners:
        return (Atom("F", 1, size),)
    return trace.features(place.own, size)


def _fixed(trace: Trace, axis: Axis) -> Axis | None:
    """Return what to note of features whose order counts for the layer itself."""
    trace.pin((axis,))
    return UNKNOWN if trace.group_of(axis) is not None else None


def _features(labels: Labels, x: torch.Tensor, axis: int) -> Axis | None:
    return labels[axis] if x.shape[axis] != 1 else None


def _linear(
    trace: Trace, place: Place, _module: nn.Module, x: torch.Tensor, y: torch.Tensor
) -> Labels:
    labels = _labels(trace, x)
    _enter(trace, place, [x], _features(labels, x, -1))
    return (*labels[:-1], _made(trace, place, y.shape[-1]))


def _embedding(
    trace: Trace, place: Place, _module: nn.Module, x: torch.Tensor, y: torch.Tensor
) -> Labels:
    _enter(trace, place, [x], None)
    return (*_labels(trace, x), _made(trace, place, y.shape[-1]))


def _convolution(
    trace: Trace, place: Place, module: Any, x: torch.Tensor, y: torch.Tensor
) -> Labels:
    labels = _labels(trace, x)
    if x.dim() != len(module.kernel_size) + 2:  # one example without its batch
        _enter(trace, place, [x], UNKNOWN)
        return unknown(y.dim())
    labels = trace.as_image(labels, 1)
    axis = _features(labels, x, 1)
    if module.groups > 1 and axis is not None:
        axis = _fixed(trace, axis)
    _enter(trace, place, [x], axis)
    return (labels[0], *named(("C", *spatial(y.dim() - 2)), y.shape[1:]))


def _per_channel(
    trace: Trace, place: Place, module: Any, x: torch.Tensor, _y: torch.Tensor
) -> Labels:
    labels = _labels(trace, x)
    if x.dim() > 2:
        labels = trace.as_image(labels, 1)
    shared = isinstance(module, nn.PReLU) and module.num_parameters == 1
    axis = None if shared or x.dim() < 2 else _features(labels, x, 1)
    if place.part.kind == "groupnorm" and axis is not None:
        axis = _fixed(trace, axis)
    _enter(trace, place, [x], axis)
    return labels


def _last_axes(
    trace: Trace, place: Place, module: Any, x: torch.Tensor, _y: torch.Tensor
) -> Labels:
    labels, count = _labels(trace, x), len(module.normalized_shape)
    if count == 1:
        _enter(trace, place, [x], _features(labels, x, -1))
        return labels
    labels = trace.as_image(labels, -count)
    trace.pin(labels[-count:])
    image = [letter(axis) for axis in labels[-count:]] == ["C", *spatial(count - 1)]
    _enter(trace, place, [x], None if image else UNKNOWN)
    return labels


_SINGLE: dict[str, Callable[..., Labels]] = {
    "linear": _linear,
    "embedding": _embedding,
    **dict.fromkeys(("conv", "depthwise", "conv_transpose"), _convolution),
    **dict.fromkeys(("batchnorm", "groupnorm", "prelu"), _per_channel),
    **dict.fromkeys(("layernorm", "rmsnorm"), _last_axes),
}


def _attention(trace: Trace, layer: Layer, args: Any, kwargs: Any, result: Any) -> None:
    given = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
    entered = [given[key] for key in ("query", "key", "value")]
    *inner, out = layer.places
    for place, x in zip(inner, entered, strict=True):
        _enter(trace, place, [x], _features(_labels(trace, x), x, -1))
    met = [name for place in inner for name in _leaves(place)]
    _enter(trace, out, [_inside(trace, met)], None)
    y, *weights = tensors_in(result)
    labels = _labels(trace, entered[0])
    trace.put(y, _leaves(out), (*labels[:-1], _made(trace, out, y.shape[-1])))
    for tensor in weights:
        trace.put(tensor, met[:-1], _weight_labels(tensor))


def _weight_labels(weights: torch.Tensor) -> Labels:
    """Return the labels of (batch, queries, keys), with heads after the batch if kept apart."""
    return named(("N", *("T",) * (weights.dim() - 1)), weights.shape)


def _recurrent(trace: Trace, layer: Layer, args: Any, kwargs: Any, result: Any) -> None:
    module: Any = layer.module
    x, states = _steps_and_states(args, kwargs)
    width = 2 if module.bidirectional else 1
    labels = _labels(trace, x)
    before: Any = x
    for start in range(0, len(layer.places), width):
        level = layer.places[start : start + width]
        for place in level:
            axis = _features(labels, x, -1) if start == 0 else None
            _enter(trace, place, [before, *states], axis)
        met = {name for place in level for name in _leaves(place)}
        before = _inside(trace, met)
    y, *rest = tensors_in(result)
    trace.put(y, met, (*labels[:-1], (Atom("F", 1, y.shape[-1]),)))
    for state in (tensor for tensor in rest if tensor.is_floating_point()):
        names = ("T", "N", "F") if state.dim() == 3 else ("T", "F")
        trace.put(state, met, named(names, state.shape))


def _steps_and_states(args: Any, kwargs: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return what a recurrent layer reads, packed or not, and what it starts from."""
    given = dict(zip(("input", "hx"), args, strict=False)) | kwargs
    return tensors_in(given["input"])[0], tensors_in(given.get("hx"))


def _cell(trace: Trace, place: Place, args: Any, kwargs: Any, result: Any) -> None:
    x, states = _steps_and_states(args, kwargs)
    labels = _labels(trace, x)
    _enter(trace, place, [x, *states], _features(labels, x, -1))
    for name in _leaves(place):  # from one step to the next it follows itself
        trace.visits[name].preds.discard(name)
    for state in tensors_in(result):
        made = (Atom("F", 1, state.shape[-1]),)
        trace.put(state, _leaves(place), (*labels[:-1], made))


def _inside(trace: Trace, met: Iterable[str]) -> object:
    """Return something that came through ``met``, for what never leaves a layer as a tensor."""
    stand_in = object()
    trace.put(stand_in, met, ())
    return stand_in
