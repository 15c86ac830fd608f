"""A state dict from anywhere, brought under a model's names and into canonical axes.

Torch's own ``load_state_dict`` puts it into a copy of the model, and that is read as any model is;
so layouts are nobody's business here. Masks, as ones at pruned places, take the same way.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

from ltcore.arrays import Array, own
from ltcore.backend import Imported
from ltcore.errors import CheckpointError, MatchError
from ltcore_torch._copies import copied
from ltcore_torch._names import unwrap

State: TypeAlias = dict[str, torch.Tensor]
Read: TypeAlias = Callable[[nn.Module], dict[str, Array]]
"""Returns all parameters and buffers of a module in canonical axes."""

_CONTAINERS = ("state_dict", "model_state_dict", "model")
_OPTIONAL = ("num_batches_tracked", "_extra_state")
"""Last parts of names that a checkpoint may lack: old ones count no batches."""


def tensors_of(found: Any, what: str) -> State:
    """Return the state dict in ``found``, out of the container that trainers put around it.

    Raises:
        CheckpointError: there is none.
    """
    for name in _CONTAINERS:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
            break
    expected = f"expected {{name: tensor}}, alone or under one of {_CONTAINERS}"
    if not isinstance(found, Mapping) or not found:
        raise CheckpointError(f"{what} holds no state dict but {type(found).__name__}; {expected}")
    state = {str(name): _as_tensor(value) for name, value in found.items()}
    odd = [n for n, v in state.items() if not _is_tensor(v) and not _is_optional(n)]
    if odd:
        raise CheckpointError(f"{what} holds no state dict: {odd[:20]} are no tensors; {expected}")
    return {name: value for name, value in state.items() if _is_tensor(value)}


def _as_tensor(value: Any) -> Any:
    return torch.from_numpy(own(value)) if isinstance(value, np.ndarray) else value


def imported(
    model: nn.Module,
    state: State,
    read: Read,
    story: Mapping[str, Any],
    masks: State | None = None,
    rewind: Mapping[str, Any] | None = None,
) -> Imported:
    """Return ``state`` and its masks as ``model`` has them; the model is not touched.

    Args:
        model: whose names and layouts are wanted.
        state: may have masks of its own, as ``torch.nn.utils.prune`` leaves them.
        read: reads a module.
        story: for the provenance.
        masks: by the names of weights, where they are stored apart.
        rewind: where the source says it.

    Raises:
        MatchError: names or shapes are not the model's; lists them.
        CheckpointError: a mask has other values than 0 and 1.
    """
    target = copied(unwrap(model))
    state, stored = _without_masks(state)
    state = _fitting(state, target)
    masks = _fitting({**stored, **(masks or {})}, target, partial=True)
    _check_state(state, target)
    _check_masks(masks, target)
    _load(target, state)
    _check_zeros(state, target)
    told = {} if rewind is None else {"rewind": rewind}
    params = read(target)
    if not masks:
        return Imported(params, {}, story, **told)
    pruned = _read_marks(target, {name: mask == 0 for name, mask in masks.items()}, read)
    masked = _read_marks(
        target, {name: torch.ones_like(mask) for name, mask in masks.items()}, read
    )
    found = {name: ~pruned[name] for name, marks in masked.items() if marks.any()}
    return Imported(params, found, story, **told)


def _read_marks(target: nn.Module, marks: State, read: Read) -> dict[str, Array]:
    """Return where ``marks`` are, in canonical axes; overwrites ``target``."""
    live = _live(target)
    by_tensor = {id(live[name]): mark for name, mark in marks.items()}  # all names of tied tensors
    _load(target, {n: by_tensor.get(id(t), torch.zeros_like(t)) for n, t in live.items()})
    return {name: array != 0 for name, array in read(target).items()}


def _without_masks(state: State) -> tuple[State, State]:
    """Return ``{name: weight}`` and ``{name: mask}`` of pairs ``name_orig`` and ``name_mask``."""
    weights, masks = {}, {}
    for name, tensor in state.items():
        stem, _, end = name.rpartition("_")
        if end not in ("orig", "mask") or not {f"{stem}_orig", f"{stem}_mask"} <= state.keys():
            weights[name] = tensor
        elif end == "orig":
            weights[stem] = tensor
        else:
            masks[stem] = tensor
    return weights, masks


# Names


def _fitting(state: State, target: nn.Module, *, partial: bool = False) -> State:
    """Return ``state`` under the names that fit ``target`` best; ``partial`` may lack some."""

    def misfits(candidate: State) -> int:
        missing, unexpected = _difference(candidate, target)
        return len(unexpected) + (0 if partial else len(missing))

    return min(_renamed(state), key=misfits)


def _renamed(state: State) -> Iterator[State]:
    """Yield ``state`` as it is, then without what wrappers put before all of its names."""
    while state:
        yield state
        plain = {re.sub(r"(^|\.)_orig_mod\.", r"\1", name): t for name, t in state.items()}
        if len(plain) == len(state):  # no two names became one
            yield plain
        heads = {name.partition(".")[0] for name in plain}
        if len(heads) != 1 or not all(name.partition(".")[2] for name in plain):
            return
        state = {name.partition(".")[2]: tensor for name, tensor in plain.items()}
    yield state


def _difference(state: State, target: nn.Module) -> tuple[list[str], list[str]]:
    """Return the names that ``state`` lacks and those it has too many."""
    live = _live(target)
    given = {id(live[name]) for name in state if name in live}  # of tied tensors one will do
    missing = [n for n, t in live.items() if id(t) not in given and not _is_optional(n)]
    return missing, [name for name in state if name not in live]


def _live(target: nn.Module) -> State:
    """Return the live tensors of ``target`` by all their names."""
    return {n: t for n, t in target.state_dict(keep_vars=True).items() if _is_tensor(t)}


def _is_optional(name: str) -> bool:
    return name.rpartition(".")[2] in _OPTIONAL


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


# Checks


def _check_state(state: State, target: nn.Module) -> None:
    missing, unexpected = _difference(state, target)
    mismatched = _mismatched(state, target, "checkpoint")
    if missing or unexpected or mismatched:
        raise MatchError(
            f"the checkpoint is for another model: missing from the checkpoint {missing}, "
            f"unexpected in the checkpoint {unexpected}, mismatched shapes {mismatched}"
        )
    tied: dict[int, str] = {}
    live = _live(target)
    for name, tensor in state.items():
        first = tied.setdefault(id(live[name]), name)
        if first != name and not torch.equal(state[first], tensor):
            raise MatchError(
                f"{first!r} and {name!r} are one tensor in the model, and differ in the checkpoint"
            )


def _check_masks(masks: State, target: nn.Module) -> None:
    strangers = _difference(masks, target)[1]
    mismatched = _mismatched(masks, target, "mask")
    if strangers or mismatched:
        raise MatchError(
            f"the masks are for another model: masks of {strangers}, where the model has "
            f"{list(_live(target))}; mismatched shapes {mismatched}"
        )
    for name, mask in masks.items():
        if not ((mask == 0) | (mask == 1)).all():
            raise CheckpointError(f"the mask of {name!r} has values that are neither 0 nor 1")


def _mismatched(state: State, target: nn.Module, whose: str) -> list[str]:
    live = _live(target)
    return [
        f"{name}: {whose} {tuple(tensor.shape)}, model {tuple(live[name].shape)}"
        for name, tensor in state.items()
        if name in live and live[name].shape != tensor.shape
    ]


def _check_zeros(state: State, target: nn.Module) -> None:
    """Raise where the model's dtype turned a small weight into zero, which means pruned here."""
    live = _live(target)
    for name, tensor in state.items():
        lost = int(((tensor != 0).to(live[name].device) & (live[name] == 0)).sum())
        if lost:
            raise MatchError(
                f"{lost} weights of {name!r} are {tensor.dtype} in the checkpoint and too small "
                f"for the model's {live[name].dtype}; give a model of the checkpoint's dtype"
            )


def _load(target: nn.Module, state: State) -> None:
    try:
        target.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise MatchError(f"the model does not take the checkpoint: {error}") from error
