"""What users give to measure a model with: batches and a loss, checked before a framework sees it.

Frameworks disagree on what they make of a loss that is no single number, or of a batch that is no
pair; here it is an error in all of them.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from numbers import Number
from typing import Any, TypeAlias

import numpy as np

from ltcore.errors import InvalidValueError, LtcoreError, gist

Batches: TypeAlias = Iterable[tuple[Any, Any]]
"""Pairs ``(inputs, targets)`` as the framework takes them."""

Loss: TypeAlias = Callable[[Any, Any], Any]
"""``loss(outputs, targets)`` in the framework's own tensors; returns one number."""


def check_batches(batches: Any) -> None:
    """Raise unless ``batches`` can be pairs; those of a list or a tuple are looked at.

    Raises:
        InvalidValueError: says what was found.
    """
    single = isinstance(batches, Mapping | str | bytes) or hasattr(batches, "shape")
    if single or not (hasattr(batches, "__iter__") or hasattr(batches, "__getitem__")):
        raise InvalidValueError(f"batches is {_told(batches)}; {_PAIRS}")
    if isinstance(batches, list | tuple):
        for index, batch in enumerate(batches):
            _check_pair(batch, index)


def pairs(batches: Batches) -> Iterator[tuple[Any, Any]]:
    """Yield the batches, each of them a pair; none at all would silently mean 0.

    Raises:
        InvalidValueError: says what was found instead.
    """
    check_batches(batches)
    empty = True
    for index, batch in enumerate(batches):
        _check_pair(batch, index)
        empty = False
        yield batch
    if empty:
        raise InvalidValueError("batches is empty; expected at least one pair (inputs, targets)")


def check_loss(loss: Any) -> None:
    """Raise unless ``loss`` can be a function of outputs and targets.

    Raises:
        InvalidValueError: it is a class, a name, or cannot be called.
    """
    if isinstance(loss, type):
        hint = f"; give an instance, such as {loss.__name__}()"
    elif isinstance(loss, str):
        hint = "; a name will not do, because frameworks mean different losses by it"
    elif callable(loss):
        return
    else:
        hint = ""
    told = f"the class {loss.__name__}" if isinstance(loss, type) else _told(loss)
    raise InvalidValueError(f"loss is {told}; expected a function loss(outputs, targets){hint}")


def checked_loss(loss: Loss) -> Loss:
    """Return ``loss`` with its errors told, and its result checked to be one number.

    The function that is returned raises `InvalidValueError`, also while a framework traces it.

    Raises:
        InvalidValueError: ``loss`` cannot be called.
    """
    check_loss(loss)

    def checked(outputs: Any, targets: Any) -> Any:
        try:
            value = loss(outputs, targets)
        except LtcoreError:
            raise
        except Exception as error:
            raise InvalidValueError(
                f"the loss failed when called as loss(outputs, targets): {gist(error)}"
                f"{_order(loss)}"
            ) from error
        _check_value(value, outputs)
        return value

    return checked


_PAIRS = "expected pairs (inputs, targets), as in batches=[(inputs, targets)]"


def _check_pair(batch: Any, index: int) -> None:
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise InvalidValueError(f"batch {index} of batches is {_told(batch)}; {_PAIRS}")


def _check_value(value: Any, outputs: Any) -> None:
    shape = _shape(value)
    plain = isinstance(value, Number | np.generic | np.ndarray)
    if shape is None and not plain:
        raise InvalidValueError(f"loss returned {_told(value)}; expected one number, as a tensor")
    if shape:
        raise InvalidValueError(
            f"loss returned an array of shape {shape}; expected one number, such as the mean over "
            "the batch"
        )
    # Where outputs are numpy arrays nothing carries a gradient, and differences are taken.
    lost = plain and not isinstance(outputs, np.ndarray)
    if lost or getattr(value, "requires_grad", True) is False:
        raise InvalidValueError(
            f"loss returned {_told(value)}, which has no gradient; compute it from the outputs by "
            "operations of the framework, without detach(), item(), float() or numpy"
        )


def _shape(value: Any) -> tuple[Any, ...] | None:
    """Return the shape of an array; an unknown one, which a graph may have, counts as ()."""
    shape = getattr(value, "shape", None)
    if shape is None:
        return None
    try:
        return tuple(shape)
    except ValueError:  # TensorFlow's, of a tensor whose rank is not known yet
        return ()


def _order(loss: Loss) -> str:
    """Return a hint where ``loss`` names its arguments as Keras does."""
    try:
        first = next(iter(inspect.signature(loss).parameters), "")
    except (TypeError, ValueError):  # a builtin, which does not tell
        return ""
    if first not in {"y_true", "y"}:
        return ""
    return (
        "; Keras losses take (y_true, y_pred), so write lambda outputs, targets: loss(targets, "
        "outputs)"
    )


def _told(value: Any) -> str:
    """Return in a few words what ``value`` is."""
    kind = type(value).__name__
    shape = _shape(value)
    if shape:
        return f"an array of shape {shape} ({kind})"
    if isinstance(value, Mapping):
        return f"a {kind} of {list(value)[:8]}"
    if isinstance(value, tuple | list):
        return f"a {kind} of {len(value)} parts"
    return f"{kind} {value!r:.80}" if value is not None else "None"
