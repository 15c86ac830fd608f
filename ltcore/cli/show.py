"""``ltcore show``: what a ticket file says."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ltcore.cli._output import AsJson, console, facts, print_json, printable, table, words
from ltcore.ticket import Ticket

_ORDER = ("framework", "criterion", "scope", "round", "goal", "rewind", "steps", "seed", "parent")


def show(
    ticket: Annotated[Path, typer.Argument(help="A ticket file.")],
    as_json: AsJson = False,
) -> None:
    """Show what is in a ticket: where it is from, what it keeps, layer by layer."""
    loaded = Ticket.load(ticket)
    if as_json:
        print_json(_as_data(ticket, loaded))
    else:
        _print(ticket, loaded)


def _as_data(path: Path, ticket: Ticket) -> dict[str, Any]:
    masks = ticket.masks
    return {
        "path": str(path),
        "id": ticket.id,
        "kept": masks.kept,
        "total": masks.total,
        "sparsity": masks.sparsity,
        "portable": not ticket.why_not_portable(),
        "why_not_portable": ticket.why_not_portable(),
        "provenance": dict(ticket.provenance),
        "parameters": list(_parameters(ticket)),
    }


def _parameters(ticket: Ticket) -> list[dict[str, Any]]:
    """Return a row for every array; ``kept`` is None where no mask is."""
    counts = ticket.masks.counts
    return [
        {
            "name": name,
            "kind": site.kind,
            "shape": list(role.shape),
            "dtype": role.dtype,
            "kept": counts[name][0] if name in counts else None,
            "total": ticket.params[name].size,
        }
        for name, site, role in ticket.structure.items()
    ]


def _print(path: Path, ticket: Ticket) -> None:
    out = console()
    out.print(printable(path), style="bold", soft_wrap=True)
    out.print(ticket.id, soft_wrap=True)
    out.print()
    out.print(facts(_facts(ticket)))
    rows = table(
        "parameter", "kind", "shape", "kept", "total", "sparsity",
        right=("kept", "total", "sparsity"),
    )  # fmt: skip
    for row in _parameters(ticket):
        shape = " x ".join(map(str, row["shape"])) or "scalar"
        rows.add_row(row["name"], row["kind"], shape, *_counts(row["kept"], row["total"]))
    rows.add_section()
    rows.add_row("all under masks", "", "", *_counts(ticket.masks.kept, ticket.masks.total))
    out.print(rows)


def _counts(kept: int | None, total: int) -> tuple[str, str, str]:
    if kept is None:
        return "", f"{total:,}", "no mask"
    removed = (total - kept) / total if total else 0.0
    return f"{kept:,}", f"{total:,}", f"{removed:.2%}"


def _facts(ticket: Ticket) -> dict[str, str]:
    masks, told = ticket.masks, ticket.provenance
    reason = ticket.why_not_portable()
    own = {key: _told(key, told[key]) for key in _ORDER if told.get(key) is not None}
    rest = {key: words(told[key]) for key in told if key not in (*_ORDER, "metrics", "versions")}
    return {
        "kept": f"{masks.kept:,} of {masks.total:,} weights, sparsity {masks.sparsity:.2%}",
        **own,
        "metrics": words(told.get("metrics") or ""),
        **{printable(key): value for key, value in rest.items()},
        "versions": words(told.get("versions") or ""),
        "portable": "yes" if not reason else f"no: {printable(reason)}",
    }


def _told(key: str, value: Any) -> str:
    """Return one entry of the provenance, which is anyone's JSON, in words."""
    if key == "rewind" and isinstance(value, Mapping) and {"kind", "step"} <= value.keys():
        kind = f"step {value['step']}" if value["kind"] == "step" else value["kind"]
        later = f", schedule {value['schedule']}" if "schedule" in value else ""
        return printable(f"{kind}{later}")
    if key == "parent":
        return f"{printable(value)[:23]}..."  # all of it is 71 characters; --json has it
    return words(value)
