"""The door: who is found, who is refused, and what is not imported on the way."""

import re
import subprocess
import sys
import types
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

import ltcore as lt
from ltcore import discovery, hookspecs, plugins
from ltcore.errors import (
    InvalidValueError,
    MissingDependencyError,
    ModelError,
    PluginError,
    SelectorError,
    UnknownNameError,
)
from ltcore.hookspecs import BackendSpec, Spec, hookimpl
from ltcore.options import (
    allocation_from,
    criterion_from,
    pattern_from,
    policy_from,
    schedule_from,
)


@pytest.fixture
def entries(monkeypatch):
    """Return a function that adds entry points made of in-memory modules."""
    real = list(discovery.entry_points(group="ltcore"))
    added = []

    class Entry:
        def __init__(self, name, load, value="", dist=""):
            self.name, self.value, self.load = name, value or f"{name}_module", load
            self.dist = types.SimpleNamespace(name=dist or f"{name}-dist", version="1.2")

    monkeypatch.setattr(discovery, "entry_points", lambda group: [*reversed(added), *real])
    discovery.registry.cache_clear()

    def add(name, value="", dist="", **hooks):
        module = types.ModuleType(name)
        for hook, function in hooks.items():
            setattr(module, hook, hookimpl(function))
        added.append(Entry(name, lambda: module, value, dist))

    def add_broken(name, error):
        def load():
            raise error

        added.append(Entry(name, load))

    add.broken = add_broken
    add.lazily = lambda name, load: added.append(Entry(name, load))
    yield add
    discovery.registry.cache_clear()


def test_what_ltcore_ships_comes_in_by_the_public_door():
    offers = discovery.registry().offers
    assert {"magnitude", "random"} <= offers["criterion"].keys()
    assert {"torch", "keras", "numpy"} <= offers["backend"].keys()
    assert {"initialization", "trained", "reinit"} <= offers["rewind-policy"].keys()
    assert {"constant", "to-sparsity", "one-shot"} <= offers["schedule"].keys()
    assert {"global", "layer"} <= offers["allocation"].keys()
    assert all(o.origin.startswith("ltcore ") for kind in offers.values() for o in kind.values())


@pytest.mark.parametrize(
    "kind", ["criterion", "rewind-policy", "schedule", "allocation", "pattern"]
)
def test_every_shipped_target_loads(kind):
    for name in discovery.registry().offers[kind]:
        assert plugins.load(kind, name) is not None


@pytest.mark.parametrize("kind", discovery.KINDS)
def test_every_kind_has_a_hook_that_plugins_can_use(entries, kind):
    spec = BackendSpec if kind == "backend" else Spec
    hook = f"ltcore_register_{discovery.KINDS[kind]}"
    entries("mine", **{hook: lambda: [spec("my-thing", "ltcore.weight_criteria:magnitude")]})
    offered = discovery.registry().offers[kind]["my-thing"]
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
        discovery.registry()


def test_a_broken_plugin_is_one_warning_and_the_original_error_on_request(entries):
    original = RuntimeError("no such wheel")
    entries.broken("wreck", original)
    with pytest.warns(discovery.PluginWarning, match="'wreck' of wreck-dist 1.2.*no such wheel"):
        assert "magnitude" in discovery.registry().offers["criterion"]
    with pytest.raises(RuntimeError) as caught:
        plugins.load("criterion", "wreck")
    assert caught.value is original
    with pytest.raises(UnknownNameError, match="failed to load: wreck"):
        plugins.load("criterion", "else")


def test_a_misspelt_hook_is_found(entries):
    entries("typo", ltcore_register_criterions=lambda: [])
    with pytest.warns(discovery.PluginWarning, match="'typo'.*ltcore_register_criterions"):
        registry = discovery.registry()
    assert "typo" in registry.broken
    assert "magnitude" in registry.offers["criterion"]


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
    offers = discovery.registry().offers["criterion"]
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
    with pytest.raises(UnknownNameError, match="no criterion called 'magnitued'; did you mean "
                       r"'magnitude'\? There are: .*magnitude.*random"):  # fmt: skip
        plugins.load("criterion", "magnitued")
    with pytest.raises(UnknownNameError, match=r"no backend called 'mars'\. There are: .*numpy"):
        plugins.backend_named("mars")


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
    plugins._instance = lambda offer: seen.append(offer.spec.name)
    try:
        plugins.detect(user())
        plugins.detect(base())
    finally:
        plugins._instance = plugins_instance
    assert seen == ["beta", "alpha"]
    entries(
        "rival", ltcore_register_backends=lambda: [BackendSpec("rival", "x:y", roots=("beta",))]
    )
    discovery.registry.cache_clear()
    with pytest.raises(PluginError, match="beta.*rival"):
        plugins.detect(user())


def test_a_criterion_by_decorator_is_known_by_name_and_may_be_redefined():
    def cell(sign):
        @lt.criterion("test-once", passes=2)
        def rule(param):
            return sign * abs(param.weight)

        return rule

    cell(1)
    second = cell(-1)
    assert plugins.load("criterion", "test-once") is second
    assert second.passes == 2


def test_another_ones_name_is_refused_naming_both():
    @lt.register("allocation", "test-mine")
    def first(goal, masks, infos):
        return []

    with pytest.raises(PluginError, match=r"allocation 'test-mine' exists already: .*first of this "
                       r"process; .*second needs another name"):  # fmt: skip

        @lt.register("allocation", "test-mine")
        def second(goal, masks, infos):
            return []

    assert plugins.load("allocation", "test-mine") is first
    with pytest.raises(
        PluginError, match=r"'magnitude' exists already: .* of ltcore \S+; .*<lambda>"
    ):
        lt.criterion("magnitude")(lambda param: param.weight)
    assert plugins.load("criterion", "magnitude").name == "magnitude"


class Whole:
    """A pattern with one unit for each parameter."""

    name, sparsity = "test-whole", None

    def misfit(self, info):
        return ""

    def units(self, mask, info):
        return mask.any(keepdims=True).reshape(1)

    def pool(self, scores, mask, info):
        return scores.sum().reshape(1)

    def spread(self, units, info):
        return np.broadcast_to(units.reshape([1] * len(info.shape)), info.shape)


def each_way(goal, masks, infos):
    return [lt.Group((name,), masks.counts[name][0] // 2) for name in masks]


class EachWay:
    def __init__(self, keep=1):
        self.keep = keep

    def __call__(self, goal, masks, infos):
        return [lt.Group((name,), masks.counts[name][0] - self.keep) for name in masks]


def to_half(rounds=3):
    return lt.ToSparsity(0.5, rounds)


def dense(width=4):
    from ltcore.testing import Linear, NumpyModel

    return NumpyModel([Linear(3, width), Linear(width, 2)])


def kept(model, **options):
    hold = lt.prune(model, 0.5, **options)
    return [count for count, _ in hold.masks.counts.values()]


@pytest.mark.filterwarnings("ignore:allocation 'EachWay' removes")
def test_an_allocation_may_be_a_function_a_class_or_an_object():
    lt.register("allocation", "test-function", each_way)
    lt.register("allocation", "test-class", EachWay)
    lt.register("allocation", "test-object", EachWay(2))
    assert kept(dense(), scope="test-function") == [6, 4]
    assert kept(dense(), scope="test-class") == [1, 1]
    assert kept(dense(), scope={"name": "test-class", "keep": 3}) == [3, 3]
    assert kept(dense(), scope="test-object") == [2, 2]


def test_a_pattern_may_be_a_class_a_function_or_an_object():
    lt.register("pattern", "test-class", Whole)
    lt.register("pattern", "test-object", Whole())
    lt.register("pattern", "test-function", lambda: Whole())
    for name in ("test-class", "test-object", "test-function"):
        with pytest.warns(UserWarning, match="no weight survives"):
            assert kept(dense(), pattern=name, criterion=lambda p: p.weight * 0) == [12, 0]


def test_a_schedule_may_be_a_function_a_class_or_an_object():
    lt.register("schedule", "test-function", to_half)
    lt.register("schedule", "test-class", lt.OneShot)
    lt.register("schedule", "test-object", lt.ToSparsity(0.25, 2))
    assert schedule_from("test-function", None, None, None) == lt.ToSparsity(0.5, 3)
    assert schedule_from("test-function", 2, None, None) == lt.ToSparsity(0.5, 2)
    assert schedule_from("test-class", None, None, 0.9) == lt.OneShot(0.9)
    assert schedule_from("test-object", None, None, None) == lt.ToSparsity(0.25, 2)


def test_a_rewind_policy_may_be_a_function_a_class_or_an_object():
    lt.register("rewind-policy", "test-function", lambda: lt.ToStep(3))
    lt.register("rewind-policy", "test-class", lt.ToStep)
    lt.register("rewind-policy", "test-object", lt.ToStep(5))
    found = ["test-function", {"name": "test-class", "step": 4}, "test-object"]
    assert [policy_from(given).step for given in found] == [3, 4, 5]


def test_a_criterion_may_be_a_function_a_class_or_an_object():
    class Signed:
        name, needs, elementwise = "signed", frozenset(), True

        def __init__(self, sign=1):
            self.sign = sign

        def score(self, param):
            return self.sign * param.weight

    lt.register("criterion", "test-function", lambda param: param.weight)
    lt.register("criterion", "test-class", Signed)
    lt.register("criterion", "test-object", Signed(-1))
    masks = {}
    for given in ("test-function", "test-class", {"name": "test-class", "sign": -1}, "test-object"):
        masks[str(given)] = lt.prune(dense(), 0.5, criterion=given).masks
    highest, same, lowest, object_ = masks.values()
    assert highest == same != lowest == object_


@pytest.mark.filterwarnings("ignore:allocation 'EachWay' removes")
def test_a_function_of_any_kind_may_make_the_thing_with_and_without_options():
    def thing(param):
        return param.weight

    def makes_criterion(sign=1):
        return lambda param: sign * param.weight

    def makes_allocation(keep=1):
        return EachWay(keep)

    lt.register("criterion", "test-makes", makes_criterion)
    lt.register("allocation", "test-makes", makes_allocation)
    lt.register("rewind-policy", "test-makes", lambda step=3: lt.ToStep(step))
    lt.register("rewind-policy", "test-is", lambda any_name: any_name.trained)
    lt.register("schedule", "test-is", lambda any_name: 0.1 * any_name)
    by_thing = lt.prune(dense(), 0.5, criterion=thing).masks
    assert lt.prune(dense(), 0.5, criterion="test-makes").masks == by_thing
    minus = lt.prune(dense(), 0.5, criterion={"name": "test-makes", "sign": -1}).masks
    assert minus == lt.prune(dense(), 0.5, criterion=lambda param: -param.weight).masks != by_thing
    assert kept(dense(), scope="test-makes") == [1, 1]
    assert kept(dense(), scope={"name": "test-makes", "keep": 3}) == [3, 3]
    assert policy_from("test-makes").step == 3
    assert policy_from({"name": "test-makes", "step": 4}).step == 4
    assert policy_from("test-is").describe()["kind"] == "test-is"
    assert schedule_from("test-is", 2, None, None).goal(2).amounts == 0.2


def test_what_is_there_as_it_is_takes_no_options():
    for options in ({"floor": 1}, {"goal": 1}):
        with pytest.raises(InvalidValueError, match="'global' is there as it is.*no options") as e:
            allocation_from({"name": "global", **options})
        assert "It takes" not in str(e.value)
    with pytest.raises(InvalidValueError, match="'magnitude' is there as it is; it takes no opt"):
        criterion_from({"name": "magnitude", "power": 2})


@pytest.mark.parametrize(
    ("read", "parts", "lacks"),
    [
        (criterion_from, {"name": "x", "needs": frozenset(), "score": abs}, "'elementwise'"),
        (pattern_from, {"name": "x", "sparsity": None, "units": abs, "pool": abs},
         "'misfit', 'spread'"),
        (policy_from, {"snapshots": (), "rewind": abs}, "'resume_step', 'describe'"),
        (lambda given: schedule_from(given, None, None, None), {"goal": abs}, "'rounds'"),
    ],
)  # fmt: skip
def test_what_lacks_a_member_is_told_which(read, parts, lacks):
    with pytest.raises(InvalidValueError, match=f"; it has no {lacks}$"):
        read(SimpleNamespace(**parts))
    with pytest.raises(InvalidValueError) as caught:
        read(3.5)
    assert "it has no" not in str(caught.value)


def test_a_backend_may_be_registered_with_the_classes_it_drives():
    from ltcore.testing import ReferenceBackend

    class Mine(ReferenceBackend):
        name = "test-mine"

    assert lt.register("backend", "test-mine", Mine, roots=["test_of_mine"]) is Mine
    model = type("Net", (), {"__module__": "test_of_mine.nets"})()
    assert type(plugins.detect(model)) is Mine
    assert plugins.backend_named("test-mine") is plugins.detect(model)


def test_what_is_registered_is_checked():
    with pytest.raises(UnknownNameError, match=r"no kind 'alocation'; did you mean 'allocation'\?"):
        lt.register("alocation", "x", each_way)
    with pytest.raises(InvalidValueError, match="name of a criterion is ''"):
        lt.criterion("")
    with pytest.raises(InvalidValueError, match=r"needs \['gradeint'\]"):
        lt.criterion("test-needs", needs="gradeint")(lambda param: param.weight)
    with pytest.raises(InvalidValueError, match="pattern 'test-number' is 3, which has no name"):
        lt.register("pattern", "test-number", 3)
    lt.register("pattern", "test-number", lambda: 3)
    with pytest.raises(InvalidValueError, match="'test-number', which stands for 3"):
        lt.prune(dense(), 0.5, pattern="test-number")
    lt.register("schedule", "test-wrong", lambda: 3)
    with pytest.raises(
        InvalidValueError, match=r"'test-wrong', which stands for 3.* rounds and goal"
    ):
        schedule_from("test-wrong", None, None, None)


@pytest.mark.parametrize("name", ["", "My Rule", "2:4", "-x", "x-", "x--y", "règle", 3, "x\n"])
def test_a_name_that_nobody_could_type_is_refused(name):
    with pytest.raises(InvalidValueError, match="the name of a schedule is .* expected a letter"):
        lt.register("schedule", name, lt.OneShot(0.5))


@pytest.mark.parametrize(
    "kind", ["criterion", "rewind-policy", "schedule", "allocation", "pattern"]
)
def test_what_can_be_no_such_thing_is_refused_when_it_is_registered(kind):
    with pytest.raises(InvalidValueError, match=f"the {kind} 'test-thing' is .*, which has no"):
        lt.register(kind, "test-thing", object())
    assert "test-thing" not in discovery.offers(kind)


def test_the_decorator_takes_functions():
    with pytest.raises(InvalidValueError, match="@criterion takes a function of a Param"):
        lt.criterion("test-thing")(dict)


def test_options_that_are_not_there_are_answered_with_the_closest():
    lt.register("allocation", "test-keep", EachWay)
    with pytest.raises(InvalidValueError, match=r"the allocation 'test-keep' does not take 'kep'; "
                       r"did you mean 'keep'\? It takes keep=1"):  # fmt: skip
        lt.prune(dense(), 0.5, scope={"name": "test-keep", "kep": 2})
    lt.register("rewind-policy", "test-class", lt.ToStep)
    with pytest.raises(InvalidValueError, match=r"rewind-policy 'test-class' does not take \{\}"):
        policy_from("test-class")


@pytest.mark.parametrize(
    ("selector", "meant"),
    [
        ("@outptu", "@output"),
        ("@Linaer", "@linear"),
        ("layers.1.wieght", "layers.1.weight"),
        ("layer.*", "layers.*"),
        ("*.wieght", "*.weight"),
    ],
)
def test_selectors_are_answered_with_the_closest(selector, meant):
    with pytest.raises(SelectorError, match=rf"did you mean '{re.escape(meant)}'") as caught:
        lt.prune(dense(), {selector: 0.5})
    assert "'layers.0.weight', 'layers.1.weight'" in str(caught.value)
    with pytest.raises(SelectorError, match=rf"prunable: .*did you mean '{re.escape(meant)}'"):
        lt.prune(dense(), 0.5, prunable=[selector])


def test_a_plugin_may_register_things_while_it_is_imported(entries):
    """A plugin of one file: the decorator, and the hook that offers what it made."""

    def imported():
        module = types.ModuleType("one_file")

        @lt.criterion("test-one-file")
        def rule(param):
            return param.weight

        rule.function.__module__, rule.function.__qualname__ = "one_file", "rule"
        module.rule = rule
        module.ltcore_register_criteria = hookimpl(lambda: [Spec("other-name", "one_file:rule")])
        return module

    entries.lazily("one", imported)
    assert "other-name" in discovery.registry().offers["criterion"]
    assert plugins.load("criterion", "test-one-file")


def test_two_plugins_of_one_name_are_an_error_naming_both(entries):
    entries("twin")
    entries("twin", value="other_module", dist="other-dist")
    both = "'twin': other_module of other-dist 1.2, and twin_module of twin-dist 1.2"
    with pytest.raises(PluginError, match=f"two plugins are called {both}"):
        discovery.registry()


@pytest.mark.parametrize("specs", [lambda: 1 / 0, lambda: ["magnitude"], lambda: None])
def test_a_plugin_whose_hook_fails_is_one_warning_and_the_rest_works(entries, specs):
    entries("bad", ltcore_register_patterns=lambda: [Spec("half-offered", "x:y")],
            ltcore_register_criteria=specs)  # fmt: skip
    with pytest.warns(discovery.PluginWarning, match="'bad' of bad-dist 1.2 cannot be used"):
        registry = discovery.registry()
    assert "half-offered" not in registry.offers["pattern"]
    assert "magnitude" in registry.offers["criterion"]


def test_a_target_that_cannot_be_imported_names_plugin_and_target(entries):
    specs = [Spec("lost", "no_such_module:rule"), Spec("gone", "ltcore.axes:no_such_rule")]
    entries("lost", ltcore_register_criteria=lambda: specs)
    for name, why in (("lost", "ModuleNotFoundError"), ("gone", "AttributeError")):
        with pytest.raises(PluginError, match=f"criterion '{name}' of lost-dist 1.2 .*{why}"):
            plugins.load("criterion", name)


def test_a_decorated_function_may_be_the_target_of_its_own_spec(entries):
    entries("own", ltcore_register_criteria=lambda: [
        Spec("test-own", f"{__name__}:own_rule"), Spec("test-bare", "numpy:abs")])  # fmt: skip

    def own_rule(param):
        return abs(param.weight)

    own_rule.__qualname__ = "own_rule"
    made = lt.criterion("test-own")(own_rule)
    assert plugins.load("criterion", "test-own") is made


def test_the_environment_warns_of_names_that_are_not_there(entries, monkeypatch):
    monkeypatch.setenv("LTCORE_PLUGINS", "torch,no-such")
    with pytest.warns(discovery.PluginWarning, match="no-such"):
        discovery.registry()
    with pytest.raises(ModelError, match="LTCORE_PLUGINS limits"):
        plugins.detect(object())


def test_hook_names_and_arguments_are_stable():
    """Hook names are forever; this table is the promise."""
    import inspect

    hooks = {n: [*inspect.signature(f).parameters] for n, f in vars(hookspecs).items()
             if n.startswith("ltcore_")}  # fmt: skip
    assert hooks == {
        **{f"ltcore_register_{kinds}": [] for kinds in discovery.KINDS.values()},
        "ltcore_round_finished": ["round"],
        "ltcore_ticket_metadata": ["ticket"],
    }


FRAMEWORKS = "{'torch', 'tensorflow', 'keras', 'jax', 'matplotlib', 'sklearn', 'typer', 'rich'}"


@pytest.mark.parametrize(
    "code",
    [
        "import ltcore",
        "import ltcore.discovery; assert ltcore.discovery.registry().offers['backend']['torch']",
        "import ltcore_torch, ltcore_keras",
        "import ltcore.testing",
        "import ltcore_demo",
    ],
)
def test_what_is_not_imported(code):
    check = f"{code}\nimport sys\nbad = {FRAMEWORKS} & set(sys.modules)\nassert not bad, bad"
    subprocess.run([sys.executable, "-c", check], check=True, capture_output=True, text=True)


def test_warnings_are_of_their_own_category():
    assert issubclass(discovery.PluginWarning, UserWarning)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        discovery.registry()
