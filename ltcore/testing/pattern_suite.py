"""The conformance suite of patterns: subclass it, and every promise is a test.

>>> from ltcore.unit_patterns import Block
>>> class TestBlock(PatternConformance):
...     pattern = Block((4, 4))
"""

from typing import Any, ClassVar

import numpy as np

from ltcore.allocation import Group
from ltcore.arrays import Array
from ltcore.masks import Masks
from ltcore.parameters import ParamInfo
from ltcore.patterns import Cut, Pattern, cut
from ltcore.scoring import ArrayScores
from ltcore.select import select
from ltcore.testing.given import check_given, under_test

INFOS = tuple(
    ParamInfo(f"{where}.{role}", kind, role, shape, where == "head", role != "bias")
    for where, kind, role, shape in (
        ("linear", "linear", "weight", (8, 16)),
        ("linear", "linear", "bias", (8,)),
        ("conv", "conv", "weight", (8, 16, 3, 3)),
        ("depthwise", "depthwise", "weight", (8, 1, 3, 3)),
        ("transposed", "conv_transpose", "weight", (16, 8, 2, 2)),
        ("lstm", "lstm", "w_ih", (32, 16)),
        ("gru", "gru", "w_hh", (24, 8)),
        ("embedding", "embedding", "weight", (12, 8)),
        ("norm", "batchnorm", "weight", (8,)),
        ("own", "raw", "kernel", (8, 8)),
        ("odd", "linear", "weight", (7, 5)),
        ("head", "linear", "weight", (8, 16)),
    )
)
"""Parameters of every kind; a pattern says which it fits."""


class PatternConformance:
    """What `ltcore.patterns.Pattern` promises.

    Attributes:
        pattern: the pattern under test, or its class; override it.
        infos: the parameters it is tried on. It fits at least one of them.
    """

    pattern: ClassVar[Any] = None
    infos: ClassVar[tuple[ParamInfo, ...]] = INFOS

    def rule(self) -> Pattern:
        """Return the pattern under test."""
        parts = ("name", "sparsity", "misfit", "units", "pool", "spread")
        rule: Pattern = under_test(self, "pattern", parts)
        return rule

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Make one test of each parameter that the pattern fits; pytest calls this."""
        check_given(self)
        if "info" in metafunc.fixturenames:
            fitting = [info for info in self.infos if not self.rule().misfit(info)]
            metafunc.parametrize("info", fitting, ids=lambda info: info.name)

    def test_declares_what_it_is(self) -> None:
        """Name and sparsity are what they should be."""
        rule = self.rule()
        assert isinstance(rule.name, str), "a pattern has a name"
        assert rule.name, "a pattern's name is not empty"
        assert rule.sparsity is None or 0 < rule.sparsity < 1, (
            f"sparsity is None or a fraction of the units, not {rule.sparsity!r}"
        )

    def test_misfits_say_why(self) -> None:
        """A misfit is a reason; what fits is cut."""
        reasons = {info.name: self.rule().misfit(info) for info in self.infos}
        assert all(isinstance(why, str) for why in reasons.values()), "a misfit is a text"
        pieces, misfits = cut(self.rule(), self.infos)
        assert pieces.infos, f"the pattern fits one of the parameters at least: {reasons}"
        assert misfits == {name: why for name, why in reasons.items() if why}

    def test_a_misfit_is_left_alone(self) -> None:
        """Pruning by the pattern changes no parameter that it does not fit."""
        pieces, misfits = cut(self.rule(), self.infos)
        masks = Masks.ones({info.name: info.shape for info in self.infos})
        after = pieces.spread(_halved(pieces, masks, seed=0), masks)
        for name in misfits:
            assert after[name].all(), f"{name}, which the pattern does not fit, stays dense"

    def test_shapes_agree(self, info: ParamInfo) -> None:
        """Units and their scores have one shape, whatever the mask; weights theirs."""
        rule = self.rule()
        shape = np.shape(rule.units(np.ones(info.shape, np.bool_), info))
        for mask in masks_of(info):
            units = np.asarray(rule.units(mask, info))
            assert units.dtype == np.bool_, "units are bool, True = kept"
            assert units.shape == shape, "how many units there are does not depend on the mask"
            scores = np.asarray(rule.pool(scores_of(info), mask, info))
            assert scores.shape == shape, "there is one score a unit"
            assert scores.dtype.kind == "f", "units' scores are floats"
            assert np.isfinite(scores[units]).all(), "scores of kept units are finite"
            whole = np.asarray(rule.spread(units, info))
            assert whole.dtype == np.bool_, "a weights' mask is bool"
            assert whole.shape == info.shape, "spread gives the weights' mask"

    def test_kept_weights_are_in_kept_units(self, info: ParamInfo) -> None:
        """Spreading the units of a mask loses no kept weight."""
        for mask in masks_of(info):
            spread = np.asarray(self.rule().spread(self.rule().units(mask, info), info))
            assert not (mask & ~spread).any(), "a unit is kept if any of its weights is"

    def test_units_are_found_again(self, info: ParamInfo) -> None:
        """The units of what a pruning left are the units that it left."""
        pieces = Cut(self.rule(), (info,))
        masks = Masks.ones({info.name: info.shape})
        units = _halved(pieces, masks, seed=0)
        found = pieces.masks(pieces.spread(units, masks))
        assert found == units, "units(spread(units)) gives the units again"

    def test_a_pruned_unit_takes_all_its_weights(self, info: ParamInfo) -> None:
        """Spread prunes weights for each pruned unit, and each weight by one unit."""
        rule = self.rule()
        units = np.ones(np.shape(rule.units(np.ones(info.shape, np.bool_), info)), np.bool_)
        assert np.asarray(rule.spread(units, info)).all(), "kept units keep all their weights"
        gone = np.asarray(rule.spread(~units, info))
        assert not gone.any(), "without units no weight is kept"

    def test_writes_to_no_input(self, info: ParamInfo) -> None:
        """Inputs are read only."""
        rule = self.rule()
        for mask in masks_of(info):
            scores, seen = scores_of(info), mask.copy()
            units = np.array(rule.units(mask, info))
            before = units.copy()
            rule.pool(scores, mask, info)
            rule.spread(units, info)
            assert np.array_equal(scores, scores_of(info)), "a pattern does not write to scores"
            assert np.array_equal(mask, seen), "a pattern does not write to the mask"
            assert np.array_equal(units, before), "a pattern does not write to the units"

    def test_same_input_same_scores(self, info: ParamInfo) -> None:
        """Scores follow from weights' scores and mask, in whatever order memory has them."""
        for mask in masks_of(info):
            first = np.array(self.rule().pool(scores_of(info), mask, info))
            turned = np.asfortranarray(scores_of(info))
            second = np.array(self.rule().pool(turned, mask, info))
            assert np.array_equal(first, second), "equal scores give equal scores of units"

    def test_scores_of_pruned_weights_do_not_count(self, info: ParamInfo) -> None:
        """What a pruned weight scores changes nothing, not even NaN."""
        for mask in masks_of(info):
            units = np.asarray(self.rule().units(mask, info))
            scores = np.asarray(self.rule().pool(scores_of(info), mask, info))
            holes = np.where(mask, scores_of(info), np.nan)
            again = np.asarray(self.rule().pool(holes, mask, info))
            assert np.array_equal(scores[units], again[units]), "pruned weights have no say"

    def test_repeated_use_nests(self, info: ParamInfo) -> None:
        """Pruned units stay pruned over rounds, and as many go as were asked for."""
        pieces = Cut(self.rule(), (info,))
        masks = Masks.ones({info.name: info.shape})
        before = pieces.masks(masks)
        for seed in range(3):
            units = _halved(pieces, masks, seed, share=(seed + 1) / 3)
            after = pieces.spread(units, masks)
            assert after.nested_in(masks), "a pruned weight stays pruned"
            assert units.nested_in(before), "a pruned unit stays pruned"
            masks, before = after, units
        most = self.rule().sparsity or 0.5
        assert before.total - before.kept == round(most * before.total), "counts are exact"
        pieces.check(before)


def masks_of(info: ParamInfo) -> list[Array]:
    """Return masks to try a parameter with, the same every time."""
    rng = np.random.default_rng(0)
    halves = [np.ones(info.shape, np.bool_) for _ in info.shape]
    for axis, mask in enumerate(halves):  # whole slices gone
        np.moveaxis(mask, axis, 0)[1::2] = False
    masks = [np.asarray(rng.random(info.shape) < share) for share in (0.7, 0.2, 0.0)]
    return [np.ones(info.shape, np.bool_), *halves, *masks]


def scores_of(info: ParamInfo) -> Array:
    """Return scores of a parameter's weights, float32, the same every time; some are equal."""
    rng = np.random.default_rng(1)
    return rng.integers(0, 9, info.shape).astype(np.float32) / 8


def _halved(pieces: Cut, masks: Masks, seed: int, share: float = 1.0) -> Masks:
    """Return the units after ``share`` of what the pattern means (or half) is gone."""
    units = pieces.masks(masks)
    rng = np.random.default_rng(seed)
    scores = ArrayScores({n: np.asarray(rng.random(m.shape)) for n, m in masks.items()})
    most = pieces.pattern.sparsity or 0.5
    groups = []
    for name, (kept, total) in units.counts.items():
        due = round(most * share * total) - (total - kept)
        groups.append(Group((name,), max(due, 0)))
    return select(pieces.scores(scores, masks), units, groups)
