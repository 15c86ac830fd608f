"""Which parameters are meant: globs over portable names, and ``@`` words.

``"*"`` is everything, ``"encoder.*"`` a glob, ``"@output"`` the output layers, ``"@conv"`` all
parameters of that kind. In a mapping the last entry that matches a parameter decides.
"""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

from ltcore.errors import PatternError
from ltcore.layouts import KINDS
from ltcore.parameters import ParamInfo

Value = TypeVar("Value")


def matches(pattern: str, info: ParamInfo) -> bool:
    """Return whether ``pattern`` means the parameter ``info``."""
    if pattern == "@output":
        return info.is_output
    if pattern.startswith("@"):
        return info.kind == pattern[1:]
    return fnmatchcase(info.name, pattern)


def resolve(
    table: Mapping[str, Value], infos: Iterable[ParamInfo], argument: str
) -> dict[str, tuple[str, Value]]:
    """Return ``{parameter name: (pattern that decided, its value)}``; unmatched names are absent.

    Args:
        table: ``{pattern: value}``.
        infos: the parameters to match.
        argument: name of the user's argument, for the error.

    Raises:
        PatternError: a pattern matches no parameter at all.
    """
    infos = tuple(infos)
    for pattern in table:
        if not any(matches(pattern, info) for info in infos):
            raise PatternError(
                f"{argument}: the pattern {pattern!r} matches none of the parameters "
                f"{[info.name for info in infos]}; use a glob over these names, '@output', or one "
                f"of {['@' + kind for kind in KINDS]}"
            )
    chosen = {}
    for info in infos:
        for pattern, value in table.items():
            if matches(pattern, info):
                chosen[info.name] = (pattern, value)
    return chosen


def select_infos(
    patterns: Sequence[str], infos: tuple[ParamInfo, ...], argument: str
) -> tuple[ParamInfo, ...]:
    """Return the parameters that any of ``patterns`` means, in model order.

    Raises:
        PatternError: a pattern matches no parameter.
    """
    chosen = resolve(dict.fromkeys(patterns), infos, argument)
    return tuple(info for info in infos if info.name in chosen)
