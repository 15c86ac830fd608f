"""Which weights to remove: exactly as many as asked, ties by position, in one pass.

A sample brackets the threshold; one pass over the scores writes the masks for everything outside
the bracket and remembers the few candidates inside; a partition of those settles the rest. So the
scores are read once, in blocks that stay in cache, and are never copied or sorted whole.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from ltcore.allocation import Group
from ltcore.arrays import Array
from ltcore.counts import shared
from ltcore.errors import InvalidValueError
from ltcore.masks import Masks
from ltcore.scoring import Scores, raise_if_nan

BLOCK = 1 << 16
SAMPLE = 1 << 17
DEVIATIONS = 5.0


@dataclass(frozen=True, slots=True)
class _Candidates:
    """Positions of one block whose scores fall inside the bracket, ascending."""

    name: str
    positions: Array
    scores: Array


def select(scores: Scores, masks: Masks, groups: Sequence[Group]) -> Masks:
    """Return ``masks`` with exactly ``group.remove`` more weights removed from each group.

    The lowest scores go. Among equal scores the lower position stays (parameter order, then C
    order of the canonical layout), so equal weights give equal masks in every framework.

    Args:
        scores: one score for every weight of every parameter in a group; higher = keep.
        masks: what is kept now; the result is nested in it.
        groups: disjoint sets of parameters, each with the number of weights it loses. Where a
            parameter would fall below the group's floor, its best ones stay up to it, and the
            others of the group lose more.

    Raises:
        NonFiniteError: a kept weight's score is NaN; names the parameter.
        InvalidValueError: groups share a parameter or name one without a mask, or a group is
            asked for more weights than it has above its floor.
    """
    _check_groups(groups, masks)
    chosen = {name: masks[name] for name in masks}
    for group in groups:
        if group.remove and group.floor:
            chosen.update(_select_above_floor(scores, masks, group))
        elif group.remove:
            chosen.update(_select_group(scores, masks, tuple(group.names), group.remove))
    return Masks.adopt(chosen)


def thinned(masks: Masks, groups: Sequence[Group]) -> Masks:
    """Return masks with the counts that `select` would leave, at no particular positions.

    What several parameters lose together is shared among them in proportion.

    Raises:
        InvalidValueError: as `select` does for its groups.
    """
    _check_groups(groups, masks)
    chosen = {name: masks[name] for name in masks}
    for group in groups:
        kept = [masks.counts[name][0] for name in group.names]
        least = [group.least(name, count) for name, count in zip(group.names, kept, strict=True)]
        weights = [Fraction(max(count, 1)) for count in kept]
        left = shared(sum(kept) - group.remove, weights, least, kept)
        for name, before, after in zip(group.names, kept, left, strict=True):
            if after < before:
                mask = np.zeros(masks[name].shape, np.bool_)
                mask.reshape(-1)[:after] = True
                chosen[name] = mask
    return Masks.adopt(chosen)


def _check_groups(groups: Sequence[Group], masks: Masks) -> None:
    names = [name for group in groups for name in group.names]
    unknown = [name for name in names if name not in masks]
    if unknown or len(set(names)) != len(names):
        raise InvalidValueError(
            f"the allocation gave groups {list(groups)}; expected disjoint groups of {list(masks)}"
        )
    for group in groups:
        kept = sum(masks.counts[name][0] for name in group.names)
        if not isinstance(group.remove, int | np.integer) or not 0 <= group.remove <= kept:
            raise InvalidValueError(
                f"cannot remove {group.remove!r} of the {kept} weights left in {group.names}; "
                "expected a whole number of them"
            )
        least = sum(group.least(name, masks.counts[name][0]) for name in group.names)
        if group.floor and group.remove > kept - least:
            raise InvalidValueError(
                f"cannot remove {group.remove} of the {kept} weights left in {group.names}: "
                f"{least} of them have to stay as the floor"
            )


def _select_above_floor(scores: Scores, masks: Masks, group: Group) -> dict[str, Array]:
    """Choose; fix what fell below its floor at exactly that; choose again among the others.

    Whatever falls once would fall again, as the others then lose more.
    """
    kept = {name: masks.counts[name][0] for name in group.names}
    least = {name: group.least(name, kept[name]) for name in group.names}
    names, remove = tuple(group.names), group.remove
    fixed: dict[str, Array] = {}
    while True:
        chosen = _select_group(scores, masks, names, remove)
        fallen = {n for n in names if np.count_nonzero(chosen[n]) < least[n]}
        if not fallen:
            return fixed | chosen
        for name in fallen:
            loses = kept[name] - least[name]
            fixed |= _select_group(scores, masks, (name,), loses)
            remove -= loses
        names = tuple(name for name in names if name not in fallen)


def _select_group(
    scores: Scores, masks: Masks, names: tuple[str, ...], remove: int
) -> dict[str, Array]:
    if not remove:
        return {name: masks[name] for name in names}
    kept = sum(masks.counts[name][0] for name in names)
    total = sum(masks.counts[name][1] for name in names)
    # With n ** (2/3) samples, ordering them costs about what settling the candidates costs.
    stride = max(1, int(total ** (1 / 3)), total // SAMPLE)
    sample = _sample(scores, masks, names, stride)
    deviations = DEVIATIONS
    while True:
        low, high = _bracket(sample, remove / kept, deviations)
        chosen, candidates, above = _split(scores, masks, names, low, high)
        wanted = kept - remove - above
        found = sum(c.positions.size for c in candidates)
        if 0 <= wanted <= found:
            _settle(chosen, candidates, found, wanted, scores.source)
            return chosen
        deviations *= 4  # the sample misled; in the end the bracket holds everything


def _sample(scores: Scores, masks: Masks, names: tuple[str, ...], stride: int) -> Array:
    """Return every ``stride``-th kept score, striding through all parameters as one vector."""
    parts, offset = [], 0
    for name in names:
        where = slice(-offset % stride, None, stride)
        part = scores.block(name, where)
        kept, total = masks.counts[name]
        if kept < total:
            mask = masks[name].reshape(-1)[where]
            part = part[mask]
        if np.isnan(part).any():
            raise_if_nan(part, np.True_, name, scores.source)
        parts.append(part)
        offset += total
    return np.concatenate(parts)


def _bracket(sample: Array, quantile: float, deviations: float) -> tuple[float, float]:
    """Return bounds that hold the smallest kept score, with ``deviations`` of safety."""
    slack = deviations * (sample.size * max(quantile * (1 - quantile), 1e-9)) ** 0.5 + 2
    first, last = int(quantile * sample.size - slack), int(quantile * sample.size + slack)
    inside = [i for i in (first, last) if 0 < i < sample.size - 1]
    ordered = np.partition(sample, inside) if inside else sample
    low = ordered[first] if first in inside else -np.inf
    high = ordered[last] if last in inside else np.inf
    return low, high


def _split(
    scores: Scores, masks: Masks, names: tuple[str, ...], low: float, high: float
) -> tuple[dict[str, Array], list[_Candidates], int]:
    """Keep what is above the bracket, drop what is below, and collect what is inside."""
    bottom, top = scores.dtype.type(low), scores.dtype.type(high)
    chosen: dict[str, Array] = {}
    candidates, above = [], 0
    for name in names:
        kept, total = masks.counts[name]
        mask = masks[name].reshape(-1) if kept < total else None
        keep = np.empty(total, np.bool_)
        for start, stop in _blocks(total):
            block = scores.block(name, slice(start, stop))
            upper = keep[start:stop]
            np.greater(block, top, out=upper)
            # A NaN is neither above nor below, so it ends among the candidates and is found there.
            inside = np.equal(upper, np.less(block, bottom))
            if mask is not None:
                upper &= mask[start:stop]
                inside &= mask[start:stop]
            above += int(np.count_nonzero(upper))
            positions = np.flatnonzero(inside)
            if positions.size:
                candidates.append(_Candidates(name, positions + start, block[positions]))
        chosen[name] = keep.reshape(masks[name].shape)
    return chosen, candidates, above


def _settle(
    chosen: dict[str, Array],
    candidates: list[_Candidates],
    found: int,
    wanted: int,
    source: str,
) -> None:
    """Keep the ``wanted`` best of the candidates, in place; among equals the earlier ones."""
    if not found:
        return
    values = np.concatenate([c.scores for c in candidates])
    if np.isnan(values).any():
        for candidate in candidates:
            raise_if_nan(candidate.scores, np.True_, candidate.name, source)
    if not wanted:
        return
    values.partition(found - wanted)
    threshold = values[found - wanted]
    ties = wanted - int(np.count_nonzero(values > threshold))
    for candidate in candidates:
        keep = chosen[candidate.name].reshape(-1)
        keep[candidate.positions[candidate.scores > threshold]] = True
        equal = candidate.positions[candidate.scores == threshold][:ties]
        keep[equal] = True
        ties -= equal.size


def _blocks(total: int) -> Iterator[tuple[int, int]]:
    for start in range(0, total, BLOCK):
        yield start, min(start + BLOCK, total)
