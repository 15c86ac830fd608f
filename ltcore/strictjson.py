"""JSON read strictly: of what the format and Python's reader allow, only the unambiguous."""

import json
import math
import re
from collections import Counter
from typing import Any, NoReturn, TypeVar

from ltcore.errors import TicketFileError

MAX_DEPTH = 32

_SURROGATE = re.compile("[\ud800-\udfff]")
_WORDS = {
    str: "a text",
    int: "an integer",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}
_T = TypeVar("_T", str, int, bool, list[Any], dict[str, Any])


def shown(value: Any) -> str:
    """Return a short text for a value of unknown size, for a message."""
    text = repr(sorted(value)[:20] if isinstance(value, set | dict) else value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def parse_object(text: str, what: str) -> dict[str, Any]:
    """Return the object in ``text``; of what JSON and `json` allow, only the unambiguous.

    Raises:
        TicketFileError: no JSON object, a duplicate key, NaN or infinity, nested deeper than
            `MAX_DEPTH`, or a string that is no Unicode text.
    """

    def refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            counts = Counter(name for name, _ in pairs)
            raise TicketFileError(
                f"the {what} has the key {shown(counts.most_common(1)[0][0])} twice"
            )
        return found

    def refuse_constant(constant: str) -> NoReturn:
        raise TicketFileError(f"the {what} has the number {constant}, which is not finite")

    def finite(literal: str) -> float:
        number = float(literal)
        return number if math.isfinite(number) else refuse_constant(literal[:20])

    try:
        value = json.loads(
            text,
            object_pairs_hook=refuse_duplicates,
            parse_constant=refuse_constant,
            parse_float=finite,
        )
    except RecursionError:
        raise TicketFileError(f"the {what} is nested deeper than {MAX_DEPTH}") from None
    except TicketFileError:
        raise
    except ValueError as error:
        raise TicketFileError(f"the {what} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise TicketFileError(f"the {what} is no JSON object")
    _check_tree(value, what, MAX_DEPTH)
    return value


def expect(kind: type[_T], value: object, what: str) -> _T:
    """Return ``value``, which came from JSON, if it is of this type; ``true`` is no integer.

    Raises:
        TicketFileError: says what was found and what was expected.
    """
    if type(value) is not kind:
        raise TicketFileError(f"{what} is {shown(value)}; expected {_WORDS[kind]}")
    return value


def _check_tree(tree: dict[str, Any] | list[Any], what: str, depth: int) -> None:
    """Raise if ``tree`` is nested too deep or a string in it has a lone surrogate."""
    if not depth:
        raise TicketFileError(f"the {what} is nested deeper than {MAX_DEPTH}")
    for item in [*tree, *tree.values()] if isinstance(tree, dict) else tree:
        if isinstance(item, dict | list):
            _check_tree(item, what, depth - 1)
        elif isinstance(item, str) and not item.isascii() and _SURROGATE.search(item):
            raise TicketFileError(f"the {what} has a string that is no Unicode text: {item!a:.80}")
