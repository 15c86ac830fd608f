"""Allocations that fix every layer's share beforehand: the same everywhere, ERK, smart ratio.

What an entry of the goal leaves is shared over its parameters in proportion to a weight of each.
No parameter gets more than it has now, so repeated prunings nest; what it cannot take is shared
among the others. The total is exact.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import prod

from ltcore.allocation import Goal, Group, Pool, argument_of, pools
from ltcore.counts import fraction, shared
from ltcore.errors import InvalidValueError
from ltcore.masks import Masks
from ltcore.parameters import ParamInfo
from ltcore.whole import whole


def uniform(goal: Goal, masks: Masks, infos: Sequence[ParamInfo]) -> tuple[Group, ...]:
    """Bring every parameter to the same sparsity.

    Other than ``"layer"``, which removes the same share of each, it evens out what was uneven, and
    its total is exact.

    Raises:
        InvalidValueError: the goal is ``{selector: fraction}``.
    """
    if isinstance(goal.amounts, Mapping):
        raise InvalidValueError(
            f"{argument_of(goal)} is {dict(goal.amounts)}, but 'uniform' gives all parameters the "
            "same; give one fraction, or use scope='layer'"
        )
    return _in_proportion(goal, masks, infos, lambda info: Fraction(prod(info.shape)))


@dataclass(frozen=True, slots=True)
class Erk:
    """Densities in proportion to ``sum(dims) / prod(dims)``: Erdos-Renyi-Kernel.

    Evci et al. 2020 (arXiv 1911.11134), section 3, after Mocanu et al. 2018. Layers that would be
    more than dense are dense, and the factor is solved again for the others.

    Attributes:
        kernel: count the kernel's axes too; False is Mocanu's rule, over in and out axes only.
    """

    kernel: bool = True

    def __call__(self, goal: Goal, masks: Masks, infos: Sequence[ParamInfo]) -> tuple[Group, ...]:
        """Return one group a parameter."""
        return _in_proportion(goal, masks, infos, self._weight)

    def _weight(self, info: ParamInfo) -> Fraction:
        dims = info.shape if self.kernel else info.shape[:2]
        return Fraction(max(sum(dims), 1) * prod(info.shape), max(prod(dims), 1))


@dataclass(frozen=True, slots=True)
class SmartRatio:
    """Densities that fall with depth, in proportion to ``(L - l + 1)**2 + (L - l + 1)``.

    Su et al. 2020 (arXiv 2009.11094), section 4. ``l`` counts the pruned parameters from 1 to
    ``L`` in model order. Output layers have a density of their own, as near to it as the total
    allows. A layer that would be more than dense is dense; the rest is shared in proportion among
    all others (the authors' code hands it to the next layer).

    Attributes:
        output_density: density of the output layers, if they are pruned at all.
        decay: divide by ``l**decay``; the authors' code has 2 for VGG and 0 for ResNets.
    """

    output_density: float = 0.3
    decay: int = 0

    def __post_init__(self) -> None:
        fraction(self.output_density, "output_density")
        decay = whole(self.decay)
        if decay is None or decay < 0:
            raise InvalidValueError(f"decay is {self.decay!r}; expected a whole number, 0 or more")
        object.__setattr__(self, "decay", decay)

    def __call__(self, goal: Goal, masks: Masks, infos: Sequence[ParamInfo]) -> tuple[Group, ...]:
        """Return one group a parameter."""
        present = [info for info in infos if info.name in masks]
        outputs = {info.name for info in present if info.is_output}
        weights = {}
        for layer, info in enumerate(present, start=1):
            above = len(present) - layer + 1
            weights[info.name] = Fraction((above**2 + above) * prod(info.shape), layer**self.decay)
        groups: list[Group] = []
        for pool in pools(goal, masks, infos):
            groups += self._share(pool, masks, weights, outputs)
        return tuple(groups)

    def _share(
        self, pool: Pool, masks: Masks, weights: Mapping[str, Fraction], outputs: set[str]
    ) -> list[Group]:
        last = [name for name in pool.names if name in outputs]
        others = [name for name in pool.names if name not in outputs]
        kept = {name: masks.counts[name][0] for name in pool.names}
        sizes = {name: Fraction(masks.counts[name][1]) for name in last}
        stay = sum(kept.values()) - pool.remove
        density = fraction(self.output_density, "output_density")
        wanted = max(int(density * sum(sizes.values()) + Fraction(1, 2)), _alive(last, kept))
        fewest = stay - sum(kept[name] for name in others)
        most = min(max(stay - _alive(others, kept), fewest), sum(kept[name] for name in last))
        at_last = min(max(wanted, fewest), most)
        return [
            *_groups(last, at_last, kept, sizes),
            *_groups(others, stay - at_last, kept, weights),
        ]


def _in_proportion(
    goal: Goal,
    masks: Masks,
    infos: Sequence[ParamInfo],
    weight: Callable[[ParamInfo], Fraction],
) -> tuple[Group, ...]:
    weights = {info.name: weight(info) for info in infos}
    groups: list[Group] = []
    for pool in pools(goal, masks, infos):
        kept = {name: masks.counts[name][0] for name in pool.names}
        groups += _groups(pool.names, sum(kept.values()) - pool.remove, kept, weights)
    return tuple(groups)


def _alive(names: Sequence[str], kept: Mapping[str, int]) -> int:
    return sum(kept[name] > 0 for name in names)


def _groups(
    names: Sequence[str], stay: int, kept: Mapping[str, int], weights: Mapping[str, Fraction]
) -> list[Group]:
    """Share the ``stay`` weights that are left; none loses its last while there is one for each."""
    found = [name for name in names if kept[name]]
    one_each = int(stay >= len(found))
    most = [kept[name] for name in found]
    left = shared(stay, [weights[name] for name in found], [one_each] * len(found), most)
    return [Group((n,), kept[n] - stays) for n, stays in zip(found, left, strict=True)]
