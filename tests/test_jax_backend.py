"""The JAX backend keeps every promise of the conformance suite."""

import numpy as np
import pytest

jax = pytest.importorskip("jax")
nnx = pytest.importorskip("flax.nnx")
optax = pytest.importorskip("optax")

import jax.numpy as jnp  # noqa: E402

from ltcore.plugins import detect  # noqa: E402
from ltcore.testing import CASES, BackendConformance  # noqa: E402
from ltcore.testing.suite_training import TrainingChecks  # noqa: E402
from ltcore.testing.suite_values import ValueChecks  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:Flax does not keep initializers")


def relu(x):
    return nnx.relu(x)  # which pickle does not find by its name


def flat(x):
    return x.reshape(x.shape[0], -1)


def pool(x):
    return x.mean(tuple(range(1, x.ndim - 1)))


def norm(features, rngs):
    return nnx.BatchNorm(features, momentum=0.9, epsilon=1e-5, rngs=rngs)


def conv(inputs, outputs, kernel, rngs, **options):
    return nnx.Conv(inputs, outputs, kernel, padding=options.pop("padding", "VALID"), rngs=rngs,
                    **options)  # fmt: skip


BUILDERS = {
    "linear": lambda r: [nnx.Linear(6, 5, rngs=r), relu, nnx.Linear(5, 3, rngs=r)],
    "conv1d": lambda r: [
        conv(2, 3, (3,), r, strides=2, padding=1), relu, conv(3, 2, (2,), r)],
    "conv2d": lambda r: [conv(2, 3, (3, 2), r, strides=2), relu, conv(3, 2, (1, 2), r)],
    "conv3d": lambda r: [conv(2, 3, (2, 1, 3), r), relu, conv(3, 2, (1, 1, 1), r)],
    "grouped": lambda r: [
        conv(4, 6, (3, 2), r, feature_group_count=2), relu, conv(6, 2, (1, 1), r)],
    "depthwise": lambda r: [
        conv(3, 6, (3, 2), r, feature_group_count=3), relu, conv(6, 2, (1, 1), r)],
    "conv_transpose": lambda r: [
        nnx.ConvTranspose(2, 3, (3, 2), strides=2, padding="VALID", rngs=r), relu,
        conv(3, 2, (2, 2), r)],
    "batchnorm": lambda r: [
        conv(2, 3, (3, 3), r), norm(3, r), relu, pool, nnx.Linear(3, 2, rngs=r)],
    "layernorm": lambda r: [
        nnx.Linear(5, 6, rngs=r), nnx.LayerNorm(6, epsilon=1e-5, rngs=r), relu,
        nnx.Linear(6, 3, rngs=r)],
    "embedding": lambda r: [nnx.Embed(7, 4, rngs=r), flat, nnx.Linear(12, 3, rngs=r)],
    "flatten": lambda r: [conv(2, 3, (2, 2), r), relu, flat, nnx.Linear(24, 2, rngs=r)],
    "flatten_norm": lambda r: [
        conv(2, 3, (2, 2), r), flat, norm(24, r), relu, nnx.Linear(24, 2, rngs=r)],
    "image": lambda r: [
        nnx.Linear(5, 18, rngs=r), norm(18, r), relu, image, conv(3, 2, (2, 2), r)],
    "shared": lambda r: (lambda f: [f, relu, f, relu, nnx.Linear(5, 2, rngs=r)])(
        nnx.Linear(5, 5, rngs=r)),
}  # fmt: skip


def image(x):
    return x.reshape(x.shape[0], 3, 2, 3)


def mean_square(outputs, targets):
    return ((outputs - targets) ** 2).mean()


def step(model, optimizer, x, y):
    grads = nnx.grad(lambda model: mean_square(model(x), y))(model)
    optimizer.update(model, grads)


compiled_step = nnx.jit(step)


class Hooks:
    """Steps are made one operation at a time, for compiling each takes most of the time."""

    optimizers = ("sgd", "clipped")
    step = staticmethod(step)

    def backend(self):
        return detect(nnx.Sequential())

    def build(self, case, seed=0):
        return nnx.Sequential(*BUILDERS[case](nnx.Rngs(seed)))

    def to_native(self, case, array):
        return jnp.array(np.moveaxis(array, 1, -1) if array.ndim > 2 else array)

    def trainer(self, model, case, optimizer="sgd"):
        tx = {
            "sgd": lambda: optax.chain(
                optax.add_decayed_weights(0.01), optax.sgd(0.1, momentum=0.9)),
            "clipped": lambda: optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.1)),
            "adamw": lambda: optax.adamw(0.01),
        }[optimizer]()  # fmt: skip
        made = nnx.Optimizer(model, tx, wrt=nnx.Param)
        x, y = self.example(case), self.targets(case)

        def train(updates):
            model.train()
            for _ in range(updates):
                self.step(model, made, x, y)

        return train

    def loss(self):
        return mean_square


class TestJaxConformance(Hooks, BackendConformance):
    """Four cases have all there is to a layout: the suite takes a second a test on JAX."""

    cases = ("depthwise", "embedding", "flatten_norm", "shared")


class TestJaxValues(Hooks, ValueChecks):
    """Layouts, graphs and outputs of the others."""

    cases = tuple(case for case in CASES if case not in TestJaxConformance.cases)


class TestCompiledSteps(Hooks, TrainingChecks):
    """The same promises in steps that are compiled."""

    cases = ("flatten_norm",)
    optimizers = ("sgd", "clipped", "adamw")
    step = staticmethod(compiled_step)
