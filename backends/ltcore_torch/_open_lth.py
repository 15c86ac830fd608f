"""The folders that open_lth leaves: a mask file and model files for each pruning step."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ltcore.backend import Imported
from ltcore.errors import CheckpointError
from ltcore_torch._checkpoints import loaded
from ltcore_torch._statedict import Read, State, imported, tensors_of

MASK = "mask.pth"
_MODEL = re.compile(r"model_ep(\d+)_it(\d+)\.pth")


def load_open_lth(model: nn.Module, folder: Path, weights: str | None, read: Read) -> Imported:
    """Return what a folder of open_lth has for ``model``.

    Args:
        model: with the names of open_lth's.
        folder: has the mask and model files, or its subfolder ``main`` has.
        weights: a model file, with or without ``.pth``; None is the earliest.
        read: reads a module.
    """
    if not (folder / MASK).is_file() and (folder / "main" / MASK).is_file():
        folder = folder / "main"
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if MASK not in names:
        raise CheckpointError(f"{folder} is no folder of open_lth: no {MASK} is there, but {names}")
    file = _model_file(folder, names, weights)
    masks = tensors_of(loaded(folder / MASK), MASK)
    state = _without_buffers(tensors_of(loaded(file), file.name), masks)
    # Replicate, pruning step and branch; the path above is the user's own.
    story = {"format": "open_lth", "file": file.name, "folder": "/".join(folder.parts[-3:])}
    return imported(model, state, read, story, masks, _rewind(file.name))


def _model_file(folder: Path, names: list[str], weights: str | None) -> Path:
    """Return the file that was asked for, or the earliest: training of the step starts there."""
    if weights is None:
        steps = {_step(name): name for name in names if _MODEL.fullmatch(name)}
        if not steps:
            raise CheckpointError(f"{folder} has no model_ep<epoch>_it<n>.pth; it has {names}")
        return folder / steps[min(steps)]
    wanted = f"{weights.removesuffix('.pth')}.pth"
    if wanted not in names:
        raise CheckpointError(f"{folder} has no {wanted}; it has {names}")
    return folder / wanted


def _without_buffers(state: State, masks: State) -> State:
    """Drop what open_lth's wrapper of a pruned model adds: the masks as buffers."""
    buffers = {f"mask_{name.replace('.', '___')}" for name in masks}
    return {name: tensor for name, tensor in state.items() if name not in buffers}


def _step(name: str) -> tuple[int, int]:
    found = _MODEL.fullmatch(name)
    assert found is not None  # only such names come here
    return int(found[1]), int(found[2])


def _rewind(name: str) -> Mapping[str, Any] | None:
    """Return the rewind point that a file's name tells; how long an epoch is, is not known."""
    if not _MODEL.fullmatch(name):
        return None
    epoch, iteration = _step(name)
    if epoch:
        return {"kind": "epoch", "epoch": epoch, "iteration": iteration}
    return {"kind": "step" if iteration else "initialization", "step": iteration}
