"""What a user typed, turned into what it means, or refused before anything happens."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from numbers import Integral
from typing import Any, TypeAlias

from ltcore import plugins
from ltcore.allocation import Allocation, Amounts
from ltcore.arrays import Array
from ltcore.backend import Backend
from ltcore.criteria import Criterion, Param, as_criterion
from ltcore.errors import CapabilityError, InvalidValueError, SelectorError
from ltcore.parameters import ParamInfo, Structure, prunable_infos
from ltcore.selectors import select_infos
from ltcore.rewinding import RewindPolicy, ToStep
from ltcore.schedules import ConstantRate, OneShot, Schedule, ToSparsity
from ltcore.search import Gradients

AnyCriterion: TypeAlias = str | Criterion | Callable[[Param], Array]
"""A name, a criterion, or a bare function of a `Param`."""

Batches: TypeAlias = Iterable[tuple[Any, Any]]
Loss: TypeAlias = Callable[[Any, Any], Any]


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


def criterion_from(given: AnyCriterion) -> Criterion:
    """Return the criterion that was named or given; a bare function becomes one.

    Raises:
        UnknownNameError: nobody offers the name.
        InvalidValueError: it is no criterion.
    """
    if isinstance(given, str):
        return as_criterion(plugins.load("criteria", given), given)
    return as_criterion(given)


def allocation_from(given: str | Allocation) -> Allocation:
    """Return the allocation that was named or given.

    Raises:
        UnknownNameError: nobody offers the name.
        InvalidValueError: it is no allocation.
    """
    if isinstance(given, str):
        loaded: Allocation = plugins.load("allocations", given)
        return loaded
    if callable(given):
        return given
    raise InvalidValueError(f"scope is {given!r}; expected 'global', 'layer' or an allocation")


def policy_from(given: int | str | RewindPolicy) -> RewindPolicy:
    """Return the rewind policy that was named or given; a whole number is a step.

    Raises:
        UnknownNameError: nobody offers the name.
        InvalidValueError: it is no policy.
    """
    found: Any = plugins.load("rewind_policies", given) if isinstance(given, str) else given
    if isinstance(found, type) or (isinstance(given, str) and callable(found)):
        found = found()
    if isinstance(found, RewindPolicy):
        return found
    if isinstance(given, Integral) and not isinstance(given, bool):
        return ToStep(int(given))
    raise InvalidValueError(
        f"rewind_to is {given!r}; expected a step (a whole number, 0 or more), a name or a policy"
    )


def schedule_from(
    schedule: str | Schedule | None,
    rounds: int | None,
    rate: Amounts | None,
    sparsity: Amounts | None,
) -> Schedule:
    """Return the schedule that ``rounds``, ``rate`` and ``sparsity`` make, or the one given.

    Raises:
        UnknownNameError: nobody offers the name.
        InvalidValueError: options are missing, out of range, or contradict each other.
    """
    options = {"rounds": rounds, "rate": rate, "sparsity": sparsity}
    given = {name: value for name, value in options.items() if value is not None}
    if isinstance(schedule, str):
        return _named_schedule(schedule, given)
    if schedule is not None:
        if given:
            raise InvalidValueError(f"schedule= is given, and also {given}; give one of them")
        return schedule
    if (rate is None) == (sparsity is None):
        raise InvalidValueError(
            f"rate is {rate!r} and sparsity is {sparsity!r}; give one of them: rate=0.2 removes "
            "20 % of what is left each round, sparsity=0.9 ends at 90 % removed"
        )
    if rate is not None:
        return ConstantRate(rate, 1 if rounds is None else rounds)
    assert sparsity is not None
    return OneShot(sparsity) if rounds is None else ToSparsity(sparsity, rounds)


def _named_schedule(name: str, given: dict[str, Any]) -> Schedule:
    maker = plugins.load("schedules", name)
    try:
        inspect.signature(maker).bind(**given)
    except TypeError as error:
        raise InvalidValueError(f"schedule {name!r} does not take {given}: {error}") from None
    made: Schedule = maker(**given)
    return made


def gradients_from(
    driver: Backend,
    model: Any,
    structure: Structure,
    batches: Batches | None,
    loss: Loss | None,
) -> Gradients | None:
    """Return what computes gradients at the model's present weights; None without batches or loss.

    Raises:
        CapabilityError: the backend gives none.
    """
    if batches is None or loss is None:
        return None
    if "gradients" not in driver.capabilities:
        raise CapabilityError(f"the backend {driver.name!r} gives no gradients")
    return lambda: driver.gradients(model, structure, _some(batches), loss)


def _some(batches: Batches) -> Iterator[tuple[Any, Any]]:
    """Yield the batches; none at all would silently score everything 0."""
    empty = True
    for batch in batches:
        empty = False
        yield batch
    if empty:
        raise InvalidValueError("batches is empty; gradients need at least one (inputs, targets)")


def name_of(function: Any) -> str:
    """Return a name that is the same in every process."""
    return str(getattr(function, "__qualname__", type(function).__qualname__))
