"""What rides on a model while it trains: masks, a count, and wishes for snapshots.

A compiled step sees neither the model nor its variables: Flax takes them apart and makes new ones
inside. What gets through is what is static, so every layer carries a `Mark` that leads to the
model's `Keeper`. JAX traces a step anew when marks come or go, whenever it was compiled, and falls
back on what it had when they are gone. What may change under way lies in `jax.Ref`, mutable arrays
that a compiled step reads when it runs: other masks need no new trace.
"""

import weakref
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ltcore.arrays import Array
from ltcore.errors import CapabilityError
from ltcore_jax._names import Inventory
from ltcore_jax._walk import Path, array_of, nodes

ATTRIBUTE = "_ltcore"
MAX_SNAPSHOTS = 256
_NEVER = -1


@dataclass(frozen=True)
class Mark:
    """What a layer carries: static, and equal whenever a compiled step need not change.

    Copies and pickles of the layer carry None instead.

    Attributes:
        keeper: of the model.
        names: ``(path from the layer, parameter name)`` of the variables on it.
        held: the names that have masks.
        watching: whether updates are counted.
        is_root: whether the layer is the model itself.
    """

    keeper: "Keeper"
    names: tuple[tuple[Path, str], ...]
    held: frozenset[str]
    watching: bool
    is_root: bool

    def __deepcopy__(self, _memo: Any) -> None:
        return None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()

    def __repr__(self) -> str:
        return f"Mark(held={len(self.held)}, watching={self.watching})"


class Keeper:
    """The state of a model's holds and watches, which outlives them for steps compiled under them.

    It does not keep the model alive.

    Attributes:
        masks: ``{parameter name: mask in native axes}``.
        shapes: ``{parameter name: shape in native axes}``, as of the last hold or watch.
        count: updates so far.
        reference: the position of the parameter by which updates are counted; -1 for none yet.
        wanted: numbers of updates after which to take a snapshot.
        stale: for each parameter, whether the optimizer that updates it first is to start anew.
        start: the count with which such an optimizer starts.
        shots: ``{number of updates: {parameter name: array in native axes}}``.
        example: zeros of the shape of an input that a compiled step saw.
    """

    def __init__(self, model: nnx.Module, found: Inventory) -> None:
        self.model = weakref.ref(model)
        self.order = {name: position for position, name in enumerate(found.slots)}
        self.masks: dict[str, Any] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.count = jax.new_ref(jnp.int32(0))
        self.reference = jax.new_ref(jnp.int32(_NEVER))
        self.wanted = jax.new_ref(jnp.full(MAX_SNAPSHOTS, _NEVER, jnp.int32))
        self.stale = jax.new_ref(jnp.zeros(len(found.slots), bool))
        self.start = jax.new_ref(jnp.int32(0))
        self.shots: dict[int, dict[str, Array]] = {}
        self.example: Any = None
        self._held: frozenset[str] = frozenset()
        self._watches = 0
        self._wishes: list[int] = []
        self._marked: list[weakref.ref[nnx.Module]] = []

    @property
    def at_work(self) -> bool:
        """Whether anybody holds or watches the model."""
        return bool(self._held or self._watches) and self.model() is not None

    def marks(self, layer: nnx.Module) -> bool:
        """Whether it was this keeper that marked ``layer``, not a clone of it."""
        return any(ref() is layer for ref in self._marked)

    def hold(self, masks: Mapping[str, Array], found: Inventory) -> None:
        """Hold native ``masks`` from now on, and nothing else.

        Raises:
            CapabilityError: a layer is at work for another keeper, or is spread over several
                devices.
        """
        self._check_free(found)
        for name in self.masks.keys() - masks.keys():
            self.masks[name][...] = jnp.ones(self.masks[name].shape, bool)
        for name, mask in masks.items():
            value = _one_device(array_of(found.slots[name].variable), name)
            on_device = jax.device_put(jnp.array(mask, copy=True), value.sharding)
            if name in self.masks and self.masks[name].shape == mask.shape:
                self.masks[name][...] = on_device
            else:
                self.masks[name] = jax.new_ref(on_device)
        self._held = frozenset(masks)
        self.enforce(found)
        self._mark(found)

    def enforce(self, found: Inventory) -> None:
        """Zero every pruned weight now."""
        for name in self._held & found.slots.keys():
            zero(found.slots[name].variable, self.masks[name])

    def release(self, found: Inventory) -> None:
        """Hold nothing; a step that still carries a mark finds masks that keep all."""
        for mask in self.masks.values():
            mask[...] = jnp.ones(mask.shape, bool)
        self._held = frozenset()
        self._mark(found)

    def watch(self, steps: Iterable[int], found: Inventory) -> int:
        """Begin a watch that wants snapshots ``steps`` updates from now; return the count now.

        Raises:
            CapabilityError: more snapshots are wanted than a compiled step looks out for, a layer
                is at work for another keeper, or the model is spread over several devices.
        """
        self._check_free(found)
        for name, slot in found.slots.items():
            _one_device(array_of(slot.variable), name)
        now = self.updates()
        wishes = [now + step for step in steps]
        if len(self._wishes) + len(wishes) > MAX_SNAPSHOTS:
            raise CapabilityError(
                f"{len(wishes)} snapshots are wanted; up to {MAX_SNAPSHOTS} at a time can be had"
            )
        self.reference[...] = jnp.int32(_NEVER)
        self._watches += 1
        self._wish(self._wishes + wishes)
        self._mark(found)
        return now

    def unwatch(self, steps: Iterable[int], found: Inventory | None) -> None:
        """End a watch that wanted snapshots after the updates numbered ``steps``."""
        rest = list(self._wishes)
        for step in steps:
            rest.remove(step)
        self._wish(rest)
        self._watches -= 1
        for step in self.shots.keys() - set(rest):
            del self.shots[step]
        if found is not None:
            self._mark(found)

    def updates(self) -> int:
        """Return the count, when all that is under way is done."""
        jax.effects_barrier()
        return int(self.count[...])

    def start_anew(self, step: int) -> None:
        """Have every optimizer start without state, its count at ``step``, at its next update."""
        self.start[...] = jnp.int32(step)
        self.stale[...] = jnp.ones(len(self.order), bool)

    def take(self, number: int, values: Mapping[str, Any]) -> None:
        """Take a snapshot."""
        if number in self._wishes:
            self.shots[number] = {name: np.array(value) for name, value in values.items()}

    def wants(self, number: int) -> bool:
        """Whether a snapshot is wanted after so many updates."""
        return number in self._wishes

    def _wish(self, numbers: list[int]) -> None:
        self._wishes = numbers
        padded = np.full(MAX_SNAPSHOTS, _NEVER, np.int32)
        padded[: len(numbers)] = numbers
        self.wanted[...] = jnp.asarray(padded)

    def _check_free(self, found: Inventory) -> None:
        """Raise where a layer has the mark of another keeper: there is room for one."""
        for layer in found.layers:
            other = _owner(layer.module)
            if other is not None and other is not self:
                where = ".".join(map(str, layer.path)) or type(layer.module).__name__
                raise CapabilityError(
                    f"layer {where!r} is held or watched already, through another model that has "
                    f"it too ({type(other.model()).__name__}); release that hold or stop that "
                    "watch first, or hold and watch the model around both"
                )

    def _mark(self, found: Inventory) -> None:
        """Give every layer the mark that says how things stand, or none."""
        root = self.model()
        gone = [layer for ref in self._marked if (layer := ref()) is not None]
        layers = {id(layer.module): (layer.module, layer.names) for layer in found.layers}
        layers.setdefault(id(root), (root, {}))
        for layer in [*gone, *(layer for layer, _ in layers.values())]:
            if _owner(layer) in (None, self):  # what copies have in its place goes, too
                unmark(layer)
        self._marked = []
        if not self.at_work:
            return
        self.shapes = {n: jnp.shape(slot.variable.get_value()) for n, slot in found.slots.items()}
        for layer, names in layers.values():
            if _owner(layer) is not None:
                continue  # it came into this model while another was at work on it
            mark = Mark(
                self,
                tuple(names.items()),
                self._held & set(names.values()),
                bool(self._watches),
                layer is root,
            )
            self._marked.append(weakref.ref(layer))
            setattr(layer, ATTRIBUTE, mark)


def mark_of(layer: Any) -> Mark | None:
    """Return the mark that a layer carries."""
    found: Mark | None = vars(layer).get(ATTRIBUTE)
    return found


def _owner(layer: Any) -> Keeper | None:
    """Return the keeper at work that marked ``layer`` itself, not what it is a clone of."""
    mark = mark_of(layer)
    if mark is None or not mark.keeper.at_work or not mark.keeper.marks(layer):
        return None
    return mark.keeper


def unmark(layer: Any) -> None:
    """Take its mark, or what a copy has in its place, from a layer."""
    if ATTRIBUTE in vars(layer):
        delattr(layer, ATTRIBUTE)


def marked(model: Any) -> Iterator[tuple[Path, Any, Mark]]:
    """Yield ``(path, layer, mark)`` for every layer in ``model`` that is marked."""
    for path, node in nodes(model):
        if isinstance(node, nnx.Module) and (mark := mark_of(node)) is not None:
            yield path, node, mark


def zero(variable: nnx.Variable[Any], mask: Any) -> None:
    """Zero what ``mask`` prunes; not by a product: -1 * 0 is -0.0, and NaN * 0 is NaN."""
    variable.set_value(kept(mask, array_of(variable)))


def kept(mask: Any, value: Any) -> Any:
    """Return ``value`` with 0.0 where ``mask`` prunes."""
    return jnp.where(mask[...], value, jnp.zeros((), value.dtype))


def _one_device(value: Any, name: str) -> Any:
    devices = len(value.sharding.device_set)
    if devices > 1:
        raise CapabilityError(
            f"{name!r} is spread over {devices} devices; holding and watching are there for one "
            "device only"
        )
    return value


_keepers: MutableMapping[nnx.Module, Keeper] = weakref.WeakKeyDictionary()


def keeper_of(model: nnx.Module, found: Inventory) -> Keeper:
    """Return the keeper of ``model``, made anew where its parameters are others than before."""
    keeper = _keepers.get(model)
    if keeper is None or (list(keeper.order) != list(found.slots) and not keeper.at_work):
        keeper = _keepers[model] = Keeper(model, found)
    return keeper
