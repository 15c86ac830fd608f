"""A structure as JSON in a ticket's manifest, and back with every type and size checked."""

import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ltcore.container import MAX_RANK, check_shape, is_sizes
from ltcore.errors import TicketFileError
from ltcore.layouts import KINDS, SEAM, AxisGroup
from ltcore.parameters import Interface, Role, Site, Structure
from ltcore.strictjson import expect, shown

FEATURES = frozenset({"out_group", "seams"})
"""What a file may require of its reader and this one can do."""

MAX_GROUP = 64
"""Pairs of a feature order, seams between concatenated parts among them."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,199}")


def structure_to_json(structure: Structure) -> dict[str, Any]:
    """Return the fields of a manifest that tell of ``structure``."""
    required = _required(structure)
    return {
        "sites": [_site_to_json(site) for site in structure.sites],
        "inputs": _faces_to_json(structure.inputs),
        "outputs": _faces_to_json(structure.outputs),
        "untraced": structure.untraced,
        **({"requires": required} if required else {}),
    }


def structure_from_json(manifest: Mapping[str, Any]) -> Structure:
    """Return the structure in a manifest, which may be anyone's.

    Raises:
        TicketFileError: a field is missing, of another type or size, or not known.
        InvalidValueError: the structure contradicts itself; names the site.
    """
    required = list(_texts(manifest.get("requires", []), "'requires'"))
    if unknown := [word for word in required if word not in FEATURES]:
        raise TicketFileError(
            f"the file requires {shown(unknown)}, which this version of ltcore does not know; it "
            f"knows {sorted(FEATURES)}; upgrade ltcore: pip install -U ltcore"
        )
    structure = Structure(
        tuple(map(_site_from_json, expect(list, manifest.get("sites"), "'sites'"))),
        _faces_from_json(manifest.get("inputs"), "'inputs'"),
        _faces_from_json(manifest.get("outputs"), "'outputs'"),
        expect(str, manifest.get("untraced"), "'untraced'"),
    )
    check_structure(structure)
    if required != _required(structure):
        raise TicketFileError(
            f"the file requires {shown(required)}; what is in it takes {_required(structure)}"
        )
    return structure


def check_structure(structure: Structure) -> None:
    """Raise if a file cannot hold ``structure``; holds for writing and reading alike.

    Raises:
        TicketFileError: a name or a number of axes is not allowed; names the site.
        InvalidValueError: the structure contradicts itself; names the site.
    """
    for site in structure.sites:
        for name in (site.name, *(f"{site.name}.{role.name}" for role in site.roles)):
            if not _NAME.fullmatch(name):
                raise TicketFileError(
                    f"the name {name[:80]!r} of {len(name)} characters is not allowed: letters, "
                    "digits and _ . / - up to 200; rename the layer"
                )
        for role in site.roles:
            _check_shape(site, role)
        for group in (site.in_group, site.out_group):
            if group is not None and not 1 <= len(group) <= MAX_GROUP:
                raise TicketFileError(
                    f"site {site.name!r} has a feature order of {len(group)} axes; a file holds 1 "
                    f"to {MAX_GROUP}"
                )
    structure.check()


def _check_shape(site: Site, role: Role) -> None:
    kind = KINDS[site.kind]
    least = max(kind.outs.get(role.name, -1), kind.ins.get(role.name, -1)) + 1
    if len(role.shape) < least:
        raise TicketFileError(
            f"site {site.name!r} has a {role.name} of shape {role.shape}; that of a {kind.name} "
            f"has at least {least} axes"
        )
    check_shape(f"{site.name}.{role.name}", role.shape)


def _required(structure: Structure) -> list[str]:
    """Return, sorted, what a reader must know lest it misunderstand the file."""
    words = {"out_group" for site in structure.sites if site.out_group}
    words |= {
        "seams"
        for site in structure.sites
        for group in (site.in_group, site.out_group)
        if group and SEAM in group
    }
    return sorted(words)


def _site_to_json(site: Site) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": site.name, "kind": site.kind}
    entry["roles"] = [_role_to_json(role) for role in site.roles]
    optional = {
        "attrs": dict(site.attrs) or None,
        "preds": site.preds,
        "in_group": site.in_group,
        "out_group": site.out_group,
        "part": site.part or None,
        "is_output": site.is_output or None,
    }
    return entry | {key: value for key, value in optional.items() if value is not None}


def _role_to_json(role: Role) -> dict[str, Any]:
    entry = {"name": role.name, "native": role.native, "shape": role.shape, "dtype": role.dtype}
    optional = {"state": role.state, "aliases": role.aliases, "native_only": not role.portable}
    return entry | {key: value for key, value in optional.items() if value}


def _site_from_json(value: object) -> Site:
    entry = expect(dict, value, "a site")
    name = expect(str, entry.get("name"), "the name of a site")
    about = f"of site {name[:80]!r}"
    kind = expect(str, entry.get("kind"), f"the kind {about}")
    if kind not in KINDS:
        raise TicketFileError(
            f"site {name[:80]!r} is of kind {kind[:80]!r}, which this version of ltcore does not "
            f"know; it knows {list(KINDS)}"
        )
    roles = expect(list, entry.get("roles"), f"'roles' {about}")
    return Site(
        name,
        kind,
        tuple(_role_from_json(role, about) for role in roles),
        expect(dict, entry.get("attrs", {}), f"'attrs' {about}"),
        _texts(entry["preds"], f"'preds' {about}") if "preds" in entry else None,
        _group_from_json(entry, "in_group", about),
        expect(bool, entry.get("is_output", False), f"'is_output' {about}"),
        _group_from_json(entry, "out_group", about),
        expect(str, entry.get("part", ""), f"'part' {about}"),
    )


def _role_from_json(value: object, about: str) -> Role:
    entry = expect(dict, value, f"a role {about}")
    name = expect(str, entry.get("name"), f"the name of a role {about}")
    about = f"of role {name[:80]!r} {about}"
    return Role(
        name,
        expect(str, entry.get("native"), f"'native' {about}"),
        _sizes(entry.get("shape"), f"'shape' {about}"),
        expect(str, entry.get("dtype"), f"'dtype' {about}"),
        expect(bool, entry.get("state", False), f"'state' {about}"),
        not expect(bool, entry.get("native_only", False), f"'native_only' {about}"),
        _texts(entry.get("aliases", []), f"'aliases' {about}"),
    )


def _group_from_json(entry: Mapping[str, Any], field: str, about: str) -> AxisGroup | None:
    if field not in entry:
        return None
    pairs = expect(list, entry[field], f"{field!r} {about}")
    if not all(type(pair) is list and len(pair) == 2 for pair in pairs):
        raise TicketFileError(f"{field!r} {about} is {shown(pairs)}; expected pairs of label, size")
    labels = _texts([label for label, _ in pairs], f"{field!r} {about}")
    sizes = [size for _, size in pairs]
    if not is_sizes(sizes):
        raise TicketFileError(f"{field!r} {about} is {shown(pairs)}; expected sizes")
    return tuple(zip(labels, sizes, strict=True))


def _texts(value: object, what: str) -> tuple[str, ...]:
    return tuple(expect(str, text, f"an entry of {what}") for text in expect(list, value, what))


def _sizes(value: object, what: str) -> tuple[int, ...]:
    if not is_sizes(value) or len(value) > MAX_RANK:
        raise TicketFileError(f"{what} is {shown(value)}; expected up to {MAX_RANK} sizes")
    return tuple(value)


def _faces_to_json(faces: tuple[Interface, ...] | None) -> list[dict[str, Any]] | None:
    if faces is None:
        return None
    return [{k: v for k, v in asdict(face).items() if v is not None} for face in faces]


def _faces_from_json(value: object, what: str) -> tuple[Interface, ...] | None:
    if value is None:
        return None
    faces = [expect(dict, face, f"an entry of {what}") for face in expect(list, value, what)]
    return tuple(
        Interface(
            _texts(face.get("axes"), f"'axes' in {what}"),
            _sizes(face.get("shape"), f"'shape' in {what}"),
            expect(str, face.get("dtype"), f"'dtype' in {what}"),
            expect(int, face["vocabulary"], f"'vocabulary' in {what}")
            if "vocabulary" in face
            else None,
        )
        for face in faces
    )
