"""Bytes of a ticket file against what no file of random masks can go below.

The bound is n * H(p) / 8 bytes for the masks, n weights of which a share p is kept, and 4 bytes
for each survivor. Run: python benchmarks/ticket_size.py
"""

import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from shapes import resnet50_shapes

from ltcore import container, containerwriter, maskcoding
from ltcore.arrays import Array


def site(name: str, shape: tuple[int, ...], previous: str | None) -> dict[str, Any]:
    """A record as a real ticket has it for each layer."""
    layer = name.removesuffix(".weight")
    record: dict[str, Any] = {
        "name": layer,
        "kind": "conv" if len(shape) == 4 else "dense",
        "roles": [{"name": "weight", "native": name, "shape": shape, "dtype": "float32"}],
        "preds": [previous] if previous else [],
    }
    if len(shape) == 4:
        record["attrs"] = {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 1}
    return record


def ticket(sparsity: float, seed: int = 0) -> tuple[dict[str, Array], dict[str, Any], float]:
    """Return tensors, manifest and the bound in bytes of a random ticket."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, Array] = {}
    sites: list[dict[str, Any]] = []
    coded: dict[str, dict[str, Any]] = {}
    for name, shape in resnet50_shapes().items():
        mask = rng.random(shape, np.float32) >= sparsity
        code = maskcoding.encode(mask)
        tensors[f"{name}#{code.encoding}"] = code.data
        tensors[f"{name}#kept"] = rng.standard_normal(code.kept, np.float32)
        coded[name] = {"kept": code.kept, "total": mask.size, "k": code.k}
        sites.append(site(name, shape, sites[-1]["name"] if sites else None))
    kept, total = (sum(entry[key] or 0 for entry in coded.values()) for key in ("kept", "total"))
    p = kept / total
    entropy = -(p * math.log2(p) + (1 - p) * math.log2(1 - p))
    manifest = {"sites": sites, "masks": coded, "kept": kept, "total": total, "provenance": {}}
    return tensors, manifest, total * entropy / 8 + 4 * kept


def main() -> None:
    """Print one line for each sparsity."""
    print("sparsity  file MB  bound MB   ratio  masks/entropy  header kB  write s  verify s")
    for sparsity in (0.8, 0.95, 0.986):
        tensors, manifest, bound = ticket(sparsity)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "resnet50.safetensors"
            start = time.perf_counter()
            containerwriter.write(path, tensors, manifest)
            written = time.perf_counter()
            container.open_container(path).verify()
            verified = time.perf_counter()
            size = path.stat().st_size
        header = size - sum(array.nbytes for array in tensors.values())
        masks = sum(array.nbytes for name, array in tensors.items() if not name.endswith("#kept"))
        entropy = bound - 4 * manifest["kept"]
        print(
            f"{sparsity:8.1%} {size / 1e6:8.3f} {bound / 1e6:9.3f} {size / bound:7.4f} "
            f"{masks / entropy:14.4f} {header / 1e3:10.1f} {written - start:8.2f} "
            f"{verified - written:9.2f}"
        )


if __name__ == "__main__":
    main()
