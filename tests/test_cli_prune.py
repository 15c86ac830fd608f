"""``ltcore prune``: the same as `ltcore.prune`, from a checkpoint to a ticket."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import ltcore as lt
from ltcore.cli import _app

NETS = """
import torch
from torch import nn

def net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 4))

def batches():
    torch.manual_seed(2)
    return [(torch.randn(5, 3, 4), torch.randn(5, 4)) for _ in range(2)]

def loss(outputs, targets):
    return (outputs - targets).square().mean()

def broken():
    raise RuntimeError("no data")

def fails(outputs, targets):
    raise KeyError("nothing")

def unfit():
    return [(torch.randn(5, 3, 9), torch.randn(5, 4))]
"""

RULES = """
import ltcore as lt

@lt.criterion("test-cli-first", elementwise=True)
def first(param):
    return param.weight * 0

@lt.criterion("test-cli-gradient", needs="gradient")
def slope(param):
    return abs(param.gradient)

@lt.register("allocation", "test-cli-each")
class Each:
    def __init__(self, keep=1):
        self.keep = keep

    def __call__(self, goal, masks, infos):
        return [lt.Group((n,), masks.counts[n][0] - self.keep) for n in masks]
"""


class Outcome:
    """What a command did."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self):
        return json.loads(self.out)


def prune(*words: object, model: str = "prune_nets:net", output: str = "t.safetensors") -> Outcome:
    given = ["prune", "dense.pt", "--model", model, "--output", output, *map(str, words)]
    result = CliRunner().invoke(_app.app, given, env={"COLUMNS": "100", "TERM": "dumb"})
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Outcome(result.exit_code, result.stdout, result.stderr)


def net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 4))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The user's folder: models, rules, and a dense checkpoint."""
    (tmp_path / "prune_nets.py").write_text(NETS)
    (tmp_path / "prune_rules.py").write_text(RULES)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(7)
    torch.save(net().state_dict(), "dense.pt")
    before = sys.path.copy()
    yield tmp_path
    assert sys.path == before
    for module in ("prune_nets", "prune_rules"):
        sys.modules.pop(module, None)


def dense() -> nn.Module:
    model = net()
    model.load_state_dict(torch.load("dense.pt"))
    return model


def test_it_does_what_the_call_does(folder: Path) -> None:
    done = prune("--sparsity", 0.75, "--criterion", "random", "--scope", "layer", "--seed", 5,
                 "--example", "2,3,4")  # fmt: skip
    assert done.code == 0, done.err
    model = dense()
    hold = lt.prune(model, 0.75, criterion="random", scope="layer", seed=5)
    ticket = lt.load("t.safetensors")
    assert ticket.masks == hold.masks
    assert ticket.why_not_portable() == ""
    kept = {name: np.asarray(value) for name, value in dense().state_dict().items()}
    for name, array in ticket.masks.apply(kept).items():
        assert np.array_equal(ticket.params[name], array), "the checkpoint's weights, pruned"
    for fact in (ticket.id, "36 of 144 weights, sparsity 75.00%", "1.weight", "outside the masks"):
        assert fact in done.out
    told = ticket.provenance
    assert (told["criterion"], told["scope"], told["seed"]) == ("random", "layer", 5)
    assert told["goal"] == {"sparsity": 0.75}


def test_json_holds_it_all(folder: Path) -> None:
    done = prune("--sparsity", 0.5, "--json")
    assert (done.json["kept"], done.json["total"]) == (72, 144)
    assert done.json["id"] == lt.load("t.safetensors").id
    assert done.json["parameters"][0]["name"] == "1.weight"
    assert sum(row["kept"] for row in done.json["parameters"]) == 72
    assert done.json["provenance"]["criterion"] == "magnitude"


def test_a_criterion_of_gradients_gets_data_and_loss(folder: Path) -> None:
    done = prune("--sparsity", 0.5, "--import", "prune_rules", "--criterion", "test-cli-gradient",
                 "--data", "prune_nets:batches", "--loss", "prune_nets:loss")  # fmt: skip
    assert done.code == 0, done.err
    sys.path.insert(0, str(folder))
    try:
        import prune_nets
    finally:
        sys.path.pop(0)
    hold = lt.prune(dense(), 0.5, criterion="test-cli-gradient", batches=prune_nets.batches(),
                    loss=prune_nets.loss)  # fmt: skip
    assert lt.load("t.safetensors").masks == hold.masks


def test_a_sparse_checkpoint_is_pruned_further(folder: Path) -> None:
    model = dense()
    mask = torch.zeros(9, 12)
    mask[:, 3] = 1
    torch.nn.utils.prune.custom_from_mask(model[1], "weight", mask)
    torch.save(model.state_dict(), "dense.pt")
    done = prune("--sparsity", 0.95, "--criterion", "random")
    assert done.code == 0, done.err
    kept = lt.load("t.safetensors").masks["1.weight"]
    assert kept.sum() > 0
    assert not kept[:, [0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11]].any(), "what was pruned stays pruned"


TOML = """
criterion = "random"
scope = { name = "test-cli-each", keep = 2 }
prunable = ["3.weight"]
seed = 4
[sparsity]
"*" = 0.5
"""


@pytest.mark.filterwarnings("ignore:allocation 'Each' removes")
def test_a_file_says_it_and_options_win(folder: Path) -> None:
    Path("prune.toml").write_text(TOML)
    words = ("--import", "prune_rules", "--config", "prune.toml")
    assert prune(*words, "--json").json["provenance"]["goal"] == {"sparsity": {"*": 0.5}}
    ticket = lt.load("t.safetensors")
    assert {name: kept for name, (kept, _) in ticket.masks.counts.items()} == {"3.weight": 2}
    assert ticket.provenance["seed"] == 4
    assert ticket.provenance["scope"] == {"name": "test-cli-each", "keep": 2}
    done = prune(*words, "--scope", "layer", "--seed", 5, "--prunable", "1.*t",
                 "--prunable", "3.weight", "--force")  # fmt: skip
    assert done.code == 0, done.err
    ticket = lt.load("t.safetensors")
    assert (ticket.masks.kept, ticket.masks.total) == (72, 144)
    assert (ticket.provenance["seed"], ticket.provenance["criterion"]) == (5, "random")


def test_the_file_of_the_guide_works(folder: Path) -> None:
    guide = (Path(__file__).parents[1] / "docs" / "guide.md").read_text()
    (toml,) = re.findall(r"```toml\n(.*?)```", guide, re.DOTALL)
    Path("prune.toml").write_text(toml)
    done = prune("--config", "prune.toml", "--json")
    assert done.code == 0, done.err
    assert [row["kept"] for row in done.json["parameters"]] == [11, 18]


@pytest.mark.parametrize(
    ("toml", "fact"),
    [
        ("sparsity = 1.5", "prune.toml: sparsity: the value is 1.5"),
        ("sparsity = '0.5'", "prune.toml: sparsity is '0.5'; expected a number, or a table"),
        ("sparsity = true", "prune.toml: sparsity is True; expected a number"),
        ("[sparsity]\nlayer.weight = 0.5", "prune.toml: sparsity.layer is {'weight': 0.5}"),
        ("sparsity = {'*' = 2}", "prune.toml: sparsity: * is 2"),
        ("sparsty = 0.5", "no key 'sparsty'; did you mean 'sparsity'? Keys are sparsity,"),
        ("criterion = 'magnitued'", "criterion: no criterion called 'magnitued'; did"),
        ("criterion = {nmae = 'random'}", "criterion is {'nmae': 'random'}; expected a name"),
        ("criterion = {name = 'random', sed = 1}",
         "criterion: the criterion 'random' is there as it is; it takes no options"),
        ("scope = 'layers'", "scope: no allocation called 'layers'; did you mean 'layer'?"),
        ("scope = {name = 'test-cli-each', kep = 3}",
         "prune.toml: scope: the allocation 'test-cli-each' does not take 'kep'; did you mean"),
        ("pattern = 7", "prune.toml: pattern is 7; expected a name"),
        ("prunable = ['1.wieght']", "prunable: the selector '1.wieght' matches none"),
        ("prunable = 1", "prune.toml: prunable is 1; expected a selector, or a list"),
        ("import = 1", "prune.toml: import is 1; expected a module's name, or a list"),
        ("seed = -1", "prune.toml: seed is -1; expected a whole number, 0 or more"),
        ("seed = 1\nseed = 2", "prune.toml is no TOML: "),
        ("= 3", "prune.toml is no TOML: "),
    ],
)  # fmt: skip
def test_errors_in_the_file_point_at_the_key(folder: Path, toml: str, fact: str) -> None:
    told = "sparsity" in toml or "sparsty" in toml
    text = toml if told else f"sparsity = 0.5\n{toml}"
    Path("prune.toml").write_text(text)
    done = prune("--import", "prune_rules", "--config", "prune.toml")
    assert done.code == 1
    assert fact in done.err
    assert len(done.err.splitlines()) == 1
    assert not Path("t.safetensors").exists()


def test_a_file_imports_rules_and_takes_one_selector(folder: Path) -> None:
    Path("prune.toml").write_text(
        "sparsity = 0.5\nimport = 'prune_rules'\nprunable = '1.weight'\n"
        "criterion = 'test-cli-first'\n"
    )
    assert prune("--config", "prune.toml").code == 0
    assert list(lt.load("t.safetensors").masks) == ["1.weight"]


SLOPE = ("--sparsity", "0.5", "--import", "prune_rules", "--criterion", "test-cli-gradient")


@pytest.mark.parametrize(
    ("words", "fact"),
    [
        (["--sparsity", "1"], "--sparsity: the value is 1.0"),
        ([], "sparsity is missing"),
        (["--sparsity", "0.5", "--criterion", "sinp-x"], "--criterion: no criterion called"),
        (["--sparsity", "0.5", "--import", "no_such_rules"], "nothing from --import no_such_rules"),
        (["--sparsity", "0.5", "--import", "prune_rules", "--criterion", "test-cli-gradient"],
         "'test-cli-gradient' needs 'gradient': give --data MODULE:FUNCTION and --loss MOD"),
        (["--sparsity", "0.5", "--data", "prune_nets:broken"], "--data prune_nets:broken: Runtime"),
        (["--sparsity", "0.5", "--loss", "prune_nets:los"],
         "--loss prune_nets:los: prune_nets has no 'los'; did you mean 'loss'?"),
        (["--sparsity", "0.5", "--import", "prune_rules.py"],
         "--import prune_rules.py: a module's name has no .py; did you mean 'prune_rules'?"),
        (["--sparsity", "90"], "(0.2 removes 20 %); did you mean 0.9?"),
        (["--sparsity", "0.5", "--config", "no.toml"], "--config no.toml cannot be read: No such"),
        ([*SLOPE, "--data", "prune_nets:batches", "--loss", "prune_nets:fails"],
         "the loss failed when called as loss(outputs, targets): KeyError: 'nothing'"),
        ([*SLOPE, "--data", "prune_nets:unfit", "--loss", "prune_nets:loss"],
         "--data prune_nets:unfit, --loss prune_nets:loss: RuntimeError: "),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line(folder: Path, words: list[str], fact: str) -> None:
    done = prune(*words)
    assert done.code == 1
    assert done.out == ""
    assert fact in done.err
    assert len(done.err.splitlines()) == 1
    assert not Path("t.safetensors").exists()


def test_names_are_checked_before_anything_is_loaded(folder: Path) -> None:
    done = prune("--sparsity", 0.5, "--criterion", "nothing-like-it", model="no_such_module:net")
    assert "no criterion called 'nothing-like-it'" in done.err


@pytest.mark.parametrize(
    ("words", "fact"),
    [
        (["--sparsity", "half"], "--sparsity"),
        (["--sparsity", "0.5", "--loss", "prune_nets"], "package.module:function"),
        (["--sparsity", "0.5", "--seed", "-1"], "--seed"),
        (["--sparsity", "0.5", "--exmaple", "1"], "--example"),
        (["--sparsity", "0.5", "--example", "1,x"], "1,x"),
        (["--sparsity", "0.5", "--example", "2x3"], "'2x3'; expected sizes with commas"),
    ],
)
def test_wrong_usage_exits_with_2(folder: Path, words: list[str], fact: str) -> None:
    done = prune(*words)
    assert done.code == 2
    assert fact in done.err


def test_a_ticket_has_its_name_and_nothing_is_replaced_unasked(folder: Path) -> None:
    assert prune("--sparsity", 0.5, output="t.pt").code == 2
    Path("t.safetensors").write_bytes(b"precious")
    refused = prune("--sparsity", 0.5)
    assert (refused.code, refused.err) == (1, "error: t.safetensors exists; --force replaces it\n")
    assert Path("t.safetensors").read_bytes() == b"precious"
    assert prune("--sparsity", 0.5, "--force").code == 0
    assert lt.load("t.safetensors").masks.kept == 72


@pytest.mark.filterwarnings("default")
def test_a_warning_is_a_line(folder: Path) -> None:
    done = prune("--sparsity", 0.95, "--import", "prune_rules", "--criterion", "test-cli-first")
    assert done.code == 0
    (line,) = done.err.splitlines()
    assert line.startswith("warning: no weight survives in ['3.weight']")


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # Keras when it writes h5
def test_a_keras_model_is_pruned_alike(folder: Path) -> None:
    keras = pytest.importorskip("keras")
    (folder / "prune_keras.py").write_text(
        "import keras\n"
        "def net():\n"
        "    return keras.Sequential([keras.layers.Input((3, 4)), keras.layers.Flatten(),\n"
        "        keras.layers.Dense(9, 'relu'), keras.layers.Dense(4)])\n"
    )
    twin = keras.Sequential([
        keras.layers.Input((3, 4)), keras.layers.Flatten(),
        keras.layers.Dense(9, "relu"), keras.layers.Dense(4),
    ])  # fmt: skip
    for layer, kind in zip((twin.layers[1], twin.layers[2]), (1, 3), strict=True):
        source = dense()[kind]
        layer.set_weights([source.weight.detach().numpy().T, source.bias.detach().numpy()])
    twin.save_weights("twin.weights.h5")
    command = ["prune", "twin.weights.h5", "--model", "prune_keras:net", "--sparsity", "0.6",
               "-o", "k.safetensors"]  # fmt: skip
    done = CliRunner().invoke(_app.app, command)
    sys.modules.pop("prune_keras", None)
    assert done.exit_code == 0, done.stderr
    assert prune("--sparsity", 0.6, "--example", "1,3,4").code == 0
    ours, theirs = lt.load("t.safetensors").masks, lt.load("k.safetensors").masks
    assert [ours[n].tolist() for n in ours] == [theirs[n].tolist() for n in theirs]
