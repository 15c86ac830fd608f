"""Keras on JAX: training steps are pure functions, `fit`'s and the user's own."""

import numpy as np
import pytest

keras = pytest.importorskip("keras")

from keras import layers as kl  # noqa: E402
from keras import ops  # noqa: E402

import ltcore as lt  # noqa: E402
from ltcore.errors import CapabilityError, HoldError  # noqa: E402
from ltcore.plugins import detect  # noqa: E402
from own_loops import Loop, mean_square, values  # noqa: E402

pytestmark = pytest.mark.engines("jax", reason="training steps are pure functions there")

BACKEND = detect(keras.Sequential())
X = np.random.default_rng(0).standard_normal((48, 5)).astype("float32")
Y = np.random.default_rng(1).standard_normal((48, 3)).astype("float32")


@pytest.fixture
def jax():
    return pytest.importorskip("jax")


def mlp(cls=keras.Sequential, norm=False):
    keras.utils.set_random_seed(0)
    norms = [kl.BatchNormalization()] if norm else []
    inputs = keras.Input((5,))
    x = kl.Dense(7, "tanh")(inputs)
    for layer in [*norms, kl.Dense(3)]:
        x = layer(x)
    return keras.Model(inputs, x) if cls is keras.Sequential else cls(inputs, x)


def sgd():
    return keras.optimizers.SGD(0.1, momentum=0.9)


def half(model, seed=0):
    rng = np.random.default_rng(seed)
    shapes = {i.name: i.shape for i in BACKEND.describe(model).infos if i.prunable}
    return lt.Masks({name: rng.random(shape) < 0.5 for name, shape in shapes.items()})


def weights(model):
    return BACKEND.read(model, BACKEND.describe(model))


def assert_held(model, masks):
    found = weights(model)
    for name, mask in masks.items():
        assert not found[name][~mask].any()
        assert not np.signbit(found[name][~mask]).any()
        assert found[name][mask].all()


# steps of the user's own


def test_a_compiled_step_follows_every_hold(jax):
    model, optimizer = mlp(), sgd()
    train = Loop(model, optimizer, compiled=True)
    train(X, Y)  # traced when nobody held anything
    first, second = half(model, 0), half(model, 1)
    hold = lt.hold(model, first)
    train(X, Y)
    assert_held(model, first)
    momentum = next(v for v in optimizer.variables if v.shape == (5, 7)).numpy().T
    assert not momentum[~first["dense.weight"]].any()
    assert momentum[first["dense.weight"]].all()
    hold.update(first & second)
    train(X, Y)
    assert_held(model, first & second)
    hold.update(second)
    train(X, Y)
    found = weights(model)
    assert not any(found[name][~mask].any() for name, mask in second.items())
    assert any(found[name][second[name] & ~first[name]].any() for name in second)
    hold.release()
    train(X, Y)
    assert any(weights(model)[name][~second[name]].any() for name in second)
    again = lt.hold(model, first)
    train(X, Y)
    assert_held(model, first)
    again.release()


def test_a_step_that_gives_its_arguments_away(jax):
    model, optimizer = mlp(), sgd()
    masks = half(model)
    hold = lt.hold(model, masks)
    watch = BACKEND.watch(model, BACKEND.describe(model), [2])
    optimizer.build(model.trainable_variables)

    def loss_of(trained):
        outputs, _ = model.stateless_call(trained, [], X, training=True)
        return mean_square(outputs, Y)

    def step(trained, slots):
        return optimizer.stateless_apply(slots, jax.grad(loss_of)(trained), trained)

    run = jax.jit(step, donate_argnums=(0, 1))
    # The model keeps its own arrays.
    state = jax.tree.map(
        lambda a: a.copy(), tuple(map(values, (model.weights, optimizer.variables)))
    )
    for count in range(4):
        state = run(*state)
        if count == 1:
            second = [np.array(array) for array in state[0]]
    for variable, array in zip(model.weights, state[0], strict=True):
        variable.assign(array)
    assert_held(model, masks)
    assert watch.steps == 4
    found = watch.snapshots[2]
    assert found["dense.weight"].T.tobytes() == second[0].tobytes()
    assert found["dense_1.bias"].tobytes() == second[3].tobytes()
    watch.stop()
    hold.release()


def test_buffers_in_a_compiled_step_are_refused_by_name(jax):
    model = mlp(norm=True)
    watch = BACKEND.watch(model, BACKEND.describe(model), [1])
    Loop(model, sgd(), compiled=True)(X, Y)
    assert watch.steps == 1
    with pytest.raises(CapabilityError, match=r"running_mean.*running_var.*train with fit"):
        _ = watch.snapshots
    watch.stop()


def test_frozen_weights_are_in_the_snapshot(jax):
    model = mlp()
    model.layers[1].trainable = False
    watch = BACKEND.watch(model, BACKEND.describe(model), [1])
    Loop(model, sgd(), compiled=True)(X, Y)
    after = weights(model)
    assert {name: a.tobytes() for name, a in watch.snapshots[1].items()} == {
        name: a.tobytes() for name, a in after.items()
    }
    watch.stop()


def test_updates_without_an_optimizer_of_keras_are_told_on(jax):
    model = mlp()
    hold = lt.hold(model, half(model))
    for variable in model.trainable_variables:
        variable.assign(variable - 0.1)
    with pytest.raises(HoldError, match="not zero"):
        hold.check()
    hold.enforce()
    hold.check()
    hold.release()


def test_a_search_in_a_compiled_loop(jax):
    model, twin = mlp(), mlp()
    step = Loop(model, sgd(), compiled=True)
    search = lt.find_ticket(
        model, lambda m: [step(X, Y) for _ in range(5)], rounds=2, rate=0.3, rewind_to=2,
        evaluate=lambda m: 0.0,
    )  # fmt: skip
    other = Loop(twin, sgd(), compiled=True)
    other(X, Y)
    other(X, Y)
    kept, found = map(search.ticket.masks.apply, (weights(twin), search.ticket.params))
    assert [round_.steps for round_ in search.rounds] == [5, 5, 5]
    for name, array in kept.items():
        assert array.tobytes() == found[name].tobytes()
    assert_held(model, search.ticket.masks)
    search.hold.release()


# in fit


class Custom(keras.Model):
    """A training step of the user's own, as Keras's guide has it for JAX."""

    def train_step(self, state, data):
        import jax

        trained, others, slots, metrics = state
        x, y = data

        def loss_of(trained, others):
            outputs, others = self.stateless_call(trained, others, x, training=True)
            return mean_square(outputs, y), others

        (loss, others), gradients = jax.value_and_grad(loss_of, has_aux=True)(trained, others)
        trained, slots = self.optimizer.stateless_apply(slots, gradients, trained)
        return {"loss": loss}, (trained, others, slots, metrics)


def test_custom_training_steps(jax):
    model, twin = (mlp(Custom, norm=True) for _ in range(2))
    masks = half(model)
    for each in (model, twin):
        each.compile(sgd(), "mse")
    hold = lt.hold(model, masks)
    lt.hold(twin, masks)
    watch = BACKEND.watch(model, BACKEND.describe(model), [4])
    model.fit(X, Y, batch_size=8, verbose=0, shuffle=False)
    twin.fit(X[:32], Y[:32], batch_size=8, verbose=0, shuffle=False)
    assert_held(model, masks)
    assert watch.steps == 6
    wanted = weights(twin)
    assert watch.snapshots[4]["batch_normalization.running_mean"].any()
    for name, array in watch.snapshots[4].items():
        assert array.tobytes() == wanted[name].tobytes()
    watch.stop()
    hold.release()
    lt.held(twin).release()


class Calls(keras.callbacks.Callback):
    """Calls ``acts[n]()`` after batch n."""

    def __init__(self, acts):
        super().__init__()
        self.acts = acts

    def on_train_batch_end(self, batch, logs=None):
        self.acts.get(batch, lambda: None)()


def fit(model, acts, **options):
    model.compile(sgd(), "mse", **options)
    model.fit(X, Y, batch_size=8, verbose=0, shuffle=False, callbacks=[Calls(acts)])


def test_holds_and_watches_change_in_the_middle_of_fit(jax):
    model = mlp(norm=True)
    first, second = half(model, 0), half(model, 1)
    seen, found = [], {}

    def begin():
        lt.hold(model, first)
        found["watch"] = BACKEND.watch(model, BACKEND.describe(model), [2])

    def tighten():
        lt.held(model).check()
        lt.hold(model, second, existing="tighten")

    def look():
        lt.held(model).check()
        seen.append(weights(model))

    fit(model, {0: begin, 2: look, 3: tighten, 4: look})
    assert_held(model, first & second)
    assert found["watch"].steps == 5
    for name, array in found["watch"].snapshots[2].items():
        assert array.tobytes() == seen[0][name].tobytes()
    assert not seen[1]["dense.weight"][~second["dense.weight"]].any()
    found["watch"].stop()
    lt.held(model).release()


def test_release_in_the_middle_of_fit(jax):
    model = mlp()
    masks = half(model)
    hold = lt.hold(model, masks)
    fit(model, {2: hold.release})
    assert all(weights(model)[name][~mask].all() for name, mask in masks.items())


def test_weights_that_are_away_are_asked_for(jax):
    inner = mlp()
    inputs = keras.Input((5,))
    outer = keras.Model(inputs, kl.Dense(3)(inner(inputs)))
    masks, seen = half(inner), []

    def away():
        with pytest.raises(CapabilityError, match="jax_state_sync"):
            lt.hold(inner, masks)
        outer.jax_state_sync()
        lt.hold(inner, masks)

    def look():
        outer.jax_state_sync()
        seen.append(lt.held(inner).check())

    fit(outer, {1: away, 3: look})
    assert seen == [None]
    assert_held(inner, masks)
    lt.held(inner).release()
    outer.fit(X, Y, batch_size=8, verbose=0)
    assert all(weights(inner)[name].all() for name in masks)


def test_an_optimizer_whose_count_is_set_back(jax):
    model = mlp()
    watch = BACKEND.watch(model, BACKEND.describe(model), [])
    model.compile(sgd(), "mse")
    for _ in range(2):
        model.fit(X, Y, batch_size=8, verbose=0, epochs=2)
        model.optimizer.iterations.assign(0)
    assert watch.steps == 24
    watch.stop()


def test_a_run_that_fails_leaves_the_watch_readable(jax):
    model = mlp(norm=True)
    watch = BACKEND.watch(model, BACKEND.describe(model), [2])

    def fail():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(model, {2: fail})
    watch.stop()
    assert watch.steps == 3
    assert set(watch.snapshots) == {2}


def test_evaluating_and_predicting_in_a_watch_count_nothing(jax):
    model = mlp(norm=True)
    watch = BACKEND.watch(model, BACKEND.describe(model), [3])
    model.compile(sgd(), "mse")
    model.fit(X, Y, batch_size=8, verbose=0, validation_data=(X, Y), epochs=2)
    model.predict(X, verbose=0)
    model.train_on_batch(X, Y)
    model.test_on_batch(X, Y)
    assert watch.steps == 13
    assert set(watch.snapshots) == {3}
    watch.stop()


def test_accumulated_gradients_in_several_steps_an_execution(jax):
    model, twin = mlp(), mlp()
    watch = BACKEND.watch(model, BACKEND.describe(model), [1, 2])
    options = {"gradient_accumulation_steps": 3}
    for each, rows in ((model, 48), (twin, 24)):
        each.compile(keras.optimizers.SGD(0.1, **options), "mse", steps_per_execution=5)
        each.fit(X[:rows], Y[:rows], batch_size=8, verbose=0, shuffle=False)
    assert watch.steps == 2
    wanted = weights(twin)
    for name, array in watch.snapshots[1].items():
        np.testing.assert_allclose(array, wanted[name], atol=1e-6)
    watch.stop()


def test_several_devices_are_refused(jax, monkeypatch):
    model = mlp()
    device = keras.distribution.list_devices()[0]
    mesh = keras.distribution.DeviceMesh((2,), ["batch"], [device, device])
    spread = keras.distribution.DataParallel(device_mesh=mesh)
    monkeypatch.setattr(keras.distribution, "distribution", lambda: spread)
    with pytest.raises(CapabilityError, match="2 devices"):
        lt.prune(model, sparsity=0.5)


def test_what_is_written_is_a_copy(jax):
    # JAX uses the memory of arrays that are aligned: some are, so try many.
    model = keras.Sequential([keras.Input((2,)), kl.Dense(64)])
    structure = BACKEND.describe(model)
    for _ in range(50):
        array = np.ones(64, "float32")
        BACKEND.write(model, structure, {"dense.bias": array})
        array[:] = 2
        assert (BACKEND.read(model, structure)["dense.bias"] == 1).all()


def test_gradients_are_those_of_frozen_layers_too(jax):
    model = mlp()
    model.layers[1].trainable = False
    structure = BACKEND.describe(model)
    found = BACKEND.gradients(model, structure, [(X, Y)], lambda out, y: ops.square(out - y))
    outputs = BACKEND.forward(model, structure, [X])[0]
    np.testing.assert_allclose(found["dense_1.bias"], 2 * (outputs - Y).sum(0), rtol=1e-4)
    assert found["dense.weight"].any()
