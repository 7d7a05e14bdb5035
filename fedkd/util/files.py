"""Files that are whole or absent: nothing half-written ever bears its final name."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DISK_ERRORS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO}
)
"""Errors of the operating system that are the user's to mend: a disk that is full, read-only or
broken, a folder or size that is not allowed."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that takes its name when the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        if error.filename is None and error.errno in DISK_ERRORS:
            # A full disk is found out by writing, where Python does not know the file's name.
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path``, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON to ``path``, atomically; NaN is refused, JSON has none."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_new(path: Path, data: bytes, *, mode: int, replace: bool = False) -> None:
    """Write bytes to a file that nobody else may read meanwhile, whole or not at all.

    Args:
        path: the file.
        data: its content.
        mode: its permissions, from its first byte on.
        replace: whether a file of that name may be there.

    Raises:
        FileExistsError: it is there and may not be.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(mode)
        if replace:
            temporary.replace(path)
        else:
            os.link(temporary, path)  # unlike a rename, it fails where the name is taken
    finally:
        temporary.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Remove what :func:`replacing` left in ``folder`` and below where its process was killed.

    Nobody else may be writing there.
    """
    for path in folder.rglob(".*.part"):
        if path.is_file():
            with contextlib.suppress(OSError):
                path.unlink()
