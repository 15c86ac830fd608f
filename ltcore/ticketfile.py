"""A ticket as one file: what goes in, in which form, and what is checked on the way out.

`ltcore.container` guards the bytes; this file guards their meaning. Masks are bit-packed or
gap-coded, whichever is smaller; of pruned parameters only the survivors are stored.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np

from ltcore import bfloat16, containerwriter, manifest, maskcoding
from ltcore.arrays import Array, Params, check_finite
from ltcore.container import BF16, DTYPES, Container, open_container
from ltcore.errors import InvalidValueError, TicketFileError
from ltcore.maskcoding import CodedMask
from ltcore.masks import Masks
from ltcore.matching import MAX_TIE, signature
from ltcore.parameters import Structure, in_canonical_order, in_native_order
from ltcore.probe import RULE, Probe, TieProbe
from ltcore.strictjson import expect, shown

EXPANSION_FLOOR = 1 << 28
EXPANSION_FACTOR = 3072
"""The arrays of a file may take 256 MiB + 3072 times its size. With what reading them takes besides
it stays below 256 MiB + 4096 times the size."""

_FIELDS: Mapping[str, type] = {"masks": dict, "kept": int, "total": int, "provenance": dict}

_STORED = [dtype.name for code, dtype in DTYPES.items() if code != BF16]


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
        InvalidValueError: the structure contradicts itself; names the site.
        TicketFileError: the record has what a file cannot hold, or the file cannot be written; an
            old one stays.
    """
    return containerwriter.write(path, *_pack(record))


def record_id(record: TicketRecord) -> str:
    """Return the id that ``record`` has in a file; raises what `write` does."""
    return containerwriter.manifest_id(*_pack(record))


def read(path: str | PathLike[str]) -> TicketRecord:
    """Return the record in ``path`` after every check.

    Peak memory is about the dense model plus its masks, and once more those arrays whose features
    have another order in files.

    Raises:
        TicketFileError: says what was found, what was expected, and where.
    """
    source = open_container(path)
    with _about(f"{path}"):
        structure = manifest.structure_from_json(source.manifest)
        for field, kind in _FIELDS.items():
            expect(kind, source.manifest.get(field), f"{field!r} of the manifest")
        _check_expansion(source, structure)
    return _unpack(source, structure)


@contextmanager
def _about(what: str) -> Iterator[None]:
    """Let errors say what they are about, and be errors of the file."""
    try:
        yield
    except (TicketFileError, InvalidValueError) as error:
        raise TicketFileError(f"{what}: {str(error)[:1000]}") from None


def _pack(record: TicketRecord) -> tuple[dict[str, Array], dict[str, Any], set[str]]:
    """Return tensors, manifest, and which tensors are stored as BF16."""
    structure = record.structure
    manifest.check_structure(structure)
    _check_arrays(record)
    weights = in_canonical_order(record.weights(), structure)
    masks = in_canonical_order(record.masks, structure)
    check_finite(_trained(weights, structure))
    tensors: dict[str, Array] = {}
    coded = {}
    narrow = set()
    for name, _, role in structure.items():
        stored, array = name, weights[name]
        array = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
        if name in masks:
            mask = maskcoding.encode(masks[name])
            coded[name] = {"kept": mask.kept, "total": array.size, "k": mask.k}
            tensors[f"{name}#{mask.encoding}"] = mask.data
            stored, array = f"{name}#kept", array[masks[name]]
        tensors[stored] = array
        if role.dtype == "bfloat16" and array.dtype == np.float32 and bfloat16.is_exact(array):
            narrow.add(stored)
    for kind, outputs in _probe_outputs(record.probe):
        tensors |= {f"probe/{kind}{i}": output for i, output in enumerate(outputs)}
    told = manifest.structure_to_json(structure) | {
        "masks": coded,
        "kept": record.masks.kept,
        "total": record.masks.total,
        "probe": len(record.probe.synthetic) if record.probe else None,
        "provenance": dict(record.provenance),
    }
    if record.probe and record.probe.rule != 1:
        told["probe_rule"] = record.probe.rule
    if record.probe and record.probe.ties:
        told["ties"] = [one.sites for one in record.probe.ties]
    return tensors, told, narrow


def _probe_outputs(probe: Probe | None) -> list[tuple[str, tuple[Array, ...]]]:
    """Return ``(prefix of the tensors' names, outputs)``."""
    if probe is None:
        return []
    ties = [(f"tie{number}_", one.outputs) for number, one in enumerate(probe.ties)]
    return [("synthetic", probe.synthetic), ("ticket", probe.ticket), *ties]


def _check_arrays(record: TicketRecord) -> None:
    """Raise unless there is an array for every role, of its shape and of a dtype that files have.

    Raises:
        TicketFileError: names the parameter.
    """
    for name, _, role in record.structure.items():
        if name not in record.params:
            raise TicketFileError(f"parameter {name!r} has no values")
        array = record.params[name]
        if array.shape != role.shape:
            raise TicketFileError(
                f"parameter {name!r} has shape {array.shape}; its site says {role.shape}"
            )
        if name in record.masks and record.masks[name].shape != role.shape:
            raise TicketFileError(
                f"the mask of {name!r} has shape {record.masks[name].shape}, not {role.shape}"
            )
        if array.dtype.name not in _STORED:
            raise TicketFileError(
                f"parameter {name!r} is {array.dtype.name}; a ticket holds {', '.join(_STORED)}, "
                "and bfloat16 as exact float32: convert the layer"
            )
    strangers = record.masks.keys() - record.structure.shapes.keys()
    if strangers:
        raise TicketFileError(f"masks {shown(strangers)} belong to no parameter")


def _trained(params: Params, structure: Structure) -> dict[str, Array]:
    """Return what training changes; a buffer may be infinite (an attention mask)."""
    return {info.name: params[info.name] for info in structure.infos}


def _unpack(source: Container, structure: Structure) -> TicketRecord:
    params, arrays = {}, {}
    for name, _, role in structure.items():
        if name in source.manifest["masks"]:
            arrays[name] = _read_mask(source, name, role.shape)
            params[name] = _read_survivors(source, name, arrays[name])
        else:
            params[name] = _read_dense(source, name, role.shape)
    masks = Masks.adopt(arrays)
    _check_counts(source, masks)
    with _about(f"{source.path}"):
        check_finite(_trained(params, structure))
    _check_all_used(source, structure, masks)
    return TicketRecord(
        structure,
        Masks.adopt(in_native_order(masks, structure)),
        in_native_order(params, structure),
        source.manifest["provenance"],
        _read_probe(source, structure),
    )


def _check_expansion(source: Container, structure: Structure) -> None:
    """A few bytes can claim to be a mask over billions of weights: bound what is unfolded."""
    needed = largest = 0
    for name, site, role in structure.items():
        entry = source.entries.get(f"{name}#kept", source.entries.get(name))
        width = 1 + max(4, DTYPES[entry.dtype].itemsize if entry else 0)  # and its mask
        numbers = math.prod(role.shape)
        needed += numbers * width
        orders = sum(group is not None for group in (site.in_group, site.out_group))
        # Each takes a copy in another order, and index arrays for it.
        needed += orders * (numbers * width + 32 * max(role.shape, default=0))
        largest = max(largest, numbers)
    needed += largest  # which of its values are finite
    limit = EXPANSION_FLOOR + EXPANSION_FACTOR * source.size
    if needed > limit:
        raise TicketFileError(
            f"the file would unfold to {needed:,} bytes, more than the {limit:,} that one of its "
            "size may"
        )


def _read_mask(source: Container, name: str, shape: tuple[int, ...]) -> Array:
    with _about(f"{source.path}: the mask of {name!r}"):
        told = expect(dict, source.manifest["masks"][name], "its entry in the manifest")
        encodings = [e for e in maskcoding.ENCODINGS if f"{name}#{e}" in source.entries]
        if len(encodings) != 1:
            raise TicketFileError(f"it stands in {len(encodings)} tensors; expected one")
        total = math.prod(shape)
        if expect(int, told.get("total"), "its 'total'") != total:
            raise TicketFileError(
                f"counts disagree: {shape} has {total} weights, the manifest says "
                f"{shown(told['total'])}"
            )
        kept = expect(int, told.get("kept"), "its 'kept'")
    data = source.read(f"{name}#{encodings[0]}")
    with _about(f"{source.path}: the mask of {name!r}"):
        return maskcoding.decode(CodedMask(encodings[0], data, kept, told.get("k")), shape)


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


def _check_counts(source: Container, masks: Masks) -> None:
    kept, total = source.manifest["kept"], source.manifest["total"]
    if (masks.kept, masks.total) != (kept, total):
        raise TicketFileError(
            f"{source.path}: counts disagree: masks keep {masks.kept} of {masks.total}, the "
            f"manifest says {shown(kept)} of {shown(total)}"
        )


def _read_probe(source: Container, structure: Structure) -> Probe | None:
    """Return the probe; probe tensors of later versions are checked for damage, no more."""
    told = source.manifest
    ties: list[tuple[str, ...]] = []
    count = 0
    if told.get("probe") is not None:
        with _about(f"{source.path}"):
            count = expect(int, told["probe"], "'probe' of the manifest")
            ties = _read_ties(told.get("ties", []), structure)
        if not 0 <= count * (2 + len(ties)) <= len(source.entries):
            raise TicketFileError(f"{source.path}: the probe claims {shown(count)} outputs")
    kinds = ["synthetic", "ticket", *(f"tie{number}_" for number in range(len(ties)))]
    names = {kind: [f"probe/{kind}{i}" for i in range(count)] for kind in kinds}
    found = {kind: tuple(map(source.read, listed)) for kind, listed in names.items()}
    for name in source.entries.keys() - set().union(*names.values()):
        if name.startswith("probe/"):
            source.read(name)
    if not all(np.isfinite(output).all() for outputs in found.values() for output in outputs):
        raise TicketFileError(f"{source.path}: the probe has values that are NaN or infinite")
    if told.get("probe") is None:
        return None
    synthetic, ticket, *trials = found.values()
    return Probe(synthetic, ticket, tuple(map(TieProbe, ties, trials)), _read_rule(source))


def _read_rule(source: Container) -> int:
    """Return how inputs and weights were made up; files of before there were two say nothing."""
    with _about(f"{source.path}"):
        rule = expect(int, source.manifest.get("probe_rule", 1), "'probe_rule' of the manifest")
        if not 1 <= rule <= RULE:
            raise TicketFileError(
                f"'probe_rule' is {rule}; this version of ltcore knows rules 1 to {RULE}; upgrade "
                "ltcore: pip install -U ltcore"
            )
    return rule


def _read_ties(value: object, structure: Structure) -> list[tuple[str, ...]]:
    """Return the groups of tied sites: each known, in one group only, of one kind and shape."""
    sites = {site.name: site for site in structure.sites}
    ties = [tuple(expect(list, tie, "an entry of 'ties'")) for tie in expect(list, value, "'ties'")]
    names = [expect(str, name, "a site in 'ties'") for tie in ties for name in tie]
    known = len(set(names)) == len(names) and set(names) <= sites.keys()
    if not known or not all(
        1 < len(tie) <= MAX_TIE
        and all(signature(sites[name]) == signature(sites[tie[0]]) for name in tie)
        for tie in ties
    ):
        raise TicketFileError(
            f"'ties' is {shown(ties)}; expected groups of 2 to {MAX_TIE} sites alike"
        )
    return ties


def _check_all_used(source: Container, structure: Structure, masks: Masks) -> None:
    """A tensor that nothing names would be carried along unchecked: refuse it."""
    used = {name for name in structure.shapes if name not in masks}
    used |= {f"{name}#kept" for name in masks}
    used |= {f"{name}#{e}" for name in masks for e in maskcoding.ENCODINGS}
    spare = [n for n in source.entries if n not in used and not n.startswith("probe/")]
    unknown = source.manifest["masks"].keys() - masks.keys()
    if spare or unknown:
        raise TicketFileError(
            f"{source.path}: tensors {shown(spare)} and masks {shown(unknown)} belong to no "
            "parameter"
        )
