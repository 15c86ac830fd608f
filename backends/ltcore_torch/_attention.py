"""`torch.nn.MultiheadAttention` as its four projections, three of which share one tensor."""

from torch import nn

from ltcore_torch._parts import Part
from ltcore_torch._slots import Slot

OUTPUT = "out_proj"
"""The child that holds the fourth projection; the layer reads its arrays and never calls it."""


def attention_parts(layer: nn.MultiheadAttention) -> tuple[Part, ...] | str:
    """Return the four projections, or why another framework has no such layer."""
    if layer.bias_k is not None or layer.bias_v is not None:
        return "attention with add_bias_kv computes another function"
    if layer.add_zero_attn:
        return "attention with add_zero_attn computes another function"
    heads = {"heads": layer.num_heads}
    parts = [
        Part("linear", _projection(layer, number), heads, letter, letter)
        for number, letter in enumerate("qkv")
    ]
    out = {role: Slot(layer.out_proj, role) for role in ("weight", "bias")}
    return (*parts, Part("linear", out, heads, OUTPUT, "o"))


def _projection(layer: nn.MultiheadAttention, number: int) -> dict[str, Slot]:
    """Return the arrays of the queries' projection (0), the keys' (1) or the values' (2)."""
    rows = slice(number * layer.embed_dim, (number + 1) * layer.embed_dim)
    weight = Slot(layer, "in_proj_weight", rows)
    if not layer._qkv_same_embed_dim:  # keys and values of another width: a tensor each
        weight = Slot(layer, f"{'qkv'[number]}_proj_weight")
    return {"weight": weight, "bias": Slot(layer, "in_proj_bias", rows)}
