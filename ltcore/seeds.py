"""Random numbers: of a seed, a place in the run, and what they are for."""

from typing import Any

import numpy as np

from ltcore.errors import InvalidValueError
from ltcore.whole import whole

SCORES = 0
"""Stream of what criteria draw."""

REWINDS = 1
"""Stream of what rewind policies draw."""

MOVES = 2
"""Stream of what dynamic sparse training draws."""

REDRAWS = 3
"""Stream of the seeds of layers' own initializers."""

SAMPLES = 4
"""Stream of the masks that are sampled from a supermask."""


def generator(seed: int, index: int = 0, stream: int = SCORES) -> np.random.Generator:
    """Return a generator that is its own for every ``seed``, ``index`` and ``stream``.

    Args:
        seed: the user's.
        index: the round, or the number of updates.
        stream: what is drawn; keeps one purpose apart from another.

    Raises:
        InvalidValueError: the seed is none.
    """
    key = np.array([check_seed(seed), index + (stream << 32)], np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def check_seed(seed: Any) -> int:
    """Return ``seed`` as an int.

    Raises:
        InvalidValueError: it is no whole number from 0 to 2**64 - 1.
    """
    number = whole(seed)
    if number is None or not 0 <= number < 1 << 64:
        raise InvalidValueError(f"seed is {seed!r}; expected a whole number from 0 to 2**64 - 1")
    return number
