"""What somebody probably meant, for errors about names that are not there."""

from collections.abc import Iterable, Sequence
from typing import Any


def closest(word: str, known: Iterable[str]) -> list[str]:
    """Return up to three of ``known`` that look like ``word``, the likest first.

    >>> closest("Magnitued", ["random", "magnitude"])
    ['magnitude']
    """
    from difflib import get_close_matches  # here, for only errors need it

    plain = {_plain(name): name for name in known}
    if _plain(word) in plain:
        return [plain[_plain(word)]]
    return [plain[match] for match in get_close_matches(_plain(word), plain, cutoff=0.6)]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'this'?"``, or nothing if nothing is like ``word``.

    >>> did_you_mean("sinp", ["snip", "magnitude"])
    "; did you mean 'snip'?"
    """
    found = closest(word, known)
    return f"; did you mean {' or '.join(map(repr, found))}?" if found else ""


def lacking(found: Any, parts: Sequence[str]) -> str:
    """Return ``"; it has no 'this'"``, or nothing if ``found`` has all ``parts`` or none.

    >>> lacking(3, ["real", "needs", "score"])
    "; it has no 'needs', 'score'"
    """
    missing = [part for part in parts if not hasattr(found, part)]
    if not 0 < len(missing) < len(parts):
        return ""
    return f"; it has no {', '.join(map(repr, missing))}"


def _plain(name: str) -> str:
    return name.casefold().replace("_", "-")
