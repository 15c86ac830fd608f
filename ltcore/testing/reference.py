"""The backend of the numpy reference framework: what the author of a backend reads first.

It is all that `ltcore.backend.Backend` asks for, with nothing in the way. Its arrays are in
canonical layout already; a framework with another one converts wherever it says *layout* here.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ltcore.arrays import Array, Params, own
from ltcore.axes import face_axes
from ltcore.backend import MaskHandle, Watch
from ltcore.errors import CapabilityError, ModelError, ModelNotBuiltError
from ltcore.layouts import CONVOLUTIONS
from ltcore.masks import Masks
from ltcore.parameters import Interface, Role, Site, Structure
from ltcore.testing.reference_hold import NumpyHold, NumpyWatch
from ltcore.testing.reference_layers import ConvTranspose, Layer
from ltcore.testing.reference_model import Gradients, NumpyModel, differentiate, in_float64
from ltcore.tracing import Trace


class ReferenceBackend:
    """The `ltcore.backend.Backend` of `NumpyModel`."""

    name = "numpy"
    capabilities = frozenset({"gradients", "hvp", "vjp", "activations"})

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

    def watch(
        self,
        model: NumpyModel,
        structure: Structure,
        steps: Sequence[int],
        callback: Callable[[int], None] | None = None,
    ) -> Watch:
        """Count updates from now on and take a snapshot after each number in ``steps``."""
        return NumpyWatch(model, lambda live: self.read(live, structure), steps, callback)

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
        return (_in_inference(model)(_single(inputs)),)

    def gradients(
        self,
        model: NumpyModel,
        structure: Structure,
        batches: Iterable[tuple[Any, Any]],
        loss: Callable[[Any, Any], Any],
    ) -> dict[str, Array]:
        """Return the gradient of every trained parameter, averaged over ``batches``."""
        still = _in_inference(model)
        found = [_gradients(still, batch, loss) for batch in batches]
        return _means(found, structure)

    def fisher(
        self,
        model: NumpyModel,
        structure: Structure,
        batches: Iterable[tuple[Any, Any]],
        loss: Callable[[Any, Any], Any],
    ) -> dict[str, Array]:
        """Return the mean squared gradient of single examples."""
        still = _in_inference(model)
        singles = [(x[i : i + 1], y[i : i + 1]) for x, y in batches for i in range(len(x))]
        found = [_gradients(still, single, loss) for single in singles]
        return _means([{key: g**2 for key, g in one.items()} for one in found], structure)

    def hvp(
        self,
        model: NumpyModel,
        structure: Structure,
        batches: Iterable[tuple[Any, Any]],
        loss: Callable[[Any, Any], Any],
        vector: Params,
    ) -> dict[str, Array]:
        """Return how fast the gradient changes along ``vector``, by central differences."""
        largest = max((float(np.max(np.abs(array))) for array in vector.values()), default=0.0)
        step = 1e-5 / (largest or 1.0)  # short, so that hardly a Relu switches on the way
        above, below = (in_float64(_in_inference(model)) for _ in range(2))
        for name, direction in vector.items():
            native = structure.by_name[name][1].native  # layout: as in write
            above.arrays()[native] += step * direction
            below.arrays()[native] -= step * direction
        found = [
            {key: (high[key] - low[key]) / (2 * step) for key in high}
            for batch in batches
            for high, low in [(_gradients(above, batch, loss), _gradients(below, batch, loss))]
        ]
        return _means(found, structure)

    def vjp(
        self,
        model: NumpyModel,
        structure: Structure,
        inputs: Sequence[Array],
        cotangents: Sequence[Array],
        at: Params,
    ) -> dict[str, Array]:
        """Return the gradient of the inner product of the output and its cotangent, at ``at``."""
        twin = in_float64(_in_inference(model))
        self.write(twin, structure, at)
        x, direction = _single(inputs), _single(cotangents)
        # Most outputs are linear in each single weight, and a long step loses fewer digits.
        found = differentiate(twin, lambda model: float(np.sum(model(x) * direction)), step=1e-4)
        return {
            name: found[key].astype(at[name].dtype) for name, key in _trained(structure).items()
        }

    def activations(
        self,
        model: NumpyModel,
        structure: Structure,
        batches: Iterable[tuple[Any, Any]],
        names: Iterable[str],
    ) -> dict[str, Array]:
        """Return the root of the mean square of the input that each weight multiplies."""
        wanted = {name: structure.by_name[name] for name in names}
        for name, (site, role) in wanted.items():
            if site.kind not in _KERNELS or role.name != "weight":
                raise CapabilityError(
                    f"{name!r} is no kernel but the {role.name} of a layer of kind {site.kind!r}, "
                    f"so it has no activations; kernels are in layers of {_KERNELS}"
                )
        calls = [call for x, _ in batches for call in _calls(_in_inference(model), x)]
        return {
            name: _strength([(layer, x) for key, layer, x in calls if key == site.name])
            for name, (site, _) in wanted.items()
        }


_KERNELS = ("linear", *CONVOLUTIONS)


def _in_inference(model: NumpyModel) -> NumpyModel:
    """Return a copy that is not training: neither mode nor listeners of ``model`` are touched."""
    twin = copy.deepcopy(model)
    twin.training = False
    return twin


def _gradients(
    model: NumpyModel, batch: tuple[Any, Any], loss: Callable[[Any, Any], Any]
) -> Gradients:
    x, y = batch
    return differentiate(model, lambda twin: float(loss(twin(x), y)))


def _trained(structure: Structure) -> dict[str, str]:
    """Return the native name of every trained parameter."""
    return {name: role.native for name, _, role in structure.items() if not role.state}


def _means(found: Sequence[Gradients], structure: Structure) -> dict[str, Array]:
    return {  # layout: as in read
        name: np.mean([one[key] for one in found], axis=0).astype(np.float32)
        for name, key in _trained(structure).items()
    }


def _calls(model: NumpyModel, x: Array) -> Iterator[tuple[str, Layer, Array]]:
    """Yield ``(name, layer, input)`` for each time that a layer is called."""
    names = {id(layer): name for name, layer in model.named_layers()}
    for layer in model.layers:
        yield names[id(layer)], layer, x
        x = layer(x)


def _strength(calls: Sequence[tuple[Layer, Array]]) -> Array:
    """Return the root mean square of what each weight of one layer multiplies in ``calls``.

    The sum of a layer's outputs is linear in a weight, with the sum of the inputs that the weight
    multiplies as its slope: given squared inputs, the slope is the sum of squares.
    """
    squares: Array = np.zeros(())
    positions = 0
    for layer, x in calls:
        seen = layer(x)
        if isinstance(layer, ConvTranspose):  # its inputs count, be their outputs cropped or not
            layer, seen = copy.copy(layer), x
            layer.padding = 0
        one = NumpyModel([layer], seed=None)
        slopes = differentiate(one, lambda m, x=x: float(m(x**2).sum()), step=1.0)  # type: ignore[misc]
        squares = squares + slopes["layers.0.weight"]
        positions += seen.size // seen.shape[layer.feature_axis]
    strength: Array = np.sqrt(squares / positions).astype(np.float32)
    return strength


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
    twin = _in_inference(model)
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
