"""Names for what is written in a script or a notebook; a package uses hooks for the same."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, overload

from ltcore.arrays import Array
from ltcore.criteria import FunctionCriterion, Param
from ltcore.discovery import HERE, Registered, add_in_process
from ltcore.errors import InvalidValueError
from ltcore.hookspecs import BackendSpec, Spec
from ltcore.plugins import check_kind

Thing = TypeVar("Thing")


@overload
def register(
    kind: str, name: str, *, summary: str = ..., roots: Iterable[str] = ...
) -> Callable[[Thing], Thing]: ...


@overload
def register(
    kind: str, name: str, target: Thing, *, summary: str = ..., roots: Iterable[str] = ...
) -> Thing: ...


def register(
    kind: str, name: str, target: Any = None, *, summary: str = "", roots: Iterable[str] = ()
) -> Any:
    """Let ``name`` stand for ``target`` from now on in this process.

    The same function or class may be registered again, as when a notebook's cell is run twice.

    Args:
        kind: ``"criterion"``, ``"rewind-policy"``, ``"schedule"``, ``"allocation"``,
            ``"pattern"`` or ``"backend"``.
        name: what to type.
        target: what a package's spec would point at (docs/plugins.md has the table): a function,
            a class, or an object. Without it, this is a decorator.
        summary: one line on it.
        roots: for a backend, the root packages whose classes it drives.

    Returns:
        ``target`` as it is, or the decorator.

    Raises:
        UnknownNameError: there is no such kind.
        InvalidValueError: this cannot be a name, or the target cannot be of this kind.
        PluginError: something else has the name; names both.

    >>> @register("allocation", "doc-nothing")
    ... def nothing(goal, masks, infos):
    ...     return []
    """
    check_kind(kind)
    _check_name(kind, name)

    def add(thing: Any) -> Any:
        _check_thing(kind, name, thing)
        _add(kind, name, thing, thing, summary, tuple(roots))
        return thing

    return add if target is None else add(target)


def criterion(
    name: str, *, needs: Iterable[str] = (), elementwise: bool = False, passes: int = 1
) -> Callable[[Callable[[Param], Array]], FunctionCriterion]:
    """Make a criterion of a function, known by ``name`` from now on in this process.

    Args:
        name: what to type in ``criterion="..."``.
        needs: the signals it reads besides ``weight``.
        elementwise: a weight's score depends on this weight's own values only.
        passes: in how many steps of equal ratio a pruning reaches its goal, with new signals and
            scores in each.

    Raises:
        InvalidValueError: there is no such signal, or this cannot be a name.
        PluginError: something else has the name; names both.

    >>> @criterion("doc-smallest", elementwise=True)
    ... def smallest(param):
    ...     return -abs(param.weight)
    """
    _check_name("criterion", name)
    asked = frozenset([needs] if isinstance(needs, str) else needs)

    def add(function: Callable[[Param], Array]) -> FunctionCriterion:
        if isinstance(function, type) or not callable(function):
            raise InvalidValueError(
                f"the criterion {name!r} is {function!r}; @criterion takes a function of a Param, "
                "and register takes classes and objects"
            )
        made = FunctionCriterion(name, function, asked, elementwise, passes)
        _add("criterion", name, made, function, "", ())
        return made

    return add


def _check_name(kind: str, name: str) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidValueError(
            f"the name of a {kind} is {name!r}; expected a letter, then letters a-z and digits, in "
            "words with single hyphens (or underscores) between"
        )


_NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")

_PARTS: Mapping[str, tuple[str, ...]] = {
    "criterion": ("name", "needs", "elementwise", "score"),
    "rewind-policy": ("snapshots", "resume_step", "rewind", "describe"),
    "schedule": ("rounds", "goal"),
    "allocation": ("__call__",),
    "pattern": ("name", "sparsity", "misfit", "units", "pool", "spread"),
    "backend": ("__call__",),
}
"""What an object of each kind has. What can be called may make one, so it is not looked into."""


def _check_thing(kind: str, name: str, thing: Any) -> None:
    missing = [part for part in _PARTS.get(kind, ()) if not hasattr(thing, part)]
    if missing and not callable(thing):
        raise InvalidValueError(
            f"the {kind} {name!r} is {thing!r}, which has no {', '.join(missing)}; expected a "
            f"function, a class or a {kind} object"
        )


def _add(
    kind: str, name: str, thing: Any, source: Any, summary: str, roots: tuple[str, ...]
) -> None:
    """Offer ``thing``; where ``source`` is written tells it from others of the same name."""
    where = source if hasattr(source, "__qualname__") else type(source)
    target = f"{where.__module__}:{where.__qualname__}"
    if kind == "backend":
        spec: Spec = BackendSpec(name, target, summary, roots=roots)
    else:
        spec = Spec(name, target, summary)
    add_in_process(kind, Registered(spec, HERE, thing))
