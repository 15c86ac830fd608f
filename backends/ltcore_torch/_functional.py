"""The gradient of a module's outputs at parameters that are lent to it for one forward."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import nn
from torch.func import functional_call

from ltcore.arrays import Array, Params
from ltcore.errors import CapabilityError, InvalidValueError
from ltcore_torch._hold import suspended
from ltcore_torch._inference import differentiable, untouched
from ltcore_torch._layouts import as_inputs, check_shape, tensors_in, write_into
from ltcore_torch._names import identity
from ltcore_torch._slots import Slot

_ABOUT_DTYPES = re.compile(r"dtype|scalar type|data type|input type|double|float64", re.IGNORECASE)


def vector_jacobian(
    root: nn.Module,
    slots: Mapping[str, Slot],
    trained: Sequence[str],
    inputs: Sequence[Array],
    cotangents: Sequence[Array],
    at: Params,
) -> dict[str, torch.Tensor]:
    """Return the gradient of ``<outputs, cotangents>`` by ``trained``, at the parameters ``at``.

    Everything is computed in the widest dtype of ``at``.

    Raises:
        InvalidValueError: ``at`` is not for these parameters, or ``cotangents`` not for the
            outputs.
        CapabilityError: the model has a dtype of its own that it does not leave.
    """
    _check_params(slots, at)
    device = next((slot.whole.device for slot in slots.values()), torch.device("cpu"))
    dtype = _widest(at)
    with _told_of_dtypes(dtype):
        lent = _lent(slots, at, dtype)
        places = list(dict.fromkeys(slots[name].place for name in trained))
        params = [lent[place].requires_grad_(_has_gradients(lent[place])) for place in places]
        given = _floats_as(dtype, inputs, device)
        with untouched(root), _attributes_kept(root), suspended(), differentiable(root, device):
            named = _by_native_name(root, slots, lent)
            # Ties are in the names; torch's own way would leave what is lent in shared modules.
            outputs = tensors_in(functional_call(root, named, given, tie_weights=False))
            _check_outputs(outputs, cotangents, dtype)
            found = _pulled_back(outputs, _floats_as(dtype, cotangents, device), params)
    by_place = dict(zip(places, found, strict=True))
    gradients = {name: by_place[slots[name].place] for name in trained}
    return {
        name: one if (rows := slots[name].rows) is None else one[rows]
        for name, one in gradients.items()
    }


def _check_params(slots: Mapping[str, Slot], at: Params) -> None:
    missing, strangers = sorted(slots.keys() - at.keys()), sorted(at.keys() - slots.keys())
    if missing or strangers:
        raise InvalidValueError(
            f"the parameters to differentiate at lack {missing}, and {strangers} are none of the "
            "model's; expected every parameter and buffer"
        )
    for name, array in at.items():
        check_shape(slots[name].tensor, array, name)


def _check_outputs(
    outputs: Sequence[torch.Tensor], cotangents: Sequence[Array], dtype: torch.dtype
) -> None:
    found, wanted = [tuple(y.shape) for y in outputs], [array.shape for array in cotangents]
    if found != wanted:
        raise InvalidValueError(
            f"cotangents have the shapes {wanted}; expected those of the outputs, {found}"
        )
    odd = sorted({str(y.dtype) for y in outputs if y.is_floating_point() and y.dtype != dtype})
    if odd:
        raise _own_dtype(dtype, f"it returns {', '.join(odd)}")


def _widest(at: Params) -> torch.dtype:
    floats = [array.dtype for array in at.values() if array.dtype.kind == "f"]
    widest = np.result_type(*floats) if floats else np.float32
    return torch.from_numpy(np.zeros(0, widest)).dtype


def _lent(
    slots: Mapping[str, Slot], at: Params, dtype: torch.dtype
) -> dict[tuple[int, str], torch.Tensor]:
    """Return new tensors for all parameters and buffers; integers keep their dtype."""
    lent = {}
    for slot in slots.values():
        own = slot.whole.dtype
        wide = torch.promote_types(own, dtype) if own.is_complex else dtype
        kept = wide if _has_gradients(slot.whole) else own
        lent[slot.place] = torch.zeros(slot.whole.shape, dtype=kept, device=slot.whole.device)
    for name, slot in slots.items():
        whole = lent[slot.place]
        write_into(whole if slot.rows is None else whole[slot.rows], at[name])
    return lent


def _by_native_name(
    root: nn.Module, slots: Mapping[str, Slot], lent: Mapping[tuple[int, str], torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return what is lent under every name that it has in the module, tied weights included."""
    known = {identity(replace(slot, rows=None)): lent[slot.place] for slot in slots.values()}
    places = [
        (path, Slot(module, attribute))
        for path, module in root.named_modules()
        for attribute in (*module._parameters, *module._buffers)
    ]
    return {
        f"{path}.{slot.attribute}".removeprefix("."): known[identity(slot)]
        for path, slot in places
        if slot.found is not None and identity(slot) in known
    }


def _pulled_back(
    outputs: Sequence[torch.Tensor],
    cotangents: Sequence[torch.Tensor],
    params: Sequence[torch.Tensor],
) -> list[torch.Tensor]:
    """Return the gradient of ``<outputs, cotangents>`` by ``params``: zero where there is none."""
    pairs = [(y, c) for y, c in zip(outputs, cotangents, strict=True) if y.requires_grad]
    trained = [param for param in params if param.requires_grad]
    found = iter(
        torch.autograd.grad(
            [y for y, _ in pairs], trained, [c for _, c in pairs], allow_unused=True
        )
        if pairs
        else [None] * len(trained)
    )
    by_param = [next(found) if param.requires_grad else None for param in params]
    return [
        torch.zeros_like(param) if gradient is None else gradient.to_dense()
        for param, gradient in zip(params, by_param, strict=True)
    ]


@contextmanager
def _attributes_kept(root: nn.Module) -> Iterator[None]:
    """Put back what modules remember from a forward, as recurrent ones do their weights."""
    before = [(vars(module), dict(vars(module))) for module in root.modules()]
    try:
        yield
    finally:
        for live, kept in before:
            live.clear()
            live.update(kept)


@contextmanager
def _told_of_dtypes(dtype: torch.dtype) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, TypeError) as error:
        if isinstance(error, CapabilityError) or not _ABOUT_DTYPES.search(str(error)):
            raise
        raise _own_dtype(dtype, str(error)) from error


def _own_dtype(dtype: torch.dtype, reason: str) -> CapabilityError:
    return CapabilityError(
        f"the model does not compute in {dtype}, though its parameters are: {reason}. Somewhere "
        "it makes or converts to another dtype; use that of its inputs or parameters there"
    )


def _floats_as(
    dtype: torch.dtype, arrays: Sequence[Array], device: torch.device
) -> tuple[torch.Tensor, ...]:
    tensors = as_inputs(list(arrays), device)
    return tuple(tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in tensors)


def _has_gradients(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()
