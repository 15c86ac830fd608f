"""What a name stands for, and the backend that drives a model. Nothing else is imported."""

import os
import sys
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from operator import attrgetter
from typing import Any

from ltcore.backend import Backend
from ltcore.closest import did_you_mean
from ltcore.discovery import KINDS, Registered, offers, registry
from ltcore.errors import (
    LtcoreError,
    MissingDependencyError,
    ModelError,
    PluginError,
    UnknownNameError,
)
from ltcore.hookspecs import BackendSpec, Spec


def check_kind(kind: str) -> None:
    """Raise unless ``kind`` is one of `KINDS`.

    Raises:
        UnknownNameError: says what comes close, and all there is.
    """
    if kind not in KINDS:
        raise UnknownNameError(
            f"there is no kind {kind!r}{did_you_mean(str(kind), KINDS) or '.'} Kinds are "
            f"{', '.join(KINDS)}"
        )


def load(kind: str, name: str) -> Any:
    """Return what ``name`` stands for.

    Raises:
        UnknownNameError: nobody offers it; says what comes close, and all there is.
        MissingDependencyError: it is there, but a package it needs is not.
        PluginError: its target cannot be imported.
    """
    return load_offer(kind, find(kind, name))


def find(kind: str, name: str) -> Registered:
    """Return who offers ``name``.

    Raises:
        UnknownNameError: nobody does; says what comes close, and all there is.
        Exception: what the plugin of this name raised when it was imported.
    """
    check_kind(kind)
    known = offers(kind)
    if name in known:
        return known[name]
    broken = registry().broken
    if name in broken:
        raise broken[name]
    raise UnknownNameError(unknown_name(kind, name, known))


def unknown_name(what: str, name: str, known: Iterable[str]) -> str:
    """Return what to say of a name that nobody offers."""
    known = sorted(known)
    told = f"no {what} called {name!r}{did_you_mean(name, known) or '.'}"
    broken = registry().broken
    failed = f"; plugins that failed to load: {', '.join(sorted(broken))}" if broken else ""
    return f"{told} There are: {', '.join(known) or 'none'}{failed}"


def load_offer(kind: str, offer: Registered) -> Any:
    """Return what is offered.

    Raises:
        MissingDependencyError: names the package and the command that installs it.
        PluginError: the target cannot be imported.
    """
    if offer.thing is not None:
        return offer.thing
    spec = offer.spec
    missing = missing_requirements(spec)
    if missing:
        raise MissingDependencyError(
            f"{spec.name!r} needs {', '.join(missing)}, which is not installed; "
            f"{spec.install or 'install it'}"
        )
    try:
        return spec.load()
    except LtcoreError:
        raise
    except Exception as error:  # somebody's module may fail in any way
        raise PluginError(
            f"the {kind} {spec.name!r} of {offer.origin} cannot be loaded from {spec.target}: "
            f"{type(error).__name__}: {error}"
        ) from error


def origin_of(kind: str, thing: Any) -> str:
    """Return who offers ``thing``, as "distribution version"; empty where no package does.

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


def missing_requirements(spec: Spec) -> list[str]:
    """Return the packages that ``spec`` needs and that are not installed; imports none of them."""
    return [name for name in spec.requires if not _is_installed(name)]


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # the package around it is not there
        return False


def detect(model: Any) -> Backend:
    """Return the backend that drives ``model``; imports only that one.

    The nearest ancestor of the model's class that lives in a package some backend claims decides,
    so a Keras model is Keras also when Keras runs on torch and it is a torch module too.

    Raises:
        ModelError: no installed backend drives this type.
        PluginError: two backends claim the same package.
    """
    found = [
        (offer, offer.spec)
        for offer in offers("backend").values()
        if isinstance(offer.spec, BackendSpec)
    ]
    for ancestor in type(model).__mro__:
        root = ancestor.__module__.partition(".")[0]
        claims = [offer for offer, spec in found if root in spec.roots]
        if len(claims) > 1:
            raise PluginError(
                f"backends {[offer.spec.name for offer in claims]} both drive classes of "
                f"{root!r}; list the plugins to use in LTCORE_PLUGINS, or give backend="
            )
        if claims:
            return _instance(claims[0])
    known = ", ".join(f"{spec.name} (classes of {'/'.join(spec.roots)})" for _, spec in found)
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
    return _instance(find("backend", name))


@cache
def _instance(offer: Registered) -> Backend:
    made: Backend = load_offer("backend", offer)()
    return made
