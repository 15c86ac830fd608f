"""Patterns whose units are whole pieces of a parameter: blocks, output and input channels.

A unit's score is made of its weights' scores, each as the criterion gave it; pruned weights count
as 0, and the size of the unit is divided out, so that units of unlike layers compete fairly.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ltcore.arrays import Array
from ltcore.errors import InvalidValueError
from ltcore.layouts import KINDS, RECURRENT, input_axis, output_axis
from ltcore.parameters import ParamInfo
from ltcore.whole import whole

NORMS = ("l1", "l2")


@dataclass(frozen=True, slots=True)
class Block:
    """Tiles of ``shape`` over output and input features, at each position of a kernel.

    Gray et al. 2017 and Narang et al. 2017 (arXiv 1711.02782). A tile's score is the mean of its
    weights' scores.

    Attributes:
        shape: (outputs, inputs) of a tile.
    """

    shape: tuple[int, int] = (4, 4)
    name: ClassVar[str] = "block"
    sparsity: ClassVar[float | None] = None

    def __post_init__(self) -> None:
        given = self.shape if isinstance(self.shape, Sequence) else ()
        sides = tuple(whole(side) or 0 for side in given)
        if len(sides) != 2 or min(sides) < 1 or math.prod(sides) == 1:
            raise InvalidValueError(
                f"block shape is {self.shape!r}; expected (outputs, inputs), such as (4, 4)"
            )
        object.__setattr__(self, "shape", sides)  # TOML gives a list

    def misfit(self, info: ParamInfo) -> str:
        """Return why a parameter cannot be cut into tiles."""
        axes = (output_axis(info.kind, info.role), input_axis(info.kind, info.role))
        for axis, what, side in zip(axes, ("output", "input"), self.shape, strict=True):
            if axis is None:
                return f"no {what} axis in the {info.role} of a {info.kind} layer"
            if info.shape[axis] % side:
                return f"{info.shape[axis]} {what}s are no multiple of {side}"
        return ""

    def units(self, mask: Array, info: ParamInfo) -> Array:
        """Return the tiles' mask, ``(outputs / tile, inputs / tile, *kernel)``."""
        return np.asarray(self._tiles(mask, info).any(axis=(1, 3)))

    def pool(self, scores: Array, mask: Array, info: ParamInfo) -> Array:
        """Return the tiles' mean scores, float64."""
        tiles = self._tiles(np.where(mask, scores, 0), info)
        flat = np.moveaxis(tiles, (1, 3), (-2, -1)).reshape(*_without(tiles.shape, (1, 3)), -1)
        return _pooled(flat, "l1")

    def spread(self, units: Array, info: ParamInfo) -> Array:
        """Return the weights' mask, each as its tile."""
        whole = units.repeat(self.shape[0], axis=0).repeat(self.shape[1], axis=1)
        return np.moveaxis(whole, (0, 1), _axes(info))

    def _tiles(self, array: Array, info: ParamInfo) -> Array:
        """Return ``array`` as ``(tiles, outputs, tiles, inputs, *kernel)``."""
        front = np.moveaxis(array, _axes(info), (0, 1))
        outs, ins = self.shape
        return front.reshape(front.shape[0] // outs, outs, front.shape[1] // ins, ins,
                             *front.shape[2:])  # fmt: skip


@dataclass(frozen=True, slots=True)
class Channel:
    """Output channels of convolutions, output neurons of dense layers.

    Li et al. 2017 (arXiv 1608.08710), section 3.1. With ``"magnitude"``, a filter's score is its
    norm, the size divided out. Output layers are left dense: what they give is the model's answer.
    A channel's bias and the shift of a norm behind it stay, so a pruned channel is constant, not
    gone. In a transposed convolution with groups, a unit is one output of every group.

    Attributes:
        norm: ``"l1"``, the mean of the weights' scores, or ``"l2"``, the root of their mean square.
    """

    norm: str = "l1"
    name: ClassVar[str] = "channel"
    sparsity: ClassVar[float | None] = None

    def __post_init__(self) -> None:
        _check_norm(self.norm)

    def misfit(self, info: ParamInfo) -> str:
        """Return why a parameter has no channels to prune."""
        if info.is_output:
            return "an output layer: without a channel the model answers another question"
        if info.kind in RECURRENT:
            return f"a unit of a {info.kind} layer has a row in each gate"
        if KINDS[info.kind].outs.get(info.role) is None:
            return f"no output axis in the {info.role} of a {info.kind} layer"
        return ""

    def units(self, mask: Array, info: ParamInfo) -> Array:
        """Return the channels' mask, 1-D."""
        return _kept_slices(mask, _output(info))

    def pool(self, scores: Array, mask: Array, info: ParamInfo) -> Array:
        """Return the channels' scores, float64.

        Raises:
            InvalidValueError: ``"l2"`` of negative scores.
        """
        return _pooled(_slices(np.where(mask, scores, 0), _output(info)), self.norm)

    def spread(self, units: Array, info: ParamInfo) -> Array:
        """Return the weights' mask, each as its channel."""
        return _broadcast(units, _output(info), info.shape)


@dataclass(frozen=True, slots=True)
class InputChannel:
    """Input channels of convolutions, input features of dense and recurrent layers.

    As `Channel`, along the other axis. In a convolution with groups, a unit is one input of every
    group.

    Attributes:
        norm: as in `Channel`.
    """

    norm: str = "l1"
    name: ClassVar[str] = "input-channel"
    sparsity: ClassVar[float | None] = None

    def __post_init__(self) -> None:
        _check_norm(self.norm)

    def misfit(self, info: ParamInfo) -> str:
        """Return why a parameter has no input channels."""
        if input_axis(info.kind, info.role) is None:
            return f"no input axis in the {info.role} of a {info.kind} layer"
        return ""

    def units(self, mask: Array, info: ParamInfo) -> Array:
        """Return the input channels' mask, 1-D."""
        return _kept_slices(mask, _input(info))

    def pool(self, scores: Array, mask: Array, info: ParamInfo) -> Array:
        """Return the input channels' scores, float64.

        Raises:
            InvalidValueError: ``"l2"`` of negative scores.
        """
        return _pooled(_slices(np.where(mask, scores, 0), _input(info)), self.norm)

    def spread(self, units: Array, info: ParamInfo) -> Array:
        """Return the weights' mask, each as its input channel."""
        return _broadcast(units, _input(info), info.shape)


def _output(info: ParamInfo) -> int:
    axis = output_axis(info.kind, info.role)
    assert axis is not None  # the pattern fits
    return axis


def _input(info: ParamInfo) -> int:
    axis = input_axis(info.kind, info.role)
    assert axis is not None
    return axis


def _axes(info: ParamInfo) -> tuple[int, int]:
    return _output(info), _input(info)


def _without(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for axis, size in enumerate(shape) if axis not in axes)


def _slices(array: Array, axis: int) -> Array:
    """Return ``(size of axis, all the rest)``."""
    return np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)


def _kept_slices(mask: Array, axis: int) -> Array:
    return np.asarray(_slices(mask, axis).any(axis=1))


def _broadcast(units: Array, axis: int, shape: tuple[int, ...]) -> Array:
    sides = [1] * len(shape)
    sides[axis] = -1
    return np.broadcast_to(units.reshape(sides), shape)


def _pooled(scores: Array, norm: str) -> Array:
    """Return the mean, or the root mean square, over the last axis.

    The axis is contiguous and the sum is float64: equal weights give equal sums everywhere.
    """
    wide = np.ascontiguousarray(scores, np.float64)
    if norm == "l1":
        return np.asarray(wide.mean(axis=-1))
    if (wide < 0).any():
        raise InvalidValueError(
            f"norm='l2' takes scores that are not negative, and the lowest is {wide.min():.3g}; "
            "use norm='l1', which is their mean"
        )
    return np.asarray(np.sqrt(np.square(wide).mean(axis=-1)))


def _check_norm(norm: str) -> None:
    if norm not in NORMS:
        raise InvalidValueError(f"norm is {norm!r}; expected one of {NORMS}")
