"""How data flows through a torch module: one eval forward, seen by module hooks and dispatch.

Modules of known kinds report as sites; every operation between them is seen as the tensor
operation it is, so functional flattens, views and permutes count like module ones.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ltcore.errors import ModelError
from ltcore.parameters import Interface, Site, Structure
from ltcore.tracing import Labels, Trace, group_of, reshaped, spatial, unknown
from ltcore_torch._layouts import tensors_in
from ltcore_torch._names import kind_of, walk
from ltcore_torch._training import inference

_RESHAPES = {"view", "_unsafe_view", "reshape", "_reshape_alias"}
_REDUCTIONS = {"mean", "sum", "amax", "amin"}
# Operations that leave the meaning of each axis alone.
_KEEPING = {
    "abs", "add", "add_", "alias", "avg_pool1d", "avg_pool2d", "avg_pool3d", "bernoulli_",
    "celu", "clamp", "clamp_min", "clone", "constant_pad_nd", "contiguous", "copy_", "detach",
    "div", "div_", "elu", "elu_", "exp", "gelu", "hardsigmoid", "hardswish", "hardswish_",
    "hardtanh", "hardtanh_", "leaky_relu", "leaky_relu_", "log_sigmoid_forward", "_log_softmax",
    "max_pool1d_with_indices", "max_pool2d_with_indices", "max_pool3d_with_indices",
    "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool2d", "mish", "mul", "mul_",
    "native_batch_norm", "native_dropout", "neg", "pow", "reflection_pad1d", "reflection_pad2d",
    "relu", "relu_", "replication_pad2d", "sigmoid", "sigmoid_", "silu", "silu_", "slice",
    "_softmax", "softplus", "sqrt", "sub", "sub_", "tanh", "tanh_", "_to_copy",
    "upsample_bilinear2d", "upsample_nearest2d",
}  # fmt: skip


def traced(model: nn.Module, sites: Sequence[Site], inputs: tuple[torch.Tensor, ...]) -> Structure:
    """Return the structure with predecessors, feature groups, inputs and outputs.

    Raises:
        ModelError: the model does not take ``inputs``.
    """
    names = {site.name: site for site in sites}
    modules = {module: name for name, module in _named(model, names)}
    run = _Run(modules, {site.name: site.kind for site in sites})
    labels = [_input_labels(tensor, sites) for tensor in inputs]
    for tensor, axes in zip(inputs, labels, strict=True):
        run.trace.put(tensor, (), axes)
    outputs = run.forward(model, inputs)
    ends = run.trace.preds(outputs)
    order = {site.name: i for i, site in enumerate(sites)}
    placed = []
    for site in sites:
        visit = run.trace.visits.get(site.name)
        preds = tuple(sorted(visit.preds, key=order.__getitem__)) if visit else ()
        group = visit.in_group if visit else None
        placed.append(
            Site(site.name, site.kind, site.roles, site.attrs, preds, group, site.name in ends)
        )
    ends_in = [run.trace.flow(t).labels or unknown(t.dim()) for t in outputs]
    mixed = any(group_of(label) for axes in ends_in for label in axes if not isinstance(label, str))
    return Structure(
        tuple(placed),
        tuple(_face(t, axes) for t, axes in zip(inputs, labels, strict=True)),
        # Channels and space in one output axis: no framework-free order, so nothing to compare.
        None if mixed else tuple(map(_face, outputs, ends_in)),
    )


def _named(model: nn.Module, sites: dict[str, Site]) -> list[tuple[str, nn.Module]]:
    """Return ``(site name, module)`` of known kinds."""
    from_path = {
        site.roles[0].native.rpartition(".")[0]: n for n, site in sites.items() if site.roles
    }
    return [
        (from_path.get(path, path), module)
        for path, module in walk(model)
        if kind_of(module) != "raw" and (path in from_path or path in sites)
    ]


def _input_labels(tensor: torch.Tensor, sites: Sequence[Site]) -> Labels:
    rank = tensor.dim()
    one_dimensional = any(s.kind in ("conv", "depthwise", "conv_transpose") and s.roles
                          and len(s.roles[0].shape) == 3 for s in sites)  # fmt: skip
    if rank >= 4 or (rank == 3 and one_dimensional):
        return ("N", "C", *spatial(rank - 2))
    if not tensor.is_floating_point():
        return ("N", *("T",) * (rank - 1))
    return ("N", *("T",) * (rank - 2), "F") if rank > 1 else ("N",)


def _face(tensor: torch.Tensor, labels: Labels) -> Interface:
    axes = tuple(label if isinstance(label, str) else "F" for label in labels)
    # Probe inputs are made in float32 and cast to the model's dtype where they enter it.
    dtype = "float32" if tensor.is_floating_point() else str(tensor.dtype).removeprefix("torch.")
    return Interface(axes, (0, *tensor.shape[1:]), dtype)


class _Run:
    """One forward under observation."""

    def __init__(self, modules: dict[nn.Module, str], kinds: dict[str, str]) -> None:
        self.trace = Trace()
        self._modules = modules
        self._kinds = kinds
        self.inside = 0

    def forward(self, model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
        handles = []
        try:
            for module in self._modules:
                handles.append(module.register_forward_pre_hook(self._enter))
                handles.append(module.register_forward_hook(self._leave))
            with inference(model), torch.random.fork_rng(devices=[]), _Dispatch(self):
                result = model(*inputs)
        except Exception as error:
            raise ModelError(
                f"the model does not take the example ({[tuple(t.shape) for t in inputs]}): "
                f"{type(error).__name__}: {error}"
            ) from error
        finally:
            for handle in handles:
                handle.remove()
        return tensors_in(result)

    def _enter(self, module: nn.Module, args: Any) -> None:
        self.inside += 1
        if self.inside == 1:
            name = self._modules[module]
            self.trace.visit(name, tensors_in(args), _feature_axis(self._kinds[name]))

    def _leave(self, module: nn.Module, args: Any, result: Any) -> None:
        self.inside -= 1
        if self.inside:
            return
        name = self._modules[module]
        entered = tensors_in(args)
        before = self.trace.flow(entered[0]).labels if entered else ()
        for tensor in tensors_in(result):
            self.trace.put(tensor, {name}, _after_site(self._kinds[name], before, tensor.dim()))

    def see(self, operation: str, args: Sequence[Any], result: Any) -> None:
        """Report an operation between sites."""
        entered = tensors_in(args)
        preds = self.trace.preds(entered)
        for tensor in tensors_in(result):
            if any(tensor is other for other in entered):
                self.trace.put(tensor, preds, self.trace.flow(tensor).labels)
            else:
                self.trace.put(tensor, preds, self._labels(operation, args, entered, tensor))

    def _labels(
        self, operation: str, args: Sequence[Any], entered: list[torch.Tensor], result: torch.Tensor
    ) -> Labels:
        known = [t for t in entered if self.trace.flow(t).labels]
        if not known:
            return unknown(result.dim())
        if operation == "cat":
            return _concatenated([self.trace.flow(t).labels for t in entered], args, result)
        main = max(known, key=torch.Tensor.numel)
        labels = self.trace.flow(main).labels
        rule = _RULES.get(operation)
        if rule:
            return rule(labels, main, args, result)
        peers = [self.trace.flow(t).labels for t in known if t.dim() == main.dim()]
        if operation in _KEEPING and result.dim() == main.dim():
            return labels if all(peer == labels for peer in peers) else unknown(result.dim())
        return unknown(result.dim())


class _Dispatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Shows a run every tensor operation outside known modules."""

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
        if self._run.inside == 0:
            self._run.see(func._schema.name.partition("::")[2], args, result)
        return result


def _feature_axis(kind: str) -> int:
    return -1 if kind in ("linear", "layernorm", "embedding") else 1


def _after_site(kind: str, before: Labels, rank: int) -> Labels:
    if kind in ("conv", "depthwise", "conv_transpose"):
        return ("N", "C", *spatial(rank - 2))
    if kind == "linear":
        return (*before[:-1], "F") if before else unknown(rank)
    if kind == "embedding":
        return (*before, "F") if before else unknown(rank)
    return before or unknown(rank)


def _reshape(labels: Labels, main: torch.Tensor, _args: Any, result: torch.Tensor) -> Labels:
    return reshaped(labels, tuple(main.shape), tuple(result.shape))


def _permute(labels: Labels, _main: Any, args: Any, _result: Any) -> Labels:
    return tuple(labels[axis] for axis in args[1])


def _transpose(labels: Labels, _main: Any, args: Any, _result: Any) -> Labels:
    swapped = list(labels)
    first, second = args[1], args[2]
    swapped[first], swapped[second] = swapped[second], swapped[first]
    return tuple(swapped)


def _flip(labels: Labels, _main: Any, _args: Any, _result: Any) -> Labels:
    return labels[::-1]


def _concatenated(flows: list[Labels], args: Any, result: torch.Tensor) -> Labels:
    """Return the labels of parts of one meaning; a flattened axis loses its order."""
    if any(flow != flows[0] for flow in flows):
        return unknown(result.dim())
    labels = list(flows[0])
    axis = (args[1] if len(args) > 1 else 0) % result.dim()
    if not isinstance(labels[axis], str):
        labels[axis] = "?"
    return tuple(labels)


def _unsqueeze(labels: Labels, _main: Any, args: Any, result: torch.Tensor) -> Labels:
    axis = args[1] % result.dim()
    return (*labels[:axis], "T", *labels[axis:])


def _select(labels: Labels, main: torch.Tensor, args: Any, _result: Any) -> Labels:
    axis = args[1] % main.dim()
    return labels[:axis] + labels[axis + 1 :]


def _squeeze(labels: Labels, main: torch.Tensor, args: Any, _result: Any) -> Labels:
    asked = args[1] if len(args) > 1 else range(main.dim())
    axes = {axis % main.dim() for axis in ([asked] if isinstance(asked, int) else asked)}
    gone = {axis for axis in axes if main.shape[axis] == 1}
    return tuple(label for axis, label in enumerate(labels) if axis not in gone)


def _reduce(labels: Labels, main: torch.Tensor, args: Any, result: torch.Tensor) -> Labels:
    if result.dim() == main.dim():
        return labels
    asked = args[1] if len(args) > 1 else range(main.dim())
    gone = {axis % main.dim() for axis in ([asked] if isinstance(asked, int) else asked)}
    return tuple(label for axis, label in enumerate(labels) if axis not in gone)


_RULES: dict[str, Callable[[Labels, Any, Any, Any], Labels]] = {
    **dict.fromkeys(_RESHAPES, _reshape),
    **dict.fromkeys(_REDUCTIONS, _reduce),
    "permute": _permute,
    "transpose": _transpose,
    "t": _flip,
    "unsqueeze": _unsqueeze,
    "select": _select,
    "squeeze": _squeeze,
}
