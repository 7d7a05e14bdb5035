"""What the cache holds, and taking some of it away."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fedkd.errors import UserError
from fedkd.registry import suggest
from fedkd.util.cache import drop_entry

KINDS: Mapping[str, str] = {
    "pretrained": "silos' own models",
    "predictions": "what teachers said of image sets",
    "arms": "finished runs of an arm and seed",
    "sources": "decoded public data sets",
    "partitions": "how images were shared among silos",
}
"""Folders of the cache, and what lies in them."""

LEFT_OVER_SECONDS = 24 * 3600.0
"""Age from which an unfinished entry is what a crash left behind, not another process's work."""

_ENTRY = re.compile(r"[0-9a-f]{40}(\.safetensors|\.npz)?")
_UNFINISHED = re.compile(r"\.[0-9a-f]{40}.*\.part")
_UNITS = {"h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}


@dataclass(frozen=True)
class Entry:
    """One thing that need not be computed again.

    Attributes:
        kind: of :data:`KINDS`.
        path: a file or a folder.
        size: in bytes.
        age: seconds since it was written.
    """

    kind: str
    path: Path
    size: int
    age: float


def find_entries(root: Path) -> list[Entry]:
    """Return all entries below the cache's root; nothing that is not fedkd's own is among them."""
    now = time.time()
    return [
        Entry(kind, path, _size(path), max(0.0, now - _changed(path)))
        for kind in KINDS
        for path in sorted(_list(root / kind))
        if _ENTRY.fullmatch(path.name)
    ]


def clear(root: Path, *, kind: str | None = None, older_than: float = 0.0) -> list[Entry]:
    """Remove entries, and what crashes left unfinished; return the entries removed.

    A study that runs meanwhile computes anew what it does not find, and keeps what it has read.

    Args:
        root: of the cache.
        kind: of :data:`KINDS`; by default all.
        older_than: least age in seconds.

    Raises:
        UserError: there is no such kind.
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
    """Refuse a kind that there is not.

    Raises:
        UserError: it is not known.
    """
    if kind is not None and kind not in KINDS:
        raise UserError(
            f"--kind: {kind!r} is no kind of entry{suggest(kind, list(KINDS))}; known are "
            f"{', '.join(KINDS)}"
        )


def parse_age(text: str | None) -> float:
    """Return the seconds that ``12h``, ``30d`` or ``2w`` stand for; 0 for None.

    Raises:
        UserError: the text has another form.
    """
    if text is None:
        return 0.0
    found = re.fullmatch(r"(\d{1,6})([hdw])", text.strip())
    if found is None:
        raise UserError(f"--older-than: {text!r} is no age such as 12h, 30d or 2w")
    return int(found[1]) * _UNITS[found[2]]


def _list(folder: Path) -> Iterator[Path]:
    try:
        yield from folder.iterdir()
    except OSError:
        return


def _size(path: Path) -> int:
    return sum(_bytes(each) for each in ([path] if path.is_file() else path.rglob("*")))


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0  # another process removed it meanwhile


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return time.time()
