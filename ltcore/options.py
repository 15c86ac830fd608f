"""What a user typed, turned into what it means, or refused before anything happens."""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from numbers import Integral
from typing import Any, TypeAlias

from ltcore import plugins
from ltcore.allocation import Allocation, Amounts
from ltcore.arrays import Array, Params
from ltcore.criteria import Criterion, FunctionCriterion, Param, as_criterion
from ltcore.errors import InvalidValueError, SelectorError
from ltcore.parameters import ParamInfo, Structure, prunable_infos
from ltcore.patterns import Pattern
from ltcore.rewind_points import ToStep
from ltcore.rewinding import FunctionPolicy, RewindContext, RewindPolicy
from ltcore.schedules import ConstantRate, FunctionSchedule, OneShot, Schedule, ToSparsity
from ltcore.selectors import select_infos

Named: TypeAlias = str | Mapping[str, Any]
"""A name, or ``{"name": ..., option: value}`` for what takes options."""

AnyCriterion: TypeAlias = Named | Criterion | Callable[[Param], Array]
"""A name, a criterion, or a bare function of a `Param`."""

AnyPolicy: TypeAlias = int | Named | RewindPolicy | Callable[[RewindContext], Params]
"""A step, a name, a policy, or a bare function of a `RewindContext`."""

AnySchedule: TypeAlias = Named | Schedule | Callable[[int], Amounts]
"""A name, a schedule, or a function that returns the sparsity due after that many prunings."""


def prunable_from(structure: Structure, prunable: Sequence[str] | None) -> tuple[ParamInfo, ...]:
    """Return the parameters that masks touch.

    Raises:
        NothingPrunableError: the model has no kernel.
        SelectorError: a selector matches no parameter, or there is none.
    """
    if prunable is None:
        return prunable_infos(structure.infos)
    selectors = [prunable] if isinstance(prunable, str) else list(prunable)
    if not selectors:
        raise SelectorError("prunable is empty; expected selectors of parameter names, or None")
    return select_infos(selectors, structure.infos, "prunable")


def criterion_from(given: Any) -> Criterion:
    """Return the criterion that was named or given; a bare function becomes one.

    Raises:
        UnknownNameError: nobody offers the name.
        InvalidValueError: it is no criterion, or does not take the options.
    """
    return as_criterion(*_named("criteria", given)) if _is_named(given) else as_criterion(given)


def allocation_from(given: Any) -> Allocation:
    """Return the allocation that was named or given.

    Raises:
        UnknownNameError: nobody offers the name.
        InvalidValueError: it is no allocation, or does not take the options.
    """
    found, name = _named("allocations", given) if _is_named(given) else (given, "of this class")
    if isinstance(found, type):
        found = _made("allocations", name, found, {})
    if callable(found):
        chosen: Allocation = found
        return chosen
    raise InvalidValueError(f"scope is {given!r}; expected 'global', 'layer' or an allocation")


def pattern_from(given: Any) -> Pattern | None:
    """Return the pattern that was named or given; None for ``"unstructured"``.

    ``"2:4"`` and the like are names of their own.

    Raises:
        UnknownNameError: nobody offers the name.
        InvalidValueError: it is no pattern, or does not take the options.
    """
    if given is None or given == "unstructured":
        return None
    if isinstance(given, str) and (parts := re.fullmatch(r"(\d+):(\d+)", given)):
        given = {"name": "n:m", "n": int(parts[1]), "m": int(parts[2])}
    found, name = _named("patterns", given) if _is_named(given) else (given, "of this class")
    if isinstance(found, type):
        found = _made("patterns", name, found, {})
    if all(
        hasattr(found, part) for part in ("name", "sparsity", "misfit", "units", "pool", "spread")
    ):
        chosen: Pattern = found
        return chosen
    raise InvalidValueError(
        f"pattern is {given!r}; expected 'unstructured', 'n:m' such as '2:4', a name or a pattern"
    )


def policy_from(given: Any) -> RewindPolicy:
    """Return the rewind policy that was named or given.

    A whole number is a step, and a function of a `RewindContext` is a policy.

    Raises:
        UnknownNameError: nobody offers the name.
        InvalidValueError: it is no policy, or does not take the options.
    """
    if isinstance(given, Integral) and not isinstance(given, bool):
        return ToStep(int(given))
    found, name = _named("rewind_policies", given) if _is_named(given) else (given, "")
    if isinstance(found, type) or (name and _is_maker(found, "context")):
        found = _made("rewind_policies", name or name_of(found), found, {})
    if isinstance(found, RewindPolicy):
        return found
    if callable(found):
        return FunctionPolicy(found, name or name_of(found))
    raise InvalidValueError(
        f"rewind_to is {given!r}; expected a step (a whole number, 0 or more), a name, a policy or "
        "a function of a RewindContext"
    )


def _is_maker(target: Any, argument: str) -> bool:
    """Whether a plugin's function makes a thing from options; else it is the thing itself.

    It is if its only argument is ``argument``, what a bare function of its kind is called with.
    """
    return inspect.isroutine(target) and [*inspect.signature(target).parameters] != [argument]


_INNER = {"criteria": "criterion", "allocations": "allocation", "rewind_policies": "policy"}
"""The option by which something is wrapped around another of its kind."""

_READERS: dict[str, Callable[[Any], Any]] = {
    "criteria": criterion_from,
    "allocations": allocation_from,
    "rewind_policies": policy_from,
}


def _is_named(given: Any) -> bool:
    return isinstance(given, str | Mapping)


def _named(kind: str, given: str | Mapping[str, Any]) -> tuple[Any, str]:
    """Return what a name, or ``{"name": ..., option: value}``, stands for, and the name.

    Raises:
        UnknownNameError: nobody offers the name.
        InvalidValueError: there is no name, or the options do not fit.
    """
    options = {"name": given} if isinstance(given, str) else dict(given)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise InvalidValueError(f"{kind}: {given!r} has no 'name'; expected one, and its options")
    target = plugins.load(kind, name)
    return (_made(kind, name, target, options) if options else target), name


def _made(kind: str, name: str, target: Any, options: Mapping[str, Any]) -> Any:
    """Return ``target(**options)``; an option that is such a thing itself may be named too."""
    if not isinstance(target, type) and hasattr(target, "name"):
        raise InvalidValueError(f"{kind} {name!r} takes no options, got {dict(options)}")
    if kind in _INNER and _INNER[kind] in options:
        inner = _INNER[kind]
        options = {**options, inner: _READERS[kind](options[inner])}
    try:
        inspect.signature(target).bind(**options)
    except TypeError as error:
        raise InvalidValueError(
            f"{kind} {name!r} does not take {dict(options)}: {error}; it takes "
            f"{inspect.signature(target)}"
        ) from None
    return target(**options)


def schedule_from(
    schedule: AnySchedule | None,
    rounds: int | None,
    rate: Amounts | None,
    sparsity: Amounts | None,
) -> Schedule:
    """Return the schedule that ``rounds``, ``rate`` and ``sparsity`` make, or the one given.

    A function of the round is a schedule with ``rounds``.

    Raises:
        UnknownNameError: nobody offers the name.
        InvalidValueError: options are missing, out of range, or contradict each other.
    """
    options = {"rounds": rounds, "rate": rate, "sparsity": sparsity}
    given = {name: value for name, value in options.items() if value is not None}
    if isinstance(schedule, str | Mapping):
        return _named_schedule(schedule, given)
    if schedule is not None:
        return _given_schedule(schedule, given)
    if (rate is None) == (sparsity is None):
        raise InvalidValueError(
            f"rate is {rate!r} and sparsity is {sparsity!r}; give one of them: rate=0.2 removes "
            "20 % of what is left each round, sparsity=0.9 ends at 90 % removed"
        )
    if rate is not None:
        return ConstantRate(rate, 1 if rounds is None else rounds)
    assert sparsity is not None
    return OneShot(sparsity) if rounds is None else ToSparsity(sparsity, rounds)


def _given_schedule(
    schedule: Schedule | Callable[[int], Amounts], options: dict[str, Any]
) -> Schedule:
    is_function = not hasattr(schedule, "goal")
    twice = options.keys() - ({"rounds"} if is_function else set())
    if twice:
        raise InvalidValueError(f"schedule= is given, and also {sorted(twice)}; give one of them")
    if not is_function and not isinstance(schedule, type):
        chosen: Schedule = schedule  # type: ignore[assignment]
        return chosen
    if isinstance(schedule, type) or not callable(schedule):
        raise InvalidValueError(
            f"schedule is {schedule!r}; expected a name, an object with rounds and goal(), or a "
            "function of the round that returns a sparsity"
        )
    if "rounds" not in options:
        raise InvalidValueError("schedule= is a function; say with rounds= how many rounds it has")
    return FunctionSchedule(schedule, options["rounds"])


def _named_schedule(given: str | Mapping[str, Any], options: dict[str, Any]) -> Schedule:
    named = {"name": given} if isinstance(given, str) else dict(given)
    twice = sorted(named.keys() & options.keys())
    if twice:
        raise InvalidValueError(f"schedule {given!r} and the arguments {twice} both give {twice}")
    merged = {**named, **options}
    found, name = _named("schedules", {"name": merged.get("name")})
    if inspect.isroutine(found) and not _is_maker(found, "round_index"):
        return _given_schedule(found, {key: merged[key] for key in merged if key != "name"})
    del merged["name"]
    made: Schedule = _made("schedules", name, found, merged)
    return made


def plain(given: Any) -> Any:
    """Return how a choice is told in a provenance: as it was typed, or as plain data.

    Objects tell their options if they are dataclasses.
    """
    if given is None or isinstance(given, str | int | float | bool):
        return given
    if isinstance(given, Mapping):
        return {str(key): plain(value) for key, value in given.items()}
    if isinstance(given, list | tuple):
        return [plain(value) for value in given]
    name = getattr(given, "name", None)
    name = name if isinstance(name, str) else name_of(given)
    if is_dataclass(given) and not isinstance(given, FunctionCriterion | type):
        told = {field.name: plain(getattr(given, field.name)) for field in fields(given)}
        return {**told, "name": name} if told else name
    return name


def name_of(function: Any) -> str:
    """Return a name that is the same in every process."""
    return str(getattr(function, "__qualname__", type(function).__qualname__))
