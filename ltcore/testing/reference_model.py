"""The numpy reference framework: models, an optimizer, and gradients, in as little as it takes.

A model is a list of layers and its parameters are float32 arrays. Gradients are central
differences, and an optimizer calls the model's listeners around every update.
"""

import copy
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np

from ltcore.arrays import Array
from ltcore.testing.reference_layers import Layer

Gradients: TypeAlias = dict[str, Array]


class NumpyModel:
    """Layers, one after the other; the same layer may come twice.

    Args:
        layers: the layers.
        seed: of the initial parameters; None leaves the model without any.

    Attributes:
        training: whether batch norms use and track the batch's statistics.
        before_forward: called with every input; copies of the model have no listeners.
        before_update: called with the gradients before an optimizer's update; may change them.
        after_update: called after it.
        optimizers: the optimizers made for this model that still live.
    """

    def __init__(self, layers: Sequence[Layer], seed: int | None = 0) -> None:
        self.layers = list(layers)
        self.training = True
        self._forget_listeners()
        if seed is not None:
            self.initialize(seed)

    def initialize(self, seed: int) -> None:
        """Set every parameter and buffer by its layer's own initializer."""
        rng = np.random.default_rng(seed)
        for _, layer in self.named_layers():
            for role, array in layer.initial(rng).items():
                setattr(layer, role, array)

    def named_layers(self) -> Iterator[tuple[str, Layer]]:
        """Yield ``("layers.<i>", layer)``, every layer once."""
        for i, layer in enumerate(self.layers):
            if layer not in self.layers[:i]:
                yield f"layers.{i}", layer

    def arrays(self, *, trained_only: bool = False) -> dict[str, Array]:
        """Return the live arrays, not copies, as ``{"layers.<i>.<role>": array}``."""
        return {
            f"{name}.{role}": getattr(layer, role)
            for name, layer in self.named_layers()
            for role in (layer.trained if trained_only else layer.trained + layer.buffers)
            if hasattr(layer, role)
        }

    def __call__(self, x: Array) -> Array:
        """Return the model's output."""
        for listener in list(self.before_forward):
            listener(x)
        for layer in self.layers:
            x = layer(x, self.training)
        return x

    def _forget_listeners(self) -> None:
        self.before_forward: list[Callable[[Array], None]] = []
        self.before_update: list[Callable[[Gradients], None]] = []
        self.after_update: list[Callable[[], None]] = []
        self.optimizers: weakref.WeakSet[Sgd] = weakref.WeakSet()

    def __getstate__(self) -> dict[str, Any]:
        # A copy or a pickle is a plain model: whoever listens to this one does not follow.
        return {"layers": self.layers, "training": self.training}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget_listeners()


class Sgd:
    """Stochastic gradient descent with momentum and (coupled) weight decay, as torch has it.

    With ``clip_norm``, gradients are scaled down to that norm, taken over all of them together.
    """

    def __init__(
        self,
        model: NumpyModel,
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        clip_norm: float = np.inf,
    ) -> None:
        self.model, self.lr, self.momentum, self.weight_decay = model, lr, momentum, weight_decay
        self.clip_norm = clip_norm
        self.count = 0
        self.velocity: dict[str, Array] = {}
        model.optimizers.add(self)

    def step(self, gradients: Gradients) -> None:
        """Update the model's parameters in place."""
        for before in list(self.model.before_update):
            before(gradients)
        norm = float(np.sqrt(sum(np.sum(gradient**2) for gradient in gradients.values())))
        scale = min(1.0, self.clip_norm / norm) if norm else 1.0
        for name, weight in self.model.arrays(trained_only=True).items():
            velocity = self.velocity.setdefault(name, np.zeros_like(weight))
            velocity *= self.momentum
            velocity += scale * gradients[name] + self.weight_decay * weight
            weight -= self.lr * velocity
        self.count += 1
        for after in list(self.model.after_update):
            after()


def in_float64(model: NumpyModel) -> NumpyModel:
    """Return a copy that computes in float64; ``model``, its buffers too, stays as it was."""
    twin = copy.deepcopy(model)
    for _, layer in twin.named_layers():
        for role in layer.trained + layer.buffers:
            setattr(layer, role, getattr(layer, role).astype(np.float64))
    return twin


def differentiate(
    model: NumpyModel, loss: Callable[[NumpyModel], float], step: float = 1e-6
) -> Gradients:
    """Return the gradient of ``loss(model)`` by central differences in float64.

    Args:
        model: is copied and stays as it was.
        loss: of a model.
        step: how far each weight is moved. A longer one loses fewer digits, and is as exact where
            the loss is linear or quadratic in each weight.
    """
    twin = in_float64(model)
    gradients = {}
    for name, weight in twin.arrays(trained_only=True).items():
        gradients[name] = np.zeros_like(weight)
        for position in np.ndindex(*weight.shape):
            here = weight[position]
            weight[position] = here + step
            above = loss(twin)
            weight[position] = here - step
            gradients[name][position] = (above - loss(twin)) / (2 * step)
            weight[position] = here
    return gradients


def mean_squared_error(outputs: Array, targets: Array) -> float:
    """Return the mean over all elements of the squared difference."""
    return float(np.mean((outputs - targets) ** 2))


def fit(model: NumpyModel, optimizer: Sgd, x: Array, y: Array, updates: int) -> None:
    """Make ``updates`` updates on one batch, minimizing the mean squared error."""
    for _ in range(updates):
        gradients = differentiate(model, lambda twin: mean_squared_error(twin(x), y))
        model(x)  # differentiation used a copy: batch norms have not seen this batch yet
        optimizer.step(gradients)
