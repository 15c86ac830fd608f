"""Forwards of our own, which leave no traces in the user's model and process."""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeGuard

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
        values = [(b, b._version, b.detach().clone()) for _, _, b in buffers if _counts(b)]
        try:
            model.eval()
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            for owner, name, buffer in buffers:
                owner._buffers[name] = buffer
            with torch.no_grad():
                for buffer, version, value in values:
                    if buffer._version != version:
                        buffer.copy_(value)


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


@contextmanager
def differentiable(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Gradients in eval mode, in the precision of the model, of code that torch can look into."""
    # cuDNN's recurrent layers have gradients in training only.
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    cudnn = torch.backends.cudnn.enabled and not (device.type == "cuda" and recurrent)
    with (
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
        torch.backends.cudnn.flags(enabled=cudnn),
        eager(),
    ):
        yield


def eager() -> AbstractContextManager[Any]:
    """Run compiled code as it was written: it has no second derivatives, and hears no hooks."""
    stance = getattr(torch.compiler, "set_stance", None)  # torch 2.6
    return nullcontext() if stance is None else stance("force_eager")


def cuda_devices(model: nn.Module) -> list[torch.device]:
    """Return where the parameters of ``model`` are, without the CPU."""
    return list({p.device for p in model.parameters() if p.device.type == "cuda"})


def _buffers(model: nn.Module) -> Iterator[tuple[nn.Module, str, torch.Tensor | None]]:
    """Yield ``(owner, name, buffer)``, but not those that a first forward has to make."""
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is None or not nn.parameter.is_lazy(buffer):
                yield module, name, buffer


def _counts(buffer: torch.Tensor | None) -> TypeGuard[torch.Tensor]:
    """Whether there is a buffer that counts how often it was written to."""
    return buffer is not None and not buffer.is_inference()
