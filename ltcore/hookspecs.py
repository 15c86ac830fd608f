"""The door: hooks through which everything is registered, ours included.

A ``register`` hook returns descriptions, plain frozen data with a dotted target; nothing heavy is
imported until a name is used. Hook names are forever; arguments may be added.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from operator import attrgetter
from typing import Any

import pluggy

PROJECT = "ltcore"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@dataclass(frozen=True, slots=True)
class Spec:
    """One thing a plugin offers.

    Attributes:
        name: what a user types.
        target: where it is, as ``"package.module:attribute"``.
        summary: one line for ``ltcore plugins``.
        requires: import names it needs.
        install: the command that gets them.
    """

    name: str
    target: str
    summary: str = ""
    requires: tuple[str, ...] = ()
    install: str = ""

    def load(self) -> Any:
        """Import the target and return it."""
        module, _, attribute = self.target.partition(":")
        return attrgetter(attribute)(import_module(module))


@dataclass(frozen=True, slots=True)
class BackendSpec(Spec):
    """A backend. ``target`` is a class without arguments.

    Attributes:
        roots: root packages whose classes it drives: the nearest ancestor of a model's class
            that lives in one of them decides.
    """

    roots: tuple[str, ...] = ()


@hookspec
def ltcore_register_backends() -> Iterable[BackendSpec]:
    """Offer backends. Added in 0.1."""
    return ()


@hookspec
def ltcore_register_criteria() -> Iterable[Spec]:
    """Offer prune criteria; a target is a `ltcore.Criterion`. Added in 0.1."""
    return ()


@hookspec
def ltcore_register_rewind_policies() -> Iterable[Spec]:
    """Offer rewind policies; a target is a `ltcore.RewindPolicy`. Added in 0.1."""
    return ()


@hookspec
def ltcore_register_schedules() -> Iterable[Spec]:
    """Offer schedules; a target returns a `ltcore.Schedule` from keyword options. Added in 0.1."""
    return ()


@hookspec
def ltcore_register_allocations() -> Iterable[Spec]:
    """Offer allocations; a target is a `ltcore.Allocation`. Added in 0.1."""
    return ()


@hookspec
def ltcore_register_patterns() -> Iterable[Spec]:
    """Offer patterns; a target is a `ltcore.Pattern`, or returns one. Added in 0.1."""
    return ()


@hookspec
def ltcore_register_tasks() -> Iterable[Spec]:
    """Offer tasks: data, model builders and a training recipe. Added in 0.1."""
    return ()


@hookspec
def ltcore_register_executors() -> Iterable[Spec]:
    """Offer executors for experiments. Added in 0.1."""
    return ()


@hookspec
def ltcore_register_trackers() -> Iterable[Spec]:
    """Offer experiment trackers. Added in 0.1."""
    return ()


@hookspec
def ltcore_round_finished(round: Any) -> None:
    """Hear of a finished round (a `ltcore.Round`). Added in 0.1."""


@hookspec
def ltcore_ticket_metadata(ticket: Any) -> Mapping[str, str]:
    """Add to a ticket's provenance, under the plugin's name. Added in 0.1.

    The mapping must be a function of the ticket: the same ticket is the same bytes.
    """
    return {}
