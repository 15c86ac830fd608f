"""Every layer kind that ltcore carries, each in the smallest pair of models that shows it."""

import keras
import torch
from torch import nn

from architectures import Case, Input

L = keras.layers
VOCABULARY = 11

FLAT = (Input((6,)),)
IMAGE = (Input((4, 7, 9)),)
VOLUME = (Input((2, 5, 6, 4)),)
TEXT = (Input((8,), tokens=VOCABULARY),)
SERIES = (Input((8, 6)),)


class Call(nn.Module):
    """Any function as a layer."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


def functional(shape, *layers, dtype="float32"):
    x = inputs = L.Input(shape, dtype=dtype)
    for layer in layers:
        x = layer(x)
    return keras.Model(inputs, x)


def pooled(*layers):
    """Layers on images, a mean over space, and a dense layer."""
    return lambda: nn.Sequential(
        *(layer() for layer in layers), nn.ReLU(),
        Call(lambda x: x.mean(tuple(range(2, x.dim())))), nn.LazyLinear(3),
    )  # fmt: skip


def built(make, inputs):
    def build():
        model = make()
        with torch.no_grad():
            model(*(torch.from_numpy(one.draw(2, _rng())) for one in inputs))
        return model

    return build


def _rng():
    import numpy as np

    return np.random.default_rng(0)


def image_case(torch_layers, keras_layers, inputs=IMAGE, notes=""):
    """One or more layers on images in both frameworks."""
    channels, *space = inputs[0].shape
    pool = [L.GlobalAveragePooling2D, L.GlobalAveragePooling3D][len(space) - 2]
    return Case(
        built(pooled(*torch_layers), inputs),
        lambda: functional(
            (*space, channels), *(make() for make in keras_layers), L.ReLU(), pool(), L.Dense(3)
        ),
        inputs,
        notes=notes,
    )


def text_case(torch_layer, keras_layer, notes=""):
    """A layer along the positions of a text: channels first in PyTorch, last in Keras."""
    return Case(
        built(
            lambda: nn.Sequential(
                nn.Embedding(VOCABULARY, 6), Call(lambda x: x.transpose(1, 2)), torch_layer(),
                nn.ReLU(), Call(lambda x: x.amax(2)), nn.LazyLinear(3),
            ),
            TEXT,
        ),
        lambda: functional(
            (8,), L.Embedding(VOCABULARY, 6), keras_layer(), L.ReLU(), L.GlobalMaxPooling1D(),
            L.Dense(3), dtype="int32",
        ),
        TEXT,
        notes=notes,
    )  # fmt: skip


def series_case(torch_layer, keras_layer, notes=""):
    """A layer over time steps with features last, and a dense layer on each step."""
    return Case(
        lambda: nn.Sequential(torch_layer(), nn.Linear(6, 3)),
        lambda: functional((8, 6), keras_layer(), L.Dense(3)),
        SERIES,
        notes=notes,
    )


class Recurrent(nn.Module):
    """A recurrent layer, and a dense one on its outputs or on the last of them."""

    def __init__(self, layer, last=False):
        super().__init__()
        self.layer, self.last = layer, last
        self.out = nn.Linear(layer.hidden_size * (2 if layer.bidirectional else 1), 3)

    def forward(self, x):
        y = self.layer(x)[0]
        return self.out(y[:, -1] if self.last else y)


def recurrent_case(
    cls, keras_cls, notes="", *, last=False, layers=1, both=False, bias=True, **more
):
    sequence = [True] * (layers - 1) + [not last]

    def keras_layer(returns):
        layer = keras_cls(5, return_sequences=returns, use_bias=bias, **more)
        return L.Bidirectional(layer) if both else layer

    return Case(
        lambda: Recurrent(
            cls(6, 5, num_layers=layers, bidirectional=both, bias=bias, batch_first=True), last
        ),
        lambda: functional((8, 6), *map(keras_layer, sequence), L.Dense(3)),
        SERIES,
        notes=notes,
    )


class SelfAttention(nn.Module):
    def __init__(self, bias=True):
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, bias=bias, batch_first=True)
        self.out = nn.Linear(6, 3)

    def forward(self, x):
        return self.out(self.attention(x, x, x, need_weights=False)[0])


class AttentionByHand(nn.Module):
    """Projections of one's own, heads split and merged by views."""

    def __init__(self):
        super().__init__()
        self.v, self.k, self.q, self.o = (nn.Linear(6, 6) for _ in range(4))
        self.out = nn.Linear(6, 3)

    def forward(self, x):
        q, k, v = (f(x).view(len(x), 8, 2, 3).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(self.o(y.transpose(1, 2).reshape(len(x), 8, 6)))


def keras_attention(bias=True):
    x = inputs = L.Input((8, 6))
    x = L.MultiHeadAttention(2, 3, use_bias=bias)(x, x)
    return keras.Model(inputs, L.Dense(3)(x))


class KerasAttentionByHand(keras.Model):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (
            L.EinsumDense("btf,fhd->bhtd", (2, None, 3), bias_axes="hd") for _ in range(3)
        )
        self.join, self.end = L.Dense(6), L.Dense(3)

    def call(self, x):
        scores = keras.ops.einsum("bhtd,bhsd->bhts", self.first(x), self.third(x))
        weights = keras.ops.softmax(scores / 3**0.5, axis=-1)
        y = keras.ops.einsum("bhts,bhsd->bthd", weights, self.second(x))
        return self.end(self.join(keras.ops.reshape(y, (-1, 8, 6))))


def keras_attention_by_hand():
    model = KerasAttentionByHand()
    model(keras.ops.zeros((1, 8, 6)))
    return model


class CrossAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, kdim=4, vdim=4, batch_first=True)
        self.out = nn.Linear(6, 3)

    def forward(self, x, memory):
        return self.out(self.attention(x, memory, memory, need_weights=False)[0])


def keras_cross_attention():
    x, memory = L.Input((8, 6)), L.Input((5, 4))
    y = L.MultiHeadAttention(2, 3, output_shape=6)(x, memory)
    return keras.Model([x, memory], L.Dense(3)(y))


class Tied(nn.Module):
    """A language model whose output layer is its embedding."""

    def __init__(self):
        super().__init__()
        self.embedding, self.hidden = nn.Embedding(VOCABULARY, 6), nn.Linear(6, 6)
        self.out = nn.Linear(6, VOCABULARY, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, x):
        return self.out(self.hidden(self.embedding(x)).tanh())


class KerasTied(keras.Model):
    def __init__(self):
        super().__init__()
        self.embedding, self.hidden = L.Embedding(VOCABULARY, 6), L.Dense(6, "tanh")

    def call(self, x):
        y = self.hidden(self.embedding(x))
        return keras.ops.matmul(y, keras.ops.transpose(self.embedding.embeddings))


def keras_tied():
    model = KerasTied()
    model(keras.ops.zeros((1, 8), "int32"))
    return model


def conv(*args, **options):
    return lambda: nn.Conv2d(*args, **options)


def kconv(*args, **options):
    return lambda: L.Conv2D(*args, **options)


def affine(layer):
    """Norms follow a convolution, so that channels mean something."""
    return [conv(4, 6, 3), layer]


def kaffine(layer):
    return [kconv(6, 3), layer]


CASES: dict[str, Case] = {
    "dense": Case(
        lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3, bias=False)),
        lambda: functional((6,), L.Dense(5, "relu"), L.Dense(3, use_bias=False)),
        FLAT,
    ),
    "conv 1d": text_case(lambda: nn.Conv1d(6, 5, 3), lambda: L.Conv1D(5, 3)),
    "conv 1d, same": text_case(
        lambda: nn.Conv1d(6, 5, 3, padding="same", dilation=2),
        lambda: L.Conv1D(5, 3, padding="same", dilation_rate=2),
    ),
    "conv 2d": image_case([conv(4, 6, (3, 2), bias=False)], [kconv(6, (3, 2), use_bias=False)]),
    "conv 2d, stride": image_case([conv(4, 6, 3, stride=2)], [kconv(6, 3, strides=2)]),
    "conv 2d, same": image_case(
        [conv(4, 6, 3, stride=2, padding=1)], [kconv(6, 3, strides=2, padding="same")],
        notes="odd sizes: both pad alike; with even ones they do not, and loading is refused",
    ),
    "conv 2d, dilation": image_case([conv(4, 6, 3, dilation=2)], [kconv(6, 3, dilation_rate=2)]),
    "conv 2d, groups": image_case([conv(4, 6, 3, groups=2)], [kconv(6, 3, groups=2)]),
    "conv 3d": image_case(
        [lambda: nn.Conv3d(2, 5, (3, 2, 2))], [lambda: L.Conv3D(5, (3, 2, 2))], VOLUME
    ),
    "depthwise conv 1d": text_case(
        lambda: nn.Conv1d(6, 12, 3, groups=6), lambda: L.DepthwiseConv1D(3, depth_multiplier=2)
    ),
    "depthwise conv 2d": image_case(
        [conv(4, 8, 3, groups=4)], [lambda: L.DepthwiseConv2D(3, depth_multiplier=2)]
    ),
    "separable conv 1d": text_case(
        lambda: nn.Sequential(nn.Conv1d(6, 6, 3, groups=6, bias=False), nn.Conv1d(6, 5, 1)),
        lambda: L.SeparableConv1D(5, 3),
    ),
    "separable conv 2d": image_case(
        [conv(4, 8, 3, groups=4, bias=False), conv(8, 6, 1)],
        [lambda: L.SeparableConv2D(6, 3, depth_multiplier=2)],
    ),
    "transposed conv 1d": text_case(
        lambda: nn.ConvTranspose1d(6, 5, 3, stride=2),
        lambda: L.Conv1DTranspose(5, 3, strides=2),
    ),
    "transposed conv 2d": image_case(
        [lambda: nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1)],
        [lambda: L.Conv2DTranspose(6, 4, strides=2, padding="same")],
        notes="kernel 4, stride 2: `same` crops as padding=1 does; kernel 3 does not",
    ),
    "transposed conv 3d": image_case(
        [lambda: nn.ConvTranspose3d(2, 5, 2, stride=2)],
        [lambda: L.Conv3DTranspose(5, 2, strides=2)],
        VOLUME,
    ),
    "embedding": Case(
        lambda: nn.Sequential(nn.Embedding(VOCABULARY, 6), nn.Linear(6, 3)),
        lambda: functional((8,), L.Embedding(VOCABULARY, 6), L.Dense(3), dtype="int32"),
        TEXT,
    ),
    "embedding, tied": Case(Tied, keras_tied, TEXT, notes="the output layer is the embedding"),
    "batch norm": image_case(
        affine(lambda: nn.BatchNorm2d(6)),
        kaffine(lambda: L.BatchNormalization(epsilon=1e-5, momentum=0.9)),
    ),
    "layer norm": series_case(
        lambda: nn.LayerNorm(6), lambda: L.LayerNormalization(epsilon=1e-5)
    ),
    "layer norm, channels and space": image_case(
        affine(lambda: nn.LayerNorm((6, 5, 7))),
        kaffine(lambda: L.LayerNormalization(axis=(1, 2, 3), epsilon=1e-5)),
    ),
    "group norm": image_case(
        affine(lambda: nn.GroupNorm(3, 6)),
        kaffine(lambda: L.GroupNormalization(3, epsilon=1e-5)),
    ),
    "instance norm": image_case(
        affine(lambda: nn.InstanceNorm2d(6, affine=True)),
        kaffine(lambda: L.GroupNormalization(-1, epsilon=1e-5)),
    ),
    "rms norm": series_case(
        lambda: nn.RMSNorm(6, eps=1e-6), lambda: L.RMSNormalization(epsilon=1e-6)
    ),
    "prelu": image_case(
        affine(lambda: nn.PReLU(6)), kaffine(lambda: L.PReLU(shared_axes=(1, 2)))
    ),
    "prelu, one slope": image_case(
        affine(nn.PReLU), kaffine(lambda: L.PReLU(shared_axes=(1, 2, 3)))
    ),
    "rnn": recurrent_case(nn.RNN, L.SimpleRNN, "two biases here, their sum there"),
    "lstm": recurrent_case(nn.LSTM, L.LSTM, "two biases here, their sum there"),
    "lstm, last state": recurrent_case(nn.LSTM, L.LSTM, last=True),
    "lstm, no bias": recurrent_case(nn.LSTM, L.LSTM, bias=False),
    "lstm, two directions and layers": recurrent_case(nn.LSTM, L.LSTM, layers=2, both=True),
    "gru": recurrent_case(nn.GRU, L.GRU, "reset_after=True, as Keras has it by default"),
    "gru, two directions and layers": recurrent_case(nn.GRU, L.GRU, layers=2, both=True),
    "attention": Case(SelfAttention, keras_attention, SERIES, notes="masks per projection"),
    "attention, no bias": Case(
        lambda: SelfAttention(bias=False), lambda: keras_attention(bias=False), SERIES
    ),
    "attention, cross": Case(
        CrossAttention, keras_cross_attention, (*SERIES, Input((5, 4))),
        notes="keys and values of another width",
    ),
    "attention by hand": Case(
        AttentionByHand, keras_attention_by_hand, SERIES,
        notes="dense layers against EinsumDense; which is which is found by trial",
    ),
    "attention by hand and layer": Case(
        AttentionByHand, keras_attention, SERIES, notes="dense layers against MultiHeadAttention"
    ),
    "einsum dense": Case(
        lambda: nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3)),
        lambda: functional(
            (8, 6),
            L.EinsumDense("btf,fxy->btxy", (None, 2, 5), bias_axes="xy", activation="relu"),
            L.EinsumDense("btxy,xyo->bto", (None, 3), bias_axes="o"),
        ),
        SERIES,
    ),
}  # fmt: skip
