"""The models of the conformance suite: a table that every backend builds in its framework.

``layers`` is the architecture, in the reference framework's words (`ltcore.testing.reference`):
sizes are ``(inputs, outputs, kernel)``, padding is the number of zeros on each side, every layer
has a bias, norms have ``eps=1e-5``, and a batch norm moves its running statistics by
``momentum=0.1`` (torch's way to count: Keras calls it 0.9). No activation but `Relu`, nothing
random. Sizes differ wherever they can, so that a swapped axis shows.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from ltcore.arrays import Array
from ltcore.layouts import AxisGroup
from ltcore.testing.reference_layers import (
    BatchNorm,
    Conv,
    ConvTranspose,
    Embedding,
    Flatten,
    GlobalPool,
    Image,
    Layer,
    LayerNorm,
    Linear,
    Relu,
)

Shape = tuple[int, ...]

VOCABULARY = 7
"""Token numbers in the case ``embedding`` are below this."""


@dataclass(frozen=True, slots=True)
class ExpectedSite:
    """What `describe` must say of a site.

    Attributes:
        kind: its kind.
        shapes: ``{role: canonical shape}`` of its portable roles.
        preds: indices of the sites it gets data from; empty for the model's input.
        group: for features that a flatten made: the axes, channels first. The site must record
            these axes in the order in which its framework flattens them.
        out_group: the same for features that are reshaped to an image.
    """

    kind: str
    shapes: Mapping[str, Shape]
    preds: tuple[int, ...]
    group: AxisGroup = ()
    out_group: AxisGroup = ()


@dataclass(frozen=True, slots=True)
class Case:
    """One model of the suite, its data, and what ltcore must find in it.

    Attributes:
        layers: makes the architecture, in order.
        inputs: canonical shape of an input batch.
        outputs: canonical shape of what the model makes of it.
        sites: what `describe` must find, in order.
        tokens: inputs are token numbers.
    """

    layers: Callable[[], list[Layer]]
    inputs: Shape
    outputs: Shape
    sites: tuple[ExpectedSite, ...]
    tokens: bool = field(default=False, kw_only=True)


def _site(
    kind: str,
    weight: Shape,
    features: int = 0,
    *preds: int,
    group: AxisGroup = (),
    out_group: AxisGroup = (),
) -> ExpectedSite:
    bias = {"bias": (features,)} if features else {}
    return ExpectedSite(kind, {"weight": weight, **bias}, preds, group, out_group)


def _batchnorm(features: int, *preds: int, group: AxisGroup = ()) -> ExpectedSite:
    roles = ("weight", "bias", "running_mean", "running_var")
    return ExpectedSite("batchnorm", dict.fromkeys(roles, (features,)), preds, group)


def _shared_layers() -> list[Layer]:
    shared = Linear(5, 5)
    return [shared, Relu(), shared, Relu(), Linear(5, 2)]


CASES: Mapping[str, Case] = MappingProxyType(
    {
        "linear": Case(
            lambda: [Linear(6, 5), Relu(), Linear(5, 3)],
            (4, 6),
            (4, 3),
            (_site("linear", (5, 6), 5), _site("linear", (3, 5), 3, 0)),
        ),
        "conv1d": Case(
            lambda: [Conv(2, 3, (3,), stride=2, padding=1), Relu(), Conv(3, 2, (2,))],
            (4, 2, 7),
            (4, 2, 3),
            (_site("conv", (3, 2, 3), 3), _site("conv", (2, 3, 2), 2, 0)),
        ),
        "conv2d": Case(
            lambda: [Conv(2, 3, (3, 2), stride=2), Relu(), Conv(3, 2, (1, 2))],
            (4, 2, 5, 7),
            (4, 2, 2, 2),
            (_site("conv", (3, 2, 3, 2), 3), _site("conv", (2, 3, 1, 2), 2, 0)),
        ),
        "conv3d": Case(
            lambda: [Conv(2, 3, (2, 1, 3)), Relu(), Conv(3, 2, (1, 1, 1))],
            (4, 2, 3, 2, 4),
            (4, 2, 2, 2, 2),
            (_site("conv", (3, 2, 2, 1, 3), 3), _site("conv", (2, 3, 1, 1, 1), 2, 0)),
        ),
        "grouped": Case(
            lambda: [Conv(4, 6, (3, 2), groups=2), Relu(), Conv(6, 2, (1, 1))],
            (4, 4, 4, 4),
            (4, 2, 2, 3),
            (_site("conv", (6, 2, 3, 2), 6), _site("conv", (2, 6, 1, 1), 2, 0)),
        ),
        "depthwise": Case(
            lambda: [Conv(3, 6, (3, 2), groups=3), Relu(), Conv(6, 2, (1, 1))],
            (4, 3, 4, 4),
            (4, 2, 2, 3),
            (_site("depthwise", (6, 1, 3, 2), 6), _site("conv", (2, 6, 1, 1), 2, 0)),
        ),
        "conv_transpose": Case(
            lambda: [ConvTranspose(2, 3, (3, 2), stride=2), Relu(), Conv(3, 2, (2, 2))],
            (4, 2, 3, 2),
            (4, 2, 6, 3),
            (_site("conv_transpose", (2, 3, 3, 2), 3), _site("conv", (2, 3, 2, 2), 2, 0)),
        ),
        "batchnorm": Case(
            lambda: [Conv(2, 3, (3, 3)), BatchNorm(3), Relu(), GlobalPool(), Linear(3, 2)],
            (6, 2, 4, 5),
            (6, 2),
            (
                _site("conv", (3, 2, 3, 3), 3),
                _batchnorm(3, 0),
                _site("linear", (2, 3), 2, 1),
            ),
        ),
        "layernorm": Case(
            lambda: [Linear(5, 6), LayerNorm(6), Relu(), Linear(6, 3)],
            (4, 5),
            (4, 3),
            (
                _site("linear", (6, 5), 6),
                _site("layernorm", (6,), 6, 0),
                _site("linear", (3, 6), 3, 1),
            ),
        ),
        "embedding": Case(
            lambda: [Embedding(VOCABULARY, 4), Flatten(), Linear(12, 3)],
            (5, 3),
            (5, 3),
            (_site("embedding", (VOCABULARY, 4)), _site("linear", (3, 12), 3, 0)),
            tokens=True,
        ),
        "flatten": Case(
            lambda: [Conv(2, 3, (2, 2)), Relu(), Flatten(), Linear(24, 2)],
            (4, 2, 5, 3),
            (4, 2),
            (
                _site("conv", (3, 2, 2, 2), 3),
                _site("linear", (2, 24), 2, 0, group=(("C", 3), ("S0", 4), ("S1", 2))),
            ),
        ),
        "flatten_norm": Case(
            lambda: [Conv(2, 3, (2, 2)), Flatten(), BatchNorm(24), Relu(), Linear(24, 2)],
            (6, 2, 5, 3),
            (6, 2),
            (
                _site("conv", (3, 2, 2, 2), 3),
                _batchnorm(24, 0, group=(("C", 3), ("S0", 4), ("S1", 2))),
                _site("linear", (2, 24), 2, 1, group=(("C", 3), ("S0", 4), ("S1", 2))),
            ),
        ),
        # A dense layer that makes an image: its rows are pixels, in the framework's own order.
        "image": Case(
            lambda: [Linear(5, 18), BatchNorm(18), Relu(), Image((3, 3, 2)), Conv(3, 2, (2, 2))],
            (6, 5),
            (6, 2, 2, 1),
            (
                _site("linear", (18, 5), 18, out_group=(("C", 3), ("S0", 3), ("S1", 2))),
                _batchnorm(18, 0, group=(("C", 3), ("S0", 3), ("S1", 2))),
                _site("conv", (2, 3, 2, 2), 2, 1),
            ),
        ),
        # One layer used twice: one site, which also gets data from itself.
        "shared": Case(
            _shared_layers,
            (4, 5),
            (4, 2),
            (_site("linear", (5, 5), 5, 0), _site("linear", (2, 5), 2, 0)),
        ),
    }
)


def canonical_inputs(case: str, batch: int = 0) -> Array:
    """Return an input batch in canonical layout: float32 in [-1, 1), or int32 token numbers."""
    rng = np.random.default_rng([batch, 1])
    shape = CASES[case].inputs
    if CASES[case].tokens:
        return rng.integers(VOCABULARY, size=shape, dtype=np.int32)
    return rng.uniform(-1, 1, shape).astype(np.float32)


def canonical_targets(case: str, batch: int = 0) -> Array:
    """Return targets in canonical layout, float32 in [-1, 1), of the shape of the outputs."""
    rng = np.random.default_rng([batch, 2])
    return rng.uniform(-1, 1, CASES[case].outputs).astype(np.float32)
