"""What each round aims for: one shot, the same rate every round, or a sparsity in n rounds."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from ltcore.allocation import Amounts, Goal, Rate, Sparsity
from ltcore.counts import fraction
from ltcore.errors import InvalidValueError
from ltcore.whole import whole


class Schedule(Protocol):
    """A number of prunings and a goal for each."""

    @property
    def rounds(self) -> int:
        """How many prunings there are; round 0 is the dense network before them."""
        ...

    def goal(self, round_index: int) -> Goal:
        """Return what the pruning before round ``round_index`` (1 .. rounds) aims for."""
        ...


@dataclass(frozen=True, slots=True)
class ConstantRate:
    """Remove the same share of the remaining weights every round.

    Frankle and Carbin 2019, section 2: 20 % a round, 10 % at the output layer.
    """

    rate: Amounts
    rounds: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "rounds", _check_rounds(self.rounds))
        _check(self.rate, "rate")

    def goal(self, round_index: int) -> Goal:
        """Return the rate, whatever the round."""
        return Rate(self.rate)


@dataclass(frozen=True, slots=True)
class ToSparsity:
    """Reach ``sparsity`` in ``rounds`` equal steps; each keeps ``(1 - sparsity) ** (1 / rounds)``.

    The last round's count is exact, whatever rounding the earlier ones did.
    """

    sparsity: Amounts
    rounds: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "rounds", _check_rounds(self.rounds))
        _check(self.sparsity, "sparsity")

    def goal(self, round_index: int) -> Goal:
        """Return the sparsity due after ``round_index`` prunings."""
        if round_index == self.rounds:
            return Sparsity(self.sparsity)
        share = round_index / self.rounds
        if isinstance(self.sparsity, Mapping):
            return Sparsity({p: 1 - (1 - s) ** share for p, s in self.sparsity.items()})
        return Sparsity(1 - (1 - self.sparsity) ** share)


@dataclass(frozen=True, slots=True)
class OneShot:
    """Reach ``sparsity`` in one pruning."""

    sparsity: Amounts

    def __post_init__(self) -> None:
        _check(self.sparsity, "sparsity")

    def goal(self, round_index: int) -> Goal:
        """Return the sparsity."""
        return Sparsity(self.sparsity)

    @property
    def rounds(self) -> int:
        """One."""
        return 1


@dataclass(frozen=True, slots=True)
class Polynomial:
    """Reach ``sparsity`` as gradual pruning does, with rounds for its updates.

    Zhu and Gupta 2017, equation 1, with power 3; power 1 removes the same number every round.
    """

    sparsity: Amounts
    rounds: int
    power: float = 3.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "rounds", _check_rounds(self.rounds))
        _check(self.sparsity, "sparsity")
        if isinstance(self.power, bool) or not 0 < self.power < float("inf"):
            raise InvalidValueError(f"power is {self.power!r}; expected a number above 0")

    def goal(self, round_index: int) -> Goal:
        """Return the sparsity due after ``round_index`` prunings."""
        if round_index == self.rounds:
            return Sparsity(self.sparsity)
        share = 1 - (1 - round_index / self.rounds) ** self.power
        if isinstance(self.sparsity, Mapping):
            return Sparsity({p: s * share for p, s in self.sparsity.items()})
        return Sparsity(self.sparsity * share)


@dataclass(frozen=True, slots=True)
class FunctionSchedule:
    """A schedule made of a function; all rounds are asked for before the first one trains.

    Attributes:
        function: returns the sparsity due after that many prunings (1 .. rounds), or
            ``{selector: sparsity}``, or a `Goal`.
        rounds: number of prunings.
    """

    function: Callable[[int], Amounts | Goal]
    rounds: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "rounds", _check_rounds(self.rounds))
        for index in range(1, self.rounds + 1):
            _check(self.goal(index).amounts, f"the schedule's sparsity of round {index}")

    def goal(self, round_index: int) -> Goal:
        """Return what the function says."""
        given = self.function(round_index)
        return given if isinstance(given, Rate | Sparsity) else Sparsity(given)


def _check_rounds(rounds: int) -> int:
    number = whole(rounds)
    if number is None or number < 1:
        raise InvalidValueError(f"rounds is {rounds!r}; expected a number of prunings, 1 or more")
    return number


def _check(amounts: Amounts, argument: str) -> None:
    for value in amounts.values() if isinstance(amounts, Mapping) else (amounts,):
        fraction(value, argument)
