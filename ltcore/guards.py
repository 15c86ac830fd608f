"""Allocations around another one: layers kept dense, a floor of survivors in each.

The total asked for stays what it is: what the guarded parameters do not lose, the others do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil

from ltcore.allocation import Allocation, Goal, Group, Pool, Rate, by_global, pools
from ltcore.counts import fraction, shared
from ltcore.errors import InvalidValueError
from ltcore.masks import Masks
from ltcore.parameters import ParamInfo
from ltcore.whole import whole


@dataclass(frozen=True, slots=True)
class KeepDense:
    """Keep the first and the last parameters as they are; the others lose more.

    Attributes:
        allocation: shares over the others.
        first: how many at the front, in model order, of those that are pruned at all.
        last: how many at the end. Output layers are the end; all of them stay dense if this is 1
            or more. If none of them is pruned at all, they are dense already and count as one.
    """

    allocation: Allocation = by_global
    first: int = 1
    last: int = 1

    def __post_init__(self) -> None:
        _check_inner(self.allocation, "keep-dense")
        for name, value in (("first", self.first), ("last", self.last)):
            number = whole(value)
            if number is None or number < 0:
                raise InvalidValueError(f"{name} is {value!r}; expected a number of parameters")
            object.__setattr__(self, name, number)

    def __call__(self, goal: Goal, masks: Masks, infos: Sequence[ParamInfo]) -> Sequence[Group]:
        """Return the groups of the inner allocation, over the others.

        Raises:
            InvalidValueError: the others have too few weights for what has to go.
        """
        present = [info for info in infos if info.name in masks]
        dense = self._dense(present)
        others = [info for info in present if info.name not in dense]
        asked = {
            pool.selector: _amount_of_others(goal, masks, pool, dense)
            for pool in pools(goal, masks, infos)
            if not dense.issuperset(pool.names) or pool.remove
        }
        if not asked:
            return ()
        amounts = goal.amounts
        if isinstance(amounts, Mapping):  # in the user's order: the last match decides
            raised = replace(goal, amounts={s: asked[s] for s in amounts if s in asked})
        else:
            raised = replace(goal, amounts=asked["*"])
        left = Masks.adopt({info.name: masks[info.name] for info in others})
        return self.allocation(raised, left, others)

    def _dense(self, present: Sequence[ParamInfo]) -> frozenset[str]:
        names = [info.name for info in present]
        outputs = [info.name for info in present if info.is_output]
        end = [name for name in names if name not in outputs] + outputs
        last = max(self.last, len(outputs)) if self.last and outputs else max(self.last - 1, 0)
        return frozenset(names[: self.first] + end[max(len(end) - last, 0) :])


def _amount_of_others(goal: Goal, masks: Masks, pool: Pool, dense: frozenset[str]) -> Fraction:
    """Return the fraction that makes the others of ``pool`` lose all that the pool has to."""
    counts = [masks.counts[name] for name in pool.names if name not in dense]
    kept, total = sum(k for k, _ in counts), sum(t for _, t in counts)
    if not pool.remove:
        return Fraction(0)
    if pool.remove >= kept:
        raise InvalidValueError(
            f"{pool.remove} weights of {list(pool.names)} have to go, but with "
            f"{sorted(dense & set(pool.names))} kept dense the others have {kept}, and keep one at "
            "least; prune less, or keep fewer parameters dense"
        )
    if isinstance(goal, Rate):
        return Fraction(pool.remove, kept)
    return Fraction(total - kept + pool.remove, total)


@dataclass(frozen=True, slots=True)
class Floor:
    """Leave every parameter a number of survivors; the others lose more.

    Attributes:
        allocation: shares the goal.
        survivors: how many weights each keeps at least (a whole number), or the share of its
            weights, in (0, 1), rounded up. A parameter with no more than that loses nothing.
    """

    allocation: Allocation = by_global
    survivors: float = 1

    def __post_init__(self) -> None:
        _check_inner(self.allocation, "floor")
        given = self.survivors
        count = whole(given)
        if not (count or 0) >= 1 and not (isinstance(given, float) and 0 < given < 1):
            raise InvalidValueError(
                f"survivors is {given!r}; expected a number of weights (1, 2, ...) or a share of "
                "a parameter's weights, between 0 and 1"
            )
        if count is not None:
            object.__setattr__(self, "survivors", count)

    def __call__(self, goal: Goal, masks: Masks, infos: Sequence[ParamInfo]) -> tuple[Group, ...]:
        """Return the groups of the inner allocation, with floors.

        Raises:
            InvalidValueError: the floors leave too few weights for what has to go.
        """
        groups = tuple(self.allocation(goal, masks, infos))
        floors = {name: self._floor(name, group, masks) for group in groups for name in group.names}
        entry = {name: pool.selector for pool in pools(goal, masks, infos) for name in pool.names}
        competing: dict[str | None, list[Group]] = {}
        for group in groups:
            competing.setdefault(entry.get(group.names[0]) if group.names else None, []).append(
                group
            )
        return tuple(
            group for found in competing.values() for group in _above_floors(found, floors, masks)
        )

    def _floor(self, name: str, group: Group, masks: Masks) -> int:
        kept, total = masks.counts[name]
        if isinstance(self.survivors, int):
            wanted = self.survivors
        else:
            wanted = ceil(fraction(self.survivors, "survivors") * total)
        return max(min(wanted, kept), group.least(name, kept))


def _above_floors(groups: list[Group], floors: Mapping[str, int], masks: Masks) -> list[Group]:
    """Move what some groups cannot lose to those that can lose more."""
    room = [sum(masks.counts[n][0] - floors[n] for n in group.names) for group in groups]
    asked = sum(group.remove for group in groups)
    if asked > sum(room):
        names = [name for group in groups for name in group.names]
        raise InvalidValueError(
            f"{asked} weights of {names} have to go, but the floor leaves only {sum(room)} to "
            "take; prune less, or lower survivors"
        )
    removes = [min(group.remove, space) for group, space in zip(groups, room, strict=True)]
    spare = [space - remove for space, remove in zip(room, removes, strict=True)]
    open_ = [i for i, space in enumerate(spare) if space]
    more = shared(
        asked - sum(removes),
        [Fraction(spare[i]) for i in open_],
        [0] * len(open_),
        [spare[i] for i in open_],
    )
    for i, extra in zip(open_, more, strict=True):
        removes[i] += extra
    return [
        replace(group, remove=remove, floor={name: floors[name] for name in group.names})
        for group, remove in zip(groups, removes, strict=True)
    ]


def _check_inner(allocation: Allocation, wrapper: str) -> None:
    if not callable(allocation):
        raise InvalidValueError(
            f"allocation is {allocation!r}; expected an allocation. By name: scope={{'name': "
            f"{wrapper!r}, 'allocation': 'global'}}"
        )
