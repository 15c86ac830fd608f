"""What Keras leaves to the engine below it. Only this file names TensorFlow."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import keras
import numpy as np

from ltcore.arrays import Array
from ltcore.errors import CapabilityError


def tensorflow(what: str) -> Any:
    """Return the tensorflow module.

    Raises:
        CapabilityError: Keras runs on another engine.
    """
    engine = keras.backend.backend()
    if engine != "tensorflow":
        raise CapabilityError(
            f"{what} is not there yet for Keras on {engine!r}; set KERAS_BACKEND=tensorflow before "
            "keras is imported"
        )
    import tensorflow as tf

    return tf


def outside_graph() -> AbstractContextManager[None]:
    """Return a context in which operations run now, also while a function is being traced."""
    context: AbstractContextManager[None] = tensorflow("holding").init_scope()
    return context


def keys(variable: Any) -> Iterator[int]:
    """Yield what identifies ``variable``, given as a Keras variable or as the engine's own."""
    yield id(variable)
    if isinstance(variable, keras.Variable):
        yield id(variable.value)


def as_numpy(tensor: Any) -> Array:
    """Return the values of a tensor or variable."""
    value = keras.ops.convert_to_tensor(tensor)
    if keras.backend.backend() == "tensorflow":
        array: Array = value.numpy()  # Keras's own conversion makes numpy 2 warn
        return array
    return np.asarray(keras.ops.convert_to_numpy(value))


def where_kept(mask: Any, values: Any) -> Any:
    """Return ``values`` where ``mask``, +0.0 elsewhere, also for NaN and -0.0.

    ``values`` may be the sparse gradient of an embedding.
    """
    sparse = tensorflow("holding").IndexedSlices
    if not isinstance(values, sparse):
        return keras.ops.where(mask, values, keras.ops.cast(0, values.dtype))
    rows = keras.ops.take(mask, values.indices, axis=0)
    kept = keras.ops.where(rows, values.values, keras.ops.cast(0, values.values.dtype))
    return sparse(kept, values.indices, values.dense_shape)


def retrace(model: Any) -> None:
    """Have ``fit`` compile its training step anew: what it has compiled does not see a change.

    It is replaced, not dropped, for a callback may be asking in the middle of ``fit``.
    """
    if getattr(model, "train_function", None) is not None:
        model.make_train_function(force=True)


def check_single_replica(model: Any) -> None:
    """Raise unless the model trains on one device.

    Raises:
        CapabilityError: it was made under a strategy with several replicas.
    """
    tensorflow("a hold or a watch")
    replicas = getattr(getattr(model, "distribute_strategy", None), "num_replicas_in_sync", 1)
    if replicas > 1:
        raise CapabilityError(
            f"the model trains on {replicas} replicas (tf.distribute); holding and watching are "
            "there for one replica only"
        )


def gradients(variables: list[Any], loss: Any) -> list[Any]:
    """Return dense gradients of ``loss()`` with respect to ``variables``, trainable or not."""
    tf = tensorflow("the gradient")
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        for variable in variables:
            tape.watch(variable.value)
        value = loss()
    found = tape.gradient(
        value,
        [variable.value for variable in variables],
        unconnected_gradients=tf.UnconnectedGradients.ZERO,
    )
    return [tf.convert_to_tensor(gradient) for gradient in found]
