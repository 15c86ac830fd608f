"""How the layers of Keras draw their first weights."""

from typing import Any

import keras
from keras import layers as kl

from ltcore.errors import CapabilityError
from ltcore_keras._calls import of_keras
from ltcore_keras._einsum import Equation, EquationError
from ltcore_keras._kinds import is_known
from ltcore_keras._slots import Slot


def drawn(name: str, slot: Slot, seed: int) -> Any:
    """Return a new value of the whole variable of ``slot``.

    Raises:
        CapabilityError: it is not known how the layer draws it.
    """
    initializer = _seeded(_initializer(name, slot), seed, _fans(slot))
    values = initializer(tuple(slot.variable.shape), dtype=slot.variable.dtype)
    if not _forgets_nothing(slot):
        return values
    first, _, rest = keras.ops.split(values, [len(values) // 4, len(values) // 2])
    return keras.ops.concatenate([first, keras.ops.ones_like(first), rest])


def _forgets_nothing(slot: Slot) -> bool:
    """Whether this is the bias of an LSTM whose forget gate, the second of four, starts at one."""
    return slot.variable.name == "bias" and bool(getattr(slot.layer, "unit_forget_bias", False))


def _fans(slot: Slot) -> dict[str, Any]:
    """Return the axes by which an `EinsumDense` scales its kernel, from its equation."""
    if not isinstance(slot.layer, kl.EinsumDense) or slot.variable.name != "kernel":
        return {}
    try:
        equation = Equation.of(slot.layer)
    except EquationError:
        return {}
    return {
        "input_axes": equation.axes(equation.summed),
        "output_axes": equation.axes(equation.made),
    }


def _seeded(initializer: Any, seed: int, fans: dict[str, Any]) -> Any:
    """Return a copy of ``initializer`` with its own seed."""
    config = initializer.get_config()
    own = {"seed": seed} if "seed" in config else {}
    own |= {key: axes for key, axes in fans.items() if key in config and config[key] is None}
    return type(initializer).from_config({**config, **own}) if own else initializer


def _initializer(name: str, slot: Slot) -> Any:
    """Return the initializer of an array, from the layer's attribute of that name."""
    own = slot.variable.name
    # recurrent_kernel has a recurrent_initializer; DepthwiseConv2D calls that of its kernel so.
    words = (own, own.removesuffix("_kernel"), own.removeprefix("reverse_"), "depthwise")
    # In a layer of the user's the attribute need not be all there is to know.
    tells = is_known(slot.layer) or of_keras(type(slot.layer))
    found = (getattr(slot.layer, f"{one}_initializer", None) for one in words if tells)
    initializer = next((one for one in found if one is not None), None)
    if initializer is None and own == "scale" and _is_rmsnorm(slot.layer):
        return keras.initializers.Ones()
    if isinstance(initializer, keras.initializers.Initializer) and (
        of_keras(type(initializer)) or "seed" in initializer.get_config()
    ):
        return initializer
    raise CapabilityError(
        f"{name!r} (layer {slot.layer.name!r} of class {type(slot.layer).__name__}) does not say "
        "how it is initialized; give its values yourself with a rewind policy of your own"
    )


def _is_rmsnorm(layer: Any) -> bool:
    return isinstance(layer, getattr(kl, "RMSNormalization", ()))
