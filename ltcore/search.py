"""The search for a ticket: train, score, mask, rewind, again. The loop owns only the order."""

import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from ltcore.arrays import Params, freeze
from ltcore.discovery import registry
from ltcore.errors import InvalidValueError
from ltcore.holds import hold_model
from ltcore.masks import Masks
from ltcore.options import plain
from ltcore.requests import Request
from ltcore.resetting import Start, start_params
from ltcore.rewinding import RewindPolicy
from ltcore.ticket import Ticket, make_ticket, origin

Train: TypeAlias = Callable[..., Any]
"""``train(model)`` or ``train(model, start_step)``; what it returns is ignored."""

Evaluate: TypeAlias = Callable[[Any], float | Mapping[str, float]]
"""Returns one number, or ``{metric: number}``."""


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
    """A search with every choice made; `ltcore.iter_rounds` says what they mean."""

    model: Any
    request: Request
    policy: RewindPolicy
    train: Train
    evaluate: Evaluate | None

    @property
    def resumes(self) -> bool:
        """Whether rewound rounds go on at the rewind step instead of training in full."""
        return self.policy.resume_step > 0 and takes_start_step(self.train)


@dataclass(frozen=True, slots=True)
class _Run:
    """What one training left."""

    trained: Params
    snapshots: Mapping[int, Params]
    steps: int
    first_input: Any


def run_rounds(plan: Plan) -> Iterator[Round]:
    """Yield round 0 (dense), then a round after each pruning.

    Raises:
        InvalidValueError: training ended before the rewind step.
        HoldError: training moved pruned weights behind the hold's back.
    """
    backend, model, masks = plan.request.backend, plan.model, plan.request.start
    # Held from the start, though nothing is pruned: a training step that the user compiles now
    # is compiled with the masks in it.
    hold = hold_model(model, backend, plan.request.structure, masks, existing="error")
    try:
        mode = backend.get_mode(model)
        start = _read(plan)
        run = _train(plan, 0, _snapshots(plan))
        # The graph that training showed tells which layers are the output's.
        plan = replace(plan, request=plan.request.traced(model, run.first_input))
        finished = _finish(plan, 0, masks, start, run.steps, None)
    except BaseException:
        hold.release()  # nothing is pruned yet: leave the model as free as it came
        raise
    snapshots = {0: start, **run.snapshots}
    yield finished

    for index, goal in enumerate(plan.request.goals, start=1):
        signals = {"initial": snapshots[0], "rewind": snapshots.get(plan.policy.resume_step, {})}
        masks = plan.request.pruned(model, goal, masks, index, **signals)
        start = _rewind(plan, masks, snapshots, run.trained, index)
        backend.write(model, plan.request.structure, masks.apply(start))
        hold_model(model, backend, plan.request.structure, masks, existing="replace")
        steps = 0
        if index < len(plan.request.goals) or plan.evaluate:
            backend.set_mode(model, mode)  # evaluate may have left it in eval
            run = _train(plan, plan.policy.resume_step if plan.resumes else 0, ())
            hold.check()
            steps = run.steps
        finished = _finish(plan, index, masks, start, steps, finished.ticket.id)
        yield finished


def _snapshots(plan: Plan) -> tuple[int, ...]:
    """Return the steps of the first training whose weights are needed later."""
    reads = {plan.policy.resume_step} if "rewind" in plan.request.criterion.needs else set()
    return tuple(sorted({*plan.policy.snapshots, *reads}))


def _read(plan: Plan) -> Params:
    """Return all params, read-only: snapshots are shared between rounds and their tickets."""
    params = plan.request.backend.read(plan.model, plan.request.structure)
    return {name: freeze(array) for name, array in params.items()}


def _train(plan: Plan, start_step: int, snapshots: tuple[int, ...]) -> _Run:
    """Train once, with a fresh optimizer, counting updates and taking snapshots."""
    backend = plan.request.backend
    backend.fresh_optimizer(plan.model, start_step)
    wanted = [step for step in snapshots if step > 0]
    watch = backend.watch(plan.model, plan.request.structure, wanted)
    try:
        if takes_start_step(plan.train):
            plan.train(plan.model, start_step=start_step)
        else:
            plan.train(plan.model)
    finally:
        watch.stop()
    missed = [step for step in wanted if step > watch.steps]
    if missed:
        raise InvalidValueError(
            f"rewind_to is step {missed[0]}, but training made {watch.steps} optimizer updates; "
            "rewind to an earlier step or train longer"
        )
    if not watch.steps:
        warnings.warn(
            "training made no optimizer update of this model that ltcore could see: did train() "
            "train the model that it was given, with an optimizer of the framework?",
            stacklevel=4,
        )
    seen = {
        step: {name: freeze(array) for name, array in params.items()}
        for step, params in watch.snapshots.items()
    }
    return _Run(_read(plan), seen, watch.steps, watch.first_input)


def _rewind(
    plan: Plan, masks: Masks, snapshots: Mapping[int, Params], trained: Params, index: int
) -> Params:
    """Return where the coming round starts."""
    request = plan.request
    run = Start(request.backend, plan.model, request.structure, request.seed, index)
    return start_params(plan.policy, run, masks, snapshots, trained)


def _finish(
    plan: Plan, index: int, masks: Masks, start: Params, steps: int, parent: str | None
) -> Round:
    """Evaluate the trained model, make the round's ticket, and tell plugins."""
    metrics = _measure(plan.evaluate, plan.model) if plan.evaluate else {}
    provenance = _story(plan, index, metrics, steps, parent)
    request = plan.request
    ticket = make_ticket(request.backend, plan.model, request.structure, masks, start, provenance)
    finished = Round(index, ticket, metrics, steps)
    registry().manager.hook.ltcore_round_finished(round=finished)
    return finished


def _story(
    plan: Plan, index: int, metrics: Mapping[str, float], steps: int, parent: str | None
) -> dict[str, Any]:
    """Return a round's provenance: plain JSON data."""
    told: dict[str, Any] = {
        **origin(plan.request.backend),
        **plan.request.story,
        "round": index,
        "rewind": _rewound_to(plan, index),
        "parent": parent,
        "steps": steps,
        # JSON has no NaN; a diverged run must still have a ticket.
        "metrics": {name: v if math.isfinite(v) else str(v) for name, v in metrics.items()},
    }
    if index:
        goal = plan.request.goals[index - 1]
        told["goal"] = {type(goal).__name__.lower(): plain(goal.amounts)}
    return told


def _rewound_to(plan: Plan, index: int) -> dict[str, Any]:
    """Return where a round's weights are from; those of round 0 are the initial ones."""
    if not index:
        return {"kind": "initialization", "step": 0, "schedule": "restarted"}
    schedule = "resumed" if plan.resumes else "restarted"
    return {**plan.policy.describe(), "schedule": schedule}


def _measure(evaluate: Evaluate, model: Any) -> dict[str, float]:
    result = evaluate(model)
    named = result if isinstance(result, Mapping) else {"score": result}
    try:
        return {str(name): float(value) for name, value in named.items()}
    except (TypeError, ValueError):
        raise InvalidValueError(
            f"evaluate returned {result!r}; expected a number or {{metric: number}}"
        ) from None


def takes_start_step(train: Train) -> bool:
    """Whether ``train`` is of the form ``train(model, start_step)``."""
    return "start_step" in inspect.signature(train).parameters


def check_resumes(policy: RewindPolicy, train: Train) -> None:
    """Raise if ``policy`` takes the schedule back and ``train`` cannot go on in the middle of it.

    Raises:
        InvalidValueError: says what ``train`` should be.
    """
    if getattr(policy, "needs_start_step", False) and not takes_start_step(train):
        raise InvalidValueError(
            f"rewind_to is {policy.describe()}, which takes the schedule back to step "
            f"{policy.resume_step}, but train has the signature {inspect.signature(train)}; "
            "expected train(model, start_step), which goes on at that step of its schedule"
        )


def check_train(train: Train) -> None:
    """Raise unless ``train`` can be called with a model, or with a model and a start step.

    Raises:
        InvalidValueError: shows the signature.
    """
    signature = inspect.signature(train)
    try:
        signature.bind(None, **({"start_step": 0} if takes_start_step(train) else {}))
    except TypeError:
        raise InvalidValueError(
            f"train has the signature {signature}; expected train(model) or train(model, "
            "start_step). Bind other arguments first, for example with functools.partial"
        ) from None
