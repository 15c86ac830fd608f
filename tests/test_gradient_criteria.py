"""The gradient criteria: closed forms, slow references, and what their papers promise."""

import itertools

import numpy as np
import pytest

import ltcore as lt
from judged import SIDES, scores
from ltcore.criteria import FunctionCriterion, Param, passes_of
from ltcore.errors import InvalidValueError
from ltcore.judging import scores_of
from ltcore.options import criterion_from
from ltcore.parameters import ParamInfo

NAMES = ("gradient", "snip", "taylor", "fisher", "grasp", "synflow", "wanda")


def param(weight, mask=None, kind="linear", **signals):
    weight = np.asarray(weight, np.float32)
    mask = np.ones(weight.shape, bool) if mask is None else np.asarray(mask, bool)
    arrays = {name: np.asarray(array, np.float32) for name, array in signals.items()}
    info = ParamInfo("layer.weight", kind, "weight", weight.shape, False, True)
    return Param(info, mask, {"weight": weight, **arrays})


def judged(rule, *arguments, **options):
    return scores_of(criterion_from(rule), param(*arguments, **options))


# By hand, on a parameter


@pytest.mark.parametrize(
    ("rule", "signal", "expected"),
    [
        ("gradient", "gradient", [3, 1, 0]),
        ("snip", "gradient", [6, 0.5, 0]),
        ("taylor", "gradient", [36, 0.25, 0]),
        ("fisher", "fisher", [6, 0.125, 0]),
        ("grasp", "hessian_gradient", [-6, -0.5, 0]),
        ("synflow", "flow", [6, 0.5, 0]),
        ({"name": "wanda", "per": "layer"}, "activations", [6, 0.5, 0]),
    ],
    ids=str,
)
def test_scores_by_hand(rule, signal, expected):
    given = [3, 1, 0] if signal in ("fisher", "flow", "activations") else [-3, 1, 0]
    weight = [2, -0.5, 7]
    assert judged(rule, weight, **{signal: given}).tolist() == expected


def test_squares_of_small_numbers_stay_apart():
    tiny = {"gradient": [1e-15, 2e-15], "fisher": [1e-30, 2e-30]}
    for name, signal in (("taylor", "gradient"), ("fisher", "fisher")):
        first, second = judged(name, [1e-10, 1e-10], **{signal: tiny[signal]})
        assert 0 < first < second


def test_wanda_ranks_within_each_output():
    weight = [[1, 3, 2, 2], [10, 40, 30, 20]]
    found = judged("wanda", weight, activations=np.ones((2, 4)))
    assert found.tolist() == [[0.25, 1, 0.75, 0.5], [0.25, 1, 0.75, 0.5]]  # of equals the first


def test_wanda_with_many_ties_ranks_as_a_stable_sort():
    rng = np.random.default_rng(0)
    weight = np.concatenate([rng.integers(-3, 4, (20, 50)), rng.standard_normal((20, 50))])
    mask = rng.random(weight.shape) < 0.8
    found = judged("wanda", weight, mask, activations=np.ones(weight.shape))
    for row, kept, ranks in zip(np.abs(weight).astype(np.float32), mask, found, strict=True):
        best_first = sorted(np.flatnonzero(kept), key=lambda i, row=row: (-row[i], i))
        assert np.allclose(ranks[best_first], np.arange(kept.sum(), 0, -1) / kept.sum())


def test_wanda_ranks_among_the_kept_weights():
    mask = [[1, 0, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]]
    found = judged("wanda", np.tile([1, 2, 3, 4], (3, 1)), mask, activations=np.ones((3, 4)))
    assert found[0][[0, 2]].tolist() == [0.5, 1]
    assert found[1].tolist() == [0.25, 0.5, 0.75, 1]
    assert np.isfinite(found).all()


def test_wanda_knows_where_the_outputs_of_a_transposed_convolution_are():
    weight = np.arange(1, 13).reshape(2, 3, 2)  # (in, out, kernel)
    found = judged("wanda", weight, kind="conv_transpose", activations=np.ones((2, 3, 2)))
    for output in range(3):
        assert sorted(found[:, output].reshape(-1)) == [0.25, 0.5, 0.75, 1]


def test_wanda_does_not_hide_nan():
    found = judged("wanda", [[1, np.nan, 2]], activations=np.ones((1, 3)))
    assert np.isnan(found).tolist() == [[False, True, False]]


@pytest.mark.parametrize("per", ["row", "", None])
def test_wanda_compares_per_output_or_per_layer(per):
    with pytest.raises(InvalidValueError, match=f"per is {per!r}; expected 'output' or 'layer'"):
        criterion_from({"name": "wanda", "per": per})


def test_synflow_takes_the_passes_it_is_given():
    assert passes_of(criterion_from("synflow")) == 100
    assert passes_of(criterion_from({"name": "synflow", "passes": 3})) == 3
    with pytest.raises(InvalidValueError, match="passes 0; expected a whole number"):
        criterion_from({"name": "synflow", "passes": 0})
    with pytest.raises(InvalidValueError, match="does not take 'rounds'.*passes"):
        criterion_from({"name": "synflow", "rounds": 3})


def test_they_come_in_by_the_door():
    from ltcore import discovery

    offers = discovery.registry().offers["criterion"]
    for name in NAMES:
        assert offers[name].spec.target.startswith("ltcore_gradient_criteria.")
        assert not offers[name].spec.requires


# Linear regression: all is known in closed form


@pytest.fixture(params=SIDES)
def side(request):
    if request.param != "numpy":
        pytest.importorskip(request.param)
    return SIDES[request.param]


def regression(side, seed=0, scale=1.0):
    """Return a model ``X w`` with its data, loss ``mean((X w - y)**2)``, gradient and Hessian."""
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((12, 7)), rng.standard_normal((12, 1))
    w = scale * rng.standard_normal((1, 7)).astype(np.float32)
    hessian = 2 * x.T @ x / len(x)
    gradient = 2 * x.T @ (x @ w.T - y) / len(x)
    # Two batches of equal size: the mean of the batches' means is the mean over all.
    batches = [(side.array(x[i : i + 6]), side.array(y[i : i + 6])) for i in (0, 6)]
    return side.dense([w], relu=False), batches, w[0], gradient[:, 0], hessian, x, y


@pytest.mark.parametrize("rule", ["gradient", "snip", "taylor", "fisher", "grasp"])
def test_regression_in_closed_form(side, rule):
    model, batches, w, g, hessian, x, y = regression(side)
    residuals = x @ w[:, None] - y
    expected = {
        "gradient": np.abs(g),
        "snip": np.abs(w * g),
        "taylor": (w * g) ** 2,
        "fisher": 0.5 * w**2 * np.mean((2 * residuals * x) ** 2, axis=0),
        "grasp": w * (hessian @ g),
    }[rule]
    (found,) = scores(model, rule, batches=batches, loss=side.loss).values()
    assert np.abs(found[0] - expected).max() <= 1e-4 * np.abs(expected).max()


def test_grasp_removes_first_what_raises_the_gradient_most_when_gone(side):
    """The sign: small weights, so that the first order decides; all removals are tried."""
    model, batches, w, g, hessian, _, _ = regression(side, seed=1, scale=1e-3)
    (found,) = scores(model, "grasp", batches=batches, loss=side.loss).values()

    def squared_gradient_without(q):
        return np.sum((g - hessian[:, q] * w[q]) ** 2)

    after = [squared_gradient_without(q) for q in range(len(w))]
    assert np.array_equal(np.argsort(found[0]), np.argsort(after)[::-1])
    assert after[int(np.argmin(found[0]))] > np.sum(g**2), "the first to go leaves more gradient"
    hold = lt.prune(model, 1 / 7, criterion="grasp", batches=batches, loss=side.loss)
    assert np.flatnonzero(~hold.masks[next(iter(hold.masks))][0]).tolist() == [np.argmax(after)]


def test_grasp_knows_only_kept_weights(side):
    """Gradient and Hessian are those of the network that is left (both sides of the product)."""
    model, batches, w, _, hessian, x, y = regression(side)
    mask = np.array([[1, 1, 0, 1, 0, 1, 1]], bool)
    kept = mask[0]
    from ltcore.plugins import detect

    backend = detect(model)
    structure = backend.describe(model)
    (name,) = [info.name for info in structure.infos if info.prunable]
    backend.write(model, structure, {name: np.where(mask, w, 0).astype(np.float32)})
    found = scores(model, "grasp", batches=batches, loss=side.loss, masks=lt.Masks({name: mask}))
    gradient = (2 * x.T @ (x @ np.where(kept, w, 0)[:, None] - y) / len(x))[kept, 0]
    expected = w[kept] * (hessian[np.ix_(kept, kept)] @ gradient)
    assert np.allclose(found[name][mask], expected, rtol=1e-3, atol=1e-4 * abs(expected).max())


# Slow references on a small network


def network(side, seed=0, widths=(5, 6, 4, 3), relu=True):
    rng = np.random.default_rng(seed)
    weights = [
        (rng.standard_normal((b, a)) / np.sqrt(a)).astype(np.float32)
        for a, b in itertools.pairwise(widths)
    ]
    x, y = rng.standard_normal((4, widths[0])), rng.standard_normal((4, widths[-1]))
    return weights, side.dense(weights, relu), x, y


def outputs(weights, x, relu=True):
    for weight in weights[:-1]:
        x = x @ weight.T
        x = np.maximum(x, 0) if relu else x
    return x @ weights[-1].T


def loss_at(weights, x, y):
    return np.mean((outputs(weights, x) - y) ** 2)


def by_differences(function, weights, step=1e-5):
    """Return the gradient of ``function(weights)``, one weight at a time, in float64."""
    weights = [weight.astype(np.float64) for weight in weights]
    found = []
    for weight in weights:
        gradient = np.zeros_like(weight)
        for at in np.ndindex(weight.shape):
            here = weight[at]
            weight[at] = here + step
            above = function(weights)
            weight[at] = here - step
            gradient[at] = (above - function(weights)) / (2 * step)
            weight[at] = here
        found.append(gradient)
    return found


def compare(found, expected, tolerance=1e-4):
    largest = max(np.abs(array).max() for array in expected)
    for name, want in zip(found, expected, strict=True):
        assert np.abs(found[name] - want).max() <= tolerance * largest, name


def test_snip_is_the_derivative_by_a_gate_on_each_weight(side):
    """Connection sensitivity as defined: multiply each weight by c, and differentiate at c = 1."""
    weights, model, x, y = network(side)
    gates = [np.ones_like(weight) for weight in weights]
    expected = by_differences(
        lambda c: loss_at([w * gate for w, gate in zip(weights, c, strict=True)], x, y), gates
    )
    found = scores(model, "snip", batches=[(side.array(x), side.array(y))], loss=side.loss)
    compare(found, [np.abs(array) for array in expected])


def test_taylor_is_the_first_order_of_what_the_loss_would_lose(side):
    """For weights so small that the first order is all there is, remove one at a time."""
    weights, _, x, y = network(side)
    weights = [weights[0], 1e-3 * weights[1], weights[2]]
    model = side.dense(weights, relu=False)
    found = scores(model, "taylor", batches=[(side.array(x), side.array(y))], loss=side.loss)
    scored = list(found.values())[1]
    exact = [weight.astype(np.float64) for weight in weights]
    lost = np.empty_like(scored)
    for at in np.ndindex(scored.shape):
        gone = [weight.copy() for weight in exact]
        gone[1][at] = 0
        losses = [np.mean((outputs(w, x, relu=False) - y) ** 2) for w in (exact, gone)]
        lost[at] = (losses[0] - losses[1]) ** 2
    assert np.abs(scored - lost).max() < 0.01 * lost.max()


def test_fisher_is_a_loop_over_examples(side):
    weights, model, x, y = network(side)
    squares = [np.zeros_like(weight) for weight in weights]
    for example, target in zip(x, y, strict=True):
        gradient = by_differences(lambda w, x=example, y=target: loss_at(w, x, y), weights)
        squares = [total + g**2 for total, g in zip(squares, gradient, strict=True)]
    expected = [0.5 * w**2 * s / len(x) for w, s in zip(weights, squares, strict=True)]
    batches = [(side.array(x[i : i + n]), side.array(y[i : i + n])) for i, n in ((0, 3), (3, 1))]
    compare(scores(model, "fisher", batches=batches, loss=side.loss), expected)


def test_grasp_by_differences_of_gradients(side):
    weights, model, x, y = network(side)
    flat = [weight.astype(np.float64) for weight in weights]
    gradient = by_differences(lambda w: loss_at(w, x, y), flat)
    step = 1e-4
    above, below = (
        by_differences(
            lambda w: loss_at(w, x, y),
            [w + sign * step * g for w, g in zip(flat, gradient, strict=True)],
        )
        for sign in (1, -1)
    )
    expected = [w * (a - b) / (2 * step) for w, a, b in zip(flat, above, below, strict=True)]
    found = scores(model, "grasp", batches=[(side.array(x), side.array(y))], loss=side.loss)
    compare(found, expected, 1e-3)


@pytest.mark.parametrize("relu", [False, True])
def test_synflow_of_two_layers_in_closed_form(side, relu):
    weights, model, x, _ = network(side, widths=(5, 6, 3), relu=relu)
    one, two = np.abs(weights[0]).astype(np.float64), np.abs(weights[1]).astype(np.float64)
    expected = [one * two.sum(axis=0)[:, None], two * one.sum(axis=1)[None]]
    found = scores(model, "synflow", example=side.array(x[:1]))
    compare(found, expected, 1e-10)
    assert {array.dtype for array in found.values()} == {np.dtype(np.float64)}


def test_wanda_of_dense_layers_by_a_loop(side):
    weights, model, x, y = network(side)
    inputs = [x, np.maximum(x @ weights[0].T, 0)]
    inputs.append(np.maximum(inputs[1] @ weights[1].T, 0))
    norms = [np.sqrt(np.mean(np.square(a), axis=0)) for a in inputs]
    expected = [np.abs(w) * norm for w, norm in zip(weights, norms, strict=True)]
    batches = [(side.array(x), side.array(y))]
    rule = {"name": "wanda", "per": "layer"}
    compare(scores(model, rule, batches=batches), expected, 1e-5)


def test_wanda_of_a_convolution_by_its_patches():
    torch = pytest.importorskip("torch")
    layer = torch.nn.Conv2d(4, 6, (3, 2), stride=2, padding=1, groups=2)
    x = torch.randn(5, 4, 7, 6)
    patches = torch.nn.functional.unfold(x, (3, 2), stride=2, padding=1)  # (N, in * 6, positions)
    norms = patches.square().mean(dim=(0, 2)).sqrt().reshape(2, 1, 2, 3, 2)
    expected = layer.weight.detach().abs().reshape(2, 3, 2, 3, 2) * norms
    rule = {"name": "wanda", "per": "layer"}
    found = scores(torch.nn.Sequential(layer), rule, batches=[(x, None)])
    compare(found, [expected.reshape(6, 2, 3, 2).numpy()], 1e-5)


def test_wanda_takes_the_same_share_of_every_output(side):
    weights, model, x, y = network(side, widths=(8, 6, 4))
    hold = lt.prune(
        model, 0.5, criterion="wanda", scope="layer", batches=[(side.array(x), side.array(y))]
    )
    hidden = np.maximum(x @ weights[0].T, 0)
    for mask, weight, inputs in zip(hold.masks.values(), weights, (x, hidden), strict=True):
        products = np.abs(weight) * np.sqrt(np.mean(np.square(inputs), axis=0))
        best = np.argsort(-products, axis=1, kind="stable")[:, : weight.shape[1] // 2]
        assert [set(np.flatnonzero(row)) for row in mask] == [set(row) for row in best]


@pytest.mark.parametrize(
    "pattern", ["channel", "input-channel", {"name": "block", "shape": (2, 2)}]
)
def test_wanda_within_outputs_cannot_score_units(side, pattern):
    _, model, x, y = network(side, widths=(8, 6, 4))
    first = "dense.weight" if side.__name__ == "Keras" else "*0.weight"
    options = {"batches": [(side.array(x), side.array(y))], "prunable": [first]}
    for rule in ("wanda", {"name": "inverted", "criterion": "wanda"}):
        with pytest.raises(InvalidValueError, match="same mean in every output; .*'per': 'layer'"):
            lt.prune(model, 0.5, criterion=rule, pattern=pattern, **options)
    rule = {"name": "wanda", "per": "layer"}
    with lt.prune(model, 0.5, criterion=rule, pattern=pattern, **options) as hold:
        assert hold.masks.sparsity == 0.5
    with lt.prune(model, criterion="wanda", pattern="2:4", **options) as hold:
        assert hold.masks.sparsity == 0.5


# What SynFlow promises


class Recorder:
    """SynFlow that writes down what it sees in each pass."""

    name, needs, elementwise = "recorder", frozenset({"flow"}), False

    def __init__(self, passes):
        self.rule = criterion_from({"name": "synflow", "passes": passes})
        self.passes, self.sums, self.kept = passes, [], []

    def score(self, param):
        found = self.rule.score(param)
        self.sums.append(float(found[param.mask].sum()))
        self.kept.append(int(param.mask.sum()))
        return found

    def by_pass(self, values):
        return np.reshape(values, (self.passes, -1))


WIDTHS = (16, 60, 4, 60, 8)


def test_synflow_conserves_the_flow_in_every_pass_and_keeps_to_its_densities(side):
    widths = (4, 6, 3, 2) if side is SIDES["numpy"] else WIDTHS
    _, model, x, _ = network(side, widths=widths)
    recorder = Recorder(20)
    hold = lt.prune(model, 0.9, criterion=recorder, example=side.array(x[:1]))
    sums = recorder.by_pass(recorder.sums)
    assert np.abs(sums / sums[:, :1] - 1).max() < 1e-10, "all layers have the same sum"
    total, density = hold.masks.total, hold.masks.density
    kept = [*recorder.by_pass(recorder.kept).sum(axis=1)[1:], hold.masks.kept]
    expected = [total * density ** (k / 20) for k in range(1, 21)]
    assert np.abs(np.subtract(kept, expected)).max() <= 1
    assert hold.masks.kept == total - round(0.9 * total)


@pytest.mark.parametrize("side", [SIDES["torch"], SIDES["keras"]])
def test_synflow_empties_no_layer_where_one_pass_does(side):
    sparsity = 0.985
    weights, model, x, _ = network(side, widths=WIDTHS)
    hold = lt.prune(model, sparsity, criterion="synflow", example=side.array(x[:1]))
    assert not hold.masks.emptied
    assert hold.masks.sparsity == pytest.approx(sparsity, abs=1e-3)
    once = {"name": "synflow", "passes": 1}
    with pytest.warns(UserWarning, match="no weight survives in"):
        hasty = lt.prune(
            side.dense(weights, True), sparsity, criterion=once, example=side.array(x[:1])
        )
    assert hasty.masks.kept == hold.masks.kept
    left = zip(weights, hold.masks.values(), strict=True)
    paths = [np.abs(weight) * mask for weight, mask in left]
    assert outputs(paths, np.ones((1, WIDTHS[0]))).sum() > 0, "something still flows"


def test_synflow_leaves_the_model_as_it_was_but_for_the_pruning(side):
    weights, model, x, _ = network(side, widths=(4, 3, 2))
    hold = lt.prune(model, 0.5, criterion={"name": "synflow", "passes": 5},
                    example=side.array(x[:1]))  # fmt: skip
    kept = hold.backend.read(model, hold.structure, hold.masks)
    for (name, mask), weight in zip(hold.masks.items(), weights, strict=True):
        assert np.array_equal(kept[name], np.where(mask, weight, 0))


def test_a_shuffled_synflow_prunes_as_many_in_each_layer(side):
    """Shuffling in each pass would change what later passes measure, and so the counts."""
    widths = (4, 6, 3, 2) if side is SIDES["numpy"] else WIDTHS
    found = []
    flow = {"name": "synflow", "passes": 10}
    for rule in (flow, {"name": "shuffled", "criterion": flow}):
        _, model, x, _ = network(side, widths=widths)
        found.append(lt.prune(model, 0.8, criterion=rule, example=side.array(x[:1])).masks)
    assert found[0].counts == found[1].counts
    assert found[0] != found[1]


# What a user forgets


@pytest.mark.parametrize(
    ("name", "missing"),
    [("snip", "batches, loss"), ("grasp", "batches, loss"), ("fisher", "batches, loss"),
     ("taylor", "batches, loss"), ("gradient", "batches, loss"), ("wanda", "batches")],
)  # fmt: skip
def test_what_is_missing_is_named(side, name, missing):
    _, model, _, _ = network(side)
    with pytest.raises(InvalidValueError, match=f"{name!r} needs .* for which {missing} must be"):
        lt.prune(model, 0.5, criterion=name)
    around = {"name": "inverted", "criterion": name}
    with pytest.raises(InvalidValueError, match=f"for which {missing} must be given"):
        lt.prune(model, 0.5, criterion=around)


@pytest.mark.parametrize("side", [SIDES["numpy"], SIDES["torch"]])  # Keras models know inputs
def test_synflow_without_an_example_says_so(side):
    _, model, _, _ = network(side)
    with pytest.raises(InvalidValueError, match="'synflow'.*'flow', needs to know.*give example="):
        lt.prune(model, 0.5, criterion="synflow")


def test_one_reading_of_batches_will_do_for_each(side):
    """A generator is read once; what needs more readings keeps what it gave."""
    _, model, x, y = network(side)
    batches = ((side.array(x), side.array(y)) for _ in range(1))
    hold = lt.prune(model, 0.5, criterion="grasp", batches=batches, loss=side.loss)
    assert hold.masks.sparsity == pytest.approx(0.5, abs=0.02)


def test_a_criterion_of_several_passes_measures_at_masked_weights(side):
    """The gradient of the second pass is that of the network that the first pass left."""
    weights, model, x, y = network(side)
    seen = []

    def score(param):
        seen.append((param.mask.copy(), param.gradient.copy()))
        return np.abs(param.weight)

    rule = FunctionCriterion("twice", score, frozenset({"gradient"}), passes=2)
    lt.prune(model, 0.6, criterion=rule, batches=[(side.array(x), side.array(y))], loss=side.loss)
    masks, gradients = zip(*seen[3:], strict=True)
    left = [np.where(mask, weight, 0) for mask, weight in zip(masks, weights, strict=True)]
    assert not all(mask.all() for mask in masks)
    expected = by_differences(lambda w: loss_at(w, x, y), left)
    # The kept weights: where all inputs of a ReLU are gone it has a kink, and no derivative.
    compare(
        {
            i: gradient[mask]
            for i, (mask, gradient) in enumerate(zip(masks, gradients, strict=True))
        },
        [array[mask] for mask, array in zip(masks, expected, strict=True)],
    )
