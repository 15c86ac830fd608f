"""Keras on PyTorch: training steps run line by line, and the model is a torch module too.

So somebody may train it with an optimizer of torch and never call one of Keras. torch tells of
each step of any of its optimizers; there are ears on those as well.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import torch
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from ltcore.arrays import Array
from ltcore_keras._engine_any import Ears, Engine


class Torch(Engine):
    """PyTorch, eager."""

    capabilities = frozenset({"gradients"})

    def check_trains(self, model: Any) -> None:
        """Every model trains."""

    def gradients(self, variables: Sequence[Any], loss: Callable[[], Any]) -> list[Any]:
        """Return dense gradients; ``.grad`` and what is trainable stay as they are."""
        params = [variable.value for variable in variables]
        frozen = [param for param in params if not param.requires_grad]
        try:
            for param in frozen:
                param.requires_grad_(True)
            with torch.enable_grad():
                value = keras.ops.sum(loss())
            found = torch.autograd.grad(value, params, allow_unused=True)
        finally:
            for param in frozen:
                param.requires_grad_(False)
        return [
            torch.zeros_like(param) if gradient is None else gradient
            for param, gradient in zip(params, found, strict=True)
        ]

    def as_numpy(self, tensor: Any) -> Array:
        """Return a copy of the values, bfloat16 as float32; Keras's own way makes numpy 2 warn."""
        value = keras.ops.convert_to_tensor(tensor).detach().cpu()
        array: Array = (value.float() if value.dtype is torch.bfloat16 else value).numpy()
        return array.copy()  # that of a tensor on the CPU is its memory

    def where_kept(self, mask: Any, values: Any) -> Any:
        """Return masked values, which may be a sparse gradient; they carry no gradient."""
        with torch.no_grad():
            if isinstance(values, torch.Tensor) and values.layout is torch.sparse_coo:
                values = values.coalesce()
                rows = mask.value[tuple(values.indices())]
                kept = super().where_kept(rows, values.values())
                return torch.sparse_coo_tensor(
                    values.indices(), kept, values.shape, is_coalesced=True, check_invariants=False
                )
            return super().where_kept(mask, values)

    def on_gradient(self, variable: Any, mask: Any) -> Ears | None:
        """Return a hook on the parameter: the user may clip ``.grad``, or step in a closure."""
        if not variable.value.requires_grad:
            return None

        def masked(param: Any) -> None:
            if param.grad is None:
                return
            if param.grad.requires_grad:  # the user differentiates through it
                param.grad = torch.where(mask.value, param.grad, 0)
            else:
                param.grad = self.where_kept(mask, param.grad)

        ears: Ears = variable.value.register_post_accumulate_grad_hook(masked)
        return ears

    def ears(self, live: Callable[[], list[Any]]) -> list[Ears]:
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
                    slot.copy_(self.where_kept(mask, slot))

    def reset_foreign(self, optimizer: Any) -> None:
        """Forget momentum and the like; the learning rate stays as it is."""
        optimizer.state.clear()


def _params(optimizer: Any) -> list[Any]:
    return [param for group in optimizer.param_groups for param in group["params"]]


ENGINE = Torch()
