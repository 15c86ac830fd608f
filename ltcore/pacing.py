"""Doing something every so many updates of a training that somebody else runs."""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from ltcore.backend import Backend
from ltcore.errors import HoldError
from ltcore.holds import Hold
from ltcore.parameters import Structure
from ltcore.rewind_points import check_step


@dataclass(frozen=True, slots=True)
class Beats:
    """The numbers of updates after which something is due: from ``begin``, ``every`` so many.

    Attributes:
        every: updates from one to the next.
        begin: the first.
        end: the last, whether or not it is a multiple; None for no last one.
    """

    every: int
    begin: int
    end: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "every", check_step(self.every, "every", least=1))
        object.__setattr__(self, "begin", check_step(self.begin, "begin"))
        if self.end is not None:
            object.__setattr__(self, "end", check_step(self.end, "end", least=self.begin))

    def last(self, done: int, steps: int) -> int | None:
        """Return the last that is due after ``steps`` updates, if it comes after ``done``."""
        if steps < self.begin:
            return None
        reached = steps if self.end is None else min(steps, self.end)
        due = self.begin + (reached - self.begin) // self.every * self.every
        if reached == self.end:
            due = reached
        return due if due > done else None


class Pacer:
    """What happens on the beats of one training; a subclass says it in `_act`.

    It lasts until it is released or its model dies, whether or not anyone keeps the handle. As a
    context manager it releases on leaving. A loss or batches that refer to the model keep it alive
    until then.

    Where one call of a compiled training makes several updates, it acts once, after the call,
    for the last beat among them.
    """

    def __init__(
        self,
        backend: Backend,
        model: Any,
        structure: Structure,
        beats: Beats,
        snapshots: Sequence[int] = (),
    ) -> None:
        self.backend = backend
        self.beats = beats
        self._model = weakref.ref(backend.root(model))
        self._done = -1
        self._told = 0
        self._released = False
        self._watch = backend.watch(model, structure, snapshots, self._hear)
        _running.setdefault(backend.root(model), []).append(self)

    @property
    def model(self) -> Any:
        """The model.

        Raises:
            HoldError: the model is gone.
        """
        model = self._model()
        if model is None:
            raise HoldError("the model no longer exists")
        return model

    @property
    def steps(self) -> int:
        """Updates seen since this began."""
        return max(self._watch.steps, self._told)

    @property
    def released(self) -> bool:
        """Whether it was released."""
        return self._released

    def update(self, steps: int | None = None) -> None:
        """Do now what is due, where ltcore is not called after updates.

        Args:
            steps: the number of updates so far, where ltcore cannot count them either.
        """
        if steps is not None:
            self._told = check_step(steps, "steps")
        self._hear(self.steps)

    def release(self) -> None:
        """Stop. Twice is fine."""
        if self._released:
            return
        self._released = True
        self._watch.stop()
        model = self._model()
        if model is not None:
            _running[model].remove(self)

    def _hear(self, steps: int) -> None:
        due = None if self._released else self.beats.last(self._done, steps)
        if due is not None:
            self._act(due)
            self._done = due  # what failed is due still

    def _act(self, step: int) -> None:
        """Do what is due at ``step``."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


class MaskPacer(Pacer):
    """A `Pacer` that changes the masks of a hold; it and the hold go together.

    Attributes:
        hold: on the model.
    """

    def __init__(
        self, backend: Backend, model: Any, structure: Structure, beats: Beats, hold: Hold
    ) -> None:
        self.hold = hold
        super().__init__(backend, model, structure, beats)
        hold.mover = self

    def release(self) -> None:
        """Stop, and release the hold. Twice is fine."""
        self.stop()
        self.hold.release()

    def stop(self) -> None:
        """Stop, and leave the hold as it is. Twice is fine."""
        super().release()
        if self.hold.mover is self:
            self.hold.mover = None

    def _hear(self, steps: int) -> None:
        if self.hold.released:  # by hand: whoever frees the weights wants them free
            self.stop()
        super()._hear(steps)

    def __enter__(self) -> Self:
        self.hold.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        self.hold.__exit__(kind, error, trace)  # which of nested blocks releases, it knows


_running: weakref.WeakKeyDictionary[Any, list[Pacer]] = weakref.WeakKeyDictionary()
