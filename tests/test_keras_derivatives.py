"""Derivatives and activations of Keras models, against brute force and models made in float64."""

import numpy as np
import pytest

keras = pytest.importorskip("keras")

from keras import layers as kl  # noqa: E402
from keras import ops  # noqa: E402

from ltcore.errors import CapabilityError, InvalidValueError  # noqa: E402
from ltcore.plugins import detect  # noqa: E402
from ltcore_keras._attention import attention  # noqa: E402

# Keras 3.15 with numpy 2.4: reading a variable makes numpy warn.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

BACKEND = detect(keras.Sequential())
NAME = keras.backend.backend()


def mean_square(outputs, targets):
    return ops.mean(ops.square(ops.subtract(outputs, targets)))


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def mlp(**options):
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [keras.Input((3,)), kl.Dense(4, "tanh", **options), kl.Dense(2, **options)]
    )


def own(model):
    return BACKEND.read(model, BACKEND.describe(model))


def elsewhere(model):
    """Return float64 values that are not the model's own."""
    rng = np.random.default_rng(0)
    return {n: a + rng.uniform(0.05, 0.5, a.shape).round(4) for n, a in own(model).items()}


def moved(at, direction, step):
    return at | {n: at[n].astype("float64") + step * array for n, array in direction.items()}


def inner(a, b):
    return sum(float(np.sum(a[name].astype("float64") * b[name])) for name in a)


def vector_of(structure, seed=0):
    rng = np.random.default_rng(seed)
    return {info.name: rng.standard_normal(info.shape) for info in structure.infos}


def assert_near(found, wanted, tolerance):
    assert found.keys() == wanted.keys()
    largest = max(np.abs(array).max() for array in wanted.values())
    for name, array in wanted.items():
        scale = max(np.abs(array).max(), 1e-3 * largest)  # attention's key biases have none
        gap = np.abs(found[name] - array).max() / scale
        assert gap <= tolerance, (name, gap)


# models of many kinds


class Attends(keras.Model):
    def __init__(self):
        super().__init__()
        self.attention, self.norm = kl.MultiHeadAttention(2, 3), kl.LayerNormalization()

    def call(self, x):
        return self.norm(x + self.attention(x, x))


def nested():
    inside = keras.Sequential([keras.Input((5,)), kl.Dense(5, "tanh")])
    inputs = keras.Input((5,))
    x = ops.cast(ops.cast(inside(inputs), "float16"), "float32")
    return keras.Model(inputs, kl.Dense(2, "tanh", dtype="mixed_float16")(inside(x)))


LAYERS = {
    "conv": lambda: [
        keras.Input((5, 5, 2)), kl.Conv2D(3, 3, strides=2, padding="same"),
        kl.BatchNormalization(), kl.Activation("silu"), kl.SeparableConv2D(3, 2),
        kl.Conv2DTranspose(2, 2), kl.GlobalAveragePooling2D()],
    "lstm": lambda: [keras.Input((3, 4)), kl.LSTM(3)],
    "embedding": lambda: [
        keras.Input((3,), dtype="int32"), kl.Embedding(7, 4),
        kl.TimeDistributed(kl.Dense(3, "gelu")), kl.GroupNormalization(1), kl.Flatten(),
        kl.Dense(2)],
}  # fmt: skip
SHAPES = {"conv": (2, 2, 5, 5), "attention": (2, 4, 5), "lstm": (2, 3, 4), "nested": (2, 5)}


def built(case):
    """Return a model, its structure, canonical inputs and cotangents, and a native batch."""
    keras.utils.set_random_seed(0)
    made = {"attention": Attends, "nested": nested}.get(case)
    model = made() if made else keras.Sequential(LAYERS[case]())
    x = draw(*SHAPES[case]) if case != "embedding" else np.array([[0, 2, 2], [5, 1, 0]], "int32")
    native = np.moveaxis(x, 1, -1) if x.ndim == 4 else x
    structure = BACKEND.describe(model, native)
    cotangent = draw(*BACKEND.forward(model, structure, [x])[0].shape, seed=1)
    return model, structure, x, cotangent, native


CASES = ["conv", "attention", "lstm", "embedding", "nested"]


@pytest.mark.parametrize("case", CASES)
def test_vjp_is_a_gradient_in_float64(case):
    model, structure, x, cotangent, native = built(case)
    at = elsewhere(model)

    def pulled(at):
        return BACKEND.vjp(model, structure, [x], [cotangent], at)

    first, second = vector_of(structure), vector_of(structure, 1)
    found = pulled(at)
    assert {array.dtype.name for array in found.values()} == {"float64"}
    # A Hessian is symmetric. Differences as short as these see only float64.
    bent = [
        {n: a - low[n] for n, a in pulled(moved(at, one, 1e-6)).items()}
        for one in (first, second)
        for low in [pulled(moved(at, one, -1e-6))]
    ]
    assert np.isclose(inner(bent[0], second), inner(bent[1], first), rtol=1e-5)
    BACKEND.write(model, structure, at)
    wanted = BACKEND.gradients(
        model, structure, [(native, cotangent)], lambda out, c: ops.sum(ops.multiply(out, c))
    )
    assert_near(found, wanted, 2e-2 if case == "nested" else 1e-3)


@pytest.mark.parametrize("case", CASES[:-1])
def test_hvp_is_the_difference_of_gradients(case):
    model, structure, x, cotangent, native = built(case)
    model.layers[0].trainable = False
    vector = vector_of(structure)
    ends = [
        BACKEND.vjp(model, structure, [x], [cotangent], moved(own(model), vector, step))
        for step in (1e-5, -1e-5)
    ]
    wanted = {name: (high - ends[1][name]) / 2e-5 for name, high in ends[0].items()}
    batches = [(native, factor * cotangent) for factor in (1, 3)]
    found = BACKEND.hvp(
        model, structure, batches, lambda out, c: ops.sum(ops.multiply(out, c)), vector
    )
    assert_near({n: a / 2 for n, a in found.items()}, wanted, 1e-3)
    assert not model.layers[0].trainable


@pytest.mark.parametrize("options", [
    {"mask": draw(2, 1, 3, 3, seed=3) > -1}, {"mask": draw(3, 3) > -1, "is_causal": True},
    {"bias": draw(2, 4, 3, 3), "scale": 0.3}, {"is_causal": True},
])  # fmt: skip
def test_attention_in_float64_is_that_of_keras(options):
    given = [ops.convert_to_tensor(draw(2, 3, heads, 5, seed=heads)) for heads in (4, 2, 2)]
    more = {n: ops.convert_to_tensor(o) if np.ndim(o) else o for n, o in options.items()}
    found, wanted = attention(None, *given, **more), ops.dot_product_attention(*given, **more)
    np.testing.assert_allclose(*map(ops.convert_to_numpy, (found, wanted)), rtol=1e-4, atol=1e-5)


def test_a_chain_neither_vanishes_nor_overflows():
    model = keras.Sequential([keras.Input((2,)), *[kl.Dense(2) for _ in range(40)]])
    structure = BACKEND.describe(model)
    ones = [np.ones((1, 2))]
    for scale in (1e-3, 1e3):
        at = {n: np.full(a.shape, scale * (a.ndim == 2)) for n, a in own(model).items()}
        found = BACKEND.vjp(model, structure, ones, ones, at)
        conserved = [np.sum(a * at[n]) for n, a in found.items() if n.endswith("weight")]
        np.testing.assert_allclose(conserved, 2 * (2 * scale) ** 40, rtol=1e-12)


def test_vjp_in_the_dtype_of_what_is_given():
    model = mlp(dtype="mixed_bfloat16")
    structure = BACKEND.describe(model)
    at = {n: a.astype("float32") for n, a in elsewhere(model).items()}
    given = [draw(4, 3)], [draw(4, 2)]
    found = BACKEND.vjp(model, structure, *given, at)
    wanted = BACKEND.vjp(model, structure, *given, {n: a.astype("f8") for n, a in at.items()})
    assert {array.dtype.name for array in found.values()} == {"float32"}
    assert_near(found, wanted, 1e-6)


class Narrow(kl.Layer):
    def call(self, x):
        return engine_float32(x)


def engine_float32(x):
    if NAME == "tensorflow":
        import tensorflow as tf

        return tf.cast(x, tf.float32)
    return x.float() if NAME == "torch" else x.astype("float32")


def state_of(model):
    policies = [(id(layer._dtype_policy), layer.autocast) for layer in model._flatten_layers()]
    variables = [(id(v), id(v._value), v.numpy().tobytes()) for v in model.variables]
    patched = [
        id(thing)
        for thing in (
            keras.Operation.__call__, kl.Dense.call, keras.Layer.__call__,
            keras.src.backend.cast, keras.src.backend.core.cast,
            keras.src.backend.convert_to_tensor, keras.src.backend.core.convert_to_tensor,
        )
    ]  # fmt: skip
    promoted = keras.backend.result_type("float64", "float32")
    losses = [len(layer._losses) for layer in model._flatten_layers()]
    return policies, variables, patched, promoted, keras.config.floatx(), losses, model.built


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_of_model_and_keras_changes(fails):
    keras.utils.set_random_seed(0)
    layers = [kl.Dense(4), kl.BatchNormalization(), kl.Dropout(0.5), kl.Dense(2)]
    model = keras.Sequential([keras.Input((3,)), *layers, *([Narrow()] if fails else [])])
    model.compile("sgd", "mse")
    structure = BACKEND.describe(model)
    x, y = draw(8, 3), draw(8, 2)
    model.fit(x, y, verbose=0)
    function, before = model.train_function, state_of(model)
    if fails:
        with pytest.raises(CapabilityError, match="^Narrow 'narrow.*float32"):
            BACKEND.vjp(model, structure, [x], [y], elsewhere(model))
        with pytest.raises(InvalidValueError, match="batches is empty"):
            BACKEND.activations(model, structure, [], ["dense.weight"])
    else:
        BACKEND.vjp(model, structure, [x], [y], elsewhere(model))
        BACKEND.fisher(model, structure, [(x, y)], mean_square)
        BACKEND.hvp(model, structure, [(x, y)], mean_square, vector_of(structure))
        BACKEND.activations(model, structure, [(x, y)], ["dense.weight"])
    assert state_of(model) == before
    assert model.train_function is function
    model.fit(x, y, verbose=0)


def test_what_does_not_fit_is_refused():
    model = mlp()
    structure = BACKEND.describe(model)
    at, x, y = elsewhere(model), draw(4, 3), draw(4, 2)
    with pytest.raises(InvalidValueError, match=r"\['dense_1.bias'\] are missing"):
        BACKEND.vjp(model, structure, [x], [y], {n: a for n, a in at.items() if "1.b" not in n})
    with pytest.raises(InvalidValueError, match=r"\['bias'\] are none"):
        BACKEND.vjp(model, structure, [x], [y], at | {"bias": np.ones(1)})
    with pytest.raises(InvalidValueError, match=r"shape \(9,\)"):
        BACKEND.vjp(model, structure, [x], [y], at | {"dense.bias": np.ones(9)})
    with pytest.raises(InvalidValueError, match=r"\(4, 2\).*cotangent \(4, 1\)"):
        BACKEND.vjp(model, structure, [x], [y[:, :1]], at)
    with pytest.raises(InvalidValueError, match=r"\['bias'\], which are no trained"):
        BACKEND.hvp(model, structure, [(x, y)], mean_square, {"bias": np.ones(1)})
    with pytest.raises(InvalidValueError, match=r"\[3, 4\] examples"):
        BACKEND.fisher(model, structure, [(x, y[:3])], mean_square)
    for empty in (BACKEND.fisher, lambda *args: BACKEND.hvp(*args, {})):
        with pytest.raises(InvalidValueError, match="batches is empty"):
            empty(model, structure, [], mean_square)


def test_quantized_layers_are_refused():
    model = mlp()
    model.layers[0].quantize("int8")
    structure = BACKEND.describe(model)
    with pytest.raises(CapabilityError, match="'dense.*int8"):
        BACKEND.vjp(model, structure, [draw(4, 3)], [draw(4, 2)], own(model))


# fisher


def test_fisher_of_nested_inputs_and_targets():
    keras.utils.set_random_seed(0)
    a, b = keras.Input((3,), name="a"), keras.Input((4,), name="b")
    joined = kl.Add()([kl.Dense(2)(a), kl.Dense(2)(b)])
    model = keras.Model({"a": a, "b": b}, joined)
    structure = BACKEND.describe(model)

    def loss(outputs, targets):
        return mean_square(outputs, targets[0]) + ops.mean(
            ops.tanh(ops.multiply(outputs, targets[1]))
        )

    x = {"a": draw(5, 3), "b": draw(5, 4)}
    y = [draw(5, 2, seed=1).astype("float64"), draw(5, 2, seed=2)]
    cut = [(0, 2), (2, 5)]  # batches of different sizes
    batches = [({n: v[i:j] for n, v in x.items()}, [v[i:j] for v in y]) for i, j in cut]
    found = BACKEND.fisher(model, structure, batches, loss)
    singles = [
        ({n: v[i : i + 1] for n, v in x.items()}, [v[i : i + 1].astype("float32") for v in y])
        for i in range(5)
    ]
    each = [BACKEND.gradients(model, structure, [one], loss) for one in singles]
    wanted = {name: np.mean([one[name] ** 2 for one in each], 0) for name in each[0]}
    assert_near(found, wanted, 1e-5)


def test_fisher_without_targets_and_in_half_precision():
    model = mlp(dtype="float16")
    structure = BACKEND.describe(model)
    found = BACKEND.fisher(
        model, structure, [(draw(3, 3), None)], lambda out, _: ops.mean(out) * 1e-3
    )
    assert {array.dtype.name for array in found.values()} == {"float32"}
    np.testing.assert_allclose(found["dense_1.bias"], 0.25e-6, rtol=1e-2)  # half ends at 6e-8


def test_losses_without_curvature():
    model = keras.Sequential([keras.Input((3,)), kl.Dense(2), kl.Dense(2)])
    structure = BACKEND.describe(model)
    last = {"dense_1.weight": np.ones((2, 2))}
    found = BACKEND.hvp(model, structure, [(draw(4, 3), None)], lambda out, _: ops.sum(out), last)
    assert found["dense.weight"].any()
    assert not found["dense_1.weight"].any()
    bias = {"dense_1.bias": np.ones(2)}
    found = BACKEND.hvp(model, structure, [(draw(4, 3), None)], lambda out, _: ops.sum(out), bias)
    assert not any(array.any() for array in found.values())


@pytest.mark.engines("tensorflow", reason="its moments leave out what only second ones see")
def test_second_derivatives_of_moments():
    import tensorflow as tf

    class Normed(kl.Layer):
        def call(self, x):
            mean, variance = tf.nn.moments(x, [1])
            return (x - mean[:, None]) / tf.sqrt(variance[:, None] + 0.1)

    model = keras.Sequential([keras.Input((4,)), kl.Dense(5), Normed(), kl.Dense(2)])
    structure, before = BACKEND.describe(model), tf.nn.moments
    vector = vector_of(structure)
    x, cotangent = draw(6, 4), draw(6, 2, seed=1)
    ends = [
        BACKEND.vjp(model, structure, [x], [cotangent], moved(own(model), vector, step))
        for step in (1e-5, -1e-5)
    ]
    found = BACKEND.hvp(model, structure, [(x, cotangent)], lambda out, c: ops.sum(out * c), vector)
    assert_near(found, {n: (a - ends[1][n]) / 2e-5 for n, a in ends[0].items()}, 1e-3)
    assert tf.nn.moments is before


# activations


def by_gradient(model, structure, x, name):
    """What each weight of a first layer sees: the gradient of the sum of its outputs for x**2."""
    totals = BACKEND.gradients(model, structure, [(x**2, None)], lambda out, _: ops.sum(out))
    outputs = model(x)
    places = np.prod(outputs.shape) / outputs.shape[-1]
    return np.sqrt(totals[name] / places)


FIRST = {
    "dense": ((4, 5), lambda: kl.Dense(3)),
    "einsum": ((4, 5), lambda: kl.EinsumDense("abc,cd->abd", (None, 3))),
    "same": ((5, 6, 4), lambda: kl.Conv2D(6, (3, 2), strides=2, padding="same", groups=2)),
    "dilated": ((7, 6, 2), lambda: kl.Conv2D(3, 3, dilation_rate=2, padding="same")),
    "causal": ((6, 3), lambda: kl.Conv1D(4, 3, padding="causal", dilation_rate=2)),
    "3d": ((3, 4, 5, 2), lambda: kl.Conv3D(3, (1, 2, 3), padding="same")),
    "depthwise": ((5, 4, 3), lambda: kl.DepthwiseConv2D(3, depth_multiplier=2, padding="same")),
}


@pytest.mark.parametrize("case", FIRST)
def test_activations_of_a_first_layer(case):
    shape, make = FIRST[case]
    model = keras.Sequential([keras.Input(shape), make()])
    structure = BACKEND.describe(model)
    name = next(info.name for info in structure.infos if info.prunable)
    x = draw(6, *shape)
    found = BACKEND.activations(model, structure, [(x[:2], None), (x[2:], None)], [name])[name]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, by_gradient(model, structure, x, name), rtol=1e-5)


def rms(x):
    return np.sqrt(np.mean(np.square(x), tuple(range(x.ndim - 1))))


def test_activations_of_transposed_and_separable_convolutions():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((5, 5, 2))
    separable = kl.SeparableConv2D(3, 3, depth_multiplier=2, padding="same", use_bias=False)
    transposed = kl.Conv2DTranspose(4, 3, strides=2, padding="same")
    model = keras.Model(inputs, transposed(separable(inputs)))
    structure = BACKEND.describe(model)
    names = [info.name for info in structure.infos if info.prunable]
    x = draw(4, 5, 5, 2)
    found = dict(zip(["over", "across", "up"], BACKEND.activations(
        model, structure, [(x, None)], names).values(), strict=True))  # fmt: skip
    depthwise = kl.DepthwiseConv2D(3, depth_multiplier=2, padding="same", use_bias=False)
    twin = keras.Sequential([keras.Input((5, 5, 2)), depthwise])
    depthwise.kernel.assign(separable.depthwise_kernel)
    there = BACKEND.describe(twin)
    wanted = by_gradient(twin, there, x, there.infos[0].name)
    np.testing.assert_allclose(found["over"], wanted, rtol=1e-5)
    between = rms(ops.convert_to_numpy(twin(x)))
    np.testing.assert_allclose(found["across"][:, :, 0, 0], np.tile(between, (3, 1)), rtol=1e-5)
    strength = np.broadcast_to(rms(ops.convert_to_numpy(separable(x)))[:, None, None, None],
                               (3, 4, 3, 3))  # fmt: skip
    np.testing.assert_allclose(found["up"], strength, rtol=1e-5)


class Doubling(kl.Dense):
    def call(self, inputs):
        return super().call(2 * inputs)


def test_activations_of_kernels_that_are_called_again():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,))
    shared = kl.Dense(3, use_bias=False)
    doubling = Doubling(2, use_bias=False)
    model = keras.Model(inputs, doubling(shared(shared(inputs))))
    structure = BACKEND.describe(model)
    x = draw(5, 3)
    once = x @ ops.convert_to_numpy(shared.kernel)
    found = BACKEND.activations(model, structure, [(x, None)], ["dense.weight", "doubling.weight"])
    wanted = np.tile(rms(np.concatenate([x, once])), (3, 1))
    np.testing.assert_allclose(found["dense.weight"], wanted, rtol=1e-5)
    twice = 2 * once @ ops.convert_to_numpy(shared.kernel)
    np.testing.assert_allclose(found["doubling.weight"], np.tile(rms(twice), (2, 1)), rtol=1e-5)


class Tied(keras.Model):
    def __init__(self, other):
        super().__init__()
        self.first, self.second = kl.Dense(3, use_bias=False), other
        self.first.build((None, 3))
        setattr(other, "_kernel" if isinstance(other, kl.Dense) else "_embeddings",
                self.first.kernel)  # fmt: skip
        other.bias = None
        self.built = other.built = True

    def call(self, x):
        first = self.first(x)
        return self.second(inputs=first) if isinstance(self.second, kl.Dense) else first


def test_activations_of_tied_kernels():
    x = draw(5, 3)
    model = Tied(kl.Dense(3, use_bias=False))
    structure = BACKEND.describe(model)
    assert [info.name for info in structure.infos] == ["dense.weight"]
    found = BACKEND.activations(model, structure, [(x, None)], ["dense.weight"])["dense.weight"]
    first = ops.convert_to_numpy(model.first(x))
    np.testing.assert_allclose(found, np.tile(rms(np.concatenate([x, first])), (3, 1)), rtol=1e-5)
    model = Tied(kl.Embedding(3, 3))
    structure = BACKEND.describe(model)
    with pytest.raises(CapabilityError, match="'dense.weight'.*'linear' in Dense and Embedding"):
        BACKEND.activations(model, structure, [(x, None)], ["dense.weight"])


def test_activations_inside_an_attention_and_along_time():
    model, structure, *_, native = built("attention")
    name = "multi_head_attention.query.weight"
    found = BACKEND.activations(model, structure, [(native, None)], [name])[name]
    np.testing.assert_allclose(found, np.tile(rms(native), (6, 1)), rtol=1e-5)
    model, structure, *_, native = built("embedding")
    name = next(n for n in structure.by_name if "time" in n and n.endswith("weight"))
    found = BACKEND.activations(model, structure, [(native, None)], [name])[name]
    table = ops.convert_to_numpy(model.layers[0].embeddings)[native]
    np.testing.assert_allclose(found, np.tile(rms(table), (3, 1)), rtol=1e-5)


@pytest.mark.parametrize(
    ("case", "name", "kind"),
    [
        ("embedding", "embedding.weight", "'embedding' in Embedding"),
        ("lstm", "lstm.lstm_cell.w_ih", "'lstm' in LSTMCell"),
        ("nested", "dense.bias", "the bias of .*'linear'"),
    ],
)
def test_activations_of_other_parameters_are_refused(case, name, kind):
    model, structure, *_, native = built(case)
    with pytest.raises(CapabilityError, match=f"'{name}'.*{kind}"):
        BACKEND.activations(model, structure, [(native, None)], [name])


class Unused(keras.Model):
    def __init__(self):
        super().__init__()
        self.layer, self.idle = kl.Dense(2), kl.Dense(2)
        self.layer.build((None, 3))
        self.idle.build((None, 3))
        self.built = True

    def call(self, x):
        return self.layer(x) @ self.idle.kernel[:2]


def test_kernels_whose_layer_is_not_called_are_refused():
    model = Unused()
    with pytest.raises(CapabilityError, match="'dense_1.weight' is not called"):
        BACKEND.activations(
            model, BACKEND.describe(model), [(draw(2, 3), None)], ["dense_1.weight"]
        )


@pytest.mark.engines("tensorflow", reason="others compile no part of a model")
def test_layers_in_a_compiled_call_are_refused():
    import tensorflow as tf

    class Compiled(keras.Model):
        def __init__(self):
            super().__init__()
            self.layer = kl.Dense(2)
            self.layer.build((None, 3))
            self.built = True

        @tf.function
        def call(self, x):
            return self.layer(x)

    model = Compiled()
    with pytest.raises(
        CapabilityError, match="^the layer of 'dense.weight' runs inside a compiled"
    ):
        BACKEND.activations(model, BACKEND.describe(model), [(draw(2, 3), None)], ["dense.weight"])
