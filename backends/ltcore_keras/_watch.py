"""One training run of a Keras model, watched: how many updates, and the weights after some."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ltcore.arrays import Array
from ltcore.errors import CapabilityError, HoldError
from ltcore_keras._engine import ENGINE
from ltcore_keras._odometer import Shot, odometer_of
from ltcore_keras._slots import Slot


class KerasWatch:
    """The `ltcore.backend.Watch` of a Keras model.

    Args:
        model: the model.
        slots: where its parameters and buffers live.
        read: returns canonical arrays for ``{name: variable}``.
        steps: the numbers of updates after which to take a snapshot.
        example: made-up inputs of the right shapes, None where they are not known.
        callback: called with the number of updates so far, when Python runs after some, while
            somebody keeps the watch.
    """

    def __init__(
        self,
        model: Any,
        slots: Mapping[str, Slot],
        read: Callable[[Mapping[str, Any]], dict[str, Array]],
        steps: Sequence[int],
        example: Any,
        callback: Callable[[int], None] | None = None,
    ) -> None:
        ENGINE.check_trains(model)
        self._example = example
        self._odometer = odometer_of(model)
        self._read = read
        self._live = {name: weakref.ref(slot.variable) for name, slot in slots.items()}
        self._buffers = {name for name, slot in slots.items() if _is_buffer(slot)}
        self._start = self._odometer.reading()
        self._end: int | None = None
        variables = {name: slot.variable for name, slot in slots.items()}
        self._shots = [self._odometer.shot(variables, self._start + step) for step in steps]
        self._taken: dict[int, dict[str, Array]] = {}
        self._callback = callback
        self._told = 0
        self._odometer.attach(self._shots, self._look if callback else None)

    @property
    def steps(self) -> int:
        """Updates since the watch began."""
        return (self._odometer.reading() if self._end is None else self._end) - self._start

    @property
    def first_input(self) -> Any:
        """Zeros of the shape that the model takes: in compiled training nobody sees values."""
        return self._example if self.steps else None

    @property
    def snapshots(self) -> Mapping[int, dict[str, Array]]:
        """Params and buffers at the steps asked for and reached.

        Raises:
            HoldError: the training step was compiled before the watch began.
            CapabilityError: buffers cannot be seen from inside the training step; names them.
        """
        now = self._start + self.steps
        for shot in [shot for shot in self._shots if shot.at <= now]:
            self._taken[shot.at - self._start] = self._read(self._whole(shot))
            self._shots.remove(shot)
        return self._taken

    def stop(self) -> None:
        """Stop counting; what was seen stays readable. Twice is fine."""
        if self._end is None:
            self._end = self._odometer.reading()
            self._odometer.detach(self._shots, self._look)
            self._shots = [shot for shot in self._shots if shot.at <= self._end]

    def _look(self) -> None:
        """Call back if there were updates since the last time."""
        now = self.steps
        if self._callback and now != self._told:
            self._told = now  # first: what the callback does may be a moment to look, too
            self._callback(now)

    def _whole(self, shot: Shot) -> dict[str, Any]:
        """Return what the shot shows; weights that no optimizer touched are still in the model."""
        seen = shot.values
        if seen is None:
            raise HoldError(
                f"update {shot.at - self._start} was counted, but no snapshot was taken: the "
                "training step was traced before the watch began (make it anew), or makes several "
                "updates at once"
            )
        hidden = sorted(self._buffers - seen.keys())
        if hidden:
            raise CapabilityError(
                f"the buffers {hidden} cannot be seen from inside a training step of your own; "
                "train with fit, or rewind to initialization (0) or 'trained'"
            )
        return {name: seen[name] if name in seen else live() for name, live in self._live.items()}


def _is_buffer(slot: Slot) -> bool:
    return all(slot.variable is not trained for trained in slot.layer._trainable_variables)
