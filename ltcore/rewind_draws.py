"""Rewind policies that draw: the controls that ask what about a ticket's weights matters.

What they draw is for the weights under masks. All else (biases, norms, buffers) goes back to the
snapshot, but with `RandomReinit`, which draws every layer anew.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ltcore.arrays import Array, Params
from ltcore.errors import InvalidValueError
from ltcore.rewind_points import check_step
from ltcore.rewinding import RewindContext

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class RandomReinit:
    """Draw anew from every layer's own initializer: the control of Frankle and Carbin 2019, s. 2.

    Model-specific initialization that is not in the layers (a loop over ``nn.init`` calls) is
    not known to ltcore; such a model wants a policy of its own.

    Attributes:
        keep_sign: weights under masks get the sign of their initial values (Zhou et al. 2019,
            section 4.1).
    """

    keep_sign: bool = False

    def __post_init__(self) -> None:
        _check_flag(self.keep_sign, "keep_sign")

    @property
    def snapshots(self) -> tuple[int, ...]:
        """Initialization, where signs are kept."""
        return (0,) if self.keep_sign else ()

    @property
    def resume_step(self) -> int:
        """Training starts over."""
        return 0

    def rewind(self, context: RewindContext) -> Params:
        """Return fresh params."""
        fresh = context.redraw()
        if not self.keep_sign:
            return fresh
        initial = context.snapshots[0]
        return {**fresh, **{n: np.copysign(fresh[n], initial[n]) for n in context.masks}}

    def describe(self) -> dict[str, Any]:
        """Return kind and options."""
        return {"kind": "reinit", "step": 0, "keep_sign": self.keep_sign}


@dataclass(frozen=True, slots=True)
class Resample:
    """Draw each surviving weight from the initial values of the survivors of its parameter.

    Frankle and Carbin 2019, appendix F.3, with replacement; without, it is the reshuffling of
    Zhou et al. 2019, section 4.1.

    Attributes:
        keep_sign: negative weights are drawn from negative ones, the others from the others.
        replace: False gives every value out once.
    """

    keep_sign: bool = False
    replace: bool = True

    def __post_init__(self) -> None:
        _check_flag(self.keep_sign, "keep_sign")
        _check_flag(self.replace, "replace")

    @property
    def snapshots(self) -> tuple[int, ...]:
        """Initialization."""
        return (0,)

    @property
    def resume_step(self) -> int:
        """Training starts over."""
        return 0

    def rewind(self, context: RewindContext) -> Params:
        """Return the initial params with survivors drawn from each other."""
        initial = context.snapshots[0]
        drawn = {
            name: self._drawn(initial[name], mask, context.rng)
            for name, mask in context.masks.items()
        }
        return {**initial, **drawn}

    def _drawn(self, initial: Array, mask: Array, rng: "np.random.Generator") -> Array:
        values = initial.copy()
        for where in self._pools(initial, mask):
            pool = initial[where]
            if pool.size:
                values[where] = rng.choice(pool, pool.size, replace=self.replace)
        return values

    def _pools(self, initial: Array, mask: Array) -> "Iterator[Array]":
        if self.keep_sign:
            yield mask & (initial < 0)
            yield mask & (initial >= 0)
        else:
            yield mask

    def describe(self) -> dict[str, Any]:
        """Return kind and options."""
        told = {"keep_sign": self.keep_sign, "replace": self.replace}
        return {"kind": "resample", "step": 0, **told}


@dataclass(frozen=True, slots=True)
class LayerConstant:
    """Give each weight plus or minus the standard deviation of its parameter's initial weights.

    Zhou et al. 2019, section 4.1 ("constant").

    Attributes:
        sign: ``"kept"`` from the initial values, or ``"random"``.
    """

    sign: Literal["kept", "random"] = "kept"

    def __post_init__(self) -> None:
        if self.sign not in ("kept", "random"):
            raise InvalidValueError(f"sign is {self.sign!r}; expected 'kept' or 'random'")

    @property
    def snapshots(self) -> tuple[int, ...]:
        """Initialization."""
        return (0,)

    @property
    def resume_step(self) -> int:
        """Training starts over."""
        return 0

    def rewind(self, context: RewindContext) -> Params:
        """Return the initial params with constants under the masks."""
        initial = context.snapshots[0]
        constant = {name: self._constant(initial[name], context.rng) for name in context.masks}
        return {**initial, **constant}

    def _constant(self, initial: Array, rng: "np.random.Generator") -> Array:
        if self.sign == "kept":
            return signed_constant(initial, initial)
        return signed_constant(initial, np.asarray(rng.standard_normal(initial.shape)))

    def describe(self) -> dict[str, Any]:
        """Return kind and options."""
        return {"kind": "constant", "step": 0, "sign": self.sign}


@dataclass(frozen=True, slots=True)
class RewindNoise:
    """Add Gaussian noise to the rewind point (Frankle and Carbin 2019, appendix F.7).

    Attributes:
        scale: the noise's standard deviation, relative to that of the parameter's initial weights.
        step: the rewind point.
    """

    scale: float = 0.5
    step: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "step", check_step(self.step, "step"))
        if isinstance(self.scale, bool) or not math.isfinite(self.scale) or self.scale < 0:
            raise InvalidValueError(f"scale is {self.scale!r}; expected a number, 0 or more")

    @property
    def snapshots(self) -> tuple[int, ...]:
        """Initialization and the rewind point."""
        return (0, self.step) if self.step else (0,)

    @property
    def resume_step(self) -> int:
        """The rewind point."""
        return self.step

    def rewind(self, context: RewindContext) -> Params:
        """Return the snapshot with noise on what is under masks."""
        initial, point = context.snapshots[0], context.snapshots[self.step]
        noisy = {
            name: _plus_noise(point[name], self.scale * _std(initial[name]), context.rng)
            for name in context.masks
        }
        return {**point, **noisy}

    def describe(self) -> dict[str, Any]:
        """Return kind and options."""
        return {"kind": "noise", "step": self.step, "scale": float(self.scale)}


def signed_constant(initial: Array, signs: Array) -> Array:
    """Return the standard deviation of ``initial``, everywhere, with the signs of ``signs``."""
    made: Array = np.copysign(initial.dtype.type(_std(initial)), signs.astype(initial.dtype))
    return made


def _plus_noise(values: Array, sigma: float, rng: "np.random.Generator") -> Array:
    noisy: Array = values + sigma * rng.standard_normal(values.shape)
    return noisy.astype(values.dtype)


def _std(values: Array) -> float:
    return float(np.std(values, dtype=np.float64))


def _check_flag(value: Any, argument: str) -> None:
    if not isinstance(value, bool):
        raise InvalidValueError(f"{argument} is {value!r}; expected True or False")
