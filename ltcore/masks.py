"""What is kept: one read-only boolean array a parameter, with integer counts."""

import hashlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np

from ltcore.arrays import Array, Params, freeze
from ltcore.errors import MaskError


def _kept(mask: Array) -> int:
    if mask.size and not any(mask.strides):  # one value seen through every position
        return mask.size * int(mask.flat[0])
    return int(np.count_nonzero(mask))


class Masks(Mapping[str, Array]):
    """Read-only ``{name: bool array of the parameter's shape}``, True = kept.

    Args:
        masks: the arrays, copied; their order is the order in which ties are broken.

    Raises:
        MaskError: an array is not boolean.

    >>> masks = Masks({"a": np.array([True, False, True])})
    >>> masks.kept, masks.total, masks.sparsity
    (2, 3, 0.3333333333333333)
    """

    __slots__ = ("__dict__", "_arrays")

    def __init__(self, masks: Mapping[str, Array]) -> None:
        for name, mask in masks.items():
            if np.asarray(mask).dtype != np.bool_:
                raise MaskError(
                    f"mask {name!r} has dtype {np.asarray(mask).dtype}; expected bool, True = kept"
                )
        self._arrays = {name: freeze(np.array(mask, order="C")) for name, mask in masks.items()}

    @classmethod
    def adopt(cls, masks: dict[str, Array]) -> "Masks":
        """Take over freshly made boolean arrays without a copy; the caller gives them up."""
        self = cls({})
        self._arrays = {n: freeze(m) if m.flags.writeable else m for n, m in masks.items()}
        return self

    @classmethod
    def ones(cls, shapes: Mapping[str, tuple[int, ...]]) -> "Masks":
        """Keep everything; takes no memory for it (one True seen through every position)."""
        return cls.adopt({name: np.broadcast_to(np.True_, s) for name, s in shapes.items()})

    @classmethod
    def nonzero(cls, params: Params) -> "Masks":
        """Keep what is not zero."""
        return cls.adopt({name: np.asarray(a != 0, order="C") for name, a in params.items()})

    def __getitem__(self, name: str) -> Array:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mapping):
            return NotImplemented
        return self.keys() == other.keys() and all(np.array_equal(self[n], other[n]) for n in self)

    def __hash__(self) -> int:
        return hash(frozenset(self.counts.items()))

    def __repr__(self) -> str:
        return f"Masks(kept={self.kept}, total={self.total}, parameters={len(self)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Masks, (dict(self._arrays),)

    @cached_property
    def counts(self) -> Mapping[str, tuple[int, int]]:
        """``{name: (kept, total)}``."""
        return {name: (_kept(m), m.size) for name, m in self._arrays.items()}

    @cached_property
    def kept(self) -> int:
        """How many weights are kept."""
        return sum(kept for kept, _ in self.counts.values())

    @cached_property
    def total(self) -> int:
        """How many weights there are."""
        return sum(total for _, total in self.counts.values())

    @property
    def density(self) -> float:
        """``kept / total``, 1.0 where there is nothing."""
        return self.kept / self.total if self.total else 1.0

    @property
    def sparsity(self) -> float:
        """The fraction removed, ``1 - kept / total``."""
        return (self.total - self.kept) / self.total if self.total else 0.0

    @property
    def emptied(self) -> tuple[str, ...]:
        """Parameters left with no survivors."""
        return tuple(name for name, (kept, total) in self.counts.items() if total and not kept)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over names, shapes and packed bits: equal masks, equal digest."""
        digest = hashlib.sha256()
        for name, mask in self._arrays.items():
            digest.update(f"{name}{mask.shape};".encode())
            digest.update(np.packbits(mask.reshape(-1), bitorder="little").tobytes())
        return digest.hexdigest()

    def nested_in(self, other: Mapping[str, Array]) -> bool:
        """Whether every kept weight is kept in ``other`` too."""
        return self.keys() == other.keys() and all(
            not (m & ~other[n]).any() for n, m in self.items()
        )

    def __and__(self, other: Mapping[str, Array]) -> "Masks":
        """Keep what both keep.

        Raises:
            MaskError: the two are not over the same parameters and shapes.
        """
        self.check_shapes({name: mask.shape for name, mask in other.items()}, "the other masks")
        return Masks.adopt({n: np.asarray(mask & other[n]) for n, mask in self.items()})

    def check_shapes(self, shapes: Mapping[str, tuple[int, ...]], whose: str) -> None:
        """Raise unless the masks are over exactly the parameters in ``shapes``.

        Raises:
            MaskError: lists missing, unexpected and mismatched names, with both shapes.
        """
        missing = sorted(shapes.keys() - self.keys())
        unexpected = sorted(self.keys() - shapes.keys())
        mismatched = [
            f"{name}: mask {self[name].shape}, {whose} {tuple(shapes[name])}"
            for name in self
            if name in shapes and self[name].shape != tuple(shapes[name])
        ]
        if missing or unexpected or mismatched:
            raise MaskError(
                f"masks do not fit {whose}: missing {missing}, unexpected {unexpected}, "
                f"mismatched {mismatched}"
            )

    def apply(self, params: Params) -> dict[str, Array]:
        """Return ``params`` with pruned weights at exactly 0.0; the rest is passed through."""
        return {
            name: np.where(self[name], array, array.dtype.type(0)) if name in self else array
            for name, array in params.items()
        }
