"""Gradients and what comes of them, in inference mode, by JAX's own transformations."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ltcore.arrays import Array, Params
from ltcore.errors import InvalidValueError
from ltcore.parameters import Structure
from ltcore_jax._faces import canonical_output, native_inputs, native_output
from ltcore_jax._layouts import Layout, as_numpy, check_shape, to_canonical, to_native
from ltcore_jax._names import Inventory, Slot, inventory
from ltcore_jax._twin import Pure, as_args, compute_in
from ltcore_jax._width import check_stays_wide

Batches: TypeAlias = Iterable[tuple[Any, Any]]
Loss: TypeAlias = Callable[[Any, Any], Any]


def mean_gradients(model: nnx.Module, batches: Batches, loss: Loss) -> dict[str, Array]:
    """Return the gradient of every trained parameter, averaged over ``batches``."""
    problem = _Problem(model, loss)
    return problem.averaged(jax.jit(jax.grad(problem.value)), batches)


def hessian_vector(
    model: nnx.Module, batches: Batches, loss: Loss, vector: Params
) -> dict[str, Array]:
    """Return the Hessian of the mean loss times ``vector``: a forward over a backward pass.

    Raises:
        InvalidValueError: there are no batches, or ``vector`` does not fit the parameters.
    """
    problem = _Problem(model, loss)
    strangers = sorted(vector.keys() - problem.trained.keys())
    if strangers:
        raise InvalidValueError(f"vector has {strangers}, which are no trained parameters")
    tangent = {
        name: to_native(vector[name], problem.layouts[name], value, name)
        if name in vector
        else jnp.zeros_like(value)
        for name, value in problem.trained.items()
    }

    def product(values: Any, args: Any, targets: Any) -> Any:
        def gradient(at: Any) -> Any:
            return jax.grad(problem.value)(at, args, targets)

        return jax.jvp(gradient, (values,), (tangent,))[1]

    return problem.averaged(jax.jit(product), batches)


def diagonal_fisher(model: nnx.Module, batches: Batches, loss: Loss) -> dict[str, Array]:
    """Return the mean over examples of the squared gradient of one example's loss."""
    problem = _Problem(model, loss)

    def squared(values: Any, args: Any, targets: Any) -> Any:
        def one(example: Any) -> Any:
            alone = jax.tree.map(lambda array: array[None], example)
            return jax.tree.map(jnp.square, _wide(jax.grad(problem.value)(values, *alone)))

        # One example at a time: the gradients of all of them would not fit into memory.
        return jax.tree.map(lambda found: found.sum(0), jax.lax.map(one, (args, targets)))

    return problem.averaged(jax.jit(squared), batches, lambda args: len(jax.tree.leaves(args)[0]))


class _Problem:
    """A loss as a function of a model's trained parameters."""

    def __init__(self, model: nnx.Module, loss: Loss) -> None:
        found = inventory(model)
        pure = Pure(model)
        self.layouts = _layouts(found)
        self.trained = {name: pure.values[name] for name in self.layouts}
        self._pure, self._loss = pure, loss

    def value(self, values: Any, args: Any, targets: Any) -> Any:
        """Return the loss with ``values`` for the trained parameters."""
        return self._loss(self._pure(values, args), targets)

    def averaged(
        self,
        function: Callable[[Any, Any, Any], Any],
        batches: Batches,
        count: Callable[[Any], int] = lambda _args: 1,
    ) -> dict[str, Array]:
        """Return the sum of ``function(values, args, targets)`` over batches by their count.

        Short floats are added up as float32.

        Raises:
            InvalidValueError: there are no batches.
        """
        total, seen = None, 0
        for inputs, targets in batches:
            args = as_args(inputs)
            found = _wide(function(self.trained, args, jax.tree.map(jnp.asarray, targets)))
            total = found if total is None else jax.tree.map(jnp.add, total, found)
            seen += count(args)
        if total is None:
            raise InvalidValueError("batches is empty; expected pairs (inputs, targets)")
        return {
            name: to_canonical(total[name] / seen, layout) for name, layout in self.layouts.items()
        }


def vector_jacobian(
    model: nnx.Module,
    structure: Structure,
    inputs: Sequence[Array],
    cotangents: Sequence[Array],
    at: Params,
) -> dict[str, Array]:
    """Return the gradient of the inner product of outputs and ``cotangents``, in ``at``'s dtype.

    Raises:
        InvalidValueError: ``at`` is not the parameters and buffers, or ``cotangents`` are not as
            many as the outputs, or of other shapes.
        CapabilityError: ``at`` is float64, and the model makes shorter floats of it inside.
    """
    found = inventory(model)
    _check_names(at, found)
    layouts = _layouts(found)
    dtype = np.result_type(*{at[name].dtype for name in layouts})
    with jax.enable_x64(dtype == np.float64):
        pure = Pure(model, lambda twin, _found: compute_in(twin, dtype))
        values = {name: _native(at[name], slot, name) for name, slot in found.slots.items()}
        args = native_inputs(structure, inputs, dtype)
        made = jax.make_jaxpr(pure)(values, args)
        if dtype == np.float64:
            check_stays_wide(made.jaxpr)
        _check_cotangents(cotangents, structure, made.out_avals)
        weights = [
            jnp.asarray(native_output(structure, index, one), dtype)
            for index, one in enumerate(cotangents)
        ]

        def inner(trained: Any) -> Any:
            outputs = jax.tree.leaves(pure({**values, **trained}, args))
            pairs = zip(outputs, weights, strict=True)
            return sum(jnp.sum(output * weight) for output, weight in pairs)

        gradients = jax.grad(inner)({name: values[name] for name in layouts})
        return {
            name: to_canonical(gradients[name], layout).astype(at[name].dtype)
            for name, layout in layouts.items()
        }


def _check_names(at: Params, found: Inventory) -> None:
    strangers = sorted(at.keys() - found.slots.keys())
    missing = sorted(found.slots.keys() - at.keys())
    if strangers or missing:
        raise InvalidValueError(
            "at takes every parameter and buffer of the model and nothing else; it lacks "
            f"{missing} and has {strangers} too many"
        )


def _native(array: Array, slot: Slot, name: str) -> Any:
    """Return a canonical array in native axes and its own dtype."""
    shape = jnp.shape(slot.variable.get_value())
    check_shape(array, slot.layout, shape, name)
    return jnp.array(slot.layout.to_native(array, shape), copy=True)


def _check_cotangents(
    cotangents: Sequence[Array], structure: Structure, outputs: Sequence[Any]
) -> None:
    expected = [
        canonical_output(structure, index, np.broadcast_to(np.False_, one.shape)).shape
        for index, one in enumerate(outputs)
    ]
    given = [np.shape(one) for one in cotangents]
    if given != expected:
        raise InvalidValueError(
            f"cotangents have shapes {given}; the model's outputs have {expected}, and each takes "
            "one of its own shape"
        )


def _wide(arrays: Any) -> Any:
    """Return arrays in float32 at least: squares and sums of short floats go to zero or stall."""
    return jax.tree.map(lambda one: one.astype(jnp.promote_types(one.dtype, jnp.float32)), arrays)


def _layouts(found: Inventory) -> dict[str, Layout]:
    return {
        name: slot.layout
        for name, slot in found.slots.items()
        if slot.trained and as_numpy(slot.variable.get_value()).dtype.kind == "f"
    }
