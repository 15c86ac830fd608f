"""Keras on PyTorch: training steps run line by line, and the model is a torch module too.

So somebody may train it with an optimizer of torch and never call one of Keras. torch tells of
each step of any of its optimizers; there are ears on those as well. Masks are bit patterns:
``and`` gives +0.0 whatever was there, in place, and is ten times as fast as a choice.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from ltcore.arrays import Array
from ltcore_keras._engine_any import Ears, Engine, no_second_derivative

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class BitMask:
    """All bits of what is kept, none of what is pruned."""

    def __init__(self, array: Array) -> None:
        self.assign(array)

    def assign(self, array: Array) -> None:
        """Take another bool array."""
        self.shape = array.shape
        self._bits = -torch.from_numpy(array.astype(np.int8))

    def bits(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the pattern as wide as the entries of ``tensor``, on its device."""
        bits = self._bits
        if bits.device != tensor.device or bits.element_size() != tensor.element_size():
            self._bits = bits.to(tensor.device, _INTEGERS[tensor.element_size()])
        return self._bits


class Torch(Engine):
    """PyTorch, eager."""

    capabilities = frozenset({"gradients", "hvp", "vjp"})

    def check_trains(self, model: Any) -> None:
        """Every model trains."""

    def gradients(self, variables: Sequence[Any], loss: Callable[[], Any]) -> list[Any]:
        """Return dense gradients; ``.grad`` and what is trainable stay as they are."""
        params = [variable.value for variable in variables]
        with _differentiable(params):
            value = keras.ops.sum(loss())
            return _dense(torch.autograd.grad(value, params, allow_unused=True), params)

    def hessian_product(
        self, variables: Sequence[Any], loss: Callable[[], Any], vector: Sequence[Any]
    ) -> list[Any]:
        """Return the gradient of the inner product of gradient and ``vector``.

        The fast forms of attention have no second derivative.
        """
        params = [variable.value for variable in variables]
        with _differentiable(params), sdpa_kernel(SDPBackend.MATH), _told_of_second_derivatives():
            value = keras.ops.sum(loss())
            first = torch.autograd.grad(value, params, create_graph=True, allow_unused=True)
            terms = [
                (gradient.to_dense() * direction).sum()
                for gradient, direction in zip(first, vector, strict=True)
                if gradient is not None and gradient.requires_grad
            ]
            if not terms:  # a loss without curvature
                return [torch.zeros_like(param) for param in params]
            return _dense(torch.autograd.grad(sum(terms), params, allow_unused=True), params)

    def pullback(self, function: Callable[[list[Any]], Any], values: list[Any]) -> list[Any]:
        """Return dense gradients."""
        leaves = [value.detach().requires_grad_(True) for value in values]
        with torch.enable_grad():
            found = torch.autograd.grad(function(leaves), leaves, allow_unused=True)
        return _dense(found, leaves)

    def as_numpy(self, tensor: Any) -> Array:
        """Return a copy of the values, bfloat16 as float32; Keras's own way makes numpy 2 warn."""
        value = keras.ops.convert_to_tensor(tensor).detach().cpu()
        array: Array = (value.float() if value.dtype is torch.bfloat16 else value).numpy()
        return array.copy()  # that of a tensor on the CPU is its memory

    def mask(self, array: Array) -> BitMask:
        """Return a bit pattern."""
        return BitMask(array)

    def where_kept(self, mask: BitMask, values: Any) -> Any:
        """Return masked values, which may be a sparse gradient; they carry no gradient."""
        tensor = keras.ops.convert_to_tensor(values).detach()
        if tensor.layout is not torch.sparse_coo:
            return _kept(tensor, mask.bits(tensor))
        tensor = tensor.coalesce()
        places, entries = tensor.indices(), tensor.values()
        kept = _kept(entries, mask.bits(entries)[tuple(places)])
        return torch.sparse_coo_tensor(
            places, kept, tensor.shape, is_coalesced=True, check_invariants=False
        )

    def zero(self, mask: BitMask, variable: Any) -> None:
        """Zero in place."""
        _zero(variable._value, mask)

    def on_gradient(self, variable: Any, mask: BitMask) -> Ears | None:
        """Return a hook on the parameter: the user may clip ``.grad``, or step in a closure."""
        if not variable.value.requires_grad:
            return None

        def masked(param: Any) -> None:
            gradient = param.grad
            if gradient is None:
                return
            if gradient.requires_grad:  # the user differentiates through it
                param.grad = torch.where(mask.bits(gradient) != 0, gradient, 0)
            elif gradient.layout is torch.strided:
                _zero(gradient, mask)
            else:
                param.grad = self.where_kept(mask, gradient)

        ears: Ears = variable.value.register_post_accumulate_grad_hook(masked)
        return ears

    def at_rest(self) -> bool:
        """Whether nothing is being compiled."""
        return not torch.compiler.is_compiling()

    def ears(self, live: Callable[[], list[Any]], pause: Callable[[], None]) -> list[Ears]:
        """Return hooks around each step of any optimizer of torch."""

        def before(optimizer: Any, _args: Any, _kwargs: Any) -> None:
            params = _params(optimizer)
            gradients = [param.grad for param in params]
            for listener in live():
                gradients = listener.before_update(optimizer, gradients, params)
            for param, gradient in zip(params, gradients, strict=True):
                if gradient is not param.grad:
                    param.grad = gradient

        def after(optimizer: Any, _args: Any, _kwargs: Any) -> None:
            params = _params(optimizer)  # their gradients may be gone by now
            listeners = live()
            for listener in listeners:
                listener.after_update(optimizer, params)
            for listener in listeners:
                listener.finished(optimizer, params, params)
            pause()

        return [
            register_optimizer_step_pre_hook(before),
            register_optimizer_step_post_hook(after),
        ]

    def clear_foreign(self, optimizer: Any, mask_of: Callable[[Any], Any]) -> None:
        """Zero momentum and the like of an optimizer of torch."""
        for param in _params(optimizer):
            mask = mask_of(param)
            if mask is None:
                continue
            for slot in optimizer.state.get(param, {}).values():
                if isinstance(slot, torch.Tensor) and slot.shape == param.shape:
                    _zero(slot, mask)

    def reset_foreign(self, optimizer: Any) -> None:
        """Forget momentum and the like; the learning rate stays as it is."""
        optimizer.state.clear()


@contextmanager
def _differentiable(params: Sequence[torch.Tensor]) -> Iterator[None]:
    """Have all of ``params`` get gradients, also frozen ones and where nothing does."""
    frozen = [param for param in params if not param.requires_grad]
    try:
        for param in frozen:
            param.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for param in frozen:
            param.requires_grad_(False)


@contextmanager
def _told_of_second_derivatives() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if any(word in str(error) for word in ("derivative for", "double backward", "twice")):
            raise no_second_derivative(error) from error
        raise


def _dense(gradients: Sequence[Any], params: Sequence[torch.Tensor]) -> list[Any]:
    return [
        torch.zeros_like(param) if gradient is None else gradient.to_dense()
        for param, gradient in zip(params, gradients, strict=True)
    ]


def _kept(tensor: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    return (tensor.view(bits.dtype) & bits).view(tensor.dtype)


def _zero(tensor: torch.Tensor, mask: BitMask) -> None:
    bits = mask.bits(tensor)
    tensor.detach().view(bits.dtype).bitwise_and_(bits)


def _params(optimizer: Any) -> list[Any]:
    return [param for group in optimizer.param_groups for param in group["params"]]


ENGINE = Torch()
