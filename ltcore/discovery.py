"""Plugins found: what each offers, without loading it, and those that cannot be used.

Entry points are taken in the order of their names, so what is installed decides, not the order in
which it was.
"""

import os
import warnings
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pluggy

from ltcore import hookspecs
from ltcore.closest import did_you_mean
from ltcore.errors import PluginError
from ltcore.hookspecs import PROJECT, BackendSpec, Spec

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

KINDS: Mapping[str, str] = {
    "backend": "backends",
    "criterion": "criteria",
    "rewind-policy": "rewind_policies",
    "schedule": "schedules",
    "allocation": "allocations",
    "pattern": "patterns",
    "task": "tasks",
    "executor": "executors",
    "tracker": "trackers",
}
"""``{what people call a kind: the end of its hook's name, ltcore_register_...}``."""


HERE = "this process"
"""The origin of what no package brought."""


class PluginWarning(UserWarning):
    """A plugin could not be used."""


@dataclass(frozen=True, slots=True)
class Registered:
    """A spec and where it came from.

    Attributes:
        spec: what is offered.
        origin: the distribution and its version, or `HERE`.
        thing: what was registered in this process; None for a package's, which is imported.
    """

    spec: Spec
    origin: str
    thing: Any = None


@dataclass(slots=True)
class Registry:
    """Everything that installed plugins offer.

    Attributes:
        manager: pluggy's, with the plugins that could be used.
        offers: ``{kind: {name: spec and origin}}``.
        broken: ``{entry point: the error it gave}``.
    """

    manager: pluggy.PluginManager
    offers: dict[str, dict[str, Registered]]
    broken: dict[str, Exception] = field(default_factory=dict)


def entry_points(*, group: str) -> "Iterable[EntryPoint]":
    """Return what is installed; importing the machinery for it takes as long as half of ltcore."""
    from importlib import metadata

    return metadata.entry_points(group=group)


_in_process: dict[str, dict[str, Registered]] = {kind: {} for kind in KINDS}
_finding: ContextVar[bool] = ContextVar("finding", default=False)


@cache
def registry() -> Registry:
    """Return what is installed, found once; ``registry.cache_clear()`` looks again.

    Raises:
        PluginError: two plugins have, or offer, the same name.
    """
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(hookspecs)
    found = Registry(manager, {kind: {} for kind in KINDS})
    marker = _finding.set(True)
    try:
        for entry in _wanted(entry_points(group=PROJECT)):
            _add(found, entry)
    finally:
        _finding.reset(marker)
    for kind, named in _in_process.items():
        for offer in named.values():
            _refuse_another(kind, found.offers[kind].get(offer.spec.name), offer)
    return found


def distribution_of(entry: "EntryPoint") -> str:
    """Return the distribution of a plugin and its version."""
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value


def _wanted(found: "Iterable[EntryPoint]") -> "list[EntryPoint]":
    """Return the plugins that ``LTCORE_PLUGINS`` allows (unset: all), ltcore's core always."""
    listed = os.environ.get("LTCORE_PLUGINS")
    unique = {(entry.name, entry.value): entry for entry in found}
    ordered = [unique[key] for key in sorted(unique)]
    if listed is None:
        return _single(ordered)
    allowed = {name.strip() for name in listed.split(",")} - {""} | {"builtin"}
    known = {entry.name for entry in ordered}
    unknown = sorted(allowed - known)
    if unknown:
        warnings.warn(
            f"LTCORE_PLUGINS lists {unknown}, which is not installed"
            f"{did_you_mean(unknown[0], known)}",
            PluginWarning,
            stacklevel=3,
        )
    return _single([entry for entry in ordered if entry.name in allowed])


def _single(ordered: "list[EntryPoint]") -> "list[EntryPoint]":
    """Return ``ordered``, sorted by name, in which each name is there once.

    Raises:
        PluginError: two plugins have one name; names both.
    """
    for one, two in pairwise(ordered):
        if one.name == two.name:
            raise PluginError(
                f"two plugins are called {one.name!r}: {one.value} of {distribution_of(one)}, and "
                f"{two.value} of {distribution_of(two)}; uninstall one"
            )
    return ordered


def _add(found: Registry, entry: "EntryPoint") -> None:
    """Add what a plugin offers; one that fails in any way is a warning, and the rest works.

    Raises:
        PluginError: it offers a name that another one offers.
    """
    origin = distribution_of(entry)
    try:
        plugin = entry.load()
        found.manager.register(plugin, name=entry.name)
        found.manager.check_pending()
        offered = {kind: _offered(found.manager, entry.name, kind) for kind in KINDS}
    except Exception as error:  # noqa: BLE001  a plugin may fail in any way; it must not take the host along
        if found.manager.has_plugin(entry.name):
            found.manager.unregister(name=entry.name)
        found.broken[entry.name] = error
        warnings.warn(
            f"ltcore plugin {entry.name!r} of {origin} cannot be used: "
            f"{type(error).__name__}: {error}",
            PluginWarning,
            stacklevel=4,
        )
        return
    for kind, specs in offered.items():
        for spec in specs:
            offer = Registered(spec, origin)
            taken = found.offers[kind].get(spec.name)
            if taken:
                raise PluginError(
                    f"two plugins offer the {kind} {spec.name!r}: {taken.spec.target} of "
                    f"{taken.origin}, and {spec.target} of {origin}; uninstall one, or list the "
                    "plugins to use in LTCORE_PLUGINS"
                )
            found.offers[kind][spec.name] = offer


def _offered(manager: pluggy.PluginManager, plugin: str, kind: str) -> tuple[Spec, ...]:
    """Return the specs that one plugin offers."""
    hook = getattr(manager.hook, f"ltcore_register_{KINDS[kind]}")
    specs: list[Spec] = []
    for impl in hook.get_hookimpls():
        if impl.plugin_name == plugin:
            specs.extend(impl.function())
    expected = BackendSpec if kind == "backend" else Spec
    for spec in specs:
        if not isinstance(spec, expected):
            raise PluginError(
                f"ltcore_register_{KINDS[kind]} returned {spec!r}; expected ltcore."
                f"{expected.__name__} objects"
            )
    return tuple(specs)


def offers(kind: str) -> dict[str, Registered]:
    """Return all there is of a kind: what is installed, and what this process registered."""
    found = dict(registry().offers[kind])
    for name, offer in _in_process[kind].items():
        # What a package's own decorator registered is still the package's.
        found[name] = replace(found[name], thing=offer.thing) if name in found else offer
    return found


def add_in_process(kind: str, offer: Registered) -> None:
    """Offer something in this process. The same function or class may come again, changed.

    Raises:
        PluginError: the name is another one's; names both.
    """
    name = offer.spec.name
    # A plugin may register things while it is imported: what is installed is not known then.
    installed = {} if _finding.get() else registry().offers[kind]
    for taken in (installed.get(name), _in_process[kind].get(name)):
        _refuse_another(kind, taken, offer)
    _in_process[kind][name] = offer


def _refuse_another(kind: str, taken: Registered | None, offer: Registered) -> None:
    if taken and taken.spec.target != offer.spec.target:
        raise PluginError(
            f"the {kind} {offer.spec.name!r} exists already: {taken.spec.target} of "
            f"{taken.origin}; {offer.spec.target} needs another name"
        )
