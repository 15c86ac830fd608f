"""The wheel holds what it should and nothing else."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "ltcore": "ltcore",
    "ltcore_torch": "backends/ltcore_torch",
    "ltcore_keras": "backends/ltcore_keras",
    "ltcore_jax": "plugins/ltcore_jax",
    "ltcore_demo": "plugins/ltcore_demo",
    "ltcore_gradient_criteria": "plugins/ltcore_gradient_criteria",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("dist")
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "-o",
        str(out),
        str(ROOT),
    ]
    subprocess.run(command, check=True, capture_output=True)
    (found,) = out.glob("*.whl")
    return zipfile.ZipFile(found)


def test_top_level_names(wheel):
    tops = {name.split("/")[0] for name in wheel.namelist()}
    (info,) = {top for top in tops if top.endswith(".dist-info")}
    assert tops - {info} == set(PACKAGES)


def test_every_tracked_file_is_inside(wheel):
    names = set(wheel.namelist())
    for package, folder in PACKAGES.items():
        files = [
            p for p in (ROOT / folder).rglob("*") if p.suffix in (".py", ".typed", ".template")
        ]
        assert files
        for path in files:
            assert f"{package}/{path.relative_to(ROOT / folder)}" in names


def test_entry_points_and_dependencies(wheel):
    (points,) = [n for n in wheel.namelist() if n.endswith("entry_points.txt")]
    text = wheel.read(points).decode()
    for line in ("builtin = ltcore.builtin", "torch = ltcore_torch", "keras = ltcore_keras",
                 "jax = ltcore_jax", "gradient-criteria = ltcore_gradient_criteria",
                 "ltcore = ltcore.cli:main"):  # fmt: skip
        assert line in text
    (metadata,) = [n for n in wheel.namelist() if n.endswith("METADATA")]
    needs = [line for line in wheel.read(metadata).decode().splitlines()
             if line.startswith("Requires-Dist") and "extra ==" not in line]  # fmt: skip
    assert sorted(line.split()[1].split(">")[0].split("<")[0] for line in needs) == [
        "numpy", "pluggy",
    ]  # fmt: skip


def test_folders_that_must_not_be_packages():
    for folder in ("backends", "plugins", "tests"):
        assert not (ROOT / folder / "__init__.py").exists()
