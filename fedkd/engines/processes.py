"""Processes that must not outlive this one: started apart, found again by a mark, ended whole.

Flower and Ray start processes in sessions of their own, which no process group holds together.
What they all inherit is the environment, so a variable in it marks them as ours. Run as a program,
this module is the keeper: it waits until its parent is gone, however it went, and cleans up.
It imports nothing but the standard library, so that the keeper starts fast and stays small.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

MARK = "FEDKD_ENGINE"
GRACE_SECONDS = 5.0
_PAUSE = 0.05


def free_port() -> int:
    """Return a port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(
    command: Sequence[str | Path], environment: Mapping[str, str], log: Path
) -> subprocess.Popen[bytes]:
    """Start ``command`` in a session of its own, so that the terminal's Ctrl-C passes it by."""
    with log.open("ab") as file:
        return subprocess.Popen(  # noqa: S603 -- our own commands
            [str(part) for part in command],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def start_keeper(folder: Path) -> subprocess.Popen[bytes]:
    """Start a process that ends all that ``folder`` marks once this process is gone.

    It learns that from its standard input, which closes with us even when we are killed.
    """
    return subprocess.Popen(  # noqa: S603 -- our own command
        # -I: nothing in the user's folder or environment may take a module's name.
        [sys.executable, "-I", __file__, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def marked(folder: Path) -> list[int]:
    """Return the ids of all processes that ``folder`` marks; none where there is no ``/proc``."""
    wanted = f"{MARK}={folder}".encode()
    found: list[int] = []
    for entry in Path("/proc").glob("[0-9]*"):
        # Processes come and go meanwhile, and those of others cannot be read.
        with contextlib.suppress(OSError):
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return [pid for pid in found if pid != os.getpid()]


def marked_late(folder: Path) -> list[int]:
    """Look again after a pause: a process in the midst of ``exec`` shows no environment."""
    time.sleep(_PAUSE)
    return marked(folder)


def end_all(folder: Path, started: Iterable[subprocess.Popen[bytes]] = ()) -> None:
    """End all processes that ``folder`` marks and those ``started``, with their groups."""
    children = list(started)
    for end in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < deadline:
            # Asked anew each time: one that is being ended may yet have started another.
            pids = marked(folder) or marked_late(folder)
            running = [child for child in children if child.poll() is None]
            if not pids and not running:
                return
            _signal(pids, running, end)
            time.sleep(_PAUSE * (1 if end == signal.SIGKILL else 10))


def _signal(
    pids: Iterable[int], children: Iterable[subprocess.Popen[bytes]], number: signal.Signals
) -> None:
    for child in children:
        with contextlib.suppress(OSError):
            os.killpg(child.pid, number)
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, number)


def keep(folder: Path) -> None:
    """Wait for the parent's end, then clean up after it."""
    sys.stdin.buffer.read()
    end_all(folder)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    keep(Path(sys.argv[1]))
