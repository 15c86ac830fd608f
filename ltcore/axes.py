"""What the axes of a tensor are made of.

An axis is a chain of *atoms*: pieces of channels, space, time or of the features that one layer
made. Reshapes cut and join atoms, so a flatten shows as channels and space in one axis, and
attention heads that are split and merged again come out as what they were. Whatever cannot be
proved becomes unknown: exchange then refuses rather than guesses.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeAlias


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

SEAM = Atom("+", 0, 0)
"""Between the parts of an axis that were concatenated."""


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
        if last and atom.size and last.name == atom.name and last.stride == atom.stride * atom.size:
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
            if atom.size == 0:  # unknown, or a seam
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


def parts(axis: Axis) -> list[Axis]:
    """Return the parts of an axis that were concatenated; one for any other."""
    found: list[list[Atom]] = [[]]
    for atom in axis:
        if atom == SEAM:
            found.append([])
        else:
            found[-1].append(atom)
    return [tuple(part) for part in found]


def size_of(axis: Axis) -> int:
    """Return the size of an axis that is known."""
    return sum(math.prod(atom.size for atom in part) for part in parts(axis))


def letters(axis: Axis) -> set[str]:
    """Return the first letters of what an axis is made of."""
    return {atom.name[0] for atom in axis}


def mixes(axis: Axis) -> bool:
    """Whether channels and space, or more, are in one axis: its order depends on the framework."""
    return any({"C", "S"} <= letters(part) for part in parts(tidy(axis)))


def face_axes(labels: Labels) -> tuple[str, ...]:
    """Return the letters of an input's or output's axes."""
    return tuple(map(letter, labels))
