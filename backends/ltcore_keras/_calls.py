"""What is known of one call of an operation or layer, and how its rule is found."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras

from ltcore.axes import Atom, Axis, Labels, is_unknown, letter, named, size_of, spatial, unknown
from ltcore.tracing import Trace


class Operand(NamedTuple):
    """A tensor that enters an operation.

    Attributes:
        labels: its axes; None for a constant.
        shape: its sizes.
    """

    labels: Labels | None
    shape: tuple[int, ...]

    @property
    def named(self) -> Labels:
        """Its axes, a constant's too: those follow an order of their own."""
        return named("F" * len(self.shape), self.shape) if self.labels is None else self.labels


@dataclass(frozen=True, slots=True)
class Call:
    """One result of an operation.

    Attributes:
        trace: the books.
        operation: the operation or layer, which has its options as attributes.
        operands: what enters, in order.
        args: the arguments as they were given.
        shape: of the result.
        index: the result's number among all.
    """

    trace: Trace
    operation: Any
    operands: Sequence[Operand]
    args: Sequence[Any]
    shape: tuple[int, ...]
    index: int = 0

    @property
    def flows(self) -> list[Operand]:
        """The operands that are no constants."""
        return [one for one in self.operands if one.labels is not None]

    @property
    def first(self) -> Labels:
        """The labels of the first operand."""
        return self.operands[0].named

    def axis(self, name: str = "axis") -> int | None:
        """Return the axis that an option of the operation names; None where it names not one."""
        named = axes(getattr(self.operation, name))
        return named[0] % len(self.first) if len(named) == 1 else None


Rule = Callable[[Call], Labels | None]


def after(call: Call, table: Mapping[str, Rule]) -> Labels:
    """Return the labels of the result of an operation without weights."""
    rule = rule_for(call.operation, table)
    labels = rule(call) if rule and call.flows else None
    if labels is None or len(labels) != len(call.shape):
        return unknown(len(call.shape))
    return tuple(
        fitted(call.trace, axis, size) for axis, size in zip(labels, call.shape, strict=True)
    )


def rule_for(operation: Any, table: Mapping[str, Rule]) -> Rule | None:
    """Return the rule for Keras's own class; a subclass with a ``call`` of its own has none."""
    if not runs_keras(operation):
        return None
    words = (cls.__name__ for cls in type(operation).__mro__ if of_keras(cls))
    return next((table[word] for word in words if word in table), None)


def of_keras(thing: Any) -> bool:
    """Whether a class or function is defined in Keras."""
    return str(thing.__module__).partition(".")[0] == "keras"


def runs_keras(layer: Any) -> bool:
    """Whether what a layer computes is written in Keras, and not by the user."""
    return of_keras(type(layer).call)


def fitted(trace: Trace, axis: Axis, size: int) -> Axis:
    """Return ``axis`` where an operation may have left ``size`` of it."""
    if size_of(axis) == size and not is_unknown(axis):
        return axis
    rest = trace.sliced(axis, size)
    if size == 1 and not is_unknown(axis):
        return (Atom(letter(axis), 1, 1),)
    return rest


def channel_axis(operation: Any) -> int:
    """Return the axis of the channels."""
    return 1 if getattr(operation, "data_format", None) == "channels_first" else -1


def as_images(batch: Axis, shape: Sequence[int], channels: int) -> Labels:
    """Return labels of new images of a full ``shape``."""
    space = spatial(len(shape) - 2)
    names = (*space, "C") if channels == -1 else ("C", *space)
    return (batch, *named(names, shape[1:]))


def axes(given: Any) -> list[int]:
    """Return one axis, several, or None for none as a list."""
    return [int(axis) for axis in keras.tree.flatten(given) if axis is not None]
