"""Derivatives of the user's loss: gradients, squared gradients of examples, Hessian products."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map

from ltcore.arrays import Params
from ltcore.errors import CapabilityError, InvalidValueError
from ltcore_torch._inference import differentiable, untouched
from ltcore_torch._layouts import as_inputs, as_targets, check_shape, tensors_in, wide, write_into
from ltcore_torch._names import unwrap
from ltcore_torch._slots import Slot

Batches: TypeAlias = Iterable[tuple[Any, Any]]
Loss: TypeAlias = Callable[[Any, Any], Any]
Tensors: TypeAlias = tuple[torch.Tensor, ...]
Derivatives: TypeAlias = Sequence[torch.Tensor | None]
"""One a parameter; None where nothing depends on it."""

_ONCE = once_differentiable(lambda _: None).__code__
"""What all functions have in common that are marked so."""

_Derive: TypeAlias = Callable[[list[torch.Tensor], Tensors, Any], Iterable[Derivatives]]


def mean_gradients(
    model: nn.Module, slots: Mapping[str, Slot], batches: Batches, loss: Loss
) -> dict[str, torch.Tensor]:
    """Return the gradient of each of ``slots`` averaged over ``batches``.

    Raises:
        InvalidValueError: there are no ``batches``.
    """

    def gradients(params: list[torch.Tensor], x: Tensors, y: Any) -> Iterator[Derivatives]:
        yield torch.autograd.grad(loss(model(*x), y), params, allow_unused=True)

    return _means(model, slots, batches, gradients)


def mean_squares(
    model: nn.Module, slots: Mapping[str, Slot], batches: Batches, loss: Loss
) -> dict[str, torch.Tensor]:
    """Return the squared gradient of one example, averaged over all of them.

    Raises:
        InvalidValueError: there are no ``batches``, or inputs and targets of one do not have the
            same number of examples.
    """

    def squares(params: list[torch.Tensor], xs: Tensors, ys: Any) -> Iterator[Derivatives]:
        for x, y in _singles(xs, ys):
            found = torch.autograd.grad(loss(model(*x), y), params, allow_unused=True)
            yield [None if one is None else wide(_dense(one)).square() for one in found]

    return _means(model, slots, batches, squares)


def hessian_product(
    model: nn.Module, slots: Mapping[str, Slot], batches: Batches, loss: Loss, vector: Params
) -> dict[str, torch.Tensor]:
    """Return the Hessian of the mean loss times ``vector``.

    Raises:
        InvalidValueError: there are no ``batches``, or ``vector`` does not fit the parameters.
        CapabilityError: something in the model or the loss has no second derivative.
    """
    directions = _directions(slots, vector)

    def products(params: list[torch.Tensor], x: Tensors, y: Any) -> Iterator[Derivatives]:
        with _told_of_second_derivatives(), sdpa_kernel(SDPBackend.MATH):
            value = loss(model(*x), y)
            _check_graph(value)
            found = torch.autograd.grad(value, params, create_graph=True, allow_unused=True)
            gradients, cotangents = [], []
            for gradient, direction in zip(found, directions, strict=True):
                if gradient is not None and gradient.requires_grad:
                    gradients.append(_dense(gradient))
                    cotangents.append(direction)
            none: Derivatives = [None] * len(params)  # a loss without curvature
            result = (
                torch.autograd.grad(gradients, params, cotangents, allow_unused=True)
                if gradients
                else none
            )
        yield result

    return _means(model, slots, batches, products)


def _means(
    model: nn.Module, slots: Mapping[str, Slot], batches: Batches, derive: _Derive
) -> dict[str, torch.Tensor]:
    """Return the mean of all that ``derive`` yields for all ``batches``.

    In eval mode, so that neither dropout nor batch statistics make a matter of chance of it, and
    without touching ``.grad``. Short floats are added up as float32.
    """
    wholes = {slot.place: slot.whole for slot in slots.values()}
    sums = {place: wide(torch.zeros_like(whole)) for place, whole in wholes.items()}
    places = _places(slots)
    params = [wholes[place] for place in places]
    device = params[0].device if params else torch.device("cpu")
    count = 0
    for inputs, targets in batches:  # the user's code, which is to see the model as it is
        x, y = as_inputs(inputs, device), as_targets(targets, device)
        with untouched(unwrap(model)), differentiable(model, device), _unfrozen(params):
            for found in derive(params, x, y):
                for place, one in zip(places, found, strict=True):
                    if one is not None:
                        sums[place] += one
                count += 1
    if not count:
        raise InvalidValueError("batches is empty; expected pairs (inputs, targets)")
    means = {name: sums[slot.place] / count for name, slot in slots.items()}
    return {
        name: mean if (rows := slots[name].rows) is None else mean[rows]
        for name, mean in means.items()
    }


def _places(slots: Mapping[str, Slot]) -> list[tuple[int, str]]:
    """Return where the tensors are that can have gradients, each once."""
    wholes = {slot.place: slot.whole for slot in slots.values()}
    return [place for place, one in wholes.items() if one.is_floating_point() or one.is_complex()]


@contextmanager
def _unfrozen(params: Iterable[torch.Tensor]) -> Iterator[None]:
    frozen = [param for param in params if not param.requires_grad]
    try:
        for param in frozen:
            param.requires_grad_(True)
        yield
    finally:
        for param in frozen:
            param.requires_grad_(False)


def _singles(inputs: Tensors, targets: Any) -> Iterator[tuple[Tensors, Any]]:
    """Yield the examples of a batch, each as a batch of one."""
    shapes = [tuple(tensor.shape) for tensor in (*inputs, *tensors_in(targets))]
    if len({shape[:1] for shape in shapes}) != 1 or not shapes[0]:
        raise InvalidValueError(
            f"inputs and targets of shapes {shapes} cannot be told apart into examples; expected "
            "the same number of them along axis 0"
        )
    for i in range(shapes[0][0]):

        def one(leaf: Any, i: int = i) -> Any:
            return leaf[i : i + 1] if isinstance(leaf, torch.Tensor) else leaf

        yield tuple(one(x) for x in inputs), tree_map(one, targets)


def _directions(slots: Mapping[str, Slot], vector: Params) -> list[torch.Tensor]:
    """Return ``vector`` as one tensor for each of `_places`, zero where it says nothing."""
    strangers = sorted(vector.keys() - slots.keys())
    if strangers:
        raise InvalidValueError(f"vector has {strangers}, which are no trained parameters")
    found = {slot.place: torch.zeros_like(slot.whole) for slot in slots.values()}
    for name, array in vector.items():
        check_shape(slots[name].tensor, array, name)
        whole, rows = found[slots[name].place], slots[name].rows
        write_into(whole if rows is None else whole[rows], array)
    return [found[place].detach() for place in _places(slots)]


@contextmanager
def _told_of_second_derivatives() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if "derivative for" in str(error) or "double backward" in str(error):
            raise _no_second_derivative(str(error)) from error
        raise


def _check_graph(value: torch.Tensor) -> None:
    """Raise where torch would take the gradient of a function for a constant, without a word."""
    waiting: list[Any] = [value.grad_fn]
    seen: set[Any] = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        made_by = getattr(node, "_forward_cls", None)
        if made_by is not None and getattr(made_by.backward, "__code__", None) is _ONCE:
            raise _no_second_derivative(f"{made_by.__qualname__} is marked once_differentiable")
        seen.add(node)
        waiting.extend(before for before, _ in node.next_functions)


def _no_second_derivative(reason: str) -> CapabilityError:
    return CapabilityError(
        "a Hessian product needs second derivatives, which something in the model or the loss "
        f"does not have: {reason}"
    )


def _dense(gradient: torch.Tensor) -> torch.Tensor:
    """Return the gradient of an embedding with ``sparse=True`` as that of any other."""
    return gradient if gradient.layout is torch.strided else gradient.to_dense()
