"""Weights and activations."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ltcore import Param
from ltcore.errors import InvalidValueError


@dataclass(frozen=True, slots=True)
class Wanda:
    """``|w|`` times the norm of what it multiplies: Sun et al. 2023 (arXiv 2306.11695), section 3.

    The norm is a root mean square here, which for one layer is the paper's L2 norm up to a factor.

    Attributes:
        per: what a weight is compared with. ``"output"``, as in the paper: with those of its own
            output; the score is its quantile among them, so that ``scope="layer"`` removes the
            same share of every output (equal scores: the lower position stays). ``"layer"``: the
            score is the product itself.
    """

    per: str = "output"
    name: ClassVar[str] = "wanda"
    needs: ClassVar[frozenset[str]] = frozenset({"activations"})

    def __post_init__(self) -> None:
        if self.per not in ("output", "layer"):
            raise InvalidValueError(f"wanda: per is {self.per!r}; expected 'output' or 'layer'")

    @property
    def elementwise(self) -> bool:
        """Whether nothing is compared here."""
        return self.per == "layer"

    @property
    def unpoolable(self) -> str:
        """Every output has the same quantiles, so their means tell no outputs apart."""
        if self.per == "layer":
            return ""
        return (
            "scores are quantiles within an output, which have the same mean in every output; use "
            "{'name': 'wanda', 'per': 'layer'}"
        )

    def score(self, param: Param) -> NDArray[Any]:
        """Return the product, or its quantile within its output."""
        products: NDArray[Any] = np.abs(param.weight) * param.activations
        if self.per == "layer":
            return products
        axis = param.info.output_axis or 0  # what has activations has outputs
        rows = _rows(products, axis)
        ranks = _quantiles(rows, _rows(param.mask, axis))
        moved = np.moveaxis(products, axis, 0)
        return np.moveaxis(ranks.reshape(moved.shape), 0, axis)


def _rows(array: NDArray[Any], axis: int) -> NDArray[Any]:
    """Return ``array`` with one row an output."""
    moved = np.moveaxis(array, axis, 0)
    return moved.reshape(moved.shape[0], -1)


def _quantiles(rows: NDArray[Any], kept: NDArray[Any]) -> NDArray[Any]:
    """Return each weight's rank from below among the kept weights of its row, as a share of them.

    Ranks are all different: of equal weights the first has the highest.
    """
    order = np.argsort(np.where(kept, rows, -np.inf)[:, ::-1], axis=1, kind="stable")
    ranks = np.empty(rows.shape, np.int64)
    np.put_along_axis(ranks, order, np.arange(1, rows.shape[1] + 1)[None], axis=1)
    count = kept.sum(axis=1, keepdims=True)
    shares = (ranks[:, ::-1] - (rows.shape[1] - count)) / np.maximum(count, 1)
    return np.where(np.isnan(rows), np.nan, shares)
