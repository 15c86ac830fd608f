"""The PyTorch backend: each method is a few calls of torch plus names."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ltcore.arrays import Array, Params
from ltcore.backend import Imported
from ltcore.errors import ModelNotBuiltError
from ltcore.masks import Masks
from ltcore.parameters import Structure
from ltcore_torch._activations import input_strengths, kernel
from ltcore_torch._checkpoints import WRITES, loaded, save_checkpoint, unpruned
from ltcore_torch._functional import vector_jacobian
from ltcore_torch._gradients import hessian_product, mean_gradients, mean_squares
from ltcore_torch._hold import TorchHold, suspended
from ltcore_torch._inference import inference
from ltcore_torch._layouts import (
    as_inputs,
    check_shape,
    read_array,
    tensors_in,
    to_numpy,
    write_into,
)
from ltcore_torch._names import inventory, unwrap
from ltcore_torch._open_lth import load_open_lth
from ltcore_torch._slots import Slot
from ltcore_torch._statedict import imported, tensors_of
from ltcore_torch._trace import run_once, traced
from ltcore_torch._training import redrawn
from ltcore_torch._watch import TorchWatch, fresh_optimizer


class TorchBackend:
    """Drives `torch.nn.Module`; see `ltcore.backend.Backend` for what the methods promise."""

    name = "torch"
    capabilities = frozenset({"gradients", "hvp", "vjp", "activations", "checkpoints"})
    writes = WRITES
    tools = frozenset({"pruned", "open_lth"})

    @property
    def version(self) -> str:
        """Torch's version."""
        return str(torch.__version__)

    def root(self, model: nn.Module) -> nn.Module:
        """Return the module under its wrappers."""
        return unwrap(model)

    def describe(self, model: nn.Module, example: Any = None) -> Structure:
        """Return the module's sites; with ``example``, also how data flows."""
        root = unwrap(model)
        if example is None:
            return Structure(inventory(root).sites, untraced="no example input was given")
        inputs = as_inputs(example, _device(root))
        try:
            found = inventory(root)
        except ModelNotBuiltError:
            run_once(root, inputs)  # lazy layers take their shapes from the example
            found = inventory(root)
        return traced(root, found, inputs)

    def read(
        self, model: nn.Module, structure: Structure, names: Iterable[str] | None = None
    ) -> dict[str, Array]:
        """Return owned copies in canonical layout."""
        slots = _slots(model)
        wanted = list(slots if names is None else names)
        return {name: read_array(slots[name].tensor, name) for name in wanted}

    def write(self, model: nn.Module, structure: Structure, params: Params) -> None:
        """Write ``params`` in place, all or none."""
        slots = _slots(model)
        for name, array in params.items():
            check_shape(slots[name].tensor, array, name)
        for name, array in params.items():
            write_into(slots[name].tensor, array)

    def hold(self, model: nn.Module, structure: Structure, masks: Masks) -> TorchHold:
        """Keep pruned weights at zero."""
        return TorchHold(model, _slots(model), masks)

    def watch(
        self,
        model: nn.Module,
        structure: Structure,
        steps: Sequence[int],
        callback: Callable[[int], None] | None = None,
    ) -> TorchWatch:
        """Count updates, take snapshots, and call back after each optimizer step."""
        return TorchWatch(model, lambda root: self.read(root, structure), steps, callback)

    def fresh_optimizer(self, model: nn.Module, step: int) -> None:
        """Empty optimizers of earlier trainings; torch's schedules are the user's own objects."""
        fresh_optimizer(unwrap(model))

    def get_mode(self, model: nn.Module) -> list[bool]:
        """Return each module's ``training``."""
        return [module.training for module in unwrap(model).modules()]

    def set_mode(self, model: nn.Module, mode: list[bool]) -> None:
        """Set each module's ``training``."""
        for module, training in zip(unwrap(model).modules(), mode, strict=True):
            module.training = training

    def redraw(
        self, model: nn.Module, structure: Structure, seed: int, names: Iterable[str] | None = None
    ) -> dict[str, Array]:
        """Return params from every layer's ``reset_parameters``."""
        slots = _slots(model)
        wanted = list(slots if names is None else names)
        fresh = redrawn(unwrap(model), seed, {name: slots[name] for name in wanted})
        return self.read(fresh, structure, wanted)

    def forward(
        self, model: nn.Module, structure: Structure, inputs: Sequence[Array]
    ) -> tuple[Array, ...]:
        """Return the outputs for canonical ``inputs``."""
        root = unwrap(model)
        like = next(root.parameters(), torch.empty(0))
        given = as_inputs(list(inputs), like.device)
        with inference(root), suspended():
            result = root(*(x.to(like.dtype) if x.is_floating_point() else x for x in given))
            return tuple(to_numpy(tensor.float()) for tensor in tensors_in(result))

    def gradients(
        self,
        model: nn.Module,
        structure: Structure,
        batches: Iterable[tuple[Any, Any]],
        loss: Callable[[Any, Any], Any],
    ) -> dict[str, Array]:
        """Return mean gradients of all trained parameters, in eval mode."""
        return _arrays(mean_gradients(model, _trained(model, structure), batches, loss))

    def fisher(
        self,
        model: nn.Module,
        structure: Structure,
        batches: Iterable[tuple[Any, Any]],
        loss: Callable[[Any, Any], Any],
    ) -> dict[str, Array]:
        """Return mean squared gradients of single examples, in eval mode."""
        return _arrays(mean_squares(model, _trained(model, structure), batches, loss))

    def hvp(
        self,
        model: nn.Module,
        structure: Structure,
        batches: Iterable[tuple[Any, Any]],
        loss: Callable[[Any, Any], Any],
        vector: Params,
    ) -> dict[str, Array]:
        """Return the mean Hessian times ``vector``, in eval mode."""
        return _arrays(hessian_product(model, _trained(model, structure), batches, loss, vector))

    def vjp(
        self,
        model: nn.Module,
        structure: Structure,
        inputs: Sequence[Array],
        cotangents: Sequence[Array],
        at: Params,
    ) -> dict[str, Array]:
        """Return gradients of ``<outputs, cotangents>`` at lent parameters, in eval mode."""
        trained = list(_trained(model, structure))
        found = vector_jacobian(unwrap(model), _slots(model), trained, inputs, cotangents, at)
        return {name: to_numpy(one).astype(at[name].dtype) for name, one in found.items()}

    def activations(
        self,
        model: nn.Module,
        structure: Structure,
        batches: Iterable[tuple[Any, Any]],
        names: Iterable[str],
    ) -> dict[str, Array]:
        """Return the root mean square of what each weight multiplies."""
        root, slots = unwrap(model), _slots(model)
        kernels = [kernel(root, name, *structure.by_name[name], slots[name]) for name in names]
        return _arrays(input_strengths(root, kernels, batches))

    def load_checkpoint(
        self, model: nn.Module, structure: Structure, source: Path | Mapping[str, Any]
    ) -> Imported:
        """Return what a file or a state dict has for ``model``."""
        story = {"format": "checkpoint"}
        if isinstance(source, Path):
            story["file"] = source.name
            source = loaded(source)
        state = tensors_of(source, story.get("file", "what was given"))
        return imported(model, state, lambda copy: self.read(copy, structure), story)

    def load_foreign(
        self, model: nn.Module, structure: Structure, tool: str, source: Any, **options: Any
    ) -> Imported:
        """Return what a folder of open_lth has for ``model``."""
        weights: str | None = options.get("weights")
        return load_open_lth(model, source, weights, lambda copy: self.read(copy, structure))

    def unpruned(self, model: nn.Module) -> tuple[nn.Module, Mapping[str, Any]]:
        """Return a copy without ``torch.nn.utils.prune``, and the state dict with it."""
        return unpruned(model)

    def save_checkpoint(self, model: nn.Module, path: Path) -> None:
        """Write the state dict."""
        save_checkpoint(model, path)


def _slots(model: nn.Module) -> dict[str, Slot]:
    return inventory(unwrap(model)).slots


def _trained(model: nn.Module, structure: Structure) -> dict[str, Slot]:
    slots = _slots(model)
    return {name: slots[name] for name, _, role in structure.items() if not role.state}


def _arrays(tensors: Mapping[str, torch.Tensor]) -> dict[str, Array]:
    return {name: to_numpy(tensor) for name, tensor in tensors.items()}


def _device(model: nn.Module) -> torch.device:
    return next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
