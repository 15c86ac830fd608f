"""A criterion that breaks a promise is refused, and the error says whose it is and where."""

import sys
import types

import numpy as np
import pytest

import ltcore as lt
from judged import masks_of, small
from ltcore import discovery
from ltcore.criteria import FunctionCriterion
from ltcore.errors import InvalidValueError, NonFiniteError, UnknownNameError
from ltcore.hookspecs import Spec, hookimpl
from ltcore.judging import rearranged
from ltcore.options import criterion_from
from ltcore.testing import ReferenceBackend

WRAPPERS = ("same_sign", "different_sign", "inverted", "shuffled")


def rearranges(function):
    return types.SimpleNamespace(
        name="mine", needs=frozenset(), elementwise=True, score=lambda p: abs(p.weight),
        rearrange=function,
    )  # fmt: skip


BEFORE = lt.Masks({"a": np.array([1, 1, 1, 0], bool), "b": np.ones((2, 2), bool)})
CHOSEN = lt.Masks({"a": np.array([1, 1, 0, 0], bool), "b": np.ones((2, 2), bool)})


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda *_: None, "criterion 'mine' rearranged masks to NoneType.*'a', 'b'"),
        (lambda *_: {"a": CHOSEN["a"]}, r"to \['a'\]; expected masks of \['a', 'b'\]"),
        (lambda *_: {**CHOSEN, "a": CHOSEN["a"].astype(int)}, "'a'.*dtype int64; expected"),
        (lambda *_: {**CHOSEN, "b": np.ones(4, bool)}, r"'b' to shape \(4,\).*\(2, 2\), bool"),
        (lambda *_: BEFORE, "'a' to 3 kept; expected as many as before, 2"),
        (lambda *_: {**CHOSEN, "a": CHOSEN["a"][::-1]}, "brought back 1 pruned weights of 'a'"),
    ],
)  # fmt: skip
def test_a_last_word_that_breaks_a_promise_is_refused(function, message):
    with pytest.raises(InvalidValueError, match=message):
        rearranged(rearranges(function), BEFORE, CHOSEN, np.random.default_rng(0))


WHERE = "'layers.0.weight'"
BAD = {
    "shape": (lambda p: p.weight[:1], rf"gave scores of shape \(1, 6\) for {WHERE}; expected "),
    "scalar": (lambda p: 1.0, rf"gave scores of shape \(\) for {WHERE}; expected \(5, 6\)"),
    "none": (lambda p: None, rf"gave {WHERE} NoneType; expected an array.*\(5, 6\)"),
    "object": (lambda p: p.weight.astype(object), f"gave {WHERE} an array of dtype object; exp"),
    "complex": (lambda p: p.weight + 0j, f"gave {WHERE} an array of dtype complex64; expected"),
    "ragged": (lambda p: [[1], [1, 2]], f"gave {WHERE} list; expected"),
    "nan": (lambda p: p.weight * np.nan, f"parameter {WHERE}: .* are NaN"),
}


@pytest.fixture
def their_plugin(monkeypatch):
    """Return a function that offers a criterion by an installed plugin of somebody's."""
    real = list(discovery.entry_points(group="ltcore"))
    module = types.ModuleType("their_rules")
    module.ltcore_register_criteria = hookimpl(lambda: [Spec("theirs", "their_rules:rule")])
    entry = types.SimpleNamespace(
        name="theirs", value="their_rules", load=lambda: module,
        dist=types.SimpleNamespace(name="their-dist", version="2.1"),
    )  # fmt: skip
    monkeypatch.setattr(discovery, "entry_points", lambda group: [*real, entry])
    monkeypatch.setitem(sys.modules, "their_rules", module)
    discovery.registry.cache_clear()
    yield lambda rule: setattr(module, "rule", rule)
    discovery.registry.cache_clear()


@pytest.mark.parametrize("elementwise", [True, False])
@pytest.mark.parametrize("wrap", [None, *WRAPPERS])
@pytest.mark.parametrize("bad", BAD)
def test_bad_scores_name_criterion_plugin_and_parameter(their_plugin, bad, wrap, elementwise):
    function, message = BAD[bad]
    if elementwise and bad == "shape":
        function, message = (lambda p: p.weight[1:]), rf"shape \(\d+,\) for {WHERE}; expected "
    if elementwise:
        message = message.replace(r"(5, 6\)", r"(\d+,\)")
    their_plugin(FunctionCriterion("theirs", function, elementwise=elementwise))
    rule = {"name": wrap, "criterion": "theirs"} if wrap else "theirs"
    whose = "criterion 'theirs' of their-dist 2.1"
    if bad == "nan" and wrap:
        whose = f"around {whose}"
    model = small()
    initial = ReferenceBackend().read(model, ReferenceBackend().describe(model))
    with pytest.raises(InvalidValueError, match=message) as caught:
        masks_of(model, rule, 0.5, initial=initial)
    assert whose in str(caught.value)
    assert isinstance(caught.value, NonFiniteError) == (bad == "nan")


@pytest.mark.parametrize("made", ["function", "class", "object"])
def test_the_origin_is_found_whatever_a_target_is(their_plugin, made):
    class Rule:
        name, needs, elementwise = "theirs", frozenset(), False

        def score(self, param):
            return None

    their_plugin({"function": lambda param: None, "class": Rule, "object": Rule()}[made])
    model = small()
    with pytest.raises(InvalidValueError, match="criterion 'theirs' of their-dist 2.1 gave"):
        masks_of(model, "theirs", 0.5)


def test_a_criterion_of_nobody_has_no_origin():
    model = small()
    with pytest.raises(InvalidValueError, match="^criterion '.*<lambda>' gave 'layers.0.weight'"):
        masks_of(model, lambda p: None, 0.5)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapper_without_the_other_says_what_it_takes(wrapper):
    with pytest.raises(InvalidValueError, match=rf"{wrapper}.*missing.*'criterion'"):
        criterion_from(wrapper)
    made = type(criterion_from({"name": wrapper, "criterion": "magnitude"}))
    with pytest.raises(InvalidValueError, match=rf"{made.__name__}.*missing.*'criterion'"):
        criterion_from(made)
    with pytest.raises(UnknownNameError, match="no criterion called 'magnitued'"):
        criterion_from({"name": wrapper, "criterion": "magnitued"})


def test_criteria_that_compare_with_initial_weights_belong_in_a_search():
    model = small()
    with pytest.raises(InvalidValueError, match="'movement' needs.*initial.*find_ticket"):
        lt.prune(model, 0.5, criterion="movement")
