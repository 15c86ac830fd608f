"""A site that is found in a layer: its kind and where its arrays are."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ltcore_keras._layouts import PLAIN, Layout


class Piece(NamedTuple):
    """One array of a site: a variable, or a row of it."""

    variable: Any
    layout: Layout = PLAIN
    row: int | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """A site that a layer holds.

    Attributes:
        kind: a key of `ltcore.layouts.KINDS`.
        pieces: ``{role: its array}``.
        attrs: as in `ltcore.parameters.Site`.
        suffix: what is added to the layer's name where it holds several sites.
        part: as in `ltcore.parameters.Site`.
        states: the roles that are buffers.
        constants: the buffers have no twin in other frameworks.
    """

    kind: str
    pieces: Mapping[str, Piece]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    suffix: str = ""
    part: str = ""
    states: tuple[str, ...] = ()
    constants: bool = False


class UnlikeError(Exception):
    """Why a layer computes something else than its class does elsewhere."""


def present(**arrays: tuple[Any, Layout]) -> dict[str, Piece]:
    """Return the pieces of the arrays that the layer has."""
    return {role: Piece(*one) for role, one in arrays.items() if one[0] is not None}
