"""The code of a silo's owner that a process has imported, and whether it was edited since."""

from __future__ import annotations

import sys
from pathlib import Path

from fedkd.user_code import is_users

Stamp = tuple[int, int] | None


class LoadedCode:
    """Notes the files of imported modules that are neither installed nor fedkd's."""

    def __init__(self) -> None:
        self._known: set[str] = set()
        self._stamps: dict[str, Stamp] = {}

    def note(self) -> None:
        """Note the modules that were imported since the last call."""
        for name in set(sys.modules) - self._known:
            path = getattr(sys.modules.get(name), "__file__", None)
            if isinstance(path, str) and is_users(path):
                self._stamps[path] = _stamp(path)
            self._known.add(name)

    def has_changed(self) -> bool:
        """Whether a noted file is another one now."""
        return any(_stamp(path) != stamp for path, stamp in self._stamps.items())


def _stamp(path: str) -> Stamp:
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns
