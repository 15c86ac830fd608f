"""The cells of recurrent layers as sites."""

from typing import Any

from ltcore_keras._found import Found, Piece, UnlikeError, present
from ltcore_keras._layouts import DENSE, GRU_GATES, Layout
from ltcore_keras._places import Place


def _recurrent(kind: str, layer: Any, place: Place, layout: Layout) -> Found:
    pieces = present(w_ih=(layer.kernel, layout), w_hh=(layer.recurrent_kernel, layout))
    if layer.bias is not None and len(layer.bias.shape) == 2:
        pieces |= {"b_ih": Piece(layer.bias, layout, 0), "b_hh": Piece(layer.bias, layout, 1)}
    elif layer.bias is not None:
        pieces["b_ih"] = Piece(layer.bias, layout)
    attrs = {
        "direction": "backward" if place.backwards else "forward",
        "biases": len(pieces) - 2,
    }
    return Found(kind, pieces, attrs)


def simple_rnn(layer: Any, place: Place) -> list[Found]:
    """Return the site of a `SimpleRNNCell`.

    Raises:
        UnlikeError: its activation is one that other frameworks do not have.
    """
    word = _activation(layer.activation)
    if word not in ("tanh", "relu"):
        raise UnlikeError(f"its activation is {word}, not tanh or relu")
    found = _recurrent("rnn", layer, place, DENSE)
    return [Found("rnn", found.pieces, {**found.attrs, "activation": word})]


def lstm(layer: Any, place: Place) -> list[Found]:
    """Return the site of an `LSTMCell`, whose gates lie as in the canonical layout.

    Raises:
        UnlikeError: its activations are not the usual ones.
    """
    _check_gates(layer)
    return [_recurrent("lstm", layer, place, DENSE)]


def gru(layer: Any, place: Place) -> list[Found]:
    """Return the site of a `GRUCell`.

    Raises:
        UnlikeError: its activations are not the usual ones, or it resets before its kernel.
    """
    _check_gates(layer)
    if not layer.reset_after:
        raise UnlikeError("GRU with reset_after=False computes another function")
    return [_recurrent("gru", layer, place, GRU_GATES)]


def _check_gates(layer: Any) -> None:
    words = _activation(layer.activation), _activation(layer.recurrent_activation)
    if words != ("tanh", "sigmoid"):
        raise UnlikeError(f"its activations are {words}, not tanh and sigmoid")


def _activation(function: Any) -> str:
    return str(getattr(function, "__name__", type(function).__name__))
