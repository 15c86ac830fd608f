"""A method of a class, replaced for a while."""

import functools
from collections.abc import Callable
from typing import Any


class Patch:
    """A method of a class, replaced by ``around(original, self, ...)`` until removed."""

    def __init__(self, cls: type, name: str, around: Callable[..., Any]) -> None:
        self._cls, self._name = cls, name
        self._own = cls.__dict__.get(name)  # None where the class inherits it
        original = getattr(cls, name)

        @functools.wraps(original)
        def method(*args: Any, **kwargs: Any) -> Any:
            return around(original, *args, **kwargs)

        self._ours = method
        setattr(cls, name, method)

    def remove(self) -> None:
        """Put the original back, unless somebody has put a method of theirs over ours."""
        if self._cls.__dict__.get(self._name) is not self._ours:
            return
        if self._own is None:
            delattr(self._cls, self._name)
        else:
            setattr(self._cls, self._name, self._own)
