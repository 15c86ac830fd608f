"""The conformance suite of schedules: subclass it, and every promise is a test.

>>> from ltcore.schedules import ToSparsity
>>> class TestToSparsity(ScheduleConformance):
...     schedule = ToSparsity(0.9, 5)
"""

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, ClassVar

from ltcore.allocation import Goal, Rate, Sparsity
from ltcore.schedules import FunctionSchedule, Schedule
from ltcore.testing.given import check_given, under_test


class ScheduleConformance:
    """What `ltcore.schedules.Schedule` promises.

    Attributes:
        schedule: the schedule under test, or a function of the round; override it.
        rounds: how many rounds a function is asked for.
    """

    schedule: ClassVar[Any] = None
    rounds: ClassVar[int] = 5

    def rule(self) -> Schedule:
        """Return the schedule under test."""
        rule: Schedule = under_test(self, "schedule", ("rounds", "goal"), self._of_function)
        return rule

    def _of_function(self, function: Callable[[int], Any]) -> Schedule:
        return FunctionSchedule(function, self.rounds)

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Look at what is given before any test does; pytest calls this."""
        check_given(self)

    def test_has_rounds(self) -> None:
        """There is at least one pruning."""
        rounds = self.rule().rounds
        is_number = isinstance(rounds, int) and not isinstance(rounds, bool)
        assert is_number, f"rounds is a whole number of prunings, not {rounds!r}"
        assert rounds >= 1, f"there is at least one pruning; rounds is {rounds}"

    def test_every_round_has_a_goal(self) -> None:
        """Goals are a `Rate` or a `Sparsity`, with fractions from 0 up to but not including 1."""
        for index, goal in enumerate(self.goals(), 1):
            assert isinstance(goal, Rate | Sparsity), (
                f"goal({index}) is an ltcore.Rate or an ltcore.Sparsity, not {goal!r}"
            )
            for selector, amount in _table(goal).items():
                assert 0 <= amount < 1, (
                    f"goal({index}) removes a fraction in [0, 1) of {selector!r}, not {amount!r}"
                )

    def test_sparsity_never_falls(self) -> None:
        """What was pruned stays pruned."""
        reached: dict[str, float | Fraction] = {}
        for index, goal in enumerate(self.goals(), 1):
            for selector, amount in _table(goal).items() if isinstance(goal, Sparsity) else ():
                assert amount >= reached.get(selector, 0.0), (
                    f"masks nest, so the sparsity never falls; goal({index}) has {amount} for "
                    f"{selector!r} after {reached[selector]}"
                )
                reached[selector] = amount

    def test_goals_depend_on_the_round_alone(self) -> None:
        """Asked again, in any order, a schedule says the same."""
        first = self.goals()
        again = [self.rule().goal(index) for index in range(self.rule().rounds, 0, -1)][::-1]
        assert first == again, "goal(round_index) depends on the round alone, not on earlier calls"

    def goals(self) -> list[Goal]:
        """Return the goals of all rounds."""
        return [self.rule().goal(index) for index in range(1, self.rule().rounds + 1)]


def _table(goal: Goal) -> Mapping[str, float | Fraction]:
    return goal.amounts if isinstance(goal.amounts, Mapping) else {"*": goal.amounts}
