"""Each layer kind of Keras: its sites and arrays, what they compute, how they are held."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

keras = pytest.importorskip("keras")

from keras import layers as kl  # noqa: E402
from keras import ops  # noqa: E402

import ltcore as lt  # noqa: E402
from ltcore.errors import CapabilityError, InvalidValueError  # noqa: E402
from ltcore.masks import Masks  # noqa: E402
from ltcore.plugins import detect  # noqa: E402

# Keras 3.15 with numpy 2.4: quantizing a layer makes numpy warn.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

BACKEND = detect(keras.Sequential())


def series(*layers, dtype="float32"):
    return keras.Sequential([keras.Input((5, 4), dtype=dtype), *layers])


def image(*layers):
    return keras.Sequential([keras.Input((6, 5, 4)), *layers])


def attention(layer, **options):
    query, value, key = keras.Input((5, 4)), keras.Input((3, 6)), keras.Input((3, 7))
    return keras.Model([query, value, key], layer(query, value, key, **options))


def self_attention(layer):
    x = keras.Input((5, 4))
    return keras.Model(x, layer(x, x))


def rnn(forward, biases, **more):
    return {"direction": "forward" if forward else "backward", "biases": biases, **more}


H, G = 3, 9  # hidden size, rows of a GRU
FOUND = {
    "einsum": (
        lambda: series(kl.EinsumDense("abc,dce->abed", (None, 3, 2), bias_axes="ed")),
        {"einsum_dense": ("linear", {"weight": (6, 4), "bias": (6,)}, {})},
    ),
    "einsum over two": (
        lambda: image(kl.EinsumDense("...xc,xcy->...y", 2)),
        {"einsum_dense": ("linear", {"weight": (2, 20)}, {})},
    ),
    "attention": (
        lambda: attention(kl.MultiHeadAttention(2, 3, name="m")),
        {
            "m.query": ("linear", {"weight": (6, 4), "bias": (6,)}, {"heads": 2}),
            "m.key": ("linear", {"weight": (6, 7), "bias": (6,)}, {"heads": 2}),
            "m.value": ("linear", {"weight": (6, 6), "bias": (6,)}, {"heads": 2}),
            "m.attention_output": ("linear", {"weight": (4, 6), "bias": (4,)}, {"heads": 2}),
        },
    ),
    "values of their own size": (
        lambda: self_attention(kl.MultiHeadAttention(2, 3, value_dim=2, output_shape=5, name="m")),
        {
            "m.query": ("linear", {"weight": (6, 4), "bias": (6,)}, {"heads": 2}),
            "m.key": ("linear", {"weight": (6, 4), "bias": (6,)}, {"heads": 2}),
            "m.value": ("linear", {"weight": (4, 4), "bias": (4,)}, {"heads": 2}),
            "m.attention_output": ("linear", {"weight": (5, 4), "bias": (5,)}, {"heads": 2}),
        },
    ),
    "few keys": (
        lambda: self_attention(kl.GroupQueryAttention(3, 4, 2, use_bias=False, name="m")),
        {
            "m.query": ("linear", {"weight": (12, 4)}, {"heads": 4}),
            "m.key": ("linear", {"weight": (6, 4)}, {"heads": 2}),
            "m.value": ("linear", {"weight": (6, 4)}, {"heads": 2}),
            "m.attention_output": ("linear", {"weight": (4, 12)}, {"heads": 4}),
        },
    ),
    "separable 1d": (
        lambda: series(kl.SeparableConv1D(3, 2, depth_multiplier=2, name="s")),
        {
            "s.depthwise": (
                "depthwise", {"weight": (8, 1, 2)},
                {"stride": [1], "dilation": [1], "padding": [[0, 0]]},
            ),
            "s.pointwise": (
                "conv", {"weight": (3, 8, 1), "bias": (3,)},
                {"stride": [1], "dilation": [1], "groups": 1, "padding": [[0, 0]]},
            ),
        },
    ),
    "separable 2d": (
        lambda: image(kl.SeparableConv2D(3, (2, 3), 2, padding="same", name="s")),
        {
            "s.depthwise": (
                "depthwise", {"weight": (4, 1, 2, 3)},
                {"stride": [2, 2], "dilation": [1, 1], "padding": [[0, 0], [1, 1]]},
            ),
            "s.pointwise": (
                "conv", {"weight": (3, 4, 1, 1), "bias": (3,)},
                {"stride": [1, 1], "dilation": [1, 1], "groups": 1, "padding": [[0, 0]] * 2},
            ),
        },
    ),
    "depthwise of one channel": (
        lambda: keras.Sequential(
            [keras.Input((5, 5, 1)), kl.DepthwiseConv2D(2, depth_multiplier=3, name="d")]
        ),
        {
            "d": (
                "conv", {"weight": (3, 1, 2, 2), "bias": (3,)},
                {"stride": [1, 1], "dilation": [1, 1], "groups": 1, "padding": [[0, 0]] * 2},
            )
        },
    ),
    "group norm": (
        lambda: image(kl.GroupNormalization(2, epsilon=1e-5, name="n")),
        {"n": ("groupnorm", {"weight": (4,), "bias": (4,)}, {"groups": 2, "eps": 1e-5})},
    ),
    "instance norm": (
        lambda: image(kl.GroupNormalization(-1, center=False, name="n")),
        {"n": ("groupnorm", {"weight": (4,)}, {"groups": 4, "eps": 1e-3})},
    ),
    "rms norm": (
        lambda: series(kl.RMSNormalization(epsilon=1e-5, name="n")),
        {"n": ("rmsnorm", {"weight": (4,)}, {"eps": 1e-5})},
    ),
    "layer norm of images": (
        lambda: image(kl.LayerNormalization(axis=(1, 2, 3), name="n")),
        {"n": ("layernorm", {"weight": (4, 6, 5), "bias": (4, 6, 5)}, {"eps": 1e-3})},
    ),
    "slopes of channels": (
        lambda: image(kl.PReLU(shared_axes=(1, 2), name="p")),
        {"p": ("prelu", {"weight": (4,)}, {})},
    ),
    "one slope": (
        lambda: image(kl.PReLU(shared_axes=(1, 2, 3), name="p")),
        {"p": ("prelu", {"weight": (1,)}, {})},
    ),
    "slopes of features": (
        lambda: keras.Sequential([keras.Input((4,)), kl.PReLU(name="p")]),
        {"p": ("prelu", {"weight": (4,)}, {})},
    ),
    "rnn": (
        lambda: series(kl.SimpleRNN(H, activation="relu", name="r")),
        {
            "r.simple_rnn_cell": (
                "rnn", {"w_ih": (3, 4), "w_hh": (3, 3), "b_ih": (3,)},
                rnn(True, 1, activation="relu"),
            )
        },
    ),
    "lstm": (
        lambda: series(kl.LSTM(H, go_backwards=True, name="r")),
        {"r.lstm_cell": (
            "lstm", {"w_ih": (12, 4), "w_hh": (12, 3), "b_ih": (12,)}, rnn(False, 1)
        )},
    ),
    "gru": (
        lambda: series(kl.GRU(H, name="r")),
        {"r.gru_cell": (
            "gru", {"w_ih": (G, 4), "w_hh": (G, 3), "b_ih": (G,), "b_hh": (G,)}, rnn(True, 2)
        )},
    ),
    "gru without biases": (
        lambda: series(kl.GRU(H, use_bias=False, name="r")),
        {"r.gru_cell": ("gru", {"w_ih": (G, 4), "w_hh": (G, 3)}, rnn(True, 0))},
    ),
    "two directions": (
        lambda: series(kl.Bidirectional(kl.LSTM(H), name="b")),
        {
            f"b.{word}_lstm.lstm_cell": (
                "lstm", {"w_ih": (12, 4), "w_hh": (12, 3), "b_ih": (12,)}, rnn(forward, 1)
            )
            for word, forward in (("forward", True), ("backward", False))
        },
    ),
    "cells": (
        lambda: series(kl.RNN([kl.GRUCell(H), kl.LSTMCell(2)], name="r")),
        {
            "r.stacked_rnn_cells.gru_cell": (
                "gru", {"w_ih": (G, 4), "w_hh": (G, 3), "b_ih": (G,), "b_hh": (G,)}, rnn(True, 2)
            ),
            "r.stacked_rnn_cells.lstm_cell": (
                "lstm", {"w_ih": (8, 3), "w_hh": (8, 2), "b_ih": (8,)}, rnn(True, 1)
            ),
        },
    ),
}  # fmt: skip
PARTS = {"query": "q", "key": "k", "value": "v", "attention_output": "o"}


@pytest.mark.parametrize("name", FOUND)
def test_sites_of_a_kind(name):
    build, expected = FOUND[name]
    structure = BACKEND.describe(build())
    found = {
        site.name: (site.kind, {role.name: role.shape for role in site.roles}, dict(site.attrs))
        for site in structure.sites
    }
    assert found == expected
    assert structure.why_not_portable() == ""
    for site in structure.sites:
        assert site.part == PARTS.get(site.name.rpartition(".")[2], "")
        assert not any(role.state for role in site.roles)


@pytest.mark.parametrize("name", FOUND)
@settings(max_examples=5)
@given(seed=st.integers(0, 99))
def test_what_is_written_is_read(name, seed):
    model = FOUND[name][0]()
    structure = BACKEND.describe(model)
    rng = np.random.default_rng(seed)
    given = {n: rng.normal(size=shape).astype("float32") for n, shape in structure.shapes.items()}
    BACKEND.write(model, structure, given)
    found = BACKEND.read(model, structure)
    assert all(np.array_equal(found[name], given[name]) for name in structure.shapes)
    total = sum(weights.size for weights in model.get_weights())
    assert total == sum(array.size for array in found.values())


# what the canonical arrays compute, in numpy


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def lstm_step(p, x, h, c):
    gates = x @ p["w_ih"].T + h @ p["w_hh"].T + p["b_ih"]
    i, f, g, o = np.split(gates, 4, axis=-1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def gru_step(p, x, h, c):
    r, z, n = np.split(x @ p["w_ih"].T + p["b_ih"], 3, axis=-1)
    hr, hz, hn = np.split(h @ p["w_hh"].T + p["b_hh"], 3, axis=-1)
    z = sigmoid(z + hz)
    return (1 - z) * np.tanh(n + sigmoid(r + hr) * hn) + z * h, c


def rnn_step(p, x, h, c):
    return np.tanh(x @ p["w_ih"].T + p["b_ih"] + h @ p["w_hh"].T), c


def recur(step, p, x):
    h = c = np.zeros((len(x), p["w_hh"].shape[1]))
    for t in range(x.shape[1]):
        h, c = step(p, x[:, t], h, c)
    return h


def heads(p, x, count):
    y = x @ p["weight"].T + p["bias"]
    return y.reshape(*y.shape[:2], count, -1).transpose(0, 2, 1, 3)


def attend(p, query, value, key):
    q, k, v = (heads(p[f"m.{w}"], x, 2) for w, x in
               (("query", query), ("key", key), ("value", value)))  # fmt: skip
    y = softmax(q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])) @ v
    out = p["m.attention_output"]
    return y.transpose(0, 2, 1, 3).reshape(*query.shape[:2], -1) @ out["weight"].T + out["bias"]


def normalized(x, axes, eps):
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + eps)


def group_norm(p, x):
    parts = [normalized(part, (1, 2, 3), 1e-5) for part in np.split(x, 2, axis=1)]
    wide = (-1, 1, 1)
    return np.concatenate(parts, 1) * p["weight"].reshape(wide) + p["bias"].reshape(wide)


def separable(p, x):
    over, across = p["s.depthwise"]["weight"], p["s.pointwise"]
    x = x.swapaxes(1, 2)  # one dimension reaches Keras with its times first
    y = np.stack(
        [
            sum(over[i, 0, k] * x[:, i // 2, k : k + 4] for k in range(2))
            for i in range(len(over))
        ],
        axis=1,
    )  # fmt: skip
    return np.einsum("oi,nit->not", across["weight"][..., 0], y) + across["bias"][:, None]


FORMULAS = {
    "einsum": lambda p, x: (x @ p["einsum_dense"]["weight"].T + p["einsum_dense"]["bias"]).reshape(
        2, 5, 3, 2
    ),
    "attention": attend,
    "lstm": lambda p, x: recur(lstm_step, p["r.lstm_cell"], x[:, ::-1]),
    "gru": lambda p, x: recur(gru_step, p["r.gru_cell"], x),
    "rnn": None,
    "two directions": lambda p, x: np.concatenate(
        [
            recur(lstm_step, p["b.forward_lstm.lstm_cell"], x),
            recur(lstm_step, p["b.backward_lstm.lstm_cell"], x[:, ::-1]),
        ],
        axis=-1,
    ),
    "group norm": lambda p, x: group_norm(p["n"], x),
    "rms norm": lambda p, x: x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * p["n"]["weight"],
    "layer norm of images": lambda p, x: (
        normalized(x, (1, 2, 3), 1e-3) * p["n"]["weight"] + p["n"]["bias"]
    ),
    "slopes of channels": lambda p, x: np.where(x > 0, x, x * p["p"]["weight"].reshape(-1, 1, 1)),
    "slopes of features": lambda p, x: np.where(x > 0, x, x * p["p"]["weight"]),
}
FORMULAS["rnn"] = lambda p, x: recur(rnn_step, p["r.simple_rnn_cell"], x)


def made_up(structure, seed=0):
    rng = np.random.default_rng(seed)
    return {n: rng.normal(size=s).astype("float32") for n, s in structure.shapes.items()}


def by_site(params):
    found = {}
    for name, array in params.items():
        site, _, role = name.rpartition(".")
        found.setdefault(site, {})[role] = array.astype("float64")
    return found


@pytest.mark.parametrize("name", FORMULAS)
def test_canonical_arrays_compute_what_the_kind_says(name):
    build = FOUND[name][0]
    model = series(kl.SimpleRNN(H, name="r")) if name == "rnn" else build()
    structure = BACKEND.describe(model)
    params = made_up(structure)
    BACKEND.write(model, structure, params)
    rng = np.random.default_rng(1)
    inputs = [rng.normal(size=(2, *i.shape[1:])).astype("float32") for i in structure.inputs]
    found = BACKEND.forward(model, structure, inputs)[0]
    assert np.allclose(found, FORMULAS[name](by_site(params), *inputs), atol=1e-4)


def test_a_separable_convolution_is_two():
    model = series(kl.SeparableConv1D(3, 2, depth_multiplier=2, name="s"))
    structure = BACKEND.describe(model)
    params = made_up(structure)
    BACKEND.write(model, structure, params)
    x = np.random.default_rng(1).normal(size=(2, 5, 4)).astype("float32")
    found = BACKEND.forward(model, structure, [np.moveaxis(x, 1, -1)])[0]
    assert np.allclose(found, separable(by_site(params), x), atol=1e-4)


# in training


def loop(model, optimizer, x, y):
    """Return a function that makes one update of a mean square error, in ``fit``."""
    model.compile(optimizer, "mse", jit_compile=False)
    return lambda: model.fit(x, y, batch_size=len(y), epochs=1, verbose=0)


def data_for(model, seed=0):
    rng = np.random.default_rng(seed)
    x = [rng.normal(size=(4, *i.shape[1:])).astype("float32") for i in model.inputs]
    x = x if len(x) > 1 else x[0]
    return x, rng.normal(size=model(x).shape).astype("float32")


def half(shapes, seed=0):
    rng = np.random.default_rng(seed)
    masks = {name: rng.random(shape) < 0.5 for name, shape in shapes.items()}
    for mask in masks.values():
        mask.flat[0], mask.flat[-1] = True, False
    return Masks(masks)


OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.05, momentum=0.9, weight_decay=0.01),
    "adam": lambda: keras.optimizers.Adam(0.01),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    "name", ["attention", "separable 1d", "group norm", "slopes of channels", "gru", "cells"]
)
def test_every_role_is_held(name, optimizer):
    model = FOUND[name][0]()
    structure = BACKEND.describe(model)
    BACKEND.write(model, structure, made_up(structure))
    masks = half(structure.shapes)
    step = loop(model, OPTIMIZERS[optimizer](), *data_for(model))
    step()
    hold = BACKEND.hold(model, structure, masks)
    before = BACKEND.read(model, structure)
    for _ in range(2):
        step()
    after = BACKEND.read(model, structure)
    for role, mask in masks.items():
        assert not after[role][~mask].any()
        # A key's bias changes no score: its gradient is zero.
        if role != "m.key.bias":
            assert (after[role] != before[role])[mask].any()
    hold.release()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("parts", [("b_ih",), ("b_hh",), ("b_ih", "b_hh"), ("w_ih", "b_hh")])
def test_parts_of_a_variable_are_held_apart(parts, optimizer):
    model = series(kl.GRU(H, name="r"), kl.Dense(2))
    structure = BACKEND.describe(model)
    BACKEND.write(model, structure, made_up(structure))
    names = [f"r.gru_cell.{part}" for part in parts]
    masks = half({name: structure.shapes[name] for name in names})
    step = loop(model, OPTIMIZERS[optimizer](), *data_for(model))
    before = BACKEND.read(model, structure)
    hold = BACKEND.hold(model, structure, masks)
    at_once = BACKEND.read(model, structure)
    assert all(np.array_equal(at_once[n], before[n] * masks.get(n, 1)) for n in before)
    for _ in range(3):
        step()
    after = BACKEND.read(model, structure)
    for name in structure.shapes:
        kept = masks.get(name, np.ones(structure.shapes[name], bool))
        assert not after[name][~kept].any()
        assert (after[name] != at_once[name])[kept].all()
    other = half({"r.gru_cell.b_ih": (G,)}, seed=1)
    hold.update(other)
    step()
    last = BACKEND.read(model, structure)
    assert not last["r.gru_cell.b_ih"][~other["r.gru_cell.b_ih"]].any()
    freed = "r.gru_cell.b_hh" in masks and ~masks["r.gru_cell.b_hh"]
    assert freed is False or last["r.gru_cell.b_hh"][freed].all()


def test_a_part_is_written_and_read_alone():
    model = series(kl.GRU(H, name="r"))
    structure = BACKEND.describe(model)
    before = BACKEND.read(model, structure)
    assert structure.by_name["r.gru_cell.b_hh"][1].native == "r/gru_cell/bias[1]"
    BACKEND.write(model, structure, {"r.gru_cell.b_hh": np.arange(9, dtype="float32")})
    after = BACKEND.read(model, structure)
    assert after["r.gru_cell.b_hh"].tolist() == list(range(9))
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"r.gru_cell.b_hh"}
    native = model.get_weights()[2]
    assert native[1].tolist() == [3, 4, 5, 0, 1, 2, 6, 7, 8]  # z, r, h
    with pytest.raises(InvalidValueError, match=r"b_hh.*\(9,\).*\(2, 9\)"):
        BACKEND.write(model, structure, {"r.gru_cell.b_hh": np.zeros((2, 9), "float32")})


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="needs double precision")
@pytest.mark.parametrize("name", ["einsum", "attention", "separable 2d", "gru", "cells"])
def test_gradients_are_slopes(name):
    """Against differences of the loss, in double precision."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float64")
    try:
        model = FOUND[name][0]()
    finally:
        keras.config.set_dtype_policy(policy)
    structure = BACKEND.describe(model)
    params = {n: a.astype("float64") for n, a in made_up(structure).items()}
    BACKEND.write(model, structure, params)
    x, y = data_for(model)

    def loss(outputs, targets):
        return ops.mean(ops.square(ops.subtract(outputs, targets)))

    found = BACKEND.gradients(model, structure, [(x, y)], loss)
    for parameter, gradient in found.items():
        place = tuple(size // 2 for size in gradient.shape)
        values = []
        for step in (1e-5, -1e-5):
            moved = params[parameter].copy()
            moved[place] += step
            BACKEND.write(model, structure, {parameter: moved})
            outputs = ops.convert_to_numpy(ops.stop_gradient(model(x, training=False)))
            values.append(np.mean((outputs - y) ** 2))
        BACKEND.write(model, structure, {parameter: params[parameter]})
        assert np.isclose(gradient[place], (values[0] - values[1]) / 2e-5, atol=1e-7)


# redraw


def test_an_lstm_starts_with_an_open_forget_gate():
    model = series(kl.LSTM(H, bias_initializer=keras.initializers.RandomUniform(), name="r"))
    structure = BACKEND.describe(model)
    drawn = BACKEND.redraw(model, structure, 0)
    gates = drawn["r.lstm_cell.b_ih"].reshape(4, H)
    assert (gates[1] == 1).all()
    assert (np.abs(gates[[0, 2, 3]]) < 0.06).all()
    assert len(np.unique(gates[[0, 2, 3]])) == 3 * H
    plain = series(kl.LSTM(H, unit_forget_bias=False, name="r"))
    assert not BACKEND.redraw(plain, BACKEND.describe(plain), 0)["r.lstm_cell.b_ih"].any()


def test_a_recurrent_kernel_is_drawn_orthogonal():
    model = series(kl.SimpleRNN(6, name="r"))
    drawn = BACKEND.redraw(model, BACKEND.describe(model), 0)["r.simple_rnn_cell.w_hh"]
    assert np.allclose(drawn @ drawn.T, np.eye(6), atol=1e-5)


@pytest.mark.parametrize("equation", ["abc,cde->abde", "abc,dec->abde"])
def test_an_einsum_kernel_is_drawn_as_keras_draws_it(equation):
    layer = kl.EinsumDense(equation, (None, 30, 20))
    model = keras.Sequential([keras.Input((2, 40)), layer])
    structure = BACKEND.describe(model)
    first = BACKEND.read(model, structure)["einsum_dense.weight"]
    drawn = BACKEND.redraw(model, structure, 0)["einsum_dense.weight"]
    assert drawn.shape == (600, 40)
    assert not np.array_equal(first, drawn)
    assert np.isclose(first.std(), drawn.std(), rtol=0.05)
    assert np.isclose(np.abs(first).max(), np.abs(drawn).max(), rtol=0.01)


@pytest.mark.parametrize("name", FOUND)
def test_every_kind_is_drawn_anew(name):
    model = FOUND[name][0]()
    structure = BACKEND.describe(model)
    before = BACKEND.read(model, structure)
    first, second = (BACKEND.redraw(model, structure, seed) for seed in (1, 2))
    again = BACKEND.redraw(model, structure, 1)
    for parameter, shape in structure.shapes.items():
        assert first[parameter].shape == shape
        assert np.array_equal(first[parameter], again[parameter])
        drawn = not np.array_equal(first[parameter], second[parameter])
        # What begins at random in Keras is random here, what does not is as Keras made it.
        assert drawn or np.array_equal(first[parameter], before[parameter])
        assert drawn == (len(np.unique(before[parameter])) > 2)


# what stays in its framework


class Extra(kl.Dense):
    def build(self, shape):
        super().build(shape)
        self.extra = self.add_weight(shape=(1,), name="extra")


REASONS = {
    "GRU with reset_after=False": lambda: series(kl.GRU(H, reset_after=False)),
    "activations are ('relu', 'sigmoid')": lambda: series(kl.LSTM(H, activation="relu")),
    "activation is sigmoid": lambda: series(kl.SimpleRNN(H, activation="sigmoid")),
    "its own kernel for each place": lambda: series(
        kl.EinsumDense("abc,bcd->abd", (5, 3), bias_axes="d")
    ),
    "bias does not cover": lambda: series(
        kl.EinsumDense("abc,cde->abde", (None, 3, 2), bias_axes="e")
    ),
    "sums over an axis of one operand": lambda: series(kl.EinsumDense("abc,cd->ad", 3)),
    "slopes differ along an axis": lambda: series(kl.PReLU()),
    "other axes than the last": lambda: series(kl.RMSNormalization(axis=1)),
    "weights beside those of its class": lambda: series(Extra(3)),
    "SpectralNormalization": lambda: series(kl.SpectralNormalization(kl.Dense(3))),
    "stateful": lambda: keras.Sequential(
        [keras.Input(batch_shape=(2, 5, 4)), kl.LSTM(H, stateful=True)]
    ),
}


@pytest.mark.parametrize("reason", REASONS)
def test_what_computes_something_else_says_why(reason):
    model = REASONS[reason]()
    structure = BACKEND.describe(model)
    raw = [site for site in structure.sites if site.kind == "raw" and site.matched]
    assert reason in raw[0].attrs["reason"]
    assert reason in structure.why_not_portable()
    before = BACKEND.read(model, structure)
    BACKEND.write(model, structure, before)
    name = next(name for name, _, role in structure.items() if not role.state)
    with lt.hold(model, masks={name: np.zeros(structure.shapes[name], bool)}):
        assert not BACKEND.read(model, structure)[name].any()


def test_lora_and_quantized_layers_say_so():
    def reason(change, layer):
        model = series(layer)
        change(layer)
        structure = BACKEND.describe(model)
        assert structure.sites[0].kind == "raw"
        return structure.why_not_portable()

    assert "LoRA is enabled" in reason(lambda layer: layer.enable_lora(2), kl.Dense(3))
    assert "quantized to int8" in reason(lambda layer: layer.quantize("int8"), kl.Dense(3))
    no_bias = kl.Dense(3, use_bias=False)
    assert "quantized to int8" in reason(lambda layer: layer.quantize("int8"), no_bias)


def test_layers_that_compute_in_another_precision_say_so():
    policy = keras.DTypePolicy("mixed_float16")
    model = series(kl.Dense(3, dtype=policy), kl.Dense(2), dtype="float32")
    first, second = BACKEND.describe(model).sites
    assert first.attrs == {"compute_dtype": "float16"}
    assert first.roles[0].dtype == "float32"
    assert second.attrs == {}


def test_weights_without_an_initializer_are_not_drawn():
    x = keras.Input((5, 4))
    model = keras.Model(x, kl.AdditiveAttention()([x, x]))
    with pytest.raises(CapabilityError, match="scale.*does not say how"):
        BACKEND.redraw(model, BACKEND.describe(model), 0)
