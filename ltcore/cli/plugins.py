"""``ltcore plugins``: what is installed, from whom, and what it needs."""

import re
import warnings
from collections.abc import Iterator
from itertools import groupby
from textwrap import fill, wrap
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ltcore.cli import _user
from ltcore.cli._offers import described
from ltcore.cli._options import Import
from ltcore.cli._output import AsJson, console, facts, print_json, printable, table
from ltcore.closest import did_you_mean
from ltcore.discovery import (
    KINDS,
    PluginWarning,
    Registered,
    Registry,
    distribution_of,
    entry_points,
    offers,
    registry,
)
from ltcore.errors import UnknownNameError
from ltcore.hookspecs import PROJECT


def plugins(
    name: Annotated[
        str | None,
        typer.Argument(help="Show what has this name in detail; or list this kind only."),
    ] = None,
    imports: Import = None,
    as_json: AsJson = False,
) -> None:
    """List what plugins offer, from whom, and what it needs; and plugins that cannot be used."""
    _user.imported(imports or [])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluginWarning)  # the table says it
        found = registry()
    if name is not None and name not in KINDS:
        # Patterns such as 2:4 are one pattern with numbers filled in.
        _show("n:m" if re.fullmatch(r"\d+:\d+", name) else name, found, as_json)
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
    out = console()
    _print_offers(out, listed)
    if broken:
        out.print(_broken_table(broken))
    out.print("'ltcore plugins NAME' shows one in detail.")


def _ours_first(offer: Registered) -> tuple[bool, str]:
    return not offer.origin.startswith("ltcore "), offer.origin


def _broken(found: Registry) -> list[dict[str, str]]:
    """Return the plugins that cannot be used; the registry knows the origins of others only."""
    origins = {entry.name: distribution_of(entry) for entry in entry_points(group=PROJECT)}
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
        for paragraph in _paragraphs(offer["doc"], out.width):
            out.print()
            out.print(paragraph, soft_wrap=True)
        out.print()
    if broken:
        out.print(_broken_table(broken))


def _unknown(name: str) -> str:
    known = {each for kind in KINDS for each in offers(kind)}
    hint = did_you_mean(name, [*KINDS, *known]) or "."
    return f"nothing is called {name!r}{hint} 'ltcore plugins' lists all there is"


def _facts(offer: dict[str, Any]) -> dict[str, str]:
    """Return what is known of an offer, by label."""
    return {
        "summary": printable(offer["summary"]),
        "origin": printable(offer["origin"]),
        "target": printable(offer["target"]),
        "needs": printable(_needs(offer).removeprefix("needs ")),
        "options": "\n".join(printable(option) for option in offer["options"] or ()),
        "error": printable(offer["error"]),
    }


def _paragraphs(doc: str, width: int) -> Iterator[str]:
    """Yield a docstring's paragraphs, filled; the items of a list begin lines."""
    for paragraph in doc.split("\n\n"):
        lines = [printable(line) for line in paragraph.split("\n")]
        is_list = any(line.startswith(" ") for line in lines)
        if not is_list:
            yield fill(" ".join(lines), width)
            continue
        margins = [(item, " " * (_depth(item) + 4)) for item in _items(lines)]
        yield "\n".join(fill(item, width, subsequent_indent=margin) for item, margin in margins)


def _items(lines: list[str]) -> list[str]:
    """Return lines in which those that go on, deeper, are part of the one before."""
    items = lines[:1]
    for line in lines[1:]:
        if _depth(line) > _depth(items[-1]) and not items[-1].endswith(":"):
            items[-1] += f" {line.strip()}"
        else:
            items.append(line)
    return items


def _depth(line: str) -> int:
    return len(line) - len(line.lstrip())


_INDENT = 26
"""Where summaries begin; a longer name has a line of its own."""


def _print_offers(out: Console, listed: list[dict[str, Any]]) -> None:
    """Print a paragraph for every offer, under a heading for every kind and origin."""
    for heading, group in groupby(listed, key=lambda offer: (offer["kind"], offer["origin"])):
        kind, origin = map(printable, heading)
        out.print(Text.assemble((f"{kind:<{_INDENT}}", "bold cyan"), (origin, "cyan")))
        for offer in group:
            out.print(_paragraph(offer, out.width), soft_wrap=True)
        out.print()


def _paragraph(offer: dict[str, Any], width: int) -> Text:
    name = f"  {printable(offer['name'])}"
    needs = _needs(offer)
    summary = printable("; ".join(text for text in (offer["summary"], needs) if text))
    lines = wrap(summary, max(width - _INDENT, 20))
    margin = "\n" + " " * _INDENT
    first = margin if len(name) > _INDENT - 2 and lines else " " * (_INDENT - len(name))
    style = "red" if offer["error"] else "yellow" if offer["missing"] else ""
    return Text.assemble((name, "bold"), first, (margin.join(lines), style))


def _needs(offer: dict[str, Any]) -> str:
    """Return what something needs: packages, and what a user must give."""
    if offer["missing"]:
        return f"needs {', '.join(offer['missing'])}: {offer['install'] or 'not installed'}"
    if offer["error"]:
        return str(offer["error"])
    packages = [f"{', '.join(offer['requires'])} (installed)"] if offer["requires"] else []
    signals = [
        f"{signal} ({', '.join(asked)})" if asked else signal
        for signal, asked in (offer["needs"] or {}).items()
    ]
    return f"needs {', '.join(packages + signals)}" if packages or signals else ""


def _broken_table(broken: list[dict[str, str]]) -> Table:
    rows = table("broken plugin", "origin", "error")
    for plugin in broken:
        texts = (plugin["name"], plugin["origin"], plugin["error"])
        rows.add_row(*(Text(printable(text)) for text in texts), style="red")
    return rows
