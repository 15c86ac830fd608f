"""The Keras backend: each method is a few calls of Keras plus names and axes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras

from ltcore.arrays import Array, Params, own
from ltcore.backend import Imported
from ltcore.errors import CapabilityError, ModelNotBuiltError
from ltcore.masks import Masks
from ltcore.parameters import Structure
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
from ltcore_keras._training import mean_gradients, redrawn
from ltcore_keras._watch import KerasWatch


class KerasBackend:
    """Drives `keras.Model`; see `ltcore.backend.Backend` for what the methods promise."""

    name = "keras"
    capabilities = ENGINE.capabilities | {"checkpoints"}
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

    def watch(self, model: Any, structure: Structure, steps: Sequence[int]) -> KerasWatch:
        """Count updates and take snapshots."""
        slots = sites_of(model)[1]

        def read(variables: Mapping[str, Any]) -> dict[str, Array]:
            return _canonical(variables, slots)

        return KerasWatch(model, slots, read, steps, example_of(structure, model))

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
        faces = zip(inputs, structure.inputs or (), strict=True)
        parts = [native_input(array, face, last=last) for array, face in faces]
        outputs = keras.tree.flatten(model(packed(model, parts), training=False))
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
        slots = sites_of(model)[1]
        trained = {n: slots[n].variable for n, _, role in structure.items() if not role.state}
        # Several parameters may be parts of one variable.
        once = {str(id(variable)): variable for variable in trained.values()}
        found = mean_gradients(model, once, batches, loss)
        return _canonical({n: found[str(id(v))] for n, v in trained.items()}, slots)

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


def _canonical(tensors: Mapping[str, Any], slots: Mapping[str, Slot]) -> dict[str, Array]:
    return {name: to_canonical(tensor, slots[name]) for name, tensor in tensors.items()}
