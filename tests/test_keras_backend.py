"""The Keras backend keeps every promise of the conformance suite, and some of its own."""

import json
import subprocess
import sys

import numpy as np
import pytest

keras = pytest.importorskip("keras")

from keras import layers as kl  # noqa: E402
from keras import ops  # noqa: E402

import ltcore as lt  # noqa: E402
from ltcore.errors import CapabilityError, InvalidValueError, ModelNotBuiltError  # noqa: E402
from ltcore.layouts import UNKNOWN_GROUP  # noqa: E402
from ltcore.plugins import detect  # noqa: E402
from ltcore.testing import BackendConformance  # noqa: E402

tf = pytest.importorskip("tensorflow")

# Keras 3.15 with numpy 2.4: saving a model makes numpy warn.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

BACKEND = detect(keras.Sequential())


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
}  # fmt: skip


class TestKerasConformance(BackendConformance):
    optimizers = ("sgd", "clipped", "adamw")

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

        def train(updates):
            for _ in range(updates):
                with tf.GradientTape() as tape:
                    value = self.loss()(model(x, training=True), y)
                made.apply(tape.gradient(value, model.trainable_variables), model.trainable_variables)

        return train

    def loss(self):
        return lambda outputs, targets: ops.mean(ops.square(outputs - targets))


class InFit(TestKerasConformance):
    """The same promises in ``fit`` (few cases: compiling is slow)."""

    cases = ("batchnorm",)
    steps_per_execution = 1
    jit_compile = False

    def trainer(self, model, case, optimizer="sgd"):
        model.compile(
            self.optimizer(optimizer), self.loss_function, jit_compile=self.jit_compile,
            steps_per_execution=self.steps_per_execution,
        )  # fmt: skip
        x, y = self.example(case), self.targets(case)

        def train(updates):
            many = [np.concatenate([part] * updates) for part in (x, y)]
            model.fit(*many, batch_size=len(x), shuffle=False, verbose=0)

        return train

    @staticmethod
    def loss_function(y, outputs):
        return ops.mean(ops.square(outputs - y))


class TestInFit(InFit):
    pass


class TestInCompiledFit(InFit):
    jit_compile = True
    steps_per_execution = 2
