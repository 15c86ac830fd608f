"""The backend of the numpy reference framework: what the author of a backend reads first.

It is all that `ltcore.backend.Backend` asks for, with nothing in the way. Its arrays are in
canonical layout already; a framework with another one converts wherever it says *layout* here.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from ltcore.arrays import Array, Params, own
from ltcore.axes import face_axes
from ltcore.backend import MaskHandle, Watch
from ltcore.errors import ModelError, ModelNotBuiltError
from ltcore.masks import Masks
from ltcore.parameters import Interface, Role, Site, Structure
from ltcore.testing.reference_hold import NumpyHold, NumpyWatch
from ltcore.testing.reference_layers import Layer
from ltcore.testing.reference_model import NumpyModel, differentiate
from ltcore.tracing import Trace


class ReferenceBackend:
    """The `ltcore.backend.Backend` of `NumpyModel`."""

    name = "numpy"
    capabilities = frozenset({"gradients"})

    @property
    def version(self) -> str:
        """The version of numpy."""
        return np.__version__

    def describe(self, model: NumpyModel, example: Any = None) -> Structure:
        """Return the model's sites; with ``example`` also how data flows.

        Raises:
            ModelNotBuiltError: the model has no weights yet.
        """
        sites = tuple(_site(name, layer) for name, layer in model.named_layers() if layer.kind)
        if any(not hasattr(layer, role) for _, layer in model.named_layers()
               for role in layer.trained):  # fmt: skip
            raise ModelNotBuiltError("the model has no weights yet; call model.initialize(seed)")
        if example is None:
            return Structure(sites, untraced="no example input was given, so the graph is unknown")
        return _traced(model, sites, np.asarray(example))

    def root(self, model: NumpyModel) -> NumpyModel:
        """Return the model: nothing wraps it."""
        return model

    def read(
        self, model: NumpyModel, structure: Structure, names: Iterable[str] | None = None
    ) -> dict[str, Array]:
        """Return owned copies in canonical layout: all parameters and buffers, or ``names``."""
        live = model.arrays()
        wanted = structure.by_name if names is None else names
        # layout: permute axes to canonical here, where native ones differ.
        return {name: own(live[structure.by_name[name][1].native]) for name in wanted}

    def write(self, model: NumpyModel, structure: Structure, params: Params) -> None:
        """Write ``params`` in place; other arrays stay."""
        live = model.arrays()
        # layout: permute axes to native here, where they differ from canonical ones.
        for name, array in params.items():
            live[structure.by_name[name][1].native][...] = array

    def hold(self, model: NumpyModel, structure: Structure, masks: Masks) -> MaskHandle:
        """Keep pruned weights at exactly 0.0 after every optimizer update."""
        return NumpyHold(model, structure, masks)

    def watch(self, model: NumpyModel, structure: Structure, steps: Sequence[int]) -> Watch:
        """Count updates from now on and take a snapshot after each number in ``steps``."""
        return NumpyWatch(model, lambda live: self.read(live, structure), steps)

    def fresh_optimizer(self, model: NumpyModel, step: int) -> None:
        """Empty the state of every optimizer of the model, and set its count."""
        for optimizer in model.optimizers:
            optimizer.velocity.clear()
            optimizer.count = step

    def get_mode(self, model: NumpyModel) -> bool:
        """Return whether the model is training."""
        return model.training

    def set_mode(self, model: NumpyModel, mode: bool) -> None:
        """Set whether the model is training."""
        model.training = mode

    def redraw(
        self, model: NumpyModel, structure: Structure, seed: int, names: Iterable[str] | None = None
    ) -> dict[str, Array]:
        """Return params from every layer's own initializer; the model stays as it was."""
        twin = copy.deepcopy(model)
        twin.initialize(seed)
        return self.read(twin, structure, names)

    def forward(
        self, model: NumpyModel, structure: Structure, inputs: Sequence[Array]
    ) -> tuple[Array, ...]:
        """Return the outputs for canonical ``inputs``, in inference mode."""
        del structure  # layout: its inputs and outputs say which axes to permute
        twin = copy.deepcopy(model)  # neither the mode nor listeners of the model are touched
        twin.training = False
        return (twin(_single(inputs)),)

    def gradients(
        self,
        model: NumpyModel,
        structure: Structure,
        batches: Iterable[tuple[Any, Any]],
        loss: Callable[[Any, Any], Any],
    ) -> dict[str, Array]:
        """Return the gradient of every trained parameter, averaged over ``batches``."""
        found = [
            differentiate(model, lambda twin, x=x, y=y: float(loss(twin(x), y)))  # type: ignore[misc]
            for x, y in batches
        ]
        native = {name: role.native for name, _, role in structure.items() if not role.state}
        return {
            name: np.mean([gradients[key] for gradients in found], axis=0).astype(np.float32)
            for name, key in native.items()
        }  # layout: as in read


def _site(name: str, layer: Layer) -> Site:
    roles = tuple(
        Role(role, f"{name}.{role}", array.shape, array.dtype.name, role in layer.buffers)
        for role in layer.trained + layer.buffers
        if (array := getattr(layer, role, None)) is not None
    )
    return Site(name, layer.kind, roles, layer.attrs)


def _traced(model: NumpyModel, sites: Sequence[Site], x: Array) -> Structure:
    """Run the layers on ``x`` one by one, and write down which data enters which site."""
    names = {id(layer): name for name, layer in model.named_layers()}
    trace = Trace()
    twin = copy.deepcopy(model)
    twin.training = False
    trace.put_input(x, 0, model.layers[0].input_axes(x.ndim), x.shape)
    first = x
    for original, layer in zip(model.layers, twin.layers, strict=True):
        try:
            y = layer(x)
        except ValueError as error:
            raise ModelError(f"{layer!r} does not take data of shape {x.shape}: {error}") from error
        flow, name = trace.flow(x), names[id(original)]
        labels = flow.labels
        if layer.feature_axis == 1 and x.ndim > 2:
            labels = trace.as_image(labels, 1)
        if layer.kind:
            axis = None if layer.kind == "embedding" else labels[layer.feature_axis]
            trace.visit(name, [x], axis)
        preds = {name} if layer.kind else flow.preds
        made = trace.features(name, y.shape[-1])
        trace.put(y, preds, layer.output_labels(labels, x, y, made))
        x = y
    inputs = _interface(first, trace, trace.vocabulary(0, sites))
    return Structure(trace.placed(sites, [x]), (inputs,), (_interface(x, trace),))


def _interface(x: Array, trace: Trace, vocabulary: int | None = None) -> Interface:
    axes = face_axes(trace.flow(x).labels)
    return Interface(axes, (0, *x.shape[1:]), x.dtype.name, vocabulary)


def _single(inputs: Sequence[Array]) -> Array:
    if len(inputs) != 1:
        raise ModelError(f"a NumpyModel takes one input, got {len(inputs)}")
    return np.asarray(inputs[0])
