"""The conformance suite of rewind policies: subclass it, and every promise is a test.

>>> from ltcore.rewind_draws import Resample
>>> class TestResample(RewindConformance):
...     policy = Resample()
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np

from ltcore.arrays import Array, Params
from ltcore.masks import Masks
from ltcore.rewinding import FunctionPolicy, RewindContext, RewindPolicy
from ltcore.testing.given import check_given, under_test

SHAPES: Mapping[str, tuple[int, ...]] = {
    "conv.weight": (3, 2, 3, 3),
    "conv.bias": (3,),
    "norm.running_mean": (3,),
    "norm.num_batches_tracked": (),
    "dense.weight": (4, 27),
    "dense.bias": (4,),
}
MASKED = ("conv.weight", "dense.weight")


def _policy(function: Callable[..., Any]) -> RewindPolicy:
    return FunctionPolicy(function, "given")


class Snapshots(dict[int, Params]):
    """Snapshots that say which one was read and never asked for."""

    def __missing__(self, step: int) -> Params:
        raise AssertionError(
            f"a policy declares every snapshot that it reads: it reads step {step} and declares "
            f"{sorted(self)}"
        )


class RewindConformance:
    """What `ltcore.rewinding.RewindPolicy` promises.

    Attributes:
        policy: the policy under test, its class, or a function of a `RewindContext`; override it.
    """

    policy: ClassVar[Any] = None

    def rule(self) -> RewindPolicy:
        """Return the policy under test."""
        parts = ("snapshots", "resume_step", "rewind", "describe")
        rule: RewindPolicy = under_test(self, "policy", parts, _policy)
        return rule

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Look at what is given before any test does; pytest calls this."""
        check_given(self)

    def test_declares_what_it_is(self) -> None:
        """Snapshots and the step to resume at are whole numbers of updates."""
        rule = self.rule()
        for step in (*rule.snapshots, rule.resume_step):
            is_number = isinstance(step, int) and not isinstance(step, bool)
            assert is_number, f"snapshots and resume_step are whole numbers, not {step!r}"
            assert step >= 0, (
                f"snapshots and resume_step are numbers of updates, 0 or more, not {step!r}"
            )

    def test_describes_itself_in_plain_data(self) -> None:
        """Provenance can hold what the policy says of itself."""
        told = self.rule().describe()
        assert isinstance(told, Mapping), f"describe() gives a dictionary, not {told!r}"
        assert isinstance(told.get("kind"), str), "describe() gives a word under 'kind'"
        assert json.loads(json.dumps(told)) == told, (
            f"describe() gives plain JSON data, for a ticket's provenance, not {told}"
        )

    def test_returns_all_parameters(self) -> None:
        """Names, shapes and dtypes are those of the model."""
        context = self.context()
        found = self.rule().rewind(context)
        assert isinstance(found, Mapping), f"rewind returns arrays by name, not {found!r}"
        missing, more = context.trained.keys() - found.keys(), found.keys() - context.trained.keys()
        assert not missing, f"a policy returns every parameter and buffer; {missing} are missing"
        assert not more, f"a policy returns parameters of the model alone, not {more}"
        for name, like in context.trained.items():
            assert np.shape(found[name]) == like.shape, (
                f"{name!r} keeps its shape {like.shape}; got {np.shape(found[name])}"
            )
            assert np.asarray(found[name]).dtype == like.dtype, (
                f"{name!r} keeps its dtype {like.dtype}; got {np.asarray(found[name]).dtype}"
            )

    def test_returns_finite_values(self) -> None:
        """No NaN, no infinity, for empty masks and for constant weights too."""
        for context in (self.context(), self.context(density=0.0), self.context(scale=0.0)):
            for name, array in self.rule().rewind(context).items():
                assert np.isfinite(array).all(), f"values are finite; those of {name!r} are not"

    def test_writes_to_no_input(self) -> None:
        """Masks, snapshots and trained params are read only."""
        context, untouched = self.context(), self.context()
        self.rule().rewind(context)
        pairs = {"trained": (context.trained, untouched.trained)}
        for step, params in context.snapshots.items():
            pairs[f"snapshot {step}"] = (params, untouched.snapshots[step])
        for what, (after, before) in pairs.items():
            for name in before:
                assert np.array_equal(after[name], before[name]), (
                    f"a policy does not write to its inputs; {name!r} of {what} changed"
                )

    def test_same_seed_same_bytes(self) -> None:
        """What it draws comes from ``context.rng`` and ``context.redraw``."""
        first, second = self.rule().rewind(self.context()), self.rule().rewind(self.context())
        for name in first:
            assert np.asarray(first[name]).tobytes() == np.asarray(second[name]).tobytes(), (
                f"the same context and seed give the same bytes; {name!r} differs: draw from "
                "context.rng"
            )

    def context(self, *, density: float = 0.6, scale: float = 1.0) -> RewindContext:
        """Return what a policy is given, the same every time; arrays are writable."""
        rng = np.random.default_rng(0)
        masks = {name: rng.random(SHAPES[name]) < density for name in MASKED}
        steps = dict.fromkeys(self.rule().snapshots)
        return RewindContext(
            masks=Masks(masks),
            snapshots=Snapshots({step: _params(step, scale) for step in steps}),
            trained=_params(1000, scale),
            redraw=lambda: _params(2000, scale),
            rng=np.random.default_rng(1),
        )


def _params(seed: int, scale: float) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {
        name: np.asarray(
            scale * rng.standard_normal(shape) if shape else seed,
            np.float32 if shape else np.int64,  # a counter
        )
        for name, shape in SHAPES.items()
    }
