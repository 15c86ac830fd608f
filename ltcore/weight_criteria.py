"""Criteria that need nothing but weights: those of now and those of before."""

import numpy as np

from ltcore.arrays import Array
from ltcore.criteria import FunctionCriterion, Param


def _magnitude(param: Param) -> Array:
    scores: Array = np.absolute(param.weight)
    return scores


def _random(param: Param) -> Array:
    return np.asarray(param.rng.random(param.weight.shape))


magnitude = FunctionCriterion("magnitude", _magnitude, elementwise=True)
"""``|w|``: Han et al. 2015; Frankle and Carbin 2019, section 2."""

random = FunctionCriterion("random", _random, frozenset({"rng"}))
"""Uniform scores: the random-mask control of Frankle and Carbin 2019, appendix E."""
