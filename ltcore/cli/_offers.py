"""What there is to say of something that a plugin offers, as plain data."""

import inspect
from typing import Any

from ltcore.criteria import FunctionCriterion, as_criterion
from ltcore.discovery import Registered
from ltcore.errors import LtcoreError
from ltcore.options import taken
from ltcore.plugins import load_offer, missing_requirements
from ltcore.signals import MEASUREMENTS

_KNOWN_TO = {
    "initial": "a search, prune_gradually or early_bird",
    "rewind": "a search",
}
"""Who has the signals that nobody can be asked for."""


def described(kind: str, offer: Registered) -> dict[str, Any]:
    """Return all there is to say of ``offer``, for JSON.

    Its target is imported if it needs no package; so are ltcore's own, which need numpy alone.

    ``needs`` is ``{signal: what a user must give for it}`` of a criterion, None where that cannot
    be told without its options; ``options`` are what a table with its name may have; ``error`` is
    why the target cannot be used.
    """
    spec = offer.spec
    told: dict[str, Any] = {
        "kind": kind,
        "name": spec.name,
        "origin": offer.origin,
        "summary": spec.summary,
        "target": spec.target,
        "requires": list(spec.requires),
        "missing": missing_requirements(spec),
        "install": spec.install,
        "needs": None,
        "options": None,
        "doc": "",
        "error": "",
    }
    if spec.requires or kind == "backend":
        return told
    try:
        return {**told, **_of(kind, load_offer(kind, offer))}
    except LtcoreError as error:
        return {**told, "error": str(error)}
    except Exception as error:  # noqa: BLE001  a plugin may fail in any way; the others are listed
        return {**told, "error": f"{type(error).__name__}: {error}"}


def _of(kind: str, target: Any) -> dict[str, Any]:
    doc = inspect.getdoc(target.function if isinstance(target, FunctionCriterion) else target)
    needs = _needs(target) if kind == "criterion" else None
    return {"needs": needs, "options": _options(kind, target), "doc": doc or ""}


def _needs(target: Any) -> dict[str, list[str]] | None:
    """Return ``{signal: the arguments it asks for}`` of a criterion."""
    declared = getattr(target, "needs", None)
    if not isinstance(declared, frozenset):  # a class that has them when it is made
        try:
            declared = as_criterion(target).needs
        except (LtcoreError, TypeError):
            return None
    return {signal: _asks(signal) for signal in sorted(declared - {"weight"})}


def _asks(signal: str) -> list[str]:
    if signal in MEASUREMENTS:
        return list(MEASUREMENTS[signal].asks)
    return [_KNOWN_TO[signal]] if signal in _KNOWN_TO else []


def _options(kind: str, target: Any) -> list[str]:
    """Return the options that ``target`` takes, as ``name: type = default``."""
    itself = kind in ("criterion", "allocation") and not isinstance(target, type)
    if itself or not callable(target):
        return []
    return taken(target)
