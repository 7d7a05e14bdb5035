"""Files that are whole or absent: nothing half-written ever has its final name."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedkd.errors import DISK_ERRORS

_REMOVALS = 20

_TEMPORARY: set[Path] = set()
"""What :func:`temporary_beside` names at the moment, in all threads of this process."""


@contextmanager
def temporary_beside(path: Path) -> Iterator[Path]:
    """Yield an unused name beside ``path`` for a file or folder that is to become it.

    What has that name after the block is removed, however the block ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.urandom(6).hex()}.part")
    _TEMPORARY.add(temporary)
    try:
        yield temporary
    finally:
        _remove(temporary)
        _TEMPORARY.discard(temporary)


def remove_temporary() -> None:
    """Remove the temporary files of this process, which is ending."""
    for path in list(_TEMPORARY):
        _remove(path)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that takes its name when the block succeeds."""
    try:
        with temporary_beside(path) as temporary:
            temporary.touch(mode=0o644, exist_ok=False)  # less what the user's umask takes away
            yield temporary
            with temporary.open("rb+") as written:
                os.fsync(written.fileno())
            temporary.replace(path)
    except OSError as error:
        if error.filename is None and error.errno in DISK_ERRORS:
            # Python does not know the file's name when a write finds the disk full.
            error.filename = str(path)
        raise


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path``, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON to ``path``, atomically; NaN is refused, JSON has none."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def parse_json(text: str | bytes) -> Any:
    """Read JSON; numbers that Python takes though JSON has none, or that overflow, are refused.

    Raises:
        ValueError: it is not JSON, or a number of it is not finite.
    """
    return json.loads(text, parse_constant=_parse_float, parse_float=_parse_float)


def _parse_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is not a finite number")
    return value


def to_csv(rows: Sequence[Mapping[str, Any]], columns: Iterable[str] | None = None) -> str:
    """Return rows as CSV, by default with the columns of all."""
    if columns is None:
        columns = dict.fromkeys(key for row in rows for key in row)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def write_new(path: Path, data: bytes, *, mode: int, replace: bool = False) -> None:
    """Write bytes to a file that nobody else can read meanwhile, whole or not at all.

    It has its ``mode`` from its first byte on. If ``replace``, a file of that name may exist.

    Raises:
        FileExistsError: it exists and may not.
    """
    with temporary_beside(path) as temporary:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(mode)
        if replace:
            temporary.replace(path)
        else:
            os.link(temporary, path)  # unlike a rename, it fails where the name is taken


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_unfinished(folder: Path) -> None:
    """Remove what :func:`replacing` left in ``folder`` and below where a process was killed.

    No other process may be writing there.
    """
    for path in folder.rglob(".*.part"):
        if path.is_file():
            _remove(path)


def _remove(path: Path) -> None:
    for _ in range(_REMOVALS):  # it fails while other threads have too many files open
        try:
            _remove_all(path)
        except OSError:
            time.sleep(0.05)
        else:
            return


def _remove_all(path: Path) -> None:
    """Remove a file or folder with one file open at a time, where shutil needs two for a folder."""
    if path.is_dir() and not path.is_symlink():
        for name in os.listdir(path):  # noqa: PTH208 -- closed before the next is opened
            _remove_all(path / name)
        path.rmdir()
    else:
        path.unlink(missing_ok=True)
