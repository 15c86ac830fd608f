"""A method of a class, replaced for a while."""

import functools
from collections.abc import Callable
from typing import Any


class Patch:
    """A method of a class, replaced by ``around(original, self, ...)`` until removed.

    Where somebody has put a method of theirs over ours, ours stays inside theirs when removed,
    and does nothing more.
    """

    def __init__(self, cls: type, name: str, around: Callable[..., Any]) -> None:
        self._cls, self._name = cls, name
        self._own = vars(cls).get(name)  # None where the class inherits it
        self._active = True
        original = getattr(cls, name)

        @functools.wraps(original)
        def method(*args: Any, **kwargs: Any) -> Any:
            if self._active:
                return around(original, *args, **kwargs)
            return original(*args, **kwargs)

        self._ours = method
        vars(method)["patch"] = self
        setattr(cls, name, method)

    def remove(self) -> None:
        """Put the original back, or fall through to it. Twice is fine."""
        self._active = False
        if vars(self._cls).get(self._name) is not self._ours:
            return
        own = self._own
        while isinstance(below := getattr(own, "patch", None), Patch) and not below._active:
            own = below._own  # removed before this one, and still under it
        if own is None:
            delattr(self._cls, self._name)
        else:
            setattr(self._cls, self._name, own)
