"""Files that appear whole or not at all."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def landing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; what is written there takes its place at the end.

    It is synced to disk first. If the block fails, the temporary goes and an old file stays.

    Raises:
        OSError: the disk or the folder does not allow it.
    """
    target = Path(os.path.realpath(path))  # a link keeps pointing at the file
    # The suffix stays last, for writers that go by it.
    temporary = target.with_name(f".ltcore-{secrets.token_hex(8)}-{target.name}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    # The file is in place and complete; not every file system can sync a folder.
    with contextlib.suppress(OSError):
        _sync_folder(target.parent)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
