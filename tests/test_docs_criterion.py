"""The newcomer's page, run as it is written, in an environment of its own, against the clock."""

import re
import time
from pathlib import Path

import pytest

from outsider import Environment

PAGE = Path(__file__).parents[1] / "docs" / "write-a-criterion.md"
BLOCK = re.compile(r"```(sh|python|toml)\n(.*?)```", re.DOTALL)
SECONDS = 300
"""What all commands together may take, on a machine that is busy with other tests."""


@pytest.mark.slow
def test_the_page_runs_as_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("keras")
    environment = Environment.make(tmp_path / "venv")
    folder = tmp_path / "work"
    folder.mkdir()
    said: dict[str, list[str]] = {}
    times: dict[str, float] = {}
    for language, block in BLOCK.findall(PAGE.read_text()):
        if language == "sh":
            for line in block.splitlines():
                if line.startswith("cd "):
                    folder /= line.removeprefix("cd ")
                    continue
                start = time.perf_counter()
                said.setdefault(line, []).append(environment.call("sh", "-c", line, cwd=folder))
                times[line] = times.get(line, 0.0) + time.perf_counter() - start
        else:
            first, _, text = block.partition("\n")
            (folder / first.removeprefix("# ")).write_text(text)
    with capsys.disabled():
        print("\n" + "\n".join(f"{seconds:6.1f} s  {line[:70]}" for line, seconds in times.items()))
    outputs = {line.split(" --")[0]: out for line, out in said.items()}
    assert len(outputs["pytest"]) == 2, "the package as it was written, and with the rule changed"
    assert all(re.search(r"\d\d passed", out) for out in outputs["pytest"])
    assert "ltcore-my-rule 0.1.0" in outputs["ltcore plugins my-rule"][0]
    assert outputs["python both.py"][0].splitlines()[-2:] == ["the same masks: True", "my-rule"]
    shown = outputs["ltcore show mine.safetensors"][0]
    assert re.search(r"criterion +my-rule", shown)
    assert "ltcore-my-rule 0.1.0" in shown, "the version of the package is told"
    assert sum(times.values()) < SECONDS, times
