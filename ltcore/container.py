"""Tensors and a JSON manifest in one safetensors file that is trusted only after checks.

A safetensors reader accepts duplicate names, hostile shapes and altered bytes. Here the manifest's
hash is the file's id, and the manifest holds each tensor's dtype, shape and hash. The single
metadata key ``ltcore`` is ``ltcore-ticket/1 sha256:<hex>``, a newline and the manifest; the hash is
of the manifest's text.

This file has the rules and the reader; `ltcore.containerwriter` writes.
"""

import contextlib
import hashlib
import math
import os
import re
import stat
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from ltcore import bfloat16
from ltcore.arrays import Array
from ltcore.errors import TicketFileError
from ltcore.strictjson import parse_object, shown

FORMAT_VERSION = 1
MAX_HEADER = 16 << 20
MAX_TENSORS = 65_536
MAX_RANK = 8
MAX_DIM = 1 << 40

BF16 = "BF16"
DTYPES: dict[str, np.dtype[Any]] = {
    "I64": np.dtype("<i8"),
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "I32": np.dtype("<i4"),
    BF16: np.dtype("<u2"),  # float32 in memory
    "F16": np.dtype("<f2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
"""How numbers lie in a file, by their safetensors code; tensors stand in this order."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,199}(#[a-z]+)?")
_VERSION = re.compile(r"ltcore-ticket/([1-9][0-9]{0,8})\b")
_SEAL = re.compile(rf"ltcore-ticket/{FORMAT_VERSION} (sha256:[0-9a-f]{{64}})\n(.*)", re.DOTALL)


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies: safetensors dtype code, shape, first byte and end in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Container:
    """A file whose header was read and checked; made by `open_container`.

    Attributes:
        path: the file.
        size: its bytes.
        id: ``sha256:<hex>`` of the manifest, which holds the hash of every tensor.
        manifest: the manifest, with the entry ``tensors``.
        entries: ``{name: Entry}``.
    """

    path: Path
    size: int
    id: str
    manifest: dict[str, Any]
    entries: dict[str, Entry]

    def read(self, name: str) -> Array:
        """Return one tensor, owned and writable, after its hash was checked.

        BF16 comes as float32, which holds it exactly. Peak memory is that tensor, and half of it
        again for BF16; the header is held already, the rest is not read.

        Raises:
            TicketFileError: there is no such tensor, or its bytes are not what was written.
        """
        if name not in self.entries:
            raise TicketFileError(
                f"{self.path}: no tensor {name!r}; the file has {shown(self.entries)}"
            )
        entry = self.entries[name]
        raw = np.empty(entry.stop - entry.start, np.uint8)
        with _reading(self.path), open(self.path, "rb") as file:
            file.seek(entry.start)
            found = file.readinto(raw.data)
        if found != raw.size or sha256(raw) != self.manifest["tensors"][name]["sha256"]:
            raise TicketFileError(
                f"{self.path}: the bytes of tensor {name!r} do not have the hash in the "
                "manifest: the file was altered or damaged"
            )
        if entry.dtype == "BOOL":
            check_bool(raw, f"{self.path}: tensor {name!r}")
        array = raw.view(DTYPES[entry.dtype]).reshape(entry.shape)
        return bfloat16.widened(array) if entry.dtype == BF16 else array

    def verify(self) -> None:
        """Read and check every tensor, one at a time.

        Raises:
            TicketFileError: names the first tensor whose bytes are not what was written.
        """
        for name in self.entries:
            self.read(name)


def open_container(path: str | os.PathLike[str]) -> Container:
    """Return the checked header of the file at ``path``; no tensor is read.

    Memory is bounded by the header, at most 16 MiB, and what Python makes of its JSON.

    Raises:
        TicketFileError: the file is missing, no ticket, of a newer format, or its header is not
            exactly what `write` writes; says what was found and what was expected.
    """
    path = Path(path)
    header, start, size = _read_header(path)
    try:
        entries = parse_object(header, "header")
        value = _pop_metadata(entries)
        ticket_id, manifest = _open_seal(value)
        parsed = _parse_entries(entries, start)
        _check_layout(parsed, start, size)
        _check_manifest(manifest, parsed)
    except TicketFileError as error:
        raise TicketFileError(f"{path}: {error}") from None
    return Container(path, size, ticket_id, manifest, parsed)


def is_ticket(path: str | os.PathLike[str]) -> bool:
    """Return whether the file says that it is a ticket; whether it is a good one is another thing.

    Only the header is looked at. What cannot be read is no ticket.
    """
    try:
        header, _, _ = _read_header(Path(path))
        metadata = parse_object(header, "header").get("__metadata__")
    except TicketFileError:
        return False
    value = metadata.get("ltcore") if isinstance(metadata, dict) else None
    return isinstance(value, str) and _VERSION.match(value) is not None


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TicketFileError(f"cannot read {path}: {error.strerror or error}") from error


def _read_header(path: Path) -> tuple[str, int, int]:
    """Return the header's text, where the data starts, and the size of the file."""
    with _reading(path):
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise TicketFileError(f"cannot read {path}: not a file")
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            if not 2 <= length <= min(MAX_HEADER, size - 8):
                raise TicketFileError(
                    f"{path}: not a ticket, or a truncated one: in a file of {size} bytes the "
                    f"header claims {length} bytes, where 2 to {MAX_HEADER} are allowed"
                )
            header = file.read(length)
    if len(header) != length or header[:1] != b"{":
        raise TicketFileError(f"{path}: not a ticket: the header starts with {header[:8]!r}")
    if min(header) < 0x20 or max(header) > 0x7E:
        raise TicketFileError(f"{path}: the header has bytes that are not printable ASCII")
    return header.decode("ascii"), 8 + length, size


def _pop_metadata(header: dict[str, Any]) -> str:
    """Take ``__metadata__`` out of ``header`` and return our value in it."""
    metadata = header.pop("__metadata__", {})
    value = metadata.get("ltcore") if isinstance(metadata, dict) else None
    if not isinstance(value, str):
        raise TicketFileError(
            "a safetensors file, but not an ltcore ticket: its metadata has no text 'ltcore'"
        )
    version = _VERSION.match(value)
    if version and int(version[1]) > FORMAT_VERSION:
        raise TicketFileError(
            f"the ticket is of format {version[1]}, this ltcore reads up to {FORMAT_VERSION}; "
            "upgrade ltcore: pip install -U ltcore"
        )
    if len(metadata) != 1:
        raise TicketFileError(f"unknown metadata {shown(metadata.keys() - {'ltcore'})}")
    return value


def _open_seal(value: str) -> tuple[str, dict[str, Any]]:
    """Return the id and the manifest in the metadata's ``value``."""
    match = _SEAL.fullmatch(value)
    if not match:
        raise TicketFileError(
            f"the metadata starts with {value[:40]!r}; expected "
            f"'ltcore-ticket/{FORMAT_VERSION} sha256:<hex>' and a newline"
        )
    stated, text = match.groups()
    if not text.isascii():
        raise TicketFileError("the manifest has characters that are not ASCII")
    found = f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
    if found != stated:
        raise TicketFileError(f"the manifest has id {found}; the file states {stated}")
    return found, parse_object(text, "manifest")


def _parse_entries(header: dict[str, Any], start: int) -> dict[str, Entry]:
    check_count(len(header))
    entries = {}
    for name, fields in header.items():
        if not isinstance(fields, dict) or fields.keys() != {"dtype", "shape", "data_offsets"}:
            raise TicketFileError(
                f"tensor {name!r} has the fields {shown(fields)}; expected dtype, shape and "
                "data_offsets"
            )
        shape, offsets = fields["shape"], fields["data_offsets"]
        check_tensor(name, fields["dtype"], shape)
        if not is_sizes(offsets) or len(offsets) != 2:
            raise TicketFileError(f"tensor {name!r} has the offsets {shown(offsets)}")
        begin, end = offsets
        entries[name] = Entry(fields["dtype"], tuple(shape), start + begin, start + end)
    return entries


def _check_layout(entries: Mapping[str, Entry], start: int, size: int) -> None:
    """Raise unless the tensors fill the file from ``start`` to ``size``, each in its place."""
    position = start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        expected = math.prod(entry.shape) * DTYPES[entry.dtype].itemsize
        if entry.stop - entry.start != expected:
            raise TicketFileError(
                f"tensor {name!r} has {entry.stop - entry.start} bytes; {entry.dtype} of shape "
                f"{entry.shape} takes {expected}"
            )
        if entry.start != position:
            raise TicketFileError(
                f"tensor {name!r} starts at byte {entry.start}; expected {position}, with "
                "neither hole nor overlap"
            )
        position = entry.stop
    if position != size:
        raise TicketFileError(
            f"the file has {size} bytes; its tensors end at {position}: truncated or longer"
        )


def _check_manifest(manifest: Mapping[str, Any], entries: Mapping[str, Entry]) -> None:
    """Raise unless the manifest tells of exactly the tensors in the header."""
    tensors = manifest.get("tensors")
    if not isinstance(tensors, dict) or tensors.keys() != entries.keys():
        names = set(tensors) if isinstance(tensors, dict) else set()
        raise TicketFileError(
            "manifest and header differ in their tensors: only in the manifest "
            f"{shown(names - entries.keys())}, only in the header {shown(entries.keys() - names)}"
        )
    for name, entry in entries.items():
        told = tensors[name]
        if not isinstance(told, dict) or not isinstance(told.get("sha256"), str):
            raise TicketFileError(f"the manifest has no sha256 of tensor {name!r}")
        shape = told.get("shape")
        if told.get("dtype") != entry.dtype or not is_sizes(shape) or (*shape,) != entry.shape:
            raise TicketFileError(
                f"tensor {name!r} is {entry.dtype} of shape {list(entry.shape)} in the header, "
                f"{shown(told.get('dtype'))} of shape {shown(shape)} in the manifest"
            )


# Rules for reading and writing alike


def check_count(count: int) -> None:
    """Raise if a file cannot hold so many tensors."""
    if count > MAX_TENSORS:
        raise TicketFileError(f"{count} tensors; a file holds at most {MAX_TENSORS}")


def check_tensor(name: str, dtype: object, shape: object) -> None:
    """Raise unless a tensor of this name, dtype code and shape may be in a file."""
    if not _NAME.fullmatch(name):
        raise TicketFileError(
            f"tensor name {name[:80]!r} is not allowed: letters, digits and _ . / - up to 200, "
            "then at most one '#suffix' of small letters"
        )
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise TicketFileError(
            f"tensor {name!r} has dtype {shown(dtype)}; a file holds {', '.join(DTYPES)}"
        )
    check_shape(name, shape)


def check_shape(name: str, shape: object) -> None:
    """Raise unless a tensor in a file may have this shape."""
    if not is_sizes(shape) or len(shape) > MAX_RANK:
        raise TicketFileError(
            f"tensor {name!r} has shape {shown(shape)}; a file holds up to {MAX_RANK} "
            f"dimensions, each below {MAX_DIM}"
        )
    # numpy refuses the product even where another dimension is 0
    if math.prod(max(size, 1) for size in shape) >= 1 << 60:
        raise TicketFileError(f"tensor {name!r} has shape {shown(shape)}, too large to address")


def is_sizes(value: object) -> TypeGuard[list[int]]:
    """Return whether ``value`` is a row of plain integers that a dimension or offset may be."""
    return isinstance(value, list | tuple) and all(
        type(size) is int and 0 <= size < MAX_DIM for size in value
    )


def check_bool(raw: Array, what: str) -> None:
    """Raise if a byte of a BOOL tensor is neither 0 nor 1."""
    if raw.size and raw.max() > 1:
        raise TicketFileError(f"{what} is BOOL and has the byte {int(raw.max())}; expected 0 or 1")


def sha256(array: Array) -> str:
    """Return the hash of the bytes of a C-contiguous array."""
    return hashlib.sha256(array.reshape(-1).view(np.uint8).data).hexdigest()
