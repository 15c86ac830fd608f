"""Layers of Keras that hold several sites, each booked as a whole: attention, recurrent layers."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import keras
from keras import layers as kl

from ltcore.axes import Axis, Labels, named, unknown
from ltcore.tracing import Trace
from ltcore_keras._calls import as_images, channel_axis
from ltcore_keras._names import sublayers
from ltcore_keras._padding import padding_of
from ltcore_keras._symbolic import tensors
from ltcore_keras._visits import as_neighbours, as_tokens, cut, enter

Given = Mapping[str, Any]
"""The arguments of a call by name, masks left out."""

_CELLS = (kl.SimpleRNNCell, kl.LSTMCell, kl.GRUCell)


class Books(Protocol):
    """What the rules here need of `ltcore_keras._books.Books`."""

    trace: Trace

    def names(self, layer: Any) -> list[str]:
        """Return the sites that a layer itself holds."""
        ...

    def labels(self, tensor: Any) -> Labels:
        """Return the axes of a tensor."""
        ...

    def note_padding(self, name: str, padding: list[list[int]] | None) -> None:
        """Note the padding at one use of a site."""
        ...


def attention(books: Books, layer: Any, given: Given, out: Any) -> bool:
    """Projections of query, key and value meet, and what comes of it is projected."""
    projections = {inner.name: books.names(inner) for inner in sublayers(layer)}
    if not all(projections[word] for word in ("query", "key", "value", "attention_output")):
        return False  # the weights are another layer's
    key = given.get("key")
    entering = {
        "query": given["query"],
        "gate": given["query"],
        "key": given["value"] if key is None else key,
        "value": given["value"],
    }
    made: list[str] = []
    for word, tensor in entering.items():
        for name in projections.get(word, ()):
            enter(books.trace, name, [tensor], books.labels(tensor)[-1], tensor.shape[-1])
            made.append(name)
    result, *scores = tensors(out)
    query = books.labels(given["query"])
    (end,) = projections["attention_output"]
    _follow(books.trace, [end], made, ())
    sizes = result.shape[len(query) - 1 :]
    features = books.trace.features(end, math.prod(sizes))
    books.trace.put(result, [end], (*query[:-1], *cut(features, sizes)))
    for tensor in scores:
        letters = ["N", "F", *"T" * (len(tensor.shape) - 2)]
        books.trace.put(tensor, made, named(letters, tensor.shape))
    return True


def recurrent(books: Books, layer: Any, given: Given, out: Any) -> bool:
    """A layer around one cell, or a stack of them."""
    ends = _through_cells(books, layer, given)
    if ends is None:
        return False
    result, *states = tensors(out)
    _put_sequence(books, given, result, ends[-1])
    sizes = [len(keras.tree.flatten(cell.state_size)) for cell in _cells(layer)]
    whose = [names for names, count in zip(ends, sizes, strict=True) for _ in range(count)]
    for state, names in zip(states, whose, strict=False):
        books.trace.put(state, names, named("NF", state.shape))
    return True


def bidirectional(books: Books, layer: Any, given: Given, out: Any) -> bool:
    """Two layers read the same sequence."""
    both = [
        _through_cells(books, one, given) for one in (layer.forward_layer, layer.backward_layer)
    ]
    ends = [found[-1] for found in both if found is not None]
    if len(ends) < 2:
        return False
    either = ends[0] + ends[1]
    outputs = tensors(out)
    apart = 2 if layer.merge_mode is None else 0
    for tensor, names in zip(outputs[:apart], ends, strict=False):
        _put_sequence(books, given, tensor, names)
    for tensor in outputs[apart:]:
        _put_sequence(books, given, tensor, either)
    return True


def _through_cells(books: Books, layer: Any, given: Given) -> list[list[str]] | None:
    """Book the visit of the cells of a recurrent layer; return the sites of each, in order.

    None where somebody else wrote one of them, or has its weights.
    """
    cells = _cells(layer) if isinstance(layer, kl.RNN) else []
    if not cells or not all(isinstance(cell, _CELLS) and books.names(cell) for cell in cells):
        return None
    sequence, entered = given["sequences"], tensors(given)
    axis = books.labels(sequence)[-1] if sequence.shape[-1] != 1 else ()
    ends: list[list[str]] = []
    for cell in cells:
        names = books.names(cell)
        if ends:
            _follow(books.trace, names, ends[-1], ())
        else:
            for name in names:
                books.trace.visit(name, entered, axis)
        ends.append(names)
    return ends


def _cells(layer: Any) -> list[Any]:
    cell = layer.cell
    return list(cell.cells) if isinstance(cell, kl.StackedRNNCells) else [cell]


def _put_sequence(books: Books, given: Given, tensor: Any, names: Iterable[str]) -> None:
    """Book what a recurrent layer returns: features at each time, or at the last one."""
    before = books.labels(given["sequences"])
    rank = len(tensor.shape)
    books.trace.put(tensor, names, (*before[: rank - 1], *named("F", tensor.shape[-1:])))


def _follow(trace: Trace, sites: Iterable[str], preds: Iterable[str], axis: Axis) -> None:
    """Book that what leaves ``preds`` enters ``sites``, inside a layer of Keras."""
    between = object()
    trace.put(between, preds, ())
    for site in sites:
        trace.visit(site, [between], axis)


def separable(books: Books, layer: Any, given: Given, out: Any) -> bool:
    """A convolution of each channel, then one across channels."""
    names, (entered,), (result,) = books.names(layer), tensors(given), tensors(out)
    if len(names) != 2:
        return False
    channels, trace = channel_axis(layer), books.trace
    labels = trace.as_image(books.labels(entered), channels)
    axis = as_neighbours(trace, labels[channels])
    enter(trace, names[0], [entered], axis, entered.shape[channels])
    _follow(trace, names[1:], names[:1], ())
    books.note_padding(names[0], padding_of(layer, tuple(entered.shape)))
    books.note_padding(names[1], [[0, 0]] * len(layer.kernel_size))
    trace.put(result, names[1:], as_images(labels[0], tuple(result.shape), channels))
    return True


def reversible(books: Books, layer: Any, given: Given, out: Any) -> bool:
    """An embedding that also goes from features back to words."""
    names, (entered,), (result,) = books.names(layer), tensors(given), tensors(out)
    if not names:
        return False
    labels, trace = books.labels(entered), books.trace
    if not given.get("reverse"):
        trace.visit(names[0], [entered], None)
        features = trace.features(names[0], result.shape[-1])
        trace.put(result, names[:1], (*as_tokens(labels), features))
        return True
    if len(names) > 1:
        enter(trace, names[1], [entered], labels[-1], entered.shape[-1])
        trace.put(result, names[1:], (*labels[:-1], trace.features(names[1], result.shape[-1])))
        return True
    trace.passed([entered, layer.embeddings])
    labels = labels if trace.group_of(labels[-1]) is None else unknown(len(labels))
    trace.pin(labels[-1:])
    trace.put(result, names, (*labels[:-1], *named("F", result.shape[-1:])))
    return True


Rule = Callable[[Books, Any, Given, Any], bool]
"""Books a call; returns False where the layer is not as expected, and is a black box."""

COMPOSITES: Sequence[tuple[type, Rule]] = [
    (kl.MultiHeadAttention, attention),
    (kl.GroupQueryAttention, attention),
    (kl.Bidirectional, bidirectional),
    (kl.RNN, recurrent),
    (kl.SeparableConv1D, separable),
    (kl.SeparableConv2D, separable),
    *([(kl.ReversibleEmbedding, reversible)] if hasattr(kl, "ReversibleEmbedding") else []),
]
