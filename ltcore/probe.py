"""Proof that two models compute the same function, without having both at hand.

The source framework feeds made-up inputs through made-up weights and records the outputs; the
target must reproduce them. Inputs and weights follow from integer arithmetic (splitmix64), so any
language can make them again. Made-up weights find what real ones hide: a fresh residual branch
that ends in zeros says nothing about the layers before it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ltcore.arrays import Array
from ltcore.parameters import Interface, Site, Structure

RULE = 2
"""How inputs and weights are made up now. Rule 1: two examples, and kernels half as wide."""

LOUD = 6
"""Half the examples are as much louder, for activations that differ only far from zero."""

_EXAMPLES = {1: 2, 2: 4}
_GAINS = {1: 3, 2: 6}
"""Three times fan-in times the variance of a kernel: rule 2 keeps signals up through ReLUs."""

TOLERANCES = {"float64": 3e-5, "float32": 3e-5, "float16": 2e-2, "bfloat16": 1e-1}
"""Largest difference, relative to the largest output, that a dtype's arithmetic explains."""

_NORMS = ("batchnorm", "layernorm", "groupnorm", "rmsnorm")
_WEIGHT_SEED = 7
_INPUT_SEED = 0


@dataclass(frozen=True, slots=True)
class TieProbe:
    """A trial that tells apart sites which the graph of layers does not.

    Attributes:
        sites: the tied sites of the source model.
        outputs: with `synthetic_params`, the members of every *other* tie made equal, so that
            only the pairing of these sites shows.
    """

    sites: tuple[str, ...]
    outputs: tuple[Array, ...]


@dataclass(frozen=True, slots=True)
class Probe:
    """Outputs of the source model in canonical axes, one array an output.

    Attributes:
        synthetic: with `synthetic_params`: proves architecture and mapping.
        ticket: with the ticket's own weights: proves the values.
        ties: one trial for every tie in the source model's graph.
        rule: how inputs and weights were made up.
    """

    synthetic: tuple[Array, ...]
    ticket: tuple[Array, ...]
    ties: tuple[TieProbe, ...] = ()
    rule: int = RULE

    def is_finite(self) -> bool:
        """Whether no output is NaN or infinite: such a one would prove nothing."""
        trials = [output for one in self.ties for output in one.outputs]
        return all(np.isfinite(a).all() for a in (*self.synthetic, *self.ticket, *trials))

    def varies(self, structure: Structure, tolerance: float) -> bool:
        """Whether outputs tell examples apart: else agreement would say nothing."""
        faces = zip(self.synthetic, structure.outputs or (), strict=True)
        spread = [
            np.max(np.abs(output - output[:1]), initial=0) / (np.max(np.abs(output)) or 1)
            for output, face in faces
            if "float" in face.dtype and output.size
        ]
        return bool(max(spread, default=0) > max(1e-3, 2 * tolerance))


def probe_inputs(structure: Structure, rule: int = RULE) -> list[Array]:
    """Return inputs in canonical axes: float32 in [-1, 1), some louder, or token numbers."""
    rows = (
        role.shape[0]
        for site in structure.sites
        if site.kind == "embedding" and (role := site.role("weight"))
    )
    smallest = min(rows, default=2)
    return [_input(face, i, smallest, rule) for i, face in enumerate(structure.inputs or ())]


def _input(face: Interface, index: int, smallest: int, rule: int) -> Array:
    shape = (_EXAMPLES[rule], *face.shape[1:])
    values = _uniform(shape, _INPUT_SEED + index)
    if "float" in face.dtype:
        values[2:] *= np.float32(LOUD)
        return values
    vocabulary = smallest if face.vocabulary is None else face.vocabulary
    tokens = ((values + 1) / 2 * vocabulary).astype(face.dtype).clip(0, vocabulary - 1)
    if face.vocabulary is not None and tokens.size:
        # The edges, where padding and wrong sizes show: the last word, and 0 at an end.
        tokens.flat[0], tokens.flat[-1] = vocabulary - 1, 0
    return tokens


def synthetic_params(
    sites: Sequence[Site], equal: Sequence[Sequence[str]] = (), rule: int = RULE
) -> dict[str, Array]:
    """Return made-up float32 values for every portable role, scaled to keep signals alive.

    Args:
        sites: all sites of the source model, in its order.
        equal: groups of sites that get the values of their first member.
        rule: how they are made up.
    """
    leaders = {name: group[0] for group in equal for name in group}
    order = {site.name: position for position, site in enumerate(sites)}
    result = {}
    for site in sites:
        index = order[leaders.get(site.name, site.name)]
        for role in site.roles:
            if role.portable:
                seed = _WEIGHT_SEED + 1_000_003 * index + 7919 * sum(map(ord, role.name))
                values = _uniform(role.shape, seed)
                result[f"{site.name}.{role.name}"] = _scaled(
                    values, site.kind, role.name, _GAINS[rule]
                )
    return result


def _scaled(values: Array, kind: str, role: str, gain: int) -> Array:
    if role == "running_var" or (role == "weight" and kind in _NORMS):
        return np.float32(1) + np.float32(0.5) * values
    if values.ndim <= 1:
        return np.float32(0.3) * values
    fan_in = 1 if kind == "embedding" else math.prod(values.shape[1:])
    return values * np.float32(math.sqrt(gain / fan_in))


def _uniform(shape: tuple[int, ...], seed: int) -> Array:
    """Return float32 values in [-1, 1) from splitmix64 over the C-order index."""
    with np.errstate(over="ignore"):
        index = np.arange(1, math.prod(shape) + 1, dtype=np.uint64)
        z = np.uint64(seed) + index * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    unit = (z >> np.uint64(40)).astype(np.float64) / 2**23 - 1
    return unit.astype(np.float32).reshape(shape)


def tolerance_for(structure: Structure) -> float:
    """Return the tolerance of the coarsest dtype that parameters have or layers compute in."""
    dtypes = {role.dtype for _, _, role in structure.items() if not role.state}
    dtypes |= {
        site.attrs["compute_dtype"] for site in structure.sites if "compute_dtype" in site.attrs
    }
    return max((TOLERANCES.get(dtype, 0.0) for dtype in dtypes), default=TOLERANCES["float32"])


def compare(
    expected: Sequence[Array], found: Sequence[Array], tolerance: float, *, free_heads: bool = False
) -> str:
    """Return where and how far outputs are apart; empty where they agree.

    Args:
        expected: what the source model gave.
        found: what this model gives.
        tolerance: what is allowed, relative to the largest output.
        free_heads: compare the outputs that both have, where their numbers differ.
    """
    if free_heads and len(expected) == len(found):
        pairs = [_shared(want, got) for want, got in zip(expected, found, strict=True)]
        expected, found = [want for want, _ in pairs], [got for _, got in pairs]
    if [a.shape for a in expected] != [a.shape for a in found]:
        shapes = [a.shape for a in expected], [a.shape for a in found]
        said = f"the ticket's model gave outputs of shapes {shapes[0]}, this one {shapes[1]}"
        if sorted(shapes[0]) == sorted(shapes[1]):
            said += ": the same in another order"
        return said
    for index, (want, got) in enumerate(zip(expected, found, strict=True)):
        gap, scale = _gap(want, got)
        if not (math.isfinite(scale) and gap <= tolerance * scale):
            return (
                f"output {index} differs from the ticket's by {gap:.3g} ({gap / scale:.1e} of the "
                f"largest output; {tolerance:.0e} allowed)"
            )
    return ""


def _gap(want: Array, got: Array) -> tuple[float, float]:
    """Return the difference and the largest output of the example that is worst off."""
    if not want.size:
        return 0.0, 1.0
    rows = len(want) if want.ndim and len(want) == _EXAMPLES[RULE] else 1
    gaps = np.abs(want - got).reshape(rows, -1).max(1)
    scales = np.abs(want).reshape(rows, -1).max(1)
    scales = np.where(scales == 0, scales.max() or 1.0, scales)
    worst = int(np.argmax(gaps / scales))
    return float(gaps[worst]), float(scales[worst])


def _shared(want: Array, got: Array) -> tuple[Array, Array]:
    """Return the outputs that two heads of different size share.

    A softmax over more classes is brought to the shared ones, where it must agree as well.
    """
    axes = [axis for axis, sizes in enumerate(zip(want.shape, got.shape, strict=False))
            if sizes[0] != sizes[1]]  # fmt: skip
    if want.ndim != got.ndim or len(axes) != 1:
        return want, got
    axis, size = axes[0], min(want.shape[axes[0]], got.shape[axes[0]])
    totals = want.sum(axis, keepdims=True)
    cut = np.take(want, range(size), axis)
    if want.size and want.min() >= 0 and np.allclose(totals, 1, atol=1e-3):
        cut = cut / cut.sum(axis, keepdims=True)
    elif want.size and np.allclose(np.exp(want).sum(axis), 1, atol=1e-3):
        cut = cut - np.log(np.exp(cut).sum(axis, keepdims=True))
    return cut, np.take(got, range(size), axis)
