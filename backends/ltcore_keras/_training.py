"""What a training run needs besides holding: gradients, and weights drawn anew."""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from ltcore.arrays import Array
from ltcore.errors import InvalidValueError
from ltcore_keras._engine import ENGINE
from ltcore_keras._initial import drawn
from ltcore_keras._slots import Slot


def mean_gradients(
    model: Any,
    variables: Sequence[Any],
    batches: Iterable[tuple[Any, Any]],
    loss: Callable[[Any, Any], Any],
) -> list[Any]:
    """Return the gradient of every variable in inference mode, averaged over ``batches``.

    Raises:
        InvalidValueError: there are no batches.
    """

    def found(inputs: Any, targets: Any) -> list[Any]:
        return ENGINE.gradients(variables, lambda: _loss(model, loss, inputs, targets))

    return _mean(itertools.starmap(found, batches))


def mean_products(
    model: Any,
    variables: Sequence[Any],
    batches: Iterable[tuple[Any, Any]],
    loss: Callable[[Any, Any], Any],
    vector: Sequence[Array],
) -> list[Any]:
    """Return the Hessian times ``vector`` in inference mode, averaged over ``batches``.

    Args:
        model: the model.
        variables: those that are differentiated.
        batches: pairs of inputs and targets.
        loss: of outputs and targets.
        vector: a native array for each of the variables.

    Raises:
        InvalidValueError: there are no batches.
    """
    directions = [
        keras.ops.cast(keras.ops.convert_to_tensor(array), variable.dtype)
        for variable, array in zip(variables, vector, strict=True)
    ]

    def found(inputs: Any, targets: Any) -> list[Any]:
        value = functools.partial(_loss, model, loss, inputs, targets)
        return ENGINE.hessian_product(variables, value, directions)

    return _mean(itertools.starmap(found, batches))


def mean_squares(
    model: Any,
    variables: Sequence[Any],
    batches: Iterable[tuple[Any, Any]],
    loss: Callable[[Any, Any], Any],
) -> list[Any]:
    """Return the squared gradient of one example's loss, averaged over all examples.

    Raises:
        InvalidValueError: there are no examples, or parts of a batch differ in their number.
    """
    gradients = ENGINE.gradients_of(variables, functools.partial(_loss, model, loss))

    def squares(inputs: Any, targets: Any) -> list[Any]:
        return [keras.ops.square(_float32(gradient)) for gradient in gradients(inputs, targets)]

    examples = (one for batch in batches for one in _examples(batch))
    return _mean(itertools.starmap(squares, examples))


def _mean(items: Iterable[list[Any]]) -> list[Any]:
    sums: list[Any] = []
    count = 0
    for one in items:
        item = list(map(_float32, one))
        sums = [a + b for a, b in zip(sums, item, strict=True)] if count else item
        count += 1
    if not count:
        raise InvalidValueError("batches is empty; expected pairs (inputs, targets)")
    return [total / count for total in sums]


def _examples(batch: tuple[Any, Any]) -> Iterator[Any]:
    """Yield the examples of a batch as batches of one."""
    leaves = [leaf for leaf in keras.tree.flatten(batch) if leaf is not None]
    sizes = {len(leaf) for leaf in leaves}
    if len(sizes) > 1:
        shapes = [tuple(leaf.shape) for leaf in leaves]
        raise InvalidValueError(
            f"the arrays of a batch have {sorted(sizes)} examples (shapes {shapes}); inputs and "
            "targets must have as many, along axis 0"
        )
    for index in range(*sizes):

        def one(leaf: Any, index: int = index) -> Any:
            return None if leaf is None else leaf[index : index + 1]

        yield keras.tree.map_structure(one, tuple(batch))


def _float32(tensor: Any) -> Any:
    """Return half precision as float32: sums would round, and squares be 0 too soon."""
    wider = {"float16": "float32", "bfloat16": "float32"}
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    return keras.ops.cast(tensor, wider.get(dtype, dtype))


def _loss(model: Any, loss: Callable[[Any, Any], Any], inputs: Any, targets: Any) -> Any:
    return loss(model(inputs, training=False), targets)


def redrawn(slots: Mapping[str, Slot], seed: int, names: Iterable[str]) -> dict[str, Any]:
    """Return ``{name: native tensor}`` from every layer's own initializer; constants stay.

    An initializer draws the same numbers at each call, so each array gets its own seed. The
    global random state is neither read nor advanced.

    Raises:
        CapabilityError: it is not known how an array is initialized; names it.
    """
    result = {}
    wanted = set(names)
    for position, (name, slot) in enumerate(slots.items()):
        if name not in wanted:
            continue
        if slot.constant:
            result[name] = slot.variable
            continue
        own = int(np.random.SeedSequence((seed, position)).generate_state(1)[0] >> 1)
        result[name] = drawn(name, slot, own)
    return result
