"""``ltcore plugins``: what is installed, from whom, and what it lacks."""

import warnings
from importlib.metadata import entry_points
from itertools import groupby
from typing import Any

from rich.table import Table
from rich.text import Text

from ltcore.cli._output import AsJson, console, print_json, printable, table
from ltcore.hookspecs import PROJECT
from ltcore.plugins import PluginWarning, Registered, missing_requirements, registry


def plugins(as_json: AsJson = False) -> None:
    """List everything plugins offer, and plugins that cannot be used."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluginWarning)  # the table says it
        found = registry()
    offers = [
        _as_data(kind, offer) for kind, named in found.offers.items() for offer in named.values()
    ]
    origins = _origins()
    broken = [
        {"name": name, "origin": origins.get(name, ""), "error": f"{type(e).__name__}: {e}"}
        for name, e in found.broken.items()
    ]
    if as_json:
        print_json({"plugins": offers, "broken": broken})
        return
    console().print(_offers_table(offers))
    if broken:
        console().print(_broken_table(broken))


def _as_data(kind: str, offer: Registered) -> dict[str, Any]:
    spec = offer.spec
    return {
        "kind": kind,
        "name": spec.name,
        "origin": offer.origin,
        "summary": spec.summary,
        "target": spec.target,
        "requires": list(spec.requires),
        "missing": missing_requirements(spec),
        "install": spec.install,
    }


def _origins() -> dict[str, str]:
    """Return ``{entry point: distribution and version}``; the registry knows only working ones."""
    return {
        entry.name: f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value
        for entry in entry_points(group=PROJECT)
    }


def _offers_table(offers: list[dict[str, Any]]) -> Table:
    """Return a table with a heading for every kind, which saves a column that few screens have."""
    rows = table("name", "summary", "origin", "needs", whole=("name", "origin"))
    for kind, group in groupby(offers, key=lambda offer: str(offer["kind"])):
        rows.add_row(Text(kind.replace("_", " "), style="bold cyan"))
        for offer in group:
            texts = (f"  {offer['name']}", offer["summary"], offer["origin"])
            rows.add_row(*(Text(printable(text)) for text in texts), _needs(offer))
        rows.add_section()
    return rows


def _needs(offer: dict[str, Any]) -> Text:
    if offer["missing"]:
        fallback = f"missing: {', '.join(offer['missing'])}"
        return Text(printable(offer["install"] or fallback), style="yellow")
    return Text(", ".join(f"{printable(name)} (installed)" for name in offer["requires"]))


def _broken_table(broken: list[dict[str, Any]]) -> Table:
    rows = table("broken plugin", "origin", "error")
    for plugin in broken:
        texts = (plugin["name"], plugin["origin"], plugin["error"])
        rows.add_row(*(Text(printable(text)) for text in texts), style="red")
    return rows
