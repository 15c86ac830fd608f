"""Where an array lives in a torch module: a whole parameter or buffer, or some rows of one."""

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True, slots=True)
class Slot:
    """Looked up at each use, so replaced tensors are found.

    Attributes:
        module: whose parameter or buffer it is.
        attribute: what it is called there.
        rows: the part of it that counts; None for all of it.
    """

    module: nn.Module
    attribute: str
    rows: slice | None = None

    @property
    def registered(self) -> bool:
        """Whether the module has such a parameter or buffer, be it None."""
        return self.attribute in self.module._parameters or self.attribute in self.module._buffers

    @property
    def found(self) -> torch.Tensor | None:
        """The whole tensor that is there now; None where the module does without."""
        param = self.module._parameters.get(self.attribute)
        return self.module._buffers.get(self.attribute) if param is None else param

    @property
    def whole(self) -> torch.Tensor:
        """The whole tensor, which is known to be there."""
        tensor = self.found
        assert tensor is not None  # the walk found one
        return tensor

    @property
    def tensor(self) -> torch.Tensor:
        """The tensor, or a view of its rows that shares memory and version with it."""
        return self.whole if self.rows is None else self.whole.detach()[self.rows]

    @property
    def is_buffer(self) -> bool:
        """Whether it is no parameter."""
        return self.module._parameters.get(self.attribute) is None

    @property
    def place(self) -> tuple[int, str]:
        """Equal for parts of one tensor; does not keep the module alive."""
        return id(self.module), self.attribute
