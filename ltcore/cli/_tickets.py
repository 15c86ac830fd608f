"""How commands that write a ticket check its name and tell what became of it."""

from pathlib import Path
from typing import Any

import typer

from ltcore.cli._output import console, facts, printable
from ltcore.errors import TicketFileError
from ltcore.ticket import Ticket


def check_name(path: Path, option: str) -> None:
    """Raise unless a ticket may have this name.

    Raises:
        typer.BadParameter: it does not end in .safetensors.
    """
    if path.suffix != ".safetensors":
        raise typer.BadParameter("a ticket's name ends in .safetensors", param_hint=option)


def check_free(path: Path, force: bool) -> None:
    """Raise if a file would be replaced that nobody said to replace.

    Raises:
        TicketFileError: it exists.
    """
    if path.exists() and not force:
        raise TicketFileError(f"{path} exists; --force replaces it")


def ticket_data(path: Path, ticket: Ticket, what: str) -> dict[str, Any]:
    """Return what a program wants to know of a file that was written."""
    masks, reason = ticket.masks, ticket.why_not_portable()
    return {
        "path": str(path),
        "kind": what,
        "id": ticket.id,
        "kept": masks.kept,
        "total": masks.total,
        "sparsity": masks.sparsity,
        "portable": not reason,
        "why_not_portable": reason,
        "provenance": dict(ticket.provenance),
    }


def print_ticket(path: Path, ticket: Ticket, what: str) -> None:
    """Print what a person wants to know of a file that was written."""
    masks, reason = ticket.masks, ticket.why_not_portable()
    out = console()
    out.print(f"{what} {printable(path)}", style="bold", soft_wrap=True)
    out.print(ticket.id, soft_wrap=True)
    told = {
        "kept": f"{masks.kept:,} of {masks.total:,} weights, sparsity {masks.sparsity:.2%}",
        "portable": "yes" if not reason else f"no: {printable(reason)}",
    }
    out.print(facts(told))
