"""How an allocation is asked, and whether it shares what the goal asks for."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

from ltcore.allocation import Allocation, Goal, Group, by_global, by_layer
from ltcore.errors import InvalidValueError
from ltcore.masks import Masks
from ltcore.parameters import ParamInfo


@dataclass(frozen=True, slots=True)
class Asked:
    """How many weights a goal asks for.

    It has two readings where a parameter has lost more than its share already: the others are
    spared as much, or not. An allocation may take either, and round in each parameter.

    Attributes:
        weights: of all parameters together.
        least: what an allocation removes at least.
        most: what it removes at most.
    """

    weights: int
    least: int
    most: int


def ask(
    allocation: Allocation, goal: Goal, masks: Masks, infos: Sequence[ParamInfo]
) -> tuple[Group, ...]:
    """Return the groups that ``allocation`` makes of ``goal``.

    Raises:
        InvalidValueError: it cannot be called so, or returned something else; names it.
    """
    try:
        found = allocation(goal, masks, infos)
    except TypeError as error:
        if _takes_three(allocation):
            raise
        raise InvalidValueError(
            f"allocation {name_of(allocation)!r} cannot be called as allocation(goal, masks, "
            f"infos): {error}"
        ) from error
    groups = tuple(found) if isinstance(found, Sequence) else None
    if groups is None or not all(isinstance(group, Group) for group in groups):
        raise InvalidValueError(
            f"allocation {name_of(allocation)!r} returned {found!r:.200}; expected a list of "
            "ltcore.allocation.Group(names, remove)"
        )
    return groups


def asked(goal: Goal, masks: Masks, infos: Sequence[ParamInfo]) -> Asked:
    """Return how many weights ``goal`` removes of ``masks``.

    Raises:
        InvalidValueError, SelectorError: as in `ltcore.allocation.pools`.
    """
    weights, by_each = (
        sum(group.remove for group in rule(goal, masks, infos)) for rule in (by_global, by_layer)
    )
    slack = len(masks)
    return Asked(weights, min(weights, by_each) - slack, max(weights, by_each) + slack)


def name_of(allocation: Allocation) -> str:
    """Return what an allocation is called in messages."""
    return getattr(allocation, "__name__", type(allocation).__name__)


def _takes_three(allocation: Allocation) -> bool:
    try:
        inspect.signature(allocation).bind(None, None, None)
    except TypeError:
        return False
    except ValueError:  # a builtin, which does not tell
        return True
    return True
