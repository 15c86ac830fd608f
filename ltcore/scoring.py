"""Scores: what a criterion gives for every parameter, whole or a block at a time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Protocol

import numpy as np

from ltcore.arrays import Array, Params
from ltcore.criteria import Criterion, Param
from ltcore.errors import InvalidValueError, NonFiniteError
from ltcore.masks import Masks
from ltcore.parameters import ParamInfo


class Scores(Protocol):
    """Scores that are looked at a block at a time, so that they need not all exist at once."""

    @property
    def dtype(self) -> np.dtype[np.floating]:
        """The dtype in which blocks come: the widest of all parameters, at least float32."""
        ...

    def block(self, name: str, where: slice) -> Array:
        """Return the scores of ``name`` at flat positions ``where``, 1-D."""
        ...


@dataclass(frozen=True)
class ArrayScores:
    """Scores held whole: ``{name: array of the parameter's shape}``."""

    arrays: Params

    @cached_property
    def dtype(self) -> np.dtype[np.floating]:
        """The widest dtype, at least float32."""
        return _widest(self.arrays)

    def block(self, name: str, where: slice) -> Array:
        """Return flat scores at ``where``."""
        return self.arrays[name].reshape(-1)[where].astype(self.dtype, copy=False)


@dataclass(frozen=True)
class BlockScores:
    """Scores made anew for each block by an elementwise criterion."""

    criterion: Criterion
    params: Mapping[str, Param]

    @cached_property
    def dtype(self) -> np.dtype[np.floating]:
        """The widest dtype of the scores, found on one weight of each; at least float32."""
        return _widest({name: self._scored(name, slice(0, 1)) for name in self.params})

    def block(self, name: str, where: slice) -> Array:
        """Return flat scores at ``where``."""
        return self._scored(name, where).astype(self.dtype, copy=False)

    def _scored(self, name: str, where: slice) -> Array:
        whole = self.params[name]
        signals = {signal: a.reshape(-1)[where] for signal, a in whole.signals.items()}
        mask = whole.mask.reshape(-1)[where]  # a view, also of an all-True mask
        param = Param(whole.info, mask, MappingProxyType(signals), whole.generator)
        return _checked(self.criterion, param)


def score(
    criterion: Criterion,
    signals: Mapping[str, Params],
    masks: Masks,
    infos: Sequence[ParamInfo],
    rng: "np.random.Generator",
) -> Scores:
    """Return the scores of every parameter in ``masks``.

    Args:
        criterion: the rule.
        signals: ``{signal: {name: array}}``, at least ``weight`` and what the criterion needs.
        masks: the weights that compete; also the parameters that are scored.
        infos: what is known of each parameter.
        rng: for criteria that need it.

    Raises:
        NonFiniteError: a score or weight is NaN; names the parameter.
        InvalidValueError: the criterion returned an array of another shape.
    """
    by_name = {info.name: info for info in infos}
    params = {
        name: Param(
            by_name[name],
            mask,
            {signal: arrays[name] for signal, arrays in signals.items()},
            rng if "rng" in criterion.needs else None,
        )
        for name, mask in masks.items()
    }
    if criterion.elementwise:
        return BlockScores(criterion, params)
    arrays = {}
    for name, param in params.items():
        arrays[name] = _checked(criterion, param)
        raise_if_nan(arrays[name], masks[name], name)
    return ArrayScores(arrays)


def raise_if_nan(scores: Array, mask: Array | np.bool_, name: str) -> None:
    """Raise if a kept weight's score is NaN.

    Raises:
        NonFiniteError: names the parameter.
    """
    nan = int(np.count_nonzero(np.isnan(scores) & mask))
    if nan:
        raise NonFiniteError(
            f"parameter {name!r}: {nan} of {scores.size} scores are NaN; its weights (or what "
            "the criterion made of them) cannot be ranked"
        )


def _checked(criterion: Criterion, param: Param) -> Array:
    scores = np.asarray(criterion.score(param))
    if scores.dtype.kind not in "fiub":
        raise InvalidValueError(
            f"criterion {criterion.name!r} gave {param.info.name!r} scores of dtype "
            f"{scores.dtype}; expected real numbers"
        )
    if scores.shape != param.weight.shape:
        raise InvalidValueError(
            f"criterion {criterion.name!r} gave scores of shape {scores.shape} for "
            f"{param.info.name!r}; expected {param.weight.shape}, one score a weight"
        )
    return scores if scores.dtype.kind == "f" else scores.astype(np.float64)


def _widest(arrays: Params) -> np.dtype[np.floating]:
    return np.result_type(np.float32, *(array.dtype for array in arrays.values()))
