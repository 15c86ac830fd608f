"""A ticket as one file: what goes in, in which form, and what is checked on the way out.

`ltcore.container` guards the bytes; this file guards their meaning. Masks are bit-packed or
gap-coded, whichever is smaller; of pruned parameters only the survivors are stored.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any

import numpy as np

from ltcore import container, maskcoding
from ltcore.arrays import Array, Params, check_finite
from ltcore.container import Container
from ltcore.errors import InvalidValueError, TicketFileError
from ltcore.layouts import KINDS, AxisGroup
from ltcore.maskcoding import CodedMask
from ltcore.masks import Masks
from ltcore.parameters import (
    Interface,
    Role,
    Site,
    Structure,
    in_canonical_order,
    in_native_order,
)
from ltcore.probe import Probe, TieProbe

EXPANSION_FLOOR = 1 << 28
EXPANSION_FACTOR = 4096
"""A file may unfold in memory to at most 256 MiB + 4096 times its own size."""


@dataclass(frozen=True, eq=False)
class TicketRecord:
    """What a ticket is made of.

    Attributes:
        structure: the model it was found in.
        masks: what is kept.
        params: every parameter and buffer at the rewind point; values that the masks prune do
            not count (use `weights`). In memory, masks and params have the feature order of
            their framework behind a flatten; the file has the canonical one.
        provenance: plain JSON data: how it was found.
        probe: outputs that prove another model computes the same; None for a ticket that stays
            in its own framework.
    """

    structure: Structure
    masks: Masks
    params: Params
    provenance: Mapping[str, Any]
    probe: Probe | None = None

    def weights(self) -> dict[str, Array]:
        """Return all params, pruned weights at exactly 0.0."""
        return self.masks.apply(self.params)

    def why_not_portable(self) -> str:
        """Return what keeps the ticket in its own framework, or an empty string."""
        return self.structure.why_not_portable() or ("" if self.probe else "it has no probe")


def write(path: str | PathLike[str], record: TicketRecord) -> str:
    """Write ``record`` to ``path``, whole or not at all, and return its id.

    Raises:
        NonFiniteError: a value is NaN or infinite; names the parameter.
        TicketFileError: the file cannot be written; an old one stays.
    """
    return container.write(path, *_pack(record))


def record_id(record: TicketRecord) -> str:
    """Return the id that ``record`` has in a file."""
    return container.manifest_id(*_pack(record))


def read(path: str | PathLike[str]) -> TicketRecord:
    """Return the record in ``path`` after every check.

    Peak memory is about the dense model plus its masks, once.

    Raises:
        TicketFileError: says what was found, what was expected, and where.
    """
    source = container.open_container(path)
    try:
        return _unpack(source)
    except TicketFileError:
        raise
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise TicketFileError(f"{path}: the manifest lacks or garbles a field: {error!r}") from None


def _pack(record: TicketRecord) -> tuple[dict[str, Array], dict[str, Any]]:
    weights = in_canonical_order(record.weights(), record.structure)
    masks = in_canonical_order(record.masks, record.structure)
    check_finite(_trained(weights, record.structure))
    tensors: dict[str, Array] = {}
    coded = {}
    for name, _, _role in record.structure.items():
        array = weights[name]
        if name not in masks:
            tensors[name] = array
            continue
        mask = maskcoding.encode(masks[name])
        tensors[f"{name}#{mask.encoding}"] = mask.data
        tensors[f"{name}#kept"] = array[masks[name]]
        coded[name] = {"kept": mask.kept, "total": array.size, "k": mask.k}
    for kind, outputs in _probe_outputs(record.probe):
        tensors |= {f"probe/{kind}{i}": output for i, output in enumerate(outputs)}
    manifest = {
        "sites": [_site_to_json(site) for site in record.structure.sites],
        "inputs": _faces_to_json(record.structure.inputs),
        "outputs": _faces_to_json(record.structure.outputs),
        "untraced": record.structure.untraced,
        "masks": coded,
        "kept": record.masks.kept,
        "total": record.masks.total,
        "probe": len(record.probe.synthetic) if record.probe else None,
        "provenance": dict(record.provenance),
    }
    if record.probe and record.probe.ties:
        manifest["ties"] = [one.sites for one in record.probe.ties]
    return tensors, manifest


def _probe_outputs(probe: Probe | None) -> list[tuple[str, tuple[Array, ...]]]:
    """Return ``(prefix of the tensors' names, outputs)``."""
    if probe is None:
        return []
    ties = [(f"tie{number}_", one.outputs) for number, one in enumerate(probe.ties)]
    return [("synthetic", probe.synthetic), ("ticket", probe.ticket), *ties]


def _trained(params: Params, structure: Structure) -> dict[str, Array]:
    """Return what training changes; a buffer may be infinite (an attention mask)."""
    return {info.name: params[info.name] for info in structure.infos}


def _unpack(source: Container) -> TicketRecord:
    manifest = source.manifest
    structure = Structure(
        tuple(_site_from_json(entry, source) for entry in manifest["sites"]),
        _faces_from_json(manifest["inputs"]),
        _faces_from_json(manifest["outputs"]),
        manifest["untraced"],
    )
    try:
        structure.check()
    except InvalidValueError as error:
        raise TicketFileError(f"{source.path}: {error}") from None
    _check_expansion(source, structure)
    params, arrays = {}, {}
    for name, _, role in structure.items():
        if name in manifest["masks"]:
            arrays[name] = _read_mask(source, name, role.shape)
            params[name] = _read_survivors(source, name, arrays[name])
        else:
            params[name] = _read_dense(source, name, role.shape)
    check_finite(_trained(params, structure))
    masks = Masks.adopt(arrays)
    if (masks.kept, masks.total) != (manifest["kept"], manifest["total"]):
        raise TicketFileError(
            f"{source.path}: counts disagree: masks keep {masks.kept} of {masks.total}, the "
            f"manifest says {manifest['kept']} of {manifest['total']}"
        )
    _check_all_used(source, structure, masks)
    provenance = manifest["provenance"]
    if not isinstance(provenance, dict):
        raise TicketFileError(f"{source.path}: provenance is no object")
    return TicketRecord(
        structure,
        Masks.adopt(in_native_order(masks, structure)),
        in_native_order(params, structure),
        provenance,
        _read_probe(source),
    )


def _check_expansion(source: Container, structure: Structure) -> None:
    """A few bytes can claim to be a mask over billions of weights: bound what is unfolded."""
    needed = 0
    for name, shape in structure.shapes.items():
        if any(size < 0 for size in shape) or len(shape) > container.MAX_RANK:
            raise TicketFileError(f"{source.path}: {name!r} has the impossible shape {shape}")
        needed += math.prod(shape) * 9  # a float64 and its mask
    limit = EXPANSION_FLOOR + EXPANSION_FACTOR * source.path.stat().st_size
    if needed > limit:
        raise TicketFileError(
            f"{source.path}: would unfold to {needed:,} bytes, more than the {limit:,} that a file "
            "of its size may"
        )


def _read_mask(source: Container, name: str, shape: tuple[int, ...]) -> Array:
    entry = source.manifest["masks"][name]
    encoding = next((e for e in maskcoding.ENCODINGS if f"{name}#{e}" in source.entries), "")
    if not encoding:
        raise TicketFileError(f"{source.path}: {name!r} has no mask tensor")
    data = source.read(f"{name}#{encoding}")
    total = math.prod(shape)
    if entry["total"] != total:
        raise TicketFileError(
            f"{source.path}: counts disagree: {name!r} has shape {shape}, {total} weights, the "
            f"manifest says {entry['total']}"
        )
    return maskcoding.decode(CodedMask(encoding, data, entry["kept"], entry["k"]), shape)


def _read_survivors(source: Container, name: str, mask: Array) -> Array:
    kept = source.read(f"{name}#kept")
    count = int(np.count_nonzero(mask))
    if kept.shape != (count,):
        raise TicketFileError(
            f"{source.path}: counts disagree: {name!r} stores {kept.shape} survivors, its mask "
            f"keeps {count}"
        )
    dense = np.zeros(mask.shape, kept.dtype)
    dense[mask] = kept
    return dense


def _read_dense(source: Container, name: str, shape: tuple[int, ...]) -> Array:
    if name not in source.entries:
        raise TicketFileError(f"{source.path}: parameter {name!r} is not in the file")
    array = source.read(name)
    if array.shape != shape:
        raise TicketFileError(f"{source.path}: {name!r} has shape {array.shape}, expected {shape}")
    return array


def _read_probe(source: Container) -> Probe | None:
    count = source.manifest["probe"]
    if count is None:
        return None
    if not isinstance(count, int) or not 0 <= count <= len(source.entries):
        raise TicketFileError(f"{source.path}: the probe claims {count!r} outputs")
    ties = [tuple(map(str, sites)) for sites in source.manifest.get("ties", [])]
    if len(ties) * count > len(source.entries):
        raise TicketFileError(f"{source.path}: the probe claims {len(ties)} ties")

    def outputs(kind: str) -> tuple[Array, ...]:
        found = tuple(source.read(f"probe/{kind}{i}") for i in range(count))
        if not all(np.isfinite(output).all() for output in found):
            raise TicketFileError(f"{source.path}: the probe has values that are NaN or infinite")
        return found

    trials = tuple(TieProbe(sites, outputs(f"tie{i}_")) for i, sites in enumerate(ties))
    return Probe(outputs("synthetic"), outputs("ticket"), trials)


def _check_all_used(source: Container, structure: Structure, masks: Masks) -> None:
    """A tensor that nothing names would be carried along unchecked: refuse it."""
    used = {name for name in structure.shapes if name not in masks}
    used |= {f"{name}#kept" for name in masks}
    used |= {f"{name}#{e}" for name in masks for e in maskcoding.ENCODINGS}
    spare = [n for n in source.entries if n not in used and not n.startswith("probe/")]
    unknown = [name for name in source.manifest["masks"] if name not in structure.shapes]
    if spare or unknown:
        raise TicketFileError(
            f"{source.path}: tensors {spare} and masks {unknown} belong to no parameter"
        )


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


def _site_from_json(entry: Mapping[str, Any], source: Container) -> Site:
    if entry["kind"] not in KINDS:
        raise TicketFileError(
            f"{source.path}: site {entry['name']!r} is of kind {entry['kind']!r}, which this "
            f"version of ltcore does not know; it knows {list(KINDS)}"
        )
    preds = entry.get("preds")
    return Site(
        str(entry["name"]),
        entry["kind"],
        tuple(_role_from_json(role) for role in entry["roles"]),
        dict(entry.get("attrs", {})),
        None if preds is None else tuple(map(str, preds)),
        _group_from_json(entry.get("in_group")),
        bool(entry.get("is_output", False)),
        _group_from_json(entry.get("out_group")),
        str(entry.get("part", "")),
    )


def _group_from_json(group: Any) -> AxisGroup | None:
    return None if group is None else tuple((str(label), int(size)) for label, size in group)


def _role_from_json(entry: Mapping[str, Any]) -> Role:
    return Role(
        str(entry["name"]),
        str(entry["native"]),
        tuple(map(int, entry["shape"])),
        str(entry["dtype"]),
        bool(entry.get("state", False)),
        not entry.get("native_only", False),
        tuple(map(str, entry.get("aliases", ()))),
    )


def _faces_to_json(faces: tuple[Interface, ...] | None) -> list[dict[str, Any]] | None:
    if faces is None:
        return None
    return [{k: v for k, v in asdict(face).items() if v is not None} for face in faces]


def _faces_from_json(entries: Any) -> tuple[Interface, ...] | None:
    if entries is None:
        return None
    return tuple(
        Interface(
            tuple(map(str, entry["axes"])),
            tuple(map(int, entry["shape"])),
            str(entry["dtype"]),
            None if entry.get("vocabulary") is None else int(entry["vocabulary"]),
        )
        for entry in entries
    )
