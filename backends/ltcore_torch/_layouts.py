"""torch tensors to numpy and back. Canonical layout is torch's own, so axes stay as they are."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_leaves, tree_map

from ltcore.arrays import Array, own
from ltcore.errors import CapabilityError, InvalidValueError

_NUMPY_FLOATS = (torch.float64, torch.float32, torch.float16)


def to_numpy(tensor: torch.Tensor) -> Array:
    """Return an owned, C-contiguous copy; short floats that numpy lacks come as float32."""
    live = tensor.detach()
    if live.dtype.is_floating_point and live.dtype not in _NUMPY_FLOATS:
        live = live.float()
    # On the CPU .numpy() is a view that the next update would write to.
    return own(live.cpu().numpy())


def read_array(tensor: torch.Tensor, name: str) -> Array:
    """Return `to_numpy` of a parameter.

    Raises:
        CapabilityError: numpy has no such array (quantized or sparse); names the parameter.
    """
    try:
        return to_numpy(tensor)
    except (TypeError, RuntimeError, NotImplementedError) as error:
        raise CapabilityError(
            f"{name!r} ({tensor.dtype}, {tensor.layout}) cannot be read as an array: {error}"
        ) from error


def check_shape(tensor: torch.Tensor, array: Array, name: str) -> None:
    """Raise `InvalidValueError` if ``array`` is of another shape than the parameter ``name``."""
    if array.shape != tuple(tensor.shape):
        raise InvalidValueError(
            f"{name!r} has canonical shape {tuple(tensor.shape)}; an array of shape {array.shape} "
            "was given"
        )


def write_into(tensor: torch.Tensor, array: Array) -> None:
    """Copy ``array`` into ``tensor``, which keeps its dtype, device and memory format."""
    with torch.no_grad():
        tensor.copy_(torch.from_numpy(own(array)).reshape(tensor.shape))


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """Return short floats as float32, in which they can be squared and added up."""
    short = tensor.is_floating_point() and tensor.element_size() < 4
    return tensor.float() if short else tensor


def as_inputs(example: Any, device: torch.device) -> tuple[torch.Tensor, ...]:
    """Return model inputs on ``device``: a tensor, an array, or a sequence of them."""
    if isinstance(example, Mapping):
        raise InvalidValueError(
            f"inputs are a dictionary of {list(example)}; give a tuple of them in the order of "
            "forward()"
        )
    parts = example if isinstance(example, list | tuple) else (example,)
    return tuple(
        (part if isinstance(part, torch.Tensor) else torch.from_numpy(np.asarray(part))).to(device)
        for part in parts
    )


def as_targets(targets: Any, device: torch.device) -> Any:
    """Return what a loss gets: ``targets``, with arrays as tensors, all on ``device``."""

    def moved(leaf: Any) -> Any:
        if isinstance(leaf, np.ndarray | np.generic):
            leaf = torch.from_numpy(np.asarray(leaf))
        return leaf.to(device) if isinstance(leaf, torch.Tensor) else leaf

    return tree_map(moved, targets)


def tensors_in(tree: Any) -> list[torch.Tensor]:
    """Return the tensors in nested containers; dictionaries in the order of their sorted keys."""
    if isinstance(tree, torch.Tensor):
        return [tree]
    if isinstance(tree, Mapping):
        return [tensor for key in sorted(tree) for tensor in tensors_in(tree[key])]
    if isinstance(tree, list | tuple):
        return [tensor for part in tree for tensor in tensors_in(part)]
    # A container that someone registered with torch; anything else is a leaf, and no tensor.
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
