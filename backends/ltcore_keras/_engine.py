"""The engine below Keras. A process has exactly one, chosen before Keras is imported."""

import importlib

import keras

from ltcore_keras._engine_any import Engine

_MODULES = {
    "tensorflow": "ltcore_keras._engine_tensorflow",
    "torch": "ltcore_keras._engine_torch",
    "jax": "ltcore_keras._engine_jax",
}


def _chosen() -> Engine:
    name = keras.backend.backend()
    if name not in _MODULES:
        return Engine()
    engine: Engine = importlib.import_module(_MODULES[name]).ENGINE
    return engine


ENGINE = _chosen()
as_numpy = ENGINE.as_numpy
