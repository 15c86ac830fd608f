"""A site as its layer makes it, before it has a name."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ltcore_torch._slots import Slot


@dataclass(frozen=True, slots=True)
class Part:
    """One site of a layer.

    Attributes:
        kind: a key of `ltcore.layouts.KINDS`.
        arrays: ``{role: where it lives}``.
        attrs: the site's attributes.
        suffix: what follows the layer's name; empty for a layer that is one site.
        part: ``q``, ``k``, ``v`` or ``o`` in an attention layer.
        native_only: the attributes among ``arrays`` that no other framework has.
    """

    kind: str
    arrays: Mapping[str, Slot]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    suffix: str = ""
    part: str = ""
    native_only: frozenset[str] = frozenset()
