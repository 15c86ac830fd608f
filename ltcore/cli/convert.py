"""``ltcore convert``: a ticket from another tool's files, or a plain checkpoint from a ticket."""

import inspect
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ltcore.arrays import Array
from ltcore.cli._output import AsJson, console, facts, print_json, printable
from ltcore.container import is_ticket
from ltcore.convert import from_checkpoint, from_open_lth, from_tfmot, to_checkpoint
from ltcore.errors import CheckpointError, InvalidValueError
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
    model: Annotated[
        str,
        typer.Option(
            help="Where the model comes from: package.module:function, called without arguments; "
            "the current folder counts.",
            metavar="MODULE:FUNCTION",
        ),
    ],
    example: Annotated[
        list[str] | None,
        typer.Option(
            help="Shape of one input batch, such as 1,3,32,32 or 1,16:int64; a "
            "PyTorch model needs it where the other side is Keras. Once for each input.",
            metavar="SHAPE[:DTYPE]",
        ),
    ] = None,
    kind: Annotated[
        Source,
        typer.Option("--from", help="What SOURCE is; auto takes a folder to be open_lth's."),
    ] = Source.AUTO,
    weights: Annotated[
        str | None,
        typer.Option(help="For open_lth: the model file, such as model_ep0_it0; or the earliest."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace DEST if it exists.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a ticket of a sparse checkpoint, or a plain checkpoint of a ticket.

    What SOURCE is decides the direction.
    """
    outward = kind is Source.AUTO and is_ticket(source)
    kind = _kind(source, kind)
    _check_usage(dest, kind, weights, outward)
    if dest.exists() and not force:
        raise CheckpointError(f"{dest} exists; --force replaces it")
    batch = _example(example or [])
    made = _model(model)
    if outward:
        ticket = Ticket.load(source)
        to_checkpoint(ticket, made, dest, example=batch)
    else:
        ticket = _ticket(kind, made, source, weights, batch)
        ticket.save(dest)
    _report(dest, ticket, "checkpoint" if outward else "ticket", as_json)


def _kind(source: Path, kind: Source) -> Source:
    if kind is not Source.AUTO:
        return kind
    return Source.OPEN_LTH if source.is_dir() else Source.CHECKPOINT


def _check_usage(dest: Path, kind: Source, weights: str | None, outward: bool) -> None:
    if weights is not None and (outward or kind is not Source.OPEN_LTH):
        raise typer.BadParameter("only a folder of open_lth has several", param_hint="--weights")
    if not outward and dest.suffix != ".safetensors":
        raise typer.BadParameter("a ticket's name ends in .safetensors", param_hint="DEST")


def _ticket(kind: Source, model: Any, source: Path, weights: str | None, example: Any) -> Ticket:
    if kind is Source.OPEN_LTH:
        return from_open_lth(model, source, weights=weights, example=example)
    if kind is Source.TFMOT:
        return from_tfmot(model, source, example=example)
    return from_checkpoint(model, source, example=example)


def _example(texts: list[str]) -> Any:
    """Return zeros of the shapes given: one array, or a tuple of several; None without any."""
    arrays = tuple(map(_zeros, texts))
    return arrays[0] if len(arrays) == 1 else arrays or None


def _zeros(text: str) -> Array:
    sizes, _, dtype = text.partition(":")
    try:
        return np.zeros([int(size) for size in sizes.split(",")], dtype or "float32")
    except (ValueError, TypeError) as error:
        raise typer.BadParameter(f"{text!r}: {error}", param_hint="--example") from None


def _model(reference: str) -> Any:
    """Return the model that ``module:function`` makes, or the object of that name itself.

    Raises:
        InvalidValueError: it is not there, or fails.
    """
    module, _, name = reference.partition(":")
    if not module or not name:
        raise typer.BadParameter(
            f"{reference!r}; expected package.module:function", param_hint="--model"
        )
    try:
        with _current_folder():
            found = attrgetter(name)(import_module(module))
            makes = inspect.isroutine(found) or inspect.isclass(found) or type(found) is partial
            return found() if makes else found
    except Exception as error:  # the user's own code may fail in any way
        raise InvalidValueError(
            f"no model from --model {reference}: {type(error).__name__}: {error}"
        ) from error


@contextmanager
def _current_folder() -> Iterator[None]:
    """Let imports find what is in the current folder, as ``python -m`` does."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _report(path: Path, ticket: Ticket, what: str, as_json: bool) -> None:
    masks, reason = ticket.masks, ticket.why_not_portable()
    if as_json:
        print_json(
            {
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
        )
        return
    out = console()
    out.print(f"{what} {printable(path)}", style="bold", soft_wrap=True)
    out.print(ticket.id, soft_wrap=True)
    told = {
        "kept": f"{masks.kept:,} of {masks.total:,} weights, sparsity {masks.sparsity:.2%}",
        "portable": "yes" if not reason else f"no: {printable(reason)}",
    }
    out.print(facts(told))
