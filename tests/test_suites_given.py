"""What the suites make of the thing they are given, or one sentence on why they cannot."""

from functools import partial

import numpy as np
import pytest

import ltcore as lt
from ltcore.allocation import by_layer
from ltcore.criteria import FunctionCriterion
from ltcore.errors import InvalidValueError
from ltcore.testing import (
    AllocationConformance,
    CriterionConformance,
    PatternConformance,
    RewindConformance,
    ScheduleConformance,
)

SUITES = {
    "criterion": CriterionConformance,
    "allocation": AllocationConformance,
    "pattern": PatternConformance,
    "policy": RewindConformance,
    "schedule": ScheduleConformance,
}


def suite(attribute, given):
    return type("TestMine", (SUITES[attribute],), {attribute: given})()


class TakesOptions:
    def __init__(self, share):
        self.share = share


def size(param):
    return np.absolute(param.weight)


def halfway(context):
    return {
        name: ((context.snapshots[0][name] + trained) / 2).astype(trained.dtype)
        for name, trained in context.trained.items()
    }


class Layers:
    def __call__(self, goal, masks, infos):
        return by_layer(goal, masks, infos)


@pytest.mark.parametrize("attribute", SUITES)
@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (None, "is not set; set it to the"),
        ("magnitude", "is the name 'magnitude'; give the thing itself"),
        (TakesOptions, "is the class TakesOptions, which cannot be called without arguments"),
        (TakesOptions(1), "which is no "),
    ],
)
def test_what_cannot_be_tested_is_one_sentence_in_the_collection(attribute, given, sentence):
    made = suite(attribute, given)
    with pytest.raises(InvalidValueError, match=sentence):
        made.rule()
    with pytest.raises(pytest.Collector.CollectError, match=sentence):
        made.pytest_generate_tests(None)


@pytest.mark.parametrize("wrap", [lambda given: given, staticmethod, partial])
def test_functions_are_no_methods_of_the_suite(wrap):
    param = suite("criterion", wrap(size)).param((3, 2))
    scores = suite("criterion", wrap(size)).rule().score(param)
    assert np.array_equal(scores, np.absolute(param.weight))
    suite("allocation", wrap(by_layer)).test_rounds_nest({})
    suite("policy", wrap(halfway)).test_returns_all_parameters()
    assert suite("schedule", wrap(lambda round_index: 0.1 * round_index)).goals() == [
        lt.Sparsity(0.1 * index) for index in range(1, 6)
    ]


def test_what_a_function_is_not_is_said():
    with pytest.raises(InvalidValueError, match="is no pattern; it has no name, sparsity"):
        suite("pattern", lambda mask, info: mask).rule()


def test_classes_are_made_objects():
    suite("allocation", Layers).test_rounds_nest({})
    assert suite("policy", lt.Resample).rule() == lt.Resample()


def test_objects_are_what_they_are():
    rule = FunctionCriterion("size", size)
    assert suite("criterion", rule).rule() is rule


def test_an_allocation_that_returns_no_groups_is_told_so():
    pairs = suite("allocation", lambda goal, masks, infos: [("conv1.weight", 3)])
    with pytest.raises(AssertionError, match=r"returns ltcore\.Group, not \('conv1\.weight', 3\)"):
        pairs.test_counts_can_be_removed(lt.Rate(0.2), {})
    unknown = suite("allocation", lambda goal, masks, infos: [lt.Group(("nothing",), 1)])
    with pytest.raises(AssertionError, match=r"that have a mask, not \['nothing'\]"):
        unknown.test_counts_can_be_removed(lt.Rate(0.2), {})


def test_a_policy_that_returns_nothing_is_told_so():
    with pytest.raises(AssertionError, match="rewind returns arrays by name, not None"):
        suite("policy", lambda context: None).test_returns_all_parameters()
