"""What shows that private files are still those that were read: sizes and times of change."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from fedkd.util.places import expand

PREFIXES = ("folder:", "npz:", "csv:", "parquet:", "text:")
"""Of sources whose files are all under the path that is named."""


def stamp_source(source: str) -> str | None:
    """Return a hash of the size and time of change of every file of a source.

    None for sources that have no files, or whose files are not known.
    """
    for prefix in PREFIXES:
        if source.startswith(prefix):
            return stamp_path(expand(source.removeprefix(prefix)))
    return None


def stamp_path(path: Path) -> str:
    """Return such a hash for a file, or for all files in a folder and below; of names too."""
    digest = hashlib.sha256()
    waiting, seen = [str(path)], set[str]()
    _add(digest, str(path), path)
    while waiting:
        folder = waiting.pop()
        if (real := os.path.realpath(folder)) in seen:  # a link to a folder above would never end
            continue
        seen.add(real)
        try:
            with os.scandir(folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError:  # a file, or nothing that can be read
            continue
        for entry in found:
            _add(digest, entry.path, entry)
            if entry.is_dir():
                waiting.append(entry.path)
    return digest.hexdigest()


def _add(digest: hashlib._Hash, name: str, place: Path | os.DirEntry[str]) -> None:
    try:
        status = place.stat()
        values: tuple[int, ...] = (
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
            status.st_ino,
        )
    except OSError:
        values = ()
    digest.update(f"{name}\0{values}\n".encode(errors="surrogateescape"))
