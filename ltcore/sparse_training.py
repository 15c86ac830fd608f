"""Dynamic sparse training: masks that move while the model trains.

What is dropped may come back, so masks do not nest, unlike everywhere else in ltcore; that is why
nothing here is a search, a round, or a prune criterion.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from ltcore.allocation import Allocation, Amounts, Group, Sparsity
from ltcore.arrays import Params
from ltcore.backend import Backend
from ltcore.counts import removed_by_rate
from ltcore.criteria import Criterion
from ltcore.errors import HoldError
from ltcore.holds import Hold, held_by, hold_model
from ltcore.judging import score
from ltcore.masks import Masks
from ltcore.options import Named, allocation_from, plain, prunable_from
from ltcore.pacing import Beats, MaskPacer, check_unpaced
from ltcore.parameters import ParamInfo, Structure, in_canonical_order, in_native_order
from ltcore.pruning import Pruning, next_masks
from ltcore.rewind_points import check_step
from ltcore.search import with_graph
from ltcore.seeds import generator
from ltcore.select import select
from ltcore.signals import Batches, Loss, Subject, check_measurable, check_rereadable, measure
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
        hold: Hold,
        beats: Beats,
        method: SparseMethod,
        subject: Subject,
        names: tuple[str, ...],
        until: int | None,
        start: Mapping[str, Any],
        seed: int,
    ) -> None:
        self.method, self.until = method, until
        self.history: list[Move] = []
        self._names, self._start, self._seed = names, start, seed
        self._batches, self._loss = subject.batches, subject.loss
        super().__init__(subject.backend, subject.model, subject.structure, beats, hold)
        hold.story = self._story()

    @property
    def masks(self) -> Masks:
        """What is kept now."""
        return self.hold.masks

    def ticket(self) -> Ticket:
        """Return the masks and weights of now; its provenance says that they moved."""
        known, first_input = self.hold.structure, self._watch.first_input
        structure = with_graph(self.backend, self.model, known, first_input)
        params = self.backend.read(self.model, structure)
        story = {
            **origin(self.backend),
            **self.hold.story,
            "rewind": {"kind": "present", "step": self.steps},
        }
        return make_ticket(self.backend, self.model, structure, self.masks, params, story)

    def _story(self) -> dict[str, Any]:
        return {
            "sparse_training": {
                "method": plain(self.method),
                "every": self.beats.every,
                "until": self.until,
                "moves": len(self.history),
                "nested": False,
                "start": dict(self._start),
            },
            "seed": self._seed,
        }

    def _act(self, step: int) -> None:
        share = self.method.share(step, self.until)
        structure, held = self.hold.structure, self.hold.masks
        subject = Subject(self.backend, self.model, structure, self._batches, self._loss)
        masks = Masks.adopt({name: held[name] for name in self._names})
        moved = _moved(self.method, masks, share, subject, generator(self._seed, step, stream=2))
        self.hold.update(Masks.adopt({name: moved.get(name, held[name]) for name in held}))
        grown = {n: int(np.count_nonzero(moved[n] & ~masks[n])) for n in masks}
        self.history.append(Move(step, share, grown, self.hold.masks.digest))
        self.hold.story = self._story()

    def __repr__(self) -> str:
        return f"SparseTraining({self.method!r}, steps={self.steps}, {self.hold!r})"


def train_sparse(
    model: Any,
    sparsity: Amounts | None = None,
    *,
    method: str | SparseMethod = "rigl",
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
        method: ``"rigl"``, ``"set"``, `ltcore.RigL` or `ltcore.SET` with options, or one of your
            own.
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
    driver = resolve_backend(model, backend)
    check_unpaced(driver, model)
    earlier = held_by(driver, model)
    if (earlier is None) == (sparsity is None):
        raise HoldError(
            "sparsity is missing: 0.9 begins with random masks that keep 10 % of the weights"
            if earlier is None
            else f"the model is held already ({earlier!r}); leave out sparsity to go on from its "
            "masks, or release it first"
        )
    rule = method_from(method)
    rule.share(0, until)
    beats = _beats(every, until)
    structure = driver.describe(model, example)
    subject = Subject(driver, model, structure, batches, loss)
    for criterion in (rule.drop, rule.grow):
        check_measurable(subject, criterion)
    check_rereadable(batches, "one move")
    infos = prunable_from(structure, prunable)
    if sparsity is not None:
        masks = _random_masks(subject, infos, allocation_from(scope), sparsity, seed)
        hold = hold_model(model, driver, structure, masks, existing="error")
        start: Mapping[str, Any] = {"sparsity": plain(sparsity), "scope": plain(scope)}
    else:
        assert earlier is not None
        hold, start = earlier, earlier.story
    names = tuple(info.name for info in infos if info.name in hold.masks)
    try:
        return SparseTraining(hold, beats, rule, subject, names, until, start, seed)
    except BaseException:
        if earlier is None:
            hold.release()
        raise


def _beats(every: int, until: int | None) -> Beats:
    check_step(every, "every", least=1)
    if until is None:
        return Beats(every, every)
    check_step(until, "until", least=every + 1)
    return Beats(every, every, (until - 1) // every * every)


def _random_masks(
    subject: Subject,
    infos: tuple[ParamInfo, ...],
    allocation: Allocation,
    sparsity: Amounts,
    seed: int,
) -> Masks:
    pruning = Pruning(random, allocation, Sparsity(sparsity), infos)
    everything = Masks.ones({info.name: info.shape for info in infos})
    known = {"weight": subject.backend.read(subject.model, subject.structure, everything)}
    return next_masks(pruning, everything, known, subject, generator(seed))


def _moved(
    method: SparseMethod,
    masks: Masks,
    share: float,
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
    exact = Fraction(repr(float(share)))
    counts = {name: removed_by_rate(kept, exact) for name, (kept, _) in current.counts.items()}
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
