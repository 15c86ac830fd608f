"""What goes into a model and comes out of it: images have channels last, canonically first."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from ltcore.arrays import Array
from ltcore.axes import Labels, face_axes, spatial
from ltcore.parameters import Interface, Site, Structure
from ltcore.tracing import Trace, is_line
from ltcore_jax._layouts import as_numpy, channels_first, channels_last


class UntraceableError(Exception):
    """Why the graph of a model cannot be told; becomes `Structure.untraced`."""


def input_names(shape: Sequence[int], dtype: str, sites: Sequence[Site]) -> tuple[str, ...]:
    """Return what the axes of an input are called, in the order in which it has them."""
    rank = len(shape)
    if rank >= 4 or (rank == 3 and is_line(sites, 0)):
        return ("N", *spatial(rank - 2), "C")
    if "int" in dtype:
        return ("N", *("T",) * (rank - 1))
    return ("N", *("T",) * (rank - 2), "F") if rank > 1 else ("N",) * rank


def face_dtype(dtype: Any, rank: int) -> str:
    """Return ``float32`` for features and for images of any dtype, else the integer dtype."""
    name = str(dtype)
    return name if ("int" in name or name == "bool") and rank < 3 else "float32"


def input_face(
    shape: Sequence[int], dtype: str, index: int, trace: Trace, sites: Sequence[Site]
) -> Interface:
    """Return input ``index`` in canonical axes.

    Raises:
        UntraceableError: its features have no order that frameworks share.
    """
    if trace.out_group(f"@{index}") is not None:
        raise UntraceableError(
            f"input {index} is one axis of features that become channels and space inside, so "
            "their order depends on the framework; let the model take an image"
        )
    names = input_names(shape, dtype, sites)
    vocabulary = trace.vocabulary(index, sites)
    if dtype != "float32":
        vocabulary = vocabulary or 2
    return _face(shape, names, dtype, vocabulary)


def output_face(
    shape: Sequence[int], labels: Labels, trace: Trace, sites: Sequence[Site]
) -> Interface:
    """Return an output in canonical axes.

    Raises:
        UntraceableError: an axis has channels and space in it.
    """
    if len(shape) > 3 or (len(shape) == 3 and is_line(sites, -1)):
        labels = trace.as_image(labels, -1)
    axes = face_axes(labels)
    pairs = zip(labels, axes, strict=True)
    if any(trace.group_of(axis) is not None for axis, name in pairs if name != "?"):
        raise UntraceableError("an output of the model has channels and space in one axis")
    return _face(shape, axes, "float32", None)


def _face(
    shape: Sequence[int], axes: tuple[str, ...], dtype: str, vocabulary: int | None
) -> Interface:
    sizes = (0, *shape[1:])
    if len(axes) > 2 and axes[1:] == (*spatial(len(axes) - 2), "C"):
        axes, sizes = ("N", "C", *axes[1:-1]), (0, sizes[-1], *sizes[1:-1])
    elif len(axes) > 2 and "C" in axes:
        raise UntraceableError(f"an input or output has its axes in the unusual order {axes}")
    return Interface(axes, sizes, dtype, vocabulary)


def native_inputs(
    structure: Structure, inputs: Sequence[Array], dtype: Any = None
) -> tuple[Any, ...]:
    """Return canonical input batches as the model takes them; floats in ``dtype`` if given."""
    faces = structure.inputs or (None,) * len(inputs)
    moved = [
        channels_last(array) if face is not None and _has_channels(face) else array
        for array, face in zip(inputs, faces, strict=False)
    ]
    return tuple(
        jnp.asarray(np.array(one), dtype if np.asarray(one).dtype.kind == "f" else None)
        for one in [*moved, *inputs[len(moved) :]]
    )


def native_output(structure: Structure, index: int, array: Array) -> Array:
    """Return a canonical array of the shape of output ``index`` as the model makes it."""
    face = _output(structure, index)
    return channels_last(array) if face is not None and _has_channels(face) else array


def canonical_output(structure: Structure, index: int, value: Any) -> Array:
    """Return output ``index`` in canonical axes, owned; half precision comes as float32."""
    array = as_numpy(value)
    array = array.astype(np.float32) if array.dtype == np.float16 else array
    face = _output(structure, index)
    if face is not None and _has_channels(face):
        return channels_first(array).copy()
    return np.array(array, order="C", copy=True)


def _output(structure: Structure, index: int) -> Interface | None:
    outputs = structure.outputs or ()
    return outputs[index] if index < len(outputs) else None


def _has_channels(face: Interface) -> bool:
    return len(face.axes) > 2 and face.axes[1] == "C"
