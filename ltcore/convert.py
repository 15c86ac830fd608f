"""Coming from other tools, and going back to plain checkpoints.

The model is always given: its structure says what the arrays are. Masks that a source stores are
taken as they are, also where a kept weight happens to be 0.0; else exact zeros are what is pruned.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias, cast

from ltcore import exchange
from ltcore.arrays import check_finite
from ltcore.backend import Backend, CheckpointBackend, Imported
from ltcore.container import is_ticket
from ltcore.errors import CapabilityError, CheckpointError, MaskError, NothingPrunedError
from ltcore.files import replacing, without_temporary
from ltcore.mappingfile import resolve_mapping
from ltcore.masks import Masks
from ltcore.options import prunable_from
from ltcore.parameters import Structure
from ltcore.restoring import restoring
from ltcore.ticket import GivenMapping, Ticket, make_ticket, origin, resolve_backend

AnyPath: TypeAlias = str | PathLike[str]


def from_checkpoint(
    model: Any,
    source: AnyPath | Mapping[str, Any],
    *,
    prunable: Sequence[str] | None = None,
    example: Any = None,
    backend: str | Backend | None = None,
) -> Ticket:
    """Return a ticket of the sparse weights in a checkpoint.

    Stored masks are used where there are any (``weight_orig`` with ``weight_mask``); else weights
    of the prunable parameters that are exactly zero are the pruned ones.

    Args:
        model: of the checkpoint's architecture, built; it stays as it is.
        source: a file (PyTorch: ``.pt``, ``.pth``, ``.bin``, ``.ckpt``, ``.safetensors``; Keras:
            ``.weights.h5``, ``.keras``, ``.h5``, ``.safetensors``), or ``{name: array}`` with the
            framework's own names, such as a ``state_dict()``.
        prunable: selectors of the parameters whose zeros count; kernels if None.
        example: one input batch; makes the ticket portable to the other framework.
        backend: a backend or its name, where it shall not be found from the model.

    Raises:
        CheckpointError: the file cannot be read, or not without trusting it.
        MatchError: it is for another model; lists missing, unexpected and mismatched names.
        NothingPrunedError: it is dense.
        NonFiniteError: a weight is NaN or infinite; names the parameter.
    """
    driver = _able(resolve_backend(model, backend))
    structure = driver.describe(model, example)
    if not isinstance(source, Mapping):
        source = _checkpoint_file(source)
    found = driver.load_checkpoint(model, structure, source)
    return _ticket(driver, model, structure, found, prunable)


def load_weights(
    model: Any, source: AnyPath, *, example: Any = None, backend: str | Backend | None = None
) -> Masks:
    """Write a checkpoint, dense or sparse, into ``model``; return the masks that it stores.

    Args:
        model: of the checkpoint's architecture, built.
        source: a file, as in `from_checkpoint`.
        example: one input batch, for a model that is not built yet.
        backend: a backend or its name, where it shall not be found from the model.

    Raises:
        CheckpointError: the file cannot be read, or not without trusting it.
        MatchError: it is for another model; lists missing, unexpected and mismatched names.
    """
    driver = _able(resolve_backend(model, backend))
    structure = driver.describe(model, example)
    found = driver.load_checkpoint(model, structure, _checkpoint_file(source))
    masks = Masks(found.masks)
    with restoring(driver, model, structure):
        driver.write(model, structure, masks.apply(found.params))
    return masks


def from_pruned(model: Any, *, example: Any = None, backend: str | Backend | None = None) -> Ticket:
    """Return a ticket of a model that is under its framework's own pruning.

    That is ``torch.nn.utils.prune``. The masks are its masks; the model stays under it.

    Args:
        model: pruned, and not yet made permanent.
        example: one input batch; makes the ticket portable to the other framework.
        backend: a backend or its name, where it shall not be found from the model.

    Raises:
        NothingPrunedError: no layer is under it, or its masks keep everything.
        CapabilityError: the framework has no such thing.
    """
    driver = _able(resolve_backend(model, backend), "pruned")
    plain, state = driver.unpruned(model)
    structure = driver.describe(plain, example)
    found = driver.load_checkpoint(plain, structure, state)
    return _ticket(driver, plain, structure, replace(found, story={"format": "pruned"}))


def from_open_lth(
    model: Any,
    folder: AnyPath,
    *,
    weights: str | None = None,
    example: Any = None,
    backend: str | Backend | None = None,
) -> Ticket:
    """Return the ticket of one pruning step of an experiment of open_lth.

    Args:
        model: a PyTorch module with the parameter names of open_lth's; it stays as it is.
        folder: ``.../level_<n>``, its ``main``, or a branch: it has a ``mask.pth``.
        weights: the model file to take, such as ``"model_ep0_it0"``; if None the earliest that
            is there, which is what training starts from at that step.
        example: one input batch; makes the ticket portable to the other framework.
        backend: a backend or its name, where it shall not be found from the model.

    Raises:
        CheckpointError: the folder has no mask or no such model file (says what it has), or one
            cannot be read.
        MatchError: names or shapes are not the model's; lists both.
        NothingPrunedError: the masks keep everything, as at step 0.
    """
    driver = _able(resolve_backend(model, backend), "open_lth")
    structure = driver.describe(model, example)
    found = driver.load_foreign(model, structure, "open_lth", Path(folder), weights=weights)
    return _ticket(driver, model, structure, found)


def from_tfmot(
    model: Any,
    source: AnyPath | Mapping[str, Any],
    *,
    mapping: Mapping[str, str] | None = None,
    example: Any = None,
    backend: str | Backend | None = None,
) -> Ticket:
    """Return a ticket of a model that TensorFlow Model Optimization has pruned.

    Args:
        model: the same model in Keras 3, without wrappers, built; it stays as it is.
        source: ``{v.name: v.numpy() for v in wrapped.variables}``, or the ``.h5`` file that the
            wrapped model's ``save_weights`` or ``save`` wrote.
        mapping: ``{layer there: layer of the model}``, where names differ.
        example: one input batch; mostly not needed, since Keras knows its graph.
        backend: a backend or its name, where it shall not be found from the model.

    Raises:
        CheckpointError: the file cannot be read, or has no masks.
        MatchError: names or shapes are not the model's; lists both.
        NothingPrunedError: the masks keep everything.
    """
    driver = _able(resolve_backend(model, backend), "tfmot")
    structure = driver.describe(model, example)
    if not isinstance(source, Mapping):
        source = _checkpoint_file(source)
    found = driver.load_foreign(model, structure, "tfmot", source, mapping=dict(mapping or {}))
    return _ticket(driver, model, structure, found)


def to_checkpoint(
    ticket: Ticket,
    model: Any,
    path: AnyPath,
    *,
    example: Any = None,
    mapping: GivenMapping = None,
    backend: str | Backend | None = None,
) -> None:
    """Write the ticket's weights, zeros in, as a checkpoint that needs no ltcore to be loaded.

    The file is there whole or not at all, and an old one stays till then.

    Args:
        ticket: of either framework.
        model: an equivalent model, built; its names are used, and it stays as it is.
        path: ends in ``.pt``, ``.pth`` or ``.safetensors`` (PyTorch: a ``state_dict``), or in
            ``.weights.h5`` or ``.keras`` (Keras).
        example: as in `Ticket.apply`.
        mapping: as in `Ticket.apply`.
        backend: a backend or its name, where it shall not be found from the model.

    Raises:
        MatchError: the ticket does not fit the model.
        CheckpointError: the ending is none of these, or the file cannot be written.
    """
    driver = _able(resolve_backend(model, backend))
    if not str(path).endswith(driver.writes):
        raise CheckpointError(
            f"cannot write {path}: checkpoints of {driver.name} end in {', '.join(driver.writes)}"
        )
    structure = driver.describe(model, example)
    pairing = exchange.pair(ticket, driver, model, structure, mapping=resolve_mapping(mapping))
    with restoring(driver, model, structure, always=True):
        exchange.place(ticket, driver, model, pairing)
        try:
            with replacing(path) as temporary:
                driver.save_checkpoint(model, temporary)
        except (OSError, CheckpointError) as error:
            raise CheckpointError(f"cannot write {path}: {without_temporary(error)}") from error


def _able(driver: Backend, tool: str = "") -> CheckpointBackend:
    """Return ``driver`` if it reads checkpoints, and those of ``tool``."""
    able = cast(CheckpointBackend, driver)
    tools = able.tools if "checkpoints" in driver.capabilities else None
    if tools is None or (tool and tool not in tools):
        kinds = sorted({"checkpoints", *tools}) if tools is not None else []
        raise CapabilityError(
            f"the backend {driver.name!r} does not read {tool or 'checkpoints'!r}; it reads {kinds}"
        )
    return able


def _checkpoint_file(path: AnyPath) -> Path:
    found = Path(path)
    if not found.is_file():
        reason = "it is a folder" if found.is_dir() else "there is no such file"
        raise CheckpointError(f"cannot read {path}: {reason}")
    if is_ticket(found):
        raise CheckpointError(f"{path} is a ticket, no checkpoint: ltcore.load(path) reads it")
    return found


def _ticket(
    driver: CheckpointBackend,
    model: Any,
    structure: Structure,
    found: Imported,
    prunable: Sequence[str] | None = None,
) -> Ticket:
    masks = _masks(structure, found, prunable)
    trained = {info.name: found.params[info.name] for info in structure.infos}
    check_finite(masks.apply(trained))
    told = "stored" if found.masks else "zeros"
    provenance = {
        **origin(driver),
        "rewind": dict(found.rewind),
        "converted_from": {**found.story, "masks": told},
    }
    return make_ticket(driver, model, structure, masks, masks.apply(found.params), provenance)


def _masks(structure: Structure, found: Imported, prunable: Sequence[str] | None) -> Masks:
    """Return the stored masks, or what the zeros say.

    Raises:
        NothingPrunedError: everything is kept.
        MaskError: a stored mask is for no trained parameter.
    """
    if found.masks:
        masks = Masks(found.masks)
        trained = [info.name for info in structure.infos]
        strangers = [name for name in masks if name not in trained]
        if strangers:
            raise MaskError(f"masks for {strangers}, which are no trained parameters: {trained}")
        where = f"the masks of {list(masks)} keep every weight"
    else:
        names = [info.name for info in prunable_from(structure, prunable)]
        masks = Masks.nonzero({name: found.params[name] for name in names})
        where = f"there are no masks, and no exact zero in {names}"
    if masks.kept == masks.total:
        raise NothingPrunedError(
            f"nothing is pruned: {where}. A ticket is a sparse network; ltcore.prune(model, "
            "sparsity) makes one"
        )
    return masks
