"""Canonical layout: what the axes of a parameter mean, whatever framework it came from.

Canonical is PyTorch's own layout: ``(out, in / groups, *kernel)`` in C order. A feature axis that
a flatten made out of channels and space is ordered channels first. Frameworks convert at their
rim; masks and weights go through the same permutations.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from ltcore.arrays import Array
from ltcore.errors import NotPortableError

AxisGroup: TypeAlias = tuple[tuple[str, int], ...]
"""The axes that were merged into one feature axis, in native order: ``(("C", 64), ("S0", 4))``.

Features of several origins that follow each other have a ``SEAM`` between them.
"""

SEAM: tuple[str, int] = ("+", 0)

UNKNOWN_GROUP: AxisGroup = (("?", 0),)
"""The order of a feature axis could not be proven; exchange refuses it."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What ltcore knows of a layer kind.

    Attributes:
        name: the kind.
        prunable: the roles that are pruned by default.
        ins: ``{role: axis along which the input features lie}``.
        outs: ``{role: axis along which the output features lie}``.
        portable: whether it has a canonical layout that other frameworks share.
    """

    name: str
    prunable: tuple[str, ...] = ()
    ins: Mapping[str, int] = field(default_factory=dict)
    outs: Mapping[str, int] = field(default_factory=dict)
    portable: bool = True


_KERNEL_OUT = {"weight": 0, "bias": 0}
_AFFINE = {"weight": 0, "bias": 0}
CONVOLUTIONS = ("conv", "depthwise", "conv_transpose")

RECURRENT = ("rnn", "lstm", "gru")
"""Gates lie along axis 0 of every role: i, f, g, o in an LSTM; r, z, n in a GRU."""

KINDS = {
    kind.name: kind
    for kind in (
        Kind("linear", ("weight",), {"weight": 1}, _KERNEL_OUT),
        Kind("conv", ("weight",), {"weight": 1}, _KERNEL_OUT),
        Kind("depthwise", ("weight",), {}, _KERNEL_OUT),
        Kind("conv_transpose", ("weight",), {"weight": 0}, {"weight": 1, "bias": 0}),
        Kind("embedding", (), {}, {"weight": 1}),
        # Norms and PReLU: the features that enter are those that leave.
        Kind("batchnorm", (), {**_AFFINE, "running_mean": 0, "running_var": 0}),
        Kind("layernorm", (), _AFFINE),
        Kind("groupnorm", (), _AFFINE),
        Kind("rmsnorm", (), {"weight": 0}),
        Kind("prelu", (), {"weight": 0}),
        *(Kind(name, ("w_ih", "w_hh"), {"w_ih": 1}) for name in RECURRENT),
        # A layer ltcore does not know: it works within its own framework only.
        Kind("raw", portable=False),
    )
}


def input_axis(kind: str, role: str) -> int | None:
    """Return the axis of a kernel over which its layer sums; None if there is none."""
    if kind in RECURRENT:
        return 1 if role in KINDS[kind].prunable else None
    return KINDS[kind].ins.get(role) if role in KINDS[kind].prunable else None


def output_axis(kind: str, role: str) -> int | None:
    """Return the axis along which output features lie, a recurrent kernel's gates included."""
    if kind in RECURRENT:
        return 0 if role in KINDS[kind].prunable else None
    return KINDS[kind].outs.get(role)


def segments(group: AxisGroup) -> list[AxisGroup]:
    """Return the parts of a group that follow each other."""
    found: list[list[tuple[str, int]]] = [[]]
    for axis in group:
        if axis == SEAM:
            found.append([])
        else:
            found[-1].append(axis)
    return [tuple(part) for part in found]


def group_size(group: AxisGroup) -> int:
    """Return how many features a group has."""
    return sum(math.prod(size for _, size in part) for part in segments(group))


def canonical_index(group: AxisGroup) -> Array:
    """Return ``index`` with ``canonical = native[index]`` along a feature axis.

    Raises:
        NotPortableError: the order of the axis is unknown.
    """
    if group == UNKNOWN_GROUP:
        raise NotPortableError("the order of a flattened feature axis could not be proven")
    found, start = [], 0
    for part in segments(group):
        sizes = [size for _, size in part]
        native = start + np.arange(math.prod(sizes)).reshape(sizes)
        order = sorted(range(len(part)), key=lambda axis: part[axis][0])  # "C" < "S0" < "S1"
        found.append(native.transpose(order).reshape(-1))
        start += native.size
    return np.concatenate(found)


def reorder(array: Array, axis: int, group: AxisGroup | None, *, to_canonical: bool) -> Array:
    """Permute one axis of ``array`` between native and canonical feature order."""
    if group is None or group == UNKNOWN_GROUP:
        return array  # unknown order stays native: right within the framework, refused across
    index = canonical_index(group)
    return np.take(array, index if to_canonical else np.argsort(index), axis=axis)
