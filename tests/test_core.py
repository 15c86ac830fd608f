"""Counts, selectors, masks, allocations, schedules: the arithmetic under everything."""

import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import ltcore as lt
from ltcore.allocation import Group, Rate, Sparsity, by_global, by_layer
from ltcore.counts import fraction, removed_by_rate, removed_by_sparsity
from ltcore.errors import InvalidValueError, MaskError, SelectorError
from ltcore.guards import Floor, KeepDense
from ltcore.nm_pattern import NM
from ltcore.options import policy_from
from ltcore.parameters import ParamInfo
from ltcore.rewind_draws import RewindNoise
from ltcore.rewind_points import LearningRateRewind, ToStep
from ltcore.schedules import ConstantRate, OneShot, ToSparsity
from ltcore.seeds import MOVES, REDRAWS, REWINDS, SAMPLES, SCORES, check_seed, generator
from ltcore.selectors import resolve, select_infos
from ltcore.shares import SmartRatio
from ltcore.testing import Linear, NumpyModel
from ltcore.unit_patterns import Block


def info(name, kind="linear", shape=(4, 5), output=False, prunable=True):
    return ParamInfo(name, kind, name.rpartition(".")[2], shape, output, prunable)


INFOS = (info("a.weight", shape=(10, 10)), info("b.weight", "conv"), info("c.weight", output=True))


def full(infos=INFOS):
    return lt.Masks.ones({i.name: i.shape for i in infos})


@pytest.mark.parametrize(
    ("kept", "rate", "removed"),
    [(100, 0.2, 20), (100, 0.0, 0), (5, 0.1, 1), (5, 0.3, 2), (4, 0.1, 0), (1, 0.9, 0), (0, 0.5, 0),
     (3, 0.5, 2), (266200, 0.2, 53240)],
)  # fmt: skip
def test_removed_by_rate_table(kept, rate, removed):
    assert removed_by_rate(kept, fraction(rate, "rate")) == removed


@given(st.integers(0, 10**6), st.integers(0, 999))
def test_removed_by_rate_is_the_rounding_rule_and_never_the_last(kept, permille):
    removed = removed_by_rate(kept, fraction(permille / 1000, "rate"))
    assert removed == min((2 * permille * kept + 1000) // 2000, max(kept - 1, 0))


@given(st.integers(1, 10**5), st.data())
def test_removed_by_sparsity_reaches_the_goal_and_never_undoes(total, data):
    kept = data.draw(st.integers(0, total))
    goal = data.draw(st.integers(0, 99))
    more = removed_by_sparsity(kept, total, Fraction(goal, 100))
    gone = total - kept + more
    assert more >= 0
    assert gone == max(total - kept, removed_by_rate(total, Fraction(goal, 100)))


@pytest.mark.parametrize("bad", [-0.1, 1, 1.0, 2, float("nan"), float("inf"), "much", None, True])
def test_fractions_out_of_range_name_the_argument_and_value(bad):
    with pytest.raises(InvalidValueError, match="sparsity is .*including 1"):
        fraction(bad, "sparsity")


@pytest.mark.parametrize(
    ("percent", "hint"),
    [(90, "; did you mean 0.9?"), (12.5, "; did you mean 0.125?"), (1, ""), (100, ""), (-5, "")],
)
def test_percents_are_answered_with_the_fraction(percent, hint):
    with pytest.raises(InvalidValueError, match=f"{re.escape(f'(0.2 removes 20 %){hint}')}$"):
        fraction(percent, "sparsity")


def test_the_published_density_series_of_lenet():
    """Frankle and Carbin 2019: 51.3, 21.1, 7.0, 3.6, 1.9 % left of LeNet-300-100."""
    infos = (info("fc1.weight", shape=(300, 784)), info("fc2.weight", shape=(100, 300)),
             info("fc3.weight", shape=(10, 100), output=True))  # fmt: skip
    kept = {i.name: int(np.prod(i.shape)) for i in infos}
    masks, seen = full(infos), {}
    for n in range(1, 21):
        for group in by_layer(Rate({"*": 0.2, "@output": 0.1}), masks, infos):
            kept[group.names[0]] -= group.remove
        masks = lt.Masks({i.name: np.arange(np.prod(i.shape)).reshape(i.shape) < kept[i.name]
                          for i in infos})  # fmt: skip
        seen[n] = round(100 * masks.density, 2)
    published = {3: 51.28, 7: 21.07, 12: 6.95, 15: 3.58, 20: 1.19}
    assert {n: seen[n] for n in published} == pytest.approx(published, abs=0.011)


def test_selectors_the_last_match_decides():
    table = {"*": 1, "@conv": 2, "@output": 3}
    assert resolve(table, INFOS, "rate") == {
        "a.weight": ("*", 1), "b.weight": ("@conv", 2), "c.weight": ("@output", 3)
    }  # fmt: skip
    assert [i.name for i in select_infos(["c*", "a*"], INFOS, "x")] == ["a.weight", "c.weight"]


@pytest.mark.parametrize("selector", ["d.*", "@nothing", "A.weight"])
def test_a_selector_that_matches_nothing_is_an_error(selector):
    with pytest.raises(SelectorError, match="rate: the selector .* matches none.*a.weight"):
        resolve({"*": 0.1, selector: 0.2}, INFOS, "rate")


def test_scopes_pool_what_competes():
    rate = Rate({"*": 0.5, "@output": 0.1})
    assert by_global(rate, full(), INFOS) == (
        Group(("a.weight", "b.weight"), 60), Group(("c.weight",), 2)
    )  # fmt: skip
    assert by_layer(rate, full(), INFOS) == (
        Group(("a.weight",), 50), Group(("b.weight",), 10), Group(("c.weight",), 2)
    )  # fmt: skip
    assert by_global(Sparsity(0.9), full(), INFOS) == (
        Group(("a.weight", "b.weight", "c.weight"), 126),
    )


def test_only_matched_parameters_are_pruned():
    assert by_global(Rate({"@output": 0.5}), full(), INFOS) == (Group(("c.weight",), 10),)
    with pytest.raises(InvalidValueError, match="empty mapping"):
        by_global(Rate({}), full(), INFOS)


@given(st.integers(1, 12), st.integers(1, 99))
def test_to_sparsity_ends_exactly_there_in_equal_steps(rounds, percent):
    sparsity = percent / 100
    schedule = ToSparsity(sparsity, rounds)
    assert schedule.goal(rounds) == Sparsity(sparsity)
    left = [1 - schedule.goal(n).amounts for n in range(1, rounds + 1)]
    ratios = np.diff(np.log([1, *left]))
    assert np.allclose(ratios, ratios[0])


@pytest.mark.parametrize("make", [
    lambda: ConstantRate(1.0, 3), lambda: ConstantRate(0.2, 0), lambda: ConstantRate(0.2, 2.0),
    lambda: ToSparsity(-0.1, 2), lambda: OneShot(1), lambda: ConstantRate({"*": 2.0}, 2),
    lambda: lt.ToStep(-1), lambda: lt.ToStep(2.5), lambda: lt.ToStep(True),
])  # fmt: skip
def test_bad_schedules_and_steps_are_refused_at_once(make):
    with pytest.raises(InvalidValueError, match="expected"):
        make()


def test_masks_count_compare_and_nest():
    masks = lt.Masks({"a": np.array([[True, False], [True, True]]), "b": np.zeros(3, bool)})
    assert (masks.kept, masks.total, masks.counts["a"]) == (3, 7, (3, 4))
    assert masks.density == 3 / 7
    assert masks.sparsity == 4 / 7
    assert masks.emptied == ("b",)
    assert masks.nested_in(lt.Masks.ones({"a": (2, 2), "b": (3,)}))
    assert not lt.Masks.ones({"a": (2, 2), "b": (3,)}).nested_in(masks)
    assert masks == lt.Masks(dict(masks))
    assert masks.digest != lt.Masks.ones({"a": (2, 2), "b": (3,)}).digest
    assert (masks & lt.Masks.ones({"a": (2, 2), "b": (3,)})) == masks


def test_masks_are_read_only_and_own_their_memory():
    source = np.ones(4, bool)
    masks = lt.Masks({"a": source})
    source[:] = False
    assert masks.kept == 4
    with pytest.raises(ValueError, match="read-only"):
        masks["a"][0] = False
    with pytest.raises(TypeError):
        masks["a"] = source  # type: ignore[index]


def test_masks_say_what_does_not_fit():
    masks = lt.Masks({"a": np.ones(4, bool), "x": np.ones(1, bool)})
    with pytest.raises(
        MaskError, match=r"missing \['b'\].*unexpected \['x'\].*a: mask \(4,\).*\(5,\)"
    ):
        masks.check_shapes({"a": (5,), "b": (1,)}, "the model")
    with pytest.raises(MaskError, match="'a' has dtype int64"):
        lt.Masks({"a": np.ones(4, np.int64)})


def test_apply_gives_plus_zero_whatever_was_there():
    masks = lt.Masks({"a": np.array([True, False, False, False])})
    result = masks.apply({"a": np.array([1, -2, np.nan, -np.inf], np.float32), "b": np.ones(2)})
    assert result["a"].tolist() == [1, 0, 0, 0]
    assert not np.signbit(result["a"]).any()
    assert result["a"].dtype == np.float32
    assert result["b"].tolist() == [1, 1]


def test_equal_masks_have_equal_hashes_and_scalars_stay_scalars():
    a = lt.Masks({"x": np.ones(2, bool), "y": np.zeros(3, bool)})
    b = lt.Masks({"y": np.zeros(3, bool), "x": np.ones(2, bool)})
    assert a == b
    assert hash(a) == hash(b)
    scalar = lt.Masks.nonzero({"s": np.array(3.0)})
    assert scalar["s"].shape == ()
    assert (scalar & scalar)["s"].shape == ()


# ---- whole numbers and seeds


@pytest.mark.parametrize("bad", ["a", None, 1.5, True, -1, 2**64, np.float64(3), np.bool_(True)])
def test_a_seed_is_a_whole_number_of_64_bits(bad):
    with pytest.raises(InvalidValueError, match="seed is .*0 to 2"):
        generator(bad)
    with pytest.raises(InvalidValueError, match="seed is"):
        lt.find_supermask(NumpyModel([Linear(2, 2)]), [(0, 0)], max, steps=1, seed=bad)


@given(st.lists(st.integers(0, 2**64 - 1), min_size=2, max_size=2, unique=True))
@example([2**63 + 1, 2**63 + 3])
def test_every_seed_index_and_purpose_has_its_own_numbers(pair):
    streams = (SCORES, REWINDS, MOVES, REDRAWS, SAMPLES)
    places = [(seed, index, stream) for seed in pair for index in (0, 7) for stream in streams]
    first = [int(generator(*place).integers(2**62)) for place in places]
    assert len(set(first)) == len(places)


def test_integers_of_numpy_are_seeds_of_the_same_numbers():
    assert type(check_seed(np.int64(3))) is int
    assert generator(np.int64(3)).random() == generator(3).random()


@pytest.mark.parametrize("number", [np.int64(5), np.uint8(5)], ids=["int64", "uint8"])
def test_integers_of_numpy_are_whole_numbers_everywhere(number):
    made = [
        ToStep(number).step,
        LearningRateRewind(number).step,
        RewindNoise(step=number).step,
        policy_from({"name": "step", "step": number}).step,
        policy_from({"name": "epoch", "epoch": 1, "steps_per_epoch": number}).step,
        ConstantRate(0.2, number).rounds,
        ToSparsity(0.2, number).rounds,
        KeepDense(first=number).first,
        Floor(survivors=number).survivors,
        SmartRatio(decay=number).decay,
        NM(number, 2 * int(number)).n,
        Block((number, 1)).shape[0],
    ]
    assert made == [5] * len(made)
    assert {type(one) for one in made} == {int}
