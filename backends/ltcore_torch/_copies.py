"""Copies of torch modules."""

import copy
import pickle
from typing import Any

import torch
from torch import nn

from ltcore.errors import CapabilityError


def copied(model: nn.Module) -> nn.Module:
    """Return a deep copy, also of a model with tensors that have a history, as pruned layers do.

    Raises:
        CapabilityError: something in the model cannot be copied.
    """
    memo: dict[int, Any] = {}  # torch copies no such tensor itself
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, torch.Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    try:
        return copy.deepcopy(model, memo)
    except (TypeError, RuntimeError, pickle.PicklingError) as error:
        raise CapabilityError(
            "the model cannot be copied, and a copy is needed so that the model stays as it is: "
            f"{error}"
        ) from error
