"""The pattern n:m: of every m weights that follow each other, n stay."""

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from ltcore.arrays import Array
from ltcore.errors import InvalidValueError
from ltcore.layouts import input_axis
from ltcore.parameters import ParamInfo
from ltcore.whole import whole

MANTISSA = 53
"""Bits in which float64 holds every whole number exactly."""


@dataclass(frozen=True, slots=True)
class NM:
    """At most ``n`` of ``m`` weights that follow each other along the input axis (2:4, 4:8).

    Mishra et al. 2021 (arXiv 2104.08378), section 3. The axis is the one that a layer sums over,
    as sparse tensor cores want it: input features of a dense or recurrent layer, input channels of
    a convolution at each position of its kernel. It is in canonical order, the same in every
    framework.

    Units are weights. Their scores are ranks within their group of ``m``, and the criterion's
    scores decide only between equal ranks. So each group gives its first weight before any gives
    its second, and a sparsity of ``(m - n) / m`` is exactly n:m under any allocation that asks
    every parameter for that.

    Attributes:
        n: how many stay.
        m: of how many.
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        n, m = whole(self.n), whole(self.m)
        if n is None or m is None or not 1 <= n < m <= 64:
            raise InvalidValueError(
                f"pattern n:m is {self.n!r}:{self.m!r}; expected whole numbers, 1 <= n < m <= 64"
            )
        object.__setattr__(self, "n", n)
        object.__setattr__(self, "m", m)

    @property
    def name(self) -> str:
        """Such as ``2:4``."""
        return f"{self.n}:{self.m}"

    @property
    def sparsity(self) -> float:
        """``(m - n) / m``: what the pattern means, and the most that it allows."""
        return (self.m - self.n) / self.m

    def misfit(self, info: ParamInfo) -> str:
        """Return why a parameter cannot be n:m."""
        axis = input_axis(info.kind, info.role)
        if axis is None:
            return f"no input axis in the {info.role} of a {info.kind} layer"
        if info.shape[axis] % self.m:
            return f"{info.shape[axis]} inputs are no multiple of {self.m}"
        return ""

    def units(self, mask: Array, info: ParamInfo) -> Array:
        """Return the weights' mask, with at most ``m - n`` removed of each group.

        What an earlier, unstructured pruning took beyond that does not count, so that the other
        groups still get to n:m.
        """
        gone = ~self._groups(mask, info)
        gone &= np.cumsum(gone, axis=0, dtype=np.int8) <= self.m - self.n
        return self._whole(~gone, info)

    def pool(self, scores: Array, mask: Array, info: ParamInfo) -> Array:
        """Return each weight's rank in its group, float64; equal ranks are told by their scores.

        Removed units rank lowest, so a group that has lost ``m - n`` has none left to lose.
        """
        keys = self._groups(_ordered(np.where(mask, scores, 0)), info)
        keys[~self._groups(self.units(mask, info), info)] = np.iinfo(np.int64).min
        ranks = np.zeros(keys.shape, np.int8)
        for i, j in combinations(range(self.m), 2):
            first = keys[i] >= keys[j]  # of equal weights the later ranks lower
            ranks[i] += first
            ranks[j] += ~first
        bits = MANTISSA - self.m.bit_length()
        keys >>= 64 - bits
        keys += ranks.astype(np.int64) << bits
        pooled = self._whole(keys.astype(np.float64), info)
        unknown = np.isnan(scores)
        unknown &= mask
        pooled[unknown] = np.nan
        return pooled

    def spread(self, units: Array, info: ParamInfo) -> Array:
        """Return ``units``: they are the weights."""
        return units

    def _groups(self, array: Array, info: ParamInfo) -> Array:
        """Return a copy of ``array`` as ``(m, ..., groups)``."""
        axis = input_axis(info.kind, info.role)
        assert axis is not None  # the pattern fits
        last = np.moveaxis(array, axis, -1)
        return np.array(np.moveaxis(last.reshape(*last.shape[:-1], -1, self.m), -1, 0), order="C")

    def _whole(self, groups: Array, info: ParamInfo) -> Array:
        """Undo `_groups`."""
        axis = input_axis(info.kind, info.role)
        assert axis is not None
        last = np.moveaxis(groups, 0, -1).reshape(*groups.shape[1:-1], -1)
        return np.ascontiguousarray(np.moveaxis(last, -1, axis))


def _ordered(scores: Array) -> Array:
    """Return whole numbers, int64, in the order of ``scores``; equal scores give equal numbers."""
    bits = (scores.astype(np.float64) + 0.0).view(np.int64)  # -0.0 + 0.0 is 0.0
    return np.where(bits < 0, bits ^ np.iinfo(np.int64).max, bits)
