"""Entries of the cache: written whole, read only if their checksums are right, listed, removed."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import stat
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from fedkd.errors import UserError, raise_exhaustion
from fedkd.suggestions import suggest
from fedkd.util.files import hash_file, temporary_beside

KINDS: Mapping[str, str] = {
    "pretrained": "silos' own models",
    "predictions": "teachers' logits on sets of examples",
    "features": "examples' features in pre-trained networks",
    "arms": "finished runs of an arm and seed",
    "sources": "decoded data sources",
    "partitions": "which silo holds which examples",
}
"""Folders of the cache, and what their entries are."""

BUDGETED = ("sources", "features")
"""Kinds that share the budget of disk; see :func:`fedkd.util.cache.disk_budget`."""

MANIFEST = "manifest.json"
"""In every entry: the SHA-256 of each of its files, by name."""
_MAX_MANIFEST_BYTES = 1 << 20

LEFT_OVER_SECONDS = 24 * 3600.0
"""Age from which an unfinished entry is what a crash left, not another process's work."""

_ENTRY = re.compile(r"[0-9a-f]{40}(\.safetensors|\.npz)?")
_UNFINISHED = re.compile(r"\.[0-9a-f]{40}.*\.part")
_UNITS = {"h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """An entry of the cache.

    Attributes:
        kind: of :data:`KINDS`.
        path: its folder, or a file of an earlier version.
        size: in bytes.
        age: seconds since it was written, or since an entry of :data:`BUDGETED` was last used.
    """

    kind: str
    path: Path
    size: int
    age: float


@contextmanager
def new_entry(path: Path, *, private: bool = False) -> Iterator[Path]:
    """Yield a folder that becomes the entry ``path`` when the block succeeds.

    An entry is whole or absent. It replaces one that is there, to which its key says it is equal.
    """
    with temporary_beside(path) as scratch:
        scratch.mkdir(mode=0o700 if private else 0o777)
        yield scratch
        sums = {str(file.relative_to(scratch)): _sum(file) for file in _files(scratch)}
        (scratch / MANIFEST).write_text(json.dumps(sums, indent=1), encoding="utf-8")
        for file in _files(scratch):
            with file.open("rb+") as written:
                os.fsync(written.fileno())
            if private:
                file.chmod(0o600)
        drop_entry(path)
        try:
            scratch.rename(path)
        except OSError:
            if not path.is_dir():  # another process has made the same one
                raise


def has_entry(path: Path) -> bool:
    """Return whether there is an entry ``path`` whose files are those that were written.

    A damaged one is removed, with a warning.
    """
    if not path.is_dir():
        return False
    problem = find_damage(path)
    if problem is None:
        return True
    if path.is_dir():  # else another process removed it meanwhile
        _LOG.warning(
            "fedkd: the cache entry %s is damaged (%s); it is computed again", path, problem
        )
        drop_entry(path)
    return False


def find_damage(folder: Path) -> str | None:
    """Return how an entry's files differ from its manifest, as a phrase, or None.

    In one process, files that are unchanged are read once.
    """
    try:
        stats = [(file, file.stat()) for file in _files(folder)]
        key = tuple((str(f), s.st_size, s.st_mtime_ns, s.st_ino) for f, s in stats)
        return _compare(folder, key)
    except OSError as error:
        raise_exhaustion(error)  # it is this process that lacks something
        return f"{error.filename}: {error.strerror}"


@lru_cache(maxsize=1024)
def _compare(folder: Path, _: tuple[tuple[str, int, int, int], ...]) -> str | None:
    manifest = folder / MANIFEST
    try:
        with manifest.open("rb") as file:
            sums = dict(json.loads(file.read(_MAX_MANIFEST_BYTES)))
    except FileNotFoundError:
        return "it has no manifest"
    except (ValueError, TypeError, RecursionError):
        return "its manifest cannot be read"
    names = {str(file.relative_to(folder)) for file in _files(folder)} - {MANIFEST}
    if different := sorted(names ^ sums.keys()):
        return f"{different[0]} is {'missing' if different[0] in sums else 'not of it'}"
    wrong = next((name for name in sorted(names) if _sum(folder / name) != sums[name]), None)
    return None if wrong is None else f"{wrong} has changed"


def is_complete(path: Path) -> bool:
    """Return whether there is an entry ``path`` with all its files, whatever these hold.

    For entries so large that to read them for their checksums takes longer than to use them.
    """
    try:
        sums = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        return {str(file.relative_to(path)) for file in _files(path)} == {*sums, MANIFEST}
    except (OSError, ValueError, TypeError):
        return False


def keep_within(root: Path, budget: int, *, latest: Path | None = None) -> None:
    """Remove the entries of :data:`BUDGETED` that were not used for longest, until others fit.

    The budget is in bytes; ``latest`` is not removed.
    """
    entries = find_entries(root, BUDGETED)
    total = sum(each.size for each in entries)
    for entry in sorted(entries, key=lambda each: -each.age):
        if total <= budget:
            return
        if entry.path != latest:
            drop_entry(entry.path)
            total -= entry.size


def drop_entry(path: Path) -> None:
    """Remove an entry: first under another name, so that no process finds half of it."""
    with contextlib.suppress(OSError):
        if path.is_dir():
            with temporary_beside(path) as removed:
                path.rename(removed)
        else:
            path.unlink()


def find_entries(root: Path, kinds: Collection[str] = tuple(KINDS)) -> list[Entry]:
    """Return all entries below the cache's root; nothing that is not fedkd's own is among them."""
    now = time.time()
    return [
        Entry(kind, path, _size(path), max(0.0, now - _changed(path)))
        for kind in kinds
        for path in sorted(_list(root / kind))
        if _ENTRY.fullmatch(path.name)
    ]


def clear(root: Path, *, kind: str | None = None, older_than: float = 0.0) -> list[Entry]:
    """Remove entries, and what crashes left unfinished; return the entries removed.

    A study that runs meanwhile computes again what it does not find.
    """
    check_kind(kind)
    chosen = select(find_entries(root), kind=kind, older_than=older_than)
    for entry in chosen:
        drop_entry(entry.path)
    for name in KINDS if kind is None else (kind,):
        for path in _list(root / name):
            old = time.time() - _changed(path) > max(older_than, LEFT_OVER_SECONDS)
            if _UNFINISHED.fullmatch(path.name) and old:
                drop_entry(path)
    return chosen


def select(entries: list[Entry], *, kind: str | None, older_than: float) -> list[Entry]:
    """Return the entries of a kind, or of all, that are old enough."""
    return [each for each in entries if kind in (None, each.kind) and each.age >= older_than]


def check_kind(kind: str | None) -> None:
    """Check the name of a kind; None is all."""
    if kind is not None and kind not in KINDS:
        raise UserError(
            f"--kind: {kind!r} is not a kind of entry{suggest(kind, list(KINDS))}; known are "
            f"{', '.join(KINDS)}"
        )


def parse_age(text: str | None) -> float:
    """Return the seconds that ``12h``, ``30d`` or ``2w`` stand for; 0 for None."""
    if text is None:
        return 0.0
    match = re.fullmatch(r"(\d{1,6})([hdw])", text.strip())
    if match is None:
        raise UserError(f"--older-than: {text!r} is not an age such as 12h, 30d or 2w")
    return int(match[1]) * _UNITS[match[2]]


def _files(folder: Path) -> list[Path]:
    """Return all that is in a folder and below but folders, in order."""
    return sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())


def _sum(path: Path) -> str:
    return hash_file(path) if path.is_file() and not path.is_symlink() else "not a file"


def _list(folder: Path) -> Iterator[Path]:
    try:
        yield from folder.iterdir()
    except OSError:
        return


def _size(path: Path) -> int:
    return sum(_bytes(each) for each in ([path] if path.is_file() else path.rglob("*")))


def _bytes(path: Path) -> int:
    try:
        found = path.stat()
    except OSError:
        return 0  # another process removed it meanwhile
    return found.st_size if stat.S_ISREG(found.st_mode) else 0


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return time.time()
