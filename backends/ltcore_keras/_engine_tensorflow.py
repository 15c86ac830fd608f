"""Keras on TensorFlow: training steps are graphs, which read masks and counters from variables."""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ltcore.arrays import Array
from ltcore.errors import CapabilityError
from ltcore_keras._engine_any import Engine, no_second_derivative
from ltcore_keras._patch import Patch


class TensorFlow(Engine):
    """TensorFlow, in eager mode, in graphs and under XLA."""

    capabilities = frozenset({"gradients", "hvp", "vjp"})
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
        return _gradients([variable.value for variable in variables], loss)

    def gradients_of(
        self, variables: Sequence[Any], loss: Callable[..., Any]
    ) -> Callable[..., list[Any]]:
        """Return a graph function; it takes numbers of the widths that ``fit`` makes of them."""

        def gradients(args: Any) -> list[Any]:
            return self.gradients(variables, functools.partial(loss, *args))

        compiled = tf.function(gradients, autograph=False)
        return lambda *args: list(compiled(keras.tree.map_structure(_as_in_fit, args)))

    def hessian_product(
        self, variables: Sequence[Any], loss: Callable[[], Any], vector: Sequence[Any]
    ) -> list[Any]:
        """Return the gradient of the inner product of gradient and ``vector``."""
        values = [variable.value for variable in variables]

        def slope() -> Any:
            products = zip(_gradients(values, loss), vector, strict=True)
            return tf.add_n([tf.reduce_sum(a * b) for a, b in products])

        try:
            with _exact_moments():
                return _gradients(values, slope)
        except LookupError as error:  # in TensorFlow's registry of gradients
            raise no_second_derivative(error) from error

    def pullback(self, function: Callable[[list[Any]], Any], values: list[Any]) -> list[Any]:
        """Return dense gradients."""
        return _gradients(values, lambda: function(values))

    def as_numpy(self, tensor: Any) -> Array:
        """Return a copy of the values; Keras's own conversion makes numpy 2 warn."""
        array: Array = keras.ops.convert_to_tensor(tensor).numpy()
        return array

    def has_value(self, tensor: Any) -> bool:
        """Whether ``tensor`` is no symbol of a graph."""
        return self.at_rest()

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

    def at_rest(self) -> bool:
        """Whether no graph is being made."""
        return bool(tf.executing_eagerly())

    @contextmanager
    def clearing(self) -> Iterator[bool]:
        """Write now, not in the graph."""
        with tf.init_scope():
            yield True


def _gradients(values: Sequence[Any], loss: Callable[[], Any]) -> list[Any]:
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        for value in values:
            tape.watch(value)
        result = loss()
    found = tape.gradient(result, values, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return [tf.convert_to_tensor(gradient) for gradient in found]


@contextmanager
def _exact_moments() -> Iterator[None]:
    """Have the variance of a normalization depend on the mean.

    TensorFlow leaves that out, which only a second derivative sees.
    """

    def moments(
        _original: Any, x: Any, axes: Any, shift: Any = None, keepdims: bool = False,
        name: str | None = None,
    ) -> tuple[Any, Any]:  # fmt: skip
        wide = tf.cast(x, tf.float32) if x.dtype in (tf.float16, tf.bfloat16) else x
        mean = tf.reduce_mean(wide, axes, keepdims=True)
        variance = tf.reduce_mean(tf.square(wide - mean), axes, keepdims=keepdims)
        mean = mean if keepdims else tf.squeeze(mean, axes)
        return tf.cast(mean, x.dtype), tf.cast(variance, x.dtype)

    patch = Patch(tf.nn, "moments", moments)
    try:
        yield
    finally:
        patch.remove()


def _as_in_fit(leaf: Any) -> Any:
    """Return numpy's float64 as the floats of Keras, which a loss in a graph could not mix."""
    wide = isinstance(leaf, np.ndarray) and leaf.dtype == np.float64
    return leaf.astype(keras.config.floatx()) if wide else leaf


ENGINE = TensorFlow()
