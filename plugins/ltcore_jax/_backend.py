"""The JAX backend: each method is a few calls of JAX and Flax plus names."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import flax
import jax
from flax import nnx

from ltcore.arrays import Array, Params
from ltcore.masks import Masks
from ltcore.parameters import Structure
from ltcore_jax._activations import strengths
from ltcore_jax._derivatives import (
    Batches,
    diagonal_fisher,
    hessian_vector,
    mean_gradients,
    vector_jacobian,
)
from ltcore_jax._faces import canonical_output, native_inputs
from ltcore_jax._hold import JaxHold
from ltcore_jax._initial import redrawn
from ltcore_jax._keeper import keeper_of
from ltcore_jax._layouts import to_canonical, to_native
from ltcore_jax._modes import modes, set_modes
from ltcore_jax._names import inventory
from ltcore_jax._trace import described
from ltcore_jax._twin import twin_of
from ltcore_jax._walk import array_of, check_is_nnx
from ltcore_jax._watch import JaxWatch


class JaxBackend:
    """Drives `flax.nnx.Module`; see `ltcore.backend.Backend` for what the methods promise."""

    name = "jax"
    capabilities = frozenset({"gradients", "hvp", "vjp", "activations"})

    @property
    def version(self) -> str:
        """JAX's version and Flax's."""
        return f"{jax.__version__} (flax {flax.__version__})"

    def root(self, model: nnx.Module) -> nnx.Module:
        """Return the module: nothing wraps it."""
        check_is_nnx(model)
        return model

    def describe(self, model: nnx.Module, example: Any = None) -> Structure:
        """Return the module's sites; with ``example``, also how data flows."""
        found = inventory(model)
        if example is None:
            return Structure(found.sites, untraced="no example input was given")
        return described(model, found, example)

    def read(
        self, model: nnx.Module, structure: Structure, names: Iterable[str] | None = None
    ) -> dict[str, Array]:
        """Return owned copies in canonical layout."""
        slots = inventory(model).slots
        wanted = slots if names is None else names
        return {
            name: to_canonical(slots[name].variable.get_value(), slots[name].layout)
            for name in wanted
        }

    def write(self, model: nnx.Module, structure: Structure, params: Params) -> None:
        """Write copies of ``params``, all or none."""
        slots = inventory(model).slots
        made = {
            name: to_native(array, slots[name].layout, array_of(slots[name].variable), name)
            for name, array in params.items()
        }
        for name, value in made.items():
            slots[name].variable.set_value(value)

    def hold(self, model: nnx.Module, structure: Structure, masks: Masks) -> JaxHold:
        """Keep pruned weights at zero."""
        return JaxHold(model, masks)

    def watch(
        self,
        model: nnx.Module,
        structure: Structure,
        steps: Sequence[int],
        callback: Callable[[int], None] | None = None,
    ) -> JaxWatch:
        """Count updates and take snapshots."""
        return JaxWatch(model, steps, callback)

    def fresh_optimizer(self, model: nnx.Module, step: int) -> None:
        """Have optimizers start anew at their next watched update, schedules at ``step``."""
        keeper_of(model, inventory(model)).start_anew(step)

    def get_mode(self, model: nnx.Module) -> list[dict[str, Any]]:
        """Return each module's ``deterministic`` and ``use_running_average``."""
        return modes(model)

    def set_mode(self, model: nnx.Module, mode: list[dict[str, Any]]) -> None:
        """Set them."""
        set_modes(model, mode)

    def redraw(
        self, model: nnx.Module, structure: Structure, seed: int, names: Iterable[str] | None = None
    ) -> dict[str, Array]:
        """Return params from the layers' initializers; with a warning, from those of Flax."""
        return redrawn(inventory(model), seed, names)

    def forward(
        self, model: nnx.Module, structure: Structure, inputs: Sequence[Array]
    ) -> tuple[Array, ...]:
        """Return the outputs for canonical ``inputs``."""
        outputs = jax.tree.leaves(twin_of(model)(*native_inputs(structure, inputs)))
        return tuple(canonical_output(structure, i, value) for i, value in enumerate(outputs))

    def gradients(
        self,
        model: nnx.Module,
        structure: Structure,
        batches: Batches,
        loss: Callable[[Any, Any], Any],
    ) -> dict[str, Array]:
        """Return mean gradients of all trained parameters."""
        return mean_gradients(model, batches, loss)

    def fisher(
        self,
        model: nnx.Module,
        structure: Structure,
        batches: Batches,
        loss: Callable[[Any, Any], Any],
    ) -> dict[str, Array]:
        """Return the diagonal of the empirical Fisher information."""
        return diagonal_fisher(model, batches, loss)

    def hvp(
        self,
        model: nnx.Module,
        structure: Structure,
        batches: Batches,
        loss: Callable[[Any, Any], Any],
        vector: Params,
    ) -> dict[str, Array]:
        """Return the Hessian of the mean loss times ``vector``."""
        return hessian_vector(model, batches, loss, vector)

    def vjp(
        self,
        model: nnx.Module,
        structure: Structure,
        inputs: Sequence[Array],
        cotangents: Sequence[Array],
        at: Params,
    ) -> dict[str, Array]:
        """Return the gradient of the inner product of outputs and ``cotangents``."""
        return vector_jacobian(model, structure, inputs, cotangents, at)

    def activations(
        self,
        model: nnx.Module,
        structure: Structure,
        batches: Batches,
        names: Iterable[str],
    ) -> dict[str, Array]:
        """Return how strong the inputs of kernels are."""
        return strengths(model, structure, batches, names)
