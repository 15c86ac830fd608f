"""A torch module as sites: what each layer is, and the names that survive wrappers."""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from itertools import count

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from ltcore.errors import ModelError, ModelNotBuiltError
from ltcore.parameters import Role, Site
from ltcore_torch._kinds import parts_of
from ltcore_torch._parts import Part
from ltcore_torch._slots import Slot


@dataclass(frozen=True, slots=True)
class Place:
    """A part of a layer and the sites that its arrays belong to.

    Attributes:
        part: what the layer says of it.
        own: its own site; empty where other layers had all of its arrays before (tied weights).
        owners: sites of other layers that have some of its arrays.
    """

    part: Part
    own: str
    owners: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Layer:
    """A module that has arrays."""

    module: nn.Module
    places: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class Inventory:
    """What is in a model.

    Attributes:
        sites: in module order.
        slots: ``{parameter name: where it lives}``.
        layers: the modules that the sites are of.
    """

    sites: tuple[Site, ...]
    slots: dict[str, Slot]
    layers: tuple[Layer, ...]


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
            yield from visit(_joined(name, child), submodule)

    yield from visit("", model)


def inventory(model: nn.Module) -> Inventory:
    """Return the sites in module order, and where each of their arrays lives.

    Raises:
        ModelNotBuiltError: a lazy or meta parameter or buffer has no values yet.
        ModelError: a layer is under ``torch.nn.utils.prune``, or two parameters share memory.
    """
    books = _Books()
    for path, module in walk(model):
        _check_built(path, module)
        parts = () if id(module) in books.claimed else parts_of(module)
        places = tuple(books.enter(path, module, part) for part in parts)
        if places:
            books.layers.append(Layer(module, places))
    sites = tuple(replace(s, roles=tuple(books.roles[s.name].values())) for s in books.sites)
    return Inventory(sites, books.slots, tuple(books.layers))


class _Books:
    """What a walk has met so far."""

    def __init__(self) -> None:
        self.sites: list[Site] = []
        self.roles: dict[str, dict[str, Role]] = {}
        self.slots: dict[str, Slot] = {}
        self.layers: list[Layer] = []
        self.claimed: set[int] = set()
        self._owners: dict[object, tuple[str, str]] = {}

    def enter(self, path: str, module: nn.Module, part: Part) -> Place:
        """Note the arrays of one part of the module at ``path``."""
        name = self._free_name(_joined(path, part.suffix), module)
        roles: dict[str, Role] = {}
        owners = []
        self.roles[name] = roles
        for role, slot in part.arrays.items():
            inside = path if slot.module is module else _joined(path, part.suffix)
            if slot.module is not module:
                self.claimed.add(id(slot.module))
            native = _joined(inside, slot.attribute) + _rows(slot)
            key = identity(slot)
            if key in self._owners:
                self._check_one(key, native, slot)
                owners.append(self._add_alias(key, native))
                continue
            plain = _numbered(_plain_name(role), roles)
            self._owners[key] = name, plain
            roles[plain] = _role(plain, native, slot, slot.attribute not in part.native_only)
            self.slots[f"{name}.{plain}"] = slot
        others = tuple(dict.fromkeys(site for site in owners if site != name))
        if not roles:
            del self.roles[name]
            return Place(part, "", others)
        self.sites.append(Site(name, part.kind, (), part.attrs, part=part.part))
        return Place(part, name, others)

    def _check_one(self, key: object, native: str, slot: Slot) -> None:
        """Raise where memory is shared by two parameters: gradients and optimizers part them."""
        site, role = self._owners[key]
        first = self.slots[f"{site}.{role}"]
        if first.whole is slot.whole or first.is_buffer or slot.is_buffer:
            return
        known = self.roles[site][role].native
        raise ModelError(
            f"{known!r} and {native!r} share memory but are two parameters; make them one: "
            f"{native} = {known}"
        )

    def _add_alias(self, key: object, native: str) -> str:
        """Note that a known array is also called ``native``; return the site that owns it."""
        site, role = self._owners[key]
        known = self.roles[site][role]
        self.roles[site][role] = replace(known, aliases=(*known.aliases, native))
        return site

    def _free_name(self, path: str, module: nn.Module) -> str:
        name = _plain_name(path or type(module).__name__.lower())
        while name in self.roles:
            name += "_"
        return name


def _check_built(path: str, module: nn.Module) -> None:
    for kind, tensors in (("parameter", module._parameters), ("buffer", module._buffers)):
        for attribute, tensor in tensors.items():
            if tensor is not None and (nn.parameter.is_lazy(tensor) or tensor.is_meta):
                raise ModelNotBuiltError(
                    f"{kind} {_joined(path, attribute)!r} has no values yet; run the model once on "
                    "real input, or give example="
                )
    for attribute in module._parameters:
        stem = attribute.removesuffix("_orig")
        if stem != attribute and f"{stem}_mask" in module._buffers:
            raise ModelError(
                f"parameter {_joined(path, attribute)!r} is under torch.nn.utils.prune; "
                "ltcore.from_pruned(model) makes a ticket of it, and after torch.nn.utils.prune."
                f"remove(module, {stem!r}) ltcore.hold(model) takes the masks from the zeros"
            )


def _role(name: str, native: str, slot: Slot, portable: bool) -> Role:
    tensor = slot.tensor
    dtype = str(tensor.dtype).removeprefix("torch.")
    return Role(name, native, tuple(tensor.shape), dtype, slot.is_buffer, portable)


def identity(slot: Slot) -> object:
    """Equal for arrays that are one: the same object, or the same memory."""
    tensor = slot.tensor
    if tensor.layout is not torch.strided or not (at := tensor.untyped_storage().data_ptr()):
        return id(slot.whole), slot.rows and (slot.rows.start, slot.rows.stop)
    return at, tensor.storage_offset(), tuple(tensor.shape), tuple(tensor.stride())


def _rows(slot: Slot) -> str:
    return f"[{slot.rows.start}:{slot.rows.stop}]" if slot.rows else ""


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name


def _numbered(name: str, taken: Collection[str]) -> str:
    """Return ``name``, with a number where it is taken."""
    names = (f"{name}_{number}" if number > 1 else name for number in count(1))
    return next(free for free in names if free not in taken)


def _plain_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.]", "_", name)
