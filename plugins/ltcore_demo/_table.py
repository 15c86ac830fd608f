"""The result as a person reads it: one table, and what can honestly be said about it."""

from collections.abc import Iterator, Sequence

from rich import box
from rich.table import Table

from ltcore_demo._data import TEST
from ltcore_demo._recipe import Point
from ltcore_demo._result import MARGIN, Result, Row, mean, step, test_accuracy


def table(result: Result) -> Table:
    """Return the table; 80 columns are enough for it."""
    many = result.settings.replicates > 1
    made = Table(
        title="Test accuracy (%) and early-stop step",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        header_style="bold",
        caption=_caption(result),
        caption_justify="left",
        title_justify="left",
    )
    made.add_column("\nround", justify="right", no_wrap=True)
    made.add_column("weights\nkept", justify="right", no_wrap=True)
    made.add_column("\n%", justify="right", no_wrap=True)
    for heading in ("ticket in\nPyTorch", "reinit\ncontrol", "ticket\nin Keras"):
        made.add_column(heading, justify="right", no_wrap=True, min_width=8 if many else 4)
        made.add_column("\nstep", justify="right", no_wrap=True)
    for row in result.rows:
        made.add_row(*_cells(row, row.index == result.chosen))
    return made


def _cells(row: Row, chosen: bool) -> Iterator[str]:
    yield f"{'* ' if chosen else ''}{row.index or 'dense'}"
    yield f"{row.kept:,}"
    yield f"{100 * row.kept / row.total:.1f}"
    for points in (row.ticket, row.reinit, row.keras):
        yield from (_accuracy(points), f"{mean(points, step):.0f}") if points else ("", "")


def _accuracy(points: Sequence[Point]) -> str:
    shown = f"{100 * mean(points, test_accuracy):.1f}"
    if len(points) == 1:
        return shown
    values = [test_accuracy(point) for point in points]
    return f"{shown} ±{50 * (max(values) - min(values)):.1f}"


def _caption(result: Result) -> str:
    count = result.settings.replicates
    many = f"Means over {count} replicates, ± half their range. " if count > 1 else "One run. "
    return (
        f"{many}Early-stop step: where validation loss is lowest; accuracy is taken there. "
        "* = the saved ticket: the smallest within half a point of the dense network on the "
        "validation images (if none is, the last)."
    )


def verdict(result: Result) -> Iterator[str]:
    """Yield sentences that hold for this run and claim no more."""
    yield _against_dense(result)
    yield _against_reinit(result)
    yield _in_keras(result)
    yield _caution(result)


def _against_dense(result: Result) -> str:
    dense, row = result.rows[0], result.rows[result.chosen]
    gap = 100 * (mean(row.ticket, test_accuracy) - mean(dense.ticket, test_accuracy))
    word = "matched" if result.matched else "did not match"
    return (
        f"With {row.kept / row.total:.1%} of the weights, round {row.index}'s ticket {word} the "
        f"dense network in this run: {gap:+.1f} points of accuracy (matching: at most "
        f"{100 * MARGIN:.1f} below), early stop at step {mean(row.ticket, step):.0f} against "
        f"{mean(dense.ticket, step):.0f}."
    )


def _against_reinit(result: Result) -> str:
    row, leads = result.rows[result.chosen], result.leads
    lead = 100 * leads[result.chosen - 1]
    word = "beat" if lead > 0 else "did not beat"
    return (
        f"It {word} the same masks with fresh weights: {lead:+.1f} points, early stop at step "
        f"{mean(row.ticket, step):.0f} against {mean(row.reinit, step):.0f}; tickets were ahead in "
        f"accuracy in {sum(each > 0 for each in leads)} of {len(leads)} rounds."
    )


def _in_keras(result: Result) -> str:
    found = result.transfer
    outputs = f"to within {found.output_gap:.0e}" if found.output_gap else "bit for bit"
    return (
        f"Loaded into Keras, it gave PyTorch's outputs {outputs}; trained there on the same "
        f"batches, its validation loss stayed within {found.loss_gap:.0e} of PyTorch's, and after "
        f"{found.updates} updates every pruned weight was exactly 0.0."
    )


def _caution(result: Result) -> str:
    noise = (
        "the replicates differ by the ± above"
        if result.settings.replicates > 1
        else "this is one run"
    )
    return (
        f"The data are small: one of the {TEST} test images is {100 / TEST:.2f} points, and "
        f"{noise}. Read small gaps as chance."
    )
