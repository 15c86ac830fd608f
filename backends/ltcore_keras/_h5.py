"""HDF5 files of weights, read without trust and without the optimizer in them."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py

from ltcore.errors import CheckpointError, MatchError

MAX_ENTRIES = 65_536
EXPANSION_FLOOR = 1 << 28
EXPANSION_FACTOR = 1000
"""A dataset may unfold to at most 256 MiB + 1000 times what is stored of it."""

_NARROW = ("float16", "bfloat16", "|V2")  # the last is how h5py shows bfloat16


@contextmanager
def opened(path: Path, mode: str = "r") -> Iterator[Any]:
    """Yield the file, for reading or, with mode ``"r+"``, for changing.

    Raises:
        CheckpointError: it is no HDF5 file, or a damaged one.
    """
    try:
        with h5py.File(path, mode) as file:
            yield file
    except (OSError, RuntimeError, KeyError) as error:  # what h5py raises on damage
        raise CheckpointError(f"cannot read {path}: {error}") from error


def datasets(group: Any, path: Path) -> dict[str, Any]:
    """Return ``{name: dataset}`` of everything inside ``group``.

    Args:
        group: a file or a group.
        path: what to call the file.

    Raises:
        CheckpointError: a link, or data that lies in other files; a dataset that claims far more
            than is stored of it; or more entries than a model has.
    """
    found: dict[str, Any] = {}
    todo = [("", group)]
    seen: set[int] = set()
    for prefix, parent in todo:
        for name in parent:
            full = f"{prefix}{name}"
            item = _item(parent, name, f"{path}: {full!r}")
            if isinstance(item, h5py.Group):
                address = h5py.h5o.get_info(item.id).addr
                if address in seen:
                    raise CheckpointError(
                        f"{path}: {full!r} is a group that was met before; refused"
                    )
                seen.add(address)
                todo.append((f"{full}/", item))
            else:
                _check_dataset(item, f"{path}: {full!r}")
                found[full] = item
            if len(todo) + len(found) > MAX_ENTRIES:
                raise CheckpointError(f"{path} has more than {MAX_ENTRIES} entries")
    return found


def _item(parent: Any, name: str, what: str) -> Any:
    link = parent.get(name, getlink=True)
    item = parent[name] if isinstance(link, h5py.HardLink) else None
    if not isinstance(item, h5py.Group | h5py.Dataset):
        raise CheckpointError(f"{what} is neither a group nor a dataset of the file; refused")
    return item


def _check_dataset(dataset: Any, what: str) -> None:
    if dataset.external or dataset.is_virtual:
        raise CheckpointError(f"{what} has its data in another file; refused")
    size = math.prod(dataset.shape or ()) * dataset.dtype.itemsize
    limit = EXPANSION_FLOOR + EXPANSION_FACTOR * dataset.id.get_storage_size()
    if dataset.shape is None or size > limit:
        raise CheckpointError(
            f"{what} has shape {dataset.shape} and would unfold to {size:,} bytes; for what is "
            f"stored of it {limit:,} are allowed"
        )


def weights_only(found: dict[str, Any]) -> dict[str, Any]:
    """Return the datasets that are weights: neither the optimizer's nor random states."""
    return {
        path: dataset
        for path, dataset in found.items()
        if not any(part.startswith(("optimizer", "seed_generator")) for part in path.split("/"))
    }


def replace_weights(target: Any, source: Any, path: Path) -> None:
    """Put the weights of the file ``source``, called ``path``, in the place of ``target``'s.

    Raises:
        MatchError: they have not the same names and shapes; lists the differences.
    """
    ours = weights_only(datasets(target, path))
    theirs = weights_only(datasets(source, path))
    check_same(
        {path: (dataset.shape, str(dataset.dtype)) for path, dataset in ours.items()},
        {path: (dataset.shape, str(dataset.dtype)) for path, dataset in theirs.items()},
    )
    for name, dataset in theirs.items():
        del target[name]
        source.copy(dataset, target, name=name)


def check_same(
    ours: dict[str, tuple[Any, str]], theirs: dict[str, tuple[Any, str]], hint: str = ""
) -> None:
    """Raise unless both have the same names, shapes, and dtypes that hold the values.

    Args:
        ours: ``{name: (shape, dtype)}`` of the model.
        theirs: of the checkpoint.
        hint: what to do.

    Raises:
        MatchError: lists missing, unexpected and mismatched names.
    """
    missing = [name for name in ours if name not in theirs]
    unexpected = [name for name in theirs if name not in ours]
    mismatched = [
        f"{name}: checkpoint {theirs[name]}, model {ours[name]}"
        for name in ours
        if name in theirs and not _holds(ours[name], theirs[name])
    ]
    if missing or unexpected or mismatched:
        raise MatchError(
            f"the checkpoint is for another model: missing from the checkpoint {missing}, "
            f"unexpected in the checkpoint {unexpected}, mismatched {mismatched}{hint}"
        )


def _holds(ours: tuple[Any, str], theirs: tuple[Any, str]) -> bool:
    """Whether shapes agree, and no small weight would become zero, which means pruned here."""
    return tuple(ours[0]) == tuple(theirs[0]) and (ours[1] == theirs[1] or ours[1] not in _NARROW)


def copy_without_optimizer(source: Path, target: Path) -> None:
    """Write ``target`` with what ``source`` has, the optimizer left out."""
    with h5py.File(source, "r") as old, h5py.File(target, "w") as new:
        new.attrs.update(old.attrs)
        for name in old:
            if name != "optimizer":
                old.copy(name, new)
