"""Keras checkpoints: Keras itself loads them into the model, which is read and then put back.

Of a ``.keras`` file only the weights are looked at: its config could name code to run.
"""

import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from ltcore.arrays import Array
from ltcore.backend import Imported
from ltcore.errors import CheckpointError, MatchError
from ltcore_keras._engine import ENGINE, as_numpy
from ltcore_keras._h5 import (
    check_same,
    copy_without_optimizer,
    datasets,
    opened,
    replace_weights,
)
from ltcore_keras._names import own_variables, walk

Read: TypeAlias = Callable[[], dict[str, Array]]
"""Returns all parameters and buffers of the model in canonical axes."""

WRITES = (".weights.h5", ".keras")
READS = (*WRITES, ".h5", ".hdf5", ".safetensors")
_IN_ARCHIVE = "model.weights.h5"


def load_checkpoint(model: Any, source: Path | Mapping[str, Any], read: Read) -> Imported:
    """Return what a file, or arrays by name, have for ``model``."""
    with lent(model):
        if isinstance(source, Mapping):
            assign(model, {name: np.asarray(array) for name, array in source.items()})
            return Imported(read(), {}, {"format": "checkpoint"})
        _load_file(model, source)
        return Imported(read(), {}, {"format": "checkpoint", "file": source.name})


def save_checkpoint(model: Any, path: Path) -> None:
    """Write the model, or its weights, to ``path``, without the state of its optimizer.

    Raises:
        CheckpointError: Keras cannot store it.
    """
    with TemporaryDirectory() as folder:
        weights, bare = Path(folder) / "all.weights.h5", Path(folder) / "bare.weights.h5"
        try:
            model.save_weights(weights)
            copy_without_optimizer(weights, bare)
            if path.suffix == ".keras":
                whole = Path(folder) / "model.keras"
                model.save(whole)
                _repack(whole, bare, path)
            else:
                shutil.copyfile(bare, path)
        except (ValueError, TypeError, NotImplementedError) as error:
            raise CheckpointError(f"Keras cannot store the model: {error}") from error


def _repack(whole: Path, weights: Path, path: Path) -> None:
    """Write ``path``, the archive ``whole`` with ``weights`` in it."""
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.infolist():
            if entry.filename == _IN_ARCHIVE:
                new.write(weights, _IN_ARCHIVE)
            else:
                new.writestr(entry, old.read(entry))


@contextmanager
def lent(model: Any) -> Iterator[None]:
    """Give the model all its variables back at the end."""
    before = [(variable, as_numpy(variable)) for variable in model.variables]
    try:
        yield
    finally:
        for variable, value in before:
            ENGINE.assign(variable, value)


# Files


def _load_file(model: Any, path: Path) -> None:
    """Load the weights in ``path`` into ``model``; the caller puts its own back."""
    name = path.name
    if not name.endswith(READS):
        raise CheckpointError(f"cannot read {path}: Keras checkpoints end in {', '.join(READS)}")
    if name.endswith(".safetensors"):
        assign(model, _safetensors(path))
    elif name.endswith(WRITES):
        with TemporaryDirectory() as folder:
            _load_keras(model, path, Path(folder))
    else:
        _load_legacy(model, path)


def _safetensors(path: Path) -> dict[str, Array]:
    try:
        found: dict[str, Array] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    except KeyError as error:
        raise CheckpointError(f"cannot read {path}: numpy has no dtype {error}") from error
    return found


def _load_keras(model: Any, path: Path, folder: Path) -> None:
    """Load ``.weights.h5``, or the weights in ``.keras``.

    They go into a copy of the model's own file, whose optimizer and random states are then read
    back as they are. Keras itself does not mind weights that are left over.
    """
    own = folder / "own.weights.h5"
    model.save_weights(own)
    unpacked = path
    if path.suffix == ".keras":
        unpacked = _extracted(path, folder / "theirs.weights.h5", own.stat().st_size)
    with opened(own, "r+") as ours, opened(unpacked) as theirs:
        replace_weights(ours, theirs, path)
    _by_keras(model, own)


def _extracted(path: Path, target: Path, own_size: int) -> Path:
    """Unpack the weights of a ``.keras`` archive to ``target``."""
    limit = 16 * own_size + (64 << 20)  # an optimizer keeps a few arrays a weight
    try:
        with zipfile.ZipFile(path) as archive:
            entry = archive.getinfo(_IN_ARCHIVE)
            if entry.file_size > limit:
                raise CheckpointError(
                    f"{path}: {_IN_ARCHIVE} would unpack to {entry.file_size:,} bytes, more than "
                    f"the {limit:,} that weights of this model may take"
                )
            with archive.open(entry) as packed, open(target, "wb") as file:
                shutil.copyfileobj(packed, file)
    except (zipfile.BadZipFile, KeyError, RuntimeError, NotImplementedError, EOFError) as error:
        raise CheckpointError(
            f"cannot read {path}: no archive of Keras 3, or damaged: {error}"
        ) from error
    return target


def _load_legacy(model: Any, path: Path) -> None:
    """Load the weights of an ``.h5`` file; Keras goes by the order of layers there."""
    with opened(path) as file:
        names = datasets(file, path)
    if any("prune_low_magnitude_" in name for name in names):
        raise CheckpointError(
            f"{path} is of a model under TensorFlow Model Optimization: ltcore.from_tfmot(model, "
            "path), or --from tfmot, takes its masks too"
        )
    _by_keras(model, path)


def _by_keras(model: Any, path: Path) -> None:
    try:
        model.load_weights(path)
    except ValueError as error:
        raise MatchError(f"the checkpoint is for another model: {error}") from error
    except (KeyError, OSError, TypeError) as error:
        raise CheckpointError(f"cannot read {path}: {error!r}") from error


# Arrays by name


def assign(model: Any, arrays: Mapping[str, Array]) -> None:
    """Assign every weight of ``model`` its array, by Keras's names for them or by ltcore's.

    Raises:
        MatchError: names or shapes are not the model's; lists the differences.
    """
    ways = [(named, given) for named in names_of(model) for given in (arrays, _inside(arrays))]
    named, arrays = min(ways, key=lambda way: len(way[0].keys() ^ way[1].keys()))
    check_same(
        {name: (tuple(v.shape), str(v.dtype)) for name, v in named.items()},
        {name: (array.shape, str(array.dtype)) for name, array in arrays.items()},
    )
    for name, variable in named.items():
        variable.assign(arrays[name])


def _inside(arrays: Mapping[str, Array]) -> Mapping[str, Array]:
    """Return the arrays without the first part of their names if it is one: the model's name."""
    if len({name.partition("/")[0] for name in arrays}) != 1:
        return arrays
    return {name.partition("/")[2]: array for name, array in arrays.items()}


def names_of(model: Any) -> list[dict[str, Any]]:
    """Return the weights under each way to name them: ltcore's, Keras's, and without the model."""
    ours: dict[str, Any] = {}
    paths: dict[str, Any] = {}
    for path, layer in walk(model):
        for variable in own_variables(layer):
            ours.setdefault(f"{path.replace('.', '/')}/{variable.name}", variable)
            paths.setdefault(variable.path, variable)
    short = {path.removeprefix(f"{model.name}/"): variable for path, variable in paths.items()}
    every = {id(variable) for variable in ours.values()}
    return [ours, *(named for named in (paths, short) if {id(v) for v in named.values()} == every)]
