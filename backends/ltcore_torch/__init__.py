"""ltcore's PyTorch backend. This module is data: importing it does not import torch."""

from collections.abc import Iterable

from ltcore.hookspecs import BackendSpec, hookimpl


@hookimpl
def ltcore_register_backends() -> Iterable[BackendSpec]:
    """Offer the PyTorch backend."""
    return [
        BackendSpec(
            "torch",
            "ltcore_torch._backend:TorchBackend",
            "torch.nn.Module in any training loop",
            requires=("torch",),
            install="pip install 'ltcore[torch]'",
            roots=("torch",),
        )
    ]
