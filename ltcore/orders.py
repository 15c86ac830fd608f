"""In which order features lie, followed through the operations of a model.

Channels and space are the one pair whose order differs between frameworks. Features that a layer
made get an order where they are reshaped to an image, or are added to a flattened one; every other
order (time, heads, features among themselves) is the same on both sides.
"""

import math
from collections.abc import Iterable, Sequence

from ltcore import layouts
from ltcore.axes import (
    SEAM,
    UNKNOWN,
    Atom,
    Axis,
    Labels,
    is_unknown,
    letter,
    letters,
    mixes,
    parts,
    size_of,
    symbols,
    tidy,
)
from ltcore.layouts import UNKNOWN_GROUP, AxisGroup


class Orders:
    """What is known of the features of every site: who shares an order with whom, and which."""

    def __init__(self) -> None:
        self._whole: dict[str, int] = {}
        self._same_as: dict[str, str] = {}
        self._groups: dict[str, AxisGroup] = {}
        self._pinned: set[str] = set()

    def features(self, site: str, size: int) -> Axis:
        """Return the axis of the features that ``site`` makes, ``size`` of them."""
        self._whole[f"F:{site}"] = size
        return (Atom(f"F:{site}", 1, size),)

    def combined(self, first: Axis, second: Axis) -> Axis:
        """Return the axis of two operands that go together element by element."""
        if first == second or not second:
            return first
        if not first:
            return second
        if is_unknown(first) or is_unknown(second):
            return UNKNOWN
        for one, other in ((first, second), (second, first)):
            if self._is_whole(one):
                self._assign(one[0].name, other)
                return other
        self.pin((first, second))
        fixed = [axis for axis in (first, second) if letters(axis) & {"C", "S"}]
        if len(fixed) == 2:  # channels against space, or two orders of a flatten
            return UNKNOWN
        return fixed[0] if fixed else first

    def broadcast(self, operands: Sequence[tuple[Labels, Sequence[int]]], rank: int) -> Labels:
        """Return the labels of operands, given with their sizes, that go element by element."""
        result = []
        for axis in range(-rank, 0):
            met = [
                (labels[axis], sizes[axis]) for labels, sizes in operands if len(labels) >= -axis
            ]
            wide = [label for label, size in met if size != 1]
            together: Axis = ()
            for label in wide or [label for label, _ in met[:1]]:
                together = self.combined(together, label)
            result.append(together)
        return tuple(result)

    def matmul(self, first: Labels, second: Labels) -> Labels:
        """Return the labels of ``(..., m, k) @ (..., k, n)``."""
        self.pin((*first[:-2], first[-1], *second[:-1]))
        rank = max(len(first), len(second)) - 2
        batch = []
        for axis in range(-rank - 2, -2):
            theirs = second[axis] if len(second) >= -axis else ()
            batch.append(theirs or first[axis])
        return (*batch, first[-2], second[-1])

    def attention(self, query: Labels, key: Labels, value: Labels) -> Labels:
        """Return the labels of ``softmax(query @ key.T) @ value``, heads among the batch axes."""
        return self.matmul(self.matmul(query, (*key[:-2], key[-1], key[-2])), value)

    def einsum(self, equation: str, operands: Sequence[Labels]) -> Labels | None:
        """Return the labels of an einsum without ellipsis; None where it has one."""
        left, _, right = equation.replace(" ", "").partition("->")
        terms = left.split(",")
        if "." in equation or [len(term) for term in terms] != [len(one) for one in operands]:
            return None
        found: dict[str, Axis] = {}
        for term, labels in zip(terms, operands, strict=True):
            for index, axis in zip(term, labels, strict=True):
                if index in found:
                    self.pin((axis, found[index]))
                if index not in found or tidy(axis):
                    found[index] = axis
        return tuple(found[index] for index in right)

    def concatenated(self, axes: Sequence[Axis]) -> Axis:
        """Return the axis of parts that follow each other."""
        self.pin(axes)
        if any(is_unknown(axis) for axis in axes):
            return UNKNOWN
        if any(mixes(axis) for axis in axes):
            return tuple(atom for axis in axes for atom in (SEAM, *axis))[1:]
        names = {letter(axis) for axis in axes if tidy(axis)}
        name = names.pop() if len(names) == 1 else "F"
        return (Atom(name, 1, sum(map(size_of, axes))),)

    def sliced(self, axis: Axis, size: int) -> Axis:
        """Return the axis of which ``size`` neighbours are left."""
        self.pin((axis,))
        if size == 1:
            return ()
        return UNKNOWN if mixes(axis) or is_unknown(axis) else (Atom(letter(axis), 1, size),)

    def pin(self, axes: Iterable[Axis]) -> None:
        """Note that the features among ``axes`` meet others whose order is the same everywhere."""
        self._pinned |= {self._root(name) for name in symbols(axes)}

    def as_image(self, labels: Labels, channel_axis: int) -> Labels:
        """Return the labels where a layer takes its input for an image, channels at an axis.

        A dense layer's features that were reshaped to channels and space take their order from
        this use.
        """
        channel_axis %= len(labels)
        others = [axis for axis in range(1, len(labels)) if axis != channel_axis]
        places = {channel_axis: "C"} | {axis: f"S{i}" for i, axis in enumerate(others)}
        cut = [
            axis for axis in places if symbols((labels[axis],)) and not self._is_whole(labels[axis])
        ]
        if not cut:
            return labels
        parts = [(atom, places[axis]) for axis in places for atom in labels[axis]]
        roots = {self._root(atom.name) for atom, _ in parts}
        parts.sort(key=lambda part: -part[0].stride)
        if len(roots) != 1 or not self._tiles([atom for atom, _ in parts]):
            self.pin(labels[axis] for axis in places)
            if len(cut) == 1:
                return labels  # pieces along one axis alone: no order between axes to prove
            return tuple(UNKNOWN if axis in places else labels[axis] for axis in range(len(labels)))
        self._settle(parts[0][0].name, tuple((place, atom.size) for atom, place in parts))
        sizes = [math.prod(atom.size for atom in axis) for axis in labels]
        return tuple(
            (Atom(places[axis], 1, sizes[axis]),) if axis in places else labels[axis]
            for axis in range(len(labels))
        )

    def out_group(self, site: str) -> AxisGroup | None:
        """Return the native order of the features that ``site`` makes; None where it is shared."""
        return self._symbol_group(f"F:{site}")

    def group_of(self, axis: Axis) -> AxisGroup | None:
        """Return the native order of an axis; None where it is the same everywhere."""
        if is_unknown(axis):
            return UNKNOWN_GROUP
        axis = tidy(axis)
        ordered = [n for n in symbols((axis,)) if self._symbol_group(n) is not None]
        if ordered:
            return self._symbol_group(ordered[0]) if self._is_whole(axis) else UNKNOWN_GROUP
        if not mixes(axis):
            return None
        found: list[tuple[str, int]] = []
        for part in parts(axis):
            if mixes(part) and not _is_plain(part):
                return UNKNOWN_GROUP
            order = [(a.name, a.size) for a in part] if mixes(part) else [("F", size_of(part))]
            found += [layouts.SEAM, *order]
        return tuple(found[1:])

    def _symbol_group(self, name: str) -> AxisGroup | None:
        root = self._root(name)
        group = self._groups.get(root)
        return UNKNOWN_GROUP if group is not None and root in self._pinned else group

    def _is_whole(self, axis: Axis) -> bool:
        """Whether the axis is all the features of one site, in their order."""
        if len(axis) != 1 or not axis[0].name.startswith("F:"):
            return False
        return axis[0].stride == 1 and axis[0].size == self._whole.get(axis[0].name)

    def _tiles(self, atoms: Sequence[Atom]) -> bool:
        """Whether ``atoms``, by falling stride, are all the features of one site."""
        if not atoms[0].name.startswith("F:"):
            return False
        strides = [math.prod(a.size for a in atoms[i + 1 :]) for i in range(len(atoms))]
        whole = math.prod(atom.size for atom in atoms)
        return strides == [a.stride for a in atoms] and whole == self._whole.get(atoms[0].name)

    def _assign(self, name: str, axis: Axis) -> None:
        """Features ``name`` lie as ``axis`` does."""
        if self._is_whole(axis):
            self._unite(name, axis[0].name)
        elif mixes(axis):
            self._settle(name, self.group_of(axis) or UNKNOWN_GROUP)
        else:
            self.pin(((Atom(name, 1, 0),), axis))

    def _settle(self, name: str, group: AxisGroup) -> None:
        root = self._root(name)
        real = tuple(part for part in group if part[1] != 1)
        if group == UNKNOWN_GROUP or layouts.SEAM in group:
            self._groups[root] = UNKNOWN_GROUP
        elif {place[0] for place, _ in real} != {"C", "S"}:
            self._pinned.add(root)  # channels alone, or space alone
        elif self._groups.setdefault(root, real) != real:
            self._groups[root] = UNKNOWN_GROUP

    def _unite(self, first: str, second: str) -> None:
        one, other = self._root(first), self._root(second)
        if one == other:
            return
        self._same_as[other] = one
        if other in self._pinned:
            self._pinned.add(one)
        group = self._groups.pop(other, None)
        if group is not None and self._groups.setdefault(one, group) != group:
            self._groups[one] = UNKNOWN_GROUP

    def _root(self, name: str) -> str:
        while name in self._same_as:
            name = self._same_as[name]
        return name


def _is_plain(part: Axis) -> bool:
    """Whether a mixture is of whole channels and whole axes of space, each once."""
    names = [atom.name for atom in part]
    return (
        letters(part) == {"C", "S"}
        and len(set(names)) == len(names)
        and all(atom.stride == 1 for atom in part)
    )
