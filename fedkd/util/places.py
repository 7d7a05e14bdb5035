"""The user's folders: home and cache."""

from __future__ import annotations

import os
from pathlib import Path

from fedkd.errors import UserError


def expand(path: str) -> Path:
    """Return a path with ``~`` replaced by the home folder, or as it is where none is known."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 -- pathlib's raises there


def home(variable: str) -> Path:
    """Return the user's home folder; the error names a variable that makes it unnecessary.

    Raises:
        UserError: none is known, as in a container that runs under a number without a name.
    """
    try:
        return Path.home()
    except RuntimeError:
        raise UserError(f"no home folder is known; set HOME, or {variable} to a folder") from None


def user_cache() -> Path:
    """Return fedkd's folder in the user's cache folder.

    Raises:
        UserError: no home folder is known.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The XDG base directory specification says to ignore a relative path.
    folder = cache if cache.is_absolute() else home("FEDKD_CACHE_DIR") / ".cache"
    return folder / "fedkd"


def nearest(path: Path) -> Path:
    """Return a path that exists: this one, or the closest folder above it."""
    return next(each for each in (path, *path.absolute().parents) if each.exists())
