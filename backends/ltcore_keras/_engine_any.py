"""What Keras leaves to the engine below it, as far as Keras alone can do it.

Each engine has a file that overrides what it does in a way of its own; no other file names a
framework below Keras. An engine without a file can describe, read, write and call models.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import keras
import numpy as np

from ltcore.arrays import Array
from ltcore.errors import CapabilityError


class Log(Protocol):
    """Takes down updates and copies of weights, on the host."""

    def tick(self, done: bool) -> bool:
        """Count an update if one was ``done``; return whether to take copies of the weights."""
        ...

    def take(self, values: Mapping[int, Any]) -> None:
        """Take copies, given as ``{id of the Keras variable: array}``."""
        ...


class Ears(Protocol):
    """What hears of updates that no Keras optimizer makes, or of what it makes of them."""

    def remove(self) -> None:
        """Hear no more."""
        ...


class Engine:
    """An engine that cannot train, and what the others share.

    Attributes:
        capabilities: what a backend on this engine claims.
        in_graph: updates are counted, and weights copied, by operations in the training step.
    """

    capabilities: frozenset[str] = frozenset()
    in_graph = False

    def check_trains(self, model: Any) -> None:
        """Raise unless ``model`` can be held and watched.

        Raises:
            CapabilityError: this engine cannot train, or the model trains on several devices.
        """
        raise _no_training()

    def gradients(self, variables: Sequence[Any], loss: Callable[[], Any]) -> list[Any]:
        """Return dense gradients of the sum of ``loss()``, also of variables that are frozen.

        Raises:
            CapabilityError: this engine cannot train.
        """
        raise _no_training()

    def gradients_of(
        self, variables: Sequence[Any], loss: Callable[..., Any]
    ) -> Callable[..., list[Any]]:
        """Return a function of the arguments of ``loss`` that gives `gradients`.

        It is for many calls with arguments of the same shapes: an engine that can compiles it.
        """
        return lambda *args: self.gradients(variables, functools.partial(loss, *args))

    def hessian_product(
        self, variables: Sequence[Any], loss: Callable[[], Any], vector: Sequence[Any]
    ) -> list[Any]:
        """Return the Hessian of the sum of ``loss()`` times ``vector``, as `gradients` does.

        Raises:
            CapabilityError: this engine cannot train, or something has no second derivative.
        """
        raise _no_training()

    def pullback(self, function: Callable[[list[Any]], Any], values: list[Any]) -> list[Any]:
        """Return the dense gradient of ``function(values)``, a scalar, for each of ``values``.

        Raises:
            CapabilityError: this engine cannot train.
        """
        raise _no_training()

    def float64(self) -> AbstractContextManager[None]:
        """Return a context in which tensors of float64 can be made."""
        return nullcontext()

    # values

    def as_numpy(self, tensor: Any) -> Array:
        """Return a copy of the values of a tensor or variable."""
        return np.array(keras.ops.convert_to_numpy(keras.ops.convert_to_tensor(tensor)))

    def has_value(self, tensor: Any) -> bool:
        """Whether a tensor stands for numbers that are known now."""
        return True

    def assign(self, variable: Any, array: Array) -> None:
        """Write a copy of ``array`` into ``variable``."""
        variable.assign(array)

    def keys(self, variable: Any) -> Iterator[int]:
        """Yield what identifies ``variable``, given as a Keras variable or as the engine's own."""
        yield id(variable)
        if isinstance(variable, keras.Variable):
            yield id(variable.value)

    def mask(self, array: Array) -> Any:
        """Return a mask for `where_kept` and `zero`, which can be assigned to; True is kept."""
        with self.outside_graph():
            return keras.Variable(array.copy(), dtype="bool", trainable=False, name="mask")

    def where_kept(self, mask: Any, values: Any) -> Any:
        """Return ``values`` where ``mask``, +0.0 elsewhere, also for NaN and -0.0."""
        kept, tensor = map(keras.ops.convert_to_tensor, (mask, values))
        return keras.ops.where(kept, tensor, keras.ops.cast(0, tensor.dtype))

    def zero(self, mask: Any, variable: Any) -> None:
        """Write +0.0 into ``variable``, one of Keras's, where ``mask`` prunes."""
        variable.assign(self.where_kept(mask, variable))

    def on_gradient(self, variable: Any, mask: Any) -> "Ears | None":
        """Have every gradient of ``variable`` masked as it comes, before anybody sees it.

        None where gradients reach nobody but an optimizer of Keras, or ``variable`` gets none.
        """
        return None

    def settle(self, model: Any) -> None:
        """Have the variables of ``model`` hold its weights, also in the middle of ``fit``."""

    def has_values(self, optimizer: Any) -> bool:
        """Whether the variables of ``optimizer`` can be read now."""
        return True

    # training steps

    def outside_graph(self) -> AbstractContextManager[None]:
        """Return a context in which operations run now, also while a step is being traced."""
        return nullcontext()

    def clearing(self) -> AbstractContextManager[bool]:
        """Return a context to write optimizer state in.

        It gives whether that is done once for all, and not by the step that is being traced.
        """
        return nullcontext(True)

    def retrace(self, model: Any) -> None:
        """Have ``fit`` compile its training step anew: what it has compiled sees no change.

        It is replaced, not dropped, for a callback may be asking in the middle of ``fit``.
        """
        if getattr(model, "train_function", None) is not None:
            model.make_train_function(force=True)

    def listening(self, trained: Iterable[Any], *, new: bool) -> None:
        """Called when a ``new`` listener begins, or when one changes what it does, or ends.

        Args:
            trained: models whose ``fit`` has compiled a step while somebody listened.
            new: whether one begins.
        """

    def heard(self) -> None:
        """Called when an optimizer makes an update, or when the step that makes it is traced."""

    def at_rest(self) -> bool:
        """Whether Python runs here and now, and not as part of a step that is traced."""
        return True

    def ears(self, live: Callable[[], list[Any]], pause: Callable[[], None]) -> list[Ears]:
        """Return ears, beside those on Keras's optimizers, that tell the ``live`` listeners.

        They call ``pause()`` when Python goes on with a loop of the user's own.
        """
        return []

    def report(self, log: Log, done: Any, variables: Sequence[Any]) -> None:
        """Tell ``log`` of an update, and of the values of ``variables`` if it wants them."""
        if log.tick(bool(done)):
            log.take({id(variable): self.as_numpy(variable) for variable in variables})

    def flush(self) -> None:
        """Wait until everything that was reported has arrived."""

    # optimizers that are not Keras's

    def clear_foreign(self, optimizer: Any, mask_of: Callable[[Any], Any]) -> None:
        """Zero the state of ``optimizer``, none of Keras's, where ``mask_of(variable)`` prunes."""

    def reset_foreign(self, optimizer: Any) -> None:
        """Empty the state of ``optimizer``, none of Keras's."""


def _no_training() -> CapabilityError:
    return CapabilityError(
        f"Keras on {keras.backend.backend()!r} cannot train; set KERAS_BACKEND to tensorflow, "
        "torch or jax before keras is imported"
    )


def no_second_derivative(error: Exception) -> CapabilityError:
    """Return the error for a model or loss that can be differentiated only once."""
    return CapabilityError(
        "a Hessian product needs second derivatives, which something in the model or the loss "
        f"does not have: {error}"
    )
