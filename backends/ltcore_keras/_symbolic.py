"""One call of a model on symbolic inputs, watched layer by layer and operation by operation.

Keras calls layers and operations on symbolic tensors through ``symbolic_call``; for the time of
the call it is ours, here and in no other thread. Everything the call leaves behind in Keras
(nodes of the layers' graph, numbers for automatic names) is taken back.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import keras
from keras.src.backend.common import global_state

from ltcore_keras._names import sublayers

_lock = threading.RLock()


class Observer(Protocol):
    """Hears of every operation outside layers, and of every layer that is not entered."""

    def operation(self, operation: Any, args: Any, outputs: list[Any]) -> None:
        """Called after a ``keras.ops`` function."""
        ...

    def layer(self, layer: Any, args: Any, outputs: list[Any]) -> None:
        """Called after a layer."""
        ...


def tensors(tree: Any) -> list[Any]:
    """Return the symbolic tensors in ``tree``."""
    return [leaf for leaf in keras.tree.flatten(tree) if isinstance(leaf, keras.KerasTensor)]


def run(model: Any, inputs: Any, observer: Observer) -> list[Any]:
    """Call ``model`` on symbolic ``inputs`` and return its symbolic outputs."""
    calls = _Calls(observer)
    # Whatever the model writes to its variables on the way goes into the scope and is dropped.
    with _lock, _auto_names_kept(), calls.patched(), keras.StatelessScope():
        return tensors(model(inputs, training=False))


def enters(layer: Any) -> bool:
    """Whether to look inside: models and layers that are made of layers by the user.

    Keras's own composites (recurrent ones, attention) reshape in ways of their own.
    """
    if isinstance(layer, keras.Sequential | keras.Model):
        return True
    return bool(sublayers(layer)) and type(layer).__module__.partition(".")[0] != "keras"


class _Calls:
    """What happens at each ``symbolic_call`` while patched."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._thread = threading.get_ident()
        self._inside = 0
        self._nodes: dict[int, tuple[Any, int, int]] = {}

    @contextmanager
    def patched(self) -> Iterator[None]:
        on_operation = keras.Operation.symbolic_call
        on_layer = keras.Layer.symbolic_call
        calls = self

        def operation_call(self: Any, *args: Any, **kwargs: Any) -> Any:
            return calls.operation(on_operation, self, args, kwargs)

        def layer_call(self: Any, *args: Any, **kwargs: Any) -> Any:
            return calls.layer(on_layer, self, args, kwargs)

        try:
            keras.Operation.symbolic_call, keras.Layer.symbolic_call = operation_call, layer_call
            yield
        finally:
            keras.Operation.symbolic_call, keras.Layer.symbolic_call = on_operation, on_layer
            for operation, inbound, outbound in self._nodes.values():
                del operation._inbound_nodes[inbound:]
                del operation._outbound_nodes[outbound:]

    def operation(self, original: Any, operation: Any, args: Any, kwargs: Any) -> Any:
        if self._foreign():
            return original(operation, *args, **kwargs)
        self._remember(operation)
        outputs = original(operation, *args, **kwargs)
        if not self._inside:
            self._observer.operation(operation, (args, kwargs), tensors(outputs))
        return outputs

    def layer(self, original: Any, layer: Any, args: Any, kwargs: Any) -> Any:
        if self._foreign():
            return original(layer, *args, **kwargs)
        self._remember(layer)
        if not self._inside and enters(layer):
            return layer.call(*args, **kwargs)
        self._inside += 1
        try:
            outputs = original(layer, *args, **kwargs)
        finally:
            self._inside -= 1
        if not self._inside:
            self._observer.layer(layer, (args, kwargs), tensors(outputs))
        return outputs

    def _foreign(self) -> bool:
        return threading.get_ident() != self._thread

    def _remember(self, operation: Any) -> None:
        """Note how many nodes it has: Keras adds one after each call."""
        counts = len(operation._inbound_nodes), len(operation._outbound_nodes)
        self._nodes.setdefault(id(operation), (operation, *counts))


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
