"""What JAX's operations do to the meaning of axes; what is in no table makes it unknown."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from ltcore.axes import (
    UNKNOWN,
    Atom,
    Axis,
    Labels,
    is_unknown,
    letter,
    reshaped,
    size_of,
    tidy,
    unknown,
)
from ltcore.tracing import Trace
from ltcore_jax._visits import anonymous


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of a jaxpr.

    Attributes:
        trace: the books.
        equation: JAX's own account of it.
    """

    trace: Trace
    equation: Any

    @property
    def name(self) -> str:
        """What JAX calls it."""
        return str(self.equation.primitive.name)

    @property
    def params(self) -> dict[str, Any]:
        """What is fixed about it."""
        found: dict[str, Any] = self.equation.params
        return found

    @property
    def main(self) -> Any:
        """The first operand."""
        return self.equation.invars[0]

    def knows(self, var: Any) -> bool:
        """Whether ``var`` is made of data or parameters; else it is a constant."""
        flow = self.trace.flow(var)
        return bool(flow.preds or flow.params)

    def labels(self, var: Any) -> Labels:
        """Return what is known of an operand's axes; a constant's say nothing."""
        rank = len(var.aval.shape)
        if not self.knows(var):
            return ((),) * rank
        labels = self.trace.flow(var).labels
        return labels if len(labels) == rank else unknown(rank)

    def factor(self, var: Any) -> Labels:
        """Return labels of an operand that is not broadcast: a constant's axes have sizes."""
        return self.labels(var) if self.knows(var) else anonymous(var.aval.shape)

    def operands(self) -> Iterator[Any]:
        """Yield what is no constant, data before parameters, whose axes have poorer names."""
        known = [var for var in self.equation.invars if self.knows(var)]
        yield from sorted(known, key=lambda var: not self.trace.flow(var).preds)

    def resized(self, axis: Axis, old: int, new: int) -> Axis:
        """Return an axis of which some neighbours are left, or that was extended at its ends."""
        return axis if old == new else self.trace.sliced(axis, new)


Rule: TypeAlias = Callable[[Operation, Any, int], Labels]
"""``rule(operation, result, its position among the results)``."""


def labels_after(operation: Operation, position: int) -> Labels:
    """Return what the axes of one of an operation's results mean."""
    result = operation.equation.outvars[position]
    shape = result.aval.shape
    rule = _RULES.get(operation.name)
    labels = unknown(len(shape)) if rule is None else rule(operation, result, position)
    if len(labels) != len(shape):
        return unknown(len(shape))
    return tuple(
        axis if is_unknown(axis) or not tidy(axis) or size_of(axis) == size else UNKNOWN
        for axis, size in zip(labels, shape, strict=True)
    )


def _without(labels: Labels, gone: Sequence[int]) -> Labels:
    return tuple(label for axis, label in enumerate(labels) if axis not in gone)


def _elementwise(operation: Operation, result: Any, _: int) -> Labels:
    rank = len(result.aval.shape)
    mine = [
        (operation.labels(one), one.aval.shape)
        for one in operation.operands()
        if len(one.aval.shape) == rank
    ]
    return operation.trace.broadcast(mine, rank)


def _reshape(operation: Operation, result: Any, _: int) -> Labels:
    main = operation.main
    if operation.params.get("dimensions") is not None:
        return unknown(len(result.aval.shape))
    return reshaped(operation.labels(main), main.aval.shape, result.aval.shape)


def _transpose(operation: Operation, _result: Any, _: int) -> Labels:
    labels = operation.labels(operation.main)
    return tuple(labels[axis] for axis in operation.params["permutation"])


def _stretch(operation: Operation, result: Any, _: int) -> Labels:
    """Axes of size 1 are stretched, and new ones put in; nobody can say what these are."""
    labels: list[Axis] = [()] * len(result.aval.shape)
    known, shape = operation.labels(operation.main), operation.main.aval.shape
    for axis, target in enumerate(operation.params["broadcast_dimensions"]):
        if shape[axis] == result.aval.shape[target]:
            labels[target] = known[axis]
    return tuple(labels)


def _squeeze(operation: Operation, _result: Any, _: int) -> Labels:
    return _without(operation.labels(operation.main), operation.params["dimensions"])


def _reduce(operation: Operation, _result: Any, _: int) -> Labels:
    return _without(operation.labels(operation.main), operation.params["axes"])


def _find(operation: Operation, result: Any, position: int) -> Labels:
    """Places along an axis are told by number: their order counts."""
    labels = operation.labels(operation.main)
    operation.trace.pin(labels[axis] for axis in operation.params["axes"])
    return _reduce(operation, result, position)


def _resize(operation: Operation, result: Any, _: int) -> Labels:
    """Neighbours along some axes are left, or ends are put on."""
    main = operation.main
    sizes = zip(operation.labels(main), main.aval.shape, result.aval.shape, strict=True)
    return tuple(operation.resized(axis, old, new) for axis, old, new in sizes)


def _pool(operation: Operation, result: Any, position: int) -> Labels:
    """An image becomes a smaller one, by windows along its axes of space."""
    main = operation.main
    windows = operation.params["window_dimensions"]
    labels = operation.labels(main)
    if len(labels) > 2 and windows[0] == windows[-1] == 1:
        labels = operation.trace.as_image(labels, -1)
    return tuple(
        axis
        if window == 1 and old == new
        else (Atom(letter(axis), 1, new),)
        if letter(axis)[0] in "ST" and old != 1
        else operation.resized(axis, old, new)
        if window == 1
        else UNKNOWN
        for axis, window, old, new in zip(
            labels, windows, main.aval.shape, result.aval.shape, strict=True
        )
    )


def _concatenate(operation: Operation, result: Any, _: int) -> Labels:
    axis, rank = operation.params["dimension"], len(result.aval.shape)
    parts = operation.equation.invars
    along = operation.trace.concatenated([operation.factor(part)[axis] for part in parts])
    rest = [
        (_placed(operation.labels(one), axis, ()), _placed(one.aval.shape, axis, 1))
        for one in operation.operands()
    ]
    return _placed(operation.trace.broadcast(rest, rank), axis, along)


def _placed(items: Sequence[Any], axis: int, item: Any) -> tuple[Any, ...]:
    return (*items[:axis], item, *items[axis + 1 :])


def _accumulate(operation: Operation, _result: Any, _: int) -> Labels:
    """What comes out depends on the order along one axis."""
    labels, axis = operation.labels(operation.main), operation.params["axis"]
    return _placed(labels, axis, _ordered(operation, labels[axis]))


def _turn(operation: Operation, _result: Any, _: int) -> Labels:
    """Places along some axes are in another order."""
    labels = operation.labels(operation.main)
    operation.trace.pin(labels[axis] for axis in operation.params["dimensions"])
    return tuple(
        label
        if axis not in operation.params["dimensions"] or letter(label)[0] in "NST"
        else UNKNOWN
        for axis, label in enumerate(labels)
    )


def _ordered(operation: Operation, axis: Axis) -> Axis:
    """Return an axis whose order counts: one that a flatten mixed has no order of its own."""
    operation.trace.pin((axis,))
    return UNKNOWN if operation.trace.group_of(axis) is not None else axis


def _dot(operation: Operation, _result: Any, _: int) -> Labels:
    first, second = operation.equation.invars[:2]
    left, right = operation.factor(first), operation.factor(second)
    (summed, with_), (batch, along) = operation.params["dimension_numbers"]
    operation.trace.pin([*(left[axis] for axis in summed), *(right[axis] for axis in with_)])
    pairs = zip(batch, along, strict=True)
    shared = [_met(operation, left[one], right[other]) for one, other in pairs]
    return (
        *shared,
        *_without(left, [*summed, *batch]),
        *_without(right, [*with_, *along]),
    )


def _met(operation: Operation, first: Axis, second: Axis) -> Axis:
    """Return the axis of two that go together place by place; the data's name is the richer."""
    operation.trace.pin((first, second))
    return first if tidy(first) and letter(first) != "F" else second


_ELEMENTWISE = (
    "abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2", "atanh",
    "cbrt", "ceil", "clamp", "convert_element_type", "copy", "cos", "cosh", "digamma",
    "div", "eq", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt", "imag",
    "integer_pow", "is_finite", "le", "lgamma", "log", "log1p", "logistic", "lt", "max", "min",
    "mul", "ne", "neg", "nextafter", "not", "or", "pow", "real",
    "reduce_precision", "rem", "round", "rsqrt", "select_n", "shift_left", "sign", "sin", "sinh",
    "sqrt", "square", "stop_gradient", "sub", "tan", "tanh", "xor",
)  # fmt: skip

_RULES: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(
        ("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or"),
        _reduce,
    ),
    **dict.fromkeys(("argmax", "argmin"), _find),
    **dict.fromkeys(("slice", "dynamic_slice", "pad", "split"), _resize),
    **dict.fromkeys(
        ("reduce_window_sum", "reduce_window_max", "reduce_window_min", "reduce_window"), _pool
    ),
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"), _accumulate),
    "reshape": _reshape,
    "transpose": _transpose,
    "broadcast_in_dim": _stretch,
    "squeeze": _squeeze,
    "concatenate": _concatenate,
    "rev": _turn,
    "dot_general": _dot,
}
