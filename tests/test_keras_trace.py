"""What a Keras model's axes mean, against what its numbers do."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

keras = pytest.importorskip("keras")

from keras import layers as kl  # noqa: E402
from keras import ops  # noqa: E402

from ltcore.layouts import UNKNOWN_GROUP, canonical_index  # noqa: E402
from ltcore.plugins import detect  # noqa: E402

BACKEND = detect(keras.Sequential())
SPACE_LAST = (("S0", 4), ("S1", 5), ("C", 3))


def describe(model, example=None):
    return BACKEND.describe(model, example)


def sites(model, example=None):
    return {site.name: site for site in describe(model, example).sites}


class Model(keras.Model):
    """A subclassed model made of named layers and a function of them."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def call(self, x):
        return self.function(self, x)


def built(function, example, **parts):
    model = Model(function, **parts)
    model(example)
    return model


def floats(*shape):
    return np.zeros(shape, "float32")


def tokens(*shape):
    return np.zeros(shape, "int32")


# the order of features, by what the model does to numbers


@st.composite
def moves(draw, shape):
    """Return ``[(word, argument)]`` that permute axes and reshape, and the last shape."""
    shape, chain = list(shape), []
    for _ in range(draw(st.integers(0, 4))):
        if draw(st.booleans()):
            order = draw(st.permutations(range(1, len(shape) + 1)))
            shape = [shape[axis - 1] for axis in order]
            chain.append(("permute", tuple(order)))
        else:
            shape = draw(st.sampled_from(list(reshapes(shape))))
            chain.append(("reshape", tuple(shape)))
    return chain, tuple(shape)


def reshapes(shape):
    """Yield shapes into which ``shape`` may be reshaped: joined, cut, or both."""
    size = math.prod(shape)
    for rank in (1, 2, 3, 4):
        for new in itertools.product(*[[1, 2, 3, 4, 6, 12, size]] * rank):
            if math.prod(new) == size:
                yield list(new)


def moved(x, chain, batch):
    for word, argument in chain:
        if word == "permute":
            x = ops.transpose(x, (0, *argument))
        else:
            x = ops.reshape(x, (batch, *argument))
    return x


@settings(max_examples=60)
@given(moves((2, 2, 3)))
def test_a_known_order_of_entering_features_is_the_order_of_the_numbers(found):
    chain, _ = found
    image = keras.Input((2, 2, 3))
    features = ops.reshape(moved(image, chain, -1), (-1, 12))
    model = keras.Model(image, kl.Dense(12, use_bias=False, name="dense")(features))
    model.get_layer("dense").kernel.assign(np.eye(12))
    site = sites(model)["dense"]
    x = np.arange(12.0, dtype="float32").reshape(1, 3, 2, 2)  # canonical: channels first
    native = BACKEND.forward(model, describe(model), [x])[0][0]
    assert site.in_group is not None  # channels and space are in there
    if site.in_group != UNKNOWN_GROUP:
        assert native[canonical_index(site.in_group)].tolist() == list(range(12))


@settings(max_examples=60)
@given(moves((12,)))
def test_a_known_order_of_leaving_features_is_the_order_of_the_numbers(found):
    chain, shape = found
    if len(shape) != 3:
        chain = [*chain, ("reshape", (2, 2, 3))]
        shape = (2, 2, 3)
    vector = keras.Input((5,))
    x = kl.Dense(12, use_bias=False, name="dense")(vector)
    conv = kl.Conv2D(shape[-1], 1, use_bias=False, name="conv")
    model = keras.Model(vector, conv(moved(x, chain, -1)))
    model.get_layer("conv").kernel.assign(np.eye(shape[-1])[None, None])
    kernel = np.zeros((5, 12))
    kernel[0] = np.arange(12)
    model.get_layer("dense").kernel.assign(kernel)
    structure = describe(model)
    x = np.eye(1, 5, dtype="float32")
    canonical = BACKEND.forward(model, structure, [x])[0].reshape(-1)
    group = structure.sites[0].out_group
    if group is None:
        # What is native is canonical: another framework gets the same numbers in channels first.
        places = [math.prod(shape[:2]) != 1, shape[2] != 1]
        assert sum(places) < 2 or structure.why_not_portable()
    elif group != UNKNOWN_GROUP:
        assert np.arange(12)[canonical_index(group)].tolist() == canonical.tolist()


@pytest.mark.parametrize(
    "chain",
    [
        [("reshape", (4, 3))],
        [("permute", (3, 1, 2)), ("reshape", (3, 4)), ("permute", (2, 1))],
        [("reshape", (2, 2, 1, 3)), ("permute", (4, 2, 3, 1)), ("reshape", (12,))],
        [("reshape", (2, 6)), ("permute", (2, 1)), ("reshape", (2, 3, 2)), ("permute", (3, 1, 2))],
    ],
)
def test_orders_that_are_known(chain):
    image = keras.Input((2, 2, 3))
    model = keras.Model(image, kl.Dense(2)(ops.reshape(moved(image, chain, -1), (-1, 12))))
    assert sites(model)["dense"].in_group not in (None, UNKNOWN_GROUP)


GROUP = (("S0", 4), ("S1", 4), ("C", 3))


def decoder(*between, units=48, shape=(4, 4, 3), end=None):
    dense = kl.Dense(units, name="dense")
    end = end or kl.Conv2D(2, 3, name="end")
    return keras.Sequential([keras.Input((7,)), dense, *between, kl.Reshape(shape), end])


@pytest.mark.parametrize(
    "between",
    [
        [],
        [kl.BatchNormalization(name="norm"), kl.LeakyReLU(0.2), kl.Dropout(0.5)],
        [kl.LayerNormalization(name="norm"), kl.Activation("relu")],
        [kl.PReLU(name="norm")],
    ],
)
@pytest.mark.parametrize(
    "end", [kl.Conv2D, kl.Conv2DTranspose, kl.SeparableConv2D, kl.DepthwiseConv2D]
)
def test_an_image_made_of_features_orders_them(between, end):
    last = end(3, name="end") if end is kl.DepthwiseConv2D else end(2, 3, name="end")
    structure = describe(decoder(*between, end=last))
    found = {site.name: site for site in structure.sites}
    assert found["dense"].out_group == GROUP
    if between:
        assert found["norm"].in_group == GROUP
    assert structure.why_not_portable() == ""


def test_space_changes_before_a_convolution():
    for layer in (kl.UpSampling2D(), kl.ZeroPadding2D(), kl.MaxPooling2D(), kl.Resizing(5, 5)):
        model = decoder(end=keras.Sequential([layer, kl.Conv2D(2, 2)]))
        assert sites(model)["dense"].out_group == GROUP


def test_features_that_are_added_share_their_order():
    x = keras.Input((7,))
    parts = [kl.Dense(48, name=name)(x) for name in ("a", "b")]
    image = kl.Reshape((4, 4, 3))(kl.Add()([parts[0], ops.relu(parts[1]) * 2.0]))
    found = sites(keras.Model(x, kl.Conv2D(2, 2)(image)))
    assert found["a"].out_group == found["b"].out_group == GROUP


def test_features_in_two_orders_have_none():
    x = keras.Input((7,))
    dense = kl.Dense(48, name="dense")(x)
    ends = [kl.Conv2D(2, 2)(kl.Reshape(shape)(dense)) for shape in ((4, 4, 3), (2, 8, 3))]
    structure = describe(keras.Model(x, ends))
    assert structure.sites[0].out_group == UNKNOWN_GROUP
    assert "features that leave 'dense'" in structure.why_not_portable()


def test_ordered_features_that_leave_the_model_are_refused():
    x = keras.Input((7,))
    dense = kl.Dense(48, name="dense")(x)
    model = keras.Model(x, [dense, kl.Conv2D(2, 2)(kl.Reshape((4, 4, 3))(dense))])
    assert "channels and space in one axis" in describe(model).why_not_portable()


def test_features_of_an_input_that_become_an_image():
    def why(shape):
        x = keras.Input((48,))
        return describe(keras.Model(x, kl.Conv2D(2, 2)(kl.Reshape(shape)(x)))).why_not_portable()

    assert "input 0 become channels and space" in why((4, 4, 3))
    assert why((6, 8, 1)) == ""


def test_images_that_leave_without_a_convolution():
    model = decoder(end=kl.Activation("sigmoid"))
    structure = describe(model)
    assert structure.sites[0].out_group == GROUP
    assert structure.outputs[0].axes == ("N", "C", "S0", "S1")
    gray = describe(decoder(units=16, shape=(4, 4, 1), end=kl.Activation("tanh")))
    assert gray.sites[0].out_group is None
    assert gray.outputs[0].shape == (0, 1, 4, 4)


def test_a_matrix_that_leaves_is_no_image():
    structure = describe(decoder(units=12, shape=(4, 3), end=kl.ReLU()))
    assert structure.sites[0].out_group is None
    assert structure.why_not_portable() == ""


def test_squeeze_and_excite():
    x = keras.Input((8, 8, 3))
    y = kl.Conv2D(6, 3, name="conv")(x)
    gate = kl.Dense(6, "sigmoid", name="excite")(
        kl.Dense(2, "relu", name="squeeze")(kl.GlobalAveragePooling2D()(y))
    )
    y = kl.Multiply()([y, kl.Reshape((1, 1, 6))(gate)])
    structure = describe(keras.Model(x, kl.Dense(2, name="end")(kl.Flatten()(y))))
    found = {site.name: site for site in structure.sites}
    assert structure.why_not_portable() == ""
    assert found["excite"].out_group is None
    assert found["end"].preds == ("conv", "excite")
    assert found["end"].in_group == (("S0", 6), ("S1", 6), ("C", 6))


def test_a_layer_that_is_used_in_two_orders_has_none():
    x = keras.Input((4, 5, 3))
    dense = kl.Dense(2, name="dense")
    y = [dense(kl.Flatten()(x)), dense(kl.Flatten()(kl.Permute((3, 1, 2))(x)))]
    assert sites(keras.Model(x, y))["dense"].in_group == UNKNOWN_GROUP


def test_patches_of_an_image():
    def group(cut):
        x = keras.Input((8, 8, 3))
        return sites(keras.Model(x, kl.Dense(5)(cut(x))))["dense"].in_group

    def by_hand(x):
        x = ops.transpose(ops.reshape(x, (-1, 2, 4, 2, 4, 3)), (0, 1, 3, 2, 4, 5))
        return ops.reshape(x, (-1, 4, 48))

    by_operation = group(lambda x: ops.image.extract_patches(x, 4))
    assert group(by_hand) == by_operation == (("S0", 4), ("S1", 4), ("C", 3))


def flattened_into_dense(function):
    x = keras.Input((4, 5, 3))
    y = kl.Flatten()(function(x))
    return sites(keras.Model(x, kl.Dense(2, name="end")(y)))["end"].in_group


def test_sizes_follow_what_changes_them():
    padded = flattened_into_dense(lambda x: ops.pad(x, [[0, 0], [1, 1], [0, 0], [0, 2]]))
    assert padded == (("S0", 6), ("S1", 5), ("C", 5))
    pooled = flattened_into_dense(lambda x: ops.average_pool(x, 2, padding="same"))
    assert pooled == (("S0", 2), ("S1", 3), ("C", 3))
    sliced = flattened_into_dense(lambda x: x[:, 1:, ::2, :2])
    assert sliced == (("S0", 3), ("S1", 3), ("C", 2))


def test_a_flatten_times_a_constant_depends_on_its_order():
    constant = np.eye(60, dtype="float32")
    product = flattened_into_dense(lambda x: ops.matmul(ops.reshape(x, (-1, 60)), constant))
    equation = flattened_into_dense(
        lambda x: ops.einsum("bi,ij->bj", ops.reshape(x, (-1, 60)), constant)
    )
    assert product == equation == UNKNOWN_GROUP


@pytest.mark.parametrize(
    ("layer", "is_proven"),
    [
        (kl.Conv1D(3, 1, groups=3, name="layer"), False),
        (kl.Conv1D(4, 1, name="layer"), True),
        (kl.DepthwiseConv1D(1, name="layer"), False),
        (kl.SeparableConv1D(4, 1, name="layer"), False),
        (kl.GroupNormalization(3, name="layer"), False),
        (kl.LayerNormalization(name="layer"), True),
    ],
)
def test_neighbours_of_a_flatten_are_not_the_same_everywhere(layer, is_proven):
    x = keras.Input((4, 5, 3))
    model = keras.Model(x, kl.Dense(2)(layer(kl.Reshape((4, 15))(x))))
    site = sites(model)["layer.depthwise" if isinstance(layer, kl.SeparableConv1D) else "layer"]
    assert site.in_group == ((("S1", 5), ("C", 3)) if is_proven else UNKNOWN_GROUP)


def test_windows_of_an_image():
    def windows(x):
        x = ops.transpose(ops.reshape(x, (-1, 2, 4, 2, 4, 6)), (0, 1, 3, 2, 4, 5))
        return ops.reshape(x, (-1, 16, 6))

    def joined(x):
        x = ops.transpose(ops.reshape(x, (-1, 2, 2, 4, 4, 6)), (0, 1, 3, 2, 4, 5))
        return ops.reshape(x, (-1, 8, 8, 6))

    x = keras.Input((8, 8, 3))
    y = ops.roll(kl.Conv2D(6, 1)(x), (-2, -2), axis=(1, 2))
    y = windows(y)
    y = ops.roll(joined(kl.MultiHeadAttention(2, 3)(y, y)), (2, 2), axis=(1, 2))
    structure = describe(keras.Model(x, kl.Conv2D(3, 1)(y)))
    assert structure.why_not_portable() == ""
    assert structure.outputs[0].axes == ("N", "C", "S0", "S1")


def test_a_transform_that_features_make():
    x = keras.Input((16, 3))
    y = kl.GlobalMaxPooling1D()(kl.Conv1D(8, 1)(x))
    matrix = kl.Reshape((3, 3))(kl.Dense(9, name="matrix")(y))
    y = kl.Conv1D(4, 1, name="end")(kl.Dot(axes=(2, 1))([x, matrix]))
    structure = describe(keras.Model(x, y))
    found = {site.name: site for site in structure.sites}
    assert structure.why_not_portable() == ""
    assert found["matrix"].out_group is None
    assert found["end"].preds == ("matrix",)


def test_vision_transformer_tokens():
    x = keras.Input((8, 8, 3))
    y = kl.Reshape((4, 6))(kl.Conv2D(6, 4, 4)(x))
    y = kl.Dense(2)(kl.Flatten()(y + kl.MultiHeadAttention(2, 3)(y, y)))
    structure = describe(keras.Model(x, y))
    assert structure.sites[-1].in_group == (("S0", 2), ("S1", 2), ("C", 6))
    assert structure.why_not_portable() == ""


# attention


def check_attention(model, example=None):
    structure = describe(model, example)
    found = {site.name: site for site in structure.sites}
    assert structure.why_not_portable() == ""
    assert found["o"].preds == ("q", "k", "v")
    assert found["o"].in_group is None
    assert structure.outputs[0].axes == ("N", "T", "F")


def split(x, heads=2):
    return ops.transpose(ops.reshape(x, (-1, 8, heads, 3)), (0, 2, 1, 3))


def merged(x):
    return ops.reshape(ops.transpose(x, (0, 2, 1, 3)), (-1, 8, 6))


def with_matmul(self, x):
    q, k, v = split(self.q(x)), split(self.k(x)), split(self.v(x))
    weights = ops.softmax(ops.matmul(q, ops.swapaxes(k, -1, -2)) / 3**0.5)
    return self.o(merged(ops.matmul(weights, v)))


def with_einsum(self, x):
    q, k, v = (ops.reshape(f(x), (-1, 8, 2, 3)) for f in (self.q, self.k, self.v))
    scores = ops.einsum("...qhd,...khd->...hqk", q, k)
    scores = ops.where(np.tri(8) > 0, scores, -1e9)
    return self.o(ops.reshape(ops.einsum("bhqk,bkhd->bqhd", ops.softmax(scores), v), (-1, 8, 6)))


def with_function(self, x):
    q, k, v = (ops.reshape(f(x), (-1, 8, 2, 3)) for f in (self.q, self.k, self.v))
    return self.o(ops.reshape(ops.dot_product_attention(q, k, v), (-1, 8, 6)))


def with_few_keys(self, x):
    q, k, v = split(self.q(x)), split(self.k(x)[..., :3], 1), split(self.v(x)[..., :3], 1)
    weights = ops.softmax(ops.matmul(q, ops.transpose(k, (0, 1, 3, 2))))
    return self.o(merged(ops.matmul(weights, ops.repeat(v, 2, axis=1))))


@pytest.mark.parametrize("function", [with_matmul, with_einsum, with_function, with_few_keys])
def test_attention_by_hand(function):
    parts = {name: kl.Dense(6, name=name) for name in "qkvo"}
    check_attention(built(function, floats(2, 8, 6), **parts), floats(2, 8, 6))


def test_attention_of_dense_layers_over_several_axes():
    parts = {
        name: kl.EinsumDense("btf,fhd->bthd", (None, 2, 3), bias_axes="hd", name=name)
        for name in "qkv"
    }
    parts["o"] = kl.EinsumDense("...hd,hdo->...o", 6, bias_axes="o", name="o")

    def attend(self, x):
        return self.o(ops.dot_product_attention(self.q(x), self.k(x), self.v(x)))

    check_attention(built(attend, floats(2, 8, 6), **parts), floats(2, 8, 6))


def wired(attend):
    """Return the preds of an attention's projections, by their part."""
    x, y = keras.Input((8, 6)), keras.Input((5, 4))
    a, b, c = kl.Dense(6, name="a")(x), kl.Dense(4, name="b")(y), kl.Dense(4, name="c")(y)
    model = keras.Model([x, y], attend(a, b, c))
    return {site.part: site.preds for site in describe(model).sites if site.part}


def test_attention_takes_query_value_key():
    layer = kl.MultiHeadAttention
    all_three = wired(lambda a, b, c: layer(2, 3, name="m")(a, b, c))
    assert all_three == {
        "q": ("a",), "k": ("c",), "v": ("b",), "o": ("m.query", "m.key", "m.value")
    }  # fmt: skip
    by_name = wired(lambda a, b, c: layer(2, 3, name="m")(a, key=c, value=b))
    assert by_name == all_three
    assert wired(lambda a, b, c: layer(2, 3)(a, b))["k"] == ("b",)


def test_attention_with_few_keys():
    x = keras.Input((8, 6))
    parts = [kl.Dense(6, name=name)(x) for name in "abc"]
    model = keras.Model(x, kl.GroupQueryAttention(3, 4, 2, name="m")(*parts))
    structure = describe(model)
    found = {site.part: site for site in structure.sites if site.part}
    assert [found[part].preds for part in "qkv"] == [("a",), ("c",), ("b",)]
    assert [found[part].attrs["heads"] for part in "qkvo"] == [4, 2, 2, 4]
    assert structure.why_not_portable() == ""


def test_attention_of_a_class_of_the_users():
    class Attention(kl.MultiHeadAttention):
        def call(self, query, value, key=None):
            return super().call(query, value, key) * 2.0

    whole = wired(lambda a, b, c: kl.MultiHeadAttention(2, 3, name="m")(a, b))
    inside = wired(lambda a, b, c: Attention(2, 3, name="m")(a, b))
    assert inside == whole


def test_scores_of_attention_come_from_queries_and_keys():
    x = keras.Input((8, 6))
    out, scores = kl.MultiHeadAttention(2, 3, name="m")(x, x, return_attention_scores=True)
    structure = describe(keras.Model(x, [out, kl.Dense(3, name="end")(scores)]))
    assert structure.sites[-1].preds == ("m.query", "m.key", "m.value")
    assert [face.axes[0] for face in structure.outputs] == ["N", "N"]


# recurrent layers


def test_recurrent_layers_follow_each_other():
    x = keras.Input((8, 6))
    y = kl.Bidirectional(kl.LSTM(3, return_sequences=True))(kl.Dense(4, name="in")(x))
    y = kl.GRU(5, go_backwards=True)(y)
    found = sites(keras.Model(x, kl.Dense(2, name="end")(y)))
    both = ("bidirectional.forward_lstm.lstm_cell", "bidirectional.backward_lstm.lstm_cell")
    assert [found[name].preds for name in both] == [("in",), ("in",)]
    assert [found[name].attrs["direction"] for name in both] == ["forward", "backward"]
    assert found["gru.gru_cell"].preds == both
    assert found["gru.gru_cell"].attrs["direction"] == "backward"
    assert found["end"].preds == ("gru.gru_cell",)


@pytest.mark.parametrize("mode", ["concat", "sum", "mul", "ave", None])
def test_two_directions_however_they_are_merged(mode):
    x = keras.Input((8, 6))
    y = kl.Bidirectional(kl.SimpleRNN(3, return_sequences=True), merge_mode=mode)(x)
    y = y if isinstance(y, list | tuple) else [y]
    ends = [kl.Dense(2, name=f"end{i}")(one) for i, one in enumerate(y)]
    structure = describe(keras.Model(x, ends))
    preds = [site.preds for site in structure.sites if site.name.startswith("end")]
    names = tuple(site.name for site in structure.sites[:2])
    assert preds == ([names] if mode else [names[:1], names[1:]])
    assert structure.outputs[0].axes == ("N", "T", "F")
    assert structure.why_not_portable() == ""


def test_a_stack_of_cells_and_its_states():
    x = keras.Input((8, 6))
    stack = kl.StackedRNNCells([kl.LSTMCell(4), kl.GRUCell(5)])
    y, lower, upper = kl.RNN(stack, return_state=True, name="rnn")(x)
    ends = [kl.Dense(2, name=n)(t) for n, t in (("y", y), ("h", lower[0]), ("u", upper))]
    found = sites(keras.Model(x, ends))
    first, second = "rnn.stacked_rnn_cells.lstm_cell", "rnn.stacked_rnn_cells.gru_cell"
    assert found[first].preds == ()
    assert found[second].preds == (first,)
    assert [found[name].preds for name in "yhu"] == [(second,), (first,), (second,)]


def test_states_enter_a_decoder():
    x, y = keras.Input((8, 6)), keras.Input((5, 6))
    _, *states = kl.LSTM(4, return_state=True, name="encoder")(x)
    out = kl.LSTM(4, return_sequences=True, name="decoder")(y, initial_state=states)
    found = sites(keras.Model([x, y], out))
    assert found["decoder.lstm_cell"].preds == ("encoder.lstm_cell",)


def test_a_loop_over_a_cell():
    cell, end = kl.GRUCell(4, name="cell"), kl.Dense(2, name="end")

    def call(self, x):
        state = ops.zeros((ops.shape(x)[0], 4))
        for step in range(3):
            y, state = self.cell(x[:, step], state)
        return self.end(y)

    found = sites(built(call, floats(2, 3, 6), cell=cell, end=end), floats(2, 3, 6))
    assert found["cell"].preds == ("cell",)
    assert found["end"].preds == ("cell",)


def test_padding_tokens_are_hidden_from_recurrent_layers():
    x = keras.Input((8,), dtype="int32")
    y = kl.LSTM(4)(kl.Embedding(9, 6, mask_zero=True, name="words")(x))
    found = sites(keras.Model(x, kl.Dense(2, name="end")(y)))
    assert found["lstm.lstm_cell"].preds == ("words",)
    assert found["end"].preds == ("lstm.lstm_cell",)


def test_a_layer_at_each_time_step():
    x = keras.Input((3, 4, 5, 2))
    inner = keras.Sequential([kl.Conv2D(3, 2, name="conv"), kl.Flatten(), kl.Dense(4, name="d")])
    y = kl.Dense(2, name="end")(kl.TimeDistributed(inner)(x))
    structure = describe(keras.Model(x, y))
    found = {site.name.rpartition(".")[2]: site for site in structure.sites}
    assert found["d"].in_group == (("S0", 3), ("S1", 4), ("C", 3))
    assert found["end"].preds == ("time_distributed.sequential.d",)
    assert structure.outputs[0].shape == (0, 3, 2)


# parameters outside layers, constants


def test_a_tied_output_layer():
    def call(self, x):
        y = self.hidden(self.words(x))
        return ops.matmul(y, ops.transpose(self.words.embeddings))

    parts = {"words": kl.Embedding(20, 6, name="words"), "hidden": kl.Dense(6, name="hidden")}
    structure = describe(built(call, tokens(2, 5), **parts), tokens(2, 5))
    words, hidden = structure.sites
    assert words.preds == ("hidden",)
    assert hidden.preds == ("words",)
    assert words.is_output
    assert not hidden.is_output
    assert structure.outputs[0].shape == (0, 5, 20)
    assert structure.why_not_portable() == ""


@pytest.mark.skipif(not hasattr(kl, "ReversibleEmbedding"), reason="not in this Keras")
@pytest.mark.parametrize("is_tied", [True, False])
def test_a_reversible_embedding(is_tied):
    x = keras.Input((5,), dtype="int32")
    words = kl.ReversibleEmbedding(20, 6, tie_weights=is_tied, name="words")
    y = words(kl.Dense(6, name="hidden")(words(x)), reverse=True)
    structure = describe(keras.Model(x, y))
    found = {site.name: site for site in structure.sites}
    end = "words" if is_tied else "words.reverse"
    assert found[end].preds == ("hidden",)
    assert found["hidden"].preds == ("words",)
    assert [site.name for site in structure.sites if site.is_output] == [end]
    assert structure.outputs[0].axes == ("N", "T", "F")
    assert structure.why_not_portable() == ""


class Tied(kl.Dense):
    """A dense layer with the kernel of another."""

    def __init__(self, other, **options):
        super().__init__(other.units, **options)
        self.other_kernel = other._kernel

    def build(self, shape):
        self._kernel, self.bias = self.other_kernel, None
        if self.use_bias:
            self.bias = self.add_weight(shape=(self.units,), name="bias")


@pytest.mark.parametrize("use_bias", [False, True])
def test_a_layer_with_the_weights_of_another(use_bias):
    first, between = kl.Dense(3, name="first"), kl.Dense(3, name="between")
    first.build((None, 3))
    again = Tied(first, use_bias=use_bias, name="again")
    layers = [keras.Input((3,)), first, between, again, kl.Dense(2, name="end")]
    found = sites(keras.Sequential(layers))
    assert found["first"].preds == ("between",)
    assert found["end"].preds == (("first", "again") if use_bias else ("first",))
    assert ("again" in found) == use_bias


def test_positions_on_a_constant_range():
    def call(self, x):
        return self.end(self.words(x) + self.places(ops.arange(0, ops.shape(x)[1], 1)))

    parts = {
        "words": kl.Embedding(20, 6, name="words"),
        "places": kl.Embedding(5, 6, name="places"),
        "end": kl.Dense(2, name="end"),
    }
    structure = describe(built(call, tokens(2, 5), **parts), tokens(2, 5))
    assert [site.preds for site in structure.sites] == [(), (), ("words", "places")]
    assert structure.inputs[0].vocabulary == 20
    assert structure.why_not_portable() == ""


def test_a_table_of_positions_that_is_sliced():
    def call(self, x):
        return self.end(self.words(x) + self.places.embeddings[: ops.shape(x)[1]])

    places = kl.Embedding(9, 6, name="places")
    places.build(None)
    parts = {"words": kl.Embedding(20, 6, name="words"), "places": places}
    parts["end"] = kl.Dense(2, name="end")
    found = sites(built(call, tokens(2, 5), **parts), tokens(2, 5))
    assert found["places"].preds == ("words",)
    assert found["end"].preds == ("places",)


def test_a_class_token_of_the_users():
    class Token(kl.Layer):
        def build(self, shape):
            self.token = self.add_weight(shape=(1, 1, shape[-1]), name="token")

        def call(self, x):
            token = ops.broadcast_to(self.token, (ops.shape(x)[0], 1, x.shape[-1]))
            return ops.concatenate([token, x], axis=1)

    x = keras.Input((4, 6))
    y = Token(name="cls")(kl.Dense(6, name="in")(x))
    structure = describe(keras.Model(x, kl.Dense(2, name="end")(y[:, 0])))
    found = {site.name: site for site in structure.sites}
    assert found["cls"].preds == ("in",)
    assert found["end"].preds == ("cls",)
    assert "'cls' is of a kind that has no portable layout" in structure.why_not_portable()


class Shift(kl.Layer):
    """Adds a constant that it keeps."""

    def build(self, shape):
        self.shift = self.add_weight(shape=shape[1:], trainable=False, name="shift")

    def call(self, x):
        return x + self.shift


@pytest.mark.parametrize("layer", [kl.Normalization, Shift])
def test_constants_are_passed_by(layer):
    x = keras.Input((4, 5, 3))
    y = kl.Conv2D(3, 1, name="conv")(x)
    model = keras.Model(x, kl.Dense(2, name="end")(kl.Flatten()(layer(name="constant")(y))))
    structure = describe(model)
    found = {site.name: site for site in structure.sites}
    assert not found["constant"].matched
    assert all(role.state for role in found["constant"].roles)
    assert found["end"].preds == ("conv",)
    assert found["end"].in_group == SPACE_LAST
    assert structure.why_not_portable() == ""
    drawn = BACKEND.redraw(model, structure, 3)
    kept = BACKEND.read(model, structure)
    constants = [name for name in kept if name.startswith("constant.")]
    assert constants
    assert all(np.array_equal(drawn[name], kept[name]) for name in constants)


# what nobody knows


class Opaque(kl.Layer):
    """Takes no symbols, as code of an engine does not."""

    def build(self, shape):
        self.inner = self.add_weight(shape=(shape[-1],), name="inner") if self.weighs else None

    def __init__(self, weighs=False, **options):
        super().__init__(**options)
        self.weighs = weighs

    def call(self, x):
        if isinstance(x, keras.KerasTensor):
            raise TypeError("a KerasTensor is no tensor")
        return x if self.inner is None else x * self.inner

    def compute_output_shape(self, shape):
        return shape

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)


@pytest.mark.parametrize("weighs", [True, False])
def test_a_black_box_of_the_users(weighs):
    x = keras.Input((4, 5, 3))
    y = Opaque(weighs, name="box")(kl.Conv2D(3, 1, name="conv")(x))
    found = sites(keras.Model(x, kl.Dense(2, name="end")(kl.Flatten()(y))))
    assert found["end"].preds == (("box",) if weighs else ("conv",))
    assert found["end"].in_group == UNKNOWN_GROUP
    assert not weighs or found["box"].preds == ("conv",)


def test_a_cell_of_the_users_is_a_black_box():
    class Cell(kl.Layer):
        state_size = output_size = 4

        def __init__(self):
            super().__init__()
            self.dense = kl.Dense(4)

        def build(self, shape):
            self.dense.build(shape)

        def call(self, x, states):
            y = self.dense(x)
            return y, [y]

    x = keras.Input((8, 6))
    structure = describe(keras.Model(x, kl.RNN(Cell())(x)))
    assert structure.sites[0].in_group == UNKNOWN_GROUP
    assert structure.sites[0].is_output


def test_depth_to_space_is_not_known():
    def call(self, x):
        return self.end(ops.reshape(ops.nn.depth_to_space(x, 2), (-1, 48)))

    model = built(call, floats(2, 2, 2, 12), end=kl.Dense(2, name="end"))
    assert sites(model, floats(2, 2, 2, 12))["end"].in_group == UNKNOWN_GROUP


# faces, texts, whole models


def test_a_text_cnn():
    x = keras.Input((9,), dtype="int32")
    y = kl.Embedding(20, 6)(x)
    y = [kl.GlobalMaxPooling1D()(kl.Conv1D(4, k, activation="relu")(y)) for k in (2, 3)]
    structure = describe(keras.Model(x, kl.Dense(2)(kl.Concatenate()(y))))
    assert structure.why_not_portable() == ""
    assert structure.inputs[0].axes == ("N", "T")
    assert structure.sites[-1].preds == ("conv1d", "conv1d_1")


def test_inputs_in_a_dictionary_and_a_mask_of_whole_numbers():
    kinds = {"words": "int32", "mask": "int64"}
    x = {name: keras.Input((7,), dtype=kind, name=name) for name, kind in kinds.items()}
    y = kl.Embedding(20, 6)(x["words"])
    mask = ops.cast(ops.expand_dims(x["mask"], -1), "float32")
    model = keras.Model(x, kl.Dense(2)(ops.sum(y * mask, axis=1) / ops.sum(mask, axis=1)))
    structure = describe(model)
    faces = dict(zip(sorted(x), structure.inputs, strict=True))
    assert faces["words"].vocabulary == 20
    assert faces["mask"].vocabulary == 2
    assert structure.why_not_portable() == ""


@pytest.mark.parametrize(
    ("size", "options", "padding"),
    [
        (8, {"strides": 2, "padding": "same"}, [0, 1]),
        (9, {"strides": 2, "padding": "same"}, [1, 1]),
        (9, {"dilation_rate": 2, "padding": "same"}, [2, 2]),
        (9, {"strides": 3}, [0, 0]),
    ],
)
def test_padding_that_is_applied(size, options, padding):
    x = keras.Input((size, size, 2))
    model = keras.Model(x, kl.Conv2D(3, 3, **options)(x))
    assert describe(model).sites[0].attrs["padding"] == [padding, padding]


def test_causal_padding():
    x = keras.Input((9, 2))
    model = keras.Model(x, kl.Conv1D(3, 3, padding="causal", dilation_rate=2)(x))
    assert describe(model).sites[0].attrs["padding"] == [[4, 0]]


@pytest.mark.parametrize("extra", [None, 0, 1])
@pytest.mark.parametrize("word", ["valid", "same"])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (5, 3), (1, 2), (3, 4), (3, 1)])
def test_what_a_transposed_convolution_cuts_off(kernel, stride, word, extra):
    if extra is not None and extra >= stride:
        return
    x = keras.Input((6, 1))
    layer = kl.Conv1DTranspose(
        1, kernel, strides=stride, padding=word, output_padding=extra, use_bias=False
    )
    model = keras.Model(x, layer(x))
    structure = describe(model)
    before, after = structure.sites[0].attrs["padding"][0]
    data = np.random.default_rng(0).normal(size=6).astype("float32")
    weights = BACKEND.read(model, structure)["conv1d_transpose.weight"][0, 0]
    full = np.zeros(5 * stride + kernel + 10)
    for step, value in enumerate(data):
        full[step * stride : step * stride + kernel] += value * weights
    found = BACKEND.forward(model, structure, [data[None, None]])[0][0, 0]
    assert len(found) == 5 * stride + kernel - before - after
    assert np.allclose(found, full[before : before + len(found)], atol=1e-5)


@pytest.mark.parametrize("name", ["MobileNetV2", "ResNet50", "EfficientNetB0", "DenseNet121"])
def test_models_of_keras_applications_are_known_throughout(name):
    model = getattr(keras.applications, name)(weights=None, input_shape=(64, 64, 3), classes=5)
    structure = describe(model)
    assert structure.why_not_portable() == ""
    assert [site.is_output for site in structure.sites if site.matched][-1]
    assert sum(not site.preds for site in structure.sites if site.matched) == 1
