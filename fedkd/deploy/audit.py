"""A silo's audit log: one JSON object a line for all that left it; lines are only ever added."""

from __future__ import annotations

import errno
import json
import math
import os
import shlex
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedkd.errors import UserError
from fedkd.util.places import nearest

try:
    import fcntl
except ImportError:  # not on Windows, where a line of one write is as good as it gets
    fcntl = None  # type: ignore[assignment]  # a module or nothing


def append_entry(path: Path, entry: Mapping[str, Any]) -> None:
    """Add one entry with the time, and return when the disk has it.

    Raises:
        UserError: it cannot be written, so that nothing may leave.
    """
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    line = f"{json.dumps(_plain({'time': time, **entry}), allow_nan=False)}\n".encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            if fcntl is not None:
                fcntl.flock(handle, fcntl.LOCK_EX)
            size = os.fstat(handle).st_size
            if size and os.pread(handle, 1, size - 1) != b"\n":  # a full disk cut the last one
                line = b"\n" + line
            if os.write(handle, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise UserError(
            f"audit: {path} cannot be written ({error.strerror}), and nothing leaves unlogged"
        ) from error


def _plain(value: Any) -> Any:
    """Return a value with texts for the numbers that JSON lacks: training may have diverged."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def check_user(log: Path) -> None:
    """Refuse to write beside a log as another user than the SuperNode's, who could not read it.

    Raises:
        UserError: the log is another user's.
    """
    if not log.exists() or not hasattr(os, "geteuid") or log.stat().st_uid == os.geteuid():
        return
    try:
        name = log.owner()
    except KeyError:
        name = f"#{log.stat().st_uid}"
    raise UserError(
        f"{log} is of the user {name}, who could not read what this command writes; give it as "
        f"that user: sudo -u {shlex.quote(name)} fedkd ..."
    )


def check_log(path: Path) -> None:
    """Look whether entries can be added; nothing is made, which might then be another user's.

    Raises:
        UserError: they cannot.
    """
    place = nearest(path)
    usable = place.is_file() if place == path else place.is_dir()
    if not (usable and os.access(place, os.W_OK)):
        raise UserError(f"audit: {path} cannot be written: {place} does not allow it")
