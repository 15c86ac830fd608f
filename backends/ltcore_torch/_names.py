"""A torch module as sites: what each layer is, and the names that survive wrappers."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.optim.swa_utils import AveragedModel

from ltcore.errors import ModelError, ModelNotBuiltError
from ltcore.parameters import Role, Site

_ATTRIBUTES = {
    "conv": ("stride", "dilation", "groups"),
    "depthwise": ("stride", "dilation"),
    "conv_transpose": ("stride", "dilation", "groups", "output_padding"),
    "batchnorm": ("eps", "momentum"),
    "layernorm": ("eps",),
}


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a parameter or buffer lives; looked up at each use, so replaced tensors are found."""

    module: nn.Module
    attribute: str

    @property
    def tensor(self) -> torch.Tensor:
        """The tensor that is there now."""
        param = self.module._parameters.get(self.attribute)
        if param is not None:
            return param
        buffer = self.module._buffers[self.attribute]
        assert buffer is not None  # the walk found a tensor here
        return buffer


def unwrap(model: nn.Module) -> nn.Module:
    """Return the module under ``torch.compile``, DataParallel, DDP and averaging wrappers."""
    while True:
        inner = getattr(model, "_orig_mod", None)  # torch.compile's; a user may say "module"
        if isinstance(inner, nn.Module):
            model = inner
        elif isinstance(model, _wrappers()):
            model = model.get_submodule("module")
        else:
            return model


def _wrappers() -> tuple[type[nn.Module], ...]:
    found: list[type[nn.Module]] = [nn.DataParallel, AveragedModel]
    if torch.distributed.is_available():
        found.append(nn.parallel.DistributedDataParallel)
    return tuple(found)


def walk(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield ``(name, module)``, parents first, every module once, wrappers left out."""
    seen: set[int] = set()

    def visit(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        module = unwrap(module)
        if id(module) in seen:
            return
        seen.add(id(module))
        yield name, module
        for child, submodule in module.named_children():
            yield from visit(f"{name}.{child}" if name else child, submodule)

    yield from visit("", model)


def kind_of(module: nn.Module) -> str:
    """Return the layer kind; ``raw`` for what ltcore does not know or someone reparametrized."""
    weight = module._parameters.get("weight")
    if "weight" not in module._parameters or (weight is not None and weight.is_complex()):
        return "raw"  # torch.nn.utils.parametrize keeps the real weights elsewhere
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, _ConvTransposeNd):
        return "conv_transpose"
    if isinstance(module, _ConvNd):
        return "depthwise" if 1 < module.groups == module.in_channels else "conv"
    if isinstance(module, nn.Embedding):
        return "embedding"
    if isinstance(module, _BatchNorm):
        return "batchnorm"
    return "layernorm" if isinstance(module, nn.LayerNorm) else "raw"


def sites_of(model: nn.Module) -> tuple[tuple[Site, ...], dict[str, Slot]]:
    """Return the sites in module order, and where each of their arrays lives.

    Raises:
        ModelNotBuiltError: a lazy or meta parameter has no values yet.
        ModelError: a layer is under ``torch.nn.utils.prune``.
    """
    sites: list[Site] = []
    slots: dict[str, Slot] = {}
    owners: dict[object, tuple[int, int]] = {}
    for path, module in walk(model):
        roles: list[Role] = []
        name = _site_name(path, module, {site.name for site in sites})
        for attribute, tensor, state in _arrays(path, module):
            key = _identity(tensor)
            native = f"{path}.{attribute}" if path else attribute
            if key in owners:
                _add_alias(sites, roles, owners[key], native)
                continue
            owners[key] = (len(sites), len(roles))
            roles.append(_role(_plain_name(attribute), native, tensor, state))
            slots[f"{name}.{roles[-1].name}"] = Slot(module, attribute)
        kind = kind_of(module)
        if roles or kind != "raw":
            attrs = {key: _plain(getattr(module, key)) for key in _ATTRIBUTES.get(kind, ())}
            sites.append(Site(name, kind, tuple(roles), attrs))
    return tuple(sites), slots


def _arrays(path: str, module: nn.Module) -> Iterator[tuple[str, torch.Tensor, bool]]:
    for attribute, tensor in module._parameters.items():
        if tensor is None:
            continue
        where = f"{path}.{attribute}" if path else attribute
        if nn.parameter.is_lazy(tensor) or tensor.is_meta:
            raise ModelNotBuiltError(
                f"parameter {where!r} has no values yet; run the model once on real input, or "
                "give example="
            )
        if f"{attribute.removesuffix('_orig')}_mask" in module._buffers:
            raise ModelError(
                f"parameter {where!r} is under torch.nn.utils.prune; "
                "ltcore.from_pruned(model) makes a ticket of it, and after torch.nn.utils.prune."
                f"remove(module, {attribute.removesuffix('_orig')!r}) ltcore.hold(model) takes "
                "the masks from the zeros"
            )
        yield attribute, tensor, False
    for attribute, buffer in module._buffers.items():
        if buffer is not None:
            yield attribute, buffer, True


def _role(name: str, native: str, tensor: torch.Tensor, state: bool) -> Role:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return Role(name, native, tuple(tensor.shape), dtype, state, name != "num_batches_tracked")


def _add_alias(sites: list[Site], current: list[Role], owner: tuple[int, int], native: str) -> None:
    """Note that the array of an earlier role is also called ``native``."""
    site_index, role_index = owner
    own_site = site_index == len(sites)
    roles = current if own_site else list(sites[site_index].roles)
    old = roles[role_index]
    roles[role_index] = Role(
        old.name, old.native, old.shape, old.dtype, old.state, old.portable,
        (*old.aliases, native),
    )  # fmt: skip
    if not own_site:
        site = sites[site_index]
        sites[site_index] = Site(site.name, site.kind, tuple(roles), site.attrs)


def _identity(tensor: torch.Tensor) -> object:
    """Equal for tensors that are one parameter: the same object, or the same memory."""
    pointer = tensor.untyped_storage().data_ptr()
    if pointer == 0:
        return id(tensor)
    return pointer, tensor.storage_offset(), tuple(tensor.shape), tuple(tensor.stride())


def _site_name(path: str, module: nn.Module, taken: set[str]) -> str:
    name = _plain_name(path or type(module).__name__.lower())
    while name in taken:
        name += "_"
    return name


def _plain_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.]", "_", name)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
