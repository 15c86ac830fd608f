"""What counts as a whole number: anything with an index, such as numpy's integers."""

import operator
from typing import Any


def whole(value: Any) -> int | None:
    """Return ``value`` as an int; None if it is no whole number, or a bool.

    >>> whole(3), whole(3.0), whole(True)
    (3, None, None)
    """
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None
