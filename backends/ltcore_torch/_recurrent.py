"""torch's recurrent layers: one site for each layer of the stack and each direction."""

from torch import nn

from ltcore_torch._parts import Part
from ltcore_torch._slots import Slot

_ROLES = {"w_ih": "weight_ih", "w_hh": "weight_hh", "b_ih": "bias_ih", "b_hh": "bias_hh"}
_KINDS = {"RNN_TANH": "rnn", "RNN_RELU": "rnn", "LSTM": "lstm", "GRU": "gru"}


def recurrent_parts(layer: nn.RNNBase) -> tuple[Part, ...] | str:
    """Return the sites of an RNN, LSTM or GRU, or why it is of no portable kind."""
    if layer.proj_size:
        return "an LSTM with proj_size computes another function"
    directions = ("", "_reverse") if layer.bidirectional else ("",)
    ends = [f"l{number}{way}" for number in range(layer.num_layers) for way in directions]
    activation = {"RNN_TANH": "tanh", "RNN_RELU": "relu"}.get(layer.mode)
    return tuple(
        _part(layer, _KINDS[layer.mode], activation, f"_{end}", "" if len(ends) == 1 else end)
        for end in ends
    )


def cell_parts(cell: nn.RNNCellBase) -> tuple[Part, ...] | str:
    """Return the one site of a cell, which is a layer for one time step."""
    activation = cell.nonlinearity if isinstance(cell, nn.RNNCell) else None
    kinds = {nn.RNNCell: "rnn", nn.LSTMCell: "lstm", nn.GRUCell: "gru"}
    kind = next((kind for cls, kind in kinds.items() if isinstance(cell, cls)), None)
    return (_part(cell, kind, activation),) if kind else ""


def _part(
    layer: nn.RNNBase | nn.RNNCellBase,
    kind: str,
    activation: str | None,
    end: str = "",
    suffix: str = "",
) -> Part:
    wanted = list(_ROLES) if layer.bias else ["w_ih", "w_hh"]
    arrays = {role: Slot(layer, f"{_ROLES[role]}{end}") for role in wanted}
    attrs = {
        "direction": "backward" if end.endswith("reverse") else "forward",
        "biases": 2 if layer.bias else 0,
    }
    if activation:
        attrs["activation"] = activation
    return Part(kind, arrays, attrs, suffix)
