"""Attention as its formula has it, in the dtype of what enters.

The engines' own have softmax, or the scale, in float32 whatever enters.
"""

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops


def attention(
    original: Callable[..., Any],
    query: Any,
    key: Any,
    value: Any,
    bias: Any = None,
    mask: Any = None,
    scale: float | None = None,
    is_causal: bool = False,
    attn_logits_soft_cap: float | None = None,
    **options: Any,
) -> Any:
    """Return what ``keras.ops.dot_product_attention`` does, for float64 tensors.

    Args:
        original: does it where logits are capped, which no two engines do alike.
        query: ``(batch, times, heads, features)``.
        key: ``(batch, others, heads or few, features)``.
        value: as ``key``.
        bias: added to logits ``(batch, heads, times, others)``.
        mask: broadcasts to those; False is never looked at.
        scale: of the logits.
        is_causal: nobody looks at later times.
        attn_logits_soft_cap: where logits are capped.
        options: say how, not what.
    """
    if attn_logits_soft_cap is not None:
        options |= {"attn_logits_soft_cap": attn_logits_soft_cap}
        return original(query, key, value, bias, mask, scale, is_causal, **options)
    shared = query.shape[2] // key.shape[2]
    key, value = (ops.repeat(one, shared, axis=2) for one in (key, value))
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    logits = ops.einsum("btnh,bsnh->bnts", query, key) * scale
    if bias is not None:
        logits = logits + ops.cast(bias, logits.dtype)
    never = 0.7 * float(np.finfo(keras.backend.standardize_dtype(logits.dtype)).min)
    if mask is not None:
        logits = ops.where(ops.cast(mask, "bool"), logits, never)
    if is_causal:
        seen = ops.tril(ops.ones(logits.shape[-2:], "bool"))
        logits = ops.where(seen, logits, never)
    return ops.einsum("bnts,bsnh->btnh", ops.softmax(logits, axis=-1), value)
