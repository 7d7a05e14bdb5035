"""Run a command and measure seconds, processor time, memory of all its processes, and rounds."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from fedkd.engines.processes import end_marked, find_marked

MARK = "FEDKD_BENCH"
"""Environment variable that all processes of a command inherit, including detached ones."""

_PAUSES = (0.02, 0.25)
"""Least and most seconds between two looks at a command, which take time on its cores."""
_PRECISION = 0.02
"""Error of a round's seconds: a look comes after so much of the time since the last round."""
_MEMORY_EVERY = 0.25
_GROWTH = 1.02


@dataclass(frozen=True)
class Measurement:
    """The measurement of a command.

    Attributes:
        seconds: from its start to its end, or to the end of the last process that did its work.
        cpu_seconds: of the command and of its children that ended before it.
        peak_bytes: maximum sum of proportional set sizes over all its processes.
        round_seconds: median time between two lines of its log of rounds: sending, training,
            aggregation and evaluation; None with fewer than two rounds.
        accuracies: one per round, from round 0.
        round_bytes: sent and received in the last round, where the log of rounds says so.
    """

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    round_seconds: float | None = None
    accuracies: tuple[float, ...] = ()
    round_bytes: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return asdict(self)


class CommandFailedError(Exception):
    """A command failed or exceeded its time limit; the message quotes its log."""


def measure(
    command: Sequence[str | Path],
    *,
    folder: Path,
    environment: Mapping[str, str] | None = None,
    rounds: Callable[[], Path | None] | None = None,
    timeout: float = 900.0,
) -> Measurement:
    """Run a command to its end and return its measurement; all processes it started are ended.

    Args:
        command: program and arguments.
        folder: working folder; output goes to its ``log.txt``.
        environment: variables in addition to those of this process.
        rounds: returns the file to which the command appends one line per round, or None.
        timeout: limit in seconds.

    Raises:
        CommandFailedError: it failed or exceeded the limit.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log.txt"
    round_log = _RoundLog(rounds)
    memory = _Memory(folder)
    usage = os.times()
    begin = time.perf_counter()
    with log.open("wb") as file:
        process = subprocess.Popen(  # noqa: S603 -- the bench's own commands
            [str(part) for part in command],
            cwd=folder,
            env={**os.environ, **(environment or {}), MARK: str(folder), "SPT_NOENV": "1"},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        while process.poll() is None:
            round_log.sample()
            memory.sample()
            if time.perf_counter() - begin > timeout:
                raise CommandFailedError(
                    f"{command[0]} took more than {timeout:.0f} s; {_log_tail(log)}"
                )
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(round_log.pause())
        seconds = time.perf_counter() - begin
        round_log.sample()
    finally:
        end_marked(folder, MARK)
        process.wait()
    if process.returncode:
        raise CommandFailedError(f"{command[0]} ended with {process.returncode}; {_log_tail(log)}")
    after = os.times()
    cpu = after.children_user + after.children_system - usage.children_user - usage.children_system
    return Measurement(
        seconds,
        cpu,
        memory.peak,
        round_log.median(),
        tuple(round_log.accuracies),
        round_log.last_bytes,
    )


def exit_on_sigterm() -> None:
    """Exit on SIGTERM as on Ctrl-C, so that the commands are ended, too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


class _RoundLog:
    """Records when each line appears in a command's log of rounds."""

    def __init__(self, find: Callable[[], Path | None] | None) -> None:
        self._find = find
        self._path: Path | None = None
        self._begin = time.perf_counter()
        self._size = 0
        self._times: list[float] = []
        self.accuracies: list[float] = []
        self.last_bytes: int | None = None

    def sample(self) -> None:
        if self._path is None and self._find is not None:
            self._path = self._find()  # a search through folders; done until there is one
        path = self._path
        if path is None or not path.is_file() or path.stat().st_size == self._size:
            return
        now = time.perf_counter()
        text = path.read_text(encoding="utf-8")
        self._size = len(text.encode())
        lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
        for line in lines[len(self._times) :]:
            self._times.append(now)
            point = json.loads(line)
            self.accuracies.append(float(point["accuracy"]))
            if "bytes_up" in point:
                self.last_bytes = int(point["bytes_up"]) + int(point["bytes_down"])

    def pause(self) -> float:
        """Return the seconds to wait before the next sample."""
        since = time.perf_counter() - (self._times[-1] if self._times else self._begin)
        return min(max(since * _PRECISION, _PAUSES[0]), _PAUSES[1])

    def median(self) -> float | None:
        if len(self._times) < 2:
            return None
        pairs = zip(self._times, self._times[1:], strict=False)
        return statistics.median(after - before for before, after in pairs)


class _Memory:
    """Samples the memory of all processes of a command, with little overhead.

    Proportional set sizes, which share the pages of several processes, take milliseconds per
    process to read. They are read only after the sum of resident set sizes has grown.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sampled_at = 0.0
        self._resident_peak = 0
        self.peak = 0

    def sample(self) -> None:
        now = time.perf_counter()
        if now - self._sampled_at < _MEMORY_EVERY:
            return
        self._sampled_at = now
        processes = find_marked(self._folder, MARK)
        resident = sum(_resident(process) for process in processes)
        if resident > self._resident_peak * _GROWTH:
            self._resident_peak = resident
            self.peak = max(self.peak, sum(proportional(process) for process in processes))


def _resident(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.Error, OSError):
        return int(process.memory_info().rss)
    return 0


def proportional(process: psutil.Process) -> int:
    """Return the proportional set size; the unique one where the system knows no other."""
    with contextlib.suppress(psutil.Error, OSError):
        memory = process.memory_full_info()
        return int(getattr(memory, "pss", memory.uss))
    return 0


def _log_tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return f"its log {log} ends with:\n" + "\n".join(lines[-12:])
