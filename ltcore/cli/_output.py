"""How commands print: tables for people, JSON for programs, and nothing a file could smuggle in.

Text out of a ticket is another person's: control characters in it could rewrite a terminal.
"""

import json
import os
import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
"""The option that every command with something to read offers."""


def console() -> Console:
    """Return a console on standard output as it is now."""
    # A program that reads the lines wants names whole.
    width = None if sys.stdout.isatty() or os.environ.get("COLUMNS") else 250
    return Console(file=sys.stdout, width=width, highlight=False, markup=False, emoji=False)


def print_json(value: Any) -> None:
    """Print ``value`` as indented ASCII JSON."""
    typer.echo(json.dumps(value, indent=2))


def printable(value: object) -> str:
    """Return ``value`` as one line of text in which whatever cannot be seen is escaped."""
    return "".join(c if c.isprintable() else _escaped(c) for c in str(value).replace("\n", " "))


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def words(value: Any) -> str:
    """Return JSON data as a person would write it: ``accuracy 0.97, step 120``."""
    if isinstance(value, Mapping):
        return ", ".join(f"{printable(key)} {words(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(words, value))
    if isinstance(value, float):
        return f"{value:.6g}"
    return "none" if value is None else printable(value)


def table(*columns: str, right: tuple[str, ...] = (), whole: tuple[str, ...] = ()) -> Table:
    """Return an empty table.

    Args:
        columns: their headings.
        right: which of them hold numbers: flush right and never broken.
        whole: which others are never broken.
    """
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, header_style="bold")
    for column in columns:
        made.add_column(
            column,
            justify="right" if column in right else "left",
            no_wrap=column in (*right, *whole),
            overflow="fold",
        )
    return made


def facts(pairs: Mapping[str, str]) -> Table:
    """Return label and value, a pair a line, without empty values."""
    made = Table.grid(padding=(0, 2))
    made.add_column(style="bold", no_wrap=True)
    made.add_column(overflow="fold")
    for label, value in pairs.items():
        if value:
            made.add_row(label, Text(value))
    return made
