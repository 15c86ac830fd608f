"""How a target is shared: groups of parameters that compete, with the number each group loses.

An allocation turns a goal ("20 % of what is left", "90 % gone") into integer counts. Scope
``"global"`` lets all parameters with the same selector entry compete; ``"layer"`` gives every
parameter its own count. Those that share by size are in `ltcore.shares`, those that wrap another
in `ltcore.guards`.
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

Amounts: TypeAlias = float | Fraction | Mapping[str, float | Fraction]
"""One fraction for all parameters, or ``{selector: fraction}``. A `Fraction` is taken exactly."""


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
    """Parameters that compete with each other, and how many weights they lose together.

    Attributes:
        names: the parameters.
        remove: how many weights they lose together.
        floor: how many each of them keeps at least, or ``{name: how many}``; the others lose
            more. One that has no more than that now loses nothing.
    """

    names: tuple[str, ...]
    remove: int
    floor: int | Mapping[str, int] = 0

    def least(self, name: str, kept: int) -> int:
        """Return how many of the ``kept`` weights of parameter ``name`` have to stay."""
        floor = self.floor.get(name, 0) if isinstance(self.floor, Mapping) else self.floor
        return min(floor, kept)


class Allocation(Protocol):
    """Shares a goal over parameters."""

    def __call__(self, goal: Goal, masks: Masks, infos: Sequence[ParamInfo]) -> Sequence[Group]:
        """Return the groups; every name of a group is a key of ``masks``."""
        ...


@dataclass(frozen=True, slots=True)
class Pool:
    """Parameters that one entry of the goal decides over, and how many weights they lose."""

    selector: str
    names: tuple[str, ...]
    remove: int


def pools(goal: Goal, masks: Masks, infos: Sequence[ParamInfo]) -> tuple[Pool, ...]:
    """Return what each entry of ``goal`` asks of the parameters that it decides over.

    Raises:
        InvalidValueError: a fraction is not in [0, 1), or the mapping is empty.
        SelectorError: a selector matches no parameter.
    """
    found: dict[str, tuple[list[str], Fraction]] = {}
    for name, (selector, amount) in _amounts(goal, masks, infos).items():
        found.setdefault(selector, ([], amount))[0].append(name)
    return tuple(
        Pool(selector, tuple(names), _removed(goal, masks, names, amount))
        for selector, (names, amount) in found.items()
    )


def argument_of(goal: Goal) -> str:
    """Return the argument by which a user gives ``goal``."""
    return "rate" if isinstance(goal, Rate) else "sparsity"


def by_global(goal: Goal, masks: Masks, infos: Sequence[ParamInfo]) -> tuple[Group, ...]:
    """Let the parameters that share a selector entry compete."""
    return tuple(Group(pool.names, pool.remove) for pool in pools(goal, masks, infos))


def by_layer(goal: Goal, masks: Masks, infos: Sequence[ParamInfo]) -> tuple[Group, ...]:
    """Give every parameter its own count (Frankle and Carbin 2019, section 2)."""
    return tuple(
        Group((name,), _removed(goal, masks, [name], amount))
        for name, (_, amount) in _amounts(goal, masks, infos).items()
    )


def _removed(goal: Goal, masks: Masks, names: Sequence[str], amount: Fraction) -> int:
    kept = sum(masks.counts[name][0] for name in names)
    total = sum(masks.counts[name][1] for name in names)
    if isinstance(goal, Rate):
        return removed_by_rate(kept, amount)
    return removed_by_sparsity(kept, total, amount)


def _amounts(
    goal: Goal, masks: Masks, infos: Sequence[ParamInfo]
) -> dict[str, tuple[str, Fraction]]:
    argument = argument_of(goal)
    table = goal.amounts if isinstance(goal.amounts, Mapping) else {"*": goal.amounts}
    if not table:
        raise InvalidValueError(f"{argument} is an empty mapping; expected {{selector: fraction}}")
    exact = {selector: fraction(value, argument) for selector, value in table.items()}
    return resolve(exact, [info for info in infos if info.name in masks], argument)
