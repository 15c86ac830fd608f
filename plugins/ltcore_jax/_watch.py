"""One training run of a Flax module, watched: updates, snapshots, the first input."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from ltcore.arrays import Array
from ltcore.errors import CapabilityError
from ltcore_jax._keeper import Keeper, keeper_of, mark_of
from ltcore_jax._layouts import to_canonical
from ltcore_jax._names import inventory
from ltcore_jax._patch import Patch
from ltcore_jax._updates import listen, settle
from ltcore_jax._walk import is_traced, nodes

_COMPILED: tuple[type, ...] = tuple(
    {type(nnx.jit(lambda: None, graph=graph)) for graph in (True, False)}
)
"""What `nnx.jit` makes of a function."""


class JaxWatch:
    """The `ltcore.backend.Watch` of a Flax module; it does not keep the module alive.

    The callback is called after every update outside of compiled steps, and after every call of a
    step that `nnx.jit` compiled. Steps that `jax.jit` compiled are only counted.
    """

    def __init__(
        self, model: nnx.Module, steps: Sequence[int], callback: Callable[[int], None] | None
    ) -> None:
        found = inventory(model)
        self._model = weakref.ref(model)
        self._keeper = keeper_of(model, found)
        self._layouts = {name: slot.layout for name, slot in found.slots.items()}
        self._start = self._keeper.watch(steps, found)
        self._wanted = [self._start + step for step in steps]
        self._taken: dict[int, dict[str, Array]] = {}
        self._end: int | None = None
        self._seen: Any = None
        self._callback, self._told = callback, self._start
        listen(self._keeper)
        me = weakref.ref(self)
        self._patches = _ears_on_calls(type(model), me)
        if callback is not None:
            self._patches.append(Patch(nnx.Optimizer, "update", _told_after(me)))
            self._patches += [Patch(cls, "__call__", _told_after(me)) for cls in _COMPILED]
        self._leave = weakref.finalize(
            self, _left, self._model, self._keeper, self._wanted, self._patches
        )
        self._leave.atexit = False

    @property
    def steps(self) -> int:
        """Updates since the watch began."""
        return (self._keeper.updates() if self._end is None else self._end) - self._start

    @property
    def snapshots(self) -> Mapping[int, dict[str, Array]]:
        """Params and buffers at the steps asked for and reached.

        Raises:
            CapabilityError: the optimizer was given a part of the model; names what it did not see.
        """
        if self._end is None:
            self._collect()
        return self._taken

    @property
    def first_input(self) -> Any:
        """One example of the first input; zeros of its shape where only a compiled step saw it."""
        return self._seen if self._seen is not None or not self.steps else self._keeper.example

    def stop(self) -> None:
        """Stop counting; what was seen stays readable. Twice is fine."""
        if self._end is not None:
            return
        self._seen = self.first_input
        try:
            self._collect()
        finally:
            self._end = self._keeper.updates()
            self._leave()

    def see(self, model: Any, args: Sequence[Any]) -> None:
        """Take note of a call of the model, or of what a compiled step has in its place."""
        if self._seen is not None or not args or not all(hasattr(x, "shape") for x in args):
            return
        if not self._is_ours(model):
            return
        if any(map(is_traced, args)):
            self._seen = _packed([np.zeros((1, *x.shape[1:]), x.dtype) for x in args])
            self._keeper.example = self._seen
        else:
            self._seen = _packed([np.array(x[:1]) for x in args])

    def _is_ours(self, model: Any) -> bool:
        """Whether it is the model, or what a transformation has in its place; not a clone."""
        if model is self._model():
            return True
        mark = mark_of(model)
        if mark is None or not mark.is_root or mark.keeper is not self._keeper:
            return False
        variables = (node for _, node in nodes(model) if isinstance(node, nnx.Variable))
        return any(is_traced(variable.get_value()) for variable in variables)

    def tell(self) -> None:
        """Call back, if there were updates since the last time and Python is not compiling."""
        now = self._keeper.count[...]
        if self._callback is None or is_traced(now):
            return
        done = int(now) - self._start
        if done > self._told - self._start:
            self._told = int(now)
            jax.effects_barrier()
            self._callback(done)

    def _collect(self) -> None:
        """Take over the snapshots that were taken."""
        self._keeper.updates()
        for number in self._wanted:
            shot = self._keeper.shots.get(number)
            if shot is None or number - self._start in self._taken:
                continue
            hidden = sorted(self._layouts.keys() - shot.keys())
            if hidden:
                raise CapabilityError(
                    f"{hidden} cannot be seen from an update of a part of the model; give "
                    "optimizer.update the whole model, or rewind to initialization (0) or 'trained'"
                )
            self._taken[number - self._start] = {
                name: to_canonical(shot[name], layout) for name, layout in self._layouts.items()
            }


def _left(
    model: "weakref.ref[nnx.Module]", keeper: Keeper, wanted: Sequence[int], patches: list[Patch]
) -> None:
    """Undo what a watch did to model and classes when it ends, be it that nobody has it any more.

    That may be while a step is traced, of which this is to be no part.
    """
    alive = model()
    with jax.ensure_compile_time_eval():
        keeper.unwatch(wanted, None if alive is None else inventory(alive))
    for patch in reversed(patches):
        patch.remove()
    settle()


def _packed(arrays: list[Array]) -> Any:
    return arrays[0] if len(arrays) == 1 else tuple(arrays)


def _ears_on_calls(cls: type, me: "weakref.ref[JaxWatch]") -> list[Patch]:
    """Return a patch on the class that says what calling a model of ``cls`` does, if any does."""
    owner = next((one for one in cls.__mro__ if "__call__" in vars(one)), None)

    def called(original: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        watch = me()
        if watch is not None:
            watch.see(model, args)
        return original(model, *args, **kwargs)

    return [] if owner is None else [Patch(owner, "__call__", called)]


def _told_after(me: "weakref.ref[JaxWatch]") -> Callable[..., Any]:
    def told(original: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        watch = me()
        if watch is not None:
            watch.tell()
        return result

    return told
