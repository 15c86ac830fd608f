"""What a torch module is: sites of known kinds with their arrays and attributes, or raw."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm

from ltcore_torch._attention import attention_parts
from ltcore_torch._parts import Part
from ltcore_torch._recurrent import cell_parts, recurrent_parts
from ltcore_torch._slots import Slot

Answer: TypeAlias = tuple[str, Mapping[str, Any]] | str
"""Kind and attributes of a layer, or why it is of no portable kind."""

_AFFINE = ("weight", "bias")
_ROLES = {
    "embedding": ("weight",),
    "rmsnorm": ("weight",),
    "prelu": ("weight",),
    "batchnorm": (*_AFFINE, "running_mean", "running_var", "num_batches_tracked"),
}
_NATIVE_ONLY = ("num_batches_tracked",)
_REAL = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def parts_of(module: nn.Module) -> tuple[Part, ...]:
    """Return the sites that a module's own arrays make; none if it has no arrays."""
    own = _own_arrays(module)
    if not own:
        return ()
    found = _known_parts(module)
    reason = found if isinstance(found, str) else _obstacle(module, own, found)
    if isinstance(found, str) or reason:
        arrays = {name: Slot(module, name) for name in own}
        attrs = {"reason": reason} if reason else {}
        return (Part("raw", arrays, attrs, native_only=frozenset(module._buffers)),)
    return tuple(_without_absent(part) for part in found)


def _own_arrays(module: nn.Module) -> list[str]:
    places = (*module._parameters.items(), *module._buffers.items())
    return [name for name, tensor in places if tensor is not None]


def _known_parts(module: nn.Module) -> tuple[Part, ...] | str:
    """Return the parts of a layer of a known kind; else why it is none, as far as one can say."""
    for cls, make in _COMPOSED:
        if isinstance(module, cls):
            return make(module)
    for classes, answer in _SINGLE:
        if isinstance(module, classes):
            told = answer(module)
            if isinstance(told, str):
                return told
            kind, attrs = told
            arrays = {role: Slot(module, role) for role in _ROLES.get(kind, _AFFINE)}
            return (Part(kind, arrays, attrs, native_only=frozenset(_NATIVE_ONLY)),)
    return ""


def _obstacle(module: nn.Module, own: list[str], parts: tuple[Part, ...]) -> str:
    """Return why the arrays are not just those that the kind promises; empty if they are."""
    slots = [slot for part in parts for slot in part.arrays.values()]
    computed = sorted({slot.attribute for slot in slots if not slot.registered})
    if computed:  # torch.nn.utils.parametrize and its elders keep the real weights elsewhere
        return f"{', '.join(computed)} is computed from other arrays"
    mine = {slot.attribute for slot in slots if slot.module is module}
    strangers = sorted(set(own) - mine)
    if strangers:
        return f"a {type(module).__name__} with arrays of its own: {', '.join(strangers)}"
    tensors = [slot.found for slot in slots if slot.attribute not in _NATIVE_ONLY]
    odd = sorted({str(t.dtype) for t in tensors if t is not None and t.dtype not in _REAL})
    return f"its arrays are of {', '.join(odd)}" if odd else ""


def _without_absent(part: Part) -> Part:
    arrays = {role: slot for role, slot in part.arrays.items() if slot.found is not None}
    return Part(part.kind, arrays, part.attrs, part.suffix, part.part, part.native_only)


def _linear(_layer: nn.Linear) -> Answer:
    return "linear", {}


def _conv(layer: _ConvNd) -> Answer:
    attrs = {
        "stride": list(layer.stride),
        "dilation": list(layer.dilation),
        "padding": padding_of(layer),
        **_padding_mode(layer),
    }
    if 1 < layer.groups == layer.in_channels:
        return "depthwise", attrs
    return "conv", attrs | {"groups": layer.groups}


def padding_of(layer: _ConvNd) -> list[list[int]]:
    """Return how much is added before and after each axis of space."""
    if layer.padding == "same":
        spans = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        return [[span // 2, span - span // 2] for span in spans]
    if layer.padding == "valid":
        return [[0, 0] for _ in layer.kernel_size]
    return [[int(size), int(size)] for size in layer.padding]


def _padding_mode(layer: _ConvNd) -> dict[str, Any]:
    return {} if layer.padding_mode == "zeros" else {"padding_mode": layer.padding_mode}


def _conv_transpose(layer: _ConvTransposeNd) -> Answer:
    extra = [int(size) for size in layer.output_padding]
    # What is cut from the full result; output_padding gives some of it back at the end.
    sizes = (int(size) for size in layer.padding)
    crop = [[size, size - more] for size, more in zip(sizes, extra, strict=True)]
    return "conv_transpose", {
        "stride": list(layer.stride),
        "dilation": list(layer.dilation),
        "groups": layer.groups,
        "output_padding": extra,
        "padding": crop,
    }


def _embedding(layer: nn.Embedding) -> Answer:
    if layer.max_norm is not None:
        return "an Embedding with max_norm rescales its weights as it reads them"
    return "embedding", {}


def _batchnorm(layer: _BatchNorm) -> Answer:
    if layer.running_mean is None:
        return "a batch norm without running statistics normalizes by the batch at hand"
    return "batchnorm", {"eps": layer.eps, "momentum": layer.momentum}


def _instancenorm(layer: _InstanceNorm) -> Answer:
    if layer.track_running_stats:
        return "an instance norm that keeps running statistics computes another function"
    return "groupnorm", {"groups": layer.num_features, "eps": layer.eps}


def _groupnorm(layer: nn.GroupNorm) -> Answer:
    return "groupnorm", {"groups": layer.num_groups, "eps": layer.eps}


def _layernorm(layer: nn.LayerNorm) -> Answer:
    return "layernorm", {"eps": layer.eps}


def _rmsnorm(layer: nn.RMSNorm) -> Answer:
    eps = layer.eps
    return "rmsnorm", {"eps": torch.finfo(layer.weight.dtype).eps if eps is None else eps}


def _prelu(_layer: nn.PReLU) -> Answer:
    return "prelu", {}


_SINGLE: tuple[tuple[Any, Callable[[Any], Answer]], ...] = (
    (nn.Linear, _linear),
    (_ConvTransposeNd, _conv_transpose),
    (_ConvNd, _conv),
    (nn.Embedding, _embedding),
    (_BatchNorm, _batchnorm),
    (_InstanceNorm, _instancenorm),
    (nn.LayerNorm, _layernorm),
    (nn.GroupNorm, _groupnorm),
    (nn.RMSNorm, _rmsnorm),
    (nn.PReLU, _prelu),
)
_COMPOSED: tuple[tuple[Any, Callable[[Any], tuple[Part, ...] | str]], ...] = (
    (nn.MultiheadAttention, attention_parts),
    (nn.RNNBase, recurrent_parts),
    (nn.RNNCellBase, cell_parts),
)
