"""A Keras model as sites: what each layer is, and names that follow from structure alone.

Keras numbers the layers of a process ("dense_7"), so a second build has other names. Here a level
is the layer's own name if the user chose it, else its class with an ordinal among its siblings.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ltcore.errors import ModelNotBuiltError
from ltcore.parameters import Role, Site
from ltcore_keras._found import Found
from ltcore_keras._kinds import found_in, unique
from ltcore_keras._places import NOWHERE, Place, places_in
from ltcore_keras._slots import Slot


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


def sites_of(model: Any) -> tuple[tuple[Site, ...], dict[str, Slot]]:
    """Return the sites in the model's order, and where each of their arrays lives.

    Raises:
        ModelNotBuiltError: the model has no weights yet.
    """
    _check_built(model)
    sites: dict[str, Site] = {}
    slots: dict[str, Slot] = {}
    owners: dict[tuple[int, int | None], str] = {}
    places: dict[int, Place] = {}
    for path, layer in walk(model):
        places |= places_in(layer, (inner for _, inner in walk(layer)))
        for found in found_in(layer, places.get(id(layer), NOWHERE), own_variables(layer)):
            name = unique(path + found.suffix, set(sites))
            roles = []
            for role, slot, native in _arrays(name, layer, found):
                owner = owners.setdefault((id(slot.variable), slot.row), f"{name}.{role}")
                if owner != f"{name}.{role}":
                    _add_alias(sites, owner, native)
                    continue
                state = role in found.states
                portable = not (state and found.constants)
                dtype = slot.variable.dtype
                roles.append(Role(role, native, slot.shape, dtype, state, portable))
                slots[f"{name}.{role}"] = slot
            if roles:
                attrs = {**found.attrs, **_precision(layer)}
                sites[name] = Site(name, found.kind, tuple(roles), attrs, part=found.part)
    return tuple(sites.values()), slots


def _arrays(name: str, layer: Any, found: Found) -> Iterator[tuple[str, Slot, str]]:
    """Yield ``(role, where its array lives, native name)``."""
    path = name.removesuffix(found.suffix).replace(".", "/")
    for role, (variable, layout, row) in found.pieces.items():
        # Like ``variable.path``, but that has the process's counters in it.
        native = f"{path}/{variable.name}"
        constant = found.constants and role in found.states
        slot = Slot(layer, variable, layout, row, constant)
        yield role, slot, native if row is None else f"{native}[{row}]"


def _precision(layer: Any) -> dict[str, str]:
    """Return the attribute that says in what precision a layer computes, if not in its own."""
    own = str(layer.compute_dtype)
    return {} if own == layer.variable_dtype else {"compute_dtype": own}


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


def own_variables(layer: Any) -> list[Any]:
    """Return the layer's weights that are not a sublayer's, without random states."""
    inner = {id(v) for child in sublayers(layer) for v in child.weights}
    random = {id(seed.state) for part in layer._flatten_layers() for seed in part._seed_generators}
    return [v for v in layer.weights if id(v) not in inner | random]
