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
from ltcore.errors import ProbeMismatchError
from ltcore.parameters import Interface, Site, Structure

BATCH = 2
TOLERANCES = {"float64": 3e-5, "float32": 3e-5, "float16": 2e-2, "bfloat16": 1e-1}
"""Largest difference, relative to the largest output, that a dtype's arithmetic explains."""

_WEIGHT_SEED = 7
_INPUT_SEED = 0


@dataclass(frozen=True, slots=True)
class Probe:
    """Outputs of the source model in canonical axes, one array an output.

    Attributes:
        synthetic: with `synthetic_params`: proves architecture and mapping.
        ticket: with the ticket's own weights: proves the values.
    """

    synthetic: tuple[Array, ...]
    ticket: tuple[Array, ...]


def probe_inputs(structure: Structure) -> list[Array]:
    """Return inputs in canonical axes: float32 in [-1, 1), or token numbers."""
    vocabulary = min(
        (
            role.shape[0]
            for site in structure.sites
            if site.kind == "embedding" and (role := site.role("weight"))
        ),
        default=2,
    )
    return [_input(face, i, vocabulary) for i, face in enumerate(structure.inputs or ())]


def _input(face: Interface, index: int, vocabulary: int) -> Array:
    shape = (BATCH, *face.shape[1:])
    values = _uniform(shape, _INPUT_SEED + index)
    if "float" in face.dtype:
        return values
    return ((values + 1) / 2 * vocabulary).astype(face.dtype).clip(0, vocabulary - 1)


def synthetic_params(sites: Sequence[Site]) -> dict[str, Array]:
    """Return made-up float32 values for every portable role, scaled to keep signals alive."""
    result = {}
    for index, site in enumerate(sites):
        for role in site.roles:
            if role.portable:
                seed = _WEIGHT_SEED + 1_000_003 * index + 7919 * sum(map(ord, role.name))
                values = _uniform(role.shape, seed)
                result[f"{site.name}.{role.name}"] = _scaled(values, site.kind, role.name)
    return result


def _scaled(values: Array, kind: str, role: str) -> Array:
    if role == "running_var" or (role == "weight" and kind in ("batchnorm", "layernorm")):
        return np.float32(1) + np.float32(0.5) * values
    if values.ndim <= 1:
        return np.float32(0.3) * values
    fan_in = 1 if kind == "embedding" else math.prod(values.shape[1:])
    return values * np.float32(math.sqrt(3 / fan_in))


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
    """Return the tolerance of the coarsest dtype among the parameters."""
    dtypes = {role.dtype for _, _, role in structure.items() if not role.state}
    return max((TOLERANCES.get(dtype, 0.0) for dtype in dtypes), default=TOLERANCES["float32"])


def check_outputs(
    expected: Sequence[Array], found: Sequence[Array], what: str, tolerance: float
) -> None:
    """Raise unless the outputs agree within ``tolerance`` of the largest one.

    Raises:
        ProbeMismatchError: gives the largest difference and where it is.
    """
    if [a.shape for a in expected] != [a.shape for a in found]:
        raise ProbeMismatchError(
            f"with {what}, the ticket's model gave outputs of shapes {[a.shape for a in expected]}"
            f", this one of {[a.shape for a in found]}"
        )
    for index, (want, got) in enumerate(zip(expected, found, strict=True)):
        scale = float(np.max(np.abs(want), initial=0.0)) or 1.0
        gap = float(np.max(np.abs(want - got), initial=0.0))
        if not (math.isfinite(scale) and gap <= tolerance * scale):
            raise ProbeMismatchError(
                f"with {what}, output {index} differs from the ticket's by {gap:.3g} "
                f"({gap / scale:.1e} of the largest output; {tolerance:.0e} allowed): the models "
                "do not compute the same function. Compare strides and padding, epsilons, "
                "activations, pooling, and the order of layers; the model was left as it was"
            )
