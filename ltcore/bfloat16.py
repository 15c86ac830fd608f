"""bfloat16 and float32: numpy has only the second, of which the first is the upper half."""

import numpy as np

from ltcore.arrays import Array


def is_exact(array: Array) -> bool:
    """Return whether every value of a float32 array has a bfloat16 of the same bits.

    Args:
        array: little-endian float32, C-contiguous, any shape.
    """
    return not _halves(array)[:, 0].any()


def narrowed(array: Array) -> Array:
    """Return the bfloat16 bits, little-endian uint16 of the same shape; lower halves are dropped.

    Args:
        array: little-endian float32, C-contiguous, any shape.
    """
    return np.ascontiguousarray(_halves(array)[:, 1]).reshape(array.shape)


def widened(bits: Array) -> Array:
    """Return the float32 array, owned, of the bfloat16 ``bits``, little-endian uint16."""
    array = np.zeros(bits.shape, "<f4")
    _halves(array)[:, 1] = bits.reshape(-1)
    return array


def _halves(array: Array) -> Array:
    """Return a view of a float32 array as uint16 (size, 2), the lower half first."""
    return array.reshape(-1).view("<u2").reshape(-1, 2)
