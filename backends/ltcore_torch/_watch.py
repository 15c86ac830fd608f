"""Eyes on one training of a module: updates, snapshots, the first input, fresh optimizers."""

import weakref
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ltcore.arrays import Array
from ltcore_torch._names import unwrap
from ltcore_torch._steps import listen, unlisten


class _FirstInput:
    """A forward hook that keeps one example of the first input; copies of it do nothing."""

    def __init__(self, watch: "TorchWatch") -> None:
        self._watch = weakref.ref(watch)

    def __call__(self, _module: nn.Module, args: Any) -> None:
        watch = self._watch()
        if watch is None or watch.first_input is not None or torch.compiler.is_compiling():
            return
        tensors = [arg for arg in args if isinstance(arg, torch.Tensor)]
        if tensors and len(tensors) == len(args):
            watch.first_input = tuple(tensor.detach().clone() for tensor in tensors)

    def __deepcopy__(self, _memo: Any) -> Any:
        return {}.get

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, ({}, "get")


_seen: MutableMapping[nn.Module, "weakref.WeakSet[Optimizer]"] = weakref.WeakKeyDictionary()
_stale: MutableMapping[nn.Module, "weakref.WeakSet[Optimizer]"] = weakref.WeakKeyDictionary()


def fresh_optimizer(root: nn.Module) -> None:
    """Make optimizers of earlier watched trainings start without state in the next one.

    An optimizer that first appears there is left alone: its state is new, or was loaded on purpose.
    """
    _stale[root] = weakref.WeakSet(_seen.get(root, ()))


class TorchWatch:
    """The `ltcore.backend.Watch` of a torch module; it does not keep the module alive."""

    def __init__(
        self,
        model: nn.Module,
        read: Callable[[nn.Module], dict[str, Array]],
        steps: Sequence[int],
        callback: Callable[[int], None] | None = None,
    ) -> None:
        self.steps = 0
        self.snapshots: dict[int, dict[str, Array]] = {}
        self.first_input: tuple[torch.Tensor, ...] | None = None
        self._root = weakref.ref(unwrap(model))
        self._read = read
        self._wanted = frozenset(steps)
        self._callback = callback
        self._reference: weakref.ref[nn.Parameter] | None = None
        self._stale = _stale.pop(unwrap(model), weakref.WeakSet())
        self._forward = model.register_forward_pre_hook(_FirstInput(self))
        listen(self)

    def stop(self) -> None:
        """Stop counting."""
        unlisten(self)
        self._forward.remove()

    def before_step(self, optimizer: Optimizer, owned: set[int]) -> None:
        """Empty an optimizer that was carried over, before its first update."""
        root = self._root()
        if root is None or not any(id(param) in owned for param in root.parameters()):
            return
        if optimizer in self._stale:
            optimizer.state.clear()
            self._stale.discard(optimizer)
        _seen.setdefault(root, weakref.WeakSet()).add(optimizer)

    def after_step(self, optimizer: Optimizer, owned: set[int], calling: set[int]) -> None:
        """Count an update of this model, once also where several optimizers have part in it."""
        root = self._root()
        reference = None if root is None else self._updated(root, owned)
        if root is None or reference is None or id(reference) in calling:
            return
        self.steps += 1
        if self.steps in self._wanted:
            self.snapshots[self.steps] = self._read(root)
        if self._callback and not torch.compiler.is_compiling():
            self._callback(self.steps)  # last: a snapshot is what the update made

    def _updated(self, root: nn.Module, owned: set[int]) -> nn.Parameter | None:
        """Return the parameter by which updates are counted, if it is among ``owned``.

        It is the one that was updated first; another one once that is no longer in the model.
        """
        params = list(root.parameters())
        reference = self._reference() if self._reference else None
        if reference is None or not any(param is reference for param in params):
            reference = next((param for param in params if id(param) in owned), None)
            self._reference = weakref.ref(reference) if reference is not None else None
        return reference if id(reference) in owned else None
