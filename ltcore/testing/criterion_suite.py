"""The conformance suite of prune criteria: subclass it, and every promise is a test.

>>> from ltcore.weight_criteria import magnitude
>>> class TestMagnitude(CriterionConformance):
...     criterion = magnitude
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from ltcore.arrays import Array
from ltcore.criteria import SIGNALS, Criterion, Param, as_criterion, passes_of
from ltcore.masks import Masks
from ltcore.parameters import ParamInfo
from ltcore.testing.given import check_given, under_test

SHAPES = ((5, 4), (3, 2, 3, 3), (7,))

NOT_NEGATIVE = {"fisher", "flow", "activations"}
"""Means of squares, their roots, and the flow through weights that are not negative."""


class CriterionConformance:
    """What `ltcore.criteria.Criterion` promises.

    Attributes:
        criterion: the criterion under test: an object, its class or a function; override it.
        shapes: of the weights it is tried on.
    """

    criterion: ClassVar[Any] = None
    shapes: ClassVar[tuple[tuple[int, ...], ...]] = SHAPES

    def rule(self) -> Criterion:
        """Return the criterion under test."""
        parts = ("name", "needs", "elementwise", "score")
        rule: Criterion = under_test(self, "criterion", parts, as_criterion)
        return rule

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Make one test of each shape; pytest calls this."""
        check_given(self)
        if "shape" in metafunc.fixturenames:
            metafunc.parametrize("shape", self.shapes, ids=str)

    def test_declares_what_it_is(self) -> None:
        """Name, needs and elementwise fit together."""
        rule = self.rule()
        assert rule.name, "a criterion has a name"
        unknown = set(rule.needs) - set(SIGNALS)
        assert not unknown, f"a criterion needs known signals only, not {unknown}"
        assert isinstance(rule.elementwise, bool), "elementwise is True or False"
        assert not (rule.elementwise and "rng" in rule.needs), (
            "a criterion that draws random numbers is not elementwise: its scores would depend "
            "on how the weights are cut into blocks"
        )

    def test_takes_a_whole_number_of_passes(self) -> None:
        """A pruning has one pass, or as many as the criterion says."""
        passes = passes_of(self.rule())
        assert isinstance(passes, int), "passes is a whole number, in how many steps to prune"
        assert passes >= 1, "a pruning has at least one pass"

    def test_scores_are_real_numbers(self, shape: tuple[int, ...]) -> None:
        """Scores can be ordered."""
        dtype = np.asarray(self.rule().score(self.param(shape))).dtype
        assert dtype.kind in "fiub", f"scores are an array of real numbers, not of {dtype}"

    def test_scores_have_the_shape_of_the_weight(self, shape: tuple[int, ...]) -> None:
        """There is one score a weight."""
        scores = np.asarray(self.rule().score(self.param(shape)))
        assert scores.shape == shape, "there is one score a weight"

    def test_scores_are_finite(self, shape: tuple[int, ...]) -> None:
        """Scores are finite, for zero weights too."""
        for name, scale in (("random", 1.0), ("tiny", 1e-30), ("zero", 0.0)):
            scores = np.asarray(self.rule().score(self.param(shape, scale=scale)))
            assert np.isfinite(scores).all(), f"scores of {name} weights are finite"

    def test_scores_write_to_no_input(self, shape: tuple[int, ...]) -> None:
        """Inputs are read only."""
        param = self.param(shape)
        before = {name: array.copy() for name, array in param.signals.items()}
        mask = param.mask.copy()
        self.rule().score(param)
        for name, array in param.signals.items():
            assert np.array_equal(array, before[name]), f"a criterion does not write to {name}"
        assert np.array_equal(param.mask, mask), "a criterion does not write to the mask"

    def test_same_seed_same_scores(self, shape: tuple[int, ...]) -> None:
        """Scores follow from input and seed."""
        first = np.array(self.rule().score(self.param(shape)))
        second = np.array(self.rule().score(self.param(shape)))
        assert np.array_equal(first, second), "the same input and the same seed give equal scores"

    def test_elementwise_scores_do_not_know_blocks(self, shape: tuple[int, ...]) -> None:
        """Elementwise scores are the same in blocks."""
        if not self.rule().elementwise:
            return
        whole = self.param(shape)
        scores = np.asarray(self.rule().score(whole)).reshape(-1)
        for start in range(0, whole.weight.size, 3):
            where = slice(start, start + 3)
            block = np.asarray(self.rule().score(_block(whole, where)))
            assert np.array_equal(block, scores[where]), (
                f"an elementwise criterion gives weights {start}.. the same scores in a block of "
                "their own as among all"
            )

    def test_rearranging_keeps_counts_and_nests(self, shape: tuple[int, ...]) -> None:
        """The last word on the masks changes no count and brings back nothing."""
        before, chosen = self.masks(shape)
        result = self.rearranged(before, chosen)
        assert result.keys() == chosen.keys(), "rearrange returns a mask for each it was given"
        for name, mask in result.items():
            assert np.asarray(mask).dtype == np.bool_, "a mask is boolean, True = kept"
            assert mask.shape == chosen[name].shape, "a mask keeps its shape"
            assert mask.sum() == chosen[name].sum(), (
                "rearrange keeps as many weights of each parameter as the scores did"
            )
            assert not (mask & ~before[name]).any(), (
                "rearrange keeps no weight that was gone before the pruning"
            )

    def test_same_seed_same_rearranging(self, shape: tuple[int, ...]) -> None:
        """What is rearranged follows from input and seed."""
        before, chosen = self.masks(shape)
        first, second = self.rearranged(before, chosen), self.rearranged(before, chosen)
        for name in chosen:
            assert np.array_equal(first[name], second[name]), (
                "rearrange draws from the generator that it is given, and from no other"
            )

    def masks(self, shape: tuple[int, ...]) -> tuple[Masks, Masks]:
        """Return what was kept before a pruning and what its scores chose, the same every time."""
        rng = np.random.default_rng(2)
        names = ("first.weight", "second.weight")
        before = Masks({name: rng.random(shape) < 0.9 for name in names})
        return before, Masks({n: before[n] & (rng.random(shape) < 0.5) for n in names})

    def rearranged(self, before: Masks, chosen: Masks) -> Mapping[str, Array]:
        """Return what the criterion makes of ``chosen``; the same where it does not rearrange."""
        rearrange = getattr(self.rule(), "rearrange", None)
        if rearrange is None:
            return chosen
        result: Mapping[str, Array] = rearrange(before, chosen, np.random.default_rng(3))
        return result

    def param(self, shape: tuple[int, ...], scale: float = 1.0) -> Param:
        """Return a parameter with the signals that the criterion needs, the same every time."""
        rng = np.random.default_rng(0)
        wanted = {"weight", *self.rule().needs} - {"rng"}
        signals: Mapping[str, Array] = {
            signal: _drawn(signal, scale, shape, rng) for signal in SIGNALS if signal in wanted
        }
        mask = rng.random(shape) < 0.8
        info = ParamInfo("layer.weight", "linear", "weight", shape, False, True)
        generator = np.random.default_rng(1) if "rng" in self.rule().needs else None
        return Param(info, mask, signals, generator)


def _drawn(signal: str, scale: float, shape: tuple[int, ...], rng: Any) -> Array:
    values: Array = scale * rng.standard_normal(shape)
    if signal in NOT_NEGATIVE:
        values = np.abs(values)
    return values if signal == "flow" else values.astype(np.float32)


def _block(whole: Param, where: slice) -> Param:
    signals = {name: array.reshape(-1)[where] for name, array in whole.signals.items()}
    return Param(whole.info, whole.mask.reshape(-1)[where], signals, whole.generator)
