"""A Flax module as its parts: which objects it has, where, and what each variable is for."""

from collections.abc import Iterator
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ltcore.errors import ModelError

Path: TypeAlias = tuple[Any, ...]
"""Attribute names and positions, from a module to something inside it."""

_CONTAINERS = (nnx.List, nnx.Dict)
# Neither trained nor a state that a rewind brings back: random numbers, and what a call records.
_PASSING = (nnx.RngState, nnx.Intermediate, nnx.Perturbation)


def check_is_nnx(model: Any) -> None:
    """Raise unless ``model`` is a Flax NNX module.

    Raises:
        ModelError: it is a linen module, whose weights are not in it.
    """
    if not isinstance(model, nnx.Module):
        raise ModelError(
            f"{type(model).__module__}.{type(model).__qualname__} is no flax.nnx.Module; a linen "
            "module has no weights of its own (flax.nnx.bridge.ToNNX makes an nnx module of it)"
        )


def nodes(model: nnx.Module) -> list[tuple[Path, Any]]:
    """Return every module and variable once, at its first path, in the order of ``nnx.state``."""
    return [
        (path, node)
        for path, node in nnx.iter_graph(model)
        if isinstance(node, nnx.Module | nnx.Variable)
    ]


def is_layer(node: Any) -> bool:
    """Whether ``node`` is a module that may own variables: no mere container."""
    return isinstance(node, nnx.Module) and not isinstance(node, _CONTAINERS)


def array_of(variable: nnx.Variable[Any]) -> Any:
    """Return the array of a variable as one of JAX: restored checkpoints may bring numpy's."""
    value = variable.get_value()
    return jnp.asarray(value) if isinstance(value, np.ndarray | np.generic) else value


def is_kept(variable: nnx.Variable[Any]) -> bool:
    """Whether a variable is a parameter or a buffer: an array of numbers that lasts."""
    dtype = getattr(variable.get_value(), "dtype", None)
    key = dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)
    return dtype is not None and not key and not isinstance(variable, _PASSING)


def child(node: Any, path: Path) -> Any:
    """Return what is at ``path`` inside ``node``, or None."""
    for key in path:
        if isinstance(key, str) and not isinstance(node, dict):
            node = vars(node).get(key)
        else:
            node = node[key]
        if node is None:
            return None
    return node


def places(node: Any) -> Iterator[tuple[Path, nnx.Variable[Any]]]:
    """Yield ``(path, variable)`` for all that hangs on a layer itself, shared ones too."""
    for key, value in _children(node):
        if isinstance(value, nnx.Variable):
            yield (key,), value
        elif isinstance(value, (*_CONTAINERS, dict, list, tuple)):
            for path, variable in places(value):
                yield (key, *path), variable


def _children(node: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(node, dict):
        yield from node.items()
    elif isinstance(node, list | tuple):
        yield from enumerate(node)
    elif isinstance(node, nnx.List):
        yield from enumerate(list(node))
    else:
        yield from sorted(vars(node).items())


def is_traced(value: Any) -> bool:
    """Whether ``value`` stands for an array inside a function that is being compiled."""
    return isinstance(value, jax.core.Tracer)
