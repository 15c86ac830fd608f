"""The picture: accuracy and early-stop step against the weights that are left."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from ltcore_demo._recipe import Point
from ltcore_demo._result import Row, mean, step, test_accuracy

_Style: TypeAlias = dict[str, Any]
_TICKET: _Style = {"color": "#1f6fb4", "marker": "o", "label": "ticket in PyTorch"}
_REINIT: _Style = {"color": "#d1603d", "marker": "s", "label": "same masks, fresh weights"}
# Not every round is carried to Keras: points, and no line that would claim what lies between.
_KERAS: _Style = {
    "color": "#23864d",
    "marker": "D",
    "linestyle": "none",
    "markerfacecolor": "none",
    "markersize": 8,
    "label": "same ticket in Keras",
}


def draw(path: Path, rows: Sequence[Row], chosen: int) -> None:
    """Write the picture; lines are means over replicates, whiskers go from min to max."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _panel(left, rows, lambda point: 100 * test_accuracy(point))
    left.set_ylabel("test accuracy at the early-stop step (%)")
    _panel(right, rows, step)
    right.set_ylabel("early-stop step (optimizer updates)")
    right.set_ylim(bottom=0)
    for panel in (left, right):
        panel.axvline(_share(rows[chosen]), color="0.85", linewidth=6, zorder=0)
    left.legend(frameon=False, fontsize="small")
    replicates = len(rows[0].ticket)
    figure.suptitle(
        f"LeNet-300-100 on 8 x 8 digits, {replicates} replicate{'s' * (replicates > 1)} "
        "(mean, min to max); the saved ticket is on the grey bar",
        fontsize="medium",
    )
    figure.savefig(path, dpi=120)


def _panel(axes: Any, rows: Sequence[Row], value: Callable[[Point], float]) -> None:
    """Draw the three lines, from the dense network on the left to the sparsest on the right."""
    axes.axhline(mean(rows[0].ticket, value), color="0.6", linewidth=1, label="dense network")
    _line(axes, rows, [row.reinit for row in rows], value, _REINIT, shift=0.985)
    _line(axes, rows, [row.ticket for row in rows], value, _TICKET)
    _line(axes, rows, [row.keras for row in rows], value, _KERAS, shift=1.015)
    axes.set_xscale("log")
    axes.invert_xaxis()
    shares = [_share(row) for row in rows[:: 1 + len(rows) // 10]]  # more would run together
    axes.set_xticks(shares, [f"{share:.3g}" for share in shares])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("weights kept (%)")
    axes.spines[["top", "right"]].set_visible(False)


def _line(
    axes: Any,
    rows: Sequence[Row],
    points: Sequence[Sequence[Point]],
    value: Callable[[Point], float],
    style: _Style,
    shift: float = 1.0,
) -> None:
    """Draw means and whiskers, moved sideways by a hair so that whiskers stand side by side."""
    there = [(row, each) for row, each in zip(rows, points, strict=True) if each]
    shares = [shift * _share(row) for row, _ in there]
    means = [mean(each, value) for _, each in there]
    low = [m - min(map(value, each)) for m, (_, each) in zip(means, there, strict=True)]
    high = [max(map(value, each)) - m for m, (_, each) in zip(means, there, strict=True)]
    given = {"markersize": 4, "linewidth": 1.5, "elinewidth": 0.8} | style
    axes.errorbar(shares, means, yerr=[low, high], **given)


def _share(row: Row) -> float:
    return 100 * row.kept / row.total
