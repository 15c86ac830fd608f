"""Layers of a copy of a model, whose calls somebody sees.

Flax has no hooks on calls. The copy's layers become instances of a subclass made here; the
user's model and its classes stay as they are.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, TypeAlias

from flax import nnx

_ATTRIBUTE = "_ltcore_observer"

Call: TypeAlias = Callable[..., Any]
Observer: TypeAlias = Callable[[Any, Call, Sequence[Any], Mapping[str, Any]], Any]
"""``observer(layer, call, args, kwargs)`` returns what ``call(layer, *args, **kwargs)`` does."""


def observe(layer: nnx.Module, observer: Observer) -> None:
    """Let ``observer`` make the calls of ``layer``."""
    cls: Any = type(layer)
    object.__setattr__(layer, "__class__", _observed(cls))
    setattr(layer, _ATTRIBUTE, observer)


@cache
def _observed(cls: Any) -> type:
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807  a method of the class
        return vars(self)[_ATTRIBUTE](self, cls.__call__, args, kwargs)

    made: type = type(cls)(cls.__name__, (cls,), {"__call__": __call__})
    return made
