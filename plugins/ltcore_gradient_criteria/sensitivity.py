"""How much the loss, or its gradient, feels a weight.

``w`` is the weight and ``g`` the gradient of the loss, the mean over the user's batches.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltcore import Param, criterion


@criterion("gradient", needs={"gradient"}, elementwise=True)
def gradient(param: Param) -> NDArray[Any]:
    """Return ``|g|``: the criterion ``grad`` in the code of Zhou et al. 2019 (arXiv 1905.01067)."""
    scores: NDArray[Any] = np.abs(param.gradient)
    return scores


@criterion("snip", needs={"gradient"}, elementwise=True)
def snip(param: Param) -> NDArray[Any]:
    """Return ``|w g|``: connection sensitivity, Lee et al. 2019 (arXiv 1810.02340), section 4.1.

    There at initialization, on one batch, under a global scope. The paper divides by the sum of
    all scores, which changes no order.
    """
    scores: NDArray[Any] = np.abs(param.weight * param.gradient)
    return scores


@criterion("taylor", needs={"gradient"}, elementwise=True)
def taylor(param: Param) -> NDArray[Any]:
    """Return ``(w g)**2``: Molchanov et al. 2019 (arXiv 1906.10771), section 3.1, first order.

    The square of what the loss would change to first order if the weight were gone. Weight by
    weight it is the order of `snip`, which is its root; summed over a block or a channel it is
    not. In float64, so that squares of small numbers stay apart.
    """
    scores: NDArray[Any] = np.square(param.weight * param.gradient, dtype=np.float64)
    return scores


@criterion("fisher", needs={"fisher"}, elementwise=True)
def fisher(param: Param) -> NDArray[Any]:
    """Return ``w**2 F / 2``: Theis et al. 2018 (arXiv 1801.05787), section 3, for single weights.

    It is the saliency of optimal brain damage (LeCun et al. 1990, section 2) with the diagonal
    ``F`` of the empirical Fisher information in place of that of the Hessian. In float64, as
    squares of squares leave float32.
    """
    scores: NDArray[Any] = 0.5 * np.square(param.weight, dtype=np.float64) * param.fisher
    return scores


@criterion("grasp", needs={"hessian_gradient"}, elementwise=True)
def grasp(param: Param) -> NDArray[Any]:
    """Return ``w (H g)``: gradient signal preservation.

    Wang et al. 2020 (arXiv 2002.07376), section 4, which removes the highest ``S = -w (H g)``; here
    higher = keep, so the sign turns.
    Without a weight, ``|g|**2`` changes by ``-2 w (H g)`` to first order: those go first whose
    absence raises it most. ``H`` and ``g`` are of the kept prunable weights. The paper divides
    the logits by a temperature of 200, which a user's loss does.
    """
    scores: NDArray[Any] = param.weight * param.hessian_gradient
    return scores
