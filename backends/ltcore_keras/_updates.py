"""Ears on every optimizer update of the process, whoever made the optimizer and whenever.

All Keras optimizers update through ``Optimizer.apply``: ``fit``, a `GradientTape` loop, and
wrappers such as `LossScaleOptimizer` (which calls that of the optimizer inside). While someone
listens, that method of the class is ours. A compiled training step contains what was heard when
it was traced, so whoever begins or stops to listen has ``fit`` trace again.
"""

import functools
import threading
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import keras


class Listener(Protocol):
    """Hears of updates; operations that it makes become part of a traced training step."""

    def before_update(
        self, optimizer: Any, gradients: list[Any], variables: list[Any]
    ) -> list[Any]:
        """Return the gradients that ``optimizer`` shall get for ``variables``."""
        ...

    def after_update(self, optimizer: Any, variables: list[Any]) -> None:
        """Called after ``optimizer`` has changed ``variables``."""
        ...

    def finished(self, optimizer: Any, variables: list[Any]) -> None:
        """Called when everybody is done; once also where an optimizer is made of several."""
        ...


_listeners: list[weakref.ref[Listener]] = []
_originals: dict[type, Callable[..., Any] | None] = {}
_nested = threading.local()


def listen(listener: Listener) -> None:
    """Tell ``listener`` of every update while it lives."""
    if not any(ref() is listener for ref in _listeners):
        _listeners.append(weakref.ref(listener, lambda _: _rest_if_alone()))
    if not _originals:
        _install(keras.optimizers.Optimizer, _heard)
        several = getattr(keras.optimizers, "MultiOptimizer", None)
        if several:
            _install(several, _heard_once)


def unlisten(listener: Listener) -> None:
    """Stop telling ``listener``."""
    _listeners[:] = [ref for ref in _listeners if ref() is not listener]
    _rest_if_alone()


def _live() -> list[Listener]:
    return [listener for ref in _listeners if (listener := ref()) is not None]


def _rest_if_alone() -> None:
    _listeners[:] = [ref for ref in _listeners if ref() is not None]
    if _listeners:
        return
    for cls, original in _originals.items():
        if original is None:
            del cls.apply  # type: ignore[attr-defined]
        else:
            cls.apply = original  # type: ignore[attr-defined]
    _originals.clear()


def _install(cls: type, around: Callable[..., Any]) -> None:
    """Put ``around`` in the place of the class's ``apply``, which may be an inherited one."""
    _originals[cls] = cls.__dict__.get("apply")
    original = cls.apply  # type: ignore[attr-defined]

    @functools.wraps(original)
    def apply(self: Any, grads: Any, trainable_variables: Any = None) -> Any:
        return around(original, self, grads, trainable_variables)

    cls.apply = apply  # type: ignore[attr-defined]


def _heard(original: Callable[..., Any], optimizer: Any, grads: Any, given: Any) -> Any:
    """Make an update with masked gradients, then tell everybody."""
    gradients = list(grads)
    variables = list(optimizer._trainable_variables if given is None else given)
    listeners = _live()
    for listener in listeners:
        gradients = listener.before_update(optimizer, gradients, variables)
    result = original(optimizer, gradients, None if given is None else variables)
    touched = [v for g, v in zip(gradients, variables, strict=False) if g is not None]
    for listener in listeners:
        listener.after_update(optimizer, touched)
    if not getattr(_nested, "inside", False):
        for listener in listeners:
            listener.finished(optimizer, touched)
    return result


def _heard_once(original: Callable[..., Any], optimizer: Any, grads: Any, given: Any) -> Any:
    """Let the optimizers inside make their parts of one update."""
    gradients = list(grads)
    _nested.inside = True
    try:
        result = original(optimizer, gradients, given)
    finally:
        _nested.inside = False
    variables = list(optimizer._trainable_variables if given is None else given)
    touched = [v for g, v in zip(gradients, variables, strict=False) if g is not None]
    for listener in _live():
        listener.finished(optimizer, touched)
    return result
