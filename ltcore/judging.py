"""Judging: what a criterion makes of every parameter, held to what a criterion promises.

Criteria come from anyone, so each error says which one it was, whose it is, and where it went
wrong.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np

from ltcore.arrays import Array, Params
from ltcore.criteria import Criterion, Param
from ltcore.errors import InvalidValueError
from ltcore.masks import Masks
from ltcore.parameters import ParamInfo
from ltcore.plugins import origin_of
from ltcore.scoring import ArrayScores, Scores, raise_if_nan, widest


@dataclass(frozen=True)
class BlockScores:
    """Scores made anew for each block by an elementwise criterion."""

    criterion: Criterion
    params: Mapping[str, Param]

    @property
    def source(self) -> str:
        """The criterion."""
        return told(self.criterion)

    @cached_property
    def dtype(self) -> np.dtype[np.floating]:
        """The widest dtype of the scores, found on one weight of each; at least float32."""
        return widest({name: self._scored(name, slice(0, 1)) for name in self.params})

    def block(self, name: str, where: slice) -> Array:
        """Return flat scores at ``where``."""
        return self._scored(name, where).astype(self.dtype, copy=False)

    def _scored(self, name: str, where: slice) -> Array:
        whole = self.params[name]
        signals = {signal: a.reshape(-1)[where] for signal, a in whole.signals.items()}
        mask = whole.mask.reshape(-1)[where]  # a view, also of an all-True mask
        param = Param(whole.info, mask, MappingProxyType(signals), whole.generator)
        return scores_of(self.criterion, param)


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
        NonFiniteError: a score or weight is NaN; names criterion and parameter.
        InvalidValueError: the criterion returned no array of real numbers, or one of another
            shape.
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
        arrays[name] = scores_of(criterion, param)
        raise_if_nan(arrays[name], masks[name], name, told(criterion))
    return ArrayScores(arrays, told(criterion))


def scores_of(criterion: Criterion, param: Param) -> Array:
    """Return the scores of one parameter, floating point.

    Raises:
        InvalidValueError: the criterion returned no array of real numbers, or one of another
            shape; names the criterion, the plugin it is of, and the parameter.
    """
    given = criterion.score(param)
    scores = _array(given)
    shape = param.weight.shape
    if scores is None or scores.dtype.kind not in "fiub":
        found = type(given).__name__ if scores is None else f"an array of dtype {scores.dtype}"
        raise InvalidValueError(
            f"{told(criterion)} gave {param.info.name!r} {found}; expected an array of real "
            f"numbers of shape {shape}"
        )
    if scores.shape != shape:
        raise InvalidValueError(
            f"{told(criterion)} gave scores of shape {scores.shape} for {param.info.name!r}; "
            f"expected {shape}, one score a weight"
        )
    return scores if scores.dtype.kind == "f" else scores.astype(np.float64)


def told(criterion: Criterion) -> str:
    """Return what error messages call a criterion: its name, whose it is, and what is inside."""
    origin = origin_of("criterion", criterion)
    inner: Any = getattr(criterion, "criterion", None)
    whose = f" of {origin}" if origin else ""
    around = f" around {told(inner)}" if hasattr(inner, "score") else ""
    return f"criterion {criterion.name!r}{whose}{around}"


def rearranged(
    criterion: Criterion, before: Masks, chosen: Masks, rng: "np.random.Generator"
) -> Masks:
    """Return ``chosen`` after the criterion's last word on it, if it wants one.

    Args:
        criterion: may have a method ``rearrange(before, chosen, rng)``.
        before: what was kept before the pruning.
        chosen: what the scores say.
        rng: for criteria that draw.

    Raises:
        InvalidValueError: the criterion returned masks of other parameters or shapes, with other
            counts, or with a weight that was gone before.
    """
    rearrange = getattr(criterion, "rearrange", None)
    if rearrange is None:
        return chosen
    given = rearrange(before, chosen, rng)
    if not isinstance(given, Mapping) or given.keys() != chosen.keys():
        names = list(given) if isinstance(given, Mapping) else type(given).__name__
        raise InvalidValueError(
            f"{told(criterion)} rearranged masks to {names}; expected masks of {list(chosen)}"
        )
    masks = {name: np.asarray(given[name]) for name in chosen}
    for name, mask in masks.items():
        _check_rearranged(told(criterion), name, mask, before[name], chosen[name])
    return Masks(masks)


def _check_rearranged(source: str, name: str, mask: Array, before: Array, chosen: Array) -> None:
    if mask.dtype != np.bool_ or mask.shape != chosen.shape:
        raise InvalidValueError(
            f"{source} rearranged the mask of {name!r} to shape {mask.shape}, dtype {mask.dtype}; "
            f"expected {chosen.shape}, bool"
        )
    kept, wanted = int(mask.sum()), int(chosen.sum())
    if kept != wanted:
        raise InvalidValueError(
            f"{source} rearranged the mask of {name!r} to {kept} kept; expected as many as "
            f"before, {wanted}"
        )
    back = int((mask & ~before).sum())
    if back:
        raise InvalidValueError(
            f"{source} brought back {back} pruned weights of {name!r}; masks must nest"
        )


def _array(given: Any) -> Array | None:
    """Return ``given`` as an array, or None where it is none."""
    if given is None:
        return None
    try:
        return np.asarray(given)
    except (TypeError, ValueError, RuntimeError):  # ragged lists, tensors that need gradients
        return None
