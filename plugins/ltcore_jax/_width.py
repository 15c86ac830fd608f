"""Whether a pass in float64 stays in float64: what is rounded on the way is lost to the result."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from ltcore.errors import CapabilityError


def check_stays_wide(jaxpr: Any) -> None:
    """Raise where something made of the inputs of ``jaxpr`` goes from float64 to shorter floats.

    Raises:
        CapabilityError: names the operation and the dtype.
    """
    for equation in _touched(jaxpr, [True] * len(jaxpr.invars)):
        if jnp.float64 not in map(_dtype, equation.invars):
            continue
        for dtype in map(_dtype, equation.outvars):
            if jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 8:
                raise CapabilityError(
                    f"the model is to be computed in float64, and makes {dtype} of it inside "
                    f"({equation.primitive.name}); leave out the cast (astype) where the "
                    "input is float64, or use a criterion that needs no vjp"
                )


def _dtype(var: Any) -> Any:
    return getattr(var.aval, "dtype", np.dtype(bool))  # a token has none


def _touched(jaxpr: Any, reached: Sequence[bool]) -> Iterator[Any]:
    """Yield the operations that work on what is made of some inputs, those of functions inside.

    Args:
        jaxpr: what is computed.
        reached: which of its inputs count.
    """
    known = {var for var, counts in zip(jaxpr.invars, reached, strict=True) if counts}
    for equation in jaxpr.eqns:
        counts = [not isinstance(var, Literal) and var in known for var in equation.invars]
        if not any(counts):
            continue
        known.update(equation.outvars)
        inside = list(_inside(equation))
        if not inside:
            yield equation
        for inner in inside:
            fits = not _is_loop(equation) and len(inner.invars) == len(counts)
            yield from _touched(inner, counts if fits else [True] * len(inner.invars))


def _is_loop(equation: Any) -> bool:
    return equation.primitive.name in ("scan", "while")  # what comes out goes in again


def _inside(equation: Any) -> Iterator[Any]:
    """Yield the functions that an operation calls."""
    for param in equation.params.values():
        for one in param if isinstance(param, tuple | list) else (param,):
            jaxpr = getattr(one, "jaxpr", one)
            if hasattr(jaxpr, "eqns"):
                yield jaxpr
