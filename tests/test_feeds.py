"""Batches and losses as users give them: the same rule in every framework."""

import keras
import numpy as np
import pytest
import torch

import ltcore as lt
from ltcore.errors import InvalidValueError
from ltcore.feeds import checked_loss, pairs
from ltcore.testing import NumpyModel
from ltcore.testing.reference_layers import Linear

X = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
Y = np.random.default_rng(1).normal(size=(8, 3)).astype(np.float32)


def torch_side():
    return torch.nn.Sequential(torch.nn.Linear(4, 3)), torch.from_numpy(X), torch.from_numpy(Y)


def keras_side():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    return model, keras.ops.convert_to_tensor(X), keras.ops.convert_to_tensor(Y)


def numpy_side():
    return NumpyModel([Linear(4, 3)]), X, Y


def jax_side():
    nnx = pytest.importorskip("flax.nnx")
    return nnx.Linear(4, 3, rngs=nnx.Rngs(0)), X, Y


SIDES = [torch_side, keras_side, numpy_side, jax_side]


def mean(array):
    return array.mean() if hasattr(array, "mean") else keras.ops.mean(array)


def mean_square(outputs, targets):
    return mean((outputs - targets) ** 2)


def prune(model, batches, loss, criterion="snip"):
    return lt.prune(model, 0.5, criterion=criterion, batches=batches, loss=loss)


@pytest.mark.parametrize("criterion", ["snip", "fisher", "grasp"])
@pytest.mark.parametrize("side", SIDES)
def test_a_loss_returns_one_number(side, criterion):
    model, x, y = side()
    with pytest.raises(InvalidValueError, match=r"shape \(\d,\); expected one number, such as"):
        prune(model, [(x, y)], lambda outputs, targets: ((outputs - targets) ** 2)[:, 0], criterion)


@pytest.mark.parametrize("side", SIDES)
def test_a_loss_that_fails_says_how_it_was_called(side):
    model, x, y = side()

    def loss(y_true, y_pred):
        raise RuntimeError("no such class")

    with pytest.raises(
        InvalidValueError, match=r"outputs, targets\): RuntimeError: no such.*y_true"
    ):
        prune(model, [(x, y)], loss)
    with pytest.raises(InvalidValueError, match="TypeError") as caught:
        prune(model, [(x, y)], lambda outputs: outputs)
    assert isinstance(caught.value.__cause__, TypeError)
    assert "Keras" not in str(caught.value)


@pytest.mark.parametrize("side", [torch_side, keras_side, jax_side])
def test_a_loss_without_a_gradient_is_refused(side):
    model, x, y = side()
    with pytest.raises(InvalidValueError, match=r"loss returned float 0\.5, which has no gradient"):
        prune(model, [(x, y)], lambda outputs, targets: 0.5)


def test_a_detached_loss_is_refused():
    model, x, y = torch_side()
    with pytest.raises(InvalidValueError, match="no gradient"):
        prune(model, [(x, y)], lambda outputs, targets: (outputs - targets).detach().mean())


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (torch.nn.MSELoss, r"the class MSELoss; .*MSELoss\(\)"),
        ("mse", "str 'mse'"),
        (3, "int 3"),
    ],
)
def test_what_is_no_loss_is_refused(loss, message):
    model, x, y = torch_side()
    with pytest.raises(InvalidValueError, match=message):
        prune(model, [(x, y)], loss)
    with pytest.raises(InvalidValueError, match=message):
        lt.find_supermask(model, [(x, y)], loss, steps=1)


@pytest.mark.parametrize("value", [None, [1.0, 2.0]])
def test_a_loss_that_returns_no_array_is_refused(value):
    with pytest.raises(InvalidValueError, match="expected one number, as a tensor"):
        checked_loss(lambda outputs, targets: value)(X, Y)


def bad_batches(x, y):
    return {
        "a pair alone": (x, y),
        "inputs alone": [x],
        "two inputs": [x[:2]],
        "an array": x,
        "a number": 3,
        "text": "data",
        "a dictionary": {"x": x, "y": y},
        "dictionaries": [{"x": x, "y": y}],
        "three parts": [(x, y, y)],
        "a loader of inputs": Loader([x, x]),
        "the second one": [(x, y), x],
    }


class Loader:
    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


@pytest.mark.parametrize("criterion", ["snip", "wanda"])
@pytest.mark.parametrize("side", [torch_side, keras_side, numpy_side])
def test_batches_are_pairs(side, criterion):
    model, x, y = side()
    for batches in bad_batches(x, y).values():
        with pytest.raises(InvalidValueError, match=r"expected pairs \(inputs, targets\)"):
            prune(model, batches, mean_square, criterion)


def test_batches_of_a_supermask_and_of_sparse_training_are_pairs():
    model, x, y = torch_side()
    for batches in bad_batches(x, y).values():
        with pytest.raises(InvalidValueError, match="expected pairs"):
            lt.find_supermask(model, batches, mean_square, steps=3)
    for batches in (3, (x, y), [x]):
        with pytest.raises(InvalidValueError, match="expected pairs"):
            lt.train_sparse(model, 0.5, until=900, batches=batches, loss=mean_square)


def test_a_pair_may_be_a_list_and_batches_may_be_read_once():
    given = iter([[X, Y], (X, Y)])
    assert [type(pair) for pair in pairs(given)] == [list, tuple]
    with pytest.raises(InvalidValueError, match="empty"):
        list(pairs(given))


@pytest.mark.parametrize("make", [tuple, list, lambda pair: dict(zip("ab", pair, strict=True))])
@pytest.mark.parametrize("criterion", ["snip", "fisher", "grasp"])
def test_several_targets_reach_the_loss_as_one_argument(make, criterion):
    def loss(outputs, targets):
        assert type(targets) is type(make((Y, Y)))
        first, second = targets.values() if isinstance(targets, dict) else targets
        return mean_square(outputs, first) + mean_square(outputs, 2 * second)

    def plain(outputs, targets):
        return mean_square(outputs, targets) + mean_square(outputs, 2 * targets)

    for side in (torch_side, keras_side, jax_side):
        found = []
        for function, targets in ((loss, lambda y: make((y, y))), (plain, lambda y: y)):
            keras.utils.set_random_seed(0)
            torch.manual_seed(0)
            model, x, y = side()
            found.append(prune(model, [(x, targets(y))], function, criterion).masks)
        assert found[0] == found[1]


def test_the_flow_names_its_criterion():
    with pytest.raises(InvalidValueError, match="criterion 'synflow', by its signal 'flow', needs"):
        lt.prune(torch.nn.Sequential(torch.nn.Linear(4, 3)), 0.5, criterion="synflow")
