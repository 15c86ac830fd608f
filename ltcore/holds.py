"""Holds as people use them: pruned weights stay zero until release, and a model has one hold.

A hold lives as long as its model, whether or not anyone keeps the handle.
"""

import math
import weakref
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, TypeAlias

import numpy as np

from ltcore.backend import Backend
from ltcore.errors import HoldError, InvalidValueError
from ltcore.masks import Masks
from ltcore.parameters import Structure

Existing: TypeAlias = Literal["error", "replace", "tighten"]
"""What a new hold does with one that is there: refuse, take its place, or keep what both keep."""

_holds: MutableMapping[Any, "Hold"] = weakref.WeakKeyDictionary()


class Hold:
    """Keeps the pruned weights of one model at exactly 0.0 while anyone trains it.

    Made by `ltcore.prune`, `ltcore.hold` and `Ticket.apply`. As a context manager it releases on
    leaving; of nested blocks on one model, the outermost releases.

    Attributes:
        masks: what is kept, by portable name.
        structure: the model as ltcore sees it.
        backend: the backend that drives the model.
        mover: what changes the masks while the model trains, such as gradual pruning; None if
            nothing does. Nobody else may change them then.
        story: plain data on how the masks were chosen, for a ticket's provenance; empty where
            that is not known, as after `update`.
    """

    def __init__(self, model: Any, backend: Backend, structure: Structure, masks: Masks) -> None:
        self.backend = backend
        self.structure = structure
        self.masks = masks
        self.mover: object | None = None
        self.story: Mapping[str, Any] = {}
        # A wrapper (compile, DDP) may go while the module it wraps stays.
        self._model = weakref.ref(backend.root(model))
        self._handle = backend.hold(model, structure, masks)
        self._released = False
        self._entered = 0
        _holds[backend.root(model)] = self

    @property
    def model(self) -> Any:
        """The held model.

        Raises:
            HoldError: the model is gone.
        """
        model = self._model()
        if model is None:
            raise HoldError("the held model no longer exists")
        return model

    @property
    def released(self) -> bool:
        """Whether the hold was released."""
        return self._released

    def update(self, masks: Masks) -> None:
        """Hold other masks from now on and zero what they prune at once.

        Raises:
            MaskError: the masks are not over the held parameters.
            HoldError: the hold was released.
        """
        self._check_alive()
        masks.check_shapes({name: mask.shape for name, mask in self.masks.items()}, "the hold")
        self._handle.update(masks)
        self.masks = masks
        self.story = {}

    def rebind(self, model: Any, structure: Structure, masks: Masks) -> None:
        """Hold other parameters of the same model: one model, one hold, handles stay good."""
        self._check_alive()
        self._handle.release()
        try:
            self._handle = self.backend.hold(model, structure, masks)
        except BaseException:
            self._handle = self.backend.hold(model, self.structure, self.masks)
            raise
        self.structure = structure
        if masks != self.masks:
            self.story = {}
        self.masks = masks

    def enforce(self) -> None:
        """Zero every pruned weight now, for weights that were loaded or written by hand."""
        self._check_alive()
        self._handle.enforce()

    def check(self) -> None:
        """Raise unless every pruned weight is exactly 0.0.

        Raises:
            HoldError: names the parameters and how many of their pruned weights are not zero.
        """
        live = self.backend.read(self.model, self.structure, self.masks)
        wrong = {
            name: count
            for name, mask in self.masks.items()
            if (count := int(np.count_nonzero(live[name][~mask])))
        }
        if wrong:
            raise HoldError(
                f"pruned weights are not zero: {wrong}; either a training step that was compiled "
                "before the hold goes on without it (make it anew), or something wrote to them "
                "outside an optimizer (enforce() zeroes them)"
            )

    def release(self) -> None:
        """Let go of the model; zeros stay until someone trains it. Twice is fine."""
        if self._released:
            return
        self._handle.release()
        self._released = True
        model = self._model()
        if model is not None:
            _holds.pop(model, None)

    def report(self) -> "Report":
        """Return kept and total for every parameter; print it for a table."""
        kinds = {name: site.kind for name, site, _ in self.structure.items()}
        rows = tuple((n, kinds[n], *self.masks.counts[n]) for n in self.masks)
        free = [info for info in self.structure.infos if info.name not in self.masks]
        return Report(rows, sum(math.prod(info.shape) for info in free), len(free))

    def __enter__(self) -> "Hold":
        self._entered += 1
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._entered -= 1
        if not self._entered:
            self.release()

    def __repr__(self) -> str:
        state = "released" if self._released else "holding"
        return f"Hold({state}, kept={self.masks.kept}, total={self.masks.total})"

    def _check_alive(self) -> None:
        if self._released:
            raise HoldError("this hold was released; make a new one with ltcore.hold")


@dataclass(frozen=True, slots=True, repr=False)
class Report:
    """Kept and total, parameter by parameter.

    Attributes:
        rows: ``(name, kind, kept, total)`` of every parameter under a mask.
        free_weights: trained weights that no mask covers (biases, norms, unknown layers).
        free_parameters: in how many parameters.
    """

    rows: tuple[tuple[str, str, int, int], ...]
    free_weights: int = 0
    free_parameters: int = 0

    @property
    def emptied(self) -> tuple[str, ...]:
        """Parameters left with no survivors: no signal passes through them."""
        return tuple(name for name, _, kept, total in self.rows if total and not kept)

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def __repr__(self) -> str:
        kept, total = sum(row[2] for row in self.rows), sum(row[3] for row in self.rows)
        return f"Report(kept={kept}, total={total}, parameters={len(self.rows)})"

    def _lines(self) -> Iterator[str]:
        width = max([len(row[0]) for row in self.rows] + [9])
        yield f"{'parameter':<{width}}  {'kind':<14} {'kept':>12} {'total':>12} {'sparsity':>9}"
        kept, total = sum(row[2] for row in self.rows), sum(row[3] for row in self.rows)
        for name, kind, left, size in (*self.rows, ("all", "", kept, total)):
            removed = 1 - left / size if size else 0.0
            yield f"{name:<{width}}  {kind:<14} {left:>12,} {size:>12,} {removed:>9.2%}"
        if self.free_weights:
            yield (
                f"outside the masks: {self.free_weights:,} trained weights in "
                f"{self.free_parameters} parameters"
            )
        if self.emptied:
            yield f"no survivors in: {', '.join(self.emptied)}"


def held_by(backend: Backend, model: Any) -> Hold | None:
    """Return the hold on ``model``, or None."""
    return _holds.get(backend.root(model))


def check_free(backend: Backend, model: Any, existing: Existing) -> None:
    """Raise if ``model`` is held and ``existing`` does not say what to do about it.

    Raises:
        HoldError: the model is held and ``existing`` is ``"error"``, or its masks move.
        InvalidValueError: ``existing`` is none of its three words.
    """
    if existing not in ("error", "replace", "tighten"):
        raise InvalidValueError(
            f"existing is {existing!r}; expected 'error', 'replace' or 'tighten'"
        )
    check_unmoved(backend, model)
    current = held_by(backend, model)
    if current and existing == "error":
        raise HoldError(
            f"the model is held already ({current!r}); release that hold, or say "
            "existing='replace' or existing='tighten'"
        )


def check_unmoved(backend: Backend, model: Any) -> None:
    """Raise if something changes the masks of ``model`` while it trains.

    Raises:
        HoldError: says what.
    """
    current = held_by(backend, model)
    if current and current.mover is not None:
        raise HoldError(f"the model's masks change already: {current.mover!r}; release that first")


def hold_model(
    model: Any, backend: Backend, structure: Structure, masks: Masks, existing: Existing
) -> Hold:
    """Put a hold on ``model``, or change the one it has.

    Raises:
        HoldError: the model is held already and ``existing`` is ``"error"``, or its masks move.
        InvalidValueError: ``existing`` is none of its three words.
        MaskError: the masks do not fit the model.
    """
    check_free(backend, model, existing)
    shapes = {n: s for n, s in structure.shapes.items() if n in masks}
    masks.check_shapes(shapes, "the model")
    current = held_by(backend, model)
    if current is None:
        return Hold(model, backend, structure, masks)
    if existing == "tighten":
        masks = _both(current.masks, masks)
    current.rebind(model, structure, masks)
    return current


def _both(first: Masks, second: Masks) -> Masks:
    """Return masks over the parameters of either, keeping what neither prunes."""
    joined = {name: first[name] for name in first}
    for name, mask in second.items():
        joined[name] = joined[name] & mask if name in joined else mask
    return Masks.adopt(joined)
