"""Where data flows between sites, and what its axes mean on the way.

A backend runs a model once and reports what it sees; this file keeps the books. It knows no
framework. Whatever it cannot prove about the order of an axis becomes ``"?"``: exchange then
refuses rather than guesses.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ltcore.layouts import UNKNOWN_GROUP, AxisGroup

Label: TypeAlias = str | AxisGroup
"""``N`` batch, ``C`` channels, ``S0`` ... space, ``T`` time, ``F`` features, ``?`` unknown, or the
axes that were merged into one."""

Labels: TypeAlias = tuple[Label, ...]


@dataclass(frozen=True, slots=True)
class Flow:
    """What is known of one tensor: the sites it came through last, and its axes."""

    preds: frozenset[str] = frozenset()
    labels: Labels = ()


@dataclass(slots=True)
class Visit:
    """What is known of one site: where its input came from and the order of its features."""

    preds: set[str] = field(default_factory=set)
    in_group: AxisGroup | None = None


class Trace:
    """The books of one run of a model."""

    def __init__(self) -> None:
        self.visits: dict[str, Visit] = {}
        # The tensor itself is kept: an id is only unique while its object lives.
        self._flows: dict[int, tuple[Any, Flow]] = {}

    def flow(self, tensor: Any) -> Flow:
        """Return what is known of ``tensor``."""
        return self._flows.get(id(tensor), (None, Flow()))[1]

    def put(self, tensor: Any, preds: Iterable[str], labels: Labels) -> None:
        """Remember what is known of ``tensor``."""
        self._flows[id(tensor)] = (tensor, Flow(frozenset(preds), labels))

    def preds(self, tensors: Iterable[Any]) -> frozenset[str]:
        """Return the sites that any of ``tensors`` came through last."""
        return frozenset().union(*(self.flow(tensor).preds for tensor in tensors))

    def visit(self, site: str, inputs: Sequence[Any], feature_axis: int) -> None:
        """Record that data enters ``site``, its features along ``feature_axis``."""
        labels = self.flow(inputs[0]).labels if inputs else ()
        group = group_of(labels[feature_axis]) if labels else UNKNOWN_GROUP
        seen = self.visits.get(site)
        if seen is None:
            self.visits[site] = Visit(set(self.preds(inputs)), group)
            return
        seen.preds |= self.preds(inputs)
        if seen.in_group != group:
            seen.in_group = UNKNOWN_GROUP


def unknown(rank: int) -> Labels:
    """Return labels of a tensor about which nothing is known."""
    return ("?",) * rank


def spatial(rank: int) -> tuple[str, ...]:
    """Return ``("S0", "S1", ...)``."""
    return tuple(f"S{axis}" for axis in range(rank))


def group_of(label: Label) -> AxisGroup | None:
    """Return the native order of a feature axis; None where it is the same everywhere."""
    if label == "?":
        return UNKNOWN_GROUP
    if isinstance(label, str):
        return None
    letters = {name[0] for name, _ in label}
    if "?" in letters:
        return UNKNOWN_GROUP
    if "C" in letters and "S" in letters:
        return label if letters == {"C", "S"} else UNKNOWN_GROUP
    return None


def merge(parts: Sequence[tuple[Label, int]]) -> Label:
    """Return the label of the axis that consecutive ``(label, size)`` axes were merged into."""
    flat: list[tuple[str, int]] = []
    for label, size in parts:
        flat.extend([(label, size)] if isinstance(label, str) else label)
    real = [(label, size) for label, size in flat if size != 1]
    if len(real) > 1:
        return tuple(real)
    return real[0][0] if real else flat[0][0]


def reshaped(labels: Labels, old: Sequence[int], new: Sequence[int]) -> Labels:
    """Return the labels after a reshape: axes carried over or merged; a split one is unknown."""
    result: list[Label] = []
    position = 0
    for size in new:
        if position < len(old) and old[position] == size:
            result.append(labels[position])
            position += 1
            continue
        product, parts = 1, []
        while position < len(old) and product < size:
            product *= old[position]
            parts.append((labels[position], old[position]))
            position += 1
        if product != size:
            return unknown(len(new))
        result.append(merge(parts) if parts else "T")
    if any(size != 1 for size in old[position:]):
        return unknown(len(new))
    return tuple(result)
