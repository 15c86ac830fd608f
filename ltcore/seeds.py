"""Random numbers: of a seed, a place in the run, and what they are for."""

import numpy as np


def generator(seed: int, index: int = 0, stream: int = 0) -> np.random.Generator:
    """Return a generator that is its own for every ``seed``, ``index`` and ``stream``.

    Args:
        seed: the user's.
        index: the round, or the number of updates.
        stream: keeps draws for one purpose apart from those for another.
    """
    return np.random.Generator(np.random.Philox(key=[seed, index + (stream << 32)]))
