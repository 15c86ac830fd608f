"""A Flax module as sites: what each layer is, what it is called, and where its arrays are."""

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import jax
from flax import nnx

from ltcore.errors import ModelNotBuiltError
from ltcore.parameters import Role, Site
from ltcore_jax._kinds import LAYERS, kind_of
from ltcore_jax._layouts import PLAIN, Layout, canonical_shape
from ltcore_jax._walk import Path, check_is_nnx, is_kept, is_layer, nodes, places

_PARTS = {"query": "q", "key": "k", "value": "v", "out": "o"}


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a parameter or buffer lives.

    Attributes:
        variable: the Flax variable.
        layout: how its array is laid out.
        path: from the model to the variable; the first, where it is shared.
        trained: whether it is a parameter.
    """

    variable: nnx.Variable[Any]
    layout: Layout
    path: Path
    trained: bool


@dataclass(frozen=True, slots=True)
class Layer:
    """A module that has variables.

    Attributes:
        path: from the model to it.
        module: the module.
        site: the name of its site; empty where all of its variables are another's.
        kind: of the site.
        whole: whether it is a layer of a known kind, none of whose arrays is another's.
        names: ``{path of a variable in it: parameter name}``, with those of other layers.
    """

    path: Path
    module: nnx.Module
    site: str
    kind: str
    whole: bool
    names: dict[Path, str]


@dataclass(frozen=True, slots=True)
class Inventory:
    """What is in a model; sites come in the order of ``nnx.state``, which sorts names.

    The order in which attributes were set would be lost in ``nnx.merge``.
    """

    sites: tuple[Site, ...]
    slots: dict[str, Slot]
    layers: tuple[Layer, ...]


def inventory(model: Any) -> Inventory:
    """Return the sites of ``model``, and where each of their arrays lives.

    Raises:
        ModelError: it is no NNX module.
        ModelNotBuiltError: a variable has a shape, but no values yet.
    """
    check_is_nnx(model)
    books = _Books(model)
    for path, node in books.found.items():
        if is_layer(node):
            books.enter(path, node)
    sites = tuple(replace(s, roles=tuple(books.roles[s.name].values())) for s in books.sites)
    return Inventory(sites, books.slots, tuple(books.layers))


class _Books:
    """What a walk has met so far."""

    def __init__(self, model: nnx.Module) -> None:
        self.found = dict(nodes(model))
        self.sites: list[Site] = []
        self.roles: dict[str, dict[str, Role]] = {}
        self.slots: dict[str, Slot] = {}
        self.layers: list[Layer] = []
        self._owners: dict[int, str] = {}

    def enter(self, path: Path, layer: nnx.Module) -> None:
        """Note the variables of the layer at ``path``."""
        here = [(inside, v) for inside, v in places(layer) if is_kept(v)]
        if not here:
            return
        own = [(inside, v) for inside, v in here if id(v) not in self._owners]
        _check_built(path, own)
        kind = kind_of(layer, [_joined(inside) for inside, _ in here])
        site = self._free_name(_joined(path) or type(layer).__name__.lower()) if own else ""
        names = {}
        roles: dict[str, Role] = {}
        for inside, variable in _ordered(here, list(kind.roles)):
            native = _joined((*path, *inside))
            if id(variable) in self._owners:
                names[inside] = self._add_alias(self._owners[id(variable)], native, roles)
                continue
            role, layout = kind.roles.get(_joined(inside), (_joined(inside), PLAIN))
            role = _numbered(_plain(role).replace(".", "_"), roles)
            name = names[inside] = self._owners[id(variable)] = f"{site}.{role}"
            trained = isinstance(variable, nnx.Param)
            self.slots[name] = Slot(variable, layout, (*path, *inside), trained)
            roles[role] = _role(role, native, variable, layout, trained, kind.name)
        whole = len(own) == len(here) and kind.name != "raw" and isinstance(layer, LAYERS)
        self.layers.append(Layer(path, layer, site, kind.name, whole, names))
        if site:
            self.roles[site] = roles
            part, heads = self._attention(path)
            attrs = {**kind.attrs, **heads} if kind.name == "linear" else kind.attrs
            self.sites.append(Site(site, kind.name, (), attrs, part=part))

    def _attention(self, path: Path) -> tuple[str, dict[str, int]]:
        """Return which projection of an attention layer is at ``path``, and its heads."""
        around = self._around(path)
        if isinstance(around, nnx.MultiHeadAttention) and path[-1] in _PARTS:
            return _PARTS[path[-1]], {"heads": around.num_heads}
        return "", {}

    def _around(self, path: Path) -> Any:
        return self.found.get(path[:-1]) if path else None

    def _add_alias(self, name: str, native: str, fresh: dict[str, Role]) -> str:
        """Note that a known array is also called ``native``."""
        site, _, role = name.rpartition(".")
        roles = self.roles.get(site, fresh)
        roles[role] = replace(roles[role], aliases=(*roles[role].aliases, native))
        return name

    def _free_name(self, name: str) -> str:
        name = _plain(name)
        while name in self.roles:
            name += "_"
        return name


def _ordered(here: list[tuple[Path, Any]], order: list[str]) -> list[tuple[Path, Any]]:
    """Return variables in the order in which the kind lists its roles."""
    rank = {name: position for position, name in enumerate(order)}
    return sorted(here, key=lambda place: rank.get(_joined(place[0]), len(rank)))


def _check_built(path: Path, own: list[tuple[Path, nnx.Variable[Any]]]) -> None:
    for inside, variable in own:
        if isinstance(variable.get_value(), jax.ShapeDtypeStruct):
            raise ModelNotBuiltError(
                f"{_joined((*path, *inside))!r} has a shape but no values (the model is from "
                "nnx.eval_shape); make the model itself, or merge it with a state"
            )


def _role(name: str, native: str, variable: Any, layout: Layout, trained: bool, kind: str) -> Role:
    value = variable.get_value()
    portable = trained or kind != "raw"
    shape = canonical_shape(layout, value.shape)
    return Role(name, native, shape, str(value.dtype), not trained, portable)


def _joined(path: Path) -> str:
    return ".".join(map(str, path))


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.]", "_", name)


def _numbered(name: str, taken: Collection[str]) -> str:
    names = (f"{name}_{number}" if number > 1 else name for number in count(1))
    return next(free for free in names if free not in taken)
