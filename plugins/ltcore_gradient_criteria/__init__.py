"""Criteria that look at the loss, at what flows through the network, or at its activations.

They come in by the door that anyone's criteria come in by. This module is data: it imports
nothing but the spec and the marker.
"""

from collections.abc import Iterable

from ltcore import Spec, hookimpl


@hookimpl
def ltcore_register_criteria() -> Iterable[Spec]:
    """Offer the criteria."""
    sensitivity = "ltcore_gradient_criteria.sensitivity"
    return [
        Spec("gradient", f"{sensitivity}:gradient", "|g|"),
        Spec("snip", f"{sensitivity}:snip", "|w g|"),
        Spec("taylor", f"{sensitivity}:taylor", "(w g)^2"),
        Spec("fisher", f"{sensitivity}:fisher", "w^2 F / 2"),
        Spec("grasp", f"{sensitivity}:grasp", "w (H g)"),
        Spec(
            "synflow", "ltcore_gradient_criteria.flow:SynFlow",
            "|w| times the flow, in 100 passes; no data, but example=",
        ),
        Spec(
            "wanda", "ltcore_gradient_criteria.wanda:Wanda",
            "|w| times the norm of its input, per output",
        ),
    ]  # fmt: skip
