"""Forwards of our own, which leave no traces in the user's model and process."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

# Modes and the flag of fused attention are there once for all threads.
_one_at_a_time = threading.RLock()


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Eval mode; afterwards modes, buffers and random state are what they were.

    One thread at a time. Parameters are not looked after: no forward writes to them.
    """
    with _one_at_a_time, torch.random.fork_rng(devices=cuda_devices(model)):
        modes = [(module, module.training) for module in model.modules()]
        buffers = list(_buffers(model))
        try:
            model.eval()
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            for owner, name, tensor, version, value in buffers:
                owner._buffers[name] = tensor
                if tensor is not None and tensor._version != version:
                    with torch.no_grad():
                        tensor.copy_(value)


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """`untouched`, without gradients, and attention as training computes it.

    torch's fused layers answer zeros where a padding mask hides a position; no other path does.
    """
    with untouched(model), torch.no_grad():
        fused = torch.backends.mha.get_fastpath_enabled()
        try:
            torch.backends.mha.set_fastpath_enabled(False)
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fused)


def cuda_devices(model: nn.Module) -> list[torch.device]:
    """Return where the parameters of ``model`` are, without the CPU."""
    return list({p.device for p in model.parameters() if p.device.type == "cuda"})


def _buffers(
    model: nn.Module,
) -> Iterator[tuple[nn.Module, str, torch.Tensor | None, int, torch.Tensor | None]]:
    """Yield ``(owner, name, tensor, version, value)``, but not what a first forward has to make."""
    for module in model.modules():
        for name, tensor in module._buffers.items():
            if tensor is None:
                yield module, name, None, 0, None
            elif not (nn.parameter.is_lazy(tensor) or tensor.is_inference()):
                yield module, name, tensor, tensor._version, tensor.detach().clone()
