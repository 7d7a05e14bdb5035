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


DISK_ERRORS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO}
)
"""Errors of the operating system that the user can mend: a disk that is full, read-only or broken,
a folder or size that is not allowed."""

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


def raise_exhaustion(error: BaseException) -> None:
    """Raise an error again if memory, open files or threads ran out."""
    if describe_exhaustion(error):
        raise error


def one_line(error: BaseException) -> str:
    """Return what an error says, on a line of at most 300 characters; its type if it is silent."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def describe_shortage(error: BaseException) -> str | None:
    """Return what the machine lacked, disk included, or None if the error is another.

    Errors behind the error are looked at too: libraries wrap them.
    """
    behind: BaseException | None = error
    while behind is not None:
        if isinstance(behind, OSError) and behind.errno in DISK_ERRORS:
            return f"{behind.filename or 'the disk'}: {behind.strerror}"
        if (phrase := describe_exhaustion(behind)) is not None:
            return phrase
        behind = behind.__cause__ or behind.__context__
    return None
