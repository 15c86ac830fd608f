"""Where surviving weights go back to before the next round."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ltcore.arrays import Params
from ltcore.errors import InvalidValueError
from ltcore.masks import Masks

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True)
class RewindContext:
    """What a rewind policy may use. Params hold parameters and buffers, in canonical layout.

    Attributes:
        masks: the masks of the coming round.
        snapshots: ``{step: params}`` at the steps that the policy asked for.
        trained: params after the last update of the round that ended.
        redraw: returns fresh params from every layer's own initializer; differs by round,
            is the same for the same seed.
        rng: a generator seeded by the run's seed and the round.
    """

    masks: Masks
    snapshots: Mapping[int, Params]
    trained: Params
    redraw: Callable[[], Params]
    rng: "np.random.Generator"


@runtime_checkable
class RewindPolicy(Protocol):
    """A rule for the weights from which a round starts."""

    @property
    def snapshots(self) -> tuple[int, ...]:
        """Steps (optimizer updates since initialization) at which it wants a snapshot."""
        ...

    @property
    def resume_step(self) -> int:
        """The step of training that its params belong to; a resuming schedule goes on there."""
        ...

    def rewind(self, context: RewindContext) -> Params:
        """Return all params of the coming round; the loop zeroes what the masks prune."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return plain data for a ticket's provenance; ``kind`` is required."""
        ...


@dataclass(frozen=True, slots=True)
class ToStep:
    """Go back to the values after ``step`` updates; 0 is initialization.

    Frankle and Carbin 2019 (step 0); Frankle et al. 2019, section 3 (step k).
    """

    step: int

    def __post_init__(self) -> None:
        if not isinstance(self.step, int) or isinstance(self.step, bool) or self.step < 0:
            raise InvalidValueError(
                f"rewind_to is {self.step!r}; expected a number of optimizer updates, 0 or more"
            )

    @classmethod
    def initialization(cls) -> "ToStep":
        """Go back to step 0."""
        return cls(0)

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

    snapshots: tuple[int, ...] = ()
    resume_step: int = 0

    def rewind(self, context: RewindContext) -> Params:
        """Return the trained params."""
        return context.trained

    def describe(self) -> dict[str, Any]:
        """Return the kind."""
        return {"kind": "trained", "step": 0}


@dataclass(frozen=True, slots=True)
class RandomReinit:
    """Draw anew from every layer's own initializer: the control of Frankle and Carbin 2019, s. 2.

    Model-specific initialization that is not in the layers (a loop over ``nn.init`` calls) is
    not known to ltcore; such a model wants a policy of its own.
    """

    snapshots: tuple[int, ...] = ()
    resume_step: int = 0

    def rewind(self, context: RewindContext) -> Params:
        """Return fresh params."""
        return context.redraw()

    def describe(self) -> dict[str, Any]:
        """Return the kind."""
        return {"kind": "reinit", "step": 0}
