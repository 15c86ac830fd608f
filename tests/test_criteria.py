"""Criteria that need weights only, and criteria around another."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import ltcore as lt
from judged import masks_of, small
from ltcore import discovery
from ltcore.allocation import Sparsity, by_layer
from ltcore.criteria import SIGNALS, FunctionCriterion, Param, as_criterion
from ltcore.errors import InvalidValueError
from ltcore.judging import score, scores_of
from ltcore.options import criterion_from, pattern_from
from ltcore.parameters import ParamInfo
from ltcore.select import select
from ltcore.testing import CriterionConformance, Linear, NumpyModel, Relu
from ltcore.wrapped_criteria import DifferentSign, Inverted, SameSign, Shuffled

WRAPPERS = ("same_sign", "different_sign", "inverted", "shuffled")
INNER = ("magnitude_increase", "random", "synflow", "wanda")


def everything():
    """Return what is registered, wrappers around several others."""
    names = [name for name in discovery.registry().offers["criterion"] if name not in WRAPPERS]
    return [*names, *({"name": w, "criterion": inner} for w in WRAPPERS for inner in INNER)]


def label(given):
    return given if isinstance(given, str) else f"{given['name']}({given['criterion']})"


def param(weight, initial=None, mask=None, **signals):
    weight = np.asarray(weight, np.float32)
    mask = np.ones(weight.shape, bool) if mask is None else np.asarray(mask, bool)
    if initial is not None:
        signals["initial"] = np.asarray(initial, np.float32)
    info = ParamInfo("layer.weight", "linear", "weight", weight.shape, False, True)
    return Param(info, mask, {"weight": weight, **signals}, np.random.default_rng(0))


def scores(named, *arguments, **options):
    return scores_of(criterion_from(named), param(*arguments, **options))


@pytest.mark.parametrize("named", everything(), ids=label)
class TestEveryCriterion(CriterionConformance):
    """The promises, for all that is registered and each wrapper around several others."""

    @pytest.fixture(autouse=True)
    def _chosen(self, named):
        self.named = named

    def rule(self):
        return criterion_from(self.named)


@pytest.mark.parametrize("name", [n for n in everything() if isinstance(n, str)])
def test_a_criterion_has_the_name_it_is_registered_by(name):
    assert criterion_from(name).name == name


FINAL, INIT = [3.0, -1.0, 0.5, -2.0], [1.0, -4.0, -0.25, 2.0]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("magnitude", [3, 1, 0.5, 2]),
        ("large_final", [3, 1, 0.5, 2]),
        ("small_final", [-3, -1, -0.5, -2]),
        ("large_init", [1, 4, 0.25, 2]),
        ("small_init", [-1, -4, -0.25, -2]),
        ("magnitude_increase", [2, -3, 0.25, 0]),
        ("movement", [2, 3, 0.75, 4]),
        # quantiles: of |init| 2/4, 4/4, 1/4, 3/4; of |final| 4/4, 2/4, 1/4, 3/4
        ("large_init_large_final", [0.5, 0.5, 0.25, 0.75]),
        # of -|init| 3/4, 1/4, 4/4, 2/4; of -|final| 1/4, 3/4, 4/4, 2/4
        ("small_init_small_final", [0.25, 0.25, 1, 0.5]),
        ("large_final_same_sign", [3, 1, None, None]),
        ("large_final_different_sign", [None, None, 0.5, 2]),
        ("magnitude_increase_same_sign", [2, -3, None, None]),
        ("magnitude_increase_different_sign", [None, None, 0.25, 0]),
        ({"name": "same_sign", "criterion": "movement"}, [2, 3, None, None]),
        ({"name": "inverted", "criterion": "movement"}, [-2, -3, -0.75, -4]),
    ],
    ids=str,
)
def test_scores_by_hand(name, expected):
    found = scores(name, FINAL, INIT)
    right = [value for value in expected if value is not None]
    assert found[[value is not None for value in expected]].tolist() == right
    wrong = found[[value is None for value in expected]]
    assert all(value < min(right) for value in wrong)
    assert np.isfinite(wrong).all()


finite = st.floats(-8, 8, width=32)


@settings(max_examples=50)
@given(st.data(), st.sampled_from(["large_init_large_final", "small_init_small_final"]))
def test_one_quantile_cuts_both_ends(data, name):
    """As the paper has it: keep what is above one quantile of both, found by trying all."""
    shape = (data.draw(st.integers(1, 30)),)
    draw = hnp.arrays(np.float32, shape, elements=finite, unique=True)
    final, init = data.draw(draw), data.draw(draw)
    mask = data.draw(hnp.arrays(bool, shape))
    sign = -1 if name.startswith("small") else 1
    found = scores(name, final, init, mask)
    kept = int(mask.sum())
    low_i, low_f = (np.sort(sign * np.abs(a[mask])) for a in (init, final))
    for k in range(1, kept + 1):
        above = (sign * np.abs(init) >= low_i[k - 1]) & (sign * np.abs(final) >= low_f[k - 1])
        assert np.array_equal(mask & (found >= k / kept), mask & above)


@pytest.mark.parametrize("inner", ["magnitude", "magnitude_increase", "small_final"])
@pytest.mark.parametrize("wrapper", ["same_sign", "different_sign"])
def test_the_wrong_sign_goes_before_any_of_the_right_sign(wrapper, inner):
    rng = np.random.default_rng(0)
    final, init = rng.standard_normal((2, 40, 30)).astype(np.float32)
    right = (np.sign(final) == np.sign(init)) == (wrapper == "same_sign")
    given = {"weight": {"w": final}, "initial": {"w": init}}
    masks = lt.Masks.ones({"w": final.shape})
    info = ParamInfo("w", "linear", "weight", final.shape, False, True)
    rule = criterion_from({"name": wrapper, "criterion": inner})
    share = 1 - right.mean() + 0.1  # all of the wrong sign, and some more
    judged = score(rule, given, masks, [info], rng)
    chosen = select(judged, masks, by_layer(Sparsity(share), masks, [info]))
    assert not (chosen["w"] & ~right).any()
    plain = scores_of(criterion_from(inner), Param(info, masks["w"], {s: a["w"] for s, a in given.items()}))  # fmt: skip # noqa: E501
    assert plain[chosen["w"]].min() >= plain[right & ~chosen["w"]].max()


def test_blocks_of_wrapped_scores_can_be_summed():
    far = scores("large_final_same_sign", np.ones((500, 500)), -np.ones((500, 500)))
    with np.errstate(all="raise"):
        assert np.isfinite(np.square(far).sum())
        assert np.isfinite(far.sum())


# What is around another criterion


def test_a_wrapper_says_what_the_other_one_says():
    flow = criterion_from({"name": "synflow", "passes": 7})
    assert criterion_from({"name": "inverted", "criterion": flow}).passes == 7
    nested = {"name": "shuffled", "criterion": {"name": "inverted", "criterion": flow}}
    assert criterion_from(nested).passes == 7
    assert criterion_from(nested).needs == {"flow"}
    assert criterion_from({"name": "inverted", "criterion": "magnitude"}).elementwise
    assert criterion_from({"name": "shuffled", "criterion": "magnitude"}).elementwise
    random = {"name": "same_sign", "criterion": "random"}
    assert not criterion_from(random).elementwise
    assert criterion_from(random).needs == {"initial", "rng"}


def test_inversion_keeps_what_would_go():
    model = small()
    kept = {}
    for rule in ("magnitude", {"name": "inverted", "criterion": "magnitude"}):
        kept[str(rule)] = masks_of(model, rule, 0.5, scope="layer")
    one, other = kept.values()
    assert all((one[name] ^ other[name]).all() for name in one)


SHUFFLED = {"name": "shuffled", "criterion": "magnitude"}


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9])
def test_a_shuffle_keeps_counts_and_nests(sparsity):
    model = small()
    before = masks_of(model, "random", 0.3)
    more = 0.3 + 0.7 * sparsity
    plain = masks_of(model, "magnitude", more, masks=before)
    mixed = masks_of(model, SHUFFLED, more, masks=before)
    assert mixed.counts == plain.counts
    assert mixed.nested_in(before)
    assert mixed != plain
    assert mixed == masks_of(model, SHUFFLED, more, masks=before)
    assert mixed != masks_of(model, SHUFFLED, more, masks=before, seed=1)


def test_a_shuffle_is_uniform():
    """Every weight is kept equally often, and so is every pair: chi-square, one in 10**6."""
    before = lt.Masks({"w": np.array([1, 1, 0, 1, 1, 1], bool)})
    chosen = lt.Masks({"w": np.array([1, 1, 0, 0, 0, 0], bool)})
    rule, rng = criterion_from(SHUFFLED), np.random.default_rng(5)
    seen: dict[tuple[int, ...], int] = {}
    for _ in range(5000):
        mask = rule.rearrange(before, chosen, rng)["w"]
        key = tuple(np.flatnonzero(mask).tolist())
        seen[key] = seen.get(key, 0) + 1
    assert len(seen) == 10  # all pairs of 5
    assert sum((count - 500) ** 2 / 500 for count in seen.values()) < 45.7  # 9 degrees of freedom


def test_a_shuffle_of_an_inversion_passes_both_on():
    twice = {"name": "inverted", "criterion": SHUFFLED}
    model = small()
    flat = masks_of(model, twice, 0.5, scope="layer")
    plain = masks_of(model, {"name": "inverted", "criterion": "magnitude"}, 0.5,
                     scope="layer")  # fmt: skip
    assert flat.counts == plain.counts
    assert flat != plain


def test_a_shuffle_is_the_same_in_both_frameworks():
    """Torch and Keras list features behind a flatten in different orders; the masks agree."""
    torch, keras = pytest.importorskip("torch"), pytest.importorskip("keras")
    rng = np.random.default_rng(0)
    conv, dense = rng.standard_normal((3, 2, 2, 2)), rng.standard_normal((4, 3 * 3 * 4))
    one = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 2), torch.nn.Flatten(), torch.nn.Linear(36, 4))
    other = keras.Sequential(
        [keras.layers.Input((4, 5, 2)), keras.layers.Conv2D(3, 2), keras.layers.Flatten(),
         keras.layers.Dense(4)]
    )  # fmt: skip
    with torch.no_grad():
        one[0].weight.copy_(torch.from_numpy(conv))
        one[2].weight.copy_(torch.from_numpy(dense))
    other.layers[0].kernel.assign(conv.transpose(2, 3, 1, 0))
    rows = dense.reshape(4, 3, 3, 4).transpose(2, 3, 1, 0).reshape(36, 4)
    other.layers[2].kernel.assign(rows)
    first = lt.prune(one, 0.5, criterion=SHUFFLED, example=torch.ones(1, 2, 4, 5), seed=3)
    second = lt.prune(other, 0.5, criterion=SHUFFLED, example=np.ones((1, 4, 5, 2)), seed=3)
    left, right = first.masks.values(), second.masks.values()
    mine, theirs = list(left), list(right)
    assert np.array_equal(mine[0], theirs[0])
    back = theirs[1].reshape(4, 3, 4, 3).transpose(0, 3, 1, 2).reshape(4, 36)
    assert np.array_equal(mine[1], back)
    assert first.masks.kept == second.masks.kept == round(0.5 * first.masks.total)


@pytest.mark.parametrize("pattern", [{"name": "block", "shape": [2, 2]}, "channel"])
def test_a_shuffle_moves_whole_units(pattern):
    found = []
    for rule in ("magnitude", SHUFFLED):
        model = NumpyModel([Linear(8, 8), Relu(), Linear(8, 8), Relu(), Linear(8, 4)])
        hold = lt.prune(model, 0.5, criterion=rule, pattern=pattern, example=np.ones((1, 8)),
                        prunable=["layers.0.weight", "layers.2.weight"])  # fmt: skip
        found.append(hold.masks)
        shape = pattern_from(pattern)
        for info in (i for i in hold.structure.infos if i.name in hold.masks):
            units = shape.units(hold.masks[info.name], info)
            assert np.array_equal(shape.spread(units, info), hold.masks[info.name])
    assert found[0].counts == found[1].counts
    assert found[0] != found[1]


def test_a_shuffle_that_would_break_a_pattern_is_refused():
    scored = []
    counted = FunctionCriterion("counted", lambda p: scored.append(p) or p.weight, passes=50)
    model = NumpyModel([Linear(8, 8), Relu(), Linear(8, 4)])
    for rule in (Shuffled(counted), Inverted(Shuffled(counted))):
        with pytest.raises(InvalidValueError, match="rearranges masks, .* pattern '2:4' makes"):
            lt.prune(model, criterion=rule, pattern="2:4")
    assert not scored
    lt.prune(model, criterion=Inverted(counted), pattern="2:4")  # has no last word
    assert scored


@pytest.mark.parametrize("wrapper", [Inverted, Shuffled, SameSign, DifferentSign])
def test_a_wrapper_takes_any_criterion_and_says_how_one_is_named(wrapper):
    def mine(param):
        return param.weight

    assert wrapper(mine).criterion.name.endswith("mine")
    assert scores_of(wrapper(mine), param([1.0, 2.0], [1.0, 2.0])).shape == (2,)
    for named in ("magnitude", {"name": "snip"}):
        with pytest.raises(InvalidValueError, match=f"By name: .*'name': '{wrapper.name}'"):
            wrapper(named)
    with pytest.raises(InvalidValueError, match="criterion is 3"):
        wrapper(3)


def test_the_last_word_comes_after_the_last_pass():
    heard = []

    class Listens:
        name, needs, elementwise, passes = "listens", frozenset(), True, 4

        def score(self, param):
            heard.append("score")
            return abs(param.weight)

        def rearrange(self, before, chosen, rng):
            heard.append((before.kept, chosen.kept))
            return chosen

    model = small()
    result = masks_of(model, Listens(), 0.8)
    assert heard[-1] == (50, 10)
    assert heard.count((50, 10)) == 1
    assert result.kept == 10


def test_what_is_needed_is_known_to_all():
    for named in everything():
        assert criterion_from(named).needs <= set(SIGNALS)
        assert as_criterion(criterion_from(named)).name


def test_a_search_by_movement_keeps_what_moved():
    torch = pytest.importorskip("torch")
    model = torch.nn.Linear(8, 4)
    start = model.weight.detach().clone()
    moves = torch.linspace(-1, 1, 32).reshape(4, 8)

    def train(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        (model.weight * -moves).sum().backward()
        optimizer.step()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the graph is not known: nothing ran forward
        search = lt.find_ticket(model, train, rounds=1, rate=0.5, criterion="movement")
    (mask,) = search.ticket.masks.values()
    assert np.array_equal(mask, (moves.abs() > 0.5).numpy())
    rewound = torch.where(torch.from_numpy(mask.copy()), start, 0.0)
    assert torch.equal(model.weight.detach(), rewound)
    assert search.ticket.provenance["criterion"] == "movement"
