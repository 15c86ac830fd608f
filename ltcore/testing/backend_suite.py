"""The conformance suite of backends: subclass it, and every promise is a test.

    from ltcore.testing import BackendConformance

    class TestMyBackend(BackendConformance):
        def backend(self): ...
        def build(self, case, seed=0): ...                   # a model of CASES[case]
        def to_native(self, case, array): ...                # canonical batch -> what models take
        def trainer(self, model, case, optimizer="sgd"): ... # -> train(updates)
        def loss(self): ...                                  # mean squared difference

`ltcore.testing.cases` has the table of models; `BackendHooks` says what each hook must do. A
promise that cannot be kept is marked as any pytest test is: override the method, ``xfail`` it with
a reason, and call ``super()``. A case that cannot be built goes into ``unsupported``.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import SkipTest

from ltcore.testing.suite_gradients import GradientChecks
from ltcore.testing.suite_training import TrainingChecks
from ltcore.testing.suite_values import ValueChecks


class BackendConformance(ValueChecks, GradientChecks, TrainingChecks):
    """Every promise a backend makes; subclass it under pytest, or give it to `check_backend`."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A promise that was not kept.

    Attributes:
        test: name of the test.
        case: name of the case; empty where the test has none.
        message: what was promised, or the error that came instead.
    """

    test: str
    case: str
    message: str


def check_backend(
    suite: type[BackendConformance], *, only: Callable[[str, str], bool] = lambda test, case: True
) -> list[Failure]:
    """Run the suite without pytest and return what failed; an empty list is conformance.

    Args:
        suite: a subclass with its hooks filled in.
        only: whether to run ``(test, case)``.
    """
    failures = []
    for test in sorted(name for name in dir(suite) if name.startswith("test_")):
        takes_case = "case" in inspect.signature(getattr(suite, test)).parameters
        for case in suite.cases if takes_case else ("",):
            if case in suite.unsupported or not only(test, case):
                continue
            message = _outcome(suite(), test, case)
            if message:
                failures.append(Failure(test, case, message))
    return failures


def _outcome(suite: Any, test: str, case: str) -> str:
    """Return why the test failed; empty where it passed or does not apply."""
    try:
        getattr(suite, test)(*([case] if case else []))
    except SkipTest:
        return ""
    except AssertionError as error:
        return str(error) or "an assertion failed"
    except Exception as error:  # noqa: BLE001  a backend may fail in any way
        return f"{type(error).__name__}: {error}"
    return ""
