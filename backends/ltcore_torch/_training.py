"""Fresh weights of a torch module."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from ltcore.errors import CapabilityError
from ltcore_torch._copies import copied
from ltcore_torch._inference import cuda_devices
from ltcore_torch._names import walk
from ltcore_torch._slots import Slot


def redrawn(model: nn.Module, seed: int, wanted: Mapping[str, Slot]) -> nn.Module:
    """Return a copy of ``model`` with every layer reset by its own ``reset_parameters``.

    Raises:
        CapabilityError: the layer of a ``wanted`` parameter has no such method, or its method
            leaves the parameter out; names it.
    """
    fresh = copied(model)
    modules = list(zip(walk(fresh), walk(model), strict=True))
    needed = {slot.module for slot in wanted.values()}
    twins = {original: module for (_, module), (_, original) in modules}
    drawn = {n: replace(s, module=twins[s.module]) for n, s in wanted.items() if not s.is_buffer}
    for slot in drawn.values():
        if slot.whole.is_floating_point():
            slot.tensor.detach().fill_(torch.nan)  # what no layer draws stays NaN
    with torch.random.fork_rng(devices=cuda_devices(model)):
        # A stream of its own: the user's manual_seed(seed) must not give the same weights.
        torch.manual_seed(int(np.random.SeedSequence([seed, 0x7E1]).generate_state(1)[0]))
        # Children before parents, which may have the last word on their weights.
        for (name, module), (_, original) in reversed(modules):
            _reset(name, module, must=original in needed)
    left = [name for name, slot in drawn.items() if slot.tensor.isnan().any()]
    if left:
        raise CapabilityError(
            f"parameters {left} are not drawn anew by reset_parameters() of their layers; draw "
            "them there, or give rewind_to= a policy of your own"
        )
    return fresh


def _reset(name: str, module: nn.Module, *, must: bool) -> None:
    known = isinstance(module, nn.MultiheadAttention | nn.Transformer)
    reset = getattr(module, "_reset_parameters" if known else "reset_parameters", None)
    if callable(reset):
        reset()
    elif must and any(param is not None for param in module._parameters.values()):
        raise CapabilityError(
            f"layer {name or 'model'!r} ({type(module).__name__}) has parameters but no "
            "reset_parameters(), so it cannot be drawn anew; add that method, or give "
            "rewind_to= a policy of your own"
        )
