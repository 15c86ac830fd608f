"""Signals that are measured on a model: gradients, curvature, flow and activations."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ltcore.arrays import Array, Params
from ltcore.backend import Backend
from ltcore.criteria import Criterion, passes_of
from ltcore.errors import CapabilityError, InvalidValueError
from ltcore.feeds import Batches, Loss, check_batches, check_loss, checked_loss, pairs
from ltcore.masks import Masks
from ltcore.parameters import Interface, Structure

__all__ = [
    "MEASUREMENTS",
    "Batches",
    "Loss",
    "Measurement",
    "Subject",
    "check_flow",
    "check_measurable",
    "check_rereadable",
    "measure",
    "rereadable",
]


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
        InvalidValueError: an argument is missing, or not of its form; names it.
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
        for name in measurement.asks:
            _FORM_CHECKS[name](getattr(subject, name))
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
        InvalidValueError: says after what they would be empty, or that they are no pairs.
    """
    if batches is None:
        return
    check_batches(batches)
    if iter(batches) is batches:
        raise InvalidValueError(
            f"batches is an iterator, which is empty after {once}; give a list or a data loader"
        )


def check_flow(subject: Subject, asker: str) -> None:
    """Raise unless ones can be sent through the model.

    Args:
        subject: the model.
        asker: who wants it, for the error.

    Raises:
        InvalidValueError: inputs and outputs are not known, or not all of them are float32.
    """
    structure = subject.structure
    if not structure.inputs or not structure.outputs:
        raise InvalidValueError(
            f"{asker} needs to know the model's inputs and outputs: give example=, one input "
            f"batch ({structure.untraced or 'they are not known'})"
        )
    for face in (*structure.inputs, *structure.outputs):
        if face.dtype != "float32":
            raise InvalidValueError(
                f"{asker} feeds ones to the model; it has an input or output of {face.dtype} "
                f"({', '.join(face.axes)}), for which that means nothing"
            )


_FORMS = {
    "batches": "batches=[(inputs, targets), ...]",
    "loss": "loss=a function of (outputs, targets)",
}

_FORM_CHECKS: Mapping[str, Callable[[Any], None]] = {"batches": check_batches, "loss": check_loss}


def _gradient(subject: Subject, masks: Masks) -> Mapping[str, Array]:
    return subject.backend.gradients(
        subject.model, subject.structure, _pairs(subject), _loss(subject)
    )


def _fisher(subject: Subject, masks: Masks) -> Mapping[str, Array]:
    return subject.backend.fisher(subject.model, subject.structure, _pairs(subject), _loss(subject))


def _hessian_gradient(subject: Subject, masks: Masks) -> Mapping[str, Array]:
    gradient = _gradient(subject, masks)
    vector = masks.apply({name: gradient[name] for name in masks})
    return subject.backend.hvp(
        subject.model, subject.structure, _pairs(subject), _loss(subject), vector
    )


def _activations(subject: Subject, masks: Masks) -> Mapping[str, Array]:
    return subject.backend.activations(subject.model, subject.structure, _pairs(subject), masks)


def _flow(subject: Subject, masks: Masks) -> Mapping[str, Array]:
    check_flow(subject, "the signal 'flow'")
    structure = subject.structure
    params = subject.backend.read(subject.model, structure)
    at = {
        name: np.abs(array.astype(np.float64)) if array.dtype.kind == "f" else array
        for name, array in masks.apply(params).items()
    }
    inputs = [_ones(face) for face in structure.inputs or ()]
    outputs = [_ones(face) for face in structure.outputs or ()]
    return subject.backend.vjp(subject.model, structure, inputs, outputs, at)


def _ones(face: Interface) -> Array:
    return np.ones((1, *face.shape[1:]), np.float64)


def _pairs(subject: Subject) -> Iterator[tuple[Any, Any]]:
    return pairs(subject.batches or ())


def _loss(subject: Subject) -> Loss:
    assert subject.loss
    return checked_loss(subject.loss)


MEASUREMENTS: Mapping[str, Measurement] = {
    "gradient": Measurement(_gradient, "gradients", ("batches", "loss")),
    "fisher": Measurement(_fisher, "gradients", ("batches", "loss")),
    "hessian_gradient": Measurement(_hessian_gradient, "hvp", ("batches", "loss")),
    "flow": Measurement(_flow, "vjp", ()),
    "activations": Measurement(_activations, "activations", ("batches",)),
}
"""What is measured, and how."""
