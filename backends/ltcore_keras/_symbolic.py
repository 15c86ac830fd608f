"""One call of a model on symbolic inputs, watched layer by layer and operation by operation.

Keras calls layers and operations on symbolic tensors through ``symbolic_call``; for the time of
the call it is ours, here and in no other thread. Everything the call leaves behind in Keras
(nodes of the layers' graph, numbers for automatic names) is taken back.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import keras
import numpy as np
from keras import layers as kl
from keras.src.backend.common import global_state

from ltcore_keras._calls import runs_keras
from ltcore_keras._names import sublayers

_lock = threading.RLock()
_CONSTANTS = (keras.Variable, np.ndarray)


class Observer(Protocol):
    """Hears of every operation outside layers, and of every layer that is not entered.

    ``read`` are the variables whose values the code around has taken by now.
    """

    def operation(self, operation: Any, args: Sequence[Any], out: Any, read: Sequence[Any]) -> None:
        """Called after a ``keras.ops`` function."""
        ...

    def layer(self, layer: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
        """Called after a layer."""
        ...

    def knows(self, layer: Any) -> bool:
        """Whether there is a rule for the layer as a whole, so that nobody looks inside."""
        ...

    def owns_sites(self, layer: Any) -> bool:
        """Whether the layer, or one inside it, is a site."""
        ...

    def stands_for(self, symbol: Any, constant: Any, read: Sequence[Any]) -> None:
        """Called when a layer that owns sites gets ``symbol`` in place of a ``constant``."""
        ...


def tensors(tree: Any) -> list[Any]:
    """Return the symbolic tensors in ``tree``."""
    return [leaf for leaf in keras.tree.flatten(tree) if isinstance(leaf, keras.KerasTensor)]


def run(model: Any, inputs: Any, observer: Observer) -> list[Any]:
    """Call ``model`` on symbolic ``inputs`` and return its symbolic outputs."""
    calls = _Calls(observer)
    # Whatever the model writes to its variables on the way goes into the scope and is dropped.
    with _lock, _auto_names_kept(), calls.patched(), _Scope(calls):
        return tensors(model(inputs, training=False))


class _Scope(keras.StatelessScope):  # type: ignore[misc]  # keras has no types
    """Drops what is written to variables, and tells which are read."""

    def __init__(self, calls: "_Calls") -> None:
        super().__init__()
        self._calls = calls

    def get_current_value(self, variable: Any) -> Any:
        """Return what the model wrote on the way; None where it is the variable's own value."""
        self._calls.read(variable)
        return super().get_current_value(variable)


class _Calls:
    """What happens at each call while patched."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._thread = threading.get_ident()
        self._inside = 0
        self._read: list[dict[int, Any]] = [{}]  # by each of the calls that we are in
        self._nodes: dict[int, tuple[Any, int, int]] = {}

    @contextmanager
    def patched(self) -> Iterator[None]:
        try:
            with (
                _replaced(keras.Operation, "symbolic_call", self._operation),
                _replaced(keras.Layer, "symbolic_call", self._layer),
                _replaced(keras.Layer, "__call__", self._call),
                _replaced(keras.Layer, "add_loss", self._add_loss),
                _replaced(keras.Layer, "_clear_losses", self._clear_losses),
            ):
                yield
        finally:
            for operation, inbound, outbound in self._nodes.values():
                del operation._inbound_nodes[inbound:]
                del operation._outbound_nodes[outbound:]

    def read(self, variable: Any) -> None:
        if not self._foreign() and not self._inside:
            self._read[-1][id(variable)] = variable

    def _call(self, original: Any, layer: Any, args: Any, kwargs: Any) -> Any:
        """Have a layer with sites called on symbols also where the model gives it constants."""
        if self._foreign() or self._inside or not self._observer.owns_sites(layer):
            return original(layer, *args, **kwargs)
        # A layer of the user's may look at a constant that comes beside its input.
        if runs_keras(layer) or not tensors((args, kwargs)):
            args = keras.tree.map_structure(self._symbol, args)
        return original(layer, *args, **kwargs)

    def _symbol(self, argument: Any) -> Any:
        known = isinstance(argument, keras.KerasTensor)
        if known or not (keras.ops.is_tensor(argument) or isinstance(argument, _CONSTANTS)):
            return argument
        dtype = keras.backend.standardize_dtype(argument.dtype)
        symbol = keras.KerasTensor(tuple(argument.shape), dtype)
        self._observer.stands_for(symbol, argument, list(self._read[-1].values()))
        return symbol

    def _operation(self, original: Any, operation: Any, args: Any, kwargs: Any) -> Any:
        if self._foreign():
            return original(operation, *args, **kwargs)
        self._remember(operation)
        with self._closed():
            outputs = original(operation, *args, **kwargs)
        if not self._inside:
            read = list(self._read[-1].values())
            self._observer.operation(operation, (*args, *kwargs.values()), outputs, read)
        return outputs

    def _layer(self, original: Any, layer: Any, args: Any, kwargs: Any) -> Any:
        if self._foreign():
            return original(layer, *args, **kwargs)
        self._remember(layer)
        if not self._inside and not self._observer.knows(layer):
            if isinstance(layer, kl.TimeDistributed) and runs_keras(layer):
                return _each_step(layer.layer, *args)
            try:
                self._read.append({})
                return layer.call(*args, **kwargs)
            except Exception:
                if sublayers(layer) and (isinstance(layer, keras.Model) or not runs_keras(layer)):
                    raise
                # What it calls takes no symbols: a black box.
            finally:
                self._read.pop()
        with self._closed():
            # An EinsumDense forgets the sizes that its user left open.
            open_sizes = isinstance(layer, kl.EinsumDense)
            outputs = layer.call(*args) if open_sizes else original(layer, *args, **kwargs)
        if not self._inside:
            self._observer.layer(layer, args, kwargs, outputs)
        return outputs

    def _add_loss(self, original: Any, layer: Any, args: Any, kwargs: Any) -> Any:
        """Drop a loss that is a symbol; Keras takes none."""
        if self._foreign() or not tensors((args, kwargs)):
            return original(layer, *args, **kwargs)
        return None

    def _clear_losses(self, original: Any, layer: Any, args: Any, kwargs: Any) -> Any:
        """Leave the losses of the user's last call."""
        return original(layer, *args, **kwargs) if self._foreign() else None

    @contextmanager
    def _closed(self) -> Iterator[None]:
        """Hear nothing of what goes on inside."""
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1

    def _foreign(self) -> bool:
        return threading.get_ident() != self._thread

    def _remember(self, operation: Any) -> None:
        """Note how many nodes it has: Keras adds one after each call."""
        counts = len(operation._inbound_nodes), len(operation._outbound_nodes)
        self._nodes.setdefault(id(operation), (operation, *counts))


def _each_step(layer: Any, inputs: Any) -> Any:
    """Return what ``TimeDistributed(layer)`` does, as a call of the layer on one step."""
    steps = keras.tree.flatten(inputs)[0].shape[1]
    one = layer(keras.tree.map_structure(lambda tensor: tensor[:, 0], inputs))
    return keras.tree.map_structure(lambda out: keras.ops.stack([out] * steps, axis=1), one)


@contextmanager
def _replaced(cls: type, name: str, ours: Callable[..., Any]) -> Iterator[None]:
    """Have ``ours(original, self, args, kwargs)`` called in place of a method."""
    original = getattr(cls, name)

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return ours(original, self, args, kwargs)

    setattr(cls, name, method)
    try:
        yield
    finally:
        setattr(cls, name, original)


@contextmanager
def _auto_names_kept() -> Iterator[None]:
    """Give Keras back its counters, so that later layers of the user are named as ever."""
    counters = global_state.get_global_attribute("object_name_uids")
    before = None if counters is None else counters.copy()
    try:
        yield
    finally:
        global_state.set_global_attribute("object_name_uids", before)


def symbolic_input(shape: Sequence[int], dtype: str) -> Any:
    """Return a symbolic input of a full shape."""
    with _lock, _auto_names_kept():
        return keras.Input(batch_shape=tuple(shape), dtype=dtype)
