"""Our criteria keep the promises of the criterion suite, and the suite notices broken ones."""

import subprocess
import sys

import numpy as np
import pytest

from ltcore.criteria import FunctionCriterion
from ltcore.testing import CriterionConformance
from ltcore.weight_criteria import magnitude, random


class TestMagnitude(CriterionConformance):
    criterion = magnitude


class TestRandom(CriterionConformance):
    criterion = random


def _writes(param):
    param.weight[...] = 0
    return abs(param.weight)


BROKEN = {
    "test_scores_have_the_shape_of_the_weight": FunctionCriterion("flat", lambda p: p.weight.sum()),
    "test_scores_are_finite": FunctionCriterion(
        "normalized", lambda p: p.weight / np.abs(p.weight).sum()
    ),
    "test_scores_write_to_no_input": FunctionCriterion("writes", _writes),
    "test_same_seed_same_scores": FunctionCriterion(
        "unseeded", lambda p: np.random.default_rng().random(p.weight.shape)
    ),
    "test_elementwise_scores_do_not_know_blocks": FunctionCriterion(
        "ranked", lambda p: p.weight - p.weight.mean(), elementwise=True
    ),
}


@pytest.mark.parametrize("test", BROKEN)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_suite_notices(test):
    class Suite(CriterionConformance):
        criterion = BROKEN[test]

    with pytest.raises(AssertionError):
        getattr(Suite(), test)((5, 4))


def test_elementwise_random_is_refused():
    class Dice:
        name, needs, elementwise = "dice", frozenset({"rng"}), True

        def score(self, param):
            return random.score(param)

    class Suite(CriterionConformance):
        criterion = Dice()

    with pytest.raises(AssertionError, match="not elementwise"):
        Suite().test_declares_what_it_is()


def test_testing_imports_neither_pytest_nor_a_framework():
    code = (
        "import sys, ltcore.testing;"
        "print(sorted({'pytest', 'torch', 'keras', 'tensorflow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
