"""A watch of a Keras model calls back between updates, and what the callback does takes effect."""

import gc
import weakref

import numpy as np
import pytest

keras = pytest.importorskip("keras")

from keras import layers as kl  # noqa: E402

import ltcore as lt  # noqa: E402
from ltcore.plugins import detect  # noqa: E402
from ltcore_keras import _updates  # noqa: E402
from own_loops import ENGINE, Loop  # noqa: E402

# Keras 3.15 with numpy 2.4: reading a variable makes numpy warn.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

BACKEND = detect(keras.Sequential())
X = np.random.default_rng(0).standard_normal((32, 5)).astype("float32")
Y = np.random.default_rng(1).standard_normal((32, 3)).astype("float32")


def made(policy=None):
    keras.utils.set_random_seed(0)
    layers = [kl.Dense(7, "tanh", dtype=policy), kl.BatchNormalization(dtype=policy)]
    return keras.Sequential([keras.Input((5,)), *layers, kl.Dense(3, dtype=policy)])


def compiled(model, **options):
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse", **options)
    return model


def fit(model, epochs=2):
    model.fit(X, Y, batch_size=8, epochs=epochs, verbose=0, shuffle=False)


def half(model, seed):
    rng = np.random.default_rng(seed)
    shapes = {i.name: i.shape for i in BACKEND.describe(model).infos if i.prunable}
    return lt.Masks({name: rng.random(shape) < 0.5 for name, shape in shapes.items()})


def own(model):
    return BACKEND.read(model, BACKEND.describe(model))


def watched(model, callback, steps=()):
    return BACKEND.watch(model, BACKEND.describe(model), list(steps), callback)


class Changes:
    """Writes other weights and holds other masks after update ``at``, and checks all others."""

    def __init__(self, model, at):
        self.model, self.at, self.heard = model, at, []
        self.structure = BACKEND.describe(model)
        self.masks = half(model, 0)
        self.hold = BACKEND.hold(model, self.structure, self.masks)

    def __call__(self, count):
        self.heard.append(count)
        found = own(self.model)
        for name, mask in self.masks.items():
            assert not found[name][~mask].any()
            assert found[name][mask].all()
        if count == self.at:
            self.masks = half(self.model, 1)
            BACKEND.write(self.model, self.structure, BACKEND.redraw(self.model, self.structure, 5))
            self.hold.update(self.masks)


def by_hand(model, at):
    changes = Changes(model, at)
    for count in range(8):
        rows = slice(8 * (count % 4), 8 * (count % 4) + 8)
        model.train_on_batch(X[rows], Y[rows])
        changes(count + 1)
    changes.hold.release()
    return own(model)


OPTIONS = [
    ({}, None),
    ({"run_eagerly": True}, None),
    *([({"jit_compile": True}, None)] if ENGINE != "torch" else []),
    ({}, "mixed_float16"),
    ({}, "mixed_bfloat16"),
]


@pytest.mark.parametrize(("options", "policy"), OPTIONS)
def test_what_a_callback_does_in_fit_takes_effect_at_once(options, policy):
    model = compiled(made(policy), **options)
    changes = Changes(model, 3)
    watch = watched(model, changes, [3, 5])
    fit(model)
    assert changes.heard == list(range(1, 9))
    assert watch.steps == 8
    for name, mask in half(model, 0).items():
        assert not watch.snapshots[3][name][~mask].any()
        assert not watch.snapshots[5][name][~changes.masks[name]].any()
    watch.stop()
    changes.hold.release()
    wanted = by_hand(compiled(made(policy), **options), 3)
    assert {n: a.tobytes() for n, a in own(model).items()} == {
        n: a.tobytes() for n, a in wanted.items()
    }


@pytest.mark.skipif(ENGINE == "torch", reason="Keras on PyTorch makes one step an execution")
def test_several_steps_in_one_execution():
    model = compiled(made(), steps_per_execution=3)
    changes = Changes(model, 3)
    watch = watched(model, changes)
    fit(model)
    assert changes.heard == [3, 4, 7, 8]
    watch.stop()
    changes.hold.release()


def test_gradients_that_add_up_are_no_updates():
    model, heard = made(), []
    model.compile(keras.optimizers.SGD(0.1, gradient_accumulation_steps=2), "mse")
    watch = watched(model, heard.append)
    fit(model, epochs=1)
    assert heard == [1, 2]
    watch.stop()


def test_loops_of_the_user():
    model, heard = made(), []
    train = Loop(model, keras.optimizers.SGD(0.1))
    watch = watched(model, lambda count: heard.append((count, own(model))))
    for _ in range(2):
        train(X, Y)
    assert [count for count, _ in heard] == [1, 2]
    assert all(np.array_equal(a, heard[-1][1][n]) for n, a in own(model).items())
    sgd = keras.optimizers.SGD(0.1)
    scaled = keras.optimizers.LossScaleOptimizer(sgd, initial_scale=1.0)
    Loop(model, sgd if ENGINE == "jax" else scaled)(X, Y)  # on JAX it works in fit only
    compiled(model).train_on_batch(X, Y)
    assert [count for count, _ in heard] == [1, 2, 3, 4]
    watch.stop()


@pytest.mark.skipif(ENGINE == "torch", reason="Keras on PyTorch compiles no loop")
def test_steps_that_the_user_compiled_are_counted_only():
    model, heard = made(), []
    model.layers[1].trainable = False
    train = Loop(model, keras.optimizers.SGD(0.1), compiled=True)
    watch = watched(model, heard.append)
    train(X, Y)
    train(X, Y)
    assert not heard
    assert watch.steps == 2
    Loop(model, keras.optimizers.SGD(0.1))(X, Y)
    assert heard == [3]
    watch.stop()


def test_a_callback_before_those_of_keras():
    model, order = compiled(made()), []

    class Later(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            order.append("keras")

    watch = watched(model, lambda count: order.append(count))
    model.fit(X, Y, batch_size=16, verbose=0, callbacks=[Later()])
    assert order == [1, "keras", 2, "keras"]
    watch.stop()


class StopError(Exception):
    pass


@pytest.fixture
def alone():
    """Nobody listens whose models other tests have left alive."""
    others = _updates._listeners[:]
    _updates._listeners.clear()
    while _updates._ears:
        _updates._ears.pop().remove()
    yield
    _updates._listeners.extend(others)


def test_errors_reach_fit_and_nothing_stays(alone):
    model = compiled(made())
    methods = {
        name: getattr(owner, name)
        for owner, name in (
            (keras.Model, "fit"), (keras.Model, "train_on_batch"),
            (keras.callbacks.CallbackList, "on_train_batch_end"),
            (keras.optimizers.LossScaleOptimizer, "apply"),
        )
    }  # fmt: skip

    def fail(count):
        raise StopError(f"after {count}")

    watch = watched(model, fail)
    with pytest.raises(StopError, match="after 1"):
        fit(model)
    assert watch.steps == 1
    assert all(np.isfinite(array).all() for array in own(model).values())
    watch.stop()
    assert not _updates._ears
    assert keras.Model.fit is methods["fit"]
    assert keras.Model.train_on_batch is methods["train_on_batch"]
    assert keras.callbacks.CallbackList.on_train_batch_end is methods["on_train_batch_end"]
    assert keras.optimizers.LossScaleOptimizer.apply is methods["apply"]
    fit(model)
    reference = weakref.ref(watch)
    del watch
    assert reference() is None


def test_a_callback_does_not_keep_the_model_alive():
    model = compiled(made())
    watch = watched(model, lambda count, model=model: own(model))
    fit(model, epochs=1)
    died = weakref.ref(model)
    assert watch.steps == 4
    del model, watch
    gc.collect()
    assert died() is None
    assert not _updates._ears


def test_two_watches_and_one_that_stops_itself():
    model, heard = compiled(made()), []
    first = watched(model, lambda count: heard.append(("first", count)))

    def stop(count):
        heard.append(("second", count))
        if count == 2:
            second.stop()

    second = None
    fit(model, epochs=1)
    second = watched(model, stop)
    fit(model, epochs=1)
    assert [count for word, count in heard if word == "first"] == list(range(1, 9))
    assert [count for word, count in heard if word == "second"] == [1, 2]
    assert second.steps == 2
    first.stop()


@pytest.mark.engines("tensorflow", reason="masks are variables of the graph there")
def test_masks_of_the_same_weights_make_no_new_step():
    model = compiled(made())
    hold = BACKEND.hold(model, BACKEND.describe(model), half(model, 0))
    functions = set()

    def change(count):
        functions.add(id(model.train_function))
        hold.update(half(model, count))

    watch = watched(model, change)
    fit(model)
    assert len(functions) == 1
    found = own(model)
    assert all(not found[name][~mask].any() for name, mask in half(model, 8).items())
    fewer = lt.Masks({"dense.weight": half(model, 0)["dense.weight"]})
    hold.update(fewer)
    fit(model, epochs=1)
    last = half(model, 4)
    hold.update(last)
    watch.stop()
    fit(model, epochs=1)
    found = own(model)
    assert all(not found[name][~mask].any() for name, mask in last.items())
    hold.release()
