"""The few calls that people type."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, TypeAlias

import numpy as np

from ltcore import plugins
from ltcore.allocation import Allocation, Amounts, Sparsity
from ltcore.arrays import Array
from ltcore.backend import Backend
from ltcore.criteria import Criterion, FunctionCriterion, Param
from ltcore.errors import InvalidValueError, MaskError
from ltcore.held import Existing, Hold, held_by, hold_model
from ltcore.masks import Masks
from ltcore.parameters import ParamInfo, Structure, prunable_infos
from ltcore.patterns import select_infos
from ltcore.rewinding import RewindPolicy, ToStep
from ltcore.schedules import ConstantRate, OneShot, Schedule, ToSparsity
from ltcore.search import Evaluate, Gradients, Plan, Round, Train, next_masks, run_rounds
from ltcore.ticket import Ticket, resolve_backend

AnyCriterion: TypeAlias = str | Criterion | Callable[[Param], Array]
"""A name, a criterion, or a bare function of a `Param`."""

Batches: TypeAlias = Iterable[tuple[Any, Any]]
Loss: TypeAlias = Callable[[Any, Any], Any]


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
    sparsity: Amounts,
    *,
    criterion: AnyCriterion = "magnitude",
    scope: str | Allocation = "global",
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
        sparsity: the fraction of weights removed, in [0, 1), or ``{pattern: fraction}``.
        criterion: what makes a weight important; higher score = keep.
        scope: what competes with what: ``"global"``, ``"layer"``, or an allocation.
        prunable: patterns of the parameters to prune; kernels of dense and conv layers if None.
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
        PatternError: a pattern matches no parameter.
        ModelError: the model is not built, or no backend drives it.
    """
    driver = resolve_backend(model, backend)
    structure = driver.describe(model, example)
    infos = _infos(structure, prunable)
    current = held_by(driver, model)
    masks = Masks.ones({info.name: info.shape for info in infos})
    if current:
        earlier = current.masks_for(structure)
        masks = Masks.adopt({name: earlier.get(name, mask) for name, mask in masks.items()})
    chosen = next_masks(
        _criterion(criterion),
        _allocation(scope),
        Sparsity(sparsity),
        masks,
        infos,
        {"weight": driver.read(model, structure, masks)},
        _gradients(driver, model, structure, batches, loss),
        np.random.Generator(np.random.Philox(key=[seed, 0])),
    )
    return hold_model(model, driver, structure, chosen, existing="tighten")


def hold(
    model: Any,
    masks: str | Mapping[str, Array] | Ticket = "nonzero",
    *,
    existing: Existing = "error",
    backend: str | Backend | None = None,
) -> Hold:
    """Keep pruned weights of ``model`` at zero while anyone trains it.

    Args:
        model: a PyTorch module or a built Keras model.
        masks: ``"nonzero"`` prunes what is zero now; or masks by portable name (canonical
            layout), or a ticket of which only the masks are taken.
        existing: what to do with a hold that is there: ``"error"``, ``"replace"``, ``"tighten"``.
        backend: a backend or its name, where it shall not be found from the model.

    Raises:
        HoldError: the model is held already and ``existing`` is ``"error"``.
        MaskError: a mask is for no parameter of the model, or of another shape.
        ModelError: the model is not built, or no backend drives it.
    """
    driver = resolve_backend(model, backend)
    if isinstance(masks, Ticket):
        return masks.apply(model, weights="keep", existing=existing, backend=driver)
    structure = driver.describe(model)
    if isinstance(masks, str):
        if masks != "nonzero":
            raise InvalidValueError(f"masks is {masks!r}; expected 'nonzero', masks or a ticket")
        names = [info.name for info in _infos(structure, None)]
        masks = Masks.nonzero(driver.read(model, structure, names))
    given = masks if isinstance(masks, Masks) else Masks(masks)
    if not given:
        raise MaskError("masks are empty; expected {parameter name: bool array}")
    unknown = [name for name in given if name not in structure.shapes]
    if unknown:
        raise MaskError(
            f"masks for {unknown}, which the model does not have; it has {list(structure.shapes)}"
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
    schedule: Schedule | None = None,
    rewind_to: int | str | RewindPolicy = 0,
    evaluate: Evaluate | None = None,
    criterion: AnyCriterion = "magnitude",
    scope: str | Allocation = "global",
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
        rate: share of the remaining weights removed each round, or ``{pattern: share}``.
        sparsity: instead of ``rate``: the fraction removed in the end, in equal steps; with
            ``rounds`` None or 1 in one shot.
        schedule: instead of all three.
        rewind_to: a step (0 is initialization), ``"trained"`` (keep the weights), ``"reinit"``
            (draw anew), the name of a plugin's policy, or a policy.
        evaluate: returns a number or ``{metric: number}`` for the trained model.
        criterion: what makes a weight important; higher score = keep.
        scope: what competes with what: ``"global"``, ``"layer"``, or an allocation.
        prunable: patterns of the parameters to prune; kernels of dense and conv layers if None.
        batches: pairs (inputs, targets), for criteria that need gradients.
        loss: function of (outputs, targets), for criteria that need gradients.
        seed: for criteria and policies that draw random numbers.
        example: one input batch; without it the first input that training shows is used.
        backend: a backend or its name, where it shall not be found from the model.

    Raises:
        InvalidValueError: a value out of range, options that contradict each other, NaN weights
            or scores, training that ends before the rewind step.
        HoldError: the model is held already.
        NothingPrunableError, PatternError, ModelError: as in `prune`.
    """
    driver = resolve_backend(model, backend)
    structure = driver.describe(model, example)
    plan = Plan(
        backend=driver,
        infos=_infos(structure, prunable),
        schedule=schedule or _schedule(rounds, rate, sparsity),
        criterion=_criterion(criterion),
        allocation=_allocation(scope),
        scope=scope if isinstance(scope, str) else repr(scope),
        policy=_policy(rewind_to),
        seed=seed,
        train=train,
        evaluate=evaluate,
        gradients=_gradients(driver, model, structure, batches, loss),
    )
    return run_rounds(plan, model, structure)


def find_ticket(model: Any, train: Train, **options: Any) -> Search:
    """Run all rounds of `iter_rounds`, which lists the options, and return what was found."""
    driver = resolve_backend(model, options.get("backend"))
    finished = tuple(iter_rounds(model, train, **options))
    found = held_by(driver, model)
    assert found is not None  # every round after the first leaves a hold
    return Search(finished, found)


def load(path: str | PathLike[str]) -> Ticket:
    """Read a ticket file; see `Ticket.load`."""
    return Ticket.load(path)


def _infos(structure: Structure, prunable: Sequence[str] | None) -> tuple[ParamInfo, ...]:
    if prunable is None:
        return prunable_infos(structure.infos)
    return select_infos(prunable, structure.infos, "prunable")


def _criterion(given: AnyCriterion) -> Criterion:
    if isinstance(given, str):
        loaded: Criterion = plugins.load("criteria", given)
        return loaded
    if callable(given):
        return FunctionCriterion(getattr(given, "__name__", "function"), given)
    return given


def _allocation(given: str | Allocation) -> Allocation:
    if isinstance(given, str):
        loaded: Allocation = plugins.load("allocations", given)
        return loaded
    return given


def _policy(given: int | str | RewindPolicy) -> RewindPolicy:
    if isinstance(given, str):
        loaded = plugins.load("rewind_policies", given)
        made: RewindPolicy = loaded() if callable(loaded) else loaded
        return made
    return ToStep(given) if isinstance(given, int | float) else given


def _schedule(rounds: int | None, rate: Amounts | None, sparsity: Amounts | None) -> Schedule:
    if (rate is None) == (sparsity is None):
        raise InvalidValueError(
            f"rate is {rate!r} and sparsity is {sparsity!r}; give one of them: rate=0.2 removes "
            "20 % of what is left each round, sparsity=0.9 ends at 90 % removed"
        )
    if rate is not None:
        return ConstantRate(rate, 1 if rounds is None else rounds)
    assert sparsity is not None
    return OneShot(sparsity) if rounds in (None, 1) else ToSparsity(sparsity, rounds)


def _gradients(
    driver: Backend,
    model: Any,
    structure: Structure,
    batches: Batches | None,
    loss: Loss | None,
) -> Gradients | None:
    if batches is None or loss is None:
        return None
    return lambda: driver.gradients(model, structure, batches, loss)
