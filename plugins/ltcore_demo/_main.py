"""Runs the demo for a person or a program."""

import json
import sys

from rich.console import Console

from ltcore_demo._progress import watched
from ltcore_demo._result import Result, Settings
from ltcore_demo._run import run
from ltcore_demo._table import table, verdict


def main(settings: Settings, *, started: float, as_json: bool) -> None:
    """Run the demo; the result goes to standard output, progress to standard error."""
    with watched() as progress:
        result = run(settings, progress, started)
    if as_json:
        print(json.dumps(result.as_data(), indent=2))
    else:
        _print(result)


def _print(result: Result) -> None:
    out = Console(file=sys.stdout, highlight=False, markup=False)
    out.print(table(result))
    out.print()
    for sentence in verdict(result):
        out.print(sentence)
        out.print()
    out.print(f"ticket  {result.ticket}   (ltcore show {result.ticket})", soft_wrap=True)
    out.print(f"plot    {result.plot}", soft_wrap=True)
    out.print(f"took    {result.seconds:.0f} s")
