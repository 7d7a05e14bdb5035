"""A silo's audit log: one JSON object a line for all that left it; lines are only ever added."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedkd.errors import UserError

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
    line = json.dumps({"time": time, **entry}) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            if fcntl is not None:
                fcntl.flock(handle, fcntl.LOCK_EX)
            os.write(handle, line.encode())
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise UserError(
            f"audit: {path} cannot be written ({error.strerror}), and nothing leaves unlogged"
        ) from error


def check_log(path: Path) -> None:
    """Try whether entries can be added; an empty log is made if there is none."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600))
    except OSError as error:
        raise UserError(f"audit: {path} cannot be written: {error.strerror}") from error
