"""Settings that must be there before a framework is imported."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pytest
from hypothesis import settings

settings.register_profile("ltcore", deadline=None)  # shared machines stall; time is no promise here
settings.load_profile("ltcore")


@pytest.fixture
def one_torch_thread() -> Iterator[None]:
    """Compute in one thread: on a busy machine, threads mostly wait for each other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def record_exchange() -> Iterator[Callable[[str, str, float], None]]:
    """Yield ``record(case, direction, difference)`` for tests that carry a ticket over.

    ``difference`` is the largest one of the outputs, divided by max(1, largest output). At the end
    of the session the rows go into the JSON file that LTCORE_EXCHANGE_TABLE names, if it does,
    in the place of older rows of the same case, direction and engine.
    """
    rows: dict[tuple[str, str, str], float] = {}
    engine = os.environ["KERAS_BACKEND"]

    def record(case: str, direction: str, difference: float) -> None:
        rows[case, direction, engine] = float(difference)

    yield record
    path = os.environ.get("LTCORE_EXCHANGE_TABLE")
    if path and rows:
        _add_rows(Path(path), rows)


@pytest.fixture(scope="session")
def record_agreement() -> Iterator[Callable[[str, float], None]]:
    """Yield ``record(criterion, difference)`` for tests that compare scores between frameworks.

    At the end of the session the rows go into the JSON file that LTCORE_CRITERIA_TABLE names, if
    it does, beside those of other engines.
    """
    rows: dict[str, float] = {}

    def record(criterion: str, difference: float) -> None:
        rows[criterion] = max(difference, rows.get(criterion, 0.0))

    yield record
    path = os.environ.get("LTCORE_CRITERIA_TABLE")
    if path and rows:
        engines = json.loads(Path(path).read_text()) if Path(path).exists() else {}
        engines[os.environ["KERAS_BACKEND"]] = rows
        Path(path).write_text(json.dumps(engines, indent=1) + "\n")


def _add_rows(path: Path, rows: dict[tuple[str, str, str], float]) -> None:
    names = ("case", "direction", "engine")
    earlier = json.loads(path.read_text()) if path.exists() else []
    merged = {tuple(row[name] for name in names): row["difference"] for row in earlier} | rows
    table = [
        {**dict(zip(names, key, strict=True)), "difference": value} for key, value in merged.items()
    ]
    path.write_text(json.dumps(table, indent=1) + "\n")


@pytest.fixture(autouse=True)
def forget_what_was_registered() -> Iterator[None]:
    """Take back the names that a test registered in this process."""
    from ltcore import discovery

    before = {kind: dict(named) for kind, named in discovery._in_process.items()}
    yield
    discovery._in_process.update(before)


def pytest_runtest_setup(item):
    """Skip what the engine below Keras does not have."""
    for mark in item.iter_markers("engines"):
        if os.environ["KERAS_BACKEND"] not in mark.args:
            pytest.skip(f"only Keras on {', '.join(mark.args)}: {mark.kwargs['reason']}")
