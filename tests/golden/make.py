"""Makes golden files: `python tests/golden/make.py [CASE ...]`, all that are missing by default.

A golden file is made once and read forever, so an existing one is never written again: what
changes in the format gets a case of its own here. `contents.json` beside the files says what is in
them: the id, and the SHA-256 of every array and mask in the order of the file.

`v1.safetensors`, the first one, was made by `make_ticket` of `tests/test_ticketfile.py`.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

from ltcore import ticketfile
from ltcore.masks import Masks
from ltcore.parameters import Interface, Role, Site, Structure, in_canonical_order
from ltcore.probe import Probe, TieProbe
from ltcore.ticketfile import TicketRecord

FOLDER = Path(__file__).parent
CONTENTS = FOLDER / "contents.json"


def integers(shape, seed):
    """Integers from 0 to 2**32 - 1 that no version of numpy changes."""
    index = np.arange(1, np.prod(shape, dtype=int) + 1, dtype=np.uint64) + np.uint64(1000 * seed)
    mixed = index * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    return (mixed >> np.uint64(32)).reshape(shape)


def numbers(shape, seed, dtype="float32"):
    return (integers(shape, seed) / 2.0**31 - 1).astype(dtype)


def kept(shape, per_thousand, seed):
    return integers(shape, seed) % 1000 < per_thousand


def gaps():
    """A sparse dense layer behind a flatten, with a probe: gap-coded."""
    structure = Structure(
        (
            Site("conv", "conv", (Role("weight", "conv.weight", (3, 1, 3, 3), "float32"),),
                 {"stride": [1, 1]}, ()),
            Site("fc", "linear", (Role("weight", "fc.weight", (10, 48), "float32"),
                                  Role("bias", "fc.bias", (10,), "float32")),
                 {}, ("conv",), (("S0", 4), ("S1", 4), ("C", 3)), True),
        ),
        (Interface(("N", "C", "S0", "S1"), (0, 1, 6, 6), "float32"),),
        (Interface(("N", "F"), (0, 10), "float32"),),
    )  # fmt: skip
    masks = {"conv.weight": kept((3, 1, 3, 3), 300, 1), "fc.weight": kept((10, 48), 40, 2)}
    probe = Probe((numbers((2, 10), 3),), (numbers((2, 10), 4),))
    story = {"framework": "keras", "round": 9, "rewind": {"kind": "step", "step": 500}}
    return record(structure, masks, story, probe)


def bits():
    """Half kept: bits. Buffers, one of them infinite; a model without a graph."""
    structure = Structure(
        (
            Site("0", "conv", (Role("weight", "0.weight", (8, 4, 3), "float32"),)),
            Site("1", "batchnorm", (Role("weight", "1.weight", (8,), "float32"),
                                    Role("running_mean", "1.running_mean", (8,), "float32", True),
                                    Role("num_batches_tracked", "1.num_batches_tracked", (),
                                         "int64", True, False)), {"eps": 1e-5, "momentum": 0.1}),
            Site("attention", "raw", (Role("window", "a.window", (2, 2), "float32", True),)),
            Site("embed", "embedding", (Role("weight", "embed.weight", (5, 4), "float32",
                                             aliases=("head.weight",)),)),
        ),
        untraced="no example was given",
    )  # fmt: skip
    window = np.array([[0, -np.inf], [0, 0]], np.float32)
    arrays = {"1.num_batches_tracked": np.array(12), "attention.window": window}
    return record(structure, {"0.weight": kept((8, 4, 3), 500, 5)}, {}, None, arrays)


def bfloat16():
    """BF16 where that is exact, F32 where it is not: the last bias has float32's precision."""
    structure = dense("bfloat16", (12, 10), (6, 12))
    arrays = {name: whole_bfloat16(shape, seed)
              for seed, (name, shape) in enumerate(structure.shapes.items())}  # fmt: skip
    arrays["a.bias"][:4] = np.array([0x80000000, 0x00010000, 0x807F0000, 0x7F7F0000], "u4").view(
        "f4"
    )
    arrays["b.bias"] = numbers((6,), 7)
    masks = {"a.weight": kept((12, 10), 100, 8), "b.weight": kept((6, 12), 600, 9)}
    return record(structure, masks, {"round": 2}, None, arrays)


def whole_bfloat16(shape, seed):
    return (numbers(shape, seed).view("u4") & np.uint32(0xFFFF0000)).view("f4")


def float16():
    structure = dense("float16", (7, 9), (4, 7))
    edges = np.array([0x8000, 0x0001, 0x83FF, 0x7BFF, 0xFBFF, 0x3C00, 0], "u2").view("f2")
    masks = {"a.weight": kept((7, 9), 200, 10)}
    return record(structure, masks, {}, None, {"a.bias": edges})


def float64():
    structure = dense("float64", (5, 3), (0, 5))
    edges = np.array([-0.0, 5e-324, -2.2250738585072009e-308, 1.7976931348623157e308, 0.1])
    masks = {"a.weight": kept((5, 3), 400, 11), "b.weight": np.zeros((0, 5), bool)}
    return record(structure, masks, {}, None, {"a.bias": edges})


def orders():
    """Rows and columns in the order of another framework; a recurrent layer."""
    generator = (
        Site("fc", "linear", (Role("weight", "fc.kernel", (12, 5), "float32"),
                              Role("bias", "fc.bias", (12,), "float32")),
             {}, (), None, False, (("S0", 2), ("S1", 2), ("C", 3))),
        Site("norm", "groupnorm", (Role("weight", "norm.gamma", (12,), "float32"),),
             {"groups": 3}, ("fc",), (("S0", 2), ("S1", 2), ("C", 3))),
        Site("up", "conv_transpose", (Role("weight", "up.kernel", (3, 2, 2, 2), "float32"),), {},
             ("norm",)),
        Site("lstm", "lstm", tuple(Role(name, f"lstm.{name}", (16, *columns), "float32")
                                   for name, columns in (("w_ih", (8,)), ("w_hh", (4,)),
                                                         ("b_ih", ()))),
             {}, ("up",), (("S1", 4), ("C", 2)), True),
    )  # fmt: skip
    faces = (
        Interface(("N", "F"), (0, 5), "float32"),
        Interface(("N", "T", "F"), (0, 3, 4), "float32"),
    )
    structure = Structure(generator, faces[:1], faces[1:])
    masks = {"fc.weight": kept((12, 5), 250, 12), "lstm.w_ih": kept((16, 8), 120, 13)}
    probe = Probe((numbers((2, 3, 4), 14),), (numbers((2, 3, 4), 15),))
    return record(structure, masks, {"framework": "keras"}, probe)


def seams():
    """A dense layer behind a flattened image and a table that follow each other."""
    order = (("S0", 3), ("C", 2), ("+", 0), ("F", 4))
    join = Site("join", "linear", (Role("weight", "join.kernel", (7, 10), "float32"),), {}, (),
                order, True)  # fmt: skip
    faces = (
        Interface(("N", "C", "S0"), (0, 2, 3), "float32"),
        Interface(("N", "F"), (0, 4), "float32"),
    )
    structure = Structure((join,), faces, (Interface(("N", "F"), (0, 7), "float32"),))
    masks = {"join.weight": kept((7, 10), 400, 31)}
    probe = Probe((numbers((2, 7), 32),), (numbers((2, 7), 33),))
    return record(structure, masks, {"framework": "keras"}, probe)


def ties():
    """Attention over tokens, whose projections only trials tell apart."""
    projections = [
        Site(name, "linear", (Role("weight", f"{name}.weight", (4, 4), "float32"),), {}, preds,
             is_output=name == "o", part=part)
        for name, part, preds in (("q", "", ("embed",)), ("k", "", ("embed",)),
                                  ("v", "v", ("embed",)), ("o", "o", ("q", "k", "v")))
    ]  # fmt: skip
    embed = Site("embed", "embedding", (Role("weight", "embed.weight", (9, 4), "float32"),), {}, ())
    structure = Structure(
        (embed, *projections),
        (Interface(("N", "T"), (0, 6), "int32", 9),),
        (Interface(("N", "T", "F"), (0, 6, 4), "float32"),),
    )
    outputs = [(numbers((2, 6, 4), 16 + i),) for i in range(3)]
    probe = Probe(outputs[0], outputs[1], (TieProbe(("q", "k"), outputs[2]),))
    return record(structure, {"q.weight": kept((4, 4), 400, 19)}, {"framework": "torch"}, probe)


def dense(dtype, *shapes):
    """A structure of dense layers a, b, ..."""
    return Structure(
        tuple(
            Site(name, "linear", (Role("weight", f"{name}.kernel", shape, dtype),
                                  Role("bias", f"{name}.bias", shape[:1], dtype)))
            for name, shape in zip("abc", shapes, strict=False)
        ),
        untraced="no example was given",
    )  # fmt: skip


def record(structure, masks, provenance, probe, arrays=()):
    params = {
        name: numbers(role.shape, 20 + i, "float32" if role.dtype == "bfloat16" else role.dtype)
        for i, (name, _, role) in enumerate(structure.items())
    }
    return TicketRecord(structure, Masks(masks), params | dict(arrays), provenance, probe)


CASES = {
    case.__name__: case for case in (gaps, bits, bfloat16, float16, float64, orders, seams, ties)
}


def digest(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def contents(found):
    """What `contents.json` says of a record."""
    arrays = in_canonical_order(found.weights(), found.structure)
    masks = in_canonical_order(found.masks, found.structure)
    return {
        "arrays": {n: f"{a.dtype.name} {[*a.shape]} {digest(a)}" for n, a in arrays.items()},
        "masks": {n: digest(m) for n, m in masks.items()},
    }


def main(names):
    known = json.loads(CONTENTS.read_text())
    for name in names or [n for n in CASES if not (FOLDER / f"{n}.safetensors").exists()]:
        path = FOLDER / f"{name}.safetensors"
        if path.exists():
            sys.exit(f"{path.name} exists; a golden file is never changed: add a case")
        made = CASES[name]()
        known[name] = {"id": ticketfile.write(path, made), **contents(made)}
        print(path.name, known[name]["id"])
    CONTENTS.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
