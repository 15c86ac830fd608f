"""The commands as one program, and what becomes of an error in any of them."""

import os
import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ltcore._version import __version__
from ltcore.cli._output import printable
from ltcore.cli.convert import convert
from ltcore.cli.demo import demo
from ltcore.cli.new_plugin import new_plugin
from ltcore.cli.plugins import plugins
from ltcore.cli.prune import prune
from ltcore.cli.show import show
from ltcore.cli.verify import verify
from ltcore.errors import LtcoreError


class Commands(TyperGroup):
    """Turns an error of ltcore's, or of a disk, into one line and exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; ``LTCORE_TRACEBACK=1`` lets the traceback through."""
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _warn
                return super().invoke(ctx)
        except BrokenPipeError:
            raise  # `| head` is no error; typer knows what to do
        except (LtcoreError, OSError) as error:
            if os.environ.get("LTCORE_TRACEBACK", "0") not in ("", "0"):
                raise
            typer.echo(f"error: {printable(error)}", err=True)
            raise typer.Exit(1) from None


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    """Show a warning without the line of code that gave it, which is no user's business."""
    typer.echo(f"warning: {printable(message)}", err=True)


app = typer.Typer(
    name="ltcore",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ltcore {__version__}")
        raise typer.Exit


@app.callback(
    epilog="Exit codes: 0 fine, 1 a bad ticket or an error, 2 wrong usage. "
    "LTCORE_TRACEBACK=1 shows where an error came from.",
)
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Lottery tickets for PyTorch and Keras: look at them, check, convert, prune, see one found."""


for command, example in (
    (demo, "ltcore demo --rounds 8 --out demo-out"),
    (show, "ltcore show demo-out/digits.safetensors"),
    (verify, "ltcore verify *.safetensors"),
    (convert, "ltcore convert sparse.pt mine.safetensors --model nets:lenet"),
    (prune, "ltcore prune dense.pt --model nets:lenet --sparsity 0.9 -o mine.safetensors"),
    (plugins, "ltcore plugins --json"),
    (new_plugin, "ltcore new-plugin criterion my-rule"),
):
    app.command(epilog=f"Example: [bold]{example}[/bold]")(command)
