"""Patterns: the shape of sparsity within a parameter, when it is not weight by weight.

A pattern cuts a parameter into units that stay or go as a whole (blocks, channels), or orders the
weights within small groups (n:m). Criterion, allocation and selection are the same as without
one: they work on units, and ``sparsity`` is the fraction of units removed.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from ltcore.allocation import Goal, Rate
from ltcore.arrays import Array
from ltcore.counts import fraction, removed_by_rate
from ltcore.errors import InvalidValueError
from ltcore.masks import Masks
from ltcore.parameters import ParamInfo
from ltcore.scoring import ArrayScores, Scores


class Pattern(Protocol):
    """How a parameter is cut into units. All shapes are canonical.

    Attributes:
        name: what a user types.
        sparsity: the fraction of units that the pattern itself asks for, which is also the most
            that it allows of a parameter; None if any will do.
    """

    @property
    def name(self) -> str:
        """What a user types."""
        ...

    @property
    def sparsity(self) -> float | None:
        """The fraction of units removed that the pattern means; None if the user has to say."""
        ...

    def misfit(self, info: ParamInfo) -> str:
        """Return why the pattern cannot be had in a parameter; empty if it can."""
        ...

    def units(self, mask: Array, info: ParamInfo) -> Array:
        """Return the units' mask, bool: a unit is kept if any of its weights is."""
        ...

    def pool(self, scores: Array, mask: Array, info: ParamInfo) -> Array:
        """Return the units' scores, of the shape of `units`, from those of the weights."""
        ...

    def spread(self, units: Array, info: ParamInfo) -> Array:
        """Return the weights' mask, of ``info.shape``, from the units'."""
        ...


@dataclass(frozen=True, slots=True)
class Cut:
    """Parameters as a pattern cuts them."""

    pattern: Pattern
    infos: tuple[ParamInfo, ...]

    def masks(self, masks: Masks) -> Masks:
        """Return the units' masks."""
        return Masks.adopt({i.name: self.pattern.units(masks[i.name], i) for i in self.infos})

    def unit_infos(self, masks: Masks) -> tuple[ParamInfo, ...]:
        """Return what allocations may know of the units in ``masks``, those of `masks`."""
        return tuple(replace(info, shape=masks[info.name].shape) for info in self.infos)

    def scores(self, scores: Scores, masks: Masks) -> Scores:
        """Return the units' scores."""
        return ArrayScores(
            {
                info.name: self.pattern.pool(
                    scores.block(info.name, slice(None)).reshape(info.shape),
                    masks[info.name],
                    info,
                )
                for info in self.infos
            },
            scores.source,
        )

    def check(self, units: Masks) -> None:
        """Raise if a parameter has lost more units than the pattern allows.

        Raises:
            InvalidValueError: names the parameter, and what the pattern allows.
        """
        if self.pattern.sparsity is None:
            return
        allowed = fraction(self.pattern.sparsity, f"sparsity of pattern {self.pattern.name!r}")
        for name, (kept, total) in units.counts.items():
            most = removed_by_rate(total, allowed)
            if total - kept > most:
                raise InvalidValueError(
                    f"pattern {self.pattern.name!r} lets {most} of the {total} units of {name!r} "
                    f"go, and {total - kept} would; ask for a sparsity of at most "
                    f"{self.pattern.sparsity:.4g}, with a scope that asks no parameter for more"
                )

    def spread(self, units: Masks, masks: Masks) -> Masks:
        """Return ``masks`` without the weights of pruned units."""
        spread = {info.name: self.pattern.spread(units[info.name], info) for info in self.infos}
        return Masks.adopt(
            {
                name: np.asarray(mask & spread[name]) if name in spread else mask
                for name, mask in masks.items()
            }
        )


def check_reach(pattern: Pattern | None, goals: Iterable[Goal]) -> None:
    """Raise if ``goals``, one after the other, end beyond what ``pattern`` allows.

    Those of ``{selector: fraction}`` are left to `Cut.check`, which knows the parameters.

    Raises:
        InvalidValueError: says what the pattern allows and what was asked for.
    """
    if pattern is None or pattern.sparsity is None:
        return
    left = 1.0
    for goal in goals:
        if isinstance(goal.amounts, Mapping):
            return
        share = 1 - float(goal.amounts)
        left = left * share if isinstance(goal, Rate) else min(left, share)
    if 1 - left > pattern.sparsity + 1e-9:  # a rounding error is no wish
        raise InvalidValueError(
            f"pattern {pattern.name!r} allows a sparsity of {pattern.sparsity:.4g} at most, and "
            f"{1 - left:.4g} is asked for"
        )


def cut(pattern: Pattern, infos: Sequence[ParamInfo]) -> tuple[Cut, dict[str, str]]:
    """Return the parameters that ``pattern`` fits, cut, and ``{name: why}`` of the others."""
    why = {info.name: pattern.misfit(info) for info in infos}
    fitting = tuple(info for info in infos if not why[info.name])
    return Cut(pattern, fitting), {name: reason for name, reason in why.items() if reason}
