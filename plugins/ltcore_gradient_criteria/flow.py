"""What flows through the network, without any data."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ltcore import Param


@dataclass(frozen=True, slots=True)
class SynFlow:
    """Synaptic flow: Tanaka et al. 2020 (arXiv 2006.05467), section 6 and algorithm 1.

    A weight's score is ``|w|`` times the gradient of the sum of all outputs, for an input of ones
    and with absolute values of all parameters, in float64. With many passes no layer is emptied
    before it must be: what a layer has left is shared by fewer weights, whose scores grow.

    Attributes:
        passes: after pass k of n the density is that of the end to the power k / n.
    """

    passes: int = 100
    name: ClassVar[str] = "synflow"
    needs: ClassVar[frozenset[str]] = frozenset({"flow"})
    elementwise: ClassVar[bool] = True

    def score(self, param: Param) -> NDArray[Any]:
        """Return ``|w * flow|``."""
        scores: NDArray[Any] = np.abs(param.weight.astype(np.float64) * param.flow)
        return scores
