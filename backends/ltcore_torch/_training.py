"""Fresh weights and gradients of a torch module."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from ltcore.errors import CapabilityError, InvalidValueError
from ltcore_torch._copies import copied
from ltcore_torch._inference import cuda_devices, untouched
from ltcore_torch._layouts import as_inputs
from ltcore_torch._names import unwrap, walk
from ltcore_torch._slots import Slot


def redrawn(model: nn.Module, seed: int, wanted: Mapping[str, Slot]) -> nn.Module:
    """Return a copy of ``model`` with every layer reset by its own ``reset_parameters``.

    Raises:
        CapabilityError: the layer of a ``wanted`` parameter has no such method, or its method
            leaves the parameter out; names it.
    """
    fresh = copied(model)
    modules = list(zip(walk(fresh), walk(model), strict=True))
    needed = {slot.module for slot in wanted.values()}
    twins = {original: module for (_, module), (_, original) in modules}
    drawn = {n: replace(s, module=twins[s.module]) for n, s in wanted.items() if not s.is_buffer}
    for slot in drawn.values():
        if slot.whole.is_floating_point():
            slot.tensor.detach().fill_(torch.nan)  # what no layer draws stays NaN
    with torch.random.fork_rng(devices=cuda_devices(model)):
        # A stream of its own: the user's manual_seed(seed) must not give the same weights.
        torch.manual_seed(int(np.random.SeedSequence([seed, 0x7E1]).generate_state(1)[0]))
        # Children before parents, which may have the last word on their weights.
        for (name, module), (_, original) in reversed(modules):
            _reset(name, module, must=original in needed)
    left = [name for name, slot in drawn.items() if slot.tensor.isnan().any()]
    if left:
        raise CapabilityError(
            f"parameters {left} are not drawn anew by reset_parameters() of their layers; draw "
            "them there, or give rewind_to= a policy of your own"
        )
    return fresh


def _reset(name: str, module: nn.Module, *, must: bool) -> None:
    known = isinstance(module, nn.MultiheadAttention | nn.Transformer)
    reset = getattr(module, "_reset_parameters" if known else "reset_parameters", None)
    if callable(reset):
        reset()
    elif must and any(param is not None for param in module._parameters.values()):
        raise CapabilityError(
            f"layer {name or 'model'!r} ({type(module).__name__}) has parameters but no "
            "reset_parameters(), so it cannot be drawn anew; add that method, or give "
            "rewind_to= a policy of your own"
        )


def mean_gradients(
    model: nn.Module,
    slots: dict[str, Slot],
    batches: Iterable[tuple[Any, Any]],
    loss: Callable[[Any, Any], Any],
) -> dict[str, torch.Tensor]:
    """Return the gradient of each of ``slots`` averaged over ``batches``.

    In eval mode, so that neither dropout nor batch statistics make a matter of chance of it, and
    without touching ``.grad``.

    Raises:
        InvalidValueError: there are no ``batches``.
    """
    wholes = {slot.place: slot.whole for slot in slots.values()}
    sums = {place: torch.zeros_like(param) for place, param in wholes.items()}
    places = [place for place, p in wholes.items() if p.is_floating_point() or p.is_complex()]
    params = [wholes[place] for place in places]
    frozen = [param for param in params if not param.requires_grad]
    device = params[0].device
    count = 0
    try:
        for param in frozen:
            param.requires_grad_(True)
        for inputs, targets in batches:
            with untouched(unwrap(model)), torch.enable_grad(), _differentiable(model, device):
                value = loss(model(*as_inputs(inputs, device)), *as_inputs(targets, device))
                found = torch.autograd.grad(value, params, allow_unused=True)
            for place, gradient in zip(places, found, strict=True):
                if gradient is not None:
                    sums[place] += gradient
            count += 1
    finally:
        for param in frozen:
            param.requires_grad_(False)
    if not count:
        raise InvalidValueError("batches is empty; expected pairs (inputs, targets)")
    means = {name: sums[slot.place] / count for name, slot in slots.items()}
    return {
        name: mean if (rows := slots[name].rows) is None else mean[rows]
        for name, mean in means.items()
    }


def _differentiable(model: nn.Module, device: torch.device) -> AbstractContextManager[None]:
    """Allow gradients in eval mode: cuDNN's recurrent layers have them in training only."""
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    if device.type == "cuda" and recurrent:
        flags: AbstractContextManager[None] = torch.backends.cudnn.flags(enabled=False)
        return flags
    return nullcontext()
