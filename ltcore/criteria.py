"""Which weights matter: rules that turn what is known of a parameter into scores.

Higher = keep. A criterion sees one parameter at a time, as numpy arrays in canonical layout; it
knows no framework. A bare function over `Param` is a criterion.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np

from ltcore.arrays import Array, Params
from ltcore.errors import InvalidValueError, NonFiniteError
from ltcore.masks import Masks
from ltcore.parameters import ParamInfo

SIGNALS = ("weight", "initial", "rewind", "gradient", "rng")
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

    def __post_init__(self) -> None:
        unknown = sorted(self.needs - set(SIGNALS))
        if unknown:
            raise InvalidValueError(
                f"criterion {self.name!r} needs {unknown}; what can be asked for is {SIGNALS}"
            )
        if self.elementwise and "rng" in self.needs:
            raise InvalidValueError(
                f"criterion {self.name!r} draws random numbers, so it is not elementwise: scored "
                "in blocks, a weight would get another score at each reading"
            )

    def score(self, param: Param) -> Array:
        """Return the function's scores."""
        return self.function(param)


def _magnitude(param: Param) -> Array:
    scores: Array = np.absolute(param.weight)
    return scores


def _random(param: Param) -> Array:
    return np.asarray(param.rng.random(param.weight.shape))


def as_criterion(given: Any, name: str = "") -> Criterion:
    """Return ``given`` as a criterion: an object with ``score``, its class, or a bare function.

    Raises:
        InvalidValueError: it is none of these.
    """
    made = given() if isinstance(given, type) else given
    if all(hasattr(made, part) for part in ("name", "needs", "elementwise", "score")):
        found: Criterion = made
        return found
    if callable(made) and not hasattr(made, "score"):
        return FunctionCriterion(name or getattr(made, "__qualname__", "function"), made)
    raise InvalidValueError(
        f"criterion is {given!r}; expected a name, a function of a Param, or an object with name, "
        "needs, elementwise and score(param)"
    )


magnitude = FunctionCriterion("magnitude", _magnitude, elementwise=True)
"""``|w|``: Han et al. 2015; Frankle and Carbin 2019, section 2."""

random = FunctionCriterion("random", _random, frozenset({"rng"}))
"""Uniform scores: the random-mask control of Frankle and Carbin 2019, appendix E."""


class Scores(Protocol):
    """Scores that are looked at a block at a time, so that they need not all exist at once."""

    @property
    def dtype(self) -> np.dtype[np.floating]:
        """The dtype in which blocks come: the widest of all parameters, at least float32."""
        ...

    def block(self, name: str, where: slice) -> Array:
        """Return the scores of ``name`` at flat positions ``where``, 1-D."""
        ...


@dataclass(frozen=True)
class ArrayScores:
    """Scores held whole: ``{name: array of the parameter's shape}``."""

    arrays: Params

    @cached_property
    def dtype(self) -> np.dtype[np.floating]:
        """The widest dtype, at least float32."""
        return _widest(self.arrays)

    def block(self, name: str, where: slice) -> Array:
        """Return flat scores at ``where``."""
        return self.arrays[name].reshape(-1)[where].astype(self.dtype, copy=False)


@dataclass(frozen=True)
class BlockScores:
    """Scores made anew for each block by an elementwise criterion."""

    criterion: Criterion
    params: Mapping[str, Param]

    @cached_property
    def dtype(self) -> np.dtype[np.floating]:
        """The widest dtype of the scores, found on one weight of each; at least float32."""
        return _widest({name: self._scored(name, slice(0, 1)) for name in self.params})

    def block(self, name: str, where: slice) -> Array:
        """Return flat scores at ``where``."""
        return self._scored(name, where).astype(self.dtype, copy=False)

    def _scored(self, name: str, where: slice) -> Array:
        whole = self.params[name]
        signals = {signal: a.reshape(-1)[where] for signal, a in whole.signals.items()}
        mask = whole.mask.reshape(-1)[where]  # a view, also of an all-True mask
        param = Param(whole.info, mask, MappingProxyType(signals), whole.generator)
        return _checked(self.criterion, param)


def score(
    criterion: Criterion,
    signals: Mapping[str, Params],
    masks: Masks,
    infos: Sequence[ParamInfo],
    rng: "np.random.Generator",
) -> Scores:
    """Return the scores of every parameter in ``masks``.

    Args:
        criterion: the rule.
        signals: ``{signal: {name: array}}``, at least ``weight`` and what the criterion needs.
        masks: the weights that compete; also the parameters that are scored.
        infos: what is known of each parameter.
        rng: for criteria that need it.

    Raises:
        NonFiniteError: a score or weight is NaN; names the parameter.
        InvalidValueError: the criterion returned an array of another shape.
    """
    by_name = {info.name: info for info in infos}
    params = {
        name: Param(
            by_name[name],
            mask,
            {signal: arrays[name] for signal, arrays in signals.items()},
            rng if "rng" in criterion.needs else None,
        )
        for name, mask in masks.items()
    }
    if criterion.elementwise:
        return BlockScores(criterion, params)
    arrays = {}
    for name, param in params.items():
        arrays[name] = _checked(criterion, param)
        raise_if_nan(arrays[name], masks[name], name)
    return ArrayScores(arrays)


def raise_if_nan(scores: Array, mask: Array | np.bool_, name: str) -> None:
    """Raise if a kept weight's score is NaN.

    Raises:
        NonFiniteError: names the parameter.
    """
    nan = int(np.count_nonzero(np.isnan(scores) & mask))
    if nan:
        raise NonFiniteError(
            f"parameter {name!r}: {nan} of {scores.size} scores are NaN; its weights (or what "
            "the criterion made of them) cannot be ranked"
        )


def _checked(criterion: Criterion, param: Param) -> Array:
    scores = np.asarray(criterion.score(param))
    if scores.shape != param.weight.shape:
        raise InvalidValueError(
            f"criterion {criterion.name!r} gave scores of shape {scores.shape} for "
            f"{param.info.name!r}; expected {param.weight.shape}, one score a weight"
        )
    return scores if scores.dtype.kind == "f" else scores.astype(np.float64)


def _widest(arrays: Params) -> np.dtype[np.floating]:
    return np.result_type(np.float32, *(array.dtype for array in arrays.values()))
