"""Our criteria keep the promises of the criterion suite, and the suite notices broken ones."""

import subprocess
import sys

import numpy as np
import pytest

from ltcore.criteria import FunctionCriterion
from ltcore.masks import Masks
from ltcore.testing import CriterionConformance
from ltcore.weight_criteria import random
from ltcore.wrapped_criteria import Shuffled


def _writes(param):
    param.weight[...] = 0
    return abs(param.weight)


class Rearranges:
    """Scores as magnitude does; what it does to the masks is given."""

    name, needs, elementwise = "rearranges", frozenset(), True

    def __init__(self, rearrange):
        self.rearrange = rearrange

    def score(self, param):
        return abs(param.weight)


def _unseeded(before, chosen, rng):
    return Shuffled(random).rearrange(before, chosen, np.random.default_rng())


BROKEN = {
    "test_scores_are_real_numbers": FunctionCriterion("complex", lambda p: p.weight + 0j),
    "test_same_seed_same_rearranging": Rearranges(_unseeded),
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


REARRANGED_WRONGLY = {
    "a mask for each": lambda before, chosen, rng: dict(list(chosen.items())[:1]),
    "boolean": lambda before, chosen, rng: {n: m.astype(int) for n, m in chosen.items()},
    "keeps its shape": lambda before, chosen, rng: {n: m.reshape(-1) for n, m in chosen.items()},
    "as many weights": lambda before, chosen, rng: before,
    "gone before": lambda before, chosen, rng: Masks({n: m.reshape(-1)[::-1].reshape(m.shape)
                                                      for n, m in chosen.items()}),
}  # fmt: skip


@pytest.mark.parametrize("promise", REARRANGED_WRONGLY)
def test_suite_notices_masks_that_are_rearranged_wrongly(promise):
    class Suite(CriterionConformance):
        criterion = Rearranges(REARRANGED_WRONGLY[promise])

    with pytest.raises(AssertionError, match=promise):
        Suite().test_rearranging_keeps_counts_and_nests((5, 4))


@pytest.mark.parametrize(("passes", "promise"), [(0, "at least one"), (2.0, "whole number")])
def test_suite_notices_bad_passes(passes, promise):
    class Suite(CriterionConformance):
        def rule(self):
            rule = Rearranges(None)
            rule.passes = passes
            return rule

    with pytest.raises(AssertionError, match=promise):
        Suite().test_takes_a_whole_number_of_passes()


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
