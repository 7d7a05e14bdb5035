"""Ends by signal: SIGINT, SIGTERM and SIGHUP end a command soon and leave whole files.

The first signal raises KeyboardInterrupt in the main thread, as Ctrl-C does everywhere. If the
process has not ended after ``LIMIT_SECONDS``, or at a second signal, a thread ends it at once:
threads may be in the midst of a long computation, which Python cannot interrupt.

Signals belong to the process, and so does what this module stores.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from fedkd.util.files import remove_temporary

LIMIT_SECONDS = 12.0
"""From the first signal to the end of the process."""
SHOW_CURSOR = "\x1b[?25h"
"""Progress bars hide it."""
SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


class _Ending:
    """What is known of the end of this process."""

    advice = ""
    remark = ""
    received: int | None = None


_ENDING = _Ending()


def advise(sentence: str) -> None:
    """Store the advice that an interrupted command prints."""
    _ENDING.advice = sentence


def remark(sentence: str) -> None:
    """Store what an interrupted command tells its user before the advice; ``""`` is nothing."""
    _ENDING.remark = sentence


def exit_code() -> int:
    """Return the exit code of a process that a signal has ended, as shells give it."""
    return 128 + (_ENDING.received or signal.SIGINT)


def sentence() -> str:
    """Return that the command was interrupted, and what to do next."""
    advice = _ENDING.advice or "Run the same command again."
    return " ".join(filter(None, ("Interrupted.", _ENDING.remark, advice)))


@contextmanager
def handle_signals() -> Iterator[None]:
    """Handle signals as this module says while the block runs; those ignored stay ignored.

    After a signal they are handled so until the process ends.
    """
    _ENDING.advice, _ENDING.remark, _ENDING.received = "", "", None
    if threading.current_thread() is not threading.main_thread():
        yield  # Python lets no other thread set handlers
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    former = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    handlers = {n: handler for n, handler in handlers.items() if handler is not signal.SIG_IGN}
    for number in handlers:
        signal.signal(number, _raise)
    threading.Thread(target=_end_in_time, args=(reader,), daemon=True).start()
    try:
        yield
    finally:
        remove_temporary()
        if _ENDING.received is None:
            signal.set_wakeup_fd(former)
            for number, handler in handlers.items():
                signal.signal(number, handler or signal.SIG_DFL)
            os.close(writer)


def _raise(number: int, _: FrameType | None) -> None:
    _ENDING.received = _ENDING.received or number
    raise KeyboardInterrupt


def _end_in_time(reader: int) -> None:
    """Read the numbers of signals as they arrive; end the process at the second, or later."""
    received = False
    while numbers := os.read(reader, 64):
        for number in filter(SIGNALS.__contains__, numbers):
            # The main thread runs its own handler only between two steps of Python.
            _ENDING.received = _ENDING.received or number
            if received:
                _end_now()
            received = True
            limit = threading.Timer(LIMIT_SECONDS, _end_now)
            limit.daemon = True
            limit.start()
    os.close(reader)


def _end_now() -> None:
    remove_temporary()
    # Not by print, whose lock another thread may hold.
    text = f"{SHOW_CURSOR if os.isatty(2) else ''}{sentence()}\n"
    with contextlib.suppress(OSError):
        os.write(2, text.encode(sys.__stderr__.encoding if sys.__stderr__ else "ascii", "replace"))
    os._exit(exit_code())
