"""The state inside Keras optimizers: which there are, what they remember, how to empty it."""

import contextlib
import copy
import warnings
import weakref
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import keras

from ltcore.errors import CapabilityError
from ltcore_keras._engine import ENGINE

_seen: MutableMapping[Any, "weakref.WeakSet[Any]"] = weakref.WeakKeyDictionary()
_configs: MutableMapping[Any, dict[str, Any]] = weakref.WeakKeyDictionary()


def note_seen(model: Any, optimizer: Any) -> None:
    """Remember that ``optimizer`` trains ``model``, compiled into it or not, and how it began.

    Called before its first update, so that what callbacks do to the learning rate is not in it.
    """
    _seen.setdefault(model, weakref.WeakSet()).add(optimizer)
    if optimizer not in _configs and _of_keras(optimizer) and ENGINE.has_values(optimizer):
        with ENGINE.outside_graph(), contextlib.suppress(NotImplementedError):
            _configs[optimizer] = _config(optimizer)


def optimizers_of(model: Any) -> list[Any]:
    """Return the optimizers that are known to train ``model``, the compiled one first."""
    compiled = list(parts(getattr(model, "optimizer", None)))
    inside = {id(optimizer) for optimizer in compiled}
    return compiled + [o for o in _seen.get(model, ()) if id(o) not in inside]


def parts(optimizer: Any) -> Iterator[Any]:
    """Yield ``optimizer`` and the ones that it is made of; nothing for None."""
    if optimizer is None:
        return
    yield optimizer
    inner = getattr(optimizer, "inner_optimizer", None)
    for part in [*([inner] if inner else ()), *getattr(optimizer, "optimizers", ())]:
        yield from parts(part)


def clear_slots(optimizer: Any, mask_of: Callable[[Any], Any]) -> None:
    """Zero momentum, averages and the like where ``mask_of(variable)`` prunes."""
    if not _of_keras(optimizer):
        ENGINE.clear_foreign(optimizer, mask_of)
        return
    if not optimizer.built:
        return
    variables = optimizer._trainable_variables
    for name, slots in vars(optimizer).items():
        if not isinstance(slots, list) or name in ("_variables", "_trainable_variables"):
            continue
        if len(slots) != len(variables):
            continue
        for variable, slot in zip(variables, slots, strict=True):
            mask = mask_of(variable)
            if mask is None or not isinstance(slot, keras.Variable):
                continue
            if tuple(slot.shape) == tuple(variable.shape):
                slot.assign(ENGINE.where_kept(mask, slot))


def fresh_optimizers(model: Any, step: int) -> None:
    """Put every optimizer known to train ``model`` in its initial state, its count at ``step``.

    Known are the compiled one and all that were at work while somebody watched or held the model.
    In place: training steps that a user has compiled around an optimizer go on working.
    """
    whole = [getattr(model, "optimizer", None)]
    inside = {id(part) for part in parts(whole[0])}
    for optimizer in [*whole, *(o for o in optimizers_of(model) if id(o) not in inside)]:
        if optimizer is not None:
            _reset(model, optimizer, step)


def _reset(model: Any, optimizer: Any, step: int) -> None:
    if not _of_keras(optimizer):
        ENGINE.reset_foreign(optimizer)
        return
    if not optimizer.built:
        optimizer.build(model.trainable_variables)
    twin = _twin(optimizer)
    for part in parts(twin):
        part._iterations.assign(step * (part.gradient_accumulation_steps or 1))
    old, new = optimizer.variables, twin.variables
    if [tuple(v.shape) for v in old] == [tuple(v.shape) for v in new]:
        for variable, initial in zip(old, new, strict=True):
            variable.assign(initial)
    else:  # a schedule took the place of the learning rate, or the other way round
        model.optimizer = twin
        _configs[twin] = _configs[optimizer]
        ENGINE.retrace(model)


def _twin(optimizer: Any) -> Any:
    """Return a new, built optimizer of the same class and configuration as when first seen.

    What a callback did to the learning rate since must not leak into later rounds.

    Raises:
        CapabilityError: the optimizer cannot be made from its own configuration.
    """
    try:
        if optimizer not in _configs:
            _configs[optimizer] = _config(optimizer)
        twin = type(optimizer).from_config(_copied(_configs[optimizer]))
    except Exception as error:
        raise CapabilityError(
            f"optimizer {type(optimizer).__name__} cannot be made anew from its get_config(): "
            f"{type(error).__name__}: {error}; compile the model with a new optimizer every round"
        ) from error
    twin.build(optimizer._trainable_variables)
    return twin


def _of_keras(optimizer: Any) -> bool:
    return isinstance(optimizer, keras.optimizers.Optimizer)


def _config(optimizer: Any) -> dict[str, Any]:
    with warnings.catch_warnings():
        # Keras 3.15 with numpy 2.4: reading the learning rate makes numpy warn.
        warnings.filterwarnings("ignore", "__array__ impl", DeprecationWarning)
        config: dict[str, Any] = optimizer.get_config()
    rate = getattr(optimizer, "_learning_rate", None)
    if "learning_rate" in config and not isinstance(rate, keras.Variable):
        config["learning_rate"] = rate  # a schedule of the user's own need not be loadable
    return config


def _copied(config: dict[str, Any]) -> dict[str, Any]:
    """Return a copy that ``from_config`` may empty; a schedule in it stays the same object."""
    rate = config.get("learning_rate")
    memo = {} if rate is None else {id(rate): rate}
    return copy.deepcopy(config, memo)
