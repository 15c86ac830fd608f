"""How strong the inputs are that each weight multiplies."""

from collections.abc import Iterable, Mapping, Sequence
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

_KINDS = ("linear", "conv", "depthwise", "conv_transpose")


def strengths(
    model: nnx.Module,
    structure: Structure,
    batches: Iterable[tuple[Any, Any]],
    names: Iterable[str],
) -> dict[str, Array]:
    """Return ``{name: root of the mean square of the input that each weight multiplies}``.

    Raises:
        CapabilityError: a parameter is no kernel; names it and its kind.
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
    layers = {layer.site: layer for layer in found.layers if layer.whole}
    meters = {}
    for name in wanted:
        site, role = structure.by_name[name]
        layer = layers.get(site.name)
        if role.name != "weight" or site.kind not in _KINDS or layer is None:
            raise CapabilityError(
                f"{name!r} is the {role.name} of a layer of kind {site.kind!r}, or its layer is "
                "not called as a whole; activations are there for kernels of dense and "
                "convolutional layers"
            )
        meters[name] = _Meter(layer)
        observe(layer.module, meters[name])
    return meters


class _Meter:
    """Adds up the squares of what each weight of a layer multiplies.

    The sum over all positions is the derivative, by the kernel, of the sum of what the layer makes
    of squared inputs, whatever strides, paddings and groups do.
    """

    def __init__(self, layer: Layer) -> None:
        self._layer = layer
        self.total: Any = 0.0
        self.places = 0

    def __call__(
        self, layer: Any, call: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        result = call(layer, *args, **kwargs)
        squares = jnp.square(jnp.asarray(args[0]).astype(jnp.float32))
        graph, state = nnx.split(layer)

        def total(weights: Any) -> Any:
            twin = nnx.merge(graph, state, copy=True)
            twin.kernel.set_value(weights)
            if self._layer.kind == "conv_transpose":
                twin.padding = "VALID"  # its inputs count, be their outputs cropped or not
            return jnp.sum(call(twin, squares, *args[1:], **kwargs).astype(jnp.float32))

        kernel = layer.kernel.get_value()
        self.total = self.total + jax.grad(total)(kernel.astype(jnp.float32))
        inner = args[0] if self._layer.kind == "conv_transpose" else result
        self.places += inner.size // self._width(layer)
        return result

    def _width(self, layer: Any) -> int:
        """Return the number of features at each position that counts."""
        found = layer.in_features if self._layer.kind == "conv_transpose" else layer.out_features
        return int(np.prod(found))
