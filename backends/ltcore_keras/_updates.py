"""Ears on every optimizer update of the process, whoever made the optimizer and whenever.

All Keras optimizers update through ``Optimizer.apply``: ``fit``, a `GradientTape` loop, and
wrappers such as `LossScaleOptimizer` (which calls that of the optimizer inside). While someone
listens, that method of the class is ours. A compiled training step contains what was heard when
it was traced, so every ``fit`` (of the model or of one that contains it) traces again after
someone began or stopped to listen.
"""

import itertools
import threading
import weakref
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import keras

from ltcore_keras._engine import ENGINE
from ltcore_keras._engine_any import Ears
from ltcore_keras._patch import Patch
from ltcore_keras._pauses import at_work, ears_on_pauses


class Listener:
    """Hears of updates; operations that it makes become part of a traced training step.

    Optimizers are those of Keras or of the engine; so are variables.
    """

    def training(self, model: Any) -> None:
        """Called when ``fit`` of ``model`` is about to make its training step."""

    def before_update(
        self, optimizer: Any, gradients: list[Any], variables: list[Any]
    ) -> list[Any]:
        """Return the gradients that ``optimizer`` shall get for ``variables``."""
        return gradients

    def after_update(self, optimizer: Any, variables: list[Any]) -> None:
        """Called after ``optimizer`` has changed ``variables``."""

    def finished(self, optimizer: Any, owned: list[Any], variables: list[Any]) -> None:
        """Called when everybody is done; once also where an optimizer is made of several.

        Args:
            optimizer: made an update.
            owned: all variables that it trains.
            variables: those of them that the update was for, with a gradient or without.
        """

    def paused(self) -> None:
        """Called when Python runs after updates, outside of a training step."""

    def run_begins(self, model: Any, values: Mapping[int, Any]) -> None:
        """Called before the steps of ``fit`` on JAX, with ``{id of the variable: array}``."""

    def stepped(self, values: Mapping[int, Any]) -> None:
        """Called after each of these steps, with what it made."""


_listeners: list[weakref.ref[Listener]] = []
_ears: list[Ears] = []
_generation = itertools.count()
_current = next(_generation)
_traced: MutableMapping[Any, int] = weakref.WeakKeyDictionary()
_nested = threading.local()


def listen(listener: Listener) -> None:
    """Tell ``listener`` of every update while it lives."""
    new = all(ref() is not listener for ref in _listeners)
    if new:
        _listeners.append(weakref.ref(listener, lambda _: _rest_if_alone()))
    if not _ears:
        _ears.append(Patch(keras.optimizers.Optimizer, "apply", _heard))
        _ears.append(Patch(keras.Model, "make_train_function", _traced_anew))
        several = getattr(keras.optimizers, "MultiOptimizer", None)
        if several:
            _ears.append(Patch(several, "apply", _heard_once))
        _ears.extend(ENGINE.ears(_live, _goes_on))
        _ears.extend(ears_on_pauses(_pause))
    _changed()
    ENGINE.listening(list(_traced), new=new)


def unlisten(listener: Listener) -> None:
    """Stop telling ``listener``."""
    _forget(listener)
    ENGINE.listening(list(_traced), new=False)


def _forget(listener: Listener) -> None:
    _listeners[:] = [ref for ref in _listeners if ref() is not listener]
    _changed()
    _rest_if_alone()


def unlisten_with(model: Any, listener: Listener) -> None:
    """Stop telling ``listener`` when ``model`` dies: somebody may keep a handle for longer."""
    weakref.finalize(model, _unlisten_if_alive, weakref.ref(listener)).atexit = False


def _unlisten_if_alive(reference: "weakref.ref[Listener]") -> None:
    listener = reference()
    if listener is not None:
        _forget(listener)


def _live() -> list[Listener]:
    return [listener for ref in _listeners if (listener := ref()) is not None]


def _pause() -> None:
    for listener in _live():
        listener.paused()


def _goes_on() -> None:
    with at_work(_pause):
        pass


def _rest_if_alone() -> None:
    _listeners[:] = [ref for ref in _listeners if ref() is not None]
    if not _listeners:
        while _ears:
            _ears.pop().remove()


def _changed() -> None:
    """Make every training step that is compiled by now out of date."""
    global _current  # noqa: PLW0603  one process has one set of listeners
    _current = next(_generation)


def _traced_anew(original: Callable[..., Any], model: Any, force: bool = False) -> Any:
    """Have ``fit`` compile a training step anew that was compiled for other listeners."""
    for listener in _live():
        listener.training(model)
    stale = _traced.get(model) != _current
    _traced[model] = _current
    return original(model, force=force or stale)


def _heard(
    original: Callable[..., Any], optimizer: Any, grads: Any, trainable_variables: Any = None
) -> Any:
    """Make an update with masked gradients, then tell everybody."""
    given = trainable_variables
    gradients = list(grads)
    variables = list(optimizer._trainable_variables if given is None else given)
    if len(gradients) != len(variables):
        return original(optimizer, gradients, given)  # a mistake; Keras says which
    ENGINE.heard()
    with at_work(_pause):
        listeners = _live()
        for listener in listeners:
            gradients = listener.before_update(optimizer, gradients, variables)
        result = original(optimizer, gradients, None if given is None else variables)
        touched = [v for g, v in zip(gradients, variables, strict=False) if g is not None]
        for listener in listeners:
            listener.after_update(optimizer, touched)
        if not getattr(_nested, "inside", False):
            for listener in listeners:
                listener.finished(optimizer, optimizer._trainable_variables, variables)
    return result


def _heard_once(
    original: Callable[..., Any], optimizer: Any, grads: Any, trainable_variables: Any = None
) -> Any:
    """Let the optimizers inside make their parts of one update."""
    given = trainable_variables
    gradients = list(grads)
    with at_work(_pause):
        _nested.inside = True
        try:
            result = original(optimizer, gradients, given)
        finally:
            _nested.inside = False
        variables = list(optimizer._trainable_variables if given is None else given)
        for listener in _live():
            listener.finished(optimizer, optimizer._trainable_variables, variables)
    return result
