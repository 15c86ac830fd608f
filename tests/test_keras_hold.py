"""Holding in Keras: pruned weights are exactly +0.0 after every update, whoever makes it."""

import copy
import gc
import pickle
import weakref

import numpy as np
import pytest

keras = pytest.importorskip("keras")

from keras import layers as kl  # noqa: E402
from keras import ops  # noqa: E402

import ltcore as lt  # noqa: E402
from ltcore import holds  # noqa: E402
from ltcore.errors import CapabilityError, HoldError  # noqa: E402
from ltcore.plugins import detect  # noqa: E402
from ltcore_keras import _hold, _updates  # noqa: E402
from own_loops import Loop, applying  # noqa: E402

# Keras 3.15 with numpy 2.4: saving a model makes numpy warn.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

ko = keras.optimizers
ENGINE = keras.backend.backend()
JIT = ENGINE == "jax"  # the others compile slowly and gain nothing here
BACKEND = detect(keras.Sequential())
BATCH, INPUTS, CLASSES = 8, 5, 3
OPTIMIZERS = {
    "sgd": lambda: ko.SGD(0.1, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda: ko.SGD(0.1, momentum=0.9, nesterov=True),
    "adam": lambda: ko.Adam(0.01),
    "adamw": lambda: ko.AdamW(0.01, weight_decay=0.1),
    "rmsprop": lambda: ko.RMSprop(0.01, momentum=0.9, centered=True),
    "adagrad": lambda: ko.Adagrad(0.05),
}


def mlp(norm=False, policy="float32"):
    keras.utils.set_random_seed(0)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        norms = [kl.BatchNormalization()] if norm else []
        layers = [kl.Dense(7, "tanh"), *norms, kl.Dense(CLASSES)]
        return keras.Sequential([keras.Input((INPUTS,)), *layers])
    finally:
        keras.config.set_dtype_policy(before)


def data(steps, start=0):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(64 * BATCH, INPUTS)).astype("float32")
    y = rng.normal(size=(64 * BATCH, CLASSES)).astype("float32")
    return x[start * BATCH : (start + steps) * BATCH], y[start * BATCH : (start + steps) * BATCH]


class Fit:
    """``fit`` as users call it; the optimizer lives on from call to call."""

    def __init__(self, model, optimizer, **options):
        self.model = model
        model.compile(optimizer, "mse", **options)

    def __call__(self, steps, start=0):
        self.model.fit(*data(steps, start), batch_size=BATCH, shuffle=False, verbose=0)


class Hand:
    """A loop by hand, eager or in a function of the user's."""

    def __init__(self, model, optimizer, compiled=False):
        self.optimizer = optimizer
        self.step = Loop(model, optimizer, compiled)

    def __call__(self, steps, start=0):
        for one in range(start, start + steps):
            self.step(*data(1, one))


MODES = {
    "fit": lambda m, o: Fit(m, o, jit_compile=JIT),
    "xla": lambda m, o: Fit(m, o, jit_compile=True),
    "multi": lambda m, o: Fit(m, o, jit_compile=JIT, steps_per_execution=4),
    "eager": Hand,
    "function": lambda m, o: Hand(m, o, compiled=True),
}
LACKING = {
    "tensorflow": {},
    "torch": {
        "xla": "compiles with torch.compile, which has a test of its own",
        "multi": "makes one step an execution",
        "function": "has no functions to compile a loop in",
    },
    "jax": {"xla": "always compiles so: that is the mode 'fit'"},
}


def in_mode(mode, *rest):
    why = LACKING[ENGINE].get(mode)
    skip = pytest.mark.skip(reason=f"Keras on {ENGINE} {why}") if why else ()
    return pytest.param(*rest, mode, marks=skip)


modes = pytest.mark.parametrize("mode", [*map(in_mode, MODES)])
only = pytest.mark.engines


def half(model, seed=0):
    """Masks that keep about half of each kernel."""
    rng = np.random.default_rng(seed)
    shapes = {i.name: i.shape for i in BACKEND.describe(model).infos if i.prunable}
    return lt.Masks({name: rng.random(shape) < 0.5 for name, shape in shapes.items()})


def weights(model):
    return BACKEND.read(model, BACKEND.describe(model))


def assert_held(model, masks):
    for name, mask in masks.items():
        found = weights(model)[name]
        assert not found[~mask].any()
        assert not np.signbit(found[~mask]).any()
        assert np.isfinite(found).all()
        assert (found[mask] != 0).mean() > 0.9  # bfloat16 may come out at 0.0


def assert_equal(first, second, atol=0.0):
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_allclose(first[name], second[name], rtol=0, atol=atol, err_msg=name)


@pytest.fixture(autouse=True)
def nothing_left_behind():
    for hold in list(holds._holds.values()):  # of models that other test files keep
        hold.release()
    yield
    gc.collect()
    assert not _updates._ears
    assert "apply" not in vars(ko.Optimizer)


# every optimizer in every loop


# XLA takes seconds to compile; what an optimizer computes does not depend on who compiles it.
@pytest.mark.parametrize(
    ("optimizer", "mode"),
    [in_mode(m, o) for m in MODES for o in OPTIMIZERS if m != "xla" or o in ("sgd", "adam")],
)
def test_zeros_stay_under_a_warm_optimizer(optimizer, mode):
    model = mlp()
    train = MODES[mode](model, OPTIMIZERS[optimizer]())
    if mode != "function" or ENGINE == "jax":
        train(4)
    else:  # a tf.function that was traced before the hold is out of reach
        Hand(model, train.optimizer)(2)
    before = weights(model)
    masks = half(model)
    lt.hold(model, masks)
    assert_held(model, masks)
    train(4, 4)
    assert_held(model, masks)
    after = weights(model)
    assert all((after[name] != before[name]).mean() > 0.4 for name in masks)
    assert lt.held(model).check() is None
    lt.held(model).release()


class MaskedDense(kl.Layer):
    """What a hold shall equal: a layer whose kernel is multiplied by a mask."""

    def __init__(self, kernel, bias, mask):
        super().__init__()
        self.kernel = self.add_weight(shape=kernel.shape, initializer=lambda s, dtype: kernel)
        self.bias = self.add_weight(shape=bias.shape, initializer=lambda s, dtype: bias)
        self.mask = mask.astype("float32")

    def call(self, x):
        return ops.matmul(x, self.kernel * self.mask) + self.bias


@modes
def test_held_training_is_that_of_the_masked_network(mode):
    optimizer = lambda: ko.SGD(0.2, momentum=0.9, nesterov=True, global_clipnorm=0.5)  # noqa: E731
    model = mlp()
    masks = half(model)
    hold = lt.hold(model, masks)
    start = weights(model)
    first, second = (
        MaskedDense(start[f"{name}.weight"].T, start[f"{name}.bias"], masks[f"{name}.weight"].T)
        for name in ("dense", "dense_1")
    )
    reference = keras.Sequential([keras.Input((INPUTS,)), first, kl.Activation("tanh"), second])
    MODES[mode](model, optimizer())(8)
    Hand(reference, optimizer())(8)
    found = weights(model)
    np.testing.assert_allclose(
        found["dense.weight"].T, first.kernel.numpy() * first.mask, atol=1e-6
    )
    np.testing.assert_allclose(found["dense_1.bias"], second.bias.numpy(), atol=1e-6)
    assert np.abs(found["dense.weight"] - start["dense.weight"]).max() > 0.01
    hold.release()


# what optimizers can be asked for


@pytest.mark.parametrize(
    ("options", "mode"),
    [
        in_mode("fit", {"gradient_accumulation_steps": 3}),
        in_mode("xla", {"gradient_accumulation_steps": 3}),
        in_mode("fit", {"use_ema": True, "ema_overwrite_frequency": 2}),
        in_mode("fit", {"use_ema": True}),
        in_mode("fit", {"clipvalue": 0.01}),
    ],
    ids=["accumulation", "accumulation under xla", "ema", "ema at the end", "clipvalue"],
)
def test_options_of_optimizers(options, mode):
    model = mlp()
    train = MODES[mode](model, ko.Adam(0.01, **options))
    if ENGINE != "jax" or not options.get("use_ema"):  # Keras on JAX averages in one fit only
        train(4)
    masks = half(model)
    with lt.hold(model, masks):
        train(6, 4)
        assert_held(model, masks)


@pytest.mark.parametrize("cls", [ko.Lamb, ko.Muon, ko.Lion, ko.Adafactor, ko.Nadam])
def test_optimizers_that_mix_entries(cls):
    model = mlp()
    train = Hand(model, cls(0.05))
    train(2)
    masks = half(model)
    with lt.hold(model, masks):
        train(2, 2)
        assert_held(model, masks)


def test_averages_of_optimizers_that_mix_entries():
    model = mlp()
    masks = half(model)
    with lt.hold(model, masks):
        Fit(model, ko.Muon(0.05, use_ema=True), jit_compile=JIT)(3)  # ends with the averages
        assert_held(model, masks)


def test_several_optimizers_in_one():
    model = mlp()
    inner = {"first": ko.SGD(0.1, momentum=0.9), "last": ko.Adam(0.01)}
    first = model.layers[0].trainable_variables
    optimizer = ko.MultiOptimizer(
        lambda v: inner["first" if any(v is w for w in first) else "last"]
    )
    train = Hand(model, optimizer)
    train(2)
    masks = half(model)
    hold = lt.hold(model, masks)
    structure = BACKEND.describe(model)
    watch = BACKEND.watch(model, structure, [2])
    train(2, 2)
    assert watch.steps == 2
    assert_equal(watch.snapshots[2], weights(model))
    assert_held(model, masks)
    watch.stop()
    hold.release()


@pytest.mark.parametrize(
    ("policy", "mode"),
    [in_mode("fit", "mixed_float16"), in_mode("xla", "mixed_float16"),
     in_mode("fit", "mixed_bfloat16"), in_mode("fit", "bfloat16")],
)  # fmt: skip
def test_half_precision(policy, mode):
    model = mlp(policy=policy)
    train = MODES[mode](model, OPTIMIZERS["sgd"]())
    assert isinstance(model.optimizer, ko.LossScaleOptimizer) == (policy == "mixed_float16")
    train(2)
    masks = half(model)
    hold = lt.hold(model, masks)
    watch = BACKEND.watch(model, BACKEND.describe(model), [3])
    train(4, 2)
    assert_held(model, masks)
    assert watch.steps == 4
    assert_held_params(watch.snapshots[3], masks)
    watch.stop()
    hold.release()


def assert_held_params(params, masks):
    assert all(not params[name][~mask].any() for name, mask in masks.items())


def test_loss_scale_skips_are_no_updates():
    model = mlp(policy="mixed_float16")
    optimizer = ko.LossScaleOptimizer(ko.SGD(0.1), initial_scale=2.0**15)
    watch = BACKEND.watch(model, BACKEND.describe(model), [1])
    variables = model.trainable_variables
    optimizer.build(variables)
    update = applying(optimizer, variables)
    for value in (1.0, float("inf"), 1.0):
        update(*(ops.full(v.shape, value) for v in variables))
    assert watch.steps == 2
    watch.stop()


def test_nothing_leaks_through_infinite_gradients():
    model = mlp()
    masks = half(model)
    hold = lt.hold(model, masks)
    variables = model.trainable_variables
    ko.SGD(0.1, momentum=0.9).apply([ops.full(v.shape, float("nan")) for v in variables], variables)
    hold.enforce()
    assert not any(weights(model)[name][~mask].any() for name, mask in masks.items())
    hold.release()


def test_sparse_gradients_of_an_embedding():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((4,), dtype="int32"), kl.Embedding(9, 6), kl.Flatten(), kl.Dense(2)]
    )
    structure = BACKEND.describe(model)
    mask = np.random.default_rng(0).random((9, 6)) < 0.5
    tokens = np.arange(16).reshape(4, 4) % 9
    for optimizer in (ko.SGD(0.1, momentum=0.9), ko.Adam(0.01), ko.SGD(0.1, clipnorm=0.1)):
        with lt.hold(model, {"embedding.weight": mask}):
            train = Loop(model, optimizer, loss=lambda outputs, _: ops.mean(ops.square(outputs)))
            for _ in range(2):
                train(tokens, tokens)
            found = BACKEND.read(model, structure)["embedding.weight"]
            assert not found[~mask].any()
            assert found[mask].all()


def test_gradients_may_be_missing():
    model = mlp()
    masks = half(model)
    variables = model.trainable_variables
    with lt.hold(model, masks):
        gradients = [None, *(ops.ones(v.shape) for v in variables[1:])]
        with pytest.warns(UserWarning, match="Gradients do not exist"):
            ko.SGD(0.1).apply(gradients, variables)
        assert_held(model, masks)


# when a hold begins, changes and ends


@pytest.mark.parametrize("ways", ["train_on_batch", "run_eagerly", "optimizer made later"])
def test_other_ways_to_train(ways):
    model = mlp()
    masks = half(model)
    if ways == "optimizer made later":
        hold = lt.hold(model, masks)
        model.compile(OPTIMIZERS["adamw"](), "mse")
    else:
        model.compile(OPTIMIZERS["adamw"](), "mse", run_eagerly=ways == "run_eagerly")
        model.train_on_batch(*data(1))
        hold = lt.hold(model, masks)
    if ways == "train_on_batch":
        for step in range(3):
            model.train_on_batch(*data(1, step))
    else:
        model.fit(*data(3), batch_size=BATCH, verbose=0)
    assert_held(model, masks)
    hold.release()


@modes
def test_tighten_release_and_hold_again(mode):
    model = mlp()
    first, second = half(model, 0), half(model, 1)
    hold = lt.hold(model, first)
    train = MODES[mode](model, OPTIMIZERS["adam"]())
    train(4)
    assert lt.hold(model, second, existing="tighten") is hold
    both = first & second
    assert_held(model, both)
    train(4, 4)
    assert_held(model, both)

    hold.release()
    train(4, 8)
    assert all(array.all() for name, array in weights(model).items() if name in both)

    again = lt.hold(model, second)
    train(4, 12)
    assert_held(model, second)
    again.release()


def test_a_hold_may_begin_in_the_middle_of_fit():
    model = mlp()
    masks = half(model)

    class Prune(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 2:
                lt.hold(self.model, masks)

    model.compile(OPTIMIZERS["sgd"](), "mse")
    model.fit(*data(6), batch_size=BATCH, verbose=0, callbacks=[Prune()])
    assert_held(model, masks)
    lt.held(model).release()


def test_two_models_are_held_apart():
    one, two, free = mlp(), mlp(), mlp()
    holds = [lt.hold(one, half(one, 0)), lt.hold(two, half(two, 1))]
    for model in (one, two, free):
        Fit(model, OPTIMIZERS["sgd"](), jit_compile=JIT)(2)
    assert_held(one, half(one, 0))
    assert_held(two, half(two, 1))
    assert all(array.all() for array in weights(free).values())
    holds[0].release()
    Hand(two, OPTIMIZERS["adam"]())(1)
    assert_held(two, half(two, 1))
    holds[1].release()


def test_a_second_hold_on_the_same_model_is_an_error():
    model = mlp()
    hold = lt.hold(model, half(model))
    with pytest.raises(HoldError, match="existing="):
        lt.hold(model, half(model))
    hold.release()


@only("tensorflow", reason="elsewhere no function is out of reach")
def test_a_function_traced_before_the_hold_is_told_on():
    model = mlp()
    train = Hand(model, ko.SGD(0.1), compiled=True)
    train(1)
    hold = lt.hold(model, half(model))
    train(1)
    with pytest.raises(HoldError, match=r"not zero.*dense.weight"):
        hold.check()
    hold.enforce()
    hold.check()
    hold.release()


def test_slots_of_pruned_weights_are_cleared():
    model = mlp()
    train = Fit(model, ko.Adam(0.01, use_ema=True), jit_compile=JIT)
    train(2)
    masks = half(model)
    hold = lt.hold(model, masks)
    native = masks["dense.weight"].T
    optimizer = model.optimizer
    slots = [optimizer._momentums[0], optimizer._velocities[0],
             optimizer._model_variables_moving_average[0]]  # fmt: skip
    for slot in slots:
        assert not slot.numpy()[~native].any()
        assert slot.numpy()[native].all()
    hold.release()


def test_layers_inside_another_model():
    inner = mlp()
    outer = keras.Sequential([keras.Input((INPUTS,)), inner, kl.Dense(CLASSES)])
    masks = half(inner)
    hold = lt.hold(inner, masks)
    Fit(outer, OPTIMIZERS["adamw"](), jit_compile=JIT)(3)
    assert_held(inner, masks)
    hold.release()


@only("tensorflow", reason="tf.distribute")
def test_several_replicas_are_refused():
    class Replicated(keras.Sequential):
        distribute_strategy = type("Strategy", (), {"num_replicas_in_sync": 2})()

    model = Replicated([keras.Input((2,)), kl.Dense(2)])
    with pytest.raises(CapabilityError, match="2 replicas"):
        lt.prune(model, sparsity=0.5)


# copies, files, life and death


def test_files_and_copies_are_plain(tmp_path):
    model = mlp(norm=True)
    Fit(model, OPTIMIZERS["adam"](), jit_compile=JIT)(2)
    plain = sorted(v.path for v in model.variables)
    hold = lt.hold(model, half(model))
    Fit(model, OPTIMIZERS["adam"](), jit_compile=JIT)(2)
    assert sorted(v.path for v in model.variables) == plain
    model.save(tmp_path / "m.keras")
    model.save_weights(tmp_path / "m.weights.h5")
    twin = mlp(norm=True)
    twin.load_weights(tmp_path / "m.weights.h5")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    for free in (twin, loaded, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_equal(weights(free), weights(model))
        assert lt.held(free) is None
        Hand(free, OPTIMIZERS["adam"]())(2)
        assert all(weights(free)[name][~mask].any() for name, mask in hold.masks.items())
    loaded.fit(*data(2), batch_size=BATCH, verbose=0)  # with the optimizer from the file
    hold.release()


@pytest.mark.parametrize("mode", ["fit", "eager"])
def test_a_hold_dies_with_its_model(mode):
    model = mlp()
    hold = lt.hold(model, half(model))
    watch = BACKEND.watch(model, BACKEND.describe(model), [1])
    MODES[mode](model, OPTIMIZERS["sgd"]())(2)
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None
    assert watch.steps == 2
    watch.stop()
    for act in (hold.check, lambda: hold.update(hold.masks)):
        with pytest.raises(HoldError, match="no longer exists"):
            act()


# watching


@modes
def test_snapshot_is_exactly_the_model_at_step_k(mode):
    norm = ENGINE != "jax" or mode != "function"  # has buffers, which that cannot show
    model = mlp(norm=norm)
    watch = BACKEND.watch(model, BACKEND.describe(model), [3, 6, 99])
    assert watch.first_input is None
    MODES[mode](model, OPTIMIZERS["sgd"]())(8)
    assert watch.steps == 8
    assert watch.first_input.shape == (1, INPUTS)
    watch.stop()
    assert set(watch.snapshots) == {3, 6}
    twin = mlp(norm=norm)
    twin_train = MODES["fit" if mode == "multi" else mode](twin, OPTIMIZERS["sgd"]())
    for step in (3, 6):
        twin_train(3, step - 3)
        if norm:
            assert watch.snapshots[step]["batch_normalization.running_mean"].any()
        assert_equal(watch.snapshots[step], weights(twin), atol=1e-6 if mode == "multi" else 0)
    Hand(model, OPTIMIZERS["sgd"]())(1)
    assert watch.steps == 8


def test_accumulated_gradients_are_one_update():
    model = mlp()
    for mode in {"fit", "multi", "eager"} - LACKING[ENGINE].keys():
        watch = BACKEND.watch(model, BACKEND.describe(model), [2])
        MODES[mode](model, ko.SGD(0.1, gradient_accumulation_steps=3))(8)
        assert watch.steps == 2
        assert set(watch.snapshots) == {2}
        watch.stop()


def test_two_optimizers_count_once():
    model = mlp()
    watch = BACKEND.watch(model, BACKEND.describe(model), [])
    other = mlp()
    for _ in range(3):
        for layer, optimizer in zip(model.layers, (ko.SGD(0.1), ko.SGD(0.1)), strict=True):
            variables = layer.trainable_variables
            optimizer.apply([ops.ones(v.shape) for v in variables], variables)
    Hand(other, ko.SGD(0.1))(2)
    assert watch.steps == 3
    watch.stop()


@pytest.mark.filterwarnings("ignore:Gradients do not exist:UserWarning")
def test_updates_in_which_the_first_weight_has_no_gradient_count():
    inputs = keras.Input((INPUTS,))
    model = keras.Model(inputs, kl.add([kl.Dense(CLASSES)(inputs), kl.Dense(CLASSES)(inputs)]))
    watch = BACKEND.watch(model, BACKEND.describe(model), [3])
    variables, optimizer = model.trainable_variables, ko.SGD(0.1)
    full = [ops.ones(v.shape) for v in variables]
    for gradients in (full, [None, None, *full[2:]], [None, None, *full[2:]]):
        optimizer.apply(gradients, variables)
    optimizer.apply(full[2:], variables[2:])
    assert watch.steps == 4
    assert not (watch.snapshots[3]["dense.bias"] + 0.1).any()
    watch.stop()


def test_updates_of_another_model_by_the_same_optimizer_do_not_count():
    model, other = mlp(), mlp()
    optimizer = ko.SGD(0.1)
    optimizer.build(model.trainable_variables + other.trainable_variables)
    watch = BACKEND.watch(model, BACKEND.describe(model), [])
    for one in (other, model, other):
        variables = one.trainable_variables
        optimizer.apply([ops.ones(v.shape) for v in variables], variables)
    assert watch.steps == 1
    watch.stop()


@only("tensorflow", "jax", reason="a function of the user's own")
def test_a_function_traced_under_one_watch_counts_under_the_next():
    model = mlp()
    train = Hand(model, ko.SGD(0.1), compiled=True)
    first = BACKEND.watch(model, BACKEND.describe(model), [])
    train(2)
    first.stop()
    second = BACKEND.watch(model, BACKEND.describe(model), [1])
    train(3)
    assert (first.steps, second.steps) == (2, 3)
    if ENGINE == "tensorflow":
        with pytest.raises(HoldError, match="traced before the watch began"):
            _ = second.snapshots
    else:
        assert set(second.snapshots) == {1}
    second.stop()


# starting afresh


@pytest.mark.parametrize("name", ["sgd", "adam", "adagrad"])
def test_fresh_optimizer_starts_as_new(name):
    model = mlp()
    train = Fit(model, OPTIMIZERS[name](), jit_compile=JIT)
    start = weights(model)
    structure = BACKEND.describe(model)
    BACKEND.fresh_optimizer(model, 0)
    train(3)
    first = weights(model)
    model.optimizer.learning_rate = 1e-6  # what a callback may leave
    BACKEND.write(model, structure, start)
    BACKEND.fresh_optimizer(model, 0)
    assert int(model.optimizer.iterations.numpy()) == 0
    train(3)
    assert_equal(weights(model), first, atol=1e-6)


class Halving(ko.schedules.LearningRateSchedule):
    """A user's own, which Keras could not load from a file."""

    def __call__(self, step):
        return 0.1 * 0.5 ** (ops.cast(step, "float32") / 10)

    def get_config(self):
        return {"not": "an argument"}


@pytest.mark.parametrize(
    ("make", "policy"),
    [
        (lambda: ko.SGD(Halving(), momentum=0.9), "float32"),
        (lambda: ko.Adam(0.1, gradient_accumulation_steps=4), "float32"),
        (lambda: ko.SGD(0.1), "mixed_float16"),
    ],
    ids=["schedule", "accumulation", "loss scale"],
)
def test_fresh_optimizer_resumes_the_count(make, policy):
    model = mlp(policy=policy)
    train = Fit(model, make(), jit_compile=JIT)
    train(2)
    BACKEND.fresh_optimizer(model, 20)
    assert int(model.optimizer.iterations) == 20
    train(4)
    assert int(model.optimizer.iterations) == (21 if "Adam" in str(make()) else 24)


def test_fresh_optimizer_when_a_schedule_took_over():
    model = mlp()
    train = Fit(model, ko.SGD(0.1, momentum=0.9), jit_compile=JIT)
    BACKEND.fresh_optimizer(model, 0)
    train(1)
    model.optimizer.learning_rate = ko.schedules.ExponentialDecay(0.5, 10, 0.5)
    BACKEND.fresh_optimizer(model, 3)
    assert float(model.optimizer.learning_rate.numpy()) == pytest.approx(0.1)
    train(1)
    assert int(model.optimizer.iterations.numpy()) == 4


def test_optimizers_of_hand_written_loops_start_afresh():
    model = mlp()
    start, structure = weights(model), BACKEND.describe(model)
    train = Hand(model, ko.Adam(0.01), compiled=ENGINE != "torch")
    watch = BACKEND.watch(model, structure, [])
    train(3)
    watch.stop()
    first = weights(model)
    BACKEND.write(model, structure, start)
    BACKEND.fresh_optimizer(model, 0)
    train(3)
    assert_equal(weights(model), first, atol=1e-6)


def test_an_optimizer_that_cannot_be_made_anew_is_refused():
    class Odd(ko.SGD):
        def __init__(self, strength):
            super().__init__(0.1)

    model = mlp()
    model.compile(Odd(3), "mse")
    with pytest.raises(CapabilityError, match=r"Odd cannot be made anew"):
        BACKEND.fresh_optimizer(model, 0)


def test_a_search_in_fit(tmp_path):
    model = mlp(norm=True)
    start = weights(model)
    train = Fit(model, OPTIMIZERS["adam"](), jit_compile=JIT)
    search = lt.find_ticket(
        model, lambda m: train(6), rounds=2, rate=0.5, rewind_to=2, evaluate=lambda m: 0.0
    )
    assert [round.steps for round in search.rounds] == [6, 6, 6]
    twin = mlp(norm=True)
    assert_equal(weights(twin), start)
    Fit(twin, OPTIMIZERS["adam"](), jit_compile=JIT)(2)
    rewound = search.ticket.apply(mlp(norm=True))
    assert_equal(weights(rewound.model), search.ticket.masks.apply(weights(twin)), atol=1e-6)
    assert_held(model, search.ticket.masks)
    search.ticket.save(tmp_path / "t.safetensors")
    assert lt.load(tmp_path / "t.safetensors").masks == search.ticket.masks
    rewound.release()
    search.hold.release()


def test_an_outer_model_that_was_fitted_before_trains_the_held_one_held():
    backbone = keras.Sequential([keras.Input((4,)), kl.Dense(6, "tanh")])
    inputs = keras.Input((4,))
    outer = keras.Model(inputs, kl.Dense(1)(backbone(inputs)))
    outer.compile("adam", "mse")
    x, y = np.ones((8, 4), "float32"), np.ones((8, 1), "float32")
    outer.fit(x, y, epochs=2, verbose=0)
    hold = lt.prune(backbone, sparsity=0.5)
    outer.fit(x, y, epochs=2, verbose=0)
    hold.check()
    hold.release()
    outer.fit(x, y, epochs=2, verbose=0)
    assert np.count_nonzero(backbone.layers[0].kernel.numpy()) == 24


def test_nothing_stays_patched_after_a_search_and_a_release():
    before = keras.optimizers.Optimizer.apply, keras.Model.make_train_function
    model = keras.Sequential([keras.Input((4,)), kl.Dense(6, "tanh"), kl.Dense(1)])
    model.compile("adam", "mse")
    x, y = np.ones((8, 4), "float32"), np.ones((8, 1), "float32")
    search = lt.find_ticket(model, lambda m: m.fit(x, y, verbose=0), rounds=1, rate=0.3)
    assert keras.optimizers.Optimizer.apply is not before[0]
    search.hold.release()
    gc.collect()
    assert (keras.optimizers.Optimizer.apply, keras.Model.make_train_function) == before


def test_mistakes_in_other_optimizers_are_still_errors():
    model = keras.Sequential([keras.Input((4,)), kl.Dense(6)])
    hold = lt.prune(model, sparsity=0.5)
    optimizer = keras.optimizers.SGD(0.1)
    variable = keras.Variable(np.ones(3, "float32"))
    optimizer.build([variable])
    gradient = keras.ops.ones(3)
    with pytest.raises(ValueError, match="(?i)zip|length|gradients"):
        optimizer.apply([gradient, gradient])
    hold.check()


def test_learning_rates_of_one_round_do_not_leak_into_the_next():
    model = keras.Sequential([keras.Input((4,)), kl.Dense(6, "tanh"), kl.Dense(1)])
    x, y = np.ones((8, 4), "float32"), np.ones((8, 1), "float32")
    rates = []

    class Halve(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            rates.append(float(self.model.optimizer.learning_rate))

        def on_epoch_end(self, epoch, logs=None):
            self.model.optimizer.learning_rate = self.model.optimizer.learning_rate * 0.5

    def train(model):
        if not model.compiled:
            model.compile(keras.optimizers.SGD(0.1), "mse")
        model.fit(x, y, epochs=2, verbose=0, callbacks=[Halve()])

    lt.find_ticket(model, train, rounds=2, rate=0.3, evaluate=lambda m: 0.0)
    assert rates == pytest.approx([0.1, 0.05] * 3)


def test_many_holds_of_one_model_leave_one_keeper(monkeypatch):
    made = []

    class Counted(_hold.Keeper):
        def __init__(self, model):
            made.append(model)
            super().__init__(model)

    monkeypatch.setattr(_hold, "Keeper", Counted)
    model = mlp()
    for _ in range(3):
        lt.hold(model, half(model)).release()
    assert len(made) == 1


def test_a_method_that_somebody_put_over_ours_does_not_have_us_hear_twice():
    model = mlp()
    hold = lt.hold(model, half(model))
    ours = ko.Optimizer.apply

    def theirs(self, *args, **kwargs):
        return ours(self, *args, **kwargs)

    ko.Optimizer.apply = theirs
    try:
        hold.release()
        watch = BACKEND.watch(model, BACKEND.describe(model), [2])
        Hand(model, ko.SGD(0.1))(2)
        assert watch.steps == 2
        watch.stop()
        assert ko.Optimizer.apply is theirs
    finally:
        del ko.Optimizer.apply
