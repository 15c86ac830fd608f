"""How far the demo is: a bar where someone watches, lines in a log where nobody does."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar


class BarProgress:
    """Moves a bar."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._task = bar.add_task("loading PyTorch", total=None)

    def start(self, amount: int) -> None:
        """Set the bar's length."""
        self._bar.update(self._task, total=amount)

    def advance(self, amount: int) -> None:
        """Move the bar."""
        self._bar.advance(self._task, amount)

    def begin(self, what: str) -> None:
        """Show ``what`` beside the bar."""
        self._bar.update(self._task, description=what)

    def finish(self, what: str) -> None:
        """The table will say it."""


class LogProgress:
    """Writes a line for everything that is finished."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started = perf_counter()

    def start(self, amount: int) -> None:
        """A log has no length."""

    def advance(self, amount: int) -> None:
        """A log of every few updates would help nobody."""

    def begin(self, what: str) -> None:
        """A log says what is done."""

    def finish(self, what: str) -> None:
        """Write ``what`` with the seconds so far."""
        seconds = perf_counter() - self._started
        self._console.print(f"[{seconds:5.1f} s] {what}", soft_wrap=True)


@contextmanager
def watched() -> Iterator[BarProgress | LogProgress]:
    """Show progress on standard error, which leaves standard output to the result."""
    console = Console(stderr=True, highlight=False, markup=False)
    if not console.is_terminal:
        yield LogProgress(console)
        return
    columns = (TextColumn("{task.description:<32}"), BarColumn(), TaskProgressColumn())
    with Bar(*columns, TimeElapsedColumn(), console=console, transient=True) as bar:
        yield BarProgress(bar)
