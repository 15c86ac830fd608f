"""What somebody set as the thing under test, or one sentence on why it cannot be that."""

from collections.abc import Callable, Sequence
from inspect import getattr_static
from types import FunctionType
from typing import Any

from ltcore.errors import InvalidValueError, LtcoreError


def under_test(
    suite: object,
    attribute: str,
    parts: Sequence[str],
    of_function: Callable[[Callable[..., Any]], Any] | None = None,
) -> Any:
    """Return what ``suite`` has as ``attribute``; a class is made an object.

    Args:
        suite: an instance of a suite.
        attribute: the suite's attribute.
        parts: what an object must have.
        of_function: what a bare function becomes; None where it cannot be one.

    Raises:
        InvalidValueError: says what it is, and what to give instead.
    """
    where = f"{type(suite).__name__}.{attribute}"
    found = getattr_static(suite, attribute)
    found = found.__func__ if isinstance(found, staticmethod) else found
    if not isinstance(found, FunctionType):  # it would become a method of the suite
        found = getattr(suite, attribute)
    if found is None:
        raise InvalidValueError(f"{where} is not set; set it to the {attribute} under test")
    if isinstance(found, str):
        raise InvalidValueError(f"{where} is the name {found!r}; give the thing itself")
    if isinstance(found, type):
        found = _instance(where, found)
    missing = [part for part in parts if not hasattr(found, part)]
    if callable(found) and of_function and len(missing) == len(parts):
        return of_function(found)
    if missing or (not parts and not callable(found)):
        lacks = f"; it has no {', '.join(missing)}" if missing else "; it cannot be called"
        raise InvalidValueError(f"{where} is {found!r}, which is no {attribute}{lacks}")
    return found


def check_given(suite: Any) -> None:
    """End pytest's collection with one sentence unless there is something to test.

    Else every test of the suite would fail, each in its own way. A suite that finds the thing in
    a way of its own may know it only when a test runs.
    """
    if not type(suite).rule.__module__.startswith("ltcore.testing."):
        return
    try:
        suite.rule()
    except LtcoreError as error:
        import pytest  # it calls this, so it is there

        raise pytest.Collector.CollectError(f"error: {error}") from None


def _instance(where: str, found: type) -> Any:
    try:
        return found()
    except TypeError as error:
        raise InvalidValueError(
            f"{where} is the class {found.__name__}, which cannot be called without arguments "
            f"({error}); give an object of it"
        ) from None
