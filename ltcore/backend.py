"""What a framework must offer.

Arrays that cross this line are numpy, owned, and in canonical axes (`ltcore.layouts`). Features
behind a flatten stay in the framework's own order; whoever crosses frameworks reorders them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ltcore.arrays import Array, Params
from ltcore.masks import Masks
from ltcore.parameters import Structure


class MaskHandle(Protocol):
    """A hold that a backend put on a model.

    It lasts while the caller keeps it and the model lives; it does not keep the model alive.
    """

    def update(self, masks: Masks) -> None:
        """Hold other masks from now on, and zero what they prune at once."""
        ...

    def enforce(self) -> None:
        """Zero every pruned weight now."""
        ...

    def release(self) -> None:
        """Let go: nothing of the hold stays on model or optimizer; zeros stay in the weights."""
        ...


class Watch(Protocol):
    """Eyes on one training run: it counts updates and takes snapshots on the way."""

    @property
    def steps(self) -> int:
        """Optimizer updates of the model since the watch began."""
        ...

    @property
    def snapshots(self) -> Mapping[int, Params]:
        """``{step: params and buffers}`` for the steps asked for and reached."""
        ...

    @property
    def first_input(self) -> Any:
        """One example of the first input the model saw, as `Backend.describe` takes it, or None."""
        ...

    def stop(self) -> None:
        """Stop watching and leave nothing behind; what was seen stays readable."""
        ...


class Backend(Protocol):
    """Drives one framework. Every method takes the user's own model and changes only what it says.

    ``structure`` is always what `describe` returned for the same model.

    Attributes:
        name: the word for it, such as ``torch``.
        version: the framework's version.
        capabilities: optional abilities it has: ``"gradients"`` (the methods `gradients` and
            `fisher`), ``"hvp"``, ``"vjp"``, ``"activations"``, ``"checkpoints"`` (the methods of
            `CheckpointBackend`).
    """

    name: str
    capabilities: frozenset[str]

    @property
    def version(self) -> str:
        """The framework's version."""
        ...

    def describe(self, model: Any, example: Any = None) -> Structure:
        """Return the model's sites; with ``example`` (one input batch) also how data flows.

        Raises:
            ModelNotBuiltError: the model has no weights yet.
        """
        ...

    def root(self, model: Any) -> Any:
        """Return the object that owns the weights: the model without compile or DDP wrappers."""
        ...

    def read(
        self, model: Any, structure: Structure, names: Iterable[str] | None = None
    ) -> dict[str, Array]:
        """Return owned copies in canonical axes: all parameters and buffers, or ``names``."""
        ...

    def write(self, model: Any, structure: Structure, params: Params) -> None:
        """Write ``params`` in place, keeping dtype and device; other arrays stay."""
        ...

    def hold(self, model: Any, structure: Structure, masks: Masks) -> MaskHandle:
        """Keep pruned weights at exactly 0.0 after every optimizer update, whoever makes it."""
        ...

    def watch(
        self,
        model: Any,
        structure: Structure,
        steps: Sequence[int],
        callback: Callable[[int], None] | None = None,
    ) -> Watch:
        """Count updates from now on; take a snapshot after each number (1 or more) in ``steps``.

        Args:
            model: trained by its user, in any loop of the framework.
            structure: of the model.
            steps: numbers of updates at which to take a snapshot.
            callback: called with the number of updates so far, as soon as Python runs after an
                update: after each one, or once after several that one compiled call makes. It may
                read and write the model and change its hold. It is not called inside a step that
                the user compiled as a whole; `Watch.steps` counts those all the same.
        """
        ...

    def fresh_optimizer(self, model: Any, step: int) -> None:
        """Make the next watched training start anew: no optimizer state, its own count at ``step``.

        An optimizer that an earlier watched training used and the user carries over counts too.
        """
        ...

    def get_mode(self, model: Any) -> Any:
        """Return the model's training mode, module by module; None where models have none."""
        ...

    def set_mode(self, model: Any, mode: Any) -> None:
        """Put the model in a mode that `get_mode` returned for it."""
        ...

    def redraw(
        self, model: Any, structure: Structure, seed: int, names: Iterable[str] | None = None
    ) -> dict[str, Array]:
        """Return params from every layer's own initializer; the model stays as it was.

        With ``names``, those alone, of the same values.

        Raises:
            CapabilityError: a layer that is wanted does not say how it is initialized; names it.
        """
        ...

    def forward(
        self, model: Any, structure: Structure, inputs: Sequence[Array]
    ) -> tuple[Array, ...]:
        """Return the outputs for canonical ``inputs``, in inference mode, in canonical axes."""
        ...

    def gradients(
        self,
        model: Any,
        structure: Structure,
        batches: Iterable[tuple[Any, Any]],
        loss: Callable[[Any, Any], Any],
    ) -> dict[str, Array]:
        """Return the gradient of every trained parameter, averaged over ``batches``.

        Taken in inference mode (no dropout, running statistics), so that nothing is left to
        chance and frameworks agree. Parameters and buffers are as before afterwards.

        Args:
            model: stays in the mode it is in.
            structure: of the model.
            batches: pairs ``(inputs, targets)``. ``inputs`` is what `describe` takes as
                ``example``. ``targets``, be it one array or a tuple, list or dictionary of them,
                is handed to the loss as it is, as one argument; a framework whose operations want
                it makes tensors of its arrays and moves them to the model's device.
            loss: ``loss(outputs, targets)`` in the framework's own tensors; one number, of shape
                ``()``.
        """
        ...

    def fisher(
        self,
        model: Any,
        structure: Structure,
        batches: Iterable[tuple[Any, Any]],
        loss: Callable[[Any, Any], Any],
    ) -> dict[str, Array]:
        """Return the diagonal of the empirical Fisher information of every trained parameter.

        It is the mean over all examples of the squared gradient of the loss of one example (the
        loss of a batch of one). Otherwise as `gradients`.
        """
        ...

    def hvp(
        self,
        model: Any,
        structure: Structure,
        batches: Iterable[tuple[Any, Any]],
        loss: Callable[[Any, Any], Any],
        vector: Params,
    ) -> dict[str, Array]:
        """Return the Hessian of the mean loss times ``vector``, for every trained parameter.

        A true product (gradients of gradients), averaged over ``batches``. ``vector`` has some of
        the trained parameters; the others count as zero. Otherwise as `gradients`.
        """
        ...

    def vjp(
        self,
        model: Any,
        structure: Structure,
        inputs: Sequence[Array],
        cotangents: Sequence[Array],
        at: Params,
    ) -> dict[str, Array]:
        """Return the gradient of the inner product of outputs and ``cotangents``.

        Inputs and cotangents are canonical, as `forward` takes and returns them; there is one
        cotangent for each output. The function is differentiated in inference mode and at ``at``,
        every parameter and buffer, instead of the model's own, which are not touched. float64
        arrays make all of it float64, whatever the model computes in.

        Returns:
            ``{name: gradient}`` of every trained parameter, in the dtype of ``at``.
        """
        ...

    def activations(
        self,
        model: Any,
        structure: Structure,
        batches: Iterable[tuple[Any, Any]],
        names: Iterable[str],
    ) -> dict[str, Array]:
        """Return, for every weight of ``names``, how strong the input is that it multiplies.

        That is the root of the mean square of the input over all examples of ``batches`` and
        all output positions (input positions of a transposed convolution); padding counts as
        zeros. Inference mode; targets are ignored.

        Returns:
            ``{name: array of the weight's canonical shape}``, which may be a broadcast view.

        Raises:
            CapabilityError: a parameter is no kernel of a dense, convolutional, depthwise or
                transposed convolutional layer; names it and its kind.
        """
        ...


@dataclass(frozen=True, slots=True)
class Imported:
    """What was found in a checkpoint or in another tool's files.

    Attributes:
        params: every parameter and buffer of the model, in canonical axes; pruned weights may
            have any value.
        masks: the masks that are stored, bool, in canonical axes; empty where none are.
        story: plain data on what was read, for the provenance.
        rewind: the rewind point as in a provenance (``kind``, ``step``), where the source says it.
    """

    params: Params
    masks: Params
    story: Mapping[str, Any]
    rewind: Mapping[str, Any] = field(default_factory=lambda: {"kind": "present", "step": 0})


class CheckpointBackend(Backend, Protocol):
    """A backend that reads and writes its framework's own checkpoints.

    Every reading method leaves the model, its optimizer and its random state as they were, and
    runs no code that a file brings along.

    Attributes:
        writes: how the names of the checkpoints end that it writes.
        tools: what else it reads: ``"pruned"`` (models that the framework's own pruning holds;
            the method `unpruned`), and the words for `load_foreign`.
    """

    writes: tuple[str, ...]
    tools: frozenset[str]

    def load_checkpoint(
        self, model: Any, structure: Structure, source: Path | Mapping[str, Any]
    ) -> Imported:
        """Return what a checkpoint file, or ``{native name: array}``, has for ``model``.

        Raises:
            CheckpointError: the file cannot be read, or not without trusting it.
            MatchError: it is for another model; lists missing, unexpected and mismatched names.
        """
        ...

    def load_foreign(
        self, model: Any, structure: Structure, tool: str, source: Any, **options: Any
    ) -> Imported:
        """Return what ``source`` of one of ``tools`` has for ``model``.

        Raises:
            CheckpointError: it cannot be read, or not without trusting it.
            MatchError: it is for another model.
        """
        ...

    def unpruned(self, model: Any) -> tuple[Any, Mapping[str, Any]]:
        """Return a plain copy of a model under the framework's own pruning, and its checkpoint.

        Raises:
            NothingPrunedError: no layer of the model is under it.
        """
        ...

    def save_checkpoint(self, model: Any, path: Path) -> None:
        """Write the model's present weights to ``path``, which ends as one of ``writes``.

        Raises:
            CheckpointError: the framework cannot store them so.
        """
        ...
