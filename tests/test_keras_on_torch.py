"""Keras on PyTorch: a Keras model is a torch module too, and people train it as one."""

import functools

import numpy as np
import pytest

keras = pytest.importorskip("keras")

from keras import layers as kl  # noqa: E402

import ltcore as lt  # noqa: E402
from ltcore.plugins import detect  # noqa: E402

pytestmark = [
    pytest.mark.engines("torch", reason="a Keras model is a torch module there"),
    # Keras 3.15 on PyTorch with numpy 2.4: reading a variable makes numpy warn.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

BACKEND = detect(keras.Sequential())
X = np.random.default_rng(0).standard_normal((16, 5)).astype("float32")
Y = np.random.default_rng(1).standard_normal((16, 3)).astype("float32")
OPTIMIZERS = {
    "sgd": lambda p, torch: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01),
    "adam": lambda p, torch: torch.optim.Adam(p, 0.05),
    "adamw": lambda p, torch: torch.optim.AdamW(p, 0.05),
    "rmsprop": lambda p, torch: torch.optim.RMSprop(p, 0.01, momentum=0.9, centered=True),
}


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def mlp():
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((5,)), kl.Dense(7, "tanh"), kl.Dense(3)])


def half(model):
    rng = np.random.default_rng(0)
    shapes = {i.name: i.shape for i in BACKEND.describe(model).infos if i.prunable}
    return lt.Masks({name: rng.random(shape) < 0.5 for name, shape in shapes.items()})


def weights(model):
    return BACKEND.read(model, BACKEND.describe(model))


def train(model, optimizer, steps):
    import torch

    for _ in range(steps):
        optimizer.zero_grad()
        ((model(X) - torch.from_numpy(Y)) ** 2).mean().backward()
        optimizer.step()


def assert_held(model, masks):
    found = weights(model)
    for name, mask in masks.items():
        pruned = found[name][~mask]
        assert not pruned.any()
        assert not np.signbit(pruned).any()
        assert found[name][mask].all()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_of_torch_are_held(name, torch):
    model = mlp()
    optimizer = OPTIMIZERS[name](model.parameters(), torch)
    train(model, optimizer, 3)
    masks, before = half(model), weights(model)
    hold = lt.hold(model, masks)
    train(model, optimizer, 3)
    assert_held(model, masks)
    assert all((weights(model)[n] != before[n]).mean() > 0.4 for n in masks)
    kernel, mask = model.layers[0].kernel.value, masks["dense.weight"].T
    for slot in optimizer.state[kernel].values():
        if slot.shape == kernel.shape:
            assert not slot.numpy()[~mask].any()
            assert slot.numpy()[mask].all()
    hold.release()
    train(model, optimizer, 2)
    assert all(weights(model)[n][~mask].all() for n, mask in masks.items())


def test_optimizers_of_torch_and_of_keras_train_a_held_model_alike(torch):
    ours, theirs = mlp(), mlp()
    for model in (ours, theirs):
        lt.hold(model, half(model))
    train(ours, torch.optim.SGD(ours.parameters(), 0.1), 5)
    theirs.compile(keras.optimizers.SGD(0.1), "mse")
    theirs.fit(X, Y, batch_size=16, epochs=5, verbose=0)
    found, wanted = weights(ours), weights(theirs)
    for name in found:
        np.testing.assert_allclose(found[name], wanted[name], atol=1e-6)
    for model in (ours, theirs):
        lt.held(model).release()


def test_not_a_number_stays_out_of_pruned_weights(torch):
    model = mlp()
    masks = half(model)
    hold = lt.hold(model, masks)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for param in model.parameters():
        param.grad = torch.full_like(param, float("nan"))
    optimizer.step()
    assert not any(weights(model)[name][~mask].any() for name, mask in masks.items())
    hold.release()


def test_sparse_gradients(torch):
    model = keras.Sequential([keras.Input((4,), dtype="int32"), kl.Embedding(9, 6)])
    table = model.layers[0].embeddings.value
    mask = np.random.default_rng(0).random((9, 6)) < 0.5
    with lt.hold(model, {"embedding.weight": mask}):
        optimizer = torch.optim.SGD([table], 0.1, momentum=0.9)
        rows = torch.tensor([[1, 4, 1]])
        for _ in range(2):
            table.grad = torch.sparse_coo_tensor(
                rows, torch.ones(3, 6), (9, 6), check_invariants=True
            )
            optimizer.step()
        found = weights(model)["embedding.weight"]
        assert not found[~mask].any()
        velocity = optimizer.state[table]["momentum_buffer"].to_dense().numpy()
        assert not velocity[~mask].any()
        np.testing.assert_allclose(velocity[1][mask[1]], 2 * 1.9, rtol=1e-6)


def test_optimizers_of_torch_are_counted_and_start_afresh(torch):
    model = mlp()
    structure, start = BACKEND.describe(model), weights(model)
    optimizer = OPTIMIZERS["adam"](model.parameters(), torch)
    watch = BACKEND.watch(model, structure, [2])
    train(mlp(), OPTIMIZERS["adam"](mlp().parameters(), torch), 1)
    train(model, optimizer, 2)
    second = weights(model)
    train(model, optimizer, 1)
    watch.stop()
    assert watch.steps == 3
    for name, array in watch.snapshots[2].items():
        assert array.tobytes() == second[name].tobytes()
    third = weights(model)
    BACKEND.write(model, structure, start)
    BACKEND.fresh_optimizer(model, 0)
    assert not optimizer.state
    train(model, optimizer, 3)
    for name, array in weights(model).items():
        np.testing.assert_allclose(array, third[name], atol=1e-7)


def test_a_search_with_an_optimizer_of_torch(torch):
    model = mlp()
    twin = mlp()
    train(twin, OPTIMIZERS["adam"](twin.parameters(), torch), 2)
    search = lt.find_ticket(
        model, lambda m: train(m, OPTIMIZERS["adam"](m.parameters(), torch), 5), rounds=2,
        rate=0.3, rewind_to=2, evaluate=lambda m: 0.0,
    )  # fmt: skip
    assert [round_.steps for round_ in search.rounds] == [5, 5, 5]
    kept = search.ticket.masks.apply(weights(twin))
    applied = search.ticket.apply(mlp())
    for name, array in weights(applied.model).items():
        assert array.tobytes() == kept[name].tobytes()
    assert_held(model, search.ticket.masks)
    applied.release()
    search.hold.release()


def test_gradients_leave_what_torch_sees(torch):
    model = mlp()
    model.layers[0].trainable = False
    params = list(model.parameters())
    flags = [param.requires_grad for param in params]
    assert False in flags
    found = BACKEND.gradients(
        model, BACKEND.describe(model), [(X, Y)], lambda out, y: (out - torch.from_numpy(y)) ** 2
    )
    assert [param.requires_grad for param in params] == flags
    assert all(param.grad is None for param in params)
    assert all(array.any() for array in found.values())  # of the frozen layer too
    np.testing.assert_allclose(
        found["dense_1.bias"], 2 * (BACKEND.forward(
            model, BACKEND.describe(model), [X])[0] - Y).sum(0), rtol=1e-4,
    )  # fmt: skip


def test_a_step_that_torch_compiles(torch, monkeypatch):
    # Its own compiler takes a minute; what it is given is the same.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    model = keras.Sequential([keras.Input((5,)), kl.Dense(3)])
    masks = half(model)
    hold = lt.hold(model, masks)
    watch = BACKEND.watch(model, BACKEND.describe(model), [1])
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse", jit_compile=True)
    model.fit(X, Y, batch_size=8, verbose=0)
    assert_held(model, masks)
    assert watch.steps == 2
    assert set(watch.snapshots) == {1}
    watch.stop()
    hold.release()


def test_conversions_leave_the_model(torch, tmp_path):
    source, model = mlp(), mlp()
    train(source, OPTIMIZERS["sgd"](source.parameters(), torch), 2)
    masks = half(source)
    with lt.hold(source, masks):
        source.save_weights(tmp_path / "n.weights.h5")
        wanted = weights(source)
    train(model, OPTIMIZERS["adam"](model.parameters(), torch), 2)
    before = {v.path: v.value.detach().numpy().tobytes() for v in model.variables}
    arrays = {}
    for name in ("dense", "dense_1"):
        wrapper = f"prune_low_magnitude_{name}"
        arrays[f"{wrapper}/kernel:0"] = wanted[f"{name}.weight"].T
        arrays[f"{wrapper}/bias:0"] = wanted[f"{name}.bias"]
        arrays[f"{wrapper}/mask:0"] = masks[f"{name}.weight"].T.astype("float32")
    for ticket in (
        lt.from_checkpoint(model, tmp_path / "n.weights.h5"),
        lt.from_tfmot(model, arrays),
    ):
        assert ticket.masks == masks
        for name, array in ticket.weights().items():
            assert np.array_equal(array, wanted[name])
        after = {v.path: v.value.detach().numpy().tobytes() for v in model.variables}
        assert after == before


def test_an_optimizer_of_torch_may_drop_its_gradients(torch):
    class Forgetful(torch.optim.Optimizer):
        def step(self, closure=None):
            with torch.no_grad():
                for param in self.param_groups[0]["params"]:
                    param.sub_(0.1 * (param.grad + 1))
                    param.grad = None

    model = mlp()
    masks = half(model)
    hold = lt.hold(model, masks)
    watch = BACKEND.watch(model, BACKEND.describe(model), [2])
    train(model, Forgetful(model.parameters(), {}), 3)
    assert_held(model, masks)
    assert watch.steps == 3
    assert set(watch.snapshots) == {2}
    watch.stop()
    hold.release()


def test_pruned_weights_do_not_move_between_closures(torch):
    model = mlp()
    masks = half(model)
    hold = lt.hold(model, masks)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=6, line_search_fn="strong_wolfe")
    calls = []

    def closure():
        assert_held(model, masks)
        calls.append(None)
        optimizer.zero_grad()
        loss = ((model(X) - torch.from_numpy(Y)) ** 2).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert len(calls) > 3
    hold.release()


def test_a_norm_that_the_user_clips_to_has_no_pruned_entries(torch):
    model, free = mlp(), mlp()
    hold = lt.hold(model, half(model))
    lt.hold(model, half(model), existing="tighten")
    BACKEND.write(free, BACKEND.describe(free), weights(model))
    wanted = 0.0
    for one in (model, free):
        ((one(X) - torch.from_numpy(Y)) ** 2).mean().backward()
    kept = [half(model)[f"{name}.weight"].T for name in ("dense", "dense_1")]
    for layer, mask in zip(free.layers, kept, strict=True):
        gradient = layer.kernel.value.grad.numpy()
        assert gradient[~mask].any()
        wanted += (gradient[mask] ** 2).sum() + (layer.bias.value.grad.numpy() ** 2).sum()
    found = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9)
    np.testing.assert_allclose(float(found), wanted**0.5, rtol=1e-5)

    hold.release()
    model.zero_grad()
    ((model(X) - torch.from_numpy(Y)) ** 2).mean().backward()
    for layer, twin in zip(model.layers, free.layers, strict=True):
        np.testing.assert_allclose(layer.kernel.value.grad, twin.kernel.value.grad, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Using backward:UserWarning")  # about a leak
def test_a_user_may_differentiate_through_a_held_gradient(torch):
    model = mlp()
    hold = lt.hold(model, half(model))
    (model(X) ** 2).mean().backward(create_graph=True)
    kernel = model.layers[1].kernel.value
    assert not kernel.grad.detach().numpy()[~half(model)["dense_1.weight"].T].any()
    (second,) = torch.autograd.grad(kernel.grad.sum(), model.layers[0].kernel.value)
    assert second.any()
    for param in model.parameters():
        param.grad = None  # its graph leads to the parameter
    hold.release()
