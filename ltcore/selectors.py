"""Which parameters are meant: globs over portable names, and ``@`` words.

``"*"`` is everything, ``"encoder.*"`` a glob, ``"@output"`` the output layers, ``"@conv"`` all
parameters of that kind. In a mapping the last entry that matches a parameter decides.
"""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

from ltcore.closest import did_you_mean
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
        SelectorError: a selector is no text, or matches no parameter at all.
    """
    infos = tuple(infos)
    for selector in table:
        _check_text(selector, argument)
        if not any(matches(selector, info) for info in infos):
            raise SelectorError(f"{argument}: {_no_match(selector, infos)}")
    chosen = {}
    for info in infos:
        for selector, value in table.items():
            if matches(selector, info):
                chosen[info.name] = (selector, value)
    return chosen


def _check_text(selector: object, argument: str) -> None:
    if not isinstance(selector, str):
        raise SelectorError(
            f"{argument}: {type(selector).__name__} {selector!r:.80} is no selector; expected "
            'text: a parameter\'s name, a glob such as "encoder.*", or "@output" or "@conv"'
        )


def _no_match(selector: str, infos: Sequence[ParamInfo]) -> str:
    words = ["@output", *(f"@{kind}" for kind in KINDS)]
    known = (
        [word for word in words if word != selector]
        if selector.startswith("@")
        else [g for info in infos for g in _globs(info.name)]
    )
    hint = did_you_mean(selector, known) or "."
    return (
        f"the selector {selector!r} matches none of the parameters "
        f"{[info.name for info in infos]}{hint} Use a glob over these names, or one of {words}"
    )


def _globs(name: str) -> list[str]:
    """Return what people write to mean ``name``: itself, what it is in, what it is called."""
    parts = name.split(".")
    within = [".".join([*parts[:depth], "*"]) for depth in range(1, len(parts))]
    return [name, *within, f"*.{parts[-1]}"]


def select_infos(
    selectors: Sequence[str], infos: tuple[ParamInfo, ...], argument: str
) -> tuple[ParamInfo, ...]:
    """Return the parameters that any of ``selectors`` means, in model order.

    Raises:
        SelectorError: a selector is no text, or matches no parameter.
    """
    for selector in selectors:  # before it has to be hashable
        _check_text(selector, argument)
    chosen = resolve(dict.fromkeys(selectors), infos, argument)
    return tuple(info for info in infos if info.name in chosen)
