"""Modes, fresh weights and gradients of a torch module."""

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from ltcore.errors import CapabilityError
from ltcore_torch._layouts import as_inputs
from ltcore_torch._names import Slot, walk


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put every module in eval mode, and afterwards each back in the mode it had."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Eval mode, without gradients."""
    with eval_mode(model), torch.no_grad():
        yield


def redrawn(model: nn.Module, seed: int) -> nn.Module:
    """Return a copy of ``model`` with every layer reset by its own ``reset_parameters``.

    Raises:
        CapabilityError: a layer has parameters and no such method; names it.
    """
    fresh = copy.deepcopy(model)
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)):
        # A stream of its own: the user's manual_seed(seed) must not give the same weights.
        torch.manual_seed(int(np.random.SeedSequence([seed, 0x7E1]).generate_state(1)[0]))
        for name, module in walk(fresh):
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
            elif any(param is not None for param in module._parameters.values()):
                raise CapabilityError(
                    f"layer {name or 'model'!r} ({type(module).__name__}) has parameters but no "
                    "reset_parameters(), so it cannot be drawn anew; add that method, or give "
                    "rewind_to= a policy of your own"
                )
    return fresh


def mean_gradients(
    model: nn.Module,
    slots: dict[str, Slot],
    batches: Iterable[tuple[Any, Any]],
    loss: Callable[[Any, Any], Any],
) -> dict[str, torch.Tensor]:
    """Return the gradient of each of ``slots`` averaged over ``batches``.

    In eval mode, so that neither dropout nor batch statistics make a matter of chance of it, and
    without touching ``.grad``.
    """
    params = {name: slot.tensor for name, slot in slots.items()}
    frozen = [param for param in params.values() if not param.requires_grad]
    sums = {name: torch.zeros_like(param) for name, param in params.items()}
    device = next(iter(params.values())).device
    count = 0
    try:
        for param in frozen:
            param.requires_grad_(True)
        for inputs, targets in batches:
            value = loss(model(*as_inputs(inputs, device)), *as_inputs(targets, device))
            found = torch.autograd.grad(value, list(params.values()), allow_unused=True)
            for total, gradient in zip(sums.values(), found, strict=True):
                if gradient is not None:
                    total += gradient
            count += 1
    finally:
        for param in frozen:
            param.requires_grad_(False)
    return {name: total / max(count, 1) for name, total in sums.items()}
