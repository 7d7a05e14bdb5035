"""Shortages of disk, memory, open files and threads, described in a phrase."""

from __future__ import annotations

import errno
import re

from fedkd.util.files import DISK_ERRORS

_NO_MEMORY = re.compile(
    r"can't allocate memory|cannot allocate memory|out of memory|failed to map segment|"
    r"bad_alloc|CUBLAS_STATUS_ALLOC_FAILED|mmap.*failed",
    re.IGNORECASE,
)
_NO_THREAD = re.compile(r"can't start new thread|Resource temporarily unavailable")


def describe_shortage(error: BaseException) -> str | None:
    """Return what the machine lacked and what to do, or None if the error is another.

    Errors behind the error are looked at too: libraries wrap them.
    """
    behind: BaseException | None = error
    while behind is not None:
        if (phrase := _describe(behind)) is not None:
            return phrase
        behind = behind.__cause__ or behind.__context__
    return None


def _describe(error: BaseException) -> str | None:
    code = error.errno if isinstance(error, OSError) else None
    text = str(error)
    if isinstance(error, OSError) and code in DISK_ERRORS:
        return f"{error.filename or 'the disk'}: {error.strerror}"
    if code in (errno.EMFILE, errno.ENFILE) or "Too many open files" in text:
        return "too many open files: raise the limit (ulimit -n) or lower engine.workers"
    if isinstance(error, MemoryError) or code == errno.ENOMEM or _NO_MEMORY.search(text):
        return (
            "not enough memory: lower engine.workers, the batch size or the number of images, or "
            "raise the memory limit"
        )
    if _NO_THREAD.search(text):
        return "no more threads can be started: lower engine.workers or raise the limits"
    return None
