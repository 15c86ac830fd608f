"""A copy of a model to compute with: in inference mode, free of marks, its weights to be given."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx

from ltcore_jax._keeper import unmark
from ltcore_jax._names import Inventory, Layer, inventory
from ltcore_jax._walk import Path, array_of, child

Values: TypeAlias = Mapping[str, Any]
"""``{parameter name: array in native axes}``."""


def twin_of(model: nnx.Module) -> nnx.Module:
    """Return a copy in inference mode that shares arrays, which do not change, and nothing else."""
    twin: nnx.Module = nnx.clone(model)
    for _, module in nnx.iter_modules(twin):
        unmark(module)
    twin.set_attributes(deterministic=True, use_running_average=True, raise_if_not_found=False)
    return twin


def native_values(found: Inventory) -> dict[str, Any]:
    """Return the arrays of all parameters and buffers."""
    return {name: array_of(slot.variable) for name, slot in found.slots.items()}


class Pure:
    """A model as a function of its weights.

    Args:
        model: stays as it is.
        prepare: is given the copy before it is taken apart.
    """

    def __init__(
        self, model: nnx.Module, prepare: Callable[[nnx.Module, Inventory], None] | None = None
    ) -> None:
        twin = twin_of(model)
        found = inventory(twin)
        if prepare is not None:
            prepare(twin, found)
        self.values = native_values(found)
        self.layers: tuple[Layer, ...] = found.layers
        self._paths: dict[str, Path] = {name: slot.path for name, slot in found.slots.items()}
        self._graph, self._state = nnx.split(twin)

    def __call__(self, values: Values, args: Sequence[Any]) -> Any:
        """Return what the model makes of ``args`` with ``values`` for its own."""
        model = nnx.merge(self._graph, self._state, copy=True)
        for name, value in values.items():
            _variable(model, self._paths[name]).set_value(value)
        return model(*args)


def _variable(model: nnx.Module, path: Path) -> nnx.Variable[Any]:
    found: nnx.Variable[Any] = child(model, path)
    return found


def as_args(inputs: Any) -> tuple[Any, ...]:
    """Return the arguments of a model's call: a tuple is several, anything else is one."""
    given = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
    return tuple(jax.tree.map(jnp.asarray, one) for one in given)


def compute_in(twin: nnx.Module, dtype: Any) -> None:
    """Have every layer that says in which float dtype it computes do so in ``dtype``."""
    for _, module in nnx.iter_modules(twin):
        for attribute in ("dtype", "preferred_element_type"):
            given = vars(module).get(attribute)
            if given is not None and jnp.issubdtype(given, jnp.floating):
                setattr(module, attribute, dtype)
