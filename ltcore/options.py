"""What a user typed, turned into what it means, or refused before anything happens."""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from fractions import Fraction
from numbers import Integral
from typing import Any, TypeAlias

import numpy as np

from ltcore import plugins
from ltcore.allocation import Allocation, Amounts
from ltcore.arrays import Array, Params
from ltcore.closest import did_you_mean, lacking
from ltcore.criteria import Criterion, FunctionCriterion, Param, as_criterion
from ltcore.discovery import HERE, offers
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
    return as_criterion(*_found("criterion", given))


def allocation_from(given: Any) -> Allocation:
    """Return the allocation that was named or given.

    Raises:
        UnknownNameError: nobody offers the name.
        InvalidValueError: it is no allocation, or does not take the options.
    """
    found, _ = _found("allocation", given)
    if callable(found):
        chosen: Allocation = found
        return chosen
    raise InvalidValueError(
        f"scope is {_told(given, found)}; expected 'global', 'layer' or an allocation"
    )


def pattern_from(given: Any) -> Pattern | None:
    """Return the pattern that was named or given; None for ``"unstructured"``.

    ``"2:4"`` and the like are names of their own.

    Raises:
        UnknownNameError: nobody offers the name.
        InvalidValueError: it is no pattern, or does not take the options.
    """
    if given is None or given == "unstructured":
        return None
    if isinstance(given, Mapping) and given.keys() == {"name"}:
        given = given["name"]
    if isinstance(given, str) and (parts := re.fullmatch(r"(\d+):(\d+)", given)):
        given = {"name": "n:m", "n": int(parts[1]), "m": int(parts[2])}
    found, _ = _found("pattern", given)
    if _has(found, _PATTERN):
        chosen: Pattern = found
        return chosen
    raise InvalidValueError(
        f"pattern is {_told(given, found)}; expected 'unstructured', 'n:m' such as '2:4', a name "
        f"or a pattern{lacking(found, _PATTERN)}"
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
    found, name = _found("rewind-policy", given)
    if isinstance(found, RewindPolicy):
        return found
    if callable(found):
        return FunctionPolicy(found, name or name_of(found))
    raise InvalidValueError(
        f"rewind_to is {_told(given, found)}; expected a step (a whole number, 0 or more), a name, "
        f"a policy or a function of a RewindContext{lacking(found, _POLICY)}"
    )


_CALLED_WITH = {"criterion": 1, "allocation": 3, "rewind-policy": 1, "schedule": 1}
"""How many arguments a bare function is called with; other kinds are no functions."""


def _makes(kind: str, target: Any, options: Mapping[str, Any]) -> bool:
    """Whether a class or a plugin's function makes a thing from options.

    A function that needs as many arguments as a thing of its kind is called with is the thing
    itself, unless it takes the options that were given.
    """
    if isinstance(target, type) or not inspect.isroutine(target):
        return isinstance(target, type)
    signature = inspect.signature(target)
    needed = [p for p in signature.parameters.values() if p.default is p.empty and p.kind in _PLAIN]
    return len(needed) != _CALLED_WITH.get(kind) or (bool(options) and _binds(signature, options))


_PLAIN = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _binds(signature: inspect.Signature, options: Mapping[str, Any]) -> bool:
    try:
        signature.bind(**options)
    except TypeError:
        return False
    return True


_INNER = {"criterion": "criterion", "allocation": "allocation", "rewind-policy": "policy"}
"""The option by which something is wrapped around another of its kind."""

_READERS: dict[str, Callable[[Any], Any]] = {
    "criterion": criterion_from,
    "allocation": allocation_from,
    "rewind-policy": policy_from,
}


_PATTERN = ("name", "sparsity", "misfit", "units", "pool", "spread")
_POLICY = ("snapshots", "resume_step", "rewind", "describe")
_SCHEDULE = ("rounds", "goal")


def _has(found: Any, parts: Sequence[str]) -> bool:
    return not isinstance(found, type) and all(hasattr(found, part) for part in parts)


def _told(given: Any, found: Any) -> str:
    """Return what was given and, if that is a name, what it stands for."""
    return f"{given!r}, which stands for {found!r}" if _is_named(given) else repr(given)


def _is_named(given: Any) -> bool:
    return isinstance(given, str | Mapping)


def _found(kind: str, given: Any) -> tuple[Any, str]:
    """Return what was named or given, and its name; what makes things has made one.

    Raises:
        UnknownNameError: nobody offers the name.
        InvalidValueError: there is no name, or the options do not fit.
    """
    if _is_named(given):
        name, options = parsed(kind, given)
        target = plugins.load(kind, name)
        makes = options or _makes(kind, target, options)
        return (made(kind, name, target, options) if makes else target), name
    if isinstance(given, type):
        return made(kind, name_of(given), given, {}), name_of(given)
    return given, ""


def parsed(kind: str, given: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the name and the options of ``{"name": ..., option: value}``, or of a bare name.

    Raises:
        InvalidValueError: there is no name.
    """
    options = {"name": given} if isinstance(given, str) else dict(given)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise InvalidValueError(
            f"the {kind} {given!r} has no 'name'; expected {{'name': ..., option: value}}"
        )
    return name, options


def made(kind: str, name: str, target: Any, options: Mapping[str, Any]) -> Any:
    """Return what a class or a function makes of ``options``.

    An option that is such a thing itself may be named too.

    Raises:
        InvalidValueError: the options do not fit, or it takes none.
    """
    if not _makes(kind, target, options):
        signature = f", a function of {inspect.signature(target)}" if callable(target) else ""
        raise InvalidValueError(
            f"the {kind} {name!r} is there as it is{signature}; it takes no options, got "
            f"{dict(options)}"
        )
    if kind in _INNER and _INNER[kind] in options:
        inner = _INNER[kind]
        options = {**options, inner: _READERS[kind](options[inner])}
    _check_options(f"the {kind} {name!r}", target, options)
    return target(**options)


def _check_options(what: str, target: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Raise unless ``target`` can be called with ``options``.

    Raises:
        InvalidValueError: says which option is unknown or missing, what comes close, and what
            there is.
    """
    signature = inspect.signature(target)
    known = signature.parameters
    takes = f"It takes {', '.join(taken(target)) or 'no options'}"
    if not any(p.kind is p.VAR_KEYWORD for p in known.values()):
        for option in options:
            if option not in known:
                hint = did_you_mean(option, known) or "."
                raise InvalidValueError(f"{what} does not take {option!r}{hint} {takes}")
    try:
        signature.bind(**options)
    except TypeError as error:
        raise InvalidValueError(f"{what} does not take {dict(options)}: {error}. {takes}") from None


def taken(target: Callable[..., Any]) -> list[str]:
    """Return the options of a class or function, as ``name: type = default``."""
    return [_as_typed(option) for option in inspect.signature(target).parameters.values()]


def _as_typed(option: inspect.Parameter) -> str:
    default = option.default
    if callable(default) and default is not option.empty:
        name = getattr(default, "__name__", type(default).__name__)
        return f"{_MODULES.sub('', str(option.replace(default=option.empty)))} = {name}"
    return _MODULES.sub("", str(option))


_MODULES = re.compile(r"\b(?:[A-Za-z_]\w*\.)+(?=[A-Za-z_])")
"""What stands in front of a type's name, and nobody types."""


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
    is_function = callable(schedule) and not hasattr(schedule, "goal")
    twice = options.keys() - ({"rounds"} if is_function else set())
    if twice:
        raise InvalidValueError(f"schedule= is given, and also {sorted(twice)}; give one of them")
    if _has(schedule, _SCHEDULE):
        chosen: Schedule = schedule  # type: ignore[assignment]
        return chosen
    if isinstance(schedule, type) or not callable(schedule):
        raise InvalidValueError(
            f"schedule is {schedule!r}; expected a name, an object with rounds and goal(), or a "
            f"function of the round that returns a sparsity{lacking(schedule, _SCHEDULE)}"
        )
    if "rounds" not in options:
        raise InvalidValueError("schedule= is a function; say with rounds= how many rounds it has")
    return FunctionSchedule(schedule, options["rounds"])


def _named_schedule(given: str | Mapping[str, Any], options: dict[str, Any]) -> Schedule:
    named = {"name": given} if isinstance(given, str) else dict(given)
    twice = sorted(named.keys() & options.keys())
    if twice:
        raise InvalidValueError(f"schedule {given!r} and the arguments {twice} both give {twice}")
    name, options = parsed("schedule", {**named, **options})
    found = plugins.load("schedule", name)
    if inspect.isroutine(found) and not _makes("schedule", found, options):
        return _given_schedule(found, options)
    if options or not _has(found, _SCHEDULE):
        found = made("schedule", name, found, options)
    if _has(found, _SCHEDULE):
        chosen: Schedule = found
        return chosen
    raise InvalidValueError(
        f"schedule is {_told(given, found)}; expected something with rounds and goal(round_index)"
        f"{lacking(found, _SCHEDULE)}"
    )


_KIND_OF = {
    "criterion": "criterion",
    "scope": "allocation",
    "pattern": "pattern",
    "rewind_to": "rewind-policy",
    "schedule": "schedule",
}
"""Arguments that take a name, and what kind of thing it names."""


def makers(choices: Mapping[str, Any]) -> dict[str, str]:
    """Return ``{distribution: version}`` of the packages that offer what was named.

    Args:
        choices: ``{argument: what was given}``.
    """
    found = {}
    for argument, given in choices.items():
        kind = _KIND_OF[argument]
        for name in _names(kind, given):
            offer = offers(kind).get(name)
            if offer and offer.origin != HERE:
                distribution, _, version = offer.origin.rpartition(" ")
                found[distribution] = version
    return {distribution: found[distribution] for distribution in sorted(found) if distribution}


def _names(kind: str, given: Any) -> Iterator[str]:
    """Yield the name that was given, and those that its options wrap."""
    if isinstance(given, str):
        yield given
    elif isinstance(given, Mapping):
        yield from _names(kind, given.get("name"))
        yield from _names(kind, given.get(_INNER.get(kind, "")))


def plain(given: Any) -> Any:
    """Return how a choice is told in a provenance: as it was typed, or as plain data.

    Objects tell their options if they are dataclasses.
    """
    if given is None or isinstance(given, str | int | float | bool):
        return given
    if isinstance(given, Fraction):
        return float(given)
    if isinstance(given, np.generic):
        return given.item()
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
