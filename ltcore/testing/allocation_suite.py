"""The conformance suite of allocations: subclass it, and every promise is a test.

>>> from ltcore.allocation import by_global
>>> class TestGlobal(AllocationConformance):
...     allocation = by_global
...     exact = True
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from ltcore.allocation import Allocation, Goal, Group, Rate, Sparsity
from ltcore.asking import asked
from ltcore.counts import fraction, removed_by_rate, removed_by_sparsity
from ltcore.errors import InvalidValueError
from ltcore.masks import Masks
from ltcore.parameters import ParamInfo
from ltcore.scoring import ArrayScores
from ltcore.select import select
from ltcore.testing.given import check_given, under_test

INFOS = (
    ParamInfo("conv1.weight", "conv", "weight", (6, 2, 3, 3), False, True),
    ParamInfo("conv2.weight", "conv", "weight", (9, 6, 3, 3), False, True),
    ParamInfo("fc1.weight", "linear", "weight", (30, 41), False, True),
    ParamInfo("fc2.weight", "linear", "weight", (5, 30), True, True),
)
"""A small convolutional network."""

GOALS = (Rate(0.2), Rate(0.55), Sparsity(0.37), Sparsity(0.8), Rate(0.0), Sparsity(0.0))

KEPT = {
    "dense": {},
    "pruned here and there": {"conv2.weight": 0.5, "fc1.weight": 0.9, "fc2.weight": 0.7},
    "one all pruned": {"conv2.weight": 0.0, "fc1.weight": 0.8},
}
"""``{case: {parameter: share that is kept}}``; 1 where it is not said."""


_ON_PURPOSE = "set honours_goal = False if it means something else on purpose"


class AllocationConformance:
    """What `ltcore.allocation.Allocation` promises.

    Attributes:
        allocation: the allocation under test: a function, an object or its class; override it.
        exact: it promises that the groups' counts add up to what the goal means over all
            parameters together: floor(share * weights + 1/2).
        honours_goal: it removes about what the goal means: a share of what is left (`Rate`), or
            until a share of all is gone (`Sparsity`). False for one that means something else on
            purpose, which `ltcore.prune` warns of.
        goals: what it is asked for.
    """

    allocation: ClassVar[Any] = None
    exact: ClassVar[bool] = False
    honours_goal: ClassVar[bool] = True
    goals: ClassVar[tuple[Goal, ...]] = GOALS

    def rule(self) -> Allocation:
        """Return the allocation under test."""
        rule: Allocation = under_test(self, "allocation", ())
        return rule

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Make one test of each goal and of each network; pytest calls this."""
        check_given(self)
        if "goal" in metafunc.fixturenames:
            metafunc.parametrize("goal", self.goals, ids=str)
        if "kept" in metafunc.fixturenames:
            metafunc.parametrize("kept", KEPT.values(), ids=list(KEPT))

    def test_groups_are_disjoint_and_known(self, goal: Goal, kept: Mapping[str, float]) -> None:
        """A parameter is in one group at most."""
        masks = masks_of(kept)
        names = [name for group in self.groups(goal, masks) for name in group.names]
        assert len(set(names)) == len(names), "a parameter is in one group at most"

    def test_counts_can_be_removed(self, goal: Goal, kept: Mapping[str, float]) -> None:
        """A group loses a whole number of the weights it has, and keeps its floor."""
        masks = masks_of(kept)
        for group in self.groups(goal, masks):
            has = {name: masks.counts[name][0] for name in group.names}
            stay = sum(group.least(name, has[name]) for name in group.names)
            assert isinstance(group.remove, int | np.integer), (
                f"counts are whole numbers, yours to round; {group.names} got {group.remove!r}"
            )
            assert 0 <= group.remove <= sum(has.values()) - stay, (
                f"a group loses no more than it has above its floor: {group.names} have "
                f"{sum(has.values())}, keep {stay} at least, and are to lose {group.remove}"
            )

    def test_the_goal_is_honoured(self, goal: Goal, kept: Mapping[str, float]) -> None:
        """It removes what the goal asks for, to one weight a parameter."""
        masks = masks_of(kept)
        removed = self.removed(goal, masks)
        if not self.honours_goal or removed is None:
            return
        wanted = asked(goal, masks, INFOS)
        assert wanted.least <= removed <= wanted.most, (
            f"an allocation removes what the goal asks for, to one weight a parameter: {goal} of "
            f"{masks.kept} weights that are left of {masks.total} asks for {wanted.weights}, and "
            f"{removed} are removed; {_ON_PURPOSE}"
        )

    def test_nothing_goes_at_zero(self, kept: Mapping[str, float]) -> None:
        """A goal of 0 removes nothing."""
        if not self.honours_goal:
            return
        for goal in (Rate(0.0), Sparsity(0.0)):
            removed = self.removed(goal, masks_of(kept))
            assert not removed, f"{goal} removes nothing, not {removed}; {_ON_PURPOSE}"

    def test_a_rate_is_of_the_rest_and_a_sparsity_of_all(self) -> None:
        """Half gone everywhere, 0.5 of the rest is what is missing to 0.75 of all."""
        half = remove([Group((i.name,), int(np.prod(i.shape)) // 2) for i in INFOS], masks_of({}))
        by_rate, by_sparsity = (self.removed(g, half) for g in (Rate(0.5), Sparsity(0.75)))
        if not self.honours_goal or by_rate is None or by_sparsity is None:
            return
        assert abs(by_rate - by_sparsity) <= 2 * len(INFOS), (
            "a rate is a share of the weights that are left, a sparsity of all weights: with half "
            f"of {half.total} gone, Rate(0.5) and Sparsity(0.75) ask for the same, and {by_rate} "
            f"and {by_sparsity} are removed; {_ON_PURPOSE}"
        )

    def test_the_total_is_exact(self, goal: Goal, kept: Mapping[str, float]) -> None:
        """Counts add up to the goal over all parameters; checked if ``exact`` says so."""
        if not self.exact:
            return
        masks = masks_of(kept)
        removed = sum(group.remove for group in self.groups(goal, masks))
        assert removed == meant(goal, masks), "an exact allocation removes what the goal means"

    def test_nothing_is_asked_for_twice(self, kept: Mapping[str, float]) -> None:
        """A sparsity that is reached asks for nothing more."""
        if not self.exact:
            return
        masks = masks_of(kept)
        for sparsity in (0.4, 0.8):
            after = remove(self.groups(Sparsity(sparsity), masks), masks)
            more = sum(group.remove for group in self.groups(Sparsity(sparsity), after))
            assert more == 0, f"at a sparsity of {sparsity} the same goal asks for nothing more"

    def test_rounds_nest(self, kept: Mapping[str, float]) -> None:
        """It can be used on what it left, to the end; an exact one ends where it should."""
        masks = masks_of(kept)
        for goal in (Rate(0.2), Sparsity(0.5), Sparsity(0.65), Rate(0.1), Sparsity(0.8)):
            due = masks.kept - meant(goal, masks)
            after = remove(self.groups(goal, masks), masks)
            assert after.nested_in(masks), "what is pruned stays pruned"
            assert not self.exact or after.kept == due, f"after {goal}, {due} weights are left"
            masks = after

    def test_same_input_same_groups(self, goal: Goal, kept: Mapping[str, float]) -> None:
        """Groups follow from goal and masks alone."""
        masks = masks_of(kept)
        digest = masks.digest
        first, second = self.groups(goal, masks), self.groups(goal, masks)
        assert first == second, "the same goal and the same masks give equal groups"
        assert masks.digest == digest, "an allocation does not write to the masks"

    def test_one_parameter_is_served_or_refused(self, goal: Goal) -> None:
        """A model with one parameter is pruned, or refused with an `InvalidValueError`."""
        masks = Masks.ones({"fc2.weight": (5, 30)})
        try:
            groups = tuple(self.rule()(goal, masks, INFOS[-1:]))
        except InvalidValueError:
            return
        removed = sum(group.remove for group in groups)
        assert not self.exact or removed == meant(goal, masks), "one parameter loses all of it"

    def removed(self, goal: Goal, masks: Masks) -> int | None:
        """Return how many weights go at ``goal``; None if it is refused."""
        try:
            return sum(group.remove for group in self.groups(goal, masks))
        except InvalidValueError:
            return None

    def groups(self, goal: Goal, masks: Masks) -> tuple[Group, ...]:
        """Return what the allocation under test makes of ``goal``."""
        found = tuple(self.rule()(goal, masks, INFOS))
        for group in found:
            assert isinstance(group, Group), f"an allocation returns ltcore.Group, not {group!r}"
            unknown = set(group.names) - masks.keys()
            assert not unknown, f"groups name parameters that have a mask, not {sorted(unknown)}"
        return found


def meant(goal: Goal, masks: Masks) -> int:
    """Return how many weights ``goal``, one fraction for all, removes of ``masks``."""
    assert not isinstance(goal.amounts, Mapping)
    amount = fraction(goal.amounts, "amount")
    if isinstance(goal, Rate):
        return removed_by_rate(masks.kept, amount)
    return removed_by_sparsity(masks.kept, masks.total, amount)


def masks_of(shares: Mapping[str, float]) -> Masks:
    """Return masks over the suite's network that keep ``shares``, the same every time."""
    rng = np.random.default_rng(0)
    return Masks({i.name: rng.random(i.shape) < shares.get(i.name, 1.0) for i in INFOS})


def remove(groups: Sequence[Group], masks: Masks) -> Masks:
    """Return ``masks`` without what ``groups`` lose, by scores that are the same every time."""
    rng = np.random.default_rng(1)
    scores = {name: np.asarray(rng.random(mask.shape)) for name, mask in masks.items()}
    return select(ArrayScores(scores), masks, groups)
