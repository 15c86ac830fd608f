"""What rides on a numpy model while it trains: masks that are held, and a watch that counts.

Both live as long as the model, whose listeners they are, and neither keeps it alive.
"""

import weakref
from collections.abc import Callable, Sequence

from ltcore.arrays import Array, Params, own
from ltcore.masks import Masks
from ltcore.parameters import Structure
from ltcore.testing.reference_model import Gradients, NumpyModel


class NumpyHold:
    """Keeps pruned weights at 0.0: masks gradients before an update and weights after it."""

    def __init__(self, model: NumpyModel, structure: Structure, masks: Masks) -> None:
        self._model = weakref.ref(model)
        self._structure = structure
        model.before_update.append(self._mask_gradients)
        # First, so that a watch that was there before sees held weights.
        model.after_update.insert(0, self.enforce)
        self.update(masks)

    def update(self, masks: Masks) -> None:
        """Hold other masks from now on, and zero what they prune at once."""
        self._pruned = {  # layout: as weights
            self._structure.by_name[name][1].native: ~mask for name, mask in masks.items()
        }
        self.enforce()
        model = self._model()
        for optimizer in model.optimizers if model else ():
            self._mask_gradients(optimizer.velocity)  # old momentum must not move a new zero

    def enforce(self) -> None:
        """Zero every pruned weight now."""
        model = self._model()
        if model is not None:
            live = model.arrays()
            for key, pruned in self._pruned.items():
                live[key][pruned] = 0.0  # not a product: -1 * 0 is -0.0, and NaN * 0 is NaN

    def release(self) -> None:
        """Let go: nothing of the hold stays on the model; zeros stay in the weights."""
        model = self._model()
        if model is not None and self._mask_gradients in model.before_update:
            model.before_update.remove(self._mask_gradients)
            model.after_update.remove(self.enforce)

    def _mask_gradients(self, gradients: Gradients) -> None:
        for key, pruned in self._pruned.items():
            if key in gradients:
                gradients[key][pruned] = 0.0


class NumpyWatch:
    """Counts a model's updates, takes snapshots on the way, and keeps its first input."""

    def __init__(
        self,
        model: NumpyModel,
        read: Callable[[NumpyModel], Params],
        steps: Sequence[int],
        callback: Callable[[int], None] | None = None,
    ) -> None:
        self.steps = 0
        self.snapshots: dict[int, Params] = {}
        self.first_input: Array | None = None
        self._read, self._wanted, self._callback = read, frozenset(steps), callback
        self._model = weakref.ref(model)
        model.before_forward.append(self._see)
        model.after_update.append(self._count)

    def stop(self) -> None:
        """Stop watching; what was seen stays readable."""
        model = self._model()
        if model is not None and self._count in model.after_update:
            model.before_forward.remove(self._see)
            model.after_update.remove(self._count)

    def _see(self, x: Array) -> None:
        if self.first_input is None:
            self.first_input = own(x[:1])

    def _count(self) -> None:
        self.steps += 1
        model = self._model()
        if self.steps in self._wanted and model is not None:
            self.snapshots[self.steps] = self._read(model)
        if self._callback:
            self._callback(self.steps)  # last: a snapshot is what the update made
