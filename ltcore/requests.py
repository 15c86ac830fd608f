"""What a caller asks for, decided and checked before anything is trained or changed.

Pruning once, in rounds, bit by bit, for early birds and for sparse training begin alike: with a
`Request`. What follows is each one's own.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ltcore.allocation import Allocation, Amounts, Goal, Sparsity
from ltcore.arrays import Array, Params
from ltcore.backend import Backend
from ltcore.criteria import Criterion
from ltcore.errors import InvalidValueError, ModelError
from ltcore.holds import check_unmoved, held_by
from ltcore.masks import Masks
from ltcore.options import (
    AnyCriterion,
    Named,
    allocation_from,
    criterion_from,
    makers,
    pattern_from,
    plain,
    prunable_from,
)
from ltcore.parameters import ParamInfo, Structure
from ltcore.patterns import Pattern, check_reach
from ltcore.pruning import Pruning, check_goals, next_masks
from ltcore.seeds import check_seed, generator
from ltcore.signals import (
    MEASUREMENTS,
    Batches,
    Loss,
    Subject,
    check_measurable,
    check_rereadable,
    rereadable,
)
from ltcore.ticket import origin, resolve_backend

Goals = Callable[[Amounts | None], Sequence[Goal]]
"""The goals, one after the other; it is called with the sparsity that the pattern says, if any."""

_KNOWN_TO = {
    "initial": "find_ticket, iter_rounds, prune_gradually and early_bird",
    "rewind": "find_ticket and iter_rounds",
}
"""Who has the signals that are not measured."""


@dataclass(frozen=True, slots=True)
class Request:
    """Prunings of one model, with every choice made and checked; it does not keep the model alive.

    Attributes:
        backend: drives the model.
        structure: the model as ltcore sees it.
        infos: the parameters that masks touch.
        criterion: what makes a weight important.
        allocation: how goals are shared.
        pattern: the shape of sparsity; None is weight by weight.
        goals: how much goes, pruning by pruning.
        start: what is kept before the first one: all, or what the model's hold keeps.
        batches: the user's data.
        loss: the user's loss.
        seed: the user's.
        story: plain data on what was chosen, and the versions of those who offer it.
    """

    backend: Backend
    structure: Structure
    infos: tuple[ParamInfo, ...]
    criterion: Criterion
    allocation: Allocation
    pattern: Pattern | None
    goals: tuple[Goal, ...]
    start: Masks
    batches: Batches | None
    loss: Loss | None
    seed: int
    story: Mapping[str, Any]

    def subject(self, model: Any) -> Subject:
        """Return the model, with what it is measured with."""
        return Subject(self.backend, model, self.structure, self.batches, self.loss)

    def read(self, model: Any, names: Mapping[str, Any]) -> dict[str, Array]:
        """Return the model's values of the parameters in ``names``."""
        return self.backend.read(model, self.structure, names)

    def pruning(self, goal: Goal) -> Pruning:
        """Return the pruning to ``goal``."""
        return Pruning(self.criterion, self.allocation, goal, self.infos, self.pattern)

    def pruned(
        self, model: Any, goal: Goal, masks: Masks, index: int = 0, **signals: Params
    ) -> Masks:
        """Return ``masks`` pruned to ``goal`` at the weights of now; the model stays as it is.

        Args:
            model: the model.
            goal: how much goes.
            masks: what is kept now, over the parameters in `infos`.
            index: the round or the number of updates, for random numbers.
            signals: what is known besides the weights of now.
        """
        known = {"weight": self.read(model, masks), **signals}
        rng = generator(self.seed, index)
        return next_masks(self.pruning(goal), masks, known, self.subject(model), rng)

    def traced(self, model: Any, first_input: Any) -> "Request":
        """Return the request with the graph that ``first_input`` shows, if it was not known.

        The same parameters are pruned, but which of them are the output's may be news.
        """
        structure = with_graph(self.backend, model, self.structure, first_input)
        if structure is self.structure:
            return self
        found = {info.name: info for info in structure.infos}
        infos = tuple(found[info.name] for info in self.infos)
        return replace(self, structure=structure, infos=infos)


def prepare(
    model: Any,
    goals: Goals,
    *,
    criterion: AnyCriterion,
    scope: Named | Allocation,
    pattern: Named | Pattern,
    prunable: Sequence[str] | Callable[[Structure, Pattern | None], tuple[ParamInfo, ...]] | None,
    batches: Batches | None,
    loss: Loss | None,
    seed: int,
    example: Any,
    backend: str | Backend | None,
    signals: Sequence[str] = (),
    also: Mapping[str, Any] | None = None,
    once: str = "",
    changes: bool = True,
) -> Request:
    """Decide everything, and refuse what can be known to fail, while the model is as it came.

    Args:
        model: a model of any backend.
        goals: what is wanted, see `Goals`.
        criterion: like the others up to ``backend``, as in `ltcore.prune`.
        scope: what competes with what.
        pattern: the shape of sparsity.
        prunable: selectors, or a function that chooses.
        batches: pairs (inputs, targets).
        loss: function of (outputs, targets).
        seed: for random numbers.
        example: one input batch.
        backend: a backend or its name.
        signals: what the caller knows besides weights and measurements.
        also: further ``{argument: what was given}`` that may name a plugin's.
        once: after what ``batches`` would be empty if they were an iterator; nothing if they are
            read for one pruning.
        changes: whether the model's masks are going to change; False only looks.

    Raises:
        HoldError: something else changes the masks while the model trains.
        InvalidValueError: a value out of range, a missing option, a goal that cannot be reached.
        CapabilityError: the backend cannot measure what the criterion needs.
        NothingPrunableError, SelectorError, ModelError: as in `ltcore.prune`.
    """
    driver = resolve_backend(model, backend)
    if changes:
        check_unmoved(driver, model)
    rule, shape = criterion_from(criterion), pattern_from(pattern)
    allocation = allocation_from(scope)
    seed = check_seed(seed)
    wanted = tuple(goals(None if shape is None else shape.sparsity))
    check_reach(shape, wanted)
    structure = driver.describe(model, example)
    infos = prunable(structure, shape) if callable(prunable) else prunable_from(structure, prunable)
    subject = Subject(driver, model, structure, batches, loss)
    check_needs(subject, rule, signals)
    if once:
        check_rereadable(batches, once)
    else:
        batches = rereadable(subject, rule).batches
    start = _kept_now(driver, model, infos)
    check_goals([Pruning(rule, allocation, goal, infos, shape) for goal in wanted], start)
    named = {"criterion": criterion, "scope": scope, "pattern": pattern}
    versions = {**origin(driver)["versions"], **makers({**named, **(also or {})})}
    story = {
        "versions": versions,
        **{argument: plain(given) for argument, given in named.items()},
        "seed": seed,
    }
    return Request(
        driver, structure, infos, rule, allocation, shape, wanted, start, batches, loss, seed,
        story,
    )  # fmt: skip


def to_sparsity(given: Amounts | None) -> Goals:
    """Return the one goal of who asks for a sparsity, or leaves it to the pattern."""

    def goals(implied: Amounts | None) -> Sequence[Goal]:
        wanted = implied if given is None else given
        if wanted is None:
            raise InvalidValueError("sparsity is missing; 0.9 removes 90 % of the weights")
        return [Sparsity(wanted)]

    return goals


def check_needs(subject: Subject, criterion: Criterion, signals: Sequence[str] = ()) -> None:
    """Raise unless all that ``criterion`` needs is known or can be measured.

    Raises:
        InvalidValueError: says what is missing, and who has it.
        CapabilityError: the backend cannot measure it.
    """
    missing = sorted(criterion.needs - {"weight", "rng", *signals} - MEASUREMENTS.keys())
    if missing:
        where = "; ".join(f"{signal!r} is known to {_KNOWN_TO[signal]}" for signal in missing)
        raise InvalidValueError(
            f"criterion {criterion.name!r} needs {missing}, which are not known here: {where}"
        )
    check_measurable(subject, criterion)


def with_graph(backend: Backend, model: Any, structure: Structure, first_input: Any) -> Structure:
    """Learn how data flows from the first input that training showed, if nobody gave an example."""
    if not structure.untraced or first_input is None:
        return structure
    try:
        return backend.describe(model, first_input)
    except ModelError as error:  # the example was a guess: it must not end the user's run
        return dataclasses.replace(structure, untraced=str(error))


def _kept_now(driver: Backend, model: Any, infos: tuple[ParamInfo, ...]) -> Masks:
    current = held_by(driver, model)
    earlier = current.masks if current else {}
    whole = Masks.ones({info.name: info.shape for info in infos})
    return Masks.adopt({name: earlier.get(name, mask) for name, mask in whole.items()})
