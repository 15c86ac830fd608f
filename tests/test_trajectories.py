"""One ticket trained in both frameworks on the same batches gives the same losses, step by step."""

from functools import partial

import numpy as np
import pytest

torch = pytest.importorskip("torch")
keras = pytest.importorskip("keras")
datasets = pytest.importorskip("sklearn.datasets")

import ltcore as lt  # noqa: E402
from architectures import channels_last  # noqa: E402
from architectures.lenet import (  # noqa: E402
    LeNet300,
    keras_conv,
    keras_lenet300,
    torch_conv,
)

pytestmark = pytest.mark.usefixtures("one_torch_thread")

STEPS, BATCH = 100, 32
WIDTHS = (16, 16)  # Conv-2 with a quarter of its channels


def digits_as_mnist():
    """Return the 8x8 digits of scikit-learn as (N, 1, 28, 28), standardized."""
    return np.pad(enlarged(3), [(0, 0), (0, 0), (2, 2), (2, 2)])


def digits_as_cifar():
    """Return them as (N, 3, 32, 32)."""
    return np.repeat(enlarged(4), 3, axis=1)


def enlarged(times):
    images = datasets.load_digits().images.astype(np.float32)
    images = (images - images.mean()) / images.std()
    return np.kron(images, np.ones((1, times, times), np.float32))[:, None]


# The learning rate is the last entry. At twice that of Conv-2, its losses in float32 and in float64
# are percents apart after 100 steps in PyTorch alone.
NETWORKS = {
    "lenet-300-100": (LeNet300, keras_lenet300, digits_as_mnist, 0.02),
    "conv-2": (
        partial(torch_conv, 2, WIDTHS), partial(keras_conv, 2, WIDTHS), digits_as_cifar, 0.005
    ),
}  # fmt: skip


def batches(images, seed):
    """Return images and labels of all steps, in the order in which they are trained on."""
    labels = datasets.load_digits().target
    rng = np.random.default_rng(seed)
    epochs = -(-STEPS * BATCH // len(images))
    order = np.concatenate([rng.permutation(len(images)) for _ in range(epochs)])[: STEPS * BATCH]
    return images[order], labels[order]


def losses_in_torch(model, rate, images, labels):
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9)
    losses = []
    for x, y in zip(torch.from_numpy(images).split(BATCH), torch.from_numpy(labels).split(BATCH),
                    strict=True):  # fmt: skip
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return np.array(losses)


class Losses(keras.callbacks.Callback):
    """Keeps the loss of every batch, where Keras shows the mean since the epoch began."""

    def __init__(self):
        super().__init__()
        self.found = []

    def on_train_batch_begin(self, batch, logs=None):
        self.model.reset_metrics()

    def on_train_batch_end(self, batch, logs=None):
        self.found.append(logs["loss"])


def losses_in_keras(model, rate, images, labels):
    losses = Losses()
    model.compile(keras.optimizers.SGD(rate, momentum=0.9),
                  keras.losses.SparseCategoricalCrossentropy(from_logits=True))  # fmt: skip
    model.fit(channels_last(images), labels, batch_size=BATCH, shuffle=False, verbose=0,
              callbacks=[losses])  # fmt: skip
    return np.array(losses.found)


def largest_gap(ours, theirs):
    return np.max(np.abs(ours - theirs) / np.abs(ours))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_losses_step_by_step(name, tmp_path):
    make_torch, make_keras, read_images, rate = NETWORKS[name]
    images, labels = batches(read_images(), seed=0)
    torch.manual_seed(0)
    source = make_torch()
    lt.prune(source, sparsity=0.8, example=images[:1])
    lt.Ticket.from_model(source, example=images[:1]).save(tmp_path / "t")
    keras.utils.set_random_seed(1)
    ours, twin, theirs = make_torch(), make_torch(), make_keras()
    holds = [lt.load(tmp_path / "t").apply(model) for model in (ours, twin)]
    holds.append(lt.load(tmp_path / "t").apply(theirs))

    expected = losses_in_torch(ours, rate, images, labels)
    found = losses_in_keras(theirs, rate, images, labels)

    assert len(expected) == len(found) == STEPS
    assert expected[-10:].mean() < 0.95 * expected[:10].mean(), "the network learns"
    assert largest_gap(expected, found) <= 1e-3
    other_order = losses_in_torch(twin, rate, *batches(read_images(), seed=1))
    assert largest_gap(expected, other_order) > 1e-2, "the order of the data shows"
    for hold in holds:
        hold.check()
