"""Which site of a ticket is which site of a model, and what is carried from one to the other."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ltcore.arrays import Array, Params
from ltcore.errors import MatchError
from ltcore.layouts import KINDS, RECURRENT
from ltcore.masks import Masks
from ltcore.parameters import Site, Structure, in_canonical_order, in_native_order

TRAINING_ATTRIBUTES = ("momentum", "biases")
"""Attributes of sites that outputs do not show."""

DECISIVE_ATTRIBUTES = ("activation", "dilation", "eps", "groups", "heads", "stride")
"""Attributes that change what a layer computes, whether or not the probe's precision shows it."""

_NEVER = np.float32(-1e4)
"""The bias of a class that a head has and the ticket's had not: its probability comes out as 0."""


@dataclass(frozen=True, slots=True)
class Pairing:
    """Which site of a ticket is which site of a model.

    Attributes:
        source: the ticket's structure.
        target: the model's.
        sites: ``{ticket site: model site}``.
        canonical: both graphs are known, so arrays go through canonical feature order. Otherwise
            the two are of one framework, with the same names, and share its order.
        heads: the ticket's output sites, where they are not carried.
    """

    source: Structure
    target: Structure
    sites: Mapping[str, str]
    canonical: bool
    heads: frozenset[str] = frozenset()

    def params(self, params: Params, *, with_heads: bool = False) -> dict[str, Array]:
        """Return the ticket's ``params`` as the model has them; roles without a twin are left out.

        Args:
            params: of the ticket's structure.
            with_heads: carry output layers too, for a proof: what both have, the rest silent.
        """
        placed: dict[str, Array] = {}
        for site, twin, found in self._twins(params):
            if site.name not in self.heads:
                placed |= _named(twin, _with_biases(site, twin, found))
            elif with_heads:
                placed |= _named(twin, _resized(twin, found))
        return in_native_order(placed, self.target) if self.canonical else placed

    def masks(self, masks: Masks) -> Masks:
        """Return the ticket's masks as the model has them; an output layer not carried is dense.

        Raises:
            MatchError: two biases that the model merges into one have different masks.
        """
        placed: dict[str, Array] = {}
        for site, twin, found in self._twins(masks):
            if site.name in self.heads:
                shapes = {role.name: role.shape for role in twin.roles}
                found = {role: np.ones(shapes[role], bool) for role in found}
            placed |= _named(twin, _with_bias_masks(site, twin, found))
        return Masks(in_native_order(placed, self.target) if self.canonical else placed)

    def head_params(self) -> list[str]:
        """Return the model's parameters that belong to output layers which are not carried."""
        twins = {self.sites[head] for head in self.heads}
        return [name for name, site, _ in self.target.items() if site.name in twins]

    def differences(self, attributes: Sequence[str] | None = None) -> str:
        """Return which attributes of paired sites differ; empty if none.

        Args:
            attributes: those to look at; if None, all that change outputs.
        """
        twins = {site.name: site for site in self.target.sites}
        found = []
        for site in self.source.sites:
            twin = twins.get(self.sites.get(site.name, ""))
            if twin is None:
                continue
            shared = site.attrs.keys() & twin.attrs.keys()
            asked = shared - set(TRAINING_ATTRIBUTES) if attributes is None else attributes
            found += [
                f"{site.name}: {key} is {site.attrs[key]} in the ticket, {twin.attrs[key]} in "
                f"{twin.name}"
                for key in sorted(shared & set(asked))
                if not _alike(site.attrs[key], twin.attrs[key])
            ]
        # A layer of its own may pad before this one: mostly it is something else.
        found.sort(key=lambda text: ": padding is" in text)
        hint = " (unless a layer before it pads)" if found and ": padding is" in found[-1] else ""
        return "; ".join(found) + hint

    def _twins(self, arrays: Params) -> Iterator[tuple[Site, Site, dict[str, Array]]]:
        """Yield ``(ticket site, model site, {role: array in canonical order})``."""
        if self.canonical:
            arrays = in_canonical_order(arrays, self.source)
        twins = {site.name: site for site in self.target.sites}
        for site in self.source.sites:
            twin = twins.get(self.sites.get(site.name, ""))
            found = {
                r.name: arrays[n] for r in site.roles if (n := f"{site.name}.{r.name}") in arrays
            }
            if twin and found:
                yield site, twin, found


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-3)  # an epsilon of one's own precision
    return bool(one == other)


def _named(twin: Site, found: Params) -> dict[str, Array]:
    return {f"{twin.name}.{role}": array for role, array in found.items() if twin.role(role)}


def _with_biases(site: Site, twin: Site, found: dict[str, Array]) -> dict[str, Array]:
    """Fit the biases of a recurrent layer: frameworks keep two, or their sum."""
    if site.kind not in RECURRENT or "b_ih" not in found:
        return found
    if "b_hh" in found and not twin.role("b_hh"):
        return found | {"b_ih": found["b_ih"] + found["b_hh"]}
    if "b_hh" not in found and twin.role("b_hh"):
        return found | {"b_hh": np.zeros_like(found["b_ih"])}
    return found


def _with_bias_masks(site: Site, twin: Site, found: dict[str, Array]) -> dict[str, Array]:
    if site.kind not in RECURRENT or not found.keys() & {"b_ih", "b_hh"}:
        return found
    if site.role("b_hh") and not twin.role("b_hh"):
        first, second = found.get("b_ih"), found.get("b_hh")
        if first is None or second is None or not np.array_equal(first, second):
            raise MatchError(
                f"the biases of {site.name!r} have different masks, and {twin.name!r} keeps their "
                "sum, which has one; leave biases out of prunable="
            )
    if twin.role("b_hh") and not site.role("b_hh"):
        return found | {"b_hh": found["b_ih"]}
    return found


def _resized(twin: Site, found: dict[str, Array]) -> dict[str, Array]:
    """Fit an output layer to the model's number of outputs."""
    result = {}
    for role, array in found.items():
        axis = KINDS[twin.kind].outs.get(role)
        there = twin.role(role)
        if axis is None or there is None:
            continue
        shared = min(array.shape[axis], there.shape[axis])
        full = np.full(there.shape, _NEVER if role == "bias" else 0, array.dtype)
        rows = tuple(slice(shared) if i == axis else slice(None) for i in range(array.ndim))
        full[rows] = array[rows]
        result[role] = full
    return result
