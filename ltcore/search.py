"""The search for a ticket: train, score, mask, rewind, again. The loop owns only the order."""

import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from ltcore.allocation import Allocation, Goal
from ltcore.arrays import Params
from ltcore.backend import Backend
from ltcore.criteria import Criterion, score
from ltcore.errors import HoldError, InvalidValueError
from ltcore.held import held_by, hold_model
from ltcore.masks import Masks
from ltcore.parameters import ParamInfo, Structure, regrouped
from ltcore.plugins import registry
from ltcore.rewinding import RewindContext, RewindPolicy
from ltcore.schedules import Schedule
from ltcore.select import select
from ltcore.ticket import Ticket, make_ticket, origin

Train: TypeAlias = Callable[..., Any]
"""``train(model)`` or ``train(model, start_step)``; what it returns is ignored."""

Evaluate: TypeAlias = Callable[[Any], float | Mapping[str, float]]
"""Returns one number, or ``{metric: number}``."""

Gradients: TypeAlias = Callable[[], Params]
"""Returns the gradient of every trained parameter at the model's present weights."""


@dataclass(frozen=True, slots=True)
class Round:
    """One round: what it started from, and how its training went.

    Attributes:
        index: 0 is the dense network.
        ticket: masks and the weights that the round started from.
        metrics: what ``evaluate`` gave after training; empty without it.
        steps: optimizer updates that the round's training made.
    """

    index: int
    ticket: Ticket
    metrics: Mapping[str, float]
    steps: int

    @property
    def masks(self) -> Masks:
        """What is kept."""
        return self.ticket.masks

    @property
    def kept(self) -> int:
        """How many prunable weights are kept."""
        return self.masks.kept

    @property
    def total(self) -> int:
        """How many prunable weights there are."""
        return self.masks.total


@dataclass(frozen=True, slots=True)
class Plan:
    """A search with every choice made; `ltcore.find_ticket` says what they mean."""

    backend: Backend
    infos: tuple[ParamInfo, ...]
    schedule: Schedule
    criterion: Criterion
    allocation: Allocation
    scope: str
    policy: RewindPolicy
    seed: int
    train: Train
    evaluate: Evaluate | None
    gradients: Gradients | None

    @property
    def resumes(self) -> bool:
        """Whether rewound rounds go on at the rewind step instead of training in full."""
        return self.policy.resume_step > 0 and _takes_start_step(self.train)


@dataclass(frozen=True, slots=True)
class _Run:
    """What one training left."""

    trained: Params
    snapshots: Mapping[int, Params]
    steps: int
    first_input: Any


def run_rounds(plan: Plan, model: Any, structure: Structure) -> Iterator[Round]:
    """Yield round 0 (dense), then a round after each pruning.

    Raises:
        HoldError: the model is held already.
        InvalidValueError: training ended before the rewind step.
    """
    if held_by(plan.backend, model):
        raise HoldError("the model is held already; release that hold before a search")
    masks = Masks.ones({info.name: info.shape for info in plan.infos})
    start: Params = plan.backend.read(model, structure)
    run = _train(plan, model, structure, 0, plan.policy.snapshots)
    structure, start, run = _with_graph(plan, model, structure, start, run)
    snapshots = {0: start, **run.snapshots}
    finished = _finish(plan, model, structure, 0, masks, start, run.steps, None)
    yield finished

    for index in range(1, plan.schedule.rounds + 1):
        goal = plan.schedule.goal(index)
        masks = _prune(plan, model, structure, masks, goal, snapshots, index)
        start = _rewind(plan, model, structure, masks, snapshots, run.trained, index)
        plan.backend.write(model, structure, masks.apply(start))
        hold_model(model, plan.backend, structure, masks, existing="replace")
        steps = 0
        if index < plan.schedule.rounds or plan.evaluate:
            resume_step = plan.policy.resume_step if plan.resumes else 0
            run = _train(plan, model, structure, resume_step, ())
            steps = run.steps
        finished = _finish(plan, model, structure, index, masks, start, steps, finished.ticket.id)
        yield finished


def _train(
    plan: Plan, model: Any, structure: Structure, start_step: int, snapshots: tuple[int, ...]
) -> _Run:
    """Train once, with a fresh optimizer, counting updates and taking snapshots."""
    plan.backend.fresh_optimizer(model, start_step)
    watch = plan.backend.watch(model, structure, [step for step in snapshots if step > 0])
    try:
        if _takes_start_step(plan.train):
            plan.train(model, start_step)
        else:
            plan.train(model)
    finally:
        watch.stop()
    missed = [step for step in snapshots if step > watch.steps]
    if missed:
        raise InvalidValueError(
            f"rewind_to is step {missed[0]}, but training made {watch.steps} optimizer updates; "
            "rewind to an earlier step or train longer"
        )
    trained = plan.backend.read(model, structure)
    return _Run(trained, dict(watch.snapshots), watch.steps, watch.first_input)


def _with_graph(
    plan: Plan, model: Any, structure: Structure, start: Params, run: _Run
) -> tuple[Structure, Params, _Run]:
    """Learn how data flows from the first input that training showed, if nobody gave an example.

    What was read before goes into the order of features that is only known now.
    """
    if not structure.untraced or run.first_input is None:
        return structure, start, run
    traced = plan.backend.describe(model, run.first_input)
    snapshots = {step: regrouped(params, traced) for step, params in run.snapshots.items()}
    trained = regrouped(run.trained, traced)
    return traced, regrouped(start, traced), _Run(trained, snapshots, run.steps, run.first_input)


def _prune(
    plan: Plan,
    model: Any,
    structure: Structure,
    masks: Masks,
    goal: Goal,
    snapshots: Mapping[int, Params],
    index: int,
) -> Masks:
    rewind = snapshots[plan.policy.resume_step]
    signals = {
        "weight": plan.backend.read(model, structure, masks),
        "initial": snapshots[0],
        "rewind": rewind,
    }
    return next_masks(
        plan.criterion, plan.allocation, goal, masks, plan.infos, signals, plan.gradients,
        _generator(plan.seed, index),
    )  # fmt: skip


def next_masks(
    criterion: Criterion,
    allocation: Allocation,
    goal: Goal,
    masks: Masks,
    infos: tuple[ParamInfo, ...],
    signals: Mapping[str, Params],
    gradients: Gradients | None,
    rng: np.random.Generator,
) -> Masks:
    """Return ``masks`` pruned to ``goal``.

    Raises:
        InvalidValueError: the criterion needs a signal that was not given.
    """
    wanted = {name: signals[name] for name in signals if name in {"weight", *criterion.needs}}
    if "gradient" in criterion.needs:
        if gradients is None:
            raise InvalidValueError(
                f"criterion {criterion.name!r} needs gradients; give batches=[(inputs, targets), "
                "...] and loss=, a function of (outputs, targets)"
            )
        wanted["gradient"] = gradients()
    missing = sorted(criterion.needs - wanted.keys() - {"rng"})
    if missing:
        raise InvalidValueError(
            f"criterion {criterion.name!r} needs {missing}, which only a search has; "
            "use find_ticket or iter_rounds"
        )
    scores = score(criterion, wanted, masks, infos, rng)
    chosen = select(scores, masks, allocation(goal, masks, infos))
    if chosen.emptied:
        warnings.warn(
            f"no weight survives in {list(chosen.emptied)}: no signal passes there; prune less, "
            "or give these parameters a lower share",
            stacklevel=3,
        )
    return chosen


def _rewind(
    plan: Plan,
    model: Any,
    structure: Structure,
    masks: Masks,
    snapshots: Mapping[int, Params],
    trained: Params,
    index: int,
) -> Params:
    seed = int(_generator(plan.seed, index).integers(2**31))
    context = RewindContext(
        masks, snapshots, trained, lambda: plan.backend.redraw(model, structure, seed)
    )
    return plan.policy.rewind(context)


def _finish(
    plan: Plan,
    model: Any,
    structure: Structure,
    index: int,
    masks: Masks,
    start: Params,
    steps: int,
    parent: str | None,
) -> Round:
    """Evaluate the trained model, make the round's ticket, and tell plugins."""
    metrics = _measure(plan.evaluate, model) if plan.evaluate else {}
    schedule = "resumed" if index and plan.resumes else "restarted"
    provenance = {
        **origin(plan.backend),
        "criterion": plan.criterion.name,
        "scope": plan.scope,
        "round": index,
        "rewind": {**plan.policy.describe(), "schedule": schedule},
        "seed": plan.seed,
        "parent": parent,
        "steps": steps,
        # JSON has no NaN; a diverged run must still have a ticket.
        "metrics": {name: v if math.isfinite(v) else str(v) for name, v in metrics.items()},
    }
    if index:
        goal = plan.schedule.goal(index)
        amounts = goal.amounts
        shared = dict(amounts) if isinstance(amounts, Mapping) else amounts
        provenance["goal"] = {type(goal).__name__.lower(): shared}
    ticket = make_ticket(plan.backend, model, structure, masks, start, provenance)
    finished = Round(index, ticket, metrics, steps)
    registry().manager.hook.ltcore_round_finished(round=finished)
    return finished


def _measure(evaluate: Evaluate, model: Any) -> dict[str, float]:
    result = evaluate(model)
    if isinstance(result, Mapping):
        return {str(name): float(value) for name, value in result.items()}
    return {"score": float(result)}


def _takes_start_step(train: Train) -> bool:
    """Whether ``train`` is of the form ``train(model, start_step)``."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    found = [p for p in inspect.signature(train).parameters.values() if p.kind in kinds]
    return len(found) > 1 and (
        found[1].name == "start_step" or found[1].default is inspect.Parameter.empty
    )


def _generator(seed: int, index: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, index]))
