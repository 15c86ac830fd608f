"""Criteria that need nothing but weights: those of now and those of before.

Most are of Zhou et al. 2019 (arXiv 1905.01067), section 2 and figure 2, and have their names:
``init`` is the weight at initialization, ``final`` the weight now.
"""

from dataclasses import replace

import numpy as np

from ltcore.arrays import Array
from ltcore.criteria import FunctionCriterion, Param

_INITIAL = frozenset({"initial"})


def _magnitude(param: Param) -> Array:
    scores: Array = np.absolute(param.weight)
    return scores


def _random(param: Param) -> Array:
    return np.asarray(param.rng.random(param.weight.shape))


def _small_final(param: Param) -> Array:
    return -np.absolute(param.weight)


def _large_init(param: Param) -> Array:
    scores: Array = np.absolute(param.initial)
    return scores


def _small_init(param: Param) -> Array:
    return -np.absolute(param.initial)


def _large_init_large_final(param: Param) -> Array:
    return np.minimum(
        _quantiles(np.absolute(param.initial), param.mask),
        _quantiles(np.absolute(param.weight), param.mask),
    )


def _small_init_small_final(param: Param) -> Array:
    return np.minimum(
        _quantiles(-np.absolute(param.initial), param.mask),
        _quantiles(-np.absolute(param.weight), param.mask),
    )


def _magnitude_increase(param: Param) -> Array:
    return np.absolute(param.weight) - np.absolute(param.initial)


def _movement(param: Param) -> Array:
    scores: Array = np.absolute(param.weight - param.initial)
    return scores


def _quantiles(values: Array, mask: Array) -> Array:
    """Return which share of the kept weights has no larger value; equal values, equal shares."""
    kept = values[mask]
    order = np.argsort(kept)
    ordered = kept[order]
    last = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), kept.size - 1) + 1
    shares = np.empty(kept.size)
    shares[order] = np.repeat(last, np.diff(last, prepend=0)) / max(kept.size, 1)
    result = np.zeros(values.shape)
    result[mask] = np.where(np.isnan(kept), np.nan, shares)
    return result


magnitude = FunctionCriterion("magnitude", _magnitude, elementwise=True)
"""``|w|``: Han et al. 2015; Frankle and Carbin 2019, section 2."""

random = FunctionCriterion("random", _random, frozenset({"rng"}))
"""Uniform scores: the random-mask control of Frankle and Carbin 2019, appendix E."""

large_final = replace(magnitude, name="large_final")
"""``|final|``: magnitude, by its name in Zhou et al. 2019, section 2."""

small_final = FunctionCriterion("small_final", _small_final, elementwise=True)
"""``-|final|``: Zhou et al. 2019, section 2."""

large_init = FunctionCriterion("large_init", _large_init, _INITIAL, elementwise=True)
"""``|init|``: Zhou et al. 2019, section 2."""

small_init = FunctionCriterion("small_init", _small_init, _INITIAL, elementwise=True)
"""``-|init|``: Zhou et al. 2019, section 2."""

large_init_large_final = FunctionCriterion(
    "large_init_large_final", _large_init_large_final, _INITIAL
)
"""Large at both ends: Zhou et al. 2019, section 2.

The smaller of the two quantiles among the kept weights of the parameter, so that one threshold
cuts both, as there. It has no scale: under a global scope it acts as under one by layer.
"""

small_init_small_final = FunctionCriterion(
    "small_init_small_final", _small_init_small_final, _INITIAL
)
"""Small at both ends: Zhou et al. 2019, section 2; made as `large_init_large_final`."""

magnitude_increase = FunctionCriterion(
    "magnitude_increase", _magnitude_increase, _INITIAL, elementwise=True
)
"""``|final| - |init|``: Zhou et al. 2019, section 2."""

movement = FunctionCriterion("movement", _movement, _INITIAL, elementwise=True)
"""``|final - init|``: Zhou et al. 2019, section 2."""
