"""Where a deployed silo's worker process has its socket, its log and a note of who it is.

The worker stays in memory between messages, so that PyTorch, examples and model are loaded once. It
has one folder per ``silo.yaml``, in the system's folder for temporary files, which only the user
that runs the SuperNode can open.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from fedkd.util.files import write_new

MAX_NOTE_BYTES = 10_000
MAX_LOG_BYTES = 10 << 20
"""A longer log is moved aside when the next worker starts."""


@dataclass(frozen=True)
class WorkerFolder:
    """The folder of one silo's worker."""

    folder: Path

    @classmethod
    def of(cls, silo_file: Path) -> WorkerFolder:
        """Return the folder of the silo whose ``silo.yaml`` is this; it need not exist.

        Raises:
            OSError: the system has no folder for temporary files that can be written to.
        """
        name = hashlib.sha256(os.fsencode(silo_file.absolute())).hexdigest()[:16]
        return cls(Path(tempfile.gettempdir()) / f"fedkd-{os.getuid()}" / name)

    @property
    def socket(self) -> Path:
        """The Unix socket on which the worker listens."""
        return self.folder / "socket"

    @property
    def lock(self) -> Path:
        """Locked by the process that starts or replaces the worker."""
        return self.folder / "lock"

    @property
    def log(self) -> Path:
        """What the worker prints."""
        return self.folder / "worker.log"

    @property
    def _note(self) -> Path:
        return self.folder / "worker.json"

    def make(self) -> None:
        """Make the folder; refuse one that another user made or can open.

        Raises:
            OSError: it cannot be made, or is not private.
        """
        for folder in (self.folder.parent, self.folder):
            with contextlib.suppress(FileExistsError):
                folder.mkdir(mode=0o700)
            status = folder.lstat()
            private = stat.S_ISDIR(status.st_mode) and not status.st_mode & 0o077
            if not private or status.st_uid != os.getuid():
                raise PermissionError(f"{folder} is not a private folder of this user; remove it")

    def rotate_log(self) -> None:
        """Move a long log aside, over the one that was moved before."""
        with contextlib.suppress(OSError):
            if self.log.stat().st_size > MAX_LOG_BYTES:
                self.log.replace(self.log.with_suffix(".log.1"))

    def note(self, worker: psutil.Process, version: str) -> None:
        """Note which process is the silo's worker, and of which version its code is."""
        content = {"pid": worker.pid, "created": created_at(worker), "version": version}
        write_new(self._note, json.dumps(content).encode(), mode=0o600, replace=True)

    def worker(self) -> tuple[psutil.Process, str] | None:
        """Return the noted worker and the version of its code; None if it does not run."""
        try:
            with self._note.open("rb") as file:
                note: Any = json.loads(file.read(MAX_NOTE_BYTES))
            pid, created, version = int(note["pid"]), float(note["created"]), str(note["version"])
        except (OSError, ValueError, TypeError, KeyError):
            return None
        process = find_process(pid, created)
        return None if process is None else (process, version)


def created_at(process: psutil.Process) -> float:
    """Return when a process was created, a number that stays when the system's clock is set.

    Linux counts from its own start, to which psutil adds the time of that by the clock of now.
    """
    started = psutil.boot_time() if sys.platform == "linux" else 0.0
    return round(process.create_time() - started, 2)


def find_process(pid: int, created: float) -> psutil.Process | None:
    """Return the process of this number and :func:`created_at`, or None if it has ended.

    Numbers of processes are reused.
    """
    try:
        process = psutil.Process(pid)
        same = created_at(process) == created and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return None
    return process if same else None
