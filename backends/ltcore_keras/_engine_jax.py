"""Keras on JAX: training steps are pure functions of the weights, compiled once.

``fit`` takes the weights out of the model and hands them from step to step; it calls each
compiled step from Python, so ears between the steps see everything. A step that a user compiles
(around ``optimizer.stateless_apply``) is reached while it is traced: masks become constants of
it, and updates are reported by callbacks to the host. Either is traced anew after every change.
"""

import functools
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import jax
import keras
import numpy as np
from jax.experimental import io_callback
from keras.src.backend.common import global_state
from keras.src.backend.common.stateless_scope import get_stateless_scope, in_stateless_scope

from ltcore.arrays import Array
from ltcore.errors import CapabilityError
from ltcore_keras._engine_any import Ears, Engine, Log
from ltcore_keras._patch import Patch

_fit = threading.local()


class Jax(Engine):
    """JAX, on one device."""

    capabilities = frozenset({"gradients", "hvp", "vjp"})

    def __init__(self) -> None:
        self._by_hand = False

    def check_trains(self, model: Any) -> None:
        """Raise if Keras spreads models over several devices, or is too old."""
        if not hasattr(keras.Model, "_make_function"):
            raise CapabilityError(
                f"Keras {keras.__version__} on JAX cannot be watched; 3.7 or later can"
            )
        distribution = keras.distribution.distribution()
        devices = distribution.device_mesh.devices.size if distribution else 1
        if devices > 1:
            raise CapabilityError(
                f"the model trains on {devices} devices (keras.distribution); holding and watching "
                "are there for one device only"
            )

    def gradients(self, variables: Sequence[Any], loss: Callable[[], Any]) -> list[Any]:
        """Return dense gradients; whatever the call writes to variables is dropped."""
        found: list[Any] = jax.grad(_total(variables, loss))(_values(variables))
        return found

    def gradients_of(
        self, variables: Sequence[Any], loss: Callable[..., Any]
    ) -> Callable[..., list[Any]]:
        """Return a compiled function; weights are its arguments, for constants compile slowly."""
        gradient = jax.jit(jax.grad(_total(variables, loss)))
        return functools.partial(gradient, _values(variables))

    def hessian_product(
        self, variables: Sequence[Any], loss: Callable[[], Any], vector: Sequence[Any]
    ) -> list[Any]:
        """Return the gradient of the inner product of gradient and ``vector``."""
        gradient = jax.grad(_total(variables, loss))

        def slope(values: list[Any]) -> Any:
            products = zip(gradient(values), vector, strict=True)
            return sum(keras.ops.sum(a * b) for a, b in products)

        found: list[Any] = jax.grad(slope)(_values(variables))
        return found

    def pullback(self, function: Callable[[list[Any]], Any], values: list[Any]) -> list[Any]:
        """Return dense gradients."""
        found: list[Any] = jax.grad(function)(values)
        return found

    def float64(self) -> AbstractContextManager[None]:
        """Return JAX's own switch."""
        switch = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
        context: AbstractContextManager[None] = switch(True)
        return context

    def has_value(self, tensor: Any) -> bool:
        """Whether nothing traces what is done to ``tensor``."""
        return not isinstance(tensor, jax.core.Tracer)

    def assign(self, variable: Any, array: Array) -> None:
        """Write a copy of ``array`` into ``variable``; JAX itself would use its memory."""
        variable.assign(array.copy())

    def keys(self, variable: Any) -> Iterator[int]:
        """Yield the id of the Keras variable; its array is another one after every update."""
        yield id(variable)

    def settle(self, model: Any) -> None:
        """Bring the weights back from a running ``fit``, which then goes on with what is there.

        Raises:
            CapabilityError: the running ``fit`` is that of another model.
        """
        sync = getattr(model, "jax_state_sync", None)
        if sync:
            sync()
        if any(variable._value is None for variable in model.weights):
            raise CapabilityError(
                f"the weights of {model.name!r} are away in the fit of a model around it; call "
                "jax_state_sync() of that model first"
            )

    def has_values(self, optimizer: Any) -> bool:
        """Whether no running ``fit`` has taken them away."""
        return all(variable._value is not None for variable in optimizer.variables)

    @contextmanager
    def outside_graph(self) -> Iterator[None]:
        """Leave the scope in which variables are arguments, and compute now."""
        scope = get_stateless_scope()
        global_state.set_global_attribute("stateless_scope", None)
        try:
            with jax.ensure_compile_time_eval():
                yield
        finally:
            global_state.set_global_attribute("stateless_scope", scope)

    @contextmanager
    def clearing(self) -> Iterator[bool]:
        """Write in the step where there is one: its state is an argument of it."""
        yield not in_stateless_scope()

    def listening(self, trained: Iterable[Any], *, new: bool) -> None:
        """Have every step traced anew: it has masks as constants in it.

        Steps of the user's own go with everything compiled. While somebody listens we hear of
        such steps; what was traced before is not known.
        """
        for model in trained:
            self.retrace(model)
        if new or self._by_hand:
            jax.clear_caches()
            self._by_hand = False

    def heard(self) -> None:
        """Note that there is a step of the user's own."""
        if in_stateless_scope() and not _in_fit():
            self._by_hand = True

    def at_rest(self) -> bool:
        """Whether the variables hold the weights, and not arguments of a step."""
        return not in_stateless_scope() and not _in_fit()

    def ears(self, live: Callable[[], list[Any]], pause: Callable[[], None]) -> list[Ears]:
        """Return ears between the steps of every ``fit`` that begins from now on."""

        def told(original: Any, model: Any, step: Any, *args: Any, **kwargs: Any) -> Any:
            return original(model, _Step(step, model, live), *args, **kwargs)

        return [Patch(keras.Model, "_make_function", told)]

    def report(self, log: Log, done: Any, variables: Sequence[Any]) -> None:
        """Tell ``log``, from inside a step of the user's own by callbacks to the host.

        Only variables that are arguments of the step are known there.
        """
        if _in_fit():
            return  # the ears between the steps tell
        scope = get_stateless_scope()
        if scope is None:
            super().report(log, done, variables)
            return
        known = {id(v): scope.get_current_value(v) for v in variables}
        _call_back(weakref.ref(log), done, {k: v for k, v in known.items() if v is not None})

    def flush(self) -> None:
        """Wait for callbacks that are under way."""
        jax.effects_barrier()


def _values(variables: Sequence[Any]) -> list[Any]:
    return [variable.value for variable in variables]


def _total(variables: Sequence[Any], loss: Callable[..., Any]) -> Callable[..., Any]:
    """Return the sum of ``loss`` as a function of the values of ``variables``, and its own."""

    def total(values: list[Any], *args: Any) -> Any:
        with keras.StatelessScope(list(zip(variables, values, strict=True))):
            return keras.ops.sum(loss(*args))

    return total


def _in_fit() -> bool:
    return getattr(_fit, "inside", False)


class _Step:
    """A step of ``fit``, with ears before the first and after each.

    Args:
        step: takes and returns the state of a run: lists of arrays.
        model: the model that is fitted.
        live: returns the listeners.
    """

    def __init__(self, step: Callable[..., Any], model: Any, live: Callable[[], list[Any]]) -> None:
        self._step = step
        self._model = weakref.ref(model)
        self._live = live
        self._last: Any = None  # of the state: the arrays of the metrics, which are small
        self._places: dict[int, tuple[int, int]] = {}
        self._told: weakref.WeakSet[Any] = weakref.WeakSet()

    def __call__(self, state: Any, data: Any) -> Any:
        """Make a step."""
        model = self._model()
        # Weights, other state, the optimizer's and that of metrics: only training has all four.
        if model is None or len(state) != 4:
            return self._step(state, data)
        self._announce(model, state)
        _fit.inside = True
        try:
            outputs, state = self._step(state, data)
        finally:
            _fit.inside = False
        self._last = state[3]
        for listener in self._live():
            listener.stepped(_Values(self._places, state))
        return outputs, state

    def _announce(self, model: Any, state: Any) -> None:
        """Tell who does not know yet that a run begins: one whose state is not from our steps."""
        if state[3] is not self._last:
            self._places = _places(model)
            self._told.clear()
        for listener in self._live():
            if listener not in self._told:
                self._told.add(listener)
                listener.run_begins(model, _Values(self._places, state))


class _Values(Mapping[int, Any]):
    """The arrays of a state of ``fit`` by the id of their Keras variable."""

    def __init__(self, places: dict[int, tuple[int, int]], state: Any) -> None:
        self._places, self._state = places, state

    def __getitem__(self, key: int) -> Any:
        part, position = self._places[key]
        return self._state[part][position]

    def __iter__(self) -> Iterator[int]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _places(model: Any) -> dict[int, tuple[int, int]]:
    """Return where in the state of its ``fit`` the array of each variable is."""
    parts = model.trainable_variables, model.non_trainable_variables, model.optimizer.variables
    return {
        id(variable): (part, position)
        for part, variables in enumerate(parts)
        for position, variable in enumerate(variables)
    }


def _call_back(log: "weakref.ref[Log]", done: Any, values: Mapping[int, Any]) -> None:
    """Report from inside a compiled step; weights come to the host only when they are wanted."""

    def tick(done: Any) -> Any:
        alive = log()
        return np.bool_(alive is not None and alive.tick(bool(done)))

    def take(*arrays: Any) -> None:
        alive = log()
        if alive is not None:
            copies = [np.array(array) for array in arrays]
            alive.take(dict(zip(values, copies, strict=True)))

    answer = jax.ShapeDtypeStruct((), np.bool_)
    wanted = io_callback(tick, answer, done, ordered=True)
    jax.lax.cond(
        wanted,
        lambda: io_callback(take, None, *values.values(), ordered=True),
        lambda: None,
    )


ENGINE = Jax()
