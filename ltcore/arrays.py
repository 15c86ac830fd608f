"""What an array inside ltcore is: owned, C-contiguous, of a dtype that numpy knows.

The rule pays for itself twice: training cannot write into a snapshot, and a file writer that
trusts contiguity cannot write wrong bytes.
"""

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from ltcore.errors import NonFiniteError

Array: TypeAlias = np.ndarray[Any, Any]
Params: TypeAlias = Mapping[str, Array]
"""``{name: array}`` with portable names and canonical axes, always owned copies."""


def own(array: Any) -> Array:
    """Return a C-contiguous copy that shares no memory with ``array`` (0-d stays 0-d)."""
    return np.array(array, order="C", copy=True)


def freeze(array: Array) -> Array:
    """Return ``array`` after making it read-only."""
    array.flags.writeable = False
    return array


def check_finite(params: Params) -> None:
    """Raise unless every float array of ``params`` is finite.

    Raises:
        NonFiniteError: names the parameter and how many of its values are not finite.
    """
    for name, array in params.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            bad = int(array.size - np.count_nonzero(np.isfinite(array)))
            raise NonFiniteError(
                f"parameter {name!r} has {bad} values of {array.size} that are NaN or infinite; "
                "a ticket stores finite values only"
            )
