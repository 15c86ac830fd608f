"""Rewind policies that go back to weights that were there before, or keep those that are."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from ltcore.arrays import Params
from ltcore.errors import InvalidValueError
from ltcore.rewinding import RewindContext
from ltcore.whole import whole


@dataclass(frozen=True, slots=True)
class ToStep:
    """Go back to the values after ``step`` updates; 0 is initialization.

    Frankle and Carbin 2019 (step 0); Frankle et al. 2019, section 3 (step k).
    """

    step: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "step", check_step(self.step, "rewind_to"))

    @classmethod
    def initialization(cls) -> "ToStep":
        """Go back to step 0."""
        return cls(0)

    @classmethod
    def epoch(cls, epoch: float, steps_per_epoch: int) -> "ToStep":
        """Go back to the end of an epoch, or of a part of one.

        Raises:
            InvalidValueError: a number is out of its range.
        """
        steps = check_step(steps_per_epoch, "steps_per_epoch", least=1)
        return cls(_rounded(epoch, steps, "epoch"))

    @classmethod
    def fraction(cls, fraction: float, steps: int) -> "ToStep":
        """Go back to a fraction of a training of ``steps`` updates.

        Raises:
            InvalidValueError: a number is out of its range.
        """
        steps = check_step(steps, "steps", least=1)
        step = _rounded(fraction, steps, "fraction")
        if step > steps:
            raise InvalidValueError(f"fraction is {fraction!r}; expected one from 0 to 1")
        return cls(step)

    @property
    def snapshots(self) -> tuple[int, ...]:
        """The one step."""
        return (self.step,)

    @property
    def resume_step(self) -> int:
        """The one step."""
        return self.step

    def rewind(self, context: RewindContext) -> Params:
        """Return the snapshot."""
        return context.snapshots[self.step]

    def describe(self) -> dict[str, Any]:
        """Return kind and step."""
        return {"kind": "step" if self.step else "initialization", "step": self.step}


@dataclass(frozen=True, slots=True)
class KeepTrained:
    """Keep the trained values: fine-tuning ("strategy 2" of Frankle and Carbin 2019, app. B)."""

    @property
    def snapshots(self) -> tuple[int, ...]:
        """None."""
        return ()

    @property
    def resume_step(self) -> int:
        """Training starts over."""
        return 0

    def rewind(self, context: RewindContext) -> Params:
        """Return the trained params."""
        return context.trained

    def describe(self) -> dict[str, Any]:
        """Return the kind."""
        return {"kind": "trained", "step": 0}


@dataclass(frozen=True, slots=True)
class LearningRateRewind:
    """Keep the trained values and take the schedule back to ``step`` (Renda et al. 2020).

    ``train(model, start_step)`` then makes the updates from ``step`` to the end once more, at the
    learning rates of those updates.
    """

    step: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "step", check_step(self.step, "step"))

    @property
    def needs_start_step(self) -> bool:
        """Without a schedule that resumes, this were fine-tuning."""
        return True

    @property
    def snapshots(self) -> tuple[int, ...]:
        """None."""
        return ()

    @property
    def resume_step(self) -> int:
        """Where the schedule goes back to."""
        return self.step

    def rewind(self, context: RewindContext) -> Params:
        """Return the trained params."""
        return context.trained

    def describe(self) -> dict[str, Any]:
        """Return kind and step."""
        return {"kind": "learning-rate", "step": self.step}


def check_step(value: Any, argument: str, *, least: int = 0) -> int:
    """Return ``value``, a whole number of updates, as an int.

    Raises:
        InvalidValueError: it is none, or below ``least``; names the argument.
    """
    number = whole(value)
    if number is None or number < least:
        raise InvalidValueError(
            f"{argument} is {value!r}; expected a number of optimizer updates, {least} or more"
        )
    return number


def _rounded(share: float, steps: int, argument: str) -> int:
    """Return ``share * steps``, rounded half up from the decimal that the user typed."""
    try:
        exact = Fraction(repr(float(share)))
    except (TypeError, ValueError):
        exact = Fraction(-1)
    if exact < 0 or isinstance(share, bool):
        raise InvalidValueError(f"{argument} is {share!r}; expected a number, 0 or more")
    return int(exact * steps + Fraction(1, 2))
