"""A Keras model as sites: what each layer is, and names that follow from structure alone.

Keras numbers the layers of a process ("dense_7"), so a second build has other names. Here a level
is the layer's own name if the user chose it, else its class with an ordinal among its siblings.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from keras import layers as kl

from ltcore.errors import ModelNotBuiltError
from ltcore.parameters import Role, Site
from ltcore_keras._layouts import (
    CHANNELS_LAST,
    DENSE,
    DEPTHWISE,
    KERNEL,
    PLAIN,
    Layout,
    canonical_shape,
)


@dataclass(frozen=True, slots=True)
class Slot:
    """Where an array lives, and how it is laid out there."""

    layer: Any
    variable: Any
    layout: Layout


@dataclass(frozen=True, slots=True)
class Family:
    """Layers of one kind.

    Attributes:
        kind: a key of `ltcore.layouts.KINDS`.
        classes: the Keras classes; subclasses count.
        roles: ``{role: attribute of the layer}``.
        attrs: ``{attribute as in torch: attribute of the layer}``.
        layout: of the role ``weight``.
    """

    kind: str
    classes: tuple[type, ...]
    roles: Mapping[str, str]
    attrs: Mapping[str, str]
    layout: Layout


_KERNEL_ROLES = {"weight": "kernel", "bias": "bias"}
_WINDOW = {"stride": "strides", "dilation": "dilation_rate", "padding": "padding"}
_AFFINE = {"weight": "gamma", "bias": "beta"}

FAMILIES = (
    Family("linear", (kl.Dense,), _KERNEL_ROLES, {}, DENSE),
    Family(
        "conv",
        (kl.Conv1D, kl.Conv2D, kl.Conv3D),
        _KERNEL_ROLES,
        {**_WINDOW, "groups": "groups"},
        KERNEL,
    ),
    Family(
        "depthwise", (kl.DepthwiseConv1D, kl.DepthwiseConv2D), _KERNEL_ROLES, _WINDOW, DEPTHWISE
    ),
    Family(
        "conv_transpose",
        (kl.Conv1DTranspose, kl.Conv2DTranspose, kl.Conv3DTranspose),
        _KERNEL_ROLES,
        {**_WINDOW, "output_padding": "output_padding"},
        KERNEL,
    ),
    Family(
        "batchnorm",
        (kl.BatchNormalization,),
        {**_AFFINE, "running_mean": "moving_mean", "running_var": "moving_variance"},
        {"eps": "epsilon", "momentum": "momentum"},
        PLAIN,
    ),
    Family("layernorm", (kl.LayerNormalization,), _AFFINE, {"eps": "epsilon"}, PLAIN),
    Family("embedding", (kl.Embedding,), {"weight": "embeddings"}, {}, PLAIN),
)
_STATE = ("running_mean", "running_var")


def sublayers(layer: Any) -> list[Any]:
    """Return the layers directly inside ``layer``, in its own order."""
    found: list[Any] = layer._flatten_layers(include_self=False, recursive=False)
    return found


def walk(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield ``(name, layer)``, parents first, every layer once."""
    seen: set[int] = set()

    def visit(name: str, layer: Any) -> Iterator[tuple[str, Any]]:
        seen.add(id(layer))
        yield name or snake_case(type(layer)), layer
        children = sublayers(layer)
        for part, child in zip(_parts(children), children, strict=True):
            if id(child) not in seen:
                yield from visit(f"{name}.{part}" if name else part, child)

    yield from visit("", model)


def snake_case(cls: type) -> str:
    """Return the name that Keras gives to the first layer of this class."""
    name = re.sub(r"\W+", "", cls.__name__)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def _parts(layers: list[Any]) -> list[str]:
    """Return a unique name for each of ``layers``, which are siblings."""
    ordinals: Counter[str] = Counter()
    taken: set[str] = set()
    parts = []
    for layer in layers:
        # Bidirectional puts its own word before the name of what it wraps.
        auto = rf"((?:forward_|backward_)?{re.escape(snake_case(type(layer)))})(_\d+)?"
        numbered = re.fullmatch(auto, layer.name)
        if numbered:
            base = numbered[1]
            part = f"{base}_{ordinals[base]}" if ordinals[base] else base
            ordinals[base] += 1
        else:
            part = re.sub(r"[^A-Za-z0-9_.\-/]", "_", layer.name)
        parts.append(unique(part, taken))
        taken.add(parts[-1])
    return parts


def unique(name: str, taken: set[str]) -> str:
    """Return ``name``, numbered if it is ``taken``."""
    if name not in taken:
        return name
    number = 1
    while f"{name}_{number}" in taken:
        number += 1
    return f"{name}_{number}"


def sites_of(model: Any) -> tuple[tuple[Site, ...], dict[str, Slot]]:
    """Return the sites in the model's order, and where each of their arrays lives.

    Raises:
        ModelNotBuiltError: the model has no weights yet.
    """
    _check_built(model)
    sites: dict[str, Site] = {}
    slots: dict[str, Slot] = {}
    owners: dict[int, str] = {}
    for path, layer in walk(model):
        kind, found = arrays_of(layer)
        name = unique(path, set(sites))
        roles = []
        for role, (variable, layout, state) in found.items():
            # Like ``variable.path``, but that has the process's counters in it.
            native = f"{name.replace('.', '/')}/{variable.name}"
            owner = owners.setdefault(id(variable), f"{name}.{role}")
            if owner != f"{name}.{role}":
                _add_alias(sites, owner, native)
                continue
            shape = canonical_shape(layout, tuple(variable.shape))
            roles.append(Role(role, native, shape, variable.dtype, state))
            slots[f"{name}.{role}"] = Slot(layer, variable, layout)
        if roles:
            sites[name] = Site(name, kind, tuple(roles), _attrs(kind, layer))
    return tuple(sites.values()), slots


def _check_built(model: Any) -> None:
    unbuilt = [layer.name for _, layer in walk(model) if not layer.built]
    if not model.built or (unbuilt and not model.weights):
        raise ModelNotBuiltError(
            f"model {model.name!r} has no weights yet (not built: {unbuilt[:5]}); call it once on "
            "real input, or give example=, one input batch"
        )


def _add_alias(sites: dict[str, Site], owner: str, native: str) -> None:
    """Note that an array that was met before is also in another layer."""
    name, _, role = owner.rpartition(".")
    site = sites.get(name)
    if site:
        roles = tuple(
            replace(r, aliases=(*r.aliases, native)) if r.name == role else r for r in site.roles
        )
        sites[name] = replace(site, roles=roles)


def kind_of(layer: Any) -> str:
    """Return the layer's kind; ``raw`` for what ltcore does not know for certain."""
    return arrays_of(layer)[0]


def arrays_of(layer: Any) -> tuple[str, dict[str, tuple[Any, Layout, bool]]]:
    """Return the kind, and ``{role: (variable, layout, is a buffer)}`` of its own arrays."""
    own = own_variables(layer)
    family = next((f for f in FAMILIES if isinstance(layer, f.classes)), None)
    if family is None or not own:
        return "raw", _raw(layer, own)
    found = {role: getattr(layer, name, None) for role, name in family.roles.items()}
    present = {role: variable for role, variable in found.items() if variable is not None}
    # Not just what the class promises: LoRA, quantization or a subclass's own weights.
    if {id(v) for v in present.values()} != {id(v) for v in own}:
        return "raw", _raw(layer, own)
    kind, layout = _variant(family, layer)
    if kind == "raw":
        return "raw", _raw(layer, own)
    weights = {role: layout if role == "weight" else PLAIN for role in present}
    if kind == "layernorm":
        weights = dict.fromkeys(present, layout)
    return kind, {role: (v, weights[role], role in _STATE) for role, v in present.items()}


def _variant(family: Family, layer: Any) -> tuple[str, Layout]:
    """Return kind and layout where they depend on the layer's options."""
    if family.kind == "conv" and 1 < layer.groups == layer.groups * layer.kernel.shape[-2]:
        return "depthwise", KERNEL
    if family.kind != "layernorm":
        return family.kind, family.layout
    axes = norm_axes(layer)
    if axes is None or getattr(layer, "rms_scaling", False):
        return "raw", PLAIN
    return "layernorm", CHANNELS_LAST if len(axes) > 1 else PLAIN


def norm_axes(layer: Any) -> tuple[int, ...] | None:
    """Return a layer norm's axes counted from the end; None unless they are the last ones."""
    axes = list(layer.axis) if isinstance(layer.axis, list | tuple) else [layer.axis]
    shape = (layer.get_build_config() or {}).get("input_shape")
    rank = len(shape) if shape else 0
    negative = tuple(axis if axis < 0 else axis - rank for axis in axes)
    return negative if negative == tuple(range(-len(axes), 0)) else None


def own_variables(layer: Any) -> list[Any]:
    """Return the layer's weights that are not a sublayer's, without random states."""
    inner = {id(v) for child in sublayers(layer) for v in child.weights}
    return [v for v in layer.weights if id(v) not in inner and not v.dtype.startswith("uint")]


def _raw(layer: Any, own: list[Any]) -> dict[str, tuple[Any, Layout, bool]]:
    trained = {id(variable) for variable in layer._trainable_variables}
    found: dict[str, tuple[Any, Layout, bool]] = {}
    for variable in own:
        role = unique(re.sub(r"[^A-Za-z0-9_\-/]", "_", variable.name), set(found))
        found[role] = (variable, PLAIN, id(variable) not in trained)
    return found


def _attrs(kind: str, layer: Any) -> dict[str, Any]:
    if kind == "raw":
        return {}
    family = next(f for f in FAMILIES if isinstance(layer, f.classes))
    attrs = {key: _plain(getattr(layer, name)) for key, name in family.attrs.items()}
    if "momentum" in attrs:
        # Torch's momentum is the weight of the new value, Keras's that of the old one.
        attrs["momentum"] = round(1 - attrs["momentum"], 12)
    if kind == "depthwise":
        attrs.pop("groups", None)
    return {key: value for key, value in attrs.items() if value is not None}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
