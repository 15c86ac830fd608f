"""Signals that are measured on a model: gradients, curvature, flow and activations."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from ltcore.arrays import Array, Params
from ltcore.backend import Backend
from ltcore.criteria import Criterion, passes_of
from ltcore.errors import CapabilityError, InvalidValueError
from ltcore.masks import Masks
from ltcore.parameters import Interface, Structure

Batches: TypeAlias = Iterable[tuple[Any, Any]]
"""Pairs ``(inputs, targets)`` as the framework takes them."""

Loss: TypeAlias = Callable[[Any, Any], Any]
"""``loss(outputs, targets)`` in the framework's own tensors."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A model, and the user's data and loss to measure it with."""

    backend: Backend
    model: Any
    structure: Structure
    batches: Batches | None = None
    loss: Loss | None = None


@dataclass(frozen=True, slots=True)
class Measurement:
    """How one signal is measured.

    Attributes:
        take: returns the signal of the parameters in the masks, in native feature order.
        capability: what the backend must be able to do.
        asks: the arguments that the user must give.
    """

    take: Callable[[Subject, Masks], Mapping[str, Array]]
    capability: str
    asks: tuple[str, ...]


def measure(subject: Subject, needs: Iterable[str], masks: Masks) -> dict[str, Params]:
    """Return ``{signal: params}`` of those in ``needs`` that are measured.

    The model has the weights at which they are wanted, but for the ``flow``, which is taken at
    the masked weights.
    """
    return {
        signal: MEASUREMENTS[signal].take(subject, masks)
        for signal in sorted(needs)
        if signal in MEASUREMENTS
    }


def check_measurable(subject: Subject, criterion: Criterion) -> None:
    """Raise unless all that ``criterion`` needs can be measured, as far as that is known before.

    Raises:
        InvalidValueError: an argument is missing; names it.
        CapabilityError: the backend cannot do it.
    """
    for signal in sorted(criterion.needs & MEASUREMENTS.keys()):
        measurement = MEASUREMENTS[signal]
        missing = [name for name in measurement.asks if getattr(subject, name) is None]
        if missing:
            raise InvalidValueError(
                f"criterion {criterion.name!r} needs {signal!r}, for which {', '.join(missing)} "
                f"must be given: {'; '.join(_FORMS[name] for name in missing)}"
            )
        if measurement.capability not in subject.backend.capabilities:
            raise CapabilityError(
                f"criterion {criterion.name!r} needs {signal!r}, for which a backend must have "
                f"the capability {measurement.capability!r}; {subject.backend.name!r} has "
                f"{sorted(subject.backend.capabilities)}"
            )


def rereadable(subject: Subject, criterion: Criterion) -> Subject:
    """Return ``subject`` with batches that can be read as often as ``criterion`` needs them."""
    batches = subject.batches
    readings = passes_of(criterion) * sum(
        2 if signal == "hessian_gradient" else 1
        for signal in criterion.needs & MEASUREMENTS.keys()
        if "batches" in MEASUREMENTS[signal].asks
    )
    if batches is None or readings < 2 or iter(batches) is not batches:
        return subject
    return Subject(subject.backend, subject.model, subject.structure, list(batches), subject.loss)


def check_rereadable(batches: Batches | None, once: str) -> None:
    """Raise if ``batches`` can be read only once, where they are needed again and again.

    Raises:
        InvalidValueError: says after what they would be empty.
    """
    if batches is not None and iter(batches) is batches:
        raise InvalidValueError(
            f"batches is an iterator, which is empty after {once}; give a list or a data loader"
        )


_FORMS = {
    "batches": "batches=[(inputs, targets), ...]",
    "loss": "loss=a function of (outputs, targets)",
}


def _gradient(subject: Subject, masks: Masks) -> Mapping[str, Array]:
    assert subject.loss
    return subject.backend.gradients(subject.model, subject.structure, _some(subject), subject.loss)


def _fisher(subject: Subject, masks: Masks) -> Mapping[str, Array]:
    assert subject.loss
    return subject.backend.fisher(subject.model, subject.structure, _some(subject), subject.loss)


def _hessian_gradient(subject: Subject, masks: Masks) -> Mapping[str, Array]:
    assert subject.loss
    gradient = _gradient(subject, masks)
    vector = masks.apply({name: gradient[name] for name in masks})
    return subject.backend.hvp(
        subject.model, subject.structure, _some(subject), subject.loss, vector
    )


def _activations(subject: Subject, masks: Masks) -> Mapping[str, Array]:
    return subject.backend.activations(subject.model, subject.structure, _some(subject), masks)


def _flow(subject: Subject, masks: Masks) -> Mapping[str, Array]:
    structure = subject.structure
    if not structure.inputs or not structure.outputs:
        raise InvalidValueError(
            "the signal 'flow' needs to know the model's inputs and outputs: give example=, one "
            f"input batch ({structure.untraced or 'they are not known'})"
        )
    params = subject.backend.read(subject.model, structure)
    at = {
        name: np.abs(array.astype(np.float64)) if array.dtype.kind == "f" else array
        for name, array in masks.apply(params).items()
    }
    inputs = [_ones(face) for face in structure.inputs]
    outputs = [_ones(face) for face in structure.outputs]
    return subject.backend.vjp(subject.model, structure, inputs, outputs, at)


def _ones(face: Interface) -> Array:
    if face.dtype != "float32":
        raise InvalidValueError(
            f"the signal 'flow' feeds ones to the model; it has an input or output of "
            f"{face.dtype} ({', '.join(face.axes)}), for which that means nothing"
        )
    return np.ones((1, *face.shape[1:]), np.float64)


def _some(subject: Subject) -> Iterator[tuple[Any, Any]]:
    """Yield the batches; none at all would silently score everything 0."""
    empty = True
    for batch in subject.batches or ():
        empty = False
        yield batch
    if empty:
        raise InvalidValueError("batches is empty; expected at least one pair (inputs, targets)")


MEASUREMENTS: Mapping[str, Measurement] = {
    "gradient": Measurement(_gradient, "gradients", ("batches", "loss")),
    "fisher": Measurement(_fisher, "gradients", ("batches", "loss")),
    "hessian_gradient": Measurement(_hessian_gradient, "hvp", ("batches", "loss")),
    "flow": Measurement(_flow, "vjp", ()),
    "activations": Measurement(_activations, "activations", ("batches",)),
}
"""What is measured, and how."""
