"""The docs are held to the code: snippets run, names and hooks are documented, words are ours."""

import doctest
import importlib
import inspect
import itertools
import os
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

import ltcore as lt
from ltcore import discovery, hookspecs
from ltcore.options import schedule_from
from ltcore.testing import AllocationConformance, allocation_suite

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCS = {path.name: path.read_text() for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]}


def snippets(text):
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.fixture
def torch_world():
    """What the README's reader has at hand, in PyTorch."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    x, y = torch.randn(40, 64), torch.randint(0, 3, (40,))

    def train(model, updates=10):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        for _ in range(updates):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()

    return {
        "lt": lt, "model": model, "fine_tune": train, "train": train, "x": x, "y": y,
        "evaluate": lambda m: float((m(x).argmax(1) == y).float().mean()),
        "loss": torch.nn.functional.cross_entropy,
    }  # fmt: skip


def test_the_readme_shows_the_five_uses():
    assert len(snippets(README)) == 5


def test_use_1_prune(torch_world, capsys):
    exec(snippets(README)[0], torch_world)
    assert "90." in capsys.readouterr().out
    weight = torch_world["model"][0].weight.detach().numpy()
    assert (weight == 0).mean() > 0.5


def test_use_2_hold(torch_world):
    lt.prune(torch_world["model"], sparsity=0.5).release()
    exec(snippets(README)[1], torch_world)
    assert lt.held(torch_world["model"]) is None
    assert (torch_world["model"][0].weight == 0).any()


def test_use_3_find_and_use_4_carry(torch_world, tmp_path, monkeypatch):
    keras = pytest.importorskip("keras")
    monkeypatch.chdir(tmp_path)
    exec(snippets(README)[2], torch_world)
    torch_world["search"].hold.check()
    twin = keras.Sequential(
        [keras.layers.Input((64,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(3)]
    )
    twin.compile("adamw", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    keras_world = {
        "lt": lt, "keras_model": twin, "x": torch_world["x"].numpy(), "y": torch_world["y"].numpy(),
    }  # fmt: skip
    exec(snippets(README)[3], keras_world)
    applied = keras_world["applied"]
    applied.check()
    ticket = torch_world["search"].ticket
    assert applied.masks.kept == ticket.masks.kept
    kernel = np.asarray(twin.layers[0].kernel)
    assert np.array_equal(kernel.T != 0, ticket.masks["0.weight"])


def test_use_5_own_criterion(torch_world):
    exec(snippets(README)[4], torch_world)
    assert lt.held(torch_world["model"]).masks.sparsity == pytest.approx(0.9, abs=0.01)


def test_the_plugin_page_runs(torch_world):
    blocks = snippets(DOCS["plugins.md"])
    exec(blocks[0], torch_world)
    lt.prune(torch_world["model"], 0.3, criterion="smallest-first-layer", scope="layer")
    exec(blocks[1], torch_world)
    exec(blocks[2], torch_world)
    lt.held(torch_world["model"]).release()
    scope = torch_world["outputs_apart"]
    with lt.prune(torch_world["model"], {"*": 0.5, "2.weight": 0.25}, scope=scope) as hold:
        assert [kept for kept, _ in hold.masks.counts.values()] == [512, 36]
    suite = type("TestApart", (AllocationConformance,), {"allocation": scope})()
    for goal, kept in itertools.product(suite.goals, allocation_suite.KEPT.values()):
        suite.test_counts_can_be_removed(goal, kept)
        suite.test_rounds_nest(kept)
    exec(blocks[3], torch_world)
    hold = lt.prune(torch_world["model"], {"0.*": 0.5, "2.*": 0.0}, scope="all-in-one")
    assert hold.masks.kept == 512 + 48
    assert hold.masks.counts["2.weight"] != (48, 48)
    assert schedule_from("in-three", None, None, None) == lt.ToSparsity(0.9, 3)
    exec(
        blocks[4].replace("ltcore_mine.rules:my_rule", "ltcore.weight_criteria:magnitude"),
        torch_world,
    )
    assert [spec.name for spec in torch_world["ltcore_register_criteria"]()] == ["my-rule"]


def test_the_page_of_criteria_runs(torch_world):
    for snippet in snippets(DOCS["criteria.md"]):
        exec(snippet, torch_world)
        held = lt.held(torch_world["model"])
        assert held is None or held.masks.sparsity > 0.3
        if held:
            held.release()


def test_the_table_of_criteria_is_complete():
    table = DOCS["criteria.md"].partition("<!-- table -->")[2].strip().splitlines()[2:]
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table]
    listed = {name.strip("`"): cells for name, *cells in rows}
    assert listed.keys() == discovery.registry().offers["criterion"].keys(), "make criteria-table"
    for name, (_, _, source, *gaps) in listed.items():
        assert re.search(r"\d{4}", source), f"{name} names no paper"
        assert len(gaps) >= 2
        assert all(float(gap) <= 1e-4 for gap in gaps), name


def test_the_page_of_allocations_runs(torch_world):
    for snippet in snippets(DOCS["allocations.md"]):
        exec(snippet, torch_world)
        assert torch_world["hold"].masks.sparsity >= 0.5
        torch_world["hold"].release()
    suite = torch_world["TestRowPairs"]()
    fitting = [(info,) for info in suite.infos if not suite.pattern.misfit(info)]
    for name, check in inspect.getmembers(suite, inspect.ismethod):
        if name.startswith("test_"):
            for arguments in fitting if inspect.signature(check).parameters else [()]:
                check(*arguments)


def test_the_page_on_rewinding_runs(torch_world, capsys):
    point, own, suite, schedule = snippets(DOCS["rewinding.md"])
    for snippet in (point, own, schedule):
        exec(snippet, torch_world)
        torch_world["search"].hold.release()
    exec(suite, torch_world)
    for name, check in inspect.getmembers(torch_world["TestHalfway"](), inspect.ismethod):
        if name.startswith("test_"):
            check()
    assert torch_world["search"].ticket.masks.sparsity == pytest.approx(1 - 0.8**3, abs=1e-3)
    promised = re.search(r"print\(.*  # (.*)", point)[1]
    assert promised in capsys.readouterr().out


@pytest.mark.usefixtures("one_torch_thread")
def test_the_page_on_training_runs(torch_world, tmp_path, monkeypatch):
    keras = pytest.importorskip("keras")
    monkeypatch.chdir(tmp_path)
    train = torch_world["train"]
    torch_world["train"] = lambda model, updates=1000: train(model, updates)
    gradual, bird, bird_in_fit, sparse, supermask = snippets(DOCS["during-training.md"])
    exec(gradual, torch_world)
    assert torch_world["pruning"].finished
    assert torch_world["pruning"].masks.sparsity == pytest.approx(0.9, abs=1e-3)
    exec(bird, torch_world)
    assert torch_world["ticket"].masks.sparsity == pytest.approx(0.5, abs=1e-3)
    keras_model = keras.Sequential([keras.layers.Input((64,)), keras.layers.Dense(3)])
    keras_model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    data = {name: torch_world[name].numpy() for name in "xy"}
    fit = {"lt": lt, "keras": keras, "keras_model": keras_model, **data}
    exec(bird_in_fit, fit)
    assert 100 <= fit["bird"].drawn_at == fit["bird"].steps < 2000
    exec(sparse, torch_world)
    assert len(torch_world["training"].history) == 7
    story = lt.load("rigl.safetensors").provenance["sparse_training"]
    assert story["method"] == {"name": "rigl", "fraction": 0.3}
    exec(supermask, torch_world)
    assert lt.held(torch_world["model"]) is None


@pytest.mark.parametrize("kind", ["rewind-policy", "schedule"])
def test_the_tables_of_policies_and_schedules_are_complete(kind):
    before, _, after = DOCS["rewinding.md"].partition("## Schedules")
    rows = re.findall(r"^\| `([a-z-]+)`(.*)", before if kind == "rewind-policy" else after, re.M)
    listed = dict(rows)
    assert listed.keys() == discovery.registry().offers[kind].keys()
    for name, row in listed.items():
        assert re.search(r"\d{4}", row), f"{name} names no paper"
        target = discovery.registry().offers[kind][name].spec.load()
        for option, parameter in inspect.signature(target).parameters.items():
            default = repr(parameter.default).replace("'", '"')
            typed = option if parameter.default is parameter.empty else f"{option}={default}"
            assert f"`{typed}`" in row or name == "initialization", (name, typed)


@pytest.mark.parametrize("kind", ["allocation", "pattern"])
def test_the_tables_of_allocations_and_patterns_are_complete(kind):
    rows = re.findall(r"^\| `.*", DOCS["allocations.md"], re.MULTILINE)
    named = {name: row for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[1])}
    for name, offer in discovery.offers(kind).items():
        if offer.spec.target.startswith("ltcore."):
            assert re.search(r"\d{4}", named[name]), f"{name} is not there, or names no paper"


def test_the_page_on_backends_runs(monkeypatch):
    module = ModuleType("a_backend")
    monkeypatch.setitem(sys.modules, "a_backend", module)  # where pickle looks for its classes
    world = vars(module)
    for snippet in snippets(DOCS["writing-a-backend.md"]):
        exec(snippet, world)
    model, x = world["model"], np.ones((4, 6), "float32")
    params = world["backend"].read(model, world["structure"])
    assert params["layers.0.weight"].shape == (5, 6)
    assert np.allclose(model(x), world["backend"].forward(model, world["structure"], [x])[0])


def test_the_page_on_jax_runs():
    pytest.importorskip("flax")
    world = {}
    for snippet in snippets(DOCS["jax.md"]):
        exec(snippet, world)
    assert world["ticket"].why_not_portable() == ""
    assert world["ticket"].masks.sparsity == pytest.approx(0.9, abs=0.01)
    assert lt.held(world["model"]) is None


def test_the_hand_over_runs_as_told(tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch")
    pytest.importorskip("keras")
    monkeypatch.chdir(tmp_path)
    world = {}
    for snippet in snippets(DOCS["handover.md"]):
        exec(snippet, world)
    said = capsys.readouterr().out
    for promised in re.findall(r"print\(.*  # +(?:\.\.\. )?(.+)", DOCS["handover.md"]):
        for part in promised.removesuffix(" ...").split(" ... "):
            assert part in said or part == "1e-6 or so", part
    gap = np.abs(world["expected"] - world["twin"].predict(world["images"][:100], verbose=0))
    assert gap.shape == (100, 10)
    returned, held = world["returned"], world["held"]
    assert returned.masks.sparsity == pytest.approx(0.9, abs=1e-3)
    assert held.masks.kept == returned.masks.kept


def test_the_exchange_table_has_every_case():
    kinds, architectures = (pytest.importorskip(name) for name in ("kinds", "architectures"))
    table = DOCS["exchange.md"].partition("<!-- table -->")[2].strip().splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    listed = {
        name: [figure for figure in figures if figure != "not run"] for name, *figures in rows
    }
    assert not kinds.CASES.keys() & architectures.CASES.keys(), "one row each"
    for case in [*kinds.CASES, *architectures.CASES]:
        assert case in listed, f"{case!r} is not in docs/exchange.md: run make exchange-table"
        assert len(listed[case]) >= 4, "both directions, two engines at least"
        assert all(float(figure) <= 1e-5 for figure in listed[case])


def test_the_page_on_other_tools_runs(torch_world, tmp_path, monkeypatch):
    torch, keras = pytest.importorskip("torch"), pytest.importorskip("keras")
    monkeypatch.chdir(tmp_path)
    model = torch_world["model"]
    lt.prune(model, 0.5).release()
    masks = {f"{i}.weight": (model[i].weight != 0).int() for i in (0, 2)}
    folder = tmp_path / "open_lth_data" / "lottery_1a2b" / "replicate_1" / "level_3" / "main"
    folder.mkdir(parents=True)
    torch.save(masks, folder / "mask.pth")
    for path in (tmp_path / "sparse.pt", folder / "model_ep0_it0.pth"):
        torch.save(model.state_dict(), path)
    build = [keras.layers.Input((4,)), keras.layers.Dense(3, name="dense")]
    torch_world["keras_model"] = keras.Sequential(build)
    kernel = torch.ones(4, 3)
    named = {"kernel": kernel, "bias": kernel[0], "mask": kernel.tril()}
    variables = [SimpleNamespace(name=f"prune_low_magnitude_dense/{n}:0", numpy=v.numpy)
                 for n, v in named.items()]  # fmt: skip
    torch_world["wrapped"] = SimpleNamespace(variables=variables)
    one, two, three, four, back = snippets(DOCS["convert.md"])
    exec(one, torch_world)
    assert lt.load("mine.safetensors").why_not_portable() == ""
    exec(three, torch_world)
    exec(back, torch_world)
    assert torch.load("plain.pt").keys() == model.state_dict().keys()
    exec(four, torch_world)
    assert torch_world["ticket"].masks.kept == 9
    exec(two, torch_world)
    assert torch_world["ticket"].masks.sparsity == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("name", [n for n in lt.__all__ if n != "__version__"])
def test_every_public_name_is_documented(name):
    found = getattr(lt, name)
    assert any(re.search(rf"\blt\.{name}\b|\bltcore\.{name}\b|`{name}`|import.*\b{name}\b", text)
               for text in DOCS.values()), f"no page mentions {name}"  # fmt: skip
    assert inspect.getdoc(found)


def test_every_public_name_has_its_home():
    """The table of lazy names, the imports for type checkers and ``__all__`` are one list."""
    source = (ROOT / "ltcore" / "__init__.py").read_text()
    source = re.sub(
        r"\(\n\s+((?:\w+,\s+)+)\)", lambda m: ", ".join(re.findall(r"\w+", m[1])), source
    )
    typed = {
        name: module
        for module, names in re.findall(r"^    from ltcore\.(\w+) import (.+)$", source, re.M)
        for name in names.split(", ")
    }
    assert typed == lt._HOMES
    assert sorted([*typed, "__version__"]) == sorted(lt.__all__) == sorted(dir(lt))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        lt.nothing  # noqa: B018


def test_every_hook_is_a_heading_with_its_arguments():
    for name, hook in vars(hookspecs).items():
        if name.startswith("ltcore_"):
            arguments = ", ".join(inspect.signature(hook).parameters)
            assert f"### `{name}({arguments})`" in DOCS["plugins.md"]


def test_public_signatures_use_the_vocabulary():
    banned = {"amount", "percent", "ratio", "level", "prune_fraction", "compression"}
    for name in lt.__all__:
        found = getattr(lt, name)
        if callable(found) and not isinstance(found, str):
            try:
                parameters = inspect.signature(found).parameters
            except (TypeError, ValueError):
                continue
            assert not banned & parameters.keys(), name


@pytest.mark.parametrize(
    "module",
    ["ltcore.masks", "ltcore.closest", "ltcore.registering", "ltcore.selectors", "ltcore.counts"],
)
def test_docstring_examples_run(module):
    result = doctest.testmod(importlib.import_module(module), extraglobs={"np": np})
    assert result.failed == 0


def test_links_between_pages_exist():
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "CHANGELOG.md"]:
        for target in re.findall(r"\]\((?!http)([^)#]+)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_make_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_ci_calls_only_what_the_readme_names():
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    commands = [line for line in lines if line and not line.startswith(("#", "set ", "cd "))]
    assert commands == ["make test"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
