"""Counts a model's updates, and copies its weights when somebody wants those of one of them.

Where training steps are graphs, counter and copies are variables, so they work in a compiled
step, with several steps in one execution, and under XLA: the step that reaches the number
copies, the others skip a branch. Elsewhere both are on the host.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, Protocol

import keras
import numpy as np

from ltcore_keras._engine import ENGINE
from ltcore_keras._layouts import to_numpy
from ltcore_keras._optimizers import note_seen, parts
from ltcore_keras._updates import Listener, listen, unlisten, unlisten_with


class Shot(Protocol):
    """The weights after one update.

    Attributes:
        at: the count at which to take them.
    """

    at: int

    @property
    def values(self) -> Mapping[str, Any] | None:
        """``{name: native variable or array}`` of what could be seen; None until it is taken."""
        ...


class Odometer(Listener):
    """Counts the updates of one model while it lives.

    It outlives a watch: a training step of the user's own that was traced under the first watch
    goes on counting under the next.
    """

    def __init__(self, model: Any) -> None:
        self._model = weakref.ref(model)
        self._reference: weakref.ref[Any] | None = None
        self._wanted: list[Sequence[Any]] = []
        self._looks: list[weakref.WeakMethod[Callable[[], None]]] = []
        self._met: weakref.WeakSet[Any] = weakref.WeakSet()
        unlisten_with(model, self)

    def reading(self) -> int:
        """Return the number of updates so far."""
        raise NotImplementedError

    def shot(self, variables: Mapping[str, Any], at: int) -> Shot:
        """Return a shot of ``{name: variable}``, to be attached."""
        raise NotImplementedError

    def passed(self, done: Any) -> None:
        """Count an update if one was ``done``, and take shots."""
        raise NotImplementedError

    def attach(self, shots: Sequence[Shot], look: Callable[[], None] | None = None) -> None:
        """Count, take ``shots`` when it is time, and ``look`` when Python runs again.

        ``look`` is a method, called while the object that it is of lives.
        """
        self._reference = None
        self._wanted.append(shots)
        # Weakly: what a callback knows of the model must not keep it alive.
        self._looks += [weakref.WeakMethod(look)] if look else []
        listen(self)
        ENGINE.retrace(self._model())

    def detach(self, shots: Sequence[Shot], look: Callable[[], None] | None = None) -> None:
        """Take ``shots`` and ``look`` no more; count no more when all are detached."""
        self._wanted = [others for others in self._wanted if others is not shots]
        self._looks = [ref for ref in self._looks if ref() not in (None, look)]
        if not self._wanted:
            unlisten(self)
        ENGINE.retrace(self._model())

    def training(self, model: Any) -> None:
        """Note the optimizer that is compiled into ``model``, before it does anything."""
        mine = self._model()
        for optimizer in parts(getattr(model, "optimizer", None)):
            if mine is not None and optimizer.built and self._moves(optimizer):
                note_seen(mine, optimizer)

    def before_update(
        self, optimizer: Any, gradients: list[Any], variables: list[Any]
    ) -> list[Any]:
        """Note the optimizer, before it does anything."""
        model = self._model()
        if model is not None and optimizer not in self._met and self._first(variables) is not None:
            self._met.add(optimizer)
            note_seen(model, optimizer)
        return gradients

    def finished(self, optimizer: Any, owned: list[Any], variables: list[Any]) -> None:
        """Count an update of this model, once also where several optimizers share it."""
        if self._first(variables) is not None and self._counts(owned):
            self.passed(_is_update(optimizer))

    def paused(self) -> None:
        """Let those look who want to."""
        for reference in list(self._looks):
            look = reference()
            if look:
                look()

    def _shots(self) -> Iterator[Any]:
        for shots in self._wanted:
            yield from shots

    def _moves(self, optimizer: Any) -> bool:
        return self._first(optimizer._trainable_variables) is not None

    def _first(self, variables: Sequence[Any]) -> Any:
        """Return the first of the model's weights that is among ``variables``, or None."""
        given = {id(variable) for variable in variables}
        model = self._model()
        weights = model.weights if model is not None else ()
        return next((v for v in weights if not given.isdisjoint(ENGINE.keys(v))), None)

    def _counts(self, owned: list[Any]) -> bool:
        """Whether an optimizer owns the variable that stands for the model: the first met.

        That variable may have no gradient in some updates, which count too.
        """
        if self._reference is None:
            first = self._first(owned)
            self._reference = weakref.ref(first) if first is not None else None
        reference = self._reference() if self._reference else None
        given = {id(variable) for variable in owned}
        return reference is not None and not given.isdisjoint(ENGINE.keys(reference))


def _is_update(optimizer: Any) -> Any:
    """Whether the last call changed weights, and did not just accumulate gradients."""
    steps = getattr(optimizer, "gradient_accumulation_steps", None)
    if not steps:
        return True
    return keras.ops.equal(keras.ops.mod(optimizer._iterations, steps), 0)


# in graphs


class ShadowShot:
    """Variables of the same shapes and dtypes, and whether the weights are in them yet."""

    def __init__(self, variables: Mapping[str, Any], at: int) -> None:
        self.at = at
        self._live = {name: weakref.ref(variable) for name, variable in variables.items()}
        with ENGINE.outside_graph():
            self._shadows = {name: _twin(variable) for name, variable in variables.items()}
            self._taken = keras.Variable(False, dtype="bool", trainable=False, name="taken")

    @property
    def values(self) -> Mapping[str, Any] | None:
        """The variables, once the weights are in them."""
        return self._shadows if bool(to_numpy(self._taken)) else None

    def take(self) -> None:
        """Copy the weights; part of the training step."""
        for name, shadow in self._shadows.items():
            live = self._live[name]()
            if live is not None:
                shadow.assign(live)
        self._taken.assign(True)


def _twin(variable: Any) -> Any:
    """Return an untracked variable of the same shape and dtype."""
    zeros = keras.ops.zeros(tuple(variable.shape), variable.dtype)
    return keras.Variable(zeros, dtype=variable.dtype, trainable=False, name="snapshot")


class GraphOdometer(Odometer):
    """Counts and copies in the training step, eager or compiled."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        with ENGINE.outside_graph():
            self._count = keras.Variable(0, dtype="int64", trainable=False, name="updates")

    def reading(self) -> int:
        """Return the number of updates so far."""
        return int(to_numpy(self._count))

    def shot(self, variables: Mapping[str, Any], at: int) -> Shot:
        """Return a shot of ``{name: variable}``, to be attached."""
        return ShadowShot(variables, at)

    def passed(self, done: Any) -> None:
        """Count, and copy into the shot whose turn it is."""
        self._count.assign_add(keras.ops.cast(done, "int64"))
        for shot in self._shots():
            turn = keras.ops.logical_and(done, keras.ops.equal(self._count, shot.at))
            keras.ops.cond(turn, shot.take, lambda: None)


# on the host


class HostShot:
    """Arrays on the host."""

    def __init__(self, variables: Mapping[str, Any], at: int) -> None:
        self.at = at
        self.variables = {name: weakref.ref(variable) for name, variable in variables.items()}
        self.values: Mapping[str, Any] | None = None

    def take(self, values: Mapping[int, Any]) -> None:
        """Copy what is there of ``{id of the variable: array}``."""
        keys = {name: id(reference()) for name, reference in self.variables.items()}
        self.values = {n: np.array(values[key]) for n, key in keys.items() if key in values}


class HostOdometer(Odometer):
    """Counts and copies on the host, as the engine reports: update by update or step by step."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self._count = 0
        self._clock: Clock | None = None

    def reading(self) -> int:
        """Return the number of updates so far."""
        ENGINE.flush()
        self._count += self._clock.ticks() if self._clock else 0
        return self._count

    def shot(self, variables: Mapping[str, Any], at: int) -> Shot:
        """Return a shot of ``{name: variable}``, to be attached."""
        return HostShot(variables, at)

    def passed(self, done: Any) -> None:
        """Have the engine report, with the weights if a shot might want them."""
        live = (ref() for shot in self._pending() for ref in shot.variables.values())
        wanted = {id(variable): variable for variable in live if variable is not None}
        ENGINE.report(self, done, list(wanted.values()))

    def tick(self, done: bool) -> bool:
        """Count an update if one was ``done``; return whether a shot wants the weights."""
        self._count += done
        return done and any(shot.at == self._count for shot in self._pending())

    def take(self, values: Mapping[int, Any]) -> None:
        """Give ``{id of the variable: array}`` to the shots whose turn it is."""
        for shot in self._pending():
            if shot.at == self._count:
                shot.take(values)

    def run_begins(self, model: Any, values: Mapping[int, Any]) -> None:
        """Find the optimizer of ``model`` that moves these weights, and read its count."""
        self.reading()
        movers = [part for part in parts(model.optimizer) if self._moves(part)]
        self._clock = Clock(movers[-1], values) if movers else None  # the innermost

    def stepped(self, values: Mapping[int, Any]) -> None:
        """Count later, unless a shot might want the weights: reading would wait for the device."""
        if self._clock is None:
            return
        self._clock.stepped(values)
        if any(self._pending()):
            self.reading()
            self.take(values)

    def _pending(self) -> Iterator[Any]:
        return (shot for shot in self._shots() if shot.values is None)


class Clock:
    """What an optimizer's own count says of updates, one training run of ``fit`` long."""

    def __init__(self, optimizer: Any, values: Mapping[int, Any]) -> None:
        self._key = id(optimizer._iterations)
        self._every = optimizer.gradient_accumulation_steps or 1
        self._now: Any = int(values[self._key])
        self._read = self._now // self._every

    def stepped(self, values: Mapping[int, Any]) -> None:
        """Remember the count; a copy, for the next step gives the memory of the array away."""
        self._now = keras.ops.copy(values[self._key])

    def ticks(self) -> int:
        """Return the updates since the last time."""
        before, self._read = self._read, int(self._now) // self._every
        return self._read - before


_odometers: MutableMapping[Any, Odometer] = weakref.WeakKeyDictionary()


def odometer_of(model: Any) -> Odometer:
    """Return the odometer of ``model``."""
    if model not in _odometers:
        _odometers[model] = GraphOdometer(model) if ENGINE.in_graph else HostOdometer(model)
    return _odometers[model]
