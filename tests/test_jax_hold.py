"""Holds and watches on JAX, in the ways in which people train there."""

import copy
import gc

import numpy as np
import pytest

jax = pytest.importorskip("jax")
nnx = pytest.importorskip("flax.nnx")
optax = pytest.importorskip("optax")


import ltcore as lt  # noqa: E402
from ltcore.errors import CapabilityError, HoldError, ModelError, ModelNotBuiltError  # noqa: E402
from ltcore.plugins import detect  # noqa: E402
from ltcore_jax import _updates  # noqa: E402

X = np.random.default_rng(0).standard_normal((16, 5)).astype("float32")
Y = np.random.default_rng(1).standard_normal((16, 3)).astype("float32")
BACKEND = detect(nnx.Sequential())


class Net(nnx.Module):
    def __init__(self, seed=0):
        rngs = nnx.Rngs(seed)
        self.first = nnx.Linear(5, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.drop = nnx.Dropout(0.1, rngs=rngs)
        self.last = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.last(self.drop(nnx.relu(self.norm(self.first(x)))))


def loss_of(model, x, y):
    return ((model(x) - y) ** 2).mean()


def step(model, optimizer, x, y):
    optimizer.update(model, nnx.grad(loss_of)(model, x, y))


OPTIMIZERS = {
    "momentum": lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adamw": lambda: optax.adamw(optax.cosine_decay_schedule(0.01, 50), weight_decay=0.1),
    "clipped": lambda: optax.chain(
        optax.clip_by_global_norm(0.5), optax.add_noise(0.1, 0.5, jax.random.key(0)),
        optax.adam(0.01)),
}  # fmt: skip


def optimizer_of(model, name="momentum"):
    return nnx.Optimizer(model, OPTIMIZERS[name](), wrt=nnx.Param)


def structure_of(model):
    return BACKEND.describe(model, X)


def weights(model):
    return BACKEND.read(model, structure_of(model))


def half(model, seed=0):
    rng = np.random.default_rng(seed)
    shapes = {i.name: i.shape for i in structure_of(model).infos if i.prunable}
    return lt.Masks({name: rng.random(shape) < 0.5 for name, shape in shapes.items()})


def assert_held(model, masks):
    found = weights(model)
    for name, mask in masks.items():
        pruned = found[name][~mask]
        assert not pruned.any(), name
        assert not np.signbit(pruned).any(), name
        assert (found[name][mask] != 0).mean() > 0.5, f"{name}: kept weights live"


def paths(state):
    return [path for path, _ in nnx.to_flat_state(state)]


def is_clean(model):
    return not any("_ltcore" in vars(module) for _, module in nnx.iter_modules(model))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_pruned_weights_are_zero_after_each_compiled_step(name):
    gc.collect()  # models of other tests, and their holds
    model, run = Net(), nnx.jit(step)
    optimizer = optimizer_of(model, name)
    state, graph = nnx.state(model), nnx.graphdef(model)
    for _ in range(2):
        run(model, optimizer, X, Y)  # compiled before the hold
    before = nnx.Optimizer.update
    first, second = half(model, 0), half(model, 1)
    hold = lt.hold(model, first)
    for masks in (first, first & second, second):
        hold.update(masks)
        for _ in range(3):
            run(model, optimizer, X, Y)
            hold.check()
        assert_held(model, masks)
    for slot in jax.tree.leaves(nnx.as_pure(optimizer.opt_state)):
        if slot.shape == (5, 8) and name != "clipped":  # noise comes after the gradients' mask
            assert not np.asarray(slot).T[~second["first.weight"]].any()
            assert np.asarray(slot).T[second["first.weight"]].any()
    hold.release()
    assert paths(nnx.state(model)) == paths(state)
    assert nnx.graphdef(model) == graph
    assert nnx.Optimizer.update is before
    assert is_clean(model)
    run(model, optimizer, X, Y)
    assert weights(model)["first.weight"][~second["first.weight"]].any()


def test_other_masks_need_no_other_step():
    model, traces = Net(), []

    @nnx.jit
    def counted(model, optimizer, x, y):
        traces.append(1)
        step(model, optimizer, x, y)

    optimizer = optimizer_of(model)
    counted(model, optimizer, X, Y)
    for seed in range(3):
        hold = lt.hold(model, half(model, seed))
        counted(model, optimizer, X, Y)
        hold.update(half(model, seed + 10))
        counted(model, optimizer, X, Y)
        hold.release()
        counted(model, optimizer, X, Y)
    assert len(traces) == 2


def test_a_loop_inside_a_compiled_function():
    model, optimizer = Net(), optimizer_of(Net())
    masks = half(model)
    hold = lt.hold(model, masks)
    watch = BACKEND.watch(model, structure_of(model), [2, 5])
    graph, state = nnx.split((model, optimizer))

    @jax.jit
    def train(state):
        def body(state, _):
            model, optimizer = nnx.merge(graph, state)
            step(model, optimizer, X, Y)
            return nnx.state((model, optimizer)), None

        return jax.lax.scan(body, state, length=5)[0]

    nnx.update((model, optimizer), train(state))
    assert_held(model, masks)
    assert watch.steps == 5
    assert set(watch.snapshots) == {2, 5}
    found = weights(model)
    for name, array in watch.snapshots[5].items():
        assert array.tobytes() == found[name].tobytes()
    assert any((watch.snapshots[2][name] != found[name]).any() for name in masks)
    for name, mask in masks.items():
        assert not watch.snapshots[2][name][~mask].any()
    watch.stop()
    hold.release()


def test_compiled_and_plain_steps_agree():
    found = []
    for run in (step, nnx.jit(step)):
        model = Net()
        model.drop.rate = 0.0
        lt.hold(model, half(model))
        watch = BACKEND.watch(model, structure_of(model), [2])
        optimizer = optimizer_of(model)
        for _ in range(3):
            run(model, optimizer, X, Y)
        found.append(watch.snapshots[2])
        watch.stop()
    for name, array in found[0].items():
        np.testing.assert_allclose(found[1][name], array, atol=1e-5)


def test_a_step_that_knows_of_no_hold_is_told_on():
    model = Net()
    optimizer = optimizer_of(model)
    run = nnx.cached_partial(nnx.jit(step), model, optimizer)
    run(X, Y)
    hold = lt.hold(model, half(model))
    run(X, Y)
    with pytest.raises(HoldError, match="compiled before the hold"):
        hold.check()
    hold.enforce()
    hold.check()
    hold.release()


def test_part_of_a_model_and_a_model_around_it():
    class Around(nnx.Module):
        def __init__(self, inner):
            self.inner = inner
            self.head = nnx.Linear(3, 3, rngs=nnx.Rngs(1))

        def __call__(self, x):
            return self.head(self.inner(x))

    model = Net()
    masks = half(model)
    hold = lt.hold(model, masks)
    around = Around(model)
    optimizer = optimizer_of(around)
    for _ in range(2):
        nnx.jit(step)(around, optimizer, X, Y)
    assert_held(model, masks)
    assert np.asarray(around.head.kernel[...]).all()
    hold.release()
    outer = BACKEND.describe(around).infos
    hold = lt.hold(around, lt.Masks({i.name: np.eye(*i.shape, dtype=bool) for i in outer
                                     if i.prunable}))  # fmt: skip
    inner = optimizer_of(model)
    step(model, inner, X, Y)
    hold.check()
    watch = BACKEND.watch(around, BACKEND.describe(around, X), [1])
    nnx.jit(step)(model, inner, X, Y)
    assert watch.steps == 1
    with pytest.raises(CapabilityError, match=r"head\.bias"):
        _ = watch.snapshots
    with pytest.raises(CapabilityError):
        watch.stop()
    hold.release()
    assert is_clean(around)


def test_clones_and_copies():
    model = Net()
    masks = half(model)
    hold = lt.hold(model, masks)
    for twin in (nnx.clone(model), copy.deepcopy(model)):
        watch = BACKEND.watch(model, structure_of(model), [])
        step(twin, optimizer_of(twin), X, Y)
        assert weights(twin)["first.weight"][~masks["first.weight"]].any()
        assert watch.steps == 0
        watch.stop()
    assert_held(model, masks)
    hold.release()


def test_accumulated_gradients_are_one_update():
    model = Net()
    watch = BACKEND.watch(model, structure_of(model), [2])
    tx = optax.MultiSteps(optax.sgd(0.1), 3).gradient_transformation()
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    for run in (step, nnx.jit(step)):
        for _ in range(3):
            run(model, optimizer, X, Y)
    assert watch.steps == 2
    assert set(watch.snapshots) == {2}
    watch.stop()


def test_several_optimizers_make_one_update():
    model = Net()
    watch = BACKEND.watch(model, structure_of(model), [])
    parts = [nnx.All(nnx.Param, nnx.PathContains(name)) for name in ("first", "last")]
    optimizers = [nnx.Optimizer(model, optax.sgd(0.1), wrt=part) for part in parts]
    for _ in range(3):
        grads = nnx.grad(loss_of)(model, X, Y)
        for optimizer in optimizers:
            optimizer.update(model, grads)
    assert watch.steps == 3
    watch.stop()


def test_callbacks_change_the_hold_between_steps():
    model = Net()
    masks = [half(model, seed) for seed in range(4)]
    hold = lt.hold(model, masks[0])
    seen = []

    def called(number):
        seen.append(number)
        hold.check()
        hold.update(masks[number % 4])

    watch = BACKEND.watch(model, structure_of(model), [], called)
    optimizer, run = optimizer_of(model), nnx.jit(step)
    for _ in range(3):
        run(model, optimizer, X, Y)
    step(model, optimizer, X, Y)
    assert seen == [1, 2, 3, 4]
    hold.check()
    watch.stop()
    run(model, optimizer, X, Y)
    assert len(seen) == 4
    hold.release()


def test_overlapping_watches_leave_nothing():
    model = Net()
    calls = (
        nnx.Sequential.__call__,
        Net.__call__,
        nnx.Optimizer.update,
        type(nnx.jit(step)).__call__,
    )
    first = BACKEND.watch(model, structure_of(model), [1], print)
    second = BACKEND.watch(model, structure_of(model), [1, 2], lambda _: None)
    first.stop()
    step(model, optimizer_of(model), X, Y)
    second.stop()
    now = nnx.Sequential.__call__, Net.__call__, nnx.Optimizer.update, type(nnx.jit(step)).__call__
    assert calls == now
    assert (first.steps, second.steps) == (0, 1)
    assert set(second.snapshots) == {1}
    assert is_clean(model)


def test_a_model_that_dies_under_a_hold_takes_it_along():
    gc.collect()
    others = len(_updates._listening)  # models of other tests may be alive
    model = Net()
    lt.hold(model, half(model))
    assert len(_updates._listening) == others + 1
    del model
    gc.collect()
    assert len(_updates._listening) == others


def test_a_search(tmp_path):
    model, twin = Net(), Net()
    run, optimizers = nnx.jit(step), [optimizer_of(Net(), "adamw") for _ in range(2)]

    def train(model):
        model.train()
        for _ in range(4):
            run(model, optimizers[0], X, Y)

    search = lt.find_ticket(
        model, train, rounds=2, rate=0.3, rewind_to=2, evaluate=lambda m: float(loss_of(m, X, Y))
    )
    twin.train()
    for _ in range(2):
        run(twin, optimizers[1], X, Y)
    wanted = search.ticket.masks.apply(weights(twin))
    assert [round_.steps for round_ in search.rounds] == [4, 4, 4]
    for name, array in search.ticket.masks.apply(search.ticket.params).items():
        assert array.tobytes() == wanted[name].tobytes(), name
    assert search.ticket.probe is not None
    assert_held(model, search.ticket.masks)
    search.hold.release()


def test_a_fresh_optimizer_keeps_its_schedule():
    model = Net()
    optimizer = optimizer_of(model, "adamw")
    for run in (step, nnx.jit(step)):
        step(model, optimizer, X, Y)
        BACKEND.fresh_optimizer(model, 7)
        watch = BACKEND.watch(model, structure_of(model), [])
        run(model, optimizer, X, Y)
        watch.stop()
        adam, _, schedule = nnx.as_pure(optimizer.opt_state)
        assert int(adam.count) == 1
        assert int(schedule.count) == 8
        assert int(optimizer.step[...]) == 8


def test_what_is_no_nnx_model():
    from flax import linen

    with pytest.raises(ModelError, match="linen"):
        lt.prune(linen.Dense(3), sparsity=0.5)
    with pytest.raises(ModelNotBuiltError, match=r"first\.bias"):
        BACKEND.describe(nnx.eval_shape(Net))


def test_several_devices_are_refused(monkeypatch):
    model = Net()
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), "x")
    assert len(mesh.devices.ravel()) == 1
    two = type("Sharding", (), {"device_set": {1, 2}})()
    monkeypatch.setattr(type(model.first.kernel.get_value()), "sharding", two)
    with pytest.raises(CapabilityError, match="2 devices"):
        BACKEND.watch(model, BACKEND.describe(model), [])


class Pair(nnx.Module):
    """Two models in one; they may be another pair's, too."""

    def __init__(self, first, second):
        self.a, self.b = first, second

    def __call__(self, x):
        return self.a(x) + self.b(x)


@pytest.mark.parametrize("claim", ["hold", "watch"])
@pytest.mark.parametrize("relation", ["parent", "child", "sibling"])
def test_a_layer_serves_one_keeper_at_a_time(relation, claim):
    shared = Net()
    around, other = Pair(shared, Net(1)), Pair(Net(2), shared)
    model, second = {
        "parent": (shared, around), "child": (around, shared), "sibling": (around, other)
    }[relation]  # fmt: skip
    masks = half(model)
    hold = lt.hold(model, masks)
    before = weights(second)
    structure, others = structure_of(second), half(second, 1)
    with pytest.raises(CapabilityError, match=r"layer '.*first' is held or watched already"):
        _ = lt.hold(second, others) if claim == "hold" else BACKEND.watch(second, structure, [1])
    assert lt.held(second) is None or relation != "sibling"
    for name, value in weights(second).items():
        np.testing.assert_array_equal(value, before[name])
    step(model, optimizer_of(model), X, Y)
    assert_held(model, masks)
    hold.release()
    assert is_clean(around)
    lt.hold(second, half(second, 1)).release()
    assert is_clean(around)
    assert is_clean(other)


def test_a_layer_that_moves_takes_its_hold_along():
    model, free = Pair(Net(), Net(1)), Net(2)
    hold, inner = lt.hold(model, half(model)), lt.hold(free, half(free))
    gone, model.a = model.a, free
    hold.release()
    assert is_clean(gone)
    step(model, optimizer_of(model), X, Y)
    inner.check()
    inner.release()
    assert is_clean(model)


@pytest.mark.parametrize("claim", ["hold", "watch"])
def test_an_update_inside_vmap_is_refused(claim):
    @nnx.vmap
    def stack(key):
        return nnx.Linear(5, 3, rngs=nnx.Rngs(key))

    model = stack(jax.random.split(jax.random.key(0), 4))
    optimizer = nnx.vmap(lambda one: nnx.Optimizer(one, optax.sgd(0.1), wrt=nnx.Param))(model)
    run = nnx.jit(nnx.vmap(step, in_axes=(0, 0, None, None)))
    run(model, optimizer, X, Y)
    if claim == "hold":
        handle = lt.hold(
            model, lt.Masks({"linear.kernel": np.eye(4, 15, dtype=bool).reshape(4, 5, 3)})
        )
    else:
        handle = BACKEND.watch(model, BACKEND.describe(model), [1])
    with pytest.raises(CapabilityError, match=r"shape \(3,\).*shape \(4, 3\)"):
        run(model, optimizer, X, Y)
    assert model.kernel.get_value().shape == (4, 5, 3)
    if claim == "hold":
        handle.release()
    else:
        handle.stop()
    run(model, optimizer, X, Y)


@pytest.mark.parametrize("compiled", [False, True])
def test_arrays_that_a_checkpoint_brought_as_numpy(compiled):
    model = Net()
    nnx.update(model, *jax.tree.map(np.array, nnx.state(model, nnx.Param, nnx.BatchStat)))
    before, masks = weights(model), half(model)
    BACKEND.write(model, structure_of(model), {"first.weight": before["first.weight"] + 1})
    np.testing.assert_array_equal(weights(model)["first.weight"], before["first.weight"] + 1)
    assert isinstance(model.last.kernel.get_value(), np.ndarray)
    watch = BACKEND.watch(model, structure_of(model), [1])
    hold = lt.hold(model, masks)
    (nnx.jit(step) if compiled else step)(model, optimizer_of(model), X, Y)
    assert_held(model, masks)
    assert set(watch.snapshots[1]) == set(before)
    watch.stop()
    hold.release()


def test_a_watch_that_is_dropped_leaves_nothing():
    gc.collect()
    before = nnx.Optimizer.update, Net.__call__
    model = Net()
    watch = BACKEND.watch(model, structure_of(model), [1], print)
    other = BACKEND.watch(model, structure_of(model), [1])
    del watch
    gc.collect()
    step(model, optimizer_of(model), X, Y)
    assert set(other.snapshots) == {1}
    del other
    gc.collect()
    assert (nnx.Optimizer.update, Net.__call__) == before
    assert is_clean(model)


def test_averages_go_over_states():
    model = Net()
    average = nnx.clone(model)
    masks = half(model)
    hold = lt.hold(model, masks)
    mean = jax.tree.map(
        lambda a, b: (a + b) / 2, nnx.state(average, nnx.Param), nnx.state(model, nnx.Param)
    )
    nnx.update(average, mean)
    pruned = ~masks["first.weight"]
    found, first = weights(average)["first.weight"], weights(Net())["first.weight"]
    np.testing.assert_allclose(found[pruned], first[pruned] / 2, rtol=1e-6)
    hold.release()
