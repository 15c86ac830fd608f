"""What a Flax layer is: a site of a known kind with its arrays and attributes, or raw."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import jax.numpy as jnp
from flax import nnx

from ltcore_jax._layouts import DENSE, FLAT, KERNEL, PLAIN, TRANSPOSED, UPWARD, Layout, dense

Answer: TypeAlias = tuple[str, Mapping[str, Any]] | str
"""Kind and attributes of a layer, or why it is of no portable kind."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What is known of a layer.

    Attributes:
        name: a key of `ltcore.layouts.KINDS`.
        attrs: as in `ltcore.Site`.
        roles: ``{attribute of the layer: (role, layout)}``.
    """

    name: str
    attrs: Mapping[str, Any] = field(default_factory=dict)
    roles: Mapping[str, tuple[str, Layout]] = field(default_factory=dict)


def kind_of(layer: nnx.Module, names: Sequence[str]) -> Kind:
    """Return what ``layer`` is, whose own variables are called ``names``."""
    found = _answer(layer)
    if isinstance(found, str):
        return Kind("raw", {"reason": found} if found else {})
    name, attrs = found
    roles = _roles(name, layer)
    strangers = sorted(set(names) - roles.keys())
    if strangers:
        return _raw(f"a {type(layer).__name__} with arrays of its own: {', '.join(strangers)}")
    for attribute in names:
        value = getattr(layer, attribute).get_value()
        if value.ndim != _ranks(name, layer).get(attribute, value.ndim):
            return _raw(f"{attribute} has {value.ndim} axes: several layers are stacked in one")
        if not jnp.issubdtype(value.dtype, jnp.floating):
            return _raw(f"{attribute} is of {value.dtype}")
    return Kind(name, attrs, roles)


def _raw(reason: str) -> Kind:
    return Kind("raw", {"reason": reason})


def _answer(layer: nnx.Module) -> Answer:
    for cls, answer in _KINDS:
        if isinstance(layer, cls):
            if type(layer).__call__ is not cls.__call__:
                return f"{type(layer).__name__} is a {cls.__name__} with a __call__ of its own"
            return answer(layer)
    return ""


def _linear(_layer: Any) -> Answer:
    return "linear", {}


def _general(layer: Any) -> Answer:
    count = len(layer.in_features)
    if layer.batch_axis:
        return "a LinearGeneral with a batch axis has a kernel for each place along it"
    if tuple(layer.axis) != tuple(range(-count, 0)):
        return f"a LinearGeneral along axes {layer.axis}, which are not the last ones"
    return "linear", {}


def _conv(layer: Any) -> Answer:
    reason = _odd_padding(layer) or _masked(layer)
    rank = len(layer.kernel_size)
    if any(step != 1 for step in spread(layer.input_dilation, rank)):
        reason = "a Conv with input_dilation; ConvTranspose has a twin elsewhere"
    if reason:
        return reason
    groups = layer.feature_group_count
    attrs = {
        "stride": spread(layer.strides, rank),
        "dilation": spread(layer.kernel_dilation, rank),
    }
    if 1 < groups == layer.in_features:
        return "depthwise", attrs
    return "conv", attrs | {"groups": groups}


def _conv_transpose(layer: Any) -> Answer:
    if reason := _odd_padding(layer) or _masked(layer):
        return reason
    rank = len(layer.kernel_size)
    return "conv_transpose", {
        "stride": spread(layer.strides, rank),
        "dilation": spread(layer.kernel_dilation, rank),
        "groups": 1,
    }


def spread(given: Any, rank: int) -> list[int]:
    """Return one number an axis of what Flax lets one give as a number, a sequence or None."""
    if given is None or isinstance(given, int):
        return [given or 1] * rank
    return [int(size) for size in given]


def _odd_padding(layer: Any) -> str:
    if isinstance(layer.padding, str) and layer.padding not in ("SAME", "VALID", "CAUSAL"):
        return f"padding {layer.padding!r} fills in more than zeros, or depends on the backend"
    return ""


def _masked(layer: Any) -> str:
    return "" if layer.mask is None else f"a {type(layer).__name__} with a mask of its own"


def _embedding(_layer: Any) -> Answer:
    return "embedding", {}


def _batchnorm(layer: Any) -> Answer:
    if layer.axis not in (-1, (-1,)):
        return f"a BatchNorm along axis {layer.axis}, which is not the last"
    # Torch's momentum is the weight of the new value, Flax's that of the old one.
    return "batchnorm", {"eps": layer.epsilon, "momentum": round(1 - layer.momentum, 12)}


def _lastnorm(kind: str) -> Callable[[Any], Answer]:
    def answer(layer: Any) -> Answer:
        axes = (layer.reduction_axes, layer.feature_axes)
        if any(one not in (-1, (-1,)) for one in axes):
            return f"a {type(layer).__name__} along axes {axes}, other than the last"
        return kind, {"eps": layer.epsilon}

    return answer


def _groupnorm(layer: Any) -> Answer:
    if layer.reduction_axes is not None:
        return f"a GroupNorm along axes {layer.reduction_axes}"
    return "groupnorm", {"groups": layer.num_groups, "eps": layer.epsilon}


def _instancenorm(layer: Any) -> Answer:
    if layer.feature_axes not in (-1, (-1,)):
        return f"an InstanceNorm along axes {layer.feature_axes}"
    return "groupnorm", {"groups": layer.num_features, "eps": layer.epsilon}


def _prelu(_layer: Any) -> Answer:
    return "prelu", {}


_KINDS: tuple[tuple[type, Callable[[Any], Answer]], ...] = (
    (nnx.Linear, _linear),
    (nnx.LinearGeneral, _general),
    (nnx.Conv, _conv),
    (nnx.ConvTranspose, _conv_transpose),
    (nnx.Embed, _embedding),
    (nnx.BatchNorm, _batchnorm),
    (nnx.LayerNorm, _lastnorm("layernorm")),
    (nnx.RMSNorm, _lastnorm("rmsnorm")),
    (nnx.GroupNorm, _groupnorm),
    (nnx.InstanceNorm, _instancenorm),
    (nnx.PReLU, _prelu),
)

LAYERS: tuple[type, ...] = tuple(cls for cls, _ in _KINDS)
"""The layers of known kinds."""


def _roles(kind: str, layer: Any) -> Mapping[str, tuple[str, Layout]]:
    affine = {"scale": ("weight", PLAIN), "bias": ("bias", PLAIN)}
    if kind == "linear" and isinstance(layer, nnx.LinearGeneral):
        return {"kernel": ("weight", dense(len(layer.in_features))), "bias": ("bias", FLAT)}
    if kind == "linear":
        return {"kernel": ("weight", DENSE), "bias": ("bias", PLAIN)}
    if kind == "conv_transpose":
        kernel = TRANSPOSED if layer.transpose_kernel else UPWARD
        return {"kernel": ("weight", kernel), "bias": ("bias", PLAIN)}
    if kind in ("conv", "depthwise"):
        return {"kernel": ("weight", KERNEL), "bias": ("bias", PLAIN)}
    if kind == "batchnorm":
        return affine | {"mean": ("running_mean", PLAIN), "var": ("running_var", PLAIN)}
    if kind == "embedding":
        return {"embedding": ("weight", PLAIN)}
    if kind == "prelu":
        return {"negative_slope": ("weight", FLAT)}
    return affine


def _ranks(kind: str, layer: Any) -> Mapping[str, int]:
    """Return how many axes arrays have where the layer is one, not a stack made by ``vmap``."""
    if isinstance(layer, nnx.LinearGeneral):
        made = len(layer.out_features)
        return {"kernel": len(layer.in_features) + made, "bias": made}
    if kind in ("conv", "depthwise", "conv_transpose"):
        return {"kernel": len(layer.kernel_size) + 2, "bias": 1}
    if kind == "prelu":
        return {"negative_slope": 0}
    return {"kernel": 2, "embedding": 2, "bias": 1, "scale": 1, "mean": 1, "var": 1}
