"""Keeps a `Trace` while a Keras model is called on symbols."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from ltcore.axes import UNKNOWN, Labels, named, unknown
from ltcore.parameters import Site
from ltcore.tracing import Trace
from ltcore_keras._calls import Call, Operand, Rule, after, rule_for, runs_keras
from ltcore_keras._composites import COMPOSITES
from ltcore_keras._composites import Rule as CompositeRule
from ltcore_keras._inputs import BATCH
from ltcore_keras._kinds import found_in
from ltcore_keras._names import own_variables, walk
from ltcore_keras._padding import padding_of
from ltcore_keras._places import NOWHERE
from ltcore_keras._slots import Slot
from ltcore_keras._symbolic import tensors
from ltcore_keras._tables import LAYERS, OPERATIONS
from ltcore_keras._visits import Use, tied, visited


class Books:
    """What is known of each tensor and each site; the `Observer` of a call.

    Attributes:
        trace: the books proper.
        paddings: ``{site: padding that is really applied}``; None where uses differ.
    """

    def __init__(self, sites: Iterable[Site], slots: Mapping[str, Slot]) -> None:
        self.trace = Trace()
        self.paddings: dict[str, list[list[int]] | None] = {}
        self._kinds = {site.name: site.kind for site in sites if site.matched}
        self._names: dict[int, list[str]] = {}
        self._of_variable: dict[int, str] = {}
        self._owning: dict[int, bool] = {}
        for name, slot in slots.items():
            site = name.rpartition(".")[0]
            if site not in self._kinds:
                continue  # constants
            names = self._names.setdefault(id(slot.layer), [])
            names += [site] if site not in names else []
            self._of_variable[id(slot.variable)] = site
            self.trace.put_param(slot.variable, {site}, _anonymous(slot.variable))

    def operation(self, operation: Any, args: Sequence[Any], out: Any, read: Sequence[Any]) -> None:
        """Book a ``keras.ops`` function."""
        entered = [leaf for leaf in keras.tree.flatten(args) if hasattr(leaf, "shape")]
        for leaf in entered:
            self._attribute(leaf, read)
        preds, params = self.trace.passed(entered)
        self._put(operation, OPERATIONS, entered, args, tensors(out), preds, params)

    def layer(self, layer: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
        """Book a layer: one with sites, one without weights, or a black box."""
        given = inspect.signature(layer.call).bind(*args, **kwargs).arguments
        data = {name: one for name, one in given.items() if not name.endswith("mask")}
        entered, outputs = tensors(list(data.values())), tensors(out)
        composite = _composite(layer)
        if not self.owns_sites(layer):
            preds = self.trace.preds(entered)
            self._put(layer, LAYERS, entered, args, outputs, preds, frozenset())
        elif composite and composite(self, layer, data, out):
            pass
        elif self._kind(layer) != "raw":
            self._visit(layer, entered, outputs)
        else:
            self._black_box(layer, entered, outputs)

    def names(self, layer: Any) -> list[str]:
        """Return the sites that ``layer`` itself holds."""
        return self._names.get(id(layer), [])

    def labels(self, tensor: Any) -> Labels:
        """Return the axes of a tensor."""
        labels, rank = self.trace.flow(tensor).labels, len(tensor.shape)
        return labels if len(labels) == rank else unknown(rank)

    def knows(self, layer: Any) -> bool:
        """Whether there is a rule for the layer as a whole."""
        if self._kind(layer) != "raw" or _composite(layer):
            return True
        return not self.owns_sites(layer) and rule_for(layer, LAYERS) is not None

    def owns_sites(self, layer: Any) -> bool:
        """Whether the layer, or one inside it, is a site."""
        if id(layer) not in self._owning:
            self._owning[id(layer)] = any(self._owners(inner) for _, inner in walk(layer))
        return self._owning[id(layer)]

    def stands_for(self, symbol: Any, constant: Any, read: Sequence[Any]) -> None:
        """Note what a symbol is that a layer gets in place of a constant."""
        self._attribute(constant, read)
        params = self.trace.flow(constant).params
        letters = ["T"] * len(symbol.shape)
        if letters and "float" in symbol.dtype:
            letters[-1] = "F"
        if len(letters) > 1 and symbol.shape[0] == BATCH:
            letters[0] = "N"
        labels = named(letters, symbol.shape)
        if params:
            self.trace.put_param(symbol, params, labels)
        else:
            self.trace.put(symbol, (), labels)

    def _kind(self, layer: Any) -> str:
        names = self.names(layer)
        if names:
            return self._kinds[names[0]]
        if not self._owners(layer):
            return "raw"
        return found_in(layer, NOWHERE, own_variables(layer))[0].kind

    def _owners(self, layer: Any) -> frozenset[str]:
        """Return the sites that the layer's own weights belong to."""
        known = self._of_variable
        return frozenset(known[id(v)] for v in own_variables(layer) if id(v) in known)

    def _visit(self, layer: Any, entered: list[Any], outputs: list[Any]) -> None:
        """Book a layer that is one site; further weights of it may be another's."""
        names = self.names(layer)
        others = self._owners(layer) - set(names)
        if others:
            weights = [v for v in own_variables(layer) if self._of_variable[id(v)] in others]
            self.trace.passed([*entered, *weights])
        first = self.labels(entered[0])
        for tensor in outputs:
            use = Use(self.trace, layer, entered, first, tuple(tensor.shape))
            labels = visited(use, names[0], self._kind(layer)) if names else tied(use)
            self.trace.put(tensor, {*names, *others}, labels)
        if names:
            self.note_padding(names[0], padding_of(layer, tuple(entered[0].shape)))

    def note_padding(self, name: str, padding: list[list[int]] | None) -> None:
        """Note the padding at one use of a site."""
        if self.paddings.setdefault(name, padding) != padding:
            self.paddings[name] = None

    def _black_box(self, layer: Any, entered: list[Any], outputs: list[Any]) -> None:
        names = {name for _, inner in walk(layer) for name in self._owners(inner)}
        for name in names:
            self.trace.visit(name, entered, None if self._kinds[name] == "raw" else UNKNOWN)
        for tensor in outputs:
            self.trace.put(tensor, names, unknown(len(tensor.shape)))

    def _put(
        self,
        operation: Any,
        table: Mapping[str, Rule],
        entered: Sequence[Any],
        args: Sequence[Any],
        outputs: Sequence[Any],
        preds: frozenset[str],
        params: frozenset[str],
    ) -> None:
        """Book what comes out of something without weights of its own."""
        operands = [self._operand(tensor) for tensor in entered]
        for index, tensor in enumerate(outputs):
            shape = tuple(tensor.shape)
            labels = unknown(len(shape))
            if not any(None in one for one in (shape, *(operand.shape for operand in operands))):
                call = Call(self.trace, operation, operands, args, shape, index)
                labels = after(call, table)
            if params and not preds:
                self.trace.put_param(tensor, params, labels)
            else:
                self.trace.put(tensor, preds, labels)

    def _operand(self, tensor: Any) -> Operand:
        known = isinstance(tensor, keras.KerasTensor) or self.trace.flow(tensor).params
        return Operand(self.labels(tensor) if known else None, tuple(tensor.shape))

    def _attribute(self, tensor: Any, read: Sequence[Any]) -> None:
        """Note of a concrete tensor which parameters it must be made of: what was read, by shape.

        Keras runs operations on variables alone at once, and nobody sees them.
        """
        if isinstance(tensor, keras.KerasTensor | keras.Variable | np.ndarray):
            return
        if self.trace.flow(tensor).params or not keras.ops.is_tensor(tensor):
            return
        made_of = {
            self._of_variable[id(variable)]
            for variable in read
            if id(variable) in self._of_variable
            and _may_come_from(tuple(tensor.shape), tuple(variable.shape))
        }
        if made_of:
            self.trace.put_param(tensor, made_of, _anonymous(tensor))


def _composite(layer: Any) -> CompositeRule | None:
    if not runs_keras(layer):
        return None
    return next((rule for cls, rule in COMPOSITES if isinstance(layer, cls)), None)


def _may_come_from(shape: tuple[int, ...], source: tuple[int, ...]) -> bool:
    """Whether an array of ``source`` shape was reshaped, sliced or repeated to ``shape``."""
    if np.prod(shape) == np.prod(source):
        return True
    width = min(len(shape), len(source))
    if not width or not shape[-1] == source[-1] > 1:
        return False
    pairs = list(zip(shape[-width:], source[-width:], strict=True))
    is_slice = len(shape) == len(source) and all(new <= old for new, old in pairs)
    is_repeated = len(shape) >= len(source) and all(old in (1, new) for new, old in pairs)
    return is_slice or is_repeated


def _anonymous(tensor: Any) -> Labels:
    return named("F" * len(tensor.shape), tensor.shape)
