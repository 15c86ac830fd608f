"""Rewind policies: against formulas by brute force, in the search, and held by their suite."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ltcore as lt
from ltcore.errors import InvalidValueError
from ltcore.masks import Masks
from ltcore.options import plain, policy_from
from ltcore.rewinding import FunctionPolicy, RewindContext
from ltcore.testing import Linear, NumpyModel, Relu, RewindConformance, Sgd

STEPS = {0: 10, 3: 13}
KERNEL = "layer.weight"


def params(seed, shape=(40, 30)):
    rng = np.random.default_rng(seed)
    return {
        KERNEL: rng.standard_normal(shape).astype(np.float32),
        "layer.bias": rng.standard_normal(shape[:1]).astype(np.float32),
        "norm.running_mean": rng.standard_normal(shape[:1]).astype(np.float32),
    }


def context(density=0.5, shape=(40, 30), seed=0):
    mask = np.random.default_rng(99).random(shape) < density
    return RewindContext(
        masks=Masks({KERNEL: mask}),
        snapshots={step: params(number, shape) for step, number in STEPS.items()},
        trained=params(20, shape),
        redraw=lambda: params(30, shape),
        rng=np.random.default_rng(seed),
    )


def kept(given, result):
    """Return initial and resulting values of surviving weights."""
    mask = given.masks[KERNEL]
    return given.snapshots[0][KERNEL][mask], result[KERNEL][mask]


@pytest.mark.parametrize(
    ("name", "point"),
    [
        ({"name": "resample"}, 0),
        ({"name": "constant"}, 0),
        ({"name": "noise"}, 0),
        ({"name": "noise", "step": 3}, 3),
    ],
)
def test_what_has_no_mask_goes_back_to_the_snapshot(name, point):
    given = context()
    result = policy_from(name).rewind(given)
    for free in ("layer.bias", "norm.running_mean"):
        assert np.array_equal(result[free], given.snapshots[point][free])
    assert not np.array_equal(result[KERNEL], given.snapshots[point][KERNEL])


def test_resampling_draws_from_the_survivors_of_the_same_parameter():
    given = context(density=0.8)
    initial, drawn = kept(given, policy_from("resample").rewind(given))
    assert set(drawn) < set(initial), "with replacement, some values of a thousand are not drawn"
    # Of n draws with replacement, 1 - 1/e of the values are there.
    assert len(set(drawn)) / len(initial) == pytest.approx(1 - np.exp(-1), abs=0.05)
    assert np.array_equal(drawn, np.random.default_rng(0).choice(initial, initial.size))


def test_resampling_with_kept_signs_draws_each_sign_from_its_own():
    given = context(density=0.8)
    result = policy_from({"name": "resample", "keep_sign": True}).rewind(given)
    initial, drawn = kept(given, result)
    assert np.array_equal(np.sign(initial), np.sign(drawn))
    rng = np.random.default_rng(0)
    for sign in (-1, 1):
        pool = initial[np.sign(initial) == sign]
        assert np.array_equal(drawn[np.sign(initial) == sign], rng.choice(pool, pool.size))


@given(keep_sign=st.booleans(), density=st.floats(0, 1), seed=st.integers(0, 99))
@settings(max_examples=30)
def test_reshuffling_gives_every_value_out_once(keep_sign, density, seed):
    given_context = context(density, shape=(5, 4), seed=seed)
    policy = lt.Resample(keep_sign=keep_sign, replace=False)
    initial, drawn = kept(given_context, policy.rewind(given_context))
    assert sorted(initial) == sorted(drawn)
    if keep_sign:
        assert np.array_equal(initial < 0, drawn < 0)


def test_constants_have_the_size_of_the_standard_deviation():
    given = context()
    initial = given.snapshots[0][KERNEL]
    sigma = np.sqrt(np.mean((initial.astype(float) - initial.astype(float).mean()) ** 2))
    result = policy_from("constant").rewind(given)[KERNEL]
    assert np.array_equal(result, np.where(initial < 0, -np.float32(sigma), np.float32(sigma)))
    drawn = policy_from({"name": "constant", "sign": "random"}).rewind(given)[KERNEL]
    assert np.array_equal(np.abs(drawn), np.abs(result))
    assert np.mean(np.sign(drawn) == np.sign(initial)) == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("step", [0, 3])
def test_noise_is_relative_to_the_initial_weights_and_at_the_rewind_point(step):
    given = context(shape=(200, 200))
    policy = policy_from({"name": "noise", "scale": 2.0, "step": step})
    noise = policy.rewind(given)[KERNEL] - given.snapshots[step][KERNEL]
    sigma = 2 * given.snapshots[0][KERNEL].std()
    assert noise.std() == pytest.approx(sigma, rel=0.02)
    assert noise.mean() == pytest.approx(0, abs=0.03)
    inside = np.mean(np.abs(noise) < sigma)
    assert inside == pytest.approx(0.6827, abs=0.01), "a normal distribution"
    assert policy.resume_step == step


def test_no_noise_is_the_rewind_point():
    given = context()
    result = policy_from({"name": "noise", "scale": 0.0, "step": 3}).rewind(given)
    assert all(np.array_equal(result[name], given.snapshots[3][name]) for name in result)


def test_reinit_may_keep_signs():
    given = context()
    result = policy_from({"name": "reinit", "keep_sign": True}).rewind(given)
    initial, fresh = given.snapshots[0][KERNEL], params(30)[KERNEL]
    assert np.array_equal(np.abs(result[KERNEL]), np.abs(fresh))
    assert np.array_equal(np.signbit(result[KERNEL]), np.signbit(initial))
    assert np.array_equal(result["layer.bias"], params(30)["layer.bias"]), "others are drawn anew"


@pytest.mark.parametrize(
    ("given_", "step"),
    [
        ({"name": "step", "step": 7}, 7),
        ({"name": "epoch", "epoch": 2, "steps_per_epoch": 50}, 100),
        ({"name": "epoch", "epoch": 0.3, "steps_per_epoch": 5}, 2),
        ({"name": "fraction", "fraction": 0.025, "steps": 400}, 10),
        ({"name": "fraction", "fraction": 1, "steps": 4}, 4),
    ],
)
def test_epochs_and_fractions_are_steps(given_, step):
    assert policy_from(given_) == lt.ToStep(step)


@pytest.mark.parametrize(
    "policy",
    ["initialization", {"name": "step", "step": 4}, "trained", "reinit", "resample", "constant",
     {"name": "learning-rate", "step": 4}, {"name": "reinit", "keep_sign": True},
     {"name": "resample", "keep_sign": True, "replace": False},
     {"name": "constant", "sign": "random"}, {"name": "noise", "scale": 0.5, "step": 2}],
    ids=str,
)  # fmt: skip
def test_provenance_tells_every_option(policy):
    made = policy_from(policy)
    told = made.describe()
    options = {"name": policy} if isinstance(policy, str) else policy
    for option, value in options.items():
        assert told["kind" if option == "name" else option] == value
    assert told["step"] == made.resume_step
    assert not isinstance(plain(made), str) or not options.keys() - {"name"}


@pytest.mark.parametrize(
    ("policy", "match"),
    [
        ("epoch", "'epoch' does not take {}: missing.*epoch"),
        ({"name": "epoch", "epoch": -1, "steps_per_epoch": 5}, "epoch is -1"),
        ({"name": "epoch", "epoch": 1, "steps_per_epoch": 0}, "steps_per_epoch is 0"),
        ({"name": "fraction", "fraction": 1.5, "steps": 5}, "fraction is 1.5"),
        ({"name": "fraction", "fraction": float("nan"), "steps": 5}, "fraction is nan"),
        ({"name": "noise", "scale": -1}, "scale is -1"),
        ({"name": "noise", "scale": float("inf")}, "scale is inf"),
        ({"name": "noise", "step": 1.5}, "step is 1.5"),
        ({"name": "constant", "sign": "any"}, "sign is 'any'"),
        ({"name": "resample", "keep_sign": 1}, "keep_sign is 1"),
        ({"name": "resample", "sign": "kept"}, "resample.*does not take"),
        ({"name": "learning-rate", "step": True}, "step is True"),
        (lt.ToStep, "'ToStep' does not take {}"),
        (True, "rewind_to is True"),
        (1.5, "rewind_to is 1.5"),
    ],
)
def test_bad_options_are_refused(policy, match):
    with pytest.raises(InvalidValueError, match=match):
        policy_from(policy)


# In a search


def numpy_model():
    return NumpyModel([Linear(4, 3), Relu(), Linear(3, 2)])


def train(model, updates=4):
    optimizer = Sgd(model, 0.1)
    for _ in range(updates):
        optimizer.step(
            {name: np.ones_like(a) for name, a in model.arrays(trained_only=True).items()}
        )


def train_from(model, start_step):
    train(model, 4 - start_step)


def rounds(rewind_to, train=train, seed=0):
    return lt.find_ticket(
        numpy_model(), train, rounds=2, rate=0.3, rewind_to=rewind_to, seed=seed,
        example=np.zeros((1, 4), np.float32),
    )  # fmt: skip


def test_learning_rate_rewinding_keeps_weights_and_resumes():
    began, left = [], []

    def training(model, start_step):
        began.append(start_step)
        train_from(model, start_step)
        left.append({name: array.copy() for name, array in model.arrays().items()})

    found = rounds({"name": "learning-rate", "step": 3}, training)
    assert began == [0, 3]
    told = {"kind": "learning-rate", "step": 3, "schedule": "resumed"}
    assert found.ticket.provenance["rewind"] == told
    weights = found.ticket.weights()
    for name, mask in found.ticket.masks.items():
        assert np.array_equal(weights[name], np.where(mask, left[-1][name], 0))


def test_learning_rate_rewinding_without_a_start_step_is_refused_before_training():
    def training(model):
        raise AssertionError("nothing is trained")

    with pytest.raises(InvalidValueError, match=r"step 3.*\(model\).*train\(model, start_step\)"):
        rounds({"name": "learning-rate", "step": 3}, training)


def test_a_function_is_a_policy():
    def halved(context):
        return {name: array / 2 for name, array in context.snapshots[0].items()}

    found = rounds(halved)
    initial = numpy_model().arrays()
    for name, array in found.ticket.params.items():
        assert np.array_equal(array, initial[name] / 2)
    assert found.ticket.provenance["rewind"]["kind"].endswith("halved")


@pytest.mark.parametrize(
    ("function", "match"),
    [
        (lambda context: None, "returned NoneType"),
        (lambda context: {}, "missing.*layers.0.weight"),
        (lambda context: {**context.trained, "more": np.zeros(3)}, "unknown.*more"),
    ],
)
def test_what_a_function_returns_is_checked(function, match):
    with pytest.raises(InvalidValueError, match=match):
        rounds(function)


@pytest.mark.parametrize("policy", ["resample", "noise", {"name": "constant", "sign": "random"}])
def test_draws_differ_by_round_and_repeat_by_seed(policy):
    first, again, other = rounds(policy), rounds(policy), rounds(policy, seed=1)
    assert first.ticket == again.ticket
    name = "layers.0.weight"
    mask = first.ticket.masks[name]
    assert not np.array_equal(first.ticket.params[name], other.ticket.params[name])
    earlier = first.rounds[1].ticket.params[name]
    assert not np.array_equal(earlier[mask], first.ticket.params[name][mask])


def test_frameworks_draw_alike():
    """A feature order behind a flatten is undone before a policy draws."""
    torch, keras = pytest.importorskip("torch"), pytest.importorskip("keras")
    torch_model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(18, 3)
    )
    keras_model = keras.Sequential(
        [keras.layers.Input((5, 5, 1)), keras.layers.Conv2D(2, 3, activation="relu"),
         keras.layers.Flatten(), keras.layers.Dense(3)]
    )  # fmt: skip
    x = torch.zeros(1, 1, 5, 5)
    lt.prune(torch_model, 0.0)
    lt.Ticket.from_model(torch_model, example=x).apply(keras_model).release()
    lt.held(torch_model).release()

    def train_torch(model):
        torch.optim.SGD(model.parameters(), 0.0).step()

    def train_keras(model):
        model.compile(keras.optimizers.SGD(0.0), "mse")
        model.fit(np.zeros((1, 5, 5, 1)), np.zeros((1, 3)), verbose=0)

    options = {"rounds": 1, "rate": 0.4, "seed": 3, "rewind_to": {"name": "noise", "scale": 1.0}}
    one = lt.find_ticket(torch_model, train_torch, example=x, **options).ticket
    two = lt.find_ticket(keras_model, train_keras, **options).ticket
    lt.held(keras_model).release()
    two.apply(torch_model, existing="replace", example=x)
    found = {n: p.detach().numpy() for n, p in torch_model.named_parameters()}
    for name, array in one.weights().items():
        assert np.array_equal(found[name], array), name


# The suite


def _suite(policy):
    return type("Suite", (RewindConformance,), {"policy": policy})


OURS = [
    lt.ToStep(0), lt.ToStep(5), lt.KeepTrained(), lt.LearningRateRewind(3), lt.RandomReinit(),
    lt.RandomReinit(keep_sign=True), lt.Resample(), lt.Resample(keep_sign=True, replace=False),
    lt.LayerConstant(), lt.LayerConstant("random"), lt.RewindNoise(), lt.RewindNoise(2.0, step=4),
]  # fmt: skip


@pytest.mark.parametrize("policy", OURS, ids=str)
def test_ours_conform(policy):
    suite = _suite(policy)()
    for name in dir(suite):
        if name.startswith("test_"):
            getattr(suite, name)()


def _scaled(context):
    for array in context.trained.values():
        array[...] = 2
    return context.trained


class NoKind(lt.KeepTrained):
    def describe(self):
        return {"step": np.int64(0)}


BROKEN = {
    "test_returns_all_parameters": (
        lambda c: {n: a.astype(np.float64) for n, a in c.trained.items()},
        "keeps its dtype",
    ),
    "test_returns_finite_values": (
        lambda c: {n: a / np.std(a) for n, a in c.trained.items()},
        "values are finite",
    ),
    "test_writes_to_no_input": (_scaled, "does not write to its inputs"),
    "test_same_seed_same_bytes": (
        lambda c: {n: np.random.default_rng().random(a.shape) + a for n, a in c.trained.items()},
        "draw from context.rng",
    ),
    "test_describes_itself_in_plain_data": (NoKind(), "under 'kind'"),
}


@pytest.mark.parametrize("test", BROKEN)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_suite_notices(test):
    policy, promise = BROKEN[test]
    with pytest.raises(AssertionError, match=promise):
        getattr(_suite(policy)(), test)()


def test_the_suite_notices_a_snapshot_that_nobody_asked_for():
    with pytest.raises(AssertionError, match="reads step 5 and declares \\[0\\]"):
        _suite(lambda c: c.snapshots[5])().test_returns_all_parameters()
    with pytest.raises(AssertionError, match="whole numbers, not 1.5"):
        _suite(FunctionPolicyAt(lambda c: c.trained, "x"))().test_declares_what_it_is()


class FunctionPolicyAt(FunctionPolicy):
    resume_step = 1.5
