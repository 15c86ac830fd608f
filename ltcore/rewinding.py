"""Where surviving weights go back to before the next round: what a rule for that is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ltcore.arrays import Params
from ltcore.masks import Masks

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True)
class RewindContext:
    """What a rewind policy may use. Params hold parameters and buffers, in canonical layout.

    Features behind a flatten are in canonical order too, so that what a policy draws falls on
    the same weights in every framework.

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
    """A rule for the weights from which a round starts.

    Attributes:
        needs_start_step: optional: True where the policy means nothing unless training resumes
            at ``resume_step``, so that ``train`` must take a ``start_step``.
    """

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
class FunctionPolicy:
    """A policy made of a function of a `RewindContext`; it gets the snapshot of initialization."""

    function: Callable[[RewindContext], Params]
    name: str

    @property
    def snapshots(self) -> tuple[int, ...]:
        """Initialization."""
        return (0,)

    @property
    def resume_step(self) -> int:
        """Training starts over."""
        return 0

    def rewind(self, context: RewindContext) -> Params:
        """Return what the function gives."""
        return self.function(context)

    def describe(self) -> dict[str, Any]:
        """Return the function's name as the kind."""
        return {"kind": self.name, "step": 0}
