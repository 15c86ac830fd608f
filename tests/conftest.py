"""Settings that must be there before a framework is imported."""

import os

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from hypothesis import settings

settings.register_profile("ltcore", deadline=None)  # shared machines stall; time is no promise here
settings.load_profile("ltcore")
