"""The Keras backend keeps every promise of the conformance suite, and some of its own."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

keras = pytest.importorskip("keras")

from keras import layers as kl  # noqa: E402
from keras import ops  # noqa: E402

import ltcore as lt  # noqa: E402
from ltcore.errors import CapabilityError, InvalidValueError, ModelNotBuiltError  # noqa: E402
from ltcore.layouts import SEAM, UNKNOWN_GROUP  # noqa: E402
from ltcore.parameters import in_canonical_order  # noqa: E402
from ltcore.plugins import detect  # noqa: E402
from ltcore.testing.suite_gradients import GradientChecks  # noqa: E402
from ltcore.testing.suite_training import TrainingChecks  # noqa: E402
from ltcore.testing.suite_values import ValueChecks  # noqa: E402
from own_loops import Loop, mean_square  # noqa: E402

# Keras 3.15 with numpy 2.4: saving a model makes numpy warn.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

BACKEND = detect(keras.Sequential())
ENGINE = keras.backend.backend()
JIT = ENGINE == "jax"  # the others compile slowly and gain nothing here


def norm(**options):
    return kl.BatchNormalization(epsilon=1e-5, momentum=0.9, **options)


def shared(first, *rest):
    inputs = keras.Input((5,))
    x = kl.ReLU()(first(kl.ReLU()(first(inputs))))
    for layer in rest:
        x = layer(x)
    return keras.Model(inputs, x)


BUILDERS = {
    "linear": lambda: [keras.Input((6,)), kl.Dense(5, "relu"), kl.Dense(3)],
    "conv1d": lambda: [
        keras.Input((7, 2)), kl.ZeroPadding1D(1), kl.Conv1D(3, 3, strides=2), kl.ReLU(),
        kl.Conv1D(2, 2)],
    "conv2d": lambda: [
        keras.Input((5, 7, 2)), kl.Conv2D(3, (3, 2), strides=2), kl.ReLU(), kl.Conv2D(2, (1, 2))],
    "conv3d": lambda: [
        keras.Input((3, 2, 4, 2)), kl.Conv3D(3, (2, 1, 3)), kl.ReLU(), kl.Conv3D(2, 1)],
    "grouped": lambda: [
        keras.Input((4, 4, 4)), kl.Conv2D(6, (3, 2), groups=2), kl.ReLU(), kl.Conv2D(2, 1)],
    "depthwise": lambda: [
        keras.Input((4, 4, 3)), kl.DepthwiseConv2D((3, 2), depth_multiplier=2), kl.ReLU(),
        kl.Conv2D(2, 1)],
    "conv_transpose": lambda: [
        keras.Input((3, 2, 2)), kl.Conv2DTranspose(3, (3, 2), strides=2), kl.ReLU(),
        kl.Conv2D(2, 2)],
    "batchnorm": lambda: [
        keras.Input((4, 5, 2)), kl.Conv2D(3, 3), norm(), kl.ReLU(), kl.GlobalAveragePooling2D(),
        kl.Dense(2)],
    "layernorm": lambda: [
        keras.Input((5,)), kl.Dense(6), kl.LayerNormalization(epsilon=1e-5), kl.ReLU(),
        kl.Dense(3)],
    "embedding": lambda: [
        keras.Input((3,), dtype="int32"), kl.Embedding(7, 4), kl.Flatten(), kl.Dense(3)],
    "flatten": lambda: [
        keras.Input((5, 3, 2)), kl.Conv2D(3, 2), kl.ReLU(), kl.Flatten(), kl.Dense(2)],
    "flatten_norm": lambda: [
        keras.Input((5, 3, 2)), kl.Conv2D(3, 2), kl.Flatten(), norm(), kl.ReLU(), kl.Dense(2)],
    "image": lambda: [
        keras.Input((5,)), kl.Dense(18), norm(), kl.ReLU(), kl.Reshape((3, 2, 3)),
        kl.Conv2D(2, 2)],
}  # fmt: skip


class Hooks:
    optimizers = ("sgd", "clipped")  # tests/test_keras_hold.py has the others

    def teardown_method(self):
        """Stop what callbacks that know their model would keep alive: ears are the process's."""
        for handle in self._handles:
            (handle.stop if hasattr(handle, "stop") else handle.release)()

    def backend(self):
        return BACKEND

    def build(self, case, seed=0):
        keras.utils.set_random_seed(seed)
        if case == "shared":
            return shared(kl.Dense(5), kl.Dense(2))
        return keras.Sequential(BUILDERS[case]())

    def to_native(self, case, array):
        return np.moveaxis(array, 1, -1) if array.ndim > 2 else array

    def optimizer(self, word):
        return {
            "sgd": lambda: keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=0.01),
            "clipped": lambda: keras.optimizers.SGD(0.1, global_clipnorm=0.1),
            "adamw": lambda: keras.optimizers.AdamW(0.01),
        }[word]()

    def trainer(self, model, case, optimizer="sgd"):
        made, x, y = self.optimizer(optimizer), self.example(case), self.targets(case)

        step = Loop(model, made, compiled=ENGINE == "jax", loss=self.loss())

        def train(updates):
            for _ in range(updates):
                step(x, y)

        return train

    def loss(self):
        return mean_square


class TestValues(Hooks, ValueChecks):
    pass


class TestDerivatives(Hooks, GradientChecks):
    # Eager Keras takes its time; tests/test_keras_derivatives.py has more kinds of layers.
    cases = ("linear", "depthwise", "conv_transpose", "batchnorm", "embedding", "flatten")


class TestTraining(Hooks, TrainingChecks):
    # Half of the cases, one of each way in which a layer can be special: eager Keras takes its
    # time. tests/test_keras_hold.py has compiled training.
    cases = ("linear", "depthwise", "batchnorm", "embedding", "flatten_norm", "shared")
    # Buffers cannot be seen in a compiled step by hand, and JAX is slow without compiling.
    unsupported = frozenset({"batchnorm", "flatten_norm"}) if ENGINE == "jax" else frozenset()
    if ENGINE == "jax":  # nobody hears what goes on in a compiled step: TestInFit has these
        test_callback_hears_of_updates = test_callback_changes_the_model = None
        test_callback_ends = test_callback_errors_reach_the_loop = None


class TestInFit(Hooks, TrainingChecks):
    optimizers = ("sgd",)
    cases = ("batchnorm", "flatten_norm") if ENGINE == "jax" else ("batchnorm",)

    def trainer(self, model, case, optimizer="sgd"):
        model.compile(self.optimizer(optimizer), lambda y, z: self.loss()(z, y), jit_compile=JIT)
        x, y = self.example(case), self.targets(case)

        def train(updates):
            many = [np.concatenate([part] * updates) for part in (x, y)]
            model.fit(*many, batch_size=len(x), shuffle=False, verbose=0)

        return train


def describe(model, example=None):
    return BACKEND.describe(model, example)


def sites(model, example=None):
    return {site.name: site for site in describe(model, example).sites}


class Block(kl.Layer):
    """A residual block, its layers in a list and in attributes, as users write them."""

    def __init__(self, channels, **options):
        super().__init__(**options)
        self.convs = [kl.Conv2D(channels, 3, padding="same") for _ in range(2)]
        self.norm = kl.BatchNormalization()
        self.shortcut = kl.Conv2D(channels, 1)

    def call(self, x, training=None):
        y = ops.relu(self.norm(self.convs[0](x), training=training))
        return ops.relu(self.convs[1](y) + self.shortcut(x))


class Net(keras.Model):
    def __init__(self, permute=False):
        super().__init__()
        self.first, self.second = Block(4), Block(5, name="two")
        self.head = kl.Dense(3)
        self.permute = permute

    def call(self, x):
        x = self.second(self.first(x))
        if self.permute:
            x = ops.transpose(x, (0, 3, 1, 2))
        return self.head(ops.reshape(x, (ops.shape(x)[0], -1)))


def net(**options):
    model = Net(**options)
    model(np.zeros((2, 4, 3, 2), "float32"))
    return model


# names


def test_names_do_not_depend_on_what_was_built_before():
    def build():
        return keras.Sequential(
            [
                keras.Input((8, 6)),
                kl.Bidirectional(kl.LSTM(3, return_sequences=True)),
                kl.Dense(4),
                kl.Dense(4, name="my own"),
                kl.Dense(4),
                keras.Sequential([keras.Input((8, 4)), kl.Dense(2)]),
            ]
        )

    first, second = describe(build()), describe(build())
    assert first == second
    assert [name for name in first.shapes if "_ih" not in name or name.endswith("w_ih")] == [
        "bidirectional.forward_lstm.lstm_cell.w_ih",
        "bidirectional.forward_lstm.lstm_cell.w_hh",
        "bidirectional.backward_lstm.lstm_cell.w_ih",
        "bidirectional.backward_lstm.lstm_cell.w_hh",
        "dense.weight", "dense.bias", "my_own.weight", "my_own.bias",
        "dense_1.weight", "dense_1.bias",
        "sequential.dense.weight", "sequential.dense.bias",
    ]  # fmt: skip


def test_names_in_a_subclassed_model():
    assert list(sites(net())) == [
        "block.conv2d", "block.conv2d_1", "block.batch_normalization", "block.conv2d_2",
        "two.conv2d", "two.conv2d_1", "two.batch_normalization", "two.conv2d_2", "dense",
    ]  # fmt: skip


def test_equal_names_are_told_apart():
    class Twins(keras.Model):
        def __init__(self):
            super().__init__()
            self.parts = [kl.Dense(2, name="x"), kl.Dense(2, name="x")]

        def call(self, x):
            return self.parts[1](self.parts[0](x))

    model = Twins()
    model(np.zeros((1, 2), "float32"))
    assert list(sites(model)) == ["x", "x_1"]


def test_describe_leaves_no_trace_in_keras():
    model = net()
    layers = model._flatten_layers()
    before = [(len(la._inbound_nodes), len(la._outbound_nodes)) for la in layers]
    first = kl.Add().name
    describe(model)
    assert kl.Add().name == f"add_{int(first.partition('_')[2] or 0) + 1}"
    assert [(len(la._inbound_nodes), len(la._outbound_nodes)) for la in layers] == before
    assert "symbolic_call" not in vars(keras.Model)
    assert keras.Operation.symbolic_call.__module__ == "keras.src.ops.operation"
    assert keras.Layer.symbolic_call.__module__ == "keras.src.layers.layer"


def test_parameters_are_in_torch_layout():
    model = keras.Sequential(
        [keras.Input((9, 9, 2)), kl.Conv2D(4, (3, 5), strides=2), kl.DepthwiseConv2D(2),
         kl.Flatten(), kl.Dense(3)]
    )  # fmt: skip
    structure = describe(model)
    found = BACKEND.read(model, structure)
    kernel = model.layers[0].kernel.numpy()
    assert np.array_equal(found["conv2d.weight"], kernel.transpose(3, 2, 0, 1))
    depthwise = model.layers[1].kernel.numpy()  # (2, 2, 4, 1)
    assert np.array_equal(found["depthwise_conv2d.weight"], depthwise.transpose(2, 3, 0, 1))
    dense = model.layers[3].kernel.numpy()  # rows in the order height, width, channel
    assert np.array_equal(found["dense.weight"], dense.T)
    columns = dense.reshape(3, 2, 4, 3).transpose(3, 2, 0, 1).reshape(3, -1)
    assert np.array_equal(in_canonical_order(found, structure)["dense.weight"], columns)


def test_unbuilt_models():
    model = keras.Sequential([kl.Dense(3), kl.Dense(2)])
    with pytest.raises(ModelNotBuiltError, match="call it once on real input, or give example="):
        describe(model)
    assert list(sites(model, np.zeros((1, 4), "float32"))) == ["dense", "dense_1"]
    with pytest.raises(ModelNotBuiltError, match="no weights yet"):
        lt.prune(Net(), sparsity=0.5)


def test_half_precision_crosses_as_float32():
    model = keras.Sequential([keras.Input((4,)), kl.Dense(3, dtype="bfloat16")])
    structure = describe(model)
    assert structure.by_name["dense.weight"][1].dtype == "bfloat16"
    before = BACKEND.read(model, structure)
    assert before["dense.weight"].dtype == np.float32
    BACKEND.write(model, structure, before)
    assert model.layers[0].kernel.dtype == "bfloat16"
    assert np.array_equal(BACKEND.read(model, structure)["dense.weight"], before["dense.weight"])


def test_write_of_a_wrong_shape_changes_nothing():
    model = keras.Sequential([keras.Input((4,)), kl.Dense(3)])
    structure = describe(model)
    before = BACKEND.read(model, structure)
    wrong = {"dense.bias": np.ones(3, "float32"), "dense.weight": np.ones((4, 3), "float32")}
    with pytest.raises(InvalidValueError, match=r"dense.weight.*\(3, 4\).*\(4, 3\)"):
        BACKEND.write(model, structure, wrong)
    assert np.array_equal(BACKEND.read(model, structure)["dense.bias"], before["dense.bias"])


# what ltcore does not know


def test_layers_that_are_not_known_are_raw():
    inputs = keras.Input((8, 5, 3))
    x = kl.ConvLSTM1D(4, 2)(inputs)
    x = kl.AdditiveAttention()([x, x])
    model = keras.Model(inputs, kl.Dense(2)(kl.GlobalAveragePooling1D()(x)))
    structure = describe(model)
    kinds = {site.name: site.kind for site in structure.sites}
    assert {kind for name, kind in kinds.items() if name != "dense"} == {"raw"}
    assert [info.name for info in structure.infos if info.prunable] == ["dense.weight"]
    assert "no portable layout" in structure.why_not_portable()
    hold = lt.prune(model, sparsity=0.5)
    assert hold.masks.kept == 4
    with pytest.raises(CapabilityError, match="additive_attention.scale.*does not say how"):
        BACKEND.redraw(model, structure, 0)


def test_lora_is_never_read_as_a_plain_kernel():
    model = keras.Sequential([keras.Input((4,)), kl.Dense(3)])
    model.layers[0].enable_lora(2)
    assert sites(model)["dense"].kind == "raw"


def test_norms_over_other_axes_are_raw():
    def kind(**options):
        model = keras.Sequential([keras.Input((4, 5, 3)), kl.LayerNormalization(**options)])
        site = sites(model)["layer_normalization"]
        return site.kind, site.roles[0].shape

    assert kind() == kind(axis=3) == ("layernorm", (3,))
    assert kind(axis=[1, 2, 3]) == ("layernorm", (3, 4, 5))
    assert kind(axis=1) == ("raw", (4,))


class Tied(kl.Dense):
    """A dense layer with the kernel of another."""

    def __init__(self, other):
        super().__init__(other.units, use_bias=False)
        self.other_kernel = other._kernel

    def build(self, shape):
        self._kernel, self.bias = self.other_kernel, None


def test_tied_weights_are_one_parameter():
    first = kl.Dense(3)
    first.build((None, 3))
    model = keras.Sequential([keras.Input((3,)), first, Tied(first)])
    structure = describe(model)
    assert list(structure.shapes) == ["dense.weight", "dense.bias"]
    assert structure.by_name["dense.weight"][1].aliases == ("tied/kernel",)
    with lt.prune(model, sparsity=0.5) as pruned:
        assert pruned.masks.total == 9


def test_attributes_are_torch_ones():
    model = keras.Sequential(
        [keras.Input((9, 9, 2)), kl.Conv2D(4, 3, strides=2, padding="same", dilation_rate=1),
         kl.BatchNormalization()]
    )  # fmt: skip
    assert sites(model)["conv2d"].attrs == {
        "stride": [2, 2], "dilation": [1, 1], "groups": 1, "padding": [[1, 1], [1, 1]]
    }  # fmt: skip
    assert sites(model)["batch_normalization"].attrs == {"eps": 0.001, "momentum": 0.01}
    json.dumps(sites(model)["conv2d"].attrs)


# how data flows


def test_graph_of_a_subclassed_model():
    found = sites(net())
    assert found["block.conv2d"].preds == found["block.conv2d_2"].preds == ()
    assert found["two.conv2d"].preds == ("block.conv2d_1", "block.conv2d_2")
    assert found["dense"].preds == ("two.conv2d_1", "two.conv2d_2")
    assert found["dense"].in_group == (("S0", 4), ("S1", 3), ("C", 5))
    assert [site.name for site in found.values() if site.is_output] == ["dense"]
    assert sites(net(permute=True))["dense"].in_group == (("C", 5), ("S0", 4), ("S1", 3))


def test_graph_of_shared_and_nested_layers():
    inputs = keras.Input((10,))
    twice = kl.Dense(10, name="twice")
    x = keras.Sequential([keras.Input((10,)), kl.Dense(4), kl.Dense(4)], name="enc")(
        twice(twice(inputs))
    )
    x = kl.Add()([x, kl.Dense(4)(inputs)]) * 2
    found = sites(keras.Model(inputs, kl.Dense(1)(x)))
    assert found["twice"].preds == ("twice",)
    assert found["enc.dense"].preds == ("twice",)
    assert found["dense_1"].preds == ("enc.dense_1", "dense")


@pytest.mark.parametrize(
    ("layers", "group"),
    [
        (lambda: [kl.Flatten()], (("S0", 4), ("S1", 5), ("C", 3))),
        (lambda: [kl.Reshape((60,))], (("S0", 4), ("S1", 5), ("C", 3))),
        (lambda: [kl.Permute((3, 1, 2)), kl.Flatten()], (("C", 3), ("S0", 4), ("S1", 5))),
        (lambda: [kl.Permute((2, 1, 3)), kl.Flatten()], (("S1", 5), ("S0", 4), ("C", 3))),
        (lambda: [kl.MaxPooling2D((4, 5)), kl.Flatten()], None),
        (lambda: [kl.GlobalMaxPooling2D()], None),
        (lambda: [kl.Reshape((20, 3)), kl.Permute((2, 1)), kl.Flatten()],
         (("C", 3), ("S0", 4), ("S1", 5))),
        (lambda: [kl.Reshape((10, 6)), kl.Flatten()], UNKNOWN_GROUP),
        (lambda: [kl.Lambda(lambda x: ops.sort(x, 1)), kl.Flatten()], UNKNOWN_GROUP),
        (lambda: [kl.Lambda(lambda x: x[:, ::-1]), kl.Flatten()],
         (("S0", 4), ("S1", 5), ("C", 3))),
        (lambda: [kl.Flatten(), kl.Dropout(0.1), kl.ReLU()], (("S0", 4), ("S1", 5), ("C", 3))),
    ],
)  # fmt: skip
def test_flatten_order(layers, group):
    model = keras.Sequential([keras.Input((4, 5, 3)), *layers(), kl.Dense(2)])
    structure = describe(model)
    assert structure.sites[-1].in_group == group
    assert bool(structure.why_not_portable()) == (group == UNKNOWN_GROUP)


def test_concatenated_features():
    image, extra = keras.Input((4, 5, 2)), keras.Input((6,))

    def group(*parts):
        joined = kl.Concatenate()(list(parts))
        joined = kl.Flatten()(joined) if len(joined.shape) > 2 else joined
        model = keras.Model([image, extra], kl.Dense(2)(joined))
        return sites(model)["dense"].in_group

    assert group(kl.Conv2D(3, 1)(image), image) == (("S0", 4), ("S1", 5), ("C", 5))
    flat = (("S0", 4), ("S1", 5), ("C", 2))
    assert group(kl.Flatten()(image), extra) == (*flat, SEAM, ("F", 6))
    assert group(extra, kl.Flatten()(image)) == (("F", 6), SEAM, *flat)
    assert group(kl.Flatten()(image), kl.Flatten()(image)) == (*flat, SEAM, *flat)
    assert group(extra, extra) is None


def test_a_layer_of_the_users_own_is_not_known_by_its_name():
    class Flatten(kl.Layer):
        def call(self, x):
            return ops.reshape(ops.transpose(x, (0, 2, 3, 1)), (-1, 60))

    model = keras.Sequential([keras.Input((4, 5, 3)), Flatten(), kl.Dense(2)])
    assert sites(model)["dense"].in_group == (("S1", 5), ("C", 3), ("S0", 4))


def test_channels_first_flatten_moves_channels():
    flatten = kl.Flatten(data_format="channels_first")
    model = keras.Sequential([keras.Input((3, 4, 5)), flatten, kl.Dense(2)])
    structure = describe(model)
    assert structure.sites[0].in_group == (("S0", 4), ("S1", 5), ("C", 3))
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype("float32")
    assert structure.inputs[0].axes == ("N", "C", "S0", "S1")
    found = BACKEND.forward(model, structure, [x])[0]
    weight = in_canonical_order(BACKEND.read(model, structure), structure)["dense.weight"]
    assert np.allclose(found, x.reshape(2, -1) @ weight.T, atol=1e-5)


def test_one_channel_has_no_order():
    model = keras.Sequential(
        [keras.Input((8, 8)), kl.Reshape((8, 8, 1)), kl.Conv2D(2, 3), kl.Flatten(), kl.Dense(2)]
    )
    assert describe(model).why_not_portable() == ""


def test_token_models_take_tokens_even_where_they_say_float():
    model = keras.Sequential([keras.Input((7,)), kl.Embedding(20, 6), kl.GlobalAveragePooling1D()])
    face = describe(model).inputs[0]
    assert (face.axes, face.shape, face.dtype) == (("N", "T"), (0, 7), "int32")


def test_several_inputs_and_outputs():
    a, b = keras.Input((3,), name="a"), keras.Input((4, 5, 2), name="b")
    y = kl.Conv2D(6, 2)(b)
    model = keras.Model({"a": a, "b": b}, [kl.Dense(2)(a), y])
    structure = describe(model)
    assert [face.shape for face in structure.inputs] == [(0, 3), (0, 2, 4, 5)]
    rng = np.random.default_rng(0)
    inputs = [rng.normal(size=s).astype("float32") for s in ((2, 3), (2, 2, 4, 5))]
    first, second = BACKEND.forward(model, structure, inputs)
    assert first.shape == (2, 2)
    assert second.shape == (2, 6, 3, 4)
    expected = model({"a": inputs[0], "b": inputs[1].transpose(0, 2, 3, 1)})[1]
    assert np.allclose(second, np.moveaxis(ops.convert_to_numpy(expected), -1, 1))


def own_relu(x):
    """Not one of Keras's operations."""
    if ENGINE == "tensorflow":
        import tensorflow as tf

        return tf.nn.relu(x)
    if ENGINE == "torch":
        import torch

        return torch.relu(x)
    import jax

    return jax.nn.relu(x)


def test_a_model_that_cannot_be_followed_says_why():
    class Raw(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = kl.Dense(2)

        def call(self, x):
            return own_relu(self.dense(x))

    model = Raw()
    model(np.zeros((1, 3), "float32"))
    structure = describe(model)
    assert "a symbolic call of the model failed" in structure.untraced
    assert ("JAX" if ENGINE == "jax" else "KerasTensor").lower() in structure.untraced.lower()
    assert structure.inputs is None
    assert structure.sites[0].preds is None
    assert lt.prune(model, sparsity=0.5).masks.kept == 3


def test_state_that_a_call_writes_is_left():
    class Counting(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = kl.Dense(2)
            self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False)

        def call(self, x):
            self.calls.assign_add(1)
            return self.dense(x)

    model = Counting()
    model(np.zeros((1, 3), "float32"))
    before = float(model.calls.numpy())
    describe(model)
    assert float(model.calls.numpy()) == before


class Sampling(kl.Layer):
    """Adds a loss on symbols, as the encoder of an autoencoder does."""

    def __init__(self):
        super().__init__()
        self.dense = kl.Dense(4)

    def call(self, x):
        out = self.dense(x)
        self.add_loss(ops.mean(ops.square(out)))
        return out


def test_a_layer_that_adds_a_loss_is_followed_and_keeps_it():
    model = keras.Sequential([kl.Dense(5), Sampling(), kl.Dense(2)])
    x = np.ones((2, 3), "float32")
    model(x)
    before = [float(ops.stop_gradient(loss)) for loss in model.losses]
    assert len(before) == 1
    structure = describe(model)
    assert not structure.untraced
    preds = {site.name: site.preds for site in structure.sites}
    assert preds["sampling.dense"] is not None
    assert [float(ops.stop_gradient(loss)) for loss in model.losses] == before
    model(x)
    assert [float(ops.stop_gradient(loss)) for loss in model.losses] == before


class Flags(kl.Layer):
    """Has a buffer of its own in an unsigned dtype, and looks after a random state."""

    def build(self, shape):
        self.flags = self.add_weight(
            shape=(3,), initializer="ones", trainable=False, dtype="uint8", name="flags"
        )
        self.seeds = keras.random.SeedGenerator(1)
        self.state = self.seeds.state

    def call(self, x):
        return x


def test_unsigned_buffers_are_kept_and_random_states_are_not():
    model = keras.Sequential([keras.Input((3,)), Flags(), kl.Dense(2)])
    assert any(v is model.layers[0].state for v in model.weights)
    structure = describe(model)
    found = BACKEND.read(model, structure)
    assert set(found) == {"flags.flags", "dense.weight", "dense.bias"}
    model.layers[0].flags.assign([0, 7, 255])
    BACKEND.write(model, structure, found)
    assert ops.convert_to_numpy(model.layers[0].flags.value).tolist() == [1, 1, 1]


# redraw


def test_redraw_touches_no_global_state():
    model = net()
    structure = describe(model)
    keras.utils.set_random_seed(3)
    expected = ops.convert_to_numpy(keras.random.normal((3,)))
    keras.utils.set_random_seed(3)
    drawn = BACKEND.redraw(model, structure, 1)
    assert np.array_equal(ops.convert_to_numpy(keras.random.normal((3,))), expected)
    assert not np.array_equal(drawn["block.conv2d_1.weight"][:, :2], drawn["block.conv2d.weight"])
    assert (drawn["two.batch_normalization.running_var"] == 1).all()


def test_redraw_refuses_layers_that_do_not_say():
    class Scale(kl.Layer):
        def build(self, shape):
            self.scale = self.add_weight(shape=(shape[-1],), initializer="ones", name="scale")

        def call(self, x):
            return x * self.scale

    model = keras.Sequential([keras.Input((3,)), Scale(), kl.Dense(2)])
    with pytest.raises(CapabilityError, match=r"scale.scale.*class Scale.*how it is initialized"):
        BACKEND.redraw(model, describe(model), 0)


# the package


def test_the_package_imports_no_framework():
    code = (
        "import sys, ltcore_keras; [spec] = ltcore_keras.ltcore_register_backends(); "
        "print(spec.name, {'keras', 'tensorflow'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "keras set()"


def test_an_engine_that_cannot_train_is_refused_by_name():
    code = """
import keras, ltcore as lt, numpy as np
model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
from ltcore.plugins import detect
backend = detect(model)
structure = backend.describe(model)
x = np.ones((1, 3), "float32")
found = backend.forward(model, structure, [x])[0]
assert np.allclose(found, model.layers[0].kernel.value.sum(0), atol=1e-6)
assert backend.capabilities == {"activations", "checkpoints"}
strengths = backend.activations(model, structure, [(3 * x, None)], ["dense.weight"])
assert np.allclose(strengths["dense.weight"], np.full((2, 3), 3))
loss = lambda a, b: a
for act in (lambda: lt.prune(model, 0.5), lambda: backend.watch(model, structure, []),
            lambda: backend.gradients(model, structure, [(x, x)], loss),
            lambda: backend.fisher(model, structure, [(x, x)], loss),
            lambda: backend.hvp(model, structure, [(x, x)], loss, {}),
            lambda: backend.vjp(model, structure, [x], [x[:, :2]], backend.read(model, structure))):
    try:
        act()
    except lt.errors.CapabilityError as error:
        print(error)
"""
    env = {**os.environ, "KERAS_BACKEND": "numpy"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("'numpy' cannot train; set KERAS_BACKEND to tensorflow, torch or") == 6
