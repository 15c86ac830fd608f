"""Pruned weights of a Flax module stay exactly 0.0, whatever optax does and however it is compiled.

What cannot be reached is a step that does not know of the hold: a loop without `nnx.Optimizer`,
arrays that were taken out of the model (``nnx.split``, ``nnx.cached_partial``) before the hold,
and a step that was compiled ahead of time. ``Hold.check()`` tells.

What `nnx.clone` makes of a held model has a copy of its marks: free in plain Python, held and
counted inside a compiled step, and another tree than an unmarked model to `jax.tree.map`. Averages
of weights go over `nnx.state`, which has no marks. `copy.deepcopy` and `pickle` make plain models.
"""

import weakref

from flax import nnx

from ltcore.errors import HoldError
from ltcore.masks import Masks
from ltcore_jax._keeper import keeper_of
from ltcore_jax._names import inventory
from ltcore_jax._updates import listen, settle


class JaxHold:
    """The `ltcore.backend.MaskHandle` of a Flax module.

    Raises:
        CapabilityError: another model that is held or watched shares a layer with this one, or the
            model is spread over several devices.
    """

    def __init__(self, model: nnx.Module, masks: Masks) -> None:
        self._model = weakref.ref(model)
        self._keeper = keeper_of(model, inventory(model))
        self.update(masks)

    def update(self, masks: Masks) -> None:
        """Hold other masks from now on, and zero what they prune at once."""
        model = self._model()
        if model is None:
            raise HoldError("the held model no longer exists")
        found = inventory(model)
        native = {}
        for name, mask in masks.items():
            slot = found.slots[name]
            native[name] = slot.layout.to_native(mask, slot.variable.get_value().shape)
        self._keeper.hold(native, found)
        listen(self._keeper)

    def enforce(self) -> None:
        """Zero every pruned weight now."""
        model = self._model()
        if model is not None:
            self._keeper.enforce(inventory(model))

    def release(self) -> None:
        """Hold nothing; zeros stay. A model that is gone holds nothing anyway."""
        model = self._model()
        if model is not None:
            self._keeper.release(inventory(model))
        settle()
