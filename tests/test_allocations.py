"""Allocations: exact totals, nested rounds, and equality with slow, plainly right references."""

from fractions import Fraction
from math import prod

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

import ltcore as lt
from ltcore.allocation import Group, Rate, Sparsity, by_global, by_layer
from ltcore.asking import ask, asked
from ltcore.counts import fraction, shared
from ltcore.discovery import registry
from ltcore.errors import InvalidValueError, SelectorError
from ltcore.guards import Floor, KeepDense
from ltcore.options import allocation_from
from ltcore.parameters import ParamInfo
from ltcore.scoring import ArrayScores
from ltcore.select import select
from ltcore.shares import Erk, SmartRatio, uniform
from ltcore.testing import AllocationConformance, Linear, NumpyModel

OFFERED = [name for name, offer in registry().offers["allocation"].items()
           if offer.spec.target.startswith("ltcore.")]  # fmt: skip
MORE = {
    "erdos-renyi": {"name": "erk", "kernel": False},
    "smart-ratio-vgg": {"name": "smart-ratio", "decay": 2, "output_density": 0.4},
    "keep-first": {"name": "keep-dense", "allocation": "erk", "first": 1, "last": 0},
    "keep-uniform": {"name": "keep-dense", "allocation": "uniform", "first": 0},
    "floor-share": {"name": "floor", "survivors": 0.1},
    "floor-of-erk": {"name": "floor", "allocation": "erk", "survivors": 70},
    "floor-of-keep-dense": {
        "name": "floor", "allocation": {"name": "keep-dense", "first": 1}, "survivors": 0.05,
    },
    "keep-dense-of-floor": {
        "name": "keep-dense", "allocation": {"name": "floor", "survivors": 60}, "last": 0,
    },
}  # fmt: skip


def suite(name, given):
    allocation = allocation_from(given)
    members = {"allocation": staticmethod(allocation), "exact": name != "layer"}
    return type(f"Test_{name}", (AllocationConformance,), members)


for _name, _given in {**{n: n for n in OFFERED}, **MORE}.items():
    globals()[f"Test_{_name}"] = suite(_name, _given)

ALL = [allocation_from(g) for g in (*OFFERED, *MORE.values())]
LENET = (
    ParamInfo("fc1.weight", "linear", "weight", (300, 784), False, True),
    ParamInfo("fc2.weight", "linear", "weight", (100, 300), False, True),
    ParamInfo("fc3.weight", "linear", "weight", (10, 100), True, True),
)


def infos_of(shapes, outputs=1):
    return tuple(
        ParamInfo(f"p{i}", "conv", "weight", shape, i >= len(shapes) - outputs, True)
        for i, shape in enumerate(shapes)
    )


def whole(infos):
    return lt.Masks.ones({info.name: info.shape for info in infos})


def kept_after(groups, masks):
    left = {name: kept for name, (kept, _) in masks.counts.items()}
    for group in groups:
        assert len(group.names) == 1
        left[group.names[0]] -= group.remove
    return left


shapes = st.lists(
    st.one_of(
        st.tuples(st.integers(1, 40), st.integers(1, 40)),
        st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3), st.just(3)),
    ),
    min_size=1,
    max_size=6,
)


# ---- the rule that shares a whole number


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_shared_adds_up_stays_in_bounds_and_is_the_rounded_proportion(data):
    size = data.draw(st.integers(1, 6))
    number = st.integers(0, 50)
    weights = data.draw(st.lists(st.integers(1, 1000), min_size=size, max_size=size))
    bounds = [sorted(data.draw(st.tuples(number, number))) for _ in range(size)]
    low, high = [b[0] for b in bounds], [b[1] for b in bounds]
    total = data.draw(st.integers(sum(low), sum(high)))
    found = shared(total, [Fraction(w) for w in weights], low, high)
    assert sum(found) == total
    assert all(a <= x <= b for a, x, b in zip(low, found, high, strict=True))
    bottom, top = 0.0, 1e6  # an independent search for the level
    for _ in range(200):
        middle = (bottom + top) / 2
        if np.clip(np.array(weights) * middle, low, high).sum() < total:
            bottom = middle
        else:
            top = middle
    exact = np.clip(np.array(weights) * top, low, high)
    assert np.abs(np.array(found) - exact).max() < 1 + 1e-6


def test_a_fraction_is_taken_exactly():
    third = Fraction(1, 3)
    assert fraction(third, "rate") == third
    masks = whole(infos_of([(3, 10**5)]))
    assert by_global(Rate(third), masks, infos_of([(3, 10**5)]))[0].remove == 10**5
    for bad in (Fraction(1), Fraction(-1, 2)):
        with pytest.raises(InvalidValueError, match="rate is"):
            fraction(bad, "rate")


# ---- shares


def test_erk_of_lenet_by_hand():
    """26,620 stay. sum(dims): 1084, 400, 110; fc3 would get 1837 of its 1000, so it is dense."""
    assert kept_after(Erk()(Sparsity(0.9), whole(LENET), LENET), whole(LENET)) == {
        "fc1.weight": 18714, "fc2.weight": 6906, "fc3.weight": 1000,
    }  # fmt: skip


def test_smart_ratio_of_lenet_by_hand():
    """fc3 keeps 300; the other 26,320 go as 235200 * 12 to 30000 * 6."""
    assert kept_after(SmartRatio()(Sparsity(0.9), whole(LENET), LENET), whole(LENET)) == {
        "fc1.weight": 24742, "fc2.weight": 1578, "fc3.weight": 300,
    }  # fmt: skip


def densities_as_published(shapes, density):
    """Erdos-Renyi-Kernel in floats: the densest layer is made dense until none is over 1."""
    dense = set()
    while True:
        raw = {i: sum(s) / prod(s) for i, s in enumerate(shapes) if i not in dense}
        sparse_now = sum(prod(shapes[i]) for i in raw)
        dense_now = sum(prod(shapes[i]) for i in dense)
        budget = density * sparse_now - (1 - density) * dense_now
        eps = budget / sum(raw[i] * prod(shapes[i]) for i in raw)
        if max(raw.values()) * eps <= 1:
            return [1.0 if i in dense else eps * raw[i] for i in range(len(shapes))]
        dense |= {i for i in raw if raw[i] == max(raw.values())}
        if len(dense) == len(shapes):
            return [1.0] * len(shapes)


@given(shapes, st.integers(5, 95))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
def test_erk_is_the_published_one_rounded(found, percent):
    infos = infos_of(found)
    masks = whole(infos)
    left = kept_after(Erk()(Sparsity(percent / 100), masks, infos), masks)
    published = densities_as_published(found, 1 - percent / 100)
    exact = [d * prod(s) for d, s in zip(published, found, strict=True)]
    assume(min(exact) >= 1)  # where the last weight is at stake, ours keeps it
    # The total is rounded too, and half a weight may all go to one small layer.
    assert np.abs(np.array(list(left.values())) - exact).max() < 2 + 1e-6


@given(shapes, st.integers(1, 98), st.booleans())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
def test_uniform_has_one_density(found, percent, by_rate):
    infos = infos_of(found)
    masks = whole(infos)
    goal = (Rate if by_rate else Sparsity)(percent / 100)
    left = kept_after(uniform(goal, masks, infos), masks)
    density = sum(left.values()) / masks.total
    sizes = {info.name: prod(info.shape) for info in infos}
    assume(density * min(sizes.values()) >= 1)  # else a last weight is kept at the others' cost
    assert all(abs(left[name] - density * size) < 1 for name, size in sizes.items())


def test_uniform_evens_out_what_was_uneven_and_layer_does_not():
    infos = infos_of([(10, 10), (10, 10)])
    masks = lt.Masks({"p0": np.arange(100).reshape(10, 10) < 40, "p1": np.ones((10, 10), bool)})
    assert kept_after(uniform(Rate(0.5), masks, infos), masks) == {"p0": 35, "p1": 35}
    assert kept_after(by_layer(Rate(0.5), masks, infos), masks) == {"p0": 20, "p1": 50}


def test_uniform_takes_one_fraction_only():
    with pytest.raises(InvalidValueError, match=r"rate is .*p0.*give one fraction.*'layer'"):
        uniform(Rate({"p0": 0.5}), whole(infos_of([(2, 2)])), infos_of([(2, 2)]))


@pytest.mark.parametrize("allocation", [by_global, by_layer, Erk(), SmartRatio()])
def test_entries_of_a_mapping_are_shared_each_by_itself(allocation):
    infos = infos_of([(8, 9), (9, 10), (10, 11), (11, 6)])
    masks = whole(infos)
    goal = Sparsity({"*": 0.5, "p[12]": 0.8, "@output": 0.25})
    removed = dict.fromkeys(masks, 0)
    for group in allocation(goal, masks, infos):
        assert len({name in ("p1", "p2") for name in group.names}) == 1
        removed[group.names[0]] += group.remove
    assert removed["p0"] == 36
    assert removed["p1"] + removed["p2"] == 160
    assert removed["p3"] == 17  # 16.5, rounded as ever


def test_smart_ratio_moves_off_its_output_density_when_the_total_wants_it():
    infos = infos_of([(10, 10), (20, 10)])
    masks = whole(infos)
    early = kept_after(SmartRatio()(Sparsity(0.1), masks, infos), masks)
    assert early == {"p0": 100, "p1": 170}
    late = kept_after(SmartRatio()(Sparsity(0.9), masks, infos), masks)
    assert late == {"p0": 1, "p1": 29}


@given(shapes, st.integers(1, 99), st.sampled_from([Erk(), Erk(kernel=False), SmartRatio()]))
@settings(max_examples=80, deadline=None)
@example([(40, 40), (1, 1), (5, 5)], 99, SmartRatio())
def test_no_layer_loses_its_last_weight_while_there_is_one_for_each(found, percent, allocation):
    infos = infos_of(found)
    masks = whole(infos)
    left = kept_after(allocation(Sparsity(percent / 100), masks, infos), masks)
    assert min(left.values()) >= (sum(left.values()) >= len(found))


# ---- guards


def test_keep_dense_keeps_the_ends_and_the_total():
    infos = infos_of([(6, 10), (20, 20), (20, 20), (20, 5)])
    masks = whole(infos)
    groups = KeepDense()(Sparsity(0.5), masks, infos)
    assert groups == (Group(("p1", "p2"), 480),)
    assert KeepDense(by_layer, 0, 2)(Rate(0.25), masks, infos) == (
        Group(("p0",), 31), Group(("p1",), 209),
    )  # fmt: skip
    entries = Sparsity({"*": 0.5, "p[01]": 0.75})
    assert KeepDense(last=0)(entries, masks, infos) == (
        Group(("p1",), 345), Group(("p2", "p3"), 250),
    )  # fmt: skip


def test_keep_dense_knows_output_layers():
    infos = infos_of([(5, 5)] * 4)
    heads = [ParamInfo(i.name, i.kind, i.role, i.shape, i.name in ("p1", "p2"), True)
             for i in infos]  # fmt: skip
    removed = lambda rule: {n for g in rule(Rate(0.1), whole(infos), heads) for n in g.names}  # noqa: E731
    assert removed(KeepDense(first=0, last=1)) == {"p0", "p3"}
    assert removed(KeepDense(first=0, last=3)) == {"p0"}
    assert removed(KeepDense(first=1, last=0)) == {"p1", "p2", "p3"}


@pytest.mark.parametrize(
    ("rule", "goal", "facts"),
    [
        (KeepDense(), Sparsity(0.9), r"90 weights of .*\['p0', 'p2'\] kept dense .* have 50,"),
        (KeepDense(), Rate({"*": 0.1, "p2": 0.4}), r"10 weights of \['p2'\].* have 0"),
        (Floor(survivors=0.3), Sparsity(0.8), r"80 weights of .* leaves only 69 to take"),
        (Floor(by_layer, 20), Sparsity({"*": 0.1, "p2": 0.9}), r"23 weights of \['p2'\].*only 5"),
    ],
)  # fmt: skip
def test_what_guards_cannot_give_is_refused_with_the_numbers(rule, goal, facts):
    infos = infos_of([(5, 5), (5, 10), (5, 5)])
    with pytest.raises(InvalidValueError, match=facts):
        rule(goal, whole(infos), infos)


@pytest.mark.parametrize(
    "bad", [0, -1, 1.0, 2.0, 0.0, True, "half", None, float("nan")], ids=str
)  # fmt: skip
def test_survivors_are_a_count_or_a_share(bad):
    with pytest.raises(InvalidValueError, match="survivors is"):
        Floor(survivors=bad)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KeepDense("global"), "allocation is 'global'.*'name': 'keep-dense'"),
        (lambda: Floor("erk"), "allocation is 'erk'.*'name': 'floor'"),
        (lambda: KeepDense(first=-1), "first is -1"),
        (lambda: KeepDense(last=1.0), "last is 1.0"),
        (lambda: SmartRatio(1.0), "output_density is 1.0"),
        (lambda: SmartRatio(decay=0.5), "decay is 0.5"),
        (lambda: allocation_from({"name": "erk", "power": 2}), "'erk' does not take"),
        (
            lambda: allocation_from({"name": "global", "first": 1}),
            "'global' .*takes no options, got .'first'",
        ),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(InvalidValueError, match=message):
        make()


def test_floor_moves_what_layers_cannot_lose_to_the_others():
    infos = infos_of([(2, 5), (10, 10)])
    masks = whole(infos)
    assert kept_after(by_layer(Sparsity(0.85), masks, infos), masks) == {"p0": 1, "p1": 15}
    groups = Floor(by_layer, 6)(Sparsity(0.85), masks, infos)
    assert kept_after(groups, masks) == {"p0": 6, "p1": 10}
    with pytest.raises(InvalidValueError, match="only 98"):
        Floor(by_layer, 6)(Sparsity(0.95), masks, infos)


# ---- floors in selection


def greedy(scores, masks, group):
    """Take the lowest scores one by one, passing over parameters that are at their floor."""
    result = {name: mask.copy() for name, mask in masks.items()}
    ranked = sorted(
        (scores[name].reshape(-1)[i], -order, -i, name)
        for order, name in enumerate(group.names)
        for i in np.flatnonzero(masks[name])
    )
    least = {name: group.least(name, masks.counts[name][0]) for name in group.names}
    gone = 0
    for _, _, minus_i, name in ranked:
        if gone < group.remove and np.count_nonzero(result[name]) > least[name]:
            result[name].reshape(-1)[-minus_i] = False
            gone += 1
    assert gone == group.remove
    return result


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_floors_equal_a_greedy_reference_over_two_rounds(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    sizes = data.draw(st.lists(st.integers(1, 30), min_size=1, max_size=5))
    levels = data.draw(st.sampled_from([3, 10, 10**6]))  # few levels: ties
    scores = {f"p{i}": rng.integers(0, levels, size) * 10.0 ** rng.integers(-3, 3)
              for i, size in enumerate(sizes)}  # fmt: skip
    masks = lt.Masks.ones({name: array.shape for name, array in scores.items()})
    floor = data.draw(st.one_of(
        st.integers(1, 8), st.fixed_dictionaries({name: st.integers(0, 12) for name in scores})
    ))  # fmt: skip
    for _ in range(2):
        group = Group(tuple(scores), 0, floor)
        stay = sum(group.least(name, masks.counts[name][0]) for name in scores)
        group = Group(tuple(scores), data.draw(st.integers(0, masks.kept - stay)), floor)
        chosen = select(ArrayScores(scores), masks, [group])
        expected = greedy(scores, masks, group)
        assert all(np.array_equal(chosen[name], expected[name]) for name in scores)
        assert chosen.nested_in(masks)
        assert masks.kept - chosen.kept == group.remove
        masks = chosen


def test_a_floor_that_cannot_be_kept_is_refused():
    masks = lt.Masks.ones({"a": (10,), "b": (10,)})
    scores = ArrayScores({"a": np.arange(10.0), "b": np.arange(10.0)})
    with pytest.raises(InvalidValueError, match="remove 17 of the 20 .* 4 of them have to stay"):
        select(scores, masks, [Group(("a", "b"), 17, 2)])
    assert select(scores, masks, [Group(("a", "b"), 16, 2)]).kept == 4


# ---- through the front door


def torch_model():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(2, 6, 3), torch.nn.ReLU(), torch.nn.Flatten(),
        torch.nn.Linear(96, 20), torch.nn.ReLU(), torch.nn.Linear(20, 4),
    )  # fmt: skip
    return model, torch.zeros(1, 2, 6, 6)


TOTAL = 108 + 1920 + 80


@pytest.mark.parametrize("scope", [*OFFERED, *MORE.values()], ids=[*OFFERED, *MORE])
def test_every_allocation_prunes_a_model_exactly_in_rounds_that_nest(scope):
    model, example = torch_model()
    search = lt.find_ticket(
        model, lambda m: step(m, example), rounds=3, sparsity=0.75,
        scope=scope, example=example,
    )  # fmt: skip
    for before, after in zip(search.rounds, search.rounds[1:], strict=False):
        assert after.masks.nested_in(before.masks)
    if scope != "layer":
        assert search.ticket.masks.kept == TOTAL - round(0.75 * TOTAL)
    told = search.ticket.provenance
    assert told["scope"] == scope
    assert told["goal"] == {"sparsity": 0.75}


def step(model, example):
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(example + 1).square().sum().backward()
        optimizer.step()


def test_a_floor_keeps_a_layer_alive_that_global_magnitude_empties():
    model, example = torch_model()
    model[5].weight.data *= 1e-6
    with pytest.warns(UserWarning, match="no weight survives"):
        lt.prune(model, 0.8, example=example).release()
    model, example = torch_model()
    model[5].weight.data *= 1e-6
    hold = lt.prune(model, 0.8, scope={"name": "floor", "survivors": 7}, example=example)
    assert hold.masks.counts["5.weight"] == (7, 80)
    assert hold.masks.kept == TOTAL - round(0.8 * TOTAL)
    weights = np.abs(model[5].weight.detach().numpy())
    fresh, _ = torch_model()
    best = np.sort(np.abs(fresh[5].weight.detach().numpy()) * np.float32(1e-6), axis=None)[-7:]
    assert np.array_equal(np.sort(weights[weights > 0]), best)


def test_floors_hold_in_a_pruning_of_several_passes():
    from ltcore.criteria import FunctionCriterion

    model, example = torch_model()
    model[5].weight.data *= 1e-6
    rule = FunctionCriterion("five", lambda p: np.abs(p.weight), passes=5)
    scope = {"name": "floor", "survivors": 0.1}
    hold = lt.prune(model, 0.85, criterion=rule, scope=scope, example=example)
    assert hold.masks.kept == TOTAL - round(0.85 * TOTAL)
    assert hold.masks.counts["5.weight"] == (8, 80)


def test_a_fraction_may_be_typed_and_is_told_as_a_number():
    model, example = torch_model()
    search = lt.find_ticket(model, lambda m: step(m, example), rounds=1, rate=Fraction(1, 3))
    assert search.ticket.provenance["goal"] == {"rate": pytest.approx(1 / 3)}
    mapping = {"*": Fraction(1, 3)}
    lt.held(model).release()
    search = lt.find_ticket(model, lambda m: step(m, example), rounds=2, sparsity=mapping)
    assert search.ticket.masks.kept == TOTAL - round(TOTAL / 3)
    assert search.ticket.provenance["goal"] == {"sparsity": {"*": pytest.approx(1 / 3)}}


# ---- the suite notices


BROKEN = {
    "test_groups_are_disjoint_and_known": lambda goal, masks, infos: [
        Group(tuple(masks), 0), Group(tuple(masks)[:1], 0),
    ],
    "test_counts_can_be_removed": lambda goal, masks, infos: [Group(tuple(masks), 10**6)],
    "test_the_total_is_exact": lambda goal, masks, infos: [Group(tuple(masks), 1)],
    "test_same_input_same_groups": lambda goal, masks, infos: [
        Group(tuple(masks), int(np.random.default_rng().integers(100)))
    ],
}  # fmt: skip


@pytest.mark.parametrize("test", BROKEN)
def test_suite_notices(test):
    class Suite(AllocationConformance):
        allocation = staticmethod(BROKEN[test])
        exact = True

    with pytest.raises(AssertionError):
        getattr(Suite(), test)(Rate(0.2), {})


def test_suite_notices_rounds_that_do_not_end_where_they_should():
    class Suite(AllocationConformance):
        allocation = staticmethod(by_layer)  # rounds each layer by itself
        exact = True

    with pytest.raises(AssertionError, match="weights are left"):
        Suite().test_rounds_nest({})


# ---- what is not pruned at all


def test_an_output_that_is_not_pruned_leaves_no_hidden_layer_in_its_place():
    infos = infos_of([(20, 20)] * 3, outputs=0)
    masks = whole(infos)
    left = kept_after(SmartRatio(0.9)(Sparsity(0.8), masks, infos), masks)
    assert left == {"p0": 144, "p1": 72, "p2": 24}  # 12 : 6 : 2, and none at 0.9
    spared = lambda rule: {n for g in rule(Rate(0.1), masks, infos) for n in g.names}  # noqa: E731
    assert spared(KeepDense()) == {"p1", "p2"}
    assert spared(KeepDense(last=2)) == {"p1"}
    assert spared(KeepDense(first=0, last=0)) == {"p0", "p1", "p2"}


@pytest.mark.parametrize("scope", ["smart-ratio", "keep-dense"])
def test_the_pattern_leaves_the_output_dense_and_no_other(scope):
    net = NumpyModel([Linear(8, 8), Linear(8, 8), Linear(8, 8), Linear(8, 4)])
    with pytest.warns(UserWarning, match="an output layer"):
        hold = lt.prune(net, 0.5, pattern="channel", scope=scope)
    kept = {name: count for name, (count, _) in hold.masks.counts.items()}
    assert kept["layers.3.weight"] == 32
    assert kept["layers.2.weight"] < 32
    hidden = lt.prune(
        NumpyModel([Linear(8, 8), Linear(8, 8), Linear(8, 4)]), 0.4, scope=scope,
        prunable=["layers.0.weight", "layers.1.weight"],
    )  # fmt: skip
    assert hidden.masks.counts["layers.1.weight"][0] < 32


@pytest.mark.parametrize("kernel", [True, False])
def test_erk_takes_a_parameter_without_axes(kernel):
    infos = infos_of([(), (4, 5)])
    masks = whole(infos)
    left = kept_after(Erk(kernel)(Sparsity(0.5), masks, infos), masks)
    assert left == {"p0": 1, "p1": 9}


def test_keep_dense_under_a_rate_runs_out_as_its_page_says():
    infos = infos_of([(5, 5), (5, 10), (5, 5)])
    masks = whole(infos)
    for kept in (80, 64, 51):
        counts = kept_after(KeepDense()(Rate(0.2), masks, infos), masks)
        flags = np.arange(50).reshape(5, 10) < counts["p1"]
        masks = lt.Masks({**masks, "p1": flags})
        assert masks.kept == kept
    with pytest.raises(InvalidValueError, match="kept dense the others have 1"):
        KeepDense()(Rate(0.2), masks, infos)
    with pytest.raises(InvalidValueError, match="p2"):
        KeepDense(first=0)(Sparsity({"*": 0.8, "p2": 0.5}), whole(infos), infos)
    sparse = KeepDense(first=0)(Sparsity({"*": 0.5, "p2": 0}), whole(infos), infos)
    assert sum(group.remove for group in sparse) == 38


def test_the_suite_knows_what_a_goal_means():
    def nothing(goal, masks, infos):
        return []

    def always_some(goal, masks, infos):
        return [Group(tuple(masks), 20)]

    def sparsity_as_rate(goal, masks, infos):
        return by_layer(Rate(goal.amounts), masks, infos)

    def told(allocation, test, *args):
        members = {"allocation": staticmethod(allocation), "honours_goal": True}
        broken = type("Suite", (AllocationConformance,), members)
        with pytest.raises(AssertionError) as caught:
            getattr(broken(), test)(*args)
        on_purpose = type("Suite", (broken,), {"honours_goal": False})
        getattr(on_purpose(), test)(*args)
        return str(caught.value)

    assert "0 are removed" in told(nothing, "test_the_goal_is_honoured", Sparsity(0.8), {})
    assert "removes nothing, not 20" in told(always_some, "test_nothing_goes_at_zero", {})
    same = "test_a_rate_is_of_the_rest_and_a_sparsity_of_all"
    assert "a sparsity of all weights" in told(sparsity_as_rate, same)


# ---- a pruning says where its goal is missed


def two_layers():
    return torch.nn.Sequential(torch.nn.Linear(25, 20), torch.nn.Linear(20, 12, bias=False))


def half_of_each(goal, masks, infos):
    return [Group((name,), masks.counts[name][0] // 2) for name in masks]


@pytest.mark.parametrize(
    ("scope", "removed"),
    [(half_of_each, 370), (lambda goal, masks, infos: [], 0)],
    ids=["half", "nothing"],
)
def test_a_pruning_warns_of_a_goal_that_is_missed(scope, removed):
    with pytest.warns(
        UserWarning, match=f"removes {removed} of 740 weights where.* for 666"
    ) as all_:
        lt.prune(two_layers(), 0.9, scope=scope)
    assert len(all_) == 1
    assert scope.__name__ in str(all_[0].message)
    assert all_[0].filename == __file__


def test_a_pattern_counts_its_units():
    with pytest.warns(UserWarning, match="removes 10 of 20 units where the goal asks for 18"):
        lt.prune(two_layers(), 0.9, scope=half_of_each, pattern="channel", prunable="0.weight")


@pytest.mark.parametrize("allocation", ALL)
@given(data=st.data())
@settings(max_examples=25, suppress_health_check=[HealthCheck.differing_executors])
def test_no_allocation_of_ours_misses_a_goal(allocation, data):
    infos = infos_of(data.draw(shapes))
    masks = whole(infos)
    amounts = st.integers(0, 99).map(lambda percent: Fraction(percent, 100))
    goals = st.lists(st.builds(data.draw(st.sampled_from([Rate, Sparsity])), amounts), max_size=3)
    for goal in [*data.draw(goals), Sparsity(Fraction(1, 2))]:
        try:
            groups = ask(allocation, goal, masks, infos)
        except InvalidValueError:
            return
        wanted = asked(goal, masks, infos)
        assert wanted.least <= sum(group.remove for group in groups) <= wanted.most
        rng = np.random.default_rng(0)
        masks = select(
            ArrayScores({n: rng.random(m.shape) for n, m in masks.items()}), masks, groups
        )


@pytest.mark.parametrize("found", [None, {"0.weight": 3}, [("0.weight", 3)], 7])
def test_what_is_no_group_is_refused(found):
    def broken(goal, masks, infos):
        return found

    with pytest.raises(InvalidValueError, match="allocation 'broken' returned .*list of"):
        lt.prune(two_layers(), 0.9, scope=broken)


def test_an_allocation_of_other_arguments_is_refused_and_its_own_errors_are_its_own():
    with pytest.raises(
        InvalidValueError, match=r"'two' cannot be called as .*\(goal, masks, infos"
    ):
        lt.prune(two_layers(), 0.9, scope=two)
    with pytest.raises(TypeError, match="unsupported operand"):
        lt.prune(two_layers(), 0.9, scope=lambda goal, masks, infos: 1 + None)


def two(goal, masks):
    return []


@pytest.mark.parametrize("amounts", [0.5, {"0.*": 0.5}])
def test_a_sparsity_below_what_is_gone_is_told(amounts):
    model = two_layers()
    lt.prune(model, 0.9, scope="layer")
    with pytest.warns(UserWarning, match=r"nothing is pruned: \d+ of \d+ weights are gone") as all_:
        lt.prune(model, amounts)
    assert all_[0].filename == __file__
    before = lt.held(model).masks
    lt.prune(model, 0.9)
    assert lt.held(model).masks == before


@pytest.mark.parametrize(
    "given", [{"prunable": [0]}, {"prunable": [["0.weight"]]}, {"prunable": [torch.nn.ReLU()]},
              {"sparsity": {0: 0.5}}]
)  # fmt: skip
def test_a_selector_is_text(given):
    with pytest.raises(
        SelectorError, match=f"{next(iter(given))}: .* is no selector; expected text"
    ):
        lt.prune(two_layers(), **{"sparsity": 0.5, **given})
