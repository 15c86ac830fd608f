"""Training steps by hand, as users of each of Keras's engines write them."""

import keras
from keras import ops

ENGINE = keras.backend.backend()


def mean_square(outputs, targets):
    return ops.mean(ops.square(ops.subtract(outputs, targets)))


class Loop:
    """One optimizer update a call; ``compiled`` once, at the first call, where engines can.

    Args:
        model: gets the new weights after every call.
        optimizer: lives on from call to call.
        compiled: in a function of the user's own (TensorFlow's or JAX's).
        loss: ``loss(outputs, targets)``.
    """

    def __init__(self, model, optimizer, compiled=False, loss=mean_square):
        self.model, self.optimizer, self.loss = model, optimizer, loss
        self.step = {"tensorflow": _tape, "torch": _backward, "jax": _pure}[ENGINE](self, compiled)

    def __call__(self, x, y):
        self.step(x, y)


def _tape(loop, compiled):
    import tensorflow as tf

    def step(x, y):
        with tf.GradientTape() as tape:
            loss = loop.loss(loop.model(x, training=True), y)
        weights = loop.model.trainable_variables
        loop.optimizer.apply(tape.gradient(loss, weights), weights)

    run = tf.function(step) if compiled else step
    return lambda x, y: run(tf.constant(x), tf.constant(y))


def _backward(loop, compiled):
    assert not compiled

    def step(x, y):
        import torch

        loop.model.zero_grad()
        loop.loss(loop.model(x, training=True), y).backward()
        weights = loop.model.trainable_variables
        with torch.no_grad():
            loop.optimizer.apply([weight.value.grad for weight in weights], weights)

    return step


def _pure(loop, compiled):
    import jax

    model, optimizer = loop.model, loop.optimizer

    def loss_of(trained, others, x, y):
        outputs, others = model.stateless_call(trained, others, x, training=True)
        return loop.loss(outputs, y), others

    def step(trained, others, slots, x, y):
        gradients, others = jax.grad(loss_of, has_aux=True)(trained, others, x, y)
        trained, slots = optimizer.stateless_apply(slots, gradients, trained)
        return trained, others, slots

    def eager(x, y):
        trained, others = values(model.trainable_variables), values(model.non_trainable_variables)
        gradients, others = jax.grad(loss_of, has_aux=True)(trained, others, x, y)
        put(model.non_trainable_variables, others)
        optimizer.apply(gradients, model.trainable_variables)

    if not compiled:
        return eager
    jitted = jax.jit(step)

    def run(x, y):
        if not optimizer.built:
            optimizer.build(model.trainable_variables)
        places = model.trainable_variables, model.non_trainable_variables, optimizer.variables
        for variables, arrays in zip(places, jitted(*map(values, places), x, y), strict=True):
            put(variables, arrays)

    return run


def values(variables):
    return [variable.value for variable in variables]


def put(variables, arrays):
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)


def applying(optimizer, variables):
    """Return a function that makes one update with given gradients, compiled where engines can."""
    if ENGINE == "tensorflow":
        import tensorflow as tf

        return tf.function(lambda *gradients: optimizer.apply(gradients, variables))
    if ENGINE == "torch":
        return lambda *gradients: optimizer.apply(gradients, variables)
    import jax

    @jax.jit
    def step(trained, slots, gradients):
        return optimizer.stateless_apply(slots, gradients, trained)

    def run(*gradients):
        places = variables, optimizer.variables
        found = step(*map(values, places), gradients)
        for part, arrays in zip(places, found, strict=True):
            put(part, arrays)

    return run
