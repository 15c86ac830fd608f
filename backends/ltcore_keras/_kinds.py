"""What a Keras layer is: the sites it holds, with their arrays and attributes.

A class in the table is known as long as the layer keeps to it. Options that make it compute what
no other framework has, weights beside those of the class, LoRA and quantization make it ``raw``:
prunable by name and held like any other, but not carried over. ``reason`` says why.
"""

import re
from collections.abc import Callable
from typing import Any

from keras import layers as kl

from ltcore_keras._einsum import Equation, EquationError
from ltcore_keras._found import Found, Piece, UnlikeError, present
from ltcore_keras._layouts import CHANNELS_LAST, DENSE, DEPTHWISE, FLAT, KERNEL, PLAIN, Layout
from ltcore_keras._places import Place
from ltcore_keras._recurrent import gru, lstm, simple_rnn


def found_in(layer: Any, place: Place, own: list[Any]) -> list[Found]:
    """Return the sites that ``layer`` holds, given its place and the weights it ``own``-s."""
    read = _reader(layer)
    if not own or read is None:
        return [_raw(layer, own, "")] if own else []
    try:
        _check_plain(layer, place)
        found = read(layer, place)
        named = {id(piece.variable) for one in found for piece in one.pieces.values()}
        if named != {id(variable) for variable in own}:
            raise UnlikeError("it has weights beside those of its class")
    except (UnlikeError, EquationError) as error:
        return [_raw(layer, own, str(error))]
    return found


def is_known(layer: Any) -> bool:
    """Whether a layer is of a class in the table."""
    return _reader(layer) is not None


def _reader(layer: Any) -> "_Reader | None":
    return next((read for classes, read in _READERS if isinstance(layer, classes)), None)


def _check_plain(layer: Any, place: Place) -> None:
    if place.reason:
        raise UnlikeError(place.reason)
    if getattr(layer, "lora_enabled", False):
        raise UnlikeError("LoRA is enabled")
    mode = getattr(layer, "quantization_mode", None)
    if mode:
        raise UnlikeError(f"it is quantized to {mode}")


def _raw(layer: Any, own: list[Any], reason: str) -> Found:
    trained = {id(variable) for variable in layer._trainable_variables}
    pieces: dict[str, Piece] = {}
    states = []
    for variable in own:
        role = unique(re.sub(r"[^A-Za-z0-9_\-/]", "_", variable.name), set(pieces))
        pieces[role] = Piece(variable)
        if id(variable) not in trained:
            states.append(role)
    attrs = {"reason": reason} if reason else {}
    # A layer of a known class is an obstacle, whatever its arrays are.
    return Found("raw", pieces, attrs, states=tuple(states), constants=not reason)


def unique(name: str, taken: set[str]) -> str:
    """Return ``name``, numbered if it is ``taken``."""
    if name not in taken:
        return name
    number = 1
    while f"{name}_{number}" in taken:
        number += 1
    return f"{name}_{number}"


def _dense(layer: Any, place: Place) -> list[Found]:
    pieces = present(weight=(layer.kernel, DENSE), bias=(layer.bias, PLAIN))
    return [Found("linear", pieces)]


def _einsum(layer: Any, place: Place) -> list[Found]:
    equation = Equation.of(layer)
    pieces = present(weight=(layer.kernel, equation.layout), bias=(layer.bias, FLAT))
    attrs = {"heads": place.heads} if place.part else {}
    return [Found("linear", pieces, attrs, part=place.part)]


def _window(layer: Any) -> dict[str, Any]:
    return {"stride": list(layer.strides), "dilation": list(layer.dilation_rate)}


def _conv(layer: Any, place: Place) -> list[Found]:
    pieces = present(weight=(layer.kernel, KERNEL), bias=(layer.bias, PLAIN))
    if 1 < layer.groups == layer.groups * layer.kernel.shape[-2]:
        return [Found("depthwise", pieces, _window(layer))]
    return [Found("conv", pieces, _window(layer) | {"groups": layer.groups})]


def _depthwise(layer: Any, place: Place) -> list[Found]:
    pieces = present(weight=(layer.kernel, DEPTHWISE), bias=(layer.bias, PLAIN))
    return [_over_channels(layer, layer.kernel, pieces)]


def _over_channels(layer: Any, kernel: Any, pieces: dict[str, Piece], suffix: str = "") -> Found:
    """Return a depthwise site; over one channel it is a plain convolution."""
    if kernel.shape[-2] == 1:
        return Found("conv", pieces, _window(layer) | {"groups": 1}, suffix)
    return Found("depthwise", pieces, _window(layer), suffix)


def _separable(layer: Any, place: Place) -> list[Found]:
    over = present(weight=(layer.depthwise_kernel, DEPTHWISE))
    across = present(weight=(layer.pointwise_kernel, KERNEL), bias=(layer.bias, PLAIN))
    ones = [1] * len(layer.strides)
    return [
        _over_channels(layer, layer.depthwise_kernel, over, ".depthwise"),
        Found("conv", across, {"stride": ones, "dilation": ones, "groups": 1}, ".pointwise"),
    ]


def _conv_transpose(layer: Any, place: Place) -> list[Found]:
    pieces = present(weight=(layer.kernel, KERNEL), bias=(layer.bias, PLAIN))
    padding = layer.output_padding
    attrs = {} if padding is None else {"output_padding": list(padding)}
    return [Found("conv_transpose", pieces, _window(layer) | attrs)]


def _embedding(layer: Any, place: Place) -> list[Found]:
    return [Found("embedding", present(weight=(layer.embeddings, PLAIN)))]


def _reversible(layer: Any, place: Place) -> list[Found]:
    found = _embedding(layer, place)
    if layer.tie_weights:
        return found
    kernel = present(weight=(layer.reverse_embeddings, DENSE))
    return [*found, Found("linear", kernel, suffix=".reverse")]


def _batchnorm(layer: Any, place: Place) -> list[Found]:
    pieces = present(
        weight=(layer.gamma, PLAIN),
        bias=(layer.beta, PLAIN),
        running_mean=(layer.moving_mean, PLAIN),
        running_var=(layer.moving_variance, PLAIN),
    )
    # Torch's momentum is the weight of the new value, Keras's that of the old one.
    attrs = {"eps": layer.epsilon, "momentum": round(1 - layer.momentum, 12)}
    return [Found("batchnorm", pieces, attrs, states=("running_mean", "running_var"))]


def _layernorm(layer: Any, place: Place) -> list[Found]:
    if getattr(layer, "rms_scaling", False):
        raise UnlikeError("rms_scaling divides by the variance, not by the mean square")
    layout = _norm_layout(layer)
    pieces = present(weight=(layer.gamma, layout), bias=(layer.beta, layout))
    return [Found("layernorm", pieces, {"eps": layer.epsilon})]


def _rmsnorm(layer: Any, place: Place) -> list[Found]:
    pieces = present(weight=(layer.scale, _norm_layout(layer)))
    return [Found("rmsnorm", pieces, {"eps": layer.epsilon})]


def _norm_layout(layer: Any) -> Layout:
    axes = norm_axes(layer)
    if axes is None:
        raise UnlikeError("it normalizes over other axes than the last ones")
    return CHANNELS_LAST if len(axes) > 1 else PLAIN


def norm_axes(layer: Any) -> tuple[int, ...] | None:
    """Return a layer norm's axes counted from the end; None unless they are the last ones."""
    axes = list(layer.axis) if isinstance(layer.axis, list | tuple) else [layer.axis]
    shape = (layer.get_build_config() or {}).get("input_shape")
    rank = len(shape) if shape else 0
    negative = tuple(axis if axis < 0 else axis - rank for axis in axes)
    return negative if negative == tuple(range(-len(axes), 0)) else None


def _groupnorm(layer: Any, place: Place) -> list[Found]:
    pieces = present(weight=(layer.gamma, PLAIN), bias=(layer.beta, PLAIN))
    return [Found("groupnorm", pieces, {"groups": layer.groups, "eps": layer.epsilon})]


def _prelu(layer: Any, place: Place) -> list[Found]:
    axis = slope_axis(layer)
    if axis not in (None, 1, -1):
        raise UnlikeError("its slopes differ along an axis that is not the channels")
    return [Found("prelu", present(weight=(layer.alpha, FLAT)))]


def slope_axis(layer: Any) -> int | None:
    """Return the axis along which a PReLU's slopes differ: None, 1, -1, or 0 for another."""
    wide = [axis for axis, size in enumerate(layer.alpha.shape, start=1) if size != 1]
    if not wide:
        return None
    if len(wide) > 1:
        return 0
    return -1 if wide[0] == len(layer.alpha.shape) else wide[0] if wide[0] == 1 else 0


_Reader = Callable[[Any, Place], list[Found]]
_READERS: list[tuple[tuple[type, ...], _Reader]] = [
    ((kl.Dense,), _dense),
    ((kl.EinsumDense,), _einsum),
    ((kl.Conv1D, kl.Conv2D, kl.Conv3D), _conv),
    ((kl.DepthwiseConv1D, kl.DepthwiseConv2D), _depthwise),
    ((kl.SeparableConv1D, kl.SeparableConv2D), _separable),
    ((kl.Conv1DTranspose, kl.Conv2DTranspose, kl.Conv3DTranspose), _conv_transpose),
    *([((kl.ReversibleEmbedding,), _reversible)] if hasattr(kl, "ReversibleEmbedding") else []),
    ((kl.Embedding,), _embedding),
    ((kl.BatchNormalization,), _batchnorm),
    ((kl.LayerNormalization,), _layernorm),
    *([((kl.RMSNormalization,), _rmsnorm)] if hasattr(kl, "RMSNormalization") else []),
    ((kl.GroupNormalization,), _groupnorm),
    ((kl.PReLU,), _prelu),
    ((kl.SimpleRNNCell,), simple_rnn),
    ((kl.LSTMCell,), lstm),
    ((kl.GRUCell,), gru),
]
