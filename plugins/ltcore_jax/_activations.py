"""How strong the inputs are that each weight multiplies."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ltcore.arrays import Array
from ltcore.errors import CapabilityError, InvalidValueError
from ltcore.parameters import Structure
from ltcore_jax._names import Inventory, Layer, inventory
from ltcore_jax._observe import observe
from ltcore_jax._twin import as_args, twin_of
from ltcore_jax._walk import array_of, is_traced

_KERNEL = ("kernel",)
_KINDS = ("linear", "conv", "depthwise", "conv_transpose")


def strengths(
    model: nnx.Module,
    structure: Structure,
    batches: Iterable[tuple[Any, Any]],
    names: Iterable[str],
) -> dict[str, Array]:
    """Return ``{name: root of the mean square of the input that each weight multiplies}``.

    Raises:
        CapabilityError: a parameter is no kernel, which is named with its kind, or a layer is
            called where its inputs have no values.
        InvalidValueError: there are no batches, or they do not reach a layer.
    """
    wanted = list(names)
    twin = twin_of(model)
    found = inventory(twin)
    meters = _attached(found, structure, wanted)
    with jax.disable_jit():  # a function of the user's own would show abstract values only
        for inputs, _ in batches:
            jax.block_until_ready(twin(*as_args(inputs)))
    idle = sorted(name for name, meter in meters.items() if not meter.places)
    if idle:
        raise InvalidValueError(f"no batch came through the layers of {idle}")
    result = {}
    for name, meter in meters.items():
        root = np.sqrt(np.asarray(meter.total) / meter.places).astype(np.float32)
        result[name] = np.array(found.slots[name].layout.to_canonical(root), order="C")
    return result


def _attached(found: Inventory, structure: Structure, wanted: Sequence[str]) -> "dict[str, _Meter]":
    meters = {}
    for name in wanted:
        site, role = structure.by_name[name]
        users = [layer for layer in found.layers if name in layer.names.values()]
        if role.name != "weight" or not users or not all(_multiplies(one, name) for one in users):
            raise CapabilityError(
                f"{name!r} is the {role.name} of a layer of kind {site.kind!r}, or serves as "
                "something else, too; activations are there for kernels of dense and "
                "convolutional layers"
            )
        meters[name] = _Meter()
        for layer in users:  # tied layers: the mean is over the inputs of all of them
            observe(layer.module, partial(meters[name].see, layer.kind))
    return meters


def _multiplies(layer: Layer, name: str) -> bool:
    """Whether the array called ``name`` is the kernel of ``layer`` and nothing else in it."""
    return layer.kind in _KINDS and [p for p, n in layer.names.items() if n == name] == [_KERNEL]


class _Meter:
    """Adds up the squares of what each weight of a layer multiplies.

    The sum over all positions is the derivative, by the kernel, of the sum of what the layer makes
    of squared inputs, whatever strides, paddings and groups do.
    """

    def __init__(self) -> None:
        self.total: Any = 0.0
        self.places = 0

    def see(
        self, kind: str, layer: Any, call: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """Make a call of ``layer``, which is of ``kind``, and add up its inputs."""
        result = call(layer, *args, **kwargs)
        options = dict(kwargs)
        given, *others = args or (options.pop("inputs"),)
        _check_concrete(layer, given)
        inputs = jnp.asarray(given)
        squares = jnp.square(inputs.astype(jnp.float32))
        graph, state = nnx.split(layer)

        def total(weights: Any) -> Any:
            twin = nnx.merge(graph, state, copy=True)
            twin.kernel.set_value(weights)
            if kind == "conv_transpose":
                twin.padding = "VALID"  # its inputs count, be their outputs cropped or not
            return jnp.sum(call(twin, squares, *others, **options).astype(jnp.float32))

        kernel = array_of(layer.kernel)
        self.total = self.total + jax.grad(total)(kernel.astype(jnp.float32))
        if kind == "conv_transpose":
            self.places += inputs.size // layer.in_features
        else:
            self.places += result.size // int(np.prod(layer.out_features))
        return result


def _check_concrete(layer: Any, inputs: Any) -> None:
    if is_traced(inputs):
        raise CapabilityError(
            f"a layer of class {type(layer).__name__} is called inside jax.vmap, nnx.remat, "
            "nnx.scan or the like, where inputs have no values to measure; call it outside of "
            "them, or use a criterion that needs no activations"
        )
