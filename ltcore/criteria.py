"""Which weights matter: rules that turn what is known of a parameter into scores.

Higher = keep. A criterion sees one parameter at a time, as numpy arrays in canonical layout; it
knows no framework. A bare function over `Param` is a criterion.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ltcore.arrays import Array
from ltcore.closest import lacking
from ltcore.errors import InvalidValueError
from ltcore.parameters import ParamInfo

if TYPE_CHECKING:
    import numpy as np

SIGNALS = (
    "weight",
    "initial",
    "rewind",
    "gradient",
    "hessian_gradient",
    "fisher",
    "flow",
    "activations",
    "rng",
)
"""What a criterion may ask for with ``needs``; ``weight`` is always there."""


@dataclass(frozen=True, slots=True)
class Param:
    """What a criterion sees of one parameter.

    All arrays have the parameter's canonical shape, except in an elementwise criterion, which
    sees them in flat blocks. They are read, never written.

    Attributes:
        info: name, kind, role, shape and whether it belongs to an output layer.
        mask: bool, True = still kept.
        signals: ``{signal: array}``; use the properties below.
        generator: a seeded source of random numbers, for ``needs={"rng"}``.
    """

    info: ParamInfo
    mask: Array
    signals: Mapping[str, Array]
    generator: "np.random.Generator | None" = None

    @property
    def weight(self) -> Array:
        """The weights now."""
        return self._signal("weight")

    @property
    def initial(self) -> Array:
        """The weights at initialization."""
        return self._signal("initial")

    @property
    def rewind(self) -> Array:
        """The weights at the rewind step."""
        return self._signal("rewind")

    @property
    def gradient(self) -> Array:
        """The gradient of the loss, averaged over the batches given."""
        return self._signal("gradient")

    @property
    def hessian_gradient(self) -> Array:
        """The Hessian of the loss times its gradient; both over the kept prunable weights only."""
        return self._signal("hessian_gradient")

    @property
    def fisher(self) -> Array:
        """The mean over examples of the squared gradient of one example's loss."""
        return self._signal("fisher")

    @property
    def flow(self) -> Array:
        """The gradient of the sum of all outputs for an input of ones, float64.

        All parameters and buffers count with their absolute values (Tanaka et al. 2020, section
        6), so it is not negative in a network of products, sums and ReLUs.
        """
        return self._signal("flow")

    @property
    def activations(self) -> Array:
        """The root mean square of the input that each weight multiplies."""
        return self._signal("activations")

    @property
    def rng(self) -> "np.random.Generator":
        """A `numpy.random.Generator`, seeded by the run's seed and the round."""
        if self.generator is None:
            raise InvalidValueError(_undeclared("rng"))
        return self.generator

    def _signal(self, name: str) -> Array:
        if name not in self.signals:
            raise InvalidValueError(_undeclared(name))
        return self.signals[name]


def _undeclared(signal: str) -> str:
    return f"the criterion reads param.{signal} without asking for it; add needs={{{signal!r}}}"


class Criterion(Protocol):
    """A prune criterion.

    Attributes:
        name: what a user types.
        needs: the `SIGNALS` it reads besides ``weight``.
        elementwise: True promises that a weight's score depends on this weight's own values
            only; ltcore then scores in small blocks and never holds all scores.
        passes: optional: in how many steps of equal ratio a pruning reaches its goal, with new
            signals and scores in each; one if it is not there.
        rearrange: optional: a method ``rearrange(before, chosen, rng) -> masks``, the last word
            on the masks that the scores chose: as many kept in each parameter, none that was
            gone before. It sees units where the pruning has a pattern.
        unpoolable: optional: why a unit of many weights, such as a channel, cannot be scored by
            those of its weights, and what to use instead; empty if it can.
    """

    @property
    def name(self) -> str:
        """What a user types."""
        ...

    @property
    def needs(self) -> frozenset[str]:
        """The signals it reads."""
        ...

    @property
    def elementwise(self) -> bool:
        """Whether it scores each weight by itself."""
        ...

    def score(self, param: Param) -> Array:
        """Return scores of the shape of ``param.weight``; higher = keep, NaN is an error."""
        ...


@dataclass(frozen=True, slots=True)
class FunctionCriterion:
    """A criterion made of a function."""

    name: str
    function: Callable[[Param], Array]
    needs: frozenset[str] = frozenset()
    elementwise: bool = False
    passes: int = 1

    def __post_init__(self) -> None:
        check_declared(self)

    def score(self, param: Param) -> Array:
        """Return the function's scores."""
        return self.function(param)


_PARTS = ("name", "needs", "elementwise", "score")


def as_criterion(given: Any, name: str = "") -> Criterion:
    """Return ``given`` as a criterion: an object with ``score``, its class, or a bare function.

    Raises:
        InvalidValueError: it is none of these.
    """
    made = given() if isinstance(given, type) else given
    if all(hasattr(made, part) for part in _PARTS):
        found: Criterion = made
        check_declared(found)
        return found
    if callable(made) and not hasattr(made, "score"):
        return FunctionCriterion(name or getattr(made, "__qualname__", "function"), made)
    raise InvalidValueError(
        f"criterion is {given!r}; expected a name, a function of a Param, or an object with name, "
        f"needs, elementwise and score(param){lacking(made, _PARTS)}"
    )


def check_declared(criterion: Criterion) -> None:
    """Raise unless what a criterion says of itself can be true.

    Raises:
        InvalidValueError: names the criterion and what is wrong with it.
    """
    unknown = sorted(set(criterion.needs) - set(SIGNALS))
    if unknown:
        raise InvalidValueError(
            f"criterion {criterion.name!r} needs {unknown}; what can be asked for is {SIGNALS}"
        )
    if criterion.elementwise and "rng" in criterion.needs:
        raise InvalidValueError(
            f"criterion {criterion.name!r} draws random numbers, so it is not elementwise: scored "
            "in blocks, a weight would get another score at each reading"
        )
    passes = passes_of(criterion)
    if not isinstance(passes, int) or isinstance(passes, bool) or passes < 1:
        raise InvalidValueError(
            f"criterion {criterion.name!r} has passes {passes!r}; expected a whole number >= 1"
        )


def passes_of(criterion: Criterion) -> int:
    """Return in how many steps a pruning reaches its goal."""
    passes: int = getattr(criterion, "passes", 1)
    return passes
