"""Variables of a model that TensorFlow Model Optimization wraps for pruning.

Its wrapper ``prune_low_magnitude_<layer>`` has the layer's own weights, and for each that it prunes
a mask: ``<weight>:0_mask:0``, or ``mask:0`` in older releases, which do not say of which weight.
Names repeat themselves: a file puts the layer before the variable's whole name.
"""

import re
from collections.abc import Callable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from ltcore.arrays import Array
from ltcore.backend import Imported
from ltcore.errors import CheckpointError, MatchError
from ltcore_keras._checkpoints import Read, assign, lent
from ltcore_keras._h5 import datasets, opened

_WRAPPER = "prune_low_magnitude_"
_IN_MODEL_FILE = "model_weights/"  # beside the optimizer's
_BOOKKEEPING = re.compile(r"(.*/)?(.+_)?(threshold|pruning_step)")
_MASK = re.compile(r"(?P<layer>.*/)?((?P<weight>[^/]+)_)?mask")


def load_tfmot(
    model: Any, source: Path | Mapping[str, Any], mapping: Mapping[str, str], read: Read
) -> Imported:
    """Return what the variables of a wrapped model have for ``model``.

    Args:
        model: the same without wrappers.
        source: ``{name: array}``, or an ``.h5`` file of them.
        mapping: ``{layer there: layer of the model}``, where names differ.
        read: reads the model.
    """
    story = {"format": "tfmot"}
    if isinstance(source, Path):
        story["file"] = source.name
        variables = _in_file(source)
    else:
        variables = _plain({str(name): np.asarray(array) for name, array in source.items()})
    weights, masks = _sorted_out(variables)
    rename = _renaming(weights, mapping)
    weights = {rename(name): array for name, array in weights.items()}
    masks = {rename(name): mask for name, mask in masks.items()}

    def read_marks(marks: Mapping[str, Array]) -> dict[str, Array]:
        zeros = {name: np.zeros_like(array) for name, array in weights.items()}
        assign(model, {**zeros, **{n: m.astype(weights[n].dtype) for n, m in marks.items()}})
        return {name: array != 0 for name, array in read().items()}

    with lent(model):
        assign(model, weights)
        params = read()
        pruned = read_marks({name: mask == 0 for name, mask in masks.items()})
        masked = read_marks({name: mask == mask for name, mask in masks.items()})
    return Imported(params, {n: ~pruned[n] for n, marks in masked.items() if marks.any()}, story)


def _in_file(path: Path) -> dict[str, Array]:
    with opened(path) as file:
        found = datasets(file, path)
        inner = {n: d for n, d in found.items() if n.startswith(_IN_MODEL_FILE)}
        found = {n.removeprefix(_IN_MODEL_FILE): d for n, d in (inner or found).items()}
        return _plain({name: dataset[()] for name, dataset in found.items()})


def _plain(variables: Mapping[str, Array]) -> dict[str, Array]:
    """Return the variables as ``layer/weight``: no wrapper, no ``:0``, no part twice in a row."""
    found: dict[str, Array] = {}
    for name, array in variables.items():
        parts = [re.sub(r":\d+", "", part).removeprefix(_WRAPPER) for part in name.split("/")]
        short = "/".join(part for part, _ in groupby(parts))
        if short in found:
            raise CheckpointError(f"two variables are called {short!r}; one is {name!r}")
        found[short] = array
    return found


def _sorted_out(variables: Mapping[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return weights, and masks by the name of their weight.

    Raises:
        CheckpointError: there are no masks, or one that cannot be told whose it is, has another
            shape, or other values than 0 and 1.
    """
    stored = {name: array for name, array in variables.items() if _MASK.fullmatch(name)}
    weights = {
        name: array
        for name, array in variables.items()
        if name not in stored and not _BOOKKEEPING.fullmatch(name)
    }
    if not stored:
        raise CheckpointError(
            "none of the variables is a mask: expected names like prune_low_magnitude_dense/mask:0 "
            "or prune_low_magnitude_dense/kernel:0_mask:0. Of a model after strip_pruning, "
            "ltcore.from_checkpoint takes the masks from the zeros. There are "
            f"{list(variables)}"
        )
    masks: dict[str, Array] = {}
    for name, mask in stored.items():
        whose = _whose(name, mask, weights)
        if not np.isin(mask, (0, 1)).all():
            raise CheckpointError(f"the mask {name!r} has values that are neither 0 nor 1")
        masks[whose] = mask
    return _as_in_keras_3(weights), _as_in_keras_3(masks)


def _whose(name: str, mask: Array, weights: Mapping[str, Array]) -> str:
    """Return the weight that the mask is for."""
    found = _MASK.fullmatch(name)
    assert found is not None  # only masks come here
    layer, weight = found["layer"] or "", found["weight"]
    if weight:
        candidates = [f"{layer}{weight}"] if f"{layer}{weight}" in weights else []
    else:
        inside = (other for other in weights if other.startswith(layer))
        candidates = [other for other in inside if weights[other].shape == mask.shape]
    if len(candidates) != 1 or weights[candidates[0]].shape != mask.shape:
        shapes = {n: array.shape for n, array in weights.items() if n.startswith(layer)}
        raise CheckpointError(
            f"the mask {name!r} of shape {mask.shape} fits {candidates or 'no weight'}; expected "
            f"exactly one of {shapes}"
        )
    return candidates[0]


def _as_in_keras_3(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Return the arrays with a depthwise layer's kernel under its present name."""
    old, new = "/depthwise_kernel", "/kernel"
    separable = {name.removesuffix("/pointwise_kernel") for name in arrays}
    return {
        name.removesuffix(old) + new
        if name.endswith(old) and name.removesuffix(old) not in separable
        else name: array
        for name, array in arrays.items()
    }


def _renaming(weights: Mapping[str, Array], mapping: Mapping[str, str]) -> Callable[[str], str]:
    """Return what puts the model's layers in the place of those in ``mapping``."""
    layers = sorted({name.rpartition("/")[0] for name in weights})
    for layer in mapping:
        if not any(name.startswith(f"{layer}/") for name in weights):
            raise MatchError(f"mapping names the layer {layer!r}; the source has {layers}")

    def rename(name: str) -> str:
        for layer in sorted(mapping, key=len, reverse=True):
            if name.startswith(f"{layer}/"):
                return f"{mapping[layer]}{name.removeprefix(layer)}"
        return name

    return rename
