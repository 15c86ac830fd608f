"""What a layer is to the layer around it: a projection of an attention, a cell read backwards."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from keras import layers as kl


class Place(NamedTuple):
    """What a layer cannot know of itself.

    Attributes:
        part: ``q``, ``k``, ``v`` or ``o`` in an attention.
        heads: the attention's heads, of that part.
        backwards: its sequences are read from their end.
        reason: why the layer around it makes it compute something else.
    """

    part: str = ""
    heads: int = 0
    backwards: bool = False
    reason: str = ""


NOWHERE = Place()


def places_in(layer: Any, inner: Iterable[Any]) -> dict[int, Place]:
    """Return ``{id of a layer: its place}`` for the layers that ``layer`` uses in a way of its own.

    Args:
        layer: a layer.
        inner: all layers inside it.
    """
    if isinstance(layer, kl.MultiHeadAttention):
        heads = (layer.num_heads,) * 4
    elif isinstance(layer, kl.GroupQueryAttention):
        few = layer.num_key_value_heads
        heads = (layer.num_query_heads, few, few, layer.num_query_heads)
    elif isinstance(layer, kl.RNN):
        reason = "a stateful layer starts where the last batch ended" if layer.stateful else ""
        place = Place(backwards=bool(layer.go_backwards), reason=reason)
        return {id(one): place for one in inner}
    elif isinstance(layer, kl.SpectralNormalization):
        place = Place(reason="SpectralNormalization rewrites its kernel in training")
        return {id(one): place for one in inner}
    else:
        return {}
    named = zip(("query", "key", "value", "attention_output"), "qkvo", heads, strict=True)
    places = {word: Place(part, number) for word, part, number in named}
    return {id(one): places[one.name] for one in inner if one.name in places}
