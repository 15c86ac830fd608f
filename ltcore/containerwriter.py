"""Writing a container: exact bytes, whole or not at all.

They are those of the safetensors library, which this file does without: the library's low level
differs between its versions, copies everything in some of them, takes raw addresses in others, and
cannot be handed bfloat16 by numpy in any.
"""

import hashlib
import json
import os
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ltcore import bfloat16
from ltcore.arrays import Array
from ltcore.container import (
    BF16,
    DTYPES,
    FORMAT_VERSION,
    check_bool,
    check_count,
    check_tensor,
    open_container,
    sha256,
)
from ltcore.errors import TicketFileError
from ltcore.files import replacing, without_temporary
from ltcore.strictjson import parse_object

_CODES = {dtype: code for code, dtype in DTYPES.items() if code != BF16}
_RANKS = {code: rank for rank, code in enumerate(DTYPES)}


@dataclass(frozen=True, eq=False)
class _Stored:
    """A tensor as its bytes will be: C order, little endian; bfloat16 as uint16."""

    code: str
    array: Array


def write(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Array],
    manifest: Mapping[str, Any],
    narrow: Collection[str] = (),
) -> str:
    """Write ``tensors`` and ``manifest`` to ``path``, whole or not at all, and return the id.

    The same input gives the same bytes. A file that stood at ``path`` stays until the new one is
    complete, on disk and accepted by `open_container`. C-contiguous little-endian arrays are
    written without a copy; what is stored as BF16 is copied, at half its size.

    Args:
        path: the file, made or replaced.
        tensors: ``{name: array}``, of any memory order and byte order, dtypes as in
            `ltcore.container.DTYPES`.
        manifest: JSON data; ``tensors`` in it is ours, and replaced if there.
        narrow: names of float32 tensors to store as BF16, which must hold them exactly.

    Raises:
        TicketFileError: a name, dtype, shape or manifest cannot be stored, or the file cannot be
            written; the old file is as it was.
    """
    stored = _stored(tensors, narrow)
    ticket_id, text = _seal(stored, manifest)
    try:
        with replacing(path) as temporary:
            _save(temporary, stored, f"ltcore-ticket/{FORMAT_VERSION} {ticket_id}\n{text}")
            _check_readable(temporary, ticket_id)
    except (OSError, TicketFileError) as error:
        raise TicketFileError(f"cannot write {path}: {without_temporary(error)}") from error
    return ticket_id


def manifest_id(
    tensors: Mapping[str, Array], manifest: Mapping[str, Any], narrow: Collection[str] = ()
) -> str:
    """Return the id, ``sha256:<hex>``, that `write` would give, without writing.

    Raises:
        TicketFileError: a name, dtype, shape or manifest cannot be stored.
    """
    return _seal(_stored(tensors, narrow), manifest)[0]


def _stored(tensors: Mapping[str, Array], narrow: Collection[str]) -> dict[str, _Stored]:
    """Return the tensors, checked, in the order of the file: by dtype, then by name."""
    check_count(len(tensors))
    found = {name: _one_stored(name, array, name in narrow) for name, array in tensors.items()}
    return dict(sorted(found.items(), key=lambda item: (_RANKS[item[1].code], item[0])))


def _one_stored(name: str, array: Array, narrow: bool) -> _Stored:
    dtype = array.dtype.newbyteorder("<")
    code = _CODES.get(dtype, str(dtype))
    check_tensor(name, code, array.shape)
    array = np.asarray(array, dtype, order="C")  # unlike ascontiguousarray keeps 0-d
    if code == "BOOL":
        check_bool(array.reshape(-1).view(np.uint8), f"tensor {name!r}")
    if not narrow:
        return _Stored(code, array)
    if code != "F32" or not bfloat16.is_exact(array):
        raise TicketFileError(f"tensor {name!r} is {code} with values that BF16 does not hold")
    return _Stored(BF16, bfloat16.narrowed(array))


def _seal(stored: Mapping[str, _Stored], manifest: Mapping[str, Any]) -> tuple[str, str]:
    """Return the id and the text of ``manifest`` with what it says of the tensors."""
    tensors = {
        name: {"dtype": one.code, "shape": one.array.shape, "sha256": sha256(one.array)}
        for name, one in stored.items()
    }
    try:
        text = json.dumps(
            {**manifest, "tensors": tensors},
            sort_keys=True,
            separators=(",", ":"),
            allow_nan=False,
        )
    except (TypeError, ValueError, RecursionError) as error:
        raise TicketFileError(f"the manifest is not JSON data: {error}") from error
    parse_object(text, "manifest")
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}", text


def _save(path: Path, stored: Mapping[str, _Stored], value: str) -> None:
    header = _header(stored, value)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for one in stored.values():
            file.write(one.array.reshape(-1).view(np.uint8).data)


def _header(stored: Mapping[str, _Stored], value: str) -> bytes:
    """Return the header, spaces behind it so that the data starts at a multiple of 8."""
    entries: dict[str, Any] = {"__metadata__": {"ltcore": value}}
    position = 0
    for name, one in stored.items():
        end = position + one.array.nbytes
        shape = one.array.shape
        entries[name] = {"dtype": one.code, "shape": shape, "data_offsets": (position, end)}
        position = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)


def _check_readable(path: Path, ticket_id: str) -> None:
    """Hold what was written to the reader's own checks, the limit of the header among them."""
    found = open_container(path).id
    if found != ticket_id:
        raise TicketFileError(f"the file reads back with id {found}, not {ticket_id}")
