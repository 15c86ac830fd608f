"""Which operations and layers of Keras follow which rule."""

from ltcore.axes import Atom, Labels, reshaped
from ltcore_keras import _rules as rules
from ltcore_keras._calls import Call, Rule, axes, channel_axis

_POOLS = [f"{how}Pooling{n}D" for how in ("Max", "Average") for n in (1, 2, 3)]
_ADAPTIVE = [f"Adaptive{pool}" for pool in _POOLS]
_BY_SPACE = ("Cropping", "SpatialDropout", "UpSampling", "ZeroPadding")


def _flatten(call: Call) -> Labels:
    shape, labels = call.operands[0].shape, call.first
    if channel_axis(call.operation) == 1 and len(shape) > 2:
        # Keras moves channels last before it flattens.
        shape, labels = (shape[0], *shape[2:], shape[1]), (labels[0], *labels[2:], labels[1])
    return reshaped(labels, shape, call.shape)


def _global_pool(call: Call) -> Labels:
    labels = rules.image(call)
    if len(call.shape) == len(labels):
        return labels
    return (labels[0], labels[channel_axis(call.operation)])


def _repeat_vector(call: Call) -> Labels:
    return (call.first[0], (Atom("T", 1, call.shape[1]),), call.first[1])


def _attention(call: Call) -> Labels | None:
    parts = [one.named for one in call.operands]
    query, value = parts[0], parts[1]
    if call.index:
        return None  # the scores
    return call.trace.attention(query, parts[2] if len(parts) > 2 else value, value)


def _dot(call: Call) -> Labels | None:
    first, second = (one.named for one in call.operands)
    asked = axes(call.operation.axes)
    left, right = asked if len(asked) == 2 else asked * 2
    left, right = left % len(first), right % len(second)
    call.trace.pin((first[left], second[right]))
    kept = [axis for place, axis in enumerate(first) if place != left]
    kept += [axis for place, axis in enumerate(second) if place not in (0, right)]
    return tuple(kept) if len(kept) == len(call.shape) else None


LAYERS: dict[str, Rule] = {
    **dict.fromkeys(
        (
            "Activation", "ActivityRegularization", "Add", "AlphaDropout", "Average", "Dropout",
            "ELU", "GaussianDropout", "GaussianNoise", "Identity", "LeakyReLU", "Masking",
            "Maximum", "Minimum", "Multiply", "Normalization", "ReLU", "Rescaling", "Softmax",
            "Subtract", "UnitNormalization",
        ),
        rules.elementwise,
    ),
    **dict.fromkeys(
        (
            *_POOLS, *_ADAPTIVE, *(f"{word}{n}D" for word in _BY_SPACE for n in (1, 2, 3)),
            "AutoContrast", "CenterCrop", "Equalization", "RandomBrightness", "RandomContrast",
            "RandomCrop", "RandomErasing", "RandomFlip", "RandomGaussianBlur", "RandomGrayscale",
            "RandomHue", "RandomInvert", "RandomPerspective", "RandomPosterization",
            "RandomRotation", "RandomSaturation", "RandomSharpness", "RandomShear",
            "RandomTranslation", "RandomZoom", "Resizing", "Solarization",
        ),
        rules.image,
    ),
    **dict.fromkeys((f"Global{pool}" for pool in _POOLS), _global_pool),
    "Attention": _attention,
    "Concatenate": rules.concatenate,
    "Dot": _dot,
    "Flatten": _flatten,
    "Permute": rules.permute,
    "RepeatVector": _repeat_vector,
    "Reshape": rules.reshape,
}  # fmt: skip

OPERATIONS: dict[str, Rule] = {
    **dict.fromkeys(
        (
            "Abs", "Absolute", "Add", "Arccos", "Arccosh", "Arcsin", "Arcsinh", "Arctan",
            "Arctan2", "Arctanh", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "Cast",
            "Cbrt", "Ceil", "Celu", "Clip", "ConvertToTensor", "Copy", "Cos", "Cosh", "Divide",
            "DivideNoNan", "Elu", "Equal", "Erf", "Erfc", "Exp", "Exp2", "Expm1", "Fabs", "Floor",
            "FloorDivide", "Fmax", "Fmin", "FullLike", "Gelu", "Greater", "GreaterEqual",
            "HardShrink", "HardSigmoid", "HardSilu", "HardTanh", "Hypot", "Isfinite", "Isinf",
            "Isnan", "LeakyRelu", "Less", "LessEqual", "Log", "Log10", "Log1p", "Log2",
            "LogSigmoid", "LogSoftmax", "Logaddexp", "LogicalAnd", "LogicalNot", "LogicalOr",
            "LogicalXor", "Maximum", "Minimum", "Mod", "Multiply", "NanToNum", "Negative",
            "NotEqual", "OnesLike", "Power", "Reciprocal", "Relu", "Relu6", "Round", "Rsqrt",
            "SaturateCast", "Selu", "Sigmoid", "Sign", "Silu", "Sin", "Sinh", "SoftShrink",
            "Softmax", "Softplus", "Softsign", "SparsePlus", "SparseSigmoid", "Sparsemax", "Sqrt",
            "Square", "Squareplus", "StopGradient", "Subtract", "Tan", "Tanh", "TanhShrink",
            "Threshold", "TrueDivide", "Trunc", "Where", "ZerosLike",
        ),
        rules.elementwise,
    ),
    **dict.fromkeys(
        ("BatchNorm", "LayerNorm", "Normalize", "Pad", "RMSNorm"),
        rules.first_kept,
    ),
    **dict.fromkeys(
        (
            "AdaptiveAveragePool", "AdaptiveMaxPool", "AveragePool", "CropImages", "GaussianBlur",
            "MaxPool", "PadImages", "Resize",
        ),
        rules.image,
    ),
    **dict.fromkeys(
        (
            "All", "Amax", "Amin", "Any", "Average", "CountNonzero", "Logsumexp", "Max", "Mean",
            "Median", "Min", "Moments", "Norm", "Prod", "Ptp", "Std", "Sum", "Var",
        ),
        rules.reduced,
    ),
    **dict.fromkeys(("Argmax", "Argmin"), rules.arg_reduced),
    **dict.fromkeys(
        (
            "ArraySplit", "Cumprod", "Cumsum", "Flip", "Glu", "Repeat", "Roll", "Split",
            "TakeAlongAxis",
        ),
        rules.ordered,
    ),
    **dict.fromkeys(("Conv", "ConvTranspose", "DepthwiseConv", "SeparableConv"), rules.convolved),
    **dict.fromkeys(("BroadcastTo", "Tile"), rules.broadcast_to),
    **dict.fromkeys(("ExpandDims", "Ravel", "Reshape", "Squeeze"), rules.reshape),
    "Concatenate": rules.concatenate,
    "DotProductAttention": rules.attention,
    "Einsum": rules.einsum,
    "ExtractPatches": rules.patches,
    "GetItem": rules.get_item,
    "Matmul": rules.matmul,
    "Moveaxis": rules.move_axis,
    "Stack": rules.stack,
    "Swapaxes": rules.swap_axes,
    "Take": rules.take,
    "Transpose": rules.transpose,
    "Unstack": rules.unstack,
}  # fmt: skip
