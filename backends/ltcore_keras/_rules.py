"""What operations and layers without weights do to the meaning of axes.

They are known by name to keep, drop, move, cut or merge axes in a certain way. Whatever is not in
a table makes its axes unknown, and exchange then refuses.
"""

from collections.abc import Sequence
from typing import Any

from ltcore.axes import Atom, Axis, Labels, is_unknown, letter, named, reshaped, size_of, spatial
from ltcore.tracing import Trace
from ltcore_keras._calls import Call, Operand, as_images, axes, channel_axis
from ltcore_keras._einsum import spelt_out
from ltcore_keras._inputs import BATCH


def elementwise(call: Call) -> Labels:
    """Operands that go together element by element."""
    flows = [(one.labels or (), one.shape) for one in call.flows]
    return call.trace.broadcast(flows, len(call.shape))


def first_kept(call: Call) -> Labels:
    """The first operand's axes stay."""
    return call.first


def image(call: Call) -> Labels:
    """Space changes its sizes: pooling, padding, cropping, scaling."""
    return call.trace.as_image(call.first, channel_axis(call.operation))


def reshape(call: Call) -> Labels:
    """Sizes say it all."""
    return reshaped(call.first, call.operands[0].shape, call.shape)


def reduced(call: Call) -> Labels:
    """Axes are summed, averaged, maximized over."""
    rank = len(call.first)
    option = "axes" if hasattr(call.operation, "axes") else "axis"
    asked = [axis % rank for axis in axes(getattr(call.operation, option))] or range(rank)
    if len(call.shape) == rank:
        return tuple(
            (Atom(letter(axis), 1, 1),) if place in asked else axis
            for place, axis in enumerate(call.first)
        )
    return tuple(axis for place, axis in enumerate(call.first) if place not in asked)


def ordered(call: Call) -> Labels | None:
    """What comes out depends on the order along one axis, or several."""
    labels = list(call.first)
    places = [axis % len(labels) for axis in axes(call.operation.axis)]
    for place in places:
        labels[place] = call.trace.sliced(labels[place], call.operands[0].shape[place])
    return tuple(labels) if places else None


def arg_reduced(call: Call) -> Labels | None:
    """Numbers of places along an axis come out."""
    axis = call.axis()
    labels = ordered(call)
    if labels is None or axis is None or is_unknown(labels[axis]):
        return None
    return labels if len(call.shape) == len(labels) else labels[:axis] + labels[axis + 1 :]


def matmul(call: Call) -> Labels | None:
    """``(..., m, k) @ (..., k, n)``."""
    first, second = (one.named for one in call.operands[:2])
    if min(len(first), len(second)) < 2:
        return None
    if not _meet(call.trace, [first[-1], second[-2]]):
        return None
    return call.trace.matmul(first, second)


def _meet(trace: Trace, together: Sequence[Axis]) -> bool:
    """Whether axes may be summed over together: of one order, or of orders shared everywhere."""
    return len(set(together)) == 1 or all(trace.group_of(axis) is None for axis in together)


def einsum(call: Call) -> Labels | None:
    """An equation of any operands."""
    ranks = [len(one.shape) for one in call.operands]
    equation = spelt_out(call.operation.subscripts, ranks)
    left, _, right = equation.partition("->")
    met: dict[str, list[Axis]] = {}
    for term, one in zip(left.split(","), call.operands, strict=True):
        for index, axis in zip(term, one.named, strict=True):
            met.setdefault(index, []).append(axis)
    if not all(_meet(call.trace, met[index]) for index in met.keys() - set(right)):
        return None
    return call.trace.einsum(equation, [one.named for one in call.operands])


def attention(call: Call) -> Labels | None:
    """Query, key and value as ``(batch, time, heads, features)``."""
    parts = [one.named for one in call.operands[:3]]
    if any(len(labels) != 4 for labels in parts):
        return None
    heads_first = [(labels[0], labels[2], labels[1], labels[3]) for labels in parts]
    found = call.trace.attention(*heads_first)
    return (found[0], found[2], found[1], found[3])


def concatenate(call: Call) -> Labels:
    """Parts that follow each other along an axis."""
    axis = call.operation.axis % len(call.shape)
    beside = [
        (tuple(() if place == axis else part for place, part in enumerate(one.named)), one.shape)
        for one in call.flows
    ]
    labels = list(call.trace.broadcast(beside, len(call.shape)))
    name = letter(call.flows[0].named[axis])
    parts = [
        (Atom(name, 1, one.shape[axis]),) if one.labels is None else one.labels[axis]
        for one in call.operands
    ]
    labels[axis] = call.trace.concatenated(parts)
    return tuple(labels)


def stack(call: Call) -> Labels:
    """Operands of one shape side by side along a new axis."""
    axis = call.operation.axis % len(call.shape)
    flows = [(one.labels or (), one.shape) for one in call.flows]
    labels = call.trace.broadcast(flows, len(call.shape) - 1)
    return (*labels[:axis], (Atom("T", 1, call.shape[axis]),), *labels[axis:])


def unstack(call: Call) -> Labels:
    """One step along an axis."""
    axis = call.axis() or 0
    call.trace.sliced(call.first[axis], 1)
    return call.first[:axis] + call.first[axis + 1 :]


def get_item(call: Call) -> Labels | None:
    """``x[key]`` with numbers, slices, an ellipsis and None."""
    key = call.args[1] if isinstance(call.args[1], tuple) else (call.args[1],)
    if not all(k is None or k is Ellipsis or isinstance(k, int | slice) for k in key):
        return None
    labels, sizes = list(call.first), list(call.operands[0].shape)
    taken = sum(isinstance(k, int | slice) for k in key)
    whole: list[Any] = [slice(None)] * (len(labels) - taken)
    at = key.index(Ellipsis) if Ellipsis in key else len(key)
    result: list[Axis] = []
    for k in (*key[:at], *whole, *key[at + 1 :]):
        if k is None:
            result.append(())
            continue
        axis, size = labels.pop(0), sizes.pop(0)
        if isinstance(k, int):
            call.trace.sliced(axis, 1)
        elif k in (slice(None), slice(0, size), slice(0, None), slice(None, size)):
            result.append(axis)
        else:
            result.append(call.trace.sliced(axis, len(range(*k.indices(size)))))
    return tuple(result)


def take(call: Call) -> Labels | None:
    """Rows of a table, or chosen places along an axis."""
    axis = call.axis()
    if axis is None:
        return None
    call.trace.sliced(call.first[axis], 1)
    places = call.operands[1] if len(call.operands) > 1 else Operand(None, ())
    between = places.named
    if places.labels is None and len(places.shape) == 1:
        between = (call.trace.sliced(call.first[axis], places.shape[0]),)
    return (*call.first[:axis], *between, *call.first[axis + 1 :])


def transpose(call: Call) -> Labels:
    """Axes in another order, or all of them turned round."""
    order = call.operation.axes
    return tuple(call.first[axis] for axis in order) if order else call.first[::-1]


def permute(call: Call) -> Labels:
    """A layer that moves all axes but the batch."""
    return (call.first[0], *(call.first[axis] for axis in call.operation.dims))


def move_axis(call: Call) -> Labels:
    """Some axes go to other places."""
    rank = len(call.shape)
    options = call.operation.source, call.operation.destination
    source, target = ([axis % rank for axis in axes(option)] for option in options)
    rest = iter(axis for axis in range(rank) if axis not in source)
    came = dict(zip(target, source, strict=True))
    return tuple(call.first[came[axis] if axis in came else next(rest)] for axis in range(rank))


def swap_axes(call: Call) -> Labels:
    """Two axes change places."""
    labels = list(call.first)
    one, other = call.operation.axis1, call.operation.axis2
    labels[one], labels[other] = labels[other], labels[one]
    return tuple(labels)


def broadcast_to(call: Call) -> Labels:
    """Axes of size 1, or new ones, are repeated."""
    new = len(call.shape) - len(call.first)
    old = ((),) * new + call.first
    return tuple(
        (Atom("N" if place == 0 and size == BATCH else "T", 1, size),)
        if size_of(axis) == 1 != size
        else axis
        for place, (axis, size) in enumerate(zip(old, call.shape, strict=True))
    )


def patches(call: Call) -> Labels | None:
    """Pieces of an image, each with its pixels and channels in one axis."""
    size = call.operation.size
    names = (*spatial(len(size)), "C")
    labels = call.trace.as_image(call.first, -1)
    if channel_axis(call.operation) == 1 or tuple(map(letter, labels[1:])) != names:
        return None
    inner = [Atom(name, 1, width) for name, width in zip(spatial(len(size)), size, strict=True)] + [
        Atom("C", 1, call.operands[0].shape[-1])
    ]
    space = named(spatial(len(size)), call.shape[1:-1])
    return (call.first[0], *space, tuple(inner))


def convolved(call: Call) -> Labels:
    """A convolution with a kernel that is no layer's."""
    labels = call.trace.as_image(call.first, channel_axis(call.operation))
    return as_images(labels[0], call.shape, channel_axis(call.operation))
