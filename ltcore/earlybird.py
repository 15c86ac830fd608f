"""Early-bird tickets: the masks that pruning would give settle long before training ends."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ltcore.allocation import Allocation, Amounts, Sparsity
from ltcore.arrays import Params, freeze
from ltcore.backend import Backend
from ltcore.errors import InvalidValueError
from ltcore.holds import held_by
from ltcore.masks import Masks
from ltcore.options import (
    AnyCriterion,
    AnyPolicy,
    Named,
    allocation_from,
    choices_of,
    criterion_from,
    pattern_from,
    plain,
    policy_from,
    prunable_from,
)
from ltcore.pacing import Beats, Pacer
from ltcore.parameters import ParamInfo, Structure
from ltcore.patterns import Pattern, check_reach
from ltcore.pruning import Pruning, check_goal, next_masks
from ltcore.resetting import Start, start_params
from ltcore.rewinding import RewindPolicy
from ltcore.search import with_graph
from ltcore.seeds import generator
from ltcore.signals import Batches, Loss, Subject, check_measurable, check_rereadable
from ltcore.ticket import Ticket, make_ticket, origin, resolve_backend


def distance(first: Masks, second: Masks) -> float:
    """Return the fraction of entries in which two masks over the same parameters differ."""
    differ = sum(int(np.count_nonzero(first[name] != second[name])) for name in first)
    return differ / first.total if first.total else 0.0


class EarlyBird(Pacer):
    """Watches the masks that pruning would give while the model trains; made by `early_bird`.

    The model is only looked at. Training ends when its user ends it: ask `drawn`.

    Attributes:
        distances: ``{step: (distance to each mask before, the oldest first)}``.
        drawn_at: the step at which the ticket was drawn; None before.
    """

    def __init__(
        self,
        subject: Subject,
        beats: Beats,
        pruning: Pruning,
        start: Masks,
        *,
        window: int,
        threshold: float,
        policy: RewindPolicy,
        choices: Mapping[str, Any],
        seed: int,
    ) -> None:
        self.distances: dict[int, tuple[float, ...]] = {}
        self.drawn_at: int | None = None
        self._pruning, self._start, self._threshold = pruning, start, threshold
        self._policy, self._choices, self._seed = policy, choices, seed
        self._structure, self._batches, self._loss = (
            subject.structure, subject.batches, subject.loss,
        )  # fmt: skip
        self._recent: deque[Masks] = deque(maxlen=window)
        self._initial: Params = {}
        if 0 in policy.snapshots or "initial" in pruning.criterion.needs:
            self._initial = _frozen(subject.backend.read(subject.model, subject.structure))
        self._drawn: Params = {}
        steps = [step for step in policy.snapshots if step > 0]
        super().__init__(subject.backend, subject.model, subject.structure, beats, steps)

    @property
    def drawn(self) -> bool:
        """Whether the masks have settled and the ticket was drawn."""
        return self.drawn_at is not None

    @property
    def masks(self) -> Masks:
        """The masks that were drawn, or the newest before that.

        Raises:
            InvalidValueError: training has not come to the first measurement.
        """
        if not self._recent:
            raise InvalidValueError(
                f"no masks yet: {self.steps} updates were seen and the first masks are made after "
                f"{self.beats.begin}"
            )
        return self._recent[-1]

    @property
    def ticket(self) -> Ticket:
        """The masks that were drawn, and the weights that ``rewind_to`` says.

        Where masks are over the scales of norms, they cover the shifts too: a channel that is
        pruned is zero.

        Raises:
            InvalidValueError: nothing was drawn, or ``rewind_to`` is a later step than that.
        """
        if self.drawn_at is None:
            newest = [max(found) for found in self.distances.values() if found][-1:]
            raise InvalidValueError(
                f"no ticket was drawn in {self.steps} updates: the largest distance is {newest} "
                f"and {self._threshold} is the threshold; train longer, or raise the threshold"
            )
        late = [step for step in self._policy.snapshots if step > self.drawn_at]
        if late:
            raise InvalidValueError(
                f"rewind_to is step {late[0]}, but the ticket was drawn at {self.drawn_at}"
            )
        structure = with_graph(self.backend, self.model, self._structure, self._watch.first_input)
        masks = _with_shifts(self.masks, structure)
        start = Start(self.backend, self.model, structure, self._seed)
        snapshots = {0: self._initial, **self._watch.snapshots}
        params = start_params(self._policy, start, masks, snapshots, self._drawn)
        return make_ticket(self.backend, self.model, structure, masks, params, self._story())

    def _story(self) -> dict[str, Any]:
        drawn = {"step": self.drawn_at, "distances": list(self.distances[self.drawn_at or 0])}
        return {
            **origin(self.backend),
            **self._choices,
            "early_bird": {**drawn, "threshold": self._threshold},
            "rewind": {**self._policy.describe(), "schedule": "restarted"},
            "seed": self._seed,
        }

    def _act(self, step: int) -> None:
        if self.drawn:
            return
        newest = self._masks_now(step)
        earlier = list(self._recent)
        found = tuple(distance(newest, masks) for masks in earlier)
        self._recent.append(newest)
        self.distances[step] = found[-(self._window - 1) :]
        if len(self._recent) == self._window and max(self.distances[step]) <= self._threshold:
            self.drawn_at = step
            self._drawn = _frozen(self.backend.read(self.model, self._structure))
            self._watch.stop()

    @property
    def _window(self) -> int:
        assert self._recent.maxlen
        return self._recent.maxlen

    def _masks_now(self, step: int) -> Masks:
        subject = Subject(self.backend, self.model, self._structure, self._batches, self._loss)
        known: dict[str, Params] = {
            "weight": self.backend.read(self.model, self._structure, self._start)
        }
        if self._initial:
            known["initial"] = self._initial
        return next_masks(self._pruning, self._start, known, subject, generator(self._seed, step))

    def __repr__(self) -> str:
        return f"EarlyBird(steps={self.steps}, drawn_at={self.drawn_at})"


def early_bird(
    model: Any,
    sparsity: Amounts,
    *,
    every: int,
    window: int = 5,
    threshold: float = 0.1,
    rewind_to: AnyPolicy = "trained",
    criterion: AnyCriterion = "magnitude",
    scope: Named | Allocation = "global",
    pattern: Named | Pattern = "unstructured",
    prunable: Sequence[str] | None = None,
    batches: Batches | None = None,
    loss: Loss | None = None,
    seed: int = 0,
    example: Any = None,
    backend: str | Backend | None = None,
) -> EarlyBird:
    """Find when the masks of a training model settle (You et al. 2020).

    Every so many updates, the masks are made that pruning would give now; the model is not
    touched. A ticket is drawn when the newest differ little from all others in the window.

    Args:
        model: a PyTorch module or a built Keras model.
        sparsity: as in `ltcore.prune`; so are the arguments that are not listed.
        every: updates from one comparison to the next; the paper has an epoch.
        window: how many masks are compared: the newest with ``window - 1`` before it.
        threshold: the largest fraction of entries that may differ.
        rewind_to: the ticket's weights: ``"trained"`` are those at the draw, 0 those at which
            this began; or what `ltcore.find_ticket` takes.
        criterion: what makes a weight important.
        scope: what competes with what.
        pattern: the shape of sparsity.
        prunable: selectors of the parameters to prune. None takes the scales of batch norms if
            the model has some, so that a mask is over channels, and kernels if it has none.
        batches: pairs (inputs, targets), read anew at each comparison.
        loss: function of (outputs, targets).
        seed: for criteria and policies that draw random numbers.
        example: one input batch.
        backend: a backend or its name.

    Raises:
        InvalidValueError: a number out of range, a missing option.
        NothingPrunableError, SelectorError, ModelError: as in `ltcore.prune`.
    """
    driver = resolve_backend(model, backend)
    structure = driver.describe(model, example)
    _check_window(window, threshold)
    rule, shape = criterion_from(criterion), pattern_from(pattern)
    infos = _norm_scales(structure) if prunable is None else ()
    infos = infos or prunable_from(structure, prunable)
    subject = Subject(driver, model, structure, batches, loss)
    check_measurable(subject, rule)
    check_rereadable(batches, "one comparison")
    current = held_by(driver, model)
    earlier = current.masks if current else {}
    whole = Masks.ones({info.name: info.shape for info in infos})
    pruning = Pruning(rule, allocation_from(scope), Sparsity(sparsity), infos, shape)
    check_reach(shape, [pruning.goal])
    check_goal(pruning, whole)
    return EarlyBird(
        subject,
        Beats(every, every),
        pruning,
        Masks.adopt({name: earlier.get(name, mask) for name, mask in whole.items()}),
        window=window,
        threshold=threshold,
        policy=policy_from(rewind_to),
        choices={
            **choices_of(
                driver, criterion=criterion, scope=scope, pattern=pattern, rewind_to=rewind_to
            ),
            "goal": {"sparsity": plain(sparsity)},
        },
        seed=seed,
    )


def _check_window(window: int, threshold: float) -> None:
    if not isinstance(window, int) or isinstance(window, bool) or window < 2:
        raise InvalidValueError(f"window is {window!r}; expected a number of masks, 2 or more")
    if isinstance(threshold, bool) or not 0 <= threshold <= 1:
        raise InvalidValueError(f"threshold is {threshold!r}; expected a fraction from 0 to 1")


def _norm_scales(structure: Structure) -> tuple[ParamInfo, ...]:
    return tuple(i for i in structure.infos if i.kind == "batchnorm" and i.role == "weight")


def _with_shifts(masks: Masks, structure: Structure) -> Masks:
    """Return masks that prune the shift of every norm whose scale they prune."""
    joined = {}
    for name, site, role in structure.items():
        scale = f"{site.name}.weight"
        if name in masks:
            joined[name] = masks[name]
        elif site.kind == "batchnorm" and role.name == "bias" and scale in masks:
            joined[name] = masks[scale]
    return Masks.adopt(joined)


def _frozen(params: Mapping[str, Any]) -> Params:
    return {name: freeze(array) for name, array in params.items()}
