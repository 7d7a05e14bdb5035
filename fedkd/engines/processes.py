"""Processes that end with this one: started in their own sessions, found by a variable.

Flower and Ray start processes in their own sessions, so no process group contains them all. All
inherit the environment, so a variable in it marks them. Run as a program, this module waits until
the process that started it has ended, even by SIGKILL, and then ends the marked processes. It
imports only the standard library and psutil, so that it starts fast and stays small.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

MARK = "FEDKD_ENGINE"
"""Environment variable of marked processes; its value is the folder that they work for."""
GRACE_SECONDS = 5.0
"""Time between SIGTERM and SIGKILL."""
_PAUSE = 0.05
_ATTEMPTS = 10
"""How often processes are sought and ended again in ``GRACE_SECONDS``."""


def free_port() -> int:
    """Return a port of the loopback interface on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(
    command: Sequence[str | Path], environment: Mapping[str, str], log: Path
) -> subprocess.Popen[bytes]:
    """Start ``command`` in a session of its own: Ctrl-C in the terminal does not reach it."""
    with log.open("ab") as file:
        return subprocess.Popen(  # noqa: S603 -- our own commands
            [str(part) for part in command],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def start_cleaner(folder: Path) -> subprocess.Popen[bytes]:
    """Start a process that outlives this one, ends what ``folder`` marks, and removes the folder.

    Its standard input closes with this process, even when that is killed.
    """
    import psutil

    return subprocess.Popen(  # noqa: S603 -- our own command
        # -I: no module of the user's folder or environment may shadow the standard library.
        [sys.executable, "-I", __file__, str(folder), str(Path(psutil.__file__).parents[1])],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def find_marked(folder: Path, variable: str = MARK) -> list[psutil.Process]:
    """Return all other processes that ``folder`` marks."""
    import psutil

    processes: list[psutil.Process] = []
    for process in psutil.process_iter():
        # Processes may end in between, and those of other users cannot be read.
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(variable) == str(folder) and process.pid != os.getpid():
                processes.append(process)
    return processes


def end_marked(
    folder: Path, variable: str = MARK, started: Iterable[subprocess.Popen[bytes]] = ()
) -> None:
    """End all processes that ``folder`` marks, and ``started`` with their descendants."""
    import psutil

    children = list(started)
    for end in (psutil.Process.terminate, psutil.Process.kill):
        for _ in range(_ATTEMPTS):
            # Searched again each time: a process that is ending may start another.
            processes = {*_find_all(folder, variable, children)}
            if not processes:
                return
            for process in processes:
                with contextlib.suppress(psutil.Error, OSError):
                    end(process)
            deadline = time.monotonic() + GRACE_SECONDS / _ATTEMPTS
            while time.monotonic() < deadline and any(map(_runs, processes)):
                time.sleep(_PAUSE)


def _find_all(
    folder: Path, variable: str, children: Iterable[subprocess.Popen[bytes]]
) -> Iterable[psutil.Process]:
    import psutil

    for child in children:
        with contextlib.suppress(psutil.Error, OSError):
            if child.poll() is None:
                process = psutil.Process(child.pid)
                yield from (process, *process.children(recursive=True))
    marked = find_marked(folder, variable)
    if not marked:
        time.sleep(_PAUSE)  # a process in the midst of exec has no environment
        marked = find_marked(folder, variable)
    yield from marked


def _runs(process: psutil.Process) -> bool:
    """Whether it is still running; unlike psutil's wait, this leaves the exit code to Popen."""
    import psutil

    with contextlib.suppress(psutil.Error, OSError):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


def _clean_up_after_parent(folder: Path) -> None:
    sys.stdin.buffer.read()
    end_marked(folder)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.path.append(sys.argv[2])  # of psutil
    _clean_up_after_parent(Path(sys.argv[1]))
