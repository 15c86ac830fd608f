"""Tickets between JAX and the other frameworks: the same outputs, masks bit for bit."""

from contextlib import nullcontext

import numpy as np
import pytest

nnx = pytest.importorskip("flax.nnx")
torch = pytest.importorskip("torch")
keras = pytest.importorskip("keras")

import jax.numpy as jnp  # noqa: E402
from keras import layers as kl  # noqa: E402
from torch import nn  # noqa: E402

import ltcore as lt  # noqa: E402
from carrying import Keras, Torch, compare_masks, compare_outputs, enliven  # noqa: E402
from ltcore.errors import MatchError  # noqa: E402


def flat(x):
    return x.reshape(x.shape[0], -1)


def half(x):
    return nnx.max_pool(x, (2, 2), strides=(2, 2))


class Mlp:
    """LeNet-300-100, smaller."""

    shape = (1, 6, 5)

    def jax(self, r):
        dense = [nnx.Linear(n, m, rngs=r) for n, m in ((30, 24), (24, 12), (12, 4))]
        return nnx.Sequential(flat, dense[0], nnx.relu, dense[1], nnx.relu, dense[2])

    def torch(self):
        return nn.Sequential(nn.Flatten(), nn.Linear(30, 24), nn.ReLU(), nn.Linear(24, 12),
                             nn.ReLU(), nn.Linear(12, 4))  # fmt: skip

    def keras(self):
        return keras.Sequential([keras.Input((6, 5, 1)), kl.Flatten(), kl.Dense(24, "relu"),
                                 kl.Dense(12, "relu"), kl.Dense(4)])  # fmt: skip


class ConvNet:
    """Convolution, batch norm, pooling, a flatten, and an upward convolution beside."""

    shape = (3, 8, 6)

    def jax(self, r):
        return nnx.Sequential(
            nnx.Conv(3, 6, (3, 3), padding=1, rngs=r),
            nnx.BatchNorm(6, momentum=0.9, epsilon=1e-5, rngs=r), nnx.relu, half,
            nnx.ConvTranspose(6, 5, (2, 3), strides=2, padding="VALID", rngs=r), nnx.relu,
            nnx.Conv(5, 5, (3, 3), feature_group_count=5, padding="VALID", rngs=r),
            nnx.GroupNorm(5, num_groups=5, epsilon=1e-5, rngs=r),
            flat, nnx.Linear(5 * 6 * 5, 4, rngs=r))  # fmt: skip

    def torch(self):
        return nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
            nn.ConvTranspose2d(6, 5, (2, 3), stride=2), nn.ReLU(),
            nn.Conv2d(5, 5, 3, groups=5), nn.GroupNorm(5, 5), nn.Flatten(),
            nn.Linear(5 * 6 * 5, 4))  # fmt: skip

    def keras(self):
        return keras.Sequential([
            keras.Input((8, 6, 3)), kl.Conv2D(6, 3, padding="same"),
            kl.BatchNormalization(momentum=0.9, epsilon=1e-5), kl.ReLU(), kl.MaxPooling2D(2),
            kl.Conv2DTranspose(5, (2, 3), strides=2), kl.ReLU(), kl.DepthwiseConv2D(3),
            kl.GroupNormalization(5, epsilon=1e-5), kl.Flatten(), kl.Dense(4)])  # fmt: skip


class Attention:
    """An embedding, attention with a residual, and a norm."""

    tokens = 9
    shape = (5,)

    def jax(self, r):
        class Net(nnx.Module):
            def __init__(self):
                self.embed = nnx.Embed(9, 8, rngs=r)
                self.attend = nnx.MultiHeadAttention(2, 8, decode=False, rngs=r)
                self.norm = nnx.LayerNorm(8, epsilon=1e-5, rngs=r)
                self.head = nnx.Linear(8, 3, rngs=r)

            def __call__(self, x):
                x = self.embed(x)
                return self.head(self.norm(x + self.attend(x))[:, 0])

        return Net()

    def torch(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.embed, self.norm = nn.Embedding(9, 8), nn.LayerNorm(8)
                self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
                self.head = nn.Linear(8, 3)

            def forward(self, x):
                x = self.embed(x)
                return self.head(self.norm(x + self.attend(x, x, x, need_weights=False)[0])[:, 0])

        return Net()

    def keras(self):
        inputs = keras.Input((5,), dtype="int32")
        x = kl.Embedding(9, 8)(inputs)
        x = kl.LayerNormalization(epsilon=1e-5)(x + kl.MultiHeadAttention(2, 4)(x, x))
        return keras.Model(inputs, kl.Dense(3)(x[:, 0]))


CASES = {"mlp": Mlp(), "conv net": ConvNet(), "attention": Attention()}


class Jax:
    """As the sides of `carrying`."""

    @staticmethod
    def packed(batch):
        (x,) = batch
        return jnp.asarray(np.moveaxis(x, 1, -1) if x.ndim > 2 else x)

    @staticmethod
    def build(case):
        return case.jax(nnx.Rngs(3))

    @staticmethod
    def outputs(model, batch):
        model.eval()
        return [np.asarray(model(Jax.packed(batch)))]


def batch_of(case, size):
    rng = np.random.default_rng(size)
    shape = (size, *case.shape)
    if hasattr(case, "tokens"):
        return [rng.integers(case.tokens, size=shape, dtype=np.int32)]
    return [rng.standard_normal(shape, dtype=np.float32)]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("other", [Torch, Keras], ids=["torch", "keras"])
@pytest.mark.parametrize("there", [True, False], ids=["from jax", "to jax"])
def test_a_ticket_is_carried(case, other, there, tmp_path):
    ours, theirs = (Jax, other) if there else (other, Jax)
    source, target = ours.build(case), theirs.build(case)
    example = batch_of(case, 1)
    enliven(source, ours.packed(example), np.random.default_rng(2))
    hold = lt.prune(source, sparsity=0.7, scope="layer", example=ours.packed(example))
    ticket = lt.Ticket.from_model(source, example=ours.packed(example))
    assert ticket.probe is not None, ticket.structure.why_not_portable()
    ticket.save(tmp_path / "ticket.safetensors")
    loaded = lt.load(tmp_path / "ticket.safetensors")
    applied = loaded.apply(target, example=theirs.packed(example))
    batch = batch_of(case, 8)
    assert compare_outputs(ours.outputs(source, batch), theirs.outputs(target, batch)) <= 1e-5
    compare_masks(hold, applied, ticket.match(target, example=theirs.packed(example)))


def test_a_ticket_comes_home_the_same(tmp_path):
    case = CASES["conv net"]
    example = batch_of(case, 1)
    model, other, back = case.jax(nnx.Rngs(0)), case.torch(), case.jax(nnx.Rngs(1))
    lt.prune(model, sparsity=0.8, example=Jax.packed(example))
    first = lt.Ticket.from_model(model, example=Jax.packed(example))
    first.apply(other, example=Torch.packed(example))
    lt.Ticket.from_model(other, example=Torch.packed(example)).apply(
        back, example=Jax.packed(example)
    )
    last = lt.Ticket.from_model(back, example=Jax.packed(example))
    assert first.masks.keys() == last.masks.keys()
    for name, mask in first.masks.items():
        assert np.array_equal(mask, last.masks[name])
    for name, array in first.params.items():
        assert array.tobytes() == last.params[name].tobytes()


@pytest.mark.parametrize(
    ("layer", "attribute", "value", "told"),
    [(1, "epsilon", 1e-3, "eps"), (0, "padding", ((2, 0), (0, 2)), "padding"), (8, "", None, "")],
)
def test_what_computes_something_else_is_refused(layer, attribute, value, told):
    case = CASES["conv net"]
    example = batch_of(case, 1)
    source, target = case.torch(), case.jax(nnx.Rngs(0))
    enliven(source, Torch.packed(example), np.random.default_rng(2))
    lt.prune(source, sparsity=0.5, example=Torch.packed(example))
    ticket = lt.Ticket.from_model(source, example=Torch.packed(example))
    if attribute:
        setattr(target.layers[layer], attribute, value)
    else:
        target.layers[layer] = channels_first_flat
    refused = pytest.raises(MatchError, match=told) if told else nullcontext()
    with refused:
        ticket.apply(target, example=Jax.packed(example))


def channels_first_flat(x):
    return jnp.moveaxis(x, -1, 1).reshape(x.shape[0], -1)  # another order, and found out
