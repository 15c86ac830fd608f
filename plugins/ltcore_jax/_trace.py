"""How data flows through a Flax module: its jaxpr, read operation by operation.

JAX writes down every operation of a call without computing any. Calls of known layers are wrapped
in a compiled function each, which shows in the jaxpr under a name of ours; all else is what it is.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ltcore.axes import UNKNOWN, unknown
from ltcore.errors import gist
from ltcore.parameters import Site, Structure
from ltcore.tracing import Trace
from ltcore_jax._faces import (
    UntraceableError,
    face_dtype,
    input_face,
    input_names,
    output_face,
)
from ltcore_jax._names import Inventory, Layer
from ltcore_jax._observe import observe
from ltcore_jax._operations import Operation, labels_after
from ltcore_jax._twin import Pure, as_args
from ltcore_jax._visits import anonymous, padding_of, visited

BATCH = 11
"""Examples in the batch that is traced: a number that is seldom a size of anything else."""

_NAME = re.compile(r"ltcore_layer_(\d+)_(\d+)")


def described(model: nnx.Module, found: Inventory, example: Any) -> Structure:
    """Return the structure with its graph; where that cannot be had, with the reason."""
    try:
        return _traced(model, found, example)
    except UntraceableError as error:
        return Structure(found.sites, untraced=str(error))
    except Exception as error:  # noqa: BLE001  the user's code runs here; it may fail in any way
        return Structure(found.sites, untraced=f"a trace of the model failed: {gist(error)}")


def _traced(model: nnx.Module, found: Inventory, example: Any) -> Structure:
    args = [jax.ShapeDtypeStruct((BATCH, *x.shape[1:]), x.dtype) for x in _arrays(example)]
    pure = Pure(model, _observed)
    made = jax.make_jaxpr(pure)(pure.values, args)
    run = _Run(found)
    entries = made.jaxpr.invars
    inner, data = entries[: len(pure.values)], entries[len(pure.values) :]
    for name, var in zip(sorted(pure.values), inner, strict=True):  # JAX sorts what has names
        run.is_param(var, name, found)
    faces = [(x.shape, face_dtype(x.dtype, len(x.shape))) for x in args]
    for index, (var, (shape, dtype)) in enumerate(zip(data, faces, strict=True)):
        run.trace.put_input(var, index, input_names(shape, dtype, found.sites), shape)
    run.walk(made.jaxpr)
    outputs = made.jaxpr.outvars
    ends = [output_face(var.aval.shape, run.labels(var), run.trace, found.sites) for var in outputs]
    sites = _padded(run.trace.placed(found.sites, outputs), run.paddings)
    starts = [input_face(*face, index, run.trace, sites) for index, face in enumerate(faces)]
    return Structure(sites, tuple(starts), tuple(ends))


def _arrays(example: Any) -> list[Any]:
    args = as_args(example)
    if not all(isinstance(arg, jax.Array) for arg in args):
        raise UntraceableError("the model takes something other than arrays")
    return list(args)


def _observed(_twin: nnx.Module, found: Inventory) -> None:
    for number, layer in enumerate(found.layers):
        if layer.whole:
            observe(layer.module, _Wrap(number))


@dataclass(frozen=True)
class _Wrap:
    """Makes the calls of a layer in a compiled function that has its number in the name."""

    number: int

    def __call__(
        self, layer: Any, call: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        if len(args) != 1 or not hasattr(args[0], "ndim") or jax.tree.leaves(dict(kwargs)):
            return call(layer, *args, **kwargs)  # a mask, say: the inside is looked at

        def entered(x: Any) -> Any:
            return call(layer, x, **kwargs)

        entered.__name__ = f"ltcore_layer_{self.number}_{args[0].ndim}"
        return jax.jit(entered)(jnp.asarray(args[0]))


class _Run:
    """One jaxpr under observation."""

    def __init__(self, found: Inventory) -> None:
        self.trace = Trace()
        self.paddings: dict[str, list[list[int]]] = {}
        self._layers = found.layers

    def is_param(self, var: Any, name: str, found: Inventory) -> None:
        """Note that ``var`` is a parameter; a buffer is a constant."""
        if found.slots[name].trained:
            site = name.rpartition(".")[0]
            self.trace.put_param(var, [site], anonymous(var.aval.shape))

    def labels(self, var: Any) -> Any:
        """Return what is known of the axes of ``var``."""
        labels, rank = self.trace.flow(var).labels, len(var.aval.shape)
        return labels if len(labels) == rank else unknown(rank)

    def walk(self, jaxpr: Any) -> None:
        """Go through a jaxpr whose inputs are known."""
        for equation in jaxpr.eqns:
            named = _NAME.fullmatch(str(equation.params.get("name", "")))
            inner = _inside(equation)
            if named:
                self._visit(equation, self._layers[int(named[1])], int(named[2]))
            elif inner is not None:
                self._enter(equation, inner)
            else:
                self._see(equation)

    def _enter(self, equation: Any, inner: Any) -> None:
        """Go through the inside of an operation that is a function."""
        for var in inner.constvars:
            self.trace.put(var, (), ())
        for outer, var in zip(equation.invars, inner.invars, strict=True):
            self._pass(outer, var)
        self.walk(inner)
        for var, outer in zip(inner.outvars, equation.outvars, strict=True):
            self._pass(var, outer)

    def _pass(self, source: Any, target: Any) -> None:
        flow = self.trace.flow(source)
        if flow.params and not flow.preds:
            self.trace.put_param(target, flow.params, flow.labels)
        else:
            self.trace.put(target, flow.preds, flow.labels)

    def _visit(self, equation: Any, layer: Layer, rank: int) -> None:
        """Note that data went through a known layer: its last operand, after its weights."""
        x, (y,) = equation.invars[-1], equation.outvars
        if len(x.aval.shape) != rank:  # inside of a vmap, nobody knows which axis is which
            self.trace.visit(layer.site, [x], UNKNOWN)
            labels = unknown(len(y.aval.shape))
        else:
            labels = visited(self.trace, layer, x, y)
            if (padding := padding_of(layer.module, x.aval.shape)) is not None:
                self.paddings[layer.site] = padding
        self.trace.put(y, {layer.site}, labels)

    def _see(self, equation: Any) -> None:
        """Report an operation between layers."""
        operation = Operation(self.trace, equation)
        preds, params = self.trace.passed(equation.invars)
        if preds:
            self._doubt(equation.invars)
        for position, var in enumerate(equation.outvars):
            labels = labels_after(operation, position)
            if preds:
                self.trace.put(var, preds, labels)
            elif params:
                self.trace.put_param(var, params, labels)
            else:
                self.trace.put(var, (), ())  # made of constants alone

    def _doubt(self, operands: Sequence[Any]) -> None:
        """Where data meets parameters outside a layer, nobody knows which axes belong together."""
        flows = [self.trace.flow(var) for var in operands]
        axes = [axis for flow in flows if flow.preds for axis in flow.labels]
        if any(self.trace.group_of(axis) is not None for axis in axes):
            for site in frozenset().union(*(flow.params for flow in flows)):
                self.trace.visits[site].axis = UNKNOWN


def _inside(equation: Any) -> Any:
    """Return the jaxpr of an operation that is just a function called; None for any other."""
    if equation.primitive.name not in _CALLS:
        return None
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        found = equation.params.get(key)
        if found is not None:
            jaxpr = getattr(found, "jaxpr", found)
            return jaxpr if len(jaxpr.invars) == len(equation.invars) else None
    return None


_CALLS = frozenset(
    {
        "checkpoint", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call",
        "custom_vjp_call_jaxpr", "jit", "pjit", "remat", "remat2", "xla_call",
    }
)  # fmt: skip


def _padded(sites: Sequence[Site], paddings: Mapping[str, list[list[int]]]) -> tuple[Site, ...]:
    """Return the sites with the padding that each applies."""
    return tuple(
        replace(site, attrs={**site.attrs, "padding": paddings[site.name]})
        if site.name in paddings
        else site
        for site in sites
    )
