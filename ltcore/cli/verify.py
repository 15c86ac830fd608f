"""``ltcore verify``: whether ticket files can be trusted."""

from pathlib import Path
from textwrap import fill
from typing import Annotated, Any

import typer
from rich.text import Text

from ltcore.cli._output import AsJson, console, print_json, printable
from ltcore.errors import LtcoreError
from ltcore.ticket import Ticket


def verify(
    tickets: Annotated[list[Path], typer.Argument(help="Ticket files.")],
    as_json: AsJson = False,
) -> None:
    """Check ticket files as a load does: header, sizes, hashes, counts, values.

    All files are checked; the exit code is 1 if one of them is bad.
    """
    found = []
    for path in tickets:
        found.append(_check(path))
        if not as_json:
            _print(found[-1])
    if as_json:
        print_json(found)
    if not all(result["ok"] for result in found):
        raise typer.Exit(1)


def _check(path: Path) -> dict[str, Any]:
    try:
        return {"path": str(path), "ok": True, "id": Ticket.load(path).id}
    except LtcoreError as error:
        reason = str(error).removeprefix(f"{path}: ")
    except Exception as error:  # noqa: BLE001  whatever a file does to its reader, the next is read
        reason = f"cannot be read: {type(error).__name__}: {error}"
    return {"path": str(path), "ok": False, "error": reason}


def _print(result: dict[str, Any]) -> None:
    out = console()
    word, style = ("OK", "green") if result["ok"] else ("BAD", "bold red")
    line = Text.assemble((f"{word:<5}", style), printable(result["path"]))
    out.print(line, soft_wrap=True)
    # An id and its indent are 76 characters: it stays whole in a narrow terminal.
    detail = printable(result.get("id") or result["error"])
    indent = " " * 5
    typer.echo(fill(detail, out.width, initial_indent=indent, subsequent_indent=indent))
