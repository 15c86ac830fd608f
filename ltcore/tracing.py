"""Where data flows between sites, and what its axes mean on the way.

A backend runs a model once and reports what it sees; this file keeps the books. It knows no
framework. An axis is a chain of *atoms*: pieces of channels, space, time or of the features that
one layer made. Reshapes cut and join atoms, so a flatten shows as channels and space in one axis,
and attention heads that are split and merged again come out as what they were. Whatever cannot
be proved becomes unknown: exchange then refuses rather than guesses.

Channels and space are the one pair whose order differs between frameworks. Every other order
(time, features, heads) is the same on both sides as long as both compute the same.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeAlias

from ltcore.layouts import KINDS, UNKNOWN_GROUP, AxisGroup
from ltcore.parameters import Site


class Atom(NamedTuple):
    """A piece of an axis.

    Attributes:
        name: ``N`` batch, ``C`` channels, ``S0`` ... space, ``T`` time, ``F`` features of no
            layer in particular, ``F:<site>`` the features that a site made, ``?`` unknown.
        stride: how far apart neighbours are along the whole that the piece was cut from.
        size: how many there are.
    """

    name: str
    stride: int
    size: int


Axis: TypeAlias = tuple[Atom, ...]
"""What one axis is made of, outermost first; empty for an axis of size 1 that means nothing."""

Labels: TypeAlias = tuple[Axis, ...]

UNKNOWN: Axis = (Atom("?", 0, 0),)


@dataclass(frozen=True, slots=True)
class Flow:
    """What is known of one tensor.

    Attributes:
        preds: the sites it came through last; ``@0`` for the model's first input, and so on.
        labels: its axes; empty where nothing is known.
        params: for a tensor that is made of parameters alone, the sites that own them.
    """

    preds: frozenset[str] = frozenset()
    labels: Labels = ()
    params: frozenset[str] = frozenset()


@dataclass(slots=True)
class Visit:
    """What is known of one site: where its input came from and what its features are."""

    preds: set[str] = field(default_factory=set)
    axis: Axis = ()


def named(names: Sequence[str], shape: Sequence[int]) -> Labels:
    """Return labels of whole axes: ``named(("N", "C"), (2, 3))``."""
    return tuple((Atom(name, 1, size),) for name, size in zip(names, shape, strict=True))


def unknown(rank: int) -> Labels:
    """Return labels of a tensor about which nothing is known."""
    return (UNKNOWN,) * rank


def spatial(rank: int) -> tuple[str, ...]:
    """Return ``("S0", "S1", ...)``."""
    return tuple(f"S{axis}" for axis in range(rank))


def is_unknown(axis: Axis) -> bool:
    """Whether the order of an axis could not be proved."""
    return any(atom.name == "?" for atom in axis)


def letter(axis: Axis) -> str:
    """Return ``N``, ``C``, ``S0``, ``T``, ``F`` or ``?``: what a whole axis is called."""
    if is_unknown(axis):
        return "?"
    real = tidy(axis) or axis
    name = real[0].name if len(real) == 1 else "F"
    return "F" if name.startswith("F") else name


def symbols(axes: Iterable[Axis]) -> set[str]:
    """Return the sites' own features (``F:<site>``) among ``axes``."""
    return {atom.name for axis in axes for atom in axis if atom.name.startswith("F:")}


def tidy(atoms: Sequence[Atom]) -> Axis:
    """Return ``atoms`` without those of size 1, neighbours that were cut from one whole joined."""
    joined: list[Atom] = []
    for atom in atoms:
        if atom.size == 1:
            continue
        last = joined[-1] if joined else None
        if last and last.name == atom.name and last.stride == atom.stride * atom.size:
            joined[-1] = Atom(atom.name, atom.stride, last.size * atom.size)
        else:
            joined.append(atom)
    return tuple(joined)


def reshaped(labels: Labels, old: Sequence[int], new: Sequence[int]) -> Labels:
    """Return the labels after a reshape from sizes ``old`` to sizes ``new``."""
    result: list[Axis] = []
    i = j = 0
    while i < len(old) or j < len(new):
        if i < len(old) and j < len(new) and old[i] == new[j]:
            result.append(labels[i])
            i, j = i + 1, j + 1
        elif j < len(new) and new[j] == 1:
            result.append(())
            j += 1
        elif i < len(old) and old[i] == 1:
            i += 1
        else:
            width, height = _block(old[i:], new[j:])
            atoms = [atom for axis in labels[i : i + width] for atom in axis]
            result += _regrouped(atoms, new[j : j + height])
            i, j = i + width, j + height
    return tuple(result)


def _block(old: Sequence[int], new: Sequence[int]) -> tuple[int, int]:
    """Return how many axes of each side make up the same number of elements."""
    width = height = 1
    while (left := math.prod(old[:width])) != (right := math.prod(new[:height])):
        if left < right and width < len(old):
            width += 1
        elif right < left and height < len(new):
            height += 1
        else:
            return len(old), len(new)
    return width, height


def _regrouped(atoms: Sequence[Atom], sizes: Sequence[int]) -> list[Axis]:
    """Deal ``atoms`` out to axes of ``sizes``, cutting where a boundary falls inside one."""
    rest = [atom for atom in atoms if atom.size != 1]
    result: list[Axis] = []
    for size in sizes:
        taken: list[Atom] = []
        while size > 1 and rest:
            atom = rest.pop(0)
            if atom == UNKNOWN[0]:
                break
            if size % atom.size == 0:
                taken.append(atom)
                size //= atom.size
            elif atom.size % size == 0:
                inner = atom.size // size
                taken.append(Atom(atom.name, atom.stride * inner, size))
                rest.insert(0, Atom(atom.name, atom.stride, inner))
                size = 1
            else:
                break
        if size > 1:
            return [UNKNOWN] * len(sizes)
        result.append(tidy(taken))
    return result if not rest else [UNKNOWN] * len(sizes)


class Trace:
    """The books of one run of a model."""

    def __init__(self) -> None:
        self.visits: dict[str, Visit] = {}
        # The tensor itself is kept: an id is only unique while its object lives.
        self._flows: dict[int, tuple[Any, Flow]] = {}
        self._whole: dict[str, int] = {}
        self._same_as: dict[str, str] = {}
        self._groups: dict[str, AxisGroup] = {}
        self._pinned: set[str] = set()

    def flow(self, tensor: Any) -> Flow:
        """Return what is known of ``tensor``."""
        return self._flows.get(id(tensor), (None, Flow()))[1]

    def put(self, tensor: Any, preds: Iterable[str], labels: Labels) -> None:
        """Remember what is known of ``tensor``."""
        self._flows[id(tensor)] = (tensor, Flow(frozenset(preds), labels))

    def put_input(
        self, tensor: Any, index: int, names: Sequence[str], shape: Sequence[int]
    ) -> None:
        """Remember that ``tensor`` is input ``index`` of the model, its axes called ``names``."""
        whole = named(names, shape)
        labels = tuple(
            self.features(f"@{index}", axis[0].size) if axis[0].name == "F" else axis
            for axis in whole
        )
        self.put(tensor, {f"@{index}"}, labels)

    def put_param(self, tensor: Any, sites: Iterable[str], labels: Labels) -> None:
        """Remember that ``tensor`` is made of the parameters of ``sites`` alone."""
        self._flows[id(tensor)] = (tensor, Flow(frozenset(), labels, frozenset(sites)))

    def preds(self, tensors: Iterable[Any]) -> frozenset[str]:
        """Return the sites that any of ``tensors`` came through last."""
        return frozenset().union(*(self.flow(tensor).preds for tensor in tensors))

    def passed(self, tensors: Sequence[Any]) -> tuple[frozenset[str], frozenset[str]]:
        """Return ``(preds, params)`` of what an operation makes of ``tensors``.

        Where data meets parameters outside a layer (a tied output projection, a bias of the
        user's own), their sites are visited, and what comes out came through them.
        """
        preds = self.preds(tensors)
        params = frozenset().union(*(self.flow(tensor).params for tensor in tensors))
        if not params or not preds:
            return preds, params
        for site in params:
            # A bias meets what its own weight made: that is no way back.
            self.visits.setdefault(site, Visit()).preds |= preds - params
            self.pin({(Atom(f"F:{site}", 1, 0),)})
        return params, frozenset()

    def visit(self, site: str, inputs: Sequence[Any], axis: Axis | None) -> None:
        """Record that data enters ``site``.

        Args:
            site: its name.
            inputs: tensors that enter.
            axis: what its input features are; None where they have no order to speak of (token
                numbers, channels that a norm treats apart from each other).
        """
        came = self.preds(inputs)
        for tensor in inputs:  # a parameter that takes the place of data (learned queries)
            params = self.flow(tensor).params
            came |= params
            self.pin((Atom(f"F:{name}", 1, 0),) for name in params)
        seen = self.visits.get(site)
        if seen is None:
            self.visits[site] = Visit(set(came), axis or ())
            return
        seen.preds |= came
        # A layer that is used twice must meet the same order each time.
        if axis is not None and seen.axis != axis:
            seen.axis = self.combined(seen.axis, axis)

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
        fixed = [axis for axis in (first, second) if _letters(axis) & {"C", "S"}]
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
        """Return the axis of parts that follow each other; a flattened part loses its order."""
        self.pin(axes)
        if any(_mixes(axis) or is_unknown(axis) for axis in axes):
            return UNKNOWN
        letters = {letter(axis) for axis in axes if tidy(axis)}
        name = letters.pop() if len(letters) == 1 else "F"
        return (Atom(name, 1, sum(math.prod(atom.size for atom in axis) for axis in axes)),)

    def sliced(self, axis: Axis, size: int) -> Axis:
        """Return the axis of which ``size`` neighbours are left."""
        self.pin((axis,))
        if size == 1:
            return ()
        return UNKNOWN if _mixes(axis) or is_unknown(axis) else (Atom(letter(axis), 1, size),)

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
        if not any(
            symbols((labels[axis],)) and not self._is_whole(labels[axis]) for axis in places
        ):
            return labels
        parts = [(atom, places[axis]) for axis in places for atom in labels[axis]]
        roots = {self._root(atom.name) for atom, _ in parts}
        parts.sort(key=lambda part: -part[0].stride)
        if len(roots) != 1 or not self._tiles([atom for atom, _ in parts]):
            self.pin(labels[axis] for axis in places)
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

    def placed(self, sites: Sequence[Site], outputs: Sequence[Any]) -> tuple[Site, ...]:
        """Return ``sites`` with what was found; ``outputs`` are what the model returns."""
        order = {site.name: position for position, site in enumerate(sites)}
        ends = self.preds(outputs)
        result = []
        for site in sites:
            preds = self.visits.get(site.name, Visit()).preds & order.keys()
            result.append(
                replace(
                    site,
                    preds=tuple(sorted(preds, key=order.__getitem__)),
                    in_group=self._in_group(site),
                    out_group=self.out_group(site.name),
                    is_output=site.name in ends,
                )
            )
        return tuple(result)

    def vocabulary(self, index: int, sites: Sequence[Site]) -> int | None:
        """Return how many tokens input ``index`` may name; None where it enters no embedding."""
        rows = [
            role.shape[0]
            for site in sites
            if site.kind == "embedding" and f"@{index}" in self.visits.get(site.name, Visit()).preds
            if (role := site.role("weight"))
        ]
        return min(rows, default=None)

    def group_of(self, axis: Axis) -> AxisGroup | None:
        """Return the native order of an axis; None where it is the same everywhere."""
        if is_unknown(axis):
            return UNKNOWN_GROUP
        axis = tidy(axis)
        ordered = [n for n in symbols((axis,)) if self._symbol_group(n) is not None]
        if ordered:
            return self._symbol_group(ordered[0]) if self._is_whole(axis) else UNKNOWN_GROUP
        if not _mixes(axis):
            return None
        group = tuple((atom.name, atom.size) for atom in axis)
        # Pieces of one axis that others part have no order that both frameworks would agree on.
        whole = len({name for name, _ in group}) == len(group)
        return group if whole and _letters(axis) == {"C", "S"} else UNKNOWN_GROUP

    def _in_group(self, site: Site) -> AxisGroup | None:
        group = self.group_of(self.visits.get(site.name, Visit()).axis)
        return group if KINDS[site.kind].ins or group is None else UNKNOWN_GROUP

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
        elif _mixes(axis):
            self._settle(name, tuple((atom.name, atom.size) for atom in tidy(axis)))
        else:
            self.pin(((Atom(name, 1, 0),), axis))

    def _settle(self, name: str, group: AxisGroup) -> None:
        root = self._root(name)
        real = tuple(part for part in group if part[1] != 1)
        if {place[0] for place, _ in real} != {"C", "S"}:
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


def _letters(axis: Axis) -> set[str]:
    return {atom.name[0] for atom in axis}


def _mixes(axis: Axis) -> bool:
    """Whether channels and space, or more, are in one axis: its order depends on the framework."""
    return {"C", "S"} <= _letters(tidy(axis))


def face_axes(labels: Labels) -> tuple[str, ...]:
    """Return the letters of an input's or output's axes."""
    return tuple(map(letter, labels))
