"""Ears on every update that `nnx.Optimizer` makes, in a compiled step or not.

Two guards, because one alone is wrong: gradients are masked before optax sees them, so pruned
entries count neither in a clipped norm nor in momentum; weights are masked after the update, so no
transformation can move them. State of pruned weights, from before a hold or from noise, is cleared
on the way. All of it is made of array operations: what runs here once, while a step is traced, is
part of the step from then on.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.experimental import io_callback

from ltcore.errors import CapabilityError
from ltcore_jax._keeper import Keeper, Mark, kept, marked, zero
from ltcore_jax._patch import Patch
from ltcore_jax._walk import Path, array_of, child, is_traced

_patches: list[Patch] = []
_listening: "weakref.WeakSet[Keeper]" = weakref.WeakSet()


def listen(keeper: Keeper) -> None:
    """Hear updates for ``keeper`` while it is at work."""
    model = keeper.model()
    if keeper not in _listening and model is not None:
        weakref.finalize(model, settle).atexit = False
    _listening.add(keeper)
    if not _patches:
        _patches.append(Patch(nnx.Optimizer, "update", _update))


def settle() -> None:
    """Leave the optimizers alone once nobody is at work."""
    if not any(keeper.at_work for keeper in _listening):
        _listening.clear()
        while _patches:
            _patches.pop().remove()


@dataclass(frozen=True, slots=True)
class Touched:
    """A variable of the model that an update changes.

    Attributes:
        path: where it is in the model that the update was given.
        variable: the variable, perhaps one that a compiled step made for itself.
        name: its parameter name.
        mark: of its layer.
    """

    path: Path
    variable: nnx.Variable[Any]
    name: str
    mark: Mark


def _update(
    original: Callable[..., Any], optimizer: Any, model: Any, grads: Any, **kwargs: Any
) -> Any:
    found = list(_found(model))
    if not found:
        return original(optimizer, model, grads, **kwargs)
    belongs = nnx.filterlib.to_predicate(optimizer.wrt)
    touched = [one for one in found if belongs(one.path, one.variable)]
    _check_whole(touched)
    masks = {
        one.path: one.mark.keeper.masks[one.name] for one in touched if one.name in one.mark.held
    }
    watched = _watched(touched)
    for keeper, its in watched.items():
        _start_anew(keeper, _first(keeper, its), optimizer, model)
    _clear_slots(optimizer, {one.path for one in touched}, masks)
    before = _emitted(optimizer)
    updates = original(optimizer, model, _masked(optimizer, grads, masks), **kwargs)
    for one in touched:
        if one.path in masks:
            zero(one.variable, masks[one.path])
    done = _is_done(before, _emitted(optimizer))
    for keeper, its in watched.items():
        _count(keeper, its, [one for one in found if one.mark.keeper is keeper], done)
    return updates


def _found(model: Any) -> Iterator[Touched]:
    """Yield the variables of held and watched models that are in ``model``.

    A clone has the marks of what it is a clone of. Outside of compiled steps it is told apart.
    """
    for path, layer, mark in marked(model):
        for inside, name in mark.names:
            variable = child(layer, inside)
            if isinstance(variable, nnx.Variable):
                if not is_traced(variable.get_value()) and not mark.keeper.marks(layer):
                    break
                yield Touched((*path, *inside), variable, name, mark)


def _check_whole(touched: list[Touched]) -> None:
    """Raise where a function sees one of several models in a stack: masks and counts are for all.

    Raises:
        CapabilityError: an update is inside `nnx.vmap`; names a parameter.
    """
    for one in touched:
        whole, seen = one.mark.keeper.shapes[one.name], jnp.shape(one.variable.get_value())
        if whole != seen:
            raise CapabilityError(
                f"an update sees {one.name!r} with shape {seen}, the {_what(one)} model has it "
                f"with shape {whole}; inside nnx.vmap nothing can be held or watched: call "
                "optimizer.update on the stacked model, outside of vmap, or train the models "
                "one by one"
            )


def _what(one: Touched) -> str:
    return "held" if one.mark.held else "watched"


def _watched(touched: list[Touched]) -> dict[Keeper, list[Touched]]:
    found: dict[Keeper, list[Touched]] = {}
    for one in touched:
        if one.mark.watching:
            found.setdefault(one.mark.keeper, []).append(one)
    return found


def _masked(optimizer: Any, grads: Any, masks: Mapping[Path, Any]) -> Any:
    """Return gradients as a state, those of pruned weights zero."""
    if not masks:
        return grads
    flat = dict(nnx.to_flat_state(nnx.state(grads, optimizer.wrt, graph=optimizer.graph)))
    for path, mask in masks.items():
        if path in flat:
            flat[path] = flat[path].replace(kept(mask, array_of(flat[path])))
    return nnx.from_flat_state(list(flat.items()))


def _clear_slots(optimizer: Any, paths: set[Path], masks: Mapping[Path, Any]) -> None:
    """Zero the optimizer's state of pruned weights: momentum from before must move no zero.

    What belongs to a parameter is known by the end of its path, and by its shape.
    """
    if not masks:
        return
    slots, _ = jax.tree_util.tree_flatten_with_path(
        optimizer.opt_state, is_leaf=lambda node: isinstance(node, nnx.Variable)
    )
    for keys, slot in slots:
        where = tuple(map(_key, keys))
        owner = max((p for p in paths if where[-len(p) :] == p), key=len, default=())
        if owner in masks and isinstance(slot, nnx.Variable):
            value = array_of(slot)
            if jnp.shape(value) == masks[owner].shape:
                slot.set_value(kept(masks[owner], value))


def _key(entry: Any) -> Any:
    """Return the name or number that an entry of a path in a tree stands for."""
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return getattr(entry, attribute)
    return entry


def _first(keeper: Keeper, touched: list[Touched]) -> int:
    return min(keeper.order[one.name] for one in touched)


def _start_anew(keeper: Keeper, first: int, optimizer: Any, model: Any) -> None:
    """Give the optimizer the state of a new one, if the next update was to start without any."""
    stale = keeper.stale[...][first]
    if not is_traced(stale) and not stale:
        return
    params = nnx.as_pure(nnx.state(model, optimizer.wrt, graph=optimizer.graph))
    step = keeper.start[...]
    fresh = _at_step(optimizer.tx.init(params), step)
    old = nnx.as_pure(optimizer.opt_state)
    chosen = jax.tree.map(lambda new, was: jnp.where(stale, new, was).astype(was.dtype), fresh, old)
    nnx.update(optimizer.opt_state, nnx.state(chosen, graph=optimizer.graph))
    count = optimizer.step.get_value()
    optimizer.step.set_value(jnp.where(stale, step, count).astype(count.dtype))
    keeper.stale[first] = jnp.bool_(False)


_SCHEDULES: Any = tuple(
    found
    for name in ("ScaleByScheduleState", "InjectHyperparamsState", "InjectStatefulHyperparamsState")
    if isinstance(found := getattr(optax, name, None), type)
)


def _at_step(state: Any, step: Any) -> Any:
    """Return an optimizer's state whose schedules are at ``step``."""
    return jax.tree.map(
        lambda node: node._replace(count=step) if isinstance(node, _SCHEDULES) else node,
        state,
        is_leaf=lambda node: isinstance(node, _SCHEDULES),
    )


def _emitted(optimizer: Any) -> list[Any]:
    """Return the counts of updates of transformations that make one out of several gradients."""
    nodes = jax.tree.leaves(
        optimizer.opt_state, is_leaf=lambda node: isinstance(node, optax.MultiStepsState)
    )
    found = [node.gradient_step for node in nodes if isinstance(node, optax.MultiStepsState)]
    return [one.get_value() if isinstance(one, nnx.Variable) else one for one in found]


def _is_done(before: list[Any], after: list[Any]) -> Any:
    """Return whether the call was an update, and did not only gather gradients."""
    if not before:
        return jnp.bool_(True)
    return jnp.any(jnp.stack([b != a for b, a in zip(before, after, strict=True)]))


def _count(keeper: Keeper, touched: list[Touched], found: list[Touched], done: Any) -> None:
    """Count an update, once also where several optimizers have part in it; take a snapshot."""
    positions = jnp.array([keeper.order[one.name] for one in touched], jnp.int32)
    reference = keeper.reference[...]
    reference = jnp.where(reference < 0, _first(keeper, touched), reference).astype(jnp.int32)
    keeper.reference[...] = reference
    counts = jnp.any(positions == reference) & done
    number = keeper.count[...] + counts
    keeper.count[...] = number
    values = {one.name: array_of(one.variable) for one in found}
    if not any(map(is_traced, (number, *values.values()))):
        if counts and keeper.wants(int(number)):
            keeper.take(int(number), values)
        return
    wanted = counts & jnp.any(keeper.wanted[...] == number)
    jax.lax.cond(wanted, _reporter(weakref.ref(keeper), list(values)), _nothing, number, values)


def _reporter(keeper: "weakref.ref[Keeper]", names: list[str]) -> Callable[..., None]:
    """Return a function that hands values over to the host; it runs inside the compiled step."""

    def take(number: Any, values: Mapping[str, Any]) -> None:
        alive = keeper()
        if alive is not None:
            alive.take(int(number), {name: values[name] for name in names})

    def report(number: Any, values: Mapping[str, Any]) -> None:
        io_callback(take, None, number, values, ordered=True)

    return report


def _nothing(*_: Any) -> None:
    return None
