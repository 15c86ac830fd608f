"""One pruning: signals, scores, shares, masks."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ltcore.allocation import Allocation, Goal, Group, Sparsity, argument_of, pools
from ltcore.arrays import Params
from ltcore.asking import ask, asked, name_of
from ltcore.counts import fraction
from ltcore.criteria import Criterion, passes_of
from ltcore.errors import InvalidValueError
from ltcore.judging import rearranged, score
from ltcore.masks import Masks
from ltcore.parameters import ParamInfo, in_canonical_order, in_native_order
from ltcore.patterns import Cut, Pattern, cut
from ltcore.restoring import restoring
from ltcore.scoring import Scores
from ltcore.select import select, thinned
from ltcore.selectors import matches, resolve
from ltcore.signals import MEASUREMENTS, Subject, check_flow, measure


@dataclass(frozen=True, slots=True)
class Pruning:
    """One pruning, with every choice made.

    Attributes:
        criterion: what makes a weight important.
        allocation: how the goal is shared.
        goal: how much goes.
        infos: the parameters that masks touch.
        pattern: the shape of sparsity; None is weight by weight.
    """

    criterion: Criterion
    allocation: Allocation
    goal: Goal
    infos: tuple[ParamInfo, ...]
    pattern: Pattern | None = None


def next_masks(
    pruning: Pruning,
    masks: Masks,
    known: Mapping[str, Params],
    subject: Subject,
    rng: "np.random.Generator",
) -> Masks:
    """Return ``masks`` pruned to the goal. The model is as before afterwards.

    Criterion and selection see canonical feature order, so that ties and random scores fall on
    the same weights in every framework.

    Args:
        pruning: what is wanted.
        masks: what is kept now, in native feature order; the result is nested in it.
        known: ``{signal: params}`` of what is not measured: the weights, and those of before.
        subject: for what is measured; the model has the weights that ``known`` says.
        rng: for criteria that draw.

    Raises:
        InvalidValueError: the criterion gave bad scores, or the goal cannot be reached.
        CapabilityError: the backend cannot measure what it needs.
    """
    criterion = pruning.criterion
    if "flow" in criterion.needs:
        check_flow(subject, f"criterion {criterion.name!r}, by its signal 'flow',")
    structure = subject.structure
    before = current = Masks.adopt(in_canonical_order(masks, structure))
    pieces = _pieces(pruning)
    units = pieces.masks(current) if pieces else current
    groups = _groups(pruning, pieces, units)
    start, passes = units, passes_of(criterion)
    wanted = {name: known[name] for name in known if name in {"weight", *criterion.needs}}
    for index in range(1, passes + 1):
        native = Masks.adopt(in_native_order(current, structure))
        signals = {**wanted, **_measured(subject, criterion, native, moved=index > 1)}
        ordered = {name: in_canonical_order(arrays, structure) for name, arrays in signals.items()}
        scores: Scores = score(criterion, ordered, current, pruning.infos, rng)
        if pieces:
            scores = pieces.scores(scores, current)
        units = select(scores, units, _part_way(groups, start, units, index / passes))
        if pieces:
            pieces.check(units)
            current = pieces.spread(units, current)
        else:
            current = units
    units = rearranged(criterion, start, units, rng)
    current = pieces.spread(units, before) if pieces else units
    if pieces and pieces.masks(current) != units:
        raise InvalidValueError(
            f"criterion {criterion.name!r} rearranged the masks to what pattern "
            f"{pieces.pattern.name!r} does not allow; use one without the other"
        )
    _warn_if_emptied(current)
    return Masks.adopt(in_native_order(current, structure))


def check_goals(prunings: Sequence[Pruning], masks: Masks) -> None:
    """Raise unless the goals of ``prunings`` can be shared over ``masks``, one after the other.

    Warns of parameters that the pattern does not fit, and of an allocation that does not share
    what is asked for. The goals are played without scores: which weights of a parameter go makes
    no difference to an allocation. What several parameters lose together is taken to fall on them
    evenly.

    Args:
        prunings: of the same parameters, with one pattern.
        masks: what is kept before the first.

    Raises:
        InvalidValueError: a fraction is out of range, a selector matches nothing, the pattern
            fits no parameter, or not the criterion, or does not allow so much, or there is too
            little left.
    """
    if not prunings:
        return
    pieces = _pieces(prunings[0])
    _warn_of_misfits(prunings[0])
    units = pieces.masks(masks) if pieces else masks
    missed = ""
    for pruning in prunings:
        groups = _groups(pruning, pieces, units)
        before, units = units, thinned(units, groups)
        missed = missed or _missed(pruning, pieces, before, groups)
        if pieces and all(len(group.names) == 1 for group in groups):  # else scores decide
            pieces.check(units)
    if missed:
        warnings.warn(missed, stacklevel=4)


def _groups(pruning: Pruning, pieces: Cut | None, units: Masks) -> tuple[Group, ...]:
    goal, infos = _wanted(pruning, pieces, units)
    return ask(pruning.allocation, goal, units, infos) if goal else ()


def _wanted(
    pruning: Pruning, pieces: Cut | None, units: Masks
) -> tuple[Goal | None, Sequence[ParamInfo]]:
    """Return what the allocation is asked for; no goal if the pattern fits nothing of it."""
    if pieces is None:
        return pruning.goal, pruning.infos
    _check_suits(pruning.criterion, pieces, units)
    goal = _goal_of_fitting(pruning.goal, pruning.infos, pieces)
    return goal, pieces.unit_infos(units)


def _goal_of_fitting(goal: Goal, infos: Sequence[ParamInfo], pieces: Cut) -> Goal | None:
    """Return ``goal`` without selectors of which the pattern fits no parameter; None if none is.

    Raises:
        InvalidValueError: a fraction is not in [0, 1).
        SelectorError: a selector matches none of ``infos``.
    """
    if not isinstance(goal.amounts, Mapping) or not goal.amounts:
        return goal
    for _, amount in resolve(goal.amounts, infos, argument_of(goal)).values():
        fraction(amount, argument_of(goal))
    fitting = {
        selector: amount
        for selector, amount in goal.amounts.items()
        if any(matches(selector, info) for info in pieces.infos)
    }
    return replace(goal, amounts=fitting) if fitting else None


def _pieces(pruning: Pruning) -> Cut | None:
    """Return the parameters as the pattern cuts them."""
    if pruning.pattern is None:
        return None
    pieces, misfits = cut(pruning.pattern, pruning.infos)
    if not pieces.infos:
        raise InvalidValueError(f"pattern {pruning.pattern.name!r} fits no parameter: {misfits}")
    return pieces


def _warn_of_misfits(pruning: Pruning) -> None:
    misfits = cut(pruning.pattern, pruning.infos)[1] if pruning.pattern else {}
    if pruning.pattern and misfits:
        warnings.warn(
            f"pattern {pruning.pattern.name!r} leaves parameters dense that it does not fit: "
            f"{misfits}",
            stacklevel=5,
        )


def _check_suits(criterion: Criterion, pieces: Cut, units: Masks) -> None:
    """Raise if what ``criterion`` does means nothing, or breaks something, under a pattern."""
    pattern = pieces.pattern
    pooled = any(units[info.name].shape != info.shape for info in pieces.infos)
    if pooled and (why := getattr(criterion, "unpoolable", "")):
        raise InvalidValueError(
            f"criterion {criterion.name!r} cannot score units of pattern {pattern.name!r}: {why}"
        )
    if pattern.sparsity is not None and getattr(criterion, "rearrange", None):
        raise InvalidValueError(
            f"criterion {criterion.name!r} rearranges masks, which breaks the order that pattern "
            f"{pattern.name!r} makes; use one without the other"
        )


def _measured(
    subject: Subject, criterion: Criterion, masks: Masks, *, moved: bool
) -> dict[str, Params]:
    """Return the signals that are measured, at the masked weights."""
    needs = criterion.needs & MEASUREMENTS.keys()
    if not moved or needs <= {"flow"}:  # the flow masks a copy of its own
        return measure(subject, needs, masks)
    backend, model, structure = subject.backend, subject.model, subject.structure
    with restoring(backend, model, structure, always=True):
        backend.write(model, structure, masks.apply(backend.read(model, structure, masks)))
        return measure(subject, needs, masks)


def _part_way(groups: Sequence[Group], start: Masks, now: Masks, share: float) -> tuple[Group, ...]:
    """Return what each group loses now, to have gone ``share`` of its way in equal ratios."""
    if share == 1 and now is start:
        return tuple(groups)
    return tuple(replace(group, remove=_due(group, start, now, share)) for group in groups)


def _due(group: Group, start: Masks, now: Masks, share: float) -> int:
    before, kept = (sum(masks.counts[n][0] for n in group.names) for masks in (start, now))
    goal = before - group.remove
    if share == 1 or not before:
        return kept - goal
    due = before * (goal / before) ** share if goal else before * (1 - share)
    return max(kept - max(round(due), goal), 0)


def warn_if_beyond(pruning: Pruning, before: Masks, after: Masks) -> None:
    """Warn if nothing went because more is gone already than the goal asks for.

    For a single pruning: rounds may pass there on their way.
    """
    if not isinstance(pruning.goal, Sparsity) or after != before:
        return
    pieces = _pieces(pruning)
    units = pieces.masks(before) if pieces else before
    whole = Masks.ones({name: mask.shape for name, mask in units.items()})
    goal, infos = _wanted(pruning, pieces, units)
    for pool in pools(goal, whole, infos) if goal else ():
        counts = [units.counts[name] for name in pool.names]
        total = sum(total for _, total in counts)
        gone = total - sum(kept for kept, _ in counts)
        if gone > pool.remove + len(pool.names):
            warnings.warn(
                f"nothing is pruned: {gone} of {total} {_things(pieces)} are gone already, and "
                f"the sparsity asks for {pool.remove}; it counts all of them, also what went "
                "before",
                stacklevel=3,
            )
            return


def _missed(pruning: Pruning, pieces: Cut | None, units: Masks, groups: Sequence[Group]) -> str:
    """Return how the allocation misses what the goal asks for; empty if it does not."""
    goal, infos = _wanted(pruning, pieces, units)
    if goal is None:
        return ""
    wanted = asked(goal, units, infos)
    removed = sum(group.remove for group in groups)
    if wanted.least <= removed <= wanted.most:
        return ""
    return (
        f"allocation {name_of(pruning.allocation)!r} removes {removed} of {units.kept} "
        f"{_things(pieces)} where the goal asks for {wanted.weights}"
    )


def _things(pieces: Cut | None) -> str:
    return "units" if pieces else "weights"


def _warn_if_emptied(masks: Masks) -> None:
    if masks.emptied:
        warnings.warn(
            f"no weight survives in {list(masks.emptied)}: no signal passes there; prune less, "
            "or give these parameters a lower share",
            stacklevel=4,
        )
