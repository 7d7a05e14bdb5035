"""Progress of work that takes seconds, on the standard error."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from time import monotonic

_AFTER_SECONDS = 2.0
_EVERY_SECONDS = 0.5
_EVERY_SECONDS_IN_A_LOG = 30.0


class SlowProgress(AbstractContextManager["SlowProgress"]):
    """Shows how far some work is, once it takes more than two seconds.

    On a terminal one line is written over; elsewhere, as in the log of a process, a line follows
    every half minute.
    """

    def __init__(self, doing: str, total: int) -> None:
        self._doing = doing
        self._total = total
        self._done = 0
        self._on_terminal = sys.stderr.isatty()
        self._next = monotonic() + _AFTER_SECONDS
        self._shown = False

    def __exit__(self, *exc_info: object) -> None:
        """Take the line away from a terminal."""
        if self._shown and self._on_terminal:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def add(self, count: int) -> None:
        """Count pieces that are done."""
        self._done += count
        if monotonic() < self._next:
            return
        self._shown = True
        wait = _EVERY_SECONDS if self._on_terminal else _EVERY_SECONDS_IN_A_LOG
        self._next = monotonic() + wait
        text = f"fedkd: {self._doing}: {self._done:,} of {self._total:,}"
        sys.stderr.write(f"\r\x1b[K{text}" if self._on_terminal else f"{text}\n")
        sys.stderr.flush()
