"""Settings that must be there before a framework is imported."""

import os

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pytest
from hypothesis import settings

settings.register_profile("ltcore", deadline=None)  # shared machines stall; time is no promise here
settings.load_profile("ltcore")


def pytest_runtest_setup(item):
    """Skip what the engine below Keras does not have."""
    for mark in item.iter_markers("engines"):
        if os.environ["KERAS_BACKEND"] not in mark.args:
            pytest.skip(f"only Keras on {', '.join(mark.args)}: {mark.kwargs['reason']}")
