"""A file appears whole or not at all, whoever writes it."""

import contextlib
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

_PREFIX = re.compile(r"\.ltcore-[0-9a-f]{16}-")


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary file beside ``path``, which takes its place, synced, when the block ends.

    If the block fails, what stood at ``path`` stays and the temporary is gone. The temporary ends
    like ``path``, for writers that look at the suffix.

    Raises:
        OSError: the disk refuses, or ``path`` is a folder, a pipe or the like.
    """
    target = Path(os.path.realpath(path))  # a link keeps pointing at the file
    if target.exists() and not target.is_file():
        raise OSError("it exists and is not a regular file")
    temporary = target.with_name(f".ltcore-{secrets.token_hex(8)}-{target.name}")
    try:
        with open(temporary, "xb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        yield temporary
        os.chmod(temporary, mode)  # safetensors 0.8 makes its files private to the user
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    # The file is in place and complete; not every file system can sync a folder.
    with contextlib.suppress(OSError):
        _sync_folder(target.parent)


def without_temporary(error: Exception) -> str:
    """Return the text of ``error`` with the file's own name where the temporary's was."""
    return _PREFIX.sub("", str(error))


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
