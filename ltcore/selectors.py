"""Which parameters are meant: globs over portable names, and ``@`` words.

``"*"`` is everything, ``"encoder.*"`` a glob, ``"@output"`` the output layers, ``"@conv"`` all
parameters of that kind. In a mapping the last entry that matches a parameter decides.
"""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

from ltcore.errors import SelectorError
from ltcore.layouts import KINDS
from ltcore.parameters import ParamInfo

Value = TypeVar("Value")


def matches(selector: str, info: ParamInfo) -> bool:
    """Return whether ``selector`` means the parameter ``info``."""
    if selector == "@output":
        return info.is_output
    if selector.startswith("@"):
        return info.kind == selector[1:]
    return fnmatchcase(info.name, selector)


def resolve(
    table: Mapping[str, Value], infos: Iterable[ParamInfo], argument: str
) -> dict[str, tuple[str, Value]]:
    """Return ``{parameter name: (selector that decided, its value)}``; unmatched names are absent.

    Args:
        table: ``{selector: value}``.
        infos: the parameters to match.
        argument: name of the user's argument, for the error.

    Raises:
        SelectorError: a selector matches no parameter at all.
    """
    infos = tuple(infos)
    for selector in table:
        if not any(matches(selector, info) for info in infos):
            raise SelectorError(
                f"{argument}: the selector {selector!r} matches none of the parameters "
                f"{[info.name for info in infos]}; use a glob over these names, '@output', or one "
                f"of {['@' + kind for kind in KINDS]}"
            )
    chosen = {}
    for info in infos:
        for selector, value in table.items():
            if matches(selector, info):
                chosen[info.name] = (selector, value)
    return chosen


def select_infos(
    selectors: Sequence[str], infos: tuple[ParamInfo, ...], argument: str
) -> tuple[ParamInfo, ...]:
    """Return the parameters that any of ``selectors`` means, in model order.

    Raises:
        SelectorError: a selector matches no parameter.
    """
    chosen = resolve(dict.fromkeys(selectors), infos, argument)
    return tuple(info for info in infos if info.name in chosen)
