"""The Keras backend: each method is a few calls of Keras plus names and axes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from ltcore.arrays import Array, Params, own
from ltcore.backend import Imported
from ltcore.errors import CapabilityError, InvalidValueError, ModelNotBuiltError
from ltcore.masks import Masks
from ltcore.parameters import Structure
from ltcore_keras._activations import input_strengths
from ltcore_keras._checkpoints import WRITES, load_checkpoint, save_checkpoint
from ltcore_keras._engine import ENGINE
from ltcore_keras._hold import KerasHold
from ltcore_keras._inputs import (
    canonical_output,
    channels_last,
    example_of,
    native_input,
    packed,
)
from ltcore_keras._layouts import to_numpy
from ltcore_keras._names import sites_of
from ltcore_keras._optimizers import fresh_optimizers
from ltcore_keras._slots import Slot, to_canonical, whole_variables
from ltcore_keras._tfmot import load_tfmot
from ltcore_keras._trace import described
from ltcore_keras._trained import trained
from ltcore_keras._training import mean_gradients, mean_products, mean_squares, redrawn
from ltcore_keras._watch import KerasWatch
from ltcore_keras._wide import wide_pullback


class KerasBackend:
    """Drives `keras.Model`; see `ltcore.backend.Backend` for what the methods promise."""

    name = "keras"
    capabilities = ENGINE.capabilities | {"activations", "checkpoints"}
    writes = WRITES
    tools = frozenset({"tfmot"})

    @property
    def version(self) -> str:
        """Keras's version."""
        return str(keras.__version__)

    def root(self, model: Any) -> Any:
        """Return the model: Keras wraps nothing around it."""
        return model

    def describe(self, model: Any, example: Any = None) -> Structure:
        """Return the model's sites and its graph, which Keras mostly knows without an example."""
        try:
            sites, slots = sites_of(model)
        except ModelNotBuiltError:
            if example is None:
                raise
            model(example, training=False)
            sites, slots = sites_of(model)
        return described(model, sites, slots, example)

    def read(
        self, model: Any, structure: Structure, names: Iterable[str] | None = None
    ) -> dict[str, Array]:
        """Return owned copies in canonical layout."""
        ENGINE.settle(model)
        slots = sites_of(model)[1]
        wanted = list(slots if names is None else names)
        return {name: to_canonical(slots[name].variable, slots[name]) for name in wanted}

    def write(self, model: Any, structure: Structure, params: Params) -> None:
        """Write ``params`` in place."""
        ENGINE.settle(model)
        slots = sites_of(model)[1]
        native = whole_variables(params, slots, lambda variable: own(to_numpy(variable)))
        for variable, array in native:  # after all shapes were checked
            ENGINE.assign(variable, array)

    def hold(self, model: Any, structure: Structure, masks: Masks) -> KerasHold:
        """Keep pruned weights at zero."""
        return KerasHold(model, masks)

    def watch(
        self,
        model: Any,
        structure: Structure,
        steps: Sequence[int],
        callback: Callable[[int], None] | None = None,
    ) -> KerasWatch:
        """Count updates, take snapshots and call back."""
        slots = sites_of(model)[1]

        def read(variables: Mapping[str, Any]) -> dict[str, Array]:
            return _canonical(variables, slots)

        return KerasWatch(model, slots, read, steps, example_of(structure, model), callback)

    def fresh_optimizer(self, model: Any, step: int) -> None:
        """Empty the optimizers known to train the model, their counts at ``step``."""
        fresh_optimizers(model, step)

    def get_mode(self, model: Any) -> None:
        """Return None: Keras models have no mode, each call says."""

    def set_mode(self, model: Any, mode: None) -> None:
        """Nothing to set."""

    def redraw(
        self, model: Any, structure: Structure, seed: int, names: Iterable[str] | None = None
    ) -> dict[str, Array]:
        """Return params from every layer's own initializers."""
        slots = sites_of(model)[1]
        return _canonical(redrawn(slots, seed, slots if names is None else names), slots)

    def forward(
        self, model: Any, structure: Structure, inputs: Sequence[Array]
    ) -> tuple[Array, ...]:
        """Return the outputs for canonical ``inputs``."""
        ENGINE.settle(model)
        last = channels_last(model)
        outputs = _outputs(model, structure, inputs, last=last)
        ends = zip(outputs, structure.outputs or (), strict=True)
        return tuple(canonical_output(tensor, face, last=last) for tensor, face in ends)

    def gradients(
        self,
        model: Any,
        structure: Structure,
        batches: Iterable[tuple[Any, Any]],
        loss: Callable[[Any, Any], Any],
    ) -> dict[str, Array]:
        """Return mean gradients of all trained parameters; nothing of the model changes."""
        ENGINE.settle(model)
        wanted = trained(model, structure)
        return wanted.canonical(mean_gradients(model, wanted.variables, batches, loss))

    def fisher(
        self,
        model: Any,
        structure: Structure,
        batches: Iterable[tuple[Any, Any]],
        loss: Callable[[Any, Any], Any],
    ) -> dict[str, Array]:
        """Return mean squared gradients of single examples; nothing of the model changes."""
        ENGINE.settle(model)
        wanted = trained(model, structure)
        return wanted.canonical(mean_squares(model, wanted.variables, batches, loss))

    def hvp(
        self,
        model: Any,
        structure: Structure,
        batches: Iterable[tuple[Any, Any]],
        loss: Callable[[Any, Any], Any],
        vector: Params,
    ) -> dict[str, Array]:
        """Return the mean Hessian times ``vector``; nothing of the model changes."""
        ENGINE.settle(model)
        wanted = trained(model, structure)
        wanted.check_vector(vector)
        known = whole_variables(vector, wanted.slots, _zeros)
        directions = {id(variable): array for variable, array in known}
        native = [directions.get(id(v), _zeros(v)) for v in wanted.variables]
        found = mean_products(model, wanted.variables, batches, loss, native)
        return wanted.canonical(found)

    def vjp(
        self,
        model: Any,
        structure: Structure,
        inputs: Sequence[Array],
        cotangents: Sequence[Array],
        at: Params,
    ) -> dict[str, Array]:
        """Return the pullback of ``cotangents`` at ``at``, computed in float64."""
        ENGINE.settle(model)
        wanted = trained(model, structure)
        wanted.check_point(at)
        values = whole_variables(at, wanted.slots, _zeros)
        last = channels_last(model)

        def total() -> Any:
            outputs = _outputs(model, structure, list(map(_wide, inputs)), last=last)
            ends = zip(outputs, cotangents, structure.outputs or (), strict=True)
            return sum(
                _inner(tensor, native_input(_wide(array), face, last=last))
                for tensor, array, face in ends
            )

        found = wanted.canonical(wide_pullback(model, wanted.variables, values, total))
        return {name: array.astype(at[name].dtype) for name, array in found.items()}

    def activations(
        self,
        model: Any,
        structure: Structure,
        batches: Iterable[tuple[Any, Any]],
        names: Iterable[str],
    ) -> dict[str, Array]:
        """Return the root mean square of what weights multiply; nothing of the model changes."""
        ENGINE.settle(model)
        return input_strengths(model, structure, sites_of(model)[1], batches, names)

    def load_checkpoint(
        self, model: Any, structure: Structure, source: Path | Mapping[str, Any]
    ) -> Imported:
        """Return what a file, or arrays by name, have for ``model``."""
        return load_checkpoint(model, source, lambda: self.read(model, structure))

    def load_foreign(
        self, model: Any, structure: Structure, tool: str, source: Any, **options: Any
    ) -> Imported:
        """Return what a model of TensorFlow Model Optimization has for ``model``."""
        mapping = options.get("mapping", {})
        return load_tfmot(model, source, mapping, lambda: self.read(model, structure))

    def unpruned(self, model: Any) -> tuple[Any, Mapping[str, Any]]:
        """Keras holds no masks itself."""
        raise CapabilityError("Keras has no pruning of its own")

    def save_checkpoint(self, model: Any, path: Path) -> None:
        """Write the weights, or the whole model."""
        save_checkpoint(model, path)


def _outputs(model: Any, structure: Structure, inputs: Sequence[Array], *, last: bool) -> list[Any]:
    """Return what the model makes of canonical inputs, as it is."""
    faces = zip(inputs, structure.inputs or (), strict=True)
    parts = [native_input(array, face, last=last) for array, face in faces]
    found: list[Any] = keras.tree.flatten(model(packed(model, parts), training=False))
    return found


def _inner(output: Any, cotangent: Any) -> Any:
    if output.shape != cotangent.shape:
        raise InvalidValueError(
            f"an output has the shape {tuple(output.shape)} in Keras's order of axes, and its "
            f"cotangent {tuple(cotangent.shape)}; cotangents have the shapes of outputs"
        )
    return keras.ops.sum(output * cotangent)


def _wide(array: Array) -> Array:
    return array.astype(np.float64) if array.dtype.kind == "f" else array


def _zeros(variable: Any) -> Array:
    """Return native zeros, as wide as any."""
    return np.zeros(tuple(variable.shape))


def _canonical(tensors: Mapping[str, Any], slots: Mapping[str, Slot]) -> dict[str, Array]:
    return {name: to_canonical(tensor, slots[name]) for name, tensor in tensors.items()}
