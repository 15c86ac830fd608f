"""Pruned weights of a torch module stay exactly 0.0, whoever updates them.

Two guards, because one alone is wrong: gradients are masked as they are accumulated, so pruned
entries count neither in a clipped norm nor in momentum; weights are masked after every update,
so no optimizer can move them. Masks are bit patterns: ``and`` gives +0.0 also where there was a
NaN, an infinity or a negative zero, and costs what a multiplication costs. Nothing is stored on
the module but a forward hook, which checks for weights that were loaded or replaced by hand.
"""

import weakref
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from ltcore.arrays import Array
from ltcore.errors import CapabilityError
from ltcore.masks import Masks
from ltcore_torch._slots import Slot
from ltcore_torch._steps import listen, unlisten

_suspended: ContextVar[bool] = ContextVar("suspended", default=False)

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@contextmanager
def suspended() -> Iterator[None]:
    """Let forwards inside see the weights as they are: a probe writes made-up ones."""
    token = _suspended.set(True)
    try:
        yield
    finally:
        _suspended.reset(token)


class HeldTensor:
    """One parameter under a mask, or under several that prune parts of it."""

    def __init__(self, slot: Slot) -> None:
        self._module = weakref.ref(slot.module)
        self._attribute = slot.attribute
        self._hook: RemovableHandle | None = None
        self._seen: weakref.ref[torch.Tensor] = weakref.ref(slot.whole)
        self._version = -1
        self._grad: weakref.ref[torch.Tensor] | None = None
        self._grad_version = -1
        self.set_masks(())

    def set_masks(self, masks: Sequence[tuple[slice | None, Array]]) -> None:
        """Take other masks.

        Args:
            masks: ``(rows, bool array of their shape)``; rows that none is for are all kept, and
                ``None`` stands for all rows.
        """
        param = self.param
        self._bits = torch.full(() if param is None else param.shape, -1, dtype=torch.int8)
        for rows, mask in masks:
            self._bits[... if rows is None else rows] = -torch.from_numpy(mask.astype(np.int8))
        self.prunes = not self._bits.all()

    @property
    def param(self) -> torch.Tensor | None:
        """The parameter that is in the module now; None once the module is gone."""
        module = self._module()
        return None if module is None else Slot(module, self._attribute).whole

    def enforce(self, param: torch.Tensor) -> None:
        """Zero pruned weights."""
        self._watch_gradient(param)
        self._zero(param)
        self._version = param._version

    def enforce_if_touched(self, param: torch.Tensor) -> None:
        """Zero pruned weights if anyone wrote to, replaced or unfroze the parameter since."""
        replaced = param is not self._seen()
        if replaced and not isinstance(param, nn.Parameter):
            return  # torch.func.functional_call lends the module somebody's tensors
        unfrozen = param.requires_grad and self._hook is None
        if replaced or unfrozen or param._version != self._version:
            self.enforce(param)

    def mask_gradient(self, param: torch.Tensor) -> None:
        """Zero the gradient of pruned weights, unless nobody touched it since the last time."""
        grad = param.grad
        if grad is None or grad.layout is not torch.strided:
            return  # a sparse gradient is left; the weight mask holds on its own
        if self._grad and grad is self._grad() and grad._version == self._grad_version:
            return
        if grad.requires_grad:  # the user differentiates through it: no writing in place
            param.grad = grad = torch.where(self._bits != 0, grad, 0)
        else:
            self._zero(grad)
        self._grad, self._grad_version = weakref.ref(grad), grad._version

    def clear_slots(self, param: torch.Tensor, optimizer: Optimizer) -> None:
        """Zero momentum and the like of pruned weights."""
        for value in optimizer.state.get(param, {}).values():
            if isinstance(value, torch.Tensor) and value.shape == param.shape:
                kept = (self._bits != 0).to(value.device)
                value.masked_fill_(~kept, 0)

    def release(self) -> None:
        """Remove the gradient hook."""
        if self._hook:
            self._hook.remove()
            self._hook = None

    def _watch_gradient(self, param: torch.Tensor) -> None:
        if param is not self._seen():
            self.release()
            self._seen = weakref.ref(param)
        if self._hook is None and param.requires_grad:
            hook = _MaskGradient(self)
            self._hook = param.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    def _zero(self, tensor: torch.Tensor) -> None:
        if self._bits.device != tensor.device or self._bits.element_size() != tensor.element_size():
            integer = _INTEGERS[tensor.element_size()]
            self._bits = self._bits.to(device=tensor.device, dtype=integer)
        tensor.detach().view(self._bits.dtype).bitwise_and_(self._bits)


def _is_real(slot: Slot) -> bool:
    return slot.tensor.dtype.is_floating_point and slot.tensor.element_size() in _INTEGERS


class _MaskGradient:
    """A gradient hook; copies of the model do not take it along (torch drops such hooks)."""

    def __init__(self, held: HeldTensor) -> None:
        self._held = weakref.ref(held)

    def __call__(self, param: torch.Tensor) -> None:
        held = self._held()
        if held is not None:
            held.mask_gradient(param)


class _ForwardCheck:
    """A forward hook that masks weights that were written outside an optimizer.

    A copied or pickled model is no held model: there the hook becomes ``{}.get``, a builtin that
    hands the inputs through, so that loading needs no ltcore.
    """

    def __init__(self, hold: "TorchHold") -> None:
        self._hold = weakref.ref(hold)

    def __call__(self, _module: nn.Module, _args: Any) -> None:
        if torch.compiler.is_compiling() or _suspended.get():
            return
        hold = self._hold()
        if hold is not None:
            hold.enforce_if_touched()

    def __deepcopy__(self, _memo: Any) -> Any:
        return {}.get

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, ({}, "get")


class TorchHold:
    """The `ltcore.backend.MaskHandle` of a torch module."""

    def __init__(self, model: nn.Module, slots: Mapping[str, Slot], masks: Masks) -> None:
        odd = {name: slots[name].tensor.dtype for name in masks if not _is_real(slots[name])}
        if odd:
            raise CapabilityError(f"only real floating-point parameters can be held; found {odd}")
        # No slots are kept: they would keep the model alive.
        self._places = {name: (slots[name].place, slots[name].rows) for name in masks}
        self._tensors = {slots[name].place: HeldTensor(slots[name]) for name in masks}
        self._cleared: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self._forward = model.register_forward_pre_hook(_ForwardCheck(self))
        listen(self, first=True)
        self.update(masks)

    def update(self, masks: Masks) -> None:
        """Hold ``masks``, which are over the same parameters as before, from now on."""
        joined: dict[tuple[int, str], list[tuple[slice | None, Array]]] = defaultdict(list)
        for name, mask in masks.items():
            place, rows = self._places[name]
            joined[place].append((rows, mask))
        for place, parts in joined.items():
            self._tensors[place].release()
            self._tensors[place].set_masks(parts)
        self._cleared.clear()
        self.enforce()

    def enforce(self) -> None:
        """Zero every pruned weight now."""
        for tensor, param in self._live():
            tensor.enforce(param)

    def enforce_if_touched(self) -> None:
        """Zero pruned weights of parameters that someone wrote to."""
        for tensor, param in self._live():
            tensor.enforce_if_touched(param)

    def release(self) -> None:
        """Remove every hook."""
        unlisten(self)
        self._forward.remove()
        for tensor in self._tensors.values():
            tensor.release()

    def before_step(self, optimizer: Optimizer, owned: set[int]) -> None:
        """Mask gradients that were made or changed behind the gradient hook."""
        known = optimizer in self._cleared
        for tensor, param in self._live(owned):
            tensor.mask_gradient(param)
            if not known:
                tensor.clear_slots(param, optimizer)
        self._cleared.add(optimizer)

    def after_step(self, optimizer: Optimizer, owned: set[int], calling: set[int]) -> None:
        """Mask the weights that the optimizer owns."""
        for tensor, param in self._live(owned):
            tensor.enforce(param)

    def _live(self, owned: set[int] | None = None) -> Iterator[tuple[HeldTensor, torch.Tensor]]:
        """Yield what prunes, still exists (a handle may outlive its model), and is ``owned``."""
        for tensor in self._tensors.values():
            param = tensor.param if tensor.prunes else None
            if param is not None and (owned is None or id(param) in owned):
                yield tensor, param
