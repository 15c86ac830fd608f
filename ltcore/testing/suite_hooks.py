"""What the author of a backend tells the conformance suite, and how its tests are run."""

import copy
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, ClassVar
from unittest import SkipTest

import numpy as np

from ltcore.arrays import Array, Params
from ltcore.backend import Backend, MaskHandle, Watch
from ltcore.masks import Masks
from ltcore.parameters import Structure, in_canonical_order, in_native_order
from ltcore.probe import synthetic_params
from ltcore.testing.cases import CASES, canonical_inputs, canonical_targets
from ltcore.testing.reference import ReferenceBackend
from ltcore.testing.reference_model import NumpyModel


class BackendHooks:
    """Override the methods up to `loss`; the rest serves the tests.

    Attributes:
        cases: the cases to test, keys of `ltcore.testing.CASES`.
        unsupported: cases that the framework cannot build or train; they show as skipped.
        optimizers: words that `trainer` takes for ``optimizer``. Holding is tested with each;
            ``"sgd"`` is required; ``"clipped"``, ``"adam"`` and others are wise.
        tolerance: the largest difference between outputs, relative to the largest output.
    """

    cases: ClassVar[tuple[str, ...]] = tuple(CASES)
    unsupported: ClassVar[frozenset[str]] = frozenset()
    optimizers: ClassVar[tuple[str, ...]] = ("sgd",)
    tolerance: ClassVar[float] = 1e-5

    # To override

    def backend(self) -> Backend:
        """Return the backend under test."""
        raise NotImplementedError

    def build(self, case: str, seed: int = 0) -> Any:
        """Return a new model of ``CASES[case]``, as a user would write it.

        Its weights come from the framework's own initializers, after seeding the framework with
        ``seed``: the same seed gives the same bits. It is built, and in training mode where the
        framework has modes.
        """
        raise NotImplementedError

    def to_native(self, case: str, array: Array) -> Any:
        """Return a canonical input or target batch as the model takes it.

        Canonical is channels before space. Override where the framework has them last, or takes
        no numpy arrays. Token numbers (int32) come without channels.
        """
        del case
        return array

    def trainer(self, model: Any, case: str, optimizer: str = "sgd") -> Callable[[int], object]:
        """Make ONE new optimizer and return ``train(updates)``, a training loop on fixed data.

        The loop is what users write (``fit``, or by hand). Each update takes all of
        ``self.example(case)`` and ``self.targets(case)`` as its batch, and minimizes
        ``self.loss()`` in training mode. The optimizer lives on from call to call.

        ``"sgd"`` has learning rate 0.1, momentum 0.9 and weight decay 0.01. ``"clipped"`` is
        plain SGD at learning rate 0.1 with gradients clipped to a global norm of 0.1. Others are
        as you like.
        """
        raise NotImplementedError

    def loss(self) -> Callable[[Any, Any], Any]:
        """Return ``loss(outputs, targets)`` in native tensors: the mean squared difference."""
        raise NotImplementedError

    # For the tests

    def train(self, model: Any, case: str, updates: int, *, optimizer: str = "sgd") -> None:
        """Train with a new optimizer."""
        self.trainer(model, case, optimizer)(updates)

    def example(self, case: str, batch: int = 0) -> Any:
        """Return a native input batch."""
        return self.to_native(case, canonical_inputs(case, batch))

    def targets(self, case: str, batch: int = 0) -> Any:
        """Return native targets."""
        return self.to_native(case, canonical_targets(case, batch))

    def copy(self, model: Any) -> Any:
        """Return a deep copy; override only where the framework has a way of its own."""
        return copy.deepcopy(model)

    def describe(self, model: Any, case: str) -> Structure:
        """Return the structure of ``model``, traced."""
        return self.backend().describe(model, self.example(case))

    def built(self, case: str, seed: int = 0) -> tuple[Any, Structure]:
        """Return a new model and its structure."""
        model = self.build(case, seed)
        return model, self.describe(model, case)

    def hold(self, model: Any, structure: Structure, masks: Masks) -> MaskHandle:
        """Put a hold on ``model``, and keep the handle while the test runs, as ltcore does."""
        self._handles.append(self.backend().hold(model, structure, masks))
        handle: MaskHandle = self._handles[-1]
        return handle

    def watch(
        self,
        model: Any,
        structure: Structure,
        steps: Sequence[int],
        callback: Callable[[int], None] | None = None,
    ) -> Watch:
        """Watch ``model``, and keep the watch while the test runs, as ltcore does."""
        self._handles.append(self.backend().watch(model, structure, steps, callback))
        watch: Watch = self._handles[-1]
        return watch

    @cached_property
    def _handles(self) -> list[Any]:
        return []

    def need(self, capability: str) -> None:
        """Skip the test unless the backend has ``capability``."""
        if capability not in self.backend().capabilities:
            raise SkipTest(f"the backend does not claim the capability {capability!r}")

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Make one test of each case; pytest calls this."""
        import pytest  # only pytest comes here

        if "case" in metafunc.fixturenames:
            skip = pytest.mark.skip(reason="declared unsupported by this backend")
            metafunc.parametrize(
                "case",
                [
                    pytest.param(case, marks=skip if case in self.unsupported else ())
                    for case in self.cases
                ],
            )


def made_up_params(structure: Structure) -> dict[str, Array]:
    """Return the probe's values for every portable role."""
    # The narrower kernels of rule 1 keep the reference's central differences exact enough.
    return synthetic_params(structure.sites, rule=1)


def reference_of(case: str) -> tuple[NumpyModel, Structure]:
    """Return the reference model of ``case`` and its structure."""
    model = NumpyModel(CASES[case].layers())
    return model, ReferenceBackend().describe(model, canonical_inputs(case))


def renamed(params: Params, source: Structure, target: Structure) -> dict[str, Array]:
    """Return ``params`` of ``source`` as ``target`` has them, paired by order and role.

    Raises:
        SkipTest: the structures differ, which a test of describe reports better.
    """
    if [site.kind for site in source.sites] != [site.kind for site in target.sites]:
        raise SkipTest("describe does not find the sites of the case")
    twins = {a.name: b.name for a, b in zip(source.sites, target.sites, strict=True)}
    canonical = in_canonical_order(params, source)
    placed = {
        f"{twins[site.name]}.{role.name}": canonical[name]
        for name, site, role in source.items()
        if name in canonical
    }
    return in_native_order(placed, target)


def some_masks(structure: Structure, *, seed: int = 0, every: bool = False) -> Masks:
    """Return masks that keep about half, at least one weight and never all.

    Args:
        structure: of the model.
        seed: another one gives other masks.
        every: mask each trained parameter, not just those pruned by default.
    """
    rng = np.random.default_rng(seed)
    masks = {}
    for info in structure.infos:
        if (info.prunable or every) and np.prod(info.shape, dtype=int) > 1:
            mask = rng.random(info.shape) < 0.5
            mask.flat[0], mask.flat[1] = seed % 2 == 0, seed % 2 == 1
            masks[info.name] = mask
    return Masks(masks)


def assert_same(found: Params, expected: Params, promise: str) -> None:
    """Assert that both hold the same names and, bit for bit, the same values."""
    assert found.keys() == expected.keys(), f"{promise}: names differ"
    changed = [
        name
        for name in expected
        if found[name].dtype != expected[name].dtype
        or found[name].shape != expected[name].shape
        or found[name].tobytes() != expected[name].tobytes()
    ]
    assert not changed, f"{promise}: {changed} are not the same, bit for bit"


def assert_close(found: Params, expected: Params, tolerance: float, promise: str) -> None:
    """Assert that the arrays agree within ``tolerance`` of the largest value of each."""
    assert found.keys() == expected.keys(), f"{promise}: names differ"
    for name, want in expected.items():
        got = found[name]
        assert got.shape == want.shape, f"{promise}: {name!r} is {got.shape}, not {want.shape}"
        scale = float(np.max(np.abs(want), initial=0.0)) or 1.0
        gap = float(np.max(np.abs(got.astype(np.float64) - want), initial=0.0)) / scale
        assert gap <= tolerance, (
            f"{promise}: {name!r} differs by {gap:.1e} of its largest value, {tolerance:.0e} is "
            "allowed"
        )


def assert_near(found: Params, expected: Params, tolerance: float, promise: str) -> None:
    """Assert that found derivatives agree within ``tolerance`` of the largest value of each.

    What is much smaller than all the others (zero but for rounding) is measured by those.
    """
    assert list(found) == list(expected), f"{promise}: names differ"
    sizes = {name: float(np.max(np.abs(want), initial=0)) for name, want in expected.items()}
    for name, want in expected.items():
        got = found[name]
        assert got.shape == want.shape, f"{promise}: {name!r} is {got.shape}, not {want.shape}"
        scale = max(sizes[name], 1e-2 * max(sizes.values())) or 1.0
        gap = float(np.max(np.abs(got.astype(np.float64) - want), initial=0)) / scale
        assert gap <= tolerance, (
            f"{promise}: {name!r} is off by {gap:.1e} of its largest value, {tolerance:.0e} is "
            "allowed"
        )


def assert_pruned(params: Params, masks: Masks, promise: str) -> None:
    """Assert that every pruned weight is 0.0, not -0.0."""
    for name, mask in masks.items():
        bits = np.where(mask, 0, params[name]).astype(params[name].dtype)
        wrong = int(np.count_nonzero(np.signbit(bits) | (bits != 0)))
        assert not wrong, (
            f"{promise}: {wrong} of {mask.size - np.count_nonzero(mask)} pruned weights of "
            f"{name!r} are not exactly 0.0 (-0.0 counts, NaN too)"
        )


def pruned_that_moved(params: Params, masks: Masks) -> int:
    """Return how many pruned weights are not zero."""
    return sum(int(np.count_nonzero(params[name][~mask])) for name, mask in masks.items())
