"""Where data flows between sites: the books of one run of a model.

A backend runs a model once and reports what it sees; this file writes it down. It knows no
framework.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ltcore.axes import Atom, Axis, Labels, named
from ltcore.layouts import CONVOLUTIONS, KINDS, UNKNOWN_GROUP, AxisGroup
from ltcore.orders import Orders
from ltcore.parameters import Site


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


def is_line(sites: Sequence[Site], end: int) -> bool:
    """Whether data of three axes at one end of a model are images of one dimension.

    They are where a convolution along one axis is the model's first layer with a kernel (``end``
    0) or its last (-1); else the features are taken to come last.
    """
    kernels = [site for site in sites if KINDS[site.kind].prunable]
    if not kernels or kernels[end].kind not in CONVOLUTIONS:
        return False
    weight = kernels[end].role("weight")
    return weight is not None and len(weight.shape) == 3


class Trace(Orders):
    """The books of one run of a model."""

    def __init__(self) -> None:
        super().__init__()
        self.visits: dict[str, Visit] = {}
        # The tensor itself is kept: an id is only unique while its object lives.
        self._flows: dict[int, tuple[Any, Flow]] = {}

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

    def placed(self, sites: Sequence[Site], outputs: Sequence[Any]) -> tuple[Site, ...]:
        """Return ``sites`` with what was found; ``outputs`` are what the model returns."""
        order = {site.name: position for position, site in enumerate(sites)}
        ends = self.preds(outputs)
        result = []
        for site in sites:
            visit = self.visits.get(site.name)
            if visit is None:  # it did not run: nothing of it is known
                result.append(site)
                continue
            result.append(
                replace(
                    site,
                    preds=tuple(sorted(visit.preds & order.keys(), key=order.__getitem__)),
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

    def _in_group(self, site: Site) -> AxisGroup | None:
        group = self.group_of(self.visits.get(site.name, Visit()).axis)
        return group if KINDS[site.kind].ins or group is None else UNKNOWN_GROUP
