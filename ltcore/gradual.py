"""Pruning a little at a time while somebody trains, inside one training run."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from types import TracebackType
from typing import Any, Literal, TypeAlias

from ltcore.allocation import Allocation, Amounts, Sparsity
from ltcore.arrays import Params
from ltcore.backend import Backend
from ltcore.counts import fraction
from ltcore.errors import InvalidValueError
from ltcore.holds import Hold, held_by, hold_model
from ltcore.masks import Masks
from ltcore.options import AnyCriterion, Named, plain
from ltcore.pacing import Beats, MaskPacer
from ltcore.patterns import Pattern
from ltcore.requests import Request, prepare, to_sparsity
from ltcore.rewind_points import check_step
from ltcore.signals import Batches, Loss

Progress: TypeAlias = Callable[[float], float]
"""The share of the way to the final sparsity, from the share of the time; both from 0 to 1."""

RAMPS: Mapping[str, Progress] = {
    "cubic": lambda time: 1 - (1 - time) ** 3,
    "linear": lambda time: time,
}


@dataclass(frozen=True, slots=True)
class Ramp:
    """The sparsity due at each step.

    ``final + (initial - final) * (1 - progress)``: with the progress ``"cubic"`` that is equation
    1 of Zhu and Gupta 2017.
    """

    final: Amounts
    initial: float
    begin: int
    end: int
    progress: Progress

    def goal(self, step: int) -> Sparsity:
        """Return what is due at ``step``, from ``begin`` to ``end``."""
        if step == self.end:
            return Sparsity(self.final)
        share = self.progress((step - self.begin) / (self.end - self.begin))
        if not 0 <= share <= 1:
            raise InvalidValueError(f"ramp gave {share!r} at step {step}; expected 0 to 1")
        if isinstance(self.final, Mapping):
            return Sparsity({key: self._between(value, share) for key, value in self.final.items()})
        return Sparsity(self._between(self.final, share))

    def _between(self, final: float | Fraction, share: float) -> float:
        return float(final) + (self.initial - float(final)) * (1 - share)


class GradualPruning(MaskPacer):
    """A hold that prunes more and more while the model trains; made by `prune_gradually`.

    Masks nest. Leaving its block, or `release`, before the last pruning is a warning.

    Attributes:
        hold: with the masks so far.
        history: ``(step, kept, total)`` of every pruning so far; the step is the one at which it
            was due.
    """

    def __init__(
        self,
        model: Any,
        hold: Hold,
        beats: Beats,
        ramp: Ramp,
        request: Request,
        initial: Params,
        story: Mapping[str, Any],
    ) -> None:
        self.history: list[tuple[int, int, int]] = []
        self._ramp, self._request = ramp, request
        self._initial, self._story = initial, story
        super().__init__(request.backend, model, request.structure, beats, hold)

    @property
    def masks(self) -> Masks:
        """What is kept now."""
        return self.hold.masks

    @property
    def finished(self) -> bool:
        """Whether the last pruning was made."""
        return self._done == self.beats.end

    def release(self) -> None:
        """Stop pruning and release the hold. Twice is fine."""
        if not self.released:
            self._warn_if_unfinished()
        super().release()

    def _act(self, step: int) -> None:
        self._request = self._request.traced(self.model, self._watch.first_input)
        held, goal = self.hold.masks, self._ramp.goal(step)
        masks = Masks.adopt({info.name: held[info.name] for info in self._request.infos})
        chosen = self._request.pruned(self.model, goal, masks, step, initial=self._initial)
        self.hold.update(Masks.adopt({name: chosen.get(name, held[name]) for name in held}))
        self.hold.story = {**self._story, "goal": {"sparsity": plain(goal.amounts)}}
        self.history.append((step, chosen.kept, chosen.total))

    def _warn_if_unfinished(self) -> None:
        if not self.finished and not self.hold.released:
            warnings.warn(
                f"gradual pruning ends early: it saw {self.steps} updates and would reach its "
                f"sparsity of {self._ramp.final} at {self.beats.end}; it is at "
                f"{self.hold.masks.sparsity:.4f}. If training made more updates, call update() "
                "after each",
                stacklevel=3,
            )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None and not self.released:
            self._warn_if_unfinished()
        super().__exit__(kind, error, trace)

    def __repr__(self) -> str:
        return f"GradualPruning(steps={self.steps}, end={self.beats.end}, {self.hold!r})"


def prune_gradually(
    model: Any,
    sparsity: Amounts | None = None,
    *,
    end: int,
    begin: int = 0,
    every: int = 100,
    ramp: Literal["cubic", "linear"] | Progress = "cubic",
    initial_sparsity: float = 0.0,
    criterion: AnyCriterion = "magnitude",
    scope: Named | Allocation = "global",
    pattern: Named | Pattern = "unstructured",
    prunable: Sequence[str] | None = None,
    batches: Batches | None = None,
    loss: Loss | None = None,
    seed: int = 0,
    example: Any = None,
    backend: str | Backend | None = None,
) -> GradualPruning:
    """Prune ``model`` more and more while it trains (Zhu and Gupta 2017), and hold the zeros.

    A model that is held already is pruned further. Weights are scored as they are after the
    update at which a pruning is due.

    Args:
        model: a PyTorch module or a built Keras model; changed in place, never wrapped.
        sparsity: the fraction removed at ``end``, or ``{selector: fraction}``.
        end: the number of updates, from now on, after which the last pruning is made.
        begin: the number after which the first is made, to ``initial_sparsity``.
        every: updates from one pruning to the next.
        ramp: how sparsity grows: ``"cubic"``, ``"linear"``, or a function that turns the share of
            the time gone into the share of the way gone, both from 0 to 1.
        initial_sparsity: the fraction removed at ``begin``.
        criterion: as in `ltcore.prune`; like ``scope``, ``pattern``, ``prunable``, ``batches``,
            ``loss``, ``seed``, ``example`` and ``backend``.
        scope: what competes with what.
        pattern: the shape of sparsity.
        prunable: selectors of the parameters to prune.
        batches: pairs (inputs, targets), read anew at each pruning.
        loss: function of (outputs, targets).
        seed: for criteria that draw random numbers.
        example: one input batch.
        backend: a backend or its name.

    Returns:
        A handle to use with ``with``, or to ``release()``.

    Raises:
        InvalidValueError: a number out of range, a missing option, NaN weights or scores.
        HoldError: something changes the model's masks already.
        NothingPrunableError, SelectorError, ModelError: as in `ltcore.prune`.
    """
    begin = check_step(begin, "begin")
    end = check_step(end, "end", least=begin + 1)
    every = check_step(every, "every", least=1)
    beats = Beats(every, begin, end)
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
        signals=("initial",),
        once="one pruning",
    )
    final = request.goals[0].amounts
    steps = _ramp(final, initial_sparsity, beats, ramp)
    start = request.read(model, request.start) if "initial" in request.criterion.needs else {}
    story = {
        **request.story,
        "gradual": {
            "begin": begin, "end": end, "every": every, "ramp": plain(ramp),
            "initial_sparsity": float(initial_sparsity), "sparsity": plain(final),
        },
    }  # fmt: skip
    with _undone_on_error(request.backend, model):
        hold = hold_model(
            model, request.backend, request.structure, request.start, existing="tighten"
        )
        made = GradualPruning(model, hold, beats, steps, request, start, story)
        try:
            made.update()
        except BaseException:
            made.stop()
            raise
    return made


@contextmanager
def _undone_on_error(backend: Backend, model: Any) -> Iterator[None]:
    """Leave the hold of ``model``, or its absence, as it was if the block fails."""
    earlier = held_by(backend, model)
    before = (earlier.structure, earlier.masks, earlier.story) if earlier else None
    try:
        yield
    except BaseException:
        hold = held_by(backend, model)
        if hold and before:
            structure, masks, story = before
            hold.rebind(model, structure, masks)
            hold.story = story
        elif hold:
            hold.release()
        raise


def _ramp(sparsity: Amounts, initial: float, beats: Beats, progress: str | Progress) -> Ramp:
    """Return the ramp, after looking at every step of it."""
    if isinstance(progress, str):
        if progress not in RAMPS:
            raise InvalidValueError(
                f"ramp is {progress!r}; expected one of {sorted(RAMPS)}, or a function"
            )
        progress = RAMPS[progress]
    final = sparsity.values() if isinstance(sparsity, Mapping) else (sparsity,)
    if fraction(initial, "initial_sparsity") > min(fraction(value, "sparsity") for value in final):
        raise InvalidValueError(
            f"initial_sparsity is {initial} and sparsity is {sparsity}: pruned weights do not "
            "come back; begin lower than you end"
        )
    assert beats.end is not None
    made = Ramp(sparsity, initial, beats.begin, beats.end, progress)
    for step in range(beats.begin, beats.end, beats.every):
        made.goal(step)
    return made
