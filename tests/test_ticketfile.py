"""The ticket file: what is in it comes back, and a file that lies is refused."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ltcore as lt
from ltcore import container, containerwriter, ticketfile
from ltcore.errors import NonFiniteError, TicketFileError
from ltcore.parameters import Interface, Role, Site, Structure
from ltcore.probe import Probe

GOLDEN = Path(__file__).parent / "golden" / "v1.safetensors"


def make_ticket(sparsity=0.8, seed=0, **changes):
    rng = np.random.default_rng(seed)
    shapes = {"fc1.weight": (30, 17), "fc1.bias": (30,), "bn.running_mean": (30,), "bn.steps": ()}
    structure = Structure(
        (
            Site("fc1", "linear", (Role("weight", "fc1.weight", (30, 17), "float32"),
                                   Role("bias", "fc1.bias", (30,), "float32")),
                 {}, (), (("C", 17), ("S0", 1)), False),
            Site("bn", "batchnorm", (Role("running_mean", "m", (30,), "float32", state=True),
                                     Role("steps", "n", (), "int64", True, False)),
                 {"eps": 1e-5}, ("fc1",), None, True),
        ),
        (Interface(("N", "F"), (0, 17), "float32"),), (Interface(("N", "F"), (0, 30), "float32"),),
    )  # fmt: skip
    params = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    params["bn.steps"] = np.array(12)
    masks = lt.Masks({"fc1.weight": rng.random((30, 17)) >= sparsity})
    story = {"framework": "torch", "round": 3, "metrics": {"accuracy": 0.97}}
    probe = Probe((np.ones((2, 30), np.float32),), (np.zeros((2, 30), np.float32),))
    return dataclasses.replace(lt.Ticket(structure, masks, params, story, probe), **changes)


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.8, 0.97, 1.1])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_round_trip(tmp_path, sparsity, dtype):
    ticket = make_ticket(sparsity)
    params = {n: a.astype(dtype) if a.dtype.kind == "f" else a for n, a in ticket.params.items()}
    ticket = dataclasses.replace(ticket, params=params)
    ticket.save(tmp_path / "t.safetensors")
    loaded = lt.load(tmp_path / "t.safetensors")
    assert loaded == ticket
    assert loaded.id == ticket.id
    assert loaded.masks == ticket.masks
    assert loaded.structure == ticket.structure
    assert loaded.provenance == ticket.provenance
    for name, array in ticket.weights().items():
        assert loaded.params[name].tobytes() == array.tobytes(), name
        assert loaded.params[name].dtype == array.dtype
        assert loaded.params[name].shape == array.shape
        assert loaded.params[name].flags.c_contiguous
    assert all(
        np.array_equal(a, b) for a, b in zip(loaded.probe.ticket, ticket.probe.ticket, strict=True)
    )


def test_same_ticket_same_bytes_whatever_the_memory_layout(tmp_path):
    ticket = make_ticket()
    twisted = {n: np.asfortranarray(a) if a.ndim else a for n, a in ticket.params.items()}
    ticket.save(tmp_path / "a")
    dataclasses.replace(ticket, params=twisted).save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_values_at_pruned_positions_do_not_count(tmp_path):
    ticket = make_ticket()
    noise = {n: np.where(ticket.masks[n], a, np.nan) if n in ticket.masks else a
             for n, a in ticket.params.items()}  # fmt: skip
    other = dataclasses.replace(ticket, params=noise)
    assert other == ticket


def test_other_programs_can_open_it(tmp_path):
    from safetensors import safe_open

    ticket = make_ticket()
    ticket.save(tmp_path / "t")
    with safe_open(tmp_path / "t", "numpy") as file:
        assert list(file.metadata()) == ["ltcore"]
        head, _, manifest = file.metadata()["ltcore"].partition("\n")
        assert head == f"ltcore-ticket/1 {ticket.id}"
        assert json.loads(manifest)["kept"] == ticket.masks.kept
        kept = file.get_tensor("fc1.weight#kept")
    assert np.array_equal(kept, ticket.params["fc1.weight"][ticket.masks["fc1.weight"]])


def rewritten(tmp_path, change, tensors=None):
    """Save a ticket whose manifest (and tensors) were changed and sealed again by a liar."""
    arrays, manifest, _ = ticketfile._pack(make_ticket())
    manifest = json.loads(json.dumps(manifest))
    change(manifest, arrays)
    containerwriter.write(tmp_path / "t", arrays, manifest)
    return tmp_path / "t"


def _set(path, value):
    def change(manifest, _):
        *parents, last = path
        for key in parents:
            manifest = manifest[key]
        manifest[last] = value

    return change


def _drop(name):
    return lambda manifest, arrays: arrays.pop(name)


HOSTILE = {
    "kept disagrees": (_set(["kept"], 1), r"counts disagree: masks keep \d+ of 510"),
    "total disagrees": (_set(["total"], 511), "counts disagree"),
    "mask count disagrees": (_set(["masks", "fc1.weight", "kept"], 3), "kept|keeps|ones|pad bits"),
    "mask total disagrees": (_set(["masks", "fc1.weight", "total"], 3), "counts disagree.*510"),
    "negative k": (_set(["masks", "fc1.weight", "k"], -1), "k"),
    "shape disagrees": (_set(["sites", 0, "roles", 1, "shape"], [31]), r"bias.*\(30,\).*\(31,\)"),
    "huge shape": (_set(["sites", 0, "roles", 0, "shape"], [2**35, 17]), "would unfold"),
    "negative shape": (_set(["sites", 0, "roles", 0, "shape"], [-1, 17]), r"'shape'.*\[-1, 17\]"),
    "unknown kind": (_set(["sites", 0, "kind"], "hologram"), "'hologram'.*knows"),
    "no sites": (lambda m, a: m.pop("sites"), "'sites' is None; expected a list"),
    "sites of another type": (_set(["sites"], 3), "'sites' is 3; expected a list"),
    "two sites of one name": (_set(["sites", 1, "name"], "fc1"), "two sites"),
    "missing survivors": (_drop("fc1.weight#kept"), "no tensor 'fc1.weight#kept'"),
    "missing bias": (_drop("fc1.bias"), "'fc1.bias' is not in the file"),
    "missing mask": (lambda m, a: [a.pop(n) for n in list(a) if n.startswith("fc1.weight#") and
                                   "kept" not in n], "mask of 'fc1.weight'.*stands in 0 tensors"),
    "spare tensor": (lambda m, a: a.update(evil=np.ones(3, np.float32)), "evil.*no parameter"),
    "mask of nothing": (_set(["masks", "ghost"], {"kept": 1, "total": 1, "k": None}), "ghost"),
    "short survivors": (lambda m, a: a.update({"fc1.weight#kept": a["fc1.weight#kept"][1:]}),
                        "counts disagree.*survivors"),
    "nan": (lambda m, a: a.update({"fc1.bias": np.full(30, np.nan, np.float32)}), "fc1.bias.*NaN"),
    "provenance is a list": (_set(["provenance"], []), "provenance"),
    "probe bomb": (_set(["probe"], 10**12), "probe claims 1000000000000 outputs"),
    "shape of words": (_set(["sites", 0, "roles", 1, "shape"], ["x"]),
                       r"'shape' of role 'bias' of site 'fc1' is \['x'\]"),
    "group of one": (_set(["sites", 0, "in_group"], [["C"]]), "expected pairs of label, size"),
    "group of another size": (_set(["sites", 0, "in_group"], [["C", 10**6], ["S0", 10**4]]),
                              "'fc1': features .* do not make an axis of 17"),
    "group with a zero": (_set(["sites", 0, "in_group"], [["C", 0], ["S0", 4]]), "features"),
    "unknown predecessor": (_set(["sites", 1, "preds"], ["ghost"]), "'bn' follows .*ghost"),
    "huge input": (_set(["inputs", 0, "shape"], [0, 60000, 60000]), "input or output"),
    "negative input": (_set(["inputs", 0, "shape"], [0, -3]), r"'shape' in 'inputs' is \[0, -3\]"),
    "odd input dtype": (_set(["inputs", 0, "dtype"], "object"), "dtype 'object'"),
    "role twice": (_set(["sites", 1, "roles", 1, "name"], "weight"), "twice|at least 1"),
    "infinite probe": (lambda m, a: a.update({"probe/synthetic0": np.full((2, 30), np.inf,
                       np.float32)}), "probe has values that are NaN or infinite"),
    "probe missing": (_set(["probe"], 2), "probe/synthetic1"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_file_that_lies_is_refused(tmp_path, case):
    change, message = HOSTILE[case]
    path = rewritten(tmp_path, change)
    with pytest.raises((TicketFileError, NonFiniteError), match=message):
        lt.load(path)


def test_the_untouched_twin_of_the_liar_loads(tmp_path):
    assert lt.load(rewritten(tmp_path, lambda m, a: None)) == make_ticket()


def test_nothing_non_finite_is_saved_and_the_old_file_stays(tmp_path):
    path = tmp_path / "t"
    make_ticket().save(path)
    before = path.read_bytes()
    ticket = make_ticket()
    bad = {**ticket.params, "fc1.bias": np.full(30, np.inf, np.float32)}
    with pytest.raises(NonFiniteError, match="'fc1.bias' has 30 values"):
        dataclasses.replace(ticket, params=bad).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_first_golden_file_is_still_what_was_put_in():
    ticket = lt.load(GOLDEN)
    assert (ticket.masks.kept, ticket.masks.total) == (101, 510)
    assert ticket.provenance["round"] == 3
    made = make_ticket()
    assert all(np.array_equal(a, ticket.params[n]) for n, a in made.weights().items())
    assert ticket.masks == made.masks
    assert ticket.id == container.open_container(GOLDEN).id


def test_reading_a_ticket_imports_no_framework():
    code = (
        "import sys, ltcore; t = ltcore.load(sys.argv[1]); t.weights();"
        "bad = {'torch', 'tensorflow', 'keras', 'jax', 'matplotlib'} & set(sys.modules);"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code, str(GOLDEN)], check=True, capture_output=True)
