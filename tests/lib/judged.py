"""Scores and masks of a criterion on a model, and small equal models to take them on."""

import numpy as np

import ltcore as lt
from ltcore.judging import score
from ltcore.options import allocation_from, criterion_from
from ltcore.parameters import in_canonical_order, in_native_order, prunable_infos
from ltcore.plugins import detect
from ltcore.pruning import Pruning, next_masks
from ltcore.signals import Subject, measure
from ltcore.testing import Linear, NumpyModel, Relu


def scores(model, rule, *, masks=None, **given):
    """Return ``{name: scores}`` of all prunable parameters, in canonical order.

    ``given`` is what `prepared` takes.
    """
    criterion = criterion_from(rule)
    subject, infos, known = prepared(model, **given)
    masks = masks or lt.Masks.ones({info.name: info.shape for info in infos})
    native = lt.Masks(in_native_order(masks, subject.structure))
    signals = {**known, **measure(subject, criterion.needs, native)}
    ordered = {
        signal: in_canonical_order(arrays, subject.structure) for signal, arrays in signals.items()
    }
    found = score(criterion, ordered, masks, infos, np.random.default_rng(0))
    return {info.name: found.block(info.name, slice(None)).reshape(info.shape) for info in infos}


def masks_of(model, rule, sparsity, *, scope="global", masks=None, seed=0, **given):
    """Return what one pruning keeps, in native order; ``given`` is what `prepared` takes."""
    subject, infos, known = prepared(model, **given)
    before = masks or lt.Masks.ones({info.name: info.shape for info in infos})
    pruning = Pruning(criterion_from(rule), allocation_from(scope), lt.Sparsity(sparsity), infos)
    return next_masks(pruning, before, known, subject, np.random.default_rng(seed))


def prepared(model, *, batches=None, loss=None, example=None, initial=None):
    """Return what a pruning takes: the subject, what is prunable, and the known signals."""
    backend = detect(model)
    structure = backend.describe(model, example)
    infos = prunable_infos(structure.infos)
    known = {"weight": backend.read(model, structure, [info.name for info in infos])}
    if initial is not None:
        known["initial"] = initial
    return Subject(backend, model, structure, batches, loss), infos, known


def small():
    """Return a model of the reference framework with 50 weights."""
    return NumpyModel([Linear(6, 5), Relu(), Linear(5, 4)])


class Reference:
    """The numpy reference framework."""

    @staticmethod
    def dense(weights, relu):
        layers = []
        for i, weight in enumerate(weights):
            layers += [Linear(weight.shape[1], weight.shape[0])]
            layers += [Relu()] if relu and i < len(weights) - 1 else []
        model = NumpyModel(layers)
        linear = [layer for layer in model.layers if isinstance(layer, Linear)]
        for layer, weight in zip(linear, weights, strict=True):
            layer.weight[...], layer.bias[...] = weight, 0
        model.training = False
        return model

    @staticmethod
    def array(array):
        return np.asarray(array, np.float32)

    @staticmethod
    def loss(outputs, targets):
        return np.mean((outputs - targets) ** 2)


class Torch:
    """PyTorch."""

    @staticmethod
    def dense(weights, relu):
        import torch

        layers = []
        for i, weight in enumerate(weights):
            layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            with torch.no_grad():
                layer.weight.copy_(torch.tensor(weight))
            layers += [layer, torch.nn.ReLU()] if relu and i < len(weights) - 1 else [layer]
        return torch.nn.Sequential(*layers).eval()

    @staticmethod
    def array(array):
        import torch

        return torch.tensor(np.asarray(array), dtype=torch.float32)

    @staticmethod
    def loss(outputs, targets):
        return ((outputs - targets) ** 2).mean()


class Keras:
    """Keras, on whatever engine."""

    @staticmethod
    def dense(weights, relu):
        import keras

        model = keras.Sequential([keras.layers.Input((weights[0].shape[1],))])
        for i, weight in enumerate(weights):
            layer = keras.layers.Dense(weight.shape[0], use_bias=False)
            model.add(layer)
            layer.kernel.assign(weight.T)
            if relu and i < len(weights) - 1:
                model.add(keras.layers.ReLU())
        return model

    @staticmethod
    def array(array):
        return np.asarray(array, np.float32)

    @staticmethod
    def loss(outputs, targets):
        import keras

        return keras.ops.mean(keras.ops.square(keras.ops.subtract(outputs, targets)))


SIDES = {"numpy": Reference, "torch": Torch, "keras": Keras}
