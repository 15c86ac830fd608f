"""Examples run as their pages say, on made-up data."""

import gzip
import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

SOURCE = Path(__file__).parents[1] / "examples" / "sanity_checks.py"


@pytest.fixture
def mnist(tmp_path):
    """MNIST's four files with other images: a bright square whose place tells the class."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 256), ("t10k", 128)):
        labels = rng.integers(0, 10, count).astype(np.uint8)
        images = rng.integers(0, 60, (count, 28, 28)).astype(np.uint8)
        for image, label in zip(images, labels, strict=True):
            row, column = divmod(int(label), 4)
            image[9 * row : 9 * row + 7, 7 * column : 7 * column + 7] = 255
        for name, array in ((f"{part}-images-idx3", images), (f"{part}-labels-idx1", labels)):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
            (tmp_path / f"{name}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))
    return tmp_path


@pytest.fixture
def sanity():
    spec = importlib.util.spec_from_file_location("sanity_checks", SOURCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.usefixtures("one_torch_thread")
@pytest.mark.filterwarnings("ignore:no weight survives:UserWarning")  # scores upside down
def test_sanity_checks_print_a_table(sanity, mnist, monkeypatch, capsys):
    criteria = ["snip", "magnitude after training"]
    words = ["--data", mnist, "--steps", 30, "--seeds", 1, "--sparsity", 0.6, "--criteria"]
    monkeypatch.setattr(sys, "argv", ["sanity_checks.py", *map(str, words), *criteria])
    sanity.main()
    title, heading, line, *rows = capsys.readouterr().out.splitlines()
    assert title.startswith("test accuracy in %, 60% pruned")
    assert heading == "| criterion | as found | shuffled | fresh weights | inverted |"
    assert line == "|---|---|---|---|---|"
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == criteria
    for row in rows:
        found, *others = (float(number) for number in re.findall(r"([\d.]+) ± 0\.00", row))
        assert len(others) == 3
        assert found > 50, "the network under its mask learns where the square is"


def test_the_data_is_read_as_it_was_written(sanity, mnist):
    x, y, test_x, test_y = sanity.load(mnist)
    assert x.shape == (256, 1, 28, 28)
    assert test_x.shape == (128, 1, 28, 28)
    for image, label in zip(test_x[:, 0], test_y.tolist(), strict=True):
        row, column = divmod(label, 4)
        assert image[9 * row : 9 * row + 7, 7 * column : 7 * column + 7].min() > 2
    assert len(y) == 256
