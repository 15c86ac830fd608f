"""Patterns: equality with slow references and with torch's own, and zeros that stay in both."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ltcore as lt
from ltcore.allocation import Rate, Sparsity, by_global, by_layer
from ltcore.discovery import registry
from ltcore.errors import InvalidValueError, NonFiniteError, SelectorError
from ltcore.nm_pattern import NM
from ltcore.options import allocation_from, pattern_from, prunable_from
from ltcore.parameters import ParamInfo, in_canonical_order
from ltcore.patterns import Cut
from ltcore.pruning import Pruning, check_goals, next_masks
from ltcore.scoring import ArrayScores
from ltcore.select import select
from ltcore.selectors import resolve
from ltcore.shares import Erk, uniform
from ltcore.signals import Subject
from ltcore.testing import Linear, NumpyModel, PatternConformance
from ltcore.ticket import resolve_backend
from ltcore.unit_patterns import Block, Channel, InputChannel
from ltcore.weight_criteria import magnitude

OFFERED = [name for name, offer in registry().offers["pattern"].items()
           if offer.spec.target.startswith("ltcore.") and name != "n:m"]  # fmt: skip
MORE = {
    "2:4": "2:4", "1:2": "1:2", "4:8": "4:8", "3:4": "3:4", "1:8": "1:8",
    "block 2x8": {"name": "block", "shape": [2, 8]},
    "block 8x1": {"name": "block", "shape": [8, 1]},
    "channel l2": {"name": "channel", "norm": "l2"},
}  # fmt: skip

for _name, _given in {**{n: n for n in OFFERED}, **MORE}.items():
    globals()[f"Test_{_name}"] = type(
        f"Test_{_name}", (PatternConformance,), {"pattern": pattern_from(_given)}
    )


def info_of(kind, shape, role="weight", output=False, name="p"):
    return ParamInfo(f"{name}.{role}", kind, role, shape, output, True)


def pruned(pattern, scores, masks, infos, goal, allocation=by_global):
    """Return units and weights' masks after one pruning."""
    pieces = Cut(pattern, tuple(infos))
    units = pieces.masks(masks)
    groups = allocation(goal, units, pieces.unit_infos(units))
    units = select(pieces.scores(ArrayScores(scores), masks), units, groups)
    return units, pieces.spread(units, masks)


# ---- n:m


def groups_of(array, axis, m):
    """Yield the index of every group of m, in plain Python."""
    for index in itertools.product(*(range(s) for i, s in enumerate(array.shape) if i != axis)):
        for start in range(0, array.shape[axis], m):
            yield [(*index[:axis], start + k, *index[axis:]) for k in range(m)]


def brute_nm(scores, axis, n, m):
    mask = np.ones(scores.shape, bool)
    for group in groups_of(scores, axis, m):
        for place in sorted(group, key=lambda p: (scores[p], [-i for i in p]))[: m - n]:
            mask[place] = False
    return mask


LAYERS = [("linear", (6, 16), 1), ("conv", (3, 16, 3, 2), 1), ("conv_transpose", (16, 3, 2), 0)]


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_nm_equals_brute_force_under_any_scope(data):
    n, m = data.draw(st.sampled_from([(2, 4), (1, 2), (4, 8), (3, 4), (1, 16)]))
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    levels = data.draw(st.sampled_from([2, 9, 10**9]))
    allocation = data.draw(st.sampled_from([by_global, by_layer, uniform]))
    infos = [info_of(kind, shape, name=kind) for kind, shape, _ in LAYERS]
    scores = {i.name: (rng.integers(0, levels, i.shape) - levels // 2) * 10.0**rng.integers(-9, 9)
              for i in infos}  # fmt: skip
    masks = lt.Masks.ones({info.name: info.shape for info in infos})
    pattern = NM(n, m)
    goal = Sparsity(pattern.sparsity)
    _, chosen = pruned(pattern, scores, masks, infos, goal, allocation)
    for info, (_, _, axis) in zip(infos, LAYERS, strict=True):
        assert np.array_equal(chosen[info.name], brute_nm(scores[info.name], axis, n, m))


@pytest.mark.parametrize("allocation", [by_global, by_layer, uniform])
def test_nm_nests_over_rounds_takes_the_lowest_first_and_ends_at_nm(allocation):
    rng = np.random.default_rng(0)
    infos = [info_of(kind, shape, name=kind) for kind, shape, _ in LAYERS]
    masks = lt.Masks.ones({info.name: info.shape for info in infos})
    for sparsity in (0.1, 0.25, 0.3, 0.5):
        scores = {info.name: rng.standard_normal(info.shape) for info in infos}
        before = masks
        _, masks = pruned(NM(2, 4), scores, masks, infos, Sparsity(sparsity), allocation)
        assert masks.nested_in(before)
        if allocation is not by_layer:
            assert masks.total - masks.kept == round(sparsity * masks.total)
        if sparsity <= 0.25:  # one a group
            for info, (_, _, axis) in zip(infos, LAYERS, strict=True):
                gone = [sum(not masks[info.name][p] for p in g)
                        for g in groups_of(masks[info.name], axis, 4)]  # fmt: skip
                assert max(gone) <= 1
    for info, (_, _, axis) in zip(infos, LAYERS, strict=True):
        mask = masks[info.name]
        assert all(sum(mask[p] for p in g) == 2 for g in groups_of(mask, axis, 4))


def test_nm_on_the_way_takes_what_scores_lowest_of_the_lowest():
    info = info_of("linear", (1, 8))
    scores = {"p.weight": np.array([[0.5, 9, 8, 7, 3, 0.1, 0.2, 5]])}
    masks = lt.Masks.ones({"p.weight": (1, 8)})
    _, chosen = pruned(NM(2, 4), scores, masks, [info], Sparsity(0.125))
    assert np.flatnonzero(~chosen["p.weight"][0]).tolist() == [5]
    _, chosen = pruned(NM(2, 4), scores, masks, [info], Sparsity(0.25))
    assert np.flatnonzero(~chosen["p.weight"][0]).tolist() == [0, 5]
    _, chosen = pruned(NM(2, 4), scores, masks, [info], Sparsity(0.375))
    assert np.flatnonzero(~chosen["p.weight"][0]).tolist() == [0, 5, 6]


def test_nm_after_an_unstructured_pruning_still_ends_at_nm():
    rng = np.random.default_rng(1)
    info = info_of("linear", (40, 16))
    for keep in (0.9, 0.5, 0.1):
        masks = lt.Masks({"p.weight": rng.random(info.shape) < keep})
        scores = {"p.weight": rng.standard_normal(info.shape)}
        units, chosen = pruned(NM(2, 4), scores, masks, [info], Sparsity(0.5))
        assert chosen.nested_in(masks)
        left = [sum(chosen["p.weight"][p] for p in g)
                for g in groups_of(chosen["p.weight"], 1, 4)]  # fmt: skip
        had = [sum(masks["p.weight"][p] for p in g) for g in groups_of(masks["p.weight"], 1, 4)]
        assert left == [min(2, h) for h in had]
        assert units.kept == units.total // 2


def test_nm_tells_scores_apart_that_are_tiny_equal_or_of_either_sign():
    info = info_of("linear", (1, 4))
    for scores in ([1e-30, 2e-30, 3e-30, 4e-30], [-4, -3, -2, -1], [-1e-9, -0.0, 1e-9, 1e9],
                   [-np.inf, -1, 0.0, np.inf]):  # fmt: skip
        for order in itertools.permutations(range(4)):
            row = np.array([[scores[i] for i in order]])
            pooled = NM(2, 4).pool(row, np.ones((1, 4), bool), info)
            assert np.argsort(pooled[0]).tolist() == np.argsort(row[0]).tolist()
    zeros = np.array([[0.0, -0.0, -0.0, 0.0]])
    pooled = NM(2, 4).pool(zeros, np.ones((1, 4), bool), info)
    assert np.argsort(-pooled[0]).tolist() == [0, 1, 2, 3]  # of equal ones the earlier stays


def test_2_4_equals_torchs_sparsifier():
    torch = pytest.importorskip("torch")
    from torch.ao.pruning import WeightNormSparsifier

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(32, 16, bias=False))
    weight = model[0].weight.detach().numpy().copy()
    sparsifier = WeightNormSparsifier(
        sparsity_level=1.0, sparse_block_shape=(1, 4), zeros_per_block=2
    )
    sparsifier.prepare(model, config=[{"tensor_fqn": "0.weight"}])
    sparsifier.step()
    theirs = model[0].parametrizations.weight[0].mask.numpy() != 0
    masks = lt.Masks.ones({"p.weight": weight.shape})
    infos = [info_of("linear", weight.shape)]
    _, ours = pruned(NM(2, 4), {"p.weight": np.abs(weight)}, masks, infos, Sparsity(0.5))
    assert np.array_equal(ours["p.weight"], theirs)


@pytest.mark.parametrize(
    "bad", [(0, 4), (4, 4), (5, 4), (2.0, 4), (True, 2), (2, 128), ("2", 4)], ids=str
)
def test_nm_takes_whole_numbers(bad):
    with pytest.raises(InvalidValueError, match="pattern n:m is"):
        NM(*bad)


# ---- blocks and channels


@pytest.mark.parametrize("shape", [(2, 2), (4, 8), (1, 4), (3, 1)])
@pytest.mark.parametrize(
    ("kind", "size", "axes"),
    [("linear", (12, 16), (0, 1)), ("conv", (12, 8, 3, 2), (0, 1)),
     ("conv_transpose", (8, 12, 2), (1, 0)), ("lstm", (24, 8), (0, 1))],
)  # fmt: skip
def test_blocks_equal_brute_force(shape, kind, size, axes):
    rng = np.random.default_rng(0)
    info = info_of(kind, size, "w_ih" if kind == "lstm" else "weight")
    scores = rng.standard_normal(size).astype(np.float32)
    masks = lt.Masks.ones({info.name: size})
    _, chosen = pruned(Block(shape), {info.name: scores}, masks, [info], Sparsity(0.4))

    tiles = []
    rest = [range(s) for i, s in enumerate(size) if i not in axes]
    for out in range(0, size[axes[0]], shape[0]):
        for inp in range(0, size[axes[1]], shape[1]):
            for kernel in itertools.product(*rest):
                where = [0] * len(size)
                where[axes[0]], where[axes[1]] = (
                    slice(out, out + shape[0]),
                    slice(inp, inp + shape[1]),
                )
                for axis, k in zip(
                    [i for i in range(len(size)) if i not in axes], kernel, strict=True
                ):
                    where[axis] = k
                tiles.append((scores[tuple(where)].astype(np.float64).mean(), tuple(where)))
    expected = np.ones(size, bool)
    for _, where in sorted(tiles, key=lambda t: t[0])[: int(0.4 * len(tiles) + 0.5)]:
        expected[where] = False
    assert np.array_equal(chosen[info.name], expected)


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.75])
def test_channels_equal_torchs_ln_structured(norm, dim, conv, sparsity):
    torch = pytest.importorskip("torch")
    from torch.nn.utils import prune

    torch.manual_seed(0)
    layer = torch.nn.Conv2d(8, 12, 3) if conv else torch.nn.Linear(8, 12)
    weight = layer.weight.detach().numpy().copy()
    pattern = (Channel if dim == 0 else InputChannel)(norm)
    info = info_of("conv" if conv else "linear", weight.shape)
    masks = lt.Masks.ones({info.name: weight.shape})
    _, chosen = pruned(pattern, {info.name: np.abs(weight)}, masks, [info], Sparsity(sparsity))
    prune.ln_structured(layer, "weight", amount=sparsity, n=int(norm[1]), dim=dim)
    assert np.array_equal(chosen[info.name], layer.weight_mask.numpy() != 0)


@pytest.mark.parametrize("pattern", [Channel(), Channel("l2"), InputChannel("l2"), Block((2, 2))])
def test_units_of_unlike_size_compete_by_what_a_weight_scores(pattern):
    """Layers with weights of one size lose alike, however large their units are."""
    infos = [info_of("linear", (40, 6), name="a"), info_of("conv", (40, 60, 3, 3), name="b")]
    scores = {info.name: np.ones(info.shape, np.float32) for info in infos}
    masks = lt.Masks.ones({info.name: info.shape for info in infos})
    pieces = Cut(pattern, tuple(infos))
    pooled = pieces.scores(ArrayScores(scores), masks)
    for info in infos:
        assert np.allclose(pooled.block(info.name, slice(None)), 1)


def test_l2_of_negative_scores_is_refused_and_l1_takes_them_as_given():
    info = info_of("linear", (3, 2))
    scores, mask = np.array([[-1.0, -1], [-3, -3], [1, 1]]), np.ones((3, 2), bool)
    assert Channel().pool(scores, mask, info).tolist() == [-1, -3, 1]
    with pytest.raises(InvalidValueError, match=r"norm='l2'.*-3.*norm='l1'"):
        Channel("l2").pool(scores, mask, info)


def test_nan_scores_are_found_below_a_pattern():
    info = info_of("linear", (8, 8))
    scores = np.ones((8, 8))
    scores[3, 3] = np.nan
    masks = lt.Masks.ones({info.name: (8, 8)})
    for pattern in (NM(2, 4), Block(), Channel(), InputChannel("l2")):
        with pytest.raises(NonFiniteError, match=r"p\.weight"):
            pruned(pattern, {info.name: scores}, masks, [info], Sparsity(0.5))


def test_misfits_say_why():
    fits = {
        ("linear", "weight", (8, 8)): "2:4 block channel input-channel",
        ("linear", "weight", (6, 6)): "channel input-channel",
        ("linear", "bias", (8,)): "channel",
        ("conv", "weight", (8, 8, 3, 3)): "2:4 block channel input-channel",
        ("depthwise", "weight", (8, 1, 3, 3)): "channel",
        ("conv_transpose", "weight", (8, 6, 3, 3)): "2:4 channel input-channel",
        ("lstm", "w_ih", (32, 8)): "2:4 block input-channel",
        ("lstm", "w_hh", (32, 8)): "2:4 block input-channel",
        ("lstm", "bias", (32,)): "",
        ("embedding", "weight", (8, 8)): "channel",
        ("batchnorm", "weight", (8,)): "",
        ("raw", "kernel", (8, 8)): "",
    }
    for (kind, role, shape), names in fits.items():
        for name in ("2:4", "block", "channel", "input-channel"):
            reason = pattern_from(name).misfit(info_of(kind, shape, role))
            assert bool(reason) == (name not in names.split()), (kind, role, name, reason)
    assert "6 inputs are no multiple of 4" in NM(2, 4).misfit(info_of("linear", (6, 6)))
    assert "output layer" in Channel().misfit(info_of("linear", (8, 8), output=True))
    assert "gate" in Channel().misfit(info_of("gru", (24, 8), "w_hh"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("n:m", "'n:m' does not take"),
        ("4:2", "pattern n:m is 4:2"),
        ({"name": "block", "shape": 4}, r"block shape is 4"),
        ({"name": "block", "shape": (4, 0)}, r"block shape is \(4, 0\)"),
        ({"name": "block", "shape": (1, 1)}, r"block shape is \(1, 1\)"),
        ({"name": "block", "shape": (4, 4, 4)}, r"block shape is \(4, 4, 4\)"),
        ({"name": "channel", "norm": "l3"}, "norm is 'l3'"),
        ({"name": "channel", "axis": 1}, "'channel' does not take"),
        (4, "pattern is 4"),
    ],
)
def test_bad_patterns_are_refused(given, message):
    with pytest.raises(InvalidValueError, match=message):
        pattern_from(given)


def test_a_goal_beyond_the_pattern_says_what_it_allows():
    infos = [info_of("linear", (8, 8), name="a"), info_of("linear", (32, 32), name="b")]
    scores = {
        info.name: np.arange(float(np.prod(info.shape))).reshape(info.shape) for info in infos
    }
    masks = lt.Masks.ones({info.name: info.shape for info in infos})
    asked = ((by_global, Sparsity(0.51)), (Erk(), Sparsity(0.5)), (by_layer, Rate(0.6)))
    for allocation, goal in asked:
        units, _ = pruned(NM(2, 4), scores, masks, infos, goal, allocation)
        with pytest.raises(
            InvalidValueError, match=r"'2:4' lets \d+ of the \d+ units.*at most 0.5"
        ):
            Cut(NM(2, 4), tuple(infos)).check(units)


# ---- through the front door, in both frameworks


@pytest.fixture(scope="module")
def built():
    """A conv net with a flatten in PyTorch and in Keras, with equal weights."""
    torch, keras = pytest.importorskip("torch"), pytest.importorskip("keras")
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(4, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 16, 3), torch.nn.ReLU(),
        torch.nn.Flatten(), torch.nn.Linear(64, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4),
    )  # fmt: skip
    layers = keras.layers
    twin = keras.Sequential([
        layers.Input((6, 6, 4)), layers.Conv2D(8, 3, activation="relu"),
        layers.Conv2D(16, 3, activation="relu"), layers.Flatten(),
        layers.Dense(16, activation="relu"), layers.Dense(4),
    ])  # fmt: skip
    images = np.random.default_rng(0).standard_normal((8, 4, 6, 6)).astype(np.float32)
    first, last = torch.from_numpy(images), np.ascontiguousarray(np.moveaxis(images, 1, -1))
    lt.hold(model, "nonzero")
    ticket = lt.Ticket.from_model(model, example=first[:1])
    ticket.apply(twin, example=last[:1]).release()
    lt.held(model).release()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    return SimpleNamespace(
        model=model, state=state, images=first, keras=twin, weights=twin.get_weights(), last=last
    )


@pytest.fixture
def twins(built):
    """The two with their first weights."""
    built.model.load_state_dict(built.state)
    built.keras.set_weights(built.weights)
    return built


def canonical(hold):
    ordered = in_canonical_order(hold.masks, hold.structure)
    return [ordered[name] for name in hold.masks]


CHOICES = {
    "2:4": {}, "1:4": {}, "channel": {"sparsity": 0.5},
    "input-channel": {"sparsity": 0.3}, "block": {"sparsity": 0.5},
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:pattern '(channel|block)' leaves:UserWarning")
@pytest.mark.filterwarnings("ignore:no weight survives:UserWarning")
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("pattern", CHOICES)
def test_both_frameworks_get_the_same_masks_and_keep_them(twins, pattern, scope):
    torch, keras = pytest.importorskip("torch"), pytest.importorskip("keras")
    model, twin, images = twins.model, twins.keras, twins.images
    options = {"pattern": pattern, "scope": scope, **CHOICES[pattern]}
    with (
        lt.prune(model, example=images[:1], **options) as ours,
        lt.prune(twin, example=twins.last[:1], **options) as theirs,
    ):
        masks = canonical(ours)
        for a, b in zip(masks, canonical(theirs), strict=True):
            assert np.array_equal(a, b)
        assert any(not mask.all() for mask in masks)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            model(images).square().mean().backward()
            optimizer.step()
        twin.compile(keras.optimizers.AdamW(0.01), "mse")
        twin.fit(twins.last, np.zeros((8, 4), np.float32), epochs=3, verbose=0)
        ours.check()
        theirs.check()
        kernels = [model[i].weight.detach().numpy() for i in (0, 2, 5, 7)]
        for kernel, mask in zip(kernels, masks, strict=True):
            assert not kernel[~mask].any()
            assert (kernel[mask] != 0).all()


def test_2_4_needs_no_sparsity_and_holds_along_the_canonical_inputs(twins):
    model = twins.model
    with lt.prune(model, pattern={"name": "2:4"}) as hold:
        assert hold.masks.sparsity == 0.5
        for i in (0, 2, 5, 7):
            mask = hold.masks[f"{i}.weight"]
            assert all(sum(mask[p] for p in g) == 2 for g in groups_of(mask, 1, 4))
        again = lt.prune(model, pattern="2:4")
        assert again.masks == hold.masks
    with lt.prune(
        twins.keras, pattern="2:4"
    ) as hold:  # behind the flatten: not along Keras's memory
        native = [mask for name, mask in hold.masks.items() if mask.shape == (16, 64)][0]
        assert not all(sum(native[p] for p in g) == 2 for g in groups_of(native, 1, 4))


@pytest.mark.parametrize(
    ("asked", "facts"),
    [({"rounds": 4, "rate": 0.2}, "0.5904"), ({"sparsity": 0.6}, "0.6 is"),
     ({"rounds": 3, "sparsity": 0.51}, "0.51 is")],
)  # fmt: skip
def test_a_search_beyond_the_pattern_is_refused_before_it_trains(twins, asked, facts):
    def train(model):
        raise AssertionError("trained")

    with pytest.raises(InvalidValueError, match=f"'2:4' allows a sparsity of 0.5 at most.*{facts}"):
        lt.find_ticket(twins.model, train, pattern="2:4", **asked)
    assert lt.held(twins.model) is None
    with pytest.raises(InvalidValueError, match="0.9 is asked for"):
        lt.prune_gradually(twins.model, 0.9, begin=0, end=8, every=4, pattern="2:4")
    assert lt.held(twins.model) is None


def test_several_passes_end_at_the_pattern(twins):
    from ltcore.criteria import FunctionCriterion

    rule = FunctionCriterion("four", lambda p: np.abs(p.weight), passes=4)
    with lt.prune(twins.model, pattern="4:8", criterion=rule, prunable=["[257].weight"]) as hold:
        for mask in hold.masks.values():
            assert all(sum(mask[p] for p in g) == 4 for g in groups_of(mask, 1, 8))


def test_one_warning_names_all_that_does_not_fit(twins):
    model = twins.model
    with pytest.warns(UserWarning, match="leaves parameters dense") as caught:
        lt.prune(model, pattern="4:8", example=twins.images[:1]).release()
    assert len(caught) == 1
    assert "fit: {'0.weight': '4 inputs are no multiple of 8'}" in str(caught[0].message)
    with pytest.raises(InvalidValueError, match="'1:64' fits no parameter.*4 inputs"):
        lt.prune(model, pattern="1:64", prunable=["0.weight", "2.weight"])


@pytest.mark.parametrize("pattern", ["2:4", {"name": "channel", "norm": "l2"}])
@pytest.mark.filterwarnings("ignore:pattern 'channel' leaves:UserWarning")
def test_a_search_with_a_pattern_nests_and_tells_it(twins, pattern):
    torch = pytest.importorskip("torch")
    model, images = twins.model, twins.images

    def train(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for _ in range(2):
            optimizer.zero_grad()
            model(images).square().mean().backward()
            optimizer.step()

    options = {} if pattern == "2:4" else {"sparsity": 0.5}
    search = lt.find_ticket(
        model, train, rounds=3, pattern=pattern, example=images[:1], **options
    )  # fmt: skip
    search.hold.release()
    for before, after in zip(search.rounds, search.rounds[1:], strict=False):
        assert after.masks.nested_in(before.masks)
        assert after.kept < before.kept
    assert search.ticket.provenance["pattern"] == pattern
    if pattern == "2:4":
        assert search.ticket.masks.sparsity == 0.5
    else:
        masks = search.ticket.masks
        units = [masks[f"{i}.weight"].reshape(masks[f"{i}.weight"].shape[0], -1) for i in (0, 2, 5)]
        assert all((u.all(1) | ~u.any(1)).all() for u in units)
        assert sum(int(u.any(1).sum()) for u in units) == 20  # of 8 + 16 + 16
        assert masks["7.weight"].all()


@pytest.mark.parametrize("scope", ["global", "layer", "erk", "keep-dense", "floor"])
@pytest.mark.parametrize("goal", [Rate, Sparsity])
def test_selectors_of_what_the_pattern_leaves_dense_ask_for_nothing(goal, scope):
    layers = [Linear(8, 8), Linear(8, 8), Linear(8, 8), Linear(8, 4)]
    rule, shape = allocation_from(scope), pattern_from("channel")

    def masks_for(amounts):
        model = NumpyModel(layers)
        backend = resolve_backend(model, None)
        structure = backend.describe(model)
        infos = prunable_from(structure, None)
        start = lt.Masks.ones({info.name: info.shape for info in infos})
        pruning = Pruning(magnitude, rule, goal(amounts), infos, shape)
        with pytest.warns(UserWarning, match="layers.3.weight.*an output layer"):
            check_goals([pruning], start)
        known = {"weight": backend.read(model, structure, start)}
        subject = Subject(backend, model, structure)
        return next_masks(pruning, start, known, subject, np.random.default_rng(0))

    assert masks_for({"*": 0.25, "@output": 0.2}) == masks_for({"*": 0.25})
    assert masks_for({"@output": 0.2}).sparsity == 0
    with pytest.raises(InvalidValueError, match="is 1.5; expected a fraction"):
        masks_for({"*": 0.25, "@output": 1.5})
    with pytest.raises(SelectorError, match="'@conv' matches none"):
        masks_for({"*": 0.25, "@conv": 0.2})


def test_a_selector_that_matches_nothing_is_not_its_own_hint():
    layers = (info_of("linear", (4, 4), name="a"),)
    with pytest.raises(SelectorError) as caught:
        resolve({"@output": 0.5}, layers, "sparsity")
    assert "did you mean '@output'" not in str(caught.value)


def test_prunable_may_name_biases_for_channels(twins):
    model = twins.model
    model[0].bias.data[:] = model[0].bias.data.abs() + 1
    prunable = ["0.weight", "0.bias"]
    with lt.prune(model, 0.5, pattern="channel", scope="layer", prunable=prunable) as hold:
        assert hold.masks.counts == {"0.weight": (144, 288), "0.bias": (4, 8)}


def test_a_class_or_an_object_of_the_users_own_is_a_pattern(twins):
    model = twins.model

    class Rows(Channel):
        name = "rows"

    for pattern in (Rows, Rows(), Channel("l2")):
        model.load_state_dict(twins.state)
        with lt.prune(model, 0.5, pattern=pattern, prunable=["5.weight"]) as hold:
            assert hold.masks.counts["5.weight"] == (512, 1024)


# ---- the suite notices


class Writes(Channel):
    def pool(self, scores, mask, info):
        scores[...] = 0
        return super().pool(scores, mask, info)


class Reshapes(Channel):
    def units(self, mask, info):
        found = super().units(mask, info)
        return found[found] if found.any() else found


class Loses(Channel):
    def units(self, mask, info):
        axis = tuple(range(1, mask.ndim))
        return mask.all(axis=axis) if axis else mask


class CountsPruned(Channel):
    def pool(self, scores, mask, info):
        return super().pool(scores, np.ones_like(mask), info)


class Overreaches(Channel):
    def spread(self, units, info):
        return super().spread(np.roll(units, 1), info)


@pytest.mark.parametrize(
    ("broken", "test"),
    [
        (Writes(), "test_writes_to_no_input"),
        (Reshapes(), "test_shapes_agree"),
        (Loses(), "test_kept_weights_are_in_kept_units"),
        (CountsPruned(), "test_scores_of_pruned_weights_do_not_count"),
        (Overreaches(), "test_units_are_found_again"),
        (Overreaches(), "test_repeated_use_nests"),
    ],
    ids=lambda x: x if isinstance(x, str) else type(x).__name__,
)
def test_suite_notices(broken, test):
    class Suite(PatternConformance):
        pattern = broken

    with pytest.raises(AssertionError):
        getattr(Suite(), test)(info_of("conv", (8, 4, 3, 3)))
