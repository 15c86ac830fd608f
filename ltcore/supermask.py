"""Supermasks: masks that make an untrained network good (Zhou et al. 2019)."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from ltcore import rewind_draws
from ltcore.arrays import Array, Params
from ltcore.backend import Backend
from ltcore.errors import CapabilityError, InvalidValueError, NonFiniteError
from ltcore.feeds import Batches, Loss, checked_loss, pairs
from ltcore.holds import Hold, check_free, hold_model
from ltcore.masks import Masks
from ltcore.options import prunable_from
from ltcore.parameters import Structure, in_canonical_order, in_native_order
from ltcore.restoring import restoring
from ltcore.rewind_points import check_step
from ltcore.seeds import SAMPLES, check_seed, generator
from ltcore.signals import check_rereadable
from ltcore.ticket import resolve_backend


@dataclass(frozen=True, eq=False, repr=False)
class Supermask:
    """What was learned: how likely each weight is to be kept.

    Attributes:
        structure: of the model.
        scores: ``{name: float64 array}``, the logits of the probabilities.
        weights: the weights that the scores were learned for: the model's own, or constants with
            their signs.
        dynamic_scale: whether kept weights are multiplied by total / kept, parameter by parameter.
        seed: of the samples.
        story: plain data on how it was found, for a ticket's provenance.
    """

    structure: Structure
    scores: Params
    weights: Params
    dynamic_scale: bool
    seed: int
    story: Mapping[str, Any]

    @property
    def probabilities(self) -> dict[str, Array]:
        """How likely each weight is to be kept."""
        return {name: _sigmoid(scores) for name, scores in self.scores.items()}

    def masks(self, threshold: float = 0.5) -> Masks:
        """Keep what is kept with a probability above ``threshold``.

        Raises:
            InvalidValueError: the threshold is no number in [0, 1).
        """
        number = isinstance(threshold, Real) and not isinstance(threshold, bool)
        if not number or not 0 <= threshold < 1:
            raise InvalidValueError(
                f"threshold is {threshold!r}; expected a probability in [0, 1): weights above it "
                "are kept"
            )
        return Masks.adopt({n: np.asarray(p > threshold) for n, p in self.probabilities.items()})

    def sample(self, index: int = 0) -> Masks:
        """Keep each weight with its probability; the same ``index`` gives the same masks."""
        return _sampled(self.scores, self.structure, generator(self.seed, index, SAMPLES))

    def apply(
        self, model: Any, masks: Masks | None = None, *, backend: str | Backend | None = None
    ) -> Hold:
        """Write the frozen weights into ``model``, scaled if they were, and hold the masks.

        Warns of parameters of which nothing is kept.

        Args:
            model: the model that the scores were learned on; its other parameters stay.
            masks: from `masks` or `sample`; those of ``masks()`` if None.
            backend: a backend or its name, where it shall not be found from the model.

        Raises:
            HoldError: the model is held already.
            MaskError: the masks are for another model.
        """
        driver = resolve_backend(model, backend)
        check_free(driver, model, "error")
        structure = driver.describe(model)
        chosen = self.masks() if masks is None else masks
        chosen.check_shapes({name: w.shape for name, w in self.weights.items()}, "the supermask")
        with restoring(driver, model, structure):
            driver.write(model, structure, _effective(self.weights, chosen, self.dynamic_scale))
            hold = hold_model(model, driver, structure, chosen, existing="error")
        hold.story = self.story
        if chosen.emptied:
            warnings.warn(
                f"the supermask keeps nothing of {list(chosen.emptied)}: no signal passes there; "
                "lower the threshold, or the learning rate",
                stacklevel=2,
            )
        return hold

    def __repr__(self) -> str:
        masks = self.masks()
        return f"Supermask(kept={masks.kept}, total={masks.total}, parameters={len(masks)})"


def find_supermask(
    model: Any,
    batches: Batches,
    loss: Loss,
    *,
    steps: int,
    lr: float = 100.0,
    momentum: float = 0.9,
    signed_constant: bool = False,
    dynamic_scale: bool = False,
    prunable: Sequence[str] | None = None,
    seed: int = 0,
    example: Any = None,
    backend: str | Backend | None = None,
) -> Supermask:
    """Learn which weights to keep, by gradient descent on scores; weights are frozen.

    Zhou et al. 2019, section 5: each step keeps a weight with probability ``sigmoid(score)``,
    and the gradient goes straight through the draw. Gradients are taken in inference mode, on
    the batches in turn. The model is as before afterwards; `Supermask.apply` puts what was
    learned into it.

    Args:
        model: a PyTorch module or a built Keras model, not held.
        batches: pairs (inputs, targets) as the framework takes them; one is used a step.
        loss: ``loss(outputs, targets)`` in the framework's own tensors.
        steps: updates of the scores.
        lr: learning rate. Scores move slowly: the paper has 100.
        momentum: of the descent.
        signed_constant: use, instead of each weight, the standard deviation of its parameter
            with the weight's sign.
        dynamic_scale: multiply kept weights by total / kept of their parameter, which counts as a
            constant in gradients.
        prunable: selectors of the parameters; kernels if None. Others stay as they are.
        seed: of the draws.
        example: one input batch, where the model's graph is not known without: draws then fall on
            the same weights in every framework.
        backend: a backend or its name, where it shall not be found from the model.

    Raises:
        InvalidValueError: a number out of range, or no batches.
        NonFiniteError: a gradient is NaN or infinite.
        CapabilityError: the backend has no gradients.
        HoldError: the model is held.
        NothingPrunableError, SelectorError, ModelError: as in `ltcore.prune`.
    """
    driver = resolve_backend(model, backend)
    steps, seed = _check(steps, lr, momentum), check_seed(seed)
    check_rereadable(batches, "one reading")
    checked = checked_loss(loss)
    if "gradients" not in driver.capabilities:
        raise CapabilityError(f"a supermask needs gradients, which {driver.name!r} does not have")
    check_free(driver, model, "error")
    structure = driver.describe(model, example)
    names = [info.name for info in prunable_from(structure, prunable)]
    frozen = _frozen(driver.read(model, structure, names), signed=signed_constant)
    scores = {name: np.zeros(weight.shape) for name, weight in frozen.items()}
    velocity = {name: np.zeros(weight.shape) for name, weight in frozen.items()}
    rng = generator(seed)
    with restoring(driver, model, structure, always=True):
        for step, batch in zip(range(1, steps + 1), _in_turn(batches), strict=False):
            masks = _sampled(scores, structure, rng)
            effective = _effective(frozen, masks, dynamic_scale)
            driver.write(model, structure, effective)
            gradients = driver.gradients(model, structure, [batch], checked)
            _check_finite({name: gradients[name] for name in frozen}, step)
            scales = _scales(masks) if dynamic_scale else dict.fromkeys(masks, 1.0)
            for name, weight in frozen.items():
                slope = scales[name] * gradients[name] * weight * _slope(scores[name])
                velocity[name] = momentum * velocity[name] + slope
                scores[name] -= lr * velocity[name]
    told = {
        "steps": steps, "lr": float(lr), "momentum": float(momentum),
        "signed_constant": signed_constant, "dynamic_scale": dynamic_scale,
    }  # fmt: skip
    story = {"supermask": told, "seed": seed}
    return Supermask(structure, scores, frozen, dynamic_scale, seed, story)


def _check(steps: int, lr: float, momentum: float) -> int:
    """Return the steps, as an int."""
    count = check_step(steps, "steps", least=1)
    if isinstance(lr, bool) or not 0 < lr < float("inf"):
        raise InvalidValueError(f"lr is {lr!r}; expected a number above 0")
    if isinstance(momentum, bool) or not 0 <= momentum < 1:
        raise InvalidValueError(f"momentum is {momentum!r}; expected a number in [0, 1)")
    return count


def _check_finite(gradients: Params, step: int) -> None:
    """Raise before NaN gets into the scores, where it would keep nothing."""
    for name, gradient in gradients.items():
        bad = int(gradient.size - np.count_nonzero(np.isfinite(gradient)))
        if bad:
            raise NonFiniteError(
                f"step {step}: {bad} of {gradient.size} gradients of {name!r} are NaN or infinite; "
                "look at the loss and its batch"
            )


def _frozen(weights: Mapping[str, Array], *, signed: bool) -> Params:
    return {n: rewind_draws.signed_constant(w, w) if signed else w for n, w in weights.items()}


def _in_turn(batches: Batches) -> Iterator[Any]:
    while True:
        yield from pairs(batches)


def _sampled(scores: Params, structure: Structure, rng: np.random.Generator) -> Masks:
    """Draw in canonical feature order, so that frameworks keep the same weights."""
    ordered = in_canonical_order(scores, structure)
    drawn = {n: np.asarray(rng.random(s.shape) < _sigmoid(s)) for n, s in ordered.items()}
    return Masks.adopt(in_native_order(drawn, structure))


def _effective(weights: Params, masks: Masks, dynamic_scale: bool) -> dict[str, Array]:
    kept = masks.apply(weights)
    if not dynamic_scale:
        return kept
    scales = _scales(masks)
    return {name: (scales[name] * array).astype(array.dtype) for name, array in kept.items()}


def _scales(masks: Masks) -> dict[str, float]:
    """Return total / kept of each parameter; 1 where nothing is kept."""
    return {name: total / kept if kept else 1.0 for name, (kept, total) in masks.counts.items()}


def _sigmoid(scores: Array) -> Array:
    probability: Array = 0.5 * (1 + np.tanh(0.5 * scores))  # exp would overflow
    return probability


def _slope(scores: Array) -> Array:
    probability = _sigmoid(scores)
    slope: Array = probability * (1 - probability)
    return slope
