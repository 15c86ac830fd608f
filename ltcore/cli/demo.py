"""``ltcore demo``: a ticket found in PyTorch, trained on in Keras, on a dataset of 1797 digits."""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from ltcore.cli._output import AsJson
from ltcore.errors import MissingDependencyError


def demo(
    rounds: Annotated[int, typer.Option(min=1, help="How often to prune.")] = 8,
    replicates: Annotated[int, typer.Option(min=1, help="Independent runs to average.")] = 3,
    out: Annotated[Path, typer.Option(help="Folder for the ticket and the plot.")] = Path(
        "demo-out"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first replicate.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Find a ticket in PyTorch, compare it with controls, and train it on in Keras.

    Takes about a minute, needs no download and no GPU.
    """
    if find_spec("ltcore_demo") is None:
        raise MissingDependencyError("ltcore_demo is not installed; pip install 'ltcore[demo]'")
    # By name, so that the core depends on no framework, not even through the demo.
    import_module("ltcore_demo").demo(
        rounds=rounds, replicates=replicates, out=out, seed=seed, as_json=as_json
    )
