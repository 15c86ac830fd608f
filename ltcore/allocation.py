"""How a target is shared: groups of parameters that compete, with the number each group loses.

An allocation turns a goal ("20 % of what is left", "90 % gone") into integer counts. Scope
``"global"`` lets all parameters with the same selector entry compete; ``"layer"`` gives every
parameter its own count.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol, TypeAlias

from ltcore.counts import fraction, removed_by_rate, removed_by_sparsity
from ltcore.errors import InvalidValueError
from ltcore.masks import Masks
from ltcore.parameters import ParamInfo
from ltcore.selectors import resolve

Amounts: TypeAlias = float | Mapping[str, float]
"""One fraction for all parameters, or ``{selector: fraction}``."""


@dataclass(frozen=True, slots=True)
class Rate:
    """Remove this share of the remaining weights."""

    amounts: Amounts


@dataclass(frozen=True, slots=True)
class Sparsity:
    """Remove until this share of all weights is gone."""

    amounts: Amounts


Goal: TypeAlias = Rate | Sparsity


@dataclass(frozen=True, slots=True)
class Group:
    """Parameters that compete with each other, and how many weights they lose together."""

    names: tuple[str, ...]
    remove: int


class Allocation(Protocol):
    """Shares a goal over parameters."""

    def __call__(self, goal: Goal, masks: Masks, infos: Sequence[ParamInfo]) -> Sequence[Group]:
        """Return the groups; every name of a group is a key of ``masks``."""
        ...


def by_global(goal: Goal, masks: Masks, infos: Sequence[ParamInfo]) -> tuple[Group, ...]:
    """Let the parameters that share a selector entry compete."""
    pools: dict[str, tuple[list[str], Fraction]] = {}
    for name, (selector, amount) in _amounts(goal, masks, infos).items():
        pools.setdefault(selector, ([], amount))[0].append(name)
    return tuple(_group(goal, masks, tuple(names), amount) for names, amount in pools.values())


def by_layer(goal: Goal, masks: Masks, infos: Sequence[ParamInfo]) -> tuple[Group, ...]:
    """Give every parameter its own count (Frankle and Carbin 2019, section 2)."""
    return tuple(
        _group(goal, masks, (name,), amount)
        for name, (_, amount) in _amounts(goal, masks, infos).items()
    )


def _group(goal: Goal, masks: Masks, names: tuple[str, ...], amount: Fraction) -> Group:
    kept = sum(masks.counts[name][0] for name in names)
    total = sum(masks.counts[name][1] for name in names)
    if isinstance(goal, Rate):
        return Group(names, removed_by_rate(kept, amount))
    return Group(names, removed_by_sparsity(kept, total, amount))


def _amounts(
    goal: Goal, masks: Masks, infos: Sequence[ParamInfo]
) -> dict[str, tuple[str, Fraction]]:
    argument = "rate" if isinstance(goal, Rate) else "sparsity"
    table = goal.amounts if isinstance(goal.amounts, Mapping) else {"*": goal.amounts}
    if not table:
        raise InvalidValueError(f"{argument} is an empty mapping; expected {{selector: fraction}}")
    exact = {selector: fraction(value, argument) for selector, value in table.items()}
    return resolve(exact, [info for info in infos if info.name in masks], argument)
