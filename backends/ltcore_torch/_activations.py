"""How strong the inputs are that the weights of a layer multiply."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from ltcore.errors import CapabilityError, InvalidValueError
from ltcore.layouts import CONVOLUTIONS
from ltcore.parameters import Role, Site
from ltcore_torch._inference import eager, inference
from ltcore_torch._kinds import padding_of
from ltcore_torch._layouts import as_inputs, wide
from ltcore_torch._slots import Slot

_KERNELS = ("linear", *CONVOLUTIONS)


@dataclass(frozen=True, slots=True)
class Kernel:
    """A weight whose inputs are wanted.

    Attributes:
        name: its portable name.
        weight: the tensor.
        layers: the modules that multiply by it; several share a tied weight.
    """

    name: str
    weight: torch.Tensor
    layers: tuple[nn.Linear | _ConvNd, ...]


@dataclass
class _Squares:
    """Squared inputs, added up over calls; the shape of ``total`` broadcasts to the weight's."""

    total: torch.Tensor | float = 0.0
    positions: int = 0


def kernel(root: nn.Module, name: str, site: Site, role: Role, slot: Slot) -> Kernel:
    """Return what is to be listened to for the parameter ``name``.

    Raises:
        CapabilityError: it is no kernel of a layer that torch calls as such.
    """
    users = [m for m in root.modules() if any(p is slot.whole for p in m._parameters.values())]
    layers = tuple(user for user in users if isinstance(user, nn.Linear | _ConvNd))
    known = site.kind in _KERNELS and role.name == "weight" and not site.part
    if not known or len(layers) < len(users):
        within = " and ".join(sorted({type(user).__name__ for user in users}))
        raise CapabilityError(
            f"{name!r}, the {role.name} of a layer of kind {site.kind!r} in {within}, has no "
            f"activations; those of layers of {_KERNELS} that are called as such have"
        )
    return Kernel(name, slot.whole, layers)


def input_strengths(
    root: nn.Module, kernels: Iterable[Kernel], batches: Iterable[tuple[Any, Any]]
) -> dict[str, torch.Tensor]:
    """Return the root mean square of what each weight multiplies, in the weight's shape.

    Raises:
        InvalidValueError: there are no ``batches``.
        CapabilityError: a layer does not run on them.
    """
    heard = {one.name: (one, _Squares()) for one in kernels}
    device = next((p.device for p in root.parameters()), torch.device("cpu"))
    count = 0
    with ExitStack() as stack:
        for one, squares in heard.values():
            for layer in one.layers:
                stack.enter_context(_listening(layer, squares))
        for inputs, _ in batches:
            with inference(root), eager():
                root(*as_inputs(inputs, device))
            count += 1
    if not count:
        raise InvalidValueError("batches is empty; expected pairs (inputs, targets)")
    return {name: _strength(one, squares) for name, (one, squares) in heard.items()}


def _strength(one: Kernel, squares: _Squares) -> torch.Tensor:
    if not isinstance(squares.total, torch.Tensor):
        raise CapabilityError(
            f"the layer of {one.name!r} is not called on these batches, so its inputs are not "
            "known; leave the parameter out, or call the layer rather than use its weight"
        )
    return (squares.total / squares.positions).sqrt().float().expand(one.weight.shape)


@contextmanager
def _listening(layer: nn.Linear | _ConvNd, squares: _Squares) -> Iterator[None]:
    """Add up what enters ``layer`` in the meantime."""

    def hear(_module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        x: torch.Tensor = args[0] if args else kwargs["input"]
        total, positions = _totals(layer)(layer, wide(x.detach()))
        squares.total = squares.total + total
        squares.positions += positions

    handle = layer.register_forward_pre_hook(hear, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _totals(layer: nn.Module) -> Callable[[Any, torch.Tensor], tuple[torch.Tensor, int]]:
    """Return what gives the sum of squares, and over how many positions it is."""
    if isinstance(layer, _ConvTransposeNd):
        return _of_transposed
    return _of_windows if isinstance(layer, _ConvNd) else _of_features


def _of_features(_layer: nn.Linear, x: torch.Tensor) -> tuple[torch.Tensor, int]:
    return _by_last_axis(x)


def _by_last_axis(x: torch.Tensor) -> tuple[torch.Tensor, int]:
    features = x.shape[-1]
    return _sum(x.reshape(-1, features).square(), [0]), x.numel() // features


def _of_transposed(layer: _ConvTransposeNd, x: torch.Tensor) -> tuple[torch.Tensor, int]:
    space = len(layer.kernel_size)
    channels = x.movedim(-space - 1, -1)  # an input meets all of the kernel, cropped or not
    total, positions = _by_last_axis(channels)
    return total.reshape(-1, *[1] * (space + 1)), positions


def _of_windows(layer: _ConvNd, x: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Add up what each position of the kernel meets as it moves over the padded input."""
    space = len(layer.kernel_size)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    batched = x if x.dim() > space + 1 else x[None]
    sides = [side for pair in reversed(padding_of(layer)) for side in pair]
    squares = nn.functional.pad(batched, sides, mode=mode).square()
    steps = list(zip(layer.kernel_size, layer.stride, layer.dilation, strict=True))
    sizes = [
        (size - dilation * (width - 1) - 1) // stride + 1
        for size, (width, stride, dilation) in zip(squares.shape[2:], steps, strict=True)
    ]
    sums = []
    for offset in product(*map(range, layer.kernel_size)):
        window: Any = tuple(
            slice(at * dilation, at * dilation + (size - 1) * stride + 1, stride)
            for at, size, (_, stride, dilation) in zip(offset, sizes, steps, strict=True)
        )
        sums.append(_sum(squares[..., *window], [0, *range(2, 2 + space)]))
    grouped = torch.stack(sums, 1).reshape(layer.groups, -1, *layer.kernel_size)
    total = grouped.repeat_interleave(layer.out_channels // layer.groups, 0)
    return total, len(squares) * prod(sizes)


def _sum(squares: torch.Tensor, axes: list[int]) -> torch.Tensor:
    exact = torch.float32 if squares.device.type == "mps" else torch.float64  # MPS has no other
    return squares.sum(axes, dtype=exact)
