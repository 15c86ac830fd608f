"""Early-bird tickets: the masks that pruning would give settle long before training ends."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ltcore.allocation import Allocation, Amounts
from ltcore.arrays import Params, freeze
from ltcore.backend import Backend
from ltcore.errors import InvalidValueError
from ltcore.masks import Masks
from ltcore.options import AnyCriterion, AnyPolicy, Named, plain, policy_from, prunable_from
from ltcore.pacing import Beats, Pacer
from ltcore.parameters import ParamInfo, Structure
from ltcore.patterns import Pattern
from ltcore.requests import Request, prepare, to_sparsity
from ltcore.resetting import Start, start_params
from ltcore.rewinding import RewindPolicy
from ltcore.signals import Batches, Loss
from ltcore.ticket import Ticket, make_ticket, origin


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
        model: Any,
        beats: Beats,
        request: Request,
        *,
        window: int,
        threshold: float,
        policy: RewindPolicy,
    ) -> None:
        self.distances: dict[int, tuple[float, ...]] = {}
        self.drawn_at: int | None = None
        self._request, self._policy, self._threshold = request, policy, threshold
        self._recent: deque[Masks] = deque(maxlen=window)
        self._initial: Params = {}
        if 0 in policy.snapshots or "initial" in request.criterion.needs:
            self._initial = _frozen(request.backend.read(model, request.structure))
        self._drawn: Params = {}
        steps = [step for step in policy.snapshots if step > 0]
        super().__init__(request.backend, model, request.structure, beats, steps)

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

    def ticket(self) -> Ticket:
        """Return the masks that were drawn, with the weights that ``rewind_to`` says.

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
        request = self._request = self._request.traced(self.model, self._watch.first_input)
        structure = request.structure
        masks = _with_shifts(self.masks, structure)
        start = Start(self.backend, self.model, structure, request.seed)
        snapshots = {0: self._initial, **self._watch.snapshots}
        params = start_params(self._policy, start, masks, snapshots, self._drawn)
        return make_ticket(self.backend, self.model, structure, masks, params, self._story())

    def _story(self) -> dict[str, Any]:
        drawn = {"step": self.drawn_at, "distances": list(self.distances[self.drawn_at or 0])}
        return {
            **origin(self.backend),
            **self._request.story,
            "goal": {"sparsity": plain(self._request.goals[0].amounts)},
            "early_bird": {**drawn, "threshold": self._threshold},
            "rewind": {**self._policy.describe(), "schedule": "restarted"},
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
            self._drawn = _frozen(self.backend.read(self.model, self._request.structure))
            self._watch.stop()

    @property
    def _window(self) -> int:
        assert self._recent.maxlen
        return self._recent.maxlen

    def _masks_now(self, step: int) -> Masks:
        request = self._request = self._request.traced(self.model, self._watch.first_input)
        goal, start = request.goals[0], request.start
        return request.pruned(self.model, goal, start, step, initial=self._initial)

    def __repr__(self) -> str:
        return f"EarlyBird(steps={self.steps}, drawn_at={self.drawn_at})"


def early_bird(
    model: Any,
    sparsity: Amounts | None = None,
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
            the model has some and no pattern is given, so that a mask is over channels; else
            kernels.
        batches: pairs (inputs, targets), read anew at each comparison.
        loss: function of (outputs, targets).
        seed: for criteria and policies that draw random numbers.
        example: one input batch.
        backend: a backend or its name.

    Raises:
        InvalidValueError: a number out of range, a missing option.
        NothingPrunableError, SelectorError, ModelError: as in `ltcore.prune`.
    """
    _check_window(window, threshold)
    policy = policy_from(rewind_to)
    beats = Beats(every, every)
    request = prepare(
        model,
        to_sparsity(sparsity),
        criterion=criterion,
        scope=scope,
        pattern=pattern,
        prunable=_scales_or_kernels if prunable is None else prunable,
        batches=batches,
        loss=loss,
        seed=seed,
        example=example,
        backend=backend,
        signals=("initial",),
        also={"rewind_to": rewind_to},
        once="one comparison",
        changes=False,
    )
    return EarlyBird(model, beats, request, window=window, threshold=threshold, policy=policy)


def _check_window(window: int, threshold: float) -> None:
    if not isinstance(window, int) or isinstance(window, bool) or window < 2:
        raise InvalidValueError(f"window is {window!r}; expected a number of masks, 2 or more")
    if isinstance(threshold, bool) or not 0 <= threshold <= 1:
        raise InvalidValueError(f"threshold is {threshold!r}; expected a fraction from 0 to 1")


def _scales_or_kernels(structure: Structure, pattern: Pattern | None) -> tuple[ParamInfo, ...]:
    """Return the scales of batch norms, which have no shape for a pattern; else kernels."""
    norms = (info for info in structure.infos if info.kind == "batchnorm")
    scales = tuple(info for info in norms if info.role == "weight")
    return scales if scales and pattern is None else prunable_from(structure, None)


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
