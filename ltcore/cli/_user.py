"""What commands take from the user: objects of their own modules, and shapes of inputs."""

import inspect
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
import typer

from ltcore.arrays import Array
from ltcore.closest import did_you_mean
from ltcore.errors import InvalidValueError, LtcoreError, gist


def made(reference: str, option: str) -> Any:
    """Return what ``module:function`` makes, or the object of that name itself.

    Raises:
        InvalidValueError: it is not there, or fails.
    """
    with _blaming(reference, option):
        found = _object(reference, option)
        makes = inspect.isroutine(found) or inspect.isclass(found) or type(found) is partial
        return found() if makes else found


def function(reference: str, option: str) -> Any:
    """Return ``module:function`` itself.

    Raises:
        InvalidValueError: it is not there.
    """
    with _blaming(reference, option):
        return _object(reference, option)


def imported(modules: list[str]) -> None:
    """Import modules of the user's, for what they register.

    Raises:
        InvalidValueError: one is not there, or fails.
    """
    for module in modules:
        with _blaming(module, "--import"):
            _module(module)


@contextmanager
def running(code: str) -> Iterator[None]:
    """Make one of ltcore's errors of what the user's code raises while ltcore calls it.

    Args:
        code: where it is from, for the error.
    """
    try:
        yield
    except (LtcoreError, OSError):
        raise
    except Exception as error:  # the user's own code may fail in any way
        raise InvalidValueError(
            f"while running {code}: {gist(error)} (LTCORE_TRACEBACK=1 shows where)"
        ) from error


def example(texts: list[str]) -> Any:
    """Return zeros of the shapes given: one array, or a tuple of several; None without any."""
    arrays = tuple(map(_zeros, texts))
    return arrays[0] if len(arrays) == 1 else arrays or None


def _zeros(text: str) -> Array:
    sizes, _, dtype = text.partition(":")
    try:
        return np.zeros([int(size) for size in sizes.split(",")], dtype or "float32")
    except (ValueError, TypeError):
        raise typer.BadParameter(
            f"{text!r}; expected sizes with commas between and, if it is not float32, a dtype: "
            "1,3,32,32 or 1,16:int64",
            param_hint="--example",
        ) from None


def _object(reference: str, option: str) -> Any:
    module, _, name = reference.partition(":")
    if not module or not name:
        raise typer.BadParameter(
            f"{reference!r}; expected package.module:function", param_hint=option
        )
    found: Any = _module(module)
    for part in name.split("."):
        if not hasattr(found, part):
            hint = did_you_mean(part, [known for known in dir(found) if known[:1] != "_"])
            where = getattr(found, "__name__", type(found).__name__)
            raise InvalidValueError(f"{where} has no {part!r}{hint}")
        found = getattr(found, part)
    return found


def _module(name: str) -> ModuleType:
    if name.endswith(".py"):
        bare = name.removesuffix(".py").replace("/", ".")
        raise InvalidValueError(f"a module's name has no .py; did you mean {bare!r}?")
    return import_module(name)


@contextmanager
def _blaming(reference: str, option: str) -> Iterator[None]:
    """Let imports find what is in the current folder, and say which option failed."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    except typer.BadParameter:
        raise
    except LtcoreError as error:
        raise InvalidValueError(f"{option} {reference}: {error}") from error
    except Exception as error:  # the user's own code may fail in any way
        raise InvalidValueError(
            f"nothing from {option} {reference}: {type(error).__name__}: {error}"
        ) from error
    finally:
        sys.path.remove(here)
