"""``ltcore prune``: a ticket from a checkpoint, by any criterion, allocation and pattern."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ltcore import api
from ltcore.allocation import Amounts
from ltcore.cli import _config, _user
from ltcore.cli._options import Example, Force, Import, Model
from ltcore.cli._output import AsJson, print_json, printable
from ltcore.cli._tickets import check_free, check_name, print_ticket, ticket_data
from ltcore.convert import load_weights
from ltcore.counts import fraction
from ltcore.errors import InvalidValueError, LtcoreError
from ltcore.holds import Report
from ltcore.options import allocation_from, criterion_from, pattern_from
from ltcore.signals import MEASUREMENTS
from ltcore.ticket import Ticket


def prune(
    checkpoint: Annotated[Path, typer.Argument(help="The model's weights, dense or sparse.")],
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="The ticket to write.")],
    sparsity: Annotated[
        float | None, typer.Option(help="The fraction of weights to remove, such as 0.9.")
    ] = None,
    criterion: Annotated[
        str | None,
        typer.Option(help="What makes a weight important (magnitude).", metavar="NAME"),
    ] = None,
    scope: Annotated[
        str | None, typer.Option(help="What competes with what (global).", metavar="NAME")
    ] = None,
    pattern: Annotated[
        str | None,
        typer.Option(help="The shape of sparsity (unstructured), such as 2:4.", metavar="NAME"),
    ] = None,
    prunable: Annotated[
        list[str] | None,
        typer.Option(
            help="Which parameters to prune, such as 'encoder.*'; may come again.",
            metavar="SELECTOR",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Returns batches (inputs, targets), for criteria that need them.",
            metavar="MODULE:FUNCTION",
        ),
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(
            help="Of (outputs, targets), for criteria that need gradients.",
            metavar="MODULE:FUNCTION",
        ),
    ] = None,
    example: Example = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="For criteria that draw random numbers (0).")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="TOML with sparsity, criterion, scope, pattern, prunable, seed, import; options "
            "win."
        ),
    ] = None,
    imports: Import = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Prune a checkpoint and write the ticket.

    'ltcore plugins' lists criteria, allocations (for --scope) and patterns.
    """
    check_name(output, "--output")
    check_free(output, force)
    typed = {
        "sparsity": sparsity,
        "criterion": criterion,
        "scope": scope,
        "pattern": pattern,
        "prunable": prunable or None,
        "seed": seed,
    }
    read = _config.read(config) if config else {}
    _user.imported(_texts(read.pop("import", [])) + (imports or []))
    choices = _choices(config, read, typed)
    _check_choices(choices, data, loss)
    batch = _user.example(example or [])
    made = _user.made(model, "--model")
    given: dict[str, Any] = {
        "loss": _user.function(loss, "--loss") if loss else None,
        "batches": _user.made(data, "--data") if data else None,
    }
    options = {name: choice.value for name, choice in choices.items()}
    with _user.running(_code(model, data, loss)):
        masks = load_weights(made, checkpoint, example=batch)
        if masks:
            api.hold(made, masks)
        hold = api.prune(made, example=batch, **given, **options)
        ticket = Ticket.from_model(made, example=batch)
    ticket.save(output)
    _print(output, ticket, hold.report(), as_json)


@dataclass(frozen=True, slots=True)
class _Choice:
    """A value, and where the user wrote it."""

    value: Any
    place: str


def _texts(given: str | list[str]) -> list[str]:
    return [given] if isinstance(given, str) else given


def _code(model: str, data: str | None, loss: str | None) -> str:
    """Return how the user named the code that a pruning calls."""
    options = {"--model": model, "--data": data, "--loss": loss}
    return ", ".join(f"{option} {value}" for option, value in options.items() if value)


def _choices(
    config: Path | None, read: Mapping[str, Any], typed: Mapping[str, Any]
) -> dict[str, _Choice]:
    """Return what was chosen: in the file, or with an option, which wins."""
    chosen = {key: _Choice(value, f"{config}: {key}") for key, value in read.items()}
    given = {key: _Choice(v, f"--{key}") for key, v in typed.items() if v is not None}
    return {**chosen, **given}


def _check_amounts(amounts: Amounts) -> None:
    named = amounts if isinstance(amounts, Mapping) else {"the value": amounts}
    for name, value in named.items():
        fraction(value, name)


_READERS: Mapping[str, Callable[[Any], object]] = {
    "sparsity": _check_amounts,
    "criterion": criterion_from,
    "scope": allocation_from,
    "pattern": pattern_from,
}


def _check_choices(choices: Mapping[str, _Choice], data: str | None, loss: str | None) -> None:
    """Raise unless names stand for something and have what they need, before work is done."""
    for key, reader in _READERS.items():
        if key in choices:
            with _pointing_at(choices[key].place):
                reader(choices[key].value)
    if "criterion" not in choices:
        return
    rule = criterion_from(choices["criterion"].value)
    given = {"batches": ("--data", data), "loss": ("--loss", loss)}
    for signal in sorted(rule.needs & MEASUREMENTS.keys()):
        asked = [given[name] for name in MEASUREMENTS[signal].asks]
        missing = [f"{option} MODULE:FUNCTION" for option, value in asked if value is None]
        if missing:
            raise InvalidValueError(
                f"criterion {rule.name!r} needs {signal!r}: give {' and '.join(missing)}"
            )


@contextmanager
def _pointing_at(place: str) -> Iterator[None]:
    """Say where an error is, and make one of ltcore's of what a plugin may raise."""
    try:
        yield
    except LtcoreError as error:
        raise type(error)(f"{place}: {error}") from error
    except Exception as error:
        raise InvalidValueError(f"{place}: {type(error).__name__}: {error}") from error


def _print(path: Path, ticket: Ticket, report: Report, as_json: bool) -> None:
    if as_json:
        names = ("name", "kind", "kept", "total")
        rows = [dict(zip(names, row, strict=True)) for row in report.rows]
        print_json({**ticket_data(path, ticket, "ticket"), "parameters": rows})
        return
    print_ticket(path, ticket, "ticket")
    for line in ("", *str(report).splitlines()):
        typer.echo(printable(line))
