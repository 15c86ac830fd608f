"""The tests of Keras pass on its other engines: each runs them in a process of its own.

What an engine does not have is skipped there, with the reason. `KERAS_BACKEND=jax pytest
tests/test_keras_hold.py` runs a whole file; here is the part of each file in which the engine has
a say, and few of a kind.
"""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("keras")

TESTS = Path(__file__).parent
PARTS = {
    "test_keras_backend": "TestInFit or (TestDerivatives and linear) or redraw_is_seeded or write"
    " or forward or half or (TestTraining and (linear or shared or embedding))",
    "test_keras_hold": "not (nesterov or adagrad or rmsprop or adamw)",
    "test_keras_search": "not (eager or reinit or fresh)",
    "test_exchange": "works_in_the_other and not subclassed",
    "test_keras_derivatives": "test",
    "test_keras_callbacks": "test",
    "test_keras_on_torch": "test",
    "test_keras_on_jax": "test",
}
# JAX compiles everything, which takes its time.
FEWER = {
    "torch": "test",
    "jax": "not (Lamb or Lion or Adafactor or Nadam or write_of_read or flatten or embedding or"
    " conv1d or conv2d or conv3d or conv_transpose or grouped or depthwise or layernorm or shared"
    " or mlp or keras-conv or torch-conv or torch-batch or jit or multi or bfloat16 or"
    " several_optimizers or other_ways or learning_rates or criterion or"
    " in_float64[conv or in_float64[lstm or gradients[conv or gradients[lstm or 3d or dilated)",
}


def started(engine, folder):
    chosen = " or ".join(f"({name}.py and ({part}))" for name, part in PARTS.items())
    chosen = f"({chosen}) and ({FEWER[engine]})"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen]
    command += [str(TESTS / f"{name}.py") for name in PARTS]
    env = {
        **os.environ,
        "KERAS_BACKEND": engine,
        # The same small functions are compiled for one test after the other.
        "JAX_COMPILATION_CACHE_DIR": str(folder / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    with (folder / "log").open("w") as log:
        return subprocess.Popen(
            command, cwd=TESTS.parent, env=env, stdout=log, stderr=subprocess.STDOUT
        )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Both at once, a core each."""
    there = [name for name in ("torch", "jax") if importlib.util.find_spec(name)]
    folders = {name: tmp_path_factory.mktemp(name) for name in there}
    processes = {name: started(name, folder) for name, folder in folders.items()}
    yield {name: (process, folders[name] / "log") for name, process in processes.items()}
    for process in processes.values():
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["torch", "jax"])
def test_the_tests_pass_on(engine, runs):
    if engine not in runs:
        pytest.skip(f"{engine} is not installed")
    process, log = runs[engine]
    code = process.wait(timeout=1200)
    told = log.read_text()
    assert code == 0, told[-10_000:]
    assert int(re.search(r"(\d+) passed", told)[1]) > 120


@pytest.mark.parametrize("engine", ["torch", "jax"])
def test_no_other_engine_is_imported(engine):
    pytest.importorskip(engine)
    code = """
import sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)
import keras, numpy as np
frameworks = {"tensorflow", "torch", "jax"}
mine = frameworks & set(sys.modules)  # Keras imports some to know their arrays
import ltcore as lt
model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3)])
model.compile("sgd", "mse")
x = np.ones((8, 5), "float32")
lt.find_ticket(model, lambda m: m.fit(x, x[:, :3], verbose=0), rounds=1, rate=0.2, rewind_to=1)
assert frameworks & set(sys.modules) == mine, (mine, frameworks & set(sys.modules))
assert "tensorflow" not in mine
print("fine")
"""
    env = {**os.environ, "KERAS_BACKEND": engine}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert run.stdout.strip() == "fine", run.stderr[-2000:]
