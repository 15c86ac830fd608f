"""Pruned weights of a Keras model stay exactly 0.0 in every training loop.

Two guards, because one alone is wrong: gradients are masked before the optimizer sees them, so
pruned entries count neither in a clipped norm nor in momentum; weights are masked after the
update, so no optimizer can move them. Nothing is stored on the model, its layers or its
variables: masks live here and go with the model.

What cannot be reached is a ``tf.function`` of the user's own, or a training step of another model
around this one, that was traced before the first hold. One that was traced under a hold follows
later masks and a release, for it reads the masks from variables. ``Hold.check()`` tells. On JAX
masks are constants of a step, and every step is traced anew when they change.
"""

import weakref
from collections.abc import Iterable, Iterator, MutableMapping
from typing import Any

import numpy as np

from ltcore.arrays import Array
from ltcore.errors import HoldError
from ltcore.masks import Masks
from ltcore_keras._engine import ENGINE
from ltcore_keras._engine_any import Ears
from ltcore_keras._names import sites_of
from ltcore_keras._optimizers import clear_slots, note_seen, optimizers_of, parts
from ltcore_keras._slots import whole_variables
from ltcore_keras._updates import Listener, listen, unlisten, unlisten_with


class HeldVariable:
    """A model's variable and its mask."""

    def __init__(self, variable: Any, mask: Array) -> None:
        self._variable = weakref.ref(variable)
        self._ears: Ears | None = None
        self.mask = ENGINE.mask(mask)

    def holds(self, variable: Any) -> bool:
        """Whether this is the mask of ``variable``, a Keras variable or the engine's own."""
        mine = self._variable()
        return mine is not None and id(variable) in ENGINE.keys(mine)

    def enforce(self) -> None:
        """Zero what is pruned, unless the model has replaced the variable."""
        variable = self._variable()
        if variable is not None:
            if self._ears is None:
                self._ears = ENGINE.on_gradient(variable, self.mask)
            ENGINE.zero(self.mask, variable)

    def open(self) -> None:
        """Keep all from now on."""
        if self._ears is not None:
            self._ears.remove()
            self._ears = None
        ENGINE.assign(self.mask, np.ones(self.mask.shape, bool))


class Keeper(Listener):
    """All masks of one model, kept while it lives, for traced functions go on reading them."""

    def __init__(self, model: Any) -> None:
        self._model = weakref.ref(model)
        self._known: dict[int, HeldVariable] = {}
        self._held: dict[int, HeldVariable] = {}
        self._cleared: weakref.WeakSet[Any] = weakref.WeakSet()
        unlisten_with(model, self)

    def hold(self, masks: Iterable[tuple[Any, Array]]) -> None:
        """Hold pairs of a variable and its native mask from now on, and nothing else."""
        model = self._model()
        ENGINE.settle(model)
        before = dict(self._held)
        self._open()
        for variable, mask in masks:
            held = self._known.get(id(variable))
            if held is None or not held.holds(variable):
                held = HeldVariable(variable, mask)
            else:
                ENGINE.assign(held.mask, mask)
            for key in ENGINE.keys(variable):
                self._known[key] = self._held[key] = held
        self._cleared.clear()
        self.enforce()
        for optimizer in optimizers_of(model):
            self._clear(optimizer)
        # A graph reads masks from variables: it follows without being made anew.
        if not ENGINE.in_graph or self._held.items() - before.items():
            listen(self)
            ENGINE.retrace(model)

    def release(self) -> None:
        """Hold nothing."""
        self._open()
        unlisten(self)
        ENGINE.retrace(self._model())

    def enforce(self) -> None:
        """Zero every pruned weight now."""
        for held in self._each():
            held.enforce()

    def training(self, model: Any) -> None:
        """Clear the optimizer that is compiled into ``model``, before its first update."""
        for optimizer in parts(getattr(model, "optimizer", None)):
            if optimizer in self._cleared or not optimizer.built:
                continue
            if not ENGINE.has_values(optimizer):
                continue  # in a running fit: the step clears it
            if any(map(self._find, optimizer._trainable_variables)):
                self._clear(optimizer)

    def before_update(
        self, optimizer: Any, gradients: list[Any], variables: list[Any]
    ) -> list[Any]:
        """Mask the gradients of held variables."""
        held = [self._find(variable) for variable in variables]
        if any(held) and optimizer not in self._cleared:
            self._clear(optimizer)
        return [
            gradient if one is None or gradient is None else ENGINE.where_kept(one.mask, gradient)
            for one, gradient in zip(held, gradients, strict=True)
        ]

    def after_update(self, optimizer: Any, variables: list[Any]) -> None:
        """Mask held variables, and the averages that an optimizer may put in their place."""
        for held in filter(None, map(self._find, variables)):
            held.enforce()
        if getattr(optimizer, "use_ema", False):
            averages = optimizer._model_variables_moving_average
            for variable, average in zip(optimizer._trainable_variables, averages, strict=True):
                found = self._find(variable)
                if found and average is not None:
                    ENGINE.zero(found.mask, average)

    def _clear(self, optimizer: Any) -> None:
        """Zero the optimizer's slots of pruned weights, at once or in the step that is traced."""
        with ENGINE.clearing() as once:
            clear_slots(optimizer, lambda v: found.mask if (found := self._find(v)) else None)
        if once:
            self._cleared.add(optimizer)
        note_seen(self._model(), optimizer)

    def _find(self, variable: Any) -> HeldVariable | None:
        held = self._held.get(id(variable))
        return held if held and held.holds(variable) else None

    def _each(self) -> Iterator[HeldVariable]:
        yield from {id(held): held for held in self._held.values()}.values()

    def _open(self) -> None:
        """Let every mask keep all, for functions that were traced under it."""
        for held in self._each():
            held.open()
        self._held.clear()


_keepers: MutableMapping[Any, Keeper] = weakref.WeakKeyDictionary()


def keeper_of(model: Any) -> Keeper:
    """Return the keeper of ``model``."""
    if model not in _keepers:
        _keepers[model] = Keeper(model)
    return _keepers[model]


class KerasHold:
    """The `ltcore.backend.MaskHandle` of a Keras model."""

    def __init__(self, model: Any, masks: Masks) -> None:
        ENGINE.check_trains(model)
        self._model = weakref.ref(model)
        self._keeper = keeper_of(model)
        self.update(masks)

    def update(self, masks: Masks) -> None:
        """Hold ``masks`` from now on."""
        model = self._model()
        if model is None:
            raise HoldError("the held model no longer exists")
        self._keeper.hold(whole_variables(masks, sites_of(model)[1], _all_kept))

    def enforce(self) -> None:
        """Zero every pruned weight now."""
        model = self._model()
        if model is not None:
            ENGINE.settle(model)
            self._keeper.enforce()

    def release(self) -> None:
        """Hold nothing; a model that is gone holds nothing anyway."""
        if self._model() is not None:
            self._keeper.release()


def _all_kept(variable: Any) -> Array:
    """Return the mask of a variable of which only parts are pruned."""
    return np.ones(tuple(variable.shape), dtype=bool)
