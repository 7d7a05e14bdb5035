"""Locks between processes: a folder or file that one process at a time may write to."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from fedkd.errors import UserError
from fedkd.util.files import write_json

LOCK_FILE = ".lock"
"""In a locked folder. It stays, empty: removing it would let two processes hold two files."""
_MAX_HOLDER_BYTES = 1000


@contextmanager
def lock_folder(folder: Path, *, wait: float = 0.0) -> Iterator[None]:
    """Hold the lock of ``folder``, which is made if it is missing; see :func:`hold_lock`."""
    with hold_lock(folder / LOCK_FILE, what=folder, wait=wait):
        yield


@contextmanager
def hold_lock(path: Path, *, what: Path, wait: float = 0.0) -> Iterator[None]:
    """Hold a lock for the length of the block; wait some seconds for another holder.

    The operating system releases it when the process ends, even by SIGKILL.

    Raises:
        UserError: another process holds the lock, or the lock file cannot be written.
    """
    lock, holder = FileLock(path), path.with_name(f"{path.name}.json")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=wait)
    except Timeout:
        raise UserError(
            f"{what} is being written by {_read_holder(holder)}; wait for its end"
        ) from None
    except OSError as error:
        raise UserError(f"{what} cannot be written to: {error.strerror}") from error
    try:
        with contextlib.suppress(OSError):  # on a full disk, the folder can still be read
            write_json(holder, {"pid": os.getpid(), "host": socket.gethostname()})
        yield
    finally:
        with contextlib.suppress(OSError):
            holder.unlink()
        lock.release()


def _read_holder(path: Path) -> str:
    """Return a phrase that names the process that wrote ``path``."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        with path.open("rb") as file:
            content = json.loads(file.read(_MAX_HOLDER_BYTES))
        return f"process {int(content['pid'])} on {str(content['host'])[:100]!r}"
    return "another process"
