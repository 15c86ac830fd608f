"""Dynamic sparse training: masks that move while the model trains.

What is dropped may come back, so masks do not nest, unlike everywhere else in ltcore; that is why
nothing here is a search, a round, or a prune criterion.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from ltcore.allocation import Allocation, Amounts, Group
from ltcore.arrays import Params
from ltcore.backend import Backend
from ltcore.counts import fraction, removed_by_rate
from ltcore.criteria import Criterion, passes_of
from ltcore.errors import HoldError, InvalidValueError
from ltcore.holds import Hold, held_by, hold_model
from ltcore.judging import score
from ltcore.masks import Masks
from ltcore.options import Named, plain
from ltcore.pacing import Beats, MaskPacer
from ltcore.parameters import Structure, in_canonical_order, in_native_order
from ltcore.requests import Request, check_needs, prepare, to_sparsity
from ltcore.rewind_points import check_step
from ltcore.seeds import MOVES, generator
from ltcore.select import select
from ltcore.signals import Batches, Loss, Subject, measure
from ltcore.sparse_methods import SparseMethod, method_from
from ltcore.ticket import Ticket, make_ticket, origin, resolve_backend
from ltcore.weight_criteria import random


@dataclass(frozen=True, slots=True)
class Move:
    """One change of the masks.

    Attributes:
        step: the number of updates at which it was due.
        share: the share of kept weights that was dropped and grown.
        grown: ``{parameter: how many weights are kept now that were not before}``.
        digest: of the masks after it, see `ltcore.Masks`.
    """

    step: int
    share: float
    grown: Mapping[str, int]
    digest: str


class SparseTraining(MaskPacer):
    """A hold whose masks move while the model trains; made by `train_sparse`.

    Each parameter keeps its number of weights. Masks do not nest: `masks` after one move says
    nothing about those before or after.

    Attributes:
        hold: with the masks of now.
        method: what moves.
        until: the number of updates before which the last move comes.
        history: every `Move` so far. Masks of large models add up, so they are not kept; read
            `masks` in the training loop where they are wanted.
    """

    def __init__(
        self,
        model: Any,
        hold: Hold,
        beats: Beats,
        method: SparseMethod,
        request: Request,
        names: tuple[str, ...],
        until: int | None,
        start: Mapping[str, Any],
    ) -> None:
        self.method, self.until = method, None if until is None else int(until)
        self.history: list[Move] = []
        self._names, self._start, self._request = names, start, request
        super().__init__(request.backend, model, request.structure, beats, hold)
        hold.story = self._story()

    @property
    def masks(self) -> Masks:
        """What is kept now."""
        return self.hold.masks

    def ticket(self) -> Ticket:
        """Return the masks and weights of now; its provenance says that they moved."""
        self._request = self._request.traced(self.model, self._watch.first_input)
        structure = self._request.structure
        params = self.backend.read(self.model, structure)
        story = {
            **origin(self.backend),
            **self.hold.story,
            "rewind": {"kind": "present", "step": self.steps},
        }
        return make_ticket(self.backend, self.model, structure, self.masks, params, story)

    def _story(self) -> dict[str, Any]:
        story = self._request.story
        return {
            "versions": story["versions"],
            "sparse_training": {
                "method": plain(self.method),
                "every": self.beats.every,
                "until": self.until,
                "moves": len(self.history),
                "nested": False,
                "start": dict(self._start),
            },
            "seed": story["seed"],
        }

    def _act(self, step: int) -> None:
        self._request = self._request.traced(self.model, self._watch.first_input)
        share = _share(self.method, step, self.until)
        held, subject = self.hold.masks, self._request.subject(self.model)
        masks = Masks.adopt({name: held[name] for name in self._names})
        rng = generator(self._request.seed, step, MOVES)
        moved = _moved(self.method, masks, share, subject, rng)
        self.hold.update(Masks.adopt({name: moved.get(name, held[name]) for name in held}))
        grown = {n: int(np.count_nonzero(moved[n] & ~masks[n])) for n in masks}
        self.history.append(Move(step, float(share), grown, self.hold.masks.digest))
        self.hold.story = self._story()

    def __repr__(self) -> str:
        return f"SparseTraining({self.method!r}, steps={self.steps}, {self.hold!r})"


def train_sparse(
    model: Any,
    sparsity: Amounts | None = None,
    *,
    method: Named | SparseMethod = "rigl",
    scope: Named | Allocation = "erk",
    every: int = 100,
    until: int | None = None,
    prunable: Sequence[str] | None = None,
    batches: Batches | None = None,
    loss: Loss | None = None,
    seed: int = 0,
    example: Any = None,
    backend: str | Backend | None = None,
) -> SparseTraining:
    """Hold random masks on ``model`` and move them while it trains.

    A move comes after an update: the smallest weights of each parameter are dropped and as many
    are grown, at 0.0 and without momentum. A weight that was just dropped may be grown again,
    if it scores so; it then keeps its value.

    Args:
        model: a PyTorch module or a built Keras model; changed in place, never wrapped.
        sparsity: the fraction that is zero, or ``{selector: fraction}``. None goes on from the
            masks of a hold that is there.
        method: ``"rigl"``, ``"set"``, ``{"name": "set", "fraction": 0.1}``, or one of your own.
        scope: how the sparsity is shared over parameters, as in `ltcore.prune`; it stays so.
        every: updates from one move to the next.
        until: the number of updates before which the last move comes; None for no last one.
        prunable: selectors of the parameters; kernels if None.
        batches: pairs (inputs, targets), for methods that need gradients; read anew for each
            move, so an object that gives another batch each time it is read does that here.
        loss: function of (outputs, targets), for methods that need gradients.
        seed: for the first masks, and methods that draw random numbers.
        example: one input batch.
        backend: a backend or its name.

    Returns:
        A handle to use with ``with``, or to ``release()``.

    Raises:
        InvalidValueError: a number out of range, a missing option.
        HoldError: the model is held and ``sparsity`` is given, or neither, or something changes
            its masks already.
        NothingPrunableError, SelectorError, ModelError: as in `ltcore.prune`.
    """
    earlier = held_by(resolve_backend(model, backend), model)
    if (earlier is None) == (sparsity is None):
        raise HoldError(
            "sparsity is missing: 0.9 begins with random masks that keep 10 % of the weights"
            if earlier is None
            else f"the model is held already ({earlier!r}); leave out sparsity to go on from its "
            "masks, or release it first"
        )
    beats, rule = _beats(every, until), method_from(method)
    _share(rule, 0, until)
    request = prepare(
        model,
        to_sparsity(sparsity) if sparsity is not None else lambda _: (),
        criterion=random,
        scope=scope,
        pattern="unstructured",
        prunable=prunable,
        batches=batches,
        loss=loss,
        seed=seed,
        example=example,
        backend=backend,
        once="one move",
    )
    _check_method(rule, request.subject(model))
    names = tuple(info.name for info in request.infos)
    if earlier is not None:
        names = _those_held(names, earlier)
        return SparseTraining(
            model, earlier, beats, rule, request, names, until, start=earlier.story
        )
    (goal,) = request.goals
    masks = request.pruned(model, goal, request.start)
    hold = hold_model(model, request.backend, request.structure, masks, existing="error")
    start = {word: request.story[word] for word in ("criterion", "scope", "pattern")}
    start["goal"] = {"sparsity": plain(goal.amounts)}
    try:
        return SparseTraining(model, hold, beats, rule, request, names, until, start)
    except BaseException:
        hold.release()
        raise


def _check_method(method: SparseMethod, subject: Subject) -> None:
    """Raise unless the method's criteria can score while a model trains."""
    for criterion in (method.drop, method.grow):
        check_needs(subject, criterion)
        if passes_of(criterion) > 1 or getattr(criterion, "rearrange", None):
            raise InvalidValueError(
                f"method {method.name!r} has the criterion {criterion.name!r}, which takes several "
                "passes or rearranges masks; a move only scores once"
            )


def _share(method: SparseMethod, step: int, until: int | None) -> Fraction:
    return fraction(method.share(step, until), f"the share that method {method.name!r} moves")


def _those_held(names: tuple[str, ...], hold: Hold) -> tuple[str, ...]:
    """Return the parameters that move: the held ones; warn of others.

    Raises:
        InvalidValueError: none is held.
    """
    found = tuple(name for name in names if name in hold.masks)
    free = [name for name in names if name not in hold.masks]
    if not found:
        raise InvalidValueError(
            f"no mask can move: prunable is {list(names)}, and the hold is on {list(hold.masks)}"
        )
    if free:
        warnings.warn(
            f"only the masks of {list(found)} move; {free} are not held and stay dense",
            stacklevel=3,
        )
    return found


def _beats(every: int, until: int | None) -> Beats:
    every = check_step(every, "every", least=1)
    if until is None:
        return Beats(every, every)
    until = check_step(until, "until", least=every + 1)
    return Beats(every, every, (until - 1) // every * every)


def _moved(
    method: SparseMethod,
    masks: Masks,
    share: Fraction,
    subject: Subject,
    rng: np.random.Generator,
) -> Masks:
    """Return masks with as many weights in each parameter, a share of them others.

    Like all selection it sees canonical feature order, so frameworks move the same weights.
    """
    structure = subject.structure
    needs = method.drop.needs | method.grow.needs
    measured = measure(subject, needs, masks)
    signals = {"weight": subject.backend.read(subject.model, structure, masks), **measured}
    ordered = {name: in_canonical_order(arrays, structure) for name, arrays in signals.items()}
    current = Masks.adopt(in_canonical_order(masks, structure))
    counts = {name: removed_by_rate(kept, share) for name, (kept, _) in current.counts.items()}
    dropped = _select(method.drop, ordered, current, counts, structure, rng)
    others = Masks.adopt({name: ~mask for name, mask in dropped.items()})
    spare = {name: others.counts[name][0] - counts[name] for name in others}
    grown = _select(method.grow, ordered, others, spare, structure, rng)
    joined = {name: dropped[name] | grown[name] for name in masks}
    return Masks.adopt(in_native_order(joined, structure))


def _select(
    criterion: Criterion,
    signals: Mapping[str, Params],
    masks: Masks,
    remove: Mapping[str, int],
    structure: Structure,
    rng: np.random.Generator,
) -> Masks:
    """Return ``masks`` without the ``remove`` lowest of each parameter."""
    scores = score(criterion, signals, masks, structure.infos, rng)
    return select(scores, masks, [Group((name,), remove[name]) for name in masks])
