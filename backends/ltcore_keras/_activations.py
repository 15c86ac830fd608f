"""How strong the inputs are that the weights of a layer multiply.

While the model runs, the ``call`` that Keras wrote for such a layer is ours: it sees the input as
the layer computes with it, also inside an attention or below a ``call`` of the user's.
"""

import inspect
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ltcore.arrays import Array
from ltcore.errors import CapabilityError, InvalidValueError
from ltcore.layouts import CONVOLUTIONS
from ltcore.parameters import Structure
from ltcore_keras._calls import of_keras
from ltcore_keras._engine import ENGINE
from ltcore_keras._kinds import found_in
from ltcore_keras._names import own_variables, walk
from ltcore_keras._patch import Patch, raised_plainly
from ltcore_keras._places import NOWHERE
from ltcore_keras._slots import Slot
from ltcore_keras._squares import squares_of

_KINDS = ("linear", *CONVOLUTIONS)


@dataclass
class _Meter:
    """Squared inputs of one weight, added up over calls.

    Attributes:
        name: of the weight.
        slots: where it lives, once for each layer that has it.
        hidden: errors for calls that cannot be seen.
        total: of a shape that broadcasts to the weight's canonical one.
        positions: how many squares are in each sum.
    """

    name: str
    slots: Sequence[Slot]
    hidden: list[CapabilityError]
    total: Array | float = 0.0
    positions: int = 0

    def hear(self, slot: Slot, inputs: Any) -> None:
        """Add what enters a call of a layer."""
        if not ENGINE.has_value(inputs):
            self.hidden.append(
                CapabilityError(
                    f"the layer of {self.name!r} runs inside a compiled function or a loop, where "
                    "its inputs cannot be seen; leave the parameter out"
                )
            )
            return
        total, positions = squares_of(slot, inputs)
        self.total = self.total + total
        self.positions += positions


def input_strengths(
    model: Any,
    structure: Structure,
    slots: Mapping[str, Slot],
    batches: Iterable[tuple[Any, Any]],
    names: Iterable[str],
) -> dict[str, Array]:
    """Return the root mean square of what each weight multiplies, in its canonical shape.

    Raises:
        CapabilityError: a parameter is no kernel, or its layer does not run where Python sees it.
        InvalidValueError: there are no ``batches``.
    """
    hidden: list[CapabilityError] = []
    meters = [_Meter(name, _uses(model, name, structure, slots[name]), hidden) for name in names]
    heard: dict[int, list[tuple[_Meter, Slot]]] = defaultdict(list)
    for meter in meters:
        for slot in meter.slots:
            heard[id(slot.layer)].append((meter, slot))

    def around(original: Any, layer: Any, *args: Any, **kwargs: Any) -> Any:
        for meter, slot in heard.get(id(layer), ()):
            given = inspect.signature(original).bind(layer, *args, **kwargs)
            given.apply_defaults()
            if given.arguments.get("reverse", True):  # else an embedding looks up, no kernel's use
                meter.hear(slot, given.arguments["inputs"])
        return original(layer, *args, **kwargs)

    count = 0
    with raised_plainly(hidden), ExitStack() as stack:
        for cls in {_author(slot.layer) for meter in meters for slot in meter.slots}:
            stack.callback(Patch(cls, "call", around).remove)
        for inputs, _ in batches:
            model(inputs, training=False)
            count += 1
    if not count:
        raise InvalidValueError("batches is empty; expected pairs (inputs, targets)")
    return {meter.name: _strength(meter) for meter in meters}


def _uses(model: Any, name: str, structure: Structure, slot: Slot) -> list[Slot]:
    """Return where a kernel is: in its layer, and in others that it is tied to."""
    site, role = structure.by_name[name]
    users = [layer for _, layer in walk(model) if _has(layer, slot.variable)]
    known = site.kind in _KINDS and role.name == "weight"
    if not known or not all(_multiplies(layer, slot.variable) for layer in users):
        within = " and ".join(sorted({type(layer).__name__ for layer in users}))
        raise CapabilityError(
            f"{name!r}, the {role.name} of a layer of kind {site.kind!r} in {within}, has no "
            f"activations; kernels of layers of the kinds {_KINDS} have"
        )
    return [replace(slot, layer=layer) for layer in users]


def _has(layer: Any, variable: Any) -> bool:
    return any(own is variable for own in own_variables(layer))


def _multiplies(layer: Any, variable: Any) -> bool:
    found = found_in(layer, NOWHERE, own_variables(layer))
    kernels = (one.pieces["weight"].variable for one in found if one.kind in _KINDS)
    return any(kernel is variable for kernel in kernels)


def _author(layer: Any) -> type:
    """Return the class of Keras whose ``call`` multiplies by the layer's weights."""
    return next(cls for cls in type(layer).__mro__ if "call" in vars(cls) and of_keras(cls))


def _strength(meter: _Meter) -> Array:
    if not meter.positions:
        raise CapabilityError(
            f"the layer of {meter.name!r} is not called on these batches, so its inputs are not "
            "known; leave the parameter out, or call the layer rather than use its weight"
        )
    rms: Array = np.sqrt(np.asarray(meter.total) / meter.positions).astype(np.float32)
    return np.broadcast_to(rms, meter.slots[0].shape)
