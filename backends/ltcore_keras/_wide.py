"""A model computed in float64 at weights that are not its own, and differentiated there.

The model is neither copied nor written to: its variables are looked up in a scope, and for the
time of the call its layers have another dtype policy. Whoever asks for float32 by name on the way
(an input of a functional model, a ``cast`` in a layer) gets float64. What narrows the numbers in
a way of its own is found by what leaves it, and refused.
"""

import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import keras
import numpy as np
from keras.src import backend
from keras.src.backend.common.dtypes import BIT64_TO_BIT32_DTYPE

from ltcore.arrays import Array
from ltcore.errors import CapabilityError
from ltcore_keras._attention import attention
from ltcore_keras._engine import ENGINE
from ltcore_keras._patch import Patch, raised_plainly

_WIDE = "float64"
_NARROW = ("float16", "bfloat16", "float32")
_lock = threading.RLock()


def wide_pullback(
    model: Any,
    variables: Sequence[Any],
    at: Sequence[tuple[Any, Array]],
    inner: Callable[[], Any],
) -> list[Array]:
    """Return the gradient of ``inner()`` for each of ``variables``, all of it in float64.

    Args:
        model: what ``inner`` calls.
        variables: some of those in ``at``.
        at: pairs of a variable and its value.
        inner: returns a scalar.

    Raises:
        CapabilityError: a layer is quantized, or does not compute in float64; names it.
    """
    refused: list[CapabilityError] = []
    with _lock, raised_plainly(refused), ENGINE.float64(), _widened(model, refused):
        values = {id(variable): _tensor(array) for variable, array in at}
        wanted = [id(variable) for variable in variables]

        def total(tensors: list[Any]) -> Any:
            with _Scope(values | dict(zip(wanted, tensors, strict=True))):
                return inner()

        found = ENGINE.pullback(total, [values[key] for key in wanted])
        return [ENGINE.as_numpy(gradient) for gradient in found]


class _Scope(keras.StatelessScope):  # type: ignore[misc]  # keras has no types
    """Has variables hold other values, of a dtype of their own, and drops what is written."""

    def __init__(self, values: Mapping[int, Any]) -> None:
        super().__init__(initialize_variables=False)
        self.state_mapping = dict(values)


def _tensor(array: Array) -> Any:
    wide = array.astype(_WIDE) if np.issubdtype(array.dtype, np.floating) else array
    return keras.ops.convert_to_tensor(wide)


@contextmanager
def _widened(model: Any, refused: list[CapabilityError]) -> Iterator[None]:
    """Have ``model`` compute in float64, in this thread; ``refused`` gets what does not."""
    thread = threading.get_ident()
    with ExitStack() as stack:
        stack.enter_context(_policies(model))
        stack.enter_context(_floats())
        stack.enter_context(backend.AutocastScope(_WIDE))
        patches: list[tuple[Any, str, Callable[..., Any]]] = [
            (keras.Operation, "__call__", functools.partial(_checked, refused))
        ]
        for module in (backend, backend.core):  # the second is what operations know
            patches += [(module, "cast", _wide_dtype), (module, "convert_to_tensor", _wide_dtype)]
        if hasattr(backend.nn, "dot_product_attention"):  # since Keras 3.7
            patches.append((backend.nn, "dot_product_attention", attention))
        for owner, name, around in patches:
            stack.callback(Patch(owner, name, _in_thread(thread, around)).remove)
        yield


def _in_thread(thread: int, around: Callable[..., Any]) -> Callable[..., Any]:
    def here(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        mine = threading.get_ident() == thread
        return (around if mine else _plain)(original, *args, **kwargs)

    return here


def _plain(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return original(*args, **kwargs)


def _wide_dtype(original: Callable[..., Any], x: Any, dtype: Any = None, **kwargs: Any) -> Any:
    asked = None if dtype is None else keras.backend.standardize_dtype(dtype)
    return original(x, _WIDE if asked in _NARROW else dtype, **kwargs)


def _checked(
    refused: list[CapabilityError],
    original: Callable[..., Any],
    operation: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    outputs = original(operation, *args, **kwargs)
    leaves = filter(keras.ops.is_tensor, keras.tree.flatten(outputs))
    for dtype in {keras.backend.standardize_dtype(leaf.dtype) for leaf in leaves}:
        if dtype in _NARROW:
            error = CapabilityError(
                f"{type(operation).__name__} {operation.name!r} computes in {dtype} also where "
                "float64 is asked for; use an operation of keras.ops, or the layer's compute_dtype"
            )
            refused.append(error)
            raise error
    return outputs


@contextmanager
def _policies(model: Any) -> Iterator[None]:
    """Give every layer that computes in floats the policy ``float64``."""
    layers = [one for one in model._flatten_layers() if _is_float(one)]
    for layer in layers:
        if layer.quantization_mode is not None:
            raise CapabilityError(
                f"layer {layer.name!r} is quantized to {layer.quantization_mode}; only layers "
                "with float weights can be computed in float64"
            )
    # The public setter would write into a policy that layers may share.
    before = [(layer, layer._dtype_policy) for layer in layers]
    try:
        for layer in layers:
            layer._dtype_policy = keras.DTypePolicy(_WIDE)
        yield
    finally:
        for layer, policy in before:
            layer._dtype_policy = policy


def _is_float(layer: Any) -> bool:
    return bool(keras.backend.is_float_dtype(layer.compute_dtype))


@contextmanager
def _floats() -> Iterator[None]:
    """Have Python's floats become float64, and float64 stay what it is in operations."""
    before, narrowed = keras.config.floatx(), dict(BIT64_TO_BIT32_DTYPE)
    keras.config.set_floatx(_WIDE)
    BIT64_TO_BIT32_DTYPE[_WIDE] = _WIDE
    try:
        yield
    finally:
        BIT64_TO_BIT32_DTYPE.update(narrowed)
        keras.config.set_floatx(before)
