"""Pruning a little at a time while somebody trains, inside one training run."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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
from ltcore.options import (
    AnyCriterion,
    Named,
    allocation_from,
    choices_of,
    criterion_from,
    pattern_from,
    plain,
    prunable_from,
)
from ltcore.pacing import Beats, MaskPacer, check_unpaced
from ltcore.patterns import Pattern, check_reach
from ltcore.pruning import Pruning, check_goal, next_masks
from ltcore.rewind_points import check_step
from ltcore.seeds import generator
from ltcore.signals import Batches, Loss, Subject, check_measurable, check_rereadable
from ltcore.ticket import resolve_backend

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
        hold: Hold,
        beats: Beats,
        ramp: Ramp,
        pruning: Pruning,
        subject: Subject,
        initial: Params | None,
        story: Mapping[str, Any],
        seed: int,
    ) -> None:
        self.history: list[tuple[int, int, int]] = []
        self._ramp, self._pruning = ramp, pruning
        self._story, self._seed = story, seed
        self._batches, self._loss, self._initial = subject.batches, subject.loss, initial
        super().__init__(subject.backend, subject.model, subject.structure, beats, hold)

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
        structure, held = self.hold.structure, self.hold.masks
        subject = Subject(self.backend, self.model, structure, self._batches, self._loss)
        masks = Masks.adopt({info.name: held[info.name] for info in self._pruning.infos})
        known: dict[str, Params] = {"weight": self.backend.read(self.model, structure, masks)}
        if self._initial is not None:
            known["initial"] = self._initial
        pruning = replace(self._pruning, goal=self._ramp.goal(step))
        chosen = next_masks(pruning, masks, known, subject, generator(self._seed, step))
        self.hold.update(Masks.adopt({name: chosen.get(name, held[name]) for name in held}))
        self.hold.story = {**self._story, "goal": {"sparsity": plain(pruning.goal.amounts)}}
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
    initial: float = 0.0,
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
        begin: the number after which the first is made, to ``initial``.
        every: updates from one pruning to the next.
        ramp: how sparsity grows: ``"cubic"``, ``"linear"``, or a function that turns the share of
            the time gone into the share of the way gone, both from 0 to 1.
        initial: the fraction removed at ``begin``.
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
    driver = resolve_backend(model, backend)
    check_unpaced(driver, model)
    structure = driver.describe(model, example)
    rule, shape = criterion_from(criterion), pattern_from(pattern)
    if sparsity is None and shape is not None:
        sparsity = shape.sparsity
    check_step(begin, "begin")
    check_step(end, "end", least=begin + 1)
    beats = Beats(every, begin, end)
    steps = _ramp(sparsity, initial, beats, ramp)
    check_reach(shape, [steps.goal(end)])
    infos = prunable_from(structure, prunable)
    subject = Subject(driver, model, structure, batches, loss)
    check_measurable(subject, rule)
    check_rereadable(batches, "one pruning")
    names = [info.name for info in infos]
    start = driver.read(model, structure, names) if "initial" in rule.needs else None
    everything = Masks.ones({info.name: info.shape for info in infos})
    pruning = Pruning(rule, allocation_from(scope), steps.goal(end), infos, shape)
    check_goal(pruning, everything)
    story = {
        **choices_of(driver, criterion=criterion, scope=scope, pattern=pattern),
        "gradual": {
            "begin": begin, "end": end, "every": every, "ramp": plain(ramp),
            "initial": float(initial), "sparsity": plain(sparsity),
        },
        "seed": seed,
    }  # fmt: skip
    earlier = held_by(driver, model)
    hold = hold_model(model, driver, structure, everything, existing="tighten")
    try:
        made = GradualPruning(hold, beats, steps, pruning, subject, start, story, seed)
        made.update()
    except BaseException:
        if earlier is None:
            hold.release()
        raise
    return made


def _ramp(sparsity: Amounts | None, initial: float, beats: Beats, progress: str | Progress) -> Ramp:
    """Return the ramp, after looking at every step of it."""
    if sparsity is None:
        raise InvalidValueError("sparsity is missing; 0.9 ends with 90 % of the weights removed")
    if isinstance(progress, str):
        if progress not in RAMPS:
            raise InvalidValueError(
                f"ramp is {progress!r}; expected one of {sorted(RAMPS)}, or a function"
            )
        progress = RAMPS[progress]
    final = sparsity.values() if isinstance(sparsity, Mapping) else (sparsity,)
    if fraction(initial, "initial") > min(fraction(value, "sparsity") for value in final):
        raise InvalidValueError(
            f"initial is {initial} and sparsity is {sparsity}: pruned weights do not come back; "
            "begin lower than you end"
        )
    assert beats.end is not None
    made = Ramp(sparsity, initial, beats.begin, beats.end, progress)
    for step in range(beats.begin, beats.end, beats.every):
        made.goal(step)
    return made
