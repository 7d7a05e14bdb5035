"""A folder that one process alone may write to: an OS lock, which dies with its holder."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedkd.errors import UserError

LEASE_FILE = ".lease"
_PAUSE = 0.1
_LONGEST = 1000


@contextmanager
def lease(folder: Path, *, wait: float = 0.0) -> Iterator[None]:
    """Hold ``folder`` for the length of the block; it is made if it is missing.

    The lock belongs to the open file, so that the kernel frees it however the process ends: no
    lease outlives its holder, and none has to be removed by hand.

    Args:
        folder: what to hold.
        wait: seconds in which another holder may still let go.

    Raises:
        UserError: another process holds it, or it cannot be written to.
    """
    path = folder / LEASE_FILE
    deadline = time.monotonic() + wait
    try:
        folder.mkdir(parents=True, exist_ok=True)
        while (handle := _try(path)) is None:
            if time.monotonic() >= deadline:
                raise UserError(f"{folder} is being written by {_holder(path)}; wait for its end")
            time.sleep(_PAUSE)
    except OSError as error:
        raise UserError(f"{folder} cannot be written to: {error.strerror}") from error
    try:
        with contextlib.suppress(OSError):  # a full disk must not keep anyone from looking
            os.truncate(handle, 0)
            said = {"pid": os.getpid(), "host": socket.gethostname()}
            os.write(handle, json.dumps(said).encode())
        yield
    finally:
        # Unlinked while it is still held, so that whoever waits for it sees that it is gone.
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(handle)


def _try(path: Path) -> int | None:
    """Return an open and locked file that bears the name, or None where another holds it."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The holder before us may have removed the file between our opening and our locking.
        if os.fstat(handle).st_ino == path.stat().st_ino:
            return handle
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(handle)
        raise
    os.close(handle)
    return None


def _holder(path: Path) -> str:
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        with path.open("rb") as file:
            said = json.loads(file.read(_LONGEST))
        return f"process {int(said['pid'])} on {str(said['host'])[:100]!r}"
    return "another process"
