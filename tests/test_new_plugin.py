"""``ltcore new-plugin``: what it writes, what it refuses, and that it is all or nothing."""

import json
import subprocess
import sys
import tomllib
from importlib import import_module
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ltcore.cli import _app, new_plugin
from ltcore.discovery import KINDS, registry
from ltcore.options import taken

WRITTEN = ("criterion", "rewind-policy", "schedule", "allocation", "pattern")


def run(*words: object) -> tuple[int, str, str]:
    env = {"COLUMNS": "300", "TERM": "dumb"}
    result = CliRunner().invoke(_app.app, ["new-plugin", *map(str, words)], env=env)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("kind", WRITTEN)
def test_it_writes_a_package(kind: str, tmp_path: Path) -> None:
    code, out, err = run(kind, "my-own-rule", "--into", tmp_path)
    assert (code, err) == (0, "")
    folder = tmp_path / "ltcore-my-own-rule"
    assert list(tmp_path.iterdir()) == [folder]
    module = kind.replace("-", "_")
    assert tree(folder) == sorted([
        "README.md", "pyproject.toml",
        "src/ltcore_my_own_rule/__init__.py", f"src/ltcore_my_own_rule/{module}.py",
        "src/ltcore_my_own_rule/py.typed", "tests/test_my_own_rule.py",
    ])  # fmt: skip
    for path in tree(folder):
        assert path in out
        text = (folder / path).read_text()
        assert "$" not in text
        assert text == "" or (text.endswith("\n") and not text.endswith("\n\n"))
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["name"] == "ltcore-my-own-rule"
    assert project["entry-points"]["ltcore"] == {"my-own-rule": "ltcore_my_own_rule"}
    assert [need.startswith("ltcore>=") for need in project["dependencies"]] == [True]
    offers = (folder / "src/ltcore_my_own_rule/__init__.py").read_text()
    assert f"ltcore_register_{KINDS[kind]}" in offers


@pytest.mark.parametrize("kind", WRITTEN)
def test_what_it_writes_is_clean(kind: str, tmp_path: Path) -> None:
    run(kind, "my-own-rule", "--into", tmp_path)
    for command in (["check", "--select", "E,F,W,I,B,UP,N"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "."],
            cwd=tmp_path / "ltcore-my-own-rule", capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr


def test_what_a_policy_declares_is_no_option_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("rewind-policy", "my-own-rule", "--into", tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "ltcore-my-own-rule" / "src")
    policy = import_module("ltcore_my_own_rule.rewind_policy").MyOwnRule
    assert taken(policy) == ["share: float = 0.5"]
    assert (policy().snapshots, policy().resume_step) == ((0,), 0)


def test_json_says_what_was_written(tmp_path: Path) -> None:
    told = json.loads(run("pattern", "pairs", "--into", tmp_path, "--json")[1])
    assert told["folder"] == str(tmp_path / "ltcore-pairs")
    assert told["files"] == tree(tmp_path / "ltcore-pairs")
    assert told["target"] == "Pairs"


@pytest.mark.parametrize(
    ("kind", "name", "fact"),
    [
        ("criterium", "my-rule", "no template for 'criterium'; did you mean 'criterion'?"),
        ("criteria", "my-rule", "did you mean 'criterion'?"),
        ("backend", "my-rule", "docs/writing-a-backend.md"),
        ("tracker", "my-rule", "There are criterion, rewind-policy,"),
        ("criterion", "My_Rule", "'my-rule' would do"),
        ("criterion", "my--rule", "'my-rule' would do"),
        ("criterion", "my-rule-", "'my-rule' would do"),
        ("criterion", "3d-rule", "'d-rule' would do"),
        ("criterion", "../rule", "'rule' would do"),
        ("criterion", "", "expected a letter"),
        ("criterion", "règle", "expected a letter"),
        ("allocation", "criterion", "'criterion' is the word for a kind"),
        ("pattern", "rewind-policies", "is the word for a kind"),
        ("criterion", "lambda", "'lambda' is a word of Python's"),
        ("criterion", "none", "'None' is a word of Python's"),
    ],
)
def test_names_that_cannot_be_are_refused(kind: str, name: str, fact: str, tmp_path: Path) -> None:
    code, _, err = run(kind, name, "--into", tmp_path)
    assert code == 2
    assert fact in err
    assert list(tmp_path.iterdir()) == []


def test_names_that_are_taken_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    origin = registry().offers["criterion"]["magnitude"].origin
    for kind, name, fact in (
        ("criterion", "magnitude", f"the criterion 'magnitude' exists already, from {origin}"),
        ("criterion", "torch", "a plugin 'torch', or a package 'ltcore_torch', is installed"),
        ("schedule", "demo", "'ltcore_demo', is installed"),
        ("pattern", "builtin", "a plugin 'builtin'"),
    ):
        code, _, err = run(kind, name, "--into", tmp_path)
        assert (code, list(tmp_path.iterdir())) == (1, [])
        assert fact in err
    assert run("allocation", "magnitude", "--into", tmp_path)[0] == 0, "free among allocations"
    found = [EntryPoint("mine", "no_such_module", "ltcore")]
    monkeypatch.setattr(new_plugin, "entry_points", lambda group: found)
    assert "a plugin 'mine'" in run("criterion", "mine", "--into", tmp_path)[2]


def test_nothing_that_exists_is_touched(tmp_path: Path) -> None:
    for make in (Path.mkdir, Path.touch, lambda path: path.symlink_to("nowhere")):
        path = tmp_path / "ltcore-my-rule"
        make(path)
        code, _, err = run("criterion", "my-rule", "--into", tmp_path)
        assert code == 1
        assert err == f"error: {path} exists; it is left as it is\n"
        assert list(tmp_path.iterdir()) == [path]
        path.rmdir() if path.is_dir() else path.unlink()
    assert run("criterion", "my-rule", "--into", tmp_path / "nowhere")[0] == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failing", [1, 3, 6])
def test_it_is_all_or_nothing(
    failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    write = Path.write_text

    def full_disk(path: Path, text: str, **options: str) -> int:
        written.append(path)
        if len(written) == failing:
            raise OSError(28, "No space left on device")
        return write(path, text, **options)

    monkeypatch.setattr(Path, "write_text", full_disk)
    code, out, err = run("criterion", "my-rule", "--into", tmp_path)
    assert (code, out) == (1, "")
    assert "No space left" in err
    assert list(tmp_path.iterdir()) == []
