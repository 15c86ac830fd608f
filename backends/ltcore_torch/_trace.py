"""How data flows through a torch module: one eval forward, seen by module hooks and dispatch.

Modules of known kinds report as sites; every operation between them is seen as the tensor
operation it is, so functional flattens, views and permutes count like module ones.
"""

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ltcore.axes import UNKNOWN, Labels, face_axes, spatial, unknown
from ltcore.errors import ModelError
from ltcore.layouts import UNKNOWN_GROUP
from ltcore.parameters import Interface, Site, Structure
from ltcore.tracing import Trace, is_line
from ltcore_torch._calls import Call, anonymous
from ltcore_torch._inference import inference
from ltcore_torch._layouts import tensors_in
from ltcore_torch._names import Inventory
from ltcore_torch._operations import MADE_ANEW, labels_after
from ltcore_torch._visits import fits, is_observed, visit


def traced(model: nn.Module, found: Inventory, inputs: tuple[torch.Tensor, ...]) -> Structure:
    """Return the structure with predecessors, feature groups, inputs and outputs.

    Raises:
        ModelError: the model does not take ``inputs``.
    """
    run = _Run(found)
    for index, tensor in enumerate(inputs):
        run.trace.put_input(tensor, index, _input_axes(tensor, found.sites), tensor.shape)
    outputs = run.forward(model, inputs)
    ends = [_output_labels(run.trace, tensor, found.sites) for tensor in outputs]
    sites = run.trace.placed(found.sites, outputs)
    faces = [_input_face(run.trace, tensor, i, sites) for i, tensor in enumerate(inputs)]
    return Structure(
        sites,
        tuple(faces),
        # Channels and space in one output axis: no framework-free order, so nothing to compare.
        None if _mixed(run.trace, ends) else tuple(map(_face, outputs, ends)),
        _disordered(run.trace, len(inputs)),
    )


def run_once(
    model: nn.Module,
    inputs: tuple[torch.Tensor, ...],
    seen: AbstractContextManager[Any] | None = None,
) -> Any:
    """Return what the model makes of ``inputs`` in inference, inside of ``seen``.

    Raises:
        ModelError: the model does not take ``inputs``.
    """
    try:
        with inference(model), seen or nullcontext():
            return model(*inputs)
    except Exception as error:
        raise ModelError(
            f"the model does not take the example ({[tuple(t.shape) for t in inputs]}): "
            f"{type(error).__name__}: {error}"
        ) from error


def _disordered(trace: Trace, inputs: int) -> str:
    """Return what keeps the features of an input from having one order everywhere."""
    for index in range(inputs):
        if trace.out_group(f"@{index}") is not None:
            return (
                f"input {index} is one axis of features that become channels and space inside, so "
                "their order depends on the framework; let the model take an image"
            )
    return ""


def _input_axes(tensor: torch.Tensor, sites: Sequence[Site]) -> tuple[str, ...]:
    rank = tensor.dim()
    if rank >= 4 or (rank == 3 and is_line(sites, 0)):
        return ("N", "C", *spatial(rank - 2))
    if not tensor.is_floating_point():
        return ("N", *("T",) * (rank - 1))[:rank]
    return ("N", *("T",) * (rank - 2), "F") if rank > 1 else ("N",) * rank


def _output_labels(trace: Trace, tensor: torch.Tensor, sites: Sequence[Site]) -> Labels:
    labels = trace.flow(tensor).labels or unknown(tensor.dim())
    is_image = tensor.dim() > 3 or (tensor.dim() == 3 and is_line(sites, -1))
    return trace.as_image(labels, 1) if is_image else labels


def _mixed(trace: Trace, ends: Sequence[Labels]) -> bool:
    groups = [trace.group_of(axis) for labels in ends for axis in labels]
    return any(group not in (None, UNKNOWN_GROUP) for group in groups)


def _input_face(trace: Trace, tensor: torch.Tensor, index: int, sites: Sequence[Site]) -> Interface:
    labels = trace.flow(tensor).labels
    if tensor.is_floating_point():
        return _face(tensor, labels)
    return _face(tensor, labels, trace.vocabulary(index, sites) or 2)


def _face(tensor: torch.Tensor, labels: Labels, vocabulary: int | None = None) -> Interface:
    # Probe inputs are made in float32 and cast to the model's dtype where they enter it.
    dtype = "float32" if tensor.is_floating_point() else str(tensor.dtype).removeprefix("torch.")
    axes = face_axes(labels)
    if labels[:1] == ((),):
        axes = ("N", *axes[1:])  # the example is a single one
    return Interface(axes, (0, *tensor.shape[1:]), dtype, vocabulary)


class _Run:
    """One forward under observation."""

    def __init__(self, found: Inventory) -> None:
        self.trace = Trace()
        self._layers = {layer.module: layer for layer in found.layers if is_observed(layer)}
        self._inside: list[bool] = []
        self._thread = threading.get_ident()
        # By memory, the tensor through which it was written to last.
        self._written: dict[int, torch.Tensor] = {}
        owners: dict[int, tuple[torch.Tensor, set[str]]] = {}
        for name, slot in found.slots.items():
            if not slot.is_buffer:
                owners.setdefault(id(slot.whole), (slot.whole, set()))[1].add(_site(name))
        for tensor, sites in owners.values():
            self.trace.put_param(tensor, sites, anonymous(tensor.shape))

    @property
    def inside(self) -> bool:
        """Whether a known layer is at work, whose operations are its own matter."""
        return any(self._inside)

    def forward(self, model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
        """Run the model, and return its outputs."""
        handles = []
        try:
            for module in self._layers:
                handles.append(module.register_forward_pre_hook(self._enter, with_kwargs=True))
                handles.append(
                    module.register_forward_hook(self._leave, with_kwargs=True, always_call=True)
                )
            result = run_once(model, inputs, _Dispatch(self))
        finally:
            for handle in handles:
                handle.remove()
        return tensors_in(result)

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._is_ours():
            self._inside.append(fits(self._layers[module], tensors_in((args, kwargs))))

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        if not self._is_ours():
            return
        observed = self._inside.pop()
        if observed and not self.inside and result is not None:  # None: it raised
            self._refresh(tensors_in((args, kwargs)))
            visit(self.trace, self._layers[module], args, kwargs, result)

    def _is_ours(self) -> bool:
        """Whether this is the forward under observation, not one that another thread makes."""
        return threading.get_ident() == self._thread

    def see(self, function: Any, args: Sequence[Any], kwargs: Any, result: Any) -> None:
        """Report an operation between sites."""
        call = Call.of(self.trace, function, args, kwargs)
        self._refresh(call.tensors)
        if call.name in MADE_ANEW:
            return
        preds, params = self.trace.passed(call.tensors)
        if preds:
            self._doubt(call)
        if not (preds or params):
            return  # made of constants alone
        for position, tensor in enumerate(tensors_in(result)):
            labels = labels_after(call, tensor, position)
            if preds:
                self.trace.put(tensor, preds, labels)
            else:
                self.trace.put_param(tensor, params, labels)
        self._written |= {_memory(tensor): tensor for tensor in call.written}

    def _doubt(self, call: Call) -> None:
        """Where data meets parameters outside a layer, nobody knows which axes belong together."""
        flows = [self.trace.flow(tensor) for tensor in call.tensors]
        axes = [axis for flow in flows if flow.preds for axis in flow.labels]
        if any(self.trace.group_of(axis) is not None for axis in axes):
            for site in frozenset().union(*(flow.params for flow in flows)):
                self.trace.visits[site].axis = UNKNOWN

    def _refresh(self, tensors: Sequence[torch.Tensor]) -> None:
        """Take in what was written to tensors through another view of their memory."""
        for tensor in tensors if self._written else ():
            view = self._written.get(_memory(tensor), tensor)
            known, came = self.trace.flow(tensor), self.trace.flow(view)
            if not came.preds <= known.preds:
                labels = self._overwritten(tensor, view)
                self.trace.put(tensor, came.preds | known.preds, labels)

    def _overwritten(self, tensor: torch.Tensor, view: torch.Tensor) -> Labels:
        """Return the labels of a tensor of which ``view`` shows a part that was written to."""
        strides = zip(view.shape, view.stride(), tensor.stride(), strict=False)
        if view.dim() != tensor.dim() or any(s != t for size, s, t in strides if size > 1):
            return unknown(tensor.dim())
        old, new = self.trace.flow(tensor).labels, self.trace.flow(view).labels
        placed = [self.trace.sliced(axis, n) for axis, n in zip(new, tensor.shape, strict=True)]
        both = [(tuple(placed), tensor.shape), *([(old, tensor.shape)] if old else [])]
        return self.trace.broadcast(both, tensor.dim())


class _Dispatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Shows a run every tensor operation outside known layers."""

    def __init__(self, run: _Run) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._run = run

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Any = (),
        kwargs: Any = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self._run.inside:
            self._run.see(func, args, kwargs, result)
        return result


def _memory(tensor: torch.Tensor) -> int:
    """Return the same number for tensors that share memory."""
    if tensor.layout is not torch.strided:
        return id(tensor)
    return int(tensor.untyped_storage()._cdata)


def _site(parameter: str) -> str:
    return parameter.rpartition(".")[0]
