"""What goes into a Keras model and comes out of it: shapes, axes, and their canonical order."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from ltcore.arrays import Array
from ltcore.axes import Labels, face_axes, spatial
from ltcore.parameters import Interface, Site, Structure
from ltcore.tracing import Trace, is_line
from ltcore_keras._engine import as_numpy
from ltcore_keras._layouts import moved_channels, to_numpy
from ltcore_keras._names import walk

BATCH = 11
"""Examples in the symbolic batch: a number that is seldom a size of anything else."""

_OPEN_SIZE = {"S": 32, "T": 16}
"""What stands for a size that the model leaves open."""


class UntraceableError(Exception):
    """Why the graph of a model cannot be told; becomes `Structure.untraced`."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One input as the model takes it: a full shape, and what its axes mean."""

    shape: tuple[int, ...]
    dtype: str
    names: tuple[str, ...]


def channels_last(model: Any) -> bool:
    """Whether the model's images have channels last: its first layer that knows says."""
    formats = (getattr(layer, "data_format", None) for _, layer in walk(model))
    found: str = next(filter(None, formats), keras.config.image_data_format())
    return found == "channels_last"


def entries(model: Any, sites: Sequence[Site], example: Any) -> list[Entry]:
    """Return the model's inputs.

    Raises:
        UntraceableError: neither an example nor the model itself says what they are.
    """
    last = channels_last(model)
    found = []
    for shape, dtype in _declared(model, sites, example):
        names = _names(len(shape), dtype, one_dimensional=is_line(sites, 0), last=last)
        sizes = [
            size or _OPEN_SIZE.get(name[0], 1)
            for size, name in zip(shape[1:], names[1:], strict=True)
        ]
        found.append(Entry((shape[0] or BATCH, *sizes), dtype, names))
    return found


def _declared(model: Any, sites: Sequence[Site], example: Any) -> list[tuple[Any, str]]:
    """Return ``(shape with None for open sizes, dtype)`` for every input."""
    if example is not None:
        if isinstance(example, dict) and not hasattr(model, "_inputs_struct"):
            raise UntraceableError("the model takes a dictionary and is not a functional model")
        leaves = keras.tree.flatten(example)
        return [((None, *leaf.shape[1:]), _dtype(leaf)) for leaf in leaves]
    if hasattr(model, "_inputs_struct") or isinstance(model, keras.Sequential):
        return [(tuple(symbol.shape), _dtype(symbol)) for symbol in model.inputs]
    config = model.get_build_config() or {}
    shapes = config.get("shapes_dict") or {"input": config.get("input_shape")}
    known = [tuple(shape) for shape in shapes.values() if isinstance(shape, tuple | list)]
    if len(known) != len(shapes) or not all(_is_shape(shape) for shape in known):
        raise UntraceableError("no example input was given, and the model does not know its inputs")
    tokens = any(site.kind == "embedding" for site in sites)
    return [
        ((None, *shape[1:]), "int32" if tokens and len(shape) == 2 else "float32")
        for shape in known
    ]


def _is_shape(shape: Sequence[Any]) -> bool:
    return all(size is None or isinstance(size, int) for size in shape)


def _dtype(leaf: Any) -> str:
    """Return ``float32`` for features and for images of any dtype, else the integer dtype."""
    name = str(keras.backend.standardize_dtype(leaf.dtype))
    return name if "int" in name and len(leaf.shape) < 3 else "float32"


def _names(rank: int, dtype: str, *, one_dimensional: bool, last: bool) -> tuple[str, ...]:
    if rank >= 4 or (rank == 3 and one_dimensional):
        space = spatial(rank - 2)
        return ("N", *space, "C") if last else ("N", "C", *space)
    if "int" in dtype:
        return ("N", *("T",) * (rank - 1))
    return ("N", *("T",) * (rank - 2), "F") if rank > 1 else ("N",)


def packed(model: Any, parts: Sequence[Any]) -> Any:
    """Return inputs in the form in which the model takes them."""
    if hasattr(model, "_inputs_struct"):
        return keras.tree.pack_sequence_as(model._inputs_struct, list(parts))
    return parts[0] if len(parts) == 1 else list(parts)


def input_face(
    entry: Entry, index: int, trace: Trace, sites: Sequence[Site], *, last: bool
) -> Interface:
    """Return input ``index`` in canonical axes.

    Raises:
        UntraceableError: its axes have no canonical order.
    """
    if trace.out_group(f"@{index}") is not None:
        raise UntraceableError(
            f"the features of input {index} become channels and space, in an order that is the "
            "framework's own"
        )
    vocabulary = trace.vocabulary(index, sites)
    if vocabulary is None and "int" not in entry.dtype:
        return _face(entry.shape, entry.dtype, entry.names, last=last)
    # Many declare tokens as floats, which their embedding casts.
    dtype = entry.dtype if "int" in entry.dtype else "int32"
    names = ("N", *("T",) * (len(entry.names) - 1))
    return replace(_face(entry.shape, dtype, names, last=last), vocabulary=vocabulary or 2)


def output_face(
    shape: Sequence[int], labels: Labels, trace: Trace, sites: Sequence[Site], *, last: bool
) -> Interface:
    """Return an output in canonical axes.

    Raises:
        UntraceableError: its axes have no canonical order.
    """
    if None in shape:
        raise UntraceableError("the size of an output of the model depends on values")
    if len(labels) > 3 or (len(labels) == 3 and is_line(sites, -1)):
        labels = trace.as_image(labels, -1 if last else 1)
    if any(trace.group_of(axis) is not None for axis in labels if face_axes((axis,)) != ("?",)):
        raise UntraceableError("an output of the model has channels and space in one axis")
    return _face(shape, "float32", face_axes(labels), last=last)


def _face(shape: Sequence[int], dtype: str, axes: tuple[str, ...], *, last: bool) -> Interface:
    sizes = (0, *shape[1:])
    if len(axes) > 2 and axes[1:] == (*spatial(len(axes) - 2), "C") and last:
        return Interface(("N", "C", *axes[1:-1]), (0, sizes[-1], *sizes[1:-1]), dtype)
    if len(axes) > 2 and "C" in axes and (last or axes[1] != "C"):
        raise UntraceableError(f"a face of the model has its axes in the unusual order {axes}")
    return Interface(axes, sizes, dtype)


def native_input(array: Array, face: Interface, *, last: bool) -> Any:
    """Return a canonical input batch as the model takes it."""
    moved = moved_channels(array, first=False) if last and _has_channels(face) else array
    return keras.ops.convert_to_tensor(np.ascontiguousarray(moved))


def example_of(structure: Structure, model: Any) -> Any:
    """Return made-up inputs of the shapes that the structure tells; None where it tells none."""
    if structure.inputs is None:
        return None
    last = channels_last(model)
    parts = [
        as_numpy(native_input(np.zeros((1, *face.shape[1:]), face.dtype), face, last=last))
        for face in structure.inputs
    ]
    return packed(model, parts)


def canonical_output(tensor: Any, face: Interface, *, last: bool) -> Array:
    """Return an output in canonical axes, owned; half precision comes as float32."""
    array = to_numpy(tensor)
    if array.dtype == np.float16:
        array = array.astype(np.float32)
    return moved_channels(array, first=True) if last and _has_channels(face) else array.copy()


def _has_channels(face: Interface) -> bool:
    return len(face.axes) > 2 and face.axes[1] == "C"
