"""One pruning: signals, scores, shares, masks."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ltcore.allocation import Allocation, Goal, Group, Sparsity, pools
from ltcore.arrays import Params
from ltcore.asking import ask, asked, name_of
from ltcore.criteria import Criterion, passes_of
from ltcore.errors import InvalidValueError
from ltcore.judging import rearranged, score
from ltcore.masks import Masks
from ltcore.parameters import ParamInfo, in_canonical_order, in_native_order
from ltcore.patterns import Cut, Pattern, cut
from ltcore.restoring import restoring
from ltcore.scoring import Scores
from ltcore.select import select
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
        InvalidValueError: the criterion needs a signal that is not there, or gave bad scores; or
            the allocation gave no groups.
        CapabilityError: the backend cannot measure what it needs.
    """
    criterion = pruning.criterion
    missing = sorted(criterion.needs - known.keys() - MEASUREMENTS.keys() - {"rng"})
    if missing:
        raise InvalidValueError(
            f"criterion {criterion.name!r} needs {missing}, which only a search has; "
            "use find_ticket or iter_rounds"
        )
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
    _warn_if_missed(pruning, pieces, start, groups)
    _warn_if_emptied(current)
    return Masks.adopt(in_native_order(current, structure))


def check_goal(pruning: Pruning, masks: Masks) -> None:
    """Raise unless the goal can be shared over ``masks``; for prunings that come later.

    Raises:
        InvalidValueError: a fraction is out of range, a selector matches nothing, or the pattern
            fits no parameter.
    """
    pieces = _pieces(pruning)
    _groups(pruning, pieces, pieces.masks(masks) if pieces else masks)


def _groups(pruning: Pruning, pieces: Cut | None, units: Masks) -> tuple[Group, ...]:
    infos = pieces.unit_infos(units) if pieces else pruning.infos
    return ask(pruning.allocation, pruning.goal, units, infos)


def _pieces(pruning: Pruning) -> Cut | None:
    """Return the parameters as the pattern cuts them; warns of those that it does not fit."""
    if pruning.pattern is None:
        return None
    pieces, misfits = cut(pruning.pattern, pruning.infos)
    if not pieces.infos:
        raise InvalidValueError(f"pattern {pruning.pattern.name!r} fits no parameter: {misfits}")
    if misfits:
        warnings.warn(
            f"pattern {pruning.pattern.name!r} leaves parameters dense that it does not fit: "
            f"{misfits}",
            stacklevel=4,
        )
    return pieces


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
    pieces = cut(pruning.pattern, pruning.infos)[0] if pruning.pattern else None
    units = pieces.masks(before) if pieces else before
    whole = Masks.ones({name: mask.shape for name, mask in units.items()})
    infos = pieces.unit_infos(units) if pieces else pruning.infos
    for pool in pools(pruning.goal, whole, infos):
        counts = [units.counts[name] for name in pool.names]
        total = sum(total for _, total in counts)
        gone = total - sum(kept for kept, _ in counts)
        if gone > pool.remove + len(pool.names):
            warnings.warn(
                f"nothing is pruned: {gone} of {total} {'units' if pieces else 'weights'} are gone "
                f"already, and the sparsity asks for {pool.remove}; it counts all of them, also "
                "what went before",
                stacklevel=3,
            )
            return


def _warn_if_missed(
    pruning: Pruning, pieces: Cut | None, units: Masks, groups: Sequence[Group]
) -> None:
    """Warn if the allocation did not share what the goal asks for."""
    infos = pieces.unit_infos(units) if pieces else pruning.infos
    wanted = asked(pruning.goal, units, infos)
    removed = sum(group.remove for group in groups)
    if not wanted.least <= removed <= wanted.most:
        warnings.warn(
            f"allocation {name_of(pruning.allocation)!r} removes {removed} of {units.kept} "
            f"{'units' if pieces else 'weights'} where the goal asks for {wanted.weights}",
            stacklevel=4,
        )


def _warn_if_emptied(masks: Masks) -> None:
    if masks.emptied:
        warnings.warn(
            f"no weight survives in {list(masks.emptied)}: no signal passes there; prune less, "
            "or give these parameters a lower share",
            stacklevel=4,
        )
