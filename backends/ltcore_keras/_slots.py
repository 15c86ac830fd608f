"""Where an array of a site lives: a layer's variable, or one row of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ltcore.arrays import Array, own
from ltcore.errors import InvalidValueError
from ltcore_keras._layouts import Layout, Shape, canonical_shape, to_numpy


@dataclass(frozen=True, slots=True)
class Slot:
    """Where an array lives, and how it is laid out there.

    Attributes:
        layer: the layer that has it.
        variable: the variable that holds it.
        layout: how its axes lie.
        row: the array is this row of the variable; None where it is all of it.
        constant: nothing draws or trains it.
    """

    layer: Any
    variable: Any
    layout: Layout
    row: int | None = None
    constant: bool = False

    @property
    def native_shape(self) -> Shape:
        """The shape of the array as Keras has it."""
        shape = tuple(self.variable.shape)
        return shape if self.row is None else shape[1:]

    @property
    def shape(self) -> Shape:
        """The canonical shape."""
        return canonical_shape(self.layout, self.native_shape)


def to_canonical(tensor: Any, slot: Slot) -> Array:
    """Return an owned, C-contiguous copy in canonical axes.

    Args:
        tensor: the slot's variable, or a tensor of its shape (a gradient, a snapshot).
        slot: says which part of it, and how that is laid out.
    """
    array = to_numpy(tensor)
    return own(slot.layout.to_canonical(array if slot.row is None else array[slot.row]))


def to_native(array: Array, slot: Slot, name: str) -> Array:
    """Return ``array`` in the axes of its slot.

    Raises:
        InvalidValueError: it has another canonical shape; names the parameter and both shapes.
    """
    if array.shape != slot.shape:
        raise InvalidValueError(
            f"{name!r} has canonical shape {slot.shape}; an array of shape {array.shape} was given"
        )
    native = slot.layout.to_native(array, slot.native_shape)
    return np.ascontiguousarray(native).reshape(slot.native_shape)


def whole_variables(
    arrays: Mapping[str, Array], slots: Mapping[str, Slot], rest: Callable[[Any], Array]
) -> list[tuple[Any, Array]]:
    """Return ``(variable, native array)`` for every variable that ``arrays`` touch.

    Args:
        arrays: canonical arrays.
        slots: where they live.
        rest: returns a new array for a variable, of which only rows are given.

    Raises:
        InvalidValueError: an array has the wrong shape.
    """
    found: dict[int, tuple[Any, Array]] = {}
    for name, array in arrays.items():
        slot = slots[name]
        native = to_native(array, slot, name)
        if slot.row is None:
            found[id(slot.variable)] = slot.variable, native
        else:
            if id(slot.variable) not in found:
                found[id(slot.variable)] = slot.variable, rest(slot.variable)
            found[id(slot.variable)][1][slot.row] = native
    return list(found.values())
