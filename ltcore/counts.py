"""How many weights to remove: the one rounding rule, in integers."""

from fractions import Fraction

from ltcore.errors import InvalidValueError


def fraction(value: float, name: str) -> Fraction:
    """Return ``value`` as the decimal the user typed, checked to lie in [0, 1).

    A float 0.3 is a little less than 3/10; the shortest decimal that gives the float is what was
    meant, and makes ``0.3 * 5`` round up as on paper.

    Raises:
        InvalidValueError: not a number in [0, 1).
    """
    try:
        exact = Fraction(repr(float(value)))
    except (TypeError, ValueError):
        exact = Fraction(-1)
    if not 0 <= exact < 1 or isinstance(value, bool):
        raise InvalidValueError(
            f"{name} is {value!r}; expected a fraction of the weights, from 0 up to but not "
            "including 1 (0.2 removes 20 %)"
        )
    return exact


def removed_by_rate(kept: int, rate: Fraction) -> int:
    """Return how many of ``kept`` weights go: floor(rate * kept + 1/2), but never the last one."""
    return min(int(rate * kept + Fraction(1, 2)), max(kept - 1, 0))


def removed_by_sparsity(kept: int, total: int, sparsity: Fraction) -> int:
    """Return how many more of ``kept`` weights go until ``sparsity`` of ``total`` are gone."""
    goal = removed_by_rate(total, sparsity)
    return max(goal - (total - kept), 0)
