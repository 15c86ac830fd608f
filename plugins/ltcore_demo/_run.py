"""The order of things: find tickets, train their controls, carry them over, compare."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

import ltcore as lt
from ltcore.errors import InvalidValueError
from ltcore_demo import _torch
from ltcore_demo._data import Digits, load_digits
from ltcore_demo._plot import draw
from ltcore_demo._recipe import Curve, Recipe
from ltcore_demo._result import Result, Row, Settings, Transfer, choose

_KERAS_COST = 4
"""A Keras update takes about as long as this many of PyTorch; for an even progress bar only."""


class Progress(Protocol):
    """Who watches the demo at work."""

    def start(self, amount: int) -> None:
        """So much work is ahead."""
        ...

    def advance(self, amount: int) -> None:
        """So much more is done."""
        ...

    def begin(self, what: str) -> None:
        """This is being worked on now."""
        ...

    def finish(self, what: str) -> None:
        """This is what came out of it."""
        ...


@dataclass(frozen=True, slots=True)
class Found:
    """A round of one replicate, and its control; None for the dense network."""

    round: lt.Round
    curve: Curve
    control: Curve | None


@dataclass(frozen=True, slots=True)
class Carried:
    """A ticket's training in Keras, and its outputs on the test images before it."""

    curve: Curve
    before: NDArray[Any]


def run(settings: Settings, progress: Progress, started: float) -> Result:
    """Do it all, and leave the ticket and the plot in ``settings.out``.

    Args:
        settings: what to do.
        progress: told of the work as it goes.
        started: when it began by `time.perf_counter`: importing frameworks is part of it.

    Raises:
        InvalidValueError: the folder cannot be made.
    """
    ticket, plot = _files(settings.out)
    progress.start(_work(settings, settings.rounds))
    digits = load_digits()
    with _torch.one_thread():
        seeds = range(settings.seed, settings.seed + settings.replicates)
        replicates = [_search(settings, digits, seed, progress) for seed in seeds]
        rows = [_row(found) for found in zip(*replicates, strict=True)]
        chosen = choose(rows)
        progress.start(_work(settings, chosen))
        replicates[0][chosen].round.ticket.save(ticket)
        carried = _carry_all(settings, digits, replicates, chosen, ticket, progress)
        transfer = _compare(settings, digits, ticket, replicates[0][chosen], carried[chosen][0])
    for index, done in carried.items():
        rows[index] = replace(rows[index], keras=tuple(one.curve.early_stop for one in done))
    draw(plot, rows, chosen)
    return Result(settings, tuple(rows), chosen, transfer, ticket, plot, perf_counter() - started)


def _files(out: Path) -> tuple[Path, Path]:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidValueError(f"--out {out} cannot be made a folder: {error.strerror}") from None
    return out / "digits.safetensors", out / "digits.png"


def _work(settings: Settings, chosen: int) -> int:
    """Return the optimizer updates ahead, those in Keras at their price."""
    recipe, rounds = settings.recipe, settings.rounds
    resumed = recipe.steps - recipe.rewind_step
    in_torch = recipe.steps + rounds * (resumed + recipe.steps)
    in_keras = recipe.steps + (len(_rounds_to_carry(settings, chosen)) - 1) * resumed
    return settings.replicates * (in_torch + _KERAS_COST * in_keras)


def _search(settings: Settings, digits: Digits, seed: int, progress: Progress) -> list[Found]:
    """Find tickets for one seed, a round at a time, with the reinit control beside each."""
    recipe = settings.recipe
    curves: list[Curve] = []

    def train(model: Any, start_step: int) -> None:
        progress.begin(f"PyTorch, seed {seed}, round {len(curves)} of {settings.rounds}")
        curves.append(_torch.train(model, digits, recipe, seed, start_step, progress.advance))

    def evaluate(model: Any) -> dict[str, float]:
        stop = curves[-1].early_stop
        return {
            "early_stop_step": stop.step,
            "validation_accuracy": stop.validation,
            "test_accuracy": stop.test,
        }

    found = []
    for finished in lt.iter_rounds(
        _torch.build(recipe, seed),
        train,
        rounds=settings.rounds,
        rate={"*": 0.2, "@output": 0.1},
        rewind_to=recipe.rewind_step,
        scope="layer",
        evaluate=evaluate,
        seed=seed,
        example=digits.train.inputs[:1],
    ):
        control = _control(finished, digits, recipe, seed, progress) if finished.index else None
        found.append(Found(finished, curves[-1], control))
        progress.finish(_told(found[-1], seed))
    return found


def _control(
    finished: lt.Round, digits: Digits, recipe: Recipe, seed: int, progress: Progress
) -> Curve:
    """Train the round's masks from fresh weights: same structure, another draw of the lottery."""
    model = _torch.build(recipe, seed)
    # Of its own for every seed and round, and never one that a network was built with.
    finished.ticket.apply(model, weights="reinit", seed=1_000_003 * (seed + 1) + finished.index)
    return _torch.train(model, digits, recipe, seed, 0, progress.advance)


def _told(found: Found, seed: int) -> str:
    line = (
        f"PyTorch, seed {seed}, round {found.round.index}: {found.round.masks.density:.1%} kept, "
        f"accuracy {found.curve.early_stop.test:.1%}"
    )
    return f"{line}, reinit {found.control.early_stop.test:.1%}" if found.control else line


def _row(replicates: Sequence[Found]) -> Row:
    first = replicates[0].round
    return Row(
        first.index,
        first.kept,
        first.total,
        tuple(found.curve.early_stop for found in replicates),
        tuple(found.control.early_stop for found in replicates if found.control),
    )


def _carry_all(
    settings: Settings,
    digits: Digits,
    replicates: Sequence[Sequence[Found]],
    chosen: int,
    path: Path,
    progress: Progress,
) -> dict[int, list[Carried]]:
    """Train tickets of every replicate in Keras; the saved one comes from its file."""
    carried: dict[int, list[Carried]] = {index: [] for index in _rounds_to_carry(settings, chosen)}
    for seed, found in enumerate(replicates, settings.seed):
        for index, done in carried.items():
            saved = seed == settings.seed and index == chosen
            ticket = lt.load(path) if saved else found[index].round.ticket
            progress.begin(f"Keras, seed {seed}, ticket of round {index}")
            done.append(_carry(ticket, digits, settings.recipe, seed, progress))
        progress.finish(f"Keras, seed {seed}: {len(carried)} tickets trained")
    return carried


def _rounds_to_carry(settings: Settings, chosen: int) -> list[int]:
    """Return every second round and the saved one: Keras takes most of the time."""
    return sorted({*range(0, settings.rounds + 1, 2), chosen})


def _carry(
    ticket: lt.Ticket, digits: Digits, recipe: Recipe, seed: int, progress: Progress
) -> Carried:
    """Train a ticket of PyTorch's in a Keras model, and see that its zeros are there after it."""
    from ltcore_demo import _keras  # takes seconds; PyTorch's part needs none of it

    model = _keras.build(recipe)
    hold = ticket.apply(model, example=digits.train.inputs[:1])
    before = _keras.outputs(model, digits.test.inputs)
    curve = _keras.train(
        model, digits, recipe, seed, _start_step(ticket),
        lambda updates: progress.advance(updates * _KERAS_COST),
    )  # fmt: skip
    hold.check()
    return Carried(curve, before)


def _start_step(ticket: lt.Ticket) -> int:
    """Return the step of training that the ticket's weights belong to."""
    return int(ticket.provenance["rewind"]["step"]) if ticket.provenance["round"] else 0


def _compare(
    settings: Settings, digits: Digits, path: Path, found: Found, carried: Carried
) -> Transfer:
    """Hold the saved ticket's two lives against each other."""
    ticket = lt.load(path)
    model = _torch.build(settings.recipe, settings.seed)
    ticket.apply(model)
    output_gap = np.abs(_torch.outputs(model, digits.test.inputs) - carried.before).max()
    pairs = zip(found.curve.points, carried.curve.points, strict=True)
    loss_gap = max(abs(here.loss - there.loss) for here, there in pairs)
    return Transfer(float(output_gap), loss_gap, settings.recipe.steps - _start_step(ticket))
