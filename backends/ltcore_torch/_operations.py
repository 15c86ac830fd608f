"""What tensor operations do to the meaning of axes; what is in no table makes it unknown."""

from collections.abc import Callable
from typing import TypeAlias

import torch

from ltcore.axes import UNKNOWN, Labels, is_unknown, size_of, tidy, unknown
from ltcore_torch import _moves as moves
from ltcore_torch import _rules as rules
from ltcore_torch._calls import Call

Rule: TypeAlias = Callable[[Call, torch.Tensor, int], Labels]
"""``rule(call, result, its position among the results)``."""

MADE_ANEW = {
    "bernoulli", "empty_like", "fill", "full_like", "new_empty", "new_empty_strided", "new_full",
    "new_ones", "new_zeros", "ones_like", "rand_like", "randint_like", "randn_like", "zero",
    "zeros_like",
}  # fmt: skip
"""Operations whose result does not depend on what is in their operands."""

# Besides those that torch itself calls pointwise.
_KEEPING = {
    "_conj", "_log_softmax", "_softmax", "_to_copy", "alias", "celu", "clone", "contiguous",
    "copy", "detach", "isin", "lift_fresh", "log_sigmoid_forward", "masked_fill", "native_dropout",
    "rrelu_with_noise", "tril", "triu", "_fused_dropout", "dropout", "softmax", "log_softmax",
}  # fmt: skip
_RESHAPES = ("view", "_unsafe_view", "reshape", "_reshape_alias", "flatten", "unflatten")
_REDUCTIONS = (
    "all", "amax", "amin", "any", "count_nonzero", "linalg_vector_norm", "logsumexp", "max", "mean",
    "median", "min", "mode", "nanmean", "nanmedian", "nansum", "norm", "prod", "std", "std_mean",
    "sum", "var", "var_mean", "kthvalue",
)  # fmt: skip
_WINDOWS = tuple(
    f"{kind}{n}d{end}"
    for kind in ("avg_pool", "max_pool", "_adaptive_avg_pool", "adaptive_avg_pool",
                 "adaptive_max_pool", "fractional_max_pool", "upsample_nearest",
                 "_upsample_nearest_exact", "upsample_linear", "upsample_bilinear",
                 "_upsample_bilinear", "upsample_bicubic", "_upsample_bicubic",
                 "upsample_trilinear", "grid_sampler_")
    for n in (1, 2, 3)
    for end in ("", "_with_indices", "_aa")
)  # fmt: skip
_PADS = tuple(f"{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3))
_NORMS = (
    "native_layer_norm", "_fused_rms_norm", "rms_norm", "native_batch_norm", "cudnn_batch_norm",
    "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "miopen_batch_norm",
)  # fmt: skip
_CONVOLUTIONS = ("convolution", "_convolution", "mkldnn_convolution", "cudnn_convolution",
                 "convolution_overrideable", "conv1d", "conv2d", "conv3d")  # fmt: skip
_ATTENTIONS = tuple(
    f"_scaled_dot_product_{kind}"
    for kind in ("flash_attention", "flash_attention_for_cpu", "efficient_attention",
                 "cudnn_attention", "fused_attention_overrideable", "attention_math",
                 "attention_math_for_mps")
)  # fmt: skip

_RULES: dict[str, Rule] = {
    **dict.fromkeys(_KEEPING, rules.elementwise),
    **dict.fromkeys(_RESHAPES, moves.reshape),
    **dict.fromkeys(_REDUCTIONS, rules.reduce),
    **dict.fromkeys(_WINDOWS, rules.window),
    **dict.fromkeys((*_PADS, "constant_pad_nd", "narrow", "slice"), moves.resize),
    **dict.fromkeys(_NORMS, rules.norm),
    **dict.fromkeys(_CONVOLUTIONS, rules.convolution),
    **dict.fromkeys((*_ATTENTIONS, "scaled_dot_product_attention"), rules.attention),
    **dict.fromkeys(("split", "split_with_sizes", "chunk", "glu"), moves.resize),
    **dict.fromkeys(("cumsum", "cumprod", "logcumsumexp", "cummax", "cummin"), rules.accumulate),
    **dict.fromkeys(("flip", "roll", "index_select", "sort", "topk"), moves.reorder),
    **dict.fromkeys(("select", "unbind", "argmax", "argmin"), moves.select),
    **dict.fromkeys(("mm", "bmm", "matmul", "mv", "dot"), rules.matmul),
    **dict.fromkeys(("addmm", "baddbmm", "_addmm_activation", "addmv"), rules.matmul),
    "linear": rules.linear,
    "gather": moves.gather,
    "native_group_norm": rules.group_norm,
    "embedding": rules.embedding,
    "as_strided": moves.restride,
    "permute": moves.permute,
    "transpose": moves.transpose,
    "t": moves.flip_axes,
    "numpy_T": moves.flip_axes,
    "unsqueeze": moves.unsqueeze,
    "squeeze": moves.squeeze,
    "expand": moves.expand,
    "repeat": moves.repeat,
    "cat": moves.concatenate,
    "stack": moves.stack,
    "index": moves.index,
    "unfold": moves.unfold,
    "im2col": moves.patches,
    "pixel_shuffle": rules.to_image,
    "pixel_unshuffle": rules.to_image,
    "channel_shuffle": rules.to_image,
    "_pack_padded_sequence": moves.pack,
    "_pad_packed_sequence": moves.unpack,
}


def labels_after(call: Call, result: torch.Tensor, position: int) -> Labels:
    """Return what the axes of one of an operation's results mean."""
    rule = rules.elementwise if call.pointwise else _RULES.get(call.name)
    if rule is None:
        return unknown(result.dim())
    try:
        labels = rule(call, result, position)
    except (LookupError, TypeError, ValueError):  # an overload that the rule was not made for
        labels = ()
    if len(labels) != result.dim():
        return unknown(result.dim())
    return tuple(
        axis if is_unknown(axis) or not tidy(axis) or size_of(axis) == size else UNKNOWN
        for axis, size in zip(labels, result.shape, strict=True)
    )
