"""Trying weights on a model that shall have its own back."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ltcore.arrays import Params
from ltcore.backend import Backend
from ltcore.parameters import Structure


@contextmanager
def restoring(
    backend: Backend, model: Any, structure: Structure, *, always: bool = False
) -> Iterator[None]:
    """Give the model its weights and buffers back if the block fails, or ``always``."""
    before = backend.read(model, structure)
    try:
        yield
    except BaseException:
        _give_back(backend, model, structure, before)
        raise
    if always:
        _give_back(backend, model, structure, before)


def _give_back(backend: Backend, model: Any, structure: Structure, before: Params) -> None:
    try:
        backend.write(model, structure, before)
    except BaseException:  # an interrupt must not leave half of somebody else's weights
        backend.write(model, structure, before)
        raise
