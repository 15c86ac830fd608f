"""Who offers what: plugins found, names resolved, and the backend that drives a model.

Nothing is loaded until a name is needed. Entry points are taken in the order of their names, so
what is installed decides, not the order in which it was.
"""

import os
import sys
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import pluggy

from ltcore import hookspecs
from ltcore.arrays import Array
from ltcore.backend import Backend
from ltcore.criteria import FunctionCriterion, Param
from ltcore.errors import MissingDependencyError, ModelError, PluginError, UnknownNameError
from ltcore.hookspecs import PROJECT, BackendSpec, Spec

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

KINDS = (
    "backends",
    "criteria",
    "rewind_policies",
    "schedules",
    "allocations",
    "patterns",
    "tasks",
    "executors",
    "trackers",
)
"""Each has a hook ``ltcore_register_<kind>``."""


class PluginWarning(UserWarning):
    """A plugin could not be used."""


@dataclass(frozen=True, slots=True)
class Registered:
    """A spec and where it came from."""

    spec: Spec
    origin: str


@dataclass(slots=True)
class Registry:
    """Everything that plugins offer.

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


_local_criteria: dict[str, FunctionCriterion] = {}


@cache
def registry() -> Registry:
    """Return the registry, found once; ``registry.cache_clear()`` looks again.

    Raises:
        PluginError: two plugins offer the same name.
    """
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(hookspecs)
    found = Registry(manager, {kind: {} for kind in KINDS})
    origins = {}
    for entry in _wanted(entry_points(group=PROJECT)):
        origin = f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value
        try:
            plugin = entry.load()
            manager.register(plugin, name=entry.name)
            manager.check_pending()
        except Exception as error:  # noqa: BLE001  a plugin may fail in any way; it must not take the host along
            if manager.has_plugin(entry.name):
                manager.unregister(name=entry.name)
            found.broken[entry.name] = error
            warnings.warn(
                f"ltcore plugin {entry.name!r} of {origin} cannot be used: "
                f"{type(error).__name__}: {error}",
                PluginWarning,
                stacklevel=2,
            )
        else:
            origins[entry.name] = origin
    for kind in KINDS:
        _collect(found, kind, origins)
    return found


def _wanted(found: "Iterable[EntryPoint]") -> "list[EntryPoint]":
    """Return the plugins that ``LTCORE_PLUGINS`` allows (unset: all), ltcore's core always."""
    listed = os.environ.get("LTCORE_PLUGINS")
    unique = {(entry.name, entry.value): entry for entry in found}
    ordered = [unique[key] for key in sorted(unique)]
    if listed is None:
        return ordered
    allowed = {name.strip() for name in listed.split(",")} - {""} | {"builtin"}
    unknown = sorted(allowed - {entry.name for entry in ordered})
    if unknown:
        warnings.warn(
            f"LTCORE_PLUGINS lists {unknown}, which is not installed", PluginWarning, stacklevel=3
        )
    return [entry for entry in ordered if entry.name in allowed]


def _collect(found: Registry, kind: str, origins: dict[str, str]) -> None:
    hook = getattr(found.manager.hook, f"ltcore_register_{kind}")
    for impl in sorted(hook.get_hookimpls(), key=lambda impl: impl.plugin_name):
        for spec in impl.function():
            origin = origins.get(impl.plugin_name, impl.plugin_name)
            taken = found.offers[kind].get(spec.name)
            if taken:
                raise PluginError(
                    f"two plugins offer {spec.name!r} under {kind}: {taken.spec.target} of "
                    f"{taken.origin}, and {spec.target} of {origin}; uninstall one, or list the "
                    "plugins to use in LTCORE_PLUGINS"
                )
            found.offers[kind][spec.name] = Registered(spec, origin)


def load(kind: str, name: str) -> Any:
    """Return what ``name`` stands for.

    Raises:
        UnknownNameError: nobody offers it; lists who offers what.
        MissingDependencyError: it is there, but a package it needs is not.
    """
    if kind == "criteria" and name in _local_criteria:
        return _local_criteria[name]
    found = registry()
    if name in found.offers[kind]:
        return load_spec(found.offers[kind][name].spec)
    if name in found.broken:
        raise found.broken[name]
    known = sorted([*found.offers[kind], *(_local_criteria if kind == "criteria" else ())])
    broken = f"; plugins that failed to load: {sorted(found.broken)}" if found.broken else ""
    raise UnknownNameError(f"no {kind} called {name!r}; there are {known}{broken}")


def origin_of(kind: str, thing: Any) -> str:
    """Return who offers ``thing``, as "distribution version"; empty where no plugin does.

    ``thing`` is a target, made of one (an instance of a class, a criterion of a function), or
    neither; nothing is imported to find out.
    """
    made_of = (thing, type(thing), getattr(thing, "function", None))
    for offer in registry().offers[kind].values():
        module, _, attribute = offer.spec.target.partition(":")
        target = _found(sys.modules.get(module), attribute)
        if target is not None and any(target is part for part in made_of):
            return offer.origin
    return ""


def _found(module: Any, attribute: str) -> Any:
    """Return ``attribute``, which may have dots, or None."""
    try:
        return attrgetter(attribute)(module)
    except AttributeError:
        return None


def load_spec(spec: Spec) -> Any:
    """Return the target of ``spec``.

    Raises:
        MissingDependencyError: names the package and the command that installs it.
    """
    missing = missing_requirements(spec)
    if missing:
        raise MissingDependencyError(
            f"{spec.name!r} needs {', '.join(missing)}, which is not installed; "
            f"{spec.install or 'install it'}"
        )
    return spec.load()


def missing_requirements(spec: Spec) -> list[str]:
    """Return the packages that ``spec`` needs and that are not installed; imports nothing."""
    return [name for name in spec.requires if find_spec(name) is None]


def criterion(
    name: str, *, needs: Iterable[str] = (), elementwise: bool = False
) -> Callable[[Callable[[Param], Array]], FunctionCriterion]:
    """Make a criterion of a function, known by ``name`` from now on in this process.

    Args:
        name: what to type in ``criterion="..."``.
        needs: the signals it reads besides ``weight``.
        elementwise: a weight's score depends on this weight's own values only.

    >>> @criterion("doc-smallest", elementwise=True)
    ... def smallest(param):
    ...     return -abs(param.weight)
    """

    def register(function: Callable[[Param], Array]) -> FunctionCriterion:
        asked = frozenset([needs] if isinstance(needs, str) else needs)
        made = FunctionCriterion(name, function, asked, elementwise)
        taken = registry().offers["criteria"].get(name)
        if taken and taken.spec.target != f"{function.__module__}:{function.__qualname__}":
            raise PluginError(
                f"criterion {name!r} exists already: {taken.spec.target} of {taken.origin}"
            )
        _local_criteria[name] = made
        return made

    return register


def detect(model: Any) -> Backend:
    """Return the backend that drives ``model``; imports only that one.

    The nearest ancestor of the model's class that lives in a package some backend claims decides,
    so a Keras model is Keras also when Keras runs on torch and it is a torch module too.

    Raises:
        ModelError: no installed backend drives this type.
        PluginError: two backends claim the same package.
    """
    offers = [offer.spec for offer in registry().offers["backends"].values()]
    specs = [spec for spec in offers if isinstance(spec, BackendSpec)]
    for ancestor in type(model).__mro__:
        root = ancestor.__module__.partition(".")[0]
        claims = [spec for spec in specs if root in spec.roots]
        if len(claims) > 1:
            raise PluginError(
                f"backends {[spec.name for spec in claims]} both drive classes of {root!r}; "
                "list the plugins to use in LTCORE_PLUGINS, or give backend="
            )
        if claims:
            return _instance(claims[0])
    known = ", ".join(f"{spec.name} (classes of {'/'.join(spec.roots)})" for spec in specs)
    raise ModelError(
        f"no backend drives a model of type {type(model).__module__}.{type(model).__qualname__}; "
        f"there are: {known}"
        + ("; LTCORE_PLUGINS limits which are used" if "LTCORE_PLUGINS" in os.environ else "")
    )


def backend_named(name: str) -> Backend:
    """Return the backend called ``name``.

    Raises:
        UnknownNameError: there is none.
        MissingDependencyError: its framework is not installed.
    """
    offer = registry().offers["backends"].get(name)
    return _instance(offer.spec) if offer else load("backends", name)


@cache
def _instance(spec: Spec) -> Backend:
    made: Backend = load_spec(spec)()
    return made
