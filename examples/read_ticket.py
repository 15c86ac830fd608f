"""Reads a ticket file with numpy alone: what docs/ticket-format.md says, in code.

`python examples/read_ticket.py FILE` prints name, shape and kept/total of every parameter. It
checks the id, every hash and the counts; it is no guard against hostile files (`ltcore verify` is).
"""

import json
import sys
from hashlib import sha256

import numpy as np

DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2",
          "I64": "<i8", "I32": "<i4", "U8": "u1", "BOOL": "?"}  # fmt: skip


def read_ticket(path):
    """Return ``{name: dense array}`` and ``{name: mask}``, in the order of the file."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        data = file.read()
    seal, text = header.pop("__metadata__")["ltcore"].split("\n", 1)
    check(seal == "ltcore-ticket/1 sha256:" + sha256(text.encode()).hexdigest(), "the id")
    manifest = json.loads(text)
    check(set(manifest.get("requires", [])) <= {"out_group", "seams"}, "its requirements")
    tensors = {}
    for name, entry in header.items():
        raw = data[slice(*entry["data_offsets"])]
        check(sha256(raw).hexdigest() == manifest["tensors"][name]["sha256"], f"{name}'s hash")
        array = np.frombuffer(raw, DTYPES[entry["dtype"]]).reshape(entry["shape"])
        brain = entry["dtype"] == "BF16"
        tensors[name] = (array.astype("<u4") << 16).view("<f4") if brain else array
    sites = manifest["sites"]
    shapes = {f"{s['name']}.{r['name']}": r["shape"] for s in sites for r in s["roles"]}
    masks = {name: mask(tensors, name, **told) for name, told in manifest["masks"].items()}
    arrays = {name: tensors[name] for name in shapes if name not in masks}
    for name, kept in masks.items():
        arrays[name] = np.zeros(kept.size, tensors[f"{name}#kept"].dtype)
        arrays[name][kept] = tensors[f"{name}#kept"]
    return tuple({n: a.reshape(shapes[n]) for n, a in part.items()} for part in (arrays, masks))


def mask(tensors, name, kept, total, k):
    """Return a mask, flat; ``k`` is None for one that stands in bits."""
    if k is None:
        flat = np.unpackbits(tensors[f"{name}#bits"], count=total, bitorder="little") == 1
    else:
        bits = np.unpackbits(tensors[f"{name}#gaps"], bitorder="little")
        width = k.bit_length() - 1  # bits of a short remainder; a long one has one more
        remainders = bits[: kept * width].reshape(kept, width) @ (1 << np.arange(width))
        bits = bits[(kept * width + 7) // 8 * 8 :]
        long = remainders >= 2 ** (width + 1) - k
        count = np.count_nonzero(long)
        remainders[long] = 2 * remainders[long] + bits[:count] - (2 ** (width + 1) - k)
        quotients = np.diff(np.flatnonzero(bits[(count + 7) // 8 * 8 :]), prepend=-1) - 1
        flat = np.zeros(total, bool)
        flat[np.cumsum(quotients * k + remainders + 1) - 1] = True
    check(np.count_nonzero(flat) == kept, f"the count of {name}")
    return flat


def check(holds, what):
    if not holds:
        raise ValueError(f"{what} is not as expected")


if __name__ == "__main__":
    arrays, masks = read_ticket(sys.argv[1])
    for name, array in sorted(arrays.items()):
        kept = np.count_nonzero(masks[name]) if name in masks else array.size
        print(name, "x".join(map(str, array.shape)) or "scalar", f"{kept}/{array.size}")
