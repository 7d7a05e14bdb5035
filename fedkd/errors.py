"""What ends a run or a study, and how it is shown."""

from __future__ import annotations

import errno
import re


class FedKDError(Exception):
    """Something fedkd foresaw went wrong: shown as one sentence, without a traceback."""

    exit_code = 1


class UserError(FedKDError):
    """What the user asked for is impossible: the message says what, where, and what to do."""

    exit_code = 2


class UserCodeError(UserError):
    """A function of the user's own raised something: the message says which, what and where."""


class NotAllowedError(UserError):
    """A study names code that this host does not import."""


class RemoteError(Exception):
    """A fault of ours, or a lost worker, in another process; the message is its traceback."""


_NO_MEMORY = re.compile(
    r"can't allocate memory|cannot allocate memory|out of memory|failed to map segment|"
    r"bad_alloc|CUBLAS_STATUS_ALLOC_FAILED|mmap.*failed",
    re.IGNORECASE,
)
_NO_THREAD = re.compile(r"can't start new thread|Resource temporarily unavailable")


def describe_exhaustion(error: BaseException) -> str | None:
    """Return which of memory, open files and threads ran out and what to do, or None.

    Such an error says nothing about the model, file or function in which it occurs.
    """
    code = error.errno if isinstance(error, OSError) else None
    text = str(error)
    if code in (errno.EMFILE, errno.ENFILE) or "Too many open files" in text:
        return "too many open files: raise the limit (ulimit -n) or lower engine.workers"
    if isinstance(error, MemoryError) or code == errno.ENOMEM or _NO_MEMORY.search(text):
        return (
            "not enough memory: lower engine.workers, the batch size or the number of examples, or "
            "raise the memory limit"
        )
    if _NO_THREAD.search(text):
        return "no more threads can be started: lower engine.workers or raise the limits"
    return None
