"""Canonical layout: what the axes of a parameter mean, whatever framework it came from.

Canonical is PyTorch's own layout: ``(out, in / groups, *kernel)`` in C order. A feature axis that
a flatten made out of channels and space is ordered channels first. Frameworks convert at their
rim; masks and weights go through the same permutations.
"""

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from ltcore.arrays import Array
from ltcore.errors import NotPortableError

AxisGroup: TypeAlias = tuple[tuple[str, int], ...]
"""The axes that were merged into one feature axis, in native order: ``(("C", 64), ("S0", 4))``."""

UNKNOWN_GROUP: AxisGroup = (("?", 0),)
"""The order of a feature axis could not be proven; exchange refuses it."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What ltcore knows of a layer kind: its axes and the roles that are pruned by default."""

    name: str
    out_axis: int = 0
    in_axis: int | None = None
    prunable: tuple[str, ...] = ()
    portable: bool = True


KINDS = {
    kind.name: kind
    for kind in (
        Kind("linear", 0, 1, ("weight",)),
        Kind("conv", 0, 1, ("weight",)),
        Kind("depthwise", 0, None, ("weight",)),
        Kind("conv_transpose", 1, 0, ("weight",)),
        Kind("embedding", 1, 0),
        Kind("batchnorm"),
        Kind("layernorm"),
        # A layer ltcore does not know: it works within its own framework only.
        Kind("raw", portable=False),
    )
}


def canonical_index(group: AxisGroup) -> Array:
    """Return ``index`` with ``canonical = native[index]`` along a feature axis.

    Raises:
        NotPortableError: the order of the axis is unknown.
    """
    if group == UNKNOWN_GROUP:
        raise NotPortableError("the order of a flattened feature axis could not be proven")
    native = np.arange(math.prod(size for _, size in group)).reshape([size for _, size in group])
    order = sorted(range(len(group)), key=lambda axis: group[axis][0])  # "C" < "S0" < "S1"
    return native.transpose(order).reshape(-1)


def reorder(array: Array, axis: int, group: AxisGroup | None, *, to_canonical: bool) -> Array:
    """Permute one axis of ``array`` between native and canonical feature order."""
    if group is None or group == UNKNOWN_GROUP:
        return array  # unknown order stays native: right within the framework, refused across
    index = canonical_index(group)
    return np.take(array, index if to_canonical else np.argsort(index), axis=axis)
