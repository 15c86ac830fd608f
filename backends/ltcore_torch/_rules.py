"""What becomes of axes where something is computed; one rule for a family of operations."""

import torch

from ltcore.axes import UNKNOWN, Atom, Axis, Labels, is_unknown, named, spatial, unknown
from ltcore_torch._calls import Call, anonymous, with_axis, without


def elementwise(call: Call, result: torch.Tensor, _: int) -> Labels:
    """Operands are paired element by element."""
    return call.together(result.dim())


def reduce(call: Call, result: torch.Tensor, position: int) -> Labels:
    """Axes are summed up, or the like; the second result may tell where along them."""
    labels = call.labels(call.main)
    gone = call.axes()
    if position:
        call.trace.pin(labels[axis] for axis in gone if labels)
    if result.dim() == call.main.dim():
        return tuple(() if axis in gone else label for axis, label in enumerate(labels))
    return without(labels, gone)


def accumulate(call: Call, _result: torch.Tensor, _: int) -> Labels:
    """What comes out depends on the order along one axis."""
    labels = call.labels(call.main)
    return with_axis(labels, call.axis(), _ordered(call, labels[call.axis()]))


def window(call: Call, result: torch.Tensor, _: int) -> Labels:
    """An image becomes a smaller or a larger one."""
    rank = int(next(char for char in reversed(call.name) if char.isdigit()))
    channel = call.main.dim() - rank - 1
    labels = call.trace.as_image(call.labels(call.main), channel)
    sizes = list(zip(labels, call.main.shape, result.shape, strict=True))
    grown = [
        (Atom(f"S{i}", 1, new),) if old == 1 and new > 1 else call.resized(axis, old, new)
        for i, (axis, old, new) in enumerate(sizes[channel + 1 :])
    ]
    return (*labels[: channel + 1], *grown)


def to_image(call: Call, result: torch.Tensor, _: int) -> Labels:
    """Channels and space are dealt anew: what comes out is an image again."""
    labels = call.trace.as_image(call.labels(call.main), -3)
    call.trace.pin(labels)
    if any(is_unknown(axis) for axis in labels):
        return unknown(result.dim())
    return labels[:-3] + named(("C", "S0", "S1"), result.shape[-3:])


def matmul(call: Call, result: torch.Tensor, _: int) -> Labels:
    """Rows times columns, and perhaps something added."""
    *added, first, second = call.tensors
    left, right = call.factor(first), call.factor(second)
    if first.dim() == 1:
        left = ((), *left)
    if second.dim() == 1:
        right = (*right, ())
    labels = call.trace.matmul(left, right)
    if first.dim() == 1:
        labels = (*labels[:-2], labels[-1])
    if second.dim() == 1:
        labels = labels[:-1]
    known = [(call.labels(one), one.shape) for one in added if call.knows(one)]
    return call.trace.broadcast([(labels, result.shape), *known], result.dim())


def linear(call: Call, result: torch.Tensor, _: int) -> Labels:
    """A dense layer called as a function."""
    labels = call.factor(call.main)
    call.trace.pin((labels[-1],))
    return (*labels[:-1], *anonymous(result.shape[-1:]))


def attention(call: Call, result: torch.Tensor, position: int) -> Labels:
    """Queries look up values by keys."""
    if position:
        return unknown(result.dim())
    query, key, value = (call.factor(call.args[name]) for name in ("query", "key", "value"))
    call.trace.attention(query, key, value)
    # Several heads of queries may share one of keys and values.
    return (*query[:-1], value[-1])


def convolution(call: Call, result: torch.Tensor, _: int) -> Labels:
    """A convolution called as a function."""
    labels = call.trace.as_image(call.factor(call.main), 1)
    call.trace.pin((labels[1],))
    return (labels[0], *named(("C", *spatial(result.dim() - 2)), result.shape[1:]))


def norm(call: Call, result: torch.Tensor, position: int) -> Labels:
    """A norm called as a function; its further results are statistics."""
    return unknown(result.dim()) if position else call.labels(call.main)


def group_norm(call: Call, result: torch.Tensor, position: int) -> Labels:
    """A group norm called as a function: it sees the order of channels."""
    if position:
        return unknown(result.dim())
    labels = call.labels(call.main)
    if len(labels) > 2:
        labels = call.trace.as_image(labels, 1)
    return with_axis(labels, 1, _ordered(call, labels[1]))


def embedding(call: Call, result: torch.Tensor, _: int) -> Labels:
    """Rows of a table are looked up."""
    table, tokens = call.args["weight"], call.args["indices"]
    before = call.labels(tokens) if call.knows(tokens) else anonymous(tokens.shape)
    return (*before, call.factor(table)[-1])


def _ordered(call: Call, axis: Axis) -> Axis:
    """Return an axis whose order counts: one that a flatten mixed has no order of its own."""
    call.trace.pin((axis,))
    return UNKNOWN if call.trace.group_of(axis) is not None else axis
