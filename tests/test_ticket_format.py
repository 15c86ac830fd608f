"""docs/ticket-format.md is held to the code, and a reader that knows only the page to ltcore."""

import dataclasses
import importlib.util
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ltcore import container, layouts, manifest, maskcoding, matching, parameters, probe, strictjson
from ltcore import ticketfile as tf
from ltcore.maskcoding import CodedMask
from ltcore.masks import Masks
from ltcore.parameters import Interface, Role, Site, Structure, in_canonical_order

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden"
CONTENTS = json.loads((GOLDEN / "contents.json").read_text())
PAGE = (ROOT / "docs" / "ticket-format.md").read_text()
READER = ROOT / "examples" / "read_ticket.py"
_SPEC = importlib.util.spec_from_file_location("read_ticket", READER)
example = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(example)

# The page


def rows(first):
    """The rows of the table whose head starts with this cell, as lists of cells."""
    lines = PAGE[PAGE.index(f"\n| {first} |") + 1 :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def words(cell):
    return re.findall(r"`([^`]+)`", cell)


def test_dtypes_are_those_of_the_page_in_its_order():
    told = [(words(name)[0], int(size)) for name, _, size in rows("dtype")]
    assert told == [(code, dtype.itemsize) for code, dtype in container.DTYPES.items()]


def test_kinds_and_their_axes_are_those_of_the_page():
    told = {words(kind)[0]: (axes(ins), axes(outs)) for kind, _, ins, outs in rows("kind")}
    assert told == {k.name: (dict(k.ins), dict(k.outs)) for k in layouts.KINDS.values()}


def axes(cell):
    return {role: int(axis) for role, axis in re.findall(r"(\w+) (\d)", cell)}


def test_the_order_of_gates_is_that_of_the_page():
    told = {words(kind)[0]: roles for kind, roles, _, _ in rows("kind")}
    assert "input, forget, cell, output" in told["lstm"]
    assert "reset, update, new" in told["gru"]


def test_limits_are_those_of_the_page():
    assert dict(rows("limit")) == {
        "header": f"{container.MAX_HEADER >> 20} MiB",
        "tensors": f"{container.MAX_TENSORS}",
        "axes of a tensor": f"{container.MAX_RANK}",
        "pairs of a group": f"{manifest.MAX_GROUP}",
        "a size": f"below 2^{math.log2(container.MAX_DIM):.0f}",
        "product of a shape, zeros counted as ones": "below 2^60",
        "numbers in one example of an input or output": f"2^{math.log2(parameters.MAX_FACE):.0f}",
        "vocabulary": "below 2^31",
        "sites of a tie": f"{matching.MAX_TIE}",
    }
    assert f"more than {strictjson.MAX_DEPTH}\nobjects and lists" in PAGE
    assert f"`{container._NAME.pattern}`" in PAGE
    assert f"k from 1 to 2^{math.log2(maskcoding.MAX_K):.0f}" in PAGE
    assert f"{tf.EXPANSION_FLOOR >> 20} MiB + 4096\ntimes the file's size" in PAGE


def test_fields_are_those_of_the_page():
    role = Role("w", "n", (1,), "float32", True, False, ("a",))
    site = Site("s", "linear", (role,), {"a": 1}, (), (("C", 1),), True, (("C", 1),), "q")
    face = Interface(("N",), (0,), "int32", 5)
    told = manifest.structure_to_json(Structure((site,), (face,), (face,)))
    record = tf.TicketRecord(
        Structure((dataclasses.replace(site, roles=()),)), Masks({}), {}, {}
    )  # fmt: skip
    fields = {
        "site": told["sites"][0],
        "role": told["sites"][0]["roles"][0],
        "face": told["inputs"][0],
        "manifest": {**tf._pack(record)[1], "tensors": {}, "ties": [], "probe_rule": 2},
    }
    for owner, found in fields.items():
        head = "field" if owner == "manifest" else f"field of a {owner}"
        on_page = [word for cell, *_ in rows(head) for word in words(cell)]
        assert sorted(on_page) == sorted(found), owner
    types = {word: kind for cell, kind, _ in rows("field of a role") for word in words(cell)}
    needed = manifest._role_to_json(Role("w", "n", (1,), "float32"))
    assert {name for name, kind in types.items() if "optional" not in kind} == set(needed)
    assert tuple(words(rows("field of a face")[2][2])) == parameters.FACE_DTYPES
    assert words(re.search(r"The words so far:(.*?),", PAGE)[1]) == sorted(manifest.FEATURES)


def test_the_example_of_gaps():
    text = PAGE[PAGE.index("    kept 2, 6, 17") :].split("\n\n")[0]
    *positions, total, k, b, s = map(int, re.findall(r"\d+", text.splitlines()[0]))
    data = bytes.fromhex(re.sub(r"[^0-9a-f]", "", text.splitlines()[2].replace("streams", "")))
    mask = np.isin(np.arange(total), positions)
    gaps = maskcoding._gaps(mask)
    assert f"gaps {', '.join(map(str, gaps))};" in text
    assert f"quotients {', '.join(map(str, gaps // k))};" in text
    assert f"remainders {', '.join(map(str, gaps % k))}," in text
    assert (b, s) == maskcoding._remainder_form(k)
    assert maskcoding._encode_gaps(gaps, k).tobytes() == data
    coded = CodedMask("gaps", np.frombuffer(data, np.uint8), len(positions), k)
    np.testing.assert_array_equal(maskcoding.decode(coded, (total,)), mask)


def test_the_example_of_a_group():
    group, columns, source = re.search(
        r"in_group (\[\[.*?\]\]): columns ([\d, ]+) of the file are ([\d, ]+) of", PAGE
    ).groups()
    index = layouts.canonical_index(tuple(map(tuple, json.loads(group))))
    assert numbers(columns) == list(range(6))
    assert numbers(source) == index.tolist()


def numbers(text):
    return [int(number) for number in text.split(", ")]


def splitmix64(seed, n):
    """As on the page, in Python's integers."""
    z = (seed + n * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def made_up(seed, count):
    return [(splitmix64(seed, n) >> 40) / 2**23 - 1 for n in range(1, count + 1)]


def test_the_table_of_made_up_numbers():
    for seed, first, values in rows("seed"):
        assert int(first, 16) == splitmix64(int(seed), 1)
        assert [float(v) for v in values.split(", ")] == made_up(int(seed), 3)
        assert probe._uniform((3,), int(seed)).tolist() == made_up(int(seed), 3)


def test_the_table_of_made_up_weights():
    for what, values in rows("position, kind, role, shape"):
        position, kind, role, *sizes = re.findall(r"\w+", what)
        shape = tuple(map(int, sizes))
        before = [Site(f"s{i}", "raw", ()) for i in range(int(position))]
        site = Site("s", kind, (Role(role, "", shape, "float32"),))
        found = probe.synthetic_params([*before, site])[f"s.{role}"].reshape(-1)
        told = [float(value) for value in values.split(", ")]
        assert found[: len(told)].tolist() == told


@given(
    st.sampled_from([k for k in layouts.KINDS if k != "raw"]),
    st.sampled_from(["weight", "bias", "running_var", "running_mean", "w_ih", "b_hh"]),
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=1, max_side=4),
    st.integers(0, 300),
    st.sampled_from([1, 2]),
)
def test_made_up_weights_follow_the_page(kind, role, shape, position, rule):
    before = [Site(f"s{i}", "raw", ()) for i in range(position)]
    site = Site("s", kind, (Role(role, "", shape, "float32"),))
    found = probe.synthetic_params([*before, site], rule=rule)[f"s.{role}"]
    seed = 7 + 1000003 * position + 7919 * sum(map(ord, role))
    u = np.float32(made_up(seed, found.size))
    if role == "running_var" or (role == "weight" and "norm" in kind):
        expected = np.float32(1) + np.float32(0.5) * u
    elif len(shape) < 2:
        expected = np.float32(0.3) * u
    else:
        fan_in = 1 if kind == "embedding" else math.prod(shape[1:])
        expected = u * np.float32(math.sqrt({1: 3, 2: 6}[rule] / fan_in))
    assert found.dtype == np.float32
    assert found.reshape(-1).tolist() == expected.tolist()


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=3),
    st.none() | st.integers(1, 50_000),
    st.lists(st.integers(1, 30), max_size=2),
    st.integers(0, 2),
    st.sampled_from([1, 2]),
)
def test_inputs_follow_the_page(sizes, vocabulary, tables, before, rule):
    floats = Interface(("N", "F"), (0, 3), "float32")
    tokens = Interface(("N", *"T" * len(sizes)), (0, *sizes), "int32", vocabulary)
    sites = tuple(
        Site(f"e{i}", "embedding", (Role("weight", "", (rows, 2), "float32"),))
        for i, rows in enumerate(tables)
    )
    found = probe.probe_inputs(Structure(sites, (*[floats] * before, tokens)), rule)
    for index in range(before):
        quiet = made_up(index, {1: 6, 2: 12}[rule])
        told = quiet[:6] + [float(np.float32(6) * np.float32(u)) for u in quiet[6:]]
        assert found[index].reshape(-1).tolist() == told
    v = vocabulary or min(tables, default=2)
    u = np.float32(made_up(before, found[-1].size))
    expected = [min(int(x), v - 1) for x in (u + np.float32(1)) / np.float32(2) * np.float32(v)]
    if vocabulary and expected:
        expected[0], expected[-1] = v - 1, 0
    assert found[-1].reshape(-1).tolist() == expected


def test_tolerances_are_those_of_the_page():
    assert probe.TOLERANCES["float32"] == probe.TOLERANCES["float64"] == 3e-5
    assert "3e-5 of its largest one (2e-2 where a role is float16,\n1e-1 where one is" in PAGE
    assert (probe.TOLERANCES["float16"], probe.TOLERANCES["bfloat16"]) == (2e-2, 1e-1)


# The reader of forty lines

DTYPES = {
    "float16": np.float16,
    "float32": np.float32,
    "float64": np.float64,
    "bfloat16": np.float32,
}


@st.composite
def records(draw):
    """A record of one to three layers of any dtype, kind of mask and feature order."""
    sites, params, masks = [], {}, {}
    for i in range(draw(st.integers(1, 3))):
        dtype = draw(st.sampled_from(list(DTYPES)))
        channels, space = draw(st.integers(1, 4)), draw(st.integers(1, 3))
        shape = draw(
            st.sampled_from([(5, channels * space), (0, channels * space), (40, channels * space)])
        )
        groups = [None, (("S0", space), ("C", channels))]
        roles = [Role("weight", "w", shape, dtype), Role("bias", "b", shape[:1], dtype)]
        sites.append(
            Site(f"l{i}", "linear", tuple(roles), in_group=draw(st.sampled_from(groups)),
                 out_group=draw(st.sampled_from([None, (("S0", 5), ("C", shape[0] // 5 or 1))]))
                 if shape[0] else None)
        )  # fmt: skip
        for role in roles:
            array = draw(finite(DTYPES[dtype], role.shape))
            if dtype == "bfloat16" and draw(st.booleans()):
                array = (array.view("u4") & np.uint32(0xFFFF0000)).view("f4")
            params[f"l{i}.{role.name}"] = array
        if draw(st.booleans()):
            density = draw(st.sampled_from([0, 0.03, 0.2, 0.6, 1]))
            rng = np.random.default_rng(draw(st.integers(0, 99)))
            masks[f"l{i}.weight"] = rng.random(shape) < density
    return tf.TicketRecord(Structure(tuple(sites)), Masks(masks), params, {})


def finite(dtype, shape):
    """Floats of all bits: subnormals, -0.0, the largest."""
    bits = np.dtype(dtype).itemsize
    patterns = hnp.arrays(f"u{bits}", shape).map(lambda a: a.view(dtype))
    return patterns.map(lambda a: np.where(np.isfinite(a), a, np.finfo(dtype).max))


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        assert found[name].tobytes() == array.tobytes(), name


@given(records())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
def test_the_example_reader_reads_what_ltcore_writes(tmp_path, record):
    tf.write(tmp_path / "t", record)
    arrays, masks = example.read_ticket(tmp_path / "t")
    assert_same(arrays, in_canonical_order(record.weights(), record.structure))
    assert_same(masks, in_canonical_order(record.masks, record.structure))


@given(records())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
def test_every_bit_of_every_dtype_comes_back(tmp_path, record):
    ticket_id = tf.write(tmp_path / "t", record)
    found = tf.read(tmp_path / "t")
    assert_same(found.params, record.weights())
    assert found.masks == record.masks
    assert found.structure == record.structure
    assert tf.record_id(found) == tf.record_id(record) == ticket_id
    for name, entry in container.open_container(tmp_path / "t").entries.items():
        role = record.structure.by_name.get(name.split("#")[0])[1]
        if role.dtype == "bfloat16" and "#bits" not in name and "#gaps" not in name:
            array = record.params[name.split("#")[0]]
            if name.endswith("#kept"):
                array = array[record.masks[name.removesuffix("#kept")]]
            exact = not (array.view("u4") & 0xFFFF).any()
            assert entry.dtype == ("BF16" if exact else "F32")


def test_the_example_is_short_and_needs_numpy_alone():
    lines = READER.read_text().split('"""', 2)[2].splitlines()
    code = [line for line in lines if line.strip() and not line.strip().startswith(('"""', "#"))]
    assert len(code) <= 55
    assert set(re.findall(r"^(?:import|from) (\w+)", READER.read_text(), re.M)) <= {
        "json", "sys", "hashlib", "numpy",
    }  # fmt: skip


# Golden files


@pytest.mark.parametrize("name", CONTENTS)
def test_golden_files_are_read_forever(name):
    path = GOLDEN / f"{name}.safetensors"
    told = CONTENTS[name]
    assert container.open_container(path).id == told["id"]
    record = tf.read(path)
    canonical = [in_canonical_order(part, record.structure)
                 for part in (record.weights(), record.masks)]  # fmt: skip
    for arrays, masks in (canonical, example.read_ticket(path)):
        assert {n: f"{a.dtype} {[*a.shape]} {digest(a)}" for n, a in arrays.items()} == told[
            "arrays"
        ]
        assert {n: digest(m) for n, m in masks.items()} == told["masks"]


def digest(array):
    return example.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def test_no_golden_file_is_left_out():
    assert {path.stem for path in GOLDEN.glob("*.safetensors")} == CONTENTS.keys()


def test_golden_files_cover_the_format():
    manifests, entries = [], []
    for name in CONTENTS:
        file = container.open_container(GOLDEN / f"{name}.safetensors")
        manifests.append(file.manifest)
        entries += [(n, e.dtype) for n, e in file.entries.items()]
    assert {dtype for _, dtype in entries} >= {"F64", "F32", "F16", "BF16", "I64", "U8"}
    for part in ("#bits", "#gaps", "#kept", "probe/synthetic", "probe/ticket", "probe/tie"):
        assert any(part in name for name, _ in entries), part
    assert {"out_group", "seams"} <= {word for m in manifests for word in m.get("requires", ())}
    assert any(m.get("ties") for m in manifests)
    assert any("vocabulary" in face for m in manifests for face in m["inputs"] or ())


def test_golden_files_are_not_overwritten(tmp_path):
    before = {path: path.read_bytes() for path in GOLDEN.iterdir() if path.is_file()}
    found = subprocess.run(
        [sys.executable, GOLDEN / "make.py", "gaps"], capture_output=True, text=True
    )
    assert found.returncode
    assert "gaps.safetensors exists" in found.stderr
    assert {path: path.read_bytes() for path in before} == before


def test_the_example_prints(capsys):
    found = subprocess.run(
        [sys.executable, READER, GOLDEN / "v1.safetensors"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "fc1.weight 30x17 101/510\n" in found.stdout
    assert "bn.steps scalar 1/1\n" in found.stdout
