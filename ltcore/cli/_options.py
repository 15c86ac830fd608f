"""Options that several commands have."""

from typing import Annotated

import typer

Model = Annotated[
    str,
    typer.Option(
        help="Where the model comes from: package.module:function, called without arguments; "
        "the current folder counts.",
        metavar="MODULE:FUNCTION",
    ),
]

Example = Annotated[
    list[str] | None,
    typer.Option(
        help="Shape of one input batch, such as 1,3,32,32 or 1,16:int64; a "
        "PyTorch model needs it where the other side is Keras. Once for each input.",
        metavar="SHAPE[:DTYPE]",
    ),
]

Import = Annotated[
    list[str] | None,
    typer.Option("--import", help="Import this first, for what it registers.", metavar="MODULE"),
]

Force = Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")]
