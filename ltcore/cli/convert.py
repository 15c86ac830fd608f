"""``ltcore convert``: a ticket from another tool's files, or a plain checkpoint from a ticket."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from ltcore.cli import _user
from ltcore.cli._options import Example, Force, Model
from ltcore.cli._output import AsJson, print_json
from ltcore.cli._tickets import check_free, check_name, print_ticket, ticket_data
from ltcore.container import is_ticket
from ltcore.convert import from_checkpoint, from_open_lth, from_tfmot, to_checkpoint
from ltcore.ticket import Ticket


class Source(StrEnum):
    """What ``--from`` takes."""

    AUTO = "auto"
    CHECKPOINT = "checkpoint"
    OPEN_LTH = "open_lth"
    TFMOT = "tfmot"


def convert(
    source: Annotated[
        Path, typer.Argument(help="A checkpoint, a folder of open_lth, or a ticket.")
    ],
    dest: Annotated[Path, typer.Argument(help="The ticket to write; of a ticket, the checkpoint.")],
    model: Model,
    example: Example = None,
    kind: Annotated[
        Source,
        typer.Option("--from", help="What SOURCE is; auto takes a folder to be open_lth's."),
    ] = Source.AUTO,
    weights: Annotated[
        str | None,
        typer.Option(help="For open_lth: the model file, such as model_ep0_it0; or the earliest."),
    ] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Make a ticket of a sparse checkpoint, or a plain checkpoint of a ticket.

    What SOURCE is decides the direction.
    """
    outward = kind is Source.AUTO and is_ticket(source)
    kind = _kind(source, kind)
    _check_usage(dest, kind, weights, outward)
    check_free(dest, force)
    batch = _user.example(example or [])
    made = _user.made(model, "--model")
    if outward:
        ticket = Ticket.load(source)
        to_checkpoint(ticket, made, dest, example=batch)
    else:
        ticket = _ticket(kind, made, source, weights, batch)
        ticket.save(dest)
    what = "checkpoint" if outward else "ticket"
    if as_json:
        print_json(ticket_data(dest, ticket, what))
    else:
        print_ticket(dest, ticket, what)


def _kind(source: Path, kind: Source) -> Source:
    if kind is not Source.AUTO:
        return kind
    return Source.OPEN_LTH if source.is_dir() else Source.CHECKPOINT


def _check_usage(dest: Path, kind: Source, weights: str | None, outward: bool) -> None:
    if weights is not None and (outward or kind is not Source.OPEN_LTH):
        raise typer.BadParameter("only a folder of open_lth has several", param_hint="--weights")
    if not outward:
        check_name(dest, "DEST")


def _ticket(kind: Source, model: Any, source: Path, weights: str | None, example: Any) -> Ticket:
    if kind is Source.OPEN_LTH:
        return from_open_lth(model, source, weights=weights, example=example)
    if kind is Source.TFMOT:
        return from_tfmot(model, source, example=example)
    return from_checkpoint(model, source, example=example)
