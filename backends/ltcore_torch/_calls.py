"""A tensor operation as the trace sees it: its arguments by name, and what enters it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ltcore.axes import Atom, Axis, Labels, unknown
from ltcore.tracing import Trace
from ltcore_torch._layouts import tensors_in


def anonymous(shape: Sequence[int]) -> Labels:
    """Return labels of an array whose axes are nobody's in particular."""
    return tuple((Atom("F", 1, size),) if size != 1 else () for size in shape)


def without(labels: Labels, gone: set[int]) -> Labels:
    """Return labels of what is left when axes are gone."""
    return tuple(label for axis, label in enumerate(labels) if axis not in gone)


def with_axis(labels: Labels, axis: int, label: Axis) -> Labels:
    """Return labels of which one is another."""
    return (*labels[:axis], label, *labels[axis + 1 :])


@dataclass(frozen=True)
class Call:
    """One operation, after it ran.

    Attributes:
        trace: the books.
        name: as torch's own library calls it, without the ``_`` of one that works in place.
        args: the arguments by name.
        tensors: those among them.
        written: the tensors that it wrote to.
        pointwise: whether torch says that it works element by element.
    """

    trace: Trace
    name: str
    args: dict[str, Any]
    tensors: list[torch.Tensor]
    written: list[torch.Tensor]
    pointwise: bool

    @classmethod
    def of(cls, trace: Trace, function: Any, args: Sequence[Any], kwargs: Any) -> "Call":
        """Return the call of a torch operator."""
        schema = function._schema
        named = {arg.name: arg.default_value for arg in schema.arguments}
        named |= dict(zip(named, args, strict=False)) | (kwargs or {})
        writes = [a.name for a in schema.arguments if a.alias_info and a.alias_info.is_write]
        return cls(
            trace,
            schema.name.partition("::")[2].rstrip("_"),
            named,
            tensors_in(list(named.values())),
            tensors_in([named[name] for name in writes]),
            torch.Tag.pointwise in function.tags,
        )

    @property
    def main(self) -> torch.Tensor:
        """The first tensor among the arguments."""
        return self.tensors[0]

    def knows(self, tensor: torch.Tensor) -> bool:
        """Whether ``tensor`` is made of data or parameters; else it is a constant."""
        flow = self.trace.flow(tensor)
        return bool(flow.preds or flow.params)

    def labels(self, tensor: torch.Tensor) -> Labels:
        """Return what is known of a tensor's axes; a constant's say nothing."""
        if not self.knows(tensor):
            return ((),) * tensor.dim()
        labels = self.trace.flow(tensor).labels
        return labels if len(labels) == tensor.dim() else unknown(tensor.dim())

    def factor(self, tensor: torch.Tensor) -> Labels:
        """Return labels of a tensor that is not broadcast: a constant's axes have their sizes."""
        return self.labels(tensor) if self.knows(tensor) else anonymous(tensor.shape)

    def operands(self) -> Iterator[torch.Tensor]:
        """Yield what is no constant, data before parameters, whose axes have poorer names."""
        known = [tensor for tensor in self.tensors if self.knows(tensor)]
        yield from sorted(known, key=lambda tensor: not self.trace.flow(tensor).preds)

    def together(self, rank: int, others: Sequence[tuple[Labels, Sequence[int]]] = ()) -> Labels:
        """Return the labels of a result of ``rank`` that pairs its operands element by element."""
        mine = [(self.labels(one), one.shape) for one in self.operands() if one.dim() <= rank]
        return self.trace.broadcast([*others, *mine], rank)

    def axis(self, key: str = "dim", rank: int | None = None) -> int:
        """Return the axis that an argument names, counted from the front."""
        return int(self.args[key]) % max(rank or self.main.dim(), 1)

    def axes(self, key: str = "dim") -> set[int]:
        """Return the axes that an argument names; all of them if it names none."""
        given = self.args.get(key)
        rank = max(self.main.dim(), 1)
        if given is None or given == []:
            return set(range(rank))
        return {axis % rank for axis in ([given] if isinstance(given, int) else given)}

    def resized(self, axis: Axis, old: int, new: int) -> Axis:
        """Return an axis of which some neighbours are left, or that was extended at its ends."""
        return axis if old == new else self.trace.sliced(axis, new)
