"""Scores: one number a weight, whole or a block at a time."""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from ltcore.arrays import Array, Params
from ltcore.errors import NonFiniteError


class Scores(Protocol):
    """Scores that are looked at a block at a time, so that they need not all exist at once."""

    @property
    def dtype(self) -> np.dtype[np.floating]:
        """The dtype in which blocks come: the widest of all parameters, at least float32."""
        ...

    @property
    def source(self) -> str:
        """What gave the scores, for error messages."""
        ...

    def block(self, name: str, where: slice) -> Array:
        """Return the scores of ``name`` at flat positions ``where``, 1-D."""
        ...


@dataclass(frozen=True)
class ArrayScores:
    """Scores held whole: ``{name: array of the parameter's shape}``."""

    arrays: Params
    source: str = "the criterion"

    @cached_property
    def dtype(self) -> np.dtype[np.floating]:
        """The widest dtype, at least float32."""
        return widest(self.arrays)

    def block(self, name: str, where: slice) -> Array:
        """Return flat scores at ``where``."""
        return self.arrays[name].reshape(-1)[where].astype(self.dtype, copy=False)


def raise_if_nan(scores: Array, mask: Array | np.bool_, name: str, source: str) -> None:
    """Raise if a kept weight's score is NaN.

    Raises:
        NonFiniteError: names what gave the scores, and the parameter.
    """
    nan = int(np.count_nonzero(np.isnan(scores) & mask))
    if nan:
        raise NonFiniteError(
            f"parameter {name!r}: {nan} of {scores.size} scores of {source} are NaN; its weights "
            "(or what was made of them) cannot be ranked"
        )


def widest(arrays: Params) -> np.dtype[np.floating]:
    """Return the widest dtype of ``arrays``, at least float32."""
    return np.result_type(np.float32, *(array.dtype for array in arrays.values()))
