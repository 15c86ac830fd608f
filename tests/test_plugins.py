"""The door: who is found, who is refused, and what is not imported on the way."""

import subprocess
import sys
import types
import warnings

import pytest

import ltcore as lt
from ltcore import hookspecs, plugins
from ltcore.errors import MissingDependencyError, ModelError, PluginError, UnknownNameError
from ltcore.hookspecs import BackendSpec, Spec, hookimpl


@pytest.fixture
def entries(monkeypatch):
    """Return a function that adds entry points made of in-memory modules."""
    real = list(plugins.entry_points(group="ltcore"))
    added = []

    class Entry:
        def __init__(self, name, load):
            self.name, self.value, self.load = name, f"{name}_module", load
            self.dist = types.SimpleNamespace(name=f"{name}-dist", version="1.2")

    monkeypatch.setattr(plugins, "entry_points", lambda group: [*reversed(added), *real])
    plugins.registry.cache_clear()

    def add(name, **hooks):
        module = types.ModuleType(name)
        for hook, function in hooks.items():
            setattr(module, hook, hookimpl(function))
        added.append(Entry(name, lambda: module))

    def add_broken(name, error):
        def load():
            raise error

        added.append(Entry(name, load))

    add.broken = add_broken
    yield add
    plugins.registry.cache_clear()


def test_what_ltcore_ships_comes_in_by_the_public_door():
    offers = plugins.registry().offers
    assert {"magnitude", "random"} <= offers["criteria"].keys()
    assert {"torch", "keras", "numpy"} <= offers["backends"].keys()
    assert {"initialization", "trained", "reinit"} <= offers["rewind_policies"].keys()
    assert {"constant", "to-sparsity", "one-shot"} <= offers["schedules"].keys()
    assert {"global", "layer"} <= offers["allocations"].keys()
    assert all(o.origin.startswith("ltcore ") for kind in offers.values() for o in kind.values())


@pytest.mark.parametrize("kind", ["criteria", "rewind_policies", "schedules", "allocations"])
def test_every_shipped_target_loads(kind):
    for name in plugins.registry().offers[kind]:
        assert plugins.load(kind, name) is not None


@pytest.mark.parametrize("kind", plugins.KINDS)
def test_every_kind_has_a_hook_that_plugins_can_use(entries, kind):
    spec = BackendSpec if kind == "backends" else Spec
    hook = f"ltcore_register_{kind}"
    entries("mine", **{hook: lambda: [spec("my-thing", "ltcore.weight_criteria:magnitude")]})
    offered = plugins.registry().offers[kind]["my-thing"]
    assert offered.origin == "mine-dist 1.2"
    assert plugins.load(kind, "my-thing").name == "magnitude"


def test_events_reach_plugins_and_metadata_reaches_tickets(entries):
    torch = pytest.importorskip("torch")
    heard = []
    entries("ear", ltcore_round_finished=lambda round: heard.append(round.index),
            ltcore_ticket_metadata=lambda ticket: {"kept": str(ticket.masks.kept)})  # fmt: skip
    model = torch.nn.Linear(4, 4)

    def train(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()

    search = lt.find_ticket(model, train, rounds=2, rate=0.5)
    assert heard == [0, 1, 2]
    assert search.ticket.provenance["plugins"] == {"ear": {"kept": "4"}}


def test_two_offers_of_one_name_are_an_error_naming_both(entries):
    offer = [Spec("same", "a.b:c")], [Spec("same", "d.e:f")]
    entries("one", ltcore_register_criteria=lambda: offer[0])
    entries("two", ltcore_register_criteria=lambda: offer[1])
    with pytest.raises(PluginError, match="'same'.*a.b:c of one-dist 1.2.*d.e:f of two-dist 1.2"):
        plugins.registry()


def test_a_broken_plugin_is_one_warning_and_the_original_error_on_request(entries):
    original = RuntimeError("no such wheel")
    entries.broken("wreck", original)
    with pytest.warns(plugins.PluginWarning, match="'wreck' of wreck-dist 1.2.*no such wheel"):
        assert "magnitude" in plugins.registry().offers["criteria"]
    with pytest.raises(RuntimeError) as caught:
        plugins.load("criteria", "wreck")
    assert caught.value is original
    with pytest.raises(UnknownNameError, match=r"failed to load: \['wreck'\]"):
        plugins.load("criteria", "else")


def test_a_misspelt_hook_is_found(entries):
    entries("typo", ltcore_register_criterions=lambda: [])
    with pytest.warns(plugins.PluginWarning, match="'typo'.*ltcore_register_criterions"):
        registry = plugins.registry()
    assert "typo" in registry.broken
    assert "magnitude" in registry.offers["criteria"]


@pytest.mark.parametrize(
    ("listed", "there"), [(None, {"a", "b"}), ("", set()), ("b", {"b"}), (" a , b ", {"a", "b"})]
)
def test_the_environment_limits_plugins(entries, monkeypatch, listed, there):
    for name in "ab":
        entries(name, ltcore_register_criteria=lambda name=name: [Spec(name, "x:y")])
    if listed is None:
        monkeypatch.delenv("LTCORE_PLUGINS", raising=False)
    else:
        monkeypatch.setenv("LTCORE_PLUGINS", listed)
    offers = plugins.registry().offers["criteria"]
    assert offers.keys() & {"a", "b"} == there
    assert "magnitude" in offers, "the core is always there"


def test_a_missing_framework_names_the_extra(entries):
    spec = BackendSpec("mars", "mars_backend:B", requires=("no_such_framework",),
                       install="pip install 'ltcore[mars]'", roots=("test_plugins",))  # fmt: skip
    entries("mars", ltcore_register_backends=lambda: [spec])
    with pytest.raises(
        MissingDependencyError, match=r"no_such_framework.*pip install 'ltcore\[mars\]'"
    ):
        plugins.backend_named("mars")


def test_unknown_names_list_what_there_is():
    with pytest.raises(UnknownNameError, match="no criteria called 'magnitued'.*'magnitude'"):
        plugins.load("criteria", "magnitued")
    with pytest.raises(UnknownNameError, match="no backends called 'jax'"):
        plugins.backend_named("jax")


def test_a_model_nobody_drives_is_refused():
    with pytest.raises(ModelError, match=r"builtins\.dict.*torch \(classes of torch\)"):
        lt.prune({}, 0.5)


def test_the_nearest_ancestor_decides(entries):
    base = type("Base", (), {"__module__": "alpha.core"})
    middle = type("Middle", (base,), {"__module__": "beta.models"})
    user = type("Mine", (middle,), {"__module__": "__main__"})
    for name in ("alpha", "beta"):
        entries(name, ltcore_register_backends=lambda name=name: [
            BackendSpec(name, "ltcore.weight_criteria:magnitude",
                        roots=(name,))])  # fmt: skip
    seen = []
    plugins_instance = plugins._instance
    plugins._instance = lambda spec: seen.append(spec.name)
    try:
        plugins.detect(user())
        plugins.detect(base())
    finally:
        plugins._instance = plugins_instance
    assert seen == ["beta", "alpha"]
    entries(
        "rival", ltcore_register_backends=lambda: [BackendSpec("rival", "x:y", roots=("beta",))]
    )
    plugins.registry.cache_clear()
    with pytest.raises(PluginError, match="beta.*rival"):
        plugins.detect(user())


def test_a_criterion_by_decorator_is_known_by_name_and_may_be_redefined():
    @lt.criterion("test-once")
    def first(param):
        return -abs(param.weight)

    @lt.criterion("test-once")
    def second(param):
        return abs(param.weight)

    assert plugins.load("criteria", "test-once") is second
    with pytest.raises(PluginError, match="'magnitude' exists already.*ltcore"):
        lt.criterion("magnitude")(lambda param: param.weight)


def test_a_decorated_function_may_be_the_target_of_its_own_spec(entries):
    entries("own", ltcore_register_criteria=lambda: [
        Spec("test-own", f"{__name__}:own_rule"), Spec("test-bare", "numpy:abs")])  # fmt: skip

    def own_rule(param):
        return abs(param.weight)

    own_rule.__qualname__ = "own_rule"
    made = lt.criterion("test-own")(own_rule)
    assert plugins.load("criteria", "test-own") is made


def test_the_environment_warns_of_names_that_are_not_there(entries, monkeypatch):
    monkeypatch.setenv("LTCORE_PLUGINS", "torch,no-such")
    with pytest.warns(plugins.PluginWarning, match="no-such"):
        plugins.registry()
    with pytest.raises(ModelError, match="LTCORE_PLUGINS limits"):
        plugins.detect(object())


def test_hook_names_and_arguments_are_stable():
    """Hook names are forever; this table is the promise."""
    import inspect

    hooks = {n: [*inspect.signature(f).parameters] for n, f in vars(hookspecs).items()
             if n.startswith("ltcore_")}  # fmt: skip
    assert hooks == {
        **{f"ltcore_register_{kind}": [] for kind in plugins.KINDS},
        "ltcore_round_finished": ["round"],
        "ltcore_ticket_metadata": ["ticket"],
    }


FRAMEWORKS = "{'torch', 'tensorflow', 'keras', 'jax', 'matplotlib', 'sklearn', 'typer', 'rich'}"


@pytest.mark.parametrize(
    "code",
    [
        "import ltcore",
        "import ltcore.plugins; assert ltcore.plugins.registry().offers['backends']['torch']",
        "import ltcore_torch, ltcore_keras",
        "import ltcore.testing",
        "import ltcore_demo",
    ],
)
def test_what_is_not_imported(code):
    check = f"{code}\nimport sys\nbad = {FRAMEWORKS} & set(sys.modules)\nassert not bad, bad"
    subprocess.run([sys.executable, "-c", check], check=True, capture_output=True, text=True)


def test_warnings_are_of_their_own_category():
    assert issubclass(plugins.PluginWarning, UserWarning)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plugins.registry()
