"""Counts a Keras model's updates and takes snapshots on the way, inside compiled training too.

Counter and snapshot are variables, so they work in a compiled step, with several steps in one
execution, and under XLA: the step that reaches the number copies, the others skip a branch.
"""

import weakref
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple

import keras

from ltcore.arrays import Array
from ltcore.errors import HoldError
from ltcore_keras._engine import check_single_replica, keys, outside_graph, retrace
from ltcore_keras._layouts import to_numpy
from ltcore_keras._optimizers import note_seen
from ltcore_keras._slots import Slot
from ltcore_keras._updates import listen, unlisten, unlisten_with


class Odometer:
    """Counts the updates of one model while it lives.

    It outlives a watch: a training step of the user's own that was traced under the first watch
    goes on counting under the next.
    """

    def __init__(self, model: Any) -> None:
        self._model = weakref.ref(model)
        with outside_graph():
            self.count = keras.Variable(0, dtype="int64", trainable=False, name="updates")
        self._reference: weakref.ref[Any] | None = None
        self._watches: list[KerasWatch] = []
        unlisten_with(model, self)

    def attach(self, watch: "KerasWatch") -> None:
        """Tell ``watch`` of every update."""
        self._reference = None
        self._watches.append(watch)
        listen(self)
        retrace(self._model())

    def detach(self, watch: "KerasWatch") -> None:
        """Stop telling ``watch``."""
        self._watches.remove(watch)
        if not self._watches:
            unlisten(self)
        retrace(self._model())

    def before_update(
        self, optimizer: Any, gradients: list[Any], variables: list[Any]
    ) -> list[Any]:
        """Note the optimizer, before it does anything."""
        model = self._model()
        given = {id(variable) for variable in variables}
        if model is not None and any(not given.isdisjoint(keys(v)) for v in model.weights):
            note_seen(model, optimizer)
        return gradients

    def after_update(self, optimizer: Any, variables: list[Any]) -> None:
        """Nothing to do."""

    def finished(self, optimizer: Any, variables: list[Any]) -> None:
        """Count an update of this model, once also where several optimizers share it."""
        if not self._counts(variables):
            return
        done = _is_update(optimizer)
        self.count.assign_add(keras.ops.cast(done, "int64"))
        for watch in self._watches:
            watch.passed(self.count, done)

    def _counts(self, variables: list[Any]) -> bool:
        """Whether this is an update of the variable that stands for the model: the first met."""
        given = {id(variable) for variable in variables}
        if self._reference is None:
            model = self._model()
            weights = model.weights if model is not None else ()
            first = next((v for v in weights if not given.isdisjoint(keys(v))), None)
            self._reference = weakref.ref(first) if first is not None else None
        reference = self._reference() if self._reference else None
        return reference is not None and not given.isdisjoint(keys(reference))


def _is_update(optimizer: Any) -> Any:
    """Whether the last call changed weights, and did not just accumulate gradients."""
    steps = optimizer.gradient_accumulation_steps
    if not steps:
        return True
    return keras.ops.equal(keras.ops.mod(optimizer._iterations, steps), 0)


class Shadow(NamedTuple):
    """Where a snapshot goes, and whether it is there."""

    variables: dict[str, Any]
    taken: Any


def _twin(variable: Any) -> Any:
    """Return an untracked variable of the same shape and dtype."""
    zeros = keras.ops.zeros(tuple(variable.shape), variable.dtype)
    return keras.Variable(zeros, dtype=variable.dtype, trainable=False, name="snapshot")


_odometers: MutableMapping[Any, Odometer] = weakref.WeakKeyDictionary()


class KerasWatch:
    """The `ltcore.backend.Watch` of a Keras model.

    Args:
        model: the model.
        slots: where its parameters and buffers live.
        read: returns canonical arrays for ``{name: variable}``.
        steps: the numbers of updates after which to take a snapshot.
        example: made-up inputs of the right shapes, None where they are not known.
    """

    def __init__(
        self,
        model: Any,
        slots: Mapping[str, Slot],
        read: Callable[[Mapping[str, Any]], dict[str, Array]],
        steps: Sequence[int],
        example: Any,
    ) -> None:
        check_single_replica(model)
        self._example = example
        self._odometer = _odometers.setdefault(model, Odometer(model))
        self._read = read
        self._live = {name: weakref.ref(slot.variable) for name, slot in slots.items()}
        self._shadows = {step: self._shadow(slots) for step in steps}
        self._start = self._reading()
        self._end: int | None = None
        self._taken: dict[int, dict[str, Array]] = {}
        self._odometer.attach(self)

    @property
    def steps(self) -> int:
        """Updates since the watch began."""
        return (self._reading() if self._end is None else self._end) - self._start

    @property
    def first_input(self) -> Any:
        """Zeros of the shape that the model takes: in compiled training nobody sees values."""
        return self._example if self.steps else None

    @property
    def snapshots(self) -> Mapping[int, dict[str, Array]]:
        """Params and buffers at the steps asked for and reached."""
        for step in [step for step in self._shadows if step <= self.steps]:
            shadow = self._shadows[step]
            if not bool(to_numpy(shadow.taken)):
                raise HoldError(
                    f"update {step} was counted, but no snapshot was taken: the training step is a "
                    "tf.function that was traced before the watch began; make it anew"
                )
            self._taken[step] = self._read(shadow.variables)
            del self._shadows[step]
        return self._taken

    def stop(self) -> None:
        """Stop counting; what was seen stays readable. Twice is fine."""
        if self._end is None:
            self._end = self._reading()
            self._odometer.detach(self)
            self._shadows = {step: s for step, s in self._shadows.items() if step <= self.steps}

    def passed(self, count: Any, done: Any) -> None:
        """Copy everything into the shadow whose turn it is; part of the training step."""
        for step, shadow in self._shadows.items():
            turn = keras.ops.logical_and(done, keras.ops.equal(count, self._start + step))
            keras.ops.cond(turn, lambda shadow=shadow: self._copy(shadow), lambda: None)

    def _copy(self, shadow: Shadow) -> None:
        for name, variable in shadow.variables.items():
            live = self._live[name]()
            if live is not None:
                variable.assign(live)
        shadow.taken.assign(True)

    def _shadow(self, slots: Mapping[str, Slot]) -> Shadow:
        with outside_graph():
            taken = keras.Variable(False, dtype="bool", trainable=False, name="taken")
            return Shadow({name: _twin(slot.variable) for name, slot in slots.items()}, taken)

    def _reading(self) -> int:
        return int(to_numpy(self._odometer.count))
