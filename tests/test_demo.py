"""The demo: its arithmetic by hand, and all of it once in small."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import ltcore as lt
from ltcore_demo import _data, _torch
from ltcore_demo._main import main
from ltcore_demo._recipe import Curve, Point, Recipe, accuracy, cross_entropy
from ltcore_demo._result import Result, Row, Settings, Transfer, choose
from ltcore_demo._run import run
from ltcore_demo._table import table, verdict

SMALL = Recipe(hidden=(24, 12), steps=60, rewind_step=10)


def point(step: int = 10, loss: float = 1.0, validation: float = 0.9, test: float = 0.9) -> Point:
    return Point(step, loss, validation, test)


def row(index: int, validation: float, test: float = 0.9, reinit: float = 0.8) -> Row:
    ticket = point(validation=validation, test=test)
    control = (point(test=reinit),) if index else ()
    return Row(index, 1000 - 100 * index, 1000, (ticket,), control)


class Silent:
    """Progress that nobody watches."""

    def start(self, amount: int) -> None: ...
    def advance(self, amount: int) -> None: ...
    def begin(self, what: str) -> None: ...
    def finish(self, what: str) -> None: ...


# arithmetic


def test_early_stop_is_the_first_minimum_of_validation_loss() -> None:
    losses = [3.0, 1.0, 2.0, 1.0]
    curve = Curve(tuple(point(10 * i, loss) for i, loss in enumerate(losses, 1)))
    assert curve.early_stop.step == 20


def test_cross_entropy_and_accuracy_by_hand() -> None:
    logits, labels = np.log(np.array([[1, 3], [1, 1]])), np.array([1, 0])
    assert cross_entropy(logits, labels) == pytest.approx(-(math.log(0.75) + math.log(0.5)) / 2)
    assert cross_entropy(logits + 1e4, labels) == pytest.approx(cross_entropy(logits, labels))
    assert accuracy(np.array([[0, 1], [0, 1]]), labels) == 0.5


def test_the_parts_are_disjoint_and_the_same_every_time() -> None:
    digits = _data.load_digits()
    parts = (digits.train, digits.validation, digits.test)
    assert [len(part.labels) for part in parts] == [900, 297, 600]
    assert len(np.unique(np.concatenate([part.inputs for part in parts]), axis=0)) == 1797
    assert digits.train.inputs.mean() == pytest.approx(0, abs=1e-6)
    assert digits.train.inputs.std() == pytest.approx(1)
    again = _data.load_digits()
    np.testing.assert_array_equal(digits.test.inputs, again.test.inputs)


def test_a_resumed_training_sees_what_an_unbroken_one_sees() -> None:
    whole = list(_data.batches(3, 0, 40, 60))
    np.testing.assert_array_equal(whole[17:], list(_data.batches(3, 17, 40, 60)))
    epoch = np.sort(np.concatenate(whole[:15]))
    np.testing.assert_array_equal(epoch, np.arange(900))  # each image once
    assert not np.array_equal(whole[0], whole[15])
    assert not np.array_equal(whole[0], next(_data.batches(4, 0, 1, 60)))


@pytest.mark.parametrize(
    ("validation", "chosen"),
    [
        ([0.95, 0.96, 0.945, 0.94], 2),
        ([0.95, 0.90, 0.945, 0.90], 2),
        ([0.95, 0.90, 0.90, 0.90], 3),
        ([0.95, 0.95, 0.95, 0.95], 3),
    ],
)
def test_the_smallest_ticket_within_half_a_point_is_chosen(
    validation: list[float], chosen: int
) -> None:
    # By validation alone: accuracy on the test images says the contrary here.
    rows = [row(i, value, test=1 - value) for i, value in enumerate(validation)]
    assert choose(rows) == chosen


# words


def made_up(test: float, reinit: float, replicates: int = 1) -> Result:
    rows = [row(0, 0.9, test=0.9), row(1, 0.9, test=test, reinit=reinit)]
    rows = [replace(r, ticket=r.ticket * replicates, reinit=r.reinit * replicates) for r in rows]
    settings = Settings(rounds=1, replicates=replicates)
    transfer = Transfer(0.0, 1e-3, 390)
    return Result(settings, tuple(rows), 1, transfer, Path("t"), Path("p"), 1.0)


@pytest.mark.parametrize(
    ("test", "reinit", "expected"),
    [
        (0.90, 0.80, (" matched", " beat", "1 of 1")),
        (0.895, 0.80, (" matched", " beat", "1 of 1")),
        (0.85, 0.80, ("did not match", " beat", "1 of 1")),
        (0.90, 0.91, (" matched", "did not beat", "0 of 1")),
        (0.85, 0.85, ("did not match", "did not beat", "0 of 1")),
    ],
)
def test_the_verdict_follows_the_numbers(
    test: float, reinit: float, expected: tuple[str, ...]
) -> None:
    text = " ".join(verdict(made_up(test, reinit)))
    for words in expected:
        assert words in text
    assert f"{100 * (test - 0.9):+.1f} points" in text
    assert f"{100 * (test - reinit):+.1f} points" in text


@pytest.mark.parametrize("replicates", [1, 3])
def test_the_table_fits_80_columns(replicates: int) -> None:
    console = Console(width=80, file=StringIO(), record=True)
    shown = made_up(0.9, 0.8, replicates)
    wide = replace(shown.rows[1], keras=shown.rows[1].ticket, kept=50_200, total=50_200)
    console.print(table(replace(shown, rows=(shown.rows[0], wide))))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    (line,) = [line.split() for line in text.splitlines() if "50,200" in line]
    spread = ["±0.0"] if replicates > 1 else []
    each = ["90.0", *spread, "10"]
    assert line == ["*", "1", "50,200", "100.0", *each, "80.0", *spread, "10", *each]


def test_the_module_is_light() -> None:
    heavy = ("torch", "keras", "tensorflow", "matplotlib", "sklearn", "rich")
    code = f"import sys, ltcore_demo; print([n for n in {heavy!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


# all of it, in small


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    out = tmp_path_factory.mktemp("demo") / "made" / "on the way"
    return run(Settings(rounds=2, replicates=2, out=out, seed=5, recipe=SMALL), Silent(), 0.0)


@pytest.mark.slow
def test_every_round_is_measured(result: Result) -> None:
    assert [r.index for r in result.rows] == [0, 1, 2]
    # 64*24 + 24*12 + 12*10, then 20 % off the hidden layers and 10 % off the output layer
    assert [r.kept for r in result.rows] == [1944, 1229 + 230 + 108, 983 + 184 + 97]
    assert {r.total for r in result.rows} == {1944}
    assert [len(r.ticket) for r in result.rows] == [2, 2, 2]
    assert [len(r.reinit) for r in result.rows] == [0, 2, 2]
    assert [len(r.keras) for r in result.rows] == [2, 2 * (result.chosen == 1), 2]
    for measured in result.rows[1].ticket + result.rows[1].reinit + result.rows[2].keras:
        assert measured.step in range(10, 61, 10)
        assert 0.2 < measured.test < 1


@pytest.mark.slow
def test_the_files_are_there(result: Result) -> None:
    assert result.plot.read_bytes().startswith(b"\x89PNG")
    ticket = lt.load(result.ticket)
    row = result.rows[result.chosen]
    assert (ticket.masks.kept, ticket.masks.total) == (row.kept, row.total)
    assert ticket.provenance["round"] == result.chosen
    assert ticket.provenance["rewind"] == {"kind": "step", "step": 10, "schedule": "resumed"}
    assert ticket.provenance["seed"] == 5
    assert ticket.provenance["metrics"]["test_accuracy"] == row.ticket[0].test
    assert not ticket.structure.why_not_portable()


@pytest.mark.slow
def test_keras_gives_the_same_outputs_and_learns_alike(result: Result) -> None:
    assert result.transfer.output_gap < 1e-4
    assert result.transfer.loss_gap < 1e-2
    assert result.transfer.updates == 50
    for here, there in zip(result.rows[2].ticket, result.rows[2].keras, strict=True):
        assert there.loss == pytest.approx(here.loss, abs=1e-2)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_ticket(result: Result, tmp_path: Path) -> None:
    settings = replace(result.settings, replicates=1, out=tmp_path)
    again = run(settings, Silent(), 0.0)
    for one, other in zip(result.rows, again.rows, strict=True):
        assert other.ticket == one.ticket[:1]
        assert other.reinit == one.reinit[:1]
    if again.chosen == result.chosen:  # chosen by the mean over replicates
        assert again.ticket.read_bytes() == result.ticket.read_bytes()


@pytest.mark.slow
def test_json_goes_to_standard_output_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(rounds=1, replicates=1, out=tmp_path, recipe=SMALL)
    main(settings, started=0.0, as_json=True)
    out, err = capsys.readouterr()
    data = json.loads(out)
    assert [row["index"] for row in data["rows"]] == [0, 1]
    assert data["ticket"] == str(tmp_path / "digits.safetensors")
    assert isinstance(data["matched_dense"], bool)
    assert len(data["ahead_of_reinit"]) == 1
    assert "PyTorch, seed 0, round 1: 80" in err  # a log, where no terminal is


def test_a_folder_that_cannot_be_made_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(lt.LtcoreError, match=r"--out .*file cannot be made a folder: File exists"):
        run(Settings(out=tmp_path / "file"), Silent(), 0.0)


def test_building_leaves_torch_s_generator_alone() -> None:
    import torch

    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    first = _torch.build(SMALL, 0)
    assert torch.rand(1) == expected
    same, other = _torch.build(SMALL, 0), _torch.build(SMALL, 1)
    assert torch.equal(first[0].weight, same[0].weight)
    assert not torch.equal(first[0].weight, other[0].weight)
