"""What a data source of the user's own is read from, so that a change of it is seen."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from fedkd.config.table import Table
from fedkd.config.text import Text
from fedkd.data.folder import load_hugging_face
from fedkd.data.listing import walk
from fedkd.data.openclipart import find_openclipart
from fedkd.errors import UserError
from fedkd.registry import OPENCLIPART, SOURCES, is_text
from fedkd.util.places import expand

CACHEABLE = "cacheable"
"""Attribute of a source function of the user's own whose examples may be kept in the cache."""


def find_origin(
    name: str, options: Mapping[str, Any] | None = None, columns: Table | Text | None = None
) -> Any | None:
    """Return JSON values that differ once a source would give other examples.

    Those are names, sizes and times of change of its files, or the code of a function of the
    user's own that says that it is ``cacheable``; of texts also the tokenizer's content.

    Returns:
        The values; None where nothing tells whether the examples are still the same.
    """
    if SOURCES.is_own(name):
        if not getattr(SOURCES.load(name), CACHEABLE, False):
            return None
        return [SOURCES.fingerprint(name), dict(options or {})]
    prefix, place = SOURCES.split(name)
    kind = name if prefix is None else name.removesuffix(place)
    look = _LOOKS.get(kind)
    try:
        seen = None if look is None else look(place)
        if seen is None or not isinstance(columns, Text) or not is_text(name):
            return seen
        from fedkd.data.texts import hash_tokenizer, load_tokenizer

        return [seen, columns.column, columns.label, hash_tokenizer(load_tokenizer(columns))]
    except (OSError, UserError):
        return None  # reading it fails too, with a sentence


def _look_at_folder(place: str) -> str:
    top = str(expand(place).absolute())
    return _hash((path.removeprefix(top), path) for path in walk(Path(top)))


def _look_at_file(place: str) -> str:
    path = expand(place).absolute()
    return _hash([(path.name, str(path))])


def _look_at_hugging_face(place: str) -> str | None:
    files = [
        str(file["filename"])
        for split in load_hugging_face(place).values()
        for file in split.cache_files
    ]
    return _hash((path, path) for path in files) if files else None


def _look_at_openclipart(place: str) -> str:
    named = place != OPENCLIPART
    return _look_at_folder(str(find_openclipart(expand(place) if named else None)))


_LOOKS: Mapping[str, Callable[[str], Any]] = {
    "folder:": _look_at_folder,
    "npz:": _look_at_file,
    "text:": _look_at_file,
    "hf:": _look_at_hugging_face,
    f"{OPENCLIPART}:": _look_at_openclipart,
    OPENCLIPART: _look_at_openclipart,
}


def _hash(files: Iterable[tuple[str, str]]) -> str:
    """Hash names, sizes and times of change; of a folder the name alone."""
    digest = hashlib.sha256()
    for name, path in files:
        status = os.stat(path)  # noqa: PTH116 -- of very many files
        is_folder = stat.S_ISDIR(status.st_mode)
        times = f"{status.st_mtime_ns} {status.st_ctime_ns}"  # the latter cannot be set back
        what = "folder" if is_folder else f"{status.st_size} {times}"
        digest.update(os.fsencode(name) + f"\0{what}\0".encode())
    return digest.hexdigest()
