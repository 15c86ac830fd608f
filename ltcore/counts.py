"""How many weights to remove, and how many stay where: the rounding rules, in integers."""

from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction
from math import isfinite
from numbers import Real

from ltcore.errors import InvalidValueError


def fraction(value: float | Fraction, name: str) -> Fraction:
    """Return ``value`` as the decimal the user typed, checked to lie in [0, 1).

    A float 0.3 is a little less than 3/10; the shortest decimal that gives the float is what was
    meant, and makes ``0.3 * 5`` round up as on paper. A `Fraction` is what it is.

    Raises:
        InvalidValueError: not a number in [0, 1).
    """
    exact = Fraction(-1)
    if isinstance(value, Fraction):
        exact = value
    elif isinstance(value, Real) and isfinite(value):
        exact = Fraction(repr(float(value)))
    if not 0 <= exact < 1 or isinstance(value, bool):
        raise InvalidValueError(
            f"{name} is {value!r}; expected a fraction of the weights, from 0 up to but not "
            f"including 1 (0.2 removes 20 %){_as_share(exact)}"
        )
    return exact


def _as_share(percent: Fraction) -> str:
    """Return what somebody probably meant who wrote percent."""
    return f"; did you mean {float(percent / 100):g}?" if 1 < percent < 100 else ""


def removed_by_rate(kept: int, rate: Fraction) -> int:
    """Return how many of ``kept`` weights go: floor(rate * kept + 1/2), but never the last one."""
    return min(int(rate * kept + Fraction(1, 2)), max(kept - 1, 0))


def removed_by_sparsity(kept: int, total: int, sparsity: Fraction) -> int:
    """Return how many more of ``kept`` weights go until ``sparsity`` of ``total`` are gone."""
    goal = removed_by_rate(total, sparsity)
    return max(goal - (total - kept), 0)


def shared(
    total: int, weights: Sequence[Fraction], least: Sequence[int], most: Sequence[int]
) -> list[int]:
    """Return whole numbers in proportion to ``weights`` that add up to ``total``.

    Where the proportion would leave the bounds, the bound holds and the rest is shared in
    proportion among the others. Rounding is by largest remainder, the first of equal ones first.

    Args:
        total: from ``sum(least)`` to ``sum(most)``.
        weights: one positive number each.
        least: lower bounds.
        most: upper bounds, none below its lower one.

    >>> shared(10, [Fraction(1), Fraction(1), Fraction(8)], [0, 0, 0], [9, 9, 5])
    [3, 2, 5]
    """
    entries = [(Fraction(w), low, high) for w, low, high in zip(weights, least, most, strict=True)]
    level = _level(total, entries)
    exact = [_within(weight * level, low, high) for weight, low, high in entries]
    whole = [int(number) for number in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: whole[i] - exact[i])
    for i in by_remainder[: total - sum(whole)]:
        whole[i] += 1
    return whole


def _level(total: int, entries: Sequence[tuple[Fraction, int, int]]) -> Fraction:
    """Return the factor of proportion at which the bounded shares add up to ``total``."""

    def filled(level: Fraction) -> Fraction:
        return sum((_within(w * level, low, high) for w, low, high in entries), Fraction())

    # Between two points at which some share meets a bound, the sum is a straight line.
    points = sorted({bound / w for w, low, high in entries for bound in (low, high)} | {Fraction()})
    start = points[bisect_right(points, Fraction(total), key=filled) - 1]
    slope = sum((w for w, low, high in entries if low <= w * start < high), Fraction())
    return start + (total - filled(start)) / slope if slope else start


def _within(number: Fraction, low: int, high: int) -> Fraction:
    return min(max(number, Fraction(low)), Fraction(high))
