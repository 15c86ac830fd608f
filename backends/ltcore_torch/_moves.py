"""What becomes of axes where entries are only moved: views, picks, joins."""

import numpy as np
import torch

from ltcore.axes import UNKNOWN, Atom, Labels, letter, named, reshaped, unknown
from ltcore_torch._calls import Call, with_axis, without


def reshape(call: Call, result: torch.Tensor, _: int) -> Labels:
    """Axes are cut and joined."""
    return reshaped(call.labels(call.main), call.main.shape, result.shape)


def restride(call: Call, result: torch.Tensor, _: int) -> Labels:
    """Memory is read anew; known only where nothing but the strides of single places change."""
    main = call.main
    strides = zip(main.stride(), result.stride(), main.shape, strict=True)
    same = all(old == new or size == 1 for old, new, size in strides)
    if main.shape != result.shape or not same or main.data_ptr() != result.data_ptr():
        return unknown(result.dim())
    return call.labels(main)


def permute(call: Call, _result: torch.Tensor, _: int) -> Labels:
    """Axes change places."""
    labels = call.labels(call.main)
    return tuple(labels[axis] for axis in call.args["dims"])


def transpose(call: Call, _result: torch.Tensor, _: int) -> Labels:
    """Two axes change places."""
    labels = list(call.labels(call.main))
    first, second = call.axis("dim0"), call.axis("dim1")
    labels[first], labels[second] = labels[second], labels[first]
    return tuple(labels)


def flip_axes(call: Call, _result: torch.Tensor, _: int) -> Labels:
    """The order of axes is turned round."""
    return call.labels(call.main)[::-1]


def unsqueeze(call: Call, result: torch.Tensor, _: int) -> Labels:
    """An axis of size 1 is put in."""
    labels, axis = call.labels(call.main), call.axis(rank=result.dim())
    return (*labels[:axis], (), *labels[axis:])


def squeeze(call: Call, _result: torch.Tensor, _: int) -> Labels:
    """Axes of size 1 are taken out."""
    gone = {axis for axis in call.axes() if call.main.shape[axis] == 1}
    return without(call.labels(call.main), gone)


def expand(call: Call, result: torch.Tensor, _: int) -> Labels:
    """Axes of size 1 are stretched, and new ones put in front.

    In an image nobody can say what these are; elsewhere they are the batch, time or the like.
    """
    labels = call.labels(call.main)
    extra = result.dim() - call.main.dim()
    image = any(letter(axis)[0] in "CS?" for axis in labels)
    old = (*(1,) * extra, *call.main.shape)
    return tuple(
        label if before == after else () if image else (Atom(_stretched(call, axis), 1, after),)
        for axis, (label, before, after) in enumerate(
            zip(((),) * extra + labels, old, result.shape, strict=True)
        )
    )


def repeat(call: Call, result: torch.Tensor, _: int) -> Labels:
    """The whole tensor is laid side by side several times."""
    labels, times = call.labels(call.main), call.args["repeats"]
    whole = ((),) * (result.dim() - call.main.dim()) + labels
    return tuple(
        label if n == 1 else (Atom(_stretched(call, axis), 1, n), *label)
        for axis, (label, n) in enumerate(zip(whole, times, strict=True))
    )


def _stretched(call: Call, axis: int) -> str:
    """Parameters are stretched along the front to go with a batch of data."""
    return "T" if axis or call.trace.flow(call.main).preds else "N"


def select(call: Call, result: torch.Tensor, _: int) -> Labels:
    """One of an axis is taken, by a number that is the same everywhere."""
    labels = call.labels(call.main)
    gone = call.axes() if "arg" in call.name else {call.axis()}
    call.trace.pin(labels[axis] for axis in gone if labels)
    if result.dim() == call.main.dim():
        return tuple(() if axis in gone else label for axis, label in enumerate(labels))
    return without(labels, gone)


def resize(call: Call, result: torch.Tensor, _: int) -> Labels:
    """Neighbours along some axes are left, or ends are put on."""
    sizes = zip(call.labels(call.main), call.main.shape, result.shape, strict=True)
    return tuple(call.resized(axis, old, new) for axis, old, new in sizes)


def reorder(call: Call, result: torch.Tensor, _: int) -> Labels:
    """Places along some axes change, or some of them are taken."""
    labels = list(call.labels(call.main))
    for axis in call.axes("dims" if "dims" in call.args else "dim"):
        call.trace.pin((labels[axis],))
        kept = letter(labels[axis])[0] in "NST"
        labels[axis] = (Atom(letter(labels[axis]), 1, result.shape[axis]),) if kept else UNKNOWN
    return tuple(labels)


def gather(call: Call, result: torch.Tensor, _: int) -> Labels:
    """Places along one axis are taken, other ones for each place along the others."""
    source, places = call.labels(call.main), call.labels(call.args["index"])
    axis = call.axis()
    call.trace.pin((source[axis],))
    sizes = zip(source, call.main.shape, result.shape, strict=True)
    cut = tuple(call.resized(label, old, new) for label, old, new in sizes)
    labels = call.trace.broadcast(
        [(with_axis(cut, axis, ()), result.shape), (places, result.shape)], result.dim()
    )
    kept = letter(source[axis])[0] in "NST"
    along = (Atom(letter(source[axis]), 1, result.shape[axis]),) if kept else UNKNOWN
    return labels if labels[axis] else with_axis(labels, axis, along)


def index(call: Call, result: torch.Tensor, _: int) -> Labels:
    """Places along some axes are taken by numbers that are the same everywhere."""
    labels = call.labels(call.main)
    indices = list(call.args["indices"])
    taken = [axis for axis, one in enumerate(indices) if one is not None]
    call.trace.pin(labels[axis] for axis in taken)
    if any(one is not None and one.dtype in (torch.bool, torch.uint8) for one in indices):
        return unknown(result.dim())
    neighbours = taken == list(range(taken[0], taken[-1] + 1))
    first = taken[0] if neighbours else 0
    made = np.broadcast_shapes(*(tuple(indices[axis].shape) for axis in taken))
    new: Labels = unknown(len(made))
    if all(letter(labels[axis])[0] in "NST" for axis in taken):
        name = letter(labels[taken[0]])
        new = tuple((Atom(name if i == 0 else "T", 1, n),) for i, n in enumerate(made))
    rest = without(labels, set(taken))
    return rest[:first] + new + rest[first:]


def concatenate(call: Call, result: torch.Tensor, _: int) -> Labels:
    """Parts follow each other along one axis."""
    parts = [part for part in call.args["tensors"] if part.dim() == result.dim()]
    axis = call.axis(rank=result.dim())
    data = [call.labels(part)[axis] for part in parts if call.trace.flow(part).preds]
    name = letter(data[0]) if data else "F"
    along = [
        call.labels(part)[axis]
        if call.trace.flow(part).preds or part.shape[axis] == 1
        else (Atom(name if name != "?" else "F", 1, part.shape[axis]),)
        for part in parts
    ]
    whole = [one for one in call.operands() if one.dim() == result.dim()]
    others = call.trace.broadcast(
        [(with_axis(call.labels(one), axis, ()), one.shape) for one in whole], result.dim()
    )
    return with_axis(others, axis, call.trace.concatenated(along))


def stack(call: Call, result: torch.Tensor, _: int) -> Labels:
    """Parts are put side by side along a new axis."""
    axis = call.axis(rank=result.dim())
    labels = call.together(result.dim() - 1)
    return (*labels[:axis], (Atom("T", 1, result.shape[axis]),), *labels[axis:])


def unfold(call: Call, result: torch.Tensor, _: int) -> Labels:
    """An axis is cut into windows, whose places become a last axis."""
    labels, axis = call.labels(call.main), call.axis("dimension")
    size, step = call.args["size"], call.args["step"]
    if size != step or call.main.shape[axis] % size:
        return (*with_axis(labels, axis, UNKNOWN), UNKNOWN)
    pieces = (call.main.shape[axis] // size, size)
    outer, inner = reshaped((labels[axis],), call.main.shape[axis : axis + 1], pieces)
    return (*with_axis(labels, axis, outer), inner)


def patches(call: Call, result: torch.Tensor, _: int) -> Labels:
    """Patches of an image become features, ordered as channels, rows, columns."""
    labels = call.trace.as_image(call.labels(call.main), -3)
    if letter(labels[-3]) != "C":
        return unknown(result.dim())
    sizes = (call.main.shape[-3], *call.args["kernel_size"])
    features = tuple(Atom(name, 1, n) for name, n in zip(("C", "S0", "S1"), sizes, strict=True))
    return (*labels[:-3], features, (Atom("T", 1, result.shape[-1]),))


def pack(call: Call, result: torch.Tensor, position: int) -> Labels:
    """Sequences of several lengths become one array of all their steps."""
    if position:
        return unknown(result.dim())
    return ((Atom("T", 1, result.shape[0]),), *call.labels(call.main)[2:])


def unpack(call: Call, result: torch.Tensor, position: int) -> Labels:
    """And back."""
    if position:
        return unknown(result.dim())
    names = ("N", "T") if call.args["batch_first"] else ("T", "N")
    return (*named(names, result.shape[:2]), *call.labels(call.main)[1:])
