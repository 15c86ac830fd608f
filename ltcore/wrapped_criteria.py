"""Criteria around another criterion: only one sign, turned round, or shuffled.

Each takes the other as its option: ``{"name": "inverted", "criterion": "snip"}``. What the other
needs, in how many passes, and whether it is elementwise is what the wrapper says of itself.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import numpy as np

from ltcore.arrays import Array
from ltcore.criteria import Criterion, FunctionCriterion, Param, as_criterion, passes_of
from ltcore.errors import InvalidValueError
from ltcore.judging import rearranged, scores_of
from ltcore.masks import Masks
from ltcore.weight_criteria import large_final, magnitude_increase

Rearrange: TypeAlias = Callable[[Masks, Masks, "np.random.Generator"], Masks]
"""``rearrange(before, chosen, rng)``, see `Criterion`."""


@dataclass(frozen=True, slots=True)
class _Wrapper:
    """Says of itself what another criterion says, and does what it does."""

    name: ClassVar[str]
    criterion: Criterion
    """The other one; a bare function becomes a criterion."""

    def __post_init__(self) -> None:
        if isinstance(self.criterion, str | Mapping):
            raise InvalidValueError(
                f"criterion is {self.criterion!r}; expected a criterion. By name: "
                f"criterion={{'name': {self.name!r}, 'criterion': {self.criterion!r}}}"
            )
        object.__setattr__(self, "criterion", as_criterion(self.criterion))

    @property
    def needs(self) -> frozenset[str]:
        """What the other one needs."""
        return self.criterion.needs

    @property
    def elementwise(self) -> bool:
        """Whether the other one is."""
        return self.criterion.elementwise

    @property
    def passes(self) -> int:
        """As many as the other one takes."""
        return passes_of(self.criterion)

    def score(self, param: Param) -> Array:
        """Return the other one's scores."""
        return scores_of(self.criterion, param)

    @property
    def rearrange(self) -> Rearrange | None:
        """The other one's last word on the masks; None if it has none."""
        return getattr(self.criterion, "rearrange", None)

    @property
    def unpoolable(self) -> str:
        """Why the other one cannot score units."""
        why: str = getattr(self.criterion, "unpoolable", "")
        return why


@dataclass(frozen=True, slots=True)
class Inverted(_Wrapper):
    """Keeps what the other criterion would prune first.

    Frankle et al. 2021 (arXiv 2009.08576), the ablation "inversion".
    """

    name: ClassVar[str] = "inverted"

    def score(self, param: Param) -> Array:
        """Return the other one's scores, negated."""
        return -scores_of(self.criterion, param)


@dataclass(frozen=True, slots=True)
class Shuffled(_Wrapper):
    """Keeps as many weights of each parameter as the other criterion, but any.

    Frankle et al. 2021 (arXiv 2009.08576), the ablation "random shuffling". What is
    shuffled is the mask after the last pass, among the weights that were kept before the pruning.
    """

    name: ClassVar[str] = "shuffled"

    @property
    def rearrange(self) -> Rearrange:
        """Returns masks with the same counts, drawn uniformly from those nested in ``before``."""
        return self._shuffle

    def _shuffle(self, before: Masks, chosen: Masks, rng: "np.random.Generator") -> Masks:
        chosen = rearranged(self.criterion, before, chosen, rng)
        return Masks.adopt({name: _shuffled(before[name], chosen[name], rng) for name in chosen})


def _shuffled(before: Array, chosen: Array, rng: "np.random.Generator") -> Array:
    flags = chosen[before]
    rng.shuffle(flags)
    mask = np.zeros(chosen.shape, np.bool_)
    mask[before] = flags
    return mask


@dataclass(frozen=True, slots=True)
class _OneSign(_Wrapper):
    """Prunes the weights of the wrong sign first, whatever their scores.

    Zhou et al. 2019 set the score of these to 0, the lowest score of a magnitude. Where scores
    may be negative, 0 would keep a weight of the wrong sign before one of the right sign, so here
    they lose 1e15 of their score, which puts them below all others.
    """

    @property
    def needs(self) -> frozenset[str]:
        """What the other one needs, and the initial weights."""
        return self.criterion.needs | {"initial"}

    def _of_sign(self, param: Param, *, same: bool) -> Array:
        scores = scores_of(self.criterion, param)
        scores = scores.astype(np.result_type(scores.dtype, np.float32))
        now, then = param.weight, param.initial
        # Comparisons and a product: np.sign and np.where take ten times as long.
        kept = ((now > 0) == (then > 0)) & ((now < 0) == (then < 0))
        scores -= _FAR * (~kept if same else kept)
        return scores


_FAR = np.float32(1e15)
"""More than any score that means something; a pattern may sum a hundred million squares of it."""


@dataclass(frozen=True, slots=True)
class SameSign(_OneSign):
    """Prunes weights first whose sign is no longer that of initialization.

    Zhou et al. 2019 (arXiv 1905.01067), section 5, the criteria for supermasks.
    """

    name: ClassVar[str] = "same_sign"

    def score(self, param: Param) -> Array:
        """Return the other one's scores, far below all others where the sign has changed."""
        return self._of_sign(param, same=True)


@dataclass(frozen=True, slots=True)
class DifferentSign(_OneSign):
    """Prunes weights first that have the sign of initialization.

    Zhou et al. 2019 (arXiv 1905.01067), section 5: the control of `SameSign`.
    """

    name: ClassVar[str] = "different_sign"

    def score(self, param: Param) -> Array:
        """Return the other one's scores, far below all others where the sign is the same."""
        return self._of_sign(param, same=False)


def _named(name: str, criterion: Criterion) -> FunctionCriterion:
    return FunctionCriterion(name, criterion.score, criterion.needs, criterion.elementwise)


large_final_same_sign = _named("large_final_same_sign", SameSign(large_final))
"""``|final|`` where the sign is that of initialization: Zhou et al. 2019, section 5."""

large_final_different_sign = _named("large_final_different_sign", DifferentSign(large_final))
"""``|final|`` where the sign has changed: Zhou et al. 2019, section 5."""

magnitude_increase_same_sign = _named("magnitude_increase_same_sign", SameSign(magnitude_increase))
"""``|final| - |init|`` where the sign is that of initialization: Zhou et al. 2019, section 5."""

magnitude_increase_different_sign = _named(
    "magnitude_increase_different_sign", DifferentSign(magnitude_increase)
)
"""``|final| - |init|`` where the sign has changed: Zhou et al. 2019, section 5."""
