"""The TOML file of ``ltcore prune``: its keys are arguments of `ltcore.prune`, and ``import``."""

import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ltcore.closest import did_you_mean
from ltcore.errors import InvalidValueError


def read(path: Path) -> dict[str, Any]:
    """Return what a file says, checked for form.

    Raises:
        InvalidValueError: it cannot be read or is no TOML, or a key is unknown or has something
            else than it may; names the file and the key.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidValueError(f"--config {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidValueError(f"{path} is no TOML: {error}") from None
    for key, value in table.items():
        if key not in _KEYS:
            hint = did_you_mean(key, _KEYS) or "."
            raise InvalidValueError(
                f"{path}: there is no key {key!r}{hint} Keys are {', '.join(_KEYS)}"
            )
        fault = _KEYS[key](value)
        if fault:
            raise InvalidValueError(f"{path}: {key}{fault}")
    return table


def _amounts(value: Any) -> str:
    if not isinstance(value, Mapping):
        return "" if _is_number(value) else _not(value, "a number, or a table by selector")
    for selector, amount in value.items():
        if not _is_number(amount):
            hint = "; put a selector with dots in quotes" if isinstance(amount, Mapping) else ""
            return f".{selector}{_not(amount, 'a number')}{hint}"
    return ""


def _named(value: Any) -> str:
    name = value.get("name") if isinstance(value, Mapping) else value
    return "" if isinstance(name, str) else _not(value, "a name, or a table with name and options")


def _selectors(value: Any) -> str:
    return "" if _is_texts(value) else _not(value, "a selector, or a list of selectors")


def _modules(value: Any) -> str:
    return "" if _is_texts(value) else _not(value, "a module's name, or a list of names")


def _seed(value: Any) -> str:
    fine = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return "" if fine else _not(value, "a whole number, 0 or more")


def _is_texts(value: Any) -> bool:
    texts = value if isinstance(value, list) else [value]
    return all(isinstance(text, str) for text in texts)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _not(value: Any, expected: str) -> str:
    return f" is {value!r}; expected {expected}"


_KEYS: Mapping[str, Callable[[Any], str]] = {
    "sparsity": _amounts,
    "criterion": _named,
    "scope": _named,
    "pattern": _named,
    "prunable": _selectors,
    "seed": _seed,
    "import": _modules,
}
"""``{key: returns what is wrong with a value, to be put after the key; empty if nothing is}``."""
