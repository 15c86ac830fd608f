"""``ltcore plugins``: what is installed, from whom, and what it needs."""

import warnings
from itertools import groupby
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from ltcore.cli._offers import described
from ltcore.cli._output import AsJson, console, facts, print_json, printable, table
from ltcore.closest import did_you_mean
from ltcore.discovery import (
    KINDS,
    PluginWarning,
    Registered,
    Registry,
    entry_points,
    offers,
    origin_of,
    registry,
)
from ltcore.errors import UnknownNameError
from ltcore.hookspecs import PROJECT


def plugins(
    name: Annotated[
        str | None,
        typer.Argument(help="Show what has this name in detail; or list this kind only."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List what plugins offer, from whom, and what it needs; and plugins that cannot be used."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluginWarning)  # the table says it
        found = registry()
    if name is not None and name not in KINDS:
        _show(name, found, as_json)
        return
    listed = [
        described(kind, offer)
        for kind in ([name] if name else KINDS)
        for offer in sorted(offers(kind).values(), key=_ours_first)
    ]
    broken = _broken(found)
    if as_json:
        print_json({"plugins": listed, "broken": broken})
        return
    console().print(_offers_table(listed))
    if broken:
        console().print(_broken_table(broken))


def _ours_first(offer: Registered) -> tuple[bool, str]:
    return not offer.origin.startswith("ltcore "), offer.origin


def _broken(found: Registry) -> list[dict[str, str]]:
    """Return the plugins that cannot be used; the registry knows the origins of others only."""
    origins = {entry.name: origin_of(entry) for entry in entry_points(group=PROJECT)}
    return [
        {"name": name, "origin": origins.get(name, ""), "error": f"{type(e).__name__}: {e}"}
        for name, e in found.broken.items()
    ]


def _show(name: str, found: Registry, as_json: bool) -> None:
    named = [
        described(kind, offers(kind)[name]) for kind in KINDS if name in offers(kind)
    ]  # one name may stand for several things of different kinds
    broken = [plugin for plugin in _broken(found) if plugin["name"] == name]
    if not named and not broken:
        raise UnknownNameError(_unknown(name))
    if as_json:
        print_json({"plugins": named, "broken": broken})
        return
    out = console()
    for offer in named:
        out.print(f"{offer['kind']} {printable(offer['name'])}", style="bold", soft_wrap=True)
        out.print(facts(_facts(offer)))
    if broken:
        out.print(_broken_table(broken))


def _unknown(name: str) -> str:
    known = {each for kind in KINDS for each in offers(kind)}
    hint = did_you_mean(name, [*KINDS, *known]) or "."
    return f"nothing is called {name!r}{hint} 'ltcore plugins' lists all there is"


def _facts(offer: dict[str, Any]) -> dict[str, str]:
    """Return what is known of an offer, by label."""
    lines = [printable(line) for line in offer["doc"].splitlines()]
    return {
        "summary": printable(offer["summary"]),
        "origin": printable(offer["origin"]),
        "target": printable(offer["target"]),
        "needs": _needs(offer).plain,
        "options": "\n".join(printable(option) for option in offer["options"] or ()),
        "error": printable(offer["error"]),
        "doc": "\n".join(lines),
    }


def _offers_table(listed: list[dict[str, Any]]) -> Table:
    """Return a table with a heading for every kind and origin, which saves two columns."""
    rows = table("name", "summary", "needs", whole=("name",))
    for heading, group in groupby(listed, key=lambda offer: (offer["kind"], offer["origin"])):
        kind, origin = map(printable, heading)
        rows.add_row(Text(kind, style="bold cyan"), Text(origin, style="cyan"))
        for offer in group:
            texts = (f"  {offer['name']}", offer["summary"])
            rows.add_row(*(Text(printable(text)) for text in texts), _needs(offer))
        rows.add_section()
    return rows


def _needs(offer: dict[str, Any]) -> Text:
    """Return what something needs: packages, and what a user must give."""
    if offer["missing"]:
        fallback = f"missing: {', '.join(offer['missing'])}"
        return Text(printable(offer["install"] or fallback), style="yellow")
    if offer["error"]:
        return Text(printable(offer["error"]), style="red")
    packages = [f"{name} (installed)" for name in offer["requires"]]
    signals = [
        f"{signal}: {', '.join(asked)}" if asked else signal
        for signal, asked in (offer["needs"] or {}).items()
    ]
    return Text(printable("; ".join(packages + signals)))


def _broken_table(broken: list[dict[str, str]]) -> Table:
    rows = table("broken plugin", "origin", "error")
    for plugin in broken:
        texts = (plugin["name"], plugin["origin"], plugin["error"])
        rows.add_row(*(Text(printable(text)) for text in texts), style="red")
    return rows
