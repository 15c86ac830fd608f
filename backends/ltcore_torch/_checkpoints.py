"""Torch checkpoints: files of tensors, and models under torch's own pruning.

Pickles go through torch's restricted loader only, which runs nothing that a file brings along.
"""

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn
from torch.nn.utils import prune

from ltcore.errors import CheckpointError, NothingPrunedError
from ltcore_torch._copies import copied
from ltcore_torch._names import unwrap

PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".tar")
WRITES = (".pt", ".pth", ".safetensors")
_FOUND = re.compile(r"(Trying|Unsupported|Can only)\b")


def loaded(path: Path) -> Any:
    """Return what is in the file, tensors on the CPU.

    Raises:
        CheckpointError: it cannot be read, or only by running what it brings along.
    """
    if path.suffix not in (*PICKLES, ".safetensors"):
        raise CheckpointError(
            f"cannot read {path}: torch checkpoints end in {', '.join((*PICKLES, '.safetensors'))}"
        )
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch warns of, it then reads or refuses
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is refused: it is damaged, or holds more than tensors and plain data, so that "
            f"loading it could run code. {_told(error)} Where it was made, save the weights "
            "alone: torch.save(model.state_dict(), path)"
        ) from error
    except Exception as error:  # whatever a file does to its reader
        raise CheckpointError(f"cannot read {path}: {type(error).__name__}: {error}") from error


def _told(error: Exception) -> str:
    """Return what torch found, without its advice on how to load the file all the same."""
    lines = [line.strip().rstrip(".") for line in str(error).splitlines()]
    return next((f"{line}." for line in lines if _FOUND.match(line)), "")


def unpruned(model: nn.Module) -> tuple[nn.Module, Mapping[str, Any]]:
    """Return a copy of ``model`` that is not under ``torch.nn.utils.prune``, and its state dict."""
    root = unwrap(model)
    if not prune.is_pruned(root):
        raise NothingPrunedError(
            "no layer of the model is under torch.nn.utils.prune. If that was made permanent, "
            "ltcore.from_checkpoint(model, model.state_dict()) takes the masks from the zeros"
        )
    plain = copied(root)
    for module in plain.modules():
        for name in _pruned_names(module):
            prune.remove(module, name)  # type: ignore[no-untyped-call]
    return plain, dict(root.state_dict())


def _pruned_names(module: nn.Module) -> list[str]:
    stems = [name.removesuffix("_orig") for name in module._parameters if name.endswith("_orig")]
    return [stem for stem in stems if f"{stem}_mask" in module._buffers]


def save_checkpoint(model: nn.Module, path: Path) -> None:
    """Write the state dict of ``model``, its tensors on the CPU.

    Raises:
        CheckpointError: the file format cannot hold it, or the disk is full.
    """
    root = unwrap(model)
    try:
        if path.suffix == ".safetensors":
            # Of tied tensors one name is written; the metadata names the others.
            safetensors.torch.save_model(root, str(path), {"format": "pt"})
            return
        state = root.state_dict()
        for name, value in state.items():
            state[name] = value.cpu() if isinstance(value, torch.Tensor) else value
        torch.save(state, path)
    except (RuntimeError, ValueError, AttributeError, SafetensorError) as error:
        raise CheckpointError(f"{type(error).__name__}: {error}") from error
