"""Ears on every optimizer of the process, whoever made it and whenever.

torch calls global hooks before and after any `torch.optim.Optimizer.step`. They are there only
while someone listens; listeners are held weakly and go with their model.
"""

import sys
import weakref
from typing import Any, Protocol

from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils.hooks import RemovableHandle


class Listener(Protocol):
    """Hears of every update that an optimizer makes."""

    def before_step(self, optimizer: Optimizer, owned: set[int]) -> None:
        """Called before an update of the parameters whose ``id`` is in ``owned``."""
        ...

    def after_step(self, optimizer: Optimizer, owned: set[int], calling: set[int]) -> None:
        """Called after it; ``calling`` is what the optimizers own that made it in their step."""
        ...


_listeners: list[weakref.ref[Listener]] = []
_handles: list[RemovableHandle] = []
_telling: list[Optimizer] = []
"""Those whose hooks torch is going through right now."""


def listen(listener: Listener, *, first: bool = False) -> None:
    """Tell ``listener`` of every update while it lives; a ``first`` one hears before others."""
    _listeners[:] = [ref for ref in _listeners if ref() is not None]
    _listeners.insert(0 if first else len(_listeners), weakref.ref(listener))
    if not _handles:
        _handles.append(register_optimizer_step_pre_hook(_before))
        _handles.append(register_optimizer_step_post_hook(_after))


def unlisten(listener: Listener) -> None:
    """Stop telling ``listener``."""
    _listeners[:] = [ref for ref in _listeners if ref() not in (None, listener)]
    if not _listeners and not _telling:  # a listener may go while it is told
        while _handles:
            _handles.pop().remove()


def _live() -> list[Listener]:
    """Return who still lives. Hooks are not removed here: torch is going through them."""
    return [listener for ref in _listeners if (listener := ref()) is not None]


def _owned(optimizer: Optimizer) -> set[int]:
    return {id(tensor) for group in optimizer.param_groups for tensor in group["params"]}


def _before(optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
    owned = _owned(optimizer)
    for listener in _live():
        listener.before_step(optimizer, owned)


def _after(optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
    owned, calling = _owned(optimizer), _calling()
    _telling.append(optimizer)
    try:
        for listener in _live():
            listener.after_step(optimizer, owned, calling)
    finally:
        _telling.remove(optimizer)


def _calling() -> set[int]:
    """Return what the optimizers own inside whose step this one was called (Lookahead, SAM).

    The stack itself is asked: a count of open steps would never recover from one that raised.
    """
    step = sys._getframe(2)  # torch's wrapper of step(), which calls the hooks
    found: set[int] = set()
    frame = step.f_back
    while frame is not None:
        if frame.f_code is step.f_code and isinstance(frame.f_locals.get("self"), Optimizer):
            found |= _owned(frame.f_locals["self"])
        frame = frame.f_back
    return found
