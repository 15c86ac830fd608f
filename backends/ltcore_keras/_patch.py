"""A method of a class, or a function of a module, replaced for a while."""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any


class Patch:
    """A method of a class, replaced by ``around(original, self, ...)`` until removed.

    Or a function of a module, replaced by ``around(original, ...)``.

    Where somebody has put a method of theirs over ours, ours stays inside it when removed, and
    does nothing more: the next patch goes on top, and a call must not come through two.
    """

    def __init__(self, cls: Any, name: str, around: Callable[..., Any]) -> None:
        self._cls, self._name = cls, name
        self._own = cls.__dict__.get(name)  # None where the class inherits it
        self._removed = False
        original = getattr(cls, name)

        @functools.wraps(original)
        def method(*args: Any, **kwargs: Any) -> Any:
            if self._removed:
                return original(*args, **kwargs)
            return around(original, *args, **kwargs)

        self._ours = method
        setattr(cls, name, method)

    def remove(self) -> None:
        """Put the original back, or fall through to it."""
        self._removed = True
        if self._cls.__dict__.get(self._name) is not self._ours:
            return
        if self._own is None:
            delattr(self._cls, self._name)
        else:
            setattr(self._cls, self._name, self._own)


@contextmanager
def raised_plainly(errors: Sequence[Exception]) -> Iterator[None]:
    """Raise the first of ``errors`` at the end: Keras wraps what is raised inside a layer."""
    try:
        yield
    finally:
        if errors:
            raise errors[0] from None
