"""Suites that show whether a plugin's parts keep their promises; they need no framework."""

import sys

if "pytest" in sys.modules:  # so that a failing promise shows both sides, as in a test file
    import pytest

    pytest.register_assert_rewrite(
        "ltcore.testing.suite_hooks",
        "ltcore.testing.suite_values",
        "ltcore.testing.suite_gradients",
        "ltcore.testing.suite_training",
        "ltcore.testing.criterion_suite",
        "ltcore.testing.allocation_suite",
        "ltcore.testing.pattern_suite",
        "ltcore.testing.rewind_suite",
        "ltcore.testing.schedule_suite",
    )

from ltcore.testing.allocation_suite import AllocationConformance
from ltcore.testing.backend_suite import BackendConformance, Failure, check_backend
from ltcore.testing.cases import CASES, Case, canonical_inputs, canonical_targets
from ltcore.testing.criterion_suite import CriterionConformance
from ltcore.testing.pattern_suite import PatternConformance
from ltcore.testing.reference import ReferenceBackend
from ltcore.testing.reference_layers import (
    BatchNorm,
    Conv,
    ConvTranspose,
    Embedding,
    Flatten,
    GlobalPool,
    Image,
    Layer,
    LayerNorm,
    Linear,
    Relu,
)
from ltcore.testing.reference_model import NumpyModel, Sgd, differentiate, fit, mean_squared_error
from ltcore.testing.rewind_suite import RewindConformance
from ltcore.testing.schedule_suite import ScheduleConformance

__all__ = [
    "CASES",
    "AllocationConformance",
    "BackendConformance",
    "BatchNorm",
    "Case",
    "Conv",
    "ConvTranspose",
    "CriterionConformance",
    "Embedding",
    "Failure",
    "Flatten",
    "GlobalPool",
    "Image",
    "Layer",
    "LayerNorm",
    "Linear",
    "NumpyModel",
    "PatternConformance",
    "ReferenceBackend",
    "Relu",
    "RewindConformance",
    "ScheduleConformance",
    "Sgd",
    "canonical_inputs",
    "canonical_targets",
    "check_backend",
    "differentiate",
    "fit",
    "mean_squared_error",
]
