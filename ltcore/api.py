"""The few calls that people type."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, TypedDict, Unpack

from ltcore.allocation import Allocation, Amounts, Goal
from ltcore.arrays import Array
from ltcore.backend import Backend
from ltcore.errors import HoldError, InvalidValueError, MaskError
from ltcore.holds import Existing, Hold, held_by, hold_model
from ltcore.masks import Masks
from ltcore.options import (
    AnyCriterion,
    AnyPolicy,
    AnySchedule,
    Named,
    plain,
    policy_from,
    prunable_from,
    schedule_from,
)
from ltcore.patterns import Pattern
from ltcore.pruning import warn_if_beyond
from ltcore.requests import prepare, to_sparsity
from ltcore.search import Evaluate, Plan, Round, Train, check_resumes, check_train, run_rounds
from ltcore.signals import Batches, Loss
from ltcore.ticket import Ticket, resolve_backend


@dataclass(frozen=True, slots=True)
class Search:
    """What a search found.

    Attributes:
        rounds: every round, round 0 (dense) first.
        hold: the hold on the model, which is as last trained.
    """

    rounds: tuple[Round, ...]
    hold: Hold

    @property
    def ticket(self) -> Ticket:
        """The last round's ticket."""
        return self.rounds[-1].ticket


def prune(
    model: Any,
    sparsity: Amounts | None = None,
    *,
    criterion: AnyCriterion = "magnitude",
    scope: Named | Allocation = "global",
    pattern: Named | Pattern = "unstructured",
    prunable: Sequence[str] | None = None,
    batches: Batches | None = None,
    loss: Loss | None = None,
    seed: int = 0,
    example: Any = None,
    backend: str | Backend | None = None,
) -> Hold:
    """Zero the least important weights of ``model`` and hold them at zero.

    A model that is held already is pruned further: what was pruned stays pruned.

    Args:
        model: a PyTorch module or a built Keras model; changed in place, never wrapped.
        sparsity: the fraction of weights removed, in [0, 1), or ``{selector: fraction}``; not
            needed with a pattern that says it, such as ``"2:4"``.
        criterion: what makes a weight important; higher score = keep. Here as in the next two: a
            name, ``{"name": ..., option: value}``, or the thing itself.
        scope: what competes with what: ``"global"``, ``"layer"``, ``"erk"``, ...
        pattern: the shape of sparsity: ``"unstructured"``, ``"2:4"``, ``"block"``, ``"channel"``,
            ...; ``sparsity`` counts its units.
        prunable: selectors of the parameters to prune; kernels of dense and conv layers if None.
        batches: pairs (inputs, targets), for criteria that need gradients.
        loss: function of (outputs, targets), for criteria that need gradients.
        seed: for criteria that draw random numbers.
        example: one input batch; lets ``"@output"`` be derived from the graph.
        backend: a backend or its name, where it shall not be found from the model.

    Returns:
        The hold; ``print(hold.report())``, ``hold.release()``, or use it with ``with``.

    Raises:
        InvalidValueError: a fraction out of range, a missing option, NaN weights or scores.
        NothingPrunableError: the model has no parameter to prune.
        SelectorError: a selector matches no parameter.
        ModelError: the model is not built, or no backend drives it.
    """
    request = prepare(
        model,
        to_sparsity(sparsity),
        criterion=criterion,
        scope=scope,
        pattern=pattern,
        prunable=prunable,
        batches=batches,
        loss=loss,
        seed=seed,
        example=example,
        backend=backend,
    )
    driver = request.backend
    current = held_by(driver, model)
    earlier = dict(current.story) if current else {}
    (goal,) = request.goals
    chosen = request.pruned(model, goal, request.start)
    warn_if_beyond(request.pruning(goal), request.start, chosen)
    hold = hold_model(model, driver, request.structure, chosen, existing="tighten")
    hold.story = {
        **request.story,
        "goal": {"sparsity": plain(goal.amounts)},
        **({"earlier": earlier} if earlier else {}),
    }
    return hold


def hold(
    model: Any,
    masks: str | Mapping[str, Array] | Ticket = "nonzero",
    *,
    prunable: Sequence[str] | None = None,
    existing: Existing = "error",
    example: Any = None,
    mapping: Mapping[str, str] | None = None,
    backend: str | Backend | None = None,
) -> Hold:
    """Keep pruned weights of ``model`` at zero while anyone trains it.

    Args:
        model: a PyTorch module or a built Keras model.
        masks: ``"nonzero"`` prunes what is zero now; or masks by portable name (of this
            framework, canonical axes), or a ticket of which only the masks are taken.
        prunable: for ``"nonzero"``, selectors of the parameters to look at; kernels if None.
        existing: what to do with a hold that is there: ``"error"``, ``"replace"``, ``"tighten"``.
        example: for a ticket: as in `Ticket.apply`.
        mapping: for a ticket: as in `Ticket.apply`.
        backend: a backend or its name, where it shall not be found from the model.

    Raises:
        HoldError: the model is held already and ``existing`` is ``"error"``.
        MaskError: a mask is for no parameter of the model, or of another shape.
        ModelError: the model is not built, or no backend drives it.
    """
    driver = resolve_backend(model, backend)
    if isinstance(masks, Ticket):
        return masks.apply(
            model, weights="keep", existing=existing, example=example, mapping=mapping,
            backend=driver,
        )  # fmt: skip
    structure = driver.describe(model, example)
    if isinstance(masks, str):
        if masks != "nonzero":
            raise InvalidValueError(f"masks is {masks!r}; expected 'nonzero', masks or a ticket")
        names = [info.name for info in prunable_from(structure, prunable)]
        masks = Masks.nonzero(driver.read(model, structure, names))
    given = masks if isinstance(masks, Masks) else Masks(masks)
    if not given:
        raise MaskError("masks are empty; expected {parameter name: bool array}")
    trained = [info.name for info in structure.infos]
    unknown = [name for name in given if name not in trained]
    if unknown:
        raise MaskError(
            f"masks for {unknown}, which are no trained parameters of the model; it has {trained}"
        )
    return hold_model(model, driver, structure, given, existing)


def held(model: Any, *, backend: str | Backend | None = None) -> Hold | None:
    """Return the hold on ``model``, or None."""
    return held_by(resolve_backend(model, backend), model)


def iter_rounds(
    model: Any,
    train: Train,
    *,
    rounds: int | None = None,
    rate: Amounts | None = None,
    sparsity: Amounts | None = None,
    schedule: AnySchedule | None = None,
    rewind_to: AnyPolicy = 0,
    evaluate: Evaluate | None = None,
    criterion: AnyCriterion = "magnitude",
    scope: Named | Allocation = "global",
    pattern: Named | Pattern = "unstructured",
    prunable: Sequence[str] | None = None,
    batches: Batches | None = None,
    loss: Loss | None = None,
    seed: int = 0,
    example: Any = None,
    backend: str | Backend | None = None,
) -> Iterator[Round]:
    """Search for a ticket, a round at a time: train, prune, rewind, again.

    ``rounds`` counts prunings. Round 0 trains the dense network, round n the network after n
    prunings; the last one is trained only if ``evaluate`` is given. The model ends as last
    trained, held. Stop early by leaving the loop.

    Args:
        model: a PyTorch module or a built Keras model at initialization; trained in place.
        train: ``train(model)``, or ``train(model, start_step)`` which goes on at that step with
            its schedule and data order. It makes (or has compiled) its own optimizer; the state
            of that is fresh every round.
        rounds: number of prunings.
        rate: share of the remaining weights removed each round, or ``{selector: share}``.
        sparsity: instead of ``rate``: the fraction removed in the end, in equal steps; with
            ``rounds`` None or 1 in one shot.
        schedule: instead of all three; or a name, which gets those that are given; or, with
            ``rounds``, a function of the round that returns the sparsity due.
        rewind_to: a step (0 is initialization), the name of a policy such as ``"trained"`` (keep
            the weights) or ``"reinit"`` (draw anew), a policy, or a function of a
            `ltcore.RewindContext`.
        evaluate: returns a number or ``{metric: number}`` for the trained model.
        criterion: what makes a weight important; higher score = keep.
        scope: what competes with what, as in `prune`.
        pattern: the shape of sparsity, as in `prune`; ``rate`` and ``sparsity`` count its units.
        prunable: selectors of the parameters to prune; kernels of dense and conv layers if None.
        batches: pairs (inputs, targets), for criteria that need gradients.
        loss: function of (outputs, targets), for criteria that need gradients.
        seed: for criteria and policies that draw random numbers.
        example: one input batch; without it the first input that training shows is used.
        backend: a backend or its name, where it shall not be found from the model.

    Raises:
        InvalidValueError: a value out of range, options that contradict each other, NaN weights
            or scores, training that ends before the rewind step.
        HoldError: the model is held already.
        NothingPrunableError, SelectorError, ModelError: as in `prune`.
    """
    if held(model, backend=backend):
        raise HoldError("the model is held already; release that hold before a search")
    check_train(train)
    policy = policy_from(rewind_to)
    check_resumes(policy, train)

    def goals(implied: Amounts | None) -> Sequence[Goal]:
        alone = sparsity is None and rate is None and schedule is None
        steps = schedule_from(schedule, rounds, rate, implied if alone else sparsity)
        return [steps.goal(index) for index in range(1, steps.rounds + 1)]

    request = prepare(
        model,
        goals,
        criterion=criterion,
        scope=scope,
        pattern=pattern,
        prunable=prunable,
        batches=batches,
        loss=loss,
        seed=seed,
        example=example,
        backend=backend,
        signals=("initial", "rewind"),
        also={"rewind_to": rewind_to, "schedule": schedule},
        once="one round",
    )
    return run_rounds(Plan(model, request, policy, train, evaluate))


class RoundOptions(TypedDict, total=False):
    """The options of `iter_rounds`, for `find_ticket`."""

    rounds: int | None
    rate: Amounts | None
    sparsity: Amounts | None
    schedule: AnySchedule | None
    rewind_to: AnyPolicy
    evaluate: Evaluate | None
    criterion: AnyCriterion
    scope: Named | Allocation
    pattern: Named | Pattern
    prunable: Sequence[str] | None
    batches: Batches | None
    loss: Loss | None
    seed: int
    example: Any
    backend: str | Backend | None


def find_ticket(model: Any, train: Train, **options: Unpack[RoundOptions]) -> Search:
    """Run all rounds of `iter_rounds`, which explains the options, and return what was found.

    An error or an interrupt in ``train`` ends the search and its rounds are lost (take them from
    `iter_rounds` to keep them); the model stays as it was last, held if it was pruned.
    """
    driver = resolve_backend(model, options.get("backend"))
    finished = tuple(iter_rounds(model, train, **options))
    found = held_by(driver, model)
    assert found is not None  # every round after the first leaves a hold
    return Search(finished, found)


def load(path: str | PathLike[str]) -> Ticket:
    """Read a ticket file; see `Ticket.load`."""
    return Ticket.load(path)
