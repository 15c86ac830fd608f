"""Keras on TensorFlow: training steps are graphs, which read masks and counters from variables."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import keras
import tensorflow as tf

from ltcore.arrays import Array
from ltcore.errors import CapabilityError
from ltcore_keras._engine_any import Engine


class TensorFlow(Engine):
    """TensorFlow, in eager mode, in graphs and under XLA."""

    capabilities = frozenset({"gradients"})
    in_graph = True

    def check_trains(self, model: Any) -> None:
        """Raise if the model was made under a strategy with several replicas."""
        replicas = getattr(getattr(model, "distribute_strategy", None), "num_replicas_in_sync", 1)
        if replicas > 1:
            raise CapabilityError(
                f"the model trains on {replicas} replicas (tf.distribute); holding and watching "
                "are there for one replica only"
            )

    def gradients(self, variables: Sequence[Any], loss: Callable[[], Any]) -> list[Any]:
        """Return dense gradients; a variable that the loss does not depend on has zeros."""
        values = [variable.value for variable in variables]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            for value in values:
                tape.watch(value)
            result = loss()
        found = tape.gradient(result, values, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return [tf.convert_to_tensor(gradient) for gradient in found]

    def as_numpy(self, tensor: Any) -> Array:
        """Return a copy of the values; Keras's own conversion makes numpy 2 warn."""
        array: Array = keras.ops.convert_to_tensor(tensor).numpy()
        return array

    def where_kept(self, mask: Any, values: Any) -> Any:
        """Return masked values, which may be the sparse gradient of an embedding."""
        if not isinstance(values, tf.IndexedSlices):
            return super().where_kept(mask, values)
        rows = keras.ops.take(mask, values.indices, axis=0)
        kept = super().where_kept(rows, values.values)
        return tf.IndexedSlices(kept, values.indices, values.dense_shape)

    def outside_graph(self) -> AbstractContextManager[None]:
        """Return TensorFlow's own way out of a graph."""
        context: AbstractContextManager[None] = tf.init_scope()
        return context

    @contextmanager
    def clearing(self) -> Iterator[bool]:
        """Write now, not in the graph."""
        with tf.init_scope():
            yield True


ENGINE = TensorFlow()
