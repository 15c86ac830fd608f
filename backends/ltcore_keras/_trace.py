"""How data flows through a Keras model, and what its axes mean on the way.

Layers and operations in the tables below are known to keep, drop, move or merge axes in a certain
way. Whatever is not in a table makes its axes unknown, and exchange then refuses.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import keras

from ltcore.layouts import UNKNOWN_GROUP
from ltcore.parameters import Site, Structure
from ltcore.tracing import Label, Labels, Trace, Visit, reshaped, spatial, unknown
from ltcore_keras._inputs import UntraceableError, channels_last, entries, interface, packed
from ltcore_keras._names import Slot, norm_axes, walk
from ltcore_keras._symbolic import run, symbolic_input, tensors

_POOLS = [f"{how}Pooling{n}D" for how in ("Max", "Average") for n in (1, 2, 3)]
_GLOBAL_POOLS = [f"Global{pool}" for pool in _POOLS]
_ELEMENTWISE_LAYERS = {
    "Activation", "ActivityRegularization", "Add", "AlphaDropout", "Average", "Cropping1D",
    "Cropping2D", "Cropping3D", "Dropout", "ELU", "GaussianDropout", "GaussianNoise", "Identity",
    "LeakyReLU", "Maximum", "Minimum", "Multiply", "ReLU", "Rescaling", "Softmax",
    "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "Subtract", "UpSampling1D",
    "UpSampling2D", "UpSampling3D", "ZeroPadding1D", "ZeroPadding2D", "ZeroPadding3D", *_POOLS,
}  # fmt: skip
_ELEMENTWISE_OPS = {
    "Abs", "Absolute", "Add", "AveragePool", "Cast", "Celu", "Clip", "ConvertToTensor", "Divide",
    "Elu", "Exp", "Gelu", "HardSigmoid", "HardSilu", "HardTanh", "LeakyRelu", "Log", "LogSigmoid",
    "LogSoftmax", "Maximum", "MaxPool", "Minimum", "Multiply", "Negative", "Pad", "Power",
    "Reciprocal", "Relu", "Relu6", "Rsqrt", "Selu", "Sigmoid", "Silu", "Softmax", "Softplus",
    "Softsign", "Sqrt", "Square", "StopGradient", "Subtract", "Tanh", "TrueDivide",
}  # fmt: skip
_CONVOLUTIONS = ("conv", "depthwise", "conv_transpose")


def described(
    model: Any, sites: tuple[Site, ...], slots: dict[str, Slot], example: Any
) -> Structure:
    """Return the structure with its graph; where that cannot be had, with the reason."""
    try:
        return _traced(model, sites, slots, example)
    except UntraceableError as error:
        return Structure(sites, untraced=str(error))
    except Exception as error:  # noqa: BLE001  the user's code runs here; it may fail in any way
        return Structure(sites, untraced=f"a symbolic call of the model failed: {_gist(error)}")


def _gist(error: Exception) -> str:
    """Return the type and the first line that says something; Keras adds colours and a frame."""
    text = re.sub(r"\x1b\[\d*m", "", str(error))
    lines = [line.strip() for line in text.splitlines()]
    told = [line for line in lines if line and not line.startswith("Exception encountered when")]
    return f"{type(error).__name__}: {told[0] if told else 'no message'}"


def _traced(model: Any, sites: tuple[Site, ...], slots: dict[str, Slot], example: Any) -> Structure:
    books = _Books(model, sites, slots)
    found = entries(model, sites, example)
    symbols = [symbolic_input(entry.shape, entry.dtype) for entry in found]
    for symbol, entry in zip(symbols, found, strict=True):
        books.trace.put(symbol, (), entry.labels)
    outputs = run(model, packed(model, symbols), books)
    last = channels_last(model)
    faces = []
    for symbol, entry in zip(symbols, found, strict=True):
        labels, dtype = entry.labels, entry.dtype
        if id(symbol) in books.tokens:  # declared float, as many do, but it goes into an embedding
            labels = ("N", *("T",) * (len(labels) - 1))
            dtype = dtype if "int" in dtype else "int32"
        faces.append(interface(symbol.shape, dtype, labels, last=last))
    ends = [
        interface(out.shape, "float32", books.trace.flow(out).labels, last=last) for out in outputs
    ]
    return Structure(_placed(sites, books.trace, outputs), tuple(faces), tuple(ends))


def _placed(sites: tuple[Site, ...], trace: Trace, outputs: list[Any]) -> tuple[Site, ...]:
    """Return the sites with what the trace found."""
    order = {site.name: position for position, site in enumerate(sites)}
    ends = trace.preds(outputs)
    placed = []
    for site in sites:
        visit = trace.visits.get(site.name, Visit())
        preds = tuple(sorted(visit.preds, key=order.__getitem__))
        placed.append(
            replace(site, preds=preds, in_group=visit.in_group, is_output=site.name in ends)
        )
    return tuple(placed)


class _Books:
    """Keeps a `Trace` while a model is called."""

    def __init__(self, model: Any, sites: tuple[Site, ...], slots: dict[str, Slot]) -> None:
        self.trace = Trace()
        self.tokens: set[int] = set()
        self._converted: dict[int, int] = {}  # id of a tensor in another dtype: id of the original
        self._sites = {site.name: site for site in sites}
        self._of_layer: dict[int, list[str]] = {}
        self._of_variable: dict[int, str] = {}
        for name, slot in slots.items():
            site = name.rpartition(".")[0]
            self._of_variable[id(slot.variable)] = site
            names = self._of_layer.setdefault(id(slot.layer), [])
            if site not in names:
                names.append(site)

    def operation(self, operation: Any, args: Any, outputs: list[Any]) -> None:
        """Book a ``keras.ops`` function; a variable among its arguments is a site."""
        preds = set(self.trace.preds(tensors(args)))
        for leaf in keras.tree.flatten(args):
            if id(leaf) in self._of_variable:
                site = self._of_variable[id(leaf)]
                self.trace.visits.setdefault(site, Visit())
                preds.add(site)
        self._put(operation, args, outputs, preds)
        if type(operation).__name__ in ("Cast", "ConvertToTensor"):
            original = id(tensors(args)[0])
            self._converted[id(outputs[0])] = self._converted.get(original, original)

    def layer(self, layer: Any, args: Any, outputs: list[Any]) -> None:
        """Book a layer: a site of a known kind, something without weights, or a black box."""
        names = [name for _, inner in walk(layer) for name in self._of_layer.get(id(inner), ())]
        entered = tensors(args)
        if not names:
            self._put(layer, args, outputs, self.trace.preds(entered))
        elif len(names) == 1 and self._sites[names[0]].kind != "raw":
            self._visit(self._sites[names[0]], layer, entered, outputs)
        else:
            for name in names:
                known = self._sites[name].kind != "raw"
                self._note(name, entered, UNKNOWN_GROUP if known else None)
            for tensor in outputs:
                self.trace.put(tensor, names, unknown(len(tensor.shape)))

    def _visit(self, site: Site, layer: Any, entered: list[Any], outputs: list[Any]) -> None:
        axis = _feature_axis(site.kind, layer)
        self.trace.visit(site.name, entered, axis)
        before = self.trace.flow(entered[0]).labels
        if site.kind == "embedding" or entered[0].shape[axis] == 1:
            self._note(site.name, entered, None)  # one feature has no order
        if site.kind == "embedding":
            self.tokens.add(self._converted.get(id(entered[0]), id(entered[0])))
        norm = norm_axes(layer) if site.kind == "layernorm" else None
        if norm and len(norm) > 1 and before[-len(norm) :] != (*spatial(len(norm) - 1), "C"):
            self._note(site.name, entered, UNKNOWN_GROUP)
        for tensor in outputs:
            labels = _after_site(site.kind, layer, before, len(tensor.shape))
            self.trace.put(tensor, {site.name}, labels)

    def _note(self, name: str, entered: list[Any], group: Any) -> None:
        visit = self.trace.visits.setdefault(name, Visit())
        visit.preds |= self.trace.preds(entered)
        visit.in_group = group

    def _put(self, operation: Any, args: Any, outputs: list[Any], preds: Any) -> None:
        entered = tensors(args)
        for tensor in outputs:
            labels = unknown(len(tensor.shape))
            if entered and len(outputs) == 1:
                flows = [self.trace.flow(t).labels or unknown(len(t.shape)) for t in entered]
                labels = _after(operation, entered, flows, tensor) or labels
            self.trace.put(tensor, preds, labels)


def _feature_axis(kind: str, layer: Any) -> int:
    if kind in _CONVOLUTIONS:
        return -1 if layer.data_format == "channels_last" else 1
    return int(layer.axis) if kind == "batchnorm" else -1


def _after_site(kind: str, layer: Any, before: Labels, rank: int) -> Labels:
    if kind in _CONVOLUTIONS:
        space = spatial(rank - 2)
        return ("N", *space, "C") if layer.data_format == "channels_last" else ("N", "C", *space)
    if kind == "linear":
        return (*before[:-1], "F")
    return (*before, "F") if kind == "embedding" else before


def _after(operation: Any, entered: list[Any], flows: list[Labels], result: Any) -> Labels | None:
    """Return the labels behind an operation without weights, None where nothing is known."""
    cls = type(operation)
    if cls.__module__.partition(".")[0] != "keras":
        return None
    is_layer = isinstance(operation, keras.Layer)
    if cls.__name__ in (_ELEMENTWISE_LAYERS if is_layer else _ELEMENTWISE_OPS):
        return _broadcast(entered, flows, result)
    rule = (_LAYER_RULES if is_layer else _OP_RULES).get(cls.__name__)
    return rule(operation, entered, flows, result) if rule else None


def _broadcast(entered: list[Any], flows: list[Labels], result: Any) -> Labels | None:
    """Return the labels of operands that go together element by element."""
    rank = len(result.shape)
    labels: list[Label] = []
    for axis in range(-rank, 0):
        met = {
            flow[axis]
            for tensor, flow in zip(entered, flows, strict=True)
            if len(flow) >= -axis and (tensor.shape[axis] != 1 or result.shape[axis] == 1)
        }
        labels.append(met.pop() if len(met) == 1 else "?")
    return tuple(labels)


def _reshape(_: Any, entered: list[Any], flows: list[Labels], result: Any) -> Labels:
    return reshaped(flows[0], tuple(entered[0].shape), tuple(result.shape))


def _flatten(layer: Any, entered: list[Any], flows: list[Labels], result: Any) -> Labels:
    shape, labels = tuple(entered[0].shape), flows[0]
    if layer.data_format == "channels_first" and len(shape) > 2:
        # Keras moves channels last before it flattens.
        shape, labels = (shape[0], *shape[2:], shape[1]), (labels[0], *labels[2:], labels[1])
    return reshaped(labels, shape, tuple(result.shape))


def _permute(layer: Any, _: Any, flows: list[Labels], __: Any) -> Labels:
    return (flows[0][0], *(flows[0][axis] for axis in layer.dims))


def _transpose(op: Any, _: Any, flows: list[Labels], __: Any) -> Labels:
    return tuple(flows[0][axis] for axis in op.axes) if op.axes else flows[0][::-1]


def _moveaxis(op: Any, _: Any, flows: list[Labels], result: Any) -> Labels:
    rank = len(result.shape)
    source, target = ([axis % rank for axis in _axes(a)] for a in (op.source, op.destination))
    rest = iter(axis for axis in range(rank) if axis not in source)
    came = dict(zip(target, source, strict=True))
    return tuple(flows[0][came[axis] if axis in came else next(rest)] for axis in range(rank))


def _swapaxes(op: Any, _: Any, flows: list[Labels], __: Any) -> Labels:
    labels = list(flows[0])
    labels[op.axis1], labels[op.axis2] = labels[op.axis2], labels[op.axis1]
    return tuple(labels)


def _reduce(op: Any, entered: list[Any], flows: list[Labels], result: Any) -> Labels:
    rank = len(entered[0].shape)
    if len(result.shape) == rank:
        return flows[0]
    gone = set(range(rank)) if op.axis is None else {axis % rank for axis in _axes(op.axis)}
    return tuple(label for axis, label in enumerate(flows[0]) if axis not in gone)


def _global_pool(layer: Any, _: Any, flows: list[Labels], result: Any) -> Labels:
    labels = flows[0]
    if len(result.shape) == len(labels):
        return labels
    return (labels[0], labels[-1 if layer.data_format == "channels_last" else 1])


def _concatenate(op: Any, _: Any, flows: list[Labels], __: Any) -> Labels | None:
    """Return the labels of parts of one meaning; a flattened axis loses its order."""
    if any(flow != flows[0] for flow in flows):
        return None
    labels: list[Label] = list(flows[0])
    if not isinstance(labels[op.axis], str):
        labels[op.axis] = "?"
    return tuple(labels)


def _axes(given: Any) -> Sequence[int]:
    return [given] if isinstance(given, int) else list(given)


_Rule = Callable[[Any, list[Any], list[Labels], Any], Labels | None]
_LAYER_RULES: dict[str, _Rule] = {
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Permute": _permute,
    "Concatenate": _concatenate,
    **dict.fromkeys(_GLOBAL_POOLS, _global_pool),
}
_OP_RULES: dict[str, _Rule] = {
    "Reshape": _reshape,
    "Ravel": _reshape,
    "ExpandDims": _reshape,
    "Squeeze": _reshape,
    "Transpose": _transpose,
    "Moveaxis": _moveaxis,
    "Swapaxes": _swapaxes,
    "Concatenate": _concatenate,
    **dict.fromkeys(("Amax", "Amin", "Max", "Mean", "Min", "Sum"), _reduce),
}
