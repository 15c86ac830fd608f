"""Every criterion gives equal scores and masks in PyTorch and Keras, on equal weights and data."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
keras = pytest.importorskip("keras")

from judged import Keras, Torch, masks_of, scores  # noqa: E402
from ltcore import discovery  # noqa: E402
from ltcore.layouts import KINDS  # noqa: E402
from ltcore.parameters import in_canonical_order, in_native_order  # noqa: E402
from ltcore.plugins import detect  # noqa: E402

WRONG_SIGN = -1e14
"""Scores below are those of `same_sign` and `different_sign`."""

AROUND = ("same_sign", "different_sign", "inverted", "shuffled")


def models():
    """Return two equal models with every kind of kernel of which activations are known."""
    one = torch.nn.Sequential(
        torch.nn.Conv2d(2, 4, 3, padding=1),
        torch.nn.BatchNorm2d(4),
        torch.nn.ReLU(),
        torch.nn.Conv2d(4, 8, 3, groups=4),
        torch.nn.ReLU(),
        torch.nn.ConvTranspose2d(8, 3, 2, stride=2),
        torch.nn.Flatten(),
        torch.nn.Linear(3 * 6 * 8, 10),
        torch.nn.ReLU(),
        torch.nn.Linear(10, 4),
    ).eval()
    layers = keras.layers
    other = keras.Sequential(
        [
            layers.Input((5, 6, 2)),
            layers.Conv2D(4, 3, padding="same"),
            layers.BatchNormalization(epsilon=1e-5),
            layers.ReLU(),
            layers.DepthwiseConv2D(3, depth_multiplier=2),
            layers.ReLU(),
            layers.Conv2DTranspose(3, 2, strides=2),
            layers.Flatten(),
            layers.Dense(10),
            layers.ReLU(),
            layers.Dense(4),
        ]
    )
    return one, other


def drawn(model, example, seed):
    """Return values for all arrays, in native order; equal for equal architectures."""
    backend, rng = detect(model), np.random.default_rng(seed)
    structure = backend.describe(model, example)
    values = {}
    for name, _, role in structure.items():
        if not role.portable:
            continue
        if len(role.shape) > 1:
            array = rng.standard_normal(role.shape) * np.sqrt(2 / np.prod(role.shape[1:]))
        else:
            array = rng.uniform(0.5, 1.5, role.shape)
        values[name] = array.astype(np.float32)
    return in_native_order(values, structure)


@pytest.fixture(scope="module")
def sides():
    """Return ``[(model, what the criteria take)]`` of both frameworks."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((6, 2, 5, 6), dtype=np.float32)
    y = rng.standard_normal((6, 4), dtype=np.float32)
    given = []
    for side, model in zip((Torch, Keras), models(), strict=True):
        inputs = side.array(x if side is Torch else x.transpose(0, 2, 3, 1))
        backend = detect(model)
        backend.write(model, backend.describe(model, inputs[:1]), drawn(model, inputs[:1], seed=2))
        batches = [(inputs[:4], side.array(y[:4])), (inputs[4:], side.array(y[4:]))]
        example = inputs[:1]
        initial = drawn(model, example, seed=3)
        given.append((model, {"batches": batches, "loss": side.loss, "example": example,
                              "initial": initial}))  # fmt: skip
    with torch.no_grad():
        ours = given[0][0](torch.from_numpy(x)).numpy()
    theirs = given[1][0](x.transpose(0, 2, 3, 1))
    theirs = theirs.detach().numpy() if isinstance(theirs, torch.Tensor) else np.asarray(theirs)
    assert np.allclose(ours, theirs, atol=1e-5), "the two compute the same"
    return given


def rules():
    set_apart = (*AROUND, "synflow")
    names = [name for name in discovery.registry().offers["criterion"] if name not in set_apart]
    around = [{"name": wrapper, "criterion": "snip"} for wrapper in AROUND]
    return [*names, *around, {"name": "wanda", "per": "layer"}, {"name": "synflow", "passes": 9}]


def label(rule):
    return rule if isinstance(rule, str) else "-".join(map(str, rule.values()))


@pytest.mark.parametrize("rule", rules(), ids=label)
def test_both_frameworks_agree(rule, sides, record_agreement):
    (one, with_one), (other, with_other) = sides
    ours = list(scores(one, rule, **with_one).values())
    theirs = list(scores(other, rule, **with_other).values())
    # The score of a wrong sign is no size that others could be measured by.
    pairs = [(a[a > WRONG_SIGN], b[a > WRONG_SIGN]) for a, b in zip(ours, theirs, strict=True)]
    largest = max(float(np.abs(a).max()) for a, _ in pairs)
    gap = max(float(np.abs(a - b).max()) for a, b in pairs) / largest
    assert len(ours) == 5
    assert gap <= 1e-4
    assert all(
        np.array_equal(a > WRONG_SIGN, b > WRONG_SIGN) for a, b in zip(ours, theirs, strict=True)
    )
    assert max(float(a.std()) for a, _ in pairs) > 1e-3 * largest, "scores differ at all"
    kept = [
        list(canonical(model, masks_of(model, rule, 0.6, **given), given["example"]))
        for model, given in sides
    ]
    assert all(np.array_equal(a, b) for a, b in zip(*kept, strict=True)), "equal masks"
    record_agreement(rule if isinstance(rule, str) else rule["name"], gap)


def canonical(model, masks, example):
    structure = detect(model).describe(model, example)
    return in_canonical_order(masks, structure).values()


def test_the_models_have_every_kind_that_activations_know():
    example = torch.zeros(1, 2, 5, 6)
    one, _ = models()
    kinds = {site.kind for site in detect(one).describe(one, example).sites}
    assert kinds >= {"conv", "depthwise", "conv_transpose", "linear"} <= KINDS.keys()
