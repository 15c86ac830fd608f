"""Mutated ticket files by the hundred thousand: `make fuzz`, or this file with --count and --seed.

Every file comes from a golden one by a mutation that its seed and number determine. Two kinds:

- *Damage* leaves the hashes as they are. Such a file is refused, or it is the same ticket: same
  id, same bits.
- A *forgery* is sealed again with fresh hashes by someone who means harm. Such a file is refused,
  or it is a ticket: it can be saved, and reads back with the same id and the same bits.

A refusal is a TicketFileError with a message of bounded length. Nothing crashes, hangs, or takes
more memory than 256 MiB + 4096 times the file's size: the process runs under a limit that allows
no more, and the peak of a sample is measured.

The mutations know the format from its page alone and share no code with ltcore. Exit code 1 and a
way to repeat it tell of a finding.
"""

import argparse
import contextlib
import copy
import hashlib
import json
import math
import os
import random
import re
import resource
import signal
import struct
import sys
import tempfile
import time
import tracemalloc
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from ltcore import ticketfile
from ltcore.errors import TicketFileError

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("*.safetensors"))
ITEM = {"I64": 8, "F64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2, "U8": 1, "BOOL": 1}
SECONDS = 20.0
"""No file may take longer, on however slow a machine."""

SLACK = 64 << 20
MEASURED = 200
"""The peak of one file in so many is measured."""

RESAVED = 1 << 20
"""Forgeries with more numbers are not saved again: it takes long and proves nothing more."""


class HangError(BaseException):
    """A file took too long."""


class PromiseError(Exception):
    """What must hold does not."""


def promise(holds, otherwise):
    if not holds:
        raise PromiseError(otherwise)


# Files in parts


def parts(data):
    """Return header text and body."""
    (length,) = struct.unpack("<Q", data[:8])
    return data[8 : 8 + length].decode(), data[8 + length :]


def joined(header, body):
    header = header.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(header)) + header + body


def opened(data):
    """Return the manifest and ``{name: [dtype, shape, bytes]}``."""
    text, body = parts(data)
    header = json.loads(text)
    manifest = json.loads(header.pop("__metadata__")["ltcore"].split("\n", 1)[1])
    tensors = {
        name: [entry["dtype"], entry["shape"], body[slice(*entry["data_offsets"])]]
        for name, entry in header.items()
    }
    return manifest, tensors


def sealed(manifest, tensors, rewrite=lambda text: text):
    """Return the file of a forger, who may rewrite the manifest's text before it is hashed."""
    if isinstance(manifest, dict):
        manifest["tensors"] = {
            name: {"dtype": dtype, "shape": shape, "sha256": hashlib.sha256(raw).hexdigest()}
            for name, (dtype, shape, raw) in tensors.items()
        }
    text = rewrite(json.dumps(manifest))
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    header = {"__metadata__": {"ltcore": f"ltcore-ticket/1 sha256:{digest}\n{text}"}}
    position = 0
    for name, (dtype, shape, raw) in tensors.items():
        offsets = [position, position + len(raw)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        position += len(raw)
    return joined(json.dumps(header), b"".join(raw for _, _, raw in tensors.values()))


# Damage: bytes to bytes


def flip_bits(data, rng):
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def overwrite(data, rng):
    start, size = rng.randrange(len(data)), rng.choice((1, 1, 2, 4, 8, 64))
    value = rng.choice((rng.randbytes(size), b"\0" * size, b"\xff" * size, b'{"[0]}:, '[:size]))
    return data[:start] + value + data[start + size :]


def overwrite_text(data, rng):
    """Put a character that JSON knows into the header."""
    position = 8 + rng.randrange(len(parts(data)[0]))
    return data[:position] + bytes([rng.choice(b'0123456789-+eE."\\{}[]:, truefalsn')]) + data[
        position + 1 :
    ]  # fmt: skip


def truncate(data, rng):
    return data[: rng.choice((rng.randrange(len(data)), len(data) - 1 - rng.randrange(16)))]


def extend(data, rng):
    return data + rng.choice((b"\0", b" ", b"\n", rng.randbytes(rng.randrange(1, 200)), data))


def move_block(data, rng):
    start, size = rng.randrange(len(data)), rng.randrange(1, 65)
    rest = data[:start] + data[start + size :]
    target = rng.randrange(len(rest) + 1)
    return rest[:target] + data[start : start + size] + rest[target:]


def copy_block(data, rng):
    start, target, size = rng.randrange(len(data)), rng.randrange(len(data)), rng.randrange(1, 65)
    skipped = rng.choice((0, size))  # inserted, or put over what was there
    return data[:target] + data[start : start + size] + data[target + skipped :]


def drop_block(data, rng):
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.randrange(1, 65) :]


def header_length(data, rng):
    (length,) = struct.unpack("<Q", data[:8])
    near = max(0, length + rng.randrange(-9, 10))
    far = rng.choice((0, 1, 2, 1 << 24, (1 << 24) + 1, 1 << 63, (1 << 64) - 1, rng.getrandbits(64)))
    return struct.pack("<Q", rng.choice((near, far))) + data[8:]


def splice(data, rng):
    """The start of one file and the end of another."""
    other = rng.choice(SEEDS)
    cut = rng.randrange(min(len(data), len(other)))
    return data[:cut] + other[cut:]


def edit_header(data, rng):
    text, body = parts(data)
    header = json.loads(text)
    edit(header, rng)
    return joined(dumped(header, rng), body)


def edit_sealed_manifest(data, rng):
    """Change the manifest and leave its hash."""
    text, body = parts(data)
    header = json.loads(text)
    first, manifest = header["__metadata__"]["ltcore"].split("\n", 1)
    manifest = json.loads(manifest)
    edit(manifest, rng)
    header["__metadata__"]["ltcore"] = f"{first}\n{json.dumps(manifest)}"
    return joined(json.dumps(header), body)


def reorder_header(data, rng):
    """What a reader need not mind: entries in another order, spaces, escapes."""
    text, body = parts(data)
    header = list(json.loads(text).items())
    rng.shuffle(header)
    return joined(dumped(dict(header), rng), body)


# Forgeries: manifest and tensors, sealed again


def edit_manifest(data, rng):
    manifest, tensors = opened(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        edit(manifest, rng)
    return sealed(manifest, tensors)


def rewrite_manifest(data, rng):
    """Edits that a JSON library would not write: keys twice, odd numbers, odd texts."""
    manifest, tensors = opened(data)
    pattern, value = rng.choice((
        (r'"[a-z_]+": ', lambda m: m[0] + rng.choice(("1", "{}", "null")) + ", " + m[0]),
        (r"\b\d+\b", lambda m: rng.choice((f"{m[0]}.0", f"-{m[0]}", f"{m[0]}e0", f"{m[0]}E2",
                                          f"0{m[0]}", f"+{m[0]}", "-0", "1e999", "NaN",
                                          "-Infinity", "9" * 5000, "9" * 4000))),
        (r'"[a-z_]+"', lambda m: rng.choice((r'"\ud800"', r'"\u0000"', '"é"', r'"\q"', '"\t"',
                                            m[0].replace("a", r"\u0061"), "'a'"))),
        (r"\{|\[", lambda m: m[0] * rng.choice((1, 2, 40, 2000))),
        (r"\}|\]", lambda m: rng.choice(("", f",{m[0]}", m[0] * 2))),
        (r", ", lambda m: rng.choice((",,", " ", ";", ",\n", ", /* */"))),
    ))  # fmt: skip

    def rewrite(text):
        places = list(re.finditer(pattern, text))
        place = rng.choice(places)
        return text[: place.start()] + value(place) + text[place.end() :]

    return sealed(manifest, tensors, rewrite)


def edit_counts(data, rng):
    manifest, tensors = opened(data)
    entry = rng.choice([*manifest["masks"].values(), manifest])
    key = rng.choice(("kept", "total", "k"))
    entry[key] = rng.choice((
        (entry.get(key) or 0) + rng.choice((-8, -1, 1, 8)), rng.choice(NUMBERS), odd_value(rng),
    ))  # fmt: skip
    return sealed(manifest, tensors)


def edit_group(data, rng):
    """Feature orders that fit the axis, or nearly."""
    manifest, tensors = opened(data)
    site = rng.choice(manifest["sites"])
    shape = rng.choice([role["shape"] or [1] for role in site["roles"]])
    sizes = [rng.choice((2, 3, 4, shape[-1], shape[0], 1, 0)) for _ in range(rng.randrange(1, 4))]
    fitting = [factor for factor in range(1, shape[-1] + 1) if shape[-1] % factor == 0] or [0]
    first = rng.choice(fitting)
    sizes = rng.choice((sizes, [first, shape[-1] // max(first, 1)], [1] * 9, []))
    labels = rng.choice((["C", "S0", "S1"], ["S0", "C", "S1"], ["?", "C", "T"], ["", "é", "\n"]))
    site[rng.choice(("in_group", "out_group"))] = [
        [labels[i % 3], size] for i, size in enumerate(sizes)
    ]
    manifest["requires"] = rng.choice((["out_group"], [], ["ties", "out_group"], "out_group"))
    if not manifest["requires"]:
        del manifest["requires"]
    return sealed(manifest, tensors)


def edit_tensor_bytes(data, rng):
    manifest, tensors = opened(data)
    tensor = rng.choice(list(tensors.values()))
    if tensor[2]:
        change = rng.choice((flip_bits, flip_bits, overwrite))
        tensor[2] = bytes(change(tensor[2], rng))[: len(tensor[2])].ljust(len(tensor[2]), b"\0")
    return sealed(manifest, tensors)


def edit_tensor_form(data, rng):
    """Another dtype, shape or size, which header and manifest agree on."""
    manifest, tensors = opened(data)
    tensor = rng.choice(list(tensors.values()))
    tensor[rng.choice((0, 1))] = rng.choice((
        rng.choice(list(ITEM)), [len(tensor[2])], [*tensor[1], 1], tensor[1][::-1], tensor[1][1:],
        [1] * 9, [1 << 39, 0], [0, 1 << 39, 1 << 39], odd_value(rng),
    ))  # fmt: skip
    with contextlib.suppress(TypeError, KeyError):
        size = ITEM[tensor[0]] * math.prod(tensor[1])
        if 0 <= size < 10_000 and rng.random() < 0.8:
            tensor[2] = tensor[2][:size].ljust(size, b"\0")
    return sealed(manifest, tensors)


def edit_tensor_set(data, rng):
    manifest, tensors = opened(data)
    name, other = rng.choice(list(tensors)), rng.choice(list(tensors))
    change = rng.randrange(4)
    if change == 0:
        del tensors[name]
    elif change == 1:
        tensors[name], tensors[other] = tensors[other], tensors[name]
    elif change == 2:
        new = name.replace("#bits", "#gaps") if "#bits" in name else name.replace("#gaps", "#bits")
        tensors[rng.choice((new, f"{name}#kept", "probe/tie0_0", "probe/x", "é"))] = tensors[name]
    else:
        tensors[name] = ["U8", [3], rng.randbytes(3)]
    return sealed(manifest, tensors)


def claim_more(data, rng):
    """A mask over far more weights than the file has bytes, told the same everywhere."""
    manifest, tensors = opened(data)
    roles = {f"{site['name']}.{role['name']}": role
             for site in manifest["sites"] for role in site["roles"]}  # fmt: skip
    name = rng.choice([n for n in manifest["masks"] if n in roles])
    role, entry = roles[name], manifest["masks"][name]
    role["shape"] = [rng.choice((10**3, 10**5, 10**6, 3 * 10**6, 10**7, 10**9)), *role["shape"][1:]]
    manifest["total"] += math.prod(role["shape"]) - entry["total"]
    entry["total"] = math.prod(role["shape"])
    return sealed(manifest, tensors)


# Edits of a JSON tree

NUMBERS = (0, 1, -1, 2, 7, 8, 9, 255, 2**15, 2**31, 2**32, 2**40 - 1, 2**40, 2**53 + 1, 2**63,
           2**64, -(2**63), 10**100, 10**4000)  # fmt: skip
VALUES = (
    None, True, False, "", "weight", "raw", "linear", "batchnorm", "embedding", "bfloat16", "C",
    "?", "\0", "é", "\ud800", "../../etc/passwd", "x" * 300, "x" * 30_000, [], {}, [[]], [None],
    [0], [-1], [2**40], [1] * 9, ["C", 2], [["C", 2], ["S0", 2]], [["?", 0]], {"a": 1}, 0.5, 1e308,
    -0.0, 5e-324, 3.0, [[]] * 100,
)  # fmt: skip


def odd_value(rng):
    """A value of its own, which later edits may change."""
    return copy.deepcopy(rng.choice(VALUES))


def edit(tree, rng):
    """Change one place of a JSON tree, in place; all depths are as likely."""
    node = tree
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            break
        key = rng.choice(keys)
        inner = node[key]
        if not isinstance(inner, dict | list) or rng.random() < 0.25:
            break
        node = inner
    if not keys:
        if isinstance(node, list):
            node.append(odd_value(rng))
        else:
            node["x"] = odd_value(rng)
        return
    change = rng.randrange(8)
    if change == 0:
        del node[key]
    elif change == 1:
        node[key] = rng.choice(NUMBERS)
    elif change == 2:
        node[key] = nested(rng.choice((1, 25, 40, 400)), rng)
    elif change == 3 and isinstance(node, dict):
        node[rng.choice(("x", "name", "kind", "requires", "ties", key.upper()))] = node.pop(key)
    elif change == 4 and isinstance(node, list):
        node.insert(rng.randrange(len(node) + 1), node[key])
    elif change == 5:
        other = rng.choice(keys)
        node[key], node[other] = node[other], node[key]
    elif change == 6 and type(node[key]) is int:
        node[key] += rng.choice((-1, 1, 2**33))
    else:
        node[key] = odd_value(rng)


def nested(depth, rng):
    value = rng.choice((0, "x"))
    for _ in range(depth):
        value = [value] if rng.random() < 0.5 else {"a": value}
    return value


def dumped(header, rng):
    return json.dumps(header, indent=rng.choice((None, None, 1)), ensure_ascii=rng.random() < 0.9)


DAMAGE = (flip_bits, overwrite, overwrite_text, truncate, extend, move_block, copy_block,
          drop_block, header_length, splice, edit_header, edit_sealed_manifest,
          reorder_header)  # fmt: skip
FORGERIES = (edit_manifest, edit_manifest, rewrite_manifest, edit_counts, edit_group,
             edit_tensor_bytes, edit_tensor_form, edit_tensor_set)  # fmt: skip
RARE = claim_more
"""Takes a second where it is accepted, so it comes once in 2000."""

SEEDS = [path.read_bytes() for path in GOLDEN]


def mutated(seed, number):
    """Return the mutation of this number, the golden file's index, and the file."""
    rng = random.Random(f"{seed}/{number}")
    mutate = rng.choice(DAMAGE if rng.random() < 0.5 else FORGERIES)
    if rng.random() < 1 / 2000:
        mutate = RARE
    origin = rng.randrange(len(SEEDS))
    try:
        return mutate, origin, bytes(mutate(SEEDS[origin], rng))
    except RecursionError:  # the forger's own JSON library has limits too
        return mutate, origin, b""


# What must hold


def fingerprint(record):
    """Everything in a record, comparable to the bit."""
    arrays = [*record.params.items(), *record.masks.items()]
    outputs = (*record.probe.synthetic, *record.probe.ticket) if record.probe else ()
    return (
        json.dumps(asdict(record.structure), sort_keys=True),
        json.dumps(record.provenance, sort_keys=True),
        record.probe is None,
        *((name, a.dtype, a.shape, a.tobytes()) for name, a in arrays),
        *((a.dtype, a.shape, a.tobytes()) for a in outputs),
    )


def check(path, resaved, mutate, original):
    """Return the words for what became of the file at ``path``; raise if a promise is broken."""
    try:
        record = ticketfile.read(path)
    except TicketFileError as error:
        promise(len(str(error)) < 2000, f"a message of {len(str(error))} characters")
        return "refused"
    if mutate in DAMAGE:
        promise(fingerprint(record) == original, "altered content was accepted")
        return "same ticket"
    if sum(array.size for array in record.params.values()) > RESAVED:
        return "large ticket"
    saved = ticketfile.write(resaved, record)
    again = ticketfile.read(resaved)
    promise(ticketfile.record_id(again) == saved, "the id changes with every save")
    promise(fingerprint(again) == fingerprint(record), "a save changes the content")
    return "other ticket"


def check_peak(path, size):
    """Raise if reading takes more memory than is promised."""
    tracemalloc.start()
    with contextlib.suppress(TicketFileError):
        ticketfile.read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    promise(peak <= (256 << 20) + 4096 * size, f"{size} bytes unfolded to {peak}")


@contextlib.contextmanager
def time_limit(seconds):
    def expire(*_):
        raise HangError(f"took more than {seconds} seconds")

    previous = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def limit_memory(size):
    """Let this process have what a file of ``size`` may take, and no more."""
    if not sys.platform.startswith("linux"):
        return  # the sample is measured all the same
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    allowed = pages * resource.getpagesize() + (256 << 20) + 4096 * size + SLACK
    resource.setrlimit(resource.RLIMIT_AS, (allowed, resource.RLIM_INFINITY))


def fuzz(seed, numbers, folder):
    """Try the files of these numbers; return counts by mutation and outcome, and findings."""
    path, resaved = folder / "mutated", folder / "resaved"
    originals = []
    for data in SEEDS:
        path.write_bytes(data)
        originals.append(fingerprint(ticketfile.read(path)))
    outcomes, findings = Counter(), []
    for number in numbers:
        mutate, origin, data = mutated(seed, number)
        if data in SEEDS:
            continue
        with open(path, "wb") as file:
            file.write(data)
        try:
            with time_limit(SECONDS):
                outcome = check(path, resaved, mutate, originals[origin])
                if number % MEASURED == 0 or mutate is RARE:
                    check_peak(path, len(data))
        except (Exception, HangError) as error:  # noqa: BLE001  whatever it is, it is a finding
            outcome = "FINDING"
            where = error.__traceback__
            while where.tb_next:
                where = where.tb_next
            findings.append(
                f"--seed {seed} --only {number}: {mutate.__name__} of {GOLDEN[origin].name}: "
                f"{type(error).__name__}: {str(error)[:300]} (in {where.tb_frame.f_code.co_name}, "
                f"line {where.tb_lineno})"
            )
        outcomes[mutate.__name__, outcome] += 1
    return outcomes, findings


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--only", type=int, help="this file, kept as mutated.safetensors")
    options = parser.parse_args()
    numbers = range(options.count) if options.only is None else [options.only]
    if options.only is not None:
        Path("mutated.safetensors").write_bytes(mutated(options.seed, options.only)[2])
    ram = Path("/dev/shm")
    limit_memory(2 * max(map(len, SEEDS)))
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(dir=ram if os.access(ram, os.W_OK) else None) as folder:
        outcomes, findings = fuzz(options.seed, numbers, Path(folder))
    for (mutation, outcome), count in sorted(outcomes.items()):
        print(f"{mutation:22} {outcome:12} {count:7,}")
    print(f"{sum(outcomes.values()):,} files of seed {options.seed} in "
          f"{time.monotonic() - begun:.0f} s, {len(findings)} findings")  # fmt: skip
    print("\n".join(findings[:20]))
    return bool(findings)


if __name__ == "__main__":
    sys.exit(main())
