"""A plugin of somebody else's: written, built, installed, used everywhere, broken, and removed.

All of it in an environment of its own, by the commands that its author and its users type.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from outsider import Environment

pytestmark = pytest.mark.slow

KINDS = ("criterion", "rewind-policy", "schedule", "allocation", "pattern")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment without the plugin."""
    return Environment.make(tmp_path_factory.mktemp("outside") / "venv")


@pytest.fixture(scope="module")
def wheel(environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of ``my-rule``, from an empty folder; its source stays beside it."""
    folder = tmp_path_factory.mktemp("author")
    environment.call("ltcore", "new-plugin", "criterion", "my-rule", cwd=folder)
    return environment.build(folder / "ltcore-my-rule", folder)


@pytest.fixture
def installed(environment: Environment, wheel: Path) -> Iterator[Environment]:
    """The environment with the plugin in it."""
    environment.call("pip", "install", wheel)
    yield environment
    environment.call("pip", "uninstall", "-y", "ltcore-my-rule")


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A user's folder: two models with equal weights."""
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "both.py").write_text(BOTH)
    (tmp_path / "prune.toml").write_text('criterion = "my-rule"\nsparsity = 0.7\n')
    return tmp_path


NETS = """
import torch

def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.ReLU(), torch.nn.Linear(30, 5))
"""

BOTH = """
import json
import keras, torch
import ltcore as lt
from nets import net

ours = net()
torch.save(ours.state_dict(), "net.pt")
theirs = keras.Sequential(
    [keras.layers.Input((20,)), keras.layers.Dense(30, "relu"), keras.layers.Dense(5)]
)
for one, other in ((ours[0], theirs.layers[0]), (ours[2], theirs.layers[1])):
    other.set_weights([one.weight.detach().numpy().T, one.bias.detach().numpy()])

found = {}
for name, model in (("torch", ours), ("keras", theirs)):
    with lt.prune(model, 0.7, criterion="my-rule") as hold:
        ticket = lt.Ticket.from_model(model)
        found[name] = [mask.astype(int).tolist() for mask in hold.masks.values()]
        found[name + " told"] = dict(ticket.provenance)
found["magnitude"] = [m.astype(int).tolist() for m in lt.prune(net(), 0.7).masks.values()]
print(json.dumps(found))
"""


def offered(environment: Environment) -> dict[str, dict[str, object]]:
    told = json.loads(environment.call("ltcore", "plugins", "criterion", "--json"))
    return {offer["name"]: offer for offer in told["plugins"]}


def test_its_own_tests_pass_where_it_is_installed(installed: Environment, wheel: Path) -> None:
    tests = wheel.parent / "ltcore-my-rule" / "tests"
    assert " passed" in installed.call("pytest", "-q", tests, cwd=tests)


def test_it_is_listed_with_its_origin(installed: Environment) -> None:
    mine = offered(installed)["my-rule"]
    assert mine["origin"] == "ltcore-my-rule 0.1.0"
    assert mine["target"] == "ltcore_my_rule.criterion:my_rule"
    assert mine["needs"] == {}
    assert "ltcore-my-rule 0.1.0" in installed.call("ltcore", "plugins")


def test_it_is_used_from_python_toml_and_the_command_line(
    installed: Environment, work: Path
) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("keras")
    found = json.loads(installed.call("python", "both.py", cwd=work).splitlines()[-1])
    assert found["torch"] == found["keras"], "equal weights, equal masks"
    assert found["torch"] != found["magnitude"], "it is the rule of the plugin"
    for framework in ("torch", "keras"):
        told = found[f"{framework} told"]
        assert told["criterion"] == "my-rule"
        assert told["versions"]["ltcore-my-rule"] == "0.1.0"
    common = ["ltcore", "prune", "net.pt", "--model", "nets:net", "--json", "--force", "--output"]
    typed = ["typed.safetensors", "--sparsity", "0.7", "--criterion", "my-rule"]
    filed = ["filed.safetensors", "--config", "prune.toml"]
    outcomes = [json.loads(installed.call(*common, *w, cwd=work)) for w in (typed, filed)]
    assert outcomes[0]["id"] == outcomes[1]["id"]
    assert outcomes[0]["provenance"]["criterion"] == "my-rule"
    assert outcomes[0]["provenance"]["versions"]["ltcore-my-rule"] == "0.1.0"
    counts = [sum(map(sum, mask)) for mask in found["torch"]]
    assert [row["kept"] for row in outcomes[0]["parameters"]] == counts
    assert "my-rule" in installed.call("ltcore", "show", "typed.safetensors", cwd=work)


def test_after_it_is_removed_it_is_gone(installed: Environment, wheel: Path, work: Path) -> None:
    installed.call("pip", "uninstall", "-y", "ltcore-my-rule")
    assert "my-rule" not in offered(installed)
    done = installed.run("ltcore", "prune", "net.pt", "--model", "nets:net", "--config",
                         "prune.toml", "--output", "t.safetensors", cwd=work)  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("error: prune.toml: criterion: no criterion called 'my-rule'")
    assert "magnitude" in done.stderr, "what there is is listed"
    installed.call("pip", "install", wheel)


def test_one_that_fails_to_import_is_a_warning_and_the_rest_works(
    installed: Environment, tmp_path: Path
) -> None:
    code = "import ltcore_my_rule; print(ltcore_my_rule.__file__)"
    module = Path(installed.call("python", "-c", code).strip())
    module.write_text("import no_such_package\n" + module.read_text())
    code = (
        "import ltcore as lt\n"
        "from ltcore.testing import Linear, NumpyModel\n"
        "print(lt.prune(NumpyModel([Linear(4, 3)]), 0.5).masks.kept)"
    )
    done = installed.run("python", "-c", code)
    assert done.stdout == "6\n", "the rest works"
    (line,) = [line for line in done.stderr.splitlines() if "PluginWarning" in line]
    assert "'my-rule' of ltcore-my-rule 0.1.0 cannot be used: ModuleNotFoundError" in line
    told = json.loads(installed.call("ltcore", "plugins", "--json"))
    (broken,) = told["broken"]
    assert broken["origin"] == "ltcore-my-rule 0.1.0"
    assert "no_such_package" in broken["error"]
    assert "magnitude" in {offer["name"] for offer in told["plugins"]}


@pytest.mark.parametrize("rename_entry", [True, False])
def test_two_with_one_name_are_both_named(
    installed: Environment, wheel: Path, tmp_path: Path, rename_entry: bool
) -> None:
    """Their entry points differ and what they offer does not; or not even those."""
    rival = tmp_path / "rival"
    shutil.copytree(wheel.parent / "ltcore-my-rule", rival)
    (rival / "src" / "ltcore_my_rule").rename(rival / "src" / "rival_rule")
    for path in (rival / "pyproject.toml", rival / "src" / "rival_rule" / "__init__.py"):
        text = path.read_text().replace("ltcore_my_rule", "rival_rule")
        text = text.replace('name = "ltcore-my-rule"', 'name = "rival"')
        path.write_text(text.replace("my-rule =", "theirs =" if rename_entry else "my-rule ="))
    installed.call("pip", "install", installed.build(rival, tmp_path))
    try:
        done = installed.run("ltcore", "plugins")
        assert done.returncode == 1
        assert "ltcore-my-rule 0.1.0" in done.stderr
        assert "rival 0.1.0" in done.stderr
        assert "'my-rule'" in done.stderr
    finally:
        installed.call("pip", "uninstall", "-y", "rival")


def test_what_is_written_for_every_kind_works(environment: Environment, tmp_path: Path) -> None:
    folders = [tmp_path / f"ltcore-a-{kind}" for kind in KINDS]
    for kind in KINDS:
        environment.call("ltcore", "new-plugin", kind, f"a-{kind}", cwd=tmp_path)
    sources = [folder / part for folder in folders for part in ("src", "tests")]
    types = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file", "", *map(str, sources)],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert types.returncode == 0, types.stdout
    wheels = [environment.build(folder, tmp_path) for folder in folders]
    environment.call("pip", "install", *wheels)
    try:
        for folder in folders:
            assert " passed" in environment.call("pytest", "-q", "-W", "error", cwd=folder)
    finally:
        environment.call("pip", "uninstall", "-y", *(folder.name for folder in folders))
