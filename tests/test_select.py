"""Selection: exact counts, the tie rule, and equality with slow, plainly right references."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import ltcore as lt
from ltcore import select as select_module
from ltcore.allocation import Group, Rate, Sparsity, by_global, by_layer
from ltcore.criteria import FunctionCriterion
from ltcore.errors import InvalidValueError, NonFiniteError
from ltcore.judging import score
from ltcore.parameters import ParamInfo
from ltcore.scoring import ArrayScores
from ltcore.select import select
from ltcore.weight_criteria import magnitude, random


def infos_for(weights):
    return tuple(ParamInfo(n, "linear", "weight", w.shape, False, True) for n, w in weights.items())


def by_magnitude(weights, masks, groups, criterion=magnitude):
    rng = np.random.default_rng(0)
    scores = score(criterion, {"weight": weights}, masks, infos_for(weights), rng)
    return select(scores, masks, groups)


def brute_force(weights, masks, groups):
    """Sort (score, position) pairs in plain Python: lowest score goes, later position first."""
    result = {name: mask.copy() for name, mask in masks.items()}
    for group in groups:
        ranked = []
        for order, name in enumerate(group.names):
            flat = np.abs(weights[name]).reshape(-1)
            ranked += [(flat[i], -order, -i, name) for i in np.flatnonzero(masks[name])]
        for _, _, minus_i, name in sorted(ranked)[: group.remove]:
            result[name].reshape(-1)[-minus_i] = False
    return result


def ones(weights):
    return lt.Masks.ones({n: w.shape for n, w in weights.items()})


tied = st.sampled_from([0.0, -0.0, 0.5, -0.5, 1.0, -1.0, 3.0, np.inf])
arrays = st.one_of(
    hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=6), elements=tied),
    hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=6),
               elements=st.floats(-4, 4, width=32)),
)  # fmt: skip


@given(
    st.lists(arrays, min_size=1, max_size=4), st.integers(0, 99), st.integers(0, 99), st.booleans()
)
@settings(max_examples=150, deadline=None)
def test_equals_brute_force_over_two_nested_rounds(found, first, second, layerwise):
    weights = {f"p{i}": w for i, w in enumerate(found)}
    allocate = by_layer if layerwise else by_global
    masks = ones(weights)
    for percent in (first, second):
        groups = allocate(Rate(percent / 100), masks, infos_for(weights))
        chosen = by_magnitude(weights, masks, groups)
        expected = brute_force(weights, masks, groups)
        assert all(np.array_equal(chosen[n], expected[n]) for n in weights)
        assert chosen.nested_in(masks)
        assert masks.kept - chosen.kept == sum(group.remove for group in groups)
        masks = chosen


@pytest.mark.parametrize("kind", ["normal", "ties", "equal", "sorted", "zeros", "tiny", "mixed"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("elementwise", [True, False])
def test_sampled_path_equals_a_stable_sort(monkeypatch, kind, dtype, elementwise):
    """Small limits send ordinary arrays down the path of large models."""
    monkeypatch.setattr(select_module, "BLOCK", 1 << 10)
    monkeypatch.setattr(select_module, "SAMPLE", 1 << 8)
    rng = np.random.default_rng(3)
    shapes = {"a": (37, 101), "b": (8,), "c": (5000,), "d": (3, 3, 64)}
    make = {
        "normal": lambda s: rng.standard_normal(s),
        "ties": lambda s: rng.integers(-3, 4, s) / 4,
        "equal": lambda s: np.full(s, 0.25),
        "sorted": lambda s: np.sort(rng.standard_normal(int(np.prod(s)))).reshape(s),
        "zeros": lambda s: rng.standard_normal(s) * (rng.random(s) > 0.9),
        "tiny": lambda s: rng.standard_normal(s) * 1e-7,
        "mixed": lambda s: np.where(rng.random(s) > 0.5, 1e4, 1e-4) * rng.standard_normal(s),
    }[kind]
    weights = {n: make(s).astype(dtype) for n, s in shapes.items()}
    criterion = FunctionCriterion("m", magnitude.function, elementwise=elementwise)
    masks = ones(weights)
    for sparsity in (0.003, 0.5, 0.9, 0.999):
        groups = by_global(Sparsity(sparsity), masks, infos_for(weights))
        chosen = by_magnitude(weights, masks, groups, criterion)
        flat = np.concatenate([np.abs(w).reshape(-1) for w in weights.values()]).astype(np.float64)
        alive = np.concatenate([masks[n].reshape(-1) for n in weights])
        order = np.lexsort((-np.arange(flat.size), flat))
        order = order[alive[order]][: sum(g.remove for g in groups)]
        alive = alive.copy()
        alive[order] = False
        assert np.array_equal(np.concatenate([chosen[n].reshape(-1) for n in weights]), alive)
        masks = chosen


def test_a_misleading_sample_is_widened(monkeypatch):
    """A stride that sees only one kind of weight must not change the answer."""
    monkeypatch.setattr(select_module, "SAMPLE", 4096)
    period = np.r_[9.0, np.linspace(0, 1, 255)].astype(np.float32)
    weights = {"a": np.tile(period, 4096)}  # every 256th weight is a 9
    groups = (Group(("a",), 500_000),)
    chosen = by_magnitude(weights, ones(weights), groups)["a"]
    order = np.lexsort((-np.arange(1 << 20), weights["a"]))
    assert not chosen[order[:500_000]].any()
    assert chosen[order[500_000:]].all()


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9])
def test_equals_torch_global_unstructured_without_ties(sparsity):
    torch = pytest.importorskip("torch")
    from torch.nn.utils import prune

    torch.manual_seed(0)
    model = torch.nn.Sequential(*[torch.nn.Linear(20, 20, bias=False) for _ in range(3)])
    weights = {f"{i}.weight": layer.weight.detach().numpy().copy() for i, layer in enumerate(model)}
    chosen = by_magnitude(
        weights, ones(weights), by_global(Sparsity(sparsity), ones(weights), infos_for(weights))
    )
    prune.global_unstructured(
        [(layer, "weight") for layer in model], prune.L1Unstructured, amount=sparsity
    )
    for i, layer in enumerate(model):
        assert np.array_equal(chosen[f"{i}.weight"], layer.weight_mask.numpy() != 0)


def test_equal_scores_lose_exactly_what_was_asked_and_keep_the_first():
    weights = {"a": np.ones(100, np.float32)}
    chosen = by_magnitude(weights, ones(weights), [Group(("a",), 20)])
    assert chosen["a"].tolist() == [True] * 80 + [False] * 20


@given(st.floats(1e-3, 1e3))
@settings(max_examples=25, deadline=None)
def test_scaling_scores_by_a_power_of_two_changes_nothing(scale):
    scale = 2.0 ** round(np.log2(scale))
    weights = {"a": np.random.default_rng(0).standard_normal(500).astype(np.float32)}
    scaled = {"a": weights["a"] * np.float32(scale)}
    groups = [Group(("a",), 123)]
    assert by_magnitude(weights, ones(weights), groups) == by_magnitude(
        scaled, ones(weights), groups
    )


@pytest.mark.parametrize("elementwise", [True, False])
@pytest.mark.parametrize("size", [50, 400_000])
def test_nan_is_an_error_that_names_the_parameter(elementwise, size):
    weights = {"fine": np.ones(10, np.float32), "bad": np.ones(size, np.float32)}
    weights["bad"][size // 2 + 1] = np.nan
    criterion = FunctionCriterion("m", magnitude.function, elementwise=elementwise)
    with pytest.raises(NonFiniteError, match="'bad'"):
        by_magnitude(weights, ones(weights), [Group(("fine", "bad"), 5)], criterion)


def test_a_nan_that_is_pruned_already_does_not_count():
    weights = {"a": np.array([1, np.nan, 3, 2], np.float32)}
    masks = lt.Masks({"a": np.array([True, False, True, True])})
    chosen = by_magnitude(weights, masks, [Group(("a",), 1)])
    assert chosen["a"].tolist() == [False, False, True, True]


def test_asking_for_more_than_there_is_is_refused():
    weights = {"a": np.ones(4, np.float32)}
    with pytest.raises(InvalidValueError, match=r"5 of the 4"):
        by_magnitude(weights, ones(weights), [Group(("a",), 5)])
    assert by_magnitude(weights, ones(weights), [Group(("a",), 4)]).kept == 0


def test_random_scores_follow_the_seed_and_ignore_the_weights():
    weights = {"a": np.zeros(1000, np.float32)}
    other = {"a": np.ones(1000, np.float32)}
    groups = [Group(("a",), 500)]
    first = by_magnitude(weights, ones(weights), groups, random)
    assert first == by_magnitude(other, ones(weights), groups, random)
    scores = score(random, {"weight": weights}, ones(weights), infos_for(weights),
                   np.random.default_rng(1))  # fmt: skip
    assert first != select(scores, ones(weights), groups)


def test_integer_scores_and_mixed_dtypes_are_compared_as_numbers():
    scores = ArrayScores({"a": np.array([1, 2, 3], np.float16), "b": np.array([2.5, 0.5])})
    masks = lt.Masks.ones({"a": (3,), "b": (2,)})
    chosen = select(scores, masks, [Group(("a", "b"), 2)])
    assert chosen["a"].tolist() == [False, True, True]
    assert chosen["b"].tolist() == [True, False]


def test_scores_of_another_shape_are_refused():
    weights = {"a": np.ones((2, 3), np.float32)}
    rule = FunctionCriterion("wrong", lambda param: param.weight.sum(0))
    with pytest.raises(InvalidValueError, match=r"'wrong'.*\(3,\).*'a'.*\(2, 3\)"):
        by_magnitude(weights, ones(weights), [Group(("a",), 1)], rule)


def test_undeclared_signals_say_what_to_declare():
    weights = {"a": np.ones(3, np.float32)}
    rule = FunctionCriterion("greedy", lambda param: abs(param.gradient))
    with pytest.raises(InvalidValueError, match=r"param\.gradient.*needs=\{'gradient'\}"):
        by_magnitude(weights, ones(weights), [Group(("a",), 1)], rule)
    with pytest.raises(InvalidValueError, match="'moon'"):
        FunctionCriterion("x", magnitude.function, frozenset({"moon"}))


def test_elementwise_scores_keep_their_own_precision():
    """A rule that computes in float64 chooses the same weights in blocks and whole."""
    weights = {"a": (1 + np.arange(64) * 1e-9).astype(np.float64).astype(np.float32)}
    rule = lambda p: p.weight.astype(np.float64) + np.arange(p.weight.size) * 0 + 1e-12  # noqa: E731
    groups = [Group(("a",), 32)]
    whole = by_magnitude(weights, ones(weights), groups, FunctionCriterion("r", rule))
    blocks = by_magnitude(
        weights, ones(weights), groups, FunctionCriterion("r", rule, elementwise=True)
    )
    assert whole == blocks
    scores = score(FunctionCriterion("r", rule, elementwise=True), {"weight": weights},
                   ones(weights), infos_for(weights), np.random.default_rng(0))  # fmt: skip
    assert scores.dtype == np.float64


def test_an_elementwise_rule_may_not_draw_random_numbers():
    with pytest.raises(InvalidValueError, match="'dice' draws random numbers"):
        FunctionCriterion("dice", random.function, frozenset({"rng"}), elementwise=True)
