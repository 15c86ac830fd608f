"""The command line: what it prints, what it exits with, and what it must not import."""

import json
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import ltcore as lt
from ltcore import cli
from ltcore.cli import _app, _output
from ltcore.discovery import registry

HEAVY = ("torch", "keras", "tensorflow", "jax", "matplotlib", "sklearn", "ltcore_demo")


class Outcome:
    """What a command did."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self):
        return json.loads(self.out)


def run(*words: object, columns: int = 80) -> Outcome:
    env = {"COLUMNS": str(columns), "TERM": "dumb"}
    result = CliRunner().invoke(_app.app, [str(word) for word in words], env=env)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Outcome(result.exit_code, result.stdout, result.stderr)


@pytest.fixture(scope="module")
def ticket() -> lt.Ticket:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 4))

    def train(model: nn.Module, start_step: int) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(start_step, 4):
            optimizer.zero_grad()
            model(torch.ones(2, 3, 4)).square().mean().backward()
            optimizer.step()

    search = lt.find_ticket(
        model, train, rounds=2, rate={"*": 0.2, "@output": 0.1}, rewind_to=1, seed=7,
        evaluate=lambda model: {"accuracy": 0.875},
    )  # fmt: skip
    return search.ticket


@pytest.fixture
def path(ticket: lt.Ticket, tmp_path: Path) -> Path:
    ticket.save(tmp_path / "good.safetensors")
    return tmp_path / "good.safetensors"


def test_version() -> None:
    assert run("--version").out == f"ltcore {lt.__version__}\n"


def test_no_command_shows_help_as_a_usage_error() -> None:
    shown = run()
    assert shown.code == 2
    for command in ("demo", "show", "verify", "convert", "prune", "plugins", "new-plugin"):
        assert command in shown.out


@pytest.mark.parametrize(
    "command", ["demo", "show", "verify", "convert", "prune", "plugins", "new-plugin"]
)
def test_every_help_has_an_example_and_fits(command: str) -> None:
    shown = run(command, "--help")
    assert shown.code == 0
    assert f"Example: ltcore {command}" in shown.out
    assert max(map(len, shown.out.splitlines())) <= 80


@pytest.mark.parametrize(
    "words",
    [["show"], ["verify"], ["nonsense"], ["demo", "--rounds", "0"], ["convert", "a.pt", "b"]],
)
def test_wrong_usage_exits_with_2(words: list[str]) -> None:
    assert run(*words).code == 2


# show


def test_show_says_where_a_ticket_is_from(path: Path, ticket: lt.Ticket) -> None:
    shown = run("show", path, columns=200)
    assert shown.code == 0
    lines = [line.split(maxsplit=1) for line in shown.out.splitlines() if line.strip()]
    facts = {line[0]: line[1].rstrip() for line in lines if len(line) == 2}
    assert ticket.id in shown.out.splitlines()
    assert facts["framework"] == "torch"
    assert facts["criterion"] == "magnitude"
    assert facts["round"] == "2"
    assert facts["rewind"] == "step 1, schedule resumed"
    assert facts["seed"] == "7"
    assert facts["metrics"] == "accuracy 0.875"
    assert facts["parent"].startswith("sha256:")
    assert torch.__version__ in facts["versions"]
    assert facts["portable"] == "yes"
    # 108 -> 86 -> 69 weights of the hidden and 36 -> 32 -> 29 of the output layer
    assert facts["kept"] == "98 of 144 weights, sparsity 31.94%"


def test_show_lists_every_parameter(path: Path) -> None:
    rows = [line.split() for line in run("show", path).out.splitlines()]
    assert ["1.weight", "linear", "9", "x", "12", "69", "108", "36.11%"] in rows
    assert ["3.weight", "linear", "4", "x", "9", "29", "36", "19.44%"] in rows
    assert ["3.bias", "linear", "4", "4", "no", "mask"] in rows
    assert ["all", "under", "masks", "98", "144", "31.94%"] in rows


@pytest.mark.parametrize("columns", [80, 120])
def test_show_fits_the_terminal(path: Path, columns: int) -> None:
    name, *lines = run("show", path, columns=columns).out.splitlines()
    assert name == str(path)  # whole, so that it can be copied
    assert max(map(len, lines)) <= columns


def test_show_json_holds_it_all(path: Path, ticket: lt.Ticket) -> None:
    data = run("show", path, "--json").json
    assert data["id"] == ticket.id
    assert (data["kept"], data["total"]) == (98, 144)
    assert data["sparsity"] == ticket.masks.sparsity
    assert data["portable"] is True
    assert data["provenance"] == json.loads(json.dumps(dict(ticket.provenance)))
    assert data["parameters"][0] == {
        "name": "1.weight", "kind": "linear", "shape": [9, 12], "dtype": "float32",
        "kept": 69, "total": 108,
    }  # fmt: skip
    assert data["parameters"][1]["kept"] is None


def test_show_says_why_a_ticket_stays_in_its_framework(tmp_path: Path) -> None:
    model = nn.Linear(4, 3)
    with lt.prune(model, 0.5):
        lt.Ticket.from_model(model).save(tmp_path / "own.safetensors")
    assert "no: no example input was given" in run("show", tmp_path / "own.safetensors").out
    data = run("show", tmp_path / "own.safetensors", "--json").json
    assert data["portable"] is False
    assert data["why_not_portable"] == "no example input was given"


def test_show_prints_nothing_that_could_rewrite_the_terminal(
    ticket: lt.Ticket, tmp_path: Path
) -> None:
    told = {"note\x1b[2J": "\x1b[31mred\r\nnext", "round": [1, {"\u202e": None}], "rewind": "[b]x"}
    forged = lt.Ticket(ticket.structure, ticket.masks, ticket.params, told, ticket.probe)
    forged.save(tmp_path / "forged.safetensors")
    shown = run("show", tmp_path / "forged.safetensors", columns=200).out
    assert all(character.isprintable() for line in shown.split("\n") for character in line)
    assert "note\\x1b[2J" in shown
    assert "\\x1b[31mred\\r next" in shown
    assert "1, \\u202e none" in shown
    assert "[b]x" in shown  # no markup of rich's either


# verify


def test_verify_says_ok_and_the_id(path: Path, ticket: lt.Ticket) -> None:
    checked = run("verify", path)
    assert checked.code == 0
    assert checked.out.splitlines() == [f"OK   {path}", f"     {ticket.id}"]


def cut(content: bytes) -> bytes:
    return content[:-5]


def flip_last(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def flip_manifest(content: bytes) -> bytes:
    return content.replace(b'\\"seed\\":7', b'\\"seed\\":8')


def other_format(content: bytes) -> bytes:
    return content.replace(b"ltcore-ticket/1", b"ltcore-ticket/9")


@pytest.mark.parametrize(
    "damage",
    [cut, flip_last, flip_manifest, other_format, lambda _: b"", lambda _: b"not a ticket" * 9],
    ids=["cut", "flip_last", "flip_manifest", "other_format", "empty", "something_else"],
)
def test_verify_finds_damage_and_goes_on(path: Path, damage: Callable[[bytes], bytes]) -> None:
    bad = path.with_name("bad.safetensors")
    bad.write_bytes(damage(path.read_bytes()))
    assert bad.read_bytes() != path.read_bytes()
    checked = run("verify", bad, path)
    assert checked.code == 1
    lines = checked.out.splitlines()
    assert lines[0] == f"BAD  {bad}"
    assert lines[1].startswith("     ")
    assert str(bad) not in lines[1]  # said once
    assert f"OK   {path}" in lines
    assert "Traceback" not in checked.out + checked.err


def test_verify_json(path: Path, ticket: lt.Ticket, tmp_path: Path) -> None:
    missing = tmp_path / "missing.safetensors"
    checked = run("verify", "--json", path, missing, tmp_path)
    assert checked.code == 1
    good, absent, folder = checked.json
    assert good == {"path": str(path), "ok": True, "id": ticket.id}
    assert (absent["ok"], folder["ok"]) == (False, False)
    assert "No such file" in absent["error"]
    assert folder["error"]


def test_verify_goes_on_whatever_a_file_does_to_its_reader(
    path: Path, ticket: lt.Ticket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(file: Path) -> lt.Ticket:
        if file == path:
            return ticket
        raise RecursionError("too deep")

    monkeypatch.setattr("ltcore.cli.verify.Ticket.load", load)
    bad, good = run("verify", "--json", path.with_name("bad"), path).json
    assert bad["error"] == "cannot be read: RecursionError: too deep"
    assert good["ok"]


# convert

NETS = """
from functools import partial
import torch
from torch import nn

def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 4))

class Zoo:
    ready = net(3)
    seeded = partial(net, 5)

def broken():
    raise RuntimeError("no\x1b data")

def text():
    return "no model"
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The user's folder: a module that makes models, and a sparse checkpoint of one."""
    (tmp_path / "my_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 4))
    lt.prune(model, 0.5).release()
    torch.save({"state_dict": model.state_dict()}, tmp_path / "sparse.pt")
    before = sys.path.copy()
    yield tmp_path
    assert sys.path == before
    sys.modules.pop("my_nets", None)


def convert(*words: object) -> Outcome:
    return run("convert", *words, columns=200)


def test_convert_there_and_back(nets: Path) -> None:
    there = convert("sparse.pt", "t.safetensors", "--model", "my_nets:net", "--example", "1,3,4")
    assert there.code == 0, there.err
    ticket = lt.load(nets / "t.safetensors")
    assert ticket.id in there.out.splitlines()
    assert "72 of 144 weights, sparsity 50.00%" in there.out
    assert ticket.why_not_portable() == ""
    for name in ("my_nets:Zoo.ready", "my_nets:Zoo.seeded"):  # an object, and what makes one
        back = convert("t.safetensors", "b.pt", "--model", name, "--json", "--force")
        assert back.code == 0, back.err
        assert (back.json["kind"], back.json["id"]) == ("checkpoint", ticket.id)
        assert (back.json["kept"], back.json["total"]) == (72, 144)
        old, new = torch.load("sparse.pt")["state_dict"], torch.load("b.pt")
        assert old.keys() == new.keys()
        assert all(torch.equal(old[key], new[key]) for key in old)


def test_convert_says_why_a_ticket_stays_in_its_framework(nets: Path) -> None:
    done = convert("sparse.pt", "t.safetensors", "--model", "my_nets:net", "--json")
    assert done.json["portable"] is False
    assert done.json["why_not_portable"] == "no example input was given"
    assert done.json["provenance"]["converted_from"]["file"] == "sparse.pt"


def test_convert_a_folder_of_open_lth(nets: Path) -> None:
    (nets / "main").mkdir()
    state = torch.load("sparse.pt")["state_dict"]
    for step in ("ep0_it0", "ep3_it0"):
        torch.save(state, nets / "main" / f"model_{step}.pth")
    masks = {f"{i}.weight": (state[f"{i}.weight"] != 0).int() for i in (1, 3)}
    torch.save(masks, nets / "main" / "mask.pth")
    done = convert(
        ".", "t.safetensors", "--model", "my_nets:net", "--weights", "model_ep3_it0", "--json"
    )
    assert done.code == 0, done.err
    assert done.json["provenance"]["converted_from"]["file"] == "model_ep3_it0.pth"
    assert done.json["provenance"]["rewind"] == {"kind": "epoch", "epoch": 3, "iteration": 0}


def test_convert_replaces_nothing_unasked(nets: Path) -> None:
    (nets / "t.safetensors").write_bytes(b"precious")
    words = ("sparse.pt", "t.safetensors", "--model", "my_nets:net")
    refused = convert(*words)
    assert refused.code == 1
    assert refused.err == "error: t.safetensors exists; --force replaces it\n"
    assert (nets / "t.safetensors").read_bytes() == b"precious"
    assert convert(*words, "--force").code == 0
    lt.load(nets / "t.safetensors")


@pytest.mark.parametrize(
    ("words", "fact"),
    [
        (["sparse.pt", "t.pt", "--model", "my_nets:net"], ".safetensors"),
        (["sparse.pt", "t.safetensors", "--model", "my_nets"], "package.module:function"),
        (["sparse.pt", "t.safetensors", "--model", "my_nets:net", "--example", "1,x"], "1,x"),
        (["sparse.pt", "t.safetensors", "--model", "my_nets:net", "--example", "1:odd"], "1:odd"),
        (["sparse.pt", "t.safetensors", "--model", "my_nets:net", "--weights", "a"], "open_lth"),
        (["sparse.pt", "t.safetensors", "--model", "my_nets:net", "--from", "odd"], "odd"),
        (["sparse.pt", "t.safetensors"], "--model"),
    ],
)
def test_convert_used_wrongly_exits_with_2(nets: Path, words: list[str], fact: str) -> None:
    done = convert(*words)
    assert done.code == 2
    assert fact in done.err
    assert not (nets / "t.safetensors").exists()


@pytest.mark.parametrize(
    ("source", "model", "fact"),
    [
        ("sparse.pt", "my_nets:nothing", "--model my_nets:nothing: my_nets has no 'nothing'"),
        ("sparse.pt", "no_such_module:net", "No module named 'no_such_module'"),
        ("sparse.pt", "my_nets:broken", "RuntimeError: no\\x1b data"),
        ("sparse.pt", "my_nets:text", "no backend drives"),
        ("missing.pt", "my_nets:net", "no such file"),
        ("my_nets.py", "my_nets:net", "end in .pt"),
        ("empty", "my_nets:net", "no mask.pth"),
    ],
)
def test_convert_of_what_cannot_be_is_one_line(
    nets: Path, source: str, model: str, fact: str
) -> None:
    (nets / "empty").mkdir()
    done = convert(source, "t.safetensors", "--model", model)
    assert done.code == 1
    assert done.out == ""
    assert done.err.startswith("error: ")
    assert len(done.err.splitlines()) == 1
    assert fact in done.err
    assert not (nets / "t.safetensors").exists()


def test_convert_of_a_damaged_ticket_says_so(nets: Path, path: Path) -> None:
    (nets / "bad.safetensors").write_bytes(flip_last(path.read_bytes()))
    done = convert("bad.safetensors", "b.pt", "--model", "my_nets:net")
    assert done.code == 1
    assert "altered or damaged" in done.err
    assert not (nets / "b.pt").exists()


# errors


def call(*words: object, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ltcore.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env={"LC_ALL": "C.UTF-8", **env})


def test_an_error_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    done = call("show", tmp_path / "nothing.safetensors")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert "nothing.safetensors" in done.stderr


def test_a_traceback_is_there_for_those_who_ask(tmp_path: Path) -> None:
    done = call("show", tmp_path / "nothing.safetensors", LTCORE_TRACEBACK="1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "TicketFileError" in done.stderr


def test_without_its_extra_the_command_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "typer", None)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    line = stopped.value.code
    assert isinstance(line, str)  # printed to stderr by the interpreter, exit code 1
    assert "typer" in line
    assert "pip install 'ltcore[cli]'" in line
    assert "\n" not in line


def test_the_demo_without_its_extra_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    done = run("demo")
    assert done.code == 1
    assert done.err.startswith("error: ")
    assert "sklearn" in done.err
    assert "pip install 'ltcore[demo]'" in done.err


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ({"a": 1, "b": [0.5, None]}, "a 1, b 0.5, none"),
        (0.123456789, "0.123457"),
        (True, "True"),
        ("\ud800\x07", "\\ud800\\x07"),
    ],
)
def test_words(value: object, shown: str) -> None:
    assert _output.words(value) == shown


# plugins


@pytest.fixture
def fresh_registry() -> Iterator[None]:
    registry.cache_clear()
    yield
    registry.cache_clear()


def test_plugins_lists_what_there_is() -> None:
    listed = run("plugins").out
    for word in ("backend", "rewind-policy", "magnitude", "torch (installed)", lt.__version__):
        assert word in " ".join(listed.split())
    assert max(map(len, listed.splitlines())) <= 80


def test_plugins_fills_docstrings() -> None:
    shown = run("plugins", "floor").out
    assert max(map(len, shown.splitlines())) <= 80
    assert "\n    allocation: shares the goal.\n    survivors: " in shown
    assert "in (0, 1), rounded up." in " ".join(shown.split())


def test_plugins_json() -> None:
    data = run("plugins", "--json").json
    assert data["broken"] == []
    by_name = {(entry["kind"], entry["name"]): entry for entry in data["plugins"]}
    entry = by_name["backend", "torch"]
    assert entry["requires"] == ["torch"]
    assert entry["missing"] == []
    assert entry["origin"] == f"ltcore {lt.__version__}"
    assert entry["summary"]
    assert by_name["criterion", "magnitude"]["needs"] == {}
    assert by_name["criterion", "random"]["needs"] == {"rng": []}
    assert by_name["schedule", "to-sparsity"]["options"][1] == "rounds: int"


def test_plugins_of_one_kind() -> None:
    data = run("plugins", "allocation", "--json").json
    assert {"global", "layer"} <= {entry["name"] for entry in data["plugins"]}
    assert {entry["kind"] for entry in data["plugins"]} == {"allocation"}


def test_plugins_shows_one_in_detail() -> None:
    shown = run("plugins", "to-sparsity").out
    assert max(map(len, shown.splitlines())) <= 80
    facts = ("schedule to-sparsity", "ltcore.schedules:ToSparsity", "rounds: int",
             "Mapping[str, float", "The last round's count is exact", lt.__version__)  # fmt: skip
    for fact in facts:
        assert fact in shown
    assert "collections.abc" not in shown
    (entry,) = run("plugins", "to-sparsity", "--json").json["plugins"]
    assert entry["doc"] == lt.ToSparsity.__doc__.replace("\n    ", "\n").strip()


@pytest.mark.parametrize(
    ("name", "meant"), [("magnitdue", "magnitude"), ("criteria", "criterion"), ("Torch", "torch")]
)
def test_plugins_answers_an_unknown_name_with_the_closest(name: str, meant: str) -> None:
    refused = run("plugins", name)
    assert refused.code == 1
    assert f"nothing is called {name!r}; did you mean {meant!r}?" in refused.err


WHO = "a search, prune_gradually or early_bird"


def test_plugins_knows_what_a_file_registers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plugins_rules.py").write_text(
        "import ltcore as lt\n"
        "@lt.criterion('test-cli-listed', needs='gradient')\n"
        "def listed(param):\n"
        "    return param.gradient\n"
    )
    monkeypatch.chdir(tmp_path)
    assert run("plugins", "test-cli-listed").code == 1
    shown = run("plugins", "test-cli-listed", "--import", "plugins_rules").out
    assert "criterion test-cli-listed" in shown
    assert "gradient (batches, loss)" in shown


def test_plugins_shows_what_n_of_m_means() -> None:
    assert run("plugins", "2:4").out == run("plugins", "n:m").out


class NeedsOptions:
    """Wraps another."""

    elementwise = False

    def __init__(self, criterion: object, sign: float = -1.0) -> None:
        self.criterion = criterion


class Declares:
    name, needs, elementwise = "declares", frozenset({"gradient", "initial", "flow"}), False

    def __init__(self, scale: float) -> None: ...


class Fails:
    def __init__(self) -> None:
        1 / 0  # noqa: B018


def test_plugins_tells_what_criteria_ask_for(
    monkeypatch: pytest.MonkeyPatch, fresh_registry: None
) -> None:
    specs = [
        lt.Spec("wraps", "test_cli_mine:NeedsOptions"),
        lt.Spec("declares", "test_cli_mine:Declares"),
        lt.Spec("lost", "no_such_module_anywhere:rule"),
        lt.Spec("fails", "test_cli_mine:Fails"),
        lt.Spec("heavy", "no_such_module_anywhere:rule", requires=("torch",)),
    ]
    mine = types.ModuleType("test_cli_mine")
    mine.NeedsOptions, mine.Declares, mine.Fails = NeedsOptions, Declares, Fails
    mine.ltcore_register_criteria = lt.hookimpl(lambda: specs)
    monkeypatch.setitem(sys.modules, "test_cli_mine", mine)
    found = [EntryPoint(n, f, "ltcore") for n, f in
             (("builtin", "ltcore.builtin"), ("mine", "test_cli_mine"))]  # fmt: skip
    monkeypatch.setattr("ltcore.discovery.entry_points", lambda group: found)
    told = {entry["name"]: entry for entry in run("plugins", "--json").json["plugins"]}
    assert told["wraps"]["needs"] is None
    assert told["wraps"]["options"] == ["criterion: object", "sign: float = -1.0"]
    assert told["wraps"]["doc"] == "Wraps another."
    assert told["declares"]["needs"] == {
        "flow": [], "gradient": ["batches", "loss"], "initial": [WHO],
    }  # fmt: skip
    assert "No module named 'no_such_module_anywhere'" in told["lost"]["error"]
    assert told["fails"]["error"] == "ZeroDivisionError: division by zero"
    assert told["heavy"]["error"] == ""  # not imported, for it says that it is heavy
    table = run("plugins", columns=200).out
    assert f"needs flow, gradient (batches, loss), initial ({WHO})" in table
    assert "No module named" in table


def test_plugins_says_what_is_missing_and_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, fresh_registry: None
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    by_name = {entry["name"]: entry for entry in run("plugins", "--json").json["plugins"]}
    assert by_name["torch"]["missing"] == ["torch"]
    assert "pip install 'ltcore[torch]'" in run("plugins", columns=120).out


def test_plugins_lists_broken_ones_with_their_error(
    monkeypatch: pytest.MonkeyPatch, fresh_registry: None
) -> None:
    found = [
        EntryPoint("builtin", "ltcore.builtin", "ltcore"),
        EntryPoint("wreck", "no_such_module_anywhere", "ltcore"),
    ]
    monkeypatch.setattr("ltcore.discovery.entry_points", lambda group: found)
    monkeypatch.setattr("ltcore.cli.plugins.entry_points", lambda group: found)
    listed = run("plugins", columns=120)
    assert listed.code == 0
    assert "magnitude" in listed.out  # the others are there all the same
    assert "wreck" in listed.out
    assert "ModuleNotFoundError: No module named 'no_such_module_anywhere'" in listed.out
    registry.cache_clear()
    (broken,) = run("plugins", "--json").json["broken"]
    assert broken["name"] == "wreck"
    assert broken["origin"] == "no_such_module_anywhere"


# imports


@pytest.mark.parametrize("words", [["plugins"], ["show", "{}"], ["verify", "{}"], ["--help"]])
def test_looking_at_things_imports_no_framework(words: list[str], path: Path) -> None:
    words = [word.format(path) for word in words]
    code = (
        "import sys; from ltcore.cli import main\n"
        f"sys.argv = ['ltcore', *{words!r}]\n"
        "try: main()\n"
        "except SystemExit as stopped: assert not stopped.code, stopped.code\n"
        f"found = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "assert not found, found\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
