"""Which weights move in dynamic sparse training, and how many: SET, RigL, or another rule."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ltcore.closest import did_you_mean, lacking
from ltcore.counts import fraction
from ltcore.criteria import Criterion, FunctionCriterion
from ltcore.errors import InvalidValueError, UnknownNameError
from ltcore.options import Named, made, parsed
from ltcore.weight_criteria import magnitude, random


class SparseMethod(Protocol):
    """A rule for which weights move, and how many.

    Attributes:
        name: the word for it.
        drop: scores the kept weights; the lowest are dropped.
        grow: scores the others; the highest are grown.
    """

    @property
    def name(self) -> str:
        """The word for it."""
        ...

    @property
    def drop(self) -> Criterion:
        """Scores the kept weights."""
        ...

    @property
    def grow(self) -> Criterion:
        """Scores the weights that are not kept, with those that were just dropped."""
        ...

    def share(self, step: int, until: int | None) -> float:
        """Return the share of each parameter's kept weights that moves after ``step`` updates."""
        ...


@dataclass(frozen=True, slots=True)
class SET:
    """Drop the smallest weights, grow random ones (Mocanu et al. 2018).

    Attributes:
        fraction: the share of kept weights that moves each time.
    """

    fraction: float = 0.3

    def __post_init__(self) -> None:
        fraction(self.fraction, "fraction")

    @property
    def name(self) -> str:
        """``set``."""
        return "set"

    @property
    def drop(self) -> Criterion:
        """Magnitude."""
        return magnitude

    @property
    def grow(self) -> Criterion:
        """Random."""
        return random

    def share(self, step: int, until: int | None) -> float:
        """Return the fraction, always."""
        return self.fraction


@dataclass(frozen=True, slots=True)
class RigL:
    """Drop the smallest weights, grow those with the largest gradients (Evci et al. 2020).

    Attributes:
        fraction: the share of kept weights that moves at first; it falls to 0 along a cosine.
    """

    fraction: float = 0.3

    def __post_init__(self) -> None:
        fraction(self.fraction, "fraction")

    @property
    def name(self) -> str:
        """``rigl``."""
        return "rigl"

    @property
    def drop(self) -> Criterion:
        """Magnitude."""
        return magnitude

    @property
    def grow(self) -> Criterion:
        """The size of the gradient."""
        return _gradient_size

    def share(self, step: int, until: int | None) -> float:
        """Return ``fraction / 2 * (1 + cos(pi * step / until))``.

        Raises:
            InvalidValueError: ``until`` is None.
        """
        if until is None:
            raise InvalidValueError(
                "until is missing: RigL moves fewer and fewer weights until that many updates "
                "were made; the paper has three quarters of the training"
            )
        return self.fraction / 2 * (1 + math.cos(math.pi * step / until))


_gradient_size = FunctionCriterion(
    "gradient-size", lambda param: np.abs(param.gradient), frozenset({"gradient"}), elementwise=True
)

METHODS: Mapping[str, type[SET] | type[RigL]] = {"set": SET, "rigl": RigL}

_PARTS = ("name", "drop", "grow", "share")


def method_from(given: Named | SparseMethod) -> SparseMethod:
    """Return the method that was named or given.

    Raises:
        UnknownNameError: there is none of that name.
        InvalidValueError: it is no method, or does not take the options.
    """
    if isinstance(given, str | Mapping):
        name, options = parsed("method", given)
        if name not in METHODS:
            hint = did_you_mean(name, METHODS) or "."
            raise UnknownNameError(f"no method called {name!r}{hint} There are {sorted(METHODS)}")
        chosen: SparseMethod = made("method", name, METHODS[name], options)
        return chosen
    if not all(hasattr(given, part) for part in _PARTS):
        raise InvalidValueError(
            f"method is {given!r}; expected 'set', 'rigl', or an object with name, drop, grow "
            f"and share(){lacking(given, _PARTS)}"
        )
    return given
