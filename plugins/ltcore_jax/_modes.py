"""Whether layers train: the flags that ``model.train()`` and ``model.eval()`` set."""

from typing import Any

from flax import nnx

_FLAGS = ("deterministic", "use_running_average")


def modes(model: nnx.Module) -> list[dict[str, Any]]:
    """Return the flags of every module, in the order of ``nnx.iter_modules``."""
    return [
        {flag: vars(module)[flag] for flag in _FLAGS if flag in vars(module)}
        for _, module in nnx.iter_modules(model)
    ]


def set_modes(model: nnx.Module, mode: list[dict[str, Any]]) -> None:
    """Set the flags that `modes` returned."""
    for (_, module), flags in zip(nnx.iter_modules(model), mode, strict=True):
        for flag, value in flags.items():
            setattr(module, flag, value)
