"""A container: what is written is read, bytes repeat, and anything altered is refused."""

import errno
import hashlib
import json
import os
import struct
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors import safe_open
from safetensors.numpy import save, save_file

from ltcore.container import BF16, DTYPES, Entry, open_container
from ltcore.containerwriter import manifest_id, write
from ltcore.errors import TicketFileError

TENSORS = {
    "conv.weight#kept": np.arange(5, dtype=np.float32),
    "conv.weight#bits": np.array([7, 1], np.uint8),
    "bn.count": np.array(3, np.int64),
    "flags": np.array([True, False]),
    "empty": np.zeros((0, 3), np.float16),
}
MANIFEST = {"sites": [{"name": "conv", "eps": 1e-5, "note": "é"}], "parent": None}

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
NUMPY_DTYPES = [dtype for code, dtype in DTYPES.items() if code != BF16]
ARRAYS = st.sampled_from(NUMPY_DTYPES).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0))
)
NAMES = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,20}(#[a-z]{1,5})?", fullmatch=True)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ticket.safetensors"


def assert_same(found, expected):
    assert found.dtype == expected.dtype.newbyteorder("<")
    assert found.shape == expected.shape
    assert found.tobytes() == expected.astype(found.dtype).tobytes()


# Round trips


@given(
    st.dictionaries(NAMES, ARRAYS, min_size=1, max_size=4),
    st.dictionaries(st.text("ab"), JSON, max_size=3),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_what_is_written_is_read(path, tensors, manifest):
    ticket_id = write(path, tensors, manifest)
    file = open_container(path)
    assert file.id == ticket_id == manifest_id(tensors, manifest)
    assert {k: v for k, v in file.manifest.items() if k != "tensors"} == manifest
    assert file.manifest["tensors"].keys() == file.entries.keys() == tensors.keys()
    for name, array in tensors.items():
        assert_same(file.read(name), array)
        assert file.read(name).flags.writeable
    file.verify()


BASE = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


@pytest.mark.parametrize(
    "array",
    [
        np.asfortranarray(BASE),
        BASE.T,
        BASE[:, ::2],
        BASE[::-1, :, ::-1],
        np.broadcast_to(BASE[0, 0], (5, 4)),
        BASE.astype(">f4"),
        BASE.astype(">i8").T,
        np.arange(3, dtype=np.longlong),
        np.float64(2.5).reshape(()),
        np.array(2.5, ">f8"),
        np.array([[True, False], [False, False]]).T,
    ],
    ids=["F order", "transposed", "strided", "reversed", "broadcast", "big endian",
         "big endian transposed", "longlong", "0-d", "0-d big endian", "bool"],
)  # fmt: skip
def test_any_memory_layout_is_written_right(path, array):
    ticket_id = write(path, {"a": array}, {})
    assert_same(open_container(path).read("a"), array)
    assert ticket_id == manifest_id({"a": array.astype(array.dtype.newbyteorder("<")).copy()}, {})
    with safe_open(path, "numpy") as file:
        np.testing.assert_array_equal(file.get_tensor("a"), array)


def test_the_library_can_open_it(path):
    ticket_id = write(path, TENSORS, MANIFEST)
    with safe_open(path, "numpy") as file:
        assert set(file.keys()) == set(TENSORS)
        first, text = file.metadata()["ltcore"].split("\n", 1)
        for name, array in TENSORS.items():
            np.testing.assert_array_equal(file.get_tensor(name), array)
    assert first == f"ltcore-ticket/1 {ticket_id}"
    assert ticket_id == "sha256:" + hashlib.sha256(text.encode()).hexdigest()
    manifest = json.loads(text)
    assert text == json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    assert manifest["tensors"]["bn.count"] == {
        "dtype": "I64",
        "shape": [],
        "sha256": hashlib.sha256(struct.pack("<q", 3)).hexdigest(),
    }


@given(st.dictionaries(NAMES, ARRAYS, max_size=6), st.dictionaries(st.text("ab"), JSON, max_size=2))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_the_bytes_are_those_of_the_library(path, tensors, manifest):
    write(path, tensors, manifest)
    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
    assert path.read_bytes() == save({n: np.asarray(a, order="C") for n, a in tensors.items()},
                                     metadata)  # fmt: skip


def test_entries_say_where_the_bytes_are(path):
    write(path, TENSORS, MANIFEST)
    entry = open_container(path).entries["conv.weight#bits"]
    assert entry == Entry("U8", (2,), entry.start, entry.start + 2)
    assert path.read_bytes()[entry.start : entry.stop] == b"\x07\x01"


def test_the_same_input_gives_the_same_bytes(path, tmp_path):
    write(path, TENSORS, MANIFEST)
    for i in range(10):
        other = tmp_path / f"{i}"
        write(other, dict(reversed(TENSORS.items())), dict(reversed(MANIFEST.items())))
        assert other.read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("tensors", "manifest"),
    [
        (TENSORS | {"flags": np.array([True, True])}, MANIFEST),
        (TENSORS | {"flags": np.array([1, 0], np.uint8)}, MANIFEST),
        (TENSORS | {"conv.weight#bits": np.array([[7, 1]], np.uint8)}, MANIFEST),
        (TENSORS | {"more": np.zeros(0)}, MANIFEST),
        (TENSORS, MANIFEST | {"parent": 1}),
    ],
    ids=["value", "dtype", "shape", "tensor", "manifest"],
)
def test_the_id_covers(tensors, manifest):
    assert manifest_id(tensors, manifest) != manifest_id(TENSORS, MANIFEST)


def test_a_read_manifest_can_be_written_again(path):
    ticket_id = write(path, TENSORS, MANIFEST)
    assert manifest_id(TENSORS, open_container(path).manifest) == ticket_id


# bfloat16

HALVES = hnp.arrays("<u2", hnp.array_shapes(min_dims=0, max_dims=3, min_side=0))
SPECIAL = np.array([0, 0x8000, 1, 0x807F, 0x7F7F, 0xFF80, 0x7FC1], "<u2")
"""0.0, -0.0, the smallest and the largest subnormal, the largest, -inf, a NaN."""


@given(HALVES | st.just(SPECIAL))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_bfloat16_keeps_every_bit(path, halves):
    array = (halves.astype("<u4") << 16).view("<f4")
    ticket_id = write(path, {"a": array, "b": array}, {}, narrow=["a"])
    file = open_container(path)
    assert ticket_id == manifest_id({"a": array, "b": array}, {}, narrow=["a"])
    assert [file.entries[name].dtype for name in "ab"] == ["BF16", "F32"]
    assert path.read_bytes()[file.entries["a"].start : file.entries["a"].stop] == halves.tobytes()
    for name in "ab":
        assert_same(file.read(name), array)
        assert file.read(name).flags.writeable


def test_torch_reads_and_writes_the_same_bfloat16(path, tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors import torch as library

    tensors = {name: torch.randn(3, 5).bfloat16() for name in ("b", "a")}
    others = {"c": torch.ones(2, dtype=torch.float16), "d": torch.ones(2)}
    arrays = {n: t.float().numpy() for n, t in tensors.items()}
    arrays |= {n: t.numpy() for n, t in others.items()}
    write(path, arrays, {"x": 1}, narrow=tensors)
    for name, tensor in library.load_file(path).items():
        assert torch.equal(tensor, (tensors | others)[name])
    with safe_open(path, "pt") as file:
        library.save_file(tensors | others, tmp_path / "twin", file.metadata())
    assert path.read_bytes() == (tmp_path / "twin").read_bytes()


@pytest.mark.parametrize(
    "array", [np.float32([1.0, 1.00390625]), np.ones(2), np.ones(2, np.uint16), np.ones(2, "i4")]
)
def test_what_bfloat16_would_change_is_refused(path, array):
    with pytest.raises(TicketFileError, match="'a'"):
        write(path, {"a": array}, {}, narrow=["a"])
    assert list(path.parent.iterdir()) == []


# Alterations


def is_refused(path):
    try:
        open_container(path).verify()
    except TicketFileError:
        return True
    return False


def test_one_altered_bit_anywhere_is_refused(path):
    write(path, {"a": np.arange(3, dtype=np.float32), "b": np.array([True])}, {"x": "é"})
    whole = path.read_bytes()
    accepted = []
    with open(path, "r+b", buffering=0) as file:
        for position in range(len(whole)):
            for bit in range(8):
                os.pwrite(file.fileno(), bytes([whole[position] ^ 1 << bit]), position)
                if not is_refused(path):
                    accepted.append((position, bit))
            os.pwrite(file.fileno(), whole[position : position + 1], position)
    assert accepted == []
    assert not is_refused(path)


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
def test_one_altered_byte_is_refused(path, data):
    write(path, TENSORS, MANIFEST)
    whole = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(whole) - 1))
    value = data.draw(st.sampled_from(sorted(b'\t\n\r 0123456789FIU"{}[],:\\nuabe')))
    if whole[position] != value:
        whole[position] = value
        path.write_bytes(whole)
        assert is_refused(path)


def test_truncation_at_every_length_is_refused(path):
    write(path, TENSORS, MANIFEST)
    for size in reversed(range(path.stat().st_size)):
        os.truncate(path, size)
        assert is_refused(path)


def test_a_file_that_shrinks_after_it_was_opened_is_refused(path):
    write(path, TENSORS, MANIFEST)
    file = open_container(path)
    file.read("flags")  # leaves the right bytes in memory that the next read may get
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(TicketFileError, match=r"'flags'.*altered or damaged"):
        file.verify()


# Hostile headers

DATA = b"\1\0\0\0\2\0\0\0"
ENTRY = {"dtype": "I32", "shape": [2], "data_offsets": [0, 8]}
TOLD = {"dtype": "I32", "shape": [2], "sha256": hashlib.sha256(DATA).hexdigest()}


def seal(manifest=None, version="1"):
    """The value of the metadata key; a string is taken for the manifest's text as it is."""
    manifest = {"tensors": {"a": TOLD}} if manifest is None else manifest
    text = manifest if isinstance(manifest, str) else json.dumps(manifest)
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return f"ltcore-ticket/{version} sha256:{digest}\n{text}"


def header(entries=None, metadata=None):
    metadata = {"ltcore": seal()} if metadata is None else metadata
    return json.dumps({"__metadata__": metadata} | ({"a": ENTRY} if entries is None else entries))


def told(**more):
    """A header whose manifest is about the same tensors, so that only `more` can be wrong."""
    entries = {"a": ENTRY} | more
    tensors = {
        name: {"dtype": e["dtype"], "shape": e["shape"], "sha256": TOLD["sha256"]}
        for name, e in entries.items()
    }
    return header(entries, {"ltcore": seal({"tensors": tensors})})


def an(**fields):
    return told(a=ENTRY | fields)


def raw(text, data=DATA, length=None):
    text = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def manifest(text):
    return header(metadata={"ltcore": seal(text)})


def manifest_with(more):
    return manifest(f'{{"tensors":{json.dumps({"a": TOLD})},{more}}}')


EMPTY = {"dtype": "F32", "shape": [0], "data_offsets": [8, 8]}
Z = ENTRY | {"data_offsets": [8, 8], "shape": [0]}

HOSTILE = {
    "empty file": (b"", "0 bytes"),
    "7 bytes": (b"1234567", "file of 7 bytes"),
    "header of 0 bytes": (raw("", b"abc"), "claims 0 bytes"),
    "length 2**63": (raw(header(), length=1 << 63), "claims 9223372036854775808 bytes"),
    "length 200 MB": (raw(header(), length=200_000_000), "claims 200000000 bytes"),
    "length past the end": (raw(header(), length=len(header()) + 9), "not a ticket"),
    "a zip file": (b"PK\3\4" + bytes(100), "not a ticket"),
    "a space first": (raw(" " + header()), "not a ticket.*starts with b' {"),
    "a list": (raw("[" + header() + "]"), "not a ticket"),
    "not UTF-8": (raw(header().encode() + b"\xff"), "ASCII"),
    "UTF-8": (raw(header().replace("ltcore-ticket", "ltcore-tickét")), "ASCII"),
    "NUL behind": (raw(header() + "\0"), "ASCII"),
    "tab for padding": (raw(header() + "\t"), "ASCII"),
    "not JSON": (raw("{nothing"), "not JSON"),
    "garbage behind": (raw(header() + "x"), "not JSON: Extra data"),
    "depth 100,000": (raw("{" + '"a":{' * 100_000), "deeper than 32|not JSON"),
    "depth 40 in a tensor": (raw(header({"a": eval("[" * 40 + "]" * 40)})), "deeper than 32"),
    "NaN": (raw(header({"a": ENTRY | {"shape": [float("nan")]}})), "NaN"),
    "number of 5000 digits": (raw(header()[:-1] + ',"b":' + "1" * 5000 + "}"), "not JSON"),
    "no metadata": (raw(json.dumps({"a": ENTRY})), "not an ltcore ticket"),
    "metadata of another": (raw(header(metadata={"format": "pt"})), "not an ltcore ticket"),
    "metadata no object": (raw(header(metadata=["ltcore"])), "not an ltcore ticket"),
    "metadata not text": (raw(header(metadata={"ltcore": {}})), "not an ltcore ticket"),
    "more metadata": (raw(header(metadata={"ltcore": seal(), "z": ""})), r"unknown.*\['z'\]"),
    "metadata twice": (raw(header()[:-1] + ',"__metadata__":{}}'), "'__metadata__' twice"),
    "metadata key twice": (
        raw(header().replace('"ltcore":', '"ltcore":"","ltcore":')),
        "'ltcore' twice",
    ),
    "newer version": (
        raw(header(metadata={"ltcore": seal(version="2")})),
        "format 2.*reads up to 1.*upgrade ltcore",
    ),
    "newer with more metadata": (
        raw(header({"a": 1}, {"ltcore": "ltcore-ticket/12", "z": ""})),
        "format 12.*up to 1",
    ),
    "version 0": (
        raw(header(metadata={"ltcore": seal(version="0")})),
        "starts with 'ltcore-ticket/0",
    ),
    "version 01": (raw(header(metadata={"ltcore": seal(version="01")})), "ltcore-ticket/01"),
    "version of other digits": (
        raw(header(metadata={"ltcore": seal(version="\u0661")})),
        "expected",
    ),
    "no id": (raw(header(metadata={"ltcore": "ltcore-ticket/1 \n{}"})), "expected"),
    "id of another": (raw(header(metadata={"ltcore": seal() + " "})), "manifest has id sha256"),
    "tensor name twice": (raw(header()[:-1] + f',"a":{json.dumps(ENTRY)}}}'), "'a' twice"),
    "field twice": (raw(header().replace('"dtype":', '"dtype":"U8","dtype":')), "'dtype' twice"),
    "field more": (raw(an(extra=1)), "fields.*extra.*expected"),
    "field less": (raw(header({"a": {"dtype": "I32", "shape": [2]}})), "fields.*expected"),
    "entry a list": (raw(header({"a": [1]})), "fields"),
    "empty name": (raw(told(**{"": Z})), "name ''"),
    "name with dots first": (raw(told(**{"../../x": Z})), r"name '\.\./\.\./x'"),
    "name with NUL": (raw(told(**{"x\0": Z})), "name"),
    "name with newline": (raw(told(**{"x\n": Z})), "name"),
    "name not ASCII": (raw(told(**{"é": Z})), "name"),
    "name too long": (raw(told(**{"x" * 201: Z})), "up to 200"),
    "name with two suffixes": (raw(told(**{"x#kept#kept": Z})), "suffix"),
    "name a lone surrogate": (raw(told(**{"\ud800": Z})), "Unicode"),
    "dtype unknown": (raw(an(dtype="F8_E4M3")), "'a' has dtype 'F8_E4M3'.*F64, F32"),
    "dtype a number": (raw(an(dtype=4)), "dtype 4"),
    "dtype a list": (raw(an(dtype=["I32"])), "dtype"),
    "rank 9": (raw(an(shape=[1] * 9)), "up to 8"),
    "rank 100,000": (raw(an(shape=[1] * 100_000)), "up to 8"),
    "shape a number": (raw(an(shape=2)), "shape 2"),
    "dim negative": (raw(an(shape=[-2])), r"\[-2\]"),
    "dim a float": (raw(an(shape=[2.0])), r"\[2\.0\]"),
    "dim a bool": (raw(an(shape=[2, True])), "True"),
    "dim 2**60 by 0": (raw(an(shape=[1 << 60, 0])), "below 1099511627776"),
    "0 by 2**39 by 2**39": (
        raw(told(b=EMPTY | {"shape": [0, 1 << 39, 1 << 39]})),
        "'b'.*too large",
    ),
    "shape overflows": (raw(an(shape=[1 << 33, 1 << 31])), "too large"),
    "size less": (raw(an(shape=[1])), "8 bytes; I32 of shape .1,. takes 4"),
    "size more": (raw(an(shape=[3])), "8 bytes; I32 of shape .3,. takes 12"),
    "offsets negative": (raw(an(data_offsets=[-8, 0])), "offsets"),
    "offsets reversed": (raw(an(data_offsets=[8, 0])), "-8 bytes"),
    "offsets three": (raw(an(data_offsets=[0, 8, 8])), "offsets"),
    "offsets floats": (raw(an(data_offsets=[0, 8.0])), "offsets"),
    "offsets 2**70": (raw(an(data_offsets=[1 << 70, (1 << 70) + 8])), "offsets"),
    "overlap": (raw(told(b=ENTRY)), "neither hole nor overlap"),
    "overlap of a part": (
        raw(told(b=ENTRY | {"data_offsets": [4, 12]}), DATA + b"0000"),
        "overlap",
    ),
    "hole at the start": (raw(an(data_offsets=[4, 12]), b"0000" + DATA), "hole"),
    "hole between": (raw(told(b=ENTRY | {"data_offsets": [9, 17]}), bytes(17)), "hole"),
    "bytes behind": (raw(told(), DATA + b"\0"), "tensors end at"),
    "bytes missing": (raw(told(), DATA[:-1]), "truncated"),
    "bytes without tensors": (raw(header({}, {"ltcore": seal({"tensors": {}})})), "tensors end at"),
    "65,537 tensors": (raw(header({f"{i}": {} for i in range(65_537)})), "65537 tensors.*65536"),
    "manifest no JSON": (raw(manifest("tensors")), "manifest is not JSON"),
    "manifest a list": (raw(manifest("[]")), "manifest is no JSON object"),
    "manifest empty": (raw(manifest("{}")), "manifest and header differ.*header .'a'"),
    "manifest with a name more": (
        raw(header(metadata={"ltcore": seal({"tensors": {"a": TOLD, "b": TOLD}})})),
        r"only in the manifest \['b'\]",
    ),
    "manifest with other names": (
        raw(header(metadata={"ltcore": seal({"tensors": {"b": TOLD}})})),
        r"manifest \['b'\].*header \['a'\]",
    ),
    "manifest with a list": (raw(manifest('{"tensors":["a"]}')), "differ"),
    "manifest key twice": (raw(manifest_with('"x":{"y":1,"y":2}')), "'y' twice"),
    "manifest with NaN": (raw(manifest_with('"x":NaN')), "number NaN"),
    "manifest with Infinity": (raw(manifest_with('"x":-Infinity')), "-Infinity"),
    "manifest with 1e999": (raw(manifest_with('"x":1e999')), "1e999"),
    "manifest of depth 33": (raw(manifest('{"x":' + "[" * 32 + "]" * 32 + "}")), "deeper than 32"),
    "manifest of depth 100,000": (raw(manifest('{"x":' + "[" * 100_000)), "deeper than 32"),
    "manifest with a surrogate": (raw(manifest_with('"x":["\\ud800"]')), "Unicode.*ud800"),
    "manifest with a surrogate key": (raw(manifest_with('"\\udfff":1')), "Unicode"),
    "manifest not ASCII": (raw(manifest_with('"x":"é"')), "not ASCII"),
    "manifest without hash": (raw(manifest('{"tensors":{"a":{}}}')), "no sha256 of tensor 'a'"),
    "manifest hash a number": (raw(manifest('{"tensors":{"a":{"sha256":1}}}')), "no sha256"),
    "manifest of another dtype": (raw(header({"a": ENTRY | {"dtype": "F32"}})), "F32.*header.*I32"),
    "manifest with a shape of floats": (
        raw(header(metadata={"ltcore": seal({"tensors": {"a": TOLD | {"shape": [2.0]}}})})),
        r"\[2\.0\] in the manifest",
    ),
    "manifest of another shape": (
        raw(header({"a": ENTRY | {"shape": [1, 2]}})),
        r"\[1, 2\].*\[2\]",
    ),
}


def test_the_forged_file_without_a_fault_is_accepted(path):
    """Else the table below could be refused for a reason that is not in it."""
    for text in (header(), told(), header() + "   "):
        path.write_bytes(raw(text))
        np.testing.assert_array_equal(open_container(path).read("a"), [1, 2])
    path.write_bytes(raw(told(b=EMPTY | {"shape": [0, 1 << 39]})))
    assert open_container(path).entries["b"].shape == (0, 1 << 39)
    path.write_bytes(raw(manifest_with('"x":' + "[" * 31 + "]" * 31)))
    assert open_container(path).read("a").size == 2


@pytest.mark.parametrize(("content", "match"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_files_are_refused(path, content, match):
    path.write_bytes(content)
    with pytest.raises(TicketFileError, match=match) as refusal:
        open_container(path)
    assert str(path) in str(refusal.value)
    assert len(str(refusal.value)) < 1500


def test_a_header_of_more_than_16_mib_is_refused_unread(path):
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", (16 << 20) + 1) + b"{")
        file.truncate(20 << 20)
    with pytest.raises(TicketFileError, match=r"16777217 bytes.*16777216"):
        open_container(path)


def test_many_keys_with_the_last_one_twice_are_refused_soon(path):
    keys = ",".join(f'"{i}":0' for i in range(300_000))
    path.write_bytes(raw(f'{{{keys},"7":0}}'))
    with pytest.raises(TicketFileError, match="'7' twice"):
        open_container(path)


def test_bool_bytes_are_0_or_1(path):
    entry = {"dtype": "BOOL", "shape": [2], "data_offsets": [0, 2]}
    hashed = {"dtype": "BOOL", "shape": [2], "sha256": hashlib.sha256(b"\1\7").hexdigest()}
    path.write_bytes(
        raw(header({"a": entry}, {"ltcore": seal({"tensors": {"a": hashed}})}), b"\1\7")
    )
    with pytest.raises(TicketFileError, match=r"'a'.*byte 7"):
        open_container(path).read("a")


def test_a_tensor_that_is_not_there(path):
    write(path, TENSORS, MANIFEST)
    with pytest.raises(TicketFileError, match=r"'nope'.*bn\.count"):
        open_container(path).read("nope")


def test_altered_bytes_are_named(path):
    write(path, TENSORS, MANIFEST)
    whole = bytearray(path.read_bytes())
    whole[open_container(path).entries["conv.weight#kept"].start] ^= 1
    path.write_bytes(whole)
    file = open_container(path)
    file.read("flags")
    with pytest.raises(TicketFileError, match=r"'conv\.weight#kept'.*altered or damaged"):
        file.verify()


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("nowhere", "cannot read .*nowhere.*No such file"),
        ("folder", "cannot read .*folder: not a file"),
        ("pipe", "cannot read .*pipe: not a file"),
    ],
)
def test_what_is_no_file_is_refused(tmp_path, name, match):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(TicketFileError, match=match):
        open_container(tmp_path / name)


def test_a_plain_safetensors_file_is_called_that(path):
    save_file({"a b": np.zeros(3)}, path, {"format": "pt"})
    with pytest.raises(TicketFileError, match="a safetensors file, but not an ltcore ticket"):
        open_container(path)


# Writing that fails

LOOP = {}
LOOP["x"] = LOOP


@pytest.mark.parametrize(
    ("tensors", "manifest", "match"),
    [
        ({"a": np.zeros(1, np.complex64)}, {}, "'a' has dtype 'complex64'"),
        ({"a": np.zeros(1, np.uint16)}, {}, "'a' has dtype 'uint16'"),
        ({"a": np.array([None])}, {}, "'a' has dtype 'object'"),
        ({"a": np.zeros((1,) * 9, np.uint8)}, {}, "'a'.*up to 8"),
        ({"a": np.array([1, 7], np.uint8).view(np.bool_)}, {}, "'a'.*byte 7"),
        ({"a b": np.zeros(1)}, {}, "'a b'"),
        ({"__metadata__#": np.zeros(1)}, {}, "'__metadata__#'"),
        ({f"{i}": np.zeros(0) for i in range(65_537)}, {}, "65537 tensors"),
        ({}, {"x": float("nan")}, "JSON data"),
        ({}, {"x": np.float32(1)}, "JSON data"),
        ({}, {"x": LOOP}, "JSON data"),
        ({}, {"x": {1: 0, "1": 0}}, "JSON data"),
        ({}, {"x": "\ud800"}, "Unicode"),
        ({}, {"x": eval("[" * 40 + "]" * 40)}, "deeper than 32"),
    ],
    ids=["complex", "uint16", "object", "rank", "bool", "name", "suffix", "count", "nan", "numpy",
         "loop", "keys", "surrogate", "depth"],
)  # fmt: skip
def test_what_cannot_be_read_back_is_not_written(path, tensors, manifest, match):
    for make in (manifest_id, lambda *args: write(path, *args)):
        with pytest.raises(TicketFileError, match=match):
            make(tensors, manifest)
    assert list(path.parent.iterdir()) == []


def test_metadata_is_no_tensor_name(path):
    with pytest.raises(TicketFileError):
        write(path, {"__metadata__": np.zeros(1)}, {})
    assert list(path.parent.iterdir()) == []


def test_a_header_that_would_be_too_large_is_not_written(path):
    with pytest.raises(TicketFileError, match=r"cannot write .*16777216"):
        write(path, {}, {"x": "y" * (16 << 20)})
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("broken", ["containerwriter.open", "files.os.fsync", "files.os.replace"])
def test_a_full_disk_keeps_the_old_file(path, monkeypatch, broken):
    write(path, TENSORS, MANIFEST)
    old = path.read_bytes()

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(f"ltcore.{broken}", full, raising=False)
    with pytest.raises(
        TicketFileError, match=r"cannot write .*ticket\.safetensors.*No space"
    ) as error:
        write(path, {"a": BASE}, {})
    assert isinstance(error.value.__cause__, OSError)
    assert path.read_bytes() == old
    assert list(path.parent.iterdir()) == [path]


def test_a_file_the_system_cuts_short_keeps_the_old_one(path):
    """A limit on file sizes makes a true error of the system."""
    write(path, TENSORS, MANIFEST)
    old = path.read_bytes()
    script = f"""
        import resource, numpy as np
        from ltcore.containerwriter import write
        from ltcore.errors import TicketFileError
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        try:
            write({str(path)!r}, {{"a": np.zeros(100_000)}}, {{}})
        except TicketFileError as error:
            print(error)
    """
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert f"cannot write {path}" in found.stdout
    assert "too large" in found.stdout
    assert path.read_bytes() == old
    assert list(path.parent.iterdir()) == [path]


def test_an_interrupted_write_leaves_nothing(path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(path, TENSORS, MANIFEST)
    assert list(path.parent.iterdir()) == []


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(TicketFileError, match=r"cannot write .*nowhere/ticket.*No such file"):
        write(tmp_path / "nowhere" / "ticket", TENSORS, MANIFEST)


def test_a_link_stays_a_link_and_modes_follow_the_umask(path, tmp_path):
    (tmp_path / "link").symlink_to(path)
    previous = os.umask(0o027)
    try:
        write(tmp_path / "link", TENSORS, MANIFEST)
    finally:
        os.umask(previous)
    assert (tmp_path / "link").is_symlink()
    assert path.stat().st_mode & 0o777 == 0o640
    open_container(path).verify()


def test_only_regular_files_are_replaced(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    os.mkfifo(tmp_path / "pipe")
    for target in (folder, tmp_path / "pipe"):
        with pytest.raises(TicketFileError, match="not a regular file"):
            write(target, {"a": np.ones(3)}, {})
    assert (tmp_path / "pipe").is_fifo()
