"""What the demo found, and what follows from it. Nothing is stated that was not measured."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from ltcore_demo._recipe import Point, Recipe

MARGIN = 0.005
"""A ticket matches the dense network if it is at most half a point of accuracy below."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What was asked for; replicate r has the seed ``seed + r``."""

    rounds: int = 8
    replicates: int = 3
    out: Path = Path("demo-out")
    seed: int = 0
    recipe: Recipe = field(default_factory=Recipe)


@dataclass(frozen=True, slots=True)
class Row:
    """One round: its counts, and the early-stop points of every replicate.

    Attributes:
        index: the round; 0 is the dense network.
        kept: prunable weights that are left.
        total: prunable weights.
        ticket: in PyTorch, from the rewound weights.
        reinit: in PyTorch, the same masks with fresh weights; none for the dense network.
        keras: in Keras, the same tickets; none for rounds that were not carried.
    """

    index: int
    kept: int
    total: int
    ticket: tuple[Point, ...]
    reinit: tuple[Point, ...]
    keras: tuple[Point, ...] = ()


@dataclass(frozen=True, slots=True)
class Transfer:
    """How the saved ticket fared in Keras.

    Attributes:
        output_gap: largest difference of any output on the test images, before training.
        loss_gap: largest difference of validation loss at any evaluation while training.
        updates: optimizer updates in Keras, after which every pruned weight was 0.0.
    """

    output_gap: float
    loss_gap: float
    updates: int


@dataclass(frozen=True, slots=True)
class Result:
    """Everything that the demo found.

    Attributes:
        settings: what was asked for.
        rows: a row a round.
        chosen: the round of the saved ticket.
        transfer: how that ticket fared in Keras.
        ticket: its file, from the first replicate.
        plot: the picture.
        seconds: wall time of it all.
    """

    settings: Settings
    rows: tuple[Row, ...]
    chosen: int
    transfer: Transfer
    ticket: Path
    plot: Path
    seconds: float

    @property
    def matched(self) -> bool:
        """Whether the saved ticket's round matched the dense network on the test images."""
        dense, found = self.rows[0], self.rows[self.chosen]
        return mean(found.ticket, test_accuracy) >= mean(dense.ticket, test_accuracy) - MARGIN

    @property
    def leads(self) -> tuple[float, ...]:
        """How far tickets were ahead of the reinit control, a pruned round each."""
        return tuple(
            mean(row.ticket, test_accuracy) - mean(row.reinit, test_accuracy)
            for row in self.rows[1:]
        )

    def as_data(self) -> dict[str, Any]:
        """Return all of it as JSON data."""
        data = asdict(self) | {"ticket": str(self.ticket), "plot": str(self.plot)}
        data["settings"]["out"] = str(self.settings.out)
        return data | {"matched_dense": self.matched, "ahead_of_reinit": list(self.leads)}


def choose(rows: Sequence[Row]) -> int:
    """Return the round whose ticket is worth keeping, by validation images alone.

    The smallest whose mean accuracy is at most half a point below the dense network's; if none
    is, the last.
    """
    dense = mean(rows[0].ticket, validation_accuracy)
    good = [r.index for r in rows[1:] if mean(r.ticket, validation_accuracy) >= dense - MARGIN]
    return max(good, default=rows[-1].index)


def mean(points: Sequence[Point], value: Callable[[Point], float]) -> float:
    """Return the mean over replicates."""
    return fmean(value(point) for point in points)


def test_accuracy(point: Point) -> float:
    """Return the accuracy on the test images."""
    return point.test


def validation_accuracy(point: Point) -> float:
    """Return the accuracy on the validation images."""
    return point.validation


def step(point: Point) -> float:
    """Return the step."""
    return point.step
